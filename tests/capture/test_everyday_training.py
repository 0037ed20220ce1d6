"""Programs that train: optimizers, schedules, containers of modules, caches; compiled code does what plain code does."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
from harness import attempt, compare, filled, optimizer_state, ramp, registry, trained

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS, program = registry()


def train(compile, mk, sched=None, steps=6, change=None, per=1):
    m = filled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    opt = mk(m.parameters())
    s = sched(opt) if sched else None

    @compile
    def f(x):
        opt.zero_grad()
        l = m(x).pow(2).mean()
        l.backward()
        opt.step()
        if s is not None:
            s.step(l) if isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau) else s.step()
        return l

    out = []
    for i in range(steps):
        if change:
            change(i, m, opt)
        out += [f(ramp(2, 3, k=i)), opt.param_groups[0]["lr"]]
    return out + [trained(m), optimizer_state(opt)]


O = torch.optim
for nm, mk in dict(
    adagrad=lambda p: O.Adagrad(p, lr=0.1, lr_decay=0.1),
    rmsprop=lambda p: O.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    adadelta=lambda p: O.Adadelta(p),
    adamax=lambda p: O.Adamax(p, lr=0.1),
    nadam=lambda p: O.NAdam(p, lr=0.1),
    radam=lambda p: O.RAdam(p, lr=0.1),
    rprop=lambda p: O.Rprop(p),
    asgd=lambda p: O.ASGD(p),
    adam_amsgrad=lambda p: O.Adam(p, amsgrad=True, weight_decay=0.1),
    adam_max=lambda p: O.Adam(p, maximize=True),
    sgd_damp=lambda p: O.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    adam_tensor_lr=lambda p: O.Adam(p, lr=torch.tensor(0.1)),
    adamw_foreach=lambda p: O.AdamW(p, foreach=True),
    adamw_capturable=lambda p: O.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-4),
).items():

    def go(compile, mk=mk):
        return train(compile, mk)

    go.__name__ = "opt_" + nm
    program(go)
L = torch.optim.lr_scheduler
for nm, sc in dict(
    step=lambda o: L.StepLR(o, 2, 0.5),
    multistep=lambda o: L.MultiStepLR(o, [1, 3], 0.1),
    exp=lambda o: L.ExponentialLR(o, 0.9),
    cos=lambda o: L.CosineAnnealingLR(o, 4),
    warm=lambda o: L.CosineAnnealingWarmRestarts(o, 2, 2),
    cyclic=lambda o: L.CyclicLR(o, 0.01, 0.1, 2),
    onecycle=lambda o: L.OneCycleLR(o, 0.2, total_steps=8),
    plateau=lambda o: L.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    lam=lambda o: L.LambdaLR(o, lambda e: 1 / (e + 1)),
    mul=lambda o: L.MultiplicativeLR(o, lambda e: 0.9),
    seq=lambda o: L.SequentialLR(o, [L.ConstantLR(o, 0.1, 2), L.ExponentialLR(o, 0.5)], [2]),
    chained=lambda o: L.ChainedScheduler([L.LinearLR(o, 0.5, total_iters=3), L.ExponentialLR(o, 0.9)], optimizer=o),
    poly=lambda o: L.PolynomialLR(o, 5, 2.0),
    linear=lambda o: L.LinearLR(o, 0.1, 1.0, 4),
).items():

    def go(compile, sc=sc):
        return train(compile, lambda p: O.SGD(p, lr=0.1, momentum=0.9), sc, 7)

    go.__name__ = "sched_" + nm
    program(go)


@program
def onecycle_adam_betas(compile):
    return train(compile, lambda p: O.Adam(p, lr=0.1), lambda o: L.OneCycleLR(o, 0.2, total_steps=8), 6)


@program
def options_flip(compile):
    def ch(i, m, o):
        g = o.param_groups[0]
        if i == 1:
            g["weight_decay"] = 0.1
        if i == 2:
            g["nesterov"] = True
        if i == 3:
            g["momentum"] = 0.0
            g["nesterov"] = False
        if i == 4:
            g["maximize"] = True
        if i == 5:
            g["lr"] = torch.tensor(0.03)

    return train(compile, lambda p: O.SGD(p, lr=0.1, momentum=0.9), None, 7, ch)


@program
def adam_options_flip(compile):
    def ch(i, m, o):
        g = o.param_groups[0]
        if i == 1:
            g["betas"] = (0.5, 0.9)
        if i == 2:
            g["eps"] = 1e-2
        if i == 3:
            g["weight_decay"] = 0.3
        if i == 4:
            o.state.clear()
        if i == 5:
            o.load_state_dict(o.state_dict())

    return train(compile, lambda p: O.Adam(p, lr=0.1), None, 7, ch)


@program
def state_surgery(compile):
    def ch(i, m, o):
        p = m[0].weight
        if i == 2:
            o.state[p]["exp_avg"].zero_()
        if i == 3:
            o.state[p]["step"] = torch.tensor(50.0)
        if i == 4:
            del o.state[p]
        if i == 5:
            o.state[p]["exp_avg_sq"] = torch.ones_like(p)

    return train(compile, lambda p: O.Adam(p, lr=0.1), None, 7, ch)


@program
def param_data_replaced(compile):
    def ch(i, m, o):
        if i == 2:
            m[0].weight.data = ramp(4, 3, k=7)
        if i == 3:
            m[0].weight.data.mul_(0.5)
        if i == 4:
            m[0].weight = nn.Parameter(ramp(4, 3, k=2))
        if i == 5:
            o.param_groups[0]["params"][0] = m[0].weight

    return train(compile, lambda p: O.Adam(p, lr=0.1), None, 7, ch)


@program
def grads_none_and_zero(compile):
    def ch(i, m, o):
        if i == 2:
            m[0].weight.requires_grad_(False)
        if i == 3:
            m[0].weight.requires_grad_(True)
        if i == 4:
            m[2].bias.register_hook(lambda g: g * 0)

    return train(compile, lambda p: O.AdamW(p, lr=0.1), None, 6, ch)


@program
def zero_grad_outside_set_to_none_false(compile):
    m = filled(nn.Linear(3, 1))
    opt = O.SGD(m.parameters(), lr=0.1)

    @compile
    def f(x):
        l = m(x).pow(2).mean()
        l.backward()
        opt.step()
        return l

    out = []
    for i in range(5):
        if i != 3:
            opt.zero_grad(set_to_none=bool(i % 2))
        g = m.weight.grad
        out += [f(ramp(2, 3, k=i)), g is m.weight.grad, trained(m)]
    return out


@program
def optimizer_two_groups_frozen(compile):
    a, b = filled(nn.Linear(3, 3)), filled(nn.Linear(3, 1))
    opt = O.SGD([{"params": a.parameters(), "lr": 0.1}, {"params": b.parameters(), "momentum": 0.9}], lr=0.01)

    @compile
    def f(x):
        opt.zero_grad()
        l = b(a(x)).pow(2).mean()
        l.backward()
        opt.step()
        return l

    out = []
    for i in range(6):
        if i == 2:
            opt.param_groups[0]["lr"] = 0.0
        if i == 3:
            a.requires_grad_(False)
        if i == 4:
            opt.param_groups.pop(0)
        if i == 5:
            a.requires_grad_(True)
            opt.add_param_group({"params": list(a.parameters()), "lr": 1.0})
        out += [f(ramp(2, 3, k=i)), trained(a), trained(b)]
    return out


@program
def optimizer_errors(compile):
    p = ramp(3, r=True)
    return [
        attempt(lambda: O.SGD([], lr=0.1)),
        attempt(lambda: O.SGD([p], lr=-1.0)),
        attempt(lambda: O.Adam([p], betas=(1.0, 0.9))),
        attempt(lambda: O.SGD(p, lr=0.1)),
        attempt(lambda: O.SGD([p * 2], lr=0.1)),
        attempt(lambda: O.SGD([p], lr=0.1, nesterov=True)),
        attempt(lambda: O.SGD([p], lr=0.1).add_param_group({"params": [p]})),
        attempt(lambda: O.SGD([3], lr=0.1)),
    ]


@program
def closure_step_sgd_adam(compile):
    w = ramp(3, r=True)
    opt = O.Adam([w], lr=0.1)
    n = [0]

    @compile
    def f(x):
        def cl():
            n[0] += 1
            opt.zero_grad()
            l = (w - x).pow(2).sum()
            l.backward()
            return l

        return opt.step(cl)

    return [f(ramp(3, k=i)) for i in range(3)] + [w.detach(), n[0]]


@program
def closure_raises(compile):
    w = ramp(3, r=True)
    opt = O.SGD([w], lr=0.1, momentum=0.9)

    @compile
    def f(x, b):
        def cl():
            l = (w - x).pow(2).sum()
            l.backward()
            if b:
                raise ValueError("closure")
            return l

        return opt.step(cl)

    out = []
    for b in (0, 1, 0):
        out += [attempt(f, ramp(3), b), w.detach().clone(), w.grad.clone()]
    return out


@program
def exception_between_backward_and_step(compile):
    m = filled(nn.Linear(3, 1))
    opt = O.Adam(m.parameters(), lr=0.1)

    @compile
    def f(x, b):
        opt.zero_grad()
        l = m(x).pow(2).mean()
        if b == 1:
            raise ValueError("before")
        l.backward()
        if b == 2:
            raise ValueError("mid")
        opt.step()
        if b == 3:
            x.view(100)
        return l

    out = []
    for b in (0, 1, 0, 2, 3, 0):
        out += [attempt(f, ramp(2, 3, k=b), b), trained(m), optimizer_state(opt)]
    return out


@program
def ema_with_lerp_and_foreach(compile):
    m = filled(nn.Linear(3, 2))
    e = [p.detach().clone() for p in m.parameters()]
    opt = O.SGD(m.parameters(), lr=0.1)

    @compile
    def f(x, d):
        opt.zero_grad()
        m(x).pow(2).sum().backward()
        opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(e, list(m.parameters()), d)
        return e[0]

    return [f(ramp(2, 3, k=i), 0.1 * i).clone() for i in range(4)] + [e]


@program
def averaged_model_swa(compile):
    m = filled(nn.Linear(3, 2))
    sw = torch.optim.swa_utils.AveragedModel(m)
    opt = O.SGD(m.parameters(), lr=0.1)
    sc = torch.optim.swa_utils.SWALR(opt, 0.05, 2)

    @compile
    def f(x):
        opt.zero_grad()
        l = m(x).pow(2).mean()
        l.backward()
        opt.step()
        sw.update_parameters(m)
        sc.step()
        return l, sw(x).sum()

    return [f(ramp(2, 3, k=i)) for i in range(4)] + [trained(sw), opt.param_groups[0]["lr"]]


@program
def clip_grad_value_norm(compile):
    m = filled(nn.Linear(3, 2))
    opt = O.SGD(m.parameters(), lr=0.1)

    @compile
    def f(x, mode, v):
        opt.zero_grad()
        m(x).pow(3).sum().backward()
        r = None
        if mode == "n":
            r = nn.utils.clip_grad_norm_(m.parameters(), v)
        elif mode == "v":
            nn.utils.clip_grad_value_(m.parameters(), v)
        elif mode == "i":
            r = nn.utils.clip_grad_norm_(m.parameters(), v, norm_type=float("inf"))
        opt.step()
        return r, [p.grad.clone() for p in m.parameters()]

    return [
        f(ramp(2, 3, k=i), m_, v) for i, (m_, v) in enumerate((("n", 0.1), ("n", 100.0), ("v", 0.2), ("i", 0.1), (None, 0), ("n", 0.2)))
    ] + [trained(m)]


@program
def clip_error_nonfinite(compile):
    m = filled(nn.Linear(3, 2))

    @compile
    def f(x):
        m.zero_grad()
        m(x).sum().backward()
        return nn.utils.clip_grad_norm_(m.parameters(), 1.0, error_if_nonfinite=True)

    return [attempt(f, ramp(2, 3)), attempt(f, ramp(2, 3) * float("inf")), attempt(f, ramp(2, 3))]


@program
def grad_scaler(compile):
    m = filled(nn.Linear(3, 2))
    opt = O.SGD(m.parameters(), lr=0.1)
    sc = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    @compile
    def f(x):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            l = m(x).float().pow(2).mean()
        sc.scale(l).backward()
        sc.unscale_(opt)
        n = nn.utils.clip_grad_norm_(m.parameters(), 1e9)
        sc.step(opt)
        sc.update()
        return sc.get_scale()

    out = []
    for i in range(6):
        x = ramp(2, 3, k=i)
        x = x * float("inf") if i == 3 else x
        out += [f(x)] + [p.detach().clone().to(torch.float32).round(decimals=1) for p in m.parameters()]
    return out + [sorted(sc.state_dict())]


@program
def autocast_nested(compile):
    a, b = ramp(3, 3), ramp(3, 3, k=2)

    @compile
    def f(on):
        o = []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            x = a @ b
            o.append(x.dtype)
            with torch.autocast("cpu", enabled=False):
                y = a @ b
                o.append(y.dtype)
            o += [
                (x + a).dtype,
                torch.softmax(x, 0).dtype,
                x.sum().dtype,
                F.layer_norm(x, (3,)).dtype,
                torch.cat([x, a]).dtype,
                torch.is_autocast_enabled("cpu"),
            ]
        return [str(d).split(".")[-1] for d in o], torch.get_autocast_dtype("cpu") == torch.bfloat16

    return [f(True), f(False), f(True)]


@program
def autocast_weight_cache_and_update(compile):
    m = filled(nn.Linear(3, 2))
    opt = O.SGD(m.parameters(), lr=0.5)

    @compile
    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(x)
            opt.zero_grad()
            y.float().sum().backward()
            opt.step()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m(x).float()

    return [f(torch.ones(2, 3)).round(decimals=1) for i in range(3)]


@program
def train_eval_dropout_bn(compile):
    m = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
    f = compile(m)
    out = []
    for i, t in enumerate((1, 0, 1, 0)):
        m.train(bool(t))
        out += [f(ramp(5, 3, k=i)), trained(m)]
    m[1].eval()
    m[1].momentum = None
    m.train()
    out += [f(ramp(5, 3)), m[1].running_mean.clone()]
    m[1].track_running_stats = False
    out.append(f(ramp(5, 3)))
    out.append(attempt(f, ramp(1, 3))[:2])
    return out


@program
def module_list_mutation(compile):
    ml = nn.ModuleList([filled(nn.Linear(3, 3), i) for i in range(2)])

    @compile
    def f(x):
        for l in ml:
            x = l(x).tanh()
        return x

    out = [f(ramp(2, 3))]
    ml.append(filled(nn.Linear(3, 3), 9))
    out.append(f(ramp(2, 3)))
    ml.insert(0, nn.ReLU())
    out.append(f(ramp(2, 3)))
    del ml[1]
    out.append(f(ramp(2, 3)))
    ml[0] = nn.Identity()
    out.append(f(ramp(2, 3)))
    ml.extend(ml[:1])
    out.append(f(ramp(2, 3)))
    out.append(ml.pop(1) is not None)
    out.append(f(ramp(2, 3)))
    return out + [len(ml)]


@program
def module_dict_and_param_containers(compile):
    md = nn.ModuleDict({"a": filled(nn.Linear(3, 3)), "b": nn.Tanh()})
    pl = nn.ParameterList([nn.Parameter(ramp(3))])
    pd = nn.ParameterDict({"s": nn.Parameter(ramp(3, k=3))})

    @compile
    def f(x):
        for k in md:
            x = md[k](x)
        for p in pl:
            x = x + p
        return x * pd["s"]

    out = [f(ramp(2, 3))]
    md["c"] = nn.Sigmoid()
    out.append(f(ramp(2, 3)))
    pl.append(ramp(3, k=1))
    out.append(f(ramp(2, 3)))
    pd["s"] = nn.Parameter(ramp(3, k=8))
    out.append(f(ramp(2, 3)))
    del md["a"]
    out.append(f(ramp(2, 3)))
    md.update({"d": nn.ReLU()})
    pl[0] = nn.Parameter(ramp(3, k=5))
    out += [f(ramp(2, 3)), [n for n, _ in pl.named_parameters()], sorted(pd.keys())]
    return out


@program
def lazy_modules(compile):
    m = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    f = compile(m)
    with torch.no_grad():
        y = f(ramp(2, 3))
    filled(m)
    out = [tuple(y.shape), f(ramp(2, 3)), type(m[0]).__name__, tuple(m[0].weight.shape), f(ramp(4, 3))]
    return out + [attempt(f, ramp(2, 5))[:2]]


@program
def buffers_reassigned(compile):
    class M(nn.Module):
        def __init__(s):
            super().__init__()
            s.register_buffer("b", ramp(3))
            s.register_buffer("t", ramp(3), persistent=False)
            s.w = nn.Parameter(ramp(3))

        def forward(s, x):
            s.b = s.b * 0.9 + x.mean(0) * 0.1
            s.t += 1
            return x * s.w + s.b + s.t

    m = M()
    f = compile(m)
    out = []
    for i in range(3):
        out += [f(ramp(2, 3, k=i)), m.b.clone(), m.t.clone()]
    m.b = ramp(3, k=9)
    out.append(f(ramp(2, 3)))
    m.b = None
    out.append(attempt(f, ramp(2, 3))[:2])
    m.register_buffer("b", ramp(3))
    out += [f(ramp(2, 3)), sorted(m.state_dict())]
    return out


@program
def tie_untie(compile):
    a, b = filled(nn.Linear(3, 3)), filled(nn.Linear(3, 3), 4)
    opt = O.SGD([*a.parameters(), *b.parameters()], lr=0.1)

    @compile
    def f(x):
        opt.zero_grad()
        l = b(a(x)).pow(2).mean()
        l.backward()
        opt.step()
        return l

    out = [f(ramp(2, 3))]
    old = b.weight
    b.weight = a.weight
    out += [f(ramp(2, 3)), f(ramp(2, 3)), trained(a)]
    b.weight = old
    out += [f(ramp(2, 3)), trained(a), trained(b)]
    return out


@program
def move_dtype_double_half(compile):
    m = filled(nn.Linear(3, 2))
    f = compile(lambda x: m(x))
    out = [f(ramp(2, 3))]
    m.double()
    out.append(f(ramp(2, 3).double()))
    out.append(attempt(f, ramp(2, 3))[:2])
    m.float()
    out.append(f(ramp(2, 3)))
    m.to(torch.bfloat16)
    out.append(f(ramp(2, 3).bfloat16()).dtype == torch.bfloat16)
    m.float()
    return out + [f(ramp(2, 3)).shape]


@program
def apply_and_named_iteration(compile):
    m = filled(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))

    @compile
    def f(x):
        return sum(p.pow(2).sum() for n, p in m.named_parameters() if "weight" in n) + m(x).sum(), [n for n, _ in m.named_modules()]

    out = [f(ramp(2, 3))]
    m.add_module("x", filled(nn.Linear(1, 2)))
    out.append(f(ramp(2, 3)))
    m.apply(lambda l: l.bias.data.fill_(1) if isinstance(l, nn.Linear) else None)
    out.append(f(ramp(2, 3)))
    return out


@program
def load_state_dict_inside(compile):
    m = filled(nn.Linear(3, 2))
    best = {}

    @compile
    def f(x, i):
        if i == 0:
            best.update(copy.deepcopy(m.state_dict()))
        with torch.no_grad():
            m.weight.add_(0.1)
        y = m(x)
        if i == 2:
            m.load_state_dict(best)
        return y, m(x)

    return [f(ramp(2, 3), i) for i in range(4)] + [trained(m)]


@program
def load_state_dict_errors(compile):
    m = filled(nn.Linear(3, 2))
    f = compile(lambda sd: m.load_state_dict(sd))
    return [
        attempt(f, {"weight": ramp(2, 3)}),
        attempt(f, {"weight": ramp(3, 3), "bias": ramp(2)}),
        attempt(f, {"weight": ramp(2, 3), "bias": ramp(2), "z": ramp(1)}),
        attempt(lambda: str(f({"weight": ramp(2, 3), "bias": ramp(2)}))),
        trained(m),
    ]


@program
def deepcopy_model_inside(compile):
    m = filled(nn.Linear(3, 2))

    @compile
    def f(x):
        c = copy.deepcopy(m)
        c.weight.data.mul_(2)
        return c(x), m(x), c.weight is m.weight

    return [f(ramp(2, 3)), f(ramp(2, 3, k=2))]


@program
def deepcopy_of_optimizer_and_compiled(compile):
    m = filled(nn.Linear(3, 2))
    opt = O.Adam(m.parameters(), lr=0.1)

    def mkf(m, opt):
        @compile
        def f(x):
            opt.zero_grad()
            l = m(x).pow(2).mean()
            l.backward()
            opt.step()
            return l

        return f

    f = mkf(m, opt)
    out = [f(ramp(2, 3)), f(ramp(2, 3))]
    m2, opt2 = copy.deepcopy((m, opt))
    g = mkf(m2, opt2)
    out += [g(ramp(2, 3)), f(ramp(2, 3)), g(ramp(2, 3)), trained(m), trained(m2)]
    return out


@program
def pickle_state_midway(compile):
    m = filled(nn.Linear(3, 2))
    opt = O.Adam(m.parameters(), lr=0.1)

    @compile
    def f(x):
        opt.zero_grad()
        l = m(x).pow(2).mean()
        l.backward()
        opt.step()
        buf = io.BytesIO()
        torch.save({"m": m.state_dict(), "o": opt.state_dict()}, buf)
        return buf

    f(ramp(2, 3))
    b = f(ramp(2, 3))
    f(ramp(2, 3))
    b.seek(0)
    sd = torch.load(b)
    m.load_state_dict(sd["m"])
    opt.load_state_dict(sd["o"])
    f(ramp(2, 3, k=2))
    return [trained(m), optimizer_state(opt)]


@program
def pickle_tensor_inside(compile):
    @compile
    def f(x):
        y = x * 2
        z = pickle.loads(pickle.dumps(y))
        z.add_(1)
        return y, z, copy.copy(y) is y, copy.deepcopy({"a": y, "b": y})

    r = f(ramp(3))
    return [r[:3], r[3]["a"] is r[3]["b"], f(ramp(3, k=2))]


@program
def dataloader_inside(compile):
    ds = torch.utils.data.TensorDataset(ramp(7, 3), ramp(7))
    m = filled(nn.Linear(3, 1))
    opt = O.SGD(m.parameters(), lr=0.1)
    g = torch.Generator()
    g.manual_seed(0)
    dl = torch.utils.data.DataLoader(ds, batch_size=3, shuffle=True, generator=g)

    @compile
    def epoch(lr):
        o = []
        for grp in opt.param_groups:
            grp["lr"] = lr
        for x, y in dl:
            opt.zero_grad()
            l = F.mse_loss(m(x)[:, 0], y)
            l.backward()
            opt.step()
            o.append(l.item())
        return o

    return [epoch(0.1), epoch(0.05), trained(m)]


@program
def dataloader_drop_last_dict(compile):
    class D(torch.utils.data.Dataset):
        def __len__(s):
            return 5

        def __getitem__(s, i):
            return {"x": ramp(3, k=i), "i": i, "n": f"s{i}"}

    dl = torch.utils.data.DataLoader(D(), batch_size=2)

    @compile
    def f(k):
        return [(b["x"] * k, b["i"], b["n"]) for b in dl]

    return [f(2), f(3.0)]


@program
def forward_swapped_on_instance(compile):
    m = filled(nn.Linear(3, 2))
    c = compile(m)
    out = [c(ramp(2, 3))]
    old = m.forward
    m.forward = lambda x: old(x) * 2
    out.append(c(ramp(2, 3)))
    del m.forward
    out.append(c(ramp(2, 3)))
    return out + [isinstance(c, nn.Module), sorted(c.state_dict())]


@program
def compiled_module_attr_set(compile):
    class M(nn.Module):
        def __init__(s):
            super().__init__()
            s.l = filled(nn.Linear(3, 2))
            s.k = 1

        def forward(s, x):
            return s.l(x) * s.k

    m = M()
    c = compile(m)
    out = [c(ramp(2, 3))]
    c.k = 5
    out.append(c(ramp(2, 3)))
    out.append(m.k)
    c.l = filled(nn.Linear(3, 4))
    out += [c(ramp(2, 3)), m.l is c.l]
    c.eval()
    out += [m.training, c.training]
    c.zero_grad()
    c.requires_grad_(False)
    out.append(m.l.weight.requires_grad)
    return out + [[n for n, _ in c.named_parameters()]]


@program
def module_in_place_compile(compile):
    m = filled(nn.Linear(3, 2))
    m.forward = compile(m.forward)
    out = [m(ramp(2, 3))]
    with torch.no_grad():
        m.weight.zero_()
    out.append(m(ramp(2, 3)))
    m2 = copy.deepcopy(nn.Linear(3, 2))
    return out


@program
def transformer_layer_masks(compile):
    m = filled(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True))
    opt = O.SGD(m.parameters(), lr=0.01)

    @compile
    def f(x, mask, causal):
        opt.zero_grad()
        a = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if causal else None
        y = m(x, src_mask=a, src_key_padding_mask=mask)
        y.pow(2).mean().backward()
        opt.step()
        return y

    pm = torch.tensor([[False, False, True], [False, True, True]])
    return [
        f(ramp(2, 3, 4), None, 0),
        f(ramp(2, 3, 4), None, 1),
        f(ramp(2, 5, 4), None, 1),
        f(ramp(2, 3, 4), pm, 0),
        f(ramp(2, 3, 4), None, 0),
    ]


@program
def rnn_packed(compile):
    m = filled(nn.LSTM(3, 4, batch_first=True))

    @compile
    def f(x, lens):
        p = nn.utils.rnn.pack_padded_sequence(x, lens, batch_first=True, enforce_sorted=False)
        o, (h, c) = m(p)
        y, l = nn.utils.rnn.pad_packed_sequence(o, batch_first=True)
        return y, l, h, c

    return [f(ramp(2, 4, 3), torch.tensor(l)) for l in ([4, 2], [1, 3], [4, 4])]


@program
def kv_cache_decode(compile):
    wq, wk, wv = (ramp(4, 4, k=i) * 0.3 for i in range(3))
    cache = {}

    @compile
    def f(x):
        q, k, v = x @ wq, x @ wk, x @ wv
        if "k" in cache:
            k = torch.cat([cache["k"], k], 1)
            v = torch.cat([cache["v"], v], 1)
        cache["k"], cache["v"] = k, v
        return F.scaled_dot_product_attention(q, k, v)

    out = [f(ramp(1, 3, 4))] + [f(ramp(1, 1, 4, k=i)) for i in range(4)]
    cache.clear()
    out.append(f(ramp(1, 2, 4)))
    return out + [cache["k"]]


@program
def kv_cache_preallocated(compile):
    buf = torch.zeros(2, 8, 4)
    pos = [0]
    w = ramp(4, 4) * 0.3

    @compile
    def f(x):
        n = x.shape[1]
        buf[:, pos[0] : pos[0] + n] = x @ w
        pos[0] += n
        k = buf[:, : pos[0]]
        return F.scaled_dot_product_attention(x, k, k)

    return [f(ramp(2, n, 4)) for n in (3, 1, 1, 2)] + [buf, attempt(f, ramp(2, 5, 4))[:2]]


@program
def kv_cache_index_copy(compile):
    buf = torch.zeros(8, 4)

    @compile
    def f(p, x):
        buf.index_copy_(0, p, x)
        return buf[: int(p[-1]) + 1].sum(0), buf.narrow(0, int(p[0]), 1)

    return [f(torch.tensor([i, i + 1]), ramp(2, 4, k=i)) for i in range(4)] + [buf, attempt(f, torch.tensor([7, 8]), ramp(2, 4))[:2], buf]


@program
def replay_buffer(compile):
    buf = []
    torch.manual_seed(0)

    @compile
    def f(x):
        buf.append(x * 2)
        if len(buf) > 3:
            buf.pop(0)
        return torch.stack(buf).mean(0)

    out = [f(ramp(3, k=i)) for i in range(5)]
    buf[1].zero_()
    return out + [f(ramp(3))]


@program
def q_target_network(compile):
    q = filled(nn.Linear(3, 2))
    t = copy.deepcopy(q)
    opt = O.Adam(q.parameters(), lr=0.1)
    n = [0]

    @compile
    def f(s, a, r, s2):
        with torch.no_grad():
            y = r + 0.9 * t(s2).max(1).values
        l = F.smooth_l1_loss(q(s).gather(1, a[:, None])[:, 0], y)
        opt.zero_grad()
        l.backward()
        opt.step()
        n[0] += 1
        if n[0] % 2 == 0:
            t.load_state_dict(q.state_dict())
        return l

    return [f(ramp(4, 3, k=i), torch.tensor([0, 1, 1, 0]), ramp(4, k=i), ramp(4, 3, k=i + 1)) for i in range(5)] + [trained(q), trained(t)]


@program
def gan_two_optimizers(compile):
    g, d = filled(nn.Linear(2, 3)), filled(nn.Linear(3, 1), 5)
    og, od = O.Adam(g.parameters(), lr=0.05), O.Adam(d.parameters(), lr=0.05)

    @compile
    def f(z, x):
        od.zero_grad()
        ld = F.softplus(-d(x)).mean() + F.softplus(d(g(z).detach())).mean()
        ld.backward()
        od.step()
        og.zero_grad()
        lg = F.softplus(-d(g(z))).mean()
        lg.backward()
        og.step()
        return ld, lg

    return [f(ramp(4, 2, k=i), ramp(4, 3, k=i)) for i in range(4)] + [trained(g), trained(d), optimizer_state(og)]


@program
def param_reinit_optimizer_state_kept(compile):
    m = filled(nn.Linear(3, 2))
    opt = O.Adam(m.parameters(), lr=0.1)

    @compile
    def f(x):
        opt.zero_grad()
        l = m(x).pow(2).mean()
        l.backward()
        opt.step()
        return l

    out = [f(ramp(2, 3))]
    filled(m, 5)
    out.append(f(ramp(2, 3)))
    nn.init.zeros_(m.bias)
    nn.init.constant_(m.weight, 0.5)
    out.append(f(ramp(2, 3)))
    m.weight.grad.data.fill_(3)
    opt.step()
    out.append(f(ramp(2, 3)))
    return out + [trained(m), optimizer_state(opt)]


@program
def parameters_to_vector_roundtrip(compile):
    m = filled(nn.Linear(3, 2))

    @compile
    def f(x, k):
        v = nn.utils.parameters_to_vector(m.parameters())
        nn.utils.vector_to_parameters(v.detach() * k, m.parameters())
        return m(x), v.norm()

    return [f(ramp(2, 3), k) for k in (1.0, 0.5, 2.0)] + [trained(m)]


@program
def loss_scale_changes(compile):
    w = ramp(3, r=True)
    opt = O.SGD([w], lr=0.1)
    s = [1024.0]

    @compile
    def f(x):
        opt.zero_grad()
        l = (w * x).pow(2).sum()
        (l * s[0]).backward()
        w.grad.div_(s[0])
        if not torch.isfinite(w.grad).all():
            s[0] /= 2
            return None
        opt.step()
        s[0] *= 2
        return l

    return [f(x) for x in (ramp(3), ramp(3, k=1), ramp(3) * float("nan"), ramp(3, k=2))] + [w.detach(), s]


@program
def early_stopping_patience(compile):
    m = filled(nn.Linear(3, 1))
    opt = O.SGD(m.parameters(), lr=0.5)

    @compile
    def fit(x, y, n):
        best, bad, hist = float("inf"), 0, []
        for i in range(n):
            opt.zero_grad()
            l = F.mse_loss(m(x), y)
            l.backward()
            opt.step()
            v = l.item()
            hist.append(v)
            if v < best - 1e-3:
                best, bad = v, 0
            else:
                bad += 1
                if bad >= 2:
                    break
        return hist

    return [fit(ramp(4, 3), ramp(4, 1), 10), fit(ramp(4, 3, k=2), ramp(4, 1), 5), trained(m)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith(("opt_", "sched_")) else name for name in PROGRAMS])
def test_compiled_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])
