"""Kullback-Leibler divergences: formulas for pairs of distributions, and the way to add more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torchlet.distributions.continuous import Cauchy, Exponential, Gumbel, HalfCauchy, HalfNormal, Laplace, Normal, Pareto, Uniform
from torchlet.distributions.discrete import Bernoulli, Binomial, Categorical, ContinuousBernoulli, Geometric, OneHotCategorical, Poisson
from torchlet.distributions.distribution import EULER, LOG_2PI, Distribution
from torchlet.distributions.gammas import Beta, Dirichlet, Gamma
from torchlet.distributions.matrices import LowRankMultivariateNormal, MultivariateNormal, half_log_det
from torchlet.distributions.transformed import Independent, TransformedDistribution
from torchlet.distributions.transforms import sum_rightmost
from torchlet.distributions.utils import T
from torchlet.ops.linalg import LINALG
from torchlet.tensor import Tensor

__all__ = ["kl_divergence", "register_kl"]
_KL: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {}


def register_kl(type_p: type, type_q: type) -> Callable[[Any], Any]:
    """Decorator that enters a formula for `kl_divergence`."""
    if not (
        isinstance(type_p, type) and issubclass(type_p, Distribution) and isinstance(type_q, type) and issubclass(type_q, Distribution)
    ):
        raise TypeError(f"register_kl: {type_p} and {type_q}; expected two subclasses of Distribution")

    def enter(f: Any) -> Any:
        _KL[type_p, type_q] = f
        return f

    return enter


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """The Kullback-Leibler divergence of p from q, by the formula of the nearest classes. Raises NotImplementedError without one."""
    found = [(type(p).__mro__.index(a) + type(q).__mro__.index(b), f) for (a, b), f in _KL.items() if isinstance(p, a) and isinstance(q, b)]
    if not found:
        raise NotImplementedError(f"No KL(p || q) is implemented for p type {type(p).__name__} and q type {type(q).__name__}")
    return min(found, key=lambda pair: pair[0])[1](p, q)


def _where_infinite(bad: Tensor, value: Tensor) -> Tensor:
    return T["where"](bad, math.inf, value)  # type: ignore[no-any-return]


def _xlogx(x: Tensor) -> Tensor:
    return x.xlogy(x)


# ------------------------------------------------------------------------------------------------ of one kind


@register_kl(Bernoulli, Bernoulli)
def _(p: Any, q: Any) -> Tensor:
    t1 = p.probs.xlogy(p.probs) - p.probs.xlogy(q.probs)
    t2 = (1 - p.probs).xlogy(1 - p.probs) - (1 - p.probs).xlogy(1 - q.probs)
    return t1 + t2  # type: ignore[no-any-return]


@register_kl(Beta, Beta)
def _(p: Any, q: Any) -> Tensor:
    a, b, c, d = p.concentration1, p.concentration0, q.concentration1, q.concentration0
    total, other = a + b, c + d
    t1 = c.lgamma() + d.lgamma() + total.lgamma() - a.lgamma() - b.lgamma() - other.lgamma()
    return t1 + (a - c) * a.digamma() + (b - d) * b.digamma() + (other - total) * total.digamma()  # type: ignore[no-any-return]


@register_kl(Binomial, Binomial)
def _(p: Any, q: Any) -> Tensor:
    if bool((p.total_count < q.total_count).any()):
        raise NotImplementedError("KL between Binomials where q.total_count > p.total_count is not implemented")
    kl = p.total_count * (p.probs * (p.logits - q.logits) + (-p.probs).log1p() - (-q.probs).log1p())
    return _where_infinite(p.total_count > q.total_count, kl)


@register_kl(Categorical, Categorical)
def _(p: Any, q: Any) -> Tensor:
    t = p.probs * (p.logits - q.logits)
    t = T["where"](q.probs.eq(0).expand(t.shape), math.inf, t)
    return T["where"](p.probs.eq(0).expand(t.shape), 0.0, t).sum(-1)  # type: ignore[no-any-return]


@register_kl(OneHotCategorical, OneHotCategorical)
def _(p: Any, q: Any) -> Tensor:
    return kl_divergence(p._categorical, q._categorical)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _(p: Any, q: Any) -> Tensor:
    t1 = p.mean * (p.logits - q.logits)
    t2 = p._log_norm() + (-p.probs).log1p()
    return t1 + t2 - q._log_norm() - (-q.probs).log1p()  # type: ignore[no-any-return]


@register_kl(Dirichlet, Dirichlet)
def _(p: Any, q: Any) -> Tensor:
    a, b = p.concentration, q.concentration
    t1 = a.sum(-1).lgamma() - b.sum(-1).lgamma() - (a.lgamma() - b.lgamma()).sum(-1)
    return t1 + ((a - b) * (a.digamma() - a.sum(-1, keepdim=True).digamma())).sum(-1)  # type: ignore[no-any-return]


@register_kl(Exponential, Exponential)
def _(p: Any, q: Any) -> Tensor:
    ratio = q.rate / p.rate
    return ratio - ratio.log() - 1  # type: ignore[no-any-return]


@register_kl(Gamma, Gamma)
def _(p: Any, q: Any) -> Tensor:
    t1 = q.concentration * (p.rate / q.rate).log() + q.concentration.lgamma() - p.concentration.lgamma()
    return t1 + (p.concentration - q.concentration) * p.concentration.digamma() + (q.rate - p.rate) * (p.concentration / p.rate)  # type: ignore[no-any-return]


@register_kl(Gumbel, Gumbel)
def _(p: Any, q: Any) -> Tensor:
    ratio, a, b = p.scale / q.scale, q.loc / q.scale, p.loc / q.scale
    t1 = -ratio.log() - a + b + ratio * EULER
    return t1 + (a + (1 + ratio).lgamma() - b).exp() - (1 + EULER)  # type: ignore[no-any-return]


@register_kl(Geometric, Geometric)
def _(p: Any, q: Any) -> Tensor:
    return -p.entropy() - (-q.probs).log1p() / p.probs - q.logits  # type: ignore[no-any-return]


@register_kl(HalfNormal, HalfNormal)
def _(p: Any, q: Any) -> Tensor:
    ratio = (p.scale / q.scale) ** 2
    return 0.5 * (ratio - 1 - ratio.log())  # type: ignore[no-any-return]


@register_kl(Laplace, Laplace)
def _(p: Any, q: Any) -> Tensor:
    apart = (p.loc - q.loc).abs()
    return -(p.scale / q.scale).log() + apart / q.scale + p.scale / q.scale * (-apart / p.scale).exp() - 1  # type: ignore[no-any-return]


@register_kl(Normal, Normal)
def _(p: Any, q: Any) -> Tensor:
    ratio = (p.scale / q.scale) ** 2
    return 0.5 * (ratio + ((p.loc - q.loc) / q.scale) ** 2 - 1 - ratio.log())  # type: ignore[no-any-return]


@register_kl(Pareto, Pareto)
def _(p: Any, q: Any) -> Tensor:
    ratio = q.alpha / p.alpha
    kl = q.alpha * (p.scale / q.scale).log() - ratio.log() + ratio - 1
    return _where_infinite(p.support.lower_bound < q.support.lower_bound, kl)


@register_kl(Poisson, Poisson)
def _(p: Any, q: Any) -> Tensor:
    return p.rate * (p.rate.log() - q.rate.log()) - (p.rate - q.rate)  # type: ignore[no-any-return]


@register_kl(Uniform, Uniform)
def _(p: Any, q: Any) -> Tensor:
    return _where_infinite((q.low > p.low) | (q.high < p.high), ((q.high - q.low) / (p.high - p.low)).log())


@register_kl(Cauchy, Cauchy)
def _(p: Any, q: Any) -> Tensor:
    return ((p.scale + q.scale) ** 2 + (p.loc - q.loc) ** 2).log() - (4 * p.scale * q.scale).log()  # type: ignore[no-any-return]


@register_kl(HalfCauchy, HalfCauchy)
def _(p: Any, q: Any) -> Tensor:
    return 2 * (p.scale + q.scale).log() - (4 * p.scale * q.scale).log()  # type: ignore[no-any-return]


@register_kl(Independent, Independent)
def _(p: Any, q: Any) -> Tensor:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError("KL between Independents with different reinterpreted_batch_ndims is not implemented")
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)  # type: ignore[no-any-return]


@register_kl(TransformedDistribution, TransformedDistribution)
def _(p: Any, q: Any) -> Tensor:
    if p.transforms != q.transforms or p.event_shape != q.event_shape:
        raise NotImplementedError("KL between transformed distributions is implemented where their transforms are equal")
    return kl_divergence(p.base_dist, q.base_dist)


def _gaussian(p: Any, q: Any, p_lower: Tensor, q_lower: Tensor) -> Tensor:
    n = p.event_shape[0]
    batch = T["broadcast_shapes"](tuple(p_lower.shape[:-2]), tuple(q_lower.shape[:-2]))
    a, b = p_lower.expand(*batch, n, n), q_lower.expand(*batch, n, n)
    trace = (LINALG["solve_triangular"](b, a, upper=False) ** 2).sum((-2, -1))
    d = (q.loc - p.loc).expand(*batch, n).unsqueeze(-1)
    squared = (LINALG["solve_triangular"](b, d, upper=False) ** 2).sum((-2, -1))
    return half_log_det(q_lower) - half_log_det(p_lower) + 0.5 * (trace + squared - n)  # type: ignore[no-any-return]


def _enter_gaussians() -> None:
    for a in (MultivariateNormal, LowRankMultivariateNormal):
        for b in (MultivariateNormal, LowRankMultivariateNormal):
            _KL[a, b] = lambda p, q: _gaussian(p, q, p.scale_tril, q.scale_tril)


_enter_gaussians()

# ------------------------------------------------------------------------------------------------ of different kinds


def _infinite(p: Any, q: Any) -> Tensor:
    """The support of p is larger than that of q."""
    shape = T["broadcast_shapes"](tuple(p.batch_shape), tuple(q.batch_shape))
    return T["full"](shape, math.inf, dtype=p.mean.dtype)  # type: ignore[no-any-return]


_BOUNDED, _HALF = (Beta, ContinuousBernoulli, Pareto, Uniform), (Exponential, Gamma)
_WIDER: dict[type, tuple[type, ...]] = {
    Poisson: (Bernoulli, Binomial),
    ContinuousBernoulli: (Pareto,),
    Beta: (Pareto,),
    Pareto: (Beta, ContinuousBernoulli, Uniform),
    **dict.fromkeys((Exponential, Gamma), _BOUNDED),
    **dict.fromkeys((Gumbel, Laplace, Normal), _BOUNDED + _HALF),
}
_KL |= {(a, b): _infinite for a, narrower in _WIDER.items() for b in narrower}


@register_kl(Bernoulli, Poisson)
def _(p: Any, q: Any) -> Tensor:
    return -p.entropy() - (p.probs * q.rate.log() - q.rate)  # type: ignore[no-any-return]


@register_kl(Beta, ContinuousBernoulli)
def _(p: Any, q: Any) -> Tensor:
    return -p.entropy() - p.mean * q.logits - (-q.probs).log1p() - q._log_norm()  # type: ignore[no-any-return]


@register_kl(Beta, Exponential)
def _(p: Any, q: Any) -> Tensor:
    return -p.entropy() - q.rate.log() + q.rate * p.mean  # type: ignore[no-any-return]


@register_kl(Beta, Gamma)
def _(p: Any, q: Any) -> Tensor:
    t2 = q.concentration.lgamma() - q.concentration * q.rate.log()
    t3 = (q.concentration - 1) * (p.concentration1.digamma() - (p.concentration1 + p.concentration0).digamma())
    return -p.entropy() + t2 - t3 + q.rate * p.mean  # type: ignore[no-any-return]


def _from_normal(p: Any, q: Any) -> Tensor:
    """-H(p) less the mean of the normal's log density under p, by the moments of p."""
    var = q.scale**2
    return -p.entropy() + 0.5 * (LOG_2PI + var.log()) + ((p.variance + p.mean**2) * 0.5 - p.mean * q.loc + q.loc**2 * 0.5) / var  # type: ignore[no-any-return]


_KL |= {(a, Normal): _from_normal for a in (Beta, ContinuousBernoulli, Exponential, Gamma, Gumbel, Laplace, Uniform)}


@register_kl(Pareto, Normal)
def _(p: Any, q: Any) -> Tensor:
    return _where_infinite(p.alpha <= 2, _from_normal(p, q))


def _inside_unit(p: Any, q: Any) -> Tensor:
    return (q.high < 1) | (q.low > 0)  # type: ignore[no-any-return]


@register_kl(Beta, Uniform)
def _(p: Any, q: Any) -> Tensor:
    return _where_infinite(_inside_unit(p, q), -p.entropy() + (q.high - q.low).log())


@register_kl(ContinuousBernoulli, Exponential)
def _(p: Any, q: Any) -> Tensor:
    return -p.entropy() - q.rate.log() + q.rate * p.mean  # type: ignore[no-any-return]


@register_kl(ContinuousBernoulli, Uniform)
def _(p: Any, q: Any) -> Tensor:
    return _where_infinite(_inside_unit(p, q), -p.entropy() + (q.high - q.low).log())


@register_kl(Exponential, Gamma)
def _(p: Any, q: Any) -> Tensor:
    ratio = q.rate / p.rate
    return -q.concentration * ratio.log() + ratio + q.concentration.lgamma() + q.concentration * EULER - (1 + EULER)  # type: ignore[no-any-return]


@register_kl(Exponential, Gumbel)
def _(p: Any, q: Any) -> Tensor:
    product, moved = p.rate * q.scale, q.loc / q.scale
    return product.log() - 1 + moved.exp() * product / (product + 1) - moved + 1 / product  # type: ignore[no-any-return]


@register_kl(Gamma, Exponential)
def _(p: Any, q: Any) -> Tensor:
    return -p.entropy() - q.rate.log() + q.rate * p.concentration / p.rate  # type: ignore[no-any-return]


@register_kl(Gamma, Gumbel)
def _(p: Any, q: Any) -> Tensor:
    product, moved = p.rate * q.scale, q.loc / q.scale
    a = p.concentration
    return (a - 1) * a.digamma() - a.lgamma() - a + product.log() + moved.exp() * (1 + 1 / product) ** (-a) - moved + a / product  # type: ignore[no-any-return]


@register_kl(Normal, Gumbel)
def _(p: Any, q: Any) -> Tensor:
    ratio, scaled = p.loc / q.scale, (p.scale / q.scale) ** 2 * 0.5
    moved = q.loc / q.scale
    return (-ratio + scaled + moved).exp() + ratio - moved + (q.scale / p.scale).log() - 0.5 * (1 + LOG_2PI)  # type: ignore[no-any-return]


@register_kl(Normal, Laplace)
def _(p: Any, q: Any) -> Tensor:
    apart, ratio = p.loc - q.loc, p.scale / q.scale
    apart_ratio = apart / p.scale
    t2 = math.sqrt(2 / math.pi) * p.scale * (-0.5 * apart_ratio**2).exp() + apart * (math.sqrt(0.5) * apart_ratio).erf()
    return -ratio.log() + t2 / q.scale - 0.5 * (1 + math.log(0.5 * math.pi))  # type: ignore[no-any-return]


@register_kl(Pareto, Exponential)
def _(p: Any, q: Any) -> Tensor:
    product = p.scale * q.rate
    kl = (p.alpha / product).log() - 1 / p.alpha + p.alpha * product / (p.alpha - 1) - 1
    return _where_infinite(p.alpha <= 1, kl)


@register_kl(Pareto, Gamma)
def _(p: Any, q: Any) -> Tensor:
    common = p.scale.log() + 1 / p.alpha
    kl = p.alpha.log() - common + q.concentration.lgamma() - q.concentration * q.rate.log() + (1 - q.concentration) * common
    return _where_infinite(p.alpha <= 1, kl + q.rate * p.alpha * p.scale / (p.alpha - 1) - 1)


@register_kl(Uniform, Beta)
def _(p: Any, q: Any) -> Tensor:
    width = p.high - p.low
    t2 = (q.concentration1 - 1) * (_xlogx(p.high) - _xlogx(p.low) - width) / width
    t3 = (q.concentration0 - 1) * (_xlogx(1 - p.high) - _xlogx(1 - p.low) + width) / width
    t4 = q.concentration1.lgamma() + q.concentration0.lgamma() - (q.concentration1 + q.concentration0).lgamma()
    return _where_infinite((p.high > 1) | (p.low < 0), t3 + t4 - width.log() - t2)


@register_kl(Uniform, ContinuousBernoulli)
def _(p: Any, q: Any) -> Tensor:
    kl = -p.entropy() - p.mean * q.logits - (-q.probs).log1p() - q._log_norm()
    return _where_infinite((p.high > 1) | (p.low < 0), kl)


@register_kl(Uniform, Exponential)
def _(p: Any, q: Any) -> Tensor:
    kl = q.rate * (p.high + p.low) / 2 - ((p.high - p.low) * q.rate).log()
    return _where_infinite(p.low < 0, kl)


@register_kl(Uniform, Gamma)
def _(p: Any, q: Any) -> Tensor:
    width = p.high - p.low
    t2 = q.concentration.lgamma() - q.concentration * q.rate.log()
    t3 = (1 - q.concentration) * (_xlogx(p.high) - _xlogx(p.low) - width) / width
    return _where_infinite(p.low < 0, -width.log() + t2 + t3 + q.rate * (p.high + p.low) / 2)


@register_kl(Uniform, Gumbel)
def _(p: Any, q: Any) -> Tensor:
    common = q.scale / (p.high - p.low)
    high, low = (p.high - q.loc) / q.scale, (p.low - q.loc) / q.scale
    return common.log() + 0.5 * (high + low) - common * ((-high).exp() - (-low).exp())  # type: ignore[no-any-return]


@register_kl(Uniform, Pareto)
def _(p: Any, q: Any) -> Tensor:
    width = p.high - p.low
    t1 = q.alpha.log() + q.alpha * q.scale.log() + width.log()
    kl = (q.alpha + 1) * (_xlogx(p.high) - _xlogx(p.low) - width) / width - t1
    return _where_infinite(p.low < q.support.lower_bound, kl)
