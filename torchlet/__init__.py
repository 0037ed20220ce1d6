"""torchlet: tensors that feel like PyTorch's, recorded while they run and compiled. The public names; no code of its own."""

# ruff: noqa: F401 -- to hold these names is what this file is for

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from torchlet import autograd, ops, random, utils
from torchlet.autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from torchlet.config import config
from torchlet.dtypes import (
    bfloat16,
    cdouble,
    cfloat,
    complex64,
    complex128,
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
from torchlet.einops_backend import register_when_imported
from torchlet.ops import *  # noqa: F403
from torchlet.ops.create import Generator, default_generator
from torchlet.spec import Size, device
from torchlet.tensor import Parameter, Tensor
from torchlet.version import __version__

if TYPE_CHECKING:  # editors complete these
    from torchlet import nn, optim

register_when_imported()
inf, nan, pi, e = math.inf, math.nan, math.pi, math.e
newaxis = None


# Loaded on first use: the compiler, and what only some programs need. module -> its names; "": itself.
_LAZY = {
    "torchlet.compiler": "compile explain",
    "torchlet.serialize": "load save",
    "torchlet.amp": "autocast get_autocast_dtype is_autocast_enabled GradScaler",
    "torchlet.cuda": "Event Stream OutOfMemoryError",
    "torchlet.futures": "Future",
    "torchlet.jit": "fork wait",
    "torchlet.func": "vmap",
    "torchlet.nn.functional": (
        "adaptive_avg_pool1d alpha_dropout avg_pool1d batch_norm bilinear binary_cross_entropy_with_logits celu channel_shuffle "
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_embedding_loss cosine_similarity "
        "celu_ conv_tbc ctc_loss feature_alpha_dropout native_channel_shuffle rrelu_ selu_ threshold_ "
        "embedding_bag group_norm hardshrink hinge_embedding_loss instance_norm kl_div layer_norm margin_ranking_loss max_pool1d "
        "max_pool2d max_pool3d pairwise_distance pixel_shuffle pixel_unshuffle poisson_nll_loss prelu rms_norm rrelu selu "
        "threshold triplet_margin_loss"
    ),
    "torchlet.settings": (
        "SymBool SymFloat SymInt are_deterministic_algorithms_enabled get_autocast_cpu_dtype get_autocast_gpu_dtype get_default_device "
        "get_deterministic_debug_mode get_float32_matmul_precision get_num_interop_threads get_num_threads is_anomaly_enabled "
        "is_autocast_cpu_enabled is_inference_mode_enabled is_storage is_warn_always_enabled set_default_device "
        "set_deterministic_debug_mode "
        "clear_autocast_cache compiled_with_cxx11_abi get_device_module is_anomaly_check_nan_enabled is_autocast_cache_enabled "
        "is_deterministic_algorithms_warn_only_enabled set_anomaly_enabled set_autocast_cache_enabled "
        "set_float32_matmul_precision set_flush_denormal set_num_interop_threads set_num_threads set_warn_always typename "
        "use_deterministic_algorithms"
    ),
    "": (
        "accelerator amp backends compat compiler cpu cuda distributed distributions fft func functional futures fx gradients hub jit "
        "library linalg masked multiprocessing nn optim overrides "
        "profiler serialization serialize settings signal special storage testing types version"
    ),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    where = _MODULE_OF.get(name)
    if where:
        return getattr(importlib.import_module(where), name)
    if where is not None or name == "debug":
        return importlib.import_module("torchlet.compiler.debug" if name == "debug" else f"torchlet.{name}")
    if name.startswith("__"):
        raise AttributeError(f"module 'torchlet' has no attribute '{name}'")
    absent = importlib.import_module("torchlet.absent")  # only an error needs it
    raise AttributeError(f"module 'torchlet' has no attribute '{name}'{absent.missing(name, name, __dir__())}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, "debug"})
