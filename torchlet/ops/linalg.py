"""Linear algebra: decompositions and solvers, done by NumPy's LAPACK and differentiated here; products of several matrices.

A decomposition with several results is one operator whose result packs them side by side: its gradient rule sees all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import Op, apply, define
from torchlet.ops.arrange import diag_embed, stack, tril, triu
from torchlet.ops.contract import addmm, baddbmm, bmm, matmul, mv, outer
from torchlet.ops.pointwise import where
from torchlet.ops.public import FUNCTIONS, METHODS, Draws, in_place, public
from torchlet.ops.reduce import amax, norm
from torchlet.ops.reduce import sum as sum_over
from torchlet.ops.view import expand, reshape, transpose, unsqueeze
from torchlet.record import Result
from torchlet.spec import Spec, broadcast_shapes, normalize_dim
from torchlet.tensor import Tensor

_rng = Draws(12)
LINALG: dict[str, Callable[..., Any]] = {}  # torchlet.linalg.NAME


class LinAlgError(RuntimeError):
    """A matrix that has no such decomposition or solution."""


def linear_algebra(*names: str, outside: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function public as torchlet.linalg.NAME, and `outside` also as torchlet.NAME and Tensor.NAME."""

    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        for name in names or (f.__name__.rstrip("_"),):
            LINALG[name] = f
        return public(*(names or (f.__name__,)))(f) if outside else f

    return register


def _matrices(name: str, x: Spec, square: bool = False) -> None:
    if x.ndim < 2:
        raise RuntimeError(f"linalg.{name}: The input tensor A must have at least 2 dimensions.")
    if square and x.shape[-1] != x.shape[-2]:
        raise RuntimeError(f"linalg.{name}: A must be batches of square matrices, but they are {x.shape[-2]} by {x.shape[-1]} matrices")
    if x.dtype.itemsize < 4 or not x.dtype.has_gradient:
        raise RuntimeError(f"linalg.{name}: Expected a floating point or complex tensor as input. Got {x.dtype.name}")


def _lapack(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's LinAlgError in PyTorch's words."""

    def run(*args: Any) -> Any:
        try:
            return np.ascontiguousarray(f(*args))
        except np.linalg.LinAlgError as error:
            why = (
                "The input matrix is not positive-definite"
                if "positive" in str(error)
                else "The diagonal element is zero, the matrix is singular"
                if "ingular" in str(error)
                else str(error)
            )
            raise LinAlgError(f"linalg.{name}: {why}; the factorization could not be completed.") from None

    return run


def _square() -> Any:
    return [((_rng.standard_normal(s) + 3 * np.eye(3),), ()) for s in ((3, 3), (2, 3, 3))]


def _same(name: str) -> Callable[..., Spec]:
    def spec(x: Spec, *_: Any) -> Spec:
        _matrices(name, x, True)
        return x

    return spec


def _mt(x: Tensor) -> Tensor:
    return transpose(x, -2, -1)


def _mh(x: Tensor) -> Tensor:
    """The conjugate transpose; of real matrices the transpose."""
    return METHODS["conj"](transpose(x, -2, -1))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ inverse, solutions, determinants

inv_: Op = define(
    "inv",
    ("x",),
    _lapack("inv", np.linalg.inv),
    _same("inv"),
    vjp={"x": lambda g, out: -matmul(matmul(_mh(out), g), _mh(out))},
    samples=_square,
    hermitian=True,
)


def _solve_spec(a: Spec, b: Spec) -> Spec:
    _matrices("solve", a, True)
    if b.ndim < 2 or b.shape[-2] != a.shape[-1] or b.dtype is not a.dtype:
        raise RuntimeError(f"linalg.solve: Incompatible shapes of A {a.shape} and B {b.shape}, or dtypes {a.dtype.name} and {b.dtype.name}")
    return Spec((*broadcast_shapes("linalg.solve", a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), a.dtype, a.device)


solve_: Op = define(
    "solve",
    ("a", "b"),
    _lapack("solve", np.linalg.solve),
    _solve_spec,
    vjp={"a": lambda g, a, out: -matmul(apply(solve_, (_mh(a), g)), _mh(out)), "b": lambda g, a: apply(solve_, (_mh(a), g))},
    samples=lambda: [((_rng.standard_normal((3, 3)) + 3 * np.eye(3), _rng.standard_normal((3, 2))), ())],
    hermitian=True,
)


def _scalar_spec(name: str) -> Callable[..., Spec]:
    def spec(x: Spec) -> Spec:
        _matrices(name, x, True)
        return Spec(x.shape[:-2], x.dtype, x.device)

    return spec


def _wide(x: Tensor) -> Tensor:
    return unsqueeze(unsqueeze(x, -1), -1)


det_: Op = define(
    "det",
    ("x",),
    lambda x: np.asarray(np.linalg.det(x), x.dtype),
    _scalar_spec("det"),
    vjp={"x": lambda g, x, out: _wide(g * METHODS["conj"](out)) * _mh(apply(inv_, (x,)))},
    samples=_square,
    hermitian=True,
)
logabsdet_: Op = define(
    "logabsdet",
    ("x",),
    lambda x: np.asarray(np.linalg.slogdet(x)[1], x.dtype),
    _scalar_spec("slogdet"),
    vjp={"x": lambda g, x: _wide(g) * _mh(apply(inv_, (x,)))},
    samples=_square,
    hermitian=True,
)


class SignLogabsdet(Result, name="linalg_slogdet"):
    """The sign of a determinant and the logarithm of its absolute value."""

    sign: Tensor
    logabsdet: Tensor


@linear_algebra("inv")
@public("inverse")
def inverse(input: Tensor) -> Tensor:
    """The inverse of square matrices (…, n, n). Raises LinAlgError where there is none."""
    return apply(inv_, (input,))


@linear_algebra()
def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """X with A X = B (X A = B if not `left`); B (…, n, k), or (…, n) as one vector for each matrix."""
    if not left:
        return _mt(solve(_mt(A), _mt(B)))
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    out = apply(solve_, (A, unsqueeze(B, -1) if vector else B))
    return out.squeeze(-1) if vector else out


@linear_algebra(outside=True)
def det(input: Tensor) -> Tensor:
    """The determinants of square matrices."""
    return apply(det_, (input,))


@linear_algebra(outside=True)
def slogdet(input: Tensor) -> SignLogabsdet:
    """(sign, log of the absolute value) of the determinants."""
    sign, value = det(input.detach()), apply(logabsdet_, (input,))
    return SignLogabsdet(sign / sign.abs(), value.real) if value.dtype.is_complex else SignLogabsdet(sign.sign(), value)


@public()
def logdet(input: Tensor) -> Tensor:
    """The logarithm of the determinants; NaN for negative ones."""
    sign, value = slogdet(input)
    if sign.dtype.is_complex:
        return sign.log() + value
    return where(sign < 0, math.nan, value)


# ------------------------------------------------------------------------------------------------ Cholesky, triangular systems


def _phi(x: Tensor) -> Tensor:
    """The lower triangle with half of the diagonal."""
    return tril(x) - 0.5 * diag_embed(METHODS["diagonal"](x, 0, -2, -1))


def _cholesky_grad(g: Tensor, out: Tensor) -> Tensor:
    """Murray 2016, "Differentiation of the Cholesky decomposition"."""
    inner = _phi(matmul(_mh(out), g))
    s = apply(solve_, (_mh(out), _mh(apply(solve_, (_mh(out), _mh(inner))))))
    return (s + _mh(s)) * 0.5


cholesky_: Op = define(
    "cholesky",
    ("x",),
    _lapack("cholesky", np.linalg.cholesky),
    _same("cholesky"),
    vjp={"x": _cholesky_grad},
    samples=lambda: [
        ((a @ np.swapaxes(a, -1, -2) + np.eye(3),), ()) for a in (_rng.standard_normal((3, 3)), _rng.standard_normal((2, 3, 3)))
    ],
    hermitian=True,
)


@linear_algebra(outside=True)
def cholesky(input: Tensor, upper: bool = False) -> Tensor:
    """L with L Lᵀ = input, lower triangular (or its transpose). Raises LinAlgError for matrices that are not positive-definite."""
    out = apply(cholesky_, (input,))
    return _mh(out) if upper else out


class CholeskyEx(Result, name="linalg_cholesky_ex"):
    """The factor, and 0 where it was found."""

    L: Tensor
    info: Tensor


@linear_algebra()
def cholesky_ex(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> CholeskyEx:
    """`cholesky` with a code of success, which is always 0: failures raise."""
    return CholeskyEx(cholesky(A, upper), FUNCTIONS["zeros"](tuple(A.shape[:-2]), dtype=dtypes.int32))


@linear_algebra()
def solve_triangular(A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """X with A X = B (X A = B if not `left`), of A only one triangle counts."""
    a = (triu if upper else tril)(A)
    if unitriangular:
        a = a - diag_embed(METHODS["diagonal"](a, 0, -2, -1)) + FUNCTIONS["eye"](A.shape[-1], dtype=A.dtype)
    return solve(a, B, left=left)


@public("cholesky_solve")
def cholesky_solve(input: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """X with A X = input, where L is the Cholesky factor of A."""
    lower = tril(_mh(L) if upper else L)
    return apply(solve_, (_mh(lower), apply(solve_, (lower, input))))


@public("cholesky_inverse")
def cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    """The inverse of A from its Cholesky factor."""
    return cholesky_solve(expand(FUNCTIONS["eye"](input.shape[-1], dtype=input.dtype), tuple(input.shape)), input, upper)


# ------------------------------------------------------------------------------------------------ QR, eigenvalues, singular values


def _qr_np(x: Any) -> Any:
    q, r = np.linalg.qr(x)
    return np.concatenate((q, np.swapaxes(r, -1, -2)), -2)  # (…, m + n, k)


def _qr_spec(x: Spec) -> Spec:
    _matrices("qr", x)
    m, n = x.shape[-2:]
    return Spec((*x.shape[:-2], m + n, min(m, n)), x.dtype, x.device)


def _unpack(packed: Tensor, sizes: Sequence[int], dim: int) -> tuple[Tensor, ...]:
    return packed.split(list(sizes), dim)  # type: ignore[no-any-return]


def _qr_grad(g: Tensor, out: Tensor, x_spec: Spec) -> Tensor:
    """Walter & Lehmann 2018, for m >= n."""
    m, n = x_spec.shape[-2:]
    if m < n:
        raise RuntimeError("linalg.qr: the gradient is defined for matrices with at least as many rows as columns")
    q, r = _unpack(out, (m, n), -2)
    gq, gr = _unpack(g, (m, n), -2)
    middle = matmul(_mt(r), gr) - matmul(_mt(gq), q)
    lower = tril(middle, -1)
    both = lower + _mt(lower) + diag_embed(METHODS["diagonal"](middle, 0, -2, -1))
    right = gq + matmul(q, both)
    return _mt(apply(solve_, (_mt(r), _mt(right))))


qr_: Op = define(
    "qr",
    ("x",),
    _lapack("qr", _qr_np),
    _qr_spec,
    vjp={"x": _qr_grad},
    samples=lambda: [((_rng.standard_normal(s),), ()) for s in ((4, 3), (2, 3, 3))],
)


class QR(Result, name="linalg_qr"):
    """An orthogonal and an upper triangular factor."""

    Q: Tensor
    R: Tensor


@linear_algebra()
def qr(A: Tensor, mode: str = "reduced") -> QR:
    """Q R = A with orthonormal columns in Q and R upper triangular; `mode` "reduced", "complete" (no gradient) or "r"."""
    if mode == "complete":
        found = np.linalg.qr(A.detach().numpy(), "complete")
        return QR(METHODS["new_tensor"](A, found[0]), METHODS["new_tensor"](A, found[1]))
    if mode not in ("reduced", "r"):
        raise RuntimeError(f"qr received unrecognized mode '{mode}' but expected one of 'reduced' (default), 'r', or 'complete'")
    q, r = _unpack(apply(qr_, (A,)), A.shape[-2:], -2)
    return QR(FUNCTIONS["empty"](0, dtype=A.dtype) if mode == "r" else q, _mt(r))


@public("qr")
def old_qr(input: Tensor, some: bool = True) -> QR:
    """`linalg.qr` under its old name."""
    return qr(input, "reduced" if some else "complete")  # type: ignore[no-any-return]


def _eigh_np(x: Any, lower: bool) -> Any:
    values, vectors = np.linalg.eigh(x, "L" if lower else "U")
    return np.concatenate((vectors, values[..., None, :]), -2)  # (…, n + 1, n)


def _eigh_spec(x: Spec, lower: bool) -> Spec:
    _matrices("eigh", x, True)
    return Spec((*x.shape[:-2], x.shape[-1] + 1, x.shape[-1]), x.dtype, x.device)


def _gaps(values: Tensor) -> Tensor:
    """1 / (λⱼ - λᵢ), 0 on the diagonal."""
    apart = unsqueeze(values, -2) - unsqueeze(values, -1)
    return where(apart.eq(0), 0.0, 1.0 / where(apart.eq(0), 1.0, apart))


def _eigh_grad(g: Tensor, out: Tensor, x_spec: Spec) -> Tensor:
    n = x_spec.shape[-1]
    v, values = _unpack(out, (n, 1), -2)
    gv, gvalues = _unpack(g, (n, 1), -2)
    middle = _gaps(values.squeeze(-2)) * matmul(_mt(v), gv) + diag_embed(gvalues.squeeze(-2))
    return matmul(matmul(v, middle), _mt(v))


eigh_: Op = define(
    "eigh",
    ("x",),
    _lapack("eigh", _eigh_np),
    _eigh_spec,
    None,
    ("lower",),
    {"x": _eigh_grad},
    lambda: [((a + np.swapaxes(a, -1, -2),), (True,)) for a in (_rng.standard_normal((3, 3)), _rng.standard_normal((2, 3, 3)))],
)


class Eigen(Result, name="linalg_eig"):
    """Eigenvalues, and eigenvectors as columns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


@linear_algebra()
def eigh(A: Tensor, UPLO: str = "L") -> Eigen:
    """Eigenvalues in rising order and eigenvectors (columns) of symmetric matrices, of which one triangle is read."""
    vectors, values = _unpack(apply(eigh_, (A,), (UPLO.upper() == "L",)), (A.shape[-1], 1), -2)
    return Eigen(METHODS["real"].fget(values.squeeze(-2)).contiguous(), vectors)


@linear_algebra()
def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    """The eigenvalues of symmetric matrices in rising order."""
    return eigh(A, UPLO).eigenvalues


@linear_algebra()
def eig(A: Tensor) -> Eigen:
    """Complex eigenvalues and eigenvectors (columns) of square matrices; no gradient."""
    _matrices("eig", A._meta.spec, True)
    kind = dtypes.complex_of(A.dtype)
    values, vectors = np.linalg.eig(A.detach().numpy())
    return Eigen(FUNCTIONS["tensor"](values, dtype=kind), FUNCTIONS["tensor"](vectors, dtype=kind))


@linear_algebra()
def eigvals(A: Tensor) -> Tensor:
    """The complex eigenvalues of square matrices; no gradient."""
    return eig(A).eigenvalues


def _svd_np(x: Any) -> Any:
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    return np.concatenate((u, s[..., None, :], np.swapaxes(vh, -1, -2)), -2)  # (…, m + 1 + n, k)


def _svd_spec(x: Spec) -> Spec:
    _matrices("svd", x)
    m, n = x.shape[-2:]
    return Spec((*x.shape[:-2], m + 1 + n, min(m, n)), x.dtype, x.device)


def _svd_grad(g: Tensor, out: Tensor, x_spec: Spec) -> Tensor:
    """Townsend 2016, "Differentiating the singular value decomposition"."""
    m, n = x_spec.shape[-2:]
    k = min(m, n)
    u, row, v = _unpack(out, (m, 1, n), -2)
    gu, grow, gv = _unpack(g, (m, 1, n), -2)
    s, gs = row.squeeze(-2), grow.squeeze(-2)
    f = _gaps(s * s)
    left, right = matmul(_mt(u), gu), matmul(_mt(v), gv)
    inner = (f * (left - _mt(left))) * unsqueeze(s, -2) + unsqueeze(s, -1) * (f * (right - _mt(right))) + diag_embed(gs)
    total = matmul(matmul(u, inner), _mt(v))
    if m > k:
        total = total + matmul((gu - matmul(u, left)) / unsqueeze(s, -2), _mt(v))
    if n > k:
        total = total + matmul(u, _mt((gv - matmul(v, right)) / unsqueeze(s, -2)))
    return total


svd_: Op = define(
    "svd",
    ("x",),
    _lapack("svd", _svd_np),
    _svd_spec,
    vjp={"x": _svd_grad},
    samples=lambda: [((_rng.standard_normal(s),), ()) for s in ((4, 3), (3, 4), (2, 3, 3))],
)


class SVD(Result, name="linalg_svd"):
    """Left singular vectors, singular values, right singular vectors (rows)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class LegacySVD(Result, name="svd"):
    """Left singular vectors, singular values, right singular vectors (columns)."""

    U: Tensor
    S: Tensor
    V: Tensor


def _thin(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m, n = A.shape[-2:]
    u, s, v = _unpack(apply(svd_, (A,)), (m, 1, n), -2)
    return u, METHODS["real"].fget(s.squeeze(-2)).contiguous(), v


@linear_algebra("svd")
def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> SVD:
    """U diag(S) Vh = A with falling singular values. Gradients flow where U and Vh are not extended to squares."""
    m, n = A.shape[-2:]
    u, s, v = _thin(A)
    vh = _mt(v)
    if full_matrices and m != n:
        k = min(m, n)
        u_all, _, vh_all = [METHODS["new_tensor"](A, part) for part in np.linalg.svd(A.detach().numpy(), True)]
        u = FUNCTIONS["cat"]([u, u_all.narrow(-1, k, m - k)], -1)
        vh = FUNCTIONS["cat"]([vh, vh_all.narrow(-2, k, n - k)], -2)
    return SVD(u, s, vh)


@public("svd")
def old_svd(input: Tensor, some: bool = True, compute_uv: bool = True) -> LegacySVD:
    """(U, S, V) with U diag(S) Vᵀ = input, thin if `some`; zeros for U and V unless `compute_uv`."""
    u, s, vh = svd(input, not some)
    if not compute_uv:
        m, n = input.shape[-2:]
        batch = tuple(input.shape[:-2])
        return LegacySVD(FUNCTIONS["zeros"](*batch, m, m, dtype=input.dtype), s, FUNCTIONS["zeros"](*batch, n, n, dtype=input.dtype))
    return LegacySVD(u, s, _mh(vh))


@linear_algebra()
def svdvals(A: Tensor, *, driver: str | None = None) -> Tensor:
    """The singular values in falling order."""
    return _thin(A)[1]


# ------------------------------------------------------------------------------------------------ made of these


def _threshold(s: Tensor, shape: Sequence[int], atol: Any, rtol: Any) -> Any:
    eps = float(np.finfo(s.dtype.np).eps)
    relative = rtol if rtol is not None else eps * max(shape[-2:]) if atol is None else 0.0
    if not s.shape[-1]:
        return 0.0
    largest = amax(s, -1, True)
    relative, atol = (unsqueeze(t, -1) if isinstance(t, Tensor) and t.ndim else t for t in (relative, atol))
    return (largest * relative).clamp(min=0.0 if atol is None else atol)


@linear_algebra()
def matrix_rank(A: Tensor, tol: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None) -> Tensor:
    """How many singular values are above the tolerance."""
    s = eigvalsh(A.detach()).abs() if hermitian else svdvals(A.detach())
    return sum_over(s > _threshold(s, A.shape, tol if atol is None else atol, rtol), -1)


@linear_algebra("pinv")
@public("pinverse")
def pinv(A: Tensor, rcond: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None) -> Tensor:
    """The pseudoinverse (Moore-Penrose)."""
    rtol = rcond if rtol is None else rtol
    if hermitian:
        s, u = eigh(A)
        v = u
    else:
        u, s, v = _thin(A)
        v = METHODS["conj"](v)
    keep = s.abs() > _threshold(s.abs(), A.shape, atol, rtol)
    return matmul(v * unsqueeze(where(keep, 1.0 / where(keep, s, 1.0), 0.0), -2), _mh(u))


class Lstsq(Result, name="linalg_lstsq"):
    """A solution with the sums of squared residuals, the rank, and the singular values."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


@linear_algebra()
def lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Lstsq:
    """X that makes A X - B smallest; the driver "gelsy" (the default), "gels", "gelsd" or "gelss" decides what else is found, as in LAPACK."""
    _matrices("lstsq", A._meta.spec)
    if driver not in (None, "gels", "gelsy", "gelsd", "gelss"):
        raise RuntimeError(f"linalg.lstsq: parameter `driver` should be one of (gels, gelsy, gelsd, gelss), got {driver}")
    driver = driver or "gelsy"
    vector = B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]
    b = unsqueeze(B, -1) if vector else B
    x = matmul(pinv(A, rcond), b)
    m, n = A.shape[-2:]
    nothing = FUNCTIONS["empty"](0, dtype=dtypes.real_of(A.dtype))
    rank = matrix_rank(A) if driver != "gels" else FUNCTIONS["empty"](0, dtype=dtypes.int64)
    full = m > n and (driver == "gels" or bool((rank == n).all()))
    residuals = sum_over((matmul(A, x) - b).abs() ** 2, -2) if full and driver != "gelsy" else nothing
    s = svdvals(A.detach()) if driver in ("gelsd", "gelss") else nothing
    return Lstsq(x.squeeze(-1) if vector else x, residuals, rank, s)


@linear_algebra(outside=True)
def matrix_power(input: Tensor, n: int) -> Tensor:
    """The product of n copies of square matrices; the inverse's for negative n."""
    _matrices("matrix_power", input._meta.spec, True)
    if n == 0:
        return expand(FUNCTIONS["eye"](input.shape[-1], dtype=input.dtype), tuple(input.shape)).clone()
    x = inverse(input) if n < 0 else input
    out: Any = None
    n = abs(n)
    while n:  # by squaring
        if n & 1:
            out = x if out is None else matmul(out, x)
        n >>= 1
        x = matmul(x, x) if n else x
    return out  # type: ignore[no-any-return]


@linear_algebra(outside=True)
def matrix_exp(input: Tensor) -> Tensor:
    """The exponential of square matrices: Taylor's series of input / 2ˢ, squared s times."""
    _matrices("matrix_exp", input._meta.spec, True)
    size = float(input.detach().abs().sum(-1).max()) if input.numel() else 0.0
    squarings = max(0, math.ceil(math.log2(size)) + 2) if size > 0.25 else 0
    x = input * 0.5**squarings
    term = out = expand(FUNCTIONS["eye"](input.shape[-1], dtype=input.dtype), tuple(input.shape))
    for k in range(1, 15 if input.dtype is dtypes.float64 else 10):
        term = matmul(term, x) / k
        out = out + term
    for _ in range(squarings):
        out = matmul(out, out)
    return out


@linear_algebra()
def vector_norm(x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The norm of vectors along `dim` (all elements by default): ord a number, inf or -inf."""
    return norm(x, float(ord), dim, keepdim, dtype)


@linear_algebra()
def matrix_norm(A: Tensor, ord: Any = "fro", dim: tuple[int, int] = (-2, -1), keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The norm of matrices: "fro", "nuc", inf, -inf, 1, -1, 2 or -2."""
    a, b = (normalize_dim("linalg.matrix_norm", d, A.ndim) for d in dim)
    x = A if dtype is None else A.to(dtype)
    if ord == "fro":
        return norm(x, 2, (a, b), keepdim)
    if ord in ("nuc", 2, -2):
        s = svdvals(METHODS["movedim"](x, (a, b), (-2, -1)))
        out = sum_over(s, -1) if ord == "nuc" else s.amax(-1) if ord == 2 else s.amin(-1)
    elif ord in (1, -1, math.inf, -math.inf):
        over, then = (a, b) if abs(ord) == 1 else (b, a)
        sums = sum_over(x.abs(), over, True)
        out = (sums.amax(then) if ord > 0 else sums.amin(then)).squeeze(over if over < then else over - 1)
    else:
        raise RuntimeError(f"linalg.matrix_norm: Order {ord} not supported.")
    if keepdim:
        for d in sorted((a, b)):
            out = unsqueeze(out, d)
    return out


@linear_algebra("norm")
def linalg_norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """A vector norm, or a matrix norm where `dim` names two dimensions or `ord` is given for a matrix."""
    if dim is None and ord is None:
        return norm(reshape(A, (-1,)) if not keepdim else A, 2, None, keepdim, dtype)
    dims = tuple(range(A.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if len(dims) == 2 and ord is not None:
        return matrix_norm(A, ord, dims, keepdim, dtype=dtype)
    return norm(A, 2.0 if ord in (None, "fro") else float(ord), dims, keepdim, dtype)


@linear_algebra()
def cond(A: Tensor, p: Any = None) -> Tensor:
    """The condition number: the norm times that of the inverse."""
    if not A.shape[-1]:
        return FUNCTIONS["zeros"](tuple(A.shape[:-2]), dtype=dtypes.real_of(A.dtype))
    if p in (None, 2, -2):
        s = svdvals(A)
        return s.amin(-1) / s.amax(-1) if p == -2 else s.amax(-1) / s.amin(-1)
    return matrix_norm(A, p) * matrix_norm(inverse(A), p)


@linear_algebra()
def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """The product of several matrices, in the order of fewest multiplications."""
    listed = list(tensors)
    if len(listed) == 1:
        return listed[0]
    row, column = listed[0].ndim == 1, listed[-1].ndim == 1
    if row:
        listed[0] = unsqueeze(listed[0], 0)
    if column:
        listed[-1] = unsqueeze(listed[-1], 1)
    sizes = [listed[0].shape[0], *[t.shape[1] for t in listed]]
    best: dict[tuple[int, int], tuple[int, int]] = {(i, i): (0, i) for i in range(len(listed))}
    for length in range(1, len(listed)):
        for i in range(len(listed) - length):
            j = i + length
            best[i, j] = min((best[i, k][0] + best[k + 1, j][0] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j))

    def product(i: int, j: int) -> Tensor:
        k = best[i, j][1]
        return listed[i] if i == j else matmul(product(i, k), product(k + 1, j))

    out = product(0, len(listed) - 1)
    out = out.squeeze(-1) if column else out
    return out.squeeze(0) if row else out


@public(method=False)
def chain_matmul(*matrices: Tensor) -> Tensor:
    """`linalg.multi_dot` under its old name."""
    return multi_dot(matrices)


@linear_algebra(outside=True)
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The cross product along `dim`, of size 3 (the first such dimension of the input, or the last in linalg.cross)."""
    shape = broadcast_shapes("cross", tuple(input.shape), tuple(other.shape))
    if input.ndim != other.ndim:
        raise RuntimeError(f"linalg.cross: inputs must have the same number of dimensions; got {input.ndim} and {other.ndim}")
    d = next((k for k, n in enumerate(shape) if n == 3), -1) if dim is None else normalize_dim("cross", dim, len(shape))
    if shape[d] != 3:
        raise RuntimeError(f"linalg.cross: inputs dimension {d} must have length 3. Got {input.shape[d]} and {other.shape[d]}")
    a, b = expand(input, shape).unbind(d), expand(other, shape).unbind(d)
    return stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], d)


LINALG["cross"] = lambda input, other, *, dim=-1: cross(input, other, dim)
LINALG["diagonal"] = lambda A, *, offset=0, dim1=-2, dim2=-1: METHODS["diagonal"](A, offset, dim1, dim2)
LINALG["matmul"] = matmul
LINALG["vander"] = lambda x, N=None: FUNCTIONS["vander"](x if x.ndim else unsqueeze(x, 0), N, increasing=True)


@linear_algebra()
def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """The inner products along `dim`."""
    return sum_over(x.conj() * y, dim)


@linear_algebra()
def inv_ex(A: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """`inv` with a code of success, which is always 0: failures raise."""
    return inverse(A), FUNCTIONS["zeros"](tuple(A.shape[:-2]), dtype=dtypes.int32)


@linear_algebra()
def tensorsolve(A: Tensor, B: Tensor, dims: Any = None) -> Tensor:
    """X with tensordot(A, X, X.ndim) = B."""
    a = A if dims is None else METHODS["movedim"](A, tuple(dims), tuple(range(A.ndim - len(dims), A.ndim)))
    shape = tuple(a.shape[B.ndim :])
    return reshape(solve(reshape(a, (B.numel(), -1)), reshape(B, (-1,))), shape)


@linear_algebra()
def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """The inverse of tensordot(A, ·, ind)."""
    rows, columns = tuple(A.shape[:ind]), tuple(A.shape[ind:])
    return reshape(inverse(reshape(A, (math.prod(rows), -1))), columns + rows)


# ------------------------------------------------------------------------------------------------ LU, Householder reflections


def _swap_rows(a: Any, k: int, p: Any) -> None:
    """Exchange row k of each matrix with its row p."""
    p = p.reshape(*p.shape, 1, 1)
    row = np.take_along_axis(a, p, -2)
    np.put_along_axis(a, p, a[..., k : k + 1, :].copy(), -2)
    a[..., k : k + 1, :] = row


def _lu_pivots_np(x: Any) -> Any:
    a = np.array(x, copy=True)
    m, n = a.shape[-2:]
    out = np.zeros((*a.shape[:-2], min(m, n)), np.int32)
    for k in range(min(m, n)):
        column = a[..., k:, k]
        p = (np.abs(column.real) + np.abs(column.imag)).argmax(-1) + k  # LAPACK's measure of complex numbers too
        out[..., k] = p + 1
        _swap_rows(a, k, p)
        _eliminate(a, k)
    return out


def _eliminate(a: Any, k: int) -> None:
    """One step of Gauss: below the diagonal the factors, to the right what is left."""
    head = a[..., k : k + 1, k : k + 1]
    a[..., k + 1 :, k : k + 1] /= np.where(head == 0, 1, head)
    a[..., k + 1 :, k + 1 :] -= a[..., k + 1 :, k : k + 1] * a[..., k : k + 1, k + 1 :]


def _lu_np(x: Any) -> Any:
    a = np.array(x, copy=True)
    for k in range(min(a.shape[-2:])):
        _eliminate(a, k)
    return a


def _rows_np(pivots: Any, count: int) -> Any:
    """Where each row of the permuted matrix stood, from LAPACK's list of exchanges."""
    rows = np.broadcast_to(np.arange(count), (*pivots.shape[:-1], count))[..., None].copy()
    for k in range(pivots.shape[-1]):
        _swap_rows(rows, k, pivots[..., k].astype(np.int64) - 1)
    return rows[..., 0]


def _unpacked(lu: Tensor) -> tuple[Tensor, Tensor]:
    m, n = lu.shape[-2:]
    k = min(m, n)
    lower = tril(lu.narrow(-1, 0, k), -1) + FUNCTIONS["eye"](m, k, dtype=lu.dtype)
    return lower, triu(lu.narrow(-2, 0, k))


def _lu_grad(g: Tensor, out: Tensor) -> Tensor:
    """A square block L U of the result by the rule for square matrices; what is beyond it is a triangular solution."""
    m, n = out.shape[-2:]
    k = min(m, n)
    lower, upper = _unpacked(out)
    gl, gu = tril(g.narrow(-1, 0, k), -1), triu(g.narrow(-2, 0, k))
    rest = None
    if n > k:
        rest = apply(solve_, (_mh(lower), gu.narrow(-1, k, n - k)))
        gl = tril(gl - matmul(rest, _mh(upper.narrow(-1, k, n - k))), -1)
        upper, gu = upper.narrow(-1, 0, k), gu.narrow(-1, 0, k)
    if m > k:
        rest = _mh(apply(solve_, (upper, _mh(gl.narrow(-2, k, m - k)))))
        gu = triu(gu - matmul(_mh(lower.narrow(-2, k, m - k)), rest))
        lower, gl = lower.narrow(-2, 0, k), gl.narrow(-2, 0, k)
    inner = tril(matmul(_mh(lower), gl), -1) + triu(matmul(gu, _mh(upper)))
    square = _mh(apply(solve_, (upper, _mh(apply(solve_, (_mh(lower), inner))))))
    return square if rest is None else FUNCTIONS["cat"]([square, rest], -1 if n > k else -2)  # type: ignore[no-any-return]


def _wide_and_tall() -> Any:
    return [((_rng.standard_normal(s) + 3 * np.eye(*s[-2:]),), ()) for s in ((3, 3), (2, 3, 3), (3, 4), (4, 3))]


def _pivot_spec(x: Spec) -> Spec:
    _matrices("lu_factor", x)
    return Spec((*x.shape[:-2], min(x.shape[-2:])), dtypes.int32, x.device)


lu_pivots_: Op = define("lu_pivots", ("x",), _lu_pivots_np, _pivot_spec, samples=_wide_and_tall, doc="LAPACK's row exchanges, counted from 1.")
lu_rows_: Op = define(
    "lu_rows", ("pivots",), _rows_np, lambda pivots, count: Spec((*pivots.shape[:-1], count), dtypes.int64, pivots.device), None, ("count",),
    samples=lambda: [((np.array([3, 3, 3], np.int32),), (4,))], doc="The order of rows that a list of exchanges makes.",
)
lu_: Op = define(
    "lu", ("x",), _lu_np, lambda x: x, vjp={"x": _lu_grad}, samples=_wide_and_tall, hermitian=True,
    doc="L (without its diagonal) and U in one, without exchanges.",
)


class LUFactor(Result, name="linalg_lu_factor"):
    """L and U in one matrix, and the row exchanges."""

    LU: Tensor
    pivots: Tensor


class LUFactorEx(Result, name="linalg_lu_factor_ex"):
    """L and U in one matrix, the row exchanges, and 0 where none of the pivots is 0."""

    LU: Tensor
    pivots: Tensor
    info: Tensor


class LU(Result, name="linalg_lu"):
    """A permutation, a lower triangular matrix with ones on its diagonal, an upper triangular one."""

    P: Tensor
    L: Tensor
    U: Tensor


@linear_algebra()
def lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> LUFactorEx:
    """`lu_factor` with the position (from 1) of the first pivot that is 0, or 0."""
    _matrices("lu_factor", A._meta.spec)
    k = min(A.shape[-2:])
    if pivot:
        pivots = apply(lu_pivots_, (A,))
        rows = apply(lu_rows_, (pivots,), (A.shape[-2],))
        x = FUNCTIONS["take_along_dim"](A, unsqueeze(rows, -1), -2)
    else:
        pivots = expand(FUNCTIONS["arange"](1, k + 1, dtype=dtypes.int32), (*A.shape[:-2], k)).clone()
        x = A
    out = apply(lu_, (x,))
    zero = METHODS["diagonal"](out.detach(), 0, -2, -1).eq(0)
    first = where(zero.any(-1), cast_int(zero).argmax(-1) + 1, 0).to(dtypes.int32) if k else pivots.sum(-1).to(dtypes.int32)
    if check_errors and bool(first.any()):
        raise LinAlgError(f"linalg.lu_factor: U[{int(first.max())},{int(first.max())}] is zero and using it on lu_solve would divide by zero")
    return LUFactorEx(out, pivots, first)


def cast_int(x: Tensor) -> Tensor:
    """Bools as numbers."""
    return x.to(dtypes.int32)  # type: ignore[no-any-return]


@linear_algebra()
def lu_factor(A: Tensor, *, pivot: bool = True) -> LUFactor:
    """P A = L U, both in one matrix, with LAPACK's row exchanges (int32, from 1)."""
    return LUFactor(*lu_factor_ex(A, pivot=pivot)[:2])


@linear_algebra("lu")
def lu_decomposition(A: Tensor, *, pivot: bool = True) -> LU:
    """(P, L, U) with P L U = A."""
    out, pivots = lu_factor(A, pivot=pivot)
    return lu_unpack(out, pivots)  # type: ignore[no-any-return]


@public(method=False)
def lu_unpack(LU_data: Tensor, LU_pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True) -> LU:
    """(P, L, U) from what `lu_factor` gave."""
    m = LU_data.shape[-2]
    nothing = FUNCTIONS["empty"](0, dtype=LU_data.dtype)
    lower, upper = _unpacked(LU_data) if unpack_data else (nothing, nothing)
    if not unpack_pivots:
        return LU(nothing, lower, upper)
    rows = apply(lu_rows_, (LU_pivots,), (m,))
    return LU((unsqueeze(rows, -2) == unsqueeze(FUNCTIONS["arange"](m), -1)).to(LU_data.dtype), lower, upper)


@public("lu")
def old_lu(input: Tensor, pivot: bool = True, get_infos: bool = False) -> Any:
    """`linalg.lu_factor` under its old name."""
    out = lu_factor_ex(input, pivot=pivot)
    return tuple(out) if get_infos else tuple(out[:2])


@linear_algebra("lu_solve")
def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """X with A X = B (X A = B if not `left`, Aᴴ for A if `adjoint`), where `lu_factor` gave LU and pivots of A."""
    p, lower, upper = lu_unpack(LU, pivots)
    a = matmul(p, matmul(lower, upper))
    return solve(_mh(a) if adjoint else a, B, left=left)  # type: ignore[no-any-return]


@public("lu_solve")
def old_lu_solve(input: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    """`linalg.lu_solve` with its old order of arguments."""
    return lu_solve(LU_data, LU_pivots, input)  # type: ignore[no-any-return]


@linear_algebra()
def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """`solve` with a code of success, which is always 0: failures raise."""
    return solve(A, B, left=left), FUNCTIONS["zeros"](tuple(A.shape[:-2]), dtype=dtypes.int32)


@public()
def triangular_solve(input: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False) -> tuple[Tensor, Tensor]:
    """(X, A) with A X = input, of A only one triangle counts; `linalg.solve_triangular` is the newer name."""
    a, up = (_mt(A), not upper) if transpose else (A, upper)
    return solve_triangular(a, input, upper=up, unitriangular=unitriangular), A.clone()


@linear_algebra()
@public("orgqr")
def householder_product(input: Tensor, tau: Tensor) -> Tensor:
    """The first columns of the product of reflections I - tau v vᴴ; v stands below the diagonal of `input`, with a one on it."""
    m, n = input.shape[-2:]
    out = expand(FUNCTIONS["eye"](m, n, dtype=input.dtype), tuple(input.shape))
    vectors = tril(input, -1) + FUNCTIONS["eye"](m, n, dtype=input.dtype)
    for k in reversed(range(tau.shape[-1])):
        v = vectors.narrow(-1, k, 1)
        out = out - v * unsqueeze(tau.narrow(-1, k, 1), -1) * matmul(_mh(v), out)
    return out


@public()
def geqrf(input: Tensor) -> tuple[Tensor, Tensor]:
    """(a, tau): R in the upper triangle of a, the reflections that make Q below it; no gradient."""
    _matrices("geqrf", input._meta.spec)
    h, tau = np.linalg.qr(input.detach().numpy(), "raw")
    return METHODS["new_tensor"](input, np.swapaxes(h, -1, -2)), METHODS["new_tensor"](input, tau)


@public()
def ormqr(input: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    """Q other (other Q if not `left`, Qᴴ for Q if `transpose`) with the whole Q that `geqrf` describes."""
    m, n = input.shape[-2:]
    square = FUNCTIONS["cat"]([input, input.new_zeros(*input.shape[:-2], m, m - n)], -1) if m > n else input
    q = householder_product(square, tau)
    q = _mh(q) if transpose else q
    return matmul(q, other) if left else matmul(other, q)


# ------------------------------------------------------------------------------------------------ few columns of large matrices


@public(method=False)
def svd_lowrank(A: Tensor, q: int | None = 6, niter: int | None = 2, M: Tensor | None = None) -> LegacySVD:
    """(U, S, V), about the q largest singular values of A - M, from random columns (Halko et al. 2009)."""
    x = A if M is None else A - M
    m, n = x.shape[-2:]
    q = 6 if q is None else q
    if not 0 <= q <= min(m, n):
        raise ValueError(f"svd_lowrank: q (={q}) must be non-negative and not greater than {min(m, n)}")
    basis = qr(matmul(x, FUNCTIONS["randn"](*x.shape[:-2], n, q, dtype=x.dtype))).Q
    for _ in range(2 if niter is None else niter):
        basis = qr(matmul(x, qr(matmul(_mh(x), basis)).Q)).Q
    u, s, vh = svd(matmul(_mh(basis), x), False)
    return LegacySVD(matmul(basis, u), s, _mh(vh))


@public(method=False)
def pca_lowrank(A: Tensor, q: int | None = None, center: bool = True, niter: int = 2) -> LegacySVD:
    """(U, S, V), about the q first principal components of the rows of A."""
    m, n = A.shape[-2:]
    q = min(6, m, n) if q is None else q
    if not 0 <= q <= min(m, n):
        raise ValueError(f"q(={q}) must be non-negative integer and not greater than min(m, n)={min(m, n)}")
    return svd_lowrank(A - A.mean(-2, keepdim=True) if center else A, q, niter)


# ------------------------------------------------------------------------------------------------ products with an addend


def _mix(input: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    if not product.dtype.has_gradient:
        beta, alpha = int(beta), int(alpha)
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (input if beta == 1 else input * beta)


@public()
def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * (mat @ vec); for integers the two factors are cut to whole numbers."""
    return _mix(input, mv(mat, vec), beta, alpha)


@public()
def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * outer(vec1, vec2)."""
    return _mix(input, outer(vec1, vec2), beta, alpha)


@public()
def addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * the sum of batch1 @ batch2 over the batch."""
    return _mix(input, sum_over(bmm(batch1, batch2), 0).to(batch1.dtype), beta, alpha)


for _f in (addmm, addmv, addr, addbmm, baddbmm):
    METHODS[_f.__name__ + "_"] = in_place(_f)


@public()
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """The inner product of two vectors, the first one conjugated."""
    return METHODS["dot"](input.conj(), other)  # type: ignore[no-any-return]
