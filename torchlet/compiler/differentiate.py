"""The joint graph: forward outputs and, from gradients of some of them, gradients of some inputs; by the rules of the op table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torchlet.autograd import OpNode, walk_back
from torchlet.compiler.graph import Builder, Graph, Node, rewrite
from torchlet.op import OPS, STATE, Composite, Op
from torchlet.tensor import Storage, Tensor


class Taping(Builder):
    """A builder whose tensors are on the tape, so that the eager engine walks the graph; gradients get the user's lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[OpNode, str] = {}

    def visit(self, node: Any) -> None:
        """The engine is about to use a node of the tape."""
        self.source = self.lines.get(node, "")

    def tape(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...], source: str) -> Tensor:
        """One operation: a node, and its place on the tape."""
        needs = STATE.grad and any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs)
        if needs and not op.vjp and isinstance(op.lower, Composite):
            return op.lower.body(*inputs, **dict(zip(op.attrs, attrs, strict=True)))  # type: ignore[no-any-return]
        out = self.tensor(self.node(op, tuple([self.unwrap(x) for x in inputs]), attrs, source))
        out._store = Storage()
        if needs and op.vjp and out._meta.dtype.is_floating_point:
            out._meta = out._meta.replace(requires_grad=True)
            out._node = OpNode(op, inputs, attrs, out)
            self.lines[out._node] = source
        return out

    def step(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Dispatch."""
        return self.tape(op, inputs, attrs, self.source)

    def leaf(self, node: Node) -> Tensor:
        """A tensor that stands for a node and asks for its gradient."""
        t = self.tensor(node)
        t._store = Storage()
        t._meta = t._meta.replace(requires_grad=True)
        return t

    @contextmanager
    def taping(self) -> Iterator[None]:
        """For a block, operations go to this builder, with their places on the tape."""
        outer, outer_grad = STATE.run, STATE.grad
        STATE.run, STATE.grad = self, True
        try:
            yield
        finally:
            STATE.run, STATE.grad = outer, outer_grad

    def edge_of(self, t: Tensor) -> Tensor:
        """A tensor without a node is an input: a leaf."""
        return t


def differentiate(graph: Graph, of: Sequence[Node], wrt: Sequence[Node]) -> tuple[Graph, tuple[Node, ...], tuple[Node | None, ...]]:
    """(joint graph, its further inputs: one gradient for each of `of`, gradients of `wrt` among its outputs or None).

    The joint graph has the outputs of `graph` first, then the gradients that exist.
    """
    b = Taping()
    tensors: dict[Node, Tensor] = {}
    inputs = []
    for n in graph.inputs:
        new = b.input(n.spec, n.attrs[1], n.name, n.source)
        inputs.append(new)
        t = tensors[n] = b.leaf(new) if n in wrt else b.tensor(new)
        t._store = Storage()
    for n in graph.scalars:
        tensors[n] = b.tensor(b.scalar(n.spec.dtype, n.name))
        tensors[n]._store = Storage()
    scalars = tuple(b.unwrap(tensors[n]) for n in graph.scalars)
    grads_in = []
    needed = tuple(dict.fromkeys([*graph.outputs, *of]))
    everything = Graph(graph.name, graph.inputs, graph.scalars, needed, (None,) * len(needed))
    with b.taping():
        for n in everything.nodes():
            if n in tensors:
                continue
            assert n.op is not None
            tensors[n] = b.tape(n.op, tuple([tensors[x] if isinstance(x, Node) else x for x in n.inputs]), n.attrs, n.source)
        seeds = []
        for n in of:
            g = b.input(n.spec, tensors[n]._meta.strides, f"grad_{n.name}" if n.name else "grad")
            grads_in.append(g)
            t = tensors[n]
            if t._node is not None or t._meta.requires_grad:
                seeds.append(((t._node, 0) if t._node is not None else t, b.tensor(g)))
        found: dict[int, Tensor] = {}
        b.source = ""
        walk_back(seeds, True, False, found, [tensors[n] for n in wrt], b)
        b.source = ""
        grads_out: list[Node | None] = []
        for i in range(len(wrt)):
            gradient = found.get(i)
            if gradient is None:
                grads_out.append(None)
                continue
            node = b.unwrap(gradient)
            assert isinstance(node, Node)
            grads_out.append(node if node.kind == "op" else b.node(OPS["clone"], (node,), ()))
    outputs = tuple(b.unwrap(tensors[n]) for n in graph.outputs)
    present = tuple(g for g in grads_out if g is not None)
    joint = Graph(
        graph.name, tuple(inputs) + tuple(grads_in), scalars, outputs + present, graph.targets + (None,) * len(present),  # type: ignore[arg-type]
        graph.output_names + tuple(f"grad_{n.name}" if n.name else "" for n, g in zip(wrt, grads_out, strict=True) if g is not None),
    )
    return joint, tuple(grads_in), tuple(grads_out)




def drop_gradients(graph: Graph, gradients: Sequence[Node], missing: Sequence[Node]) -> Graph:
    """The backward graph where the inputs `missing`, some of its `gradients`, are not given: nothing flows from them.

    The graph is linear in its gradients, so what depends on missing ones alone is zero; it is not computed, as 0 times infinity would be.
    """
    sources: dict[Node, frozenset[Node]] = {}
    for n in graph.nodes():
        sources[n] = frozenset({n} if n in gradients else set().union(*[sources[x] for x in n.args()]))
    gone = frozenset(missing)

    def rule(b: Builder, n: Node, inputs: tuple[Any, ...]) -> Node | None:
        if not sources[n] or not sources[n] <= gone:
            return None
        return b.node(OPS["full"], (0.0,), (n.spec.shape, n.spec.dtype), n.source, n.spec)

    return rewrite(graph, rule)
