"""Transforms from all real numbers to what a constraint allows: `biject_to` (invertible) and `transform_to`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchlet.distributions import constraints, transforms

__all__ = ["ConstraintRegistry", "biject_to", "transform_to"]


class ConstraintRegistry:
    """Constraints and how a transform to each is made."""

    def __init__(self) -> None:
        self._made: dict[Any, Callable[[Any], Any]] = {}

    def register(self, constraint: Any, factory: Any = None) -> Any:
        """Enter a factory for a constraint (an object) or a class of them; without a factory, a decorator."""
        if factory is None:
            return lambda f: self.register(constraint, f)
        if isinstance(constraint, constraints.Constraint) and not isinstance(constraint, constraints._Simple):
            constraint = type(constraint)
        self._made[constraint] = factory
        return factory

    def __call__(self, constraint: Any) -> Any:
        """The transform to a constraint. Raises NotImplementedError for one that is not entered."""
        for kind in (constraint, *type(constraint).__mro__):
            if kind.__hash__ is not None and kind in self._made:
                return self._made[kind](constraint)
        raise NotImplementedError(f"Cannot transform {type(constraint).__name__} constraints")


biject_to, transform_to = ConstraintRegistry(), ConstraintRegistry()


def _both(constraint: Any, factory: Callable[[Any], Any]) -> None:
    biject_to.register(constraint, factory)
    transform_to.register(constraint, factory)


def _interval(c: Any) -> Any:
    if all(isinstance(b, int | float) for b in (c.lower_bound, c.upper_bound)) and (c.lower_bound, c.upper_bound) == (0, 1):
        return transforms.SigmoidTransform()
    return transforms.ComposeTransform(
        [transforms.SigmoidTransform(), transforms.AffineTransform(c.lower_bound, c.upper_bound - c.lower_bound)]
    )


def _above(c: Any) -> Any:
    at_zero = isinstance(c.lower_bound, int | float) and c.lower_bound == 0
    parts = [transforms.ExpTransform(), transforms.AffineTransform(c.lower_bound, 1)]
    return parts[0] if at_zero else transforms.ComposeTransform(parts)


_both(constraints.real, lambda c: transforms.identity_transform)
for _kind in (constraints.GreaterThan, constraints.GreaterThanEq):
    _both(_kind, _above)
_both(
    constraints.LessThan, lambda c: transforms.ComposeTransform([transforms.ExpTransform(), transforms.AffineTransform(c.upper_bound, -1)])
)
for _range in (constraints.Interval, constraints.HalfOpenInterval):
    _both(_range, _interval)
_both(constraints.lower_cholesky, lambda c: transforms.LowerCholeskyTransform())
_both(constraints.positive_definite, lambda c: transforms.PositiveDefiniteTransform())
_both(constraints.positive_semidefinite, lambda c: transforms.PositiveDefiniteTransform())
_both(constraints.corr_cholesky, lambda c: transforms.CorrCholeskyTransform())
biject_to.register(constraints.simplex, lambda c: transforms.StickBreakingTransform())
transform_to.register(constraints.simplex, lambda c: transforms.SoftmaxTransform())


def _enter_made_of_others(made: ConstraintRegistry) -> None:
    joined = transforms.IndependentTransform
    made.register(constraints.IndependentConstraint, lambda c: joined(made(c.base_constraint), c.reinterpreted_batch_ndims))
    made.register(constraints.cat, lambda c: transforms.CatTransform([made(x) for x in c.cseq], c.dim, c.lengths))
    made.register(constraints.stack, lambda c: transforms.StackTransform([made(x) for x in c.cseq], c.dim))


_enter_made_of_others(biject_to)
_enter_made_of_others(transform_to)
