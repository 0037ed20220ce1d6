"""Invertible functions for densities: `t(x)`, `t.inv(y)`, and the logarithm of how volumes change."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torchlet.distributions import constraints
from torchlet.distributions.utils import T, tril_matrix_to_vec, vec_to_tril_matrix
from torchlet.nn.functional import pad, softplus
from torchlet.tensor import Tensor

__all__ = [
    "AbsTransform", "AffineTransform", "CatTransform", "ComposeTransform", "CorrCholeskyTransform", "CumulativeDistributionTransform",
    "ExpTransform", "IndependentTransform", "LowerCholeskyTransform", "PositiveDefiniteTransform", "PowerTransform", "ReshapeTransform",
    "SigmoidTransform", "SoftmaxTransform", "SoftplusTransform", "StackTransform", "StickBreakingTransform", "TanhTransform", "Transform",
    "identity_transform",
]  # fmt: skip


def sum_rightmost(value: Any, dims: int) -> Any:
    """The sum over the last `dims` dimensions."""
    return value.reshape(*value.shape[: value.ndim - dims], -1).sum(-1) if dims else value


class Transform:
    """A function with an inverse. Subclasses give `_call`, `_inverse` and `log_abs_det_jacobian`."""

    bijective = False
    domain: Any = constraints.real
    codomain: Any = constraints.real
    _sign: Any = None

    def __init__(self, cache_size: int = 0):
        if cache_size not in (0, 1):
            raise ValueError("cache_size must be 0 or 1")
        self._cache_size = cache_size
        self._cached: tuple[Any, Any] = (None, None)

    @property
    def event_dim(self) -> int:
        """How many last dimensions are looked at together."""
        if self.domain.event_dim != self.codomain.event_dim:
            raise ValueError("Please use either .domain.event_dim or .codomain.event_dim")
        return int(self.domain.event_dim)

    @property
    def sign(self) -> Any:
        """The sign of the derivative, where it is one everywhere."""
        if self._sign is None:
            raise NotImplementedError(f"{type(self).__name__} has no sign")
        return self._sign

    @property
    def inv(self) -> Transform:
        """The inverse, as a transform."""
        return _Inverse(self)

    def with_cache(self, cache_size: int = 1) -> Transform:
        """The same transform, remembering its last value or not."""
        if self._cache_size == cache_size:
            return self
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, _cache_size=cache_size, _cached=(None, None))
        return new

    def __call__(self, x: Tensor) -> Tensor:
        """The value at x."""
        if self._cache_size == 0:
            return self._call(x)
        old_x, old_y = self._cached
        y = old_y if x is old_x else self._call(x)
        self._cached = (x, y)
        return y  # type: ignore[no-any-return]

    def _inv_call(self, y: Tensor) -> Tensor:
        if self._cache_size == 0:
            return self._inverse(y)
        old_x, old_y = self._cached
        x = old_x if y is old_y else self._inverse(y)
        self._cached = (x, y)
        return x  # type: ignore[no-any-return]

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward function")

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det dy/dx| of each event."""
        raise NotImplementedError(f"{type(self).__name__} has no derivative")

    def forward_shape(self, shape: Any) -> Any:
        """The shape of y for a shape of x."""
        return shape

    def inverse_shape(self, shape: Any) -> Any:
        """The shape of x for a shape of y."""
        return shape

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Inverse(Transform):
    """A transform turned round."""

    def __init__(self, transform: Transform):
        super().__init__()
        self._inv = transform

    inv = property(lambda self: self._inv)  # type: ignore[assignment]
    domain = property(lambda self: self._inv.codomain)
    codomain = property(lambda self: self._inv.domain)
    bijective = property(lambda self: self._inv.bijective)  # type: ignore[assignment]
    sign = property(lambda self: self._inv.sign)

    def with_cache(self, cache_size: int = 1) -> Transform:
        """The inverse of the transform that remembers."""
        return self._inv.with_cache(cache_size).inv

    def __call__(self, x: Tensor) -> Tensor:
        return self._inv._inv_call(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self._inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The negative of the other's."""
        return -self._inv.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: Any) -> Any:
        """The other's inverse shape."""
        return self._inv.inverse_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        """The other's forward shape."""
        return self._inv.forward_shape(shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Inverse) and self._inv == other._inv

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"_InverseTransform({self._inv!r})"


class ComposeTransform(Transform):
    """Several transforms, one after the other."""

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0):
        super().__init__(cache_size)
        self.parts = [p.with_cache(cache_size) for p in parts] if cache_size else list(parts)

    bijective = property(lambda self: all(p.bijective for p in self.parts))  # type: ignore[assignment]
    sign = property(lambda self: functools.reduce(lambda a, p: a * p.sign, self.parts, 1))

    @property
    def inv(self) -> Transform:
        """The inverses in the other order."""
        return ComposeTransform([p.inv for p in reversed(self.parts)])

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The first one's domain, with as many event dimensions as the later ones ask for."""
        if not self.parts:
            return constraints.real
        dims = self.parts[-1].codomain.event_dim
        for part in reversed(self.parts):
            dims = max(dims + part.domain.event_dim - part.codomain.event_dim, part.domain.event_dim)
        return _widened(self.parts[0].domain, dims)

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The last one's codomain, with as many event dimensions as the earlier ones give."""
        if not self.parts:
            return constraints.real
        dims = self.parts[0].domain.event_dim
        for part in self.parts:
            dims = max(dims + part.codomain.event_dim - part.domain.event_dim, part.codomain.event_dim)
        return _widened(self.parts[-1].codomain, dims)

    def with_cache(self, cache_size: int = 1) -> Transform:
        """The composition that remembers."""
        return self if self._cache_size == cache_size else ComposeTransform(self.parts, cache_size)

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def _inv_call(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part._inv_call(y)
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the parts'."""
        if not self.parts:
            return T["zeros_like"](x)  # type: ignore[no-any-return]
        values = [x]
        for part in self.parts[:-1]:
            values.append(part(values[-1]))
        values.append(y)
        dims = self.domain.event_dim
        total: Any = None
        for part, a, b in zip(self.parts, values[:-1], values[1:], strict=True):
            one = sum_rightmost(part.log_abs_det_jacobian(a, b), dims - part.domain.event_dim)
            total = one if total is None else total + one
            dims += part.codomain.event_dim - part.domain.event_dim
        return total  # type: ignore[no-any-return]

    def forward_shape(self, shape: Any) -> Any:
        """Through all parts."""
        return functools.reduce(lambda s, p: p.forward_shape(s), self.parts, shape)

    def inverse_shape(self, shape: Any) -> Any:
        """Back through all parts."""
        return functools.reduce(lambda s, p: p.inverse_shape(s), reversed(self.parts), shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComposeTransform) and self.parts == other.parts

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "ComposeTransform(\n    " + ",\n    ".join(map(repr, self.parts)) + "\n)"


def _widened(constraint: Any, dims: int) -> Any:
    return constraint if dims == constraint.event_dim else constraints.independent(constraint, dims - constraint.event_dim)


identity_transform = ComposeTransform([])


class IndependentTransform(Transform):
    """A transform whose last `reinterpreted_batch_ndims` dimensions belong to one event."""

    def __init__(self, base_transform: Transform, reinterpreted_batch_ndims: int, cache_size: int = 0):
        super().__init__(cache_size)
        self.base_transform = base_transform.with_cache(cache_size)
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims

    domain = property(lambda self: constraints.independent(self.base_transform.domain, self.reinterpreted_batch_ndims))
    codomain = property(lambda self: constraints.independent(self.base_transform.codomain, self.reinterpreted_batch_ndims))
    bijective = property(lambda self: self.base_transform.bijective)  # type: ignore[assignment]
    sign = property(lambda self: self.base_transform.sign)

    def _call(self, x: Tensor) -> Tensor:
        if x.ndim < self.domain.event_dim:
            raise ValueError("Too few dimensions on input")
        return self.base_transform(x)

    def _inverse(self, y: Tensor) -> Tensor:
        if y.ndim < self.codomain.event_dim:
            raise ValueError("Too few dimensions on input")
        return self.base_transform._inv_call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The base's, summed over the event."""
        return sum_rightmost(self.base_transform.log_abs_det_jacobian(x, y), self.reinterpreted_batch_ndims)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"IndependentTransform({self.base_transform!r}, {self.reinterpreted_batch_ndims})"


class ReshapeTransform(Transform):
    """Events of one shape as events of another."""

    bijective = True

    def __init__(self, in_shape: Any, out_shape: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if math.prod(self.in_shape) != math.prod(self.out_shape):
            raise ValueError("in_shape, out_shape have different numbers of elements")

    domain = property(lambda self: constraints.independent(constraints.real, len(self.in_shape)))
    codomain = property(lambda self: constraints.independent(constraints.real, len(self.out_shape)))

    def _call(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.ndim - len(self.in_shape)], *self.out_shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.reshape(*y.shape[: y.ndim - len(self.out_shape)], *self.in_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """0."""
        return x.new_zeros(tuple(x.shape[: x.ndim - len(self.in_shape)]))

    def forward_shape(self, shape: Any) -> Any:
        """The event's shape exchanged."""
        cut = len(shape) - len(self.in_shape)
        if tuple(shape[cut:]) != self.in_shape:
            raise ValueError(f"Shape mismatch: expected {shape[cut:]} but got {self.in_shape}")
        return (*shape[:cut], *self.out_shape)

    def inverse_shape(self, shape: Any) -> Any:
        """The event's shape exchanged."""
        cut = len(shape) - len(self.out_shape)
        if tuple(shape[cut:]) != self.out_shape:
            raise ValueError(f"Shape mismatch: expected {shape[cut:]} but got {self.out_shape}")
        return (*shape[:cut], *self.in_shape)


class _Plain(Transform):
    """A transform without parameters: all of a class are equal."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = object.__hash__


def _elementwise(
    name: str,
    doc: str,
    forward: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    log_slope: Callable[[Tensor, Tensor], Tensor],
    **of: Any,
) -> Any:
    """A transform of each element by itself, without parameters."""
    members: dict[str, Any] = {
        "__doc__": doc, "__module__": __name__, "bijective": True, "_sign": 1, **of,
        "_call": lambda self, x: forward(x), "_inverse": lambda self, y: back(y),
        "log_abs_det_jacobian": lambda self, x, y: log_slope(x, y),
    }  # fmt: skip
    return type(name, (_Plain,), members)


ExpTransform = _elementwise("ExpTransform", "exp(x).", lambda x: x.exp(), lambda y: y.log(), lambda x, y: x, codomain=constraints.positive)
SigmoidTransform = _elementwise(
    "SigmoidTransform", "1 / (1 + exp(-x)).", lambda x: _inside(x.sigmoid()), lambda y: _inside(y).log() - (-_inside(y)).log1p(),
    lambda x, y: -softplus(-x) - softplus(x), codomain=constraints.unit_interval,
)  # fmt: skip
SoftplusTransform = _elementwise(
    "SoftplusTransform", "log(1 + exp(x)).", softplus, lambda y: (-y).expm1().neg().log() + y, lambda x, y: -softplus(-x),
    codomain=constraints.positive,
)  # fmt: skip
TanhTransform = _elementwise(
    "TanhTransform", "tanh(x).", lambda x: x.tanh(), lambda y: y.atanh(), lambda x, y: 2.0 * (math.log(2.0) - x - softplus(-2.0 * x)),
    codomain=constraints.interval(-1.0, 1.0),
)  # fmt: skip
AbsTransform = _elementwise(
    "AbsTransform", "|x|, which is not invertible: `inv` gives the positive one.", lambda x: x.abs(), lambda y: y, lambda x, y: x * 0.0,
    codomain=constraints.positive, bijective=False, _sign=None,
)  # fmt: skip


def _inside(p: Tensor) -> Tensor:
    """Probabilities that do not reach 0 or 1."""
    info = T["finfo"](p.dtype)
    return p.clamp(info.tiny, 1.0 - info.eps)


class PowerTransform(Transform):
    """x ** exponent of positive numbers."""

    domain = codomain = constraints.positive
    bijective = True

    def __init__(self, exponent: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.exponent = exponent if isinstance(exponent, Tensor) else T["tensor"](float(exponent))

    sign = property(lambda self: self.exponent.sign())

    def _call(self, x: Tensor) -> Tensor:
        return x.pow(self.exponent)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.pow(1 / self.exponent)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |exponent y / x|."""
        return (self.exponent * y / x).abs().log()  # type: ignore[no-any-return]

    def forward_shape(self, shape: Any) -> Any:
        """Broadcast with the exponent."""
        return T["broadcast_shapes"](tuple(shape), tuple(self.exponent.shape))

    inverse_shape = forward_shape


class AffineTransform(Transform):
    """loc + scale * x."""

    bijective = True

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0, cache_size: int = 0):
        super().__init__(cache_size)
        self.loc, self.scale, self._event_dim = loc, scale, event_dim

    event_dim = property(lambda self: self._event_dim)
    domain = property(lambda self: _widened(constraints.real, self._event_dim))
    codomain = domain

    @property
    def sign(self) -> Any:
        """The sign of the scale."""
        return self.scale.sign() if isinstance(self.scale, Tensor) else (self.scale > 0) - (self.scale < 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AffineTransform):
            return False
        return all(bool(T["as_tensor"](a == b).all()) for a, b in ((self.loc, other.loc), (self.scale, other.scale)))

    __hash__ = object.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x  # type: ignore[no-any-return]

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale  # type: ignore[no-any-return]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |scale|."""
        size = self.scale.abs().log() if isinstance(self.scale, Tensor) else math.log(abs(self.scale))
        return sum_rightmost(T["zeros_like"](x) + size, self._event_dim)  # type: ignore[no-any-return]

    def forward_shape(self, shape: Any) -> Any:
        """Broadcast with loc and scale."""
        return T["broadcast_shapes"](tuple(shape), *[tuple(v.shape) for v in (self.loc, self.scale) if isinstance(v, Tensor)])

    inverse_shape = forward_shape


class SoftmaxTransform(_Plain):
    """The softmax of vectors, which is not invertible; log is its right inverse."""

    domain, codomain = constraints.real_vector, constraints.simplex

    def _call(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.log()


class StickBreakingTransform(_Plain):
    """n numbers to n + 1 shares of a stick: each breaks off a part of what is left."""

    domain, codomain = constraints.real_vector, constraints.simplex
    bijective = True

    def _offset(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return T["arange"](n, 0, -1, dtype=x.dtype).log()  # type: ignore[no-any-return]

    def _call(self, x: Tensor) -> Tensor:
        z = _inside((x - self._offset(x)).sigmoid())
        left = (1 - z).cumprod(-1)
        return pad(z, [0, 1], value=1) * pad(left, [1, 0], value=1)

    def _inverse(self, y: Tensor) -> Tensor:
        head = y[..., :-1]
        left = (1 - head.cumsum(-1)).clamp(min=T["finfo"](y.dtype).tiny)
        return head.log() - left.log() + self._offset(head)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each vector."""
        x = x - self._offset(x)
        return (y[..., :-1].log() - softplus(x)).sum(-1)

    def forward_shape(self, shape: Any) -> Any:
        """One more."""
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: Any) -> Any:
        """One less."""
        return (*shape[:-1], shape[-1] - 1)


class LowerCholeskyTransform(_Plain):
    """Square matrices to lower triangular ones with a positive diagonal."""

    domain, codomain = constraints.independent(constraints.real, 2), constraints.lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + T["diag_embed"](x.diagonal(0, -2, -1).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        return y.tril(-1) + T["diag_embed"](y.diagonal(0, -2, -1).log())


class PositiveDefiniteTransform(_Plain):
    """Square matrices to positive definite ones, through a Cholesky factor."""

    domain, codomain = constraints.independent(constraints.real, 2), constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        lower = LowerCholeskyTransform()(x)
        return lower @ lower.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return LowerCholeskyTransform()._inverse(T["cholesky"](y))


class CorrCholeskyTransform(_Plain):
    """Vectors of n (n - 1) / 2 numbers to Cholesky factors of correlation matrices of size n."""

    domain, codomain = constraints.real_vector, constraints.corr_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        r = vec_to_tril_matrix(x.tanh(), -1)
        eps = T["finfo"](x.dtype).eps
        r = r.clamp(-1 + eps, 1 - eps)
        z = r**2
        left = (1 - z).sqrt().cumprod(-1)
        r = r + T["eye"](r.shape[-1], dtype=r.dtype)
        return r * pad(left[..., :-1], [1, 0], value=1)

    def _inverse(self, y: Tensor) -> Tensor:
        left = 1 - (y * y).cumsum(-1)
        left = pad(left[..., :-1], [1, 0], value=1)
        values, sizes = tril_matrix_to_vec(y, -1), tril_matrix_to_vec(left, -1)
        return (values / sizes.sqrt()).atanh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each vector."""
        left = 1 - (y * y).cumsum(-1)
        sizes = tril_matrix_to_vec(left, -2)
        return 0.5 * sizes.log().sum(-1) - 2 * (x + softplus(-2 * x) - math.log(2.0)).sum(-1)  # type: ignore[no-any-return]

    def forward_shape(self, shape: Any) -> Any:
        """The size of the matrix."""
        n = round((0.25 + 2 * shape[-1]) ** 0.5 + 0.5)
        if n * (n - 1) // 2 != shape[-1]:
            raise ValueError("Input is not a flattened lower-diagonal number")
        return (*shape[:-1], n, n)

    def inverse_shape(self, shape: Any) -> Any:
        """The number of entries below the diagonal."""
        if shape[-1] != shape[-2]:
            raise ValueError("Input is not square")
        return (*shape[:-2], shape[-1] * (shape[-1] - 1) // 2)


class CumulativeDistributionTransform(Transform):
    """The distribution function of a distribution of numbers."""

    bijective = True
    codomain = constraints.unit_interval
    _sign = 1

    def __init__(self, distribution: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.distribution = distribution

    domain = property(lambda self: self.distribution.support)

    def _call(self, x: Tensor) -> Tensor:
        return self.distribution.cdf(x)  # type: ignore[no-any-return]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.distribution.icdf(y)  # type: ignore[no-any-return]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log density."""
        return self.distribution.log_prob(x)  # type: ignore[no-any-return]


class CatTransform(Transform):
    """Transforms of pieces of the given lengths along `dim`."""

    def __init__(self, tseq: Sequence[Transform], dim: int = 0, lengths: Sequence[int] | None = None, cache_size: int = 0):
        super().__init__(cache_size)
        self.transforms, self.dim = [t.with_cache(cache_size) for t in tseq], dim
        self.lengths = [1] * len(self.transforms) if lengths is None else list(lengths)

    bijective = property(lambda self: all(t.bijective for t in self.transforms))  # type: ignore[assignment]
    domain = property(lambda self: constraints.cat([t.domain for t in self.transforms], self.dim, self.lengths))
    codomain = property(lambda self: constraints.cat([t.codomain for t in self.transforms], self.dim, self.lengths))

    def _split(self, x: Tensor) -> Any:
        return x.split(self.lengths, self.dim)

    def _join(self, parts: list[Tensor]) -> Tensor:
        return T["cat"](parts, self.dim)  # type: ignore[no-any-return]

    def _call(self, x: Tensor) -> Tensor:
        return self._join([t(v) for t, v in zip(self.transforms, self._split(x), strict=True)])

    def _inverse(self, y: Tensor) -> Tensor:
        return self._join([t._inv_call(v) for t, v in zip(self.transforms, self._split(y), strict=True)])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The pieces' side by side."""
        parts = []
        for t, a, b in zip(self.transforms, self._split(x), self._split(y), strict=True):
            parts.append(sum_rightmost(t.log_abs_det_jacobian(a, b), self.event_dim - t.domain.event_dim))
        return self._join(parts)


class StackTransform(CatTransform):
    """Transforms of the slices of `dim`."""

    def __init__(self, tseq: Sequence[Transform], dim: int = 0, cache_size: int = 0):
        super().__init__(tseq, dim, None, cache_size)

    domain = property(lambda self: constraints.stack([t.domain for t in self.transforms], self.dim))
    codomain = property(lambda self: constraints.stack([t.codomain for t in self.transforms], self.dim))

    def _split(self, x: Tensor) -> Any:
        return x.unbind(self.dim)

    def _join(self, parts: list[Tensor]) -> Tensor:
        return T["stack"](parts, self.dim)  # type: ignore[no-any-return]
