"""Opens composite operators into the operators that have loops: bodies are run on graph tensors, thin products become sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchlet import dtypes
from torchlet.compiler.graph import Builder, Graph, Node, rewrite
from torchlet.op import OPS, Composite, Contract
from torchlet.tensor import Tensor

__all__ = ["decompose"]


def decompose(graph: Graph, claimed: Callable[[Node], bool] = lambda n: False) -> Graph:
    """The graph without composite operators, but those that are claimed, and without products of which a dimension is 1."""

    def opens(n: Node) -> bool:
        return n.op is not None and (
            (isinstance(n.op.lower, Composite) and not claimed(n)) or (isinstance(n.op.lower, Contract) and _is_thin(n))
        )

    while any(opens(n) for n in graph.nodes()):
        graph = rewrite(graph, lambda b, n, inputs: _open(b, n, inputs) if opens(n) else None)
    return graph


def _open(b: Builder, n: Node, inputs: tuple[Any, ...]) -> Any:
    assert n.op is not None
    if not n.spec.numel:
        return b.node(OPS["full"], (0,), (n.spec.shape, n.spec.dtype))
    tensors = [b.tensor(x) if isinstance(x, Node) else x for x in inputs]
    with b:
        if isinstance(n.op.lower, Composite):
            out = n.op.lower.body(*tensors, **dict(zip(n.op.attrs, n.attrs, strict=True)))
        else:
            # int8 products that are kept in int32
            out = _thin_product(*(t if n.spec.dtype.itemsize <= t.dtype.itemsize else t.to(n.spec.dtype) for t in tensors))
        if isinstance(out, Tensor) and out._meta.dtype is not n.spec.dtype:
            out = out.to(n.spec.dtype)
    return b.unwrap(out)


def _is_thin(n: Node) -> bool:
    """A product with m, n or k of 1 moves as much memory as it computes: as a sum it fuses with what stands before and after it."""
    a, b = n.args()
    return 1 in (a.spec.shape[-2], a.spec.shape[-1], b.spec.shape[-1])


def _thin_product(a: Tensor, b: Tensor) -> Tensor:
    k = a.shape[-1]
    if a.dtype.itemsize == 2 and a.dtype.is_floating_point and k > 1:
        a, b = a.to(dtypes.float32), b.to(dtypes.float32)
    if k == 1:  # (…, m, 1) and (…, 1, n)
        return a * b
    if b.shape[-1] == 1:  # (…, m, k) and (…, 1, k) -> (…, m, 1)
        return _sum(a * b.transpose(-2, -1), -1)
    return _sum(a.transpose(-2, -1) * b, -2)  # (…, k, 1) and (…, k, n) -> (…, 1, n)


def _sum(x: Tensor, dim: int) -> Tensor:
    return OPS["sum"](x, dims=(x.ndim + dim,), keepdim=True)  # type: ignore[no-any-return]
