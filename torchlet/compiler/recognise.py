"""Attention written out by hand, softmax(q @ kᵀ * scale + mask) @ v, becomes the operator that has a kernel, and so do its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.autograd import walk_back
from torchlet.compiler.differentiate import Taping
from torchlet.compiler.graph import Builder, Graph, Node, Number, build, rewrite
from torchlet.compiler.interpret import interpret
from torchlet.op import OPS, Op, apply
from torchlet.ops.attention import from_lse
from torchlet.ops.pointwise import where
from torchlet.tensor import Storage, Tensor

__all__ = ["recognise"]


def recognise(graph: Graph, claims: Callable[[Node], bool], refused: list[tuple[str, str, str]] | None = None) -> Graph:
    """The graph with attention as one operator wherever `claims` takes it and nothing else needs the weights.

    Gradients are found without patterns of their own: the rules of the table are applied once more to the written form. As equal values
    are one node, what they make are the nodes of the graph's backward pass, which was made by the same rules. A row that may look at
    nothing stays NaN, as written. `refused` collects (what, why it is left, the user's line).
    """
    if not any(_is(n, "softmax") for n in graph.nodes()):
        return graph
    same = rewrite(graph, lambda b, n, inputs: inputs[0] if _is(n, "detach") else None)  # of this graph no gradients are taken
    b, users, found = _Table(same), same.users(), []
    refused = [] if refused is None else refused
    for n in users:
        try:
            m = _match(n)
            if m is not None:
                _replace(b, m, users, claims)
                found.append(m)
        except _Refusal as why:
            refused.append((_NAME, str(why), n.source))
    while True:
        new = {old: n for m in found for old, n in m.new.items()}
        alive = set(_order(same.outputs, new))
        if not any(m.weights in alive for m in found):
            break
        refused.extend((_NAME, "its weights or scores are used elsewhere", m.out.source) for m in found if m.weights in alive)
        found = [m for m in found if m.weights not in alive]
    return _substitute(same, new) if found else graph


_NAME = "attention by hand"


class _Refusal(Exception):
    """Why something that looks like attention is left as it is."""


@dataclass
class _Written:
    """One attention as it is written: what it reads, and what takes the place of the graph's nodes."""

    out: Node
    value: Node
    weights: Node  # the result of the softmax
    chain: list[Node] = field(default_factory=list)  # from the product of query and key to `out`
    query: Any = None
    turned: Any = None  # the key with its last two dimensions exchanged
    scales: list[tuple[Op, Node | Number]] = field(default_factory=list)
    allowed: list[tuple[Node, bool]] = field(default_factory=list)  # (mask, True where it is true for what is allowed)
    added: list[Node] = field(default_factory=list)
    new: dict[Node, Node] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ finding it

_DEPTH = 8  # steps from the softmax down to the scores; what people write has three


def _is(n: Node | Number, name: str) -> bool:
    return isinstance(n, Node) and n.op is not None and n.op.name == name


def _match(out: Node) -> _Written | None:
    """The attention that a product ends, if it is one."""
    if not _is(out, "matmul"):
        return None
    weights, value = out.args()
    above = [out]
    while any(_is(weights, name) for name in ("cast", "clone", "dropout")):
        above.append(weights)
        weights = weights.args()[0]
    m = _Written(out, value, weights)
    if not _is(weights, "softmax") or weights.attrs[0] != (weights.spec.ndim - 1,) or not _descend(m, weights.inputs[0]):
        return None
    m.chain += [weights, *reversed(above)]
    if any(_is(n, "dropout") for n in above):
        raise _Refusal("its weights are dropped at random")
    if weights.spec.dtype.itemsize > 4:
        raise _Refusal(f"its softmax is computed in {weights.spec.dtype.name}")
    return m


def _descend(m: _Written, n: Node | Number, depth: int = _DEPTH) -> bool:
    """Go down from the softmax to the scores, noting masks and scales; False where no product of two matrices is found."""
    if not isinstance(n, Node) or n.op is None or n.spec.shape != m.weights.spec.shape or depth == 0:
        return False
    step = _STEPS.get(n.op.name)
    if step is None or not step(m, n, depth - 1):
        return False
    m.chain.append(n)
    return True


def _product(m: _Written, n: Node, depth: int) -> bool:
    m.query, m.turned = n.args()
    return True


def _same(m: _Written, n: Node, depth: int) -> bool:
    (x,) = n.args()
    if not _descend(m, x, depth):
        return False
    if not x.spec.dtype.is_floating_point or x.spec.dtype.itemsize > n.spec.dtype.itemsize:
        raise _Refusal(f"its scores are rounded to {n.spec.dtype.name}")
    return True


def _scaled(m: _Written, n: Node, depth: int) -> bool:
    assert n.op is not None
    for x, number in (n.inputs, n.inputs[::-1])[: 2 if n.op.name == "mul" else 1]:
        if _descend(m, x, depth):
            if m.allowed or m.added:
                raise _Refusal("it is scaled after its mask")
            if isinstance(number, Node) and number.spec.numel != 1:
                raise _Refusal(f"its scale has the shape {list(number.spec.shape)}")
            m.scales.append((n.op, number))
            return True
    return False


def _filled(m: _Written, n: Node, depth: int) -> bool:
    condition, *sides = n.inputs
    for i, fill in enumerate(sides):
        if _descend(m, sides[1 - i], depth):
            if fill != -math.inf:
                raise _Refusal(f"what its mask forbids gets {'a number of the call' if isinstance(fill, Node) else fill}, not -inf")
            assert isinstance(condition, Node)
            m.allowed.append((condition, i == 1))
            return True
    return False


def _added(m: _Written, n: Node, depth: int) -> bool:
    for x, mask in (n.inputs, n.inputs[::-1]):
        if isinstance(mask, Node) and not mask.spec.weak and _descend(m, x, depth):
            m.added.append(mask)
            return True
    return False


_STEPS = {"matmul": _product, "cast": _same, "clone": _same, "mul": _scaled, "div": _scaled, "where": _filled, "add": _added}


# ------------------------------------------------------------------------------------------------ its gradients in the graph


class _Table(Taping):
    """A builder that knows the nodes of a graph already."""

    def __init__(self, graph: Graph):
        super().__init__()
        for n in graph.nodes():
            if n.op is not None:
                self.table[self.key(n.op, n.inputs, n.attrs)] = n

    def tensor(self, node: Node) -> Tensor:
        """Every tensor may be kept by a rule, which looks at its storage."""
        t = super().tensor(node)
        t._store = Storage()
        return t


def _incoming(m: _Written, users: Mapping[Node, Sequence[Node]]) -> list[Node]:
    """What may be a gradient of the result: it is multiplied by the values, transposed, and by the transposed weights."""
    weights = m.out.inputs[0]
    found = []
    for x, at in ((m.value, 1), (weights, 0)):
        assert isinstance(x, Node)
        for turned in filter(_is_turned, users[x]):
            found += [u.args()[1 - at] for u in users[turned] if _is(u, "matmul") and u.inputs[at] is turned]
    return [g for g in dict.fromkeys(found) if (g.spec.shape, g.spec.dtype) == (m.out.spec.shape, m.out.spec.dtype)]


def _written_gradients(b: _Table, m: _Written, g: Node) -> list[Node]:
    """The gradients of query, transposed key and value in the written form, by the rules of the table."""
    leaves = [b.leaf(n) for n in (m.query, m.turned, m.value)]
    made: dict[Node, Tensor] = {}
    with b.taping():
        for n in m.chain:
            assert n.op is not None
            inputs = [made[x] if x in made else b.tensor(x) if isinstance(x, Node) else x for x in n.inputs]
            if n is m.chain[0]:
                inputs = list(leaves[:2])
            elif n is m.out:
                inputs[1] = leaves[2]
            made[n] = b.tape(n.op, tuple(inputs), n.attrs, n.source)
        found: dict[int, Tensor] = {}
        edge = made[m.out]._node
        assert edge is not None
        walk_back([((edge, 0), b.tensor(g))], True, False, found, leaves, b)
    return [_node(b, found[i]) for i in range(3)]


# ------------------------------------------------------------------------------------------------ what takes its place


def _replace(b: _Table, m: _Written, users: Mapping[Node, Sequence[Node]], claims: Callable[[Node], bool]) -> None:
    """Fill `m.new`. Raises _Refusal where no kernel takes it."""
    wanted = []
    for g in _incoming(m, users):
        written = [n if n in users else None for n in _written_gradients(b, m, g)]
        if any(written):
            wanted.append((g, written))
    b.source = m.out.source
    with b:
        query, key, value = b.tensor(m.query), b.tensor(_turn(b, m.turned)), b.tensor(m.value)
        factor, tensors = 1.0, []
        for op, s in m.scales:
            if isinstance(s, Node):  # a number of the call, or a tensor: it goes to the query
                tensors.append((op, b.tensor(s)))
                query = apply(op, (query, b.tensor(s)))
            else:
                factor = factor * s if op.name == "mul" else factor / s
        if query.dtype is not value.dtype or query.shape != m.query.spec.shape:
            raise _Refusal("its scale changes its dtype or shape")
        mask, causal = _mask(b, m)
        attrs = (causal, float(factor), False)
        out = apply(OPS["sdpa"], (query, key, value, 0.0, 0, 0, *mask), (*attrs, False))
        if not claims(_node(b, out)):
            raise _Refusal("no kernel takes it")
        row_alive = all_alive = None
        if mask:  # a row that may look at nothing: the operator gives zeros, the written form NaN
            lse = apply(OPS["sdpa_lse"], (query, key, value, *mask), attrs)
            row_alive = lse.unsqueeze(-1) != -math.inf
            all_alive = lse.amin(-1, keepdim=True).unsqueeze(-1) != -math.inf
        m.new[m.out] = _node(b, _or_nan(out, row_alive))
        for g, written in wanted:
            given = b.tensor(g)
            if m.allowed and row_alive is not None:  # what is filled passes no gradient on, not even NaN
                given = where(row_alive, given, 0.0)
            for old, name, alive in zip(written, ("dq", "dk", "dv"), (row_alive, all_alive, all_alive), strict=True):
                if old is None:
                    continue
                grad = from_lse(OPS[f"sdpa_{name}"], given, out, query, key, value, mask, *attrs)
                if not claims(_node(b, grad)):
                    raise _Refusal("no kernel takes its gradients")
                for op, scale in tensors if name == "dq" else ():
                    grad = apply(op, (grad, scale))
                if name == "dv" or m.added:
                    grad = _or_nan(grad, alive)
                m.new[old] = _node(b, grad.transpose(-2, -1) if name == "dk" else grad)


def _node(b: Builder, t: Tensor) -> Node:
    n = b.unwrap(t)
    assert isinstance(n, Node)
    return n


def _or_nan(x: Tensor, alive: Tensor | None) -> Tensor:
    return x if alive is None else where(alive, x, math.nan)


def _is_turned(n: Node) -> bool:
    """True for the exchange of the last two dimensions."""
    last = n.spec.ndim - 1
    return _is(n, "permute") and n.attrs[0] == (*range(last - 1), last, last - 1)


def _turn(b: Builder, n: Node) -> Node:
    return n.args()[0] if _is_turned(n) else _node(b, b.tensor(n).transpose(-2, -1))


def _mask(b: _Table, m: _Written) -> tuple[list[Tensor], bool]:
    """(the mask as the operator takes it, True where it is none but the triangle of causal attention)."""
    rows, columns = m.weights.spec.shape[-2:]
    if m.added:
        if m.allowed or len(m.added) > 1:
            raise _Refusal("it has several masks, not all of them boolean")
        with np.errstate(divide="ignore"):
            triangle = np.log(np.tri(rows, columns))
        return ([], True) if _equals(m.added[0], triangle) else ([b.tensor(m.added[0])], False)
    masks = []
    for condition, allows in m.allowed:
        x = b.tensor(condition)
        x = OPS["ne"](x, 0) if x.dtype is not dtypes.bool_ else x
        masks.append(x if allows else OPS["logical_not"](x))
    if masks and all(_equals(_node(b, x), np.tri(rows, columns, dtype=bool)) for x in masks):
        return [], True
    while len(masks) > 1:
        masks[:2] = [OPS["logical_and"](*masks[:2])]
    return masks, False


def _equals(n: Node, expected: np.ndarray[Any, Any]) -> bool:
    """True where the graph itself says what the value is, and it is this."""
    if n.spec.shape[-2:] != expected.shape or n.spec.numel != expected.size:
        return False
    alone = Graph("mask", (), (), (n,), (None,))
    return all(x.op is not None for x in alone.nodes()) and bool((interpret(alone, ())[0] == expected).all())


def _order(outputs: Iterable[Node], new: Mapping[Node, Node]) -> list[Node]:
    """What the outputs need where nodes are replaced by others, makers before users; replaced nodes are not among it."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(n, False) for n in outputs]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif (node := new.get(node, node)) not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((x, False) for x in node.args())
    return order


def _substitute(graph: Graph, new: Mapping[Node, Node]) -> Graph:
    def make(b: Builder, values: dict[Node, Node]) -> Iterable[Node]:
        for n in _order(graph.outputs, new):
            if n not in values:
                assert n.op is not None
                inputs = tuple([values[new.get(x, x)] if isinstance(x, Node) else x for x in n.inputs])
                values[n] = b.node(n.op, inputs, n.attrs, n.source, n.spec)
        return [values[new.get(n, n)] for n in graph.outputs]

    return build(graph.name, graph, make)
