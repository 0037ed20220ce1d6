"""Compiles Triton kernels into the disk cache in a process of its own: `python -m torchlet.compiler.compile_worker`, the work on stdin."""

from __future__ import annotations

import gc
import pickle
import sys

from torchlet.compiler import launch
from torchlet.config import config
from torchlet.errors import CompileError


def main() -> int:
    """Compile what stdin holds; a kernel that fails is left to the parent, which meets it again with its name."""
    gc.disable()  # see `launch.precompile`
    cache, target, kernels = pickle.load(sys.stdin.buffer)
    failed = 0
    with config(cache_dir=cache):
        for kernel in kernels:
            try:
                launch.cubin_of(kernel, target)
            except CompileError:
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
