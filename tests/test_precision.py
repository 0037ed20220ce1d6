"""Mixed precision: autocast's conversions, eager and compiled, and GradScaler."""

from typing import Any

import pytest

import torchlet as torch
from torchlet import nn


@pytest.mark.parametrize("compiled", [False, True])
def test_products_run_in_bfloat16_and_their_gradients_reach_float32_weights(compiled: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, target = torch.randn(5, 4), torch.randint(0, 2, (5,))

    def run(x: Any) -> Any:
        with torch.autocast("cpu"):
            y = model(x)
            loss = nn.functional.cross_entropy(y, target)
        loss.backward()
        return y, loss

    if compiled:
        run = torch.compile(run)
    y, loss = run(x)
    assert y.dtype is torch.bfloat16 and loss.dtype is torch.float32
    assert all(p.grad.dtype is torch.float32 for p in model.parameters())
    plain = nn.functional.cross_entropy(model(x), target)
    assert loss.item() == pytest.approx(plain.item(), rel=2e-2)


def test_one_compiled_function_follows_autocast_being_switched() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    f = torch.compile(lambda x: layer(x))
    found = []
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(f(x).dtype)
    assert found == [torch.float32, torch.bfloat16] * 2


def test_autocast_nests_ends_and_works_as_a_decorator() -> None:
    a = torch.randn(2, 2)
    with torch.autocast("cpu", dtype=torch.float16):
        assert (a @ a).dtype is torch.float16 and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.float16
        with torch.autocast("cpu", enabled=False):
            assert (a @ a).dtype is torch.float32
        assert torch.mm(a, a).dtype is torch.float16 and (a + a).dtype is torch.float32
        assert (a.double() @ a.double()).dtype is torch.float64
    assert (a @ a).dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    assert torch.autocast("cpu")(lambda: a @ a)().dtype is torch.bfloat16
    with pytest.raises(ZeroDivisionError), torch.autocast("cpu"):
        raise ZeroDivisionError
    assert (a @ a).dtype is torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_autocast_without_a_gpu_warns_and_does_nothing() -> None:
    a = torch.randn(2, 2)
    with pytest.warns(UserWarning, match="CUDA is not available"), torch.cuda.amp.autocast():
        assert (a @ a).dtype is torch.float32


def test_grad_scaler_scales_skips_overflows_and_grows() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([w], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    scaler.scale((w * 3).sum()).backward()
    assert w.grad.tolist() == [12, 12]
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [-0.5, -0.5] and scaler.get_scale() == 4
    w.grad = torch.tensor([float("inf"), 1.0])
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [-0.5, -0.5] and scaler.get_scale() == 2  # the step was left out
    for _ in range(2):
        w.grad = torch.zeros(2)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 4
    state = scaler.state_dict()
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(state)
    assert other.state_dict() == state and list(state) == ["scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"]
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
