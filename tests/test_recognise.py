"""Attention written out by hand: recognised where a kernel takes it, with its gradients and its NaN, and left alone elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphs import graph_of
from standin import CC, stand_in

import torchlet as torch
from torchlet.compiler import claim
from torchlet.compiler.attention import Attention
from torchlet.compiler.differentiate import differentiate
from torchlet.compiler.emulate import run_interpreted_triton, run_plan
from torchlet.compiler.execute import optimize
from torchlet.compiler.function import kernels
from torchlet.compiler.graph import Graph, Node, verify
from torchlet.compiler.interpret import interpret
from torchlet.compiler.recognise import recognise
from torchlet.compiler.schedule import schedule
from torchlet.nn import functional as F

rng = np.random.default_rng(5)
Array = np.ndarray[Any, Any]


def on_gpus(n: Node) -> bool:
    return claim.claims(n, gpu=True)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def scaled(q: Any, k: Any, v: Any) -> Any:
    return F.softmax((q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(q.shape[-1])), dim=-1) @ v


def divided(q: Any, k: Any, v: Any) -> Any:
    return ((q @ k.mT) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def query_scaled(q: Any, k: Any, v: Any) -> Any:
    return torch.matmul(F.softmax(torch.matmul(q * 0.3, k.permute(0, 1, 3, 2)), dim=3), v)


def filled(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """As in nanoGPT, where the mask is a buffer."""
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(mask[..., : q.shape[-2], : k.shape[-2]] == 0, float("-inf"))
    return F.dropout(F.softmax(att, dim=-1), 0.0) @ v


def filled_twice(q: Any, k: Any, v: Any, mask: Any) -> Any:
    causal = torch.triu(torch.full((q.shape[-2], k.shape[-2]), 1, dtype=torch.bool), diagonal=1)
    scores = torch.where(causal, -math.inf, q @ k.transpose(-2, -1))
    return torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ v


def added(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return F.softmax(mask + q @ k.transpose(-2, -1) / 4, dim=-1) @ v


def triangular(q: Any, k: Any, v: Any) -> Any:
    scores = q @ k.transpose(-2, -1) / 4 + torch.triu(torch.full((q.shape[-2], k.shape[-2]), -math.inf), diagonal=1)
    return F.softmax(scores, dim=-1) @ v


def training(f: Callable[..., Any], *arrays: Array, count: int = 3) -> Graph:
    """f's result, and the gradients of the first `count` inputs for a gradient that is the last input."""
    forward = graph_of(f, *arrays)
    joint, _, _ = differentiate(forward, [forward.outputs[0]], forward.inputs[:count])
    return replace(joint, output_names=())


def whole(graph: Graph) -> Graph:
    """The graph with its attention recognised; nothing of the written form is left."""
    refused: list[Any] = []
    found = recognise(graph, on_gpus, refused)
    verify(found)
    names = [n.op.name for n in found.nodes() if n.op]
    assert not refused and "softmax" not in names and "matmul" not in names and "sdpa" in names
    return found


def eager(f: Callable[..., Any], g: Array, *arrays: Array) -> list[Array]:
    """The same in float64, operator by operator."""
    wide = [torch.tensor(a.astype(np.float64) if i < 3 else a, requires_grad=i < 3) for i, a in enumerate(arrays)]
    out = f(*wide)
    return [t.detach().numpy() for t in (out, *torch.autograd.grad(out, wide[:3], torch.tensor(g.astype(np.float64))))]


def compare(found: list[Array], wanted: list[Array], tolerance: float = 3e-6) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=tolerance * np.abs(np.nan_to_num(b)).max(), equal_nan=True)


QKV = [(2, 3, 20, 16), (2, 3, 33, 16), (2, 3, 33, 9)]
MASK = rng.random((20, 33)) > 0.3
MASK[:, 0] = True
FORMS: dict[str, tuple[Callable[..., Any], list[Array]]] = {
    "scaled": (scaled, []), "divided": (divided, []), "scaled query": (query_scaled, []), "triangle in the graph": (triangular, []),
    "mask as a buffer": (filled, [MASK.astype(np.float32)]), "two masks": (filled_twice, [MASK]),
    "bias for each head": (added, [normal(3, 20, 33)]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_each_written_form_becomes_one_operator_with_the_gradients_of_float64(name: str) -> None:
    f, more = FORMS[name]
    arrays = [*map(lambda s: normal(*s), QKV), *more]
    joint = training(f, *arrays)
    g = normal(2, 3, 20, 9)
    wanted = eager(f, g, *arrays)
    compare(interpret(whole(joint), [*arrays, g]), wanted)
    plan, _ = schedule(optimize(joint, gpu=True), "f", gpu=True)
    assert sorted(k.body.part for k in plan.kernels if isinstance(k.body, Attention)) == ["forward", "key_gradient", "query_gradient"]
    for run in (run_interpreted_triton, run_plan):
        compare(run(plan, [*arrays, g]), wanted)


def test_a_mask_is_causal_only_where_the_graph_says_so() -> None:
    def attributes(f: Callable[..., Any], *more: Array) -> Any:
        graph = whole(graph_of(f, *map(lambda s: normal(*s), QKV), *more))
        return [(n.attrs[0], len(n.inputs)) for n in graph.nodes() if n.op and n.op.name == "sdpa"]

    assert attributes(triangular) == [(True, 6)]
    assert attributes(filled, np.tri(20, 33, dtype=np.float32)) == [(False, 7)]
    assert attributes(lambda q, k, v: filled(q, k, v, torch.tril(torch.full((20, 33), 1.0)))) == [(True, 6)]
    assert attributes(lambda q, k, v: filled(q, k, v, torch.tril(torch.full((20, 33), 1.0), diagonal=1))) == [(False, 7)]


@pytest.mark.parametrize("name", ["boolean", "added"])
@pytest.mark.parametrize("poisoned", [False, True])
def test_rows_that_may_look_at_nothing_stay_nan_and_so_do_the_gradients_that_were(name: str, poisoned: bool) -> None:
    mask = np.array(MASK[None].repeat(2, 0)[:, None])
    mask[0, 0, 7] = mask[0, 0, 19] = False  # in one of two batches
    f = filled if name == "boolean" else added
    arrays = [*map(lambda s: normal(*s), QKV), mask if name == "boolean" else np.where(mask, 0, -np.inf).astype(np.float32)]
    g = normal(2, 3, 20, 9)
    if poisoned:  # what a loss makes of NaN
        g[0, :, 7] = np.nan
    joint = training(f, *arrays)
    wanted = eager(f, g, *arrays)
    assert np.isnan(wanted[0][0, 0, 7]).all() and np.isnan(wanted[3][0]).all() and not np.isnan(wanted[3][1]).any()
    compare(interpret(whole(joint), [*arrays, g]), wanted)
    plan, _ = schedule(optimize(joint, gpu=True), "f", gpu=True)
    for run in (run_interpreted_triton, run_plan):
        compare(run(plan, [*arrays, g]), wanted)


@pytest.mark.parametrize("d,tolerance", [(ml_dtypes.bfloat16, 1e-2), (np.float16, 2e-3)])
def test_sixteen_bit_attention_with_a_softmax_in_float32_as_autocast_writes_it(d: Any, tolerance: float) -> None:
    def f(q: Any, k: Any, v: Any, mask: Any) -> Any:
        scores = (q @ k.transpose(-2, -1)) * 0.25 + mask
        return F.softmax(scores.float(), dim=-1).to(v.dtype) @ v

    arrays = [normal(*s).astype(d) for s in QKV]
    mask = normal(20, 33)
    joint = training(f, *arrays, mask)
    g = normal(2, 3, 20, 9).astype(d)
    wanted = eager(lambda q, k, v, m: F.softmax(q @ k.transpose(-2, -1) * 0.25 + m.double(), dim=-1) @ v, g, *arrays, mask)
    plan, _ = schedule(optimize(joint, gpu=True), "f", gpu=True)
    assert sum(isinstance(k.body, Attention) for k in plan.kernels) == 3
    compare(interpret(whole(joint), [*arrays, mask, g]), wanted, tolerance)
    compare(run_interpreted_triton(plan, [*arrays, mask, g]), wanted, tolerance)


def test_a_temperature_that_is_a_number_of_the_call_scales_the_query() -> None:
    arrays = [normal(*s) for s in QKV]
    forward = graph_of(lambda q, k, v, t: F.softmax(q @ k.transpose(-2, -1) / t, dim=-1) @ v, *arrays, scalars=[3.0])
    joint, _, _ = differentiate(forward, [forward.outputs[0]], forward.inputs)
    found = whole(replace(joint, output_names=()))
    g = normal(2, 3, 20, 9)
    compare(interpret(found, [*arrays, g], [3.0]), eager(lambda q, k, v: F.softmax(q @ k.mT / 3, -1) @ v, g, *arrays))


# ------------------------------------------------------------------------------------------------ what is left


def weights_too(q: Any, k: Any, v: Any) -> Any:
    weights = F.softmax(q @ k.transpose(-2, -1), dim=-1)
    return weights @ v, weights


def capped(q: Any, k: Any, v: Any) -> Any:
    return F.softmax(q @ k.transpose(-2, -1), dim=-1).clamp(max=0.5) @ v


REFUSED: dict[str, tuple[Callable[..., Any], list[Array], str]] = {
    "the weights are returned": (weights_too, [], "used elsewhere"),
    "dropout": (lambda q, k, v: F.dropout(F.softmax(q @ k.mT, -1), 0.5, True) @ v, [], "dropped at random"),
    "a finite fill": (lambda q, k, v, m: F.softmax((q @ k.mT).masked_fill(m, -1e9), -1) @ v, [MASK], "gets -1000000000.0, not -inf"),
    "a scale after the mask": (lambda q, k, v, m: F.softmax((q @ k.mT + m) * 0.5, -1) @ v, [normal(20, 33)], "after its mask"),
    "two biases": (lambda q, k, v, m: F.softmax(q @ k.mT + m + m * 2, -1) @ v, [normal(20, 33)], "several masks"),
    "a scale for each head": (lambda q, k, v, s: F.softmax(q @ k.mT * s, -1) @ v, [normal(3, 1, 1)], "shape [3, 1, 1]"),
    "rounded scores": (lambda q, k, v: F.softmax((q @ k.mT).half(), -1).float() @ v, [], "rounded to float16"),
    "float64": (lambda q, k, v: F.softmax(q.double() @ k.double().mT, -1) @ v.double(), [], "float64"),
    "broadcast": (lambda q, k, v: F.softmax(q @ k[0].mT, -1) @ v, [], "no kernel takes it"),
    "softmax over queries": (lambda q, k, v: F.softmax(q @ k.mT, -2) @ v, [], ""),
    "something in between": (capped, [], ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_this_attention_is_left_as_it_is_and_says_why(name: str) -> None:
    f, more, why = REFUSED[name]
    graph = graph_of(f, *map(lambda s: normal(*s), QKV), *more)
    refused: list[tuple[str, str, str]] = []
    assert recognise(graph, on_gpus, refused) is graph
    assert [why in text for _, text, _ in refused] == ([True] if why else [])


def test_a_bias_that_learns_needs_the_scores_gradient_and_is_left() -> None:
    joint = training(added, *map(lambda s: normal(*s), QKV), normal(3, 20, 33), count=4)
    refused: list[tuple[str, str, str]] = []
    assert recognise(joint, on_gpus, refused) is joint and "used elsewhere" in refused[0][1]


def test_of_two_attentions_the_one_whose_weights_are_returned_is_left() -> None:
    def f(q: Any, k: Any, v: Any) -> Any:
        first = scaled(q, k, v)
        second, weights = weights_too(first, k[..., :16], v)
        return second, weights

    arrays = [normal(2, 3, 20, 16), normal(2, 3, 33, 16), normal(2, 3, 33, 16)]
    joint = training(f, *arrays)
    refused: list[tuple[str, str, str]] = []
    found = recognise(joint, on_gpus, refused)
    names = [n.op.name for n in found.nodes() if n.op]
    assert names.count("softmax") == 1 and names.count("sdpa") == 1 and names.count("sdpa_dk") == 1 and len(refused) == 1
    g = normal(2, 3, 20, 16)
    compare(interpret(found, [*arrays, g]), interpret(joint, [*arrays, g]), 1e-5)


# ------------------------------------------------------------------------------------------------ captured


class Attend(torch.nn.Module):
    """Attention as nanoGPT writes it where there is no fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.register_buffer("bias", torch.tril(torch.ones(24, 24)).view(1, 1, 24, 24))

    def forward(self, x: Any) -> Any:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(32, dim=2)
        q, k, v = (t.view(B, T, 2, C // 2).transpose(1, 2) for t in (q, k, v))
        return self.c_proj(filled(q, k, v, self.bias).transpose(1, 2).contiguous().view(B, T, C))


def step(model: Attend, x: Any) -> Any:
    loss = model(x).square().mean()
    loss.backward()
    return loss


def test_a_captured_training_step_has_the_three_kernels_of_attention_and_never_the_matrix_of_weights() -> None:
    model, x = Attend(), torch.randn(2, 20, 32)
    found = [k.name for k in kernels(step, model, x, target="cuda:90")]
    assert sum(n.startswith("sdpa") for n in found) == 3
    assert not any("softmax" in n for n in found)


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
@pytest.mark.parametrize("outside", [False, True])
def test_on_a_device_the_step_gives_what_eager_gives_whether_backward_is_inside_or_outside(outside: bool) -> None:
    torch.manual_seed(0)
    model, x = Attend(), torch.randn(2, 20, 32)
    wanted = step(model, x)
    grads = [p.grad.numpy().copy() for p in model.parameters()]
    with stand_in() as gpu:
        model.zero_grad()
        model, x = model.cuda(), x.cuda()
        if outside:
            loss = torch.compile(lambda x: model(x).square().mean())(x)
            loss.backward()
        else:
            loss = torch.compile(step)(model, x)
        assert sum(n.startswith("attention") for n in gpu.runs) == 3
        np.testing.assert_allclose(loss.cpu().item(), wanted.item(), rtol=1e-5)
        for p, g in zip(model.parameters(), grads, strict=True):
            np.testing.assert_allclose(p.grad.cpu().numpy(), g, atol=1e-6)


@pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")
def test_explain_says_why_attention_by_hand_was_left() -> None:
    with stand_in():
        f = torch.compile(lambda x: weights_too(x, x, x))
        x = torch.randn(2, 3, 8, 16).cuda()
        f(x)
        assert "attention by hand is computed by its parts" in str(torch.explain(f)(x))


def test_an_infinity_in_a_mask_is_part_of_the_program_and_a_finite_fill_of_another_call_is_not_taken_for_it() -> None:
    @torch.compile
    def f(x: Any, mask: Any, fill: float) -> Any:
        return x.masked_fill(mask, fill)

    x, mask = torch.ones(3), torch.tensor([True, False, False])
    for fill in (-math.inf, 2.0, -math.inf, math.inf, 3.0, 0.0, -0.0, math.nan, -math.inf):
        np.testing.assert_array_equal(f(x, mask, fill).numpy(), np.array([fill, 1, 1], np.float32))
    assert len(f.paths) <= 3
