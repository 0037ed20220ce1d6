"""Home of PyTorch's name `torchlet.utils.data`, loaded on first use because worker processes need multiprocessing."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["data"]


def __getattr__(name: str) -> Any:
    if name == "data":
        return importlib.import_module("torchlet.utils.data")
    raise AttributeError(f"module 'torchlet.utils' has no attribute '{name}'")
