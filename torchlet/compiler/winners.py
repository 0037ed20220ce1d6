"""The committed table of tiles that won on known devices: read by what a problem is, written from contests that a device decided.

An entry names a class of problems (operands, dtypes, sizes to the nearest power of two) and an architecture, and holds the tile in
words. It is no text of a kernel: as long as the tile is among the choices for such a problem, the entry means something. Where it is
not, or there is none, the formula decides.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchlet.compiler import tile as tiling
from torchlet.compiler.loops import Dot, Kernel
from torchlet.compiler.tile import Tile, axes_of, extent
from torchlet.config import config
from torchlet.expr import Expr, walk

__all__ = ["PATH", "in_words", "knows", "lookup", "merged", "problem_of"]

PATH = Path(__file__).with_name("winners.json")


def problem_of(kernel: Kernel) -> str:
    """The class that the kernel belongs to, as `codegen.triton.simplified` gives it; empty for one that has no choice of tiles."""
    if kernel.body is not None:
        return kernel.body.problem(kernel.buffers)
    if tiling.is_product(kernel):
        return _product(kernel)
    sizes = [extent(p.reduce) for p in kernel.phases if p.reduce]
    if not sizes:
        return ""
    kinds = "/".join(dict.fromkeys(b.dtype.name for b in kernel.buffers))
    inside = {a for p in kernel.phases for a in p.reduce}
    memo: dict[Expr, frozenset[Any]] = {}
    held = sum(1 for e in kernel.loads() if axes_of(e, memo) & inside)
    spread = sum(1 for p in kernel.phases for s in p.stores if inside & tiling.index_axes(s.index, memo))
    lengths = " ".join(str(tiling.near(n)) for n in dict.fromkeys(sizes))
    return f"rows {kinds} {tiling.near(kernel.points)} of {lengths}, {held} read, {spread} written"


def _product(kernel: Kernel) -> str:
    dots = [d for d in kernel.phases[0].reductions if isinstance(d, Dot)]
    memo: dict[Expr, frozenset[Any]] = {}

    def along_k(e: Expr) -> bool:
        """True where the operand's rows lie along k."""
        return any(x.attr[1].coefficient(dots[0].k[-1]) == 1 for x in walk(e) if x.op == "load")  # type: ignore[index]

    layout = f"{'n' if along_k(dots[0].a) else 't'}{'t' if along_k(dots[0].b) else 'n'}"
    shape = "x".join(str(tiling.near(extent(axes))) for axes in (dots[0].batch, dots[0].m, dots[0].n, dots[0].k))
    stores = [s for p in kernel.phases for s in p.stores]
    reads = sum(1 for e in walk(*[s.value for s in stores]) if e.op == "load" and extent(axes_of(e, memo)) == kernel.points)
    precision = f" {config.float32_dot}" if dots[0].a.dtype.itemsize == 4 else ""
    return f"product {dots[0].a.dtype.name}{precision} {layout} {shape}, {len(dots)} sums, {reads} read, {len(stores)} written"


def in_words(tile: Tile) -> str:
    """The tile as an entry holds it and people read it."""
    parts = [" ".join([tile.kind, *(f"{d}{n}" for d, n in tile.blocks.items())]), f"{tile.num_warps} warps", f"{tile.num_stages} stages"]
    parts += [f"{name} in a loop" for name in sorted(tile.looped)]
    parts += [word for word, there in (("maps", tile.map_bytes), ("walks", tile.programs), ("specialised", tile.specialised)) if there]
    return ", ".join(parts)


@functools.lru_cache(maxsize=4)
def _entries(path: Path) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Architecture -> problem -> entry; nothing where there is no table."""
    try:
        return json.loads(path.read_text())["targets"]  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError):
        return {}


def knows(target: str) -> bool:
    """True where the table has entries for the architecture."""
    return bool(_entries(PATH).get(target))


def lookup(problem: str, target: str, tiles: Sequence[Tile]) -> Tile | None:
    """The tile of `tiles` that won on such problems."""
    entry = _entries(PATH).get(target, {}).get(problem)
    return next((t for t in tiles if in_words(t) == entry["tile"]), None) if entry else None


def merged(path: Path, contests: Iterable[Mapping[str, Any]]) -> int:
    """Enter contests (`problem`, `target`, `device`, `tiles`, `ms`) into the table at `path`; how many problems they decide.

    Where several are of one class, the tile with the least time in all of them, each relative to its best, wins. A class whose members
    have no tile in common gets no entry.
    """
    decided = 0
    classes: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for c in contests:
        if c["problem"] and c["tiles"]:
            classes.setdefault((c["target"], c["problem"]), []).append(c)
    found: dict[str, dict[str, Any]] = {t: dict(e) for t, e in _entries(path).items()}
    for (target, problem), group in classes.items():
        scores: dict[str, list[float]] = {}
        for c in group:
            best = min(c["ms"])
            for tile, ms in zip(c["tiles"], c["ms"], strict=True):
                scores.setdefault(tile, []).append(ms / best)
        common = {t: math.prod(s) ** (1 / len(s)) for t, s in scores.items() if len(s) == len(group)}
        if common:
            first = next((t for t in group[0]["tiles"] if t in common), "")  # the formula's
            tile = min(common, key=lambda t: (common[t], t != first))
            entry = {"tile": tile, "formula": first, "gain": round(common[first] / common[tile], 3), "device": group[0]["device"]}
            found.setdefault(target, {})[problem] = entry
            decided += 1
    text = json.dumps({"targets": {t: dict(sorted(found[t].items())) for t in sorted(found)}}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    os.replace(new, path)
    _entries.cache_clear()
    return decided
