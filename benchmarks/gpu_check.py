"""Proves and measures torchlet on a CUDA device: correctness of the op table and of products, tables and steps beside torch, host cost.

    benchmarks/gpu_check.sh                      # all sections, results to benchmarks/results/
    benchmarks/gpu_check.sh --dry --out /tmp/x   # the same code on the stand-in device of the tests
    benchmarks/gpu_check.sh --adopt x/gpu….json  # enter the contests of a run elsewhere into torchlet/compiler/winners.json

A run on a device writes the winners of timed alternates into that table itself, and to DIR/winners.json.

Each section runs in processes of its own with a time limit: one that fails or hangs loses its own rows only. Contenders of a
row are timed in turn, the order reversed every round; a number is the median over rounds of the mean of a batch of calls that
ends with a synchronisation. What torchlet computes compiled is compared with what it computes eagerly before it is timed.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import importlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECTIONS = {"correct": 75, "checks": 30, "tables": 130, "products": 35, "steps": 170, "host": 25}  # name -> the most seconds it may take
SHARDED = ("correct", "checks")
DTYPES = ("float32", "bfloat16")
TOLERANCE = {"float32": 2e-4, "bfloat16": 3e-2}  # of the largest magnitude of the result in float64


class Report:
    """Rows as JSON lines, written as they come, so that a crash keeps those before it."""

    def __init__(self, path: str):
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 - closed by the process's end

    def __call__(self, **row: Any) -> None:
        print(json.dumps(row), file=self.file)


@contextlib.contextmanager
def device(dry: bool) -> Iterator[Any]:
    """Where `cuda` is: the machine's device, or the stand-in."""
    if dry:
        sys.path.insert(0, str(HERE.parent / "tests"))
        with importlib.import_module("standin").stand_in():
            yield
    else:
        yield


def peers(dry: bool) -> Any:
    """torch, if it is here and sees the device; else None."""
    if dry or importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    return torch if torch.cuda.is_available() else None


# ------------------------------------------------------------------------------------------------ (a) correctness


def correct(report: Report, dry: bool, shard: str, deadline: float) -> None:
    """Every operator of the table that has samples, on the device, against its NumPy code in float64."""
    import numpy as np

    import torchlet
    from torchlet.compiler import launch
    from torchlet.op import OPS, apply
    from torchlet.ops.place import make
    from torchlet.tensor import Tensor, wrap

    first, step = map(int, shard.split("/"))
    for op in [o for o in OPS.values() if o.samples is not None and not o.writes][first::step]:
        for number, (inputs, attrs) in enumerate(op.samples()):
            exact = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in inputs]
            with np.errstate(all="ignore"):
                try:
                    reference = np.asarray(op.eager(*exact, *attrs))
                except Exception as error:
                    report(section="correct", op=op.name, sample=number, status="no reference", why=str(error)[:200])
                    continue
            floats = any(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in inputs)
            for name in DTYPES if floats else ("float32",):
                if time.time() > deadline:
                    report(section="correct", op=op.name, sample=number, status="no time")
                    return
                row: dict[str, Any] = dict(section="correct", op=op.name, sample=number, dtype=name)
                d = getattr(torchlet, name)
                try:
                    here = [(wrap(a).to(d) if a.dtype.kind == "f" else wrap(a.copy())) if isinstance(a, np.ndarray) else a for a in inputs]
                    there = [t.cuda() if isinstance(t, Tensor) else t for t in here]
                    before = launch.HOST_CALLS[op.name]
                    is_made = not any(isinstance(t, Tensor) for t in there)
                    got = (make(op, tuple(there), attrs, "cuda") if is_made else apply(op, tuple(there), attrs)).cpu().double().numpy()
                    if name != "float32" and floats:  # what the 16-bit inputs stand for, computed exactly
                        rounded = [
                            t.double().numpy() if isinstance(t, Tensor) and t.is_floating_point() else a for t, a in zip(here, exact)
                        ]
                        with np.errstate(all="ignore"):
                            wanted = np.asarray(op.eager(*rounded, *attrs)).astype(np.float64)
                    else:
                        wanted = reference.astype(np.float64)
                    finite = wanted[np.isfinite(wanted)]
                    scale = max(float(np.abs(finite).max()) if finite.size else 0.0, 1e-3)
                    same = wanted.shape == got.shape and np.allclose(got, wanted, TOLERANCE[name], TOLERANCE[name] * scale, equal_nan=True)
                    with np.errstate(all="ignore"):
                        error = float(np.nanmax(np.abs(got - wanted), initial=0.0)) / scale if wanted.shape == got.shape else float("nan")
                    status = "ok" if same else "wrong"
                    report(**row, status=status, error=error, host=launch.HOST_CALLS[op.name] > before)
                except Exception as error:
                    report(**row, status="failed", why=f"{type(error).__name__}: {error}"[:400])
                    if "cannot use the device any more" in str(error).replace("\n", " "):
                        return


Case = dict[str, Any]  # arguments of `product`


def cases() -> dict[str, Case]:
    """Matrix products of every kind of kernel: tensor maps and pointers, walks, stacks, fused epilogues, named precisions."""
    found: dict[str, Case] = {}
    for d in ("bfloat16", "float16", "int8"):
        found |= {f"{d} {pair}": dict(d=d, pair=pair) for pair in ("nn", "nt", "tn", "tt")}
    found |= {f"bfloat16 {pair} stack": dict(d="bfloat16", pair=pair, shape=(6, 1000, 520)) for pair in ("nn", "tt")}
    found["bfloat16 ragged"] = dict(d="bfloat16", pair="nt", shape=(1, 4104, 1000), k=72)
    found["bfloat16 odd rows"] = dict(d="bfloat16", pair="nn", shape=(1, 1001, 519), k=333)
    found["bfloat16 unaligned"] = dict(d="bfloat16", pair="nn", start=3)
    found["bfloat16 bias, gelu, residual"] = dict(d="bfloat16", pair="nt", fused=True)
    found["bfloat16 few rows"] = dict(d="bfloat16", pair="nt", shape=(1, 24, 4096), k=4096)
    for precision in ("ieee", "tf32x3", "bf16x6", "tf32"):
        found |= {f"float32 {precision} {pair}": dict(d="float32", pair=pair, precision=precision) for pair in ("nn", "nt", "tn")}
    return found


def product(
    d: str, pair: str, shape: tuple[int, int, int] = (1, 4608, 1024), k: int = 512, start: int = 0, fused: bool = False,
    precision: str = "ieee", dry: bool = False,
) -> float:
    """The largest error of a product on the device, relative to the largest magnitude of the result in float64."""
    import numpy as np

    import torchlet
    from torchlet.config import config

    batch, m, n = shape
    if dry:  # still large enough for tensor maps
        batch, m, n, k = min(batch, 2), min(m, 1024 + m % 8), min(n, 512 + n % 8), min(k, 72)
    r = np.random.default_rng(0)

    def operand(*dims: int) -> Any:
        size = start + batch * dims[0] * dims[1]
        if d == "int8":
            flat = torchlet.from_numpy(r.integers(-128, 128, size).astype(np.int8))
        else:
            flat = torchlet.from_numpy(r.standard_normal(size).astype(np.float32)).to(getattr(torchlet, d))
        there = flat.cuda()[start:].view(batch, *dims) if batch > 1 else flat.cuda()[start:].view(*dims)
        return there, flat.double().numpy()[start:].reshape(batch, *dims)

    (a, exact_a), (b, exact_b) = operand(*((k, m) if pair[0] == "t" else (m, k))), operand(*((n, k) if pair[1] == "t" else (k, n)))
    (x, exact_x), (bias, exact_bias) = operand(m, n), operand(1, n)

    def f(a: Any, b: Any, x: Any, bias: Any) -> Any:
        a, b = a.mT if pair[0] == "t" else a, b.mT if pair[1] == "t" else b
        if d == "int8":
            return torchlet._int_mm(a, b)
        y = a @ b
        return torchlet.nn.functional.gelu(y + bias, approximate="tanh") + x if fused else y

    with config(float32_dot=precision):
        got = torchlet.compile(f)(a, b, x, bias).cpu().double().numpy()
    wanted = (exact_a.swapaxes(1, 2) if pair[0] == "t" else exact_a) @ (exact_b.swapaxes(1, 2) if pair[1] == "t" else exact_b)
    if fused:
        y = wanted + exact_bias
        wanted = 0.5 * y * (1 + np.tanh((2 / np.pi) ** 0.5 * (y + 0.044715 * y**3))) + exact_x
    return float(np.abs(got - wanted.reshape(got.shape)).max() / np.abs(wanted).max())


def checks(report: Report, dry: bool, shard: str, deadline: float) -> None:
    """Products of sizes that take the kernels of large ones, against NumPy in float64."""
    first, step = map(int, shard.split("/"))
    for name, case in list(cases().items())[first::step]:
        row: dict[str, Any] = dict(section="checks", op="product", sample=name, dtype=case["d"])
        if time.time() > deadline:
            report(**row, status="no time")
            continue
        allowed = {"bfloat16": 1e-2, "float16": 1e-3, "int8": 0.0, "float32": 1e-3 if case.get("precision") == "tf32" else 3e-6}[case["d"]]
        try:
            error = product(**case, dry=dry)
            report(**row, status="ok" if error <= allowed else "wrong", error=error)
        except Exception as error:
            report(**row, status="failed", why=f"{type(error).__name__}: {error}"[:400])


# ------------------------------------------------------------------------------------------------ rows: (T = torch or torchlet) -> a call


def clone(T: Any, size: Callable[..., Any]) -> Any:
    x = T.randn(size(1 << 28), device="cuda")
    return lambda: x.clone(), dict(bytes=2 * x.numel() * 4)


def chain(T: Any, size: Callable[..., Any]) -> Any:
    x = T.randn(size(1 << 26), device="cuda")
    return lambda: T.tanh(1.5 * x + 0.5) * T.sigmoid(x) + x, dict(bytes=2 * x.numel() * 4)


def column_sum(T: Any, size: Callable[..., Any]) -> Any:
    x = T.randn(size(32768), size(2048), device="cuda")
    return lambda: x.sum(0), dict(bytes=x.numel() * 4)


def _softmax(dtype: str) -> Any:
    def build(T: Any, size: Callable[..., Any]) -> Any:
        x = T.randn(size(16384), size(4096), device="cuda").to(getattr(T, dtype))
        return lambda: T.softmax(x, -1), dict(bytes=2 * x.numel() * x.element_size())

    return build


def layer_norm(T: Any, size: Callable[..., Any]) -> Any:
    rows, n = size(16384), size(4096)
    x, w, b = T.randn(rows, n, device="cuda"), T.ones(n, device="cuda"), T.zeros(n, device="cuda")
    return lambda: T.nn.functional.layer_norm(x, (n,), w, b), dict(bytes=2 * x.numel() * 4)


def layer_norm_backward(T: Any, size: Callable[..., Any]) -> Any:
    rows, n = size(16384), size(4096)
    x = T.randn(rows, n, device="cuda").requires_grad_()
    w, b = T.ones(n, device="cuda").requires_grad_(), T.zeros(n, device="cuda").requires_grad_()
    g = T.randn(rows, n, device="cuda")

    def run() -> Any:
        return T.autograd.grad(T.nn.functional.layer_norm(x, (n,), w, b), (x, w, b), g)

    return run, dict(bytes=5 * x.numel() * 4)  # x twice, g, the output, the gradient


def cross_entropy(T: Any, size: Callable[..., Any]) -> Any:
    rows, n = size(8192), size(50304)
    x = T.randn(rows, n, device="cuda").requires_grad_()
    y = T.randint(0, n, (rows,), device="cuda")

    def run() -> Any:
        loss = T.nn.functional.cross_entropy(x, y)
        return (loss, *T.autograd.grad(loss, (x,)))

    return run, dict(bytes=2 * x.numel() * 4)


def _matmul(m: int, n: int, k: int, dtype: str) -> Any:
    def build(T: Any, size: Callable[..., Any]) -> Any:
        a, b = (T.randn(size(r), size(c), device="cuda").to(getattr(T, dtype)) for r, c in ((m, k), (k, n)))
        return lambda: a @ b, dict(flops=2 * size(m) * size(n) * size(k))

    return build


def _product(pair: str, m: int, n: int, k: int, batch: int = 0, d: str = "bfloat16") -> Any:
    """a @ b with "t": stored transposed."""

    def build(T: Any, size: Callable[..., Any]) -> Any:
        lead = (size(batch),) if batch else ()
        dims = [(size(x), size(y)) for x, y in ((k, m) if pair[0] == "t" else (m, k), (n, k) if pair[1] == "t" else (k, n))]
        if d == "int8":
            a, b = (T.randint(-128, 128, lead + s, device="cuda").to(T.int8) for s in dims)
        else:
            a, b = (T.randn(*lead, *s, device="cuda").to(getattr(T, d)) for s in dims)
        a, b = a.mT if pair[0] == "t" else a, b.mT if pair[1] == "t" else b
        flops = 2 * size(m) * size(n) * size(k) * (lead[0] if lead else 1)
        return (lambda: T._int_mm(a, b)) if d == "int8" else (lambda: a @ b), dict(flops=flops)

    return build


def _linear(rows: int, width: int, k: int, residual: bool) -> Any:
    """linear with GELU, or with a residual: what the epilogue does; torch eager takes cuBLAS and a further kernel."""

    def build(T: Any, size: Callable[..., Any]) -> Any:
        x, w, b = (T.randn(*s, device="cuda").to(T.bfloat16) for s in ((size(rows), size(k)), (size(width), size(k)), (size(width),)))
        r, F = T.randn(size(rows), size(width), device="cuda").to(T.bfloat16), T.nn.functional
        run = (lambda: r + F.linear(x, w, b)) if residual else (lambda: F.gelu(F.linear(x, w, b)))
        return run, dict(flops=2 * size(rows) * size(width) * size(k))

    return build


def _attention(heads: int, length: int, width: int, backward: bool) -> Any:
    def build(T: Any, size: Callable[..., Any]) -> Any:
        b, h, s, d = size(8), size(heads), size(length), size(width)
        q, k, v = (T.randn(b, h, s, d, device="cuda").to(T.bfloat16).requires_grad_(backward) for _ in range(3))
        g = T.randn(b, h, s, d, device="cuda").to(T.bfloat16)
        flops = 2 * b * h * s * s * d  # two products, half of each

        def run() -> Any:
            out = T.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return (out, *T.autograd.grad(out, (q, k, v), g)) if backward else out

        return run, dict(flops=flops * 7 // 2 if backward else flops)

    return build


def adamw(T: Any, size: Callable[..., Any]) -> Any:
    parameters = [T.nn.Parameter(T.randn(size(2048), size(2048), device="cuda")) for _ in range(24)]
    for p in parameters:
        p.grad = T.randn(*p.shape, device="cuda")
    options = {} if T.__name__ == "torchlet" else {"fused": True}
    optimizer = T.optim.AdamW(parameters, lr=1e-4, **options)

    def run() -> Any:
        optimizer.step()
        return parameters[0]

    return run, dict(bytes=7 * sum(p.numel() for p in parameters) * 4)


def _training(make: Callable[[Any, Callable[..., Any]], Any], half: bool = False) -> Any:
    def build(T: Any, size: Callable[..., Any]) -> Any:
        T.manual_seed(0)
        model, loss_of = make(T, size)
        model = model.to("cuda")
        optimizer = T.optim.AdamW(model.parameters(), lr=1e-3)

        def step() -> Any:
            optimizer.zero_grad()
            with T.autocast("cuda", dtype=T.bfloat16) if half else contextlib.nullcontext():
                loss = loss_of(model)
            loss.backward()
            optimizer.step()
            return loss

        return step, {}

    return build


def _lstm(half: bool) -> Any:
    """A forward and backward pass of one layer."""

    def build(T: Any, size: Callable[..., Any]) -> Any:
        T.manual_seed(0)
        d = T.bfloat16 if half else T.float32
        width = size(512 if half else 256)
        model = T.nn.LSTM(width, width).to("cuda").to(d)
        x = T.randn(size(128), size(64), width, device="cuda").to(d)

        def step() -> Any:
            model.zero_grad()
            out = model(x)[0]
            out.float().square().mean().backward()
            return out

        return step, {}

    return build


def _mlp(T: Any, size: Callable[..., Any]) -> Any:
    nn = T.nn
    x, y = T.randn(64, 784, device="cuda"), T.randint(0, 10, (64,), device="cuda")
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, lambda m: nn.functional.cross_entropy(m(x), y)


def _gpt2(T: Any, size: Callable[..., Any]) -> Any:
    return _gpt(T, size, 32, 1024, 768, 12, 12 if size(4096) == 4096 else 1, 50304)


def _gpt(
    T: Any, size: Callable[..., Any], batch: int = 8, length: int = 512, width: int = 384, heads: int = 6, layers: int = 4,
    words: int = 8192,
) -> Any:
    nn, F = T.nn, T.nn.functional
    batch, length, width, words = size(batch), size(length), size(width), size(words)
    width = -(-width // heads) * heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(self.n1(x)).view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(F.gelu(self.up(self.n2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

        def forward(self, i: Any) -> Any:
            x = self.words(i) + self.places(T.arange(length, device=i.device))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    ids = T.randint(0, words, (batch, length + 1), device="cuda")
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous().view(-1)
    return GPT(), lambda m: F.cross_entropy(m(inputs).view(batch * length, words), targets)


TABLES = {
    "copy 1 GiB fp32": clone, "softmax 16384x4096 fp32": _softmax("float32"), "softmax 16384x4096 bf16": _softmax("bfloat16"),
    "layer norm 16384x4096": layer_norm, "layer norm fwd+bwd 16384x4096": layer_norm_backward, "tanh chain 64 Mi": chain,
    "column sum 32768x2048": column_sum, "cross entropy fwd+bwd 8192x50304": cross_entropy, "AdamW 100 Mi": adamw,
    "matmul 4096 bf16": _matmul(4096, 4096, 4096, "bfloat16"), "matmul 8192x3072x768 bf16": _matmul(8192, 3072, 768, "bfloat16"),
    "matmul 2048 fp32": _matmul(2048, 2048, 2048, "float32"), "attention d=64 causal 8x12x1024": _attention(12, 1024, 64, False),
    "attention fwd+bwd d=64 causal 8x12x1024": _attention(12, 1024, 64, True),
    "attention fwd+bwd d=128 causal 8x16x2048": _attention(16, 2048, 128, True),
    "matmul 32x4096x4096 bf16": _matmul(32, 4096, 4096, "bfloat16"),
}  # fmt: skip
PRODUCTS = {
    **{f"4096 bf16 {pair}": _product(pair, 4096, 4096, 4096) for pair in ("nn", "nt", "tn", "tt")},
    "8192 bf16 nt": _product("nt", 8192, 8192, 8192), "32768x3072x768 bf16 nt": _product("nt", 32768, 3072, 768),
    "768x3072x32768 bf16 tn": _product("tn", 768, 3072, 32768), "96 x 1024x1024x64 bf16 nt": _product("nt", 1024, 1024, 64, batch=96),
    "linear + gelu 32768x3072x768": _linear(32768, 3072, 768, False), "linear + residual 32768x768x3072": _linear(32768, 768, 3072, True),
    "4096 int8 nt": _product("nt", 4096, 4096, 4096, d="int8"), "4096 int8 nn": _product("nn", 4096, 4096, 4096, d="int8"),
}  # fmt: skip
STEPS = {
    "MLP step 784-256-128-10, batch 64": _training(_mlp),
    "GPT-2 124M step, bf16 autocast, AdamW, 32x1024": _training(_gpt2, half=True),
    "GPT step 4 layers, 384 wide, 8x512, fp32": _training(_gpt),
    "LSTM fwd+bwd 128x64x512 bf16": _lstm(True), "LSTM fwd+bwd 128x64x256 fp32": _lstm(False),
}
AUTOTUNED = ("matmul 4096 bf16", "softmax 16384x4096 bf16", "MLP step 784-256-128-10, batch 64")  # torch searches for tens of seconds


# ------------------------------------------------------------------------------------------------ jax


def jax_rows() -> dict[str, Callable[[], Callable[[], Any]]]:
    """Rows that jax takes part in: what makes its call, which ends when the device is done. Empty where there is no jax with a device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if importlib.util.find_spec("jax") is None:
        return {}
    jax = importlib.import_module("jax")
    if jax.default_backend() != "gpu":
        return {}
    np, key = jax.numpy, jax.random.PRNGKey(0)

    def compiled(f: Callable[..., Any], *arrays: Any) -> Callable[[], Any]:
        g = jax.jit(f)
        return lambda: jax.block_until_ready(g(*arrays))

    def normal(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.random.normal(key, shape, dtype)

    def softmax(dtype: Any) -> Callable[[], Callable[[], Any]]:
        return lambda: compiled(lambda x: jax.nn.softmax(x, -1), normal(16384, 4096, dtype=dtype))

    def matmul(m: int, n: int, k: int, dtype: Any) -> Callable[[], Callable[[], Any]]:
        return lambda: compiled(lambda a, b: np.matmul(a, b, precision="highest"), normal(m, k, dtype=dtype), normal(k, n, dtype=dtype))

    def attention(heads: int, length: int, width: int, backward: bool) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            qkv = [normal(8, length, heads, width, dtype=np.bfloat16) for _ in range(4)]

            def forward(q: Any, k: Any, v: Any) -> Any:
                return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

            def both(q: Any, k: Any, v: Any, g: Any) -> Any:
                out, back = jax.vjp(forward, q, k, v)
                return out, back(g)

            return compiled(both, *qkv) if backward else compiled(forward, *qkv[:3])

        return make

    def norm() -> Callable[[], Any]:
        def f(x: Any, w: Any, b: Any) -> Any:
            m = x.mean(-1, keepdims=True)
            return (x - m) * jax.lax.rsqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5) * w + b

        return compiled(f, normal(16384, 4096), np.ones(4096), np.zeros(4096))

    def mlp() -> Callable[[], Any]:
        sizes = (784, 256, 128, 10)
        parameters = [(normal(a, b) / a**0.5, np.zeros(b)) for a, b in itertools.pairwise(sizes)]
        zeros = jax.tree.map(np.zeros_like, parameters)
        x, y = normal(64, 784), jax.random.randint(key, (64,), 0, 10)

        def loss(parameters: Any) -> Any:
            h = x
            for i, (w, b) in enumerate(parameters):
                h = h @ w + b
                h = jax.nn.relu(h) if i < 2 else h
            return -jax.nn.log_softmax(h)[np.arange(64), y].mean()

        @jax.jit
        def step(p: Any, m: Any, v: Any, t: Any) -> Any:
            value, g = jax.value_and_grad(loss)(p)
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            p = jax.tree.map(
                lambda p, m, v: p * (1 - 1e-5) - 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), p, m, v
            )
            return p, m, v, t + 1, value

        state = [parameters, zeros, zeros, np.float32(1)]

        def call() -> Any:
            *state[:], value = step(*state)
            return jax.block_until_ready(value)

        return call

    return {
        "softmax 16384x4096 fp32": softmax(np.float32), "softmax 16384x4096 bf16": softmax(np.bfloat16), "layer norm 16384x4096": norm,
        "matmul 4096 bf16": matmul(4096, 4096, 4096, np.bfloat16), "matmul 2048 fp32": matmul(2048, 2048, 2048, np.float32),
        "attention d=64 causal 8x12x1024": attention(12, 1024, 64, False),
        "attention fwd+bwd d=64 causal 8x12x1024": attention(12, 1024, 64, True),
        "attention fwd+bwd d=128 causal 8x16x2048": attention(16, 2048, 128, True), "MLP step 784-256-128-10, batch 64": mlp,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ (b) timing


Contender = tuple[str, Callable[[], Any]]  # its name, and what makes its call


def contenders(
    build: Any, torchlet: Any, torch: Any, size: Callable[..., Any], modes: list[str], name: str = "", jax: dict[str, Any] | None = None
) -> Iterator[Contender]:
    """Who takes part in a row."""
    yield "torchlet", lambda: torchlet.compile(build(torchlet, size)[0])
    yield "torchlet eager", lambda: build(torchlet, size)[0]
    if torch is not None:
        yield "torch eager", lambda: build(torch, size)[0]
        for mode in modes:
            yield f"torch.compile {mode}", lambda mode=mode: torch.compile(build(torch, size)[0], mode=mode)
        if name in AUTOTUNED:
            yield "torch.compile max-autotune", lambda: torch.compile(build(torch, size)[0], mode="max-autotune")
        if name.startswith("attention"):
            for kernel in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
                yield f"torch SDPA {kernel.split('_')[0].lower()}", lambda kernel=kernel: with_kernel(torch, kernel, build(torch, size)[0])
    if jax and name in jax:
        yield "jax", jax[name]


def with_kernel(torch: Any, kernel: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with one of torch's attention kernels."""
    from torch.nn import attention

    def run() -> Any:
        with attention.sdpa_kernel(getattr(attention.SDPBackend, kernel)):
            return call()

    return run


def allocated(who: str, torchlet: Any, torch: Any, call: Callable[[], Any] | None = None) -> int:
    """Bytes that the contender's library has allocated; given a call, at most during it. 0 where the library does not say."""
    library = torchlet if who.startswith("torchlet") else torch if who.startswith("torch") else None
    if library is None:
        return 0
    if call is None:
        return int(library.cuda.memory_allocated())
    library.cuda.reset_peak_memory_stats()
    call()
    library.cuda.synchronize()
    return int(library.cuda.max_memory_allocated())


def timed_rows(
    section: str, rows: dict[str, Any], modes: list[str], report: Report, dry: bool, deadline: float, seconds: float = 6.0,
    tf32: bool = False,
) -> None:  # fmt: skip
    """Every row: build, compare, time in turn for some seconds. `tf32`: torch may use it."""
    import torchlet

    torch = peers(dry)
    if torch is not None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    jax = {} if dry else jax_rows()
    size = (lambda n: max(2, min(n, 16))) if dry else (lambda n: n)
    for name, build in rows.items():
        if time.time() > deadline - 5:
            report(section=section, row=name, status="no time")
            continue
        torchlet.manual_seed(0)
        sums: dict[str, float] = {}
        try:
            facts = build(torchlet, size)[1]
        except Exception as error:
            report(section=section, row=name, contender="torchlet", status="failed", why=f"{type(error).__name__}: {error}"[:600])
            continue
        calls: dict[str, Callable[[], Any]] = {}
        for who, make in contenders(build, torchlet, torch, size, modes, name, jax):
            if time.time() > deadline - 10 and calls:
                report(section=section, row=name, contender=who, status="no time")
                continue
            try:
                before = allocated(who, torchlet, torch)  # what other contenders keep
                start = time.perf_counter()
                torchlet.manual_seed(0)
                call = make()
                result = call()
                synchronize(torchlet, torch)
                first = time.perf_counter() - start
                if who.startswith("torchlet"):
                    sums[who] = checksum(result)
                for _ in range(4):
                    call()
                synchronize(torchlet, torch)
                calls[who] = call
                peak = allocated(who, torchlet, torch, call) - before
                report(section=section, row=name, contender=who, first_s=first, peak=peak)
            except Exception as error:
                report(section=section, row=name, contender=who, status="failed", why=f"{type(error).__name__}: {error}"[:600])
        if len(sums) == 2 and not abs(sums["torchlet"] - sums["torchlet eager"]) <= 1e-2 * (abs(sums["torchlet eager"]) + 1e-3):
            report(section=section, row=name, contender="torchlet", status="wrong", why=f"compiled and eager differ: {sums}")
        times: dict[str, list[float]] = {who: [] for who in calls}
        until = min(deadline, time.time() + (0.2 if dry else seconds))
        rounds = 0
        while calls and rounds < 40 and (rounds < 3 or time.time() < until):
            for who in list(calls)[:: -1 if rounds % 2 else 1]:
                try:
                    times[who].append(batch(calls[who], lambda: synchronize(torchlet, torch)))
                except Exception as error:
                    report(section=section, row=name, contender=who, status="failed", why=f"{type(error).__name__}: {error}"[:600])
                    del calls[who]
            rounds += 1
        for who, found in times.items():
            if found:
                low, median, high = quartiles(found)
                ms = dict(ms=median * 1e3, low=low * 1e3, high=high * 1e3, n=len(found))
                report(section=section, row=name, contender=who, status="ok", **ms, **facts)
        del calls
        torchlet.compiler.reset()
        torchlet.cuda.empty_cache()
        if torch is not None:
            torch._dynamo.reset()
            torch.cuda.empty_cache()


def checksum(result: Any) -> float:
    """The mean magnitude of a result, or of the first of several."""
    first = result[0] if isinstance(result, tuple | list) else result
    return float(first.detach().float().abs().mean())


def decisions(report: Report, section: str) -> None:
    """What timed alternates decided in this process, for the table of tiles."""
    tune = importlib.import_module("torchlet.compiler.tune")
    for contest in tune.CONTESTS:
        report(section="contests", during=section, **contest)


def adopt(rows: list[dict[str, Any]], path: Path) -> int:
    """Enter the contests among the rows into the table of tiles at `path`; how many problems they decide."""
    winners = importlib.import_module("torchlet.compiler.winners")
    return int(winners.merged(path, [r for r in rows if r["section"] == "contests"]))


def synchronize(torchlet: Any, torch: Any) -> None:
    """Wait for the device: both libraries work in the same context."""
    torchlet.cuda.synchronize()
    if torch is not None:
        torch.cuda.synchronize()


def batch(call: Callable[[], Any], wait: Callable[[], None], least: float = 5e-3) -> float:
    """Seconds of one call: the mean of as many as fill some milliseconds."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    count = max(1, min(400, int(least / (time.perf_counter() - start))))
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - start) / count


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The quarter, the half and three quarters of the values."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def tables(report: Report, dry: bool, shard: str, deadline: float) -> None:
    """Single operations."""
    timed_rows("tables", TABLES, ["default"], report, dry, deadline)


def products(report: Report, dry: bool, shard: str, deadline: float) -> None:
    """Matrix products beside cuBLAS, which is what torch eager calls."""
    from torchlet.config import config

    timed_rows("products", PRODUCTS, [], report, dry, deadline, 1.5)
    for precision in ("tf32x3", "bf16x6", "tf32"):
        row = {f"4096 fp32 {precision} nt": _product("nt", 4096, 4096, 4096, d="float32")}
        with config(float32_dot=precision):
            timed_rows("products", row, [], report, dry, deadline, 1.5, tf32=precision == "tf32")


def steps(report: Report, dry: bool, shard: str, deadline: float) -> None:
    """Whole training steps."""
    timed_rows("steps", STEPS, ["default", "reduce-overhead"], report, dry, deadline)


# ------------------------------------------------------------------------------------------------ (c) host cost


def host(report: Report, dry: bool, shard: str, deadline: float) -> None:
    """Microseconds until a call returns, the device far from busy: 50 calls, then a synchronisation that is not counted."""
    import torchlet
    from torchlet.compiler import launch

    torch = peers(dry)

    def pointwise(T: Any, size: Callable[..., Any]) -> Any:
        x = T.randn(1024, device="cuda")
        return lambda: x * 2 + 1, {}

    for name, build in {"x * 2 + 1, 1024 elements": pointwise, **{k: STEPS[k] for k in list(STEPS)[:1]}}.items():
        for who, make in contenders(build, torchlet, torch, lambda n: n, ["default"]):
            if time.time() > deadline - 5:
                report(section="host", row=name, contender=who, status="no time")
                continue
            try:
                call, found = make(), []
                for _ in range(5):
                    call()
                before = dict(launch.COUNTS)
                for _ in range(3 if dry else 40):
                    synchronize(torchlet, torch)
                    start = time.perf_counter()
                    for _ in range(5 if dry else 50):
                        call()
                    found.append((time.perf_counter() - start) / (5 if dry else 50))
                counts = {k: launch.COUNTS[k] - before[k] for k in before} if who.startswith("torchlet") else {}
                us = dict(us=statistics.median(found) * 1e6, least_us=min(found) * 1e6)
                report(section="host", row=name, contender=who, status="ok", **us, counts=counts)
            except Exception as error:
                report(section="host", row=name, contender=who, status="failed", why=f"{type(error).__name__}: {error}"[:600])


# ------------------------------------------------------------------------------------------------ all of it


def machine(dry: bool) -> dict[str, Any]:
    """What ran where."""
    from importlib.metadata import PackageNotFoundError, version

    import torchlet

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found: dict[str, Any] = dict(date=now, python=platform.python_version(), dry=dry, cores=os.cpu_count())
    for package in ("numpy", "triton", "torch", "jax"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    with device(dry):
        try:
            p = torchlet.cuda.get_device_properties()
            found |= dict(gpu=p.name, capability=f"{p.major}.{p.minor}", memory=p.total_memory, processors=p.multi_processor_count)
            from torchlet.runtime.cuda import driver

            found["driver_cuda"] = driver.driver_version()
        except RuntimeError as error:
            found["gpu"] = None
            found["why"] = str(error)
    return found


def run(arguments: argparse.Namespace) -> int:
    """Start the sections one after the other, the shards of the first together; then write what they found."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = out / f".gpu_check_{os.getpid()}.jsonl"
    lines.write_text("")
    start = time.time()
    end = start + arguments.minutes * 60 - 15
    facts = machine(arguments.dry)
    problems: list[str] = []
    if facts["gpu"] is None:
        problems.append(facts["why"])
    else:
        for section in [s for s in SECTIONS if s in arguments.sections.split(",")]:
            # without a device nobody waits for a lent machine, and a busy one may be slow
            budget = min(SECTIONS[section] * (4 if arguments.dry else 1), end - time.time())
            if budget < 10:
                problems.append(f"{section}: no time was left")
                continue
            shards = (2 if arguments.dry else max(2, min(12, (os.cpu_count() or 4) - 2))) if section in SHARDED else 1
            begun = time.time()
            processes = [
                subprocess.Popen(
                    [
                        sys.executable, __file__, "--worker", section, "--lines", str(lines), "--shard", f"{i}/{shards}", "--deadline",
                        str(begun + budget - 5), *(["--dry"] if arguments.dry else []),
                    ],
                    stderr=subprocess.PIPE, text=True,
                )
                for i in range(shards)
            ]  # fmt: skip
            for i, process in enumerate(processes):
                try:
                    _, err = process.communicate(timeout=max(1.0, begun + budget + 10 - time.time()))
                    if process.returncode:
                        problems.append(f"{section} {i}/{shards}: ended with {process.returncode}: {err[-600:]}")
                except subprocess.TimeoutExpired:
                    process.kill()
                    problems.append(f"{section} {i}/{shards}: stopped after {budget:.0f} s")
                    process.communicate()
            print(f"{section}: {time.time() - begun:.0f} s", flush=True)
    rows = [json.loads(line) for line in lines.read_text().splitlines() if line.startswith("{")]
    lines.unlink()
    result = {"machine": facts, "problems": problems, "seconds": round(time.time() - start, 1), "rows": rows}
    stem = f"gpu_{facts['date'][:10]}_{(facts['gpu'] or 'none').lower().replace(' ', '-')}{'_dry' if arguments.dry else ''}"
    (out / f"{stem}.json").write_text(json.dumps(result, indent=1))
    text = markdown(result)
    (out / f"{stem}.md").write_text(text)
    print(text)
    for table in (out / "winners.json", *([] if arguments.dry else [importlib.import_module("torchlet.compiler.winners").PATH])):
        print(f"{adopt(rows, table)} classes entered into {table}")
    bad = [r for r in rows if r.get("status") in ("wrong", "failed")]
    return 1 if problems or bad else 0


def markdown(result: dict[str, Any]) -> str:
    """The tables that people read."""
    m, rows = result["machine"], result["rows"]
    about = ", ".join(
        f"{k} {m[k]}" for k in ("gpu", "capability", "driver_cuda", "python", "numpy", "triton", "torch", "commit") if m.get(k)
    )
    text = [
        f"# GPU check, {m['date']}",
        "",
        about + f"; {result['seconds']} s" + ("; **dry run on the stand-in: times mean nothing**" if m["dry"] else ""),
        "",
    ]
    text += [f"- problem: {p}" for p in result["problems"]] + ([""] if result["problems"] else [])
    for section, what in (("correct", "the op table"), ("checks", "large products")):
        found = [r for r in rows if r["section"] == section]
        if not found:
            continue
        by = {s: [r for r in found if r["status"] == s] for s in ("ok", "wrong", "failed", "no time", "no reference")}
        on_host = sorted({r["op"] for r in by["ok"] if r.get("host")})
        text += [f"## Correctness of {what} against float64", "", ", ".join(f"{len(v)} {k}" for k, v in by.items()), ""]
        text += [
            f"- {r['status']}: {r['op']} sample {r['sample']} {r['dtype']}: {r.get('why', r.get('error'))}".replace("\n", " ")
            for r in by["wrong"] + by["failed"]
        ]
        text += [f"- ran on the host ({len(on_host)}): {', '.join(on_host)}", ""]
    peaks = [r for r in rows if r["section"] == "steps" and r.get("peak")]
    if peaks:
        names = list(dict.fromkeys(r["contender"] for r in peaks))
        text += ["## steps: peak memory (MiB) / first call (s)", "", "| row | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row in dict.fromkeys(r["row"] for r in peaks):
            mine = {r["contender"]: f"{r['peak'] / 2**20:.0f} / {r['first_s']:.2g}" for r in peaks if r["row"] == row}
            text.append(f"| {row} | " + " | ".join(mine.get(n, "") for n in names) + " |")
        text.append("")
    contests = list({(r["problem"], r["kernel"]): r for r in rows if r["section"] == "contests"}.values())
    text += ["## Contests of timed alternates (ms, median)", ""]
    text += ["| for | kernel | by formula | winner | gain | all |", "|---" * 6 + "|"]
    for r in contests:
        timed = ", ".join(f"{tile}: {ms:.4f}" for tile, ms in zip(r["tiles"], r["ms"], strict=True))
        gain = r["ms"][0] / r["ms"][r["winner"]] if r["ms"][r["winner"]] else 1.0
        text.append(f"| {r['problem']} | {r['kernel']} | {r['tiles'][0]} | {r['tiles'][r['winner']]} | {gain:.2f} | {timed} |")
    text += ["", f"{len(contests)} contests", ""]
    for section, unit in (("tables", "ms"), ("products", "ms"), ("steps", "ms"), ("host", "us")):
        found = [r for r in rows if r["section"] == section]
        names = list(dict.fromkeys(r["contender"] for r in found if "contender" in r))
        if not names:
            continue
        best_copy = max(
            (r["bytes"] / r["ms"] / 1e6 for r in found if r.get("row", "").startswith("copy") and r.get("status") == "ok"), default=0.0
        )
        text += [
            f"## {section} ({unit}, median)",
            "",
            "| row | " + " | ".join(names) + " | torchlet reaches |",
            "|---" * (len(names) + 2) + "|",
        ]
        ratios = []
        for row in dict.fromkeys(r["row"] for r in found):
            ok = {r["contender"]: r for r in found if r["row"] == row and r.get("status") == "ok"}
            why = {r["contender"]: r["status"] for r in found if r["row"] == row and r.get("status") not in (None, "ok")}
            reached, mine = "", ok.get("torchlet")
            if mine and mine.get("bytes"):
                rate = mine["bytes"] / mine["ms"] / 1e6
                reached = f"{rate:.0f} GB/s" + (f", {rate / best_copy:.0%} of the copy" if best_copy else "")
            elif mine and mine.get("flops"):
                reached = f"{mine['flops'] / mine['ms'] / 1e9:.1f} TFLOP/s"
                if "torch eager" in ok:
                    ratios.append(ok["torch eager"]["ms"] / mine["ms"])
                    reached += f", {ratios[-1]:.2f} x torch eager"
            text.append(f"| {row} | " + " | ".join(f"{ok[n][unit]:.4g}" if n in ok else why.get(n, "") for n in names) + f" | {reached} |")
        if ratios:
            text += ["", f"Geometric mean of the rows with TFLOP/s: {statistics.geometric_mean(ratios):.3f} x torch eager"]
        text += [
            "",
            *[
                f"- {r['row']}, {r.get('contender')}: {r['why']}".replace("\n", " ")
                for r in found
                if r.get("status") in ("failed", "wrong")
            ],
            "",
        ]
    return "\n".join(text) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(HERE / "results"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--adopt", metavar="JSON", help="only enter the contests of such a result into the package's table of tiles")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--lines", help=argparse.SUPPRESS)
    parser.add_argument("--shard", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.adopt:
        table = importlib.import_module("torchlet.compiler.winners").PATH
        print(f"{adopt(json.loads(Path(arguments.adopt).read_text())['rows'], table)} classes entered into {table}")
        return 0
    if arguments.worker is None:
        return run(arguments)
    importlib.import_module("torchlet.compiler.winners").PATH = Path(os.devnull)  # what is to be decided must not be settled
    tune = importlib.import_module("torchlet.compiler.tune")
    if arguments.dry:  # nothing is hot on the stand-in: show the shape of the table
        tune.LEAST_US, tune.AFTER, tune.ROUNDS = 0.0, 3, 1
        cache = tempfile.mkdtemp(prefix="torchlet-dry-")
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        importlib.import_module("torchlet.config").config.cache_dir = cache  # nothing was timed before
    try:
        with device(arguments.dry):
            report = Report(arguments.lines)
            {"correct": correct, "checks": checks, "tables": tables, "products": products, "steps": steps, "host": host}[arguments.worker](
                report, arguments.dry, arguments.shard, arguments.deadline
            )
            decisions(report, arguments.worker)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
