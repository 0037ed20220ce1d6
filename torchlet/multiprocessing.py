"""torchlet.multiprocessing: Python's multiprocessing with PyTorch's `spawn`; tensors are sent as copies."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import *  # noqa: F403
from typing import Any

__all__ = [*multiprocessing.__all__, "get_all_sharing_strategies", "get_sharing_strategy", "set_sharing_strategy", "spawn"]  # type: ignore[attr-defined]


def spawn(
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> Any:
    """Run `fn(rank, *args)` in `nprocs` processes. Raises RuntimeError when one fails."""
    context = multiprocessing.get_context(start_method)
    processes = [context.Process(target=fn, args=(rank, *args), daemon=daemon) for rank in range(nprocs)]  # type: ignore[attr-defined]
    for p in processes:
        p.start()
    if not join:
        return processes
    for rank, p in enumerate(processes):
        p.join()
        if p.exitcode:
            raise RuntimeError(f"spawn: process {rank} terminated with exit code {p.exitcode}")
    return None


def get_all_sharing_strategies() -> set[str]:
    """{"file_system"}: the word is known, tensors are copied."""
    return {"file_system"}


def get_sharing_strategy() -> str:
    """ "file_system"."""
    return "file_system"


def set_sharing_strategy(new_strategy: str) -> None:
    """Accepted; tensors are copied."""
