"""Distributions of single real numbers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torchlet import dtypes
from torchlet.autograd import no_grad
from torchlet.distributions import constraints
from torchlet.distributions.distribution import EULER, LOG_2PI, Distribution, ExponentialFamily, LocScale, uniform
from torchlet.distributions.transformed import TransformedDistribution
from torchlet.distributions.transforms import AffineTransform, ExpTransform, PowerTransform
from torchlet.distributions.utils import T, broadcast_all
from torchlet.ops.mathematics import SPECIAL
from torchlet.tensor import Tensor

__all__ = [
    "Cauchy", "Exponential", "GeneralizedPareto", "Gumbel", "HalfCauchy", "HalfNormal", "Kumaraswamy", "Laplace", "LogNormal", "Normal",
    "Pareto", "Uniform", "VonMises", "Weibull",
]  # fmt: skip


class Normal(LocScale, ExponentialFamily):
    """Normal with mean `loc` and standard deviation `scale`."""

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: self.scale**2)
    stddev = property(lambda self: self.scale)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc + scale * standard normal."""
        return self.loc + self.scale * T["randn"](self._extended_shape(sample_shape), dtype=self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        return -((value - self.loc) ** 2) / (2 * self.scale**2) - self.scale.log() - 0.5 * LOG_2PI

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return 0.5 * (1 + ((value - self.loc) / (self.scale * math.sqrt(2))).erf())

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return self.loc + self.scale * (2 * value - 1).erfinv() * math.sqrt(2)

    def entropy(self) -> Tensor:
        """½ log(2πe scale²)."""
        return 0.5 + 0.5 * LOG_2PI + self.scale.log()


class LogNormal(TransformedDistribution):
    """exp of a normal variable."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support: Any = constraints.positive

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        super().__init__(Normal(loc, scale, validate_args), ExpTransform(), validate_args)

    loc = property(lambda self: self.base_dist.loc)
    scale = property(lambda self: self.base_dist.scale)
    mean = property(lambda self: (self.loc + self.scale**2 / 2).exp())
    mode = property(lambda self: (self.loc - self.scale**2).exp())
    variance = property(lambda self: (self.scale**2).expm1() * (2 * self.loc + self.scale**2).exp())

    def entropy(self) -> Tensor:
        """The normal's entropy plus loc."""
        return self.base_dist.entropy() + self.loc  # type: ignore[no-any-return]


class HalfNormal(Distribution):
    """The absolute value of a normal variable of mean 0."""

    has_rsample = True
    arg_constraints: ClassVar = {"scale": constraints.positive}
    support: Any = constraints.nonnegative

    def __init__(self, scale: Any, validate_args: bool | None = None):
        (self.scale,) = broadcast_all(scale)
        super().__init__(self.scale.shape, (), validate_args)

    mean = property(lambda self: self.scale * math.sqrt(2 / math.pi))
    mode = property(lambda self: T["zeros_like"](self.scale))
    variance = property(lambda self: self.scale**2 * (1 - 2 / math.pi))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """|scale * standard normal|."""
        return (self.scale * T["randn"](self._extended_shape(sample_shape), dtype=self.scale.dtype)).abs()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        out = -((value / self.scale) ** 2) / 2 - self.scale.log() - 0.5 * LOG_2PI + math.log(2)
        return T["where"](value >= 0, out, -math.inf)  # type: ignore[no-any-return]

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return (value / (self.scale * math.sqrt(2))).erf()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return self.scale * value.erfinv() * math.sqrt(2)

    def entropy(self) -> Tensor:
        """The normal's less log 2."""
        return 0.5 + 0.5 * LOG_2PI + self.scale.log() - math.log(2)


class Laplace(LocScale):
    """Density exp(-|x - loc| / scale) / (2 scale)."""

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: 2 * self.scale**2)
    stddev = property(lambda self: math.sqrt(2) * self.scale)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantile function."""
        u = uniform(self, sample_shape, self.loc) - 0.5
        return self.loc - self.scale * u.sign() * (-2 * u.abs()).log1p()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        return -(2 * self.scale).log() - (value - self.loc).abs() / self.scale

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        d = value - self.loc
        return 0.5 - 0.5 * d.sign() * (-d.abs() / self.scale).expm1()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        d = value - 0.5
        return self.loc - self.scale * d.sign() * (-2 * d.abs()).log1p()

    def entropy(self) -> Tensor:
        """1 + log(2 scale)."""
        return 1 + (2 * self.scale).log()


class Cauchy(LocScale):
    """Density 1 / (π scale (1 + ((x - loc) / scale)²)); it has no moments."""

    mean = property(lambda self: T["full_like"](self.loc, math.nan))
    mode = property(lambda self: self.loc)
    variance = property(lambda self: T["full_like"](self.loc, math.inf))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantile function."""
        return self.icdf(uniform(self, sample_shape, self.loc))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        return -math.log(math.pi) - self.scale.log() - (((value - self.loc) / self.scale) ** 2).log1p()

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return ((value - self.loc) / self.scale).atan() / math.pi + 0.5

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return (math.pi * (value - 0.5)).tan() * self.scale + self.loc

    def entropy(self) -> Tensor:
        """log(4 π scale)."""
        return math.log(4 * math.pi) + self.scale.log()


class HalfCauchy(Distribution):
    """The absolute value of a Cauchy variable around 0."""

    has_rsample = True
    arg_constraints: ClassVar = {"scale": constraints.positive}
    support: Any = constraints.nonnegative

    def __init__(self, scale: Any, validate_args: bool | None = None):
        (self.scale,) = broadcast_all(scale)
        super().__init__(self.scale.shape, (), validate_args)

    mean = property(lambda self: T["full_like"](self.scale, math.inf))
    mode = property(lambda self: T["zeros_like"](self.scale))
    variance = property(lambda self: T["full_like"](self.scale, math.inf))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantile function."""
        return self.icdf(uniform(self, sample_shape, self.scale))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        out = math.log(2 / math.pi) - self.scale.log() - ((value / self.scale) ** 2).log1p()
        return T["where"](value >= 0, out, -math.inf)  # type: ignore[no-any-return]

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return 2 * (value / self.scale).atan() / math.pi

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return (value * (math.pi / 2)).tan() * self.scale

    def entropy(self) -> Tensor:
        """log(2 π scale)."""
        return math.log(2 * math.pi) + self.scale.log()


class Gumbel(LocScale):
    """The distribution of the largest of many values."""

    mean = property(lambda self: self.loc + self.scale * EULER)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: (math.pi**2 / 6) * self.scale**2)
    stddev = property(lambda self: (math.pi / math.sqrt(6)) * self.scale)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc - scale * log(-log u)."""
        return self.icdf(uniform(self, sample_shape, self.loc))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        y = (self.loc - value) / self.scale
        return (y - y.exp()) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return (-((self.loc - value) / self.scale).exp()).exp()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return self.loc - self.scale * (-value.log()).log()

    def entropy(self) -> Tensor:
        """log scale + 1 + Euler's constant."""
        return self.scale.log() + (1 + EULER)


class Uniform(Distribution):
    """Uniform on [low, high)."""

    has_rsample = True

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None):
        self.low, self.high = broadcast_all(low, high)
        super().__init__(self.low.shape, (), validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ValueError(f"Uniform: expected low < high everywhere, but found low {self.low} and high {self.high}")

    arg_constraints: ClassVar = {"low": constraints.dependent, "high": constraints.dependent}
    support = property(lambda self: constraints.interval(self.low, self.high))  # type: ignore[assignment]
    mean = property(lambda self: (self.low + self.high) / 2)
    mode = property(lambda self: math.nan * self.high)
    variance = property(lambda self: (self.high - self.low) ** 2 / 12)
    stddev = property(lambda self: (self.high - self.low) / math.sqrt(12))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """low + (high - low) * u."""
        return self.low + (self.high - self.low) * T["rand"](self._extended_shape(sample_shape), dtype=self.low.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """-log(high - low) inside, -inf outside."""
        self._validate_sample(value)
        inside = (value >= self.low) & (value < self.high)
        return T["where"](inside, -(self.high - self.low).log(), -math.inf)  # type: ignore[no-any-return]

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return ((value - self.low) / (self.high - self.low)).clamp(0, 1)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return value * (self.high - self.low) + self.low

    def entropy(self) -> Tensor:
        """log(high - low)."""
        return (self.high - self.low).log()


class Exponential(ExponentialFamily):
    """Density rate * exp(-rate x)."""

    has_rsample = True
    arg_constraints: ClassVar = {"rate": constraints.positive}
    support: Any = constraints.nonnegative

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = broadcast_all(rate)
        super().__init__(self.rate.shape, (), validate_args)

    mean = property(lambda self: 1 / self.rate)
    mode = property(lambda self: T["zeros_like"](self.rate))
    stddev = property(lambda self: 1 / self.rate)
    variance = property(lambda self: self.rate**-2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """-log(u) / rate."""
        return -uniform(self, sample_shape, self.rate).log() / self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        return self.rate.log() - self.rate * value

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        return -(-self.rate * value).expm1()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return -(-value).log1p() / self.rate

    def entropy(self) -> Tensor:
        """1 - log rate."""
        return 1 - self.rate.log()


class Weibull(TransformedDistribution):
    """scale times a power 1 / concentration of an exponential variable."""

    arg_constraints: ClassVar = {"scale": constraints.positive, "concentration": constraints.positive}
    support: Any = constraints.positive

    def __init__(self, scale: Any, concentration: Any, validate_args: bool | None = None):
        self.scale, self.concentration = broadcast_all(scale, concentration)
        self.concentration_reciprocal = 1 / self.concentration
        base = Exponential(T["ones_like"](self.scale), validate_args)
        super().__init__(base, [PowerTransform(self.concentration_reciprocal), AffineTransform(0, self.scale)], validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        return Weibull(self.scale.expand(batch_shape), self.concentration.expand(batch_shape), False)

    mean = property(lambda self: self.scale * (1 + self.concentration_reciprocal).lgamma().exp())
    mode = property(lambda self: self.scale * ((self.concentration - 1) / self.concentration) ** self.concentration_reciprocal)

    @property
    def variance(self) -> Tensor:
        """scale² (Γ(1 + 2/k) - Γ(1 + 1/k)²)."""
        r = self.concentration_reciprocal
        return self.scale**2 * ((1 + 2 * r).lgamma().exp() - (2 * (1 + r).lgamma()).exp())

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return EULER * (1 - self.concentration_reciprocal) + (self.scale * self.concentration_reciprocal).log() + 1


class Pareto(TransformedDistribution):
    """scale times exp of an exponential variable of rate `alpha`."""

    arg_constraints: ClassVar = {"alpha": constraints.positive, "scale": constraints.positive}

    def __init__(self, scale: Any, alpha: Any, validate_args: bool | None = None):
        self.scale, self.alpha = broadcast_all(scale, alpha)
        super().__init__(Exponential(self.alpha, validate_args), [ExpTransform(), AffineTransform(0, self.scale)], validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        return Pareto(self.scale.expand(batch_shape), self.alpha.expand(batch_shape), False)

    support = property(lambda self: constraints.greater_than_eq(self.scale))  # type: ignore[assignment]
    mode = property(lambda self: self.scale)

    @property
    def mean(self) -> Tensor:
        """alpha scale / (alpha - 1), infinite up to alpha = 1."""
        a = self.alpha.clamp(min=1)
        return a * self.scale / (a - 1)

    @property
    def variance(self) -> Tensor:
        """Infinite up to alpha = 2."""
        a = self.alpha.clamp(min=2)
        return self.scale**2 * a / ((a - 1) ** 2 * (a - 2))

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return (self.scale / self.alpha).log() + (1 + 1 / self.alpha)


class GeneralizedPareto(Distribution):
    """What exceeds a high threshold `loc` (Pickands 1975)."""

    has_rsample = True
    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive, "concentration": constraints.real}

    def __init__(self, loc: Any, scale: Any, concentration: Any, validate_args: bool | None = None):
        self.loc, self.scale, self.concentration = broadcast_all(loc, scale, concentration)
        super().__init__(self.loc.shape, (), validate_args)

    @property
    def support(self) -> Any:
        """From loc on; for a negative concentration up to loc - scale / concentration."""
        upper = T["where"](self.concentration < 0, self.loc - self.scale / self.concentration, math.inf)
        return constraints.interval(self.loc, upper)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantile function."""
        return self.icdf(uniform(self, sample_shape, self.loc))

    def _split(self) -> tuple[Tensor, Tensor]:
        zero = T["isclose"](self.concentration, T["zeros_like"](self.concentration))
        return zero, T["where"](zero, 1.0, self.concentration)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        z = (value - self.loc) / self.scale
        zero, k = self._split()
        out = T["where"](zero, -z, -(1 + 1 / k) * (k * z).log1p()) - self.scale.log()
        return T["where"](self.support.check(value), out, -math.inf)  # type: ignore[no-any-return]

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        z = (value - self.loc) / self.scale
        zero, k = self._split()
        return 1 - T["where"](zero, -z, -(k * z).log1p() / k).exp()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        zero, k = self._split()
        return self.loc + self.scale * T["where"](zero, -(-value).log1p(), (-k * (-value).log1p()).expm1() / k)

    @property
    def mean(self) -> Tensor:
        """Infinite from concentration 1 on."""
        ok = self.concentration < 1
        return T["where"](ok, self.loc + self.scale / T["where"](ok, 1 - self.concentration, 1.0), math.inf)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """Infinite from concentration ½ on."""
        k = T["where"](self.concentration < 0.5, self.concentration, 0.0)
        return T["where"](self.concentration < 0.5, self.scale**2 / ((1 - k) ** 2 * (1 - 2 * k)), math.inf)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return (self.scale.log() + self.concentration + 1).expand(self._batch_shape)

    mode = property(lambda self: self.loc)


class Kumaraswamy(TransformedDistribution):
    """Density a b x^(a-1) (1 - x^a)^(b-1) on [0, 1]."""

    arg_constraints: ClassVar = {"concentration1": constraints.positive, "concentration0": constraints.positive}
    support: Any = constraints.unit_interval

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None):
        self.concentration1, self.concentration0 = broadcast_all(concentration1, concentration0)
        base = Uniform(T["zeros_like"](self.concentration0), T["ones_like"](self.concentration0), validate_args)
        parts = [PowerTransform(1 / self.concentration0), AffineTransform(1.0, -1.0), PowerTransform(1 / self.concentration1)]
        super().__init__(base, parts, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        return Kumaraswamy(self.concentration1.expand(batch_shape), self.concentration0.expand(batch_shape), False)

    def _moment(self, n: int) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return (b.log() + (1 + n / a).lgamma() + b.lgamma() - (1 + n / a + b).lgamma()).exp()

    mean = property(lambda self: self._moment(1))

    @property
    def mode(self) -> Tensor:
        """Where both parameters are at least 1 and not both are 1."""
        a, b = self.concentration1, self.concentration0
        ra = 1 / a
        log_mode = ra * ((-ra).log1p() - (-1 / (a * b)).log1p())  # ((a - 1) / (a b - 1)) ** (1 / a), less the logarithm of b below
        log_mode = log_mode - ra * b.log()
        return T["where"]((a < 1) | (b < 1) | (a.eq(1) & b.eq(1)), math.nan, log_mode.exp())  # type: ignore[no-any-return]

    variance = property(lambda self: self._moment(2) - self.mean**2)

    def entropy(self) -> Tensor:
        """The differential entropy."""
        a, b = self.concentration1, self.concentration0
        return (1 - 1 / b) + (1 - 1 / a) * ((b + 1).digamma() + EULER) - a.log() - b.log()


def _bessel_log(order: int, x: Tensor) -> Tensor:
    """log I_order(x)."""
    return SPECIAL[("i0e", "i1e")[order]](x).log() + x  # type: ignore[no-any-return]


class VonMises(Distribution):
    """Angles around `loc`, a normal distribution on the circle."""

    arg_constraints: ClassVar = {"loc": constraints.real, "concentration": constraints.positive}
    support: Any = constraints.real

    def __init__(self, loc: Any, concentration: Any, validate_args: bool | None = None):
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, (), validate_args)

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: 1 - (_bessel_log(1, self.concentration) - _bessel_log(0, self.concentration)).exp())

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        return self.concentration * (value - self.loc).cos() - LOG_2PI - _bessel_log(0, self.concentration)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """By rejection from a wrapped Cauchy distribution (Best & Fisher 1979)."""
        with no_grad():
            shape = self._extended_shape(sample_shape)
            k = self.concentration.double().expand(shape)
            tau = 1 + (1 + 4 * k**2).sqrt()
            rho = (tau - (2 * tau).sqrt()) / (2 * k)
            r = T["where"](k < 1e-5, 1 / k + k, (1 + rho**2) / (2 * rho))
            x, done = T["zeros_like"](k), T["zeros_like"](k, dtype=dtypes.bool_)
            while not bool(done.all()):
                u1, u2, u3 = T["rand"](3, *shape, dtype=k.dtype).clamp(min=2.0**-50)
                z = (math.pi * u1).cos()
                f = (1 + r * z) / (r + z)
                c = k * (r - f)
                good = ((c * (2 - c) - u2) > 0) | ((c / u2).log() + 1 - c >= 0)
                x = T["where"](good & ~done, (u3 - 0.5).sign() * f.clamp(-1, 1).acos(), x)
                done = done | good
            return ((x + math.pi + self.loc) % (2 * math.pi) - math.pi).to(self.loc.dtype)
