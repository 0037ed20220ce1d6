"""compile(f, replay=True): Python is skipped once calls have proven alike, and a difference is never kept quiet."""

from __future__ import annotations

import pytest
from harness import catch, mlp, plain, randn, same, state

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F
from torchlet.compiler.function import compiled_function
from torchlet.errors import CompileError


def signature(f):
    """What is known of the only kind of call."""
    (known,) = compiled_function(f).replayer.table.values()
    return known


def test_replayed_calls_give_what_plain_calls_give():
    def f(x, k):
        return {"y": (x * k + 1).tanh(), "n": 3, "pair": (x, [x.sum()])}

    g = torch.compile(f, replay=True)
    for i in range(20):
        same(plain(f(randn(3, seed=i), 0.1 * i)), plain(g(randn(3, seed=i), 0.1 * i)))
    assert signature(g).replayed == 20 - 3 - 3  # the first three, and calls 4, 8 and 16


def test_python_does_not_run_in_replayed_calls():
    ran = []

    @torch.compile(replay=True)
    def f(x):
        ran.append(1)
        return x * 2

    for _ in range(16):
        f(randn(3))
    assert len(ran) == 3 + 3


def train(compile, make, steps=20, scheduler=None):
    model = mlp()
    opt = make(model.parameters())

    def step(x, y):
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss

    f = compile(step)
    out = [[f(randn(5, 6, seed=i), randn(5, 3, seed=i + 50)).item(), state(model)] for i in range(steps)]
    return plain(out), f


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_training_step_is_replayed(momentum):
    expected, _ = train(lambda f: f, lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum))
    found, f = train(lambda f: torch.compile(f, replay=True), lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum))
    same(expected, found)
    assert signature(f).replayed > 10


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW_amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 0.01 * (i + 1)} for i, q in enumerate(p)], weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_own_numbers_are_asked_of_it_in_replayed_calls(name):
    expected, _ = train(lambda f: f, OPTIMIZERS[name])
    found, f = train(lambda f: torch.compile(f, replay=True), OPTIMIZERS[name])
    same(expected, found)
    assert signature(f).replayed > 10


@pytest.mark.parametrize("name", ["Adam", "groups"])
def test_learning_rates_and_decays_that_change_between_replayed_calls_count(name):
    def run(compile):
        model = mlp()
        opt = OPTIMIZERS[name](model.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)

        def step(x):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()

        f = compile(step)
        out = []
        for i in range(40):
            f(randn(5, 6, seed=i))
            schedule.step()
            if i == 20:
                opt.param_groups[-1]["weight_decay"] = 0.3 if name == "Adam" else 0.0  # another kind of step, not only another number
            out.append([state(model), [s["step"] for s in opt.state.values()]])
        return plain(out), f

    expected, _ = run(lambda f: f)
    found, f = run(lambda f: torch.compile(f, replay=True))
    same(expected, found)
    assert signature(f).replayed > 20


@pytest.mark.parametrize("how", ["schedule", "by hand"])
def test_a_call_that_changes_the_learning_rate_itself_is_followed_and_explained(how):
    def run(compile):
        model = mlp()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(opt, 3)

        def step(x):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
            if how == "schedule":
                schedule.step()
            else:
                opt.param_groups[0]["lr"] *= 0.9

        f = compile(step)
        return plain([[f(randn(5, 6, seed=i)), state(model)] for i in range(20)]), f

    expected, _ = run(lambda f: f)
    found, f = run(lambda f: torch.compile(f, replay=True))
    same(expected, found)
    assert signature(f).replayed == 0
    assert "hyperparameters" in str(torch.explain(f)(randn(5, 6)))


def test_a_changed_python_number_raises_in_the_next_followed_call():
    box = [2.0]

    @torch.compile(replay=True)
    def f(x):
        return x * box[0]

    for _ in range(6):
        f(randn(3))
    box[0] = 3.0
    with pytest.raises(CompileError, match=r"test_replay\.py:\d+: mul: the number 2\.0 → 3\.0"):
        for _ in range(4):
            f(randn(3))
    same(plain(randn(3) * 3.0), plain(f(randn(3))))  # afterwards it is followed again


def test_a_changed_branch_raises_and_names_the_first_step_that_differs():
    mode = ["a"]

    @torch.compile(replay=True)
    def f(x):
        y = x * 2
        return y.sin() if mode[0] == "a" else y.cos()

    for _ in range(5):
        f(randn(3))
    mode[0] = "b"
    with pytest.raises(CompileError, match="cos instead of sin"):
        for _ in range(4):
            f(randn(3))


def test_numbers_that_decide_are_facts_not_data():
    @torch.compile(replay=True)
    def f(x, n):
        for _ in range(n):
            x = x * 2
        return x

    for n in (2, 2, 2, 2, 2, 3, 2, 4, 3):
        same(plain(randn(3) * 2**n), plain(f(randn(3), n)))


def test_branches_on_the_value_of_an_argument_are_never_replayed():
    @torch.compile(replay=True)
    def f(x, flag):
        return x * 2 if flag.item() > 0 else x - 1

    for i in range(12):
        flag = torch.tensor(1.0 if i < 9 else -1.0)
        same(plain(randn(3) * 2 if i < 9 else randn(3) - 1), plain(f(randn(3), flag)))
    assert "a value was read" in signature(f).reason


def test_results_kept_elsewhere_are_never_replayed():
    kept = []

    @torch.compile(replay=True)
    def f(x):
        kept.append(x * 3)
        return x * 2

    for i in range(8):
        f(randn(3, seed=i))
    same(plain([randn(3, seed=i) * 3 for i in range(8)]), plain(kept))
    assert "kept elsewhere" in signature(f).reason


def test_random_numbers_are_never_replayed():
    f = torch.compile(lambda x: F.dropout(x, 0.5), replay=True)
    torch.manual_seed(1)
    found = [f(torch.ones(8)) for _ in range(8)]
    torch.manual_seed(1)
    same(plain([F.dropout(torch.ones(8), 0.5) for _ in range(8)]), plain(found))


def test_gradients_that_accumulate_follow_the_caller():
    w = randn(3, grad=True)
    v = randn(3, grad=True)

    def loss(w, x):
        (w * x).sin().sum().backward()

    f = torch.compile(lambda x: loss(w, x), replay=True)
    for i in range(24):
        if i % 6 == 5:
            w.grad = v.grad = None
        if i == 14:
            w.grad, v.grad = torch.ones(3), torch.ones(3)
        f(randn(3, seed=i))
        loss(v, randn(3, seed=i))
        same(plain(v.grad), plain(w.grad))


def test_argument_changes_that_matter_are_followed():
    def f(x, y):
        return x * 2 + y

    g = torch.compile(f, replay=True)
    x = randn(4, 4)
    cases = [(x, x), (x, x.t()), (x, randn(4, 4)), (x.double(), x), (x[0], x), (randn(4, 4, grad=True), x)]
    for _ in range(6):
        for a, b in cases:
            same(plain(f(a, b)), plain(g(a, b)))


def test_a_written_argument_that_shares_memory_with_another_is_followed():
    def f(a, b):
        a.add_(1)
        return a + b

    g = torch.compile(f, replay=True)
    for shared in (False, False, False, False, False, True, False, True):
        x, y = randn(8), randn(8)
        expected = f(y[:4], y[2:6] if shared else y[4:].clone())
        same(plain(expected), plain(g(x[:4], x[2:6] if shared else x[4:].clone())))
        same(plain(y), plain(x))


def test_forward_with_a_backward_pass_outside_is_replayed():
    model = nn.Linear(3, 2)
    f = torch.compile(lambda x: model(x).tanh().sum(), replay=True)
    for i in range(12):
        model.zero_grad()
        f(randn(3, seed=i)).backward()
        found = state(model)
        model.zero_grad()
        model(randn(3, seed=i)).tanh().sum().backward()
        same(plain(state(model)), plain(found))
    assert signature(f).replayed > 5


def test_a_step_that_looks_up_positions_is_replayed_and_fails_where_eager_fails():
    def run(compile):
        torch.manual_seed(0)
        table, head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.1)

        def step(ids, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(head(table(ids)), y)
            loss.backward()
            optimizer.step()
            return loss

        f = compile(step)
        out = []
        for i in range(24):
            ids, y = torch.tensor([i % 5, 1, 9 if i == 13 else 2]), torch.tensor([0, 1, 7 if i == 19 else 2])
            out.append(catch(f, ids, y))
        return f, [plain(x) for x in (*out, *table.parameters(), *head.parameters())]

    _, expected = run(lambda f: f)
    f, found = run(lambda f: torch.compile(f, replay=True))
    assert [x[0] for x in expected[:24]].count("IndexError") == 2
    same(expected, found)
    assert signature(f).replayed > 8


def test_positions_that_change_in_place_are_looked_at_again():
    table = torch.arange(5.0)
    f = torch.compile(lambda ids: F.embedding(ids, table.view(5, 1)), replay=True)
    ids = torch.tensor([0, 1])
    for _ in range(6):
        f(ids)
    assert signature(f).replayed > 0
    ids[0] = 7
    with pytest.raises(IndexError):
        f(ids)
    ids[0] = 4
    assert f(ids).tolist() == [[4.0], [1.0]]


def test_kinds_of_calls_that_take_turns_each_read_their_own_tensors():
    small, large = torch.ones(3), torch.ones(3) * 5  # alike, so that both kinds of call walk one path

    @torch.compile(replay=True)
    def f(x, which):
        return x * (small if which == "small" else large)

    for i in range(12):
        x = randn(3, seed=i)
        same(plain(f(x, "small")), plain(x * small))
        same(plain(f(x, "large")), plain(x * large))
    assert sum(known.replayed for known in compiled_function(f).replayer.table.values()) == 2 * 7


def test_arguments_in_tuples_lists_dictionaries_and_keywords_are_replayed_as_they_come():
    def f(pair, more, *, scale, flag=None):
        a, b = pair
        return {"sum": (a + b * scale).sum(), "kept": [more["x"][0] * 2, a]}

    g = torch.compile(f, replay=True)
    for i in range(20):
        a, b, c = (randn(3, seed=3 * i + k) for k in range(3))
        pair = (a, a) if i == 14 else (a, b)
        same(plain(f(pair, {"x": [c]}, scale=0.5 * i)), plain(g(pair, {"x": [c]}, scale=0.5 * i)))
    table = compiled_function(g).replayer.table
    assert [(known.calls, known.replayed) for known in table.values()] == [(19, 13), (1, 0)]
    for more in ({"y": [a]}, {"x": (a,)}, {"x": [a, a]}):
        catch(lambda more=more: g((a, b), more, scale=1.0))
    assert len(table) == 5


def test_a_launch_that_fails_in_a_replayed_call_leaves_no_gradient_behind():
    w = torch.ones(3, requires_grad=True)

    @torch.compile(replay=True)
    def f(x):
        w.grad = None
        loss = (w * x).sum()
        loss.backward()
        return loss

    for i in range(6):
        f(randn(3, seed=i))
    program = signature(f).plan.program
    launch = program.launch

    def broken(numbers):
        raise RuntimeError("broken")

    program.launch = broken
    assert catch(lambda: f(randn(3)))[0] == "RuntimeError"
    assert w.grad is None
    program.launch = launch
    x = randn(3, seed=9)
    assert f(x).item() == pytest.approx(x.sum().item(), rel=1e-6) and torch.equal(w.grad, x)
