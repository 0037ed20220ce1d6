"""The rows in PyTorch with torch.compile: forward and backward compiled, beside a fused or a compiled optimizer step."""

from functools import partial

import torch

from rows import with_torch
from rows.best import fastest
from rows.with_torch import VERSIONS, chain, number, pointwise, softmax_rows, training, wait

__all__ = ["VERSIONS", "number", "wait"]  # and a function for each row


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


def mlp_large():
    return with_torch.mlp_large(candidates)


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


def adamw_1e7():
    return with_torch.adamw_1e7(lambda alone: {
        "fused": partial(alone, fused=True), "compiled": lambda: alone(torch.compile, lr=torch.tensor(1e-3))
    })


def lengths_20():
    """The sizes that vary are found by the compiler."""
    torch._dynamo.reset()
    return with_torch.lengths_20(torch.compile)


def gpt():
    """The faster of: a fused optimizer step, or a compiled one."""
    adamw, train = torch.optim.AdamW, with_torch.train_gpt
    return fastest({
        "fused optimizer": lambda: train(partial(adamw, fused=True), compiled),
        "compiled optimizer": lambda: train(lambda p, lr: adamw(p, lr=torch.tensor(lr)), compiled, torch.compile),
    })


def _row(name):
    return lambda: getattr(with_torch, name)(compiled)


for _name in (
    "chain_fb_1e7", "gelu_1e7", "gelu_fb_1e7", "softmax_fb", "layer_norm_fb", "rms_norm_fb", "cross_entropy_fb", "linear_cross_entropy",
    "cnn", "lstm", "batch_1", "ops_1", "ops_10", "ops_100",
    "sdpa_causal", "sdpa_full", "naive_causal", "naive_full", "sdpa_causal_fb", "sdpa_full_fb", "naive_causal_fb", "naive_full_fb",
    "gpt_block",
):
    globals()[_name] = _row(_name)
