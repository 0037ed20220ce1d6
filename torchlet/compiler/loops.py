"""The loop IR: kernels of grid axes and phases. What `fuse` makes, what every target prints.

Grammar
    Kernel    = name, grid: Axis*, phases: Phase*, buffers: Buffer*, scalars: ScalarArg*
              | name, buffers: Buffer*, body: Handwritten (attention, or on GPUs a group)
    Phase     = reduce: Axis*, reductions: (Reduction | Dot)*, stores: Store*
    Reduction = name, combine (sum prod max min any all argmax argmin), value: Expr
    Dot       = name, a: Expr over (batch, m, k), b: Expr over (batch, k, n), with m, n grid axes and k the reduce axis
    Store     = buffer, index: Index, value: Expr, mode (set | add)
    Buffer    = name, dtype, size (elements), role (input | output | temp | inout)
    ScalarArg = name, dtype (a Python number: float64, int64 or bool)

Meaning: for every point of the grid, in any order, phase after phase: run the loop nest over `phase.reduce`, evaluating at
each point the reductions' values and the stores whose index or value depends on a reduce axis; after the nest, reduction
results are available as `value` expressions, and stores that depend on no reduce axis run once. A phase may use the results
of reductions of the phases before it in its nest, and its own results only in the stores after its nest. Expressions are
pure, so a target may evaluate them again in each phase or keep them. Reading what an earlier phase of the same grid point
stored is not done: the stored expression itself is used. A store with mode "add" adds into memory that was there before
(scatter); points that meet are combined in any order.

Reductions run in `accumulator(value.dtype)` (float32 for the 16-bit floats, int64 for integers) and have that dtype.
argmax and argmin give the int64 position in the row-major order of the reduce axes, first occurrence; NaN wins max and min.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.dtypes import dtype
from torchlet.expr import Expr, walk
from torchlet.index import Axis, FloorDiv, Index, Mod

COMBINES = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")


@dataclass(frozen=True, slots=True)
class Buffer:
    """Contiguous memory that a kernel gets as a pointer."""

    name: str
    dtype: dtype
    size: int
    role: str = "input"


@dataclass(frozen=True, slots=True)
class ScalarArg:
    """A Python number that a kernel gets by value: float64, int64 or bool."""

    name: str
    dtype: dtype


@dataclass(frozen=True, slots=True)
class Reduction:
    """`name = combine over the phase's reduce axes of value`."""

    name: str
    combine: str
    value: Expr

    @property
    def dtype(self) -> dtype:
        """The dtype of the result."""
        if self.combine in ("argmax", "argmin"):
            return dtypes.int64
        return dtypes.bool_ if self.combine in ("any", "all") else accumulator(self.value.dtype)


@dataclass(frozen=True, slots=True)
class Dot:
    """`name[batch, m, n] = sum over k of a[batch, m, k] * b[batch, k, n]`, accumulated in `accumulator(a.dtype)`."""

    name: str
    a: Expr
    b: Expr
    batch: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]

    @property
    def dtype(self) -> dtype:
        """The dtype of the result."""
        return accumulator(self.a.dtype)


@dataclass(frozen=True, slots=True)
class Store:
    """`buffer[index] = value` (or `+=` with mode "add")."""

    buffer: str
    index: Index
    value: Expr
    mode: str = "set"


@dataclass(frozen=True, slots=True)
class Phase:
    """One loop nest over the reduce axes inside the grid, then its row stores."""

    reduce: tuple[Axis, ...] = ()
    reductions: tuple[Reduction | Dot, ...] = ()
    stores: tuple[Store, ...] = ()


class Handwritten:
    """What a kernel computes that is written by hand; a frozen dataclass of numbers, which name buffers by position."""

    __slots__ = ()

    @abstractmethod
    def interpret(self, arrays: Sequence[np.ndarray[Any, Any]], scalars: Sequence[Any] = ()) -> None:
        """Run in NumPy on flat arrays, one for each buffer."""

    @abstractmethod
    def bytes_moved(self, buffers: Sequence[Buffer]) -> int:
        """Bytes between memory and chip, each element once."""

    @abstractmethod
    def flops(self) -> int:
        """Floating-point operations."""

    def problem(self, buffers: Sequence[Buffer]) -> str:
        """The class of problems that it belongs to, for the table of tiles (`winners`); empty where there is one tile only."""
        return ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch. `origin` lists the user's lines (file:line) it computes; with a `body` there are neither grid nor phases."""

    name: str
    grid: tuple[Axis, ...]
    phases: tuple[Phase, ...]
    buffers: tuple[Buffer, ...]
    scalars: tuple[ScalarArg, ...] = ()
    origin: tuple[str, ...] = ()
    body: Handwritten | None = None

    @property
    def points(self) -> int:
        """How many grid points there are."""
        n = 1
        for axis in self.grid:
            n *= axis.extent
        return n

    def roots(self) -> Iterator[Expr]:
        """Every expression that the kernel evaluates."""
        for phase in self.phases:
            yield from phase_roots(phase)

    def loads(self) -> list[Expr]:
        """The distinct load nodes: how often memory is named, not how often it is touched."""
        return [e for e in walk(*self.roots()) if e.op == "load"]

    def renamed(self, name: str) -> Kernel:
        """The same kernel under another name."""
        return replace(self, name=name)


def phase_roots(phase: Phase) -> Iterator[Expr]:
    """The expressions of one phase, data-dependent positions included."""
    for r in phase.reductions:
        yield from (r.a, r.b) if isinstance(r, Dot) else (r.value,)
    for s in phase.stores:
        yield s.value
        yield from data_terms(s.index)
    for e in walk(
        *[s.value for s in phase.stores], *[x for r in phase.reductions for x in ((r.a, r.b) if isinstance(r, Dot) else (r.value,))]
    ):
        if e.op in ("load", "index"):
            yield from data_terms(e.attr[1] if e.op == "load" else e.attr)  # type: ignore[index,arg-type]


def data_terms(index: Index) -> Iterator[Expr]:
    """The data-dependent terms of an index."""
    for term, _ in index.terms:
        if isinstance(term, Expr):
            yield term
        elif isinstance(term, FloorDiv | Mod):
            yield from data_terms(term.index)


def accumulator(d: dtype) -> dtype:
    """The dtype that sums and dots of `d` run in."""
    if d in (dtypes.float16, dtypes.bfloat16):
        return dtypes.float32
    return d if d.is_floating_point else dtypes.int64


def depends_on(e: Expr, axes: frozenset[Axis]) -> bool:
    """True when the expression varies along one of the axes (`value` results do not: they belong to the grid point)."""
    for node in walk(e):
        if node.op in ("load", "index"):
            index: Index = node.attr[1] if node.op == "load" else node.attr  # type: ignore[index,assignment]
            if any(a in axes for a in index.axes()) or any(depends_on(t, axes) for t in data_terms(index)):
                return True
    return False
