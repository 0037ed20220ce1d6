"""Turns Triton source text into jit functions, without files."""

from __future__ import annotations

import functools
import hashlib
import linecache
from types import MappingProxyType
from typing import Any


@functools.lru_cache(maxsize=4096)
def load(source: str) -> MappingProxyType[str, Any]:
    """The global names that the text defines. Triton reads a function's text back through `linecache`, so it is put there."""
    filename = f"<torchlet:{hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    names: dict[str, Any] = {"__name__": "torchlet_kernel"}
    exec(compile(source, filename, "exec"), names)
    return MappingProxyType(names)
