"""Which operators a kernel written by hand computes, on GPUs and on the CPU, and what that kernel is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchlet import index as ix
from torchlet.compiler.attention import PARTS, Attention, Operand
from torchlet.compiler.graph import Graph, Node
from torchlet.compiler.loops import Buffer, Handwritten
from torchlet.compiler.recurrent import recurrent
from torchlet.index import Axis, Index, of
from torchlet.op import Composite, Written
from torchlet.ops.attention import unfit

__all__ = ["claims", "group_key", "kernel_of", "refusals"]

_PART = {  # operator -> (kernel, the kernel's name of the result)
    "sdpa": ("forward", "out"), "sdpa_lse": ("forward", "lse"), "sdpa_dq": ("query_gradient", "dq"), "sdpa_dk": ("key_gradient", "dk"),
    "sdpa_dv": ("key_gradient", "dv"),
}  # fmt: skip
_SHORT = {"query": "q", "key": "k", "value": "v", "*mask": "mask"}


def claims(n: Node, gpu: bool) -> bool:
    """True for a composite that stays whole, because a kernel computes it."""
    return n.op is not None and n.op.name in _PART and isinstance(n.op.lower, Composite) and not _refusal(n, gpu)


def refusals(graph: Graph, gpu: bool) -> list[tuple[str, str, str]]:
    """(operator, why no kernel takes it, the user's line) for each attention that is opened."""
    found = [(n.op.name, _refusal(n, gpu), n.source) for n in graph.nodes() if n.op is not None and n.op.name in _PART]
    return [f for f in found if f[1]]


def group_key(n: Node, gpu: bool) -> tuple[Any, ...]:
    """Claimed nodes with equal keys are results of one kernel: on the CPU all gradients are, which share the scores."""
    if n.op is not None and isinstance(n.op.lower, Written):
        return (n,)
    part, operands, attrs = _call(n)
    return ("gradients" if part != "forward" and not gpu else part, *operands.items(), *attrs)


Place = Callable[[Node, tuple[Index, ...]], tuple[str, Index]]


def kernel_of(
    nodes: Sequence[Node], place: Place, homes: Mapping[Node, tuple[str, tuple[int, ...]]], number: Callable[[str], int]
) -> tuple[Handwritten, list[Buffer]]:
    """The kernel of the nodes, which are results of one, and memory that only the kernel uses.

    `place`: the buffer of a node's element and where it is in it; `homes`: buffers and strides of the results that are stored;
    `number`: the position of a buffer among the kernel's.
    """
    if nodes[0].op is not None and isinstance(nodes[0].op.lower, Written):
        return recurrent(nodes[0], place, homes[nodes[0]], number)
    return _attention(nodes, place, homes, number), []


def _attention(
    nodes: Sequence[Node], place: Place, homes: Mapping[Node, tuple[str, tuple[int, ...]]], number: Callable[[str], int]
) -> Attention:
    parts = dict.fromkeys(_call(n)[0] for n in nodes)
    part = next(iter(parts)) if len(parts) == 1 else "gradients"
    _, operands, (causal, scale, gqa) = _call(nodes[0])
    q, k, v = (operands[x].spec.shape for x in "qkv")
    found = []
    for name in PARTS[part][0]:
        if name not in operands:
            continue
        x = operands[name]
        axes = tuple([Axis(f"a{i}", n) for i, n in enumerate(x.spec.shape)])
        buffer, index = place(x, tuple([of(a) if a.extent > 1 else ix.ZERO for a in axes]))
        steps = [index.coefficient(a) if a.extent > 1 else 0 for a in axes]
        steps = [0] * (len(q) - len(steps) - (name in ("lse", "delta"))) + steps  # a mask may have fewer dimensions
        found.append(_operand(name, number(buffer), index.const, tuple(steps), len(q) - 2))
    for n in nodes:
        if n in homes:
            assert n.op is not None
            buffer, strides = homes[n]
            found.append(_operand(_PART[n.op.name][1], number(buffer), 0, strides, len(q) - 2))
    group = q[-3] // k[-3] if gqa else 1
    return Attention(part, q[:-2], q[-2], k[-2], q[-1], v[-1], group, causal, scale, tuple(found))


def _operand(name: str, buffer: int, start: int, strides: tuple[int, ...], stack: int) -> Operand:
    return Operand(name, buffer, start, strides[:stack], *strides[stack:])


def _call(n: Node) -> tuple[str, dict[str, Node], tuple[Any, ...]]:
    """(kernel, its operands, (is_causal, scale, enable_gqa))."""
    assert n.op is not None
    inputs: dict[str, Node] = {}
    for i, x in enumerate(n.inputs):
        name = n.op.inputs[min(i, len(n.op.inputs) - 1)]
        if name not in ("p", "seed", "offset"):
            assert isinstance(x, Node)
            inputs[_SHORT.get(name, name)] = x
    return _PART[n.op.name][0], inputs, n.attrs[:3]


def _refusal(n: Node, gpu: bool) -> str:
    assert n.op is not None
    _, operands, attrs = _call(n)
    drops = n.op.name == "sdpa" and n.attrs[3]
    specs = [operands[x].spec for x in "qkv"]
    mask = [operands["mask"].spec] if "mask" in operands else []
    if "g" in operands and operands["g"].spec.dtype is not specs[0].dtype:
        return "its gradient has another dtype"
    return unfit(specs[0], specs[1], specs[2], mask, attrs[2], drops, gpu)
