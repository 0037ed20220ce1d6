"""torchlet.library: operators of one's own. They are Python functions; a gradient makes them autograd functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torchlet.autograd import Function

__all__ = ["CustomOpDef", "custom_op", "register_autograd", "register_fake", "register_kernel"]

_OPS: dict[str, CustomOpDef] = {}


class CustomOpDef:
    """An operator `namespace::name`; called like the function it was made from."""

    def __init__(self, name: str, fn: Callable[..., Any]):
        self._name, self._fn = name, fn
        self._function: Any = None
        self.__name__, self.__doc__ = getattr(fn, "__name__", name), fn.__doc__

    def register_fake(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Accepted: shapes are those of the results."""
        return fn

    def register_kernel(self, device_types: Any, fn: Callable[..., Any] | None = None) -> Any:
        """Use another function on "cpu"; other device types are kept aside."""

        def take(f: Callable[..., Any]) -> Callable[..., Any]:
            kinds = (device_types,) if isinstance(device_types, str) or device_types is None else tuple(device_types)
            if None in kinds or "cpu" in kinds:
                self._fn = f
            return f

        return take if fn is None else take(fn)

    def register_autograd(self, backward: Callable[..., Any], /, *, setup_context: Callable[..., Any] | None = None) -> None:
        """`backward(ctx, *grads)` gives the gradients of the inputs; `setup_context(ctx, inputs, output)` saves what it needs."""
        owner = self

        class _Op(Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                out = owner._fn(*args)
                if setup_context is not None:
                    setup_context(ctx, args, out)
                return out

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return backward(ctx, *grads)

        _Op.__name__ = self.__name__
        self._function = _Op

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fn(*args, **kwargs) if self._function is None or kwargs else self._function.apply(*args)

    def __repr__(self) -> str:
        return f"<CustomOpDef({self._name})>"


def custom_op(name: str, fn: Callable[..., Any] | None = None, /, *, mutates_args: str | Iterable[str] = (), **_: Any) -> Any:
    """Make a function an operator `namespace::name`; a decorator without `fn`. Raises ValueError for a name without a namespace."""
    if name.count("::") != 1:
        raise ValueError(f"custom_op: name is '{name}'; expected 'namespace::name'")

    def make(f: Callable[..., Any]) -> CustomOpDef:
        _OPS[name] = CustomOpDef(name, f)
        return _OPS[name]

    return make if fn is None else make(fn)


def _of(op: Any) -> CustomOpDef:
    found = op if isinstance(op, CustomOpDef) else _OPS.get(str(op))
    if found is None:
        raise RuntimeError(f"library: there is no operator '{op}'; expected one made by custom_op")
    return found


def register_autograd(op: Any, backward: Callable[..., Any], /, *, setup_context: Callable[..., Any] | None = None, **_: Any) -> None:
    """Give an operator (or the one of a name) its gradient."""
    _of(op).register_autograd(backward, setup_context=setup_context)


def register_fake(op: Any, func: Callable[..., Any] | None = None, /, **_: Any) -> Any:
    """Accepted: shapes are those of the results."""
    _of(op)
    return (lambda f: f) if func is None else func


def register_kernel(op: Any, device_types: Any, func: Callable[..., Any] | None = None, /, **_: Any) -> Any:
    """Use another function for a kind of device."""
    return _of(op).register_kernel(device_types, func)
