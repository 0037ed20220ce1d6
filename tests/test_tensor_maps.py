"""Matrix products whose tiles are moved by tensor maps: numbers in the interpreter, machine code offline, launches on the stand-in."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from standin import CC, StandIn, stand_in
from triton.runtime import cache as triton_cache

import torchlet as torch
from torchlet import dtypes
from torchlet.compiler import launch, offline
from torchlet.compiler.codegen.triton import TritonKernel, emit
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Store
from torchlet.compiler.offline import compile_kernel, fitting
from torchlet.compiler.split import split
from torchlet.compiler.tile import Tile, choose
from torchlet.config import config
from torchlet.dtypes import bfloat16, dtype, float32, int8, int32, int64
from torchlet.expr import Expr, call, cast, expr
from torchlet.index import Axis, Index, of
from torchlet.runtime.interpreter import run

pytestmark = pytest.mark.slow  # kernels in Triton's interpreter, and its compiler

WALK = Tile("dot", {"m": 64, "n": 64, "k": 32}, map_bytes=1 << 17, programs=3)


def load(buffer: str, index: Index, d: dtype = bfloat16) -> Expr:
    return expr("load", (), d, (buffer, index))


def total(name: str = "acc") -> Expr:
    return expr("value", (), float32, name)


def product(
    m: int, n: int, k: int, left: str = "n", right: str = "n", batch: int = 0, d: dtype = bfloat16, pad: int = 0, start: int = 0,
    epilogue: Any = lambda acc, at: acc,
) -> Kernel:  # fmt: skip
    """y = epilogue(a @ b) over `batch` matrices; "t": stored transposed. Between rows are `pad` elements, before them `start`."""
    z, i, j, r = Axis("z", max(batch, 1)), Axis("m", m), Axis("n", n), Axis("k", k)

    def place(rows: Axis, columns: Axis, transposed: bool) -> tuple[Index, int]:
        across, along = (columns, rows) if transposed else (rows, columns)
        size = across.extent * (along.extent + pad)
        at = of(across) * (along.extent + pad) + of(along) + start
        return (at + of(z) * size if batch else at), size * max(batch, 1) + start

    (at_a, size_a), (at_b, size_b), (at_y, size_y) = place(i, r, left == "t"), place(r, j, right == "t"), place(i, j, False)
    dot = Dot("acc", load("a", at_a, d), load("b", at_b, d), (z,) if batch else (), (i,), (j,), (r,))
    grid = (z, i, j) if batch else (i, j)
    sizes = (Buffer("a", d, size_a), Buffer("b", d, size_b), Buffer("y", d, size_y, "inout"))
    return Kernel("product", grid, (Phase((r,), (dot,), (Store("y", at_y, cast(epilogue(total(), at_y), d)),)),), sizes)


def arrays(kernel: Kernel) -> list[np.ndarray]:
    r = np.random.default_rng(0)
    return [
        r.integers(-128, 128, b.size).astype(b.dtype.np) if b.dtype in (int8, int32) else r.standard_normal(b.size).astype(b.dtype.np)
        for b in kernel.buffers
    ]


def int8_product(m: int, n: int, k: int, left: str = "n", right: str = "t") -> Kernel:
    """y = a @ b of int8, kept in int32."""
    i, j, r = Axis("m", m), Axis("n", n), Axis("k", k)
    at_a, at_b = of(r) * m + of(i) if left == "t" else of(i) * k + of(r), of(j) * k + of(r) if right == "t" else of(r) * n + of(j)
    dot = Dot("acc", load("a", at_a, int8), load("b", at_b, int8), (), (i,), (j,), (r,))
    sizes = (Buffer("a", int8, m * k), Buffer("b", int8, k * n), Buffer("y", int32, m * n, "output"))
    store = Store("y", of(i) * n + of(j), cast(expr("value", (), int64, "acc"), int32))
    return Kernel("int8_product", (i, j), (Phase((r,), (dot,), (store,)),), sizes)


def matrix(flat: np.ndarray, rows: int, columns: int, transposed: bool, batch: int, pad: int, start: int) -> np.ndarray:
    """A stack of matrices of `product` in float64."""
    r, c = (columns, rows) if transposed else (rows, columns)
    found = flat[start:].reshape(max(batch, 1), r, c + pad)[:, :, :c].astype(float)
    return found.swapaxes(1, 2) if transposed else found


def check(
    kernel: Kernel, m: int, n: int, k: int, left: str, right: str, batch: int, pad: int, start: int, tile: Tile | None
) -> TritonKernel:
    """Run it in the interpreter against float64."""
    tk, data = emit(kernel, tile=tile), arrays(kernel)
    before = data[2].copy()
    run(tk, data)
    a, b = matrix(data[0], m, k, left == "t", batch, pad, start), matrix(data[1], k, n, right == "t", batch, pad, start)
    got = matrix(data[2], m, n, False, batch, pad, start)
    np.testing.assert_allclose(got, a @ b, rtol=1e-2, atol=1e-2 * np.sqrt(k))
    if pad:  # what lies between the rows is not touched
        rows = data[2][start:].reshape(-1, n + pad)[:, n:], before[start:].reshape(-1, n + pad)[:, n:]
        np.testing.assert_array_equal(rows[0].astype(float), rows[1].astype(float))
    return tk


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("d", [bfloat16, dtypes.float16])
@pytest.mark.parametrize("left, right", ["nn", "nt", "tn", "tt"])
def test_a_walk_over_tiles_moves_all_by_maps_in_every_orientation(left: str, right: str, d: dtype) -> None:
    tk = check(product(136, 88, 72, left, right, d=d), 136, 88, 72, left, right, 0, 0, 0, WALK)
    assert len(tk.maps) == 3 and tk.grid == (3, 1, 1) and "flatten=True" in tk.source
    assert "tl.load" not in tk.source and "tl.store" not in tk.source and "mask" not in tk.source.partition("acc")[2]


@pytest.mark.parametrize("programs", [0, 5])
@pytest.mark.parametrize("left, right", ["nt", "tn"])
def test_matrices_of_a_stack_end_where_the_next_begins(left: str, right: str, programs: int) -> None:
    tile = Tile("dot", {"m": 64, "n": 64, "k": 32}, map_bytes=1 << 17, programs=programs)
    tk = check(product(72, 40, 48, left, right, batch=3), 72, 40, 48, left, right, 3, 0, 0, tile)
    assert [len(m.shape) for m in tk.maps.values()] == [3, 3, 3] and tk.grid[0] == (programs or 6)


def test_rows_and_starts_at_multiples_of_16_bytes_are_kept_apart() -> None:
    tk = check(product(70, 72, 40, pad=8, start=16), 70, 72, 40, "n", "n", 0, 8, 16, WALK)
    assert [m.start for m in tk.maps.values()] == [16, 16, 16] and tk.maps["a_map0"].strides == (48, 1)


@pytest.mark.parametrize("pad, start, k", [(3, 0, 40), (0, 5, 40), (0, 0, 41)])
def test_what_is_not_aligned_is_read_through_pointers(pad: int, start: int, k: int) -> None:
    tk = check(product(70, 70, k, "n", "n", pad=pad, start=start), 70, 70, k, "n", "n", 0, pad, start, WALK)
    assert not tk.maps and tk.grid[0] == 4


def test_one_operand_may_come_by_map_and_the_other_through_a_prologue() -> None:
    i, j, r = Axis("m", 80), Axis("n", 64), Axis("k", 40)
    left = cast(call("maximum", cast(load("a", of(i) * 40 + of(r)), float32), 0.0), bfloat16)
    dot = Dot("acc", left, load("b", of(r) * 64 + of(j)), (), (i,), (j,), (r,))
    sizes = (Buffer("a", bfloat16, 3200), Buffer("b", bfloat16, 2560), Buffer("y", bfloat16, 5120, "output"))
    kernel = Kernel("k", (i, j), (Phase((r,), (dot,), (Store("y", of(i) * 64 + of(j), cast(total(), bfloat16)),)),), sizes)
    tk, data = emit(kernel, tile=WALK), arrays(kernel)
    run(tk, data)
    expected = np.maximum(data[0].astype(float).reshape(80, 40), 0) @ data[1].astype(float).reshape(40, 64)
    np.testing.assert_allclose(data[2].astype(float).reshape(80, 64), expected, rtol=1e-2, atol=0.05)
    assert list(tk.maps) == ["b_map0", "y_map1"] and "flatten" not in tk.source


def test_an_epilogue_reads_and_writes_one_buffer_and_stores_two_results() -> None:
    m, n, k = 72, 80, 48
    i, j, r = Axis("m", m), Axis("n", n), Axis("k", k)
    at = of(i) * n + of(j)
    dot = Dot("acc", load("a", of(i) * k + of(r)), load("b", of(j) * k + of(r)), (), (i,), (j,), (r,))
    before = total() + cast(load("bias", of(j)), float32)
    after = call("sigmoid", before) * before + cast(load("x", at), float32)
    stores = (Store("h", at, cast(before, bfloat16)), Store("x", at, cast(after, bfloat16)))
    sizes = {"a": m * k, "b": n * k, "bias": n, "x": m * n, "h": m * n}
    kernel = Kernel("k", (i, j), (Phase((r,), (dot,), stores),), tuple(Buffer(b, bfloat16, s, "inout") for b, s in sizes.items()))
    tk, data = emit(kernel, tile=WALK), arrays(kernel)
    a, b, bias, x = (d.astype(float) for d in data[:4])
    run(tk, data)
    h = a.reshape(m, k) @ b.reshape(n, k).T + bias
    np.testing.assert_allclose(data[4].astype(float).reshape(m, n), h, rtol=1e-2, atol=0.05)
    np.testing.assert_allclose(data[3].astype(float).reshape(m, n), h / (1 + np.exp(-h)) + x.reshape(m, n), rtol=2e-2, atol=0.1)
    assert {name.partition("_")[0] for name in tk.maps} == {"a", "b", "h", "x"} and "flatten=True" in tk.source


def test_stores_that_leave_no_room_for_the_stages_go_through_pointers() -> None:
    small = Tile("dot", {"m": 64, "n": 64, "k": 32}, num_stages=3, map_bytes=3 * 2 * 64 * 32 * 2)
    assert [n.partition("_")[0] for n in emit(product(128, 128, 64), tile=small).maps] == ["a", "b"]


def test_a_product_over_nothing_is_zero() -> None:
    kernel = product(64, 64, 0)
    tk, y = emit(kernel, tile=WALK), np.ones(64 * 64, bfloat16.np)
    run(tk, [np.zeros(1, bfloat16.np), np.zeros(1, bfloat16.np), y])
    assert not y.any() and all(m.buffer == 2 for m in tk.maps.values())


def test_slices_of_a_long_product_are_a_stack_of_maps() -> None:
    parts = split(product(256, 256, 16384, "n", "t"))
    assert len(parts) == 2
    assert [len(m.shape) for m in emit(parts[0]).maps.values()] == [3, 3, 3]


def test_large_products_on_hopper_walk_and_others_take_no_maps() -> None:
    kernel = product(4096, 4096, 512, right="t")
    tk = emit(kernel)
    assert len(tk.maps) == 3 and tk.grid == (132, 1, 1)
    assert len(emit(kernel, "cuda:100").maps) == 3 and "flatten" not in emit(kernel, "cuda:100").source
    for target in ("cuda:80", "cuda:120", "hip:gfx942"):
        assert not emit(kernel, target).maps
    assert not emit(kernel, maps=False).maps
    assert not emit(product(16, 4096, 512, right="t")).maps, "few rows"


@pytest.mark.parametrize("left, right", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("tile", [WALK, None])
def test_products_of_int8_are_exact_in_int32(left: str, right: str, tile: Tile | None) -> None:
    m, n, k = (80, 96, 64) if tile else (33, 20, 70)
    kernel = int8_product(m, n, k, left, right)
    tk, data = emit(kernel, tile=tile), arrays(kernel)
    run(tk, data)
    a, b = matrix(data[0], m, k, left == "t", 0, 0, 0)[0], matrix(data[1], k, n, right == "t", 0, 0, 0)[0]
    np.testing.assert_array_equal(data[2].reshape(m, n), (a @ b).astype(np.int64))
    assert "tl.dot" in tk.source and bool(tk.maps) == (tile is not None)


def test_sums_of_int8_products_that_int32_cannot_hold_are_no_tensor_core_products() -> None:
    assert "tl.dot" in emit(int8_product(32, 32, (1 << 17) - 1)).source
    assert "tl.dot" not in emit(int8_product(32, 32, 1 << 17)).source


# ------------------------------------------------------------------------------------------------ machine code


STORE = ".global.shared::cta.bulk_group"


def opcodes(sass: str | None) -> set[str]:
    assert sass is not None
    return set(re.findall(r"\b(UTMALDG|HGMMA|LDGSTS|STL|LDL|UTCHMMA)\b", sass))


def gelu(acc: Expr, at: Index) -> Expr:
    return acc * 0.5 * (1.0 + call("erf", acc * 0.7071067811865476))


CANONICAL = {
    "nn": product(4096, 4096, 1024), "nt": product(4096, 4096, 1024, right="t"), "tn": product(4096, 4096, 1024, left="t"),
    "tt": product(4096, 4096, 1024, left="t", right="t"), "ragged": product(4104, 3080, 776, right="t"),
    "batched": product(1024, 1024, 512, "t", "t", batch=12), "gelu": product(8192, 3072, 768, right="t", epilogue=gelu),
    "residual": product(8192, 768, 3072, right="t", epilogue=lambda acc, at: acc + cast(load("y", at), float32)),
}  # fmt: skip


@pytest.mark.parametrize("name", [n if n in ("nt", "residual") else pytest.param(n, marks=pytest.mark.slow) for n in CANONICAL])
def test_canonical_products_are_tensor_map_loads_and_warp_group_products_without_spills(name: str) -> None:
    compiled = compile_kernel(emit(CANONICAL[name]), "cuda:90")
    assert {"UTMALDG", "HGMMA"} <= opcodes(compiled.sass) and not opcodes(compiled.sass) & {"LDGSTS", "STL", "LDL"}
    # Triton 3.6 prints the SASS of long kernels without their end, where the store is
    assert compiled.ptx is not None and STORE in compiled.ptx
    assert compiled.spill_bytes == 0 and compiled.shared_bytes <= 227 << 10
    assert choose(CANONICAL[name], "cuda:90").blocks["m"] >= 128


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nt", "residual"])
def test_on_blackwell_they_are_tensor_map_loads_too(name: str) -> None:
    compiled = compile_kernel(emit(CANONICAL[name], "cuda:100"), "cuda:100")
    assert {"UTMALDG", "UTCHMMA"} <= opcodes(compiled.sass) and compiled.spill_bytes == 0
    assert compiled.ptx is not None and STORE in compiled.ptx


def test_a_tile_whose_binary_spills_gives_way_to_the_next() -> None:
    kernel = int8_product(4096, 4096, 1024)
    first = compile_kernel(emit(kernel, "cuda:80"), "cuda:80")
    if not version("triton").startswith("3.6"):  # which finds registers for 128 sums a thread and the operands of mma.sync
        assert first.flaw == first.spill_bytes > 0
    tried = []

    def flaw(k: TritonKernel) -> int:
        tried.append(k.constexprs)
        return compile_kernel(k, "cuda:80").flaw

    found = fitting(kernel, "cuda:80", flaw)
    assert compile_kernel(found, "cuda:80").flaw == 0 and tried[0] == first.kernel.constexprs and len(tried) <= 4
    assert (found.constexprs == first.kernel.constexprs) == (first.flaw == 0)
    least = fitting(kernel, "cuda:80", lambda k: 5 if k.constexprs["BLOCK_N"] > 64 else 3)
    assert least.constexprs["BLOCK_N"] <= 64, "all have flaws: the one with the least"


def test_the_launch_passes_what_the_compiled_kernel_declares(tmp_path: Path) -> None:
    tk = emit(product(1024, 1024, 256, right="t", batch=2))
    compiled = compile_kernel(tk, "cuda:90")
    assert compiled.ptx is not None
    declared = re.findall(r"\.param \.(?:align (\d+) )?\.?(b8|b16|b32|b64|u32|u64|s32)", compiled.ptx.partition(")")[0])
    kinds = []
    for align, kind in declared:
        kinds.append("map" if align == "64" and kind == "b8" else {"b64": "8", "u64": "8", "b32": "4", "u32": "4"}[kind])
    maps = [k for m in tk.maps.values() for k in ["map", *"4" * len(m.shape), *"8" * len(m.shape)]]
    expected = ["8"] * 3 + ["4"] * len(tk.sizes) + maps + ["8", "8"]
    assert kinds == expected
    with config(cache_dir=str(tmp_path)):
        first, again = launch.cubin_of(tk, "cuda:90"), launch.cubin_of(tk, "cuda:90")
    assert triton_cache.triton_key is offline._library_key, "Triton's own key hashes its library, half a gigabyte, in each process"
    assert first == again and len(first[1].maps) == 3 and first[1].maps[0].element_size == 2


def test_products_that_differ_in_their_extents_alone_share_one_binary() -> None:
    tile = Tile("dot", {"m": 64, "n": 64, "k": 32}, map_bytes=1 << 17, programs=2)

    def key(*sizes: int, **options: Any) -> str:
        kernel = emit(product(*sizes, **options), tile=tile)
        assert len(kernel.maps) == 3 and kernel.sizes["k_size"] == sizes[2]
        return launch._key(kernel, "cuda:90")

    assert key(256, 128, 64) == key(256, 128, 320) == key(1000, 520, 64) == key(8192, 3072, 768)
    assert key(256, 128, 64, batch=3) == key(200, 128, 96, batch=2) != key(256, 128, 64) != key(256, 128, 64, right="t")


def test_lengths_of_rows_that_are_read_and_stored_through_pointers_are_arguments() -> None:
    """Two binaries serve all of them: Triton is told which lengths are multiples of 16, so that their stores stay wide."""
    small = Tile("dot", {"m": 64, "n": 64, "k": 32}, num_stages=3, map_bytes=3 * 2 * 64 * 32 * 2)

    def residual(acc: Expr, at: Index) -> Expr:
        return acc + cast(load("y", at), float32)

    def emitted(n: int, pad: int = 0, batch: int = 0) -> TritonKernel:
        found = emit(product(128, n, 64, pad=pad, batch=batch, epilogue=residual), tile=small)
        assert [name.partition("_")[0] for name in found.maps] == ["a", "b"]
        return found

    even, padded, odd = emitted(128), emitted(192, pad=64), emitted(128, pad=8)
    assert launch._key(even, "cuda:90") == launch._key(padded, "cuda:90") != launch._key(odd, "cuda:90")
    assert even.source == odd.source and (even.sizes["step0"], padded.sizes["step0"], odd.sizes["step0"]) == (128, 256, 136)
    assert "st.global.v4" in (compile_kernel(even, "cuda:90").ptx or "")
    stack = emitted(128, batch=3)
    assert stack.sizes["step0"] == 128 * 128 and stack.sizes["step1"] == 128
    for tk, n, pad, batch in ((padded, 192, 64, 0), (odd, 128, 8, 0), (stack, 128, 0, 3)):
        data = arrays(product(128, n, 64, pad=pad, batch=batch))
        before = matrix(data[2], 128, n, False, batch, pad, 0)
        run(tk, data)
        a, b = matrix(data[0], 128, 64, False, batch, pad, 0), matrix(data[1], 64, n, False, batch, pad, 0)
        np.testing.assert_allclose(matrix(data[2], 128, n, False, batch, pad, 0), a @ b + before, rtol=1e-2, atol=0.1)


# ------------------------------------------------------------------------------------------------ launches


@pytest.fixture
def gpu() -> Any:
    if CC is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    with stand_in() as s:
        yield s


def halves(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(ml_dtypes.bfloat16).astype(np.float32)).bfloat16()


def test_launches_carry_maps_of_the_present_addresses(gpu: StandIn) -> None:
    f = torch.compile(lambda x, w: torch.relu(x @ w.T) * 2.0)
    w = halves(512, 64)
    for n in range(5):  # launched one by one, then as a graph
        x = halves(1024, 64) + float(n)
        got = f(x.cuda(), w.cuda()).cpu()
        assert np.allclose(got.float().numpy(), f(x, w).float().numpy(), rtol=2e-2, atol=0.1)
    assert any(k.maps for k in gpu.kernels.values()) and gpu.maps >= 3


def test_unaligned_views_get_a_kernel_without_maps(gpu: StandIn) -> None:
    f = torch.compile(lambda x, w: x @ w.T)
    memory, w = halves(1024 * 64 + 16).cuda(), halves(512, 64).cuda()
    for start in (0, 8, 3, 0):
        x = memory[start : start + 1024 * 64].view(1024, 64)
        assert np.allclose(f(x, w).float().cpu().numpy(), (x.cpu().float() @ w.cpu().float().T).numpy(), rtol=2e-2, atol=0.1)
    assert {bool(k.maps) for k in gpu.kernels.values() if "tl.dot" in k.source} == {True, False}


def test_a_map_that_the_driver_refuses_is_an_error_with_its_name(gpu: StandIn) -> None:
    gpu.fail("cuTensorMapEncodeTiled", 1)
    with pytest.raises(RuntimeError, match="cuTensorMapEncodeTiled"):
        torch.compile(lambda x, w: x @ w.T)(halves(1024, 64).cuda(), halves(512, 64).cuda())


def test_a_binary_with_a_flaw_is_replaced_by_that_of_the_next_tile(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = launch.cubin_of

    def walks_spill(k: TritonKernel, target: str) -> Any:
        cubin, info = fake(k, target)
        return cubin, replace(info, flaw=8 if "flatten" in k.source else 0)

    monkeypatch.setattr(launch, "cubin_of", walks_spill)
    x, w = halves(4608, 64), halves(1024, 64)
    assert emit(product(4608, 1024, 64, right="t")).grid == (132, 1, 1)
    got = torch.compile(lambda a, b: a @ b.T)(x.cuda(), w.cuda()).cpu()
    assert np.allclose(got.float().numpy(), (x.float() @ w.float().T).numpy(), rtol=2e-2, atol=0.1)
    assert gpu.runs and all("flatten" not in k.source for k in gpu.kernels.values() if k.grid[0] > 132)
    assert len([k for k in gpu.kernels.values() if k.maps]) == 2, "the first choice, and the one that runs"


@pytest.mark.parametrize("shapes", [((64, 96), (96, 32)), ((1, 40), (40, 24))])
def test_products_of_int8_run_on_the_device(gpu: StandIn, shapes: Any) -> None:
    a, b = (torch.from_numpy(np.random.default_rng(i).integers(-128, 128, s).astype(np.int8)) for i, s in enumerate(shapes))
    got = torch.compile(torch._int_mm)(a.cuda(), b.cuda())
    assert got.dtype is torch.int32 and np.array_equal(got.cpu().numpy(), a.int().numpy() @ b.int().numpy())
    assert np.array_equal(torch._int_mm(a, b).numpy(), got.cpu().numpy())
    with pytest.raises(RuntimeError, match="int8"):
        torch._int_mm(a, b.float())


# ------------------------------------------------------------------------------------------------ float32


@pytest.mark.parametrize("precision", ["tf32x3", "bf16x6", "tf32"])
def test_float32_products_run_on_tensor_cores_by_named_precisions_only(precision: str) -> None:
    kernel = product(2048, 2048, 512, right="t", d=float32)
    exact = compile_kernel(emit(kernel), "cuda:90")
    with config(float32_dot=precision):
        tk = emit(kernel)
    assert f'input_precision="{precision}"' in tk.source and 'input_precision="ieee"' in exact.source
    compiled = compile_kernel(tk, "cuda:90")
    assert exact.ptx is not None and compiled.ptx is not None and compiled.spill_bytes == 0
    assert "mma" in compiled.ptx and "mma" not in exact.ptx
    with config(float32_dot=precision):
        assert "ieee" in emit(kernel, "hip:gfx942").source and "ieee" in emit(product(256, 256, 64)).source


def test_the_switches_of_pytorch_choose_tf32_and_tell_each_other() -> None:
    with config(float32_dot="ieee"):
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
        torch.set_float32_matmul_precision("high")
        assert torch.backends.cuda.matmul.allow_tf32 and "tf32" in emit(product(256, 256, 64, d=float32)).source
        torch.backends.cuda.matmul.allow_tf32 = False
        assert torch.get_float32_matmul_precision() == "highest" and "ieee" in emit(product(256, 256, 64, d=float32)).source
        torch.backends.cuda.matmul.allow_tf32 = True
        assert torch.get_float32_matmul_precision() == "high"
        torch.set_float32_matmul_precision("highest")


def test_a_new_precision_reaches_the_next_compiled_kernel(gpu: StandIn) -> None:
    x, w = torch.ones(64, 64).cuda(), torch.ones(64, 64).cuda()
    torch.compile(lambda a, b: a @ b)(x, w)
    with config(float32_dot="tf32x3"):
        torch.compile(lambda a, b: a @ b)(x, w)
    precisions = {p for k in gpu.kernels.values() for p in re.findall(r'input_precision="(\w+)"', k.source)}
    assert precisions == {"ieee", "tf32x3"}
