"""Long reductions with few results on GPUs: cut into slices, the same in every run, and as exact as in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphs import graph_of

from torchlet.compiler import split as split_module
from torchlet.compiler.codegen.triton import emit
from torchlet.compiler.emulate import run_interpreted_triton, run_plan
from torchlet.compiler.execute import optimize
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, Store
from torchlet.compiler.offline import compile_kernel
from torchlet.compiler.schedule import Plan, schedule
from torchlet.compiler.split import split
from torchlet.compiler.tile import choose
from torchlet.dtypes import bfloat16, dtype, float32
from torchlet.expr import Expr, call, cast, expr
from torchlet.index import Axis, Index, of
from torchlet.op import OPS
from torchlet.runtime import interpreter

pytestmark = pytest.mark.slow  # kernels in Triton's interpreter, and its compiler

rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def plan_of(f: Callable[..., Any], *arrays: np.ndarray, gpu: bool = True) -> Plan:
    return schedule(optimize(graph_of(f, *arrays), gpu=gpu), "f", gpu=gpu)[0]


def check(f: Callable[..., Any], arrays: list[np.ndarray], wanted: np.ndarray, kernels: int, rtol: float = 2e-6) -> Plan:
    plan = plan_of(f, *arrays)
    assert len(plan.kernels) == kernels
    for run in (run_plan, run_interpreted_triton):
        found = run(plan, arrays)[0]
        np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())
    np.testing.assert_array_equal(found, run_interpreted_triton(plan, arrays)[0])
    return plan


def test_the_sum_of_a_large_tensor_takes_partial_sums_and_one_combination() -> None:
    x = normal(500, 1003)
    plan = check(lambda x: x.sum(), [x], x.astype(np.float64).sum(), 2, 1e-5)
    assert plan.kernels[0].points > 60 and plan.kernels[0].name.endswith("_parts")
    assert plan.arena_bytes < 4096


@pytest.mark.parametrize("name", ["amax", "amin", "prod", "any", "all"])
def test_every_combination_ignores_what_lies_beyond_the_last_slice(name: str) -> None:
    x = -np.abs(normal(197, 1009)) - 1 if name in ("amax", "all") else np.abs(normal(197, 1009)) + 1
    x = np.exp(normal(197, 1009) * 1e-3) if name == "prod" else x
    wanted = getattr(np, name)(x.astype(np.float64)) if name not in ("any", "all") else np.float64(getattr(np, name)(x))
    check(lambda x: OPS[name](x, dims=(0, 1), keepdim=False), [x.astype(np.float32)], wanted, 2, 1e-4)


def test_integers_are_summed_exactly() -> None:
    x = rng.integers(-(2**40), 2**40, (400, 1000))
    check(lambda x: x.sum(), [x], np.asarray(x.sum()).astype(np.float64), 2, 0.0)


def test_sums_over_the_rows_of_a_narrow_matrix_are_cut_into_bands_of_rows() -> None:
    x = normal(8191, 48)
    plan = check(lambda x: x.sum(0), [x], x.astype(np.float64).sum(0), 2, 1e-5)
    assert plan.kernels[0].points >= 48 * 16


def test_what_follows_the_sum_runs_with_the_combination() -> None:
    x, b = normal(3000, 64), normal(64)
    check(lambda x, b: (x.square().sum(0) * 0.5 + b).tanh(), [x, b], np.tanh((x.astype(np.float64) ** 2).sum(0) * 0.5 + b), 2, 1e-5)


def test_softmax_of_a_few_long_rows_is_cut_at_its_phases() -> None:
    x = normal(20, 20001)
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    plan = check(lambda x: x.softmax(-1), [x], e / e.sum(-1, keepdims=True), 5, 1e-5)
    assert [k.points > 20 for k in plan.kernels] == [True, False, True, False, True]


def test_a_product_with_few_tiles_and_a_long_inner_dimension_is_cut_along_it() -> None:
    a, b, c = normal(16, 4096), normal(4096, 48), normal(48)
    plan = check(lambda a, b, c: (a @ b + c).relu(), [a, b, c], np.maximum(a.astype(np.float64) @ b + c, 0), 2, 2e-5)
    assert isinstance(plan.kernels[0].phases[0].reductions[0], Dot) and isinstance(plan.kernels[1].phases[0].reductions[0], Reduction)
    assert "atomic" not in emit(plan.kernels[0]).source + emit(plan.kernels[1]).source


def test_partial_products_of_sixteen_bit_matrices_stay_in_float32() -> None:
    a, b = normal(32, 4096).astype(ml_dtypes.bfloat16), normal(4096, 32).astype(ml_dtypes.bfloat16)
    plan = check(lambda a, b: a @ b, [a, b], a.astype(np.float64) @ b.astype(np.float64), 2, 6e-3)
    assert plan.kernels[0].buffers[-1].dtype.name == "float32"


@pytest.mark.parametrize("shape", [(4096, 1024), (100, 100), (1, 5)])
def test_what_fills_the_device_or_is_small_stays_one_kernel(shape: tuple[int, int]) -> None:
    assert len(plan_of(lambda x: x.sum(-1), normal(*shape)).kernels) == 1


def test_on_the_cpu_nothing_is_cut() -> None:
    assert len(plan_of(lambda x: x.sum(), normal(500, 1003), gpu=False).kernels) == 1


def test_slices_of_a_product_are_chosen_together_with_its_tile() -> None:
    def slices(m: int, n: int, k: int) -> int:
        i, j, r = Axis("i", m), Axis("j", n), Axis("k", k)
        a, b = (expr("load", (), bfloat16, (name, at)) for name, at in (("a", of(i) * k + of(r)), ("b", of(r) * n + of(j))))
        dot = Dot("acc", a, b, (), (i,), (j,), (r,))
        store = Store("y", of(i) * n + of(j), cast(expr("value", (), float32, "acc"), bfloat16))
        sizes = (("a", m * k), ("b", k * n), ("y", m * n))
        return split_of(Kernel("product", (i, j), (Phase((r,), (dot,), (store,)),), tuple(Buffer(x, bfloat16, s) for x, s in sizes)))

    assert slices(768, 3072, 32768) > 1, "72 tiles of 128x256 leave half of the processors idle"
    assert slices(768, 768, 32768) * 6 * 3 > 132 and slices(256, 256, 16384) * 16 > 64
    assert slices(4096, 4096, 4096) == slices(1024, 1024, 1024) == slices(512, 512, 512) == slices(768, 50304, 32768) == 1
    assert slices(8192, 8192, 1 << 20) == 1, "partial results have a limit"


def split_of(kernel: Kernel) -> int:
    parts = split(kernel)
    return parts[0].grid[0].extent if len(parts) > 1 else 1


def weight_step(m: int, n: int, k: int) -> Kernel:
    """The gradient of a weight, and an optimizer's step with it in place."""
    i, j, r = Axis("i", m), Axis("j", n), Axis("k", k)
    at = of(i) * n + of(j)

    def load(buffer: str, index: Index, d: dtype = float32) -> Expr:
        return expr("load", (), d, (buffer, index))

    dot = Dot("g", load("x", of(r) * m + of(i), bfloat16), load("d", of(r) * n + of(j), bfloat16), (), (i,), (j,), (r,))
    g = expr("value", (), float32, "g")
    first, second = load("first", at) * 0.9 + g * 0.1, load("second", at) * 0.99 + g * g * 0.01
    stores = (("first", first), ("second", second), ("w", load("w", at) - first / (call("sqrt", second) + 1e-8)))
    buffers = [Buffer("x", bfloat16, m * k), Buffer("d", bfloat16, k * n)]
    buffers += [Buffer(b, float32, m * n, "inout") for b in ("first", "second", "w")]
    return Kernel("weight_step", (i, j), (Phase((r,), (dot,), tuple(Store(b, at, e) for b, e in stores)),), tuple(buffers))


def test_an_epilogue_that_would_force_small_tiles_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    large = split(weight_step(768, 50304, 32768))
    assert [len(k.phases[0].stores) for k in large] == [1, 3] and large[0].points == 768 * 50304, "one slice"
    assert choose(large[0], "cuda:90").blocks["n"] == 256 and choose(weight_step(768, 50304, 32768), "cuda:90").blocks["n"] == 64
    assert len(split(weight_step(768, 3072, 1024))) == 1, "where the product is short, the memory counts"
    small = weight_step(40, 48, 256)
    monkeypatch.setattr(split_module, "LEAST", 1)
    monkeypatch.setattr(split_module, "WORTH", 1e9)
    parts = split(small)
    assert len(parts) == 2
    x, d = (normal(256, n).astype(ml_dtypes.bfloat16) for n in (40, 48))
    first, second, w = np.abs(normal(40, 48)), np.abs(normal(40, 48)), normal(40, 48)
    memory = {"x": x, "d": d, "first": first.copy(), "second": second.copy(), "w": w.copy(), "g_parts": np.zeros((40, 48), np.float32)}
    for kernel in parts:
        interpreter.run(emit(kernel), [memory[b.name].reshape(-1) for b in kernel.buffers])
    g = x.astype(float).T @ d.astype(float)
    first, second = first * 0.9 + g * 0.1, second * 0.99 + g * g * 0.01
    for name, wanted in (("first", first), ("second", second), ("w", w - first / (np.sqrt(second) + 1e-8))):
        np.testing.assert_allclose(memory[name], wanted, rtol=1e-5, atol=1e-5)


def test_slices_of_a_product_compile_to_tensor_core_code() -> None:
    a, b = normal(32, 8192).astype(ml_dtypes.bfloat16), normal(8192, 256).astype(ml_dtypes.bfloat16)
    built = compile_kernel(emit(plan_of(lambda a, b: a @ b, a, b).kernels[0]), "cuda:90")
    assert built.spill_bytes == 0 and "mma" in (built.ptx or "")
