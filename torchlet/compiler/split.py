"""Long reductions with few grid points as two kernels on a GPU: partial results by many programs, then their combination.

A kernel whose grid keeps only a few processors busy is cut at its phases. The reductions of a phase run in slices of the reduce
axes, whose results lie in memory of their own, and are combined in a fixed order: results are the same in every run. Sums over
few or short columns and products with few tiles and long inner dimensions (split-K) are cases of this. So are products whose
epilogue needs so many registers (an optimizer's step) that it would force small tiles on them.
"""

from __future__ import annotations

from dataclasses import replace

from torchlet import dtypes
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, Store, data_terms, depends_on
from torchlet.compiler.simplify_loops import collapse_axes, map_kernel
from torchlet.compiler.tile import MACHINES, choose, extent, is_product, product_seconds
from torchlet.expr import Expr, call, cast, const, expr, walk, where
from torchlet.index import ZERO, Axis, flatten, of, unflatten

__all__ = ["split"]

TARGET = "cuda:90"  # for which processors are counted; other devices have about as many
LEAST = 1 << 17  # elements from which a second launch is worth its time
MOST_PARTS = 1 << 26  # partial results of a product: 256 MiB in float32
WORTH = 0.85  # the part of a product's estimated time that its slices may take at most: estimates are rough
SLICE = {"row": 4096, "column": 64, "product": 256}  # the shortest slice of a reduction


def split(kernel: Kernel) -> list[Kernel]:
    """The kernel, or several that compute the same where one would leave most processors idle."""
    if kernel.body is not None or not kernel.points or not any(p.reductions and extent(p.reduce) for p in kernel.phases):
        return [kernel]
    if any(isinstance(r, Reduction) and r.combine in ("argmax", "argmin") for p in kernel.phases for r in p.reductions):
        return [kernel]  # they would carry a position
    kernel = collapse_axes(kernel)
    if any(not p.reduce and p.reductions for p in kernel.phases):
        return [kernel]
    cuts = any(_slices(kernel, p) for p in kernel.phases)
    return _Cut(kernel).run() if cuts else [kernel]


def _slices(kernel: Kernel, phase: Phase) -> int:
    """Into how many slices the reductions of a phase are cut; 0: they stay. One slice: a product without what follows it."""
    n = extent(phase.reduce)
    if n * kernel.points < LEAST or not phase.reductions:
        return 0
    if is_product(kernel):
        most = min(n // SLICE["product"], MOST_PARTS // kernel.points)
        counts = [s for s in range(1, most + 1) if n % (16 * s) == 0]
        best = min(counts, key=lambda s: product_seconds(kernel, TARGET, s), default=0)
        return best if product_seconds(kernel, TARGET, best) < WORTH * product_seconds(kernel, TARGET, 0) else 0
    blocks = choose(kernel, TARGET).blocks
    processors = MACHINES[TARGET].processors
    programs = -(-kernel.points // blocks.get("x", 1))
    if programs * 2 > processors:
        return 0
    slices = min(2 * processors // programs, n // SLICE["column" if blocks.get("x", 1) > 1 else "row"])
    return slices if slices > 1 else 0


class _Cut:
    """Walks the phases; results of earlier ones are read from memory."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.at = flatten(tuple(of(a) for a in kernel.grid), tuple(a.extent for a in kernel.grid)) if kernel.grid else ZERO
        self.sizes = {b.name: b for b in kernel.buffers}
        self.known: dict[str, Expr] = {}
        self.out: list[Kernel] = []

    def run(self) -> list[Kernel]:
        """The kernels in order."""
        for phase in self.kernel.phases:
            inside = frozenset(phase.reduce)
            nested = tuple(s for s in phase.stores if inside and _varies(s, inside))
            after = tuple(s for s in phase.stores if s not in nested)
            if phase.reductions:
                self.reduce(phase, after, last=phase is self.kernel.phases[-1])
            elif after:
                self.add((), Phase(stores=after), "")
            if nested:
                self.add(phase.reduce, Phase(stores=nested), "")
        return self.out

    def reduce(self, phase: Phase, after: tuple[Store, ...], last: bool) -> None:
        """Partial results, then their combination with the stores that wait for it."""
        n, count = extent(phase.reduce), _slices(self.kernel, phase)
        results: tuple[Reduction | Dot, ...] = phase.reductions
        over = phase.reduce
        if count:
            length = -(-n // count)
            number, place = Axis("slice", count), Axis("place", length)
            position = of(number) * length + of(place)
            new = dict(zip(phase.reduce, unflatten(position, tuple(a.extent for a in phase.reduce)), strict=True))
            inside = None if n == length * count else call("lt", expr("index", (), dtypes.int64, position), n)
            parts, stores, results = [], [], []  # type: ignore[assignment]
            for r in phase.reductions:
                part = self.temporary_of(f"{r.name}_parts", r.dtype, count)
                parts.append(_sliced(r, number, place, inside))
                stores.append(Store(part, of(number) * self.kernel.points + self.at, expr("value", (), r.dtype, r.name)))
                load = expr("load", (), r.dtype, (part, of(number) * self.kernel.points + self.at))
                results.append(Reduction(r.name, "sum" if isinstance(r, Dot) else r.combine, load))  # type: ignore[attr-defined]
            first = map_kernel(
                Kernel("", (), (Phase((place,), tuple(parts)),), ()), lambda e: None, lambda t: new.get(t) if isinstance(t, Axis) else None
            ).phases[0]
            if inside is not None:
                first = replace(first, reductions=tuple(_inside(r, inside) for r in first.reductions))
            self.add((number,), replace(first, stores=tuple(stores)), "_parts")
            over = (number,)
        stores = [] if last else [self.keep(r) for r in phase.reductions]
        self.add((), Phase(over, tuple(results), (*after, *stores)), "_whole")
        for r in phase.reductions:
            if not last:
                self.known[r.name] = expr("load", (), r.dtype, (f"{r.name}_whole", self.at))

    def keep(self, r: Reduction | Dot) -> Store:
        """The store of a result that later phases read."""
        return Store(self.temporary_of(f"{r.name}_whole", r.dtype, 1), self.at, expr("value", (), r.dtype, r.name))

    def temporary_of(self, name: str, d: dtypes.dtype, count: int) -> str:
        """Memory for `count` results of each grid point."""
        self.sizes[name] = Buffer(name, d, count * self.kernel.points)
        return name

    def add(self, further: tuple[Axis, ...], phase: Phase, suffix: str) -> None:
        """A kernel of one phase, over the grid and further axes."""
        results = {r.name for r in phase.reductions}

        def known(e: Expr) -> Expr | None:
            return self.known.get(str(e.attr)) if e.op == "value" and e.attr not in results else None

        kernel = map_kernel(replace(self.kernel, grid=(*further, *self.kernel.grid), phases=(phase,)), known)
        read = [e.attr[0] for e in walk(*kernel.roots()) if e.op == "load"]  # type: ignore[index]
        written = list(dict.fromkeys(s.buffer for s in phase.stores))
        buffers = []
        for name in dict.fromkeys([*read, *written]):
            role = "input" if name not in written else "inout" if name in read else "output"
            was = self.sizes[name]
            buffers.append(replace(was, role="inout" if role == "output" and was.role == "inout" else role))
        used = {e.attr for e in walk(*kernel.roots()) if e.op == "scalar"}
        scalars = tuple(s for s in kernel.scalars if s.name in used)
        self.out.append(replace(kernel, name=f"{self.kernel.name}{suffix}", buffers=tuple(buffers), scalars=scalars))


def _varies(s: Store, axes: frozenset[Axis]) -> bool:
    return bool(axes & set(s.index.axes())) or depends_on(s.value, axes) or any(depends_on(t, axes) for t in data_terms(s.index))


def _sliced(r: Reduction | Dot, number: Axis, place: Axis, inside: Expr | None) -> Reduction | Dot:
    """The reduction over one slice."""
    if isinstance(r, Dot):
        assert inside is None, "slices of products divide them"
        return replace(r, batch=(number, *r.batch), k=(place,))
    return r


def _inside(r: Reduction | Dot, inside: Expr) -> Reduction | Dot:
    """The reduction with what lies beyond the end neither read nor counted."""
    assert isinstance(r, Reduction)
    masked = map_kernel(Kernel("", (), (Phase((), (r,)),), ()), lambda e: _guarded(e, inside)).phases[0].reductions[0]
    assert isinstance(masked, Reduction)
    return replace(masked, value=where(inside, masked.value, _neutral(r.combine, masked.value.dtype)))


def _guarded(e: Expr, inside: Expr) -> Expr | None:
    if e.op != "load":
        return None
    mask = inside if not e.args else call("and", inside, e.args[0])
    return expr("load", (mask, *e.args[1:]), e.dtype, e.attr)


def _neutral(combine: str, d: dtypes.dtype) -> Expr:
    """What changes no result of the combination."""
    if combine in ("sum", "prod"):
        return const(0 if combine == "sum" else 1, d)
    if combine in ("any", "all"):
        return cast(const(combine == "all", dtypes.bool_), d)
    low = combine == "max"
    if d.is_floating_point:
        return const(float("-inf") if low else float("inf"), d)
    if d is dtypes.bool_:
        return const(not low, d)
    bits = d.itemsize * 8 - d.is_signed
    return const((-(2**bits) if d.is_signed else 0) if low else 2**bits - 1, d)
