"""compile(), explain(), kernels(): the compiler's public face, and its stages in order.

PIPELINE lists the stages a segment goes through; README.md beside this file is the reading order.
"""

from __future__ import annotations

from typing import TypeVar

from torchlet.compiler.function import (
    CompiledFunction,
    compile,
    disable,
    explain,
    is_compiling,
    kernels,
    mark_dynamic,
    reset,
    stats,
)

F = TypeVar("F")
PIPELINE = (
    ("capture", "the user's Python runs; operations become steps of a path"),
    ("program", "a path becomes a Graph; what outlives it is an output"),
    ("differentiate", "where gradients are wanted outside: the joint graph, from the table's rules"),
    ("partition", "the joint graph is cut in forward and backward: keep or recompute"),
    ("decompose", "composite operators are opened"),
    ("simplify", "algebra, views of views, dead code"),
    ("lower", "nodes become scalar expressions over axes"),
    ("fuse", "which of them become one kernel"),
    ("schedule", "order, lifetimes, buffer reuse"),
    ("codegen", "C for the CPU, Triton for GPUs"),
    ("load", "text to callable, with a cache on disk"),
    ("execute", "one native call per segment"),
)



def allow_in_graph(fn: F) -> F:
    """The function itself: everything is recorded by running it."""
    return fn


def is_exporting() -> bool:
    """False: nothing is exported by running."""
    return False


is_dynamo_compiling = is_compiling
__all__ = [
    "PIPELINE",
    "allow_in_graph",
    "is_dynamo_compiling",
    "is_exporting",
    "CompiledFunction",
    "compile",
    "disable",
    "explain",
    "is_compiling",
    "kernels",
    "mark_dynamic",
    "reset",
    "stats",
]
