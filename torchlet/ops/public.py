"""How an operator gets its public names: `torchlet.exp`, `Tensor.exp`, `Tensor.exp_`, Python's operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from torchlet.autograd import inplace
from torchlet.op import STATE, Op, apply, when_walking
from torchlet.tensor import Tensor

FUNCTIONS: dict[str, Any] = {}  # torchlet.NAME: functions, and a few classes and words
METHODS: dict[str, Any] = {}  # Tensor.NAME
F = TypeVar("F", bound=Callable[..., Any])
_APPLYING: list[tuple[str, Callable[..., Any], Op, int, bool]] = []  # see `applies`


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


def applies(name: str, f: Callable[..., Any], op: Op, operands: int, reflected: bool = False) -> None:
    """`Tensor.name` is `f`, which given so many operands and nothing else applies one operator to them, without attributes."""
    METHODS[name] = f
    _APPLYING.append((name, f, op, operands, reflected))


def _put_methods(walk: Any) -> None:
    """These methods in C: a step that is expected is taken without a frame."""
    for name, f, op, operands, reflected in _APPLYING:
        if Tensor.__dict__.get(name) is f:
            setattr(Tensor, name, walk.Twin("operator", f, op, None, operands, 0, reflected))


when_walking(_put_methods)


def unary_public(op: Op, *names: str) -> Callable[[Tensor], Tensor]:
    """`name(input)`, `x.name()` and `x.name_()` of a one-input operator."""

    def f(input: Any, *, out: Tensor | None = None) -> Tensor:
        result = apply(op, (as_tensor_like(input, op.name),))
        return result if out is None else write(op.name, out, result)  # type: ignore[no-any-return]

    def f_(input: Tensor) -> Tensor:
        return inplace(op, input, (input,))

    name = names[0] if names else op.name
    _describe(f, name, op.doc or f"Elementwise {name}.")
    _describe(f_, name + "_", f"In-place {name}.")
    for n in names or (op.name,):
        public(n)(f)
        applies(n, f, op, 1)
        METHODS[n + "_"] = f_
        FUNCTIONS[n + "_"] = f_
    return f


def binary_public(op: Op, *names: str, inplace_too: bool = True) -> Callable[[Any, Any], Tensor]:
    """`name(input, other)`, `x.name(other)` and `x.name_(other)` of a two-input operator; either may be a number."""

    def f(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
        result = apply(op, (input, other) if isinstance(input, Tensor) else (operand(input, op.name), operand(other, op.name)))
        return result if out is None else write(op.name, out, result)  # type: ignore[no-any-return]

    def f_(input: Tensor, other: Any) -> Tensor:
        return inplace(op, input, (input, operand(other, op.name)))

    name = names[0] if names else op.name
    _describe(f, name, op.doc or f"Elementwise {name} with broadcasting and type promotion.")
    _describe(f_, name + "_", f"In-place {name}.")
    for n in names or (op.name,):
        public(n)(f)
        applies(n, f, op, 2)
        if inplace_too:
            METHODS[n + "_"] = f_
    return f


def in_place(f: Callable[..., Any]) -> Callable[..., Any]:
    """`x.name_(…)` from `name(x, …)`: x is overwritten with the result. What a gradient rule saves of x is a copy."""

    def f_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        followed = STATE.grad and any(isinstance(t, Tensor) and t._meta.requires_grad for t in (self, *args, *kwargs.values()))
        return METHODS["copy_"](self, f(METHODS["clone"](self) if followed else self, *args, **kwargs))  # type: ignore[no-any-return]

    f_.__doc__ = f"In place: {f.__doc__}"
    return f_


# PyTorch's functions with an `out` argument that are no plain operators of one or two operands (those have it by themselves)
TAKE_OUT = (
    "add addbmm addcdiv addcmul addmm addmv addr all amax amin aminmax any argmax argmin baddbmm bmm bucketize cat chain_matmul cholesky "
    "clamp clamp_max clamp_min clip column_stack complex concat concatenate cross cummax cummin cumprod cumsum diag diff div divide dot "
    "dstack float_power fmod frexp gather ger hstack index_add index_copy index_select inner inverse kron kthvalue ldexp lerp log_softmax "
    "logcumsumexp logit logsumexp masked_select matmul max mean median min mm mode msort mul multinomial multiply mv nan_to_num nanmean "
    "nanmedian nanquantile nansum nonzero norm outer polar pow prod quantile renorm round row_stack rsub scatter scatter_add searchsorted "
    "softmax sort stack std sub subtract sum take take_along_dim tensordot topk tril triu true_divide var vdot vstack where"
)
MAKE_OUT = "arange empty eye full linspace logspace ones rand randint randn randperm range zeros normal bernoulli"


def write(name: str, out: Any, result: Any) -> Any:
    """What `name(…, out=out)` returns: the result in the memory of `out`, which gets its shape.

    Raises RuntimeError where a gradient would be wanted, or where the dtype of `out` is of a lower kind.
    """
    if isinstance(result, tuple):
        return type(result)(*[write(name, o, r) for o, r in zip(out, result, strict=True)])
    if not isinstance(out, Tensor):
        raise TypeError(f"{name}(): argument 'out' must be Tensor, not {type(out).__name__}")
    if result._meta.requires_grad or (STATE.grad and out._meta.requires_grad):
        raise RuntimeError(
            f"{name}(): functions with out=... arguments don't support automatic differentiation, but one of the arguments requires grad."
            "\nhelp: call it without out=, or in `with torchlet.no_grad():`"
        )
    if result._meta.dtype.category > out._meta.dtype.category:
        raise RuntimeError(f"{name}: result type {result.dtype.name} can't be cast to the desired output type {out.dtype.name}")
    if result._meta.shape != out._meta.shape:
        if out._meta.numel:
            warnings.warn(
                f"An output with one or more elements was resized since it had shape {list(out.shape)}, which does not match the required "
                f"output shape {list(result.shape)}. Resize it to zero elements with t.resize_(0) before it is used again.", stacklevel=3,
            )
        METHODS["resize_"](out, result.shape)
    return METHODS["copy_"](out, result)


def taking_out(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` with an argument `out` whose memory takes the result."""
    code = f.__code__
    if "out" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return f
    made = name in MAKE_OUT.split()

    def g(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        if out is None:
            return f(*args, **kwargs)
        if made and isinstance(out, Tensor) and kwargs.get("dtype") is None and name not in ("normal", "bernoulli"):
            kwargs |= {"dtype": out._meta.dtype, "device": out._meta.device}
        return write(name, out, f(*args, **kwargs))

    g.__name__ = g.__qualname__ = f.__name__
    g.__doc__, g.__module__, g.__wrapped__, g.takes_out = f.__doc__, f.__module__, f, True  # type: ignore[attr-defined]
    return g


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
    applies(name, f, op, 2, reflected)


def inplace_dunder(name: str, op: Op) -> None:
    """Python's augmented assignment `name` on tensors."""

    def f(a: Tensor, b: Any) -> Any:
        return inplace(op, a, (a, operand(b, op.name)))

    _describe(f, name, op.doc)
    METHODS[name] = f
