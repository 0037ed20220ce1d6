"""Removes what changes nothing: copies, casts and views that are no-ops, arithmetic with neutral numbers, chains of views, double signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.compiler.graph import Builder, Graph, Node, build
from torchlet.compiler.interpret import compute_dtype, fold
from torchlet.dtypes import dtype
from torchlet.op import OPS, Op, Pointwise, Reduce, as_spec
from torchlet.spec import Spec

__all__ = ["simplify"]

Value = Node | int | float | bool
Rule = Callable[[Builder, Node], Value | None]


def simplify(graph: Graph) -> Graph:
    """The graph after all rules, applied until none fits. Outputs keep shapes and dtypes; results are equal bit by bit, −0.0 included."""

    def make(b: Builder, new_of: dict[Node, Node]) -> Iterable[Node]:
        values: dict[Node, Value] = dict(new_of)
        for n in graph.nodes():
            if n not in values:
                assert n.op is not None
                b.source = n.source
                values[n] = _node(b, n.op, tuple([values[x] if isinstance(x, Node) else x for x in n.inputs]), n.attrs)
        for old in graph.outputs:
            v = values[old]
            if not isinstance(v, Node):
                v = b.node(OPS["full"], (v,), (old.spec.shape, old.spec.dtype))
            yield v

    return build(graph.name, graph, make)


def _node(b: Builder, op: Op, inputs: tuple[Value, ...], attrs: tuple[Any, ...]) -> Value:
    """The simplest value equal to this node."""
    node = b.node(op, _without_fills(op, inputs, attrs), attrs)
    while True:
        for rule in _RULES.get(node.op.name, ()) if node.op else ():
            found = rule(b, node)
            if found is not None and found is not node:
                break
        else:
            return _number(b, node)
        if not isinstance(found, Node):
            return found
        node = found


def _number(b: Builder, n: Node) -> Value:
    """A pointwise operator on numbers is a number, on filled tensors a filled tensor."""
    if n.op is None or not isinstance(n.op.lower, Pointwise) or n.op.name == "cast":
        return n
    values = [filled(x) if isinstance(x, Node) else x for x in n.inputs]
    if any(v is None or isinstance(v, Node) for v in values):
        return n
    number = fold(n.op, values, n.attrs, n.spec, _specs(n.inputs))  # type: ignore[arg-type]
    if number is None or (n.spec.weak and not n.args()):
        return n if number is None else number
    return b.node(OPS["full"], (_as(number, n.spec.dtype),), (n.spec.shape, n.spec.dtype))


# ------------------------------------------------------------------------------------------------ filled tensors are numbers


def filled(n: Value) -> Value | None:
    """The number or scalar that every element of the node is, if it is made that way."""
    if not isinstance(n, Node) or n.op is None or n.op.name != "full":
        return None
    (value,) = n.inputs
    if isinstance(value, Node):
        return value if value.spec.dtype is n.spec.dtype else None
    return _as(value, n.spec.dtype)


def _as(value: int | float | bool, d: dtype) -> int | float | bool:
    """The number as an element of dtype `d`."""
    with np.errstate(all="ignore"):
        stored = (np.array(value, np.int64) if isinstance(value, int) and d.category == 1 else np.array(value)).astype(d.np)
    return float(stored) if d.is_floating_point else bool(stored) if d is dtypes.bool_ else int(stored)


def _specs(inputs: Iterable[Value]) -> list[Spec]:
    return [x.spec if isinstance(x, Node) else as_spec(x) for x in inputs]


def _without_fills(op: Op, inputs: tuple[Value, ...], attrs: tuple[Any, ...]) -> tuple[Value, ...]:
    """Filled tensors among a pointwise operator's inputs become numbers where shape, dtype and the dtype of the computation stay."""
    if not isinstance(op.lower, Pointwise) or op.lower.result == "cast" or len(inputs) == 1:
        return inputs
    specs = _specs(inputs)
    before = op.spec(*specs, *attrs)
    for i, x in enumerate(inputs):
        value = filled(x)
        if value is None:
            continue
        trial = (*inputs[:i], value, *inputs[i + 1 :])
        if not any(isinstance(v, Node) and not v.spec.weak for v in trial):
            continue
        new = _specs(trial)
        after = op.spec(*new, *attrs)
        computed = compute_dtype(new, after, op.lower) is compute_dtype(specs, before, op.lower)
        if computed and (after.shape, after.dtype) == (before.shape, before.dtype):
            inputs, specs = trial, new
    return inputs


# ------------------------------------------------------------------------------------------------ rules

_RULES: dict[str, list[Rule]] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        for name in names:
            _RULES.setdefault(name, []).append(rule)
        return rule

    return enter


def _only(n: Node) -> Node:
    x = n.inputs[0]
    assert isinstance(x, Node)
    return x


def _same(x: Value, n: Node) -> Node | None:
    """`x` if it can stand for `n`."""
    return x if isinstance(x, Node) and (x.spec.shape, x.spec.dtype, x.spec.weak) == (n.spec.shape, n.spec.dtype, n.spec.weak) else None


def _is(x: Value, number: float) -> bool:
    return not isinstance(x, Node) and not isinstance(x, bool) and x == number


@_rule("clone", "clone_in_order", "detach", "alias")
def _copies_are_their_source(b: Builder, n: Node) -> Value | None:
    return n.inputs[0]


@_rule("mul")
def _times_one(b: Builder, n: Node) -> Value | None:
    x, y = n.inputs
    return _same(x, n) if _is(y, 1) else _same(y, n) if _is(x, 1) else None


@_rule("add")
def _plus_zero(b: Builder, n: Node) -> Value | None:
    """x + 0.0 is not x where x is −0.0; x + (−0.0) always is."""
    for x, y in (n.inputs, n.inputs[::-1]):
        if _is(y, 0) and (not n.spec.dtype.is_floating_point or math.copysign(1.0, y) < 0):  # type: ignore[arg-type]
            return _same(x, n)
    return None


@_rule("sub")
def _minus_zero(b: Builder, n: Node) -> Value | None:
    x, y = n.inputs
    return _same(x, n) if _is(y, 0) and (not n.spec.dtype.is_floating_point or math.copysign(1.0, y) > 0) else None  # type: ignore[arg-type]


@_rule("div")
def _over_one(b: Builder, n: Node) -> Value | None:
    x, y = n.inputs
    return _same(x, n) if _is(y, 1) else None


@_rule("pow")
def _to_the_first(b: Builder, n: Node) -> Value | None:
    x, y = n.inputs
    return _same(x, n) if _is(y, 1) else None


@_rule("pow_number")
def _to_the_first_number(b: Builder, n: Node) -> Value | None:
    return _same(n.inputs[0], n) if n.attrs[0] == 1 else None


@_rule("neg", "logical_not")
def _twice_is_never(b: Builder, n: Node) -> Value | None:
    x = n.inputs[0]
    return _same(x.inputs[0], n) if isinstance(x, Node) and x.op is n.op else None


@_rule("where")
def _either_way(b: Builder, n: Node) -> Value | None:
    condition, x, y = n.inputs
    if isinstance(condition, bool):
        return _same(x if condition else y, n)
    return _same(x, n) if x is y else None


def _holds(wide: dtype, narrow: dtype) -> bool:
    """True when every value of `narrow` is also one of `wide`."""
    if narrow is dtypes.bool_ or wide is narrow:
        return True
    return bool(np.can_cast(narrow.np, wide.np, "safe")) or (narrow is dtypes.bfloat16 and wide in (dtypes.float32, dtypes.float64))


@_rule("cast")
def _cast_of_cast(b: Builder, n: Node) -> Value | None:
    x = _only(n)
    if x.spec.dtype is n.spec.dtype and not x.spec.weak:
        return x
    assert n.op is not None
    if x.op is n.op and _holds(x.spec.dtype, (inner := _only(x)).spec.dtype) and not inner.spec.weak:
        return inner if inner.spec.dtype is n.spec.dtype else b.node(n.op, (inner,), n.attrs)
    return None


@_rule("cast", "view", "expand", "permute", "index_basic")
def _of_a_fill(b: Builder, n: Node) -> Value | None:
    value = filled(n.inputs[0])
    if value is None or (isinstance(value, Node) and value.spec.dtype is not n.spec.dtype):
        return None
    return b.node(OPS["full"], (value,), (n.spec.shape, n.spec.dtype))


@_rule("view", "expand")
def _to_its_own_shape(b: Builder, n: Node) -> Value | None:
    x = _only(n)
    return x if x.spec.shape == n.spec.shape else None


@_rule("view", "expand", "permute")
def _chain(b: Builder, n: Node) -> Value | None:
    x = _only(n)
    if n.op is None or x.op is not n.op:
        return None
    attrs = (tuple(x.attrs[0][d] for d in n.attrs[0]),) if n.op is OPS["permute"] else n.attrs
    return b.node(n.op, (_only(x),), attrs)


@_rule("permute")
def _order_kept(b: Builder, n: Node) -> Value | None:
    """Only dimensions of size 1 change their place: another shape of the same order, or nothing at all."""
    x, order = _only(n), n.attrs[0]
    if order == tuple(range(len(order))):
        return x
    long = [d for d in order if x.spec.shape[d] != 1]
    return b.node(OPS["view"], (x,), (n.spec.shape,)) if long == sorted(long) and 0 not in x.spec.shape else None


@_rule("index_basic")
def _only_new_shape(b: Builder, n: Node) -> Value | None:
    """Indexing that keeps every element (unsqueeze, squeeze, full slices) is a view."""
    x = _only(n)
    return b.node(OPS["view"], (x,), (n.spec.shape,)) if x.spec.numel == n.spec.numel and _keeps_order(x.spec.shape, n.attrs[0]) else None


def _keeps_order(shape: tuple[int, ...], items: tuple[Any, ...]) -> bool:
    steps = [slice(*it[1:]).step for it in items if it[0] == "s"]
    return all(s is None or s > 0 for s in steps)


@_rule("sum", "amax", "amin", "prod", "any", "all", "argmax", "argmin")
def _without_kept_dimensions(b: Builder, n: Node) -> Value | None:
    """A reduction that keeps its dimensions is a view of the one that does not, so that both are computed once."""
    dims, keepdim = n.attrs
    if not keepdim or 0 in n.spec.shape or not n.spec.shape:
        return None
    assert n.op is not None
    return b.node(OPS["view"], (b.node(n.op, n.inputs, (dims, False)),), (n.spec.shape,))


@_rule("sum", "amax", "amin", "prod")
def _of_a_reduction(b: Builder, n: Node) -> Value | None:
    """The sum of sums is one sum."""
    x, (dims, keepdim) = _only(n), n.attrs
    if x.op is not n.op or keepdim or x.attrs[1] or x.spec.dtype is not n.spec.dtype:
        return None
    assert n.op is not None
    inner = x.attrs[0]
    kept = [d for d in range(_only(x).spec.ndim) if d not in inner]
    return b.node(n.op, (_only(x),), (tuple(sorted((*inner, *(kept[d] for d in dims)))), False))


@_rule("sum", "amax", "amin", "prod")
def _of_single_elements(b: Builder, n: Node) -> Value | None:
    x, (dims, _) = _only(n), n.attrs
    if not isinstance(n.op.lower if n.op else None, Reduce) or any(x.spec.shape[d] != 1 for d in dims):
        return None
    out = x if x.spec.dtype is n.spec.dtype else b.node(OPS["cast"], (x,), (n.spec.dtype,))
    return out if out.spec.shape == n.spec.shape else b.node(OPS["view"], (out,), (n.spec.shape,))


@_rule("where")
def _mask_before_spreading(b: Builder, n: Node) -> Value | None:
    """relu, then max pooling: whether the largest of a window is above 0 is seen in the result, so its gradient is masked there."""
    condition, g, zero = n.inputs
    if not (isinstance(condition, Node) and isinstance(g, Node) and condition.op is OPS["gt"]):
        return None
    if not (_is(condition.inputs[1], 0) and _is(zero, 0)):
        return None
    pooled = _pooled(g)
    if pooled is None or pooled is not condition.inputs[0] or n.spec.dtype is not g.spec.dtype:
        return None
    assert g.op is not None
    at = g.args()[1]
    windows = _only(at)
    largest = b.node(OPS["amax"], (windows,), (at.attrs[0], False))
    inner = b.node(OPS["where"], (b.node(OPS["gt"], (largest, condition.inputs[1]), ()), g.inputs[0], zero), ())
    return b.node(g.op, (inner, at), g.attrs)


@_rule("sum")
def _before_spreading(b: Builder, n: Node) -> Value | None:
    """Every element that max pooling spreads arrives once: where its plane is summed, so can be the elements."""
    x = _only(n)
    if _pooled(x) is None or not set(range(2, x.spec.ndim)) <= set(n.attrs[0]):
        return None
    assert n.op is not None
    return b.node(n.op, x.inputs[:1], n.attrs)


def _pooled(spread: Node) -> Node | None:
    """What was pooled, for a node that brings gradients back to the largest elements of its windows, none of which reach outside."""
    if spread.op is not OPS["max_pool_spread"]:
        return None
    _, kernel, stride, pads, dilation = spread.attrs
    at = spread.args()[1]
    windows = _only(at) if at.op is OPS["argmax"] else at
    whole = windows.op is OPS["windows"] and windows.attrs == (kernel, stride, dilation) and not any(map(any, pads))
    return _only(windows) if whole else None
