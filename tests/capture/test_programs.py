"""Programs run plainly and compiled, over several calls with state that changes in between: same results, same effects, same errors."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import threading

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS = {}


def program(f):
    """Enter a program: `f(compile)` builds state, compiles a function with `compile`, calls it, returns everything that can be observed."""
    PROGRAMS[f.__name__] = f
    return f


def plain(x):
    """Observations without tensors, so that they can be compared."""
    if isinstance(x, torch.Tensor):
        return ["tensor", str(tuple(x.shape)), x.dtype, x.requires_grad, x.detach().clone().numpy()]
    if dataclasses.is_dataclass(x):
        return plain(dataclasses.astuple(x))
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [plain(v) for v in x]
    return x


def same(a, b, where="result"):
    if isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b), f"{where}: {a} != {b}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            same(a[k], b[k], f"{where}[{k!r}]")
    elif isinstance(a, np.ndarray):
        assert a.shape == b.shape and a.dtype == b.dtype, where
        # fused kernels add in another order than NumPy and use other polynomials: a few float32 ulps
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=3e-5, atol=3e-6, err_msg=where)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=3e-5, abs=3e-6), where
    else:
        assert a == b, f"{where}: {a!r} != {b!r}"


def catch(f, *args):
    """What a call does when it may fail: its result, or the class and text of its exception."""
    try:
        return f(*args)
    except Exception as error:
        return [type(error).__name__, str(error)]


def randn(*shape, seed=0, grad=False):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), requires_grad=grad)


def mlp(seed=0, sizes=(6, 8, 3)):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()} | {
        f"grad.{k}": (None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()
    }


# ------------------------------------------------------------------------------------------------ plain functions


@program
def expression(compile):
    f = compile(lambda a, b: (a * b + 1).tanh().sum())
    return [f(randn(3, 4, seed=i), randn(4, seed=9)) for i in range(4)]


@program
def python_number_argument_changes(compile):
    f = compile(lambda x, k: x * k + k)
    return [f(randn(3), 0.5 * i) for i in range(5)] + [f(randn(3), i) for i in range(3)] + [f(randn(3), True)]


@program
def global_and_closure_change(compile):
    box = {"scale": 1.0, "shift": randn(3)}

    def f(x):
        return x * box["scale"] + box["shift"]

    g = compile(f)
    out = []
    for i in range(4):
        out.append(g(randn(3, seed=i)))
        box["scale"] += 1.5
        if i == 1:
            box["shift"] = randn(3, seed=7)
        if i == 2:
            box["shift"] = 3.0
    return out


@program
def shapes_dtypes_and_strides_change(compile):
    f = compile(lambda x: (x * 2).sum(0))
    xs = [
        randn(3, 4),
        randn(5, 4),
        randn(4, 3).t(),
        randn(3, 4).double(),
        torch.arange(12).view(3, 4),
        randn(6, 4)[::2],
        randn(0, 4),
        randn(3, 4),
    ]
    return [f(x) for x in xs]


@program
def data_dependent_branch(compile):
    def f(x):
        y = x * 2
        if y.sum() > 0:
            return y.exp()
        return y - 1

    g = compile(f)
    return [g(randn(4, seed=i)) for i in range(6)]


@program
def item_in_the_middle_and_early_return(compile):
    def f(x, n):
        total = 0.0
        for i in range(n):
            x = x.sin() + i
            total += x.mean().item()
            if total > 4:
                return x, total, "early"
        return x, total, "late"

    g = compile(f)
    return [g(randn(5, seed=i), n) for i, n in enumerate((2, 3, 5, 2, 0))]


@program
def prints_and_appends(compile):
    log = []

    def f(x):
        log.append("start")
        y = x.relu()
        log.append(float(y.max()))
        log.append(y * 2)
        return y

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(3)] + [log]


@program
def exceptions_inside(compile):
    seen = []

    def f(x, fail):
        y = x + 1
        seen.append(y)
        try:
            if fail == "caught":
                raise KeyError("k")
            if fail == "out":
                raise ValueError("v")
        except KeyError:
            y = y * 3
        finally:
            seen.append(y.sum())
        return y @ randn(3, seed=2) if fail != "shape" else y @ randn(4)

    g = compile(f)
    return [catch(g, randn(3, seed=i), kind) for i, kind in enumerate(("", "caught", "out", "", "shape", "caught"))] + [seen]


@program
def containers_in_and_out(compile):
    Point = collections.namedtuple("Point", "x y")

    @dataclasses.dataclass
    class Box:
        a: torch.Tensor
        n: int

    def f(d, p, *rest, flag=False, **more):
        out = {"sum": d["a"] + p.x, "list": [r * 2 for r in rest], **more}
        return Box(out["sum"], len(rest)), Point(out["list"], p.y) if flag else out

    g = compile(f)
    return [
        plain(g({"a": randn(2)}, Point(randn(2, seed=1), 3))),
        plain(g({"a": randn(2)}, Point(randn(2, seed=1), 3), randn(3), randn(3, seed=2), flag=True)),
        plain(g({"a": randn(2)}, Point(randn(2, seed=1), 3), z=randn(1))),
    ]


@program
def same_tensor_twice_and_views_of_one_another(compile):
    def f(a, b):
        return a * 2 + b

    g = compile(f)
    x = randn(4, 4)
    return [g(x, randn(4, 4, seed=1)), g(x, x), g(x, x.t()), g(x[0], x[1]), g(x, randn(4, 4, seed=2))]


@program
def writes_into_arguments_that_share_memory(compile):
    def f(a, b):
        a.add_(1)
        c = b * 2
        a.mul_(3)
        return c + b

    g = compile(f)
    out = []
    for _ in range(2):
        x, y = randn(4), randn(4, seed=1)
        out += [g(x, y), x, y]
        z = randn(6)
        out += [g(z, z), z]
        w = randn(8)
        out += [g(w[:4], w[2:6]), w]
    return out


@program
def in_place_on_inputs_views_and_locals(compile):
    def f(x, y):
        x.mul_(2)
        x[0] = 5
        x[1:].add_(y)
        z = x * 1
        z += 1
        v = z[0]
        v.fill_(9)
        return z, v, x.sum()

    g = compile(f)
    out = []
    for i in range(3):
        x = randn(3, 4, seed=i)
        out.append([g(x, randn(4, seed=5)), x])
    return out


@program
def view_sees_later_write(compile):
    def f(x):
        v = x.view(-1)
        w = x.t()
        x.add_(10)
        return v * 1, w + 0, v

    g = compile(f)
    out = []
    for i in range(3):
        x = randn(2, 3, seed=i)
        r = g(x)
        x.add_(1)
        out.append([r, x])
    return out


@program
def returned_tensor_is_changed_by_the_caller(compile):
    g = compile(lambda x: (x + 1, x * 2))
    out = []
    kept = []
    for i in range(5):
        a, b = g(randn(3, seed=i))
        a.add_(100)
        kept.append(b)
        out.append(a)
    return [out, kept]


@program
def tensor_stored_for_the_next_call(compile):
    memory = {"h": randn(3)}

    def f(x):
        h = (memory["h"] * 0.5 + x).tanh()
        memory["h"] = h
        return h.sum()

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(5)] + [memory["h"]]


@program
def numpy_inside(compile):
    def f(x):
        y = x * 2
        a = y.numpy()
        a[0] = 7.0
        z = torch.from_numpy(a) + y
        return z, float(np.sum(a))

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(3)]


@program
def exported_memory_is_never_deferred(compile):
    x = randn(4)
    window = x.numpy()

    def f():
        y = x + 1
        window[0] = 50.0
        z = x + 1
        x.mul_(2)
        return y, z, float(window[1])

    g = compile(f)
    return [g() for _ in range(3)] + [x]


@program
def random_numbers(compile):
    def f(x):
        return x + torch.rand(3), torch.randn(2), F.dropout(x, 0.5, True), torch.randint(0, 9, (4,))

    g = compile(f)
    torch.manual_seed(3)
    out = [g(randn(3)) for _ in range(3)]
    torch.manual_seed(3)
    return [*out, g(randn(3)), torch.rand(2)]


@program
def generator_recursion_partial_method_static(compile):
    class Thing:
        scale = 2.0

        def __init__(self):
            self.w = randn(3)

        @compile
        def method(self, x):
            return self.w * x * self.scale

        @staticmethod
        def static(x):
            return x - 1

        def __call__(self, x):
            return self.method(x) + 1

    def fib(n, x):
        return x if n < 2 else fib(n - 1, x) + fib(n - 2, x * 0.5)

    def rows(x):
        for r in x:
            yield r * 2

    t = Thing()
    called = compile(t)
    summed = compile(lambda x: sum(rows(x)))
    part = compile(functools.partial(lambda a, b: a - b, 3.0))
    out = []
    for i in range(3):
        out += [
            t.method(randn(3, seed=i)),
            called(randn(3, seed=i)),
            compile(Thing.static)(randn(2)),
            compile(fib)(4, randn(2, seed=i)),
            summed(randn(3, 2, seed=i)),
            part(randn(2)),
        ]
        t.w = randn(3, seed=i + 3)
        Thing.scale += 1
    return out


@program
def nested_compiled_functions(compile):
    inner = compile(lambda x: x * 2 + 1)
    outer = compile(lambda x: inner(x).sum() + inner(x * 3).mean())
    return [outer(randn(3, seed=i)) for i in range(3)] + [inner(randn(2))]


@program
def function_without_tensors(compile):
    f = compile(lambda a, b: (a + b, "x" * a))
    return [f(1, 2), f(3, 4)]


@program
def threads_share_a_compiled_function(compile):
    f = compile(lambda x, k: ((x * k).exp() - x).sum())
    results = {}

    def work(i):
        results[i] = [f(randn(5, seed=i), 0.1 * j) for j in range(20)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return [results[i] for i in range(4)]


@program
def deepcopy_and_repr_inside(compile):
    def f(x):
        y = x + 1
        z = copy.deepcopy(y)
        y = y * 2
        return z, y, repr(y), len(y), bool((y > 0).any())

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(3)]


@program
def boolean_masks_and_nonzero(compile):
    def f(x):
        y = x * 2
        return y[y > 0], torch.where(y > 0, y, 0.0), (y > 0).nonzero()

    g = compile(f)
    return [g(randn(6, seed=i)) for i in range(3)]


@program
def index_error_can_be_caught(compile):
    def f(x, i):
        y = x + 1
        try:
            return y[i]
        except IndexError:
            return y * 0

    g = compile(f)
    return [g(randn(3), i) for i in (0, 2, 5, 1)]


# ------------------------------------------------------------------------------------------------ autograd


@program
def backward_inside(compile):
    w = randn(4, grad=True)

    def f(x):
        w.grad = None
        loss = ((w * x).sin() ** 2).sum()
        loss.backward()
        return loss

    g = compile(f)
    return [[g(randn(4, seed=i)), w.grad] for i in range(4)]


@program
def gradients_accumulate(compile):
    w = randn(4, grad=True)

    def f(x, zero):
        if zero:
            w.grad = None
        (w * x).exp().sum().backward()

    g = compile(f)
    out = []
    for i in range(6):
        g(randn(4, seed=i), i % 3 == 0)
        out.append(w.grad.clone())
    return out


@program
def forward_compiled_backward_outside(compile):
    model = mlp()
    f = compile(lambda x: model(x).pow(2).mean())
    out = []
    for i in range(4):
        model.zero_grad()
        loss = f(randn(5, 6, seed=i))
        loss.backward()
        out.append([loss, state(model)])
    return out


@program
def second_backward_without_retain_raises(compile):
    w = randn(3, grad=True)
    f = compile(lambda x: (w * x).tanh().sum())

    def twice_inside(x):
        loss = (w * x).tanh().sum()
        loss.backward()
        loss.backward()

    loss = f(randn(3))
    loss.backward()
    error = catch(loss.backward)
    inner = catch(compile(twice_inside), randn(3))
    kept = f(randn(3))
    kept.backward(retain_graph=True)
    kept.backward()
    return [error[0], "second time" in error[1], inner[0], "second time" in inner[1], w.grad]


@program
def loss_used_after_backward_inside_raises(compile):
    w = randn(3, grad=True)

    def f(x):
        loss = (w * x).exp().sum()
        loss.backward()
        return loss

    loss = compile(f)(randn(3))
    return [catch(loss.backward)[0], loss.requires_grad, w.grad]


@program
def autograd_grad_and_double_backward(compile):
    w = randn(3, grad=True)

    def f(x):
        y = (w * x).sin().sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), w)
        return g.detach(), h

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(3)]


@program
def double_backward_of_a_compiled_forward(compile):
    w = randn(3, grad=True)
    f = compile(lambda x: (w * x).sin().sum() * w.sum())
    out = []
    for i in range(3):
        y = f(randn(3, seed=i))
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        (h,) = torch.autograd.grad((g**2).sum(), w)
        out.append([g.detach(), h])
    return out


@program
def no_grad_and_detach(compile):
    w = randn(3, grad=True)

    def f(x):
        with torch.no_grad():
            a = w * 2
        b = (w * x).detach()
        c = w * a + b
        return a, b, c, c.requires_grad

    g = compile(f)
    out = []
    for i in range(4):
        with torch.no_grad() if i == 2 else contextlib.nullcontext():
            out.append(g(randn(3, seed=i)))
    return out


@program
def gradient_through_part_under_no_grad(compile):
    w = randn(3, grad=True)

    def f(x):
        with torch.no_grad():
            scale = w * 2
        return (w * scale * x).sum()

    g = compile(f)
    out = []
    for i in range(3):
        w.grad = None
        g(randn(3, seed=i)).backward()
        out.append(w.grad)
    return out


@program
def tensor_hooks_added_and_removed(compile):
    w = randn(3, grad=True)
    seen = []

    def f(x, hook):
        w.grad = None
        y = w * x
        if hook:
            y.register_hook(lambda g: seen.append(g.clone()) or g * 2)
        y.sin().sum().backward()
        return y.detach()

    g = compile(f)
    out = []
    handle = None
    for i, hook in enumerate((False, True, False, True)):
        if i == 2:
            handle = w.register_hook(lambda g: g + 1)
        if i == 3:
            handle.remove()
        out.append([g(randn(3, seed=i), hook), w.grad])
    return out + [seen]


@program
def requires_grad_flips(compile):
    w = randn(3, grad=True)
    f = compile(lambda x: (w * x).sum())
    out = []
    for i in range(4):
        w.requires_grad_(i % 2 == 0)
        y = f(randn(3, seed=i))
        out.append([y, y.requires_grad])
    return out


@program
def custom_function(compile):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 2 + x * 0.5

    w = randn(3, grad=True)

    def f(x):
        w.grad = None
        (Double.apply(w * x) + 1).sum().backward()
        return w.grad

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(3)]


@program
def in_place_under_autograd(compile):
    w = randn(3, grad=True)

    def f(x):
        w.grad = None
        y = w * x
        y.add_(1)
        z = torch.zeros(3)
        z[1:] = y[1:] * 2
        (y.exp().sum() + z.sum()).backward()
        return y.detach(), w.grad

    g = compile(f)
    return [g(randn(3, seed=i)) for i in range(3)]


@program
def saved_tensor_overwritten_raises(compile):
    w = randn(3, grad=True)

    def f(x):
        y = (w * x).exp()
        with torch.no_grad():
            w.add_(1)
        return y.sum()

    def inside(x):
        y = (x * w).sum()
        with torch.no_grad():
            x.add_(1)
        y.backward()

    return [catch(lambda: compile(inside)(randn(3)))[0], catch(compile(f), randn(3)).__class__.__name__]


@program
def in_place_on_leaf_raises(compile):
    w = randn(3, grad=True)

    def f():
        w.add_(1)

    return [catch(compile(f))[0], w]


# ------------------------------------------------------------------------------------------------ modules and training


def training(compile, optimizer, steps=5, clip=None, schedule=None, model=None, loss_fn=None, batches=None):
    model = model or mlp()
    opt = optimizer(model.parameters())
    scheduler = schedule(opt) if schedule else None
    loss_fn = loss_fn or nn.MSELoss()

    def step(x, y):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip) if clip else None
        opt.step()
        return loss, norm

    run = compile(step)
    out = []
    for i in range(steps):
        x, y = batches(i) if batches else (randn(5, 6, seed=i), randn(5, 3, seed=i + 50))
        loss, norm = run(x, y)
        if scheduler:
            scheduler.step()
        out.append([loss.item(), None if norm is None else norm.item(), state(model)])
    return out, opt


@program
def train_sgd(compile):
    return training(compile, lambda p: torch.optim.SGD(p, lr=0.1))[0]


@program
def train_sgd_momentum_nesterov_decay(compile):
    return training(compile, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01))[0]


@program
def train_adam(compile):
    return training(compile, lambda p: torch.optim.Adam(p, lr=0.05))[0]


@program
def train_adamw_clip_and_schedule(compile):
    return training(
        compile, lambda p: torch.optim.AdamW(p, lr=0.05), clip=0.5, schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5)
    )[0]


@program
def train_classifier(compile):
    def batches(i):
        rng = np.random.default_rng(i)
        return randn(7, 6, seed=i), torch.tensor(rng.integers(0, 3, 7))

    return training(compile, lambda p: torch.optim.SGD(p, lr=0.2), loss_fn=nn.CrossEntropyLoss(), batches=batches)[0]


@program
def optimizer_state_dict_survives(compile):
    _, opt = training(compile, lambda p: torch.optim.AdamW(p, lr=0.05), steps=3)
    return plain(opt.state_dict())


@program
def batch_norm_and_dropout_train_and_eval(compile):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    f = compile(lambda x: model(x))
    out = []
    for i in range(6):
        model.train(i % 3 != 2)
        torch.manual_seed(i)
        out.append(f(randn(4, 6, seed=i)))
    return [out, state(model)]


@program
def layers_replaced_and_frozen(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        opt.step()
        return loss

    f = compile(step)
    out = []
    for i in range(6):
        if i == 2:
            model[0].weight.requires_grad_(False)
        if i == 3:
            model[2] = nn.Linear(8, 3)
            opt.add_param_group({"params": model[2].parameters(), "lr": 0.5})
        if i == 4:
            model.append(nn.ReLU())
        if i == 5:
            opt.param_groups[0]["lr"] = 0.01
        out.append([f(randn(5, 6, seed=i)), state(model)])
    return out


@program
def module_hooks_added_and_removed(compile):
    model = mlp()
    seen = []
    f = compile(lambda x: model(x))
    out = [f(randn(2, 6))]
    handle = model[0].register_forward_hook(lambda m, a, o: seen.append(o.detach().sum()) or o * 2)
    out.append(f(randn(2, 6)))
    handle.remove()
    out.append(f(randn(2, 6)))
    return [out, seen]


@program
def compiled_module(compile):
    model = mlp()
    m = compile(model)
    out = [m(randn(2, 6, seed=i)) for i in range(3)]
    loss = m(randn(2, 6)).sum()
    loss.backward()
    return [out, state(m), isinstance(m, nn.Sequential), sorted(m.state_dict())]


@program
def gradient_accumulation_over_micro_batches(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def micro(x, last):
        loss = model(x).pow(2).mean() / 2
        loss.backward()
        if last:
            opt.step()
            opt.zero_grad()
        return loss

    f = compile(micro)
    return [[f(randn(3, 6, seed=i), i % 2 == 1), state(model)] for i in range(6)]


@program
def embedding_layernorm_attention_by_hand(compile):
    torch.manual_seed(0)
    emb, ln, q, k, v = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    params = [p for m in (emb, ln, q, k, v) for p in m.parameters()]

    def f(idx):
        for p in params:
            p.grad = None
        x = ln(emb(idx))
        mask = torch.ones(idx.shape[1], idx.shape[1]).tril() == 0
        scores = (q(x) @ k(x).transpose(-2, -1)) / math.sqrt(8)
        out = F.softmax(scores.masked_fill(mask, -math.inf), dim=-1) @ v(x)
        loss = out.pow(2).mean()
        loss.backward()
        return loss, out.detach()

    g = compile(f)
    out = []
    for i in range(3):
        idx = torch.tensor(np.random.default_rng(i).integers(0, 11, (2, 5)))
        out.append([g(idx), [p.grad for p in params]])
    return out


@program
def exception_leaves_training_state_intact(compile):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x, fail):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        if fail:
            raise RuntimeError("stop")
        opt.step()
        return loss

    f = compile(step)
    return [[catch(f, randn(5, 6, seed=i), i == 1), state(model)] for i in range(4)]


@program
def linear_regression_loop_inside(compile):
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.arange(0, 1, 0.1).view(-1, 1)

    def epochs(n):
        for _ in range(n):
            opt.zero_grad()
            loss = F.mse_loss(model(x), 2 * x + 1)
            loss.backward()
            opt.step()
        return loss

    f = compile(epochs)
    return [f(3), f(3), f(5), state(model)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_program_does_what_plain_python_does(name):
    expected = plain(PROGRAMS[name](lambda f: f))
    same(expected, plain(PROGRAMS[name](torch.compile)))


def test_changing_learning_rate_never_makes_a_new_path():
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile
    def step(x):
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        opt.step()
        return loss

    x = randn(4, 2)
    for i in range(100):
        opt.param_groups[0]["lr"] = 0.1 / (i + 1)
        step(x)
    assert len(step.paths) == 1 and len(step.programs) == 1


def test_followed_training_step_records_nothing_new():
    model = mlp()
    opt = torch.optim.AdamW(model.parameters(), lr=0.1)

    @torch.compile
    def step(x, y):
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss

    for i in range(3):
        step(randn(5, 6, seed=i), randn(5, 3, seed=i))
    before = step.steps_recorded
    for i in range(5):
        step(randn(5, 6, seed=i), randn(5, 3, seed=i))
    assert step.steps_recorded == before
    assert all(path.stepwise == 0 for path, _ in step.paths)
