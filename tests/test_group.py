"""Updates of many tensors as one launch on a GPU: which kernels share it, what it computes, what moves when addresses do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph_of
from standin import CC, StandIn, stand_in

import torchlet as torch
from torchlet import nn
from torchlet.compiler.codegen.triton import emit
from torchlet.compiler.emulate import run_interpreted_triton, run_plan
from torchlet.compiler.execute import optimize
from torchlet.compiler.group import Grouped, form_of
from torchlet.compiler.loop_text import to_text
from torchlet.compiler.offline import compile_kernel
from torchlet.compiler.schedule import Plan, schedule

rng = np.random.default_rng(8)
LENGTHS = (5, 1024, 3000, 1, 64, 2048)


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    if CC is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    with stand_in() as s:
        yield s


def updates(*lengths: int) -> tuple[Plan, list[np.ndarray]]:
    """p -= lr * g and m = 0.9 m + g for each length; p and m are written in place."""
    arrays = [rng.standard_normal(n).astype(np.float32) for n in lengths for _ in range(3)]

    def step(*x: Any) -> Any:
        *tensors, lr = x
        out = []
        for p, m, g in zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True):
            new = m * 0.9 + g
            out += [p - new * lr, new]
        return tuple(out)

    targets = [3 * i + k for i in range(len(lengths)) for k in (0, 1)]
    return schedule(optimize(graph_of(step, *arrays, scalars=[0.1], targets=targets), gpu=True), "f", gpu=True)[0], arrays


def test_updates_of_tensors_of_any_length_are_one_kernel_that_computes_each() -> None:
    plan, arrays = updates(*LENGTHS)
    bodies = [k.body for k in plan.kernels if isinstance(k.body, Grouped)]
    assert len(bodies) == 1 and len(plan.kernels) == 2 and len(bodies[0].lengths) == len(LENGTHS) - 1  # one element has no axis to share
    p, m, g = (arrays[i::3] for i in range(3))
    for run in (run_plan, run_interpreted_triton):
        found = run(plan, [a.copy() for a in arrays], [0.1])
        for i in range(len(LENGTHS)):
            new = m[i].astype(np.float64) * 0.9 + g[i]
            np.testing.assert_allclose(found[2 * i], p[i] - new * 0.1, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(found[2 * i + 1], new, rtol=1e-6, atol=1e-6)


def test_what_reads_the_result_of_another_is_launched_after_it() -> None:
    a = [rng.standard_normal(n).astype(np.float32) for n in (100, 200)]
    graph = graph_of(lambda x, y: (x * 2, y * 2, (x * 2).exp().sum(0), y.flip(0)), *a)
    plan = schedule(optimize(graph, gpu=True), "f", gpu=True)[0]
    for found, wanted in zip(run_plan(plan, a), (a[0] * 2, a[1] * 2, np.exp(a[0] * 2).sum(), a[1][::-1]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_reductions_transposes_and_gathers_have_no_form() -> None:
    x = rng.standard_normal((40, 30)).astype(np.float32)
    for f in (lambda x: x.sum(0), lambda x: x.t().contiguous(), lambda x: x.flip(0)):
        plan = schedule(optimize(graph_of(f, x), gpu=True), "f", gpu=True)[0]
        assert all(form_of(k) is None for k in plan.kernels)


def test_on_the_cpu_every_update_keeps_its_kernel() -> None:
    arrays = [np.ones(8, np.float32), np.ones(9, np.float32)]
    plan = schedule(optimize(graph_of(lambda x, y: (x + 1, y + 1), *arrays)), "f")[0]
    assert not any(k.body for k in plan.kernels)


def test_whole_blocks_are_read_and_written_sixteen_bytes_at_a_time() -> None:
    plan, _ = updates(4096, 8192, 1 << 16)
    (kernel,) = plan.kernels
    built = compile_kernel(emit(kernel), "cuda:90")
    assert built.spill_bytes == 0 and "ld.global.v4" in (built.ptx or "") and "st.global.v4" in (built.ptx or "")
    assert built.bytes_moved == 5 * 4 * (4096 + 8192 + (1 << 16))
    assert "for each of 3 members" in to_text(kernel)


def test_the_dumped_group_runs_alone_and_checks_itself(gpu: StandIn, tmp_path: Path) -> None:
    with torch.debug.dump(str(tmp_path)):
        torch.compile(lambda x, y, a: (x * a + 1, y * a + 1))(torch.ones(2000).cuda(), torch.ones(40).cuda(), 3.0)
    (script,) = tmp_path.glob("*/6_kernels/*_run.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0 and done.stdout.count("ok    Triton") == 4, done.stdout + done.stderr


def test_adamw_over_many_parameters_is_a_few_launches_and_the_same_numbers(gpu: StandIn) -> None:
    torch.manual_seed(0)
    host = nn.Sequential(*[nn.Linear(40, 8 + i) for i in range(10)])
    device = nn.Sequential(*[nn.Linear(40, 8 + i) for i in range(10)])
    device.load_state_dict(host.state_dict())
    device = device.to("cuda")
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (host, device)]
    for number in range(5):
        for a, b in zip(host.parameters(), device.parameters(), strict=True):
            a.grad = torch.randn(*a.shape)
            b.grad = a.grad.cuda()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + number)
            gpu.runs.clear()
            optimizer.step()
    assert gpu.runs == ["grouped"]
    for a, b in zip(host.parameters(), device.parameters(), strict=True):
        np.testing.assert_allclose(b.detach().cpu().numpy(), a.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_table_follows_tensors_that_move_and_tensors_that_lie_badly(gpu: StandIn) -> None:
    double = torch.compile(lambda x, y: (x * 2, y * 2))
    big = torch.arange(4000, dtype=torch.float32).cuda()
    for start in (0, 64, 1, 3, 0):
        x, y = big[start : start + 1100], big[start + 1200 : start + 2400]
        a, b = double(x, y)
        assert a.cpu().tolist() == (x.cpu() * 2).tolist() and b.cpu().tolist() == (y.cpu() * 2).tolist()
    assert any("grouped" in name for name in gpu.runs)
