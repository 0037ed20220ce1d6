"""What sizes that vary cost: twenty lengths through one compiled function, beside the same function compiled for each length alone.

    python benchmarks/dynamic_sizes.py [--only block] [--width 256] [--calls 15]

For each length: calls of the C compiler and kernels compiled so far by the function that serves all lengths, milliseconds of its first
call with that length, and the median of its later calls; then the same of a function with `dynamic=False`, which is compiled for every
length. The two take turns, so that a busy machine slows both alike. Both start with an empty folder of compiled kernels; those of the
first size are the same ones and are counted on the left only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F
from torchlet.compiler import load
from torchlet.config import config

LENGTHS = (17, 33, 40, 64, 100, 128, 3, 8, 20, 50, 90, 150, 192, 200, 256, 300, 333, 400, 480, 512)
BATCHES = (32, 17, 64, 100, 128, 3, 7, 8, 50, 200, 256, 300, 333, 400, 512, 700, 1000, 1024, 2000, 4096)
Step = Callable[..., Any]


class Block(nn.Module):
    """A transformer block: attention and an MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def block(width: int, dynamic: bool | None) -> tuple[Step, Step]:
    """(one call, its arguments for a length): the forward pass."""
    model = torch.compile(Block(width), dynamic=dynamic)

    def call(x: Any) -> Any:
        with torch.no_grad():
            return model(x)

    return call, lambda n: (torch.randn(2, n, width),)


def training(width: int, dynamic: bool | None) -> tuple[Step, Step]:
    """A training step of the block: loss, gradients, AdamW."""
    model = Block(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return torch.compile(step, dynamic=dynamic), lambda n: (torch.randn(2, n, width), torch.randn(2, n, width))


def batches(width: int, dynamic: bool | None) -> tuple[Step, Step]:
    """A training step of a classifier, for batches of varying size."""
    model = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return torch.compile(step, dynamic=dynamic), lambda n: (torch.randn(n, width), torch.randint(0, 10, (n,)))


def milliseconds(call: Step, args: Any) -> float:
    """One call."""
    start = time.perf_counter()
    call(*args)
    return (time.perf_counter() - start) * 1e3


def table(what: str, make: Callable[[int, bool | None], tuple[Step, Step]], sizes: tuple[int, ...], width: int, calls: int) -> None:
    """The lines of one workload."""
    torch.manual_seed(0)
    shared, arguments = make(width, None)
    alone, _ = make(width, False)
    count = {id(shared): [0, 0], id(alone): [0, 0]}

    def counted(call: Step, args: Any) -> float:
        before = load.COUNTS["calls"], load.COUNTS["compiled"]
        took = milliseconds(call, args)
        count[id(call)][0] += load.COUNTS["calls"] - before[0]
        count[id(call)][1] += load.COUNTS["compiled"] - before[1]
        return took

    print(f"\n{what}")
    print("         one function for all sizes                     | compiled for each size")
    print("   size  compiles  kernels  first call ms  later call ms | compiles  kernels  first call ms  later call ms | shared/alone")
    ratios = []
    for n in sizes:
        args = arguments(n)
        with config(cache_dir=FOLDERS[0]):
            first = counted(shared, args)
            counted(shared, args)  # the second step of an optimizer goes another way than the first
        with config(cache_dir=FOLDERS[1]):
            first_alone = counted(alone, args)
            counted(alone, args)
        later: tuple[list[float], list[float]] = [], []
        for _ in range(calls):
            later[0].append(counted(shared, args))
            later[1].append(counted(alone, args))
        a, b = (statistics.median(x) for x in later)
        ratios.append(a / b)
        (c0, k0), (c1, k1) = count[id(shared)], count[id(alone)]
        line = f"  {n:5}  {c0:8}  {k0:7}  {first:13.1f}  {a:13.3f} | {c1:8}  {k1:7}  {first_alone:13.1f}  {b:13.3f} | {a / b:.2f}"
        print(line, flush=True)
    price = statistics.geometric_mean(ratios)
    print(f"  {count[id(shared)][0]} compiles for {len(sizes)} sizes; a later call takes {price:.2f} of its time alone")


def rates(width: int) -> None:
    """A hundred learning rates through one compiled step: numbers are data, so there is one path."""
    step, arguments = training(width, None)
    optimizer = next(c.cell_contents for c in step.function.__closure__ if isinstance(c.cell_contents, torch.optim.Optimizer))  # type: ignore[attr-defined]
    args = arguments(32)
    step(*args)
    step(*args)
    paths, before = torch.compiler.stats()["paths"], load.COUNTS["calls"]
    for i in range(100):
        optimizer.param_groups[0]["lr"] = 1e-4 / (i + 1)
        step(*args)
    print(f"\na hundred learning rates: {torch.compiler.stats()['paths'] - paths} new paths, {load.COUNTS['calls'] - before} compiles")


WORKLOADS: dict[str, tuple[str, Callable[[int, bool | None], tuple[Step, Step]], tuple[int, ...]]] = {
    "block": ("a transformer block, forward", block, LENGTHS),
    "training": ("a transformer block, training step with AdamW", training, LENGTHS),
    "batches": ("an MLP, training step with AdamW; the batch varies", batches, BATCHES),
}
FOLDERS: list[str] = []


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*WORKLOADS, "rates"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--calls", type=int, default=15, help="later calls to take the median of")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other, config(cache_dir=one):
        FOLDERS[:] = [one, other]
        for name, (what, make, sizes) in WORKLOADS.items():
            if options.only in (None, name):
                table(what, make, sizes, options.width, options.calls)
        if options.only in (None, "rates"):
            rates(64)


if __name__ == "__main__":
    main()
