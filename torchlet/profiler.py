"""torchlet.profiler: the words that mark regions; times of kernels are in the debug dump (see `torchlet.debug`)."""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["record_function"]


class record_function(contextlib.ContextDecorator):
    """A named region; the name is kept, nothing is measured."""

    def __init__(self, name: str, args: str | None = None):
        self.name = name

    def __enter__(self) -> record_function:
        return self

    def __exit__(self, *_: Any) -> None:
        """Leaves nothing behind."""
