"""Devices, their memory and streams: the primary context, the stream-ordered pool, copies, pinned host memory, events."""

from __future__ import annotations

import atexit
import ctypes as C
import functools
import gc
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchlet import storage
from torchlet.runtime.cuda.driver import NO_ROOM, NOT_READY, CudaError, DriverError, OutOfMemoryError, call, failure, load, out
from torchlet.spec import contiguous_strides
from torchlet.spec import device as Place
from torchlet.storage import DeviceArray

HostArray = np.ndarray[Any, Any]
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_COMPUTE_MAJOR, _COMPUTE_MINOR, _PROCESSORS, _WARP, _L2, _POOLS, _THREADS = 75, 76, 16, 10, 38, 115, 39
_SHARED_OPTIN, _SHARED_PROCESSOR = 97, 81
_RELEASE_THRESHOLD, _RESERVED, _RESERVED_HIGH = 4, 5, 6


@dataclass(frozen=True)
class Properties:
    """What a device is."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    warp_size: int
    L2_cache_size: int
    max_threads_per_multi_processor: int


class _Thread(threading.local):
    """What is current in a thread: the device, the context the driver has, and streams that were entered."""

    device: int = 0
    context: int | None = None

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}


THREAD = _Thread()
_exiting = False


@atexit.register
def _leave() -> None:
    global _exiting
    _exiting = True  # the driver frees everything; its calls are not safe any more


class Device:
    """One CUDA device: its context is made on first use and lives as long as the process."""

    def __init__(self, index: int):
        count = device_count()
        if not 0 <= index < count:
            raise DriverError(f"cuda: device {index}; expected one of the {count} devices that the driver sees")
        self.index = index
        self.place = Place("cuda", index)
        handle = out(C.c_int, "cuDeviceGet", index)
        self.properties = _properties(handle)
        if not _attribute(handle, _POOLS):
            raise DriverError(f"cuda: {self.properties.name} has no stream-ordered memory pools; expected a device that has them")
        self.capability = (self.properties.major, self.properties.minor)
        self.context = out(C.c_void_p, "cuDevicePrimaryCtxRetain", handle)
        self.activate()
        self.pool = out(C.c_void_p, "cuDeviceGetDefaultMemPool", handle)
        call("cuMemPoolSetAttribute", self.pool, _RELEASE_THRESHOLD, C.byref(C.c_uint64(2**64 - 1)))  # freed memory stays with the process
        self.lock = threading.RLock()
        self.closed = False
        self.live: dict[int, tuple[int, str]] = {}  # address -> (bytes, the user's line)
        self.allocated = self.peak = 0
        self.arenas: dict[int, Block] = {}
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.default = Stream(self)
        storage.in_use = True

    def activate(self) -> None:
        """Make the context current in this thread."""
        if THREAD.context != self.context:
            call("cuCtxSetCurrent", self.context)
            THREAD.context = self.context

    @property
    def stream(self) -> Stream:
        """The stream that work of this thread goes to."""
        return THREAD.streams.get(self.index, self.default)

    def allocate(self, nbytes: int, what: str = "") -> Block:
        """Memory from the pool, in the order of the current stream. Raises OutOfMemoryError naming the largest live buffers."""
        self.activate()
        stream = self.stream
        size = max(-(-nbytes // 256) * 256, 256)  # never the address 0, always room for whole vectors
        address = C.c_uint64()
        status = load().cuMemAllocAsync(C.byref(address), size, stream.handle)
        if status == NO_ROOM:
            gc.collect()  # tensors in reference cycles, then what the pool and the arenas hold for nothing
            self.empty_cache()
            status = load().cuMemAllocAsync(C.byref(address), size, stream.handle)
        if status == NO_ROOM:
            raise self._no_room(size)
        if status:
            raise failure("cuMemAllocAsync", status, f"{size} bytes on cuda:{self.index}")
        block = Block(self, address.value, size, stream)
        with self.lock:
            self.live[block.address] = (size, what or _user_line())
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        return block

    def _no_room(self, size: int) -> OutOfMemoryError:
        free, total = C.c_size_t(), C.c_size_t()
        call("cuMemGetInfo_v2", C.byref(free), C.byref(total))
        with self.lock:
            largest = sorted(self.live.values(), reverse=True)[:8]
        lines = "".join(f"\n    {_size(n)}  {line}" for n, line in largest)
        return OutOfMemoryError(
            f"cuda: out of memory on cuda:{self.index}: {_size(size)} asked for, {_size(free.value)} of {_size(total.value)} free, "
            f"{_size(self.allocated)} in live buffers of this process. The largest:{lines or ' none'}\n"
            "help: a smaller batch, or del what is not needed"
        )

    def release(self, block: Block) -> None:
        """Give a block back to the pool once everything that was launched so far is done with it."""
        with self.lock:
            if self.closed or self.live.pop(block.address, None) is None:
                return
            self.allocated -= block.nbytes
        self.activate()
        stream = block.stream if block.stream.handle else self.default  # a stream was emptied before it was closed
        for s in (*self.streams, self.default) if self.streams else ():  # only who made further streams pays for this
            if s is not stream and s.handle:
                s.record_for(stream)
        load().cuMemFreeAsync(block.address, stream.handle)

    def arena(self, nbytes: int) -> int:
        """The address of at least `nbytes` of scratch memory of the current stream; its contents last until the next launch."""
        key = self.stream.cuda_stream
        found = self.arenas.get(key)
        if found is None or found.nbytes < nbytes:
            if found is not None:
                del self.arenas[key], found  # freed in stream order, so kernels that still run keep it
            found = self.arenas[key] = self.allocate(nbytes, "temporaries of compiled code")
        return found.address

    def empty_cache(self) -> None:
        """Give memory that nobody uses back to the driver."""
        self.synchronize()
        self.arenas.clear()
        self.synchronize()
        call("cuMemPoolTrimTo", self.pool, 0)

    def synchronize(self) -> None:
        """Wait until everything launched is done. Raises CudaError where a kernel failed."""
        self.activate()
        call("cuCtxSynchronize")

    def close(self) -> None:
        """Stop using the device: what still refers to its memory is left alone, because the driver may be gone."""
        self.closed = True

    def reserved(self, highest: bool = False) -> int:
        """Bytes that the pool holds."""
        value = C.c_uint64()
        call("cuMemPoolGetAttribute", self.pool, _RESERVED_HIGH if highest else _RESERVED, C.byref(value))
        return value.value

    def copy_in(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy from the host. Pageable memory has been read when this returns."""
        call("cuMemcpyHtoDAsync_v2", target, source, nbytes, stream)

    def copy_out(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy to the host."""
        call("cuMemcpyDtoHAsync_v2", target, source, nbytes, stream)

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        self.activate()
        free, total = C.c_size_t(), C.c_size_t()
        call("cuMemGetInfo_v2", C.byref(free), C.byref(total))
        return free.value, total.value


class Block:
    """Device memory; given back when nothing refers to it."""

    __slots__ = ("device", "address", "nbytes", "stream", "__weakref__")

    def __init__(self, device: Device, address: int, nbytes: int, stream: Stream):
        self.device, self.address, self.nbytes, self.stream = device, address, nbytes, stream

    def __del__(self) -> None:
        if not _exiting:
            self.device.release(self)


def _attribute(handle: int, number: int) -> int:
    return out(C.c_int, "cuDeviceGetAttribute", number, handle)  # type: ignore[no-any-return]


def _properties(handle: int) -> Properties:
    name = C.create_string_buffer(256)
    call("cuDeviceGetName", name, 256, handle)
    total = out(C.c_size_t, "cuDeviceTotalMem_v2", handle)
    numbers = (_COMPUTE_MAJOR, _COMPUTE_MINOR), (_PROCESSORS, _SHARED_OPTIN, _SHARED_PROCESSOR, _WARP, _L2, _THREADS)
    major, minor = (_attribute(handle, n) for n in numbers[0])
    return Properties(name.value.decode(), major, minor, total, *(_attribute(handle, n) for n in numbers[1]))


@functools.lru_cache(maxsize=1)
def device_count() -> int:
    """How many devices the driver sees. Raises DriverError where there is no driver."""
    load()
    return out(C.c_int, "cuDeviceGetCount")  # type: ignore[no-any-return]


_DEVICES: dict[int, Device] = {}
_LOCK = threading.RLock()


def device(place: Place | int | None = None) -> Device:
    """The device at a place ("cuda" without a number: the current one), opened on first use. Raises DriverError."""
    index = place if isinstance(place, int) else THREAD.device if place is None or place.index is None else place.index
    found = _DEVICES.get(index)
    if found is None:
        with _LOCK:
            found = _DEVICES.get(index) or Device(index)
            _DEVICES[index] = found
    return found


def opened() -> list[Device]:
    """The devices in use so far."""
    return list(_DEVICES.values())


def _size(n: int) -> str:
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= step:
            return f"{n / step:.2f} {unit}"
    return f"{n} bytes"


def _user_line() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<launch>")):  # the latter is generated
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


# ------------------------------------------------------------------------------------------------ streams and events


class Stream:
    """A queue of work on a device. Use it with `with stream(s):`."""

    def __init__(self, owner: Device | Place | int | str | None = None, priority: int = 0):
        self.device = owner if isinstance(owner, Device) else device(None if owner is None else Place(owner))
        self.device.activate()
        # not blocking: the legacy stream 0, which nothing here uses, orders nothing
        self.handle: int | None = out(C.c_void_p, "cuStreamCreateWithPriority", 1, priority)
        self.priority = priority
        self._order: int | None = None
        if hasattr(self.device, "default"):
            self.device.streams.add(self)

    @property
    def cuda_stream(self) -> int:
        """The driver's handle. Raises CudaError after `close`."""
        if self.handle is None:
            raise CudaError("cuda: this stream was closed")
        return self.handle

    def synchronize(self) -> None:
        """Wait until the queue is empty. Raises CudaError where a kernel failed."""
        self.device.activate()
        call("cuStreamSynchronize", self.cuda_stream)

    def query(self) -> bool:
        """True if the queue is empty."""
        self.device.activate()
        status = load().cuStreamQuery(self.cuda_stream)
        if status not in (0, NOT_READY):
            raise failure("cuStreamQuery", status)
        return status == 0

    def record_event(self, event: Event | None = None) -> Event:
        """Note this point of the queue in an event."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """What comes later in this queue waits for the event."""
        self.device.activate()
        if event.handle is not None:
            call("cuStreamWaitEvent", self.cuda_stream, event.handle, 0)

    def wait_stream(self, other: Stream) -> None:
        """What comes later in this queue waits for all that is in the other one."""
        self.wait_event(other.record_event())

    def record_for(self, other: Stream) -> None:
        """The same from the other side, with an event that is used again."""
        if self._order is None:
            self._order = out(C.c_void_p, "cuEventCreate", 2)
        call("cuEventRecord", self._order, self.handle)
        call("cuStreamWaitEvent", other.handle, self._order, 0)

    def close(self) -> None:
        """Let go of the queue after its work is done; using it afterwards raises CudaError."""
        if self.handle is not None and self is not self.device.default:
            self.synchronize()
            arena = self.device.arenas.pop(self.handle, None)
            del arena
            handle, self.handle = self.handle, None
            call("cuStreamDestroy_v2", handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None and not _exiting and not self.device.closed:
            load().cuStreamDestroy_v2(self.handle)

    def __repr__(self) -> str:
        return f"<torchlet.cuda.Stream device=cuda:{self.device.index} cuda_stream={self.handle and hex(self.handle)}>"


class Event:
    """A point in a queue. With `enable_timing`, two of them tell the milliseconds between."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self.enable_timing, self.blocking = enable_timing, blocking
        self.handle: int | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Note the end of the queue of a stream (the current one)."""
        stream = stream or device().stream
        stream.device.activate()
        if self.handle is None:
            self.handle = out(C.c_void_p, "cuEventCreate", (0 if self.enable_timing else 2) | bool(self.blocking))
        call("cuEventRecord", self.handle, stream.cuda_stream)

    def wait(self, stream: Stream | None = None) -> None:
        """What comes later in the stream waits for this event."""
        (stream or device().stream).wait_event(self)

    def query(self) -> bool:
        """True if the point was passed."""
        status = load().cuEventQuery(self.handle) if self.handle is not None else 0
        if status not in (0, NOT_READY):
            raise failure("cuEventQuery", status)
        return status == 0

    def synchronize(self) -> None:
        """Wait until the point is passed."""
        if self.handle is not None:
            call("cuEventSynchronize", self.handle)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from here to `end`. Raises ValueError without `enable_timing`, RuntimeError before both are recorded."""
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("elapsed_time: Both events must be created with argument 'enable_timing=True'.")
        if self.handle is None or end.handle is None:
            raise RuntimeError("elapsed_time: Both events must be recorded before calculating elapsed time.")
        value = C.c_float()
        call("cuEventElapsedTime", C.byref(value), self.handle, end.handle)
        return value.value

    def __del__(self) -> None:
        if self.handle is not None and not _exiting:
            load().cuEventDestroy_v2(self.handle)


# ------------------------------------------------------------------------------------------------ arrays


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], place: Place) -> DeviceArray:
    """Memory for a row-major array. Raises OutOfMemoryError, DriverError."""
    owner = device(place)
    strides = tuple([s * dtype.itemsize for s in contiguous_strides(shape)])
    out_ = DeviceArray(shape, dtype, strides, 0, None, owner.place)
    block = owner.allocate(out_.nbytes)
    out_.address, out_.owner = block.address, block
    return out_


def clear(array: DeviceArray) -> None:
    """Make a contiguous array zeros."""
    owner = device(array.device)
    owner.activate()
    call("cuMemsetD8Async", array.address, 0, array.nbytes, owner.stream.cuda_stream)


def upload(array: HostArray, place: Place, non_blocking: bool = False) -> DeviceArray:
    """A copy on the device. From pinned memory with `non_blocking` the copy is only queued: the source must stay as it is meanwhile."""
    source = np.ascontiguousarray(array).reshape(array.shape)
    target = empty(source.shape, source.dtype, place)
    write(target, source, non_blocking)
    return target


def write(target: DeviceArray, source: HostArray, non_blocking: bool = False) -> None:
    """Overwrite a contiguous array with a contiguous one of the host."""
    owner = device(target.device)
    owner.activate()
    if source.nbytes:
        # from pageable memory the driver has read everything when the call returns
        call("cuMemcpyHtoDAsync_v2", target.address, source.__array_interface__["data"][0], source.nbytes, owner.stream.cuda_stream)
        if is_pinned(source) and not non_blocking:
            owner.stream.synchronize()


def download(array: DeviceArray) -> HostArray:
    """A copy in host memory, complete when this returns; strides are kept. Raises CudaError where a kernel before it failed."""
    owner = device(array.device)
    owner.activate()
    memory = np.empty(-(-array.span // array.itemsize), array.dtype)
    if memory.size:
        call("cuMemcpyDtoHAsync_v2", memory.__array_interface__["data"][0], array.address, array.span, owner.stream.cuda_stream)
        owner.stream.synchronize()
    out_ = np.lib.stride_tricks.as_strided(memory, array.shape, array.strides) if memory.size else np.empty(array.shape, array.dtype)
    return out_ if array.is_contiguous else np.ascontiguousarray(out_).reshape(array.shape)


# ------------------------------------------------------------------------------------------------ pinned memory

_pinned: dict[int, int] = {}  # first address -> behind the last


def pinned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
    """Host memory that the device copies from and to directly, as an array."""
    device().activate()
    count = int(np.prod(shape, dtype=np.int64))
    nbytes = max(count * dtype.itemsize, 1)
    start = out(C.c_void_p, "cuMemHostAlloc", nbytes, 1)  # for every context
    memory = (C.c_char * nbytes).from_address(start)
    _pinned[start] = start + nbytes
    weakref.finalize(memory, _unpin, start).atexit = False
    return np.frombuffer(memoryview(memory).cast("B"), dtype, count).reshape(shape) if count else np.empty(shape, dtype)


def _unpin(start: int) -> None:
    _pinned.pop(start, None)
    for d in opened():
        d.synchronize()  # a copy that was only queued may still read it
    call("cuMemFreeHost", start)


def is_pinned(array: Any) -> bool:
    """True for arrays within pinned memory, and for addresses there."""
    if not _pinned or isinstance(array, DeviceArray):
        return False
    at = array if isinstance(array, int) else array.__array_interface__["data"][0]
    return any(start <= at < end for start, end in list(_pinned.items()))
