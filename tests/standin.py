"""A stand-in for a GPU: csrc/libcuda_stub.c as the driver, and launches that run the kernel's loop nest in NumPy on "device" memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchlet import compiler, storage
from torchlet.compiler import eager, launch
from torchlet.compiler.codegen.triton import TritonKernel
from torchlet.compiler.group import Grouped
from torchlet.compiler.interpret import interpret_kernel
from torchlet.config import config
from torchlet.runtime.cuda import Function, LaunchInfo, MapForm, TensorMap, driver
from torchlet.runtime.cuda import devices as device_module

SOURCE = Path(__file__).with_name("csrc") / "libcuda_stub.c"
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
_SIZE = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "i32": 4, "i64": 8, "fp32": 4, "fp64": 8}
_READ: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float, "fp64": ctypes.c_double}


class StandIn:
    """The loaded stub. `kernels` maps function handles to what they compute, `runs` lists the names of kernels that ran."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self.library.stub_fail.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        self.library.stub_limit.argtypes = [ctypes.c_size_t]
        self.kernels: dict[int, TritonKernel] = {}
        self.runs: list[str] = []
        self.ticks: Callable[[TritonKernel], int] = lambda kernel: 0  # what a launch adds to the clock that events read
        self.cubin_of: Any = None  # the real one, while a test's launches need no machine code
        word, sizes = ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint)
        runner = ctypes.CFUNCTYPE(ctypes.c_int, word, sizes, sizes, ctypes.c_uint, ctypes.POINTER(word))
        describer = ctypes.CFUNCTYPE(ctypes.c_int, word, ctypes.POINTER(ctypes.c_int))
        self.callbacks = runner(self._run), describer(self._describe)
        self.library.stub_on_launch(*self.callbacks)

    def __getattr__(self, name: str) -> int:
        """A counter or a property of the device, `stub_NAME`."""
        return self._number(name).value

    def set(self, **values: int) -> None:
        """Change properties of the device."""
        for name, value in values.items():
            self._number(name).value = value

    def _number(self, name: str) -> Any:
        wide = name in ("launches", "graph_launches", "graph_updates", "allocations", "frees", "streams", "modules")
        return (ctypes.c_long if wide else ctypes.c_int).in_dll(self.library, f"stub_{name}")

    def fail(self, function: str, status: int, after: int = 0) -> None:
        """The call number `after` of a driver function, from now, returns an error."""
        self.library.stub_fail(function.encode(), status, after)

    def _describe(self, handle: int, sizes: Any) -> int:
        found = [8 if t[0] == "*" else _SIZE[t] for t in self.kernels[handle].types]
        found += [4] * len(self.kernels[handle].sizes)
        for m in self.kernels[handle].maps.values():
            found += [128, *[4] * len(m.shape), *[8] * len(m.shape)]
        found += [8, 8]
        for i, n in enumerate(found):
            sizes[i] = n
        return len(found)

    def _run(self, handle: int, grid: Any, block: Any, shared: int, parameters: Any) -> int:
        try:
            kernel = self.kernels[handle]
            assert kernel.kernel is not None
            assert tuple(grid[:3]) == kernel.grid, f"{kernel.name}: grid {tuple(grid[:3])}, expected {kernel.grid}"
            types = kernel.types
            pointers = [ctypes.c_uint64.from_address(parameters[i]).value for i, t in enumerate(types) if t[0] == "*"]
            scalars = [_READ[t].from_address(parameters[i]).value for i, t in enumerate(types) if t[0] != "*"]
            at = len(types) + len(kernel.sizes)
            words = [ctypes.c_int32.from_address(parameters[i]).value for i in range(len(types), at)]
            assert words == list(kernel.sizes.values()), f"{kernel.name}: sizes {words}"
            for m in kernel.maps.values():
                at = _check_map(m, kernel, pointers, parameters, at)
            assert [ctypes.c_uint64.from_address(parameters[at + i]).value for i in (0, 1)] == [0, 0], "scratch pointers"
            for (i,) in kernel.attrs:
                if (pointers + scalars + words)[i] % 16:
                    return 716  # as the real thing: the kernel was compiled for aligned addresses
            if isinstance(kernel.kernel.body, Grouped):
                first, count = 2 * len(kernel.kernel.body.lengths), len(kernel.kernel.buffers)
                words = kernel.kernel.scalars
                table = (ctypes.c_uint64 * (first + count + len(words))).from_address(pointers[0])[first:]
                pointers, bits = table[:count], np.array(table[count:], np.uint64)
                scalars = [float(x.view(np.float64)) if s.dtype.is_floating_point else int(x.view(np.int64)) for s, x in zip(words, bits)]
                if kernel.constexprs["ALIGN"] == 16 and any(p % 16 for p in pointers):
                    return 716
            arrays = []
            for b, p in zip(kernel.kernel.buffers, pointers, strict=True):
                nbytes = b.size * b.dtype.itemsize
                if not self.library.stub_inside(ctypes.c_uint64(p), ctypes.c_size_t(nbytes)):
                    return 700
                arrays.append(np.frombuffer((ctypes.c_char * nbytes).from_address(p), b.dtype.np) if nbytes else np.empty(0, b.dtype.np))
            interpret_kernel(kernel.kernel, arrays, scalars)
            self.set(now=self.now + self.ticks(kernel))
            self.runs.append(kernel.name)
            return 0
        except BaseException:
            traceback.print_exc()
            return 719


class _Map(ctypes.Structure):
    """What the stub's cuTensorMapEncodeTiled writes."""

    _fields_ = [
        ("magic", ctypes.c_uint), ("type", ctypes.c_ushort), ("rank", ctypes.c_ubyte), ("swizzle", ctypes.c_ubyte),
        ("small", ctypes.c_uint64), ("address", ctypes.c_uint64), ("shape", ctypes.c_uint64 * 5), ("strides", ctypes.c_uint64 * 4),
        ("box", ctypes.c_ushort * 8),
    ]  # fmt: skip


def _check_map(m: TensorMap, kernel: TritonKernel, pointers: list[int], parameters: Any, at: int) -> int:
    """Parameter number `at` is this map of the buffer's present address, its extents and strides follow; the number after them."""
    assert kernel.kernel is not None
    rank, size = len(m.shape), kernel.kernel.buffers[m.buffer].dtype.itemsize
    found = _Map.from_address(parameters[at])
    assert (found.magic, found.rank, found.address) == (0x7A9, rank, pointers[m.buffer] + m.start * size)
    assert tuple(found.shape)[:rank] == m.shape[::-1]
    assert tuple(found.strides)[: rank - 1] == tuple(s * size for s in m.strides[:-1])[::-1]
    last = 1 + sum((n - 1) * s for n, s in zip(m.shape, m.strides))
    assert (found.small == 0) == (last * size < 128 * 1024), "drivers up to 13.1 encode small tensors wrongly"
    assert m.start + last <= kernel.kernel.buffers[m.buffer].size, "a map that reaches beyond its buffer"
    words = [ctypes.c_int32.from_address(parameters[at + 1 + i]).value for i in range(rank)]
    words += [ctypes.c_int64.from_address(parameters[at + 1 + rank + i]).value for i in range(rank)]
    assert words == [*m.shape, *m.strides]
    return at + 1 + 2 * rank


def _sizes(kernel: TritonKernel) -> str:
    nest = kernel.kernel
    if nest is None:
        return ""
    extents = [a.extent for a in (*nest.grid, *(a for p in nest.phases for a in p.reduce))]
    sizes = (kernel.grid, extents, [b.size for b in nest.buffers], list(kernel.sizes.values()))
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _built() -> bytes:
    with tempfile.TemporaryDirectory(prefix="torchlet-standin-") as folder:
        made = Path(folder, "stub.so")
        subprocess.run([CC, "-O1", "-shared", "-fPIC", "-w", "-o", str(made), str(SOURCE)], check=True, timeout=900)
        return made.read_bytes()


def fake_cubin(kernel: TritonKernel, target: str) -> tuple[bytes, LaunchInfo]:
    """No machine code: the stand-in runs the loop nest itself."""
    forms = []
    for name, m in kernel.maps.items():
        assert kernel.kernel is not None
        kind = kernel.signature[name]
        block = [int(n) for n in kind[kind.index("[") + 1 : kind.index("]")].split(",")]
        size = kernel.kernel.buffers[m.buffer].dtype.itemsize
        forms.append(MapForm(3, {1: 0, 2: 10, 4: 7}[size], size, (*block[:-1], min(block[-1], 128 // size))))  # as Triton cuts them
    return b"\x7fELF", LaunchInfo(kernel.name, kernel.num_warps, maps=forms)


@contextmanager
def stand_in(real_cubins: bool = False) -> Iterator[StandIn]:
    """Within the block, torchlet sees one CUDA device, which is the stand-in. With `real_cubins` Triton compiles every kernel."""
    assert CC, "no C compiler"
    folder = tempfile.mkdtemp(prefix="torchlet-standin-")
    path = Path(folder, "libcuda_stub.so")
    path.write_bytes(_built())  # a file of its own each time, so that the library starts anew
    caches = (driver.load, driver.launcher, device_module.device_count)
    tables: list[Any] = [device_module._DEVICES, launch._FUNCTIONS, eager._OPS, launch.HOST_CALLS]
    before = [dict(t) for t in tables], storage.in_use, launch.cubin_of, launch._key, launch.precompile, launch.compile_later
    for c in caches:
        c.cache_clear()
    for t in tables:
        t.clear()
    device_module.THREAD.context = None
    standin = StandIn(path)
    standin.cubin_of = launch.cubin_of

    def watch(function: Function, kernel: TritonKernel) -> None:
        standin.kernels[function.handle] = kernel

    launch.ON_LOAD.append(watch)
    # equal source can serve kernels of several sizes, whose loop nests, which the stand-in runs, differ
    launch._key = lambda kernel, target: f"{before[3](kernel, target)}-{_sizes(kernel)}"
    if not real_cubins:
        launch.cubin_of = fake_cubin
        launch.precompile = lambda kernels, target: None
        launch.compile_later = lambda kernels, target: lambda: list(kernels)
    try:
        with config(libcuda=str(path)):
            yield standin
            compiler.reset()
            for d in list(device_module._DEVICES.values()):
                d.arenas.clear()
            left = dict(device_module._DEVICES)
            for t in tables:
                t.clear()
            gc.collect()
            for d in left.values():
                d.close()
    finally:
        launch.ON_LOAD.remove(watch)
        launch.cubin_of, launch._key, launch.precompile, launch.compile_later = before[2:]
        storage.in_use = before[1]
        device_module.THREAD.context = None
        device_module.THREAD.streams.clear()
        for c in caches:
            c.cache_clear()
        for t, old in zip(tables, before[0], strict=True):
            t.clear()
            t.update(old)
        shutil.rmtree(folder, ignore_errors=True)
