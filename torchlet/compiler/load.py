"""Turns kernels into callable addresses: one C file and one compiler call for all that the cache lacks."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.loops import Dot, Kernel, Reduction
from torchlet.compiler.recipe import Launch
from torchlet.compiler.simplify_loops import map_kernel, substitute_axes
from torchlet.config import config
from torchlet.errors import CompileError
from torchlet.expr import Expr, expr
from torchlet.index import Axis
from torchlet.runtime import cc
from torchlet.runtime import cpu as runtime

__all__ = ["LoadedKernel", "Source", "canonical", "function_of", "load", "load_kept", "printed"]


@dataclass(frozen=True, slots=True)
class Source:
    """The C text that serves a kernel. `values`: of the parameters that come after the kernel's scalars, where it serves many sizes.

    `note`: why no text that was there before serves it; empty where one does.
    """

    text: str
    values: tuple[int | float, ...] = ()
    note: str = ""


@dataclass(frozen=True, eq=False)
class LoadedKernel:
    """A compiled kernel.

    `address` of its function, `key` of its structure, `work` in element operations, `parallel` when that pays for threads; `sizes` to
    be passed after its scalars.
    """

    name: str
    address: int
    parallel: bool
    key: str
    work: int
    kernel: Kernel
    sizes: tuple[int | float, ...] = ()

    @property
    def writes(self) -> tuple[int, ...]:
        """The positions of the buffers that it writes."""
        stored = {s.buffer for p in self.kernel.phases for s in p.stores}
        return tuple(i for i, b in enumerate(self.kernel.buffers) if b.role != "input" or b.name in stored)

    @cached_property
    def source(self) -> str:
        """The C function with the user's names, as the dump shows it."""
        return codegen.emit(self.kernel)


_ADDRESSES: dict[str, int] = {}
PARTS: dict[str, list[str]] = {}  # of the runtime that a kernel calls, where it calls any
COUNTS = {"kernels": 0, "compiled": 0, "calls": 0}  # how many were asked for, how many compiled, and how often the C compiler was called
PART = 1 << 13  # characters of C, about a quarter of a second, that are worth a call of the compiler for a further core


def load(kernels: Sequence[Kernel], sources: Sequence[Source] | None = None, parts: Sequence[str] = ()) -> list[LoadedKernel]:
    """The kernels, compiled. Equal ones under different names share one function. Raises CompileError with the compiler's output.

    `sources`: what to compile for each, where it is not the text of the kernel itself. `parts` of the runtime that are needed next, too.
    """
    found: list[LoadedKernel] = []
    fingerprint = cc.fingerprint() + _header_digest()
    texts: dict[str, str] = {}
    keys: list[str] = []
    if sources is None:
        sources = [Source(printed(kernel)) for kernel in kernels]
    for source in sources:
        text = source.text
        key = hashlib.sha256((fingerprint + text).encode()).hexdigest()[:40]
        texts[key] = text
        keys.append(key)
    every = "\n".join(texts.values())
    PARTS.update({key: needed for key, text in texts.items() if (needed := runtime.parts(text))})
    absent = [key for key in texts if key not in _ADDRESSES]
    missing = [key for key in absent if _on_disk(key) is None]
    if missing:
        runtime.build_ahead([*runtime.parts(every), *parts])
        _build(missing, texts)
    runtime.link(runtime.parts(every))
    broken = [key for key in absent if not _open(key)]
    if broken:
        _build(broken, texts)
        for key in broken:
            if not _open(key):
                raise CompileError(f"cpu: the compiled library has no function tl_{key}")
    COUNTS["kernels"] += len(keys)
    COUNTS["compiled"] += len(missing) + len(broken)
    for kernel, source, key in zip(kernels, sources, keys, strict=True):
        amount = codegen.work(kernel)
        found.append(LoadedKernel(kernel.name, _ADDRESSES[key], amount >= codegen.MIN_WORK, key, amount, kernel, source.values))
    return found


def load_kept(keys: Sequence[str], parts: Sequence[str]) -> None:
    """Load kernels that were compiled before, and the parts of the runtime that they call. Raises CompileError where one is gone."""
    runtime.link(parts)
    for key in dict.fromkeys(keys):
        if key not in _ADDRESSES and not _open(key):
            raise CompileError(f"cpu: the cache has no kernel {key}")
    COUNTS["kernels"] += len(keys)


def function_of(launch: Launch) -> runtime.Function:
    """A kernel that was loaded, or a function of the runtime, to be launched."""
    address = runtime.address_of(launch.function) if launch.native else _ADDRESSES[launch.function]
    return runtime.Function(launch.name, address, launch.work, launch.writes, launch.parallel)


def printed(kernel: Kernel) -> str:
    """The kernel as C, without names, as it is compiled."""
    return _printed(kernel, config.cpu_float32_dot)


@lru_cache(maxsize=4096)
def _printed(kernel: Kernel, precision: str) -> str:
    return codegen.emit(canonical(kernel))


@lru_cache(maxsize=1)
def _header_digest() -> str:
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in sorted(cc.CSRC.glob("*.h")))).hexdigest()


def _build(missing: list[str], texts: dict[str, str]) -> None:
    """Compile the missing kernels, in parts side by side where that is much, and note in the cache where each one is."""
    parts = _shares(missing, texts)
    names = ["kernels-" + hashlib.sha256("".join(sorted(part)).encode()).hexdigest()[:40] for part in parts]
    COUNTS["calls"] += not all((cc.cache_folder() / f"{name}.so").exists() for name in names)
    wanted = [
        (name, "\n".join(['#include "tl_runtime.h"', "", *(texts[key].replace(_PLACEHOLDER, f"tl_{key}") for key in part)]))
        for name, part in zip(names, parts, strict=True)
    ]
    for name, part, (_, digest) in zip(names, parts, cc.libraries(wanted), strict=True):
        for key in part:
            cc.write_entry(key, {"library": name, "sha256": digest})


def _shares(keys: list[str], texts: dict[str, str]) -> list[list[str]]:
    """The kernels in as many parts as there are cores, but none so small that starting the compiler is most of the work."""
    count = max(1, min(runtime.cores(), sum(len(texts[key]) for key in keys) // PART))
    parts: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for key in sorted(keys, key=lambda key: (-len(texts[key]), key)):
        i = sizes.index(min(sizes))
        parts[i].append(key)
        sizes[i] += len(texts[key])
    return parts


def _on_disk(key: str) -> Path | None:
    """The library that has a kernel, None where there is none, or a damaged one."""
    entry = cc.read_entry(key)
    if entry is None or not entry.get("library", "").replace("-", "").isalnum():
        return None
    path = cc.cache_folder() / f"{entry['library']}.so"
    return None if cc.verified(path, entry.get("sha256")) is None else path


def _open(key: str) -> bool:
    path = _on_disk(key)
    try:
        address = None if path is None else ctypes.cast(getattr(ctypes.CDLL(str(path)), f"tl_{key}"), ctypes.c_void_p).value
    except (OSError, AttributeError):
        return False
    if address is not None:
        _ADDRESSES[key] = address
    return address is not None


_PLACEHOLDER = "tl_the_kernel"


def canonical(kernel: Kernel) -> Kernel:
    """The kernel with every name replaced by its position, so that equal kernels of different layers are equal texts."""
    buffers = {b.name: f"b{i}" for i, b in enumerate(kernel.buffers)}
    scalars = {a.name: f"s{i}" for i, a in enumerate(kernel.scalars)}
    results: dict[str, str] = {}
    for phase in kernel.phases:
        for r in phase.reductions:
            results.setdefault(r.name, f"v{len(results)}")
    axes: dict[Axis, Axis | None] = {}
    for a in (*kernel.grid, *(a for p in kernel.phases for a in p.reduce)):
        axes.setdefault(a, Axis(f"i{len(axes)}", a.extent))
    kernel = substitute_axes(kernel, axes)

    def rename(e: Expr) -> Expr | None:
        if e.op == "load":
            return expr("load", e.args, e.dtype, (buffers[e.attr[0]], e.attr[1]))  # type: ignore[index]
        if e.op == "scalar":
            return expr("scalar", (), e.dtype, scalars[e.attr])  # type: ignore[index]
        if e.op == "value":
            return expr("value", (), e.dtype, results[e.attr])  # type: ignore[index]
        return None

    kernel = map_kernel(kernel, rename)

    def part(r: Reduction | Dot) -> Reduction | Dot:
        return replace(r, name=results[r.name])

    phases = tuple(
        replace(p, reductions=tuple(part(r) for r in p.reductions), stores=tuple(replace(s, buffer=buffers[s.buffer]) for s in p.stores))
        for p in kernel.phases
    )
    return Kernel(
        _PLACEHOLDER, kernel.grid, phases, tuple(replace(b, name=buffers[b.name]) for b in kernel.buffers),
        tuple(replace(a, name=scalars[a.name]) for a in kernel.scalars), (), kernel.body,
    )

