"""Optimizers and schedules give PyTorch's numbers (recorded with torch 2.13 in float64) and PyTorch's state layout."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest

import torchlet as tl
from torchlet import nn, optim
from torchlet.optim import lr_scheduler

START = [1.0, -2.0, 0.5]
RECORDED = [
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}, [0.938914346963, -1.9049353692, 0.25350047395]),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, [0.577523013025, -1.763975, -0.140358333333]),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}, [1.42788727479, -2.2086884, 1.39369733333]),
    ("Adam", {"lr": 0.1}, [0.696740823747, -1.71943555504, 0.0598539163406]),
    ("Adam", {"lr": 0.1, "weight_decay": 0.2, "betas": (0.8, 0.9), "eps": 0.001}, [0.682151255446, -1.59959062179, 0.0591405777834]),
    ("Adam", {"lr": 0.1, "amsgrad": True, "maximize": True}, [1.30325917625, -2.28052840708, 0.940146083659]),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.2}, [0.618219181779, -1.54397813643, 0.0301596460214]),
]


def gradient(t: int) -> tl.Tensor:
    return tl.tensor([math.sin(t + 1.0), 0.3 * (t - 2), 1.0 / (t + 1)], dtype=tl.float64)


def parameter(values: object = None) -> nn.Parameter:
    return nn.Parameter(tl.tensor(START if values is None else values, dtype=tl.float64))


def run(optimizer: optim.Optimizer, p: nn.Parameter, steps: range) -> None:
    for t in steps:
        p.grad = gradient(t)
        optimizer.step()


@pytest.mark.parametrize(("name", "options", "expected"), RECORDED)
def test_five_steps_give_pytorchs_numbers(name: str, options: dict, expected: list[float]) -> None:
    p = parameter()
    run(getattr(optim, name)([p], **options), p, range(5))
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("name", "options", "expected"), RECORDED)
def test_a_checkpoint_in_the_middle_changes_nothing(name: str, options: dict, expected: list[float]) -> None:
    p = parameter()
    first = getattr(optim, name)([p], **options)
    run(first, p, range(2))
    state = copy.deepcopy(first.state_dict())
    q = parameter(p.detach().numpy())
    second = getattr(optim, name)([q], lr=9.0)
    second.load_state_dict(state)
    run(second, q, range(2, 5))
    np.testing.assert_allclose(q.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("name", "options", "expected"), RECORDED)
def test_deepcopy_and_pickle_carry_state_along(name: str, options: dict, expected: list[float]) -> None:
    p = parameter()
    optimizer = getattr(optim, name)([p], **options)
    run(optimizer, p, range(3))
    for q, other in (copy.deepcopy((p, optimizer)), pickle.loads(pickle.dumps((p, optimizer)))):
        run(other, q, range(3, 5))
        np.testing.assert_allclose(q.detach().numpy(), expected, rtol=1e-10)


def test_parameters_are_updated_in_place_and_stay_leaves() -> None:
    p = parameter()
    alias = p.detach()
    run(optim.SGD([p], lr=0.1), p, range(1))
    assert p.is_leaf and p.requires_grad and np.array_equal(alias.numpy(), p.detach().numpy()) and alias.tolist() != START


def test_parameters_without_gradient_are_skipped_and_keep_their_own_step_count() -> None:
    a, b, alone = parameter(), parameter(), parameter()
    both = optim.Adam([a, b], lr=0.1)
    single = optim.Adam([alone], lr=0.1)
    for t in range(5):
        a.grad = gradient(t)
        b.grad = gradient(t) if t >= 2 else None
        both.step()
        if t >= 2:
            alone.grad = gradient(t)
            single.step()
    np.testing.assert_allclose(a.detach().numpy(), RECORDED[3][2], rtol=1e-10)
    np.testing.assert_allclose(b.detach().numpy(), alone.detach().numpy(), rtol=1e-12)
    assert both.state[a]["step"] == 5 and both.state[b]["step"] == 3


def test_momentum_of_a_late_parameter_starts_with_its_first_gradient() -> None:
    a, b, alone = parameter(), parameter(), parameter()
    both, single = optim.SGD([a, b], lr=0.1, momentum=0.9, dampening=0.3), optim.SGD([alone], lr=0.1, momentum=0.9, dampening=0.3)
    for t in range(5):
        a.grad, b.grad, alone.grad = gradient(t), gradient(t) if t >= 2 else None, gradient(t) if t >= 2 else None
        both.step()
        single.step()
    np.testing.assert_allclose(a.detach().numpy(), RECORDED[1][2], rtol=1e-10)
    np.testing.assert_allclose(b.detach().numpy(), alone.detach().numpy(), rtol=1e-12)


def test_groups_have_their_own_options() -> None:
    a, b = parameter(), parameter()
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    a.grad = b.grad = gradient(0)
    optimizer.step()
    np.testing.assert_allclose(np.array(START) - a.detach().numpy(), 0.1 * gradient(0).numpy(), rtol=1e-9)
    np.testing.assert_allclose(np.array(START) - b.detach().numpy(), 0.5 * gradient(0).numpy(), rtol=1e-9)
    optimizer.param_groups[0]["lr"] = 0.0
    before = a.detach().tolist()
    optimizer.step()
    assert a.detach().tolist() == before


def test_state_can_be_reset_between_steps() -> None:
    p, q = parameter(), parameter()
    optimizer, fresh = optim.Adam([p], lr=0.1), optim.Adam([q], lr=0.1)
    run(optimizer, p, range(3))
    optimizer.state.clear()
    with tl.no_grad():
        q.copy_(p)
    run(optimizer, p, range(3, 5))
    run(fresh, q, range(3, 5))
    assert p.detach().tolist() == q.detach().tolist()


def test_state_dict_has_pytorchs_layout() -> None:
    a, b = parameter(), parameter()
    optimizer = optim.AdamW([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    b.grad = gradient(0)
    optimizer.step()
    state = optimizer.state_dict()
    assert (
        list(state) == ["state", "param_groups"]
        and list(state["state"]) == [1]
        and [g["params"] for g in state["param_groups"]] == [[0], [1]]
    )
    assert list(state["state"][1]) == ["step", "exp_avg", "exp_avg_sq"]
    step = state["state"][1]["step"]
    assert step.dtype is tl.float32 and step.shape == () and float(step) == 1.0
    assert set(state["param_groups"][1]) == {
        "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused",
        "decoupled_weight_decay", "params",
    }
    assert state["param_groups"][1]["lr"] == 0.5


def test_loading_casts_state_to_the_parameters_dtype_and_copies_it() -> None:
    p = parameter()
    optimizer = optim.Adam([p])
    run(optimizer, p, range(1))
    q = nn.Parameter(tl.tensor(START))
    other = optim.Adam([q])
    state = optimizer.state_dict()
    other.load_state_dict(state)
    assert other.state[q]["exp_avg"].dtype is tl.float32 and other.state[q]["step"] == 1.0
    same = optim.Adam([parameter()])
    same.load_state_dict(state)
    before = state["state"][0]["exp_avg"].tolist()
    run(same, same.param_groups[0]["params"][0], range(1, 3))
    assert state["state"][0]["exp_avg"].tolist() == before


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    p = parameter()
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9)
    run(optimizer, p, range(1))
    buffer = optimizer.state[p]["momentum_buffer"]
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict({"state": {}, "param_groups": [{"lr": 5.0, "params": [0, 1]}]})
    assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.state[p]["momentum_buffer"] is buffer


def test_closure_is_called_with_gradients_on_and_its_loss_is_returned() -> None:
    p = parameter()
    optimizer = optim.SGD([p], lr=0.1)

    def closure() -> tl.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with tl.no_grad():
        assert float(optimizer.step(closure)) == pytest.approx(5.25)
    np.testing.assert_allclose(p.detach().numpy(), 0.8 * np.array(START))


def test_zero_grad_drops_or_zeroes() -> None:
    p = parameter()
    optimizer = optim.SGD([p])
    p.grad = held = gradient(0)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is held and held.tolist() == [0.0, 0.0, 0.0]
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: optim.SGD([]), ValueError, "optimizer got an empty parameter list"),
        (lambda p: optim.SGD(p), TypeError, "should be an iterable of Tensors or dicts"),
        (lambda p: optim.SGD([p * 2]), ValueError, "can't optimize a non-leaf Tensor"),
        (lambda p: optim.SGD([3]), TypeError, "optimizer can only optimize Tensors, but one of the params is int"),
        (lambda p: optim.SGD([{"params": {p}}]), TypeError, "ordered collections"),
        (lambda p: optim.SGD([{"params": [p]}, {"params": [p]}]), ValueError, "some parameters appear in more than one parameter group"),
        (lambda p: optim.SGD([p], lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "Nesterov momentum requires a momentum and zero dampening"),
        (lambda p: optim.Adam([p], betas=(1.0, 0.9)), ValueError, "Invalid beta parameter at index 0: 1.0"),
        (lambda p: optim.AdamW([p], eps=-1.0), ValueError, "Invalid epsilon value: -1.0"),
        (lambda p: optim.Adam([p], weight_decay=-1.0), ValueError, "Invalid weight_decay value: -1.0"),
    ],
)
def test_misuse_raises_with_pytorchs_words(make, error, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        make(parameter())


def test_repr_lists_the_options_of_each_group() -> None:
    text = repr(optim.SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.5}], lr=0.1))
    assert (
        text.startswith("SGD (\nParameter Group 0\n    dampening: 0\n")
        and "\n\nParameter Group 1\n" in text
        and "    lr: 0.5\n" in text
        and text.endswith("\n)")
    )


def test_learning_rate_may_be_a_tensor() -> None:
    p = parameter()
    run(optim.Adam([p], lr=tl.tensor(0.1, dtype=tl.float64)), p, range(5))
    np.testing.assert_allclose(p.detach().numpy(), RECORDED[3][2], rtol=1e-10)


def test_a_user_defined_optimizer_works_on_the_base_class() -> None:
    class Signs(optim.Optimizer):
        def __init__(self, params: object, lr: float) -> None:
            super().__init__(params, dict(lr=lr))

        @tl.no_grad()
        def step(self, closure: object = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(p.grad.sign(), alpha=-group["lr"])

    p = parameter()
    optimizer = Signs([p], lr=0.5)
    p.grad = tl.tensor([1.0, -2.0, 0.0], dtype=tl.float64)
    optimizer.step()
    assert p.detach().tolist() == [0.5, -1.5, 0.5]


# ------------------------------------------------------------------------------------------------ schedules

RATES = [
    ("StepLR", {"step_size": 3}, [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]),
    ("MultiStepLR", {"milestones": [2, 5, 5]}, [1.0, 1.0, 0.1, 0.1, 0.1, 0.001, 0.001, 0.001]),
    ("ExponentialLR", {"gamma": 0.9}, [1.0, 0.9, 0.81, 0.729, 0.6561, 0.59049, 0.531441, 0.4782969]),
    ("CosineAnnealingLR", {"T_max": 3, "eta_min": 0.01}, [1.0, 0.7525, 0.2575, 0.01, 0.2575, 0.7525, 1.0, 0.7525]),
    ("LinearLR", {"total_iters": 4}, [0.3333333333, 0.5, 0.6666666667, 0.8333333333, 1.0, 1.0, 1.0, 1.0]),
    ("ConstantLR", {"total_iters": 3}, [0.3333333333, 0.3333333333, 0.3333333333, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("PolynomialLR", {"total_iters": 5, "power": 2.0}, [1.0, 0.64, 0.36, 0.16, 0.04, 0.0, 0.0, 0.0]),
    ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 2}, [1.0, 0.5, 1.0, 0.8535533906, 0.5, 0.1464466094, 1.0, 0.9619397663]),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "total_steps": 8},
        [0.02, 0.4096375524, 0.4859708887, 0.405872827, 0.2779920071, 0.1415304991, 0.03832079692, 2e-06],
    ),
    (
        "CyclicLR",
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3, "mode": "triangular2"},
        [0.1, 0.2333333333, 0.3666666667, 0.5, 0.3666666667, 0.2333333333, 0.1, 0.1666666667],
    ),
    ("LambdaLR", {"lr_lambda": lambda e: 0.5**e}, [0.5**e for e in range(8)]),
    ("MultiplicativeLR", {"lr_lambda": lambda e: 0.5}, [0.5**e for e in range(8)]),
]


def schedule(name: str, options: dict) -> tuple[optim.SGD, lr_scheduler.LRScheduler]:
    optimizer = optim.SGD([parameter()], lr=1.0, momentum=0.9)
    return optimizer, getattr(lr_scheduler, name)(optimizer, **options)


def follow(optimizer: optim.SGD, scheduler: lr_scheduler.LRScheduler, epochs: range) -> list[float]:
    rates = []
    for epoch in epochs:
        if epoch:
            optimizer.step()
            scheduler.step()
        assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("name", "options", "expected"), RATES)
def test_schedule_gives_pytorchs_rates(name: str, options: dict, expected: list[float]) -> None:
    np.testing.assert_allclose(follow(*schedule(name, options), range(8)), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("name", "options", "expected"), RATES)
def test_schedule_goes_on_after_a_checkpoint(name: str, options: dict, expected: list[float]) -> None:
    optimizer, scheduler = schedule(name, options)
    follow(optimizer, scheduler, range(4))
    other, resumed = schedule(name, options)
    resumed.load_state_dict(scheduler.state_dict())
    other.load_state_dict(optimizer.state_dict())
    np.testing.assert_allclose(follow(other, resumed, range(4, 8)), expected[4:], rtol=1e-8, atol=1e-12)


def test_schedules_one_after_the_other() -> None:
    optimizer = optim.SGD([parameter()], lr=1.0)
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    rates = follow(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [3]), range(6))
    np.testing.assert_allclose(rates, [0.1, 0.1, 1.0, 1.0, 0.5, 0.25])


def test_chained_schedules_multiply() -> None:
    optimizer = optim.SGD([parameter()], lr=1.0)
    chained = lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)])
    np.testing.assert_allclose(follow(optimizer, chained, range(4)), [0.1, 0.05, 0.25, 0.125])


def test_plateau_lowers_the_rate_after_patience_and_waits() -> None:
    optimizer = optim.SGD([parameter()], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, cooldown=1, factor=0.5, min_lr=0.3)
    rates = []
    for metric in [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]:
        scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3]


def test_stepping_the_schedule_first_warns() -> None:
    optimizer = optim.SGD([parameter()], lr=1.0)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow(*schedule("StepLR", {"step_size": 1}), range(3))


def test_epoch_argument_uses_the_closed_form() -> None:
    optimizer, scheduler = schedule("CosineAnnealingLR", {"T_max": 3, "eta_min": 0.01})
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2575)


def test_one_cycle_moves_beta1_against_the_rate_and_ends() -> None:
    optimizer = optim.Adam([parameter()], lr=1.0)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=4)
    betas = [optimizer.param_groups[0]["betas"][0]]
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        betas.append(optimizer.param_groups[0]["betas"][0])
    assert betas[0] == 0.95 and min(betas) < 0.9 and betas[-1] == pytest.approx(0.95) and optimizer.param_groups[0]["betas"][1] == 0.999
    scheduler.step()
    with pytest.raises(ValueError, match=r"Tried to step 5 times\. The total number of steps is 4"):
        scheduler.step()


def test_schedules_refuse_bad_arguments() -> None:
    optimizer = optim.SGD([parameter()], lr=1.0)
    with pytest.raises(TypeError, match="int is not an Optimizer"):
        lr_scheduler.StepLR(3, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected 1 lr_lambdas, but got 2"):
        lr_scheduler.LambdaLR(optimizer, [abs, abs])
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optim.SGD([parameter()], lr=1.0), 1, last_epoch=3)
    with pytest.raises(ValueError, match="total_steps OR"):
        lr_scheduler.OneCycleLR(optimizer, 0.1)


# ------------------------------------------------------------------------------------------------ compiled


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_compiled_training_step_equals_eager_and_a_changing_rate_makes_no_new_path(name: str) -> None:
    x, y = tl.tensor(np.random.default_rng(0).standard_normal((5, 4)), dtype=tl.float32), tl.tensor([0, 2, 1, 1, 0])
    ends, paths = [], []
    for compiled in (False, True):
        tl.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))
        optimizer = getattr(optim, name)(net.parameters(), lr=0.05)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.8)

        def step(net: nn.Module = net, optimizer: optim.Optimizer = optimizer) -> tl.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            return loss

        run_step = tl.compile(step) if compiled else step
        for _ in range(5):
            run_step()
            scheduler.step()
            if compiled:
                paths.append(tl.compiler.stats()["paths"])
        ends.append([p.detach().numpy().copy() for p in net.parameters()])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert len(set(paths[1:])) == 1
