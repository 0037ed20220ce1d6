"""torchlet.cuda: what can be said of CUDA devices here. Eager tensors live on the CPU; compiled kernels are for GPUs too."""

from __future__ import annotations

from typing import Any

__all__ = ["current_device", "device_count", "empty_cache", "is_available", "manual_seed", "manual_seed_all", "synchronize"]


def is_available() -> bool:
    """True if tensors can live on a CUDA device."""
    return False


def device_count() -> int:
    """How many CUDA devices tensors can live on."""
    return 0


def current_device() -> int:
    """The number of the current device. Raises RuntimeError where there is none."""
    raise RuntimeError("cuda: no CUDA device is available to tensors\nhelp: ask torchlet.cuda.is_available() first")


def synchronize(device: Any = None) -> None:
    """Wait for the device; raises RuntimeError where there is none."""
    current_device()


def empty_cache() -> None:
    """Give unused device memory back; nothing is held where there is no device."""


def manual_seed(seed: int) -> None:
    """Seed the device's generator; without a device, nothing."""


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all devices; without a device, nothing."""
