"""Layers that pad their input."""

from __future__ import annotations

from typing import Any

from torchlet.nn import functional as F
from torchlet.nn.module import Module
from torchlet.tensor import Tensor

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


class _Pad(Module):
    """`padding` is one number for all sides, or (left, right, top, bottom, …)."""

    mode: str

    def __init__(self, padding: Any) -> None:
        super().__init__()
        rank = int(type(self).__name__[-2])
        self.padding = tuple(padding) if isinstance(padding, tuple | list) else (padding,) * (2 * rank)

    def forward(self, input: Tensor) -> Tensor:
        """The input with more around it."""
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return f"{self.padding}"


class _ConstantPad(_Pad):
    def __init__(self, padding: Any, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        """The input with the value around it."""
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return f"padding={self.padding}, value={self.value}"


class _ZeroPad(_ConstantPad):
    def __init__(self, padding: Any) -> None:
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return f"{self.padding}"


class ConstantPad1d(_ConstantPad):
    """(N, C, L) with a value around it."""


class ConstantPad2d(_ConstantPad):
    """(N, C, H, W) with a value around it."""


class ConstantPad3d(_ConstantPad):
    """(N, C, D, H, W) with a value around it."""


class ZeroPad1d(_ZeroPad):
    """(N, C, L) with zeros around it."""


class ZeroPad2d(_ZeroPad):
    """(N, C, H, W) with zeros around it."""


class ZeroPad3d(_ZeroPad):
    """(N, C, D, H, W) with zeros around it."""


class ReflectionPad1d(_Pad):
    """(N, C, L) with its reflection around it."""

    mode = "reflect"


class ReflectionPad2d(_Pad):
    """(N, C, H, W) with its reflection around it."""

    mode = "reflect"


class ReflectionPad3d(_Pad):
    """(N, C, D, H, W) with its reflection around it."""

    mode = "reflect"


class ReplicationPad1d(_Pad):
    """(N, C, L) with its border repeated."""

    mode = "replicate"


class ReplicationPad2d(_Pad):
    """(N, C, H, W) with its border repeated."""

    mode = "replicate"


class ReplicationPad3d(_Pad):
    """(N, C, D, H, W) with its border repeated."""

    mode = "replicate"


class CircularPad1d(_Pad):
    """(N, C, L) repeated around itself."""

    mode = "circular"


class CircularPad2d(_Pad):
    """(N, C, H, W) repeated around itself."""

    mode = "circular"


class CircularPad3d(_Pad):
    """(N, C, D, H, W) repeated around itself."""

    mode = "circular"
