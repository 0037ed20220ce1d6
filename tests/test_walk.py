"""The C walk and the Python that it stands for do the same, and either is chosen as config says."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import torchlet as torch
from torchlet import config
from torchlet.compiler.capture import Run, run_class
from torchlet.runtime.walk import missing, walk

ROOT = Path(__file__).parent.parent
HAVE_HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()
needs_walk = pytest.mark.skipif(walk() is None, reason="no C walk here")

PROGRAM = """
import gc, weakref
import numpy as np
import torchlet as torch
from torchlet import nn
from torchlet.nn import functional as F
from torchlet.runtime.walk import missing, walk

def tell(*values):
    print(*[[x.tolist(), str(x.dtype), x.requires_grad] if isinstance(x, torch.Tensor) else x for x in values])

def attempt(f, *args):
    try:
        tell(f(*args))
    except Exception as error:
        print(type(error).__name__, error)

torch.manual_seed(0)
x, y = torch.randn(6, 5), torch.randn(6, 3)

# training: gradients made anew, added to, dropped; lists of an update as list and as tuple; numbers that change
for make in (lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)):
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3))
    optimizer, kept = make(model.parameters()), []

    @torch.compile
    def step(x, y, accumulate, keep):
        if not accumulate:
            optimizer.zero_grad()
        h = model(x)
        loss = F.mse_loss(h, y)
        loss.backward()
        optimizer.step()
        if keep:
            kept.append(weakref.ref(h) if keep == 1 else h)
        return loss

    for i in range(12):
        tell(step(x, y, i % 4 == 3, i % 5 if i > 6 else 0))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (i + 1)
    tell(*model.parameters(), *[p.grad for p in model.parameters()], model[0].weight._store.version)
    print(step.paths[0][0].launches, len(step.paths), [k is not None for k in kept])

# numbers: data of the call, part of the program, too big, of another type
f = torch.compile(lambda x, k: (x * k + 1).sum() if k != 3 else x - k)
for k in (1.5, 2.5, 2, 3, True, 7, 1.5, 2**40, 2**70, np.float32(2), "no", 2.5):
    attempt(f, x, k)
tell(torch.compile(lambda n: n * 2**62)(torch.tensor(3)))

# operands: a number where a tensor was, another shape, memory that NumPy sees, the same tensor twice
g = torch.compile(lambda a, b: a * b + a)
for a, b in ((x, x), (x, x.clone()), (x, 2.0), (x, x), (x[0], x[0]), (torch.from_numpy(np.ones(3, np.float32)), torch.ones(3)), (x, x)):
    attempt(g, a, b)
attempt(g, x, torch.ones(7))
attempt(g, x, x)

# in place, views, values in the middle, memory that two inputs share
@torch.compile
def h(t, u):
    t.add_(u).mul_(2)
    if t.sum().item() > 100:
        return t.view(-1)[1:] + 1
    v = t.t() + 1
    return v, t.exp(), t

for i in range(6):
    t = torch.ones(2, 2) * i
    out = h(t, t if i == 3 else torch.ones(2, 2))
    tell(*(out if isinstance(out, tuple) else (out,)), t, t._store.version)
base = torch.zeros(4)
for _ in range(3):
    attempt(torch.compile(lambda a, b: a.add_(1) + b), base[:2], base[1:3])

# modes of the call
k = torch.compile(lambda x, w: (x @ w).relu())
w = torch.ones(5, 2, requires_grad=True)
for i in range(4):
    tell(k(x, w))
    with torch.no_grad():
        tell(k(x, w))
    k(x, w).sum().backward()
    torch.set_default_dtype(torch.float64 if i % 2 else torch.float32)
    tell(torch.compile(lambda x: x + torch.arange(5) * 0.5)(x))
torch.set_default_dtype(torch.float32)
tell(w.grad)
gc.collect()
"""


MODULES = """
import threading
import torchlet as torch
from torchlet import nn, op
from torchlet.nn.modules import module as hooks_of_all

def attempt(f, *args, **kwargs):
    try:
        print(f(*args, **kwargs))
    except BaseException as error:
        print(type(error).__name__, error)

torch.compile(lambda x: x + 1)(torch.ones(2))  # from here on the twins are in place
print("twins", type(op.apply).__name__, type(nn.Module.__call__).__name__)

class Scaled(nn.Module):
    def forward(self, x, *more, by=2):
        if by == "no":
            raise RuntimeError("mine")
        return x * by if not more else more

class Broken(nn.Module):
    def __init__(self):
        pass  # not nn.Module's
    def forward(self, x):
        return x

model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Scaled(), nn.Linear(4, 2)))
x = torch.ones(2, 3)
for i in range(2):
    attempt(lambda: model(x).shape)
    attempt(model, torch.ones(2, 4))
    attempt(model[1], torch.ones(2, 5))
    attempt(model[1][0], x, by=3)
    attempt(model[1][0], x, 1, 2)
    attempt(model[1][0], x, by="no")
    attempt(model[1][0])
    attempt(model[1][0], input=x)
    attempt(nn.Module(), x)
    attempt(Broken(), x)
    if i == 0:
        handle = model[1][0].register_forward_hook(lambda m, args, out: out + 1)
        every = hooks_of_all.register_module_forward_pre_hook(lambda m, args: print("pre", type(m).__name__))
handle.remove()
every.remove()

class Deep(nn.Module):
    def forward(self, x):
        return self(x)
attempt(lambda: Deep()(x))

attempt(op.apply, op.OPS["add"], (x, "a"))
print(op.apply(op.OPS["add"], (x, 1.0)).sum().item())
with torch.autocast("cpu", dtype=torch.bfloat16):
    print((x @ x.t()).dtype, torch.compile(lambda x: x @ x.t())(x).dtype)

f = torch.compile(lambda x: sum([x * k for k in range(20)]))
found = []
threads = [threading.Thread(target=lambda: found.extend(f(x).sum().item() + (x * 2).sum().item() for _ in range(50))) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(found), set(found))
"""


OPERATORS = """
import copy, inspect, operator
import numpy as np
import torchlet as torch

def attempt(f, *args, **kwargs):
    try:
        out = f(*args, **kwargs)
        print(out.tolist() if isinstance(out, torch.Tensor) else out)
    except BaseException as error:
        print(type(error).__name__, error)

torch.compile(lambda x: x + 1)(torch.ones(2))  # from here on the twins are in place
print("twins", type(torch.Tensor.__add__).__name__, type(torch.Tensor.tanh).__name__, type(torch.Tensor.__matmul__).__name__)

x, y, m = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])

class Odd:
    def __radd__(self, other):
        return "radd"
    __rmatmul__ = __radd__

class Half(float):
    pass

# one path for each kind of operand, and back to the first: what is expected is now one, now another
for name in ("sub", "mul", "floordiv", "eq", "matmul"):
    f = torch.compile(getattr(operator, name))
    for a, b in ((x, y), (x, x), (x, 2.0), (2.0, x), (x, 3), (x, Half(0.5)), (x, np.float64(2)), (x, "no"), (x, None), (x, Odd()),
                 (m, m), (m, x), (torch.ones(3), x), (x, y), (torch.nn.Parameter(x), y)):
        attempt(f, a, b)
        attempt(f, a, b)
for f in (torch.tanh, torch.Tensor.tanh, lambda x: x.exp(), lambda x: -x, lambda x: x.mul(2), lambda x: x.mul(other=2), lambda x: x.tanh(1),
          lambda x: x.tanh(out=y.clone()), lambda x: torch.Tensor.tanh(2.0), lambda x: torch.Tensor.tanh(), lambda x: x.add(1, alpha=2),
          lambda x: x.neg().abs()):
    g = torch.compile(f)
    for _ in range(3):
        attempt(g, x)

# a step that does not come again leaves nothing behind: numbers of two operands, the second of which is another
h = torch.compile(lambda a, b, k: (a * b) * k + k if k > 1 else (a * k) * b)
for k in (0.5, 1.5, 0.5, 2, 2, 1.5):
    attempt(h, x, y, k)

with torch.autocast("cpu", dtype=torch.bfloat16):
    attempt(torch.compile(lambda m: (m @ m + m).dtype), m)
w = m.clone().requires_grad_()
for _ in range(3):
    w.grad = None
    torch.compile(lambda w: (w @ w * 2 - w).tanh())(w).sum().backward()
    attempt(w.grad.clone)

# what such a method says of itself
print(torch.Tensor.__mul__.__name__, torch.Tensor.tanh.__doc__, inspect.signature(torch.Tensor.tanh), x.tanh.__name__)
print([copy.deepcopy(f) is f and copy.copy(f) is f for f in (torch.Tensor.tanh, torch.Tensor.__add__)], hasattr(x.tanh, "nothing"))
print(list(map(torch.Tensor.mul, [x, x], [2.0, y]))[1].tolist(), sum([x, y, x]).tolist())
"""


LAYERS = """
import inspect
import torchlet as torch
from torchlet import nn
torch.compile(lambda x: x + 1)(torch.ones(2))  # before some of these modules are imported
from torchlet import optim

def attempt(f, *args, **kwargs):
    try:
        out = f(*args, **kwargs)
        print(out.tolist() if isinstance(out, torch.Tensor) else out)
    except BaseException as error:
        print(type(error).__name__, error)

print("twins", type(nn.Linear.forward).__name__, type(optim.Optimizer.zero_grad).__name__)
x = torch.tensor([[1.0, -2.0, 3.0]])

# layers whose attributes change between calls, that are called oddly, and those of a subclass
relu, tanh, linear = nn.ReLU(), nn.Tanh(), nn.Linear(3, 2)
torch.manual_seed(0)
linear.reset_parameters()
bias = linear.bias
step = torch.compile(lambda x: linear(relu(tanh(x) * 2)))
for change in (None, None, "inplace", None, "bias", None, "back", "back", None, "weight", None):
    relu.inplace = change == "inplace"
    linear.bias = None if change == "bias" else bias
    if change == "weight":
        del linear.weight
    attempt(step, x)
attempt(torch.compile(lambda x: nn.Tanh().forward(input=x)), x)
attempt(torch.compile(lambda x: nn.ReLU.forward(nn.ReLU(True), x.clone())), x)
attempt(torch.compile(lambda x: nn.Tanh()(3.0)), x)
attempt(torch.compile(lambda x: nn.Sigmoid().forward(x, x)), x)
attempt(torch.compile(lambda x: nn.Sequential().forward()), x)

class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2
torch.manual_seed(0)
doubled = Doubled(3, 2)
attempt(torch.compile(doubled), x), attempt(torch.compile(doubled), x)

class Scale(nn.Module):
    def forward(self, w):
        asked.append(1)
        return w * 2
asked = []
torch.manual_seed(0)
computed = nn.Linear(3, 2)
nn.utils.parametrize.register_parametrization(computed, "weight", Scale())
asked.clear()
f = torch.compile(lambda x: computed(x) + 1)
for _ in range(3):
    attempt(f, x)
print(len(asked), f.steps_recorded)

class Growing(nn.Module):
    def forward(self, x):
        grown.append(nn.Tanh())
        return x
grown = nn.Sequential(Growing(), nn.Tanh())
try:
    torch.compile(lambda x: grown(x))(x)
except RuntimeError as error:  # Python's own words: only plain modules put their name before them
    print(str(error).endswith("dictionary changed size during iteration"))
attempt(torch.compile(lambda x: nn.Sequential(nn.Tanh(), nn.Flatten(0), nn.Tanh())(x)), x)
for f in (nn.Linear.forward, nn.Sequential.forward, torch.Tensor.backward, optim.SGD.zero_grad, nn.Tanh().forward):
    print(inspect.signature(f), f.__doc__)

# optimizers: parameters without gradients, groups, states that differ, closures, hooks, gradients that are filled
for make in (lambda p: optim.SGD(p, 0.1), lambda p: optim.SGD(p, 0.1, momentum=0.9), lambda p: optim.Adam(p, 0.1),
             lambda p: optim.RMSprop(p, 0.1)):
    a, b, c = (nn.Parameter(torch.ones(2) * k) for k in (1, 2, 3))
    optimizer = make([{"params": [a, b]}, {"params": [c], "lr": 0.5}])
    @torch.compile
    def train(how):
        optimizer.zero_grad(set_to_none=how != "fill")
        loss = (a * c).sum() if how == "few" else (a * b * c).sum()
        loss.backward(*[torch.ones(())] if how == "given" else [], retain_graph=how == "retain")
        if how == "retain":
            loss.backward()
        if how == "twice":
            loss.backward()
        optimizer.step(*[lambda: seen.append(how)] if how == "closure" else [])
        return loss
    seen = []
    for how in ("", "", "few", "", "fill", "fill", "given", "retain", "retain", "twice", "", "closure", "few", "few", "", ""):
        attempt(train, how)
    print([p.tolist() for p in (a, b, c)], [p.grad.tolist() for p in (a, b, c)], seen)
    print([{k: v if isinstance(v, float) else v.tolist() for k, v in s.items()} for s in optimizer.state.values()])
    handle = optimizer.register_step_post_hook(lambda *_: print("stepped"))
    attempt(train, "")
    handle.remove()
    optimizer.param_groups[0]["params"].append(None)
    attempt(train, "")
    attempt(optimizer.zero_grad, nothing=1)
"""


CALLS = """
import gc, sys, traceback, warnings, weakref
import torchlet as torch
from torchlet.compiler import function
function.MAX_PATHS = 12

def attempt(f, *args, **kwargs):
    try:
        out = f(*args, **kwargs)
        print(out.tolist() if isinstance(out, torch.Tensor) else out)
    except BaseException as error:
        inner = error.__context__
        print(type(error).__name__, error, "in", type(inner).__name__, inner)

x = torch.ones(2)
torch.compile(lambda x: x + 1)(x)  # from here on the twins are in place
print("twins", type(type(torch.compile(lambda: 0)).__call__).__name__)

# every way to be called
f = torch.compile(lambda *args, by=1.0, **more: (sum(args) * by, sorted(more)))
for _ in range(3):
    attempt(lambda: f(x, x)[0])
    attempt(lambda: f(x, by=2.0)[0])
    attempt(lambda: f(x, x, x, by=3, other=None)[1])
    attempt(lambda: f(*[x] * 20, **{"by": 0.5, "z": 1, "a": 2})[1])
attempt(torch.compile(lambda a: a))
attempt(torch.compile(lambda a: a), x, b=1)

class Holder:
    scale = 2.0
    @torch.compile
    def twice(self, x):
        return x * self.scale
    @torch.compile
    def many(self, n):
        return n and self.many(n - 1) + 1
    @torch.compile
    def items(self):
        yield 1
for _ in range(3):
    attempt(Holder().twice, x)
    attempt(Holder.twice, Holder(), x)
    attempt(Holder().many, 5)
    attempt(lambda: list(Holder().items()))
try:
    Holder().many(10**6)
except RecursionError:
    print("too deep")

# errors: the tensors made before, a second error on the way out, and the next call
@torch.compile
def g(x, how):
    y = x * 2
    kept.append(y)
    try:
        if how == "raise":
            raise ValueError("mine")
        if how == "leave":
            sys.exit(3)
    finally:
        z = y + 1
    return z
kept = []
for how in ("", "raise", "", "leave", "raise", "raise", ""):
    attempt(g, x, how)
    print([k.tolist() for k in kept])
    kept.clear()
error = None
try:
    g(x, "raise")
except ValueError as found:
    error = found
print([frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<string>"], sys.exc_info())
del error
kept.clear()

@torch.compile(fullgraph=True)
def h(x, how):
    y = x.sum() * 2
    if how:
        bool(y > 1)
        raise KeyError("after")
    return y
for how in (0, 1, 0, 1):
    attempt(h, x, how)
try:
    1 / 0
except ZeroDivisionError as outer:
    attempt(h, x, 1)
    attempt(g, x, "raise")
    print(sys.exc_info()[1] is outer)

# a call within a call, one from a finalizer, and one that is dropped while it runs
inner = torch.compile(lambda x: x * 3)
outer = torch.compile(lambda x: inner(x) + inner(x))
for _ in range(3):
    attempt(outer, x)
class Last:
    def __del__(self):
        print("last", inner(x).tolist())
def drops(x):
    Last()
    return inner(x) + 1
drops = torch.compile(drops)
for _ in range(3):
    attempt(drops, x)
only = [torch.compile(lambda x: (only.clear(), gc.collect(), x + 1)[2])]
attempt(only[0], x)

# more paths than are kept
k = torch.compile(lambda x, n: x.reshape(1, 2).expand(n, 2).sum())
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for n in range(1, 20):
        k(x, n)
print(len(seen), [w.filename for w in seen], len(k.paths), k.dropped)
print(torch.compile(lambda x: x, replay=True)(x).tolist(), weakref.ref(k)() is k, k.name)
r = torch.compile(lambda a, k=1.0, *, other=None: a * k + (0 if other is None else other), replay=True)
for i in range(9):
    attempt(r, x, float(i))
    attempt(r, x, k=float(i))
    attempt(r, x, other=x)
"""


def run(text, **variables):
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@needs_walk
def test_the_c_walk_and_python_give_the_same_line_by_line():
    fast, plain = run(PROGRAM), run(PROGRAM, TORCHLET_C_WALK="0")
    assert fast.splitlines() == plain.splitlines()
    assert len(fast.splitlines()) > 80


@needs_walk
def test_modules_and_operations_that_are_called_in_c_do_what_they_do_in_python():
    fast, plain = run(MODULES).splitlines(), run(MODULES, TORCHLET_C_WALK="0").splitlines()
    assert fast[0] == "twins builtin_function_or_method method_descriptor" and plain[0] == "twins function function"
    assert fast[1:] == plain[1:] and len(fast) > 25


@needs_walk
def test_operators_that_are_applied_in_c_do_what_they_do_in_python():
    fast, plain = run(OPERATORS).splitlines(), run(OPERATORS, TORCHLET_C_WALK="0").splitlines()
    assert fast[0] == "twins Twin Twin Twin" and plain[0] == "twins function function function"
    assert fast[1:] == plain[1:] and len(fast) > 180


@needs_walk
def test_layers_and_optimizers_in_c_do_what_they_do_in_python():
    fast, plain = run(LAYERS).splitlines(), run(LAYERS, TORCHLET_C_WALK="0").splitlines()
    assert fast[0] == "twins Twin Twin" and plain[0] == "twins function function"
    assert fast[1:] == plain[1:] and len(fast) > 90


@needs_walk
def test_calls_that_are_made_in_c_return_raise_and_leave_what_they_do_in_python():
    fast, plain = run(CALLS).splitlines(), run(CALLS, TORCHLET_C_WALK="0").splitlines()
    assert fast[0] == "twins Twin" and plain[0] == "twins function"
    assert fast[1:] == plain[1:] and len(fast) > 80


@pytest.mark.skipif(not HAVE_HEADERS or not config.c_walk, reason="nothing to build it with, or it is switched off")
def test_the_c_walk_is_built_where_python_has_its_headers():
    assert walk() is not None, missing()
    assert issubclass(run_class(), walk().Walk) and issubclass(run_class(), Run)


@needs_walk
def test_a_known_path_runs_no_python_of_the_capture_and_none_of_the_launch():
    f = torch.compile(lambda a, b: (a * b + 1).sum())
    a, b = torch.ones(3), torch.ones(3)
    for _ in range(4):
        f(a, b)
    seen = []

    def watch(frame, event, arg):
        if event == "call" and frame.f_code.co_filename.endswith(("capture.py", "program.py", "<launch>")):
            seen.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        f(a, b)
    finally:
        sys.setprofile(None)
    assert seen == []


@needs_walk
def test_a_replayed_call_runs_no_python_of_its_own_but_the_way_in():
    f = torch.compile(lambda a, b, k: {"y": (a * b + k).sum()}, replay=True)
    a, b = torch.ones(3), torch.ones(3)
    for i in range(5):
        f(a, b, 1.0 + i)
    seen = []

    def watch(frame, event, arg):
        if event == "call" and frame.f_code.co_filename.endswith(("capture.py", "program.py", "replay.py", "<launch>")):
            seen.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        out = f(a, b, 9.0)
    finally:
        sys.setprofile(None)
    assert out["y"].item() == 30 and set(seen) <= {"call", "build", "<listcomp>"}


def test_the_switch_chooses_python():
    text = (
        "import torchlet\nfrom torchlet.compiler.capture import Run, run_class\nfrom torchlet.runtime.walk import missing\n"
        "f = torchlet.compile(lambda x: x + 1)\nx = torchlet.ones(2)\nprint(f(x), f(x), run_class() is Run, missing())\n"
        "print('followed in Python' in str(torchlet.explain(f)(x)))"
    )
    said = run(text, TORCHLET_C_WALK="0")
    assert said.splitlines() == ["tensor([2., 2.]) tensor([2., 2.]) True the switch c_walk is off", "False"]


def test_without_a_compiler_python_serves_and_explain_says_why(tmp_path):
    text = (
        "import warnings\nwarnings.simplefilter('ignore')\nimport torchlet\nfrom torchlet.compiler.capture import Run, run_class\n"
        "f = torchlet.compile(lambda x: x + 1)\nx = torchlet.ones(2)\nprint(f(x), f(x), run_class() is Run)\n"
        "print('followed in Python, which is slower: CompileError' in str(torchlet.explain(f)(x)))"
    )
    said = run(text, CC="no-such-compiler", TORCHLET_CACHE_DIR=str(tmp_path / "cache"))
    assert said.splitlines() == ["tensor([2., 2.]) tensor([2., 2.]) True", "True" if HAVE_HEADERS else "False"]


@needs_walk
def test_nothing_leaks_in_a_followed_call():
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    @torch.compile
    def step(x):
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss

    x = torch.ones(3, 4)
    for _ in range(20):
        step(x)
    before, watched = sys.getallocatedblocks(), [x, model.weight, optimizer, Run, None, True]
    counts = [sys.getrefcount(o) for o in watched[:4]]
    for _ in range(500):
        step(x)
    assert sys.getallocatedblocks() - before < 300
    assert [sys.getrefcount(o) for o in watched[:4]] == counts


@pytest.mark.slow
def test_the_capture_passes_its_tests_in_python_alone():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "tests/capture/test_barriers.py", "tests/capture/test_limits.py",
         "tests/capture/test_programs.py", "tests/test_mlp_step.py"],
        cwd=ROOT, env={**os.environ, "TORCHLET_C_WALK": "0"}, capture_output=True, text=True, timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-4000:]
