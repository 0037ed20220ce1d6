"""Spec = shape + dtype + device of a value, and the rules of broadcasting and promotion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from torchlet import dtypes, errors
from torchlet.dtypes import dtype
from torchlet.record import Record

__all__ = [
    "Size",
    "Spec",
    "device",
    "CPU",
    "broadcast_shapes",
    "contiguous_strides",
    "elementwise_strides",
    "memory_order",
    "numel",
    "result_type",
    "normalize_dim",
    "normalize_dims",
]


class Size(tuple[int, ...]):
    """A shape; a tuple with PyTorch's name, `numel()` and repr."""

    __slots__ = ()

    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self)

    def __repr__(self) -> str:
        return f"{dtypes.PACKAGE}.Size([{', '.join(map(str, self))}])"

    def __getitem__(self, item):  # type: ignore[no-untyped-def,override]
        got = tuple.__getitem__(self, item)
        return Size(got) if isinstance(item, slice) else got


class device:
    """Where a tensor lives: `device("cpu")`, `device("cuda", 0)`, `device("cuda:0")`. Equal devices are one object."""

    __slots__ = ("type", "index")
    _table: ClassVar[dict[tuple[str, int | None], device]] = {}

    type: str
    index: int | None

    def __new__(cls, type: str | device | int = "cpu", index: int | None = None) -> device:
        if isinstance(type, device):
            return type
        if isinstance(type, int):
            index, type = type, "cuda"
        if ":" in type:
            type, _, number = type.partition(":")
            if not number.isdigit():
                raise RuntimeError(f"Invalid device string: '{type}:{number}'")
            index = int(number)
        if type not in ("cpu", "cuda"):
            raise RuntimeError(errors.message("device", f"type '{type}'", "'cpu' or 'cuda'"))
        if type == "cpu":
            index = None
        found = cls._table.get((type, index))
        if found is None:
            found = cls._table[type, index] = object.__new__(cls)
            found.type, found.index = type, index
        return found

    def __repr__(self) -> str:
        return f"device(type='{self.type}')" if self.index is None else f"device(type='{self.type}', index={self.index})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return device, (self.type, self.index)


CPU = device("cpu")


class Spec(Record):
    """What is known of a value without computing it. `weak` marks a Python number, which never decides a dtype within its category."""

    __slots__ = ("shape", "dtype", "device", "weak")

    def __init__(self, shape: tuple[int, ...], dtype: dtype, device: device = CPU, weak: bool = False):
        self.shape, self.dtype, self.device, self.weak = shape, dtype, device, weak

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


def numel(shape: Iterable[int]) -> int:
    """The number of elements of a shape."""
    return math.prod(shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements, by PyTorch's convention (size-0 and size-1 dimensions count as 1)."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= max(n, 1)
    return tuple(reversed(out))


@lru_cache(maxsize=4096)
def elementwise_strides(shape: tuple[int, ...], operands: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> tuple[int, ...]:
    """Strides in elements of an elementwise result, by the rule of PyTorch's TensorIterator: the memory order of the operands is kept.

    `operands`: (shape, strides) of each, broadcast to `shape`. The first operand that tells two dimensions apart decides their order.
    """
    strides = operands[0][1]
    if all(o == (shape, strides) for o in operands) and _is_dense(shape, strides):
        plain = contiguous_strides(shape)  # what only the strides of dimensions of size 1 tell apart is row-major
        return plain if all(n == 1 or s == p for n, s, p in zip(shape, strides, plain, strict=True)) else strides
    rank = len(shape)
    steps = []
    for own, given in operands:
        lead = rank - len(own)
        steps.append([0] * lead + [0 if n == 1 != m else s for n, s, m in zip(own, given, shape[lead:], strict=True)])

    def is_after(inner: int, outer: int) -> int:
        """1 where dimension `inner` has to come after `outer`, -1 where it stands right, 0 where nothing tells."""
        for s in steps:
            a, b = s[inner], s[outer]
            if a and b:
                if a != b:
                    return 1 if a > b else -1
                if shape[inner] > shape[outer]:
                    return 1
        return 0

    order = list(range(rank - 1, -1, -1))  # dimensions from the innermost to the outermost
    for i in range(1, rank):
        here = i
        for k in range(i - 1, -1, -1):
            compared = is_after(order[k], order[here])
            if compared > 0:
                order[k], order[here] = order[here], order[k]
                here = k
            elif compared < 0:
                break
    out, step = [1] * rank, 1
    for d in order:
        out[d] = step
        step *= max(shape[d], 1)
    return tuple(out)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if the elements fill their memory, each place once, in some order of the dimensions."""
    step = 1
    for s, n in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if s != step:
            return False
        step *= n
    return True


def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of a dense layout from the outermost to the innermost in memory."""
    return tuple(sorted(range(len(shape)), key=lambda d: (-strides[d], shape[d] != 1, d)))


def broadcast_shapes(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape by NumPy's rule. Raises RuntimeError naming `op` and the dimension that does not fit."""
    out: list[int] = []
    rank = max(map(len, shapes), default=0)
    for position in range(1, rank + 1):
        size = 1
        for shape in shapes:
            n = shape[-position] if position <= len(shape) else 1
            if n != size and n != 1:
                if size != 1:
                    raise RuntimeError(
                        f"{op}: shapes {', '.join(str(tuple(s)) for s in shapes)} do not broadcast: The size of tensor a ({size}) must "
                        f"match the size of tensor b ({n}) at non-singleton dimension {rank - position}"
                    )
                size = n
        out.append(size)
    return tuple(reversed(out))


def result_type(*specs: Spec) -> dtype:
    """PyTorch's promotion: tensors with dimensions decide, then 0-d tensors, then Python numbers; a lower rank only lifts the category."""
    found: dtype | None = None
    for rank in (0, 1, 2):
        group: dtype | None = None
        for s in specs:
            if (2 if s.weak else 0 if s.shape else 1) == rank:
                d = s.dtype
                if s.weak and d is dtypes.float64:
                    d = dtypes.get_default_dtype()
                group = d if group is None else dtypes.promote_types(group, d)
        if group is not None and (found is None or group.category > found.category):
            # a float with a complex number becomes the complex dtype of its own precision
            found = dtypes.complex_of(found) if found is not None and found.is_floating_point else group
    assert found is not None
    return found


def normalize_dim(op: str, dim: int, ndim: int) -> int:
    """A dimension counted from the front. Raises IndexError when out of range, TypeError when not an integer."""
    if dim.__class__ is int and -ndim <= dim < ndim:
        return dim if dim >= 0 else dim + ndim
    try:
        d = dim.__index__()
    except AttributeError:
        raise TypeError(errors.message(op, f"dim of type {type(dim).__name__}", "an int")) from None
    rank = max(ndim, 1)
    if not -rank <= d < rank:
        raise IndexError(f"{op}: Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {d})")
    return d % rank


def normalize_dims(op: str, dims: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Sorted dimensions counted from the front; None or an empty sequence means all. Raises RuntimeError on a repeat."""
    if dims is None:
        return tuple(range(ndim))
    listed: Sequence[Any] = [dims] if not isinstance(dims, list | tuple) else dims
    if not listed:
        return tuple(range(ndim))
    out = [normalize_dim(op, d, ndim) for d in listed]
    if len(set(out)) != len(out):
        raise RuntimeError(f"{op}: dim {next(d for d in out if out.count(d) > 1)} appears multiple times in the list of dims")
    return tuple(sorted(out)) if ndim else ()
