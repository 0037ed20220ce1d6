"""torchlet.linalg: PyTorch's names for linear algebra; the operators are in ops/linalg.py."""

from __future__ import annotations

from torchlet.ops.linalg import LINALG, LinAlgError

globals().update(LINALG)
__all__ = ["LinAlgError", *LINALG]
