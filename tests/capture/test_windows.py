"""Memory that NumPy can see: compiled calls give what plain ones give, and are slower only while an array over it is alive."""

import copy
import gc
import pickle
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from harness import catch, compare, mlp, plain, randn, registry, same, state

import torchlet as torch
from torchlet.compiler.capture import MAX_COPY

PROGRAMS, program = registry()

# ------------------------------------------------------------------------------------------------ what must not be seen, and what must


@program
def the_array_is_written_between_two_operations(compile):
    @compile
    def f(a):
        x = torch.from_numpy(a)
        y = x * 2
        a += 10
        z = x * 2
        a[0] = -1
        return y, z, y + z, x

    arrays = [np.arange(4, dtype=np.float32) + i for i in range(3)]
    return [f(a) for a in arrays], arrays


@program
def a_window_opens_on_what_pending_operations_read(compile):
    @compile
    def f(x):
        y = x * 2 + 1
        a = x.numpy()
        a[...] = 100
        z = x + 1
        a[...] = 7
        return y, z

    return [f(randn(3, seed=i)) for i in range(3)]


@program
def an_address_is_asked_for_in_the_middle(compile):
    @compile
    def f(x):
        y = x * 2
        x.data_ptr()
        window = np.asarray(x)
        window[0] = 5
        return y, x + 1

    return [f(randn(3, seed=i)) for i in range(3)]


@program
def the_batch_is_written_between_forward_and_backward(compile):
    w = randn(4, 3, seed=1, grad=True)

    @compile
    def f(a):
        h = (torch.from_numpy(a) @ w).tanh()
        loss = (h * h).sum()
        a *= 3
        loss.backward()
        return loss.detach()

    out = []
    for i in range(3):
        a = np.random.default_rng(i).standard_normal((2, 4)).astype(np.float32)
        out += [f(a), w.grad.clone()]
        w.grad = None
    return out


@program
def the_batch_is_written_before_a_backward_pass_outside(compile):
    w = randn(4, 3, seed=1, grad=True)

    @compile
    def f(x):
        h = ((x * 2).sin() @ w).tanh() + (x @ w)
        return (h * h).sum()

    out = []
    for i in range(4):
        a = np.random.default_rng(i).standard_normal((2, 4)).astype(np.float32)
        loss = f(torch.from_numpy(a))
        if i % 2:
            a *= 3
        loss.backward()
        out += [loss.detach(), w.grad.clone()]
        w.grad = None
    return out


@program
def a_parameter_is_written_between_forward_and_backward(compile):
    out = []
    for inside in (True, False):
        w = randn(4, 4, seed=1, grad=True)
        window = w.detach().numpy()

        @compile
        def f(x, inside=inside, w=w, window=window):
            h = ((x @ w).tanh() @ w).sin()
            loss = (h * h).sum()
            if inside:
                window[...] *= 1.5
                loss.backward()
            return loss.detach() if inside else loss

        for i in range(3):
            loss = f(randn(2, 4, seed=i))
            if not inside:
                window[...] *= 1.5
                loss.backward()
            out += [loss.detach(), w.grad.clone(), w.detach().clone()]
            w.grad = None
    return out


@program
def the_batch_is_written_before_a_second_derivative(compile):
    w = randn(4, 3, seed=1, grad=True)

    @compile
    def f(x):
        return ((x * 1.5 @ w).tanh() ** 2).sum()

    out = []
    for i in range(3):
        a = np.random.default_rng(i).standard_normal((2, 4)).astype(np.float32)
        loss = f(torch.from_numpy(a))
        if i:
            a *= 2
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        (gg,) = torch.autograd.grad((g * g).sum(), w)
        out += [g.detach(), gg]
    return out


@program
def a_hook_writes_in_the_middle_of_a_backward_pass(compile):
    w, u = randn(4, 4, seed=1, grad=True), randn(4, 4, seed=2, grad=True)
    a = np.ones((2, 4), np.float32)
    x = torch.from_numpy(a)

    def hook(g):
        a[...] += 1

    w.register_hook(hook)

    @compile
    def f(inner):
        h = (x @ u * 0.1).tanh()  # not where it is flat: its slope there is rounding alone
        k = (h @ w) * x
        if inner:
            h.register_hook(hook)
        k.sum().backward()

    out = []
    for i in range(4):
        f(i % 2)
        out += [w.grad.clone(), u.grad.clone(), a.copy()]
        w.grad = u.grad = None
    return out


@program
def a_function_of_the_users_writes_in_its_backward(compile):
    a = np.ones(3, np.float32)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, _ = ctx.saved_tensors
            a[...] += 1
            return None, g * x

    w = randn(3, seed=1, grad=True)

    @compile
    def f(x):
        (Product.apply(x, w * x) + x * w).sum().backward()

    out = []
    for _ in range(3):
        f(torch.from_numpy(a))
        out += [w.grad.clone(), a.copy()]
        w.grad = None
    return out


@program
def writes_in_place_are_read_through_the_array_at_once(compile):
    x = randn(5, seed=3)
    window = x.numpy()
    seen = []

    @compile
    def f(s):
        y = x * s
        x.add_(y)
        seen.append(window.copy())
        x.mul_(2)
        seen.append(window.copy())
        x[1] = 3
        seen.append(window.copy())
        x[2:4].zero_()
        seen.append(window.copy())
        return x + y

    return [f(0.5), f(0.25), f(0.1), seen, x]


@program
def steps_of_optimizers_are_read_through_arrays(compile):
    out = []
    for make in (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.1), lambda p: torch.optim.RMSprop(p, 0.01),
        lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), lambda p: torch.optim.Adagrad(p, 0.1),
    ):
        m = mlp(2)
        o = make([{"params": [p]} for p in m.parameters()])
        windows = [p.detach().numpy() for p in m.parameters()]
        seen = []

        @compile
        def step(x, m=m, o=o, windows=windows, seen=seen):
            o.zero_grad()
            loss = (m(x) ** 2).mean()
            loss.backward()
            seen.append([v.copy() for v in windows])
            o.step()
            seen.append([v.copy() for v in windows])
            return loss.detach()

        for i in range(4):
            out.append(step(randn(5, 6, seed=i)))
            if i == 2:
                windows[0][...] = 0.1
        out += [seen, state(m)]
    return out


@program
def gradients_are_read_through_arrays(compile):
    m = mlp(4)
    o = torch.optim.SGD(m.parameters(), 0.1)
    kept = []

    @compile
    def step(x, zero):
        if zero:
            o.zero_grad(set_to_none=False)
        (m(x) ** 2).mean().backward()
        kept.append(next(iter(m.parameters())).grad.numpy())
        o.step()

    for i in range(4):
        step(randn(5, 6, seed=i), i != 2)
    return kept, state(m)


# ------------------------------------------------------------------------------------------------ memory of NumPy's


@program
def two_tensors_lie_on_one_array(compile):
    flat = np.arange(8, dtype=np.float32)
    a, b, c = torch.from_numpy(flat[:6]), torch.from_numpy(flat[2:]), torch.from_numpy(flat)

    @compile
    def f():
        y = a[:6] + 1
        a.add_(b)
        b.mul_(a)
        c.sub_(1)
        return y, a * 2, b * 2, c.sum()

    return f(), f(), f(), flat


@program
def an_optimizer_works_on_parts_of_one_array(compile):
    out = []
    for cuts in (((0, 6), (6, 12)), ((0, 8), (4, 12))):
        flat = np.linspace(-1, 1, 12).astype(np.float32)
        parameters = [torch.from_numpy(flat[i:j]).requires_grad_() for i, j in cuts]
        o = torch.optim.SGD(parameters, 0.1)

        @compile
        def step(o=o, parameters=parameters):
            o.zero_grad()
            sum((p * p).sum() for p in parameters).backward()
            o.step()

        for _ in range(3):
            step()
            out.append(flat.copy())
    return out


@program
def arrays_of_every_layout(compile):
    a = np.arange(24, dtype=np.float32).reshape(4, 6)

    @compile
    def f(x):
        y = x.mT * 2 if x.ndim > 1 else x * 2
        z = x[1:, ..., ::2] + 1 if x.ndim > 1 else x[::2]
        w = x.reshape(-1)[3:].sum()
        a[0] += 1
        return y, z, w, x.permute(*reversed(range(x.ndim))) + 1, x.is_contiguous(), (x + 1).stride()

    layouts = (a, a.T, a[::2], a[:, ::2], a[1], a[1, 2:3], np.broadcast_to(a[0], (3, 6)), a.reshape(2, 2, 6).transpose(2, 0, 1))
    return [f(torch.from_numpy(b)) for b in layouts]


@program
def arrays_of_every_dtype(compile):
    @compile
    def f(x, a):
        y = x.float() + 1
        a[...] = a + a
        return y, x.float()

    out = []
    for d in (np.uint8, np.int16, np.int32, np.int64, np.float16, np.float64, np.bool_):
        for shape in ((), (0, 3), (5,), (1, 1)):
            a = np.ones(shape, d)
            out.append(f(torch.from_numpy(a), a))
    return out


@program
def complex_arrays(compile):
    @compile
    def f(a):
        x = torch.from_numpy(a)
        y = x * 2
        a[0] = 1j
        x.mul_(2)
        return y.real, x.real, x.imag

    return [f(np.ones(3, np.complex64) * (1 + i)) for i in range(2)]


@program
def positions_in_arrays(compile):
    table = randn(5, 3, seed=1)

    @compile
    def f(a):
        i = torch.from_numpy(a)
        y, z = table[i], torch.nn.functional.embedding(i, table)
        a[0] = 4
        try:
            return y, z, table[i], torch.from_numpy(a + 3)
        finally:
            a[0] = 9

    @compile
    def g(a):
        try:
            return table[torch.from_numpy(a)] * 2
        except IndexError as error:
            return type(error).__name__

    return [(f(np.array([k, 1, 2])), g(np.array([k, 1, 2])), g(np.array([k, 1, 7]))) for k in range(3)]


@program
def operands_too_large_to_copy(compile):
    w = randn(1, seed=1, grad=True)
    o = torch.optim.SGD([w], 0.1)

    @compile
    def f(x, a):
        y = x[:3] * 2 + x.sum()
        z = x * 2 + 1
        a[...] = 0.5
        return y, z.mean(), (x * w).mean()

    @compile
    def g(x, a):
        x.mul_(2)
        seen = a[:2].copy()
        x.add_(w.detach())
        o.step()
        return seen, a[:2].copy()

    out = []
    for _ in range(2):
        a = np.full(MAX_COPY // 4 + 1, 1 / 64, np.float32)
        y = f(torch.from_numpy(a), a)
        y[2].backward()
        out += [y[0], y[1], y[2].detach(), w.grad.clone(), g(torch.from_numpy(a), a)]
        w.grad = None
    return out


@program
def what_is_overwritten_before_a_backward_pass_raises(compile):
    w = randn(4, seed=1, grad=True)
    a = np.ones(4, np.float32)
    x = torch.from_numpy(a)

    @compile
    def f(inside):
        y = (x * w).sum()
        x.add_(1)
        return catch(y.backward) if inside else y

    out = []
    for inside in (True, False, True, False):
        y = f(inside)
        out += [y if inside else catch(y.backward), x._version, a.copy()]
    return out


@program
def operations_that_return_what_they_were_given(compile):
    a = np.ones(3, np.float32)

    @compile
    def f(x):
        v = x.view(3)
        v.add_(1)
        y = torch.nn.functional.dropout(x, 0.5, training=False)
        a[...] += 1
        return x.contiguous() is x, x.to(torch.float32) is x, y, y * 2, np.shares_memory(np.asarray(v), a), a.copy()

    return f(torch.from_numpy(a)), f(torch.from_numpy(a)), a


@program
def an_exception_comes_in_the_middle(compile):
    a = np.ones(3, np.float32)
    x = torch.from_numpy(a)

    @compile
    def f(bad):
        y = x * 2
        a[...] += 1
        if bad:
            raise ValueError("no")
        x.mul_(2)
        a[...] += 1
        return y

    return [catch(f, bad) for bad in (False, True, False, True)], a


@program
def numpy_functions_give_tensors_over_the_same_memory(compile):
    @compile
    def f(x):
        t = np.transpose(x)
        y = t * 2
        x += 1
        return y, t + 0, np.add(x, x), np.sqrt(x)

    return f(torch.ones(2, 3)), f(torch.ones(2, 3))


@program
def shallow_copies_share_memory(compile):
    @compile
    def f(x):
        y = copy.copy(x)
        y.add_(1)
        z = x * 2
        x.mul_(3)
        return y * 1, z, x, y._version

    x = randn(3, seed=1)
    out = [f(x), f(x)]
    twin = copy.copy(x)
    twin.zero_()
    return out, x, type(copy.copy(torch.nn.Parameter(x))).__name__, copy.copy(torch.nn.Parameter(x)).requires_grad


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_does_what_plain_python_does(name):
    compare(PROGRAMS[name])


def test_random_programs_of_tensors_and_arrays_do_as_plain_ones():
    """Each line reads or writes one of three memories through a tensor, a view, or an array."""

    def run(compile, seed):
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal(4).astype(np.float32) for _ in range(3)]
        tensors = [torch.from_numpy(arrays[0]), torch.tensor(arrays[1]), torch.from_numpy(arrays[2])]
        windows = [arrays[0], None, arrays[2]]
        w = randn(4, seed=seed, grad=True)
        seen = []

        def body():
            made = [tensors[0] * 1]
            for _ in range(8):
                kind, i, j = rng.integers(10), rng.integers(3), rng.integers(3)
                if kind == 0:
                    made.append(tensors[i] * 2 + tensors[j])
                elif kind == 1:
                    tensors[i].mul_(0.5)
                elif kind == 2:
                    tensors[i].add_(tensors[j])
                elif kind == 3 and windows[i] is not None:
                    windows[i][j] += 1
                elif kind == 4 and windows[i] is not None:
                    seen.append(windows[i].copy())
                elif kind == 5:
                    windows[i] = tensors[i].numpy()
                elif kind == 6:
                    windows[i] = None
                elif kind == 7:
                    tensors[i][1:3] = made[-1][:2]
                elif kind == 8:
                    loss = (tensors[i] * w * made[-1].detach()).sum()
                    if windows[i] is not None and j:
                        windows[i][0] *= 2
                    seen.append(catch(loss.backward))
                else:
                    made.append(tensors[i][::2] + made[-1][1::2])
                    made.append(torch.cat([made[-1], made[-1]]))
            return made

        f = compile(body)
        return [[f(), seen, w.grad] for _ in range(4)], [t * 1 for t in tensors]

    for seed in range(25):
        same(plain(run(lambda f: f, seed)), plain(run(torch.compile, seed)), f"seed {seed}")


# ------------------------------------------------------------------------------------------------ how long memory is seen


def exported(t):
    return t._store.exported


def test_memory_is_seen_while_an_array_or_a_view_of_one_is_alive():
    t = torch.ones(4, 6)
    opened = {
        "array": lambda: t.numpy(),
        "converted": lambda: np.asarray(t),
        "of_a_view": lambda: t[1:].T.numpy(),
        "view_of_views": lambda: t.numpy()[1:].T[::2],
        "reshaped": lambda: t.numpy().reshape(-1)[3:5],
        "other_dtype": lambda: t.numpy().view(np.int32),
        "matrix": lambda: t.numpy().view(np.matrix),
        "masked": lambda: np.ma.array(t.numpy(), mask=False, copy=False),
        "memoryview": lambda: memoryview(t.numpy()),
        "slice_of_a_memoryview": lambda: memoryview(t.numpy())[1:],
        "capsule": lambda: t.__dlpack__(),
        "from_dlpack": lambda: np.from_dlpack(t),
        "list": lambda: [{"a": t.numpy()}],
        "iterator": lambda: t.numpy().flat,
        "closure": lambda: (lambda a: lambda: a)(t.numpy()),
        "out_of_band_pickle": lambda: (lambda kept: (pickle.dumps(t, protocol=5, buffer_callback=kept.append), kept))([]),
        "broadcast": lambda: np.broadcast_to(t.numpy(), (2, 4, 6)),
        "bfloat16": lambda: t.view(torch.bfloat16).numpy()[1:],
        "tensor_over_it": lambda: torch.from_numpy(t.numpy()),
        "detached": lambda: t.detach().numpy(),
    }
    for name, open_window in opened.items():
        window = open_window()
        assert exported(t), name
        del window
        assert not exported(t), name
    a, b = t.numpy(), t[0].numpy()
    del a
    assert exported(t)
    b[...] = 7
    del b
    assert not exported(t) and t[0].tolist() == [7.0] * 6


def test_windows_keep_the_memory_and_copies_do_not_open_any():
    t = torch.ones(3)
    a = t.numpy()
    del t
    gc.collect()
    assert a.tolist() == [1.0, 1.0, 1.0] and a.flags.writeable
    t = torch.ones(3)
    kept = [np.array(t), t.numpy().copy(), t.tolist(), pickle.loads(pickle.dumps(t.numpy())), t.clone().numpy(), t.__array__(copy=True)]
    assert not exported(t) and len(kept) == 6
    source = np.ones(3, np.float32)
    assert not exported(torch.tensor(source)) and exported(torch.from_numpy(source)) and exported(torch.as_tensor(source))


def test_an_array_given_to_from_numpy_is_forgotten_when_nobody_else_holds_it():
    t, view = torch.from_numpy(np.ones(3, np.float32)), torch.from_numpy(np.ones((3, 4), np.float32)[1:])
    assert not exported(t) and not exported(view)
    whole = np.ones((3, 4), np.float32)
    t = torch.from_numpy(whole[1:])
    row = t[0]
    assert exported(t) and exported(row)
    other = whole.reshape(-1)[:2]
    del whole
    assert exported(t)
    del other
    assert not exported(t) and not exported(row)
    window = row.numpy()
    assert exported(t)
    del window
    assert not exported(t)
    source = np.ones(3, np.float32)
    weak = weakref.ref(source)  # the tensor keeps the array, so this leads back to it
    t = torch.from_numpy(source)
    del source
    assert exported(t) and weak() is not None
    t, copied = torch.frombuffer(bytearray(8), dtype=torch.float32), torch.frombuffer(bytes(8), dtype=torch.float32)
    assert exported(t) and not exported(copied)  # who holds a buffer cannot be told; what nobody may write is copied


def test_an_address_is_never_forgotten():
    t = torch.ones(3)
    assert t.data_ptr() and exported(t)
    a = t.numpy()
    del a
    assert exported(t)


def test_windows_open_and_close_in_many_threads():
    t = torch.ones(64)
    wrong = []

    def work(k):
        for i in range(300):
            a = t.numpy() if i % 2 else t[k:].numpy()[1:]
            if not exported(t):
                wrong.append((k, i))
            del a

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not wrong and not exported(t)


# ------------------------------------------------------------------------------------------------ threads


def test_another_thread_opens_a_window_on_what_is_pending():
    asked, written = threading.Event(), threading.Event()
    x = torch.ones(3)

    def other():
        asked.wait(20)
        x.numpy()[...] = 100
        written.set()

    @torch.compile
    def f(wait):
        y = x * 2
        if wait:
            asked.set()
            assert written.wait(20)
        return y, x + 1

    f(False)
    thread = threading.Thread(target=other)
    thread.start()
    y, z = f(True)
    thread.join()
    assert y.tolist() == [2.0] * 3 and z.tolist() == [101.0] * 3


def test_another_thread_writes_through_an_array_in_the_middle_of_a_call():
    asked, written = threading.Event(), threading.Event()
    a = np.ones(3, np.float32)
    x = torch.from_numpy(a)
    seen = []

    def other():
        asked.wait(20)
        seen.append(a.copy())
        a[...] = 100
        written.set()

    @torch.compile
    def f(wait):
        y = x * 2
        x.add_(1)
        if wait:
            asked.set()
            assert written.wait(20)
        return y, x + 1

    f(False)
    thread = threading.Thread(target=other)
    thread.start()
    y, z = f(True)
    thread.join()
    assert y.tolist() == [4.0] * 3 and z.tolist() == [101.0] * 3 and seen[0].tolist() == [3.0] * 3


def test_windows_open_and_close_while_another_thread_trains():
    x, w = torch.ones(4), torch.ones(4, requires_grad=True)
    wrong, done = [], threading.Event()

    @torch.compile
    def f(n):
        y = x * w
        for _ in range(n):
            y = y * 1.0 + 0
        y.sum().backward()
        x.mul_(1.0)
        return y

    def train():
        try:
            for i in range(300):
                w.grad = None
                if f(3 + i % 3).tolist() != [1.0] * 4 or w.grad.tolist() != [1.0] * 4:
                    wrong.append(i)
        except BaseException as error:
            wrong.append(error)
        done.set()

    f(3)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread = threading.Thread(target=train)
        thread.start()
        while not done.is_set():
            for _ in range(20):
                x.numpy()
            time.sleep(1e-3)
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong and not exported(x)


# ------------------------------------------------------------------------------------------------ speed, as segments


def trained(step, batches):
    """The reasons why segments ended in the last call."""
    for x, y in batches:
        compiled = torch.compile(step) if not hasattr(step, "paths") else step
        step = compiled
        for path, _ in compiled.paths:
            path.reasons.clear()
        before = {id(p): p.launches for p, _ in compiled.paths}
        compiled(x, y)
    return [list(p.reasons) for p, _ in compiled.paths if p.launches > before.get(id(p), 0)], compiled


def batches(n, make):
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield make(rng.standard_normal((5, 6)).astype(np.float32)), make(rng.standard_normal((5, 3)).astype(np.float32))


def training_step(m, o):
    def step(x, y):
        o.zero_grad()
        loss = ((m(x) - y) ** 2).mean()
        loss.backward()
        o.step()
        return loss

    return step


def test_a_training_loop_over_arrays_stays_one_segment():
    m = mlp(1)
    kept = []

    def make(a):
        kept.append(a)
        return torch.from_numpy(a)

    reasons, compiled = trained(training_step(m, torch.optim.AdamW(m.parameters(), 0.1)), batches(5, make))
    assert reasons == [["the call ended"]] and len(compiled.paths) == 2  # the first step makes the optimizer's state
    text = str(torch.explain(compiled)(*next(batches(1, make))))
    assert "copied in calls where NumPy can see it (help: drop the array, or hand out a copy of it): [5, 6] (120 bytes) at" in text
    steps = compiled.steps_recorded
    for x, y in batches(2, make):
        compiled(x, y)
    for x, y in batches(2, torch.tensor):  # and plain tensors take the same path
        compiled(x, y)
    assert compiled.steps_recorded == steps


def test_arrays_are_made_into_tensors_inside_the_call():
    m = mlp(1)
    o = torch.optim.SGD(m.parameters(), 0.1)
    step = training_step(m, o)
    reasons, compiled = trained(lambda x, y: step(torch.as_tensor(x), torch.from_numpy(y).float()), batches(4, lambda a: a))
    assert reasons == [["the call ended"]] and len(compiled.paths) == 1


def test_batches_of_a_data_loader_over_arrays_stay_one_segment():
    data = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    m = mlp(1)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            return data[i], torch.from_numpy(data[i, :3])

    loader = torch.utils.data.DataLoader(Rows(), batch_size=5)
    reasons, compiled = trained(training_step(m, torch.optim.SGD(m.parameters(), 0.1)), loader)
    assert reasons == [["the call ended"]] and len(compiled.paths) == 1
    assert not compiled.paths[0][0].copied  # the batches are copies already


def test_logging_an_array_costs_nothing_afterwards():
    m = mlp(1)
    step = torch.compile(training_step(m, torch.optim.AdamW(m.parameters(), 0.1)))
    for _ in range(3):
        for x, y in batches(3, torch.tensor):
            step(x, y)
        logged = [float(p.detach().numpy().mean()) for p in m.parameters()]
    steps = step.steps_recorded
    for path, _ in step.paths:
        path.reasons.clear()
    for x, y in batches(2, torch.tensor):
        step(x, y)
    assert step.steps_recorded == steps and len(logged) == 4
    assert {r for p, _ in step.paths for r in p.reasons} == {"the call ended"} and not any(p.copied for p, _ in step.paths)


def test_a_step_seen_through_arrays_is_compiled_and_ends_its_segment():
    m = mlp(1)
    windows = [p.detach().numpy() for p in m.parameters()]
    reasons, compiled = trained(training_step(m, torch.optim.AdamW(m.parameters(), 0.1)), batches(5, torch.tensor))
    assert reasons == [["adam on memory that NumPy can see (help: drop the array, or hand out a copy of it)"]]
    assert not any(p.stepwise for p, _ in compiled.paths)
    assert "adam on memory that NumPy can see (help: drop the array, or hand out a copy of it)" in str(
        torch.explain(compiled)(*next(batches(1, torch.tensor)))
    )
    updates = [p for p, _ in compiled.paths if any(s.kind == "update" for s in p.steps)]
    assert updates and all(s.kind != "update" or p.end is s for p in updates for s in p.steps)
    del windows
    for path, _ in compiled.paths:
        path.reasons.clear()
    for x, y in batches(3, torch.tensor):
        compiled(x, y)
    assert [list(p.reasons) for p, _ in compiled.paths if p.reasons] == [["the call ended"]]


def test_a_backward_pass_over_copies_is_strided_over():
    m = mlp(1)
    windows = [p.detach().numpy() for p in m.parameters()]
    kept = []

    def make(a):
        kept.append(a)
        return torch.from_numpy(a)

    _, compiled = trained(training_step(m, torch.optim.SGD(m.parameters(), 0.1)), batches(3, make))
    walked = []
    run = compiled._idle[0]
    begin = run.begin_backward
    run.begin_backward = lambda *args: walked.append(args) or begin(*args)
    for x, y in batches(2, make):
        compiled(x, y)
    assert not walked and windows


def test_a_large_operand_ends_the_segment_behind_the_operation_that_reads_it():
    a = np.ones(MAX_COPY // 4 + 1, np.float32)

    @torch.compile
    def f(x, s):
        return (s * 2 + x.sum()) * 3

    for _ in range(2):
        assert f(torch.from_numpy(a), torch.ones(())).item() == pytest.approx((2 + a.size) * 3)
    reasons = [r for p, _ in f.paths for r in p.reasons]
    assert [r for r in reasons if "more than 32 MiB of memory that NumPy can see" in r] and len(f.paths) == 2


def test_fullgraph_takes_batches_from_arrays():
    a = np.ones(3, np.float32)
    f = torch.compile(lambda x: x * 2 + 1, fullgraph=True)
    assert f(torch.from_numpy(a)).tolist() == [3.0] * 3
