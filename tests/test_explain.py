"""explain() says in words what happened: paths, why each segment ended and where, kernels with lines, what runs uncompiled and why."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import torchlet as torch
from torchlet import nn
from torchlet.compiler.codegen import cpu as codegen


def line_of(f: Callable[..., Any], text: str) -> int:
    """The line number of a piece of a function."""
    lines, first = inspect.getsourcelines(inspect.unwrap(f))
    return first + next(i for i, line in enumerate(lines) if text in line)


@torch.compile
def branch(x):
    y = x * 2
    if y.sum() > 0:
        return torch.sort(y)[0] + 1
    return y - 1


@pytest.fixture(autouse=True)
def forget() -> None:
    """Each test starts without paths."""
    branch.reset()


def test_each_path_tells_where_and_why_its_segment_ended() -> None:
    branch(torch.ones(3))
    found = torch.explain(branch)(-torch.ones(3))
    read = line_of(branch, "if y.sum()")
    assert found.segments == 3
    place = rf"\S*test_explain\.py:{read}"
    assert re.search(rf"^path 1: 3 steps to {place}, ended at {place}: a value was read; 2 launches$", found.text, re.MULTILINE)
    assert len(re.findall(r": the call ended; 1 launch$", found.text, re.MULTILINE)) == 2


def test_kernels_stand_with_the_lines_they_compute() -> None:
    text = str(torch.explain(branch)(-torch.ones(3)))
    line = line_of(branch, "return y - 1")
    assert re.search(rf"^    sub_\w+ +\S*test_explain\.py:{line}$", text, re.MULTILINE)


def test_an_extern_call_tells_its_reason_and_its_line() -> None:
    text = str(torch.explain(branch)(torch.ones(3)))
    line = line_of(branch, "torch.sort")
    assert re.search(rf"^    extern argsort: it has no loops to compile and runs as NumPy \S*test_explain\.py:{line}$", text, re.MULTILINE)


def test_what_runs_step_by_step_tells_why() -> None:
    @torch.compile
    def f(x, part):
        x.add_(1)
        return part * 2

    x = torch.ones(4)
    text = str(torch.explain(f)(x, x[1:]))
    assert "not compiled, run step by step: outside tensors share memory that is written" in text
    assert "1 launch, 1 of them step by step" in text


def test_a_generator_function_is_said_to_run_uncompiled() -> None:
    @torch.compile
    def f(x):
        yield x + 1

    assert "generator" in str(torch.explain(f)(torch.ones(2)))


def test_the_backward_half_is_listed_once_it_is_compiled() -> None:
    layer = nn.Linear(3, 2)
    f = torch.compile(lambda x: torch.tanh(layer(x)))
    out = f(torch.ones(4, 3))
    assert "lambda_backward" not in str(torch.explain(f)(torch.ones(4, 3)))
    out.sum().backward()
    text = str(torch.explain(f)(torch.ones(4, 3)))
    assert re.search(r"^  lambda_backward: \d+ kernels$", text, re.MULTILINE)


def test_explain_of_a_plain_function_compiles_it() -> None:
    found = torch.explain(lambda x: x * 2 + 1)(torch.ones(3))
    assert found.kernels == 1 and found.segments == 1


# ------------------------------------------------------------------------------------------------ kernels()


def training_step() -> tuple[nn.Module, Callable[..., Any]]:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    optimizer = torch.optim.Adam(model.parameters())

    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, step


@pytest.mark.parametrize("target", ["cpu", "cuda:90"])
def test_kernels_of_a_training_step_have_every_field_and_change_nothing(target: str) -> None:
    model, step = training_step()
    before = [p.detach().clone() for p in model.parameters()]
    found = torch.compiler.kernels(step, torch.randn(5, 8), torch.randint(0, 4, (5,)), target=target)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert len(found) > 3 and len({k.name for k in found}) == len(found)
    for k in found:
        assert k.name in k.source and k.bytes_moved > 0 and k.flops >= 0 and k.roofline_us > 0
        assert k.lines and all(re.search(r"test_explain\.py:\d+$", line) for line in k.lines)
    if target == "cpu":
        k = found[0]
        assert [k.ttir, k.ptx, k.sass, k.registers, k.spill_bytes, k.shared_bytes, k.num_warps] == [None] * 7
        assert all("int64_t" in k.source for k in found)
    else:
        k = found[0]
        assert k.registers > 0 and k.spill_bytes == 0 and ".entry" in k.ptx and k.num_warps >= 1


def test_a_cpu_report_costs_what_its_loops_touch() -> None:
    f = torch.compile(lambda x: x * 2 + 1)
    (kernel,) = torch.compiler.kernels(f, torch.ones(1000), target="cpu")
    assert kernel.bytes_moved == 8000 and kernel.flops == 2000
    assert kernel.source == codegen.emit(kernel.kernel)
