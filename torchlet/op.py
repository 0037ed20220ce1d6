"""The Op record, the registry, and the single point where an operation is dispatched: executed at once, or recorded.

An operator is one entry, made by a constructor of its family (`pointwise`, `reduction`, `view`, …) in `ops/`:

    exp = unary("exp", np.exp, vjp={"x": lambda g, out: g * out}, result="float")

The rules of `vjp` are written in torchlet operations, so they serve the eager tape and the compiled graph. A rule names as
its parameters exactly what it needs: `g` (the gradient of the output), `out`, any input by its name (`x`, or `x_spec` for
its shape and dtype alone), any attribute. What a rule names is what is saved for the backward pass, nothing else.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from torchlet import dtypes, expr
from torchlet.expr import Expr
from torchlet.record import Record
from torchlet.spec import Spec, broadcast_shapes, contiguous_strides, elementwise_strides, result_type
from torchlet.tensor import Array, Tensor

OPS: dict[str, Op] = {}


class Rule(Record):
    """One input's VJP: the function and the names it asks for."""

    __slots__ = ("function", "names")

    def __init__(self, function: Callable[..., Any], names: tuple[str, ...]):
        self.function, self.names = function, names


class Pointwise:
    """Lowering: out[i] = expression of the inputs at i, in `compute` = the common dtype of the inputs after promotion.

    `result`: "same" (the common dtype), "float" (integers become the default float first), "bool".
    """

    __slots__ = ("function", "result")

    def __init__(self, function: Callable[..., Expr], result: str = "same"):
        self.function = function  # scalar expressions (inputs cast to the common dtype, then attributes) -> expression
        self.result = result


class Generate:
    """Lowering: out[i] = expression of the input scalars (0-d), the position and the attributes: arange, full, random bits.

    `function(position: Expr int64, out: Spec, *inputs: Expr, **attrs) -> Expr`.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Expr]):
        self.function = function


class Reduce:
    """Lowering: reduction over attribute `dims` (sorted, non-negative) with `keepdim`, of the input cast to the result dtype."""

    __slots__ = ("combine",)

    def __init__(self, combine: str):
        self.combine = combine


class View:
    """Lowering: out[i] = x[source(i)]. `index(out_indices, in_shape, **attrs) -> in_indices` on `index.Index` values.

    The eager function returns a NumPy view wherever PyTorch's operator aliases its input.
    """

    __slots__ = ("index",)

    def __init__(self, index: Callable[..., tuple[Any, ...]]):
        self.index = index


class Contract:
    """Lowering: a matrix product (..., m, k) @ (..., k, n) with batch dimensions already equal or 1."""

    __slots__ = ()


class Select:
    """Lowering with full freedom: `function(out_indices, load, specs, **attrs) -> Expr`: gather, cat, pad, where by position.

    `load(i, indices, mask=(), other=0)` is input i at the given `index.Index` coordinates as an Expr of that input's dtype; a
    coordinate may hold an integer Expr as a term (a position that is data). `mask` lists conditions `(how, Index, n)` with how in
    "eq", "ge", "lt", "every" (Index divisible by n): where one fails, the value is `other` and memory is not read.
    Used for anything that is one expression an element but not pointwise or a view.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Expr]):
        self.function = function


class ScatterAdd:
    """Lowering: out = zeros; out[position(i)] += source[i] for every index i of the source, which is input 0.

    `function(indices, load, specs, **attrs) -> out coordinates` with `load` as in `Select`.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., tuple[Any, ...]]):
        self.function = function


class Composite:
    """Lowering: `body(*inputs, **attrs)` in torchlet operations; opened by `decompose`, unless a kernel claims it."""

    __slots__ = ("body",)

    def __init__(self, body: Callable[..., Any]):
        self.body = body


class Written:
    """Lowering: a kernel written by hand. Passes of the compiler put such operators into graphs, programs do not."""

    __slots__ = ()


class Check(Record):
    """An operator that can fail on data: captured code asks before it defers one, so that it fails at the user's line.

    `operands(specs, attrs)` are the positions of the inputs that decide; `test(values, attrs)` raises what eager raises, given the
    arrays or numbers at these positions, and the Specs of the other inputs.
    """

    __slots__ = ("operands", "test")

    def __init__(
        self, operands: Callable[[Sequence[Spec], tuple[Any, ...]], Sequence[int]],
        test: Callable[[Sequence[Any], tuple[Any, ...]], None],
    ):
        self.operands, self.test = operands, test


Lowering = Pointwise | Generate | Reduce | View | Contract | Select | ScatterAdd | Composite | Written | None


class Op:
    """All that is known of one operator; made by `define`.

    name      unique
    inputs    names of tensor inputs; a last name starting with "*" takes any number
    attrs     names of static attributes (hashable; a different value is a different step of a path)
    eager     NumPy arrays (Python numbers stay numbers), attributes by position -> array
    spec      Specs (a number is a weak 0-d Spec), attributes by position -> Spec; raises the worded error on bad input
    vjp       input name -> Rule
    lower     how the loop IR computes it; None: an extern call of `eager`
    samples   () -> list of (inputs, attrs) that its tests are generated from; inputs are NumPy arrays or numbers
    barrier   its result's shape or legality depends on data: never deferred
    writes    update operators only: which input lists are overwritten (see `update`)
    check     how to find out beforehand whether it fails on data
    keeps_order  its result keeps the memory order of its inputs, as PyTorch's elementwise operators do; else it is row-major
    hermitian its rules give Jᴴ g, the gradient for complex numbers; other rules give Jᵀ g, and the tape conjugates g and what they give
    """

    __slots__ = (
        "name", "inputs", "attrs", "eager", "spec", "vjp", "lower", "samples", "barrier", "writes", "doc", "is_view", "check",
        "keeps_order", "hermitian",
    )

    def __init__(
        self, name: str, inputs: tuple[str, ...], attrs: tuple[str, ...], eager: Callable[..., Array], spec: Callable[..., Spec],
        vjp: dict[str, Rule], lower: Lowering, samples: Callable[[], list[tuple[tuple[Any, ...], tuple[Any, ...]]]] | None = None,
        barrier: bool = False, writes: tuple[int, ...] = (), doc: str = "", check: Check | None = None, keeps_order: bool = False,
        hermitian: bool = False,
    ):
        self.name, self.inputs, self.attrs = name, inputs, attrs
        self.eager, self.spec, self.vjp, self.lower, self.samples = eager, spec, vjp, lower, samples
        self.barrier, self.writes, self.doc, self.check = barrier, writes, doc, check
        self.is_view = isinstance(lower, View)
        self.keeps_order, self.hermitian = keeps_order, hermitian

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return OPS.__getitem__, (self.name,)

    def __call__(self, *inputs: Any, **attrs: Any) -> Any:
        """Apply to tensors or numbers, attributes by keyword: `ops.exp(x)`, `ops.sum_(x, dims=(0,), keepdim=False)`."""
        return apply(self, inputs, tuple([attrs[a] for a in self.attrs]) if self.attrs else ())

    def input_name(self, position: int) -> str:
        """The name of input `position` (all of a variadic group share one)."""
        names = self.inputs
        last = names[-1]
        return last[1:] if last[0] == "*" and position >= len(names) - 1 else names[position]


def rules(vjp: dict[str, Callable[..., Any]]) -> dict[str, Rule]:
    """Attach to each rule the names of its parameters."""
    return {name: Rule(f, f.__code__.co_varnames[: f.__code__.co_argcount]) for name, f in vjp.items()}


def define(
    name: str, inputs: Sequence[str], eager: Callable[..., Array], spec: Callable[..., Spec], lower: Lowering = None,
    attrs: Sequence[str] = (), vjp: dict[str, Callable[..., Any]] | None = None,
    samples: Callable[[], list[tuple[tuple[Any, ...], tuple[Any, ...]]]] | None = None, barrier: bool = False,
    writes: tuple[int, ...] = (), doc: str = "", check: Check | None = None, keeps_order: bool = False,
    hermitian: bool = False,
) -> Op:
    """Enter an operator into the table. Raises ValueError when the name is taken."""
    if name in OPS:
        raise ValueError(f"operator {name} is defined twice")
    op = OPS[name] = Op(
        name, tuple(inputs), tuple(attrs), eager, spec, rules(vjp or {}), lower, samples, barrier, writes, doc, check, keeps_order,
        hermitian,
    )
    return op


def result_strides(op: Op, shape: tuple[int, ...], layouts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[int, ...]:
    """Strides in elements of a result that is no view, given (shape, strides) of each tensor among the inputs."""
    if not op.keeps_order or not layouts:
        return contiguous_strides(shape)
    return elementwise_strides(shape, tuple(layouts))


# ------------------------------------------------------------------------------------------------ pointwise family


def as_spec(x: Any) -> Spec:
    """The Spec of an array, a Python number (weak), or a Spec."""
    if isinstance(x, Spec):
        return x
    if isinstance(x, np.ndarray):
        return Spec(x.shape, dtypes.from_numpy(x.dtype))
    d = dtypes.of_scalar(x)
    return Spec((), dtypes.float64 if d.is_floating_point else d, weak=True)


def compute_dtype(specs: Iterable[Spec], result: str) -> dtypes.dtype:
    """The dtype that a pointwise operator's inputs are converted to."""
    common = result_type(*specs)
    return dtypes.get_default_dtype() if result == "float" and not common.has_gradient else common


class Refusal(Record):
    """Operands that PyTorch refuses for a pointwise operator.

    `kinds`: one of the operands is of one of these kinds (as NumPy calls them); `look(operator, operands, their common dtype)` raises then.
    """

    __slots__ = ("kinds", "look")

    def __init__(self, kinds: str, look: Callable[[str, Sequence[Spec], dtypes.dtype], None]):
        self.kinds, self.look = kinds, look


def pointwise(
    name: str, inputs: Sequence[str], np_function: Callable[..., Any], function: Callable[..., Expr] | None = None, *,
    result: str = "same", attrs: Sequence[str] = (), vjp: dict[str, Callable[..., Any]] | None = None,
    samples: Callable[[], list[tuple[tuple[Any, ...], tuple[Any, ...]]]] | None = None, doc: str = "",
    selects: int = 0, extern: bool = False, check: Check | None = None, refuse: Refusal | None = None,
) -> Op:
    """An operator that works element by element with broadcasting and promotion.

    `np_function(*arrays, *attrs)` gets inputs of one dtype. `function` defaults to the scalar expression of the same name.
    The first `selects` inputs are boolean conditions that take no part in promotion (`where`). `refuse`: operands that PyTorch refuses.
    `extern`: there is no scalar expression; compiled code calls NumPy.
    """

    def spec(*args: Any) -> Spec:
        specs = args[: len(args) - len(attrs)]
        shape = broadcast_shapes(name, *[s.shape for s in specs])
        common = compute_dtype(specs[selects:], result)
        if refuse is not None:
            refuse.look(name, specs[selects:], common)
        weak = all(s.weak for s in specs)
        return Spec(shape, dtypes.bool_ if result == "bool" else dtypes.float64 if weak and common.is_floating_point else common, weak=weak)

    count = len(attrs)

    def eager(*args: Any) -> Array:
        values = args[: len(args) - count] if count else args
        first = values[selects].dtype if isinstance(values[selects], np.ndarray) else None
        if refuse is not None:
            kinds = [v.dtype.kind if v.__class__ is np.ndarray else v.__class__.__name__[0] for v in values]
            if any([kind in refuse.kinds for kind in kinds]):
                specs = [as_spec(v) for v in values]
                refuse.look(name, specs, compute_dtype(specs, result))
        if first is None or (result == "float" and first.kind in "biu") or not _alike(values[selects:], first):
            d = compute_dtype([as_spec(v) for v in values[selects:]], result).np
            values = values[:selects] + tuple([_convert(v, _FLOAT32 if d.char in "eE" else d) for v in values[selects:]])
            first = d
        if first.char in "eE":  # 16-bit floats are computed in float32 and rounded once, as compiled code does
            values = values[:selects] + tuple([v if v.__class__ in (float, int, bool) else v.astype(np.float32) for v in values[selects:]])
            out = np.asarray(np_function(*values, *args[len(values):]))
            return out if result == "bool" else out.astype(first)
        out = np_function(*values, *args[len(values):])
        return out if out.__class__ is np.ndarray else np.asarray(out)

    lower = None if extern else Pointwise(function or (lambda *xs: expr.call(name, *xs)), result)
    return define(name, inputs, eager, spec, lower, attrs, vjp, samples, doc=doc, check=check, keeps_order=True)


def _alike(values: tuple[Any, ...], d: np.dtype[Any]) -> bool:
    """True when NumPy's own promotion already gives what PyTorch would: one array dtype, numbers of no higher category."""
    if len(values) == 1:
        return True
    if d.char in "eE":  # numbers stay as they are: these are computed in float32
        return all(v.dtype is d for v in values if v.__class__ is np.ndarray)
    for v in values:
        c = v.__class__
        if c is np.ndarray:
            if v.dtype is not d:
                return False
        elif c is float:
            if d.kind in "biu":
                return False
        elif c is int:
            if d.kind == "b" or (d.kind in "iu" and d.itemsize < 8):
                return False
        elif c is not bool:
            return False
    return True


_FLOAT32 = np.dtype(np.float32)


def _convert(v: Any, d: np.dtype[Any]) -> Any:
    if isinstance(v, np.ndarray):
        return v if v.dtype == d else v.astype(d)
    if isinstance(v, int) and d.kind in "iu" and not isinstance(v, bool):
        return np.array(v, np.int64).astype(d)[()]  # wraps, as PyTorch does
    return d.type(v)


# ------------------------------------------------------------------------------------------------ dispatch


class _State(threading.local):
    """What is going on in this thread: a capture that records (None: execute at once), whether gradients are recorded, autocast's casts."""

    run: Any = None
    grad: bool = True
    autocast: Callable[[Op, tuple[Any, ...]], tuple[Any, ...]] | None = None
    autocast_dtype: Any = None
    default_device: Any = None  # where new tensors are made unless said otherwise; None: the CPU
    gpu: bool = False  # what is captured is to be shown as for a GPU, whatever device its tensors lie on
    place: Any = None  # the device where a gradient rule or a composite's body makes what it makes from numbers alone; None: the CPU


STATE = _State()
RUNS: list[Callable[[], Any]] = []  # weak references to all captures: other threads ask them to launch what reads certain memory
AUTOCASTING: list[
    object
] = []  # one entry for each thread and region inside autocast: the check in `apply` costs nothing where there is none
_execute: Callable[[Op, tuple[Any, ...], tuple[Any, ...]], Any]


def set_executor(execute: Callable[[Op, tuple[Any, ...], tuple[Any, ...]], Any]) -> None:
    """Give the function that executes an operator at once and notes it on the tape (autograd.py, which stands above)."""
    global _execute
    _execute = execute


def apply(op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...] = ()) -> Tensor:
    """The one place every operation passes: executed at once, or handed to the capture of this thread.

    Raises what the operator's spec raises on bad input (RuntimeError, IndexError, TypeError), naming the operator.
    """
    if AUTOCASTING and STATE.autocast is not None:
        inputs = STATE.autocast(op, inputs)
    run = STATE.run
    return _execute(op, inputs, attrs) if run is None else run.step(op, inputs, attrs)


_PUTTING: list[Callable[[Any], None]] = []
_WALKS: list[Any] = []  # the C walk, once it is there


def when_walking(put: Callable[[Any], None]) -> None:
    """Have `put` called with the C walk when it is there: who has a twin in it puts that in its own place."""
    _PUTTING.append(put)
    for walk in _WALKS:
        put(walk)


def put_twins(walk: Any) -> None:
    """The C walk is there."""
    _WALKS.append(walk)
    for put in _PUTTING:
        put(walk)


def put_function(plain: Callable[..., Any], twin: Any) -> None:
    """A function's twin, under its name wherever that was imported."""
    name = plain.__name__
    for names in [vars(m) for m in list(sys.modules.values()) if isinstance(m, ModuleType)]:
        if names.get(name) is plain:
            names[name] = twin


def _put_apply(walk: Any) -> None:
    """`apply` in C: a frame and a look into a threading.local take longer than a known step."""
    put_function(apply, walk.apply(globals()))


when_walking(_put_apply)


# ------------------------------------------------------------------------------------------------ update operators


def update(
    name: str,
    lists: Sequence[str],
    scalars: Sequence[str],
    writes: Sequence[str],
    body: Callable[..., Any],
    attrs: Sequence[str] = (),
    doc: str = "",
) -> Op:
    """An operator that overwrites tensors in place, over lists of tensors: an optimizer's step, gradient scaling.

    `body(*lists, *scalars, *attrs) -> tuple of lists`, one list of new values for each name in `writes`, in that order,
    written in torchlet operations. Scalars are Python numbers in eager mode and 0-d weak tensors in a graph, so the body may
    combine them with tensors by operators but not with Python branches. One call is one step of a path, however many
    tensors there are; a number that changes (a learning rate, a step count) never makes a new path.
    """

    def refuse(*_: Any) -> Any:
        raise TypeError(f"{name} is an update operator: call apply_update")

    return define(
        name,
        tuple(lists) + tuple(scalars),
        refuse,
        refuse,
        Composite(body),
        attrs,
        writes=tuple(list(lists).index(w) for w in writes),
        doc=doc,
    )


_execute_update: Callable[..., None]


def set_update_executor(execute: Callable[..., None]) -> None:
    """Give the function that executes an update operator at once (autograd.py)."""
    global _execute_update
    _execute_update = execute


def apply_update(
    op: Op, lists: Sequence[Sequence[Tensor]], scalars: Sequence[float | int | bool] = (), attrs: tuple[Any, ...] = ()
) -> None:
    """Overwrite the tensors of the lists that `op` writes. All lists have the same length; a list of one tensor serves all items.

    No gradient is recorded; the written storages' versions are bumped.
    """
    run = STATE.run
    if run is None:
        _execute_update(op, lists, scalars, attrs)
    else:
        run.update(op, lists, scalars, attrs)
