"""compile(f, replay=True) and optimizers: a replayed step asks for its numbers, and whatever changes it between two calls is noticed."""

from __future__ import annotations

import copy
import weakref

import pytest
from harness import mlp, plain, randn, same, state
from test_replay import signature

import torchlet as torch
import torchlet.nn.functional as F
from torchlet.compiler.function import compiled_function
from torchlet.optim import optimizer as optimizer_module

CALLS, EVENT = 44, 19


class Training:
    """A model that is trained by a compiled step; `event` happens once between two calls."""

    def __init__(self, compile, make, event=lambda t: None, zero="optimizer"):
        self.model, self.spare = mlp(), randn(3, seed=99, grad=True)
        self.opt = make([*self.model.parameters(), self.spare])
        self.out, self.event, self.notes = [], event, []

        def step(x, y):
            (self.opt if zero == "optimizer" else self.model).zero_grad()
            loss = F.mse_loss(self.model(x), y)
            loss.backward()
            self.opt.step()
            return loss

        self.f = compile(step)

    def run(self):
        for i in range(CALLS):
            if i == EVENT:
                self.event(self)
            loss = self.f(randn(5, 6, seed=i), randn(5, 3, seed=i + 50)).item()
            numbers = [{k: v for k, v in s.items() if not isinstance(v, torch.Tensor)} for s in self.opt.state.values()]
            self.out.append(plain([loss, state(self.model), self.spare, numbers, list(self.notes)]))
        return [self.out, plain(self.opt.state_dict()["state"])]


def both(make, event=lambda t: None, zero="optimizer"):
    """Followed and replayed training give the same, call by call; the replayed one. They run the same kernels, so nothing is rounding."""
    expected = Training(torch.compile, make, event, zero).run()
    training = Training(lambda f: torch.compile(f, replay=True), make, event, zero)
    same(expected, training.run())
    return training


MAKERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD_nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW_amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 0.01 * (i + 1)} for i, q in enumerate(p)], weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, t0=5),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.01),
}


@pytest.mark.parametrize("name", MAKERS)
def test_replayed_steps_and_their_counts_are_those_of_plain_steps(name):
    assert signature(both(MAKERS[name]).f).replayed > 20


@pytest.mark.parametrize("name", ["SGD", "Adam", "Muon"])
def test_a_replayed_call_does_not_run_the_optimizers_step(name, monkeypatch):
    ran = []
    gathered = optimizer_module.with_grads
    module = {"SGD": "sgd", "Adam": "optimizer", "Muon": "muon"}[name]
    monkeypatch.setattr(f"torchlet.optim.{module}.with_grads", lambda params: ran.append(1) or gathered(params))
    training = Training(lambda f: torch.compile(f, replay=True), MAKERS[name])
    training.run()
    assert len(ran) == CALLS - signature(training.f).replayed < 10


def _hyper(name, value):
    def event(t):
        t.opt.param_groups[0][name] = value() if callable(value) else value

    return event


def _reload(t):
    t.opt.load_state_dict(copy.deepcopy(t.opt.state_dict()))


def _load_older(t):
    saved = t.opt.state_dict()
    for s in saved["state"].values():
        s["step"] = torch.tensor(3.0)
    t.opt.load_state_dict(saved)


def _count_of_one(t):
    t.opt.state[t.model[0].weight]["step"] = 2.0


def _new_average(t):
    t.opt.state[t.model[0].weight]["exp_avg"] = torch.ones_like(t.model[0].weight)


def _no_state(t):
    del t.opt.state[t.model[0].bias]


def _another_group(t):
    t.late = randn(3, seed=7, grad=True)
    t.late.grad = torch.ones(3)
    t.opt.add_param_group({"params": [t.late], "lr": 0.2})
    t.notes.append(t.late)


def _one_less(t):
    t.opt.state.pop(t.opt.param_groups[0]["params"].pop(0), None)


def _frozen(t):
    t.model[0].weight.requires_grad_(False)


def _post_hook(t):
    t.opt.register_step_post_hook(lambda opt, args, kwargs: t.notes.append(len(t.notes)))


def _pre_hook(t):
    def slower(opt, args, kwargs):
        opt.param_groups[0]["lr"] *= 0.9

    t.opt.register_step_pre_hook(slower)


EVENTS = {
    "lr": _hyper("lr", 0.01), "lr tensor": _hyper("lr", lambda: torch.tensor(0.01)), "betas": _hyper("betas", (0.5, 0.9)),
    "eps": _hyper("eps", 0.1), "weight decay": _hyper("weight_decay", 0.3), "maximize": _hyper("maximize", True), "reload": _reload,
    "load older": _load_older, "count of one": _count_of_one, "new average": _new_average, "no state": _no_state,
    "another group": _another_group, "one less": _one_less, "frozen": _frozen, "post hook": _post_hook, "pre hook": _pre_hook,
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_what_changes_an_optimizer_between_replayed_calls_is_noticed(name):
    both(MAKERS["Adam"], EVENTS[name])


@pytest.mark.parametrize("name", ["lr", "weight decay", "maximize", "frozen", "post hook", "one less"])
def test_what_changes_sgd_between_replayed_calls_is_noticed(name):
    both(MAKERS["SGD"], EVENTS[name])


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_gradient_that_is_put_where_none_was_is_noticed(name):
    def event(t):
        t.spare.grad = torch.ones(3)

    both(MAKERS[name], event, zero="model")


def test_a_gradient_that_is_taken_away_is_noticed():
    def event(t):
        t.spare.grad = None

    def make(params):
        params[-1].grad = torch.ones(3)
        return torch.optim.Adam(params, lr=0.05)

    training = both(make, event, zero="model")
    assert signature(training.f).replayed > 20


def test_parameters_that_join_later_keep_counts_of_their_own():
    def make(params):
        params[0].requires_grad_(False)
        return torch.optim.Adam(params, lr=0.05)

    def event(t):
        t.model[0].weight.requires_grad_(True)

    assert signature(both(make, event).f).replayed > 10


def test_a_tensor_as_learning_rate_is_read_in_each_call():
    rate = torch.tensor(0.05)

    def event(t):
        rate.fill_(0.01)

    expected = Training(torch.compile, lambda p: torch.optim.Adam(p, lr=rate), event).run()
    rate.fill_(0.05)
    same(expected, Training(lambda f: torch.compile(f, replay=True), lambda p: torch.optim.Adam(p, lr=rate), event).run())


class Counting(torch.optim.SGD):
    """An optimizer with a step of its own."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps == 30:
            self.param_groups[0]["lr"] = 0.01
        return super().step(closure)


def test_a_subclass_with_a_step_of_its_own_runs_it_in_every_call():
    def event(t):
        t.notes.append(t.opt.steps)

    training = both(lambda p: Counting(p, lr=0.1), event)
    assert training.opt.steps == CALLS and signature(training.f).replayed > 10


def test_a_step_that_was_replaced_is_run():
    ran = []

    class Mine(torch.optim.SGD):
        pass

    def event(t):
        plain_step = Mine.step
        Mine.step = lambda self, closure=None: ran.append(1) or plain_step(self, closure)

    training = Training(lambda f: torch.compile(f, replay=True), lambda p: Mine(p, lr=0.1), event)
    training.run()
    assert len(ran) == CALLS - EVENT


@pytest.mark.parametrize("how", ["two", "twice", "own step and hook"])
def test_several_steps_in_one_call(how):
    def run(compile):
        a, b = randn(3, seed=1, grad=True), randn(3, seed=2, grad=True)
        first = torch.optim.Adam([a], lr=0.1)
        second = first if how == "twice" else torch.optim.AdamW([b], lr=0.1)
        if how == "own step and hook":
            second.register_step_post_hook(lambda *_: None)
        out = []

        def step(x):
            a.grad = b.grad = None
            (a * b * x).sum().backward()
            first.step()
            second.step()

        f = compile(step)
        for i in range(CALLS):
            if i == EVENT:  # of the later one only, so that what the earlier one has done already has to be undone
                second.param_groups[0]["weight_decay"] = 0.5 if how == "twice" else 0.0
            f(randn(3, seed=i))
            out.append(plain([a, b, [s["step"] for opt in (first, second) for s in opt.state.values()]]))
        return out, f

    expected, _ = run(lambda f: f)
    found, f = run(lambda f: torch.compile(f, replay=True))
    same(expected, found)
    assert signature(f).replayed > 20 or how == "twice"


def test_kinds_of_calls_that_take_turns_share_an_optimizers_counts():
    def run(compile):
        model = mlp()
        opt = torch.optim.Adam(model.parameters(), lr=0.05)

        def step(x):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()

        f = compile(step)
        out = []
        for i in range(60):
            f(randn(5 if i % 3 else 2, 6, seed=i))
            out.append(plain([state(model), [s["step"] for s in opt.state.values()]]))
        return out, f

    expected, _ = run(lambda f: f)
    found, f = run(lambda f: torch.compile(f, replay=True))
    same(expected, found)
    assert sorted(known.replayed for known in compiled_function(f).replayer.table.values()) == [13, 33]  # the first kind makes the state


@pytest.mark.parametrize("how", ["kept", "array", "weak", "named", "read"])
def test_gradients_of_earlier_calls_stay_what_they_were(how):
    def run(compile):
        w = randn(4, grad=True)
        opt = torch.optim.SGD([w], lr=0.1)

        def step(x):
            opt.zero_grad()
            loss = (w * x).square().sum()
            loss.backward()
            opt.step()
            return loss

        f = compile(step)
        kept, seen, out = [], None, []
        for i in range(24):
            f(randn(4, seed=i))
            if how == "weak":
                out.append(seen is None or seen() is None)
                seen = weakref.ref(w.grad)
            elif how == "named":
                out.append(getattr(w.grad, "note", None))
                w.grad.note = i
            elif how == "read":
                out.append(plain(w.grad))
            else:
                kept.append(w.grad if how == "kept" else w.grad.numpy())
        return plain([out, [torch.as_tensor(k) for k in kept], w])

    same(run(lambda f: f), run(lambda f: torch.compile(f, replay=True)))
