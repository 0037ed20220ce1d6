// Convolutions of one element type: T, its suffix S and LANES come from tl_conv.c.
#define N_(name) JOIN(name, S)
#define NR (2 * LANES)
#define VEC N_(vec)
#define UVEC N_(uvec)
#define COLUMNS 16  // distance of the steps of a packed block of rows; MR <= 16
#define DOT_ROWS 3
#define DOT_COLUMNS (MR > 6 ? 9 : 3)  // sums of DOT_ROWS x DOT_COLUMNS products, with their factors, fit in registers

// c[mr][NR] (+)= sum over p of a[p][i] * x[offset[p] ...]
TL_INLINE void N_(taps)(const int mr, int64_t k, const T *restrict a, const T *restrict x, const int64_t *restrict offset, T *restrict c, int64_t ldc, int add) {
    VEC sum[MR][2];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) sum[i][0] = sum[i][1] = (VEC){0};
    for (int64_t p = 0; p < k; p++) {
        const VEC b0 = *(const UVEC *)(x + offset[p]), b1 = *(const UVEC *)(x + offset[p] + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            const T s = a[p * COLUMNS + i];
            sum[i][0] += s * b0;
            sum[i][1] += s * b1;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
        UVEC *to = (UVEC *)(c + i * ldc), *next = (UVEC *)(c + i * ldc + LANES);
        if (add) sum[i][0] += *to, sum[i][1] += *next;
        *to = sum[i][0];
        *next = sum[i][1];
    }
}
#define ARGUMENTS int64_t k, const T *restrict a, const T *restrict x, const int64_t *restrict offset, T *restrict c, int64_t ldc, int add
#define HEIGHT(mr) \
    static void N_(taps_##mr)(ARGUMENTS) { N_(taps)(mr, k, a, x, offset, c, ldc, add); }
HEIGHT(1) HEIGHT(2) HEIGHT(3) HEIGHT(4) HEIGHT(5) HEIGHT(6)
#if MR > 6
HEIGHT(7) HEIGHT(8) HEIGHT(9) HEIGHT(10) HEIGHT(11) HEIGHT(12)
#endif
#if MR > 12
HEIGHT(13) HEIGHT(14)
#endif
#undef HEIGHT
static void (*const N_(taps_of)[MR + 1])(ARGUMENTS) = {
    0, N_(taps_1), N_(taps_2), N_(taps_3), N_(taps_4), N_(taps_5), N_(taps_6),
#if MR > 6
    N_(taps_7), N_(taps_8), N_(taps_9), N_(taps_10), N_(taps_11), N_(taps_12),
#endif
#if MR > 12
    N_(taps_13), N_(taps_14),
#endif
};
#undef ARGUMENTS

// to[q][i] = from[i][q]; `readable` rows, which may be more than `rows`, lie there, and `ld` has room for whole vectors
static void N_(turn)(const T *from, int64_t distance, int64_t rows, int64_t readable, int64_t n, T *restrict to, int64_t ld) {
    int64_t whole = 0;
    for (; whole < rows && whole + LANES <= readable; whole += LANES)
        for (int64_t q = 0; q + LANES <= n; q += LANES) N_(transpose)(from + whole * distance + q, distance, to + q * ld + whole, ld);
    whole = TL_MIN(whole, rows);
    for (int64_t q = n / LANES * LANES; q < n; q++)
        for (int64_t i = 0; i < whole; i++) to[q * ld + i] = from[i * distance + q];
    for (int64_t q = 0; q < n; q++)
        for (int64_t i = whole; i < rows; i++) to[q * ld + i] = from[i * distance + q];
}

// to[i] = from[i], or with `plus` from[i] + add: vectors, of which the last two may overlap
TL_INLINE void N_(copy_run)(const int plus, const T *restrict from, int64_t n, T add, T *restrict to) {
    typedef T part __attribute__((vector_size(VECTOR_BYTES / 2), aligned(sizeof(T)), may_alias));
    enum { HALF = LANES / 2 };
    if (n >= LANES) {
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t at = TL_MIN(i, n - LANES);
            VEC v = *(const UVEC *)(from + at);
            if (plus) v += add;
            *(UVEC *)(to + at) = v;
        }
    } else if (n >= HALF) {
        part low = *(const part *)from, high = *(const part *)(from + n - HALF);
        if (plus) low += add, high += add;
        *(part *)to = low;
        *(part *)(to + n - HALF) = high;
    } else
        for (int64_t i = 0; i < n; i++) to[i] = plus ? from[i] + add : from[i];
}

// The padded planes of one sample, [phase][z][y][x] of each channel: element i of phase p is x[i * stride + p - before]. What lies outside
// is 0 there already: it does so for every sample.
static void N_(pad)(const tl_planes *p, const T *x, int64_t channels, T *to) {
    const int64_t *size = p->size, *stride = p->stride, *extent = p->extent, plane = extent[0] * extent[1] * extent[2];
    const int64_t phases = stride[0] * stride[1] * stride[2];
    for (int64_t phase = 0; phase < phases; phase++) {
        const int64_t at[3] = {phase / (stride[1] * stride[2]), phase / stride[2] % stride[1], phase % stride[2]};
        int64_t start[3], low[3], high[3];  // of each dimension, the elements that are not padding
        for (int d = 0; d < 3; d++) {
            start[d] = at[d] - p->before[d];
            low[d] = TL_MIN(extent[d], start[d] >= 0 ? 0 : (-start[d] + stride[d] - 1) / stride[d]);
            high[d] = TL_MAX(low[d], TL_MIN(extent[d], size[d] > start[d] ? (size[d] - start[d] + stride[d] - 1) / stride[d] : 0));
        }
        const int64_t n = high[2] - low[2], first = low[2] * stride[2] + start[2];
        for (int64_t c = 0; c < channels; c++)
            for (int64_t z = low[0]; z < high[0]; z++)
                for (int64_t y = low[1]; y < high[1]; y++) {
                    const T *from = x + ((c * size[0] + z * stride[0] + start[0]) * size[1] + y * stride[1] + start[1]) * size[2] + first;
                    T *row = to + (c * phases + phase) * plane + (z * extent[1] + y) * extent[2] + low[2];
                    if (stride[2] == 1) N_(copy_run)(0, from, n, 0, row);
                    else
                        for (int64_t i = 0; i < n; i++) row[i] = from[i * stride[2]];
                }
    }
}

// One part of the results: those at first + i * step, which `count` taps reach, all at the same distances.
typedef struct {
    int64_t count, counts[3], first[3], step[3], taps, *tap, *offset;
} N_(part);

// out[n, o, part] = bias + sum over channels and taps of weight * padded x. `weight`: element (o, c, tap) of a group is at
// o * weight_o + c * weight_c + tap. Threads share samples and blocks of output channels.
static void N_(correlate)(const tl_planes *p, const N_(part) *parts, int n_parts, int64_t samples, int64_t groups, int64_t in, int64_t outs,
                          const int64_t *size, const T *x, const T *weight, int64_t weight_o, int64_t weight_c, int64_t weight_g,
                          const T *bias, T *out, int tid, int nth) {
    const int64_t plane = p->extent[0] * p->extent[1] * p->extent[2], planes = plane * p->stride[0] * p->stride[1] * p->stride[2];
    const int64_t blocks = (outs + MR - 1) / MR, all = samples * groups * blocks, from = all * tid / nth, to = all * (tid + 1) / nth;
    int64_t taps = 0;
    for (int q = 0; q < n_parts; q++) taps += parts[q].taps;
    T *padded = tl_scratch(0, (int64_t)sizeof(T) * (in * planes + 2 * NR));
    T *tile = tl_scratch(1, (int64_t)sizeof(T) * MR * (plane + 2 * NR));
    const int64_t each = in * taps * COLUMNS;  // packed weights of a block
    T *packed = tl_scratch(2, (int64_t)sizeof(T) * groups * blocks * each + groups * blocks);
    char *there = (char *)(packed + groups * blocks * each);
    memset(there, 0, (size_t)(groups * blocks));
    memset(padded, 0, sizeof(T) * (size_t)(in * planes + 2 * NR));
    int64_t have = -1;
    for (int64_t task = from; task < to; task++) {
        const int64_t block = task % blocks, g = task / blocks % groups, n = task / blocks / groups;
        const int64_t o0 = outs * block / blocks, rows = outs * (block + 1) / blocks - o0;
        if (have != task / blocks) N_(pad)(p, x + (n * groups + g) * in * p->size[0] * p->size[1] * p->size[2], in, padded);
        have = task / blocks;
        T *a = packed + (g * blocks + block) * each;
        const int pack = !there[g * blocks + block];
        there[g * blocks + block] = 1;
        for (int q = 0; q < n_parts; q++) {
            const N_(part) *part = parts + q;
            const int64_t k = in * part->taps;
            if (pack)
                for (int64_t c = 0; c < in; c++)
                    for (int64_t i = 0; i < rows; i++)
                        for (int64_t t = 0; t < part->taps; t++)
                            a[(c * part->taps + t) * COLUMNS + i] = weight[g * weight_g + (o0 + i) * weight_o + c * weight_c + part->tap[t]];
            const int64_t *counts = part->counts;
            const int64_t length = counts[0] && counts[1] && counts[2] ? ((counts[0] - 1) * p->extent[1] + counts[1] - 1) * p->extent[2] + counts[2] : 0;
            const int64_t ld = (length + NR - 1) / NR * NR;
            for (int64_t j = 0; j < length; j += NR) N_(taps_of)[rows](k, a, padded + j, part->offset, tile + j, ld, 0);
            for (int64_t i = 0; i < rows && length; i++) {
                const T add = bias ? bias[g * outs + o0 + i] : 0;
                T *whole = out + ((n * groups + g) * outs + o0 + i) * size[0] * size[1] * size[2];
                for (int64_t z = 0; z < counts[0]; z++)
                    for (int64_t y = 0; y < counts[1]; y++) {
                        const T *restrict row = tile + i * ld + (z * p->extent[1] + y) * p->extent[2];
                        const int64_t at = ((part->first[0] + z * part->step[0]) * size[1] + part->first[1] + y * part->step[1]) * size[2];
                        T *restrict result = whole + at + part->first[2];
                        const int64_t step = part->step[2];
                        if (step == 1) N_(copy_run)(1, row, counts[2], add, result);
                        else
                            for (int64_t l = 0; l < counts[2]; l++) result[l * step] = row[l] + add;
                    }
            }
            a += k * COLUMNS;
        }
    }
}

// b: x (n, groups * in, size), weight (groups * outs, in, kernel), bias or none; out (n, groups * outs, counts)
void N_(tl_conv)(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {
    const tl_shape f = tl_shape_of(s);
    const int64_t taps = f.kernel[0] * f.kernel[1] * f.kernel[2];
    int64_t *tap = malloc(sizeof(int64_t) * (size_t)(taps * (1 + f.in))), *offset = tap + taps;
    const tl_planes p = tl_windows(&f);
    for (int64_t t = 0; t < taps; t++) {
        tap[t] = t;
        for (int64_t c = 0; c < f.in; c++) offset[c * taps + t] = tl_tap(&f, &p, t) + c * tl_planes_size(&p);
    }
    const N_(part) part = {.counts = {f.counts[0], f.counts[1], f.counts[2]}, .step = {1, 1, 1}, .taps = taps, .tap = tap, .offset = offset};
    N_(correlate)(&p, &part, 1, f.samples, f.groups, f.in, f.outs, f.counts, (const T *)b[0], (const T *)b[1], f.in * taps, taps,
                  f.outs * f.in * taps, f.has_bias ? (const T *)b[2] : 0, (T *)b[2 + f.has_bias], tid, nth);
    free(tap);
}

// b: x (n, groups * outs, counts), weight (groups * outs, in, kernel), bias or none; out (n, groups * in, size): the transpose of tl_conv.
// The results of one phase of the stride are a correlation with the taps of that phase.
void N_(tl_conv_transpose)(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {
    const tl_shape f = tl_shape_of(s);
    const int64_t taps = f.kernel[0] * f.kernel[1] * f.kernel[2];
    int64_t count[3], after = 0;
    tl_planes p = {.stride = {1, 1, 1}};
    int n_parts = 1;
    for (int d = 0; d < 3; d++) {
        count[d] = f.stride[d];
        n_parts *= (int)f.stride[d];
        p.size[d] = f.counts[d];
        for (int64_t tap = 0; tap < f.kernel[d]; tap++) {  // from how far before and behind its own place a result is summed
            const int64_t reach = tap * f.dilation[d], first = tl_first(&f, d, reach % f.stride[d]) - reach / f.stride[d];
            p.before[d] = TL_MAX(p.before[d], -first);
            after = TL_MAX(after, first);
        }
        p.extent[d] = p.before[d] + after + (f.size[d] - 1) / f.stride[d] + 1;
        after = 0;
    }
    int64_t *number = malloc(sizeof(int64_t) * (size_t)(taps * (1 + f.outs)));
    N_(part) *parts = calloc((size_t)n_parts, sizeof *parts);
    int64_t *tap = number, *offset = number + taps;
    const int64_t plane = p.extent[0] * p.extent[1] * p.extent[2];
    for (int q = 0; q < n_parts; q++) {
        N_(part) *part = parts + q;
        const int64_t phase[3] = {q / (count[1] * count[2]), q / count[2] % count[1], q % count[2]};
        int64_t low[3];
        for (int d = 0; d < 3; d++) {  // results at low * stride + phase - before, the first that is not negative and on
            low[d] = tl_first(&f, d, phase[d]);
            part->first[d] = low[d] * f.stride[d] + phase[d] - f.before[d];
            part->step[d] = f.stride[d];
            part->counts[d] = f.size[d] > part->first[d] ? (f.size[d] - 1 - part->first[d]) / f.stride[d] + 1 : 0;
        }
        part->tap = tap, part->offset = offset;
        for (int64_t t = 0; t < taps; t++) {
            const int64_t at[3] = {t / (f.kernel[1] * f.kernel[2]), t / f.kernel[2] % f.kernel[1], t % f.kernel[2]};
            int64_t where = 0, hit = 1;
            for (int d = 0; d < 3; d++) {
                const int64_t reach = at[d] * f.dilation[d];
                hit &= reach % f.stride[d] == phase[d];
                where = where * p.extent[d] + low[d] - reach / f.stride[d] + p.before[d];
            }
            if (!hit) continue;
            part->tap[part->taps] = t;
            part->offset[part->taps++] = where;
        }
        for (int64_t c = f.outs - 1; c >= 0; c--)
            for (int64_t t = part->taps - 1; t >= 0; t--) part->offset[c * part->taps + t] = part->offset[t] + c * plane;
        tap += part->taps, offset += part->taps * f.outs;
    }
    N_(correlate)(&p, parts, n_parts, f.samples, f.groups, f.outs, f.in, f.size, (const T *)b[0], (const T *)b[1], taps, f.in * taps,
                  f.outs * f.in * taps, f.has_bias ? (const T *)b[2] : 0, (T *)b[2 + f.has_bias], tid, nth);
    free(parts);
    free(number);
}

// to[i][j] = sum over q of g[i][q] * x[j][q], a vector of sums each; n in whole vectors
static void N_(dots)(int64_t n, const T *const *g, const T *const *x, VEC (*restrict to)[DOT_COLUMNS]) {
    VEC sum[DOT_ROWS][DOT_COLUMNS];
#pragma GCC unroll 4
    for (int i = 0; i < DOT_ROWS; i++)
#pragma GCC unroll 16
        for (int j = 0; j < DOT_COLUMNS; j++) sum[i][j] = (VEC){0};
    for (int64_t q = 0; q < n; q += LANES) {
        VEC row[DOT_ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < DOT_ROWS; i++) row[i] = *(const UVEC *)(g[i] + q);
#pragma GCC unroll 16
        for (int j = 0; j < DOT_COLUMNS; j++) {
            const VEC column = *(const UVEC *)(x[j] + q);
#pragma GCC unroll 4
            for (int i = 0; i < DOT_ROWS; i++) sum[i][j] += row[i] * column;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < DOT_ROWS; i++)
#pragma GCC unroll 16
        for (int j = 0; j < DOT_COLUMNS; j++) to[i][j] = sum[i][j];
}

// tl_conv_weight for few channels: all that a window covers lies unfolded, one run over the positions for each of its elements, and a
// weight's gradient is the product of such a run with the gradient of an output channel. Threads share output channels, and where these
// are few, elements of the window.
static void N_(weight_of_few)(const tl_shape *f, const tl_planes *p, const T *x, const T *grad, T *out, int tid, int nth) {
    const int64_t taps = f->kernel[0] * f->kernel[1] * f->kernel[2], positions = f->counts[0] * f->counts[1] * f->counts[2];
    const int64_t width = f->in * taps, whole = tl_planes_size(p), run = (positions + LANES - 1) / LANES * LANES;
    const int64_t full = positions / LANES * LANES;
    const int64_t across = TL_MAX(1, TL_MIN(nth, (f->outs + DOT_ROWS - 1) / DOT_ROWS)), down = TL_MAX(1, TL_MIN(nth / across, width));
    const int64_t column = tid / down, row = tid % down;
    if (column >= across) return;
    const int64_t o0 = f->outs * column / across, o1 = f->outs * (column + 1) / across;
    const int64_t i0 = width * row / down, i1 = width * (row + 1) / down;
    T *planes = tl_scratch(0, (int64_t)sizeof(T) * whole * f->in), *runs = tl_scratch(1, (int64_t)sizeof(T) * run * (i1 - i0));
    VEC *sums = tl_scratch(2, (int64_t)sizeof(VEC) * TL_MAX(1, (o1 - o0) * (i1 - i0)));
    memset(planes, 0, sizeof(T) * (size_t)(whole * f->in));
    memset(runs, 0, sizeof(T) * (size_t)(run * (i1 - i0)));
    for (int64_t g = 0; g < f->groups; g++) {
        memset(sums, 0, sizeof(VEC) * (size_t)((o1 - o0) * (i1 - i0)));
        for (int64_t n = 0; n < f->samples; n++) {
            const T *from = grad + (n * f->groups + g) * f->outs * positions;
            N_(pad)(p, x + (n * f->groups + g) * f->in * f->size[0] * f->size[1] * f->size[2], f->in, planes);
            for (int64_t i = i0; i < i1; i++)
                for (int64_t line = 0; line < f->counts[0] * f->counts[1]; line++) {
                    const int64_t inside = (line / f->counts[1] * p->extent[1] + line % f->counts[1]) * p->extent[2];
                    const T *at = planes + i / taps * whole + tl_tap(f, p, i % taps) + inside;
                    N_(copy_run)(0, at, f->counts[2], 0, runs + (i - i0) * run + line * f->counts[2]);
                }
            for (int64_t i = i0; i < i1; i += DOT_COLUMNS)
                for (int64_t o = o0; o < o1; o += DOT_ROWS) {
                    const T *rows[DOT_ROWS], *columns[DOT_COLUMNS];  // the last ones over again where there are fewer
                    VEC part[DOT_ROWS][DOT_COLUMNS], rest[DOT_ROWS][DOT_COLUMNS];
                    T ends[DOT_ROWS][LANES];
                    for (int64_t j = 0; j < DOT_COLUMNS; j++) columns[j] = runs + (TL_MIN(i + j, i1 - 1) - i0) * run;
                    for (int64_t j = 0; j < DOT_ROWS; j++) rows[j] = from + TL_MIN(o + j, o1 - 1) * positions;
                    N_(dots)(full, rows, columns, part);
                    if (full < run) {
                        memset(ends, 0, sizeof ends);
                        for (int64_t j = 0; j < DOT_ROWS; j++) {
                            memcpy(ends[j], rows[j] + full, sizeof(T) * (size_t)(positions - full));
                            rows[j] = ends[j];
                        }
                        for (int64_t j = 0; j < DOT_COLUMNS; j++) columns[j] += full;
                        N_(dots)(LANES, rows, columns, rest);
                    }
                    for (int64_t k = o; k < TL_MIN(o + DOT_ROWS, o1); k++)
                        for (int64_t j = i; j < TL_MIN(i + DOT_COLUMNS, i1); j++) {
                            VEC *sum = sums + (k - o0) * (i1 - i0) + j - i0;
                            *sum += part[k - o][j - i];
                            if (full < run) *sum += rest[k - o][j - i];
                        }
                }
        }
        for (int64_t o = o0; o < o1; o++)
            for (int64_t i = i0; i < i1; i++) {
                const VEC sum = sums[(o - o0) * (i1 - i0) + i - i0];
                T total = 0;
                for (int q = 0; q < LANES; q++) total += sum[q];
                out[(g * f->outs + o) * width + i] = total;
            }
    }
}

// b: x (n, groups * in, size), grad (n, groups * outs, counts); out (groups * outs, in, kernel). Channels of x lie next to each other: a
// product over positions then has rows of the gradient and columns of x. Threads share output channels, and where these are few, taps.
void N_(tl_conv_weight)(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {
    const tl_shape f = tl_shape_of(s);
    const tl_planes p = tl_windows(&f);
    if (f.in < LANES) {
        N_(weight_of_few)(&f, &p, (const T *)b[0], (const T *)b[1], (T *)b[2], tid, nth);
        return;
    }
    const int64_t taps = f.kernel[0] * f.kernel[1] * f.kernel[2], positions = f.counts[0] * f.counts[1] * f.counts[2];
    const int64_t room = (f.in + NR - 1) / NR * NR;
    const int64_t across = TL_MAX(1, TL_MIN(nth, (f.outs + 7) / 8)), down = TL_MAX(1, TL_MIN(nth / across, taps));
    const int64_t column = tid / down, row = tid % down;
    if (column >= across) return;
    const int64_t o0 = f.outs * column / across, o1 = f.outs * (column + 1) / across, t0 = taps * row / down, t1 = taps * (row + 1) / down;
    const int64_t whole = tl_planes_size(&p), blocks = (o1 - o0 + MR - 1) / MR;
    T *padded = tl_scratch(0, (int64_t)sizeof(T) * whole * (room + f.in + LANES)), *planes = padded + whole * room;
    memset(planes, 0, sizeof(T) * (size_t)(whole * (f.in + LANES)));
    T *sums = tl_scratch(1, (int64_t)sizeof(T) * (t1 - t0) * (o1 - o0) * room), *rows = tl_scratch(2, (int64_t)sizeof(T) * COLUMNS * positions);
    T *out = (T *)b[2];
    int64_t *place = tl_scratch(3, (int64_t)sizeof(int64_t) * positions);
    for (int64_t i = 0; i < positions; i++) {
        const int64_t line = i / f.counts[2];
        place[i] = ((line / f.counts[1] * p.extent[1] + line % f.counts[1]) * p.extent[2] + i % f.counts[2]) * room;
    }
    for (int64_t g = 0; g < f.groups; g++) {
        memset(sums, 0, sizeof(T) * (size_t)((t1 - t0) * (o1 - o0) * room));
        for (int64_t n = 0; n < f.samples; n++) {
            N_(pad)(&p, (const T *)b[0] + (n * f.groups + g) * f.in * f.size[0] * f.size[1] * f.size[2], f.in, planes);
            N_(turn)(planes, whole, f.in, f.in + LANES, whole, padded, room);
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t i0 = (o1 - o0) * block / blocks, height = (o1 - o0) * (block + 1) / blocks - i0;
                const T *from = (const T *)b[1] + ((n * f.groups + g) * f.outs + o0 + i0) * positions;
                N_(turn)(from, positions, height, ((f.samples - n) * f.groups - g) * f.outs - o0 - i0, positions, rows, COLUMNS);
                for (int64_t t = t0; t < t1; t++)
                    for (int64_t c = 0; c < f.in; c += NR) {
                        T *to = sums + ((t - t0) * (o1 - o0) + i0) * room + c;
                        N_(taps_of)[height](positions, rows, padded + tl_tap(&f, &p, t) * room + c, place, to, room, 1);
                    }
            }
        }
        for (int64_t o = o0; o < o1; o++)
            for (int64_t t = t0; t < t1; t++) {
                const T *from = sums + ((t - t0) * (o1 - o0) + o - o0) * room;
                T *to = out + (g * f.outs + o) * f.in * taps;
                for (int64_t i = 0; i < f.in; i++) to[i * taps + t] = from[i];
            }
    }
}

// b: g (planes, counts), at (planes, counts): which element of a window; out (planes, size): g where those elements are
void N_(tl_pool_spread)(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {
    const tl_shape f = tl_shape_of(s);
    const int64_t plane = f.size[0] * f.size[1] * f.size[2];
    const int64_t taps = f.kernel[0] * f.kernel[1] * f.kernel[2], windows = f.counts[0] * f.counts[1] * f.counts[2];
    int64_t(*reach)[4] = tl_scratch(3, (int64_t)sizeof *reach * taps);  // from the corner of a window: in memory, and in each dimension
    int inside = 1;
    for (int d = 0; d < 3; d++)
        inside &= f.before[d] == 0 && (f.counts[d] - 1) * f.stride[d] + (f.kernel[d] - 1) * f.dilation[d] < f.size[d];
    for (int64_t t = 0; t < taps; t++) {
        const int64_t at[3] = {t / (f.kernel[1] * f.kernel[2]), t / f.kernel[2] % f.kernel[1], t % f.kernel[2]};
        for (int d = 0; d < 3; d++) reach[t][1 + d] = at[d] * f.dilation[d] - f.before[d];
        reach[t][0] = (reach[t][1] * f.size[1] + reach[t][2]) * f.size[2] + reach[t][3];
    }
    TL_SHARE(lo, hi, f.samples, 1);
    const T *g = (const T *)b[0] + lo * windows;
    const int64_t *at = (const int64_t *)b[1] + lo * windows;
    for (int64_t n = lo; n < hi; n++) {
        T *out = (T *)b[2] + n * plane;
        memset(out, 0, sizeof(T) * (size_t)plane);
        for (int64_t z = 0; z < f.counts[0]; z++)
            for (int64_t y = 0; y < f.counts[1]; y++, g += f.counts[2], at += f.counts[2]) {
                const int64_t i = z * f.stride[0], j = y * f.stride[1];
                T *row = out + (i * f.size[1] + j) * f.size[2];
                if (inside) {
                    for (int64_t x = 0; x < f.counts[2]; x++) row[x * f.stride[2] + reach[at[x]][0]] += g[x];
                    continue;
                }
                for (int64_t x = 0; x < f.counts[2]; x++) {
                    const int64_t *r = reach[at[x]], l = x * f.stride[2];
                    const int there = (uint64_t)(i + r[1]) < (uint64_t)f.size[0] && (uint64_t)(j + r[2]) < (uint64_t)f.size[1] &&
                                      (uint64_t)(l + r[3]) < (uint64_t)f.size[2];
                    if (there) row[l + r[0]] += g[x];
                }
            }
    }
}
#undef N_
#undef NR
#undef VEC
#undef UVEC
#undef COLUMNS
#undef DOT_ROWS
#undef DOT_COLUMNS
