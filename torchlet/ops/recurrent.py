"""Recurrent layers over a whole sequence as one operator each way: tanh and ReLU networks, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet.op import STATE, Written, apply, define
from torchlet.ops.arrange import cat
from torchlet.ops.contract import matmul_
from torchlet.ops.reduce import sum_
from torchlet.ops.view import narrow, reshape, transpose
from torchlet.spec import Spec
from torchlet.tensor import Tensor

# gates, states (for LSTM hidden and cell), and what is kept for the gradients: the gates with their functions applied, for GRU followed by
# the hidden part of the candidate. All in units of the hidden size.
MODES = {"RNN_TANH": (1, 1, 0), "RNN_RELU": (1, 1, 0), "LSTM": (4, 2, 4), "GRU": (3, 1, 4)}


def _sigmoid(x: Any) -> Any:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _room(mode: str, h: int) -> int:
    """The length of a row of gradients, with some space where the columns of a matrix of such rows would fall into one set of the cache."""
    width = (MODES[mode][0] + (mode == "GRU")) * h
    return width if width % 512 else width + 16


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _forward(gates: Any, w_hh: Any, b_hh: Any, initial: Any, *rest: Any) -> Any:
    *lengths, mode, reverse, keep = rest
    dtype = gates.dtype
    gates, w_hh, b_hh, state = (_wide(x) for x in (gates, w_hh, b_hh, initial))
    steps, n, _ = gates.shape
    h = w_hh.shape[1]
    states, kept = MODES[mode][1:]
    turned = np.ascontiguousarray(w_hh.T)
    out = np.empty((states + (kept if keep else 0), steps, n, h), state.dtype)
    if mode != "GRU":
        gates = gates + b_hh
    for t in _order(steps, reverse):
        x, hidden = gates[t], state[0] @ turned
        new = out[:states, t]
        if mode == "LSTM":
            a = x + hidden
            g = np.tanh(a[:, 2 * h : 3 * h])
            a = _sigmoid(a)
            np.add(a[:, h : 2 * h] * state[1], a[:, :h] * g, out=new[1])
            np.multiply(a[:, 3 * h :], np.tanh(new[1]), out=new[0])
            parts = (a[:, :h], a[:, h : 2 * h], g, a[:, 3 * h :])
        elif mode == "GRU":
            hidden += b_hh
            rz = _sigmoid(x[:, : 2 * h] + hidden[:, : 2 * h])
            candidate = np.tanh(x[:, 2 * h :] + rz[:, :h] * hidden[:, 2 * h :])
            np.add(candidate, rz[:, h:] * (state[0] - candidate), out=new[0])
            parts = (rz[:, :h], rz[:, h:], candidate, hidden[:, 2 * h :])
        elif mode == "RNN_TANH":
            np.tanh(x + hidden, out=new[0])
        else:
            np.maximum(x + hidden, 0, out=new[0])
        if keep and kept:
            np.stack(parts, out=out[states:, t])
        if lengths:
            over = lengths[0] <= t
            new[:, over] = state[:, over]
            out[states:, t, over] = 0
        state = new
    return out.astype(dtype, copy=False)


def _backward(grad: Any, w_hh: Any, initial: Any, kept: Any, *rest: Any) -> Any:
    """The gradients of the gates (for GRU followed by that of the hidden part of the candidate); the last row is that of `initial`."""
    *lengths, mode, reverse = rest
    dtype = grad.dtype
    grad, w_hh, initial, kept = (_wide(x) for x in (grad, w_hh, initial, kept))
    steps, n, h = grad.shape[1:]
    width, wide = (k * h for k in MODES[mode][:2])
    out = np.zeros((steps + 1, n, _room(mode, h)), grad.dtype)
    carry = np.zeros_like(initial)
    for k, t in enumerate(reversed(_order(steps, reverse)), 1):
        total = grad[:, t] + carry
        dh, d = total[0], out[t, :, :width]
        before = initial if k == steps else kept[: len(initial), t + 1 if reverse else t - 1]  # the state the step started from
        if mode == "LSTM":
            _, c, i, f, g, o = kept[:, t]
            bent = np.tanh(c)
            dc = total[1] + dh * o * (1 - bent * bent)
            d[:, :h] = dc * g * i * (1 - i)
            d[:, h : 2 * h] = dc * before[1] * f * (1 - f)
            d[:, 2 * h : 3 * h] = dc * i * (1 - g * g)
            d[:, 3 * h :] = dh * bent * o * (1 - o)
            carry = np.stack((d @ w_hh, dc * f))
        elif mode == "GRU":
            _, r, z, candidate, inner = kept[:, t]
            dn = dh * (1 - z) * (1 - candidate * candidate)
            d[:, :h] = dn * inner * r * (1 - r)
            d[:, h : 2 * h] = dh * (before[0] - candidate) * z * (1 - z)
            d[:, 2 * h :] = dn
            out[t, :, width : width + h] = dn * r
            carry = (np.concatenate([d[:, : 2 * h], dn * r], 1) @ w_hh + dh * z)[None]
        else:
            d[...] = dh * (1 - kept[0, t] * kept[0, t] if mode == "RNN_TANH" else kept[0, t] > 0)
            carry = (d @ w_hh)[None]
        if lengths:  # a sample that is over hands everything on
            over = lengths[0] <= t
            out[t, over] = 0
            carry[:, over] = total[:, over]
    out[steps, :, :wide] = carry.transpose(1, 0, 2).reshape(n, wide)
    return out.astype(dtype, copy=False)


def _spec(gates: Spec, w_hh: Spec, b_hh: Spec, initial: Spec, *rest: Any) -> Spec:
    mode, _, keep = rest[-3:]
    count, states, kept = MODES[mode]
    steps, n, width = gates.shape
    h = w_hh.shape[1]
    if width != count * h or initial.shape != (states, n, h):
        raise RuntimeError(
            f"recurrent: gates of shape {gates.shape}, weight {w_hh.shape} and initial state {initial.shape} do not fit {mode}"
        )
    return Spec((states + (kept if keep else 0), steps, n, h), gates.dtype, gates.device)


def _grad_spec(grad: Spec, w_hh: Spec, initial: Spec, kept: Spec, *rest: Any) -> Spec:
    _, steps, n, h = grad.shape
    return Spec((steps + 1, n, _room(rest[-2], h)), grad.dtype, grad.device)


recurrent_grad_ = define(
    "recurrent_grad",
    ("grad", "w_hh", "initial", "kept", "*lengths"),
    _backward,
    _grad_spec,
    None,
    ("mode", "reverse"),
    doc="The gradients of `recurrent`, from what it kept and the gradient of its states: (T + 1, N, …) with the gates' in the first T rows and "
    "the initial states' in the last; what is left of a row means nothing.",
)


def _grads(g: Tensor, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool, keep: bool) -> Tensor:
    """All gradients from one pass. At once it is kept with `g` for the other inputs; in a graph, equal nodes are one anyway."""
    memo = g.__dict__.get("_recurrent") if STATE.run is None else None
    if memo is not None and memo[0] is out:
        return memo[1]  # type: ignore[no-any-return]
    more = tuple(lengths or ())
    _, states, kept = MODES[mode]
    full = out if keep or not kept else apply(recurrent_, (gates, w_hh, b_hh, initial, *more), (mode, reverse, True))
    found = apply(recurrent_grad_, (narrow(g, 0, 0, states), w_hh, initial, full, *more), (mode, reverse))
    if STATE.run is None:
        g.__dict__["_recurrent"] = out, found
    return found


def _gate_grads(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool, keep: bool) -> Tensor:
    grads = narrow(_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse, keep), 0, 0, gates.shape[0])
    return narrow(grads, 2, 0, gates.shape[2])


def _hidden_grads(
    g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool, keep: bool
) -> Tensor:
    """(T * N, gates): the gradients of what the hidden state contributes."""
    grads = narrow(_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse, keep), 0, 0, gates.shape[0])
    h = w_hh.shape[1]
    if mode == "GRU":
        grads = cat([narrow(grads, 2, 0, 2 * h), narrow(grads, 2, 3 * h, h)], 2)
    else:
        grads = narrow(grads, 2, 0, gates.shape[2])
    return reshape(grads, (-1, gates.shape[2]))


def _weight_grad(
    g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool, keep: bool
) -> Tensor:
    d = _hidden_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse, keep)
    steps, h = gates.shape[0], w_hh.shape[1]
    first = narrow(initial, 0, 0, 1)
    if steps > 1:
        others = narrow(narrow(out, 0, 0, 1), 1, 1 if reverse else 0, steps - 1)
        first = cat([reshape(x, (-1, h)) for x in ((others, first) if reverse else (first, others))], 0)
    return apply(matmul_, (transpose(d, 0, 1), reshape(first, (-1, h))))


def _bias_grad(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool, keep: bool) -> Tensor:
    if mode == "GRU":
        return apply(sum_, (_hidden_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse, keep),), ((0,), False))
    d = _gate_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse, keep)  # in whose shape the other bias is summed, too
    return apply(sum_, (d,), ((0, 1), False))


def _initial_grad(
    g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool, keep: bool
) -> Tensor:
    last = _grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse, keep).select(0, gates.shape[0])
    states, n, h = initial.shape
    return transpose(reshape(narrow(last, 1, 0, states * h), (n, states, h)), 0, 1)


_RULES: dict[str, Callable[..., Any]] = {"gates": _gate_grads, "w_hh": _weight_grad, "b_hh": _bias_grad, "initial": _initial_grad}
recurrent_ = define(
    "recurrent",
    ("gates", "w_hh", "b_hh", "initial", "*lengths"),
    _forward,
    _spec,
    None,
    ("mode", "reverse", "keep"),
    _RULES,
    doc="The states (hidden; for LSTM hidden and cell) of a recurrent layer at every step, (states, T, N, hidden size), from what its inputs "
    "contribute to the gates (T, N, gates) and the initial states (states, N, hidden size). Past its length a sample keeps its state. With "
    "`keep` they are followed by what the gradients are made of (see `MODES`); without it the gradients compute that again.",
)

# The same as kernels of a GPU (`compiler.recurrent`), which puts them into graphs.
loop_ = define(
    "recurrent_loop", ("gates", "w_hh", "b_hh", "initial", "*lengths"), _forward, _spec, Written(), ("mode", "reverse", "keep"),
    doc="`recurrent` as a kernel of a GPU.",
)  # fmt: skip
loop_grad_ = define(
    "recurrent_loop_grad", ("grad", "w_hh", "initial", "kept", "*lengths"), _backward, _grad_spec, Written(), ("mode", "reverse"),
    doc="`recurrent_grad` as a kernel of a GPU.",
)  # fmt: skip
