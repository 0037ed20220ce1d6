"""Compiles Triton kernels into the disk cache in a process of its own: `python -m torchlet.compiler.compile_worker`, the work on stdin."""

from __future__ import annotations

import pickle
import sys

from torchlet.compiler import launch
from torchlet.config import config


def main() -> int:
    """Compile what stdin holds; a kernel that fails is left to the parent, which meets it again with its name."""
    cache, target, kernels, taken = pickle.load(sys.stdin.buffer)
    with config(cache_dir=cache):
        _, failed = launch.compile_share(kernels, target, taken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
