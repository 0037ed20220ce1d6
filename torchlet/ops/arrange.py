"""Operators that put elements in other places known beforehand: cat, stack, pad, roll, flip, triangles, repetition, diagonals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, index
from torchlet.autograd import inplace
from torchlet.expr import Expr, call, const, expr
from torchlet.expr import where as select_expr
from torchlet.index import Index
from torchlet.op import Op, Select, View, apply, define
from torchlet.ops.create import positions
from torchlet.ops.index import bounds, check_bounds, index_sum_
from torchlet.ops.pointwise import cast
from torchlet.ops.public import METHODS, Draws, public
from torchlet.ops.view import ALL, basic, expand, index_basic_, movedim, permute, reshape, unsqueeze, unsqueeze_dims
from torchlet.spec import Spec, normalize_dim, result_type
from torchlet.tensor import Tensor, wrap

_rng = Draws(6)


def position(i: Index) -> Expr:
    """A coordinate as a number."""
    return expr("index", (), dtypes.int64, i)


def _with(indices: tuple[Index, ...], dim: int, i: Index) -> tuple[Index, ...]:
    return (*indices[:dim], i, *indices[dim + 1 :])


# ------------------------------------------------------------------------------------------------ joining


def _cat_spec(*args: Any) -> Spec:
    *tensors, dim = args
    first = tensors[0]
    for k, s in enumerate(tensors[1:], 1):
        if s.ndim != first.ndim:
            raise RuntimeError(f"cat: Tensors must have same number of dimensions: got {first.ndim} and {s.ndim}")
        for d, (n, m) in enumerate(zip(first.shape, s.shape, strict=True)):
            if d != dim and n != m:
                raise RuntimeError(
                    f"cat: Sizes of tensors must match except in dimension {dim}. Expected size {n} but got size {m} for tensor "
                    f"number {k} in the list."
                )
    return Spec((*first.shape[:dim], sum(s.shape[dim] for s in tensors), *first.shape[dim + 1 :]), first.dtype, first.device)


def _cat_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], dim: int) -> Expr:
    result, end = None, sum(s.shape[dim] for s in specs)
    for k in reversed(range(len(specs))):
        n = specs[k].shape[dim]
        start = end - n
        if n:
            local = out[dim] - start
            value = load(k, _with(out, dim, local), mask=(("ge", local, 0), ("lt", local, n)))
            result = value if result is None else select_expr(call("lt", position(out[dim]), end), value, result)
        end = start
    return const(0, specs[0].dtype) if result is None else result  # all are empty


def _cat_grad(g: Tensor, tensors_specs: Sequence[Spec], dim: int) -> list[Tensor]:
    out, start = [], 0
    for s in tensors_specs:
        out.append(basic(g, (ALL,) * dim + (("s", start, start + s.shape[dim], 1),)))
        start += s.shape[dim]
    return out


cat_: Op = define(
    "cat",
    ("*tensors",),
    lambda *args: np.concatenate(args[:-1], args[-1]),
    _cat_spec,
    Select(_cat_lower),
    ("dim",),
    {"tensors": _cat_grad},
    lambda: [
        ((_rng.standard_normal((2, 3)), _rng.standard_normal((2, 1)), _rng.standard_normal((2, 4))), (1,)),
        ((_rng.standard_normal((2, 3)), _rng.standard_normal((1, 3))), (0,)),
    ],
)


@public("cat", "concat", "concatenate", method=False)
def cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Tensors one after the other along `dim`; their other sizes must agree. Dtypes are promoted."""
    listed = list(tensors)
    if not listed:
        raise ValueError("cat: expected a non-empty list of Tensors")
    for k, t in enumerate(listed):
        if not isinstance(t, Tensor):
            raise TypeError(f"cat: expected Tensor as element {k} in argument 0, but got {type(t).__name__}")
        if t.ndim == 0:
            raise RuntimeError(f"cat: zero-dimensional tensor (at position {k}) cannot be concatenated\nhelp: use stack")
    kept = [t for t in listed if tuple(t._meta.shape) != (0,)] or listed[:1]  # an empty vector joins anything
    common = result_type(*[t._meta.spec for t in listed])
    return apply(cat_, tuple([cast(t, common) for t in kept]), (normalize_dim("cat", dim if axis is None else axis, kept[0].ndim),))


@public(method=False)
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new dimension `dim`."""
    listed = list(tensors)
    if not listed:
        raise RuntimeError("stack expects a non-empty TensorList")
    for k, t in enumerate(listed):
        if t._meta.shape != listed[0]._meta.shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(listed[0].shape)} at entry 0 and {list(t.shape)} at entry "
                f"{k}"
            )
    d = normalize_dim("stack", dim, listed[0].ndim + 1)
    return cat([unsqueeze_dims(t, (d,)) for t in listed], d)


@public(method=False)
def atleast_1d(*tensors: Any) -> Any:
    """0-d tensors as vectors of one element."""
    listed = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    out = tuple(reshape(t, (1,)) if t.ndim == 0 else t for t in listed)
    return out[0] if len(tensors) == 1 and isinstance(tensors[0], Tensor) else out


@public(method=False)
def atleast_2d(*tensors: Any) -> Any:
    """Tensors with at least two dimensions: a size-1 dimension comes first."""
    listed = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    out = tuple(t if t.ndim >= 2 else reshape(t, (1, -1)) for t in listed)
    return out[0] if len(tensors) == 1 and isinstance(tensors[0], Tensor) else out


@public("hstack", "column_stack", method=False)
def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors side by side: along dimension 1, vectors along 0."""
    if not len(tensors):
        raise RuntimeError("hstack expects a non-empty TensorList")
    listed = atleast_1d(list(tensors))
    return cat(listed, 0 if listed[0].ndim == 1 else 1)


@public("vstack", "row_stack", method=False)
def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors above each other: along dimension 0, vectors as rows."""
    if not len(tensors):
        raise RuntimeError("vstack expects a non-empty TensorList")
    return cat(atleast_2d(list(tensors)), 0)


# ------------------------------------------------------------------------------------------------ padding, rolling, flipping


def _pad_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], pads: tuple[tuple[int, int], ...], value: float) -> Expr:
    source, mask = [], []
    for i, (low, high), n in zip(out, pads, specs[0].shape, strict=True):
        source.append(i - low)
        mask += [("ge", i, low)] * (low > 0) + [("lt", i, low + n)] * (high > 0)
    return load(0, tuple(source), mask=tuple(mask), other=value)


pad_: Op = define(
    "pad",
    ("x",),
    lambda x, pads, value: np.pad(x, pads, constant_values=x.dtype.type(value)) if x.ndim else x.copy(),
    lambda x, pads, value: Spec(tuple(n + a + b for n, (a, b) in zip(x.shape, pads, strict=True)), x.dtype, x.device),
    Select(_pad_lower),
    ("pads", "value"),
    {
        "x": lambda g, x_spec, pads: apply(
            index_basic_, (g,), (tuple(("s", a, a + n, 1) for n, (a, _) in zip(x_spec.shape, pads, strict=True)),)
        )
    },
    lambda: [((_rng.standard_normal((2, 3)),), (p, v)) for p, v in ((((1, 0), (2, 1)), 0.0), (((0, 0), (0, 2)), 1.5))],
)


def _cropped(x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
    """Negative padding takes elements away."""
    if all(a >= 0 and b >= 0 for a, b in pads):
        return x
    return basic(x, tuple(("s", max(-a, 0), n - max(-b, 0), 1) for n, (a, b) in zip(x.shape, pads, strict=True)))


@public(method=False)
def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Elements added around: `pad` = (before, after) of the last dimension, then of the one before it, and so on.

    `mode` is "constant" (filled with `value`, 0 by default), "reflect", "replicate" or "circular". Negative amounts crop.
    """
    amounts = [int(n) for n in pad]
    if len(amounts) % 2 or len(amounts) // 2 > input.ndim:
        raise RuntimeError(
            f"pad: got {len(amounts)} amounts for a tensor with {input.ndim} dimensions; expected two for each padded dimension"
        )
    pads = [(0, 0)] * (input.ndim - len(amounts) // 2) + list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    if any(n + a + b < 0 for n, (a, b) in zip(input.shape, pads, strict=True)):
        raise RuntimeError(f"pad: pad {tuple(pad)} leaves a negative size of an input with shape {tuple(input.shape)}")
    x = _cropped(input, pads)
    grow = tuple((max(a, 0), max(b, 0)) for a, b in pads)
    if mode == "constant":
        number = 0.0 if value is None else value
        return apply(pad_, (x,), (grow, float(number) if x.dtype.is_floating_point else int(number)))
    if mode not in ("reflect", "replicate", "circular"):
        raise RuntimeError(f"pad: mode '{mode}'; expected 'constant', 'reflect', 'replicate' or 'circular'")
    for d, (a, b) in enumerate(grow):
        if not (a or b):
            continue
        n = x.shape[d]
        limit = {"reflect": n - 1, "circular": n, "replicate": math.inf if n else 0}[mode]
        if max(a, b) > limit:
            raise RuntimeError(f"pad: padding {(a, b)} at dimension {d} of size {n}; expected at most {limit} for mode '{mode}'")
        before, after = _border(x, d, a, b, mode)
        x = cat([t for t in (*before, x, *after)], d)
    return x


def _border(x: Tensor, d: int, a: int, b: int, mode: str) -> tuple[list[Tensor], list[Tensor]]:
    n = x.shape[d]
    if mode == "replicate":
        shape = tuple(x.shape)
        edges = [(0, a), (n - 1, b)]
        parts = [[expand(x.narrow(d, at, 1), (*shape[:d], count, *shape[d + 1 :]))] if count else [] for at, count in edges]
    elif mode == "reflect":
        parts = [[flip(x.narrow(d, 1, a), d)] if a else [], [flip(x.narrow(d, n - 1 - b, b), d)] if b else []]
    else:
        parts = [[x.narrow(d, n - a, a)] if a else [], [x.narrow(d, 0, b)] if b else []]
    return parts[0], parts[1]


def _roll_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], shifts: tuple[int, ...], dims: tuple[int, ...]) -> Expr:
    source = list(out)
    for s, d in zip(shifts, dims, strict=True):
        n = specs[0].shape[d]
        source[d] = index.mod(source[d] + (-s) % n, n) if n else source[d]
    return load(0, tuple(source))


roll_: Op = define(
    "roll",
    ("x",),
    lambda x, shifts, dims: np.roll(x, shifts, dims),
    lambda x, shifts, dims: x,
    Select(_roll_lower),
    ("shifts", "dims"),
    {"x": lambda g, shifts, dims: apply(roll_, (g,), (tuple(-s for s in shifts), dims))},
    lambda: [((_rng.standard_normal((3, 4)),), a) for a in (((1,), (0,)), ((-1, 6), (0, 1)))],
)


@public()
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Elements moved by `shifts` along `dims`, round the end; without `dims`, in the flattened tensor."""
    moved = tuple(shifts) if isinstance(shifts, tuple | list) else (int(shifts),)
    if dims is None:
        return reshape(apply(roll_, (reshape(input, (-1,)),), ((sum(moved),), (0,))), tuple(input.shape))
    along = tuple(normalize_dim("roll", d, input.ndim) for d in (dims if isinstance(dims, tuple | list) else (dims,)))
    if len(along) != len(moved):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(moved)}, dims:{len(along)}")
    return apply(roll_, (input,), (moved, along)) if input.ndim else input.clone()


flip_: Op = define(
    "flip",
    ("x",),
    lambda x, dims: np.ascontiguousarray(np.flip(x, dims)).reshape(x.shape),
    lambda x, dims: x,
    Select(
        lambda out, load, specs, dims: load(
            0, tuple(i * -1 + (n - 1) if d in dims else i for d, (i, n) in enumerate(zip(out, specs[0].shape, strict=True)))
        )
    ),
    ("dims",),
    {"x": lambda g, dims: apply(flip_, (g,), (dims,))},
    lambda: [((_rng.standard_normal((3, 4)),), (d,)) for d in ((0,), (0, 1))],
)


@public()
def flip(input: Tensor, *dims: Any, **named: Any) -> Tensor:
    """The order of elements reversed along `dims`, copied."""
    if "dims" in named:
        dims = (named["dims"],)
    listed = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    along = tuple(sorted(normalize_dim("flip", d, input.ndim) for d in listed))
    if len(set(along)) != len(along):
        raise RuntimeError(f"flip: dim {next(d for d in along if along.count(d) > 1)} appears multiple times in the list of dims")
    return apply(flip_, (input,), (along if input.ndim else (),))


@public()
def fliplr(input: Tensor) -> Tensor:
    """Columns in reverse order."""
    if input.ndim < 2:
        raise RuntimeError("fliplr: Input must be >= 2-d.")
    return flip(input, 1)


@public()
def flipud(input: Tensor) -> Tensor:
    """Rows in reverse order."""
    if input.ndim < 1:
        raise RuntimeError("flipud: Input must be >= 1-d.")
    return flip(input, 0)


@public()
def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Turned by k quarters from dims[0] towards dims[1]."""
    if len(dims) != 2:
        raise RuntimeError(f"rot90: expected total rotation dims == 2, but got dims = {len(dims)}")
    a, b = (normalize_dim("rot90", d, input.ndim) for d in dims)
    return (input.clone(), flip(input, b).transpose(a, b), flip(input, a, b), flip(input.transpose(a, b), b))[k % 4]


# ------------------------------------------------------------------------------------------------ triangles and diagonals


def _triangle_np(x: Any, diagonal: int, upper: bool) -> Any:
    return (np.triu if upper else np.tril)(x, diagonal)


def _triangle_spec(x: Spec, diagonal: int, upper: bool) -> Spec:
    if x.ndim < 2:
        raise RuntimeError(f"{'triu' if upper else 'tril'}: input tensor must have at least 2 dimensions; got shape {x.shape}")
    return x


def _triangle_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], diagonal: int, upper: bool) -> Expr:
    i, j = out[-2:]
    return load(0, out, mask=(("ge", j - i, diagonal) if upper else ("ge", i - j, -diagonal),))


triangle_: Op = define(
    "triangle",
    ("x",),
    _triangle_np,
    _triangle_spec,
    Select(_triangle_lower),
    ("diagonal", "upper"),
    {"x": lambda g, diagonal, upper: apply(triangle_, (g,), (diagonal, upper))},
    lambda: [((_rng.standard_normal((2, 3, 4)),), (k, u)) for k, u in ((0, False), (-1, True), (1, False))],
    doc="The elements on one side of a diagonal of the last two dimensions, zeros on the other.",
)


@public()
def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two dimensions: elements with column - row <= diagonal, zeros elsewhere."""
    _triangle_spec(input._meta.spec, diagonal, False)
    return apply(triangle_, (input,), (int(diagonal), False))


@public()
def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two dimensions: elements with column - row >= diagonal, zeros elsewhere."""
    _triangle_spec(input._meta.spec, diagonal, True)
    return apply(triangle_, (input,), (int(diagonal), True))


METHODS["tril_"] = lambda self, diagonal=0: inplace(triangle_, self, (self,), (int(diagonal), False))
METHODS["triu_"] = lambda self, diagonal=0: inplace(triangle_, self, (self,), (int(diagonal), True))


@public(method=False)
def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None) -> Tensor:
    """(2, n) positions of the lower triangle of a row x col matrix, row by row."""
    return wrap(np.stack(np.tril_indices(row, offset, col)).astype((dtype or dtypes.int64).np))


@public(method=False)
def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None) -> Tensor:
    """(2, n) positions of the upper triangle of a row x col matrix, row by row."""
    return wrap(np.stack(np.triu_indices(row, offset, col)).astype((dtype or dtypes.int64).np))


def _diagonal_np(x: Any, offset: int) -> Any:
    start = x[..., max(offset, 0) :] if offset >= 0 else x[..., -offset:, :]
    n = max(0, min(start.shape[-2:]))
    return np.lib.stride_tricks.as_strided(start, (*x.shape[:-2], n), (*x.strides[:-2], x.strides[-2] + x.strides[-1]))


def _diagonal_size(shape: tuple[int, ...], offset: int) -> int:
    return max(0, min(shape[-2] + min(offset, 0), shape[-1] - max(offset, 0)))


diagonal_: Op = define(
    "diagonal",
    ("x",),
    _diagonal_np,
    lambda x, offset: Spec((*x.shape[:-2], _diagonal_size(x.shape, offset)), x.dtype, x.device),
    View(lambda out, in_shape, offset: (*out[:-1], out[-1] - min(offset, 0), out[-1] + max(offset, 0))),
    ("offset",),
    {"x": lambda g, x_spec, offset: apply(diagonal_embed_, (g,), (x_spec.shape[-2:], offset))},
    lambda: [((_rng.standard_normal((2, 3, 4)),), (k,)) for k in (0, 1, -1)],
    doc="The diagonal of the last two dimensions, as a view.",
)


def _embed_np(x: Any, shape: tuple[int, int], offset: int) -> Any:
    out = np.zeros((*x.shape[:-1], *shape), x.dtype)
    _diagonal_np(out, offset)[...] = x
    return out


diagonal_embed_: Op = define(
    "diagonal_embed",
    ("x",),
    _embed_np,
    lambda x, shape, offset: Spec((*x.shape[:-1], *shape), x.dtype, x.device),
    Select(
        lambda out, load, specs, shape, offset: load(0, (*out[:-2], out[-1] - max(offset, 0)), mask=(("eq", out[-1] - out[-2], offset),))
    ),
    ("shape", "offset"),
    {"x": lambda g, offset: apply(diagonal_, (g,), (offset,))},
    lambda: [((_rng.standard_normal((2, 3)),), a) for a in (((3, 3), 0), ((3, 4), 1), ((4, 3), -1))],
    doc="Zeros with the input on a diagonal of two new last dimensions: the gradient of diagonal.",
)


@public()
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of the diagonal of two dimensions, which becomes the last dimension."""
    if input.ndim < 2:
        raise IndexError(f"diagonal: input has shape {tuple(input.shape)}; expected at least two dimensions")
    a, b = normalize_dim("diagonal", dim1, input.ndim), normalize_dim("diagonal", dim2, input.ndim)
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    order = [d for d in range(input.ndim) if d not in (a, b)] + [a, b]
    return apply(diagonal_, (input if order == list(range(input.ndim)) else permute(input, order),), (int(offset),))


@public()
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A square matrix with the vector on its diagonal, or the diagonal of a matrix, copied."""
    if input.ndim == 1:
        n = input.shape[0] + abs(diagonal)
        return apply(diagonal_embed_, (input,), ((n, n), int(diagonal)))
    if input.ndim == 2:
        return apply(diagonal_, (input,), (int(diagonal),)).clone()
    raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")


@public()
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """The last dimension laid on the diagonal of two new ones at dim1 and dim2."""
    n = input.shape[-1] + abs(offset)
    if normalize_dim("diag_embed", dim1, input.ndim + 1) == normalize_dim("diag_embed", dim2, input.ndim + 1):
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    return movedim(apply(diagonal_embed_, (input,), ((n, n), int(offset))), (-2, -1), (dim1, dim2))


@public()
def trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix."""
    if input.ndim != 2:
        raise RuntimeError(f"trace: expected a matrix, but got tensor with dim {input.ndim}")
    return apply(diagonal_, (input,), (0,)).sum()


# ------------------------------------------------------------------------------------------------ repetition


@public("repeat", function=False)
def repeat(self: Tensor, *sizes: Any) -> Tensor:
    """The tensor laid out `sizes` times along each dimension; more sizes than dimensions add leading ones."""
    counts = tuple(int(n) for n in (sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes))
    if len(counts) < self.ndim:
        raise RuntimeError(
            f"repeat: Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor; got {counts} for "
            f"shape {tuple(self.shape)}"
        )
    shape = (1,) * (len(counts) - self.ndim) + tuple(self.shape)
    apart = reshape(self, tuple(m for n in shape for m in (1, n)))
    spread = expand(apart, tuple(m for c, n in zip(counts, shape, strict=True) for m in (c, n)))
    out = reshape(spread, tuple(c * n for c, n in zip(counts, shape, strict=True)))
    # with one element, or nothing to repeat, the reshape above is a view
    return out.clone() if self.numel() <= 1 or all(c == 1 for c in counts) else out


@public()
def tile(input: Tensor, *dims: Any) -> Tensor:
    """`repeat` that adds missing leading counts of 1."""
    counts = tuple(dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims)
    return repeat(input, (1,) * (input.ndim - len(counts)) + counts)


@public()
def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Each element (or slice along `dim`) repeated `repeats` times in place; a tensor gives each its own number."""
    if dim is None:
        input, dim = reshape(input, (-1,)), 0
    d = normalize_dim("repeat_interleave", dim, input.ndim)
    if isinstance(repeats, Tensor):
        counts = repeats.numpy()
        if counts.size == 1:
            repeats = int(counts.reshape(()))
        else:
            if counts.shape != (input.shape[d],):
                raise RuntimeError(
                    f"repeat_interleave: repeats must have the same size as input along dim, but got repeats.size(0) = {counts.size} "
                    f"and input.size({d}) = {input.shape[d]}"
                )
            return input.index_select(d, wrap(np.repeat(np.arange(input.shape[d]), counts)).to(input.device))
    shape = tuple(input.shape)
    spread = expand(unsqueeze(input, d + 1), (*shape[: d + 1], int(repeats), *shape[d + 1 :]))
    out = reshape(spread, (*shape[:d], shape[d] * int(repeats), *shape[d + 1 :]))
    return out.clone() if input.numel() <= 1 else out


@public(method=False)
def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Views of vectors spread over the grid that they span; indexing "xy" exchanges the first two dimensions."""
    listed = list(tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors)
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f'meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}')
    listed = [reshape(t, (1,)) if t.ndim == 0 else t for t in listed]
    swap = indexing == "xy" and len(listed) > 1
    if swap:
        listed[0], listed[1] = listed[1], listed[0]
    shape = tuple(t.shape[0] for t in listed)
    out = [expand(reshape(t, (1,) * k + (-1,) + (1,) * (len(listed) - k - 1)), shape) for k, t in enumerate(listed)]
    if swap:
        out[0], out[1] = out[1], out[0]
    return tuple(out)


@public(method=False)
def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """Views of all tensors in their common shape."""
    listed = list(tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors)
    shape = np.broadcast_shapes(*[tuple(t.shape) for t in listed])
    return tuple(expand(t, shape) for t in listed)


# ------------------------------------------------------------------------------------------------ windows and classes


def _unfold_np(x: Any, dim: int, size: int, step: int) -> Any:
    count = (x.shape[dim] - size) // step + 1
    return np.lib.stride_tricks.as_strided(
        x,
        (*x.shape[:dim], count, *x.shape[dim + 1 :], size),
        (*x.strides[:dim], x.strides[dim] * step, *x.strides[dim + 1 :], x.strides[dim]),
    )


def _unfold_spec(x: Spec, dim: int, size: int, step: int) -> Spec:
    if not 0 <= size <= x.shape[dim] or step <= 0:
        raise RuntimeError(
            f"unfold: size {size} and step {step} for dimension {dim} of size {x.shape[dim]}; expected a size that fits and a "
            "positive step"
        )
    return Spec((*x.shape[:dim], (x.shape[dim] - size) // step + 1, *x.shape[dim + 1 :], size), x.dtype, x.device)


def _unfold_grad(g: Tensor, x_spec: Spec, dim: int, size: int, step: int) -> Tensor:
    """Each window adds its elements back to where they came from."""
    count = (x_spec.shape[dim] - size) // step + 1
    places = positions((count, size), (step, 1), 0, g.device)
    flat = reshape(movedim(g, -1, dim + 1), (*x_spec.shape[:dim], count * size, *x_spec.shape[dim + 1 :]))
    return apply(index_sum_, (flat, places), (x_spec.shape[dim], dim))


unfold_: Op = define(
    "unfold",
    ("x",),
    _unfold_np,
    _unfold_spec,
    View(lambda out, in_shape, dim, size, step: _with(out[:-1], dim, out[dim] * step + out[-1])),
    ("dim", "size", "step"),
    {"x": _unfold_grad},
    lambda: [((_rng.standard_normal((2, 7)),), (1, 3, 2)), ((_rng.standard_normal((5, 2)),), (0, 2, 1))],
    doc="Windows of `size` elements every `step` along `dim`, as a view with the window as last dimension.",
)


@public(function=False)
def unfold(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """A view of the windows of `size` elements every `step` along a dimension; the window is the last dimension."""
    d = normalize_dim("unfold", dimension, self.ndim)
    if not self.ndim:
        return unfold(reshape(self, (1,)), 0, size, step).squeeze(0)
    _unfold_spec(self._meta.spec, d, size, step)
    return apply(unfold_, (self,), (d, int(size), int(step)))


def _one_hot_np(x: Any, num_classes: int) -> Any:
    if x.dtype.kind not in "iu":
        raise TypeError("not integers")
    check_bounds("one_hot", (x,), (num_classes,))
    return (x[..., None] == np.arange(num_classes)).astype(np.int64)


def _one_hot_spec(x: Spec, num_classes: int) -> Spec:
    if x.dtype.category != 1:
        raise RuntimeError(f"one_hot is only applicable to index tensors of an integer dtype; got {x.dtype.name}")
    return Spec((*x.shape, num_classes), dtypes.int64, x.device)


def _one_hot_lower(out: tuple[Index, ...], load: Any, specs: Sequence[Spec], num_classes: int) -> Expr:
    label = load(0, out[:-1])
    wide = label if label.dtype is dtypes.int64 else expr("cast", (label,), dtypes.int64)
    return expr("cast", (call("eq", wide, position(out[-1])),), dtypes.int64)


one_hot_: Op = define(
    "one_hot",
    ("x",),
    _one_hot_np,
    _one_hot_spec,
    Select(_one_hot_lower),
    ("num_classes",),
    samples=lambda: [((np.array([[0, 2], [3, 1]]),), (4,))],
    check=bounds("one_hot", lambda shapes, attrs: [(0, 0, attrs[0], len(shapes[0]))]),
)


@public(method=False)
def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """(…) int64 classes -> (…, num_classes) int64 with a 1 at the class; -1 takes the largest class + 1.

    Raises IndexError for a class outside [0, num_classes).
    """
    if num_classes == -1:
        if tensor.numel() == 0:
            raise RuntimeError("one_hot: Can not infer total number of classes from empty tensor.")
        num_classes = int(tensor.max().item()) + 1
    return apply(one_hot_, (tensor,), (int(num_classes),))
