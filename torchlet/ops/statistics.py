"""Statistics and what is computed of whole lines: running extremes, modes, quantiles, histograms, covariances, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import Op, apply, define
from torchlet.ops.arrange import cat, flip
from torchlet.ops.contract import matmul
from torchlet.ops.create import Generator, draw, integers_, uniform_
from torchlet.ops.index import gather, getitem, lifted, scatter_sum_
from torchlet.ops.order import RETURN_TYPES, ValuesIndices, argsort, median, named, sort
from torchlet.ops.pointwise import cast, where
from torchlet.ops.public import FUNCTIONS, METHODS, Draws, in_place, public
from torchlet.ops.reduce import norm
from torchlet.ops.view import ALL, basic, expand, movedim, reshape, transpose, unsqueeze
from torchlet.spec import Spec, normalize_dim
from torchlet.tensor import Tensor, wrap

_rng = Draws(11)
for _name in ("cummax", "cummin", "nanmedian"):
    RETURN_TYPES[_name] = named(_name)


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


def _index_spec(x: Spec, *_: Any) -> Spec:
    return Spec(x.shape, dtypes.int64, x.device)


# ------------------------------------------------------------------------------------------------ scans


def _running_np(x: Any, dim: int, largest: bool) -> Any:
    """Where the running extreme stands: the last of equal ones, and a NaN from its place on."""
    if not x.ndim:
        return np.zeros((), np.int64)
    w = _wide(x)
    best = (np.maximum if largest else np.minimum).accumulate(w, axis=dim)
    hit = (w == best) | (np.isnan(w) if w.dtype.kind == "f" else False)
    places = np.arange(x.shape[dim]).reshape((-1,) + (1,) * (x.ndim - 1 - dim))
    return np.maximum.accumulate(np.where(hit, places, 0), axis=dim).astype(np.int64)


running_ = define(
    "running_extreme",
    ("x",),
    _running_np,
    _index_spec,
    None,
    ("dim", "largest"),
    samples=lambda: [((_rng.standard_normal((3, 4)),), (d, up)) for d, up in ((0, True), (1, False))],
    doc="The positions of the running maximum or minimum.",
)


def _running(name: str, input: Tensor, dim: int) -> ValuesIndices:
    d = normalize_dim(name, dim, input.ndim)
    places = apply(running_, (input,), (d, name == "cummax"))
    return RETURN_TYPES[name](gather(input, d, places), places)


@public()
def cummax(input: Tensor, dim: int) -> ValuesIndices:
    """(values, indices) of the largest element so far along `dim`."""
    return _running("cummax", input, dim)


@public()
def cummin(input: Tensor, dim: int) -> ValuesIndices:
    """(values, indices) of the smallest element so far along `dim`."""
    return _running("cummin", input, dim)


def _logcumsumexp_grad(g: Tensor, x: Tensor, out: Tensor, dim: int) -> Tensor:
    """Sums of g exp(x - out) over what follows, in logarithms: the positive and the negative part apart, so that nothing overflows."""

    def part(g: Tensor) -> Tensor:
        some = g > 0
        size = where(some, where(some, g, 1.0).log(), -1e4)  # not -inf, which has no gradient
        return (flip(apply(logcumsumexp_, (flip(size - out, dim),), (dim,)), dim) + x).exp()

    return part(g) - part(-g)


logcumsumexp_: Op = define(
    "logcumsumexp",
    ("x",),
    lambda x, dim: np.logaddexp.accumulate(_wide(x), axis=dim).astype(x.dtype) if x.ndim else x.copy(),
    lambda x, dim: x,
    None,
    ("dim",),
    {"x": lambda g, x, out, dim: _logcumsumexp_grad(g, x, out, dim) if g.ndim else g},
    lambda: [((_rng.standard_normal((3, 4)),), (d,)) for d in (0, 1)],
)


@public()
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """log(cumsum(exp(x))) along `dim`, without overflow."""
    return apply(logcumsumexp_, (input,), (normalize_dim("logcumsumexp", dim, input.ndim),))


METHODS["cumprod_"] = in_place(METHODS["cumprod"])


def _steps(y: Tensor, x: Any, dx: Any, dim: int) -> Any:
    if x is None:
        return 1 if dx is None else dx
    along = x if x.ndim > 1 else reshape(x, (-1,) + (1,) * (y.ndim - 1 - dim % y.ndim))
    return along.diff(dim=dim if x.ndim > 1 else -(y.ndim - dim % y.ndim))


def _pairs(y: Tensor, dim: int) -> Tensor:
    n = y.shape[dim]
    return y.narrow(dim, 1, n - 1) + y.narrow(dim, 0, n - 1)


@public("trapezoid", "trapz", method=False)
def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """The integral along `dim` by the trapezoidal rule, with positions `x` or even steps `dx`."""
    return (_pairs(y, dim) * _steps(y, x, dx, dim)).sum(dim) / 2


@public(method=False)
def cumulative_trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """The running integral along `dim` by the trapezoidal rule."""
    return (_pairs(y, dim) * _steps(y, x, dx, dim)).cumsum(dim) / 2


@public(method=False)
def gradient(input: Tensor, *, spacing: Any = None, dim: Any = None, edge_order: int = 1) -> list[Tensor]:
    """Central differences along each of `dim`, one-sided of order 1 or 2 at the ends.

    `spacing` is one step, a step for each dimension, or a vector of coordinates for each.
    """
    if edge_order not in (1, 2):
        raise RuntimeError("torch.gradient only supports edge_order=1 and edge_order=2.")
    dims = [normalize_dim("gradient", d, input.ndim) for d in (range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim)]
    if len(set(dims)) != len(dims):
        raise RuntimeError("gradient: a dim appears multiple times in the list of dims")
    given = list(spacing) if isinstance(spacing, list | tuple) else [1.0 if spacing is None else spacing] * len(dims)
    if len(given) != len(dims):
        raise RuntimeError(
            f"torch.gradient expected spacing to be unspecified, a scalar or a list of length equal to 'self.dim() = {input.ndim}', but got "
            f"a list of length {len(given)}"
        )
    x = input if input.dtype.has_gradient else cast(input, dtypes.get_default_dtype())
    return [_slopes(x, d, step, edge_order) for d, step in zip(dims, given, strict=True)]


def _slopes(x: Tensor, d: int, spacing: Any, edge_order: int) -> Tensor:
    """The derivative along one dimension: parabolas through neighbours (Fornberg 1988 for uneven steps)."""
    n = x.shape[d]
    if n < edge_order + 1:
        raise RuntimeError("torch.gradient expected each dimension size to be at least edge_order+1")
    steps = spacing.diff() if isinstance(spacing, Tensor) and spacing.ndim else None

    def step(start: int, count: int) -> Any:
        return spacing if steps is None else reshape(steps.narrow(0, start, count), (-1,) + (1,) * (x.ndim - 1 - d))

    def end(at: int, inward: int, a: Any, b: Any) -> Tensor:
        f = [x.narrow(d, at + k * inward, 1) for k in range(edge_order + 1)]
        if edge_order == 1:
            return (f[1] - f[0]) / a * inward
        return (f[1] * ((a + b) / (a * b)) - f[0] * ((2 * a + b) / (a * (a + b))) - f[2] * (a / (b * (a + b)))) * inward

    parts = [end(0, 1, step(0, 1), step(1, 1) if n > 2 else None)]
    if n > 2:
        a, b = step(0, n - 2), step(1, n - 2)
        low, here, high = (x.narrow(d, k, n - 2) for k in range(3))
        parts.append(
            (high - low) / (2 * spacing) if steps is None else high * (a / (b * (a + b))) + here * ((b - a) / (a * b)) - low * (b / (a * (a + b)))
        )
    parts.append(end(n - 1, -1, step(n - 2, 1), step(n - 3, 1) if n > 2 else None))
    return cat(parts, d)


# ------------------------------------------------------------------------------------------------ order


def _mode_np(x: Any, dim: int) -> Any:
    """The position of the last of the most frequent elements (the smallest of those) of each line."""

    def one(line: Any) -> int:
        values, counts = np.unique(line, return_counts=True)
        return int(np.flatnonzero(line == values[counts.argmax()])[-1])

    return np.expand_dims(np.apply_along_axis(one, dim, _wide(x)), dim).astype(np.int64)


mode_ = define(
    "mode",
    ("x",),
    _mode_np,
    lambda x, dim: Spec((*x.shape[:dim], 1, *x.shape[dim + 1 :]), dtypes.int64, x.device),
    None,
    ("dim",),
    samples=lambda: [((np.array([[3, 1, 3, 1], [2, 2, 0, 1.0]]),), (d,)) for d in (0, 1)],
)


def _taken(name: str, input: Tensor, d: int, places: Tensor, keepdim: bool) -> ValuesIndices:
    values = gather(input, d, places)
    drop = (ALL,) * d + (("i", 0),)
    return RETURN_TYPES[name](values, places) if keepdim else RETURN_TYPES[name](basic(values, drop), basic(places, drop))


@public()
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> ValuesIndices:
    """(values, indices) of the most frequent element along `dim`, the smallest of equally frequent ones."""
    if not input.ndim:
        return RETURN_TYPES["mode"](input.clone(), FUNCTIONS["zeros"]((), dtype=dtypes.int64))
    d = normalize_dim("mode", dim, input.ndim)
    return _taken("mode", input, d, apply(mode_, (input,), (d,)), keepdim)


@public()
def msort(input: Tensor) -> Tensor:
    """Sorted along dimension 0."""
    return sort(input, 0).values


@public()
def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median of what is not NaN; with `dim`, (values, indices) along it."""
    if dim is None:
        return nanmedian(reshape(input, (-1,)), 0).values
    if not input.dtype.is_floating_point or not input.ndim:
        return median(input, dim, keepdim)
    d = normalize_dim("nanmedian", dim, input.ndim)
    count = (~input.isnan()).sum(d, keepdim=True)
    middle = ((count - 1) // 2).clamp(min=0)  # NaN sorts last
    return _taken("nanmedian", input, d, gather(argsort(input, d), d, middle), keepdim)


def _quantile(name: str, input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str, skip_nan: bool) -> Tensor:
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise RuntimeError(f"{name}() interpolation must be one of linear, lower, higher, midpoint or nearest, but got {interpolation}")
    if not input.dtype.is_floating_point:
        raise RuntimeError(f"{name}() input tensor must be either float or double dtype")
    levels = q if isinstance(q, Tensor) else wrap(np.asarray(q, input.dtype.np))
    if levels.dtype is not input.dtype:
        raise RuntimeError(f"{name}() q tensor must be same dtype as the input tensor")
    given = np.asarray(levels.detach().numpy())
    if ((given < 0) | (given > 1)).any():
        raise RuntimeError(f"{name}() q must be in the range [0, 1] but got {q}")
    rank = input.ndim
    x, d = (reshape(input, (-1,)), 0) if dim is None else (input, normalize_dim(name, dim, rank))
    if not x.numel():
        raise RuntimeError(f"{name}() input tensor must be non-empty")
    x = movedim(x, d, -1) if x.ndim else reshape(x, (1,))
    ordered = sort(x, -1).values
    bad = x.isnan()
    last = (~bad).sum(-1, keepdim=True) - 1 if skip_nan else x.shape[-1] - 1
    place = (
        cast(last.clamp(min=0), x.dtype) * reshape(levels, (-1,))
        if skip_nan
        else expand(reshape(levels, (-1,)) * float(last), (*x.shape[:-1], levels.numel()))
    )
    low = {"nearest": place.round, "higher": place.ceil}.get(interpolation, place.floor)()
    out = gather(ordered, -1, cast(low, dtypes.int64))
    if interpolation in ("linear", "midpoint"):
        above = gather(ordered, -1, cast(place.ceil(), dtypes.int64))
        out = out.lerp(above, place - low if interpolation == "linear" else 0.5)
    gone = bad.all(-1, keepdim=True) if skip_nan else bad.any(-1, keepdim=True)
    out = movedim(where(gone, math.nan, out), -1, 0)
    if keepdim:
        out = unsqueeze(out, d + 1) if dim is not None and rank else reshape(out, (-1,) + (1,) * rank)
    return out if levels.ndim else basic(out, (("i", 0),))


@public()
def quantile(input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Tensor:
    """The q-quantiles along `dim`; several of them come first in the shape. NaN where there is one."""
    return _quantile("quantile", input, q, dim, keepdim, interpolation, False)


@public()
def nanquantile(input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Tensor:
    """`quantile` of what is not NaN."""
    return _quantile("nanquantile", input, q, dim, keepdim, interpolation, True)


@public()
def unique_consecutive(input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    """Runs of equal elements (or slices along `dim`) made one; on request each element's run and the runs' lengths."""
    a = input.detach().numpy()
    lines = a.reshape(-1, 1) if dim is None else np.moveaxis(a, dim, 0)
    lines = lines.reshape(len(lines), math.prod(lines.shape[1:]))
    first = np.concatenate(([True] * min(1, len(lines)), (lines[1:] != lines[:-1]).any(1)))
    starts = np.flatnonzero(first)
    values = a.reshape(-1)[starts] if dim is None else np.take(a, starts, axis=dim)
    run = (np.cumsum(first) - 1).reshape(a.shape if dim is None else -1)
    out = [wrap(values)] + [wrap(run)] * return_inverse + [wrap(np.diff(np.append(starts, len(lines))))] * return_counts
    return tuple(out) if len(out) > 1 else out[0]


# ------------------------------------------------------------------------------------------------ counting


@public()
def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many elements fall into each of `bins` equal intervals of [min, max] (of the data where both are 0)."""
    a = input.detach().numpy().reshape(-1)
    if min == max == 0 and a.size:
        min, max = float(a.min()), float(a.max())
    if min == max:
        min, max = min - 1, max + 1
    if not min < max:
        raise RuntimeError("torch.histc: max must be larger than min")
    a = a[(a >= min) & (a <= max)]
    place = np.minimum(((a - np.asarray(min, a.dtype)) * bins / (max - min)).astype(np.int64), bins - 1)
    return wrap(np.bincount(place, minlength=bins).astype(input.dtype.np))


@public()
def histogram(
    input: Tensor, bins: Any, *, range: Sequence[float] | None = None, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    """(counts, edges) of the elements in `bins` intervals, or between the given edges."""
    a = input.detach().numpy().reshape(-1)
    edges: Any = bins.detach().numpy() if isinstance(bins, Tensor) else bins
    counts, found = np.histogram(
        a,
        edges,
        None if range is None else (range[0], range[1]),
        weights=None if weight is None else weight.detach().numpy().reshape(-1),
        density=density,
    )
    return wrap(counts.astype(input.dtype.np)), wrap(found.astype(input.dtype.np))


@public()
def cov(input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Tensor:
    """The covariance matrix of variables (rows) over observations (columns)."""
    if input.ndim > 2:
        raise RuntimeError(f"cov(): expected input to have two or fewer dimensions but got an input with {input.ndim} dimensions")
    x = reshape(input, (1, -1)) if input.ndim < 2 else input
    x = x if x.dtype.has_gradient else cast(x, dtypes.get_default_dtype())
    weights = [w for w in (fweights, aweights) if w is not None]
    if not weights:
        d = x - x.mean(1, keepdim=True)
        out = matmul(d, transpose(d, 0, 1).conj()) / max(x.shape[1] - correction, 0)
    else:
        w: Any = weights[0] if len(weights) == 1 else weights[0] * weights[1]
        total = w.sum()
        d = x - (x * w).sum(1, keepdim=True) / total
        free = total - correction if aweights is None else total - correction * (w * aweights).sum() / total
        out = matmul(d, transpose(d * w, 0, 1).conj()) / free.clamp(min=0)
    return out.squeeze()


@public()
def corrcoef(input: Tensor) -> Tensor:
    """The correlation matrix of variables (rows) over observations (columns)."""
    if input.ndim > 2:
        raise RuntimeError(f"corrcoef(): expected input to have two or fewer dimensions but got an input with {input.ndim} dimensions")
    c = cov(input)
    if not c.ndim:
        return c / c
    s = METHODS["diagonal"](c).sqrt()
    out = c / unsqueeze(s, 1) / s
    return FUNCTIONS["complex"](out.real.clamp(-1, 1), out.imag.clamp(-1, 1)) if out.dtype.is_complex else out.clamp(-1, 1)


# ------------------------------------------------------------------------------------------------ distances


@public(method=False)
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """The p-distance of every row of x1 to every row of x2: (…, m, k) and (…, n, k) -> (…, m, n)."""
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise RuntimeError(
            f"cdist: X1 and X2 must have at least 2 dimensions and the same number of columns; got shapes {tuple(x1.shape)} and {tuple(x2.shape)}"
        )
    return norm(unsqueeze(x1, -2) - unsqueeze(x2, -3), p, -1)


@public(method=False)
def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The p-distances of all pairs of rows, in order."""
    i, j = np.triu_indices(input.shape[0], 1)
    return norm(getitem(input, wrap(i)) - getitem(input, wrap(j)), p, -1)


@public("renorm")
def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Slices along `dim` scaled down to the p-norm `maxnorm` where they exceed it."""
    d = normalize_dim("renorm", dim, input.ndim)
    if input.ndim < 2:
        raise RuntimeError(f"renorm: input needs at least 2 dimensions, got {input.ndim} dimensions")
    length = norm(input, p, [k for k in range(input.ndim) if k != d], True)
    return input * where(length > maxnorm, maxnorm / (length + 1e-7), 1.0)


METHODS["renorm_"] = in_place(renorm)


@public(method=False)
def vander(x: Tensor, N: int | None = None, *, increasing: bool = False) -> Tensor:
    """The powers of each element, highest first unless `increasing`."""
    n = x.shape[-1] if N is None else N
    powers = FUNCTIONS["arange"](n) if increasing else FUNCTIONS["arange"](n - 1, -1, -1)
    return unsqueeze(x, -1) ** powers


# ------------------------------------------------------------------------------------------------ scatter with a reduction

_UFUNCS: dict[str, Any] = {"sum": np.add, "mean": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}


def _neutral(reduce: str, kind: Any) -> Any:
    if reduce in ("sum", "mean", "prod"):
        return int(reduce == "prod")
    if kind.kind == "b":
        return reduce == "amin"
    if kind.kind in "iu":
        return np.iinfo(kind).min if reduce == "amax" else np.iinfo(kind).max
    return -np.inf if reduce == "amax" else np.inf


def _positions(index: Any, shape: tuple[int, ...], dim: int) -> Any:
    places = list(np.meshgrid(*[np.arange(n) for n in index.shape], indexing="ij", sparse=True))
    places[dim] = index
    if index.size and not (0 <= index.min() and index.max() < shape[dim]):
        raise IndexError(f"index {int(index.max())} is out of bounds for dimension {dim} with size {shape[dim]}")
    return tuple(np.broadcast_arrays(*places))


def _scatter_reduce_np(x: Any, index: Any, src: Any, dim: int, reduce: str, include_self: bool) -> Any:
    at = _positions(index, x.shape, dim)
    out = np.array(_wide(x), copy=True)
    if not include_self:
        out[at] = _neutral(reduce, out.dtype)
    source = src[tuple(slice(n) for n in index.shape)].astype(out.dtype, copy=False)
    _UFUNCS[reduce].at(out, at, source)
    if reduce == "mean":
        count = np.full(x.shape, int(include_self))
        np.add.at(count, at, 1)
        count = np.maximum(count, 1)
        out = out // count if out.dtype.kind in "iu" else out / count
    return out.astype(x.dtype, copy=False)


def _scatter_reduce_spec(x: Spec, index: Spec, src: Spec, dim: int, reduce: str, include_self: bool) -> Spec:
    if reduce not in _UFUNCS:
        raise RuntimeError(f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}")
    if index.dtype is not dtypes.int64:
        raise RuntimeError("scatter_reduce: Expected dtype int64 for index")
    if x.dtype is not src.dtype:
        raise RuntimeError(f"scatter_reduce: Expected self.dtype to be equal to src.dtype; got {x.dtype.name} and {src.dtype.name}")
    if index.ndim != x.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True)):
        raise RuntimeError(
            f"scatter_reduce: index has shape {index.shape} for an input of shape {x.shape} and a source of shape {src.shape}"
        )
    return x


def _counts(x: Tensor, index: Tensor, dim: int) -> Tensor:
    ones = FUNCTIONS["ones"](tuple(index.shape), dtype=x.dtype)
    return apply(scatter_sum_, (ones, index), (tuple(x.shape), dim))


def _shares(
    g: Tensor, x: Tensor, index: Tensor, src: Tensor, out: Tensor, dim: int, reduce: str, include_self: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the input and of the source."""
    touched = _counts(x, index, dim)
    kept: Any = 1.0 if include_self else cast(touched.eq(0), x.dtype)
    source = src if src.shape == index.shape else getitem(src, tuple(slice(n) for n in index.shape))
    if reduce == "sum":
        gx, gs = g * kept, gather(g, dim, index)
    elif reduce == "mean":
        g = g / (touched + (1.0 if include_self else 0.0)).clamp(min=1)
        gx, gs = g * kept, gather(g, dim, index)
    elif reduce == "prod":
        gx, gs = _product_shares(g, x, index, source, dim, include_self)
        gx = gx if include_self else g * kept
    else:  # equal extremes share
        mine = cast(x.eq(out), x.dtype)  # counted also where the input takes no part, as PyTorch does
        theirs = cast(source.eq(gather(out, dim, index)), x.dtype)
        g = g / (mine + apply(scatter_sum_, (theirs, index), (tuple(x.shape), dim)))
        gx, gs = g * mine * kept, gather(g, dim, index) * theirs
    if gs.shape != src.shape:
        grown = FUNCTIONS["zeros"](tuple(src.shape), dtype=src.dtype)
        gs = grown.index_put(tuple(slice(n) for n in index.shape), gs)
    return gx, gs


def _product_shares(g: Tensor, x: Tensor, index: Tensor, source: Tensor, dim: int, include_self: bool) -> tuple[Tensor, Tensor]:
    """The gradients of a product whose factors may be 0: the product of all others is that of the factors that are not 0,
    where no other is 0."""
    start = x if include_self else FUNCTIONS["ones_like"](x)
    full = FUNCTIONS["scatter_reduce"](where(start.eq(0), 1.0, start), dim, index, where(source.eq(0), 1.0, source), "prod")
    zeros = cast(start.eq(0), x.dtype) + apply(scatter_sum_, (cast(source.eq(0), x.dtype), index), (tuple(x.shape), dim))

    def others(factor: Tensor, product: Tensor, count: Tensor) -> Tensor:
        zero = factor.eq(0)
        return where(count - cast(zero, x.dtype) > 0, 0.0, product / where(zero, 1.0, factor))

    return g * others(start, full, zeros), gather(g, dim, index) * others(source, gather(full, dim, index), gather(zeros, dim, index))


def _reduce_samples() -> list[Any]:
    i = np.array([[0, 2], [1, 3], [3, 3]])
    draw = lambda *s: _rng.uniform(0.5, 2, s)
    return [
        ((draw(3, 4), i, draw(3, 2)), (1, how, own))
        for how, own in (("sum", True), ("mean", False), ("prod", True), ("amax", True), ("amin", False))
    ]


scatter_reduce_op: Op = define(
    "scatter_reduce",
    ("x", "index", "src"),
    _scatter_reduce_np,
    _scatter_reduce_spec,
    None,
    ("dim", "reduce", "include_self"),
    {
        "x": lambda g, x, index, src, out, dim, reduce, include_self: _shares(g, x, index, src, out, dim, reduce, include_self)[0],
        "src": lambda g, x, index, src, out, dim, reduce, include_self: _shares(g, x, index, src, out, dim, reduce, include_self)[1],
    },
    _reduce_samples,
)


@public()
@lifted
def scatter_reduce(input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """The input with the elements of `src` combined into it along `dim`: reduce is "sum", "prod", "mean", "amax" or "amin"."""
    return apply(scatter_reduce_op, (input, index, src), (normalize_dim("scatter_reduce", dim, input.ndim), reduce, bool(include_self)))


METHODS["scatter_reduce_"] = in_place(scatter_reduce)


@public()
@lifted
def index_reduce(input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """The input with the slices of `source` combined into it along `dim`: reduce is "prod", "mean", "amax" or "amin"."""
    d = normalize_dim("index_reduce", dim, input.ndim)
    spread = expand(reshape(index, (-1,) + (1,) * (input.ndim - 1 - d)), tuple(source.shape))
    return scatter_reduce(input, d, cast(spread, dtypes.int64), source, reduce, include_self=include_self)


METHODS["index_reduce_"] = in_place(index_reduce)


@public()
def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """The input with `source` put at flat positions."""
    flat = reshape(input.clone(), (-1,))
    return reshape(flat.index_put((reshape(index, (-1,)),), reshape(source, (-1,)), accumulate), tuple(input.shape))


METHODS["put_"] = in_place(put)

# ------------------------------------------------------------------------------------------------ random numbers of other distributions


@public(method=False)
def randint_like(input: Tensor, low: int, high: int | None = None, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    """`randint` with the input's shape and dtype."""
    low, high = (0, low) if high is None else (low, high)
    return FUNCTIONS["randint"](low, high, tuple(input.shape), dtype=dtype or input.dtype, device=device)  # type: ignore[no-any-return]


def _uniform(t: Tensor, generator: Generator | None) -> Tensor:
    """Uniform on (0, 1)."""
    return draw(uniform_, tuple(t.shape), dtypes.float32 if t.dtype.itemsize < 8 else t.dtype, generator) + 2.0**-25


def _random(name: str, make: Any) -> None:
    def f(self: Tensor, *args: Any, generator: Generator | None = None, **kwargs: Any) -> Tensor:
        return self.copy_(make(_uniform(self, generator), *args, **kwargs))

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"Fill with random numbers ({name[:-1]})."
    METHODS[name] = f


_random("exponential_", lambda u, lambd=1.0: -u.log() / lambd)
_random("cauchy_", lambda u, median=0.0, sigma=1.0: median + sigma * (math.pi * (u - 0.5)).tan())
_random("geometric_", lambda u, p: (u.log() / math.log1p(-p)).ceil())
_random("log_normal_", lambda u, mean=1.0, std=2.0: (FUNCTIONS["randn"](tuple(u.shape)) * std + mean).exp())


def _numbers(generator: Generator | None) -> np.random.Generator:
    """NumPy's generator, seeded by a draw of ours."""
    return np.random.default_rng(int(draw(integers_, (), dtypes.int64, generator, (0, 2**32)).item()))


@public(method=False)
def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Poisson numbers with the rates of the input."""
    return wrap(np.asarray(_numbers(generator).poisson(input.detach().numpy())).astype(input.dtype.np))


@public(method=False)
def binomial(count: Tensor, prob: Tensor, generator: Generator | None = None) -> Tensor:
    """How many of `count` trials succeed with the given probability."""
    return wrap(
        np.asarray(_numbers(generator).binomial(count.detach().numpy().astype(np.int64), prob.detach().numpy())).astype(count.dtype.np)
    )
