"""The debug dump: every stage and every kernel of what was compiled, as files that can be read and rerun."""

from __future__ import annotations

from typing import Any


def record(function: Any, path: Any, program: Any) -> None:
    """Note a program that was just compiled."""


def cpu_report(kernel: Any) -> Any:
    """A kernel printed for the CPU, with the fields that `kernels()` promises."""
