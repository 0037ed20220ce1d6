"""Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal by a Newton-Schulz iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torchlet import dtypes, ops
from torchlet.op import update
from torchlet.optim.optimizer import Optimizer, State, Tensors, Update, declared, number, options, with_grads

__all__ = ["Muon"]


def orthogonal(g: Any, coefficients: tuple[float, float, float], steps: int, eps: float) -> Any:
    """A matrix with the singular vectors of `g` and singular values near 1, in bfloat16."""
    a, b, c = coefficients
    x = g.to(dtypes.bfloat16)
    tall = g.shape[0] > g.shape[1]
    x = x.transpose(0, 1) if tall else x
    x = x / ops.clamp(ops.sqrt((x.float() * x.float()).sum()).to(dtypes.bfloat16), min=eps)
    for _ in range(steps):
        gram = ops.matmul(x, x.transpose(0, 1))
        x = x * a + ops.matmul(gram * b + ops.matmul(gram, gram) * c, x)
    return x.transpose(0, 1) if tall else x


def _ratio(shape: tuple[int, ...], how: str | None) -> float:
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if how == "match_rms_adamw" else math.sqrt(max(1, rows / columns))


def _muon(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: Any, shrink: Any, momentum: Any, momentum_rest: Any, nesterov: bool,
    coefficients: tuple[float, float, float], eps: float, steps: int, how: str | None,
) -> tuple[Tensors, Tensors]:
    buffers = [b + (g - b) * momentum_rest for b, g in zip(buffers, grads, strict=True)]
    moves = [g + (b - g) * momentum for b, g in zip(buffers, grads, strict=True)] if nesterov else buffers
    moves = [orthogonal(m, coefficients, steps, eps).to(p.dtype) for m, p in zip(moves, params, strict=True)]
    return [p * shrink - m * (lr * _ratio(tuple(p.shape), how)) for p, m in zip(params, moves, strict=True)], buffers


muon = update(
    "muon",
    ("params", "grads", "buffers"),
    ("lr", "shrink", "momentum", "momentum_rest"),
    ("params", "buffers"),
    _muon,
    ("nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"),
    "One step of Muon.",
)


class Muon(Optimizer):
    """For matrices: steps of momentum made orthogonal, with decoupled weight decay. Raises ValueError for other parameters."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7, ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        if not number(lr) >= 0.0:
            raise ValueError(f"Learning rate should be >= 0 but is: {lr}")
        if not momentum >= 0.0:
            raise ValueError(f"momentum should be >= 0 but is: {momentum}")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight decay should be >= 0 but is: {weight_decay}")
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"Adjust learning rate function {adjust_lr_fn} is not supported")
        if ns_steps >= 100:
            raise ValueError("Number of steps must be less than 100 for computational efficiency")
        super().__init__(params, options(locals()))
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon only supports 2D parameters whereas we found a parameter with size: {p.shape}")

    def _update(self, group: State, state: State) -> Update:
        lr = number(group["lr"])
        scalars = (lr, 1 - lr * group["weight_decay"], group["momentum"], 1 - group["momentum"])
        attrs = (bool(group["nesterov"]), tuple(group["ns_coefficients"]), group["eps"], group["ns_steps"], group["adjust_lr_fn"])
        return muon, ("momentum_buffer",), scalars, attrs, {}

    @declared
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = self._begin(closure)
        for group in self.param_groups:
            params, grads = with_grads(group["params"])
            if not params:
                continue
            states = [self.state[p] for p in params]
            for p, s in zip(params, states, strict=True):
                if not s:
                    s["momentum_buffer"] = ops.zeros_like(p)
            self._apply(self._update(group, states[0]), params, grads, states)
        return loss
