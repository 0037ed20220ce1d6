"""Operations over lists of tensors, one after the other: `_foreach_add_` and its kin, PyTorch's names for optimizers written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchlet.ops.public import FUNCTIONS, METHODS, in_place
from torchlet.ops.reduce import norm
from torchlet.tensor import Tensor

_UNARY = [
    "abs",
    "acos",
    "asin",
    "atan",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "exp",
    "expm1",
    "floor",
    "frac",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "neg",
    "reciprocal",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
    "zero",
]
_BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "clamp_max", "clamp_min", "pow", "copy"]
_TERNARY = ["addcmul", "addcdiv", "lerp"]


def _items(value: Any, count: int) -> Sequence[Any]:
    """One value for each tensor."""
    return value if isinstance(value, list | tuple) else [value] * count


def _over(name: str, method: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    def f(
        self: Sequence[Tensor], *operands: Any, value: Any = None, scalars: Any = None, weight: Any = None, alpha: Any = None
    ) -> list[Tensor]:
        extra = [v for v in (value, scalars, weight) if v is not None]
        columns = [_items(o, len(self)) for o in (*operands, *extra)]
        named = {} if alpha is None else {"alpha": alpha}
        if name.startswith("addc") and len(columns) == 3:
            return [method(t, a, b, value=v) for t, a, b, v in zip(self, *columns, strict=True)]
        return [method(t, *rest, **named) for t, *rest in zip(self, *columns, strict=True)]

    f.__name__, f.__qualname__, f.__doc__ = (
        f"_foreach_{name}",
        f"_foreach_{name}",
        f"`{name}` of every tensor of a list; operands are lists, or one for all.",
    )
    return f


def _storing(pair: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return in_place(lambda t, other: pair(t, other if isinstance(other, Tensor) else METHODS["new_tensor"](t, other)))


for _name in (*_UNARY, *_BINARY, *_TERNARY):
    for _full in (_name, _name + "_"):
        if _full in METHODS:
            FUNCTIONS[f"_foreach_{_full}"] = _over(_full, METHODS[_full])
for _name in ("maximum", "minimum"):
    FUNCTIONS[f"_foreach_{_name}_"] = _over(_name, _storing(METHODS[_name]))


def _norms(self: Sequence[Tensor], ord: float = 2, dtype: Any = None) -> list[Tensor]:
    """The norm of every tensor of a list."""
    return [norm(t, ord, dtype=dtype) for t in self]


FUNCTIONS["_foreach_norm"] = _norms
