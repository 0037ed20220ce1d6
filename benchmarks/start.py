"""How long fresh processes take to their first result: with an empty folder of compiled code, and with one that an earlier process filled.

    python benchmarks/start.py                                  # torchlet alone: the steps of an MLP and of a small GPT
    python benchmarks/start.py --peers torchlet,torch_compile   # beside torch.compile, which takes minutes

Rows are those of peers.py. The first call ends when its result is there; data and weights are made before it, and imports are apart.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import CACHES, THREADS, machine, time_text

HERE = Path(__file__).resolve().parent


def child(peer: str, row: str) -> None:
    """Print the seconds of import, first and second call."""
    start = time.perf_counter()
    rows = importlib.import_module(f"rows.with_{peer}")
    imported = time.perf_counter()
    step = getattr(rows, row)()
    built = time.perf_counter()
    rows.number(step())
    first = time.perf_counter()
    rows.number(step())
    second = time.perf_counter()
    print(json.dumps({"import": imported - start, "first": getattr(step, "first_s", first - built), "second": second - first}))


def run(peer: str, row: str, folder: str) -> dict[str, float]:
    """The same of a fresh process that keeps compiled code in `folder`."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "TORCHLET_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    environment |= dict.fromkeys(CACHES, folder)
    done = subprocess.run([sys.executable, __file__, "--child", peer, row], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{peer}, {row}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(peer: str, row: str, cold: int, warm: int) -> list[float]:
    """Medians of: import, first call with nothing compiled before, with the C runtime alone (torchlet), with everything; second call."""
    empty, apart, filled = [], [], []
    for k in range(cold):
        with tempfile.TemporaryDirectory() as folder:
            empty.append(run(peer, row, folder))
            if peer == "torchlet":  # what all programs share stays, as on a machine that has run some other program
                for path in Path(folder).iterdir():
                    if not path.name.startswith(("runtime-", "walk-")):
                        path.unlink()
                apart.append(run(peer, row, folder))
            if k == cold - 1:
                filled = [run(peer, row, folder) for _ in range(warm)]
    return [
        statistics.median([x["import"] for x in filled]),
        *[statistics.median([x["first"] for x in found]) if found else float("nan") for found in (empty, apart, filled)],
        statistics.median([x["second"] for x in filled]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="mlp_adamw,gpt", help="comma-separated")
    parser.add_argument("--peers", default="torchlet", help="comma-separated: torchlet, torch_compile, jax")
    parser.add_argument("--cold", type=int, default=3, help="processes with an empty folder")
    parser.add_argument("--warm", type=int, default=7, help="processes with a filled one")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child)
    print(f"{machine()}, {THREADS} threads; medians of {options.cold} cold and {options.warm} warm processes\n")
    print("| row | peer | import | first call, empty folder | with the C runtime | filled folder | second call |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in options.rows.split(","):
        for peer in options.peers.split(","):
            cells = ["" if x != x else time_text(x) for x in measure(peer, row, options.cold, options.warm)]
            print(f"| {row} | {peer} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
