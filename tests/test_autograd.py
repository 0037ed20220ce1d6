"""What PyTorch's autograd does, and what it refuses, in eager mode."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import torchlet as torch

# ------------------------------------------------------------------------------------------------ backward


def test_polynomial() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    y = x**2 + 3 * x
    y.backward()
    assert x.grad.item() == 7 and x.grad.shape == () and not x.grad.requires_grad


def test_gradients_accumulate_until_they_are_cleared() -> None:
    x = torch.ones(2, requires_grad=True)
    for _ in range(3):
        (x * 2).sum().backward()
    assert x.grad.tolist() == [6, 6]
    x.grad = None
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2]
    x.grad.zero_()
    assert x.grad.tolist() == [0, 0]


def test_a_tensor_used_twice_gets_both_gradients() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    y = x * x
    (y * x + y).backward()
    assert x.grad.item() == 27 + 6


def test_broadcast_operands_get_summed_gradients() -> None:
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    s = torch.tensor(2.0, requires_grad=True)
    (a * b * s).sum().backward()
    assert a.grad.tolist() == [[2, 2, 2]] * 2 and b.grad.tolist() == [4, 4, 4] and s.grad.item() == 6


def test_backward_of_more_than_one_element_needs_a_gradient() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"implicitly created only for scalar outputs.*\nhelp: pass gradient="):
        (x * 2).backward()
    (x * 2).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [2, 4, 6]
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        (x * 2).backward(torch.ones(2))


def test_backward_without_a_graph_is_refused() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.ones(1).backward()


def test_second_backward_needs_retain_graph() -> None:
    x = torch.ones(2, requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 4]
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    assert x.grad.tolist() == [4, 4]


def test_backward_with_inputs_touches_only_those() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    h = x * 3
    (h * y).sum().backward(inputs=[y, h])
    assert x.grad is None and y.grad.tolist() == [3, 3] and h.grad.tolist() == [1, 1]


def test_a_failed_backward_changes_no_gradient() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            raise ValueError("no")

    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    x.grad = torch.full((2,), 5.0)
    with pytest.raises(ValueError, match="no"):
        (y * 2 + Fails.apply(x * 2) + x).sum().backward()
    assert y.grad is None and x.grad.tolist() == [5, 5] and torch.is_grad_enabled()


def test_integer_outputs_carry_no_gradient() -> None:
    x = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    assert not x.argmax().requires_grad and not (x > 1).requires_grad and not x.long().requires_grad


def test_long_chains_do_not_overflow_the_stack() -> None:
    x = torch.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(5000):
        y = y + 1e-3
    y.backward()
    assert x.grad.item() == 1
    del y  # taking the chain apart must not recurse either


def test_the_graph_is_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        x = torch.ones(3, requires_grad=True)
        h = x.exp()
        seen = weakref.ref(h)
        y = (h * h).sum()
        y.backward()
        del h, y
        assert seen() is None
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------ grad()


def test_grad_returns_without_accumulating() -> None:
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    gx, gy = torch.autograd.grad(x * x * y, (x, y))
    assert (gx.item(), gy.item()) == (12, 4) and x.grad is None and y.grad is None


def test_grad_of_intermediate_tensors() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    h = x * x
    gh, gx = torch.autograd.grad(h * h, (h, x))
    assert gh.item() == 8 and gx.item() == 32


def test_unused_inputs_need_allow_unused() -> None:
    x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="allow_unused"):
        torch.autograd.grad((x * 2).sum(), (x, y))
    gx, gy = torch.autograd.grad((x * 2).sum(), (x, y), allow_unused=True)
    assert gx.item() == 2 and gy is None
    assert torch.autograd.grad((x * 2).sum(), y, materialize_grads=True)[0].tolist() == [0]


def test_inputs_that_do_not_require_grad_are_refused() -> None:
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="not require grad"):
        torch.autograd.grad((x * 2).sum(), torch.ones(1))


def test_double_and_triple_backward() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    (g,) = torch.autograd.grad(x**4, x, create_graph=True)
    (gg,) = torch.autograd.grad(g, x, create_graph=True)
    (ggg,) = torch.autograd.grad(gg, x)
    assert (g.item(), gg.item(), ggg.item()) == (32, 48, 48)


def test_gradient_penalty() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    (g,) = torch.autograd.grad((w * x).sum().tanh(), x, create_graph=True)
    (g * g).sum().backward()
    t = np.tanh(11.0)
    s, ds = 1 - t * t, -2 * t * (1 - t * t)
    expected = 2 * s * ds * np.array([3, 4]) * 5 + 2 * s * s * np.array([1, 2])
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-3, atol=1e-12)


def test_backward_with_create_graph_makes_differentiable_gradients() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    (x**3).backward(create_graph=True)
    assert x.grad.requires_grad
    assert torch.autograd.grad(x.grad, x)[0].item() == 18


# ------------------------------------------------------------------------------------------------ in-place


def test_writing_over_a_saved_tensor_is_noticed() -> None:
    x = torch.ones(2, requires_grad=True)
    h = x * 2
    y = h * h
    h.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*version 1; expected version 0"):
        y.sum().backward()
    assert x.grad is None


def test_writing_over_what_is_not_saved_is_fine() -> None:
    x = torch.ones(2, requires_grad=True)
    h = x + 2
    y = h * 3
    h.add_(100)
    y.sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_a_saved_output_written_in_place_by_its_own_operation_is_fine() -> None:
    x = torch.tensor([0.5], requires_grad=True)
    y = (x * 1).tanh_()
    y.backward()
    assert x.grad.item() == pytest.approx(1 - np.tanh(0.5) ** 2)


def test_in_place_on_a_leaf_is_refused() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"a leaf Variable that requires grad.*\nhelp"):
        x.add_(1)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad"):
        x[0].add_(1)
    with torch.no_grad():
        x.add_(1)
        x[0] += 1
    assert x.tolist() == [3, 2] and x.requires_grad and x.is_leaf


def test_in_place_gradients() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = x * 2
    y.mul_(x)
    y += 1
    y.sum().backward()
    assert x.grad.tolist() == [4, 8]


def test_in_place_can_bring_a_gradient_to_a_plain_tensor() -> None:
    total, x = torch.zeros(2), torch.ones(2, requires_grad=True)
    total += x * 3
    assert total.requires_grad and not total.is_leaf
    total.sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_writing_through_a_view_reaches_the_base() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    base = x * 2
    view = base[0]
    view.mul_(10)
    assert base.tolist() == [[20, 20, 20], [2, 2, 2]]
    base.sum().backward()
    assert x.grad.tolist() == [[20, 20, 20], [2, 2, 2]]


def test_writing_to_the_base_reaches_its_views() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    base = x * 2
    view = base.T[1]  # (2,)
    base.mul_(5)
    view.sum().backward()
    assert x.grad.tolist() == [[0, 10, 0], [0, 10, 0]]


def test_views_of_views_share_their_gradients() -> None:
    x = torch.ones(4, requires_grad=True)
    base = x * 1
    square = base.view(2, 2)
    square[1].mul_(3)
    square[:, 0] = 7.0
    base.sum().backward()
    assert base.tolist() == [7, 1, 7, 3] and x.grad.tolist() == [0, 1, 0, 3]


def test_copying_into_a_plain_tensor_keeps_the_gradient_of_the_source() -> None:
    x = torch.ones(3, requires_grad=True)
    buffer = torch.zeros(2, 3, dtype=torch.float64)
    buffer[0].copy_(x * 2)
    buffer.sum().backward()
    assert x.grad.tolist() == [2, 2, 2] and x.grad.dtype is torch.float32


def test_a_zeroed_tensor_sends_nothing_back() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.zero_()
    y.sum().backward()
    assert x.grad is None or x.grad.tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------ leaves, detaching


def test_leaves() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    assert x.is_leaf and not y.is_leaf and torch.ones(1).is_leaf and y.detach().is_leaf
    with pytest.raises(RuntimeError, match="leaf variables"):
        y.requires_grad_(False)
    with pytest.raises(RuntimeError, match="floating point"):
        torch.tensor([1]).requires_grad_()
    x.requires_grad = False
    assert not (x * 2).requires_grad


def test_detach_shares_memory_and_stops_gradients() -> None:
    x = torch.ones(2, requires_grad=True)
    d = (x * 1).detach()
    assert not d.requires_grad
    ((x * 2) * (x * 3).detach()).sum().backward()
    assert x.grad.tolist() == [6, 6]
    h = x * 2
    h.detach().zero_()
    assert h.tolist() == [0, 0]
    h = (x * 2).detach_()
    assert h.is_leaf and not h.requires_grad


def test_data_reads_and_replaces_memory_off_the_tape() -> None:
    x = torch.ones(2, requires_grad=True)
    x.data -= 0.5
    assert x.tolist() == [0.5, 0.5] and x.requires_grad and x.is_leaf
    x.data = torch.tensor([1.0, 2.0, 3.0])
    assert x.shape == (3,) and x.requires_grad
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4, 6]


def test_assigned_gradients_are_checked() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="different size"):
        x.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="different type"):
        x.grad = torch.ones(2, dtype=torch.float64)
    with pytest.raises(TypeError):
        x.grad = 1.0


# ------------------------------------------------------------------------------------------------ modes


def test_no_grad_as_context_and_decorator() -> None:
    x = torch.ones(2, requires_grad=True)

    @torch.no_grad()
    def f(v: Any) -> Any:
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            inside = v * 2
        return v * 2, inside

    outside, inside = f(x)
    assert not outside.requires_grad and inside.requires_grad and torch.is_grad_enabled()
    with pytest.raises(ValueError), torch.no_grad():
        raise ValueError
    assert torch.is_grad_enabled()

    @torch.no_grad
    def bare(v: Any) -> Any:
        return v * 2

    assert not bare(x).requires_grad
    with torch.inference_mode():
        assert not (x * 2).requires_grad


def test_set_grad_enabled() -> None:
    x = torch.ones(1, requires_grad=True)
    with torch.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    torch.set_grad_enabled(False)
    assert not (x * 2).requires_grad
    torch.set_grad_enabled(True)
    assert (x * 2).requires_grad

    @torch.set_grad_enabled(False)
    def f() -> bool:
        return torch.is_grad_enabled()

    assert torch.is_grad_enabled() and f() is False and torch.is_grad_enabled()


def test_the_mode_belongs_to_the_thread() -> None:
    import threading

    seen = []
    with torch.no_grad():
        thread = threading.Thread(target=lambda: seen.append(torch.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


# ------------------------------------------------------------------------------------------------ hooks


def test_hooks_see_and_replace_gradients() -> None:
    x = torch.ones(2, requires_grad=True)
    h = x * 2
    seen = []
    handle = h.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10)
    h.sum().backward()
    assert seen == [[1, 1]] and x.grad.tolist() == [20, 20]
    handle.remove()
    handle.remove()
    h = x * 2
    h.sum().backward()
    assert len(seen) == 1
    with pytest.raises(RuntimeError, match="doesn't require gradient"):
        torch.ones(1).register_hook(lambda g: None)


def test_a_leaf_hook_runs_once_on_the_whole_gradient() -> None:
    x = torch.ones(1, requires_grad=True)
    seen = []
    x.register_hook(lambda g: seen.append(g.item()))
    (x * 2 + x * 3).backward()
    assert seen == [5]


def test_retain_grad_keeps_the_gradient_of_a_non_leaf() -> None:
    x = torch.ones(2, requires_grad=True)
    h = x * 2
    h.retain_grad()
    h.retain_grad()
    (h * h).sum().backward()
    assert h.grad.tolist() == [4, 4] and h.retains_grad
    other = x * 2
    other.sum().backward()
    assert other.grad is None


# ------------------------------------------------------------------------------------------------ Function


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, factor: float, bias: Any = None) -> Any:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * factor if bias is None else x * factor + bias

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        assert ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        return g * ctx.factor + 0 * x, None, g if ctx.needs_input_grad[2:] == (True,) else None


def test_function_with_context() -> None:
    x, b = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    y = Scale.apply(x, 3.0, b)
    assert "ScaleBackward" in repr(y)
    y.sum().backward()
    assert x.grad.tolist() == [3, 3] and b.grad.tolist() == [1, 1]
    x.grad = None
    Scale.apply(x, 4.0).sum().backward()
    assert x.grad.tolist() == [4, 4]
    assert not Scale.apply(torch.ones(1), 2.0).requires_grad


def test_function_can_be_differentiated_twice() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (x,) = ctx.saved_tensors
            return 2 * x * g

    x = torch.tensor(3.0, requires_grad=True)
    (g,) = torch.autograd.grad(Square.apply(x), x, create_graph=True)
    assert g.item() == 6 and torch.autograd.grad(g, x)[0].item() == 2


def test_function_with_two_outputs_gets_zeros_for_the_unused() -> None:
    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2, x * 3

        @staticmethod
        def backward(ctx: Any, a: Any, b: Any) -> Any:
            assert b is not None and b.tolist() == [0]
            return a * 2 + b * 3

    x = torch.ones(1, requires_grad=True)
    a, _ = Both.apply(x)
    a.backward()
    assert x.grad.tolist() == [2]


def test_function_that_returns_too_few_gradients_is_named() -> None:
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            return x + y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    x = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"BadBackward returned an incorrect number of gradients \(expected 2, got 1\)"):
        Bad.apply(x, x).backward()


def test_function_straight_through() -> None:
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.round()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    x = torch.tensor([0.4, 0.6], requires_grad=True)
    (Round.apply(x) * 2).sum().backward()
    assert x.grad.tolist() == [2, 2]


# ------------------------------------------------------------------------------------------------ names


def test_grad_fn_names_the_operation() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    names = {
        "AddBackward0": x + 1,
        "MulBackward0": x * 2,
        "PowBackward0": x**2,
        "SumBackward0": x.sum(),
        "MeanBackward1": x.mean(0),
        "SelectBackward0": x[0],
        "SliceBackward0": x[:1],
        "TBackward0": x.T,
        "ViewBackward0": x.view(4),
        "MmBackward0": x @ x,
        "ExpBackward0": x.exp(),
        "CloneBackward0": x.clone(),
        "CatBackward0": torch.cat([x, x]),
    }
    assert {name: t.grad_fn.name() for name, t in names.items()} == {name: name for name in names}
    assert x.grad_fn is None and repr((x + 1).grad_fn) == "<AddBackward0>"
    (before, _), (none, _) = (x * 2 + 1).grad_fn.next_functions
    assert before.name() == "MulBackward0" and none is None and before.next_functions[0][0].name() == "AccumulateGrad"
    assert before.next_functions[0][0].variable is x


# ------------------------------------------------------------------------------------------------ overwriting what a rule would need


@pytest.mark.parametrize(
    "write",
    [
        lambda x: torch.nn.functional.leaky_relu(x, 0.2, inplace=True),
        lambda x: torch.nn.functional.silu(x, inplace=True),
        lambda x: torch.nn.functional.hardswish(x, inplace=True),
        lambda x: x.silu_(),
        lambda x: x.cumsum_(0),
        lambda x: x.nan_to_num_(),
        lambda x: x.scatter_reduce_(0, torch.tensor([0, 0, 1]), torch.ones(3), "prod"),
    ],
)
def test_an_in_place_function_keeps_for_its_gradient_what_it_overwrites(write: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = torch.tensor([-1.5, 0.25, 2.0])
    x, y = values.clone().requires_grad_(), values.clone().requires_grad_()
    whole = y * 3
    same = whole.clone().view(3)
    write(same)
    written = x * 3
    assert write(written) is written
    written.exp().sum().backward()
    same.exp().sum().backward()
    assert x.grad is not None and x.grad.tolist() == y.grad.tolist() and x.grad.abs().sum() > 0
    eps = 1e-3
    for k in range(3):
        shift = torch.zeros(3)
        shift[k] = eps
        high, low = (write((values + s) * 3).exp().sum().item() for s in (shift, -shift))
        assert x.grad[k].item() == pytest.approx((high - low) / (2 * eps), rel=2e-2, abs=2e-2)


def test_inference_mode_can_be_switched_off_by_its_argument() -> None:
    x = torch.ones(2, requires_grad=True)
    with torch.inference_mode(mode=True):
        assert not (x * 2).requires_grad
        with torch.inference_mode(False):
            assert (x * 2).requires_grad

    @torch.inference_mode()
    def doubled() -> torch.Tensor:
        return x * 2

    @torch.inference_mode
    def tripled() -> torch.Tensor:
        return x * 3

    assert not doubled().requires_grad and not tripled().requires_grad and (x * 2).requires_grad
