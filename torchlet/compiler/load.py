"""Turns kernels into callable addresses: one C file and one compiler call for all that the cache lacks."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.loops import Dot, Kernel, Reduction
from torchlet.compiler.simplify_loops import map_kernel, substitute_axes
from torchlet.config import config
from torchlet.errors import CompileError
from torchlet.expr import Expr, expr
from torchlet.index import Axis
from torchlet.runtime import cc
from torchlet.runtime import cpu as runtime

__all__ = ["LoadedKernel", "Source", "canonical", "load", "printed"]


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
COUNTS = {"kernels": 0, "compiled": 0, "calls": 0}  # how many were asked for, how many compiled, and in how many calls of the C compiler


def load(kernels: Sequence[Kernel], sources: Sequence[Source] | None = None) -> list[LoadedKernel]:
    """The kernels, compiled. Equal ones under different names share one function. Raises CompileError with the compiler's output.

    `sources`: what to compile for each, where it is not the text of the kernel itself.
    """
    found: list[LoadedKernel] = []
    runtime.runtime()
    fingerprint = cc.fingerprint() + _header_digest()
    texts: dict[str, str] = {}
    keys: list[str] = []
    if sources is None:
        sources = [Source(printed(kernel)) for kernel in kernels]
    for source in sources:
        text = source.text
        runtime.link(text)
        key = hashlib.sha256((fingerprint + text).encode()).hexdigest()[:40]
        texts[key] = text
        keys.append(key)
    missing = [key for key in texts if key not in _ADDRESSES and not _load_from_cache(key)]
    COUNTS["kernels"] += len(keys)
    COUNTS["compiled"] += len(missing)
    if missing:
        _build(missing, texts)
    for kernel, source, key in zip(kernels, sources, keys, strict=True):
        amount = codegen.work(kernel)
        found.append(LoadedKernel(kernel.name, _ADDRESSES[key], amount >= codegen.MIN_WORK, key, amount, kernel, source.values))
    return found


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
    """Compile the missing kernels together and note in the cache where each one is."""
    parts = [texts[key].replace(_PLACEHOLDER, f"tl_{key}") for key in missing]
    text = "\n".join(['#include "tl_runtime.h"', "", *parts])
    name = "kernels-" + hashlib.sha256("".join(sorted(missing)).encode()).hexdigest()[:40]
    COUNTS["calls"] += not (cc.cache_folder() / f"{name}.so").exists()
    path, digest = cc.library(name, text)
    for key in missing:
        cc.write_entry(key, {"library": name, "sha256": digest})
    library = ctypes.CDLL(str(path))
    for key in missing:
        _ADDRESSES[key] = _address(library, key)


def _load_from_cache(key: str) -> bool:
    entry = cc.read_entry(key)
    if entry is None or not entry.get("library", "").replace("-", "").isalnum():
        return False
    path = cc.cache_folder() / f"{entry['library']}.so"
    if cc.verified(path, entry.get("sha256")) is None:
        return False
    try:
        _ADDRESSES[key] = _address(ctypes.CDLL(str(path)), key)
    except (OSError, AttributeError):
        return False
    return True


def _address(library: ctypes.CDLL, key: str) -> int:
    address = ctypes.cast(getattr(library, f"tl_{key}"), ctypes.c_void_p).value
    if address is None:
        raise CompileError(f"cpu: the compiled library has no function tl_{key}")
    return address


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

