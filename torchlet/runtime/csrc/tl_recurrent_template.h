// Recurrent layers of one element type: T, its suffix S, TANH and SIGMOID come from tl_recurrent.c, the panels and kernels from tl_gemm.c.
#define N_(name) JOIN(name, S)
#define NR (VECTOR_BYTES / (int)sizeof(T) * 2)
#define OPERAND JOIN(tl_operand, S)
#define TOGETHER 4                 // parts of rows that meet a panel one after the other
#define STEP (1024 / (int64_t)sizeof(T))  // of k: so much of a panel is met at once

// The part of one thread: rows [r0, r1) of the batch, and blocks [b0, b1) of NR hidden units each. It meets every weight of its units
// at every step, so their panels are packed once.
typedef struct {
    int64_t steps, n, h, g, states, r0, r1, b0, b1, parts;
    int mode, reverse;
} N_(layer);

static N_(layer) N_(share)(const int64_t *s, int tid, int nth) {
    N_(layer) l = {s[0], s[1], s[2], s[3], s[4], .mode = (int)s[5], .reverse = (int)s[6]};
    const int64_t blocks = (l.h + NR - 1) / NR, across = TL_MAX(1, TL_MIN(nth, blocks)), down = TL_MAX(1, TL_MIN(nth / across, l.n));
    const int64_t column = tid / down, row = tid % down;
    if (column < across) {
        l.b0 = blocks * column / across, l.b1 = blocks * (column + 1) / across;
        l.r0 = l.n * row / down, l.r1 = l.n * (row + 1) / down;
        l.parts = (l.r1 - l.r0 + MR - 1) / MR;
    }
    return l;
}

// where a part of at most MR rows begins
static int64_t N_(row)(const N_(layer) *l, int64_t part) { return l->r0 + (l->r1 - l->r0) * part / l->parts; }

// The panels of gate q of block b: what the hidden state is multiplied with. w: (g h, h).
static T *N_(pack_gates)(const N_(layer) *l, const T *w, T *to) {
    for (int64_t b = l->b0; b < l->b1; b++)
        for (int64_t q = 0; q < l->g; q++, to += l->h * NR) {
            const OPERAND all = {w, l->h, 1, 0};
            N_(pack_columns)(0, &all, q * l->h + b * NR, TL_MIN(NR, l->h - b * NR), 0, l->h, to);
        }
    return to;
}

// Rows of NR elements, a stream of memory that is fetched during a product because what follows it needs them.
static void N_(expect)(fetch *f, const T *at, int64_t distance) {
    f->at[f->streams] = (const char *)at;
    f->row[f->streams] = distance * (int64_t)sizeof(T);
    f->last[f->streams++] = (NR - 1) * (int64_t)sizeof(T);
}

// sums[rows][NR] (+)= a[rows][k] @ panel[k][NR], for the rows of parts [p0, p1): all of them meet the panel while it is in the first-level
// cache. `f`: what is fetched meanwhile, from the first of these rows on.
static void N_(multiply)(const N_(layer) *l, int64_t p0, int64_t p1, const T *a, int64_t lda, int64_t k, const T *panel, T *sums,
                         int64_t ld, int add, const fetch *f) {
    for (int64_t part = p0; part < p1; part++) {
        const int64_t i = N_(row)(l, part) - N_(row)(l, p0), rows = N_(row)(l, part + 1) - N_(row)(l, part);
        fetch mine = *f;
        for (int64_t q = 0; q < mine.streams; q++) mine.rows[q] = rows, mine.at[q] += i * mine.row[q];
        N_(tl_kernels)[1][rows](lda, k, a + i * lda, panel, NR, sums + i * ld, ld, add, &mine);
    }
}

// Rows of the hidden state with a distance that spreads them over the sets of the cache.
static void N_(copy_rows)(const T *from, int64_t distance, int64_t rows, int64_t k, T *to, int64_t ld) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * ld, from + i * distance, sizeof(T) * (size_t)k);
}

// b: gates (steps, n, g h), w_hh (g h, h), b_hh (g h), initial (states, n, h), lengths (n) or none; out (states, steps, n, h), followed by
// what the gradients are made of if that is kept: (4, steps, n, h)
void N_(tl_recurrent)(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {
    const N_(layer) l = N_(share)(s, tid, nth);
    const int64_t h = l.h, width = l.g * h, ld = h + 16, sl = TL_MAX(l.g, 4) * NR, plane = l.steps * l.n * h;
    const T *gates = (const T *)b[0], *bias = (const T *)b[2], *initial = (const T *)b[3];
    const int64_t *lengths = s[7] ? (const int64_t *)b[4] : 0;
    const int64_t kept = s[8] && l.g > 1 ? 4 : 0;
    T *out = (T *)b[s[7] ? 5 : 4];
    T *panels = tl_scratch(3, (int64_t)sizeof(T) * (TL_MAX(0, l.b1 - l.b0) * l.g * h * NR + NR));
    T *a = tl_scratch(0, (int64_t)sizeof(T) * TOGETHER * MR * ld), *sums = tl_scratch(1, (int64_t)sizeof(T) * TOGETHER * MR * sl);
    N_(pack_gates)(&l, (const T *)b[1], panels);
    for (int64_t step = 0; step < l.steps; step++) {
        const int64_t t = l.reverse ? l.steps - 1 - step : step;
        const T *old = step ? out + (l.reverse ? t + 1 : t - 1) * l.n * h : initial;
        const int64_t old_plane = step ? plane : l.n * h;
        for (int64_t part = 0; part < l.parts; part += TOGETHER) {
            const int64_t end = TL_MIN(part + TOGETHER, l.parts), i0 = N_(row)(&l, part), rows = N_(row)(&l, end) - i0;
            N_(copy_rows)(old + i0 * h, h, rows, h, a, ld);
            for (int64_t block = l.b0; block < l.b1; block++) {
                const int64_t u = block * NR, w = TL_MIN(NR, h - u);
                T *new = out + (t * l.n + i0) * h + u;
                for (int64_t q = 0; q < l.g; q++) {
                    const T *panel = panels + ((block - l.b0) * l.g + q) * h * NR;
                    fetch ahead = nothing;
                    N_(expect)(&ahead, gates + (t * l.n + i0) * width + q * h + u, width);
                    if (q < l.states) N_(expect)(&ahead, new + q * plane, h);
                    if (q < kept) N_(expect)(&ahead, new + (l.states + q) * plane, h);
                    for (int64_t k = 0; k < h; k += STEP)
                        N_(multiply)(&l, part, end, a + k, ld, TL_MIN(STEP, h - k), panel + k * NR, sums + q * NR, sl, k > 0,
                                     k + STEP < h ? &nothing : &ahead);
                }
                for (int64_t i = 0; i < rows; i++) {
                    const T *restrict x = gates + (t * l.n + i0 + i) * width + u, *restrict c = bias + u;
                    const T *restrict before = old + (i0 + i) * h + u;
                    T *restrict y = new + i * h, *p = sums + i * sl;
                    T *to = kept ? y + l.states * plane : p;  // where the gates go: over their sums if nobody keeps them
                    const int64_t next = kept ? plane : NR;
                    if (lengths && lengths[i0 + i] <= t) {
                        for (int64_t q = 0; q < l.states; q++) memcpy(y + q * plane, before + q * old_plane, sizeof(T) * (size_t)w);
                        for (int64_t q = 0; q < kept; q++) memset(to + q * next, 0, sizeof(T) * (size_t)w);
                    } else if (l.mode == TL_LSTM) {
#pragma omp simd
                        for (int64_t j = 0; j < w; j++) {
                            const T in = SIGMOID(x[j] + (p[j] + c[j])), keep = SIGMOID(x[h + j] + (p[NR + j] + c[h + j]));
                            const T g = TANH(x[2 * h + j] + (p[2 * NR + j] + c[2 * h + j]));
                            const T show = SIGMOID(x[3 * h + j] + (p[3 * NR + j] + c[3 * h + j]));
                            const T cell = keep * before[old_plane + j] + in * g;
                            y[j] = show * TANH(cell);
                            y[plane + j] = cell;
                            to[j] = in, to[next + j] = keep, to[2 * next + j] = g, to[3 * next + j] = show;
                        }
                    } else if (l.mode == TL_GRU) {
#pragma omp simd
                        for (int64_t j = 0; j < w; j++) {
                            const T r = SIGMOID(x[j] + (p[j] + c[j])), z = SIGMOID(x[h + j] + (p[NR + j] + c[h + j]));
                            const T inner = p[2 * NR + j] + c[2 * h + j], candidate = TANH(x[2 * h + j] + r * inner);
                            y[j] = candidate + z * (before[j] - candidate);
                            to[j] = r, to[next + j] = z, to[2 * next + j] = candidate, to[3 * next + j] = inner;
                        }
                    } else if (l.mode == TL_RNN_TANH) {
#pragma omp simd
                        for (int64_t j = 0; j < w; j++) y[j] = TANH(x[j] + (p[j] + c[j]));
                    } else {
#pragma omp simd
                        for (int64_t j = 0; j < w; j++) y[j] = MAXIMUM(x[j] + (p[j] + c[j]), 0);
                    }
                }
            }
        }
        tl_barrier(nth);
    }
}

// b: grad (states, steps, n, h), w_hh (g h, h), initial (states, n, h), kept (all that `tl_recurrent` gives), lengths or none;
// out (steps + 1, n, room), in a row g h, for GRU and h more for the hidden part of the candidate: the gates' gradients, then those of
// `initial`
void N_(tl_recurrent_grad)(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {
    const N_(layer) l = N_(share)(s, tid, nth);
    const int gru = l.mode == TL_GRU;
    const int64_t h = l.h, width = l.g * h, room = s[8], parts = l.g + gru, plane = l.steps * l.n * h, ld = STEP + 16;
    const T *grad = (const T *)b[0], *weight = (const T *)b[1], *initial = (const T *)b[2], *out = (const T *)b[3];
    const int64_t *lengths = s[7] ? (const int64_t *)b[4] : 0, kept = l.g > 1 ? 4 : 0;
    T *result = (T *)b[s[7] ? 5 : 4];
    const int64_t units = TL_MAX(0, l.b1 - l.b0) * NR, mine = units * l.states;
    T *panels = tl_scratch(3, (int64_t)sizeof(T) * (units * width + NR)), *a = tl_scratch(0, (int64_t)sizeof(T) * TOGETHER * MR * ld);
    T *carry = tl_scratch(1, (int64_t)sizeof(T) * ((l.r1 - l.r0) * mine + NR));  // of the hidden state, and `units` later of the cell
    for (int64_t block = l.b0; block < l.b1; block++) {
        const OPERAND all = {weight, 1, h, 0};
        N_(pack_columns)(0, &all, block * NR, TL_MIN(NR, h - block * NR), 0, width, panels + (block - l.b0) * width * NR);
    }
    memset(carry, 0, sizeof(T) * (size_t)((l.r1 - l.r0) * mine));
    for (int64_t step = l.steps - 1; step >= 0; step--) {
        const int64_t t = l.reverse ? l.steps - 1 - step : step;
        const T *old = step ? out + (l.reverse ? t + 1 : t - 1) * l.n * h : initial;
        const int64_t old_plane = step ? plane : l.n * h;
        for (int64_t i = l.r0; i < l.r1; i++)
            for (int64_t block = l.b0; block < l.b1; block++) {
                const int64_t u = block * NR, w = TL_MIN(NR, h - u), at = (t * l.n + i) * h + u;
                const T *restrict above = grad + at, *restrict y = out + at, *restrict f = y + l.states * plane, *restrict before = old + i * h + u;
                T *restrict d = result + (t * l.n + i) * room + u, *restrict k = carry + (i - l.r0) * mine + (block - l.b0) * NR;
                if (lengths && lengths[i] <= t) {  // a sample that is over hands everything on
                    for (int64_t q = 0; q < l.states; q++)
                        for (int64_t j = 0; j < w; j++) k[q * units + j] += above[q * plane + j];
                    for (int64_t q = 0; q < parts; q++) memset(d + q * h, 0, sizeof(T) * (size_t)w);
                } else if (l.mode == TL_LSTM) {
#pragma omp simd
                    for (int64_t j = 0; j < w; j++) {
                        const T in = f[j], keep = f[plane + j], g = f[2 * plane + j], show = f[3 * plane + j], bent = TANH(y[plane + j]);
                        const T dh = above[j] + k[j], dc = above[plane + j] + k[units + j] + dh * show * (1 - bent * bent);
                        d[j] = dc * g * in * (1 - in);
                        d[h + j] = dc * before[old_plane + j] * keep * (1 - keep);
                        d[2 * h + j] = dc * in * (1 - g * g);
                        d[3 * h + j] = dh * bent * show * (1 - show);
                        k[j] = 0;
                        k[units + j] = dc * keep;
                    }
                } else if (gru) {
#pragma omp simd
                    for (int64_t j = 0; j < w; j++) {
                        const T r = f[j], z = f[plane + j], candidate = f[2 * plane + j], inner = f[3 * plane + j];
                        const T dh = above[j] + k[j], dn = dh * (1 - z) * (1 - candidate * candidate);
                        d[j] = dn * inner * r * (1 - r);
                        d[h + j] = dh * (before[j] - candidate) * z * (1 - z);
                        d[2 * h + j] = dn;
                        d[3 * h + j] = dn * r;
                        k[j] = dh * z;
                    }
                } else {
#pragma omp simd
                    for (int64_t j = 0; j < w; j++) {
                        const T dh = above[j] + k[j];
                        d[j] = l.mode == TL_RNN_TANH ? dh * (1 - y[j] * y[j]) : y[j] > 0 ? dh : 0;
                        k[j] = 0;
                    }
                }
            }
        tl_barrier(nth);  // the gradients of all units are there
        if (l.b0 == l.b1) continue;
        for (int64_t part = 0; part < l.parts; part += TOGETHER) {
            const int64_t end = TL_MIN(part + TOGETHER, l.parts), i0 = N_(row)(&l, part), rows = N_(row)(&l, end) - i0;
            const T *from = result + (t * l.n + i0) * room;
            for (int64_t k = 0; k < width; k += STEP) {
                const int64_t depth = TL_MIN(STEP, width - k), lower = gru ? TL_MAX(0, TL_MIN(depth, 2 * h - k)) : depth;
                N_(copy_rows)(from + k, room, rows, lower, a, ld);
                if (lower < depth) N_(copy_rows)(from + h + k + lower, room, rows, depth - lower, a + lower, ld);
                for (int64_t block = l.b0; block < l.b1; block++)
                    N_(multiply)(&l, part, end, a, ld, depth, panels + ((block - l.b0) * width + k) * NR,
                                 carry + (i0 - l.r0) * mine + (block - l.b0) * NR, mine, 1, &nothing);
            }
        }
    }
    for (int64_t i = l.r0; i < l.r1; i++)
        for (int64_t block = l.b0; block < l.b1; block++) {
            const int64_t u = block * NR, w = TL_MIN(NR, h - u);
            const T *k = carry + (i - l.r0) * mine + (block - l.b0) * NR;
            for (int64_t q = 0; q < parts; q++) {
                T *d = result + (l.steps * l.n + i) * room + q * h + u;
                if (q < l.states) memcpy(d, k + q * units, sizeof(T) * (size_t)w);
                else memset(d, 0, sizeof(T) * (size_t)w);
            }
        }
}
#undef N_
#undef NR
#undef OPERAND
#undef TOGETHER
#undef STEP
