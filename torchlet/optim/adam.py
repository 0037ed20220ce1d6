"""Adam (Kingma & Ba 2014) with AMSGrad (Reddi et al. 2018), and AdamW (Loshchilov & Hutter 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchlet import ops
from torchlet.op import update
from torchlet.optim.optimizer import Counted, State, Tensors, Update, check_rates, number, options

__all__ = ["Adam", "AdamW"]

_AVERAGES = ("exp_avg", "exp_avg_sq")
_WITH_LARGEST = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def _adam(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step_size: Any, beta1_rest: Any, beta2: Any, beta2_rest: Any,
    eps: Any, decay: Any, decay_kind: str, maximize: bool,
) -> tuple[Tensors, Tensors, Tensors]:
    params, exp_avgs, exp_avg_sqs = _moments(
        params, grads, exp_avgs, exp_avg_sqs, beta1_rest, beta2, beta2_rest, decay, decay_kind, maximize
    )
    return _moved(params, exp_avgs, exp_avg_sqs, step_size, eps), exp_avgs, exp_avg_sqs


def _amsgrad(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, max_exp_avg_sqs: Tensors, step_size: Any, beta1_rest: Any,
    beta2: Any, beta2_rest: Any, eps: Any, decay: Any, decay_kind: str, maximize: bool,
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    params, exp_avgs, exp_avg_sqs = _moments(
        params, grads, exp_avgs, exp_avg_sqs, beta1_rest, beta2, beta2_rest, decay, decay_kind, maximize
    )
    largest = [ops.maximum(a, b) for a, b in zip(max_exp_avg_sqs, exp_avg_sqs, strict=True)]
    return _moved(params, exp_avgs, largest, step_size, eps), exp_avgs, exp_avg_sqs, largest


def _moments(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, beta1_rest: Any, beta2: Any, beta2_rest: Any, decay: Any,
    decay_kind: str, maximize: bool,
) -> tuple[Tensors, Tensors, Tensors]:
    """Parameters after decoupled decay, and the two new running averages."""
    if maximize:
        grads = [-g for g in grads]
    if decay_kind == "gradient":
        grads = [g + p * decay for p, g in zip(params, grads, strict=True)]
    elif decay_kind == "decoupled":
        params = [p * decay for p in params]
    exp_avgs = [m + (g - m) * beta1_rest for m, g in zip(exp_avgs, grads, strict=True)]
    exp_avg_sqs = [v * beta2 + g * g * beta2_rest for v, g in zip(exp_avg_sqs, grads, strict=True)]
    return params, exp_avgs, exp_avg_sqs


def _moved(params: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step_size: Any, eps: Any) -> Tensors:
    return [p - m / (v.sqrt() + eps) * step_size for p, m, v in zip(params, exp_avgs, exp_avg_sqs, strict=True)]


# Scalars are combined in Python, in double precision: 1 - 0.999 computed in float32 is wrong in its fifth digit.
_LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs")
_SCALARS = ("step_size", "beta1_rest", "beta2", "beta2_rest", "eps", "decay")
_WRITES = ("params", "exp_avgs", "exp_avg_sqs")
adam = update("adam", _LISTS, _SCALARS, _WRITES, _adam, ("decay_kind", "maximize"), "Adam and AdamW: one step of each tensor.")
amsgrad = update(
    "adam_amsgrad", (*_LISTS, "max_exp_avg_sqs"), _SCALARS, (*_WRITES, "max_exp_avg_sqs"), _amsgrad, ("decay_kind", "maximize"),
    "Adam and AdamW whose second moment never shrinks.",
)


class Adam(Counted):
    """Steps scaled by running averages of the gradient and its square; `weight_decay` is added to the gradient."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None, decoupled_weight_decay: bool = False,
    ) -> None:
        check_rates(lr, weight_decay, eps, betas)
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, **{name: ops.zeros_like(p) for name in (_WITH_LARGEST if group["amsgrad"] else _AVERAGES)}}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        lr, (beta1, beta2), weight_decay = group["lr"], group["betas"], group["weight_decay"]
        if not (lr.__class__ is beta1.__class__ is beta2.__class__ is float):
            lr, beta1, beta2 = number(lr), number(beta1), number(beta2)
        if weight_decay == 0:
            decay_kind, decay = "none", 0.0
        elif group["decoupled_weight_decay"]:
            decay_kind, decay = "decoupled", 1 - lr * weight_decay
        else:
            decay_kind, decay = "gradient", weight_decay
        correction = (1 - beta2**step) ** 0.5  # of sqrt(v): on the numbers around it instead, it costs no division of each element
        scalars = (lr / (1 - beta1**step) * correction, 1 - beta1, beta2, 1 - beta2, group["eps"] * correction, decay)
        op, names = (amsgrad, _WITH_LARGEST) if group["amsgrad"] else (adam, _AVERAGES)
        return op, names, scalars, (decay_kind, bool(group["maximize"])), {"step": step}


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters themselves instead of entering the gradient."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )
