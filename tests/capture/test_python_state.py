"""Every way plain Python state can change between two calls: compiled code does what plain code does."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import contextvars
import copy
import dataclasses
import enum
import functools
import io
import itertools
import logging
import operator
import pickle
import random
import sys
import threading
import traceback
import types
import warnings
import weakref

import numpy as np
import pytest
from harness import catch, compare, plain, randn, registry

import torchlet as torch

PROGRAMS, program = registry()
SCALE = 2.0
X = [randn(3, seed=i) for i in range(8)]


def helper(x):
    return x * 2


# ------------------------------------------------------------------------------------------------ where values come from


@program
def global_rebound(compile):
    global SCALE
    f = compile(lambda x: x * SCALE + 1)
    out = [f(X[0])]
    SCALE = 3.5
    out.append(f(X[0]))
    SCALE = torch.ones(3)
    out.append(f(X[0]))
    SCALE = 2.0
    return [*out, f(X[0])]


@program
def global_function_replaced(compile):
    f = compile(lambda x: helper(x) + 1)
    before = globals()["helper"]
    out = [f(X[0])]
    globals()["helper"] = lambda x: x - 5
    try:
        out += [f(X[0]), f(X[1])]
    finally:
        globals()["helper"] = before
    return [*out, f(X[0])]


@program
def nonlocal_counter(compile):
    n = 0

    def f(x):
        nonlocal n
        n += 1
        return x * n + 1

    g = compile(f)
    return [g(X[i]) for i in range(4)] + [n]


@program
def default_argument_replaced(compile):
    def f(x, k=2.0, *, shift=1.0):
        return x * k + shift

    g = compile(f)
    out = [g(X[0])]
    f.__defaults__, f.__kwdefaults__ = (5.0,), {"shift": -1.0}
    return [*out, g(X[0]), g(X[0], shift=4.0)]


@program
def mutable_default_grows(compile):
    def f(x, seen=[]):  # noqa: B006
        seen.append(x * 2 + 1)
        return sum(seen)

    g = compile(f)
    return [g(X[i]) for i in range(4)]


@program
def cell_contents_replaced(compile):
    def make():
        k = 2.0
        return lambda x: x * k + 1

    f = make()
    g = compile(f)
    out = [g(X[0])]
    f.__closure__[0].cell_contents = 7.0
    return [*out, g(X[0])]


@program
def code_object_replaced(compile):
    def f(x):
        return x * 2 + 1

    def other(x):
        return x - 1

    g = compile(f)
    out = [g(X[0])]
    f.__code__ = other.__code__
    return [*out, g(X[0])]


@program
def attributes_of_an_object(compile):
    box = types.SimpleNamespace(k=2.0, t=X[1], deep=types.SimpleNamespace(n=1))
    f = compile(lambda x: x * box.k + box.t * box.deep.n)
    out = [f(X[0])]
    box.k = 3
    out.append(f(X[0]))
    box.deep.n = 4
    box.t = X[2].double()
    out.append(f(X[0]))
    box.deep = types.SimpleNamespace(n=0.5)
    return [*out, f(X[0])]


@program
def class_attribute_and_property(compile):
    class A:
        k = 2.0

        @property
        def twice(self):
            return self.k * 2

        def __getattr__(self, name):
            if name == "missing":
                return 10.0
            raise AttributeError(name)

    a = A()
    f = compile(lambda x: x * a.k + a.twice + a.missing)
    out = [f(X[0])]
    A.k = 3.0
    out.append(f(X[0]))
    a.k = 5.0
    out.append(f(X[0]))
    A.twice = property(lambda self: -1.0)
    out.append(f(X[0]))
    a.missing = 0.0
    return [*out, f(X[0])]


@program
def method_replaced_on_class_and_instance(compile):
    class A:
        def go(self, x):
            return x * 2 + 1

    a = A()
    f = compile(lambda x: a.go(x))
    out = [f(X[0])]
    A.go = lambda self, x: x - 1
    out.append(f(X[0]))
    a.go = lambda x: x * 3
    out.append(f(X[0]))
    del a.go
    out.append(f(X[0]))

    class B:
        def go(self, x):
            return x + 100

    a.__class__ = B
    return [*out, f(X[0])]


@program
def dict_list_and_set_entries(compile):
    table = {"a": 2.0, "b": X[1]}
    items = [1.0, X[2]]
    flags = {"double"}

    def f(x):
        y = x * table["a"] + items[0]
        if "double" in flags:
            y = y * 2
        for v in items[1:]:
            y = y + v
        return y + table.get("b", 0.0)

    g = compile(f)
    out = [g(X[0])]
    table["a"] = 4.0
    items.append(X[3])
    out.append(g(X[0]))
    del table["b"]
    flags.clear()
    out.append(g(X[0]))
    items[:] = [9.0]
    return [*out, g(X[0])]


@program
def module_attribute_monkeypatched(compile):
    module = types.ModuleType("m")
    module.scale = lambda x: x * 2
    f = compile(lambda x: module.scale(x) + 1)
    out = [f(X[0])]
    module.scale = lambda x: x * 3
    return [*out, f(X[0])]


@program
def tensor_method_monkeypatched(compile):
    f = compile(lambda x: x.halved() + 1)
    torch.Tensor.halved = lambda self: self * 0.5
    try:
        out = [f(X[0])]
        torch.Tensor.halved = lambda self: self * 0.25
        out.append(f(X[0]))
    finally:
        del torch.Tensor.halved
    return [*out, catch(f, X[0])[0]]


@program
def python_random_and_time_like_reads(compile):
    clock = itertools.count()
    random.seed(3)

    def f(x):
        return x * random.random() + next(clock) + 1

    g = compile(f)
    return [g(X[0]) for _ in range(4)] + [next(clock)]


@program
def environment_and_context_variable(compile):
    var = contextvars.ContextVar("v", default=1.0)
    f = compile(lambda x: x * var.get() + 1)
    out = [f(X[0])]
    token = var.set(4.0)
    out.append(f(X[0]))
    var.reset(token)
    return [*out, f(X[0])]


@program
def thread_local_value(compile):
    local = threading.local()
    local.k = 2.0
    f = compile(lambda x: x * getattr(local, "k", -1.0) + 1)
    out = [f(X[0])]
    worker = threading.Thread(target=lambda: out.append(f(X[0])))
    worker.start()
    worker.join()
    local.k = 3.0
    return [*out, f(X[0])]


@program
def weak_reference_dies(compile):
    class Owner:
        k = 2.0

    owner = Owner()
    ref = weakref.ref(owner)

    def f(x):
        o = ref()
        return x * (o.k if o is not None else -1.0) + 1

    g = compile(f)
    out = [g(X[0])]
    del owner
    return [*out, g(X[0])]


@program
def weak_references_to_tensors(compile):
    refs, table = [], weakref.WeakValueDictionary()

    def f(x, keep):
        y = x * 2 + 1
        refs.append(weakref.ref(y))
        table[len(refs)] = y
        return y if keep else y.sum()

    g = compile(f)
    kept = [g(X[i], i % 2 == 0) for i in range(5)]
    return [kept, [r() is None for r in refs], sorted(table)]


@program
def weakref_finalizers_run(compile):
    gone = []

    def f(x):
        y = x * 2 + 1
        weakref.finalize(y, gone.append, len(gone))
        return y.sum()

    g = compile(f)
    out = [g(X[i]) for i in range(4)]
    return [out, gone]


@program
def attributes_set_on_temporaries(compile):
    def f(x):
        y = x * 2 + 1
        known = hasattr(y, "tag"), y.grad is None
        y.tag = "seen"
        y.grad = x
        return y.sum(), known

    g = compile(f)
    return [g(X[i]) for i in range(4)]


@program
def attributes_set_on_results(compile):
    def f(x):
        y = x * 2 + 1
        y.tag = float(len(kept))
        return y

    kept = []
    g = compile(f)
    for i in range(3):
        kept.append(g(X[i]))
    return [kept, [y.tag for y in kept]]


# ------------------------------------------------------------------------------------------------ effects


@program
def print_and_log(compile):
    stream = io.StringIO()
    logger = logging.getLogger("torchlet-capture-test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)

    def f(x):
        y = x * 2 + 1
        print("shape", tuple(y.shape), file=stream)
        logger.info("%s", y.dtype)
        print(round(y.sum().item(), 3), file=stream)
        return y

    g = compile(f)
    out = [g(X[i]) for i in range(3)]
    logger.removeHandler(handler)
    return [out, stream.getvalue()]


@program
def lists_dicts_and_counters_grow(compile):
    history, table, count = [], collections.defaultdict(list), collections.Counter()

    def f(x, key):
        y = x * 2 + 1
        history.append(y)
        table[key].append(y.sum())
        count[key] += 1
        return history[0] + len(history)

    g = compile(f)
    return [[g(X[i], "ab"[i % 2]) for i in range(5)], history, dict(table), dict(count)]


@program
def deque_and_heap_of_tensors(compile):
    window = collections.deque(maxlen=2)

    def f(x):
        window.append(x * 2)
        return sum(window) + 1

    g = compile(f)
    return [g(X[i]) for i in range(4)] + [list(window)]


@program
def warnings_are_given_each_time(compile):
    def f(x):
        warnings.warn("careful", UserWarning, stacklevel=1)
        return x * 2 + 1

    g = compile(f)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = [g(X[i]) for i in range(3)]
    return [out, [str(w.message) for w in seen]]


@program
def numpy_state_and_arrays(compile):
    buffer = np.zeros(3, np.float32)
    np.random.seed(1)

    def f(x):
        nonlocal buffer
        buffer += 1
        buffer[0] = np.random.rand()
        return x * 2 + torch.tensor(buffer)

    g = compile(f)
    return [g(X[i]) for i in range(3)] + [buffer]


@program
def numpy_window_on_a_result(compile):
    def f(x):
        y = x * 2 + 1
        a = y.numpy()
        a += 10
        return y * 2, a.sum()

    g = compile(f)
    return [[g(X[i])[0], float(g(X[i])[1])] for i in range(3)]


@program
def numpy_function_on_tensors(compile):
    f = compile(lambda x: torch.tensor(np.maximum(np.asarray(x * 2), 0)) + 1)
    return [f(X[i]) for i in range(3)]


# ------------------------------------------------------------------------------------------------ exceptions


@program
def uncaught_exception_keeps_effects(compile):
    seen = []

    def f(x, fail):
        y = x * 2 + 1
        seen.append(y)
        x.add_(1)
        if fail:
            raise ValueError("after")
        return y - 1

    g = compile(f)
    t = X[0].clone()
    return [catch(g, t, i % 2 == 1) for i in range(4)] + [seen, t]


@program
def try_except_else_finally(compile):
    def f(x, kind):
        log = []
        try:
            y = x * 2 + 1
            if kind == "key":
                {}["k"]
            if kind == "zero":
                1 / 0
        except KeyError as error:
            log.append(repr(error))
            y = x - 1
        else:
            y = y * 3
        finally:
            log.append(len(log))
        return y, log

    g = compile(f)
    return [catch(g, X[0], kind) for kind in ("", "key", "zero", "", "key")]


@program
def exception_carries_tensors(compile):
    class Found(Exception):
        def __init__(self, value):
            self.value = value

    def f(x):
        raise Found(x * 2 + 1)

    g = compile(f)
    out = []
    for i in range(3):
        try:
            g(X[i])
        except Found as error:
            out.append(error.value)
            out.append(error.__traceback__.tb_next is not None)
    return out


@program
def tensors_in_the_frames_of_a_traceback(compile):
    def inner(x):
        secret = x * 2 + 1
        raise RuntimeError("stop")
        return secret

    g = compile(lambda x: inner(x))
    out = []
    for i in range(3):
        try:
            g(X[i])
        except RuntimeError:
            tb = sys.exc_info()[2]
            while tb.tb_next is not None:
                tb = tb.tb_next
            out.append(tb.tb_frame.f_locals["secret"])
    return out


@program
def traceback_names_the_line(compile):
    def f(x, n):
        y = x * 2
        return y.view(n, 7)

    g = compile(f)
    out = []
    for n in (1, 1):
        try:
            g(X[0], n)
        except RuntimeError as error:
            out.append([e.line for e in traceback.extract_tb(error.__traceback__) if e.name == "f"])
    return out


@program
def exception_chaining_and_suppress(compile):
    def f(x, i):
        with contextlib.suppress(ZeroDivisionError):
            y = x * (1 / i)
            return y + 1
        try:
            raise KeyError("a")
        except KeyError as e:
            raise ValueError("b") from e

    g = compile(f)
    out = []
    for i in (1, 0, 2, 0):
        try:
            out.append(g(X[0], i))
        except ValueError as error:
            out.append([str(error), repr(error.__cause__)])
    return out


@program
def keyboard_interrupt_inside(compile):
    kept = []

    def f(x, stop):
        y = x * 2 + 1
        kept.append(y)
        if stop:
            raise KeyboardInterrupt
        return y - 1

    g = compile(f)
    out = []
    for i in range(4):
        try:
            out.append(g(X[i], i == 1))
        except KeyboardInterrupt:
            out.append("interrupted")
    return [out, kept]


@program
def generator_exit_and_stop_iteration(compile):
    log = []

    def rows(x):
        try:
            for i in range(3):
                yield x * 2 + i
        finally:
            log.append("closed")

    def f(x, n):
        total = x * 0
        for i, r in enumerate(rows(x)):
            if i == n:
                break
            total = total + r
        return total

    g = compile(f)
    return [g(X[0], n) for n in (0, 2, 3, 1)] + [log]


@program
def shape_errors_are_raised_at_their_line_and_can_be_caught(compile):
    def f(x, y):
        try:
            return x @ y
        except RuntimeError as error:
            return str(error)

    g = compile(f)
    return [g(randn(2, 3), randn(3, 2)), g(randn(2, 3), randn(2, 3)), g(randn(2, 3), randn(3, 2))]


@program
def index_errors_from_data_can_be_caught(compile):
    def f(table, i):
        y = table * 2
        try:
            z = y[i]
        except IndexError as error:
            return str(error), y.sum()
        return z + 1, y.sum()

    g = compile(f)
    t = randn(4, 2)
    good, bad = torch.tensor([0, 3]), torch.tensor([0, 4])
    out = [g(t, good), g(t, bad), g(t, good), g(t, torch.tensor([-4, 1])), g(t, torch.tensor([-5, 1]))]
    good.add_(1)
    return [*out, g(t, good)]


@program
def embedding_and_targets_out_of_range(compile):
    table = randn(5, 3, grad=True)
    F = torch.nn.functional

    def f(i, t):
        out = F.embedding(i, table)
        loss = F.cross_entropy(out, t)
        loss.backward()
        return loss

    g = compile(f)
    out = []
    for i, t in (([0, 1], [0, 1]), ([0, 5], [0, 1]), ([0, 1], [0, 3]), ([0, 1], [0, -100]), ([0, 1], [2, 1]), ([-1, 1], [2, 1])):
        out.append([catch(g, torch.tensor(i), torch.tensor(t)), table.grad])
    return out


@program
def integer_division_by_zero(compile):
    f = compile(lambda a, b: a // b + a % b)
    a = torch.tensor([7, 8])
    return [
        catch(f, a, torch.tensor([2, 3])),
        catch(f, a, torch.tensor([0, 3])),
        catch(f, a, 2),
        catch(f, a, 0),
        catch(f, a, torch.tensor([1, 3])),
    ]


@program
def pending_positions_are_checked(compile):
    def f(x, n):
        i = torch.arange(n)
        try:
            return x[i] + 1
        except IndexError:
            return x * 2

    g = compile(f)
    return [g(X[0], n) for n in (2, 3, 5, 1)]


@program
def positions_computed_from_data(compile):
    def f(x):
        order = (x * 2).argsort()
        best = (x + 1).argmax()
        far = (x * 0 + 7).long()
        out = x[order] + x[best]
        try:
            return out, x[far]
        except IndexError as error:
            return out, str(error)

    g = compile(f)
    return [g(X[i]) for i in range(3)]


# ------------------------------------------------------------------------------------------------ functions of all kinds


@program
def generators_consumed_outside(compile):
    def f(x):
        y = x * 2
        return (y + i for i in range(3))

    g = compile(f)
    return [list(g(X[i])) for i in range(3)]


@program
def generator_driven_by_compiled_calls(compile):
    def source():
        total = torch.zeros(3)
        while True:
            x = yield total
            total = total + x * 2

    gen = source()
    next(gen)
    f = compile(lambda x: gen.send(x) + 1)
    return [f(X[i]) for i in range(4)]


@program
def compiled_generator_function(compile):
    @compile
    def f(x):
        for i in range(3):
            x = x * 2 + i
            yield x

    return [list(f(X[0])), [y.sum() for y in f(X[1])]]


@program
def compiled_coroutine_function(compile):
    @compile
    async def f(x):
        await asyncio.sleep(0)
        return x * 2 + 1

    async def main():
        return await asyncio.gather(f(X[0]), f(X[1]))

    return [asyncio.run(main()), asyncio.run(main())]


@program
def compiled_function_in_coroutines(compile):
    f = compile(lambda x, k: x * k + 1)

    async def work(i):
        a = f(X[i], i)
        await asyncio.sleep(0)
        return a + f(X[i], i + 1)

    async def main():
        return await asyncio.gather(*[work(i) for i in range(4)])

    return asyncio.run(main())


@program
def event_loop_inside(compile):
    async def sub(x):
        await asyncio.sleep(0)
        return x * 2

    f = compile(lambda x: asyncio.run(sub(x)) + 1)
    return [f(X[i]) for i in range(2)]


@program
def recursion_with_changing_depth(compile):
    def f(x, n):
        return x + 1 if n == 0 else f(x * 2, n - 1)

    g = compile(f)
    return [g(X[0], n) for n in (0, 3, 1, 5, 3)]


@program
def recursion_through_the_compiled_name(compile):
    @compile
    def f(x, n):
        return x + 1 if n == 0 else f(x * 2, n - 1) + f(x, n - 1)

    return [f(X[0], n) for n in (0, 2, 3, 2)]


@program
def compiled_twice_and_nested(compile):
    f = compile(compile(lambda x: x * 2 + 1))
    g = compile(lambda x: f(x) * 2)
    h = compile(lambda x: compile(lambda y: y * 2)(x) + g(x))
    return [h(X[i]) for i in range(3)]


@program
def callables_partials_and_bound_methods(compile):
    class Call:
        def __init__(self, k):
            self.k = k

        def __call__(self, x):
            return x * self.k + 1

        def method(self, x):
            return self(x) * 2

        @classmethod
        def made(cls, x):
            return x * 2

        @staticmethod
        def plain(x):
            return x + 1

    c = Call(2.0)
    fs = [
        compile(c),
        compile(c.method),
        compile(Call.made),
        compile(Call.plain),
        compile(functools.partial(c, X[1])),
        compile(operator.neg),
    ]
    out = []
    for k in (2.0, 3.0):
        c.k = k
        out += [f(X[0]) for f in fs[:4]] + [fs[4](), fs[5](X[0])]
    return out


@program
def decorated_methods_on_several_instances(compile):
    class A:
        count = 0

        def __init__(self, k):
            self.k = k

        @compile
        def go(self, x):
            self.count += 1
            return x * self.k + self.count

        @classmethod
        @compile
        def shared(cls, x):
            cls.count += 1
            return x * cls.count + 1

        @staticmethod
        @compile
        def plain(x):
            return x * 2 + 1

    a, b = A(2.0), A(torch.ones(3))
    out = []
    for _ in range(2):
        out += [a.go(X[0]), b.go(X[1]), A.shared(X[0]), a.plain(X[2])]
    return [*out, a.count, b.count, A.count]


@program
def lambdas_in_a_loop_bind_late(compile):
    fs = [compile(lambda x: x * i + 1) for i in range(3)]  # noqa: B023
    gs = [compile(lambda x, i=i: x * i + 1) for i in range(3)]
    return [f(X[0]) for f in fs] + [g(X[0]) for g in gs]


@program
def star_arguments_and_keywords(compile):
    def f(*args, scale=1.0, **named):
        return [a * scale for a in args], {k: v + 1 for k, v in sorted(named.items())}

    g = compile(f)
    return [
        g(),
        g(X[0]),
        g(X[0], X[1], scale=2.0),
        g(b=X[0], a=X[1]),
        g(X[0], scale=2.0, z=1.0),
        catch(lambda: g(X[0], scale=1, **{"scale ": 2})),
    ]


@program
def containers_of_all_kinds(compile):
    P = collections.namedtuple("P", "a b")

    @dataclasses.dataclass(frozen=True)
    class D:
        t: object
        n: int = 3

    class Color(enum.Enum):
        RED = 2.0

    def f(p, d, *, more):
        y = p.a * d.n + p.b
        return P(y, Color.RED.value), D(y * Color.RED.value, d.n + 1), {("k", 1): [y, (y,)], None: more[0]}, {1, 2}

    g = compile(f)
    out = []
    for i in range(3):
        p, d, t, s = g(P(X[i], i), D(X[i + 1], i), more=(X[0],))
        out.append([p.a, p.b, d.t, d.n, plain(t), sorted(s), type(p).__name__])
    return out


@program
def zip_map_filter_sorted_reduce(compile):
    def f(xs, ks):
        ys = list(map(lambda x, k: x * k, xs, ks))
        ys = [y for y in ys if y.shape[0] > 2]
        ys = sorted(ys, key=lambda y: -y.sum().item())
        return functools.reduce(operator.add, ys, torch.zeros(3)), [i for i, _ in enumerate(zip(xs, ks, strict=False))]

    g = compile(f)
    return [g(X[:n], [1.0, 2, 3.0]) for n in (1, 3, 2)]


@program
def match_statement_and_walrus(compile):
    def f(x, what):
        match what:
            case {"kind": "scale", "k": k}:
                y = x * k
            case [a, *rest]:
                y = x + a + len(rest)
            case _:
                y = x
        if (n := len(y)) > 2:
            y = y + n
        return y

    g = compile(f)
    return [g(X[0], w) for w in ({"kind": "scale", "k": 2.0}, [1.0, 2, 3], None, {"kind": "scale", "k": X[1]}, [X[2]])]


@program
def lru_cache_inside(compile):
    calls = []

    @functools.lru_cache
    def weight(n):
        calls.append(n)
        return torch.ones(3) * n

    f = compile(lambda x, n: x * weight(n) + 1)
    return [f(X[i], i % 2) for i in range(5)] + [calls]


@program
def cached_tensor_made_inside(compile):
    cache = {}

    def f(x):
        if "t" not in cache:
            cache["t"] = x * 2
        return cache["t"] + x

    g = compile(f)
    return [g(X[i]) for i in range(3)] + [cache["t"]]


@program
def context_managers(compile):
    log = []

    @contextlib.contextmanager
    def scaled(k):
        log.append(k)
        yield k
        log.append(-k)

    def f(x, k):
        with scaled(k) as s, contextlib.ExitStack() as stack:
            stack.callback(log.append, "out")
            y = x * s
            if k > 2:
                return y
        return y + 1

    g = compile(f)
    return [g(X[0], k) for k in (1, 3, 2)] + [log]


@program
def exec_eval_and_getattr_strings(compile):
    f = compile(lambda x, name, text: getattr(x * 2, name)() + eval(text))
    return [f(X[0], "sum", "1"), f(X[0], "mean", "2.5"), f(X[0], "sum", "x[0]")]


@program
def identity_and_type_tests(compile):
    marker = X[0]

    def f(x, y):
        return [
            x is y,
            x is marker,
            type(x * 2) is torch.Tensor,
            isinstance(x, torch.Tensor),
            (x * 2) is (x * 2),
        ], x * 2 if x is y else x + y

    g = compile(f)
    return [g(X[0], X[0]), g(X[0], X[1]), g(X[1], X[1]), g(X[2], X[3])]


@program
def number_types(compile):
    class Level(enum.IntEnum):
        TWO = 2

    f = compile(lambda x, k: x * k + k)
    i = torch.tensor([1, 2, 3])
    ks = (2, 2.0, True, Level.TWO, np.float32(2), np.int64(3), -0.0, float("inf"), 10**18)
    return [f(X[0], k) for k in ks] + [f(i, k) for k in (2, 2.0, True, Level.TWO, np.float32(2))]


@program
def huge_and_odd_numbers(compile):
    f = compile(lambda x, k: x * k)
    return [catch(f, X[0], k) for k in (10**30, 2**63, -(2**63), float("nan"), 1e-320, "s", None, [1.0])]


@program
def numbers_computed_from_tensors(compile):
    def f(x):
        n = int(x.sum().item() * 10) % 5
        y = x * n
        k = float(y.max())
        return y * k + len(y), n, k

    g = compile(f)
    return [g(X[i]) for i in range(5)]


@program
def while_loop_until_converged(compile):
    def f(x, eps):
        n = 0
        while x.abs().max() > eps:
            x = x * 0.5
            n += 1
        return x, n

    g = compile(f)
    return [g(X[i], eps) for i, eps in enumerate((0.5, 0.1, 0.01, 0.5))]


@program
def loops_over_rows_and_columns(compile):
    def f(x):
        out = []
        for row in x:
            total = 0.0
            for v in row:
                total = total + v
            out.append(total)
        return torch.stack(out), len(x)

    g = compile(f)
    return [g(randn(n, 2, seed=n)) for n in (2, 3, 1)]


@program
def string_of_a_tensor(compile):
    f = compile(lambda x: (f"{(x * 2).sum():.3f}", str(x.shape), repr(x.dtype), f"{x[0] + 1:.2f}"))
    return [f(X[i]) for i in range(3)]


@program
def sorting_python_lists_of_tensors(compile):
    def f(xs):
        return max(xs, key=lambda t: t.sum().item()) + 1, min(range(len(xs)), key=lambda i: float(xs[i][0]))

    g = compile(f)
    return [g(X[:3]), g(X[3:6]), g(X[2:4])]


@program
def pickle_and_deepcopy_inside(compile):
    def f(x):
        y = x * 2
        z = pickle.loads(pickle.dumps(y))
        w = copy.deepcopy({"y": y, "n": 3})
        y.add_(1)
        return y, z, w

    g = compile(f)
    return [g(X[i]) for i in range(3)]


@program
def in_operator_and_equality_of_lists(compile):
    def f(x):
        y = x * 2
        return (x.dtype in (torch.float32,), 3 in x.shape, bool((y == x + x).all()), y.tolist())

    g = compile(f)
    return [g(X[i]) for i in range(2)] + [g(randn(2, 3))]


@program
def function_that_returns_its_argument(compile):
    f = compile(lambda x, y=None: x if y is None else (y, x))
    a = X[0].clone()
    r = f(a)
    s = f(a, X[1])
    return [r is a, s[1] is a, s[0] is X[1], f(3), f("x")]


@program
def functions_as_arguments(compile):
    f = compile(lambda x, g: g(x) + 1)
    return [f(X[0], helper), f(X[0], torch.sin), f(X[0], lambda t: t * 3), f(X[0], operator.neg), f(X[0], helper)]


@program
def threads_each_with_their_own_state(compile):
    lock = threading.Lock()
    log = []

    def f(x, i):
        y = x * 2 + i
        with lock:
            log.append(i)
        return y.sum() if i % 2 else y

    g = compile(f)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        out = list(pool.map(lambda i: g(X[i % 8], i), range(32)))
    return [out, sorted(log)]


@program
def threads_started_inside_use_pending_tensors(compile):
    def f(x):
        y = x * 2
        out = []
        workers = [threading.Thread(target=lambda k=k: out.append((k, (y * k).sum().item()))) for k in range(3)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        z = y + 1
        return z, sorted(out)

    g = compile(f)
    return [g(X[i]) for i in range(4)]


@program
def a_thread_calls_the_same_function_with_a_pending_tensor(compile):
    def f(x, depth):
        y = x * 2
        if depth:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                y = y + pool.submit(g, y, depth - 1).result()
        return y + 1

    g = compile(f)
    return [g(X[i], depth) for i, depth in enumerate((0, 1, 2, 1, 0))]


@program
def finalizers_that_compute(compile):
    log = []

    class Holder:
        def __init__(self, t):
            self.t = t

        def __del__(self):
            log.append((self.t + 1).sum().item())

    def f(x):
        h = Holder(x * 2)
        y = x * 3
        del h
        return y + 1

    g = compile(f)
    return [g(X[i]) for i in range(4)] + [log]


@program
def tracing_does_not_change_results(compile):
    lines = []

    def tracer(frame, event, arg):
        if frame.f_code.co_name == "traced":
            lines.append(event)
        return tracer

    def traced(x):
        y = x * 2
        return y + 1

    g = compile(traced)
    out = []
    for i in range(3):
        before = sys.gettrace()
        sys.settrace(tracer if i == 1 else before)
        try:
            out.append(g(X[i]))
        finally:
            sys.settrace(before)
    return [out, lines]


@program
def attributes_on_the_compiled_function(compile):
    def f(x):
        f.calls = getattr(f, "calls", 0) + 1
        return x * f.calls + 1

    f.paths, f.name = 5, "n"
    g = compile(f)
    out = [g(X[0]), g(X[0])]
    g.label = "mine"
    return [out, f.calls, g.label, f.paths, f.name, g.__name__, g.__doc__]


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])
