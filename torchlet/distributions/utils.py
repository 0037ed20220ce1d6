"""What distributions share: broadcasting of parameters, probabilities and logits, attributes computed on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchlet import dtypes
from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Tensor

__all__ = [
    "broadcast_all",
    "clamp_probs",
    "lazy_property",
    "logits_to_probs",
    "probs_to_logits",
    "tril_matrix_to_vec",
    "vec_to_tril_matrix",
]
T: dict[str, Callable[..., Any]] = FUNCTIONS


def broadcast_all(*values: Any) -> tuple[Tensor, ...]:
    """Numbers and tensors as tensors of one shape; numbers get the dtype of the first tensor. Raises ValueError for anything else."""
    if not all(isinstance(v, Tensor | int | float) for v in values):
        raise ValueError("Input arguments must all be instances of Number, torch.Tensor or objects implementing __torch_function__.")
    like = next((v for v in values if isinstance(v, Tensor)), None)
    kind = dtypes.get_default_dtype() if like is None else like.dtype
    kind = kind if kind.has_gradient else dtypes.get_default_dtype()
    place = None if like is None else like.device
    return tuple(T["broadcast_tensors"](*[v if isinstance(v, Tensor) else T["tensor"](v, dtype=kind, device=place) for v in values]))


def clamp_probs(probs: Tensor) -> Tensor:
    """Probabilities kept away from 0 and 1 by the dtype's epsilon."""
    eps = T["finfo"](probs.dtype).eps
    return probs.clamp(eps, 1 - eps)


def logits_to_probs(logits: Tensor, is_binary: bool = False) -> Tensor:
    """Sigmoid of log odds, or the softmax of the last dimension."""
    return logits.sigmoid() if is_binary else logits.softmax(-1)


def probs_to_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Log odds, or log probabilities, of probabilities kept away from 0 and 1."""
    probs = clamp_probs(probs)
    return probs.log() - (-probs).log1p() if is_binary else probs.log()


class lazy_property:
    """An attribute that a method computes when it is first asked for."""

    def __init__(self, wrapped: Callable[[Any], Any]):
        self.wrapped, self.name, self.__doc__ = wrapped, wrapped.__name__, wrapped.__doc__

    def __get__(self, instance: Any, obj_type: Any = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.wrapped(instance)
        return value


def tril_matrix_to_vec(mat: Tensor, diag: int = 0) -> Tensor:
    """The entries on and below a diagonal, row after row, as a vector."""
    n = mat.shape[-1]
    if not -n <= diag < n:
        raise ValueError(f"diag ({diag}) provided is outside [{-n}, {n - 1}].")
    rows, columns = T["tril_indices"](n, n, diag)
    return mat[..., rows, columns]


def vec_to_tril_matrix(vec: Tensor, diag: int = 0) -> Tensor:
    """The inverse of `tril_matrix_to_vec`: the rest is 0."""
    n = (-(1 + 2 * diag) + ((1 + 2 * diag) ** 2 + 8 * vec.shape[-1] + 4 * abs(diag) * (diag + 1)) ** 0.5) / 2
    if abs(n - round(n)) > 1e-6:
        raise ValueError(
            f"The size of last dimension is {vec.shape[-1]} which cannot be expressed as the lower triangular part of a square matrix."
        )
    size = round(n)
    rows, columns = T["tril_indices"](size, size, diag)
    return T["zeros"](*vec.shape[:-1], size, size, dtype=vec.dtype).index_put((Ellipsis, rows, columns), vec)  # type: ignore[no-any-return]
