"""Calls the C compiler and keeps what it made in a private cache folder."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from torchlet.config import config
from torchlet.errors import CompileError

__all__ = ["CSRC", "FLAGS", "cache_folder", "features", "fingerprint", "library", "read_entry", "write_entry"]

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
    folder = cache_folder()
    path = folder / f"{key}.so"
    entry = read_entry(key)
    if entry is not None and (digest := verified(path, entry.get("sha256"))):
        return path, digest
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as build:
        source, made = Path(build, "kernels.c"), Path(build, "kernels.so")
        source.write_text(text)
        folders = [f"-I{folder}" for folder in (str(CSRC), include) if folder]
        command = [*_command(config.cc), *folders, "-o", str(made), str(source), "-lm", "-lpthread"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise CompileError(f"cpu: the C compiler could not run: {problem}") from None
        if run.returncode:
            raise CompileError(f"cpu: {command[0]} failed with status {run.returncode}:\n{run.stderr[-8000:]}")
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        os.replace(source, folder / f"{key}.c")
        os.replace(made, path)
    write_entry(key, {"sha256": digest})
    return path, digest


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
    try:
        entry = json.loads((cache_folder() / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and all(isinstance(v, str) for v in entry.values()) else None


def write_entry(key: str, entry: dict[str, str]) -> None:
    """Keep facts under `key`; readers see the old or the new file, never a part."""
    folder = cache_folder()
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix="entry-", delete=False) as f:
        json.dump(entry, f)
    os.replace(f.name, folder / f"{key}.json")


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
