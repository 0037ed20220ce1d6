"""Stochastic gradient descent, with momentum (Sutskever et al. 2013, in PyTorch's form)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torchlet import ops
from torchlet.op import update
from torchlet.optim.optimizer import Optimizer, State, Tensors, Update, declared, number, options, with_grads
from torchlet.tensor import Tensor

__all__ = ["SGD"]


def _gradients(params: Tensors, grads: Tensors, weight_decay: Any, decays: bool, maximize: bool) -> Tensors:
    if maximize:
        grads = [-g for g in grads]
    return [g + p * weight_decay for p, g in zip(params, grads, strict=True)] if decays else grads


def _plain(params: Tensors, grads: Tensors, lr: Any, weight_decay: Any, decays: bool, maximize: bool) -> tuple[Tensors]:
    grads = _gradients(params, grads, weight_decay, decays, maximize)
    return ([p - g * lr for p, g in zip(params, grads, strict=True)],)


def _with_momentum(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: Any, weight_decay: Any, momentum: Any, undamped: Any,
    decays: bool, maximize: bool, nesterov: bool, first: bool,
) -> tuple[Tensors, Tensors]:
    grads = _gradients(params, grads, weight_decay, decays, maximize)
    # the first buffer is the gradient itself, neither damped nor added to anything
    buffers = [g.clone() for g in grads] if first else [b * momentum + g * undamped for b, g in zip(buffers, grads, strict=True)]
    steps = [g + b * momentum for g, b in zip(grads, buffers, strict=True)] if nesterov else buffers
    return [p - s * lr for p, s in zip(params, steps, strict=True)], buffers


sgd = update("sgd", ("params", "grads"), ("lr", "weight_decay"), ("params",), _plain, ("decays", "maximize"), "p -= lr * g")
sgd_momentum = update(
    "sgd_momentum", ("params", "grads", "buffers"), ("lr", "weight_decay", "momentum", "undamped"), ("params", "buffers"), _with_momentum,
    ("decays", "maximize", "nesterov", "first"), "b = momentum * b + (1 - dampening) * g; p -= lr * b",
)


class SGD(Optimizer):
    """p -= lr * b with b = momentum * b + (1 - dampening) * (g + weight_decay * p)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if number(lr) < 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if momentum < 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if weight_decay < 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, options(locals()))

    def _update(self, group: State, state: State) -> Update:
        lr, weight_decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        if lr.__class__ is not float or isinstance(momentum, Tensor):
            lr, momentum = number(lr), number(momentum)
        flags = weight_decay != 0, bool(group["maximize"])
        if momentum == 0:
            return sgd, (), (lr, weight_decay), flags, {}
        scalars, first = (lr, weight_decay, momentum, 1 - group["dampening"]), state.get("momentum_buffer") is None
        return sgd_momentum, ("momentum_buffer",), scalars, (*flags, bool(group["nesterov"]), first), {}

    @declared
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = self._begin(closure)
        for group in self.param_groups:
            params, grads = with_grads(group["params"])
            if not params:
                continue
            if group["momentum"] == 0:
                self._apply(self._update(group, {}), params, grads, [])
                continue
            states = list(map(self.state.__getitem__, params))
            new = [i for i, s in enumerate(states) if s.get("momentum_buffer") is None]
            if not new:
                self._apply(self._update(group, states[0]), params, grads, states)
                continue
            for chosen in (new, sorted(set(range(len(params))) - set(new))):
                if chosen:
                    update = self._update(group, states[chosen[0]])
                    for i in chosen if chosen is new else ():
                        states[i]["momentum_buffer"] = ops.zeros_like(params[i])
                    self._apply(update, [params[i] for i in chosen], [grads[i] for i in chosen], [states[i] for i in chosen])
        return loss
