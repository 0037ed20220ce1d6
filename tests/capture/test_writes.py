"""In-place operations on what autograd follows: steps of the path like any other, and everything is as in eager execution."""

from __future__ import annotations

import pytest
from harness import catch, compare, plain, randn, registry, same, state

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
