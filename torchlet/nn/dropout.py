"""Dropout layers."""

from __future__ import annotations

from torchlet.nn import functional as F
from torchlet.nn.module import Module
from torchlet.tensor import Tensor

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"]


class _Dropout(Module):
    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if p < 0 or p > 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """While training, zeroes elements with probability `p` and scales the rest by 1 / (1 - p) (Srivastava et al. 2014)."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return F.dropout(input, self.p, True, self.inplace) if self.training else input


class Dropout1d(_Dropout):
    """Dropout of whole channels of (C, L) or (N, C, L)."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return F.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(_Dropout):
    """Dropout of whole channels of (C, H, W) or (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return F.dropout2d(input, self.p, self.training, self.inplace)


class AlphaDropout(_Dropout):
    """Dropout that keeps mean and variance of SELU activations (Klambauer et al. 2017)."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return F.alpha_dropout(input, self.p, self.training, self.inplace)


class Dropout3d(_Dropout):
    """Dropout of whole channels of (C, D, H, W) or (N, C, D, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return F.dropout3d(input, self.p, self.training, self.inplace)


class FeatureAlphaDropout(_Dropout):
    """AlphaDropout of whole channels."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return F.feature_alpha_dropout(input, self.p, self.training, self.inplace)
