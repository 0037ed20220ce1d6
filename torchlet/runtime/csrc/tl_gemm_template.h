// The matrix product of one element type: T, its suffix S, LANES of a vector and SLICE come from tl_gemm.c.
#define N_(name) JOIN(name, S)
#define NR (2 * LANES)
#define ROW_STRIDE (SLICE + 16)
#define AHEAD 16  // steps of k from which columns of b are fetched where panels come from the second-level cache
#define COLUMN_STRIDE 16  // of a row block packed with k outermost; MR <= 16

typedef T N_(vec) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef T N_(uvec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
#define VEC N_(vec)
#define UVEC N_(uvec)
#define OPERAND JOIN(tl_operand, S)
#define GEMM JOIN(tl_gemm, S)

// the kernels of every height, by columns and by rows of a
#define ARGUMENTS \
    int64_t lda, int64_t k, const T *restrict a, const T *restrict b, int64_t ldb, T *restrict c, int64_t ldc, int add, \
    const fetch *restrict f
typedef void (*N_(kernel))(ARGUMENTS);
#ifdef TL_KERNELS_ONLY  // they are compiled once, with tl_gemm.c
extern const N_(kernel) N_(tl_kernels)[2][MR + 1];
#else
// A multiply-add that reads its broadcast factor from memory is one operation of the processor's front end, not two. There are two loads
// a cycle and four operations, fewer when another thread shares the core: so most rows do it, not all.
#ifdef __AVX512F__
#define FMA_MEMORY(sum, factor, b) __asm__(FMA_INSTRUCTION : "+v"(sum) : "m"(factor), "v"(b))
#define FOLDED(i) ((i) % 3 != 2)
#else
#define FMA_MEMORY(sum, factor, b) sum += (factor) * (b)
#define FOLDED(i) 0
#endif

// c[mr][NR] (+)= a[mr][k] * b[k][NR]. `by_rows`: row i of a starts at a + i * lda, k contiguous; else column p starts at a + p * lda, rows
// contiguous. Meanwhile `lines` of memory are fetched that will be read and written when the product is there.
#define ELEMENT(i) *(by_rows ? &start[(i) / 3][(i) % 3 * lda] : &a[i])  // few starts and small multiples of lda: they fit in registers
#define STEP(far) \
    { \
        VEC b0 = *(const UVEC *)b, b1 = *(const UVEC *)(b + LANES); \
        if (far) __builtin_prefetch(b + AHEAD * ldb), __builtin_prefetch(b + AHEAD * ldb + LANES); \
        _Pragma("GCC unroll 16") for (int i = 0; i < mr; i++) { \
            if (FOLDED(i)) { \
                FMA_MEMORY(x[i][0], ELEMENT(i), b0); \
                FMA_MEMORY(x[i][1], ELEMENT(i), b1); \
            } else { \
                T s = ELEMENT(i); \
                x[i][0] += s * b0; \
                x[i][1] += s * b1; \
            } \
        } \
        a += lda; \
        _Pragma("GCC unroll 8") for (int i = 0; i < (MR + 2) / 3; i++) start[i]++; \
        b += ldb; \
    }
TL_INLINE void N_(micro)(const int mr, const int by_rows, int64_t lda, int64_t k, const T *restrict a, const T *restrict b, int64_t ldb,
                         T *restrict c, int64_t ldc, int add, const fetch *restrict f) {
    VEC x[MR][2];
    const T *start[(MR + 2) / 3];
    int64_t p = 0;
#pragma GCC unroll 8
    for (int i = 0; i < (MR + 2) / 3; i++) start[i] = a + 3 * i * lda;
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) x[i][0] = x[i][1] = (VEC){0};
    for (int64_t l = 0; l < f->streams; l++) {
        const char *line = f->at[l];
        for (int64_t r = 0; r < f->rows[l]; r++) {
            __builtin_prefetch(line, 1);
            __builtin_prefetch(line + f->last[l], 1);
            line += f->row[l];
            if (p++ < k) STEP(0)
        }
    }
    if (f->near)
        for (; p < k; p++) STEP(0)
    else
        for (; p < k; p++) STEP(1)
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
        UVEC *to = (UVEC *)(c + i * ldc), *next = (UVEC *)(c + i * ldc + LANES);
        if (add) x[i][0] += *to, x[i][1] += *next;
        *to = x[i][0];
        *next = x[i][1];
    }
}
#undef ELEMENT
#undef FMA_MEMORY
#undef FOLDED
#undef STEP

#define HEIGHT(mr) \
    static void N_(columns_##mr)(ARGUMENTS) { N_(micro)(mr, 0, lda, k, a, b, ldb, c, ldc, add, f); } \
    static void N_(rows_##mr)(ARGUMENTS) { N_(micro)(mr, 1, lda, k, a, b, ldb, c, ldc, add, f); }
HEIGHT(1) HEIGHT(2) HEIGHT(3) HEIGHT(4) HEIGHT(5) HEIGHT(6)
#if MR > 6
HEIGHT(7) HEIGHT(8) HEIGHT(9) HEIGHT(10) HEIGHT(11) HEIGHT(12)
#endif
#if MR > 12
HEIGHT(13) HEIGHT(14)
#endif
#undef HEIGHT
const N_(kernel) N_(tl_kernels)[2][MR + 1] = {
#define ROW(f) 0, N_(f##_1), N_(f##_2), N_(f##_3), N_(f##_4), N_(f##_5), N_(f##_6)
#define MORE(f) , N_(f##_7), N_(f##_8), N_(f##_9), N_(f##_10), N_(f##_11), N_(f##_12)
#if MR > 12
    {ROW(columns) MORE(columns), N_(columns_13), N_(columns_14)}, {ROW(rows) MORE(rows), N_(rows_13), N_(rows_14)}
#elif MR > 6
    {ROW(columns) MORE(columns)}, {ROW(rows) MORE(rows)}
#else
    {ROW(columns)}, {ROW(rows)}
#endif
#undef ROW
#undef MORE
};
#endif
#undef ARGUMENTS

// dst[c][r] = src[r][c] for a square of LANES: interleaving the two halves of the rows log2(LANES) times transposes
TL_INLINE void N_(transpose)(const T *restrict src, int64_t lds, T *restrict dst, int64_t ldd) {
#ifdef HAVE_SHUFFLE
    VEC r[LANES], t[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) r[i] = *(const UVEC *)(src + i * lds);
#pragma GCC unroll 4
    for (int step = 1; step < LANES; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            t[2 * i] = __builtin_shufflevector(r[i], r[i + LANES / 2], JOIN(LOW, LANES));
            t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + LANES / 2], JOIN(HIGH, LANES));
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) r[i] = t[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) *(UVEC *)(dst + i * ldd) = r[i];
#else
    for (int64_t i = 0; i < LANES; i++)
        for (int64_t j = 0; j < LANES; j++) dst[j * ldd + i] = src[i * lds + j];
#endif
}

// dst[j][i] = src[i][j] for m rows of n; both have room for whole squares
static void N_(transpose_block)(const T *restrict src, int64_t lds, int64_t m, int64_t n, T *restrict dst, int64_t ldd) {
    for (int64_t i = 0; i < m; i += LANES)
        for (int64_t j = 0; j < n; j += LANES) N_(transpose)(src + i * lds + j, lds, dst + j * ldd + i, ldd);
}

// a column panel: dst[k][NR] = rows j0.. of operand b, zero past `n` of them
static void N_(pack_columns)(const GEMM *g, const OPERAND *b, int64_t j0, int64_t n, int64_t k0, int64_t k1, T *restrict dst) {
    int64_t k = k1 - k0, row = b->row, col = b->col;
    if (n < NR && (b->eval || row == 1 || col != 1)) memset(dst, 0, sizeof(T) * (size_t)(k * NR));
    if (b->eval) {
        b->eval(g->env, j0, j0 + n, k0, k1, dst, 1, NR);
        return;
    }
    const T *p = b->p + j0 * row + k0 * col;
    if (row == 1 && n == NR) {
        for (int64_t q = 0; q < k; q++) {
            *(UVEC *)(dst + q * NR) = *(const UVEC *)(p + q * col);
            *(UVEC *)(dst + q * NR + LANES) = *(const UVEC *)(p + q * col + LANES);
        }
    } else if (col == 1) {
        for (int64_t half = 0; half < NR; half += LANES) {
            const T *from = p + half * row;
            int64_t rows = n - half, q = 0;
            if (rows >= LANES)
                for (; q + LANES <= k; q += LANES) N_(transpose)(from + q, row, dst + q * NR + half, NR);
            for (; q < k; q++)
                for (int64_t j = 0; j < LANES; j++) dst[q * NR + half + j] = j < rows ? from[j * row + q] : 0;
        }
    } else {
        for (int64_t q = 0; q < k; q++)
            for (int64_t j = 0; j < n; j++) dst[q * NR + j] = p[j * row + q * col];
    }
}

// where a row block is: rows i0.. of operand a, which lie there by rows (k contiguous) or are packed, and the distance of rows or columns
typedef struct {
    const T *at;
    int64_t stride;
    int by_rows;  // an index of `tl_kernels`
} N_(block);

static N_(block) N_(row_block)(const GEMM *g, const OPERAND *a, int64_t rows, int64_t i0, int64_t n, int64_t k0, int64_t k1, T *restrict dst) {
    int64_t k = k1 - k0;
    if (a->eval) {
        a->eval(g->env, i0, i0 + n, k0, k1, dst, ROW_STRIDE, 1);
        return (N_(block)){dst, ROW_STRIDE, 1};
    }
    const T *restrict p = a->p + i0 * a->row + k0 * a->col;
    if (a->col == 1) {
        // rows are read where they lie, unless all of them fall into one cache set, or are so short that a copy's misses overlap better
        if (k >= LONG_ROW && a->row * (int64_t)sizeof(T) % 4096) return (N_(block)){p, a->row, 1};
        for (int64_t i = 0; i < n; i++) memcpy(dst + i * ROW_STRIDE, p + i * a->row, sizeof(T) * (size_t)k);
        return (N_(block)){dst, ROW_STRIDE, 1};
    }
    if (a->row == 1 && i0 + MR <= rows) {  // a constant length copies in registers; what it takes too much is not used
        for (int64_t q = 0; q < k; q++) memcpy(dst + q * COLUMN_STRIDE, p + q * a->col, sizeof(T) * MR);
        return (N_(block)){dst, COLUMN_STRIDE, 0};
    }
    for (int64_t q = 0; q < k; q++)
        for (int64_t i = 0; i < n; i++) dst[q * COLUMN_STRIDE + i] = p[i * a->row + q * a->col];
    return (N_(block)){dst, COLUMN_STRIDE, 0};
}

// row blocks start[0], start[1]..., whose rows are contiguous: what lies side by side in one column is read at once
static void N_(column_blocks)(const OPERAND *a, int64_t rows, const int64_t *start, int64_t blocks, int64_t k0, int64_t k1, T *restrict dst,
                              int64_t room) {
    int64_t whole = blocks;  // so many can be copied with what follows their rows, which is not used
    while (whole > 0 && start[whole - 1] + COLUMN_STRIDE > rows) whole--;
    const T *restrict from = a->p + k0 * a->col;
    for (int64_t q = 0; q < k1 - k0; q++, from += a->col) {
        for (int64_t i = start[0]; i < start[blocks]; i += LINE / (int64_t)sizeof(T)) __builtin_prefetch(from + COLUMNS_AHEAD * a->col + i);
        T *restrict to = dst + q * COLUMN_STRIDE;
        for (int64_t x = 0; x < whole; x++)
            for (int64_t i = 0; i < COLUMN_STRIDE; i += LANES) *(UVEC *)(to + x * room + i) = *(const UVEC *)(from + start[x] + i);
        for (int64_t x = whole; x < blocks; x++)
            for (int64_t i = start[x]; i < start[x + 1]; i++) to[x * room + i - start[x]] = from[i];
    }
}

TL_INLINE void N_(finish)(const GEMM *g, int swapped, const T *t, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    if (i1 <= i0 || j1 <= j0) return;
    if (!swapped) {
        g->tile(g->env, t, ld, i0, i1, j0, j1);
        return;
    }
    int64_t room = (i1 - i0 + LANES - 1) / LANES * LANES;
    T *turned = tl_scratch(2, (int64_t)sizeof(T) * room * ((j1 - j0 + LANES - 1) / LANES * LANES));
    N_(transpose_block)(t, ld, i1 - i0, j1 - j0, turned, room);
    g->tile(g->env, turned, room, j0, j1, i0, i1);
}

// a few rows: columns [j0, j1) without packing; a has contiguous k, b contiguous columns or contiguous k
static void N_(skinny)(const GEMM *g, const T *a, int64_t lda, int64_t m, int64_t k, const OPERAND *b, int swapped, int64_t j0, int64_t j1) {
    enum { WIDTH = 1024 };
    T *sums = tl_scratch(1, (int64_t)sizeof(T) * WIDTH * 16);
    for (int64_t j = j0; j < j1; j += WIDTH) {
        int64_t n = TL_MIN(WIDTH, j1 - j);
        if (b->row == 1) {
            memset(sums, 0, sizeof(T) * (size_t)(WIDTH * m));
            for (int64_t q = 0; q < k; q += 4) {
                const T *restrict p = b->p + j + q * b->col;
                for (int64_t i = 0; i < m; i++) {
                    T *restrict c = sums + i * WIDTH;
                    const T *x = a + i * lda + q;
                    if (q + 4 <= k) {
                        const T x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
                        const T *restrict p1 = p + b->col, *restrict p2 = p1 + b->col, *restrict p3 = p2 + b->col;
#pragma omp simd
                        for (int64_t l = 0; l < n; l++) c[l] += (x0 * p[l] + x1 * p1[l]) + (x2 * p2[l] + x3 * p3[l]);
                    } else {
                        for (int64_t r = 0; r < k - q; r++) {
                            const T x0 = x[r];
#pragma omp simd
                            for (int64_t l = 0; l < n; l++) c[l] += x0 * p[r * b->col + l];
                        }
                    }
                }
            }
        } else {
            for (int64_t l = 0; l < n; l += 4) {  // four rows of b at a time hide the latency of the sums
                const T *restrict p0 = b->p + (j + l) * b->row, *restrict p1 = b->p + (j + TL_MIN(l + 1, n - 1)) * b->row;
                const T *restrict p2 = b->p + (j + TL_MIN(l + 2, n - 1)) * b->row, *restrict p3 = b->p + (j + TL_MIN(l + 3, n - 1)) * b->row;
                for (int64_t i = 0; i < m; i++) {
                    const T *restrict x = a + i * lda;
                    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
                    for (int64_t q = 0; q < k; q++) {
                        s0 += x[q] * p0[q];
                        s1 += x[q] * p1[q];
                        s2 += x[q] * p2[q];
                        s3 += x[q] * p3[q];
                    }
                    T *c = sums + i * WIDTH + l;
                    c[0] = s0, c[1] = s1, c[2] = s2, c[3] = s3;  // past n there is room
                }
            }
        }
        N_(finish)(g, swapped, sums, WIDTH, 0, m, j, j + n);
    }
}

// so few rows that reading b once, where it lies, is the whole cost
TL_INLINE int N_(is_skinny)(int64_t m, const OPERAND *b) {
    return !b->eval && ((b->row == 1 && m <= AXPY_ROWS) || (b->col == 1 && m <= DOT_ROWS));
}

#ifndef TL_KERNELS_ONLY  // a file that uses the kernels leaves the whole product to tl_gemm.c
void N_(tl_gemm_run)(const GEMM *g, int tid, int nth) {
#ifdef ON_TILES
    if (g->parts && ON_TILES && ON_TILES(g, tid, nth)) return;
#endif
    int64_t m = g->m, n = g->n, k = g->k;
    OPERAND a = g->a, b = g->b;
    // Either operand can be the broadcast one. Cycles for one step of k: multiply-adds of whole panels, then packing (a transposing
    // copy costs about a quarter cycle an element) and, swapped, turning the result.
    double straight = (double)m * ((n + NR - 1) / NR) + 0.01 * NR * n * (b.col == 1 ? 3 : 1);
    double turned = (double)n * ((m + NR - 1) / NR) + 0.01 * NR * m * (a.col == 1 ? 3 : 1) + 0.5 * m * n / (double)TL_MAX(k, 1);
    const int few_rows = N_(is_skinny)(m, &b), few_columns = N_(is_skinny)(n, &a);
    const int swapped = few_rows || few_columns ? few_columns && (!few_rows || n < m) : turned < straight;
    if (swapped) {
        int64_t size = m;
        m = n, n = size;
        OPERAND other = a;
        a = b, b = other;
    }
    if (few_rows || few_columns) {
        int64_t lda = a.row;
        if (a.eval || a.col != 1) {
            T *copy = tl_scratch(0, (int64_t)sizeof(T) * m * (k + 1));
            lda = k;
            if (a.eval) a.eval(g->env, 0, m, 0, k, copy, k, 1);
            else
                for (int64_t i = 0; i < m; i++)
                    for (int64_t q = 0; q < k; q++) copy[i * k + q] = a.p[i * a.row + q * a.col];
            a.p = copy;
        }
        TL_SHARE(j0, j1, n, 16);
        N_(skinny)(g, a.p, lda, m, k, &b, swapped, j0, j1);
        return;
    }
    const int64_t slices = TL_MAX(1, (k + SLICE - 1) / SLICE), slice = (k + slices - 1) / slices;
    const int64_t panels = (n + NR - 1) / NR, panel_size = TL_MAX(1, k) * NR;
    const int direct = !b.eval && b.row == 1 && m <= 2 * MR && nth >= 1;  // too few rows to pay for packing
    // Rows or columns over the threads, whichever leaves the slowest thread less. Cycles of multiply-adds, and what elements cost that
    // come from another core: by columns every thread reads all of a, by rows all of b, packed by all of them. Other kernels split a
    // tensor by its outer dimension, so a result split the other way moves between cores once more.
    const double moved = 0.8 * (nth - 1) / nth, result = moved * (double)m * n;
    const double by_rows = (double)k * ((m + nth - 1) / nth * panels) + moved * (double)n * k + (swapped ? result : 0) + BARRIER_CYCLES;
    const double by_columns = (double)k * (m * ((panels + nth - 1) / nth)) + moved * (double)m * k + (swapped ? 0 : result);
    const int columns = nth == 1 || direct || by_columns <= by_rows || panel_size * (int64_t)sizeof(T) > SHARED_BYTES;
    // a small b is packed by every thread for itself: what another core has packed comes slowly
    const int together = !columns && panels * panel_size * (int64_t)sizeof(T) > PRIVATE_BYTES;
    const int64_t first = columns ? panels * tid / nth : 0, last = columns ? panels * (tid + 1) / nth : panels;
    const int64_t r0 = columns ? 0 : m * tid / nth, r1 = columns ? m : m * (tid + 1) / nth;
    const int64_t blocks = (r1 - r0 + MR - 1) / MR;  // of rows, of about one height each
    // where rows are few beside k, their sums take less cache than the column panels: all meet one slice before the next is packed
    const int sliced = !together && !direct && slices > 1 && blocks <= ROW_BLOCKS && 4 * (r1 - r0) <= k;
    const int64_t most = sliced ? ROW_BLOCKS : STRIP, chunks = (blocks + most - 1) / most;
    const int64_t group = together ? TL_MIN(panels, SHARED_BYTES / (panel_size * (int64_t)sizeof(T))) : TL_MAX(1, last - first);
    // A few column panels at a time meet all the rows. Where k is short, the panels stay in the first-level cache meanwhile, and the
    // rows are packed once; else a block of rows stays there.
    const int64_t fit = NEAR_BYTES / (panel_size * (int64_t)sizeof(T));
    const int keep = slices == 1 && fit > 0 && blocks <= KEPT;
    const int64_t near = keep ? TL_MIN(PANELS, fit) : PANELS, wide = near * NR;
    const int64_t block_room = TL_MAX(MR * ROW_STRIDE, SLICE * COLUMN_STRIDE);
    const int strips = !keep && !a.eval && a.row == 1 && a.col != 1;
    const int64_t panel_room = sliced ? slice * NR : panel_size;
    T *rows = tl_scratch(0, (int64_t)sizeof(T) * block_room * (keep ? TL_MAX(blocks, 1) : strips ? STRIP : 1));
    T *sums = tl_scratch(1, (int64_t)sizeof(T) * TL_MAX((most * MR + LANES) * wide, 1024 * 16));
    T *packed = together ? tl_shared() : tl_scratch(3, (int64_t)sizeof(T) * panel_room * near);
    N_(block) kept[KEPT];
    for (int64_t x = 0; keep && x < blocks; x++) {
        const int64_t i = r0 + (r1 - r0) * x / blocks, height = r0 + (r1 - r0) * (x + 1) / blocks - i;
        kept[x] = N_(row_block)(g, &a, m, i, height, 0, k, rows + x * block_room);
    }
    fetch ahead = {.near = keep};  // first the block of a that is packed next, if its columns are short pieces of memory far apart
    ahead.row[0] = a.col * (int64_t)sizeof(T), ahead.last[0] = (MR - 1) * (int64_t)sizeof(T);
    for (int64_t l = 0; l < g->n_streams; l++) {
        ahead.row[l + 1] = g->streams[l].row;
        ahead.last[l + 1] = g->streams[l].column * ((swapped ? MR : NR) - 1);
    }
    for (int64_t g0 = first; g0 < last; g0 += group) {
        const int64_t g1 = TL_MIN(g0 + group, last);
        if (together) {
            for (int64_t q = g0 + (g1 - g0) * tid / nth; q < g0 + (g1 - g0) * (tid + 1) / nth; q++)
                N_(pack_columns)(g, &b, q * NR, TL_MIN(NR, n - q * NR), 0, k, packed + (q - g0) * panel_size);
            tl_barrier(nth);
        }
        for (int64_t q0 = g0; q0 < g1; q0 += near) {
            const int64_t q1 = TL_MIN(q0 + near, g1), j1 = TL_MIN(q1 * NR, n);
            for (int64_t q = q0; q < q1 && !together && !sliced; q++)
                if (!direct || (q + 1) * NR > n) N_(pack_columns)(g, &b, q * NR, TL_MIN(NR, n - q * NR), 0, k, packed + (q - q0) * panel_size);
            const T *const here = packed + (together ? q0 - g0 : 0) * panel_size;
            for (int64_t y = 0; y < chunks; y++) {
                const int64_t x0 = blocks * y / chunks, x1 = blocks * (y + 1) / chunks;
                const int64_t i0 = r0 + (r1 - r0) * x0 / blocks, i1 = r0 + (r1 - r0) * x1 / blocks;
                for (int64_t c = 0; c < slices; c++) {
                    const int64_t k0 = TL_MIN(c * slice, k), k1 = TL_MIN(k0 + slice, k);
                    for (int64_t q = q0; q < q1 && sliced; q++)
                        N_(pack_columns)(g, &b, q * NR, TL_MIN(NR, n - q * NR), k0, k1, packed + (q - q0) * panel_room);
                    for (int64_t x = x0; x < x1; x++) {
                        const int64_t i = r0 + (r1 - r0) * x / blocks, height = r0 + (r1 - r0) * (x + 1) / blocks - i;
                        const int64_t place = (x - x0) % STRIP;
                        if (strips && place == 0) {
                            int64_t start[STRIP + 1], count = TL_MIN(STRIP, x1 - x);
                            for (int64_t z = 0; z <= count; z++) start[z] = r0 + (r1 - r0) * (x + z) / blocks;
                            N_(column_blocks)(&a, m, start, count, k0, k1, rows, block_room);
                        }
                        T *to = slices > 1 || swapped ? sums + (i - i0) * wide : sums;
                        const N_(block) r = keep     ? kept[x]
                                            : strips ? (N_(block)){rows + place * block_room, COLUMN_STRIDE, 0}
                                                     : N_(row_block)(g, &a, m, i, height, k0, k1, rows);
                        N_(kernel) kernel = N_(tl_kernels)[r.by_rows][height];
                        for (int64_t q = q0; q < q1; q++) {
                            ahead.rows[0] = 0;
                            if (!keep && !strips && !a.eval && !r.by_rows && x + 1 < x1) {
                                const int64_t p0 = k0 + (k1 - k0) * (q - q0) / (q1 - q0), p1 = k0 + (k1 - k0) * (q - q0 + 1) / (q1 - q0);
                                ahead.rows[0] = p1 - p0;
                                ahead.at[0] = (const char *)(a.p + (i + height) * a.row + p0 * a.col);
                            }
                            ahead.streams = 1 + (c == slices - 1 ? g->n_streams : 0);
                            for (int64_t l = 1; l < ahead.streams; l++) {
                                const tl_stream *stream = &g->streams[l - 1];
                                const int64_t row = swapped ? q * NR : i, column = swapped ? i : q * NR;
                                ahead.at[l] = stream->at + row * stream->row + column * stream->column;
                                ahead.rows[l] = swapped ? TL_MIN(NR, n - q * NR) : height;
                            }
                            const int there = direct && (q + 1) * NR <= n;
                            const T *panel = there ? b.p + q * NR + k0 * b.col : here + (q - q0) * panel_room + (sliced ? 0 : k0 * NR);
                            kernel(r.stride, k1 - k0, r.at, panel, there ? b.col : NR, to + (q - q0) * NR, wide, c > 0, &ahead);
                        }
                        if (c == slices - 1 && !swapped) N_(finish)(g, 0, to, wide, i, i + height, q0 * NR, j1);
                    }
                }
                if (swapped) N_(finish)(g, 1, sums, wide, i0, i1, q0 * NR, j1);
            }
        }
        if (together) tl_barrier(nth);
    }
}
#endif
#undef VEC
#undef UVEC
#undef OPERAND
#undef GEMM
#undef N_
#undef NR
#undef ROW_STRIDE
#undef COLUMN_STRIDE
#undef AHEAD
