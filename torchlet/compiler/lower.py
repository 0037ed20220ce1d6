"""Writes a group of graph nodes as one kernel of the loop IR: index maps are inlined, members meet at the same point of the nest."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torchlet import dtypes
from torchlet import index as ix
from torchlet.compiler.claim import kernel_of
from torchlet.compiler.graph import Names, Node
from torchlet.compiler.interpret import buffer_of, compute_dtype, index_of, register
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, ScalarArg, Store, depends_on
from torchlet.compiler.simplify_loops import map_kernel
from torchlet.compiler.tile import power_of_two
from torchlet.errors import CompileError
from torchlet.expr import Expr, call, cast, const, expr, walk, where
from torchlet.index import Axis, FloorDiv, Index, Mod, of
from torchlet.op import OPS, Composite, Contract, Generate, Pointwise, Reduce, ScatterAdd, Select, View, Written, as_spec
from torchlet.spec import Spec, contiguous_strides

__all__ = ["Group", "Home", "Refused", "build_kernels", "group_of"]

Coords = tuple[Index, ...]

# Parts of the rows that have column sums of their own: how many at most, and how many rows each has at least. Enough for many threads,
# or to keep a GPU's processors busy; few and long enough that making and adding up the parts costs little beside the rows.
PARTS, GPU_PARTS = (64, 32), (512, 8)


class Refused(Exception):
    """Nodes that cannot share a kernel; the text says why."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a node's elements lie: a buffer and strides in elements."""

    buffer: str
    strides: tuple[int, ...]
    size: int

    @staticmethod
    def dense(buffer: str, shape: tuple[int, ...]) -> Home:
        """Row-major memory."""
        n = 1
        for extent in shape:
            n *= extent
        return Home(buffer, contiguous_strides(shape), n)

    @staticmethod
    def strided(buffer: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Home:
        """Memory with strides, none of them negative."""
        return Home(buffer, strides, 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)))

    def position(self, at: Coords) -> Index:
        """The element's place in the buffer."""
        out = ix.ZERO
        for i, stride in zip(at, self.strides, strict=True):
            out = out + i * stride
        return out


# ------------------------------------------------------------------------------------------------ groups

_NUMBER = itertools.count()


def _axes(shape: Sequence[int], letter: str) -> tuple[Axis, ...]:
    return tuple([Axis(f"{letter}{next(_NUMBER)}", n) for n in shape])


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that one kernel computes.

    `coords[n]` is the element of `n` that a point of the nest holds; its axes that are not of the grid (`inner[n]`) are loops
    inside the grid point. For a reduction `coords` are those of the result, and `inner` the axes it runs over. A column sum runs
    over the grid of a kernel of rows: its axes are in `columns`, and `inner` are the loops over its results.
    """

    nodes: tuple[Node, ...]
    grid: tuple[Axis, ...]
    coords: Mapping[Node, Coords]
    inner: Mapping[Node, tuple[Axis, ...]]
    fixed: bool  # the grid is the rows of a reduction or the tiles of a product, so no axis of it can become a loop
    product: bool = False
    alone: bool = False
    reads: Mapping[Node, tuple[Coords, ...]] = field(default_factory=dict)  # elements of other nodes, where that was noted
    columns: Mapping[Node, tuple[Axis, ...]] = field(default_factory=dict)
    parts: tuple[int, int] = PARTS  # of column sums

    def substitute(self, new: Mapping[Axis, Index]) -> Group:
        """The same group with axes replaced by indices of others."""
        if not new:
            return self

        def change(i: Index) -> Index:
            return i.substitute(lambda t: new.get(t) if isinstance(t, Axis) else None)

        def listed(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
            return tuple(dict.fromkeys(x for a in axes for x in (sorted_axes(new[a]) if a in new else (a,))))

        return replace(
            self, grid=listed(self.grid), coords={n: tuple(change(i) for i in c) for n, c in self.coords.items()},
            inner={n: listed(a) for n, a in self.inner.items()},
            reads={n: tuple(tuple(change(i) for i in c) for c in at) for n, at in self.reads.items()},
            columns={n: listed(a) for n, a in self.columns.items()},
        )


def sorted_axes(index: Index) -> tuple[Axis, ...]:
    """The axes of an affine index, the slowest first."""
    return tuple(t for t, _ in sorted(((t, c) for t, c in index.terms if isinstance(t, Axis)), key=lambda e: -e[1]))


def group_of(node: Node) -> Group:
    """The kernel of one node alone."""
    assert node.op is not None
    lower, shape = node.op.lower, node.spec.shape
    if isinstance(lower, Reduce):
        x = node.inputs[0]
        assert isinstance(x, Node)
        dims, keepdim = node.attrs
        axes = _axes(x.spec.shape, "i")
        kept = tuple(a for d, a in enumerate(axes) if d not in dims)
        coords = tuple(ix.ZERO if d in dims else of(a) for d, a in enumerate(axes) if keepdim or d not in dims)
        return Group((node,), kept, {node: coords}, {node: tuple(axes[d] for d in dims)}, fixed=True)
    if isinstance(lower, Contract):
        axes = _axes(shape, "i")
        k = _axes((node.args()[0].spec.shape[-1],), "k")
        return Group((node,), axes, {node: tuple(of(a) for a in axes)}, {node: k}, fixed=True, product=True)
    if isinstance(lower, View):  # walk it as its source lies, so that it can be written where the source is made
        base, forward = _source_of_views(node)
        axes = _axes(base.spec.shape, "i")
        return Group((node,), axes, {node: forward(tuple(of(a) for a in axes))}, {node: ()}, fixed=False)
    alone = lower is None or isinstance(lower, ScatterAdd | Composite | Written)
    axes = _axes(node.args()[0].spec.shape if isinstance(lower, ScatterAdd) else shape, "i")
    return Group((node,), axes, {node: tuple(of(a) for a in axes)}, {node: ()}, fixed=False, alone=alone)


def _source_of_views(node: Node) -> tuple[Node, Callable[[Coords], Coords]]:
    """The node under the permutes and reshapes from `node` down, and where its elements are in `node`."""
    if node.op is OPS["permute"]:
        base, below = _source_of_views(node.args()[0])
        return base, lambda at: tuple([below(at)[d] for d in node.attrs[0]])
    if node.op is OPS["view"] and 0 not in node.spec.shape:
        x = node.args()[0]
        base, below = _source_of_views(x)
        return base, lambda at: ix.unflatten(ix.flatten(below(at), x.spec.shape), node.spec.shape)
    return node, lambda at: at


# ------------------------------------------------------------------------------------------------ expressions of nodes


def _index_expr(i: Index) -> Expr:
    return const(i.const, dtypes.int64) if not i.terms else expr("index", (), dtypes.int64, i)


def _condition(how: str, i: Index, n: int) -> bool | Expr:
    """Whether a position is inside, if that is known before it runs; else the test."""
    if how == "every":
        i, how, n = ix.mod(i, n), "eq", 0
    bounds = i.bounds()
    if bounds is not None:
        low, high = bounds
        if (how == "ge" and low >= n) or (how == "lt" and high < n) or (how == "eq" and low == high == n):
            return True
        if (how == "ge" and high < n) or (how == "lt" and low >= n) or (how == "eq" and not low <= n <= high):
            return False
    return call(how, _index_expr(i), n)


def rounded(e: Expr, d: dtypes.dtype) -> Expr:
    """The expression in dtype `d` itself, as memory and matrix units hold it, without converting there and back."""
    if e.op == "cast" and e.args[0].dtype is d and register(d) is e.dtype:
        return e.args[0]
    return cast(e, d)


class Emitter:
    """Expressions for elements of nodes. What is computed elsewhere is loaded, what the kernel has is used, the rest is inlined."""

    def __init__(self, homes: Mapping[Node, Home], names: Names, members: Iterable[Node]):
        self.homes, self.names, self.members = homes, names, frozenset(members)
        self.known: dict[Node, tuple[Coords, Expr]] = {}
        self.memo: dict[tuple[Node, Coords, Expr | None], Expr] = {}
        self.reads: dict[Node, list[Coords]] = {}
        self.seen: dict[Node, None] = {}
        self.scalars: dict[str, ScalarArg] = {}

    def value(self, x: Any, at: Coords, mask: Expr | None = None) -> Expr:
        """The element of node `x` at the coordinates, in its register dtype; a number as a constant of its own dtype."""
        if not isinstance(x, Node):
            d = as_spec(x).dtype
            return const(x, d)
        key = (x, at, mask)
        found = self.memo.get(key)
        if found is None:
            found = self.memo[key] = self._value(x, at, mask)
        return found

    def _value(self, x: Node, at: Coords, mask: Expr | None) -> Expr:
        if x in self.members:
            if x not in self.known:
                raise Refused(f"{self.names.of(x)} is known after the last row only")
            here, e = self.known[x]
            if here != at:
                raise Refused(f"{self.names.of(x)} is needed at another position than the one the kernel is at")
            return e
        if x.kind == "scalar":
            name = self.names.of(x)
            self.scalars[name] = ScalarArg(name, x.spec.dtype)
            return expr("scalar", (), x.spec.dtype, name)
        if 0 in x.spec.shape:
            return const(0, register(x.spec.dtype))
        if x in self.homes:
            return self.load(x, at, mask)
        return self.compute(x, at, mask)

    def load(self, x: Node, at: Coords, mask: Expr | None, other: Expr | None = None) -> Expr:
        """A read of memory."""
        reads = self.reads.setdefault(x, [])
        if at not in reads:
            reads.append(at)
        home = self.homes[x]
        args = () if mask is None else (mask,) if other is None else (mask, rounded(other, x.spec.dtype))
        return cast(expr("load", args, x.spec.dtype, (home.buffer, home.position(at))), register(x.spec.dtype))

    def compute(self, x: Node, at: Coords, mask: Expr | None) -> Expr:
        """The expression of an operator without loops at one element."""
        assert x.op is not None
        self.seen.setdefault(x)
        lower, attrs = x.op.lower, dict(zip(x.op.attrs, x.attrs, strict=True))
        if isinstance(lower, View):
            source = x.args()[0]
            return self.value(source, lower.index(at, source.spec.shape, **attrs), mask)
        if isinstance(lower, Pointwise):
            return self._pointwise(x, lower, at, mask)
        if isinstance(lower, Generate):
            inputs = [self.value(i, (), mask) for i in x.inputs]
            e = lower.function(_index_expr(ix.flatten(at, x.spec.shape)), x.spec, *inputs, **attrs)
            return cast(e, register(x.spec.dtype))
        if isinstance(lower, Select):
            return cast(lower.function(at, self.loader(x, mask), _specs(x), **attrs), register(x.spec.dtype))
        raise CompileError(f"{x.op.name} has no expression ({x.source})")

    def _pointwise(self, x: Node, lower: Pointwise, at: Coords, mask: Expr | None) -> Expr:
        assert x.op is not None
        specs = _specs(x)
        inputs = [self.value(i, _broadcast(at, s.shape), mask) for i, s in zip(x.inputs, specs, strict=True)]
        if lower.result != "cast":
            # Inside a kernel 16-bit floats stay float32 between operators; only an explicit cast rounds, as in PyTorch's compiled code.
            d = register(compute_dtype(specs, x.spec, lower))
            keep = 1 if x.op.inputs[0] == "condition" else 0
            inputs = [i if k < keep else cast(i, d) for k, i in enumerate(inputs)]
        return cast(lower.function(*inputs, *x.attrs), register(x.spec.dtype))

    def loader(self, x: Node, outer: Expr | None) -> Callable[..., Expr]:
        """The `load` that a Select or ScatterAdd function gets."""

        def load(i: int, indices: Sequence[Index], mask: Iterable[tuple[str, Index, int]] = (), other: Any = 0) -> Expr:
            source, spec = x.inputs[i], _specs(x)[i]
            d = register(spec.dtype)
            fallback = cast(other, d) if isinstance(other, Expr) else const(other, d)
            inside: Expr | None = None
            for how, index, n in mask:
                test = _condition(how, index, n)
                if test is False:
                    return fallback
                if isinstance(test, Expr):
                    inside = _both(inside, test)
            both = _both(outer, inside)
            at = _broadcast(tuple(indices), spec.shape)
            in_memory = isinstance(source, Node) and source in self.homes and source not in self.members
            if in_memory and inside is not None and 0 not in spec.shape:
                return self.load(source, at, both, fallback)  # type: ignore[arg-type]
            e = self.value(source, at, both)
            return e if inside is None else where(inside, e, fallback)

        return load


def _both(x: Expr | None, y: Expr | None) -> Expr | None:
    return y if x is None else x if y is None else call("and", x, y)


def _specs(x: Node) -> list[Spec]:
    return [i.spec if isinstance(i, Node) else as_spec(i) for i in x.inputs]


def _broadcast(at: Coords, shape: tuple[int, ...]) -> Coords:
    """Where an input of `shape` is read for the output element `at`."""
    return tuple(ix.ZERO if n == 1 else i for i, n in zip(at[len(at) - len(shape) :], shape, strict=True))


# ------------------------------------------------------------------------------------------------ kernels of groups


@dataclass
class Draft:
    """A kernel under construction: reductions and stores with the level at which their operands are known."""

    levels: dict[str, int] = field(default_factory=dict)
    reductions: dict[tuple[int, tuple[Axis, ...]], list[Reduction | Dot]] = field(default_factory=dict)
    nested: dict[tuple[int, tuple[Axis, ...]], list[Store]] = field(default_factory=dict)
    after: dict[int, list[Store]] = field(default_factory=dict)

    def level(self, *roots: Expr) -> int:
        """The last level of reductions that the expressions use; -1 for none."""
        return max((self.levels[e.attr] for e in walk(*roots) if e.op == "value"), default=-1)  # type: ignore[index]

    def reduce(self, r: Reduction | Dot, axes: tuple[Axis, ...]) -> Expr:
        """Enter a reduction; its result as an expression."""
        level = 1 + self.level(*((r.a, r.b) if isinstance(r, Dot) else (r.value,)))
        self.levels[r.name] = level
        self.reductions.setdefault((level, axes), []).append(r)
        return expr("value", (), r.dtype, r.name)

    def store(self, s: Store, axes: tuple[Axis, ...]) -> None:
        """Enter a store: inside the nest where it depends on the nest's axes, else after it."""
        level = self.level(s.value)
        inside = frozenset(axes)
        if inside and (depends_on(s.value, inside) or depends_on(expr("index", (), dtypes.int64, s.index), inside)):
            self.nested.setdefault((level + 1, axes), []).append(s)
        else:
            self.after.setdefault(level, []).append(s)

    def phases(self) -> tuple[Phase, ...]:
        """The phases in order."""
        nests = sorted(dict.fromkeys([*self.reductions, *self.nested]), key=lambda key: key[0])  # a stable sort keeps the order of entry
        out = [(key[0], Phase(key[1], tuple(self.reductions.get(key, ())), tuple(self.nested.get(key, ())))) for key in nests]
        for level, stores in sorted(self.after.items()):
            last = max((i for i, (k, p) in enumerate(out) if k == level and p.reductions), default=0)
            if out:
                out[last] = (out[last][0], replace(out[last][1], stores=out[last][1].stores + tuple(stores)))
            else:
                out.append((level, Phase((), (), tuple(stores))))
        return tuple(replace(p, stores=in_safe_order(p.stores)) for _, p in out)


def in_safe_order(stores: tuple[Store, ...]) -> tuple[Store, ...]:
    """Stores ordered so that none overwrites what a later one reads (in-place updates); as they are where there is no such order."""
    if len(stores) == 1:
        return stores
    reads = [{buffer_of(e) for e in walk(s.value) if e.op == "load"} for s in stores]
    left, out = list(range(len(stores))), []
    while left:
        i = next((i for i in left if not any(stores[i].buffer in reads[j] for j in left if j != i)), left[0])
        left.remove(i)
        out.append(stores[i])
    return tuple(out)


@dataclass(frozen=True)
class Built:
    """The kernels of a group, and at which elements they read other nodes.

    A scatter has two: the zeros and the additions. Column sums have three: zeros, the `main` kernel, and what adds up their parts.
    """

    kernels: tuple[Kernel, ...]
    reads: Mapping[Node, tuple[Coords, ...]]
    main: int = -1  # which of the kernels has the group's loops


def build_kernels(
    group: Group, homes: Mapping[Node, Home], stores: Mapping[Node, Sequence[Home]], names: Names, order: Mapping[Node, int],
    final: bool = True,
) -> Built:
    """The loop nests of a group. `homes`: nodes that are in memory; `stores`: where members go; a trial needs no name. Raises Refused."""
    emitter = Emitter(homes, names, group.nodes)
    if (op := group.nodes[0].op) is not None and isinstance(op.lower, Composite | Written):
        return _claimed(group, emitter, homes, stores, order)
    draft = Draft()
    sizes: dict[str, Buffer] = {}
    written: dict[str, Buffer] = {}
    before: list[Kernel] = []
    sums: list[_ColumnSum] = []
    row = Axis(f"i{next(_NUMBER)}", math.prod(a.extent for a in group.grid))  # the grid as one axis, for column sums
    for n in group.nodes:
        assert n.op is not None
        emitter.seen.setdefault(n)
        lower, at, axes = n.op.lower, group.coords[n], group.inner[n]
        if isinstance(lower, ScatterAdd):
            before.append(_scatter(n, emitter, draft, at, stores[n], written))
            continue
        if n in group.columns:
            sums.append(_column_sum(n, group, row, emitter, draft, stores.get(n, ()), names))
            written[sums[-1].parts.name] = sums[-1].parts
            continue
        e = _member(n, lower, at, axes, emitter, draft, names)
        emitter.known[n] = (at, e)
        for home in stores.get(n, ()):
            loops = () if isinstance(lower, Reduce | Contract) else axes
            _require_bijection(n, at, group, loops, names)
            written[home.buffer] = Buffer(home.buffer, n.spec.dtype, home.size, "output")
            draft.store(Store(home.buffer, home.position(at), rounded(e, n.spec.dtype)), loops)
    phases = draft.phases()
    every = [e for p in phases for e in walk(*_roots(p))]
    reads = {buffer_of(e) for e in every if e.op == "load"}
    for x in emitter.reads:
        home = emitter.homes[x]
        sizes[home.buffer] = Buffer(home.buffer, x.spec.dtype, max(home.size, sizes[home.buffer].size if home.buffer in sizes else 0))
    buffers = [b for name, b in sizes.items() if name in reads and name not in written]
    buffers += [replace(b, role="inout") if name in reads else b for name, b in written.items()]
    scalars = tuple(emitter.scalars[name] for name in dict.fromkeys(e.attr for e in every if e.op == "scalar"))  # type: ignore[index]
    used = sorted(emitter.seen, key=lambda n: order.get(n, 0))
    kernel = Kernel("", group.grid, phases, tuple(buffers), scalars, tuple(dict.fromkeys(n.source for n in used if n.source)))
    if group.columns:
        digits: dict[Any, Index] = dict(zip(group.grid, ix.unflatten(of(row), tuple(a.extent for a in group.grid)), strict=True))
        kernel = map_kernel(replace(kernel, grid=(row,)), lambda e: None, digits.get)
    if final:
        kernel = kernel.renamed(_name(used, kernel))
    zeros, behind = _around(sums)
    before += zeros
    return Built((*before, kernel, *behind), {n: tuple(c) for n, c in emitter.reads.items()}, len(before))


def _claimed(
    group: Group, emitter: Emitter, homes: Mapping[Node, Home], stores: Mapping[Node, Sequence[Home]], order: Mapping[Node, int]
) -> Built:
    """The kernel written by hand for operators that stayed whole."""
    numbers: dict[str, int] = {}

    def number(buffer: str) -> int:
        return numbers.setdefault(buffer, len(numbers))

    def place(x: Node, at: Coords) -> tuple[str, Index]:
        e = emitter.value(x, at)
        while e.op == "cast":
            e = e.args[0]
        assert e.op == "load" and index_of(e).is_affine(), "operands of claimed operators lie in memory, apart from strides"
        return buffer_of(e), index_of(e)

    written = {n: stores[n][0] for n in group.nodes if stores.get(n)}
    body, own = kernel_of(group.nodes, place, {n: (h.buffer, h.strides) for n, h in written.items()}, number)
    known = {h.buffer: Buffer(h.buffer, n.spec.dtype, h.size, "output") for n, h in written.items()} | {b.name: b for b in own}
    for x in emitter.reads:
        h = homes[x]
        other = known.get(h.buffer, Buffer(h.buffer, x.spec.dtype, 0))
        known[h.buffer] = replace(other, size=max(h.size, other.size), role="input" if other.role == "input" else "inout")
    used = sorted({*emitter.seen, *group.nodes}, key=lambda n: order.get(n, 0))
    origin = tuple(dict.fromkeys(n.source for n in used if n.source))
    kernel = Kernel("", (), (), tuple(known[b] for b in numbers), (), origin, body)
    return Built((kernel.renamed(_name(list(group.nodes), kernel)),), {n: tuple(c) for n, c in emitter.reads.items()})


def _roots(phase: Phase) -> list[Expr]:
    """The expressions of a phase and, in front of them, the data-dependent positions inside their indices."""
    roots = [x for r in phase.reductions for x in ((r.a, r.b) if isinstance(r, Dot) else (r.value,))] + [s.value for s in phase.stores]
    found: dict[Expr, None] = {}
    indices = [s.index for s in phase.stores] + [index_of(e) for e in walk(*roots) if e.op in ("load", "index")]
    while indices:
        for term, _ in indices.pop().terms:
            if isinstance(term, FloorDiv | Mod):
                indices.append(term.index)
            elif isinstance(term, Expr) and term not in found:
                found[term] = None
                indices += [index_of(e) for e in walk(term) if e.op in ("load", "index")]
    return [*found, *roots]


def _member(n: Node, lower: Any, at: Coords, axes: tuple[Axis, ...], emitter: Emitter, draft: Draft, names: Names) -> Expr:
    """The expression of a member's element; enters the reduction or product that it takes."""
    d = register(n.spec.dtype)
    if isinstance(lower, Reduce):
        x = n.args()[0]
        e = emitter.value(x, _reduced_coords(n, at, axes))
        if lower.combine in ("any", "all"):
            e = e if e.dtype is dtypes.bool_ else call("ne", e, 0)
        elif lower.combine in ("sum", "prod"):
            e = cast(e, d)
        elif e.dtype is dtypes.bool_:
            e = cast(e, dtypes.int64)
        return cast(draft.reduce(Reduction(names.of(n), lower.combine, e), axes), d)
    if isinstance(lower, Contract):
        return cast(draft.reduce(_dot(n, at, axes, emitter, names), axes), d)
    return emitter.compute(n, at, None)


def _reduced_coords(n: Node, at: Coords, axes: tuple[Axis, ...]) -> Coords:
    """Coordinates of the input of a reduction: those of the result with the reduced axes in their places.

    A reduced dimension has one axis, or, where it was split to run with a view, several digits, the slowest first.
    """
    dims, keepdim = n.attrs
    shape = n.args()[0].spec.shape
    kept = iter([i for d, i in enumerate(at) if not (keepdim and d in dims)])
    inner = iter([a for a in axes if a.extent != 1])

    def digits(extent: int) -> Index:
        out, count = ix.ZERO, 1
        while count != extent:
            axis = next(inner)
            out, count = out * axis.extent + of(axis), count * axis.extent
        return out

    return tuple(digits(shape[d]) if d in dims else next(kept) for d in range(len(shape)))


def _dot(n: Node, at: Coords, axes: tuple[Axis, ...], emitter: Emitter, names: Names) -> Dot:
    a, b = n.args()
    (k,) = axes
    *lead, i, j = at
    coords_a = (*_broadcast(tuple(lead), a.spec.shape[:-2]), i, of(k))
    coords_b = (*_broadcast(tuple(lead), b.spec.shape[:-2]), of(k), j)
    in_b = {x for c in coords_b for x in c.axes()}
    m_lead = [c for c in lead if not in_b & set(c.axes())]
    batch = [c for c in lead if in_b & set(c.axes())]

    def listed(indices: Iterable[Index]) -> tuple[Axis, ...]:
        return tuple(x for c in indices for x in sorted_axes(c))

    left, right = (rounded(emitter.value(x, c), x.spec.dtype) for x, c in ((a, coords_a), (b, coords_b)))
    return Dot(names.of(n), left, right, listed(batch), listed([*m_lead, i]), listed([j]), axes)


def _require_bijection(n: Node, at: Coords, group: Group, axes: tuple[Axis, ...], names: Names) -> None:
    """Every element of a stored member is written by exactly one point of the nest."""
    loops = {a for a in (*group.grid, *axes) if a.extent != 1}
    used = {x for c in at for x in c.axes()}
    if 0 in n.spec.shape or 0 in (a.extent for a in loops):
        return
    total = 1
    for a in loops:
        total *= a.extent
    if loops != used or total != n.spec.numel:
        raise Refused(f"{names.of(n)} has {n.spec.numel} elements, the kernel {total} points")


def _scatter(n: Node, emitter: Emitter, draft: Draft, at: Coords, homes: Sequence[Home], written: dict[str, Buffer]) -> Kernel:
    """Enter the additions of a scatter; the kernel that makes the zeros it adds to."""
    assert n.op is not None and isinstance(n.op.lower, ScatterAdd)
    attrs = dict(zip(n.op.attrs, n.attrs, strict=True))
    target = n.op.lower.function(at, emitter.loader(n, None), _specs(n), **attrs)
    value = rounded(emitter.value(n.inputs[0], at), n.spec.dtype)
    axes = _axes(n.spec.shape, "z")
    zeros = []
    for home in homes:
        written[home.buffer] = Buffer(home.buffer, n.spec.dtype, home.size, "inout")
        draft.store(Store(home.buffer, home.position(target), value, "add"), ())
        zeros.append(Store(home.buffer, home.position(tuple(of(a) for a in axes)), const(0, n.spec.dtype)))
    buffers = tuple(replace(written[s.buffer], role="output") for s in zeros)
    fill = Kernel("", axes, (Phase((), (), tuple(zeros)),), buffers, (), (n.source,) if n.source else ())
    return fill.renamed(_name([], fill, "zeros"))


@dataclass(frozen=True)
class _ColumnSum:
    """A sum over the rows of a kernel that runs row by row: each part of the rows adds to sums of its own, in the order of the rows, so
    results do not depend on how many threads there are."""

    node: Node
    parts: Buffer  # (number of parts, elements of the result)
    homes: tuple[Home, ...]

    def zeros(self, z: Axis) -> Store:
        """What stands in the parts before the rows are added."""
        return Store(self.parts.name, of(z), const(0, self.parts.dtype))

    def whole(self, p: Axis, at: tuple[Axis, ...]) -> tuple[Reduction, list[Store]]:
        """The sum of the parts at one result, and where it goes."""
        n = self.node
        coords = tuple(of(a) for a in at)
        place = of(p) * n.spec.numel + ix.flatten(coords, n.spec.shape)
        r = Reduction(f"{self.parts.name}_sum", "sum", expr("load", (), self.parts.dtype, (self.parts.name, place)))
        total = rounded(expr("value", (), r.dtype, r.name), n.spec.dtype)
        return r, [Store(h.buffer, h.position(coords), total) for h in self.homes]


def _column_sum(n: Node, group: Group, row: Axis, emitter: Emitter, draft: Draft, homes: Sequence[Home], names: Names) -> _ColumnSum:
    """Enter the additions of a column sum."""
    at, width = group.coords[n], n.spec.numel
    e = cast(emitter.value(n.args()[0], _reduced_coords(n, at, group.columns[n])), register(n.spec.dtype))
    most, least = group.parts
    # A power of two, because programs of a GPU take blocks of it; two parts at least, so that other sizes have the same text.
    length = power_of_two(min(max(least, -(-row.extent // most)), max(row.extent // 2, 1)))
    parts = Buffer(f"{names.of(n)}_parts", e.dtype, -(-row.extent // length) * width, "inout")
    place = ix.floordiv(of(row), length) * width + ix.flatten(at, n.spec.shape)
    draft.store(Store(parts.name, place, e, "add"), group.inner[n])
    return _ColumnSum(n, parts, tuple(homes))


def _around(sums: Sequence[_ColumnSum]) -> tuple[list[Kernel], list[Kernel]]:
    """The kernels before and behind the one that adds up rows: zeros, and the sums of the parts, one for each shape."""
    shapes: dict[tuple[object, ...], list[_ColumnSum]] = {}
    for s in sums:
        shapes.setdefault((s.node.spec.shape, s.parts.dtype), []).append(s)
    before, behind = [], []
    for alike in shapes.values():
        n, size = alike[0].node, alike[0].parts.size
        origin = tuple(dict.fromkeys(s.node.source for s in alike if s.node.source))
        (z, p), at = _axes((size, size // n.spec.numel), "z"), _axes(n.spec.shape, "i")
        zeros = Kernel(
            "", (z,), (Phase((), (), tuple(s.zeros(z) for s in alike)),), tuple(replace(s.parts, role="output") for s in alike), (), origin
        )
        before.append(zeros.renamed(_name([], zeros, "zeros")))
        whole = [s.whole(p, at) for s in alike]
        phase = Phase((p,), tuple(r for r, _ in whole), tuple(x for _, stores in whole for x in stores))
        written = [Buffer(h.buffer, s.node.spec.dtype, h.size, "output") for s in alike for h in s.homes]
        add = Kernel("", at, (phase,), (*(replace(s.parts, role="input") for s in alike), *written), (), origin)
        behind.append(add.renamed(_name([], add, "add_parts")))
    return before, behind


# ------------------------------------------------------------------------------------------------ names


def _name(nodes: Sequence[Node], kernel: Kernel, otherwise: str = "copy") -> str:
    """What the kernel does: its operators in order, runs counted, and four digits of its structure."""
    words: list[str] = []
    last, count = "", 0
    for word in [*(n.op.name for n in nodes if n.op and not n.op.is_view and n.op.name not in ("clone", "full")), ""]:
        if word == last:
            count += 1
            continue
        if last:
            words.append(last + (str(count) if count > 1 else ""))
        last, count = word, 1
    text = ""
    for word in words or [otherwise]:
        if len(text) + len(word) > 40:
            break
        text += ("_" if text else "") + word
    return f"{text or words[0][:40]}_{_digest(kernel)}"


def _digest(kernel: Kernel) -> str:
    number: dict[object, int] = {}

    def place(x: object) -> int:
        return number.setdefault(x, len(number))

    def shape(index: Index) -> list[object]:
        return [index.const, *((place(t) if isinstance(t, Axis | Expr) else type(t).__name__, c) for t, c in index.terms)]

    parts: list[object] = [[(place(a), a.extent) for a in kernel.grid], *([repr(kernel.body)] if kernel.body else [])]
    for p in kernel.phases:
        parts.append([(place(a), a.extent) for a in p.reduce])
        for e in walk(*_roots(p)):
            attr: object = e.attr
            if e.op in ("load", "index"):
                attr = (place(buffer_of(e)) if e.op == "load" else None, shape(index_of(e)))
            elif e.op in ("scalar", "value"):
                attr = place(e.attr)
            parts.append((place(e), e.op, e.dtype.name, attr, [place(a) for a in e.args]))
        parts += [(r.combine if isinstance(r, Reduction) else "dot", place(r.name)) for r in p.reductions]
        parts += [(place(s.buffer), shape(s.index), place(s.value), s.mode) for s in p.stores]
    return hashlib.sha1(repr(parts).encode(), usedforsecurity=False).hexdigest()[:4]
