"""torchlet.jit: TorchScript's words. Functions and modules stay what they are; `torchlet.compile` makes them fast."""

from __future__ import annotations

from typing import Any, Final, TypeVar

__all__ = [
    "Final",
    "annotate",
    "export",
    "ignore",
    "interface",
    "is_scripting",
    "is_tracing",
    "script",
    "script_if_tracing",
    "script_method",
    "trace",
    "unused",
]

F = TypeVar("F")


def script(obj: F, *_: Any, **__: Any) -> F:
    """The function or module itself."""
    return obj


export = interface = script_if_tracing = script_method = script


def ignore(drop: Any = False, **_: Any) -> Any:
    """Decorator that leaves a function as it is."""
    return drop if callable(drop) else lambda f: f


def unused(fn: F) -> F:
    """The function itself."""
    return fn


def trace(func: F, example_inputs: Any = None, *_: Any, **__: Any) -> F:
    """The function or module itself: every path stays open."""
    return func


def annotate(the_type: Any, the_value: F) -> F:
    """The value itself."""
    return the_value


def is_scripting() -> bool:
    """False: Python runs."""
    return False


def is_tracing() -> bool:
    """False: Python runs."""
    return False
