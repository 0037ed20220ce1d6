"""Distributions of counts, truths and classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torchlet.autograd import no_grad
from torchlet.distributions import constraints
from torchlet.distributions.distribution import Distribution, ExponentialFamily, uniform
from torchlet.distributions.gammas import standard_gamma
from torchlet.distributions.utils import T, broadcast_all, clamp_probs, lazy_property, logits_to_probs, probs_to_logits
from torchlet.nn.functional import binary_cross_entropy_with_logits, softplus
from torchlet.tensor import Tensor

__all__ = [
    "Bernoulli", "Binomial", "Categorical", "ContinuousBernoulli", "Geometric", "Multinomial", "NegativeBinomial", "OneHotCategorical",
    "OneHotCategoricalStraightThrough", "Poisson",
]  # fmt: skip


def _one_of(probs: Any, logits: Any) -> None:
    if (probs is None) == (logits is None):
        raise ValueError("Either `probs` or `logits` must be specified, but not both.")


class _Binary(Distribution):
    """Given by the probability of 1 or by its log odds; the other one is computed when it is asked for."""

    arg_constraints: ClassVar = {"probs": constraints.unit_interval, "logits": constraints.real}

    def _take(self, probs: Any, logits: Any) -> Tensor:
        _one_of(probs, logits)
        if probs is not None:
            (self.__dict__["probs"],) = broadcast_all(probs)
        else:
            (self.__dict__["logits"],) = broadcast_all(logits)
        return self._param

    @property
    def _param(self) -> Tensor:
        return self.__dict__["probs"] if "probs" in self.__dict__ else self.__dict__["logits"]  # type: ignore[no-any-return]

    param_shape = property(lambda self: self._param.shape)

    @lazy_property
    def probs(self) -> Tensor:
        """The probability of 1."""
        return logits_to_probs(self.logits, True)

    @lazy_property
    def logits(self) -> Tensor:
        """Its log odds."""
        return probs_to_logits(self.probs, True)


class Bernoulli(_Binary, ExponentialFamily):
    """1 with probability `probs`, else 0."""

    has_enumerate_support = True
    support: Any = constraints.boolean

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(self._take(probs, logits).shape, (), validate_args)

    mean = property(lambda self: self.probs)
    variance = property(lambda self: self.probs * (1 - self.probs))

    @property
    def mode(self) -> Tensor:
        """The likelier one; NaN where neither is."""
        return T["where"](self.probs.eq(0.5), math.nan, (self.probs >= 0.5).to(self.probs.dtype))  # type: ignore[no-any-return]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Zeros and ones."""
        return T["bernoulli"](self.probs.detach().expand(self._extended_shape(sample_shape)))  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    def entropy(self) -> Tensor:
        """The entropy."""
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 and 1."""
        return _listed(self, 2, expand, self._param.dtype)


def _listed(d: Distribution, count: int, expand: bool, dtype: Any) -> Tensor:
    """0 … count - 1 along a first dimension."""
    values = T["arange"](count, dtype=dtype).reshape(-1, *[1] * len(d.batch_shape))
    return values.expand(-1, *d.batch_shape) if expand else values  # type: ignore[no-any-return]


class Geometric(_Binary):
    """How many failures come before the first success."""

    support: Any = constraints.nonnegative_integer

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(self._take(probs, logits).shape, (), validate_args)
        if self._validate_args and probs is not None and not bool((self.probs > 0).all()):
            raise ValueError(
                f"Expected parameter probs (Tensor of shape {tuple(self.probs.shape)}) of distribution {self!r} to be positive but found "
                f"invalid values:\n{self.probs}"
            )

    mean = property(lambda self: 1 / self.probs - 1)
    mode = property(lambda self: T["zeros_like"](self.probs))
    variance = property(lambda self: (1 / self.probs - 1) / self.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Whole numbers as floats."""
        p = self.probs.detach()
        return (uniform(self, sample_shape, p).log() / (-p).log1p()).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        self._validate_sample(value)
        value, probs = broadcast_all(value, self.probs)
        probs = T["where"](probs.eq(1) & value.eq(0), 0.0, probs)
        return value * (-probs).log1p() + self.probs.log()

    def entropy(self) -> Tensor:
        """The entropy."""
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none") / self.probs


class Binomial(_Binary):
    """How many of `total_count` trials succeed."""

    has_enumerate_support = True
    arg_constraints: ClassVar = {
        "total_count": constraints.nonnegative_integer, "probs": constraints.unit_interval, "logits": constraints.real
    }  # fmt: skip

    def __init__(self, total_count: Any = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        _one_of(probs, logits)
        name, given = ("probs", probs) if probs is not None else ("logits", logits)
        self.total_count, self.__dict__[name] = broadcast_all(total_count, given)
        self.total_count = self.total_count.to(self._param.dtype)
        super().__init__(self._param.shape, (), validate_args)

    support = property(lambda self: constraints.integer_interval(0, self.total_count))  # type: ignore[assignment]
    mean = property(lambda self: self.total_count * self.probs)
    mode = property(lambda self: ((self.total_count + 1) * self.probs).floor().clamp(max=self.total_count))
    variance = property(lambda self: self.total_count * self.probs * (1 - self.probs))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts as floats."""
        shape = self._extended_shape(sample_shape)
        with no_grad():
            return T["binomial"](self.total_count.expand(shape), self.probs.expand(shape))  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        self._validate_sample(value)
        n = self.total_count
        # n log(1 + exp(logits)), written so that it does not overflow
        normal = n * (self.logits.clamp(min=0) + (-self.logits.abs()).exp().log1p()) - (n + 1).lgamma()
        return value * self.logits - (value + 1).lgamma() - (n - value + 1).lgamma() - normal

    def entropy(self) -> Tensor:
        """The entropy, where all counts are equal."""
        n = int(self.total_count.max())
        if int(self.total_count.min()) != n:
            raise NotImplementedError("Inhomogeneous total count not supported by `entropy`.")
        p = self.log_prob(self.enumerate_support(False))
        return -(p.exp() * p).sum(0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 … total_count, which must be the same everywhere."""
        n = int(self.total_count.max())
        if int(self.total_count.min()) != n:
            raise NotImplementedError("Inhomogeneous total count not supported by `enumerate_support`.")
        return _listed(self, n + 1, expand, self._param.dtype)


class NegativeBinomial(_Binary):
    """How many successes come before `total_count` failures."""

    arg_constraints: ClassVar = {
        "total_count": constraints.greater_than_eq(0), "probs": constraints.half_open_interval(0.0, 1.0), "logits": constraints.real
    }  # fmt: skip
    support: Any = constraints.nonnegative_integer

    def __init__(self, total_count: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        _one_of(probs, logits)
        name, given = ("probs", probs) if probs is not None else ("logits", logits)
        self.total_count, self.__dict__[name] = broadcast_all(total_count, given)
        self.total_count = self.total_count.to(self._param.dtype)
        super().__init__(self._param.shape, (), validate_args)

    mean = property(lambda self: self.total_count * self.logits.exp())
    mode = property(lambda self: ((self.total_count - 1) * self.logits.exp()).floor().clamp(min=0.0))
    variance = property(lambda self: self.mean / (-self.logits).sigmoid())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Poisson counts of a gamma rate."""
        with no_grad():
            rate = standard_gamma(self.total_count.expand(self._extended_shape(sample_shape))) * self.logits.exp()
            return T["poisson"](rate)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        self._validate_sample(value)
        n = self.total_count
        plain = -n * softplus(self.logits) - value * softplus(-self.logits)
        norm = -(n + value).lgamma() + (1.0 + value).lgamma() + n.lgamma()
        return plain - T["where"]((n + value).eq(0), 0.0, norm)  # type: ignore[no-any-return]


class Poisson(ExponentialFamily):
    """Counts of rare events."""

    arg_constraints: ClassVar = {"rate": constraints.nonnegative}
    support: Any = constraints.nonnegative_integer

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = broadcast_all(rate)
        super().__init__(self.rate.shape, (), validate_args)

    mean = property(lambda self: self.rate)
    mode = property(lambda self: self.rate.floor())
    variance = property(lambda self: self.rate)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts as floats."""
        with no_grad():
            return T["poisson"](self.rate.expand(self._extended_shape(sample_shape)))  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        self._validate_sample(value)
        rate, value = broadcast_all(self.rate, value)
        return value.xlogy(rate) - rate - (value + 1).lgamma()


class ContinuousBernoulli(_Binary, ExponentialFamily):
    """Density ∝ probs^x (1 - probs)^(1 - x) on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    has_rsample = True
    support: Any = constraints.unit_interval

    def __init__(
        self, probs: Any = None, logits: Any = None, lims: tuple[float, float] = (0.499, 0.501), validate_args: bool | None = None
    ):
        self._take(probs, logits)
        self._lims = lims
        super().__init__(self._param.shape, (), validate_args)
        if "probs" in self.__dict__:
            self.__dict__["probs"] = clamp_probs(self.__dict__["probs"])

    def _outside(self) -> Tensor:
        return (self.probs <= self._lims[0]) | (self.probs > self._lims[1])  # type: ignore[no-any-return]

    def _cut(self) -> Tensor:
        """The probabilities, those near a half replaced by one where the formulas hold."""
        return T["where"](self._outside(), self.probs, self._lims[0])  # type: ignore[no-any-return]

    def _log_norm(self) -> Tensor:
        p = self._cut()
        below, above = T["where"](p <= 0.5, p, 0.0), T["where"](p >= 0.5, p, 1.0)
        log_norm = ((-p).log1p() - p.log()).abs().log() - T["where"](p <= 0.5, (-2 * below).log1p(), (2 * above - 1).log())
        x = (self.probs - 0.5) ** 2
        taylor = math.log(2.0) + (4.0 / 3.0 + 104.0 / 45.0 * x) * x
        return T["where"](self._outside(), log_norm, taylor)  # type: ignore[no-any-return]

    @property
    def mean(self) -> Tensor:
        """The mean."""
        p = self._cut()
        x = self.probs - 0.5
        taylor = 0.5 + (1.0 / 3.0 + 16.0 / 45.0 * x**2) * x
        return T["where"](self._outside(), p / (2 * p - 1) + 1 / ((-p).log1p() - p.log()), taylor)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """The variance."""
        p = self._cut()
        x = (self.probs - 0.5) ** 2
        taylor = 1.0 / 12.0 - (1.0 / 15.0 - 128.0 / 945.0 * x) * x
        out = p * (p - 1) / (1 - 2 * p) ** 2 + 1 / ((-p).log1p() - p.log()) ** 2
        return T["where"](self._outside(), out, taylor)  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantile function."""
        return self.icdf(uniform(self, sample_shape, self.probs))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none") + self._log_norm()

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        p = self._cut()
        out = (p**value * (1 - p) ** (1 - value) + p - 1) / (2 * p - 1)
        out = T["where"](self._outside(), out, value)
        return T["where"](value <= 0, 0.0, T["where"](value >= 1, 1.0, out))  # type: ignore[no-any-return]

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        p = self._cut()
        out = ((-p + value * (2 * p - 1)).log1p() - (-p).log1p()) / (p.log() - (-p).log1p())
        return T["where"](self._outside(), out, value)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The differential entropy."""
        log0, log1 = (-self.probs).log1p(), self.probs.log()
        return self.mean * (log0 - log1) - self._log_norm() - log0


class Categorical(Distribution):
    """Classes 0 … n - 1 with the probabilities (or logits) of the last dimension."""

    has_enumerate_support = True
    arg_constraints: ClassVar = {"probs": constraints.simplex, "logits": constraints.real_vector}

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        _one_of(probs, logits)
        given = probs if logits is None else logits
        if given.ndim < 1:
            raise ValueError(f"`{'probs' if logits is None else 'logits'}` parameter must be at least one-dimensional.")
        if logits is None:
            self.__dict__["probs"] = given / given.sum(-1, keepdim=True)
        else:
            self.__dict__["logits"] = given - given.logsumexp(-1, keepdim=True)
        self._num_events = given.shape[-1]
        super().__init__(given.shape[:-1], (), validate_args)

    @lazy_property
    def probs(self) -> Tensor:
        """Probabilities that sum to 1."""
        return logits_to_probs(self.logits)

    @lazy_property
    def logits(self) -> Tensor:
        """Log probabilities."""
        return probs_to_logits(self.probs)

    @property
    def _param(self) -> Tensor:
        return self.__dict__["probs"] if "probs" in self.__dict__ else self.__dict__["logits"]  # type: ignore[no-any-return]

    param_shape = property(lambda self: self._param.shape)
    support = property(lambda self: constraints.integer_interval(0, self._num_events - 1))  # type: ignore[assignment]
    mean = property(lambda self: T["full"](tuple(self.batch_shape), math.nan, dtype=self.probs.dtype))
    variance = mean

    @property
    def mode(self) -> Tensor:
        """The most probable class."""
        return self.probs.argmax(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """int64 classes."""
        count = math.prod(tuple(sample_shape))
        drawn = T["multinomial"](self.probs.detach().reshape(-1, self._num_events), max(count, 1), True)
        return drawn.T[:count].reshape(self._extended_shape(sample_shape))  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of classes."""
        self._validate_sample(value)
        value = value.long()
        shape = T["broadcast_shapes"](tuple(value.shape), tuple(self.batch_shape))
        logits = self.logits.expand(*shape, self._num_events)
        return logits.gather(-1, value.expand(shape).unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """The entropy."""
        return -(self.logits.clamp(min=T["finfo"](self.logits.dtype).min) * self.probs).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All classes."""
        return _listed(self, self._num_events, expand, None)


class OneHotCategorical(Distribution):
    """One of n classes, as a vector with a one."""

    has_enumerate_support = True
    arg_constraints: ClassVar = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support: Any = constraints.one_hot

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        self._categorical = Categorical(probs, logits, validate_args)
        super().__init__(self._categorical.batch_shape, self._categorical.param_shape[-1:], validate_args)

    probs = property(lambda self: self._categorical.probs)
    logits = property(lambda self: self._categorical.logits)
    param_shape = property(lambda self: self._categorical.param_shape)
    mean = property(lambda self: self._categorical.probs)
    variance = property(lambda self: self._categorical.probs * (1 - self._categorical.probs))
    mode = property(lambda self: self._of(self.probs.argmax(-1)))

    def _of(self, classes: Tensor) -> Tensor:
        return (classes.unsqueeze(-1) == T["arange"](self.event_shape[0])).to(self.probs.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Vectors with a one, in the dtype of the probabilities."""
        return self._of(self._categorical.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of the class that has the one."""
        self._validate_sample(value)
        return self._categorical.log_prob(value.argmax(-1))

    def entropy(self) -> Tensor:
        """The entropy."""
        return self._categorical.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All vectors with a one."""
        n = self.event_shape[0]
        values = T["eye"](n, dtype=self.probs.dtype).reshape(n, *[1] * len(self.batch_shape), n)
        return values.expand(n, *self.batch_shape, n) if expand else values  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """One-hot samples whose gradient is that of the probabilities (Bengio et al. 2013)."""

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The sample, plus the probabilities minus themselves without gradient."""
        return self.sample(sample_shape) + (self.probs - self.probs.detach())  # type: ignore[no-any-return]


class Multinomial(Distribution):
    """How often each of n classes comes up in `total_count` draws."""

    arg_constraints: ClassVar = {"probs": constraints.simplex, "logits": constraints.real_vector}

    def __init__(self, total_count: int = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        if not isinstance(total_count, int):
            raise NotImplementedError("inhomogeneous total_count is not supported")
        self.total_count = total_count
        self._categorical = Categorical(probs, logits, validate_args)
        super().__init__(self._categorical.batch_shape, self._categorical.param_shape[-1:], validate_args)

    probs = property(lambda self: self._categorical.probs)
    logits = property(lambda self: self._categorical.logits)
    param_shape = property(lambda self: self._categorical.param_shape)
    support = property(lambda self: constraints.multinomial(self.total_count))  # type: ignore[assignment]
    mean = property(lambda self: self.probs * self.total_count)
    variance = property(lambda self: self.total_count * self.probs * (1 - self.probs))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts as floats."""
        drawn = self._categorical.sample((self.total_count, *tuple(sample_shape)))
        return (drawn.unsqueeze(-1) == T["arange"](self.event_shape[0])).to(self.probs.dtype).sum(0)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability."""
        self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        logits = T["where"](value.eq(0) & logits.eq(-math.inf), 0.0, logits)
        return (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1) + (logits * value).sum(-1)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The entropy."""
        n = self.total_count
        counts = T["arange"](1, n + 1, dtype=self.probs.dtype).reshape(-1, *[1] * len((*self.batch_shape, *self.event_shape)))
        p = Binomial(n, probs=self.probs, validate_args=False).log_prob(counts).exp()
        return n * self._categorical.entropy() - math.lgamma(n + 1) + (p * (counts + 1).lgamma()).sum((0, -1))

    def __repr__(self) -> str:
        return "Multinomial()"
