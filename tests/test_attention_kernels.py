"""Fused attention on GPUs: kernels against float64 in Triton's interpreter, which graphs they are chosen for, what compiles offline."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphs import graph_of
from standin import CC, stand_in

import torchlet as torch
from torchlet import nn
from torchlet.compiler import loop_text
from torchlet.compiler.attention import Attention
from torchlet.compiler.claim import refusals
from torchlet.compiler.codegen.triton import emit, emit_choices
from torchlet.compiler.differentiate import differentiate
from torchlet.compiler.emulate import run_interpreted_triton, run_plan
from torchlet.compiler.execute import optimize
from torchlet.compiler.function import kernels
from torchlet.compiler.graph import Graph
from torchlet.compiler.offline import compile_kernel
from torchlet.compiler.schedule import Plan, schedule
from torchlet.compiler.tile import MACHINES
from torchlet.op import OPS, STATE
from torchlet.runtime import interpreter

pytestmark = pytest.mark.slow  # kernels in Triton's interpreter, and its compiler

F = nn.functional
rng = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def training(f: Callable[..., Any], *arrays: np.ndarray) -> Graph:
    """f's result and the gradients of its inputs for a gradient that is the last input."""
    forward = graph_of(f, *arrays)
    STATE.gpu = True
    try:
        joint, _, grads = differentiate(forward, [forward.outputs[0]], [n for n in forward.inputs if n.spec.dtype.is_floating_point])
    finally:
        STATE.gpu = False
    assert None not in grads
    return replace(joint, output_names=())


def expected(f: Callable[..., Any], g: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """The same in float64, operator by operator."""
    wide = [torch.tensor(a.astype(np.float64) if a.dtype.kind != "b" else a, requires_grad=a.dtype.kind != "b") for a in arrays]
    out = f(*wide)
    grads = torch.autograd.grad(out, [t for t in wide if t.requires_grad], torch.tensor(g.astype(np.float64)))
    return [t.detach().numpy() for t in (out, *grads)]


def check_training(f: Callable[..., Any], arrays: list[np.ndarray], tolerance: float) -> Plan:
    joint = training(f, *arrays)
    g = normal(*joint.outputs[0].spec.shape).astype(arrays[0].dtype)
    plan, _ = schedule(optimize(joint, gpu=True), "f", gpu=True)
    parts = sorted(k.body.part for k in plan.kernels if isinstance(k.body, Attention))
    assert parts == ["forward", "key_gradient", "query_gradient"]
    wanted = expected(f, g, *arrays)
    for run in (run_interpreted_triton, run_plan):
        for found, exact in zip(run(plan, [*arrays, g]), wanted, strict=True):
            scale = np.abs(exact).max()
            np.testing.assert_allclose(found.astype(np.float64), exact, rtol=0, atol=tolerance * scale)
    return plan


SHAPES = {  # query, key, value
    "square": ((2, 3, 48, 16), (2, 3, 48, 16), (2, 3, 48, 16)),
    "odd lengths and widths": ((1, 2, 37, 24), (1, 2, 91, 24), (1, 2, 91, 9)),
    "several blocks": ((1, 1, 150, 16), (1, 1, 140, 16), (1, 1, 140, 16)),
    "no heads": ((20, 8), (33, 8), (33, 8)),
    "three dimensions": ((2, 20, 16), (2, 20, 16), (2, 20, 16)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_gradients_are_those_of_float64(name: str, causal: bool) -> None:
    f = functools.partial(F.scaled_dot_product_attention, is_causal=causal)
    check_training(f, [normal(*s) for s in SHAPES[name]], 2e-6)


@pytest.mark.parametrize("d,tolerance", [(ml_dtypes.bfloat16, 1e-2), (np.float16, 2e-3)])
def test_sixteen_bit_inputs_lose_only_what_their_rounding_loses(d: Any, tolerance: float) -> None:
    f = functools.partial(F.scaled_dot_product_attention, is_causal=True, scale=0.3)
    check_training(f, [normal(1, 2, 70, 32).astype(d) for _ in range(3)], tolerance)


@pytest.mark.parametrize("mask_shape", [(40, 70), (2, 1, 1, 70), (1, 3, 40, 1)])
def test_a_boolean_mask_is_read_where_it_lies_and_a_row_without_allowed_keys_gives_zeros(mask_shape: tuple[int, ...]) -> None:
    mask = rng.random(mask_shape) < 0.6
    mask[..., 0, :] = False
    f = F.scaled_dot_product_attention
    plan = check_training(f, [normal(2, 3, 40, 16), normal(2, 3, 70, 16), normal(2, 3, 70, 16), mask], 2e-6)
    out = run_interpreted_triton(plan, [normal(2, 3, 40, 16), normal(2, 3, 70, 16), normal(2, 3, 70, 16), mask, normal(2, 3, 40, 16)])[0]
    assert not out[:, :, 0].any()


def test_a_float_mask_is_added_and_its_own_gradient_comes_from_the_parts() -> None:
    f = F.scaled_dot_product_attention
    check_training(f, [normal(1, 2, 33, 16), normal(1, 2, 20, 16), normal(1, 2, 20, 16), normal(2, 33, 20)], 2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_share_keys_and_values(causal: bool) -> None:
    f = functools.partial(F.scaled_dot_product_attention, is_causal=causal, enable_gqa=True)
    check_training(f, [normal(2, 6, 40, 16), normal(2, 2, 40, 16), normal(2, 2, 40, 16)], 2e-6)


def packed(qkv: Any) -> Any:
    """As models write it: one matrix for query, key and value, heads merged behind."""
    q, k, v = qkv.view(2, 40, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 40, 32)


def test_packed_heads_are_read_by_stride_without_copies() -> None:
    plan = check_training(packed, [normal(2, 40, 96)], 2e-6)
    forward = next(k for k in plan.kernels if k.body)
    assert [b.name for b in forward.buffers if b.role == "input"] == ["x0"]


def test_forward_alone_keeps_nothing_for_a_backward_pass() -> None:
    plan = schedule(optimize(graph_of(packed, normal(2, 40, 96)), gpu=True), "f", gpu=True)[0]
    (attention,) = [k for k in plan.kernels if k.body]
    assert len(attention.buffers) == 2 and "LSE=False" in emit(attention).source


def test_the_gradient_of_values_alone_writes_no_gradient_of_keys() -> None:
    q, k, v = (normal(1, 1, 20, 16) for _ in range(3))
    joint = training(F.scaled_dot_product_attention, q, k, v)
    plan, _ = schedule(optimize(replace(joint, outputs=joint.outputs[3:], targets=(None,)), gpu=True), "f", gpu=True)
    g = normal(1, 1, 20, 16)
    np.testing.assert_allclose(
        run_interpreted_triton(plan, [q, k, v, g])[0], expected(F.scaled_dot_product_attention, g, q, k, v)[3], atol=1e-5
    )
    assert "DK=False" in emit(plan.kernels[-1]).source


def test_the_logarithms_of_row_sums_alone() -> None:
    q, k = normal(2, 33, 16), normal(2, 20, 16)
    graph = graph_of(lambda q, k: OPS["sdpa_lse"](q, k, k, is_causal=True, scale=0.5, enable_gqa=False), q, k)
    plan = schedule(optimize(graph, gpu=True), "f", gpu=True)[0]
    scores = np.where(np.tri(33, 20) > 0, q.astype(np.float64) @ k.swapaxes(-2, -1) * 0.5, -np.inf)
    np.testing.assert_allclose(run_interpreted_triton(plan, [q, k])[0], np.log(np.exp(scores).sum(-1)), rtol=1e-5, atol=1e-6)
    assert "OUT=False" in emit(plan.kernels[0]).source


# ------------------------------------------------------------------------------------------------ tensor maps


def halves(*shape: int, d: Any = ml_dtypes.bfloat16) -> np.ndarray:
    return normal(*shape).astype(d)


def mapped(plan: Plan) -> dict[str, list[str]]:
    """The operands of each attention kernel that tensor maps move on Hopper."""
    found = [(k.body.part, emit(k).maps) for k in plan.kernels if isinstance(k.body, Attention)]
    return {part: [name.removesuffix("_map") for name in maps] for part, maps in found}


ALL = {"forward": ["q", "k", "v"], "query_gradient": ["g", "q", "k", "v"], "key_gradient": ["g", "q", "k", "v"]}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 70, 32), (2, 3, 70, 32), (2, 3, 70, 32)),
        ((1, 2, 37, 64), (1, 2, 91, 64), (1, 2, 91, 40)),
        ((2, 20, 48), (2, 90, 48), (2, 90, 48)),
        ((150, 32), (140, 32), (140, 32)),
        ((2, 1, 17, 256), (2, 1, 40, 256), (2, 1, 40, 256)),
    ],
)
def test_heads_of_16_bit_numbers_come_by_tensor_maps_with_zeros_beyond_their_ends(shapes: Any, causal: bool) -> None:
    plan = check_training(functools.partial(F.scaled_dot_product_attention, is_causal=causal), [halves(*s) for s in shapes], 1e-2)
    assert mapped(plan) == ALL


@pytest.mark.parametrize("shared", [2, 1])
def test_shared_heads_come_by_tensor_maps(shared: int) -> None:
    f = functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    plan = check_training(f, [halves(2, 6, 40, 32), halves(2, shared, 40, 32), halves(2, shared, 40, 32)], 1e-2)
    assert mapped(plan) == ALL


def wide_packed(qkv: Any) -> Any:
    q, k, v = qkv.view(2, 70, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 70, 64)


@pytest.mark.parametrize("d,tolerance", [(ml_dtypes.bfloat16, 1e-2), (np.float16, 2e-3)])
def test_packed_heads_are_maps_of_one_buffer_by_its_strides(d: Any, tolerance: float) -> None:
    plan = check_training(wide_packed, [halves(2, 70, 192, d=d)], tolerance)
    assert mapped(plan) == ALL
    maps = emit(next(k for k in plan.kernels if k.body)).maps
    assert {m.strides for m in maps.values()} == {(70 * 192, 32, 192, 1)} and [m.start for m in maps.values()] == [0, 64, 128]
    assert len({m.buffer for m in maps.values()}) == 1


def test_all_forms_of_a_kernel_agree() -> None:
    x = halves(1, 2, 150, 64)
    attend = functools.partial(F.scaled_dot_product_attention, is_causal=True)
    kernels = schedule(optimize(training(attend, x, x, x), gpu=True), "f", gpu=True)[0].kernels
    for kernel in [k for k in kernels if isinstance(k.body, Attention)]:
        results = []
        for form in emit_choices(kernel, "cuda:100"):
            arrays = [np.random.default_rng(i).standard_normal(b.size).astype(b.dtype.np) for i, b in enumerate(kernel.buffers)]
            interpreter.run(form, arrays)
            results.append([a.astype(np.float64) for a in arrays])
        assert len(results) == (5 if kernel.body.part == "forward" else 4)  # type: ignore[union-attr]
        for arrays in results[1:]:
            for found, first in zip(arrays, results[0], strict=True):
                np.testing.assert_allclose(found, first, rtol=1e-2, atol=1e-2 * np.abs(first).max())


def test_maps_and_pointers_read_the_same_numbers() -> None:
    for part in ALL:
        kernel = next(
            k for k in schedule(optimize(training(wide_packed, halves(2, 70, 192)), gpu=True), "f", gpu=True)[0].kernels
            if isinstance(k.body, Attention) and k.body.part == part
        )  # fmt: skip
        results = []
        for maps in (True, False):
            arrays = [np.random.default_rng(i).standard_normal(b.size).astype(b.dtype.np) for i, b in enumerate(kernel.buffers)]
            tk = emit(kernel, maps=maps)
            assert bool(tk.maps) == maps
            interpreter.run(tk, arrays)
            results.append(arrays)
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=part)


def test_what_tensor_maps_cannot_reach_is_read_through_pointers() -> None:
    attend = functools.partial(F.scaled_dot_product_attention, is_causal=True)
    cases: dict[str, tuple[Any, list[np.ndarray], list[str]]] = {
        "rows of 40 bytes": (attend, [halves(1, 2, 20, 20)] * 3, []),
        "columns apart": (lambda q, k: attend(q, k.mT, q), [halves(1, 2, 24, 32), halves(1, 2, 32, 24)], ["q", "v"]),
        "three stacks": (attend, [halves(2, 2, 2, 20, 32)] * 3, []),
        "one query": (attend, [halves(1, 2, 1, 32), halves(1, 2, 20, 32), halves(1, 2, 20, 32)], ["k", "v"]),
        "float32": (attend, [normal(1, 2, 20, 32)] * 3, []),
    }  # fmt: skip
    for name, (f, arrays, wanted) in cases.items():
        plan, _ = schedule(optimize(graph_of(f, *arrays), gpu=True), "f", gpu=True)
        assert mapped(plan)["forward"] == wanted, name
        np.testing.assert_allclose(
            *[x[0].astype(float) for x in (run_interpreted_triton(plan, arrays), run_plan(plan, arrays))], atol=2e-2, err_msg=name
        )
    kernel = next(k for k in schedule(optimize(graph_of(wide_packed, halves(2, 70, 192)), gpu=True), "f", gpu=True)[0].kernels if k.body)
    assert not any(emit(kernel, target).maps for target in ("cuda:80", "cuda:120", "hip:gfx942")) and emit(kernel, "cuda:100").maps


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
def test_launches_carry_the_heads_maps_and_unaligned_heads_get_a_kernel_without() -> None:
    host = torch.randn(2, 70, 192).bfloat16()
    wanted = wide_packed(host).float().numpy()
    with stand_in() as gpu:
        memory = torch.zeros(host.numel() + 16, dtype=torch.bfloat16).cuda()
        f = torch.compile(wide_packed)
        for start in (0, 8, 3, 0, 0, 0):  # launched one by one, then as a graph
            x = memory[start : start + host.numel()].view(2, 70, 192)
            x.copy_(host.cuda())
            np.testing.assert_allclose(f(x).float().cpu().numpy(), wanted, rtol=2e-2, atol=2e-2)
        found = {bool(k.maps) for k in gpu.kernels.values() if k.name.startswith("attention")}
        assert found == {True, False} and gpu.maps >= 3


# ------------------------------------------------------------------------------------------------ choice


def test_dropout_wide_heads_and_float64_are_left_to_the_parts_with_a_reason() -> None:
    q = normal(1, 2, 8, 16)
    cases = {
        "dropped at random": (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), q),
        "300 wide": (lambda x: F.scaled_dot_product_attention(x, x, x), normal(1, 2, 8, 300)),
        "float64": (lambda x: F.scaled_dot_product_attention(x, x, x), q.astype(np.float64)),
        "broadcast": (lambda x: F.scaled_dot_product_attention(x, x[0], x[0]), q),
    }
    for why, (f, x) in cases.items():
        graph = graph_of(f, x)
        assert [why in text for _, text, _ in refusals(graph, gpu=True)] == [True], why
        plan = schedule(optimize(graph, gpu=True), "f", gpu=True)[0]
        assert not any(k.body for k in plan.kernels)


def test_a_kernel_as_text_makes_the_same_kernel_again() -> None:
    kernel = next(k for k in schedule(optimize(graph_of(packed, normal(2, 40, 96)), gpu=True), "f", gpu=True)[0].kernels if k.body)
    names: dict[str, Any] = {}
    exec(loop_text.PRELUDE + loop_text.to_python(kernel), names)
    assert names["kernel"] == kernel
    assert "Attention(part='forward'" in loop_text.to_text(kernel)


def test_kernels_of_a_training_function_show_three_attention_kernels_for_a_gpu_and_two_for_the_cpu() -> None:
    x = torch.randn(2, 40, 96, requires_grad=True)

    def step(x: Any) -> Any:
        packed(x).sum().backward()

    names = [k.name for k in kernels(step, x, target="cuda:90")]
    assert sum(n.startswith("sdpa") for n in names) == 3
    assert sum(k.name.startswith("sdpa") for k in kernels(step, x, target="cpu")) == 2  # all gradients come from one
    assert x.grad is None


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
def test_a_training_step_on_the_device_runs_three_fused_kernels_and_explains_what_it_left_out() -> None:
    torch.manual_seed(0)
    host = torch.randn(2, 40, 96)
    wanted = torch.tensor(host.numpy(), requires_grad=True)
    packed(wanted).square().sum().backward()
    with stand_in() as gpu:
        x = host.cuda().requires_grad_()
        compiled = torch.compile(lambda x: packed(x).square().sum())
        compiled(x).backward()
        np.testing.assert_allclose(x.grad.cpu().numpy(), wanted.grad.numpy(), atol=1e-4)
        assert sum(n.startswith("attention") for n in gpu.runs) == 3
        dropped = torch.compile(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5))
        dropped(host.cuda())
        assert "its weights are dropped at random" in str(torch.explain(dropped)(host.cuda()))


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
def test_the_dumped_kernel_runs_alone_and_checks_itself(tmp_path: Path) -> None:
    with stand_in(), torch.debug.dump(str(tmp_path)):
        torch.compile(packed)(torch.randn(2, 40, 96).cuda())
    (script,) = tmp_path.glob("*/6_kernels/*sdpa*_run.py")
    assert not list(tmp_path.glob("*/6_kernels/*sdpa*.c"))
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0 and done.stdout.count("ok    Triton") == 2, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------ offline


def canonical(part: str, d: int, kind: torch.dtype) -> Any:
    """A kernel of a causal training step, 4 x 8 heads of 1024."""
    q = np.zeros((4, 8, 1024, d), kind.np)
    joint = training(functools.partial(F.scaled_dot_product_attention, is_causal=True), q, q, q)
    plan, _ = schedule(optimize(joint, gpu=True), "f", gpu=True)
    return next(k for k in plan.kernels if isinstance(k.body, Attention) and k.body.part == part)


@pytest.mark.parametrize("d", [64, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["forward", "query_gradient", "key_gradient"])
def test_heads_use_tensor_cores_and_tensor_maps_without_spills_or_waits_between_products_on_sm90(part: str, d: int) -> None:
    built = compile_kernel(emit(canonical(part, d, torch.bfloat16)), "cuda:90")
    assert {"HGMMA", "UTMALDG"} <= set(re.findall(r"\b(HGMMA|UTMALDG)\b", built.sass or "")), built.sass
    assert "wgmma" in (built.ptx or "") and built.flaw == 0
    assert built.flops and built.roofline_us
    pointers = compile_kernel(emit(canonical(part, d, torch.bfloat16), maps=False), "cuda:90")
    assert "UTMALDG" not in (pointers.sass or "") and pointers.flaw == 0


@pytest.mark.parametrize("part", ["forward", "query_gradient", "key_gradient"])
def test_heads_use_tensor_maps_on_blackwell(part: str) -> None:
    built = compile_kernel(emit(canonical(part, 64, torch.bfloat16), "cuda:100"), "cuda:100")
    assert "UTMALDG" in (built.sass or "") and "UTCHMMA" in (built.sass or "") and built.spill_bytes == 0


def test_warps_with_different_work_are_an_alternate_on_blackwell() -> None:
    kernel = canonical("forward", 64, torch.bfloat16)
    forms = list(emit_choices(kernel, "cuda:100"))
    special = [f for f in forms if "SPECIALISE=True" in f.source]
    assert len(forms) == 5 and special == forms[-1:]
    assert not any("SPECIALISE=True" in f.source for f in emit_choices(kernel, "cuda:90"))
    built = compile_kernel(special[0], "cuda:100")
    assert built.flaw == 0 and built.num_warps > special[0].num_warps and "setmaxnreg" in (built.ptx or "")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
@pytest.mark.parametrize("d,kind", [(32, torch.float16), (128, torch.bfloat16), (256, torch.bfloat16), (128, torch.float32)])
def test_every_width_compiles_for_every_family_of_devices_within_its_shared_memory(target: str, d: int, kind: torch.dtype) -> None:
    for part in ("forward", "query_gradient", "key_gradient"):
        built = compile_kernel(emit(canonical(part, d, kind), target), target)
        assert built.shared_bytes <= MACHINES[target].shared_bytes, part
        if target == "cuda:90":
            assert built.spill_bytes <= (64 if kind is torch.float32 else 0), part  # three products for one crowd the registers
