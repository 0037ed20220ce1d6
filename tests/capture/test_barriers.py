"""The rules that make following sound, one by one: each test breaks where its rule is taken away. Also what happens when a launch fails."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import re
import sys
import threading
import time

import numpy as np
import pytest
from harness import mlp, plain, randn, same, state

import torchlet as torch
import torchlet.nn as nn
from torchlet.compiler.program import Program
from torchlet.errors import CompileError
from torchlet.op import STATE


def line_of(f, text):
    """file:line of a piece of a function."""
    lines, first = inspect.getsourcelines(inspect.unwrap(f))
    return rf"\S*test_barriers\.py:{first + next(i for i, line in enumerate(lines) if text in line)}\b"


# ------------------------------------------------------------------------------------------------ the six rules


def test_rule_1_a_value_that_is_read_is_there():
    f = torch.compile(lambda x: ((x * 2).sum().item(), (x + 1).tolist(), bool((x > 0).any()), f"{x[0] * 3:.3f}", np.asarray(x * 2).sum()))
    for i in range(3):
        same(plain(f.function(randn(3, seed=i))), plain(f(randn(3, seed=i))))


def test_rule_1_a_tensor_that_is_there_is_read_after_the_writes_before_it():
    def f(x):
        seen = [x.sum().item()]
        x.add_(1)
        seen.append(x.tolist())
        x.mul_(2)
        return seen, x.numpy().copy()

    g = torch.compile(f)
    for i in range(3):
        same(plain(f(randn(3, seed=i))), plain(g(randn(3, seed=i))))


def test_rule_2_replaced_memory_and_flags_come_after_what_was_computed_before():
    def f(x, w):
        y = w * x
        w.data = torch.ones(3)
        z = w * x
        w.requires_grad_(not w.requires_grad)
        return y.detach(), z.detach(), (w * 2).requires_grad

    g = torch.compile(f)
    for i in range(4):
        a, b = randn(3, seed=i, grad=i % 2 == 0), randn(3, seed=i, grad=i % 2 == 0)
        same(plain([f(randn(3), a), a]), plain([g(randn(3), b), b]))


def test_rule_3_memory_that_numpy_sees_is_never_deferred():
    def f(x, window):
        y = x + 1
        window[0] = 50.0
        x.mul_(2)
        first = float(window[1])
        window[1] = -1.0
        return y, x + 1, first

    g = torch.compile(f)
    for i in range(3):
        a, b = randn(3, seed=i), randn(3, seed=i)
        same(plain([f(a, a.numpy()), a]), plain([g(b, b.numpy()), b]))


def test_rule_4_another_thread_gets_the_value_of_a_pending_tensor():
    def f(x):
        y = x * 2
        out = []
        worker = threading.Thread(target=lambda: out.append((y + 1).sum().item()))
        worker.start()
        worker.join(timeout=20)
        assert not worker.is_alive(), "two threads wait for each other"
        return y * 3, out

    g = torch.compile(f)
    for i in range(5):
        same(plain(f(randn(3, seed=i))), plain(g(randn(3, seed=i))))


def test_rule_4_holds_while_the_owner_goes_on():
    stop = threading.Event()
    box: list = [torch.zeros(3)]
    wrong: list = []

    def look():
        while not stop.is_set():
            t, n = box[0], getattr(box[0], "n", 0)
            try:
                if n and abs((t * 1).sum().item() - 3 * n) > 1e-3:
                    wrong.append((t.tolist(), n))
            except Exception as error:
                wrong.append(error)

    def f(x, n):
        for k in range(20):
            y = x * n
            y.n = n
            box[0] = y
            z = y + k
        return y + z

    g = torch.compile(f)
    watchers = [threading.Thread(target=look) for _ in range(2)]
    for w in watchers:
        w.start()
    try:
        x, end = torch.ones(3), time.monotonic() + 2
        n = 0
        while time.monotonic() < end:
            n = n % 50 + 1
            same(plain(torch.ones(3) * (2 * n + 19)), plain(g(x, n)))
    finally:
        stop.set()
        for w in watchers:
            w.join()
    assert not wrong


def test_rule_5_the_end_of_the_call_computes_what_someone_still_holds():
    kept = []

    def f(x, fail):
        kept.append(x * 2)
        x.add_(1)
        if fail:
            raise ValueError("after")
        return (x * 3 for _ in range(2))

    g = torch.compile(f)
    for fail in (False, True, False):
        x, y = randn(3), randn(3)
        kept.clear()
        expected = None
        with contextlib.suppress(ValueError):
            expected = plain(list(f(x, fail)))
        before = plain([kept, x])
        kept.clear()
        if fail:
            with pytest.raises(ValueError, match="after"):
                g(y, fail)
        else:
            same(expected, plain(list(g(y, fail))))
        same(before, plain([kept, y]))


def test_rule_6_what_fails_on_data_fails_at_its_line_and_changes_nothing():
    model, table = mlp(sizes=(3, 3)), nn.Embedding(4, 3)

    @torch.compile
    def f(i):
        model[0].weight.data.mul_(0.5)
        y = model(table(i))
        model[0].bias.data.zero_()
        return y

    f(torch.tensor([1, 3]))
    before = state(model)
    with pytest.raises(IndexError) as caught:
        f(torch.tensor([1, 4]))
    assert str(caught.value) == "Embedding(4, 3): embedding: index 4 is out of bounds for dimension 0 with size 4"
    place = line_of(f, "table(i)").removesuffix(r"\b").rpartition(":")[2]
    assert any(entry.lineno + 1 == int(place) for entry in caught.traceback)
    same(plain(before["0.bias"]), plain(model[0].bias.detach() * 1))
    same(plain(before["0.weight"] * 0.5), plain(model[0].weight.detach() * 1))


# ------------------------------------------------------------------------------------------------ a launch that fails


def break_launches(monkeypatch, error, everything=False):
    """Programs raise from now on; with `everything`, so does running step by step."""

    def fail(*_):
        raise error

    broken = property(lambda self: fail, lambda self, value: vars(self).update(launch=value))
    monkeypatch.setattr(Program, "launch", broken, raising=False)
    if everything:
        monkeypatch.setattr(Program, "left_no_trace", lambda self, error: True)
        monkeypatch.setattr("torchlet.compiler.capture.run_stepwise", fail)


def test_a_failed_launch_is_run_step_by_step_instead(monkeypatch):
    f = torch.compile(lambda x: (x * 2 + 1).sum())
    f(randn(3))
    with monkeypatch.context() as patch:
        break_launches(patch, MemoryError("arena"))
        same(plain(f.function(randn(3, seed=1))), plain(f(randn(3, seed=1))))
    assert "MemoryError: arena" in str(torch.explain(f)(randn(3)))


def test_a_call_that_cannot_be_computed_leaves_nothing_half_done(monkeypatch):
    model, kept = mlp(), []
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile
    def step(x):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        kept.append(loss)
        loss.backward()
        opt.step()
        return loss

    x = randn(4, 6)
    step(x)
    step(x)
    before = plain({k: v for k, v in state(model).items() if not k.startswith("grad")})
    with monkeypatch.context() as patch:
        break_launches(patch, MemoryError("no memory"), everything=True)
        with pytest.raises(MemoryError, match="no memory"):
            step(x)
        assert all(p.grad is None for p in model.parameters())  # as zero_grad left them
    same(before, plain({k: v for k, v in state(model).items() if not k.startswith("grad")}))
    with pytest.raises(RuntimeError, match="never computed, because the launch of its segment failed with MemoryError"):
        kept[-1].item()
    with pytest.raises(RuntimeError, match="never computed"):
        torch.compile(lambda t: t * 2)(kept[-1])
    expected = model(x).pow(2).mean().item()
    assert step(x).item() == pytest.approx(expected, rel=1e-4)  # the trie is usable


def test_interrupts_at_any_time_leave_the_function_usable():
    f = torch.compile(lambda x, k: (x * k + 1).tanh().sum() + (x - k).sum())
    x = randn(3)
    expected = [f(x, 0.5 + i).item() for i in range(3)]
    hits = 0

    def interrupt(frame, event, arg):
        nonlocal countdown
        if event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "try:":
            return interrupt  # nothing is executed there, and no interrupt arrives
        countdown -= 1
        if countdown == 0:
            raise KeyboardInterrupt
        return interrupt if frame.f_code.co_filename.endswith("capture.py") or event == "call" else None

    for start in range(1, 140):
        countdown = start
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            f(x, 7.0)
        except KeyboardInterrupt:
            hits += 1
        finally:
            sys.settrace(before)
        assert STATE.run is None, f"after an interrupt at event {start}"
        assert [f(x, 0.5 + i).item() for i in range(3)] == expected, f"after an interrupt at event {start}"
    assert hits > 20


# ------------------------------------------------------------------------------------------------ options


def test_fullgraph_raises_where_the_segment_ends():
    @torch.compile(fullgraph=True)
    def f(x):
        y = x * 2
        if y.sum().item() > 0:
            return y + 1
        return y

    for _ in range(2):
        with pytest.raises(CompileError, match=rf"more than one segment.*{line_of(f, '.item()')}"):
            f(torch.ones(3))
    g = torch.compile(lambda x: (x * 2).sum(), fullgraph=True)
    for i in range(3):
        same(plain(g.function(randn(3, seed=i))), plain(g(randn(3, seed=i))))


def test_disabled_functions_run_plainly_inside_compiled_ones():
    modes = []

    @torch.compiler.disable
    def plainly(x):
        modes.append(torch.compiler.is_compiling())
        return x * 2

    @torch.compiler.disable(recursive=False)
    def also(x):
        return x + 1

    def f(x):
        modes.append(torch.compiler.is_compiling())
        return also(plainly(x + 1)) * 3

    g = torch.compile(f)
    for i in range(2):
        same(plain((randn(3, seed=i) + 1) * 2 * 3 + 3), plain(g(randn(3, seed=i))))
    assert modes == [True, False] * 2
    assert "plainly is disabled" in str(torch.explain(g)(randn(3)))


def test_reset_forgets_everything():
    f = torch.compile(lambda x: x * 2)
    f(randn(3))
    torch.compiler.reset()
    assert not f.paths and not f.programs
    same(plain(randn(3) * 2), plain(f(randn(3))))


def test_explain_tells_each_line_where_a_segment_ended():
    @torch.compile
    def f(x, how):
        y = x * 2
        if how == "item":
            y.sum().item()
        if how == "numpy":
            y.numpy()
        return y + 1

    for how in ("item", "numpy", ""):
        f(randn(3), how)
    text = str(torch.explain(f)(randn(3), "item"))
    for piece in ("y.sum().item()", "y.numpy()"):
        assert re.search(line_of(f, piece) + r": a value was read", text), text


def test_generators_are_named_as_uncompiled():
    @torch.compile
    async def f(x):
        return x

    assert "coroutine" in f._uncompiled
