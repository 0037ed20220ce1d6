"""Compiles Triton source to TTIR, PTX and cubin (or AMDGCN) without a GPU, and reads registers and spills from the result."""

from __future__ import annotations

import functools
import importlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from torchlet.compiler import tile
from torchlet.compiler.codegen import triton
from torchlet.compiler.codegen.triton import TritonKernel
from torchlet.compiler.loops import Kernel
from torchlet.kernels import source
from torchlet.runtime.cc import cache_folder

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942", "hip:gfx950")


def compile_kernel(kernel: TritonKernel, target: str = "cuda:90") -> CompiledKernel:
    """The kernel for a target of `TARGETS`; compiled when a part that needs it is first asked for. Raises ValueError for other targets."""
    if target not in TARGETS:
        raise ValueError(f"compile_kernel: target '{target}'; expected one of {', '.join(TARGETS)}")
    return CompiledKernel(kernel, target)


def fitting(kernel: Kernel, target: str, flaw: Callable[[TritonKernel], int]) -> TritonKernel:
    """The kernel with the first of its tiles that has no flaw; if all have, the one with the least (see `CompiledKernel.flaw`)."""
    found: list[tuple[int, TritonKernel]] = []
    for choice in triton.emit_choices(kernel, target):
        size = flaw(choice)
        if not size:
            return choice
        found.append((size, choice))
    return min(found, key=lambda f: f[0])[1]


class CompiledKernel:
    """A kernel compiled for one target. Parts that the target lacks are None."""

    def __init__(self, kernel: TritonKernel, target: str):
        self.kernel, self.target = kernel, target
        self.name, self.source = kernel.name, kernel.source

    def __repr__(self) -> str:
        return f"CompiledKernel({self.name!r}, {self.target!r})"

    @functools.cached_property
    def _built(self) -> Any:
        return _build(self.kernel, self.target)

    @property
    def ttir(self) -> str:
        """Triton's own IR."""
        return self._built.asm["ttir"]

    @property
    def ptx(self) -> str | None:
        """PTX, on NVIDIA targets."""
        return self._built.asm.get("ptx")

    @property
    def amdgcn(self) -> str | None:
        """Assembly, on AMD targets."""
        return self._built.asm.get("amdgcn")

    @property
    def cubin(self) -> bytes | None:
        """The loadable binary, on NVIDIA targets."""
        return self._built.asm.get("cubin")

    @functools.cached_property
    def sass(self) -> str | None:
        """Machine code, on NVIDIA targets (disassembled on first use, which takes a second)."""
        return self._built.asm["sass"] if self.cubin else None

    @functools.cached_property
    def _resources(self) -> tuple[int, int]:
        """Registers of a thread, spilled bytes of a thread."""
        if self.cubin:
            return _cubin_resources(self.cubin)
        assert self.amdgcn is not None
        counts = {
            key: int(n) for key, n in re.findall(r"^\s*\.(vgpr_count|private_segment_fixed_size):\s*(\d+)", self.amdgcn, re.MULTILINE)
        }
        return counts["vgpr_count"], counts["private_segment_fixed_size"]

    @property
    def registers(self) -> int:
        """Registers of a thread (vector registers on AMD)."""
        return self._resources[0]

    @property
    def spill_bytes(self) -> int:
        """Bytes of local memory of a thread: what did not fit into registers."""
        return self._resources[1]

    @property
    def is_serialised(self) -> bool:
        """True where ptxas waits between the warp-group products (wgmma) of one step, which then cannot overlap."""
        return bool(self.cubin and self.ptx) and _serialised(self.ptx, self.cubin)  # type: ignore[arg-type]

    @property
    def flaw(self) -> int:
        """0 for a kernel whose tile fits: else bytes spilled, and much more for serialised products and too much shared memory."""
        return self.spill_bytes + (self.is_serialised << 20) + ((self.shared_bytes > tile.MACHINES[self.target].shared_bytes) << 21)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a program."""
        return self._built.metadata.shared

    @property
    def num_warps(self) -> int:
        """Warps of a program, as compiled."""
        return self._built.metadata.num_warps

    @property
    def metadata(self) -> Any:
        """Triton's metadata: scratch sizes, cluster dimensions, the entry's name."""
        return self._built.metadata

    @property
    def bytes_moved(self) -> int | None:
        """Bytes between memory and chip; None for a kernel that was written by hand."""
        return tile.bytes_moved(self.kernel.kernel) if self.kernel.kernel else None

    @property
    def flops(self) -> int | None:
        """Floating-point operations; None for a kernel that was written by hand."""
        return tile.flops(self.kernel.kernel) if self.kernel.kernel else None

    @property
    def roofline_us(self) -> float | None:
        """The least time on the target's flagship; None for a kernel that was written by hand."""
        return tile.roofline_us(self.kernel.kernel, self.target) if self.kernel.kernel else None

    @property
    def lines(self) -> tuple[str, ...]:
        """The user's lines (file:line) that the kernel computes."""
        return self.kernel.kernel.origin if self.kernel.kernel else ()


def _build(kernel: TritonKernel, target: str) -> Any:
    key = (
        kernel.source,
        tuple(kernel.signature.items()),
        tuple(kernel.constexprs.items()),
        tuple(kernel.attrs),
        kernel.num_warps,
        kernel.num_stages,
        target,
    )
    found = _BUILT.get(key)
    if found is None:
        # here and nowhere else: a process whose kernels are all in the cache never waits for Triton's import
        library = importlib.import_module("triton")
        vars(importlib.import_module("triton.runtime.cache"))["triton_key"] = _library_key
        library.knobs.compilation.disable_line_info = True  # the source is in no file; to carry its lines takes a twentieth of the time
        gpu_target = importlib.import_module("triton.backends.compiler").GPUTarget
        ast_source = importlib.import_module("triton.compiler").ASTSource
        backend, _, arch = target.partition(":")
        gpu = gpu_target(backend, int(arch), 32) if backend == "cuda" else gpu_target(backend, arch, 64)
        # Triton's default for fusion differs between versions
        options: dict[str, Any] = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages, "enable_fp_fusion": True}
        if backend == "hip":
            options["num_stages"] = min(kernel.num_stages, 2)  # 64 KiB of shared memory
        function = source.load(kernel.source)[kernel.name]
        text = ast_source(
            function, dict(kernel.signature), dict(kernel.constexprs), {k: [list(a) for a in v] for k, v in kernel.attrs.items()}
        )
        folder = str(cache_folder() / "triton")
        if library.knobs.cache.dir != folder:
            library.knobs.cache.dir = folder  # Triton keeps what it compiled, in files that it replaces atomically
        found = _BUILT[key] = library.compile(text, target=gpu, options=options)
    return found


_BUILT: dict[tuple[Any, ...], Any] = {}


@functools.cache
def _library_key() -> str:
    """Which Triton this is, for its cache: its own way is to hash half a gigabyte of library, which takes half a second."""
    library = importlib.import_module("triton._C.libtriton").__file__
    assert library is not None
    found = os.stat(library)
    return f"{library}-{version('triton')}-{found.st_size}-{found.st_mtime_ns}"


_REGISTERS, _FRAME = 0x2F, 0x11  # attributes EIATTR_REGCOUNT and EIATTR_FRAME_SIZE of the section .nv.info


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack frame of a cubin's kernel, from its ELF sections; the same numbers as `cuobjdump -res-usage`."""
    sections, start = _sections(cubin)
    info = next(s for s in sections if cubin[start + s[0] : start + s[0] + 9] == b".nv.info\0")
    found = {_REGISTERS: 0, _FRAME: 0}
    for attribute, value in _attributes(cubin, info[4], info[4] + info[5]):
        if attribute in found:
            found[attribute] = max(found[attribute], struct.unpack("<II", value)[1])
    return found[_REGISTERS], found[_FRAME]


_GMMA = (0x9F0, 0x9F1)  # opcodes of HGMMA and IGMMA
_NO_BARRIER = 7  # in place of the number of the barrier that the products up to here signal


def _serialised(ptx: str, cubin: bytes) -> bool:
    """Products signal a barrier once for each group that the PTX commits; where ptxas put waits between them, more often."""
    products, groups = ptx.count("wgmma.mma_async"), ptx.count("wgmma.commit_group")
    if not products:
        return False
    found = [high for low, high in struct.iter_unpack("<QQ", _code(cubin)) if low & 0xFFF in _GMMA]
    signals = sum((high >> 20) & 7 != _NO_BARRIER for high in found)
    return signals > groups * max(1, len(found) // products)  # a loop may be unrolled, a product be two instructions


def _sections(cubin: bytes) -> tuple[list[tuple[int, ...]], int]:
    """The section headers (name, type, flags, address, offset, length), and where their names are."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    return sections, sections[names][4]


def _code(cubin: bytes) -> bytes:
    """The kernel's instructions, 16 bytes each."""
    sections, start = _sections(cubin)
    found = next(s for s in sections if cubin[start + s[0] : start + s[0] + 6] == b".text.")
    return cubin[found[4] : found[4] + found[5] // 16 * 16]


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The sized attributes of a .nv.info section."""
    while start < end:
        layout, attribute, length = struct.unpack_from("<BBH", data, start)
        start += 4
        if layout == 4:  # the 16-bit field is a length; in the other layouts it is the value
            yield attribute, data[start : start + length]
            start += length
