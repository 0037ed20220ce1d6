"""Distributions of vectors with a covariance, and of matrices."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torchlet.distributions import constraints
from torchlet.distributions.distribution import LOG_2PI, Distribution, ExponentialFamily
from torchlet.distributions.gammas import Beta, standard_gamma
from torchlet.distributions.utils import T, broadcast_all
from torchlet.ops.linalg import LINALG
from torchlet.tensor import Tensor

__all__ = ["LKJCholesky", "LowRankMultivariateNormal", "MultivariateNormal", "Wishart"]


def half_log_det(lower: Tensor) -> Tensor:
    """½ log det of L Lᵀ."""
    return lower.diagonal(0, -2, -1).log().sum(-1)


def distance(lower: Tensor, d: Tensor) -> Tensor:
    """dᵀ (L Lᵀ)⁻¹ d for vectors d, broadcast over batches."""
    wide = d.unsqueeze(-1)
    z = LINALG["solve_triangular"](lower.expand(*wide.shape[:-2], *lower.shape[-2:]), wide, upper=False)
    return (z * z).sum((-2, -1))  # type: ignore[no-any-return]


def precision_to_scale_tril(p: Tensor) -> Tensor:
    """The Cholesky factor of the inverse of a precision matrix."""
    flipped = T["cholesky"](T["flip"](p, (-2, -1)))
    inverse = T["flip"](flipped, (-2, -1)).mT
    return LINALG["solve_triangular"](inverse, T["eye"](p.shape[-1], dtype=p.dtype).expand(*p.shape), upper=False)  # type: ignore[no-any-return]


class MultivariateNormal(Distribution):
    """Normal vectors with mean `loc` and a covariance, a precision, or a covariance's Cholesky factor."""

    has_rsample = True
    arg_constraints: ClassVar = {
        "loc": constraints.real_vector, "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite, "scale_tril": constraints.lower_cholesky,
    }  # fmt: skip
    support: Any = constraints.real_vector

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if loc.ndim < 1:
            raise ValueError("loc must be at least one-dimensional.")
        given = {"covariance_matrix": covariance_matrix, "precision_matrix": precision_matrix, "scale_tril": scale_tril}
        if sum(m is not None for m in given.values()) != 1:
            raise ValueError("Exactly one of covariance_matrix or precision_matrix or scale_tril may be specified.")
        name, matrix = next((n, m) for n, m in given.items() if m is not None)
        if matrix.ndim < 2:
            raise ValueError(f"{name} must be at least two-dimensional, with optional leading batch dimensions")
        batch = T["broadcast_shapes"](tuple(loc.shape[:-1]), tuple(matrix.shape[:-2]))
        n = loc.shape[-1]
        self.loc, matrix = loc.expand(*batch, n), matrix.expand(*batch, n, n)
        self.__dict__[name] = matrix
        super().__init__(batch, (n,), validate_args)
        if name == "scale_tril":
            self._unbroadcasted_scale_tril = matrix
        elif name == "covariance_matrix":
            self._unbroadcasted_scale_tril = T["cholesky"](matrix)
        else:
            self._unbroadcasted_scale_tril = precision_to_scale_tril(matrix)

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: (self._unbroadcasted_scale_tril**2).sum(-1))

    def __getattr__(self, name: str) -> Any:
        """The forms of the covariance that were not given."""
        if name.startswith("__") or "_unbroadcasted_scale_tril" not in self.__dict__:
            raise AttributeError(name)
        lower = self._unbroadcasted_scale_tril
        if name == "scale_tril":
            return lower
        if name == "covariance_matrix":
            return lower @ lower.mT
        if name == "precision_matrix":
            return T["cholesky_inverse"](lower)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc + L z."""
        z = T["randn"](self._extended_shape(sample_shape), dtype=self.loc.dtype)
        return self.loc + (self._unbroadcasted_scale_tril @ z.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        lower = self._unbroadcasted_scale_tril
        return -0.5 * (self.event_shape[0] * LOG_2PI + distance(lower, value - self.loc)) - half_log_det(lower)

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return 0.5 * self.event_shape[0] * (1 + LOG_2PI) + half_log_det(self._unbroadcasted_scale_tril)


class LowRankMultivariateNormal(Distribution):
    """Normal vectors with covariance cov_factor cov_factorᵀ + diag(cov_diag)."""

    has_rsample = True
    arg_constraints: ClassVar = {
        "loc": constraints.real_vector, "cov_factor": constraints.independent(constraints.real, 2),
        "cov_diag": constraints.independent(constraints.positive, 1),
    }  # fmt: skip
    support: Any = constraints.real_vector

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, validate_args: bool | None = None):
        if loc.ndim < 1:
            raise ValueError("loc must be at least one-dimensional.")
        if cov_factor.ndim < 2:
            raise ValueError("cov_factor must be at least two-dimensional, with optional leading batch dimensions")
        n, rank = loc.shape[-1], cov_factor.shape[-1]
        if cov_factor.shape[-2] != n or cov_diag.shape[-1] != n:
            raise ValueError(f"cov_factor must be a batch of matrices with shape {n} x m, cov_diag a batch of vectors with shape ({n},)")
        batch = T["broadcast_shapes"](tuple(loc.shape[:-1]), tuple(cov_factor.shape[:-2]), tuple(cov_diag.shape[:-1]))
        self.loc, self.cov_diag = loc.expand(*batch, n), cov_diag.expand(*batch, n)
        self.cov_factor = cov_factor.expand(*batch, n, rank)
        super().__init__(batch, (n,), validate_args)

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: (self.cov_factor**2).sum(-1) + self.cov_diag)
    covariance_matrix = property(lambda self: self.cov_factor @ self.cov_factor.mT + T["diag_embed"](self.cov_diag))
    scale_tril = property(lambda self: T["cholesky"](self.covariance_matrix))
    precision_matrix = property(lambda self: T["inverse"](self.covariance_matrix))

    def _capacitance_tril(self) -> Tensor:
        """The Cholesky factor of I + Wᵀ D⁻¹ W, which is small."""
        scaled = self.cov_factor.mT / self.cov_diag.unsqueeze(-2)
        return T["cholesky"](scaled @ self.cov_factor + T["eye"](self.cov_factor.shape[-1], dtype=self.loc.dtype))  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc + W z₁ + √D z₂."""
        shape = self._extended_shape(sample_shape)
        z = T["randn"](*shape[:-1], self.cov_factor.shape[-1], dtype=self.loc.dtype)
        noise = T["randn"](shape, dtype=self.loc.dtype)
        return self.loc + (self.cov_factor @ z.unsqueeze(-1)).squeeze(-1) + self.cov_diag.sqrt() * noise

    def _log_det(self) -> Tensor:
        return 2 * half_log_det(self._capacitance_tril()) + self.cov_diag.log().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, by the matrix inversion lemma."""
        self._validate_sample(value)
        d = value - self.loc
        scaled = ((self.cov_factor.mT / self.cov_diag.unsqueeze(-2)) @ d.unsqueeze(-1)).squeeze(-1)
        squared = (d**2 / self.cov_diag).sum(-1) - distance(self._capacitance_tril(), scaled)
        return -0.5 * (self.event_shape[0] * LOG_2PI + self._log_det() + squared)

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return 0.5 * (self.event_shape[0] * (1 + LOG_2PI) + self._log_det())


class Wishart(ExponentialFamily):
    """Covariances of `df` normal vectors."""

    has_rsample = True
    arg_constraints: ClassVar = {
        "covariance_matrix": constraints.positive_definite, "precision_matrix": constraints.positive_definite,
        "scale_tril": constraints.lower_cholesky, "df": constraints.greater_than(0),
    }  # fmt: skip
    support: Any = constraints.positive_definite

    def __init__(
        self,
        df: Any,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        given = {"covariance_matrix": covariance_matrix, "precision_matrix": precision_matrix, "scale_tril": scale_tril}
        if sum(m is not None for m in given.values()) != 1:
            raise ValueError("Exactly one of covariance_matrix or precision_matrix or scale_tril may be specified.")
        name, matrix = next((n, m) for n, m in given.items() if m is not None)
        if matrix.ndim < 2:
            raise ValueError("scale_tril must be at least two-dimensional, with optional leading batch dimensions")
        n = matrix.shape[-1]
        df = df.to(matrix.dtype) if isinstance(df, Tensor) else T["tensor"](float(df), dtype=matrix.dtype)
        batch = T["broadcast_shapes"](tuple(matrix.shape[:-2]), tuple(df.shape))
        self.df, self.__dict__[name] = df.expand(batch), matrix.expand(*batch, n, n)
        if bool((self.df <= n - 1).any()):
            raise ValueError(f"Value of df={self.df} expected to be greater than ndim - 1 = {n - 1}.")
        super().__init__(batch, (n, n), validate_args)
        made = self.__dict__[name]
        lower = (
            T["cholesky"](made) if name == "covariance_matrix" else precision_to_scale_tril(made) if name == "precision_matrix" else made
        )
        self._unbroadcasted_scale_tril = lower

    def __getattr__(self, name: str) -> Any:
        """The forms of the covariance that were not given."""
        return MultivariateNormal.__getattr__(self, name)  # type: ignore[arg-type]

    mean = property(lambda self: self.df.reshape(*self.batch_shape, 1, 1) * self.covariance_matrix)

    @property
    def mode(self) -> Tensor:
        """(df - n - 1) times the covariance; NaN where that is not positive."""
        factor = self.df - self.event_shape[0] - 1
        factor = T["where"](factor <= 0, math.nan, factor)
        return factor.reshape(*self.batch_shape, 1, 1) * self.covariance_matrix  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """df (V² + diag(V) diag(V)ᵀ)."""
        v = self.covariance_matrix
        d = v.diagonal(0, -2, -1)
        return self.df.reshape(*self.batch_shape, 1, 1) * (v**2 + d.unsqueeze(-1) * d.unsqueeze(-2))  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Any = (), max_try_correction: Any = None) -> Tensor:
        """By Bartlett's decomposition."""
        n = self.event_shape[0]
        shape = (*tuple(sample_shape), *self.batch_shape)
        halves = 0.5 * (self.df.unsqueeze(-1) - T["arange"](n, dtype=self.df.dtype))
        diagonal = (2 * standard_gamma(halves.expand(*shape, n))).sqrt()
        noise = T["randn"](*shape, n, n, dtype=self.df.dtype).tril(-1) + T["diag_embed"](diagonal)
        chol = self._unbroadcasted_scale_tril @ noise
        return chol @ chol.mT

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        n, nu, lower = self.event_shape[0], self.df, self._unbroadcasted_scale_tril
        trace = T["cholesky_solve"](value, lower.expand(*value.shape)).diagonal(0, -2, -1).sum(-1)
        norm = -nu * (n * math.log(2) / 2 + half_log_det(lower)) - T["mvlgamma"](nu / 2, n)
        return norm + (nu - n - 1) / 2 * LINALG["slogdet"](value).logabsdet - trace / 2  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The differential entropy."""
        n, nu, lower = self.event_shape[0], self.df, self._unbroadcasted_scale_tril
        digammas = ((nu.unsqueeze(-1) - T["arange"](n, dtype=nu.dtype)) / 2).digamma().sum(-1)
        return (  # type: ignore[no-any-return]
            (n + 1) * (n * math.log(2) / 2 + half_log_det(lower)) + T["mvlgamma"](nu / 2, n) - (nu - n - 1) / 2 * digammas + nu * n / 2
        )


class LKJCholesky(Distribution):
    """Cholesky factors of correlation matrices, density ∝ det(L Lᵀ)^(concentration - 1)."""

    arg_constraints: ClassVar = {"concentration": constraints.positive}
    support: Any = constraints.corr_cholesky

    def __init__(self, dim: int, concentration: Any = 1.0, validate_args: bool | None = None):
        if dim < 2:
            raise ValueError(f"Expected dim to be an integer greater than or equal to 2. Found dim={dim}.")
        self.dim = dim
        (self.concentration,) = broadcast_all(concentration)
        super().__init__(self.concentration.shape, (dim, dim), validate_args)
        marginal = self.concentration + 0.5 * (dim - 2)
        offset = T["arange"](dim - 1, dtype=marginal.dtype)
        offset = T["cat"]([offset.new_zeros(1), offset])
        self._beta = Beta(offset + 0.5, marginal.unsqueeze(-1) - 0.5 * offset)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        return LKJCholesky(self.dim, self.concentration.expand(batch_shape), self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """By the onion method (Lewandowski et al. 2009)."""
        y = self._beta.sample(sample_shape).unsqueeze(-1)
        u = T["randn"](self._extended_shape(sample_shape), dtype=self.concentration.dtype).tril(-1)
        sphere = u / u.norm(dim=-1, keepdim=True)
        sphere = T["where"](sphere.isnan(), 0.0, sphere)
        w = y.sqrt() * sphere
        w = T["cat"]([w[..., :1, :] * 0.0, w[..., 1:, :]], -2)
        rest = (1 - (w**2).sum(-1)).clamp(min=T["finfo"](w.dtype).tiny).sqrt()
        return w + T["diag_embed"](rest)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        n = self.dim
        diagonal = value.diagonal(0, -2, -1)[..., 1:]
        order = 2 * (self.concentration - 1).unsqueeze(-1) + n - T["arange"](2, n + 1, dtype=value.dtype)
        unnormalised = (order * diagonal.log()).sum(-1)
        alpha = self.concentration + 0.5 * (n - 1)
        numerator = T["mvlgamma"](alpha - 0.5, n - 1)
        return unnormalised - (0.5 * (n - 1) * math.log(math.pi) + numerator - alpha.lgamma() * (n - 1))  # type: ignore[no-any-return]
