"""Operators that combine elements along dimensions: sums, products, extrema, means, variances, norms."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import Composite, Op, Reduce, apply, define
from torchlet.ops.pointwise import cast, where
from torchlet.ops.public import METHODS, Draws, as_tensor_like, public
from torchlet.ops.view import expand, unsqueeze_dims
from torchlet.spec import Spec, normalize_dim, normalize_dims
from torchlet.tensor import Tensor

Dims = int | Sequence[int] | None
_rng = Draws(1)


def reduced_shape(shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """The shape after reducing `dims`."""
    return tuple(1 if i in dims else n for i, n in enumerate(shape) if keepdim or i not in dims)


def _samples(low: float = -2.0, high: float = 2.0) -> Callable[[], list[Any]]:
    return lambda: [
        ((_rng.uniform(low, high, (3, 4, 5)),), (dims, keep)) for dims, keep in (((2,), False), ((0,), True), ((0, 1, 2), False), ((0, 2), False))
    ]


def restore(g: Tensor, x_spec: Spec, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """A reduced value spread again over the dimensions it lost."""
    return expand(g if keepdim else unsqueeze_dims(g, dims), x_spec.shape)


def reduction(name: str, combine: str, np_function: Callable[..., Any], vjp: Callable[..., Any] | None, result: str, low: float = -2.0) -> Op:
    """Enter a reduction over (dims, keepdim). `result`: "sum" (integers become int64), "same", "bool", "index"."""

    def out_dtype(d: dtypes.dtype) -> dtypes.dtype:
        if result == "sum":
            return d if d.has_gradient else dtypes.int64
        return {"same": d, "bool": dtypes.bool_, "index": dtypes.int64}[result]

    def spec(x: Spec, dims: tuple[int, ...], keepdim: bool) -> Spec:
        if combine in ("max", "min", "argmax", "argmin") and builtins.any(x.shape[d] == 0 for d in dims):
            raise RuntimeError(f"{name}: Expected reduction dim to have non-zero size; input has shape {x.shape}, dim {dims}")
        return Spec(reduced_shape(x.shape, dims, keepdim), out_dtype(x.dtype), x.device)

    def eager(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.asarray(np_function(x, dims, keepdim)).astype(out_dtype(dtypes.from_numpy(x.dtype)).np, copy=False)

    return define(name, ("x",), eager, spec, Reduce(combine), ("dims", "keepdim"), {"x": vjp} if vjp else None, _samples(low))


def _wide(x: Any) -> Any:
    """16-bit floats are summed in float32."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


def _total(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
    kind: Any = None if x.dtype.kind not in "biu" else np.int64
    total: Any = np.add.reduce  # NumPy's stub knows no `keepdims` that is a variable
    return total(_wide(x), axis=dims, keepdims=keepdim, dtype=kind)


sum_ = reduction("sum", "sum", _total, lambda g, x_spec, dims, keepdim: restore(g, x_spec, dims, keepdim), "sum")


def _arg(np_function: Any) -> Callable[..., Any]:
    def f(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        order = [i for i in range(x.ndim) if i not in dims] + list(dims)
        flat = x.transpose(order).reshape([x.shape[i] for i in order[: x.ndim - len(dims)]] + [_count(x.shape, dims)])
        return np_function(flat, axis=-1).reshape(reduced_shape(x.shape, dims, keepdim))

    return f


def _spread_extremum(g: Tensor, x: Tensor, out: Tensor, x_spec: Spec, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    hit = cast(x.eq(restore(out, x_spec, dims, keepdim)), x_spec.dtype)  # equal maxima share the gradient
    return hit * restore(g / apply(sum_, (hit,), (dims, keepdim)), x_spec, dims, keepdim)


amax_ = reduction("amax", "max", lambda x, d, k: np.maximum.reduce(x, axis=d, keepdims=k), _spread_extremum, "same")
amin_ = reduction("amin", "min", lambda x, d, k: np.minimum.reduce(x, axis=d, keepdims=k), _spread_extremum, "same")
argmax_ = reduction("argmax", "argmax", _arg(np.argmax), None, "index")
argmin_ = reduction("argmin", "argmin", _arg(np.argmin), None, "index")
any_ = reduction("any", "any", lambda x, d, k: np.any(x, axis=d, keepdims=k), None, "bool")
all_ = reduction("all", "all", lambda x, d, k: np.all(x, axis=d, keepdims=k), None, "bool")
def _prod_grad(g: Tensor, x: Tensor, x_spec: Spec, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """out / x; where exactly one factor is 0, its gradient is the product of the others, and the others' is 0."""
    zero = x.eq(0)
    filled = where(zero, 1.0, x)
    others = restore(apply(prod_, (filled,), (dims, keepdim)), x_spec, dims, keepdim)
    zeros = restore(apply(sum_, (zero,), (dims, keepdim)), x_spec, dims, keepdim)
    each = where(zeros.eq(0), others / filled, where(zero & zeros.eq(1), others, 0.0))
    return each * restore(g, x_spec, dims, keepdim)


prod_ = reduction(
    "prod", "prod", lambda x, d, k: np.multiply.reduce(_wide(x), axis=d, keepdims=k, dtype=None if x.dtype.kind not in "biu" else np.int64),
    _prod_grad, "sum", low=0.5,
)


def _sum_to_np(x: Any, shape: tuple[int, ...]) -> Any:
    lead = x.ndim - len(shape)
    dims = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1)
    return np.add.reduce(_wide(x), axis=dims, keepdims=True).reshape(shape).astype(x.dtype, copy=False)


def _sum_to_body(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    lead = x.ndim - len(shape)
    inner = tuple(i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1)
    out = apply(sum_, (x,), (inner, True)) if inner else x
    return apply(sum_, (out,), (tuple(range(lead)), False)) if lead else out


define(
    "sum_to", ("x",), _sum_to_np, lambda x, shape: Spec(shape, x.dtype, x.device), Composite(_sum_to_body), ("shape",),
    {"x": lambda g, x_spec: expand(g, x_spec.shape)}, lambda: [((_rng.standard_normal((3, 4, 5)),), (s,)) for s in ((4, 5), (4, 1), (1, 1, 5), ())],
    doc="Sum over the dimensions along which `shape` was broadcast.",
)


def _count(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return math.prod(shape[d] for d in dims)


def _float_only(name: str, x: Any) -> None:
    if not x.dtype.has_gradient:
        raise RuntimeError(f"{name}: could not infer output dtype. Input dtype must be a floating point dtype. Got: {x.dtype.name}")


def _mean_spec(x: Spec, dims: tuple[int, ...], keepdim: bool) -> Spec:
    _float_only("mean", x)
    return Spec(reduced_shape(x.shape, dims, keepdim), x.dtype, x.device)


def _mean_np(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
    if x.dtype.kind in "biu":
        raise TypeError("not a floating-point dtype")
    n = _count(x.shape, dims)
    return np.asarray(np.divide(_total(x, dims, keepdim), n if n else np.nan)).astype(x.dtype, copy=False)


mean_ = define(
    "mean", ("x",), _mean_np, _mean_spec,
    Composite(lambda x, dims, keepdim: apply(sum_, (x,), (dims, keepdim)) / float(_count(x.shape, dims) or math.nan)), ("dims", "keepdim"),
    {"x": lambda g, x_spec, dims, keepdim: restore(g / float(_count(x_spec.shape, dims) or math.nan), x_spec, dims, keepdim)}, _samples(),
)


def _var_body(x: Tensor, dims: tuple[int, ...], correction: float, keepdim: bool) -> Tensor:
    d = x - apply(mean_, (x,), (dims, True))
    return apply(sum_, (d * d,), (dims, keepdim)) / _divisor(x.shape, dims, correction)


def _divisor(shape: tuple[int, ...], dims: tuple[int, ...], correction: float) -> float:
    n = _count(shape, dims) - correction
    return float(n) if n > 0 else 0.0 if n == 0 else math.nan


def _var_np(x: Any, dims: tuple[int, ...], correction: float, keepdim: bool) -> Any:
    d = _wide(x) - _mean_np(_wide(x), dims, True)
    total: Any = np.add.reduce(d * d, axis=dims, keepdims=keepdim)  # type: ignore[call-overload]
    return np.asarray(np.divide(total, _divisor(x.shape, dims, correction))).astype(x.dtype, copy=False)


var_ = define(
    "var", ("x",), _var_np, lambda x, dims, correction, keepdim: _mean_spec(x, dims, keepdim), Composite(_var_body), ("dims", "correction", "keepdim"),
    {"x": lambda g, x, x_spec, dims, correction, keepdim: restore(g * (2.0 / _divisor(x_spec.shape, dims, correction) if _divisor(x_spec.shape, dims, correction) else math.nan), x_spec, dims, keepdim) * (x - apply(mean_, (x,), (dims, True)))},
    lambda: [((_rng.standard_normal((3, 4, 5)),), (d, c, k)) for d, c, k in (((2,), 1, False), ((0, 1), 0, True))],
)

# ------------------------------------------------------------------------------------------------ public functions


@public()
def sum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtypes.dtype | None = None, axis: Dims = None, keepdims: bool = False) -> Tensor:
    """The sum over `dim` (an int, several, or None for all); integers and bools are summed in int64.

    Shape: (…) -> without `dim`, or with size 1 there if `keepdim`. Raises IndexError for a dimension out of range.
    """
    x = as_tensor_like(input, "sum")
    if dtype is not None:
        x = cast(x, dtype)
    out = apply(sum_, (x,), (normalize_dims("sum", dim if axis is None else axis, x.ndim), bool(keepdim or keepdims)))
    return out if dtype is None or out.dtype is dtype else cast(out, dtype)


@public()
def mean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtypes.dtype | None = None, axis: Dims = None, keepdims: bool = False) -> Tensor:
    """The mean over `dim`. Raises RuntimeError for integer or bool input without `dtype`."""
    x = as_tensor_like(input, "mean")
    if dtype is not None:
        x = cast(x, dtype)
    return apply(mean_, (x,), (normalize_dims("mean", dim if axis is None else axis, x.ndim), bool(keepdim or keepdims)))


def _correction(unbiased: Any, correction: Any) -> float:
    return correction if correction is not None else (1 if unbiased is None or unbiased else 0)


@public()
def var(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None) -> Tensor:
    """The variance over `dim`, divided by n - correction (1 by default: Bessel)."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if input.dtype.is_complex:  # the variances of the parts together
        return var(input.real, dim, unbiased, keepdim, correction=correction) + var(input.imag, dim, unbiased, keepdim, correction=correction)
    return apply(var_, (input,), (normalize_dims("var", dim, input.ndim), _correction(unbiased, correction), bool(keepdim)))


@public()
def std(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None) -> Tensor:
    """The standard deviation over `dim`: the square root of `var`."""
    return var(input, dim, unbiased, keepdim, correction=correction).sqrt()


@public()
def var_mean(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None) -> tuple[Tensor, Tensor]:
    """(variance, mean) over `dim`."""
    return var(input, dim, unbiased, keepdim, correction=correction), mean(input, None if isinstance(dim, bool) else dim, keepdim)


@public()
def std_mean(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None) -> tuple[Tensor, Tensor]:
    """(standard deviation, mean) over `dim`."""
    return std(input, dim, unbiased, keepdim, correction=correction), mean(input, None if isinstance(dim, bool) else dim, keepdim)


@public()
def amax(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The maximum over `dim`; equal maxima share the gradient evenly."""
    return apply(amax_, (input,), (normalize_dims("amax", dim, input.ndim), bool(keepdim)))


@public()
def amin(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The minimum over `dim`; equal minima share the gradient evenly."""
    return apply(amin_, (input,), (normalize_dims("amin", dim, input.ndim), bool(keepdim)))


def _one_dim(op: Op, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    dims = normalize_dims(op.name, dim, input.ndim) if dim is None else (normalize_dim(op.name, dim, input.ndim),) if input.ndim else ()
    return apply(op, (input,), (dims, bool(keepdim)))


@public()
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The int64 position of the first maximum along `dim`, or in the flattened tensor."""
    return _one_dim(argmax_, input, dim, keepdim)


@public()
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The int64 position of the first minimum along `dim`, or in the flattened tensor."""
    return _one_dim(argmin_, input, dim, keepdim)


@public()
def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """True where an element along `dim` is true."""
    out = apply(any_, (input,), (normalize_dims("any", dim, input.ndim), bool(keepdim)))
    return cast(out, input.dtype) if input.dtype is dtypes.uint8 else out  # PyTorch keeps this one dtype


@public()
def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """True where all elements along `dim` are true."""
    out = apply(all_, (input,), (normalize_dims("all", dim, input.ndim), bool(keepdim)))
    return cast(out, input.dtype) if input.dtype is dtypes.uint8 else out


@public()
def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: dtypes.dtype | None = None) -> Tensor:
    """The product over `dim`, or of all elements."""
    out = _one_dim(prod_, input if dtype is None else cast(input, dtype), dim, keepdim)
    return out if dtype is None or out.dtype is dtype else cast(out, dtype)


@public()
def norm(input: Tensor, p: Any = 2.0, dim: Dims = None, keepdim: bool = False, dtype: dtypes.dtype | None = None) -> Tensor:
    """The p-norm over `dim` (all dimensions by default): p a number, inf, -inf, 0, or "fro" for 2. The gradient at 0 is 0."""
    x = input if dtype is None else cast(input, dtype)
    _float_only("norm", x)
    if p == "nuc":
        return METHODS["svd"](x)[1].sum(-1, keepdim)  # type: ignore[no-any-return]
    x = x.abs() if x.dtype.is_complex else x
    p = 2.0 if p in ("fro", None) else float(p)
    if p == math.inf or p == -math.inf:
        return (amax if p > 0 else amin)(x.abs(), dim, keepdim)
    if p == 0:
        return sum(cast(x.ne(0), x.abs().dtype), dim, keepdim)
    if x.dtype.is_complex:
        x = x.abs()
    if p == 1:
        return sum(x.abs(), dim, keepdim)
    total = sum(x * x if p == 2 else x.abs() ** p, dim, keepdim)
    zero = total.eq(0)  # the root has no slope there; PyTorch gives 0
    filled = where(zero, 1.0, total)
    return where(zero, 0.0, filled.sqrt() if p == 2 else filled ** (1 / p))


@public()
def count_nonzero(input: Tensor, dim: Dims = None) -> Tensor:
    """How many elements are not 0, over `dim` or all."""
    return sum(input.ne(0), dim)


@public()
def nansum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtypes.dtype | None = None) -> Tensor:
    """`sum` with NaN as 0."""
    return sum(where(input.isnan(), 0.0, input) if input.dtype.has_gradient else input, dim, keepdim, dtype=dtype)


@public()
def nanmean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtypes.dtype | None = None) -> Tensor:
    """The mean of what is not NaN."""
    input = input if dtype is None else cast(input, dtype)
    _float_only("nanmean", input)
    return nansum(input, dim, keepdim) / cast(sum(~input.isnan(), dim, keepdim), input.dtype)
