"""What a compiled call costs on the host: microseconds per call with the kernels left out, beside torch.compile and jax.jit.

    python benchmarks/host_cost.py [--batches 40] [--only torchlet]

Every row is the minimum over batches; the rows take turns, so that a busy machine slows all of them alike. Kernels are replaced by
nothing: torchlet's native call finds no launches, torch.compile gets a backend that returns the outputs of its first run, and the body of
the jitted function hands as many arrays in and out as the step has. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Row = tuple[str, str, Callable[[], Any]]  # (what, who, one call)


def workloads(torch: Any, compile: Callable[..., Any], who: str, options: dict[str, Any]) -> list[Row]:
    """The same Python in torchlet and in PyTorch."""
    nn, functional = torch.nn, torch.nn.functional
    rows: list[Row] = []

    def enter(what: str, f: Callable[..., Any], *args: Any) -> None:
        rows.append((what, who, lambda: f(*args)))

    a, b = torch.ones(4), torch.ones(4)
    enter("a * b + 1", compile(lambda a, b: a * b + 1, **options), a, b)

    def mlp() -> Any:
        layers: list[Any] = []
        for _ in range(5):
            layers += [nn.Linear(8, 8), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def trained(model: Any, make: Any, loss_of: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
        optimizer = make(model.parameters())

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            optimizer.step()
            return loss

        if who.startswith("torchlet"):
            return compile(step, **options)  # type: ignore[no-any-return]
        loss_and_graph, update = compile(loss_of, **options), compile(optimizer.step, **options)

        def halves(x: Any, y: Any) -> Any:  # its graph would break at backward() anyway
            optimizer.zero_grad()
            loss = loss_and_graph(model, x, y)
            loss.backward()
            update()
            return loss

        return halves

    def squares(model: Any, x: Any, y: Any) -> Any:
        return functional.mse_loss(model(x), y)

    x, y = torch.ones(2, 8), torch.ones(2, 8)
    enter("MLP step, 10 parameters, SGD", trained(mlp(), lambda p: torch.optim.SGD(p, lr=0.01), squares), x, y)
    enter("MLP step, 10 parameters, Adam", trained(mlp(), lambda p: torch.optim.Adam(p, lr=0.01), squares), x, y)

    class Block(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.query, self.key, self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
            self.up = nn.Linear(8, 16, bias=False)

        def forward(self, x: Any) -> Any:
            h = self.norm1(x)
            scores = (self.query(h) @ self.key(h).transpose(-2, -1)) * 0.35
            x = x + self.out(scores.softmax(-1) @ self.value(h))
            return x + functional.gelu(self.up(self.norm2(x)))[..., :8]

    net = nn.Sequential(*[Block() for _ in range(12)], nn.LayerNorm(8), nn.Linear(8, 8))
    tokens = torch.ones(1, 4, 8)

    forward = compile(net, **options)

    def infer() -> Any:
        with torch.no_grad():
            return forward(tokens)

    enter("GPT-2-like forward, 150 parameters", infer)
    enter("GPT-2-like step, 150 parameters, Adam", trained(net, lambda p: torch.optim.Adam(p, lr=0.01), squares), tokens, tokens)
    return rows


def of_torchlet() -> list[Row]:
    """Followed and replayed."""
    import torchlet
    from torchlet.compiler import program

    compile_graph = program.compile_graph

    def without_kernels(*args: Any) -> Any:
        executable = compile_graph(*args)
        for p in executable.programs:
            p._program.n = 0
        return executable

    program.compile_graph = without_kernels
    return [
        *workloads(torchlet, torchlet.compile, "torchlet", {}),
        *workloads(torchlet, torchlet.compile, "torchlet replay", {"replay": True}),
    ]


def of_torch() -> list[Row]:
    """torch.compile whose graphs return what they returned first."""
    import torch
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch.set_num_threads(1)

    def stored(graph: Any, inputs: Any) -> Any:
        kept: list[Any] = []

        def run(*args: Any) -> Any:
            if not kept:
                kept.append(graph(*args))
            return kept[0]

        return make_boxed_func(run)

    return workloads(torch, torch.compile, "torch.compile", {"backend": aot_autograd(fw_compiler=stored, bw_compiler=stored)})


def of_jax() -> list[Row]:
    """jax.jit with as many arrays in and out."""
    import jax

    rows: list[Row] = []
    for what, inputs, outputs in (
        ("a * b + 1", 2, 1),
        ("MLP step, 10 parameters, SGD", 12, 11),
        ("MLP step, 10 parameters, Adam", 33, 31),
        ("GPT-2-like forward, 150 parameters", 151, 1),
        ("GPT-2-like step, 150 parameters, Adam", 452, 451),
    ):
        arrays = [jax.device_put(np.ones(8, np.float32)) for _ in range(inputs)]
        f = jax.jit(lambda xs, n=outputs: [x + 1 for x in xs[:n]])
        rows.append((what, "jax.jit", lambda f=f, arrays=arrays: f(arrays)))
    return rows


def measure(rows: list[Row], batches: int) -> dict[tuple[str, str], float]:
    """Microseconds per call, minimum over batches that take turns."""
    counts = []
    for _, _, call in rows:
        for _ in range(8):
            call()
        start = time.perf_counter()
        for _ in range(4):
            call()
        counts.append(max(1, int(2e-3 * 4 / (time.perf_counter() - start))))
    best: dict[tuple[str, str], float] = {}
    for _ in range(batches):
        for (what, who, call), n in zip(rows, counts, strict=True):
            start = time.perf_counter()
            for _ in range(n):
                call()
            us = (time.perf_counter() - start) / n * 1e6
            best[what, who] = min(us, best.get((what, who), us))
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--only", default="torchlet,torch,jax")
    options = parser.parse_args()
    rows: list[Row] = []
    for name, make in (("torchlet", of_torchlet), ("torch", of_torch), ("jax", of_jax)):
        if name in options.only.split(",") and importlib.util.find_spec(name):
            rows += make()
    found = measure(rows, options.batches)
    columns = list(dict.fromkeys(who for _, who in found))
    print("µs per call".ljust(42), *[c.rjust(16) for c in columns])
    for what in dict.fromkeys(what for what, _ in found):
        print(what.ljust(42), *[(f"{found[what, c]:.1f}" if (what, c) in found else "-").rjust(16) for c in columns])


if __name__ == "__main__":
    main()
