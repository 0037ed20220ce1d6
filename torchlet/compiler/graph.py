"""Graph: immutable nodes in order, made by a value-numbering builder; verify() and printing as Python.

A Graph is a pure function of its inputs and scalars. Effects are values here: an in-place write is an output with a target.

Node kinds
    input     attrs = (position, strides in elements): memory from outside, dense or strided
    scalar    attrs = (position,): a Python number of the call; a weak 0-d value of float64, int64 or bool
    op        a table operator; inputs are Nodes or Python numbers (constants)
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torchlet import dtypes
from torchlet.errors import CompileError
from torchlet.op import STATE, Op, as_spec
from torchlet.spec import Spec
from torchlet.tensor import Meta, Tensor, new

Number = int | float | bool


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value. Equality is identity: the builder makes equal values the same node."""

    kind: str
    op: Op | None
    inputs: tuple[Node | Number, ...]
    attrs: tuple[Any, ...]
    spec: Spec
    source: str = ""  # the user's line, "file.py:12"
    name: str = ""  # the user's name ("fc1.weight") or empty

    def args(self) -> tuple[Node, ...]:
        """The inputs that are nodes."""
        return tuple([x for x in self.inputs if isinstance(x, Node)])

    def __repr__(self) -> str:
        return f"<{self.name or (self.op.name if self.op else self.kind)} {self.spec}>"


@dataclass(frozen=True, slots=True)
class Graph:
    """`outputs = f(inputs, scalars)`. Output k is written into the memory of input `targets[k]`, or into fresh memory (None)."""

    name: str
    inputs: tuple[Node, ...]
    scalars: tuple[Node, ...]
    outputs: tuple[Node, ...]
    targets: tuple[int | None, ...]
    output_names: tuple[str, ...] = ()

    def nodes(self) -> list[Node]:
        """Every node the outputs need, makers before users (inputs and scalars included where used)."""
        order: list[Node] = []
        seen: set[Node] = set()
        stack: list[tuple[Node, bool]] = [(n, False) for n in reversed(self.outputs)]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((x, False) for x in reversed(node.inputs) if isinstance(x, Node))
        return order

    def users(self) -> dict[Node, list[Node]]:
        """Who reads each node (a node that reads twice is listed twice)."""
        out: dict[Node, list[Node]] = {n: [] for n in self.nodes()}
        for n in list(out):
            for x in n.args():
                out[x].append(n)
        return out

    def __str__(self) -> str:
        return to_text(self)


class Builder:
    """Makes nodes, each value once. Also a dispatch target (`with builder:`): rules and bodies in torchlet operations build graph."""

    writes_pending = False
    walking = 0

    def __init__(self) -> None:
        self.table: dict[tuple[Any, ...], Node] = {}
        self.count = {"input": 0, "scalar": 0}
        self.source = ""

    def input(self, spec: Spec, strides: tuple[int, ...], name: str = "", source: str = "") -> Node:
        """A further input."""
        position = self._next("input")
        node = self.table["input", position] = Node("input", None, (), (position, strides), spec, source, name)
        return node

    def scalar(self, dtype: dtypes.dtype, name: str = "") -> Node:
        """A further scalar (float64, int64 or bool)."""
        position = self._next("scalar")
        node = self.table["scalar", position] = Node("scalar", None, (), (position,), Spec((), dtype, weak=True), "", name)
        return node

    def _next(self, kind: str) -> int:
        self.count[kind] += 1
        return self.count[kind] - 1

    @staticmethod
    def key(op: Op, inputs: tuple[Node | Number, ...], attrs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Nodes with equal keys are equal."""
        return (op, tuple([x if isinstance(x, Node) else (x.__class__, repr(x)) for x in inputs]), attrs)

    def node(self, op: Op, inputs: tuple[Node | Number, ...], attrs: tuple[Any, ...], source: str = "", spec: Spec | None = None) -> Node:
        """The one node with these parts."""
        key = self.key(op, inputs, attrs)
        found = self.table.get(key)
        if found is None:
            if spec is None:
                spec = op.spec(*[x.spec if isinstance(x, Node) else as_spec(x) for x in inputs], *attrs)
            found = self.table[key] = Node("op", op, inputs, attrs, spec, source or self.source)
        return found

    # -------------------------------------------------------------------------------------------- as a dispatch target

    def __enter__(self) -> Builder:
        self.outer, self.outer_grad, self.outer_casts = STATE.run, STATE.grad, STATE.autocast
        STATE.run, STATE.grad, STATE.autocast = self, False, None
        return self

    def __exit__(self, *_: object) -> None:
        STATE.run, STATE.grad, STATE.autocast = self.outer, self.outer_grad, self.outer_casts

    def tensor(self, node: Node) -> Tensor:
        """A tensor that stands for a node while a rule or a body runs."""
        t = new(Tensor)
        s = node.spec
        t._meta = Meta.get(s.shape, s.dtype, None, False, False, s.device, s.weak)
        t._run, t._step = self, node
        return t

    def unwrap(self, x: Any) -> Node | Number:
        """The node a tensor stands for; numbers as they are."""
        if not isinstance(x, Tensor):
            return x  # type: ignore[no-any-return]
        if x._run is not self:
            raise CompileError("a rule or a body used a tensor that is not one of its inputs")
        return x._step  # type: ignore[no-any-return]

    def step(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Dispatch: a node instead of a computation."""
        return self.tensor(self.node(op, tuple([self.unwrap(x) for x in inputs]), attrs))

    def event(self, kind: str, value: Any) -> None:
        """Grad mode does not matter inside a graph."""

    def force(self, t: Tensor) -> None:
        """A value was asked for while a graph is built."""
        raise CompileError("a rule or a body asked for the value of a tensor")


def build(name: str, like: Graph, make: Callable[[Builder, dict[Node, Node]], Iterable[Node]]) -> Graph:
    """A new graph with the inputs and scalars of `like`; `make(builder, map of old inputs to new)` gives the outputs."""
    b = Builder()
    new_of: dict[Node, Node] = {}
    for n in like.inputs:
        new_of[n] = b.input(n.spec, n.attrs[1], n.name, n.source)
    for n in like.scalars:
        new_of[n] = b.scalar(n.spec.dtype, n.name)
    outputs = tuple(make(b, new_of))
    return replace(
        like, name=name, inputs=tuple(new_of[n] for n in like.inputs), scalars=tuple(new_of[n] for n in like.scalars), outputs=outputs
    )


def rewrite(graph: Graph, rule: Callable[[Builder, Node, tuple[Node | Number, ...]], Node | Number | None]) -> Graph:
    """Rebuild from the inputs on; `rule(builder, old node, new inputs)` gives a replacement or None to keep the node."""

    def make(b: Builder, new_of: dict[Node, Node]) -> Iterable[Node]:
        values: dict[Node, Node | Number] = dict(new_of)
        for n in graph.nodes():
            if n in values:
                continue
            assert n.op is not None
            inputs = tuple([values[x] if isinstance(x, Node) else x for x in n.inputs])
            b.source = n.source
            replaced = rule(b, n, inputs)
            values[n] = b.node(n.op, inputs, n.attrs, n.source, n.spec) if replaced is None else replaced
        for o in graph.outputs:
            out = values[o]
            assert isinstance(out, Node), "a graph output became a number"
            yield out

    return build(graph.name, graph, make)


def verify(graph: Graph) -> None:
    """Raise CompileError if a node's spec is not what its operator's rule says, or an input does not belong to the graph."""
    known = set(graph.inputs) | set(graph.scalars)
    for n in graph.nodes():
        if n.kind != "op":
            if n not in known:
                raise CompileError(f"graph {graph.name}: {n} is used but not among the inputs")
            continue
        assert n.op is not None
        expected = n.op.spec(*[x.spec if isinstance(x, Node) else as_spec(x) for x in n.inputs], *n.attrs)
        if (expected.shape, expected.dtype) != (n.spec.shape, n.spec.dtype):
            raise CompileError(f"graph {graph.name}: {n.op.name} is marked {n.spec}; its rule says {expected} ({n.source})")
    if len(graph.outputs) != len(graph.targets):
        raise CompileError(f"graph {graph.name}: {len(graph.outputs)} outputs, {len(graph.targets)} targets")


def identifier(text: str) -> str:
    """The text as a name that Python accepts."""
    text = "".join(c if c.isalnum() or c == "_" else "_" for c in text)
    return f"_{text}" if not text or text[0].isdigit() or keyword.iskeyword(text) else text


@dataclass
class Names:
    """Readable, unique names of the nodes of one graph."""

    table: dict[Node, str] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of_graph(graph: Graph) -> Names:
        """Names where inputs, scalars and the outputs that have a name come first."""
        names = Names()
        for n in (*graph.inputs, *graph.scalars):
            names.of(n)
        known = {n.name for n in graph.inputs}
        for n, name in zip(graph.outputs, graph.output_names, strict=False):
            if name and n not in names.table:
                names.of(n, f"new_{name}" if name in known else name)
        return names

    def of(self, node: Node, wish: str = "") -> str:
        """The user's name as an identifier, or what the node does with a number; `wish` where there is no name yet."""
        found = self.table.get(node)
        if found is None:
            base = wish or node.name or (node.op.name if node.op else f"{node.kind}{node.attrs[0]}")
            base = identifier(base)
            count = self.taken.get(base, 0)
            found = base if count == 0 else f"{base}_{count}"
            while found in self.taken:  # "x_1" may be someone's own name
                count += 1
                found = f"{base}_{count}"
            self.taken[base] = count + 1
            self.taken.setdefault(found, 1)
            self.table[node] = found
        return found


def to_text(graph: Graph) -> str:
    """The graph as a Python function with specs and the user's lines as comments."""
    names = Names.of_graph(graph)
    head = ", ".join(f"{names.of(n)}: '{n.spec}'" for n in graph.inputs + graph.scalars)
    lines = [f"def {identifier(graph.name)}({head}):"]
    for n in graph.nodes():
        if n.kind != "op":
            continue
        assert n.op is not None
        parts = [names.of(x) if isinstance(x, Node) else repr(x) for x in n.inputs]
        parts += [f"{k}={_attr(v)}" for k, v in zip(n.op.attrs, n.attrs, strict=False)]
        lines.append(
            f"    {names.of(n)} = ops.{n.op.name}({', '.join(parts)})".ljust(72) + f"  # {n.spec}" + (f"  {n.source}" if n.source else "")
        )
    outs = []
    for o, target in zip(graph.outputs, graph.targets, strict=True):
        outs.append(names.of(o) if target is None else f"{names.of(o)}  # written into {names.of(graph.inputs[target])}")
    lines.append("    return (" + "".join(f"\n        {o.replace('  #', ',  #', 1) if '  #' in o else o + ','}" for o in outs) + "\n    )")
    return "\n".join(lines) + "\n"


def _attr(value: Any) -> str:
    return f"torch.{value.name}" if isinstance(value, dtypes.dtype) else repr(value)
