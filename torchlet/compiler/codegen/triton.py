"""Prints a loop-IR kernel as Triton source: one @triton.jit function, with the device functions it calls.

The axes of a kernel are first flattened into a few tile dimensions (`x`, `r`, …). A value then lives in a block: the function's
body, or a loop over a reduce dimension. It is computed once in the outermost block that knows the dimensions it varies along, so
phases share what they load, and what a loop does not change stands before the loop.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import keyword
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.compiler import tile as tiling
from torchlet.compiler.attention import Attention
from torchlet.compiler.codegen.triton_boxes import Boxes, Edge
from torchlet.compiler.codegen.triton_expr import ALIGNED, ARGUMENT, MEMORY, REGISTER, Block, Dim, Writer, bare, identifier, wide
from torchlet.compiler.group import BLOCK, Grouped
from torchlet.compiler.loops import Dot, Kernel, Phase, Reduction, Store
from torchlet.compiler.recurrent import Recurrent
from torchlet.compiler.simplify_loops import collapse_axes, map_kernel
from torchlet.compiler.tile import Tile, extent, index_axes
from torchlet.expr import Expr, call, cast, const, expr, rewrite
from torchlet.index import Axis, FloorDiv, Index, of, unflatten
from torchlet.kernels import matmul
from torchlet.runtime.cuda import TensorMap

POINTER = {f"{kind}{bits}": f"*{letter}{bits}" for kind, letter in (("float", "fp"), ("int", "i")) for bits in (16, 32, 64)}
POINTER |= {"bfloat16": "*bf16", "int8": "*i8", "uint8": "*u8", "bool": "*u8"}
SCALAR = {"float64": "fp64", "float32": "fp64", "int64": "i64", "bool": "i32"}


@dataclass(frozen=True)
class TritonKernel:
    """Source text and everything a compile and a launch need.

    Arguments of the function: a pointer for each buffer, then the scalars, then the constexprs. `attrs` tells Triton which
    arguments are divisible by 16: every buffer must start at a 16-byte boundary.
    """

    name: str
    source: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, int]
    grid: tuple[int, int, int]
    num_warps: int
    num_stages: int
    attrs: Mapping[tuple[int, ...], list[list[object]]]
    kernel: Kernel | None = None
    table: Callable[[Sequence[int], Sequence[float]], np.ndarray[Any, Any]] | None = None
    """With one, the only argument is a pointer to this, made of the buffers' addresses and the numbers."""
    maps: Mapping[str, TensorMap] = field(default_factory=dict)
    """Arguments after the sizes that are tensor maps; then buffers must start at 16-byte boundaries."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Arguments after the scalars that are the same in every launch: kernels that differ in nothing else share one binary."""
    tile: Tile | None = None
    """How it is cut; None where there is no choice."""

    @property
    def types(self) -> list[str]:
        """Triton's types of the pointers and scalars."""
        return [t for name, t in self.signature.items() if t != "constexpr" and name not in self.maps and name not in self.sizes]


def emit(kernel: Kernel, target: str = "cuda:90", tile: Tile | None = None, maps: bool = True) -> TritonKernel:
    """The kernel as Triton source for the target; `tile` overrides the choice of blocks and warps, `maps`: tensor maps may be used."""
    if isinstance(kernel.body, Grouped):
        return _grouped(kernel, kernel.body)
    simple = simplified(kernel)
    tile = tile or _tiles(simple, target, maps)[0]
    if not maps:
        tile = replace(tile, map_bytes=0, programs=0)
    if isinstance(kernel.body, Attention | Recurrent):
        return _handwritten(kernel, kernel.body, target, tile)
    printer = {"flat": _pointwise, "square": _pointwise, "rows": _rows, "dot": _product}[tile.kind]
    writer, programs = printer(simple, tile) if kernel.points else (Writer(simple, tile, {}), 0)
    return _finish(writer, programs, kernel)


def emit_choices(kernel: Kernel, target: str) -> Iterator[TritonKernel]:
    """The kernel with each tile that may be good, the best by formula first; each is printed when it is asked for."""
    if isinstance(kernel.body, Grouped) or not kernel.points:
        yield emit(kernel, target)
        return
    seen = set()
    for tile in tiles(kernel, target):
        found = emit(kernel, target, tile)
        key = found.source, found.num_warps, found.num_stages, *found.constexprs.values()
        if key not in seen:
            seen.add(key)
            yield found


def simplified(kernel: Kernel) -> Kernel:
    """The kernel that is cut into tiles."""
    return kernel if kernel.body else _without_unit_reductions(collapse_axes(kernel))


def tiles(kernel: Kernel, target: str) -> list[Tile]:
    """The tiles that may be good, the best by formula first; none where there is no choice at all."""
    return [] if isinstance(kernel.body, Grouped) or not kernel.points else _tiles(simplified(kernel), target)


def _tiles(kernel: Kernel, target: str, maps: bool = True) -> list[Tile]:
    if isinstance(kernel.body, Attention | Recurrent):
        return kernel.body.tiles(kernel.buffers, target, maps)
    return tiling.choices(kernel, target)


def _finish(w: Writer, programs: int, kernel: Kernel) -> TritonKernel:
    """The source with header, device functions and signature. `kernel`: as the user gave it."""
    tile = w.tile
    blocks = {f"BLOCK_{d.upper()}": size for d, size in tile.blocks.items()}
    places = {name: n for n, name in (*(w.steps or {}).items(), *(w.starts or {}).items())}
    sizes = {**w.sizes, **places}
    arguments = [*w.pointers.values(), *w.scalars.values(), *sizes, *w.maps, *(f"{b}: tl.constexpr" for b in blocks)]
    name, text = _text(kernel, arguments, [*w.prologue, *w.root.lines] or ["pass"], w.helpers)
    signature = {w.pointers[b.name]: POINTER[b.dtype.name] for b in kernel.buffers}
    signature |= {w.scalars[s.name]: SCALAR[s.dtype.name] for s in kernel.scalars}
    signature |= dict.fromkeys(sizes, "i32")
    signature |= {map_name: _map_type(kind, block) for map_name, (_, kind, block) in w.maps.items()}
    signature |= dict.fromkeys(blocks, "constexpr")
    maps = {map_name: m for map_name, (m, _, _) in w.maps.items()}
    attrs = _aligned(kernel) | _divisible(signature, places)
    return TritonKernel(
        name, text, signature, blocks, (programs, 1, 1), tile.num_warps, tile.num_stages, attrs, kernel, maps=maps, sizes=sizes,
        tile=tile,
    )  # fmt: skip


def _handwritten(kernel: Kernel, body: Attention | Recurrent, target: str, tile: Tile) -> TritonKernel:
    """The entry point of a kernel of `torchlet.kernels` with the device functions it calls."""
    entry = body.emit(kernel.buffers, target, tile)
    signature = {f"b{i}": POINTER[b.dtype.name] for i, b in enumerate(kernel.buffers)} | dict.fromkeys(entry.sizes, "i32")
    signature |= {name: _map_type(kernel.buffers[m.buffer].dtype.name, block) for name, (m, block) in entry.maps.items()}
    lengths = ["…" if entry.sizes else b.size for b in kernel.buffers]  # with sizes, the text serves buffers of all lengths
    lines = [f"# b{i}: {b.name}, {b.dtype.name}[{n}], {b.role}" for i, (b, n) in enumerate(zip(kernel.buffers, lengths, strict=True))]
    lines += entry.lines
    name, text = _text(kernel, list(signature), lines, entry.helpers)
    maps = {map_name: m for map_name, (m, _) in entry.maps.items()}
    grid, attrs = (entry.programs, 1, 1), _aligned(kernel)
    attrs |= _divisible(signature, {name: n for name, n in entry.sizes.items() if name.endswith(("_start", "_plane", "_step", "_row"))})
    return TritonKernel(
        name, text, signature, {}, grid, tile.num_warps, tile.num_stages, attrs, kernel, maps=maps, sizes=entry.sizes, tile=tile
    )  # fmt: skip


def _divisible(signature: Mapping[str, str], sizes: Mapping[str, int]) -> dict[tuple[int, ...], list[list[object]]]:
    """What Triton would see in the numbers."""
    return {(list(signature).index(name),): [["tt.divisibility", ALIGNED]] for name, n in sizes.items() if n % ALIGNED == 0}


def _map_type(kind: str, block: Sequence[int]) -> str:
    return f"tensordesc<{POINTER[kind][1:]}{list(block)}>"


def _grouped(kernel: Kernel, body: Grouped) -> TritonKernel:
    """One elementwise form over many tensors, found by a table; whole blocks are written without masks, so with wide accesses."""
    n, tile = len(body.lengths), Tile("flat", {"x": BLOCK}, num_warps=4)
    lines = [
        "pid = tl.program_id(0)",
        f"each = tl.arange(0, {tiling.power_of_two(n)})",
        f"member = tl.sum((tl.load(table + each, mask=each < {n}, other={1 << 40}) <= pid).to(tl.int32), axis=0) - 1",
        f"length = tl.load(table + {n} + member)",
        "x = (pid - tl.load(table + member).to(tl.int32)) * BLOCK_X + tl.arange(0, BLOCK_X)",
    ]
    helpers = set[str]()
    for full in (True, False):
        w = Writer(body.member, tile, {body.member.grid[0]: Dim("x", None if full else "x_mask", 0, "BLOCK_X")}, 1)
        w.starts = None
        for phase in body.member.phases:
            w.stores(phase.stores, w.root, w.grid_axes)
        if full:
            for i, b in enumerate(body.member.buffers):
                address = f"tl.load(table + {2 * n + i} + member * {body.width}).to(tl.pointer_type({MEMORY[b.dtype.name]}))"
                lines.append(f"{w.pointers[b.name]} = tl.multiple_of({address}, ALIGN)")
            first = 2 * n + n * body.width
            for i, s in enumerate(body.member.scalars):
                word = f"tl.load(table + {first + i} + member * {len(body.member.scalars)})"
                kind = ARGUMENT[s.dtype.name]
                lines.append(f"{w.scalars[s.name]} = {word}.to({kind}{', bitcast=True' if s.dtype.is_floating_point else ''})")
            lines.append("if (pid - tl.load(table + member) + 1) * BLOCK_X <= length:")
        else:
            lines += ["else:", "    x_mask = x < length"]
        lines += [f"    {line}" for line in w.root.lines]
        helpers |= w.helpers
    constants = {"BLOCK_X": BLOCK, "ALIGN": 16}
    name, text = _text(kernel, ["table", *(f"{c}: tl.constexpr" for c in constants)], lines, helpers)
    signature = {"table": "*i64", **dict.fromkeys(constants, "constexpr")}
    attrs: dict[tuple[int, ...], list[list[object]]] = {(0,): [["tt.divisibility", 16]]}
    return TritonKernel(name, text, signature, constants, (body.programs, 1, 1), tile.num_warps, tile.num_stages, attrs, kernel, body.table)


def _text(kernel: Kernel, arguments: Iterable[str], body: Iterable[str], helpers: Iterable[str]) -> tuple[str, str]:
    """The function's name, and the source: device functions, then the function."""
    functions = _device_functions()
    name = identifier(kernel.name)
    if name in functions or name in ("tl", "triton", "range", "min", "float") or keyword.iskeyword(name):
        name += "_kernel"
    text = "import triton\nimport triton.language as tl\n\n\n"
    text += "".join(f"{functions[h][0]}\n\n" for h in _with_callees(helpers))
    text += f"@triton.jit\ndef {name}({', '.join(arguments)}):\n"
    text += "".join(f"    # {line}\n" for line in kernel.origin)
    return name, text + "".join(f"    {line}\n" for line in body)


def _aligned(kernel: Kernel) -> dict[tuple[int, ...], list[list[object]]]:
    return {(i,): [["tt.divisibility", 16]] for i in range(len(kernel.buffers))}


# ---- tile dimensions -------------------------------------------------------------------------------------------------------------


def _flatten(kernel: Kernel, groups: Mapping[Axis, tuple[Axis, ...]]) -> Kernel:
    """The kernel with each group of axes replaced by positions in one flat axis."""
    position: dict[Axis, Index] = {}
    for flat, axes in groups.items():
        position.update(zip(axes, unflatten(of(flat), tuple(a.extent for a in axes)), strict=True))
    return map_kernel(kernel, lambda e: None, lambda term: position.get(term) if isinstance(term, Axis) else None)


# ---- the three shapes of a kernel ------------------------------------------------------------------------------------------------


def _pointwise(kernel: Kernel, tile: Tile) -> tuple[Writer, int]:
    """One program for each block of points; two-dimensional blocks where buffers are contiguous along different axes."""
    grid = tuple(a for a in kernel.grid if a.extent > 1)
    x_axes, y_axes = grid, tuple[Axis, ...]()
    if tile.kind == "square":
        across = tiling.transposed_axis(kernel)
        assert across is not None
        x_axes, y_axes = kernel.grid[-1:], (across,)
    rest = tuple(a for a in grid if a not in x_axes + y_axes)
    axes = {name: Axis(name, extent(group)) for name, group in (("x", x_axes), ("y", y_axes), ("z", rest))}
    flat = _flatten(kernel, {axes["x"]: x_axes, axes["y"]: y_axes, axes["z"]: rest})
    tiles = {name: -(-axes[name].extent // tile.blocks[name]) for name in tile.blocks}
    cast = ".to(tl.int64)" if wide(kernel) else ""
    dims: dict[Axis, Dim] = {}
    prologue = [f"pid = tl.program_id(0){cast}"]
    rank = len(tile.blocks)
    before = 1
    for name in tile.blocks:
        dims[axes[name]] = _dim(name, axes[name].extent, tile.blocks[name], position=rank - 1 - len(dims))
        prologue.append(_lanes(name, _digit("pid", before, tiles[name], rank == 1), dims[axes[name]], rank))
        before *= tiles[name]
    if rest:
        dims[axes["z"]] = Dim("z")
        prologue.append(f"z = pid // {before}")
    writer = Writer(flat, tile, dims, rank)
    writer.prologue = prologue + _masks(dims.items())
    for phase in flat.phases:
        writer.stores(phase.stores, writer.root, writer.grid_axes)
    return writer, before * axes["z"].extent


def _rows(kernel: Kernel, tile: Tile) -> tuple[Writer, int]:
    """Each program takes a few grid points and the reduce dimensions: whole in registers, or block by block in a loop."""
    names = tiling.reduce_groups(kernel)
    kernel = replace(kernel, phases=tuple(replace(p, reductions=tuple(_as_sum(r) for r in p.reductions)) for p in kernel.phases))
    x = Axis("x", kernel.points)
    grid = tuple(a for a in kernel.grid if a.extent > 1)
    reduce = {n: Axis(name, n) for n, name in names.items()}
    phases: list[Phase] = []
    for phase in kernel.phases:
        groups = {x: grid, reduce[extent(phase.reduce)]: phase.reduce} if phase.reduce else {x: grid}
        phases += _flatten(replace(kernel, phases=(phase,)), groups).phases
    block_x = tile.blocks["x"]
    rank = 1 if block_x == 1 else 2
    cast = ".to(tl.int64)" if wide(kernel) else ""
    dims = {x: _dim("x", x.extent, block_x, position=0 if rank == 2 else None)} if x.extent > 1 or block_x > 1 else {}
    inside = {a: _dim(a.name, a.extent, tile.blocks[a.name], position=rank - 1) for a in reduce.values()}
    whole = {a: d for a, d in inside.items() if a.name not in tile.looped}
    phases = _online(phases, frozenset(n for n, name in names.items() if name in tile.looped))
    length = 0 if tile.looped else _part_length(phases, x)
    if length:
        tile = replace(tile, blocks={**tile.blocks, "x": math.gcd(block_x, length)})
    flat = replace(kernel, phases=tuple(phases))
    if length and tile.blocks["x"] == block_x:
        return _rows_in_parts(flat, tile, x, dims, whole, reduce, rank, length)
    if length:
        return _rows(kernel, tile)
    writer = Writer(flat, tile, {**dims, **whole}, rank, frozenset(dims))
    writer.prologue = [_lanes("x", f"tl.program_id(0){cast}", d, rank) for d in dims.values()]
    writer.prologue += [f"{a.name} = {_arange(d, rank)}{cast}" for a, d in whole.items()]
    writer.prologue += _masks([*dims.items(), *whole.items()])
    for phase in phases:
        _phase(writer, phase, reduce[extent(phase.reduce)] if phase.reduce else None, inside, rank, writer.root)
    return writer, -(-x.extent // block_x)


def _part_length(phases: Iterable[Phase], x: Axis) -> int:
    """How many rows meet in a column sum (see `lower._ColumnSum`); 0 where there is none."""
    added = (t for p in phases for s in p.stores if s.mode == "add" for t, _ in s.index.terms)
    found = {t.divisor for t in added if isinstance(t, FloorDiv) and t.index == of(x)}
    return found.pop() if len(found) == 1 else 0


def _rows_in_parts(
    kernel: Kernel, tile: Tile, x: Axis, dims: Mapping[Axis, Dim], whole: Mapping[Axis, Dim], reduce: Mapping[int, Axis], rank: int,
    length: int,
) -> tuple[Writer, int]:
    """Each program takes a part of the rows, a block after the other, and adds up its column sums in registers."""
    part = Axis("part", -(-x.extent // length))
    wide_text = ".to(tl.int64)" if wide(kernel) else ""
    w = Writer(kernel, tile, {part: Dim("part"), **whole}, rank, frozenset(dims))
    w.prologue = [f"part = tl.program_id(0){wide_text}", *(f"{a.name} = {_arange(d, rank)}{wide_text}" for a, d in whole.items())]
    w.prologue += _masks(whole.items())
    body = Block(dict(dims), parent=w.root)
    totals: list[tuple[Store, str]] = []

    def add_up(s: Store, text: str) -> str | None:
        if s.mode != "add":
            return None
        kind = REGISTER[s.value.dtype.name]
        total = w.name(w.root, f"{s.buffer}_total", f"tl.zeros({body.shape(w.grid_axes | index_axes(s.index, w.axes))}, {kind})")
        totals.append((s, total))
        mask = body.mask(w.grid_axes)
        return f"{total} += {f'tl.where({mask}, {text}, 0)' if mask else bare(text)}"

    for phase in kernel.phases:
        _phase(w, phase, reduce[extent(phase.reduce)] if phase.reduce else None, whole, rank, body, add_up)
    end = f"part * {length} + {length}" if x.extent % length == 0 else f"tl.minimum(part * {length} + {length}, {x.extent})"
    head = [f"{x.name} = x_start" + (f" + {_arange(dims[x], rank)}" if rank == 2 else ""), *_masks(dims.items())]
    w.root.lines.append(f"for x_start in range(part * {length}, {end}, BLOCK_X):")
    w.root.lines += [f"    {line}" for line in head + body.lines]
    for number, (s, total) in enumerate(totals):
        index = s.index.substitute(lambda t: of(part) if isinstance(t, FloorDiv) else None)
        value = expr("value", (), s.value.dtype, f"total {number}")
        w.axes[value] = frozenset()
        w.root.memo[value] = w.name(w.root, total, f"tl.sum({total}, axis=0)[None, :]" if rank == 2 else total)
        before = expr("load", (), s.value.dtype, (s.buffer, index))
        w.stores([replace(s, index=index, value=call("add", before, value), mode="set")], w.root, w.grid_axes)
    return w, part.extent


def _online(phases: Iterable[Phase], looped: frozenset[int]) -> list[Phase]:
    """Where a loop finds the maximum of a value and the next one sums exp(value - maximum), one loop does both ("sumexp")."""
    out: list[Phase] = []
    for p in phases:
        before = out[-1] if out else None
        same = before is not None and p.reduce and extent(before.reduce) == extent(p.reduce) in looped and not before.stores
        total = p.reductions[0] if len(p.reductions) == 1 else None
        if same and before is not None and isinstance(total, Reduction) and total.combine == "sum" and total.dtype is dtypes.float32:
            for top in before.reductions:
                if isinstance(top, Reduction) and (combine := _shifted_exp(total.value, top)):
                    both = Reduction(total.name, combine, cast(top.value, dtypes.float32))
                    out[-1] = replace(p, reductions=(*before.reductions, both))
                    break
            else:
                out.append(p)
        else:
            out.append(p)
    return out


def _shifted_exp(e: Expr, top: Reduction) -> str:
    """The combination that sums exp(value - maximum), where the maximum is `top`, or 0 in its place where it is infinite; else empty."""
    if top.combine != "max" or top.dtype is not dtypes.float32:
        return ""
    value, m = cast(top.value, dtypes.float32), expr("value", (), top.dtype, top.name)
    finite = call("where", call("isinf", m), 0.0, m)
    return "sumexp" if e == call("exp", value - m) else "sumexp_finite" if e == call("exp", value - finite) else ""


def _phase(
    w: Writer, phase: Phase, r: Axis | None, inside: Mapping[Axis, Dim], rank: int, home: Block,
    other: Callable[[Store, str], str | None] | None = None,
) -> None:
    """Print one phase of a rows kernel where its rows are known. `other` as for `Writer.stores`."""
    nested = [s for s in phase.stores if r in w.deps(s.value) | index_axes(s.index, w.axes)]
    reductions = [_Combiner(w, red, r, rank) for red in phase.reductions if isinstance(red, Reduction)]
    if r is not None and r.extent:
        tile_axes = w.grid_axes | {r}
        if r in home.dims:
            for red in reductions:
                home.memo[red.result] = red.reduce(red.masked(home), home)
            w.stores(nested, home, tile_axes, other)
        else:
            body = Block({r: inside[r]}, parent=w.root)
            for red in reductions:
                red.start(body)
            for red in reductions:
                red.step(body)
            w.stores(nested, body, tile_axes)
            head = [f"{r.name} = {r.name}_start + {_arange(inside[r], rank)}{'.to(tl.int64)' if w.wide else ''}", *_masks([(r, inside[r])])]
            w.root.lines.append(f"for {r.name}_start in range(0, {r.extent}, BLOCK_{r.name.upper()}):")
            w.root.lines += [f"    {line}" for line in head + body.lines]
            for red in reductions:
                w.root.memo[red.result] = red.reduce(red.accumulators, w.root)
    if r is not None and not r.extent:
        home.memo |= {red.result: f"tl.full([], {red.neutral}, {REGISTER[red.kind.name]})" for red in reductions}
    w.stores([s for s in phase.stores if s not in nested], home, w.grid_axes)


_LOWEST = "float('-inf')"


class _Combiner:
    """How one reduction is printed: its neutral element, a step of a loop, and the reduction of a block."""

    def __init__(self, writer: Writer, reduction: Reduction, r: Axis | None, rank: int):
        self.w, self.reduction, self.r = writer, reduction, r
        self.combine = reduction.combine
        self.position = rank - 1
        self.kind = reduction.value.dtype if self.indexed else reduction.dtype
        self.result = expr("value", (), reduction.dtype, reduction.name)
        self.accumulators: list[str] = []
        self.axes = writer.grid_axes if r is None else writer.grid_axes | {r}

    @property
    def indexed(self) -> bool:
        """True for argmax and argmin, which carry a position."""
        return self.combine in ("argmax", "argmin")

    @property
    def online(self) -> bool:
        """True for sums of exponentials relative to the largest value so far, which they carry."""
        return self.combine.startswith("sumexp")

    @property
    def neutral(self) -> str:
        """The number that changes nothing, as text."""
        kind = self.kind
        if self.combine in ("sum", "prod") or self.online:
            return ("1" if self.combine == "prod" else "0") + (".0" if kind.is_floating_point else "")
        if self.combine in ("any", "all"):
            return str(self.combine == "all")
        low = self.combine in ("max", "argmax")
        if kind.is_floating_point:
            return "float('-inf')" if low else "float('inf')"
        if kind is dtypes.bool_:
            return str(not low)
        bits = kind.itemsize * 8 - kind.is_signed
        return str(-(2**bits) if low and kind.is_signed else 0 if low else 2**bits - 1)

    def masked(self, block: Block) -> list[str]:
        """The values of a block (and their positions), neutral where the block leaves the range."""
        assert self.r is not None
        e = cast(self.reduction.value, self.kind)
        text = self.w.value(e, block)
        shape = block.shape(self.axes)
        mask = block.dims[self.r].mask
        if e.op == "const":
            text = f"tl.full({shape}, {text}, {REGISTER[self.kind.name]})"
        elif self.w.deps(e) != self.axes:
            text = f"tl.broadcast_to({text}, {shape})"
        if mask:
            text = f"tl.where({mask}, {text}, {_LOWEST if self.online else self.neutral})"
        if not self.indexed:
            return [text]
        position = f"tl.broadcast_to(({block.dims[self.r].text}).to(tl.int32), {shape})"
        # lanes out of range come after every true position, so that they lose ties
        return [text, position]

    def start(self, block: Block) -> None:
        """Accumulators of the block's shape, before the loop."""
        shape, root = block.shape(self.axes), self.w.root
        self.accumulators = [self.w.name(root, self.reduction.name, f"tl.full({shape}, {self.neutral}, {REGISTER[self.kind.name]})")]
        if self.indexed:
            self.accumulators.append(self.w.name(root, f"{self.reduction.name}_at", f"tl.full({shape}, {2**31 - 1}, tl.int32)"))
        if self.online:
            self.accumulators.append(self.w.name(root, f"{self.reduction.name}_top", f"tl.full({shape}, {_LOWEST}, tl.float32)"))

    def step(self, block: Block) -> None:
        """Fold a block into the accumulators."""
        parts = self.masked(block)
        a = self.accumulators
        if self.indexed:
            block.lines.append(f"{a[0]}, {a[1]} = {self.function}({a[0]}, {a[1]}, {parts[0]}, {parts[1]})")
        elif self.online:
            block.lines.append(f"{a[0]}, {a[1]} = {self.function}({a[0]}, {a[1]}, {bare(parts[0])})")
        elif self.combine in ("max", "min"):
            block.lines.append(f"{a[0]} = {self.function}({a[0]}, {bare(parts[0])})")
        else:
            block.lines.append(f"{a[0]} = {a[0]} {dict(sum='+', prod='*', any='|', all='&')[self.combine]} {parts[0]}")

    @property
    def function(self) -> str:
        """The device function that combines two values."""
        names = {"max": "maximum", "min": "minimum", "prod": "product", "argmax": "first_max", "argmin": "first_min"}
        names |= dict.fromkeys(("sumexp", "sumexp_finite"), "add_exp")
        return self.w.helper(names[self.combine])

    def reduce(self, parts: list[str], block: Block) -> str:
        """The result as a column [BLOCK_X, 1] (or a scalar where a program has one row)."""
        column = "[:, None]" if self.position else ""
        axis = self.position
        if self.online:  # sums of the lanes, each relative to its own maximum
            top = self.w.name(block, f"{self.reduction.name}_top", f"tl.reduce({parts[1]}, {axis}, {self.w.helper('maximum')}){column}")
            top = f"tl.where(tl.abs({top}) == float('inf'), 0.0, {top})" if self.combine == "sumexp_finite" else top
            text = f"tl.sum({parts[0]} * tl.exp({parts[1]} - {top}), axis={axis}){column}"
        elif self.combine == "sum":
            text = f"tl.sum({bare(parts[0])}, axis={axis}){column}"
        elif self.combine in ("any", "all"):
            text = f"(tl.{'max' if self.combine == 'any' else 'min'}({parts[0]}.to(tl.int32), axis={axis}) != 0){column}"
        elif self.indexed:
            best, at = (self.w.name(block, self.reduction.name, p) if " " in p else p for p in parts)
            text = f"tl.reduce(({best}, {at}), {axis}, {self.function})[1]{column}.to(tl.int64)"
        else:
            text = f"tl.reduce({bare(parts[0])}, {axis}, {self.function}){column}"
        return self.w.name(block, self.reduction.name, text)


def _product(kernel: Kernel, tile: Tile) -> tuple[Writer, int]:
    """The matrix product with what feeds it and what follows it; see `kernels.matmul`."""
    first = kernel.phases[0].reductions[0]
    assert isinstance(first, Dot)
    groups = {Axis(name, extent(axes)): axes for name, axes in (("z", first.batch), ("m", first.m), ("n", first.n), ("k", first.k))}
    z, m, n, k = groups
    flat = _flatten(kernel, groups)
    bm, bn, bk = (tile.blocks[d] for d in "mnk")
    dims = {z: Dim("z"), m: _dim("m", m.extent, bm, 0), n: _dim("n", n.extent, bn, 1)}
    w = Writer(flat, tile, dims, rank=2)
    masks = _masks(dims.items())
    ragged = k.extent % bk != 0
    loop: list[str] = []
    left = Block({k: Dim("k_row", "k_row_mask" if ragged else None, 1, "BLOCK_K")}, parent=w.root, lines=loop, fill=True)
    right = Block({k: Dim("k_column", "k_column_mask" if ragged else None, 0, "BLOCK_K")}, parent=w.root, lines=loop, fill=True)
    boxes = Boxes(w, z, {m: Edge("m_start", "BLOCK_M", bm), n: Edge("n_start", "BLOCK_N", bn), k: Edge("k_start", "BLOCK_K", bk)})
    zeros = []
    for dot in flat.phases[0].reductions:
        assert isinstance(dot, Dot)
        a = _operand(w, dot.a, left, (m, k), boxes)
        b = _operand(w, dot.b, right, (k, n), boxes)
        total = f"{identifier(dot.name)}_{w.count}"
        w.count += 1
        exact = not dot.a.dtype.is_floating_point
        zeros.append(f"{total} = tl.zeros([BLOCK_M, BLOCK_N], tl.{'int32' if exact else 'float32'})")
        precision = ", out_dtype=tl.int32" if exact else f', input_precision="{tile.precision}"'
        loop.append(f"{total} = tl.dot({a}, {b}, {total}{precision})")
        w.root.memo[expr("value", (), dot.dtype, dot.name)] = f"{total}.to(tl.int64)" if exact else total
    text = "\n".join(loop)
    for name, mask, lanes in (("k_column", "k_column_mask", "[:, None]"), ("k_row", "k_row_mask", "[None, :]")):
        if name in text:
            lines = [f"{name} = k_start + tl.arange(0, BLOCK_K){lanes}{'.to(tl.int64)' if w.wide else ''}"]
            loop[:0] = lines + ([f"{mask} = {name} < {k.extent}"] if mask in text else [])
    operands = [key for b in (left, right) for key in b.memo if isinstance(key, tuple) and key[0] == "operand"]
    mapped = boxes.loaded == len(operands)
    outside = w.root.lines
    w.root.lines = []
    if mapped:  # extents and strides of the operands are arguments already, those of their maps: so are the rest
        w.steps = {}
    for phase in flat.phases:
        w.stores(phase.stores, w.root, w.grid_axes, lambda s, value: boxes.store(s, value, m, n))
    text = "\n".join([*outside, *loop, *w.root.lines])
    before = [*(mask for mask in masks if mask.partition(" ")[0] in text), *outside, *zeros]  # maps need none
    shape = matmul.Shape(m.extent, n.extent, k.extent, z.extent, bm, bn)
    # a walk keeps the sums of one tile while it loads the next: they must be few, or leave through shared memory
    light = bm * bn <= 64 * 32 * tile.num_warps or boxes.stored == sum(len(p.stores) for p in flat.phases)
    walks = 0 < tile.programs < shape.programs and mapped and light
    body = matmul.render(shape, w.wide, before, loop, w.root.lines, tile.programs if walks else 0, arguments=mapped)
    if mapped:
        w.sizes = matmul.sizes(shape, walks)
    w.root.lines = body.splitlines()
    return w, tile.programs if walks else shape.programs


def _operand(w: Writer, e: Expr, block: Block, axes: tuple[Axis, Axis], boxes: Boxes) -> str:
    """An operand tile in the dtype that the tensor cores take; zero where k leaves its range."""
    key = ("operand", e)  # two products may share one
    if key not in block.memo:
        k = next(a for a in block.dims if a.name == "k")
        block.memo[key] = boxes.load(e, block, *axes) or _operand_tile(w, e, block, frozenset(axes), k)
    return block.memo[key]


def _operand_tile(w: Writer, e: Expr, block: Block, axes: frozenset[Axis], k: Axis) -> str:
    kind = MEMORY[e.dtype.name]
    shape = block.shape(axes)
    have = w.deps(e) & axes
    if e.op == "load" and have == axes:
        return w.name(block, e.attr[0], w.load(e, block))  # type: ignore[index]
    text = w.value(e, block)
    text = f"tl.full({shape}, {text}, {kind})" if e.op == "const" else f"tl.broadcast_to({text}, {shape})" if have != axes else text
    if (mask := block.dims[k].mask) is not None:
        text = f"tl.where({mask}, {text}, 0)"
    return w.name(block, "tile", f"{text}.to({kind})")


def _as_sum(r: Reduction | Dot) -> Reduction:
    """A dot written as the sum that it is, for dots that the template does not take (float64, integers)."""
    return Reduction(r.name, "sum", call("mul", cast(r.a, r.dtype), cast(r.b, r.dtype))) if isinstance(r, Dot) else r


def _without_unit_reductions(kernel: Kernel) -> Kernel:
    """Reductions over a single point replaced by their value there."""
    single = {r.name: _as_sum(r) for p in kernel.phases if not p.reduce for r in p.reductions}
    if not single:
        return kernel

    def rule(e: Expr) -> Expr | None:
        if e.op != "value" or e.attr not in single:
            return None
        r = single[e.attr]  # type: ignore[index]
        return const(0, r.dtype) if r.combine in ("argmax", "argmin") else rewrite(cast(r.value, r.dtype), rule)

    kernel = map_kernel(kernel, rule)
    return replace(kernel, phases=tuple(p if p.reduce else replace(p, reductions=()) for p in kernel.phases))


# ---- texts -----------------------------------------------------------------------------------------------------------------------


def _dim(name: str, length: int, block: int, position: int | None) -> Dim:
    return Dim(name, f"{name}_mask" if length % block else None, position, f"BLOCK_{name.upper()}")


def _digit(pid: str, before: int, count: int, last: bool) -> str:
    """The tile number along one dimension, from the program's number."""
    text = pid if before == 1 else f"({pid} // {before})"
    return text if last else f"({text} % {count})"


def _arange(d: Dim, rank: int) -> str:
    return f"tl.arange(0, {d.length})" + ("" if rank == 1 else "[:, None]" if d.position == 0 else "[None, :]")


def _lanes(name: str, tile_number: str, d: Dim, rank: int) -> str:
    """The line that defines a grid dimension's variable."""
    return f"{name} = {tile_number}" + ("" if d.position is None else f" * {d.length} + {_arange(d, rank)}")


def _masks(dims: Iterable[tuple[Axis, Dim]]) -> list[str]:
    return [f"{d.mask} = {d.text} < {a.extent}" for a, d in dims if d.mask]


@functools.cache
def _device_functions() -> dict[str, tuple[str, frozenset[str]]]:
    """Text of each function of the files of device functions and the names it uses. Read as text, so that printing needs no triton."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for module in ("device_math", "attention", "recurrent"):
        spec = importlib.util.find_spec(f"torchlet.kernels.{module}")
        assert spec is not None and spec.origin is not None
        text = Path(spec.origin).read_text()
        lines = text.splitlines()
        for f in ast.parse(text).body:
            if isinstance(f, ast.FunctionDef):
                names = frozenset(n.id for n in ast.walk(f) if isinstance(n, ast.Name))
                found[f.name] = "\n".join(lines[f.decorator_list[0].lineno - 1 : f.end_lineno]) + "\n", names
    return found


def _with_callees(helpers: Iterable[str]) -> list[str]:
    """The functions and those they call, in the order of the file (callees first)."""
    functions = _device_functions()
    wanted, stack = set[str](), list(helpers)
    while stack:
        f = stack.pop()
        if f not in wanted:
            wanted.add(f)
            stack += functions[f][1] & functions.keys()
    return [f for f in functions if f in wanted]
