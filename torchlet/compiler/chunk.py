"""A product too large to be held at once, whose rows are used one by one, is made and used in chunks of its rows.

The logits of a language model are the case: a row for each token, a column for each word, reduced to a loss; their gradients go into
two further products. No pattern says so. What can be computed from some of the rows is found by following the value, so any loss of
the rows will do (for cross-entropy this is the fused linear cross-entropy of Liger; Hsu et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torchlet import dtypes
from torchlet.compiler.graph import Builder, Graph, Node, build
from torchlet.op import OPS, Contract, Pointwise, Reduce
from torchlet.ops.view import ALL

__all__ = ["chunk", "is_large"]

LARGE = 256 << 20  # bytes that a product has at most, if its rows, or those of a chunk, are not fewer than
ROWS = 2048  # each chunk reads the other operand again, and adds to the gradient of it
SMALL = 8  # times smaller is what a row is made of, and what is kept for it: chunks of this are copied into one value
FEW = 4  # numbers that a row is reduced to at most (its maximum, its sum), which the rest of the row may need again

Axes = tuple[int | None, ...]  # for each input the dimension that holds the rows; None: all of it is read for each of them


class _Refusal(Exception):
    """Why a product is held at once."""


def chunk(graph: Graph, notes: list[tuple[str, str]] | None = None) -> Graph:
    """The graph with large products in chunks. `notes` collects (what is done with one, the user's line)."""
    held = 0
    while len(large := [n for n in graph.nodes() if _is_cut(n)]) > held:
        product = large[held]
        text = f"{_bytes(product) / 2**20:,.2f} MiB of a product of shape {list(product.spec.shape)}"
        try:
            cut = _find(graph, product)
            graph = _replaced(graph, cut)
            text += f" are made and used in {cut.count} chunks"
        except _Refusal as why:
            held += 1
            text += f" are held at once, because {why}"
        if notes is not None:
            notes.append((text, product.source))
    return graph


def is_large(n: Node) -> bool:
    """True for a value that is not held longer than it must be: chunks are."""
    return _bytes(n) >= LARGE // 4


def _is_cut(n: Node) -> bool:
    if n.op is None or not isinstance(n.op.lower, Contract) or _bytes(n) <= LARGE:
        return False
    columns = n.spec.shape[-1]
    return columns >= SMALL * n.args()[0].spec.shape[-1] and n.spec.numel // columns >= 2 * ROWS


def _bytes(n: Node) -> int:
    return n.spec.numel * n.spec.dtype.itemsize


# ------------------------------------------------------------------------------------------------ which dimension holds the rows


def _needs(n: Node, axis: int) -> Axes:
    """Where the inputs hold what a part of the result along `axis` is made of. Raises _Refusal where that is not a part of them."""
    assert n.op is not None
    lower, attrs = n.op.lower, dict(zip(n.op.attrs, n.attrs, strict=True))
    if isinstance(lower, Pointwise) or n.op.name == "expand":
        return tuple([_broadcast(n, x, axis) for x in n.inputs])
    if isinstance(lower, Contract):
        a, b = n.args()
        from_end = axis - n.spec.ndim
        if from_end < -2:
            return _broadcast(n, a, axis), _broadcast(n, b, axis)
        return (a.spec.ndim - 2, None) if from_end == -2 else (None, b.spec.ndim - 1)
    if isinstance(lower, Reduce):
        x = n.args()[0]
        kept = [d for d in range(x.spec.ndim) if attrs["keepdim"] or d not in attrs["dims"]]
        if kept[axis] not in attrs["dims"]:
            return (kept[axis],)
    elif n.op.name == "view":
        lead = _leading(n.args()[0])
        if axis == _leading(n) and lead is not None:
            return (lead,)
    elif n.op.name == "permute":
        return (attrs["dims"][axis],)
    elif n.op.name == "index_basic":
        found = [source for indexed, source in _kept(attrs["items"], n.spec.ndim) if indexed == axis]
        if found:
            return (found[0],)
    elif n.op.name == "embed":
        found = [indexed for indexed, source in _kept(attrs["items"], n.args()[0].spec.ndim) if source == axis]
        if found:
            return (found[0],)
    elif n.op.name in ("gather", "scatter_sum") and attrs["dim"] != axis:
        x, index = n.args()
        if x.spec.shape[axis] == index.spec.shape[axis] == n.spec.shape[axis]:
            return axis, axis
    raise _Refusal(f"{n.op.name} does not work row by row")


def _sums(n: Node) -> Axes | None:
    """The dimensions of the inputs that the result is a sum over."""
    assert n.op is not None
    if isinstance(n.op.lower, Contract):
        a, b = n.args()
        return a.spec.ndim - 1, b.spec.ndim - 2
    if n.op.name == "sum":
        return (_leading(n.args()[0]),) if _leading(n.args()[0]) in n.attrs[0] else None
    return None


def _broadcast(n: Node, x: Any, axis: int) -> int | None:
    """The dimension of an input that runs along `axis` of the result, if one does."""
    if not isinstance(x, Node):
        return None
    d = axis - n.spec.ndim + x.spec.ndim
    return d if d >= 0 and x.spec.shape[d] != 1 else None


def _leading(n: Node) -> int | None:
    """The first dimension that is longer than 1: its parts are parts of the memory, in whatever shape it is viewed."""
    return next((d for d, k in enumerate(n.spec.shape) if k != 1), None)


def _kept(items: Iterable[tuple[Any, ...]], ndim: int) -> list[tuple[int, int]]:
    """(dimension after indexing, dimension before) of each that is kept whole."""
    found, after, before = [], 0, 0
    for item in items:
        if item == ALL:
            found.append((after, before))
        after, before = after + (item[0] != "i"), before + (item[0] != "n")
    return found + [(d, d - after + before) for d in range(after, ndim)]


# ------------------------------------------------------------------------------------------------ what a chunk computes


@dataclass(frozen=True)
class _Cut:
    """What is computed for each of `count` chunks."""

    axis: dict[Node, int]  # what has the rows of the product, and the dimension they are
    sums: dict[Node, Axes]  # what is summed over them, and the dimensions of its inputs
    others: set[Node]  # what is read besides, and is as large or made of something as large: it is not held either
    count: int


def _find(graph: Graph, product: Node) -> _Cut:
    """The product and all that is as large, what single rows are reduced to on the way, and what it is all used for."""
    lead = _leading(product)
    assert lead is not None, "the product is large"
    rows = product.spec.numel // product.spec.shape[-1]
    axis, sums = {product: lead}, dict[Node, Axes]()
    late, large, few, ends = {product}, {product}, set[Node](), set[Node]()
    order = graph.nodes()
    for n in order:
        if not late & set(n.args()):
            continue
        late.add(n)
        reads_large = bool(large & set(n.args()))
        if not reads_large and not few & set(n.args()):
            continue
        try:
            found = _row_axis(n, axis)
            if any(x in late and x not in axis for x in n.args()):
                raise _Refusal("its rows are used together with what all of them make")
        except _Refusal:
            if reads_large:
                raise
            continue  # it can read the numbers of all rows
        if isinstance(found, tuple):
            if reads_large:
                sums[n] = found
        elif 2 * n.spec.numel >= product.spec.numel:
            axis[n] = found
            large.add(n)
        elif n.spec.numel <= FEW * rows:
            axis[n] = found
            few.add(n)
        elif reads_large:
            axis[n] = found
            ends.add(n)
    if large & set(graph.outputs):
        raise _Refusal("it, or as much made of it, is a result")
    if SMALL * sum(map(_bytes, ends)) > _bytes(product):
        raise _Refusal("what is made of its rows is as large")
    users = graph.users()
    inside = large | ends | sums.keys()
    for n in reversed(order):
        if n in few and (large & set(n.args()) or inside & set(users[n])):
            inside.add(n)
    axis = {n: d for n, d in axis.items() if n in inside}
    extents = [n.spec.shape[d] for n, d in axis.items()]
    for n in inside:
        needs = sums[n] if n in sums else _needs(n, axis[n])
        extents += [x.spec.shape[d] for x, d in zip(n.inputs, needs, strict=True) if isinstance(x, Node) and d is not None]
    common = math.gcd(*extents)
    counts = [c for c in range(2, min(common, rows // ROWS) + 1) if common % c == 0]
    if not counts:
        raise _Refusal(f"its {product.spec.shape[lead]} rows do not divide into chunks")
    count = next((c for c in counts if _bytes(product) <= c * LARGE), counts[-1])
    others: set[Node] = set()
    for n in order:
        if n.op is not None and n not in late and not isinstance(n.op.lower, Contract):
            if 2 * n.spec.numel >= product.spec.numel or others & set(n.args()):
                others.add(n)
    return _Cut(axis, sums, others, count)


def _row_axis(n: Node, axis: dict[Node, int]) -> int | Axes:
    """The dimension of the result that holds the rows, or where the inputs hold those that it sums. Raises _Refusal."""

    def fits(needs: Axes) -> bool:
        return all(d == axis[x] for x, d in zip(n.inputs, needs, strict=True) if x in axis)

    assert n.op is not None
    why = _Refusal(f"{n.op.name} does not work row by row")
    for d, extent in enumerate(n.spec.shape):
        if extent > 1:
            try:
                if fits(_needs(n, d)):
                    return d
            except _Refusal as found:
                why = found
    sums = _sums(n)
    if sums is None or not fits(sums):
        raise why
    return sums


# ------------------------------------------------------------------------------------------------ the graph in chunks


def _replaced(graph: Graph, cut: _Cut) -> Graph:
    def make(b: Builder, values: dict[Node, Node]) -> Iterable[Node]:
        parts: dict[tuple[Node, int | None, int], Node] = {}

        def whole(n: Node) -> Node:
            if n not in values:
                b.source = n.source
                made = [part(n, cut.axis.get(n), c) for c in range(cut.count)]
                if n in cut.axis:
                    values[n] = b.node(OPS["cat"], tuple(made), (cut.axis[n],))
                else:
                    total = made[0]
                    for x in made[1:]:
                        total = b.node(OPS["add"], (total, x), ())
                    values[n] = total if total.spec.dtype is n.spec.dtype else b.node(OPS["cast"], (total,), (n.spec.dtype,))
            return values[n]

        def part(n: Node, axis: int | None, c: int) -> Node:
            """Chunk `c` of what runs along `axis`, or of what is summed."""
            if (n, axis, c) not in parts:
                parts[n, axis, c] = computed(n, axis, c)
            return parts[n, axis, c]

        def computed(n: Node, axis: int | None, c: int) -> Node:
            needs = cut.sums[n] if axis is None else needs_of(n, axis)
            if axis is not None and needs is None:
                step = n.spec.shape[axis] // cut.count
                return b.node(OPS["index_basic"], (whole(n),), ((*[ALL] * axis, ("s", c * step, (c + 1) * step, 1)),))
            op, attrs, inputs = n.op, n.attrs, list[Any]()
            assert op is not None and needs is not None
            for x, d in zip(n.inputs, needs, strict=True):
                inputs.append(x if not isinstance(x, Node) else whole(x) if d is None else part(x, d, c))
            if axis is None and op.name == "matmul":
                op = OPS["wide_matmul"]
            elif axis is None and n.spec.dtype.itemsize == 2:  # parts are rounded when they are added
                inputs = [b.node(OPS["cast"], (inputs[0],), (dtypes.float32,))]
            if axis is not None and "shape" in op.attrs:
                i = op.attrs.index("shape")
                shape = tuple([k // cut.count if d == axis else k for d, k in enumerate(attrs[i])])
                attrs = (*attrs[:i], shape, *attrs[i + 1 :])
            return b.node(op, tuple(inputs), attrs, n.source)

        def needs_of(n: Node, axis: int) -> Axes | None:
            """What a chunk is computed from; None: it is cut out of what is held."""
            if n in cut.axis:
                return _needs(n, axis)
            if n not in cut.others:
                return None
            try:
                needs = _needs(n, axis)
            except _Refusal:
                return None
            extents = [x.spec.shape[d] for x, d in zip(n.inputs, needs, strict=True) if isinstance(x, Node) and d is not None]
            return None if any(k % cut.count for k in extents) else needs

        for n in graph.nodes():
            if n not in values and n not in cut.axis and n not in cut.sums:
                assert n.op is not None
                inputs = tuple([whole(x) if isinstance(x, Node) else x for x in n.inputs])
                values[n] = b.node(n.op, inputs, n.attrs, n.source, n.spec)
        for n in graph.outputs:
            yield whole(n)

    return build(graph.name, graph, make)
