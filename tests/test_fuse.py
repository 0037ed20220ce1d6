"""What shares a kernel: sentences about the number of kernels, of passes over memory, and of copies."""

from collections.abc import Callable
from typing import Any

import numpy as np
from graphs import graph_of, training_step

import torchlet.nn.functional as F
from torchlet import ops
from torchlet.compiler.execute import optimize
from torchlet.compiler.loops import Dot, Kernel
from torchlet.compiler.schedule import Plan, schedule
from torchlet.expr import walk
from torchlet.tensor import Tensor


def plan_of(graph: Any) -> Plan:
    return schedule(optimize(graph), "f")[0]


def kernels_of(f: Callable, *shapes: tuple[int, ...]) -> list[Kernel]:
    return plan_of(graph_of(f, *[np.ones(s, np.float32) for s in shapes])).kernels


def f32(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.ones(s, np.float32) for s in shapes]


def test_a_chain_of_elementwise_operators_is_one_kernel() -> None:
    (kernel,) = kernels_of(lambda x, y: ((x * y + 1).tanh() - y).exp(), (30, 4), (4,))
    assert kernel.name.startswith("mul_add_tanh_sub_exp_")
    assert len(kernel.loads()) == 2


def test_softmax_is_one_kernel_that_names_its_input_once() -> None:
    (kernel,) = kernels_of(lambda x: x.softmax(-1), (8, 33))
    assert len(kernel.loads()) == 1
    assert len(kernel.phases) == 3


def test_layer_norm_forward_is_one_kernel() -> None:
    (kernel,) = kernels_of(lambda x, w, b: ops.layer_norm(x, (16,), w, b), (4, 6, 16), (16,), (16,))
    assert len(kernel.loads()) == 3
    assert kernel.points == 24


def test_cross_entropy_forward_and_backward_are_one_kernel() -> None:
    def f(x: Tensor, y: Tensor, g: Tensor) -> Any:
        op = ops.OPS["cross_entropy"]
        return op(x, y, ignore_index=-100), op.vjp["x"].function(g, x, y, -100)

    (kernel,) = plan_of(graph_of(f, *f32((8, 10)), np.ones(8, np.int64), *f32((8,)))).kernels
    assert len([e for e in kernel.loads() if e.attr[0] == "x0"]) == 1


def test_linear_relu_is_one_kernel() -> None:
    (kernel,) = kernels_of(lambda x, w, b: F.relu(F.linear(x, w, b)), (4, 6, 16), (20, 16), (20,))
    (dot,) = kernel.phases[0].reductions
    assert isinstance(dot, Dot)
    assert len(dot.m) == 2 and not dot.batch  # the batch of x makes rows, not products


def test_a_transposed_operand_is_not_copied() -> None:
    assert len(kernels_of(lambda a, b: a.transpose(0, 1) @ b, (5, 3), (5, 4))) == 1
    assert len(kernels_of(lambda a, b: a.reshape(6, 5).transpose(0, 1) @ b, (2, 3, 5), (6, 4))) == 1


def test_linear_regression_step_is_one_kernel() -> None:
    step = training_step(lambda x, y, w, b: F.mse_loss(F.linear(x, w, b), y), f32((100, 1), (100, 1)), f32((1, 1), (1,)))
    plan = plan_of(step)
    assert len(plan.kernels) == 1
    assert plan.arena_bytes == 0


def mlp_step() -> Any:
    def loss(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
        h = F.relu(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2))
        return F.cross_entropy(F.linear(h, w3, b3), y)

    params = f32((25, 78), (25,), (12, 25), (12,), (10, 12), (10,))
    return training_step(loss, [*f32((16, 78)), np.ones(16, np.int64)], params)


def test_mlp_step_is_fourteen_kernels() -> None:
    """Three layers forward; classes counted, losses with their gradient, mean; two gradients of activations; six updated parameters."""
    plan = plan_of(mlp_step())
    assert len(plan.kernels) == 3 + 3 + 2 + 6
    assert sum(any(isinstance(r, Dot) for p in k.phases for r in p.reductions) for k in plan.kernels) == 8


def test_parameters_are_updated_in_place_by_the_kernel_of_their_gradient() -> None:
    plan = plan_of(mlp_step())
    inputs = {f"x{i}" for i in range(2, 8)}
    assert {b.name for k in plan.kernels for b in k.buffers if b.role == "inout" and b.name in inputs} == inputs
    assert not [k for k in plan.kernels if k.name.startswith("copy")]


def test_attention_is_not_copied_into_another_layout() -> None:
    def attention(x: Tensor, wq: Tensor, wo: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = F.linear(x, wq).view(b, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        a = ((q @ k.transpose(-2, -1)) * (c // 4) ** -0.5).softmax(-1) * 0.9  # weights that are scaled have no kernel of their own
        return F.linear((a @ v).permute(0, 2, 1, 3).reshape(b, t, c), wo)

    kernels = kernels_of(attention, (2, 16, 32), (96, 32), (32, 32))
    assert len(kernels) == 5
    assert not [k for k in kernels if k.name.startswith("copy")]


def test_row_and_column_sums_of_one_tensor_are_two_kernels() -> None:
    assert len(kernels_of(lambda x: (x.sum(0), x.sum(1)), (8, 8))) == 2


def test_reductions_over_the_same_rows_are_one_kernel() -> None:
    (kernel,) = kernels_of(lambda x: (x.sum(1), x.amax(1), (x * x).sum(1)), (8, 9))
    assert len(kernel.phases) == 1
    assert len(kernel.phases[0].reductions) == 3


def test_kernels_are_not_fused_around_a_third() -> None:
    """`e` and the last sum would share rows, but the column sums between them need all rows of `e` first."""
    plan = plan_of(graph_of(lambda x: (x.exp() + x.exp().sum(0)).sum(1), *f32((8, 8))))
    assert len(plan.kernels) >= 2


def test_a_costly_value_with_two_readers_is_kept() -> None:
    graph = graph_of(lambda x, w: ((e := x.exp()) @ w, e.sum(0)), *f32((32, 8), (8, 8)))
    assert sum(any(e.op == "exp" for e in walk(*k.roots())) for k in plan_of(graph).kernels) == 1


def test_the_reason_of_a_refused_fusion_is_recorded() -> None:
    _, fused = schedule(optimize(graph_of(lambda x, w: (x @ w).sum(0), *f32((8, 9), (9, 7)))), "f")
    assert ("matmul", "sum", "their rows differ") in fused.refused


def test_equal_kernels_of_different_layers_have_the_same_digits() -> None:
    plan = plan_of(graph_of(lambda x, w, v: F.relu(F.relu(x @ w) @ v), *f32((8, 8), (8, 8), (8, 8))))
    assert len(plan.kernels) == 2
    assert len({k.name for k in plan.kernels}) == 1


def test_fusing_is_deterministic() -> None:
    assert str(plan_of(mlp_step())) == str(plan_of(mlp_step()))
