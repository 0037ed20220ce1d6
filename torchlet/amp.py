"""Automatic mixed precision: `autocast` converts the inputs of operators, `GradScaler` keeps small float16 gradients from vanishing."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torchlet import cuda, dtypes
from torchlet import op as op_module
from torchlet.autograd import no_grad
from torchlet.dtypes import dtype as DType
from torchlet.op import STATE, Op
from torchlet.ops.pointwise import cast
from torchlet.optim import Optimizer
from torchlet.spec import device as Device
from torchlet.tensor import Tensor

__all__ = ["GradScaler", "autocast", "custom_bwd", "custom_fwd", "get_autocast_dtype", "is_autocast_enabled"]

# Products run in the lower precision, losses and inverses in float32; all else takes what it is given (PyTorch's CPU lists).
LOWER = frozenset(("matmul", "linear", "linear_without_bias", "convolution", "convolution_transpose"))
FLOAT32 = frozenset(
    (
        "mse_loss",
        "cross_entropy",
        "cross_entropy_mean",
        "prod",
        "inv",
        "solve",
        "det",
        "logabsdet",
        "cholesky",
        "qr",
        "eigh",
        "svd",
        "fft",
        "rfft",
        "irfft",
    )
)
WIDEST = frozenset(("cat",))
_DEFAULTS = {"cpu": dtypes.bfloat16, "cuda": dtypes.float16}


def _casts(low: DType) -> Callable[[Op, tuple[Any, ...]], tuple[Any, ...]]:
    def convert(x: Any, to: DType) -> Any:
        return cast(x, to) if isinstance(x, Tensor) and x.dtype.is_floating_point and x.dtype is not dtypes.float64 else x

    def casts(op: Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if op.name in LOWER:
            return tuple([convert(x, low) for x in inputs])
        if op.name in FLOAT32:
            return tuple([convert(x, dtypes.float32) for x in inputs])
        if op.name in WIDEST and any(isinstance(x, Tensor) and x.dtype is dtypes.float32 for x in inputs):
            return tuple([convert(x, dtypes.float32) for x in inputs])
        return inputs

    return casts


class autocast(contextlib.ContextDecorator):
    """Context or decorator in which products run in `dtype` (bfloat16 on the CPU, float16 on CUDA unless given).

    The conversions are operations like any others: gradients flow through them, and compiled code fuses them.
    """

    def __init__(self, device_type: str = "cpu", dtype: DType | None = None, enabled: bool = True, cache_enabled: bool | None = None):
        self.device = Device(device_type).type
        self.fast_dtype = _DEFAULTS[self.device] if dtype is None else dtype
        if enabled and self.device == "cuda" and not cuda.is_available():
            warnings.warn("User provided device_type of 'cuda', but CUDA is not available. Disabling", stacklevel=2)
            enabled = False
        if enabled and self.fast_dtype not in (dtypes.bfloat16, dtypes.float16, dtypes.float32):
            warnings.warn(f"In {self.device} autocast, but the target dtype is not supported. Disabling autocast.", stacklevel=2)
            enabled = False
        self._enabled = bool(enabled)
        self._before: list[Any] = []

    def __enter__(self) -> autocast:
        self._before.append((STATE.autocast, STATE.autocast_dtype))
        if self._enabled:
            op_module.AUTOCASTING.append(self)
        STATE.autocast = _casts(self.fast_dtype) if self._enabled else None
        STATE.autocast_dtype = self.fast_dtype if self._enabled else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            op_module.AUTOCASTING.pop()
        STATE.autocast, STATE.autocast_dtype = self._before.pop()

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[override]
        """`func` run with autocast."""

        @functools.wraps(func)
        def inner(*args: Any, **kwargs: Any) -> Any:
            with self:
                return func(*args, **kwargs)

        return inner


def is_autocast_enabled(device_type: str = "cpu") -> bool:
    """True inside an enabled autocast region."""
    return STATE.autocast is not None


def get_autocast_dtype(device_type: str = "cpu") -> DType:
    """The dtype that products run in under autocast."""
    return STATE.autocast_dtype or _DEFAULTS[Device(device_type).type]


def custom_fwd(fwd: Callable[..., Any] | None = None, *, device_type: str = "cpu", cast_inputs: DType | None = None) -> Any:
    """Decorator of `Function.forward`: with `cast_inputs`, it runs outside autocast on converted inputs."""
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def inner(*args: Any, **kwargs: Any) -> Any:
        if cast_inputs is None or STATE.autocast is None:
            return fwd(*args, **kwargs)
        with autocast(device_type, enabled=False):
            return fwd(*[cast(a, cast_inputs) if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in args], **kwargs)

    return inner


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str = "cpu") -> Any:
    """Decorator of `Function.backward`; gradients never run under autocast here."""
    return functools.partial(custom_bwd, device_type=device_type) if bwd is None else bwd


class GradScaler:
    """Multiplies the loss so that float16 gradients do not vanish, divides the gradients, skips steps that overflowed.

    Usage: `scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()`.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        if enabled and Device(device).type == "cuda" and not cuda.is_available():
            warnings.warn("torch.cuda.amp.GradScaler is enabled, but CUDA is not available.  Disabling.", stacklevel=2)
            enabled = False
        if growth_factor <= 1:
            raise ValueError("The growth factor must be > 1.0.")
        if not backoff_factor < 1:
            raise ValueError("The backoff factor must be < 1.0.")
        self._enabled, self._device = enabled, device
        self._scale, self._growth_factor, self._backoff_factor, self._growth_interval = (
            init_scale,
            growth_factor,
            backoff_factor,
            growth_interval,
        )
        self._growth_tracker = 0
        self._found: dict[int, bool] = {}  # optimizers whose gradients were divided since the last update: overflowed?

    def scale(self, outputs: Any) -> Any:
        """A tensor, or tensors in lists or tuples, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale
        return type(outputs)(self.scale(o) for o in outputs)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, before they are clipped or looked at. Raises RuntimeError on a second call before `update`."""
        if not self._enabled:
            return
        if id(optimizer) in self._found:
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update().")
        overflow = False
        with no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(1.0 / self._scale)
                        overflow = overflow or not bool(p.grad.isfinite().all())
        self._found[id(optimizer)] = overflow

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """`optimizer.step()`, left out when a gradient is infinite or NaN."""
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        return None if self._found[id(optimizer)] else optimizer.step(*args, **kwargs)

    def update(self, new_scale: Any = None) -> None:
        """After the steps of an iteration: smaller after an overflow, larger after `growth_interval` steps without."""
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        else:
            if not self._found:
                raise RuntimeError("No inf checks were recorded prior to update.")
            if any(self._found.values()):
                self._scale *= self._backoff_factor
                self._growth_tracker = 0
            else:
                self._growth_tracker += 1
                if self._growth_tracker == self._growth_interval:
                    grown = self._scale * self._growth_factor
                    self._scale = grown if math.isfinite(grown) else self._scale
                    self._growth_tracker = 0
        self._found = {}

    def is_enabled(self) -> bool:
        """False where scaling does nothing."""
        return self._enabled

    def get_scale(self) -> float:
        """The scale; 1 when disabled."""
        return float(self._scale) if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """What the scale grows by."""
        return self._growth_factor

    def get_backoff_factor(self) -> float:
        """What the scale shrinks by."""
        return self._backoff_factor

    def get_growth_interval(self) -> int:
        """How many steps without overflow make it grow."""
        return self._growth_interval

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's layout."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state. Raises RuntimeError for an empty one."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("The source state dict is empty, possibly because it was saved from a disabled instance of GradScaler.")
        self._scale, self._growth_factor = float(state_dict["scale"]), state_dict["growth_factor"]
        self._backoff_factor, self._growth_interval = state_dict["backoff_factor"], state_dict["growth_interval"]
        self._growth_tracker = int(state_dict["_growth_tracker"])


class _CudaAutocast(autocast):
    """`autocast("cuda")` with the arguments of torch.cuda.amp."""

    def __init__(self, enabled: bool = True, dtype: DType = dtypes.float16, cache_enabled: bool = True):
        super().__init__("cuda", dtype, enabled, cache_enabled)


class _CpuAutocast(autocast):
    """`autocast("cpu")` with the arguments of torch.cpu.amp."""

    def __init__(self, enabled: bool = True, dtype: DType = dtypes.bfloat16, cache_enabled: bool = True):
        super().__init__("cpu", dtype, enabled, cache_enabled)


class _CudaGradScaler(GradScaler):
    """`GradScaler("cuda")` with the arguments of torch.cuda.amp."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        super().__init__("cuda", init_scale, growth_factor, backoff_factor, growth_interval, enabled)


cuda_amp = SimpleNamespace(autocast=_CudaAutocast, GradScaler=_CudaGradScaler, custom_fwd=custom_fwd, custom_bwd=custom_bwd)
cpu_amp = SimpleNamespace(autocast=_CpuAutocast, GradScaler=GradScaler)
autocast_mode = SimpleNamespace(autocast=autocast, custom_fwd=custom_fwd, custom_bwd=custom_bwd)
grad_scaler = SimpleNamespace(GradScaler=GradScaler)
