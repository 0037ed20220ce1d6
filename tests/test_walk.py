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
