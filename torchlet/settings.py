"""Switches that PyTorch programs set: default device, threads, precision, determinism. What has no meaning here is kept and told back."""

from __future__ import annotations

import os
from typing import Any

from torchlet import amp, cpu, cuda
from torchlet.config import config
from torchlet.op import STATE
from torchlet.ops.place import place_of
from torchlet.spec import CPU
from torchlet.spec import device as Device
from torchlet.tensor import Tensor

__all__ = [
    "SymBool",
    "SymFloat",
    "SymInt",
    "are_deterministic_algorithms_enabled",
    "get_autocast_cpu_dtype",
    "get_autocast_dtype",
    "get_autocast_gpu_dtype",
    "get_default_device",
    "get_deterministic_debug_mode",
    "get_float32_matmul_precision",
    "get_num_interop_threads",
    "get_num_threads",
    "is_anomaly_enabled",
    "is_autocast_cpu_enabled",
    "is_autocast_enabled",
    "is_inference_mode_enabled",
    "is_storage",
    "is_warn_always_enabled",
    "set_default_device",
    "set_deterministic_debug_mode",
    "set_float32_matmul_precision",
    "set_flush_denormal",
    "set_num_interop_threads",
    "set_num_threads",
    "set_warn_always",
    "typename",
    "use_deterministic_algorithms",
]

is_autocast_enabled, get_autocast_dtype = amp.is_autocast_enabled, amp.get_autocast_dtype
_chosen: dict[str, Any] = {"precision": "highest", "warn_always": False, "interop": 1}


def set_default_device(device: Any) -> None:
    """Where this thread's new tensors are made unless said otherwise. Raises RuntimeError for a device that is not there."""
    place = None if device is None else place_of(device)
    STATE.default_device = None if place is CPU else place


def get_default_device() -> Device:
    """Where this thread's new tensors are made."""
    return STATE.default_device or CPU


def get_num_threads() -> int:
    """Threads of the CPU runtime."""
    return config.num_threads or len(os.sched_getaffinity(0))


def set_num_threads(n: int) -> None:
    """Threads of the CPU runtime. Raises RuntimeError below 1."""
    if n < 1:
        raise RuntimeError("set_num_threads: expects a positive integer")
    config.num_threads = int(n)


def get_num_interop_threads() -> int:
    """What was set; operations run one after the other."""
    return int(_chosen["interop"])


def set_num_interop_threads(n: int) -> None:
    """Kept and told back."""
    _chosen["interop"] = int(n)


def set_float32_matmul_precision(precision: str) -> None:
    """How compiled code multiplies float32: "highest" as exactly as float32 is; what is compiled already stays as it is.

    "high" and "medium" permit CUDA devices to multiply in TF32, and CPUs with AMX to take each factor as two bfloat16 numbers ("high") or
    one ("medium"). `config.float32_dot` and `config.cpu_float32_dot` name more precisions.
    Raises RuntimeError for another word.
    """
    if precision not in ("highest", "high", "medium"):
        raise RuntimeError(f"float32_matmul_precision can only be set to 'highest', 'high' or 'medium', got {precision!r}")
    _chosen["precision"] = precision
    config.float32_dot = "ieee" if precision == "highest" else "tf32"
    config.cpu_float32_dot = {"highest": "ieee", "high": "bf16x3", "medium": "bf16"}[precision]


def get_float32_matmul_precision() -> str:
    """What was set; "high" also after `backends.cuda.matmul.allow_tf32 = True`."""
    chosen = str(_chosen["precision"])
    return ("high" if chosen == "highest" else chosen) if config.float32_dot == "tf32" else "highest"


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Results never depend on scheduling here; with True, GPU kernels are chosen by formulas alone, never by measuring."""
    config.deterministic = bool(mode)


def are_deterministic_algorithms_enabled() -> bool:
    """What was set."""
    return config.deterministic


def set_deterministic_debug_mode(debug_mode: int | str) -> None:
    """0 or "default" switches the wish for determinism off, others on."""
    config.deterministic = debug_mode not in (0, "default")


def get_deterministic_debug_mode() -> int:
    """2 where determinism is wished for, else 0."""
    return 2 if config.deterministic else 0


def set_flush_denormal(mode: bool) -> bool:
    """False: denormal numbers are always kept."""
    return False


def set_warn_always(b: bool) -> None:
    """Kept and told back; Python's warning filters decide."""
    _chosen["warn_always"] = bool(b)


def is_warn_always_enabled() -> bool:
    """What was set."""
    return bool(_chosen["warn_always"])


def is_anomaly_enabled() -> bool:
    """False: errors of the backward pass name their operation anyway."""
    return False


def is_inference_mode_enabled() -> bool:
    """True where nothing is recorded for `backward`."""
    return not STATE.grad


def is_autocast_cpu_enabled() -> bool:
    """True inside an enabled autocast region."""
    return is_autocast_enabled("cpu")


def get_autocast_cpu_dtype() -> Any:
    """`get_autocast_dtype("cpu")`."""
    return get_autocast_dtype("cpu")


def get_autocast_gpu_dtype() -> Any:
    """`get_autocast_dtype("cuda")`."""
    return get_autocast_dtype("cuda")


def is_storage(obj: Any) -> bool:
    """True for what `Tensor.storage` gives."""
    return type(obj).__name__ in ("TypedStorage", "UntypedStorage")


def typename(obj: Any) -> str:
    """The name of a tensor's type, or of an object's class with its module."""
    if isinstance(obj, Tensor):
        return obj.type()  # type: ignore[no-any-return]
    kind = obj if isinstance(obj, type) else type(obj)
    return f"{kind.__module__}.{kind.__qualname__}"


class SymInt:
    """Never made: sizes are plain numbers. The name is for `isinstance`."""


class SymFloat:
    """Never made: see SymInt."""


class SymBool:
    """Never made: see SymInt."""


def clear_autocast_cache() -> None:
    """Nothing is cached: casts are made where they are needed."""


def is_autocast_cache_enabled() -> bool:
    """False: nothing is cached."""
    return False


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Accepted; nothing is cached."""


def is_deterministic_algorithms_warn_only_enabled() -> bool:
    """False: a program that asks for determinism gets it."""
    return False


def compiled_with_cxx11_abi() -> bool:
    """True, as PyTorch's builds are."""
    return True


def set_anomaly_enabled(enabled: bool, check_nan: bool = True) -> None:
    """Accepted; errors in a backward pass name the operator anyway."""


def is_anomaly_check_nan_enabled() -> bool:
    """False."""
    return False


def get_device_module(device: Any = None) -> Any:
    """torchlet.cuda for CUDA devices, torchlet.cpu else."""
    kind = str(device or "cpu").split(":")[0]
    return cuda if kind == "cuda" else cpu
