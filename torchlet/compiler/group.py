"""Many small elementwise kernels of one form as one launch on a GPU: the updates of all parameters of an optimizer's step.

The kernels differ in the lengths and places of their tensors only. A table in device memory holds the addresses; each program looks
up which tensors it works on, and then does what the kernel of these tensors would have done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchlet.compiler import tile
from torchlet.compiler.interpret import interpret_kernel
from torchlet.compiler.loops import Buffer, Handwritten, Kernel
from torchlet.compiler.simplify_loops import collapse_axes, map_kernel
from torchlet.expr import expr, walk
from torchlet.index import Axis, Index, of

__all__ = ["Grouped", "form_of", "grouped"]

BLOCK = 1024  # elements of a program
X = Axis("x", 1 << 30)  # stands for the length, which differs


@dataclass(frozen=True)
class Grouped(Handwritten):
    """`member` over each of `lengths` elements: its buffers, and its numbers, are consecutive among the kernel's."""

    member: Kernel
    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Buffers of a member."""
        return len(self.member.buffers)

    @property
    def programs(self) -> int:
        """How many blocks all members have."""
        return sum(-(-n // BLOCK) for n in self.lengths)

    def table(self, addresses: Sequence[int], numbers: Sequence[float] = ()) -> np.ndarray[Any, Any]:
        """What the kernel looks up: the program at which each member starts, lengths, addresses, numbers (their 64 bits)."""
        starts = itertools.accumulate((-(-n // BLOCK) for n in self.lengths[:-1]), initial=0)
        floats = [s.dtype.is_floating_point for s in self.member.scalars] * len(self.lengths)
        words = [int(np.float64(x).view(np.int64)) if f else int(x) for x, f in zip(numbers, floats, strict=True)]
        return np.array([*starts, *self.lengths, *addresses, *words], np.int64)

    def members(self) -> list[Kernel]:
        """The single kernels."""
        return [_with_length(self.member, n) for n in self.lengths]

    def interpret(self, arrays: Sequence[np.ndarray[Any, Any]], scalars: Sequence[Any] = ()) -> None:
        """One member after the other."""
        for i, kernel in enumerate(self.members()):
            k = len(kernel.scalars)
            interpret_kernel(kernel, arrays[i * self.width : (i + 1) * self.width], scalars[i * k : (i + 1) * k])

    def bytes_moved(self, buffers: Sequence[Buffer]) -> int:
        """The members' bytes."""
        return sum(tile.bytes_moved(k) for k in self.members())

    def flops(self) -> int:
        """The members' operations."""
        return sum(tile.flops(k) for k in self.members())


def form_of(kernel: Kernel) -> Kernel | None:
    """The kernel with its length and names taken out: equal for kernels that can share a launch; None for one that is no such kernel."""
    if kernel.body is not None or not kernel.points or any(p.reduce or p.reductions for p in kernel.phases):
        return None
    kernel = collapse_axes(kernel)
    if len(kernel.grid) != 1:
        return None
    (axis,) = kernel.grid
    here = of(axis)
    indices = [e.attr[1] for e in walk(*kernel.roots()) if e.op == "load"] + [s.index for p in kernel.phases for s in p.stores]  # type: ignore[index]
    if any(i != here and i.terms for i in indices) or any(e.op == "index" for e in walk(*kernel.roots())):
        return None  # it reads or makes something else than the element itself, or a number
    if any(s.mode != "set" for p in kernel.phases for s in p.stores):
        return None
    swept = {e.attr[0] for e in walk(*kernel.roots()) if e.op == "load" and e.attr[1] == here}  # type: ignore[index]
    swept |= {s.buffer for p in kernel.phases for s in p.stores if s.index == here}
    return _renamed(kernel, axis, swept)


def _renamed(kernel: Kernel, axis: Axis, swept: set[str]) -> Kernel:
    names = {b.name: f"b{i}" for i, b in enumerate(kernel.buffers)}
    numbers = {s.name: f"s{i}" for i, s in enumerate(kernel.scalars)}

    def rename(e: Any) -> Any:
        if e.op == "load":
            return expr("load", e.args, e.dtype, (names[e.attr[0]], e.attr[1]))
        return expr("scalar", (), e.dtype, numbers[e.attr]) if e.op == "scalar" else None

    def term(t: Any) -> Index | None:
        return of(X) if t == axis else None

    moved = map_kernel(kernel, rename, term)
    phases = tuple(replace(p, stores=tuple(replace(s, buffer=names[s.buffer]) for s in p.stores)) for p in moved.phases)
    buffers = tuple(Buffer(names[b.name], b.dtype, 0 if b.name in swept else b.size, b.role) for b in kernel.buffers)
    return Kernel("member", (X,), phases, buffers, tuple(replace(s, name=numbers[s.name]) for s in kernel.scalars))


def _with_length(member: Kernel, n: int) -> Kernel:
    axis = Axis("x", n)
    moved = map_kernel(replace(member, grid=(axis,)), lambda e: None, lambda t: of(axis) if t == member.grid[0] else None)
    return replace(moved, buffers=tuple(replace(b, size=b.size or n) for b in member.buffers))


def grouped(kernels: Sequence[Kernel], member: Kernel) -> Kernel:
    """The one kernel in place of several of the form `member`; its buffers and numbers are theirs in order."""
    lengths = tuple(math.prod(a.extent for a in k.grid) for k in kernels)
    buffers = tuple(b for k in kernels for b in k.buffers)
    scalars = tuple(s for k in kernels for s in k.scalars)
    origin = tuple(dict.fromkeys(line for k in kernels for line in k.origin))
    return Kernel(f"{kernels[0].name}_x{len(kernels)}", (), (), buffers, scalars, origin, Grouped(member, lengths))
