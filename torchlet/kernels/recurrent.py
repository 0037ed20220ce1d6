"""The time loops of recurrent layers for one block of a batch: device functions that `compiler.recurrent` puts behind an entry point.

Samples do not meet in a recurrence, so a program takes some of them through all steps and needs no other program. The state that a
step leaves is read by the next from where it lies in memory, behind a barrier of the program. MODE: 0 tanh, 1 ReLU, 2 LSTM, 3 GRU;
the rows of the weight are the gates' in PyTorch's order (i, f, g, o; r, z, n). Past its length a sample keeps its state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchlet.kernels.device_math import maximum, sigmoid, tanh


@triton.jit
def gate_sums(
    begun, before, is_first, w, first, live, INITIAL_E: tl.constexpr, OUT_E: tl.constexpr, W_ROW: tl.constexpr, W_E: tl.constexpr,
    H: tl.constexpr, GATES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What hidden states (rows of `begun` in the first step, else of `before`) add to the gates of BLOCK_N units from number `first` on."""
    a, b = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    c, d = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    unit = first + tl.arange(0, BLOCK_N)[None, :]
    for start in range(0, H, BLOCK_K):
        row, column = start + tl.arange(0, BLOCK_K)[:, None], start + tl.arange(0, BLOCK_K)[None, :]
        hidden = tl.load(tl.where(is_first, begun + column * INITIAL_E, before + column * OUT_E), mask=live & (column < H), other=0.0)
        weight, there = w + unit * W_ROW + row * W_E, (row < H) & (unit < H)
        a = tl.dot(hidden, tl.load(weight, mask=there, other=0.0), a, input_precision=PRECISION)
        if GATES > 1:
            b = tl.dot(hidden, tl.load(weight + H * W_ROW, mask=there, other=0.0), b, input_precision=PRECISION)
            c = tl.dot(hidden, tl.load(weight + 2 * H * W_ROW, mask=there, other=0.0), c, input_precision=PRECISION)
        if GATES > 3:
            d = tl.dot(hidden, tl.load(weight + 3 * H * W_ROW, mask=there, other=0.0), d, input_precision=PRECISION)
    return a, b, c, d


@triton.jit
def number(at, inside):
    """Elements as float32."""
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def recurrent_forward(
    block, gates, w_hh, b_hh, initial, lengths, out, carry, steps, batch, gates_step, gates_row, initial_plane, initial_row, out_plane,
    out_step, out_row, MODE: tl.constexpr, REVERSE: tl.constexpr, H: tl.constexpr, LENGTHS: tl.constexpr, KEEP: tl.constexpr,
    CARRY: tl.constexpr, GATES_E: tl.constexpr, W_HH_ROW: tl.constexpr, W_HH_E: tl.constexpr, B_HH_E: tl.constexpr,
    INITIAL_E: tl.constexpr, LENGTHS_E: tl.constexpr, OUT_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All steps of one block of samples: planes of `out` are the states and, to KEEP, what the gradients need (`ops.recurrent.MODES`).

    CARRY: what is added to from step to step (the cell of an LSTM, the state of a GRU) is kept there in float32, too.
    """
    GATES: tl.constexpr = 1 if MODE < 2 else 4 if MODE == 2 else 3
    PLACE: tl.constexpr = 1 if MODE == 2 else 0  # the plane of that
    sample = block * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    live = sample < batch
    sample = tl.cast(sample, tl.int64)
    until = tl.load(lengths + sample * LENGTHS_E, mask=live, other=0) if LENGTHS else 0
    begun = initial + sample * initial_row
    out_plane, initial_plane = tl.cast(out_plane, tl.int64), tl.cast(initial_plane, tl.int64)
    kind = out.dtype.element_ty
    for i in tl.range(0, steps, num_stages=1):  # nothing of a step may be read before the one before it has ended
        t = tl.cast(steps - 1 - i if REVERSE else i, tl.int64)
        now = out + t * out_step + sample * out_row
        before = now + out_step if REVERSE else now - out_step
        for first in range(0, H, BLOCK_N):
            a, b, c, d = gate_sums(
                begun, before, i == 0, w_hh, first, live, INITIAL_E, OUT_E, W_HH_ROW, W_HH_E, H, GATES, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )  # fmt: skip
            unit = first + tl.arange(0, BLOCK_N)[None, :]
            inside = live & (unit < H)
            x = gates + t * gates_step + sample * gates_row + unit * GATES_E
            bias = b_hh + unit * B_HH_E
            here, there, early = now + unit * OUT_E, before + unit * OUT_E, begun + unit * INITIAL_E
            a += number(bias, unit < H)
            if GATES > 1:
                a, b = a + number(x, inside), b + number(x + H * GATES_E, inside) + number(bias + H * B_HH_E, unit < H)
                c += number(bias + 2 * H * B_HH_E, unit < H)
            if CARRY:
                old = number(early + PLACE * initial_plane, inside & (i == 0)) + number(carry + sample * H + unit, inside & (i > 0))
            elif MODE > 1 or LENGTHS:
                old = number(tl.where(i == 0, early + PLACE * initial_plane, there + PLACE * out_plane), inside)
            if MODE == 0:
                new = tanh(a + number(x, inside))
            elif MODE == 1:
                new = maximum(a + number(x, inside), 0.0)
            elif MODE == 2:
                a, b = sigmoid(a), sigmoid(b)
                c = tanh(c + number(x + 2 * H * GATES_E, inside))
                d = sigmoid(d + number(x + 3 * H * GATES_E, inside) + number(bias + 3 * H * B_HH_E, unit < H))
                new = b * old + a * c
                hidden = d * tanh(new)
            else:
                a, b, d = sigmoid(a), sigmoid(b), c
                c = tanh(number(x + 2 * H * GATES_E, inside) + a * d)
                new = c + b * (old - c)
            if LENGTHS:
                over = until <= t
                new = tl.where(over, old, new)
                if MODE == 2:
                    hidden = tl.where(over, number(tl.where(i == 0, early, there), inside), hidden)
                if KEEP:
                    a, b, c, d = tl.where(over, 0.0, a), tl.where(over, 0.0, b), tl.where(over, 0.0, c), tl.where(over, 0.0, d)
            tl.store(here + PLACE * out_plane, new.to(kind), mask=inside)
            if MODE == 2:
                tl.store(here, hidden.to(kind), mask=inside)
            if CARRY:
                tl.store(carry + sample * H + unit, new, mask=inside)
            if KEEP:
                plane = here + (PLACE + 1) * out_plane
                tl.store(plane, a.to(kind), mask=inside)
                tl.store(plane + out_plane, b.to(kind), mask=inside)
                tl.store(plane + 2 * out_plane, c.to(kind), mask=inside)
                tl.store(plane + 3 * out_plane, d.to(kind), mask=inside)
        tl.debug_barrier()


@triton.jit
def recurrent_backward(
    block, grad, w_hh, initial, kept, lengths, out, carry, steps, batch, grad_plane, grad_step, grad_row, initial_plane, initial_row,
    kept_plane, kept_step, kept_row, out_step, out_row, MODE: tl.constexpr, REVERSE: tl.constexpr, H: tl.constexpr, LENGTHS: tl.constexpr,
    GRAD_E: tl.constexpr, W_HH_ROW: tl.constexpr, W_HH_E: tl.constexpr, INITIAL_E: tl.constexpr, KEPT_E: tl.constexpr,
    LENGTHS_E: tl.constexpr, OUT_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """From the last step to the first the gates' gradients, then the initial states', as `ops.recurrent._backward` lays them out.

    `carry` (batch, hidden and for LSTM cell) holds what a step hands on besides the product of its gates' gradients with the weight.
    """
    GATES: tl.constexpr = 1 if MODE < 2 else 4 if MODE == 2 else 3
    STATES: tl.constexpr = 2 if MODE == 2 else 1
    TILES: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    sample = block * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    live = sample < batch
    sample = tl.cast(sample, tl.int64)
    until = tl.load(lengths + sample * LENGTHS_E, mask=live, other=0) if LENGTHS else 0
    kept_plane, grad_plane, initial_plane = tl.cast(kept_plane, tl.int64), tl.cast(grad_plane, tl.int64), tl.cast(initial_plane, tl.int64)
    kind = out.dtype.element_ty
    for i in tl.range(0, steps + 1, num_stages=1):
        t = tl.cast(i if REVERSE else steps - 1 - i, tl.int64)
        now = out + t * out_step + sample * out_row
        done = now - out_step if REVERSE else now + out_step
        for first in range(0, H, BLOCK_N):
            unit = first + tl.arange(0, BLOCK_N)[None, :]
            inside = live & (unit < H)
            dh = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if i > 0:
                for k in range(GATES * TILES):
                    gate = k // TILES
                    start = k % TILES * BLOCK_K
                    row, column = start + tl.arange(0, BLOCK_K)[:, None], start + tl.arange(0, BLOCK_K)[None, :]
                    place = gate * H
                    if MODE == 3:  # the third gate's hidden part comes after its other part
                        place = tl.where(gate == 2, 3 * H, place)
                    d = tl.load(done + (place + column) * OUT_E, mask=live & (column < H), other=0.0)
                    weight = tl.load(w_hh + (gate * H + row) * W_HH_ROW + unit * W_HH_E, mask=(row < H) & (unit < H), other=0.0)
                    dh = tl.dot(d, weight, dh, input_precision=PRECISION)
            handed = carry + sample * (STATES * H) + unit
            if MODE == 3 or LENGTHS:
                dh += number(handed, inside & (i > 0))
            if MODE == 2:
                dc = number(handed + H, inside & (i > 0))
            if i == steps:
                last = out + tl.cast(steps, tl.int64) * out_step + sample * out_row + unit * OUT_E
                tl.store(last, dh.to(kind), mask=inside)
                if MODE == 2:
                    tl.store(last + H * OUT_E, dc.to(kind), mask=inside)
            else:
                g = grad + t * grad_step + sample * grad_row + unit * GRAD_E
                s = kept + t * kept_step + sample * kept_row + unit * KEPT_E
                dh += number(g, inside)
                alive = t < until if LENGTHS else t >= 0
                if MODE > 1:
                    begun = initial + sample * initial_row + unit * INITIAL_E
                    before = s + kept_step if REVERSE else s - kept_step
                    if MODE == 2:
                        begun, before = begun + initial_plane, before + kept_plane
                    old = number(tl.where(i == steps - 1, begun, before), inside)
                here = now + unit * OUT_E
                if MODE == 0:
                    y = number(s, inside)
                    tl.store(here, tl.where(alive, dh * (1.0 - y * y), 0.0).to(kind), mask=inside)
                elif MODE == 1:
                    tl.store(here, tl.where(alive & (number(s, inside) > 0.0), dh, 0.0).to(kind), mask=inside)
                elif MODE == 2:
                    dc += number(g + grad_plane, inside)
                    bent = tanh(number(s + kept_plane, inside))
                    enter, forget = number(s + 2 * kept_plane, inside), number(s + 3 * kept_plane, inside)
                    fresh, leave = number(s + 4 * kept_plane, inside), number(s + 5 * kept_plane, inside)
                    whole = dc + dh * leave * (1.0 - bent * bent)
                    tl.store(here, tl.where(alive, whole * fresh * enter * (1.0 - enter), 0.0).to(kind), mask=inside)
                    tl.store(here + H * OUT_E, tl.where(alive, whole * old * forget * (1.0 - forget), 0.0).to(kind), mask=inside)
                    tl.store(here + 2 * H * OUT_E, tl.where(alive, whole * enter * (1.0 - fresh * fresh), 0.0).to(kind), mask=inside)
                    tl.store(here + 3 * H * OUT_E, tl.where(alive, dh * bent * leave * (1.0 - leave), 0.0).to(kind), mask=inside)
                    tl.store(handed + H, tl.where(alive, whole * forget, dc), mask=inside)
                else:
                    reset, update = number(s + kept_plane, inside), number(s + 2 * kept_plane, inside)
                    candidate, inner = number(s + 3 * kept_plane, inside), number(s + 4 * kept_plane, inside)
                    dn = dh * (1.0 - update) * (1.0 - candidate * candidate)
                    dz = dh * (old - candidate) * update * (1.0 - update)
                    tl.store(here, tl.where(alive, dn * inner * reset * (1.0 - reset), 0.0).to(kind), mask=inside)
                    tl.store(here + H * OUT_E, tl.where(alive, dz, 0.0).to(kind), mask=inside)
                    tl.store(here + 2 * H * OUT_E, tl.where(alive, dn, 0.0).to(kind), mask=inside)
                    tl.store(here + 3 * H * OUT_E, tl.where(alive, dn * reset, 0.0).to(kind), mask=inside)
                if MODE == 3:
                    tl.store(handed, tl.where(alive, dh * update, dh), mask=inside)
                elif LENGTHS:
                    tl.store(handed, tl.where(alive, 0.0, dh), mask=inside)
        tl.debug_barrier()
