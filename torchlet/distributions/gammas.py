"""The gamma distribution and what is made of gamma variables: beta, Dirichlet, Student's t, Fisher-Snedecor and others."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torchlet import dtypes
from torchlet.autograd import no_grad
from torchlet.distributions import constraints
from torchlet.distributions.distribution import Distribution, ExponentialFamily
from torchlet.distributions.transformed import TransformedDistribution
from torchlet.distributions.transforms import PowerTransform
from torchlet.distributions.utils import T, broadcast_all
from torchlet.op import apply
from torchlet.ops.mathematics import gamma_sample_grad_
from torchlet.tensor import Tensor

__all__ = ["Beta", "Chi2", "Dirichlet", "FisherSnedecor", "Gamma", "InverseGamma", "StudentT"]


def standard_gamma(a: Tensor) -> Tensor:
    """Gamma samples of rate 1. Their gradient is that of the quantile at the sample's level (Figurnov et al. 2018)."""
    x = _draw_gamma(a.detach())
    if not a.requires_grad:
        return x
    return x + (a - a.detach()) * apply(gamma_sample_grad_, (a.detach(), x))


def _draw_gamma(a: Tensor) -> Tensor:
    """Marsaglia & Tsang 2000: proposals until every element has one; below 1 lifted by u^(1/a)."""
    with no_grad():
        low = a < 1
        d = T["where"](low, a + 1, a) - 1 / 3
        c = 1 / (9 * d).sqrt()
        out, missing = T["zeros_like"](a), T["ones_like"](a, dtype=dtypes.bool_)
        while bool(missing.any()):
            x, u = T["randn_like"](a), T["rand_like"](a).clamp(min=2.0**-25)
            v = (1 + c * x) ** 3
            good = (v > 0) & (u.log() < 0.5 * x * x + d - d * v + d * v.clamp(min=1e-30).log())
            out = T["where"](missing & good, d * v, out)
            missing = missing & ~good
        lift = T["rand_like"](a).clamp(min=2.0**-25) ** (1 / a)
        return T["where"](low, out * lift, out).clamp(min=T["finfo"](a.dtype).tiny)  # type: ignore[no-any-return]


class Gamma(ExponentialFamily):
    """Density ∝ x^(concentration-1) exp(-rate x)."""

    has_rsample = True
    arg_constraints: ClassVar = {"concentration": constraints.positive, "rate": constraints.positive}
    support: Any = constraints.nonnegative

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None):
        self.concentration, self.rate = broadcast_all(concentration, rate)
        super().__init__(self.concentration.shape, (), validate_args)

    mean = property(lambda self: self.concentration / self.rate)
    mode = property(lambda self: ((self.concentration - 1) / self.rate).clamp(min=0))
    variance = property(lambda self: self.concentration / self.rate**2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters."""
        return standard_gamma(self.concentration.expand(self._extended_shape(sample_shape))) / self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        a = self.concentration
        return a.xlogy(self.rate) + (a - 1).xlogy(value) - self.rate * value - a.lgamma()

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return T["igamma"](self.concentration, self.rate * value)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """a - log rate + log Γ(a) + (1 - a) ψ(a)."""
        a = self.concentration
        return a - self.rate.log() + a.lgamma() + (1 - a) * a.digamma()


class Chi2(Gamma):
    """The sum of `df` squared standard normal variables."""

    arg_constraints: ClassVar = {"df": constraints.positive}

    def __init__(self, df: Any, validate_args: bool | None = None):
        (given,) = broadcast_all(df)
        super().__init__(0.5 * given, 0.5, validate_args)

    df = property(lambda self: self.concentration * 2)

    def __repr__(self) -> str:
        return f"Chi2(df: {self.df if self.df.numel() == 1 else self.df.shape})"


class InverseGamma(TransformedDistribution):
    """1 / a gamma variable."""

    arg_constraints: ClassVar = {"concentration": constraints.positive, "rate": constraints.positive}
    support: Any = constraints.positive

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None):
        base = Gamma(concentration, rate, validate_args)
        super().__init__(base, PowerTransform(T["tensor"](-1.0, dtype=base.rate.dtype)), validate_args)

    concentration = property(lambda self: self.base_dist.concentration)
    rate = property(lambda self: self.base_dist.rate)
    mode = property(lambda self: self.rate / (self.concentration + 1))

    @property
    def mean(self) -> Tensor:
        """Infinite up to concentration 1."""
        a = self.concentration
        return T["where"](a > 1, self.rate / (a - 1), math.inf)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """Infinite up to concentration 2."""
        a = self.concentration
        return T["where"](a > 2, self.rate**2 / ((a - 1) ** 2 * (a - 2)), math.inf)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The differential entropy."""
        a = self.concentration
        return a + self.rate.log() + a.lgamma() - (1 + a) * a.digamma()  # type: ignore[no-any-return]


class Dirichlet(ExponentialFamily):
    """Points of the simplex, density ∝ Π xᵢ^(concentrationᵢ-1)."""

    has_rsample = True
    arg_constraints: ClassVar = {"concentration": constraints.independent(constraints.positive, 1)}
    support: Any = constraints.simplex

    def __init__(self, concentration: Tensor, validate_args: bool | None = None):
        if concentration.ndim < 1:
            raise ValueError("`concentration` parameter must be at least one-dimensional.")
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args)

    mean = property(lambda self: self.concentration / self.concentration.sum(-1, keepdim=True))

    @property
    def mode(self) -> Tensor:
        """The densest point; a corner where concentrations are below 1."""
        less = (self.concentration - 1).clamp(min=0)
        out = less / less.sum(-1, keepdim=True)
        low = (self.concentration < 1).all(-1, keepdim=True)
        corner = T["zeros_like"](out).scatter(-1, self.concentration.argmax(-1, keepdim=True), 1.0)
        return T["where"](low, corner, out)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """a (A - a) / (A² (A + 1)) with A the sum."""
        total = self.concentration.sum(-1, keepdim=True)
        return self.concentration * (total - self.concentration) / (total**2 * (total + 1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters."""
        g = standard_gamma(self.concentration.expand(self._extended_shape(sample_shape)))
        return g / g.sum(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        a = self.concentration
        return (a - 1).xlogy(value).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)

    def entropy(self) -> Tensor:
        """The differential entropy."""
        a, k = self.concentration, self.concentration.shape[-1]
        total = a.sum(-1)
        return a.lgamma().sum(-1) - total.lgamma() - (k - total) * total.digamma() - ((a - 1) * a.digamma()).sum(-1)


class Beta(ExponentialFamily):
    """Density ∝ x^(a-1) (1-x)^(b-1) on [0, 1]."""

    has_rsample = True
    arg_constraints: ClassVar = {"concentration1": constraints.positive, "concentration0": constraints.positive}
    support: Any = constraints.unit_interval

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None):
        self._dirichlet = Dirichlet(T["stack"](broadcast_all(concentration1, concentration0), -1), validate_args)
        super().__init__(self._dirichlet.batch_shape, (), validate_args)

    concentration1 = property(lambda self: self._dirichlet.concentration[..., 0])
    concentration0 = property(lambda self: self._dirichlet.concentration[..., 1])
    mean = property(lambda self: self.concentration1 / (self.concentration1 + self.concentration0))
    mode = property(lambda self: self._dirichlet.mode[..., 0])

    @property
    def variance(self) -> Tensor:
        """a b / ((a + b)² (a + b + 1))."""
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total**2 * (total + 1))  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters."""
        return self._dirichlet.rsample(sample_shape)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        return (a - 1).xlogy(value) + (b - 1).xlogy(1 - value) + (a + b).lgamma() - a.lgamma() - b.lgamma()  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return self._dirichlet.entropy()

    def __repr__(self) -> str:
        return "Beta()"


class StudentT(Distribution):
    """Student's t with `df` degrees of freedom."""

    has_rsample = True
    arg_constraints: ClassVar = {"df": constraints.positive, "loc": constraints.real, "scale": constraints.positive}
    support: Any = constraints.real

    def __init__(self, df: Any, loc: Any = 0.0, scale: Any = 1.0, validate_args: bool | None = None):
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        super().__init__(self.df.shape, (), validate_args)

    mode = property(lambda self: self.loc)
    mean = property(lambda self: T["where"](self.df > 1, self.loc, math.nan))

    @property
    def variance(self) -> Tensor:
        """Infinite up to df = 2, none up to 1."""
        safe = T["where"](self.df > 2, self.df, 3.0)
        return T["where"](self.df > 2, self.scale**2 * safe / (safe - 2), T["where"](self.df > 1, math.inf, math.nan))  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """A normal over the root of a chi-squared variable."""
        shape = self._extended_shape(sample_shape)
        z = 2 * standard_gamma((0.5 * self.df).expand(shape))
        return self.loc + self.scale * T["randn"](shape, dtype=self.df.dtype) * (z / self.df).rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        y = (value - self.loc) / self.scale
        norm = self.scale.log() + 0.5 * self.df.log() + 0.5 * math.log(math.pi) + (0.5 * self.df).lgamma() - (0.5 * (self.df + 1)).lgamma()
        return -0.5 * (self.df + 1) * (y**2 / self.df).log1p() - norm

    def entropy(self) -> Tensor:
        """The differential entropy."""
        half, more = 0.5 * self.df, 0.5 * (self.df + 1)
        log_beta = half.lgamma() + math.lgamma(0.5) - more.lgamma()
        return self.scale.log() + more * (more.digamma() - half.digamma()) + 0.5 * self.df.log() + log_beta


class FisherSnedecor(Distribution):
    """The quotient of two chi-squared variables over their degrees of freedom."""

    has_rsample = True
    arg_constraints: ClassVar = {"df1": constraints.positive, "df2": constraints.positive}
    support: Any = constraints.positive

    def __init__(self, df1: Any, df2: Any, validate_args: bool | None = None):
        self.df1, self.df2 = broadcast_all(df1, df2)
        super().__init__(self.df1.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        """df2 / (df2 - 2) above df2 = 2."""
        return T["where"](self.df2 > 2, self.df2 / (self.df2 - 2), math.nan)  # type: ignore[no-any-return]

    @property
    def mode(self) -> Tensor:
        """Above df1 = 2."""
        out = (self.df1 - 2) / self.df1 * self.df2 / (self.df2 + 2)
        return T["where"](self.df1 > 2, out, math.nan)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """Above df2 = 4."""
        a, b = self.df1, self.df2
        out = 2 * b**2 * (a + b - 2) / (a * (b - 2) ** 2 * (b - 4))
        return T["where"](b > 4, out, math.nan)  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters."""
        shape = self._extended_shape(sample_shape)
        tiny = T["finfo"](self.df1.dtype).tiny
        first, second = (standard_gamma((0.5 * d).expand(shape)) * 2 / d for d in (self.df1, self.df2))
        return first / second.clamp(min=tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        a, b = self.df1 * 0.5, self.df2 * 0.5
        ratio = self.df1 / self.df2
        norm = (a + b).lgamma() - a.lgamma() - b.lgamma()
        return norm + a * ratio.log() + (a - 1) * value.log() - (a + b) * (ratio * value).log1p()
