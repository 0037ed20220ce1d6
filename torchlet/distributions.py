"""torchlet.distributions: common probability distributions with samples, log densities, entropies and divergences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torchlet import dtypes
from torchlet.autograd import no_grad
from torchlet.nn.functional import binary_cross_entropy_with_logits, softplus
from torchlet.ops.public import FUNCTIONS
from torchlet.spec import Size
from torchlet.tensor import Tensor

__all__ = [
    "AffineTransform",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Dirichlet",
    "Distribution",
    "ExpTransform",
    "Exponential",
    "Gamma",
    "Geometric",
    "Gumbel",
    "Independent",
    "Laplace",
    "LogNormal",
    "MixtureSameFamily",
    "MultivariateNormal",
    "Normal",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "SigmoidTransform",
    "TanhTransform",
    "Transform",
    "TransformedDistribution",
    "Uniform",
    "kl_divergence",
    "register_kl",
]
_T: dict[str, Callable[..., Any]] = FUNCTIONS


def _tensors(*values: Any) -> tuple[Tensor, ...]:
    """Numbers and tensors as tensors of one shape."""
    like = next((v.dtype for v in values if isinstance(v, Tensor)), None)
    return tuple(
        _T["broadcast_tensors"](
            *[v if isinstance(v, Tensor) else _T["tensor"](v, dtype=like or dtypes.get_default_dtype()) for v in values]
        )
    )


def _checked(name: str, parameter: str, value: Tensor, good: Tensor) -> None:
    if not bool(good.detach().all()):
        raise ValueError(
            f"Expected parameter {parameter} (Tensor of shape {tuple(value.shape)}) of distribution {name} to satisfy "
            f"its constraint, but found invalid values:\n{value}"
        )


class Distribution:
    """What all distributions share. Subclasses give `rsample` or `sample`, `log_prob`, and what they know of mean and variance."""

    has_rsample = False

    def __init__(self, batch_shape: Any = (), event_shape: Any = (), validate_args: bool | None = None):
        self.batch_shape, self.event_shape = Size(batch_shape), Size(event_shape)
        self._validate = validate_args is not False

    def _shape(self, sample_shape: Any) -> tuple[int, ...]:
        return (*tuple(sample_shape), *self.batch_shape, *self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters. Raises NotImplementedError where that cannot be."""
        raise NotImplementedError(f"{type(self).__name__} has no reparametrized samples")

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples of shape sample_shape + batch_shape + event_shape, off the tape."""
        with no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density or probability of a value."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def entropy(self) -> Tensor:
        """The entropy."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    @property
    def mean(self) -> Tensor:
        """The mean."""
        raise NotImplementedError(f"{type(self).__name__} has no mean")

    @property
    def variance(self) -> Tensor:
        """The variance."""
        raise NotImplementedError(f"{type(self).__name__} has no variance")

    @property
    def stddev(self) -> Tensor:
        """The standard deviation."""
        return self.variance.sqrt()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


def _unit(d: Distribution, sample_shape: Any, like: Tensor) -> Tensor:
    """Uniform on (0, 1)."""
    u = _T["rand"](d._shape(sample_shape), dtype=like.dtype if like.dtype.itemsize > 2 else dtypes.float32)
    return u.clamp(min=2.0**-25)  # type: ignore[no-any-return]


class Normal(Distribution):
    """Normal with mean `loc` and standard deviation `scale`."""

    has_rsample = True

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        self.loc, self.scale = _tensors(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)
        if self._validate:
            _checked("Normal", "scale", self.scale, self.scale > 0)

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: self.scale**2)
    stddev = property(lambda self: self.scale)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc + scale * standard normal."""
        return self.loc + self.scale * _T["randn"](self._shape(sample_shape), dtype=self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        return -((value - self.loc) ** 2) / (2 * self.scale**2) - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        return 0.5 * (1 + ((value - self.loc) / (self.scale * math.sqrt(2))).erf())

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return self.loc + self.scale * (2 * value - 1).erfinv() * math.sqrt(2)

    def entropy(self) -> Tensor:
        """½ log(2πe scale²)."""
        return 0.5 + 0.5 * math.log(2 * math.pi) + self.scale.log()


class LogNormal(Normal):
    """exp of a normal variable."""

    mean = property(lambda self: (self.loc + self.scale**2 / 2).exp())
    variance = property(lambda self: (self.scale**2).expm1() * (2 * self.loc + self.scale**2).exp())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """exp of a normal sample."""
        return super().rsample(sample_shape).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        return super().log_prob(value.log()) - value.log()

    def entropy(self) -> Tensor:
        """The normal's entropy plus loc."""
        return super().entropy() + self.loc


class Uniform(Distribution):
    """Uniform on [low, high)."""

    has_rsample = True

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None):
        self.low, self.high = _tensors(low, high)
        super().__init__(self.low.shape, (), validate_args)

    mean = property(lambda self: (self.low + self.high) / 2)
    variance = property(lambda self: (self.high - self.low) ** 2 / 12)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """low + (high - low) * u."""
        return self.low + (self.high - self.low) * _T["rand"](self._shape(sample_shape), dtype=self.low.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """-log(high - low) inside, -inf outside."""
        inside = (value >= self.low) & (value < self.high)
        return _T["where"](inside, -(self.high - self.low).log(), -math.inf)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """log(high - low)."""
        return (self.high - self.low).log()


class _Transformed(Distribution):
    """loc + scale * a standard variable."""

    has_rsample = True

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        self.loc, self.scale = _tensors(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)


class Laplace(_Transformed):
    """Density exp(-|x - loc| / scale) / (2 scale)."""

    mean = property(lambda self: self.loc)
    variance = property(lambda self: 2 * self.scale**2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantile function."""
        u = _unit(self, sample_shape, self.loc) - 0.5
        return self.loc - self.scale * u.sign() * (-2 * u.abs()).log1p()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        return -(2 * self.scale).log() - (value - self.loc).abs() / self.scale

    def entropy(self) -> Tensor:
        """1 + log(2 scale)."""
        return 1 + (2 * self.scale).log()


class Gumbel(_Transformed):
    """The distribution of the largest of many values."""

    mean = property(lambda self: self.loc + self.scale * 0.5772156649015329)
    variance = property(lambda self: (math.pi**2 / 6) * self.scale**2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc - scale * log(-log u)."""
        return self.loc - self.scale * (-_unit(self, sample_shape, self.loc).log()).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        y = (self.loc - value) / self.scale
        return (y - y.exp()) - self.scale.log()

    def entropy(self) -> Tensor:
        """log scale + 1 + Euler's constant."""
        return self.scale.log() + (1 + 0.5772156649015329)


class Exponential(Distribution):
    """Density rate * exp(-rate x)."""

    has_rsample = True

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = _tensors(rate)
        super().__init__(self.rate.shape, (), validate_args)

    mean = property(lambda self: 1 / self.rate)
    variance = property(lambda self: self.rate**-2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """-log(u) / rate."""
        return -_unit(self, sample_shape, self.rate).log() / self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        return self.rate.log() - self.rate * value

    def entropy(self) -> Tensor:
        """1 - log rate."""
        return 1 - self.rate.log()


class Gamma(Distribution):
    """Density ∝ x^(concentration-1) exp(-rate x). Samples carry no gradient."""

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None):
        self.concentration, self.rate = _tensors(concentration, rate)
        super().__init__(self.concentration.shape, (), validate_args)

    mean = property(lambda self: self.concentration / self.rate)
    variance = property(lambda self: self.concentration / self.rate**2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples, off the tape."""
        return _standard_gamma(self.concentration.detach().expand(self._shape(sample_shape))) / self.rate.detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        a = self.concentration
        return a.xlogy(self.rate) + (a - 1).xlogy(value) - self.rate * value - a.lgamma()

    def entropy(self) -> Tensor:
        """a - log rate + log Γ(a) + (1 - a) ψ(a)."""
        a = self.concentration
        return a - self.rate.log() + a.lgamma() + (1 - a) * a.digamma()


def _standard_gamma(a: Tensor) -> Tensor:
    """Marsaglia & Tsang 2000: proposals until every element has one; below 1 lifted by u^(1/a)."""
    with no_grad():
        low = a < 1
        d = _T["where"](low, a + 1, a) - 1 / 3
        c = 1 / (9 * d).sqrt()
        out, missing = _T["zeros_like"](a), _T["ones_like"](a, dtype=dtypes.bool_)
        while bool(missing.any()):
            x, u = _T["randn_like"](a), _T["rand_like"](a).clamp(min=2.0**-25)
            v = (1 + c * x) ** 3
            good = (v > 0) & (u.log() < 0.5 * x * x + d - d * v + d * v.clamp(min=1e-30).log())
            out = _T["where"](missing & good, d * v, out)
            missing = missing & ~good
        lift = _T["rand_like"](a).clamp(min=2.0**-25) ** (1 / a)
        return _T["where"](low, out * lift, out)  # type: ignore[no-any-return]


class Dirichlet(Distribution):
    """Points of the simplex, density ∝ Π xᵢ^(concentrationᵢ-1). Samples carry no gradient."""

    def __init__(self, concentration: Tensor, validate_args: bool | None = None):
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args)

    mean = property(lambda self: self.concentration / self.concentration.sum(-1, keepdim=True))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples, off the tape."""
        g = _standard_gamma(self.concentration.detach().expand(self._shape(sample_shape)))
        return g / g.sum(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        a = self.concentration
        return (a - 1).xlogy(value).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)

    def entropy(self) -> Tensor:
        """The differential entropy."""
        a, k = self.concentration, self.concentration.shape[-1]
        total = a.sum(-1)
        return a.lgamma().sum(-1) - total.lgamma() - (k - total) * total.digamma() - ((a - 1) * a.digamma()).sum(-1)


class Beta(Distribution):
    """Density ∝ x^(a-1) (1-x)^(b-1) on [0, 1]. Samples carry no gradient."""

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None):
        self.concentration1, self.concentration0 = _tensors(concentration1, concentration0)
        super().__init__(self.concentration1.shape, (), validate_args)

    mean = property(lambda self: self.concentration1 / (self.concentration1 + self.concentration0))

    @property
    def variance(self) -> Tensor:
        """a b / ((a + b)² (a + b + 1))."""
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total**2 * (total + 1))

    def _pairs(self) -> Dirichlet:
        return Dirichlet(_T["stack"]([self.concentration1, self.concentration0], -1), False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples, off the tape."""
        return self._pairs().sample(sample_shape)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        return self._pairs().log_prob(_T["stack"]([value, 1 - value], -1))

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return self._pairs().entropy()


class _Logits(Distribution):
    """Given by probabilities or by logits, one of the two."""

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None, events: int = 0):
        if (probs is None) == (logits is None):
            raise ValueError("Either `probs` or `logits` must be specified, but not both.")
        (given,) = _tensors(probs if logits is None else logits)
        self._probs: Tensor | None = given if logits is None else None
        self._logits: Tensor | None = None if logits is None else given
        shape = given.shape
        super().__init__(shape[: len(shape) - events], (), validate_args)


class Bernoulli(_Logits):
    """1 with probability `probs`, else 0."""

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(probs, logits, validate_args)

    @property
    def probs(self) -> Tensor:
        """The probabilities of 1."""
        return self._logits.sigmoid() if self._probs is None else self._probs  # type: ignore[union-attr]

    @property
    def logits(self) -> Tensor:
        """Their log odds."""
        return _T["logit"](self._probs.clamp(1.1920929e-07, 1 - 1.1920929e-07)) if self._logits is None else self._logits  # type: ignore[union-attr,no-any-return]

    mean = property(lambda self: self.probs)
    variance = property(lambda self: self.probs * (1 - self.probs))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Zeros and ones."""
        return _T["bernoulli"](self.probs.detach().expand(self._shape(sample_shape)))  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        logits, value = _T["broadcast_tensors"](self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    def entropy(self) -> Tensor:
        """The entropy."""
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none")


class Geometric(Bernoulli):
    """How many failures come before the first success."""

    mean = property(lambda self: 1 / self.probs - 1)
    variance = property(lambda self: (1 / self.probs - 1) / self.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Whole numbers as floats."""
        p = self.probs.detach()
        return (_unit(self, sample_shape, p).log() / (-p).log1p()).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        return value * (-self.probs).log1p() + self.probs.log()

    def entropy(self) -> Tensor:
        """The entropy."""
        return super().entropy() / self.probs


class Categorical(_Logits):
    """Classes 0 … n - 1 with the probabilities (or logits) of the last dimension."""

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(probs, logits, validate_args, 1)
        if self._probs is not None:
            if self._validate:
                _checked("Categorical", "probs", self._probs, self._probs >= 0)
            self.probs = self._probs / self._probs.sum(-1, keepdim=True)
            self.logits = self.probs.clamp(1.1920929e-07, 1 - 1.1920929e-07).log()
        else:
            assert self._logits is not None
            self.logits = self._logits - self._logits.logsumexp(-1, keepdim=True)
            self.probs = self.logits.softmax(-1)
        self._num_events = self.probs.shape[-1]

    @property
    def mode(self) -> Tensor:
        """The most probable class."""
        return self.probs.argmax(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """int64 classes."""
        count = math.prod(tuple(sample_shape))
        drawn = _T["multinomial"](self.probs.detach().reshape(-1, self._num_events), max(count, 1), True)
        return drawn.T[:count].reshape(self._shape(sample_shape))  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of classes."""
        value = value.long()
        shape = _T["broadcast_shapes"](tuple(value.shape), tuple(self.batch_shape))
        logits = self.logits.expand(*shape, self._num_events)
        return logits.gather(-1, value.expand(shape).unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """The entropy."""
        return -(self.logits.clamp(min=_T["finfo"](self.logits.dtype).min) * self.probs).sum(-1)


class MultivariateNormal(Distribution):
    """Normal vectors with mean `loc` and a covariance, a precision, or a covariance's Cholesky factor."""

    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if sum(m is not None for m in (covariance_matrix, precision_matrix, scale_tril)) != 1:
            raise ValueError("Exactly one of covariance_matrix or precision_matrix or scale_tril may be specified.")
        if scale_tril is None:
            covariance = covariance_matrix if covariance_matrix is not None else _T["inverse"](precision_matrix)
            scale_tril = _T["cholesky"](covariance)
        assert scale_tril is not None
        batch = _T["broadcast_shapes"](tuple(loc.shape[:-1]), tuple(scale_tril.shape[:-2]))
        n = loc.shape[-1]
        self.loc, self.scale_tril = loc.expand(*batch, n), scale_tril.expand(*batch, n, n)
        super().__init__(batch, (n,), validate_args)

    mean = property(lambda self: self.loc)
    covariance_matrix = property(lambda self: self.scale_tril @ self.scale_tril.mT)
    variance = property(lambda self: (self.scale_tril**2).sum(-1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """loc + L z."""
        z = _T["randn"](self._shape(sample_shape), dtype=self.loc.dtype)
        return self.loc + (self.scale_tril @ z.unsqueeze(-1)).squeeze(-1)

    def _half_log_det(self) -> Tensor:
        return self.scale_tril.diagonal(0, -2, -1).log().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        difference = (value - self.loc).unsqueeze(-1)
        scale = self.scale_tril.expand(*difference.shape[:-2], *self.scale_tril.shape[-2:])
        z = _T["cholesky_solve"](difference, scale)
        distance = (difference * z).sum((-2, -1))
        return -0.5 * (self.loc.shape[-1] * math.log(2 * math.pi) + distance) - self._half_log_det()

    def entropy(self) -> Tensor:
        """The differential entropy."""
        return 0.5 * self.loc.shape[-1] * (1 + math.log(2 * math.pi)) + self._half_log_det()


class Independent(Distribution):
    """The last batch dimensions of a distribution taken as dimensions of one event."""

    def __init__(self, base_distribution: Distribution, reinterpreted_batch_ndims: int, validate_args: bool | None = None):
        self.base_dist, self.reinterpreted_batch_ndims = base_distribution, reinterpreted_batch_ndims
        cut = len(base_distribution.batch_shape) - reinterpreted_batch_ndims
        super().__init__(
            base_distribution.batch_shape[:cut], (*base_distribution.batch_shape[cut:], *base_distribution.event_shape), validate_args
        )
        self.has_rsample = base_distribution.has_rsample

    mean = property(lambda self: self.base_dist.mean)
    variance = property(lambda self: self.base_dist.variance)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The base's samples."""
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The base's samples."""
        return self.base_dist.sample(sample_shape)

    def _summed(self, x: Tensor) -> Tensor:
        n = self.reinterpreted_batch_ndims
        return x.sum(tuple(range(-n, 0))) if n else x

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's log densities summed over the event."""
        return self._summed(self.base_dist.log_prob(value))

    def entropy(self) -> Tensor:
        """The base's entropies summed over the event."""
        return self._summed(self.base_dist.entropy())


class OneHotCategorical(Distribution):
    """One of n classes, as a vector with a one."""

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        self._classes = Categorical(probs, logits)
        super().__init__(self._classes.batch_shape, self._classes.probs.shape[-1:], validate_args)

    probs = property(lambda self: self._classes.probs)
    logits = property(lambda self: self._classes.logits)
    mean = property(lambda self: self._classes.probs)
    variance = property(lambda self: self._classes.probs * (1 - self._classes.probs))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Vectors with a one, in the dtype of the probabilities."""
        drawn = self._classes.sample(sample_shape).unsqueeze(-1)
        return (drawn == _T["arange"](self.event_shape[0])).to(self.probs.dtype)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of the class that has the one."""
        return self._classes.log_prob(value.argmax(-1))

    def entropy(self) -> Tensor:
        """The entropy."""
        return self._classes.entropy()


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """One-hot samples whose gradient is that of the probabilities (Bengio et al. 2013)."""

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The sample, plus the probabilities minus themselves without gradient."""
        return self.sample(sample_shape) + (self.probs - self.probs.detach())  # type: ignore[no-any-return]


class MixtureSameFamily(Distribution):
    """A mixture of the last batch dimension of one distribution, weighted by a Categorical."""

    def __init__(self, mixture_distribution: Categorical, component_distribution: Distribution, validate_args: bool | None = None):
        self.mixture_distribution, self.component_distribution = mixture_distribution, component_distribution
        super().__init__(component_distribution.batch_shape[:-1], component_distribution.event_shape, validate_args)

    def _weights(self) -> Tensor:
        return self.mixture_distribution.probs.reshape(*self.mixture_distribution.probs.shape, *[1] * len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The mean of the means."""
        return (self._weights() * self.component_distribution.mean).sum(-1 - len(self.event_shape))

    @property
    def variance(self) -> Tensor:
        """The mean of the variances plus the variance of the means."""
        at = -1 - len(self.event_shape)
        apart = self.component_distribution.mean - self.mean.unsqueeze(at)
        return (self._weights() * (self.component_distribution.variance + apart**2)).sum(at)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One component's sample for each."""
        with no_grad():
            at = len(tuple(sample_shape)) + len(self.batch_shape)
            chosen = self.mixture_distribution.sample(sample_shape)
            all_of = self.component_distribution.sample(sample_shape)
            chosen = chosen.reshape(*chosen.shape, 1, *[1] * len(self.event_shape))
            chosen = chosen.expand(*all_of.shape[:at], 1, *self.event_shape)
            return all_of.gather(at, chosen).squeeze(at)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log of the weighted densities' sum."""
        each = self.component_distribution.log_prob(value.unsqueeze(-1 - len(self.event_shape)))
        return (each + self.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)


class Transform:
    """An invertible function of each element: `t(x)`, `t.inv(y)`, and the log of its derivative's size."""

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward function")

    def inv(self, y: Tensor) -> Tensor:
        """The x with t(x) = y."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy/dx| of each element."""
        raise NotImplementedError(f"{type(self).__name__} has no derivative")


class ExpTransform(Transform):
    """exp(x)."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.exp()

    def inv(self, y: Tensor) -> Tensor:
        """log(y)."""
        return y.log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """x."""
        return x


class SigmoidTransform(Transform):
    """1 / (1 + exp(-x))."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def inv(self, y: Tensor) -> Tensor:
        """log(y / (1 - y))."""
        return y.logit()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log of y (1 - y), from x."""
        return -softplus(-x) - softplus(x)


class TanhTransform(Transform):
    """tanh(x)."""

    def __init__(self, cache_size: int = 0):
        """`cache_size` is accepted for PyTorch's sake."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.tanh()

    def inv(self, y: Tensor) -> Tensor:
        """atanh(y)."""
        return y.atanh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log(1 - tanh(x)^2), in the form that does not cancel for large x."""
        return 2.0 * (math.log(2.0) - x - softplus(-2.0 * x))


class AffineTransform(Transform):
    """loc + scale * x."""

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0, cache_size: int = 0):
        self.loc, self.scale = loc, scale

    def __call__(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x  # type: ignore[no-any-return]

    def inv(self, y: Tensor) -> Tensor:
        """(y - loc) / scale."""
        return (y - self.loc) / self.scale  # type: ignore[no-any-return]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |scale|."""
        return _T["zeros_like"](x) + (self.scale.abs().log() if isinstance(self.scale, Tensor) else math.log(abs(self.scale)))  # type: ignore[no-any-return]


class TransformedDistribution(Distribution):
    """What transforms, one after the other, make of a distribution's samples."""

    def __init__(self, base_distribution: Distribution, transforms: Any, validate_args: bool | None = None):
        self.base_dist = base_distribution
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        super().__init__(base_distribution.batch_shape, base_distribution.event_shape, validate_args)
        self.has_rsample = base_distribution.has_rsample

    def _moved(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters."""
        return self._moved(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples, off the tape."""
        with no_grad():
            return self._moved(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's log density where the value comes from, less the logs of the derivatives."""
        total: Any = 0.0
        for transform in reversed(self.transforms):
            x = transform.inv(value)
            moved = transform.log_abs_det_jacobian(x, value)
            total = total - (moved.sum(tuple(range(-len(self.event_shape), 0))) if self.event_shape else moved)
            value = x
        return total + self.base_dist.log_prob(value)  # type: ignore[no-any-return]


_KL: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {}


def register_kl(type_p: type, type_q: type) -> Callable[[Any], Any]:
    """Decorator that enters a formula for `kl_divergence`."""

    def enter(f: Any) -> Any:
        _KL[type_p, type_q] = f
        return f

    return enter


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """The Kullback-Leibler divergence of p from q. Raises NotImplementedError for pairs without a formula."""
    for (a, b), f in _KL.items():
        if isinstance(p, a) and isinstance(q, b):
            return f(p, q)
    raise NotImplementedError(f"kl_divergence: no formula for {type(p).__name__} and {type(q).__name__}")


@register_kl(Normal, Normal)
def _kl_normal(p: Normal, q: Normal) -> Tensor:
    ratio = (p.scale / q.scale) ** 2
    return 0.5 * (ratio + ((p.loc - q.loc) / q.scale) ** 2 - 1 - ratio.log())


@register_kl(Categorical, Categorical)
def _kl_categorical(p: Categorical, q: Categorical) -> Tensor:
    return _T["where"](p.probs.eq(0), 0.0, p.probs * (p.logits - q.logits)).sum(-1)  # type: ignore[no-any-return]


@register_kl(Bernoulli, Bernoulli)
def _kl_bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    return p.probs.xlogy(p.probs / q.probs) + (1 - p.probs).xlogy((1 - p.probs) / (1 - q.probs))


@register_kl(Independent, Independent)
def _kl_independent(p: Independent, q: Independent) -> Tensor:
    return p._summed(kl_divergence(p.base_dist, q.base_dist))


@register_kl(MultivariateNormal, MultivariateNormal)
def _kl_multivariate(p: MultivariateNormal, q: MultivariateNormal) -> Tensor:
    inner = _T["cholesky_solve"](p.covariance_matrix, q.scale_tril).diagonal(0, -2, -1).sum(-1)
    apart = (q.loc - p.loc).unsqueeze(-1)
    distance = (apart * _T["cholesky_solve"](apart, q.scale_tril)).sum((-2, -1))
    return q._half_log_det() - p._half_log_det() + 0.5 * (inner + distance - p.loc.shape[-1])  # type: ignore[no-any-return]
