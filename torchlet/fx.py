"""torchlet.fx: only `wrap`; graphs are recorded by running (see `torchlet.explain`)."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["wrap"]

F = TypeVar("F")


def wrap(fn_or_name: F) -> F:
    """The function itself: there is no symbolic trace to keep it out of."""
    return fn_or_name
