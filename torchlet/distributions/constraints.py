"""What values a parameter or a sample may take: `constraint.check(value)` is true for each event that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchlet.ops.linalg import LINALG
from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Tensor

__all__ = [
    "Constraint", "boolean", "cat", "corr_cholesky", "dependent", "dependent_property", "greater_than", "greater_than_eq",
    "half_open_interval", "independent", "integer_interval", "interval", "is_dependent", "less_than", "lower_cholesky",
    "lower_triangular", "multinomial", "nonnegative", "nonnegative_integer", "one_hot", "positive", "positive_definite",
    "positive_integer", "positive_semidefinite", "real", "real_vector", "simplex", "square", "stack", "symmetric", "unit_interval",
]  # fmt: skip


class Constraint:
    """A set of allowed values; events have `event_dim` dimensions."""

    is_discrete = False
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        """True for each event of `value` that is allowed."""
        raise NotImplementedError(f"{type(self).__name__} cannot be checked")

    def __repr__(self) -> str:
        return type(self).__name__.lstrip("_") + "()"


class _Simple(Constraint):
    """A constraint given by a function."""

    def __init__(self, name: str, check: Callable[[Tensor], Tensor], event_dim: int = 0, is_discrete: bool = False):
        self.name, self._check, self.event_dim, self.is_discrete = name, check, event_dim, is_discrete

    def check(self, value: Tensor) -> Tensor:
        """True for each event of `value` that is allowed."""
        return self._check(value)

    def __repr__(self) -> str:
        return f"{self.name}()"


class _Dependent(Constraint):
    """A support that depends on other parameters."""

    def __init__(self, *, is_discrete: bool = False, event_dim: int = 0):
        self.is_discrete, self.event_dim = is_discrete, event_dim

    def __call__(self, *, is_discrete: bool | None = None, event_dim: int | None = None) -> _Dependent:
        return _Dependent(
            is_discrete=self.is_discrete if is_discrete is None else is_discrete,
            event_dim=self.event_dim if event_dim is None else event_dim,
        )

    def check(self, value: Tensor) -> Tensor:
        """Raises ValueError: it is known only for an instance of the distribution."""
        raise ValueError("Cannot determine validity of dependent constraint")


def is_dependent(constraint: Any) -> bool:
    """True for a constraint that is known only for an instance of the distribution."""
    return isinstance(constraint, _Dependent)


class dependent_property(property, _Dependent):
    """A property that gives the constraint of an instance, and is a dependent constraint of the class."""

    def __init__(self, fn: Any = None, *, is_discrete: bool = False, event_dim: int = 0):
        super().__init__(fn)
        self.is_discrete, self.event_dim = is_discrete, event_dim

    def __call__(self, fn: Any) -> dependent_property:  # type: ignore[override]
        return dependent_property(fn, is_discrete=self.is_discrete, event_dim=self.event_dim)


class _Bounded(Constraint):
    """Numbers between two bounds."""

    def __init__(self, **bounds: Any):
        self.__dict__.update(bounds)
        self._names = tuple(bounds)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)}' for n in self._names)})"


class GreaterThan(_Bounded):
    """x > lower_bound."""

    def __init__(self, lower_bound: Any):
        super().__init__(lower_bound=lower_bound)

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return value > self.lower_bound  # type: ignore[attr-defined,no-any-return]


class GreaterThanEq(_Bounded):
    """x >= lower_bound."""

    def __init__(self, lower_bound: Any):
        super().__init__(lower_bound=lower_bound)

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return value >= self.lower_bound  # type: ignore[attr-defined,no-any-return]


class LessThan(_Bounded):
    """x < upper_bound."""

    def __init__(self, upper_bound: Any):
        super().__init__(upper_bound=upper_bound)

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return value < self.upper_bound  # type: ignore[attr-defined,no-any-return]


class Interval(_Bounded):
    """lower_bound <= x <= upper_bound."""

    def __init__(self, lower_bound: Any, upper_bound: Any):
        super().__init__(lower_bound=lower_bound, upper_bound=upper_bound)

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return (value >= self.lower_bound) & (value <= self.upper_bound)  # type: ignore[attr-defined,no-any-return]


class HalfOpenInterval(Interval):
    """lower_bound <= x < upper_bound."""

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return (value >= self.lower_bound) & (value < self.upper_bound)  # type: ignore[attr-defined,no-any-return]


def _whole(value: Tensor) -> Tensor:
    return value.eq(value.floor()) if value.dtype.is_floating_point else value.eq(value)


class IntegerInterval(Interval):
    """Whole numbers from lower_bound to upper_bound."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return _whole(value) & super().check(value)


class IntegerGreaterThan(GreaterThanEq):
    """Whole numbers from lower_bound on."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """True where it holds."""
        return _whole(value) & super().check(value)


class Multinomial(_Bounded):
    """Vectors of counts that sum to at most upper_bound."""

    is_discrete = True
    event_dim = 1

    def __init__(self, upper_bound: Any):
        super().__init__(upper_bound=upper_bound)

    def check(self, x: Tensor) -> Tensor:
        """True for each vector for which it holds."""
        return (x >= 0).all(-1) & (x.sum(-1) <= self.upper_bound)  # type: ignore[attr-defined,no-any-return]


class IndependentConstraint(Constraint):
    """A constraint on each entry of a larger event."""

    def __init__(self, base_constraint: Constraint, reinterpreted_batch_ndims: int):
        self.base_constraint, self.reinterpreted_batch_ndims = base_constraint, reinterpreted_batch_ndims

    is_discrete = property(lambda self: self.base_constraint.is_discrete)  # type: ignore[assignment]
    event_dim = property(lambda self: self.base_constraint.event_dim + self.reinterpreted_batch_ndims)  # type: ignore[assignment]

    def check(self, value: Tensor) -> Tensor:
        """True for each event all of whose entries are allowed."""
        if value.ndim < self.event_dim:
            raise ValueError(f"Expected value.dim() >= {self.event_dim} but got {value.ndim}")
        out = self.base_constraint.check(value)
        n = self.reinterpreted_batch_ndims
        return out.reshape(*out.shape[: out.ndim - n], -1).all(-1) if n else out

    def __repr__(self) -> str:
        return f"IndependentConstraint({self.base_constraint!r}, {self.reinterpreted_batch_ndims})"


class _Joined(Constraint):
    """Constraints on pieces along a dimension."""

    def __init__(self, cseq: Sequence[Constraint], dim: int = 0, lengths: Sequence[int] | None = None):
        self.cseq, self.dim = list(cseq), dim
        self.lengths = [1] * len(self.cseq) if lengths is None else list(lengths)

    is_discrete = property(lambda self: any(c.is_discrete for c in self.cseq))  # type: ignore[assignment]
    event_dim = property(lambda self: max(c.event_dim for c in self.cseq))  # type: ignore[assignment]


class cat(_Joined):
    """Constraints on pieces of the given lengths along `dim`."""

    def check(self, value: Tensor) -> Tensor:
        """True where each piece is allowed."""
        pieces = value.split(self.lengths, self.dim)
        return FUNCTIONS["cat"]([c.check(v) for c, v in zip(self.cseq, pieces, strict=True)], self.dim)  # type: ignore[no-any-return]


class stack(_Joined):
    """Constraints on the slices of `dim`."""

    def check(self, value: Tensor) -> Tensor:
        """True where each slice is allowed."""
        return FUNCTIONS["stack"]([c.check(v) for c, v in zip(self.cseq, value.unbind(self.dim), strict=True)], self.dim)  # type: ignore[no-any-return]


def _symmetric(value: Tensor) -> Tensor:
    return FUNCTIONS["isclose"](value, value.mT, atol=1e-6).all(-2).all(-1)  # type: ignore[no-any-return]


def _lower(value: Tensor) -> Tensor:
    return value.tril().eq(value).all(-2).all(-1)


def _positive_diagonal(value: Tensor) -> Tensor:
    return (value.diagonal(0, -2, -1) > 0).all(-1)


def _eigenvalues(value: Tensor) -> Tensor:
    return LINALG["eigvalsh"](value)  # type: ignore[no-any-return]


def _corr_cholesky(value: Tensor) -> Tensor:
    unit = ((value**2).sum(-1) - 1).abs() < FUNCTIONS["finfo"](value.dtype).eps * value.shape[-1] * 10
    return _lower(value) & _positive_diagonal(value) & unit.all(-1)


dependent = _Dependent()
independent, interval, half_open_interval, integer_interval = IndependentConstraint, Interval, HalfOpenInterval, IntegerInterval
greater_than, greater_than_eq, less_than, multinomial = GreaterThan, GreaterThanEq, LessThan, Multinomial
boolean = _Simple("Boolean", lambda x: x.eq(0) | x.eq(1), is_discrete=True)
one_hot = _Simple("OneHot", lambda x: (x.eq(0) | x.eq(1)).all(-1) & x.sum(-1).eq(1), 1, True)
nonnegative_integer, positive_integer = IntegerGreaterThan(0), IntegerGreaterThan(1)
real = _Simple("Real", lambda x: x.eq(x))  # False for NaN
real_vector = IndependentConstraint(real, 1)
positive, nonnegative, unit_interval = GreaterThan(0.0), GreaterThanEq(0.0), Interval(0.0, 1.0)
simplex = _Simple("Simplex", lambda x: (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < 1e-6), 1)
lower_triangular = _Simple("LowerTriangular", _lower, 2)
lower_cholesky = _Simple("LowerCholesky", lambda x: _lower(x) & _positive_diagonal(x), 2)
corr_cholesky = _Simple("CorrCholesky", _corr_cholesky, 2)
square = _Simple("Square", lambda x: FUNCTIONS["full"](tuple(x.shape[:-2]), x.shape[-1] == x.shape[-2]), 2)
symmetric = _Simple("Symmetric", _symmetric, 2)
positive_semidefinite = _Simple("PositiveSemidefinite", lambda x: _symmetric(x) & (_eigenvalues(x) >= 0).all(-1), 2)
positive_definite = _Simple("PositiveDefinite", lambda x: _symmetric(x) & (_eigenvalues(x) > 0).all(-1), 2)
