"""Attention without the matrix of weights, for one head: device functions that `compiler.attention` puts behind an entry point.

Scores live in units of log 2, so that exp2 serves. Rows of queries and of keys beyond their ends are never stored, and count
as zeros where they are read. MASK: 0 none, 1 True where attention is allowed, 2 added to the scores. SPECIALISE:
some warps copy, some multiply, some do the rest.

Products of warp groups overlap only in loops that surely run: otherwise ptxas 12.8, which Triton 3.6 brings, puts a wait after each.
So the loops over keys always take a step, one that is forgotten or adds nothing where there was none to take.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    x, start, STEP: tl.constexpr, E: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, LINES: tl.constexpr, LANES: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """LINES lines of a matrix from `start`. STEP None: x is a tensor map and the matrix's place in it. FULL: no end is near."""
    if STEP is None:
        return x[0].load([x[1], x[2], start, 0]).reshape(LINES, LANES)
    else:
        base = x + tl.cast(start, tl.int64) * STEP
        line, e = tl.arange(0, LINES)[:, None], tl.arange(0, LANES)[None, :]
        if not FULL:
            return tl.load(base + line * STEP + e * E, mask=(start + line < COUNT) & (e < WIDTH), other=0.0)
        elif WIDTH & (WIDTH - 1) == 0:
            return tl.load(base + line * STEP + e * E)
        else:
            return tl.load(base + line * STEP + e * E, mask=e < WIDTH, other=0.0)


@triton.jit
def of_head(x, head, STEP: tl.constexpr, HEAD: tl.constexpr):
    """The matrix that is `head` places after x in its stack."""
    if STEP is None:
        return x[0], x[1], x[2] + head
    else:
        return x + tl.cast(head, tl.int64) * HEAD


@triton.jit
def masked_scores(
    s, mask, row, row_start, column, column_start, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr,
    MASK_COLUMN: tl.constexpr, CAUSAL: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Scores with the mask added, minus infinity where attention is not allowed. CHECK: the block crosses the diagonal or an end."""
    inside = (row_start + row < ROWS) & (column_start + column < COLUMNS)
    if MASK != 0:
        base = mask + tl.cast(row_start, tl.int64) * MASK_ROW + tl.cast(column_start, tl.int64) * MASK_COLUMN
        m = tl.load(base + row * MASK_ROW + column * MASK_COLUMN, mask=inside, other=0)
        if MASK == 1:
            s = tl.where(m != 0, s, float("-inf"))
        else:
            s += m.to(tl.float32) * 1.4426950408889634
    if CHECK:
        if CAUSAL:
            inside = inside & (column_start + column <= row_start + row)
        s = tl.where(inside, s, float("-inf"))
    return s


@triton.jit
def forward_blocks(
    total, top, acc, q, k, v, mask, row_start, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    K_ROW: tl.constexpr, K_E: tl.constexpr, V_ROW: tl.constexpr, V_E: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr,
    MASK_COLUMN: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr, SPECIALISE: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Keys and values from `low` to `high`, which is more: the sum of weights, the largest score and the weighted values so far."""
    tl.assume(low < high)
    row, column = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    for start in tl.range(low, high, BLOCK_N, warp_specialize=SPECIALISE):
        keys = load_tile(k, start, K_ROW, K_E, COLUMNS, D, BLOCK_N, BLOCK_D, not CHECK)
        s = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * (SCALE * 1.4426950408889634)
        s = masked_scores(s, mask, row, row_start, column, start, ROWS, COLUMNS, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, CHECK)
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing allowed so far
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        values = load_tile(v, start, V_ROW, V_E, COLUMNS, DV, BLOCK_N, BLOCK_DV, not CHECK)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
        top = higher
    return total, top, acc


@triton.jit
def attention_forward(
    tile, q, k, v, mask, out, lse, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, Q_ROW: tl.constexpr,
    Q_E: tl.constexpr, K_ROW: tl.constexpr, K_E: tl.constexpr, V_ROW: tl.constexpr, V_E: tl.constexpr, MASK: tl.constexpr,
    MASK_ROW: tl.constexpr, MASK_COLUMN: tl.constexpr, OUT: tl.constexpr, OUT_ROW: tl.constexpr, OUT_E: tl.constexpr, LSE: tl.constexpr,
    LSE_ROW: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr, SPECIALISE: tl.constexpr,
):  # fmt: skip
    """One block of queries: the weighted values, and the logarithm of the sum of the scores' exponentials."""
    start = tile * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    ev = tl.arange(0, BLOCK_DV)[None, :]
    queries = load_tile(q, start, Q_ROW, Q_E, ROWS, D, BLOCK_M, BLOCK_D, False)
    total, top = tl.zeros([BLOCK_M], tl.float32), tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    if CAUSAL:  # blocks below the diagonal first, then those that it crosses
        free, end = min(start + 1, COLUMNS) // BLOCK_N * BLOCK_N, min(start + BLOCK_M, COLUMNS)
    else:
        free, end = COLUMNS // BLOCK_N * BLOCK_N, COLUMNS
    if COLUMNS >= BLOCK_N:
        total, top, acc = forward_blocks(
            total, top, acc, queries, k, v, mask, start, 0, max(free, BLOCK_N), ROWS, COLUMNS, D, DV, K_ROW, K_E, V_ROW, V_E, MASK,
            MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, PRECISION, SPECIALISE, False,
        )  # fmt: skip
        if CAUSAL:
            total, top, acc = tl.where(free > 0, total, 0.0), tl.where(free > 0, top, float("-inf")), tl.where(free > 0, acc, 0.0)
    if CAUSAL or COLUMNS % BLOCK_N != 0:
        total, top, acc = forward_blocks(
            total, top, acc, queries, k, v, mask, start, free, max(end, free + 1), ROWS, COLUMNS, D, DV, K_ROW, K_E, V_ROW, V_E, MASK,
            MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, PRECISION, SPECIALISE, True,
        )  # fmt: skip
    divisor = tl.where(total == 0.0, 1.0, total)  # a query that may look at nothing gets zeros
    if OUT:
        at = out + tl.cast(start, tl.int64) * OUT_ROW + row[:, None] * OUT_ROW + ev * OUT_E
        tl.store(at, (acc / divisor[:, None]).to(out.dtype.element_ty), mask=(start + row[:, None] < ROWS) & (ev < DV))
    if LSE:
        tl.store(lse + (start + row) * LSE_ROW, (top + tl.log2(divisor)) * 0.6931471805599453, mask=start + row < ROWS)


@triton.jit
def query_blocks(
    dq, q, g, shift, delta, k, v, mask, row_start, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    K_ROW: tl.constexpr, K_E: tl.constexpr, V_ROW: tl.constexpr, V_E: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr,
    MASK_COLUMN: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """What the keys from `low` to `high`, which is more, add to the gradient of a block of queries."""
    tl.assume(low < high)
    row, column = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    for start in range(low, high, BLOCK_N):
        keys = load_tile(k, start, K_ROW, K_E, COLUMNS, D, BLOCK_N, BLOCK_D, not CHECK)
        values = load_tile(v, start, V_ROW, V_E, COLUMNS, DV, BLOCK_N, BLOCK_DV, not CHECK)
        s = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * (SCALE * 1.4426950408889634)
        s = masked_scores(s, mask, row, row_start, column, start, ROWS, COLUMNS, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, CHECK)
        p = tl.exp2(s - shift)
        ds = p * (tl.dot(g, tl.trans(values), input_precision=PRECISION) - delta)
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PRECISION)
    return dq


@triton.jit
def attention_query_gradient(
    tile, g, lse, delta, q, k, v, mask, dq, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    G_ROW: tl.constexpr, G_E: tl.constexpr, LSE_ROW: tl.constexpr, DELTA_ROW: tl.constexpr, Q_ROW: tl.constexpr, Q_E: tl.constexpr,
    K_ROW: tl.constexpr, K_E: tl.constexpr, V_ROW: tl.constexpr, V_E: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr,
    MASK_COLUMN: tl.constexpr, DQ_ROW: tl.constexpr, DQ_E: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries, over all keys. `delta`: the sum over a row of g times the output."""
    start = tile * BLOCK_M
    row = tl.arange(0, BLOCK_M)[:, None]
    e = tl.arange(0, BLOCK_D)[None, :]
    inside = start + row < ROWS
    queries = load_tile(q, start, Q_ROW, Q_E, ROWS, D, BLOCK_M, BLOCK_D, False)
    grads = load_tile(g, start, G_ROW, G_E, ROWS, DV, BLOCK_M, BLOCK_DV, False)
    shift = tl.load(lse + (start + row) * LSE_ROW, mask=inside, other=0.0) * 1.4426950408889634
    shift = tl.where(shift == float("-inf"), float("inf"), shift)  # a row without weights
    rows_delta = tl.load(delta + (start + row) * DELTA_ROW, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if CAUSAL:
        free, end = min(start + 1, COLUMNS) // BLOCK_N * BLOCK_N, min(start + BLOCK_M, COLUMNS)
    else:
        free, end = COLUMNS // BLOCK_N * BLOCK_N, COLUMNS
    if COLUMNS >= BLOCK_N:
        sums = query_blocks(
            sums, queries, grads, shift, rows_delta, k, v, mask, start, 0, max(free, BLOCK_N), ROWS, COLUMNS, D, DV, K_ROW, K_E, V_ROW, V_E,
            MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, PRECISION, False,
        )  # fmt: skip
        if CAUSAL:
            sums = tl.where(free > 0, sums, 0.0)
    if CAUSAL or COLUMNS % BLOCK_N != 0:
        sums = query_blocks(
            sums, queries, grads, shift, rows_delta, k, v, mask, start, free, max(end, free + 1), ROWS, COLUMNS, D, DV, K_ROW, K_E, V_ROW,
            V_E, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, PRECISION, True,
        )  # fmt: skip
    at = dq + tl.cast(start, tl.int64) * DQ_ROW + row * DQ_ROW + e * DQ_E
    tl.store(at, (sums * SCALE).to(dq.dtype.element_ty), mask=inside & (e < D))


@triton.jit
def key_steps(
    dk, dv, keys, values, g, lse, delta, q, mask, column_start, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, G_ROW: tl.constexpr, G_E: tl.constexpr, LSE_ROW: tl.constexpr, DELTA_ROW: tl.constexpr, Q_ROW: tl.constexpr,
    Q_E: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr, MASK_COLUMN: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    """What the queries from `low` to `high` add to the gradients of a block of keys and values; scores stand transposed."""
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)[:, None]
    for start in range(low, high, BLOCK_M):
        queries = load_tile(q, start, Q_ROW, Q_E, ROWS, D, BLOCK_M, BLOCK_D, not CHECK)
        grads = load_tile(g, start, G_ROW, G_E, ROWS, DV, BLOCK_M, BLOCK_DV, not CHECK)
        inside = start + row < ROWS
        shift = tl.load(lse + (start + row) * LSE_ROW, mask=inside, other=0.0) * 1.4426950408889634
        shift = tl.where(shift == float("-inf"), float("inf"), shift)
        rows_delta = tl.load(delta + (start + row) * DELTA_ROW, mask=inside, other=0.0).to(tl.float32)
        s = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * (SCALE * 1.4426950408889634)
        s = masked_scores(s, mask, row[None, :], start, column, column_start, ROWS, COLUMNS, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, CHECK)
        p = tl.exp2(s - shift[None, :])
        dv = tl.dot(p.to(grads.dtype), grads, dv, input_precision=PRECISION)
        ds = p * (tl.dot(values, tl.trans(grads), input_precision=PRECISION) - rows_delta[None, :])
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def key_blocks(
    dk, dv, keys, values, g, lse, delta, q, mask, column_start, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, G_ROW: tl.constexpr, G_E: tl.constexpr, LSE_ROW: tl.constexpr, DELTA_ROW: tl.constexpr, Q_ROW: tl.constexpr,
    Q_E: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr, MASK_COLUMN: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    """What the queries from `low` to `high` add, if there are any."""
    if PRECISION != "ieee":  # noqa: SIM114 - decided when compiled: the registers of float32 have no room for the branch
        dk, dv = key_steps(
            dk, dv, keys, values, g, lse, delta, q, mask, column_start, low, high, ROWS, COLUMNS, D, DV, G_ROW, G_E, LSE_ROW, DELTA_ROW,
            Q_ROW, Q_E, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, PRECISION, CHECK,
        )  # fmt: skip
    elif low < high:  # around the loop, this too keeps its products asynchronous
        dk, dv = key_steps(
            dk, dv, keys, values, g, lse, delta, q, mask, column_start, low, high, ROWS, COLUMNS, D, DV, G_ROW, G_E, LSE_ROW, DELTA_ROW,
            Q_ROW, Q_E, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, PRECISION, CHECK,
        )  # fmt: skip
    return dk, dv


@triton.jit
def attention_key_gradient(
    tile, g, lse, delta, q, k, v, mask, dk, dv, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    G_ROW: tl.constexpr, G_E: tl.constexpr, LSE_ROW: tl.constexpr, DELTA_ROW: tl.constexpr, Q_ROW: tl.constexpr, Q_E: tl.constexpr,
    K_ROW: tl.constexpr, K_E: tl.constexpr, V_ROW: tl.constexpr, V_E: tl.constexpr, MASK: tl.constexpr, MASK_ROW: tl.constexpr,
    MASK_COLUMN: tl.constexpr, DK: tl.constexpr, DK_ROW: tl.constexpr, DK_E: tl.constexpr, DV_OUT: tl.constexpr, DV_ROW: tl.constexpr,
    DV_E: tl.constexpr, CAUSAL: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, G_HEAD: tl.constexpr, LSE_HEAD: tl.constexpr,
    DELTA_HEAD: tl.constexpr, Q_HEAD: tl.constexpr, MASK_HEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and values, over all queries of the GROUP heads that share them."""
    start = tile * BLOCK_N
    column = tl.arange(0, BLOCK_N)[:, None]
    e, ev = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    keys = load_tile(k, start, K_ROW, K_E, COLUMNS, D, BLOCK_N, BLOCK_D, False)
    values = load_tile(v, start, V_ROW, V_E, COLUMNS, DV, BLOCK_N, BLOCK_DV, False)
    key_sums, value_sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    low, crossed = 0, 0
    if CAUSAL:  # the queries before the block do not look at it; those that the diagonal crosses come first
        low = min(start, ROWS) // BLOCK_M * BLOCK_M
        crossed = min(tl.cdiv(start + BLOCK_N - 1, BLOCK_M) * BLOCK_M, ROWS // BLOCK_M * BLOCK_M)
        crossed = max(low, crossed)
    if COLUMNS % BLOCK_N != 0:  # the columns that are not there are those of the last block, which checks everywhere
        if start + BLOCK_N > COLUMNS:
            crossed = max(low, ROWS // BLOCK_M * BLOCK_M)
    free = max(crossed, ROWS // BLOCK_M * BLOCK_M)
    for head in range(GROUP):
        g_head, q_head = of_head(g, head, G_ROW, G_HEAD), of_head(q, head, Q_ROW, Q_HEAD)
        lse_head, delta_head = of_head(lse, head, LSE_ROW, LSE_HEAD), of_head(delta, head, DELTA_ROW, DELTA_HEAD)
        mask_head = of_head(mask, head, MASK_ROW, MASK_HEAD)
        if CAUSAL or COLUMNS % BLOCK_N != 0:
            key_sums, value_sums = key_blocks(
                key_sums, value_sums, keys, values, g_head, lse_head, delta_head, q_head, mask_head, start, low, crossed, ROWS, COLUMNS, D,
                DV, G_ROW, G_E, LSE_ROW, DELTA_ROW, Q_ROW, Q_E, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D,
                BLOCK_DV, PRECISION, True,
            )  # fmt: skip
        key_sums, value_sums = key_blocks(
            key_sums, value_sums, keys, values, g_head, lse_head, delta_head, q_head, mask_head, start, crossed, free, ROWS, COLUMNS, D, DV,
            G_ROW, G_E, LSE_ROW, DELTA_ROW, Q_ROW, Q_E, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
            PRECISION, False,
        )  # fmt: skip
        if ROWS % BLOCK_M != 0:
            key_sums, value_sums = key_blocks(
                key_sums, value_sums, keys, values, g_head, lse_head, delta_head, q_head, mask_head, start, free, ROWS, ROWS, COLUMNS, D,
                DV, G_ROW, G_E, LSE_ROW, DELTA_ROW, Q_ROW, Q_E, MASK, MASK_ROW, MASK_COLUMN, CAUSAL, SCALE, BLOCK_M, BLOCK_N, BLOCK_D,
                BLOCK_DV, PRECISION, True,
            )  # fmt: skip
    inside = start + column < COLUMNS
    if DK:
        at = dk + tl.cast(start, tl.int64) * DK_ROW + column * DK_ROW + e * DK_E
        tl.store(at, (key_sums * SCALE).to(dk.dtype.element_ty), mask=inside & (e < D))
    if DV_OUT:
        at = dv + tl.cast(start, tl.int64) * DV_ROW + column * DV_ROW + ev * DV_E
        tl.store(at, value_sums.to(dv.dtype.element_ty), mask=inside & (ev < DV))
