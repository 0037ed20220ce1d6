"""Operators that look at the same memory in another shape: view, expand, permute, basic indexing, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from torchlet import dtypes, errors, index
from torchlet.index import Index
from torchlet.op import OPS, Composite, Select, View, apply, define
from torchlet.ops.public import METHODS, Draws, public
from torchlet.spec import Spec, normalize_dim
from torchlet.tensor import Tensor

_rng = Draws(2)
Items = tuple[tuple[Any, ...], ...]  # ("i", position) | ("s", start, stop, step) | ("n",)


def infer_shape(op: str, shape: Sequence[int], count: int) -> tuple[int, ...]:
    """`shape` with its one -1 replaced so that it holds `count` elements. Raises RuntimeError where it cannot."""
    out = tuple([int(n) for n in shape])
    known = math.prod(n for n in out if n != -1)
    if out.count(-1) > 1:
        raise RuntimeError(f"{op}: only one dimension can be inferred; shape is {out}")
    if -1 in out:
        if known == 0 or count % known:
            raise RuntimeError(f"{op}: shape '{list(out)}' is invalid for input of size {count}")
        out = tuple(count // known if n == -1 else n for n in out)
    elif known != count:
        raise RuntimeError(f"{op}: shape '{list(out)}' is invalid for input of size {count}")
    return out


def _view_np(x: Any, shape: tuple[int, ...]) -> Any:
    return np.reshape(x, shape, copy=False)


def _view_spec(x: Spec, shape: tuple[int, ...]) -> Spec:
    infer_shape("view", shape, x.numel)
    raise_or = Spec(shape, x.dtype, x.device)
    return raise_or


view_ = define(
    "view", ("x",), _view_np, _view_spec, View(lambda out, in_shape, shape: index.unflatten(index.flatten(out, shape), in_shape)), ("shape",),
    {"x": lambda g, x_spec: reshape(g, x_spec.shape)}, lambda: [((_rng.standard_normal((3, 4)),), (s,)) for s in ((12,), (2, 6), (2, 3, 2))],
)


def view_strides(shape: tuple[int, ...], strides: tuple[int, ...], new_shape: tuple[int, ...]) -> bool:
    """True if memory laid out by (shape, strides) can be seen in `new_shape` without a copy."""
    dummy = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), shape, strides)
    try:
        np.reshape(dummy, new_shape, copy=False)
    except ValueError:
        return False
    return True


@public(function=False)
def view(self: Tensor, *shape: Any) -> Tensor:
    """The same memory in another shape (one size may be -1), or, given a dtype of the same size, as other elements.

    Raises RuntimeError when the sizes do not fit or the memory layout needs a copy (use `reshape`).
    """
    target = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    m = self._meta
    new_shape = infer_shape("view", target, m.numel)
    if not m.contiguous and not view_strides(m.shape, m.strides, new_shape):
        raise RuntimeError(
            f"view: view size is not compatible with input tensor's size and stride (at least one dimension spans across two contiguous subspaces): "
            f"shape {tuple(m.shape)}, strides {m.strides}; expected a layout that {list(new_shape)} can share\nhelp: use .reshape(...) instead"
        )
    return apply(view_, (self,), (new_shape,))


METHODS["view_as"] = lambda self, other: view(self, tuple(other.shape))


@public()
def reshape(input: Tensor, *shape: Any) -> Tensor:
    """A view in another shape where the layout permits, else a copy."""
    target = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    m = input._meta
    new_shape = infer_shape("reshape", target, m.numel)
    if not m.contiguous and not view_strides(m.shape, m.strides, new_shape):
        input = contiguous(input)
    return apply(view_, (input,), (new_shape,))


METHODS["reshape_as"] = lambda self, other: reshape(self, tuple(other.shape))


@public(function=False)
def contiguous(self: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor itself if its elements lie in row-major order, else a copy that does."""
    return self if self._meta.contiguous else apply(OPS["clone"], (self,))


def _expand_index(out: tuple[Index, ...], in_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Index, ...]:
    tail = out[len(shape) - len(in_shape):]
    return tuple(index.ZERO if n == 1 else i for i, n in zip(tail, in_shape, strict=True))


def _expand_spec(x: Spec, shape: tuple[int, ...]) -> Spec:
    lead = len(shape) - len(x.shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(x.shape, shape[lead:], strict=True)):
        raise RuntimeError(errors.message("expand", f"target sizes {list(shape)} for a tensor of shape {list(x.shape)}", "the sizes to match at non-singleton dimensions"))
    return Spec(shape, x.dtype, x.device)


expand_ = define(
    "expand", ("x",), lambda x, shape: np.lib.stride_tricks.as_strided(x, shape, (0,) * (len(shape) - x.ndim) + tuple(0 if n == 1 and m != 1 else s for n, m, s in zip(x.shape, shape[len(shape) - x.ndim:], x.strides, strict=True))),
    _expand_spec, View(_expand_index), ("shape",), {"x": lambda g, x_spec: apply(OPS["sum_to"], (g,), (x_spec.shape,))},
    lambda: [((_rng.standard_normal((3, 1)),), (s,)) for s in ((3, 4), (2, 3, 5))],
)


@public(function=False)
def expand(self: Tensor, *shape: Any, size: Sequence[int] | None = None) -> Tensor:
    """A view in which size-1 dimensions repeat; -1 keeps a size. Raises RuntimeError where a size does not fit."""
    target = tuple(size if size is not None else shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)
    lead = len(target) - self.ndim
    if lead < 0:
        raise RuntimeError(f"expand: the number of sizes provided ({len(target)}) must be greater or equal to the number of dimensions in the tensor ({self.ndim})")
    target = tuple([self._meta.shape[i - lead] if n == -1 and i >= lead else int(n) for i, n in enumerate(target)])
    if target == self._meta.shape:
        return self
    _expand_spec(self._meta.spec, target)
    return apply(expand_, (self,), (target,))


METHODS["expand_as"] = lambda self, other: expand(self, tuple(other.shape))


@public()
def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """`input` expanded to `size`."""
    return expand(input, tuple(size))


def _permute_index(out: tuple[Index, ...], in_shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[Index, ...]:
    where = {d: i for i, d in enumerate(dims)}
    return tuple(out[where[d]] for d in range(len(in_shape)))


def _inverse(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(dims)), key=dims.__getitem__))


permute_ = define(
    "permute", ("x",), lambda x, dims: x.transpose(dims), lambda x, dims: Spec(tuple(x.shape[d] for d in dims), x.dtype, x.device), View(_permute_index), ("dims",),
    {"x": lambda g, dims: apply(permute_, (g,), (_inverse(dims),))}, lambda: [((_rng.standard_normal((2, 3, 4)),), (d,)) for d in ((2, 0, 1), (1, 0, 2))],
)


@public()
def permute(input: Tensor, *dims: Any) -> Tensor:
    """The dimensions in another order. Raises RuntimeError unless `dims` names each once."""
    listed = tuple(dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims)
    order = tuple([normalize_dim("permute", d, input.ndim) for d in listed])
    if sorted(order) != list(range(input.ndim)):
        raise RuntimeError(errors.message("permute", f"dims {listed} for a tensor with {input.ndim} dimensions", "each dimension once"))
    return apply(permute_, (input,), (order,))


@public("transpose", "swapaxes", "swapdims")
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged."""
    exchanged = _known_exchange if dim0.__class__ is dim1.__class__ is int else _exchanged
    return apply(permute_, (input,), (exchanged(dim0, dim1, len(input._meta.shape)),))


def _exchanged(dim0: int, dim1: int, ndim: int) -> tuple[int, ...]:
    a, b = normalize_dim("transpose", dim0, ndim), normalize_dim("transpose", dim1, ndim)
    order = list(range(ndim))
    if order:
        order[a], order[b] = order[b], order[a]
    return tuple(order)


_known_exchange = lru_cache(maxsize=256)(_exchanged)  # a model asks for the same few in every call


@public()
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and numbers as they are. Raises RuntimeError above two dimensions."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return apply(permute_, (input,), ((1, 0),)) if input.ndim == 2 else input


METHODS["T"] = property(lambda self: apply(permute_, (self,), (tuple(reversed(range(self.ndim))),)), doc="The tensor with its dimensions reversed.")
METHODS["mT"] = property(lambda self: transpose(self, -2, -1), doc="The last two dimensions exchanged.")
METHODS["H"] = METHODS["T"]


@public()
def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions moved to other places, the others in their order."""
    src = [normalize_dim("movedim", d, input.ndim) for d in ([source] if isinstance(source, int) else source)]
    dst = [normalize_dim("movedim", d, input.ndim) for d in ([destination] if isinstance(destination, int) else destination)]
    if len(src) != len(dst) or len(set(src)) != len(src) or len(set(dst)) != len(dst):
        raise RuntimeError(f"movedim: source {source} and destination {destination}; expected as many dims in both, none of them repeated")
    order = [d for d in range(input.ndim) if d not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return apply(permute_, (input,), (tuple(order),))


METHODS["moveaxis"] = movedim

# ------------------------------------------------------------------------------------------------ basic indexing


def _key(items: Items) -> tuple[Any, ...]:
    return tuple(it[1] if it[0] == "i" else slice(*it[1:]) if it[0] == "s" else None for it in items)


def _basic_spec(x: Spec, items: Items) -> Spec:
    shape, d = [], 0
    for it in items:
        if it[0] == "n":
            shape.append(1)
            continue
        if d >= x.ndim:
            raise IndexError(f"too many indices for tensor of dimension {x.ndim}")
        if it[0] == "s":
            shape.append(len(range(*slice(*it[1:]).indices(x.shape[d]))))
        elif not -x.shape[d] <= it[1] < x.shape[d]:
            raise IndexError(f"index {it[1]} is out of bounds for dimension {d} with size {x.shape[d]}")
        d += 1
    return Spec(tuple(shape) + x.shape[d:], x.dtype, x.device)


def _basic_index(out: tuple[Index, ...], in_shape: tuple[int, ...], items: Items) -> tuple[Index, ...]:
    source: list[Index] = []
    o = 0
    for it in items:
        if it[0] == "n":
            o += 1
        elif it[0] == "i":
            source.append(Index((), it[1] % in_shape[len(source)]))
        else:
            start, _, step = slice(*it[1:]).indices(in_shape[len(source)])
            source.append(out[o] * step + start)
            o += 1
    return tuple(source) + out[o:]


def _samples_basic() -> list[Any]:
    x = _rng.standard_normal((4, 5, 6))
    return [((x,), (items,)) for items in ((("i", 1),), (("s", 1, 4, 2), ("n",), ("i", -1)), (("s", None, None, None), ("s", 2, 5, 1)))]


index_basic_ = define(
    "index_basic", ("x",), lambda x, items: x[(*_key(items), ...)], _basic_spec, View(_basic_index), ("items",),
    {"x": lambda g, x_spec, items: apply(embed_, (g,), (x_spec.shape, items))}, _samples_basic,
)


def _embed_np(g: Any, shape: tuple[int, ...], items: Items) -> Any:
    out = np.zeros(shape, g.dtype)
    out[_key(items)] = g
    return out


def _embed_lower(out: tuple[Index, ...], load: Any, specs: Any, shape: tuple[int, ...], items: Items) -> Any:
    """Out of the region: 0. Inside: the element whose slice position this is."""
    conditions, source, d = [], [], 0
    for it in items:
        if it[0] == "n":
            source.append(index.ZERO)
            continue
        n = shape[d]
        i = out[d]
        if it[0] == "i":
            conditions.append(("eq", i, it[1] % n))
        else:
            start, stop, step = slice(*it[1:]).indices(n)
            if start > 0:
                conditions.append(("ge", i, start))
            count = len(range(start, stop, step))
            if start + (count - 1) * step + 1 < n:
                conditions.append(("lt", i, start + count * step))
            if step > 1:
                conditions.append(("every", i - start, step))
            source.append(index.floordiv(i - start, step) if step > 1 else i - start)
        d += 1
    return load(0, tuple(source) + out[d:], mask=conditions)


embed_ = define(
    "embed", ("x",), _embed_np, lambda x, shape, items: Spec(shape, x.dtype, x.device), Select(_embed_lower), ("shape", "items"),
    {"x": lambda g, items: apply(index_basic_, (g,), (items,))},
    lambda: [((_rng.standard_normal(s),), ((4, 5, 6), items)) for s, items in (((5, 6), (("i", 1),)), ((2, 1, 6), (("s", 1, 4, 2), ("n",), ("i", 2))))],
    doc="Zeros of `shape` with the input at the basic-index region `items`: the gradient of index_basic.",
)


def basic(x: Tensor, items: Items) -> Tensor:
    """Index with normalised items."""
    _basic_spec(x._meta.spec, items)
    return apply(index_basic_, (x,), (items,))


ALL: tuple[Any, ...] = ("s", None, None, None)


def unsqueeze_dims(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Size-1 dimensions inserted so that they stand at `dims` of the result (sorted, non-negative)."""
    if not dims:
        return x
    return apply(index_basic_, (x,), (tuple([("n",) if i in dims else ALL for i in range(x.ndim + len(dims))]),))


@public()
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A size-1 dimension inserted at `dim`."""
    return unsqueeze_dims(input, (normalize_dim("unsqueeze", dim, input.ndim + 1),))


@public()
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Size-1 dimensions removed: all, or those among `dim`."""
    listed = range(input.ndim) if dim is None else [normalize_dim("squeeze", d, input.ndim) for d in ([dim] if isinstance(dim, int) else dim)]
    gone = [d for d in listed if input.ndim and input._meta.shape[d] == 1]
    return apply(index_basic_, (input,), (tuple([("i", 0) if d in gone else ALL for d in range(input.ndim)]),)) if gone else input.view(tuple(input.shape))


@public()
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """The slice at `index` of `dim`, which is removed."""
    d = normalize_dim("select", dim, input.ndim)
    return basic(input, (ALL,) * d + (("i", int(index)),))


@public()
def narrow(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """`length` elements of `dim` from `start`. Raises RuntimeError when they reach past the end."""
    if not input.ndim:
        raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
    d, start = normalize_dim("narrow", dim, input.ndim), int(start)
    n = input.shape[d]
    if not -n <= start <= n:
        raise IndexError(f"start out of range (expected to be in range of [{-n}, {n}], but got {start})")
    start = start + n if start < 0 else start
    if length < 0 or start + length > n:
        raise RuntimeError(f"narrow: start ({start}) + length ({length}) exceeds dimension size ({n}).")
    return basic(input, (ALL,) * d + (("s", start, start + length, 1),))


@public()
def split(input: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of equal size (the last may be smaller) or of the listed sizes along `dim`."""
    d = normalize_dim("split", dim, input.ndim)
    n = input.shape[d]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        if step <= 0 and n:
            raise RuntimeError(f"split: split_size must be positive, got {step}")
        sizes = [min(step, n - i) for i in range(0, n, step)] or [0]
    else:
        sizes = list(split_size_or_sections)
        if sum(sizes) != n:
            raise RuntimeError(f"split: split_sizes {sizes} sum to {sum(sizes)}; expected the size {n} of dimension {d}")
    out, start = [], 0
    for size in sizes:
        out.append(narrow(input, d, start, size))
        start += size
    return tuple(out)


@public()
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """About `chunks` views of equal size along `dim`."""
    if chunks <= 0:
        raise RuntimeError(f"chunk: chunks is {chunks}; expected more than 0")
    d = normalize_dim("chunk", dim, input.ndim)
    return split(input, max(1, -(-input.shape[d] // chunks)), d)


@public()
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`, which is removed."""
    d = normalize_dim("unbind", dim, input.ndim)
    return tuple([select(input, d, i) for i in range(input.shape[d])])


@public()
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim … end_dim made one."""
    if input.ndim == 0:
        return reshape(input, (1,))
    a, b = normalize_dim("flatten", start_dim, input.ndim), normalize_dim("flatten", end_dim, input.ndim)
    if a > b:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    s = tuple(input.shape)
    return input if a == b else reshape(input, s[:a] + (math.prod(s[a : b + 1]),) + s[b + 1 :])


METHODS["ravel"] = lambda self: reshape(self, (-1,))


@public()
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` spread over `sizes` (one may be -1)."""
    d = normalize_dim("unflatten", dim, input.ndim)
    s = tuple(input.shape)
    return reshape(input, s[:d] + infer_shape("unflatten", sizes, s[d]) + s[d + 1 :])


# ------------------------------------------------------------------------------------------------ aliases and their tape

detach_ = define("detach", ("x",), lambda x: x.view(), lambda x: x, View(lambda out, in_shape: out), samples=lambda: [((_rng.standard_normal((3, 4)),), ())])
alias_ = define("alias", ("x",), lambda x: x.view(), lambda x: x, View(lambda out, in_shape: out), vjp={"x": lambda g: g}, samples=lambda: [((_rng.standard_normal((3, 4)),), ())])


@public()
def detach(input: Tensor) -> Tensor:
    """The same memory, off the tape."""
    return apply(detach_, (input,))


def _chain_np(x: Any, chain: tuple[Any, ...]) -> Any:
    for name, attrs in chain:
        x = OPS[name].eager(x, *attrs)
    return x


def _chain_spec(x: Spec, chain: tuple[Any, ...]) -> Spec:
    for name, attrs in chain:
        x = OPS[name].spec(x, *attrs)
    return x


def _scatter_np(base: Any, value: Any, chain: tuple[Any, ...]) -> Any:
    out = np.array(base, copy=True)
    _chain_np(out, chain)[...] = value
    return out


def _chained(x: Tensor, chain: tuple[Any, ...]) -> Tensor:
    for name, attrs in chain:
        x = apply(OPS[name], (x,), attrs)
    return apply(OPS["clone"], (x,))


REPLACEABLE = frozenset(("alias", "detach", "view", "permute", "index_basic"))  # views of which `_replaced` knows the way back


def _replaced(base: Tensor, value: Tensor, chain: tuple[Any, ...]) -> Tensor:
    """`base` where the region that `chain` shows is `value`: each view of the chain is undone, the last one first."""
    if not chain:
        return value
    (name, attrs), rest = chain[0], chain[1:]
    shape = tuple(base._meta.shape)
    if name not in REPLACEABLE:  # positions in memory do for every chain
        count = base._meta.numel
        positions = _chained(reshape(apply(OPS["arange"], (0, 1), (count, dtypes.int64)), shape), chain)
        out = apply(OPS["scatter"], (reshape(base, (count,)), reshape(positions, (-1,)), reshape(value, (-1,))), (0,))
        return reshape(out, shape)
    inner = _replaced(apply(OPS[name], (base,), attrs), value, rest) if rest else value
    if name == "view":
        return reshape(inner, shape)
    if name == "permute":
        return apply(permute_, (inner,), (_inverse(*attrs),))
    if name == "index_basic":
        inside = apply(OPS["full"], (True,), (tuple(inner._meta.shape), dtypes.bool_))
        return apply(OPS["where"], (apply(embed_, (inside,), (shape, *attrs)), apply(embed_, (inner,), (shape, *attrs)), base))
    return inner


define(
    "view_chain", ("x",), lambda x, chain: np.array(_chain_np(x, chain)), _chain_spec, Composite(_chained), ("chain",),
    {"x": lambda g, x_spec, chain: apply(OPS["view_scatter"], (apply(OPS["full"], (0,), (x_spec.shape, x_spec.dtype)), g), (chain,))},
    lambda: [((_rng.standard_normal((3, 4)),), ((("index_basic", ((("i", 1),),)),),))], doc="A chain of view operators, as one node of the tape.",
)
define(
    "view_scatter", ("base", "value"), _scatter_np, lambda base, value, chain: base, Composite(_replaced), ("chain",),
    {
        "base": lambda g, value_spec, chain: apply(OPS["view_scatter"], (g, apply(OPS["full"], (0,), (value_spec.shape, value_spec.dtype))), (chain,)),
        "value": lambda g, chain: apply(OPS["view_chain"], (g,), (chain,)),
    },
    lambda: [
        ((_rng.standard_normal((3, 4)), _rng.standard_normal(s)), (chain,))
        for s, chain in (
            ((4,), (("index_basic", ((("i", 1),),)),)),
            ((2, 2), (("permute", ((1, 0),)), ("index_basic", ((("s", 1, 4, 2), ("s", 0, 2, 1)),)))),
            ((3,), (("view", ((3, 2, 2),)), ("index_basic", ((("s", 0, 3, 1), ("i", 1), ("i", 0)),)))),
            ((3,), (("diagonal", (0,)),)),
        )
    ],
    doc="`base` with the region that a chain of views shows replaced: what writing through a view does.",
)
