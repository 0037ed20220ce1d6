"""Parameters that are computed from others: `module.weight` becomes a function of what is trained."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torchlet.autograd import no_grad
from torchlet.nn.container import ModuleDict, ModuleList
from torchlet.nn.module import Module
from torchlet.nn.parameter import Parameter
from torchlet.tensor import Tensor

__all__ = [
    "ParametrizationList",
    "cached",
    "is_parametrized",
    "register_parametrization",
    "remove_parametrizations",
    "transfer_parametrizations_and_params",
    "type_before_parametrizations",
]

_cache: dict[tuple[int, str], Tensor] = {}
_cached = 0


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Inside, every parametrized tensor is computed once."""
    global _cached
    _cached += 1
    try:
        yield
    finally:
        _cached -= 1
        if not _cached:
            _cache.clear()


class ParametrizationList(ModuleList):
    """The parametrizations of one tensor and what they start from: `original`, or `original0`, `original1`, …."""

    def __init__(self, modules: Sequence[Module], original: Tensor, unsafe: bool = False) -> None:
        if not modules:
            raise ValueError("ParametrizationList requires one or more modules.")
        super().__init__(modules)
        self.unsafe = unsafe
        with no_grad():
            new: Any = original
            for module in reversed(list(self)):
                if hasattr(module, "right_inverse"):
                    with contextlib.suppress(NotImplementedError):  # one that has none starts from the tensor as it is
                        new = module.right_inverse(new)
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if self.is_tensor else len(new)
        if self.is_tensor:
            if not unsafe and new.dtype is not original.dtype:
                raise ValueError(
                    f"When `right_inverse` outputs one tensor, it may not change the dtype. original.dtype: {original.dtype}, "
                    f"new.dtype: {new.dtype}"
                )
            self._hold("original", original, new)
        else:
            for i, part in enumerate(new):
                if not isinstance(part, Tensor):
                    raise ValueError(
                        f"right_inverse must return a Tensor or a Sequence of tensors; got element {i} of type {type(part).__name__}"
                    )
                self._hold(f"original{i}", original, part)
        if not unsafe:
            made = self()
            if not isinstance(made, Tensor) or made.dtype is not original.dtype or made.shape != original.shape:
                raise ValueError(
                    f"A parametrization may not change the dtype or the shape of the tensor, unless the `unsafe` flag is enabled. "
                    f"Original: {original.dtype} {tuple(original.shape)}, parametrized: {getattr(made, 'dtype', None)} "
                    f"{tuple(getattr(made, 'shape', ()))}"
                )

    def _hold(self, name: str, original: Tensor, value: Tensor) -> None:
        if isinstance(original, Parameter):
            self.register_parameter(name, original if value is original else Parameter(value.detach(), original.requires_grad))
        else:
            self.register_buffer(name, value)

    def right_inverse(self, value: Tensor) -> None:
        """Set the originals so that the parametrized tensor is `value`."""
        with no_grad():
            new: Any = value
            for module in reversed(list(self)):
                if not hasattr(module, "right_inverse"):
                    raise RuntimeError(f"parametrization {type(module).__name__} does not implement right_inverse.")
                new = module.right_inverse(new)
            if self.is_tensor:
                self.original.copy_(new)
            else:
                for i, part in enumerate(new):
                    getattr(self, f"original{i}").copy_(part)

    def forward(self) -> Tensor:
        """The parametrized tensor."""
        first, *rest = list(self)
        x = first(self.original) if self.is_tensor else first(*[getattr(self, f"original{i}") for i in range(self.ntensors)])
        for module in rest:
            x = module(x)
        return x  # type: ignore[no-any-return]


def _property(name: str) -> property:
    def get(self: Module) -> Tensor:
        if not _cached:
            return self.parametrizations[name]()  # type: ignore[no-any-return]
        key = id(self), name
        if key not in _cache:
            _cache[key] = self.parametrizations[name]()
        return _cache[key]

    def put(self: Module, value: Tensor) -> None:
        self.parametrizations[name].right_inverse(value)

    return property(get, put)


def _own_class(module: Module) -> None:
    """Give the module a class of its own, because properties belong to classes."""
    base = type(module)

    def deepcopied(self: Module, memo: dict[int, Any]) -> Module:
        copied = self.__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied  # type: ignore[no-any-return]

    def refused(self: Module, protocol: Any) -> Any:
        raise RuntimeError("Serialization of parametrized modules is only supported through state_dict().")

    module.__class__ = type(
        f"Parametrized{base.__name__}", (base,), {"__deepcopy__": deepcopied, "__reduce_ex__": refused, "__module__": base.__module__}
    )


def register_parametrization(module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False) -> Module:
    """From now on `module.tensor_name` is `parametrization` of what was there, which is `module.parametrizations.tensor_name.original`."""
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        group = module.parametrizations[tensor_name]
        if not unsafe:
            value = getattr(module, tensor_name)
            made = parametrization(value)
            if not isinstance(made, Tensor) or made.dtype is not value.dtype or made.shape != value.shape:
                raise ValueError(
                    "Registering a parametrization may not change the dtype or the shape of the tensor, unless the `unsafe` "
                    "flag is enabled."
                )
        group.append(parametrization)
        return module
    if tensor_name not in module._parameters and tensor_name not in module._buffers:
        raise ValueError(f"Module '{module}' does not have a parameter, a buffer, or a parametrized element with name '{tensor_name}'")
    group = ParametrizationList([parametrization], getattr(module, tensor_name), unsafe)
    delattr(module, tensor_name)
    if not is_parametrized(module):
        _own_class(module)
        module.parametrizations = ModuleDict()
    setattr(type(module), tensor_name, _property(tensor_name))
    module.parametrizations[tensor_name] = group
    return module


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """True if the module (or that tensor of it) is parametrized."""
    groups = module._modules.get("parametrizations")
    if not isinstance(groups, ModuleDict):
        return False
    return len(groups) > 0 if tensor_name is None else tensor_name in groups


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Make the tensor ordinary again: with its present value, or (leave_parametrized=False) with the original."""
    if not is_parametrized(module, tensor_name):
        raise ValueError(f"Module {module} does not have a parametrization on {tensor_name}")
    group = module.parametrizations[tensor_name]
    if not leave_parametrized and not group.is_tensor:
        raise ValueError(
            "Cannot leave unparametrized (`leave_parametrized=False`) a tensor that is parametrized in terms of a sequence of tensors."
        )
    original = group.original if group.is_tensor else group.original0
    if leave_parametrized:
        with no_grad():
            value = getattr(module, tensor_name).detach().clone()
        original = Parameter(value, original.requires_grad) if isinstance(original, Parameter) else value
    delattr(type(module), tensor_name)
    del module.parametrizations[tensor_name]
    if isinstance(original, Parameter):
        module.register_parameter(tensor_name, original)
    else:
        module.register_buffer(tensor_name, original)
    if not is_parametrized(module):
        delattr(module, "parametrizations")
        module.__class__ = type(module).__bases__[0]
    return module


def type_before_parametrizations(module: Module) -> type[Module]:
    """The class that the module had."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def transfer_parametrizations_and_params(from_module: Module, to_module: Module, tensor_name: str | None = None) -> Module:
    """Copy the parametrizations, and what they start from, to another module."""
    if is_parametrized(from_module):
        for name in [tensor_name] if tensor_name else list(from_module.parametrizations):
            for parametrization in from_module.parametrizations[name]:
                register_parametrization(to_module, name, copy.deepcopy(parametrization), unsafe=True)
            source, target = from_module.parametrizations[name], to_module.parametrizations[name]
            with no_grad():
                for key, value in source._parameters.items():
                    target._parameters[key].copy_(value)
    return to_module
