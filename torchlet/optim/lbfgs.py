"""L-BFGS (Liu & Nocedal 1989), with a line search by the strong Wolfe conditions (Nocedal & Wright, algorithms 3.5 and 3.6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torchlet import ops
from torchlet.autograd import enable_grad, no_grad
from torchlet.optim.optimizer import Optimizer, number
from torchlet.tensor import Tensor

__all__ = ["LBFGS"]

Evaluate = Callable[[float], tuple[float, Tensor]]  # step length -> loss and gradient there


def _cubic_minimum(x1: float, f1: float, g1: float, x2: float, f2: float, g2: float, bounds: tuple[float, float] | None = None) -> float:
    """Where the cubic through two points with their slopes is smallest, within bounds."""
    low, high = bounds or ((x1, x2) if x1 <= x2 else (x2, x1))
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    square = d1 * d1 - g1 * g2
    if square < 0:
        return (low + high) / 2
    d2 = math.sqrt(square)
    at = x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2)) if x1 <= x2 else x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    return min(max(at, low), high)


def _strong_wolfe(
    evaluate: Evaluate,
    t: float,
    reach: float,
    f: float,
    g: Tensor,
    slope: float,
    direction: Tensor,
    tolerance: float,
    c1: float = 1e-4,
    c2: float = 0.9,
    limit: int = 25,
) -> tuple[float, Tensor, float, int]:
    """Loss, gradient, step length and number of evaluations at a point that satisfies the conditions, or the best one found."""
    f_new, g_new = evaluate(t)
    count, slope_new = 1, float(ops.dot(g_new, direction))
    t_before, f_before, g_before, slope_before = 0.0, f, g, slope
    done, k = False, 0
    bracket: list[tuple[float, float, Any, float]] = []
    while k < limit:
        here = (t, f_new, g_new, slope_new)
        if f_new > f + c1 * t * slope or (k > 1 and f_new >= f_before):
            bracket = [(t_before, f_before, g_before, slope_before), here]
            break
        if abs(slope_new) <= -c2 * slope:
            bracket, done = [here], True
            break
        if slope_new >= 0:
            bracket = [(t_before, f_before, g_before, slope_before), here]
            break
        low, high = t + 0.01 * (t - t_before), t * 10
        longer = _cubic_minimum(t_before, f_before, slope_before, t, f_new, slope_new, (low, high))
        t_before, f_before, g_before, slope_before = here
        t = longer
        f_new, g_new = evaluate(t)
        count, slope_new, k = count + 1, float(ops.dot(g_new, direction)), k + 1
    if not bracket:
        bracket = [(0.0, f, g, slope), (t, f_new, g_new, slope_new)]
    stuck = False
    best, other = (0, 1) if bracket[0][1] <= bracket[-1][1] else (1, 0)
    while not done and k < limit:
        span = abs(bracket[1][0] - bracket[0][0])
        if span * reach < tolerance:
            break
        t = _cubic_minimum(bracket[0][0], bracket[0][1], bracket[0][3], bracket[1][0], bracket[1][1], bracket[1][3])
        ends = bracket[0][0], bracket[1][0]
        margin = 0.1 * (max(ends) - min(ends))
        if min(max(ends) - t, t - min(ends)) < margin:  # too near an end: once is let pass inside, then it is moved
            if stuck or t >= max(ends) or t <= min(ends):
                t = max(ends) - margin if abs(t - max(ends)) < abs(t - min(ends)) else min(ends) + margin
                stuck = False
            else:
                stuck = True
        else:
            stuck = False
        f_new, g_new = evaluate(t)
        count, slope_new, k = count + 1, float(ops.dot(g_new, direction)), k + 1
        here = (t, f_new, g_new, slope_new)
        if f_new > f + c1 * t * slope or f_new >= bracket[best][1]:
            bracket[other] = here
            best, other = (0, 1) if bracket[0][1] <= bracket[1][1] else (1, 0)
        else:
            if abs(slope_new) <= -c2 * slope:
                done = True
            elif slope_new * (bracket[other][0] - bracket[best][0]) >= 0:
                bracket[other] = bracket[best]
            bracket[best] = here
    t, f_new, g_new, _ = bracket[best if len(bracket) > 1 else 0]
    return f_new, g_new, t, count


class LBFGS(Optimizer):
    """Steps from the last `history_size` gradients; needs a closure that computes the loss and its gradients anew."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        if not number(lr) >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        super().__init__(
            params,
            dict(
                lr=lr,
                max_iter=max_iter,
                max_eval=max_iter * 5 // 4 if max_eval is None else max_eval,
                tolerance_grad=tolerance_grad,
                tolerance_change=tolerance_change,
                history_size=history_size,
                line_search_fn=line_search_fn,
            ),
        )
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")
        self._params: list[Tensor] = self.param_groups[0]["params"]

    def _gradient(self) -> Tensor:
        return ops.cat([ops.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.reshape(-1) for p in self._params]).detach()

    def _move(self, t: float, direction: Tensor) -> None:
        start = 0
        for p in self._params:
            count = p.numel()
            p.add_(direction[start : start + count].reshape(p.shape) * t)
            start += count

    @no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to `max_iter` iterations. Returns the first loss."""
        if closure is None:
            raise TypeError("LBFGS.step() missing 1 required positional argument: 'closure'")
        self._opt_called = True
        group = self.param_groups[0]
        lr, tolerance = number(group["lr"]), group["tolerance_change"]
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError("only 'strong_wolfe' is supported")

        def run() -> Any:
            with enable_grad():
                return closure()

        state = self.state[self._params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        first = run()
        loss, evaluations = float(first), 1
        state["func_evals"] += 1
        g = self._gradient()
        if float(g.abs().max()) <= group["tolerance_grad"]:
            return first
        d: Any = state.get("d")
        t: Any = state.get("t")
        dirs: Any = state.get("old_dirs")
        steps: Any = state.get("old_stps")
        ro: Any = state.get("ro")
        scale: Any = state.get("H_diag")
        g_before: Any = state.get("prev_flat_grad")
        loss_before: Any = state.get("prev_loss")
        iterations = 0
        while iterations < group["max_iter"]:
            iterations += 1
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                d, dirs, steps, ro, scale = -g, [], [], [], 1.0
            else:
                y, s = g - g_before, d * t
                ys = float(ops.dot(y, s))
                if ys > 1e-10:
                    if len(dirs) == group["history_size"]:
                        dirs.pop(0), steps.pop(0), ro.pop(0)
                    dirs.append(y), steps.append(s), ro.append(1.0 / ys)
                    scale = ys / float(ops.dot(y, y))
                d = _two_loops(-g, dirs, steps, ro, scale)
            g_before, loss_before = g.clone(), loss
            t = min(1.0, 1.0 / float(g.abs().sum())) * lr if state["n_iter"] == 1 else lr
            slope = float(ops.dot(g, d))
            if slope > -tolerance:
                break
            count = 0
            if group["line_search_fn"] is not None:
                start = [p.clone() for p in self._params]

                def evaluate(length: float, start: list[Tensor] = start, d: Tensor = d) -> tuple[float, Tensor]:
                    self._move(length, d)
                    value, gradient = float(run()), self._gradient()
                    for p, x in zip(self._params, start, strict=True):
                        p.copy_(x)
                    return value, gradient

                loss, g, t, count = _strong_wolfe(evaluate, t, float(d.abs().max()), loss, g, slope, d, tolerance)
                self._move(t, d)
                small = float(g.abs().max()) <= group["tolerance_grad"]
            else:
                self._move(t, d)
                small = False
                if iterations != group["max_iter"]:
                    loss, g, count = float(run()), self._gradient(), 1
                    small = float(g.abs().max()) <= group["tolerance_grad"]
            evaluations += count
            state["func_evals"] += count
            if iterations == group["max_iter"] or evaluations >= group["max_eval"] or small:
                break
            if float((d * t).abs().max()) <= tolerance or abs(loss - loss_before) < tolerance:
                break
        state.update(d=d, t=t, old_dirs=dirs, old_stps=steps, ro=ro, H_diag=scale, prev_flat_grad=g_before, prev_loss=loss_before)
        return first


def _two_loops(q: Tensor, dirs: list[Tensor], steps: list[Tensor], ro: list[float], scale: float) -> Tensor:
    """The inverse Hessian, as the history knows it, times q."""
    weights = []
    for y, s, r in zip(reversed(dirs), reversed(steps), reversed(ro), strict=True):
        weights.append(float(ops.dot(s, q)) * r)
        q = q - y * weights[-1]
    q = q * scale
    for y, s, r, w in zip(dirs, steps, ro, reversed(weights), strict=True):
        q = q + s * (w - float(ops.dot(y, q)) * r)
    return q
