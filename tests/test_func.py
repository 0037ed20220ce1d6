"""Functions of functions: gradients, Jacobians, functional calls, vmap, checkpointing, hooks; and assertions on tensors."""

from typing import Any

import pytest

import torchlet as torch
from torchlet import func, nn
from torchlet.testing import assert_close
from torchlet.utils.checkpoint import checkpoint, checkpoint_sequential


def test_gradients_of_functions() -> None:
    x = torch.tensor([1.0, 2.0])
    assert func.grad(lambda x: (x**3).sum())(x).tolist() == [3, 12]
    g, value = func.grad_and_value(lambda x, y: (x * y).sum(), argnums=(0, 1))(x, x + 1)
    assert [t.tolist() for t in g] == [[2, 3], [1, 2]] and value.item() == 8
    assert func.grad(func.grad(lambda x: x**3))(torch.tensor(2.0)).item() == 12
    assert func.hessian(lambda x: (x**3).sum())(x).tolist() == [[6, 0], [0, 12]]
    assert func.jacrev(lambda x: x**2)(x).tolist() == func.jacfwd(lambda x: x**2)(x).tolist() == [[2, 0], [0, 4]]
    value, tangent = func.jvp(lambda x: x**2, (x,), (torch.tensor([1.0, 0.5]),))
    assert value.tolist() == [1, 4] and tangent.tolist() == [2, 2]
    value, pull = func.vjp(lambda x: x.sin(), x)
    assert_close(pull(torch.ones(2))[0], x.cos())
    assert torch.autograd.functional.jacobian(lambda x: x.exp(), torch.zeros(2)).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(RuntimeError, match="Expected f"):
        func.grad(lambda x: x * 2)(x)


def test_vmap_gives_what_a_loop_gives() -> None:
    a, b = torch.randn(3, 2), torch.randn(2)
    assert_close(torch.vmap(torch.dot, in_dims=(0, None))(a, b), a @ b)
    assert torch.vmap(lambda x: x * 2, in_dims=1, out_dims=1)(a).tolist() == (a * 2).tolist()
    per_sample = func.vmap(func.grad(lambda w, x: (w * x).sum() ** 2), in_dims=(None, 0))(b, a)
    assert_close(per_sample, 2 * (a @ b)[:, None] * a)
    with pytest.raises(ValueError, match="same size in the mapped dimension"):
        torch.vmap(torch.dot)(torch.ones(3, 2), torch.ones(2, 2))


def test_functional_call_uses_other_parameters_and_leaves_the_module_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    zeros = {k: torch.zeros_like(v) for k, v in model.named_parameters()}
    before = model[0].weight
    assert func.functional_call(model, zeros, torch.ones(3, 2)).abs().sum() == 0
    assert model[0].weight is before
    with pytest.raises(KeyError, match="nothing is no parameter"):
        func.functional_call(model, {"nothing": torch.zeros(1)}, torch.ones(3, 2))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients_and_random_numbers(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    x = torch.randn(6, 4, requires_grad=True)
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant), lambda x: checkpoint_sequential(model, 2, x)):
        model.zero_grad()
        x.grad = None
        torch.manual_seed(3)
        run(x).sum().backward()
        results.append([p.grad.clone() for p in (*model.parameters(), x)])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_a_checkpoint_runs_its_function_again_in_the_backward_pass() -> None:
    calls = []
    y = checkpoint(lambda x: calls.append(1) or x.sin() * 2, torch.ones(2, requires_grad=True), use_reentrant=False)
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2


def test_hooks_after_accumulation_see_the_finished_gradient() -> None:
    w = torch.ones(2, requires_grad=True)
    seen: list[Any] = []
    handle = w.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.tolist()))
    (w * 2).sum().backward()
    (w * 3).sum().backward()
    handle.remove()
    (w * 3).sum().backward()
    assert seen == [[2, 2], [5, 5]]
    with pytest.raises(RuntimeError, match="non-leaf"):
        (w * 2).register_post_accumulate_grad_hook(print)


def test_gradcheck_finds_a_wrong_gradient() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * 3

    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: x.sin() * x, (x,)) and torch.autograd.gradgradcheck(lambda x: x.sin() * x, (x,))
    with pytest.raises(RuntimeError, match="Jacobian mismatch for output 0 with respect to input 0"):
        torch.autograd.gradcheck(Wrong.apply, (x,))


@pytest.mark.parametrize(
    "a, b, match",
    [
        (
            torch.tensor([1.0, 2.0]),
            torch.tensor([1.0, 2.1]),
            r"Tensor-likes are not close!\n\nMismatched elements: 1 / 2 \(50.0%\)\nGreatest absolute difference: 0.09999",
        ),
        (torch.ones(2), torch.ones(3), "'shape' do not match"),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "'dtype' do not match"),
        (1.0, 1.1, "Scalars are not close!\n\nExpected 1.1 but got 1.0"),
        ([torch.ones(1), torch.ones(1)], [torch.ones(1), torch.zeros(1)], r"item \[1\]"),
        ({"a": 1}, {"b": 1}, "keys of the mappings do not match"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "not equal"),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), "not close"),
    ],
)
def test_assert_close_says_what_differs(a: Any, b: Any, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        assert_close(a, b)


def test_assert_close_accepts_what_is_close() -> None:
    assert_close(torch.tensor([1.0]), torch.tensor([1.0 + 1e-7]))
    assert_close({"a": [1.0, torch.zeros(2)]}, {"a": [1.0, torch.zeros(2)]})
    assert_close(torch.tensor([float("nan")]), torch.tensor([float("nan")]), equal_nan=True)
    with pytest.raises(ValueError, match="rtol and atol must both be specified"):
        assert_close(1.0, 1.0, rtol=1.0)
