"""torchlet.nn.functional: layers, activations and losses as functions, PyTorch's signatures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, ops
from torchlet.autograd import no_grad
from torchlet.dtypes import dtype
from torchlet.expr import call
from torchlet.op import STATE, apply, pointwise
from torchlet.ops import composite
from torchlet.tensor import Tensor

# ------------------------------------------------------------------------------------------------ activations

linear = ops.linear
gelu = ops.gelu
logsigmoid = ops.logsigmoid
tanh = ops.tanh
sigmoid = ops.sigmoid
softplus = ops.softplus


def _into(input: Tensor, out: Tensor, inplace: bool) -> Tensor:
    return input.copy_(out) if inplace else out


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return input.relu_() if inplace else ops.relu(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    return _into(input, ops.silu(input), inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    return _into(input, ops.mish(input), inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    return _into(input, ops.leaky_relu(input, negative_slope), inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight * x; `weight` has one element, or one for each channel (dimension 1)."""
    if weight.ndim == 1 and weight.numel() > 1:
        if input.ndim < 2 or input.shape[1] != weight.numel():
            found = input.shape[1] if input.ndim > 1 else 1
            raise RuntimeError(
                f"prelu: Mismatch of parameter numbers and input channel size. Found parameter numbers = {weight.numel()} and "
                f"channel size = {found}."
            )
        weight = weight.reshape(-1, *[1] * (input.ndim - 2))
    return ops.where(input > 0, input, weight * input)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return _into(input, ops.elu(input, alpha), inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Scaled ELU (Klambauer et al. 2017)."""
    return _into(input, 1.0507009873554804934193349852946 * ops.elu(input, 1.6732632423543772848170429916717), inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return _into(input, alpha * ops.elu(input / alpha, 1.0), inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val]; no gradient flows at the limits themselves."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return _into(input, ops.where(input <= min_val, float(min_val), ops.where(input >= max_val, float(max_val), input)), inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """x limited to [0, 6]."""
    return _into(input, ops.relu6(input), inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return _into(input, ops.relu6(input + 3) / 6, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * relu6(x + 3) / 6."""
    return _into(input, input * ops.relu6(input + 3) / 6, inplace)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return input / (ops.abs(input) + 1)


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)."""
    return input - ops.tanh(input)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x where |x| > lambd, else 0."""
    return ops.where(ops.abs(input) <= lambd, 0.0, input)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved towards 0 by lambd."""
    return ops.where(input > lambd, input - lambd, ops.where(input < -lambd, input + lambd, 0.0))


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else value."""
    return _into(input, ops.where(input <= threshold, float(value), input), inplace)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b) of the halves a, b along `dim`."""
    if input.shape[dim] % 2:
        raise RuntimeError(f"glu: Halving dimension must be even, but dimension {dim} is size {input.shape[dim]}")
    a, b = input.chunk(2, dim)
    return a * ops.sigmoid(b)


def _softmax_dim(name: str, ndim: int) -> int:
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.", stacklevel=4
    )
    return 0 if ndim in (0, 1, 3) else 1


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`."""
    dim = _softmax_dim("softmax", input.ndim) if dim is None else dim
    return ops.softmax(input, dim) if dtype is None else ops.softmax(input, dim, dtype=dtype)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """softmax of -x."""
    dim = _softmax_dim("softmin", input.ndim) if dim is None else dim
    return softmax(-input, dim, dtype=dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """log(softmax(x)) along `dim`, computed without overflow."""
    dim = _softmax_dim("log_softmax", input.ndim) if dim is None else dim
    return ops.log_softmax(input, dim) if dtype is None else ops.log_softmax(input, dim, dtype=dtype)


# ------------------------------------------------------------------------------------------------ dropout


def _check_probability(p: float) -> None:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """While training, elements are zero with probability `p` and the rest is scaled by 1 / (1 - p)."""
    return _into(input, ops.dropout(input, p, training), inplace and training and p > 0)


def _drop_channels(input: Tensor, p: float, shape: Sequence[int], inplace: bool) -> Tensor:
    return _into(input, input * ops.dropout(ops.ones(*shape, dtype=input.dtype, device=input.device), p), inplace)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (C, L) or (N, C, L)."""
    _check_probability(p)
    if input.ndim not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {input.ndim}D input. Note that dropout1d exists to provide "
            f"channel-wise dropout"
        )
    if not training or p == 0.0:
        return input
    return _drop_channels(input, p, (*input.shape[:-1], 1), inplace)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (N, C, H, W) or (C, H, W)."""
    _check_probability(p)
    if not training or p == 0.0:
        return input
    return _drop_channels(input, p, (*input.shape[:-2], 1, 1), inplace)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout that keeps mean and variance of SELU activations (Klambauer et al. 2017)."""
    _check_probability(p)
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return _into(input, input * 0.0, inplace)
    alpha = 1.7580993408473766
    a = 1.0 / math.sqrt((alpha * alpha * p + 1) * (1 - p))
    kept = ops.rand(*input.shape, device=input.device) >= p
    return _into(input, ops.where(kept, input * a + alpha * a * p, -alpha * a + alpha * a * p), inplace)


# ------------------------------------------------------------------------------------------------ normalization


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimensions."""
    return ops.layer_norm(input, tuple(normalized_shape), weight, bias, eps)


def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimensions (Zhang & Sennrich 2019).

    `eps=None` is the machine epsilon of the dtype.
    """
    shape = tuple(normalized_shape)
    if tuple(input.shape[input.ndim - len(shape):]) != shape:
        raise RuntimeError(
            f"rms_norm: Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], but got "
            f"input of size{list(input.shape)}"
        )
    if eps is None:  # that of the dtype the mean is computed in
        eps = 2.220446049250313e-16 if input.dtype is dtypes.float64 else 1.1920928955078125e-07
    return ops.rms_norm(input, shape, weight, eps)


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float | Tensor = 0.1, eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel (dimension 1) over all others (Ioffe & Szegedy 2015).

    While training, the running statistics are updated in place.
    """
    channels = input.shape[1]
    shape = (1, channels, *[1] * (input.ndim - 2))
    if training:
        count = input.numel() // max(channels, 1)
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        dims = (0, *range(2, input.ndim))
        mean = input.mean(dims)
        centred = input - mean.reshape(shape)
        var = (centred * centred).mean(dims)
        if running_mean is not None and running_var is not None:
            with no_grad():
                running_mean.mul_(1 - momentum).add_(mean.detach() * momentum)
                running_var.mul_(1 - momentum).add_(var.detach() * (count / (count - 1)) * momentum)
    else:
        if running_mean is None or running_var is None:
            raise ValueError("Expected running_mean and running_var to be defined when training=False")
        mean, var = running_mean, running_var
        if tuple(mean.shape) != (channels,):
            raise RuntimeError(f"batch_norm: running_mean should contain {channels} elements not {mean.numel()}")
        centred = input - mean.reshape(shape)
    out = centred * ops.rsqrt(var + eps).reshape(shape)
    if weight is not None:
        out = out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of each sample (N, C, *) over its positions."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    dims = tuple(range(2, input.ndim))
    shape = (1, input.shape[1], *[1] * (input.ndim - 2))
    mean = input.mean(dims, keepdim=True)
    centred = input - mean
    var = (centred * centred).mean(dims, keepdim=True)
    count = math.prod(input.shape[2:])
    if running_mean is not None and running_var is not None:
        with no_grad():
            running_mean.mul_(1 - momentum).add_(mean.detach().mean(0).reshape(-1) * momentum)
            running_var.mul_(1 - momentum).add_(var.detach().mean(0).reshape(-1) * (count / (count - 1)) * momentum)
    out = centred * ops.rsqrt(var + eps)
    if weight is not None:
        out = out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise groups of channels of (N, C, *) (Wu & He 2018)."""
    n, channels = input.shape[:2]
    if channels % num_groups:
        raise RuntimeError(
            f"group_norm: Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    grouped = input.reshape(n, num_groups, -1)  # (N, G, C/G * positions)
    centred = grouped - grouped.mean(-1, keepdim=True)
    out = (centred * ops.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)).reshape(input.shape)
    shape = (1, channels, *[1] * (input.ndim - 2))
    if weight is not None:
        out = out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def normalize(input: Tensor, p: float = 2.0, dim: int | tuple[int, ...] = 1, eps: float = 1e-12) -> Tensor:
    """x / max(‖x‖_p, eps) along `dim`."""
    return input / ops.clamp(_norm(input, p, dim, True), min=eps)


def _norm(x: Tensor, p: float, dim: int | tuple[int, ...], keepdim: bool) -> Tensor:
    if p == 2:
        return ops.sqrt((x * x).sum(dim, keepdim=keepdim))
    if p == 1:
        return ops.abs(x).sum(dim, keepdim=keepdim)
    if p == math.inf:
        return ops.amax(ops.abs(x), dim, keepdim=keepdim)
    return ops.pow(ops.pow(ops.abs(x), p).sum(dim, keepdim=keepdim), 1.0 / p)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 · x2 / (max(‖x1‖, eps) · max(‖x2‖, eps)) along `dim`."""
    a = x1 / ops.clamp(_norm(x1, 2, dim, True), min=eps)
    b = x2 / ops.clamp(_norm(x2, 2, dim, True), min=eps)
    return (a * b).sum(dim)


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """‖x1 - x2 + eps‖_p over the last dimension."""
    return _norm(x1 - x2 + eps, p, -1, keepdim)


# ------------------------------------------------------------------------------------------------ indices, shapes


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:
    """Rows of `weight` (V, E) at the integers `input` (*): (*, E). The row `padding_idx` gets no gradient."""
    if max_norm is not None or scale_grad_by_freq:
        raise RuntimeError(
            "embedding: max_norm or scale_grad_by_freq was given; expected neither\nhelp: normalise or scale the weight in the "
            "training loop"
        )
    out = ops.embedding(weight, input)
    if padding_idx is not None and weight.requires_grad:
        rows = weight.shape[0]
        if not -rows <= padding_idx < rows:
            raise AssertionError("Padding_idx must be within num_embeddings")
        out = ops.where((input == padding_idx % rows).unsqueeze(-1), out.detach(), out)
    return out


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 (*, num_classes): 1 at the class of each integer of `tensor` (*), else 0. With -1, the largest class plus one."""
    if tensor.dtype is not dtypes.int64:
        raise RuntimeError(f"one_hot is only applicable to index tensor of type LongTensor; got {tensor.dtype}")
    known = STATE.run is None  # inside a compiled call, values are looked at only where it has to be
    if tensor.numel() == 0:
        if num_classes <= 0:
            raise RuntimeError("Can not infer total number of classes from empty tensor.")
    elif num_classes == -1 or known:
        if int(tensor.min()) < 0:
            raise RuntimeError("Class values must be non-negative.")
        largest = int(tensor.max())
        if num_classes == -1:
            num_classes = largest + 1
        elif num_classes < 1:
            raise RuntimeError("num_classes should be positive")
        elif largest >= num_classes:
            raise RuntimeError("Class values must be smaller than num_classes.")
    return (tensor.unsqueeze(-1) == ops.arange(num_classes, device=tensor.device)).long()


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Pad from the last dimension on: (left, right, top, bottom, …). Negative widths cut off (mode "constant")."""
    widths = list(pad)
    if len(widths) % 2 or len(widths) // 2 > input.ndim:
        raise RuntimeError(
            f"pad: Padding length must be divisible by 2 and at most twice the number of dimensions of the input; got {len(widths)} "
            f"for {input.ndim}D"
        )
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if mode != "constant" and value is not None and value != 0:
        raise ValueError(f'Padding mode "{mode}" doesn\'t take in value argument')
    out = input
    for k in range(len(widths) // 2):
        out = _pad_dim(out, input.ndim - 1 - k, widths[2 * k], widths[2 * k + 1], mode, 0.0 if value is None else value)
    return out


def _pad_dim(x: Tensor, dim: int, before: int, after: int, mode: str, value: float) -> Tensor:
    size = x.shape[dim]
    if mode == "constant":
        if before < 0 or after < 0:
            start, end = max(-before, 0), size - max(-after, 0)
            if start > end:
                raise RuntimeError(
                    f"pad: The input size {size}, plus negative padding {before} and {after}, resulted in a negative output size at "
                    f"dimension {dim}"
                )
            x = x.narrow(dim, start, end - start)
        sides = [x]
        if before > 0:
            sides.insert(0, ops.full((*x.shape[:dim], before, *x.shape[dim + 1:]), value, dtype=x.dtype, device=x.device))
        if after > 0:
            sides.append(ops.full((*x.shape[:dim], after, *x.shape[dim + 1:]), value, dtype=x.dtype, device=x.device))
        return ops.cat(sides, dim) if len(sides) > 1 else x
    if before == 0 and after == 0:
        return x
    if mode == "reflect" and max(before, after) >= size:
        raise RuntimeError(
            f"pad: Padding size should be less than the corresponding input dimension, but got: padding ({before}, {after}) at "
            f"dimension {dim} of input {list(x.shape)}"
        )
    if mode == "circular" and max(before, after) > size:
        raise RuntimeError("Padding value causes wrapping around more than once.")
    positions = ops.arange(-before, size + after, device=x.device)
    if mode == "replicate":
        positions = positions.clamp(0, size - 1)
    elif mode == "circular":
        positions = positions % size
    else:
        positions = ops.abs(positions)
        positions = (size - 1) - ops.abs((size - 1) - positions)
    return x.index_select(dim, positions)


# ------------------------------------------------------------------------------------------------ attention


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:
    """softmax(query @ keyᵀ * scale + mask) @ value: (..., H, L, E), (..., H, S, E), (..., H, S, Ev) give (..., H, L, Ev).

    A boolean `attn_mask` is True where attention is allowed; a float one is added. A query that may attend to nothing gives zeros.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = ops.matmul(query * scale, key.transpose(-2, -1))  # (..., H, L, S)
    if is_causal:
        rows, columns = query.shape[-2], key.shape[-2]
        allowed = ops.arange(rows, device=query.device).unsqueeze(-1) >= ops.arange(columns, device=query.device)
        weights = ops.softmax(ops.where(allowed, scores, -math.inf), -1)
    elif attn_mask is not None:
        scores = ops.where(attn_mask, scores, -math.inf) if attn_mask.dtype is dtypes.bool_ else scores + attn_mask
        alive = ops.amax(scores.detach(), -1, keepdim=True) > -math.inf
        weights = ops.where(alive, ops.softmax(ops.where(alive, scores, 0.0), -1), 0.0)
    else:
        weights = ops.softmax(scores, -1)
    if dropout_p > 0.0:
        weights = dropout(weights, dropout_p)
    return ops.matmul(weights, value)


# ------------------------------------------------------------------------------------------------ losses


def _legacy(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that the two arguments before 2018 meant."""
    if size_average is None and reduce is None:
        return reduction
    warnings.warn("size_average and reduce args will be deprecated, please use reduction= instead.", stacklevel=3)
    if reduce is not None and not reduce:
        return "none"
    return "sum" if size_average is not None and not size_average else "mean"


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"{reduction} is not a valid value for reduction")


def _same_size(input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        warnings.warn(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}). This will likely lead to incorrect "
            "results due to broadcasting. Please ensure they have the same size.",
            stacklevel=3,
        )


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean (or sum) of (input - target)²."""
    reduction = _legacy(size_average, reduce, reduction)
    _same_size(input, target)
    if weight is None and reduction == "mean" and input.shape == target.shape:
        return apply(composite.mse_loss_, (input, target))
    d = input - target
    return _reduce(d * d, reduction) if weight is None else _weighted(d * d, weight, reduction)


def _weighted(loss: Tensor, weight: Tensor, reduction: str) -> Tensor:
    loss = loss * weight
    return loss.sum() / weight.sum() if reduction == "mean" else _reduce(loss, reduction)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean (or sum) of |input - target|."""
    reduction = _legacy(size_average, reduce, reduction)
    _same_size(input, target)
    loss = ops.abs(input - target)
    return _reduce(loss, reduction) if weight is None else _weighted(loss, weight, reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Squared below `beta`, absolute above (Girshick 2015)."""
    reduction = _legacy(size_average, reduce, reduction)
    if beta < 0:
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    _same_size(input, target)
    if beta == 0:
        return _reduce(ops.abs(input - target), reduction)
    z = ops.abs(input - target)
    return _reduce(ops.where(z < beta, 0.5 * z * z / beta, z - 0.5 * beta), reduction)


def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """Squared below `delta`, linear above (Huber 1964)."""
    if delta <= 0:
        raise RuntimeError("huber_loss does not support non-positive values for delta.")
    _same_size(input, target)
    z = ops.abs(input - target)
    loss = ops.where(z <= delta, 0.5 * z * z, delta * (z - 0.5 * delta))
    return _reduce(loss, reduction) if weight is None else _weighted(loss, weight, reduction)


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of classes given logits (N, C), (C) or (N, C, d1, …).

    `target` holds class indices, or probabilities in the shape of the input. Raises ValueError when the batch sizes differ,
    IndexError for a class out of range.
    """
    reduction = _legacy(size_average, reduce, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if target.shape == input.shape and input.ndim:
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    if weight is None and label_smoothing == 0.0:
        rows, classes, shape = _class_rows("cross_entropy", input, target)
        if reduction == "mean":
            return apply(composite.cross_entropy_mean_, (rows, classes), (ignore_index,))
        losses = apply(composite.cross_entropy_, (rows, classes), (ignore_index,))
        return losses.reshape(shape) if reduction == "none" else _reduce(losses, reduction)
    logs = ops.log_softmax(input, 1 if input.ndim > 1 else 0)
    hard = nll_loss(logs, target, weight, ignore_index=ignore_index, reduction=reduction)
    if label_smoothing == 0.0:
        return hard
    rows, classes, shape = _class_rows("cross_entropy", logs, target)
    valid = classes.ne(ignore_index)
    smooth = ops.where(valid, -(rows if weight is None else rows * weight).sum(1), 0.0)
    if reduction == "mean":
        smooth = smooth.sum() / (valid.sum() if weight is None else _class_weights(classes, weight, ignore_index).sum())
    else:
        smooth = smooth.reshape(shape) if reduction == "none" else _reduce(smooth, reduction)
    return (1 - label_smoothing) * hard + (label_smoothing / rows.shape[1]) * smooth


def _soft_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float) -> Tensor:
    """Cross-entropy with class probabilities as targets."""
    if not target.dtype.is_floating_point:
        raise RuntimeError(f"cross_entropy: Expected floating point type for target with class probabilities, got {target.dtype}")
    dim = 1 if input.ndim > 1 else 0
    classes = input.shape[dim]
    if label_smoothing > 0.0:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    terms = ops.log_softmax(input, dim) * target
    if weight is not None:
        terms = terms * weight.reshape(-1, *[1] * (input.ndim - dim - 1))
    if reduction == "mean":
        return -terms.sum() / (input.numel() // classes)
    return _reduce(-terms.sum(dim), reduction)


def _class_rows(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Input as (rows, C), target as (rows,), and the shape that a loss of each element has."""
    shape = tuple(target.shape)
    if input.ndim == 2:
        return input, target, shape
    if input.ndim == 1:
        if target.ndim:
            raise ValueError(
                f"{name}: Expected input batch_size (1) to match target batch_size ({target.shape[0]}); input shape "
                f"{tuple(input.shape)}, target shape {shape}"
            )
        return input.unsqueeze(0), target.unsqueeze(0), shape
    if input.ndim == 0 or shape != (input.shape[0], *input.shape[2:]):
        raise RuntimeError(f"{name}: Expected target size {[*input.shape[:1], *input.shape[2:]]}, got {list(shape)}")
    return input.movedim(1, -1).reshape(-1, input.shape[1]), target.reshape(-1), shape


def _class_weights(classes: Tensor, weight: Tensor, ignore_index: int) -> Tensor:
    """The weight of each row's class, 0 where the row is ignored."""
    valid = classes.ne(ignore_index)
    return ops.where(valid, weight.index_select(0, ops.where(valid, classes, 0)), 0.0)


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of class indices given log-probabilities (N, C), (C) or (N, C, d1, …)."""
    reduction = _legacy(size_average, reduce, reduction)
    rows, classes, shape = _class_rows("nll_loss", input, target)
    if rows.shape[0] != classes.shape[0]:
        raise ValueError(f"nll_loss: Expected input batch_size ({rows.shape[0]}) to match target batch_size ({classes.shape[0]}).")
    valid = classes.ne(ignore_index)
    picked = rows.gather(1, ops.where(valid, classes, 0).unsqueeze(1)).squeeze(1)
    losses = ops.where(valid, -picked, 0.0)
    if weight is not None:
        weights = _class_weights(classes, weight, ignore_index)
        losses = losses * weights
    if reduction == "mean":
        return losses.sum() / (valid.sum() if weight is None else weights.sum())
    return losses.reshape(shape) if reduction == "none" else _reduce(losses, reduction)


def _bce_np(x: Any, target: Any) -> Any:
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise RuntimeError("all elements of input should be between 0 and 1")
    return -(target * np.maximum(np.log(x), -100) + (1 - target) * np.maximum(np.log1p(-x), -100)).astype(x.dtype, copy=False)


_bce = pointwise(
    "binary_cross_entropy", ("x", "target"), _bce_np,
    lambda x, t: -(t * call("maximum", call("log", x), -100) + (1 - t) * call("maximum", call("log1p", -x), -100)), result="float",
    vjp={
        "x": lambda g, x, target: g * (x - target) / ops.clamp((1 - x) * x, min=1e-12),
        "target": lambda g, x: g * (ops.log1p(-x) - ops.log(x)),
    },
    samples=lambda: [((np.linspace(0.1, 0.9, 12).reshape(3, 4), np.linspace(1, 0, 12).reshape(3, 4)), ())],
    doc="-(t log x + (1 - t) log(1 - x)), each logarithm at least -100 so that 0 and 1 give finite losses.",
)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-(t log x + (1 - t) log(1 - x)) of probabilities, each logarithm at least -100."""
    reduction = _legacy(size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is deprecated. Please ensure "
            f"they have the same size."
        )
    loss = apply(_bce, (input, target))
    return _reduce(loss if weight is None else loss * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of sigmoid(input), computed without overflow."""
    reduction = _legacy(size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.shape}) must be the same as input size ({input.shape})")
    log_sigmoid = ops.logsigmoid(input)
    if pos_weight is not None:
        log_sigmoid = ((pos_weight - 1) * target + 1) * log_sigmoid
    loss = (1 - target) * input - log_sigmoid
    return _reduce(loss if weight is None else loss * weight, reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """target * (log target - input), where `input` holds log-probabilities; "batchmean" divides by the batch size."""
    reduction = _legacy(size_average, reduce, reduction)
    if reduction == "mean":
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size.'batchmean' divides only by the "
            "batch size, and "
            "aligns with the KL div math definition.'mean' will be changed to behave the same as 'batchmean' in the next major release.",
            stacklevel=2,
        )
    if log_target:
        loss = ops.exp(target) * (target - input)
    else:
        positive = target > 0
        loss = ops.where(positive, target * ops.log(ops.where(positive, target, 1.0)), 0.0) - target * input
    if reduction == "batchmean":
        return loss.sum() / input.shape[0] if input.ndim else loss.sum()
    return _reduce(loss, reduction)


def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool = True, full: bool = False, size_average: bool | None = None, eps: float = 1e-8,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of counts under a Poisson distribution; `full` adds Stirling's term."""
    reduction = _legacy(size_average, reduce, reduction)
    loss = ops.exp(input) - target * input if log_input else input - target * ops.log(input + eps)
    if full:
        t = ops.where(target > 1, target, 2.0)
        loss = loss + ops.where(target > 1, t * ops.log(t) - t + 0.5 * ops.log(2 * math.pi * t), 0.0)
    return _reduce(loss, reduction)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood under a normal distribution with mean `input` and variance `var` (at least eps)."""
    if not isinstance(var, Tensor):
        var = ops.full(input.shape, float(var), dtype=input.dtype)
    elif var.shape != input.shape and input.shape[:-1] == var.shape:
        var = var.unsqueeze(-1)
    var = var + (ops.clamp(var, min=eps) - var).detach()  # the limit takes no part in the gradient
    d = input - target
    loss = 0.5 * (ops.log(var) + d * d / var)
    return _reduce(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, -target * (input1 - input2) + margin)."""
    return _reduce(ops.clamp(-target * (input1 - input2) + margin, min=0), _legacy(size_average, reduce, reduction))


def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """input where target is 1, max(0, margin - input) where it is -1."""
    loss = ops.where(target != 1, ops.clamp(margin - input, min=0), 0.0) + ops.where(target != -1, input, 0.0)
    return _reduce(loss, _legacy(size_average, reduce, reduction))


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - cos where target is 1, max(0, cos - margin) where it is -1."""
    cos = cosine_similarity(input1, input2, dim=-1, eps=1e-12)
    loss = ops.where(target == 1, 1 - cos, 0.0) + ops.where(target == -1, ops.clamp(cos - margin, min=0), 0.0)
    return _reduce(loss, _legacy(size_average, reduce, reduction))


def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2, eps: float = 1e-6, swap: bool = False,
    size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin)."""
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = ops.minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduce(ops.clamp(near - far + margin, min=0), _legacy(size_average, reduce, reduction))


