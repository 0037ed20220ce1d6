"""Alternates of hot kernels take turns on the stand-in device, whose clock the tests set: who wins, what is kept, what is left alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from standin import CC, StandIn, stand_in

import torchlet as torch
from torchlet import compiler
from torchlet.compiler import launch, tune, winners
from torchlet.compiler.codegen.triton import TritonKernel, emit_choices, simplified
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Store
from torchlet.compiler.offline import TARGETS
from torchlet.config import config
from torchlet.dtypes import bfloat16, float32
from torchlet.expr import cast, expr
from torchlet.index import Axis, of
from torchlet.runtime import cc

M, N, K = 256, 128, 64
BEST, SECOND = (64, 16, 64), (16, 64, 64)  # alternates of the product's tile, which is of 16 x 16
AFTER, ROUNDS = 5, 3
CALLS = AFTER + (1 + tune.ALTERNATES) * ROUNDS + 2


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[StandIn]:
    if CC is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    # a patch of its own: one that the test makes must be undone before the stand-in's are
    with pytest.MonkeyPatch.context() as patch, config(cache_dir=str(tmp_path)), stand_in() as s:
        for name, value in (("LEAST_US", 0.0), ("AFTER", AFTER), ("ROUNDS", ROUNDS)):
            patch.setattr(tune, name, value)
        yield s


def halves(*shape: int) -> Any:
    values = (0.3 * np.random.default_rng(1).standard_normal(shape)).astype(ml_dtypes.bfloat16).astype(np.float32)
    return torch.from_numpy(values).bfloat16()


def program(x: Any, w: Any) -> Any:
    return (x @ w.T).relu().softmax(-1)


def train(calls: int = CALLS) -> None:
    """Call a compiled program with a product in it and check each result."""
    x, w = halves(M, K), halves(N, K)
    wanted = np.exp(np.maximum(x.float().numpy() @ w.float().numpy().T, 0))
    wanted /= wanted.sum(-1, keepdims=True)
    there, f = (x.cuda(), w.cuda()), torch.compile(program)
    for _ in range(calls):
        np.testing.assert_allclose(f(*there).float().cpu().numpy(), wanted, rtol=2e-2, atol=2e-2)


def blocks(form: TritonKernel) -> tuple[int, ...]:
    return tuple(form.constexprs.values())


def products(gpu: StandIn) -> list[TritonKernel]:
    """The loaded forms of the product, in the order in which they were loaded."""
    return [k for k in gpu.kernels.values() if "tl.dot" in k.source]


def running(gpu: StandIn) -> tuple[int, ...]:
    """The blocks of the product that one more call runs."""
    seen: list[TritonKernel] = []
    gpu.ticks = lambda k: seen.append(k) or 0  # type: ignore[func-returns-value]
    train(1)
    (form,) = [k for k in seen if "tl.dot" in k.source]
    return blocks(form)


def slow_but(best: Callable[[TritonKernel], bool], gain: int = 100) -> Callable[[TritonKernel], int]:
    return lambda k: 1000 - gain * best(k)


def entries() -> list[dict[str, str]]:
    return [cc.read_entry(p.stem) or {} for p in sorted(cc.cache_folder().glob("tuned-*.json"))]


def test_the_fastest_form_of_a_hot_product_takes_its_place(gpu: StandIn) -> None:
    contests, swaps = launch.COUNTS["contests"], launch.COUNTS["swaps"]
    train(3)
    (first,) = products(gpu)
    gpu.ticks = slow_but(lambda k: "tl.dot" in k.source and blocks(k) == BEST)
    assert blocks(first) != BEST
    train()
    assert 1 < len({blocks(k) for k in products(gpu)}) <= 1 + tune.ALTERNATES
    assert (launch.COUNTS["contests"] - contests, launch.COUNTS["swaps"] - swaps) >= (1, 1)
    assert running(gpu) == BEST
    assert any("milliseconds" in e and len(e["milliseconds"].split(", ")) > 1 for e in entries())


def test_after_the_contest_calls_are_graph_launches_again(gpu: StandIn) -> None:
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    x, w, f = halves(M, K).cuda(), halves(N, K).cuda(), torch.compile(program)
    for _ in range(CALLS):
        f(x, w)
    others = [halves(M, K).cuda() for _ in range(3)]
    graphs, launches = gpu.graph_launches, launch.COUNTS["launches"]
    seen: list[TritonKernel] = []
    gpu.ticks = lambda k: seen.append(k) or 0  # type: ignore[func-returns-value]
    for other in others:
        f(other, w)  # the new form is bound to other addresses
    assert gpu.graph_launches == graphs + 3 and launch.COUNTS["launches"] == launches
    assert {blocks(k) for k in seen if "tl.dot" in k.source} == {BEST}


def test_a_later_program_starts_with_the_winner_and_times_nothing(gpu: StandIn) -> None:
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    train()
    compiler.reset()
    launch._FUNCTIONS.clear()
    contests, loaded = launch.COUNTS["contests"], len(products(gpu))
    assert running(gpu) == BEST and [blocks(k) for k in products(gpu)[loaded:]] == [BEST]
    train()
    assert launch.COUNTS["contests"] == contests


def test_a_form_that_gains_less_than_two_percent_does_not_replace_the_formulas(gpu: StandIn) -> None:
    train(1)
    formula = blocks(products(gpu)[0])
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST, gain=10)
    train()
    assert len({blocks(k) for k in products(gpu)}) > 1 and running(gpu) == formula
    compiler.reset()
    assert running(gpu) == formula, "and so it is remembered"


@pytest.mark.parametrize("how", ["deterministic", "off", "cold"])
def test_without_leave_or_need_nothing_is_timed(gpu: StandIn, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    if how == "cold":
        monkeypatch.setattr(tune, "LEAST_US", 20.0)
    with config(tune=how != "off"):
        torch.use_deterministic_algorithms(how == "deterministic")
        try:
            train()
        finally:
            torch.use_deterministic_algorithms(False)
    assert len(products(gpu)) == 1 and entries() == []


def test_deterministic_mode_does_not_use_what_was_measured(gpu: StandIn) -> None:
    train(1)
    formula = blocks(products(gpu)[0])
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    train()
    compiler.reset()
    with config(deterministic=True):
        assert running(gpu) == formula
    compiler.reset()
    assert running(gpu) == BEST


def test_forms_with_flaws_take_no_part(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, tried = launch.cubin_of, []

    def small_tiles_spill(k: TritonKernel, target: str) -> Any:
        tried.append(blocks(k))
        cubin, info = fake(k, target)
        return cubin, replace(info, flaw=8 if blocks(k) == BEST else 0)

    monkeypatch.setattr(launch, "cubin_of", small_tiles_spill)
    gpu.ticks = slow_but(lambda k: blocks(k) in (BEST, SECOND))
    train()
    assert BEST in tried and running(gpu) == SECOND


def test_calls_go_on_while_alternates_compile_and_one_that_does_not_takes_no_part(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def slowly(kernels: Any, target: str) -> Any:
        def compiled() -> Any:
            asked.append(len(products(gpu)))
            return [k for k in kernels if blocks(k) != BEST] if len(asked) > 4 else None

        return compiled

    monkeypatch.setattr(launch, "compile_later", slowly)
    gpu.ticks = slow_but(lambda k: blocks(k) in (BEST, SECOND))
    train(CALLS + 4)
    assert running(gpu) == SECOND
    assert asked[:5] == [1] * 5 and BEST not in {blocks(k) for k in products(gpu)}


def test_attention_has_alternates_of_which_the_last_reads_through_pointers(gpu: StandIn) -> None:
    gpu.ticks = lambda k: 1 if k.name.startswith("attention") and not k.maps else 50
    attend = torch.compile(lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True))
    x = halves(1, 2, 256, 64).cuda()
    for _ in range(CALLS):
        attend(x)
    forms = [k for k in gpu.kernels.values() if k.name.startswith("attention")]
    assert len(forms) == 4 and [bool(k.maps) for k in forms] == [True, True, True, False]
    seen: list[TritonKernel] = []
    gpu.ticks = lambda k: seen.append(k) or 0  # type: ignore[func-returns-value]
    attend(x)
    assert [bool(k.maps) for k in seen if k.name.startswith("attention")] == [False]


# ------------------------------------------------------------------------------------------------ what is told, and the table


def compiled() -> Any:
    """The program, called until its contests are over."""
    x, w, f = halves(M, K).cuda(), halves(N, K).cuda(), torch.compile(program)
    for _ in range(CALLS):
        f(x, w)
    return f, (x, w)


def tile_line(f: Any, args: tuple[Any, ...]) -> str:
    (line,) = [line for line in str(torch.explain(f)(*args)).splitlines() if line.startswith("    tile of ") and "dot" in line]
    return line


def test_explain_tells_the_tile_of_each_kernel_why_and_the_times_of_its_rivals(gpu: StandIn) -> None:
    f, args = torch.compile(program), (halves(M, K).cuda(), halves(N, K).cuda())
    first = tile_line(f, args)
    assert "(by formula); of dot m" in first and " ms" not in first and len(first.split(" | ")) > 2
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    for _ in range(CALLS):
        f(*args)
    line = tile_line(f, args)
    assert "dot m64 n16 k64" in line.partition(";")[0] and "(timed)" in line
    times = re.findall(r"(dot m\d+ n\d+ k\d+)[^|]*? ([\d.]+) ms", line.partition("; of ")[2])
    assert min(times, key=lambda t: float(t[1]))[0] == "dot m64 n16 k64" and len({ms for _, ms in times}) == 2
    compiler.reset()
    assert "(timed before)" in tile_line(torch.compile(program), args)


def test_the_dump_lists_choices_and_is_written_again_after_a_contest(gpu: StandIn, tmp_path: Path) -> None:
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    folder = tmp_path / "dump"
    with torch.debug.dump(str(folder)):
        f, args = torch.compile(program), (halves(M, K).cuda(), halves(N, K).cuda())
        f(*args)
        (page,) = folder.glob("*/6_kernels/tiles.txt")
        assert "(by formula)" in page.read_text() and "(timed)" not in page.read_text()
        for _ in range(CALLS):
            f(*args)
    assert re.search(r"dot m64 n16 k64.*\(timed\)", page.read_text()) and " ms" not in page.read_text()
    assert "dot m64 n16 k64" in (page.parent.parent / "times.json").read_text()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winners, "PATH", tmp_path / "winners.json")
        winners._entries.cache_clear()
        yield tmp_path / "winners.json"
    winners._entries.cache_clear()


def test_winners_written_to_the_table_serve_processes_without_measurements_and_deterministic_mode(
    gpu: StandIn, table: Path, tmp_path: Path
) -> None:
    before = len(tune.CONTESTS)
    gpu.ticks = slow_but(lambda k: blocks(k) == BEST)
    compiled()
    assert winners.merged(table, tune.CONTESTS[before:]) >= 1
    (problem,) = [p for p in json.loads(table.read_text())["targets"]["cuda:90"] if p.startswith("product bfloat16 nt 1x256x128x64")]
    contests = launch.COUNTS["contests"]
    with config(cache_dir=str(tmp_path / "another")):
        compiler.reset()
        launch._FUNCTIONS.clear()
        f, args = compiled()
        assert running(gpu) == BEST and launch.COUNTS["contests"] == contests, "what the table settles is not timed"
        assert "(by the table)" in tile_line(f, args)
        compiler.reset()
        with config(deterministic=True):
            assert running(gpu) == BEST
    assert problem


def test_the_table_says_nothing_of_other_problems_or_tiles_that_are_gone(gpu: StandIn, table: Path) -> None:
    train(1)
    (form,) = products(gpu)
    formula = blocks(form)
    assert form.kernel is not None
    problem = winners.problem_of(simplified(launch._nameless(form.kernel)))
    for entries in ({problem: {"tile": "dot m8 n8 k8, 1 warps, 1 stages"}}, {f"{problem} and more": {"tile": "dot m64 n16 k64"}}, {}):
        table.write_text(json.dumps({"targets": {"cuda:90": entries}}))
        winners._entries.cache_clear()
        compiler.reset()
        assert running(gpu) == formula
    table.write_text("no json")
    winners._entries.cache_clear()
    compiler.reset()
    assert running(gpu) == formula


def contest(tiles: dict[str, float], problem: str = "p") -> dict[str, Any]:
    return {"problem": problem, "target": "cuda:90", "device": "d", "tiles": list(tiles), "ms": list(tiles.values())}


def test_contests_of_one_class_are_decided_together(table: Path) -> None:
    assert winners.merged(table, [contest({"a": 1.0, "b": 0.9}), contest({"a": 1.0, "b": 1.5, "c": 0.8}), contest({"a": 1.0}, "q")]) == 2
    found = json.loads(table.read_text())["targets"]["cuda:90"]
    assert found["p"] == {"tile": "a", "formula": "a", "gain": 1.0, "device": "d"} and set(found) == {"p", "q"}
    assert winners.merged(table, [contest({"a": 1.0}, "r"), contest({"b": 1.0}, "r")]) == 0
    winners.merged(table, [contest({"a": 1.0, "b": 0.5})])
    found = json.loads(table.read_text())["targets"]["cuda:90"]
    assert found["p"]["tile"] == "b" and found["p"]["gain"] == 2.0 and "q" in found, "what was there stays"


def test_the_packages_table_can_be_read_and_names_only_known_devices_and_tiles_in_words() -> None:
    targets = json.loads(winners.PATH.read_text())["targets"]
    assert set(targets) <= set(TARGETS)
    assert all(re.match(r"\w+ \w+\d", e["tile"]) for entries in targets.values() for e in entries.values())


@pytest.mark.slow
def test_alternates_are_compiled_by_a_process_in_the_background(tmp_path: Path) -> None:
    i, j, r = Axis("m", 64), Axis("n", 64), Axis("k", 32)
    a, b = (expr("load", (), bfloat16, (name, of(axis) * 32 + of(r))) for name, axis in (("a", i), ("b", j)))
    dot = Dot("acc", a, b, (), (i,), (j,), (r,))
    store = Store("y", of(i) * 64 + of(j), cast(expr("value", (), float32, "acc"), bfloat16))
    buffers = (Buffer("a", bfloat16, 2048), Buffer("b", bfloat16, 2048), Buffer("y", bfloat16, 4096, "output"))
    kernel = Kernel("product", (i, j), (Phase((r,), (dot,), (store,)),), buffers)
    forms = list(emit_choices(kernel, "cuda:90"))[:2]
    assert len(forms) == 2 and "tl.dot(" in forms[0].source
    with config(cache_dir=str(tmp_path)):
        broken = replace(forms[0], source=forms[0].source.replace("tl.dot(", "tl.no_such_function("))
        compiled = launch.compile_later([*forms, broken], "cuda:90")
        until = time.monotonic() + 120
        while compiled() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert compiled() == forms
        assert launch.compile_later(forms, "cuda:90")() == forms
