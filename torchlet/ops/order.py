"""Operators along whole lines: scans, sorting, extremes with their positions, counting, drawing by weight."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import OPS, Composite, Op, apply, define
from torchlet.ops.arrange import cat, flip
from torchlet.ops.create import Generator, arange_, default_generator, uniform_
from torchlet.ops.index import gather, index_sum_
from torchlet.ops.pointwise import cast, maximum, minimum, where
from torchlet.ops.public import FUNCTIONS, METHODS, Draws, in_place, public
from torchlet.ops.reduce import amax, amin, argmax, argmin, prod_, sum_
from torchlet.ops.view import ALL, basic, reshape, transpose, unsqueeze
from torchlet.record import Result
from torchlet.spec import Spec, normalize_dim
from torchlet.tensor import Tensor, wrap

_rng = Draws(7)

# ------------------------------------------------------------------------------------------------ scans


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


def _scan_spec(x: Spec, dim: int) -> Spec:
    return Spec(x.shape, x.dtype if x.dtype.is_floating_point else dtypes.int64, x.device)


def _scan(ufunc: np.ufunc) -> Any:
    def f(x: Any, dim: int) -> Any:
        kind = np.dtype(np.int64) if x.dtype.kind in "biu" else x.dtype
        return (
            ufunc.accumulate(_wide(x), axis=dim, dtype=kind if kind == np.int64 else None).astype(kind, copy=False)
            if x.ndim
            else x.astype(kind)
        )

    return f


def _scan_samples() -> list[Any]:
    return [((_rng.uniform(0.5, 2, (3, 4)),), (d,)) for d in (0, 1)]


def _from_the_end(g: Tensor, dim: int) -> Tensor:
    """The sum of an element and all after it."""
    return flip(apply(cumsum_, (flip(g, dim),), (dim,)), dim) if g.ndim else g


_LINE = 32  # what is before an element in its line is summed anew for each element: loops without a carried value, for every target


def _scan_body(name: str, fold: Op, combine: Callable[[Tensor, Tensor], Tensor], neutral: int) -> Callable[[Tensor, int], Tensor]:
    """The lowering of a scan: lines of 32 elements, and what stands before each line, which is a scan of the lines' totals."""

    def inside(x: Tensor, inclusive: bool) -> Tensor:
        place = apply(arange_, (0, 1), (x.shape[-1], dtypes.int64))
        behind = unsqueeze(place, 1) >= place if inclusive else unsqueeze(place, 1) > place
        return total(where(behind, unsqueeze(x, -2), neutral))

    def total(x: Tensor) -> Tensor:
        return apply(fold, (x,), ((x.ndim - 1,), False))

    def along(x: Tensor, inclusive: bool) -> Tensor:
        n = x.shape[-1]
        if n <= 2 * _LINE:
            return inside(x, inclusive)
        lines = FUNCTIONS["pad"](x, (0, -n % _LINE), value=neutral)
        lines = reshape(lines, (*x.shape[:-1], -1, _LINE))
        before = along(total(lines), False)
        found = reshape(combine(unsqueeze(before, -1), inside(lines, inclusive)), (*x.shape[:-1], -1))
        return basic(found, (ALL,) * (x.ndim - 1) + (("s", 0, n, 1),))

    def body(x: Tensor, dim: int) -> Tensor:
        kind = dtypes.int64 if not x.dtype.is_floating_point else dtypes.float32 if x.dtype.itemsize == 2 else x.dtype
        if not x.ndim:
            return cast(x, kind)
        if x.dtype is not kind:
            return apply(OPS[name], (cast(x, kind),), (dim,))
        return transpose(along(transpose(x, dim, -1), True), dim, -1)

    return body


cumsum_: Op = define(
    "cumsum", ("x",), _scan(np.add), _scan_spec, Composite(_scan_body("cumsum", sum_, operator.add, 0)), ("dim",),
    {"x": lambda g, dim: _from_the_end(g, dim)}, _scan_samples,
)


def _cumprod_grad(g: Tensor, x: Tensor, out: Tensor, dim: int) -> Tensor:
    """Before the first zero of a line: sum over later outputs / x. At it: with that zero left out. After it: 0."""
    zeros = apply(cumsum_, (cast(x.eq(0), dtypes.int64),), (dim,))
    first = (zeros == 1) & x.eq(0)
    without = apply(cumprod_, (where(first, 1.0, x),), (dim,))
    at_zero = where(first, _from_the_end(g * without, dim), 0.0)
    return where(zeros == 0, _from_the_end(g * out, dim) / where(x.eq(0), 1.0, x), at_zero)


cumprod_: Op = define(
    "cumprod", ("x",), _scan(np.multiply), _scan_spec, Composite(_scan_body("cumprod", prod_, operator.mul, 1)), ("dim",),
    {"x": _cumprod_grad}, _scan_samples,
)


@public()
def cumsum(input: Tensor, dim: int, *, dtype: dtypes.dtype | None = None) -> Tensor:
    """Running sums along `dim`; integers and bools in int64."""
    out = apply(cumsum_, (input if dtype is None else cast(input, dtype),), (normalize_dim("cumsum", dim, input.ndim),))
    return out if dtype is None or out.dtype is dtype else cast(out, dtype)


@public()
def cumprod(input: Tensor, dim: int, *, dtype: dtypes.dtype | None = None) -> Tensor:
    """Running products along `dim`; integers and bools in int64."""
    out = apply(cumprod_, (input if dtype is None else cast(input, dtype),), (normalize_dim("cumprod", dim, input.ndim),))
    return out if dtype is None or out.dtype is dtype else cast(out, dtype)


METHODS["cumsum_"] = in_place(cumsum)


@public()
def diff(input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> Tensor:
    """Differences of neighbours along `dim`, n times; tensors may be put before and after it first."""
    d = normalize_dim("diff", dim, input.ndim)
    if not input.ndim:
        raise RuntimeError("diff expects input to be at least one-dimensional")
    if n < 0:
        raise RuntimeError(f"diff: order must be non-negative but got {n}")
    if n == 0:
        return input
    input = cat([t for t in (prepend, input, append) if t is not None], d) if prepend is not None or append is not None else input
    for _ in range(n):
        size = input.shape[d]
        later = basic(input, (ALL,) * d + (("s", 1 if size else 0, size, 1),))
        earlier = basic(input, (ALL,) * d + (("s", 0, size - 1 if size else 0, 1),))
        input = later ^ earlier if input.dtype is dtypes.bool_ else later - earlier
    return input


# ------------------------------------------------------------------------------------------------ sorting


class ValuesIndices(Result):
    """Values and where they stand along the dimension."""

    values: Tensor
    indices: Tensor


def named(name: str) -> type[ValuesIndices]:
    """The result type of one operation, which prints as PyTorch's does."""
    return type(name, (ValuesIndices,), {"__slots__": ()}, name=name)


RETURN_TYPES = {name: named(name) for name in ("max", "min", "sort", "topk", "median", "kthvalue", "mode")}


def _argsort_np(x: Any, dim: int, descending: bool) -> Any:
    if x.ndim == 0:
        return np.zeros((), np.int64)
    w = _wide(x)
    if not descending:
        return np.argsort(w, dim, kind="stable")
    order = np.argsort(np.flip(w, dim), dim, kind="stable")  # reversed twice, so that equal elements keep their order and NaN comes first
    return np.ascontiguousarray(x.shape[dim] - 1 - np.flip(order, dim))


argsort_: Op = define(
    "argsort", ("x",), _argsort_np, lambda x, dim, descending: Spec(x.shape, dtypes.int64, x.device), None, ("dim", "descending"),
    samples=lambda: [((_rng.standard_normal((3, 4)),), (1, False)), ((_rng.standard_normal((3, 4)),), (0, True))],
)


def _topk_np(x: Any, k: int, dim: int, largest: bool) -> Any:
    if x.ndim == 0:
        return np.zeros((), np.int64)
    return np.ascontiguousarray(np.take(_argsort_np(x, dim, largest), np.arange(k), axis=dim))


def _topk_spec(x: Spec, k: int, dim: int, largest: bool) -> Spec:
    n = x.shape[dim] if x.ndim else 1
    if not 0 <= k <= n:
        raise RuntimeError(f"topk: selected index k out of range: k is {k} for dimension {dim} of size {n}")
    return Spec((*x.shape[:dim], k, *x.shape[dim + 1 :]) if x.ndim else (), dtypes.int64, x.device)


topk_: Op = define(
    "topk",
    ("x",),
    _topk_np,
    _topk_spec,
    None,
    ("k", "dim", "largest"),
    samples=lambda: [((_rng.standard_normal((3, 6)),), (2, 1, True)), ((_rng.standard_normal((3, 6)),), (1, 0, False))],
    doc="The positions of the k largest (or smallest) along `dim`, in order.",
)


def _with_values(name: str, input: Tensor, d: int, indices: Tensor, keepdim: bool = True) -> ValuesIndices:
    """The elements at `indices`, which keep the dimension; without `keepdim` it is removed from both."""
    values = gather(input, d, indices)
    if not keepdim and input.ndim:
        drop = (ALL,) * d + (("i", 0),)
        values, indices = basic(values, drop).contiguous(), basic(indices, drop).contiguous()
    return RETURN_TYPES[name](values, indices)


@public()
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The int64 positions that sort the input along `dim`; equal elements keep their order, NaN counts as largest."""
    return apply(argsort_, (input,), (normalize_dim("argsort", dim, input.ndim), bool(descending)))


@public()
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> ValuesIndices:
    """(values, indices) sorted along `dim`; equal elements keep their order, NaN counts as largest."""
    d = normalize_dim("sort", dim, input.ndim)
    return _with_values("sort", input, d, argsort(input, d, descending))


@public()
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesIndices:
    """(values, indices) of the k largest (or smallest) elements along `dim`, in order."""
    d = normalize_dim("topk", dim, input.ndim)
    _topk_spec(input._meta.spec, int(k), d, largest)
    return _with_values("topk", input, d, apply(topk_, (input,), (int(k), d, bool(largest))))


# ------------------------------------------------------------------------------------------------ extremes


def _extreme(name: str, input: Tensor, dim: Any, keepdim: bool) -> Any:
    total, position, pair = (amax, argmax, maximum) if name == "max" else (amin, argmin, minimum)
    if isinstance(dim, Tensor):
        return pair(input, dim)
    if dim is None:
        if input.numel() == 0:
            raise RuntimeError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim with the 'dim' "
                "argument."
            )
        return total(input)
    d = normalize_dim(name, dim, input.ndim)
    if input.ndim == 0:
        return RETURN_TYPES[name](input.clone(), position(input))
    if input.shape[d] == 0:
        raise IndexError(f"{name}(): Expected reduction dim {d} to have non-zero size.")
    return _with_values(name, input, d, position(input, d, True), keepdim)


@public()
def max(input: Tensor, dim: Any = None, keepdim: bool = False, *, axis: Any = None, other: Any = None) -> Any:
    """The largest element; with `dim`, (values, indices) along it; with a tensor, the elementwise maximum of the two."""
    return _extreme("max", input, other if other is not None else dim if axis is None else axis, keepdim)


@public()
def min(input: Tensor, dim: Any = None, keepdim: bool = False, *, axis: Any = None, other: Any = None) -> Any:
    """The smallest element; with `dim`, (values, indices) along it; with a tensor, the elementwise minimum of the two."""
    return _extreme("min", input, other if other is not None else dim if axis is None else axis, keepdim)


@public()
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """(smallest, largest) over `dim` or all elements."""
    return amin(input, dim, keepdim), amax(input, dim, keepdim)


@public()
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> ValuesIndices:
    """(value, index) of the k-th smallest element along `dim`, counted from 1."""
    d = normalize_dim("kthvalue", dim, input.ndim)
    n = input.shape[d] if input.ndim else 1
    if not 1 <= k <= n:
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}: k is {k}, the size {n}")
    order = argsort(input, d)
    return _with_values("kthvalue", input, d, order if input.ndim == 0 else basic(order, (ALL,) * d + (("s", k - 1, k, 1),)), keepdim)


@public()
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median of all elements; with `dim`, (values, indices) along it. NaN where there is one."""
    if dim is None:
        return median(reshape(input, (-1,)), 0).values
    d = normalize_dim("median", dim, input.ndim)
    if input.ndim == 0:
        return RETURN_TYPES["median"](input.clone(), argsort(input))
    n = input.shape[d]
    order = argsort(input, d)
    middle = basic(order, (ALL,) * d + (("s", (n - 1) // 2, (n - 1) // 2 + 1, 1),))
    if input.dtype.is_floating_point:  # a NaN sorts last; where there is one, it is the answer
        last = basic(order, (ALL,) * d + (("s", n - 1, n, 1),))
        middle = where(gather(input, d, last).isnan(), last, middle)
    return _with_values("median", input, d, middle, keepdim)


# ------------------------------------------------------------------------------------------------ counting

_unique_ops = {
    "unique_values": (lambda x: np.unique(x), lambda x: Spec((-1,), x.dtype)),
    "unique_inverse": (lambda x: np.unique(x, return_inverse=True)[1].reshape(x.shape), lambda x: Spec(x.shape, dtypes.int64)),
    "unique_counts": (lambda x: np.unique(x, return_counts=True)[1], lambda x: Spec((-1,), dtypes.int64)),
}
_UNIQUE = {
    name: define(name, ("x",), eager, spec, None, barrier=True, samples=lambda: [((np.array([[3, 1, 3], [2, 1, 1]]),), ())])
    for name, (eager, spec) in _unique_ops.items()
}


@public()
def unique(input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    """The distinct elements in order; with them, on request, each element's position among them and how often each occurs."""
    if dim is not None:
        d = normalize_dim("unique", dim, input.ndim)
        values, inverse, counts = np.unique(input.detach().numpy(), axis=d, return_inverse=True, return_counts=True)
        found = [wrap(values), wrap(inverse.reshape(-1)), wrap(counts)]
    else:
        wanted = (("unique_values", True), ("unique_inverse", return_inverse), ("unique_counts", return_counts))
        found = [apply(_UNIQUE[name], (input,)) if needed else input for name, needed in wanted]
    out = (found[0], *found[1:2] * return_inverse, *found[2:] * return_counts)
    return out if len(out) > 1 else out[0]


@public()
def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each of 0, 1, … occurs, or the sum of its weights. Raises RuntimeError for negative numbers."""
    if input.ndim != 1 or input.dtype.category != 1:
        raise RuntimeError(f"bincount: got {input._meta.spec}; expected a vector of non-negative integers")
    if input.numel() and input.min().item() < 0:
        raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
    n = 0 if input.numel() == 0 else input.max().item() + 1
    n = n if n > minlength else minlength
    if weights is None:
        each = input.new_ones(input.shape[0], dtype=dtypes.int64)
    else:
        each = weights if weights.dtype is dtypes.float32 else cast(weights, dtypes.float64)
    return apply(index_sum_, (each, input), (int(n), 0))


def _search_np(sorted_sequence: Any, values: Any, right: bool) -> Any:
    side: Any = "right" if right else "left"
    if sorted_sequence.ndim == 1:
        return np.asarray(np.searchsorted(sorted_sequence, values, side), np.int64)
    if sorted_sequence.shape[:-1] != values.shape[:-1]:
        raise ValueError("leading sizes differ")
    if not values.size:
        return np.zeros(values.shape, np.int64)
    lines = zip(sorted_sequence.reshape(-1, sorted_sequence.shape[-1]), values.reshape(-1, values.shape[-1]), strict=True)
    return np.stack([np.searchsorted(s, v, side) for s, v in lines]).reshape(values.shape).astype(np.int64)


def _search_spec(sorted_sequence: Spec, values: Spec, right: bool) -> Spec:
    if sorted_sequence.ndim != 1 and sorted_sequence.shape[:-1] != values.shape[:-1]:
        raise RuntimeError(
            f"searchsorted: sorted_sequence has shape {sorted_sequence.shape} and values {values.shape}; expected one vector, or "
            "equal leading sizes"
        )
    return Spec(values.shape, dtypes.int64, values.device)


searchsorted_: Op = define("searchsorted", ("sorted_sequence", "values"), _search_np, _search_spec, None, ("right",),
                       samples=lambda: [((np.sort(_rng.standard_normal(6)), _rng.standard_normal((2, 3))), (r,)) for r in (False, True)])


@public(method=False)
def searchsorted(
    sorted_sequence: Tensor, input: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Tensor | None = None
) -> Tensor:
    """The positions where values would be inserted to keep the order; `right` puts them after equal ones. `sorter` sorts first."""
    if side not in (None, "left", "right") or (side == "left" and right):
        raise RuntimeError(f"searchsorted: side is {side!r} and right is {right}; expected 'left' or 'right', not opposite to each other")
    if sorter is not None:
        sorted_sequence = gather(sorted_sequence, -1, sorter)
    values = input if isinstance(input, Tensor) else wrap(np.asarray(input, sorted_sequence.dtype.np)).to(sorted_sequence.device)
    found = apply(searchsorted_, (sorted_sequence, values), (right or side == "right",))
    return cast(found, dtypes.int32) if out_int32 else found


@public(method=False)
def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Which bucket between `boundaries` each element falls into."""
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


# ------------------------------------------------------------------------------------------------ drawing by weight


def _multinomial_np(weights: Any, seed: int, offset: int, count: int, replacement: bool) -> Any:
    w = weights.astype(np.float64)
    if w.ndim not in (1, 2):
        raise ValueError("rank")
    lines = w.reshape(-1, w.shape[-1])
    if not np.isfinite(lines).all() or (lines < 0).any():
        raise RuntimeError("multinomial: probability tensor contains either `inf`, `nan` or element < 0")
    enough = (lines > 0).sum(-1)
    if (enough == 0).any():
        raise RuntimeError("multinomial: invalid multinomial distribution (sum of probabilities <= 0)")
    if not replacement and (enough < count).any():
        raise RuntimeError(
            "multinomial: invalid multinomial distribution (with replacement=False, not enough non-negative category to sample): "
            f"{count} samples of {int(enough.min())}"
        )
    if replacement:
        u = uniform_.eager(seed, offset, (len(lines), count), dtypes.float64)
        edges = np.cumsum(lines, -1)
        found = [np.searchsorted(e, v * e[-1], side="right") for e, v in zip(edges, u, strict=True)]
        out = np.minimum(np.stack(found), [[np.flatnonzero(line)[-1]] for line in lines])
    else:  # the order of w / exponential is a draw without replacement (Efraimidis & Spirakis 2006)
        u = uniform_.eager(seed, offset, lines.shape, dtypes.float64)
        with np.errstate(all="ignore"):
            keys = np.where(lines > 0, lines / -np.log1p(-u), -1.0)
        out = np.argsort(-keys, axis=-1, kind="stable")[:, :count]
    return np.ascontiguousarray(out.reshape(*w.shape[:-1], count).astype(np.int64))


def _multinomial_spec(weights: Spec, seed: Spec, offset: Spec, count: int, replacement: bool) -> Spec:
    if weights.ndim not in (1, 2):
        raise RuntimeError(f"multinomial: prob_dist must be 1 or 2 dim; got shape {weights.shape}")
    return Spec((*weights.shape[:-1], count), dtypes.int64, weights.device)


multinomial_: Op = define(
    "multinomial", ("weights", "seed", "offset"), _multinomial_np, _multinomial_spec, None, ("count", "replacement"), barrier=True,
    samples=lambda: [((_rng.uniform(0, 1, (2, 5)), 3, 4), (3, r)) for r in (False, True)],
)


@public()
def multinomial(input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None) -> Tensor:
    """(…, n) weights -> (…, num_samples) int64 positions drawn with those weights. Raises RuntimeError for weights that are none."""
    if not input.dtype.is_floating_point:
        raise RuntimeError(f"multinomial only supports floating-point dtypes for input, got: {input.dtype.name}")
    return apply(multinomial_, (input, *(generator or default_generator).take()), (int(num_samples), bool(replacement)))
