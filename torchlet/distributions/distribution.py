"""What all distributions share: shapes, validation of parameters and samples, expansion, printing."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

from torchlet import dtypes
from torchlet.autograd import no_grad
from torchlet.distributions import constraints
from torchlet.distributions.utils import T, broadcast_all
from torchlet.op import STATE
from torchlet.spec import Size
from torchlet.tensor import Tensor

__all__ = ["Distribution", "ExponentialFamily"]


class Distribution:
    """A distribution over events of shape `event_shape`, of which it holds `batch_shape` independent ones.

    Subclasses give `rsample` or `sample`, `log_prob`, and what they know of moments. Parameters are checked when one is made,
    values when `log_prob` and its like are called outside a compiled function, unless `validate_args` is False.
    """

    has_rsample: bool = False
    has_enumerate_support: bool = False
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    _validate_args = __debug__

    @staticmethod
    def set_default_validate_args(value: bool) -> None:
        """Switch validation on or off for what is made from now on."""
        if value not in (True, False):
            raise ValueError(f"set_default_validate_args: {value!r}; expected a bool")
        Distribution._validate_args = value

    def __init__(self, batch_shape: Any = (), event_shape: Any = (), validate_args: bool | None = None):
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        if validate_args is not None:
            self._validate_args = validate_args
        if not self._validate_args:
            return
        for name, constraint in self.arg_constraints.items():
            if name not in self.__dict__ or constraints.is_dependent(constraint):
                continue  # an attribute computed on first use
            value = self.__dict__[name]
            if not bool(constraint.check(value.detach()).all()):
                raise ValueError(
                    f"Expected parameter {name} ({type(value).__name__} of shape {tuple(value.shape)}) of distribution {self!r} to satisfy "
                    f"the constraint {constraint!r}, but found invalid values:\n{value}"
                )

    batch_shape = property(lambda self: self._batch_shape, doc="The shape of independent distributions.")
    event_shape = property(lambda self: self._event_shape, doc="The shape of one event.")

    @property
    def support(self) -> Any:
        """Where samples may lie."""
        raise NotImplementedError(f"{type(self).__name__} has no support")

    def _extended_shape(self, sample_shape: Any = ()) -> tuple[int, ...]:
        return (*tuple(sample_shape), *self._batch_shape, *self._event_shape)

    def _validate_sample(self, value: Any) -> None:
        """Raise ValueError where a value has a shape that does not fit or lies outside the support."""
        if not self._validate_args or STATE.run is not None:  # inside a compiled function a look at values would end the segment
            return
        if not isinstance(value, Tensor):
            raise ValueError("The value argument to log_prob must be a Tensor")
        start = value.ndim - len(self._event_shape)
        if tuple(value.shape[start:]) != tuple(self._event_shape):
            raise ValueError(f"The right-most size of value must match event_shape: {Size(value.shape)} vs {self._event_shape}.")
        for given, own in zip(reversed(value.shape), reversed((*self._batch_shape, *self._event_shape)), strict=False):
            if given not in (1, own) and own != 1:
                whole = Size((*self._batch_shape, *self._event_shape))
                raise ValueError(f"Value is not broadcastable with batch_shape+event_shape: {Size(value.shape)} vs {whole}.")
        try:
            support = self.support
        except NotImplementedError:
            warnings.warn(f"{type(self)} does not define `support` to enable sample validation.", stacklevel=3)
            return
        if not bool(support.check(value.detach()).all()):
            raise ValueError(
                f"Expected value argument ({type(value).__name__} of shape {tuple(value.shape)}) to be within the support ({support!r}) of "
                f"the distribution {self!r}, but found invalid values:\n{value}"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded to another batch shape."""
        shape, new = Size(batch_shape), type(self).__new__(type(self))
        old = len(self._batch_shape)
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor) and tuple(value.shape[:old]) == tuple(self._batch_shape):
                value = value.expand((*shape, *value.shape[old:]))
            elif isinstance(value, Distribution):
                value = value.expand((*shape, *value.batch_shape[old:]))
            new.__dict__[name] = value
        new._batch_shape = shape
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples through which gradients reach the parameters. Raises NotImplementedError where that cannot be."""
        raise NotImplementedError(f"{type(self).__name__} has no reparametrized samples")

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples of shape sample_shape + batch_shape + event_shape, off the tape."""
        with no_grad():
            return self.rsample(sample_shape)

    def sample_n(self, n: int) -> Tensor:
        """n samples; `sample((n,))` is the newer way."""
        return self.sample((n,))

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density or probability of a value."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def cdf(self, value: Tensor) -> Tensor:
        """The distribution function."""
        raise NotImplementedError(f"{type(self).__name__} has no cdf")

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function."""
        raise NotImplementedError(f"{type(self).__name__} has no icdf")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, along a first dimension."""
        raise NotImplementedError(f"{type(self).__name__} has no enumerate_support")

    def entropy(self) -> Tensor:
        """The entropy."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    def perplexity(self) -> Tensor:
        """exp of the entropy."""
        return self.entropy().exp()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        raise NotImplementedError(f"{type(self).__name__} has no mean")

    @property
    def mode(self) -> Tensor:
        """The most probable value."""
        raise NotImplementedError(f"{type(self)} does not implement mode")

    @property
    def variance(self) -> Tensor:
        """The variance."""
        raise NotImplementedError(f"{type(self).__name__} has no variance")

    @property
    def stddev(self) -> Tensor:
        """The standard deviation."""
        return self.variance.sqrt()

    def __repr__(self) -> str:
        given = [(n, self.__dict__[n]) for n in self.arg_constraints if n in self.__dict__]
        return f"{type(self).__name__}({', '.join(f'{n}: {v if v.numel() == 1 else v.shape}' for n, v in given)})"


class ExponentialFamily(Distribution):
    """Distributions whose log density is a sum of products of parameters and statistics."""


class LocScale(Distribution):
    """loc + scale * a standard variable."""

    has_rsample = True
    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support: Any = constraints.real

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)


def uniform(d: Distribution, sample_shape: Any, like: Tensor) -> Tensor:
    """Uniform on (0, 1) in the shape of samples of `d`."""
    u = T["rand"](d._extended_shape(sample_shape), dtype=like.dtype if like.dtype.itemsize > 2 else dtypes.float32)
    return u.clamp(min=2.0**-25)  # type: ignore[no-any-return]


LOG_2PI = math.log(2 * math.pi)
EULER = 0.57721566490153286060
