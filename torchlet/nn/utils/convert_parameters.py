"""Parameters as one vector and back."""

from __future__ import annotations

from collections.abc import Iterable

from torchlet import ops
from torchlet.tensor import Tensor

__all__ = ["parameters_to_vector", "vector_to_parameters"]


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters, one after the other: (total,)."""
    return ops.cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Let each parameter's data be its slice of `vec`. Raises TypeError when `vec` is no tensor."""
    if not isinstance(vec, Tensor):
        raise TypeError(f"expected torchlet.Tensor, but got: {type(vec).__name__}")
    start = 0
    for p in parameters:
        count = p.numel()
        p.data = vec[start : start + count].view_as(p).data
        start += count
