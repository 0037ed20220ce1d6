"""torchlet.nn.functional: layers, activations and losses as functions, PyTorch's signatures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, ops
from torchlet.autograd import no_grad
from torchlet.dtypes import dtype
from torchlet.expr import call
from torchlet.nn import resample
from torchlet.op import STATE, apply, pointwise
from torchlet.ops import attention, composite, convolve, pool
from torchlet.ops.public import in_place
from torchlet.tensor import Tensor

# ------------------------------------------------------------------------------------------------ activations

linear = ops.linear
gelu = ops.gelu
logsigmoid = ops.logsigmoid
tanh = ops.tanh
sigmoid = ops.sigmoid
softplus = ops.softplus


def _into(input: Tensor, function: Callable[[Tensor], Tensor], inplace: bool) -> Tensor:
    return in_place(function)(input) if inplace else function(input)  # type: ignore[no-any-return]


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return input.relu_() if inplace else ops.relu(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    return _into(input, ops.silu, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    return _into(input, ops.mish, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    return _into(input, lambda x: ops.leaky_relu(x, negative_slope), inplace)


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
    elif not input.ndim:
        weight = weight.reshape(())
    return ops.where(input > 0, input, weight * input)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return _into(input, lambda x: ops.elu(x, alpha), inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Scaled ELU (Klambauer et al. 2017)."""
    return _into(input, lambda x: 1.0507009873554804934193349852946 * ops.elu(x, 1.6732632423543772848170429916717), inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return _into(input, lambda x: alpha * ops.elu(x / alpha, 1.0), inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val]; no gradient flows at the limits themselves."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    low, high = _limit(input, min_val), _limit(input, max_val)
    return _into(input, lambda x: ops.where(x <= low, low, ops.where(x >= high, high, x)), inplace)


def _limit(x: Tensor, value: float) -> float:
    """A number to compare and mix with `x` that leaves its dtype as it is."""
    return float(value) if x.dtype.is_floating_point else int(value)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """x limited to [0, 6]."""
    return _into(input, ops.relu6, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return _into(input, lambda x: ops.relu6(x + 3) / 6, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * relu6(x + 3) / 6."""
    return _into(input, lambda x: x * ops.relu6(x + 3) / 6, inplace)


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
    return _into(input, lambda x: ops.where(x <= threshold, _limit(x, value), x), inplace)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b) of the halves a, b along `dim`."""
    if input.shape[dim] % 2:
        raise RuntimeError(f"glu: Halving dimension must be even, but dimension {dim} is size {input.shape[dim]}")
    a, b = input.chunk(2, dim)
    return a * ops.sigmoid(b)


def rrelu(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False) -> Tensor:
    """leaky_relu with slopes drawn from [lower, upper] while training, their mean else (Xu et al. 2015)."""
    slope: Any = ops.rand(*input.shape, dtype=input.dtype) * (upper - lower) + lower if training else (lower + upper) / 2
    return _into(input, lambda x: ops.where(x >= 0, x, x * slope), inplace)


def gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """Samples of the Gumbel-softmax distribution (Jang et al. 2017); `hard` gives one-hot samples with the soft gradient."""
    u = ops.rand(*logits.shape, dtype=logits.dtype).clamp(min=1e-30 if logits.dtype.itemsize >= 4 else 1e-7)
    soft = ops.softmax((logits - ops.log(-ops.log(u).clamp(max=-1e-30))) / tau, dim)
    if not hard:
        return soft
    best = soft.argmax(dim, keepdim=True)
    return ops.zeros_like(soft).scatter(dim, best, 1.0) - soft.detach() + soft


relu_ = ops.relu_


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """In-place elu."""
    return elu(input, alpha, True)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """In-place leaky_relu."""
    return leaky_relu(input, negative_slope, True)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """In-place hardtanh."""
    return hardtanh(input, min_val, max_val, True)


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
    return _into(input, lambda x: ops.dropout(x, p, training), inplace and training and p > 0)


def _drop_channels(input: Tensor, p: float, shape: Sequence[int], inplace: bool) -> Tensor:
    return _into(input, lambda x: x * ops.dropout(ops.ones(*shape, dtype=input.dtype, device=input.device), p), inplace)


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


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (N, C, D, H, W) or (C, D, H, W)."""
    _check_probability(p)
    if not training or p == 0.0:
        return input
    return _drop_channels(input, p, (*input.shape[:-3], 1, 1, 1), inplace)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """alpha_dropout of whole channels (N, C, …)."""
    _check_probability(p)
    if not training or p == 0.0:
        return input
    return _alpha_dropped(input, p, (*input.shape[:2], *[1] * (input.ndim - 2)), inplace)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout that keeps mean and variance of SELU activations (Klambauer et al. 2017)."""
    _check_probability(p)
    if not training or p == 0.0:
        return input
    return _alpha_dropped(input, p, tuple(input.shape), inplace)


def _alpha_dropped(input: Tensor, p: float, shape: tuple[int, ...], inplace: bool) -> Tensor:
    if p == 1.0:
        return _into(input, lambda x: x * 0.0, inplace)
    alpha = 1.7580993408473766
    a = 1.0 / math.sqrt((alpha * alpha * p + 1) * (1 - p))
    kept = ops.rand(*shape, device=input.device) >= p
    return _into(input, lambda x: ops.where(kept, x * a + alpha * a * p, -alpha * a + alpha * a * p), inplace)


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
    if input.ndim < 2:
        raise RuntimeError(f"group_norm: Expected at least 2 dimensions for input tensor but received {input.ndim}")
    n, channels = input.shape[:2]
    if channels % num_groups:
        raise RuntimeError(
            f"group_norm: Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    grouped = input.reshape(n, num_groups, math.prod(input.shape[1:]) // num_groups)  # (N, G, C/G * positions)
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
    x = ops.abs(x) if x.dtype.is_complex else x
    if p == 0:
        return x.ne(0).sum(dim, keepdim=keepdim).to(x.dtype)
    if p == 2:
        return ops.sqrt((x * x).sum(dim, keepdim=keepdim))
    if p == 1:
        return ops.abs(x).sum(dim, keepdim=keepdim)
    if p == math.inf:
        return ops.amax(ops.abs(x), dim, keepdim=keepdim)
    return ops.pow(ops.pow(ops.abs(x), p).sum(dim, keepdim=keepdim), 1.0 / p)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 · x2 / (max(‖x1‖, eps) · max(‖x2‖, eps)) along `dim`."""
    x1, x2 = ops.broadcast_tensors(x1, x2)
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
    if max_norm is not None:
        _limit_rows(weight, input, max_norm, norm_type)
    out = ops.embedding(weight, input)
    if scale_grad_by_freq:
        out = _by_frequency(out, input)
    if padding_idx is not None and weight.requires_grad:
        rows = weight.shape[0]
        if not -rows <= padding_idx < rows:
            raise AssertionError("Padding_idx must be within num_embeddings")
        out = ops.where((input == padding_idx % rows).unsqueeze(-1), out.detach(), out)
    return out


def _limit_rows(weight: Tensor, used: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows of `weight` that are used down to `max_norm`, in place."""
    with no_grad():
        rows = ops.unique(used)
        weight.index_copy_(0, rows, ops.renorm(weight.detach().index_select(0, rows), norm_type, 0, max_norm))


def _by_frequency(rows: Tensor, used: Tensor) -> Tensor:
    """The same rows, with gradients divided by how often each row is used."""
    _, place, counts = ops.unique(used, return_inverse=True, return_counts=True)
    share = (1.0 / counts[place].to(rows.dtype)).unsqueeze(-1)
    return rows.detach() + (rows - rows.detach()) * share


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
    """Pad from the last dimension on: (left, right, top, bottom, …). Negative widths cut off.

    `mode` is "constant" (filled with `value`, 0 by default), "reflect", "replicate" or "circular". Raises RuntimeError for widths that
    do not fit, NotImplementedError for another mode, ValueError for a value that the mode has no use for.
    """
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if mode != "constant" and value is not None and value != 0:
        raise ValueError(f'Padding mode "{mode}" doesn\'t take in value argument')
    return ops.pad(input, pad, mode, value)


def embedding_bag(
    input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of bags of rows of `weight`: integers (B, n), or (n) with the start of each bag in `offsets` (B)."""
    if mode not in ("sum", "mean", "max"):
        raise ValueError("mode has to be one of sum, mean or max")
    if scale_grad_by_freq and mode == "max":
        raise RuntimeError("embedding_bag: max mode does not support scaling the gradient by the frequency")
    if per_sample_weights is not None:
        if mode != "sum":
            raise NotImplementedError(f"embedding_bag: per_sample_weights was not None. per_sample_weights is only supported "
                f"for mode='sum' (got mode='{mode}')")
        if per_sample_weights.shape != input.shape:
            raise ValueError(f"embedding_bag: If per_sample_weights ({tuple(per_sample_weights.shape)}) is not None, then it "
                f"must have the same shape as the input ({tuple(input.shape)})")
    if input.ndim == 2:
        if offsets is not None:
            raise ValueError("if input is 2D, then offsets has to be None, as input is treated is a mini-batch of fixed length sequences.")
        bags, size = input.shape
        bag = ops.arange(bags, device=input.device).repeat_interleave(size)
    elif input.ndim == 1:
        if offsets is None:
            raise ValueError("offsets has to be a 1D Tensor but got None")
        if offsets.ndim != 1:
            raise ValueError("offsets has to be a 1D Tensor")
        bags = offsets.shape[0] - bool(include_last_offset)
        starts = offsets[:bags]
        bag = (ops.arange(input.shape[0], device=input.device).unsqueeze(1) >= starts).long().sum(1) - 1
    else:
        raise ValueError(f"input has to be 1D or 2D Tensor, but got Tensor of dimension {input.ndim}")
    flat = input.reshape(-1)
    rows = embedding(flat, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    counted = ops.ones(flat.shape, dtype=weight.dtype) if padding_idx is None else (flat != padding_idx % weight.shape[0]).to(weight.dtype)
    if mode == "max":
        member = (bag == ops.arange(bags, device=input.device).unsqueeze(1)) & (counted > 0)  # (bags, n)
        best = ops.amax(ops.where(member.unsqueeze(-1), rows.unsqueeze(0), -math.inf), 1)
        return ops.where(member.any(1).unsqueeze(-1), best, 0.0)
    rows = rows * (counted if per_sample_weights is None else counted * per_sample_weights.reshape(-1)).unsqueeze(-1)
    out = ops.zeros(bags, weight.shape[1], dtype=weight.dtype).index_add(0, bag, rows)
    if mode == "sum":
        return out
    return out / ops.zeros(bags, dtype=weight.dtype).index_add(0, bag, counted).clamp(min=1).unsqueeze(-1)


# ------------------------------------------------------------------------------------------------ images in other sizes

affine_grid, grid_sample, interpolate, upsample = resample.affine_grid, resample.grid_sample, resample.interpolate, resample.upsample
channel_shuffle, pixel_shuffle, pixel_unshuffle = resample.channel_shuffle, resample.pixel_shuffle, resample.pixel_unshuffle

# ------------------------------------------------------------------------------------------------ convolution and pooling

conv1d, conv2d, conv3d = convolve.conv1d, convolve.conv2d, convolve.conv3d
conv_transpose1d, conv_transpose2d, conv_transpose3d = convolve.conv_transpose1d, convolve.conv_transpose2d, convolve.conv_transpose3d
unfold, fold = convolve.unfold_blocks, convolve.fold_blocks
avg_pool1d, avg_pool2d, avg_pool3d = pool.avg_pool1d, pool.avg_pool2d, pool.avg_pool3d
max_pool1d, max_pool2d, max_pool3d = pool.max_pool1d, pool.max_pool2d, pool.max_pool3d


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, L) -> (N, C, output_size)."""
    return pool.adaptive_avg_pool(input, output_size, 1)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, H, W) -> (N, C, *output_size); None keeps a size."""
    return pool.adaptive_avg_pool(input, output_size, 2)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, D, H, W) -> (N, C, *output_size); None keeps a size."""
    return pool.adaptive_avg_pool(input, output_size, 3)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """(N, C, L) -> (N, C, output_size)."""
    return pool.adaptive_max_pool(input, output_size, 1, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """(N, C, H, W) -> (N, C, *output_size); None keeps a size."""
    return pool.adaptive_max_pool(input, output_size, 2, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """(N, C, D, H, W) -> (N, C, *output_size); None keeps a size."""
    return pool.adaptive_max_pool(input, output_size, 3, return_indices)


def max_pool1d_with_indices(*args: Any, **kwargs: Any) -> Any:
    """max_pool1d with the positions of the largest elements."""
    return max_pool1d(*args, **{**kwargs, "return_indices": True})


def max_pool2d_with_indices(*args: Any, **kwargs: Any) -> Any:
    """max_pool2d with the positions of the largest elements."""
    return max_pool2d(*args, **{**kwargs, "return_indices": True})


def lp_pool1d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """The p-norm of every window, without absolute values: (sum of x^p)^(1/p)."""
    return _lp_pool(avg_pool1d(ops.pow(input, norm_type), kernel_size, stride, 0, ceil_mode), norm_type, kernel_size, 1)


def lp_pool2d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """As lp_pool1d over two dimensions."""
    return _lp_pool(avg_pool2d(ops.pow(input, norm_type), kernel_size, stride, 0, ceil_mode), norm_type, kernel_size, 2)


def _lp_pool(mean: Tensor, p: float, kernel_size: Any, rank: int) -> Tensor:
    count = math.prod(convolve.sizes_of("lp_pool", kernel_size, rank, "kernel_size"))
    return ops.pow(ops.sign(mean) * ops.relu(ops.abs(mean)) * count, 1.0 / p)


def max_unpool2d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None) -> Tensor:
    """Zeros with the elements of the input where `max_pool2d` found them."""
    return _max_unpool(input, indices, kernel_size, stride, padding, output_size, 2)


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None) -> Tensor:
    """Zeros with the elements of the input where `max_pool1d` found them."""
    return _max_unpool(input, indices, kernel_size, stride, padding, output_size, 1)


def _max_unpool(x: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any, rank: int) -> Tensor:
    kernel = convolve.sizes_of("max_unpool", kernel_size, rank, "kernel_size")
    step = kernel if stride is None else convolve.sizes_of("max_unpool", stride, rank, "stride")
    pads = convolve.sizes_of("max_unpool", padding, rank, "padding")
    size = [(n - 1) * s + k - 2 * p for n, s, k, p in zip(x.shape[-rank:], step, kernel, pads, strict=True)]
    if output_size is not None:
        size = list(output_size)[-rank:]
    lead = tuple(x.shape[:-rank])
    flat = ops.zeros(*lead, math.prod(size), dtype=x.dtype).scatter(len(lead), indices.reshape(*lead, -1), x.reshape(*lead, -1))
    return flat.reshape(*lead, *size)


def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None) -> Tensor:
    """Zeros with the elements of the input where `max_pool3d` found them."""
    return _max_unpool(input, indices, kernel_size, stride, padding, output_size, 3)


def lp_pool3d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """As lp_pool1d over three dimensions."""
    return _lp_pool(avg_pool3d(ops.pow(input, norm_type), kernel_size, stride, 0, ceil_mode), norm_type, kernel_size, 3)


def _fractional(
    input: Tensor, kernel_size: Any, output_size: Any, output_ratio: Any, return_indices: bool, samples: Tensor | None, rank: int
) -> Any:
    name = f"fractional_max_pool{rank}d"
    if output_size is None and output_ratio is None:
        raise ValueError(f"{name} requires specifying either an output_size or an output_ratio")
    kernel = convolve.sizes_of(name, kernel_size, rank, "kernel_size")
    if output_size is None:
        ratio = output_ratio if isinstance(output_ratio, tuple | list) else (output_ratio,) * rank
        output_size = [int(n * r) for n, r in zip(input.shape[-rank:], ratio, strict=True)]
    out = convolve.sizes_of(name, output_size, rank, "output_size")
    batched = input.ndim == rank + 2
    x = input if batched else input.unsqueeze(0)
    n, c, *sizes = x.shape
    for size, k, o in zip(sizes, kernel, out, strict=True):
        if o + k - 1 > size:
            raise RuntimeError(f"{name}: pool size {k} too large relative to input size {size} for {o} outputs")
    u = ops.rand(n, c, rank, dtype=x.dtype) if samples is None else samples.reshape(n, c, rank)
    best, place = x, ops.arange(math.prod(sizes)).reshape(sizes).expand(x.shape)
    for k in range(rank):  # each dimension by itself: the largest of windows is the largest of their rows' largest
        best, place = _fractional_dim(best, place, u[..., _SAMPLE_OF[rank][k]], kernel[k], out[k], k + 2)
    best, place = (best, place) if batched else (best.squeeze(0), place.squeeze(0))
    return (best, place) if return_indices else best


_SAMPLE_OF = {2: (1, 0), 3: (0, 1, 2)}  # in two dimensions PyTorch's first sample is the width's


def _fractional_dim(x: Tensor, place: Tensor, u: Tensor, kernel: int, out: int, dim: int) -> tuple[Tensor, Tensor]:
    """Largest elements of `out` windows along `dim` whose starts each (sample, channel) draws by `u` (Graham 2014)."""
    size = x.shape[dim]
    i = ops.arange(out, dtype=x.dtype)
    alpha = (size - kernel) / (out - 1) if out > 1 else 0.0
    starts = ((i + u.unsqueeze(-1)) * alpha).floor() - (u.unsqueeze(-1) * alpha).floor()  # (N, C, out)
    starts = ops.where(i == out - 1, float(size - kernel), starts).long()
    at = (starts.unsqueeze(-1) + ops.arange(kernel)).reshape(*starts.shape[:2], -1)  # (N, C, out * kernel)
    shape = [*at.shape[:2], *[1] * (x.ndim - 2)]
    shape[dim] = at.shape[-1]
    at = at.reshape(shape).expand(*x.shape[:dim], at.shape[-1], *x.shape[dim + 1:])
    windows = x.gather(dim, at).unflatten(dim, (out, kernel))
    values, best = windows.max(dim + 1, keepdim=True)
    return values.squeeze(dim + 1), place.gather(dim, at).unflatten(dim, (out, kernel)).gather(dim + 1, best).squeeze(dim + 1)


def fractional_max_pool2d(
    input: Tensor, kernel_size: Any, output_size: Any = None, output_ratio: Any = None, return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """The largest elements of windows at random steps, so that the output has any size; with `return_indices` also where they were."""
    return _fractional(input, kernel_size, output_size, output_ratio, return_indices, _random_samples, 2)


def fractional_max_pool3d(
    input: Tensor, kernel_size: Any, output_size: Any = None, output_ratio: Any = None, return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """As fractional_max_pool2d over three dimensions."""
    return _fractional(input, kernel_size, output_size, output_ratio, return_indices, _random_samples, 3)


def _with_indices(name: str, f: Any) -> Any:
    def g(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **{**kwargs, "return_indices": True})

    g.__name__ = g.__qualname__ = name
    g.__doc__ = "The pooled input and where each element was."
    return g


max_pool3d_with_indices = _with_indices("max_pool3d_with_indices", max_pool3d)
adaptive_max_pool1d_with_indices = _with_indices("adaptive_max_pool1d_with_indices", adaptive_max_pool1d)
adaptive_max_pool2d_with_indices = _with_indices("adaptive_max_pool2d_with_indices", adaptive_max_pool2d)
adaptive_max_pool3d_with_indices = _with_indices("adaptive_max_pool3d_with_indices", adaptive_max_pool3d)
fractional_max_pool2d_with_indices = _with_indices("fractional_max_pool2d_with_indices", fractional_max_pool2d)
fractional_max_pool3d_with_indices = _with_indices("fractional_max_pool3d_with_indices", fractional_max_pool3d)
native_channel_shuffle = channel_shuffle


def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`interpolate` with mode "nearest" under its old name."""
    return interpolate(input, size, scale_factor, mode="nearest")


def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`interpolate` with mode "bilinear" and aligned corners under its old name."""
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """conv1d of (time, batch, channels) with a weight (kernel, in, out)."""
    return conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha * mean of x² over `size` channels around)^beta (Krizhevsky et al. 2012)."""
    if input.ndim < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {input.ndim} dimensions)")
    if input.numel() == 0:
        return input
    rest = input.reshape(input.shape[0], 1, input.shape[1], -1)
    squares = pool.avg_pool2d(ops.pad(rest * rest, (0, 0, size // 2, (size - 1) // 2)), (size, 1), 1)
    return input / ops.pow(squares.reshape(input.shape) * alpha + k, beta)


# ------------------------------------------------------------------------------------------------ attention

scaled_dot_product_attention = attention.scaled_dot_product_attention


def _as_float_mask(mask: Tensor | None, name: str, dtype: dtype) -> Tensor | None:
    """True, which hides a position, as -inf to be added."""
    if mask is None:
        return None
    if mask.dtype is dtypes.bool_:
        return ops.where(mask, -math.inf, ops.zeros((), dtype=dtype))
    if not mask.dtype.is_floating_point:
        raise AssertionError(f"only bool and floating types of {name} are supported")
    return mask


def _projected(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The three input projections with one packed weight (3E, E), as few products as there are different inputs."""
    e = weight.shape[1]
    if key is value:
        if query is key:
            q, k, v = linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        biases = (None, None) if bias is None else (bias[:e], bias[e:])
        k, v = linear(key, weight[e:], biases[1]).chunk(2, -1)
        return linear(query, weight[:e], biases[0]), k, v
    parts = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = [linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), parts, strict=True)]
    return q, k, v


def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True, key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None, static_v: Tensor | None = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of several heads (Vaswani et al. 2017).

    (L, N, E), (S, N, E), (S, N, E) give (L, N, E) and, if wanted, the weights (N, L, S).
    """
    batched = query.ndim == 3
    if query.ndim not in (2, 3) or key.ndim != query.ndim or value.ndim != query.ndim:
        raise AssertionError(f"query should be unbatched 2D or batched 3D tensor but received {query.ndim}-D query tensor, "
            f"with key {key.ndim}-D and value {value.ndim}-D")
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if not batched:
        same_kv, same_qk = key is value, query is key
        query = query.unsqueeze(1)
        key = query if same_qk else key.unsqueeze(1)
        value = key if same_kv else value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    length, n, e = query.shape
    if e != embed_dim_to_check:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim_to_check}, but got {e}")
    if e % num_heads:
        raise AssertionError(f"embed_dim {e} not divisible by num_heads {num_heads}")
    head = e // num_heads
    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None
    else:
        attn_mask = _as_float_mask(attn_mask, "attn_mask", query.dtype)
        if key_padding_mask is not None:
            is_causal = False
    if use_separate_proj_weight:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        own = (q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = [linear(x, w, b) for x, w, b in zip((query, key, value), own, biases, strict=True)]  # type: ignore[arg-type]
    else:
        assert in_proj_weight is not None
        q, k, v = _projected(query, key, value, in_proj_weight, in_proj_bias)
    source = k.shape[0]
    if attn_mask is not None:
        expected = (length, source) if attn_mask.ndim == 2 else (n * num_heads, length, source)
        if tuple(attn_mask.shape) != expected:
            raise RuntimeError(f"The shape of the {attn_mask.ndim}D attn_mask is {attn_mask.shape}, but should be {expected}.")
        attn_mask = attn_mask.unsqueeze(0) if attn_mask.ndim == 2 else attn_mask.reshape(n, num_heads, length, source)
    hidden = _as_float_mask(key_padding_mask, "key_padding_mask", query.dtype)
    more = 0
    if bias_k is not None and bias_v is not None:
        k, v = ops.cat([k, bias_k.expand(1, n, e)]), ops.cat([v, bias_v.expand(1, n, e)])
        more += 1
    q = q.reshape(length, n, num_heads, head).permute(1, 2, 0, 3)  # (N, heads, L, head)
    k = k.reshape(k.shape[0], n, num_heads, head).permute(1, 2, 0, 3) if static_k is None else static_k.reshape(n, num_heads, -1, head)
    v = v.reshape(v.shape[0], n, num_heads, head).permute(1, 2, 0, 3) if static_v is None else static_v.reshape(n, num_heads, -1, head)
    if add_zero_attn:
        zeros = ops.zeros(n, num_heads, 1, head, dtype=q.dtype)
        k, v = ops.cat([k, zeros], 2), ops.cat([v, zeros], 2)
        more += 1
    if more:  # what was added may be looked at by all
        attn_mask = None if attn_mask is None else ops.pad(attn_mask, (0, more))
        hidden = None if hidden is None else ops.pad(hidden, (0, more))
    if hidden is not None:
        hidden = hidden.reshape(n, 1, 1, -1)
        attn_mask = hidden if attn_mask is None else (attn_mask.unsqueeze(0) if attn_mask.ndim == 3 else attn_mask) + hidden
    elif attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unsqueeze(0)
    drop = dropout_p if training else 0.0
    if need_weights:
        scores = ops.matmul(q * (1.0 / math.sqrt(head)), k.transpose(-2, -1))
        weights = ops.softmax(scores if attn_mask is None else scores + attn_mask, -1)
        if drop > 0.0:
            weights = dropout(weights, drop)
        out = ops.matmul(weights, v)
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal and attn_mask is None)
    out = linear(out.permute(2, 0, 1, 3).reshape(length, n, e), out_proj_weight, out_proj_bias)
    out = out if batched else out.squeeze(1)
    if not need_weights:
        return out, None
    weights = weights.mean(1) if average_attn_weights else weights
    return out, weights if batched else weights.squeeze(0)


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
    if input._meta.shape != target._meta.shape:
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
    if reduction == "mean" and weight is None and size_average is None and reduce is None and input._meta.shape == target._meta.shape:
        return apply(composite.mse_loss_, (input, target))
    reduction = _legacy(size_average, reduce, reduction)
    _same_size(input, target)
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




def triplet_margin_with_distance_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, distance_function: Any = None, margin: float = 1.0, swap: bool = False,
    reduction: str = "mean"
) -> Tensor:
    """triplet_margin_loss with a distance of one's own (pairwise_distance by default)."""
    distance = pairwise_distance if distance_function is None else distance_function
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = ops.minimum(far, distance(positive, negative))
    return _reduce(ops.clamp(near - far + margin, min=0), reduction)


def soft_margin_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """log(1 + exp(-target * input)) with targets of 1 and -1."""
    return _reduce(-ops.logsigmoid(target * input), _legacy(size_average, reduce, reduction))


def multilabel_soft_margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean"
) -> Tensor:
    """The mean over classes of the binary cross-entropy of each."""
    loss = -(target * ops.logsigmoid(input) + (1 - target) * ops.logsigmoid(-input))
    loss = loss if weight is None else loss * weight
    return _reduce(loss.mean(-1), _legacy(size_average, reduce, reduction))


def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:
    """The hinge loss of several classes: sum over the others of max(0, margin - x[target] + x[i])^p / classes."""
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    reduction = _legacy(size_average, reduce, reduction)
    x, t = (input, target) if input.ndim == 2 else (input.reshape(1, -1), target.reshape(1))
    z = ops.clamp(margin - x.gather(1, t.unsqueeze(1)) + x, min=0)
    z = z if p == 1 else z * z
    if weight is not None:
        z = z * weight.index_select(0, t).unsqueeze(1)
    others = ops.arange(x.shape[1], device=x.device) != t.unsqueeze(1)
    loss = ops.where(others, z, 0.0).sum(1) / x.shape[1]
    return _reduce(loss if input.ndim == 2 else loss.squeeze(0), reduction)


def multilabel_margin_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """Hinge losses between the target classes (listed up to the first -1) and all others."""
    x, t = (input, target) if input.ndim == 2 else (input.reshape(1, -1), target.reshape(1, -1))
    listed = (t < 0).long().cumsum(1) == 0  # (N, C): before the first -1
    safe = ops.where(listed, t, 0)
    is_target = ops.zeros(*x.shape, dtype=x.dtype).scatter_add(1, safe, listed.to(x.dtype)) > 0
    z = ops.clamp(1 - x.gather(1, safe).unsqueeze(2) + x.unsqueeze(1), min=0)  # (N, targets, C)
    loss = ops.where(listed.unsqueeze(2) & ~is_target.unsqueeze(1), z, 0.0).sum((1, 2)) / x.shape[1]
    return _reduce(loss if input.ndim == 2 else loss.squeeze(0), _legacy(size_average, reduce, reduction))


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The distances of all pairs of rows (n, m): (n (n - 1) / 2)."""
    n = input.shape[0]
    i, j = np.triu_indices(n, 1)
    d = input.index_select(0, ops.tensor(i)) - input.index_select(0, ops.tensor(j))
    return _norm(d, p, -1, False)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input1ᵀ weight input2: (…, a), (…, b) with (o, a, b) give (…, o)."""
    left = ops.matmul(input1.reshape(-1, input1.shape[-1]), weight.permute(1, 0, 2).reshape(weight.shape[1], -1))
    out = (left.reshape(-1, *weight.shape[::2]) * input2.reshape(-1, 1, input2.shape[-1])).sum(-1).to(left.dtype)
    out = out.reshape(*input1.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0, reduction: str = "mean",
    zero_infinity: bool = False
) -> Tensor:
    """Negative log-likelihood of label sequences summed over all alignments (Graves et al. 2006).

    `log_probs` is (T, N, C) or (T, C), `targets` (N, S), (S), or all targets one after the other; the lengths are numbers or tensors.
    """
    batched = log_probs.ndim == 3
    x = log_probs if batched else log_probs.unsqueeze(1)
    steps, n, _ = x.shape
    sizes = [np.asarray(v.numpy() if isinstance(v, Tensor) else v, np.int64).reshape(-1) for v in (input_lengths, target_lengths)]
    if any(len(s) != n for s in sizes):
        raise RuntimeError(f"ctc_loss: input_lengths and target_lengths must be of size batch_size ({n}); got {len(sizes[0])} "
            f"and {len(sizes[1])}")
    if sizes[0].max(initial=0) > steps:
        raise RuntimeError(f"ctc_loss: Expected input_lengths to have value at most {steps}, but got value {sizes[0].max()}")
    labels = np.full((n, 2 * int(sizes[1].max(initial=0)) + 1), blank, np.int64)  # blanks between the labels, before and after
    given = targets.numpy()
    ends = np.cumsum(sizes[1])
    for k, size in enumerate(sizes[1]):
        row = given[k] if given.ndim == 2 else given[ends[k] - size : ends[k]]
        labels[k, 1 : 2 * size : 2] = row[:size]
    skip = np.zeros(labels.shape, bool)
    skip[:, 2:] = (labels[:, 2:] != blank) & (labels[:, 2:] != labels[:, :-2])
    places, may_skip = ops.tensor(labels), ops.tensor(skip)
    lowest = -1e30  # not -inf: the gradient of a difference of infinities is NaN
    start = ops.tensor(np.arange(labels.shape[1]) < 2)
    alpha = ops.where(start, x[0].gather(1, places), lowest)
    length = ops.tensor(sizes[0]).unsqueeze(1)
    for t in range(1, steps):
        one = ops.pad(alpha, (1, 0), "constant", lowest)[:, :-1]
        two = ops.where(may_skip, ops.pad(alpha, (2, 0), "constant", lowest)[:, :-2] if labels.shape[1] > 1 else alpha * 0 + lowest, lowest)
        new = ops.logsumexp(ops.stack([alpha, one, two]), 0) + x[t].gather(1, places)
        alpha = ops.where(length > t, new, alpha)
    last = ops.tensor(2 * sizes[1]).unsqueeze(1)
    final = ops.cat([alpha.gather(1, last), ops.where(last > 0, alpha.gather(1, (last - 1).clamp(min=0)), lowest)], 1)
    loss = -ops.logsumexp(final, 1)
    loss = ops.where(loss > 1e29, 0.0 if zero_infinity else math.inf, loss)
    if reduction == "mean":
        return (loss / ops.tensor(sizes[1]).clamp(min=1)).mean()
    loss = loss if batched else loss.squeeze(0)
    return _reduce(loss, reduction)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """In-place celu."""
    return celu(input, alpha, True)


def selu_(input: Tensor) -> Tensor:
    """In-place selu."""
    return selu(input, True)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """In-place threshold."""
    return _into(input, lambda x: ops.where(x <= threshold, _limit(x, value), x), True)


def rrelu_(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False) -> Tensor:
    """In-place rrelu."""
    return rrelu(input, lower, upper, training, True)
