"""Limit gradients by their common norm or by value, without reading a value: a compiled training step stays in one piece."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from torchlet import ops
from torchlet.autograd import no_grad
from torchlet.op import apply_update, update
from torchlet.tensor import Tensor

__all__ = ["clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]

_scale = update(
    "scale_grads", lists=("grads", "factor"), scalars=(), writes=("grads",),
    body=lambda grads, factor: ([g * factor[0].to(g.dtype) for g in grads],), doc="Multiply every gradient by one 0-d tensor.",
)
_limit = update(
    "limit_grads",
    lists=("grads",),
    scalars=("limit",),
    writes=("grads",),
    body=lambda grads, limit: ([ops.minimum(ops.maximum(g, -limit), limit) for g in grads],),
    doc="Limit every gradient to [-limit, limit].",
)


def _grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = (parameters,)
    return [g for g in [p.grad for p in parameters] if g is not None]


@no_grad()
def get_total_norm(
    tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """The norm of all elements of all tensors together, as a 0-d tensor.

    Raises RuntimeError with `error_if_nonfinite` when it is nan or infinite (this reads the value).
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not tensors:
        return ops.tensor(0.0)
    norm = ops.total_norm(tensors, float(norm_type))
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(
            f"The total norm of order {float(norm_type)} for gradients from `parameters` is non-finite, so it cannot be clipped. To "
            f"disable this "
            "error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return norm


@no_grad()
def clip_grads_with_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor, foreach: bool | None = None) -> None:
    """Scale the gradients in place by max_norm / total_norm where that is less than 1."""
    grads = _grads(parameters)
    if grads:
        apply_update(_scale, (grads, [ops.clamp(float(max_norm) / (total_norm + 1e-6), max=1.0)]))


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients in place so that their common norm is at most `max_norm`; returns the norm before (0-d)."""
    if not isinstance(parameters, Tensor):
        parameters = list(parameters)
    norm = get_total_norm(_grads(parameters), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Limit each element of the gradients to [-clip_value, clip_value] in place."""
    grads = _grads(parameters)
    if grads:
        apply_update(_limit, (grads,), (float(clip_value),))


def clip_grad_norm(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None
) -> Tensor:
    """clip_grad_norm_ under its name of 2017."""
    warnings.warn("`torch.nn.utils.clip_grad_norm` is now deprecated in favor of "
        "`torch.nn.utils.clip_grad_norm_`.", FutureWarning, stacklevel=2)
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
