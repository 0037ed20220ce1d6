"""Windows of signal processing: symmetric by default, periodic with sym=False."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.ops.create import finish
from torchlet.tensor import Tensor, wrap

__all__ = [
    "bartlett", "blackman", "cosine", "exponential", "gaussian", "general_cosine", "general_hamming", "hamming", "hann", "kaiser",
    "nuttall",
]  # fmt: skip


def _window(f: Callable[..., Any]) -> Callable[..., Tensor]:
    """f(positions 0 … M-1, the last position of the symmetric window, …) as a function of M."""

    @functools.wraps(f)
    def made(
        M: int,
        *args: Any,
        sym: bool = True,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        kind = dtype or dtypes.get_default_dtype()
        if M < 0:
            raise ValueError(f"{f.__name__} requires non-negative window length, got M={M}")
        if kind not in (dtypes.float32, dtypes.float64):
            raise ValueError(f"{f.__name__} expects float32 or float64 dtypes, got: {kind}")
        if M > 1:
            values = f(np.arange(M, dtype=np.float64), float(M if not sym else M - 1), *args, **kwargs)
        else:
            values = np.ones(M)
        return finish(wrap(np.asarray(values).astype(kind.np)), device, requires_grad)

    return made


@_window
def exponential(k: Any, last: float, *, center: float | None = None, tau: float = 1.0) -> Any:
    """exp(-|n - center| / tau)."""
    if tau <= 0:
        raise ValueError(f"Tau must be positive, got: {tau} instead.")
    return np.exp(-np.abs(k - (last / 2 if center is None else center)) / tau)


@_window
def cosine(k: Any, last: float) -> Any:
    """Half a period of a sine."""
    return np.sin(np.pi * (k + 0.5) / (last + 1))


@_window
def gaussian(k: Any, last: float, *, std: float = 1.0) -> Any:
    """exp(-½ ((n - centre) / std)²)."""
    if std <= 0:
        raise ValueError(f"Standard deviation must be positive, got: {std} instead.")
    return np.exp(-0.5 * ((k - last / 2) / std) ** 2)


@_window
def kaiser(k: Any, last: float, *, beta: float = 12.0) -> Any:
    """Kaiser's window, by Bessel functions."""
    if beta < 0:
        raise ValueError(f"beta must be non-negative, got: {beta} instead.")
    return np.i0(beta * np.sqrt(np.maximum(1 - (2 * k / last - 1) ** 2, 0))) / np.i0(beta)


def _cosines(k: Any, last: float, a: Iterable[float]) -> Any:
    return sum((-1) ** n * w * np.cos(2 * np.pi * n * k / last) for n, w in enumerate(a))


@_window
def general_cosine(k: Any, last: float, *, a: Iterable[float]) -> Any:
    """A sum of cosines with the given weights and alternating signs."""
    if not isinstance(a, Iterable):
        raise TypeError("Coefficients must be a list/tuple")
    weights = list(a)
    if not weights:
        raise ValueError("Coefficients cannot be empty")
    return _cosines(k, last, weights)


@_window
def general_hamming(k: Any, last: float, *, alpha: float = 0.54) -> Any:
    """alpha - (1 - alpha) cos."""
    return _cosines(k, last, (alpha, 1 - alpha))


@_window
def hamming(k: Any, last: float) -> Any:
    """0.54 - 0.46 cos."""
    return _cosines(k, last, (0.54, 0.46))


@_window
def hann(k: Any, last: float) -> Any:
    """½ - ½ cos."""
    return _cosines(k, last, (0.5, 0.5))


@_window
def blackman(k: Any, last: float) -> Any:
    """0.42 - 0.5 cos + 0.08 cos of twice the angle."""
    return _cosines(k, last, (0.42, 0.5, 0.08))


@_window
def bartlett(k: Any, last: float) -> Any:
    """A triangle."""
    return 1 - np.abs(2 * k / last - 1)


@_window
def nuttall(k: Any, last: float) -> Any:
    """Nuttall's window of four terms."""
    return _cosines(k, last, (0.3635819, 0.4891775, 0.1365995, 0.0106411))
