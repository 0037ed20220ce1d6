"""What the programs share: numbers that are the same under every framework, and compilation on request."""

import sys

import numpy as np
import torch


def array(*shape, seed=0, scale=1.0):
    """Normal numbers of this shape as a float32 tensor."""
    return torch.from_numpy((np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32))


def integers(high, *shape, seed=0):
    """Integers below `high` as an int64 tensor."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, high, shape).astype(np.int64))


def fill(model, seed=0):
    """Overwrite the matrices and biases of a model with numbers that depend on their order only."""
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            if p.dim() < 2 and "bias" in name:
                p.copy_(array(*p.shape, seed=seed + k, scale=0.1))
            elif p.dim() > 1:
                p.copy_(array(*p.shape, seed=seed + k, scale=(1.0 / np.prod(p.shape[1:])) ** 0.5))
    return model


def compiled(f):
    """`torch.compile(f)` where the program was asked to."""
    return torch.compile(f) if "--compile" in sys.argv else f


def show(name, *values):
    """Print numbers that are compared."""
    print(name, *[f"{v.item() if torch.is_tensor(v) else v:.7g}" for v in values])
