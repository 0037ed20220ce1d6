"""Decides what is kept in memory and which nodes share a kernel; every refused fusion has its reason.

Nodes that have a place of their own (`named`): outputs, results of reductions, products, scatters and extern calls, what those
must read from memory, and costly values with several readers. All else is recomputed inside its readers. Each named node
starts as a kernel of its own; kernels then merge along the values that pass between them, if the merged loop nest can be
written down (`lower.build_kernels` is the judge) and no third kernel stands between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torchlet import dtypes
from torchlet.compiler.chunk import is_large
from torchlet.compiler.claim import group_key
from torchlet.compiler.graph import Graph, Names, Node
from torchlet.compiler.lower import GPU_PARTS, PARTS, Built, Coords, Group, Home, Refused, build_kernels, group_of, sorted_axes
from torchlet.compiler.native import is_extern
from torchlet.dtypes import dtype
from torchlet.expr import expr, walk
from torchlet.index import Axis, Index, of
from torchlet.op import OPS, Composite, Contract, Generate, Pointwise, Reduce, ScatterAdd, Select, View, Written

__all__ = ["Decisions", "Fused", "fuse"]

CHEAP = 8  # expression nodes up to which a value is computed again by each reader
LONGEST = 64  # expression nodes after which a value gets a place, however few read it (and how deep building it can recurse)
ALONE = 1 << 14  # elements from which a nest is not put inside fewer than ROWS grid points
ROWS = 16
MAX_BUFFERS = 64
MAX_NODES = 32  # with places of their own: past it a kernel gains little, and building ever longer ones takes quadratic time
COLUMNS = 1 << 13  # of all column sums of a kernel, which then stay in the first-level cache
TALL, GPU_TALL = 1 << 17, 1 << 22  # elements from which reading them once pays for zeros and for adding up parts
_COSTLY = frozenset((
    "exp", "expm1", "log", "log1p", "log2", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "erf", "sigmoid", "pow",
    "atan2", "philox", "floordiv", "mod", "fmod",
))


@dataclass(frozen=True)
class Decisions:
    """What a search chose, nodes by their positions in the graph: with it the same graph gets the same kernels at other sizes.

    `reuses`: the buffers that lie in the place of another one which their own kernel reads for the last time (see schedule.py).
    """

    named: tuple[int, ...]
    merges: tuple[tuple[int, int, int | None], ...]
    refused: tuple[tuple[str, str, str], ...]
    reuses: frozenset[tuple[str, str]] = frozenset()


@dataclass
class Fused:
    """The groups in an order that computes makers before users, and everything needed to write their kernels."""

    graph: Graph
    groups: list[Group]
    names: Names
    homes: dict[Node, Home]
    stores: dict[Node, tuple[Home, ...]]
    order: dict[Node, int]
    reads: dict[Group, list[Node]]
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    decisions: Decisions | None = None
    built: dict[Group, Built] = field(default_factory=dict)  # trials of the groups with the first homes

    def build(self, group: Group) -> Built:
        """The kernels of a group with the homes as they are now."""
        return build_kernels(group, self.homes, self.stores, self.names, self.order)

    def __str__(self) -> str:
        lines = []
        for g in self.groups:
            lines.append(", ".join(self.names.of(n) for n in g.nodes))
        lines += [f"not fused: {a} with {b}: {why}" for a, b, why in self.refused]
        return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ what gets a place


@lru_cache(maxsize=4096)
def _weight(op_name: str, attrs: tuple[object, ...], inputs: int, d: dtype) -> int:
    """Expression nodes of one element of a pointwise operator; a transcendental function counts as eight."""
    lower = OPS[op_name].lower
    if not isinstance(lower, Pointwise):
        return CHEAP if isinstance(lower, Generate) and op_name not in ("full", "arange") else 2 if isinstance(lower, Select) else 0
    args = [expr("arg", (), dtypes.bool_ if OPS[op_name].inputs[0] == "condition" and i == 0 else d, i) for i in range(inputs)]
    e = lower.function(*args, *attrs)
    return sum(8 if x.op in _COSTLY else 1 for x in walk(e) if x.op not in ("arg", "const", "cast"))


def weight(n: Node) -> int:
    """What one element of the node costs, its inputs apart."""
    assert n.op is not None
    floats = n.spec.dtype.is_floating_point or any(x.spec.dtype.is_floating_point for x in n.args())
    return _weight(n.op.name, n.attrs, len(n.inputs), dtypes.float32 if floats else dtypes.int64)


def named_nodes(graph: Graph) -> list[Node]:
    """The nodes that get a place in memory or in registers of their own, in graph order."""
    users = graph.users()
    named = {n for n in graph.outputs if n.kind == "op"}
    cost: dict[Node, int] = {}
    leaves: dict[Node, frozenset[Node]] = {}
    for n in users:
        if n.kind != "op":
            continue
        assert n.op is not None
        lower = n.op.lower
        if lower is None or isinstance(lower, Reduce | Contract | ScatterAdd | Composite | Written):
            named.add(n)
            for x in n.args():
                if x.kind == "op" and x not in named:
                    if is_extern(n):
                        named.add(x)
                    elif isinstance(lower, Contract | Composite | Written):
                        base = _operand(x)
                        if base.kind == "op":
                            named.add(base)
    readers = {n: _readers(n, users) for n in users}
    for n in users:  # in graph order: the costs of inputs are known
        if n.kind != "op":
            continue
        inline = [x for x in n.args() if x.kind == "op" and x not in named]
        cost[n] = weight(n) + sum(cost[x] for x in inline)
        leaves[n] = frozenset().union(*(leaves[x] if x in inline else {x} for x in n.args() if x.kind != "scalar"))
        assert n.op is not None
        if n in named or not isinstance(n.op.lower, Pointwise | Generate | Select):
            continue
        several = len(readers[n]) > 1 and (cost[n] >= CHEAP or len(leaves[n]) > 2 or _ends_a_result(n, readers))
        repeated = cost[n] >= CHEAP and any(r.spec.numel >= 4 * n.spec.numel for r in readers[n] if not _has_loops(r))
        adds_up = n.op.name == "add" and any(x.op is not None and x.op.name == "wide_matmul" for x in n.args())
        if n.spec.shape and (several or repeated or adds_up or cost[n] > LONGEST or _joins_results(n, leaves[n], readers[n])):
            named.add(n)
    return [n for n in users if n in named]


def _ends_a_result(n: Node, readers: Mapping[Node, list[Node]]) -> bool:
    """True when a reduction or product of the same size is read for this node only, which then is kept in its place."""
    todo = list(n.args())
    while todo:
        x = todo.pop()
        if x.op is None or len(readers[x]) > 1 or x.spec.numel != n.spec.numel:
            continue
        if isinstance(x.op.lower, Reduce | Contract):
            return True
        todo += x.args()
    return False


def _has_loops(n: Node) -> bool:
    return n.op is not None and isinstance(n.op.lower, Reduce | Contract)


def _joins_results(n: Node, leaves: frozenset[Node], readers: list[Node]) -> bool:
    """True for what is made of several results of reductions, element by element, and reduced again: one value to keep, not several."""
    results = [x for x in leaves if x.op is not None and isinstance(x.op.lower, Reduce) and x.spec.numel == n.spec.numel]
    return len(results) > 1 and any(r.op is not None and isinstance(r.op.lower, Reduce) for r in readers)


def _readers(n: Node, users: Mapping[Node, list[Node]]) -> list[Node]:
    """Who computes with the node, seen through views."""
    out: dict[Node, None] = {}
    todo = list(users[n])
    while todo:
        u = todo.pop()
        if u.op is not None and isinstance(u.op.lower, View) and users[u]:
            todo += users[u]
        else:
            out[u] = None
    return list(out)


def _operand(n: Node) -> Node:
    """What a product reads from memory for its operand `n`: the deepest node under views from which `n` is a matter of strides."""
    chain = [n]
    while chain[-1].op is not None and isinstance(chain[-1].op.lower, View):
        chain += chain[-1].args()
    at: Coords = tuple(of(Axis(f"d{i}", k)) for i, k in enumerate(n.spec.shape))
    if 0 in n.spec.shape:
        return chain[-1]
    found = n
    for x, below in zip(chain, [*chain[1:], None], strict=True):
        home = Home.strided("", x.spec.shape, x.attrs[1]) if x.kind == "input" else Home.dense("", x.spec.shape)
        if home.position(at).is_affine():
            found = x
        if below is not None:
            assert x.op is not None and isinstance(x.op.lower, View)
            at = x.op.lower.index(at, below.spec.shape, **dict(zip(x.op.attrs, x.attrs, strict=True)))
    return found


# ------------------------------------------------------------------------------------------------ merging two groups


def _digits(i: Index) -> list[tuple[Axis, int]] | None:
    """The axes of a mixed-radix number, slowest first; None when the index is not one."""
    if i.const or not i.is_affine():
        return None
    axes = sorted_axes(i)
    step = 1
    for a in reversed(axes):
        if i.coefficient(a) != step:
            return None
        step *= a.extent
    return [(a, a.extent) for a in axes]


def _unify(pairs: Iterable[tuple[Index, Index]]) -> tuple[dict[Axis, Index], dict[Axis, Index]]:
    """Replacements for the axes of the left and of the right side that make the pairs equal. Raises Refused."""
    left: dict[Axis, Index] = {}
    right: dict[Axis, Index] = {}

    def enter(table: dict[Axis, Index], axis: Axis, value: Index) -> None:
        if table.setdefault(axis, value) != value:
            raise Refused("one loop would have to stand for two")

    for i, j in pairs:
        if i == j and not i.terms:
            continue
        a, b = _digits(i), _digits(j)
        if not a or not b:
            raise Refused("positions are not the same")
        if [n for _, n in a] == [n for _, n in b]:
            for (x, _), (y, _) in zip(a, b, strict=True):
                enter(right, y, of(x))
        elif len(b) == 1 and b[0][1] == _span(a):
            enter(right, b[0][0], i)
        elif len(a) == 1 and a[0][1] == _span(b):
            enter(left, a[0][0], j)
        else:
            raise Refused("the loops have different sizes")
    if any(t in left for v in right.values() for t, _ in v.terms) or len({v for v in right.values()}) != len(right):
        raise Refused("one loop would have to stand for two")
    return left, right


def _span(digits: list[tuple[Axis, int]]) -> int:
    n = 1
    for _, extent in digits:
        n *= extent
    return n


def _long(axes: Iterable[Axis]) -> set[Axis]:
    return {a for a in axes if a.extent != 1}


def _loops(g: Group) -> set[Axis]:
    return _long([*g.grid, *(a for axes in g.inner.values() for a in axes)])


def merge(
    a: Group, b: Group, pairs: Iterable[tuple[Index, Index]], order: Mapping[Node, int], any_size: bool = False, gpu: bool = False
) -> Group:
    """The group with the nodes of both, once the pairs of positions are made equal. Raises Refused; with `any_size`, not for speed."""
    left, right = _unify(pairs)
    a, b = a.substitute(left), b.substitute(right)
    if a.fixed and b.fixed and _long(a.grid) != _long(b.grid):
        a, b = _with_columns(a, b, any_size, gpu)
    if a.fixed and b.fixed:
        if a.product or b.product:
            raise Refused("a product shares its kernel with elementwise work only")
        grid = a.grid
    elif a.fixed or b.fixed:
        rows, flat = (a, b) if a.fixed else (b, a)
        grid = rows.grid
        if not _long(grid) <= _loops(flat):
            raise Refused("the rows are not those of the elementwise part")
        rest = [x for x in flat.grid if x.extent != 1 and x not in grid]
        if rest and rows.product:
            raise Refused("the elementwise part has more dimensions than the product")
        if not any_size and _count(rest) * _count(grid) >= ALONE and _count(grid) < ROWS:
            raise Refused("too few rows for so many elements")
    else:
        if _long(a.grid) != _long(b.grid):
            raise Refused("they run over different elements")
        grid = a.grid
    nodes = tuple(sorted({*a.nodes, *b.nodes}, key=order.__getitem__))
    coords = {**a.coords, **b.coords}
    known = {**a.inner, **b.inner}
    inner: dict[Node, tuple[Axis, ...]] = {}
    for n in nodes:
        if n.op is not None and isinstance(n.op.lower, Reduce | Contract):
            inner[n] = known[n]
        else:
            inner[n] = tuple(dict.fromkeys(x for i in coords[n] for x in sorted_axes(i) if x not in grid and x.extent != 1))
    reads = {n: at for n, at in {**b.reads, **a.reads}.items() if n not in coords}
    columns, parts = {**a.columns, **b.columns}, a.parts if a.columns else b.parts
    out = Group(nodes, grid, coords, inner, a.fixed or b.fixed, a.product or b.product, False, reads, columns, parts)
    return _share_loops(out)


def _with_columns(a: Group, b: Group, any_size: bool, gpu: bool) -> tuple[Group, Group]:
    """The two groups where one is sums over the rows of the other, with these as column sums of its kernel. Raises Refused."""
    for rows, sums in ((a, b), (b, a)):
        over, along = _long(rows.grid), tuple(x for x in sums.grid if x.extent != 1)
        fits = all(_is_sum(n) and _long(sums.inner[n]) == over for n in sums.nodes) and not (rows.product or sums.product)
        if not fits or not along or not over or not set(along) <= _loops(rows) - over:
            continue
        width, parts, tall = _count(along), *((GPU_PARTS, GPU_TALL) if gpu else (PARTS, TALL))
        narrow = width >= ROWS and width * (len(rows.columns) + len(sums.nodes)) <= COLUMNS
        if not any_size and not (narrow and width * _count(over) >= tall and _count(over) >= 2 * parts[1]):
            raise Refused("too few or too wide rows for column sums")
        columns = {n: tuple(x for x in sums.inner[n] if x.extent != 1) for n in sums.nodes}
        inner = dict.fromkeys(sums.nodes, along)
        return rows, replace(sums, grid=rows.grid, inner=inner, columns=columns, parts=parts)
    raise Refused("their rows differ")


def _is_sum(n: Node) -> bool:
    return n.op is not None and isinstance(n.op.lower, Reduce) and n.op.lower.combine == "sum" and n.spec.dtype.is_floating_point


def _count(axes: Iterable[Axis]) -> int:
    n = 1
    for a in axes:
        n *= a.extent
    return n


def _share_loops(g: Group) -> Group:
    """Loops of equal extents inside the grid point become one, so that what they read alike is one load."""
    first: dict[tuple[int, ...], tuple[Axis, ...]] = {}
    new: dict[Axis, Index] = {}
    for n in g.nodes:
        axes = g.inner[n]
        known = first.setdefault(tuple(a.extent for a in axes), axes)
        if known != axes and not set(known) & set(axes) and not any(x in new for x in axes):
            new.update({x: of(y) for x, y in zip(axes, known, strict=True) if x.extent != 1})
    return g.substitute(new)


# ------------------------------------------------------------------------------------------------ the search


class _Search:
    """Groups with what they read, and which groups stand before which."""

    def __init__(self, graph: Graph, known: Decisions | None = None, gpu: bool = False):
        self.graph, self.known, self.gpu = graph, known, gpu
        nodes = graph.nodes()
        self.order = {n: i for i, n in enumerate(nodes)}
        self.names = Names.of_graph(graph)
        self.named = named_nodes(graph) if known is None else [nodes[i] for i in known.named]
        self.merges: list[tuple[int, int, int | None]] = []  # done, in order
        self.homes = {n: Home.strided(self.names.of(n), n.spec.shape, n.attrs[1]) for n in graph.inputs}
        self.homes |= {n: Home.dense(self.names.of(n), n.spec.shape) for n in self.named}
        self.group: dict[Node, Group] = {}
        self.built: dict[Group, Built] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.sources = {n: _sources(n, set(self.named)) for n in self.named}
        self.readers: dict[Node, list[Node]] = {n: [] for n in self.named}
        for n, below in self.sources.items():
            for x in below:
                if x in self.readers:
                    self.readers[x].append(n)
        self.outputs = set(graph.outputs)
        self.tried: set[tuple[Group, Group, Node | None]] = set()
        self.mask: dict[Group, int] = {}  # the named nodes of a group, as bits
        self.above: dict[Group, int] = {}  # the named nodes of all groups that must run before it
        for i, n in enumerate(self.named):
            g = group_of(n)
            built = Built((), {}) if is_extern(g.nodes[0]) else self._build(g, {n: (self.homes[n],)})
            g = self.group[n] = g if known is None else replace(g, reads=built.reads)
            self.built[g] = built
            self.mask[g] = 1 << i
            self.above[g] = 0
            for h in self.makers(g):
                self.above[g] |= self.above[h] | self.mask[h]
        self.join_claimed()

    def _build(self, g: Group, stores: Mapping[Node, Sequence[Home]] | None = None) -> Built:
        members = set(g.nodes)
        if stores is None:
            stores = {n: (self.homes[n],) for n in g.nodes if n in self.outputs or any(r not in members for r in self.readers[n])}
        return build_kernels(g, self.homes, stores, self.names, self.order, final=False)

    def join_claimed(self) -> None:
        """Results of one kernel written by hand: they read the same, so nothing can stand between them."""
        first: dict[object, Node] = {}
        for n in self.named:
            claimed = n.op is not None and isinstance(n.op.lower, Composite | Written) and not is_extern(n)
            if claimed and (other := first.setdefault(group_key(n, self.gpu), n)) is not n:
                a, b = self.group[other], self.group[n]
                joined = Group((*a.nodes, *b.nodes), a.grid, {**a.coords, **b.coords}, {**a.inner, **b.inner}, a.fixed, alone=True)
                self.settle(a, b, joined)
                self.built[joined] = self._build(joined)

    def run(self) -> list[Group]:
        """Merge along the values that pass between kernels, the largest first: those save the most memory traffic."""
        edges = [(x, n) for n in self.named for x in self.sources[n] if x in self.group]
        edges.sort(key=lambda e: (_into_few(*e), -self.saves(*e), self.order[e[1]]))
        for _ in range(4):
            before = len(set(self.group.values()))
            for x, n in edges:
                self.try_merge(x, n)
            self.siblings()
            if len(set(self.group.values())) == before:
                break
        return list(dict.fromkeys(self.group[n] for n in self.named))

    def saves(self, x: Node, n: Node) -> int:
        """Bytes that need not travel when the two share a kernel: the value between them, and what both read."""
        return sum(v.spec.numel * v.spec.dtype.itemsize for v in {x, *(set(self.sources[x]) & set(self.sources[n]))})

    def siblings(self) -> None:
        """Kernels that read the same value at the same points."""
        readers: dict[Node, list[Node]] = {}
        for n, below in self.sources.items():
            for x in below:
                readers.setdefault(x, []).append(n)
        for x, who in readers.items():
            if x.spec.numel > 1:
                for m, n in itertools.combinations(who[:8], 2):
                    self.try_merge(m, n, shared=x)

    def try_merge(self, x: Node, n: Node, shared: Node | None = None) -> None:
        """Put the groups of two nodes together if that can be."""
        a, b = self.group[x], self.group[n]
        if a is b or a.alone or b.alone or (a, b, shared) in self.tried:
            return
        self.tried.add((a, b, shared))
        try:
            merged, built = self.merged(a, b, shared)
        except Refused as why:
            if shared is None:
                self.refused[self.names.of(x), self.names.of(n)] = str(why)
            return
        self.refused.pop((self.names.of(x), self.names.of(n)), None)
        self.settle(a, b, merged)
        self.built[merged] = built
        self.merges.append((self.order[x], self.order[n], None if shared is None else self.order[shared]))

    def repeat(self, known: Decisions) -> list[Group] | None:
        """The groups that an earlier search of the same graph at other sizes made; None where one of its merges cannot be made here."""
        nodes = list(self.order)
        try:
            for i, j, k in known.merges:
                a, b = self.group[nodes[i]], self.group[nodes[j]]
                self.settle(a, b, self.joined(a, b, None if k is None else nodes[k]))
            groups = list(dict.fromkeys(self.group[n] for n in self.named))
            for g in groups:
                if g not in self.built:
                    self.built[g] = self._build(g)
        except Refused:
            return None
        self.merges = list(known.merges)
        self.refused = {(a, b): why for a, b, why in known.refused}
        return groups

    def merged(self, a: Group, b: Group, shared: Node | None) -> tuple[Group, Built]:
        if len(a.nodes) + len(b.nodes) > MAX_NODES:
            raise Refused("the kernel would be too long")
        g = self.joined(a, b, shared)
        if self.hold(a, b):
            raise Refused("a large value would be held until there is another")
        built = self._build(g)
        if len(built.kernels[built.main].buffers) > MAX_BUFFERS:
            raise Refused("too many buffers")
        return g, built

    def joined(self, a: Group, b: Group, shared: Node | None) -> Group:
        if shared is None:
            if self.between(a, b):
                raise Refused("another kernel stands between them")
            pairs = self.links(a, b) or self.links(b, a, swap=True)
        else:
            if self.between(a, b) or self.between(b, a):
                raise Refused("another kernel stands between them")
            pairs = self.shared_reads(a, b, shared)
        return merge(a, b, pairs, self.order, self.known is not None, self.gpu)

    def hold(self, a: Group, b: Group) -> bool:
        """True where each of the two reads a large value of its own, while little passes between them."""
        mine, theirs = ({x for x in self.reads(g) if x in self.group and is_large(x)} for g in (a, b))
        return bool(mine - theirs and theirs - mine) and not (mine & set(b.nodes) or theirs & set(a.nodes))

    def reads(self, g: Group) -> Mapping[Node, tuple[Coords, ...]]:
        """At which elements a group reads other nodes."""
        built = self.built.get(g)
        return g.reads if built is None else built.reads

    def links(self, a: Group, b: Group, swap: bool = False) -> list[tuple[Index, Index]]:
        """Where b reads members of a, next to what a computes at a point."""
        for n in a.nodes:
            reads = self.reads(b).get(n, ())
            if reads:
                pairs = list(zip(a.coords[n], reads[0], strict=True))
                return [(j, i) for i, j in pairs] if swap else pairs
        return []

    def shared_reads(self, a: Group, b: Group, x: Node) -> list[tuple[Index, Index]]:
        mine, theirs = self.reads(a).get(x, ()), self.reads(b).get(x, ())
        if not mine or not theirs:
            raise Refused("they read nothing in common")
        if a.product or b.product:
            raise Refused("a product shares its kernel with elementwise work only")
        return list(zip(mine[0], theirs[0], strict=True))

    def between(self, a: Group, b: Group) -> bool:
        """True when a value goes from one group to the other through a third."""
        return any(self.above[c] & self.mask[x] for x, y in ((a, b), (b, a)) for c in self.makers(y) if c is not x)

    def makers(self, g: Group) -> set[Group]:
        """The groups that this one reads from."""
        return {h for n in g.nodes for x in self.sources[n] if x in self.group and (h := self.group[x]) is not g}

    def settle(self, a: Group, b: Group, merged: Group) -> None:
        """Note that two groups became one."""
        mask = self.mask[a] | self.mask[b]
        above = (self.above[a] | self.above[b]) & ~mask
        for n in merged.nodes:
            self.group[n] = merged
        for g in (a, b):
            del self.mask[g], self.above[g]
            self.built.pop(g, None)
        for g, known in self.above.items():
            if known & mask:
                self.above[g] = known | mask | above
        self.mask[merged], self.above[merged] = mask, above


def _into_few(x: Node, n: Node) -> bool:
    """True for a reduction to a few values: a kernel with so few grid points is the last one that should draw others in."""
    return n.op is not None and isinstance(n.op.lower, Reduce) and n.spec.numel < ROWS <= x.spec.numel


def _sources(n: Node, named: set[Node]) -> list[Node]:
    """The inputs and named nodes that the node is computed from directly."""
    out: dict[Node, None] = {}
    todo = list(n.args())
    seen: set[Node] = set()
    while todo:
        x = todo.pop()
        if x in seen:
            continue
        seen.add(x)
        if x in named or x.kind == "input":
            out[x] = None
        else:
            todo += x.args()
    return sorted(out, key=lambda x: x.kind == "input")


def fuse(graph: Graph, known: Decisions | None = None, gpu: bool = False) -> Fused:
    """The kernels of a graph as groups of nodes. Outputs that are inputs, numbers or twice the same must have been made copies before.

    `known`: what was decided for the same graph at other sizes.
    """
    search = _Search(graph, known, gpu)
    groups = None if known is None else search.repeat(known)
    if groups is None:
        search = _Search(graph, None, gpu) if known is not None else search
        groups = search.run()
    outside = [n for n in search.named if n in search.outputs or any(search.group[r] is not search.group[n] for r in search.readers[n])]
    stores: dict[Node, tuple[Home, ...]] = {n: (search.homes[n],) for n in outside}
    refused = [(a, b, why) for (a, b), why in search.refused.items()]
    reads = {g: list(g.nodes[0].args() if is_extern(g.nodes[0]) else search.built[g].reads) for g in groups}
    decisions = Decisions(tuple(search.order[n] for n in search.named), tuple(search.merges), tuple(refused))
    return Fused(graph, groups, search.names, search.homes, stores, search.order, reads, refused, decisions, search.built)


