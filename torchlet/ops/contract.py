"""Matrix products: matmul in all of PyTorch's forms, linear, bmm, outer products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import Composite, Contract, apply, define
from torchlet.ops.public import METHODS, Draws, applies, as_tensor_like, in_place, public
from torchlet.ops.view import permute_, reshape, transpose, unsqueeze
from torchlet.spec import Spec, broadcast_shapes
from torchlet.tensor import Tensor

_rng = Draws(3)


def _matmul_spec(a: Spec, b: Spec) -> Spec:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"matmul: expected m1 and m2 to have the same dtype, but got: {a.dtype.name} != {b.dtype.name}\nhelp: convert one with .to()")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"matmul: mat1 and mat2 shapes cannot be multiplied ({'x'.join(map(str, a.shape))} and {'x'.join(map(str, b.shape))})")
    return Spec(broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1]), a.dtype, a.device)


def _matmul_np(a: Any, b: Any) -> Any:
    if a.dtype != b.dtype:
        raise TypeError("dtypes differ")
    if a.dtype.itemsize == 2 and a.dtype.kind not in "iu":  # 16-bit floats accumulate in float32
        return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    return np.matmul(a, b)


def _samples() -> list[Any]:
    shapes = [((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 2))]
    return [((_rng.standard_normal(a), _rng.standard_normal(b)), ()) for a, b in shapes]


matmul_ = define(
    "matmul", ("a", "b"), _matmul_np, _matmul_spec, Contract(), samples=_samples,
    vjp={"a": lambda g, b: apply(matmul_, (g, transpose(b, -2, -1))), "b": lambda g, a, b_spec: _weight_grad(a, g, b_spec)},
    doc="(…, m, k) @ (…, k, n) -> (…, m, n), batch dimensions broadcast.",
)


wide_matmul_ = define(
    "wide_matmul", ("a", "b"), lambda a, b: np.matmul(*((x.astype(np.float32) if x.dtype.itemsize == 2 else x) for x in (a, b))),
    lambda a, b: Spec(_matmul_spec(a, b).shape, dtypes.float32 if a.dtype.itemsize == 2 else a.dtype, a.device), Contract(), samples=_samples,
    doc="matmul of 16-bit floats that is kept in float32: the compiler's, for products that are added up.",
)


def _weight_grad(a: Tensor, g: Tensor, b_spec: Spec) -> Tensor:
    """The gradient of b; where b is one matrix for a batch of a, one product over all rows instead of a sum of products."""
    if b_spec.ndim == 2 and a.ndim > 2:
        a, g = reshape(a, (-1, a.shape[-1])), reshape(g, (-1, g.shape[-1]))
    return apply(matmul_, (transpose(a, -2, -1), g))


@public()
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product, by PyTorch's rules for vectors, matrices and batches.

    Shapes: (k) @ (k) -> (); (…, m, k) @ (k) -> (…, m); (k) @ (…, k, n) -> (…, n); (…, m, k) @ (…, k, n) -> (…, m, n).
    Raises RuntimeError when the sizes or the dtypes do not fit.
    """
    if isinstance(input, Tensor) and isinstance(other, Tensor) and len(input._meta.shape) >= 2 and len(other._meta.shape) >= 2:
        return apply(matmul_, (input, other))
    a, b = as_tensor_like(input, "matmul"), as_tensor_like(other, "matmul")
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError(f"matmul: both arguments need to be at least 1D, but they are {a.ndim}D and {b.ndim}D")
    if a.ndim == 1 and b.ndim == 1 and a.shape != b.shape:
        raise RuntimeError(f"matmul: inconsistent tensor size, expected tensor {list(a.shape)} and src {list(b.shape)} to have the same number of elements")
    out = apply(matmul_, (unsqueeze(a, 0) if a.ndim == 1 else a, unsqueeze(b, 1) if b.ndim == 1 else b))
    if b.ndim == 1:
        out = out.select(-1, 0)
    return out.select(-2 if b.ndim > 1 else -1, 0) if a.ndim == 1 else out


def _matmul_operator(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        return NotImplemented
    return apply(matmul_, (self, other)) if len(self._meta.shape) >= 2 and len(other._meta.shape) >= 2 else matmul(self, other)


applies("__matmul__", _matmul_operator, matmul_, 2)
applies("matmul", matmul, matmul_, 2)
METHODS["__rmatmul__"] = lambda self, other: matmul(other, self)


def _int_mm_spec(a: Spec, b: Spec) -> Spec:
    if a.dtype is not dtypes.int8 or b.dtype is not dtypes.int8:
        raise RuntimeError(f"_int_mm: expected two int8 tensors, but got: {a.dtype.name} and {b.dtype.name}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise RuntimeError(f"_int_mm: mat1 and mat2 shapes cannot be multiplied ({'x'.join(map(str, a.shape))} and {'x'.join(map(str, b.shape))})")
    return Spec((a.shape[0], b.shape[1]), dtypes.int32, a.device)


def _int_mm_np(a: Any, b: Any) -> Any:
    if a.dtype != np.int8 or b.dtype != np.int8:
        raise TypeError("dtypes are not int8")
    return np.matmul(a.astype(np.int32), b.astype(np.int32))


def _int_mm_samples() -> list[Any]:
    shapes = [((3, 4), (4, 5)), ((20, 40), (40, 24)), ((1, 7), (7, 3)), ((2, 300), (300, 1))]
    return [(tuple([_rng.integers(-128, 128, s).astype(np.int8) for s in pair]), ()) for pair in shapes]


int_mm_ = define(
    "int_mm", ("a", "b"), _int_mm_np, _int_mm_spec, Contract(), samples=_int_mm_samples,
    doc="(m, k) @ (k, n) of int8 -> int32.",
)


@public("_int_mm", method=False)
def int_mm(input: Tensor, mat2: Tensor) -> Tensor:
    """(m, k) @ (k, n) of int8, exact in int32; PyTorch's name has the underscore, too. Raises RuntimeError for other dtypes or shapes."""
    return apply(int_mm_, (input, mat2))


def _ranked(name: str, a: Tensor, b: Tensor, rank: int) -> Tensor:
    if a.ndim != rank or b.ndim != rank or (rank == 3 and a.shape[0] != b.shape[0]):
        raise RuntimeError(f"{name}: got shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two {rank}-D tensors" + (" with the same batch size" if rank == 3 else ""))
    return apply(matmul_, (a, b))


@public()
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """(m, k) @ (k, n)."""
    return _ranked("mm", input, mat2, 2)


@public()
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """(b, m, k) @ (b, k, n)."""
    return _ranked("bmm", input, mat2, 3)


@public()
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """(m, k) @ (k)."""
    return matmul(input, vec)


@public()
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The inner product of two vectors."""
    if input.ndim != 1 or tensor.ndim != 1:
        raise RuntimeError(f"dot: 1D tensors expected, but got {input.ndim}D and {tensor.ndim}D tensors")
    return matmul(input, tensor)


@public("outer", "ger")
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """(m) and (n) -> (m, n) of products."""
    return unsqueeze(input, 1) * vec2


def _linear_spec(x: Spec, weight: Spec, *bias: Spec) -> Spec:
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"linear: last dimension of input is {x.shape[-1] if x.ndim else 'missing'}, expected in_features={weight.shape[-1]}; "
            f"input shape {x.shape}, weight shape {weight.shape}"
        )
    for other in (weight, *bias):
        if other.dtype is not x.dtype:
            raise RuntimeError(f"linear: mat1 and mat2 must have the same dtype, but got {x.dtype.name} and {other.dtype.name}\nhelp: convert the input or the module with .to()")
    if bias and bias[0].shape not in ((weight.shape[0],), (1,), ()):
        raise RuntimeError(f"linear: bias has shape {bias[0].shape}; expected ({weight.shape[0]},)")
    return Spec(x.shape[:-1] + (weight.shape[0],), x.dtype, x.device)


def _linear_np(x: Any, weight: Any, *bias: Any) -> Any:
    if x.dtype != weight.dtype or weight.ndim != 2:
        raise TypeError("dtypes or ranks differ")
    if x.dtype.itemsize == 2:
        out = np.matmul(x.astype(np.float32), weight.astype(np.float32).T)
        return (out + bias[0].astype(np.float32) if bias else out).astype(x.dtype)
    out = np.asarray(np.matmul(x, weight.T))
    if bias:
        if bias[0].dtype != out.dtype:
            raise TypeError("dtypes differ")
        out += bias[0]
    return out


def _linear_body(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = matmul(x, apply(permute_, (weight,), ((1, 0),)))
    return out if bias is None else out + bias


def _linear_weight(g: Tensor, x: Tensor) -> Tensor:
    """(n, out)ᵀ @ (n, in) over all leading dimensions."""
    if g.ndim != 2:
        g, x = reshape(g, (-1, g.shape[-1])), reshape(x, (-1, x.shape[-1]))
    return apply(matmul_, (transpose(g, 0, 1), x))


_LINEAR_VJP = {"x": lambda g, weight: matmul(g, weight), "weight": _linear_weight}
linear_ = define(
    "linear", ("x", "weight", "bias"), _linear_np, _linear_spec, Composite(_linear_body), vjp={**_LINEAR_VJP, "bias": lambda g: g},
    samples=lambda: [((_rng.standard_normal(s), _rng.standard_normal((5, 4)), _rng.standard_normal(5)), ()) for s in ((3, 4), (2, 3, 4))],
)
linear_without_bias_ = define(
    "linear_without_bias", ("x", "weight"), _linear_np, _linear_spec, Composite(_linear_body), vjp=_LINEAR_VJP,
    samples=lambda: [((_rng.standard_normal((3, 4)), _rng.standard_normal((5, 4))), ())],
)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weightᵀ + bias. Shapes: (…, in) with (out, in) and (out) -> (…, out)."""
    return apply(linear_without_bias_, (input, weight)) if bias is None else apply(linear_, (input, weight, bias))


@public()
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * (mat1 @ mat2)."""
    product = mm(mat1, mat2)
    product = product if alpha == 1 else product * alpha
    return product + (input if beta == 1 else input * beta)


@public()
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * (batch1 @ batch2)."""
    product = bmm(batch1, batch2)
    if not product.dtype.has_gradient:
        beta, alpha = int(beta), int(alpha)
    product = product if alpha == 1 else product * alpha
    return product + (input if beta == 1 else input * beta)


METHODS["addmm_"] = in_place(addmm)


@public()
def inner(input: Tensor, other: Tensor) -> Tensor:
    """The product summed over the last dimensions: (…, k) and (…, k) -> (…, …)."""
    return input * other if input.ndim == 0 or other.ndim == 0 else tensordot(input, other, ([input.ndim - 1], [other.ndim - 1]))


@public(method=False)
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """The product summed over `dims`: so many of the last of a with the first of b, or (dims of a, dims of b)."""
    if isinstance(dims, int):
        left, right = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        left, right = ([d % t.ndim for d in ([side] if isinstance(side, int) else side)] for side, t in zip(dims, (a, b), strict=True))
    shapes = [a.shape[d] for d in left], [b.shape[d] for d in right]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"tensordot: contracted dimensions need to match, but first has sizes {shapes[0]} in dims {left} and second has sizes {shapes[1]} in dims {right}")
    keep_a, keep_b = [d for d in range(a.ndim) if d not in left], [d for d in range(b.ndim) if d not in right]
    k = math.prod(shapes[0])
    rows = reshape(a.permute(*keep_a, *left), (math.prod(a.shape[d] for d in keep_a), k))
    columns = reshape(b.permute(*right, *keep_b), (k, math.prod(b.shape[d] for d in keep_b)))
    return reshape(matmul(rows, columns), (*[a.shape[d] for d in keep_a], *[b.shape[d] for d in keep_b]))
