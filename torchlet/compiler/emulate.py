"""Runs launch plans on arrays, kernel by kernel, in NumPy or as interpreted Triton: how plans are checked without their hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.compiler.codegen import triton
from torchlet.compiler.graph import Node
from torchlet.compiler.interpret import interpret_kernel
from torchlet.compiler.loops import Kernel
from torchlet.compiler.schedule import KernelLaunch, Plan, Slot
from torchlet.runtime import interpreter

__all__ = ["run_interpreted_triton", "run_plan", "triton_kernels"]

Number = int | float | bool
Array = np.ndarray[Any, Any]
Launch = Callable[[Kernel, list[Array], list[Number]], None]


def run_plan(plan: Plan, inputs: Sequence[Array], scalars: Sequence[Number] = (), launch: Launch = interpret_kernel) -> list[Array]:
    """The outputs of a plan whose kernels are run by `launch(kernel, flat arrays, scalars)`; targets lie in copies of the inputs."""
    graph = plan.graph
    memory: dict[Slot, Array] = {}
    views: list[Array] = []
    for j, (x, n) in enumerate(zip(inputs, graph.inputs, strict=True)):
        strides = n.attrs[1]
        size = 0 if 0 in n.spec.shape else 1 + sum((k - 1) * s for k, s in zip(n.spec.shape, strides, strict=True))
        flat = np.zeros(max(size, 1), n.spec.dtype.np)
        view = np.lib.stride_tricks.as_strided(flat, n.spec.shape, [s * flat.itemsize for s in strides])
        if size:
            view[...] = x
        memory[Slot("input", j)] = flat
        views.append(view)
    for k, o in enumerate(graph.outputs):
        memory[Slot("output", k)] = np.zeros(max(o.spec.numel, 1), o.spec.dtype.np)
    bytes_ = np.zeros(max(plan.arena_bytes, 64), np.uint8)

    def flat_at(slot: Slot, size: int, d: dtypes.dtype) -> Array:
        if slot.kind == "arena":
            return bytes_[slot.number : slot.number + size * d.itemsize].view(d.np)
        return memory[slot][:size]

    for step in plan.steps:
        if isinstance(step, KernelLaunch):
            arrays = [flat_at(slot, b.size, b.dtype) for slot, b in zip(step.slots, step.kernel.buffers, strict=True)]
            launch(step.kernel, arrays, [scalars[i] for i in step.scalars])
            continue
        args: list[Any] = []
        for operand, place in zip(step.node.inputs, step.inputs, strict=True):
            if place is None:
                args.append(scalars[operand.attrs[0]] if isinstance(operand, Node) else operand)
            elif place[0].kind == "input":
                args.append(views[place[0].number])
            else:
                assert isinstance(operand, Node)
                args.append(flat_at(place[0], operand.spec.numel, operand.spec.dtype).reshape(operand.spec.shape))
        node = step.node
        assert node.op is not None
        flat_at(step.output, node.spec.numel, node.spec.dtype)[...] = np.asarray(node.op.eager(*args, *node.attrs)).reshape(-1)
    outs = []
    for k, (n, target) in enumerate(zip(graph.outputs, graph.targets, strict=True)):
        outs.append(memory[Slot("output", k)][: n.spec.numel].reshape(n.spec.shape) if target is None else views[target])
    return outs


def triton_kernels(plan: Plan, target: str = "cuda:90") -> list[triton.TritonKernel]:
    """Every kernel of the plan as Triton source."""
    return [triton.emit(k, target) for k in plan.kernels]


def run_interpreted_triton(plan: Plan, inputs: Sequence[Array], scalars: Sequence[Number] = ()) -> list[Array]:
    """The outputs of the plan with every kernel run as Triton source in Triton's interpreter."""
    return run_plan(plan, inputs, scalars, lambda kernel, arrays, numbers: interpreter.run(triton.emit(kernel), arrays, numbers))
