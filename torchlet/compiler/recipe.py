"""Keeps on disk what compiling a graph for the CPU came to, so that another process launches it without passes, plan or C text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Hashable
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from torchlet.compiler.graph import Graph, Node
from torchlet.config import config
from torchlet.dtypes import dtype, get_default_dtype
from torchlet.errors import CompileError
from torchlet.op import OPS
from torchlet.runtime import cc
from torchlet.spec import Spec, device

__all__ = ["Launch", "Recipe", "find", "keep", "key_of"]

MAX_FILES = 2048  # in the cache folder, of some 10 kB each
_ATOMS = (int, float, bool, str, type(None))
_IMPORTED = time.time()
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, by its key in the cache, or (`native`) a function of the C runtime, by its name; and which pointers and numbers it gets."""

    name: str
    native: bool
    function: str
    work: int
    parallel: bool
    writes: tuple[int, ...]
    pointers: tuple[int, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One program. Its pointers are the inputs, the outputs, then places in the arena; its numbers the call's, then `fixed`.

    `places`: the offset in the arena of each place; `overlaps`: for a pointer to the arena all that share memory with it; `parts`: of the
    runtime, that the kernels call.
    """

    launches: tuple[Launch, ...]
    places: tuple[int, ...]
    fixed: tuple[int, ...]
    overlaps: dict[int, tuple[int, ...]]
    arena_bytes: int
    parts: tuple[str, ...]


def key_of(graph: Graph, *more: Hashable) -> str | None:
    """The key of all that compiling depends on: the graph (but not the lines it came from), `more`, our own code, compiler and processor.

    None where something in the graph has no text that says all of it, or where there is no compiler.
    """
    number: dict[Node, int] = {}
    parts: list[Any] = [graph.name, graph.targets, graph.output_names, more, config.cpu_float32_dot, get_default_dtype().name]
    try:
        for n in (*graph.inputs, *graph.scalars, *graph.nodes()):
            if n not in number:
                number[n] = len(number)
                inputs = [(number[x],) if isinstance(x, Node) else _plain(x) for x in n.inputs]
                parts.append((n.kind, _name(n), inputs, _plain(n.attrs), _plain(n.spec), n.name))
        parts.append([number[n] for n in graph.outputs])
        return "recipe-" + hashlib.sha256((_surroundings(cc.fingerprint()) + repr(parts)).encode()).hexdigest()[:40]
    except (CompileError, _Unknown):
        return None


class _Unknown(Exception):
    """Something of which no text says all."""


def _name(n: Node) -> str:
    if n.op is None:
        return ""
    if OPS.get(n.op.name) is not n.op:
        raise _Unknown
    return n.op.name


def _plain(x: Any) -> Any:
    if type(x) in _ATOMS:
        return x
    if isinstance(x, tuple):
        return tuple([_plain(y) for y in x])
    if isinstance(x, Spec):
        return tuple(x.shape), x.dtype.name, str(x.device), x.weak
    if isinstance(x, dtype):
        return "dtype", x.name
    if isinstance(x, device):
        return "device", str(x)
    raise _Unknown


@lru_cache(maxsize=8)
def _surroundings(fingerprint: str) -> str:
    """What a recipe depends on besides its graph."""
    digest = hashlib.sha256(repr((fingerprint, sys.version, np.__version__)).encode())
    for path in sorted([*_PACKAGE.rglob("*.py"), *cc.CSRC.glob("*.[ch]")]):
        if path.stat().st_mtime > _IMPORTED:  # what runs here is not what stands there
            raise _Unknown
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find(key: str) -> Recipe | None:
    """What was kept under the key; None where nothing was, or where it is damaged."""
    entry = cc.read_entry(key)
    text = (entry or {}).get("recipe", "")
    if entry is None or entry.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        return None
    kept: dict[str, Any] = json.loads(text)
    launches = tuple([_launch([tuple(v) if isinstance(v, list) else v for v in x]) for x in kept["launches"]])
    overlaps = {int(k): tuple(v) for k, v in kept["overlaps"].items()}
    return Recipe(launches, tuple(kept["places"]), tuple(kept["fixed"]), overlaps, kept["arena_bytes"], tuple(kept["parts"]))


@lru_cache(maxsize=8)
def _make_room(folder: Path) -> None:
    """Once a process: forget the older half of too many."""
    with contextlib.suppress(OSError):  # another process does the same
        found = sorted(folder.glob("recipe-*.json"), key=lambda p: p.stat().st_mtime)
        for path in found[: -MAX_FILES // 2] if len(found) > MAX_FILES else ():
            path.unlink(missing_ok=True)


def _launch(values: list[Any]) -> Launch:
    return Launch(*values)


def keep(key: str, recipe: Recipe) -> None:
    """Keep a recipe, if the disk takes it: it saves time, nothing else."""
    launches = [list(astuple(x)) for x in recipe.launches]
    _make_room(cc.cache_folder())
    text = json.dumps({f.name: getattr(recipe, f.name) for f in fields(recipe)} | {"launches": launches})
    with contextlib.suppress(OSError):
        cc.write_entry(key, {"recipe": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
