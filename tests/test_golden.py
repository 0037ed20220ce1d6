"""Twelve programs with their graphs, loop nests and C (for two, Triton) as text: what a change of the compiler changes shows in a diff."""

import math
import re
from collections.abc import Callable
from typing import Any

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn
from torchlet.compiler import pages
from torchlet.compiler.codegen import cpu, triton
from torchlet.compiler.function import executables
from torchlet.compiler.loop_text import readable, to_text

Golden = Callable[[str], None]


def text_of(f: Callable[..., Any], *args: Any, with_triton: bool = False) -> str:
    """Graph, kernels as loops, kernels as C, of every program that calling the function once compiles."""
    compiled = torch.compile(f)
    compiled(*args)
    parts = []
    for program in compiled.programs:
        assert not program.stepwise, program.stepwise
        parts.append(pages.graph(program.segment.graph))
        for exe in executables(program):
            kernels = [readable(k) for k in exe.kernels]
            parts += [f"refused: {a} with {b}: {why}\n" for a, b, why in exe.stages["fused"].refused]
            parts += [to_text(k) for k in kernels] + [cpu.emit(k) for k in kernels]
            if with_triton:
                parts += [triton.emit(k).source for k in kernels]
    text = "\n".join(parts)
    return re.sub(r"\S*(test_golden\.py):\d+", r"\1", text)  # the place of a program in this file means nothing


def test_add(golden: Golden) -> None:
    golden(text_of(lambda x, y: x + y, torch.ones(8, 16), torch.ones(8, 16)))


def test_broadcast_add(golden: Golden) -> None:
    golden(text_of(lambda x, row, column: x + row + column, torch.ones(8, 16), torch.ones(16), torch.ones(8, 1)))


def test_mean(golden: Golden) -> None:
    golden(text_of(lambda x: x.mean(0), torch.ones(32, 16)))


def test_softmax(golden: Golden) -> None:
    golden(text_of(lambda x: torch.softmax(x, -1), torch.ones(8, 64), with_triton=True))


def test_layer_norm(golden: Golden) -> None:
    golden(text_of(lambda x, w, b: F.layer_norm(x, (64,), w, b), torch.ones(8, 64), torch.ones(64), torch.ones(64)))


def test_gelu_chain(golden: Golden) -> None:
    golden(text_of(lambda x, s: F.gelu(x * s + 1).tanh() * 2, torch.ones(32, 32), 0.5))


def test_linear_relu(golden: Golden) -> None:
    golden(text_of(lambda x, w, b: torch.relu(x @ w + b), torch.ones(32, 16), torch.ones(16, 24), torch.ones(24), with_triton=True))


def test_cross_entropy(golden: Golden) -> None:
    golden(text_of(lambda x, y: F.cross_entropy(x, y), torch.ones(8, 10), torch.zeros(8, dtype=torch.int64)))


def test_attention_by_hand(golden: Golden) -> None:
    def attention(q, k, v):
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, T, T)
        mask = torch.tril(torch.ones(q.size(1), q.size(1)))
        return F.softmax(scores.masked_fill(mask == 0, float("-inf")), dim=-1) @ v  # (B, T, D)

    golden(text_of(attention, *(torch.ones(2, 8, 16) for _ in range(3))))


def optimizer_step(make: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    weight = nn.Parameter(torch.ones(8, 4))
    weight.grad = torch.ones(8, 4)
    optimizer = make([weight])
    return optimizer.step, weight


def test_sgd_step(golden: Golden) -> None:
    step, _ = optimizer_step(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    golden(text_of(step))


def test_adam_step(golden: Golden) -> None:
    step, _ = optimizer_step(lambda p: torch.optim.Adam(p, lr=0.1))
    golden(text_of(step))


def test_mlp_step(golden: Golden) -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    golden(text_of(step, torch.ones(6, 12), torch.zeros(6, dtype=torch.int64)))
