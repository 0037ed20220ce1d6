"""torchlet.jit: TorchScript's words. Functions and modules stay what they are; `torchlet.compile` makes them fast."""


from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, Dict, Final, List, Optional, Tuple, TypeVar  # noqa: UP035  names of torch.jit.annotations

from torchlet.futures import Future
from torchlet.nn.module import Module

__all__ = [
    "Final",
    "annotate",
    "ScriptFunction",
    "ScriptModule",
    "export",
    "fork",
    "freeze",
    "ignore",
    "interface",
    "is_scripting",
    "is_tracing",
    "optimize_for_inference",
    "script",
    "script_if_tracing",
    "script_method",
    "set_fusion_strategy",
    "trace",
    "trace_module",
    "unused",
    "wait",
]

F = TypeVar("F")
ScriptModule, ScriptFunction = Module, FunctionType
annotations: Any = SimpleNamespace(List=List, Dict=Dict, Optional=Optional, Tuple=Tuple)  # noqa: UP006


def script(obj: F, *_: Any, **__: Any) -> F:
    """The function or module itself."""
    return obj


export = interface = script_if_tracing = script_method = freeze = optimize_for_inference = script
_script_if_tracing = _overload_method = script


def ignore(drop: Any = False, **_: Any) -> Any:
    """Decorator that leaves a function as it is."""
    return drop if callable(drop) else lambda f: f


def unused(fn: F) -> F:
    """The function itself."""
    return fn


def trace(func: F, example_inputs: Any = None, *_: Any, **__: Any) -> F:
    """The function or module itself: every path stays open."""
    return func


def annotate(the_type: Any, the_value: F) -> F:
    """The value itself."""
    return the_value


def is_scripting() -> bool:
    """False: Python runs."""
    return False


def is_tracing() -> bool:
    """False: Python runs."""
    return False


def trace_module(mod: F, inputs: Any = None, *_: Any, **__: Any) -> F:
    """The module itself: every path stays open."""
    return mod


def fork(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
    """The function's result, as a future; it runs now."""
    out = Future()
    try:
        out.set_result(func(*args, **kwargs))
    except Exception as error:
        out.set_exception(error)
    return out


def wait(future: Future) -> Any:
    """The value of a future."""
    return future.wait()


def set_fusion_strategy(strategy: Any) -> list[Any]:
    """Accepted; which kernels are fused is not a matter of depth here."""
    return []
