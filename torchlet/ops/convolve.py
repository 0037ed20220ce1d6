"""Convolutions of one to three dimensions: forward, transposed and weight gradient are one family, each the gradient of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from torchlet import index
from torchlet.index import Index
from torchlet.op import Composite, Select, View, apply, define
from torchlet.ops.arrange import flip, pad_
from torchlet.ops.contract import matmul_
from torchlet.ops.public import Draws, public
from torchlet.ops.reduce import sum_
from torchlet.ops.view import basic, permute_, reshape, unsqueeze
from torchlet.spec import Spec
from torchlet.tensor import Tensor

_rng = Draws(11)
Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]  # (before, after) of each spatial dimension

# ------------------------------------------------------------------------------------------------ windows and their overlap


def window_counts(name: str, sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Sizes:
    """How many windows there are in each spatial dimension. Raises RuntimeError when a window does not fit."""
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(n < span for n, span in zip(sizes, spans, strict=True)):
        raise RuntimeError(
            f"{name}: Calculated padded input size per channel: ({' x '.join(map(str, sizes))}). Kernel size: "
            f"({' x '.join(map(str, spans))}). Kernel size can't be greater than actual input size"
        )
    return tuple((n - span) // s + 1 for n, span, s in zip(sizes, spans, stride, strict=True))


def _windows_np(x: Any, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Any:
    counts = window_counts("windows", x.shape[2:], kernel, stride, dilation)
    steps = x.strides[2:]
    strides = (*x.strides[:2], *(a * s for a, s in zip(steps, stride, strict=True)), *(a * d for a, d in zip(steps, dilation, strict=True)))
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:2], *counts, *kernel), strides)


def _windows_spec(x: Spec, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Spec:
    return Spec((*x.shape[:2], *window_counts("windows", x.shape[2:], kernel, stride, dilation), *kernel), x.dtype, x.device)


def _windows_index(out: tuple[Index, ...], in_shape: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> tuple[Index, ...]:
    rank = len(kernel)
    return (*out[:2], *(o * s + k * d for o, k, s, d in zip(out[2 : 2 + rank], out[2 + rank :], stride, dilation, strict=True)))


windows_ = define(
    "windows",
    ("x",),
    _windows_np,
    _windows_spec,
    View(_windows_index),
    ("kernel", "stride", "dilation"),
    {"x": lambda g, x_spec, stride, dilation: apply(overlap_add_, (g,), (x_spec.shape[2:], stride, dilation))},
    lambda: [((_rng.standard_normal((2, 3, *s)),), a) for s, a in (((7,), ((3,), (2,), (1,))), ((6, 7), ((2, 3), (1, 2), (2, 1))))],
    doc="(N, C, *size) -> (N, C, *counts, *kernel): every window of the spatial dimensions, as a view.",
)


def _overlaps_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], size: Sizes, stride: Sizes, dilation: Sizes) -> Any:
    """Element k of the window that lies so that its element k is at position i, if there is such a window."""
    rank = len(size)
    source: list[Index] = []
    mask: list[tuple[str, Index, int]] = []
    for i, k, n, s, d in zip(out[2 : 2 + rank], out[2 + rank :], specs[0].shape[2:], stride, dilation, strict=False):
        start = i - k * d
        mask += [("ge", start, 0), ("lt", start, (n - 1) * s + 1)] + ([("every", start, s)] if s > 1 else [])
        source.append(index.floordiv(start, s) if s > 1 else start)
    return load(0, (*out[:2], *source, *out[2 + rank :]), mask=mask)


def _positions(counts: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Iterator[tuple[Sizes, tuple[Any, ...]]]:
    """Each element of a window with the places where it lies in the windows, one slice a dimension."""
    for at in np.ndindex(*kernel):
        parts = zip(at, counts, stride, dilation, strict=True)
        yield at, tuple([slice(k * d, k * d + (n - 1) * s + 1, s) for k, n, s, d in parts])


def _overlaps_np(x: Any, size: Sizes, stride: Sizes, dilation: Sizes) -> Any:
    rank = len(size)
    counts, kernel = x.shape[2 : 2 + rank], x.shape[2 + rank :]
    out: Any = np.zeros((*x.shape[:2], *size, *kernel), x.dtype)
    for at, places in _positions(counts, kernel, stride, dilation):
        out[(..., *places, *at)] = x[(..., *at)]
    return out


overlaps_ = define(
    "overlaps",
    ("x",),
    _overlaps_np,
    lambda x, size, stride, dilation: Spec((*x.shape[:2], *size, *x.shape[2 + len(size) :]), x.dtype, x.device),
    Select(_overlaps_lower),
    ("size", "stride", "dilation"),
    samples=lambda: [
        ((_rng.standard_normal((1, 2, 3, 3)),), ((7,), (2,), (1,))),
        ((_rng.standard_normal((1, 2, 2, 2, 3, 2)),), ((6, 4), (2, 1), (1, 2))),
    ],
    doc="(N, C, *counts, *kernel) -> (N, C, *size, *kernel): each element of each window at the position it covers, 0 where none does.",
)


def _overlap_add_np(x: Any, size: Sizes, stride: Sizes, dilation: Sizes) -> Any:
    rank = len(size)
    wide = np.float32 if x.dtype.itemsize == 2 else x.dtype
    out: Any = np.zeros((*x.shape[:2], *size), wide)
    for at, places in _positions(x.shape[2 : 2 + rank], x.shape[2 + rank :], stride, dilation):
        out[(..., *places)] += x[(..., *at)]
    return out.astype(x.dtype, copy=False)


def _overlap_add_body(x: Tensor, size: Sizes, stride: Sizes, dilation: Sizes) -> Tensor:
    spread = apply(overlaps_, (x,), (size, stride, dilation))
    return apply(sum_, (spread,), (tuple(range(2 + len(size), spread.ndim)), False))


overlap_add_ = define(
    "overlap_add",
    ("x",),
    _overlap_add_np,
    lambda x, size, stride, dilation: Spec((*x.shape[:2], *size), x.dtype, x.device),
    Composite(_overlap_add_body),
    ("size", "stride", "dilation"),
    {"x": lambda g, x_spec, size, stride, dilation: apply(windows_, (g,), (x_spec.shape[2 + len(size) :], stride, dilation))},
    lambda: [
        ((_rng.standard_normal((1, 2, 3, 3)),), ((7,), (2,), (1,))),
        ((_rng.standard_normal((1, 2, 2, 2, 3, 2)),), ((6, 4), (2, 1), (1, 2))),
    ],
    doc="(N, C, *counts, *kernel) -> (N, C, *size): windows added where they lie, the transpose of `windows`.",
)


def padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """The spatial dimensions with `value` around them; negative amounts crop."""
    if any(a < 0 or b < 0 for a, b in pads):
        keep = [("s", max(-a, 0), n - max(-b, 0), 1) for n, (a, b) in zip(x.shape[2:], pads, strict=True)]
        x = basic(x, (("s", None, None, None),) * 2 + tuple(keep))
    grow = tuple([(max(a, 0), max(b, 0)) for a, b in pads])
    return apply(pad_, (x,), (((0, 0), (0, 0), *grow), value)) if any(map(any, grow)) else x


# ------------------------------------------------------------------------------------------------ NumPy

_CHUNK = 1 << 21  # elements of unfolded windows at a time: they should stay in cache


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _padded_np(x: Any, pads: Pads) -> Any:
    if not any(map(any, pads)):
        return x
    if any(a < 0 or b < 0 for a, b in pads):
        inside: Any = (..., *[slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape[2:], pads, strict=True)])
        x = x[inside]
        pads = tuple([(max(a, 0), max(b, 0)) for a, b in pads])
    out: Any = np.zeros((*x.shape[:2], *(n + a + b for n, (a, b) in zip(x.shape[2:], pads, strict=True))), x.dtype)
    out[(..., *[slice(a, a + n) for n, (a, _) in zip(x.shape[2:], pads, strict=True)])] = x
    return out


def _columns(x: Any, kernel: Sizes, stride: Sizes, dilation: Sizes, groups: int) -> tuple[Any, Callable[[int, int], Any]]:
    """The counts of windows, and a function that gives the windows of some samples as matrices (n, groups, C/groups*kernel, positions)."""
    windows = _windows_np(x, kernel, stride, dilation)
    rank, channels = len(kernel), x.shape[1] // groups
    counts = windows.shape[2 : 2 + rank]
    k, p = channels * math.prod(kernel), math.prod(counts)

    def part(start: int, stop: int) -> Any:
        s = windows.strides
        grouped = (stop - start, groups, channels, *windows.shape[2:])
        w = np.lib.stride_tricks.as_strided(windows[start:stop], grouped, (s[0], s[1] * channels, *s[1:]))
        order = (0, 1, 2, *range(3 + rank, 3 + 2 * rank), *range(3, 3 + rank))
        return w.transpose(order).reshape(stop - start, groups, k, p)

    return counts, part


def _chunks(n: int, each: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // max(each, 1))
    for start in range(0, n, step):
        yield start, min(n, start + step)


def _conv_np(x: Any, weight: Any, *rest: Any) -> Any:
    *bias, stride, pads, dilation, groups = rest
    _check(x, weight)
    kernel = weight.shape[2:]
    xp, w = _padded_np(_wide(x), pads), _wide(weight)
    n, o = x.shape[0], weight.shape[0]
    if groups == x.shape[1] == o:  # one filter a channel: a product of matrices would have one row
        counts = window_counts("conv", xp.shape[2:], kernel, stride, dilation)
        out: Any = np.zeros((n, o, *counts), xp.dtype)
        for at, places in _positions(counts, kernel, stride, dilation):
            out += xp[(..., *places)] * w[(slice(None), 0, *at)].reshape(-1, *[1] * len(kernel))
    else:
        counts, part = _columns(xp, kernel, stride, dilation, groups)
        rows = w.reshape(groups, o // groups, -1)
        flat = np.empty((n, groups, o // groups, math.prod(counts)), xp.dtype)
        for a, b in _chunks(n, xp.shape[1] * math.prod(kernel) * math.prod(counts)):
            np.matmul(rows, part(a, b), out=flat[a:b])
        out = flat.reshape(n, o, *counts)
    if bias:
        out += _wide(bias[0]).reshape(-1, *[1] * len(kernel))
    return out.astype(x.dtype, copy=False)


def _transpose_np(x: Any, weight: Any, *rest: Any) -> Any:
    *bias, size, stride, pads, dilation, groups = rest
    if x.dtype != weight.dtype or x.shape[1] != weight.shape[0]:
        raise TypeError("dtypes or channels differ")
    kernel, rank = weight.shape[2:], len(size)
    xw, w = _wide(x), _wide(weight)
    n, channels = x.shape[0], weight.shape[1] * groups
    counts = x.shape[2:]
    out: Any = np.zeros((n, channels, *(s + a + b for s, (a, b) in zip(size, pads, strict=True))), xw.dtype)
    columns = w.reshape(groups, weight.shape[0] // groups, -1).swapaxes(1, 2)
    flat = xw.reshape(n, groups, weight.shape[0] // groups, -1)
    for a, b in _chunks(n, channels * math.prod(kernel) * math.prod(counts)):
        spread = np.matmul(columns, flat[a:b]).reshape(b - a, channels, *kernel, *counts)
        for at, places in _positions(counts, kernel, stride, dilation):
            out[(slice(a, b), slice(None), *places)] += spread[(slice(None), slice(None), *at)]
    out = out[(..., *[slice(lo, lo + s) for s, (lo, _) in zip(size, pads, strict=True)])]
    if bias:
        out = out + _wide(bias[0]).reshape(-1, *[1] * rank)
    return np.ascontiguousarray(out, x.dtype)


def _weight_np(x: Any, g: Any, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes, groups: int) -> Any:
    n, o, *counts = g.shape
    xp, gw = _padded_np(_wide(x), _exact(pads, x.shape[2:], counts, kernel, stride, dilation)), _wide(g)
    _, part = _columns(xp, kernel, stride, dilation, groups)
    flat = gw.reshape(n, groups, o // groups, -1)
    out: Any = np.zeros((groups, o // groups, x.shape[1] // groups * math.prod(kernel)), xp.dtype)
    for a, b in _chunks(n, x.shape[1] * math.prod(kernel) * math.prod(counts)):
        out += np.matmul(flat[a:b], part(a, b).swapaxes(2, 3)).sum(0)
    return out.reshape(o, x.shape[1] // groups, *kernel).astype(x.dtype, copy=False)


# ------------------------------------------------------------------------------------------------ shapes


def _check(x: Any, weight: Any) -> None:
    if x.dtype != weight.dtype or x.ndim != weight.ndim or x.ndim < 3:
        raise TypeError("dtypes or ranks differ")


def _checked(name: str, x: Spec, weight: Spec, bias: Sequence[Spec], channels: int) -> None:
    for word, other in (("weight", weight), *[("bias", b) for b in bias]):
        if other.dtype is not x.dtype:
            raise RuntimeError(
                f"{name}: Input type ({x.dtype.name}) and {word} type ({other.dtype.name}) should be the same\nhelp: convert one with .to()"
            )
    if bias and bias[0].shape != (channels,):
        raise RuntimeError(
            f"{name}: Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {channels} elements, but got bias of size {list(bias[0].shape)} instead"
        )


def _conv_spec(x: Spec, weight: Spec, *rest: Any) -> Spec:
    *bias, stride, pads, dilation, groups = rest
    name = f"conv{x.ndim - 2}d"
    if weight.shape[1] * groups != x.shape[1]:
        raise RuntimeError(
            f"{name}: Given groups={groups}, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have {weight.shape[1] * groups} "
            f"channels, but got {x.shape[1]} channels instead"
        )
    if weight.shape[0] % groups:
        raise RuntimeError(
            f"{name}: Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of size {list(weight.shape)} instead"
        )
    _checked(name, x, weight, bias, weight.shape[0])
    sizes = tuple(n + a + b for n, (a, b) in zip(x.shape[2:], pads, strict=True))
    return Spec((x.shape[0], weight.shape[0], *window_counts(name, sizes, weight.shape[2:], stride, dilation)), x.dtype, x.device)


def _transpose_spec(x: Spec, weight: Spec, *rest: Any) -> Spec:
    *bias, size, _, _, _, groups = rest
    name = f"conv_transpose{x.ndim - 2}d"
    if weight.shape[0] != x.shape[1] or weight.shape[0] % groups:
        raise RuntimeError(
            f"{name}: Given transposed=1, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have {weight.shape[0]} channels, "
            f"divisible by groups={groups}, but got {x.shape[1]} channels instead"
        )
    _checked(name, x, weight, bias, weight.shape[1] * groups)
    return Spec((x.shape[0], weight.shape[1] * groups, *size), x.dtype, x.device)


# ------------------------------------------------------------------------------------------------ bodies


def _column_tensor(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, groups: int) -> tuple[Tensor, Sizes]:
    """(N, groups, C/groups, *kernel, *counts) and the counts, without a copy."""
    rank = len(kernel)
    w = apply(windows_, (x,), (kernel, stride, dilation))
    counts = tuple(w.shape[2 : 2 + rank])
    w = reshape(w, (w.shape[0], groups, w.shape[1] // groups, *w.shape[2:]))
    return apply(permute_, (w,), ((0, 1, 2, *range(3 + rank, 3 + 2 * rank), *range(3, 3 + rank)),)), counts


def _biased(out: Tensor, bias: Sequence[Tensor]) -> Tensor:
    return out + reshape(bias[0], (-1, *[1] * (out.ndim - 2))) if bias else out


def _conv_body(x: Tensor, weight: Tensor, *bias: Tensor, stride: Sizes, pads: Pads, dilation: Sizes, groups: int) -> Tensor:
    kernel, o = tuple(weight.shape[2:]), weight.shape[0]
    columns, counts = _column_tensor(padded(x, pads), kernel, stride, dilation, groups)
    n, k = x.shape[0], weight.shape[1] * math.prod(kernel)
    if groups == 1:
        out = apply(matmul_, (reshape(weight, (o, k)), reshape(columns, (n, k, math.prod(counts)))))  # (o, k) @ (N, k, P)
    else:
        out = apply(matmul_, (reshape(weight, (groups, o // groups, k)), reshape(columns, (n, groups, k, math.prod(counts)))))
    return _biased(reshape(out, (n, o, *counts)), bias)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """(Cin, Cout/groups, *kernel) -> (Cout, Cin/groups, *kernel), the kernel back to front."""
    i, o, *kernel = weight.shape
    w = flip(weight, *range(2, weight.ndim)) if math.prod(kernel) > 1 else weight
    w = reshape(w, (groups, i // groups, o, *kernel)).transpose(1, 2)
    return reshape(w, (groups * o, i // groups, *kernel))


def _transpose_body(
    x: Tensor, weight: Tensor, *bias: Tensor, size: Sizes, stride: Sizes, pads: Pads, dilation: Sizes, groups: int
) -> Tensor:
    kernel = tuple(weight.shape[2:])
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if set(stride) == {1}:  # a convolution with the kernel back to front
        ends = tuple((span - a, s - n + a) for span, (a, _), s, n in zip(spans, pads, size, x.shape[2:], strict=True))
        return _conv_body(x, _turned(weight, groups), *bias, stride=stride, pads=ends, dilation=dilation, groups=groups)
    n, counts = x.shape[0], tuple(x.shape[2:])
    rows = reshape(weight, (groups, weight.shape[0] // groups, -1)).transpose(1, 2)  # (groups, Cout/groups*kernel, Cin/groups)
    spread = apply(matmul_, (rows, reshape(x, (n, groups, weight.shape[0] // groups, math.prod(counts)))))
    spread = reshape(spread, (n, groups * weight.shape[1], *kernel, *counts))
    rank = len(kernel)
    spread = apply(permute_, (spread,), ((0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)),))
    out = apply(overlap_add_, (spread,), (tuple(s + a + b for s, (a, b) in zip(size, pads, strict=True)), stride, dilation))
    return _biased(padded(out, tuple((-a, -b) for a, b in pads)), bias)


def _weight_body(x: Tensor, g: Tensor, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes, groups: int) -> Tensor:
    n, o, *counts = g.shape
    exact = _exact(pads, tuple(x.shape[2:]), tuple(counts), kernel, stride, dilation)  # what no window reached is cut off
    columns, _ = _column_tensor(padded(x, exact), kernel, stride, dilation, groups)
    k, p = x.shape[1] // groups * math.prod(kernel), math.prod(counts)
    rank = len(kernel)
    # (N, G, c, *k, *o) -> (G, N, *o, c, *k): one product over all samples and positions
    rows = apply(permute_, (columns,), ((1, 0, *range(3 + rank, 3 + 2 * rank), 2, *range(3, 3 + rank)),))
    grads = apply(permute_, (reshape(g, (n, groups, o // groups, p)),), ((1, 2, 0, 3),))
    out = apply(matmul_, (reshape(grads, (groups, o // groups, n * p)), reshape(rows, (groups, n * p, k))))
    return reshape(out, (o, x.shape[1] // groups, *kernel))


# ------------------------------------------------------------------------------------------------ operators

_ATTRS = ("stride", "pads", "dilation", "groups")


def _bias_grad(g: Tensor) -> list[Tensor]:
    return [apply(sum_, (g,), ((0, *range(2, g.ndim)), False))]


def _exact(pads: Pads, size: Sizes, counts: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Pads:
    """The padding with which `counts` windows reach to the very end of `size`; negative where they leave something over."""
    reach = [d * (k - 1) + (c - 1) * s + 1 for k, d, c, s in zip(kernel, dilation, counts, stride, strict=True)]
    return tuple([(a, r - a - n) for r, (a, _), n in zip(reach, pads, size, strict=True)])


def _conv_samples(bias: bool = True) -> Callable[[], list[Any]]:
    cases = [
        ((2, 3, 7), (4, 3, 3), ((2,), ((1, 1),), (1,), 1)),
        ((2, 4, 5, 6), (6, 2, 3, 2), ((1, 2), ((1, 1), (0, 1)), (2, 1), 2)),
        ((1, 3, 5, 5), (3, 1, 3, 3), ((1, 1), ((1, 1), (1, 1)), (1, 1), 3)),
        ((1, 2, 3, 4, 4), (3, 2, 2, 2, 3), ((1, 2, 1), ((0, 0), (1, 1), (1, 1)), (1, 1, 1), 1)),
    ]
    return lambda: [
        ((_rng.standard_normal(x), _rng.standard_normal(w), *([_rng.standard_normal(w[0])] if bias else [])), a) for x, w, a in cases
    ]


convolution_ = define(
    "convolution",
    ("x", "weight", "*bias"),
    _conv_np,
    _conv_spec,
    Composite(_conv_body),
    _ATTRS,
    {
        "x": lambda g, weight, x_spec, stride, pads, dilation, groups: apply(
            convolution_transpose_, (g, weight), (x_spec.shape[2:], stride, pads, dilation, groups)
        ),
        "weight": lambda g, x, weight_spec, stride, pads, dilation, groups: apply(
            convolution_weight_, (x, g), (weight_spec.shape[2:], stride, pads, dilation, groups)
        ),
        "bias": _bias_grad,
    },
    _conv_samples(),
    doc="Cross-correlation of (N, C, *size) with (O, C/groups, *kernel), plus a bias for each output channel.",
)


def _transpose_samples() -> list[Any]:
    cases = [
        ((2, 3, 4), (3, 2, 3), ((9,), (2,), ((0, 0),), (1,), 1)),
        ((2, 4, 3, 3), (4, 2, 3, 2), ((4, 5), (2, 2), ((1, 2), (0, 1)), (1, 1), 2)),
        ((1, 2, 4, 4), (2, 3, 3, 3), ((4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
    ]
    return [((_rng.standard_normal(x), _rng.standard_normal(w)), a) for x, w, a in cases]


convolution_transpose_ = define(
    "convolution_transpose",
    ("x", "weight", "*bias"),
    _transpose_np,
    _transpose_spec,
    Composite(_transpose_body),
    ("size", *_ATTRS),
    {
        "x": lambda g, weight, x_spec, stride, pads, dilation, groups: apply(
            convolution_,
            (g, weight),
            (stride, _exact(pads, tuple(g.shape[2:]), x_spec.shape[2:], tuple(weight.shape[2:]), stride, dilation), dilation, groups),
        ),
        "weight": lambda g, x, weight_spec, stride, pads, dilation, groups: apply(
            convolution_weight_, (g, x), (weight_spec.shape[2:], stride, pads, dilation, groups)
        ),
        "bias": _bias_grad,
    },
    _transpose_samples,
    doc="The gradient of `convolution` with respect to its input: (N, Cin, *counts) with (Cin, Cout/groups, *kernel) -> (N, Cout, *size).",
)


def _weight_samples() -> list[Any]:
    cases = [
        ((2, 3, 7), (2, 4, 4), ((3,), (2,), ((1, 1),), (1,), 1)),
        ((2, 4, 5, 6), (2, 6, 3, 3), ((3, 2), (1, 2), ((1, 1), (0, 1)), (2, 1), 2)),
    ]
    return [((_rng.standard_normal(x), _rng.standard_normal(g)), a) for x, g, a in cases]


convolution_weight_ = define(
    "convolution_weight",
    ("x", "grad"),
    _weight_np,
    lambda x, grad, kernel, stride, pads, dilation, groups: Spec((grad.shape[1], x.shape[1] // groups, *kernel), x.dtype, x.device),
    Composite(_weight_body),
    ("kernel", *_ATTRS),
    {
        "x": lambda g, grad, x_spec, stride, pads, dilation, groups: apply(
            convolution_transpose_, (grad, g), (x_spec.shape[2:], stride, pads, dilation, groups)
        ),
        "grad": lambda g, x, grad_spec, kernel, stride, pads, dilation, groups: apply(
            convolution_,
            (x, g),
            (stride, _exact(pads, tuple(x.shape[2:]), grad_spec.shape[2:], kernel, stride, dilation), dilation, groups),
        ),
    },
    _weight_samples,
    doc="The gradient of `convolution` with respect to its weight, from the input and the gradient of the output.",
)

# ------------------------------------------------------------------------------------------------ public functions


def sizes_of(name: str, value: Any, rank: int, what: str) -> Sizes:
    """One number for all spatial dimensions, or one for each. Raises RuntimeError for another count."""
    if isinstance(value, int):
        return (value,) * rank
    out = tuple([int(v) for v in value])
    if len(out) == 1:
        return out * rank
    if len(out) != rank:
        raise RuntimeError(
            f"{name}: expected {what} to be a single integer value or a list of {rank} values to match the convolution dimensions, but got {what}={list(out)}"
        )
    return out


def _batched(name: str, x: Tensor, rank: int) -> tuple[Tensor, bool]:
    if x.ndim not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{name}: Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {name}, but got input of size: {list(x.shape)}"
        )
    return (x, True) if x.ndim == rank + 2 else (unsqueeze(x, 0), False)


def _convolved(
    name: str, rank: int, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    x, batched = _batched(name, x, rank)
    if weight.ndim != rank + 2:
        raise RuntimeError(f"{name}: expected a {rank + 2}-dimensional weight, but got weight of size {list(weight.shape)}")
    stride, dilation = sizes_of(name, stride, rank, "stride"), sizes_of(name, dilation, rank, "dilation")
    if min(stride) < 1 or min(dilation) < 1 or groups < 1:
        raise RuntimeError(
            f"{name}: non-positive stride, dilation or groups is not supported; got stride={stride}, dilation={dilation}, groups={groups}"
        )
    pads: Pads
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(f"{name}: Invalid padding string: '{padding}'; expected 'same' or 'valid'")
        if padding == "same" and set(stride) != {1}:
            raise RuntimeError(f"{name}: padding='same' is not supported for strided convolutions")
        spans = [d * (k - 1) if padding == "same" else 0 for k, d in zip(weight.shape[2:], dilation, strict=True)]
        pads = tuple([(span // 2, span - span // 2) for span in spans])
    else:
        pads = tuple([(p, p) for p in sizes_of(name, padding, rank, "padding")])
        if any(p < 0 for p, _ in pads):
            raise RuntimeError(f"{name}: negative padding is not supported")
    out = apply(convolution_, (x, weight) if bias is None else (x, weight, bias), (stride, pads, dilation, int(groups)))
    return out if batched else out.squeeze(0)


@public(method=False)
def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """(N, C, L) with (O, C/groups, k) -> (N, O, L'). `padding` is a number, or "same" or "valid"."""
    return _convolved("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


@public(method=False)
def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """(N, C, H, W) with (O, C/groups, kh, kw) -> (N, O, H', W'). `padding` is a number or two, or "same" or "valid"."""
    return _convolved("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


@public(method=False)
def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """(N, C, D, H, W) with (O, C/groups, kd, kh, kw) -> (N, O, D', H', W')."""
    return _convolved("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def _transposed(
    name: str,
    rank: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Tensor:
    x, batched = _batched(name, x, rank)
    stride, dilation = sizes_of(name, stride, rank, "stride"), sizes_of(name, dilation, rank, "dilation")
    amounts, extra = sizes_of(name, padding, rank, "padding"), sizes_of(name, output_padding, rank, "output_padding")
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise RuntimeError(
            f"{name}: output padding must be smaller than either stride or dilation, but got output_padding: {extra} stride: {stride} dilation: {dilation}"
        )
    size = tuple(
        [
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, s, p, d, k, e in zip(x.shape[2:], stride, amounts, dilation, weight.shape[2:], extra, strict=True)
        ]
    )
    if min(size) < 1:
        raise RuntimeError(f"{name}: the output would have the spatial size {list(size)}; expected at least 1")
    pads = tuple([(p, p) for p in amounts])
    out = apply(convolution_transpose_, (x, weight) if bias is None else (x, weight, bias), (size, stride, pads, dilation, int(groups)))
    return out if batched else out.squeeze(0)


@public(method=False)
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """(N, C, L) with (C, O/groups, k) -> (N, O, (L - 1) * stride - 2 * padding + dilation * (k - 1) + output_padding + 1)."""
    return _transposed("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


@public(method=False)
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """As conv_transpose1d over two dimensions."""
    return _transposed("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@public(method=False)
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """As conv_transpose1d over three dimensions."""
    return _transposed("conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _block(name: str, rank: int, value: Any) -> Sizes:
    return sizes_of(name, value, rank, "size")


def unfold_blocks(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """(N, C, H, W) -> (N, C * kh * kw, positions): every block as a column."""
    x, batched = _batched("unfold", input, 2)
    kernel, dilation, stride, amounts = (_block("unfold", 2, v) for v in (kernel_size, dilation, stride, padding))
    x = padded(x, tuple([(p, p) for p in amounts]))
    columns, counts = _column_tensor(x, kernel, stride, dilation, 1)
    out = reshape(columns, (x.shape[0], x.shape[1] * math.prod(kernel), math.prod(counts)))
    return out if batched else out.squeeze(0)


def fold_blocks(input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """(N, C * kh * kw, positions) -> (N, C, *output_size): columns added where their blocks lie."""
    if input.ndim not in (2, 3):
        raise RuntimeError(f"fold: Expected 2D or 3D (batch mode) tensor for input, but got: {input.ndim}D")
    x = input if input.ndim == 3 else unsqueeze(input, 0)
    size, kernel, dilation, stride, amounts = (_block("fold", 2, v) for v in (output_size, kernel_size, dilation, stride, padding))
    block = math.prod(kernel)
    if x.shape[1] % block:
        raise RuntimeError(
            f"fold: Expected size of input's dimension 1 to be divisible by the product of kernel_size, but got input.size(1)={x.shape[1]} and kernel_size={kernel}."
        )
    whole = tuple([n + 2 * p for n, p in zip(size, amounts, strict=True)])
    counts = window_counts("fold", whole, kernel, stride, dilation)
    if x.shape[2] != math.prod(counts):
        raise RuntimeError(
            f"fold: Given output_size={size}, kernel_size={kernel}, dilation={dilation}, padding={amounts}, stride={stride}, expected size of input's "
            f"dimension 2 to match the calculated number of sliding blocks {counts[0]} * {counts[1]} = {math.prod(counts)}, but got input.size(2)={x.shape[2]}."
        )
    blocks = apply(permute_, (reshape(x, (x.shape[0], x.shape[1] // block, *kernel, *counts)),), ((0, 1, 4, 5, 2, 3),))
    out = padded(apply(overlap_add_, (blocks,), (whole, stride, dilation)), tuple([(-p, -p) for p in amounts]))
    return out if input.ndim == 3 else out.squeeze(0)
