"""torchlet.nn.modules: the layers under the module paths that PyTorch keeps them in."""

import sys
from types import ModuleType

from torchlet.nn import (
    activation,
    adaptive,
    container,
    conv,
    dropout,
    embedding,
    lazy,
    linear,
    loss,
    module,
    normalization,
    padding,
    pooling,
    rnn,
    transformer,
    vision,
)
from torchlet.nn.conv import each
from torchlet.nn.module import Module

__all__ = ["Module"]

_PLACES = {
    "activation": activation,
    "adaptive": adaptive,
    "batchnorm": normalization,
    "channelshuffle": vision,
    "container": container,
    "conv": conv,
    "distance": linear,
    "dropout": dropout,
    "flatten": linear,
    "fold": vision,
    "instancenorm": normalization,
    "lazy": lazy,
    "linear": linear,
    "loss": loss,
    "module": module,
    "normalization": normalization,
    "padding": padding,
    "pixelshuffle": vision,
    "pooling": pooling,
    "rnn": rnn,
    "sparse": embedding,
    "transformer": transformer,
    "upsampling": vision,
}
_tuples = ModuleType(f"{__name__}.utils", "Numbers as tuples, one for each spatial dimension.")
for _rank, _name in enumerate(("_single", "_pair", "_triple", "_quadruple"), 1):
    setattr(_tuples, _name, lambda value, rank=_rank: each(value, rank))
_activation = ModuleType(f"{__name__}.activation", "Activation functions, and attention.")
_activation.__dict__.update(
    {k: v for k, v in vars(activation).items() if k == "__all__" or not k.startswith("__")},
    MultiheadAttention=transformer.MultiheadAttention,
)
_PLACES["activation"] = _activation
for _name, _place in {**_PLACES, "utils": _tuples}.items():
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _place
for _place in (
    activation,
    adaptive,
    container,
    conv,
    dropout,
    embedding,
    lazy,
    linear,
    loss,
    normalization,
    padding,
    pooling,
    rnn,
    transformer,
    vision,
):
    globals().update({_name: getattr(_place, _name) for _name in _place.__all__})
