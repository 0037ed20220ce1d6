"""Where bytes live: a NumPy array, or a DeviceArray over memory that only a device can read."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

import numpy as np

from torchlet.spec import CPU, device

__all__ = [
    "DeviceArray", "address", "as_host", "compute", "contiguous", "copy", "device_of", "empty", "empty_strided", "in_layout",
    "is_pinned", "open_device", "pinned", "transfer", "update", "view_of", "zeros",
]

HostArray = np.ndarray[Any, Any]
LINE = 64  # bytes of a cache line, and of the widest vectors
in_use = False  # True once a device was opened: until then nobody has to look for device arrays


class DeviceArray:
    """What stands in a tensor where a NumPy array stands on the CPU: shape, dtype and strides (in bytes) of memory at an address.

    `owner` keeps the memory alive; a view's owner is the array it shows. The elements can be copied (`as_host`), computed with
    (`compute`) and overwritten (`a[...] = b`), nothing else: NumPy never touches them.
    """

    __slots__ = ("shape", "dtype", "strides", "address", "owner", "device", "__weakref__")
    __array_ufunc__ = None  # NumPy's operators refuse it instead of making arrays of objects

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], address: int, owner: Any, place: device):
        self.shape, self.dtype, self.strides, self.address, self.owner, self.device = shape, dtype, strides, address, owner, place

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for k in self.shape:
            n *= k
        return n

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last one."""
        if 0 in self.shape:
            return 0
        return sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """True if the elements lie in row-major order without gaps."""
        step = self.dtype.itemsize
        for n, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and s != step:
                return 0 in self.shape
            step *= n
        return True

    def __setitem__(self, key: Any, value: Any) -> None:
        if key is not Ellipsis:
            raise TypeError("a DeviceArray can only be overwritten as a whole: a[...] = value")
        _eager().copy_into(self, value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> HostArray:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype.name}{list(self.shape)} on {self.device}>"


def _memory() -> Any:
    """The runtime that owns device memory; it loads with the first use of a device."""
    return importlib.import_module("torchlet.runtime.cuda")


def _eager() -> Any:
    """What computes on device arrays: operators compiled one at a time."""
    return importlib.import_module("torchlet.compiler.eager")


def device_of(array: Any) -> device:
    """Where an array lies."""
    return array.device if array.__class__ is DeviceArray else CPU


def address(array: Any) -> int:
    """The address of the first element, on the device where the array lies."""
    return array.address if array.__class__ is DeviceArray else array.__array_interface__["data"][0]


def _aligned(make: Callable[..., HostArray], shape: Any, dtype: np.dtype[Any], steps: tuple[int, ...] | None = None) -> HostArray:
    """An array that starts at a cache line where it has many of them: vectors of NumPy's own, at multiples of 16 bytes, lie in two each."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < 64 * LINE or dtype.hasobject:
        return make(shape, dtype) if steps is None else np.ndarray(shape, dtype, strides=steps)
    memory = make(nbytes + LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % LINE
    # over an array, or a memoryview of one, views would hold that one alone, and nobody could see that they use this array
    return np.ndarray(shape, dtype, PickleBuffer(memory), start, steps)  # type: ignore[arg-type]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], place: device = CPU) -> Any:
    """Memory for an array, its contents unknown."""
    return _aligned(np.empty, shape, dtype) if place is CPU else _memory().empty(tuple(shape), dtype, place)


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], place: device = CPU) -> Any:
    """An array of zeros."""
    if place is CPU:
        return _aligned(np.zeros, shape, dtype)
    out = _memory().empty(tuple(shape), dtype, place)
    _memory().clear(out)
    return out


def empty_strided(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], place: device = CPU) -> Any:
    """Memory for an array whose elements lie dense with the given strides (in elements), its contents unknown."""
    steps = tuple([s * dtype.itemsize for s in strides])
    if place is CPU:
        return _aligned(np.empty, shape, dtype, steps)
    out = _memory().empty(shape, dtype, place)
    out.strides = steps
    return out


def in_layout(array: Any, strides: tuple[int, ...]) -> Any:
    """A copy of the elements with the given dense strides (in elements)."""
    out = empty_strided(array.shape, strides, array.dtype, device_of(array))
    out[...] = array
    return out


def contiguous(array: Any) -> Any:
    """The array with its elements in row-major order: itself, or a copy."""
    if array.__class__ is DeviceArray:
        return array if array.is_contiguous else _eager().copy(array)
    return np.ascontiguousarray(array).reshape(array.shape)


def copy(array: Any) -> Any:
    """The elements in fresh, row-major memory of the same device."""
    if array.__class__ is DeviceArray:
        return _eager().copy(array)
    out = empty(array.shape, array.dtype)
    out[...] = array
    return out


def as_host(array: Any) -> HostArray:
    """The elements as a NumPy array: the array itself where it is one, else a copy."""
    if array.__class__ is not DeviceArray:
        return array  # type: ignore[no-any-return]
    if array.span > max(4 * array.nbytes, 1 << 20):  # a thin slice of something big: gather it before it travels
        array = _eager().copy(array)
    return _memory().download(array)  # type: ignore[no-any-return]


def transfer(array: Any, place: device, non_blocking: bool = False) -> Any:
    """A copy of the array on another device; the array itself where it is there already."""
    here = device_of(array)
    if here is place:
        return array
    if place is CPU:
        return as_host(array)
    return _memory().upload(as_host(array), place, non_blocking)


def open_device(place: device) -> device:
    """The device that is meant ("cuda" is the current one), opened. Raises DriverError where there is none."""
    return _memory().device(place).place  # type: ignore[no-any-return]


def is_pinned(array: Any) -> bool:
    """True for arrays in memory that a device reads directly."""
    return in_use and _memory().is_pinned(array)


def pinned(array: HostArray) -> HostArray:
    """A copy in memory that a device reads directly. Raises DriverError where there is none."""
    out = _memory().pinned_empty(array.shape, array.dtype)
    out[...] = array
    return out  # type: ignore[no-any-return]


def compute(op: Any, arrays: Any, attrs: tuple[Any, ...], place: device | None = None) -> Any:
    """An operator's result on the device of its inputs, or at `place` where it needs numbers only.

    Raises RuntimeError for inputs on different devices, and what the operator's spec raises.
    """
    return _eager().run_op(op, tuple(arrays), attrs, place)


def update(op: Any, lists: Any, scalars: Any, attrs: tuple[Any, ...]) -> bool:
    """Run an update operator over device tensors as one compiled graph; False where it is not for a device."""
    return any(t._meta.device is not CPU for group in lists for t in group) and _eager().run_update(op, lists, scalars, attrs)


def view_of(array: DeviceArray, op: Any, attrs: tuple[Any, ...]) -> DeviceArray | None:
    """What a view operator makes of the array, without touching memory; None where it would have to copy."""
    # the operator's NumPy code runs on memory of the same layout that is never filled, so its strides and offset can be read off
    memory = np.empty(max(array.span, 1), np.uint8)
    stand_in = np.lib.stride_tricks.as_strided(memory[:0].view(array.dtype), array.shape, array.strides)
    seen = op.eager(stand_in, *attrs)
    offset = seen.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    if seen.size and not 0 <= offset < memory.size:
        return None
    return DeviceArray(seen.shape, seen.dtype, seen.strides, array.address + (offset if seen.size else 0), array, array.device)
