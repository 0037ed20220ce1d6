"""The CPU runtime: the C thread pool, programs of kernel launches, and the arena they work in."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

from torchlet.config import config
from torchlet.runtime import cc

__all__ = ["Native", "Program", "arena", "get_num_threads", "link", "native", "runtime", "set_num_threads", "tiles"]

MAX_ARGUMENTS = 1024  # of one kernel, as in tl_runtime.c
REGION_WORK = 10_000  # element operations from which a kernel is shared out once the other threads are awake anyway
PROGRAM_WORK = 1 << 19  # element operations of a whole program from which they are woken though no kernel alone asks for it
# What functions begin with -> the file they are in. Each file is a library of its own, compiled when a program first needs it.
_PARTS = {
    "tl_attention": "tl_attention.c", "tl_recurrent": "tl_recurrent.c", "tl_conv": "tl_conv.c", "tl_pool": "tl_conv.c",
    "tl_scan": "tl_scan.c",
}  # fmt: skip
_TILES = {"amx_tile", "amx_bf16", "avx512f", "avx512_bf16"}  # what tl_amx.c is written for


class _Launchable(Protocol):
    """What a program needs to know of a loaded kernel."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> int: ...

    @property
    def parallel(self) -> bool: ...

    @property
    def work(self) -> int: ...

    @property
    def writes(self) -> Collection[int]: ...


class _Launch(ctypes.Structure):
    _fields_ = [
        ("fn", ctypes.c_void_p), ("n_buffers", ctypes.c_int32), ("n_scalars", ctypes.c_int32), ("buffers", ctypes.POINTER(ctypes.c_int32)),
        ("scalars", ctypes.POINTER(ctypes.c_int32)), ("parallel", ctypes.c_int32), ("barrier", ctypes.c_int32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("launches", ctypes.c_void_p), ("n", ctypes.c_int), ("pointers", ctypes.c_void_p), ("scalars", ctypes.c_void_p)]


@lru_cache(maxsize=1)
def runtime() -> ctypes.CDLL:
    """The runtime library, compiled once per machine; its symbols are what generated kernels link to. Raises CompileError."""
    lib = _library('#include "tl_runtime.c"\n#include "tl_gemm.c"')
    lib.tl_alloc.restype = ctypes.c_void_p
    lib.tl_alloc.argtypes = [ctypes.c_int64]
    lib.tl_free.argtypes = [ctypes.c_void_p]
    lib.tl_set_threads(config.num_threads or _cores())
    return lib


def _library(text: str) -> ctypes.CDLL:
    """C files of the runtime as a library whose symbols others may link to. Raises CompileError."""
    sources = [p.read_text() for p in sorted([*cc.CSRC.glob("*.h"), *(cc.CSRC / name for name in re.findall(r'"(\w+\.c)"', text))])]
    key = "runtime-" + hashlib.sha256("\0".join([cc.fingerprint(), text, *sources]).encode()).hexdigest()[:40]
    path, _ = cc.library(key, text)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@cache
def _part(name: str) -> ctypes.CDLL:
    """A file of larger functions, with the kernels of products that they use."""
    runtime()
    return _library(f'#define TL_KERNELS_ONLY\n#include "tl_gemm.c"\n#include "{name}"')


@cache
def tiles() -> bool:
    """True where products may use AMX: the processor has it, and the system lets this process use it. Raises CompileError."""
    if not _TILES <= cc.features():
        return False
    runtime()
    _library('#include "tl_amx.c"')
    return bool(ctypes.c_void_p.in_dll(runtime(), "tl_gemm_on_tiles"))


def link(text: str) -> None:
    """Load the parts of the runtime that C code calls functions of. Raises CompileError."""
    if ".parts" in text:
        tiles()
    for start, name in _PARTS.items():
        if start in text:
            _part(name)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(n: int) -> None:
    """Use `n` threads in programs started from now on. Raises ValueError unless n >= 1."""
    if n < 1:
        raise ValueError(f"set_num_threads: got {n}; expected a positive number")
    runtime().tl_set_threads(int(n))


def get_num_threads() -> int:
    """How many threads a parallel kernel is shared out over."""
    return int(runtime().tl_get_threads())


@dataclass(frozen=True, slots=True)
class Native:
    """A function of the runtime with the face of a loaded kernel."""

    name: str
    address: int
    work: int
    writes: tuple[int, ...]
    parallel: bool = True


def native(name: str, function: str, work: int, writes: tuple[int, ...]) -> Native:
    """A function of the runtime, to be launched like a kernel; `writes`: the positions of the buffers that it writes."""
    part = next(name for start, name in _PARTS.items() if function.startswith(start))
    address = ctypes.cast(getattr(_part(part), function), ctypes.c_void_p).value
    assert address is not None
    return Native(name, address, work, writes)


class Program:
    """A table of launches that one call runs in order.

    `launches`: (kernel, slots of its buffers in `pointers`, slots of its scalars in `scalars`). `pointers` (uint64 addresses) and
    `scalars` (int64, or the bits of a float64) are ctypes arrays to be written before `run`; both support the buffer protocol.
    `overlaps`: for slots that share memory with others, all of these and themselves.

    The threads wait for each other only where a launch needs what one since the last wait has written, or writes what that one needs.
    """

    def __init__(
        self,
        launches: Sequence[tuple[_Launchable, Sequence[int], Sequence[int]]],
        n_pointers: int,
        n_scalars: int,
        overlaps: Mapping[int, Collection[int]] | None = None,
    ):
        self.names = [kernel.name for kernel, _, _ in launches]
        self.pointers = (ctypes.c_uint64 * max(n_pointers, 1))()
        self.scalars = (ctypes.c_int64 * max(n_scalars, 1))()
        region = any(kernel.parallel for kernel, _, _ in launches) or sum(kernel.work for kernel, _, _ in launches) >= PROGRAM_WORK
        self._table = (_Launch * max(len(launches), 1))()
        since = _Since(overlaps or {})
        for entry, (kernel, buffers, scalars) in zip(self._table, launches, strict=False):
            if max(len(buffers), len(scalars)) > MAX_ARGUMENTS:
                raise ValueError(f"{kernel.name}: {max(len(buffers), len(scalars))} arguments; expected at most {MAX_ARGUMENTS}")
            if max(buffers, default=-1) >= n_pointers or max(scalars, default=-1) >= n_scalars:
                raise ValueError(
                    f"{kernel.name}: slots {list(buffers)}, {list(scalars)}; "
                    f"expected less than {n_pointers} pointers and {n_scalars} scalars"
                )
            wide = region and kernel.work >= REGION_WORK
            entry.fn = kernel.address
            entry.n_buffers, entry.n_scalars = len(buffers), len(scalars)
            entry.buffers = (ctypes.c_int32 * max(len(buffers), 1))(*buffers)
            entry.scalars = (ctypes.c_int32 * max(len(scalars), 1))(*scalars)
            entry.parallel = wide
            entry.barrier = since.enter(kernel.address, wide, buffers, [buffers[i] for i in kernel.writes])
        self._program = _Program(
            ctypes.addressof(self._table), len(launches), ctypes.addressof(self.pointers), ctypes.addressof(self.scalars)
        )
        # `if native(argument): fail()` is a run, for callers that save the frame of `run`
        self.argument = ctypes.byref(self._program)  # made once: with no argtypes a call costs half a microsecond less
        self.native = runtime().tl_run

    def run(self) -> None:
        """Run all launches. Raises IndexError when a data-dependent position was outside its buffer."""
        if self.native(self.argument):
            self.fail()

    def fail(self) -> None:
        """Raise what the last run met: IndexError naming the kernel, the position and the size."""
        index, size = ctypes.c_int64(), ctypes.c_int64()
        launch = runtime().tl_take_error(ctypes.byref(index), ctypes.byref(size))
        if 0 < launch <= len(self.names):
            raise IndexError(f"{self.names[launch - 1]}: position {index.value} is out of range for a buffer of {size.value} elements")


class _Since:
    """What the launches since the last wait touch and write: those that all threads share, and those of thread 0."""

    def __init__(self, overlaps: Mapping[int, Collection[int]]):
        self.overlaps = overlaps
        self._clear()

    def _clear(self) -> None:
        self.touched: dict[bool, set[int]] = {True: set(), False: set()}
        self.written: dict[bool, set[int]] = {True: set(), False: set()}
        self.functions: set[int] = set()

    def enter(self, function: int, wide: bool, touched: Collection[int], written: Collection[int]) -> bool:
        """Take the next launch in; True when it has to wait. One of thread 0 comes after all others of thread 0 anyway."""
        others = (True, False) if wide else (True,)
        # the threads of a function meet in memory of its own, where a second run of it would overtake the first
        wait = (wide and function in self.functions) or any(
            not self.touched[k].isdisjoint(written) or not self.written[k].isdisjoint(touched) for k in others
        )
        if wait:
            self._clear()
        for kept, slots in ((self.touched, touched), (self.written, written)):
            kept[wide].update(x for slot in slots for x in self.overlaps.get(slot, (slot,)))
        if wide:
            self.functions.add(function)
        return wait


class _Blocks:
    """The arena of one thread; blocks that were handed out stay until the thread ends."""

    def __init__(self) -> None:
        self.addresses: list[int] = []
        self.size = 0
        weakref.finalize(self, _release, self.addresses)

    def get(self, nbytes: int) -> int:
        if nbytes > self.size or not self.addresses:
            self.size = max(nbytes, 2 * self.size, 1 << 16)
            address = runtime().tl_alloc(self.size)
            if not address:
                raise MemoryError(f"arena: {self.size} bytes")
            self.addresses.append(address)
        return self.addresses[-1]


def _release(addresses: list[int]) -> None:
    for address in addresses:
        runtime().tl_free(address)


class _Arena(threading.local):
    def __init__(self) -> None:
        self.blocks = _Blocks()


_ARENA = _Arena()


def arena(nbytes: int) -> int:
    """The address of this thread's working memory, at least `nbytes` long, 64-byte aligned (2 MiB and huge pages where it is big).

    Its content is undefined; an address that was handed out stays valid for the thread's life, and a later call may share it.
    """
    return _ARENA.blocks.get(nbytes)
