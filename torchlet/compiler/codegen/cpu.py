"""Prints a kernel as one C function that thread `tid` of `nth` runs together with the others.

Shapes of the printed nests:
    pointwise   grid loops, the last one vectorized
    rows        grid loops, inside them each phase's reduce loops, the innermost vectorized
    jammed      the same for a matrix by a vector: JAM rows at once, which read the vector once and do not wait for one running sum
    columns     a block of LANES grid columns, inside it the reduce loops, inside them the columns as vector accumulators
    together    few grid points with long reductions: every thread reduces its part, a barrier, all combine in thread order
    products    codegen/cpu_gemm.py
    attention   codegen/cpu_attention.py
One loop axis is shared out over the threads; `_plan` chooses it and the shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torchlet import dtypes
from torchlet.compiler.attention import Attention
from torchlet.compiler.codegen import c_expr, cpu_attention, cpu_gemm
from torchlet.compiler.codegen.c_loops import Scopes, identifier, index_exprs, may_vectorize, separates, strides, walk_all
from torchlet.compiler.loops import Dot, Kernel, Phase, Reduction, Store, data_terms, depends_on
from torchlet.compiler.simplify_loops import collapse_axes, flatten_short_rows, substitute_axes, unroll_windows
from torchlet.expr import Expr, expr, walk
from torchlet.index import Axis, FloorDiv, Index, of

__all__ = ["MIN_WORK", "emit", "threads_wanted", "work"]

LANES = 512  # columns that are accumulated at once: long enough runs of memory, short enough for the first-level cache
CHUNK = 2048  # terms of a float sum that are added up before they join the total, which keeps long sums accurate
COLUMN_CHUNK = 512  # the same where every column has one running sum instead of a vector of them
FETCH = 128  # terms of a costly loop over a row, between which memory is asked for what the loops after it will read and write
FETCH_BYTES = 4 << 20  # arrays that are smaller stay in the second-level cache
KEPT_BYTES = 64 << 10  # stack that a kernel may use to keep values of one phase for a later one
KEPT_VALUES = 4  # so many, where each has room for any size
MIN_WORK = 1 << 17  # element operations (about 4 us of vector code) below which waking a second thread costs more than it brings
JAM = 4  # rows whose sums run together
TILE = 32  # of a transposing loop: a square of it stays in the first-level cache
_WEIGHTS = {"div": 4, "sqrt": 4, "rsqrt": 6, "floordiv": 8, "mod": 8, "fmod": 8} | dict.fromkeys(
    (
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "erf",
        "sigmoid",
        "pow",
        "atan2",
        "philox",
    ),
    8,
)


def emit(kernel: Kernel, shared: bool = False, together: bool | None = None) -> str:
    """One C function `void NAME(char *const *restrict b, const int64_t *restrict s, int tid, int nth)` (and what it needs before it).

    b[i] points to kernel.buffers[i], s[i] holds kernel.scalars[i] (the bits of a double for float64). Raises UnsupportedError
    for an operator that has no C. With `shared` no choice depends on sizes where that can be: the texts of one kernel at two
    sizes then differ in numbers only, and generalize.py makes one of them; `together` makes the one choice that may differ.
    """
    if isinstance(kernel.body, Attention):
        body = cpu_attention.emit_attention(kernel, kernel.body, shared)
    else:
        simple = collapse_axes(kernel)
        if not shared:  # how many terms there are is a size
            simple = flatten_short_rows(unroll_windows(simple))
        product = cpu_gemm.product_of(simple, shared)
        body = cpu_gemm.emit_product(simple, product) if product else _Loops(simple, shared, together).function()
    header = [f"// {kernel.name}" + (f": {', '.join(kernel.origin)}" if kernel.origin else "")]
    return "\n".join([*header, *body, ""])


def work(kernel: Kernel) -> int:
    """Element operations of one run, an exponential counting for eight."""
    total = 0 if kernel.body is None else kernel.body.flops() // 8  # as of other products
    for phase in kernel.phases:
        inner = math.prod(a.extent for a in phase.reduce)
        axes = frozenset(phase.reduce)
        for r in phase.reductions:
            if isinstance(r, Dot):
                total += kernel.points * inner // 4  # multiply-adds run on full vectors from registers
            else:
                total += kernel.points * inner * _cost((r.value,))
        for store in phase.stores:
            total += kernel.points * (inner if _in_nest(store, axes) else 1) * (1 + _cost((store.value,)))
    return total


def threads_wanted(kernel: Kernel) -> bool:
    """True when the kernel has enough work for more than one thread."""
    return work(kernel) >= MIN_WORK


def _cost(roots: tuple[Expr, ...]) -> int:
    return 1 + sum(_WEIGHTS.get(e.op, 1) for e in walk(*roots) if e.op not in ("const", "scalar", "value", "index"))


def _in_nest(store: Store, axes: frozenset[Axis]) -> bool:
    return (
        depends_on(store.value, axes) or bool(axes & set(store.index.axes())) or any(depends_on(t, axes) for t in data_terms(store.index))
    )


# ------------------------------------------------------------------------------------------------------------ accumulators


@dataclass(frozen=True, slots=True)
class _State:
    """One variable of a running reduction."""

    kind: str
    start: str


class _Accumulator:
    """How one reduction starts, takes an element, joins another part, and ends."""

    def __init__(self, r: Reduction):
        self.combine = r.combine
        self.source = r.value.dtype
        self.result_dtype = r.dtype
        self.float_key = "64" if self.source is dtypes.float64 else ""
        self.arg = r.combine in ("argmax", "argmin")
        narrow = self.source is not dtypes.float64 and (self.source.is_floating_point or self.source.itemsize < 8)
        self.packed = self.arg and narrow  # key and position in one integer, so that the comparison vectorizes
        self.clause: str | None
        kind = c_expr.VALUE[self.result_dtype]
        if r.combine in ("sum", "prod"):
            self.clause = "+" if r.combine == "sum" else "*"
            self.states = [_State(kind, c_expr.constant(0 if r.combine == "sum" else 1, self.result_dtype))]
        elif r.combine in ("any", "all"):
            self.clause = "|" if r.combine == "any" else "&"
            self.states = [_State("int", "0" if r.combine == "any" else "1")]
        elif r.combine in ("max", "min"):
            self.clause = r.combine
            if self.source.is_floating_point:
                infinity = "-INFINITY" if r.combine == "max" else "INFINITY"
                self.states = [_State("int64_t" if self.float_key else "int32_t", f"tl_order{self.float_key}({infinity})")]
            else:
                self.states = [_State("int64_t", "INT64_MIN" if r.combine == "max" else "INT64_MAX")]
        elif self.packed:
            self.clause = "max"
            self.states = [_State("int64_t", "INT64_MIN")]
        else:
            self.clause = None
            self.states = [_State("int64_t", "INT64_MIN"), _State("int64_t", "INT64_MAX")]

    @property
    def is_float_sum(self) -> bool:
        return self.combine == "sum" and self.result_dtype.is_floating_point

    def take(self, state: list[str], x: str, position: str, fresh: str) -> list[str]:
        """Statements that add the value `x` (at row-major `position`) to the state."""
        v = state[0]
        if self.combine in ("sum", "prod"):
            return [f"{v} {self.clause}= {x};"]
        if self.combine in ("any", "all"):
            return [f"{v} {self.clause}= ({x} != 0);"]
        low = "min" if self.combine in ("min", "argmin") else "max"
        key = f"tl_{low}_key{self.float_key}({x})" if self.source.is_floating_point else f"{x}"
        if not self.arg:
            kind = self.states[0].kind
            sign = "<" if low == "min" else ">"
            return [f"const {kind} {fresh} = {key};", f"{v} = {fresh} {sign} {v} ? {fresh} : {v};"]
        key = f"~({key})" if low == "min" else key
        if self.packed:
            return [
                f"const int64_t {fresh} = (int64_t)((uint64_t)(int64_t)({key}) << 32) | (uint32_t)~(uint32_t)({position});",
                f"{v} = {fresh} > {v} ? {fresh} : {v};",
            ]
        return [
            f"const int64_t {fresh} = {key};",
            f"if ({fresh} > {v} || {state[1]} == INT64_MAX) {{ {v} = {fresh}; {state[1]} = {position}; }}",
        ]

    def join(self, state: list[str], other: list[str]) -> str:
        """A statement that merges the state of another part, which comes later in the order of positions or anywhere."""
        v, w = state[0], other[0]
        if self.clause in ("+", "*", "|", "&"):
            return f"{v} {self.clause}= {w};"
        if self.clause is not None:
            return f"{v} = {w} {'<' if self.clause == 'min' else '>'} {v} ? {w} : {v};"
        return f"if ({w} > {v} || ({w} == {v} && {other[1]} < {state[1]})) {{ {v} = {w}; {state[1]} = {other[1]}; }}"

    def result(self, state: list[str]) -> str:
        """The value of the reduction."""
        if self.arg:
            return f"(int64_t)(uint32_t)~(uint32_t){state[0]}" if self.packed else state[1]
        if self.combine in ("max", "min") and self.source.is_floating_point:
            return f"tl_unorder{self.float_key}({state[0]})"
        return state[0]


# -------------------------------------------------------------------------------------------------------------------- loops


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which loops a kernel gets. `lane` is the vectorized grid axis (None: a reduce axis is), `split` the axis given to threads."""

    outer: tuple[Axis, ...]
    lane: Axis | None
    split: tuple[Axis, ...]  # one axis, none, or those of which one is chosen when the kernel runs
    together: bool  # the reduce axes are shared out, and partial results combined
    across: Axis | None = None  # the last outer axis, which a load walks element by element: both loops go in tiles
    grains: Mapping[Axis, int] = field(default_factory=dict)  # neighbours along an axis that one thread has to run

    @property
    def width(self) -> int:
        """How many columns are accumulated at once."""
        return LANES if self.lane is None else min(LANES, -(-self.lane.extent // 16) * 16)


def _unit_strides(phases: Iterable[Phase], axis: Axis) -> int:
    """How many loads and stores (which count twice) of the innermost loops walk memory element by element along the axis."""
    found = 0
    for p in phases:
        axes = frozenset(p.reduce)
        nest = p.reduce or p.reductions
        written = [s for s in p.stores if not nest or _in_nest(s, axes)]
        roots = [_as_reduction(r).value for r in p.reductions] + [s.value for s in written]
        found += sum(i.coefficient(axis) == 1 for i in [*strides(roots), *(s.index for s in written for _ in range(2))])
    return found


def _plan(kernel: Kernel, any_size: bool = False, forced: bool | None = None) -> _Plan:
    grid = kernel.grid
    adds = [s for p in kernel.phases for s in p.stores if s.mode == "add"]
    grains = {a: grain for a in grid if (grain := math.lcm(*(_grain(s.index, a) for s in adds)))}
    free = list(grains)
    nests = [p for p in kernel.phases if p.reductions or p.reduce]
    lane: Axis | None = max(reversed(grid), key=lambda a: (_unit_strides(nests or kernel.phases, a), a == grid[-1])) if grid else None
    if nests and lane is not None:
        inner = [p.reduce[-1] for p in nests if p.reduce]
        rows = max((_unit_strides(nests, a) for a in inner), default=0)
        if rows >= _unit_strides(nests, lane) and inner:
            lane = None
    outer = tuple(a for a in grid if a is not lane)
    across = None
    least, far = (2, 2) if any_size else (2 * TILE, 16)
    if not nests and lane is not None and lane.extent >= least:
        loads = list(strides(kernel.roots()))
        across = next(
            (a for a in outer if a.extent >= least and any(i.coefficient(a) == 1 and abs(i.coefficient(lane)) >= far for i in loads)),
            None,
        )
        outer = (*(a for a in outer if a is not across), *(a for a in outer if a is across))

    def ways(a: Axis) -> int:
        return a.extent // (16 if a is lane else grains.get(a, 1))

    # the axis with the best parallelism; the outermost one that is good enough keeps each thread's memory together
    shared = next((a for a in grid if a in free and ways(a) >= 64), None) or max(free, key=ways, default=None)
    reduce_work = max((math.prod(a.extent for a in p.reduce) for p in nests), default=0)
    blocks = math.prod(a.extent for a in outer) * (-(-lane.extent // LANES) if lane else 1)
    few = (shared is None or ways(shared) < 8) and (any_size or reduce_work >= 1024) and blocks <= 64
    few = few and (any_size or kernel.points * reduce_work >= 8192)
    together = bool(nests) and not adds and (few if forced is None else forced)
    split = tuple(free) if any_size else () if shared is None else (shared,)
    return _Plan(outer, lane, () if together else split, together, across, grains)


def _grain(index: Index, axis: Axis) -> int:
    """So many neighbours along the axis, counted from 0, may meet at a position; others do not, whatever the other axes are. 0: any may.
    """
    if separates(index, axis):
        return 1
    for term, c in index.terms:
        if isinstance(term, FloorDiv) and term.index == of(axis):  # the number of a part of the rows; the rest is a place in it
            rest = (index - Index(((term, c),))).bounds()
            return term.divisor if rest is not None and rest[1] - rest[0] < c else 0
    return 0


class _Loops:
    """Prints a kernel without matrix products."""

    def __init__(self, kernel: Kernel, shared: bool = False, together: bool | None = None):
        self.kernel, self.shared = kernel, shared
        self.plan = _plan(kernel, shared, together)
        self.c = Scopes(kernel, shared)
        self.ranges: dict[Axis, tuple[str, str]] = {}  # what this thread has of the axes that are split
        self.kept: dict[Expr, str] = {}
        self.statics: list[str] = []

    def function(self) -> list[str]:
        """The lines of the C function."""
        c, plan = self.c, self.plan
        c.open(f"void {self.kernel.name}(char *const *restrict b, const int64_t *restrict s, int tid, int nth)")
        c.line("(void)b, (void)s, (void)nth;")
        c.declare_arguments()
        if plan.split:
            self._split(plan.split)
        elif not plan.together:
            c.line("if (tid) return;")
        self._keep_values()
        jam = self._jam()
        if plan.together:
            c.line("int flip = 0;")
            if self.shared:
                self._alone_if_small()
        for a in plan.outer:
            if a is plan.across:
                self._tiles(a)
            elif a is not jam:
                self._grid_loop(a)
        blocked = plan.lane is not None and any(p.reductions or p.reduce for p in self.kernel.phases)
        if blocked:
            low, high = self._range(plan.lane)
            c.open(f"for (int64_t jb = {low}; jb < {high}; jb += {self._width})")
            c.line(f"const int64_t je = TL_MIN(jb + {self._width}, {high});")
        for phase in self._phases():
            if jam is None:
                self._phase(phase)
            else:
                self._jammed(phase, jam)
        c.close_to(1)
        return [*self.statics, *c.scopes[0].lines]

    def _phases(self) -> list[Phase]:
        """The phases, neighbours without a nest of their own merged."""
        out: list[Phase] = []
        for p in self.kernel.phases:
            if out and not (out[-1].reduce or out[-1].reductions or p.reduce or p.reductions):
                out[-1] = Phase((), (), out[-1].stores + p.stores)
            else:
                out.append(p)
        return out

    def _jam(self) -> Axis | None:
        """The grid axis whose rows go JAM at once: the innermost one, where sums along memory share what they read; None elsewhere."""
        plan, phases = self.plan, self._phases()
        if plan.lane is not None or plan.together or not plan.outer or len(phases) != 1 or not phases[0].reduce or self.kept:
            return None
        (phase,), axis = phases, plan.outer[-1]
        reductions = [_as_reduction(r) for r in phase.reductions]
        roots = [r.value for r in reductions]
        loads = [e for e in walk_all(roots) if e.op == "load"]
        fits = (
            all(r.combine == "sum" for r in reductions)
            and len(loads) <= JAM
            and not any(_in_nest(s, frozenset(phase.reduce)) for s in phase.stores)
            and may_vectorize(roots, [], phase.reduce[-1])
            and any(depends_on(e, frozenset((axis,))) for e in loads)
            and any(not depends_on(e, frozenset((axis,))) and depends_on(e, frozenset((phase.reduce[-1],))) for e in loads)
        )
        return axis if fits else None

    def _jammed(self, phase: Phase, axis: Axis) -> None:
        """The nest for JAM rows, the last ones over again where there are fewer; then the stores of each."""
        c = self.c
        low, high = self._range(axis)
        rows = [Axis(f"{axis.name}{q}", axis.extent) for q in range(JAM)]
        c.open(f"for (int64_t ib = {low}; ib < {high}; ib += {JAM})", axes=rows)
        reductions: list[Reduction] = []
        for q, a in enumerate(rows):
            c.axis[a] = c.fresh(identifier(a.name))
            c.line(f"const int64_t {c.axis[a]} = {f'TL_MIN(ib + {q}, {high} - 1)' if q else 'ib'};")
            one = replace(phase, reductions=tuple(_as_reduction(r) for r in phase.reductions), stores=())
            one = substitute_axes(replace(self.kernel, grid=(), phases=(one,)), {axis: a}).phases[0]
            reductions += [replace(r, name=f"{r.name}_{q}") for r in one.reductions if isinstance(r, Reduction)]
        self._nest(Phase(phase.reduce, tuple(reductions)), [])
        every = []
        for r in phase.reductions:
            every.append(c.fresh(f"every_{identifier(r.name)}"))
            c.line(f"const {c_expr.VALUE[r.dtype]} {every[-1]}[] = {{{', '.join(c.values[f'{r.name}_{q}'][0] for q in range(JAM))}}};")
        c.count([s.value for s in phase.stores] + [t for s in phase.stores for t in index_exprs(s.index)])
        c.loop(axis, "ib", f"TL_MIN(ib + {JAM}, {high})")
        for r, name in zip(phase.reductions, every, strict=True):
            c.values[r.name] = (f"{name}[{c.axis[axis]} - ib]", len(c.scopes) - 1)
        c.stores(phase.stores)

    def _split(self, axes: tuple[Axis, ...]) -> None:
        """Give each thread its part of one axis: the first of at least 64 parts, else the one with most."""
        c = self.c

        def grain(a: Axis) -> int:
            return 16 if a is self.plan.lane else self.plan.grains.get(a, 1)

        if len(axes) == 1:
            self.ranges = {axes[0]: ("lo", "hi")}
            c.line(f"TL_SHARE(lo, hi, {axes[0].extent}, {grain(axes[0])});")
            return
        ways = [f"{a.extent}" if grain(a) == 1 else f"{a.extent} / {grain(a)}" for a in axes]
        c.line(f"const int64_t ways[] = {{{', '.join(ways)}}};")
        c.line(f"const int chosen = tl_choose_axis(ways, {len(axes)});")
        self.ranges = {}
        for i, a in enumerate(axes):
            low, high = self.ranges[a] = c.fresh("lo0"), c.fresh("hi0")
            c.line(f"TL_SHARE_IF(chosen == {i}, {low}, {high}, {a.extent}, {grain(a)});")

    def _alone_if_small(self) -> None:
        """One thread runs what is too little to be shared out, where that depends on the size."""
        each = [f"(int64_t){' * '.join(str(a.extent) for a in p.reduce)}" for p in self.kernel.phases if p.reduce] or ["1"]
        self.c.line(f"const int64_t every = {' + '.join(each)};")
        self.c.line(f"if (every < 1024 || every * {self.kernel.points} < 8192) {{ if (tid) return; nth = 1; }}")

    def _range(self, axis: Axis | None) -> tuple[str, str]:
        assert axis is not None
        return self.ranges.get(axis) or ("0", str(axis.extent))

    @property
    def _width(self) -> str:
        """How many columns are accumulated at once; where the text serves many sizes, by a formula."""
        return f"TL_WIDTH({self.plan.lane.extent}, {LANES})" if self.shared and self.plan.lane is not None else str(self.plan.width)

    def _columns(self, least: int = 0) -> str:
        """The length of an array over the columns of a block; where the text serves many sizes, it says how long the array may get."""
        lane = self.plan.lane
        if self.shared and lane is not None:
            return f"TL_ROOM({max(lane.extent, least)}, {LANES})"
        return str(max(self.plan.width if lane is not None else 1, least))

    def _grid_loop(self, axis: Axis, simd: str | None = None) -> None:
        low, high = self._range(axis)
        self.c.loop(axis, low, high, simd)

    def _tiles(self, axis: Axis) -> None:
        """The loop over an axis that a load walks element by element while the stores walk the lane: in squares, to read each line once."""
        for a, block in ((axis, "ib"), (self.plan.lane, "jb")):
            low, high = self._range(a)
            self.c.open(f"for (int64_t {block} = {low}; {block} < {high}; {block} += {TILE})")
        self.c.line(f"const int64_t je = TL_MIN(jb + {TILE}, {self._range(self.plan.lane)[1]});")
        self.c.loop(axis, "ib", f"TL_MIN(ib + {TILE}, {self._range(axis)[1]})")

    def _lane_loop(self, simd: bool, blocked: bool) -> None:
        lane = self.plan.lane
        assert lane is not None
        if blocked or self.plan.across is not None:
            self.c.loop(lane, "jb", "je", "" if simd else None)
        else:
            self._grid_loop(lane, "" if simd else None)

    def _phase(self, phase: Phase) -> None:
        axes = frozenset(phase.reduce)
        inside = [s for s in phase.stores if _in_nest(s, axes)]
        after = [s for s in phase.stores if not _in_nest(s, axes)]
        blocked = any(p.reductions or p.reduce for p in self.kernel.phases)
        if phase.reductions or phase.reduce:
            self._nest(phase, inside)
        if not after:
            return
        c = self.c
        roots = [s.value for s in after] + [t for s in after for t in index_exprs(s.index)]
        c.count(roots)
        alone = self.plan.together
        if alone:
            c.open("if (tid == 0)")
        if self.plan.lane is not None:
            self._lane_loop(may_vectorize(roots, after, self.plan.lane), blocked)
        c.stores(after)
        for _ in range((self.plan.lane is not None) + alone):
            c.close()

    # -------------------------------------------------------------------------------------------------- reductions

    def _nest(self, phase: Phase, inside: list[Store]) -> None:
        c, plan = self.c, self.plan
        reductions = [_as_reduction(r) for r in phase.reductions]
        accumulators = [_Accumulator(r) for r in reductions]
        states = [[c.fresh(identifier(r.name)) for _ in a.states] for r, a in zip(reductions, accumulators, strict=True)]
        roots = [r.value for r in reductions] + [s.value for s in inside] + [t for s in inside for t in index_exprs(s.index)]
        c.count(roots)
        for e in self.kept:
            c.uses[e] += 1
        lane = plan.lane
        suffix = f"[{c.axis[lane]} - jb]" if lane is not None else ""
        self._declare(accumulators, states)
        depth = len(c.scopes)
        if plan.together:
            c.open("")  # lo and hi of this phase
            if phase.reduce:
                self._split(self._split_reduce_axes(phase))
            else:
                c.line("const int64_t lo = tid, hi = 1;")
        last = phase.reduce[-1] if phase.reduce else None
        vector = last if lane is None else lane
        simd = vector is not None and may_vectorize(roots, inside, vector) and all(a.clause is not None for a in accumulators)
        for a in phase.reduce[:-1]:
            c.loop(a, *self._range(a))
        low, high = self._range(last) if last else ("0", "1")
        fetched = self._fetched(phase)
        size = FETCH if fetched else CHUNK if lane is None else COLUMN_CHUNK
        long = last is not None and (self.shared or last.extent > 2 * size) and any(a.is_float_sum for a in accumulators)
        chunked = last is not None and (long or bool(fetched))
        inner = states
        if chunked:
            c.open(f"for (int64_t chunk = {low}; chunk < {high}; chunk += {size})")
            inner = [[c.fresh(v + "_part") for v in state] for state in states]
            self._declare(accumulators, inner)
            low, high = "chunk", f"TL_MIN(chunk + {size}, {high})"
            if fetched:
                c.open(f"for (int64_t {c.axis[last]} = chunk; {c.axis[last]} < {high}; {c.axis[last]} += 16)")  # a line of float32
                for name, index, written in fetched:
                    c.line(f"__builtin_prefetch(&{c.pointer[name]}[{c.position(index, top=True)}]{', 1' if written else ''});")
                c.close()
        chunk_depth = len(c.scopes)
        if last is not None:
            clauses = "".join(f" reduction({a.clause}:{v[0]})" for a, v in zip(accumulators, inner, strict=True))
            c.loop(last, low, high, clauses if simd and lane is None else None)
        elif plan.together:
            c.open("for (int64_t once = lo; once < hi; once++)")
        if lane is not None:
            self._lane_loop(simd, blocked=True)
        self._bring_kept(phase)
        for r, acc, state in zip(reductions, accumulators, inner, strict=True):
            x = c_expr.convert(c.ref(r.value), r.value.dtype, r.dtype if acc.combine in ("sum", "prod") else r.value.dtype)
            position = _row_major(c, phase.reduce) if acc.arg else ""
            for text in acc.take([v + suffix for v in state], x, position, c.fresh("k0")):
                c.line(text)
        c.stores(inside)
        self._put_kept(phase)
        c.close_to(chunk_depth)
        if chunked:
            at = "" if lane is None else "[q]"
            each = "" if lane is None else f"for (int q = 0; q < {self._width}; q++) "
            for acc, state, part in zip(accumulators, states, inner, strict=True):
                c.line(each + acc.join([v + at for v in state], [v + at for v in part]))
        c.close_to(depth)
        if plan.together:
            self._combine_threads(accumulators, states)
        for r, acc, state in zip(reductions, accumulators, states, strict=True):
            text = acc.result([v + suffix for v in state])
            if lane is None:
                name = c.fresh(identifier(r.name))
                c.line(f"const {c_expr.VALUE[r.dtype]} {name} = {text};")
                c.values[r.name] = (name, len(c.scopes) - 1)
            else:
                c.values[r.name] = (text, lane)

    def _fetched(self, phase: Phase) -> list[tuple[str, Index, bool]]:
        """What to ask of memory in the first costly loop over a row, which itself reads a row that is in the cache: what the loops after it
        will be the first to touch, and what the first loop over the next row will read. (Buffer, position, whether it is written)."""
        plan, nests = self.plan, [p for p in self.kernel.phases if p.reduce]
        if self.shared or plan.lane is not None or plan.together or not plan.outer or any(p.reduce != phase.reduce for p in nests):
            return []
        costly = [any(_WEIGHTS.get(e.op, 1) >= 8 for e in walk(*_nest_roots(p))) for p in nests]
        row, number = plan.outer[-1], next((i for i, p in enumerate(nests) if p is phase), 0)
        if number == 0 or not costly[number] or any(costly[:number]) or len(phase.reduce) > 1 or phase.reduce[0].extent < 2 * FETCH:
            return []

        def streams(nest: Phase) -> dict[tuple[str, Index], bool]:
            loads = {e.attr: False for e in walk_all(_nest_roots(nest)) if e.op == "load"}
            stores = {(s.buffer, s.index): True for s in nest.stores if _in_nest(s, frozenset(nest.reduce))}
            return {
                (name, i): written
                for (name, i), written in {**loads, **stores}.items()  # type: ignore[misc]
                if i.coefficient(nest.reduce[0]) == 1 and i.coefficient(row) and next(data_terms(i), None) is None
            }

        known = {key for p in nests[: number + 1] for key in streams(p)}
        ahead = {(name, i + i.coefficient(row)): False for name, i in streams(nests[0])}  # past the end it asks for nothing
        ahead |= {key: written for p in nests[number + 1 :] for key, written in streams(p).items() if key not in known}
        nbytes = sum(self.c.buffers[name].size * self.c.buffers[name].dtype.itemsize for name in {name for name, _ in ahead})
        return [(name, i, written) for (name, i), written in ahead.items()] if nbytes >= FETCH_BYTES else []

    def _declare(self, accumulators: list[_Accumulator], states: list[list[str]]) -> None:
        """Accumulators with their starting values: scalars, or arrays over the columns of a block."""
        for a, names in zip(accumulators, states, strict=True):
            for state, name in zip(a.states, names, strict=True):
                if self.plan.lane is None:
                    self.c.line(f"{state.kind} {name} = {state.start};")
                else:
                    self.c.line(f"{state.kind} {name}[{self._columns()}] __attribute__((aligned(64)));")
                    self.c.line(f"for (int q = 0; q < {self._width}; q++) {name}[q] = {state.start};")

    def _split_reduce_axes(self, phase: Phase) -> tuple[Axis, ...]:
        if self.shared:
            return phase.reduce
        return (next((a for a in phase.reduce if a.extent >= 64), None) or max(phase.reduce, key=lambda a: a.extent),)

    def _combine_threads(self, accumulators: list[_Accumulator], states: list[list[str]]) -> None:
        """Every thread reads every thread's part in the same order, so all have the same result and runs repeat exactly."""
        c = self.c
        if not accumulators:
            return
        many = self.plan.lane is not None and (self.shared or self.plan.width > 1)
        lanes = self._width if self.plan.lane is not None else "1"
        c.open("if (nth > 1)")
        pairs = [(a, n) for a, names in zip(accumulators, states, strict=True) for n in names]
        kinds = [state.kind for a in accumulators for state in a.states]
        store: dict[str, str] = {}
        for (_, name), kind in zip(pairs, kinds, strict=True):
            store[name] = c.fresh(f"all_{name}")
            # two sets in turn: a thread may be one reduction ahead of the slowest reader
            self.statics.append(f"static {kind} {self.kernel.name}_{store[name]}[2][TL_MAX_THREADS][{self._columns(64 // 4)}];")
        full = {name: f"{self.kernel.name}_{store[name]}" for name in store}
        q = "q"
        for name in store:
            c.line(f"for (int q = 0; q < {lanes}; q++) {full[name]}[flip][tid][q] = {name}{'[q]' if many else ''};")
        c.line("tl_barrier(nth);")
        c.open(f"for (int q = 0; q < {lanes}; q++)")
        at = f"[{q}]" if many else ""
        for a, names in zip(accumulators, states, strict=True):
            for name, state in zip(names, a.states, strict=True):
                c.line(f"{name}{at} = {state.start};")
            c.open("for (int thread = 0; thread < nth; thread++)")
            c.line(a.join([n + at for n in names], [f"{full[n]}[flip][thread][q]" for n in names]))
            c.close()
        c.close()
        c.line("flip ^= 1;")
        c.close()

    # ------------------------------------------------------------------------------------------------ kept values

    def _keep_values(self) -> None:
        """Choose the costly values that one phase computes and a later one over the same axes needs again: they wait in a row buffer."""
        if self.plan.lane is not None:
            return
        left = KEPT_BYTES
        phases = [p for p in self.kernel.phases if p.reduce]
        self.home: dict[Expr, Phase] = {}
        for number, later in enumerate(phases):
            inside = list(_nest_roots(later))
            for earlier in phases[:number]:
                if earlier.reduce != later.reduce:
                    continue
                known = set(walk_all(_nest_roots(earlier)))
                for e in _outermost(inside, known):
                    size = math.prod(a.extent for a in later.reduce) * 8
                    if self.shared:  # each has room for the largest size
                        left = KEPT_BYTES if len(self.kept) < KEPT_VALUES else 0
                    costly = any(_WEIGHTS.get(x.op, 1) >= 8 for x in walk(e))
                    if e not in self.kept and costly and depends_on(e, frozenset(later.reduce)) and size <= left:
                        left -= size
                        self.kept[e] = self.c.fresh("kept")
                        self.home[e] = earlier
                        extent = math.prod(a.extent for a in later.reduce)
                        room = f"TL_ROOM({extent}, {KEPT_BYTES // 8})" if self.shared else str(extent)
                        self.c.line(f"{c_expr.VALUE[e.dtype]} {self.kept[e]}[{room}] __attribute__((aligned(64)));")

    def _bring_kept(self, phase: Phase) -> None:
        """In a later phase a kept value is a load from its row buffer."""
        for e, name in self.kept.items():
            if self.home[e] is not phase and phase.reduce == self.home[e].reduce:
                self.c.scopes[-1].names[e] = f"{name}[{_row_major(self.c, phase.reduce)}]"

    def _put_kept(self, phase: Phase) -> None:
        for e, name in self.kept.items():
            if self.home[e] is phase:
                self.c.line(f"{name}[{_row_major(self.c, phase.reduce)}] = {self.c.ref(e)};")


def _as_reduction(r: Reduction | Dot) -> Reduction:
    """A product as a plain sum, for the shapes that the packed product does not take."""
    if isinstance(r, Reduction):
        return r
    wide = r.dtype
    a, b = (x if x.dtype is wide else expr("cast", (x,), wide) for x in (r.a, r.b))
    return Reduction(r.name, "sum", expr("mul", (a, b), wide))


def _nest_roots(phase: Phase) -> Iterator[Expr]:
    axes = frozenset(phase.reduce)
    for r in phase.reductions:
        yield _as_reduction(r).value
    for s in phase.stores:
        if _in_nest(s, axes):
            yield s.value


def _outermost(roots: Iterable[Expr], known: set[Expr]) -> list[Expr]:
    """The largest expressions below the roots that are in `known`."""
    out: dict[Expr, None] = {}
    todo, seen = list(roots), set()
    while todo:
        e = todo.pop()
        if e in seen:
            continue
        seen.add(e)
        if e in known:
            out.setdefault(e)
        else:
            todo.extend(e.args)
    return list(out)


def _row_major(c: Scopes, axes: tuple[Axis, ...]) -> str:
    text = ""
    for a in axes:
        text = f"({text}) * {a.extent} + {c.axis[a]}" if text else c.axis[a]
    return text or "0"
