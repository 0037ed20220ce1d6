"""Operators that the C runtime computes as a whole: which nodes those are, the function in the library, and the numbers it gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchlet import dtypes
from torchlet.compiler.graph import Node
from torchlet.op import Composite
from torchlet.ops.recurrent import MODES
from torchlet.spec import contiguous_strides

__all__ = ["Call", "call_of", "claims", "is_extern"]

_SUFFIX = {dtypes.float32: "f32", dtypes.float64: "f64", dtypes.int64: "i64"}
_SCANS = {"cumsum": "tl_scan_sum", "cumprod": "tl_scan_prod"}
_MODES = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")  # as in tl_recurrent.c
_PANEL = 32  # results along a run of memory that are computed at once
_USED = 0.4  # the part of them that must be wanted: less, and unfolded windows in a packed product are faster
_LINE = 8  # positions in a row from which a weight gradient is summed row by row
Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the runtime, which takes the operands and the result as a kernel does, its numbers, and its element operations."""

    function: str
    numbers: tuple[int, ...]
    work: int


def is_extern(n: Node) -> bool:
    """True for a node that is called as a whole, with its operands in memory: no loops of it are printed."""
    return n.op is not None and (n.op.lower is None or n.op.name in _COMPOSITES)


def claims(n: Node) -> bool:
    """True for a composite that stays whole, because the runtime's function is faster than its parts."""
    return (
        n.op is not None
        and isinstance(n.op.lower, Composite)
        and n.op.name in _COMPOSITES
        and call_of(n) is not None
        and all(x.kind != "input" or _is_dense(x, x.attrs[1]) for x in n.args())
    )


def call_of(n: Node, strides: tuple[Sizes | None, ...] | None = None) -> Call | None:
    """What computes the node, its operands with the given strides or dense; None where there is no function for it."""
    assert n.op is not None
    kind = _SUFFIX.get(n.spec.dtype)
    describe = _FUNCTIONS.get(n.op.name)
    if kind is None or describe is None or (kind == "i64" and n.op.name not in _SCANS):
        return None
    if any(0 in x.spec.shape for x in (n, *n.args())) or len(n.args()) != len(n.inputs):
        return None
    for i, x in enumerate(n.args()):
        if x.spec.dtype not in (n.spec.dtype, dtypes.int64) or (strides is not None and not _is_dense(x, strides[i])):
            return None
    found = describe(n)
    return found and Call(f"{found.function}_{kind}", found.numbers, found.work)


def _is_dense(x: Node, strides: Sizes | None) -> bool:
    if strides is None:
        return False
    return all(a == b for a, b, extent in zip(strides, contiguous_strides(x.spec.shape), x.spec.shape, strict=True) if extent != 1)


def _recurrent(n: Node) -> Call:
    first, w_hh, *_ = n.args()
    grad = n.op is not None and n.op.name == "recurrent_grad"
    mode, reverse, *keep = n.attrs
    gates, states, _ = MODES[mode]
    steps, batch = first.spec.shape[-3:-1]
    h = w_hh.spec.shape[1]
    more = (n.spec.shape[2],) if grad else map(int, keep)
    # a fifth operand of either is the lengths
    numbers = (steps, batch, h, gates, states, _MODES.index(mode), int(reverse), int(len(n.args()) > 4), *more)
    return Call("tl_recurrent_grad" if grad else "tl_recurrent", numbers, steps * batch * gates * h * h // 4)


def _three(sizes: Sizes, one: int = 1) -> Sizes:
    return (one,) * (3 - len(sizes)) + tuple(sizes)


def _used(counts: Sizes, extent: Sizes) -> float:
    """The part of the positions along a run of memory that are results."""
    length = ((counts[0] - 1) * extent[1] + counts[1] - 1) * extent[2] + counts[2]
    return math.prod(counts) / (-(-length // _PANEL) * _PANEL)


def _convolution(n: Node) -> Call | None:
    assert n.op is not None
    attrs: dict[str, Any] = dict(zip(n.op.attrs, n.attrs, strict=True))
    x, other, *bias = n.args()
    rank = x.spec.ndim - 2
    stride, pads, dilation, groups = attrs["stride"], attrs["pads"], attrs["dilation"], attrs["groups"]
    if rank > 3 or any(a < 0 for a, _ in pads):
        return None
    if n.op.name == "convolution":
        size, counts, kernel, channels = x.spec.shape[2:], n.spec.shape[2:], other.spec.shape[2:], n.spec.shape[1]
        wide = x.spec.shape[1]
    elif n.op.name == "convolution_transpose":
        size, counts, kernel, channels = n.spec.shape[2:], x.spec.shape[2:], other.spec.shape[2:], x.spec.shape[1]
        wide = n.spec.shape[1]
    else:
        size, counts, kernel, channels = x.spec.shape[2:], other.spec.shape[2:], attrs["kernel"], other.spec.shape[1]
        wide = x.spec.shape[1]
    if math.prod(kernel) == 1 and set(stride) == {1} and not any(map(any, pads)):
        return None  # a plain product, which takes what follows it along
    reach = [(k - 1) * d // s for k, d, s in zip(kernel, dilation, stride, strict=True)]
    if n.op.name == "convolution":
        used = _used(_three(counts), _three(tuple(c + r for c, r in zip(counts, reach, strict=True))))
    elif n.op.name == "convolution_transpose":
        part = [max(1, k // s) for k, s in zip(size, stride, strict=True)]
        used = _used(_three(tuple(part)), _three(tuple(c + r + 1 for c, r in zip(part, reach, strict=True))))
    else:
        used = 1.0 if wide // groups < _PANEL // 2 or counts[-1] >= _LINE else 0.0
    if used < _USED:
        return None
    before = _three(tuple(a for a, _ in pads), 0)
    numbers = (
        x.spec.shape[0], groups, wide // groups, channels // groups, len(bias), *_three(size), *_three(counts), *_three(kernel),
        *_three(stride), *before, *_three(dilation),
    )  # fmt: skip
    work = x.spec.shape[0] * channels * math.prod(counts) * math.prod(kernel) * (wide // groups) // 4
    return Call({"convolution": "tl_conv", "convolution_transpose": "tl_conv_transpose"}.get(n.op.name, "tl_conv_weight"), numbers, work)


def _pool_spread(n: Node) -> Call | None:
    assert n.op is not None
    attrs: dict[str, Any] = dict(zip(n.op.attrs, n.attrs, strict=True))
    g = n.args()[0]
    if len(attrs["size"]) > 3:
        return None
    numbers = (
        math.prod(g.spec.shape[:2]), 1, 1, 1, 0, *_three(attrs["size"]), *_three(g.spec.shape[2:]), *_three(attrs["kernel"]),
        *_three(attrs["stride"]), *_three(tuple(a for a, _ in attrs["pads"]), 0), *_three(attrs["dilation"]),
    )  # fmt: skip
    return Call("tl_pool_spread", numbers, 4 * g.spec.numel + n.spec.numel)


def _scan(n: Node) -> Call | None:
    assert n.op is not None
    (x,), (dim,), shape = n.args(), n.attrs, n.spec.shape
    if not shape or x.spec.dtype is not n.spec.dtype:
        return None
    return Call(_SCANS[n.op.name], (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])), 4 * n.spec.numel)


_COMPOSITES = frozenset(("cumsum", "cumprod", "convolution", "convolution_transpose", "convolution_weight", "max_pool_spread"))
_FUNCTIONS: dict[str, Callable[[Node], Call | None]] = {
    "recurrent": _recurrent, "recurrent_grad": _recurrent, "convolution": _convolution, "convolution_transpose": _convolution,
    "convolution_weight": _convolution, "max_pool_spread": _pool_spread, "cumsum": _scan, "cumprod": _scan,
}  # fmt: skip
