"""Operators that work element by element: arithmetic, comparison, mathematics, activations, casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.autograd import inplace
from torchlet.expr import Expr, call, const
from torchlet.expr import cast as cast_expr
from torchlet.expr import where as select
from torchlet.op import Check, Op, Pointwise, Refusal, apply, define, pointwise
from torchlet.ops.public import (
    METHODS,
    Draws,
    applies,
    as_tensor_like,
    binary_public,
    dunder,
    in_place,
    inplace_dunder,
    operand,
    public,
    unary_public,
)
from torchlet.spec import Spec
from torchlet.tensor import Tensor

_rng = Draws(0)


def draw(*shapes: tuple[int, ...], low: float = -2.0, high: float = 2.0, dtype: Any = np.float64) -> Callable[[], list[Any]]:
    """Samples for a table entry: one case with an array of each shape, uniform on [low, high)."""
    return lambda: [(tuple(_rng.uniform(low, high, s).astype(dtype) for s in shapes), ())]


def unary(
    name: str, np_function: Callable[..., Any], function: Callable[..., Expr] | None = None, grad: Callable[..., Any] | None = None,
    result: str = "float", low: float = -2.0, high: float = 2.0, names: tuple[str, ...] = (),
) -> Op:
    """Enter a one-input operator and its public names."""
    op = pointwise(name, ("x",), np_function, function, result=result, vjp={"x": grad} if grad else None, samples=draw((3, 4), low=low, high=high))
    unary_public(op, *names)
    return op


def binary(
    name: str, np_function: Callable[..., Any], grads: tuple[Callable[..., Any], Callable[..., Any]] | None = None, result: str = "same",
    low: float = -2.0, high: float = 2.0, function: Callable[..., Expr] | None = None, refuse: Refusal | None = None,
    check: Check | None = None,
) -> Op:
    """Enter a two-input operator."""
    return pointwise(
        name, ("a", "b"), np_function, function, result=result, vjp=dict(zip("ab", grads, strict=True)) if grads else None,
        samples=draw((3, 4), (4,), low=low, high=high), refuse=refuse, check=check,
    )


# ------------------------------------------------------------------------------------------------ arithmetic

add_ = binary("add", np.add, (lambda g: g, lambda g: g))


def _no_truth_values(name: str, specs: Sequence[Spec], common: dtypes.dtype) -> None:
    """PyTorch subtracts no booleans, not even from numbers."""
    if common is dtypes.bool_:
        raise RuntimeError(
            f"{name}: got dtype bool; expected a number dtype\nhelp: Subtraction, the `-` operator, with two bool tensors is not supported. "
            "Use the `^` or `logical_xor()` operator instead."
        )
    if any(s.dtype is dtypes.bool_ for s in specs):
        raise RuntimeError(
            f"{name}: Subtraction, the `-` operator, with a bool tensor is not supported. "
            "If you are trying to invert a mask, use the `~` or `logical_not()` operator instead."
        )


def _no_sign(name: str, specs: Sequence[Spec], common: dtypes.dtype) -> None:
    if common is dtypes.bool_:
        raise RuntimeError(f"{name}: got dtype bool; expected a number dtype\nhelp: convert with .to(torchlet.int64) or use logical operators")


def _no_bool(name: str, specs: Sequence[Spec], common: dtypes.dtype) -> None:
    if common is dtypes.bool_:
        raise NotImplementedError(f'{name}: "{name}_cpu" not implemented for bool')


def _no_float(name: str, specs: Sequence[Spec], common: dtypes.dtype) -> None:
    if common.has_gradient:
        raise NotImplementedError(f'{name}: "{name}_cpu" not implemented for {common.name}')


def _no_shift(name: str, specs: Sequence[Spec], common: dtypes.dtype) -> None:
    _no_bool(name, specs, common)
    _no_float(name, specs, common)


NO_BOOL, WHOLE = Refusal("b", _no_bool), Refusal("fcV", _no_float)
sub_ = binary("sub", np.subtract, (lambda g: g, lambda g: -g), refuse=Refusal("b", _no_truth_values))
mul_ = binary("mul", np.multiply, (lambda g, b: g * b, lambda g, a: g * a))
div_ = binary("div", np.divide, (lambda g, b: g / b, lambda g, out, b: -g * out / b), result="float", low=0.5)


def _floor_divide(a: Any, b: Any) -> Any:
    return np.floor_divide(a, b) if np.asarray(a).dtype.kind == "f" else np.floor_divide(a, _nonzero(b))


def _not_negative(b: Any) -> None:
    if np.any(np.asarray(b) < 0):
        raise RuntimeError("pow: Integers to negative integer powers are not allowed.")


def _nonzero(b: Any) -> Any:
    if np.any(np.asarray(b) == 0):
        raise RuntimeError("ZeroDivisionError")
    return b


def _whole(specs: Sequence[Any], attrs: tuple[Any, ...]) -> tuple[int, ...]:
    """Integers alone can be divided by 0: the divisor decides."""
    return () if any(s.dtype.is_floating_point or s.dtype.is_complex for s in specs) else (1,)


_DIVIDES = Check(_whole, lambda values, attrs: None if isinstance(values[1], Spec) else _nonzero(values[1]))
floor_divide_ = binary("floor_divide", _floor_divide, result="same", low=0.5, function=lambda a, b: call("floordiv", a, b), check=_DIVIDES, refuse=NO_BOOL)
remainder_ = binary(
    "remainder", lambda a, b: np.remainder(a, b if np.asarray(b).dtype.kind not in "biu" else _nonzero(b)),
    (lambda g: g, lambda g, a, b: -g * floor_divide(a, b)), low=0.5, function=lambda a, b: call("mod", a, b),
    check=_DIVIDES, refuse=NO_BOOL,
)
fmod_ = binary("fmod", np.fmod, (lambda g: g, lambda g, a, b: -g * trunc(a / b)), low=0.5)
maximum_ = binary("maximum", np.maximum, (lambda g, a, b: g * _share(a, b, ge), lambda g, a, b: g * _share(b, a, ge)))
minimum_ = binary("minimum", np.minimum, (lambda g, a, b: g * _share(a, b, le), lambda g, a, b: g * _share(b, a, le)))


def _exponent_grad(g: Any, a: Any, b: Any, out: Any) -> Any:
    """g out log(a); at a = 0 the power is flat for positive exponents."""
    if not isinstance(a, Tensor):
        return g * out * (math.log(a) if a > 0 else math.nan if a < 0 else 0.0)
    return where(b > 0, where(a.eq(0), 0.0, g * out * log(where(a.eq(0), 1.0, a))), g * out * log(a))


pow_ = binary(
    "pow", np.power,
    (lambda g, a, b: g * b * apply(pow_, (a, b - 1)), _exponent_grad),
    low=0.5, check=Check(_whole, lambda values, attrs: None if isinstance(values[1], Spec) else _not_negative(values[1])), refuse=NO_BOOL,
)
atan2_ = binary("atan2", np.arctan2, (lambda g, a, b: g * b / (a * a + b * b), lambda g, a, b: -g * a / (a * a + b * b)), result="float", low=0.5)
binary_public(floor_divide_)
remainder = binary_public(remainder_)
binary_public(fmod_)
maximum = binary_public(maximum_, inplace_too=False)
minimum = binary_public(minimum_, inplace_too=False)
binary_public(atan2_, "atan2", "arctan2")
floor_divide = binary_public(floor_divide_)


def _share(a: Any, b: Any, compare: Callable[[Any, Any], Tensor]) -> Tensor:
    """1 where `a` wins, ½ where the two are equal."""
    return where(eq(a, b), 0.5, cast(compare(a, b), a.dtype if isinstance(a, Tensor) else b.dtype))


def _scaled(op: Op, a: Any, b: Any, alpha: Any) -> tuple[Any, Any]:
    return operand(a, op.name), operand(b, op.name) if alpha == 1 else operand(b, op.name) * alpha


@public()
def add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input + alpha * other, with broadcasting and type promotion."""
    return apply(add_, _scaled(add_, input, other, alpha))


@public("sub", "subtract")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input - alpha * other, with broadcasting and type promotion."""
    return apply(sub_, _scaled(sub_, input, other, alpha))


@public("rsub")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """other - alpha * input."""
    return sub(other, input, alpha=alpha)


@public("add_", function=False)
def add_inplace(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """self += alpha * other."""
    return inplace(add_, self, _scaled(add_, self, other, alpha))


@public("sub_", "subtract_", function=False)
def sub_inplace(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """self -= alpha * other."""
    return inplace(sub_, self, _scaled(sub_, self, other, alpha))


mul = binary_public(mul_, "mul", "multiply")


@public("div", "divide", "true_divide")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """input / other; `rounding_mode` "floor" or "trunc" rounds the quotient and keeps integers."""
    a, b = operand(input, "div"), operand(other, "div")
    if rounding_mode is None:
        return apply(div_, (a, b))
    if rounding_mode == "floor":
        return apply(floor_divide_, (a, b))
    if rounding_mode == "trunc":
        whole = not any((x.dtype.is_floating_point if isinstance(x, Tensor) else isinstance(x, float)) for x in (a, b))
        out = trunc(apply(div_, (a, b)))
        return cast(out, (a if isinstance(a, Tensor) else b).dtype) if whole else out
    raise RuntimeError(f"div: rounding_mode '{rounding_mode}'; expected None, 'trunc' or 'floor'")


@public("div_", "divide_", function=False)
def div_inplace(self: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """self /= other."""
    op = {None: div_, "floor": floor_divide_}.get(rounding_mode)
    return inplace(op, self, (self, operand(other, "div"))) if op else in_place(div)(self, other, rounding_mode=rounding_mode)


def _power_expr(x: Expr, exponent: float) -> Expr:
    known: dict[float, Callable[[], Expr]] = {
        0.0: lambda: const(1, x.dtype), 1.0: lambda: x, 2.0: lambda: x * x, 3.0: lambda: x * x * x, 4.0: lambda: (x * x) * (x * x),
    }
    if x.dtype.is_floating_point:
        known |= {0.5: lambda: call("sqrt", x), -0.5: lambda: call("rsqrt", x), -1.0: lambda: 1 / x, -2.0: lambda: 1 / (x * x)}
    make = known.get(float(exponent))
    return make() if make else call("pow", x, const(exponent, x.dtype))


def _power_np(x: Any, exponent: float) -> Any:
    if exponent == 2:
        return np.multiply(x, x)
    return np.power(x, x.dtype.type(exponent))


def _power_grad(g: Any, x: Any, exponent: float) -> Any:
    if exponent == 0:
        return g * 0.0
    return g * exponent if exponent == 1 else g * (pow_number(x, exponent - 1) * exponent)


pow_number_ = pointwise("pow_number", ("x",), _power_np, _power_expr, attrs=("exponent",), vjp={"x": _power_grad},
                        samples=lambda: [((_rng.uniform(0.5, 2, (3, 4)),), (e,)) for e in (2, 3, 0.5, -1, 2.5)])


def pow_number(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for a plain number, which is part of the program (a new exponent is a new path)."""
    if not x.dtype.has_gradient:
        if isinstance(exponent, float):
            x = cast(x, dtypes.get_default_dtype())
        elif exponent < 0:
            raise RuntimeError("pow: Integers to negative integer powers are not allowed.")
        elif x.dtype is dtypes.bool_:
            x = cast(x, dtypes.int64)
    return apply(pow_number_, (x,), (exponent,))


@public("pow", "float_power")
def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent, elementwise."""
    exponent = operand(exponent, "pow")
    if isinstance(exponent, Tensor):
        return apply(pow_, (operand(input, "pow"), exponent))
    return pow_number(as_tensor_like(input, "pow"), exponent)


METHODS["__pow__"] = pow
METHODS["__rpow__"] = lambda self, other: apply(pow_, (other, self))
METHODS["pow_"] = lambda self, exponent: inplace(pow_, self, (self, operand(exponent, "pow")))
METHODS["__ipow__"] = METHODS["pow_"]

for _name, _op in {"add": add_, "sub": sub_, "mul": mul_, "truediv": div_, "floordiv": floor_divide_, "mod": remainder_}.items():
    dunder(f"__{_name}__", _op)
    dunder(f"__r{_name}__", _op, reflected=True)
    inplace_dunder(f"__i{_name}__", _op)

# ------------------------------------------------------------------------------------------------ comparison, logic

_np: Any
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
for _name, _np in COMPARE.items():
    _op = binary(_name, _np, result="bool")
    _synonym = {"eq": (), "ne": ("not_equal",), "lt": ("less",), "le": ("less_equal",), "gt": ("greater",), "ge": ("greater_equal",)}[_name]
    globals()[_name] = binary_public(_op, _name, *_synonym, inplace_too=False)
    dunder(f"__{_name}__", _op)
eq: Callable[[Any, Any], Tensor]
le: Callable[[Any, Any], Tensor]
ge: Callable[[Any, Any], Tensor]


def _bits(name: str, np_function: Any, expr_name: str, refuse: Refusal) -> Op:
    return pointwise(
        name, ("a", "b"), np_function, lambda a, b: call(expr_name, a, b), refuse=refuse,
        samples=lambda: [((_rng.integers(0, 9, (3, 4)), _rng.integers(0, 9, (4,))), ())],
    )


and_ = _bits("bitwise_and", np.bitwise_and, "and", WHOLE)
or_ = _bits("bitwise_or", np.bitwise_or, "or", WHOLE)
xor_ = _bits("bitwise_xor", np.bitwise_xor, "xor", WHOLE)
lshift_ = _bits("bitwise_left_shift", np.left_shift, "lshift", Refusal("bfcV", _no_shift))
rshift_ = _bits("bitwise_right_shift", np.right_shift, "rshift", Refusal("bfcV", _no_shift))
for _name, _op in {"and": and_, "or": or_, "xor": xor_, "lshift": lshift_, "rshift": rshift_}.items():
    binary_public(_op)
    dunder(f"__{_name}__", _op)
    dunder(f"__r{_name}__", _op, reflected=True)
    inplace_dunder(f"__i{_name}__", _op)


def _truth(x: Expr) -> Expr:
    return x if x.dtype is dtypes.bool_ else call("ne", x, 0)


for _name, _np, _expr in (("logical_and", np.logical_and, "and"), ("logical_or", np.logical_or, "or"), ("logical_xor", np.logical_xor, "xor")):
    binary_public(binary(_name, _np, result="bool", function=lambda a, b, e=_expr: call(e, _truth(a), _truth(b))))
logical_not = unary_public(pointwise("logical_not", ("x",), np.logical_not, lambda x: ~_truth(x), result="bool", samples=draw((3, 4))))


def _inverts(name: str, specs: Sequence[Spec], common: dtypes.dtype) -> None:
    if common.has_gradient:
        raise TypeError(f"{name}: ~ (operator.invert) is only implemented on integer and Boolean-type tensors; got {common.name}")


bitwise_not = unary_public(
    pointwise("bitwise_not", ("x",), np.invert, lambda x: ~x if x.dtype is dtypes.bool_ else call("sub", const(-1, x.dtype), x),
              samples=lambda: [((_rng.integers(0, 9, (3, 4)),), ())], refuse=Refusal("fcV", _inverts))
)
METHODS["__invert__"] = bitwise_not

where_ = pointwise(
    "where", ("condition", "a", "b"), np.where, lambda c, a, b: select(_truth(c), a, b), selects=1,
    vjp={"a": lambda g, condition: where(condition, g, 0.0), "b": lambda g, condition: where(condition, 0.0, g)},
    samples=lambda: [((_rng.random((3, 4)) > 0.5, _rng.standard_normal((3, 4)), _rng.standard_normal((4,))), ())],
)

# ------------------------------------------------------------------------------------------------ mathematics

neg_ = pointwise("neg", ("x",), np.negative, vjp={"x": lambda g: -g}, samples=draw((3, 4)), refuse=Refusal("b", _no_sign))
neg = unary_public(neg_, "neg", "negative")
applies("__neg__", neg, neg_, 1)
METHODS["__pos__"] = lambda self: self
abs_ = unary("abs", np.abs, grad=lambda g, x: g * sign(x), result="same", names=("abs", "absolute"))
METHODS["__abs__"] = METHODS["abs"]

def _sign_np(x: Any) -> Any:
    """np.sign with PyTorch's answer for NaN, which is 0."""
    if x.dtype.kind == "b":
        return x.copy()
    if x.dtype.kind == "c":
        size = np.abs(x)
        return np.where(size == 0, 0, x / np.where(size == 0, 1, size)).astype(x.dtype)
    return np.where(np.isnan(x), x.dtype.type(0), np.sign(x)) if x.dtype.kind == "f" else np.sign(x)


unary("sign", _sign_np, grad=lambda g: g * 0.0, result="same", names=("sign", "sgn"))
sign: Callable[[Tensor], Tensor] = METHODS["sign"]
square_ = unary("square", lambda x: np.multiply(x, x), lambda x: x * x, lambda g, x: g * (2 * x), result="same")
unary("exp", np.exp, grad=lambda g, out: g * out)
unary("exp2", np.exp2, lambda x: call("exp", x * math.log(2)), lambda g, out: g * out * math.log(2))
unary("expm1", np.expm1, grad=lambda g, out: g * (out + 1))
unary("log", np.log, grad=lambda g, x: g / x, low=0.3)
log: Callable[[Any], Tensor] = METHODS["log"]
unary("log2", np.log2, grad=lambda g, x: g / (x * math.log(2)), low=0.3)
unary("log10", np.log10, lambda x: call("log", x) * (1 / math.log(10)), lambda g, x: g / (x * math.log(10)), low=0.3)
unary("log1p", np.log1p, grad=lambda g, x: g / (x + 1), low=-0.5)
unary("sqrt", np.sqrt, grad=lambda g, out: g / (2 * out), low=0.3)
unary("rsqrt", lambda x: 1 / np.sqrt(x), grad=lambda g, out: -0.5 * g * out * out * out, low=0.3)
unary("reciprocal", lambda x: 1 / x, lambda x: 1 / x, lambda g, out: -g * out * out, low=0.3)
unary("sin", np.sin, grad=lambda g, x: g * x.cos())
unary("cos", np.cos, grad=lambda g, x: -g * x.sin())
unary("tan", np.tan, grad=lambda g, out: g * (out * out + 1), low=-1, high=1)
unary("asin", np.arcsin, grad=lambda g, x: g * (1 - x * x).rsqrt(), low=-0.8, high=0.8, names=("asin", "arcsin"))
unary("acos", np.arccos, grad=lambda g, x: -g * (1 - x * x).rsqrt(), low=-0.8, high=0.8, names=("acos", "arccos"))
unary("atan", np.arctan, grad=lambda g, x: g / (x * x + 1), names=("atan", "arctan"))
unary("sinh", np.sinh, grad=lambda g, x: g * x.cosh())
unary("cosh", np.cosh, grad=lambda g, x: g * x.sinh())
unary("tanh", np.tanh, grad=lambda g, out: g * (1 - out * out))
_erf_scalar = np.frompyfunc(math.erf, 1, 1)


def erf_np(x: Any) -> Any:
    """NumPy has no erf: math.erf element by element (eager only; compiled code has its own)."""
    return np.asarray(_erf_scalar(x)).astype(x.dtype)


unary("erf", erf_np, grad=lambda g, x: g * (2 / math.sqrt(math.pi)) * (-(x * x)).exp())
unary("sigmoid", lambda x: 1 / (1 + np.exp(-x)), grad=lambda g, out: g * out * (1 - out))
for _name, _np in {"floor": np.floor, "ceil": np.ceil, "round": np.round, "trunc": np.trunc}.items():
    unary(_name, _np, lambda x, n=_name: call(n, x) if x.dtype.is_floating_point else x, lambda g: g * 0.0, result="same", names=("trunc", "fix") if _name == "trunc" else ())
trunc: Callable[[Tensor], Tensor] = METHODS["trunc"]
unary("isnan", np.isnan, lambda x: call("isnan", x) if x.dtype.is_floating_point else const(False, dtypes.bool_), result="bool")
unary("isinf", np.isinf, lambda x: call("isinf", x) if x.dtype.is_floating_point else const(False, dtypes.bool_), result="bool")
unary("isfinite", np.isfinite, lambda x: ~(call("isnan", x) | call("isinf", x)) if x.dtype.is_floating_point else const(True, dtypes.bool_), result="bool")

# ------------------------------------------------------------------------------------------------ activations

relu_ = unary("relu", lambda x: np.maximum(x, x.dtype.type(0)), lambda x: call("maximum", x, 0), lambda g, out: where(out > 0, g, 0.0), result="same")
SQRT_HALF, SQRT_2_OVER_PI, INV_SQRT_2PI = math.sqrt(0.5), math.sqrt(2 / math.pi), 1 / math.sqrt(2 * math.pi)


def _gelu_np(x: Any, approximate: str) -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf_np(np.asarray(x * SQRT_HALF, x.dtype)))


def _gelu_expr(x: Expr, approximate: str) -> Expr:
    inner = call("tanh", SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)) if approximate == "tanh" else call("erf", x * SQRT_HALF)
    return 0.5 * x * (1 + inner)


def _gelu_grad(g: Tensor, x: Tensor, approximate: str) -> Tensor:
    if approximate == "tanh":
        t = (SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh()
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)))
    return g * (0.5 * (1 + (x * SQRT_HALF).erf()) + x * (x * x * -0.5).exp() * INV_SQRT_2PI)


gelu_ = pointwise("gelu", ("x",), _gelu_np, _gelu_expr, result="float", attrs=("approximate",), vjp={"x": _gelu_grad},
                  samples=lambda: [((_rng.standard_normal((3, 4)),), (a,)) for a in ("none", "tanh")])


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit x·Φ(x) (Hendrycks & Gimpel 2016); `approximate` is "none" (erf) or "tanh"."""
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"gelu: approximate '{approximate}'; expected 'none' or 'tanh'")
    return apply(gelu_, (input,), (approximate,))


def _sigmoid(x: Expr) -> Expr:
    return call("sigmoid", x)


def _soft(x: Expr) -> Expr:  # log(1 + exp(x)) without overflow
    return call("maximum", x, 0) + call("log1p", call("exp", -call("abs", x)))


silu_ = unary("silu", lambda x: x / (1 + np.exp(-x)), lambda x: x * _sigmoid(x), lambda g, x: g * (x.sigmoid() * (1 + x * (1 - x.sigmoid()))))
unary("logsigmoid", lambda x: -np.logaddexp(0, -x), lambda x: -_soft(-x), lambda g, x: g * (-x).sigmoid())
mish_ = unary("mish", lambda x: x * np.tanh(np.logaddexp(0, x)), lambda x: x * call("tanh", _soft(x)),
              lambda g, x: g * (softplus(x).tanh() + x * x.sigmoid() * (1 - softplus(x).tanh() * softplus(x).tanh())))
unary("relu6", lambda x: np.clip(x, 0, 6), lambda x: call("minimum", call("maximum", x, 0), 6), lambda g, x: where((x > 0) & (x < 6), g, 0.0), result="same")

leaky_relu_ = pointwise(
    "leaky_relu", ("x", "slope"), lambda x, s: np.where(x > 0, x, x * s), lambda x, s: select(x > 0, x, x * s),
    vjp={"x": lambda g, x, slope: where(x > 0, g, g * slope)}, samples=lambda: [((_rng.standard_normal((3, 4)), 0.1), ())],
)
elu_ = pointwise(
    "elu", ("x", "alpha"), lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), lambda x, a: select(x > 0, x, a * call("expm1", call("minimum", x, 0))),
    vjp={"x": lambda g, x, alpha: where(x > 0, g, g * alpha * minimum(x, 0.0).exp())}, result="float", samples=lambda: [((_rng.standard_normal((3, 4)), 0.7), ())],
)
softplus_ = pointwise(
    "softplus", ("x", "beta", "threshold"), lambda x, b, t: np.where(x * b > t, x, np.logaddexp(0, x * b) / b),
    lambda x, b, t: select(x * b > t, x, _soft(x * b) / b), vjp={"x": lambda g, x, beta, threshold: where(x * beta > threshold, g, g * (x * beta).sigmoid())},
    result="float", samples=lambda: [((_rng.standard_normal((3, 4)), 1.0, 20.0), ())],
)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    return apply(leaky_relu_, (input, negative_slope))


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015)."""
    return apply(elu_, (input, alpha))


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, linear where beta x > threshold."""
    return apply(softplus_, (input, float(beta), float(threshold)))


# ------------------------------------------------------------------------------------------------ selection, limits, casts


@public()
def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """`input` where `condition` is true, else `other`; with one argument, the indices where it is true (as a tuple)."""
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    return apply(where_, (condition, operand(input, "where"), operand(other, "where")))


METHODS["where"] = lambda self, condition, other: where(condition, self, other)


@public("clamp", "clip")
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Limit to [min, max]; either may be None, a number or a tensor. Raises RuntimeError when both are None."""
    if min is None and max is None:
        raise RuntimeError("clamp: at least one of 'min' or 'max' must not be None")
    out = input
    if min is not None:
        out = apply(clamp_min_, (out, operand(min, "clamp")))
    if max is not None:
        out = apply(clamp_max_, (out, operand(max, "clamp")))
    return out


clamp_min_ = binary("clamp_min", np.maximum, (lambda g, a, b: where(a >= b, g, 0.0), lambda g, a, b: where(a < b, g, 0.0)), function=lambda a, b: call("maximum", a, b))
clamp_max_ = binary("clamp_max", np.minimum, (lambda g, a, b: where(a <= b, g, 0.0), lambda g, a, b: where(a > b, g, 0.0)), function=lambda a, b: call("minimum", a, b))
binary_public(clamp_min_)
binary_public(clamp_max_)


@public("clamp_", "clip_", function=False)
def clamp_inplace(self: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Limit self to [min, max] in place."""
    if min is not None:
        inplace(clamp_min_, self, (self, operand(min, "clamp_")))
    if max is not None:
        inplace(clamp_max_, self, (self, operand(max, "clamp_")))
    return self


def _cast_np(x: Any, dtype: dtypes.dtype) -> Any:
    x = np.asarray(x)
    if x.dtype.kind == "c" and not dtype.is_complex and dtype is not dtypes.bool_:
        x = x.real
    return x.astype(dtype.np)


cast_ = define(
    "cast", ("x",), _cast_np, lambda x, dtype: Spec(x.shape, dtype, x.device), Pointwise(lambda x, dtype: cast_expr(x, dtype), "cast"), ("dtype",),
    vjp={"x": lambda g, x_spec: cast(g, x_spec.dtype)}, samples=lambda: [((_rng.standard_normal((3, 4)),), (d,)) for d in (dtypes.float32, dtypes.float16, dtypes.int64)], keeps_order=True,
)
clone_ = define(
    "clone", ("x",), lambda x: np.array(x, copy=True, order="C"), lambda x: x, Pointwise(lambda x: x, "same"),
    vjp={"x": lambda g: g}, samples=draw((3, 4)), doc="A copy in fresh, contiguous memory.",
)
clone_in_order_ = define(
    "clone_in_order", ("x",), lambda x: np.array(x, copy=True, order="K"), lambda x: x, Pointwise(lambda x: x, "same"),
    vjp={"x": lambda g: g}, samples=draw((3, 4)), doc="A copy in fresh memory, in the same memory order.", keeps_order=True,
)


def cast(x: Tensor, dtype: dtypes.dtype) -> Tensor:
    """`x` with another element type; `x` itself if it has it."""
    return x if x._meta.dtype is dtype else apply(cast_, (x,), (dtype,))


# ------------------------------------------------------------------------------------------------ three operands


def _three() -> list[Any]:
    return [((_rng.standard_normal((3, 4)), _rng.standard_normal((4,)), _rng.uniform(0.5, 2, (3, 1)), 0.7), ())]


addcmul_ = pointwise(
    "addcmul", ("x", "a", "b", "value"), lambda x, a, b, value: x + a * b * value, lambda x, a, b, value: x + a * b * value, samples=_three,
    vjp={"x": lambda g: g, "a": lambda g, b, value: g * b * value, "b": lambda g, a, value: g * a * value}, doc="x + value * a * b",
)
addcdiv_ = pointwise(
    "addcdiv", ("x", "a", "b", "value"), lambda x, a, b, value: x + a / b * value, lambda x, a, b, value: x + a / b * value, samples=_three, result="float",
    vjp={"x": lambda g: g, "a": lambda g, b, value: g / b * value, "b": lambda g, a, b, value: -g * a / (b * b) * value}, doc="x + value * a / b",
)
lerp_ = pointwise(
    "lerp", ("x", "end", "weight"), lambda x, end, weight: x + weight * (end - x), lambda x, end, weight: x + weight * (end - x),
    vjp={"x": lambda g, weight: g * (1 - weight), "end": lambda g, weight: g * weight, "weight": lambda g, x, end: g * (end - x)},
    samples=lambda: [((_rng.standard_normal((3, 4)), _rng.standard_normal((4,)), w), ()) for w in (0.3, _rng.uniform(0, 1, (3, 1)))], doc="x + weight * (end - x)",
)


@public()
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value * tensor1 * tensor2."""
    return apply(addcmul_, (input, tensor1, tensor2, value))


@public()
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value * tensor1 / tensor2."""
    return apply(addcdiv_, (input, tensor1, tensor2, value))


@public()
def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """input + weight * (end - input); the weight is a number or a tensor."""
    return apply(lerp_, (input, end, operand(weight, "lerp")))


METHODS["addcmul_"] = lambda self, tensor1, tensor2, *, value=1: inplace(addcmul_, self, (self, tensor1, tensor2, value))
METHODS["addcdiv_"] = lambda self, tensor1, tensor2, *, value=1: inplace(addcdiv_, self, (self, tensor1, tensor2, value))
METHODS["lerp_"] = lambda self, end, weight: inplace(lerp_, self, (self, end, operand(weight, "lerp_")))

# ------------------------------------------------------------------------------------------------ made of the above


@public()
def frac(input: Tensor) -> Tensor:
    """input - trunc(input)."""
    return input - trunc(input)


@public()
def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(exp(input) + exp(other)) without overflow."""
    high, low = maximum(input, other), minimum(input, other)
    return high + where(high.isinf(), 0.0, (low - where(high.isinf(), 0.0, high)).exp().log1p())


@public()
def nan_to_num(input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """NaN and infinities replaced by numbers; infinities by the largest finite ones unless given."""
    if not input.dtype.is_floating_point:
        return input.clone()
    largest = float(dtypes.finfo(input.dtype).max)
    out = where(input.isnan(), nan, input)
    out = where(out.eq(math.inf), largest if posinf is None else posinf, out)
    return where(out.eq(-math.inf), -largest if neginf is None else neginf, out)


@public()
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """True where an element occurs among the others (`invert`: where it does not); `assume_unique` makes no difference here."""
    if not isinstance(elements, Tensor):
        found = eq(test_elements, elements).any()
    elif not isinstance(test_elements, Tensor):
        found = eq(elements, test_elements)
    else:
        found = eq(elements.unsqueeze(-1), test_elements.reshape(-1)).any(-1)
    return logical_not(found) if invert else found
