"""torchlet.accelerator: the device that is faster than the CPU, if there is one."""

from __future__ import annotations

from typing import Any

from torchlet import cuda
from torchlet.spec import device

__all__ = ["current_accelerator", "current_device_index", "device_count", "is_available", "set_device_index", "synchronize"]


def is_available() -> bool:
    """True if there is a CUDA device."""
    return cuda.is_available()


def current_accelerator(check_available: bool = False) -> device | None:
    """device("cuda"), or None where there is none."""
    return device("cuda") if cuda.is_available() else None


def device_count() -> int:
    """How many CUDA devices there are."""
    return cuda.device_count()


def current_device_index() -> int:
    """The number of the current device."""
    return cuda.current_device()


def set_device_index(index: Any) -> None:
    """Make a device current."""
    cuda.set_device(index)


def synchronize(index: Any = None) -> None:
    """Wait until the device has done everything."""
    cuda.synchronize(index)
