"""Windows: the arrays over a tensor's memory that NumPy was given, and for how long anybody can look through one."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import numpy as np

__all__ = ["ALONE", "FOREVER", "LOCK", "Sight", "may_be_lent", "references", "same_bits", "twin_of", "window"]

Array = np.ndarray[Any, Any]
LOCK = threading.RLock()  # held to change what a storage knows of its windows; a finalizer may come in between


class Sight:
    """The sign that memory is seen: every window holds one, directly or by the array that it is a view of."""

    __slots__ = ("__weakref__",)


_forever = Sight()
FOREVER = weakref.ref(_forever)  # of memory whose address was given away: nothing tells when nobody knows it any more


class _Base:
    """What a window stands on. It is no array, so NumPy's views of a window, and views of these, hold the window itself."""

    __slots__ = ("array", "sight")

    def __init__(self, array: Array, sight: Sight | None):
        self.array, self.sight = array, sight

    @property
    def __array_struct__(self) -> Any:
        return self.array.__array_struct__


def window(array: Array, sight: Sight | None = None) -> Array:
    """Another array over the same memory. The memory and `sight` live as long as it, or any view of it, does."""
    out = np.asarray(_Base(array, sight))
    return out if out.dtype is array.dtype else out.view(array.dtype)  # NumPy's protocol knows no bfloat16


def may_be_lent(array: Array) -> bool:
    """True if whoever can reach an array's memory holds the array, or the one that it is a view of."""
    owner = array if array.base is None else array.base
    return isinstance(owner, np.ndarray) and bool(owner.flags.owndata)


def references(array: Any) -> tuple[bool, int, int]:
    """(has the array a base, references to both, weak references to both). While the interpreter's lock is held this is no guess."""
    count, weak, base = sys.getrefcount(array), weakref.getweakrefcount(array), array.base
    if base is not None:
        count, weak = count + sys.getrefcount(base), weak + weakref.getweakrefcount(base)
    return base is not None, count, weak


class _Holder:
    __slots__ = ("lent",)
    lent: Array


def _alone(array: Array) -> tuple[bool, int, int]:
    """What `references` says of an array that is known to the tensor it was lent to, and to nobody else."""
    holder = _Holder()
    holder.lent = array
    held = window(array)
    del array
    found = references(holder.lent)
    del held
    return found


ALONE = frozenset((_alone(np.empty(1)), _alone(np.empty(2)[1:])))
_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def same_bits(a: Array, b: Array) -> bool:
    """True if two arrays of one dtype hold the same bits."""
    kind = _INTEGERS[a.itemsize]
    return np.array_equal(a.view(kind), b.view(kind))


def twin_of(array: Array) -> Array:
    """A copy with the very strides of the array, gaps included."""
    if array.flags.c_contiguous:
        return array.copy()
    span = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) // array.itemsize + 1 if array.size else 1
    out = np.lib.stride_tricks.as_strided(np.empty(span, array.dtype), array.shape, array.strides)
    out[...] = array
    return out
