"""Triton kernels compiled for GPUs that are not here: registers, spills, tensor-core instructions, costs."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from torchlet import dtypes
from torchlet.compiler import launch, offline
from torchlet.compiler.codegen.triton import TritonKernel, emit
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, ScalarArg, Store
from torchlet.compiler.offline import TARGETS, compile_kernel
from torchlet.compiler.tile import MACHINES, bytes_moved, choose, flops, roofline_us
from torchlet.config import config
from torchlet.dtypes import bfloat16, bool_, dtype, float32, float64, int64
from torchlet.errors import CompileError
from torchlet.expr import Expr, call, cast, expr, where
from torchlet.index import ZERO, Axis, Index, of
from torchlet.runtime.cc import cache_folder
from torchlet.runtime.interpreter import run


def load(buffer: str, index: Index, d: dtype = float32) -> Expr:
    return expr("load", (), d, (buffer, index))


def value(name: str, d: dtype = float32) -> Expr:
    return expr("value", (), d, name)


def buffers(**sizes: int | tuple[int, dtype]) -> tuple[Buffer, ...]:
    return tuple(Buffer(n, *((s[1], s[0]) if isinstance(s, tuple) else (float32, s))) for n, s in sizes.items())


def gelu(n: int = 1 << 20) -> Kernel:
    i = Axis("i", n)
    x = load("x", of(i))
    y = x * 0.5 * (1.0 + call("erf", x * 0.7071067811865476))
    return Kernel("gelu", (i,), (Phase(stores=(Store("y", of(i), y),)),), buffers(x=n, y=n), (), ("model.py:3", "model.py:4"))


def functions() -> Kernel:
    """Every device function once."""
    i = Axis("i", 1 << 16)
    x = load("x", of(i))
    total = x
    for op in ("sqrt", "sign", "trunc", "round", "expm1", "log1p", "sigmoid", "tanh", "sinh", "cosh", "atan", "asin", "acos", "tan"):
        total = total + call(op, x)
    for op in ("atan2", "maximum", "minimum", "mod", "fmod", "floordiv", "pow"):
        total = total + call(op, x, total)
    n = load("n", of(i), int64)
    whole = call("pow", n, 5) + call("mod", n, 7) + call("floordiv", n, 7)
    return Kernel(
        "functions",
        (i,),
        (Phase(stores=(Store("y", of(i), total), Store("m", of(i), whole))),),
        buffers(x=1 << 16, y=1 << 16, n=(1 << 16, int64), m=(1 << 16, int64)),
    )


def softmax(rows: int = 4096, columns: int = 1000, d: dtype = float32) -> Kernel:
    i, j = Axis("i", rows), Axis("j", columns)
    x = cast(load("x", of(i) * columns + of(j), d), float32)
    e = call("exp", x - value("m"))
    phases = (
        Phase((j,), (Reduction("m", "max", x),)),
        Phase((j,), (Reduction("s", "sum", e),)),
        Phase((j,), (), (Store("y", of(i) * columns + of(j), cast(e / value("s"), d)),)),
    )
    return Kernel("softmax", (i,), phases, buffers(x=(rows * columns, d), y=(rows * columns, d)))


def layer_norm(rows: int = 4096, columns: int = 1024) -> Kernel:
    i, j = Axis("i", rows), Axis("j", columns)
    x = load("x", of(i) * columns + of(j))
    centred = x - value("sum") * (1 / columns)
    y = centred * call("rsqrt", value("square") * (1 / columns) + 1e-5) * load("w", of(j)) + load("b", of(j))
    phases = (
        Phase((j,), (Reduction("sum", "sum", x),)),
        Phase((j,), (Reduction("square", "sum", centred * centred),)),
        Phase((j,), (), (Store("y", of(i) * columns + of(j), y),)),
    )
    return Kernel("layer_norm", (i,), phases, buffers(x=rows * columns, w=columns, b=columns, y=rows * columns))


def argmax(rows: int = 512, columns: int = 1000) -> Kernel:
    i, j = Axis("i", rows), Axis("j", columns)
    phase = Phase((j,), (Reduction("r", "argmax", load("x", of(i) * columns + of(j))),), (Store("y", of(i), value("r", int64)),))
    return Kernel("argmax", (i,), (phase,), buffers(x=rows * columns, y=(rows, int64)))


def column_sum(rows: int = 4096, columns: int = 768) -> Kernel:
    i, j = Axis("i", columns), Axis("j", rows)
    return Kernel(
        "column_sum",
        (i,),
        (Phase((j,), (Reduction("s", "sum", load("x", of(j) * columns + of(i))),), (Store("y", of(i), value("s")),)),),
        buffers(x=rows * columns, y=columns),
    )


def full_sum(n: int = 1 << 20) -> Kernel:
    j = Axis("j", n)
    names = ("sum", "max", "prod", "argmin", "any")
    reductions = tuple(Reduction(c, c, load("x", of(j)) if c != "any" else call("gt", load("x", of(j)), 2.0)) for c in names)
    stores = tuple(Store(c, ZERO, value(c, r.dtype)) for c, r in zip(names, reductions, strict=True))
    return Kernel("full_sum", (), (Phase((j,), reductions, stores),), buffers(x=n, sum=1, max=1, prod=1, argmin=(1, int64), any=(1, bool_)))


def transpose() -> Kernel:
    i, j = Axis("i", 1000), Axis("j", 500)
    return Kernel(
        "transpose",
        (i, j),
        (Phase(stores=(Store("y", of(i) * 500 + of(j), load("x", of(j) * 1000 + of(i))),)),),
        buffers(x=500_000, y=500_000),
    )


def linear(m: int = 512, n: int = 512, k: int = 512, d: dtype = bfloat16, transposed: bool = True) -> Kernel:
    """relu(x @ w.T + b)"""
    i, j, r = Axis("m", m), Axis("n", n), Axis("k", k)
    w = of(j) * k + of(r) if transposed else of(r) * n + of(j)
    dot = Dot("acc", load("x", of(i) * k + of(r), d), load("w", w, d), (), (i,), (j,), (r,))
    y = cast(call("maximum", value("acc") + cast(load("b", of(j), d), float32), 0.0), d)
    return Kernel(
        "linear_relu",
        (i, j),
        (Phase((r,), (dot,), (Store("y", of(i) * n + of(j), y),)),),
        buffers(x=(m * k, d), w=(n * k, d), b=(n, d), y=(m * n, d)),
    )


def double_product() -> Kernel:
    i, j, r = Axis("m", 64), Axis("n", 64), Axis("k", 64)
    dot = Dot("acc", load("x", of(i) * 64 + of(r), float64), load("w", of(r) * 64 + of(j), float64), (), (i,), (j,), (r,))
    return Kernel(
        "double_product",
        (i, j),
        (Phase((r,), (dot,), (Store("y", of(i) * 64 + of(j), value("acc", float64)),)),),
        buffers(**dict.fromkeys("xwy", (4096, float64))),
    )


def embedding_dropout() -> Kernel:
    i, j = Axis("i", 512), Axis("j", 256)
    row = load("ids", of(i), int64)
    flat = of(i) * 256 + of(j)
    bits = expr(
        "philox", (expr("scalar", (), int64, "seed"), expr("scalar", (), int64, "offset"), expr("index", (), int64, flat)), int64, 1
    )
    keep = cast(call("rshift", bits, 8), float32) * 2.0**-24 >= 0.1
    kernel_scalars = (ScalarArg("seed", int64), ScalarArg("offset", int64), ScalarArg("scale", float64))
    y = where(keep, load("table", of(row) * 256 + of(j)) * cast(expr("scalar", (), float64, "scale"), float32), 0.0)
    stores = (Store("y", flat, y), Store("count", of(row), cast(keep, float32), "add"))
    return Kernel(
        "embedding_dropout",
        (i, j),
        (Phase(stores=stores),),
        buffers(ids=(512, int64), table=1000 * 256, y=512 * 256, count=1000),
        kernel_scalars,
    )


KERNELS: dict[str, Callable[[], Kernel]] = {
    f.__name__: f for f in (gelu, softmax, layer_norm, argmax, column_sum, full_sum, transpose, linear, double_product, embedding_dropout)
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_hopper_without_spills(name: str) -> None:
    compiled = compile_kernel(emit(KERNELS[name]()), "cuda:90")
    assert compiled.cubin and compiled.ptx and compiled.ttir and compiled.amdgcn is None
    assert compiled.spill_bytes == 0
    assert 0 < compiled.registers <= 255


@pytest.mark.slow
@pytest.mark.parametrize("target", [t for t in TARGETS if t != "cuda:90"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_every_target(name: str, target: str) -> None:
    compiled = compile_kernel(emit(KERNELS[name](), target), target)
    assert (compiled.ptx is None) == target.startswith("hip") and (compiled.amdgcn is None) != target.startswith("hip")
    assert compiled.shared_bytes <= MACHINES[target].shared_bytes and compiled.registers > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "hip:gfx942"])
def test_device_functions_compile(target: str) -> None:
    compiled = compile_kernel(emit(functions(), target), target)
    # sin and cos of huge arguments keep a table on the stack; more would be a spill
    assert compiled.registers > 0 and compiled.spill_bytes < 100


def test_the_other_vendor_gets_assembly() -> None:
    compiled = compile_kernel(emit(softmax(), "hip:gfx942"), "hip:gfx942")
    assert compiled.amdgcn is not None and compiled.ptx is None and compiled.cubin is None and compiled.sass is None
    assert compiled.spill_bytes == 0 and compiled.registers > 0


@pytest.mark.parametrize("transposed", [True, False])
def test_bfloat16_linear_uses_warp_group_tensor_cores_on_hopper(transposed: bool) -> None:
    kernel = linear(4096, 4096, 4096, transposed=transposed)
    tk = emit(kernel)
    assert choose(kernel, "cuda:90").blocks["m"] >= 128
    compiled = compile_kernel(tk, "cuda:90")
    assert compiled.ptx is not None and "wgmma.mma_async" in compiled.ptx and "cp.async" in compiled.ptx
    assert compiled.spill_bytes == 0


def test_float32_products_stay_exact() -> None:
    compiled = compile_kernel(emit(linear(256, 256, 256, float32)), "cuda:90")
    assert compiled.ptx is not None and "mma" not in compiled.ptx and "tf32" not in compiled.ptx


def test_contiguous_loads_are_vectors() -> None:
    ptx = compile_kernel(emit(gelu()), "cuda:90").ptx
    assert ptx is not None and "ld.global.v4" in ptx and "st.global.v4" in ptx


@pytest.mark.slow
def test_sass_is_disassembled_on_demand() -> None:
    sass = compile_kernel(emit(linear(4096, 4096, 4096)), "cuda:90").sass
    assert sass is not None and "HGMMA" in sass


def test_long_rows_are_looped_and_short_rows_stay_in_registers() -> None:
    assert not choose(softmax(4096, 8192), "cuda:90").looped
    assert choose(softmax(4096, 100_000), "cuda:90").looped == {"r"}
    assert compile_kernel(emit(softmax(4096, 100_000, bfloat16)), "cuda:90").spill_bytes == 0
    assert compile_kernel(emit(layer_norm(4096, 8192)), "cuda:90").spill_bytes == 0


def test_costs_follow_from_the_loop_nest() -> None:
    assert bytes_moved(gelu(1000)) == 8000
    assert bytes_moved(softmax(10, 100)) == 8000, "a value used in three phases is read once"
    assert bytes_moved(linear(64, 32, 16)) == 2 * (64 * 16 + 32 * 16 + 32 + 64 * 32)
    assert flops(linear(64, 32, 16)) == 2 * 64 * 32 * 16 + 2 * 64 * 32
    assert roofline_us(gelu(1 << 20), "cuda:90") == pytest.approx((8 << 20) / 4.8e12 * 1e6)
    compiled = compile_kernel(emit(gelu(1000)), "cuda:90")
    assert (compiled.bytes_moved, compiled.lines) == (8000, ("model.py:3", "model.py:4"))
    assert compiled.flops == flops(gelu(1000))
    rows = compile_kernel(emit(softmax(64, 128)), "cuda:90")
    assert (rows.flops, rows.bytes_moved) == (64 * 128 * 5, 64 * 128 * 8), "sub, exp, div, and the two reductions"


def test_an_epilogue_that_reads_the_tile_takes_a_smaller_one() -> None:
    i, j, r = Axis("m", 4096), Axis("n", 4096), Axis("k", 4096)
    at = of(i) * 4096 + of(j)
    dot = Dot("g", load("x", of(i) * 4096 + of(r)), load("d", of(r) * 4096 + of(j)), (), (i,), (j,), (r,))
    moment = load("m", at) * 0.9 + value("g") * 0.1
    step = load("p", at) - moment / (call("sqrt", load("v", at)) + 1e-8)
    stores = (Store("m", at, moment), Store("p", at, step))
    sizes = buffers(**dict.fromkeys("xdmvp", 4096 * 4096))
    kernel = Kernel("product_and_update", (i, j), (Phase((r,), (dot,), stores),), sizes)
    compiled = compile_kernel(emit(kernel), "cuda:90")
    assert compiled.spill_bytes == 0
    assert choose(kernel, "cuda:90").blocks["m"] * choose(kernel, "cuda:90").blocks["n"] < 128 * 128


def test_injected_waits_between_warp_group_products_are_seen(tmp_path: Path) -> None:
    compiled = compile_kernel(emit(linear(4096, 4096, 1024)), "cuda:90")
    assert compiled.ptx is not None and not compiled.is_serialised and compiled.flaw == 0
    lines = compiled.ptx.splitlines()
    at = next(i for i, line in enumerate(lines) if "mma_async" in line)
    end = next(i for i in range(at, len(lines)) if ";" in lines[i])
    register = re.search(r"{(%r\d+)", lines[at])
    assert register is not None
    lines.insert(end + 1, f"add.f32 {register[1]}, {register[1]}, 0f3F800000;")  # uses a sum before the next product adds to it
    (tmp_path / "k.ptx").write_text("\n".join(lines) + "\n")
    tools = Path(importlib.import_module("triton").__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = next(p for p in (tools / "ptxas-blackwell", tools / "ptxas") if p.exists())
    subprocess.run([ptxas, "--gpu-name=sm_90a", tmp_path / "k.ptx", "-o", tmp_path / "k.cubin"], check=True, capture_output=True)
    assert offline._serialised(compiled.ptx, (tmp_path / "k.cubin").read_bytes())


def test_compiled_kernels_are_kept_in_the_cache_folder() -> None:
    assert compile_kernel(emit(gelu(777)), "cuda:90").cubin
    assert list((cache_folder() / "triton").rglob("gelu.cubin"))


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="cuda:42"):
        compile_kernel(emit(gelu()), "cuda:42")


def test_compiling_and_interpreting_share_a_process() -> None:
    x, y = np.linspace(-3, 3, 64, dtype=np.float32), np.zeros(64, np.float32)
    tk: TritonKernel = emit(gelu(64))
    run(tk, [x, y])
    assert compile_kernel(tk, "cuda:90").cubin
    again = np.zeros(64, np.float32)
    run(tk, [x, again])
    assert dtypes.from_numpy(again.dtype) is float32 and np.array_equal(y, again) and y[-1] == pytest.approx(2.99595, abs=1e-4)


def test_large_buffers_are_addressed_with_64_bits() -> None:
    huge = 2**31 + 1024
    assert "tl.int64" in emit(gelu(huge)).source and "tl.int64" not in emit(gelu(2**30)).source
    for kernel in (softmax(2**16, 2**15), softmax(2**12, 2**20), column_sum(2**18, 2**13), linear(2**16, 512, 2**15, transposed=False)):
        tk = emit(kernel)
        for line in tk.source.splitlines():
            if "arange" in line:
                assert "tl.int64" in line, line
    assert compile_kernel(emit(softmax(2**12, 2**20)), "cuda:90").spill_bytes == 0


def test_many_kernels_are_compiled_by_several_processes_into_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "FEW", 1)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    kernels = [emit(gelu(1 << n)) for n in (8, 9, 10)]
    broken = "import triton\n\n\n@triton.jit\ndef missing(x_ptr, y_ptr, BLOCK_X):\n    nonsense()\n"
    kernels.append(replace(kernels[0], name="missing", source=broken))
    with config(cache_dir=str(tmp_path)):
        launch.precompile(kernels, "cuda:90")
        before = launch.COUNTS["compiled"]
        for k in kernels[:3]:
            assert launch.cubin_of(k, "cuda:90")[0][:4] == b"\x7fELF"
        assert launch.COUNTS["compiled"] == before
        with pytest.raises(CompileError, match="missing"):
            launch.cubin_of(kernels[3], "cuda:90")


def test_a_process_leaves_kernels_that_another_has_begun(tmp_path: Path) -> None:
    kernels, taken = [emit(gelu(256)), emit(softmax(8, 64))], tmp_path / "taken"
    taken.mkdir()
    (taken / "0").touch()
    with config(cache_dir=str(tmp_path / "cache")):
        assert launch.compile_share(kernels, "cuda:90", str(taken)) == (1, 0)
        before = launch.COUNTS["compiled"]
        launch.cubin_of(kernels[1], "cuda:90")
        assert launch.COUNTS["compiled"] == before
        launch.cubin_of(kernels[0], "cuda:90")
        assert launch.COUNTS["compiled"] == before + 1
        assert launch.compile_share(kernels, "cuda:90", str(taken)) == (0, 0)
