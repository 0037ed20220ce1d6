"""Programs about gradients: hooks, functions written by hand, modes, errors on the tape; compiled code does what plain code does."""

from __future__ import annotations

import numpy as np
import pytest
from harness import attempt, compare, filled, optimizer_state, ramp, registry, trained

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS, program = registry()


@program
def forward_pre_hook_changes(compile):
    m = filled(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    f = compile(m)
    out = [f(ramp(2, 3))]
    h1 = m[0].register_forward_pre_hook(lambda mod, a: (a[0] * 2,))
    out.append(f(ramp(2, 3)))
    h2 = m[0].register_forward_pre_hook(lambda mod, a: a[0] + 1, prepend=True)
    out.append(f(ramp(2, 3)))
    h3 = m.register_forward_hook(lambda mod, a, o: o * 3)
    out.append(f(ramp(2, 3)))
    h4 = m.register_forward_hook(lambda mod, a, kw, o: o + kw.get("z", 0), with_kwargs=True)
    out.append(f(ramp(2, 3)))
    for h in (h1, h3, h2, h4):
        h.remove()
        out.append(f(ramp(2, 3)))
    return out


@program
def pre_hook_with_kwargs(compile):
    class M(nn.Module):
        def forward(s, x, k=1):
            return x * k

    m = M()
    f = compile(m)
    out = [f(ramp(3), k=2)]
    h = m.register_forward_pre_hook(lambda mod, a, k: (a, {"k": k.get("k", 0) + 10}), with_kwargs=True)
    out += [f(ramp(3), k=2), f(ramp(3))]
    h.remove()
    return out + [f(ramp(3))]


@program
def always_call_hook(compile):
    log = []

    class M(nn.Module):
        def forward(s, x):
            return x.view(7)

    m = M()
    f = compile(m)
    m.register_forward_hook(lambda mod, a, o: log.append(o is None), always_call=True)
    return [attempt(f, ramp(3)), f(ramp(7)), attempt(f, ramp(3)), log]


@program
def full_backward_hook(compile):
    m = filled(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)))
    log = []
    x = ramp(2, 3, r=True)

    @compile
    def f(x):
        m(x).sum().backward()

    out = []
    hs = [m[2].register_full_backward_hook(lambda mod, gi, go: log.append(("b", [g.clone() for g in gi if g is not None], go[0].clone())))]
    f(x)
    out.append(x.grad.clone())
    x.grad = None
    hs.append(m[0].register_full_backward_hook(lambda mod, gi, go: (gi[0] * 10,)))
    f(x)
    out.append(x.grad.clone())
    x.grad = None
    hs.append(m[1].register_full_backward_pre_hook(lambda mod, go: (go[0] * 2,)))
    f(x)
    out.append(x.grad.clone())
    x.grad = None
    for h in hs:
        h.remove()
    f(x)
    return out + [x.grad, trained(m), log]


@program
def full_backward_hook_wrong_return(compile):
    m = filled(nn.Linear(3, 3))
    m.register_full_backward_hook(lambda mod, gi, go: (gi[0], gi[0]))

    @compile
    def f(x):
        m(x).sum().backward()

    x = ramp(2, 3, r=True)
    return [attempt(f, x)[:2], x.grad, attempt(f, x)[:2]]


@program
def global_module_hooks(compile):
    log = []
    m = filled(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    f = compile(m)
    out = [f(ramp(2, 3))]
    h = nn.modules.module.register_module_forward_hook(lambda mod, a, o: log.append(type(mod).__name__))
    p = nn.modules.module.register_module_forward_pre_hook(lambda mod, a: log.append("pre"))
    try:
        out.append(f(ramp(2, 3)))
    finally:
        h.remove()
        p.remove()
    return out + [f(ramp(2, 3)), log]


@program
def tensor_hook_replaced(compile):
    w = ramp(3, r=True)
    k = [1.0]
    out = []
    h = w.register_hook(lambda g: g * k[0])

    @compile
    def f(x):
        (w * x).sum().backward()

    for v in (1.0, 2.0, 5.0):
        k[0] = v
        w.grad = None
        f(ramp(3))
        out.append(w.grad.clone())
    h.remove()
    w.grad = None
    f(ramp(3))
    out.append(w.grad.clone())
    w.register_hook(lambda g: None)
    f(ramp(3))
    out.append(w.grad.clone())
    return out


@program
def tensor_hook_raises(compile):
    w = ramp(3, r=True)
    v = ramp(3, r=True, k=1)
    bad = [0]

    def hk(g):
        if bad[0]:
            raise KeyError("h")
        return g * 2

    @compile
    def f(x):
        h = w * x
        h.register_hook(hk)
        y = (h * v).sum()
        y.backward()
        return y

    out = []
    for b in (0, 1, 0, 1):
        bad[0] = b
        out += [attempt(f, ramp(3)), w.grad.clone(), v.grad.clone()]
    return out


@program
def leaf_hook_raises_after_other_leaf(compile):
    a, b = ramp(3, r=True), ramp(3, r=True, k=1)

    def hk(g):
        raise ValueError("leaf hook")

    h = b.register_hook(hk)
    f = compile(lambda x: ((a * x).sum() + (b * x).sum()).backward())
    out = [attempt(f, ramp(3)), b.grad]
    h.remove()
    out += [attempt(f, ramp(3)), b.grad.clone()]
    return out


@program
def post_acc_hook_steps_optimizer(compile):
    ps = [ramp(3, r=True, k=i) for i in range(3)]
    opts = {id(p): torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in ps}

    def hk(p):
        opts[id(p)].step()
        opts[id(p)].zero_grad()

    hs = [p.register_post_accumulate_grad_hook(hk) for p in ps]

    @compile
    def f(x):
        l = sum((p * x).pow(2).sum() for p in ps)
        l.backward()
        return l

    out = []
    for i in range(3):
        out += [f(ramp(3, k=i))] + [p.detach().clone() for p in ps] + [p.grad for p in ps]
    hs[0].remove()
    out += [f(ramp(3)), ps[0].grad]
    return out


@program
def hooks_order(compile):
    log = []
    w = ramp(3, r=True)

    @compile
    def f(x):
        a = w * x
        a.register_hook(lambda g: log.append(("a", g.clone())))
        b = a * 2
        b.register_hook(lambda g: log.append(("b1",)))
        b.register_hook(lambda g: log.append(("b2",)))
        c = a + b
        c.register_hook(lambda g: g * 3)
        c.sum().backward()

    f(ramp(3))
    f(ramp(3, k=1))
    return [w.grad, log]


@program
def retain_grad_stored(compile):
    w = ramp(3, r=True)
    keep = []

    @compile
    def f(x):
        h = w * x
        h.retain_grad()
        keep.append(h)
        return (h**2).sum()

    out = []
    for i in range(3):
        f(ramp(3, k=i)).backward()
        out.append(keep[-1].grad.clone())
    return out + [w.grad]


@program
def save_on_cpu(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        with torch.autograd.graph.save_on_cpu():
            y = (w.exp() * x).sum()
        y.backward()
        return y

    return [f(ramp(3)), w.grad.clone(), f(ramp(3)), w.grad]


@program
def state_dict_hooks(compile):
    m = filled(nn.Linear(3, 2))
    log = []
    m.register_state_dict_post_hook(lambda mod, sd, p, l: sd.__setitem__("extra", torch.ones(1))) if hasattr(
        m, "register_state_dict_post_hook"
    ) else None
    m.register_load_state_dict_pre_hook(lambda mod, sd, *a: log.append(sorted(sd))) if hasattr(
        m, "register_load_state_dict_pre_hook"
    ) else None
    m.register_load_state_dict_post_hook(lambda mod, keys: log.append((sorted(keys.missing_keys), sorted(keys.unexpected_keys))))

    @compile
    def f(x):
        sd = {k: v.clone() for k, v in m.state_dict().items()}
        y = m(x)
        m.load_state_dict({k: v * 2 for k, v in sd.items()}, strict=False)
        return y, sorted(sd)

    return [f(ramp(2, 3)), f(ramp(2, 3)), trained(m), log]


@program
def optimizer_step_hooks(compile):
    m = filled(nn.Linear(3, 1))
    opt = torch.optim.SGD(m.parameters(), lr=0.1)
    log = []
    h1 = opt.register_step_pre_hook(lambda o, a, k: log.append(("pre", o.param_groups[0]["lr"])))
    h2 = opt.register_step_post_hook(lambda o, a, k: [g.update(lr=g["lr"] * 0.5) for g in o.param_groups] and None)

    @compile
    def f(x):
        opt.zero_grad()
        l = m(x).pow(2).mean()
        l.backward()
        opt.step()
        return l

    out = []
    for i in range(3):
        out += [f(ramp(2, 3, k=i)), trained(m)]
    h2.remove()
    out += [f(ramp(2, 3)), f(ramp(2, 3)), trained(m)]
    h1.remove()
    opt.register_step_pre_hook(lambda o, a, k: [p.grad.mul_(0) for p in m.parameters()] and None)
    out += [f(ramp(2, 3)), trained(m), log]
    return out


@program
def grad_penalty_multi(compile):
    m = filled(nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1)))
    opt = torch.optim.Adam(m.parameters(), lr=0.05)

    @compile
    def f(x):
        opt.zero_grad()
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        l = (g.norm(2, 1) - 1).pow(2).mean() + m(x).mean()
        l.backward()
        opt.step()
        return l, g

    out = []
    for i in range(3):
        l, g = f(ramp(2, 3, k=i))
        out += [l.detach(), g.detach(), trained(m)]
    return out


@program
def hvp(compile):
    w = ramp(4, r=True)

    @compile
    def f(v):
        y = (w**3).sum() + (w[0] * w[1])
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        (h,) = torch.autograd.grad((g * v).sum(), w)
        return g.detach(), h

    return [f(ramp(4, k=i)) for i in range(3)]


@program
def third_derivative(compile):
    @compile
    def f(x):
        x = x.clone().requires_grad_()
        y = (x**4).sum()
        o = []
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            o.append(y.detach())
        return o

    return [f(ramp(3, k=i)) for i in range(3)]


@program
def grad_allow_unused_and_materialize(compile):
    a, b = ramp(3, r=True), ramp(3, r=True)

    @compile
    def f(x):
        y = (a * x).sum()
        return (torch.autograd.grad(y, [a, b], allow_unused=True),)

    @compile
    def g(x):
        return torch.autograd.grad((a * x).sum(), [a, b])

    @compile
    def h(x):
        return torch.autograd.grad((a * x).sum(), [a, b], allow_unused=True, materialize_grads=True)

    return [f(ramp(3)), f(ramp(3)), attempt(g, ramp(3)), h(ramp(3)), attempt(g, ramp(3))]


@program
def backward_inputs_arg(compile):
    a, b = ramp(3, r=True), ramp(3, r=True, k=1)

    @compile
    def f(x, ins):
        y = (a * b * x).sum()
        y.backward(inputs=ins)

    f(ramp(3), [a])
    out = [a.grad.clone(), b.grad]
    f(ramp(3), [b])
    out += [a.grad.clone(), b.grad.clone()]
    f(ramp(3), [a, b])
    return out + [a.grad, b.grad]


@program
def backward_non_scalar_error(compile):
    w = ramp(3, r=True)
    f = compile(lambda x: (w * x).backward())
    g = compile(lambda x: x.sum().backward())
    h = compile(lambda x: (w * x).backward(torch.ones(2)))
    return [attempt(f, ramp(3)), attempt(g, ramp(3)), attempt(h, ramp(3)), w.grad]


@program
def backward_twice_errors(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        y = (w * x).exp().sum()
        y.backward()
        y.backward()

    return [attempt(f, ramp(3)), w.grad.clone(), attempt(f, ramp(3)), w.grad]


@program
def retain_graph_inside(compile):
    w = ramp(3, r=True)

    @compile
    def f(x, n):
        y = (w * x).exp().sum()
        for i in range(n):
            y.backward(retain_graph=i < n - 1)
        return y

    out = []
    for n in (1, 2, 3, 1):
        w.grad = None
        out += [f(ramp(3), n), w.grad.clone()]
    return out


@program
def shared_graph_two_losses(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        h = (w * x).tanh()
        a, b = h.sum(), (h**2).sum()
        a.backward(retain_graph=True)
        g1 = w.grad.clone()
        b.backward()
        return g1, w.grad.clone()

    out = []
    for i in range(3):
        w.grad = None
        out += f(ramp(3, k=i))
    return out


@program
def torch_autograd_backward_many(compile):
    a, b = ramp(3, r=True), ramp(3, r=True, k=2)

    @compile
    def f(x):
        torch.autograd.backward([a * x, (b * x).sum()], [torch.ones(3), None])

    f(ramp(3))
    f(ramp(3, k=1))
    return [a.grad, b.grad]


@program
def grads_as_views_accumulate(compile):
    w = ramp(2, 3, r=True)

    @compile
    def f(x):
        w.t().sum().backward()
        g = w.grad
        (w * x).sum().backward()
        return g is w.grad, g

    w.grad = None
    out = [f(ramp(2, 3))]
    g = w.grad
    out.append(f(ramp(2, 3, k=1)))
    return out + [g is w.grad, g]


@program
def grad_assigned_between(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        (w * x).sum().backward()
        return w.grad * 1

    out = [f(ramp(3))]
    w.grad = torch.full((3,), 10.0)
    out.append(f(ramp(3)))
    w.grad = None
    out.append(f(ramp(3)))
    w.grad.zero_()
    out.append(f(ramp(3)))
    g = w.grad
    w.grad = g * 2
    out.append(f(ramp(3)))
    return out + [g]


@program
def grad_wrong_assign(compile):
    w = ramp(3, r=True)

    @compile
    def f(g):
        w.grad = g
        return w.grad

    return [attempt(f, ramp(4)), attempt(f, ramp(3)), attempt(f, ramp(3).double()), attempt(f, 3.0), attempt(f, ramp(3))]


@program
def micro_batches(compile):
    m = filled(nn.Linear(3, 2))
    opt = torch.optim.AdamW(m.parameters(), lr=0.1)

    @compile
    def f(xs):
        opt.zero_grad()
        for x in xs:
            (m(x).pow(2).mean() / len(xs)).backward()
        g = [p.grad.clone() for p in m.parameters()]
        opt.step()
        return g

    return [f([ramp(2, 3, k=i + j) for j in range(n)]) for i, n in enumerate((1, 3, 2, 3))] + [trained(m), optimizer_state(opt)]


@program
def checkpoint_dropout(compile):
    from torchlet.utils.checkpoint import checkpoint

    torch.manual_seed(1)

    @compile
    def f(x):
        y = checkpoint(lambda t: F.dropout(t * 2, 0.5), x, use_reentrant=False)
        y.sum().backward()
        return y

    out = []
    for i in range(3):
        x = ramp(8, r=True)
        y = f(x)
        out += [y, x.grad, ((y != 0) == (x.grad != 0)).all()]
    return out


@program
def custom_fn_forward_raises(compile):
    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, b):
            if b == 1:
                raise ValueError("fwd")
            ctx.b = b
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            if ctx.b == 2:
                raise RuntimeError("bwd")
            if ctx.b == 3:
                return g
            return g * ctx.saved_tensors[0], None

    w = ramp(3, r=True)

    @compile
    def f(x, b):
        y = Fn.apply(w * x, b).sum()
        y.backward()
        return y

    out = []
    for b in (0, 1, 2, 3, 0):
        out += [attempt(f, ramp(3), b), None if w.grad is None else w.grad.clone()]
    return out


@program
def custom_fn_new_style(compile):
    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(x, y, k):
            return x * y * k, x + y

        @staticmethod
        def setup_context(ctx, inputs, output):
            x, y, k = inputs
            ctx.save_for_backward(x, y)
            ctx.k = k
            ctx.mark_non_differentiable(output[1])

        @staticmethod
        def backward(ctx, g, g2):
            x, y = ctx.saved_tensors
            return (g * y * ctx.k if ctx.needs_input_grad[0] else None), (g * x * ctx.k if ctx.needs_input_grad[1] else None), None

    a = ramp(3, r=True)
    b = ramp(3, k=2)

    @compile
    def f(k):
        y, z = Fn.apply(a, b, k)
        y.sum().backward()
        return y, z, z.requires_grad

    out = [f(1), a.grad.clone()]
    b.requires_grad_()
    out += [f(2), a.grad.clone(), b.grad.clone()]
    a.requires_grad_(False)
    out += [f(3), b.grad.clone()]
    return out


@program
def custom_fn_inplace_dirty(compile):
    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 2

    w = ramp(3, r=True)

    @compile
    def f(x):
        h = w * x
        y = Fn.apply(h)
        y.sum().backward()
        return y, y is h, h

    return [attempt(f, ramp(3)), w.grad.clone(), attempt(f, ramp(3, k=1)), w.grad]


@program
def custom_fn_double_backward(compile):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * g

    w = ramp(3, r=True)

    @compile
    def f(x):
        y = Cube.apply(w * x).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        g.sum().backward()
        return g.detach(), w.grad.clone()

    out = []
    for i in range(3):
        w.grad = None
        out += f(ramp(3, k=i))
    return out


@program
def custom_fn_non_tensor_outputs(compile):
    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, l):
            ctx.n = len(l)
            ctx.set_materialize_grads(False)
            return x * 2, 7, x.clone()

        @staticmethod
        def backward(ctx, g, _, g3):
            log.append((g is None, g3 is None))
            return (g if g is not None else g3) * ctx.n, None

    log = []
    w = ramp(3, r=True)

    @compile
    def f(l, which):
        r = Fn.apply(w, l)
        r[which].sum().backward()
        return r[1]

    return [f([1, 2], 0), w.grad.clone(), f([1], 2), w.grad, log]


@program
def custom_fn_needs_grad_under_modes(compile):
    seen = []

    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append((ctx.needs_input_grad, torch.is_grad_enabled()))
            return x * 2

        @staticmethod
        def backward(ctx, g):
            seen.append(torch.is_grad_enabled())
            return g * 2

    w = ramp(3, r=True)

    @compile
    def f():
        return Fn.apply(w)

    y = f()
    y.sum().backward()
    out = [y.requires_grad]
    with torch.no_grad():
        out.append(f().requires_grad)
    return out + [f().requires_grad, seen, w.grad]


@program
def functional_jacobian_hessian(compile):
    @compile
    def f(x):
        return (
            torch.autograd.functional.jacobian(lambda t: t.exp() * t.sum(), x),
            torch.autograd.functional.hessian(lambda t: (t**3).sum() * t[0], x),
            torch.autograd.functional.vjp(lambda t: t * 2, x, torch.ones(3)),
            torch.autograd.functional.jvp(lambda t: t**2, x, torch.ones(3)),
            torch.autograd.functional.hvp(lambda t: (t**3).sum(), x, torch.ones(3)),
        )

    return [f(ramp(3, k=i)) for i in range(2)]


@program
def func_grad_vmap(compile):
    from torchlet.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, vmap

    m = filled(nn.Linear(3, 1))
    ps = dict(m.named_parameters())

    def loss(p, x):
        return functional_call(m, p, (x,)).pow(2).sum()

    @compile
    def f(x):
        return (
            vmap(grad(loss), in_dims=(None, 0))({k: v.detach() for k, v in ps.items()}, x),
            grad_and_value(lambda t: (t**2).sum())(x),
            jacrev(torch.sin)(x[0]),
            jacfwd(torch.cos)(x[0]),
            hessian(lambda t: (t**3).sum())(x[0]),
        )

    out = [f(ramp(4, 3))]
    with torch.no_grad():
        m.weight.add_(1)
    return out + [f(ramp(4, 3)), f(ramp(2, 3))]


@program
def func_vmap_shapes(compile):
    from torchlet.func import vmap

    @compile
    def f(a, b):
        return (
            vmap(torch.dot)(a, b),
            vmap(lambda x, y: x * y, in_dims=(0, None))(a, b[0]),
            vmap(vmap(lambda x: x * 2))(a),
            vmap(lambda x: x.sum(), out_dims=0)(a),
            vmap(lambda x: (x, x.max()), in_dims=1)(a),
        )

    return [f(ramp(3, 4), ramp(3, 4, k=1)), f(ramp(2, 5), ramp(2, 5, k=1)), f(ramp(3, 4), ramp(3, 4))]


@program
def functional_call_state(compile):
    m = filled(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))

    @compile
    def f(x, k):
        return torch.func.functional_call(m, {"0.weight": m[0].weight * k, "0.bias": torch.zeros(2)}, (x,))

    out = []
    for k in (1.0, 2.0, ramp(2, 3)):
        y = f(ramp(4, 3), k)
        y.sum().backward()
        out += [y.detach(), trained(m)]
    return out


@program
def parametrize_swapped(compile):
    import torchlet.nn.utils.parametrize as P

    class Sym(nn.Module):
        def __init__(s):
            super().__init__()
            s.k = 1.0

        def forward(s, w):
            return (w + w.t()) * s.k

    l = filled(nn.Linear(3, 3))
    f = compile(lambda x: l(x))
    out = [f(ramp(2, 3))]
    s = Sym()
    P.register_parametrization(l, "weight", s)
    out.append(f(ramp(2, 3)))
    s.k = 3.0
    out.append(f(ramp(2, 3)))
    f(ramp(2, 3)).sum().backward()
    out.append(l.parametrizations.weight.original.grad.clone())
    with P.cached():
        out += [f(ramp(2, 3)), f(ramp(2, 3))]
    P.remove_parametrizations(l, "weight")
    out += [f(ramp(2, 3)), type(l).__name__, [n for n, _ in l.named_parameters()]]
    return out


@program
def weight_norm_training(compile):
    l = nn.utils.parametrizations.weight_norm(filled(nn.Linear(3, 2)))
    opt = torch.optim.SGD(l.parameters(), lr=0.1)

    @compile
    def f(x):
        opt.zero_grad()
        y = l(x).pow(2).sum()
        y.backward()
        opt.step()
        return y

    return [f(ramp(2, 3, k=i)) for i in range(3)] + [trained(l)]


@program
def spectral_norm_training(compile):
    torch.manual_seed(0)
    l = nn.utils.parametrizations.spectral_norm(filled(nn.Linear(3, 2)))
    opt = torch.optim.SGD(l.parameters(), lr=0.1)

    @compile
    def f(x):
        opt.zero_grad()
        y = l(x).pow(2).sum()
        y.backward()
        opt.step()
        return y

    out = [f(ramp(2, 3, k=i)) for i in range(3)]
    l.eval()
    out.append(f(ramp(2, 3)))
    return out + [trained(l)]


@program
def requires_grad_flip_of_input(compile):
    f = compile(lambda x: (x * 2, x.detach() + 1))
    out = []
    x = ramp(3)
    for r in (False, True, False, True):
        x.requires_grad_(r)
        y, z = f(x)
        out += [y.requires_grad, z.requires_grad, y.grad_fn is None, y.is_leaf]
    return out


@program
def detach_inplace_versions(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        h = w * x
        d = h.detach()
        d.add_(1)
        return h, d, h._version, d._version

    return [f(ramp(3)), f(ramp(3, k=1))]


@program
def detach_saved_modified(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        h = (w * x).exp()
        d = h.detach()
        d.zero_()
        h.sum().backward()

    return [attempt(f, ramp(3)), w.grad, attempt(f, ramp(3)), w.grad]


@program
def detach_underscore(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        h = w * x
        h.detach_()
        return h, (h * w).sum()

    out = []
    for i in range(3):
        h, l = f(ramp(3, k=i))
        l.backward()
        out += [h, h.requires_grad, w.grad.clone()]
    return out


@program
def set_grad_enabled_arg(compile):
    w = ramp(3, r=True)

    @compile
    def f(x, g):
        with torch.set_grad_enabled(g):
            y = w * x
        z = y * w
        return y.requires_grad, z.requires_grad, torch.is_grad_enabled(), z.sum()

    out = []
    for g in (True, False, True):
        r = f(ramp(3), g)
        w.grad = None
        r[3].backward()
        out += [r[:3], w.grad.clone()]
    return out


@program
def set_grad_enabled_left_inside(compile):
    w = ramp(3, r=True)

    @compile
    def f(g):
        torch.set_grad_enabled(g)
        return w * 2

    out = []
    try:
        for g in (False, True, False):
            y = f(g)
            out += [y.requires_grad, torch.is_grad_enabled()]
    finally:
        torch.set_grad_enabled(True)
    return out


@program
def no_grad_exception_restores(compile):
    w = ramp(3, r=True)

    @compile
    def f(x, bad):
        try:
            with torch.no_grad():
                y = w * x
                if bad:
                    raise ValueError
        except ValueError:
            pass
        return torch.is_grad_enabled(), (w * x).requires_grad

    return [f(ramp(3), b) for b in (0, 1, 0)]


@program
def exception_out_of_no_grad(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            (w * x).view(9)

    return [attempt(f, ramp(3)), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), attempt(f, ramp(3)), torch.is_grad_enabled()]


@program
def grad_fn_names(compile):
    w = ramp(3, 3, r=True)

    @compile
    def f(x):
        y = w * x
        z = y.sum()
        return (
            type(y.grad_fn).__name__,
            y.grad_fn.name(),
            type(z.grad_fn).__name__,
            type((w @ x).grad_fn).__name__,
            (w + 1).grad_fn.next_functions[0][0].__class__.__name__,
            w.t().grad_fn is None,
            w.relu().grad_fn.name(),
        )

    return [f(ramp(3, 3)), f(ramp(3, 3))]


@program
def grad_of_views_and_index(compile):
    w = ramp(4, 4, r=True)
    i = torch.tensor([0, 2, 2])

    @compile
    def f(x, n):
        return (
            w[i].sum()
            + w[:n, 1:].pow(2).sum()
            + w.t()[0].prod()
            + w.diagonal().exp().sum()
            + w.view(-1)[::3].sum()
            + w[w > 0].sum()
            + w.unbind(1)[2].sum()
            + w.chunk(2)[1].sum()
            + torch.cat(w.split(2)).sum()
        )

    out = []
    for n in (1, 2, 1):
        w.grad = None
        y = f(0, n)
        y.backward()
        out += [y, w.grad.clone()]
    return out


@program
def inplace_on_view_of_nonleaf(compile):
    w = ramp(2, 3, r=True)

    @compile
    def f(x):
        h = w * x
        h[0].mul_(3)
        h[:, 1] = 5.0
        h.t()[2] += 1
        y = h.sum()
        y.backward()
        return h

    out = []
    for i in range(3):
        w.grad = None
        out += [f(ramp(2, 3, k=i)), w.grad.clone()]
    return out


@program
def inplace_on_leaf_view_errors(compile):
    w = ramp(3, r=True)

    def a():
        w[0] = 1.0

    def b():
        w.view(-1).mul_(2)

    def c():
        w.data[0] = 9.0

    def d():
        with torch.no_grad():
            w[1] = 8.0

    def e():
        w.unbind()[0].add_(1)

    def g():
        with torch.no_grad():
            v = w.view(-1)
        v.add_(1)

    return [(attempt(compile(f)), w.detach().clone(), attempt(compile(f)), w._version) for f in (a, b, c, d, e, g)]


@program
def multi_output_view_inplace(compile):
    w = ramp(4, r=True)

    @compile
    def f(x):
        h = w * x
        a, b = h.chunk(2)
        a.add_(1)
        return h.sum()

    return [attempt(f, ramp(4)), attempt(f, ramp(4))]


@program
def copy_into_leaf_grad(compile):
    w = ramp(3, r=True)
    v = ramp(3, r=True, k=3)

    @compile
    def f(x):
        b = torch.zeros(3)
        b.copy_(w * x)
        b += v
        b[1:] *= w[1:]
        b.sum().backward()
        return b

    out = []
    for i in range(3):
        w.grad = v.grad = None
        out += [f(ramp(3, k=i)), w.grad.clone(), v.grad.clone()]
    return out


@program
def buffer_becomes_requires_grad_by_inplace(compile):
    w = ramp(3, r=True)

    @compile
    def f(b):
        b.add_(w)
        return b.requires_grad, b.is_leaf, (b * 2).sum()

    b = torch.zeros(3)
    r = f(b)
    r[2].backward()
    out = [r[:2], w.grad.clone()]
    w.grad = None
    r = f(b)
    attempt(r[2].backward)
    out += [r[:2], w.grad]
    return out


@program
def hidden_state_through_time_detach(compile):
    cell = filled(nn.GRUCell(3, 4))
    opt = torch.optim.SGD(cell.parameters(), lr=0.1)
    st = [None]

    @compile
    def f(xs):
        opt.zero_grad()
        h = st[0]
        l = 0
        for x in xs:
            h = cell(x, h)
            l = l + h.pow(2).mean()
        l.backward()
        opt.step()
        st[0] = h.detach()
        return l

    return [f([ramp(2, 3, k=i + j) for j in range(3)]) for i in range(4)] + [st[0], trained(cell)]


@program
def hidden_state_not_detached_error(compile):
    w = ramp(3, 3, r=True)
    st = [torch.zeros(2, 3)]

    @compile
    def f(x):
        st[0] = torch.tanh(st[0] @ w + x)
        st[0].sum().backward()

    return [attempt(f, ramp(2, 3)), attempt(f, ramp(2, 3)), w.grad, st[0]]


@program
def requires_grad_int_error(compile):
    f = compile(lambda x: x.requires_grad_())
    g = compile(lambda x: (x * 2).requires_grad_(False))
    w = ramp(3, r=True)
    h = compile(lambda: (w * 2).requires_grad_(False))
    return [attempt(f, ramp(3).long()), attempt(f, ramp(3)), attempt(g, ramp(3)), attempt(h)]


@program
def numpy_on_requires_grad_error(compile):
    w = ramp(3, r=True)
    return [
        attempt(compile(f))
        for f in (
            lambda: w.numpy(),
            lambda: (w * 2).numpy(),
            lambda: np.asarray(w),
            lambda: (w * 2).tolist(),
            lambda: (w * 2).detach().numpy().sum(),
            lambda: w.detach().numpy(),
        )
    ]


@program
def grad_dtype_mix(compile):
    w = ramp(3, r=True)
    v = ramp(3).double().requires_grad_()
    h = ramp(3).to(torch.bfloat16).requires_grad_()

    @compile
    def f(x):
        y = (w * v * x + h).sum()
        y.backward()
        return y.dtype == torch.float64, y

    return [f(ramp(3)), w.grad, v.grad, h.grad, f(2), w.grad.dtype == torch.float32]


@program
def accumulate_grad_node_identity(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        y = (w * x).sum()
        (w.grad_fn is None)
        y.backward()
        return w.is_leaf, w.retains_grad, y.requires_grad, w.grad.requires_grad

    return [f(ramp(3)), f(ramp(3)), w.grad]


@program
def graph_kept_and_param_updated_error(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        y = (w * w * x).sum()
        with torch.no_grad():
            w.sub_(0.1)
        y.backward()

    return [attempt(f, ramp(3)), w.grad, w, attempt(f, ramp(3)), w._version]


@program
def grad_mode_generator(compile):
    w = ramp(3, r=True)

    @torch.no_grad()
    def g():
        for i in range(3):
            yield w * i

    @compile
    def f():
        return [(v.requires_grad, (w * 1).requires_grad) for v in g()]

    return [f(), f()]


@program
def autograd_function_apply_as_hook_target(compile):
    class Rev(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, a):
            ctx.a = a
            return x.view_as(x)

        @staticmethod
        def backward(ctx, g):
            return -ctx.a * g, None

    f1, f2 = filled(nn.Linear(3, 3)), filled(nn.Linear(3, 2), 5)
    opt = torch.optim.SGD([*f1.parameters(), *f2.parameters()], lr=0.1)

    @compile
    def f(x, a):
        opt.zero_grad()
        l = f2(Rev.apply(f1(x).relu(), a)).pow(2).mean()
        l.backward()
        opt.step()
        return l

    return [f(ramp(2, 3, k=i), a) for i, a in enumerate((0.0, 0.5, 1.0, 2))] + [trained(f1), trained(f2)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])
