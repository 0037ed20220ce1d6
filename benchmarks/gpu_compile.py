"""Seconds that the kernels of a GPT-2 124M training step cost at their first compile and from the cache, without a GPU.

    python benchmarks/gpu_compile.py                       # 12 layers, batch 8 x 1024, bf16 autocast, AdamW, for cuda:90, on two cores
    python benchmarks/gpu_compile.py --each --cores 1      # and each kernel's seconds

The step is captured on the stand-in device of the tests, where launches do nothing; its kernels are then compiled by new processes, the
first of which starts with an empty cache. A process's seconds begin before it imports anything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

LOAD = """
import time
start = time.perf_counter()
import pickle, sys
from torchlet.compiler import launch
imported = time.perf_counter()
target, kernels = pickle.load(open(sys.argv[1], "rb"))
read = time.perf_counter()
launch.precompile(kernels, target)
flaws = {k.source for k in kernels if launch.cubin_of(k, target)[1].flaw}
print(imported - start, time.perf_counter() - read, launch.COUNTS["compiled"], "triton" in sys.modules, len(flaws))
"""


def capture(layers: int, batch: int) -> list[Any]:
    """The Triton kernels of one step, in launch order."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
    import gpu_check
    import standin

    import torchlet
    from torchlet.compiler import launch

    found: list[Any] = []
    os.environ["STUB_HEAP_MB"] = "65536"  # of addresses: what is never written takes no memory
    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        setattr(torchlet.nn.init, name, lambda t, *_, **__: t)  # which numbers the weights hold does not matter
    with standin.stand_in() as gpu:
        launch.precompile = lambda kernels, target: found.extend(kernels)
        gpt = gpu_check._training(lambda T, size: gpu_check._gpt(T, size, batch, 1024, 768, 12, layers, 50304), half=True)
        step, _ = gpt(torchlet, lambda n: n)
        found.clear()  # what eager calls needed
        gpu.set(quick=1)  # launches do nothing
        torchlet.compile(step)()
    return [replace(k, kernel=None, table=None) for k in found]


def seconds(kernels: Path, cache: str, cores: int) -> tuple[list[float], str]:
    """([import, compile or load, wall, processor time], what the process says) of a new process that needs all the kernels."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"TORCHLET_CACHE_DIR": f"{cache}/cache", "PYTHONPYCACHEPREFIX": f"{cache}/bytecode", "PYTHONPATH": str(HERE.parent)}
    if not Path(cache, "bytecode").exists():  # installed packages have theirs
        warm_up = "import torchlet.compiler.launch, triton.compiler, triton.backends.nvidia.compiler, triton.language.extra.cuda"
        subprocess.run([sys.executable, "-c", warm_up], env=env, check=True)
    use = sorted(os.sched_getaffinity(0))[:cores]
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(kernels)], env=env, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, use),
    )  # fmt: skip
    wall, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    imported, compiled, count, triton, flaws = done.stdout.split()
    said = f"{count} compiled, {flaws} with a flaw, Triton {'imported' if triton == 'True' else 'not imported'}"
    return [float(imported), float(compiled), wall, busy], said


def main() -> int:
    """Measure and print; with --json, a line for a results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--target", default="cuda:90")
    parser.add_argument("--each", action="store_true", help="also each kernel's seconds, one after the other in this process")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start = time.perf_counter()
    kernels = capture(arguments.layers, arguments.batch)
    captured = time.perf_counter() - start
    from torchlet.compiler import launch

    distinct = {launch._key(k, arguments.target): k for k in kernels}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.pickle")
        path.write_bytes(pickle.dumps((arguments.target, kernels)))
        cold, said = seconds(path, folder, arguments.cores)
        warm = [seconds(path, folder, arguments.cores)[0] for _ in range(5)]
    row = dict(
        launches=len(kernels), distinct=len(distinct), captured_s=captured, cold_s=cold[1], cold_wall_s=cold[2], cold_cpu_s=cold[3],
        warm_s=statistics.median(w[1] for w in warm), warm_wall_s=statistics.median(w[2] for w in warm), cores=arguments.cores,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(row))
        return 0
    print(f"{row['launches']} kernels of {arguments.layers} layers, {row['distinct']} distinct; captured in {captured:.1f} s")
    print(f"cold on {arguments.cores} cores: {cold[1]:.2f} s of {cold[2]:.2f}, {cold[3]:.1f} s of processors ({said})")
    print(f"warm: {row['warm_s']:.3f} s of {row['warm_wall_s']:.3f}")
    if arguments.each:
        each(list(distinct.values()), arguments.target)
    return 0


def each(kernels: list[Any], target: str) -> None:
    """Every kernel's seconds in this process, and the sums of the kinds of kernel."""
    importlib.import_module("triton")  # its import is not the first kernel's
    from torchlet.compiler import launch
    from torchlet.config import config

    sums: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, config(cache_dir=folder):
        for k in sorted(kernels, key=lambda k: k.name):
            start = time.perf_counter()
            launch.cubin_of(k, target)
            took = time.perf_counter() - start
            sums["dot" if "tl.dot" in k.source else "other"] += took
            print(f"{took:6.2f} s  {len(k.source):6} characters  {k.name}")
    print({kind: round(s, 1) for kind, s in sums.items()})


if __name__ == "__main__":
    sys.exit(main())
