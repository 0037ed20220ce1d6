"""What is kept of a compile: another process launches it without the passes, and nothing that is damaged or of other code is used."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph_of

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F
from torchlet.compiler import execute, load, recipe
from torchlet.compiler.function import compiled_function, describe, executables, stats
from torchlet.compiler.program import Program
from torchlet.compiler.recipe import key_of
from torchlet.config import config
from torchlet.errors import CompileError
from torchlet.runtime import cc

N = 24


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder of the test's own."""
    monkeypatch.setattr(load, "_ADDRESSES", {})
    with config(cache_dir=str(tmp_path)):
        yield tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that the passes were run on."""
    ran: list[str] = []
    compiled = execute._compile

    def noted(graph: Any, name: str, *more: Any) -> Any:
        ran.append(name)
        return compiled(graph, name, *more)

    monkeypatch.setattr(execute, "_compile", noted)
    return ran


def layer(x: Any, w: Any) -> Any:
    return torch.softmax(x @ w, -1) * 1.5 + x.mean()


def arguments(n: int = N) -> tuple[Any, ...]:
    return torch.arange(n * 8.0).reshape(n, 8) / 100, torch.ones(8, 8)


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=2e-5, atol=2e-5)


def test_what_was_compiled_once_needs_no_passes_again(passes: list[str]) -> None:
    args = arguments()
    for _ in range(2):  # as two processes would: each compiled function starts with nothing in memory
        close(torch.compile(layer)(*args), layer(*args))
    assert passes == ["layer"]


def test_a_training_step_runs_from_what_was_kept(passes: list[str]) -> None:
    def losses() -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

        @torch.compile
        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return [step(torch.arange(30.0).reshape(5, 6) / 30, torch.arange(5) % 3).item() for _ in range(4)]

    first = losses()
    compiled = list(passes)
    assert losses() == first and first[3] < first[0]
    assert passes == compiled and compiled


def test_the_halves_of_a_segment_are_kept(passes: list[str]) -> None:
    def gradient() -> Any:
        w = torch.full((8, 8), 0.1, requires_grad=True)
        torch.compile(layer)(arguments()[0], w).square().sum().backward()
        return w.grad

    first, compiled = gradient(), list(passes)
    assert gradient().tolist() == first.tolist()
    assert passes == compiled


def test_what_explains_an_executable_is_made_when_somebody_asks(passes: list[str]) -> None:
    texts = []
    for _ in range(2):
        f = torch.compile(layer)
        f(*arguments())
        texts.append(describe(compiled_function(f)).text.splitlines()[1:])  # the first line counts calls of the C compiler
    assert texts[0] == texts[1] and passes == ["layer", "layer"]


def test_counting_kernels_needs_no_passes(passes: list[str]) -> None:
    f = torch.compile(layer)
    f(*arguments())
    before = stats()
    g = torch.compile(layer)
    g(*arguments())
    after = stats()
    (exe,) = executables(compiled_function(f).programs[0])
    assert after["kernels"] - before["kernels"] == after["cache_hits"] - before["cache_hits"] == len(exe.kernels) > 0
    assert passes == ["layer"]


def test_a_size_that_was_not_kept_shares_its_kernels_with_those_that_were(passes: list[str]) -> None:
    def sizes(f: Callable[..., Any], *lengths: int) -> int:
        before = load.COUNTS["calls"]
        for n in lengths:
            close(f(*arguments(n)), layer(*arguments(n)))
        return load.COUNTS["calls"] - before

    assert sizes(torch.compile(layer), 20, 30, 40) == 2
    assert sizes(torch.compile(layer), 20, 30, 40) == 0 and len(passes) == 3
    assert sizes(torch.compile(layer), 20, 30, 50) == 0
    assert sizes(torch.compile(layer), 30, 50, 20) == 1  # 30 alone is compiled as the first size is
    assert sizes(torch.compile(layer, dynamic=True), 20, 30) == 1


@pytest.mark.parametrize("text", ["{not json", '{"recipe": "{}", "sha256": "0"}', '{"recipe": 3}'], ids=["cut", "digest", "types"])
def test_a_damaged_recipe_is_made_again(folder: Path, passes: list[str], text: str) -> None:
    torch.compile(layer)(*arguments())
    (entry,) = folder.glob("recipe-*.json")
    whole = entry.read_text()
    entry.write_text(text)
    close(torch.compile(layer)(*arguments()), layer(*arguments()))
    assert len(passes) == 2 and entry.read_text() == whole


def test_a_single_bit_of_a_recipe_counts(folder: Path, passes: list[str]) -> None:
    torch.compile(layer)(*arguments())
    (entry,) = folder.glob("recipe-*.json")
    kept = json.loads(entry.read_text())
    kept["recipe"] = kept["recipe"].replace('"arena_bytes": ', '"arena_bytes": 1', 1)
    entry.write_text(json.dumps(kept))
    close(torch.compile(layer)(*arguments()), layer(*arguments()))
    assert len(passes) == 2


def test_a_recipe_whose_kernels_are_gone_or_damaged_is_made_again(folder: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compile(layer)(*arguments())
    for damage in (lambda p: p.unlink(), lambda p: (p.unlink(), p.write_bytes(b"no library"))):
        for library in folder.glob("kernels-*.so"):
            damage(library)
        monkeypatch.setattr(load, "_ADDRESSES", {})
        close(torch.compile(layer)(*arguments()), layer(*arguments()))
    assert len(passes) == 3


def test_a_folder_that_takes_no_recipes_costs_time_only(monkeypatch: pytest.MonkeyPatch, passes: list[str]) -> None:
    def full(key: str, entry: dict[str, str]) -> None:
        if key.startswith("recipe-"):
            raise OSError("no space left on device")
        written(key, entry)

    written = cc.write_entry
    monkeypatch.setattr(cc, "write_entry", full)
    for _ in range(2):
        close(torch.compile(layer)(*arguments()), layer(*arguments()))
    assert len(passes) == 2


def test_sources_that_changed_after_they_were_imported_make_no_recipes(
    monkeypatch: pytest.MonkeyPatch, folder: Path, passes: list[str]
) -> None:
    recipe._surroundings.cache_clear()
    monkeypatch.setattr(recipe, "_IMPORTED", 0.0)
    for _ in range(2):
        torch.compile(layer)(*arguments())
    recipe._surroundings.cache_clear()
    assert len(passes) == 2 and not list(folder.glob("recipe-*"))


def test_a_call_that_numpy_computes_in_between_is_compiled_each_time(folder: Path, passes: list[str]) -> None:
    def f(x: Any) -> Any:
        return torch.sort(x * 2, 1).values + 1

    for _ in range(2):
        close(torch.compile(f)(arguments()[0]), f(arguments()[0]))
    assert len(passes) == 2 and not list(folder.glob("recipe-*"))


def test_the_key_tells_apart_whatever_changes_the_program() -> None:
    x = np.ones((4, 6), "f")
    graphs = [
        graph_of(lambda x: x * 2, x), graph_of(lambda x: x * 2.0, x), graph_of(lambda x: x * True, x), graph_of(lambda x: x * -0.0, x),
        graph_of(lambda x: x * 0.0, x), graph_of(lambda x: x + 2, x), graph_of(lambda x: x * 2, x.T.copy().T),
        graph_of(lambda x: x * 2, x.astype("d")), graph_of(lambda x: x * 2, x[:3]), graph_of(lambda x: x.sum(0), x),
        graph_of(lambda x: x.sum(1), x), graph_of(lambda x: x * 2, x, targets=[0]), graph_of(lambda x, y: x * 2, x, x),
        graph_of(lambda x, y: x - y, x, x), graph_of(lambda x, y: y - x, x, x), graph_of(lambda x, s: x * s, x, scalars=[2]),
        graph_of(lambda x, s: x * s, x, scalars=[2.0]), graph_of(lambda x: (x * 2, x * 3), x), graph_of(lambda x: (x * 3, x * 2), x),
    ]  # fmt: skip
    keys = [key_of(g) for g in graphs]
    assert None not in keys and len(set(keys)) == len(keys)
    with config(cpu_float32_dot="bf16"):
        keys.append(key_of(graphs[0]))
    torch.set_default_dtype(torch.float64)
    keys.append(key_of(graphs[0]))
    torch.set_default_dtype(torch.float32)
    keys += [key_of(graphs[0], "another"), key_of(replace(graphs[0], name="g"))]
    assert len(set(keys)) == len(keys)
    assert key_of(graph_of(lambda x: x * 2, x)) == keys[0]


def test_the_key_depends_on_compiler_and_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graph = graph_of(lambda x: x * 2, np.ones(3))
    before = key_of(graph)
    other = tmp_path / "other-cc"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    with config(cc=str(other)):
        assert key_of(graph) not in (before, None)
    (tmp_path / "module.py").write_text("")
    os.utime(tmp_path / "module.py", (0, 0))
    monkeypatch.setattr(recipe, "_PACKAGE", tmp_path)
    recipe._surroundings.cache_clear()
    assert key_of(graph) not in (before, None)
    recipe._surroundings.cache_clear()
    with config(cc="no-such-compiler"):
        assert key_of(graph) is None


def test_what_has_no_complete_text_has_no_key() -> None:
    graph = graph_of(lambda x: x * 2, np.ones(3))
    (node,) = graph.outputs
    assert key_of(replace(graph, outputs=(replace(node, attrs=(object(),)),))) is None
    assert key_of(replace(graph, outputs=(replace(node, op=type(node.op)("mul", (), (), None, None, {}, None)),))) is None  # type: ignore[arg-type,misc]


def test_functions_that_compiled_other_things_before_find_what_was_compiled_after_the_same(passes: list[str]) -> None:
    def f(x: Any, flag: bool) -> Any:
        return x.cumsum(0) if flag else x * 2

    def calls(*flags: bool) -> int:
        before, g = len(passes), torch.compile(f)
        for flag in flags:
            close(g(arguments()[0], flag), f(arguments()[0], flag))
        return len(passes) - before

    found = [calls(True, False), calls(True, False), calls(True), calls(False), calls(False, True)]
    assert found == [2, 0, 0, 1, 2]  # the last compiles the first, too: the second might share kernels with it


def test_a_compile_error_of_the_cache_does_not_reach_the_user(monkeypatch: pytest.MonkeyPatch, passes: list[str]) -> None:
    torch.compile(layer)(*arguments())

    def refused(*_: Any) -> None:
        raise CompileError("the cache has no kernel")

    monkeypatch.setattr(execute.load, "load_kept", refused)
    close(torch.compile(layer)(*arguments()), layer(*arguments()))
    assert len(passes) == 2


def test_of_too_many_recipes_the_older_ones_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "MAX_FILES", 6)
    for i in range(9):
        (folder / f"recipe-{i}.json").write_text("{}")
        os.utime(folder / f"recipe-{i}.json", (i, i))
    torch.compile(layer)(*arguments())
    left = {p.stem for p in folder.glob("recipe-*.json")}
    assert left > {"recipe-6", "recipe-7", "recipe-8"} and len(left) == 4


def test_a_function_whose_sizes_never_end_does_not_fill_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchlet.compiler.sizes.MAX_KEYS", 3)
    f = torch.compile(layer)
    for n in range(10, 16):
        close(f(*arguments(n)), layer(*arguments(n)))
    assert len(list(folder.glob("recipe-*.json"))) == 3


CHILD = """
import sys; sys.path.insert(0, sys.argv[1])
import test_recipe as t, torchlet
from torchlet.compiler import execute, load
f = torchlet.compile(t.layer)
print(f(*t.arguments()).tolist() == eval(sys.stdin.read()), load.COUNTS["compiled"], "plan" in f.programs[0].executable.__dict__)
"""


@pytest.mark.slow
def test_processes_that_compile_the_same_at_once_agree_and_the_next_finds_it(folder: Path) -> None:
    want = str(torch.compile(layer)(*arguments()).tolist())
    for path in folder.glob("[kr]e*"):  # kernels and recipes; the runtime stays
        path.unlink()
    environment = {**os.environ, "TORCHLET_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}

    def start() -> Any:
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        assert child.stdin is not None
        child.stdin.write(want)
        child.stdin.close()
        child.stdin = None
        return child

    both = [start(), start()]
    for child in both:
        out, err = child.communicate(timeout=600)
        assert out.startswith("True "), err
    out, err = start().communicate(timeout=600)
    assert out.split() == ["True", "0", "False"], err


def test_programs_are_the_same_from_the_disk(passes: list[str]) -> None:
    """Launches, places in the arena, numbers: all that a program holds."""

    def contents(p: Program) -> Any:
        exe = p.executable
        assert exe is not None
        (program,) = exe.programs
        table = [
            (e.fn, e.parallel, e.barrier, e.buffers[: e.n_buffers], e.scalars[: e.n_scalars]) for e in program._table[: len(program.names)]
        ]
        return table, program.names, len(program.pointers), list(program.scalars), exe.arena_bytes, exe._offsets, exe._kinds

    def f(x: Any, w: Any, a: float) -> Any:
        h = torch.softmax(x @ w, -1) * a
        return (h @ w).cumsum(0), h.sum()

    found = []
    for _ in range(2):
        g = torch.compile(f)
        g(*arguments(), 2.5)
        found.append(contents(compiled_function(g).programs[0]))
    assert found[0] == found[1] and passes == ["f"]


def test_arguments_are_not_held_by_what_was_made_of_them() -> None:
    w = torch.full((8, 8), 0.1, requires_grad=True)
    for _ in range(2):
        f = torch.compile(layer)
        gc.disable()  # it would come by chance, and hide it
        try:
            x = arguments()[0]
            seen = weakref.ref(x)
            f(x, w).sum().backward()
            del x
            assert seen() is None
        finally:
            gc.enable()
