"""Runs graphs and loop nests in NumPy: slow and plain, the oracle of every pass, and what runs where there is no C compiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, expr
from torchlet.compiler.graph import Graph, Node
from torchlet.compiler.loops import Dot, Kernel, Phase, Reduction, Store, accumulator, depends_on
from torchlet.dtypes import dtype
from torchlet.expr import Expr
from torchlet.index import Axis, FloorDiv, Index, Mod, Term
from torchlet.op import Composite, Op, Pointwise, as_spec
from torchlet.spec import Spec, result_type

Array = np.ndarray[Any, Any]
Number = int | float | bool

__all__ = ["compute_dtype", "evaluate", "fold", "interpret", "interpret_kernel"]

# ------------------------------------------------------------------------------------------------ graphs


def compute_dtype(node_inputs: Sequence[Spec], out: Spec, lower: Pointwise) -> dtype:
    """The dtype that a pointwise node's inputs are converted to. Numbers alone are computed in double precision, as Python does."""
    if lower.result in ("same", "float"):
        return out.dtype
    found = result_type(*node_inputs)
    return dtypes.float64 if found.is_floating_point and all(s.weak for s in node_inputs) else found


def fold(op: Op, values: Sequence[Number], attrs: tuple[Any, ...], out: Spec, specs: Sequence[Spec] | None = None) -> Number | None:
    """The number that a pointwise operator makes of numbers; None for other operators. `specs`: what the numbers stand for."""
    lower = op.lower
    if not isinstance(lower, Pointwise) or lower.result == "cast":
        return None
    specs = [as_spec(v) for v in values] if specs is None else specs
    d = register(compute_dtype(specs, out, lower))
    e = lower.function(*[expr.const(v, d) for v in values], *attrs)
    return evaluate(e, {}).item()  # type: ignore[no-any-return]


def interpret(graph: Graph, inputs: Sequence[Array], scalars: Sequence[Number] = ()) -> list[Array]:
    """The graph's outputs, computed by the operators' eager code. Inputs are not written, whatever the graph's targets say."""
    values: dict[Node, Any] = dict(zip(graph.inputs, inputs, strict=True))
    values |= dict(zip(graph.scalars, scalars, strict=True))
    with np.errstate(all="ignore"):
        for node in graph.nodes():
            if node in values:
                continue
            assert node.op is not None
            args = [values[x] if isinstance(x, Node) else x for x in node.inputs]
            number = fold(node.op, args, node.attrs, node.spec) if node.spec.weak else None
            if number is None and isinstance(node.op.lower, Composite) and not all(isinstance(a, np.ndarray) for a in args):
                # eager composites want plain numbers, which is what a weak value is here
                args = [a.item() if isinstance(a, np.ndarray) and x.spec.weak else a for a, x in zip(args, node.inputs, strict=True)]  # type: ignore[union-attr]
            if node.op.name == "view" and isinstance(args[0], np.ndarray) and not args[0].flags.c_contiguous:
                args[0] = args[0].copy()  # in a graph every value is dense, so any view of it exists
            values[node] = node.op.eager(*args, *node.attrs) if number is None else number
    outs = []
    for node in graph.outputs:
        out = np.asarray(values[node]).astype(node.spec.dtype.np, copy=False)
        assert out.shape == node.spec.shape, f"{node}: eager code gave shape {out.shape}"
        outs.append(out)
    return outs


# ------------------------------------------------------------------------------------------------ expressions


def register(d: dtype) -> dtype:
    """The dtype that values of `d` are computed in: float32 for the 16-bit floats."""
    return dtypes.float32 if d.is_floating_point and d.itemsize == 2 else d


def _divide(a: Array, b: Array) -> Array:
    return np.divide(a, b) if a.dtype.kind == "f" else np.where(b == 0, 0, np.trunc(a / np.where(b == 0, 1, b))).astype(a.dtype)


def _whole(np_function: Callable[..., Any]) -> Callable[[Array, Array], Array]:
    """Integer division by zero gives 0: in compiled code that is checked where it can be told to the user."""
    def divide(a: Array, b: Array) -> Array:
        return np_function(a, b) if a.dtype.kind == "f" else np.where(b == 0, 0, np_function(a, np.where(b == 0, 1, b))).astype(a.dtype)

    return divide


def _power(a: Array, b: Array) -> Array:
    return np.power(a, b) if a.dtype.kind == "f" else np.power(a, np.maximum(b, 0))


_erf = np.frompyfunc(math.erf, 1, 1)

_NUMPY: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "log2": np.log2,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "erf": lambda x: np.asarray(_erf(x), x.dtype),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "floor": np.floor, "ceil": np.ceil, "round": np.round, "trunc": np.trunc,
    "isnan": np.isnan, "isinf": np.isinf, "reciprocal": lambda x: 1 / x,
    "not": np.logical_not, "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divide, "floordiv": _whole(np.floor_divide),
    "mod": _whole(np.remainder), "fmod": _whole(np.fmod), "pow": _power, "maximum": np.maximum, "minimum": np.minimum, "atan2": np.arctan2,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "where": np.where,
}


def _philox(seed: Array, offset: Array, position: Array, lane: int) -> Array:
    """Philox 4x32-10 (Salmon et al. 2011) as in `ops/create.py`, at any positions."""
    low = np.uint64(0xFFFFFFFF)
    seed, offset, position = [np.asarray(v).astype(np.int64).view(np.uint64) for v in (seed, offset, position)]
    shift = np.uint64(32)
    c0, c1, c2, c3 = position & low, position >> shift, offset & low, offset >> shift
    k0, k1 = seed & low, seed >> shift
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ k0, b & low, (a >> shift) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.asarray((c0, c1, c2, c3)[lane]).astype(np.int64)


Known = dict[Expr, Array]


def evaluate(root: Expr, known: Known, axes: dict[Axis, Array] | None = None, buffers: dict[str, Array] | None = None) -> Array:
    """The value of an expression over axes that are arrays. `known` has the values of `scalar` and `value` nodes, and is the memo."""
    with np.errstate(all="ignore"):
        for e in expr.walk(root):
            if e not in known:
                known[e] = np.asarray(_node(e, known, axes or {}, buffers or {})).astype(register(e.dtype).np, copy=False)
    return known[root]


def _node(e: Expr, known: Known, axes: dict[Axis, Array], buffers: dict[str, Array]) -> Any:
    args = [known[a] for a in e.args]
    if e.op == "const":
        value = expr.const_value(e)
        return np.asarray(value, np.int64).astype(e.dtype.np) if e.dtype.category == 1 else np.asarray(value, register(e.dtype).np)
    if e.op == "index":
        return position(index_of(e), known, axes, buffers)
    if e.op == "load":
        name = buffer_of(e)
        at, memory = position(index_of(e), known, axes, buffers), buffers[name]
        if not args:
            return memory[_within(at, memory, name)]
        mask, other = args[0], args[1] if len(args) > 1 else np.zeros((), register(e.dtype).np)
        if not memory.size:
            return np.broadcast_to(other, np.broadcast_shapes(at.shape, mask.shape))
        return np.where(mask, memory[_within(np.where(mask, at, 0), memory, name)], other)
    if e.op == "cast":
        rounded = args[0] != 0 if e.dtype is dtypes.bool_ else args[0].astype(e.dtype.np)
        return rounded
    if e.op == "philox":
        return _philox(args[0], args[1], args[2], e.attr)  # type: ignore[arg-type]
    return _NUMPY[e.op](*args)


def buffer_of(e: Expr) -> str:
    """The buffer that a load reads."""
    return e.attr[0]  # type: ignore[index,no-any-return]


def index_of(e: Expr) -> Index:
    """The position in a load or an index expression."""
    return e.attr[1] if e.op == "load" else e.attr  # type: ignore[index,return-value]


def _within(at: Array, memory: Array, name: str) -> Array:
    if at.size and (at.min() < 0 or at.max() >= memory.size):
        bad = int(at.min()) if at.min() < 0 else int(at.max())
        raise IndexError(f"{name}: position {bad} is out of range for a buffer of {memory.size} elements")
    return at


def position(index: Index, known: Known, axes: dict[Axis, Array], buffers: dict[str, Array]) -> Array:
    """The value of an index."""

    def value(term: Term) -> Array:
        if isinstance(term, Axis):
            return axes[term]
        if isinstance(term, Expr):
            return evaluate(term, known, axes, buffers).astype(np.int64)
        inner = position(term.index, known, axes, buffers)  # type: ignore[attr-defined]
        return inner // term.divisor if isinstance(term, FloorDiv) else inner % term.divisor  # type: ignore[attr-defined]

    out = np.asarray(index.const, np.int64)
    for term, c in index.terms:
        out = out + value(term) * c
    return out


# ------------------------------------------------------------------------------------------------ kernels


def interpret_kernel(kernel: Kernel, arrays: Sequence[Array], scalars: Sequence[Number] = ()) -> None:
    """Run a kernel on flat arrays, one for each of its buffers, which it writes in place. Needs memory for the whole nest at once."""
    if kernel.body is not None:
        kernel.body.interpret(arrays, scalars)
        return
    buffers = {b.name: a for b, a in zip(kernel.buffers, arrays, strict=True)}
    numbers = {s.name: np.asarray(v, s.dtype.np) for s, v in zip(kernel.scalars, scalars, strict=True)}
    values: dict[str, Array] = {}
    for phase in kernel.phases:
        _run_phase(kernel, phase, buffers, numbers, values)


def _run_phase(kernel: Kernel, phase: Phase, buffers: dict[str, Array], numbers: dict[str, Array], values: dict[str, Array]) -> None:
    nest = (*kernel.grid, *phase.reduce)
    rank, extents = len(nest), tuple(a.extent for a in nest)
    axes = {a: np.arange(a.extent, dtype=np.int64).reshape([-1 if i == d else 1 for i in range(rank)]) for d, a in enumerate(nest)}
    known: Known = {}

    def spread(name: str) -> Array:  # a result has the grid's shape; the reduce axes come after it
        v = values[name]
        return v.reshape(v.shape + (1,) * (rank - len(kernel.grid)))

    def learn(roots: Sequence[Expr]) -> None:
        for e in expr.walk(*roots):
            if e.op == "scalar":
                known[e] = numbers[e.attr].astype(e.dtype.np)  # type: ignore[index]
            elif e.op == "value" and e.attr in values:
                known[e] = spread(e.attr)  # type: ignore[arg-type]

    def value(e: Expr) -> Array:
        learn([e, *(t for x in expr.walk(e) if x.op in ("load", "index") for t in _data(x))])
        return evaluate(e, known, axes, buffers)

    inner = frozenset(phase.reduce)
    found = {r.name: _reduce(r, phase, extents, len(kernel.grid), value) for r in phase.reductions}
    nested = [s for s in phase.stores if _is_nested(s, inner)]
    waiting = [(s, _resolve(s, value, known, axes, buffers, extents)) for s in nested]
    for s, (at, what) in waiting:
        _write(s, at, what, buffers)
    values.update(found)
    known.clear()
    points = extents[: len(kernel.grid)] + (1,) * len(phase.reduce)
    waiting = [(s, _resolve(s, value, known, axes, buffers, points)) for s in phase.stores if s not in nested]
    for s, (at, what) in waiting:
        _write(s, at, what, buffers)


def _data(e: Expr) -> list[Expr]:
    """Every expression inside the data-dependent terms of an index."""
    out: list[Expr] = []
    for term, _ in index_of(e).terms:
        if isinstance(term, Expr):
            out += expr.walk(term)
        elif isinstance(term, FloorDiv | Mod):
            out += _data(_as_expr(term.index))
    return out


def _as_expr(index: Index) -> Expr:
    return expr.expr("index", (), dtypes.int64, index)


def _is_nested(s: Store, axes: frozenset[Axis]) -> bool:
    return depends_on(s.value, axes) or depends_on(_as_expr(s.index), axes)


def _resolve(
    s: Store, value: Callable[[Expr], Array], known: Known, axes: dict[Axis, Array], buffers: dict[str, Array], extents: tuple[int, ...]
) -> tuple[Array, Array]:
    for t in _data(_as_expr(s.index)):
        value(t)
    at, what = position(s.index, known, axes, buffers), value(s.value)
    if s.mode == "add" or 0 in extents:  # every point of the nest adds
        at = np.broadcast_to(at, extents)
    return at, np.broadcast_to(what, np.broadcast_shapes(at.shape, what.shape))


def _write(s: Store, at: Array, what: Array, buffers: dict[str, Array]) -> None:
    memory = buffers[s.buffer]
    at, what = np.broadcast_arrays(at, what.astype(memory.dtype))
    if not at.size:
        return
    at = _within(at, memory, s.buffer)
    if s.mode == "add":
        np.add.at(memory, at, what)
    else:
        memory[at] = what


def _reduce(r: Reduction | Dot, phase: Phase, extents: tuple[int, ...], grid: int, value: Callable[[Expr], Array]) -> Array:
    """The result over the grid."""
    dims = tuple(range(grid, len(extents)))
    if isinstance(r, Dot):
        wide = accumulator(r.a.dtype).np
        x = value(r.a).astype(wide) * value(r.b).astype(wide)
        return np.broadcast_to(x, extents).sum(axis=dims, dtype=wide)
    x = value(r.value)
    x = np.broadcast_to(x, extents).reshape(extents[:grid] + (-1,)) if dims else x.reshape(x.shape + (1,))
    if r.combine in ("argmax", "argmin"):
        return np.asarray(getattr(np, r.combine)(x, axis=-1), np.int64)
    if r.combine in ("max", "min") and not x.shape[-1]:
        return np.zeros(x.shape[:-1], r.dtype.np)
    functions: dict[str, Any] = {
        "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum, "any": np.logical_or, "all": np.logical_and,
    }
    keep = {"dtype": r.dtype.np} if r.combine in ("sum", "prod") else {}
    return np.asarray(functions[r.combine].reduce(x, axis=-1, **keep)).astype(r.dtype.np, copy=False)
