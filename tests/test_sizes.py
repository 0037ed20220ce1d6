"""Sizes that vary: kernels of one function serve sizes that come later, results are those of eager, and explain() says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F
from torchlet.compiler import load
from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.function import compiled_function, executables, mark_dynamic
from torchlet.compiler.sizes import Sizes, resized
from torchlet.config import config


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """No kernel is loaded or cached when a test starts, so that compiles can be counted."""
    monkeypatch.setattr(load, "_ADDRESSES", {})
    with config(cache_dir=str(tmp_path)):
        yield


def calls() -> int:
    """Calls of the C compiler for kernels."""
    return load.COUNTS["calls"]


def close(got: Any, expected: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def counts(
    f: Callable[..., Any], compiled: Callable[..., Any], inputs: Callable[[int], tuple[Any, ...]], sizes: tuple[int, ...]
) -> list[int]:
    """Calls of the C compiler after each size; results are compared with eager."""
    start, out = calls(), []
    for n in sizes:
        args = inputs(n)
        close(compiled(*args), f(*args))
        out.append(calls() - start)
    return out


def scores(x: Any, w: Any) -> Any:
    return torch.softmax(x @ w, dim=-1).sum(0) / x.shape[0]


def matrix(n: int) -> tuple[Any, ...]:
    return torch.randn(n, 24), torch.randn(24, 7)


def test_the_second_size_makes_kernels_that_serve_all_later_sizes() -> None:
    compiled = torch.compile(scores)
    assert counts(scores, compiled, matrix, (5, 9, 12, 31, 24, 700, 7, 5, 5000)) == [1] + [2] * 8


def test_static_compilation_compiles_every_size() -> None:
    compiled = torch.compile(scores, dynamic=False)
    assert counts(scores, compiled, matrix, (5, 9, 12)) == [1, 2, 3]


def test_dynamic_compilation_serves_all_sizes_from_the_first_on() -> None:
    compiled = torch.compile(scores, dynamic=True)
    assert counts(scores, compiled, matrix, (5, 9, 12, 700)) == [1] * 4


def test_a_marked_dimension_serves_all_sizes_from_the_first_on() -> None:
    def marked(n: int) -> tuple[Any, ...]:
        x, w = matrix(n)
        mark_dynamic(x, 0)
        return x, w

    compiled = torch.compile(scores)
    assert counts(scores, compiled, marked, (5, 9, 12, 700)) == [1] * 4


def test_a_marked_dimension_of_the_same_size_as_another_is_told_apart() -> None:
    def marked(n: int) -> tuple[Any, ...]:
        x, w = torch.randn(n, 24), torch.randn(24, 24)
        mark_dynamic(x, -2)
        return x, w

    compiled = torch.compile(scores)
    assert counts(scores, compiled, marked, (24, 9, 12)) == [1] * 3


def test_marking_a_dimension_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        mark_dynamic(torch.ones(3), 1)


def test_several_sizes_may_vary_at_once() -> None:
    def f(x: Any, y: Any) -> Any:
        return (torch.tanh(x) @ y).amax(-1) + y.mean()

    def inputs(n: int) -> tuple[Any, ...]:
        return torch.randn(n % 5 + 2, n, 2 * n + 1), torch.randn(2 * n + 1, n + 3)

    compiled = torch.compile(f)
    assert counts(f, compiled, inputs, (6, 17, 8, 40, 64, 99))[-1] <= 3


def test_sizes_zero_and_one_are_right() -> None:
    def f(x: Any, w: Any) -> Any:
        return (x @ w).exp().sum() + (x * 2).sum(0).amax()

    compiled = torch.compile(f)
    counts(f, compiled, matrix, (5, 9, 1, 0, 12, 1, 0))


def test_a_size_that_equals_a_fixed_one_is_right() -> None:
    def f(x: Any, w: Any) -> Any:
        h = F.layer_norm(x @ w, (24,))
        return torch.softmax(h @ h.transpose(0, 1), -1) @ h

    compiled = torch.compile(f)
    assert counts(f, compiled, lambda n: (torch.randn(n, 24), torch.randn(24, 24)), (24, 9, 12, 24, 48, 576))[-1] <= 3


def gradients(model: Any, call: Any, *args: Any) -> list[Any]:
    model.zero_grad()
    call(*args).pow(2).mean().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("marked", [False, True])
def test_the_backward_half_of_a_segment_shares_its_kernels(marked: bool) -> None:
    model = nn.Sequential(nn.Linear(20, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 3))
    compiled = torch.compile(model)
    start, found = calls(), []
    for n in (6, 11, 17, 40, 300):
        x = torch.randn(2, n, 20)
        if marked:
            mark_dynamic(x, 1)
        for got, expected in zip(gradients(model, compiled, x), gradients(model, model.forward, x), strict=True):
            close(got, expected)
        found.append(calls() - start)
    assert found == ([2] * 5 if marked else [2, 4, 4, 4, 4])


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int, sdpa: bool):
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.sdpa:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5, dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def block_lengths(lengths: tuple[int, ...], width: int, sdpa: bool) -> int:
    block = Block(width, 2, sdpa)
    compiled = torch.compile(block)
    with torch.no_grad():
        return counts(block.forward, compiled, lambda n: (torch.randn(2, n, width),), lengths)[-1]


def training_lengths(lengths: tuple[int, ...], width: int) -> int:
    """Calls of the C compiler for training steps with these lengths; the losses and parameters are compared with eager."""
    blocks = [Block(width, 2, True) for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())

    def stepper(block: Any) -> Any:
        optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = F.mse_loss(block(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    compiled, eager = torch.compile(stepper(blocks[0])), stepper(blocks[1])
    start = calls()
    for n in lengths:
        x, y = torch.randn(2, n, width), torch.randn(2, n, width)
        close(compiled(x, y), eager(x, y), 1e-4)
    for p, q in zip(blocks[0].parameters(), blocks[1].parameters(), strict=True):
        close(p, q, 2e-3)
    return calls() - start


@pytest.mark.parametrize("sdpa", [False, True])
def test_a_transformer_block_of_several_lengths_is_compiled_at_most_three_times(sdpa: bool) -> None:
    assert block_lengths((17, 33, 40, 16, 64, 100, 3), 32, sdpa) <= 3


def test_a_training_step_of_several_lengths_is_compiled_at_most_three_times() -> None:
    assert training_lengths((17, 17, 33, 40, 3, 64), 16) <= 3


LENGTHS = (17, 33, 40, 64, 100, 128, 3, 8, 20, 50, 90, 150, 192, 200, 256, 300, 333, 400, 480, 512)


@pytest.mark.slow
@pytest.mark.parametrize("sdpa", [False, True])
def test_twenty_lengths_of_a_transformer_block_are_compiled_at_most_three_times(sdpa: bool) -> None:
    assert block_lengths(LENGTHS, 64, sdpa) <= 3


@pytest.mark.slow
def test_twenty_lengths_of_a_training_step_are_compiled_at_most_three_times() -> None:
    assert training_lengths(LENGTHS, 64) <= 3


def kinds() -> list[tuple[str, Callable[..., Any], Callable[[int], tuple[Any, ...]]]]:
    """Operators whose loops or numbers depend on sizes in one way or another."""
    rows = lambda n: (torch.randn(n, 6),)
    images = lambda n: (torch.randn(2, 3, n + 4, n + 6),)
    kernel = torch.randn(4, 3, 3, 3)
    table = torch.randn(5, 600)
    return [
        ("sum of all", lambda x: x.sum() + x.double().sum().float(), rows),
        ("mean and variance", lambda x: x.mean() + x.var(0) + x.var(1).mean(), rows),
        ("argmax", lambda x: x.argmax(0).float().sum() + x.argmax(1), rows),
        ("columns", lambda x: x.sum(0) + x.amax(0) + x.exp().prod(0).log(), rows),
        ("wide columns", lambda x: x.t().contiguous().sum(0) * 2, rows),
        ("transposed", lambda x: x.t().contiguous() + 1, rows),
        ("cat and slices", lambda x: torch.cat([x[1:], x * 2, x[:2]]).flip(0), rows),
        ("positions", lambda x: (torch.arange(x.shape[0]) * 2.0 + x.sum(1)).roll(1, 0), rows),
        ("a slice of a table", lambda x: x.t() * 2 + table[:, : x.shape[0]].mean(), rows),
        ("causal", lambda x: torch.tril(x @ x.t(), -1).sum(1), rows),
        ("gather", lambda x: torch.gather(x, 0, torch.arange(x.shape[0] * 6).view(-1, 6) % x.shape[0]), rows),
        ("index sum", lambda x: torch.zeros(3, 6).index_add(0, torch.arange(x.shape[0]) % 3, x), rows),
        ("cumulative", lambda x: x.cumsum(0), rows),
        ("reshape", lambda x: x.reshape(2, -1).sum(1) + x.reshape(3, -1, 2).amax(1).sum(), lambda n: (torch.randn(2 * n, 6),)),
        ("half", lambda x: (x.bfloat16() @ x.bfloat16().t()).float().sum(1) * 0.01, lambda n: (torch.ones(n, 6),)),
        ("integers", lambda x: ((x * 10).long() // 3 % x.shape[0]).sum(0).float(), rows),
        ("convolution", lambda x: F.conv2d(x, kernel, padding=1), images),
        ("pooling", lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), images),
        ("padding", lambda x: F.pad(x, (1, 2, 3, 0)) * 2, images),
        ("group norm", lambda x: F.group_norm(x, 3).mean((2, 3)), images),
        ("losses", lambda x: F.cross_entropy(x, torch.arange(x.shape[0]) % 6) + F.mse_loss(x, x * 2), rows),
    ]


@pytest.mark.parametrize(("what", "f", "inputs"), kinds(), ids=[k[0] for k in kinds()])
def test_shared_kernels_give_what_eager_gives(what: str, f: Callable[..., Any], inputs: Callable[[int], tuple[Any, ...]]) -> None:
    compiled = torch.compile(f)
    found = counts(f, compiled, inputs, (6, 11, 16, 37, 5, 130, 520))
    assert found[-1] < len(found), f"{what}: every size was compiled"


def test_work_and_threads_are_those_of_the_size_at_hand() -> None:
    compiled = torch.compile(lambda x: x.exp() * 2)
    for n in (50, 60, 1000):
        compiled(torch.randn(n, 1000))
    small, big = (p.executable for p in compiled_function(compiled).programs[1:])
    assert [s.values for s in big.stages["shared"]] == [(1_000_000,)]
    assert [codegen.work(k) < codegen.MIN_WORK for e in (small, big) for k in e.kernels] == [False, False]
    compiled(torch.randn(2, 1000))
    tiny = compiled_function(compiled).programs[-1].executable
    assert [s.values for s in tiny.stages["shared"]] == [(2000,)]
    assert not tiny.programs[0]._table[0].parallel and big.programs[0]._table[0].parallel


def test_kernels_that_do_not_depend_on_the_size_are_not_compiled_again() -> None:
    w = torch.randn(8, 8)

    def f(x: Any) -> tuple[Any, Any]:
        return x * 2, (w @ w).exp()

    compiled = torch.compile(f)
    compiled(torch.ones(5))
    before = load.COUNTS["compiled"]
    compiled(torch.ones(9))
    assert load.COUNTS["compiled"] - before == 1


def test_explain_tells_what_is_shared_and_what_was_compiled() -> None:
    compiled = torch.compile(scores)
    for n in (5, 9):
        compiled(*matrix(n))
    text = str(torch.compiler.explain(compiled)(*matrix(12)))
    assert "2 calls of the C compiler" in text
    assert "for all sizes since 5 → 9" in text
    assert "for all sizes (0 calls of the C compiler)" in text
    assert "shape (5, 24) → (12, 24)" in text


def test_the_dump_shows_the_text_that_serves_all_sizes(tmp_path: Path) -> None:
    compiled = torch.compile(scores, dump=str(tmp_path / "dump"))
    for n in (5, 9):
        compiled(*matrix(n))
    folders = sorted((tmp_path / "dump").glob("0*"))
    assert not (folders[0] / "6_kernels" / "sizes.txt").exists()
    text = (folders[1] / "6_kernels" / "sizes.txt").read_text()
    assert "const int64_t size0 = s[0];" in text and "with size0 = 9" in text


def test_functions_forget_sizes_on_reset() -> None:
    compiled = torch.compile(scores)
    assert counts(scores, compiled, matrix, (5, 9)) == [1, 2]
    compiled_function(compiled).reset()
    assert counts(scores, compiled, matrix, (31,)) == [1]


def test_other_numbers_in_the_same_program_are_another_size_at_most() -> None:
    compiled = torch.compile(lambda x, k: torch.softmax(x[:k], 0) / k)
    for k in (3, 4, 7, 9, 2):
        x = torch.randn(10)
        close(compiled(x, k), torch.softmax(x[:k], 0) / k)


def test_a_graph_at_invented_sizes_has_the_structure_of_the_first() -> None:
    compiled = torch.compile(scores, dynamic=False)
    compiled(*matrix(5))
    graph = compiled_function(compiled).programs[0].executable.stages["simplified"]
    other = resized(graph, {0: (0,)})
    assert other is not None and other.inputs[0].spec.shape[1] == 24 and other.inputs[0].spec.shape[0] not in (5, 24)
    sizes = Sizes()
    first, _ = sizes.enter(graph)
    again, _ = sizes.enter(other)
    assert first is again
    assert resized(graph, {0: (1,)}) is None, "the inner dimension of a product does not vary alone"


def test_the_halves_of_a_segment_are_cut_alike_at_all_sizes() -> None:
    def f(x: Any, w: Any) -> Any:
        return torch.softmax(torch.tanh(x @ w), -1) @ w.t()

    compiled = torch.compile(f)
    w = torch.randn(6, 9, requires_grad=True)
    kept = []
    for n in (4, 200, 7):
        compiled(torch.randn(n, 6), w).sum().backward()
        program = compiled_function(compiled).programs[-1]
        kept.append([k.op.name if k.op else k.kind for k in program.backward.kept_nodes])
        assert len(executables(program)) == 2
    assert kept[0] == kept[1] == kept[2]
