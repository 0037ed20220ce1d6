"""Blocks and warps of a Triton kernel, and what it costs: bytes, flops and the roofline time, by formulas over the loop IR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torchlet import dtypes
from torchlet.compiler.loops import Dot, Kernel, data_terms, phase_roots
from torchlet.config import config
from torchlet.expr import Expr, walk
from torchlet.index import Axis, Index


@dataclass(frozen=True, slots=True)
class Machine:
    """What a GPU can do: processors, shared memory of one block, bytes/s, flop/s in float32, float64 and 16-bit dots."""

    processors: int
    shared_bytes: int
    bandwidth: float
    float32: float
    float64: float
    half: float


MACHINES: Mapping[str, Machine] = {
    "cuda:80": Machine(108, 163 << 10, 2.0e12, 19.5e12, 9.7e12, 312e12),  # A100
    "cuda:90": Machine(132, 227 << 10, 4.8e12, 67e12, 34e12, 790e12),  # H200; the 16-bit figure is what cuBLAS reached
    "cuda:100": Machine(148, 227 << 10, 8.0e12, 80e12, 40e12, 2250e12),  # B200
    "cuda:120": Machine(170, 99 << 10, 1.79e12, 105e12, 1.6e12, 210e12),  # RTX 5090
    "hip:gfx942": Machine(304, 64 << 10, 5.3e12, 163e12, 81e12, 1307e12),  # MI300X
    "hip:gfx950": Machine(256, 160 << 10, 8.0e12, 157e12, 78e12, 2500e12),  # MI355X
}

TENSOR_MAPS = ("cuda:90", "cuda:100")  # where tiles of matrix products are copied by the tensor memory accelerator
LONGEST_INT8 = (1 << 17) - 1  # so many products of int8, each at most 2¹⁴, have a sum that int32 holds
SPECIALISED = ("cuda:100",)  # where warps of attention may have different work; on cuda:90 that makes each product wait for the last
PERSISTENT = ("cuda:90",)  # where a program walks over several tiles; on cuda:100 Triton's flattened loop spills 500 bytes a thread


@dataclass(frozen=True, slots=True)
class Tile:
    """How a kernel is cut.

    `kind`: flat (one row of points), square (two grid axes, for transposes), rows (grid × reduce), dot (matrix product).
    `blocks`: points of each tile dimension, powers of two. `looped`: reduce dimensions that are walked block by block; the
    others lie in registers whole.
    """

    kind: str
    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 3
    looped: frozenset[str] = field(default_factory=frozenset)
    map_bytes: int = 0
    """Shared memory for tiles that tensor maps move; 0: none do."""
    programs: int = 0
    """With tensor maps, how many programs walk over the tiles, the next one's operands arriving while one is stored; 0: one for each."""
    specialised: bool = False
    """Warps that copy, that multiply, and that do the rest."""
    precision: str = "ieee"
    """How products of float32 are made; one of `config.FLOAT32_DOTS`."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(n - 1, 0).bit_length()


def near(n: int) -> int:
    """The power of two that is nearest to n by ratio."""
    return 1 << round(math.log2(n)) if n > 0 else 0


def extent(axes: Iterable[Axis]) -> int:
    """How many points the axes span."""
    return math.prod(a.extent for a in axes)


def axes_of(e: Expr, memo: dict[Expr, frozenset[Axis]]) -> frozenset[Axis]:
    """The axes that an expression varies along, data-dependent positions included (results of reductions have none)."""
    stack = [e]
    while stack:
        node = stack[-1]
        waiting = [] if node in memo else [a for a in node.args if a not in memo]
        stack += waiting
        if not waiting:
            stack.pop()
            if node not in memo:
                found = frozenset[Axis]().union(*(memo[a] for a in node.args))
                if node.op in ("load", "index"):
                    found |= index_axes(node.attr[1] if node.op == "load" else node.attr, memo)  # type: ignore[index,arg-type]
                memo[node] = found
    return memo[e]


def index_axes(index: Index, memo: dict[Expr, frozenset[Axis]]) -> frozenset[Axis]:
    """The axes that an index varies along, data-dependent positions included."""
    return frozenset(index.axes()).union(*(axes_of(t, memo) for t in data_terms(index)))


def nodes(kernel: Kernel) -> list[Expr]:
    """Every distinct expression node, those inside data-dependent positions included; arguments before users."""
    found: dict[Expr, None] = {}
    stack = [iter(list(kernel.roots()))]
    while stack:
        root = next(stack[-1], None)
        if root is None:
            stack.pop()
        elif root not in found:
            fresh = [e for e in walk(root) if e not in found]
            found |= dict.fromkeys(fresh)
            stack += [data_terms(e.attr[1] if e.op == "load" else e.attr) for e in fresh if e.op in ("load", "index")]  # type: ignore[index,arg-type]
    return list(found)


def reduce_groups(kernel: Kernel) -> dict[int, str]:
    """The reduce dimensions by their extent: phases that reduce over equally many points share one and so can share values."""
    extents = dict.fromkeys(extent(p.reduce) for p in kernel.phases if p.reduce)
    return {n: "r" if i == 0 else f"r{i}" for i, n in enumerate(extents)}


def is_product(kernel: Kernel) -> bool:
    """True when the matrix-product template computes the kernel: one phase with dots over the same axes, then stores."""
    with_reduce = [p for p in kernel.phases if p.reduce]
    if len(with_reduce) != 1 or kernel.phases[0] is not with_reduce[0] or not with_reduce[0].reductions:
        return False
    phase = with_reduce[0]
    first = phase.reductions[0]
    inner = frozenset(phase.reduce)
    memo: dict[Expr, frozenset[Axis]] = {}
    return (
        isinstance(first, Dot)
        and all(isinstance(d, Dot) and (d.batch, d.m, d.n, d.k) == (first.batch, first.m, first.n, first.k) for d in phase.reductions)
        and all(
            d.a.dtype is d.b.dtype
            and (
                d.a.dtype in (dtypes.float32, dtypes.float16, dtypes.bfloat16)
                or (d.a.dtype is dtypes.int8 and extent(d.k) <= LONGEST_INT8)
            )
            for d in phase.reductions
            if isinstance(d, Dot)
        )
        and set(first.k) == set(phase.reduce)
        and set(first.batch + first.m + first.n) == set(kernel.grid)
        and not any(node.op == "value" for d in phase.reductions if isinstance(d, Dot) for node in walk(d.a, d.b))
        and not any(inner & (axes_of(s.value, memo) | index_axes(s.index, memo)) for s in phase.stores)
    )


def choose(kernel: Kernel, target: str) -> Tile:
    """A good tile for the kernel on the target, without measuring."""
    return choices(kernel, target)[0]


def choices(kernel: Kernel, target: str) -> list[Tile]:
    """Good tiles for the kernel on the target, the best first by formula; which of them the registers really hold, a compile tells."""
    if is_product(kernel):
        tiles = [tile for _, tile in _product_tiles(kernel, target)]
        return [t for tile in tiles for t in ([tile, replace(tile, programs=0)] if tile.programs else [tile])][:4]
    tile = _other_tile(kernel, MACHINES[target])
    return [tile, replace(tile, num_warps=2 * tile.num_warps)] if tile.kind == "rows" and tile.num_warps < 16 else [tile]


def _other_tile(kernel: Kernel, machine: Machine) -> Tile:
    if any(p.reduce for p in kernel.phases):
        return _rows_tile(kernel, machine)
    if (across := transposed_axis(kernel)) is not None:
        return Tile("square", {"x": min(64, power_of_two(kernel.grid[-1].extent)), "y": min(32, power_of_two(across.extent))})
    block = min(1024, max(128, power_of_two(-(-kernel.points // (2 * machine.processors)))))
    return Tile("flat", {"x": block}, num_warps=max(1, block // 256))


def accesses(kernel: Kernel) -> list[tuple[str, Index]]:
    """The distinct (buffer, index) pairs that are read or written."""
    found = dict.fromkeys(e.attr for e in nodes(kernel) if e.op == "load")
    found |= dict.fromkeys((s.buffer, s.index) for p in kernel.phases for s in p.stores)
    return list(found)  # type: ignore[arg-type]


def transposed_axis(kernel: Kernel) -> Axis | None:
    """A grid axis along which some buffer is contiguous while others are contiguous along the last grid axis."""
    if len(kernel.grid) < 2 or kernel.grid[-1].extent < 8:
        return None
    last = kernel.grid[-1]
    indices = [index for _, index in accesses(kernel)]
    if not any(index.coefficient(last) == 1 for index in indices):
        return None
    return next(
        (a for index in indices if index.coefficient(last) > 1 for a in kernel.grid[:-1] if index.coefficient(a) == 1 and a.extent >= 8),
        None,
    )


def _rows_tile(kernel: Kernel, machine: Machine) -> Tile:
    x = kernel.points
    blocks: dict[str, int] = {}
    looped = set()
    warps = 1
    along_grid = _contiguous_along_grid(kernel)
    memo: dict[Expr, frozenset[Axis]] = {}
    for n, name in reduce_groups(kernel).items():
        inner = {a for p in kernel.phases if extent(p.reduce) == n for a in p.reduce}
        held = sum(1 for e in kernel.loads() if axes_of(e, memo) & inner)
        if along_grid and x > 1:
            rows = min(64, max(8, power_of_two(-(-x // machine.processors))), power_of_two(x))
            blocks["x"] = min(blocks.get("x", rows), rows)
            if power_of_two(n) * rows > 4096:
                looped.add(name)
            blocks[name] = min(power_of_two(n), max(1, 4096 // rows))
        elif power_of_two(n) <= (16384 if held <= 2 else 8192):
            blocks[name] = power_of_two(n)
        else:
            looped.add(name)
            blocks[name] = 4096 if x > 1 else 8192
    widest = max(blocks[name] for name in reduce_groups(kernel).values())
    if "x" not in blocks:
        # enough rows per program to fill its warps, not so many that processors idle
        blocks["x"] = max(1, min(2048 // widest, 128, power_of_two(x // (2 * machine.processors)), power_of_two(x)))
    warps = min(16, max(1, power_of_two(blocks["x"] * widest // 512)))
    return Tile("rows", blocks, warps, looped=frozenset(looped))


def _contiguous_along_grid(kernel: Kernel) -> bool:
    """True when most reduced data is contiguous along the grid (sums over rows of a matrix), not along the reduce axes."""
    votes = 0
    sizes = {b.name: b.size for b in kernel.buffers}
    for phase in kernel.phases:
        if phase.reduce:
            for e in walk(*phase_roots(phase)):
                if e.op == "load":
                    buffer, index = e.attr[0], e.attr[1]  # type: ignore[index]
                    if set(index.axes()) & set(phase.reduce):
                        unit = {t for t, c in index.terms if c == 1}
                        votes += sizes[buffer] * (bool(unit & set(kernel.grid)) - bool(unit & set(phase.reduce)))
    return votes > 0


def product_seconds(kernel: Kernel, target: str, slices: int) -> float:
    """About how long the product takes when a second kernel adds the results of slices of it; 0 slices: it is one kernel."""
    machine, dot = MACHINES[target], kernel.phases[0].reductions[0]
    assert isinstance(dot, Dot)
    cost = _product_tiles(kernel, target, slices)[0][0] * extent(dot.k) / max(slices, 1)
    seconds = 2 * cost * machine.processors / _dot_rate(dot.a.dtype, machine)
    parts = slices * kernel.points * dot.dtype.itemsize * len(kernel.phases[0].reductions)
    return seconds if not slices else seconds + 2 * parts / machine.bandwidth + 2e-6  # written, read, and a launch


def _product_tiles(kernel: Kernel, target: str, slices: int = 0) -> list[tuple[float, Tile]]:
    """(points that a processor computes one after the other, weighted by how badly they fill it, tile), the best first."""
    machine = MACHINES[target]
    dots = [d for d in kernel.phases[0].reductions if isinstance(d, Dot)]
    dot = dots[0]
    # values that a thread holds for each of its points: the sums and what the epilogue reads, or all that it stores
    memo: dict[Expr, frozenset[Axis]] = {}
    epilogue = [s.value for p in kernel.phases for s in p.stores]
    reads = sum(1 for e in walk(*epilogue) if e.op == "load" and extent(axes_of(e, memo)) == kernel.points)
    held = len(dots) if slices else max(len(dots) + reads, len(epilogue))
    m, n, k, batch = extent(dot.m), extent(dot.n), extent(dot.k) // max(slices, 1), extent(dot.batch) * max(slices, 1)
    size = dot.a.dtype.itemsize
    half = size <= 2
    precision = config.float32_dot if size == 4 and target.startswith("cuda") else "ieee"
    # (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages, share of the machine's peak that a full wave of such tiles reaches)
    candidates = (
        [
            (128, 256, 64, 8, 3, 1.0),
            (128, 128, 64, 8, 3, 0.85),
            (128, 64, 64, 4, 4, 0.65),
            (64, 128, 64, 4, 4, 0.65),
            (64, 64, 64, 4, 4, 0.45),
            (64, 32, 64, 4, 4, 0.25),
            (32, 64, 64, 4, 4, 0.25),
            (16, 64, 128, 4, 4, 0.15),
            (64, 16, 128, 4, 4, 0.15),
            (16, 16, 128, 2, 4, 0.05),
        ]
        if half
        else [
            (128, 128, 16, 8, 3, 1.0),
            (128, 64, 32, 8, 3, 0.9),
            (64, 128, 32, 8, 3, 0.9),
            (64, 64, 32, 4, 3, 0.8),
            (64, 32, 32, 4, 3, 0.6),
            (32, 64, 32, 4, 3, 0.6),
            (32, 32, 32, 4, 3, 0.4),
            (16, 32, 64, 2, 3, 0.25),
            (32, 16, 64, 2, 3, 0.25),
            (16, 16, 64, 1, 3, 0.15),
        ]
    )
    found: list[tuple[float, Tile]] = []
    for bm, bn, bk, warps, stages, share in candidates:
        bk *= 2 if size == 1 or (bk == 16 and precision != "ieee") else 1
        if bm * bn // (32 * warps) * held > 128 and bm * bn > 1024:
            continue  # it would spill
        stage_bytes = (bm + bn) * bk * size
        if stage_bytes * stages > machine.shared_bytes:
            stages = 2
            if stage_bytes * stages > machine.shared_bytes:
                continue
        bk = max(32 // size if size < 4 else 16, min(bk, power_of_two(k)))
        waves = -(-(-(-m // bm) * -(-n // bn) * batch) // machine.processors)
        cost = waves * max(bm * bn / share, 2500.0)  # a tile takes a while however small it is
        tile = Tile("dot", {"m": bm, "n": bn, "k": bk}, warps, stages, precision=precision)
        if half and target in TENSOR_MAPS and bm >= 64:
            programs = machine.processors if target in PERSISTENT else 0
            tile = replace(tile, map_bytes=machine.shared_bytes - (2 << 10), programs=programs)
        found.append((cost, tile))
    return sorted(found, key=lambda f: f[0])


def bytes_moved(kernel: Kernel) -> int:
    """Bytes that must travel between memory and the chip: each touched element of each buffer once."""
    if kernel.body is not None:
        return kernel.body.bytes_moved(kernel.buffers)
    buffers = {b.name: b for b in kernel.buffers}
    memo: dict[Expr, frozenset[Axis]] = {}

    def touched(pairs: Iterable[tuple[str, Index]]) -> int:
        count: dict[str, int] = {}
        for name, index in dict.fromkeys(pairs):
            count[name] = count.get(name, 0) + extent(index_axes(index, memo))
        return sum(min(n, buffers[name].size) * buffers[name].dtype.itemsize for name, n in count.items())

    reads = touched(e.attr for e in nodes(kernel) if e.op == "load")  # type: ignore[misc]
    stores = [s for p in kernel.phases for s in p.stores]
    added = touched((s.buffer, s.index) for s in stores if s.mode == "add")  # read and written
    return reads + touched((s.buffer, s.index) for s in stores) + added


_FREE = frozenset(("const", "load", "index", "scalar", "value", "cast", "arg"))


def flops(kernel: Kernel) -> int:
    """Arithmetic operations on floating-point values; a function such as exp counts as one, a multiply-add as two."""
    if kernel.body is not None:
        return kernel.body.flops()
    return _dot_flops(kernel) + _other_flops(kernel)


def _dot_flops(kernel: Kernel) -> int:
    return sum(2 * extent((*d.batch, *d.m, *d.n, *d.k)) for p in kernel.phases for d in p.reductions if isinstance(d, Dot))


def _other_flops(kernel: Kernel) -> int:
    every = nodes(kernel)
    memo = {e: frozenset(kernel.grid) for e in every if e.op == "value"}
    total = sum(extent(axes_of(e, memo)) for e in every if e.op not in _FREE and e.dtype.is_floating_point)
    return total + sum(kernel.points * extent(p.reduce) for p in kernel.phases for r in p.reductions if not isinstance(r, Dot))


def _dot_rate(kind: dtypes.dtype, machine: Machine) -> float:
    """Operations of products in a second."""
    wide = machine.float64 if kind is dtypes.float64 else machine.float32
    return 2 * machine.half if kind.itemsize == 1 else machine.half if kind.itemsize == 2 else wide


def roofline_us(kernel: Kernel, target: str) -> float:
    """The least time in microseconds that the target's bandwidth and arithmetic allow."""
    machine = MACHINES[target]
    if kernel.body is not None:
        rate = machine.half if kernel.buffers[0].dtype.itemsize == 2 else machine.float32
        return max(kernel.body.flops() / rate, bytes_moved(kernel) / machine.bandwidth) * 1e6
    seconds = 0.0
    dots = [d for p in kernel.phases for d in p.reductions if isinstance(d, Dot)]
    if dots:
        seconds += _dot_flops(kernel) / _dot_rate(dots[0].a.dtype, machine)
    seconds += _other_flops(kernel) / machine.float32
    return max(seconds, bytes_moved(kernel) / machine.bandwidth) * 1e6
