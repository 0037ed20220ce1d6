"""Module: parameters, buffers and submodules under one roof, with PyTorch's behaviour and messages.

Every entry of a registry (`_parameters`, `_buffers`, `_modules`) is also an ordinary attribute in the module's `__dict__`:
under `@compile` the user's Python runs on every call, and a lookup through `__getattr__` costs about 1 µs, an ordinary one 0.03.
A mere `__getattr__` in the class makes ordinary ones three times as slow, so there is none.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from torchlet import dtypes, ops
from torchlet.autograd import Function, RemovableHandle, is_leaf, no_grad
from torchlet.dtypes import dtype
from torchlet.nn.parameter import Buffer, Parameter
from torchlet.op import when_walking
from torchlet.spec import device as device_type
from torchlet.tensor import Tensor

__all__ = ["Module"]

_EXTRA_STATE = "_extra_state"
_NO_INPUT: Any = object()  # a module was called without a positional argument


class _Registry(dict[str, Any]):
    """Parameters, buffers or submodules of one module, each mirrored into the module's `__dict__`.

    The module is held weakly, so that it is freed as soon as nobody uses it.
    """

    __slots__ = ("_owner",)

    def __init__(self, owner: Module, entries: Mapping[str, Any] | None = None):
        self._owner = weakref.ref(owner)
        if entries:
            self.update(entries)

    def __setitem__(self, name: str, value: Any) -> None:
        dict.__setitem__(self, name, value)
        owner = self._owner()
        if owner is not None:
            owner.__dict__[name] = value

    def __delitem__(self, name: str) -> None:
        dict.__delitem__(self, name)
        owner = self._owner()
        if owner is not None:
            owner.__dict__.pop(name, None)

    def pop(self, name: str, *default: Any) -> Any:
        """As `dict.pop`."""
        if name not in self:
            return dict.pop(self, name, *default)
        value = self[name]
        del self[name]
        return value

    def popitem(self) -> tuple[str, Any]:
        """As `dict.popitem`."""
        name = next(reversed(self), None)
        if name is None:
            raise KeyError("popitem(): dictionary is empty")
        return name, self.pop(name)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As `dict.setdefault`."""
        if name not in self:
            self[name] = default
        return self[name]

    def clear(self) -> None:
        """As `dict.clear`."""
        for name in list(self):
            del self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As `dict.update`."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _Hook(NamedTuple):
    function: Callable[..., Any]
    with_kwargs: bool = False
    always_call: bool = False


class _IncompatibleKeys(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"

    def __str__(self) -> str:
        return repr(self)


_REGISTRIES = ("_parameters", "_buffers", "_modules")
_HOOK_TABLES = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks", "_state_dict_pre_hooks", "_state_dict_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)


_EVERYWHERE: dict[str, OrderedDict[int, _Hook]] = {}  # hooks of all modules; empty while there are none


def _hook_everywhere(kind: str, hook: _Hook) -> RemovableHandle:
    table = _EVERYWHERE.setdefault(kind, OrderedDict())
    handle = RemovableHandle(table)
    table[handle.id] = hook
    return handle


def register_module_forward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, args)` before the `forward` of every module; a result replaces the arguments."""
    return _hook_everywhere("pre", _Hook(hook))


def register_module_forward_hook(hook: Callable[..., Any], *, with_kwargs: bool = False, always_call: bool = False) -> RemovableHandle:
    """Call `hook(module, args, output)` after the `forward` of every module; a result replaces the output."""
    return _hook_everywhere("post", _Hook(hook, with_kwargs, always_call))


def typename(x: Any) -> str:
    """The name of a value's type as error messages give it; builtins stay bare."""
    kind = type(x)
    if issubclass(kind, Tensor):
        return f"torchlet.{kind.__name__}"
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class _NoAttribute:
    """What a subclass of Module with a `__getattr__` of its own finds by `super().__getattr__`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")


class Module:
    """Base class of all neural network modules: assign Parameters and Modules as attributes, and override `forward`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Module itself has no __getattr__: Python reads every attribute of a class that has one the slow way
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "__getattr__") and not issubclass(cls, _NoAttribute):
            cls.__bases__ = (*cls.__bases__, _NoAttribute)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Parameters, buffers and submodules, whose names type checkers cannot know."""

    training: bool
    _version: int = 1
    _hooked = False  # True once a hook was registered: the one flag that `__call__` looks at
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _non_persistent_buffers_set: set[str]
    _forward_pre_hooks: OrderedDict[int, _Hook]
    _forward_hooks: OrderedDict[int, _Hook]
    _backward_pre_hooks: OrderedDict[int, Callable[..., Any]]
    _backward_hooks: OrderedDict[int, Callable[..., Any]]
    _state_dict_pre_hooks: OrderedDict[int, Callable[..., Any]]
    _state_dict_hooks: OrderedDict[int, Callable[..., Any]]
    _load_state_dict_pre_hooks: OrderedDict[int, Callable[..., Any]]
    _load_state_dict_post_hooks: OrderedDict[int, Callable[..., Any]]

    def __init__(self) -> None:
        attributes = self.__dict__
        for registry in _REGISTRIES:
            for name in attributes.get(registry, ()):  # a second call of __init__ starts anew
                attributes.pop(name, None)
            attributes[registry] = _Registry(self)
        attributes["training"] = True
        attributes["_non_persistent_buffers_set"] = set()
        for table in _HOOK_TABLES:
            attributes[table] = OrderedDict()
        attributes["_hooked"] = False

    # ------------------------------------------------------------------------------------------- call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result of a call; every subclass overrides it."""
        raise NotImplementedError(f'Module [{type(self).__name__}] is missing the required "forward" function')

    def __call__(self, input: Any = _NO_INPUT, /, *args: Any, **kwargs: Any) -> Any:
        """Run `forward` with the hooks around it. Errors from inside say which module they come from."""
        try:
            if self._hooked or _EVERYWHERE or input is _NO_INPUT:
                return self._call_hooked(() if input is _NO_INPUT else (input, *args), kwargs)
            if args or kwargs:
                return self.forward(input, *args, **kwargs)
            return self.forward(input)  # spelled out: Python passes a lone argument on twice as fast as *args, **kwargs
        except (RuntimeError, IndexError) as error:
            _name_module(error, self)
            raise

    def _call_hooked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pending = {key: hook for key, hook in self._forward_hooks.items() if hook.always_call}
        try:
            result = None
            for hook in [*_EVERYWHERE.get("pre", {}).values(), *self._forward_pre_hooks.values()]:
                if hook.with_kwargs:
                    given = hook.function(self, args, kwargs)
                    if given is not None:
                        if not (isinstance(given, tuple) and len(given) == 2):
                            raise RuntimeError(f"forward pre-hook must return None or a tuple of (new_args, new_kwargs), but got {given}.")
                        args, kwargs = given
                else:
                    given = hook.function(self, args)
                    if given is not None:
                        args = given if isinstance(given, tuple) else (given,)
            watch = _BackwardWatch(self) if self._backward_hooks or self._backward_pre_hooks else None
            if watch is not None:
                args = watch.inputs(args)
            result = self.forward(*args, **kwargs)
            for key, hook in [*_EVERYWHERE.get("post", {}).items(), *self._forward_hooks.items()]:
                pending.pop(key, None)
                changed = hook.function(self, args, kwargs, result) if hook.with_kwargs else hook.function(self, args, result)
                if changed is not None:
                    result = changed
            return result if watch is None else watch.outputs(result)
        except Exception:
            for hook in pending.values():  # hooks that asked to run also when forward fails
                hook.function(self, args, kwargs, result) if hook.with_kwargs else hook.function(self, args, result)
            raise

    def _add_hook(self, table: str, hook: Any, prepend: bool = False) -> RemovableHandle:
        hooks = self.__dict__[table]
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        if prepend:
            hooks.move_to_end(handle.id, last=False)
        self.__dict__["_hooked"] = True
        return handle

    def register_forward_pre_hook(self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False) -> RemovableHandle:
        """Call `hook(module, args)` before `forward`; a result replaces the arguments (with_kwargs: `hook(module, args, kwargs)`)."""
        return self._add_hook("_forward_pre_hooks", _Hook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, output)` after `forward`; a result replaces the output (always_call: also when forward raised)."""
        return self._add_hook("_forward_hooks", _Hook(hook, with_kwargs, always_call), prepend)

    def register_full_backward_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_output)` before the backward pass of the module; a result replaces grad_output."""
        return self._add_hook("_backward_pre_hooks", hook, prepend)

    def register_backward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """register_full_backward_hook under its name of 2017."""
        return self.register_full_backward_hook(hook)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_input, grad_output)` when the gradients of the inputs are known; a result replaces grad_input."""
        return self._add_hook("_backward_hooks", hook, prepend)

    # ------------------------------------------------------------------------------------------- attributes

    def __setattr__(self, name: str, value: Any) -> None:
        attributes = self.__dict__
        parameters = attributes.get("_parameters")
        if isinstance(value, Parameter | Module | Buffer):
            if parameters is None:
                kind = "module" if isinstance(value, Module) else "parameters" if isinstance(value, Parameter) else "buffer"
                raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
            self._register(name, value)
        elif parameters is None:
            object.__setattr__(self, name, value)
        elif name in parameters:
            if value is not None:
                raise TypeError(f"cannot assign '{typename(value)}' as parameter '{name}' (torchlet.nn.Parameter or None expected)")
            self.register_parameter(name, None)
        elif name in attributes["_modules"]:
            if value is not None:
                raise TypeError(f"cannot assign '{typename(value)}' as child module '{name}' (torchlet.nn.Module or None expected)")
            attributes["_modules"][name] = None
        elif name in attributes["_buffers"]:
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"cannot assign '{typename(value)}' as buffer '{name}' (torchlet.nn.Buffer, torchlet.Tensor or None expected)"
                )
            self.register_buffer(name, value, name not in self._non_persistent_buffers_set)
        else:
            object.__setattr__(self, name, value)

    def _register(self, name: str, value: Parameter | Module | Buffer) -> None:
        """Put an assigned value into its registry, in place of whatever had the name."""
        target = "_parameters" if isinstance(value, Parameter) else "_modules" if isinstance(value, Module) else "_buffers"
        attributes = self.__dict__
        known = name in attributes[target]
        if not known:
            attributes.pop(name, None)
        for registry in _REGISTRIES:
            if registry != target and name in attributes[registry]:
                del attributes[registry][name]
        if target == "_modules":
            attributes["_modules"][name] = value
            return
        if target == "_parameters":
            self._non_persistent_buffers_set.discard(name)
            self.register_parameter(name, value)  # type: ignore[arg-type]
        else:
            self.register_buffer(name, value, value.persistent)  # type: ignore[union-attr,arg-type]

    def __delattr__(self, name: str) -> None:
        for registry in _REGISTRIES:
            entries = self.__dict__.get(registry)
            if entries is not None and name in entries:
                del entries[name]
                self._non_persistent_buffers_set.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted(k for k in {*dir(type(self)), *self.__dict__} if not k[:1].isdigit())

    def _check_name(self, kind: str, registry: str, name: str) -> None:
        if registry not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {typename(name)}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain "."' + (f", got: {name}" if kind == "module" else ""))
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if hasattr(self, name) and name not in self.__dict__[registry]:
            raise KeyError(f"attribute '{name}' already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter. Raises KeyError on a bad or taken name, TypeError or ValueError on what is no leaf Parameter."""
        self._check_name("parameter", "_parameters", name)
        if param is not None:
            if not isinstance(param, Parameter):
                raise TypeError(f"cannot assign '{typename(param)}' object to parameter '{name}' (torchlet.nn.Parameter or None required)")
            if not is_leaf(param):
                raise ValueError(
                    f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be created explicitly. To express "
                    f"'{name}' "
                    "as a function of another Tensor, compute the value in the forward() method."
                )
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is state but no parameter; with `persistent=False` it stays out of `state_dict`."""
        self._check_name("buffer", "_buffers", name)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"cannot assign '{typename(tensor)}' object to buffer '{name}' (torchlet Tensor or None required)")
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under `name`."""
        if not isinstance(module, Module) and module is not None:
            raise TypeError(f"{typename(module)} is not a Module subclass")
        self._check_name("module", "_modules", name)
        self._modules[name] = module

    register_module = add_module

    def get_submodule(self, target: str) -> Module:
        """The submodule at a dotted path. Raises AttributeError where the path leads nowhere or to something else."""
        module: Module = self
        for atom in target.split(".") if target else ():
            if not hasattr(module, atom):
                raise AttributeError(f"{type(module).__name__} has no attribute `{atom}`")
            module = getattr(module, atom)
            if not isinstance(module, Module):
                raise AttributeError(f"`{atom}` is not an nn.Module")
        return module

    def set_submodule(self, target: str, module: Module) -> None:
        """Replace (or add) the submodule at a dotted path."""
        if not target:
            raise ValueError("Cannot set the submodule without a target name!")
        if not isinstance(module, Module):
            raise ValueError(f"`module` is not an nn.Module, found {type(module)}")
        path, _, name = target.rpartition(".")
        setattr(self.get_submodule(path), name, module)

    def _get_member(self, target: str, registry: str, words: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        if name not in module.__dict__[registry]:
            raise AttributeError(f"`{name}` is not {words}")
        return getattr(module, name)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        return self._get_member(target, "_parameters", "an nn.Parameter")  # type: ignore[no-any-return]

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path."""
        return self._get_member(target, "_buffers", "a buffer")  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------------- walks

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """All modules below and including this one, with their dotted paths; each once unless `remove_duplicate=False`."""
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
            for name, module in self._modules.items():
                if module is not None:
                    yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """All modules below and including this one."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with their names."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules."""
        for _, module in self.named_children():
            yield module

    def _named_members(self, registry: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        walk = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        for path, module in walk:
            for name, value in module.__dict__[registry].items():
                if value is None or value in seen:
                    continue
                if remove_duplicate:
                    seen.add(value)
                yield f"{path}.{name}" if path else name, value

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted paths."""
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their dotted paths."""
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def apply(self, fn: Callable[[Module], None]) -> Self:
        """Call `fn` on every submodule, then on this module: typically to initialise parameters."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # ------------------------------------------------------------------------------------------- modes and conversion

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode: dropout is off, batch norm uses its running statistics."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let autograd record operations on the parameters, or not."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters (`set_to_none=False`: fill them with zeros)."""
        for parameter in self.parameters():
            grad = parameter.grad
            if grad is not None:
                if set_to_none:
                    parameter.grad = None
                else:
                    with no_grad():
                        grad.detach_().zero_() if grad.grad_fn is not None else grad.requires_grad_(False).zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert parameters (keeping their identity), gradients and buffers by `fn`."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        with no_grad():
            for parameter in self._parameters.values():
                if parameter is not None:
                    changed = fn(parameter)
                    if changed is not parameter:
                        grad = parameter.grad
                        parameter.grad = None
                        parameter.data = changed
                        parameter.grad = None if grad is None else fn(grad)
            for name, buffer in self._buffers.items():
                if buffer is not None:
                    self._buffers[name] = fn(buffer)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and convert: `to(device)`, `to(dtype)`, `to(device, dtype)`, `to(tensor)`. Integer buffers keep their dtype."""
        device, kind = _parse_to(*args, **kwargs)
        if kind is not None and not kind.is_floating_point:
            raise TypeError(f"nn.Module.to only accepts floating point or complex dtypes, but got desired dtype={kind}")

        def convert(t: Tensor) -> Tensor:
            if device is not None and t.device is not device:
                t = t.to(device)
            return t.to(kind) if kind is not None and t.dtype.is_floating_point else t

        return self._apply(convert)

    def type(self, dst_type: dtype) -> Self:
        """Convert all parameters and buffers to `dst_type`."""
        return self._apply(lambda t: t.to(dst_type))

    def _to_float(self, kind: dtype) -> Self:
        return self._apply(lambda t: t.to(kind) if t.dtype.is_floating_point else t)

    def float(self) -> Self:
        """Convert floating-point parameters and buffers to float32."""
        return self._to_float(dtypes.float32)

    def double(self) -> Self:
        """Convert floating-point parameters and buffers to float64."""
        return self._to_float(dtypes.float64)

    def half(self) -> Self:
        """Convert floating-point parameters and buffers to float16."""
        return self._to_float(dtypes.float16)

    def bfloat16(self) -> Self:
        """Convert floating-point parameters and buffers to bfloat16."""
        return self._to_float(dtypes.bfloat16)

    def cpu(self) -> Self:
        """Move parameters and buffers to the CPU."""
        return self.to(device_type("cpu"))

    def cuda(self, device: int | device_type | None = None) -> Self:
        """Move parameters and buffers to a GPU."""
        return self.to(device_type("cuda") if device is None else device_type(device))

    def to_empty(self, *, device: Any = None, recurse: bool = True) -> Self:
        """Parameters and buffers without values of their own, on a device."""
        return self._apply(lambda t: ops.empty(tuple(t.shape), dtype=t.dtype, device=device), recurse)

    def share_memory(self) -> Self:
        """Nothing to do: worker processes get copies."""
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """From now on calls run a compiled `forward`; the arguments are those of `torchlet.compile`."""
        self.__dict__["forward"] = sys.modules[__name__.partition(".")[0]].compile(self.forward, *args, **kwargs)

    # ------------------------------------------------------------------------------------------- state

    def get_extra_state(self) -> Any:
        """Extra state for `state_dict`; override it together with `set_extra_state`."""
        raise RuntimeError("Reached a code path in Module.get_extra_state() that should never be called.")

    def set_extra_state(self, state: Any) -> None:
        """Take back what `get_extra_state` gave."""
        raise RuntimeError("Reached a code path in Module.set_extra_state() that should never be called.")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, value in itertools.chain(self._parameters.items(), self._buffers.items()):
            if value is not None and name not in self._non_persistent_buffers_set:
                destination[prefix + name] = value if keep_vars else value.detach()
        if type(self).get_extra_state is not Module.get_extra_state:
            destination[prefix + _EXTRA_STATE] = self.get_extra_state()

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        """All parameters and persistent buffers by dotted path; the tensors share memory with the module's."""
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        metadata = dict(version=self._version)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = metadata
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        for hook in self._state_dict_hooks.values():
            if hook(self, destination, prefix, metadata) is not None:
                raise RuntimeError("state_dict post-hook must return None")
        return destination  # type: ignore[no-any-return]

    def register_state_dict_pre_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Call `hook(module, prefix, keep_vars)` before `state_dict` collects this module."""
        return self._add_hook("_state_dict_pre_hooks", hook)

    def register_state_dict_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Call `hook(module, state_dict, prefix, local_metadata)` after `state_dict` collected this module."""
        return self._add_hook("_state_dict_hooks", hook)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Call `hook(module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)` before loading."""
        return self._add_hook("_load_state_dict_pre_hooks", hook)

    def register_load_state_dict_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Call `hook(module, incompatible_keys)` once this module's part was checked; it may change the two lists in place."""
        return self._add_hook("_load_state_dict_post_hooks", hook)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:
        """Check this module's part of `state_dict` and note what is to be copied in `local_metadata["copies"]`; nothing changes yet."""
        for hook in self._load_state_dict_pre_hooks.values():
            hook(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        copies = local_metadata["copies"]
        members = itertools.chain(self._parameters.items(), self._buffers.items())
        local = {k: v for k, v in members if v is not None and k not in self._non_persistent_buffers_set}
        for name, value in local.items():
            key = prefix + name
            if key not in state_dict:
                if strict:
                    missing_keys.append(key)
                continue
            given = state_dict[key]
            if not isinstance(given, Tensor):
                error_msgs.append(
                    f'While copying the parameter named "{key}", expected torchlet.Tensor or Tensor-like object from checkpoint but '
                    f"received {type(given)}"
                )
                continue
            if len(value.shape) == 0 and tuple(given.shape) == (1,):
                given = given[0]
            if given.shape != value.shape:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {given.shape} from checkpoint, "
                    f"the shape in current model is {value.shape}."
                )
                continue
            copies.append((self, name, value, given))
        extra = prefix + _EXTRA_STATE
        if type(self).set_extra_state is not Module.set_extra_state:
            if extra in state_dict:
                copies.append((self, None, None, state_dict[extra]))
            elif strict:
                missing_keys.append(extra)
        elif strict and extra in state_dict:
            unexpected_keys.append(extra)
        if strict:
            for key in state_dict:
                if key.startswith(prefix) and key != extra:
                    first, *rest = key[len(prefix):].split(".", 1)
                    if first not in (self._modules if rest else local):
                        unexpected_keys.append(key)

    def _check_state(
        self, state_dict: dict[str, Any], prefix: str, metadata: Mapping[str, Any], assign: bool, copies: list[Any],
        keys: _IncompatibleKeys, errors: list[str],
    ) -> None:
        """`_load_from_state_dict` here and below, and the hooks after it."""
        local = {**metadata.get(prefix[:-1], {}), "copies": copies}
        if assign:
            local["assign_to_params_buffers"] = True
        self._load_from_state_dict(state_dict, prefix, local, True, keys.missing_keys, keys.unexpected_keys, errors)
        for name, child in self._modules.items():
            if child is not None:
                below = f"{prefix}{name}."
                child._check_state(
                    OrderedDict((k, v) for k, v in state_dict.items() if k.startswith(below)), below, metadata, assign, copies, keys, errors
                )
        for hook in self._load_state_dict_post_hooks.values():
            if hook(self, keys) is not None:
                raise AssertionError("a hook of register_load_state_dict_post_hook must change incompatible_keys in place and return None")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> _IncompatibleKeys:
        """Copy parameters and buffers from `state_dict`, or (assign) put its tensors in their place.

        All of it is checked first: when RuntimeError (keys or shapes that do not fit, all of them listed) is raised, the module
        is unchanged. Returns the missing and the unexpected keys.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        copies: list[tuple[Module, str | None, Tensor | None, Any]] = []
        metadata = getattr(state_dict, "_metadata", None)
        result = _IncompatibleKeys(missing, unexpected)

        self._check_state(OrderedDict(state_dict), "", metadata or {}, assign, copies, result, errors)
        if strict:
            if unexpected:
                errors.insert(0, "Unexpected key(s) in state_dict: {}. ".format(", ".join(f'"{k}"' for k in unexpected)))
            if missing:
                errors.insert(0, "Missing key(s) in state_dict: {}. ".format(", ".join(f'"{k}"' for k in missing)))
        if errors:
            raise RuntimeError("Error(s) in loading state_dict for {}:\n\t{}".format(type(self).__name__, "\n\t".join(errors)))
        for module, name, _, given in copies:  # what the user wrote may raise: it comes before the first copy
            if name is None:
                module.set_extra_state(given)
        with no_grad():
            for module, name, value, given in copies:
                if name is None or value is None:
                    continue
                if not assign:
                    value.copy_(given)
                elif isinstance(value, Parameter):
                    new = given if isinstance(given, Parameter) else Parameter(given, value.requires_grad)
                    setattr(module, name, new.requires_grad_(value.requires_grad))
                else:
                    setattr(module, name, given)
        return result

    def __getstate__(self) -> dict[str, Any]:
        mirrored = {name for registry in _REGISTRIES for name in self.__dict__[registry]}
        mirrored.add("forward")  # a compiled forward belongs to this module
        state = {k: v for k, v in self.__dict__.items() if k not in mirrored}
        for registry in _REGISTRIES:
            state[registry] = dict(state[registry])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for registry in _REGISTRIES:
            self.__dict__[registry] = _Registry(self, self.__dict__[registry])

    # ------------------------------------------------------------------------------------------- text

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """What stands between the parentheses of the repr."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        extra_lines = extra.split("\n") if extra else []
        child_lines = [f"({name}): " + _indent(repr(module)) for name, module in self._modules.items()]
        lines = extra_lines + child_lines
        if not lines:
            return f"{self._get_name()}()"
        if len(extra_lines) == 1 and not child_lines:
            return f"{self._get_name()}({extra_lines[0]})"
        return f"{self._get_name()}(\n  " + "\n  ".join(lines) + "\n)"


def _indent(text: str) -> str:
    return text.replace("\n", "\n  ")


def _parse_to(*args: Any, **kwargs: Any) -> tuple[device_type | None, dtype | None]:
    """The device and dtype of a `to` call, in any of its forms."""
    device, kind = kwargs.pop("device", None), kwargs.pop("dtype", None)
    other = kwargs.pop("tensor", None)
    kwargs.pop("non_blocking", None), kwargs.pop("memory_format", None), kwargs.pop("copy", None)
    if kwargs:
        raise TypeError(f"to() received an invalid combination of arguments: unexpected keyword '{next(iter(kwargs))}'")
    for arg in args:
        if isinstance(arg, Tensor):
            other = arg
        elif isinstance(arg, dtype):
            kind = arg
        elif arg is not None and not isinstance(arg, bool):
            device = arg
    if other is not None:
        device, kind = other.device, other.dtype
    return None if device is None else device_type(device), kind


# ------------------------------------------------------------------------------------------------ errors


def _name_module(error: BaseException, module: Module) -> None:
    """Prepend to an error of the library the path of the module it comes from: `model.fc1 (Linear(…)): …`.

    Called by each module that the error passes, innermost first, so that the path grows to the root. What the user's own
    code raised keeps its words, and so do subclasses, whose arguments may mean something else.
    """
    if type(error) not in (RuntimeError, IndexError) or len(error.args) != 1 or not isinstance(error.args[0], str):
        return
    known = error.__dict__.get("_module")
    if known is None:
        if _raised_by_library(error.__traceback__):
            error._module = module, error.args[0]  # type: ignore[attr-defined]
            error.args = (f"{_describe(module)}: {error.args[0]}",)
        return
    inner, text = known
    for path, candidate in module.named_modules():
        if candidate is inner and path:
            error.args = (f"model.{path} ({_describe(inner)}): {text}",)
            return


def _put_call(walk: Any) -> None:
    """`Module.__call__` in C, for modules without hooks: what it does in Python takes longer than many a step inside."""
    plain = Module.__dict__["__call__"]
    if plain is _CALL:
        Module.__call__ = walk.module_call(Module, plain, _EVERYWHERE, _name_module)  # type: ignore[method-assign]


_CALL = Module.__dict__["__call__"]
when_walking(_put_call)


def _raised_by_library(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    package = __name__.partition(".")[0]
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in (package, "numpy")


def _describe(module: Module) -> str:
    return type(module).__name__ if module._modules else repr(module)


# ------------------------------------------------------------------------------------------------ backward hooks


class _Watched(Function):
    """Identity of several tensors; its backward shows their gradients to `seen`, which may replace them."""

    @staticmethod
    def forward(ctx: Any, seen: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Pass the tensors through."""
        ctx.seen = seen
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Pass the gradients through `seen`."""
        return (None, *ctx.seen(grads))


class _BackwardWatch:
    """Runs a module's full backward hooks for one call: identities around its inputs and outputs see the gradients."""

    def __init__(self, module: Module):
        self.module = module
        self.count = 0  # inputs of the call
        self.positions: list[int] = []  # of the inputs that need a gradient
        self.grad_output: tuple[Tensor | None, ...] = ()

    @staticmethod
    def _through(seen: Callable[..., Any], values: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[int]]:
        positions = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
        if not positions:
            return values, positions
        watched = _Watched.apply(seen, *[values[i] for i in positions])
        out = list(values)
        for i, t in zip(positions, watched, strict=True):
            out[i] = t
        return tuple(out), positions

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, watched."""
        self.count = len(args)
        args, self.positions = self._through(self._on_inputs, args)
        return args

    def outputs(self, result: Any) -> Any:
        """The result, watched."""
        several = isinstance(result, tuple)
        outputs = result if several else (result,)
        watched, positions = self._through(lambda grads: self._on_outputs(grads, positions, len(outputs)), outputs)
        return watched if several else watched[0]

    def _on_outputs(self, grads: tuple[Tensor | None, ...], positions: list[int], count: int) -> tuple[Tensor | None, ...]:
        full: list[Tensor | None] = [None] * count
        for i, g in zip(positions, grads, strict=True):
            full[i] = g
        output = tuple(full)
        for hook in list(self.module._backward_pre_hooks.values()):
            changed = hook(self.module, output)
            if changed is not None:
                output = changed if isinstance(changed, tuple) else (changed,)
        self.grad_output = output
        if not self.positions:  # no input wants a gradient: the hooks run now
            for hook in list(self.module._backward_hooks.values()):
                if hook(self.module, (None,) * self.count, output) is not None:
                    raise RuntimeError(
                        "Backward hook for Modules where no input requires gradient should always return None or None for all gradients."
                    )
        return tuple(output[i] for i in positions)

    def _on_inputs(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        full: list[Tensor | None] = [None] * self.count
        for i, g in zip(self.positions, grads, strict=True):
            full[i] = g
        inputs = tuple(full)
        for hook in list(self.module._backward_hooks.values()):
            changed = hook(self.module, inputs, self.grad_output)
            if changed is not None:
                changed = changed if isinstance(changed, tuple) else (changed,)
                if len(changed) != self.count:
                    raise RuntimeError(
                        f"Backward hook returned an invalid number of grad_input, got {len(changed)}, but expected {self.count}"
                    )
                inputs = changed
        return tuple(inputs[i] for i in self.positions)
