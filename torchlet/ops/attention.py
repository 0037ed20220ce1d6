"""Scaled dot-product attention as one operator: softmax(query @ keyᵀ * scale + mask) @ value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import STATE, Composite, apply, define
from torchlet.ops.composite import dropout_, softmax_
from torchlet.ops.contract import matmul_
from torchlet.ops.create import arange_, default_generator
from torchlet.ops.place import make
from torchlet.ops.pointwise import where
from torchlet.ops.public import Draws
from torchlet.ops.reduce import amax_, sum_
from torchlet.ops.view import expand, reshape, transpose, unsqueeze
from torchlet.spec import Spec, broadcast_shapes
from torchlet.spec import device as Device
from torchlet.tensor import Tensor

_rng = Draws(13)


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
    return apply(matmul_, (weights, value))


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
    return _grads(g, query, key, value, p, seed, offset, mask, is_causal, scale, enable_gqa, drops)[1]


def _key_grad(
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
) -> Tensor:
    turned = _grads(g, query, key, value, p, seed, offset, mask, is_causal, scale, enable_gqa, drops)[2]
    return _fewer(apply(matmul_, (turned, query)) * scale, key, enable_gqa)


def _value_grad(
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
) -> Tensor:
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
