"""torchlet: tensors that feel like PyTorch's, recorded while they run and compiled. The public names; no code of its own."""

# ruff: noqa: F401 -- to hold these names is what this file is for

from __future__ import annotations

import importlib
from typing import Any

from torchlet import autograd, fft, linalg, nn, ops, optim, random, special, utils
from torchlet.autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from torchlet.config import config
from torchlet.dtypes import (
    bfloat16,
    double,
    dtype,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    int8,
    int16,
    int32,
    int64,
    long,
    promote_types,
    set_default_dtype,
    short,
    uint8,
)
from torchlet.dtypes import (
    bool_ as bool,
)
from torchlet.dtypes import (
    float_ as float,
)
from torchlet.dtypes import (
    int_ as int,
)
from torchlet.ops import *  # noqa: F403
from torchlet.ops.create import Generator, default_generator
from torchlet.spec import Size, device
from torchlet.tensor import Parameter, Tensor

__version__ = "0.1.0"


_LAZY = {  # loaded on first use: the compiler with networkx and triton, and what only some programs need
    "compile": "torchlet.compiler", "explain": "torchlet.compiler", "load": "torchlet.serialize", "save": "torchlet.serialize",
    "compiler": "", "debug": "compiler.", "serialize": "", "cuda": "",
}


def __getattr__(name: str) -> Any:
    where = _LAZY.get(name)
    if where is None:
        raise AttributeError(f"module 'torchlet' has no attribute '{name}'")
    if where.startswith("torchlet."):
        return getattr(importlib.import_module(where), name)
    return importlib.import_module(f"torchlet.{where}{name}")
