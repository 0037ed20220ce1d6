"""Complex numbers: made from two real tensors, taken apart again, conjugated. They are computed by NumPy, also under capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import Op, View, apply, define
from torchlet.ops.pointwise import atan2_, cast, where
from torchlet.ops.public import FUNCTIONS, METHODS, Draws, public
from torchlet.ops.view import ALL, basic
from torchlet.spec import Spec, broadcast_shapes
from torchlet.tensor import Tensor

_rng = Draws(8)


def _draw(*shape: int) -> Any:
    return _rng.standard_normal(shape) + 1j * _rng.standard_normal(shape)


def _unary(
    name: str,
    np_function: Callable[..., Any],
    grad: Callable[..., Any] | None,
    result: Callable[[dtypes.dtype], dtypes.dtype],
    view: bool = False,
) -> Op:
    return define(
        name,
        ("x",),
        lambda x: np.asarray(np_function(x)),  # NumPy makes scalars of 0-d arrays
        lambda x: Spec(x.shape, result(x.dtype), x.device),
        View(lambda out, in_shape: out) if view else None,
        vjp={"x": grad} if grad else None,
        samples=lambda: [((_draw(3, 4),), ())],
        barrier=True,
        hermitian=True,
    )


def _same(d: dtypes.dtype) -> dtypes.dtype:
    return d


conj_ = _unary("conj", np.conj, lambda g: g.conj(), _same)
complex_abs_ = _unary("complex_abs", np.abs, lambda g, x, out: where(out.eq(0), 0.0, g / out) * x, dtypes.real_of)


def _parts(x: Spec) -> Spec:
    if not x.dtype.is_complex:
        raise RuntimeError(f"view_as_real is only supported for complex tensors; got {x.dtype.name}")
    return Spec((*x.shape, 2), dtypes.real_of(x.dtype), x.device)


def _whole(x: Spec) -> Spec:
    if x.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(f"view_as_complex is only supported for floating point tensors; got {x.dtype.name}")
    if not x.shape or x.shape[-1] != 2:
        raise RuntimeError(f"view_as_complex: Tensor must have a last dimension of size 2; got shape {x.shape}")
    return Spec(x.shape[:-1], dtypes.complex_of(x.dtype), x.device)


def _whole_np(x: Any) -> Any:
    _whole(Spec(x.shape, dtypes.from_numpy(x.dtype)))
    if x.strides[-1] != x.itemsize or any(s % (2 * x.itemsize) for s in x.strides[:-1]):
        raise RuntimeError("view_as_complex: Tensor must have a stride of 1 at its last dimension and strides divisible by 2 elsewhere")
    kind = dtypes.complex_of(dtypes.from_numpy(x.dtype)).np
    return x.view(kind)[..., 0]


view_as_real_ = define(
    "view_as_real",
    ("x",),
    lambda x: (
        np.stack((x.real, x.imag), -1)
        if not x.size
        else np.lib.stride_tricks.as_strided(x.real, (*x.shape, 2), (*x.strides, x.itemsize // 2))
    ),
    _parts,
    View(lambda out, in_shape: out[:-1]),
    vjp={"x": lambda g: view_as_complex(g.contiguous())},
    samples=lambda: [((_draw(3, 4),), ())],
    barrier=True,
    hermitian=True,
)
view_as_complex_ = define(
    "view_as_complex",
    ("x",),
    _whole_np,
    _whole,
    View(lambda out, in_shape: out),
    vjp={"x": lambda g: view_as_real(g)},
    samples=lambda: [((_rng.standard_normal((3, 4, 2)),), ())],
    barrier=True,
    hermitian=True,
)


@public(method=False)
def view_as_real(input: Tensor) -> Tensor:
    """(…) complex -> (…, 2) real, the same memory. Raises RuntimeError for real input."""
    return apply(view_as_real_, (input,))


@public(method=False)
def view_as_complex(input: Tensor) -> Tensor:
    """(…, 2) real -> (…) complex, the same memory. Raises RuntimeError for another last size or layout."""
    return apply(view_as_complex_, (input,))


@public("complex", method=False)
def complex_(real: Tensor, imag: Tensor) -> Tensor:
    """real + i imag."""
    if real.dtype is not imag.dtype or real.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(
            f"complex: Expected both inputs to be of one dtype, float32 or float64; got {real.dtype.name} and {imag.dtype.name}"
        )
    shape = broadcast_shapes("complex", tuple(real.shape), tuple(imag.shape))
    if 0 in shape:
        return FUNCTIONS["empty"](shape, dtype=dtypes.complex_of(real.dtype))  # type: ignore[no-any-return]
    return view_as_complex(FUNCTIONS["stack"]([real.expand(shape), imag.expand(shape)], -1))


@public(method=False)
def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """abs * (cos(angle) + i sin(angle))."""
    return complex_(abs * angle.cos(), abs * angle.sin())


@public()
def real(input: Tensor) -> Tensor:
    """The real parts, as a view; a real tensor itself."""
    return basic(view_as_real(input), (ALL,) * input.ndim + (("i", 0),)) if input.dtype.is_complex else input


@public(method=False)
def imag(input: Tensor) -> Tensor:
    """The imaginary parts, as a view. Raises RuntimeError for real input."""
    if not input.dtype.is_complex:
        raise RuntimeError("imag is not implemented for tensors with non-complex dtypes.")
    return basic(view_as_real(input), (ALL,) * input.ndim + (("i", 1),))


METHODS["real"] = property(real, doc="The real parts, as a view.")
METHODS["imag"] = property(imag, doc="The imaginary parts, as a view.")


@public("conj", "conj_physical")
def conj(input: Tensor) -> Tensor:
    """The complex conjugate; a real tensor itself."""
    return apply(conj_, (input,)) if input.dtype.is_complex else input


@public("resolve_conj", "resolve_neg")
def resolve_conj(input: Tensor) -> Tensor:
    """The tensor itself: conjugates are never lazy here."""
    return input


@public()
def angle(input: Tensor) -> Tensor:
    """The angle in the complex plane; for real numbers 0 or pi."""
    if input.dtype.is_complex:
        return apply(atan2_, (imag(input), real(input)))
    return where(input < 0, np.pi, cast(input, input.dtype if input.dtype.is_floating_point else dtypes.get_default_dtype()) * 0.0)


@public()
def is_complex(input: Tensor) -> bool:
    """True for complex dtypes."""
    return input.dtype.is_complex


@public()
def isreal(input: Tensor) -> Tensor:
    """True where the imaginary part is 0."""
    return imag(input).eq(0) if input.dtype.is_complex else FUNCTIONS["ones_like"](input, dtype=dtypes.bool_)


@public()
def adjoint(input: Tensor) -> Tensor:
    """The last two dimensions exchanged and conjugated."""
    return conj(input.transpose(-2, -1))


METHODS["H"] = METHODS["mH"] = property(adjoint, doc="The conjugate transpose.")
METHODS["is_conj"] = METHODS["is_neg"] = lambda self: False
METHODS |= {name: lambda self, memory_format=None, d=d: cast(self, d) for name, d in (("cfloat", dtypes.complex64), ("cdouble", dtypes.complex128))}
_real_abs = METHODS["abs"]


def _abs(input: Any) -> Tensor:
    """The absolute value; of complex numbers a real tensor."""
    return apply(complex_abs_, (input,)) if isinstance(input, Tensor) and input.dtype.is_complex else _real_abs(input)


_abs.__name__ = _abs.__qualname__ = "abs"
for _name in ("abs", "absolute"):
    FUNCTIONS[_name] = METHODS[_name] = _abs
METHODS["__abs__"] = _abs
