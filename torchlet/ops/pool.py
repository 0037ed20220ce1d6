"""Pooling of one to three dimensions: windows reduced to their largest element or their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, index
from torchlet.index import Index
from torchlet.op import Composite, Select, apply, define
from torchlet.ops.convolve import Pads, Sizes, _positions, _wide, overlap_add_, padded, sizes_of, window_counts, windows_
from torchlet.ops.create import arange_
from torchlet.ops.pointwise import cast, where
from torchlet.ops.public import Draws, public
from torchlet.ops.reduce import amax_, argmax_, sum_
from torchlet.ops.view import expand, reshape, unsqueeze, unsqueeze_dims
from torchlet.spec import Spec
from torchlet.tensor import Tensor

_rng = Draws(12)
_ATTRS = ("kernel", "stride", "pads", "dilation")


def _lowest(dtype: dtypes.dtype) -> float | int:
    return -math.inf if dtype.is_floating_point else int(np.iinfo(str(dtype.np)).min)


def _filled(x: Any, pads: Pads, value: Any) -> Any:
    return np.pad(x, ((0, 0), (0, 0), *pads), constant_values=value) if any(map(any, pads)) else x


def _pool_spec(name: str) -> Callable[..., Spec]:
    def spec(x: Spec, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes = (), *_: Any) -> Spec:
        size = tuple([n + a + b for n, (a, b) in zip(x.shape[2:], pads, strict=True)])
        return Spec((*x.shape[:2], *window_counts(name, size, kernel, stride, dilation or (1,) * len(kernel))), x.dtype, x.device)

    return spec


def _window_tensor(x: Tensor, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes, value: Any) -> tuple[Tensor, tuple[int, ...]]:
    """The windows of the padded input, and the dimensions of their elements."""
    w = apply(windows_, (padded(x, pads, value),), (kernel, stride, dilation))
    return w, tuple(range(2 + len(kernel), w.ndim))


# ------------------------------------------------------------------------------------------------ the largest element


def _max_np(x: Any, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Any:
    xp = _filled(x, pads, _lowest(dtypes.from_numpy(x.dtype)))
    counts = window_counts("max_pool", xp.shape[2:], kernel, stride, dilation)
    out = None
    for _, places in _positions(counts, kernel, stride, dilation):
        part = xp[(..., *places)]
        out = part.copy() if out is None else np.maximum(out, part, out=out)
    return out


def _argmax_np(x: Any, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Any:
    xp = _filled(x, pads, _lowest(dtypes.from_numpy(x.dtype)))
    counts = window_counts("max_pool", xp.shape[2:], kernel, stride, dilation)
    best, at = None, np.zeros((*x.shape[:2], *counts), np.int64)
    for number, (_, places) in enumerate(_positions(counts, kernel, stride, dilation)):
        part = xp[(..., *places)]
        if best is None:
            best = part.copy()
            continue
        better = (part > best) | (np.isnan(part) & ~np.isnan(best))
        at[better] = number
        np.copyto(best, part, where=better)
    return at


def _max_body(x: Tensor, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Tensor:
    w, dims = _window_tensor(x, kernel, stride, pads, dilation, _lowest(x.dtype))
    return apply(amax_, (w,), (dims, False))


def _argmax_body(x: Tensor, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Tensor:
    w, dims = _window_tensor(x, kernel, stride, pads, dilation, _lowest(x.dtype))
    return apply(argmax_, (w,), (dims, False))


def _pick(x: Tensor, at: Tensor, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Tensor:
    """The element number `at` of each window: the transpose of `_spread`."""
    w, dims = _window_tensor(x, kernel, stride, pads, dilation, 0.0)
    return apply(sum_, (where(_hit(at, kernel), w, 0.0),), (dims, False))


def _hit(at: Tensor, kernel: Sizes) -> Tensor:
    """(N, C, *counts, *kernel) bool: the place that `at` (N, C, *counts) names in each window."""
    numbers = reshape(apply(arange_, (0, 1), (math.prod(kernel), dtypes.int64)), kernel)
    return unsqueeze_dims(at, tuple(range(at.ndim, at.ndim + len(kernel)))).eq(numbers)


def _spread_body(g: Tensor, at: Tensor, size: Sizes, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Tensor:
    rank = len(kernel)
    each = where(_hit(at, kernel), unsqueeze_dims(g, tuple(range(g.ndim, g.ndim + rank))), 0.0)
    whole = tuple([n + a + b for n, (a, b) in zip(size, pads, strict=True)])
    return padded(apply(overlap_add_, (each,), (whole, stride, dilation)), tuple([(-a, -b) for a, b in pads]))


def _spread_np(g: Any, at: Any, size: Sizes, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Any:
    out: Any = np.zeros((*g.shape[:2], *(n + a + b for n, (a, b) in zip(size, pads, strict=True))), _wide(g).dtype)
    for number, (_, places) in enumerate(_positions(g.shape[2:], kernel, stride, dilation)):
        out[(..., *places)] += np.where(at == number, g, 0)
    return np.ascontiguousarray(out[(..., *[slice(a, a + n) for n, (a, _) in zip(size, pads, strict=True)])], g.dtype)


def _max_samples() -> list[Any]:
    cases = [((2, 2, 7), ((3,), (2,), ((1, 1),), (1,))), ((1, 2, 6, 5), ((2, 3), (2, 1), ((0, 0), (1, 0)), (1, 2)))]
    return [((_rng.permutation(math.prod(s)).reshape(s) / 7.0,), a) for s, a in cases]


def _at_samples() -> list[Any]:
    return [((x[0], _argmax_np(x[0], *a)), a) for x, a in _max_samples()]


def _spread_samples() -> list[Any]:
    return [((_rng.standard_normal(at.shape), at), (x.shape[2:], *a)) for (x, at), a in _at_samples()]


max_pool_ = define(
    "max_pool",
    ("x",),
    _max_np,
    _pool_spec("max_pool"),
    Composite(_max_body),
    _ATTRS,
    {
        "x": lambda g, x, x_spec, kernel, stride, pads, dilation: apply(
            max_pool_spread_,
            (g, apply(max_pool_argmax_, (x,), (kernel, stride, pads, dilation))),
            (x_spec.shape[2:], kernel, stride, pads, dilation),
        )
    },
    _max_samples,
    doc="The largest element of each window; its gradient goes to the first of equals.",
)
max_pool_argmax_ = define(
    "max_pool_argmax",
    ("x",),
    _argmax_np,
    lambda x, *a: Spec(_pool_spec("max_pool")(x, *a).shape, dtypes.int64, x.device),
    Composite(_argmax_body),
    _ATTRS,
    samples=_max_samples,
    doc="The number of the largest element in its window, in row-major order.",
)
max_pool_spread_ = define(
    "max_pool_spread",
    ("g_out", "at"),
    _spread_np,
    lambda g_out, at, size, *_: Spec((*g_out.shape[:2], *size), g_out.dtype, g_out.device),
    Composite(_spread_body),
    ("size", *_ATTRS),
    {"g_out": lambda g, at, kernel, stride, pads, dilation: apply(max_pool_pick_, (g, at), (kernel, stride, pads, dilation))},
    _spread_samples,
    doc="Values (N, C, *counts) put where element `at` of each window lies: the gradient of max_pool.",
)
max_pool_pick_ = define(
    "max_pool_pick",
    ("x", "at"),
    lambda x, at, kernel, stride, pads, dilation: _pick_np(x, at, kernel, stride, pads, dilation),
    lambda x, at, *_: Spec(at.shape, x.dtype, x.device),
    Composite(_pick),
    _ATTRS,
    {
        "x": lambda g, at, x_spec, kernel, stride, pads, dilation: apply(
            max_pool_spread_, (g, at), (x_spec.shape[2:], kernel, stride, pads, dilation)
        )
    },
    _at_samples,
    doc="Element `at` of each window: the transpose of max_pool_spread.",
)


def _pick_np(x: Any, at: Any, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Any:
    xp = _filled(x, pads, 0)
    out: Any = np.zeros(at.shape, x.dtype)
    for number, (_, places) in enumerate(_positions(at.shape[2:], kernel, stride, dilation)):
        np.copyto(out, xp[(..., *places)], where=at == number)
    return out


# ------------------------------------------------------------------------------------------------ the sum


def _sum_np(x: Any, kernel: Sizes, stride: Sizes, pads: Pads) -> Any:
    xp = _filled(_wide(x), pads, 0)
    counts = window_counts("avg_pool", xp.shape[2:], kernel, stride, (1,) * len(kernel))
    out: Any = np.zeros((*x.shape[:2], *counts), xp.dtype)
    for _, places in _positions(counts, kernel, stride, (1,) * len(kernel)):
        out += xp[(..., *places)]
    return out.astype(x.dtype, copy=False)


def _sum_body(x: Tensor, kernel: Sizes, stride: Sizes, pads: Pads) -> Tensor:
    w, dims = _window_tensor(x, kernel, stride, pads, (1,) * len(kernel), 0.0)
    return apply(sum_, (w,), (dims, False))


def _sum_grad(g: Tensor, x_spec: Spec, kernel: Sizes, stride: Sizes, pads: Pads) -> Tensor:
    rank = len(kernel)
    each = expand(unsqueeze_dims(g, tuple(range(g.ndim, g.ndim + rank))), (*g.shape, *kernel))
    whole = tuple([n + a + b for n, (a, b) in zip(x_spec.shape[2:], pads, strict=True)])
    return padded(apply(overlap_add_, (each,), (whole, stride, (1,) * rank)), tuple([(-a, -b) for a, b in pads]))


sum_pool_ = define(
    "sum_pool",
    ("x",),
    _sum_np,
    _pool_spec("avg_pool"),
    Composite(_sum_body),
    ("kernel", "stride", "pads"),
    {"x": _sum_grad},
    lambda: [
        ((_rng.standard_normal(s),), a)
        for s, a in (((2, 2, 7), ((3,), (2,), ((1, 1),))), ((1, 2, 6, 5), ((2, 3), (2, 1), ((0, 0), (1, 0)))))
    ],
    doc="The sum of each window of the input with zeros around it.",
)

# ------------------------------------------------------------------------------------------------ windows of unequal size


def _adaptive_longest(n: int, out: int) -> int:
    return max([-(-(o + 1) * n // out) - o * n // out for o in range(out)], default=0)


def _adaptive_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], size: Sizes, value: float) -> Any:
    """Element k of window o, which reaches from floor(o n / size) to ceil((o + 1) n / size)."""
    source, mask = [], []
    for o, k, n, m in zip(out[2 : 2 + len(size)], out[2 + len(size) :], specs[0].shape[2:], size, strict=True):
        at = index.floordiv(o * n, m) + k
        if n % m:
            mask.append(("lt", at - index.floordiv(o * n + (n + m - 1), m), 0))
        source.append(at)
    return load(0, (*out[:2], *source), mask=mask, other=value)


def _adaptive_np(x: Any, size: Sizes, value: float) -> Any:
    rank = len(size)
    for d, m in enumerate(size):  # one dimension after the other: (…, n, …) -> (…, m, …, k)
        n = x.shape[2 + d]
        k = np.arange(_adaptive_longest(n, m))
        o = np.arange(m)[:, None]
        at = o * n // m + k
        inside = at < -(-(o + 1) * n // m)
        x = np.moveaxis(np.take(x, np.where(inside, at, 0), axis=2 + d), 3 + d, -1)
        x = np.where(inside.reshape(*[m if i == 2 + d else 1 for i in range(x.ndim - 1)], -1), x, np.asarray(value, x.dtype))
    assert x.ndim == 2 + 2 * rank
    return x


def _adaptive_spec(x: Spec, size: Sizes, value: float) -> Spec:
    return Spec((*x.shape[:2], *size, *[_adaptive_longest(n, m) for n, m in zip(x.shape[2:], size, strict=True)]), x.dtype, x.device)


def _adaptive_back_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], size: Sizes) -> Any:
    """What window number j of those that cover position i holds for it."""
    rank = len(size)
    windows, elements, mask = [], [], []
    for i, j, n, m in zip(out[2 : 2 + rank], out[2 + rank :], size, specs[0].shape[2 : 2 + rank], strict=True):
        o = index.floordiv(i * m, n) + j
        mask.append(("lt", o - index.floordiv(i * m + (m + n - 1), n), 0))
        windows.append(o)
        elements.append(i - index.floordiv(o * n, m))
    return load(0, (*out[:2], *windows, *elements), mask=mask)


def _picked(x: Any, places: list[tuple[Any, Any, Any]]) -> Any:
    """x (N, C, *m, *k) at (first, second, valid) for each dimension, arrays (n, j): (N, C, *n, *j), 0 where not valid."""
    rank = len(places)
    first, second, valid = [], [], np.ones((1,) * 2 * rank, bool)
    for d, parts in enumerate(places):
        n, j = parts[0].shape
        shape = [n if i == d else j if i == d + rank else 1 for i in range(2 * rank)]
        a, b, ok = (part.reshape(shape) for part in parts)
        first.append(np.where(ok, a, 0))
        second.append(np.where(ok, b, 0))
        valid = valid & ok
    return np.where(valid, x[(slice(None), slice(None), *first, *second)], x.dtype.type(0))


def _adaptive_back_np(x: Any, size: Sizes) -> Any:
    places = []
    for n, m in zip(size, x.shape[2 : 2 + len(size)], strict=True):
        i = np.arange(n)[:, None]
        o = i * m // n + np.arange(_adaptive_longest(m, n))
        places.append((o, i - o * n // m, o < -(-(i + 1) * m // n)))
    return _picked(x, places)


def _adaptive_grad(g: Tensor, x_spec: Spec) -> Tensor:
    spread = apply(adaptive_back_, (g,), (x_spec.shape[2:],))
    return apply(sum_, (spread,), (tuple(range(x_spec.ndim, spread.ndim)), False))


def _back_spec(x: Spec, size: Sizes) -> Spec:
    return Spec((*x.shape[:2], *size, *[_adaptive_longest(m, n) for n, m in zip(size, x.shape[2:], strict=False)]), x.dtype, x.device)


adaptive_windows_ = define(
    "adaptive_windows",
    ("x",),
    _adaptive_np,
    _adaptive_spec,
    Select(_adaptive_lower),
    ("size", "value"),
    {"x": _adaptive_grad},
    lambda: [((_rng.standard_normal(s),), (a, 0.0)) for s, a in (((2, 2, 7), (3,)), ((1, 2, 5, 3), (3, 4)))],
    doc="(N, C, *n) -> (N, C, *size, *longest): windows that cover the input evenly, filled up with `value`.",
)


def _adaptive_back_grad(g: Tensor, x_spec: Spec, size: Sizes) -> Tensor:
    """Each window's elements from where they were spread to: the windows of the input that holds each position's share."""
    rank = len(size)
    picked = apply(adaptive_gather_, (g,), (x_spec.shape[2 : 2 + rank],))
    return picked


def _gather_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], counts: Sizes) -> Any:
    rank = len(counts)
    at, numbers, mask = [], [], []
    for o, k, n, m in zip(out[2 : 2 + rank], out[2 + rank :], specs[0].shape[2:], counts, strict=False):
        i = index.floordiv(o * n, m) + k
        mask.append(("lt", i - index.floordiv(o * n + (n + m - 1), m), 0))
        at.append(i)
        numbers.append(o - index.floordiv(i * m, n))
    return load(0, (*out[:2], *at, *numbers), mask=mask)


def _gather_np(x: Any, counts: Sizes) -> Any:
    places = []
    for n, m in zip(x.shape[2 : 2 + len(counts)], counts, strict=True):
        o = np.arange(m)[:, None]
        i = o * n // m + np.arange(_adaptive_longest(n, m))
        places.append((i, o - i * m // n, i < -(-(o + 1) * n // m)))
    return _picked(x, places)


adaptive_back_ = define(
    "adaptive_back",
    ("x",),
    _adaptive_back_np,
    _back_spec,
    Select(_adaptive_back_lower),
    ("size",),
    {"x": _adaptive_back_grad},
    lambda: [((_adaptive_np(_rng.standard_normal(s), a, 0.0),), (s[2:],)) for s, a in (((2, 2, 7), (3,)), ((1, 2, 5, 3), (3, 4)))],
    doc="The windows of `adaptive_windows` back at the positions they cover, one after the other in the last dimensions.",
)
adaptive_gather_ = define(
    "adaptive_gather",
    ("x",),
    _gather_np,
    lambda x, counts: Spec(
        (*x.shape[:2], *counts, *[_adaptive_longest(n, m) for n, m in zip(x.shape[2:], counts, strict=False)]), x.dtype, x.device
    ),
    Select(_gather_lower),
    ("counts",),
    {"x": lambda g, x_spec, counts: apply(adaptive_back_, (g,), (x_spec.shape[2 : 2 + len(counts)],))},
    lambda: [
        ((_adaptive_back_np(_adaptive_np(_rng.standard_normal(s), a, 0.0), s[2:]),), (a,))
        for s, a in (((2, 2, 7), (3,)), ((1, 2, 5, 3), (3, 4)))
    ],
    doc="The transpose of `adaptive_back`.",
)

# ------------------------------------------------------------------------------------------------ public functions


def _batched(name: str, x: Tensor, rank: int) -> tuple[Tensor, bool]:
    if x.ndim not in (rank + 1, rank + 2):
        raise RuntimeError(f"{name}: Expected {rank + 1}D or {rank + 2}D tensor, but got input of size: {list(x.shape)}")
    return (x, True) if x.ndim == rank + 2 else (unsqueeze(x, 0), False)


def _geometry(name: str, sizes: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool) -> Pads:
    """The padding of each side; with `ceil_mode` the end gets what a last, partial window needs."""
    pads = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        if s < 1 or k < 1 or d < 1:
            raise RuntimeError(f"{name}: kernel size, stride and dilation should be greater than zero; got {k}, {s} and {d}")
        if not 0 <= p <= ((k - 1) * d + 1) // 2:
            raise RuntimeError(
                f"{name}: pad should be at most half of effective kernel size, but got pad={p}, kernel_size={k} and dilation={d}"
            )
        span = d * (k - 1) + 1
        room = n + 2 * p - span
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # the last window has to start inside the input or its padding before
        if count < 1:
            raise RuntimeError(
                f"{name}: Given input size per channel: {list(sizes)}. Calculated output size: {count}. Output size is too small"
            )
        pads.append((p, max((count - 1) * s + span - n - p, p) if ceil_mode else p))
    return tuple(pads)


def _max_pooled(
    name: str, rank: int, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, return_indices: bool
) -> Any:
    x, batched = _batched(name, x, rank)
    kernel = sizes_of(name, kernel_size, rank, "kernel_size")
    step = kernel if stride is None or stride == [] or stride == () else sizes_of(name, stride, rank, "stride")
    gaps = sizes_of(name, dilation, rank, "dilation")
    sizes = tuple(x.shape[2:])
    pads = _geometry(name, sizes, kernel, step, sizes_of(name, padding, rank, "padding"), gaps, ceil_mode)
    out = apply(max_pool_, (x,), (kernel, step, pads, gaps))
    out = out if batched else out.squeeze(0)
    if not return_indices:
        return out
    number = apply(max_pool_argmax_, (x,), (kernel, step, pads, gaps))
    flat: Any = 0
    block = math.prod(kernel)
    for d in range(rank):  # element number -> position in the plane
        block //= kernel[d]
        k = (number // block) % kernel[d]
        o = reshape(apply(arange_, (0, 1), (number.shape[2 + d], dtypes.int64)), (-1, *[1] * (rank - 1 - d)))
        flat = flat * sizes[d] + o * step[d] - pads[d][0] + k * gaps[d]
    return out, flat if batched else flat.squeeze(0)


@public(method=False)
def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of (N, C, L); with `return_indices` also where each was."""
    return _max_pooled("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@public(method=False)
def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of (N, C, H, W); with `return_indices` also where each was in its plane."""
    return _max_pooled("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@public(method=False)
def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of (N, C, D, H, W)."""
    return _max_pooled("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _covered(n: int, k: int, s: int, pads: tuple[int, int], count: int, whole: bool, padding: int) -> Tensor:
    """How many elements each window counts: of the input, or of the input with its padding."""
    start = apply(arange_, (0, 1), (count, dtypes.int64)) * s - pads[0]
    end = (start + k).clamp(max=n + padding if whole else n)
    return end - (start if whole else start.clamp(min=0))


def _averaged(
    name: str,
    rank: int,
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    x, batched = _batched(name, x, rank)
    kernel = sizes_of(name, kernel_size, rank, "kernel_size")
    step = kernel if stride is None or stride == [] or stride == () else sizes_of(name, stride, rank, "stride")
    amounts = sizes_of(name, padding, rank, "padding")
    sizes = tuple(x.shape[2:])
    pads = _geometry(name, sizes, kernel, step, amounts, (1,) * rank, ceil_mode)
    out = apply(sum_pool_, (x,), (kernel, step, pads))
    if divisor_override is not None:
        if divisor_override == 0:
            raise RuntimeError(f"{name}: divisor must be not zero")
        out = out / divisor_override
    elif all(a == b and (a == 0 or count_include_pad) for a, b in pads):
        out = out / math.prod(kernel)
    else:
        for d in range(rank):
            n = _covered(sizes[d], kernel[d], step[d], pads[d], out.shape[2 + d], count_include_pad, amounts[d])
            out = out / cast(reshape(n, (-1, *[1] * (rank - 1 - d))), x.dtype)
    return out if batched else out.squeeze(0)


@public(method=False)
def avg_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> Tensor:
    """The mean of every window of (N, C, L)."""
    return _averaged("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of every window of (N, C, H, W)."""
    return _averaged("avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of every window of (N, C, D, H, W)."""
    return _averaged("avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _target(name: str, x: Tensor, rank: int, output_size: Any) -> Sizes:
    wanted = (output_size,) * rank if output_size is None or isinstance(output_size, int) else tuple(output_size)
    if len(wanted) != rank:
        raise RuntimeError(f"{name}: output_size must be {rank} numbers, got {wanted}")
    return tuple([n if w is None else int(w) for w, n in zip(wanted, x.shape[2:], strict=True)])


def adaptive_avg_pool(input: Tensor, output_size: Any, rank: int) -> Tensor:
    """Means of windows that cover the input evenly: (N, C, *n) -> (N, C, *output_size); None keeps a size."""
    name = f"adaptive_avg_pool{rank}d"
    x, batched = _batched(name, input, rank)
    size, given = _target(name, x, rank, output_size), tuple(x.shape[2:])
    if all(m and n % m == 0 for n, m in zip(given, size, strict=True)):
        kernel = tuple([n // m for n, m in zip(given, size, strict=True)])
        if set(size) == {1}:
            out = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        else:
            out = apply(sum_pool_, (x,), (kernel, kernel, ((0, 0),) * rank)) / math.prod(kernel)
    else:
        w = apply(adaptive_windows_, (x,), (size, 0.0))
        out = apply(sum_, (w,), (tuple(range(2 + rank, w.ndim)), False))
        for d, (n, m) in enumerate(zip(given, size, strict=True)):
            o = apply(arange_, (0, 1), (m, dtypes.int64))
            length = ((o + 1) * n + (m - 1)) // m - o * n // m
            out = out / cast(reshape(length, (-1, *[1] * (rank - 1 - d))), x.dtype)
    return out if batched else out.squeeze(0)


def adaptive_max_pool(input: Tensor, output_size: Any, rank: int, return_indices: bool = False) -> Any:
    """Largest elements of windows that cover the input evenly; with `return_indices` also where each was in its plane."""
    name = f"adaptive_max_pool{rank}d"
    x, batched = _batched(name, input, rank)
    size, given = _target(name, x, rank, output_size), tuple(x.shape[2:])
    if all(m and n % m == 0 for n, m in zip(given, size, strict=True)):
        kernel = tuple([n // m for n, m in zip(given, size, strict=True)])
        found = _max_pooled(name, rank, x, kernel, kernel, 0, 1, False, return_indices)
        out, flat = found if return_indices else (found, None)
    else:
        w = apply(adaptive_windows_, (x,), (size, _lowest(x.dtype)))
        dims = tuple(range(2 + rank, w.ndim))
        number = apply(argmax_, (w.detach(),), (dims, False))
        kernel = tuple(w.shape[2 + rank :])
        out = apply(sum_, (where(_hit(number, kernel), w, 0.0),), (dims, False))
        flat, block = 0, math.prod(kernel)
        for d, (n, m) in enumerate(zip(given, size, strict=True)):
            block //= kernel[d]
            o = reshape(apply(arange_, (0, 1), (m, dtypes.int64)), (-1, *[1] * (rank - 1 - d)))
            flat = flat * n + o * n // m + (number // block) % kernel[d]
    if not batched:
        out = out.squeeze(0)
        flat = None if flat is None else flat.squeeze(0)
    return (out, flat) if return_indices else out


@public(method=False)
def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, L) -> (N, C, output_size): means of windows that cover the input evenly."""
    return adaptive_avg_pool(input, output_size, 1)


@public(method=False)
def adaptive_max_pool1d(input: Tensor, output_size: Any) -> Any:
    """(N, C, L) -> (N, C, output_size) and the positions of the largest elements."""
    return adaptive_max_pool(input, output_size, 1, True)
