"""Tensors from nothing: constants, ranges, random numbers. One counter-based generator gives the same numbers on every target."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, storage
from torchlet.autograd import inplace
from torchlet.dtypes import dtype as DType
from torchlet.expr import Expr, call, cast, expr
from torchlet.op import Generate, define
from torchlet.ops.place import make
from torchlet.ops.public import METHODS, public
from torchlet.spec import CPU, Spec, broadcast_shapes
from torchlet.spec import device as Device
from torchlet.tensor import Tensor, wrap

# ------------------------------------------------------------------------------------------------ constants and ranges


def _full_np(value: Any, shape: tuple[int, ...], dtype: DType) -> Any:
    out = storage.empty(shape, dtype.np)
    np.copyto(out, np.array(value, np.int64) if dtype.category == 1 and isinstance(value, int) else value, casting="unsafe")
    return out


full_ = define(
    "full", ("value",), _full_np, lambda value, shape, dtype: Spec(shape, dtype),
    Generate(lambda position, out, value, shape, dtype: cast(value, dtype)), ("shape", "dtype"),
    samples=lambda: [((v,), ((3, 4), d)) for v, d in ((1.5, dtypes.float32), (7, dtypes.int64), (True, dtypes.bool_))],
    doc="A tensor filled with one number.",
)


def _arange_np(start: Any, step: Any, count: int, dtype: DType) -> Any:
    return (start + np.arange(count) * step).astype(dtype.np)


def _arange_expr(position: Expr, out: Spec, start: Expr, step: Expr, count: int, dtype: DType) -> Expr:
    wide = dtypes.float64 if start.dtype.is_floating_point or step.dtype.is_floating_point else dtypes.int64
    return cast(cast(start, wide) + cast(position, wide) * cast(step, wide), dtype)


arange_ = define(
    "arange", ("start", "step"), _arange_np, lambda start, step, count, dtype: Spec((count,), dtype), Generate(_arange_expr), ("count", "dtype"),
    samples=lambda: [((0, 1), (5, dtypes.int64)), ((0.5, 0.25), (7, dtypes.float32))],
)


_IGNORED = frozenset(("layout", "pin_memory", "memory_format", "names"))  # they say nothing here


def _sizes(size: tuple[Any, ...], others: dict[str, Any] | None = None) -> tuple[int, ...]:
    """Sizes given one by one, as one sequence, or by the keyword `size`. Raises TypeError for other keywords that are not known."""
    if others:
        size = (others["size"],) if "size" in others else size
        unknown = others.keys() - _IGNORED - {"size"}
        if unknown:
            raise TypeError(f"got an unexpected keyword argument '{min(unknown)}'")
    listed = size[0] if len(size) == 1 and isinstance(size[0], list | tuple) else size
    out = tuple([int(n) for n in listed])
    if any(n < 0 for n in out):
        raise RuntimeError(f"Trying to create tensor with negative dimension {min(out)}: {list(out)}")
    return out


def finish(t: Tensor, device: Any, requires_grad: bool) -> Tensor:
    """Apply the keywords that all creating functions share. Raises RuntimeError for a device that is not there."""
    if device is not None and Device(device) is not CPU:
        t = t.to(device)
    return t.requires_grad_() if requires_grad else t


@public(method=False)
def full(size: Sequence[int], fill_value: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A tensor of shape `size` filled with a number; its dtype follows the number unless given."""
    value = fill_value.item() if hasattr(fill_value, "item") else fill_value
    if not isinstance(value, bool | int | float | complex):
        raise TypeError(f"full: argument 'fill_value' must be a number, not {type(value).__name__}")
    return finish(make(full_, (value,), (_sizes((size,)), dtype or dtypes.of_scalar(value)), device), None, requires_grad)


@public(method=False)
def zeros(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A tensor of zeros."""
    return finish(make(full_, (0,), (_sizes(size, _), dtype or dtypes.get_default_dtype()), device), None, requires_grad)


@public(method=False)
def ones(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A tensor of ones."""
    return finish(make(full_, (1,), (_sizes(size, _), dtype or dtypes.get_default_dtype()), device), None, requires_grad)


@public(method=False)
def empty(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A tensor whose values do not matter (they are zeros)."""
    return zeros(*size, dtype=dtype, device=device, requires_grad=requires_grad, **_)


@public(method=False)
def eye(n: int, m: int | None = None, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """The identity matrix."""
    columns = n if m is None else m
    out = (arange(n, device=device).unsqueeze(1) == arange(columns, device=device)).to(dtype or dtypes.get_default_dtype())
    return finish(out, None, requires_grad)


def like(name: str, value: int) -> None:
    """Enter NAME_like."""

    def f(input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
        return finish(make(full_, (value,), (tuple(input.shape), dtype or input.dtype), device or input.device), None, requires_grad)

    f.__name__, f.__doc__ = name, f"A tensor of {'zeros' if value == 0 else 'ones'} with the input's shape and dtype."
    public(name, method=False)(f)


like("zeros_like", 0)
like("ones_like", 1)
like("empty_like", 0)


@public(method=False)
def full_like(input: Tensor, fill_value: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A tensor filled with a number, with the input's shape and dtype."""
    return finish(make(full_, (fill_value,), (tuple(input.shape), dtype or input.dtype), device or input.device), None, requires_grad)


@public(method=False)
def arange(start: Any, end: Any = None, step: Any = 1, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """The numbers start, start + step, … below end. int64 if all arguments are integers, else the default float dtype."""
    if end is None:
        start, end = 0, start
    start, end, step = [x.item() if hasattr(x, "item") else x for x in (start, end, step)]
    if step == 0:
        raise RuntimeError("arange: step must be nonzero")
    if not all(math.isfinite(x) for x in (start, end, step)):
        raise RuntimeError(f"arange: unsupported range: {start} -> {end}, step {step}")
    if dtype is dtypes.int64:
        start, end, step = int(start), int(end), int(step) or step
    if (end - start) * step < 0:
        raise RuntimeError(f"arange: upper bound and lower bound inconsistent with step sign: start {start}, end {end}, step {step}")
    whole = all(isinstance(x, int) for x in (start, end, step))
    count = max(0, math.ceil((end - start) / step))
    if dtype is not None and dtype.category == 1:
        start, step = int(start), int(step)  # the count is that of the numbers given, the values are whole steps
    return finish(make(arange_, (start, step), (count, dtype or (dtypes.int64 if whole else dtypes.get_default_dtype())), device), None, requires_grad)


def positions(shape: Sequence[int], strides: Sequence[int], offset: int, place: Any) -> Tensor:
    """(numel,) int64: where the elements of a strided layout lie, row by row. Made by operators, so that gradient rules may use it."""
    out = arange(offset, offset + 1, device=place)
    for size, stride in zip(shape, strides, strict=True):
        out = (out.unsqueeze(-1) + make(arange_, (0, stride), (size, dtypes.int64), place)).reshape(-1)
    return out


def whole_steps(start: float, end: float, steps: int, dtype: DType) -> Any:
    """The whole numbers of a linspace: both ends are cut first, and each half is counted from its own end."""
    first, last = int(start), int(end)
    step = (last - first) / max(steps - 1, 1)
    i = np.arange(steps)
    return np.trunc(np.where(i < steps // 2, first + step * i, last - step * (steps - 1 - i))).astype(dtype.np) if steps > 1 else np.full(steps, first, dtype.np)


@public(method=False)
def linspace(start: Any, end: Any, steps: int, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """`steps` evenly spaced numbers from start to end, both included."""
    if steps < 0:
        raise RuntimeError(f"linspace: number of steps must be non-negative; got {steps}")
    start, end = float(start), float(end)
    if dtype is not None and dtype.category == 1:
        return finish(wrap(whole_steps(start, end, int(steps), dtype)), device, False)
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    return finish(make(arange_, (start, step), (int(steps), dtype or dtypes.get_default_dtype()), device), None, requires_grad)


# ------------------------------------------------------------------------------------------------ random numbers

_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_BLOCK = 1 << 13  # numbers made at once: their six arrays stay in the second-level cache


def philox(seed: int, offset: int, count: int, lane: int) -> np.ndarray[Any, Any]:
    """`count` uint32 of lane 0…3 of Philox 4x32-10 (Salmon et al. 2011): key = seed, counter = (position, offset), 64 bits each."""
    out = np.empty(count, np.uint32)
    for first in range(0, count, _BLOCK):
        out[first : first + _BLOCK] = _philox_block(seed, offset, first, min(_BLOCK, count - first), lane)
    return out


def _philox_block(seed: int, offset: int, first: int, count: int, lane: int) -> np.ndarray[Any, Any]:
    """Numbers first … first + count - 1 as uint64."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    position = np.arange(first, first + count, dtype=np.uint64)
    c = [position & low, position >> half, np.full(count, offset & 0xFFFFFFFF, np.uint64), np.full(count, offset >> 32 & 0xFFFFFFFF, np.uint64)]
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    a, b = np.empty_like(position), position
    for _ in range(10):
        np.multiply(c[0], np.uint64(_M0), out=a)
        np.multiply(c[2], np.uint64(_M1), out=b)
        for word, product, other, key in ((0, b, c[1], k0), (2, a, c[3], k1)):
            np.right_shift(product, half, out=c[word])
            c[word] ^= other
            c[word] ^= np.uint64(key)
        np.bitwise_and(b, low, out=c[1])
        np.bitwise_and(a, low, out=c[3])
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c[lane]


def _bits(position: Expr, seed: Expr, offset: Expr, lane: int) -> Expr:
    return expr("philox", (cast(seed, dtypes.int64), cast(offset, dtypes.int64), position), dtypes.int64, lane)


def _unit(bits: Expr) -> Expr:
    """Upper 24 bits as a float32 on [0, 1)."""
    return cast(call("rshift", bits, 8), dtypes.float32) * 2.0**-24


def _uniform_np(seed: int, offset: int, shape: tuple[int, ...], dtype: DType) -> Any:
    bits = philox(seed, offset, math.prod(shape), 0)
    return ((bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape).astype(dtype.np)


def _normal_np(seed: int, offset: int, shape: tuple[int, ...], dtype: DType) -> Any:
    n = math.prod(shape)
    u = ((philox(seed, offset, n, 0) >> np.uint32(8)).astype(np.float32) + np.float32(1)) * np.float32(2.0**-24)  # (0, 1]
    v = (philox(seed, offset, n, 1) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    z = np.sqrt(np.float32(-2) * np.log(u)) * np.cos(np.float32(2 * math.pi) * v)
    return z.astype(np.float32).reshape(shape).astype(dtype.np)


def _normal_expr(position: Expr, out: Spec, seed: Expr, offset: Expr, shape: tuple[int, ...], dtype: DType) -> Expr:
    u = (cast(call("rshift", _bits(position, seed, offset, 0), 8), dtypes.float32) + 1.0) * 2.0**-24
    v = _unit(_bits(position, seed, offset, 1))
    return cast(call("sqrt", -2.0 * call("log", u)) * call("cos", (2 * math.pi) * v), dtype)


def _integers_np(seed: int, offset: int, low: int, high: int, shape: tuple[int, ...], dtype: DType) -> Any:
    bits, span = philox(seed, offset, math.prod(shape), 0).astype(np.uint64), high - low
    picked = bits * np.uint64(span >> 32) + ((bits * np.uint64(span & 0xFFFFFFFF)) >> np.uint64(32))
    return (low + picked.astype(np.int64)).reshape(shape).astype(dtype.np)


def _integers_expr(position: Expr, out: Spec, seed: Expr, offset: Expr, low: Expr, high: Expr, shape: tuple[int, ...], dtype: DType) -> Expr:
    # bits * span >> 32 in three products that 63 bits hold: of the upper 32 bits of the span, and of the lower ones by halves
    bits, span = _bits(position, seed, offset, 0), high - low
    lowest = call("rshift", call("mul", bits, call("and", span, 0xFFFF)), 16)
    lower = call("mul", bits, call("rshift", call("and", span, 0xFFFFFFFF), 16))
    upper = call("mul", bits, call("rshift", span, 32))
    return cast(low + upper + call("rshift", lower + lowest, 16), dtype)


def _random_spec(*args: Any) -> Spec:
    return Spec(args[-2], args[-1])


uniform_ = define(
    "uniform", ("seed", "offset"), _uniform_np, _random_spec, Generate(lambda position, out, seed, offset, shape, dtype: cast(_unit(_bits(position, seed, offset, 0)), dtype)),
    ("shape", "dtype"), samples=lambda: [((7, 3), ((3, 5), dtypes.float32))], doc="Uniform on [0, 1), 24 bits.",
)
normal_ = define("normal", ("seed", "offset"), _normal_np, _random_spec, Generate(_normal_expr), ("shape", "dtype"),
                 samples=lambda: [((7, 3), ((3, 5), dtypes.float32))], doc="Standard normal (Box & Muller 1958).")
integers_ = define("integers", ("seed", "offset", "low", "high"), _integers_np, _random_spec, Generate(_integers_expr), ("shape", "dtype"),
                   samples=lambda: [((7, 3, 2, 9), ((3, 5), dtypes.int64))], doc="Uniform integers on [low, high).")


class Generator:
    """A stream of random numbers: a seed, and an offset that grows by one with every draw."""

    def __init__(self, device: Any = "cpu"):
        self.device = Device(device)
        self.seed_value, self.offset = 67280421310721, 0

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of `seed`."""
        self.seed_value, self.offset = int(seed) & 0x7FFFFFFFFFFFFFFF, 0
        return self

    def initial_seed(self) -> int:
        """The seed in use."""
        return self.seed_value

    def seed(self) -> int:
        """Start the stream of a fresh seed from the operating system, and return it."""
        self.manual_seed(int.from_bytes(np.random.SeedSequence().generate_state(1, np.uint64).tobytes(), "little") >> 1)
        return self.seed_value

    def get_state(self) -> Tensor:
        """Seed and offset as an int64 tensor."""
        return wrap(np.array([self.seed_value, self.offset], np.int64))

    def set_state(self, state: Tensor) -> Generator:
        """Continue from what `get_state` returned."""
        self.seed_value, self.offset = (int(v) for v in state.tolist())
        return self

    def take(self) -> tuple[int, int]:
        """(seed, offset) of the next draw."""
        with _LOCK:
            offset = self.offset
            self.offset = offset + 1
        return self.seed_value, offset


_LOCK = threading.Lock()
default_generator = Generator()


@public(method=False)
def manual_seed(seed: int) -> Generator:
    """Seed the default generator; the same seed gives the same numbers, eager or compiled, on every device."""
    return default_generator.manual_seed(seed)


@public(method=False)
def seed() -> int:
    """Seed the default generator from the operating system."""
    return default_generator.seed()


@public(method=False)
def initial_seed() -> int:
    """The default generator's seed."""
    return default_generator.initial_seed()


@public(method=False)
def get_rng_state() -> Tensor:
    """The default generator's state."""
    return default_generator.get_state()


@public(method=False)
def set_rng_state(new_state: Tensor) -> None:
    """Continue the default generator from a state."""
    default_generator.set_state(new_state)


def draw(
    op: Any, shape: tuple[int, ...], dtype: DType | None, generator: Generator | None = None, extra: tuple[Any, ...] = (), device: Any = None
) -> Tensor:
    """One draw of a random operator; seed and offset are data, so a new draw is never a new path."""
    return make(op, (*(generator or default_generator).take(), *extra), (shape, dtype or dtypes.get_default_dtype()), device)


@public(method=False)
def rand(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, generator: Generator | None = None, **_: Any) -> Tensor:
    """Uniform on [0, 1)."""
    return finish(draw(uniform_, _sizes(size, _), dtype, generator, device=device), None, requires_grad)


@public(method=False)
def randn(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, generator: Generator | None = None, **_: Any) -> Tensor:
    """Standard normal."""
    return finish(draw(normal_, _sizes(size, _), dtype, generator, device=device), None, requires_grad)


@public(method=False)
def randint(low: int, high: Any = None, size: Any = None, *, dtype: DType | None = None, device: Any = None, generator: Generator | None = None, **_: Any) -> Tensor:
    """Uniform integers on [low, high); `randint(high, size)` starts at 0."""
    if size is None:
        low, high, size = 0, low, high
    if high <= low:
        raise RuntimeError(f"randint: expects 'low' < 'high', but got low={low}, high={high}")
    return finish(draw(integers_, _sizes((size,)), dtype or dtypes.int64, generator, (int(low), int(high)), device), None, False)


@public(method=False)
def rand_like(input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """`rand` with the input's shape and dtype."""
    return finish(draw(uniform_, tuple(input.shape), dtype or input.dtype, device=device or input.device), None, requires_grad)


@public(method=False)
def randn_like(input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """`randn` with the input's shape and dtype."""
    return finish(draw(normal_, tuple(input.shape), dtype or input.dtype, device=device or input.device), None, requires_grad)


@public(method=False)
def randperm(n: int, *, dtype: DType | None = None, device: Any = None, generator: Generator | None = None, **_: Any) -> Tensor:
    """A random order of 0 … n - 1."""
    seed_value, offset = (generator or default_generator).take()
    order = np.argsort(philox(seed_value, offset, n, 0), kind="stable").astype((dtype or dtypes.int64).np)
    return finish(wrap(order), device, False)


@public(method=False)
def normal(
    mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None, dtype: DType | None = None, device: Any = None, **_: Any
) -> Tensor:
    """Normal with the given means and standard deviations (numbers or tensors)."""
    mean, std = (x.detach() if isinstance(x, Tensor) else x for x in (mean, std))
    given = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = _sizes((size,)) if size is not None else tuple(broadcast_shapes("normal", *[tuple(x.shape) for x in given]))
    kind = dtype or (given[0].dtype if given else None)
    out = draw(normal_, shape, kind, generator, device=given[0].device if given else device) * std + mean
    return out if kind is None or out.dtype is kind else out.to(kind)


@public()
def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that the input (or `p`) gives, else 0."""
    u = draw(uniform_, tuple(input.shape), dtypes.float32, generator, device=input.device)
    return (u < (input if p is None else p)).to(input.dtype if input.dtype.is_floating_point else dtypes.get_default_dtype())


def _fill_random(name: str, make: Any) -> None:
    def f(self: Tensor, *args: Any, generator: Generator | None = None, **kwargs: Any) -> Tensor:
        return self.copy_(make(self, generator, *args, **kwargs))

    f.__name__, f.__doc__ = name, f"Fill with random numbers ({name[:-1]})."
    METHODS[name] = f


def _affine(op: Any, self: Tensor, generator: Any, scale: float, shift: float) -> Tensor:
    out = draw(op, tuple(self.shape), dtypes.float32 if self.dtype.itemsize < 8 else self.dtype, generator, device=self.device)
    return out * scale + shift


_fill_random("uniform_", lambda self, generator, a=0.0, b=1.0, **kw: _affine(uniform_, self, generator, kw.get("to", b) - kw.get("from", a), kw.get("from", a)))
_fill_random("normal_", lambda self, generator, mean=0.0, std=1.0: _affine(normal_, self, generator, std, mean))
_fill_random("bernoulli_", lambda self, generator, p=0.5: (draw(uniform_, tuple(self.shape), dtypes.float32, generator, device=self.device) < p).to(self.dtype))
_fill_random("random_", lambda self, generator, low=0, high=None: draw(integers_, tuple(self.shape), dtypes.int64, generator, (low if high is not None else 0, high if high is not None else (low or 2**24)), self.device).to(self.dtype))
METHODS["fill_"] = lambda self, value: inplace(full_, self, (value.item() if isinstance(value, Tensor) else value,), (tuple(self.shape), self.dtype))
METHODS["zero_"] = lambda self: inplace(full_, self, (0,), (tuple(self.shape), self.dtype))
