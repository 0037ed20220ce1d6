"""torchlet beside its peers: the same rows, one process each, asked in turn, the order reversed every round.

    python benchmarks/peers.py                          # all rows, all peers that are installed
    python benchmarks/peers.py --rows mlp_sgd,linreg --rounds 20 --json benchmarks/results/FILE.json

A row is a function of the same name in each of rows/with_*.py; a peer that lacks it is left out of the row. It returns a
function of no arguments that does one unit of work. Every process has two threads and the same two processors. The first
five results of all peers are compared before anything is timed. "floor" is timed as a peer is: the time in which this machine,
in the same minutes, moves the bytes of the row (a = b + c of long vectors) or does its arithmetic (a product by NumPy's BLAS).
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

THREADS = 2
HERE = Path(__file__).resolve().parent
PEERS = {  # peer -> package
    "torchlet": "torchlet", "torchlet_bf16x6": "torchlet", "torch": "torch", "torch_compile": "torch", "jax": "jax",
    "tinygrad": "tinygrad", "numpy": "numpy", "floor": "numpy",
}  # fmt: skip
CACHES = ("TORCHLET_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")  # the last is tinygrad's; jax keeps none unless told to
ROWS = {  # name -> (what it is, relative tolerance of the compared results)
    "linreg": ("linear-regression step, y = 2x + 1, 100 points, SGD", 1e-4),
    "linreg_replayed": ("linreg; torchlet replays", 1e-4),
    "linreg_epochs": ("100 such steps in one call, those of the loop itself where a peer compiles it", 1e-4),
    "tiny": ("MLP step 8-16-1, tanh, batch 32, SGD", 1e-4),
    "tiny_replayed": ("tiny; torchlet replays", 1e-4),
    "mlp_sgd": ("MLP step 784-256-128-10, batch 64, SGD", 1e-4),
    "mlp_adamw": ("MLP step 784-256-128-10, batch 64, AdamW", 1e-3),
    "mlp_large": ("MLP step 1024-4096-4096-1024, batch 512, SGD", 1e-4),
    "chain_1e5": ("tanh(1.5 x + 0.5) * sigmoid(x) + x, 1e5 elements", 1e-4),
    "chain_1e7": ("the same, 1e7 elements", 1e-4),
    "softmax": ("softmax 4096 x 1024", 1e-4),
    "chain_fb_1e7": ("gradient of the same, 1e7 elements", 1e-4),
    "gelu_1e7": ("gelu(x y + x) y, 1e7 elements", 1e-4),
    "gelu_fb_1e7": ("gradients of the same", 1e-4),
    "softmax_fb": ("gradient of softmax 4096 x 1024", 1e-4),
    "layer_norm_fb": ("gradients of layer norm 4096 x 1024 for values, scale and shift", 1e-4),
    "rms_norm_fb": ("gradients of RMS norm 4096 x 1024 for values and scale", 1e-4),
    "cross_entropy_fb": ("gradient of cross-entropy, 512 rows, vocabulary 32,000", 1e-4),
    "linear_cross_entropy": ("gradients of linear 384 -> 32,000 and cross-entropy, 512 rows", 1e-3),
    "adamw_1e7": ("AdamW step of 10 million parameters", 1e-4),
    "cnn": ("CNN step, 28 x 28, conv 32, conv 64, pooling, linear, batch 64, SGD", 1e-3),
    "lstm": ("LSTM language-model step, 2,000 words, width 256, 64 steps, batch 32, SGD", 1e-3),
    "batch_1": ("MLP 784-256-128-10, inference of one image", 1e-4),
    "ops_1": ("1 operation on 8 elements", 1e-4),
    "ops_10": ("10 operations on 8 elements", 1e-4),
    "ops_100": ("100 operations on 8 elements", 1e-4),
    "lengths_20": ("layer norm, MLP 256-512-256 and softmax at 20 lengths; see the first result", 1e-4),
    "sdpa_causal": ("causal scaled_dot_product_attention, 2 x 8 heads of 1024 x 64", 1e-4),
    "sdpa_causal_fb": ("gradients of the same, forward pass included", 1e-4),
    "sdpa_full": ("the same without a mask", 1e-4),
    "sdpa_full_fb": ("gradients of the same", 1e-4),
    "naive_causal": ("causal attention written as products and softmax", 1e-4),
    "naive_causal_fb": ("gradients of the same", 1e-4),
    "naive_full": ("the same without a mask", 1e-4),
    "naive_full_fb": ("gradients of the same", 1e-4),
    "gpt_block": ("gradients of a GPT-2 block, width 768, 256 positions", 1e-3),
    "gpt": ("GPT step, 6 x 384, 6 heads, 256 positions, batch 4, 65 words, AdamW", 1e-3),
    "import": ("import in a fresh process", 0),
}
SAME = {"linreg_replayed": "linreg", "tiny_replayed": "tiny"}  # row -> the row of a peer that has no form of its own for it
TORCHLET = ("torchlet", "torchlet_bf16x6")
FLOOR_STEP = {"memory": 12e7, "arithmetic": 2 * 1024**3}  # bytes, or floating-point operations, of a step in rows/with_floor.py
NORM = 4 * 4096 * 1024  # bytes of the values in the rows of softmax and of norms
WEIGHTS = 784 * 256 + 256 * 128 + 128 * 10
LARGE = 6 * 512 * (2 * 1024 * 4096 + 4096**2) - 2 * 512 * 1024 * 4096
MLP = 2 * 64 * (3 * WEIGHTS - 784 * 256)  # operations: the gradient of the input is not wanted
PRODUCT = 2 * 2 * 8 * 1024 * 1024 * 64  # operations of one of the products in attention: two forward, five more backward
BLOCK = 12 * 2 * 3  # operations of a transformer's products for a position and a width squared, backward included
GPT_SCORES = 6 * 7 * 256 * 384 * 1024  # operations of its causal attention: 6 layers, 7 products, half of each
FLOORS: dict[str, tuple[str, float]] = {  # row -> what bounds it, and how much of it the row cannot do without
    "mlp_sgd": ("arithmetic", MLP), "mlp_adamw": ("arithmetic", MLP), "mlp_large": ("arithmetic", LARGE),
    "chain_1e7": ("memory", 8e7), "softmax": ("memory", 2 * NORM),
    "chain_fb_1e7": ("memory", 12e7), "gelu_1e7": ("memory", 12e7), "gelu_fb_1e7": ("memory", 20e7), "softmax_fb": ("memory", 3 * NORM),
    "layer_norm_fb": ("memory", 3 * NORM), "rms_norm_fb": ("memory", 3 * NORM), "cross_entropy_fb": ("memory", 8 * 512 * 32000),
    "linear_cross_entropy": ("arithmetic", 6 * 512 * 384 * 32000), "adamw_1e7": ("memory", 28e7),
    "sdpa_causal": ("arithmetic", PRODUCT), "sdpa_causal_fb": ("arithmetic", 3.5 * PRODUCT),
    "sdpa_full": ("arithmetic", 2 * PRODUCT), "sdpa_full_fb": ("arithmetic", 7 * PRODUCT),
    "gpt": ("arithmetic", 6 * BLOCK * 1024 * 384**2 + GPT_SCORES + 6 * 1024 * 384 * 65),
}  # fmt: skip


def worker(peer: str) -> None:
    """Answer the parent's requests, one JSON line each: build a row, time it, drop it."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints goes to stderr
    rows = importlib.import_module(f"rows.with_{peer}")
    print(json.dumps(rows.VERSIONS), file=answers)
    step = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "build":
                step = None
                build = getattr(rows, request["row"], None) or getattr(rows, SAME.get(request["row"], ""), None)
                answer: dict[str, object] = {}
                if build is not None:
                    before = resident("VmRSS")
                    start = time.perf_counter()
                    step = build()
                    results = [rows.number(step())]
                    answer["first_s"] = getattr(step, "first_s", time.perf_counter() - start)
                    answer["results"] = results + [rows.number(step()) for _ in range(3)]
                    forget_peak()
                    answer["results"].append(rows.number(step()))
                    answer["peak_bytes"] = resident("VmHWM") - before
                    answer["form"] = getattr(step, "label", "")
            else:
                answer = {"calls": measure(step, rows.wait, request["seconds"])}
        except Exception as problem:
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), file=answers)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most since `forget_peak` (VmHWM). 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(step, wait, seconds: float, batch_s: float = 2e-3) -> list[float]:
    """Seconds per call, one number for each batch of at least `batch_s` seconds."""
    wait(step())
    start = time.perf_counter()
    wait(step())
    count = max(1, int(batch_s / (time.perf_counter() - start)))
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(count):
            result = step()
        wait(result)
        times.append((time.perf_counter() - start) / count)
        count = max(1, int(batch_s / times[-1]))
    return times


class Peer:
    """A competitor's process."""

    def __init__(self, name: str, cpus: list[int], caches: str | None = None):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHLET_NUM_THREADS"), str(THREADS))
        path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [*pin(cpus), sys.executable, __file__, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **threads, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | dict.fromkeys(CACHES if caches else (), caches),
        )
        self.versions = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}

    def ask(self, **request) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the process has ended"}
        return self.answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def pin(cpus: list[int]) -> list[str]:
    """The command prefix that keeps a process on the given processors."""
    code = "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); os.execv(sys.argv[2], sys.argv[2:])"
    return [sys.executable, "-c", code, ",".join(map(str, cpus))]


def run_row(row: str, peers: dict[str, Peer], rounds: int, seconds: float) -> dict[str, dict]:
    """Build the row in every peer, compare results, then time it round by round."""
    found = {}
    bound, amount = FLOORS.get(row, ("", 0.0))
    for name, peer in peers.items():
        answer = peer.ask(do="build", row=bound if name == "floor" else row)
        if "error" in answer:
            print(f"{row}: {name}: {answer['error']}", file=sys.stderr)
        elif answer:
            found[name] = {**answer, "calls": []}
    for round_number in range(rounds):
        for name in list(found)[:: -1 if round_number % 2 else 1]:
            time.sleep(0.02)  # the threads of the one before have gone to sleep
            answer = peers[name].ask(do="time", seconds=seconds)
            if "error" in answer:
                print(f"{row}: {name}: {answer['error']}", file=sys.stderr)
                del found[name]
            else:
                found[name]["calls"] += answer["calls"]
    if "floor" in found:
        found["floor"] = {"bound": bound, "calls": [c * amount / FLOOR_STEP[bound] for c in found["floor"]["calls"]]}
    return found


def run_import(packages: list[str], rounds: int) -> dict[str, dict]:
    """Seconds of `import package` in fresh processes."""
    code = "import sys, time; t = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - t)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its .pyc files
    found: dict[str, dict] = {p: {"calls": []} for p in packages}
    for round_number in range(rounds + 1):
        for package in packages[:: -1 if round_number % 2 else 1]:
            done = subprocess.run([sys.executable, "-c", code, package], env=environment, capture_output=True, text=True, check=True)
            if round_number:  # the first fills the page cache and writes .pyc files
                found[package]["calls"].append(float(done.stdout))
    return found


def summarise(row: str, found: dict[str, dict]) -> dict[str, dict]:
    """Median, 10th percentile, and how far the compared results are from the middle one of all peers."""
    for name, entry in found.items():
        calls = sorted(entry.pop("calls"))
        entry["median_s"], entry["p10_s"], entry["samples"] = statistics.median(calls), calls[len(calls) // 10], len(calls)
        if "results" in entry:
            middle = [statistics.median(column) for column in zip(*[e["results"] for e in found.values() if "results" in e])]
            entry["difference"] = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(entry["results"], middle))
            if entry["difference"] > ROWS[row][1]:
                print(f"{row}: {name} gives {entry['results']}; the middle of all is {middle}", file=sys.stderr)
    return found


def time_text(seconds: float) -> str:
    """Three digits with a unit."""
    scale, unit = (1, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")
    return f"{seconds / scale:.3g} {unit}"


def table(results: dict[str, dict[str, dict]], names: list[str]) -> str:
    """Markdown: medians with 10th percentiles, the best peer's by torchlet's, torchlet's by the floor's, and whether all results agree."""
    lines = [
        f"| row | {' | '.join(names)} | best peer / torchlet | torchlet / floor | results |",
        "|---|" + "---:|" * (len(names) + 2) + "---|",
    ]
    for row, found in results.items():
        cells = [f"{time_text(found[n]['median_s'])} ({time_text(found[n]['p10_s'])})" if n in found else "" for n in names]
        peers = [e["median_s"] for n, e in found.items() if n not in (*TORCHLET, "floor")]
        ratio = ", ".join(f"{min(peers) / found[n]['median_s']:.2f}" for n in TORCHLET if n in found) if peers else ""
        if row == "import" and {"torchlet", "numpy"} <= set(found):
            ratio = f"numpy + {1e3 * (found['torchlet']['median_s'] - found['numpy']['median_s']):.0f} ms"
        floor = f"{found['torchlet']['median_s'] / found['floor']['median_s']:.2f}" if {"torchlet", "floor"} <= set(found) else ""
        differences = [e["difference"] for e in found.values() if "difference" in e]
        worst = max(differences, default=0.0)
        same = "" if not differences else f"agree to {worst:.0e}" if worst <= ROWS[row][1] else f"**differ by {worst:.0e}**"
        lines.append(f"| {row} | {' | '.join(cells)} | {ratio} | {floor} | {same} |")
    return "\n".join(lines)


def side_table(title: str, text: Callable[[dict], str], results: dict[str, dict[str, dict]], names: list[str]) -> str:
    """Markdown: what `text` says of each peer in each row."""
    lines = [f"| {title} | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row, found in results.items():
        if row != "import":
            lines.append(f"| {row} | {' | '.join(text(found[n]) if n in found else '' for n in names)} |")
    return "\n".join(lines)


def memory_text(found: dict) -> str:
    """Megabytes in memory at most during a step, above those before the row was built; what a compiler loads is among them."""
    return f"{max(found['peak_bytes'], 0) / 1e6:.0f}"


def first_text(found: dict) -> str:
    """Time until the first result, building and compiling included, and the form that was fastest."""
    return f"{time_text(found['first_s'])} {found['form']}".strip()


def machine() -> str:
    """The processor's name and how many of it this process may use."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} CPUs"
    return f"{platform.machine()}, {os.cpu_count()} CPUs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", "--row", default=",".join(ROWS), help="comma-separated; default: all")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; default: all that are installed")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.25, help="time for one peer in one round")
    parser.add_argument("--cold", action="store_true", help="start with empty folders of compiled code")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker)

    rows, names = options.rows.split(","), options.peers.split(",")
    for kind, given, known in (("row", rows, ROWS), ("peer", names, PEERS)):
        for name in given:
            if name not in known:
                parser.error(f"unknown {kind} {name}; known: {', '.join(known)}")
    sys.path.insert(0, str(HERE.parent))
    names = [n for n in names if importlib.util.find_spec(PEERS[n])]
    results, versions = {}, {"python": platform.python_version()}
    if "import" in rows:
        results["import"] = summarise("import", run_import(list(dict.fromkeys(PEERS[n] for n in names)), options.rounds))
        rows.remove("import")
    if rows:
        cpus = sorted(os.sched_getaffinity(0))[:THREADS]
        caches = tempfile.mkdtemp() if options.cold else None
        peers = {}
        for name in names:
            peer = Peer(name, cpus, caches)
            if "error" in peer.versions:
                print(f"{name}: {peer.versions['error']}", file=sys.stderr)
            else:
                peers[name] = peer
                versions |= peer.versions
        try:
            for row in rows:
                results[row] = summarise(row, run_row(row, peers, options.rounds, options.seconds))
                print(table({row: results[row]}, names).splitlines()[-1], file=sys.stderr)
        finally:
            for peer in peers.values():
                peer.close()
            if caches:
                shutil.rmtree(caches)
    head = {"date": datetime.date.today().isoformat(), "machine": machine(), "threads": THREADS, "versions": versions}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{head['date']}, {head['machine']}, {THREADS} threads, {listed}; median (10th percentile)\n")
    print(table(results, names))
    if set(results) != {"import"}:
        peers = [n for n in names if n != "floor"]
        for title, text in (("first result", first_text), ("memory, MB", memory_text)):
            print("\n" + side_table(title, text, results, peers))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**head, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
