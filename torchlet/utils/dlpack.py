"""torchlet.utils.dlpack: memory shared with other libraries through the DLPack protocol."""

from __future__ import annotations

from typing import Any

from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Tensor

__all__ = ["from_dlpack", "to_dlpack"]


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor over the memory of an object with `__dlpack__`."""
    return FUNCTIONS["from_dlpack"](ext_tensor)  # type: ignore[no-any-return]


def to_dlpack(tensor: Tensor) -> Tensor:
    """The tensor itself: it has `__dlpack__`, which is what other libraries ask for."""
    return tensor
