"""The debug dump: every stage and every kernel of what was compiled, as files that can be read and rerun.

    TORCHLET_DEBUG=1            writes to ./torchlet_debug; TORCHLET_DEBUG=folder to a folder; `1,ptx` adds PTX and registers
    torchlet.debug.dump(dir)    from here on; as `with torchlet.debug.dump(dir):` until the block ends
    torchlet.compile(f, dump=dir)

Folders are numbered in the order of compilation; files have no dates and are replaced as a whole, so that two dumps of the same
program differ in times.json only. `pages.py` writes what stands in them, `rerun.py` is what their scripts call.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torchlet.compiler import pages, report, tile
from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.loops import Kernel
from torchlet.config import config

__all__ = ["CpuKernel", "cpu_report", "dump", "record"]

SCHEMA_VERSION = 1
_LOCK = threading.RLock()


# ------------------------------------------------------------------------------------------------ where to


class dump:
    """`torchlet.debug.dump(folder)` dumps what is compiled from now on; in a `with` statement, until the end of its block.

    `ptx=True` also compiles each kernel with Triton, which takes about a second a kernel.
    """

    def __init__(self, folder: str | os.PathLike[str] = "torchlet_debug", *, ptx: bool = False):
        self.before = config.debug
        config.debug = f"{os.fspath(folder)}{',ptx' if ptx else ''}"

    def __enter__(self) -> dump:
        return self

    def __exit__(self, *_: object) -> None:
        config.debug = self.before


def _destinations(function: Any) -> dict[Path, bool]:
    """Folder -> whether PTX is wanted: of the switch, and of the function itself."""
    found: dict[Path, bool] = {}
    for text in (config.debug, os.fspath(function.dump or "")):
        if text and text != "0":
            words = text.split(",")
            folder = next((w for w in words if w not in ("1", "ptx")), "torchlet_debug")
            path = Path(folder).absolute()
            found[path] = "ptx" in words or found.get(path, False)
    return found


def record(function: Any, path: Any, program: Any, scalars: Sequence[float | int | bool]) -> None:
    """Dump a program that was just compiled, if someone asked for it; its backward half follows when it is compiled.

    `scalars`: the Python numbers of the call. A folder that cannot be written gives a warning, not an error.
    """
    for folder, ptx in _destinations(function).items():
        numbers = [] if program.stepwise else [scalars[i] for i in program.segment.scalars]
        entry = pages.Entry(function, path, program, numbers)
        dumped = _DUMPS.get(folder)
        if dumped is None:
            dumped = _DUMPS[folder] = _Dump(folder)
        dumped.add(entry, ptx)
        if program.backward is not None and not program.stepwise:
            earlier = program.backward.on_compiled

            def both(dumped: _Dump = dumped, entry: pages.Entry = entry, ptx: bool = ptx, earlier: Any = earlier) -> None:
                if earlier is not None:
                    earlier()
                dumped.write(entry, ptx)

            program.backward.on_compiled = both


class _Dump:
    """One folder of dumps in this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: list[pages.Entry] = []

    def add(self, entry: pages.Entry, ptx: bool) -> None:
        """A new numbered folder."""
        with _LOCK:
            if not self.entries:
                self._clear()
            self.entries.append(entry)
            name = re.sub(r"\W+", "_", entry.name) or "function"
            entry.folder = f"{len(self.entries):03}_{name}"
            self.write(entry, ptx)

    def _clear(self) -> None:
        """Remove the folders that an earlier process left, and nothing else: those that its index lists."""
        try:
            listed = [f["folder"] for f in json.loads((self.folder / "index.json").read_text())["functions"]]
        except (OSError, ValueError, KeyError, TypeError):
            return
        for name in listed:
            if isinstance(name, str) and re.fullmatch(r"\d{3}_\w+", name):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def write(self, entry: pages.Entry, ptx: bool) -> None:
        """All files of an entry, and the index."""
        with _LOCK:
            try:
                self._write(entry, ptx)
            except OSError as problem:
                warnings.warn(f"debug dump: {problem}", RuntimeWarning, stacklevel=2)

    def _write(self, entry: pages.Entry, ptx: bool) -> None:
        for half in entry.halves:
            if half.exe not in entry.watched:
                entry.watched.append(half.exe)
                half.exe.on_tuned.append(lambda: self.write(entry, ptx))
        for name, text in pages.pages(entry, ptx).items():
            _put(self.folder / entry.folder / name, text)
        index = self.index()
        _put(self.folder / "index.json", json.dumps(index, indent=2) + "\n")
        _put(self.folder / "report.html", report.html(index, self.folder))

    def index(self) -> dict[str, Any]:
        """What is in the folder."""
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in ("torchlet", "numpy", "triton")}},
            "functions": [_describe(e) for e in self.entries],
        }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _describe(entry: pages.Entry) -> dict[str, Any]:
    ended = next((place for path, place in entry.function.paths if path is entry.path), "")
    return {
        "folder": entry.folder,
        "name": entry.name,
        "segment": 1 + next((i for i, (path, _) in enumerate(entry.function.paths) if path is entry.path), 0),
        "ended_at": pages.short(ended),
        "ended_because": list(entry.path.reasons),
        "stepwise": entry.program.stepwise,
        "steps": len(entry.path.steps),
        "externs": [f"{n.op.name if n.op else n.kind}" for h in entry.halves for n in h.exe.externs],
        "arena_bytes": {h.title: h.exe.plan.arena_bytes for h in entry.halves},
        "kernels": [
            {
                "label": k.label, "half": k.half.title, "lines": list(k.kernel.origin),
                "bytes_moved": tile.bytes_moved(k.kernel), "flops": tile.flops(k.kernel),
                "roofline_us": {"cpu": pages.cpu_roofline_us(k.kernel), pages.TARGET: tile.roofline_us(k.kernel, pages.TARGET)},
            }
            for k in entry.kernels
        ],
    }


def _put(path: Path, text: str) -> None:
    """Write a file as a whole: readers see the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


_DUMPS: dict[Path, _Dump] = {}


# ------------------------------------------------------------------------------------------------ a kernel for the CPU


@dataclass(frozen=True)
class CpuKernel:
    """A kernel printed for the CPU: the fields of `offline.CompiledKernel`; None where a CPU has no such thing."""

    kernel: Kernel
    name: str
    source: str
    bytes_moved: int
    flops: int
    roofline_us: float
    lines: tuple[str, ...]
    target: str = "cpu"
    ttir: None = None
    ptx: None = None
    sass: None = None
    registers: None = None
    spill_bytes: None = None
    shared_bytes: None = None
    num_warps: None = None


def cpu_report(kernel: Kernel) -> CpuKernel:
    """The kernel as C, with what it costs. Raises UnsupportedError for an operator that has no C."""
    moved, work, least = tile.bytes_moved(kernel), tile.flops(kernel), pages.cpu_roofline_us(kernel)
    return CpuKernel(kernel, kernel.name, codegen.emit(kernel), moved, work, least, kernel.origin)
