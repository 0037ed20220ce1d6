"""torchlet.masked: reductions of what a mask lets through, with PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torchlet import dtypes
from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Tensor

__all__ = [
    "amax", "amin", "argmax", "argmin", "cumprod", "cumsum", "log_softmax", "logsumexp", "mean", "norm", "normalize", "prod", "softmax",
    "softmin", "std", "sum", "var",
]  # fmt: skip


def _filled(input: Tensor, mask: Tensor | None, dtype: Any, value: Any) -> Tensor:
    x = input if dtype is None else input.to(dtype)
    if mask is None:
        return x
    mask = mask.to(dtypes.bool_)
    shape = FUNCTIONS["broadcast_shapes"](tuple(x.shape), tuple(mask.shape))
    return FUNCTIONS["where"](mask.expand(shape), x.expand(shape), value)  # type: ignore[no-any-return]


def _lowest(x: Tensor, sign: int) -> Any:
    if x.dtype.is_floating_point:
        return sign * math.inf
    info = FUNCTIONS["iinfo"](x.dtype)
    return info.max if sign > 0 else info.min


def _count(input: Tensor, mask: Tensor | None, dim: Any, keepdim: bool) -> Tensor:
    ones = FUNCTIONS["ones_like"](input, dtype=dtypes.int64)
    return _filled(ones, mask, None, 0).sum(dim, keepdim=keepdim)


def sum(input: Tensor, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """The sum of what the mask lets through."""
    return _filled(input, mask, dtype, 0).sum(dim, keepdim=keepdim)


def prod(input: Tensor, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """The product of what the mask lets through."""
    x = _filled(input, mask, dtype, 1)
    if dim is None and not keepdim:
        return x.prod()
    dims = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
    for d in sorted((k % max(x.ndim, 1) for k in dims), reverse=True):
        x = x.prod(d, keepdim=keepdim)
    return x


def mean(input: Tensor, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """The mean of what the mask lets through."""
    x = input if dtype is None else input.to(dtype)
    return sum(x, dim, keepdim=keepdim, mask=mask) / _count(x, mask, dim, keepdim)


def amax(input: Tensor, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """The largest of what the mask lets through."""
    x = input if dtype is None else input.to(dtype)
    return _filled(x, mask, None, _lowest(x, -1)).amax(dim, keepdim=keepdim)


def amin(input: Tensor, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """The smallest of what the mask lets through."""
    x = input if dtype is None else input.to(dtype)
    return _filled(x, mask, None, _lowest(x, 1)).amin(dim, keepdim=keepdim)


def argmax(input: Tensor, dim: int | None = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Where the largest of what the mask lets through stands."""
    x = input if dtype is None else input.to(dtype)
    return _filled(x, mask, None, _lowest(x, -1)).argmax(dim, keepdim=keepdim)


def argmin(input: Tensor, dim: int | None = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Where the smallest of what the mask lets through stands."""
    x = input if dtype is None else input.to(dtype)
    return _filled(x, mask, None, _lowest(x, 1)).argmin(dim, keepdim=keepdim)


def cumsum(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Running sums of what the mask lets through."""
    return _filled(input, mask, dtype, 0).cumsum(dim, dtype=dtype or input.dtype)


def cumprod(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Running products of what the mask lets through."""
    return _filled(input, mask, dtype, 1).cumprod(dim, dtype=dtype or input.dtype)


def _line(name: str) -> Callable[..., Tensor]:
    def f(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
        x = _filled(input, mask, dtype, -math.inf)
        return FUNCTIONS[name](x, dim)  # type: ignore[no-any-return]

    f.__name__ = f.__qualname__ = name
    f.__doc__ = f"{name} of what the mask lets through."
    return f


softmax, log_softmax = _line("softmax"), _line("log_softmax")


def softmin(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """softmin of what the mask lets through."""
    return softmax(-input, dim, dtype=dtype, mask=mask)


def logsumexp(input: Tensor, dim: Any, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """logsumexp of what the mask lets through."""
    return FUNCTIONS["logsumexp"](_filled(input, mask, dtype, -math.inf), dim, keepdim)  # type: ignore[no-any-return]


def norm(
    input: Tensor, ord: float = 2.0, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None
) -> Tensor:
    """The p-norm of what the mask lets through."""
    return _filled(input, mask, dtype, math.inf if ord == -math.inf else 0).norm(float(ord), dim, keepdim)


def normalize(input: Tensor, ord: float, dim: int, *, eps: float = 1e-12, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """The input over its masked norm."""
    x = input if dtype is None else input.to(dtype)
    return _filled(x, mask, None, 0) / norm(x, ord, dim, keepdim=True, mask=mask).clamp(min=eps)


def var(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The variance of what the mask lets through."""
    x = input if dtype is None else input.to(dtype)
    free = correction if correction is not None else 1 if unbiased is None or unbiased else 0
    apart = _filled((x - mean(x, dim, keepdim=True, mask=mask)) ** 2, mask, None, 0)
    count = _count(x, mask, dim, keepdim) - free
    return apart.sum(dim, keepdim=keepdim) / FUNCTIONS["clamp"](count, min=0)


def std(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The standard deviation of what the mask lets through."""
    return var(input, dim, unbiased, correction=correction, keepdim=keepdim, dtype=dtype, mask=mask).sqrt()
