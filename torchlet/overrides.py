"""torchlet.overrides: PyTorch's questions about classes that take over its functions; there is no such protocol here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torchlet.tensor import Tensor

__all__ = ["handle_torch_function", "has_torch_function", "has_torch_function_unary", "has_torch_function_variadic", "is_tensor_like"]


def has_torch_function(relevant_args: Iterable[Any]) -> bool:
    """False: no class takes over."""
    return False


def has_torch_function_unary(obj: Any) -> bool:
    """False: no class takes over."""
    return False


def has_torch_function_variadic(*args: Any) -> bool:
    """False: no class takes over."""
    return False


def handle_torch_function(public_api: Callable[..., Any], relevant_args: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
    """The function's own result."""
    return public_api(*args, **kwargs)


def is_tensor_like(inp: Any) -> bool:
    """True for tensors and what says it is one."""
    return isinstance(inp, Tensor) or hasattr(inp, "__torch_function__")
