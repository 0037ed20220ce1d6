"""Spells scalar expressions, constants and conversions in C."""

from __future__ import annotations

import math

import numpy as np

from torchlet import dtypes
from torchlet.dtypes import dtype
from torchlet.errors import UnsupportedError
from torchlet.expr import COMPARISONS, Expr, const_value

__all__ = ["MEMORY", "VALUE", "constant", "convert", "from_memory", "operation", "to_memory"]

# how an element lies in memory, and the C type that expressions of the dtype have (16-bit floats are computed in float)
MEMORY = {
    dtypes.float32: "float", dtypes.float64: "double", dtypes.float16: "tl_f16", dtypes.bfloat16: "tl_bf16",
    dtypes.int8: "int8_t", dtypes.int16: "int16_t", dtypes.int32: "int32_t", dtypes.int64: "int64_t", dtypes.uint8: "uint8_t",
    dtypes.bool_: "uint8_t",
}
VALUE = MEMORY | {dtypes.float16: "float", dtypes.bfloat16: "float", dtypes.bool_: "int"}
_BITS = {dtypes.float16: "f16", dtypes.bfloat16: "bf16"}

_FLOAT_CALLS = {  # op: (float, double)
    "abs": ("__builtin_fabsf", "__builtin_fabs"), "sign": ("tl_sign", "tl_sign_d"), "exp": ("tl_exp", "exp"),
    "expm1": ("tl_expm1", "expm1"),
    "log": ("tl_log", "log"), "log1p": ("tl_log1p", "log1p"), "log2": ("tl_log2", "log2"), "sqrt": ("__builtin_sqrtf", "__builtin_sqrt"),
    "sin": ("tl_sin", "sin"), "cos": ("tl_cos", "cos"), "tan": ("tanf", "tan"), "asin": ("asinf", "asin"), "acos": ("acosf", "acos"),
    "atan": ("atanf", "atan"), "sinh": ("sinhf", "sinh"), "cosh": ("coshf", "cosh"),
    "tanh": ("tl_tanh", "tanh"), "erf": ("tl_erf", "erf"),
    "sigmoid": ("tl_sigmoid", "tl_sigmoid_d"), "floor": ("__builtin_floorf", "__builtin_floor"),
    "ceil": ("__builtin_ceilf", "__builtin_ceil"),
    "round": ("__builtin_rintf", "__builtin_rint"), "trunc": ("__builtin_truncf", "__builtin_trunc"), "isnan": ("tl_isnanf", "tl_isnan"),
    "floordiv": ("tl_floordiv", "tl_floordiv_d"), "mod": ("tl_mod", "tl_mod_d"), "fmod": ("fmodf", "fmod"), "pow": ("tl_pow", "pow"),
    "maximum": ("tl_maximum", "tl_maximum_d"), "minimum": ("tl_minimum", "tl_minimum_d"), "atan2": ("atan2f", "atan2"),
}
_INT_CALLS = {
    "abs": "tl_abs_i", "sign": "tl_sign_i", "div": "tl_div_i", "floordiv": "tl_floordiv_i", "mod": "tl_mod_i", "fmod": "tl_fmod_i",
    "pow": "tl_pow_i", "maximum": "tl_max_i", "minimum": "tl_min_i",
}
_BOOL_SYMBOLS = {"add": "|", "or": "|", "maximum": "|", "mul": "&", "and": "&", "minimum": "&", "xor": "^", "sub": "^"}
_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
            "and": "&", "or": "|", "xor": "^"}


def constant(value: int | float | bool, d: dtype) -> str:
    """A number of dtype `d` as a C literal."""
    if not d.is_floating_point:
        v = int(value)
        if -(2**31) < v < 2**31:
            return str(v) if v >= 0 else f"({v})"
        return "INT64_MIN" if v == -(2**63) else f"({v}LL)"
    x = float(value)
    if math.isnan(x):
        return "NAN"
    if d is not dtypes.float64:
        with np.errstate(over="ignore"):
            x = float(np.float32(np.array(x).astype(d.np).astype(np.float32)))
    if math.isinf(x):
        return "INFINITY" if x > 0 else "(-INFINITY)"
    text = repr(x) if d is dtypes.float64 else str(np.float32(x))
    text = text if "." in text or "e" in text else text + ".0"
    text += "" if d is dtypes.float64 else "f"
    return f"({text})" if text.startswith("-") else text


def from_memory(text: str, d: dtype) -> str:
    """The value of an element of memory."""
    return f"tl_from_{_BITS[d]}({text})" if d in _BITS else text


def to_memory(text: str, d: dtype) -> str:
    """A value of dtype `d` as it is stored."""
    return f"tl_to_{_BITS[d]}({text})" if d in _BITS else text


def convert(text: str, source: dtype, to: dtype) -> str:
    """A value converted to another dtype, as NumPy's astype does it."""
    if source is to:
        return text
    if to is dtypes.bool_:
        return f"({text} != 0)"
    if to in _BITS:
        return f"tl_round_{_BITS[to]}({'' if VALUE[source] == 'float' else '(float)'}{text})"
    if VALUE[source] == VALUE[to]:
        return text
    if source.is_floating_point and not to.is_floating_point and to.itemsize < 4:
        return f"(({VALUE[to]})(int32_t){text})"  # out of range wraps instead of being undefined
    return f"(({VALUE[to]}){text})"


def operation(e: Expr, a: list[str]) -> str:
    """The C text of an arithmetic node whose arguments are `a`."""
    d = e.args[-1].dtype
    if e.op == "where":
        return f"({a[0]} ? {a[1]} : {a[2]})"
    if e.op == "cast":
        return convert(a[0], d, e.dtype)
    if e.op == "philox":
        return f"tl_philox({a[0]}, {a[1]}, {a[2]}, {e.attr})"
    if e.op in COMPARISONS:
        return f"({a[0]} {_SYMBOLS[e.op]} {a[1]})"
    if e.op == "not":
        return f"(!{a[0]})"
    if d.is_floating_point:
        text = _float_operation(e, a, d)
    elif d is dtypes.bool_ and e.op in _BOOL_SYMBOLS:
        return f"({a[0]} {_BOOL_SYMBOLS[e.op]} {a[1]})"
    else:
        text = _int_operation(e, a, d)
    if text is None:
        raise UnsupportedError(f"cpu: no C for {e.op} on {d.name}")
    return text


def _float_operation(e: Expr, a: list[str], d: dtype) -> str | None:
    double = d is dtypes.float64
    one = "1.0" if double else "1.0f"
    if e.op == "neg":
        return f"(-{a[0]})"
    if e.op == "reciprocal":
        return f"({one} / {a[0]})"
    if e.op == "rsqrt":
        return f"({one} / {_FLOAT_CALLS['sqrt'][double]}({a[0]}))"
    if e.op == "isinf":
        return f"({_FLOAT_CALLS['abs'][double]}({a[0]}) == INFINITY)"
    if e.op == "pow" and e.args[1].op == "const":
        power, x = const_value(e.args[1]), a[0]
        simple = {2: f"({x} * {x})", 3: f"({x} * {x} * {x})", 1: x, -1: f"({one} / {x})", 0.5: f"{_FLOAT_CALLS['sqrt'][double]}({x})"}
        if power in simple and (power not in (2, 3) or x.isidentifier()):
            return simple[power]
    if e.op in _FLOAT_CALLS:
        return f"{_FLOAT_CALLS[e.op][double]}({', '.join(a)})"
    return f"({a[0]} {_SYMBOLS[e.op]} {a[1]})" if e.op in _SYMBOLS else None


def _int_operation(e: Expr, a: list[str], d: dtype) -> str | None:
    if e.op in ("floor", "ceil", "round", "trunc"):
        return a[0]
    if e.op in ("isnan", "isinf"):
        return "0"
    if e.op == "neg":
        text = f"(-{a[0]})"
    elif e.op in ("lshift", "rshift"):
        text = f"tl_{e.op}({a[0]}, {a[1]}, {8 * d.itemsize})"
    elif e.op in _INT_CALLS:
        text = f"{_INT_CALLS[e.op]}({', '.join(a)})"
    elif e.op in _SYMBOLS:
        text = f"({a[0]} {_SYMBOLS[e.op]} {a[1]})"
    else:
        return None
    return text if d is dtypes.int64 else f"(({VALUE[d]}){text})"  # C computes small integers as int
