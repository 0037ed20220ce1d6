"""Flash attention as kernels of a plan: what a launch computes, its Triton entry point, its meaning in NumPy, its cost.

The matrix of weights is never in memory: the forward pass keeps the logarithm of each row's sum, from which the backward passes
make the weights again, block by block. The work on one head is in `kernels.attention`; an entry point finds the head's matrices
in the buffers, whatever their strides. On the CPU `codegen.cpu_attention` prints it, and all gradients are made by one launch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from torchlet.compiler.loops import Buffer, Handwritten
from torchlet.compiler.tile import MACHINES, SPECIALISED, TENSOR_MAPS, Tile, near
from torchlet.errors import UnsupportedError
from torchlet.runtime.cuda import TensorMap

__all__ = ["Attention", "Operand"]

PARTS = {  # what each kernel reads and may write
    "forward": (("q", "k", "v", "mask"), ("out", "lse")),
    "query_gradient": (("g", "lse", "delta", "q", "k", "v", "mask"), ("dq",)),
    "key_gradient": (("g", "lse", "delta", "q", "k", "v", "mask"), ("dk", "dv")),
    "gradients": (("g", "lse", "delta", "q", "k", "v", "mask"), ("dq", "dk", "dv")),  # on the CPU
}
_ROWS_ONLY = ("lse", "delta")  # one number a row
# (queries, keys, warps, stages) by kernel, bytes of an element and width; with tensor maps the best by formula and alternates. None of
# them spills or waits between products on cuda:90, compiled by Triton 3.6 and 3.9; their order has not been measured on a device
_TILES: Mapping[str, Mapping[int, Mapping[int, tuple[int, int, int, int]]]] = {
    "forward": {
        2: {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
        4: {64: (64, 32, 4, 2), 128: (32, 32, 4, 2)},
    },
    "query_gradient": {
        2: {64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
        4: {64: (32, 32, 4, 1), 128: (32, 16, 8, 1)},
    },
    "key_gradient": {
        2: {64: (64, 128, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
        4: {64: (32, 32, 4, 1), 128: (16, 32, 8, 1)},
    },
}
_SMALL = (16, 16, 4, 1)
_MAPPED: Mapping[str, Mapping[int, list[tuple[int, int, int, int]]]] = {
    "forward": {
        64: [(128, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 3)],
        128: [(128, 64, 8, 3), (128, 128, 8, 2), (128, 64, 8, 2)],
    },
    "query_gradient": {
        64: [(128, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 3)],
        128: [(64, 64, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2)],
        256: [(64, 32, 8, 2)],
    },
    "key_gradient": {
        64: [(64, 128, 8, 2), (64, 64, 4, 2), (64, 128, 8, 3)],
        128: [(64, 64, 8, 2), (64, 64, 8, 3), (32, 128, 8, 2)],
    },
}
_SHARED = ("k", "v", "dk", "dv")  # one matrix for each shared head; its lines are keys


@dataclass(frozen=True, slots=True)
class Operand:
    """A stack of matrices inside buffer number `buffer`: the first element, the strides of the stack's dimensions, of rows, of columns."""

    name: str
    buffer: int
    start: int
    stack: tuple[int, ...]
    row: int
    column: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What a Triton kernel is printed from: its lines, the device functions they call, the programs, tensor maps and their blocks.

    `sizes`: numbers that are arguments, so that kernels which differ in nothing else share one binary.
    """

    lines: list[str]
    helpers: list[str]
    programs: int
    maps: dict[str, tuple[TensorMap, tuple[int, ...]]]
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attention(Handwritten):
    """One of the kernels over `stack` (batch …, heads) of problems with `rows` queries of width d and `columns` values of width dv.

    `group`: how many heads share a key and a value; the last stack strides of k, v, dk and dv are those of shared heads.
    """

    part: str
    stack: tuple[int, ...]
    rows: int
    columns: int
    d: int
    dv: int
    group: int
    causal: bool
    scale: float
    operands: tuple[Operand, ...]

    # -------------------------------------------------------------------------------------------- Triton

    def tiles(self, buffers: Sequence[Buffer], target: str, maps: bool = True) -> list[Tile]:
        """Queries (m) and keys (n) of a program, by width and bytes of an element: what keeps the sums in registers. The best first."""
        itemsize = buffers[self._operand("q").buffer].dtype.itemsize
        width = max(64, _power_of_two(max(self.d, self.dv)))
        found = [Tile("attention", {"m": m, "n": n}, w, stages) for m, n, w, stages in [_TILES[self.part][itemsize].get(width, _SMALL)]]
        if target.startswith("hip"):
            found = [replace(t, blocks={d: min(n, 64) for d, n in t.blocks.items()}, num_stages=1) for t in found]
        if maps and target in TENSOR_MAPS and any(self._map(o, buffers[o.buffer].dtype.itemsize) for o in self.operands):
            more = [Tile("attention", {"m": m, "n": n}, w, stages) for m, n, w, stages in _MAPPED[self.part].get(width, [])]
            found = [replace(t, map_bytes=MACHINES[target].shared_bytes) for t in more or found] + found
            if target in SPECIALISED and self.part == "forward":
                found.append(replace(found[0], specialised=True))
        most = {"m": max(16, _power_of_two(self.rows)), "n": max(16, _power_of_two(self.columns))}
        return [replace(t, blocks={d: min(n, most[d]) for d, n in t.blocks.items()}) for t in found]

    def emit(self, buffers: Sequence[Buffer], target: str, tile: Tile) -> Entry:
        """The entry point. Raises UnsupportedError for the CPU's part."""
        if self.part == "gradients":
            raise UnsupportedError("triton: all gradients of attention in one launch is what the CPU does")
        m, n = tile.blocks["m"], tile.blocks["n"]
        reads, writes = PARTS[self.part]
        tiles = -(-self.columns // n) if self.part == "key_gradient" else -(-self.rows // m)
        stack = self._problems()
        lines = ["pid = tl.program_id(0)"]
        # the rows at the end look at most keys: those programs are started first; of keys it is those at the start
        last_first = self.causal and self.part != "key_gradient"
        lines.append(f"tile = {f'{tiles - 1} - ' if last_first else ''}pid % {tiles}")
        rest, digits = f"(pid // {tiles}).to(tl.int64)", []
        for i, extent in reversed(list(enumerate(stack))):
            if extent > 1:
                lines.append(f"i{i} = {rest} % {extent}" if any(e > 1 for e in stack[:i]) else f"i{i} = {rest}")
                digits.append(i)
                if any(e > 1 for e in stack[:i]):
                    lines.append(f"rest{i} = {rest} // {extent}")
                    rest = f"rest{i}"
        known = {o.name: o for o in self.operands}
        maps: dict[str, tuple[TensorMap, tuple[int, ...]]] = {}
        for name in (*reads, *writes):
            o = known.get(name)
            if o is None:  # not there: any pointer will do
                lines.append(f"{name} = b{self.operands[0].buffer}")
                continue
            # a program of the key gradient is at a shared head; elsewhere it is at a head, which belongs to a shared one
            places, factors = {i: f"i{i}" for i in digits}, dict(zip(digits, (o.stack[i] for i in digits), strict=True))
            last = len(stack) - 1
            if self.group > 1 and last in places:
                if self.part == "key_gradient" and name not in _SHARED:
                    places[last], factors[last] = f"i{last} * {self.group}", o.stack[last]
                elif self.part != "key_gradient" and name in _SHARED:
                    places[last] = f"(i{last} // {self.group})"
            if tile.map_bytes and (tensor_map := self._map(o, buffers[o.buffer].dtype.itemsize)):
                maps[f"{name}_map"] = tensor_map, (1, 1, n if name in _SHARED else m, _lanes(tensor_map.shape[-1]))
                where = [f"({places[i]}).to(tl.int32)" if i in places else "0" for i, n in enumerate(self._stack_of(name)) if n > 1]
                lines.append(f"{name} = {name}_map, {', '.join(['0', '0', *where][-2:])}")
                continue
            terms = [f"b{o.buffer}", *([str(o.start)] if o.start else [])]
            terms += [f"{places[i]} * {factors[i]}" for i in digits if factors[i]]
            lines.append(f"{name} = {' + '.join(terms)}")
        constants = self._constants(known, [b.dtype.name for b in buffers])
        constants |= {f"{name[0].upper()}_ROW": None for name in maps}
        constants |= {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": _lanes(self.d), "BLOCK_DV": _lanes(self.dv)}
        four = buffers[self._operand("q").buffer].dtype.itemsize == 4
        constants["PRECISION"] = "ieee" if target.startswith("hip") or not four else "tf32x3"
        if self.part == "forward":
            constants["SPECIALISE"] = tile.specialised
        lines.append(f"attention_{self.part}(")
        lines.append(f"    tile, {', '.join((*reads, *writes))},")
        line = "   "
        for key, value in constants.items():
            word = f" {key}={value!r},"
            if len(line) + len(word) > 120:
                lines.append(line)
                line = "   "
            line += word
        return Entry([*lines, line, ")"], [f"attention_{self.part}"], tiles * math.prod(stack), maps)

    def _map(self, o: Operand, itemsize: int) -> TensorMap | None:
        """A map over two dimensions of the stack, rows and columns; None where there is none, or the operand is no matrix of it."""
        if o.name not in ("q", "k", "v", "g") or itemsize != 2 or o.column != 1:
            return None
        stack = [(extent, step) for extent, step in zip(self._stack_of(o.name), o.stack, strict=True) if extent > 1]
        if len(stack) > 2:
            return None
        stack = [(1, o.row)] * (2 - len(stack)) + stack
        shape = (self.columns if o.name in _SHARED else self.rows, self.dv if o.name in ("v", "g") else self.d)
        found = TensorMap(o.buffer, o.start, (*(n for n, _ in stack), *shape), (*(s for _, s in stack), o.row, 1))
        return found if found.fits(itemsize) else None

    def _constants(self, known: Mapping[str, Operand], kinds: Sequence[str]) -> dict[str, Any]:
        mask = known.get("mask")
        out: dict[str, Any] = {"ROWS": self.rows, "COLUMNS": self.columns, "D": self.d, "DV": self.dv}
        reads, writes = PARTS[self.part]
        for name in (*reads, *writes):
            if name == "mask":
                out["MASK"] = 0 if mask is None else 1 if kinds[mask.buffer] == "bool" else 2
                out |= {"MASK_ROW": mask.row if mask else 0, "MASK_COLUMN": mask.column if mask else 0}
                continue
            o = known.get(name)
            if self.part == "forward" and name in ("out", "lse"):
                out[name.upper()] = o is not None
            if name in ("dk", "dv"):
                out["DK" if name == "dk" else "DV_OUT"] = o is not None
            out[f"{name.upper()}_ROW"] = o.row if o else 0
            if name not in _ROWS_ONLY:
                out[f"{name.upper()}_E"] = o.column if o else 0
        out |= {"CAUSAL": self.causal, "SCALE": self.scale}
        if self.part == "key_gradient":
            out["GROUP"] = self.group
            for name in ("g", "lse", "delta", "q", "mask"):
                o = known.get(name)
                out[f"{name.upper()}_HEAD"] = o.stack[-1] if o and o.stack and self.group > 1 else 0
        return out

    def _stack_of(self, name: str) -> tuple[int, ...]:
        return (*self.stack[:-1], self.stack[-1] // self.group) if name in _SHARED and self.stack else self.stack

    def _operand(self, name: str) -> Operand:
        return next(o for o in self.operands if o.name == name)

    def _problems(self) -> tuple[int, ...]:
        """The stack that programs run over: shared heads for the gradient of keys, else heads."""
        return self._stack_of("k" if self.part == "key_gradient" else "q")

    # -------------------------------------------------------------------------------------------- meaning and cost

    def interpret(self, arrays: Sequence[np.ndarray[Any, Any]], scalars: Sequence[Any] = ()) -> None:
        """Run on the buffers as flat arrays, in float32 (float64 inputs: float64)."""
        known = {o.name: self._view(o, arrays[o.buffer]) for o in self.operands}
        wide = {n: a if n == "mask" and a.dtype == bool else a.astype(np.float64) for n, a in known.items()}
        q, k, v = wide["q"], wide["k"], wide["v"]
        if self.group > 1:
            k, v = np.repeat(k, self.group, -3), np.repeat(v, self.group, -3)
        scores = q @ k.swapaxes(-2, -1) * self.scale
        if self.causal:
            scores = np.where(np.tri(self.rows, self.columns) > 0, scores, -np.inf)
        if "mask" in wide:
            scores = np.where(wide["mask"], scores, -np.inf) if wide["mask"].dtype == bool else scores + wide["mask"]
        if self.part == "forward":
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
            total = weights.sum(-1, keepdims=True)
            if "out" in known:
                known["out"][...] = weights / np.where(total == 0, 1, total) @ v
            if "lse" in known:
                known["lse"][...] = (top + np.log(np.where(total == 0, 1, total)))[..., 0]
            return
        lse, g = wide["lse"][..., None], wide["g"]
        weights = np.exp(scores - np.where(np.isfinite(lse), lse, np.inf))
        ds = weights * (g @ v.swapaxes(-2, -1) - wide["delta"][..., None]) * self.scale
        if "dq" in known:
            known["dq"][...] = ds @ k
        for name, rows, other in (("dk", ds, q), ("dv", weights, g)):
            if name in known:
                full = rows.swapaxes(-2, -1) @ other
                if self.group > 1:
                    full = full.reshape(*full.shape[:-3], -1, self.group, *full.shape[-2:]).sum(-3)
                known[name][...] = full

    def _view(self, o: Operand, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows = self.columns if o.name in _SHARED else self.rows
        shape, strides = (*self._stack_of(o.name), rows), (*o.stack, o.row)
        if o.name not in _ROWS_ONLY:
            shape += (self.columns if o.name == "mask" else self.dv if o.name in ("v", "out", "g", "dv") else self.d,)
            strides += (o.column,)
        return np.lib.stride_tricks.as_strided(flat[o.start :], shape, [s * flat.itemsize for s in strides])

    def problem(self, buffers: Sequence[Buffer]) -> str:
        """Part, dtype, widths, lengths and heads to the nearest power of two."""
        kind = buffers[self._operand("q").buffer].dtype.name
        shape = f"{near(math.prod(self._problems()))}x{near(self.rows)}x{near(self.columns)}"
        mask = ", masked" if any(o.name == "mask" for o in self.operands) else ""
        return f"attention {self.part} {kind} {self.d} {self.dv} {shape}{', causal' if self.causal else ''}{mask}"

    def bytes_moved(self, buffers: Sequence[Buffer]) -> int:
        """Each element of each operand once."""
        total = 0
        for o in self.operands:
            shared = o.name in _SHARED
            n = math.prod(e for e, s in zip(self.stack, o.stack, strict=True) if s) // (self.group if shared else 1)
            n *= (self.columns if shared else self.rows) if o.row else 1
            if o.name not in _ROWS_ONLY:
                n *= (self.columns if o.name == "mask" else self.dv if o.name in ("v", "out", "g", "dv") else self.d) if o.column else 1
            total += n * buffers[o.buffer].dtype.itemsize
        return total

    def flops(self) -> int:
        """Arithmetic of the products, and an exponential, a multiplication and an addition a score; half of it where causal."""
        products = {"forward": self.d + self.dv, "query_gradient": 2 * self.d + self.dv, "key_gradient": 2 * self.d + 2 * self.dv}
        products["gradients"] = 3 * self.d + 2 * self.dv
        scores = math.prod(self.stack) * self.rows * self.columns
        if self.causal:
            scores = math.prod(self.stack) * sum(min(i + 1, self.columns) for i in range(self.rows))
        return scores * (2 * products[self.part] + 3)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _lanes(n: int) -> int:
    """The width of a tile: a power of two, at least what the tensor cores take."""
    return max(16, _power_of_two(n))
