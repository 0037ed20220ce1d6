"""Parameter and Buffer: tensors that a Module registers when they are assigned as attributes."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchlet import ops, storage
from torchlet.autograd import force
from torchlet.tensor import Array, Parameter, Storage, Tensor, new, share, wrap

__all__ = ["Buffer", "Parameter", "UninitializedParameter", "fresh_parameter"]


def _same_memory(cls: type[Any], data: Tensor, requires_grad: bool) -> Any:
    """A leaf of class `cls` over the memory of `data`."""
    if requires_grad and not data.dtype.has_gradient:
        raise RuntimeError(f"{cls.__name__}: Only Tensors of floating point and complex dtype can require gradients; got {data.dtype}")
    array = force(data)
    share(data)
    t = new(cls)
    t._np, t._store, t._meta = array, data._store, data._meta.replace(requires_grad=requires_grad)
    return t


def _new_parameter(cls: type[Parameter], data: Tensor | None = None, requires_grad: bool = True) -> Parameter:
    """A leaf tensor over the memory of `data` that requires grad."""
    if data is None:
        data = ops.empty(0)
    if not isinstance(data, Tensor):
        raise TypeError(f"Parameter: data of type {type(data).__name__}; expected a Tensor")
    return _same_memory(cls, data, requires_grad)  # type: ignore[no-any-return]


def fresh_parameter(data: Tensor) -> Parameter:
    """A parameter that takes over the memory of `data`, which nobody else may hold."""
    t = new(Parameter)
    t._np, t._store, t._meta = force(data), Storage(), data._meta.replace(requires_grad=True)
    return t


def _copy_parameter(self: Parameter, memo: dict[int, Any]) -> Parameter:
    if id(self) in memo:
        return memo[id(self)]  # type: ignore[no-any-return]
    copied = _rebuild_parameter(storage.copy(force(self)), self.requires_grad)
    copied.__class__ = self.__class__
    memo[id(self)] = copied
    return copied


def _rebuild_parameter(array: Array, requires_grad: bool) -> Parameter:
    return fresh_parameter(wrap(array)).requires_grad_(requires_grad)  # type: ignore[return-value]


def _reduce_parameter(self: Parameter, protocol: Any) -> Any:
    return _rebuild_parameter, (np.ascontiguousarray(storage.as_host(force(self))).reshape(self.shape), self.requires_grad)


Parameter.__new__ = _new_parameter  # type: ignore[method-assign,assignment]
Parameter.__deepcopy__ = _copy_parameter  # type: ignore[method-assign,assignment]
Parameter.__reduce_ex__ = _reduce_parameter  # type: ignore[method-assign,assignment]
Parameter.__repr__ = lambda self: "Parameter containing:\n" + Tensor.__repr__(self)  # type: ignore[method-assign]


class Buffer(Tensor):
    """A tensor that a Module registers as a buffer when it is assigned; `persistent=False` keeps it out of `state_dict`."""

    persistent: bool

    def __new__(cls, data: Tensor | None = None, *, persistent: bool = True) -> Buffer:
        """A buffer over the memory of `data`."""
        t: Buffer = _same_memory(cls, ops.empty(0) if data is None else data, False)
        t.persistent = persistent
        return t

    def __init__(self, data: Tensor | None = None, *, persistent: bool = True) -> None:
        """All is done by `__new__`."""


class UninitializedParameter(Parameter):
    """A parameter whose shape is not known yet (lazy layers)."""

    def __new__(cls, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> UninitializedParameter:
        """Nothing but the promise of a parameter."""
        return _same_memory(cls, ops.empty(0, dtype=dtype), requires_grad)  # type: ignore[no-any-return]

    def __init__(self, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> None:
        """All is done by `__new__`."""

    @property
    def shape(self) -> Any:
        """Raises RuntimeError: it is not known before the first forward pass."""
        raise RuntimeError(
            "Can't access the shape of an uninitialized parameter or buffer. This error usually happens in `load_state_dict` "
            "when trying to load an "
            "uninitialized parameter into an initialized one. Call `forward` to initialize the parameters before accessing "
            "their attributes."
        )

    def become(self, other: Parameter) -> None:
        """Take over the memory of `other`; from now on an ordinary Parameter, the same object."""
        self._np, self._store, self._meta = force(other), other._store, other._meta.replace(requires_grad=self.requires_grad)
        self.__class__ = Parameter  # type: ignore[assignment]

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        """Take a shape; the values are not set."""
        self.become(fresh_parameter(ops.empty(*shape, dtype=dtype or self.dtype)))

    def __repr__(self) -> str:
        return "<UninitializedParameter>"
