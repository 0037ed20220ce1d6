"""Scaled dot-product attention as one operator: softmax(query @ keyᵀ * scale + mask) @ value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import STATE, Composite, Op, apply, define
from torchlet.ops.composite import dropout_, softmax_
from torchlet.ops.contract import matmul_
from torchlet.ops.create import arange_, default_generator
from torchlet.ops.place import make
from torchlet.ops.pointwise import METHODS, log, where
from torchlet.ops.public import Draws
from torchlet.ops.reduce import amax_, sum_
from torchlet.ops.view import expand, reshape, transpose, unsqueeze
from torchlet.spec import Spec, broadcast_shapes
from torchlet.spec import device as Device
from torchlet.tensor import Tensor

_rng = Draws(13)
exp = METHODS["exp"]


def _repeated(x: Tensor, heads: int) -> Tensor:
    """(…, few heads, S, E) with each head repeated so that there are `heads`."""
    few = x.shape[-3]
    if few == heads:
        return x
    *lead, _, s, e = x.shape
    return reshape(expand(unsqueeze(x, -3), (*lead, few, heads // few, s, e)), (*lead, heads, s, e))


def _allowed(rows: int, columns: int, device: Device) -> Tensor:
    """(L, S) bool: position s is not after position l."""
    line = make(arange_, (0, 1), (rows, dtypes.int64), device)
    return unsqueeze(line, 1) >= make(arange_, (0, 1), (columns, dtypes.int64), device)


def _weights(query: Tensor, key: Tensor, mask: Sequence[Tensor], is_causal: bool, scale: float) -> Tensor:
    """The attention (…, L, S); a query that may look at nothing gets zeros."""
    scores = apply(matmul_, (query * scale, transpose(key, -2, -1)))
    dims = (scores.ndim - 1,)
    if is_causal:
        return apply(softmax_, (where(_allowed(query.shape[-2], key.shape[-2], query.device), scores, -math.inf),), (dims,))
    if not mask:
        return apply(softmax_, (scores,), (dims,))
    scores = where(mask[0], scores, -math.inf) if mask[0].dtype is dtypes.bool_ else scores + mask[0]
    dims = (scores.ndim - 1,)
    alive = apply(amax_, (scores.detach(),), (dims, True)) > -math.inf
    return where(alive, apply(softmax_, (where(alive, scores, 0.0),), (dims,)), 0.0)


def sdpa_body(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    p: Any,
    seed: Any,
    offset: Any,
    *mask: Tensor,
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
    drops: bool,
) -> Tensor:
    """What the operator `sdpa` means, in other operators."""
    if enable_gqa:
        key, value = _repeated(key, query.shape[-3]), _repeated(value, query.shape[-3])
    weights = _weights(query, key, mask, is_causal, scale)
    if drops:
        weights = apply(dropout_, (weights, p, seed, offset))
    return apply(matmul_, (weights.to(value.dtype), value))  # a wider mask makes wider weights


def _sdpa_np(query: Any, key: Any, value: Any, p: float, seed: int, offset: int, *rest: Any) -> Any:
    *mask, is_causal, scale, enable_gqa, drops = rest
    q, k, v = (x.astype(np.float32) if x.dtype.itemsize == 2 else x for x in (query, key, value))
    if enable_gqa:
        k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = np.matmul(q * q.dtype.type(scale), k.swapaxes(-2, -1))
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    if mask:
        scores = np.where(mask[0], scores, -np.inf) if mask[0].dtype == bool else scores + mask[0]
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0)).astype(q.dtype)
    total = e.sum(-1, keepdims=True)
    weights = e / np.where(total == 0, 1, total)
    if drops:
        weights = dropout_.eager(weights, p, seed, offset)
    return np.matmul(weights, v).astype(query.dtype)


def _sdpa_spec(query: Spec, key: Spec, value: Spec, p: Any, seed: Any, offset: Any, *rest: Any) -> Spec:
    *mask, _, _, enable_gqa, _ = rest
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if len({x.dtype for x in (query, key, value)}) > 1:
        raise RuntimeError(
            f"scaled_dot_product_attention: Expected query, key, and value to have the same dtype, but got {query.dtype.name}, {key.dtype.name} and {value.dtype.name}"
        )
    if min(x.ndim for x in (query, key, value)) < 2 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(f"scaled_dot_product_attention: expected (…, L, E), (…, S, E) and (…, S, Ev); got {shapes}")
    leads = [x.shape[:-3] if enable_gqa else x.shape[:-2] for x in (query, key, value)]
    lead = broadcast_shapes("scaled_dot_product_attention", *leads)
    if enable_gqa:
        heads = query.shape[-3]
        if any(heads % x.shape[-3] for x in (key, value)):
            raise RuntimeError(
                f"scaled_dot_product_attention: Number of heads in key and value must divide the number of heads in query; got {shapes}"
            )
        lead = (*lead, heads)
    if mask:
        lead = broadcast_shapes("scaled_dot_product_attention", (*lead, query.shape[-2], key.shape[-2]), mask[0].shape)[:-2]
    return Spec((*lead, query.shape[-2], value.shape[-1]), query.dtype, query.device)


# ------------------------------------------------------------------------------------------------ without the matrix of weights
#
# The forward pass keeps, besides its result, the logarithm of the sum of each row's exponentials. Three further operators make the
# gradients from it. Kernels claim all five (`compiler.claim`); what no kernel claims is opened like any composite.

WIDEST = 256  # the largest head that the kernels of GPUs hold in registers
DEEPEST = 8  # dimensions that the CPU's kernel takes (TL_STACK, rows and columns)


def unfit(query: Spec, key: Spec, value: Spec, mask: Sequence[Spec], enable_gqa: bool, drops: bool, gpu: bool = True) -> str:
    """Why no fused kernel computes this attention; empty where one does."""
    if drops:
        return "its weights are dropped at random"
    if query.dtype not in ((dtypes.float32, dtypes.float16, dtypes.bfloat16) if gpu else (dtypes.float32,)):
        return f"its dtype is {query.dtype.name}"
    if not gpu and query.ndim > DEEPEST:
        return f"it has {query.ndim} dimensions; the kernel takes {DEEPEST}"
    widest = WIDEST if query.dtype.itemsize == 2 else WIDEST // 2
    if gpu and max(query.shape[-1], value.shape[-1]) > widest:
        return f"its heads are {max(query.shape[-1], value.shape[-1])} wide; the kernels take {widest} in {query.dtype.name}"
    shared = 3 if enable_gqa else 2
    if len({x.shape[:-shared] for x in (query, key, value)}) > 1 or key.shape[:-2] != value.shape[:-2]:
        return "query, key and value are broadcast"
    if any(broadcast_shapes("sdpa", full := (*query.shape[:-1], key.shape[-2]), m.shape) != full for m in mask):
        return "its mask has more dimensions than query and key"
    return "it has no elements" if 0 in (*query.shape, *key.shape, *value.shape) else ""


def on_gpu(place: Device) -> bool:
    """True on a GPU, or while a dry run compiles for one."""
    return STATE.gpu or place.type == "cuda"


def is_fused(query: Tensor, key: Tensor, value: Tensor, mask: Sequence[Tensor], enable_gqa: bool, drops: bool) -> bool:
    """True where the gradients are to be made for the fused kernels, because they take this attention."""
    gpu = on_gpu(query.device)
    specs = [x._meta.spec for x in (query, key, value)]
    return not unfit(specs[0], specs[1], specs[2], [m._meta.spec for m in mask], enable_gqa, drops, gpu)


def _scores(query: Tensor, key: Tensor, mask: Sequence[Tensor], is_causal: bool, scale: float, enable_gqa: bool) -> Tensor:
    """The scores in float32 (or float64), minus infinity where attention is not allowed."""
    key = _repeated(key, query.shape[-3]) if enable_gqa else key
    scores = apply(matmul_, (query, transpose(key, -2, -1)))
    scores = (scores.to(dtypes.float32) if scores.dtype.itemsize == 2 else scores) * scale
    if is_causal:
        scores = where(_allowed(query.shape[-2], key.shape[-2], query.device), scores, -math.inf)
    for m in mask:
        scores = where(m, scores, -math.inf) if m.dtype is dtypes.bool_ else scores + m.to(scores.dtype)
    return scores


def _lse_body(query: Tensor, key: Tensor, value: Tensor, *mask: Tensor, is_causal: bool, scale: float, enable_gqa: bool) -> Tensor:
    scores = _scores(query, key, mask, is_causal, scale, enable_gqa)
    dims = (scores.ndim - 1,)
    top = apply(amax_, (scores,), (dims, False))
    base = where(top > -math.inf, top, 0.0)
    return base + log(apply(sum_, (exp(scores - unsqueeze(base, -1)),), (dims, False)))


def _score_grads(
    g: Tensor, lse: Tensor, delta: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Sequence[Tensor], is_causal: bool, scale: float,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """(weights, gradients of the scores), in float32."""
    scores = _scores(query, key, mask, is_causal, scale, enable_gqa)
    lse = unsqueeze(lse, -1)
    weights = where(lse > -math.inf, exp(scores - where(lse > -math.inf, lse, 0.0)), 0.0)
    value = _repeated(value, query.shape[-3]) if enable_gqa else value
    return weights, weights * (apply(matmul_, (g, transpose(value, -2, -1))) - unsqueeze(delta, -1))


def _dq_body(
    g: Tensor, lse: Tensor, delta: Tensor, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor, is_causal: bool, scale: float,
    enable_gqa: bool,
) -> Tensor:
    _, ds = _score_grads(g, lse, delta, query, key, value, mask, is_causal, scale, enable_gqa)
    key = _repeated(key, query.shape[-3]) if enable_gqa else key
    return apply(matmul_, (ds.to(key.dtype), key)) * scale


def _dk_body(
    g: Tensor, lse: Tensor, delta: Tensor, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor, is_causal: bool, scale: float,
    enable_gqa: bool,
) -> Tensor:
    _, ds = _score_grads(g, lse, delta, query, key, value, mask, is_causal, scale, enable_gqa)
    return _fewer(apply(matmul_, (transpose(ds, -2, -1).to(query.dtype), query)) * scale, key, enable_gqa)


def _dv_body(
    g: Tensor, lse: Tensor, delta: Tensor, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor, is_causal: bool, scale: float,
    enable_gqa: bool,
) -> Tensor:
    weights, _ = _score_grads(g, lse, delta, query, key, value, mask, is_causal, scale, enable_gqa)
    return _fewer(apply(matmul_, (transpose(weights, -2, -1).to(g.dtype), g)), value, enable_gqa)


def _score_grads_np(g: Any, lse: Any, delta: Any, query: Any, key: Any, value: Any, *rest: Any) -> tuple[Any, ...]:
    """(weights, gradients of the scores, query, repeated key, g) with 16-bit floats widened."""
    *mask, is_causal, scale, enable_gqa = rest
    g, q, k, v = (x.astype(np.float32) if x.dtype.itemsize == 2 else x for x in (g, query, key, value))
    if enable_gqa:
        k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = np.matmul(q, k.swapaxes(-2, -1)) * q.dtype.type(scale)
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    for m in mask:
        scores = np.where(m, scores, -np.inf) if m.dtype == bool else scores + m
    weights = np.exp(scores - np.where(np.isfinite(lse), lse, np.inf)[..., None]).astype(q.dtype)
    return weights, weights * (np.matmul(g, v.swapaxes(-2, -1)) - delta[..., None]).astype(q.dtype), q, k, g


def _lse_np(query: Any, key: Any, value: Any, *rest: Any) -> Any:
    *mask, is_causal, scale, enable_gqa = rest
    q, k = (x.astype(np.float32) if x.dtype.itemsize == 2 else x for x in (query, key))
    k = np.repeat(k, q.shape[-3] // k.shape[-3], -3) if enable_gqa else k
    scores = np.matmul(q, k.swapaxes(-2, -1)) * q.dtype.type(scale)
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    for m in mask:
        scores = np.where(m, scores, -np.inf) if m.dtype == bool else scores + m
    top = scores.max(-1, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return (base + np.log(np.exp(scores - base[..., None]).sum(-1))).astype(np.float32)


def _fewer_np(g: Any, x: Any, enable_gqa: bool) -> Any:
    if enable_gqa:
        g = g.reshape(*g.shape[:-3], x.shape[-3], -1, *g.shape[-2:]).sum(-3)
    return g.astype(x.dtype)


def _dq_np(g: Any, lse: Any, delta: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    _, ds, _, k, _ = _score_grads_np(g, lse, delta, query, key, value, *rest)
    return (np.matmul(ds, k) * rest[-2]).astype(query.dtype)


def _dk_np(g: Any, lse: Any, delta: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    _, ds, q, _, _ = _score_grads_np(g, lse, delta, query, key, value, *rest)
    return _fewer_np(np.matmul(ds.swapaxes(-2, -1), q) * rest[-2], key, rest[-1])


def _dv_np(g: Any, lse: Any, delta: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    weights, _, _, _, g = _score_grads_np(g, lse, delta, query, key, value, *rest)
    return _fewer_np(np.matmul(weights.swapaxes(-2, -1), g), value, rest[-1])


def _lse_samples() -> list[Any]:
    return [((q, k, v, *mask), (causal, scale, gqa)) for (q, k, v, *mask), (causal, scale, gqa) in _fused_samples()]


def _gradient_samples() -> list[Any]:
    out = []
    for (q, k, v, *mask), attrs in _fused_samples():
        lse = _lse_np(q, k, v, *mask, *attrs).astype(q.dtype)
        g = _rng.standard_normal((*q.shape[:-1], v.shape[-1]))
        out.append(((g, lse, _rng.standard_normal(lse.shape), q, k, v, *mask), attrs))
    return out


def _fused_samples() -> list[Any]:
    found = []
    for (q, k, v, _, _, _, *mask), (causal, scale, gqa, _) in _samples():
        found.append(((q, k, v, *mask), (causal, scale, gqa)))
    return found


_ATTRS = ("is_causal", "scale", "enable_gqa")
_GRADIENT = ("g", "lse", "delta", "query", "key", "value", "*mask")

sdpa_lse_ = define(
    "sdpa_lse", ("query", "key", "value", "*mask"), _lse_np, lambda query, *rest: Spec(query.shape[:-1], dtypes.float32, query.device),
    Composite(_lse_body), _ATTRS, None, _lse_samples, doc="log(sum(exp(query @ keyᵀ * scale + mask))) of each row.",
)  # fmt: skip
sdpa_dq_ = define(
    "sdpa_dq", _GRADIENT, _dq_np, lambda g, lse, delta, query, *rest: Spec(query.shape, query.dtype, query.device), Composite(_dq_body),
    _ATTRS, None, _gradient_samples, doc="The gradient of `sdpa` for its query; delta is the sum over a row of g times the result.",
)  # fmt: skip
sdpa_dk_ = define(
    "sdpa_dk", _GRADIENT, _dk_np, lambda g, lse, delta, query, key, *rest: Spec(key.shape, key.dtype, key.device), Composite(_dk_body),
    _ATTRS, None, _gradient_samples, doc="The gradient of `sdpa` for its key.",
)  # fmt: skip
sdpa_dv_ = define(
    "sdpa_dv", _GRADIENT, _dv_np, lambda g, lse, delta, query, key, value, *rest: Spec(value.shape, value.dtype, value.device),
    Composite(_dv_body), _ATTRS, None, _gradient_samples, doc="The gradient of `sdpa` for its value.",
)  # fmt: skip


def from_lse(
    op: Op, g: Tensor, out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Sequence[Tensor], is_causal: bool, scale: float,
    enable_gqa: bool,
) -> Tensor:
    """One of the three gradients, by the operator that makes the weights again."""
    attrs = (is_causal, scale, enable_gqa)
    lse = apply(sdpa_lse_, (query, key, value, *mask), attrs)
    wide = g.to(dtypes.float32) * out.to(dtypes.float32)
    delta = apply(sum_, (wide,), ((g.ndim - 1,), False))
    return apply(op, (g, lse, delta, query, key, value, *mask), attrs)


# ------------------------------------------------------------------------------------------------ gradients in other operators


def _grads(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    p: Any,
    seed: Any,
    offset: Any,
    mask: Sequence[Tensor],
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
    drops: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the scores, and of query, key and value; what is not used is not computed where it is compiled."""
    k, v = (_repeated(key, query.shape[-3]), _repeated(value, query.shape[-3])) if enable_gqa else (key, value)
    weights = _weights(query, k, mask, is_causal, scale)
    dropped = apply(dropout_, (weights, p, seed, offset)) if drops else weights
    dw = apply(matmul_, (g, transpose(v, -2, -1)))
    dw = apply(dropout_, (dw, p, seed, offset)) if drops else dw
    ds = weights * (dw - apply(sum_, (dw * weights,), ((weights.ndim - 1,), True)))
    return ds, apply(matmul_, (ds, k)) * scale, transpose(ds, -2, -1), transpose(dropped, -2, -1)


def _query_grad(
    g: Any,
    out: Any,
    query: Any,
    key: Any,
    value: Any,
    p: Any,
    seed: Any,
    offset: Any,
    mask: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
    drops: Any,
) -> Tensor:
    if is_fused(query, key, value, mask, enable_gqa, drops):
        return from_lse(sdpa_dq_, g, out, query, key, value, mask, is_causal, scale, enable_gqa)
    return _grads(g, query, key, value, p, seed, offset, mask, is_causal, scale, enable_gqa, drops)[1]


def _key_grad(
    g: Any,
    out: Any,
    query: Any,
    key: Any,
    value: Any,
    p: Any,
    seed: Any,
    offset: Any,
    mask: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
    drops: Any,
) -> Tensor:
    if is_fused(query, key, value, mask, enable_gqa, drops):
        return from_lse(sdpa_dk_, g, out, query, key, value, mask, is_causal, scale, enable_gqa)
    turned = _grads(g, query, key, value, p, seed, offset, mask, is_causal, scale, enable_gqa, drops)[2]
    return _fewer(apply(matmul_, (turned, query)) * scale, key, enable_gqa)


def _value_grad(
    g: Any,
    out: Any,
    query: Any,
    key: Any,
    value: Any,
    p: Any,
    seed: Any,
    offset: Any,
    mask: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
    drops: Any,
) -> Tensor:
    if is_fused(query, key, value, mask, enable_gqa, drops):
        return from_lse(sdpa_dv_, g, out, query, key, value, mask, is_causal, scale, enable_gqa)
    turned = _grads(g, query, key, value, p, seed, offset, mask, is_causal, scale, enable_gqa, drops)[3]
    return _fewer(apply(matmul_, (turned, g)), value, enable_gqa)


def _mask_grad(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    p: Any,
    seed: Any,
    offset: Any,
    mask: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
    drops: Any,
) -> list[Tensor]:
    return [_grads(g, query, key, value, p, seed, offset, mask, is_causal, scale, enable_gqa, drops)[0]]


def _fewer(g: Tensor, x: Tensor, enable_gqa: bool) -> Tensor:
    """The gradient of repeated heads added up to that of the few."""
    if not enable_gqa or g.shape[-3] == x.shape[-3]:
        return g
    *lead, heads, s, e = g.shape
    return apply(sum_, (reshape(g, (*lead, x.shape[-3], heads // x.shape[-3], s, e)),), ((g.ndim - 2,), False))


def _samples() -> list[Any]:
    def n(*s: int) -> Any:
        return _rng.standard_normal(s)

    q, k, v = n(2, 3, 4, 5), n(2, 3, 6, 5), n(2, 3, 6, 2)
    allowed = _rng.random((4, 6)) > 0.4
    allowed[1] = False
    return [
        ((q, k, v, 0.0, 0, 0), (False, 0.5, False, False)),
        ((q, k, v, 0.0, 0, 0), (True, 0.5, False, False)),
        ((q, k, v, 0.0, 0, 0, n(1, 4, 6)), (False, 0.4, False, False)),
        ((q, k, v, 0.0, 0, 0, allowed), (False, 0.4, False, False)),
        ((n(1, 4, 3, 5), n(1, 2, 3, 5), n(1, 2, 3, 5), 0.3, 7, 0), (True, 0.4, True, True)),
    ]


sdpa_ = define(
    "sdpa",
    ("query", "key", "value", "p", "seed", "offset", "*mask"),
    _sdpa_np,
    _sdpa_spec,
    Composite(sdpa_body),
    ("is_causal", "scale", "enable_gqa", "drops"),
    {"query": _query_grad, "key": _key_grad, "value": _value_grad, "mask": _mask_grad},
    _samples,
    doc="softmax(query @ keyᵀ * scale + mask) @ value; with `drops`, the weights are dropped with probability p.",
)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query @ keyᵀ * scale + mask) @ value: (…, H, L, E), (…, H, S, E), (…, H, S, Ev) give (…, H, L, Ev).

    A boolean `attn_mask` is True where attention is allowed; a float one is added. A query that may attend to nothing gives zeros.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    if attn_mask is not None and attn_mask.dtype is not dtypes.bool_ and attn_mask.dtype is not query.dtype:
        if attn_mask.dtype is not dtypes.float32:
            raise RuntimeError(
                f"scaled_dot_product_attention: Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: "
                f"{attn_mask.dtype.name} and query.dtype: {query.dtype.name} instead."
            )
        attn_mask = attn_mask.to(query.dtype)
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    random = (float(dropout_p), *default_generator.take()) if dropout_p > 0.0 else (0.0, 0, 0)
    inputs = (query, key, value, *random) if attn_mask is None else (query, key, value, *random, attn_mask)
    attrs = (bool(is_causal), float(scale), bool(enable_gqa), dropout_p > 0.0)
    if STATE.run is not None:
        return apply(sdpa_, inputs, attrs)
    _sdpa_spec(query._meta.spec, key._meta.spec, value._meta.spec, *random, *([] if attn_mask is None else [attn_mask._meta.spec]), *attrs)
    # At once, the parts go on the tape by themselves, so that the backward pass keeps the weights instead of making them again.
    return sdpa_body(*inputs, is_causal=attrs[0], scale=attrs[1], enable_gqa=attrs[2], drops=attrs[3])
