"""Attention on the CPU: the kernel that never holds all weights, against float64, whatever shape, mask, stride and number of threads."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph_of

import torchlet as torch
from torchlet import nn
from torchlet.compiler import loop_text
from torchlet.compiler.attention import Attention
from torchlet.compiler.execute import compile_plan, optimize
from torchlet.compiler.function import kernels
from torchlet.compiler.interpret import interpret_kernel
from torchlet.compiler.schedule import schedule

F = nn.functional
sdpa = F.scaled_dot_product_attention
rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def allowed(*shape: int) -> np.ndarray:
    mask = rng.random(shape) < 0.6
    mask[..., min(3, shape[-2] - 1), :] = False  # a query that may look at nothing
    return mask


def packed(qkv: Any, heads: int = 2) -> Any:
    """As models write it: one matrix for query, key and value, heads merged behind."""
    n, t, width = qkv.shape
    q, k, v = qkv.view(n, t, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return sdpa(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, width // 3)


def turned(q: Any, k: Any, v: Any) -> Any:
    """The width is not the dimension that lies together."""
    return sdpa(q.transpose(-2, -1), k.transpose(-2, -1), v.transpose(-2, -1)).transpose(-2, -1)


def heads_last(q: Any, k: Any, v: Any) -> Any:
    return sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True).transpose(1, 2)


def mask_turned(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return sdpa(q, k, v, mask.transpose(0, 1))


causal = functools.partial(sdpa, is_causal=True)
grouped = functools.partial(sdpa, enable_gqa=True)
Case = tuple[Callable[..., Any], list[np.ndarray]]


def same(f: Callable[..., Any], q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *mask: np.ndarray) -> Case:
    return f, [normal(*q), normal(*k), normal(*v), *mask]


WINDOW = np.abs(np.subtract.outer(np.arange(300), np.arange(310))) < 20
SQUARES = np.equal.outer(np.arange(300) // 90, np.arange(310) // 90)
CASES: dict[str, Case] = {
    "full": same(sdpa, (2, 3, 48, 16), (2, 3, 48, 16), (2, 3, 48, 16)),
    "causal": same(causal, (2, 3, 48, 16), (2, 3, 48, 16), (2, 3, 48, 16)),
    "odd lengths and widths": same(sdpa, (1, 2, 37, 24), (1, 2, 91, 24), (1, 2, 91, 9)),
    "causal, odd lengths and widths": same(causal, (1, 2, 37, 24), (1, 2, 91, 24), (1, 2, 91, 9)),
    "causal, more queries than keys": same(causal, (1, 2, 91, 33), (1, 2, 37, 33), (1, 2, 37, 33)),
    "several blocks, one head": same(sdpa, (1, 1, 300, 40), (1, 1, 270, 40), (1, 1, 270, 72)),
    "causal, several blocks, one head": same(causal, (1, 1, 530, 16), (1, 1, 530, 16), (1, 1, 530, 16)),
    "three heads for two threads": same(causal, (1, 3, 260, 16), (1, 3, 260, 16), (1, 3, 260, 16)),
    "no heads": same(sdpa, (20, 8), (33, 8), (33, 8)),
    "three dimensions": same(causal, (2, 20, 16), (2, 20, 16), (2, 20, 16)),
    "five dimensions": same(sdpa, (2, 1, 3, 20, 8), (2, 1, 3, 9, 8), (2, 1, 3, 9, 8)),
    "one query": same(sdpa, (2, 2, 1, 16), (2, 2, 40, 16), (2, 2, 40, 16)),
    "one key": same(causal, (2, 2, 20, 16), (2, 2, 1, 16), (2, 2, 1, 16)),
    "width of one": same(sdpa, (2, 2, 20, 1), (2, 2, 20, 1), (2, 2, 20, 1)),
    "wide heads": same(causal, (1, 1, 40, 200), (1, 1, 40, 200), (1, 1, 40, 300)),
    "wide heads, few keys": same(sdpa, (2, 3, 48, 64), (2, 3, 48, 64), (2, 3, 48, 64)),
    "shared wide heads, few keys": same(grouped, (1, 4, 100, 128), (1, 2, 100, 128), (1, 2, 100, 64)),
    "boolean mask": same(sdpa, (2, 3, 40, 16), (2, 3, 70, 16), (2, 3, 70, 16), allowed(40, 70)),
    "boolean mask of keys": same(sdpa, (2, 3, 40, 16), (2, 3, 70, 16), (2, 3, 70, 16), rng.random((2, 1, 1, 70)) < 0.6),
    "boolean mask of queries": same(sdpa, (2, 3, 40, 16), (2, 3, 70, 16), (2, 3, 70, 16), rng.random((1, 3, 40, 1)) < 0.6),
    "causal as a mask": same(sdpa, (1, 3, 300, 16), (1, 3, 310, 16), (1, 3, 310, 16), np.tri(300, 310) > 0),
    "a window as a mask": same(sdpa, (1, 3, 300, 16), (1, 3, 310, 16), (1, 3, 310, 16), WINDOW),
    "squares as a mask": same(grouped, (1, 2, 300, 16), (1, 1, 310, 16), (1, 1, 310, 16), SQUARES),
    "a mask turned": same(mask_turned, (1, 3, 300, 16), (1, 3, 310, 16), (1, 3, 310, 16), np.tri(310, 300) == 0),
    "added mask": same(sdpa, (1, 2, 33, 16), (1, 2, 300, 16), (1, 2, 300, 16), normal(2, 33, 300)),
    "shared heads": same(grouped, (2, 6, 40, 16), (2, 2, 40, 16), (2, 2, 40, 16)),
    "causal, shared heads": same(functools.partial(grouped, is_causal=True), (1, 6, 260, 16), (1, 3, 260, 16), (1, 3, 260, 16)),
    "shared heads with a mask": same(grouped, (1, 4, 40, 16), (1, 2, 50, 16), (1, 2, 50, 16), allowed(1, 4, 40, 50)),
    "packed": (packed, [normal(2, 40, 96)]),
    "turned": same(turned, (1, 2, 16, 40), (1, 2, 16, 50), (1, 2, 16, 50)),
    "heads last": same(heads_last, (2, 40, 3, 16), (2, 40, 3, 16), (2, 40, 3, 16)),
    "negative scale": same(functools.partial(sdpa, scale=-0.3), (1, 2, 20, 8), (1, 2, 20, 8), (1, 2, 20, 8)),
}  # fmt: skip
SEEDS = [normal(*f(*map(torch.tensor, arrays)).shape) for f, arrays in CASES.values()]


def gradients(inputs: list[list[Any]], seeds: list[Any]) -> list[list[Any]]:
    """For each case its result and the gradients of query, key and value."""
    found = []
    for (f, _), arrays, g in zip(CASES.values(), inputs, seeds, strict=True):
        leaves = [x.detach().requires_grad_() for x in arrays[:3]]
        out = f(*leaves, *arrays[3:])
        found.append([out.detach(), *torch.autograd.grad(out, leaves, g)])
    return found


@pytest.fixture(scope="module", params=[1, 2, 3])
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, list[np.ndarray]]]:
    """All cases compiled together, as a number of threads runs them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    inputs = [[torch.tensor(a) for a in arrays] for _, arrays in CASES.values()]
    found = compiled_gradients(inputs, [torch.tensor(g) for g in SEEDS])
    yield {name: [t.numpy() for t in case] for name, case in zip(CASES, found, strict=True)}
    torch.set_num_threads(before)


compiled_gradients = torch.compile(gradients)


@functools.cache
def exact() -> dict[str, list[np.ndarray]]:
    """The same in float64, operator by operator."""
    wide = [[torch.tensor(a if a.dtype == bool else a.astype(np.float64)) for a in arrays] for _, arrays in CASES.values()]
    found = gradients(wide, [torch.tensor(g.astype(np.float64)) for g in SEEDS])
    return {name: [t.numpy() for t in case] for name, case in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_result_and_gradients_are_those_of_float64(name: str, results: dict[str, list[np.ndarray]]) -> None:
    for found, wanted in zip(results[name], exact()[name], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * max(np.abs(wanted).max(), 0.1))


def test_all_of_them_ran_in_the_kernel() -> None:
    for f, arrays in CASES.values():
        plan = schedule(optimize(graph_of(f, *arrays)), "f")[0]
        assert [k.body.part for k in plan.kernels if isinstance(k.body, Attention)] == ["forward"]


@pytest.mark.slow
@pytest.mark.parametrize("f", [sdpa, causal])
def test_a_long_sequence_is_as_exact_as_the_product_of_all_weights(f: Callable[..., Any]) -> None:
    arrays = [normal(2, 4, 1000, 64) for _ in range(3)]
    g = normal(2, 4, 1000, 64)

    def run(*arrays: Any) -> list[np.ndarray]:
        *leaves, seed = [torch.tensor(a) for a in arrays]
        leaves = [x.requires_grad_() for x in leaves]
        out = compiled(*leaves) if arrays[0].dtype == np.float32 else f(*leaves)
        return [t.detach().numpy() for t in (out, *torch.autograd.grad(out, leaves, seed))]

    compiled = torch.compile(lambda *x: f(*x))
    for found, wanted in zip(run(*arrays, g), run(*(a.astype(np.float64) for a in (*arrays, g))), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


# ------------------------------------------------------------------------------------------------ special values


def both(f: Callable[..., Any], *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(compiled, at once)."""
    with np.errstate(all="ignore"):
        return torch.compile(f)(*map(torch.tensor, arrays)).numpy(), f(*map(torch.tensor, arrays)).numpy()


def test_infinities_and_nan_reach_the_rows_that_they_reach_without_the_kernel() -> None:
    q, k, v = (normal(1, 1, 40, 16) for _ in range(3))
    q[0, 0, 3, 2], q[0, 0, 5, 1], k[0, 0, 30, 4], v[0, 0, 0, 7] = np.nan, np.inf, -np.inf, np.inf
    found, wanted = both(lambda *x: causal(*x), q, k, v)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_mask_that_adds_the_most_negative_number_everywhere_gives_the_mean() -> None:
    q, k, v = (normal(1, 1, 20, 16) for _ in range(3))
    mask = np.zeros((20, 20), np.float32)
    mask[4] = np.finfo(np.float32).min
    mask[5] = -np.inf
    mask[6, 3:] = -1e9
    found, wanted = both(lambda *x: sdpa(*x), q, k, v, mask)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0, 0, 4], v.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    assert not found[0, 0, 5].any()


def test_a_query_that_may_look_at_nothing_gives_zeros_and_no_gradient() -> None:
    q, k, v = (torch.tensor(normal(1, 1, 20, 16), requires_grad=True) for _ in range(3))
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[7] = False
    out = torch.compile(lambda *x: sdpa(*x))(q, k, v, mask)
    assert not out[0, 0, 7].detach().numpy().any()
    out.sum().backward()
    assert not q.grad[0, 0, 7].numpy().any() and np.isfinite(k.grad.numpy()).all()


# ------------------------------------------------------------------------------------------------ plans


def test_all_weights_are_never_in_memory() -> None:
    def step(q: Any, k: Any, v: Any) -> list[Any]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return list(torch.autograd.grad(causal(*leaves).square().sum(), leaves))

    found = kernels(step, *(torch.zeros(1, 1, 512, 8) for _ in range(3)), target="cpu")
    assert max(b.size for k in found for b in k.kernel.buffers) < 512 * 512


def test_packed_heads_are_read_by_stride_without_copies() -> None:
    forward = next(k for k in schedule(optimize(graph_of(packed, normal(2, 40, 96))), "f")[0].kernels if k.body)
    assert [b.name for b in forward.buffers if b.role == "input"] == ["x0"]


def test_what_the_kernel_does_not_take_is_computed_by_its_parts_with_a_reason() -> None:
    q = torch.randn(1, 2, 8, 16)
    for f, x, why in (
        (lambda x: sdpa(x, x, x, dropout_p=0.5), q, "its weights are dropped at random"),
        (lambda x: sdpa(x, x, x), q.double(), "its dtype is float64"),
        (lambda x: sdpa(x, x, x), q.half(), "its dtype is float16"),
        (lambda x: sdpa(x, x[0], x[0]), q, "query, key and value are broadcast"),
        (lambda x: sdpa(x, x, x), q.view(1, 1, 1, 1, 1, 1, 2, 8, 16), "it has 9 dimensions; the kernel takes 8"),
    ):
        compiled = torch.compile(f)
        compiled(x)
        assert why in str(torch.explain(compiled)(x))


def test_the_kernel_in_c_is_what_its_meaning_in_numpy_says() -> None:
    arrays = [normal(2, 4, 30, 12), normal(2, 2, 50, 12), normal(2, 2, 50, 20), allowed(30, 50)]
    plan = schedule(optimize(graph_of(grouped, *arrays)), "f")[0]
    out, meant = np.zeros((2, 4, 30, 20), np.float32), np.zeros(2 * 4 * 30 * 20, np.float32)
    compile_plan(plan).run([a.ctypes.data for a in arrays], [out.ctypes.data])
    (kernel,) = plan.kernels
    by_name = dict(zip((b.name for b in kernel.buffers), [*(a.reshape(-1) for a in arrays), meant], strict=True))
    interpret_kernel(kernel, list(by_name.values()))
    np.testing.assert_allclose(out.reshape(-1), meant, atol=2e-6)


def test_a_kernel_as_text_makes_the_same_kernel_again() -> None:
    kernel = next(k for k in schedule(optimize(graph_of(packed, normal(2, 40, 96))), "f")[0].kernels if k.body)
    names: dict[str, Any] = {}
    exec(loop_text.PRELUDE + loop_text.to_python(kernel), names)
    assert names["kernel"] == kernel


def test_the_dumped_kernels_run_alone_and_check_themselves(tmp_path: Path) -> None:
    x = torch.randn(2, 40, 96, requires_grad=True)
    with torch.debug.dump(str(tmp_path)):
        torch.compile(lambda x: packed(x).square().sum())(x).backward()
    scripts = sorted(tmp_path.glob("*/6_kernels/*sdpa*_run.py"))
    assert len(scripts) == 2 and len(list(tmp_path.glob("*/6_kernels/*sdpa*.c"))) == 2
    for script in scripts:
        done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0 and done.stdout.count("ok    C") >= 2, done.stdout + done.stderr
