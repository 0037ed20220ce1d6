"""Eager execution with its tape, and the engine that walks tape and capture backwards."""

from __future__ import annotations

import contextlib
import functools
import importlib
import weakref
from _thread import _count as other_threads
from _thread import get_ident
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, storage
from torchlet import op as op_module
from torchlet.op import RUNS, STATE, Composite, Op, apply, as_spec, result_strides
from torchlet.spec import CPU, Spec, device
from torchlet.storage import DeviceArray
from torchlet.tensor import Meta, Node, Storage, Tensor, new, share, wrap

Edge = Any  # a leaf Tensor, (Node, output number), or None

__all__ = [
    "Function", "backward", "enable_grad", "execute", "execute_inplace", "force", "grad", "inference_mode", "is_grad_enabled",
    "no_grad", "register_hook", "retain_grad", "set_grad_enabled",
]

# ------------------------------------------------------------------------------------------------ grad mode

GENERATOR = 0x20  # inspect.CO_GENERATOR, which takes 10 ms to import


def is_grad_enabled() -> bool:
    """True while operations are recorded for `backward`."""
    return STATE.grad


def _set_grad(value: bool) -> None:
    if STATE.grad is not value:
        STATE.grad = value
        run = STATE.run
        if run is not None:
            run.event("grad", value)


class set_grad_enabled(contextlib.ContextDecorator):
    """Switch gradient recording on or off, at once; as a context manager, until its end."""

    def __init__(self, mode: bool):
        self.previous = STATE.grad
        self.mode = bool(mode)
        _set_grad(self.mode)

    def __enter__(self) -> set_grad_enabled:
        return self

    def __exit__(self, *_: object) -> None:
        _set_grad(self.previous)

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[override]
        _set_grad(self.previous)  # used as a decorator: the mode belongs to the calls of func
        return _in_mode(functools.partial(set_grad_enabled, self.mode), func)


def _in_mode(mode: Callable[[], Any], func: Callable[..., Any]) -> Callable[..., Any]:
    """`func` with the mode switched on while it runs; of a generator function, while its generators do."""

    @functools.wraps(func)
    def whole(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return func(*args, **kwargs)

    @functools.wraps(func)
    def resumed(*args: Any, **kwargs: Any) -> Any:
        generator = func(*args, **kwargs)
        resume, given = generator.send, None
        while True:
            try:
                with mode():
                    value = resume(given)
            except StopIteration as stop:
                return stop.value
            try:
                resume, given = generator.send, (yield value)
            except GeneratorExit:
                with mode():
                    generator.close()
                raise
            except BaseException as error:
                resume, given = generator.throw, error  # type: ignore[assignment]

    code = getattr(func, "__code__", None)
    return resumed if code is not None and code.co_flags & GENERATOR else whole


class _Mode(contextlib.ContextDecorator):
    value: bool

    def __new__(cls, func: Any = None) -> Any:
        self = object.__new__(cls)
        return self if func is None or isinstance(func, bool) else self(func)

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[override]
        return _in_mode(type(self), func)  # nested and recursive uses as a decorator each keep their own previous mode

    def __enter__(self) -> _Mode:
        self.previous = STATE.grad
        _set_grad(self.value)
        return self

    def __exit__(self, *_: object) -> None:
        _set_grad(self.previous)


class no_grad(_Mode):
    """Context or decorator in which nothing is recorded for `backward`."""

    value = False


class enable_grad(_Mode):
    """Context or decorator in which operations are recorded again."""

    value = True


class inference_mode(no_grad):
    """`no_grad` under PyTorch's other name; `inference_mode(False)` records again."""

    def __new__(cls, mode: Any = True) -> Any:
        return enable_grad() if mode is False else super().__new__(cls, mode)

    def __init__(self, mode: Any = True):
        """Nothing is kept of `mode`: a function was decorated, True is what this is for."""


# ------------------------------------------------------------------------------------------------ eager execution


def force(t: Tensor) -> np.ndarray[Any, Any]:
    """The array of a tensor; what is pending is run first."""
    if t._np is None:
        t._run.force(t)
    run = STATE.run
    if run is not None and run.writes_pending:
        run.flush()  # a pending in-place operation may concern t
    if other_threads():
        meet((t,))
    assert t._np is not None
    return t._np


def meet(read: Iterable[Any], written: Iterable[Tensor] = ()) -> None:
    """Compiled calls of other threads launch what they have pending of writes to tensors that are read, or of reads of those written."""
    here = get_ident()
    for weak in list(RUNS):
        run = weak()
        if run is not None and run.thread not in (0, here):
            run.meet([x._store for x in read if isinstance(x, Tensor)], [x._store for x in written])


def execute(op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
    """Run an operator at once; note it on the tape if a gradient can flow.

    Raises RuntimeError, IndexError or TypeError with the wording of the operator's spec.
    """
    if other_threads():
        meet(inputs)
    arrays = []
    needs = in_order = False
    for x in inputs:
        if isinstance(x, Tensor):
            a = x._np
            if a is None:
                a = force(x)
            arrays.append(a)
            m = x._meta
            if m.requires_grad or (m.shared and current(x)._meta.requires_grad):
                needs = True
            if not m.contiguous:
                in_order = True
        else:
            arrays.append(x)
    if needs and STATE.grad:
        if not op.vjp and isinstance(op.lower, Composite):
            return open_composite(op, inputs, attrs)
    else:
        needs = False
    out = compute(op, arrays, attrs)
    if op.is_view:
        source = inputs[0]
        share(source)
        t = wrap(out, False, source._store)
        if STATE.grad and op.vjp:
            t._base = _view_of(source, op, attrs)
    else:
        t = wrap(out)
        if in_order or not t._meta.row_major:  # NumPy has its own ideas of the memory order of results
            wanted = result_strides(op, t._meta.shape, [(x._meta.shape, x._meta.strides) for x in inputs if isinstance(x, Tensor)])
            if t._meta.strides != wanted:
                t = wrap(storage.in_layout(out, wanted))
    if needs and op.vjp and t._meta.dtype.has_gradient:
        t._meta = t._meta.replace(requires_grad=True)
        t._node = OpNode(op, inputs, attrs, t)
    return t


def compute(op: Op, arrays: Sequence[Any], attrs: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """The operator's result: its NumPy code's, or its compiled code's where an input lies on a device."""
    if storage.in_use:
        if any(a.__class__ is DeviceArray for a in arrays):
            return storage.compute(op, arrays, attrs)
        if STATE.place is not None and not any(isinstance(a, np.ndarray) for a in arrays):
            return storage.compute(op, arrays, attrs, STATE.place)
    return compute_on_host(op, arrays, attrs)


def open_composite(op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...]) -> Any:
    """Run a composite's body, so that gradients flow through its operations."""
    before = STATE.place
    if storage.in_use:
        STATE.place = next((x._meta.device for x in inputs if isinstance(x, Tensor) and x._meta.device is not CPU), before)
    try:
        return op.lower.body(*inputs, **dict(zip(op.attrs, attrs, strict=True)))  # type: ignore[union-attr]
    finally:
        STATE.place = before


def compute_on_host(op: Op, arrays: Sequence[Any], attrs: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """The operator's NumPy code, with NumPy's complaints put into the operator's words."""
    try:
        with np.errstate(all="ignore"):
            return op.eager(*arrays, *attrs)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        op.spec(*[as_spec(a) for a in arrays], *attrs)  # raises the worded error where shapes or dtypes are the cause
        if op.check is not None:
            op.check.test(arrays, attrs)  # captured code has asked this one: the words shall be the same
        if isinstance(error, IndexError):
            raise IndexError(str(error) if str(error).startswith(op.name) else f"{op.name}: {error}") from None
        raise RuntimeError(f"{op.name}: {error}") from error


CPU_INDICES = frozenset(("index_advanced", "index_advanced_sum", "index_put"))  # x[index] takes an index from the CPU, as in PyTorch


def mixed_devices(name: str, places: Sequence[device]) -> RuntimeError:
    """The error of an operation whose inputs lie in different places."""
    return RuntimeError(
        f"{name}: Expected all tensors to be on the same device, but found at least two devices, {places[0]} and {places[1]}!\n"
        "help: move one of them with .to(device)"
    )


def result_device(op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...]) -> device:
    """Where an operation's result will be. Raises RuntimeError for inputs on different devices; 0-d CPU tensors go anywhere."""
    if op.name == "to_device":
        return attrs[0]  # type: ignore[no-any-return]
    places = dict.fromkeys(x._meta.device for x in inputs if isinstance(x, Tensor) and (x._meta.shape or x._meta.device is not CPU))
    if len(places) > 1:
        if op.name not in CPU_INDICES:
            raise mixed_devices(op.name, list(places))
        places.pop(CPU, None)
    return next(iter(places), STATE.place or CPU)


def _view_of(source: Tensor, op: Op, attrs: tuple[Any, ...]) -> Any:
    """(base, chain of view operators from the base, the base's node at this time)."""
    above = source._base
    base, chain = (above[0], above[1]) if above is not None else (source, ())  # type: ignore[index]
    return base, chain + ((op.name, attrs),), base._node


def execute_inplace(op: Op, target: Tensor, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
    """Overwrite `target` with `op(*inputs)`, as `target.op_()` does. Nothing is changed when it raises.

    Raises RuntimeError for a leaf that requires grad, a result of another shape, or one whose dtype does not fit.
    """
    if other_threads():
        meet(inputs, (target,))
    for x in (target, *inputs):
        if isinstance(x, Tensor) and x._meta.shared:
            current(x)
    recording = STATE.grad and (target._meta.requires_grad or any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs))
    check_inplace(op, target, recording)
    for x in inputs:
        if isinstance(x, Tensor):
            force(x)
    array = force(target)
    if recording and not op.vjp and isinstance(op.lower, Composite):
        # what the operators inside save of `target` is about to be overwritten
        value = execute(op, tuple([execute(op_module.OPS["clone"], (x,), ()) if x is target else x for x in inputs]), attrs)
        op, inputs, attrs = op_module.OPS["clone"], (value,), ()
    arrays = [x._np if isinstance(x, Tensor) else x for x in inputs]
    out: Any
    if op.name == "clone":
        # a copy is made by the assignment below
        out = arrays[0] if isinstance(array, DeviceArray) else storage.as_host(arrays[0])
    elif isinstance(array, DeviceArray) and not any(isinstance(x, Tensor) for x in inputs):
        out = storage.compute(op, arrays, attrs, array.device)
    else:
        out = compute(op, arrays, attrs)
    if out.shape != array.shape or out.dtype is not array.dtype:
        check_result(op, target._meta.spec, Spec(out.shape, dtypes.from_numpy(out.dtype)))
    node = None
    if recording:  # also where no gradient goes back (fill_): what `target` was before is cut off
        result = wrap(out)  # stands for the new value while the node is made
        result._meta = result._meta.replace(requires_grad=True)
        node = OpNode(op, inputs, attrs, result)
        node.saves_out_of(target)
    if out.dtype is array.dtype:
        array[...] = out
    else:
        with np.errstate(all="ignore"):  # what the target's dtype cannot hold is converted without complaint
            array[...] = out
    target._store.version += 1
    if node is not None:
        node.saved_version(target._store.version)
        _rebase(target, node)
    return target


def check_inplace(op: Op, target: Tensor, recording: bool) -> None:
    """Raise where PyTorch refuses to overwrite `target`."""
    if not recording:
        return
    if target._meta.requires_grad and is_leaf(target):
        raise RuntimeError(
            f"{op.name}_: a leaf Variable that requires grad is being used in an in-place operation."
            "\nhelp: wrap it in `with torchlet.no_grad():`"
        )
    base = target._base
    if base is not None and base[0]._meta.requires_grad and is_leaf(base[0]):  # type: ignore[index]
        raise RuntimeError(
            f"{op.name}_: a view of a leaf Variable that requires grad is being used in an in-place operation."
            "\nhelp: wrap it in `with torchlet.no_grad():`"
        )
    if not target._meta.dtype.has_gradient:
        raise RuntimeError(
            f"{op.name}_: only Tensors of floating point dtype can require gradients; the target has dtype {target._meta.dtype.name}"
        )


def check_result(op: Op, target: Spec, result: Spec) -> None:
    """Raise RuntimeError where a result cannot be stored in `target`."""
    if result.shape != target.shape:
        raise RuntimeError(f"{op.name}_: output with shape {list(target.shape)} doesn't match the broadcast shape {list(result.shape)}")
    if result.dtype.category > target.dtype.category and op.name not in ("clone", "cast"):
        raise RuntimeError(f"{op.name}_: result type {result.dtype.name} can't be cast to the desired output type {target.dtype.name}")


def _rebase(target: Tensor, node: Node) -> None:
    """Make `node` the maker of `target`; where it is a view, its base now comes from a scatter of the new value."""
    view = target._base
    if view is None:
        target._node, target._out = node, 0
        target._meta = target._meta.replace(requires_grad=True)
        return
    base, chain, _ = view  # type: ignore[misc]
    value = new(Tensor)
    value._np, value._store, value._meta, value._node = target._np, Storage(), target._meta.replace(requires_grad=True), node
    before = new(Tensor)
    before._np, before._store, before._meta, before._node, before._out = base._np, Storage(), base._meta, base._node, base._out
    base._node = OpNode(op_module.OPS["view_scatter"], (before, value), (chain,), base)
    base._out = 0
    base._meta = base._meta.replace(requires_grad=True)
    _regenerate(target)


def _regenerate(t: Tensor) -> None:
    """The base of view `t` was overwritten: `t` now comes from the base's new maker."""
    base, chain, _ = t._base  # type: ignore[misc]
    if base._meta.requires_grad:
        t._meta = t._meta.replace(requires_grad=True)
        t._node, t._out = OpNode(op_module.OPS["view_chain"], (base,), (chain,), t), 0
    t._base = (base, chain, base._node)  # type: ignore[assignment]


def current(t: Tensor) -> Tensor:
    """`t`, its place on the tape brought up to date if it is a view whose base was overwritten."""
    view = t._base
    if view is not None and view[0]._node is not view[2]:  # type: ignore[index]
        _regenerate(t)
    return t


def edge_of(t: Any) -> Edge:
    """Where the gradient of `t` goes: None, the leaf itself, or (node, output number)."""
    if not isinstance(t, Tensor):
        return None
    if t._base is not None:
        current(t)
    if not t._meta.requires_grad:
        return None
    if t._node is not None:
        return t._node, t._out
    if t._np is None:
        return t._run.edge_of(t)
    return t if t._stands_for is None else edge_of(t._stands_for)


def is_leaf(t: Tensor) -> bool:
    """True for tensors that no recorded operation made."""
    return not t._meta.requires_grad or isinstance(edge_of(t), Tensor)


# ------------------------------------------------------------------------------------------------ nodes


def freed(name: str) -> RuntimeError:
    """The error of a second backward pass through an operation."""
    return RuntimeError(
        f"{name} backward: Trying to backward through the graph a second time (or directly access saved tensors after they have "
        "already been freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad().\n"
        "help: specify retain_graph=True"
    )


class Saved:
    """A tensor kept for the backward pass, with the version its storage had."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.version = tensor._store.version

    def get(self, op: Op) -> Tensor:
        """The tensor; raises RuntimeError when it was overwritten since."""
        if self.tensor._store.version != self.version:
            raise self.overwritten(op, self.tensor._store.version, self.version)
        return self.tensor

    def overwritten(self, op: Op, now: int, expected: int) -> RuntimeError:
        """The error of a backward pass that would need what is there no more."""
        return RuntimeError(
            f"{op.name} backward: one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{self.tensor._meta.spec} is at version {now}; expected version {expected} instead"
        )


class Overwritten(Saved):
    """A tensor that was kept and is overwritten since, at a place where no version tells: inside a captured call."""

    __slots__ = ("now",)

    def __init__(self, saved: Saved, now: int, expected: int):
        self.tensor, self.version, self.now = saved.tensor, expected, now

    def get(self, op: Op) -> Tensor:
        """Always raises RuntimeError."""
        raise self.overwritten(op, self.now, self.version)


class OpNode(Node):
    """A table operator on the tape. Keeps exactly what the rules of the wanted gradients name."""

    __slots__ = ("op", "attrs", "kept", "in_metas", "freed", "out_shadow")

    def __init__(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...], out: Tensor, edges: tuple[Edge, ...] | None = None):
        self.edges = tuple([edge_of(x) for x in inputs]) if edges is None else edges
        self.metas = (out._meta,)
        self.hooks = None
        self.op, self.attrs, self.freed = op, attrs, False
        self.in_metas = tuple([x._meta if isinstance(x, Tensor) else x for x in inputs])
        self.out_shadow: Tensor | None = None
        kept: dict[str, Any] = {}
        for i, edge in enumerate(self.edges):
            if edge is not None:
                rule = op.vjp.get(op.input_name(i))
                if rule is not None:
                    for name in rule.names:
                        if name not in kept:
                            kept[name] = self._keep(name, inputs, out)
        self.kept: dict[str, Any] | None = kept

    def _keep(self, name: str, inputs: tuple[Any, ...], out: Tensor) -> Any:
        if name == "out":  # without its place on the tape: a tensor must not own its own maker twice
            shadow = new(Tensor)
            shadow._np, shadow._store, shadow._meta, shadow._run, shadow._step = out._np, out._store, out._meta, out._run, out._step
            self.out_shadow = shadow
            return Saved(shadow)
        for i, declared in enumerate(self.op.inputs):
            if declared == name:
                return Saved(inputs[i]) if isinstance(inputs[i], Tensor) else inputs[i]
            if declared == "*" + name:
                return [Saved(x) if isinstance(x, Tensor) else x for x in inputs[i:]]
        return None  # g, an attribute, or a spec: found when it is asked for

    def saved(self) -> list[Saved]:
        """The tensors that are kept for the backward pass."""
        kept = (self.kept or {}).values()
        return [v for value in kept for v in (value if isinstance(value, list) else (value,)) if isinstance(v, Saved)]

    def saves_out_of(self, target: Tensor) -> None:
        """The result is about to be written into `target`: a saved output is read from there, a saved input is copied before."""
        if self.out_shadow is not None:
            self.out_shadow._np, self.out_shadow._store = target._np, target._store
        for value in (self.kept or {}).values():
            if isinstance(value, Saved) and value.tensor is target:
                before = wrap(storage.copy(target._np))
                before._meta, before._node, before._out = (
                    before._meta.replace(requires_grad=target._meta.requires_grad),
                    target._node,
                    target._out,
                )
                value.tensor, value.version = before, 0

    def saved_version(self, version: int) -> None:
        """The version of the target after the write."""
        if self.out_shadow is not None:
            assert self.kept is not None
            self.kept["out"].version = version

    def backward(self, grads: list[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the inputs that are needed, each of its input's shape and dtype."""
        g = grads[0]
        if g is None:
            return [None] * len(self.edges)
        if self.freed:
            raise freed(self.op.name)
        conjugates = self.metas[0].dtype.is_complex and not self.op.hermitian
        if conjugates:  # the rules are those of real numbers, Jᵀ g; of complex ones it is Jᴴ g, the conjugate of Jᵀ on the conjugate
            g = g.conj()
        out: list[Tensor | None] = [None] * len(self.edges)
        done_variadic = False
        for i, needed in enumerate(needs):
            if not needed or (done_variadic and out[i] is not None):
                continue
            name = self.op.input_name(i)
            rule = self.op.vjp.get(name)
            if rule is None:
                continue
            value = rule.function(*[self._argument(n, g) for n in rule.names])
            if "*" + name == self.op.inputs[-1]:
                first = len(self.op.inputs) - 1
                for k, v in enumerate(value):
                    if needs[first + k] and v is not None:
                        out[first + k] = fit(v.conj() if conjugates else v, self.in_metas[first + k])
                done_variadic = True
            elif value is not None:
                out[i] = fit(value.conj() if conjugates else value, self.in_metas[i])
        return out

    def _argument(self, name: str, g: Tensor) -> Any:
        if name == "g":
            return g
        assert self.kept is not None
        if name == "out_spec":
            return self.metas[0].spec
        value = self.kept.get(name)
        if value is None:
            if name in self.op.attrs:
                return self.attrs[self.op.attrs.index(name)]
            if name.endswith("_spec"):
                return self._spec(self.op.inputs.index(name[:-5]))
            if name.endswith("_specs"):
                first = len(self.op.inputs) - 1
                return [self._spec(i) for i in range(first, len(self.in_metas))]
            raise TypeError(
                f"{self.op.name}: its gradient rule asks for '{name}'; it has inputs {self.op.inputs}, attributes {self.op.attrs}"
            )
        if isinstance(value, Saved):
            t = value.get(self.op)
            if t is self.out_shadow and STATE.grad:  # double backward: the saved output leads back to this node
                seen = new(Tensor)
                seen._np, seen._store, seen._meta, seen._run, seen._step, seen._node = t._np, t._store, t._meta, t._run, t._step, self
                return seen
            return t
        if isinstance(value, list):
            return [v.get(self.op) if isinstance(v, Saved) else v for v in value]
        return value

    def _spec(self, i: int) -> Spec:
        m = self.in_metas[i]
        return m.spec if isinstance(m, Meta) else as_spec(m)

    def release(self) -> None:
        """Let go of what was saved; a second backward raises where something had been."""
        if self.kept is not None and any(isinstance(v, Saved | list) for v in self.kept.values()):
            self.freed = True
            self.kept = {}
            self.out_shadow = None


def fit(g: Tensor, m: Meta) -> Tensor:
    """A gradient brought to the shape and dtype of the tensor it belongs to: sums over broadcast dimensions, casts."""
    if g._meta.shape != m.shape:
        g = apply(op_module.OPS["sum_to"], (g,), (tuple(m.shape),))
    if g._meta.dtype is not m.dtype:
        g = apply(op_module.OPS["cast"], (g,), (m.dtype,))
    return g


# ------------------------------------------------------------------------------------------------ the engine


def backward(
    tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], retain_graph: bool = False, create_graph: bool = False,
    inputs: Sequence[Tensor] | None = None,
) -> None:
    """Accumulate into `.grad` of the leaves (or only of `inputs`) the gradient of the sum of `tensors`."""
    run = STATE.run
    if run is not None and run.copies:
        run.look_again()
    if run is not None and run.follow_backward(tensors, gradients, retain_graph, create_graph, inputs):
        return
    record = None if run is None else run.begin_backward(tensors, gradients, retain_graph, create_graph, inputs)
    walk_back(_seed(tensors, gradients), retain_graph, create_graph, None, inputs, record)
    if record is not None:
        record.finish()


def grad(
    outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], grad_outputs: Any = None, retain_graph: bool | None = None,
    create_graph: bool = False, allow_unused: bool | None = None, materialize_grads: bool = False, **_: Any,
) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of `outputs` with respect to `inputs`, nothing accumulated.

    Raises RuntimeError when an input does not require grad or was not used (unless `allow_unused`).
    """
    run = STATE.run
    if run is not None and run.copies:
        run.look_again()
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    seeds = [grad_outputs] if isinstance(grad_outputs, Tensor) or grad_outputs is None else list(grad_outputs)
    if len(seeds) == 1 and seeds[0] is None:
        seeds = [None] * len(outs)
    for t in ins:
        if not t._meta.requires_grad:
            raise RuntimeError("grad: One of the differentiated Tensors does not require grad")
    found: dict[int, Tensor] = {}
    walk_back(_seed(outs, seeds), create_graph if retain_graph is None else retain_graph, create_graph, found, ins, None)
    result: list[Tensor | None] = []
    for i, t in enumerate(ins):
        g = found.get(i)
        if g is None and materialize_grads:
            g = _filled(0, t._meta)
        if g is None and not allow_unused:
            raise RuntimeError(
                "grad: One of the differentiated Tensors appears to not have been used in the graph. Set allow_unused=True if "
                "this is the desired behavior."
            )
        result.append(g)
    return tuple(result)


def _seed(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[tuple[Edge, Tensor]]:
    run = STATE.run
    if run is not None:
        run.constants = True  # the 1 that starts a backward pass belongs to the program
    try:
        return _seeds(tensors, gradients)
    finally:
        if run is not None:
            run.constants = False


def _seeds(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[tuple[Edge, Tensor]]:
    out = []
    for t, g in zip(tensors, gradients, strict=True):
        edge = edge_of(t)
        if edge is None:
            raise RuntimeError("backward: element 0 of tensors does not require grad and does not have a grad_fn")
        m = t._meta
        if g is None:
            if m.numel != 1:
                raise RuntimeError(
                    f"backward: grad can be implicitly created only for scalar outputs; the tensor has shape {tuple(m.shape)}"
                    "\nhelp: pass gradient="
                )
            g = _filled(1, m)
        elif g._meta.shape != m.shape:
            raise RuntimeError(
                f"backward: Mismatch in shape: the gradient has shape {tuple(g._meta.shape)}; expected the tensor's {tuple(m.shape)}"
            )
        out.append((edge, g))
    return out


def _filled(value: int, m: Meta) -> Tensor:
    """A tensor like `m` filled with a number."""
    attrs = (tuple(m.shape), m.dtype)
    if m.device is not CPU and STATE.run is None:
        return wrap(storage.compute(op_module.OPS["full"], (value,), attrs, m.device))
    t = apply(op_module.OPS["full"], (value,), attrs)
    return t if m.device is CPU else apply(op_module.OPS["to_device"], (t,), (m.device, False))


def _order(roots: Iterable[Node]) -> list[Node]:
    """Nodes reachable from the roots, users before makers."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(r, False) for r in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((e[0], False) for e in node.edges if e.__class__ is tuple)
    order.reverse()
    return order


def _needed(order: list[Node], targets: set[Any]) -> set[Node]:
    """The nodes on a way to one of the targets."""
    keep: set[Node] = set()
    for node in reversed(order):
        if any(k[0] is node for k in targets if k.__class__ is tuple):
            keep.add(node)
        for e in node.edges:
            if e is not None and ((e[0] in keep or e in targets) if e.__class__ is tuple else id(e) in targets):
                keep.add(node)
    return keep


def walk_back(
    seeds: list[tuple[Edge, Tensor]], retain_graph: bool, create_graph: bool, found: dict[int, Tensor] | None,
    inputs: Sequence[Tensor] | None, record: Any,
) -> None:
    """Send gradients from the seeds towards the leaves.

    With `found`, gradients of `inputs` are collected there by position; else they go to `.grad` of the leaves (of `inputs`
    alone where given). Gradients of all leaves are complete before the first `.grad` changes, so that an error changes nothing.
    """
    buffers: dict[Node, list[Tensor | None]] = {}
    leaves: dict[int, tuple[Tensor, Tensor]] = {}
    captured: dict[Any, list[int]] = {}
    targets: set[Any] = set()
    for i, t in enumerate(inputs or ()):
        edge = edge_of(t)
        key = edge if edge.__class__ is tuple else id(edge)
        captured.setdefault(key, []).append(i)
        targets.add(key)

    before, run, casts = STATE.grad, STATE.run, STATE.autocast
    if run is not None:
        run.walking += 1
        run.constants = True  # numbers that rules compute with belong to the program
    _set_grad(create_graph)
    STATE.autocast = None  # the rules compute in the dtypes of the forward pass
    try:

        def send(edge: Edge, g: Tensor) -> None:
            if edge.__class__ is tuple:
                node, k = edge
                slot = buffers.get(node)
                if slot is None:
                    slot = buffers[node] = [None] * len(node.metas)
                slot[k] = g if slot[k] is None else apply(op_module.OPS["add"], (slot[k], g))
            else:
                old = leaves.get(id(edge))
                leaves[id(edge)] = (edge, g if old is None else apply(op_module.OPS["add"], (old[1], g)))

        for edge, g in seeds:
            send(edge, g)
        order = _order(e[0] for e, _ in seeds if e.__class__ is tuple)
        needed = _needed(order, targets) if inputs is not None else None
        visited = []
        collected: dict[int, Tensor] = {}
        for node in order:
            grads = buffers.pop(node, None)
            if grads is None:
                continue
            if node.hooks:
                if record is not None:
                    record.refuse()
                for k, hooks in node.hooks.items():
                    if grads[k] is not None:
                        grads[k] = run_hooks(hooks, grads[k])
            for k in range(len(grads)):
                for i in captured.get((node, k), ()):
                    if grads[k] is not None:
                        collected[i] = grads[k]  # type: ignore[assignment]
            if needed is not None and node not in needed:
                continue
            needs = [
                e is not None and (needed is None or (id(e) in targets if e.__class__ is not tuple else e in targets or e[0] in needed))
                for e in node.edges
            ]
            if any(needs):
                visited.append(node)
                if record is not None:
                    record.visit(node)
                if storage.in_use and isinstance(node, OpNode):
                    STATE.place = None if grads[0] is None or grads[0]._meta.device is CPU else grads[0]._meta.device
                arrived = node.backward(grads, needs)
                STATE.place = None
                for edge, g in zip(node.edges, arrived, strict=True):
                    if g is not None and edge is not None:
                        send(edge, g)
        del order
        for key, (leaf, g) in list(leaves.items()):
            if leaf._hooks:
                if record is not None:
                    record.refuse()
                leaves[key] = (leaf, run_hooks(leaf._hooks, g))
            if leaf._accumulated_hooks and record is not None:
                record.refuse()
        for key, (_, g) in leaves.items():
            for i in captured.get(key, ()):
                collected[i] = g
        if not retain_graph and not create_graph:
            for node in visited:
                node.release()
        if found is not None:
            found.update(collected)
            return
        if inputs is None:
            destinations = [(leaf, g) for leaf, g in leaves.values()]
        else:
            destinations = [(inputs[i], g) for i, g in collected.items()]
        taken: set[int] = {id(g) for _, g in seeds}
        for leaf, g in destinations:
            accumulate(leaf, g, create_graph, taken, record)
            for hook in list((leaf._accumulated_hooks or {}).values()):
                hook(leaf)
    finally:
        if run is not None:
            run.walking -= 1
            run.constants = False
        STATE.place = None
        STATE.autocast = casts
        _set_grad(before)


def accumulate(leaf: Tensor, g: Tensor, create_graph: bool, taken: set[int], record: Any) -> None:
    """`leaf.grad += g`; a first gradient is taken over, unless someone else holds or sees its memory."""
    old = leaf._grad
    if old is None:
        m = g._meta
        if id(g) in taken or m.shared or not m.contiguous:
            g = apply(op_module.OPS["clone"], (g,))
        taken.add(id(g))
        if not create_graph and g._meta.requires_grad:
            g = apply(op_module.OPS["detach"], (g,))
        if record is not None:
            record.leaf(leaf, None, g)
        leaf._grad = g
    elif create_graph:
        leaf._grad = apply(op_module.OPS["add"], (old, g))
    else:
        if record is not None:
            record.leaf(leaf, old, g)
        inplace(op_module.OPS["add"], old, (old, g))


def run_hooks(hooks: dict[int, Callable[[Tensor], Tensor | None]], g: Tensor | None) -> Tensor:
    """Each hook may replace the gradient."""
    assert g is not None
    with users_code():
        for hook in list(hooks.values()):
            replaced = hook(g)
            if replaced is not None:
                g = replaced
    return g


@contextlib.contextmanager
def users_code() -> Iterator[None]:
    """Numbers that a user's code computes with inside a backward pass are data of the call again."""
    run = STATE.run
    if run is None:
        yield
        return
    before, run.constants = run.constants, False
    try:
        yield
    finally:
        run.constants = before
    if run.copies:
        run.look_again()


class RemovableHandle:
    """What `register_hook` returns: `remove()` takes the hook away."""

    count = 0

    def __init__(self, hooks: dict[int, Any]):
        self.hooks = hooks
        RemovableHandle.count += 1
        self.id = RemovableHandle.count

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        self.hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def register_hook(t: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `hook(grad)` when the gradient of `t` is computed; what it returns replaces the gradient.

    Raises RuntimeError when `t` does not require grad.
    """
    if not t._meta.requires_grad:
        raise RuntimeError("register_hook: cannot register a hook on a tensor that doesn't require gradient")
    hooks = _hooks_of(t)
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def register_post_accumulate_grad_hook(t: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `hook(t)` each time a backward pass has added to `t.grad`. Raises RuntimeError for tensors that are no leaves."""
    if not t._meta.requires_grad or not is_leaf(t):
        raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    if t._accumulated_hooks is None:
        t._accumulated_hooks = {}
    handle = RemovableHandle(t._accumulated_hooks)
    t._accumulated_hooks[handle.id] = hook
    return handle


def _hooks_of(t: Tensor) -> dict[int, Any]:
    edge = edge_of(t)
    if edge.__class__ is not tuple:
        if t._hooks is None:
            t._hooks = {}
        return t._hooks
    if t._np is None:
        t._run.observe(t)
        edge = edge_of(t)
    node, k = edge
    if node.hooks is None:
        node.hooks = {}
    return node.hooks.setdefault(k, {})


def retain_grad(t: Tensor) -> None:
    """Keep the gradient of a non-leaf tensor in its `.grad`."""
    if not t._meta.requires_grad:
        raise RuntimeError("retain_grad: can't retain_grad on Tensor that has requires_grad=False")
    if is_leaf(t) or t._retains_grad:
        return
    hooks = _hooks_of(t)
    t._retains_grad = True
    seen = weakref.ref(t)

    def keep(g: Tensor) -> None:
        owner = seen()
        if owner is not None:
            owner._grad = g if owner._grad is None else owner._grad + g  # type: ignore[operator]

    hooks[RemovableHandle(hooks).id] = keep


def inplace(op: Op, target: Tensor, inputs: tuple[Any, ...], attrs: tuple[Any, ...] = ()) -> Tensor:
    """Dispatch `target.op_(…)`: `target` becomes `op(*inputs)`."""
    run = STATE.run
    return execute_inplace(op, target, inputs, attrs) if run is None else run.step_inplace(op, target, inputs, attrs)


def execute_update(op: Op, lists: Sequence[Sequence[Tensor]], scalars: Sequence[Any], attrs: tuple[Any, ...]) -> None:
    """Run an update operator's body at once and write its results."""
    if other_threads():
        meet([t for ts in lists for t in ts], [t for i in op.writes for t in lists[i]])
    if storage.in_use and storage.update(op, lists, scalars, attrs):
        return
    before = STATE.grad
    _set_grad(False)
    try:
        if any(t._meta.dtype.is_complex for ts in lists for t in ts):  # as pairs of real numbers, which share their memory
            as_real = op_module.OPS["view_as_real"]
            lists = [[execute(as_real, (t,), ()) if t._meta.dtype.is_complex else t for t in ts] for ts in lists]
        results = op.lower.body(*lists, *scalars, *attrs)  # type: ignore[union-attr]
        written = []
        for position, values in zip(op.writes, results, strict=True):
            for t, v in zip(lists[position], values, strict=True):
                written.append((t, force(v)))
        for t, v in written:
            force(t)[...] = v
            t._store.version += 1
    finally:
        _set_grad(before)


# ------------------------------------------------------------------------------------------------ user functions


class Context:
    """What `Function.forward` and `Function.backward` share."""

    needs_input_grad: tuple[bool, ...] = ()

    def __init__(self) -> None:
        self._saved: list[Saved | None] = []
        self._materialize = True
        self._non_differentiable: set[int] = set()
        self._dirty: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `backward`; overwriting them in between raises there."""
        self._saved = [None if t is None else Saved(t) for t in tensors]

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What `save_for_backward` kept."""
        return tuple(None if s is None else s.get(_FUNCTION) for s in self._saved)

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """These outputs get no gradient."""
        self._non_differentiable |= {id(t) for t in tensors}

    def mark_dirty(self, *tensors: Tensor) -> None:
        """These inputs were overwritten by `forward`."""
        self._dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """False: gradients that are missing reach `backward` as None instead of zeros."""
        self._materialize = value


class FunctionNode(Node):
    """A user's Function on the tape."""

    __slots__ = ("function", "ctx", "freed", "arguments")

    def __init__(self, function: type[Function], ctx: Context, edges: tuple[Edge, ...], metas: tuple[Meta, ...]):
        super().__init__(edges, metas)
        self.function, self.ctx, self.freed = function, ctx, False

    def backward(self, grads: list[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        """Call the user's backward."""
        if self.freed:
            raise RuntimeError(
                f"{self.function.__name__}: Trying to backward through the graph a second time\nhelp: specify retain_graph=True"
            )
        if self.ctx._materialize:
            grads = [_filled(0, m) if g is None and m is not None else g for g, m in zip(grads, self.metas, strict=True)]
        with users_code():
            result = self.function.backward(self.ctx, *grads)
        listed = list(result) if isinstance(result, tuple | list) else [result]
        if len(listed) > len(self.edges) and all(x is None for x in listed[len(self.edges):]):
            listed = listed[: len(self.edges)]
        if len(listed) != len(self.edges):
            raise RuntimeError(
                f"function {self.function.__name__}Backward returned an incorrect number of gradients (expected "
                f"{len(self.edges)}, got {len(listed)})"
            )
        return listed

    def release(self) -> None:
        """Free what was saved."""
        if self.ctx._saved:
            self.freed = True
            self.ctx._saved = []


class Function:
    """A differentiable operation written by hand: subclass it with static `forward(ctx, …)` and `backward(ctx, *grads)`."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; overridden by the user."""
        raise TypeError("Function: forward is not defined")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Compute the gradients of the inputs; overridden by the user."""
        raise TypeError("Function: backward is not defined")

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run `forward` and put it on the tape. Inside a compiled call the segment ends before and after it."""
        run = STATE.run
        if run is not None:
            run.flush(f"autograd.Function {cls.__name__}")
        ctx = Context()
        edges = tuple(edge_of(a) for a in args)
        needs = STATE.grad and any(e is not None for e in edges)
        ctx.needs_input_grad = tuple(e is not None for e in edges)
        separate = "setup_context" in cls.__dict__ or hasattr(cls, "setup_context")
        with no_grad():
            out = cls.forward(*args, **kwargs) if separate else cls.forward(ctx, *args, **kwargs)
            if separate:
                cls.setup_context(ctx, args, out)  # type: ignore[attr-defined]
        if run is not None:
            run.flush(f"autograd.Function {cls.__name__}")
        if not needs:
            return out
        outs = list(out) if isinstance(out, tuple | list) else [out]
        made = []
        for t in outs:
            if isinstance(t, Tensor) and (any(t is a for a in args) or t._node is not None):  # an input returned as it is
                t = apply(op_module.OPS["clone"], (t,)) if all(t is not d for d in ctx._dirty) else t
                force(t)
            made.append(t)
        node = FunctionNode(cls, ctx, edges, tuple([t._meta if isinstance(t, Tensor) else None for t in made]))  # type: ignore[misc]
        for k, t in enumerate(made):
            if isinstance(t, Tensor) and t._meta.dtype.has_gradient and id(t) not in ctx._non_differentiable:
                t._meta = t._meta.replace(requires_grad=True)
                t._node, t._out = node, k
        return tuple(made) if isinstance(out, tuple | list) else made[0]


_FUNCTION = Op("Function", (), (), lambda: np.empty(0), lambda: Spec((), dtypes.float32), {}, None)
op_module.set_executor(execute)
op_module.set_update_executor(execute_update)


def __getattr__(name: str) -> Any:  # what only some programs need: Jacobians, checks by differences
    if name.startswith("__"):
        raise AttributeError(name)
    found = importlib.import_module("torchlet.gradients").NAMES.get(name)
    if found is None:
        raise AttributeError(f"module 'torchlet.autograd' has no attribute '{name}'")
    return found
