"""Operators that take or put elements at positions that are data, and Python's indexing in all its forms."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, index
from torchlet.autograd import inplace
from torchlet.expr import Expr, call
from torchlet.expr import cast as cast_expr
from torchlet.expr import where as select_expr
from torchlet.index import Index
from torchlet.op import OPS, Check, Op, ScatterAdd, Select, apply, define
from torchlet.ops.create import full_
from torchlet.ops.methods import copy_, fill_, tensor
from torchlet.ops.pointwise import cast, where, where_
from torchlet.ops.public import METHODS, Draws, in_place, public
from torchlet.ops.view import ALL, Items, index_basic_, reshape, unsqueeze_dims
from torchlet.spec import Spec, normalize_dim
from torchlet.tensor import Tensor, wrap

_rng = Draws(5)
_UNSIGNED = {np.dtype(f"i{n}"): np.dtype(f"u{n}") for n in (1, 2, 4, 8)}

# (input shapes, attributes) -> (which input holds positions, smallest legal one, first illegal one, the dimension they point into)
Bounds = Callable[[Sequence[tuple[int, ...]], tuple[Any, ...]], list[tuple[int, int, int, int]]]


def bounds(name: str, rule: Bounds) -> Check:
    """The check of an operator whose positions are data: IndexError naming the operator, the position and the size."""

    def test(values: Sequence[Any], attrs: tuple[Any, ...]) -> None:
        for k, low, high, dim in rule([np.shape(v) if isinstance(v, int | float) else v.shape for v in values], attrs):
            a = values[k]
            if not isinstance(a, np.ndarray) or not a.size or a.dtype.kind not in "iu":
                continue
            unsigned = _UNSIGNED.get(a.dtype)
            if low == 0 and (a if unsigned is None else a.view(unsigned)).max() < high:  # a negative one is huge as unsigned
                continue
            bad = a[(a < low) | (a >= high)]
            if bad.size:
                raise IndexError(f"{name}: index {int(bad[0])} is out of bounds for dimension {dim} with size {high}")

    return Check(lambda specs, attrs: [k for k, *_ in rule([s.shape for s in specs], attrs)], test)


def check_bounds(name: str, arrays: Sequence[Any], attrs: tuple[Any, ...]) -> None:
    """Raise IndexError naming the operator, the position and the size where an array of positions points outside."""
    check = OPS[name].check
    assert check is not None
    check.test(arrays, attrs)


def _integer(name: str, s: Spec) -> None:
    if s.dtype.category != 1:
        raise IndexError(f"{name}: index has dtype {s.dtype.name}; expected an integer dtype (int64)")


def at(e: Expr, size: int | None = None) -> Index:
    """A loaded position as a coordinate; with `size`, negative ones count from the end."""
    e = cast_expr(e, dtypes.int64)
    if size is not None:
        e = select_expr(e < 0, call("add", e, size), e)
    return Index(((e, 1),))


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


def _sum_rows(source: Any, positions: Any, count: int) -> Any:
    """out[positions[k]] += source[k] over the first dimension, by sorting: ten times faster than np.add.at on rows."""
    out = np.zeros((count, *source.shape[1:]), source.dtype)
    if positions.size:
        order = np.argsort(positions, kind="stable")
        ordered = positions[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        out[ordered[starts]] = np.add.reduceat(_wide(source)[order], starts, axis=0)
    return out


# ------------------------------------------------------------------------------------------------ gather and scatter


def _gather_spec(x: Spec, index: Spec, dim: int, name: str = "gather") -> Spec:
    _integer(name, index)
    if index.ndim != x.ndim or any(d != dim and n > m for d, (n, m) in enumerate(zip(index.shape, x.shape, strict=True))):
        raise RuntimeError(
            f"{name}: index has shape {index.shape} for an input of shape {x.shape}; expected as many dimensions, and no size larger "
            f"except in dimension {dim}"
        )
    return Spec(index.shape, x.dtype, x.device)


def _gather_np(x: Any, index: Any, dim: int) -> Any:
    if x.ndim != index.ndim or index.dtype.kind not in "iu":
        raise ValueError("ranks or dtypes do not fit")
    check_bounds("gather", (x, index), (dim,))
    region = x[tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(index.shape))]
    return np.take_along_axis(region, index, dim)


def _along(out: tuple[Index, ...], position: Index, dim: int) -> tuple[Index, ...]:
    return (*out[:dim], position, *out[dim + 1 :])


def _lines() -> list[Any]:
    x = _rng.standard_normal((3, 4))
    return [((x, _rng.integers(0, 4, (3, 2))), (1,)), ((x, _rng.integers(0, 3, (5, 3))), (0,))]


gather_: Op = define(
    "gather", ("x", "index"), _gather_np, _gather_spec,
    Select(lambda out, load, specs, dim: load(0, _along(out, at(load(1, out)), dim))), ("dim",),
    {"x": lambda g, index, x_spec, dim: apply(scatter_sum_, (g, index), (x_spec.shape, dim))}, _lines,
    check=bounds("gather", lambda shapes, attrs: [(1, 0, shapes[0][attrs[0]], attrs[0])]),
)


def _scatter_sum_np(source: Any, index: Any, shape: tuple[int, ...], dim: int) -> Any:
    check_bounds("scatter_sum", (source, index), (shape, dim))
    flat = np.zeros(int(np.prod(shape)), _wide(source).dtype)
    places = list(np.meshgrid(*[np.arange(n) for n in index.shape], indexing="ij", sparse=True))
    places[dim] = index
    np.add.at(flat, np.ravel_multi_index(np.broadcast_arrays(*places), shape).reshape(-1), _wide(source).reshape(-1))
    return flat.reshape(shape).astype(source.dtype, copy=False)


scatter_sum_: Op = define(
    "scatter_sum", ("source", "index"), _scatter_sum_np, lambda source, index, shape, dim: Spec(shape, source.dtype, source.device),
    ScatterAdd(lambda i, load, specs, shape, dim: _along(i, at(load(1, i)), dim)), ("shape", "dim"),
    {"source": lambda g, index, dim: apply(gather_, (g, index), (dim,))},
    lambda: [((_rng.standard_normal((3, 2)), _rng.integers(0, 4, (3, 2))), ((3, 4), 1))],
    doc="Zeros of `shape` with every element of the source added at its position along `dim`: the gradient of gather.",
    check=bounds("scatter_sum", lambda shapes, attrs: [(1, 0, attrs[0][attrs[1]], attrs[1])]),
)


def _scatter_spec(x: Spec, index: Spec, src: Spec, dim: int) -> Spec:
    _gather_spec(x, index, dim, "scatter")
    if not src.weak and (src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True))):
        raise RuntimeError(f"scatter: index has shape {index.shape}; expected no size larger than src's, {src.shape}")
    if not src.weak and src.dtype is not x.dtype:
        raise RuntimeError(f"scatter: expected self.dtype to be equal to src.dtype; got {x.dtype.name} and {src.dtype.name}")
    return x


def _scatter_np(x: Any, index: Any, src: Any, dim: int) -> Any:
    if x.ndim != index.ndim or index.dtype.kind not in "iu":
        raise ValueError("ranks or dtypes do not fit")
    if isinstance(src, np.ndarray):
        if src.ndim != index.ndim or src.dtype != x.dtype:
            raise ValueError("ranks or dtypes do not fit")
        src = src[tuple(slice(n) for n in index.shape)]
    check_bounds("scatter", (x, index), (dim,))
    out = np.array(x, copy=True)
    np.put_along_axis(out[tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(index.shape))], index, src, dim)
    return out


scatter_: Op = define(
    "scatter", ("x", "index", "src"), _scatter_np, _scatter_spec, None, ("dim",),
    {
        "x": lambda g, index, dim: apply(scatter_, (g, index, 0), (dim,)),
        "src": lambda g, index, src_spec, dim: _grown(apply(gather_, (g, index), (dim,)), src_spec.shape),
    },
    lambda: [((_rng.standard_normal((3, 4)), np.array([[0, 2], [1, 3], [3, 0]]), _rng.standard_normal((3, 2))), (1,))],
    doc="The input with src put at the positions along `dim`; where two meet, one of them wins.",
    check=bounds("scatter", lambda shapes, attrs: [(1, 0, shapes[0][attrs[0]], attrs[0])]),
)


def _grown(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`g` with zeros after it up to `shape`."""
    return g if g._meta.shape == shape else apply(full_, (0,), (shape, g.dtype)).index_put(tuple(slice(n) for n in g.shape), g)


@public()
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """out[i][j] = input[index[i][j]][j] for dim 0, and so on. Shape of `index`. Raises IndexError for positions outside."""
    d = normalize_dim("gather", dim, input.ndim)
    if input.ndim == 0:
        return reshape(apply(gather_, (reshape(input, (1,)), reshape(index, (1,)) if index.ndim == 0 else index), (0,)), tuple(index.shape))
    return apply(gather_, (input, index), (d,))


def lifted(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`f(input, dim, …)` also for an input without dimensions, which is taken as a line of one element."""

    @functools.wraps(f)
    def g(input: Tensor, dim: int, *args: Any, **named: Any) -> Tensor:
        if input.ndim:
            return f(input, dim, *args, **named)
        line = [reshape(t, (1,)) if isinstance(t, Tensor) and t.ndim == 0 else t for t in args]
        done = f(reshape(input, (1,)), dim, *line, **{n: reshape(t, (1,)) if isinstance(t, Tensor) and t.ndim == 0 else t for n, t in named.items()})
        return input if f.__name__.endswith("_inplace") else reshape(done, ())

    return g


@public("scatter")
@lifted
def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Tensor:
    """The input with `src` (or a number) put at `index` along `dim`; `reduce` "add" or "multiply" combines with what is there."""
    d = normalize_dim("scatter", dim, input.ndim)
    return apply(scatter_, _scattered(input, d, index, src if value is None else value, reduce), (d,))


def _scattered(x: Tensor, dim: int, index: Tensor, src: Any, reduce: str | None) -> tuple[Any, ...]:
    if not isinstance(src, Tensor):
        src = x.dtype.np.type(src).item()
    if reduce in (None, "none"):
        return x, index, src
    there = gather(x, dim, index)
    if reduce == "add":
        return x, index, there + src
    if reduce == "multiply":
        return x, index, there * src
    raise RuntimeError(f"scatter: reduce is '{reduce}'; expected 'add' or 'multiply'")


@public("scatter_", function=False)
@lifted
def scatter_inplace(self: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Tensor:
    """Put `src` (or a number) at `index` along `dim`."""
    d = normalize_dim("scatter_", dim, self.ndim)
    src = src if value is None else value
    if reduce == "add" and isinstance(src, Tensor):
        return scatter_add_inplace(self, d, index, src)
    return inplace(scatter_, self, _scattered(self, d, index, src, reduce), (d,))


def _scattered_sum(name: str, x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    d = normalize_dim(name, dim, x.ndim)
    _scatter_spec(x._meta.spec, index._meta.spec, src._meta.spec, d)
    if src._meta.shape != index._meta.shape:
        src = apply(index_basic_, (src,), (tuple(("s", 0, n, 1) for n in index.shape),))
    return apply(scatter_sum_, (src, index), (tuple(x.shape), d))


@public()
@lifted
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """The input with every element of `src` added at its position along `dim`. Raises IndexError for positions outside."""
    return input + _scattered_sum("scatter_add", input, dim, index, src)


@public("scatter_add_", function=False)
@lifted
def scatter_add_inplace(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Add every element of `src` at its position along `dim`."""
    return self.add_(_scattered_sum("scatter_add_", self, dim, index, src))


@public()
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather` with the other dimensions broadcast; without `dim`, from the flattened input."""
    if dim is None:
        return gather(reshape(input, (-1,)), 0, reshape(indices, (-1,)))
    d = normalize_dim("take_along_dim", dim, input.ndim)
    if input.ndim != indices.ndim:
        raise RuntimeError(f"take_along_dim: input and indices should have the same number of dimensions, but got {input.ndim} and {indices.ndim}")
    indices = where(indices < 0, indices + input.shape[d], indices)
    shapes = [tuple(1 if k == d else n for k, n in enumerate(t.shape)) for t in (input, indices)]
    common = np.broadcast_shapes(*shapes)
    return gather(input.expand(_with(common, d, input.shape[d])), d, indices.expand(_with(common, d, indices.shape[d])))


def _with(shape: tuple[int, ...], dim: int, n: int) -> tuple[int, ...]:
    return (*shape[:dim], n, *shape[dim + 1 :])


# ------------------------------------------------------------------------------------------------ whole slices by position


def _index_select_spec(x: Spec, index: Spec, dim: int) -> Spec:
    _integer("index_select", index)
    if index.ndim > 1:
        raise IndexError(f"index_select: Index is supposed to be a vector; got shape {index.shape}")
    return Spec(_with(x.shape, dim, index.numel), x.dtype, x.device)


def _index_select_np(x: Any, index: Any, dim: int) -> Any:
    if index.ndim > 1 or index.dtype.kind not in "iu":
        raise ValueError("rank or dtype does not fit")
    check_bounds("index_select", (x, index), (dim,))
    return np.take(x, index.reshape(-1), axis=dim)


index_select_: Op = define(
    "index_select",
    ("x", "index"),
    _index_select_np,
    _index_select_spec,
    Select(lambda out, load, specs, dim: load(0, _along(out, at(load(1, (out[dim],))), dim))),
    ("dim",),
    {"x": lambda g, index, x_spec, dim: apply(index_sum_, (g, index), (x_spec.shape[dim], dim))},
    lambda: [((_rng.standard_normal((3, 4)), np.array([2, 0, 2])), (d,)) for d in (0, 1)],
    check=bounds("index_select", lambda shapes, attrs: [(1, 0, shapes[0][attrs[0]], attrs[0])]),
)


def _index_sum_np(source: Any, index: Any, size: int, dim: int) -> Any:
    check_bounds("index_sum", (source, index), (size, dim))
    return np.ascontiguousarray(np.moveaxis(_sum_rows(np.moveaxis(source, dim, 0), index, size), 0, dim))


index_sum_: Op = define(
    "index_sum",
    ("source", "index"),
    _index_sum_np,
    lambda source, index, size, dim: Spec(_with(source.shape, dim, size), source.dtype, source.device),
    ScatterAdd(lambda i, load, specs, size, dim: _along(i, at(load(1, (i[dim],))), dim)),
    ("size", "dim"),
    {"source": lambda g, index, dim: apply(index_select_, (g, index), (dim,))},
    lambda: [((_rng.standard_normal((3, 4)), np.array([2, 0, 2])), (5, 0)), ((_rng.standard_normal((4, 3)), np.array([2, 0, 2])), (3, 1))],
    doc="Zeros with each slice of the source added at its position along `dim`: the gradient of index_select.",
    check=bounds("index_sum", lambda shapes, attrs: [(1, 0, attrs[0], attrs[1])]),
)


@public()
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices at `index` (a vector) along `dim`, copied. Raises IndexError for positions outside."""
    d = normalize_dim("index_select", dim, input.ndim)
    if input.ndim == 0:
        return reshape(apply(index_select_, (reshape(input, (1,)), index), (0,)), ())
    return apply(index_select_, (input, index), (d,))


def _added_slices(name: str, x: Tensor, dim: int, index: Tensor, source: Tensor, alpha: Any) -> Tensor:
    d = normalize_dim(name, dim, x.ndim)
    wanted = _with(tuple(x.shape), d, index.numel())
    if tuple(source.shape) != wanted:
        raise RuntimeError(f"{name}: source has shape {tuple(source.shape)}; expected {wanted}")
    if source.dtype is not x.dtype:
        raise RuntimeError(f"{name}: self ({x.dtype.name}) and source ({source.dtype.name}) must have the same scalar type")
    return apply(index_sum_, (source if alpha == 1 else source * alpha, reshape(index, (-1,))), (x.shape[d], d))


@public()
@lifted
def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """The input with alpha * each slice of `source` added at its position along `dim`."""
    return input + _added_slices("index_add", input, dim, index, source, alpha)


@public("index_add_", function=False)
@lifted
def index_add_inplace(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Add alpha * each slice of `source` at its position along `dim`."""
    return self.add_(_added_slices("index_add_", self, dim, index, source, alpha))


def _slice_key(name: str, x: Tensor, dim: int, index: Tensor) -> tuple[Any, ...]:
    return (slice(None),) * normalize_dim(name, dim, x.ndim) + (reshape(index, (-1,)),)


@public()
@lifted
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """The input with the slices of `source` put at `index` along `dim`."""
    return index_put(input, _slice_key("index_copy", input, dim, index), source)


@public()
@lifted
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """The input with the slices at `index` along `dim` filled with a number."""
    return index_put(input, _slice_key("index_fill", input, dim, index), value)


@public("index_copy_", function=False)
@lifted
def index_copy_inplace(self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Put the slices of `source` at `index` along `dim`."""
    return _set(self, _slice_key("index_copy_", self, dim, index), source)


@public("index_fill_", function=False)
@lifted
def index_fill_inplace(self: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """Fill the slices at `index` along `dim`."""
    return _set(self, _slice_key("index_fill_", self, dim, index), value)


# ------------------------------------------------------------------------------------------------ embedding


def _embedding_spec(weight: Spec, index: Spec, padding_idx: int | None) -> Spec:
    if weight.ndim != 2:
        raise RuntimeError(f"embedding: weight has shape {weight.shape}; expected (number of embeddings, size)")
    if index.dtype.category != 1:
        raise RuntimeError(
            "embedding: Expected tensor for argument 'indices' to have one of the following scalar types: Long, Int; but got "
            f"{index.dtype.name} instead"
        )
    return Spec(index.shape + weight.shape[1:], weight.dtype, weight.device)


def _embedding_np(weight: Any, index: Any, padding_idx: int | None) -> Any:
    if weight.ndim != 2 or index.dtype.kind not in "iu":
        raise ValueError("rank or dtype does not fit")
    check_bounds("embedding", (weight, index), (padding_idx,))
    return np.take(weight, index, axis=0)


def _embedding_grad(g: Tensor, index: Tensor, weight_spec: Spec, padding_idx: int | None) -> Tensor:
    if padding_idx is not None:
        g = where(unsqueeze_dims(index.ne(padding_idx), (index.ndim,)), g, 0.0)
    return apply(index_sum_, (reshape(g, (-1, weight_spec.shape[1])), reshape(index, (-1,))), (weight_spec.shape[0], 0))


embedding_: Op = define(
    "embedding", ("weight", "index"), _embedding_np, _embedding_spec,
    Select(lambda out, load, specs, padding_idx: load(0, (at(load(1, out[:-1])), out[-1]))), ("padding_idx",), {"weight": _embedding_grad},
    lambda: [((_rng.standard_normal((5, 3)), np.array([[0, 4, 2], [4, 4, 1]])), (p,)) for p in (None, 4)],
    check=bounds("embedding", lambda shapes, attrs: [(1, 0, shapes[0][0], 0)]),
)


@public(method=False)
def embedding(weight: Tensor, indices: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of `weight` at `indices`. Shapes: (n, d) and (…) -> (…, d). The row `padding_idx` gets no gradient."""
    if padding_idx is not None:
        n = weight.shape[0]
        if not -n <= padding_idx < n:
            raise IndexError(f"embedding: padding_idx {padding_idx} is out of bounds for {n} embeddings")
        padding_idx %= n
    return apply(embedding_, (weight, indices), (padding_idx,))


# ------------------------------------------------------------------------------------------------ index tensors in brackets


def _broadcast(name: str, specs: Sequence[Spec]) -> tuple[int, ...]:
    for s in specs:
        _integer(name, s)
    try:
        return np.broadcast_shapes(*[s.shape for s in specs])
    except ValueError:
        raise IndexError(
            f"{name}: shape mismatch: indexing tensors could not be broadcast together with shapes "
            f"{', '.join(str(list(s.shape)) for s in specs)}"
        ) from None


def _front(dims: tuple[int, ...]) -> int:
    """Where the dimensions of the index tensors stand in the result: in place if the indexed ones are neighbours, else first."""
    return dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0


def _advanced_shape(shape: tuple[int, ...], indexed: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    rest = tuple(n for d, n in enumerate(shape) if d not in dims)
    return rest[: _front(dims)] + indexed + rest[_front(dims) :]


def _advanced_spec(x: Spec, *args: Any) -> Spec:
    *indices, dims = args
    return Spec(_advanced_shape(x.shape, _broadcast("index", indices), dims), x.dtype, x.device)


def _key(ndim: int, indices: Sequence[Any], dims: tuple[int, ...]) -> tuple[Any, ...]:
    key: list[Any] = [slice(None)] * ndim
    for d, i in zip(dims, indices, strict=True):
        key[d] = i
    return tuple(key)


def _advanced_np(x: Any, *args: Any) -> Any:
    *indices, dims = args
    return x[_key(x.ndim, indices, dims)]


def _advanced_source(
    out: tuple[Index, ...], load: Any, specs: Sequence[Spec], shape: tuple[int, ...], dims: tuple[int, ...]
) -> tuple[Index, ...]:
    """Where in a tensor of `shape` the element `out` of the indexed result comes from; the indices are inputs 1…"""
    rank = max(s.ndim for s in specs[1:])
    front = _front(dims)
    inner, rest = out[front : front + rank], list(out[:front] + out[front + rank :])
    source: list[Index] = []
    for d, n in enumerate(shape):
        if d in dims:
            k = dims.index(d) + 1
            own = specs[k].shape
            place = tuple(index.ZERO if m == 1 else i for i, m in zip(inner[rank - len(own) :], own, strict=True))
            source.append(at(load(k, place), n))
        else:
            source.append(rest.pop(0))
    return tuple(source)


def _advanced_bounds(first: int) -> Callable[..., Any]:
    def bounds(shapes: Sequence[tuple[int, ...]], attrs: tuple[Any, ...]) -> list[tuple[int, int, int, int]]:
        shape, dims = (shapes[0], attrs[0]) if first == 1 or len(attrs) == 1 else attrs
        return [(k + first, -shape[d], shape[d], d) for k, d in enumerate(dims)]

    return bounds


def _samples_advanced() -> list[Any]:
    x = _rng.standard_normal((3, 4, 5))
    i, j = np.array([2, 0, -1, 2]), np.array([[1], [3]])
    return [((x, i), ((0,),)), ((x, i), ((1,),)), ((x, i, j), ((0, 1),)), ((x, i, j), ((0, 2),))]


index_advanced_: Op = define(
    "index_advanced", ("x", "*indices"), _advanced_np, _advanced_spec,
    Select(lambda out, load, specs, dims: load(0, _advanced_source(out, load, specs, specs[0].shape, dims))), ("dims",),
    {"x": lambda g, indices, x_spec, dims: apply(index_advanced_sum_, (g, *indices), (x_spec.shape, dims))}, _samples_advanced,
    doc="x[…, i, …, j, …] with integer tensors i, j at the dimensions `dims`, which are broadcast together.",
    check=bounds("index_advanced", _advanced_bounds(1)),
)


def _advanced_sum_np(source: Any, *args: Any) -> Any:
    *indices, shape, dims = args
    if len(dims) == 1 and indices[0].ndim == 1:
        d, n = dims[0], shape[dims[0]]
        rows = _sum_rows(np.moveaxis(source, d, 0), np.where(indices[0] < 0, indices[0] + n, indices[0]), n)
        return np.ascontiguousarray(np.moveaxis(rows, 0, d))
    count = int(np.prod(shape))
    flat = np.zeros(count, _wide(source).dtype)
    np.add.at(flat, np.arange(count).reshape(shape)[_key(len(shape), indices, dims)].reshape(-1), _wide(source).reshape(-1))
    return flat.reshape(shape).astype(source.dtype, copy=False)


index_advanced_sum_: Op = define(
    "index_advanced_sum",
    ("source", "*indices"),
    _advanced_sum_np,
    lambda source, *args: Spec(args[-2], source.dtype, source.device),
    ScatterAdd(lambda i, load, specs, shape, dims: _advanced_source(i, load, specs, shape, dims)),
    ("shape", "dims"),
    {"source": lambda g, indices, dims: apply(index_advanced_, (g, *indices), (dims,))},
    lambda: [
        ((_rng.standard_normal((4, 5)), np.array([2, 0, -1, 2])), ((3, 5), (0,))),
        ((_rng.standard_normal((2, 4, 5)), np.array([2, 0, -1, 2]), np.array([[1], [3]])), ((3, 4, 5), (0, 1))),
    ],
    doc="Zeros of `shape` with every element of the source added where index_advanced takes it from.",
    check=bounds("index_advanced_sum", lambda shapes, attrs: [(k + 1, -attrs[0][d], attrs[0][d], d) for k, d in enumerate(attrs[1])]),
)


def _index_put_spec(x: Spec, values: Spec, *args: Any) -> Spec:
    *indices, dims = args
    target = _advanced_shape(x.shape, _broadcast("index_put", indices), dims)
    lead = len(target) - values.ndim
    if lead < 0 or any(n not in (1, m) for n, m in zip(values.shape, target[lead:], strict=True)):
        raise RuntimeError(
            f"index_put: shape mismatch: value tensor of shape {list(values.shape)} cannot be broadcast to indexing result of shape "
            f"{list(target)}"
        )
    return x


def _index_put_np(x: Any, values: Any, *args: Any) -> Any:
    *indices, dims = args
    out = np.array(x, copy=True)
    out[_key(x.ndim, indices, dims)] = values
    return out


index_put_: Op = define(
    "index_put",
    ("x", "values", "*indices"),
    _index_put_np,
    _index_put_spec,
    None,
    ("dims",),
    {
        "x": lambda g, indices, dims: apply(index_put_, (g, 0, *indices), (dims,)),
        "values": lambda g, indices, dims: apply(index_advanced_, (g, *indices), (dims,)),
    },
    lambda: [
        ((_rng.standard_normal((3, 4)), _rng.standard_normal((2, 4)), np.array([2, 0])), ((0,),)),
        ((_rng.standard_normal((3, 4)), 2.5, np.array([2, 0]), np.array([1, -1])), ((0, 1),)),
    ],
    doc="x with values (broadcast) put at integer positions; where two meet, the last wins.",
    check=bounds("index_put", lambda shapes, attrs: [(k + 2, -shapes[0][d], shapes[0][d], d) for k, d in enumerate(attrs[0])]),
)


def _nonzero_spec(x: Spec) -> Spec:
    return Spec((-1, x.ndim), dtypes.int64, x.device)  # the first size is data: the operator is a barrier


nonzero_: Op = define(
    "nonzero",
    ("x",),
    lambda x: np.stack(np.nonzero(x), axis=1) if x.ndim else np.zeros((int(bool(x)), 0), np.int64),
    _nonzero_spec,
    None,
    barrier=True,
    samples=lambda: [((np.array([[0.0, 1, 2], [3, 0, 0]]),), ())],
)


@public()
def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The positions of the elements that are not 0: (n, dimensions) int64, or a tuple of vectors if `as_tuple`."""
    out = apply(nonzero_, (input,))
    if as_tuple and not input.ndim:  # as one element of a line
        return nonzero(reshape(input, (1,)), as_tuple=True)
    return tuple(out.select(1, d) for d in range(input.ndim)) if as_tuple else out


@public()
def argwhere(input: Tensor) -> Tensor:
    """The positions of the elements that are not 0: (n, dimensions) int64."""
    return nonzero(input)


# ------------------------------------------------------------------------------------------------ brackets

Advanced = list[tuple[int, Tensor]]  # (dimension of the basic result, integer tensor or mask that starts there)


def _as_index(k: Any) -> Any:
    """A key element that is a sequence or an array as a tensor."""
    if isinstance(k, np.ndarray):
        return wrap(np.ascontiguousarray(k).reshape(k.shape))
    if isinstance(k, list | tuple | range):
        t = tensor(list(k))
        return t if t.numel() else cast(t, dtypes.int64)
    return k


def _plain(key: tuple[Any, ...], ndim: int) -> Items | None:
    """The items of a key of numbers, slices without a step, None and one `...`, found in one pass; None where it has to be looked at."""
    items: list[tuple[Any, ...]] = []
    rest, used = -1, 0
    for k in key:
        if k.__class__ is slice:
            start, stop = k.start, k.stop
            if k.step is not None or not (start is None or start.__class__ is int) or not (stop is None or stop.__class__ is int):
                return None
            items.append(("s", start, stop, 1))
            used += 1
        elif k.__class__ is int:
            items.append(("i", k))
            used += 1
        elif k is None:
            items.append(("n",))
        elif k is Ellipsis and rest < 0:
            rest = len(items)
        else:
            return None
    if used > ndim:
        return None
    if rest >= 0:
        items[rest:rest] = [ALL] * (ndim - used)
    return tuple(items)


def parse(x: Tensor, key: Any) -> tuple[Items, Advanced]:
    """A key in brackets as basic items and the tensors that index what those leave. Raises IndexError or TypeError."""
    keys = [_as_index(k) for k in (key if isinstance(key, tuple) else (key,))]
    used = 0
    for k in keys:
        if isinstance(k, Tensor):
            used += k.ndim if k.dtype is dtypes.bool_ else 1
        elif k is not None and k is not Ellipsis and not isinstance(k, bool | np.bool_):
            used += 1
    if used > x.ndim:
        raise IndexError(f"too many indices for tensor of dimension {x.ndim}")
    items: list[tuple[Any, ...]] = []
    advanced: Advanced = []
    here = position = 0  # the dimension of x; the dimension of the basic result
    for k in keys:
        if isinstance(k, Tensor) and not (k.ndim == 0 and k.dtype.category == 1):
            if k.dtype is dtypes.bool_ and k.ndim:
                n = k.ndim
                if k._meta.shape != x._meta.shape[here : here + n]:
                    raise IndexError(
                        f"The shape of the mask {list(k.shape)} at index 0 does not match the shape of the indexed tensor "
                        f"{list(x.shape)} at index {here}"
                    )
                here += n
            elif k.dtype is dtypes.bool_:
                k, n = reshape(k, (1,)), 1
                advanced.append((position, k))
                items.append(("n",))
                position += 1
                continue
            elif k.dtype is dtypes.uint8 or k.dtype.is_floating_point:
                raise IndexError(
                    f"tensors used as indices must be long, int, short or bool tensors; got {k.dtype.name}\nhelp: convert with "
                    ".long(), or .bool() for a mask"
                )
            else:
                n = 1
                here += 1
            advanced.append((position, k))
            items += [ALL] * n
            position += n
        elif k is None:
            items.append(("n",))
            position += 1
        elif isinstance(k, slice):
            step = 1 if k.step is None else operator.index(k.step)
            if step <= 0:
                raise ValueError("step must be greater than zero")
            items.append(("s", *[None if v is None else operator.index(v) for v in (k.start, k.stop)], step))
            here, position = here + 1, position + 1
        elif k is Ellipsis:
            if sum(o is Ellipsis for o in keys) > 1:
                raise IndexError("an index can only have a single ellipsis ('...')")
            items += [ALL] * (x.ndim - used)
            here, position = here + x.ndim - used, position + x.ndim - used
        elif isinstance(k, bool | np.bool_):
            advanced.append((position, wrap(np.array([bool(k)]))))
            items.append(("n",))
            position += 1
        else:
            try:
                number = operator.index(k)
            except TypeError:
                raise TypeError(
                    "only integers, slices (`:`), ellipsis (`...`), None and long or bool tensors are valid indices (got "
                    f"{type(k).__name__})"
                ) from None
            items.append(("i", number))
            here += 1
    return tuple(items), advanced


def _basic(x: Tensor, items: Items) -> Tensor:
    return x if all(i is ALL for i in items) else apply(index_basic_, (x,), (items,))


def _resolve(advanced: Advanced) -> tuple[list[Tensor], tuple[int, ...]]:
    """Masks as the integer positions where they are true; the dimension of each index tensor."""
    indices: list[Tensor] = []
    dims: list[int] = []
    for d, k in advanced:
        if k.dtype is dtypes.bool_:
            found = nonzero(k, as_tuple=True)
            indices += found
            dims += range(d, d + len(found))
        else:
            indices.append(k)
            dims.append(d)
    return indices, tuple(dims)


def getitem(self: Tensor, key: Any) -> Tensor:
    """self[key] with PyTorch's meaning: views for numbers, slices, None and …; copies for index tensors and masks.

    Raises IndexError for positions outside, too many indices, or a mask that does not fit.
    """
    kind = key.__class__
    if kind is int:
        return apply(index_basic_, (self,), ((("i", key),),))
    plain = _plain(key, len(self._meta.shape)) if kind is tuple else None
    if plain is not None:
        return apply(index_basic_, (self,), (plain,))
    items, advanced = parse(self, key)
    if not advanced:
        return apply(index_basic_, (self,), (items,))
    indices, dims = _resolve(advanced)
    return apply(index_advanced_, (_basic(self, items), *indices), (dims,))


def _fitted(value: Any, self: Tensor, target: tuple[int, ...]) -> Any:
    """A value for assignment: numbers stay, tensors get the dtype of `self` and lose leading dimensions of size 1."""
    if isinstance(value, bool | int | float | np.generic):
        number = value.item() if isinstance(value, np.generic) else value
        return float(number) if self.dtype.is_floating_point else bool(number) if self.dtype is dtypes.bool_ else int(number)
    if not isinstance(value, Tensor):
        value = tensor(value)
    extra = value.ndim - len(target)
    if extra > 0 and all(n == 1 for n in value.shape[:extra]):
        value = reshape(value, tuple(value.shape[extra:]))
    return cast(value, self.dtype)


def _set(self: Tensor, key: Any, value: Any, accumulate: bool = False) -> Tensor:
    items, advanced = parse(self, key)
    region = _basic(self, items)
    if not advanced:
        value = _fitted(value, self, tuple(region.shape))
        if accumulate:
            region.add_(value)
        elif isinstance(value, Tensor):
            copy_(region, value)
        else:
            fill_(region, value)
        return self
    if (
        len(advanced) == 1
        and advanced[0][1].dtype is dtypes.bool_
        and not accumulate
        and (not isinstance(value, Tensor) or value.numel() == 1)
        and not isinstance(value, list | tuple | np.ndarray)
    ):
        d, mask = advanced[0]  # one value under a mask needs no positions
        value = _fitted(value, self, ())
        inplace(
            where_,
            region,
            (
                unsqueeze_dims(mask, tuple(range(mask.ndim, region.ndim - d))),
                reshape(value, ()) if isinstance(value, Tensor) else value,
                region,
            ),
        )
        return self
    indices, dims = _resolve(advanced)
    target = _advanced_shape(tuple(region.shape), _broadcast("index_put", [i._meta.spec for i in indices]), dims)
    value = _fitted(value, self, target)
    if accumulate:
        source = value.expand(target) if isinstance(value, Tensor) else apply(full_, (value,), (target, self.dtype))
        region.add_(apply(index_advanced_sum_, (source, *indices), (tuple(region.shape), dims)))
    else:
        inplace(index_put_, region, (region, value, *indices), (dims,))
    return self


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """self[key] = value in place; value is broadcast and converted. Raises as reading does, and RuntimeError for shapes."""
    _set(self, key, value)


METHODS |= {"__getitem__": getitem, "__setitem__": setitem}


@public()
def index_put(input: Tensor, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Tensor:
    """A copy of the input with `values` put (or added, if `accumulate`) at `indices`, a tuple as in brackets."""
    return _set(input.clone(), tuple(indices), values, accumulate)


@public("index_put_", function=False)
def index_put_inplace(self: Tensor, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Tensor:
    """Put (or add, if `accumulate`) `values` at `indices`, a tuple as in brackets."""
    return _set(self, tuple(indices), values, accumulate)


# ------------------------------------------------------------------------------------------------ masks


def _mask(name: str, mask: Tensor) -> Tensor:
    if mask.dtype is not dtypes.bool_:
        raise RuntimeError(f"{name}: mask has dtype {mask.dtype.name}; expected bool\nhelp: convert with .bool()")
    return mask


@public()
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """The input with a number (or 0-d tensor) where the mask is true. Dtype kept. Raises RuntimeError for a mask that is not bool."""
    return apply(where_, (_mask("masked_fill", mask), _filler("masked_fill", input, value), input))


def _filler(name: str, x: Tensor, value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(f"{name}: only supports a 0-dimensional value tensor, but got tensor with {value.ndim} dimension(s).")
        return cast(value, x.dtype)
    if isinstance(value, float) and not x.dtype.is_floating_point and value != int(value):
        raise RuntimeError(f"{name}: value {value} cannot be converted to {x.dtype.name} without loss")
    return value if x.dtype.is_floating_point else x.dtype.np.type(value).item()


@public("masked_fill_", function=False)
def masked_fill_inplace(self: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Put a number (or 0-d tensor) where the mask is true."""
    return inplace(where_, self, (_mask("masked_fill_", mask), _filler("masked_fill_", self, value), self))


@public()
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where the mask is true, as a vector. Input and mask are broadcast together."""
    shape = np.broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    return getitem(input.expand(shape), _mask("masked_select", mask).expand(shape))


@public()
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The input with the elements of `source`, in order, where the mask is true."""
    shape = np.broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    mask = _mask("masked_scatter", mask).expand(shape)
    order = reshape(reshape(cast(mask, dtypes.int64), (-1,)).cumsum(0) - 1, shape)
    taken = getitem(reshape(source, (-1,)), order.clamp(min=0, max=max(source.numel() - 1, 0)))
    return where(mask, taken, input)


METHODS["masked_scatter_"] = in_place(masked_scatter)


@public()
def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of the flattened input. Shape of `index`."""
    return getitem(reshape(input, (-1,)), index)
