"""Compiled graphs compute what eager code computes: every operator of the table, strided and in-place memory, whole training steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from graphs import graph_of, random_graph, training_step

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import dtypes, ops
from torchlet.compiler import execute
from torchlet.compiler.emulate import run_interpreted_triton, run_plan, triton_kernels
from torchlet.compiler.execute import Executable, compile_graph, optimize
from torchlet.compiler.graph import Graph
from torchlet.compiler.interpret import interpret
from torchlet.compiler.schedule import Plan, schedule
from torchlet.errors import CompileError
from torchlet.op import OPS, Op
from torchlet.tensor import Tensor

Array = np.ndarray[Any, Any]
TESTED = [name for name, op in OPS.items() if op.samples is not None and not op.writes and not op.barrier]


def run(exe: Executable, arrays: Sequence[Array], scalars: Sequence[Any] = ()) -> list[Array]:
    """The outputs of an executable; targets are the given arrays themselves."""
    graph = exe.plan.graph
    pairs = list(zip(graph.outputs, graph.targets, strict=True))
    outs = [np.full(n.spec.shape, 7, n.spec.dtype.np) if t is None else arrays[t] for n, t in pairs]
    exe.run([a.ctypes.data for a in arrays], [o.ctypes.data if t is None else 0 for o, t in zip(outs, graph.targets, strict=True)], scalars)
    return outs


def samples(op: Op, dtype: str) -> list[tuple[Graph, list[Array]]]:
    """The graphs of one operator on its samples, floats in `dtype`."""
    found = []
    assert op.samples is not None
    for inputs, attrs in op.samples():
        values = [x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x for x in inputs]
        arrays = [np.ascontiguousarray(x) for x in values if isinstance(x, np.ndarray)]

        def f(*tensors: Tensor, values: Any = values, attrs: Any = attrs) -> Tensor:
            it = iter(tensors)
            return op(*[next(it) if isinstance(x, np.ndarray) else x for x in values], **dict(zip(op.attrs, attrs, strict=True)))

        found.append((graph_of(f, *arrays), arrays))
    return found


# float32: our vector functions and the order of sums differ from NumPy's by a few units in the last place, a sum of twenty terms by
# somewhat more; 16-bit floats round where operators are fused and where they are not at different places: two units of 2^-8 and 2^-11
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2}


def check(got: Array, want: Array, dtype: str) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    wide = want.astype(np.float64) if want.dtype != np.bool_ else want
    np.testing.assert_allclose(got.astype(wide.dtype), wide, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 4)


@pytest.fixture(scope="module")
def compiled_ops() -> dict[tuple[str, str], list[tuple[Executable, Graph, list[Array]]]]:
    """All operators on all their samples. The kernels are loaded together, which is one call of the C compiler."""
    cases = {(name, d): samples(OPS[name], d) for name in TESTED for d in ("float32", "float64")}
    plans = {key: [schedule(optimize(g), key[0])[0] for g, _ in found] for key, found in cases.items()}
    execute.load.load([k for found in plans.values() for plan in found for k in plan.kernels])
    return {key: [(Executable(p), g, a) for p, (g, a) in zip(plans[key], found, strict=True)] for key, found in cases.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TESTED)
def test_a_compiled_operator_computes_what_eager_does(compiled_ops: Any, name: str, dtype: str) -> None:
    for exe, graph, arrays in compiled_ops[name, dtype]:
        want = interpret(graph, arrays)[0]
        check(run(exe, arrays)[0], want, "float32" if want.dtype == np.float32 else dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["add", "gelu", "softmax", "layer_norm", "matmul", "linear", "cross_entropy", "sum", "amax", "mean"])
def test_loop_nests_compute_16_bit_floats_in_float32(name: str, dtype: str) -> None:
    import ml_dtypes

    for graph, arrays in samples(OPS[name], "float16" if dtype == "float16" else ml_dtypes.bfloat16):
        check(run_plan(schedule(optimize(graph), name)[0], arrays)[0], interpret(graph, arrays)[0], dtype)


@pytest.mark.parametrize("seed", range(30))
def test_plans_of_random_graphs_compute_what_the_graph_does(seed: int) -> None:
    graph, arrays = random_graph(seed)
    plan, _ = schedule(optimize(graph), "f")
    for got, want in zip(run_plan(plan, arrays), interpret(graph, arrays), strict=True):
        check(got, want, "float32")


def mlp(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2), y)


def block(x: Tensor, g: Tensor, b: Tensor, wq: Tensor, wo: Tensor, wf: Tensor, wp: Tensor) -> Tensor:
    n, t, c = x.shape
    h = ops.layer_norm(x, (c,), g, b)
    q, k, v = F.linear(h, wq).view(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    a = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(-1)
    x = x + F.linear((a @ v).permute(0, 2, 1, 3).reshape(n, t, c), wo)
    return (x + F.linear(F.gelu(F.linear(x, wf)), wp)).square().mean()


def step_case(name: str) -> tuple[Graph, list[Array]]:
    rng = np.random.default_rng(1)

    def normal(*shapes: tuple[int, ...]) -> list[Array]:
        return [(rng.standard_normal(s) * 0.3).astype(np.float32) for s in shapes]

    cases: dict[str, tuple[Callable[..., Any], list[Array], list[Array]]] = {
        "linear_regression": (lambda x, y, w, b: F.mse_loss(F.linear(x, w, b), y), normal((100, 1), (100, 1)), normal((1, 1), (1,))),
        "mlp": (mlp, [*normal((16, 12)), rng.integers(0, 5, 16)], normal((9, 12), (9,), (5, 9), (5,))),
        "transformer_block": (block, normal((2, 6, 8)), normal((8,), (8,), (24, 8), (8, 8), (32, 8), (8, 32))),
    }
    loss, data, params = cases[name]
    return training_step(loss, data, params), [*data, *params]


@pytest.mark.parametrize("name", ["linear_regression", "mlp", "transformer_block"])
def test_training_steps_update_their_parameters_in_place(name: str) -> None:
    graph, arrays = step_case(name)
    want = interpret(graph, arrays, [0.1])
    for got, expected in zip(run(compile_graph(graph, name), arrays, [0.1]), want, strict=True):
        check(got, expected, "float32")


@pytest.mark.parametrize("name", ["linear_regression", "mlp"])
def test_training_steps_run_as_interpreted_triton(name: str) -> None:
    graph, arrays = step_case(name)
    plan, _ = schedule(optimize(graph), name)
    assert len(triton_kernels(plan)) == len(plan.kernels)
    for got, want in zip(run_interpreted_triton(plan, arrays, [0.1]), interpret(graph, arrays, [0.1]), strict=True):
        check(got, want, "float32")


def both(f: Callable[..., Any], *arrays: Array, scalars: Sequence[Any] = (), targets: Sequence[int | None] | None = None) -> Plan:
    """Compile f, compare all its outputs with the graph's; the plan."""
    graph = graph_of(f, *arrays, scalars=scalars, targets=targets)
    want = [np.array(w) for w in interpret(graph, arrays, scalars)]
    exe = compile_graph(graph, "f")
    for got, expected in zip(run(exe, arrays, scalars), want, strict=True):
        check(got, expected, "float32")
    return exe.plan


def numbers(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8


def test_strided_inputs_are_read_by_their_strides() -> None:
    both(lambda x, y: x * 2 + y.sum(0), numbers(4, 6).T, numbers(8, 6)[::2, 1:5])
    both(lambda x, y: x @ y, numbers(4, 6).T, numbers(9, 4)[1::2].T[:4, :3])


def test_empty_tensors_and_numbers_have_results() -> None:
    both(lambda x: (x.exp(), x.sum(), x.sum(0), x.permute(1, 0)), np.zeros((0, 3), np.float32))
    both(lambda x: (x.exp(), x.sum(), x.reshape(1, 1)), np.array(0.5, np.float32))


def test_an_output_may_be_an_input_a_number_or_another_output() -> None:
    both(lambda x, s: (x, (y := x + s), y, s * 2), numbers(3, 2), scalars=[0.25])


def test_a_write_waits_for_the_readers_of_the_old_value() -> None:
    plan = both(lambda x, w: (x * 2, x @ w), numbers(4, 4), numbers(4, 4), targets=[0, None])
    assert plan.arena_bytes == 0
    assert "matmul" in plan.kernels[0].name


def test_a_value_that_its_own_kernel_reads_elsewhere_goes_through_a_copy() -> None:
    both(lambda x: x.transpose(0, 1) * 2, numbers(4, 4), targets=[0])
    both(lambda x: x @ x, numbers(4, 4), targets=[0])
    both(lambda x: x - x.sum(0), numbers(4, 4), targets=[0])
    both(lambda x: x.softmax(-1), numbers(4, 4), targets=[0])


def test_two_tensors_can_exchange_their_values() -> None:
    both(lambda x, y: (y, x), numbers(3, 4), numbers(3, 4) + 100, targets=[0, 1])
    both(lambda x, y: (y + 1, x * 2), numbers(3, 4), numbers(3, 4) + 100, targets=[0, 1])
    both(lambda x, y: (y + 1, x.sum(0).expand(3, 4)), numbers(3, 4), numbers(3, 4) + 100, targets=[0, 1])


def test_a_target_may_be_strided_or_untouched() -> None:
    base = np.zeros((6, 8), np.float32)
    view = base[::2, 1:5]
    view[...] = numbers(3, 4)
    both(lambda x: x * 3 + 1, view, targets=[0])
    assert base[1].sum() == 0 and base[:, 5:].sum() == 0
    assert not both(lambda x: x, numbers(3), targets=[0]).steps


def test_an_update_that_is_read_again_is_read_after_it_was_written() -> None:
    both(lambda x, w: ((n := x * 2), n @ w), numbers(4, 4), numbers(4, 4), targets=[0, None])


def test_numbers_of_the_call_are_arguments_of_the_kernel() -> None:
    exe = compile_graph(graph_of(lambda x, a, n, flag: (x * a + n, OPS["where"](flag, x, -x)), numbers(4), scalars=[0.5, 3, True]), "f")
    for scalars in ([0.5, 3, True], [2.0, -1, False]):
        got, selected = run(exe, [numbers(4)], scalars)
        np.testing.assert_allclose(got, numbers(4) * scalars[0] + scalars[1])
        np.testing.assert_allclose(selected, numbers(4) if scalars[2] else -numbers(4))


def test_an_adam_update_is_one_kernel_in_place() -> None:
    def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor, step: Tensor) -> Any:
        m = m * 0.9 + g * 0.1
        v = v * 0.99 + g * g * 0.01
        return p - lr * (m / (1 - OPS["pow"](0.9, step))) / ((v / (1 - OPS["pow"](0.99, step))).sqrt() + 1e-8), m, v

    plan = both(adam, numbers(5, 3), numbers(5, 3) - 1, numbers(5, 3) / 2, numbers(5, 3), scalars=[0.01, 3], targets=[0, 2, 3])
    assert len(plan.kernels) == 1
    assert plan.arena_bytes == 0


def test_an_extern_call_stands_between_kernels() -> None:
    plan = both(lambda x: (x * 2).cumsum(0).exp(), numbers(4, 2) / 8)
    assert [type(s).__name__ for s in plan.steps] == ["KernelLaunch", "Extern", "KernelLaunch"]


def test_results_of_extern_calls_and_scatters_can_be_targets() -> None:
    both(lambda x: x.cumsum(0), numbers(4, 2) / 8, targets=[0])
    both(lambda x: OPS["embed"](x[1], shape=(4, 2), items=(("i", 2),)), numbers(4, 2), targets=[0])
    both(lambda x: (x.permute(1, 0).cumsum(0), x + 1), numbers(4, 2) / 8, targets=[None, 0])


def test_random_numbers_are_those_of_eager_code() -> None:
    def f(x: Tensor, p: Tensor, seed: Tensor, offset: Tensor) -> Any:
        return OPS["dropout"](x, p, seed, offset), OPS["normal"](seed, offset, shape=(5, 6), dtype=dtypes.float32)

    both(f, numbers(9, 7), scalars=[0.3, 67280421310721, 2])


def test_temporaries_share_memory_when_their_lives_do_not_meet() -> None:
    def chain(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(6):
            x = F.relu(x @ w)
        return x.sum(0)

    plan = both(chain, numbers(16, 16) / 64, numbers(16, 16) / 64)
    assert plan.arena_bytes == 2 * 16 * 16 * 4
    for a in plan.lifetimes:
        for b in plan.lifetimes:
            if a is not b and a.first <= b.last and b.first <= a.last and not (a.reuses or b.reuses):
                assert a.slot.number + a.nbytes <= b.slot.number or b.slot.number + b.nbytes <= a.slot.number


def test_a_position_outside_its_tensor_raises() -> None:
    exe = compile_graph(graph_of(lambda x, i: x[i], numbers(4, 2), np.array([0, 3])), "f")
    np.testing.assert_allclose(run(exe, [numbers(4, 2), np.array([2, 1])])[0], numbers(4, 2)[[2, 1]])
    with pytest.raises(IndexError, match="out of range"):
        run(exe, [numbers(4, 2), np.array([0, 9])])


def test_without_a_compiler_graphs_run_in_numpy_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise CompileError("cc: not found")

    monkeypatch.setattr(execute.load, "load", broken)
    monkeypatch.setattr(execute, "_warned", False)
    graph = graph_of(lambda x, y, s: (y + s, x * 2), a := numbers(3, 4), b := numbers(4, 3).T, scalars=[0.5], targets=[0, None])
    want = interpret(graph, [a, b], [0.5])
    with pytest.warns(RuntimeWarning, match="cc: not found"):
        exe = compile_graph(graph, "f")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_graph(graph, "again")
    for got, expected in zip(run(exe, [a, b], [0.5]), want, strict=True):
        check(got, expected, "float32")


def test_the_plan_prints_buffers_with_lifetimes_and_peak() -> None:
    graph, _ = step_case("mlp")
    exe = compile_graph(graph, "step")
    text = str(exe.stages["plan"])
    assert "steps 0 to" in text and f"arena {exe.plan.arena_bytes} bytes" in text
    assert {"graph", "simplified", "fused", "plan"} <= set(exe.stages)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_operations_on_nothing_are_compiled(shape: tuple[int, ...], recwarn: pytest.WarningsRecorder) -> None:
    functions = [
        lambda x: torch.softmax(x * 2, -1), lambda x: torch.log_softmax(x * 2, 0), lambda x: torch.logsumexp(x * 2, 1),
        lambda x: torch.cat([x * 2, x * 3]), lambda x: torch.sort(x * 2, 1).values + 1, lambda x: (x * 2).logcumsumexp(1),
        lambda x: torch.nn.functional.scaled_dot_product_attention(*3 * [(x * 2)[None]]), lambda x: (x * 2).cumsum(1),
    ]  # fmt: skip
    for f in functions:
        plain, compiled = f(torch.ones(shape)), torch.compile(f)(torch.ones(shape))
        assert compiled.tolist() == plain.tolist() and compiled.shape == plain.shape and compiled.dtype is plain.dtype
    assert not [w for w in recwarn if "step by step" in str(w.message)]
