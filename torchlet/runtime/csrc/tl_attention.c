// Attention of float32 for the pool, tiled in cache: scores exist for a block of queries and a block of keys at a time, never all of them.
// Products run on packed panels in the register-tiled kernels of tl_gemm.c. No result depends on how the work is shared out, except
// that gradients of queries are summed over key blocks by another path where heads are fewer than threads.
#include "tl_runtime.h"

enum { LANE = VECTOR_BYTES / 4, PANEL = 2 * LANE };
#define QUERIES (4 * MR)                       // of a block
#define FORWARD_KEYS 256                       // of a block: scores and a panel of values stay in the first two cache levels
#define BACKWARD_KEYS 224                      // of a block: panels of 32, 16 or 8, and strips of 14 rows
#define ROOM ((MR + LANE - 1) / LANE * LANE)   // zeros after the last weight of a row, up to the last column of the row's strip
#define LOG2E 1.44269504f
#define LN2 0.693147181f

typedef int32_t ivec_f32 __attribute__((vector_size(VECTOR_BYTES), may_alias));

// 2^x for x that is not much above 0, 0 below 2^-125 (and for minus infinity); a NaN stays one
TL_INLINE vec_f32 power_of_two(vec_f32 x) {
    vec_f32 t = x + 12582912.0f, r = x - (t - 12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    vec_f32 p = 1.53533620e-4f * r + 1.33988739e-3f;
    p = p * r + 9.61843692e-3f;
    p = p * r + 5.55033237e-2f;
    p = p * r + 2.40226477e-1f;
    p = p * r + 6.93147182e-1f;
    p = p * r + 1.0f;
    return (vec_f32)(((ivec_f32)p + ((ivec_f32)t << 23)) & ~(ivec_f32)(x < -125.0f));
}

TL_INLINE vec_f32 higher_of(vec_f32 a, vec_f32 b) {
    for (int i = 0; i < LANE; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

// rows [r0, r1) of the strips, at most MR high, into which rows [0, n) are cut evenly
#define STRIPS(n) (((n) + MR - 1) / MR)
#define FOR_STRIPS(r0, r1, n) \
    for (int64_t strip_ = 0, r0 = 0, r1 = (n) / STRIPS(n); strip_ < STRIPS(n); strip_++, r0 = r1, r1 = (n) * (strip_ + 1) / STRIPS(n))

// c[height][PANEL] (+)= a[height][k] * b[k][PANEL]; by_rows: rows of a are lda apart, else its columns are
TL_INLINE void panel_product(int by_rows, int64_t height, const float *a, int64_t lda, int64_t k, const float *b, int64_t ldb, float *c,
                             int64_t ldc, int add) {
    tl_kernels_f32[by_rows][height](lda, k, a, b, ldb, c, ldc, add, &nothing);
}

TL_INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

static int64_t count_heads(const tl_attention *a) {
    int64_t n = 1;
    for (int i = 0; i < a->n_stack; i++) n *= a->stack[i];
    return n;
}

// where the matrix of a head is; `shared`: an operand that has a matrix for each group of heads
static void *matrix(const tl_attention *a, const tl_matrices *m, int64_t head, int64_t width, int shared) {
    int64_t offset = 0;
    for (int i = a->n_stack - 1; i >= 0; i--) {
        const int64_t digit = head % a->stack[i];
        head /= a->stack[i];
        offset += (shared && i == a->n_stack - 1 ? digit / a->group : digit) * m->stack[i];
    }
    return m->p ? (char *)m->p + offset * width : 0;
}

// asks for rows that are needed soon: they lie far apart where heads do not, which no hardware foresees
TL_INLINE void fetch_rows(const float *p, const tl_matrices *m, int64_t j0, int64_t j1, int64_t width) {
    for (int64_t j = j0; j < j1 && m->column == 1; j++)
        for (int64_t e = 0; e < width; e += 16) __builtin_prefetch(p + j * m->row + e);
}

// rows [j0, j1) transposed: panels of PANEL rows, k outermost; zeros past the end. j0 is a multiple of PANEL.
static void pack_turned(const float *p, const tl_matrices *m, int64_t j0, int64_t j1, int64_t k, float *dst) {
    const tl_operand_f32 operand = {p, m->row, m->column, 0};
    fetch_rows(p, m, j0, TL_MIN(j0 + PANEL, j1), k);
    for (int64_t j = j0; j < j1; j += PANEL, dst += k * PANEL) {
        fetch_rows(p, m, j + PANEL, TL_MIN(j + 2 * PANEL, j1), k);
        pack_columns_f32(0, &operand, j, TL_MIN(PANEL, j1 - j), 0, k, dst);
    }
}

// rows [j0, j1) times a factor, zeros past the width: row-major, or in panels of PANEL columns that are `panel` elements apart
static void pack_rows(const float *p, const tl_matrices *m, int64_t j0, int64_t j1, int64_t width, float factor, float *dst, int64_t ld,
                      int64_t panel) {
    for (int64_t j = j0; j < j1; j++, dst += ld) {
        fetch_rows(p, m, j + 16, TL_MIN(j + 17, j1), width);
        const float *restrict from = p + j * m->row;
        for (int64_t e0 = 0; e0 < width; e0 += PANEL) {
            float *restrict to = dst + e0 / PANEL * panel;
            const int64_t n = TL_MIN(PANEL, width - e0), step = m->column;
            if (step == 1 && n == PANEL)
                for (int64_t e = 0; e < PANEL; e++) to[e] = from[e0 + e] * factor;
            else {
                for (int64_t e = 0; e < n; e++) to[e] = from[(e0 + e) * step] * factor;
                for (int64_t e = n; e < PANEL; e++) to[e] = 0;
            }
        }
    }
}

// rows [j0, j1) of a result, from[j1 - j0][ld] times a factor
static void unpack_rows(const float *restrict from, int64_t ld, float factor, float *p, const tl_matrices *m, int64_t j0, int64_t j1,
                        int64_t width) {
    for (int64_t j = j0; j < j1; j++, from += ld) {
        float *restrict to = p + j * m->row;
        if (m->column == 1) {
            for (int64_t e = 0; e < width; e += 16) __builtin_prefetch(to + TL_MIN(8, j1 - 1 - j) * m->row + e, 1);
            for (int64_t e = 0; e < width; e++) to[e] = from[e] * factor;
        } else
            for (int64_t e = 0; e < width; e++) to[e * m->column] = from[e] * factor;
    }
}

// the first of n keys from j0 on of which a causal query may look at none
TL_INLINE int64_t visible(const tl_attention *a, int64_t row, int64_t j0, int64_t n) {
    return a->causal ? TL_MAX(0, TL_MIN(n, row + 1 - j0)) : n;
}

// ends[strip]: the first of n keys from j0 on from which no query of the strip may look at any, as far as flags and the mask's panels
// tell; a mask that is data is looked through, so that causal ones cost what they allow. Returns the largest.
static int64_t strip_ends(const tl_attention *a, const char *mask, int64_t i0, int64_t rows, int64_t j0, int64_t n, int64_t *ends) {
    int64_t most = 0;
    FOR_STRIPS(r0, r1, rows) {
        int64_t end = visible(a, i0 + r1 - 1, j0, n);
        while (a->mask_kind == 1 && end > 0) {
            const int64_t first = (end - 1) / PANEL * PANEL;
            char some = 0;
            for (int64_t r = r0; r < r1; r++) {
                const char *m = mask + (i0 + r) * a->mask.row + (j0 + first) * a->mask.column;
                if (a->mask.column == 1)
                    for (int64_t j = 0; j < end - first; j++) some |= m[j];
                else
                    for (int64_t j = 0; j < end - first; j++) some |= m[j * a->mask.column];
            }
            if (some) break;
            end = first;
        }
        ends[strip_] = end;
        most = TL_MAX(most, end);
    }
    return most;
}

// a row of n scores with the mask, and minus infinity up to the end of the last vector
static void mask_row(const tl_attention *a, const char *mask, int64_t row, int64_t j0, float *restrict x, int64_t n) {
    const int64_t step = a->mask.column;
    if (a->mask_kind == 1) {
        const char *restrict m = mask + row * a->mask.row + j0 * step;
        if (step == 1)
            for (int64_t j = 0; j < n; j++) x[j] = m[j] ? x[j] : -INFINITY;
        else
            for (int64_t j = 0; j < n; j++) x[j] = m[j * step] ? x[j] : -INFINITY;
    } else if (a->mask_kind == 2) {
        const float *restrict m = (const float *)mask + row * a->mask.row + j0 * step;
        if (step == 1)
            for (int64_t j = 0; j < n; j++) x[j] += m[j];
        else
            for (int64_t j = 0; j < n; j++) x[j] += m[j * step];
    }
    for (int64_t j = n; j % LANE; j++) x[j] = -INFINITY;
}

// zeros after n weights, of which the last vector is whole: what products of the row's strip read, with a mask all up to `end`
TL_INLINE void clear_after(float *x, int64_t n, int64_t end) {
    for (int64_t j = (n + LANE - 1) / LANE * LANE; j < TL_MAX(n, end) + ROOM; j += LANE) *(uvec_f32 *)(x + j) = (vec_f32){0};
}

// Scores are in units of ln 2, so that 2^x is what is needed; with a mask that is added they are not, because it may be near infinity.
TL_INLINE float score_unit(const tl_attention *a) { return a->mask_kind == 2 ? 1.0f : LOG2E; }

// the work on queries [0, i), in scores
static int64_t scores_above(const tl_attention *a, int64_t i) {
    if (!a->causal) return i * a->columns;
    const int64_t n = TL_MIN(i, a->columns);
    return n * (n + 1) / 2 + (i - n) * a->columns;
}

// the work on keys [0, j), in scores
static int64_t scores_before(const tl_attention *a, int64_t j) {
    if (!a->causal) return j * a->rows;
    const int64_t n = TL_MIN(j, a->rows);
    return n * a->rows - n * (n - 1) / 2;
}

// which thread does the piece of work that starts here
TL_INLINE int owner(int64_t start, int64_t all, int nth) { return start >= all ? nth - 1 : (int)((double)start / (double)all * nth); }

// The tops and sums of a block of queries after another block of scores x[rows][ld], which become weights.
static void softmax_block(const tl_attention *a, const char *mask, int64_t i0, int64_t rows, int64_t j0, int64_t n, float *x, int64_t ld,
                          const int64_t *ends, float *tops, vec_f32 *sums, float *out, int64_t wide) {
    vec_f32 highest[QUERIES + LANE], turned[LANE];
    float bases[QUERIES + LANE], shrink[QUERIES + LANE];
    const float unit = LOG2E / score_unit(a);
    int64_t widths[QUERIES];
    FOR_STRIPS(r0, r1, rows)
        for (int64_t r = r0; r < r1; r++) {
            const int64_t m = widths[r] = TL_MIN(ends[strip_], visible(a, i0 + r, j0, n));
            mask_row(a, mask, i0 + r, j0, x + r * ld, m);
            vec_f32 high = (vec_f32){0} - INFINITY;
            for (int64_t j = 0; j < m; j += LANE) high = higher_of(*(const uvec_f32 *)(x + r * ld + j), high);
            highest[r] = high;
        }
    for (int64_t r = 0; r < rows; r += LANE) {
        transpose_f32((const float *)(highest + r), LANE, (float *)turned, LANE);
        const vec_f32 top = *(const uvec_f32 *)(tops + r);
        vec_f32 higher = top;
#pragma GCC unroll 16
        for (int i = 0; i < LANE; i++) higher = higher_of(turned[i], higher);
        const vec_f32 base = (vec_f32)((ivec_f32)higher & (higher != -INFINITY));  // nothing allowed so far
        *(uvec_f32 *)(tops + r) = higher;
        *(uvec_f32 *)(bases + r) = base;
        *(uvec_f32 *)(shrink + r) = power_of_two((top - base) * unit);
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t m = widths[r];
        const vec_f32 base = (vec_f32){0} + bases[r];
        vec_f32 sum = sums[r] * shrink[r];
        for (int64_t j = 0; j < m; j += LANE) {
            uvec_f32 *v = (uvec_f32 *)(x + r * ld + j);
            const vec_f32 p = power_of_two((*v - base) * unit);
            sum += p;
            *v = p;
        }
        sums[r] = sum;
        clear_after(x + r * ld, m, 0);
        if (j0 && shrink[r] != 1.0f)
            for (int64_t e = 0; e < wide; e += LANE) *(uvec_f32 *)(out + r * wide + e) *= shrink[r];
    }
}

void tl_attention_forward(const tl_attention *a, int tid, int nth) {
    const int64_t d = a->d, dv = a->dv, dp = padded(d), wide = padded(dv), ld = FORWARD_KEYS + ROOM, room = padded(a->columns);
    const int64_t heads = count_heads(a), blocks = (a->rows + QUERIES - 1) / QUERIES, work = scores_above(a, a->rows);
    float *keys = tl_scratch(3, (int64_t)sizeof(float) * (room * (d + wide) + QUERIES * (dp + ld + wide)));
    float *values = keys + room * d, *queries = values + room * wide, *x = queries + QUERIES * dp, *out = x + QUERIES * ld;
    float tops[QUERIES + LANE];
    vec_f32 sums[QUERIES];
    int64_t ends[QUERIES / MR];
    int64_t head_there = -1, columns_there = 0;  // what is packed
    for (int64_t head = 0; head < heads; head++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t i0 = a->rows * block / blocks, i1 = a->rows * (block + 1) / blocks, rows = i1 - i0;
            if (owner(head * work + scores_above(a, i0), heads * work, nth) != tid) continue;
            const int64_t columns = a->causal ? TL_MIN(a->columns, i1) : a->columns;
            const float *k = matrix(a, &a->k, head, 4, 1), *v = matrix(a, &a->v, head, 4, 1);
            const char *mask = matrix(a, &a->mask, head, a->mask_kind == 1 ? 1 : 4, 0);
            if (head / a->group != head_there) head_there = head / a->group, columns_there = 0;
            if (columns_there < columns) {
                const int64_t end = TL_MIN(a->columns, padded(columns));
                pack_turned(k, &a->k, columns_there, end, d, keys + columns_there * d);
                if (a->out.p) pack_rows(v, &a->v, columns_there, end, dv, 1.0f, values + columns_there * PANEL, PANEL, room * PANEL);
                columns_there = end;
            }
            pack_rows(matrix(a, &a->q, head, 4, 0), &a->q, i0, i1, d, a->scale * score_unit(a), queries, dp, PANEL);
            for (int64_t r = 0; r < QUERIES; r++) tops[r] = -INFINITY, sums[r] = (vec_f32){0};
            memset(out, 0, sizeof(float) * (size_t)(rows * wide));
            for (int64_t j0 = 0; j0 < columns; j0 += FORWARD_KEYS) {
                const int64_t n = TL_MIN(FORWARD_KEYS, columns - j0), end = strip_ends(a, mask, i0, rows, j0, n, ends);
                for (int64_t j = 0; j < end; j += PANEL)
                    FOR_STRIPS(r0, r1, rows) {
                        if (ends[strip_] <= j) continue;
                        panel_product(1, r1 - r0, queries + r0 * dp, dp, d, keys + (j0 + j) * d, PANEL, x + r0 * ld + j, ld, 0);
                    }
                if (!end) continue;
                softmax_block(a, mask, i0, rows, j0, n, x, ld, ends, tops, sums, out, wide);
                if (!a->out.p) continue;
                for (int64_t e = 0; e < wide; e += PANEL)
                    FOR_STRIPS(r0, r1, rows) {
                        const float *panel = values + e * room + j0 * PANEL;
                        if (!ends[strip_]) continue;
                        panel_product(1, r1 - r0, x + r0 * ld, ld, ends[strip_], panel, PANEL, out + r0 * wide + e, wide, 1);
                    }
            }
            float *to = matrix(a, &a->out, head, 4, 0), *lse = matrix(a, &a->lse, head, 4, 0);
            for (int64_t r = 0; r < rows; r++) {
                float total = 0;
                for (int i = 0; i < LANE; i++) total += sums[r][i];
                const float divisor = total == 0.0f ? 1.0f : total;  // a query that may look at nothing gets zeros
                if (to) unpack_rows(out + r * wide, wide, 1.0f / divisor, to, &a->out, i0 + r, i0 + r + 1, dv);
                if (lse) lse[(i0 + r) * a->lse.row] = tops[r] / score_unit(a) + tl_log(divisor);
            }
        }
    }
}

// ---- gradients

// one head's queries from `low` on, what belongs to them, and the keys and values of a block
typedef struct {
    int64_t low;
    float *q, *g;          // row-major, padded(d) and padded(dv) wide
    float *lse, *delta;    // lse in scores' units; plus infinity where nothing is allowed
    float *kt, *vt, *k;    // turned, turned, in panels
    float *p, *ds;         // weights of a block and the gradients of its scores, [QUERIES][BACKWARD_KEYS + ROOM]
    int64_t k_panel;       // distance of the panels of k
    const char *mask;
    int64_t ends[QUERIES / MR];
} gradient;

static void pack_queries(const tl_attention *a, gradient *x, int64_t head, int64_t i0, int64_t i1) {
    const float *lse = matrix(a, &a->lse, head, 4, 0), *delta = matrix(a, &a->delta, head, 4, 0);
    x->low = i0;
    x->mask = matrix(a, &a->mask, head, a->mask_kind == 1 ? 1 : 4, 0);
    pack_rows(matrix(a, &a->q, head, 4, 0), &a->q, i0, i1, a->d, a->scale * score_unit(a), x->q, padded(a->d), PANEL);
    pack_rows(matrix(a, &a->g, head, 4, 0), &a->g, i0, i1, a->dv, 1.0f, x->g, padded(a->dv), PANEL);
    for (int64_t i = i0; i < i1; i++) {
        const float l = lse[i * a->lse.row];
        x->lse[i - i0] = l == -INFINITY ? INFINITY : l * score_unit(a);
        x->delta[i - i0] = delta[i * a->delta.row];
    }
}

static void pack_keys(const tl_attention *a, gradient *x, int64_t head, int64_t j0, int64_t j1, int64_t at) {
    pack_turned(matrix(a, &a->k, head, 4, 1), &a->k, j0, j1, a->d, x->kt + at * a->d);
    pack_turned(matrix(a, &a->v, head, 4, 1), &a->v, j0, j1, a->dv, x->vt + at * a->dv);
    if (a->dq.p) pack_rows(matrix(a, &a->k, head, 4, 1), &a->k, j0, j1, a->d, 1.0f, x->k + at * PANEL, PANEL, x->k_panel);
}

// The weights of queries [i0, i1) for n keys from j0 on, which are packed from `at` on, and the gradients of the scores. Returns 0 where
// all of them are 0.
static int64_t gradient_block(const tl_attention *a, gradient *x, int64_t i0, int64_t i1, int64_t j0, int64_t n, int64_t at) {
    const int64_t ld = BACKWARD_KEYS + ROOM, d = a->d, dv = a->dv, dp = padded(d), vp = padded(dv), first = i0 - x->low;
    const float unit = LOG2E / score_unit(a);
    const int64_t end = strip_ends(a, x->mask, i0, i1 - i0, j0, n, x->ends);
    for (int64_t j = 0; j < end; j += PANEL)
        FOR_STRIPS(r0, r1, i1 - i0) {
            if (x->ends[strip_] <= j) continue;
            panel_product(1, r1 - r0, x->q + (first + r0) * dp, dp, d, x->kt + (at + j) * d, PANEL, x->p + r0 * ld + j, ld, 0);
            panel_product(1, r1 - r0, x->g + (first + r0) * vp, vp, dv, x->vt + (at + j) * dv, PANEL, x->ds + r0 * ld + j, ld, 0);
        }
    if (!end) return 0;
    FOR_STRIPS(r0, r1, i1 - i0)
        for (int64_t r = r0; r < r1; r++) {
            float *p = x->p + r * ld, *ds = x->ds + r * ld;
            const int64_t m = TL_MIN(x->ends[strip_], visible(a, i0 + r, j0, n));
            const vec_f32 lse = (vec_f32){0} + x->lse[first + r], delta = (vec_f32){0} + x->delta[first + r];
            mask_row(a, x->mask, i0 + r, j0, p, m);
            for (int64_t j = m; j % LANE; j++) ds[j] = 0;
            for (int64_t j = 0; j < m; j += LANE) {
                const vec_f32 w = power_of_two((*(const uvec_f32 *)(p + j) - lse) * unit);
                *(uvec_f32 *)(p + j) = w;
                *(uvec_f32 *)(ds + j) = w * (*(const uvec_f32 *)(ds + j) - delta);
            }
            clear_after(p, m, a->mask_kind == 1 ? end : 0);  // strips of keys meet rows of several ends
            clear_after(ds, m, a->mask_kind == 1 ? end : 0);
        }
    return end;
}

// dq[rows][padded(d)] += ds * k
static void add_query_gradient(const tl_attention *a, const gradient *x, int64_t rows, int64_t at, float *dq) {
    const int64_t ld = BACKWARD_KEYS + ROOM, dp = padded(a->d);
    for (int64_t e = 0; e < dp; e += PANEL)
        FOR_STRIPS(r0, r1, rows) {
            const float *panel = x->k + e / PANEL * x->k_panel + at * PANEL;
            if (x->ends[strip_]) panel_product(1, r1 - r0, x->ds + r0 * ld, ld, x->ends[strip_], panel, PANEL, dq + r0 * dp + e, dp, 1);
        }
}

// to[n][width] += weightsᵀ * from, where a strip of keys meets only the queries from the first on that sees some of them
static void add_key_gradient(const tl_attention *a, const gradient *x, const float *weights, int64_t i0, int64_t i1, int64_t j0, int64_t n,
                             const float *from, float *to, int64_t width) {
    const int64_t ld = BACKWARD_KEYS + ROOM;
    for (int64_t e = 0; e < width; e += PANEL)
        FOR_STRIPS(r0, r1, n) {
            int64_t first = a->causal ? TL_MAX(i0, j0 + r0) : i0;
            for (int64_t strip = 0; strip < STRIPS(i1 - i0) && x->ends[strip] <= r0; strip++)
                first = TL_MAX(first, i0 + (i1 - i0) * (strip + 1) / STRIPS(i1 - i0));
            if (first >= i1) continue;
            const float *rows = weights + (first - i0) * ld + r0;
            panel_product(0, r1 - r0, rows, ld, i1 - first, from + (first - i0) * width + e, width, to + r0 * width + e, width, 1);
        }
}

// Gradients of the keys and values [j0, j1) of a group of heads; with `dq` also those of its queries, for which the keys must be all.
static void key_pass(const tl_attention *a, gradient *x, int64_t group, int64_t j0, int64_t j1, float *dq, float *dk, float *dv) {
    const int64_t dp = padded(a->d), vp = padded(a->dv), low = a->causal ? TL_MIN(j0, a->rows) : 0;
    memset(dk, 0, sizeof(float) * (size_t)((j1 - j0) * dp));
    memset(dv, 0, sizeof(float) * (size_t)((j1 - j0) * vp));
    x->k_panel = TL_MIN(BACKWARD_KEYS, padded(a->columns)) * PANEL;
    for (int64_t head = group * a->group; head < (group + 1) * a->group; head++) {
        pack_queries(a, x, head, low, a->rows);
        if (dq) memset(dq, 0, sizeof(float) * (size_t)(a->rows * dp));
        for (int64_t j = j0; j < j1; j += BACKWARD_KEYS) {
            const int64_t n = TL_MIN(BACKWARD_KEYS, j1 - j), start = a->causal ? j : 0, rows = a->rows - start;
            if (rows <= 0) break;
            pack_keys(a, x, head, j, j + n, 0);
            const int64_t blocks = (rows + QUERIES - 1) / QUERIES;
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t i0 = start + rows * block / blocks, i1 = start + rows * (block + 1) / blocks;
                const int64_t end = gradient_block(a, x, i0, i1, j, n, 0);
                if (!end) continue;
                if (dq) add_query_gradient(a, x, i1 - i0, 0, dq + i0 * dp);
                if (a->dk.p) add_key_gradient(a, x, x->ds, i0, i1, j, end, x->q + (i0 - low) * dp, dk + (j - j0) * dp, dp);
                if (a->dv_.p) add_key_gradient(a, x, x->p, i0, i1, j, end, x->g + (i0 - low) * vp, dv + (j - j0) * vp, vp);
            }
        }
        float *to = matrix(a, &a->dq, head, 4, 0);
        if (dq) unpack_rows(dq, dp, a->scale, to, &a->dq, 0, a->rows, a->d);
    }
    float *to_k = matrix(a, &a->dk, group * a->group, 4, 1), *to_v = matrix(a, &a->dv_, group * a->group, 4, 1);
    if (to_k) unpack_rows(dk, dp, 1.0f / score_unit(a), to_k, &a->dk, j0, j1, a->d);  // the queries came with the scale and the unit
    if (to_v) unpack_rows(dv, vp, 1.0f, to_v, &a->dv_, j0, j1, a->dv);
}

// Gradients of the queries of heads [first, heads), shared out over the threads.
static void query_pass(const tl_attention *a, gradient *x, int64_t first, int64_t heads, float *dq, int tid, int nth) {
    const int64_t dp = padded(a->d), blocks = (a->rows + QUERIES - 1) / QUERIES, work = scores_above(a, a->rows);
    int64_t head_there = -1, columns_there = 0;
    x->k_panel = padded(a->columns) * PANEL;
    for (int64_t head = first; head < heads; head++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t i0 = a->rows * block / blocks, i1 = a->rows * (block + 1) / blocks;
            if (owner((head - first) * work + scores_above(a, i0), (heads - first) * work, nth) != tid) continue;
            const int64_t columns = a->causal ? TL_MIN(a->columns, i1) : a->columns;
            if (head / a->group != head_there) head_there = head / a->group, columns_there = 0;
            if (columns_there < columns) {
                const int64_t end = TL_MIN(a->columns, padded(columns));
                pack_keys(a, x, head, columns_there, end, columns_there);
                columns_there = end;
            }
            pack_queries(a, x, head, i0, i1);
            memset(dq, 0, sizeof(float) * (size_t)((i1 - i0) * dp));
            for (int64_t j = 0; j < columns; j += BACKWARD_KEYS) {
                const int64_t n = TL_MIN(BACKWARD_KEYS, columns - j);
                if (gradient_block(a, x, i0, i1, j, n, j)) add_query_gradient(a, x, i1 - i0, j, dq);
            }
            float *to = matrix(a, &a->dq, head, 4, 0);
            unpack_rows(dq, dp, a->scale, to, &a->dq, i0, i1, a->d);
        }
    }
}

// Every thread does whole heads (groups of them) at once, the scores made once for all three gradients. What is left over, or all where
// heads are few, is shared out by blocks of keys for dk and dv, and by blocks of queries for dq, which makes the scores twice.
void tl_attention_backward(const tl_attention *a, int tid, int nth) {
    const int64_t dp = padded(a->d), vp = padded(a->dv), rows = a->rows, columns = a->columns, room = padded(columns);
    const int64_t groups = count_heads(a) / a->group, tile = QUERIES * (BACKWARD_KEYS + ROOM);
    const int to_keys = a->dk.p || a->dv_.p, to_queries = a->dq.p != 0;
    const int64_t whole = to_keys && to_queries ? groups / nth * nth : 0;
    float *next = tl_scratch(3, (int64_t)sizeof(float) * (rows * (2 * dp + vp + 2) + room * (2 * a->d + a->dv + 2 * dp + vp) + 2 * tile));
    gradient x;
#define TAKE(n) (next += (n), next - (n))
    x.p = TAKE(tile), x.ds = TAKE(tile);
    x.q = TAKE(rows * dp), x.g = TAKE(rows * vp), x.lse = TAKE(rows), x.delta = TAKE(rows);
    x.kt = TAKE(room * a->d), x.vt = TAKE(room * a->dv), x.k = TAKE(room * dp);
    float *dk = TAKE(room * dp), *dv = TAKE(room * vp), *dq = TAKE(rows * dp);
#undef TAKE
    for (int64_t group = whole * tid / nth; group < whole * (tid + 1) / nth; group++) key_pass(a, &x, group, 0, columns, dq, dk, dv);
    if (to_keys && whole < groups) {
        const int64_t work = scores_before(a, columns), all = (groups - whole) * work;
        for (int64_t group = whole; group < groups; group++) {
            int64_t low = columns, high = 0;  // this thread's part of the keys
            for (int64_t j = 0; j < columns; j += PANEL)
                if (owner((group - whole) * work + scores_before(a, j), all, nth) == tid) low = TL_MIN(low, j), high = TL_MIN(j + PANEL, columns);
            if (low < high) key_pass(a, &x, group, low, high, 0, dk, dv);
        }
    }
    if (to_queries && whole < groups) query_pass(a, &x, whole * a->group, groups * a->group, dq, tid, nth);
}
