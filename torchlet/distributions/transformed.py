"""Distributions made of others: transformed, with batch dimensions taken as events, mixtures."""

from __future__ import annotations

from typing import Any, ClassVar

from torchlet.autograd import no_grad
from torchlet.distributions import constraints
from torchlet.distributions.distribution import Distribution
from torchlet.distributions.transforms import ComposeTransform, Transform, sum_rightmost
from torchlet.distributions.utils import T
from torchlet.tensor import Tensor

__all__ = ["Independent", "MixtureSameFamily", "TransformedDistribution"]


class TransformedDistribution(Distribution):
    """What transforms, one after the other, make of a distribution's samples."""

    def __init__(self, base_distribution: Distribution, transforms: Any, validate_args: bool | None = None):
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        if not all(isinstance(t, Transform) for t in self.transforms):
            raise ValueError(f"transforms must be a Transform or a list of Transforms, but was {transforms}")
        whole = ComposeTransform(self.transforms)
        shape = (*base_distribution.batch_shape, *base_distribution.event_shape)
        if len(shape) < whole.domain.event_dim:
            raise ValueError(f"base_distribution needs to have shape with size at least {whole.domain.event_dim}, but got {shape}.")
        forward = whole.forward_shape(shape)
        base = tuple(whole.inverse_shape(forward))
        if shape != base:  # parameters of the transforms widen the batch
            base_distribution = base_distribution.expand(base[: len(base) - len(base_distribution.event_shape)])
        apart = whole.domain.event_dim - len(base_distribution.event_shape)
        if apart > 0:
            base_distribution = Independent(base_distribution, apart)
        self.base_dist = base_distribution
        dims = whole.codomain.event_dim + max(len(base_distribution.event_shape) - whole.domain.event_dim, 0)
        cut = len(forward) - dims
        super().__init__(forward[:cut], forward[cut:], validate_args)

    has_rsample = property(lambda self: self.base_dist.has_rsample)  # type: ignore[assignment]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        shape = (*tuple(batch_shape), *self.event_shape)
        for t in reversed(self.transforms):
            shape = t.inverse_shape(shape)
        new: Any = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.base_dist = self.base_dist.expand(shape[: len(shape) - len(self.base_dist.event_shape)])
        Distribution.__init__(new, tuple(batch_shape), self.event_shape, False)
        new._validate_args = self._validate_args
        return new

    @property
    def support(self) -> Any:
        """The last transform's codomain."""
        if not self.transforms:
            return self.base_dist.support
        support = self.transforms[-1].codomain
        apart = len(self.event_shape) - support.event_dim
        return constraints.independent(support, apart) if apart > 0 else support

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
        """The base's log density where the value comes from, less the logs of how volumes change."""
        self._validate_sample(value)
        dims, total, y = len(self.event_shape), 0.0, value  # type: ignore[var-annotated]
        for transform in reversed(self.transforms):
            x = transform._inv_call(y)
            dims += transform.domain.event_dim - transform.codomain.event_dim
            total = total - sum_rightmost(transform.log_abs_det_jacobian(x, y), dims - transform.domain.event_dim)
            y = x
        return total + sum_rightmost(self.base_dist.log_prob(y), dims - len(self.base_dist.event_shape))  # type: ignore[no-any-return]

    def _turned(self, value: Tensor) -> Tensor:
        """1 - value where the transforms turn the order round."""
        sign: Any = 1
        for transform in self.transforms:
            sign = sign * transform.sign
        return value if isinstance(sign, int) and sign == 1 else sign * (value - 0.5) + 0.5

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        self._validate_sample(value)
        for transform in reversed(self.transforms):
            value = transform._inv_call(value)
        return self._turned(self.base_dist.cdf(value))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        return self._moved(self.base_dist.icdf(self._turned(value)))


class Independent(Distribution):
    """The last batch dimensions of a distribution taken as dimensions of one event."""

    arg_constraints: ClassVar = {}

    def __init__(self, base_distribution: Distribution, reinterpreted_batch_ndims: int, validate_args: bool | None = None):
        if reinterpreted_batch_ndims > len(base_distribution.batch_shape):
            raise ValueError(
                "Expected reinterpreted_batch_ndims <= len(base_distribution.batch_shape), "
                f"actual {reinterpreted_batch_ndims} vs {len(base_distribution.batch_shape)}"
            )
        self.base_dist, self.reinterpreted_batch_ndims = base_distribution, reinterpreted_batch_ndims
        cut = len(base_distribution.batch_shape) - reinterpreted_batch_ndims
        super().__init__(
            base_distribution.batch_shape[:cut], (*base_distribution.batch_shape[cut:], *base_distribution.event_shape), validate_args
        )

    has_rsample = property(lambda self: self.base_dist.has_rsample)  # type: ignore[assignment]
    has_enumerate_support = property(lambda self: self.base_dist.has_enumerate_support and not self.reinterpreted_batch_ndims)  # type: ignore[assignment]
    mean = property(lambda self: self.base_dist.mean)
    mode = property(lambda self: self.base_dist.mode)
    variance = property(lambda self: self.base_dist.variance)
    stddev = property(lambda self: self.base_dist.stddev)

    @property
    def support(self) -> Any:
        """The base's, of all entries."""
        out = self.base_dist.support
        return constraints.independent(out, self.reinterpreted_batch_ndims) if self.reinterpreted_batch_ndims else out

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        kept = self.event_shape[: self.reinterpreted_batch_ndims]
        return Independent(self.base_dist.expand((*tuple(batch_shape), *kept)), self.reinterpreted_batch_ndims, self._validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The base's samples."""
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The base's samples."""
        return self.base_dist.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's log densities summed over the event."""
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        """The base's entropies summed over the event."""
        return sum_rightmost(self.base_dist.entropy(), self.reinterpreted_batch_ndims)  # type: ignore[no-any-return]

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The base's values."""
        if self.reinterpreted_batch_ndims:
            raise NotImplementedError("Enumeration over cartesian product is not implemented")
        return self.base_dist.enumerate_support(expand)

    def __repr__(self) -> str:
        return f"Independent({self.base_dist}, {self.reinterpreted_batch_ndims})"


class MixtureSameFamily(Distribution):
    """A mixture of the last batch dimension of one distribution, weighted by a Categorical."""

    arg_constraints: ClassVar = {}

    def __init__(self, mixture_distribution: Any, component_distribution: Distribution, validate_args: bool | None = None):
        self.mixture_distribution, self.component_distribution = mixture_distribution, component_distribution
        if not hasattr(mixture_distribution, "_num_events") or not isinstance(component_distribution, Distribution):
            raise ValueError(
                "The Mixture distribution needs to be an instance of torch.distributions.Categorical, its component a Distribution"
            )
        weights, parts = mixture_distribution.batch_shape, component_distribution.batch_shape[:-1]
        for a, b in zip(reversed(weights), reversed(parts), strict=False):
            if 1 not in (a, b) and a != b:
                raise ValueError(
                    f"`mixture_distribution.batch_shape` ({weights}) is not compatible with `component_distribution.batch_shape`({parts})"
                )
        if mixture_distribution._num_events != component_distribution.batch_shape[-1]:
            raise ValueError(
                f"`mixture_distribution component` ({mixture_distribution._num_events}) does not equal "
                f"`component_distribution.batch_shape[-1]` ({component_distribution.batch_shape[-1]})"
            )
        super().__init__(parts, component_distribution.event_shape, validate_args)

    support = property(lambda self: self.component_distribution.support)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        shape = tuple(batch_shape)
        n = self.mixture_distribution._num_events
        return MixtureSameFamily(
            self.mixture_distribution.expand(shape), self.component_distribution.expand((*shape, n)), self._validate_args
        )

    def _weights(self) -> Tensor:
        probs = self.mixture_distribution.probs
        return probs.reshape(*probs.shape, *[1] * len(self.event_shape))  # type: ignore[no-any-return]

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

    def cdf(self, x: Tensor) -> Tensor:
        """The weighted distribution functions' sum."""
        return (self.component_distribution.cdf(x.unsqueeze(-1 - len(self.event_shape))) * self.mixture_distribution.probs).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One component's sample for each."""
        with no_grad():
            at = len(tuple(sample_shape)) + len(self.batch_shape)
            chosen = self.mixture_distribution.sample(sample_shape)
            all_of = self.component_distribution.sample(sample_shape)
            chosen = chosen.reshape(*chosen.shape, 1, *[1] * len(self.event_shape))
            chosen = chosen.expand(*all_of.shape[:at], 1, *self.event_shape)
            return all_of.gather(at, chosen).squeeze(at)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log of the weighted densities' sum."""
        self._validate_sample(x)
        each = self.component_distribution.log_prob(x.unsqueeze(-1 - len(self.event_shape)))
        return (each + T["log_softmax"](self.mixture_distribution.logits, -1)).logsumexp(-1)

    def __repr__(self) -> str:
        return f"MixtureSameFamily(\n  {self.mixture_distribution!r},\n  {self.component_distribution!r})"
