"""Optimizer: parameter groups, state per parameter, and PyTorch's layout of both in `state_dict`.

A subclass says in `_update` which update operator a step is, with which numbers; `step` gathers lists of tensors and hands them to it.
It computes nothing itself. The number of steps is a plain number in `state` (a changing number is data to the compiler) and a float32
tensor in `state_dict`.
"""

from __future__ import annotations

import copy
import itertools
import operator
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torchlet import dtypes, ops
from torchlet.autograd import RemovableHandle, enable_grad, is_leaf, no_grad
from torchlet.op import STATE, Op, apply_update, put_function, when_walking
from torchlet.tensor import Tensor

__all__ = ["Optimizer", "required"]

Tensors = list[Any]
State = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

required = type("required", (), {"__repr__": lambda self: "<required parameter>"})()


# what a step does to parameters whose state has the same numbers: an update operator, the names of tensors in the state (which follow
# parameters and gradients in the operator's lists), scalars, attributes, and the numbers of the state when the step is done
Update = tuple[Op, tuple[str, ...], tuple[Any, ...], tuple[Any, ...], dict[str, Any]]


def declared(step: F) -> F:
    """Mark a `step` that does, for parameters with a gradient, what `_update` says and nothing else: replay asks `_update` instead."""
    step.__dict__["is_declared"] = True
    return step


class Optimizer:
    """Base class: `params` is an iterable of tensors, of (name, tensor) pairs, or of dicts with a "params" entry and options."""

    _opt_called = False  # schedulers warn when they are stepped first
    _numbers: tuple[str, ...] = ("step",)  # state that is a plain number here and a float32 tensor in `state_dict`
    _hooks: dict[str, OrderedDict[int, Callable[..., Any]]] | None = None

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params argument given to the optimizer should be an iterable of Tensors or dicts, but got torchlet.Tensor")
        self.defaults = defaults
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; options that are missing take the defaults."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets will change between "
                "runs. Please use a list instead."
            )
        entries = [params] if isinstance(params, Tensor) else list(params)
        names = [e[0] for e in entries if isinstance(e, tuple)]
        tensors = [e[1] if isinstance(e, tuple) else e for e in entries]
        if names:
            if len(names) != len(tensors):
                raise ValueError("all optimizer params should be with/without names. Some param names are missing")
            param_group["param_names"] = names
        param_group["params"] = tensors
        for p in tensors:
            if not isinstance(p, Tensor):
                raise TypeError(f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}")
            if not is_leaf(p):
                raise ValueError("can't optimize a non-leaf Tensor")
        for name, default in self.defaults.items():
            if default is required and name not in param_group:
                raise ValueError(f"parameter group didn't specify a value of required optimization parameter {name}")
            param_group.setdefault(name, default)
        if len(tensors) != len(set(tensors)):
            warnings.warn(
                "optimizer contains a parameter group with duplicate parameters; in future, this will cause an error", stacklevel=3
            )
        known = set(itertools.chain.from_iterable(g["params"] for g in self.param_groups))
        if any(("param_names" in g) != ("param_names" in param_group) for g in self.param_groups):
            words = "with names" if "param_names" in param_group else "without names"
            raise ValueError(f"all optimizer param groups should be with/without names. cannot add param group {words} to the optimizer")
        if not known.isdisjoint(tensors):
            raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients. `closure` computes the loss anew and returns it; so does `step`."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any], state: State) -> Update:
        """The next step of parameters of a group with this state; nothing changes by asking."""
        raise NotImplementedError

    def _apply(self, update: Update, params: Tensors, grads: Tensors, states: list[State]) -> None:
        """Do what `_update` said."""
        op, names, scalars, attrs, after = update
        apply_update(op, [params, grads, *[list(map(operator.itemgetter(name), states)) for name in names]], scalars, attrs)
        for name, value in after.items():
            for s in states:
                s[name] = value

    def _begin(self, closure: Callable[[], Any] | None) -> Any:
        """What every `step` does first: call the closure with gradients on."""
        self._opt_called = True
        run = STATE.run
        if run is not None and run.is_watched:
            run.stepping(self)
        if closure is None:
            return None
        with enable_grad():
            return closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters (`set_to_none=False`: fill them with zeros)."""
        for group in self.param_groups:
            if set_to_none:
                for p in group["params"]:
                    p._grad = None
                continue
            for p in group["params"]:
                grad = p.grad
                if grad is not None:
                    with no_grad():
                        (grad.detach_() if not is_leaf(grad) else grad.requires_grad_(False)).zero_()

    # ------------------------------------------------------------------------------------------- hooks

    def _add_hook(self, kind: str, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        if self._hooks is None:
            self._hooks = {}
        table = self._hooks.setdefault(kind, OrderedDict())
        handle = RemovableHandle(table)
        table[handle.id] = hook
        if prepend:
            table.move_to_end(handle.id, last=False)
        return handle

    def _run_hooks(self, kind: str, *args: Any) -> list[Any]:
        return [] if self._hooks is None else [hook(self, *args) for hook in list(self._hooks.get(kind, {}).values())]

    def _step_hook(self, kind: str, hook: Callable[..., Any]) -> RemovableHandle:
        if "step" not in self.__dict__:  # without a hook, step is the plain method
            plain = type(self).step

            def step(*args: Any, **kwargs: Any) -> Any:
                for hook in list((self._hooks or {}).get("step_pre", {}).values()):
                    changed = hook(self, args, kwargs)
                    if changed is not None:
                        if not (isinstance(changed, tuple) and len(changed) == 2):
                            raise RuntimeError(f"{hook} must return None or a tuple of (new_args, new_kwargs), but got {changed}.")
                        args, kwargs = changed
                out = plain(self, *args, **kwargs)
                self._run_hooks("step_post", args, kwargs)
                return out

            self.__dict__["step"] = step
        return self._add_hook(kind, hook)

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` before `step`; a result replaces the arguments."""
        return self._step_hook("step_pre", hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` after `step`."""
        return self._step_hook("step_post", hook)

    def register_state_dict_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer)` before `state_dict`."""
        return self._add_hook("state_dict_pre", hook, prepend)

    def register_state_dict_post_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer, state_dict)` after `state_dict`; a result replaces it."""
        return self._add_hook("state_dict_post", hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer, state_dict)` before loading; a result replaces the state dict."""
        return self._add_hook("load_pre", hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer)` after loading."""
        return self._add_hook("load_post", hook, prepend)

    # ------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """State and options with parameters as numbers: {"state": {0: {…}}, "param_groups": [{…, "params": [0]}]}."""
        self._run_hooks("state_dict_pre")
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": [numbers[id(p)] for p in group["params"]]})
        state = {
            numbers[id(key)] if isinstance(key, Tensor) else key: {
                k: ops.tensor(float(v), dtype=dtypes.float32) if k in self._numbers and not isinstance(v, Tensor) else v
                for k, v in value.items()
            }
            if isinstance(value, dict) else value
            for key, value in self.state.items()
        }
        out = {"state": state, "param_groups": groups}
        for hook in list((self._hooks or {}).get("state_dict_post", {}).values()):
            changed = hook(self, out)
            out = out if changed is None else changed
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; tensors are copied in the dtype and on the device of their parameter.

        Raises ValueError, with nothing changed, when the groups do not fit.
        """
        for hook in list((self._hooks or {}).get("load_pre", {}).values()):
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = [copy.deepcopy({k: v for k, v in g.items()}) for g in state_dict["param_groups"]]
        groups = self.param_groups
        if len(groups) != len(saved):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(g["params"]) != len(s["params"]) for g, s in zip(groups, saved, strict=True)):
            raise ValueError("loaded state dict contains a parameter group that doesn't match the size of optimizer's group")
        parameter = dict(
            zip(
                itertools.chain.from_iterable(s["params"] for s in saved), itertools.chain.from_iterable(g["params"] for g in groups),
                strict=True,
            )
        )
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for key, value in state_dict["state"].items():
            p = parameter.get(key)
            state[key if p is None else p] = copy.deepcopy(value) if p is None else _fit(p, value, "", self._numbers)
        for group, new in zip(groups, saved, strict=True):
            new["params"] = group["params"]
            if "param_names" in group:
                new.setdefault("param_names", group["param_names"])
        self.__setstate__({"state": state, "param_groups": saved})
        self._run_hooks("load_post")

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for group in self.param_groups:  # checkpoints of versions that had fewer options
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def __repr__(self) -> str:
        groups = [
            "\n".join([f"Parameter Group {i}", *[f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]])
            for i, group in enumerate(self.param_groups)
        ]
        return f"{type(self).__name__} (\n" + "\n\n".join(groups) + "\n)"


def _fit(p: Tensor, value: Any, key: str, numbers: tuple[str, ...]) -> Any:
    """A copy of saved state for parameter `p`."""
    if key in numbers:
        return value.item() if isinstance(value, Tensor) else value
    if isinstance(value, Tensor):
        kind = p.dtype if p.dtype.is_floating_point and value.dtype.is_floating_point else value.dtype
        return value.detach().clone().to(device=p.device, dtype=kind)
    if isinstance(value, dict):
        return {k: _fit(p, v, k, numbers) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fit(p, v, "", numbers) for v in value)
    return value


def number(value: Any) -> float:
    """An option as a plain number; a 0-d tensor is read."""
    return value.item() if isinstance(value, Tensor) else value  # type: ignore[no-any-return]


def options(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the constructor of an optimizer was given beside itself and the parameters: the defaults of its groups."""
    return {name: value for name, value in arguments.items() if name not in ("self", "params", "__class__")}


def check_rates(lr: Any, weight_decay: float, eps: float = 0.0, betas: tuple[Any, ...] = ()) -> None:
    """Raise ValueError where an option that optimizers share is out of its range."""
    if not number(lr) >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for i, beta in enumerate(betas):
        if not 0.0 <= number(beta) < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")


_get_grad = operator.attrgetter("_grad")


def with_grads(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and their gradients."""
    grads = list(map(_get_grad, params))
    if not all(map(operator.is_not, grads, itertools.repeat(None))):
        params = [p for p in params if p._grad is not None]
        return params, [p._grad for p in params]  # type: ignore[misc]
    return params, grads  # type: ignore[return-value]


def states_of(state: dict[Any, State], params: list[Tensor]) -> tuple[list[State], bool]:
    """The states of the parameters, and True if none is empty and all have made the same number of steps."""
    states = [state[p] for p in params]
    if not all(states):
        return states, False
    counts = list(map(_get_step, states))
    return states, counts.count(counts[0]) == len(counts)


_get_step = operator.itemgetter("step")


def _put_twins(walk: Any) -> None:
    """What a step and `zero_grad` do for each parameter, in C: with many small ones that takes longer than everything else."""
    for f in (with_grads, states_of):
        put_function(f, walk.Twin(f.__name__, f))
    for kind, name, f in _METHODS:
        if vars(Optimizer)[name] is f:
            setattr(Optimizer, name, walk.Twin(kind, f))


_METHODS = [
    (kind, name, vars(Optimizer)[name])
    for kind, name in (("begin_step", "_begin"), ("apply_step", "_apply"), ("zero_grad", "zero_grad"))
]
when_walking(_put_twins)


class Counted(Optimizer):
    """Its parameters count their steps, and those that have made equally many share one update operator."""

    def _fresh(self, p: Any, group: dict[str, Any]) -> State:
        """The state of a parameter before its first step."""
        raise NotImplementedError

    @declared
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = self._begin(closure)
        for group in self.param_groups:
            params, grads = with_grads(group["params"])
            if not params:
                continue
            states, together = states_of(self.state, params)
            if together:
                self._advance(group, params, grads, states)
                continue
            for p, s in zip(params, states, strict=True):
                if not s:
                    s.update(self._fresh(p, group))
            counts = list(map(_get_step, states))
            for count in sorted(set(counts)):  # parameters that sat out some steps have their own bias corrections
                chosen = [i for i, n in enumerate(counts) if n == count]
                self._advance(group, [params[i] for i in chosen], [grads[i] for i in chosen], [states[i] for i in chosen])
        return loss

    def _advance(self, group: dict[str, Any], params: Tensors, grads: Tensors, states: list[State]) -> None:
        """Update parameters that have all made the same number of steps."""
        self._apply(self._update(group, states[0]), params, grads, states)
