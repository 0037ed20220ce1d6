"""What else PyTorch keeps under torch.autograd: Jacobians and Hessians, checks by differences, anomaly mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from torchlet import autograd, func, profiler
from torchlet.autograd import force
from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Node, Tensor

__all__ = ["detect_anomaly", "functional", "gradcheck", "gradgradcheck", "set_detect_anomaly"]


def _several(inputs: Any) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _settled(value: Any, create_graph: bool) -> Any:
    return value if create_graph else func.tree_map(lambda t: t.detach(), value)


def jacobian(
    function: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """The Jacobian of a function: a tensor for one input, else a tuple with one for each."""
    given = _several(inputs)
    found = func.jacrev(function, tuple(range(len(given))))(*[x if create_graph else x.detach() for x in given])
    single = isinstance(inputs, Tensor)
    if single:
        found = found[0] if isinstance(found[0], Tensor) else tuple(row[0] for row in found)
    return _settled(found, create_graph)


def hessian(
    function: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """The second derivatives of a function that gives one number: a tensor for one input, else tuples of tuples."""
    given = _several(inputs)
    numbers = tuple(range(len(given)))

    def first(*xs: Tensor) -> Any:
        return func.jacrev(function, numbers)(*xs)

    found = func.jacrev(first, numbers)(*[x if create_graph else x.detach() for x in given])
    return _settled(found[0][0] if isinstance(inputs, Tensor) else found, create_graph)


def vjp(function: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(value, gradients of the inputs for the weights v)."""
    given = _several(inputs)
    value, pull = func.vjp(function, *given)
    weights = FUNCTIONS["ones_like"](value) if v is None else v
    grads = pull(weights, create_graph=create_graph)
    return value, _settled(grads[0] if isinstance(inputs, Tensor) else grads, create_graph)


def jvp(function: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(value, derivative along v)."""
    given = _several(inputs)
    along = tuple(FUNCTIONS["ones_like"](x) for x in given) if v is None else _several(v)
    value, tangent = func.jvp(function, given, along)
    return value, tangent


def hvp(function: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(value, Hessian times v)."""
    given = _several(inputs)
    along = tuple(FUNCTIONS["ones_like"](x) for x in given) if v is None else _several(v)
    numbers = tuple(range(len(given)))

    def product(*xs: Tensor) -> Tensor:
        grads = func.jacrev(function, numbers)(*xs)
        return sum(((g * d).sum() for g, d in zip(grads, along, strict=True)), FUNCTIONS["zeros"](()))

    found = func.jacrev(product, numbers)(*given)
    return _settled(function(*given), create_graph), _settled(found[0] if isinstance(inputs, Tensor) else found, create_graph)


functional = SimpleNamespace(jacobian=jacobian, hessian=hessian, vjp=vjp, jvp=jvp, hvp=hvp, vhp=hvp)


def _outputs(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    out = function(*inputs)
    return [t for t in _several(out) if isinstance(t, Tensor) and t.dtype.is_floating_point]


def gradcheck(
    function: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    **_: Any,
) -> bool:
    """Compare gradients with central differences (in float64). Raises RuntimeError where they differ, unless told not to."""
    given = list(_several(inputs))
    wanted = [k for k, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
    if not wanted:
        raise ValueError("gradcheck expects at least one input tensor to require gradient, but none of the them have requires_grad=True.")
    for number, out in enumerate(_outputs(function, given)):
        if not out.requires_grad:
            continue
        for k in wanted:
            x = given[k]
            rows = []
            for position in range(out.numel()):
                (g,) = autograd.grad(out.reshape(-1)[position], [x], retain_graph=True, allow_unused=True, materialize_grads=True)
                assert g is not None
                rows.append(force(g).reshape(-1).copy())
            analytic = np.stack(rows, 1) if rows else np.zeros((x.numel(), 0))
            numeric = _differences(function, given, k, number, eps)
            if not np.allclose(analytic, numeric, rtol, atol):
                if raise_exception:
                    raise RuntimeError(
                        f"Jacobian mismatch for output {number} with respect to input {k},\nnumerical:{numeric}\nanalytical:{analytic}\n"
                    )
                return False
    return True


def _differences(function: Callable[..., Any], inputs: list[Any], k: int, number: int, eps: float) -> Any:
    base = force(inputs[k].detach()).copy()
    columns = []
    for i in range(base.size):
        ends = []
        for sign in (1, -1):
            moved = base.copy().reshape(-1)
            moved[i] += sign * eps
            values = list(inputs)
            values[k] = FUNCTIONS["tensor"](moved.reshape(base.shape)).requires_grad_()
            ends.append(force(_outputs(function, values)[number].detach()).reshape(-1).copy())
        columns.append((ends[0] - ends[1]) / (2 * eps))
    return np.stack(columns)


def gradgradcheck(function: Callable[..., Any], inputs: Any, grad_outputs: Any = None, **options: Any) -> bool:
    """`gradcheck` of the gradients."""
    given = _several(inputs)
    wanted = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    weights = (
        [FUNCTIONS["randn_like"](o).requires_grad_() for o in _outputs(function, given)]
        if grad_outputs is None
        else list(_several(grad_outputs))
    )

    def first(*xs: Any) -> tuple[Tensor, ...]:
        inner, seeds = xs[: len(given)], xs[len(given) :]
        outs = _outputs(function, inner)
        leaves = [x for x in inner if isinstance(x, Tensor) and x.requires_grad]
        return autograd.grad(outs, leaves, list(seeds), create_graph=True, allow_unused=True, materialize_grads=True)  # type: ignore[return-value]

    options.setdefault("atol", 1e-5)
    assert wanted
    return gradcheck(first, (*given, *weights), **options)


class set_detect_anomaly(contextlib.ContextDecorator):
    """Accepted: errors of the backward pass name their operation anyway, and NaN is not looked for."""

    def __init__(self, mode: bool = True, check_nan: bool = True):
        self.mode = mode

    def __enter__(self) -> set_detect_anomaly:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind."""


class detect_anomaly(set_detect_anomaly):
    """`set_detect_anomaly(True)`."""


class save_on_cpu(contextlib.ContextDecorator):
    """Where tensors lie on the CPU, what is saved for the backward pass is there already; on other devices it stays where it is."""

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda"):
        self.pin_memory, self.device_type = pin_memory, device_type

    def __enter__(self) -> None:
        """Nothing to move."""

    def __exit__(self, *_: object) -> None:
        """Nothing to move back."""


class _Handles:
    """Several hooks that are removed together."""

    def __init__(self, handles: Sequence[Any]):
        self.handles = tuple(handles)

    def remove(self) -> None:
        """Call the hook no more."""
        for handle in self.handles:
            handle.remove()


def register_multi_grad_hook(tensors: Sequence[Tensor], fn: Callable[..., Any], *, mode: str = "all") -> _Handles:
    """Call `fn` once in a backward pass: with all gradients when all are known ("all"), or with the first one ("any")."""
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of 'all' or 'any' but got {mode}")
    grads: dict[int, Tensor] = {}

    def hook_of(k: int) -> Callable[[Tensor], None]:
        def hook(g: Tensor) -> None:
            first = not grads
            grads[k] = g
            if mode == "any" and first:
                fn(g)
            elif mode == "all" and len(grads) == len(tensors):
                fn([grads[i] for i in range(len(tensors))])
            if len(grads) == len(tensors):
                grads.clear()

        return hook

    return _Handles([t.register_hook(hook_of(k)) for k, t in enumerate(tensors)])


def increment_version(tensor: Any) -> None:
    """Say that a tensor (or each of several) was overwritten by other means."""
    for t in tensor if isinstance(tensor, list | tuple) else (tensor,):
        t._store.version += 1


NAMES: dict[str, Any] = {
    "functional": functional,
    "gradcheck": gradcheck,
    "gradgradcheck": gradgradcheck,
    "set_detect_anomaly": set_detect_anomaly,
    "detect_anomaly": detect_anomaly,
    "Variable": lambda data, requires_grad=False: data.requires_grad_() if requires_grad else data,
    "grad_mode": SimpleNamespace(
        no_grad=autograd.no_grad,
        enable_grad=autograd.enable_grad,
        set_grad_enabled=autograd.set_grad_enabled,
        inference_mode=autograd.inference_mode,
    ),
    "function": SimpleNamespace(Function=autograd.Function, FunctionCtx=autograd.Context, once_differentiable=lambda f: f),
    "profiler": SimpleNamespace(
        record_function=profiler.record_function, profile=profiler.autograd_profile, EventList=profiler.EventList,
        FunctionEvent=profiler.FunctionEvent,
    ),
    "graph": SimpleNamespace(
        Node=Node, save_on_cpu=save_on_cpu, register_multi_grad_hook=register_multi_grad_hook, increment_version=increment_version
    ),
}
