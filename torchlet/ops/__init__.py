"""The op table: importing it enters every operator, attaches the methods to Tensor and collects the public functions."""

# ruff: noqa: F401 -- to hold these names is what this file is for

from __future__ import annotations

from torchlet.op import OPS
from torchlet.ops import (
    arrange,
    complex,
    composite,
    contract,
    create,
    einsum,
    fourier,
    index,
    layout,
    linalg,
    mathematics,
    methods,
    order,
    pointwise,
    reduce,
    statistics,
    view,
)

from torchlet.ops import attention, convolve, pool, recurrent  # isort: skip
from torchlet.ops import bessel, construct, lists, names  # isort: skip
from torchlet.ops.public import FUNCTIONS, MAKE_OUT, METHODS, TAKE_OUT, taking_out
from torchlet.tensor import Tensor

for _name, _method in METHODS.items():
    setattr(Tensor, _name, _method)
FUNCTIONS.update({_name: taking_out(_name, FUNCTIONS[_name]) for _name in f"{TAKE_OUT} {MAKE_OUT}".split()})
globals().update(FUNCTIONS)
linear, gelu, leaky_relu, elu, softplus = contract.linear, pointwise.gelu, pointwise.leaky_relu, pointwise.elu, pointwise.softplus
layer_norm, rms_norm, total_norm = composite.layer_norm, composite.rms_norm, composite.total_norm
__all__ = [*FUNCTIONS]  # of the modules only what is public: torchlet.index is another module than torchlet.ops.index
