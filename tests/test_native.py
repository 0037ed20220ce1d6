"""Operators that the C runtime takes as a whole: convolutions, the gradient of pooling, recurrent layers; against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn
from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.function import compiled_function, executables
from torchlet.ops.recurrent import MODES, recurrent_
from torchlet.runtime.cpu import get_num_threads, set_num_threads


@pytest.fixture(params=[1, 2, 3, 7], ids=lambda n: f"{n}threads")
def threads(request: pytest.FixtureRequest) -> Any:
    before = get_num_threads()
    set_num_threads(request.param)
    yield request.param
    set_num_threads(before)


def natives(f: Any) -> set[str]:
    """The operators that the runtime computed for a compiled function."""
    found = set()
    for path, _ in compiled_function(f).paths:
        for program in path.programs.values():
            for exe in executables(program):
                found |= {n.op.name for n in exe.natives if n.op is not None}
    return found


def check(function: Any, arrays: list[np.ndarray[Any, Any]], expected: set[str], scale: float = 2e-6, dtype: Any = torch.float32) -> None:
    """Result and gradients of `function` compiled in `dtype` are those of NumPy in float64; `expected` operators ran in the runtime."""

    def graded(dtype: Any) -> tuple[Any, list[Any], Any]:
        leaves = [torch.tensor(a, dtype=dtype).requires_grad_() for a in arrays]

        def run(*leaves: Any) -> tuple[Any, ...]:
            out = function(*leaves)
            g = torch.arange(out.numel(), dtype=dtype).reshape(out.shape).remainder(7) - 3  # exact in every dtype
            return (out.detach(), *torch.autograd.grad(out, leaves, g))

        return leaves, [], run

    leaves, _, run = graded(dtype)
    compiled = torch.compile(run)
    for _ in range(2):
        got = compiled(*leaves)
    exact, _, reference = graded(torch.float64)
    for a, b in zip(got, reference(*exact), strict=True):
        want = b.detach().numpy()
        tolerance = scale * max(1.0, float(np.abs(want).max())) if dtype is torch.float32 else 1e-12 * max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(a.detach().numpy(), want, rtol=0, atol=tolerance)
    assert natives(compiled) == expected


ALL = {"convolution", "convolution_transpose", "convolution_weight"}
CASES = [
    # x, weight, stride, padding, dilation, groups, operators of the runtime
    ((3, 2, 13, 11), (5, 2, 3, 3), 1, 1, 1, 1, ALL),
    ((2, 17, 12, 9), (15, 17, 3, 3), 1, 1, 1, 1, ALL),
    ((2, 33, 9, 10), (29, 33, 3, 3), 1, 1, 1, 1, ALL),
    ((2, 4, 17, 15), (6, 2, 3, 2), (2, 1), (1, 0), (1, 2), 2, ALL),
    ((1, 3, 19, 21), (7, 3, 5, 5), 2, 2, 1, 1, ALL),
    ((2, 3, 20, 22), (4, 3, 2, 2), 3, 0, 1, 1, ALL),  # positions that no window reaches
    ((2, 20, 14, 14), (20, 1, 3, 3), 1, 1, 1, 20, ALL),  # one filter a channel
    ((2, 16, 16, 16), (8, 16, 3, 3), 2, 2, 2, 1, ALL),  # stride and dilation share a factor
    ((4, 5, 37), (6, 5, 4), 1, 2, 1, 1, ALL),
    ((2, 3, 61), (4, 3, 7), 3, 4, 2, 1, ALL),
    ((1, 2, 5, 9, 10), (3, 2, 3, 2, 3), (1, 2, 1), (1, 0, 1), 1, 1, ALL),
    ((1, 3, 10, 9), (2, 3, 1, 1), 2, 0, 1, 1, ALL),
    ((5, 1, 28, 28), (32, 1, 3, 3), 1, 1, 1, 1, ALL),  # whole vectors of positions
    ((3, 11, 12, 19), (1, 11, 3, 5), 1, 2, 1, 1, ALL),  # one output channel: threads share the window
    ((2, 18, 12, 12), (3, 18, 1, 1), 1, 0, 1, 1, set()),  # a plain product
    ((2, 18, 3, 3), (3, 18, 3, 3), 1, 0, 1, 1, set()),  # windows of everything: one result each
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}x{c[1]}s{c[2]}p{c[3]}d{c[4]}g{c[5]}".replace(" ", ""))
def test_convolutions_and_their_gradients(case: Any) -> None:
    x, w, stride, padding, dilation, groups, expected = case
    rng = np.random.default_rng(0)
    convolution = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(x)]
    arrays = [rng.standard_normal(s) for s in (x, w, w[:1])]
    check(lambda x, w, b: convolution(x, w, b, stride, padding, dilation, groups), arrays, expected, 4e-6)


@pytest.mark.parametrize("stride, padding, extra, dilation, groups", [(1, 1, 0, 1, 1), (2, 1, 1, 1, 1), (3, 0, 2, 2, 2), (2, 2, 0, 3, 1)])
def test_transposed_convolutions_and_their_gradients(stride: int, padding: int, extra: int, dilation: int, groups: int) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s) for s in ((2, 4, 11, 12), (4, 3, 3, 4), (3 * groups,))]
    check(lambda x, w, b: F.conv_transpose2d(x, w, b, stride, padding, extra, groups, dilation), arrays, ALL, 4e-6)


def test_convolutions_in_float64_and_with_any_number_of_threads(threads: int) -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(s) for s in ((5, 19, 10, 13), (21, 19, 3, 3), (21,))]
    for dtype in (torch.float32, torch.float64):
        check(lambda x, w, b: F.conv2d(x, w, b, 1, 1), arrays, ALL, 4e-6, dtype)


def test_what_is_not_finite_stays_where_its_windows_are() -> None:
    x, w = torch.randn(2, 17, 9, 9), torch.randn(4, 17, 3, 3)
    x[0, 3, 0, 0], x[1, 2, 8, 8] = float("inf"), float("nan")
    g = torch.randn(2, 4, 9, 9)

    def f(x: Any, w: Any, g: Any) -> Any:
        w = w.detach().requires_grad_()
        out = F.conv2d(x, w, None, 1, 1)
        return out.detach(), torch.autograd.grad(out, w, g)[0]

    for a, b in zip(torch.compile(f)(x, w, g), f(x, w, g), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-3)


def test_an_input_that_is_not_dense_is_convolved_by_products() -> None:
    x, w = torch.randn(2, 9, 10, 17).permute(0, 3, 1, 2), torch.randn(4, 17, 3, 3)
    f = torch.compile(lambda x, w: F.conv2d(x, w, None, 1, 1))
    np.testing.assert_allclose(f(x, w).numpy(), F.conv2d(x.contiguous(), w, None, 1, 1).numpy(), rtol=1e-4, atol=1e-4)
    assert natives(f) == set()


def test_half_precision_is_convolved_by_products() -> None:
    x, w = torch.randn(2, 17, 9, 9).to(torch.bfloat16), torch.randn(4, 17, 3, 3).to(torch.bfloat16)
    f = torch.compile(lambda x, w: F.conv2d(x, w, None, 1, 1))
    np.testing.assert_allclose(f(x, w).float().numpy(), F.conv2d(x, w, None, 1, 1).float().numpy(), rtol=2e-2, atol=2e-1)
    assert natives(f) == set()


def test_a_batch_of_another_size_has_the_same_functions_and_right_results() -> None:
    f = torch.compile(lambda x, w: torch.relu(F.conv2d(x, w, None, 1, 1)))
    w = torch.randn(4, 3, 3, 3)
    for n in (8, 8, 5, 7, 8):
        x = torch.randn(n, 3, 12, 12)
        np.testing.assert_allclose(f(x, w).numpy(), torch.relu(F.conv2d(x, w, None, 1, 1)).numpy(), rtol=1e-4, atol=1e-5)
    assert natives(f) == {"convolution"}


# ------------------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize("size, kernel, stride, padding, dilation", [
    ((2, 3, 12, 10), 2, 2, 0, 1), ((2, 3, 13, 11), 3, 2, 1, 1), ((1, 2, 11, 12), 3, 1, 1, 2), ((1, 2, 14, 13), (2, 3), (3, 1), (1, 0), 1),
    ((2, 3, 17), 3, 2, 1, 1), ((1, 2, 6, 7, 8), 2, 2, 0, 1), ((1, 2, 20, 20), 5, 5, 0, 1),
])  # fmt: skip
def test_max_pooling_and_its_gradient(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    x = np.random.default_rng(3).permutation(int(np.prod(size))).reshape(size) / 7.0
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[len(size)]
    check(lambda x: pool(x, kernel, stride, padding, dilation), [x], {"max_pool_spread"})


def test_written_out_windows_choose_as_numpy_does() -> None:
    x = torch.tensor(np.random.default_rng(4).integers(0, 3, (3, 2, 20, 22)).astype(np.float32))  # equal elements: the first
    x[0, 0, 3, 3], x[1, 1, 0, 1], x[1, 1, 1, 0], x[2, 0, 5] = float("nan"), float("nan"), float("nan"), float("-inf")

    def f(x: Any) -> Any:
        largest, at = F.max_pool2d(x, 2, return_indices=True)
        return largest, at, F.avg_pool2d(x, 2), F.max_pool2d(-x, (2, 3), 1)

    for a, b in zip(torch.compile(f)(x), f(x), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 1), ((1, 3), (2, 1))])
def test_relu_before_pooling_is_differentiated_at_the_largest_elements(kernel: Any, stride: Any) -> None:
    x = torch.tensor(np.random.default_rng(5).integers(-2, 3, (4, 3, 10, 12)).astype(np.float32)).requires_grad_()

    def f(x: Any) -> Any:
        out = F.max_pool2d(torch.relu(x), kernel, stride)
        g = torch.arange(out.numel(), dtype=torch.float32).reshape(out.shape).remainder(7) - 3
        (grad,) = torch.autograd.grad(out, x, g)
        return grad, grad.sum((0, 2, 3)), grad.sum((0, 2))

    compiled = torch.compile(f)
    for a, b in zip(compiled(x), f(x), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    if kernel == 2:
        programs = [p for path, _ in compiled_function(compiled).paths for p in path.programs.values()]
        points = [k.points for p in programs for e in executables(p) for k in e.kernels]
        assert max(points) == 4 * 3 * 5 * 6  # nothing but the runtime's function goes over all of the gradient


@pytest.mark.parametrize("side, row", [(14, 7), (28, 14), (46, 23)])
def test_rows_shorter_than_a_vector_share_one_loop(side: int, row: int) -> None:
    x, scale = torch.randn(3, 5, side, side), torch.arange(row) + 1.0
    f = torch.compile(lambda x, scale: F.max_pool2d(x, 2) * scale)
    np.testing.assert_array_equal(f(x, scale).numpy(), (F.max_pool2d(x, 2) * scale).numpy())
    (kernel,) = [k for path, _ in compiled_function(f).paths for p in path.programs.values() for e in executables(p) for k in e.kernels]
    assert codegen.emit(kernel).count("for (") == (1 if row < 16 else 2)


def test_reductions_of_windows_have_no_loops_of_their_own() -> None:
    f = torch.compile(lambda x: F.max_pool2d(x, 2))
    f(torch.randn(2, 3, 40, 40))
    (kernel,) = [k for path, _ in compiled_function(f).paths for p in path.programs.values() for e in executables(p) for k in e.kernels]
    text = codegen.emit(kernel)
    assert text.count("for (") == 2 and "omp simd" in text and "reduction" not in text
    assert "reduction" in codegen.emit(kernel, shared=True)  # how many terms there are is a size


# ------------------------------------------------------------------------------------------------ recurrent layers

LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}


def recurrent_against_numpy(kind: str, steps: int, batch: int, width: int, hidden: int, dtype: Any, **options: Any) -> None:
    torch.manual_seed(0)
    layer, wide = (LAYERS[kind](width, hidden, **options).to(d) for d in (dtype, torch.float64))
    wide.load_state_dict(layer.state_dict())
    names = [n for n, _ in layer.named_parameters()]

    def function(module: Any) -> Any:
        def run(x: Any, *parameters: Any) -> Any:
            out, last = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
            return torch.cat([out.flatten(), *[s.flatten() for s in (last if isinstance(last, tuple) else (last,))]])

        return run

    arrays = [np.random.default_rng(5).standard_normal((steps, batch, width))]
    arrays += [p.detach().double().numpy().copy() for p in layer.parameters()]
    check(function(layer), arrays, {"recurrent", "recurrent_grad"}, 1e-5, dtype)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("steps, batch, width, hidden", [(1, 1, 3, 1), (5, 17, 4, 33), (7, 3, 5, 64), (3, 30, 2, 100), (2, 60, 3, 128)])
def test_recurrent_layers_and_their_gradients(kind: str, steps: int, batch: int, width: int, hidden: int) -> None:
    recurrent_against_numpy(kind, steps, batch, width, hidden, torch.float32)


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_in_float64_both_ways_with_any_number_of_threads(kind: str, threads: int) -> None:
    recurrent_against_numpy(kind, 4, 9, 3, 50, torch.float64, bidirectional=True, num_layers=2)


def test_wide_hidden_states_are_summed_in_parts() -> None:
    recurrent_against_numpy("LSTM", 2, 3, 4, 600, torch.float32)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_keeps_its_gates_only_where_gradients_are_wanted(kind: str) -> None:
    layer = LAYERS[kind](3, 7)

    def planes(x: Any) -> int:
        found = []
        compiled = torch.compile(lambda x: layer(x)[0])
        compiled(x)
        for path, _ in compiled_function(compiled).paths:
            for program in path.programs.values():
                found += [n.spec.shape[0] for exe in executables(program) for n in exe.natives]
        return int(found[0])

    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        assert planes(x) == MODES[layer.mode][1]
    assert planes(x) == sum(MODES[layer.mode][1:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrap", [lambda f: f, torch.compile], ids=["at_once", "compiled"])
def test_gradients_do_not_need_what_a_layer_keeps(mode: str, wrap: Any) -> None:
    count, states, kept = MODES[mode]
    arrays = [np.random.default_rng(3).standard_normal(s) for s in ((5, 3, count * 9), (count * 9, 9), (count * 9,), (states, 3, 9))]

    def gradients(keep: bool) -> list[Any]:
        leaves = [torch.tensor(a, dtype=torch.float64).requires_grad_() for a in arrays]

        def run(*leaves: Any) -> Any:
            out = recurrent_(*leaves, mode=mode, reverse=True, keep=keep)
            assert out.shape[0] == states + (kept if keep else 0)
            return torch.autograd.grad((out[:states] * torch.arange(5.0).reshape(5, 1, 1)).sum(), leaves)

        return [g.numpy() for g in wrap(run)(*leaves)]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_samples_that_are_over_keep_their_state(kind: str) -> None:
    layer = LAYERS[kind](6, 40, bidirectional=True)
    x = torch.randn(7, 5, 6)

    def f(x: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 5, 5, 2, 1]))
        out, _ = layer(packed)
        return nn.utils.rnn.pad_packed_sequence(out)[0].square().sum()

    def graded(f: Any) -> list[Any]:
        layer.zero_grad()
        value = f(x)
        value.backward()
        return [value.detach().clone(), *[p.grad.clone() for p in layer.parameters()]]

    compiled = torch.compile(f)
    for a, b in zip(graded(compiled), graded(f), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ what is said of it


def test_explain_names_what_the_runtime_computes_and_runs_are_one_call() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)

    @torch.compile
    def step(x: Any) -> Any:
        return torch.relu(layer(x)).sum()

    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        step(x)
    text = str(torch.compiler.explain(step)(x))
    assert "1 native call" in text and "native convolution: a function of the C runtime" in text and "extern" not in text



@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
@pytest.mark.parametrize("shape, dim", [((1,), 0), ((3, 100), 1), ((100, 3), 0), ((2, 40, 300), 1), ((17, 9), 1), ((3, 1, 4), 1)])
def test_running_sums_and_products_are_those_of_numpy_to_the_bit(name: str, shape: tuple[int, ...], dim: int, threads: int) -> None:
    x = np.random.default_rng(0).uniform(0.9, 1.1, shape)
    for kind in (np.float32, np.float64, np.int64):
        a = (x * 10).astype(kind) if kind is np.int64 else x.astype(kind)
        compiled = torch.compile(lambda x: getattr(torch, name)(x, dim))
        np.testing.assert_array_equal(compiled(torch.tensor(a)).numpy(), getattr(np, name)(a, axis=dim))
        assert natives(compiled) == {name}


def test_running_sums_of_other_layouts_and_dtypes_are_summed_in_lines() -> None:
    x = np.random.default_rng(1).standard_normal((5, 2200)).astype(np.float32)
    across = torch.compile(lambda x: x.cumsum(0))
    want = np.cumsum(x.T.astype(np.float64), 0)  # of about 100
    np.testing.assert_allclose(across(torch.tensor(x).t()).numpy(), want, rtol=0, atol=1e-4)
    assert natives(across) == set()
    mask = torch.compile(lambda x: (x > 0).cumsum(1))
    np.testing.assert_array_equal(mask(torch.tensor(x)).numpy(), np.cumsum(x > 0, 1))
    half = torch.compile(lambda x: x.half().cumprod(1))
    near = np.float32(1) + x[:, :40] / 64
    np.testing.assert_allclose(half(torch.tensor(near)).float().numpy(), np.cumprod(near.astype(np.float16), 1, np.float64), rtol=1e-3)


def test_what_is_not_finite_stays_behind_its_place_in_a_running_sum() -> None:
    x = torch.tensor([[1.0, np.inf, 2.0, -np.inf, 3.0]]).expand(3, 5)  # no dense memory: summed in lines
    run = torch.compile(lambda x: x.cumsum(1))
    np.testing.assert_array_equal(run(x).numpy()[1], [1.0, np.inf, np.inf, np.nan, np.nan])


def test_a_running_sum_is_written_into_the_tensor_that_out_names() -> None:
    x, out = torch.arange(6.0).view(2, 3), torch.zeros(2, 3)
    run = torch.compile(lambda x: torch.cumsum(x * 2, 1, out=out))
    assert run(x) is out and out.tolist() == [[0, 2, 6], [6, 14, 24]]
    assert natives(run) == {"cumsum"}
