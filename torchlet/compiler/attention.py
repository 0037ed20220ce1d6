"""Flash attention as kernels of a plan: what a launch computes, its Triton entry point, its meaning in NumPy, its cost.

The matrix of weights is never in memory: the forward pass keeps the logarithm of each row's sum, from which the backward passes
make the weights again, block by block. The work on one head is in `kernels.attention`; an entry point finds the head's matrices
in the buffers, whatever their strides. On the CPU `codegen.cpu_attention` prints it, and all gradients are made by one launch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchlet.compiler.loops import Buffer, Handwritten
from torchlet.errors import UnsupportedError

__all__ = ["Attention", "Operand"]

PARTS = {  # what each kernel reads and may write
    "forward": (("q", "k", "v", "mask"), ("out", "lse")),
    "query_gradient": (("g", "lse", "delta", "q", "k", "v", "mask"), ("dq",)),
    "key_gradient": (("g", "lse", "delta", "q", "k", "v", "mask"), ("dk", "dv")),
    "gradients": (("g", "lse", "delta", "q", "k", "v", "mask"), ("dq", "dk", "dv")),  # on the CPU
}
_ROWS_ONLY = ("lse", "delta")  # one number a row


@dataclass(frozen=True, slots=True)
class Operand:
    """A stack of matrices inside buffer number `buffer`: the first element, the strides of the stack's dimensions, of rows, of columns."""

    name: str
    buffer: int
    start: int
    stack: tuple[int, ...]
    row: int
    column: int = 0


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

    def _tile(self, target: str, itemsize: int) -> tuple[int, int, int, int]:
        """(queries, keys, warps, stages) of a program, by width and bytes of an element: what keeps the sums in registers."""
        width = _power_of_two(max(self.d, self.dv))
        hip = target.startswith("hip")
        if self.part == "forward":
            table = {2: {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)}, 4: {64: (64, 32, 4, 2), 128: (32, 32, 4, 2)}}
        elif self.part == "query_gradient":
            table = {2: {64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)}, 4: {64: (32, 32, 4, 1), 128: (32, 16, 8, 1)}}
        else:
            table = {2: {64: (64, 128, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)}, 4: {64: (32, 32, 4, 1), 128: (16, 32, 8, 1)}}
        m, n, warps, stages = table[itemsize].get(max(width, 64), (16, 16, 4, 1))
        if hip:
            m, n, stages = min(m, 64), min(n, 64), 1
        return min(m, max(16, _power_of_two(self.rows))), min(n, max(16, _power_of_two(self.columns))), warps, stages

    def emit(self, buffers: Sequence[Buffer], target: str) -> tuple[list[str], list[str], int, int, int]:
        """(lines of the entry point, device functions it calls, programs, warps, stages). Raises UnsupportedError for the CPU's part."""
        if self.part == "gradients":
            raise UnsupportedError("triton: all gradients of attention in one launch is what the CPU does")
        kinds = [b.dtype.name for b in buffers]
        m, n, warps, stages = self._tile(target, buffers[self._operand("q").buffer].dtype.itemsize)
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
                digits.append((i, extent))
                if any(e > 1 for e in stack[:i]):
                    lines.append(f"rest{i} = {rest} // {extent}")
                    rest = f"rest{i}"
        known = {o.name: o for o in self.operands}
        for name in (*reads, *writes):
            o = known.get(name)
            if o is None:  # not there: any pointer will do
                lines.append(f"{name} = b{self.operands[0].buffer}")
                continue
            terms = [f"b{o.buffer}", *([str(o.start)] if o.start else [])]
            for i, _ in digits:
                # a program of the key gradient is at a shared head; elsewhere it is at a head, which belongs to a shared one
                shared = name in ("k", "v", "dk", "dv")
                last = i == len(stack) - 1 and self.group > 1
                if last and self.part == "key_gradient" and not shared:
                    factor, digit = o.stack[i] * self.group, f"i{i}"
                else:
                    factor, digit = o.stack[i], f"i{i} // {self.group}" if last and shared and self.part != "key_gradient" else f"i{i}"
                if factor:
                    terms.append(f"({digit}) * {factor}" if "/" in digit else f"{digit} * {factor}")
            lines.append(f"{name} = {' + '.join(terms)}")
        constants = self._constants(known, kinds)
        constants |= {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": _lanes(self.d), "BLOCK_DV": _lanes(self.dv)}
        four = buffers[self._operand("q").buffer].dtype.itemsize == 4
        constants["PRECISION"] = "ieee" if target.startswith("hip") or not four else "tf32x3"
        lines.append(f"attention_{self.part}(")
        lines.append(f"    tile, {', '.join((*reads, *writes))},")
        line = "   "
        for key, value in constants.items():
            word = f" {key}={value!r},"
            if len(line) + len(word) > 120:
                lines.append(line)
                line = "   "
            line += word
        return [*lines, line, ")"], [f"attention_{self.part}"], tiles * math.prod(stack), warps, stages

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

    def _operand(self, name: str) -> Operand:
        return next(o for o in self.operands if o.name == name)

    def _problems(self) -> tuple[int, ...]:
        """The stack that programs run over: shared heads for the gradient of keys, else heads."""
        if self.part == "key_gradient" and self.stack:
            return (*self.stack[:-1], self.stack[-1] // self.group)
        return self.stack

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
        stack = self.stack
        if o.name in ("k", "v", "dk", "dv") and stack:
            stack = (*stack[:-1], stack[-1] // self.group)
        rows = self.columns if o.name in ("k", "v", "dk", "dv") else self.rows
        shape, strides = (*stack, rows), (*o.stack, o.row)
        if o.name not in _ROWS_ONLY:
            shape += (self.columns if o.name == "mask" else self.dv if o.name in ("v", "out", "g", "dv") else self.d,)
            strides += (o.column,)
        return np.lib.stride_tricks.as_strided(flat[o.start :], shape, [s * flat.itemsize for s in strides])

    def bytes_moved(self, buffers: Sequence[Buffer]) -> int:
        """Each element of each operand once."""
        total = 0
        for o in self.operands:
            shared = o.name in ("k", "v", "dk", "dv")
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
