"""Tensors, gradients, modules and optimizers whose state changes between calls: compiled code does what plain code does."""

from __future__ import annotations

import contextlib
import copy
import pickle

import numpy as np
import pytest
from harness import catch, compare, mlp, plain, randn, registry, state

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS, program = registry()
X = [randn(3, seed=i) for i in range(8)]


def leaf(seed=9, *shape):
    return randn(*(shape or (3,)), seed=seed, grad=True)


# ------------------------------------------------------------------------------------------------ memory


@program
def storage_replaced_through_data(compile):
    w = randn(3)
    f = compile(lambda x: x * w + 1)
    out = [f(X[0])]
    w.data = randn(3, seed=5)
    out.append(f(X[0]))
    w.data = randn(1, seed=6)
    out.append(f(X[0]))
    return out


@program
def data_replaced_inside(compile):
    w = leaf()

    def f(x):
        y = w * x
        w.data = w.data * 0.5
        return y.detach() + w.detach()

    g = compile(f)
    return [g(X[i]) for i in range(3)] + [w]


@program
def views_made_outside_see_writes_inside(compile):
    x = randn(3, 4)
    row, column, flat = x[1], x[:, 2], x.view(-1)

    def f(k):
        x.mul_(k)
        x[0] = 1.0
        return row + 1, column * 1, flat[5] * 1

    g = compile(f)
    return [[g(k), x, row] for k in (2.0, 3.0, 0.5)]


@program
def overlapping_slices_written(compile):
    def f(x):
        x[1:] = x[:-1] * 2
        x[:2] += x[1:3]
        return x.sum()

    g = compile(f)
    out = []
    for i in range(3):
        x = randn(5, seed=i)
        out.append([g(x), x])
    return out


@program
def read_write_read_in_order(compile):
    def f(x):
        a = x * 2
        x.add_(1)
        b = x * 2
        x.mul_(x)
        c = x - a
        x.zero_()
        return a, b, c

    g = compile(f)
    out = []
    for i in range(3):
        x = X[i].clone()
        out.append([g(x), x])
    return out


@program
def python_reads_between_writes(compile):
    def f(x):
        seen = []
        for i in range(4):
            x.add_(i)
            if i % 2:
                seen.append(x.sum().item())
        return seen, x * 2

    g = compile(f)
    x = X[0].clone()
    return [g(x), g(x), x]


@program
def alias_passed_in_various_ways(compile):
    def f(a, b, c):
        a.add_(b)
        b.mul_(2)
        return a + b + c

    g = compile(f)
    out = []
    base = randn(8)
    for make in (
        lambda t: (t[:4].clone(), t[4:].clone(), t[:4].clone()),
        lambda t: (t[:4], t[:4], t[:4]),
        lambda t: (t[:4], t[2:6], t[4:]),
        lambda t: (t[::2], t[1::2], t[:4]),
        lambda t: (t[:4], t[4:], t[:4].clone()),
        lambda t: (t[:4].clone(), t[4:].clone(), t[:4].clone()),
    ):
        t = base.clone()
        out.append([g(*make(t)), t])
    return out


@program
def expanded_and_transposed_inputs(compile):
    f = compile(lambda a: (a * 2 + 1).sum(-1))
    x = randn(3, 4)
    return [f(x), f(x.t()), f(x[:, :1].expand(3, 4)), f(x[::2]), f(x[:, ::2]), f(x.t()[1]), f(x[0]), f(x)]


@program
def results_that_are_views(compile):
    def f(x):
        y = x * 2
        return y, y[0], y.t(), y.view(-1)[2:4], x[1], x.detach()

    g = compile(f)
    out = []
    for i in range(3):
        x = randn(2, 3, seed=i)
        r = g(x)
        r[0].add_(10)
        r[4].zero_()
        out.append([*r, x])
    return out


@program
def copy_fill_zero_and_setitem_forms(compile):
    def f(x, y):
        z = torch.zeros(2, 3)
        z.copy_(x)
        z[0].fill_(5)
        z[1, 1:] = y[:2]
        z[:, 0] = torch.arange(2)
        z[z > 4] = -1.0
        z[torch.tensor([0, 1]), torch.tensor([2, 2])] = 7.0
        w = z.clone()
        w.zero_()
        return z, w, z.masked_fill(z < 0, 0.0)

    g = compile(f)
    return [g(randn(2, 3, seed=i), X[i]) for i in range(3)]


@program
def ring_buffer_across_calls(compile):
    buffer, position = torch.zeros(4, 3), 0

    def f(x):
        nonlocal position
        buffer[position % 4] = x * 2
        position += 1
        return buffer.mean(0)

    g = compile(f)
    return [g(X[i]) for i in range(6)] + [buffer, position]


@program
def exponential_moving_average(compile):
    average = torch.zeros(3)

    def f(x, decay):
        average.mul_(decay).add_(x, alpha=1 - decay)
        return average * 1

    g = compile(f)
    return [g(X[i], 0.1 * i) for i in range(5)] + [average]


@program
def tensor_swapped_with_another(compile):
    a, b = X[0].clone(), X[1].clone()

    def f():
        nonlocal a, b
        a, b = b + 1, a * 2
        return a - b

    g = compile(f)
    return [g() for _ in range(4)] + [a, b]


@program
def hidden_state_carried_by_the_caller(compile):
    cell = nn.Linear(6, 3)
    f = compile(lambda x, h: torch.tanh(cell(torch.cat([x, h]))))
    h = torch.zeros(3)
    out = []
    for i in range(5):
        h = f(X[i], h)
        out.append(h)
    return [h.detach() for h in out]


@program
def version_counters(compile):
    def f(x):
        before = x._version
        x.add_(1)
        x.mul_(2)
        return before, x * 1

    g = compile(f)
    x = X[0].clone()
    return [g(x), g(x), x._version]


@program
def shapes_alternate(compile):
    f = compile(lambda x: (x * 2).mean(-1) + x.shape[0])
    return [f(randn(n, 4, seed=n)) for n in (2, 3, 2, 3, 5, 2, 0, 1)]


@program
def dtypes_alternate(compile):
    f = compile(lambda x: (x * 2 + 1).sum())
    xs = [X[0], X[0].double(), torch.arange(3), torch.arange(3, dtype=torch.int32), X[0] > 0, torch.arange(3, dtype=torch.uint8)]
    return [f(x).double() for x in xs + xs[:3]]


@program
def default_dtype_changes(compile):
    def f(x, inside):
        if inside:
            torch.set_default_dtype(torch.float64)
        y = x / 2
        z = torch.ones(3) * y
        torch.set_default_dtype(torch.float32)
        return y.dtype, z

    g = compile(f)
    x = torch.tensor([1, 2, 3])
    out = [g(x, False), g(x, True), g(x, False)]
    torch.set_default_dtype(torch.float64)
    try:
        out.append(g(x, False))
    finally:
        torch.set_default_dtype(torch.float32)
    return [*out, g(x, True)]


@program
def random_streams(compile):
    f = compile(lambda x: (x + torch.rand(3), torch.randn(2), torch.randperm(4), F.dropout(x, 0.5)))
    torch.manual_seed(5)
    out = [f(X[0]), f(X[0])]
    saved = torch.get_rng_state()
    a = f(X[0])
    torch.set_rng_state(saved)
    b = f(X[0])
    torch.manual_seed(5)
    return [*out, a, b, f(X[0]), torch.rand(1)]


@program
def seed_set_inside(compile):
    def f(x, seed):
        torch.manual_seed(seed)
        return x + torch.rand(3)

    g = compile(f)
    return [g(X[0], s) for s in (1, 2, 1, 2**63 + 5)] + [torch.rand(2)]


@program
def exception_leaves_the_random_stream_where_plain_code_does(compile):
    def f(x, fail):
        y = x + torch.rand(3)
        if fail:
            raise ValueError
        return y * torch.rand(3)

    g = compile(f)
    torch.manual_seed(1)
    return [catch(g, X[0], i == 1) for i in range(3)] + [torch.rand(2)]


# ------------------------------------------------------------------------------------------------ gradients


@program
def leaf_becomes_a_computed_tensor(compile):
    def f(w, x):
        loss = (w * x).sin().sum()
        loss.backward()
        return loss

    g = compile(f)
    v = leaf()
    out = []
    for i in range(6):
        v.grad = None
        w = v if i % 3 == 0 else v * 2 if i % 3 == 1 else v.detach().requires_grad_()
        g(w, X[i])
        out.append([v.grad, w.grad if w.is_leaf else None])
    return out


@program
def grad_flags_and_modes(compile):
    w = leaf()

    def f(x, mode):
        with mode():
            y = w * x
        return y.requires_grad, torch.is_grad_enabled(), (y + w).sum()

    g = compile(f)
    modes = (contextlib.nullcontext, torch.no_grad, torch.enable_grad, torch.inference_mode, torch.no_grad, contextlib.nullcontext)
    out = []
    for i, mode in enumerate(modes):
        with torch.no_grad() if i % 2 else contextlib.nullcontext():
            out.append(g(X[i], mode))
    return out


@program
def grad_mode_switched_and_left(compile):
    w = leaf()

    def f(x, on):
        torch.set_grad_enabled(on)
        return (w * x).sum()

    g = compile(f)
    out = []
    try:
        for on in (True, False, True, False):
            y = g(X[0], on)
            out.append([y.requires_grad, torch.is_grad_enabled(), (w * 2).requires_grad])
    finally:
        torch.set_grad_enabled(True)
    return out


@program
def no_grad_decorators(compile):
    w = leaf()

    @torch.no_grad()
    def quiet(x):
        return w * x

    f = compile(lambda x: (quiet(x) + w).sum())
    g = compile(torch.no_grad()(lambda x: (w * x).sum()))
    h = torch.no_grad()(compile(lambda x: (w * x).sum()))
    out = []
    for i in range(2):
        y = f(X[i])
        y.backward()
        out += [y, g(X[i]), h(X[i])]
    return [*out, w.grad]


@program
def gradient_passed_to_backward(compile):
    w = leaf()

    def f(x, g):
        w.grad = None
        (w * x).backward(g)
        return w.grad

    c = compile(f)
    return [c(X[i], X[i + 1]) for i in range(3)]


@program
def backward_of_several_losses(compile):
    w = leaf()

    def f(x):
        w.grad = None
        y = (w * x).exp()
        a, b = y.sum(), (y * y).mean()
        a.backward(retain_graph=True)
        first = w.grad.clone()
        b.backward()
        return first, w.grad

    g = compile(f)
    return [g(X[i]) for i in range(3)]


@program
def gradients_read_and_changed_inside(compile):
    w = leaf()

    def f(x, scale):
        w.grad = None
        (w * x).sin().sum().backward()
        w.grad.mul_(scale)
        if w.grad.abs().max() > 1:
            w.grad = w.grad / w.grad.norm()
        with torch.no_grad():
            w.sub_(w.grad * 0.1)
        return w.grad.sum()

    g = compile(f)
    return [[g(X[i], k), w, w.grad] for i, k in enumerate((1.0, 5.0, 0.1, 3))]


@program
def gradients_kept_by_the_user(compile):
    w, kept = leaf(), []

    def f(x):
        w.grad = None
        (w * x).exp().sum().backward()
        kept.append(w.grad)

    g = compile(f)
    for i in range(4):
        g(X[i])
    return [kept, w.grad is kept[-1]]


@program
def gradient_of_one_tensor_set_as_anothers(compile):
    a, b = leaf(1), leaf(2)

    def f(x):
        (a * x + b).sin().sum().backward()

    g = compile(f)
    out = []
    for i in range(4):
        if i == 2:
            a.grad = b.grad
        if i == 3:
            a.grad, b.grad = None, torch.ones(3)
        g(X[i])
        out.append([a.grad.clone(), b.grad.clone(), a.grad is b.grad])
    return out


@program
def zero_grad_in_both_ways(compile):
    model = mlp()

    def f(x, to_none):
        model.zero_grad(set_to_none=to_none)
        model(x).pow(2).mean().backward()

    g = compile(f)
    out = []
    for i, to_none in enumerate((True, False, False, True, False)):
        g(randn(4, 6, seed=i), to_none)
        out.append(state(model))
    return out


@program
def unused_and_frozen_parameters(compile):
    a, b, c = leaf(1), leaf(2), leaf(3)

    def f(x, use_b):
        for p in (a, b, c):
            p.grad = None
        y = a * x
        if use_b:
            y = y * b
        y.sum().backward()
        return [None if p.grad is None else p.grad for p in (a, b, c)]

    g = compile(f)
    out = [g(X[0], True), g(X[0], False)]
    a.requires_grad_(False)
    out += [g(X[0], True), catch(g, X[0], False)]
    a.requires_grad_(True)
    return [*out, g(X[0], False)]


@program
def requires_grad_set_inside(compile):
    def f(x):
        x = x.detach().requires_grad_()
        (x * x).sum().backward()
        return x.grad

    g = compile(f)
    return [g(X[i]) for i in range(3)]


@program
def intermediate_requires_grad(compile):
    def f(x):
        y = x * 2
        y.requires_grad_()
        z = (y * y).sum()
        z.backward()
        return y.grad, y.requires_grad, z

    g = compile(f)
    return [g(X[i]) for i in range(3)]


@program
def retain_grad_and_hooks_on_intermediates(compile):
    w, seen = leaf(), []

    def f(x, hook):
        w.grad = None
        y = w * x
        z = y.exp()
        if hook:
            z.retain_grad()
            y.register_hook(lambda g: seen.append(g.sum().item()))
        z.sum().backward()
        return z.grad if hook else None, w.grad

    g = compile(f)
    return [g(X[i], i % 2 == 1) for i in range(4)] + [seen]


@program
def hooks_that_change_gradients_by_a_changing_number(compile):
    w, k = leaf(), [1.0]
    w.register_hook(lambda g: g * k[0])

    def f(x):
        w.grad = None
        (w * x).sum().backward()
        return w.grad

    g = compile(f)
    out = []
    for i in range(4):
        k[0] = 0.5 * i
        out.append(g(X[i]))
    return out


@program
def hook_calls_a_compiled_function(compile):
    inner = compile(lambda g: g * 2 + 1)
    w = leaf()
    w.register_hook(inner)

    def f(x):
        w.grad = None
        (w * x).sin().sum().backward()
        return w.grad

    g = compile(f)
    out = [g(X[i]) for i in range(3)]
    w.grad = None
    (w * X[0]).sum().backward()
    return [*out, w.grad]


@program
def hook_reads_values_in_the_middle_of_a_backward_pass(compile):
    w, seen = leaf(), []
    v = w * 2
    v.register_hook(lambda g: seen.append(g.sum().item()))

    def f(k):
        w.grad = None
        ((v * k).exp() + (w * k).sin() * k).sum().backward(retain_graph=True)
        return w.grad

    g = compile(f)
    return [g(k) for k in (0.1, 0.2, 0.3)] + [seen]


@program
def hook_reads_values_before_saved_outputs_are_used(compile):
    w, seen = leaf(), []
    v = w * 2
    v.register_hook(lambda g: seen.append(g.sum().item()))

    def f(k, order):
        w.grad = None
        a, b = (v * k).tanh(), ((w * k).tanh() * k).softmax(-1).exp() + 2.0 * w.sigmoid()
        y = (a + b, b + a, a * b, b * a)[order]
        y.sum().backward(retain_graph=True)
        return w.grad

    g = compile(f)
    return [g(0.1 * i, i % 4) for i in range(8)] + [seen]


@program
def autocast_on_and_off(compile):
    m = mlp(sizes=(3, 4, 2))

    def f(x):
        m.zero_grad()
        y = m(x)
        y.float().pow(2).sum().backward()
        return y.dtype, y.detach().float().mul(8).round(), m[0].weight.grad.dtype

    g = compile(f)
    out = []
    for i in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=i % 2 == 1):
            out.append(g(X[i]))
    return out


@program
def custom_function_with_state(compile):
    class Scale(torch.autograd.Function):
        factor = 2.0

        @staticmethod
        def forward(ctx, x, k):
            ctx.save_for_backward(x)
            ctx.k = k
            return x * k * Scale.factor

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * ctx.k + x, None

    w = leaf()

    def f(x, k):
        w.grad = None
        y = Scale.apply(w * x, k)
        (y * y).sum().backward()
        return y.detach(), w.grad

    g = compile(f)
    out = []
    for i in range(4):
        out.append(g(X[i], 1.0 + i))
        Scale.factor += 1
    return out


@program
def second_derivatives(compile):
    w = leaf()

    def f(x):
        y = (w * x).sin().sum() + (w**3).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        penalty = g.pow(2).sum()
        w.grad = None
        penalty.backward()
        return g.detach(), w.grad

    g = compile(f)
    return [g(X[i]) for i in range(3)]


@program
def jacobian_row_by_row(compile):
    def f(x):
        x = x.detach().requires_grad_()
        y = (x * x).cumsum(0)
        return torch.stack([torch.autograd.grad(y[i], x, retain_graph=True)[0] for i in range(3)])

    g = compile(f)
    return [g(X[i]) for i in range(2)]


@program
def grad_with_unused_and_several_outputs(compile):
    a, b = leaf(1), leaf(2)

    def f(x):
        y, z = (a * x).sum(), (a * a).sum()
        return torch.autograd.grad([y, z], [a, b], allow_unused=True)

    def bad(x):
        return torch.autograd.grad((a * x).sum(), [b])

    g = compile(f)
    return [g(X[i]) for i in range(2)] + [catch(compile(bad), X[0])]


@program
def graph_built_in_one_call_used_in_the_next(compile):
    w, memory = leaf(), {}

    def f(x):
        if "y" in memory:
            w.grad = None
            memory["y"].sum().backward()
        memory["y"] = (w * x).exp()
        return None if w.grad is None else w.grad.clone()

    g = compile(f)
    return [g(X[i]) for i in range(4)]


@program
def several_graphs_alive_at_once(compile):
    a = leaf(1, 4, 4)
    f = compile(lambda x: ((x @ a).tanh() @ a).sum())
    losses = [f(randn(2, 4, seed=i)) for i in range(5)]
    out = []
    for loss in reversed(losses):
        a.grad = None
        loss.backward()
        out.append(a.grad.clone())
    return out


@program
def backward_outside_twice_and_through_freed(compile):
    w = leaf()
    f = compile(lambda x: (w * x).exp().sum())
    loss = f(X[0])
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    loss.backward()
    again = catch(loss.backward)
    return [first, w.grad, again[0], "second time" in again[1]]


@program
def parameter_changed_between_forward_and_backward(compile):
    w = leaf()
    f = compile(lambda x: (w * w * x).sum())
    out = []
    for i in range(3):
        loss = f(X[i])
        if i == 1:
            with torch.no_grad():
                w.add_(1)
        result = catch(loss.backward)
        out.append([result[0] if result else None, None if w.grad is None else w.grad.clone()])
    return out


@program
def leaf_written_inside_raises_and_changes_nothing(compile):
    w = leaf()

    def f(x):
        y = x * 2
        try:
            w.add_(1)
        except RuntimeError as error:
            return str(error).splitlines()[0], y
        return y

    g = compile(f)
    return [g(X[i]) for i in range(3)] + [w]


@program
def in_place_chain_on_tracked_tensors(compile):
    w = leaf(1, 2, 3)

    def f(x):
        w.grad = None
        y = w * x
        y[0].mul_(2)
        y.add_(1).tanh_()
        z = y * 1
        z[:, 1] = 3.0
        z.mul_(w)
        (z * z).sum().backward()
        return w.grad, y.detach()

    g = compile(f)
    return [g(randn(2, 3, seed=i)) for i in range(3)]


@program
def detached_copies_and_clones(compile):
    w = leaf()

    def f(x):
        a = w.detach()
        b = w.clone()
        c = w.data
        w.grad = None
        (a * b * c * x).sum().backward()
        return w.grad, a.requires_grad, b.requires_grad

    g = compile(f)
    return [g(X[i]) for i in range(3)]


@program
def error_in_backward_leaves_gradients(compile):
    w = leaf()

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            raise ValueError("no")

    def f(x, bad):
        y = w * x
        if bad:
            y = Bad.apply(y)
        y.sum().backward()

    g = compile(f)
    return [[catch(g, X[i], i == 1), w.grad.clone()] for i in range(3)]


# ------------------------------------------------------------------------------------------------ modules


@program
def train_eval_and_nested_modules(compile):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)
            self.drop = nn.Dropout(0.5)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            y = self.norm(self.fc(x))
            return self.drop(y) + x if self.training else y - self.calls

    torch.manual_seed(0)
    m = nn.Sequential(Block(), nn.ReLU(), Block())
    f = compile(m)
    out = []
    for i in range(6):
        if i == 2:
            m.eval()
        if i == 4:
            m[0].train()
        torch.manual_seed(i)
        out.append(f(randn(5, 4, seed=i)).detach())
    return [out, state(m), m[0].calls]


@program
def parameters_replaced_tied_and_deleted(compile):
    m = mlp(sizes=(3, 3, 3))
    f = compile(lambda x: m(x))
    out = [f(X[0])]
    m[0].weight = nn.Parameter(torch.ones(3, 3))
    out.append(f(X[0]))
    m[2].weight = m[0].weight
    out.append(f(X[0]))
    m[0].bias = None
    out.append(f(X[0]))
    m[1] = nn.ReLU()
    out.append(f(X[0]))
    del m[2]
    out.append(f(X[0]))
    loss = f(X[1]).sum()
    loss.backward()
    return [*out, state(m)]


@program
def buffers_registered_and_rebound(compile):
    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            self.n += 1
            self.mean = self.mean * 0.9 + x * 0.1
            return x - self.mean / self.n

    m = Count()
    f = compile(m)
    return [f(X[i]) for i in range(4)] + [state(m)]


@program
def weights_loaded_between_calls(compile):
    m, other = mlp(0), mlp(1)
    f = compile(lambda x: m(x).sum())
    x = randn(2, 6)
    out = [f(x)]
    m.load_state_dict(other.state_dict())
    out.append(f(x))
    with torch.no_grad():
        for p in m.parameters():
            p.mul_(0.5)
    out.append(f(x))
    m.double()
    return [*out, f(x.double())]


@program
def hooks_on_modules(compile):
    m, seen = mlp(), []

    def f(x):
        return m(x)

    g = compile(f)
    x = randn(2, 6)
    out = [g(x)]
    pre = m[0].register_forward_pre_hook(lambda mod, args: (args[0] * 2,))
    out.append(g(x))
    post = m.register_forward_hook(lambda mod, args, y: seen.append(y.sum().item()))
    out += [g(x), g(x)]
    pre.remove()
    out.append(g(x))
    post.remove()
    out.append(g(x))
    back = m[0].register_full_backward_hook(lambda mod, gi, go: seen.append(go[0].sum().item()))
    g(x).sum().backward()
    back.remove()
    return [out, seen, state(m)]


@program
def compiled_module_is_the_module(compile):
    m = mlp()
    c = compile(m)
    x = randn(2, 6)
    out = [c(x), c.training, isinstance(c, nn.Sequential), len(c), sorted(c.state_dict())]
    c.eval()
    out.append(m.training)
    c[0] = nn.Linear(6, 8, bias=False)
    nn.init.ones_(c[0].weight)
    out += [c(x), m(x), [n for n, _ in c.named_parameters()]]
    d = copy.deepcopy(c)
    e = pickle.loads(pickle.dumps(c))
    c[0].weight.data.zero_()
    out += [c(x), d(x), e(x), type(d).__name__]
    return out


@program
def method_of_a_module_compiled(compile):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.k = 1.0

        @compile
        def forward(self, x):
            return self.fc(x) * self.k

        @compile
        def embed(self, x):
            return self(x) + 1

    torch.manual_seed(0)
    n = Net()
    out = []
    for i in range(3):
        n.k = 1.0 + i
        out += [n(X[i]), n.embed(X[i])]
    return out


@program
def forward_swapped_at_run_time(compile):
    m = mlp(sizes=(3, 3))
    c = compile(m)
    out = [c(X[0])]
    m.forward = lambda x: x * 2
    out.append(c(X[0]))
    del m.forward
    return [*out, c(X[0])]


@program
def two_models_through_one_function(compile):
    a, b = mlp(0, (3, 4, 2)), mlp(1, (3, 4, 2))
    f = compile(lambda m, x: m(x).sum())
    out = []
    for i in range(6):
        m = a if i % 3 else b
        m.zero_grad()
        f(m, X[i]).backward()
        out.append(state(m))
    return out


@program
def modules_made_inside(compile):
    def f(x, width):
        torch.manual_seed(width)
        m = nn.Sequential(nn.Linear(3, width), nn.ReLU())
        m(x).sum().backward()
        return m[0].weight.grad

    g = compile(f)
    return [g(X[i], w) for i, w in enumerate((2, 4, 2))]


# ------------------------------------------------------------------------------------------------ training


def train(compile, make, steps=6, change=None, clip=None, model=None):
    model = model or mlp()
    opt = make(list(model.parameters()))

    def step(x, y):
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        return loss

    f = compile(step)
    out = []
    for i in range(steps):
        if change:
            change(i, model, opt)
        out.append([f(randn(5, 6, seed=i), randn(5, 3, seed=i + 40)).item(), state(model)])
    return [out, plain(opt.state_dict())]


@program
def sgd_options_change(compile):
    def change(i, model, opt):
        group = opt.param_groups[0]
        if i == 1:
            group["momentum"] = 0.9
        if i == 2:
            group["lr"], group["weight_decay"] = 0.5, 0.1
        if i == 3:
            group["nesterov"] = True
        if i == 4:
            group["maximize"] = True

    return train(compile, lambda p: torch.optim.SGD(p, lr=0.1), change=change)


@program
def adam_options_change(compile):
    def change(i, model, opt):
        group = opt.param_groups[0]
        if i == 1:
            group["betas"] = (0.5, 0.9)
        if i == 2:
            group["lr"] = 0.2
        if i == 3:
            group["eps"], group["weight_decay"] = 1e-3, 0.1

    return train(compile, lambda p: torch.optim.Adam(p, lr=0.05), change=change)


@program
def optimizer_state_loaded_and_parameters_frozen(compile):
    saved = {}

    def change(i, model, opt):
        if i == 2:
            saved.update(copy.deepcopy(opt.state_dict()))
        if i == 4:
            opt.load_state_dict(saved)
        if i == 5:
            model[0].weight.requires_grad_(False)
            model[0].weight.grad = None

    return train(compile, lambda p: torch.optim.AdamW(p, lr=0.05), change=change)


@program
def parameter_groups_added(compile):
    def change(i, model, opt):
        if i == 2:
            model.append(nn.Linear(3, 3))
            opt.add_param_group({"params": list(model[-1].parameters()), "lr": 0.3})
        if i == 4:
            opt.param_groups[1]["lr"] = 0.01

    return train(compile, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), change=change)


@program
def clipping_and_gradient_scaling(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x, scale):
        opt.zero_grad()
        (model(x).pow(2).mean() * scale).backward()
        for p in model.parameters():
            p.grad.div_(scale)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if torch.isfinite(norm):
            opt.step()
        return norm

    f = compile(step)
    return [[f(randn(4, 6, seed=i), s).item(), state(model)] for i, s in enumerate((1.0, 128.0, 65536.0, float("inf"), 2.0))]


@program
def schedulers_step_inside_and_outside(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sched = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)

    def step(x):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        opt.step()
        sched.step()
        return loss, opt.param_groups[0]["lr"]

    f = compile(step)
    return [[f(randn(4, 6, seed=i)), state(model)] for i in range(6)]


@program
def closure_step(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        def closure():
            opt.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            return loss

        return opt.step(closure)

    f = compile(step)
    return [[f(randn(4, 6, seed=i)), state(model)] for i in range(3)]


@program
def several_steps_in_one_call_with_early_stop(compile):
    model = mlp(sizes=(3, 3))
    opt = torch.optim.Adam(model.parameters(), lr=0.1)

    def fit(x, n):
        losses = []
        for _ in range(n):
            opt.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            opt.step()
            losses.append(loss.item())
            if losses[-1] < 0.05:
                break
        return losses

    f = compile(fit)
    return [[f(X[i], n), state(model)] for i, n in enumerate((2, 5, 3))]


@program
def only_the_gradient_is_compiled(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    @compile
    def gradients(x):
        model.zero_grad()
        model(x).pow(2).mean().backward()

    out = []
    for i in range(4):
        gradients(randn(4, 6, seed=i))
        opt.step()
        out.append(state(model))
    return out


@program
def loss_history_kept_as_tensors(compile):
    model, losses = mlp(), []
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        opt.step()
        losses.append(loss.detach())
        losses[:] = losses[-3:]
        return sum(losses) / len(losses)

    f = compile(step)
    return [f(randn(4, 6, seed=i)) for i in range(6)] + [losses]


@program
def interrupted_training_step(compile):
    model = mlp()
    opt = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(x, where):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        if where == 1:
            raise KeyError("before backward")
        loss.backward()
        if where == 2:
            raise KeyError("before step")
        opt.step()
        if where == 3:
            raise KeyError("after step")
        return loss

    f = compile(step)
    return [[catch(f, randn(4, 6, seed=i), w), state(model), plain(opt.state_dict())] for i, w in enumerate((0, 1, 0, 2, 3, 0))]


@program
def adversarial_two_optimizers(compile):
    g, d = mlp(0, (3, 4, 3)), mlp(1, (3, 4, 1))
    og, od = torch.optim.Adam(g.parameters(), lr=0.05), torch.optim.SGD(d.parameters(), lr=0.1)

    def step(z, real):
        fake = g(z)
        od.zero_grad()
        (F.softplus(d(fake.detach())) + F.softplus(-d(real))).mean().backward()
        od.step()
        og.zero_grad()
        loss = F.softplus(-d(fake)).mean()
        loss.backward()
        og.step()
        return loss

    f = compile(step)
    return [[f(randn(4, 3, seed=i), randn(4, 3, seed=i + 9)), state(g), state(d)] for i in range(4)]


@program
def language_model_step(compile):
    torch.manual_seed(0)
    emb, head = nn.Embedding(7, 4), nn.Linear(4, 7)
    opt = torch.optim.AdamW([*emb.parameters(), *head.parameters()], lr=0.05)

    def step(tokens):
        opt.zero_grad()
        x = emb(tokens[:, :-1]) + emb(torch.arange(tokens.shape[1] - 1))
        loss = F.cross_entropy(head(x).view(-1, 7), tokens[:, 1:].reshape(-1))
        loss.backward()
        opt.step()
        return loss

    f = compile(step)
    rng = np.random.default_rng(0)
    batches = [torch.tensor(rng.integers(0, 7, (2, 5))) for _ in range(4)]
    out = [[f(b), state(emb), state(head)] for b in batches]
    bad = batches[0].clone()
    bad[0, 2] = 7
    return [*out, [catch(f, bad), state(head)], [f(batches[1]), state(head)]]


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])


def test_a_saved_view_of_a_written_parameter_survives_a_launch_in_the_middle_of_the_backward_pass():
    """The view is pending when it is saved; the launch gives it its base's memory, whose version is not 0."""
    seen = torch.from_numpy(np.ones((3, 3), np.float32))  # what NumPy can see is computed at once, its gradient too

    def gradient(wrap):
        weight, factor = torch.nn.Parameter(torch.arange(8.0).view(4, 2)), torch.nn.Parameter(torch.ones(3, 3))
        with torch.no_grad():
            weight.mul_(1.5)

        def step(x):
            scaled = seen * factor
            _, lower = weight.split([1, 3])
            loss = (scaled * torch.nn.functional.linear(x, lower)).sum()
            loss.backward()
            return loss

        return wrap(step)(torch.ones(3, 2, requires_grad=True)).item(), weight.grad.tolist(), factor.grad.tolist()

    assert gradient(torch.compile) == gradient(lambda f: f)
