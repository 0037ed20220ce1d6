"""Scalar functions that Triton's language lacks or has with other rules; `codegen.triton` copies the ones a kernel calls into its text.

Each works on float32 and float64 blocks, in compiled code and in the interpreter, without libdevice.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def maximum(x, y):  # NaN wins, as in NumPy and PyTorch
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def product(x, y):
    return x * y


@triton.jit
def add_exp(total, top, x):  # sum of exp(value - top), and the largest value so far; NaN stays in both
    higher = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    base = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
    return total * tl.exp(top - base) + tl.exp(x - base), higher


@triton.jit
def first_max(x, i, y, j):  # the larger value, NaN above all; of equals the one that comes first
    x_nan = x != x
    y_nan = y != y
    take_x = (x > y) | (x_nan & ~y_nan) | (((x == y) | (x_nan & y_nan)) & (i < j))
    return tl.where(take_x, x, y), tl.where(take_x, i, j)


@triton.jit
def first_min(x, i, y, j):
    x_nan = x != x
    y_nan = y != y
    take_x = (x < y) | (x_nan & ~y_nan) | (((x == y) | (x_nan & y_nan)) & (i < j))
    return tl.where(take_x, x, y), tl.where(take_x, i, j)


@triton.jit
def sqrt(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)  # tl.sqrt is the approximate one for float32
    else:
        return tl.sqrt(x)


@triton.jit
def sign(x):
    return tl.where(x > 0, tl.full([], 1, x.dtype), tl.where(x < 0, tl.full([], -1, x.dtype), x))


@triton.jit
def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    low = tl.floor(x)
    rest = x - low
    odd = (low - 2.0 * tl.floor(low * 0.5)) == 1.0
    return tl.where((rest > 0.5) | ((rest == 0.5) & odd), low + 1.0, low)


@triton.jit
def expm1(x):  # Kahan: (u - 1) / log(u) varies slowly, so the error in u = exp(x) cancels
    u = tl.exp(x)
    near = (u - 1.0) * (x / tl.log(u))
    return tl.where(u == 1.0, x, tl.where((u < 0.5) | (u > 2.0), u - 1.0, near))


@triton.jit
def log1p(x):
    u = 1.0 + x
    near = tl.log(u) * (x / (u - 1.0))
    return tl.where(u == 1.0, x, tl.where((u < 0.5) | (u > 2.0), tl.log(u), near))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    a = tl.abs(x)
    if x.dtype == tl.float64:
        small = expm1(2.0 * tl.minimum(a, 1.0))
        near = small / (small + 2.0)
    else:  # Cephes: odd polynomial, 1 ulp below 0.625
        z = x * x
        p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1
        near = p * z * a + a
    far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    y = tl.where(a < 0.625, near, far)
    return tl.where(x < 0, -y, tl.where(x == 0, x, y))


@triton.jit
def sinh(x):
    a = tl.abs(x)
    e = expm1(a)
    half = tl.exp(0.5 * a)
    y = tl.where(a < 20.0, 0.5 * (e + e / (e + 1.0)), (0.5 * half) * half)
    return tl.where(x < 0, -y, y)


@triton.jit
def cosh(x):
    half = tl.exp(0.5 * tl.abs(x))
    return (0.5 * half) * half + 0.5 / half / half


@triton.jit
def atan(x):  # Cephes: reduce to [0, 0.66], rational approximation of degree 4/5
    a = tl.abs(x)
    large = a > 2.414213562373095
    middle = (a > 0.66) & ~large
    t = tl.where(large, -1.0 / a, tl.where(middle, (a - 1.0) / (a + 1.0), a))
    offset = tl.where(large, tl.full([], 1.5707963267948966, x.dtype), tl.where(middle, tl.full([], 0.7853981633974483, x.dtype), t * 0.0))
    z = t * t
    p = (((-8.750608600031904e-1 * z - 1.615753718733365e1) * z - 7.500855792314705e1) * z - 1.228866684490136e2) * z - 6.485021904942025e1
    q = (
        (((z + 2.485846490142306e1) * z + 1.650270098316988e2) * z + 4.328810604912903e2) * z + 4.853903996359137e2
    ) * z + 1.945506571482614e2
    y = offset + (t * z * (p / q) + t)
    return tl.where(x < 0, -y, tl.where(x == 0, x, y))


@triton.jit
def asin(x):
    return atan(x / sqrt((1.0 - x) * (1.0 + x)))


@triton.jit
def acos(x):
    return 2.0 * atan(sqrt((1.0 - x) / (1.0 + x)))


@triton.jit
def tan(x):
    return tl.sin(x) / tl.cos(x)


@triton.jit
def atan2(y, x):
    pi = tl.full([], 3.141592653589793, x.dtype)
    inf = float("inf")
    both = (tl.abs(x) == inf) & (tl.abs(y) == inf)
    ratio = tl.where(both, tl.full([], 1.0, x.dtype), tl.where((y == 0) & (x == 0), tl.abs(y), tl.abs(y) / tl.abs(x)))
    angle = atan(ratio)
    angle = tl.where((x < 0) | ((x == 0) & (1.0 / x < 0)), pi - angle, angle)
    return tl.where((y < 0) | ((y == 0) & (1.0 / y < 0)), -angle, angle)


@triton.jit
def power(x, y):
    # float32 goes through float64: exp2(y * log2(x)) loses as many bits as the exponent has
    e = y.to(tl.float64)
    a = tl.abs(x).to(tl.float64)
    size = tl.exp2(e * tl.log2(a))
    whole = tl.floor(e) == e
    odd = whole & ((e - 2.0 * tl.floor(e * 0.5)) == 1.0)
    signed = tl.where(x < 0, tl.where(odd, -size, tl.where(whole | (a == float("inf")), size, float("nan"))), size)
    one = (e == 0.0) | (x == 1.0) | ((a == 1.0) & (tl.abs(e) == float("inf")))
    return tl.where(one, 1.0, signed).to(x.dtype)


@triton.jit
def integer_power(x, n):
    result = x * 0 + 1
    base = x
    for bit in tl.static_range(32):
        result = tl.where(((n >> bit) & 1) != 0, result * base, result)
        base = base * base
    inverse = tl.where(x * x == 1, tl.where((n & 1) != 0, x, x * x), x * 0)  # 1 / x**-n is whole for 1 and -1 only
    return tl.where(n < 0, inverse, result)


@triton.jit
def modulo(x, y):  # the sign of the divisor
    r = x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


@triton.jit
def floor_quotient(x, y):
    return x // y - ((x % y != 0) & ((x < 0) != (y < 0))).to(x.dtype)


@triton.jit
def floor_divide(x, y):  # NumPy's: exact where the quotient is near a whole number
    q = (x - modulo(x, y)) / y
    low = tl.floor(q)
    low = tl.where(q - low > 0.5, low + 1.0, low)
    return tl.where(y == 0, x / y, low)
