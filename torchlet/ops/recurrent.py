"""Recurrent layers over a whole sequence as one operator each way: tanh and ReLU networks, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet.op import STATE, apply, define
from torchlet.ops.arrange import cat
from torchlet.ops.contract import matmul_
from torchlet.ops.reduce import sum_
from torchlet.ops.view import narrow, reshape, transpose, unsqueeze
from torchlet.spec import Spec
from torchlet.tensor import Tensor

MODES = {"RNN_TANH": (1, 1), "RNN_RELU": (1, 1), "LSTM": (4, 2), "GRU": (3, 1)}  # gates and states, in units of the hidden size


def _sigmoid(x: Any) -> Any:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _forward(gates: Any, w_hh: Any, b_hh: Any, initial: Any, *rest: Any) -> Any:
    *lengths, mode, reverse = rest
    dtype = gates.dtype
    gates, w_hh, b_hh, state = (_wide(x) for x in (gates, w_hh, b_hh, initial))
    steps, n, _ = gates.shape
    h = w_hh.shape[1]
    turned = np.ascontiguousarray(w_hh.T)
    out = np.empty((steps, n, state.shape[1]), state.dtype)
    if mode != "GRU":
        gates = gates + b_hh
    for t in _order(steps, reverse):
        x, hidden = gates[t], state[:, :h] @ turned
        new = out[t]
        if mode == "LSTM":
            a = x + hidden
            g = np.tanh(a[:, 2 * h : 3 * h])
            a = _sigmoid(a)
            c = a[:, h : 2 * h] * state[:, h:] + a[:, :h] * g
            np.multiply(a[:, 3 * h :], np.tanh(c), out=new[:, :h])
            new[:, h:] = c
        elif mode == "GRU":
            hidden += b_hh
            rz = _sigmoid(x[:, : 2 * h] + hidden[:, : 2 * h])
            candidate = np.tanh(x[:, 2 * h :] + rz[:, :h] * hidden[:, 2 * h :])
            new[...] = candidate + rz[:, h:] * (state - candidate)
        elif mode == "RNN_TANH":
            np.tanh(x + hidden, out=new)
        else:
            np.maximum(x + hidden, 0, out=new)
        if lengths:
            over = lengths[0] <= t
            new[over] = state[over]
        state = new
    return out.astype(dtype, copy=False)


def _backward(grad: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, states: Any, *rest: Any) -> Any:
    """The gradients of the gates (for GRU followed by that of the hidden part of the candidate); the last row is that of `initial`."""
    *lengths, mode, reverse = rest
    dtype = gates.dtype
    grad, gates, w_hh, b_hh, initial, states = (_wide(x) for x in (grad, gates, w_hh, b_hh, initial, states))
    steps, n, width = gates.shape
    h = w_hh.shape[1]
    extra = h if mode == "GRU" else 0
    out = np.zeros((steps + 1, n, width + extra), gates.dtype)
    before = np.concatenate([states[1:], initial[None]] if reverse else [initial[None], states[:-1]])  # the state each step started from
    hidden = (before[:, :, :h].reshape(steps * n, h) @ w_hh.T + b_hh).reshape(steps, n, width)
    carry = np.zeros_like(initial)
    for t in reversed(_order(steps, reverse)):
        total = grad[t] + carry
        dh, d = total[:, :h], out[t]
        if mode == "LSTM":
            a = gates[t] + hidden[t]
            g = np.tanh(a[:, 2 * h : 3 * h])
            a = _sigmoid(a)
            i, f, o = a[:, :h], a[:, h : 2 * h], a[:, 3 * h :]
            bent = np.tanh(states[t][:, h:])
            dc = total[:, h:] + dh * o * (1 - bent * bent)
            d[:, :h] = dc * g * i * (1 - i)
            d[:, h : 2 * h] = dc * before[t][:, h:] * f * (1 - f)
            d[:, 2 * h : 3 * h] = dc * i * (1 - g * g)
            d[:, 3 * h :] = dh * bent * o * (1 - o)
            back = np.concatenate([d @ w_hh, dc * f], 1)
        elif mode == "GRU":
            rz = _sigmoid(gates[t][:, : 2 * h] + hidden[t][:, : 2 * h])
            r, z = rz[:, :h], rz[:, h:]
            inner = hidden[t][:, 2 * h :]
            candidate = np.tanh(gates[t][:, 2 * h :] + r * inner)
            dn = dh * (1 - z) * (1 - candidate * candidate)
            d[:, :h] = dn * inner * r * (1 - r)
            d[:, h : 2 * h] = dh * (before[t] - candidate) * z * (1 - z)
            d[:, 2 * h : 3 * h] = dn
            d[:, 3 * h :] = dn * r
            back = np.concatenate([d[:, : 2 * h], d[:, 3 * h :]], 1) @ w_hh + dh * z
        else:
            d[...] = dh * (1 - states[t] * states[t] if mode == "RNN_TANH" else states[t] > 0)
            back = d @ w_hh
        if lengths:  # a sample that is over hands everything on
            over = lengths[0] <= t
            d[over] = 0
            back[over] = total[over]
        carry = back
    out[steps, :, : carry.shape[1]] = carry
    return out.astype(dtype, copy=False)


def _spec(gates: Spec, w_hh: Spec, b_hh: Spec, initial: Spec, *rest: Any) -> Spec:
    mode = rest[-2]
    count, states = MODES[mode]
    h = w_hh.shape[1]
    if gates.shape[2] != count * h or initial.shape != (gates.shape[1], states * h):
        raise RuntimeError(
            f"recurrent: gates of shape {gates.shape}, weight {w_hh.shape} and initial state {initial.shape} do not fit {mode}"
        )
    return Spec((*gates.shape[:2], states * h), gates.dtype, gates.device)


def _grad_spec(grad: Spec, gates: Spec, w_hh: Spec, b_hh: Spec, initial: Spec, states: Spec, *rest: Any) -> Spec:
    steps, n, width = gates.shape
    return Spec((steps + 1, n, width + (w_hh.shape[1] if rest[-2] == "GRU" else 0)), gates.dtype, gates.device)


recurrent_grad_ = define(
    "recurrent_grad",
    ("grad", "gates", "w_hh", "b_hh", "initial", "states", "*lengths"),
    _backward,
    _grad_spec,
    None,
    ("mode", "reverse"),
    doc="The gradients of `recurrent`: (T + 1, N, …) with the gates' in the first T rows and the initial state's in the last.",
)


def _grads(g: Tensor, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool) -> Tensor:
    """All gradients from one pass. At once it is kept with `g` for the other inputs; in a graph, equal nodes are one anyway."""
    if STATE.run is not None:
        return apply(recurrent_grad_, (g, gates, w_hh, b_hh, initial, out, *(lengths or ())), (mode, reverse))
    memo = g.__dict__.get("_recurrent")
    if memo is None or memo[0] is not out:
        memo = g.__dict__["_recurrent"] = (
            out,
            apply(recurrent_grad_, (g, gates, w_hh, b_hh, initial, out, *(lengths or ())), (mode, reverse)),
        )
    return memo[1]


def _gate_grads(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool) -> Tensor:
    grads = narrow(_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse), 0, 0, gates.shape[0])
    return narrow(grads, 2, 0, gates.shape[2])


def _hidden_grads(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool) -> Tensor:
    """(T * N, gates): the gradients of what the hidden state contributes."""
    grads = narrow(_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse), 0, 0, gates.shape[0])
    h = w_hh.shape[1]
    if mode == "GRU":
        grads = cat([narrow(grads, 2, 0, 2 * h), narrow(grads, 2, 3 * h, h)], 2)
    return reshape(grads, (-1, gates.shape[2]))


def _weight_grad(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool) -> Tensor:
    d = _hidden_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse)
    steps, h = gates.shape[0], w_hh.shape[1]
    first = unsqueeze(narrow(initial, 1, 0, h), 0)
    if steps > 1:
        others = narrow(narrow(out, 0, 1 if reverse else 0, steps - 1), 2, 0, h)
        first = cat([others, first] if reverse else [first, others], 0)
    return apply(matmul_, (transpose(d, 0, 1), reshape(first, (-1, h))))


def _bias_grad(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool) -> Tensor:
    return apply(sum_, (_hidden_grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse),), ((0,), False))


def _initial_grad(g: Any, gates: Any, w_hh: Any, b_hh: Any, initial: Any, out: Any, lengths: Any, mode: str, reverse: bool) -> Tensor:
    last = _grads(g, gates, w_hh, b_hh, initial, out, lengths, mode, reverse).select(0, gates.shape[0])
    return narrow(last, 1, 0, initial.shape[1])


_RULES: dict[str, Callable[..., Any]] = {"gates": _gate_grads, "w_hh": _weight_grad, "b_hh": _bias_grad, "initial": _initial_grad}
recurrent_ = define(
    "recurrent",
    ("gates", "w_hh", "b_hh", "initial", "*lengths"),
    _forward,
    _spec,
    None,
    ("mode", "reverse"),
    _RULES,
    doc="The states (T, N, hidden; for LSTM hidden then cell) of a recurrent layer from what its inputs contribute to the gates (T, N, gates). "
    "Past its length a sample keeps its state.",
)
