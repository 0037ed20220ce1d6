"""Sums over the rows of a kernel that runs row by row are taken on the way: gradients of norms read what they need once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import graph_of

import torchlet as torch
import torchlet.nn.functional as F
from torchlet.compiler import fuse
from torchlet.compiler.codegen import triton
from torchlet.compiler.emulate import run_interpreted_triton, run_plan
from torchlet.compiler.execute import compile_graph, optimize
from torchlet.compiler.function import compiled_function, executables
from torchlet.compiler.fuse import TALL
from torchlet.compiler.graph import Graph
from torchlet.compiler.interpret import interpret
from torchlet.compiler.loops import Kernel
from torchlet.compiler.lower import GPU_PARTS, PARTS
from torchlet.compiler.offline import compile_kernel, fitting
from torchlet.compiler.schedule import Plan, schedule
from torchlet.op import OPS

Array = np.ndarray[Any, Any]
ROWS, WIDTH = 300, 512  # the last part of the rows is shorter than the others
PART = PARTS[1]
assert ROWS * WIDTH > TALL and ROWS > 2 * PART and ROWS % PART


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(s, np.float32) for s in shapes]


def centred(x: Any, g: Any) -> Any:
    """Row by row: x without its mean, and the sums of g and of g times that over all rows."""
    y = x - x.mean(-1, keepdim=True)
    return y * g, (g * y).sum(0), g.sum(0)


def readers(kernels: list[Kernel], name: str) -> list[int]:
    """In how many places each kernel that reads a buffer names it."""
    counts = [sum(e.attr[0] == name for e in k.loads()) for k in kernels]
    return [n for n in counts if n]


def test_rows_and_their_column_sums_are_read_by_one_kernel() -> None:
    kernels = schedule(optimize(graph_of(centred, *arrays((ROWS, WIDTH), (ROWS, WIDTH)))), "f")[0].kernels
    zeros, _, whole = kernels
    assert (zeros.name[:5], whole.name[:9]) == ("zeros", "add_parts")
    assert readers(kernels, "x0") == [1] and readers(kernels, "x1") == [1]


@pytest.mark.parametrize(
    "f", [lambda x, s, b: F.layer_norm(x, (WIDTH,), s, b), lambda x, s, b: F.rms_norm(x, (WIDTH,), s, 1e-5) + b], ids=["layer", "rms"]
)
def test_the_gradients_of_a_norm_read_its_input_once(f: Callable[..., Any]) -> None:
    """The values, the scale's and the shift's gradient from one pass; compared with float64."""
    values = arrays((ROWS, WIDTH), (WIDTH,), (WIDTH,), (ROWS, WIDTH))

    def gradients(*tensors: Any) -> Any:
        *leaves, g = tensors
        return torch.autograd.grad(f(*leaves), leaves, g)

    tensors = [torch.tensor(a, requires_grad=i < 3) for i, a in enumerate(values)]
    compiled = torch.compile(gradients)
    got = compiled(*tensors)
    want = gradients(*[torch.tensor(a.astype(np.float64), requires_grad=i < 3) for i, a in enumerate(values)])
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=2e-5, atol=2e-5)  # some hundred terms, each rounded to 2^-24
    (program,) = compiled_function(compiled).programs
    kernels = [k for exe in executables(program) for k in exe.kernels]
    assert readers(kernels, "tensors_0") == [1]


def test_column_sums_do_not_depend_on_the_number_of_threads() -> None:
    inputs = arrays((5000, 64), (5000, 64))
    found = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        x, g = map(torch.tensor, inputs)
        found.append([t.numpy().tobytes() for t in torch.compile(centred)(x, g)])
    torch.set_num_threads(2)
    assert found[0] == found[1] == found[2]


def batched(x: Any, g: Any) -> Any:
    y = x.softmax(-1)
    return y, (y * g).sum((0, 1)), y.sum((0, 1), keepdim=True), (x * y).sum(-1)


@pytest.mark.parametrize("f, shape", [(centred, (ROWS, WIDTH)), (batched, (3, 130, WIDTH)), (batched, (130, 5, 256))])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_loops_c_and_triton_agree_with_the_graph(f: Callable[..., Any], shape: tuple[int, ...], dtype: str) -> None:
    d = getattr(torch, dtype).np
    values = [a.astype(d) for a in arrays(shape, shape)]
    graph = graph_of(f, *values)
    plan = schedule(optimize(graph), "f")[0]
    assert any(k.name.startswith("add_parts") for k in plan.kernels)
    wide = interpret(graph_of(f, *[v.astype(np.float64) for v in values]), [v.astype(np.float64) for v in values])
    exe = compile_graph(graph, "f")
    outs = [np.zeros(n.spec.shape, n.spec.dtype.np) for n in graph.outputs]
    exe.run([a.ctypes.data for a in values], [o.ctypes.data for o in outs])
    tolerance = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 1e-2}[dtype]
    results = [outs, run_plan(plan, values)]
    if dtype == "float32" and f is centred:
        results.append(run_interpreted_triton(plan, values))
    for found in results:
        for x, y in zip(found, wide, strict=True):
            np.testing.assert_allclose(x.astype(np.float64), y, rtol=tolerance, atol=tolerance * np.abs(y).max())


def test_column_sums_serve_other_sizes_with_the_same_kernels() -> None:
    compiled = torch.compile(centred, dynamic=True)
    for rows in (ROWS, 777, 64, 3, 4096):
        x, g = map(torch.tensor, arrays((rows, WIDTH), (rows, WIDTH), seed=rows))
        for a, b in zip(compiled(x, g), centred(x.double(), g.double()), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-3)  # sums of up to 4,096 terms of size one


def test_a_row_that_needs_the_sum_of_all_rows_waits_for_it() -> None:
    def f(x: Any) -> Any:
        return (x - x.sum(0) / ROWS).softmax(-1)

    (x,) = arrays((ROWS, WIDTH))
    np.testing.assert_allclose(torch.compile(f)(torch.tensor(x)).numpy(), f(torch.tensor(x.astype(np.float64))).numpy(), rtol=1e-4)


def test_a_step_may_write_the_sums_into_a_parameter() -> None:
    """The row kernel reads the scale that the step overwrites."""
    norm, twin = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH).double()

    def step(model: Any, optimizer: Any, x: Any) -> Any:
        optimizer.zero_grad()
        loss = (model(x) ** 4).mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = torch.compile(step)
    (x,) = arrays((ROWS, WIDTH))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (norm, twin)]
    for _ in range(3):
        compiled(norm, optimizers[0], torch.tensor(x))
        step(twin, optimizers[1], torch.tensor(x).double())
    for p, q in zip(norm.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-5, atol=1e-6)


def gpu_plan(graph: Graph) -> Plan:
    return schedule(optimize(graph, gpu=True), "f", gpu=True)[0]


def test_on_gpus_a_program_takes_a_part_of_the_rows() -> None:
    """What it reads, it reads once; its column sums wait in registers, and no two programs add to one place."""
    graph = graph_of(centred, *[np.zeros((8192, 1024), np.float32)] * 2)
    rows, *whole = gpu_plan(graph).kernels[1:]
    assert readers([rows, *whole], "x0") == [1] and readers([rows, *whole], "x1") == [1]
    printed = triton.emit(rows, "cuda:90")
    assert printed.grid[0] == GPU_PARTS[0]
    assert "atomic" not in printed.source
    assert printed.source.count("tl.load(x0_ptr") == 1


def test_short_columns_are_kernels_of_their_own_on_gpus() -> None:
    """There the second reading comes from a cache, and a launch is dear."""
    kernels = gpu_plan(graph_of(centred, *arrays((ROWS, WIDTH), (ROWS, WIDTH)))).kernels
    assert not [s for k in kernels for p in k.phases for s in p.stores if s.mode == "add"]


@pytest.mark.parametrize("f, shape", [(centred, (75, 48)), (centred, (64, 33)), (batched, (3, 21, 20))], ids=["tail", "odd", "batched"])
def test_kernels_for_gpus_add_up_their_columns(monkeypatch: pytest.MonkeyPatch, f: Callable[..., Any], shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(fuse, "GPU_TALL", 1)
    values = arrays(shape, shape)
    graph = graph_of(f, *values)
    plan = gpu_plan(graph)
    assert any(k.name.startswith("add_parts") for k in plan.kernels)
    want = interpret(graph_of(f, *[v.astype(np.float64) for v in values]), [v.astype(np.float64) for v in values])
    for found in (run_plan(plan, values), run_interpreted_triton(plan, values)):
        for x, y in zip(found, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942", "hip:gfx950"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_norms_compile_offline(target: str, dtype: str) -> None:
    d = getattr(torch, dtype).np
    x, g = [np.zeros((8192, 768), d)] * 2

    def f(x: Any, scale: Any, g: Any) -> Any:
        rules = {name: rule.function for name, rule in OPS["layer_norm"].vjp.items()}
        return rules["x"](g, x, scale, 1, 1e-5), rules["weight"](g, x, 1, 1e-5).sum(0), rules["bias"](g).sum(0)

    (rows,) = [k for k in gpu_plan(graph_of(f, x, np.zeros(768, d), g)).kernels if any(s.mode == "add" for p in k.phases for s in p.stores)]
    assert compile_kernel(fitting(rows, target, lambda choice: compile_kernel(choice, target).flaw), target).flaw == 0
