"""Recurrent layers on GPUs: the loop's kernels against float64 in Triton's interpreter, whole layers on the stand-in, what compiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphs import graph_of
from standin import CC, stand_in

import torchlet as torch
from torchlet import nn
from torchlet.compiler import launch, loop_text
from torchlet.compiler.codegen.triton import emit, emit_choices
from torchlet.compiler.differentiate import differentiate
from torchlet.compiler.emulate import run_interpreted_triton, run_plan
from torchlet.compiler.execute import optimize
from torchlet.compiler.graph import Graph
from torchlet.compiler.offline import TARGETS, compile_kernel, fitting
from torchlet.compiler.recurrent import Recurrent
from torchlet.compiler.schedule import Extern, Plan, schedule
from torchlet.compiler.tile import MACHINES
from torchlet.ops.recurrent import MODES, recurrent_
from torchlet.runtime import interpreter

rng = np.random.default_rng(7)


def layer(mode: str, steps: int, n: int, h: int, lengths: bool = False, d: Any = np.float32) -> list[np.ndarray]:
    """Gates, weight, bias, initial state and lengths of a layer."""
    count, states, _ = MODES[mode]
    shapes = ((steps, n, count * h), (count * h, h), (count * h,), (states, n, h))
    arrays = [(0.7 * rng.standard_normal(s)).astype(d) for s in shapes]
    arrays[1] = (arrays[1].astype(np.float32) / np.sqrt(h)).astype(d)
    return arrays + ([rng.integers(1, steps + 1, n)] if lengths else [])


def training(f: Callable[..., Any], *arrays: np.ndarray) -> Graph:
    """f's result and the gradients of its inputs for a gradient that is the last input."""
    forward = graph_of(f, *arrays)
    joint, _, _ = differentiate(forward, [forward.outputs[0]], [n for n in forward.inputs if n.spec.dtype.is_floating_point])
    return replace(joint, output_names=())


def plan_of(graph: Graph) -> Plan:
    return schedule(optimize(graph, gpu=True), "f", gpu=True)[0]


def loops(plan: Plan) -> dict[str, Any]:
    """The plan's kernels of time loops, by their part."""
    assert not any(isinstance(s, Extern) for s in plan.steps)
    return {k.body.part: k for k in plan.kernels if isinstance(k.body, Recurrent)}


def expected(f: Callable[..., Any], g: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """The same in float64 on the CPU."""
    wide = [torch.tensor(a if a.dtype.kind == "i" else a.astype(np.float64), requires_grad=a.dtype.kind != "i") for a in arrays]
    out = f(*wide)
    grads = torch.autograd.grad(out, [t for t in wide if t.requires_grad], torch.tensor(g.astype(np.float64)))
    return [t.detach().numpy() for t in (out, *grads)]


def check(mode: str, reverse: bool, arrays: list[np.ndarray], tolerance: float, f: Callable[..., Any] | None = None) -> Plan:
    f = f or (lambda *inputs: recurrent_(*inputs, mode=mode, reverse=reverse, keep=True)[: MODES[mode][1]])
    joint = training(f, *arrays)
    g = rng.standard_normal(joint.outputs[0].spec.shape).astype(arrays[0].dtype)
    plan = plan_of(joint)
    assert list(loops(plan)) == ["forward", "backward"]
    wanted = expected(f, g, *arrays)
    for run in (run_interpreted_triton, run_plan):
        for found, exact in zip(run(plan, [*arrays, g]), wanted, strict=True):
            np.testing.assert_allclose(found.astype(np.float64), exact, rtol=0, atol=tolerance * np.abs(exact).max())
    return plan


CASES = list(itertools.product(MODES, [False, True], [False, True]))


@pytest.mark.slow
@pytest.mark.parametrize("mode,reverse,lengths", CASES)
def test_states_and_all_gradients_are_those_of_float64(mode: str, reverse: bool, lengths: bool) -> None:
    check(mode, reverse, layer(mode, 4, 5, 6, lengths), 4e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_several_blocks_of_samples_units_and_columns(mode: str) -> None:
    arrays = layer(mode, 3, 19, 70, True)
    forward = loops(check(mode, False, arrays, 3e-6))["forward"]
    tk = emit(forward)
    assert tk.grid[0] == 2 and "H=70" in tk.source and "BLOCK_N=32" in tk.source and "BLOCK_K=32" in tk.source


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d,tolerance", [(ml_dtypes.bfloat16, 1e-2), (np.float16, 2e-3)])
def test_sixteen_bit_layers_lose_only_what_their_rounding_loses(mode: str, d: Any, tolerance: float) -> None:
    check(mode, True, layer(mode, 6, 4, 40, True, d), tolerance)


@pytest.mark.slow
def test_the_cell_of_a_sixteen_bit_lstm_adds_up_in_float32() -> None:
    gates, w, b, first = layer("LSTM", 60, 2, 16, d=ml_dtypes.bfloat16)
    gates[...] = 0
    w[...], first[...] = 0, 0
    b[:16], b[16:32], b[32:48] = -5.5, 20, 1  # little enters, all is kept: after some steps less than a half unit of the last place
    graph = graph_of(lambda *inputs: recurrent_(*inputs, mode="LSTM", reverse=False, keep=False), gates, w, b, first)
    cell = run_interpreted_triton(plan_of(graph), [gates, w, b, first])[0][1].astype(np.float64)
    exact = np.arange(1, 61) * np.tanh(1.0) / (1 + np.exp(5.5))
    np.testing.assert_allclose(cell[:, 0, 0], exact, rtol=5e-3)


@pytest.mark.slow
def test_one_step_one_sample_and_one_unit() -> None:
    for mode in MODES:
        check(mode, False, layer(mode, 1, 1, 1), 1e-6)


@pytest.mark.slow
def test_operands_are_read_where_they_lie_whatever_their_strides() -> None:
    gates, w, b, first = layer("GRU", 3, 4, 18)

    def f(gates: Any, w: Any, b: Any, first: Any) -> Any:  # batch first, a transposed weight, a layer of a stack of states
        return recurrent_(gates.transpose(0, 1), w.mT, b, first[1:].mT, mode="GRU", reverse=False, keep=True)[:1]

    arrays = [gates.transpose(1, 0, 2).copy(), w.T.copy(), b, np.stack([first[0].T, first[0].T])]
    plan = check("GRU", False, arrays, 3e-6, f)
    forward = loops(plan)["forward"]
    assert [b.name for b in forward.buffers if b.role == "input"] == ["x0", "x1", "x2", "x3"]


@pytest.mark.slow
def test_two_layers_in_both_directions_of_a_module() -> None:
    for make in (nn.LSTM, nn.GRU):
        module = make(3, 5, 2, bidirectional=True)
        names = [n for n, _ in module.named_parameters()]
        parameters = [p.detach().numpy() for p in module.parameters()]

        def f(x: Any, *values: Any, module: Any = module, names: Any = names) -> Any:
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))[0]

        arrays = [rng.standard_normal((4, 2, 3)).astype(np.float32), *parameters]
        joint = training(f, *arrays)
        plan = plan_of(joint)
        g = rng.standard_normal(joint.outputs[0].spec.shape).astype(np.float32)
        # gradients were not wanted where the graph was made, so nothing was kept for them: they run the loops again
        assert sum(isinstance(k.body, Recurrent) for k in plan.kernels) == 12
        module.double()
        for found, exact in zip(run_interpreted_triton(plan, [*arrays, g]), expected(f, g, *arrays), strict=True):
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


# ------------------------------------------------------------------------------------------------ what is shared, what is left alone


def forward_kernel(mode: str, steps: int, n: int, h: int, d: Any = np.float32, lengths: bool = False) -> Any:
    graph = graph_of(lambda *x: recurrent_(*x, mode=mode, reverse=False, keep=False), *layer(mode, steps, n, h, lengths, d))
    return loops(plan_of(graph))["forward"]


def test_lengths_and_batches_of_every_size_share_one_binary() -> None:
    sizes = ((3, 7), (9, 7), (50, 12), (4, 16))
    assert len({launch._key(launch._emitted(forward_kernel("LSTM", t, n, 32), "cuda:90"), "cuda:90") for t, n in sizes}) == 1


def test_float64_is_left_to_the_host_and_explained() -> None:
    graph = graph_of(lambda *x: recurrent_(*x, mode="GRU", reverse=False, keep=False), *layer("GRU", 2, 3, 4, d=np.float64))
    (step,) = plan_of(graph).steps
    assert isinstance(step, Extern) and step.node.op.name == "recurrent"


def test_on_the_cpu_nothing_changes() -> None:
    graph = optimize(graph_of(lambda *x: recurrent_(*x, mode="GRU", reverse=False, keep=False), *layer("GRU", 2, 3, 4)))
    assert [n.op.name for n in graph.nodes() if n.op] == ["recurrent"]


def test_a_kernel_as_text_makes_the_same_kernel_again() -> None:
    kernel = forward_kernel("LSTM", 3, 4, 5, ml_dtypes.bfloat16, True)
    names: dict[str, Any] = {}
    exec(loop_text.PRELUDE + loop_text.to_python(kernel), names)
    assert names["kernel"] == kernel and "Recurrent(part='forward', mode='LSTM'" in loop_text.to_text(kernel)


@pytest.mark.slow
def test_all_forms_of_a_kernel_agree() -> None:
    arrays = layer("LSTM", 3, 4, 40, True, ml_dtypes.bfloat16)
    for kernel in loops(plan_of(training(lambda *x: recurrent_(*x, mode="LSTM", reverse=True, keep=True), *arrays))).values():
        results = []
        for form in emit_choices(kernel, "cuda:90"):
            data = [np.random.default_rng(i).standard_normal(b.size) * 0.3 for i, b in enumerate(kernel.buffers)]
            data = [np.abs(a) * 9 + 1 if b.dtype is torch.int64 else a for a, b in zip(data, kernel.buffers, strict=True)]
            flat = [a.astype(b.dtype.np) for a, b in zip(data, kernel.buffers, strict=True)]
            interpreter.run(form, flat)
            results.append([a.astype(np.float64) for a, b in zip(flat, kernel.buffers, strict=True) if not b.name.endswith("carry")])
        assert len(results) > 1
        for other in results[1:]:
            for found, first in zip(other, results[0], strict=True):
                np.testing.assert_allclose(found, first, rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------------------------------------ whole layers on the stand-in


MODULES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(3, 6), "gru": lambda: nn.GRU(3, 6), "tanh": lambda: nn.RNN(3, 6),
    "relu": lambda: nn.RNN(3, 6, nonlinearity="relu"), "no bias": lambda: nn.LSTM(3, 6, bias=False),
    "batch first": lambda: nn.GRU(3, 6, batch_first=True), "two layers": lambda: nn.LSTM(3, 6, 2),
    "both directions": lambda: nn.GRU(3, 6, 2, bidirectional=True), "projected": lambda: nn.LSTM(3, 6, 2, proj_size=2, bidirectional=True),
    "no chance dropout": lambda: nn.LSTM(3, 6, 2, dropout=0.0),
}  # fmt: skip


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "projected" else n for n in MODULES])
@pytest.mark.parametrize("given", [False, True], ids=["", "with initial states"])
def test_layers_on_a_device_give_what_they_give_on_the_cpu(name: str, given: bool) -> None:
    torch.manual_seed(0)
    here = MODULES[name]()
    first = [torch.randn(here.num_layers * (2 if here.bidirectional else 1), 4, w) for w in (here.proj_size or 6, 6)]

    def run(module: nn.Module, place: str) -> list[np.ndarray]:
        def step(x: Any) -> Any:
            states = [s.to(place) for s in first]
            hx = None if not given else tuple(states) if isinstance(module, nn.LSTM) else states[0]
            out, last = module(x, hx)
            return out, *(last if isinstance(last, tuple) else (last,))

        module.zero_grad()
        compiled = torch.compile(step)
        found: list[np.ndarray] = []
        for t, seed in ((5, 0), (5, 1), (3, 2)):
            shape = (4, t, 3) if module.batch_first else (t, 4, 3)
            x = torch.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).to(place)
            results = compiled(x)
            sum((r * r).sum() for r in results).backward()
            found += [r.detach().cpu().numpy() for r in results]
        return found + [p.grad.cpu().numpy() for p in module.parameters()]

    wanted = run(here, "cpu")
    with stand_in():
        there = MODULES[name]().cuda()
        there.load_state_dict(here.state_dict())
        before = launch.HOST_CALLS.copy()
        for found, exact in zip(run(there, "cuda"), wanted, strict=True):
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(exact).max()))
        assert not {k for k in launch.HOST_CALLS - before if k.startswith("recurrent")}


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_packed_sequences_and_eager_calls_on_a_device(make: Any) -> None:
    torch.manual_seed(1)
    here = make(2, 5, bidirectional=True)
    parts = [torch.randn(k, 2) for k in (2, 5, 3)]

    def run(module: Any, place: str) -> list[np.ndarray]:
        module.zero_grad()
        packed = nn.utils.rnn.pack_sequence([p.to(place) for p in parts], enforce_sorted=False)
        out, last = module(packed)
        (out.data * out.data).sum().backward()
        last = last if isinstance(last, tuple) else (last,)
        return [t.detach().cpu().numpy() for t in (out.data, *last, *(p.grad for p in module.parameters()))]

    wanted = run(here, "cpu")
    with stand_in():
        there = make(2, 5, bidirectional=True).cuda()
        there.load_state_dict(here.state_dict())
        before = launch.HOST_CALLS.copy()
        for found, exact in zip(run(there, "cuda"), wanted, strict=True):
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
        assert not {k for k in launch.HOST_CALLS - before if k.startswith("recurrent")}


# ------------------------------------------------------------------------------------------------ offline


def canonical(mode: str, h: int, d: Any, lengths: bool = False, steps: int = 100, n: int = 64) -> dict[str, Any]:
    """Both loops of a training step of 100 steps and 64 samples."""

    def f(*inputs: Any) -> Any:
        return recurrent_(*inputs, mode=mode, reverse=False, keep=True)[: MODES[mode][1]]

    return loops(plan_of(training(f, *layer(mode, steps, n, h, lengths, d))))


def fitted(kernel: Any, target: str) -> Any:
    """What the launcher takes: the first of the tiles that fits the registers."""
    return compile_kernel(fitting(kernel, target, lambda form: compile_kernel(form, target).flaw), target)


@pytest.mark.slow
@pytest.mark.parametrize("mode,h,d", [("LSTM", 512, ml_dtypes.bfloat16), ("GRU", 512, ml_dtypes.bfloat16), ("LSTM", 256, np.float32)])
def test_loops_use_tensor_cores_and_wide_asynchronous_copies_without_spills_on_sm90(mode: str, h: int, d: Any) -> None:
    for kernel in canonical(mode, h, d).values():
        built = fitted(kernel, "cuda:90")
        assert built.flaw == 0
        assert "cp.async.cg.shared.global" in (built.ptx or "") and ("mma.sync" in (built.ptx or "")) == (d is not np.float32)
        assert "bar.sync" in (built.ptx or "")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_loops_compile_for_every_family_of_devices_within_its_shared_memory(target: str) -> None:
    for mode, h, d, lengths in (
        ("LSTM", 64, np.float32, True), ("GRU", 200, np.float16, False), ("RNN_TANH", 128, ml_dtypes.bfloat16, True),
    ):  # fmt: skip
        for kernel in canonical(mode, h, d, lengths).values():
            built = fitted(kernel, target) if target == "cuda:90" else compile_kernel(emit(kernel, target), target)
            assert built.shared_bytes <= MACHINES[target].shared_bytes
            assert built.flaw == 0 or target != "cuda:90"
