"""Passes over graphs keep every value: what the graph computed before, it computes after."""

from collections.abc import Callable

import numpy as np
import pytest
from graphs import graph_of, random_graph

from torchlet import dtypes
from torchlet.compiler.decompose import decompose
from torchlet.compiler.graph import Graph, Node, verify
from torchlet.compiler.interpret import interpret
from torchlet.compiler.simplify import simplify
from torchlet.op import Composite


def names(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes() if n.op is not None]


def simple(f: Callable, *shapes: tuple[int, ...]) -> list[str]:
    return names(simplify(graph_of(f, *[np.ones(s, np.float32) for s in shapes])))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("run", [simplify, decompose, lambda g: simplify(decompose(simplify(g)))], ids=["simplify", "decompose", "both"])
def test_a_pass_keeps_the_values_of_random_graphs(run: Callable[[Graph], Graph], seed: int) -> None:
    graph, arrays = random_graph(seed)
    after = run(graph)
    verify(after)
    for a, b in zip(interpret(graph, arrays), interpret(after, arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)  # decomposed norms and merged sums add in another order
        assert a.dtype == b.dtype


@pytest.mark.parametrize("seed", range(10))
def test_nothing_composite_remains_after_decompose(seed: int) -> None:
    graph = decompose(random_graph(seed)[0])
    assert [n for n in graph.nodes() if n.op is not None and isinstance(n.op.lower, Composite)] == []


def test_copies_and_detached_tensors_disappear() -> None:
    assert simple(lambda x: x.clone().detach().exp().clone(), (3,)) == ["exp"]


def test_neutral_numbers_disappear() -> None:
    assert simple(lambda x: ((x * 1) / 1 - 0.0).exp() ** 1, (3,)) == ["exp"]


def test_adding_zero_stays_because_of_negative_zero() -> None:
    assert simple(lambda x: x + 0.0, (3,)) == ["add"]
    assert simple(lambda x: (x + -0.0).exp(), (3,)) == ["exp"]
    graph = graph_of(lambda x: x + 0.0, x := np.array([-0.0], np.float32))
    assert not np.signbit(interpret(simplify(graph), [x])[0])


def test_a_one_that_would_broadcast_stays() -> None:
    assert simple(lambda x, y: (x + y * 0.0).exp() * 1, (3,), (2, 3)) == ["mul", "add", "exp"]


def test_views_of_views_are_one_view() -> None:
    assert simple(lambda x: x.view(12).view(2, 6).view(4, 3), (3, 4)) == ["view"]
    assert simple(lambda x: x.permute(1, 0).permute(1, 0).exp(), (3, 4)) == ["exp"]


def test_filled_tensors_become_numbers() -> None:
    import torchlet

    out = simplify(graph_of(lambda x: x * torchlet.full((3, 4), 2.5) + torchlet.ones(4).expand(3, 4), np.ones((3, 4), np.float32)))
    assert names(out) == ["mul", "add"]
    assert [n.inputs[1] for n in out.nodes() if n.op is not None] == [2.5, 1.0]


def test_constants_of_constants_are_computed_once() -> None:
    import torchlet

    assert simple(lambda x: x + torchlet.full((), 2.0) * torchlet.full((), 3.0), (3,)) == ["add"]


def test_a_sum_with_and_one_without_kept_dimensions_are_one_sum() -> None:
    assert simple(lambda x: x / x.sum(1, keepdim=True) * x.sum(1).unsqueeze(1), (3, 4)).count("sum") == 1


def test_a_sum_of_sums_is_one_sum() -> None:
    assert simple(lambda x: x.sum(2).sum(0), (3, 4, 5)) == ["sum"]


def test_the_sum_over_size_one_is_a_view() -> None:
    assert simple(lambda x: x.sum(1), (3, 1)) == ["view"]


def test_casts_there_and_back_disappear_where_nothing_is_lost() -> None:
    half = np.ones(3, np.float16)
    assert names(simplify(graph_of(lambda x: x.to(dtypes.float32).to(dtypes.float16).exp(), half))) == ["exp"]
    assert names(simplify(graph_of(lambda x: x.to(dtypes.float16).to(dtypes.float32), np.ones(3, np.float32)))) == ["cast", "cast"]


def test_thin_products_become_sums() -> None:
    ones = np.ones
    assert "matmul" not in names(decompose(graph_of(lambda a, b: a @ b, ones((5, 4), np.float32), ones((4, 1), np.float32))))
    assert "matmul" in names(decompose(graph_of(lambda a, b: a @ b, ones((5, 4), np.float32), ones((4, 2), np.float32))))


@pytest.mark.parametrize("shapes", [((5, 4), (4, 1)), ((1, 4), (4, 6)), ((5, 1), (1, 6)), ((2, 5, 4), (2, 4, 1)), ((1, 4), (4, 1))])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_thin_products_keep_their_values(shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: str) -> None:
    a, b = (np.random.default_rng(0).integers(-4, 5, s).astype(dtype) for s in shapes)
    graph = graph_of(lambda x, y: x @ y, a, b)
    got = interpret(decompose(graph), [a, b])[0]
    np.testing.assert_array_equal(got, a @ b)  # small whole numbers: exact in every dtype
    assert got.dtype == a.dtype


def test_passes_keep_lines_and_names() -> None:
    graph = graph_of(lambda x: x.softmax(0), np.ones(3, np.float32))
    b_inputs = simplify(decompose(graph)).inputs
    assert [n.name for n in b_inputs] == ["x0"]
    assert isinstance(graph.outputs[0], Node)
