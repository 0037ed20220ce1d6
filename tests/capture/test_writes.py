"""In-place operations on what autograd follows: steps of the path like any other, and everything is as in eager execution."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from harness import catch, compare, mlp, plain, randn, registry, same, state

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS, program = registry()


def follow(compile, body, outside=False, calls=3):
    """Values, gradients and identities of `calls` calls of `body(x, w)`; the backward pass is inside or outside of the call."""

    @compile
    def f(x, w):
        out = body(x, w)
        y = out[0] if isinstance(out, tuple) else out
        if not outside:
            y.sum().backward()
        return out

    seen = []
    x, w = randn(2, 3, seed=1), randn(2, 3, seed=2, grad=True)
    for _ in range(calls):
        out = f(x, w)
        if outside:
            y = out[0] if isinstance(out, tuple) else out
            seen.append(catch(y.sum().backward))
        seen.append([out, w.grad, [t._version for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]])
        w.grad = None
    return seen


BODIES = {}


def body(f):
    BODIES[f.__name__] = f
    return f


@body
def relu_after_an_operation(x, w):
    h = x * w
    y = h.relu_()
    return h, y is h


@body
def what_is_overwritten_is_still_wanted_by_the_write_itself(x, w):
    h = x * w
    h.mul_(w).sin_().pow_(3)
    return h


@body
def a_number_multiplied_by_itself(x, w):
    h = x * w
    h.mul_(h)
    return h


@body
def a_residual_is_added(x, w):
    identity = x * w
    out = identity.tanh() * 2
    out += identity
    return F.relu(out, inplace=True)


@body
def a_fresh_tensor_is_filled_row_by_row(x, w):
    out = torch.zeros(2, 3)
    before = out.requires_grad
    for i in range(2):
        out[i] = w[i] * (x[i] + i)
    return out * 2, before, out.requires_grad


@body
def a_column_is_scaled(x, w):
    h = x * w
    h[:, 1] *= 3.0
    h[:, 2] = w[:, 0]
    return h


@body
def elements_under_a_mask_are_replaced(x, w):
    h = (x * w).clone()
    h[x > 0] = 0
    h.masked_fill_(w.detach() < 0, 0.5)
    return h


@body
def elements_are_put_at_positions(x, w):
    h = x * w
    h[torch.tensor([1, 0]), torch.tensor([0, 2])] = w[0, :2]
    return h


@body
def a_view_made_before_sees_the_write(x, w):
    h = x * w
    v = h[0]
    h.mul_(2.0)
    return h + v * 3


@body
def the_base_sees_a_write_through_views(x, w):
    h = x * w
    h.t()[1:].mul_(w.t()[1:])
    return h * 1.5


@body
def a_write_through_a_view_that_is_kept(x, w):
    h = x * w
    v = h[:, :2]
    v.tanh_()
    return v * 2, v, h


@body
def filling_cuts_the_gradient(x, w):
    h = x * w
    g = h * 2
    h.zero_()
    return g + h, h


@body
def a_clamp_and_a_copy(x, w):
    h = x * w
    h.clamp_(-0.5, 0.5)
    g = torch.empty(2, 3)
    g.copy_(h)
    return g, h


@body
def another_dtype_is_converted(x, w):
    h = (x * w).double()
    h.add_(w)
    return h


@body
def a_transposed_target_keeps_its_memory_order(x, w):
    h = (x * w).t().contiguous().t() * 1
    h.add_(w).tanh_()
    return h, h.stride()


@body
def a_diagonal_is_written(x, w):
    h = x * w
    h.diagonal().mul_(2.0)
    return h


@body
def a_view_made_before_its_base_follows_gradients(x, w):
    out = torch.ones(2, 3)
    v = out[0]
    out.mul_(w)
    return (v * w[0]) + 0 * out.sum(), v


@body
def a_detached_alias_is_written(x, w):
    h = x * w
    y = h * 3
    h.detach().add_(1.0)
    return y + h


@body
def a_write_while_nothing_is_recorded(x, w):
    h = x * w
    with torch.no_grad():
        h.mul_(2.0)
        c = torch.ones(2, 3)
        c.add_(w)
    return h + c


@body
def a_kept_input_is_overwritten_and_raises(x, w):
    h = w.exp()
    y = h * w
    h.add_(1.0)
    return y


@body
def a_kept_result_is_overwritten_and_raises(x, w):
    h = w.exp()
    h.add_(1.0)
    h.add_(1.0)
    return h


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_writes_to_what_autograd_follows_do_as_in_eager(name, outside):
    def run(compile):
        return catch(follow, compile, BODIES[name], outside)

    same(plain(run(lambda f: f)), plain(run(torch.compile)))


ONE_SEGMENT = [
    "relu_after_an_operation", "what_is_overwritten_is_still_wanted_by_the_write_itself", "a_number_multiplied_by_itself",
    "a_residual_is_added", "a_fresh_tensor_is_filled_row_by_row", "a_column_is_scaled", "elements_under_a_mask_are_replaced",
    "elements_are_put_at_positions", "a_view_made_before_sees_the_write", "the_base_sees_a_write_through_views",
    "a_write_through_a_view_that_is_kept", "filling_cuts_the_gradient", "a_clamp_and_a_copy", "another_dtype_is_converted",
    "a_transposed_target_keeps_its_memory_order", "a_detached_alias_is_written", "a_write_while_nothing_is_recorded",
]


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", ONE_SEGMENT)
def test_writes_to_what_autograd_follows_do_not_end_a_segment(name, outside):
    compiled = []

    def compile(f):
        compiled.append(torch.compile(f))
        return compiled[0]

    catch(follow, compile, BODIES[name], outside)
    steps = compiled[0].steps_recorded
    assert len(compiled[0].paths) == 1, [p.reasons for p, _ in compiled[0].paths]
    catch(follow, lambda f: compiled[0], BODIES[name], outside)
    assert compiled[0].steps_recorded == steps  # the path is followed, not recorded anew


def test_a_residual_network_with_operations_in_place_trains_in_one_segment():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.norm(self.conv(x))
            out += x
            return self.relu(out)

    def train(compile):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Block(), Block(), nn.Flatten(), nn.Linear(144, 2))
        opt = torch.optim.SGD(net.parameters(), lr=0.001)

        def step(x):
            opt.zero_grad()
            loss = net(x).pow(2).mean()
            loss.backward()
            opt.step()
            return loss

        step = compile(step)
        return [step(randn(2, 3, 8, 8, seed=i)) for i in range(4)], state(net), step

    *expected, _ = train(lambda f: f)
    *found, step = train(torch.compile)
    same(plain(expected), plain(found))
    assert len(step.paths) == 1


@program
def a_second_backward_pass_after_a_write_raises(compile):
    @compile
    def f(w):
        x = torch.ones(3) * 2
        y = (w * x).sum()
        y.backward(retain_graph=True)
        x.add_(1)
        y.backward()

    w = randn(3, grad=True)
    return [catch(f, w) for _ in range(3)], w.grad


@program
def versions_count_the_writes_of_the_call(compile):
    @compile
    def f(a):
        x = a * 2
        x.add_(1)
        seen = x._version
        x[0] = 3.0
        return x, x[1:], seen

    out = []
    for _ in range(3):
        x, v, seen = f(randn(3))
        out.append([x, v, seen, x._version, v._version])
    return out


@program
def a_graph_that_keeps_nothing_is_walked_twice(compile):
    @compile
    def f(w):
        y = (w + 1).sum()
        y.backward()
        return y

    @compile
    def g(w):
        return w + 1

    w = randn(3, grad=True)
    y, z = f(w), g(w).sum()
    return catch(y.backward), catch(z.backward), catch(z.backward), w.grad


@program
def a_graph_that_is_used_up_says_which_operation_kept_something(compile):
    @compile
    def f(w):
        y = (w.exp() + 1).sum()
        y.backward()
        return y * 2

    @compile
    def g(w):
        return (w.exp() + 1).sum()

    w = randn(3, grad=True)
    y, z = f(w), g(w)
    z.backward()
    return catch(y.backward), catch(z.backward), w.grad


@program
def leaves_and_their_views_refuse_to_be_written(compile):
    @compile
    def f(w, how):
        h = w * 2
        if how == "leaf":
            w.add_(1)
        elif how == "view":
            w[0] = 1.0
        elif how == "integer":
            (h > 0).add_(h)
        return h

    w = randn(3, grad=True)
    return [catch(f, w, how) for how in ("leaf", "view", "integer", "", "leaf")], w


@program
def what_changes_between_calls(compile):
    @compile
    def f(w, x, flag):
        h = x * 2
        h.mul_(w)
        if flag:
            h.relu_()
        h[0] = x[0]
        return h

    out = []
    for i in range(6):
        w = randn(2, 3, seed=i, grad=i % 3 != 2)
        h = f(w, randn(2, 3, seed=9), i % 2)
        if h.requires_grad:
            out.append(catch(h.sum().backward))
        out.append([h, w.grad, h.requires_grad])
    return out


@program
def positions_that_are_written_in_place_are_tested_anew(compile):
    @compile
    def f(x, i):
        best = x.argmax(-1)
        best.add_(i)
        return x[0][best]

    return [catch(f, randn(2, 3), i) for i in (0, 0, 100, 0)]


@program
def a_fresh_tensor_that_requires_grad_only_in_some_calls(compile):
    @compile
    def f(w, use):
        out = torch.zeros(2, 3)
        if use:
            out[0] = w[0]
        kept = out.requires_grad
        return out * 2, kept

    w = randn(2, 3, grad=True)
    return [f(w, use) for use in (True, False, True, False, False, True)]


def mutate_then_differentiate(compile, function, change):
    """The backward pass of a call whose operands or results were overwritten since."""
    f = compile(function)
    out = []
    for _ in range(2):
        x, w = randn(3, seed=1), randn(3, grad=True)
        y, *more = f(x, w)
        change(x, y, *more)
        out.append([catch(y.sum().backward), w.grad])
    return out


@program
def an_argument_that_nothing_keeps_is_overwritten_in_the_call(compile):
    def f(x, w):
        y = (x * 2) * w
        x.add_(1)
        return (y,)

    return mutate_then_differentiate(compile, f, lambda x, y: None)


@program
def an_argument_that_nothing_keeps_is_overwritten_by_the_caller(compile):
    return mutate_then_differentiate(compile, lambda x, w: (((x * 2).exp() * w).tanh(),), lambda x, y: x.add_(1))


@program
def an_argument_that_is_kept_is_overwritten_by_the_caller(compile):
    return mutate_then_differentiate(compile, lambda x, w: (x * w,), lambda x, y: x.add_(1))


@program
def a_result_that_is_kept_is_overwritten_by_the_caller(compile):
    return mutate_then_differentiate(compile, lambda x, w: ((x * w).tanh(),), lambda x, y: y.add_(1))


@program
def a_result_that_is_not_kept_is_overwritten_by_the_caller(compile):
    return mutate_then_differentiate(compile, lambda x, w: ((x * w) * 2,), lambda x, y: y.add_(1))


@program
def a_further_result_is_overwritten_by_the_caller(compile):
    def f(x, w):
        h = x + 1
        return h * w, h

    return mutate_then_differentiate(compile, f, lambda x, y, h: h.add_(1))


@program
def a_further_result_that_could_be_computed_from_is_overwritten_by_the_caller(compile):
    def f(x, w):
        h = x * w
        return (h * 2).exp(), h[1:]

    return mutate_then_differentiate(compile, f, lambda x, y, v: v.detach().add_(1))


@program
def hooks_on_accumulated_gradients_come_and_go(compile):
    model = mlp()

    @compile
    def f(x):
        y = model(x)
        y.mul_(2)
        y.pow(2).mean().backward()
        return y

    out = [f(randn(2, 6)), state(model)]
    handle = model[0].weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5))
    out += [f(randn(2, 6)), state(model)]
    handle.remove()
    return [*out, f(randn(2, 6)), state(model)]


@program
def an_exception_between_writes(compile):
    log = []

    @compile
    def f(x, w, bad):
        h = x * w
        try:
            h.relu_()
            if bad:
                raise KeyError("first")
            h.add_(w)
        except KeyError:
            h.mul_(w)
            if bad == 2:
                raise ValueError("second") from None
        finally:
            log.append(len(log))
            h.sub_(1)
            w.grad = None if w.grad is None else w.grad * 0.5
        h.sum().backward()
        return h

    w = randn(2, 3, seed=1, grad=True)
    return [[catch(f, randn(2, 3), w, bad), None if w.grad is None else w.grad.clone()] for bad in (0, 1, 2, 0, 2, 1)], log


@program
def a_context_manager_that_writes(compile):
    seen = []

    @contextlib.contextmanager
    def scope(x):
        seen.append("in")
        try:
            yield x.mul_(2)
        finally:
            x.add_(1)
            seen.append("out")

    @compile
    def f(x, w, bad):
        h = x * w
        with scope(h) as y:
            if bad:
                raise RuntimeError("no")
            y.exp_()
        return h, y is h

    w = randn(3, seed=1, grad=True)
    return [[catch(f, randn(3), w, bad), list(seen)] for bad in (0, 1, 0)]


@program
def a_coroutine_that_writes(compile):
    @compile
    async def f(x, w):
        h = x * w
        h.relu_()
        await asyncio.sleep(0)
        return h * 1

    @compile
    def g(x, w):
        h = x * w
        return h.add_(1)

    w = randn(3, seed=1, grad=True)

    async def several():
        found = await asyncio.gather(*[f(randn(3, seed=i), w) for i in range(3)])
        return [g(h, w) for h in found]

    found = asyncio.run(several())
    sum(h.sum() for h in found).backward()
    return found, w.grad


@program
def threads_that_write_in_one_function(compile):
    w = randn(3, 3, seed=5, grad=True)

    @compile
    def f(x):
        h = x @ w
        h.relu_()
        h[0] = 1.0
        return h.sum()

    out = {}

    def work(i):
        for k in range(10):
            out[i, k] = f(randn(2 + i % 2, 3, seed=i * 31 + k)).item()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out


@program
def what_is_stored_for_the_next_call_is_overwritten_there(compile):
    kept = {}
    w = randn(3, seed=1, grad=True)

    @compile
    def f(x):
        if "h" in kept:
            kept["h"].mul_(2)
        h = x * w
        h.add_(kept.get("h", 0.0))
        kept["h"] = h
        return h.sum()

    return [catch(lambda i=i: f(randn(3, seed=i)).backward(retain_graph=True)) for i in range(4)], w.grad, kept["h"]


@program
def gradients_of_gradients_through_writes(compile):
    w = randn(3, seed=1, grad=True)

    @compile
    def inside(x):
        h = x * w
        h.mul_(w)
        h.tanh_()
        (g,) = torch.autograd.grad(h.sum(), w, create_graph=True)
        g.pow(2).sum().backward()
        return g

    @compile
    def outside(x):
        h = x * w
        h[1:].mul_(w[:2])
        return h.sigmoid_()

    out = []
    for _ in range(2):
        out.append([inside(randn(3)), w.grad.clone()])
        (g,) = torch.autograd.grad(outside(randn(3)).sum(), w, create_graph=True)
        g.pow(2).sum().backward()
        out.append([g, w.grad.clone()])
    return out


@program
def hooks_and_retained_gradients_around_a_write(compile):
    w = randn(3, seed=1, grad=True)
    log = []

    @compile
    def f(x):
        h = x * w
        h.register_hook(lambda g: log.append(g.clone()))
        h.mul_(2)
        h.register_hook(lambda g: g * 3)
        h.retain_grad()
        h.sum().backward()
        return h, h.grad

    return [catch(f, randn(3)) for _ in range(2)], w.grad, log


@program
def writes_that_fail_say_what_eager_says(compile):
    @compile
    def f(x, w, k):
        h = x * w
        try:
            if k == 0:
                h.add_(torch.zeros(5))
            elif k == 1:
                h[7] = 1.0
            elif k == 2:
                h[torch.tensor([9])] = w[0]
            elif k == 3:
                h.copy_(torch.zeros(2, 2))
            elif k == 4:
                h.expand(2, 3).add_(1)
        except Exception as error:
            return type(error).__name__, str(error), h
        return h

    return [catch(f, randn(3), randn(3, grad=True), k) for k in (0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4)]


@program
def layers_that_work_in_place(compile):
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.5, inplace=True), nn.SiLU(inplace=True), nn.Linear(8, 2), nn.Hardtanh(inplace=True),
        nn.LeakyReLU(0.1, inplace=True), nn.ELU(inplace=True),
    )
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(randn(*p.shape, seed=i))

    @compile
    def f(x):
        y = model(x)
        y.sum().backward()
        return y

    torch.manual_seed(3)
    return [catch(f, randn(5, 4)) for _ in range(3)], state(model)


@program
def second_derivatives_through_a_segment_that_overwrote_its_inputs(compile):
    total = torch.ones(3)

    @compile
    def before(x):
        total.add_(1)
        return (x * total).sin().sum()

    @compile
    def after(x):
        y = (x + total).sin().sum()
        total.add_(1)
        return y

    @compile
    def both(x):
        y = (x + total).sin()
        total.add_(1)
        y = y * (x + total).cos()
        total.mul_(2)
        return y.sum()

    out = []
    for f in (before, after, both, before):
        for _ in range(2):
            x = randn(3, seed=1, grad=True)
            (g,) = torch.autograd.grad(f(x), x, create_graph=True)
            out += [g.detach(), torch.autograd.grad(g.sum(), x)]
    return out, total


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])


def test_replayed_writes_do_as_in_eager():
    def f(w, x):
        out = torch.zeros(2, 3)
        out[0] = (w[0] * x[0]).relu_()
        return out.add_(w)

    g = torch.compile(f, replay=True)
    w = randn(2, 3, grad=True)
    for i in range(8):
        x = randn(2, 3, seed=i)
        a, b = f(w, x), g(w, x)
        same(plain([a, torch.autograd.grad(a.sum(), w)]), plain([b, torch.autograd.grad(b.sum(), w)]))
