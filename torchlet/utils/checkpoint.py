"""Gradient checkpointing: what a function saved for its gradient is thrown away and computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchlet import autograd
from torchlet.op import STATE
from torchlet.ops.create import default_generator
from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Tensor

__all__ = ["checkpoint", "checkpoint_sequential"]


class _Again(autograd.Function):
    """Runs without a tape; its gradient runs the function once more, with one."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, run: Callable[..., Any], keep_state: bool, *args: Any) -> Any:
        """The function's result."""
        ctx.run, ctx.state = run, (default_generator.seed_value, default_generator.offset) if keep_state else None
        ctx.places = [k for k, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.rest = [None if isinstance(a, Tensor) else a for a in args]
        ctx.save_for_backward(*[args[k] for k in ctx.places])
        return run(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Run again, go back through that run, and hand the arguments' gradients on."""
        values, now = list(ctx.rest), (default_generator.seed_value, default_generator.offset)
        for k, t in zip(ctx.places, ctx.saved_tensors, strict=True):
            values[k] = t.detach().requires_grad_(t.requires_grad)
        if ctx.state is not None:
            default_generator.seed_value, default_generator.offset = ctx.state
        try:
            with autograd.enable_grad():
                out = ctx.run(*values)
        finally:
            if ctx.state is not None:
                default_generator.seed_value, default_generator.offset = now
        outs = out if isinstance(out, tuple | list) else [out]
        pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if isinstance(o, Tensor) and o.requires_grad]
        autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return (None, None, None, *[v.grad if isinstance(v, Tensor) else None for v in values])


def checkpoint(
    function: Callable[..., Any], *args: Any, use_reentrant: bool | None = None, preserve_rng_state: bool = True, **kwargs: Any
) -> Any:
    """`function(*args, **kwargs)`, keeping only its arguments for the gradient; random numbers are the same when it runs again.

    In compiled code it is a plain call: the compiler itself decides what to keep and what to compute again.
    """
    for name in ("determinism_check", "debug", "context_fn", "early_stop"):
        kwargs.pop(name, None)
    if STATE.run is not None or not autograd.is_grad_enabled():
        return function(*args, **kwargs)
    run = (lambda *values: function(*values, **kwargs)) if kwargs else function
    anchor = FUNCTIONS["zeros"](0, requires_grad=True)  # gradients flow also where only parameters inside need them
    return _Again.apply(anchor, run, preserve_rng_state, *args)


def checkpoint_sequential(functions: Any, segments: int, input: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
    """A chain of functions in `segments` checkpointed parts; the last part runs as usual."""
    listed: Sequence[Any] = list(functions.children()) if hasattr(functions, "children") else list(functions)
    size = len(listed) // segments

    def part(start: int, end: int) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            for f in listed[start:end]:
                x = f(x)
            return x

        return run

    for start in range(0, size * (segments - 1), size):
        input = checkpoint(part(start, start + size), input, use_reentrant=use_reentrant, **kwargs)
    return part(size * (segments - 1), len(listed))(input)
