"""The CPU runtime: programs, threads, errors, fork, the arena, and the cache of compiled kernels."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet as tl
from torchlet import dtypes, nn
from torchlet import index as ix
from torchlet.compiler import load as loading
from torchlet.compiler.load import COUNTS, LoadedKernel, load
from torchlet.compiler.loops import Buffer, Kernel, Phase, Reduction, ScalarArg, Store
from torchlet.config import config
from torchlet.errors import CompileError
from torchlet.expr import cast, expr
from torchlet.index import Axis
from torchlet.runtime import cc
from torchlet.runtime import cpu as runtime

N = 200_000


def scale_kernel(
    name: str = "scale", factor: float = 2.0, buffers: tuple[str, str] = ("x", "y"), n: int = N, origin: str = "a.py:1"
) -> Kernel:
    i = Axis(f"{name}_i", n)
    x = expr("load", (), dtypes.float32, (buffers[0], ix.of(i)))
    store = Store(buffers[1], ix.of(i), x * factor)
    return Kernel(name, (i,), (Phase(stores=(store,)),), tuple(Buffer(b, dtypes.float32, n) for b in buffers), (), (origin,))


def total_kernel(n: int = N) -> Kernel:
    r = Axis("r", n)
    x = expr("load", (), dtypes.float32, ("x", ix.of(r)))
    phase = Phase((r,), (Reduction("s", "sum", x),), (Store("y", ix.ZERO, expr("value", (), dtypes.float32, "s")),))
    return Kernel("total", (), (phase,), (Buffer("x", dtypes.float32, n), Buffer("y", dtypes.float32, 1)))


def gather_kernel(n: int = 1000) -> Kernel:
    i = Axis("i", n)
    row = expr("load", (), dtypes.int64, ("ids", ix.of(i)))
    store = Store("y", ix.of(i), expr("load", (), dtypes.float32, ("x", ix.of(row))))
    return Kernel(
        "gather_rows",
        (i,),
        (Phase(stores=(store,)),),
        (Buffer("x", dtypes.float32, 10), Buffer("ids", dtypes.int64, n), Buffer("y", dtypes.float32, n)),
    )


def program(*steps: tuple[LoadedKernel, list[np.ndarray[Any, Any]]]) -> runtime.Program:
    arrays = {id(a): a for _, used in steps for a in used}
    slots = {key: i for i, key in enumerate(arrays)}
    p = runtime.Program([(k, [slots[id(a)] for a in used], []) for k, used in steps], len(arrays), 0)
    p.pointers[:] = [a.ctypes.data for a in arrays.values()]
    return p


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = runtime.get_num_threads()
    runtime.set_num_threads(2)
    yield
    runtime.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, in memory and on disk."""
    with config(cache_dir=str(tmp_path / "cache")):
        monkeypatch.setattr(loading, "_ADDRESSES", {})
        yield tmp_path / "cache"


def test_launches_run_in_order_and_see_each_others_results() -> None:
    x, y, z, s = np.random.rand(N).astype("f"), np.zeros(N, "f"), np.zeros(N, "f"), np.zeros(1, "f")
    twice, total, small = load([scale_kernel(), total_kernel(), scale_kernel("third", 1 / 3, n=1)])
    assert twice.parallel and total.parallel and not small.parallel
    p = program((twice, [x, y]), (twice, [y, z]), (total, [z, s]), (small, [s, s]))
    for _ in range(20):
        z[:] = 0
        p.run()
        np.testing.assert_allclose(z, 4 * x, rtol=1e-6)
        np.testing.assert_allclose(s[0], 4 / 3 * x.astype(float).sum(), rtol=1e-5)


def waits(p: runtime.Program) -> list[bool]:
    return [bool(entry.barrier) for entry in p._table[: len(p.names)]]


def test_threads_wait_only_for_launches_that_a_launch_depends_on() -> None:
    x, y, z, u, v = (np.zeros(N, "f") for _ in range(5))
    a, b, c = load([scale_kernel("a"), scale_kernel("b", 3.0), scale_kernel("c", 5.0)])
    assert waits(program((a, [x, y]), (b, [u, v]), (c, [x, z]))) == [False, False, False]  # readers of one input
    assert waits(program((a, [x, y]), (b, [y, z]))) == [False, True]  # reads what was written
    assert waits(program((a, [x, y]), (b, [z, x]))) == [False, True]  # writes what was read
    assert waits(program((a, [x, y]), (b, [z, y]))) == [False, True]  # writes what was written
    assert waits(program((a, [x, y]), (b, [u, v]), (c, [y, z]))) == [False, False, True]  # not with the one before it only
    assert waits(program((a, [x, y]), (b, [y, z]), (c, [x, u]))) == [False, True, False]  # waited since
    assert waits(program((a, [x, y]), (a, [u, v]))) == [False, True]  # threads of one function meet in memory of its own


def test_launches_of_one_thread_wait_for_those_of_all_threads_only() -> None:
    x, y, small = np.zeros(N, "f"), np.zeros(N, "f"), np.zeros(1, "f")
    wide, one, two = load([scale_kernel("wide"), scale_kernel("one", 3.0, n=1), scale_kernel("two", 5.0, n=1)])
    assert waits(program((one, [small, small]), (two, [small, small]), (wide, [x, y]))) == [False, False, False]
    assert waits(program((one, [small, x]), (wide, [x, y]), (two, [y, small]))) == [False, True, True]


def test_places_that_overlap_are_waited_for_like_one_place() -> None:
    a, b = load([scale_kernel("a"), scale_kernel("b", 3.0)])
    launches = [(a, [0, 1], []), (b, [2, 3], [])]
    assert waits(runtime.Program(launches, 4, 0)) == [False, False]
    assert waits(runtime.Program(launches, 4, 0, {1: [1, 2], 2: [1, 2]})) == [False, True]
    assert waits(runtime.Program(launches, 4, 0, {0: [0, 3], 3: [0, 3]})) == [False, True]


def test_launches_of_a_training_step_wait_wherever_their_memory_meets() -> None:
    """Compared with the addresses that the launches get, whatever the plan says of places."""
    m = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))
    opt = tl.optim.AdamW(m.parameters())

    @tl.compile
    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(m(x), y)
        loss.backward()
        opt.step()
        return loss

    for _ in range(2):
        step(tl.randn(64, 300), tl.randint(0, 10, (64,)))
    executable = step.programs[-1].executable
    (p,) = executable.programs
    since: list[tuple[bool, list[tuple[int, int]], list[tuple[int, int]]]] = []
    kept = 0
    for entry, kernel in zip(p._table, executable.plan.kernels, strict=True):
        places = [(p.pointers[entry.buffers[i]], b.size * b.dtype.itemsize) for i, b in enumerate(kernel.buffers)]
        stored = {s.buffer for phase in kernel.phases for s in phase.stores}
        written = [place for place, b in zip(places, kernel.buffers, strict=True) if b.name in stored]
        since = [] if entry.barrier else since
        for wide, touched, wrote in since:
            if wide or entry.parallel:
                pairs = [*product(touched, written), *product(wrote, places)]
                assert not any(a < c + d and c < a + b for (a, b), (c, d) in pairs), kernel.name
        since.append((bool(entry.parallel), places, written))
        kept += not entry.barrier
    assert kept > 5  # the updates do not wait for each other


def test_addresses_and_scalars_are_written_as_memory() -> None:
    i = Axis("i", 10)
    lr = cast(expr("scalar", (), dtypes.float64, "lr"), dtypes.float32)
    store = Store("y", ix.of(i), expr("load", (), dtypes.float32, ("x", ix.of(i))) * lr)
    kernel = Kernel(
        "scaled",
        (i,),
        (Phase(stores=(store,)),),
        (Buffer("x", dtypes.float32, 10), Buffer("y", dtypes.float32, 10)),
        (ScalarArg("lr", dtypes.float64),),
    )
    x, y = np.arange(10, dtype="f"), np.zeros(10, "f")
    p = runtime.Program([(load([kernel])[0], [0, 1], [0])], 2, 1)
    struct.pack_into("2Q", p.pointers, 0, x.ctypes.data, y.ctypes.data)
    struct.pack_into("d", memoryview(p.scalars).cast("B"), 0, 0.5)
    p.run()
    np.testing.assert_array_equal(y, x / 2)


def test_an_index_out_of_range_is_reported_with_the_kernels_name() -> None:
    (k,) = load([gather_kernel()])
    x, ids, y = np.arange(10, dtype="f"), np.zeros(1000, np.int64), np.zeros(1000, "f")
    p = program((k, [x, ids, y]))
    p.run()
    for bad in (10, -1, 1 << 60):
        ids[700] = bad
        with pytest.raises(IndexError, match=f"gather_rows: position {bad} is out of range for a buffer of 10 elements"):
            p.run()
    ids[700] = 9
    p.run()
    assert y[700] == 9


def test_wrong_slots_are_refused() -> None:
    (k,) = load([scale_kernel()])
    with pytest.raises(ValueError, match="slots"):
        runtime.Program([(k, [0, 2], [])], 2, 0)


def test_thread_counts_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        runtime.set_num_threads(0)
    runtime.set_num_threads(3)
    assert runtime.get_num_threads() == 3


def test_more_threads_than_cores_give_the_same_result() -> None:
    x, y = np.random.rand(N).astype("f"), np.zeros(N, "f")
    p = program((load([scale_kernel()])[0], [x, y]))
    for count in (1, 2, 7, 3):
        y[:] = 0
        runtime.set_num_threads(count)
        p.run()
        np.testing.assert_array_equal(y, x * 2)


def test_programs_may_run_from_several_python_threads() -> None:
    kernels = load([scale_kernel(), total_kernel()])
    wrong: list[int] = []

    def work(seed: int) -> None:
        x, y, s = np.random.default_rng(seed).random(N, "f"), np.zeros(N, "f"), np.zeros(1, "f")
        p = program((kernels[0], [x, y]), (kernels[1], [y, s]))
        for _ in range(30):
            p.run()
            if not np.isclose(s[0], 2 * x.astype(float).sum(), rtol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_runs_after_any_pause_are_complete_and_threads_sleep_in_the_end() -> None:
    x, y = np.random.rand(N).astype("f"), np.zeros(N, "f")
    p = program((load([scale_kernel()])[0], [x, y]))
    before = set(threads_by_state())
    runtime.set_num_threads(1 + runtime.get_num_threads())  # a thread that other tests have not started
    for pause in (0, 6e-5, 1e-4, 1e-4, 3e-4, 1e-4, 2e-3) * 5:  # shorter and longer than they spin
        time.sleep(pause)
        y[:] = 0
        p.run()
        np.testing.assert_array_equal(y, x * 2)
    made = set(threads_by_state()) - before
    end = time.monotonic() + 30
    while any(threads_by_state()[t] == "R" for t in made) and time.monotonic() < end:
        time.sleep(0.01)
    assert all(threads_by_state()[t] == "S" for t in made)


def threads_by_state() -> dict[str, str]:
    """What each thread of this process does, by its number: R is running, S sleeping. Nothing where the system does not tell."""
    return {p.parent.name: p.read_text().rpartition(")")[2].split()[0] for p in Path("/proc/self/task").glob("*/stat")}


def _child(connection: Any, p: runtime.Program, y: np.ndarray[Any, Any]) -> None:
    y[:] = 0
    p.run()
    connection.send(float(y.sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_its_own_threads() -> None:
    x, y = np.ones(N, "f"), np.zeros(N, "f")
    p = program((load([scale_kernel()])[0], [x, y]))
    p.run()
    receive, send = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads, which is the point here
        child = multiprocessing.get_context("fork").Process(target=_child, args=(send, p, y))
        child.start()
    assert receive.poll(30), "the child hangs"
    assert receive.recv() == 2 * N
    child.join(30)
    p.run()
    assert y.sum() == 2 * N


def test_the_arena_is_aligned_and_kept() -> None:
    small, big = runtime.arena(1000), runtime.arena(5 << 20)
    assert small % 64 == 0 and big % (2 << 20) == 0
    assert runtime.arena(100) == big
    ctypes.memset(small, 1, 1000)  # an address handed out stays valid
    ctypes.memset(big, 1, 5 << 20)
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(runtime.arena(1000)))
    other.start()
    other.join()
    assert seen != [big]


def test_equal_kernels_of_different_layers_share_one_function(folder: Path) -> None:
    first, second, other = load(
        [scale_kernel(), scale_kernel("layer2", buffers=("h", "fc2.out"), origin="b.py:7"), scale_kernel(factor=3.0)]
    )
    assert first.address == second.address != other.address
    assert (first.name, second.name) == ("scale", "layer2")
    assert "b.py:7" in second.source and "fc2_out" in second.source


def test_missing_kernels_are_compiled_by_one_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    real = subprocess.run

    def count(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return real(command, **options)

    runtime.runtime()
    monkeypatch.setattr(subprocess, "run", count)
    load([scale_kernel(factor=f) for f in (1.0, 2.0, 3.0)])
    load([scale_kernel(factor=f) for f in (3.0, 2.0)])
    assert len(commands) == 1
    assert "-ffast-math" not in commands[0]


@pytest.mark.slow
def test_a_second_process_finds_the_kernels_on_disk(folder: Path) -> None:
    key = load([scale_kernel(factor=7.0)])[0].key
    code = (
        "import subprocess, sys; sys.path.insert(0, sys.argv[1]); import test_runtime_cpu as t; from torchlet.runtime import cc\n"
        "real = cc.subprocess.run\n"
        "def only_runtime(command, **o):\n    assert 'tl_gemm' in open(command[-3]).read(), command\n    return real(command, **o)\n"
        "cc.subprocess.run = only_runtime\n"
        "print(t.load([t.scale_kernel(factor=7.0)])[0].key)"
    )
    environment = {**os.environ, "TORCHLET_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, env=environment, timeout=900, check=False
    )
    assert found.stdout.strip() == key, found.stderr


def test_a_damaged_library_is_built_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load([scale_kernel(factor=5.0)])
    (library,) = [p for p in folder.glob("kernels-*.so")]
    content = library.read_bytes()
    os.replace(library, folder / "moved.so")  # the loaded one stays mapped
    library.write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(loading, "_ADDRESSES", {})
    (k,) = load([scale_kernel(factor=5.0)])
    x, y = np.ones(N, "f"), np.zeros(N, "f")
    program((k, [x, y])).run()
    assert y[0] == 5
    assert library.read_bytes() != content[: len(content) // 2]


def test_a_damaged_entry_is_built_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (k,) = load([scale_kernel(factor=6.0)])
    (folder / f"{k.key}.json").write_text("{not json")
    monkeypatch.setattr(loading, "_ADDRESSES", {})
    assert load([scale_kernel(factor=6.0)])[0].key == k.key


def test_the_cache_is_private(folder: Path) -> None:
    load([scale_kernel(factor=8.0)])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_unusable_cache_folder_warns_once_and_compiles_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_ADDRESSES", {})
    blocked = tmp_path / "file"
    blocked.write_text("")
    with config(cache_dir=str(blocked / "cache")):
        with pytest.warns(UserWarning, match="cannot be used"):
            load([scale_kernel(factor=9.0)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load([scale_kernel(factor=10.0)])


def test_a_missing_compiler_is_a_compile_error(folder: Path) -> None:
    with config(cc="no-such-compiler"), pytest.raises(CompileError, match="no C compiler found"):
        load([scale_kernel(factor=11.0)])


def test_a_failing_compiler_is_a_compile_error_with_its_output(folder: Path, tmp_path: Path) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho something went wrong >&2\nexit 3\n")
    fake.chmod(0o755)
    with config(cc=str(fake)), pytest.raises(CompileError, match="status 3:\nsomething went wrong"):
        load([scale_kernel(factor=12.0)])
    assert list(folder.glob("build-*")) == []


def test_what_is_built_ahead_is_built_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    real = subprocess.run

    def count(command: list[str], **options: Any) -> Any:
        commands.append(Path(command[-3]).read_text())
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", count)
    wanted = [(f"part-{i}", f"int part_{i}(void) {{ return {i}; }}") for i in range(3)]
    cc.build_ahead(wanted)
    for (key, _), (path, digest) in zip(wanted, cc.libraries(wanted), strict=True):
        assert path == folder / f"{key}.so" and cc.verified(path, digest)
    cc.build_ahead(wanted)
    assert sorted(commands) == sorted(text for _, text in wanted)
    assert ctypes.CDLL(str(folder / "part-2.so")).part_2() == 2


def test_an_error_of_what_was_built_ahead_comes_to_who_needs_it(folder: Path) -> None:
    wanted = [("good", "int good;"), ("bad", "this is no C")]
    cc.build_ahead(wanted)
    with pytest.raises(CompileError, match="failed with status"):
        cc.libraries(wanted)
    assert cc.library(*wanted[0])[0].exists() and not (folder / "bad.so").exists()


def test_a_child_of_fork_builds_what_its_parent_is_building(folder: Path) -> None:
    with cc._locks.setdefault("child", threading.Lock()):
        child = multiprocessing.get_context("fork").Process(target=cc.library, args=("child", "int child;"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        child.join(60)
        assert child.exitcode == 0 and (folder / "child.so").exists()


def test_many_kernels_are_compiled_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PART", 1000)
    monkeypatch.setattr(runtime, "cores", lambda: 3)
    factors = [float(f) for f in range(100, 112)]
    kernels = load([scale_kernel(factor=f) for f in factors])
    assert len(list(folder.glob("kernels-*.so"))) == 3
    x, y = np.ones(N, "f"), np.zeros(N, "f")
    for k, factor in zip(kernels, factors, strict=True):
        program((k, [x, y])).run()
        assert y[0] == factor
    monkeypatch.setattr(loading, "_ADDRESSES", {})
    before = COUNTS["compiled"]
    load([scale_kernel(factor=f) for f in factors])
    assert COUNTS["compiled"] == before


def test_config_refuses_unknown_switches() -> None:
    with pytest.raises(AttributeError, match="no switch named 'threads'"), config(threads=1):
        pass


def test_fingerprint_depends_on_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cc.fingerprint()
    monkeypatch.setattr(cc, "FLAGS", (*cc.FLAGS, "-g"))
    cc._fingerprint.cache_clear()
    cc._command.cache_clear()
    assert cc.fingerprint() != before
    monkeypatch.undo()
    cc._fingerprint.cache_clear()
    cc._command.cache_clear()
