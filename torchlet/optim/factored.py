"""Optimizers for large matrices: Adafactor, which keeps row and column means, and SparseAdam, which moves only rows with a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torchlet import ops
from torchlet.op import update
from torchlet.optim.optimizer import Counted, State, Tensors, Update, check_rates, number

__all__ = ["Adafactor", "SparseAdam"]


def _moved(p: Any, g: Any, estimate: Any, rho: Any, decay: Any, eps1: Any, eps2: Any, d: Any) -> Any:
    """A step of size rho in units of the parameter's own root mean square, cut where the update's is above d."""
    size = math.sqrt(p.numel())
    alpha = (p.norm() / size).clamp(min=eps2) * rho
    change = estimate.clamp(min=eps1 * eps1).rsqrt() * g
    return p * decay - change * (alpha / (change.norm() / (size * d)).clamp(min=1.0))


def _matrices(
    params: Tensors,
    grads: Tensors,
    rows: Tensors,
    columns: Tensors,
    mix: Any,
    rho: Any,
    decay: Any,
    eps1: float,
    eps2: float,
    d: float,
    maximize: bool,
) -> tuple[Tensors, ...]:
    grads = [-g for g in grads] if maximize else grads
    rows = [r + ((g * g).mean(-1, keepdim=True) - r) * mix for r, g in zip(rows, grads, strict=True)]
    columns = [c + ((g * g).mean(-2, keepdim=True) - c) * mix for c, g in zip(columns, grads, strict=True)]
    estimates = [(r @ c) / r.mean(-2, keepdim=True).clamp(min=eps1) for r, c in zip(rows, columns, strict=True)]
    return [_moved(p, g, e, rho, decay, eps1, eps2, d) for p, g, e in zip(params, grads, estimates, strict=True)], rows, columns


def _vectors(
    params: Tensors, grads: Tensors, variances: Tensors, mix: Any, rho: Any, decay: Any, eps1: float, eps2: float, d: float, maximize: bool
) -> tuple[Tensors, ...]:
    grads = [-g for g in grads] if maximize else grads
    variances = [v + (g * g - v) * mix for v, g in zip(variances, grads, strict=True)]
    return [_moved(p, g, v, rho, decay, eps1, eps2, d) for p, g, v in zip(params, grads, variances, strict=True)], variances


_SCALARS, _ATTRIBUTES = ("mix", "rho", "decay"), ("eps1", "eps2", "d", "maximize")
adafactor_matrices = update(
    "adafactor_matrices", ("params", "grads", "rows", "columns"), _SCALARS, ("params", "rows", "columns"), _matrices, _ATTRIBUTES,
    "One step of Adafactor for parameters of two or more dimensions.",
)  # fmt: skip
adafactor_vectors = update(
    "adafactor_vectors", ("params", "grads", "variances"), _SCALARS, ("params", "variances"), _vectors, _ATTRIBUTES,
    "One step of Adafactor for vectors and numbers.",
)  # fmt: skip


class Adafactor(Counted):
    """Adaptive steps that remember one number a row and one a column (Shazeer & Stern 2018)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        check_rates(lr, weight_decay)
        if not 0.0 >= beta2_decay:
            raise ValueError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
        if eps[0] is not None and not eps[0] >= 0.0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps[0]}")
        if not eps[1] >= 0.0:
            raise ValueError(f"epsilon2 should be >= 0 but is: {eps[1]}")
        if not d >= 1.0:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {d}")
        super().__init__(
            params, dict(lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, foreach=foreach, maximize=maximize)
        )

    def _fresh(self, p: Any, group: State) -> State:
        if p.ndim < 2:
            return {"step": 0.0, "variance": ops.zeros_like(p.detach())}
        zeros = p.detach().new_zeros
        return {"step": 0.0, "row_var": zeros((*p.shape[:-1], 1)), "col_var": zeros((*p.shape[:-2], 1, p.shape[-1]))}

    def _advance(self, group: State, params: Tensors, grads: Tensors, states: list[State]) -> None:
        for wide in (True, False):
            chosen = [k for k, p in enumerate(params) if (p.ndim > 1) == wide]
            for kind in {params[k].dtype for k in chosen}:
                own = [k for k in chosen if params[k].dtype is kind]
                super()._advance(group, [params[k] for k in own], [grads[k] for k in own], [states[k] for k in own])

    def _update(self, group: State, state: State) -> Update:
        step, lr = state["step"] + 1, number(group["lr"])
        op, names = (adafactor_matrices, ("row_var", "col_var")) if "row_var" in state else (adafactor_vectors, ("variance",))
        eps1 = ops.finfo(state[names[0]].dtype).eps if group["eps"][0] is None else group["eps"][0]
        scalars = (step ** group["beta2_decay"], min(lr, 1 / step**0.5), 1 - lr * group["weight_decay"])
        return op, names, scalars, (eps1, group["eps"][1], group["d"], bool(group["maximize"])), {"step": step}


def _sparse_adam(
    params: Tensors, grads: Tensors, means: Tensors, squares: Tensors, rate: Any, beta1: Any, beta2: Any, eps: Any, maximize: bool
) -> tuple[Tensors, ...]:
    out: tuple[Tensors, ...] = ([], [], [])
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        g = -g if maximize else g
        hit = g.ne(0) if g.ndim < 2 else g.ne(0).reshape(g.shape[0], -1).any(1).reshape(-1, *[1] * (g.ndim - 1))
        mean, square = m + (g - m) * (1.0 - beta1), v + (g * g - v) * (1.0 - beta2)
        for kept, new, old in zip(out, (p - mean / (square.sqrt() + eps) * rate, mean, square), (p, m, v), strict=True):
            kept.append(ops.where(hit, new, old))
    return out


sparse_adam = update(
    "sparse_adam", ("params", "grads", "means", "squares"), ("rate", "beta1", "beta2", "eps"), ("params", "means", "squares"), _sparse_adam,
    ("maximize",), "One step of Adam for the rows that have a gradient.",
)  # fmt: skip


class SparseAdam(Counted):
    """Adam that moves only the rows whose gradient is not zero: those of an embedding that a batch used."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, maximize: bool = False
    ) -> None:
        if not number(lr) > 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps > 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for k, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {k}: {beta}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, maximize=maximize))

    def _fresh(self, p: Any, group: State) -> State:
        return {"step": 0.0, "exp_avg": ops.zeros_like(p.detach()), "exp_avg_sq": ops.zeros_like(p.detach())}

    def _update(self, group: State, state: State) -> Update:
        step, (beta1, beta2) = state["step"] + 1, group["betas"]
        rate = number(group["lr"]) * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        scalars = (rate, beta1, beta2, group["eps"])
        return sparse_adam, ("exp_avg", "exp_avg_sq"), scalars, (bool(group["maximize"]),), {"step": step}
