"""The rows in PyTorch with torch.compile: forward and backward compiled, beside a fused or a compiled optimizer step."""

from functools import partial

import torch

from rows import with_torch
from rows.best import fastest
from rows.with_torch import VERSIONS, chain, number, pointwise, softmax_rows, training, wait

__all__ = ["VERSIONS", "chain_1e5", "chain_1e7", "linreg", "mlp_adamw", "mlp_sgd", "number", "softmax", "tiny", "wait"]


def compiled(function):
    """Compiled for one shape, without what is left of earlier rows: past 8 compiles of one function torch.compile gives up."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def candidates(arrays, activation, loss_function, optimizer):
    """The faster of: a fused optimizer step, or a compiled one."""
    make = partial(training, arrays, activation, loss_function, forward=compiled)
    return fastest({
        "fused optimizer": lambda: make(partial(optimizer, fused=True)),
        "compiled optimizer": lambda: make(partial(optimizer, lr=torch.tensor(optimizer.keywords["lr"])), update=torch.compile),
    })


def linreg():
    return with_torch.linreg(candidates)


def tiny():
    return with_torch.tiny(candidates)


def mlp_sgd():
    return with_torch.mlp_sgd(candidates)


def mlp_adamw():
    return with_torch.mlp_adamw(candidates)


def chain_1e5():
    return pointwise(compiled(chain), 10**5)


def chain_1e7():
    return pointwise(compiled(chain), 10**7)


def softmax():
    return pointwise(compiled(softmax_rows), 4096, 1024)
