"""Large products in chunks of their rows: the same numbers, less memory, and what is left as it is says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import standin

import torchlet
import torchlet.nn.functional as F
from torchlet import bfloat16, float64
from torchlet.compiler import chunk, launch
from torchlet.compiler.function import describe

BATCH, LENGTH, WIDTH, WORDS = 4, 32, 8, 200
CHUNKED = "MiB of a product of shape [4, 32, 200] are made and used in 4 chunks"
Loss = Callable[[Any, Any], Any]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 200 columns is large."""
    monkeypatch.setattr(chunk, "LARGE", 26000)
    monkeypatch.setattr(chunk, "ROWS", 32)


def entropy(**options: Any) -> Loss:
    return lambda y, target: F.cross_entropy(y.view(-1, WORDS), target.view(-1), **options)


def z_loss(y: Any, target: Any) -> Any:
    return entropy()(y, target) + 0.1 * y.logsumexp(-1).square().mean()


LOSSES: dict[str, Loss] = {
    "mean": entropy(),
    "sum": entropy(reduction="sum"),
    "each": lambda y, target: entropy(reduction="none")(y, target).square().sum(),
    "smoothing": entropy(label_smoothing=0.1),
    "ignored": lambda y, target: entropy(ignore_index=3)(y, target.clamp(0)),
    "weights": lambda y, target: entropy(weight=(torchlet.arange(WORDS, device=y.device) % 5 + 1).to(y.dtype))(y, target),
    "capped": lambda y, target: entropy()(30 * torchlet.tanh(y / 30), target),
    "z": z_loss,
    "probabilities": lambda y, target: (F.softmax(y, -1) - F.one_hot(target.clamp(0), WORDS).to(y.dtype)).square().sum(),
}


def tensors(dtype: Any = torchlet.float32, device: str = "cpu", batch: int = BATCH) -> tuple[Any, ...]:
    r = np.random.default_rng(0)
    leaves = [r.standard_normal(s) for s in ((batch, LENGTH, WIDTH), (WORDS, WIDTH), (WORDS,))]
    target = r.integers(0, WORDS, (batch, LENGTH))
    target[0, 1:3] = -100, 3
    found = [torchlet.tensor(x).to(dtype).to(device).requires_grad_() for x in leaves]
    return *found, torchlet.tensor(target).to(device)


def step(loss: Loss, x: Any, weight: Any, bias: Any, target: Any) -> Callable[[], Any]:
    def f() -> Any:
        value = loss(F.linear(x, weight, bias), target)
        value.backward()
        return value

    return f


def results(f: Callable[[], Any], leaves: tuple[Any, ...]) -> list[np.ndarray]:
    value = f()
    return [t.detach().cpu().double().numpy() for t in (value, *[x.grad for x in leaves[:3]])]


def check(got: list[np.ndarray], wanted: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def plan_of(f: Any) -> Any:
    (program,) = f.programs
    return program.executable.stages["plan"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_rows_and_its_gradients_are_the_same_in_chunks(name: str, small: None) -> None:
    exact, leaves = tensors(float64), tensors()
    f = torchlet.compile(step(LOSSES[name], *leaves))
    check(results(f, leaves), results(step(LOSSES[name], *exact), exact), 1e-5)
    assert CHUNKED in str(describe(f))
    assert max(b.nbytes for b in plan_of(f).lifetimes) == LENGTH * WORDS * 4


@pytest.fixture
def gpu() -> Iterator[standin.StandIn]:
    with standin.stand_in() as found:
        yield found


def on_device(name: str, batch: int) -> tuple[int, int]:
    """Kernels, and how many binaries they are."""
    exact, leaves = tensors(float64, batch=batch), tensors(device="cuda", batch=batch)
    f = torchlet.compile(step(LOSSES[name], *leaves))
    check(results(f, leaves), results(step(LOSSES[name], *exact), exact), 1e-5)
    assert f"are made and used in {batch} chunks" in str(describe(f))
    kernels = [launch._emitted(k, "cuda:90") for k in plan_of(f).kernels]
    return len(kernels), len({launch._key(k, "cuda:90").rpartition("-")[0] for k in kernels})  # the stand-in adds sizes


@pytest.mark.parametrize("name", ["mean", "weights"])
def test_chunks_on_a_device_are_the_same_and_share_their_kernels(name: str, small: None, gpu: standin.StandIn) -> None:
    (few, distinct), (many, still) = on_device(name, 4), on_device(name, 8)
    assert many >= few + 12 and still <= distinct + 2, "what is done to a chunk differs in where it begins, which is an argument"


def test_gradients_in_16_bits_are_added_up_in_32(small: None) -> None:
    r = np.random.default_rng(1)
    x = torchlet.tensor(r.standard_normal((8, LENGTH, WIDTH)).astype(np.float32))
    weight = torchlet.tensor(r.standard_normal((WORDS, WIDTH)).astype(np.float32), requires_grad=True)

    def f() -> Any:
        with torchlet.autocast("cpu", dtype=bfloat16):
            y = F.linear(x, weight)
        loss = (y.float().logsumexp(-1)).sum()
        loss.backward()
        return loss

    compiled = torchlet.compile(f)
    compiled()
    assert "chunks" in str(describe(compiled)) and any("wide_matmul" in k.name for k in plan_of(compiled).kernels)
    got = weight.grad.double().numpy()
    exact = weight.detach().double().requires_grad_()
    F.linear(x.double(), exact).logsumexp(-1).sum().backward()
    wanted = exact.grad.numpy()
    assert np.abs(got - wanted).max() <= 4e-3 * np.abs(wanted).max()


# ------------------------------------------------------------------------------------------------ what is left as it is


def test_logits_that_are_a_result_are_held(small: None) -> None:
    x, weight, bias, target = tensors()

    def f() -> Any:
        y = F.linear(x, weight, bias)
        return F.cross_entropy(y.view(-1, WORDS), target.view(-1)), y

    compiled = torchlet.compile(f)
    compiled()
    said = str(describe(compiled))
    assert "are held at once, because it, or as much made of it, is a result" in said


def test_a_row_that_is_used_with_numbers_of_all_rows_is_held(small: None) -> None:
    x, weight, bias, _ = tensors()

    def f() -> Any:
        y = F.linear(x, weight, bias)
        return (y - y.mean()).square().sum(-1)

    compiled = torchlet.compile(f)
    exact = F.linear(x, weight, bias)
    np.testing.assert_allclose(compiled().detach().numpy(), (exact - exact.mean()).square().sum(-1).detach().numpy(), rtol=1e-4)
    assert "are held at once, because its rows are used together with what all of them make" in str(describe(compiled))


def test_a_maximum_over_rows_is_no_sum_of_chunks(small: None) -> None:
    x, weight, bias, _ = tensors()
    compiled = torchlet.compile(lambda: F.linear(x, weight, bias).view(-1, WORDS).amax(0))
    np.testing.assert_allclose(compiled().detach().numpy(), F.linear(x, weight, bias).view(-1, WORDS).amax(0).detach().numpy(), rtol=1e-5)
    assert "are held at once, because amax does not work row by row" in str(describe(compiled))


def test_rows_that_do_not_divide_are_held(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "ROWS", 2)
    x, weight = torchlet.randn(127, WIDTH), torchlet.randn(WORDS, WIDTH)
    compiled = torchlet.compile(lambda: (x @ weight.T).logsumexp(-1))
    np.testing.assert_allclose(compiled().numpy(), (x @ weight.T).logsumexp(-1).numpy(), rtol=1e-5)
    assert "are held at once, because its 127 rows do not divide into chunks" in str(describe(compiled))


def test_what_a_row_gives_elsewhere_is_put_together(small: None) -> None:
    """The place of the largest logit is read for the accuracy: of it, unlike of the logits, all rows are there afterwards."""
    x, weight, bias, target = tensors()

    def f() -> Any:
        y = F.linear(x, weight, bias)
        loss = entropy()(y, target)
        loss.backward()
        return loss, y.argmax(-1), y.amax(-1)

    compiled = torchlet.compile(f)
    _, best, top = compiled()
    exact = F.linear(x, weight, bias).detach().numpy()
    assert CHUNKED in str(describe(compiled))
    np.testing.assert_array_equal(best.numpy(), exact.argmax(-1))
    np.testing.assert_allclose(top.detach().numpy(), exact.max(-1), rtol=1e-5)


@pytest.mark.parametrize("dynamic", [None, True])
def test_sizes_may_pass_the_limit(dynamic: bool | None, small: None) -> None:
    weight = torchlet.randn(WORDS, WIDTH)
    compiled = torchlet.compile(lambda x: (x @ weight.T).logsumexp(-1), dynamic=dynamic)
    for rows in (24, 256, 64, 96, 7, 480):
        x = torchlet.randn(rows, WIDTH)
        np.testing.assert_allclose(compiled(x).numpy(), (x @ weight.T).logsumexp(-1).numpy(), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ the order


def test_a_large_value_is_used_up_before_the_next_is_made(small: None) -> None:
    """Gradients of the weights and of the input read a chunk at once, though the loss, which needs none of them, was written before."""
    leaves = tensors(batch=16)
    f = torchlet.compile(step(LOSSES["mean"], *leaves))
    f()
    plan = plan_of(f)
    logits = [b for b in plan.lifetimes if b.nbytes == LENGTH * WORDS * 4]
    assert len({b.slot for b in logits}) == 1 and len(logits) >= 16, "all chunks lie in one place"
    assert plan.arena_bytes < 2 * LENGTH * WORDS * 4 + 2 * WORDS * WIDTH * 4 + 8192
