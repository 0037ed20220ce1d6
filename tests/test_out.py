"""`out=`: the result goes into the memory that the caller gives, as PyTorch's functions do it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import torchlet as torch
from torchlet.ops.public import MAKE_OUT, TAKE_OUT

X = torch.arange(12.0).view(3, 4) / 6 - 1

CALLS: dict[str, Callable[..., Any]] = {
    "add": lambda **k: torch.add(X, 2, alpha=3, **k),
    "mul": lambda **k: torch.mul(X, X, **k),
    "exp": lambda **k: torch.exp(X, **k),
    "matmul": lambda **k: torch.matmul(X, X.T, **k),
    "cat": lambda **k: torch.cat([X, X], 1, **k),
    "stack": lambda **k: torch.stack([X, X], **k),
    "sum": lambda **k: torch.sum(X, 1, **k),
    "cumsum": lambda **k: torch.cumsum(X, 0, **k),
    "clamp": lambda **k: torch.clamp(X, -0.5, 0.5, **k),
    "where": lambda **k: torch.where(X > 0, X, 0.0, **k),
    "index_select": lambda **k: torch.index_select(X, 0, torch.tensor([2, 0]), **k),
    "arange": lambda **k: torch.arange(4.0, **k),
    "zeros": lambda **k: torch.zeros(2, 3, **k),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_in_the_given_tensor_and_is_it(name: str, compiled: bool) -> None:
    expected = CALLS[name]()
    out, empty = torch.full(expected.shape, 7.0), torch.empty(0)
    call = torch.compile(CALLS[name]) if compiled else CALLS[name]
    for _ in range(2):
        assert call(out=out) is out
        assert CALLS[name](out=empty) is empty
        np.testing.assert_allclose(out.numpy(), expected.numpy(), rtol=1e-6)
        np.testing.assert_allclose(empty.numpy(), expected.numpy(), rtol=1e-6)


def test_a_strided_view_takes_the_result() -> None:
    positions = torch.zeros(3, 4)
    torch.sin(X[:, :2], out=positions[:, 0::2])
    torch.cos(X[:, :2], out=positions[:, 1::2])
    assert torch.equal(positions[:, 0::2], X[:, :2].sin()) and torch.equal(positions[:, 1::2], X[:, :2].cos())


def test_functions_of_two_results_take_two() -> None:
    values, places = torch.empty(0), torch.empty(0, dtype=torch.int64)
    result = torch.topk(X, 2, dim=1, out=(values, places))
    assert result.values is values and result.indices is places
    assert torch.equal(values, X.topk(2, 1).values) and places.tolist() == [[3, 2]] * 3


def test_random_numbers_are_those_drawn_without_out() -> None:
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(5, out=torch.zeros(5)), expected)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match=r"functions with out=\.\.\. arguments don't support automatic differentiation"):
        torch.mul(X.clone().requires_grad_(), 2, out=torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match="result type float32 can't be cast to the desired output type int64"):
        torch.add(X, 1, out=torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="argument 'out' must be Tensor, not list"):
        torch.add(X, 1, out=[])
    with pytest.warns(UserWarning, match="was resized since it had shape"):
        assert torch.add(X, 1, out=torch.zeros(2)).shape == (3, 4)


@pytest.mark.parametrize("name", f"{TAKE_OUT} {MAKE_OUT}".split())
def test_every_listed_function_takes_out(name: str) -> None:
    function = getattr(torch, name)
    code = getattr(function, "__wrapped__", function).__code__
    assert getattr(function, "takes_out", False) or "out" in code.co_varnames
