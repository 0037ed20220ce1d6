"""How an operator gets its public names: `torchlet.exp`, `Tensor.exp`, `Tensor.exp_`, Python's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from torchlet.autograd import inplace
from torchlet.op import Op, apply
from torchlet.tensor import Tensor

FUNCTIONS: dict[str, Any] = {}  # torchlet.NAME: functions, and a few classes and words
METHODS: dict[str, Any] = {}  # Tensor.NAME
F = TypeVar("F", bound=Callable[..., Any])


class Draws:
    """A NumPy generator made on first use: importing numpy.random would cost as much as all the tables."""

    def __init__(self, seed: int):
        self._seed = seed

    def __getattr__(self, name: str) -> Any:
        generator = np.random.default_rng(self._seed)
        self.__dict__.update({n: getattr(generator, n) for n in dir(generator) if not n.startswith("_")})
        return self.__dict__[name]


def public(*names: str, function: bool = True, method: bool = True) -> Callable[[F], F]:
    """Make a Python function public under its own name (or `names`), as a function of torchlet and a method of Tensor."""

    def register(f: F) -> F:
        for name in names or (f.__name__.rstrip("_"),):
            if function:
                FUNCTIONS[name] = f
            if method:
                METHODS[name] = f
        return f

    return register


def unary_public(op: Op, *names: str) -> Callable[[Tensor], Tensor]:
    """`name(input)`, `x.name()` and `x.name_()` of a one-input operator."""

    def f(input: Any) -> Tensor:
        return apply(op, (as_tensor_like(input, op.name),))

    def f_(input: Tensor) -> Tensor:
        return inplace(op, input, (input,))

    name = names[0] if names else op.name
    _describe(f, name, op.doc or f"Elementwise {name}.")
    _describe(f_, name + "_", f"In-place {name}.")
    for n in names or (op.name,):
        public(n)(f)
        METHODS[n + "_"] = f_
        FUNCTIONS[n + "_"] = f_
    return f


def binary_public(op: Op, *names: str, inplace_too: bool = True) -> Callable[[Any, Any], Tensor]:
    """`name(input, other)`, `x.name(other)` and `x.name_(other)` of a two-input operator; either may be a number."""

    def f(input: Any, other: Any) -> Tensor:
        return apply(op, (input, other) if isinstance(input, Tensor) else (operand(input, op.name), operand(other, op.name)))

    def f_(input: Tensor, other: Any) -> Tensor:
        return inplace(op, input, (input, operand(other, op.name)))

    name = names[0] if names else op.name
    _describe(f, name, op.doc or f"Elementwise {name} with broadcasting and type promotion.")
    _describe(f_, name + "_", f"In-place {name}.")
    for n in names or (op.name,):
        public(n)(f)
        if inplace_too:
            METHODS[n + "_"] = f_
    return f


def _describe(f: Callable[..., Any], name: str, doc: str) -> None:
    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc


def operand(x: Any, op: str) -> Any:
    """A tensor or a plain Python number; NumPy scalars become numbers. Raises TypeError otherwise."""
    if isinstance(x, Tensor) or x.__class__ in (int, float, bool, complex):
        return x
    if hasattr(x, "item") and getattr(x, "ndim", 1) == 0:
        return x.item()
    if isinstance(x, int | float | complex):
        return x
    raise TypeError(f"{op}(): argument must be a Tensor or a number, not {type(x).__name__}")


def as_tensor_like(x: Any, op: str) -> Tensor:
    """`x` if it is a tensor. Raises TypeError naming the operation otherwise."""
    if isinstance(x, Tensor):
        return x
    raise TypeError(f"{op}(): argument 'input' (position 1) must be Tensor, not {type(x).__name__}")


def dunder(name: str, op: Op, reflected: bool = False) -> None:
    """Python's operator `name` on tensors."""

    def f(a: Tensor, b: Any) -> Any:
        if not (isinstance(b, Tensor) or b.__class__ in (float, int, bool, complex)):
            try:
                b = operand(b, op.name)
            except TypeError:
                return NotImplemented
        return apply(op, (b, a) if reflected else (a, b))

    _describe(f, name, op.doc)
    METHODS[name] = f


def inplace_dunder(name: str, op: Op) -> None:
    """Python's augmented assignment `name` on tensors."""

    def f(a: Tensor, b: Any) -> Any:
        return inplace(op, a, (a, operand(b, op.name)))

    _describe(f, name, op.doc)
    METHODS[name] = f
