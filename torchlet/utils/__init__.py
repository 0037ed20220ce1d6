"""Home of PyTorch's names `torchlet.utils.data` and its neighbours, loaded on first use: worker processes need multiprocessing."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["checkpoint", "data", "tensorboard"]


def __getattr__(name: str) -> Any:
    if name in ("_pytree", "checkpoint", "data", "dlpack", "tensorboard"):
        return importlib.import_module(f"torchlet.utils.{name}")
    raise AttributeError(f"module 'torchlet.utils' has no attribute '{name}'")
