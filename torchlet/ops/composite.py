"""Operators with a body in other operators, kept as one step because people think of them as one: softmax, norms, losses, dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import OPS, Check, Composite, apply, define
from torchlet.ops.create import arange_, default_generator, uniform_
from torchlet.ops.pointwise import cast, where
from torchlet.ops.public import Draws, public
from torchlet.ops.reduce import amax_, mean_, sum_
from torchlet.ops.view import reshape, unsqueeze_dims
from torchlet.spec import Spec, normalize_dim, normalize_dims
from torchlet.tensor import Tensor

_rng = Draws(4)


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _float(name: str, x: Any) -> None:
    if not x.dtype.is_floating_point:
        raise RuntimeError(f'"{name}" not implemented for {x.dtype.name}; expected a floating-point dtype')


def total(x: Tensor, dims: tuple[int, ...], keepdim: bool = True) -> Tensor:
    """Sum over normalised dimensions."""
    return apply(sum_, (x,), (dims, keepdim))


# ------------------------------------------------------------------------------------------------ softmax


def _float_spec(name: str) -> Any:
    def spec(x: Spec, dims: tuple[int, ...]) -> Spec:
        _float(name, x)
        return x

    return spec


def _softmax_np(x: Any, dims: tuple[int, ...]) -> Any:
    w = _wide(x)
    e = np.exp(w - w.max(axis=dims, keepdims=True, initial=-np.inf))
    return (e / e.sum(axis=dims, keepdims=True)).astype(x.dtype, copy=False)


def _log_softmax_np(x: Any, dims: tuple[int, ...]) -> Any:
    w = _wide(x)
    z = w - w.max(axis=dims, keepdims=True, initial=-np.inf)
    return (z - np.log(np.exp(z).sum(axis=dims, keepdims=True))).astype(x.dtype, copy=False)


def _logsumexp_np(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
    w = _wide(x)
    m = w.max(axis=dims, keepdims=True, initial=-np.inf)
    m = np.where(np.isfinite(m), m, 0).astype(w.dtype)
    out = np.log(np.exp(w - m).sum(axis=dims, keepdims=True)) + m
    return np.asarray(out if keepdim else out.squeeze(dims)).astype(x.dtype, copy=False)


def _softmax_body(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    w = cast(x, dtypes.float32) if x.dtype.itemsize == 2 else x
    e = (w - apply(amax_, (w,), (dims, True))).exp()
    return cast(e / total(e, dims), x.dtype)


def _log_softmax_body(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    w = cast(x, dtypes.float32) if x.dtype.itemsize == 2 else x
    z = w - apply(amax_, (w,), (dims, True))
    return cast(z - total(z.exp(), dims).log(), x.dtype)


def _logsumexp_body(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    w = cast(x, dtypes.float32) if x.dtype.itemsize == 2 else x
    if all(x.shape[d] for d in dims):
        m = apply(amax_, (w,), (dims, True))
        m = where(m.isinf(), 0.0, m)
        out = total((w - m).exp(), dims).log() + m
    else:
        out = total(w, dims).log()  # log 0
    out = out if keepdim else reshape(out, tuple(n for i, n in enumerate(x.shape) if i not in dims))
    return cast(out, x.dtype)


def _rows() -> list[Any]:
    return [((_rng.standard_normal((3, 4, 5)),), (d,)) for d in ((2,), (0,), (1,))]


softmax_ = define("softmax", ("x",), _softmax_np, _float_spec("softmax"), Composite(_softmax_body), ("dims",),
                  {"x": lambda g, out, dims: out * (g - total(g * out, dims))}, _rows)
log_softmax_ = define("log_softmax", ("x",), _log_softmax_np, _float_spec("log_softmax"), Composite(_log_softmax_body), ("dims",),
                      {"x": lambda g, out, dims: g - out.exp() * total(g, dims)}, _rows)


def _logsumexp_spec(x: Spec, dims: tuple[int, ...], keepdim: bool) -> Spec:
    _float("logsumexp", x)
    return Spec(tuple(1 if i in dims else n for i, n in enumerate(x.shape) if keepdim or i not in dims), x.dtype)


logsumexp_ = define(
    "logsumexp", ("x",), _logsumexp_np, _logsumexp_spec, Composite(_logsumexp_body), ("dims", "keepdim"),
    {"x": lambda g, x, out, dims, keepdim: (g if keepdim else unsqueeze_dims(g, dims)) * (x - (out if keepdim else unsqueeze_dims(out, dims))).exp()},
    lambda: [((_rng.standard_normal((3, 4, 5)),), (d, k)) for d, k in (((2,), False), ((0, 1), True))],
)


def _softmax_dim(name: str, x: Tensor, dim: int | None, dtype: Any) -> tuple[Tensor, tuple[int, ...]]:
    if dtype is not None:
        x = cast(x, dtype)
    ndim = len(x._meta.shape)
    if dim is None:  # PyTorch's legacy choice
        dim = 0 if ndim in (0, 1, 3) else 1
    return x, (normalize_dim(name, dim, ndim),) if ndim else ()


@public()
def softmax(input: Tensor, dim: int | None = None, dtype: Any = None, **_: Any) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`, computed without overflow. Shape kept."""
    if dtype is None and dim is not None and input._meta.shape:
        return apply(softmax_, (input,), ((normalize_dim("softmax", dim, len(input._meta.shape)),),))
    x, dims = _softmax_dim("softmax", input, dim, dtype)
    return apply(softmax_, (x,), (dims,))


@public()
def log_softmax(input: Tensor, dim: int | None = None, dtype: Any = None, **_: Any) -> Tensor:
    """log(softmax(x)) along `dim`, computed without overflow. Shape kept."""
    x, dims = _softmax_dim("log_softmax", input, dim, dtype)
    return apply(log_softmax_, (x,), (dims,))


@public()
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`, computed without overflow; integers in the default float dtype."""
    input = input if input.dtype.has_gradient else cast(input, dtypes.get_default_dtype())
    return apply(logsumexp_, (input,), (normalize_dims("logsumexp", dim, input.ndim), bool(keepdim)))


# ------------------------------------------------------------------------------------------------ normalisation


def _norm_spec(name: str) -> Any:
    def spec(x: Spec, *rest: Any) -> Spec:
        ndims = rest[-2]
        _float(name, x)
        for p in rest[:-2]:
            if p.shape != x.shape[x.ndim - ndims:]:
                raise RuntimeError(f"{name}: weight or bias of shape {p.shape}; expected the normalized shape {x.shape[x.ndim - ndims:]}")
        return x

    return spec


def _last(x: Any, ndims: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - ndims, x.ndim))


def _layer_norm_np(x: Any, *rest: Any) -> Any:
    *affine, ndims, eps = rest
    w = _wide(x)
    axes = _last(x, ndims)
    d = w - w.mean(axis=axes, keepdims=True)
    out = d / np.sqrt((d * d).mean(axis=axes, keepdims=True) + w.dtype.type(eps))
    for k, p in enumerate(affine):
        out = out * _wide(p) if k == 0 else out + _wide(p)
    return out.astype(x.dtype, copy=False)


def _standardize(x: Tensor, ndims: int, eps: float) -> tuple[Tensor, Tensor]:
    """(x̂, 1/σ) over the last `ndims` dimensions."""
    dims = _last(x, ndims)
    d = x - apply(mean_, (x,), (dims, True))
    r = (apply(mean_, (d * d,), (dims, True)) + eps).rsqrt()
    return d * r, r


def _layer_norm_body(x: Tensor, *affine: Tensor, ndims: int, eps: float) -> Tensor:
    w = cast(x, dtypes.float32) if x.dtype.itemsize == 2 else x
    out, _ = _standardize(w, ndims, eps)
    if affine:
        out = out * affine[0]
    if len(affine) > 1:
        out = out + affine[1]
    return cast(out, x.dtype)


def _layer_norm_grad(g: Tensor, x: Tensor, ndims: int, eps: float) -> Tensor:
    dims = _last(x, ndims)
    hat, r = _standardize(x, ndims, eps)
    return (g - apply(mean_, (g,), (dims, True)) - hat * apply(mean_, (g * hat,), (dims, True))) * r


def _norm_samples(affine: int) -> Any:
    return lambda: [((_rng.standard_normal((3, 4, 5)), *[_rng.standard_normal((4, 5)[2 - n:]) for _ in range(affine)]), (n, 1e-5)) for n in (1, 2)]


layer_norm_plain_ = define("layer_norm_plain", ("x",), _layer_norm_np, _norm_spec("layer_norm"), Composite(_layer_norm_body), ("ndims", "eps"), {"x": _layer_norm_grad}, _norm_samples(0))
_LN: dict[str, Any] = {
    "x": lambda g, x, weight, ndims, eps: _layer_norm_grad(g * weight, x, ndims, eps),
    "weight": lambda g, x, ndims, eps: g * _standardize(x, ndims, eps)[0],
}
layer_norm_weight_ = define("layer_norm_weight", ("x", "weight"), _layer_norm_np, _norm_spec("layer_norm"), Composite(_layer_norm_body), ("ndims", "eps"), _LN, _norm_samples(1))
layer_norm_ = define("layer_norm", ("x", "weight", "bias"), _layer_norm_np, _norm_spec("layer_norm"), Composite(_layer_norm_body), ("ndims", "eps"),
                     {**_LN, "bias": lambda g: g}, _norm_samples(2))


def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last dimensions, times weight, plus bias (Ba et al. 2016). Shape kept."""
    shape: Any = normalized_shape
    if shape.__class__ is not tuple:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    n = len(shape)
    if n and input._meta.spec.shape[-n:] != shape:
        raise RuntimeError(f"layer_norm: Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], but got input of size {list(input.shape)}")
    if weight is None:
        out = apply(layer_norm_plain_, (input,), (n, float(eps)))
        return out if bias is None else out + bias
    if bias is None:
        return apply(layer_norm_weight_, (input, weight), (n, float(eps)))
    return apply(layer_norm_, (input, weight, bias), (n, eps if eps.__class__ is float else float(eps)))


def _rms_np(x: Any, *rest: Any) -> Any:
    *affine, ndims, eps = rest
    w = _wide(x)
    out = w / np.sqrt((w * w).mean(axis=_last(x, ndims), keepdims=True) + w.dtype.type(eps))
    return (out * _wide(affine[0]) if affine else out).astype(x.dtype, copy=False)


def _rms_body(x: Tensor, *affine: Tensor, ndims: int, eps: float) -> Tensor:
    w = cast(x, dtypes.float32) if x.dtype.itemsize == 2 else x
    out = w * (apply(mean_, (w * w,), (_last(w, ndims), True)) + eps).rsqrt()
    return cast(out * affine[0] if affine else out, x.dtype)


def _rms_grad(g: Tensor, x: Tensor, ndims: int, eps: float) -> Tensor:
    dims = _last(x, ndims)
    r = (apply(mean_, (x * x,), (dims, True)) + eps).rsqrt()
    hat = x * r
    return (g - hat * apply(mean_, (g * hat,), (dims, True))) * r


rms_norm_plain_ = define("rms_norm_plain", ("x",), _rms_np, _norm_spec("rms_norm"), Composite(_rms_body), ("ndims", "eps"), {"x": _rms_grad}, _norm_samples(0))
rms_norm_ = define(
    "rms_norm", ("x", "weight"), _rms_np, _norm_spec("rms_norm"), Composite(_rms_body), ("ndims", "eps"),
    {"x": lambda g, x, weight, ndims, eps: _rms_grad(g * weight, x, ndims, eps), "weight": lambda g, x, ndims, eps: g * _rms_body(x, ndims=ndims, eps=eps)},
    _norm_samples(1),
)


def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimensions, times weight (Zhang & Sennrich 2019). Shape kept."""
    n = 1 if isinstance(normalized_shape, int) else len(tuple(normalized_shape))
    e = float(np.finfo(np.float32).eps) if eps is None else float(eps)
    return apply(rms_norm_plain_, (input,), (n, e)) if weight is None else apply(rms_norm_, (input, weight), (n, e))


# ------------------------------------------------------------------------------------------------ losses


def _pair_spec(name: str) -> Any:
    def spec(x: Spec, target: Spec, *_: Any) -> Spec:
        if x.shape != target.shape:
            raise RuntimeError(f"{name}: input has shape {x.shape} and target {target.shape}; expected equal shapes")
        return Spec((), x.dtype)

    return spec


mse_loss_ = define(
    "mse_loss", ("x", "target"), lambda x, t: np.asarray(np.square(_wide(x) - _wide(t)).mean()).astype(x.dtype) if x.shape == t.shape else _refuse(),
    _pair_spec("mse_loss"), Composite(lambda x, target: apply(mean_, ((x - target) * (x - target),), (tuple(range(x.ndim)), False))),
    vjp={"x": lambda g, x, target, x_spec: (x - target) * (g * (2.0 / max(x_spec.numel, 1))), "target": lambda g, x, target, x_spec: (target - x) * (g * (2.0 / max(x_spec.numel, 1)))},
    samples=lambda: [((_rng.standard_normal((3, 4)), _rng.standard_normal((3, 4))), ())], doc="The mean of squared differences.",
)


def _refuse() -> Any:
    raise ValueError("shapes differ")


def _ce_spec(x: Spec, target: Spec, ignore_index: int) -> Spec:
    _float("cross_entropy", x)
    if x.ndim != 2 or target.shape != x.shape[:1]:
        raise ValueError(f"cross_entropy: Expected input batch_size ({x.shape[0] if x.shape else 0}) to match target batch_size ({target.shape[0] if target.shape else 0}); input shape {x.shape}, target shape {target.shape}")
    if target.dtype is not dtypes.int64 and target.dtype.category != 1:
        raise RuntimeError(f"cross_entropy: expected class indices of an integer dtype; target has dtype {target.dtype.name}")
    return Spec(target.shape, x.dtype)


def _ce_test(values: Sequence[Any], attrs: tuple[Any, ...]) -> None:
    x, target = values
    bad = (target != attrs[0]) & ((target < 0) | (target >= x.shape[1]))
    if bad.any():
        raise IndexError(f"Target {int(target[bad][0])} is out of bounds for {x.shape[1]} classes.")


_CE_CHECK = Check(lambda specs, attrs: (1,), _ce_test)


def _ce_np(x: Any, target: Any, ignore_index: int) -> Any:
    if x.ndim != 2 or target.shape != x.shape[:1] or target.dtype.kind not in "iu":
        raise ValueError("shapes or dtypes do not fit")
    _ce_test((x, target), (ignore_index,))
    valid = target != ignore_index
    logp = _log_softmax_np(_wide(x), (1,))
    picked = np.take_along_axis(logp, np.where(valid, target, 0)[:, None].astype(np.int64), 1)[:, 0]
    return np.where(valid, -picked, 0).astype(x.dtype)


def _hit(x: Tensor, target: Tensor) -> Tensor:
    """(n, classes) bool: the place of each row's class."""
    classes = apply(arange_, (0, 1), (x.shape[1], dtypes.int64))
    return classes == unsqueeze_dims(cast(target, dtypes.int64), (1,))


def _ce_body(x: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    w = cast(x, dtypes.float32) if x.dtype.itemsize == 2 else x
    z = w - apply(amax_, (w,), ((1,), True))
    picked = total(where(_hit(x, target), z, 0.0), (1,), False)
    return cast(where(target.ne(ignore_index), total(z.exp(), (1,), False).log() - picked, 0.0), x.dtype)


def _ce_grad(g: Tensor, x: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    p = apply(softmax_, (x,), ((1,),))
    g = unsqueeze_dims(where(target.ne(ignore_index), g, 0.0), (1,))
    return (p - cast(_hit(x, target), x.dtype)) * g


def _ce_samples() -> list[Any]:
    t = np.array([0, 3, 2, 1, -100])
    return [((_rng.standard_normal((5, 4)), t), (-100,))]


cross_entropy_ = define(
    "cross_entropy", ("x", "target"), _ce_np, _ce_spec, Composite(_ce_body), ("ignore_index",), {"x": _ce_grad}, _ce_samples,
    doc="Per row: logsumexp(x) - x[target]; 0 where the target is `ignore_index`.", check=_CE_CHECK,
)


def _count_valid(target: Tensor, ignore_index: int, dtype: dtypes.dtype) -> Tensor:
    return cast(total(target.ne(ignore_index), (0,), False), dtype)


cross_entropy_mean_ = define(
    "cross_entropy_mean", ("x", "target"),
    lambda x, target, ignore_index: np.asarray(_wide(_ce_np(x, target, ignore_index)).sum() / np.float64((target != ignore_index).sum())).astype(x.dtype),
    lambda x, target, ignore_index: Spec((), _ce_spec(x, target, ignore_index).dtype),
    Composite(lambda x, target, ignore_index: total(_ce_body(x, target, ignore_index), (0,), False) / _count_valid(target, ignore_index, x.dtype)), ("ignore_index",),
    {"x": lambda g, x, target, ignore_index: _ce_grad(g / _count_valid(target, ignore_index, x.dtype), x, target, ignore_index)}, _ce_samples,
    doc="The mean of cross_entropy over the rows whose target is not `ignore_index`.", check=_CE_CHECK,
)

# ------------------------------------------------------------------------------------------------ dropout, norms of lists


def _dropout_np(x: Any, p: float, seed: int, offset: int) -> Any:
    u = uniform_.eager(seed, offset, x.shape, dtypes.float32)
    scale = 0.0 if p >= 1 else 1.0 / (1.0 - p)
    return (np.where(u >= np.float32(p), _wide(x), 0) * _wide(x).dtype.type(scale)).astype(x.dtype)


def _dropout_body(x: Tensor, p: Any, seed: Any, offset: Any) -> Tensor:
    u = apply(uniform_, (seed, offset), (tuple(x.shape), dtypes.float32))
    # p may be 1: everything is dropped, and 1/(1-p) must not spoil the zeros
    return where(u >= p, x * (1.0 / (1.0 - p)), 0.0) if isinstance(p, Tensor) or p < 1 else x * 0.0


dropout_ = define(
    "dropout", ("x", "p", "seed", "offset"), _dropout_np, lambda x, p, seed, offset: x, Composite(_dropout_body),
    vjp={"x": lambda g, p, seed, offset: apply(dropout_, (g, p, seed, offset))}, samples=lambda: [((_rng.standard_normal((4, 5)), 0.4, 7, 3), ())],
    doc="Zero with probability p, the rest times 1/(1-p); the mask is drawn again for the gradient instead of kept.",
)


@public()
def dropout(input: Tensor, p: float = 0.5, train: bool = True) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1-p); the input itself when not training."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not train or p == 0:
        return input
    return apply(dropout_, (input, float(p), *default_generator.take()))


def _norm_np(*args: Any) -> Any:
    *xs, p = args
    if not xs:
        return np.zeros((), np.float32)
    if p == 2.0:
        return np.asarray(math.sqrt(sum(float(np.vdot(_wide(x), _wide(x))) for x in xs)), _wide(xs[0]).dtype).astype(xs[0].dtype)
    if p == math.inf:
        return np.asarray(max(float(np.abs(x).max(initial=0)) for x in xs), xs[0].dtype)
    return np.asarray(sum(float((np.abs(_wide(x)) ** p).sum()) for x in xs) ** (1 / p), xs[0].dtype)


def _norm_body(*xs: Tensor, p: float) -> Tensor:
    every = [tuple(range(x.ndim)) for x in xs]
    if p == math.inf:
        parts = [apply(amax_, (x.abs(),), (d, False)) for x, d in zip(xs, every, strict=True)]
        out = parts[0]
        for part in parts[1:]:
            out = apply(OPS["maximum"], (out, part))
        return out
    parts = [total(x * x if p == 2.0 else x.abs() ** p, d, False) for x, d in zip(xs, every, strict=True)]
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    return out.sqrt() if p == 2.0 else out ** (1 / p)


total_norm_ = define(
    "total_norm", ("*tensors",), _norm_np, lambda *xs: Spec((), xs[0].dtype), Composite(_norm_body), ("p",),
    samples=lambda: [((_rng.standard_normal((3, 4)), _rng.standard_normal(5)), (p,)) for p in (2.0, 3.0, math.inf)],
    doc="The p-norm of all elements of all tensors together.",
)


def total_norm(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """The p-norm of all elements of all tensors, as a 0-d tensor."""
    return apply(total_norm_, tuple(tensors), (float(norm_type),))
