"""Every switch and environment variable of torchlet in one typed object, settable for a while with `with config(name=value):`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Config", "config"]

_T = TypeVar("_T")


def _switch(variable: str, read: Callable[[str], _T], default: _T) -> _T:
    return read(os.environ[variable]) if os.environ.get(variable) else default


def _truth(text: str) -> bool:
    return text.lower() not in ("0", "false", "no", "off")


def _one_of(variable: str, words: tuple[str, ...], default: str) -> str:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"{variable}: '{text}'; expected one of {', '.join(words)}")
        return text

    return _switch(variable, read, default)


FLOAT32_DOTS = ("ieee", "tf32x3", "bf16x6", "tf32")
CPU_FLOAT32_DOTS = ("ieee", "bf16x6", "bf16x3", "bf16")


class Config:
    """The switches. Each starts from its environment variable, read once at import.

    cache_dir     TORCHLET_CACHE_DIR: where compiled kernels are kept; empty: the user's cache folder
    cc            CC: the C compiler to call; empty: the first of cc, gcc, clang
    num_threads   TORCHLET_NUM_THREADS: threads of the CPU runtime; 0: one for each core this process may use
    debug         TORCHLET_DEBUG: where to write every stage and kernel of what is compiled: a folder, or 1 for ./torchlet_debug; with
                  ",ptx" after it (or `ptx` alone) also what Triton makes of the kernels; empty or 0: nowhere
    libcuda       TORCHLET_LIBCUDA: the NVIDIA driver's library; empty: libcuda.so.1
    cuda_sync     TORCHLET_CUDA_SYNC: 1 waits after every kernel, so that a kernel that fails is named with its lines
    cuda_graphs   TORCHLET_CUDA_GRAPHS: 0 launches kernels one by one, never as a CUDA graph
    float32_dot   TORCHLET_FLOAT32_DOT: how GPUs multiply float32 matrices: ieee (exact products, no tensor cores); tf32x3 or bf16x6 (three
                  or six products on tensor cores, nearly as exact); tf32 (one, 10 bits of mantissa); read when a kernel is compiled
    cpu_float32_dot  TORCHLET_CPU_FLOAT32_DOT: how CPUs with AMX multiply large float32 matrices: ieee (without AMX); bf16x6 (each factor
                  as three bfloat16 numbers: as exact as float32, up to twice as fast where the core is not shared, slower where a
                  neighbour uses its AMX); bf16x3 (as two); bf16 (as one, 8 bits of mantissa); read when a kernel is compiled
    deterministic TORCHLET_DETERMINISTIC: 1 chooses kernels by formulas alone, so that each run computes in the same order;
                  read when a graph is compiled
    tune          TORCHLET_TUNE: 0 never times alternates of hot GPU kernels, and uses no measurement that was kept
    c_walk        TORCHLET_C_WALK: 0 follows known paths in Python, without the C code that does the same faster; read at first use
    """

    __slots__ = (
        "cache_dir",
        "cc",
        "num_threads",
        "debug",
        "libcuda",
        "cuda_sync",
        "cuda_graphs",
        "float32_dot",
        "cpu_float32_dot",
        "deterministic",
        "tune",
        "c_walk",
    )

    def __init__(self) -> None:
        self.cache_dir = _switch("TORCHLET_CACHE_DIR", str, "")
        self.cc = _switch("CC", str, "")
        self.num_threads = _switch("TORCHLET_NUM_THREADS", int, 0)
        self.debug = _switch("TORCHLET_DEBUG", str, "")
        self.libcuda = _switch("TORCHLET_LIBCUDA", str, "")
        self.cuda_sync = _switch("TORCHLET_CUDA_SYNC", _truth, False)
        self.cuda_graphs = _switch("TORCHLET_CUDA_GRAPHS", _truth, True)
        self.float32_dot = _one_of("TORCHLET_FLOAT32_DOT", FLOAT32_DOTS, "ieee")
        self.cpu_float32_dot = _one_of("TORCHLET_CPU_FLOAT32_DOT", CPU_FLOAT32_DOTS, "ieee")
        self.deterministic = _switch("TORCHLET_DETERMINISTIC", _truth, False)
        self.tune = _switch("TORCHLET_TUNE", _truth, True)
        self.c_walk = _switch("TORCHLET_C_WALK", _truth, True)

    @contextmanager
    def __call__(self, **switches: object) -> Iterator[Config]:
        """Set switches within a `with` block. Raises AttributeError for a name that is no switch."""
        for name in switches:
            if name not in self.__slots__:
                raise AttributeError(f"config: no switch named '{name}'; expected one of {', '.join(sorted(self.__slots__))}")
        before = {name: getattr(self, name) for name in switches}
        try:
            for name, value in switches.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)


config = Config()
