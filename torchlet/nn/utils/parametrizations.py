"""Parametrizations that are often wanted: weight norm, spectral norm, orthogonal matrices."""

from __future__ import annotations

from torchlet import ops
from torchlet.autograd import no_grad
from torchlet.nn import functional as F
from torchlet.nn.module import Module
from torchlet.nn.utils import parametrize
from torchlet.ops.linalg import LINALG
from torchlet.tensor import Tensor

__all__ = ["norm_except_dim", "orthogonal", "spectral_norm", "weight_norm"]


def norm_except_dim(v: Tensor, dim: int | None) -> Tensor:
    """The 2-norm over all dimensions but `dim`; over all for None or -1."""
    if dim is None or dim == -1:
        return ops.sqrt((v * v).sum())
    dims = tuple([d for d in range(v.ndim) if d != dim % v.ndim])
    return ops.sqrt((v * v).sum(dims, keepdim=True)) if dims else ops.abs(v)


class _WeightNorm(Module):
    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """weight_g * weight_v / ‖weight_v‖."""
        return weight_v * (weight_g / norm_except_dim(weight_v, self.dim))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The norm and the weight."""
        return norm_except_dim(weight, self.dim), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Train the norm and the direction of a weight apart (Salimans & Kingma 2016)."""
    return parametrize.register_parametrization(module, name, _WeightNorm(dim), unsafe=True)


class _SpectralNorm(Module):
    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        if not -weight.ndim <= dim < weight.ndim:
            raise IndexError(f"Dimension out of range (expected to be in range of [-{weight.ndim}, {weight.ndim - 1}] but got {dim})")
        if n_power_iterations <= 0:
            raise ValueError(f"Expected n_power_iterations to be positive, but got n_power_iterations={n_power_iterations}")
        self.dim = dim % weight.ndim
        self.eps = eps
        if weight.ndim > 1:
            self.n_power_iterations = n_power_iterations
            with no_grad():
                matrix = self._matrix(weight.detach())
                self.register_buffer("_u", F.normalize(ops.randn(matrix.shape[0], dtype=weight.dtype), dim=0, eps=eps))
                self.register_buffer("_v", F.normalize(ops.randn(matrix.shape[1], dtype=weight.dtype), dim=0, eps=eps))
                self._iterate(matrix, 15)

    def _matrix(self, weight: Tensor) -> Tensor:
        return (weight if self.dim == 0 else weight.movedim(self.dim, 0)).flatten(1)

    def _iterate(self, matrix: Tensor, count: int) -> None:
        """Power iteration: u and v approach the first singular vectors."""
        with no_grad():
            for _ in range(count):
                self._u.copy_(F.normalize(ops.mv(matrix, self._v), dim=0, eps=self.eps))
                self._v.copy_(F.normalize(ops.mv(matrix.transpose(0, 1), self._u), dim=0, eps=self.eps))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value."""
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        matrix = self._matrix(weight)
        if self.training:
            self._iterate(matrix.detach(), self.n_power_iterations)
        u, v = self._u.clone(), self._v.clone()
        return weight / ops.dot(u, ops.mv(matrix, v))

    def right_inverse(self, value: Tensor) -> Tensor:
        """The value itself: it may have any norm."""
        return value


def spectral_norm(module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None) -> Module:
    """Divide a weight by its largest singular value (Miyato et al. 2018)."""
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if dim is None:
        dim = 1 if type(module).__name__.startswith("ConvTranspose") else 0
    return parametrize.register_parametrization(module, name, _SpectralNorm(weight, n_power_iterations, dim, eps))


class _Orthogonal(Module):
    base: Tensor | None

    def __init__(self, weight: Tensor, orthogonal_map: str, use_trivialization: bool) -> None:
        super().__init__()
        if weight.dtype.is_complex and orthogonal_map == "householder":
            raise ValueError("The householder parametrization does not support complex tensors.")
        self.orthogonal_map, self.shape = orthogonal_map, tuple(weight.shape)
        self.register_buffer("base", None)
        self.trivial = use_trivialization  # the weight is a fixed orthogonal matrix times one near the identity

    def forward(self, X: Tensor) -> Tensor:
        """An orthogonal matrix, or orthonormal rows or columns, made from any matrix."""
        n, k = X.shape[-2:]
        wide = n < k
        x = X.mT if wide else X
        n, k = x.shape[-2:]
        if self.orthogonal_map == "householder":
            lower = x.tril(-1)
            q = LINALG["householder_product"](lower, 2.0 / (1.0 + (lower * lower).sum(-2)))
            q = q * x.diagonal(0, -2, -1).int().unsqueeze(-2)  # the signs stand on the diagonal
        else:
            a = x.tril()
            if n != k:
                a = ops.cat([a, a.new_zeros(*a.shape[:-2], n, n - k)], -1)
            a = a - a.mT  # skew-symmetric
            if self.orthogonal_map == "matrix_exp":
                q = ops.matrix_exp(a)
            else:
                eye = ops.eye(n, dtype=a.dtype)
                q = LINALG["solve"](eye - a * 0.5, eye + a * 0.5)  # Cayley
            q = q[..., :k]
        if self.base is not None:
            q = self.base @ q
        return q.mT if wide else q

    def right_inverse(self, Q: Tensor) -> Tensor:
        """A matrix that gives Q, where there is one in reach."""
        if Q.shape != self.shape:
            raise ValueError(f"Expected a matrix or batch of matrices of shape {self.shape}. Got a tensor of shape {tuple(Q.shape)}.")
        wide = Q.shape[-2] < Q.shape[-1]
        q = (Q.mT if wide else Q).detach()
        n, k = q.shape[-2:]
        if self.trivial:
            if n != k:
                q = ops.cat([q, ops.randn(*q.shape[:-2], n, n - k, dtype=q.dtype)], -1)
            self.base = q.clone() if n == k and _is_orthogonal(q) else _made_orthogonal(q)
            return -ops.eye(*Q.shape[-2:], dtype=Q.dtype).expand(Q.shape)  # householder(-identity) is the identity
        if self.orthogonal_map != "householder":
            raise NotImplementedError(
                "It is not possible to assign to the matrix exponential or the Cayley parametrizations when use_trivialization=False."
            )
        a, tau = ops.geqrf(q)
        sign = a.diagonal(0, -2, -1).sign() * ops.where(tau.eq(0), -1.0, 1.0)
        a = a.tril(-1) + a.triu(1) + (ops.eye(n, k, dtype=a.dtype) * sign.unsqueeze(-2))
        return a.mT if wide else a


def _is_orthogonal(q: Tensor) -> bool:
    eye = ops.eye(q.shape[-1], dtype=q.dtype)
    return bool(ops.allclose(q.mT @ q, eye.expand(q.shape[:-2] + eye.shape), atol=10 * q.shape[-1] * ops.finfo(q.dtype).eps))


def _made_orthogonal(a: Tensor) -> Tensor:
    """Q of A = Q R with a positive diagonal in R."""
    x, tau = ops.geqrf(a)
    return LINALG["householder_product"](x, tau) * x.diagonal(0, -2, -1).sign().unsqueeze(-2)


def orthogonal(module: Module, name: str = "weight", orthogonal_map: str | None = None, *, use_trivialization: bool = True) -> Module:
    """Keep a weight orthogonal by "matrix_exp" (the default for square ones), "cayley" or "householder" (Lezcano-Casado 2019)."""
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if weight.ndim < 2:
        raise ValueError(f"Expected a matrix or batch of matrices. Got a tensor of {weight.ndim} dimensions.")
    if orthogonal_map is None:
        orthogonal_map = "matrix_exp" if weight.shape[-2] == weight.shape[-1] or weight.dtype.is_complex else "householder"
    if orthogonal_map not in ("matrix_exp", "cayley", "householder"):
        raise ValueError(f'orthogonal_map has to be one of "matrix_exp", "cayley", "householder". Got: {orthogonal_map}')
    return parametrize.register_parametrization(module, name, _Orthogonal(weight, orthogonal_map, use_trivialization), unsafe=True)
