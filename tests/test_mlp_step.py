"""The MLP training step, the program that everything has to carry: kernels, targets, the interpreter, both ways of compiling it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn as nn
from torchlet.compiler.emulate import run_interpreted_triton
from torchlet.compiler.interpret import interpret

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")


def training_step(optimizer="sgd", sizes=(20, 16, 12, 10), batch=24, clip=None):
    torch.manual_seed(0)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    opt = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2)}[optimizer](
        model.parameters()
    )
    loss_fn = nn.CrossEntropyLoss()

    def step(x, y):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        return loss

    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((batch, sizes[0])).astype(np.float32))
    y = torch.tensor(rng.integers(0, sizes[-1], batch))
    return model, step, x, y


def segment_values(optimizer, clip):
    """The compiled step's plan with the arrays and numbers of its next call."""
    _, step, x, y = training_step(optimizer, clip=clip)
    compiled = torch.compile(step)
    for _ in range(2):
        compiled(x, y)
    (path, _), program = compiled.paths[-1], compiled.programs[-1]
    held = {}
    launch = program.launch
    program.launch = lambda scalars: (held.update(slots=[s.t._np.copy() for s in path.slots], scalars=list(scalars)), launch(scalars))
    compiled(x, y)
    inputs = [held["slots"][i] for i in program.segment.inputs]
    scalars = [held["scalars"][i] for i in program.segment.scalars]
    return program, inputs, scalars


@pytest.mark.parametrize(("optimizer", "clip"), [("sgd", None), ("adamw", 1.0)])
def test_every_triton_kernel_of_the_mlp_step_agrees_with_eager_in_the_interpreter(optimizer, clip):
    program, inputs, scalars = segment_values(optimizer, clip)
    plan = program.executable.plan
    expected = interpret(program.graph, inputs, scalars)
    got = run_interpreted_triton(plan, inputs, scalars)
    assert len(got) == len(expected) > 12
    for name, a, b in zip(program.graph.output_names, got, expected, strict=True):
        # float32 sums in another order; Adam divides by sqrt(v), which magnifies the last bits of small gradients
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_of_the_mlp_step_compiles_offline(target):
    _, step, x, y = training_step("adamw", sizes=(784, 256, 128, 10), batch=64, clip=1.0)
    found = torch.compiler.kernels(step, x, y, target=target)
    assert len(found) >= 8
    for kernel in found:
        text = kernel.ptx if target.startswith("cuda") else kernel.source
        assert text and kernel.source.count("@triton.jit") >= 1
        assert kernel.lines, kernel.name
        if target == "cuda:90":
            assert kernel.spill_bytes == 0 and kernel.registers > 0, kernel.name


def test_kernels_launches_nothing():
    model, step, x, y = training_step("adamw")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = torch.compiler.kernels(step, x, y, target="cpu")
    assert [k.name for k in found] and all(k.source for k in found)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_mlp_step_is_one_segment_of_few_kernels():
    _, step, x, y = training_step("sgd")
    compiled = torch.compile(step)
    for _ in range(2):
        compiled(x, y)
    (path, _) = compiled.paths[-1]
    executable = compiled.programs[-1].executable
    assert path.stepwise == 0 and not executable.externs
    # 3 layers forward, loss, 2 input gradients, 3 weight and 3 bias updates, and what the loss needs besides
    assert len(executable.kernels) <= 14, [k.name for k in executable.kernels]
