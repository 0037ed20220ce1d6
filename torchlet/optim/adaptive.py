"""Optimizers that scale each element by its own history: RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, Rprop, ASGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchlet import ops
from torchlet.op import Op, update
from torchlet.optim.optimizer import Counted, State, Tensors, Update, check_rates, number, options

__all__ = ["ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"]


def _decayed(params: Tensors, grads: Tensors, decay: Any, kind: str, maximize: bool) -> tuple[Tensors, Tensors]:
    """Parameters and gradients with weight decay in one of them."""
    if maximize:
        grads = [-g for g in grads]
    if kind == "gradient":
        grads = [g + p * decay for p, g in zip(params, grads, strict=True)]
    elif kind == "decoupled":
        params = [p * decay for p in params]
    return params, grads


def _decay_of(group: State) -> tuple[str, float]:
    """How weight decay is applied, and its factor."""
    if group["weight_decay"] == 0:
        return "none", 0.0
    if group.get("decoupled_weight_decay"):
        return "decoupled", 1 - number(group["lr"]) * group["weight_decay"]
    return "gradient", group["weight_decay"]


# ------------------------------------------------------------------------------------------------ RMSprop


def _rmsprop(params: Tensors, grads: Tensors, squares: Tensors, *rest: Any) -> tuple[Tensors, ...]:
    *extra, lr, alpha, alpha_rest, eps, momentum, decay, kind, maximize, centered, heavy = rest
    params, grads = _decayed(params, grads, decay, kind, maximize)
    squares = [s * alpha + g * g * alpha_rest for s, g in zip(squares, grads, strict=True)]
    averages = extra.pop(0) if centered else []
    if centered:
        averages = [a + (g - a) * alpha_rest for a, g in zip(averages, grads, strict=True)]
        roots = [(s - a * a).sqrt() + eps for s, a in zip(squares, averages, strict=True)]
    else:
        roots = [s.sqrt() + eps for s in squares]
    steps = [g / r for g, r in zip(grads, roots, strict=True)]
    out = [squares, *([averages] if centered else [])]
    if heavy:
        steps = [b * momentum + s for b, s in zip(extra[0], steps, strict=True)]
        out.append(steps)
    return [p - s * lr for p, s in zip(params, steps, strict=True)], *out


_RMS_SCALARS = ("lr", "alpha", "alpha_rest", "eps", "momentum", "decay")
_RMSPROP: dict[tuple[bool, bool], Op] = {}
for _centered in (False, True):
    for _heavy in (False, True):
        _states = ("squares", *(["averages"] if _centered else []), *(["buffers"] if _heavy else []))
        _RMSPROP[_centered, _heavy] = update(
            "rmsprop" + ("_centered" if _centered else "") + ("_momentum" if _heavy else ""),
            ("params", "grads", *_states),
            _RMS_SCALARS,
            ("params", *_states),
            _rmsprop,
            ("decay_kind", "maximize", "centered", "heavy"),
            "One step of RMSprop.",
        )


class RMSprop(Counted):
    """Gradients divided by the root of a running average of their squares (Hinton 2012)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_rates(lr, weight_decay, eps)
        if not momentum >= 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if not alpha >= 0.0:
            raise ValueError(f"Invalid alpha value: {alpha}")
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        state: State = {"step": 0.0, "square_avg": ops.zeros_like(p)}
        if group["momentum"] > 0:
            state["momentum_buffer"] = ops.zeros_like(p)
        if group["centered"]:
            state["grad_avg"] = ops.zeros_like(p)
        return state

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        centered, heavy = bool(group["centered"]), group["momentum"] > 0
        names = ["square_avg", *(["grad_avg"] if centered else []), *(["momentum_buffer"] if heavy else [])]
        kind, decay = _decay_of(group)
        scalars = (number(group["lr"]), group["alpha"], 1 - group["alpha"], group["eps"], group["momentum"], decay)
        return _RMSPROP[centered, heavy], tuple(names), scalars, (kind, bool(group["maximize"]), centered, heavy), {"step": step}


# ------------------------------------------------------------------------------------------------ Adagrad


def _adagrad(
    params: Tensors, grads: Tensors, sums: Tensors, rate: Any, eps: Any, decay: Any, kind: str, maximize: bool
) -> tuple[Tensors, ...]:
    params, grads = _decayed(params, grads, decay, kind, maximize)
    sums = [s + g * g for s, g in zip(sums, grads, strict=True)]
    return [p - g / (s.sqrt() + eps) * rate for p, g, s in zip(params, grads, sums, strict=True)], sums


adagrad = update(
    "adagrad",
    ("params", "grads", "sums"),
    ("rate", "eps", "decay"),
    ("params", "sums"),
    _adagrad,
    ("decay_kind", "maximize"),
    "One step of Adagrad.",
)


class Adagrad(Counted):
    """Gradients divided by the root of the sum of their squares (Duchi et al. 2011)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, lr_decay: float = 0, weight_decay: float = 0, initial_accumulator_value: float = 0,
        eps: float = 1e-10, foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_rates(lr, weight_decay, eps)
        if not lr_decay >= 0.0:
            raise ValueError(f"Invalid lr_decay value: {lr_decay}")
        if not initial_accumulator_value >= 0.0:
            raise ValueError(f"Invalid initial_accumulator_value value: {initial_accumulator_value}")
        super().__init__(params, options(locals()))
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].update(self._fresh(p, group))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "sum": ops.full_like(p.detach(), group["initial_accumulator_value"])}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        kind, decay = _decay_of(group)
        rate = number(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        return adagrad, ("sum",), (rate, group["eps"], decay), (kind, bool(group["maximize"])), {"step": step}

    def share_memory(self) -> None:
        """Nothing to do: processes share by files."""


# ------------------------------------------------------------------------------------------------ Adadelta


def _adadelta(
    params: Tensors, grads: Tensors, squares: Tensors, moves: Tensors, lr: Any, rho: Any, rho_rest: Any, eps: Any, decay: Any, kind: str,
    maximize: bool,
) -> tuple[Tensors, ...]:
    params, grads = _decayed(params, grads, decay, kind, maximize)
    squares = [s * rho + g * g * rho_rest for s, g in zip(squares, grads, strict=True)]
    steps = [(m + eps).sqrt() / (s + eps).sqrt() * g for m, s, g in zip(moves, squares, grads, strict=True)]
    moves = [m * rho + d * d * rho_rest for m, d in zip(moves, steps, strict=True)]
    return [p - d * lr for p, d in zip(params, steps, strict=True)], squares, moves


adadelta = update(
    "adadelta",
    ("params", "grads", "squares", "moves"),
    ("lr", "rho", "rho_rest", "eps", "decay"),
    ("params", "squares", "moves"),
    _adadelta,
    ("decay_kind", "maximize"),
    "One step of Adadelta.",
)


class Adadelta(Counted):
    """Steps in the units of the parameters, from running averages of squared gradients and squared steps (Zeiler 2012)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0,
        foreach: bool | None = None, *, capturable: bool = False, maximize: bool = False, differentiable: bool = False,
    ) -> None:
        check_rates(lr, weight_decay, eps)
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "square_avg": ops.zeros_like(p), "acc_delta": ops.zeros_like(p)}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        kind, decay = _decay_of(group)
        scalars = (number(group["lr"]), group["rho"], 1 - group["rho"], group["eps"], decay)
        return adadelta, ("square_avg", "acc_delta"), scalars, (kind, bool(group["maximize"])), {"step": step}


# ------------------------------------------------------------------------------------------------ Adamax


def _adamax(
    params: Tensors, grads: Tensors, averages: Tensors, norms: Tensors, rate: Any, beta1_rest: Any, beta2: Any, eps: Any, decay: Any,
    kind: str, maximize: bool,
) -> tuple[Tensors, ...]:
    params, grads = _decayed(params, grads, decay, kind, maximize)
    averages = [m + (g - m) * beta1_rest for m, g in zip(averages, grads, strict=True)]
    norms = [ops.maximum(n * beta2, g.abs() + eps) for n, g in zip(norms, grads, strict=True)]
    return [p - m / n * rate for p, m, n in zip(params, averages, norms, strict=True)], averages, norms


adamax = update(
    "adamax",
    ("params", "grads", "averages", "norms"),
    ("rate", "beta1_rest", "beta2", "eps", "decay"),
    ("params", "averages", "norms"),
    _adamax,
    ("decay_kind", "maximize"),
    "One step of Adamax.",
)


class Adamax(Counted):
    """Adam with the largest gradient in place of the root of their mean square (Kingma & Ba 2014)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        check_rates(lr, weight_decay, eps, betas)
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "exp_avg": ops.zeros_like(p), "exp_inf": ops.zeros_like(p)}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        kind, decay = _decay_of(group)
        beta1, beta2 = group["betas"]
        scalars = (number(group["lr"]) / (1 - beta1**step), 1 - beta1, beta2, group["eps"], decay)
        return adamax, ("exp_avg", "exp_inf"), scalars, (kind, bool(group["maximize"])), {"step": step}


# ------------------------------------------------------------------------------------------------ NAdam


def _nadam(
    params: Tensors, grads: Tensors, averages: Tensors, squares: Tensors, grad_rate: Any, average_rate: Any, beta1_rest: Any, beta2: Any,
    beta2_rest: Any, correction: Any, eps: Any, decay: Any, kind: str, maximize: bool,
) -> tuple[Tensors, ...]:
    params, grads = _decayed(params, grads, decay, kind, maximize)
    averages = [m + (g - m) * beta1_rest for m, g in zip(averages, grads, strict=True)]
    squares = [v * beta2 + g * g * beta2_rest for v, g in zip(squares, grads, strict=True)]
    roots = [(v / correction).sqrt() + eps for v in squares]
    params = [p - (g * grad_rate + m * average_rate) / r for p, g, m, r in zip(params, grads, averages, roots, strict=True)]
    return params, averages, squares


nadam = update(
    "nadam",
    ("params", "grads", "averages", "squares"),
    ("grad_rate", "average_rate", "beta1_rest", "beta2", "beta2_rest", "correction", "eps", "decay"),
    ("params", "averages", "squares"),
    _nadam,
    ("decay_kind", "maximize"),
    "One step of NAdam.",
)


class NAdam(Counted):
    """Adam with Nesterov momentum (Dozat 2016)."""

    _numbers = ("step", "mu_product")

    def __init__(
        self, params: Iterable[Any], lr: float = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
    ) -> None:
        check_rates(lr, weight_decay, eps, betas)
        if not momentum_decay >= 0.0:
            raise ValueError(f"Invalid momentum_decay value: {momentum_decay}")
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "mu_product": 1.0, "exp_avg": ops.zeros_like(p), "exp_avg_sq": ops.zeros_like(p)}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        kind, decay = _decay_of(group)
        lr, (beta1, beta2) = number(group["lr"]), group["betas"]
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))
        after = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * group["momentum_decay"]))
        product = state["mu_product"] * mu
        scalars = (
            lr * (1 - mu) / (1 - product),
            lr * after / (1 - product * after),
            1 - beta1,
            beta2,
            1 - beta2,
            1 - beta2**step,
            group["eps"],
            decay,
        )
        after = {"step": step, "mu_product": product}
        return nadam, ("exp_avg", "exp_avg_sq"), scalars, (kind, bool(group["maximize"])), after


# ------------------------------------------------------------------------------------------------ RAdam


def _radam(
    params: Tensors, grads: Tensors, averages: Tensors, squares: Tensors, rate: Any, scale: Any, beta1_rest: Any, beta2: Any,
    beta2_rest: Any, eps: Any, decay: Any, kind: str, maximize: bool, rectified: bool,
) -> tuple[Tensors, ...]:
    params, grads = _decayed(params, grads, decay, kind, maximize)
    averages = [m + (g - m) * beta1_rest for m, g in zip(averages, grads, strict=True)]
    squares = [v * beta2 + g * g * beta2_rest for v, g in zip(squares, grads, strict=True)]
    steps = [m / (v.sqrt() + eps) * scale for m, v in zip(averages, squares, strict=True)] if rectified else averages
    return [p - s * rate for p, s in zip(params, steps, strict=True)], averages, squares


radam = update(
    "radam",
    ("params", "grads", "averages", "squares"),
    ("rate", "scale", "beta1_rest", "beta2", "beta2_rest", "eps", "decay"),
    ("params", "averages", "squares"),
    _radam,
    ("decay_kind", "maximize", "rectified"),
    "One step of RAdam.",
)


class RAdam(Counted):
    """Adam that scales by the second moment only once that is known well enough (Liu et al. 2019)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, decoupled_weight_decay: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False,
    ) -> None:
        check_rates(lr, weight_decay, eps, betas)
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "exp_avg": ops.zeros_like(p), "exp_avg_sq": ops.zeros_like(p)}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        kind, decay = _decay_of(group)
        beta1, beta2 = group["betas"]
        second = 1 - beta2**step
        limit = 2 / (1 - beta2) - 1
        known = limit - 2 * step * beta2**step / second
        rectified, scale = known > 5.0, 1.0
        if rectified:
            scale = second**0.5 * ((known - 4) * (known - 2) * limit / ((limit - 4) * (limit - 2) * known)) ** 0.5
        scalars = (number(group["lr"]) / (1 - beta1**step), scale, 1 - beta1, beta2, 1 - beta2, group["eps"], decay)
        attrs = (kind, bool(group["maximize"]), rectified)
        return radam, ("exp_avg", "exp_avg_sq"), scalars, attrs, {"step": step}


# ------------------------------------------------------------------------------------------------ Rprop


def _rprop(
    params: Tensors, grads: Tensors, before: Tensors, sizes: Tensors, shrink: Any, grow: Any, smallest: Any, largest: Any, maximize: bool
) -> tuple[Tensors, ...]:
    if maximize:
        grads = [-g for g in grads]
    agreement = [g * b for g, b in zip(grads, before, strict=True)]
    sizes = [
        ops.minimum(ops.maximum(ops.where(a > 0, s * grow, ops.where(a < 0, s * shrink, s)), smallest), largest)
        for a, s in zip(agreement, sizes, strict=True)
    ]
    grads = [ops.where(a < 0, 0.0, g) for a, g in zip(agreement, grads, strict=True)]
    return [p - g.sign() * s for p, g, s in zip(params, grads, sizes, strict=True)], grads, sizes


rprop = update(
    "rprop",
    ("params", "grads", "before", "sizes"),
    ("shrink", "grow", "smallest", "largest"),
    ("params", "before", "sizes"),
    _rprop,
    ("maximize",),
    "One step of Rprop.",
)


class Rprop(Counted):
    """Steps by the sign of the gradient, longer while it stays and shorter when it turns (Riedmiller & Braun 1993)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50), *, capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_rates(lr, 0.0)
        if not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(f"Invalid eta values: {etas[0]}, {etas[1]}")
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "prev": ops.zeros_like(p), "step_size": ops.full_like(p.detach(), number(group["lr"]))}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        scalars = tuple(map(float, (*group["etas"], *group["step_sizes"])))
        return rprop, ("prev", "step_size"), scalars, (bool(group["maximize"]),), {"step": step}


# ------------------------------------------------------------------------------------------------ ASGD


def _asgd(
    params: Tensors, grads: Tensors, averages: Tensors, eta: Any, shrink: Any, weight: Any, decay: Any, kind: str, maximize: bool
) -> tuple[Tensors, ...]:
    params, grads = _decayed(params, grads, decay, kind, maximize)
    params = [p * shrink - g * eta for p, g in zip(params, grads, strict=True)]
    return params, [a + (p - a) * weight for a, p in zip(averages, params, strict=True)]


asgd = update(
    "asgd",
    ("params", "grads", "averages"),
    ("eta", "shrink", "weight", "decay"),
    ("params", "averages"),
    _asgd,
    ("decay_kind", "maximize"),
    "One step of averaged SGD.",
)


class ASGD(Counted):
    """SGD whose iterates are averaged into `ax` of the state (Polyak & Juditsky 1992)."""

    _numbers = ("step", "eta", "mu")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False, capturable: bool = False,
    ) -> None:
        check_rates(lr, weight_decay)
        super().__init__(params, options(locals()))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "eta": number(group["lr"]), "mu": 1.0, "ax": ops.zeros_like(p)}

    def _update(self, group: State, state: State) -> Update:
        step = state["step"] + 1
        kind, decay = _decay_of(group)
        eta, lr = state["eta"], number(group["lr"])
        after = {
            "step": step, "eta": lr / (1 + group["lambd"] * lr * step) ** group["alpha"], "mu": 1 / max(1.0, step - group["t0"])
        }
        scalars = (eta, 1 - group["lambd"] * eta, state["mu"], decay)
        return asgd, ("ax",), scalars, (kind, bool(group["maximize"])), after
