"""Calls the C compiler and keeps what it made in a private cache folder."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torchlet.config import config
from torchlet.errors import CompileError

__all__ = ["CSRC", "FLAGS", "build_ahead", "cache_folder", "features", "fingerprint", "libraries", "library", "read_entry", "write_entry"]

CSRC = Path(__file__).with_name("csrc")
# never -ffast-math: it breaks -inf masks and NumPy's denormals; only the reductions we write are reassociated
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fwrapv",
    "-w",
)
_NATIVE = {"x86_64": ("-march=native", "-mprefer-vector-width=512"), "AMD64": ("-march=native", "-mprefer-vector-width=512")}


def fingerprint() -> str:
    """What a compiled library depends on besides its source: compiler, flags, processor."""
    return _fingerprint(config.cc)


@lru_cache(maxsize=8)
def _fingerprint(cc: str) -> str:
    command = _command(cc)
    program = Path(command[0]).resolve()
    found = program.stat()
    cpu = platform.machine() + ("".join(_processor()) or platform.processor())
    return hashlib.sha256(repr((command[1:], str(program), found.st_size, found.st_mtime_ns, cpu)).encode()).hexdigest()


@lru_cache(maxsize=1)
def _processor() -> tuple[str, ...]:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    return tuple(sorted({x for x in lines if x.startswith(("flags", "Features", "model name", "CPU part"))}))


def features() -> frozenset[str]:
    """The names of the processor's features, as Linux calls them; none where they are not known."""
    return frozenset(word for line in _processor() if line.startswith("flags") for word in line.split(":", 1)[1].split())


@lru_cache(maxsize=8)
def _command(cc: str) -> tuple[str, ...]:
    words = shlex.split(cc) if cc else []
    name = next((w for w in ([words[0]] if words else ["cc", "gcc", "clang"]) if shutil.which(w)), None)
    if name is None:
        raise CompileError(
            f"cpu: no C compiler found ({cc or 'cc, gcc, clang'}); expected one on PATH\nhelp: install gcc or clang, or set CC"
        )
    return (shutil.which(name) or name, *words[1:], *_NATIVE.get(platform.machine(), ("-mcpu=native",)), *FLAGS)


def library(key: str, text: str, include: str = "") -> tuple[Path, str]:
    """The shared library of the C `text` and its sha256, from the cache or built now. Raises CompileError with the compiler's output.

    `include` is a folder of headers beside our own.
    """
    return _library(key, text, include, cache_folder(), _command(config.cc))


def libraries(wanted: Sequence[tuple[str, str]]) -> list[tuple[Path, str]]:
    """The same for several (key, text) at once: what has to be built is built side by side. Raises CompileError."""
    build_ahead(wanted[1:])
    return [library(key, text) for key, text in wanted]


def build_ahead(wanted: Sequence[tuple[str, str]]) -> None:
    """Begin to build what the cache lacks; nobody waits for it here, and who needs it gets it, or the error, from `library`."""

    def build(*job: Any) -> None:
        with contextlib.suppress(CompileError, OSError):
            _library(*job)

    for key, text in wanted:
        if not _locks.setdefault(key, threading.Lock()).locked() and _cached(key, cache_folder()) is None:
            job = key, text, "", cache_folder(), _command(config.cc)
            threading.Thread(target=build, args=job, name=f"torchlet builds {key}").start()


def _library(key: str, text: str, include: str, folder: Path, command: Sequence[str]) -> tuple[Path, str]:
    with _locks.setdefault(key, threading.Lock()):  # who comes second finds what the first has built
        return _cached(key, folder) or _build(key, text, include, folder, command)


def _cached(key: str, folder: Path) -> tuple[Path, str] | None:
    path = folder / f"{key}.so"
    entry = _read(folder / f"{key}.json")
    digest = verified(path, entry.get("sha256")) if entry is not None else None
    return (path, digest) if digest else None


def _build(key: str, text: str, include: str, folder: Path, compiler: Sequence[str]) -> tuple[Path, str]:
    path = folder / f"{key}.so"
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as build:
        source, made = Path(build, "kernels.c"), Path(build, "kernels.so")
        source.write_text(text)
        folders = [f"-I{folder}" for folder in (str(CSRC), include) if folder]
        command = [*compiler, *folders, "-o", str(made), str(source), "-lm", "-lpthread"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise CompileError(f"cpu: the C compiler could not run: {problem}") from None
        if run.returncode:
            raise CompileError(f"cpu: {command[0]} failed with status {run.returncode}:\n{run.stderr[-8000:]}")
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        os.replace(source, folder / f"{key}.c")
        os.replace(made, path)
    _write(folder / f"{key}.json", {"sha256": digest})
    return path, digest


_locks: dict[str, threading.Lock] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)  # a child has no thread that would give one back


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, mtime: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verified(path: Path, digest: object) -> str | None:
    """`digest` when the file has it, None when the file is missing or damaged."""
    try:
        found = path.stat()
        return str(digest) if _digest(path, found.st_size, found.st_mtime_ns) == digest else None
    except OSError:
        return None


def read_entry(key: str) -> dict[str, str] | None:
    """The facts kept under `key`, None when absent or unreadable."""
    return _read(cache_folder() / f"{key}.json")


def _read(path: Path) -> dict[str, str] | None:
    try:
        entry = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and all(isinstance(v, str) for v in entry.values()) else None


def write_entry(key: str, entry: dict[str, str]) -> None:
    """Keep facts under `key`; readers see the old or the new file, never a part."""
    _write(cache_folder() / f"{key}.json", entry)


def _write(path: Path, entry: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="entry-", delete=False) as f:
        json.dump(entry, f)
    os.replace(f.name, path)


def cache_folder() -> Path:
    """The folder of this user's compiled kernels: private, or a temporary one (after one warning) when that cannot be."""
    return _cache_folder(config.cache_dir)


@lru_cache(maxsize=8)
def _cache_folder(chosen: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(chosen) if chosen else Path(base, "torchlet")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            raise OSError("it belongs to another user")
        if found.st_mode & 0o077:
            folder.chmod(0o700)  # a library that others may write would be code that others may run
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
        return folder
    except OSError as problem:
        temporary = Path(tempfile.mkdtemp(prefix="torchlet-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        warnings.warn(
            f"torchlet: cache folder {folder} cannot be used ({problem}); compiled kernels are kept in {temporary} until exit", stacklevel=2
        )
        return temporary
