"""Eager operations on device arrays: each operator is a graph of one node, compiled like any other and kept by what it is applied to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import autograd, dtypes, storage
from torchlet.compiler.execute import compile_graph
from torchlet.compiler.graph import Builder, Graph, Node
from torchlet.compiler.launch import HOST_CALLS, target_of
from torchlet.compiler.recurrent import LAYERS, has_loop
from torchlet.errors import CompileError
from torchlet.op import OPS, Op
from torchlet.runtime import cuda
from torchlet.spec import CPU, Spec
from torchlet.spec import device as Place
from torchlet.storage import DeviceArray
from torchlet.tensor import Tensor

__all__ = ["copy", "copy_into", "run_op", "run_update"]

_OPS: dict[tuple[Any, ...], Any] = {}  # what was compiled; None: the operator runs on the host


def run_op(op: Op, arrays: tuple[Any, ...], attrs: tuple[Any, ...], place: Place | None = None) -> Any:
    """The operator's result on the device of its inputs, or at `place` where it needs numbers only.

    Arrays of no dimension may be the host's, as in PyTorch. The result is a DeviceArray, except where it was moved to the host.
    An operator that has no loops, or whose result's shape depends on data, runs on the host; `HOST_CALLS` counts it.
    Raises RuntimeError for inputs on different devices, and what the operator's spec raises.
    """
    if op.name == "to_device":
        return storage.transfer(arrays[0], *attrs)
    if op.is_view:
        seen = storage.view_of(arrays[0], op, attrs)
        if seen is not None:
            return seen
    place = place or common_place(op.name, arrays)
    arrays = tuple([storage.transfer(a, place) if isinstance(a, np.ndarray) else a for a in arrays])
    key = (op, attrs, place, tuple([(a.shape, a.strides, a.dtype) if a.__class__ is DeviceArray else a.__class__ for a in arrays]))
    found = _OPS.get(key, key)
    if found is key:
        found = _OPS[key] = _compile_op(op, arrays, attrs, place)
    if found is None:
        HOST_CALLS[op.name] += 1
        return storage.transfer(autograd.compute_on_host(op, [storage.as_host(a) for a in arrays], attrs), place)
    executable, shape, dtype = found
    out = cuda.empty(shape, dtype, place)
    addresses = [a.address for a in arrays if a.__class__ is DeviceArray]
    executable.run(addresses, [out.address], [a for a in arrays if a.__class__ is not DeviceArray])
    return out


def common_place(name: str, arrays: Sequence[Any]) -> Place:
    """The one device of the arrays. Raises RuntimeError where there are two."""
    places = dict.fromkeys(storage.device_of(a) for a in arrays if a.__class__ is DeviceArray or (isinstance(a, np.ndarray) and a.ndim))
    if len(places) > 1:
        if name not in autograd.CPU_INDICES:
            raise autograd.mixed_devices(name, list(places))
        places.pop(CPU, None)
    return next(iter(places))


def _compile_op(op: Op, arrays: Sequence[Any], attrs: tuple[Any, ...], place: Place) -> Any:
    if op.barrier or (op.lower is None and op.name not in LAYERS):
        return None
    target_of(cuda.device(place))  # an architecture that is not supported is no reason to compute elsewhere
    b = Builder()
    operands = _operands(b, arrays)
    node = b.node(op, tuple(operands), attrs)
    if op.lower is None and not has_loop(node):
        return None
    try:
        executable = compile_graph(_graph(op.name, operands, (node,), (None,)), op.name, place)
    except CompileError:
        return None
    return executable, node.spec.shape, node.spec.dtype.np


def _operands(b: Builder, values: Sequence[Any]) -> list[Node]:
    """Inputs for arrays, scalars for numbers: a number's value never makes another kernel."""
    out = []
    for a in values:
        if a.__class__ is DeviceArray:
            out.append(b.input(Spec(a.shape, dtypes.from_numpy(a.dtype)), tuple([s // a.itemsize for s in a.strides])))
        else:
            d = dtypes.of_scalar(a)
            out.append(b.scalar(dtypes.float64 if d.is_floating_point else d))
    return out


def _graph(name: str, operands: Sequence[Node], outputs: tuple[Node, ...], targets: tuple[int | None, ...]) -> Graph:
    inputs, scalars = [n for n in operands if n.kind == "input"], [n for n in operands if n.kind == "scalar"]
    return Graph(name, tuple(inputs), tuple(scalars), outputs, targets)


def copy(array: DeviceArray) -> DeviceArray:
    """The elements in fresh, row-major memory."""
    out = run_op(OPS["clone"], (array,), ())
    assert isinstance(out, DeviceArray)
    return out


def copy_into(target: DeviceArray, source: Any) -> None:
    """Overwrite `target` with an array of its shape, of any dtype, from anywhere."""
    source = storage.transfer(np.asarray(source) if not isinstance(source, DeviceArray) else source, target.device)
    if source.shape != target.shape:
        raise ValueError(f"could not broadcast input array from shape {source.shape} into shape {target.shape}")
    key = ("copy", target.device, *[(a.shape, a.strides, a.dtype) for a in (target, source)])
    executable = _OPS.get(key)
    if executable is None:
        b = Builder()
        into, given = operands = _operands(b, (target, source))
        same = given.spec.dtype is into.spec.dtype
        node = b.node(OPS["clone"], (given,), ()) if same else b.node(OPS["cast"], (given,), (into.spec.dtype,))
        executable = _OPS[key] = compile_graph(_graph("copy", operands, (node,), (0,)), "copy", target.device)
    executable.run([target.address, source.address], [0], ())


def run_update(op: Op, lists: Sequence[Sequence[Tensor]], scalars: Sequence[Any], attrs: tuple[Any, ...]) -> bool:
    """An update operator over tensors of one device, as one compiled graph. False where that cannot be: run it operator by operator."""
    tensors = [t for group in lists for t in group]
    arrays: list[Any] = [autograd.force(t) for t in tensors]
    places = {storage.device_of(a) for a in arrays}
    if len(places) != 1 or CPU in places or len({a.address for a in arrays}) != len(arrays):
        return False
    place = places.pop()
    lengths = tuple(map(len, lists))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    written = [starts[i] + k for i in op.writes for k in range(lengths[i])]
    key = (op, attrs, place, lengths, tuple([(a.shape, a.strides, a.dtype) for a in arrays]), tuple([s.__class__ for s in scalars]))
    executable = _OPS.get(key)
    if executable is None:
        b = Builder()
        operands = _operands(b, [*arrays, *scalars])
        made = [b.tensor(n) for n in operands]
        groups = [made[s : s + n] for s, n in zip(starts, lengths, strict=True)]
        body: Callable[..., Any] = op.lower.body  # type: ignore[union-attr]
        with b:
            results = body(*groups, *made[len(arrays) :], *attrs)
        outputs = []
        for at, t in zip(written, [t for group in results for t in group], strict=True):
            node = b.unwrap(t)
            assert isinstance(node, Node)
            wanted = operands[at].spec.dtype
            outputs.append(node if node.spec.dtype is wanted else b.node(OPS["cast"], (node,), (wanted,)))
        executable = _OPS[key] = compile_graph(_graph(op.name, operands, tuple(outputs), tuple(written)), op.name, place)
    executable.run([a.address for a in arrays], [0] * len(written), list(scalars))
    for at in written:
        tensors[at]._store.version += 1
    return True
