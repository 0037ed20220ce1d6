"""The time loops of recurrent layers as kernels of a GPU's plan: which graphs get them, their entry points, their meaning and cost.

All that a layer can compute for every step at once is a product of its own: what inputs contribute to the gates, and the gradients of
inputs and weights. The loop in between is one launch, in which each program takes some
samples through all steps (`kernels.recurrent`). Lengths, batch and strides are arguments: sequences of every length share a binary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet import index as ix
from torchlet.compiler.attention import Entry, Operand
from torchlet.compiler.graph import Builder, Graph, Node, rewrite
from torchlet.compiler.loops import Buffer, Handwritten
from torchlet.compiler.tile import MACHINES, Tile, near, power_of_two
from torchlet.config import config
from torchlet.index import Axis, Index, of
from torchlet.op import apply
from torchlet.ops.recurrent import MODES, loop_, loop_grad_

__all__ = ["LAYERS", "Recurrent", "has_loop", "recurrent", "with_loops"]

PARTS = {  # what each kernel reads, and its operator
    "forward": (("gates", "w_hh", "b_hh", "initial", "lengths"), loop_),
    "backward": (("grad", "w_hh", "initial", "kept", "lengths"), loop_grad_),
}
LAYERS = ("recurrent", "recurrent_grad")
_STEPPED = ("grad", "gates", "initial", "kept", "out")  # those with rows of samples, whose strides are arguments
# (units, columns of the weight at once, warps, stages) by bytes of an element, the best by formula first; not measured on a device
_TILES: Mapping[int, list[tuple[int, int, int, int]]] = {
    2: [(64, 64, 4, 3), (32, 64, 4, 4), (64, 64, 8, 3), (32, 32, 4, 3)],
    4: [(32, 32, 4, 3), (64, 16, 8, 3), (32, 32, 8, 3), (16, 32, 4, 3)],
}


# ------------------------------------------------------------------------------------------------ which graphs


def with_loops(graph: Graph) -> Graph:
    """The graph with each recurrent layer that a kernel can compute as one, whatever its operands' dtypes."""

    def rule(b: Builder, n: Node, inputs: tuple[Any, ...]) -> Any:
        if n.op is None or not has_loop(n):
            return None
        operands = [b.tensor(x) for x in inputs]
        with b:
            operands = [x.to(n.spec.dtype) if x.dtype.is_floating_point else x for x in operands]
            return b.unwrap(apply(loop_ if n.op.name == "recurrent" else loop_grad_, tuple(operands), n.attrs))

    return rewrite(graph, rule) if any(has_loop(n) for n in graph.nodes()) else graph


def has_loop(n: Node) -> bool:
    """True for a recurrent layer, or its gradients, of sizes and dtypes that the kernels take."""
    if n.op is None or n.op.name not in LAYERS:
        return False
    sizes = [x.spec.numel for x in (n, *n.args())]
    known = n.spec.dtype in (dtypes.float32, dtypes.float16, dtypes.bfloat16)
    return known and len(n.args()) == len(n.inputs) and 0 < min(sizes) and max(sizes) < 1 << 31  # strides are arguments of 32 bits


def recurrent(
    n: Node, place: Callable[[Node, tuple[Index, ...]], tuple[str, Index]], home: tuple[str, tuple[int, ...]],
    number: Callable[[str], int],
) -> tuple[Recurrent, list[Buffer]]:
    """The kernel of a node, and the memory that it needs besides. `home`: buffer and strides of its result; else as `claim.kernel_of`."""
    part = next(name for name, (_, op) in PARTS.items() if op is n.op)
    mode, reverse, *keep = n.attrs
    names = PARTS[part][0]
    found = []
    for name, x in zip(names, n.args(), strict=len(n.args()) == len(names)):
        axes = tuple([Axis(f"a{i}", k) for i, k in enumerate(x.spec.shape)])
        buffer, index = place(x, tuple([of(a) if a.extent > 1 else ix.ZERO for a in axes]))
        found.append(_operand(name, number(buffer), index.const, [index.coefficient(a) if a.extent > 1 else 0 for a in axes]))
    buffer, strides = home
    found.append(_operand("out", number(buffer), 0, strides))
    known = dict(zip(names, n.args(), strict=False))
    steps, batch = n.args()[0].spec.shape[-3:-1]
    h = known["w_hh"].spec.shape[1]
    made = Recurrent(part, mode, reverse, any(keep), steps, batch, h, "lengths" in known, tuple(found))
    if not made.carries(n.spec.dtype.itemsize):
        return made, []
    carry = Buffer(f"{buffer}_carry", dtypes.float32, batch * h * (MODES[mode][1] if part == "backward" else 1), "output")
    found.append(Operand("carry", number(carry.name), 0, (), 0))
    return replace(made, operands=tuple(found)), [carry]


def _operand(name: str, buffer: int, start: int, strides: Sequence[int]) -> Operand:
    *stack, column = strides
    row = stack.pop() if stack else 0
    return Operand(name, buffer, start, tuple(stack), row, column)


# ------------------------------------------------------------------------------------------------ the kernel


@dataclass(frozen=True)
class Recurrent(Handwritten):
    """The loop over `steps` steps of `batch` samples with `units` hidden units, `keep`: with what the gradients need.

    Operands have strides of plane and step (the stack; initial states have a plane only), sample and column.
    """

    part: str
    mode: str
    reverse: bool
    keep: bool
    steps: int
    batch: int
    units: int
    has_lengths: bool
    operands: tuple[Operand, ...]

    def carries(self, itemsize: int) -> bool:
        """True where something is handed from step to step in memory of its own, in float32."""
        if self.part == "forward":
            return itemsize == 2 and self.mode in ("LSTM", "GRU")
        return self.has_lengths or self.mode in ("LSTM", "GRU")

    # -------------------------------------------------------------------------------------------- Triton

    def tiles(self, buffers: Sequence[Buffer], target: str, maps: bool = True) -> list[Tile]:
        """Samples (m), units (n) and columns of the weight (k) of a program: few samples, so that many programs work at once."""
        size, machine = buffers[self._operand("w_hh").buffer].dtype.itemsize, MACHINES[target]
        m = min(64, max(16, power_of_two(-(-self.batch // machine.processors))), max(16, power_of_two(self.batch)))
        gates = MODES[self.mode][0] if self.part == "forward" else 1
        found = []
        for n, k, warps, stages in _TILES[size]:
            n, k = (min(x, max(16, power_of_two(self.units))) for x in (n, k))
            while stages > 1 and (m + gates * n) * k * size * stages > machine.shared_bytes:
                stages -= 1
            found.append(Tile("recurrent", {"m": m, "n": n, "k": k}, warps, stages))
        return found

    def emit(self, buffers: Sequence[Buffer], target: str, tile: Tile) -> Entry:
        """The entry point."""
        names = [*PARTS[self.part][0], "out", "carry"]
        known = {o.name: o for o in self.operands}
        lines, sizes = [], dict[str, int]()

        def argument(name: str, n: int) -> str:
            if n >= 1 << 31:  # what sizes cannot hold
                return str(n)
            sizes[name] = n
            return name

        numbers = [argument("steps", self.steps), argument("batch", self.batch)]
        constants: dict[str, Any] = {"MODE": list(MODES).index(self.mode), "REVERSE": self.reverse, "H": self.units}
        constants["LENGTHS"] = self.has_lengths
        if self.part == "forward":
            constants |= {"KEEP": self.keep and MODES[self.mode][2] > 0, "CARRY": "carry" in known}
        for name in names:
            o = known.get(name, self.operands[0])  # one that is not there is never read: any pointer will do
            lines.append(f"{name} = b{o.buffer}" + (f" + {argument(f'{name}_start', o.start)}" if o.start else ""))
            if name in _STEPPED:
                kinds = ("plane",) if name == "initial" else ("plane", "step")[-len(o.stack) :]
                numbers += [argument(f"{name}_{kind}", n) for kind, n in zip((*kinds, "row"), (*o.stack, o.row), strict=True)]
            if name == "w_hh":
                constants["W_HH_ROW"] = o.row
            if name != "carry":
                constants[f"{name.upper()}_E"] = o.column
        constants |= {f"BLOCK_{d.upper()}": n for d, n in tile.blocks.items()}
        four = buffers[known["w_hh"].buffer].dtype.itemsize == 4
        constants["PRECISION"] = config.float32_dot if four and target.startswith("cuda") else "ieee"
        lines.append(f"recurrent_{self.part}(")
        words = [f"{w}," for w in ("tl.program_id(0)", *names, *numbers, *(f"{k}={v!r}" for k, v in constants.items()))]
        line = "   "
        for word in words:
            if len(line) + len(word) > 120:
                lines.append(line)
                line = "   "
            line += f" {word}"
        programs = -(-self.batch // tile.blocks["m"])
        return Entry([*lines, line, ")"], [f"recurrent_{self.part}"], programs, {}, sizes)

    def _operand(self, name: str) -> Operand:
        return next(o for o in self.operands if o.name == name)

    # -------------------------------------------------------------------------------------------- meaning and cost

    def _shape(self, name: str) -> tuple[int, ...]:
        gates, states, kept = MODES[self.mode]
        h, planes = self.units, states + (kept if self.keep or name == "kept" else 0)
        if name in ("b_hh", "lengths"):
            return (gates * h if name == "b_hh" else self.batch,)
        if name in ("w_hh", "initial"):
            return (gates * h, h) if name == "w_hh" else (states, self.batch, h)
        if name == "gates":
            return self.steps, self.batch, gates * h
        if name == "out" and self.part == "backward":  # rows may be longer
            return self.steps + 1, self.batch, (gates + (self.mode == "GRU")) * h
        return states if name == "grad" else planes, self.steps, self.batch, h

    def interpret(self, arrays: Sequence[np.ndarray[Any, Any]], scalars: Sequence[Any] = ()) -> None:
        """Run on the buffers as flat arrays, by the operator's NumPy code."""
        views = {}
        for o in self.operands:
            if o.name != "carry":
                flat, shape = arrays[o.buffer], self._shape(o.name)
                strides = (*o.stack, o.row, o.column)[-len(shape) :]
                views[o.name] = np.lib.stride_tricks.as_strided(flat[o.start :], shape, [s * flat.itemsize for s in strides])
        out = views.pop("out")
        more = (self.keep,) if self.part == "forward" else ()
        out[...] = PARTS[self.part][1].eager(*views.values(), self.mode, self.reverse, *more)[..., : out.shape[-1]]

    def problem(self, buffers: Sequence[Buffer]) -> str:
        """Part, mode, dtype, samples and units to the nearest power of two."""
        kind = buffers[self._operand("w_hh").buffer].dtype.name
        return f"recurrent {self.part} {self.mode} {kind} {near(self.batch)}x{near(self.units)}"

    def bytes_moved(self, buffers: Sequence[Buffer]) -> int:
        """Each element of each operand once: weights and the state stay in the caches."""
        return sum(int(np.prod(self._shape(o.name))) * buffers[o.buffer].dtype.itemsize for o in self.operands if o.name != "carry")

    def flops(self) -> int:
        """Arithmetic of the products, and about ten operations for each gate."""
        return self.steps * self.batch * MODES[self.mode][0] * self.units * (2 * self.units + 10)
