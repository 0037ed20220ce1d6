"""torchlet.types: names for annotations."""

from __future__ import annotations

import os
from typing import IO, Any, TypeAlias

from torchlet.dtypes import dtype
from torchlet.spec import Size, device
from torchlet.tensor import Tensor

__all__ = ["Device", "FileLike", "Number", "Size", "Storage", "Tensor", "_bool", "_complex", "_device", "_dtype", "_float", "_int", "_size"]

Device: TypeAlias = device | str | int | None
FileLike: TypeAlias = str | os.PathLike[str] | IO[bytes]
Number: TypeAlias = int | float | bool
Storage: TypeAlias = Any
_bool, _complex, _float, _int = bool, complex, float, int
_device, _dtype = device, dtype
_size: TypeAlias = Size | list[int] | tuple[int, ...]
