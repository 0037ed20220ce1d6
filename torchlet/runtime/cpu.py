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

__all__ = [
    "Function", "Program", "address_of", "arena", "build_ahead", "cores", "get_num_threads", "link", "part_of", "parts", "runtime",
    "set_num_threads", "tiles",
]  # fmt: skip

MAX_ARGUMENTS = 1024  # of one kernel, as in tl_runtime.c
REGION_WORK = 10_000  # element operations from which a kernel is shared out once the other threads are awake anyway
BRIEF_WORK = 1 << 16  # element operations of a whole program up to which it is over before other threads of Python would have begun
PROGRAM_WORK = 1 << 19  # element operations of a whole program from which they are woken though no kernel alone asks for it
# What functions begin with -> the file they are in. Each is a library of its own for each element type, compiled when a program first
# needs it, as are products of float64.
_PARTS = {
    "tl_attention": "tl_attention.c", "tl_recurrent": "tl_recurrent.c", "tl_conv": "tl_conv.c", "tl_pool": "tl_conv.c",
    "tl_scan": "tl_scan.c",
}  # fmt: skip
_RUNTIME = '#define TL_F32\n#include "tl_runtime.c"\n#include "tl_gemm.c"'
_DOUBLE = '#define TL_F64\n#include "tl_gemm.c"'  # products of float64, which few programs have
_AMX = '#include "tl_amx.c"'
_OPEN: set[str] = set()  # what was loaded
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
    lib = _library(_RUNTIME)
    lib.tl_alloc.restype = ctypes.c_void_p
    lib.tl_alloc.argtypes = [ctypes.c_int64]
    lib.tl_free.argtypes = [ctypes.c_void_p]
    lib.tl_set_threads(config.num_threads or cores())
    return lib


def _library(text: str) -> ctypes.CDLL:
    """C files of the runtime as a library whose symbols others may link to. Raises CompileError."""
    path, _ = cc.library(_key(text), text)
    _OPEN.add(text)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _key(text: str) -> str:
    sources = [p.read_text() for p in sorted([*cc.CSRC.glob("*.h"), *(cc.CSRC / name for name in re.findall(r'"(\w+\.c)"', text))])]
    return "runtime-" + hashlib.sha256("\0".join([cc.fingerprint(), text, *sources]).encode()).hexdigest()[:40]


def build_ahead(wanted: Sequence[str] = ()) -> None:
    """Begin to compile what the cache lacks of the runtime and of these parts of it; nobody waits for it here."""
    texts = [text for text in dict.fromkeys((_RUNTIME, *wanted)) if text not in _OPEN]
    cc.build_ahead([(_key(text), text) for text in texts])


def parts(text: str) -> list[str]:
    """The parts of the runtime that C code calls functions of, each as the text that is compiled for it."""
    found = [] if ".parts" not in text or not _TILES <= cc.features() else [_AMX]
    found += [_DOUBLE] if "tl_gemm_run_f64" in text else []
    return found + [_part(file, "f32") for start, file in _PARTS.items() if start in text]


def _part(file: str, kind: str) -> str:
    """A file of larger functions for one element type; they call the kernels of products, which are compiled elsewhere."""
    return f'#define TL_{kind.upper()}\n#define TL_KERNELS_ONLY\n#include "tl_gemm.c"\n#include "{file}"'


@cache
def open_part(text: str) -> ctypes.CDLL:
    """A part of the runtime, loaded after what it calls. Raises CompileError."""
    runtime()
    if "TL_F64" in text and text != _DOUBLE:
        open_part(_DOUBLE)
    return _library(text)


@cache
def tiles() -> bool:
    """True where products may use AMX: the processor has it, and the system lets this process use it. Raises CompileError."""
    if not _TILES <= cc.features():
        return False
    open_part(_AMX)
    return bool(ctypes.c_void_p.in_dll(runtime(), "tl_gemm_on_tiles"))


def link(wanted: Sequence[str]) -> None:
    """Load the runtime and these parts of it. Raises CompileError."""
    runtime()
    for part in wanted:
        open_part(part)


def cores() -> int:
    """How many processors this process may use."""
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
class Function:
    """What a program launches: a loaded kernel, or a function of the runtime. `writes`: the positions of the buffers that it writes."""

    name: str
    address: int
    work: int
    writes: tuple[int, ...]
    parallel: bool


def address_of(function: str) -> int:
    """The address of a function of the runtime that is launched like a kernel. Raises CompileError."""
    address = ctypes.cast(getattr(open_part(part_of(function)), function), ctypes.c_void_p).value
    assert address is not None
    return address


def part_of(function: str) -> str:
    """The part of the runtime, as the text that is compiled for it, in which a function is that is launched like a kernel."""
    file = next(file for start, file in _PARTS.items() if function.startswith(start))
    return f'#include "{file}"' if file == "tl_scan.c" else _part(file, function.rpartition("_")[2])


class Program:
    """A table of launches that one call runs in order.

    `launches`: (kernel, slots of its buffers in `pointers`, slots of its scalars in `scalars`). `pointers` (uint64 addresses) and
    `scalars` (int64, or the bits of a float64) are ctypes arrays to be written before `run`; both support the buffer protocol.
    `overlaps`: for slots that share memory with others, all of these and themselves. `is_brief`: a run takes a few microseconds.

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
        amount = sum(kernel.work for kernel, _, _ in launches)
        region = any(kernel.parallel for kernel, _, _ in launches) or amount >= PROGRAM_WORK
        self.is_brief = amount <= BRIEF_WORK and not region
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
