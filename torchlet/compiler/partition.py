"""Cut a joint graph into forward and backward: a minimum cut decides what is kept and what is computed again.

Min-cut rematerialisation (Chen et al. 2016; the formulation of PyTorch's AOTAutograd partitioner): the cheapest set of values,
by bytes, that separates the inputs from the gradients, where cheap operations may be repeated and costly ones may not.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from torchlet.compiler.graph import Builder, Graph, Node
from torchlet.op import Composite, Generate, Pointwise, Select, View
from torchlet.spec import contiguous_strides


def _cheap(n: Node) -> bool:
    """True where computing the value again costs about as much as reading it."""
    if n.op is None:
        return False
    low = n.op.lower
    if isinstance(low, Composite):
        return n.op.name == "dropout"
    return isinstance(low, Pointwise | Generate | View | Select)


def _bytes(n: Node) -> float:
    return float(max(n.spec.numel, 1) * n.spec.dtype.itemsize)


def _name(n: Node) -> str:
    return n.name or (n.op.name if n.op else n.kind)


def _cheapest_cut(
    joint: Graph, order: Sequence[Node], late: set[Node], wanted: set[Node], forward_outputs: int, barred: Collection[Node]
) -> tuple[Node, ...]:
    nx = importlib.import_module("networkx")  # half the time of loading the compiler; a whole step in one function needs no cut

    early = [n for n in order if n in wanted and n not in late]
    backward_outputs = joint.outputs[forward_outputs:]
    g = nx.DiGraph()
    source, sink = "source", "sink"
    g.add_nodes_from((source, sink))
    forward_anyway = set(joint.outputs[:forward_outputs])
    for n in early:
        if n.kind == "scalar":
            continue
        # a value that leaves the forward pass, or lives outside it, costs no extra write
        cost = _bytes(n) * (0.5 if n in forward_anyway or n.kind == "input" else 1.0)
        g.add_edge((n, 0), (n, 1), capacity=1e30 if n in barred else cost)
        if n.kind == "input" or not _cheap(n):
            g.add_edge(source, (n, 0), capacity=float("inf"))
        for x in n.args():
            if x.kind != "scalar":
                g.add_edge((x, 1), (n, 0), capacity=float("inf"))
    for n in order:
        if n in late and n in wanted:
            for x in n.args():
                if x not in late and x.kind != "scalar":
                    g.add_edge((x, 1), sink, capacity=float("inf"))
    for n in backward_outputs:
        if n not in late and n.kind != "scalar":
            g.add_edge((n, 1), sink, capacity=float("inf"))
    _, (reachable, _) = nx.minimum_cut(g, source, sink, flow_func=nx.algorithms.flow.boykov_kolmogorov)
    return tuple(n for n in early if n.kind != "scalar" and (n, 0) in reachable and (n, 1) not in reachable)


def partition(
    joint: Graph, grads_in: Sequence[Node], forward_outputs: int, known: Sequence[int] | None = None, barred: Collection[Node] = ()
) -> tuple[Graph, Graph, tuple[Node, ...]]:
    """(forward, backward, kept): forward gives the first outputs and then the kept values that it computes; backward takes
    the kept values, then `grads_in`. `kept` lists joint nodes in that order: inputs of the joint graph or computed nodes.

    `known`: the kept values by their positions in the graph, where the same graph was cut before at other sizes. `barred`: inputs
    that eager execution would not keep; whoever overwrites them before the backward pass must not be told that he may not.
    """
    seeds = set(grads_in)
    order = joint.nodes()
    late: set[Node] = set(seeds)  # needs a gradient to be computed
    for n in order:
        if any(x in late for x in n.args()):
            late.add(n)
    backward_outputs = joint.outputs[forward_outputs:]
    wanted: set[Node] = set()  # reached from the gradients backwards
    stack = list(backward_outputs)
    while stack:
        n = stack.pop()
        if n not in wanted:
            wanted.add(n)
            stack.extend(n.args())
    kept = _cheapest_cut(joint, order, late, wanted, forward_outputs, barred) if known is None else tuple(order[i] for i in known)

    forward_inputs = tuple(n for n in joint.inputs if n not in seeds)
    computed = tuple(n for n in kept if n.kind != "input")
    forward = replace(
        joint, name=f"{joint.name}_forward", inputs=forward_inputs, outputs=joint.outputs[:forward_outputs] + computed,
        targets=joint.targets[:forward_outputs] + (None,) * len(computed),
        output_names=joint.output_names[:forward_outputs] + tuple(f"kept_{_name(n)}" for n in computed),
    )
    b = Builder()
    new: dict[Node, Node] = {}
    ins = []
    for n in kept:
        dense = n.attrs[1] if n.kind == "input" else contiguous_strides(n.spec.shape)
        new[n] = b.input(n.spec, dense, n.name if n.kind == "input" else f"kept_{_name(n)}", n.source)
        ins.append(new[n])
    for n in grads_in:
        new[n] = b.input(n.spec, n.attrs[1], n.name)
        ins.append(new[n])
    scalars = []
    for n in joint.scalars:
        new[n] = b.scalar(n.spec.dtype, n.name)
        scalars.append(new[n])

    stack2: list[tuple[Node, bool]] = [(n, False) for n in reversed(backward_outputs)]
    while stack2:
        n, ready = stack2.pop()
        if n in new:
            continue
        if ready:
            assert n.op is not None
            new[n] = b.node(n.op, tuple([new[x] if isinstance(x, Node) else x for x in n.inputs]), n.attrs, n.source, n.spec)
        else:
            stack2.append((n, True))
            stack2.extend((x, False) for x in n.args())
    backward = Graph(
        f"{joint.name}_backward", tuple(ins), tuple(scalars), tuple(new[n] for n in backward_outputs), (None,) * len(backward_outputs),
        joint.output_names[forward_outputs:],
    )
    return forward, backward, kept
