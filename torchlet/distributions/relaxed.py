"""Continuous relaxations of discrete distributions, and the normal distribution on the simplex."""

from __future__ import annotations

from typing import Any, ClassVar

from torchlet.distributions import constraints
from torchlet.distributions.continuous import Normal
from torchlet.distributions.discrete import Categorical, _Binary
from torchlet.distributions.distribution import Distribution, uniform
from torchlet.distributions.transformed import TransformedDistribution
from torchlet.distributions.transforms import ExpTransform, SigmoidTransform, StickBreakingTransform
from torchlet.distributions.utils import T, broadcast_all
from torchlet.tensor import Tensor

__all__ = ["LogisticNormal", "RelaxedBernoulli", "RelaxedOneHotCategorical"]


def _temperature(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else T["tensor"](float(value), dtype=like.dtype)  # type: ignore[no-any-return]


class LogitRelaxedBernoulli(_Binary):
    """The log odds of a RelaxedBernoulli."""

    has_rsample = True
    support: Any = constraints.real

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        param = self._take(probs, logits)
        self.temperature = _temperature(temperature, param)
        super().__init__(param.shape, (), validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """(logits + a logistic variable) / temperature."""
        u = uniform(self, sample_shape, self._param).clamp(max=1 - 2.0**-24)
        return (u.log() - (-u).log1p() + self.logits) / self.temperature

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        d = logits - value * self.temperature
        return self.temperature.log() + d - 2 * d.exp().log1p()


class RelaxedBernoulli(TransformedDistribution):
    """Numbers in (0, 1) that a low temperature drives to 0 and 1 (Maddison et al. 2016)."""

    arg_constraints: ClassVar = {"probs": constraints.unit_interval, "logits": constraints.real}
    support: Any = constraints.unit_interval

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(LogitRelaxedBernoulli(temperature, probs, logits), SigmoidTransform(), validate_args)

    temperature = property(lambda self: self.base_dist.temperature)
    probs = property(lambda self: self.base_dist.probs)
    logits = property(lambda self: self.base_dist.logits)


class ExpRelaxedCategorical(Distribution):
    """The logarithms of a RelaxedOneHotCategorical."""

    has_rsample = True
    arg_constraints: ClassVar = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support: Any = constraints.real_vector

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        self._categorical = Categorical(probs, logits)
        self.temperature = _temperature(temperature, self._categorical._param)
        super().__init__(self._categorical.batch_shape, self._categorical.param_shape[-1:], validate_args)

    probs = property(lambda self: self._categorical.probs)
    logits = property(lambda self: self._categorical.logits)
    param_shape = property(lambda self: self._categorical.param_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """log softmax((logits + Gumbel) / temperature)."""
        gumbel = -(-uniform(self, sample_shape, self.logits).clamp(max=1 - 2.0**-24).log()).log()
        return T["log_softmax"]((self.logits + gumbel) / self.temperature, -1)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        self._validate_sample(value)
        k = self._categorical._num_events
        logits, value = broadcast_all(self.logits, value)
        scale = T["full_like"](self.temperature, float(k)).lgamma() - self.temperature.log() * (-(k - 1))
        score = logits - value * self.temperature
        return (score - score.logsumexp(-1, keepdim=True)).sum(-1) + scale  # type: ignore[no-any-return]


class RelaxedOneHotCategorical(TransformedDistribution):
    """Points of the simplex that a low temperature drives to its corners (Jang et al. 2017)."""

    arg_constraints: ClassVar = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support: Any = constraints.simplex

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(ExpRelaxedCategorical(temperature, probs, logits, validate_args), ExpTransform(), validate_args)

    temperature = property(lambda self: self.base_dist.temperature)
    probs = property(lambda self: self.base_dist.probs)
    logits = property(lambda self: self.base_dist.logits)


class LogisticNormal(TransformedDistribution):
    """Normal variables moved onto the simplex by stick breaking."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support: Any = constraints.simplex

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        base = Normal(loc, scale, validate_args)
        if not base.batch_shape:
            base = base.expand((1,))
        super().__init__(base, StickBreakingTransform(), validate_args)

    loc = property(lambda self: self.base_dist.base_dist.loc)
    scale = property(lambda self: self.base_dist.base_dist.scale)
