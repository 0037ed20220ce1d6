"""Programs in everyday Python: what lies around the tensors changes between calls, and compiled code does what plain code does."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import enum
import functools
import gc
import inspect
import io
import itertools
import logging
import math
import operator
import random
import sys
import types
import typing
import warnings
import weakref

import numpy as np
import pytest
from harness import attempt, compare, filled, ramp, registry

import torchlet as torch
import torchlet.nn as nn
import torchlet.nn.functional as F

PROGRAMS, program = registry()
G = 2.0
GT = ramp(3)
GL = [ramp(3), ramp(3, k=1)]


class Cfg:
    mode = "add"
    table = {"a": 1.0}


@program
def class_cfg_string_changes(compile):
    @compile
    def f(x):
        return x + Cfg.table["a"] if Cfg.mode == "add" else x * Cfg.table["a"]

    out = []
    for m, v in (("add", 1.0), ("mul", 2.0), ("mul", ramp(3)), ("add", 3)):
        Cfg.mode = m
        Cfg.table["a"] = v
        out.append(f(ramp(3)))
    Cfg.mode = "add"
    Cfg.table = {"a": 1.0}
    return out


@program
def global_list_grows(compile):
    GL[:] = [ramp(3), ramp(3, k=1)]

    @compile
    def f(x):
        return sum((g * x for g in GL), x * 0)

    out = [f(ramp(3))]
    GL.append(ramp(3, k=5))
    out.append(f(ramp(3)))
    del GL[0]
    out.append(f(ramp(3)))
    GL[:] = []
    out.append(f(ramp(3)))
    return out


@program
def kwdefaults_changed(compile):
    def g(x, *, s=2.0, t=ramp(3)):
        return x * s + t

    f = compile(g)
    out = [f(ramp(3))]
    g.__kwdefaults__["s"] = 5.0
    out.append(f(ramp(3)))
    g.__kwdefaults__["t"] = ramp(3, k=9)
    out.append(f(ramp(3)))
    g.__kwdefaults__ = {"s": 1, "t": 0}
    out.append(f(ramp(3)))
    return out


@program
def closure_over_loop_variable(compile):
    fs = []
    for i in range(3):

        @compile
        def f(x):
            return x * i

        fs.append(f)
    return [f(ramp(3)) for f in fs]


@program
def method_on_instance_swapped(compile):
    class A:
        def m(self, x):
            return x + 1

    a = A()
    f = compile(lambda x: a.m(x) * 2)
    out = [f(ramp(3))]
    a.m = types.MethodType(lambda s, x: x - 1, a)
    out.append(f(ramp(3)))
    del a.m
    out.append(f(ramp(3)))
    A.m = lambda s, x: x * 7
    out.append(f(ramp(3)))
    a.__class__ = type("B", (A,), {"m": lambda s, x: x / 3})
    out.append(f(ramp(3)))
    return out


@program
def getattr_module(compile):
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(ramp(3))
            self.n = 0

        def __getattr__(self, k):
            if k.startswith("scale"):
                object.__setattr__(self, "n", self.n + 1)
                return float(k[5:])
            return super().__getattr__(k)

        def forward(self, x):
            return x * self.scale2 + self.w * self.scale3

    m = M()
    f = compile(m)
    return [f(ramp(3)), f(ramp(3)), m.n, attempt(lambda: m.nothing)[:2]]


@program
def descriptor_attr(compile):
    log = []

    class D:
        def __set_name__(s, o, n):
            s.n = "_" + n

        def __get__(s, o, t=None):
            log.append("get")
            return getattr(o, s.n, 1.0)

        def __set__(s, o, v):
            log.append("set")
            setattr(o, s.n, v)

    class A:
        d = D()

    a = A()

    @compile
    def f(x):
        a.d = x * a.d
        return a.d.sum()

    return [f(ramp(3)), f(ramp(3)), f(ramp(3)), log]


@program
def slots_object(compile):
    class S:
        __slots__ = ("a", "b")

    s = S()
    s.a = ramp(3)

    @compile
    def f(x):
        try:
            s.a = s.a + s.b
        except AttributeError as e:
            s.b = x
            return x, str(e)
        return s.a, s.b

    out = []
    for i in range(4):
        out += list(f(ramp(3, k=i)))
    del s.b
    out += list(f(ramp(3)))
    return out


@program
def property_setter_counts(compile):
    class A:
        n = 0

        @property
        def v(self):
            return self._v

        @v.setter
        def v(self, x):
            self.n += 1
            self._v = x * self.n

    a = A()

    @compile
    def f(x):
        a.v = x
        a.v += 1
        return a.v

    return [f(ramp(3)) for _ in range(3)] + [a.n]


@program
def metaclass_call(compile):
    made = []

    class Meta(type):
        def __call__(cls, *a):
            made.append(cls.__name__)
            return super().__call__(*a)

    class P(metaclass=Meta):
        def __init__(s, t):
            s.t = t

        def __add__(s, o):
            return P(s.t + o.t)

        def __matmul__(s, o):
            return P(s.t @ o.t)

    @compile
    def f(x):
        return ((P(x) + P(x)) @ P(x)).t

    return [f(ramp(2, 2, k=i)) for i in range(3)] + [made]


@program
def user_operators_with_tensor(compile):
    class W:
        def __init__(s, k):
            s.k = k

        def __radd__(s, o):
            return ("radd", o * s.k)

        def __rmul__(s, o):
            return o - s.k

        def __rsub__(s, o):
            return o + 100

        def __rmatmul__(s, o):
            return "mm"

        def __eq__(s, o):
            return "eq"

        __hash__ = None

    @compile
    def f(x, w):
        return x + w, x * w, x - w, x @ w

    return [attempt(f, ramp(3), W(2)), attempt(f, ramp(3), W(3))]


@program
def torch_function_protocol(compile):
    class W:
        def __init__(s, t):
            s.t = t

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return ("tf", func.__name__, [a.t if isinstance(a, W) else a for a in args])

    @compile
    def f(x, w):
        return torch.add(x, w), torch.sin(w)

    return [attempt(f, ramp(3), W(ramp(3)))]


@program
def typed_dict_namedtuple_out(compile):
    class TD(typing.TypedDict):
        a: object
        b: int

    class NT(typing.NamedTuple):
        x: object
        y: int = 3

    @compile
    def f(d, n):
        return TD(a=d["a"] * n.y, b=d["b"] + 1), n._replace(x=n.x + d["a"], y=n.y + 1)

    d, n = TD(a=ramp(3), b=0), NT(ramp(3))
    out = []
    for i in range(3):
        d, n = f(d, n)
        out += [d["a"], d["b"], n.x, n.y, type(n).__name__]
    return out


@program
def frozen_dataclass_replace(compile):
    @dataclasses.dataclass(frozen=True)
    class S:
        h: object
        n: int = 0
        tags: tuple = ()

    @compile
    def f(s, x):
        return dataclasses.replace(s, h=torch.tanh(s.h + x), n=s.n + 1, tags=s.tags + (s.n,))

    s = S(ramp(3))
    out = []
    for i in range(3):
        s = f(s, ramp(3, k=i))
        out += [s.h, s.n, s.tags]
    return out + [attempt(lambda: compile(lambda s: setattr(s, "n", 3))(s))[:3]]


@program
def dict_subclass_missing(compile):
    class D(dict):
        def __missing__(s, k):
            s[k] = torch.full((2,), float(k))
            return s[k]

    d = D()

    @compile
    def f(i):
        d[i] += 1
        return d[i] * 2

    return [f(i) for i in (1, 2, 1, 3, 2, 1)] + [sorted(d)]


@program
def defaultdict_of_tensors(compile):
    d = collections.defaultdict(lambda: torch.zeros(2))

    @compile
    def f(k, x):
        d[k] = d[k] + x
        return d[k]

    return [f(k, ramp(2, k=i)) for i, k in enumerate("abacab")] + [sorted(d)]


@program
def ordered_dict_move(compile):
    d = collections.OrderedDict(a=ramp(2), b=ramp(2, k=1), c=ramp(2, k=2))

    @compile
    def f():
        d.move_to_end(next(iter(d)))
        return torch.stack(list(d.values()))

    return [f() for _ in range(4)]


@program
def chainmap_and_counter(compile):
    base = {"s": 1.0}
    over = {}
    cm = collections.ChainMap(over, base)
    cnt = collections.Counter()

    @compile
    def f(x):
        cnt[int(x.sum() > 0)] += 1
        return x * cm["s"]

    out = [f(ramp(3))]
    over["s"] = 4.0
    out.append(f(ramp(3, k=4)))
    base["s"] = 9
    out.append(f(ramp(3, k=2)))
    del over["s"]
    out.append(f(ramp(3)))
    return out + [dict(cnt)]


@program
def tensors_as_dict_keys_and_sets(compile):
    @compile
    def f(x):
        y = x * 2
        z = y
        s = {y, z, x}
        d = {y: 1}
        d[z] += 1
        return len(s), d[y], y in s, hash(y) == hash(z), x * len(s)

    return [f(ramp(3, k=i)) for i in range(3)]


@program
def enum_switch(compile):
    class A(enum.Enum):
        RELU = "relu"
        TANH = "tanh"

    cur = [A.RELU]

    @compile
    def f(x):
        match cur[0]:
            case A.RELU:
                return x.relu()
            case A.TANH:
                return x.tanh()

    out = [f(ramp(4))]
    cur[0] = A.TANH
    out.append(f(ramp(4)))
    cur[0] = None
    out.append(f(ramp(4)))
    cur[0] = A.RELU
    out.append(f(ramp(4)))
    return out


@program
def match_on_shape(compile):
    @compile
    def f(x):
        match x.shape:
            case (a,):
                return x * a
            case (a, b) if a == b:
                return x.t() + b
            case (a, b):
                return x.sum(0) * a
            case _:
                return x.mean()

    return [f(ramp(*s)) for s in ((3,), (2, 2), (2, 3), (2, 2, 2), (4,), (3, 3))]


@program
def singledispatch_inside(compile):
    @functools.singledispatch
    def g(v, x):
        return x

    @g.register
    def _(v: int, x):
        return x * v

    @g.register
    def _(v: str, x):
        return x + len(v)

    f = compile(lambda v, x: g(v, x))
    out = [f(2, ramp(3)), f("abc", ramp(3)), f(None, ramp(3)), f(2.5, ramp(3))]
    g.register(float, lambda v, x: x - v)
    out.append(f(2.5, ramp(3)))
    return out


@program
def cached_property_resets(compile):
    class A:
        def __init__(s):
            s.n = 0
            s.t = ramp(3)

        @functools.cached_property
        def c(s):
            s.n += 1
            return s.t * 10

    a = A()

    @compile
    def f(x):
        return x + a.c

    out = [f(ramp(3)), f(ramp(3, k=1))]
    a.t = ramp(3, k=5)
    out.append(f(ramp(3)))
    del a.c
    out.append(f(ramp(3)))
    return out + [a.n]


@program
def cache_tensor_made_inside_then_mutated(compile):
    cache = {}

    @compile
    def f(x, n):
        if n not in cache:
            cache[n] = torch.arange(n).float() * x.sum()
        return cache[n] + 1

    out = [f(ramp(3), 3), f(ramp(3, k=3), 3)]
    cache[3].add_(100)
    out.append(f(ramp(3), 3))
    cache.clear()
    out.append(f(ramp(3, k=2), 3))
    return out + [cache[3]]


@program
def args_mutated_containers(compile):
    @compile
    def f(l, d):
        l.append(l[-1] * 2)
        d["n"] = d.get("n", 0) + 1
        d["t"] = l[-1] + l[0]
        if len(l) > 4:
            l.pop(0)
        return len(l)

    l, d = [ramp(2)], {}
    return [f(l, d) for _ in range(6)] + [list(l), dict(d)]


@program
def default_mutable_dict_of_state(compile):
    @compile
    def f(x, st={"h": None, "n": 0}):
        st["n"] += 1
        st["h"] = x if st["h"] is None else st["h"] * 0.5 + x
        return st["h"] * st["n"]

    return [f(ramp(3, k=i)) for i in range(4)]


@program
def function_attribute_state(compile):
    def f(x):
        f.n = getattr(f, "n", 0) + 1
        f.last = x * f.n
        return f.last

    g = compile(f)
    return [g(ramp(3, k=i)) for i in range(3)] + [f.n, f.last]


@program
def global_statement_tensor(compile):
    global GT
    GT = ramp(3)

    @compile
    def f(x):
        global GT
        GT = GT * 0.5 + x
        return GT.sum()

    out = []
    for i in range(3):
        out += [f(ramp(3, k=i)), GT.clone()]
    GT = torch.ones(3)
    out.append(f(ramp(3)))
    return out


@program
def del_global_nameerror(compile):
    globals()["TMPG"] = 3.0

    @compile
    def f(x):
        return x * TMPG  # noqa: F821

    out = [f(ramp(3))]
    del globals()["TMPG"]
    out.append(attempt(f, ramp(3)))
    globals()["TMPG"] = 4
    out.append(f(ramp(3)))
    del globals()["TMPG"]
    return out


@program
def unbound_local(compile):
    @compile
    def f(x, b):
        if b:
            y = x * 2
        return y

    return [attempt(f, ramp(3), b) for b in (True, False, True)]


@program
def builtins_shadowed(compile):
    @compile
    def f(x):
        return x * len([1, 2, 3]) + max(1, 2)

    out = [f(ramp(3))]
    globals()["len"] = lambda v: 100
    try:
        out.append(f(ramp(3)))
    finally:
        del globals()["len"]
    return out + [f(ramp(3))]


@program
def monkey_torch_functions(compile):
    @compile
    def f(x):
        return torch.sin(x) + torch.cat([x, x]).sum() + x.exp()

    out = [f(ramp(3))]
    o1, o2, o3 = torch.sin, torch.cat, torch.Tensor.exp
    torch.sin = lambda x: x * 10
    out.append(f(ramp(3)))
    torch.cat = lambda l: l[0]
    out.append(f(ramp(3)))
    torch.Tensor.exp = lambda s: s - 1
    try:
        out.append(f(ramp(3)))
    finally:
        torch.sin, torch.cat, torch.Tensor.exp = o1, o2, o3
    return out + [f(ramp(3))]


@program
def monkey_tensor_dunder(compile):
    @compile
    def f(x):
        return x + x * 2

    out = [f(ramp(3))]
    o = torch.Tensor.__add__
    torch.Tensor.__add__ = lambda a, b: o(a, b) * 3
    try:
        out.append(f(ramp(3)))
    finally:
        torch.Tensor.__add__ = o
    return out + [f(ramp(3))]


@program
def tensor_new_method(compile):
    torch.Tensor.double_it = lambda s: s * 2
    try:
        f = compile(lambda x: x.double_it())
        out = [f(ramp(3))]
        torch.Tensor.double_it = property(lambda s: lambda: s * 4)
        out.append(f(ramp(3)))
    finally:
        del torch.Tensor.double_it
    return out + [attempt(f, ramp(3))[:2]]


@program
def linear_forward_patched(compile):
    l = filled(nn.Linear(3, 2))
    f = compile(lambda x: l(x))
    out = [f(ramp(2, 3))]
    o = nn.Linear.forward
    nn.Linear.forward = lambda s, x: o(s, x) * 2
    try:
        out.append(f(ramp(2, 3)))
    finally:
        nn.Linear.forward = o
    l.__class__ = type("L2", (nn.Linear,), {"forward": lambda s, x: x.sum() + s.weight})
    out.append(f(ramp(2, 3)))
    return out


@program
def patched_nn_functional_linear(compile):
    l = filled(nn.Linear(3, 2))
    f = compile(l)
    out = [f(ramp(2, 3))]
    o = F.linear
    F.linear = lambda x, w, b=None: o(x, w, b) + 1000
    try:
        out.append(f(ramp(2, 3)))
    finally:
        F.linear = o
    return out + [f(ramp(2, 3))]


@program
def setattr_delattr_in_call(compile):
    class O:
        pass

    o = O()

    @compile
    def f(x):
        if hasattr(o, "h"):
            h = o.h
            del o.h
            return h + x
        setattr(o, "h", x * 2)
        return None

    return [f(ramp(3, k=i)) for i in range(5)] + [sorted(vars(o))]


@program
def tensor_attr_state(compile):
    t = ramp(3)

    @compile
    def f(x):
        t.count = getattr(t, "count", 0) + 1
        t.prev = getattr(t, "prev", x) + t
        return t.prev * t.count

    return [f(ramp(3, k=i)) for i in range(3)] + [t.count, t.prev]


@program
def iterators_kept_across_calls(compile):
    it = iter([ramp(3), ramp(3, k=1), ramp(3, k=2)])
    cyc = itertools.cycle([1.0, 2.0])
    f = compile(lambda x: x * next(cyc) + next(it))
    return [attempt(f, ramp(3)) for _ in range(4)] + [next(cyc)]


@program
def generator_kept_across_calls(compile):
    def g():
        h = torch.zeros(3)
        while True:
            x = yield h
            h = torch.tanh(h + x)

    it = g()
    next(it)
    f = compile(lambda x: it.send(x) * 2)
    out = [f(ramp(3, k=i)) for i in range(4)]
    it.close()
    return out + [attempt(f, ramp(3))[:2]]


@program
def generator_throw_inside(compile):
    def g(x):
        try:
            y = x * 2
            while True:
                y = y + (yield y)
        except ValueError as e:
            yield y * 100
        finally:
            log.append("fin")

    log = []

    @compile
    def f(x):
        it = g(x)
        a = next(it)
        b = it.send(a)
        c = it.throw(ValueError("x"))
        it.close()
        return a, b, c

    return [f(ramp(3, k=i)) for i in range(3)] + [log]


@program
def compiled_generator_with_state(compile):
    @compile
    def g(x, n):
        h = x
        for i in range(n):
            h = h * 2 + i
            got = yield h
            if got is not None:
                h = h + got
        return h.sum()

    out = []
    it = g(ramp(3), 3)
    out.append(next(it))
    out.append(it.send(ramp(3)))
    out.append(attempt(lambda: [next(it), next(it)])[:2])

    def outer():
        r = yield from g(ramp(3), 2)
        out.append(r)

    out += list(outer())
    return out + [inspect.isgenerator(it)]


@program
def coroutine_gather(compile):
    @compile
    async def f(x, n):
        for i in range(n):
            x = x * 2
            await asyncio.sleep(0)
        return x

    async def main():
        return await asyncio.gather(f(ramp(3), 1), f(ramp(3, k=1), 3), f(ramp(3, k=2), 2))

    return [asyncio.run(main()), asyncio.run(main())]


@program
def coroutine_calls_compiled_between_awaits(compile):
    st = [torch.zeros(3)]

    @compile
    def step(x):
        st[0] = st[0] * 0.5 + x
        return st[0].sum()

    async def w(i):
        o = []
        for j in range(3):
            o.append(step(ramp(3, k=i + j)))
            await asyncio.sleep(0)
        return o

    async def main():
        return await asyncio.gather(w(0), w(5))

    return [asyncio.run(main()), st[0]]


@program
def async_generator_compiled(compile):
    @compile
    async def g(x):
        for i in range(3):
            yield x * i

    async def main():
        return [v async for v in g(ramp(3))]

    return [asyncio.run(main()), asyncio.run(main())]


@program
def async_context_and_exception(compile):
    log = []

    class A:
        async def __aenter__(s):
            log.append("in")
            return 2.0

        async def __aexit__(s, *e):
            log.append(e[0] and e[0].__name__)
            return True

    @compile
    async def f(x, bad):
        async with A() as k:
            y = x * k
            if bad:
                y.view(77)
            return y
        return x

    return [asyncio.run(f(ramp(3), b)) for b in (0, 1, 0)] + [log]


@program
def contextvar_in_compiled(compile):
    import contextvars

    v = contextvars.ContextVar("v", default=1.0)
    f = compile(lambda x: x * v.get())
    out = [f(ramp(3))]
    tok = v.set(5.0)
    out.append(f(ramp(3)))
    v.reset(tok)
    out.append(f(ramp(3)))
    ctx = contextvars.copy_context()
    ctx.run(v.set, 7.0)
    out.append(ctx.run(f, ramp(3)))
    return out


@program
def exit_stack_inside(compile):
    log = []

    @contextlib.contextmanager
    def cm(n):
        log.append(("in", n))
        try:
            yield n
        except ValueError as e:
            log.append(("exc", n))
            raise
        finally:
            log.append(("out", n))

    @compile
    def f(x, ns, bad):
        with contextlib.ExitStack() as st:
            for n in ns:
                x = x * st.enter_context(cm(n))
            st.callback(lambda: log.append(float(x.sum())))
            if bad:
                raise ValueError("b")
        return x

    return [attempt(f, ramp(3), (1, 2), 0), attempt(f, ramp(3), (1, 2, 3), 1), attempt(f, ramp(3), (), 0), log]


@program
def contextmanager_swallows(compile):
    class S:
        def __enter__(s):
            return s

        def __exit__(s, t, v, tb):
            s.seen = t and t.__name__
            return t is ZeroDivisionError

    @compile
    def f(x, d):
        s = S()
        with s:
            y = x / 2
            1 // d
            y = y * 3
        return y, s.seen

    return [attempt(f, ramp(3), d) for d in (1, 0, 2, 0)]


@program
def contextdecorator_no_grad_methods(compile):
    w = ramp(3, r=True)

    class M:
        @torch.no_grad()
        def a(s, x):
            return x * w

        @torch.enable_grad()
        def b(s, x):
            return x * w

        @torch.inference_mode()
        def c(s, x):
            return x * w

    m = M()
    f = compile(lambda x: (m.a(x), m.b(x), m.c(x)))
    out = []
    for mode in (torch.enable_grad, torch.no_grad, torch.enable_grad):
        with mode():
            out += [(v.requires_grad, v.detach()) for v in f(ramp(3))]
    return out


@program
def recursion_tree(compile):
    @compile
    def f(t):
        if isinstance(t, torch.Tensor):
            return t * 2
        if isinstance(t, dict):
            return {k: f(v) for k, v in t.items()}
        return type(t)(f(v) for v in t)

    return [f({"a": ramp(2), "b": [ramp(2), (ramp(1), ramp(3))]}), f([ramp(2)]), f({"a": ramp(2), "b": [ramp(2), (ramp(1), ramp(3))]})]


@program
def mutual_recursion_compiled(compile):
    @compile
    def even(x, n):
        return x if n == 0 else odd(x * 2, n - 1)

    @compile
    def odd(x, n):
        return x * 0 if n == 0 else even(x + 1, n - 1)

    return [even(ramp(3), n) for n in (0, 3, 4, 3, 6)]


@program
def recursion_error(compile):
    @compile
    def f(x):
        return f(x + 1)

    old = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 300)
    try:
        r = attempt(f, ramp(3))
    finally:
        sys.setrecursionlimit(old)
    g = compile(lambda x: x * 2)
    return [r[:1], g(ramp(3))]


@program
def compiled_of_compiled(compile):
    def f(x):
        return x * 2 + 1

    g = compile(compile(f))
    h = compile(lambda x: g(g(x)))
    return [g(ramp(3)), h(ramp(3)), h(ramp(4)), g(ramp(3))]


@program
def compiled_in_sort_key_and_map(compile):
    key = compile(lambda t: float(t.sum()))
    f = compile(lambda ts: torch.stack(sorted(ts, key=key)))
    ts = [ramp(3, k=i) for i in range(4)]
    return [f(ts), list(map(compile(lambda x: x + 1), ts)), functools.reduce(compile(lambda a, b: a * b + 1), ts), f(ts[::-1])]


@program
def partial_and_partialmethod(compile):
    class A:
        def m(self, x, k=1, *, j=0):
            return x * k + j

        m3 = functools.partialmethod(m, k=3)

    a = A()
    f = compile(functools.partial(a.m, j=2))
    g = compile(a.m3)
    h = compile(functools.partial(functools.partial(A.m, a), k=4))
    return [f(ramp(3)), f(ramp(3), 5), g(ramp(3)), g(ramp(3), j=9), h(ramp(3)), attempt(g, ramp(3), 3)[:2]]


@program
def operator_module(compile):
    ig = operator.itemgetter(0, 2)
    mc = operator.methodcaller("sum", 0)
    ag = operator.attrgetter("T")

    @compile
    def f(x):
        return ig(x), mc(x), ag(x), operator.matmul(x, x), operator.iadd(x.clone(), 1), operator.neg(x), operator.contains([1], 1)

    return [f(ramp(3, 3, k=i)) for i in range(2)]


@program
def call_object_with_compiled_call(compile):
    class A:
        def __init__(s):
            s.k = 1

        @compile
        def __call__(s, x):
            s.k += 1
            return x * s.k

    a, b = A(), A()
    return [a(ramp(3)), a(ramp(3)), b(ramp(3)), a(ramp(3)), a.k, b.k]


@program
def compiled_static_class_property(compile):
    class A:
        k = 2

        @staticmethod
        @compile
        def s(x):
            return x + 1

        @classmethod
        @compile
        def c(cls, x):
            return x * cls.k

        @property
        @compile
        def p(self):
            return torch.full((2,), float(self.k))

    class B(A):
        k = 5

    a = A()
    out = [A.s(ramp(3)), A.c(ramp(3)), B.c(ramp(3)), a.p]
    a.k = 7
    A.k = 3
    return out + [a.p, A.c(ramp(3)), a.s(ramp(3))]


@program
def super_and_mro(compile):
    class A(nn.Module):
        def forward(s, x):
            return x + 1

    class B(A):
        def forward(s, x):
            return super().forward(x) * 2

    class D(A):
        def forward(s, x):
            return super().forward(x) - 3

    class E(B, D):
        pass

    e = E()
    f = compile(e)
    out = [f(ramp(3))]
    D.forward = lambda s, x: A.forward(s, x) * 10
    out.append(f(ramp(3)))
    E.__bases__ = (D, B)
    out.append(f(ramp(3)))
    return out


@program
def format_repr_len_iter_in(compile):
    @compile
    def f(x):
        a = f"{x[0]:.2f}|{x.sum().item():+.1e}|{len(x)}|{x.dim()}"
        b = repr(x * 2)
        c = str(x > 0)
        d = [float(v) for v in x]
        e = 0.5 in x
        g = x.tolist()
        h = list(reversed(d))
        i = "%s" % x.shape.__class__.__name__
        return a, b, c, d, e, g, h, i, format(x.sum(), ".3f"), f"{x.size()}"

    return [f(ramp(3, k=i)) for i in range(3)]


@program
def conversions(compile):
    @compile
    def f(x):
        s = (x * 3).sum()
        return (
            int(s),
            float(s),
            bool(s),
            round(float(s), 2),
            math.floor(s),
            math.sin(s),
            max(x[0], x[1]),
            min(x),
            sum(x),
            any(x > 0),
            all(x > -9),
            s.__index__() if s.dtype == torch.int64 else None,
        )

    return [f(ramp(3, k=i)) for i in range(2)] + [attempt(f, ramp(3, k=1).long())]


@program
def index_list_by_tensor(compile):
    @compile
    def f(i, l):
        return l[i], range(10)[i], "abcdef"[i], [0] * i, np.arange(5)[i]

    return [attempt(f, torch.tensor(i), [5, 6, 7]) for i in (0, 2, 1, 7)] + [attempt(f, torch.tensor(1.5), [1])[:3]]


@program
def range_of_tensor(compile):
    @compile
    def f(n, x):
        for i in range(n):
            x = x + i
        for j in range(int(n) // 2):
            x = x * 2
        return x

    return [f(torch.tensor(n), ramp(3)) for n in (2, 5, 0, 2)]


@program
def iterate_rows_modify(compile):
    @compile
    def f(x):
        for i, r in enumerate(x):
            r += i
        for a, b in zip(x, x.t()):
            a *= 2
            b += 1
        return x

    return [f(ramp(3, 3, k=i)) for i in range(3)]


@program
def unpacking(compile):
    @compile
    def f(x):
        a, *b, c = x
        ((d, e),) = x[:1].unbind()
        return a + c, b, d, e, [*x[0]], {**{"a": a}}

    return [f(ramp(3, 2, k=i)) for i in range(2)] + [attempt(f, ramp(3, 4))]


@program
def sum_builtin_start(compile):
    @compile
    def f(l):
        return sum(l), sum(l, ramp(2)), sum(v.sum() for v in l), math.prod(v.sum() for v in l)

    return [f([ramp(2, k=i), ramp(2)]) for i in range(2)] + [f([])[:1], f([ramp(2)])]


@program
def numpy_scalar_args(compile):
    f = compile(lambda x, k: (x * k, x + k, k * x if not isinstance(k, np.ndarray) else 0))
    return [attempt(f, ramp(3), k) for k in (np.float32(2), np.float64(2.5), np.int64(3), 2, True, np.bool_(True), np.float32(4))]


@program
def numpy_array_operand(compile):
    f = compile(lambda x, a: attempt(lambda: x * a))
    return [f(ramp(3), np.ones(3, np.float32)), f(ramp(3), np.arange(3))]


@program
def numpy_functions(compile):
    @compile
    def f(x):
        return np.sin(x), np.mean(x.numpy()), np.asarray(x).dtype.str, np.concatenate([x, x]).shape, torch.as_tensor(np.cumsum(x.numpy()))

    return [[torch.as_tensor(np.asarray(v)) if isinstance(v, np.ndarray) else v for v in f(ramp(3, k=i))] for i in range(2)]


@program
def string_formatting_log(compile):
    buf = io.StringIO()
    h = logging.StreamHandler(buf)
    lg = logging.getLogger("p")
    lg.addHandler(h)
    lg.setLevel(20)
    lg.propagate = False

    @compile
    def f(x):
        y = x * 2
        lg.info("y=%s s=%.3f", y, y.sum())
        return y + 1

    out = [f(ramp(2, k=i)) for i in range(3)]
    lg.removeHandler(h)
    return out + [buf.getvalue()]


@program
def warnings_inside(compile):
    @compile
    def f(x):
        warnings.warn(f"w{int(x.sum() > 0)}")
        return x * 2

    out = []
    for i in range(3):
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter("always")
            out.append(f(ramp(3, k=i)))
            out.append([str(v.message) for v in w])
    return out


@program
def random_module_and_time(compile):
    random.seed(3)
    f = compile(lambda x: x * random.random() + random.randint(0, 5))
    return [f(ramp(3)) for _ in range(4)]


@program
def np_random_inside(compile):
    rng = np.random.default_rng(0)
    f = compile(lambda x: x * float(rng.random()) + torch.tensor(rng.standard_normal(3).astype(np.float32)))
    return [f(ramp(3)) for _ in range(3)]


@program
def del_and_gc_counts(compile):
    log = []

    class H:
        def __init__(s, n, t):
            s.n, s.t = n, t

        def __del__(s):
            log.append((s.n, float(s.t.sum())))

    @compile
    def f(x, n):
        h = H(n, x * 2)
        y = h.t + 1
        del h
        log.append("after")
        return y

    return [f(ramp(3, k=i), i) for i in range(3)] + [log]


@program
def del_self_cycle_gc(compile):
    log = []

    class H:
        def __init__(s, t):
            s.me = s
            s.t = t

        def __del__(s):
            log.append(round(float(s.t.sum()), 3))

    @compile
    def f(x):
        H(x * 2)
        gc.collect()
        return x + 1

    return [f(ramp(3, k=i)) for i in range(3)] + [log]


@program
def weakref_to_results(compile):
    f = compile(lambda x: x * 2)
    y = f(ramp(3))
    r = weakref.ref(y)
    out = [r() is y]
    del y
    out.append(r() is None)
    y = f(ramp(3))
    return out + [y, r() is None]


@program
def weak_value_dict_cache(compile):
    d = weakref.WeakValueDictionary()
    keep = []

    @compile
    def f(x, k):
        t = d.get(k)
        if t is None:
            t = x * 3
            d[k] = t
            keep.append(t)
        return t + 1

    out = [f(ramp(3), 0), f(ramp(3, k=1), 0), f(ramp(3), 1)]
    keep.clear()
    out.append(sorted(d))
    out.append(f(ramp(3, k=4), 0))
    return out


@program
def freed_after_call(compile):
    refs = []

    class Big:
        pass

    @compile
    def f(x):
        b = Big()
        b.t = x * 2
        refs.append(weakref.ref(b))
        refs.append(weakref.ref(b.t))
        return b.t.sum()

    out = [f(ramp(3)) for _ in range(3)]
    return out + [[r() is None for r in refs]]


@program
def input_freed_after_call(compile):
    f = compile(lambda x: (x * 2).sum())
    out = []
    for i in range(3):
        x = ramp(3, k=i)
        r = weakref.ref(x)
        out.append(f(x))
        del x
        out.append(r() is None)
    return out


@program
def closure_tensor_freed(compile):
    def make():
        w = ramp(3)
        return compile(lambda x: x * w), weakref.ref(w)

    f, r = make()
    out = [f(ramp(3)), f(ramp(3)), r() is None]
    del f
    gc.collect()
    return out + [r() is None]


@program
def params_freed_with_model(compile):
    l = filled(nn.Linear(3, 3))
    r = weakref.ref(l.weight)

    def f(m, x):
        return m(x).sum()

    g = compile(f)
    out = []
    for _ in range(3):
        y = g(l, ramp(2, 3))
        y.backward()
        out.append(y.detach())
    del l, y
    gc.collect()
    return out + [r() is None]


@program
def no_tensor_functions(compile):
    log = []

    @compile
    def f(a, b=2, *c):
        log.append(a)
        return a + b + sum(c)

    @compile
    def g():
        pass

    return [f(1), f(1, 2, 3), attempt(f, "a", "b"), g(), attempt(f), attempt(f, 1, "a"), log]


@program
def eval_exec_inside(compile):
    @compile
    def f(x, src):
        ns = {"x": x}
        exec(src, ns)
        return ns["y"], eval("x+1", ns)

    return [f(ramp(3), s) for s in ("y=x*2", "y=x.sum()", "y=x*2")]


@program
def locals_and_frames(compile):
    @compile
    def f(x):
        y = x * 2
        l = sorted(locals())
        fr = sys._getframe().f_code.co_name
        return y, l, fr, inspect.stack()[0].function

    return [f(ramp(3)), f(ramp(3))]


@program
def walrus_comprehension_conditional(compile):
    @compile
    def f(xs):
        return (
            [y for x in xs if (y := x * 2).sum() > 0],
            {i: v for i, v in enumerate(xs) if bool(v[0] < 0)},
            any((t := x).max() > 0.5 for x in xs),
        )

    return [f([ramp(3, k=j + i) for j in range(4)]) for i in range(3)]


@program
def chained_comparison(compile):
    f = compile(lambda x: 0 < x.sum() < 2)
    g = compile(lambda x: attempt(lambda: 0 < x < 1))
    return [f(ramp(3, k=i)) for i in range(5)] + [g(ramp(3))[:3], g(ramp(1))]


@program
def ternary_and_or(compile):
    f = compile(lambda x, y: (x.sum() > 0 and y, x.sum() > 0 or y, not x.sum() > 0, x if x.sum() > 0 else y))
    return [f(ramp(3, k=i), ramp(3)) for i in range(6)]


@program
def assert_statement(compile):
    @compile
    def f(x):
        assert x.sum() > 0, f"sum is {x.sum():.2f}"
        return x * 2

    return [attempt(f, ramp(3, k=i)) for i in range(6)]


@program
def bool_of_many(compile):
    f = compile(lambda x: x * 2 if x else x)
    return [attempt(f, ramp(1)), attempt(f, ramp(3)), attempt(f, torch.zeros(1)), attempt(f, torch.zeros(0)), attempt(f, ramp(1))]


@program
def id_and_is(compile):
    @compile
    def f(x):
        y = x.contiguous()
        z = x.to(torch.float32)
        w = x.float()
        v = x.view(-1)
        return (
            y is x,
            z is x,
            w is x,
            v is x,
            x.detach() is x,
            x.reshape(3) is x,
            x.expand(3) is x,
            (x.T is x),
            x.clone() is x,
            x.cpu() is x,
            x.requires_grad_(False) is x,
        )

    return [f(ramp(3)), f(ramp(3))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])
