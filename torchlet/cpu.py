"""torchlet.cpu: the CPU by the words of torchlet.cuda; work on it is done when a call returns."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

__all__ = [
    "Stream",
    "current_device",
    "current_stream",
    "device_count",
    "is_available",
    "is_initialized",
    "set_device",
    "stream",
    "synchronize",
]


class Stream:
    """The order in which calls are made."""

    def __init__(self, priority: int = -1):
        self.priority = priority

    def synchronize(self) -> None:
        """Nothing is pending."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing is pending."""


_STREAM = Stream()


def is_available() -> bool:
    """True."""
    return True


def is_initialized() -> bool:
    """True."""
    return True


def device_count() -> int:
    """1."""
    return 1


def current_device() -> str:
    """ "cpu"."""
    return "cpu"


def set_device(device: Any) -> None:
    """There is one."""


def synchronize(device: Any = None) -> None:
    """Nothing is pending."""


def current_stream(device: Any = None) -> Stream:
    """The one stream."""
    return _STREAM


def stream(stream: Any) -> Any:
    """A `with` block that changes nothing."""
    return contextlib.nullcontext(stream)


def __getattr__(name: str) -> Any:  # torch.cpu.amp
    if name == "amp":
        return importlib.import_module("torchlet.amp").cpu_amp
    raise AttributeError(f"module 'torchlet.cpu' has no attribute '{name}'")
