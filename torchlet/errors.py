"""Error classes and the one way messages are worded."""

from __future__ import annotations

__all__ = ["CompileError", "UnsupportedError", "message"]


class CompileError(RuntimeError):
    """A stage of the compiler failed; the text says which, and for which user line."""


class UnsupportedError(CompileError):
    """A graph or an operator that a target cannot express; carries the reason that `explain()` shows."""


def message(op: str, given: str, expected: str, help: str = "") -> str:
    """`op: what was given; expected …`, with a `help:` line where the remedy is known."""
    text = f"{op}: {given}; expected {expected}"
    return f"{text}\nhelp: {help}" if help else text
