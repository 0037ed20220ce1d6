"""Bessel functions, Airy's function and orthogonal polynomials; extern operators without gradients, as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet.op import apply, pointwise
from torchlet.ops.mathematics import SPECIAL
from torchlet.ops.pointwise import draw
from torchlet.ops.public import FUNCTIONS

_EULER = 0.57721566490153286061
_POINTS = np.arange(160) * (2 * np.pi / 160)
Array = Any


def _j(n: int, x: Array) -> Array:
    """J_n for |x| <= 25: the mean of cos(n t - x sin t), which the rule of 160 points gives to the last bit."""
    return np.cos(n * _POINTS - x[..., None] * np.sin(_POINTS)).mean(-1)


def _far(n: int, x: Array) -> tuple[Array, Array]:
    """P and Q of Hankel's expansion for large x (Abramowitz & Stegun 9.2.9)."""
    mu, p, q, term = 4.0 * n * n, np.ones_like(x), np.zeros_like(x), np.ones_like(x)
    for k in range(1, 26):
        following = term * (mu - (2 * k - 1) ** 2) / (k * 8 * x)
        term = np.where(np.abs(following) < np.abs(term), following, 0.0)
        sign = (-1) ** (k // 2)
        if k % 2:
            q = q + sign * term
        else:
            p = p + sign * term
    return p, q


def _bessel_j(n: int) -> Callable[[Array], Array]:
    def f(x: Array) -> Array:
        a = np.abs(x)
        near, far = _j(n, np.where(a <= 25, a, 0.0)), np.where(a > 25, a, 30.0)
        p, q = _far(n, far)
        angle = far - (n / 2 + 0.25) * np.pi
        out = np.where(a <= 25, near, np.sqrt(2 / (np.pi * far)) * (p * np.cos(angle) - q * np.sin(angle)))
        out = np.where(np.isinf(a), 0.0, np.where(np.isnan(a), np.nan, out))
        return np.where(x < 0, -out, out) if n else out

    return f


def _bessel_y(n: int) -> Callable[[Array], Array]:
    def f(x: Array) -> Array:
        near = np.where((x > 0) & (x <= 25), x, 1.0)
        log = np.log(near / 2) + _EULER
        if n == 0:
            small = 2 / np.pi * log * _j(0, near) - 4 / np.pi * np.sum([(-1) ** k * _j(2 * k, near) / k for k in range(1, 40)], 0)
        else:
            terms = [(-1) ** k * (2 * k + 1) / (k * (k + 1)) * _j(2 * k + 1, near) for k in range(1, 40)]
            small = -2 / (np.pi * near) * _j(0, near) + 2 / np.pi * (log - 1) * _j(1, near) - 2 / np.pi * np.sum(terms, 0)
        far = np.where(x > 25, x, 30.0)
        p, q = _far(n, far)
        angle = far - (n / 2 + 0.25) * np.pi
        out = np.where(x <= 25, small, np.sqrt(2 / (np.pi * far)) * (p * np.sin(angle) + q * np.cos(angle)))
        return np.where(x > 0, np.where(np.isinf(x), 0.0, out), np.where(x == 0, -np.inf, np.nan))

    return f


def _k_integral(order: float, x: Array) -> Array:
    """exp(x) K_order(x) for x > 0: up to 25 the integral of exp(x (1 - cosh t)) cosh(order t), which the trapezoidal rule gives to
    the last bit; the asymptotic series above."""
    large = np.where(x > 25, x, 30.0)
    term = total = np.ones_like(large)
    for k in range(1, 26):
        following = term * (4 * order * order - (2 * k - 1) ** 2) / (k * 8 * large)
        term = np.where(np.abs(following) < np.abs(term), following, 0.0)
        total = total + term
    x, far = np.minimum(x, 25.0), np.where(x > 25, np.sqrt(np.pi / (2 * large)) * total, np.nan)
    top = np.arccosh(1 + 800 / max(float(x.min(initial=1.0)), 1e-300))
    t = np.linspace(0, top, int(top * 12) + 40)
    weight = np.full(t.size, t[1])
    weight[0] /= 2
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.exp(-x[..., None] * (2 * np.sinh(t / 2) ** 2) + np.log(np.cosh(order * t)))
    return np.where(np.isnan(far), (values * weight).sum(-1), far)


def _bessel_k(n: int, scaled: bool) -> Callable[[Array], Array]:
    def f(x: Array) -> Array:
        good = (x > 0) & np.isfinite(x)
        safe = np.where(good, x, 1.0)
        out = _k_integral(n, safe) * (1.0 if scaled else np.exp(-safe))
        return np.where(good, out, np.where(x == 0, np.inf, np.where(np.isposinf(x), 0.0, np.nan)))

    return f


def _airy(x: Array) -> Array:
    """Ai: the Taylor series between -6 and 1; K of order 1/3 above; the oscillating asymptotic series below."""
    a0, a1 = 0.355028053887817239, -0.258819403792806798
    near = np.where((x >= -6) & (x <= 1), x, 0.0)
    f, g = np.ones_like(near), near.copy()
    even, odd = f.copy(), g.copy()
    for k in range(1, 60):
        f = f * near**3 / ((3 * k - 1) * (3 * k))
        g = g * near**3 / ((3 * k) * (3 * k + 1))
        even, odd = even + f, odd + g
    up = np.where(x > 1, x, 2.0)
    z = 2 / 3 * up**1.5
    above = np.sqrt(up / 3) / np.pi * _k_integral(1 / 3, z) * np.exp(-z)
    down = np.where(x < -6, -x, 10.0)
    z = 2 / 3 * down**1.5
    p, q, term = np.zeros_like(z), np.zeros_like(z), np.ones_like(z)
    for k in range(24):
        if k:
            following = term * (6 * k - 5) * (6 * k - 3) * (6 * k - 1) / (216 * k * (2 * k - 1)) / z
            term = np.where(np.abs(following) < np.abs(term), following, 0.0)
        if k % 2:
            q = q + (-1) ** (k // 2) * term
        else:
            p = p + (-1) ** (k // 2) * term
    below = (np.cos(z - np.pi / 4) * p + np.sin(z - np.pi / 4) * q) / (np.sqrt(np.pi) * down**0.25)
    out = np.where(x > 1, above, np.where(x < -6, below, a0 * even + a1 * odd))
    return np.where(np.isnan(x), np.nan, np.where(np.isinf(x), 0.0, out))


def _spherical(x: Array) -> Array:
    return np.where(x == 0, 1.0, np.where(np.isinf(x), 0.0, np.sin(np.where(np.isinf(x), 0, x)) / np.where(x == 0, 1.0, x)))


def _enter(name: str, f: Callable[[Array], Array]) -> None:
    def run(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(f(np.asarray(x, np.float64))).astype(x.dtype)

    op = pointwise(name, ("x",), run, result="float", extern=True, samples=draw((3, 4), low=0.2, high=9))
    SPECIAL[name] = lambda input: apply(op, (input,))


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "airy_ai": _airy, "bessel_j0": _bessel_j(0), "bessel_j1": _bessel_j(1), "bessel_y0": _bessel_y(0), "bessel_y1": _bessel_y(1),
    "modified_bessel_k0": _bessel_k(0, False), "modified_bessel_k1": _bessel_k(1, False),
    "scaled_modified_bessel_k0": _bessel_k(0, True), "scaled_modified_bessel_k1": _bessel_k(1, True), "spherical_bessel_j0": _spherical,
}  # fmt: skip
for _name, _function in _FUNCTIONS.items():
    _enter(_name, _function)
SPECIAL["modified_bessel_i0"], SPECIAL["modified_bessel_i1"] = FUNCTIONS["i0"], SPECIAL["i1"]

# ------------------------------------------------------------------------------------------------ orthogonal polynomials

# p_0 = 1, p_1 = first(x), p_{k+1} = step(x, k, p_k, p_{k-1})
_twice = lambda x, k, a, b: 2 * x * a - b
_POLYNOMIALS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "chebyshev_polynomial_t": (lambda x: x, _twice),
    "chebyshev_polynomial_u": (lambda x: 2 * x, _twice),
    "chebyshev_polynomial_v": (lambda x: 2 * x - 1, _twice),
    "chebyshev_polynomial_w": (lambda x: 2 * x + 1, _twice),
    "hermite_polynomial_h": (lambda x: 2 * x, lambda x, k, a, b: 2 * x * a - 2 * k * b),
    "hermite_polynomial_he": (lambda x: x, lambda x, k, a, b: x * a - k * b),
    "laguerre_polynomial_l": (lambda x: 1 - x, lambda x, k, a, b: ((2 * k + 1 - x) * a - k * b) / (k + 1)),
    "legendre_polynomial_p": (lambda x: x, lambda x, k, a, b: ((2 * k + 1) * x * a - k * b) / (k + 1)),
}


def _polynomial(name: str, first: Callable[..., Any], step: Callable[..., Any], shifted: bool) -> None:
    def run(x: Any, n: Any) -> Any:
        kind = np.result_type(*[v for v in (x, n) if isinstance(v, np.ndarray | np.generic)])
        at, degree = np.broadcast_arrays(np.asarray(x, np.float64), np.trunc(np.asarray(n, np.float64)))
        at = 2 * at - 1 if shifted else at
        before, now = np.ones_like(at), np.asarray(first(at))
        out = np.where(degree == 0, before, np.where(degree == 1, now, 0.0))
        for k in range(1, int(degree.max(initial=0))):
            before, now = now, step(at, k, now, before)
            out = np.where(degree == k + 1, now, out)
        return out.astype(kind)

    op = pointwise(
        name, ("a", "b"), run, result="float", extern=True, samples=lambda: [((np.linspace(-1, 1, 12).reshape(3, 4), np.arange(4.0)), ())]
    )
    SPECIAL[name] = lambda input, n: apply(op, (input, n))


for _name, (_first, _step) in _POLYNOMIALS.items():
    _polynomial(_name, _first, _step, False)
    if _name.startswith("chebyshev"):
        _polynomial(f"shifted_{_name}", _first, _step, True)
