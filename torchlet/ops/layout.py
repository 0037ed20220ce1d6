"""Rarer ways to see and change a layout: as_strided, views in place, the splitting and stacking families, writing into a region."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, index
from torchlet.autograd import force
from torchlet.index import Index
from torchlet.op import OPS, STATE, Op, View, apply, define
from torchlet.ops.arrange import cat, hstack, stack, vstack
from torchlet.ops.create import arange_, positions
from torchlet.ops.index import index_sum_
from torchlet.ops.pointwise import cast
from torchlet.ops.public import FUNCTIONS, METHODS, Draws, public
from torchlet.ops.view import ALL, basic, reshape, split
from torchlet.spec import Spec, contiguous_strides, normalize_dim
from torchlet.tensor import Tensor, share, wrap

_rng = Draws(10)

# ------------------------------------------------------------------------------------------------ as_strided


def _strided_spec(x: Spec, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Spec:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and (last >= x.numel or offset < 0 or any(s < 0 for s in stride)):
        raise RuntimeError(
            f"as_strided: size {list(size)}, stride {list(stride)} and storage offset {offset} need {last + 1} elements; the storage has {x.numel}"
        )
    return Spec(size, x.dtype, x.device)


def _strided_np(x: Any, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Any:
    _strided_spec(Spec(x.shape, dtypes.from_numpy(x.dtype)), size, stride, offset)
    return np.lib.stride_tricks.as_strided(np.reshape(x, -1)[offset:], size, tuple(s * x.itemsize for s in stride))


def _strided_index(
    out: tuple[Index, ...], in_shape: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> tuple[Index, ...]:
    position = Index((), offset)
    for i, s in zip(out, stride, strict=True):
        position = position + i * s
    return index.unflatten(position, in_shape)


def _strided_grad(g: Tensor, x_spec: Spec, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Tensor:
    """Each element adds its gradient where it came from, which may be one place for many."""
    places = positions(size, stride, offset, g.device)
    return reshape(apply(index_sum_, (reshape(g, (-1,)), places), (x_spec.numel, 0)), x_spec.shape)


as_strided_: Op = define(
    "as_strided",
    ("x",),
    _strided_np,
    _strided_spec,
    View(_strided_index),
    ("size", "stride", "offset"),
    {"x": _strided_grad},
    lambda: [((_rng.standard_normal((3, 4)),), a) for a in (((2, 3), (4, 1), 1), ((3, 3), (1, 1), 2))],
    doc="A contiguous tensor's memory seen with other sizes and strides (in elements).",
)


@public()
def as_strided(input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """The memory below the tensor with the given sizes and strides, in elements. Raises RuntimeError where it would reach outside."""
    shape, steps = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    if len(shape) != len(steps):
        raise RuntimeError("as_strided: mismatch in length of strides and shape")
    if input._meta.contiguous and (input._base is None or storage_offset is None):
        return apply(as_strided_, (input,), (shape, steps, int(storage_offset or 0)))
    if input._meta.requires_grad:
        raise RuntimeError(
            "as_strided: gradients flow through it only for tensors that are contiguous and no view\nhelp: call .contiguous() first"
        )
    start = int(storage_offset if storage_offset is not None else input.storage_offset())
    array = force(input)
    while isinstance(array.base, np.ndarray):
        array = array.base
    out = wrap(_strided_np(array, shape, steps, start), store=input._store)
    share(input)
    return out


@public("as_strided_", function=False)
def as_strided_in_place(self: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """The tensor becomes another view of its memory."""
    return _become(self, as_strided(self, size, stride, storage_offset), "as_strided_")  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ views in place


def _become(self: Tensor, made: Tensor, name: str) -> Tensor:
    """`self` takes over the layout and the place on the tape of `made`, a view of it."""
    if made is self:
        return self
    run = STATE.run
    force(made)
    if run is not None:  # its description changes under what was recorded
        run.flush(name)
    if self._base is not None:  # a view stays one, of the same base
        self._base = made._base
    self._np, self._meta, self._ptr = made._np, made._meta.replace(requires_grad=self._meta.requires_grad), 0
    if made._node is not None:
        self._node, self._out = made._node, made._out
    return self


def _in_place(name: str, function: Callable[..., Tensor]) -> None:
    def f(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._meta.requires_grad and self.is_leaf and STATE.grad:
            raise RuntimeError(
                f"{name}: a leaf Variable that requires grad is being used in an in-place operation.\nhelp: wrap it in `with torchlet.no_grad():`"
            )
        return _become(self, function(self, *args, **kwargs), name)

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"`{name[:-1]}` in place: the tensor itself is seen in another layout."
    METHODS[name] = f


for _name in ("unsqueeze", "squeeze", "transpose", "swapaxes", "swapdims", "t"):
    _in_place(_name + "_", METHODS[_name])


@public("resize_", function=False)
def resize_(self: Tensor, *size: Any, memory_format: Any = None) -> Tensor:
    """Give the tensor another shape in place; it keeps its first elements, new ones are 0. Raises RuntimeError if it requires grad."""
    shape = tuple(size[0]) if len(size) == 1 and isinstance(size[0], tuple | list) else tuple(size)
    if self._meta.requires_grad:
        raise RuntimeError("cannot resize variables that require grad")
    flat = force(self).reshape(-1)
    count = math.prod(shape)
    array = flat[:count] if count <= flat.size else np.concatenate((flat, np.zeros(count - flat.size, flat.dtype)))
    return METHODS["set_"](self, wrap(array.reshape(shape)))  # type: ignore[no-any-return]


@public("set_", function=False)
def set_(self: Tensor, source: Tensor | None = None) -> Tensor:
    """Share the memory and take the shape of `source` (of an empty tensor if None)."""
    other = wrap(np.zeros(0, self.dtype.np)) if source is None else source
    if other.dtype is not self.dtype:
        raise RuntimeError(f"set_: the source has dtype {other.dtype.name}; expected {self.dtype.name}")
    self.data = other  # type: ignore[misc]
    return self


@public("resize_as_", function=False)
def resize_as_(self: Tensor, other: Tensor, memory_format: Any = None) -> Tensor:
    """`resize_` to the shape of another tensor."""
    return resize_(self, tuple(other.shape))


METHODS["resize"] = lambda self, *size: reshape(self, *size)
METHODS["resize_as"] = lambda self, other: reshape(self, tuple(other.shape))


def _view(self: Tensor, *shape: Any) -> Tensor:
    """The same memory in another shape (one size may be -1), or, given a dtype, as other elements.

    Raises RuntimeError when the sizes do not fit or the memory layout needs a copy (use `reshape`).
    """
    if len(shape) == 1 and isinstance(shape[0], dtypes.dtype):
        return _as_dtype(self, shape[0])
    return _plain_view(self, *shape)


def _as_dtype(self: Tensor, to: dtypes.dtype) -> Tensor:
    a = force(self)
    if to.itemsize != self.dtype.itemsize and (not a.ndim or a.strides[-1] != a.itemsize or a.shape[-1] * a.itemsize % to.itemsize):
        raise RuntimeError(
            f"view: the last dimension of shape {list(a.shape)} cannot be seen as {to.name}; expected contiguous elements that fill whole ones"
        )
    share(self)
    return wrap(a.view(to.np), store=self._store)


_plain_view = METHODS["view"]
_view.__name__ = _view.__qualname__ = "view"
METHODS["view"] = _view

# ------------------------------------------------------------------------------------------------ splitting


@public()
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of nearly equal size (the first ones larger), or cut before each of the listed positions."""
    d = normalize_dim("tensor_split", dim, input.ndim)
    n = input.shape[d]
    given = indices_or_sections.tolist() if isinstance(indices_or_sections, Tensor) else indices_or_sections
    if isinstance(given, int):
        if given <= 0:
            raise RuntimeError(f"tensor_split expected a number of sections greater than 0, but got {given}")
        cuts = [k * (n // given) + min(k, n % given) for k in range(1, given)]
    else:
        cuts = list(given)
    edges = zip([0, *cuts], [*cuts, n], strict=True)
    return tuple(basic(input, (ALL,) * d + (("s", a, b, 1),)) for a, b in edges)


def _split_along(name: str, dim: int, least: int) -> None:
    def f(input: Tensor, indices_or_sections: Any) -> tuple[Tensor, ...]:
        if input.ndim < least:
            raise RuntimeError(
                f"{name} requires a tensor with at least {least} dimension(s), but got a tensor with {input.ndim} dimensions!"
            )
        d = 0 if name == "hsplit" and input.ndim == 1 else dim
        if isinstance(indices_or_sections, int) and input.shape[d] % indices_or_sections:
            raise RuntimeError(
                f"{name} attempted to split along dimension {d}, but the size of the dimension {input.shape[d]} is not divisible by the split_size {indices_or_sections}!"
            )
        return tensor_split(input, indices_or_sections, d)

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"`tensor_split` along dimension {dim}."
    public(name)(f)


_split_along("hsplit", 1, 1)
_split_along("vsplit", 0, 2)
_split_along("dsplit", 2, 3)


@public("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(input: Tensor, split_sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of the listed sizes."""
    return split(input, list(split_sizes), dim)


for _name in ("split", "chunk"):
    FUNCTIONS["unsafe_" + _name] = METHODS["unsafe_" + _name] = METHODS[_name]

# ------------------------------------------------------------------------------------------------ stacking


@public(method=False)
def atleast_3d(*tensors: Any) -> Any:
    """Tensors with at least three dimensions: (n) becomes (1, n, 1), (m, n) becomes (m, n, 1)."""
    listed = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    shapes: dict[int, Callable[[Any], tuple[int, ...]]] = {0: lambda s: (1, 1, 1), 1: lambda s: (1, s[0], 1), 2: lambda s: (*s, 1)}
    out = tuple(reshape(t, shapes[t.ndim](t.shape)) if t.ndim < 3 else t for t in listed)
    return out[0] if len(tensors) == 1 and isinstance(tensors[0], Tensor) else out


@public(method=False)
def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors behind each other, along dimension 2."""
    return cat(atleast_3d(list(tensors)), 2)


@public(method=False)
def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Vectors as columns, matrices side by side."""
    return hstack([reshape(t, (-1, 1)) if t.ndim <= 1 else t for t in tensors])


@public(method=False)
def block_diag(*tensors: Tensor) -> Tensor:
    """Matrices along the diagonal, zeros elsewhere."""
    blocks = [reshape(t, (1, -1)) if t.ndim < 2 else t for t in tensors]
    width = sum(b.shape[1] for b in blocks)
    rows, left = [], 0
    for b in blocks:
        rows.append(FUNCTIONS["pad"](b, (left, width - left - b.shape[1])))
        left += b.shape[1]
    return vstack(rows)


@public(method=False)
def cartesian_prod(*tensors: Tensor) -> Tensor:
    """(n₁ n₂ …, number of vectors): every combination of one element from each vector."""
    if len(tensors) == 1:
        return tensors[0]
    return stack([reshape(t, (-1,)) for t in FUNCTIONS["meshgrid"](*tensors)], 1)


@public(method=False)
def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """Every choice of r elements of a vector, in order."""
    n = input.shape[0]
    grid = np.stack(np.meshgrid(*[np.arange(n)] * r, indexing="ij"), -1).reshape(-1, r)
    rising = (np.diff(grid, axis=1) >= 0 if with_replacement else np.diff(grid, axis=1) > 0).all(1)
    return input[wrap(np.ascontiguousarray(grid[rising]))]


@public(method=False)
def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product."""
    rank = max(input.ndim, other.ndim)
    a, b = (reshape(t, (1,) * (rank - t.ndim) + tuple(t.shape)) for t in (input, other))
    spread = reshape(a, tuple(k for n in a.shape for k in (n, 1))) * reshape(b, tuple(k for n in b.shape for k in (1, n)))
    return reshape(spread, tuple(n * m for n, m in zip(a.shape, b.shape, strict=True)))


METHODS["kron"] = kron


@public()
def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """The flattened input on a diagonal."""
    return METHODS["diag"](reshape(input, (-1,)), offset)  # type: ignore[no-any-return]


@public("ravel")
def ravel(input: Tensor) -> Tensor:
    """The tensor as a vector: a view where the layout permits."""
    return reshape(input, (-1,)).contiguous()


@public("moveaxis")
def moveaxis(input: Tensor, source: Any, destination: Any) -> Tensor:
    """`movedim` under NumPy's name."""
    return METHODS["movedim"](input, source, destination)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ copies with a region replaced


def _with_region(name: str, region: Callable[..., Tensor], doc: str) -> None:
    def f(input: Tensor, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = input.clone()
        target = region(out, *args, **kwargs)
        if target.shape != src.shape:
            raise RuntimeError(
                f"expected src to have a size equal to the slice of self. src size = {list(src.shape)}, slice size = {list(target.shape)}"
            )
        target.copy_(src)
        return out

    f.__name__, f.__qualname__, f.__doc__ = name, name, doc
    public(name)(f)


def _slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    return basic(x, (ALL,) * normalize_dim("slice_scatter", dim, x.ndim) + (("s", start, end, step),))


_with_region("select_scatter", METHODS["select"], "A copy with the slice at `index` of `dim` replaced.")
_with_region("slice_scatter", _slice, "A copy with start:end:step of `dim` replaced.")
_with_region("diagonal_scatter", METHODS["diagonal"], "A copy with a diagonal replaced.")
_with_region("as_strided_scatter", as_strided, "A copy with what as_strided shows replaced.")


@public("fill_diagonal_", function=False)
def fill_diagonal_(self: Tensor, fill_value: float, wrap: bool = False) -> Tensor:
    """Overwrite the main diagonal with a number; `wrap` starts again below in tall matrices."""
    if self.ndim < 2:
        raise RuntimeError("dimensions must larger than 1")
    if self.ndim > 2:
        if len(set(self.shape)) > 1:
            raise RuntimeError("all dimensions of input must be of equal length")
        places = apply(arange_, (0, 1), (self.shape[0], dtypes.int64))
        self[(places,) * self.ndim] = fill_value
        return self
    METHODS["fill_"](METHODS["diagonal"](self), fill_value)
    if wrap:
        rows, columns = self.shape
        for start in range(columns + 1, rows, columns + 1):
            METHODS["fill_"](METHODS["diagonal"](basic(self, (("s", start, None, 1),))), fill_value)
    return self


def _copying(name: str) -> None:
    def f(*args: Any, **kwargs: Any) -> Tensor:
        return METHODS[name](*args, **kwargs).clone()  # type: ignore[no-any-return]

    f.__name__, f.__qualname__, f.__doc__ = name + "_copy", name + "_copy", f"A copy of what `{name}` shows."
    FUNCTIONS[name + "_copy"] = f


for _name in ("expand", "permute", "transpose", "squeeze", "unsqueeze", "select", "narrow", "view", "diagonal", "t", "alias", "detach"):
    if _name in METHODS:
        _copying(_name)
METHODS["narrow_copy"] = FUNCTIONS["narrow_copy"]

# ------------------------------------------------------------------------------------------------ positions


@public(method=False)
def unravel_index(indices: Tensor, shape: Any) -> tuple[Tensor, ...]:
    """Flat positions as coordinates in `shape`."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    indices = cast(indices, dtypes.int64)
    return tuple((indices // stride) % n for n, stride in zip(sizes, contiguous_strides(sizes), strict=True))


@public(method=False)
def empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """A tensor of zeros with the given strides in elements."""
    needed = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if math.prod(size) else 0
    flat = FUNCTIONS["zeros"](needed, dtype=dtype, device=device)
    out = as_strided(flat, size, stride)
    return out.requires_grad_() if requires_grad else out


@public(function=False)
def sum_to_size(self: Tensor, *size: Any) -> Tensor:
    """Sum over the dimensions along which `size` was broadcast."""
    shape = tuple(size[0]) if len(size) == 1 and isinstance(size[0], tuple | list) else tuple(size)
    if shape == self.shape:
        return self
    return apply(OPS["sum_to"], (self if self.dtype.has_gradient else cast(self, dtypes.int64),), (shape,))
