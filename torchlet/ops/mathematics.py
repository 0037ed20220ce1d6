"""Elementwise mathematics beyond the everyday: inverse hyperbolic and special functions, signs, steps, integer arithmetic."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.expr import Expr, call, const
from torchlet.expr import where as select
from torchlet.op import Op, apply, pointwise
from torchlet.ops.pointwise import SQRT_HALF, binary, cast, draw, unary, where
from torchlet.ops.public import METHODS, Draws, binary_public, in_place, public, unary_public
from torchlet.tensor import Tensor

_rng = Draws(9)
SPECIAL: dict[str, Callable[..., Any]] = {}  # what torchlet.special has that torchlet itself has not


def _each(f: Callable[..., float]) -> Callable[..., Any]:
    """A scalar Python function on arrays (eager only: about 0.1 µs an element). Out of its domain it gives NaN, at a pole inf."""

    def guarded(*xs: float) -> float:
        try:
            return f(*xs)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    ufunc = np.frompyfunc(guarded, len(_arguments(f)), 1)

    def run(*xs: Any) -> Any:
        kind = next(x.dtype for x in xs if isinstance(x, np.ndarray | np.generic))
        return np.asarray(ufunc(*[np.asarray(x, np.float64) for x in xs])).astype(kind)

    return run


def _arguments(f: Callable[..., Any]) -> tuple[str, ...]:
    code = getattr(f, "__code__", None)
    return code.co_varnames[: code.co_argcount] if code else ("x",)


def extern(
    name: str,
    np_function: Callable[..., Any],
    grad: Callable[..., Any] | None = None,
    result: str = "float",
    low: float = -2.0,
    high: float = 2.0,
    names: tuple[str, ...] = (),
    in_special: bool = False,
) -> Op:
    """Enter a one-input operator that compiled code calls in NumPy."""
    op = pointwise(
        name, ("x",), np_function, result=result, vjp={"x": grad} if grad else None, samples=draw((3, 4), low=low, high=high), extern=True
    )
    if in_special:
        SPECIAL[name] = lambda input: apply(op, (input,))
    else:
        unary_public(op, *names)
    return op


# ------------------------------------------------------------------------------------------------ hyperbolic, angles


def _asinh(x: Expr) -> Expr:
    a = call("abs", x)
    small = call("log1p", a + a * a / (1 + call("sqrt", 1 + a * a)))
    return call("sign", x) * select(a > 1e6, call("log", a) + math.log(2), small)


def _acosh(x: Expr) -> Expr:
    t = x - 1
    return select(x > 1e6, call("log", x) + math.log(2), call("log1p", t + call("sqrt", t * (t + 2))))


unary("asinh", np.arcsinh, _asinh, lambda g, x: g * (x * x + 1).rsqrt(), names=("asinh", "arcsinh"))
unary("acosh", np.arccosh, _acosh, lambda g, x: g * (x * x - 1).rsqrt(), low=1.2, names=("acosh", "arccosh"))
unary(
    "atanh",
    np.arctanh,
    lambda x: 0.5 * call("log1p", 2 * x / (1 - x)),
    lambda g, x: g / (1 - x * x),
    low=-0.8,
    high=0.8,
    names=("atanh", "arctanh"),
)
unary("deg2rad", np.deg2rad, lambda x: x * (math.pi / 180), lambda g: g * (math.pi / 180))
unary("rad2deg", np.rad2deg, lambda x: x * (180 / math.pi), lambda g: g * (180 / math.pi))


def _sinc_grad(g: Tensor, x: Tensor) -> Tensor:
    p = where(x.eq(0), 1.0, x * math.pi)
    return where(x.eq(0), 0.0, g * math.pi * (p * p.cos() - p.sin()) / (p * p))


def _sinc(x: Expr) -> Expr:
    p = x * math.pi
    return select(x.eq(0), 1.0, call("sin", p) / p)


unary("sinc", np.sinc, _sinc, _sinc_grad)
hypot_ = binary(
    "hypot",
    np.hypot,
    (lambda g, a, out: g * (a / out), lambda g, b, out: g * (b / out)),
    function=lambda a, b: call("sqrt", a * a + b * b),
    low=0.5,
)
binary_public(hypot_)

# ------------------------------------------------------------------------------------------------ signs and steps

unary("signbit", np.signbit, lambda x: (x < 0) | ((1 / x) < 0) if x.dtype.is_floating_point else x < 0, result="bool")
unary(
    "isneginf",
    np.isneginf,
    lambda x: call("isinf", x) & (x < 0) if x.dtype.is_floating_point else const(False, dtypes.bool_),
    result="bool",
)
unary(
    "isposinf",
    np.isposinf,
    lambda x: call("isinf", x) & (x > 0) if x.dtype.is_floating_point else const(False, dtypes.bool_),
    result="bool",
)
copysign_ = pointwise(
    "copysign",
    ("a", "b"),
    np.copysign,
    result="float",
    extern=True,
    samples=draw((3, 4), (4,), low=0.5),
    vjp={"a": lambda g, a, b: where(a.eq(0), 0.0, g * a.sign() * (where(signbit(b), -1.0, 1.0) if isinstance(b, Tensor) else math.copysign(1.0, b))), "b": lambda g: g * 0.0},
)
heaviside_ = pointwise(
    "heaviside",
    ("a", "b"),
    lambda a, b: np.heaviside(a, b) if a.dtype.kind == "f" else np.where(a == 0, b, a > 0).astype(a.dtype),
    lambda a, b: select(a.eq(0), b, select(a > 0, const(1, a.dtype), const(0, a.dtype))),
    samples=draw((3, 4), (4,)),
)
fmax_ = pointwise(
    "fmax",
    ("a", "b"),
    np.fmax,
    lambda a, b: (
        select(call("isnan", a), b, select(call("isnan", b), a, call("maximum", a, b)))
        if a.dtype.is_floating_point
        else call("maximum", a, b)
    ),
    vjp={"a": lambda g, a, b: where((a >= b) | b.isnan(), g, 0.0), "b": lambda g, a, b: where((a >= b) | b.isnan(), 0.0, g)},
    samples=draw((3, 4), (4,)),
)
fmin_ = pointwise(
    "fmin",
    ("a", "b"),
    np.fmin,
    lambda a, b: (
        select(call("isnan", a), b, select(call("isnan", b), a, call("minimum", a, b)))
        if a.dtype.is_floating_point
        else call("minimum", a, b)
    ),
    vjp={"a": lambda g, a, b: where((a <= b) | b.isnan(), g, 0.0), "b": lambda g, a, b: where((a <= b) | b.isnan(), 0.0, g)},
    samples=draw((3, 4), (4,)),
)
nextafter_ = pointwise("nextafter", ("a", "b"), np.nextafter, extern=True, samples=draw((3, 4), (4,)))
for _op in (copysign_, heaviside_, nextafter_):
    binary_public(_op)
for _op in (fmax_, fmin_):
    binary_public(_op, inplace_too=False)
signbit: Callable[[Any], Tensor] = METHODS["signbit"]

# ------------------------------------------------------------------------------------------------ whole numbers


def _whole() -> list[Any]:
    return [((_rng.integers(-12, 13, (3, 4)), _rng.integers(1, 13, (4,))), ())]


gcd_ = pointwise("gcd", ("a", "b"), np.gcd, extern=True, samples=_whole)
lcm_ = pointwise("lcm", ("a", "b"), np.lcm, extern=True, samples=_whole)
binary_public(gcd_)
binary_public(lcm_)


@public()
def ldexp(input: Tensor, other: Any) -> Tensor:
    """input * 2 ** other."""
    return input * (METHODS["exp2"](other) if isinstance(other, Tensor) else 2.0**other)  # type: ignore[no-any-return]


METHODS["ldexp_"] = in_place(ldexp)

# ------------------------------------------------------------------------------------------------ logarithms of products and odds


def _xlogy_np(a: Any, b: Any) -> Any:
    return np.where((a == 0) & ~np.isnan(b), 0, a * np.log(b))


xlogy_ = pointwise(
    "xlogy",
    ("a", "b"),
    _xlogy_np,
    lambda a, b: select(a.eq(0) & ~call("isnan", b), 0, a * call("log", b)),
    result="float",
    samples=draw((3, 4), (4,), low=0.3),
    vjp={
        "a": lambda g, a, b: g * where(a.eq(0) & (b <= 0), 0.0, where(b > 0, b, 1.0).log() if isinstance(b, Tensor) else math.log(b)),
        "b": lambda g, a, b: g * a / b,
    },
)
binary_public(xlogy_)
logaddexp2_ = pointwise(
    "logaddexp2",
    ("a", "b"),
    np.logaddexp2,
    extern=True,
    result="float",
    samples=draw((3, 4), (4,)),
    vjp={"a": lambda g, a, out: g * (a - out).exp2(), "b": lambda g, b, out: g * (b - out).exp2()},
)
binary_public(logaddexp2_, inplace_too=False)


@public()
def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)); with `eps`, x is limited to [eps, 1 - eps] first."""
    x = input if input.dtype.is_floating_point else cast(input, dtypes.get_default_dtype())
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return (x / (1 - x)).log()


METHODS["logit_"] = in_place(logit)

# ------------------------------------------------------------------------------------------------ the error function's family

_TWO_OVER_SQRT_PI = 2 / math.sqrt(math.pi)


@functools.cache
def _normal() -> Any:
    """The standard normal; the module is loaded on first use, it is slow to import."""
    return importlib.import_module("statistics").NormalDist()


unary_public(
    pointwise(
        "erfc",
        ("x",),
        _each(lambda x: math.erfc(x)),
        result="float",
        vjp={"x": lambda g, x: -g * _TWO_OVER_SQRT_PI * (-(x * x)).exp()},
        samples=draw((3, 4)),
        extern=True,
    )
)


def _erfinv(y: float) -> float:
    if abs(y) >= 1:
        return math.copysign(math.inf, y) if abs(y) == 1 else math.nan
    x = _normal().inv_cdf((y + 1) / 2) * SQRT_HALF
    return x - (math.erf(x) - y) / (_TWO_OVER_SQRT_PI * math.exp(-x * x))  # a Newton step: near 0 the first value is only absolutely exact


def _ndtri(p: float) -> float:
    return _normal().inv_cdf(p) if 0 < p < 1 else -math.inf if p == 0 else math.inf if p == 1 else math.nan


extern("erfinv", _each(_erfinv), lambda g, out: g * (0.5 * math.sqrt(math.pi)) * (out * out).exp(), low=-0.9, high=0.9)
extern("ndtri", _each(_ndtri), lambda g, out: g * math.sqrt(2 * math.pi) * (out * out * 0.5).exp(), low=0.05, high=0.95, in_special=True)


def _log_ndtr(x: float) -> float:
    if x > -5:
        return math.log1p(-0.5 * math.erfc(x * SQRT_HALF)) if x > 0 else math.log(0.5 * math.erfc(-x * SQRT_HALF))
    if x > -37:
        return math.log(0.5 * math.erfc(-x * SQRT_HALF))
    z = 1 / (x * x)  # asymptotic series, erfc would be 0
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-z + 3 * z * z - 15 * z**3)


log_ndtr_ = extern(
    "log_ndtr", _each(_log_ndtr), lambda g, x, out: g * (-(x * x) * 0.5 - out).exp() / math.sqrt(2 * math.pi), in_special=True
)


def _erfcx(x: float) -> float:
    if x < 25:
        return math.exp(x * x) * math.erfc(x)
    z = 1 / (x * x)
    return (1 - z / 2 + 3 * z * z / 4 - 15 * z**3 / 8) / (x * math.sqrt(math.pi))


extern("erfcx", _each(_erfcx), lambda g, x, out: g * (2 * x * out - _TWO_OVER_SQRT_PI), in_special=True)

# ------------------------------------------------------------------------------------------------ gamma and its derivatives


def _lgamma(x: float) -> float:
    return math.inf if x <= 0 and x == math.floor(x) else math.lgamma(x)


_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def _digamma_np(x: Any) -> Any:
    """Up to x >= 10 by the recurrence, then the asymptotic series (Abramowitz & Stegun 6.3.18); reflected below 0."""
    z = np.asarray(x, np.float64)
    reflect = z < 0.5
    y = np.where(reflect, 1 - z, z)
    out = np.zeros_like(y)
    for _ in range(10):
        small = y < 10
        out -= np.where(small, 1 / y, 0)
        y = np.where(small, y + 1, y)
    r = 1 / (y * y)
    series, power = np.zeros_like(y), r
    for k, b in enumerate(_BERNOULLI, 1):
        series += b / (2 * k) * power
        power = power * r
    out += np.log(y) - 0.5 / y - series
    out = np.where(reflect, out - np.pi / np.tan(np.pi * z), out)
    pole = (z <= 0) & (z == np.floor(z))
    return np.where(pole, np.where(z == 0, np.copysign(np.inf, -z), np.nan), out).astype(np.asarray(x).dtype)


def _zeta_np(s: Any, q: Any) -> Any:
    """Hurwitz zeta for s > 1, q > 0 by Euler-Maclaurin summation from the tenth term on."""
    a, b = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(q, np.float64))
    out = np.sum([(b + k) ** -a for k in range(10)], axis=0)
    w = b + 10
    out = out + w ** (1 - a) / (a - 1) + 0.5 * w**-a
    term = a * w ** (-a - 1)
    for k, bernoulli in enumerate(_BERNOULLI, 1):
        out = out + bernoulli / math.factorial(2 * k) * term
        term = term * (a + 2 * k - 1) * (a + 2 * k) / (w * w)
    out = np.where(a > 1, np.where(b > 0, out, np.nan), np.where(a == 1, np.inf, np.nan))
    return out.astype(np.result_type(s, q) if not isinstance(s, float | int) else np.asarray(q).dtype)


def _polygamma_np(x: Any, n: int) -> Any:
    if n == 0:
        return _digamma_np(x)
    z = np.asarray(x, np.float64)
    shift = np.zeros_like(z)
    while (z <= 0).any() and np.isfinite(z).all():  # recurrence into the right half plane
        shift = shift + np.where(z <= 0, 1.0 / z ** (n + 1), 0)
        z = np.where(z <= 0, z + 1, z)
    return ((-1) ** (n + 1) * math.factorial(n) * (_zeta_np(float(n + 1), z) + shift)).astype(np.asarray(x).dtype)


lgamma_ = extern("lgamma", _each(_lgamma), lambda g, x: g * x.digamma(), low=0.3, high=4)
extern("digamma", _digamma_np, lambda g, x: g * apply(polygamma_, (x,), (1,)), low=0.3, high=4)
polygamma_ = pointwise(
    "polygamma",
    ("x",),
    _polygamma_np,
    attrs=("n",),
    result="float",
    extern=True,
    vjp={"x": lambda g, x, n: g * apply(polygamma_, (x,), (n + 1,))},
    samples=lambda: [((_rng.uniform(0.5, 4, (3, 4)),), (n,)) for n in (1, 2)],
)
zeta_ = pointwise("zeta", ("a", "b"), _zeta_np, result="float", extern=True, samples=draw((3, 4), (4,), low=1.5, high=5))
SPECIAL["zeta"] = lambda input, other: apply(zeta_, (input, other))


def _upper_fraction(a: Any, x: Any) -> Any:
    """Q(a, x) Γ(a) eˣ x⁻ᵃ by Lentz's continued fraction, for x > a + 1 (Press et al., Numerical Recipes, 6.2)."""
    b = x + 1 - a
    c = np.full_like(x, 1e300)
    d = 1 / b
    h = d.copy()
    for i in range(1, 500):
        step = -i * (i - a)
        b = b + 2
        d = 1 / np.where((t := step * d + b) == 0, 1e-300, t)
        c = np.where((t := b + step / c) == 0, 1e-300, t)
        h = h * d * c
        if np.abs(d * c - 1).max(initial=0) < 1e-15:
            break
    return h


def _lower_series(a: Any, x: Any) -> Any:
    """P(a, x) Γ(a) eˣ x⁻ᵃ by its series, for x <= a + 1."""
    term = total = 1 / a
    k = a
    for _ in range(2000):
        k = k + 1
        term = term * x / k
        total = total + term
        if (term <= total * 1e-17).all():
            break
    return total


_LGAMMA = _each(_lgamma)


def _incomplete(a: Any, x: Any, upper: bool) -> Any:
    """The regularised incomplete gamma functions P and Q."""
    kind = np.result_type(*[v for v in (a, x) if isinstance(v, np.ndarray | np.generic)])
    p, q = (np.atleast_1d(v).astype(np.float64) for v in np.broadcast_arrays(a, x))
    good = (p > 0) & (q > 0) & np.isfinite(p) & np.isfinite(q)
    s, z = np.where(good, p, 1.0), np.where(good, q, 1.0)
    front = np.exp(s * np.log(z) - z - _LGAMMA(s))
    series = z <= s + 1
    lower = front * _lower_series(s, np.where(series, z, 0.5 * s))
    rest = front * _upper_fraction(s, np.where(series, s + 2, z))
    out = np.where(series, 1 - lower, rest) if upper else np.where(series, lower, 1 - rest)
    at_end = np.where(q == 0, 0.0, 1.0)  # P(a, 0) = 0; P(0, x) = P(a, inf) = 1
    ends = ((q == 0) & (p > 0)) | ((p == 0) & (q > 0)) | (np.isposinf(q) & (p >= 0) & np.isfinite(p))
    out = np.where(good, out, np.where(ends, 1 - at_end if upper else at_end, np.where(np.isposinf(p) & (q >= 0) & np.isfinite(q), float(upper), np.nan)))
    return out.reshape(np.broadcast_shapes(np.shape(a), np.shape(x))).astype(kind)


def _gamma_density(a: Any, b: Tensor) -> Any:
    return ((a - 1) * b.log() - b - (a.lgamma() if isinstance(a, Tensor) else math.lgamma(a))).exp()


igamma_ = pointwise(
    "igamma", ("a", "b"), lambda a, x: _incomplete(a, x, False), result="float", extern=True, samples=draw((3, 4), (4,), low=0.5, high=4),
    vjp={"b": lambda g, a, b: g * _gamma_density(a, b)}, doc="The regularised lower incomplete gamma function P(a, x); no gradient for a.",
)
igammac_ = pointwise(
    "igammac", ("a", "b"), lambda a, x: _incomplete(a, x, True), result="float", extern=True, samples=draw((3, 4), (4,), low=0.5, high=4),
    vjp={"b": lambda g, a, b: -g * _gamma_density(a, b)}, doc="The regularised upper incomplete gamma function Q(a, x); no gradient for a.",
)
binary_public(igamma_)
binary_public(igammac_)
SPECIAL["gammainc"], SPECIAL["gammaincc"] = METHODS["igamma"], METHODS["igammac"]


def _gamma_sample_grad_np(a: Any, x: Any) -> Any:
    """-(dP/da) / (dP/dx), the former by differences of fourth order in float64."""
    p, q = np.asarray(a, np.float64), np.asarray(x, np.float64)
    h = 1e-3 * np.minimum(p, 1.0)
    slope = (8 * (_incomplete(p + h, q, False) - _incomplete(p - h, q, False)) - _incomplete(p + 2 * h, q, False) + _incomplete(p - 2 * h, q, False)) / (12 * h)
    density = np.exp((p - 1) * np.log(q) - q - _LGAMMA(p))
    return np.nan_to_num(-slope / density, posinf=0.0, neginf=0.0).astype(np.result_type(a, x))


gamma_sample_grad_ = pointwise(
    "gamma_sample_grad", ("a", "b"), _gamma_sample_grad_np, result="float", extern=True, samples=draw((3, 4), (4,), low=0.5, high=4),
    doc="How a gamma sample moves with its concentration while its quantile stays.",
)


@public(method=False)
def polygamma(n: int, input: Tensor) -> Tensor:
    """The n-th derivative of digamma. Raises RuntimeError for negative n."""
    if n < 0:
        raise RuntimeError("polygamma(n, x) does not support negative n.")
    return apply(polygamma_, (input,), (int(n),))


METHODS["polygamma"] = lambda self, n: polygamma(n, self)


@public("mvlgamma")
def mvlgamma(input: Tensor, p: int) -> Tensor:
    """The logarithm of the multivariate gamma function of dimension p."""
    total: Any = p * (p - 1) / 4 * math.log(math.pi)
    for j in range(p):
        total = total + (input - j / 2).lgamma()
    return total  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ Bessel functions, entropy


def _bessel(order: int, scaled: bool) -> Callable[[float], float]:
    """I_order(x) by its power series, by the asymptotic one for large |x|; `scaled` by exp(-|x|)."""

    def f(x: float) -> float:
        a = abs(x)
        if a < 20:
            term = total = (a / 2) ** order
            k = 1
            while term > total * 1e-17:
                term *= (a / 2) ** 2 / (k * (k + order))
                total += term
                k += 1
            out = total * (math.exp(-a) if scaled else 1.0)
        else:
            term = total = 1.0
            for k in range(1, 30):
                following = term * -(4 * order * order - (2 * k - 1) ** 2) / (k * 8 * a)
                if abs(following) > abs(term):
                    break
                term = following
                total += term
            out = total / math.sqrt(2 * math.pi * a) * (1.0 if scaled else math.exp(a))
        return -out if order and x < 0 else out

    return f


extern("i0", _each(_bessel(0, False)), lambda g, x: g * SPECIAL["i1"](x), low=0.2)
extern("i0e", _each(_bessel(0, True)), lambda g, x, out: g * (SPECIAL["i1e"](x) - x.sign() * out), low=0.2, in_special=True)
extern("i1", _each(_bessel(1, False)), lambda g, x, out: g * (x.i0() - where(x.eq(0), 0.5, out / where(x.eq(0), 1.0, x))), low=0.2, in_special=True)
extern("i1e", _each(_bessel(1, True)), lambda g, x, out: g * (SPECIAL["i0e"](x) - where(x.eq(0), 0.5, out * (x.sign() + 1 / where(x.eq(0), 1.0, x)))), low=0.2, in_special=True)


def _entr(x: Expr) -> Expr:
    return select(x > 0, -x * call("log", x), select(x.eq(0), 0, const(-math.inf, x.dtype)))


entr_ = pointwise(
    "entr",
    ("x",),
    lambda x: np.where(x > 0, -x * np.log(np.where(x > 0, x, 1)), np.where(x == 0, 0, -np.inf).astype(x.dtype)),
    _entr,
    result="float",
    vjp={"x": lambda g, x: g * (-x.log() - 1)},
    samples=draw((3, 4), low=0.2),
)
SPECIAL["entr"] = lambda input: apply(entr_, (input,))

# ------------------------------------------------------------------------------------------------ in-place comparisons, odds and ends


def _comparison(name: str) -> None:
    METHODS[name + "_"] = lambda self, other: self.copy_(METHODS[name](self, other))


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "not_equal", "less", "less_equal", "greater", "greater_equal"):
    _comparison(_name)


@public()
def positive(input: Tensor) -> Tensor:
    """The input itself. Raises RuntimeError for bools."""
    if input.dtype is dtypes.bool_:
        raise RuntimeError("The `+` operator, on a bool tensor is not supported.")
    return input


_round, _round_ = METHODS["round"], METHODS["round_"]


@public()
def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest whole numbers (halves to even), or numbers with so many decimals."""
    if decimals == 0:
        return _round(input)  # type: ignore[no-any-return]
    return _round(input * 10.0**decimals) / 10.0**decimals  # type: ignore[no-any-return]


METHODS["round_"] = lambda self, *, decimals=0: _round_(self) if decimals == 0 else in_place(round)(self, decimals=decimals)


@public()
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """The p-norm of input - other."""
    return METHODS["norm"](input - other, p)  # type: ignore[no-any-return]


@public()
def float_power(input: Any, exponent: Any) -> Tensor:
    """input ** exponent in float64, or complex128 where one of the two is complex."""
    complex_too = any(t.dtype.is_complex if isinstance(t, Tensor) else isinstance(t, complex) for t in (input, exponent))
    wide = dtypes.complex128 if complex_too else dtypes.float64
    x, e = (cast(t, wide) if isinstance(t, Tensor) else t if isinstance(t, complex) else float(t) for t in (input, exponent))
    return METHODS["pow"](x, e) if isinstance(x, Tensor) else METHODS["__rpow__"](e, x)  # type: ignore[no-any-return]


@public(method=False)
def frexp(input: Tensor) -> tuple[Tensor, Tensor]:
    """(mantissa, exponent) with input = mantissa * 2 ** exponent and 0.5 <= |mantissa| < 1."""
    mantissa, exponent = np.frexp(input.detach().numpy())
    make = METHODS["new_tensor"]
    return make(input, mantissa), make(input, exponent, dtype=dtypes.int32)


METHODS["frexp"] = frexp
METHODS["frac_"] = in_place(METHODS["frac"])
METHODS["nan_to_num_"] = in_place(METHODS["nan_to_num"])
METHODS["true_divide_"] = METHODS["div_"]
METHODS["float_power_"] = in_place(float_power)
