"""Tiles of a matrix product that tensor maps move between memory and shared memory: which can, and the lines that do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchlet import dtypes
from torchlet.compiler.codegen.triton_expr import MEMORY, Block, Writer, identifier, typed_literal
from torchlet.compiler.loops import Store
from torchlet.expr import Expr
from torchlet.index import Axis, Index
from torchlet.runtime.cuda import UNIT, TensorMap


@dataclass(frozen=True)
class Edge:
    """A tile's extent along an axis: the texts of its start and its length, and the length."""

    start: str
    length: str
    size: int


class Boxes:
    """Makes the maps of one kernel while it is printed, as long as its tile has shared memory for them."""

    def __init__(self, writer: Writer, stack: Axis, edges: Mapping[Axis, Edge]):
        self.w, self.stack, self.edges = writer, stack, edges
        self.room = writer.tile.map_bytes
        self.loaded = self.stored = 0

    def load(self, e: Expr, block: Block, rows: Axis, columns: Axis) -> str | None:
        """The variable of an operand tile [rows, columns], loaded in the loop; None where a map cannot."""
        if not self.room or e.op != "load" or e.args:
            return None
        buffer, index = e.attr[0], e.attr[1]  # type: ignore[index]
        stages = self.edges[rows].size * self.edges[columns].size * e.dtype.itemsize * self.w.tile.num_stages
        found = self._box(buffer, index, rows, columns)
        if found is None:
            return None
        self.room -= stages
        self.loaded += 1
        name, at, (first, second) = found
        text = f"{name}.load({at})"
        if len(self.w.maps[name][2]) == 3:
            text += f".reshape({self.edges[first].length}, {self.edges[second].length})"
        return self.w.name(block, buffer, text if (first, second) == (rows, columns) else f"{text}.T")

    def store(self, s: Store, text: str, rows: Axis, columns: Axis) -> str | None:
        """The line that stores a tile [rows, columns]; None where a map cannot."""
        kind = self.w.buffers[s.buffer].dtype
        size = self.edges[rows].size * self.edges[columns].size * kind.itemsize
        if s.mode != "set" or kind is dtypes.bool_ or size > self.room or s.index.coefficient(columns) != 1:
            return None
        found = self._box(s.buffer, s.index, rows, columns)
        if found is None:
            return None
        self.room -= size
        self.stored += 1
        name, at, _ = found
        shape = f"[{self.edges[rows].length}, {self.edges[columns].length}]"
        text = typed_literal(text, s.value) if s.value.op == "const" else text
        if s.value.op == "const" or not {rows, columns} <= self.w.deps(s.value):
            text = f"tl.broadcast_to({text}, {shape})"
        text = f"{text}.to({MEMORY[kind.name]})"
        if len(self.w.maps[name][2]) == 3:
            text += f".reshape(1, {shape[1:-1]})"
        return f"{name}.store({at}, {text})"

    def _box(self, buffer: str, index: Index, rows: Axis, columns: Axis) -> tuple[str, str, tuple[Axis, Axis]] | None:
        """A map over [stack,] rows and columns in the order in memory: its name, the text of a tile's place, the order."""
        steps = dict(index.terms)
        if not steps.keys() <= {self.stack, rows, columns}:
            return None
        order = (rows, columns) if steps.get(columns) == 1 else (columns, rows)
        kind = self.w.buffers[buffer].dtype
        over = ((self.stack,) if self.stack in steps else ()) + order
        number = list(self.w.buffers).index(buffer)
        found = TensorMap(number, index.const, tuple([a.extent for a in over]), tuple([steps.get(a, 0) for a in over]))
        boxed = all(self.edges[a].size <= 256 for a in order) and self.edges[order[1]].size * kind.itemsize >= UNIT
        if not (boxed and found.fits(kind.itemsize)):
            return None
        name = f"{identifier(buffer)}_map{len(self.w.maps)}"
        block = tuple([1 if a is self.stack else self.edges[a].size for a in over])
        self.w.maps[name] = found, kind.name, block
        z = "z.to(tl.int32)" if self.w.wide else "z"
        return name, f"[{', '.join([z if a is self.stack else self.edges[a].start for a in over])}]", order
