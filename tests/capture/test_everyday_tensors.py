"""Programs about tensors: memory, indices, dtypes, errors, random numbers, threads; compiled code does what plain code does."""

from __future__ import annotations

import contextlib
import io
import operator
import queue
import threading
import warnings

import numpy as np
import pytest
from harness import attempt, compare, filled, ramp, registry, trained

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS, program = registry()


@program
def same_twice_and_overlap(compile):
    @compile
    def f(a, b):
        a += 1
        c = a * b
        b.mul_(2)
        return c, a + b

    x = ramp(6)
    out = []
    for p, q in ((x[:3], x[3:]), (x[:3], x[:3]), (x[:4], x[2:]), (x, x), (x[::2], x[1::2]), (x[:3], x[3:])):
        out += [attempt(f, p, q), x.clone()]
    return out


@program
def out_arguments(compile):
    @compile
    def f(a, b, o):
        torch.add(a, b, out=o)
        torch.mul(o, 2, out=o)
        r = torch.matmul(a, b, out=torch.empty(0)) if a.dim() == 2 else None
        return o + 1, r

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        o = torch.zeros(3)
        out = [
            f(ramp(3), ramp(3), o),
            o.clone(),
            attempt(f, ramp(3), ramp(3), torch.zeros(3, dtype=torch.int64))[:3],
            f(ramp(2, 2), ramp(2, 2), torch.zeros(2, 2)),
        ]
        o2 = torch.zeros(4)
        b = ramp(3, 2)
        out += [f(ramp(3), ramp(3), b[:, 0]), b]
    return out


@program
def out_aliases_input(compile):
    @compile
    def f(x):
        torch.sin(x, out=x)
        torch.cumsum(x, 0, out=x)
        torch.clamp(x, -0.5, 0.5, out=x[:])
        return x.sum()

    x = ramp(4)
    return [f(x), x.clone(), f(x), x]


@program
def setitem_masks_and_index_tensors(compile):
    @compile
    def f(x, i, m, v):
        x[m] = 0
        x[i] = v
        x[i, 0] += 1
        x[..., -1] *= 2
        x[x > 1] = 1
        x[[0, 1], [1, 0]] = 7
        x[None, 0] = v
        x[::2][m[::2]] = 3
        return x.sum(0)

    out = []
    for k, (i, v) in enumerate((([0, 2], 5.0), ([1], ramp(3)), ([0, 0], ramp(2, 3)))):
        x = ramp(4, 3, k=k)
        out += [attempt(f, x, torch.tensor(i), x[:, 0] > 0, v), x]
    return out


@program
def setitem_errors(compile):
    x = ramp(3, 3)

    def a():
        x[torch.tensor([5])] = 1.0

    def b():
        x[0] = ramp(4)

    def c():
        x[4] = 1.0

    def d():
        x[0, 0, 0] = 1.0

    def e():
        x[torch.tensor([True, False])] = 1.0

    def g():
        x["a"] = 1

    def h():
        x[0] = "a"

    def i():
        x[:, :, 0]

    def j():
        x[::-1]

    def k():
        x[1.5]

    def l():
        x[torch.tensor([0.5])]

    return [(attempt(compile(q)), x.clone()) for q in (a, b, c, d, e, g, h, i, j, k, l)]


@program
def advanced_indexing_get(compile):
    @compile
    def f(x, i, j):
        return (
            x[i],
            x[i, j],
            x[:, i],
            x[i, :, j],
            x[i[:, None], j],
            x[..., i],
            x[0, i],
            x[i, None],
            x[None, :, i],
            x[i > 0, 0],
            x[-1],
            x[[0, 1]],
            x[(0, 1)],
            x[..., None, 0],
            x[1:, ::2, -1],
        )

    return [
        f(ramp(3, 3, 3), torch.tensor([0, 2]), torch.tensor([1, 1]))
        if False
        else attempt(f, ramp(3, 3, 3), torch.tensor([0, 2, -1]), torch.tensor([1, 1, 0])),
        attempt(f, ramp(3, 3, 3), torch.tensor([0, 1, 7]), torch.tensor([1, 1, 0])),
        attempt(f, ramp(3, 3, 3), torch.tensor([1, 1, 1]), torch.tensor([2, 1, 0])),
    ]


@program
def bool_index_shapes(compile):
    f = compile(
        lambda x, m: (x[m], x[m].shape, x[~m].sum(), torch.masked_select(x, m), torch.nonzero(m), torch.where(m), m.nonzero(as_tuple=True))
    )
    return [f(ramp(2, 3), ramp(2, 3) > v) for v in (0.0, -5, 5, 0.3)] + [f(ramp(3), torch.tensor([True, False, True]))]


@program
def data_dependent_shape_chain(compile):
    @compile
    def f(x):
        y = x[x > 0]
        u, c = torch.unique((y * 5).long(), return_counts=True)
        v, i = y.sort(descending=True)
        k = min(2, len(v))
        t = v.topk(k).values
        return u, c, i, t, t.sum() + u.float().mean(), torch.bincount(u, minlength=3), torch.zeros(int(c.sum()))

    return [f(ramp(7, k=i)) for i in range(4)]


@program
def sort_topk_etc(compile):
    @compile
    def f(x):
        return (
            x.sort(1),
            x.argsort(0, descending=True),
            x.topk(2, 1),
            x.kthvalue(1, 0),
            x.median(1),
            x.mode(0).values,
            torch.unique(x),
            x.cummax(1),
            torch.searchsorted(x.sort().values, x),
            x.max(0),
            x.min(),
            x.argmax(),
            torch.histc(x, 3, -1, 1),
        )

    return [attempt(f, ramp(2, 4, k=i)) for i in range(2)]


@program
def strided_inputs(compile):
    f = compile(
        lambda x: (
            x * 2,
            x + x.sum(0),
            x.contiguous().stride(),
            x.is_contiguous(),
            (x * 2).stride(),
            x.reshape(-1),
            attempt(lambda: x.view(-1))[:2],
            torch.empty_like(x).stride(),
        )
    )
    b = ramp(4, 6)
    return [
        f(v)
        for v in (
            b,
            b.t(),
            b[::2],
            b[:, 1:4],
            b.t()[1:],
            b[0].expand(3, 6),
            b[:, :1].expand(4, 5),
            b.t().contiguous().t(),
            b.unsqueeze(1).transpose(0, 2),
            b,
        )
    ]


@program
def results_strides(compile):
    @compile
    def f(x):
        return (
            x.permute(2, 0, 1),
            x.permute(2, 0, 1) + 1,
            x.transpose(0, 1).exp(),
            x[:, 0].t(),
            x.sum(1),
            torch.cat([x.transpose(0, 1)] * 2),
            torch.stack([x, x], -1),
            x.unfold(2, 2, 1),
            x.mT @ x,
            x.movedim(0, 2),
            x.transpose(0, 2).clone(),
            torch.zeros_like(x.transpose(0, 2)),
            x.swapaxes(0, 1).contiguous(),
            x.squeeze(),
            torch.einsum("abc->cba", x),
            x.flip(0),
            x.roll(1, 0),
            x.as_strided((2, 2), (1, 2)),
            x.softmax(1),
            x.transpose(0, 2).float() * 2,
        )

    return [f(ramp(2, 3, 4)), f(ramp(2, 1, 4)), f(ramp(2, 3, 4, k=3))]


@program
def empty_batches(compile):
    m = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    opt = torch.optim.SGD(m.parameters(), lr=0.1)

    @compile
    def f(x):
        opt.zero_grad()
        l = m(x).pow(2).sum()
        l.backward()
        opt.step()
        return l, m(x)

    return [f(ramp(n, 3)) for n in (2, 0, 3, 1, 0)] + [trained(m)]


@program
def dtype_promotion_table(compile):
    ds = (torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)

    @compile
    def f(a, b):
        return [
            attempt(o, a, b)
            for o in (
                operator.add,
                operator.mul,
                operator.truediv,
                operator.floordiv,
                operator.sub,
                operator.pow,
                operator.lt,
                operator.and_,
                torch.maximum,
                torch.atan2,
            )
        ]

    out = []
    for da in ds:
        for db in ds:
            r = f(torch.tensor([1, 0, 1]).to(da), torch.tensor([1, 1, 1]).to(db))
            out.append([v[:3] if isinstance(v, list) else (str(v.dtype).split(".")[-1], v.double().tolist()) for v in r])
    return out


@program
def scalar_promotion_table(compile):
    ds = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64)

    @compile
    def f(a, k):
        return [
            attempt(o, a, k)
            for o in (
                operator.add,
                operator.mul,
                operator.truediv,
                operator.floordiv,
                operator.mod,
                operator.pow,
                operator.sub,
                lambda a, b: b - a,
                lambda a, b: b / a,
                lambda a, b: b**a,
                operator.gt,
                operator.eq,
            )
        ]

    out = []
    for d in ds:
        for k in (2, 2.5, True, -3, torch.tensor(2.5), torch.tensor(2), torch.tensor(2.5, dtype=torch.float64)):
            r = f(torch.tensor([1, 0, 3]).to(d), k)
            out.append(
                [
                    (str(v.dtype).split(".")[-1], v.double().tolist())
                    if isinstance(v, torch.Tensor)
                    else (v[:3] if isinstance(v, list) else v)
                    for v in r
                ]
            )
    return out


@program
def inplace_dtype_errors(compile):
    def q(d, fn):
        x = torch.ones(3).to(d)
        r = attempt(compile(fn), x)
        return (r[:4] if isinstance(r, list) else (str(r.dtype).split(".")[-1], r.double())), x.double()

    fs = (
        lambda x: x.add_(1.5),
        lambda x: x.mul_(2),
        lambda x: x.div_(2),
        lambda x: x.copy_(torch.tensor([1.5, 2.5, -1])),
        lambda x: x.pow_(2),
        lambda x: x.sub_(True),
        lambda x: x.fill_(2.7),
        lambda x: x.__iadd__(torch.ones(3, dtype=torch.float64)),
        lambda x: x.logical_not_(),
        lambda x: x.masked_fill_(x > 0, 3.5),
        lambda x: x.clamp_(max=0.5),
        lambda x: x.add_(torch.ones(2, 3)),
        lambda x: x.sqrt_(),
        lambda x: x.zero_(),
    )
    return [q(d, fn) for d in (torch.int64, torch.bool, torch.float32, torch.uint8) for fn in fs]


@program
def bitwise_and_shift(compile):
    f = compile(
        lambda x, y: [
            attempt(o, x, y)
            for o in (
                operator.and_,
                operator.or_,
                operator.xor,
                operator.lshift,
                operator.rshift,
                lambda a, b: ~a,
                lambda a, b: -a,
                lambda a, b: abs(a),
                lambda a, b: a % b,
                lambda a, b: divmod(a, b),
            )
        ]
    )
    return [f(torch.tensor([5, -3, 7]).to(d), torch.tensor([1, 2, 3]).to(d)) for d in (torch.int64, torch.int32, torch.uint8)] + [
        [v if not isinstance(v, list) else v[:3] for v in f(torch.tensor([True, False]), torch.tensor([True, True]))],
        [v if not isinstance(v, list) else v[:3] for v in f(ramp(3), ramp(3))],
    ]


@program
def int_division_by_zero(compile):
    f = compile(lambda x, y: x // y)
    g = compile(lambda x, y: x % y)
    z = torch.tensor([1, 0])
    return [
        attempt(f, torch.tensor([1, 2]), z),
        attempt(g, torch.tensor([1, 2]), z),
        f(ramp(2), torch.zeros(2)),
        attempt(f, torch.tensor([4, 2]), torch.tensor([2, 2])),
        attempt(compile(lambda x: x // 0), torch.tensor([1])),
    ]


@program
def overflow_and_nan(compile):
    f = compile(
        lambda x: (
            x.to(torch.int8),
            (x * 1e30) * 1e30,
            x / 0,
            (x * 0) / 0,
            x.exp() ** 99,
            torch.isnan(x / x),
            (x / 0).nan_to_num(),
            x.sqrt(),
            x.log(),
            torch.tensor([200]).to(torch.uint8) + 100,
            x.half() * 60000,
        )
    )
    return [[v.float() if v.dtype == torch.float16 else v for v in f(torch.tensor([0.0, 1.0, -2.0]))] for _ in range(2)]


@program
def complex_ops(compile):
    @compile
    def f(z, x):
        return (
            z * x,
            z.abs(),
            z.angle(),
            z.conj() * z,
            z.real + 1,
            torch.view_as_real(z),
            torch.polar(x, x),
            (z @ z).sum(),
            z.exp().imag,
            z == z,
            z.sum(),
            torch.complex(x, x),
        )

    return [f(torch.complex(ramp(2, 2, k=i), ramp(2, 2)), ramp(2, 2, k=i)) for i in range(2)]


@program
def complex_autograd(compile):
    w = ramp(3, r=True)

    @compile
    def f(x):
        z = torch.complex(w, x)
        y = (z * z.conj()).real.sum() + torch.fft.fft(w).abs().pow(2).sum()
        y.backward()
        return y

    return [f(ramp(3)), w.grad.clone(), f(ramp(3, k=2)), w.grad]


@program
def einsum_and_linalg(compile):
    @compile
    def f(a, b):
        return (
            torch.einsum("ij,jk->ik", a, b),
            torch.einsum("ii", a),
            torch.einsum("...i,i->...", a, b[0]),
            torch.linalg.norm(a),
            torch.linalg.solve(a + 5 * torch.eye(3), b),
            torch.linalg.det(a + torch.eye(3)),
            torch.linalg.inv(a + 5 * torch.eye(3)),
            torch.trace(a),
            torch.outer(a[0], b[0]),
            torch.kron(a, b).sum(),
            torch.bmm(a[None], b[None]),
            torch.baddbmm(a[None], a[None], b[None]),
            torch.addmm(a, a, b, alpha=0.5),
            a.triu(1),
            torch.tril_indices(3, 3),
            torch.linalg.cholesky(a @ a.t() + 9 * torch.eye(3)),
        )

    return [f(ramp(3, 3, k=i), ramp(3, 3, k=2)) for i in range(2)] + [
        attempt(compile(lambda a: torch.linalg.cholesky(a)), -torch.eye(2))[:2],
        attempt(compile(lambda a: torch.linalg.inv(a)), torch.zeros(2, 2))[:2],
        attempt(compile(lambda a, b: torch.einsum("ij,jk->ik", a, b)), ramp(2, 3), ramp(2, 3))[:2],
    ]


@program
def shape_errors(compile):
    fs = (
        lambda: ramp(2, 3) + ramp(4),
        lambda: ramp(2, 3) @ ramp(2, 3),
        lambda: ramp(6).view(4, 2),
        lambda: ramp(6).reshape(5),
        lambda: torch.cat([ramp(2, 2), ramp(2, 3)]),
        lambda: torch.stack([ramp(2), ramp(3)]),
        lambda: ramp(2, 3).sum(5),
        lambda: ramp(2, 3).transpose(0, 3),
        lambda: ramp(2, 3).expand(3, 3),
        lambda: ramp(2)[3],
        lambda: ramp(2, 3).squeeze(4),
        lambda: F.linear(ramp(2, 3), ramp(2, 4)),
        lambda: F.conv2d(ramp(1, 2, 3, 3), ramp(1, 3, 2, 2)),
        lambda: F.cross_entropy(ramp(2, 3), torch.tensor([0, 5])),
        lambda: F.embedding(torch.tensor([9]), ramp(3, 2)),
        lambda: torch.gather(ramp(2, 2), 1, torch.tensor([[5]])),
        lambda: ramp(2, 2).permute(0, 0),
        lambda: ramp(2).item(),
        lambda: bool(ramp(2)),
        lambda: float(ramp(2)),
        lambda: int(ramp(0)),
        lambda: ramp(2, 3).split([1, 1]),
        lambda: torch.zeros(-1),
        lambda: torch.arange(0, 5, -1),
        lambda: ramp(2, 2).scatter_(0, torch.tensor([[7, 0]]), 1.0),
        lambda: torch.tensor([[1, 2], [3]]),
        lambda: torch.tensor("a"),
        lambda: ramp(2).to("nope"),
        lambda: ramp(2, 2).index_select(0, torch.tensor([3])),
        lambda: F.nll_loss(ramp(2, 3), torch.tensor([0, 3])),
        lambda: torch.one_hot(1) if hasattr(torch, "one_hot") else F.one_hot(torch.tensor([3]), 2),
        lambda: ramp(2, 3).mean(dtype=torch.int64),
        lambda: torch.tensor([1, 2]).mean(),
        lambda: ramp(3).foo,
        lambda: ramp(3).view(2, -1),
        lambda: torch.matmul(ramp(), ramp(2)),
        lambda: torch.dot(ramp(2), ramp(3)),
        lambda: ramp(2).unflatten(0, (3, 3)),
        lambda: ramp(4).unfold(0, 5, 1),
        lambda: F.pad(ramp(2), (1, 1, 1, 1)),
        lambda: F.max_pool2d(ramp(1, 1, 2, 2), 3),
        lambda: torch.nn.Linear(2, 2)(ramp(2, 3)),
        lambda: F.dropout(ramp(2), 1.5),
        lambda: F.softmax(ramp(2), 3),
        lambda: ramp(2, 3).argmax(4),
        lambda: torch.full((2,), "a"),
        lambda: ramp(2, 2).repeat(2),
        lambda: torch.where(ramp(2) > 0, ramp(3), ramp(2)),
        lambda: ramp(3).long() @ ramp(3),
        lambda: ramp(2, 2) @ ramp(2, 2).double(),
        lambda: torch.tensor(5)(3),
        lambda: len(ramp()),
        lambda: iter(ramp()),
        lambda: ramp(3).masked_fill(torch.tensor([1, 0, 1]), 0.0),
        lambda: ramp(2, 2).fill_diagonal_(ramp(2)),
        lambda: torch.linspace(0, 1, -2),
        lambda: ramp(2, 3).chunk(0),
        lambda: ramp(2).backward(),
        lambda: torch.eye(-1),
        lambda: ramp(3).topk(5),
        lambda: ramp(2).kthvalue(3),
        lambda: torch.randperm(-1),
        lambda: torch.multinomial(torch.zeros(3), 1),
        lambda: torch.bernoulli(ramp(3) * 9),
        lambda: torch.normal(0.0, -1.0, (2,)),
    )
    return [(i, attempt(compile(q))[:3]) for i, q in enumerate(fs)]


@program
def exceptions_at_every_place(compile):
    st = ramp(3)
    w = ramp(3, r=True)
    log = []

    class Boom(Exception):
        def __init__(s, t):
            super().__init__("boom")
            s.t = t

    @compile
    def f(n):
        if n == 0:
            raise Boom(st * 2)
        y = st.add_(1)
        if n == 1:
            raise Boom(y)
        try:
            z = (w * y).sum()
            z.backward()
            if n == 2:
                raise Boom(z)
        except Boom as e:
            log.append(float(e.t))
            raise ValueError("two") from e
        else:
            log.append("else")
        finally:
            log.append(float(st.sum()))
            st.mul_(0.5)
        if n == 3:
            return z.view(3)
        return z

    out = []
    for n in (4, 0, 1, 2, 3, 4, 2):
        out += [attempt(f, n), st.clone(), None if w.grad is None else w.grad.clone()]
    return out + [log]


@program
def exception_carries_tensor(compile):
    class E(Exception):
        pass

    @compile
    def f(x):
        raise E(x * 2, "k", [x + 1])

    out = []
    for i in range(3):
        try:
            f(ramp(3, k=i))
        except E as e:
            out += list(e.args)
    return out


@program
def exception_chain_notes(compile):
    @compile
    def f(x):
        try:
            (x * 2).view(7)
        except RuntimeError as e:
            if hasattr(e, "add_note"):
                e.add_note("note")
            raise KeyError("k") from e

    out = []
    for _ in range(2):
        try:
            f(ramp(3))
        except KeyError as e:
            out.append(
                (
                    str(e),
                    type(e.__cause__).__name__,
                    str(e.__cause__),
                    getattr(e.__cause__, "__notes__", None),
                    e.__context__ is e.__cause__,
                )
            )
    return out


@program
def exception_group(compile):
    @compile
    def f(x):
        es = []
        for n in (2, 3, 7):
            try:
                x.view(n, -1)
            except RuntimeError as e:
                es.append(e)
        raise ExceptionGroup("g", es)

    out = []
    for _ in range(2):
        try:
            f(ramp(6))
        except* RuntimeError as g:
            out.append([str(e) for e in g.exceptions])
    return out


@program
def finally_return_overrides(compile):
    s = ramp(3)

    @compile
    def f(x, b):
        try:
            s.add_(x)
            if b:
                raise ValueError
            return s * 2
        finally:
            if b:
                return s * 100

    return [attempt(f, ramp(3), b) for b in (0, 1, 0)]


@program
def loop_break_continue_else(compile):
    @compile
    def f(x, lim):
        for i in range(5):
            x = x * 1.5
            if x.abs().max() > lim:
                break
            if i % 2:
                continue
            x = x + 0.1
        else:
            x = x * 0
        return x, i

    return [f(ramp(3), l) for l in (1.0, 3.0, 100.0, 2.0)]


@program
def try_in_loop_collect_errors(compile):
    @compile
    def f(x, sizes):
        o = []
        for s in sizes:
            try:
                o.append(x.view(s, -1).sum(1))
            except RuntimeError as e:
                o.append(str(e))
        return o

    return [f(ramp(6), s) for s in ((1, 2), (4, 2, 5), (6,))]


@program
def stopiteration_inside(compile):
    it = [iter([1.0, 2.0])]
    f = compile(lambda x: x * next(it[0]))
    return [attempt(f, ramp(3)) for _ in range(3)]


@program
def system_exit_and_keyboard(compile):
    s = ramp(3)

    @compile
    def f(x, e):
        s.add_(x)

    @compile
    def g(x, e):
        s.add_(x)
        if e:
            e.mine = True
            raise e
        return s * 2

    return [attempt(g, ramp(3), e) for e in (None, KeyboardInterrupt("k"), None, SystemExit(3), None)] + [s]


@program
def index_error_midway_keeps_writes(compile):
    s = torch.zeros(3)
    e = ramp(5, 2)

    @compile
    def f(i):
        s.add_(1)
        v = e[i]
        s.mul_(2)
        return v.sum()

    out = []
    for i in ([0, 1], [9], [2], [-6]):
        out += [attempt(f, torch.tensor(i)), s.clone()]
    return out


@program
def index_error_deferred_indices(compile):
    s = torch.zeros(3)
    e = ramp(5, 2)

    @compile
    def f(x, k):
        s.add_(1)
        i = (x * k).long().abs()
        v = e[i]
        s.mul_(2)
        return v.sum()

    out = []
    for k in (1, 10, 2, 30):
        out += [attempt(f, ramp(3), k), s.clone()]
    return out


@program
def gather_scatter_errors_caught(compile):
    @compile
    def f(x, i):
        try:
            y = x.gather(0, i)
        except Exception as e:
            return type(e).__name__, x * 2
        z = torch.zeros(4).scatter_add(0, i, y)
        return y, z.index_add(0, i, y)

    return [f(ramp(3), torch.tensor(i)) for i in ([0, 1, 2], [5, 0, 0], [2, 2, 2])]


@program
def rng_streams(compile):
    torch.manual_seed(7)

    @compile
    def f(n):
        return (
            torch.rand(n),
            torch.randn(2, n),
            torch.randint(0, 9, (n,)),
            torch.randperm(n),
            F.dropout(torch.ones(n), 0.5),
            torch.bernoulli(torch.full((n,), 0.3)),
            torch.multinomial(torch.ones(5), 3),
            torch.normal(0.0, 1.0, (n,)),
            torch.empty(n).uniform_(),
            torch.empty(n).normal_(),
            torch.rand_like(torch.zeros(n)),
            torch.empty(n).exponential_(),
            torch.poisson(torch.ones(n)),
        )

    out = []
    for n in (3, 5, 3):
        out += [f(n), torch.rand(2)]
    return out


@program
def fork_rng_inside(compile):
    torch.manual_seed(0)

    @compile
    def f(s):
        a = torch.rand(2)
        with torch.random.fork_rng():
            torch.manual_seed(s)
            b = torch.rand(2)
        return a, b, torch.rand(2)

    return [f(1), f(2), f(1), torch.rand(2)]


@program
def rng_exception(compile):
    torch.manual_seed(0)

    @compile
    def f(b):
        a = torch.rand(3)
        if b:
            raise ValueError
        return a, F.dropout(a, 0.3)

    return [attempt(f, b) for b in (0, 1, 0, 1)] + [torch.rand(2), torch.initial_seed()]


@program
def generator_state_set(compile):
    g = torch.Generator().manual_seed(3)

    @compile
    def f():
        s = g.get_state()
        a = torch.rand(3, generator=g)
        g.set_state(s)
        return a, torch.rand(3, generator=g), torch.randn(2, generator=g), g.initial_seed()

    out = [f(), f()]
    g.manual_seed(3)
    return out + [f()]


@program
def unused_random_advances(compile):
    torch.manual_seed(0)

    @compile
    def f(x):
        torch.rand(5)
        F.dropout(x, 0.5)
        return x * 2

    return [f(ramp(3)), torch.rand(2), f(ramp(3)), torch.rand(2)]


@program
def init_inside(compile):
    torch.manual_seed(0)

    @compile
    def f():
        l = nn.Linear(3, 4)
        nn.init.kaiming_uniform_(l.weight)
        nn.init.normal_(l.bias)
        return l(ramp(2, 3)), torch.rand(2)

    return [f(), f()]


@program
def seed_changes_between(compile):
    f = compile(lambda x: F.dropout(x, 0.5, True))
    out = []
    for s in (1, 2, 1):
        torch.manual_seed(s)
        out += [f(torch.ones(8)), f(torch.ones(8))]
    return out


@program
def dropout_p_changes(compile):
    d = nn.Dropout(0.0)
    f = compile(lambda x: d(x))
    out = [f(torch.ones(6))]
    d.p = 1.0
    out.append(f(torch.ones(6)))
    d.p = 0.5
    torch.manual_seed(0)
    out.append(f(torch.ones(6)).shape)
    d.eval()
    return out + [f(torch.ones(6))]


@program
def returned_views_written(compile):
    buf = ramp(3, 4)

    @compile
    def f(i):
        buf.mul_(0.5)
        return buf[i], buf.t(), buf[:, 1:3]

    out = []
    for i in range(3):
        a, b, c = f(i)
        a.add_(1)
        b[0] = 7
        c.mul_(2)
        out.append(buf.clone())
    return out


@program
def result_aliases_input(compile):
    f = compile(lambda x: (x.view(-1), x[0], x, x.t(), x.reshape(6), x.t().reshape(6), x.contiguous(), x.detach()))
    x = ramp(2, 3)
    r = f(x)
    x.add_(10)
    out = [v.clone() for v in r]
    r = f(x)
    r[0].zero_()
    return out + [x] + [v.clone() for v in r]


@program
def view_chain_writes_inside(compile):
    @compile
    def f(x):
        a = x * 1
        b = a.view(2, 3)
        c = b.t()
        d = c[1:]
        d += 10
        b[0] = 0
        e = a.clone()
        c[0].copy_(torch.tensor([5.0, 6.0]))
        return a, e, d, b.sum()

    return [f(ramp(6, k=i)) for i in range(3)]


@program
def input_view_chain_writes(compile):
    @compile
    def f(x):
        b = x.view(2, 3)
        c = b.t()
        c[1:] += 10
        b[0, ::2] = 0
        x.view(3, 2)[:, 1].neg_()
        return b.sum(), c

    x = ramp(6)
    out = []
    for i in range(3):
        r = f(x)
        out += [r[0], r[1].clone(), x.clone()]
    return out


@program
def swap_and_rotate_buffers(compile):
    s = {"a": ramp(3), "b": ramp(3, k=4)}

    @compile
    def f(x):
        s["a"], s["b"] = s["b"], s["a"]
        s["a"].add_(x)
        s["b"] *= 2
        return s["a"] - s["b"]

    return [f(ramp(3, k=i)) for i in range(5)] + [s["a"], s["b"]]


@program
def set_data_and_resize(compile):
    p = ramp(4)

    @compile
    def f(x):
        y = p * 2
        p.data = x
        z = p * 2
        p.set_(ramp(2)) if x.numel() == 2 else None
        return y, z, p.shape

    return [attempt(f, ramp(n, k=n)) for n in (4, 3, 2, 3)] + [p]


@program
def resize_and_storage(compile):
    @compile
    def f(n):
        y = torch.arange(6).float() * 2
        y.resize_(n)
        return y[:6].sum() if n <= 6 else y[:6].sum(), y.shape

    return [attempt(f, n) for n in (4, 6, (2, 3))]


@program
def iadd_on_attribute_and_item(compile):
    class O:
        pass

    o = O()
    o.t = ramp(3)
    l = [ramp(3)]
    d = {"k": ramp(3)}
    ids = (id(o.t), id(l[0]), id(d["k"]))

    @compile
    def f(x):
        o.t += x
        l[0] -= x
        d["k"] @= torch.eye(3)
        o.t **= 2
        l[0] //= 2
        d["k"] %= 3
        return o.t + l[0]

    return [attempt(f, ramp(3, k=i)) for i in range(3)] + [o.t, l, d, ids == (id(o.t), id(l[0]), id(d["k"])) or True]


@program
def iadd_rebinds_for_int(compile):
    @compile
    def f(x):
        y = x
        y += 1
        try:
            y += 0.5
        except RuntimeError as e:
            return str(e), y
        return y, y is x

    return [f(ramp(3)), f(ramp(3).long()), attempt(f, ramp(3).bool()), f(ramp(3))]


@program
def versions(compile):
    x = ramp(3)

    @compile
    def f():
        v0 = x._version
        x.add_(1)
        v1 = x._version
        y = x.view(-1)
        y.mul_(2)
        z = x * 2
        z.add_(1)
        z[0] = 1
        return v1 - v0, x._version - v0, y._version == x._version, z._version

    return [f(), f(), x._version]


@program
def tensor_from_python_each_call(compile):
    @compile
    def f(l, d):
        return (
            torch.tensor(l, dtype=d) * 2,
            torch.as_tensor(l).dtype == torch.float32,
            torch.full((2,), l[0]).dtype,
            torch.arange(l[0], 5),
            torch.asarray(l),
        )

    return [
        attempt(f, l, d)
        for l, d in (([1, 2], None), ([1.0, 2], None), ([1, 2], torch.float64), ([True, False], None), ([1.5], torch.int64))
    ]


@program
def tensor_of_tensors(compile):
    @compile
    def f(x):
        return (
            torch.tensor([x[0], x[1] * 2]),
            torch.stack([x[0], x[1]]),
            torch.tensor(x.tolist()),
            torch.tensor([v.item() for v in x]),
            torch.as_tensor(x) is x,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [f(ramp(3, k=i)) for i in range(2)]


@program
def numpy_shared_writes(compile):
    a = np.zeros(3, np.float32)
    t = torch.from_numpy(a)

    @compile
    def f(x):
        y = t + x
        a[:] = 5
        z = t + x
        t.add_(1)
        b = a.copy()
        a[0] = -1
        return y, z, torch.from_numpy(b), t * 1

    return [f(ramp(3)), f(ramp(3)), torch.from_numpy(a.copy())]


@program
def numpy_view_of_param_optimizer(compile):
    w = ramp(3, r=True)
    a = w.detach().numpy()
    opt = torch.optim.SGD([w], lr=0.1)
    log = []

    @compile
    def f(x):
        opt.zero_grad()
        (w * x).pow(2).sum().backward()
        opt.step()
        log.append(a.tolist())
        a[0] = 1.0
        return (w * x).sum()

    return [f(ramp(3, k=i)).detach() for i in range(3)] + [log, w.detach()]


@program
def buffer_protocols(compile):
    @compile
    def f(x):
        y = x * 2
        return (
            memoryview(y.numpy()).tolist(),
            bytes(y.numpy().tobytes())[:4],
            np.frombuffer(y.numpy(), np.float32).sum(),
            torch.frombuffer(bytearray(y.numpy().tobytes()), dtype=torch.float32),
            np.from_dlpack(y.contiguous()).tolist(),
        )

    return [f(ramp(3, k=i)) for i in range(2)]


@program
def threads_each_own_optimizer(compile):
    def job(i, res):
        m = filled(nn.Linear(3, 1), i)
        opt = torch.optim.Adam(m.parameters(), lr=0.1)

        @compile
        def f(x):
            opt.zero_grad()
            l = m(x).pow(2).mean()
            l.backward()
            opt.step()
            return l

        res[i] = [f(ramp(2, 3, k=j)).detach() for j in range(5)] + trained(m)

    res = {}
    ts = [threading.Thread(target=job, args=(i, res)) for i in range(3)]
    [t.start() for t in ts]
    [t.join() for t in ts]
    return [res[i] for i in range(3)]


@program
def threads_shared_function_states(compile):
    loc = threading.local()

    @compile
    def f(x):
        loc.h = getattr(loc, "h", torch.zeros(3)) * 0.5 + x
        return loc.h.sum()

    res = {}

    def job(i):
        res[i] = [f(ramp(3, k=i + j)) for j in range(10)]

    ts = [threading.Thread(target=job, args=(i,)) for i in range(4)]
    [t.start() for t in ts]
    [t.join() for t in ts]
    return [res[i] for i in range(4)]


@program
def thread_inside_compiled_reads_pending(compile):
    @compile
    def f(x):
        y = x * 2
        r = []
        t = threading.Thread(target=lambda: r.append((y + 1).sum()))
        t.start()
        t.join()
        return r[0], y * 3

    return [f(ramp(3, k=i)) for i in range(3)]


@program
def thread_inside_reads_written_input(compile):
    p = ramp(3)

    @compile
    def f(x):
        p.add_(x)
        r = []
        t = threading.Thread(target=lambda: r.append(p.tolist()))
        t.start()
        t.join()
        p.mul_(2)
        return r[0]

    return [f(ramp(3, k=i)) for i in range(3)] + [p]


@program
def thread_inside_op_on_written_input(compile):
    p = ramp(3)

    @compile
    def f(x):
        p.add_(x)
        r = []
        t = threading.Thread(target=lambda: r.append(p * 10))
        t.start()
        t.join()
        p.mul_(2)
        return r[0]

    return [f(ramp(3, k=i)) for i in range(3)] + [p]


@program
def thread_inside_writes_input(compile):
    p = ramp(3)

    @compile
    def f(x):
        y = p + x
        t = threading.Thread(target=lambda: p.fill_(100))
        t.start()
        t.join()
        z = p + x
        return y, z

    out = []
    for i in range(3):
        p.copy_(ramp(3, k=i))
        out += [f(ramp(3)), p.clone()]
    return out


@program
def queue_producer_consumer(compile):
    q = queue.Queue()

    @compile
    def prod(x):
        y = x * 2
        q.put(y)
        q.put(y.sum())
        return y + 1

    @compile
    def cons():
        a = q.get()
        b = q.get()
        return a * b

    out = []
    for i in range(3):
        out.append(prod(ramp(3, k=i)))
        out.append(cons())
    return out


@program
def executor_map_compiled(compile):
    import concurrent.futures as cf

    w = ramp(3, r=True)
    f = compile(lambda x: torch.autograd.grad((w * x).exp().sum(), w)[0])
    with cf.ThreadPoolExecutor(3) as ex:
        return list(ex.map(f, [ramp(3, k=i) for i in range(12)]))


@program
def reentrant_via_hook(compile):
    w = ramp(3, r=True)
    n = [0]

    @compile
    def f(x):
        y = w * x
        if n[0] < 2:
            y.register_hook(lambda g: (n.__setitem__(0, n[0] + 1), f(g.detach()), g)[2])
        y.sum().backward()
        return y

    return [attempt(f, ramp(3)), w.grad, n]


@program
def compiled_called_in_backward_of_custom(compile):
    sq = compile(lambda x: x * x)

    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return sq(x)

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * sq(g)

    w = ramp(3, r=True)

    @compile
    def f(x):
        y = (Fn.apply(w) * x).sum()
        y.backward()
        return y

    return [f(ramp(3)), w.grad.clone(), f(ramp(3, k=1)), w.grad]


@program
def default_dtype_switch(compile):
    f = compile(lambda x: (x * torch.ones(3), torch.tensor(1.5), torch.arange(3.0), x / 2, torch.zeros(2).dtype))
    out = [f(ramp(3))]
    torch.set_default_dtype(torch.float64)
    try:
        out += [f(ramp(3)), f(ramp(3).double())]
    finally:
        torch.set_default_dtype(torch.float32)
    return out + [f(ramp(3))]


@program
def default_dtype_set_inside(compile):
    @compile
    def f(d):
        torch.set_default_dtype(d)
        try:
            return torch.ones(2), torch.tensor([1, 2]) / 2, nn.Linear(1, 1).weight.dtype
        finally:
            torch.set_default_dtype(torch.float32)

    return [f(d) for d in (torch.float32, torch.float64, torch.float32)] + [torch.ones(1)]


@program
def same_storage_different_meta_inputs(compile):
    f = compile(lambda a, b: (a.mul_(2), b + 1)[1])
    x = ramp(6)
    return [f(x.view(2, 3), x.view(3, 2)), f(x.view(2, 3), x.view(2, 3).t()), f(x[:3], x.flip(0)[:3]), f(x, x.detach()), f(x.data, x), x]


@program
def sizes_vary_everywhere(compile):
    @compile
    def f(x):
        b, t, d = x.shape
        y = x.reshape(b * t, d) @ torch.ones(d, d)
        y = y.view(b, t, d).transpose(1, 2).softmax(-1)
        return y.sum(-1), torch.arange(t) * y.size(0), x.new_zeros(t, b), f"{b}{t}{d}", t * 1.5 + x.mean()

    return [f(ramp(b, t, d, k=b)) for b, t, d in ((2, 3, 4), (2, 5, 4), (1, 1, 4), (3, 7, 4), (2, 3, 1), (2, 5, 4), (0, 2, 3))]


@program
def conv_pool_sizes(compile):
    m = filled(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1)))

    @compile
    def f(x):
        y = m(x).sum(1)
        y.sum().backward()
        return y

    out = []
    for s in (4, 6, 5, 4):
        m.zero_grad()
        out += [f(ramp(2, 1, s, s)), trained(m)]
    return out


@program
def args_kwargs_orders(compile):
    f = compile(lambda *a, **k: [v * (i + 1) for i, v in enumerate((*a, *[k[q] for q in k]))])
    return [
        f(ramp(2), b=ramp(2), c=ramp(2)),
        f(ramp(2), c=ramp(2), b=ramp(2, k=3)),
        f(),
        f(x=ramp(2)),
        f(ramp(2), ramp(2), 3),
        f(*[ramp(1)] * 5),
    ]


@program
def cond_on_python_and_tensor_types(compile):
    @compile
    def f(v):
        return v * 2 if isinstance(v, (int, float, torch.Tensor)) else [f(u) for u in v] if isinstance(v, (list, tuple)) else None

    return [f(3), f(ramp(2)), f([ramp(2), 1, (2.0, None)]), f("a"), f(True), f(ramp(2)), f(np.float32(3))]


@program
def item_writes_interleaved(compile):
    s = ramp(3)

    @compile
    def f(x):
        o = []
        for i in range(4):
            s[i % 3] += x[i % 3].item()
            o.append(float(s.sum()))
            s.mul_(1.1)
        return o

    return [f(ramp(3, k=i)) for i in range(3)] + [s]


@program
def tolist_roundtrip_sort(compile):
    f = compile(lambda x: torch.tensor(sorted(x.tolist(), key=abs)) * x.max())
    return [f(ramp(4, k=i)) for i in range(3)]


@program
def print_many(compile):
    @compile
    def f(x):
        print(x)
        print(x.sum(), x.shape, x.dtype)
        print(f"{x}", [x[0]], {"a": x[1]})
        y = x * 2
        print(y.requires_grad, y.int(), y > 0)
        return y

    seen = io.StringIO()
    with contextlib.redirect_stdout(seen):
        out = [f(ramp(3)), f(ramp(2, 2)), f(ramp(3, r=True))]
    return [*out, seen.getvalue()]


@program
def foreach_and_inplace_lists(compile):
    ps = [ramp(3, k=i) for i in range(3)]

    @compile
    def f(x, k):
        torch._foreach_add_(ps, [x] * 3, alpha=k)
        torch._foreach_mul_(ps, 0.5)
        return torch._foreach_norm(ps)

    return [f(ramp(3), k) for k in (1.0, 2.0)] + [ps]


@program
def scatter_index_put_accumulate(compile):
    @compile
    def f(x, i):
        y = torch.zeros(4, 2)
        y.index_add_(0, i, x)
        z = torch.zeros(4, 2).index_put_((i,), x, accumulate=True)
        q = torch.zeros(4, 2).scatter_reduce(0, i[:, None].expand(-1, 2), x, "amax")
        return y, z, q, y.index_fill(0, i, 3.0)

    return [f(ramp(3, 2), torch.tensor(i)) for i in ([0, 1, 1], [3, 3, 3])] + [attempt(f, ramp(3, 2), torch.tensor([0, 1, 4]))[:2]]


@program
def where_forms(compile):
    f = compile(
        lambda x, c: (
            torch.where(c, x, 0.0),
            torch.where(c, x, -x),
            torch.where(x > 0, 1, 0),
            torch.where(c, 1.0, x.double()),
            x.where(c, torch.tensor(5)),
            x.masked_fill(c, float("-inf")).softmax(0),
        )
    )
    return [f(ramp(4, k=i), ramp(4) > 0) for i in range(2)]


@program
def cumulative_state_long_loop(compile):
    @compile
    def f(x, n):
        h = torch.zeros(3)
        for t in range(n):
            h = torch.tanh(h * 0.9 + x[t % len(x)])
        return h

    return [f(ramp(4, 3), n) for n in (5, 50, 7, 200)]


@program
def memory_format_and_to(compile):
    f = compile(
        lambda x: (
            x.to(torch.float64),
            x.to(torch.float32) is x,
            x.to(x.double()),
            x.type(torch.int32),
            x.type_as(torch.ones(1).half()).dtype,
            x.to(dtype=torch.bool),
            x.to("cpu") is x,
            x.to(torch.float32, copy=True) is x,
            x.contiguous(memory_format=torch.channels_last).stride() if x.dim() == 4 else None,
        )
    )
    return [f(ramp(1, 2, 2, 2)), f(ramp(3))]


@program
def hash_and_eq_semantics(compile):
    @compile
    def f(x):
        y = x + 0
        return (
            y == x,
            (y == x).all().item(),
            torch.equal(x, y),
            torch.allclose(x, y),
            x in [x],
            attempt(lambda: [x, y].index(y)),
            y is x,
            attempt(lambda: {x: 1}[x]),
            x != y,
        )

    return [f(ramp(3)), f(ramp(1)), f(ramp())]


@program
def shape_is_size_type(compile):
    f = compile(
        lambda x: (
            type(x.shape).__name__,
            x.shape[1:],
            x.shape + (1,),
            x.size(-1),
            x.shape.numel(),
            tuple(x.shape) == x.shape,
            list(x.size()),
            x.ndim,
            x.nelement(),
            x.element_size(),
            x.is_floating_point(),
            hash(x.shape) == hash(tuple(x.shape)),
            repr(x.shape),
        )
    )
    return [f(ramp(2, 3)), f(ramp(4, 5))]


@program
def stack_of_scalars_history(compile):
    hist = []

    @compile
    def f(x):
        hist.append(x.mean())
        return torch.stack(hist).cumsum(0), sum(hist) / len(hist)

    return [f(ramp(3, k=i)) for i in range(4)]


@program
def lambda_late_binding_and_default(compile):
    fs = [compile(lambda x, i=i: x * i) for i in range(3)] + [compile(lambda x: x * j) for j in range(3)]
    return [f(ramp(2)) for f in fs]


@program
def compiled_returns_closure(compile):
    @compile
    def f(x):
        y = x * 2
        return lambda z: y * z

    g = f(ramp(3))
    h = f(ramp(3, k=1))
    return [g(ramp(3)), h(ramp(3)), g(2)]


@program
def return_generator_and_iterators(compile):
    @compile
    def f(x):
        y = x * 2
        return map(lambda v: v + 1, y), zip(y, x), iter([y]), (v for v in y), enumerate(x)

    r = f(ramp(3))
    return [list(v) for v in r] + [list(v) for v in f(ramp(2))]


@program
def disable_inside(compile):
    d = torch.compiler.disable(lambda x: x * float(x.sum()))
    f = compile(lambda x: d(x * 2) + 1)
    return [f(ramp(3, k=i)) for i in range(3)]


@program
def is_compiling_flags(compile):
    f = compile(
        lambda x: (
            x * 2,
            torch.is_grad_enabled(),
            torch.is_tensor(x),
            torch.is_inference_mode_enabled(),
            torch.overrides.is_tensor_like(x) if hasattr(torch, "overrides") else True,
        )
    )
    return [f(ramp(3)), f(ramp(3))]


@program
def subclass_module_call_override(compile):
    class M(nn.Module):
        def __call__(s, x):
            return x * 100

        def forward(s, x):
            return x

    m = M()
    f = compile(lambda x: m(x))
    return [f(ramp(3))]


@program
def long_chain_with_dead_code(compile):
    @compile
    def f(x):
        for i in range(30):
            y = x * i
            x = x + y * 0
            del y
        torch.zeros(5).add_(1)
        return x

    return [f(ramp(3)), f(ramp(3, k=1))]


@program
def augmented_none_and_optional(compile):
    @compile
    def f(x, b=None, m=None):
        if b is not None:
            x = x + b
        if m is None:
            return x
        return x.masked_fill(m, 0)

    return [f(ramp(3)), f(ramp(3), ramp(3)), f(ramp(3), m=ramp(3) > 0), f(ramp(3), ramp(3), ramp(3) > 0), f(ramp(3))]


SLOW = {"scalar_promotion_table", "dtype_promotion_table", "inplace_dtype_errors", "conv_pool_sizes", "cumulative_state_long_loop", "shape_errors"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PROGRAMS])
def test_compiled_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])
