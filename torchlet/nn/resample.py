"""Images in other sizes: interpolation, sampling on a grid, pixel shuffling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchlet import dtypes, ops
from torchlet.ops import pool
from torchlet.tensor import Tensor

__all__ = ["affine_grid", "channel_shuffle", "grid_sample", "interpolate", "pixel_shuffle", "pixel_unshuffle", "upsample"]

_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}


def _size(x: Tensor, size: Any, scale_factor: Any, recompute: bool | None) -> tuple[tuple[int, ...], list[float]]:
    """The size to reach, and the steps in the input that one step in the output makes."""
    rank = x.ndim - 2
    if (size is None) == (scale_factor is None):
        raise ValueError(
            "only one of size or scale_factor should be defined" if size is not None else "either size or scale_factor should be defined"
        )
    if size is not None:
        out = (int(size),) * rank if not isinstance(size, Sequence) else tuple(map(int, size))
        if len(out) != rank:
            raise ValueError(
                f"Input and output must have the same number of spatial dimensions, but got input with spatial dimensions of "
                f"{list(x.shape[2:])} and "
                f"output size of {size}. Please provide input tensor in (N, C, d1, d2, ...,dK) format and output size in (o1, "
                f"o2, ...,oK) format."
            )
        return out, [n / m for n, m in zip(x.shape[2:], out, strict=True)]
    factors = [float(scale_factor)] * rank if not isinstance(scale_factor, Sequence) else [float(f) for f in scale_factor]
    if len(factors) != rank:
        raise ValueError(
            f"Input and scale_factor must have the same number of spatial dimensions, but got input with spatial dimensions "
            f"of {list(x.shape[2:])} "
            f"and scale_factor of shape {scale_factor}."
        )
    out = tuple([math.floor(n * f) for n, f in zip(x.shape[2:], factors, strict=True)])
    return out, [n / m for n, m in zip(x.shape[2:], out, strict=True)] if recompute else [1 / f for f in factors]


def _places(x: Tensor, n: int, out: int, step: float, align_corners: bool) -> Tensor:
    """Where each output element lies among n input elements, as a real number."""
    o = ops.arange(out, dtype=dtypes.float64 if x.dtype is dtypes.float64 else dtypes.float32, device=x.device)
    if align_corners:
        return o * ((n - 1) / (out - 1) if out > 1 else 0.0)
    return (o + 0.5) * step - 0.5


def _along(w: Tensor, x: Tensor, dim: int) -> Tensor:
    """Weights of the elements along a dimension, in the dtype of the input."""
    return w.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - dim))


def _linear(x: Tensor, dim: int, out: int, step: float, align_corners: bool) -> Tensor:
    n = x.shape[dim]
    if n == out and (align_corners or step == 1):
        return x
    at = _places(x, n, out, step, align_corners).clamp(min=0)
    low = at.long().clamp(max=n - 1)
    w = _along(at - low, x, dim)
    return x.index_select(dim, low) * (1 - w) + x.index_select(dim, (low + 1).clamp(max=n - 1)) * w


def _cubic(x: Tensor, dim: int, out: int, step: float, align_corners: bool) -> Tensor:
    """Cubic convolution with a = -0.75 (Keys 1981)."""
    n, a = x.shape[dim], -0.75
    at = _places(x, n, out, step, align_corners)
    low = ops.floor(at)
    t = at - low
    near = [t, 1 - t]
    far = [t + 1, 2 - t]
    inside = [((a + 2) * d - (a + 3)) * d * d + 1 for d in near]
    outside = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in far]
    total: Any = 0.0
    for shift, w in ((-1, outside[0]), (0, inside[0]), (1, inside[1]), (2, outside[1])):
        total = total + x.index_select(dim, (low + shift).long().clamp(0, n - 1)) * _along(w, x, dim)
    return total  # type: ignore[no-any-return]


def _antialiased(x: Tensor, dim: int, out: int, step: float, align_corners: bool, cubic: bool) -> Tensor:
    """Each output element is a weighted mean of all the input it covers, as Pillow resizes."""
    n = x.shape[dim]
    if align_corners:
        step = (n - 1) / (out - 1) if out > 1 else 0.0
    wide = max(step, 1.0)
    centre = step * (np.arange(out)[:, None] + 0.5)
    start = np.maximum((centre - (2 if cubic else 1) * wide + 0.5).astype(int), 0)
    stop = np.minimum((centre + (2 if cubic else 1) * wide + 0.5).astype(int), n)
    i = np.arange(n)
    d = np.abs((i + 0.5 - centre) / wide)
    a = -0.5
    bell = (
        np.where(d < 1, ((a + 2) * d - (a + 3)) * d * d + 1, np.where(d < 2, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a, 0))
        if cubic
        else np.maximum(1 - d, 0)
    )
    w = np.where((i >= start) & (i < stop), bell, 0)
    matrix = ops.tensor(w / w.sum(1, keepdims=True), dtype=x.dtype)
    return ops.matmul(x.movedim(dim, -1), matrix.transpose(0, 1)).movedim(-1, dim)


def _nearest(x: Tensor, dim: int, out: int, step: float, exact: bool) -> Tensor:
    n = x.shape[dim]
    if n == out and step == 1:
        return x
    if out % n == 0 and step == n / out:  # repeated elements are a view
        shape = tuple(x.shape)
        return x.unsqueeze(dim + 1).expand(*shape[: dim + 1], out // n, *shape[dim + 1 :]).reshape(*shape[:dim], out, *shape[dim + 1 :])
    at = ops.arange(out, dtype=dtypes.float32, device=x.device)
    return x.index_select(dim, ((at + 0.5 if exact else at) * step).long().clamp(max=n - 1))


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """(N, C, *n) in another size, given as `size` or as a factor.

    `mode`: "nearest", "nearest-exact", "area", "linear" (3D), "bilinear" and "bicubic" (4D), "trilinear" (5D). Raises ValueError for
    sizes and modes that do not go together, NotImplementedError for a mode that does not fit the rank.
    """
    if mode in ("nearest", "area", "nearest-exact"):
        if align_corners is not None:
            raise ValueError("align_corners option can only be set with the interpolating modes: linear | bilinear | bicubic | trilinear")
    elif mode not in _LINEAR or _LINEAR[mode] != input.ndim - 2:
        raise NotImplementedError(
            "Input Error: Only 3D, 4D and 5D input Tensors supported"
            f" (got {input.ndim}D) for the modes: nearest | linear | bilinear | bicubic | trilinear | area | nearest-exact (got {mode})"
        )
    if input.dtype is dtypes.uint8 and mode not in ("nearest", "nearest-exact", "area"):
        made = interpolate(input.float(), size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        return made.round().clamp(0, 255).to(dtypes.uint8)
    if antialias and not (mode in ("bilinear", "bicubic") and input.ndim == 4):
        raise ValueError("Anti-alias option is restricted to bilinear and bicubic modes and requires a 4-D tensor as input")
    out, steps = _size(input, size, scale_factor, recompute_scale_factor)
    if mode == "area":
        return pool.adaptive_avg_pool(input, out, input.ndim - 2)
    x = input
    for d in range(2, input.ndim):
        m, step = out[d - 2], steps[d - 2]
        if mode in ("nearest", "nearest-exact"):
            x = _nearest(x, d, m, step, mode == "nearest-exact")
        elif antialias:
            x = _antialiased(x, d, m, step, bool(align_corners), mode == "bicubic")
        else:
            x = (_cubic if mode == "bicubic" else _linear)(x, d, m, step, bool(align_corners))
    return x


def upsample(input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None) -> Tensor:
    """`interpolate` under its older name."""
    warnings.warn("`nn.functional.upsample` is deprecated. Use `nn.functional.interpolate` instead.", stacklevel=2)
    return interpolate(input, size, scale_factor, mode, align_corners)


# ------------------------------------------------------------------------------------------------ shuffling


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """(…, C r², H, W) -> (…, C, H r, W r) (Shi et al. 2016)."""
    *lead, c, h, w = input.shape
    r = upscale_factor
    if r <= 0 or c % (r * r):
        raise RuntimeError(
            f"pixel_shuffle expects its input's 'channel' dimension to be divisible by the square of upscale_factor, but "
            f"input.size(-3)={c} is not divisible by {r * r}"
        )
    k = len(lead)
    x = input.reshape(*lead, c // (r * r), r, r, h, w).permute(*range(k), k, k + 3, k + 1, k + 4, k + 2)
    return x.reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """(…, C, H r, W r) -> (…, C r², H, W): the inverse of pixel_shuffle."""
    *lead, c, h, w = input.shape
    r = downscale_factor
    if r <= 0 or h % r or w % r:
        raise RuntimeError(
            f"pixel_unshuffle expects height and width to be divisible by downscale_factor, but input sizes {h} and {w} are "
            f"not divisible by {r}"
        )
    k = len(lead)
    x = input.reshape(*lead, c, h // r, r, w // r, r).permute(*range(k), k, k + 2, k + 4, k + 1, k + 3)
    return x.reshape(*lead, c * r * r, h // r, w // r)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """(N, C, *) with the channels of the groups interleaved (Zhang et al. 2018)."""
    n, c, *rest = input.shape
    if c % groups:
        raise RuntimeError(f"Number of channels must be divisible by groups. Got {c} channels and {groups} groups.")
    return input.reshape(n, groups, c // groups, *rest).transpose(1, 2).reshape(n, c, *rest)


# ------------------------------------------------------------------------------------------------ grids


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """The sampling grid (N, H, W, 2) of affine maps theta (N, 2, 3), or (N, D, H, W, 3) of theta (N, 3, 4)."""
    rank = len(size) - 2
    if theta.ndim != 3 or tuple(theta.shape[1:]) != (rank, rank + 1):
        raise ValueError(
            f"Expected a batch of {rank}D affine matrices of shape Nx{rank}x{rank + 1} for size {tuple(size)}. Got {tuple(theta.shape)}."
        )
    lines = []
    for n in size[2:]:
        o = ops.arange(n, dtype=theta.dtype, device=theta.device)
        lines.append(o * (2 / (n - 1) if n > 1 else 0.0) - (1.0 if n > 1 else 0.0) if align_corners else (o * 2 + 1) / n - 1)
    shape = tuple(size[2:])
    parts = [line.reshape(*[-1 if k == d else 1 for k in range(rank)]).expand(*shape) for d, line in enumerate(lines)][::-1]
    base = ops.stack([*parts, ops.ones(*shape, dtype=theta.dtype, device=theta.device)], -1).reshape(1, -1, rank + 1)
    return ops.matmul(base, theta.transpose(1, 2)).reshape(theta.shape[0], *shape, rank)


def _reflected(x: Tensor, low: float, high: float) -> Tensor:
    """Positions folded back into [low, high]."""
    span = high - low
    if span <= 0:
        return x * 0.0
    x = ops.abs(x - low)
    extra = ops.remainder(x, span)
    return ops.where(ops.remainder(ops.floor(x / span), 2.0) == 0, extra + low, span - extra + low)


def grid_sample(
    input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Tensor:
    """The input (N, C, *n) at the positions of `grid` (N, *out, rank), whose last dimension is (x, y[, z]) from -1 to 1."""
    rank = input.ndim - 2
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(f"nn.functional.grid_sample(): expected mode to be 'bilinear', 'nearest' or 'bicubic', but got: '{mode}'")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            f"nn.functional.grid_sample(): expected padding_mode to be 'zeros', 'border', or 'reflection', but got: '{padding_mode}'"
        )
    if (
        rank not in (2, 3)
        or grid.ndim != input.ndim
        or grid.shape[-1] != rank
        or grid.shape[0] != input.shape[0]
        or (mode == "bicubic" and rank != 2)
    ):
        raise RuntimeError(
            f"grid_sample: got input {list(input.shape)} and grid {list(grid.shape)} for mode '{mode}'; expected (N, C, H, W) "
            f"with (N, h, w, 2) or (N, C, D, H, W) with (N, d, h, w, 3)"
        )
    if align_corners is None:
        warnings.warn(
            "Default grid_sample and affine_grid behavior has changed to align_corners=False since 1.3.0. "
            "Please specify align_corners=True if the old behavior is desired.",
            stacklevel=2,
        )
    sizes, at = tuple(input.shape[2:]), []
    for d, n in enumerate(sizes):
        g = grid.select(-1, rank - 1 - d)
        at.append((g + 1) * ((n - 1) / 2) if align_corners else ((g + 1) * n - 1) / 2)

    def bounded(x: Tensor, n: int) -> Tensor:
        if padding_mode == "border":
            return x.clamp(0, n - 1)
        if padding_mode == "reflection":
            x = _reflected(x, 0.0, n - 1.0) if align_corners else _reflected(x, -0.5, n - 0.5)
            return x.clamp(0, n - 1)
        return x

    flat = input.reshape(*input.shape[:2], -1)

    def read(corner: Sequence[Tensor]) -> Tensor:
        """(N, C, *out): the elements at whole positions, 0 outside."""
        inside: Any = True
        index: Any = 0
        for x, n in zip(corner, sizes, strict=True):
            here = (x >= 0) & (x <= n - 1)
            inside = here if inside is True else inside & here
            index = index * n + x.clamp(0, n - 1).long()
        picked = flat.gather(2, index.reshape(index.shape[0], 1, -1).expand(-1, flat.shape[1], -1))
        return ops.where(inside.unsqueeze(1), picked.reshape(*flat.shape[:2], *grid.shape[1:-1]), 0.0)

    if mode == "nearest":
        return read([ops.round(bounded(x, n)) for x, n in zip(at, sizes, strict=True)])
    if mode == "bicubic":
        a, low = -0.75, [ops.floor(x) for x in at]
        taps = []
        for x, base in zip(at, low, strict=True):
            t = x - base
            inside = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
            outside = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
            taps.append((outside[0], inside[0], inside[1], outside[1]))
        out: Any = 0.0
        for i in range(4):
            for j in range(4):
                w = taps[0][i] * taps[1][j]
                out = out + read([bounded(low[0] + (i - 1), sizes[0]), bounded(low[1] + (j - 1), sizes[1])]) * w.unsqueeze(1)
        return out  # type: ignore[no-any-return]
    at = [bounded(x, n) for x, n in zip(at, sizes, strict=True)]
    low = [ops.floor(x).detach() for x in at]
    total: Any = 0.0
    for corner in np.ndindex(*[2] * rank):
        weight: Any = 1.0
        for x, base, c in zip(at, low, corner, strict=True):
            weight = weight * (x - base if c else 1 - (x - base))
        total = total + read([base + c if c else base for base, c in zip(low, corner, strict=True)]) * weight.unsqueeze(1)
    return total  # type: ignore[no-any-return]
