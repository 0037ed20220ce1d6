// Products of float32 on AMX tiles, which multiply bfloat16: each factor is cut into up to three bfloat16 parts (24 bits), and the
// products of parts that matter are summed in float32. Blocks whose factors bfloat16 tiles do not take are left to tl_gemm.c.
#define _GNU_SOURCE
#include "tl_runtime.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define UNIT 32         // rows or columns that are packed together: two tiles
#define STEP 32         // of k: what one tile holds
#define SLICE 512       // of k at most: what is multiplied before the next slice is packed
#define OWN 8           // units of a thread's operand that are packed at a time: a slice of them stays in the second-level cache,
#define MET 16          // while so many units of the other operand pass,
#define NEAR 4          // a few at a time
#define PANEL 4         // slices of the other operand that are packed at a time, where all do not fit into the shared memory
#define TILE 512        // bfloat16 values in a tile
#define HEADER 32       // values before a packed unit: the first is 1 where its numbers are not for tiles
#define SHARED_BYTES (32 << 20)
#define SMALLEST 0x27800000u  // 2^-48 and 2^60 as integers: between them no product of parts is subnormal or infinite
#define LARGEST 0x5d800000u
#define REQUEST 0x1023  // arch_prctl: ask for the use of a state component
#define TILE_DATA 18

typedef uint16_t half;
typedef uint32_t word;
typedef float vec __attribute__((vector_size(64), may_alias));
typedef float uvec __attribute__((vector_size(64), aligned(4), may_alias));
typedef word bits __attribute__((vector_size(64), may_alias));

extern void *tl_scratch(int slot, int64_t bytes);
extern void *tl_shared(void);
extern void tl_transpose_f32(const float *src, int64_t lds, float *dst, int64_t ldd);
extern void tl_gemm_block_f32(const tl_gemm_f32 *g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float *to, int64_t ld);
extern int (*tl_gemm_on_tiles)(const tl_gemm_f32 *g, int tid, int nth);

#define LOAD(t, p, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((int64_t)(stride)) : "memory")
#define STORE(t, p, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((int64_t)(stride)) : "memory")
#define CLEAR(t) __asm__ volatile("tilezero %%tmm" #t ::: "memory")
#define MULTIPLY(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

// ---------------------------------------------------------------------------------------------------------------- packing

// the nearest value of 8 bits
TL_INLINE vec rounded(vec x) { return (vec)(((bits)x + 0x8000u) & 0xffff0000u); }

TL_INLINE bits larger(bits x, bits y) {
    const bits over = (bits)(x > y);
    return (x & over) | (y & ~over);
}

// A packed unit: for each step of k, each part, both halves of the unit, one tile. Rows: 16 rows of 32 k.
TL_INLINE void cut_rows(const int parts, const float *src, int64_t stride, int64_t steps, half *restrict dst, bits *restrict most) {
    for (int64_t r = 0; r < UNIT; r++, src += stride) {
        half *to = dst + r / 16 * TILE + r % 16 * STEP;
        bits high = most[r];
        for (int64_t t = 0; t < steps; t++, to += parts * 2 * TILE) {
            vec x = *(const uvec *)(src + t * STEP), y = *(const uvec *)(src + t * STEP + 16);
            high = larger(high, larger((bits)x & 0x7fffffffu, (bits)y & 0x7fffffffu));
#pragma GCC unroll 3
            for (int p = 0; p < parts; p++) {
                const vec u = rounded(x), v = rounded(y);
                bits both;
                __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(u), "v"(v));
                *(bits *)(to + p * 2 * TILE) = both;
                x -= u, y -= v;
            }
        }
        most[r] = high;
    }
}

// Columns: 16 pairs of k, of 16 columns each.
TL_INLINE void cut_columns(const int parts, const float *src, int64_t stride, int64_t steps, half *restrict dst, bits *restrict most) {
    for (int64_t t = 0; t < steps; t++, dst += (parts - 1) * 2 * TILE) {
        for (int64_t q = 0; q < STEP; q += 2, src += 2 * stride, dst += 2 * 16) {
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                vec x = *(const uvec *)(src + 16 * h), y = *(const uvec *)(src + stride + 16 * h);
                most[h] = larger(most[h], larger((bits)x & 0x7fffffffu, (bits)y & 0x7fffffffu));
#pragma GCC unroll 3
                for (int p = 0; p < parts; p++) {
                    const vec u = rounded(x), v = rounded(y);
                    *(bits *)(dst + p * 2 * TILE + h * TILE) = ((bits)u >> 16) | (bits)v;
                    x -= u, y -= v;
                }
            }
        }
        dst += TILE;
    }
}

// dst[r * rs + q * ks] = element (r0 + r, k0 + q) of the operand; 0 for rows from n on, up to UNIT, and for q from k on, up to `room`
static void gather(const tl_gemm_f32 *g, const tl_operand_f32 *o, int64_t r0, int64_t n, int64_t k0, int64_t k, int64_t room,
                   float *restrict dst, int64_t rs, int64_t ks) {
    for (int64_t r = 0; r < UNIT && (n < UNIT || k < room); r++)
        for (int64_t q = r < n ? k : 0; q < room; q++) dst[r * rs + q * ks] = 0;
    const int turn = (o->col == 1 && rs == 1) || (o->row == 1 && ks == 1);
    const float *p = o->p + r0 * o->row + k0 * o->col;
    int64_t row = o->row, col = o->col;
    if (o->eval && turn) {  // it is written as it is computed, and transposed from there
        float *copy = tl_scratch(4, (int64_t)sizeof(float) * UNIT * (SLICE + 16));
        p = copy;
        if (col == 1) row = SLICE + 16;
        else col = UNIT;
        o->eval(g->env, r0, r0 + n, k0, k0 + k, copy, row, col);
    } else if (o->eval) {
        o->eval(g->env, r0, r0 + n, k0, k0 + k, dst, rs, ks);
        return;
    }
    const int64_t squares = turn && n == UNIT ? k / 16 * 16 : 0;
    for (int64_t q = 0; q < squares; q += 16)
        for (int64_t r = 0; r < UNIT; r += 16)
            tl_transpose_f32(p + r * row + q * col, col == 1 ? row : col, dst + r * rs + q * ks, rs == 1 ? ks : rs);
    for (int64_t r = 0; r < n; r++)
        for (int64_t q = squares; q < k; q++) dst[r * rs + q * ks] = p[r * row + q * col];
}

// [k0, k1) of rows (or columns) r0.. of an operand of `size` of them, as a unit; 1 where the numbers are not for tiles
TL_INLINE int pack_unit(const tl_gemm_f32 *g, const tl_operand_f32 *o, int columns, int64_t size, int64_t r0, int64_t k0, int64_t k1,
                        int parts, half *dst) {
    const int64_t n = TL_MIN(UNIT, size - r0);
    bits most[UNIT] = {0};
    while (k0 < k1) {
        const float *src;
        int64_t stride, k = k1 - k0, room = (k + STEP - 1) / STEP * STEP;
        if (!o->eval && n == UNIT && k >= STEP && (columns ? o->row : o->col) == 1) {
            k = room = k / STEP * STEP;  // the rest is copied
            src = o->p + r0 * o->row + k0 * o->col;
            stride = columns ? o->col : o->row;
        } else {
            float *copy = tl_scratch(2, (int64_t)sizeof(float) * UNIT * (SLICE + 16));
            stride = columns ? UNIT : SLICE + 16;
            gather(g, o, r0, n, k0, k, room, copy, columns ? 1 : stride, columns ? stride : 1);
            src = copy;
        }
#define CUT(parts) \
    case parts: \
        if (columns) cut_columns(parts, src, stride, room / STEP, dst, most); \
        else cut_rows(parts, src, stride, room / STEP, dst, most); \
        break;
        switch (parts) { CUT(1) CUT(2) CUT(3) }
#undef CUT
        dst += room / STEP * parts * 2 * TILE;
        k0 += k;
    }
    int unfit = 0;
    for (int r = 0; r < UNIT; r++) {
        word high = 0;
        if (columns) high = most[r / 16][r % 16];
        else
            for (int l = 0; l < 16; l++) high = TL_MAX(high, most[r][l]);
        unfit |= high && (high < SMALLEST || high > LARGEST);
    }
    return unfit;
}

static __attribute__((noinline)) int pack_rows(const tl_gemm_f32 *g, int64_t unit, int64_t k0, int64_t k1, half *dst) {
    return pack_unit(g, &g->a, 0, g->m, unit * UNIT, k0, k1, (int)g->parts, dst);
}

static __attribute__((noinline)) int pack_columns(const tl_gemm_f32 *g, int64_t unit, int64_t k0, int64_t k1, half *dst) {
    return pack_unit(g, &g->b, 1, g->n, unit * UNIT, k0, k1, (int)g->parts, dst);
}

// ---------------------------------------------------------------------------------------------------------------- multiplying

// memory that the tile function will want: of each stream the rows of a block, the lines of their first and last bytes
typedef struct {
    int64_t streams, rows;
    const char *at[TL_STREAMS];
    int64_t row[TL_STREAMS], last[TL_STREAMS];
} fetch;

#define ROWS(part) \
    LOAD(4, a + (part) * 2 * TILE, 64); \
    LOAD(5, a + (part) * 2 * TILE + TILE, 64);
#define COLUMNS(part) \
    LOAD(6, b + (part) * 2 * TILE, 64); \
    LOAD(7, b + (part) * 2 * TILE + TILE, 64);
#define PRODUCTS \
    MULTIPLY(0, 4, 6); \
    MULTIPLY(1, 4, 7); \
    MULTIPLY(2, 5, 6); \
    MULTIPLY(3, 5, 7);

// c[UNIT][UNIT] (+)= a b; the small products come first
TL_INLINE void block(const int parts, int64_t steps, const half *a, const half *b, float *c, int64_t ld, int add, const fetch *f) {
    CLEAR(0);
    CLEAR(1);
    CLEAR(2);
    CLEAR(3);
    for (int64_t t = 0; t < steps; t++, a += parts * 2 * TILE, b += parts * 2 * TILE) {
        if (f)
            for (int64_t l = 0; l < f->streams; l++)
                for (int64_t r = f->rows * t / steps; r < f->rows * (t + 1) / steps; r++) {
                    __builtin_prefetch(f->at[l] + r * f->row[l], 1);
                    __builtin_prefetch(f->at[l] + r * f->row[l] + f->last[l], 1);
                }
        if (parts == 3) {
            ROWS(0) COLUMNS(2) PRODUCTS
            COLUMNS(1) PRODUCTS
            ROWS(1) PRODUCTS
            COLUMNS(0) PRODUCTS
            ROWS(2) PRODUCTS
            ROWS(0) PRODUCTS
        } else if (parts == 2) {
            ROWS(0) COLUMNS(1) PRODUCTS
            COLUMNS(0) PRODUCTS
            ROWS(1) PRODUCTS  // the large ones are not last: the tiles of part 0 are loaded once
        } else {
            ROWS(0) COLUMNS(0) PRODUCTS
        }
    }
    _Alignas(64) float sums[UNIT * UNIT];  // of this slice: sums that start at zero are rounded less
    float *to = add ? sums : c;
    const int64_t stride = add ? UNIT : ld;
    STORE(0, to, stride * 4);
    STORE(1, to + 16, stride * 4);
    STORE(2, to + 16 * stride, stride * 4);
    STORE(3, to + 16 * stride + 16, stride * 4);
    for (int64_t i = 0; add && i < UNIT; i++) {
        *(uvec *)(c + i * ld) += *(vec *)(sums + i * UNIT);
        *(uvec *)(c + i * ld + 16) += *(vec *)(sums + i * UNIT + 16);
    }
}

// one operand's packed units, the first of which is `first`, `size` values each; the current slice is at `skip`
typedef struct { half *at; int64_t first, size, skip; } units;
#define UNIT_OF(u, x) ((u)->at + ((x) - (u)->first) * (u)->size)

// row units [r0, r1) times column units [c0, c1) of one slice, added to `sums`, whose first row and column are those of unit s0 and t0;
// after the last slice, what becomes of the results
static void multiply(const tl_gemm_f32 *g, const units *rows, int64_t r0, int64_t r1, const units *columns, int64_t c0, int64_t c1,
                     int64_t steps, int first, int last, float *sums, int64_t s0, int64_t t0, int64_t ld) {
    fetch ahead = {g->n_streams};
    for (int64_t l = 0; l < g->n_streams; l++) {
        ahead.row[l] = g->streams[l].row;
        ahead.last[l] = g->streams[l].column * (UNIT - 1);
    }
    for (int64_t r = r0; r < r1; r++) {
        const int64_t i = r * UNIT, end = TL_MIN(i + UNIT, g->m);
        const half *a = UNIT_OF(rows, r);
        float *strip = sums + (r - s0) * UNIT * ld + (c0 - t0) * UNIT;
        for (int64_t c = c0; c < c1; c++) {
            const half *b = UNIT_OF(columns, c);
            float *to = strip + (c - c0) * UNIT;
            ahead.rows = end - i;
            for (int64_t l = 0; l < ahead.streams; l++)
                ahead.at[l] = g->streams[l].at + i * g->streams[l].row + c * UNIT * g->streams[l].column;
            const fetch *f = last && ahead.streams ? &ahead : 0;
            const half *x = a + rows->skip, *y = b + columns->skip;
            if (a[0] | b[0]) {
                if (last) tl_gemm_block_f32(g, i, end, c * UNIT, TL_MIN(c * UNIT + UNIT, g->n), to, ld);
            } else if (g->parts == 3) block(3, steps, x, y, to, ld, !first, f);
            else if (g->parts == 2) block(2, steps, x, y, to, ld, !first, f);
            else block(1, steps, x, y, to, ld, !first, f);
        }
        if (last) g->tile(g->env, strip, ld, i, end, c0 * UNIT, TL_MIN(c1 * UNIT, g->n));
    }
}

// Cycles of the product on tiles and without. A multiply-add of tiles takes 16, or 32 where another thread shares the core; packing an
// element one or two. Without, there are two vectors of multiply-adds a cycle, and columns to be packed.
static int pays(const tl_gemm_f32 *g) {
    const double m = (double)((g->m + UNIT - 1) / UNIT * UNIT), n = (double)((g->n + UNIT - 1) / UNIT * UNIT);
    const double k = (double)((g->k + STEP - 1) / STEP * STEP), products = (double)(g->parts * (g->parts + 1) / 2);
    const double on_tiles = k * (m * n * products * 4 * 25 / (UNIT * UNIT * STEP) + 1.5 * (m + n)) + 0.5 * m * n;
    const double without = (double)g->k * ((double)g->m * g->n / 32 + 0.3 * g->n);
    return on_tiles < without;
}

typedef int (*packer)(const tl_gemm_f32 *g, int64_t unit, int64_t k0, int64_t k1, half *dst);

static int run(const tl_gemm_f32 *g, int tid, int nth) {
    const int64_t k = g->k, steps = (k + STEP - 1) / STEP, slices = (k + SLICE - 1) / SLICE, slice = (steps + slices - 1) / slices;
    const int64_t one = (int64_t)g->parts * 2 * TILE;  // values of a unit in a step
    if (!pays(g)) return 0;
    const int64_t r_units = (g->m + UNIT - 1) / UNIT, c_units = (g->n + UNIT - 1) / UNIT;
    // Each thread has a part of the rows or of the columns. Cycles of the slowest thread, and of packing: its own operand a slice at a
    // time, which stays in its cache, the other one together and whole.
    const double by_rows = 12.0 * k * ((r_units + nth - 1) / nth * c_units) + (1.0 * k * g->m + 3.0 * k * g->n) / nth;
    const double by_columns = 12.0 * k * (r_units * ((c_units + nth - 1) / nth)) + (1.0 * k * g->n + 3.0 * k * g->m + 1.0 * g->m * g->n) / nth;
    const int columns = by_columns < by_rows;
    const packer pack_mine = columns ? pack_columns : pack_rows, pack_met = columns ? pack_rows : pack_columns;
    const int64_t own = columns ? c_units : r_units, others = columns ? r_units : c_units;
    const int64_t o0 = own * tid / nth, o1 = own * (tid + 1) / nth, chunks = ((own + nth - 1) / nth + OWN - 1) / OWN;
    const int64_t fit = SHARED_BYTES / ((HEADER + steps * one) * (int64_t)sizeof(half));
    const int whole = fit >= TL_MIN(others, MET);
    const int64_t group = TL_MIN(others, whole ? fit : MET), panel = whole ? steps : PANEL * slice;
    units mine = {0, 0, HEADER + slice * one, HEADER}, met = {0, 0, HEADER + panel * one, HEADER};
    mine.at = tl_scratch(0, mine.size * OWN * (int64_t)sizeof(half));
    met.at = nth > 1 ? tl_shared() : tl_scratch(3, met.size * group * (int64_t)sizeof(half));
    const int64_t ld = (columns ? OWN : MET) * UNIT + 16;
    float *sums = tl_scratch(1, (int64_t)sizeof(float) * (columns ? MET : OWN) * UNIT * ld);
    struct { unsigned char palette, start, reserved[14]; half bytes[16]; unsigned char rows[16]; } tiles = {1};
    for (int t = 0; t < 8; t++) tiles.bytes[t] = 64, tiles.rows[t] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
    for (int64_t g0 = 0; g0 < others; g0 += group)
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (int64_t s0 = 0; s0 < steps; s0 += panel) {
                const int64_t g1 = TL_MIN(g0 + group, others), s1 = TL_MIN(s0 + panel, steps);
                const int64_t x0 = TL_MIN(o0 + chunk * OWN, o1), x1 = TL_MIN(x0 + OWN, o1);
                mine.first = x0, met.first = g0;
                if (!whole || !chunk) {
                    if (g0 || chunk || s0) tl_barrier(nth);
                    for (int64_t u = g0 + (g1 - g0) * tid / nth; u < g0 + (g1 - g0) * (tid + 1) / nth; u++) {
                        half *to = UNIT_OF(&met, u);
                        if (!s0) to[0] = 0;
                        for (int64_t t = s0; t < s1; t += slice)
                            to[0] |= pack_met(g, u, t * STEP, TL_MIN(TL_MIN(t + slice, s1) * STEP, k), to + HEADER + (t - s0) * one);
                    }
                    tl_barrier(nth);
                }
                for (int64_t p0 = g0; p0 < g1; p0 += MET)
                    for (int64_t t = s0; t < s1; t += slice) {
                        const int64_t p1 = TL_MIN(p0 + MET, g1), t1 = TL_MIN(t + slice, s1);
                        met.skip = HEADER + (t - s0) * one;
                        for (int64_t u = x0; u < x1 && (p0 == g0 || slices > 1); u++) {
                            half *to = UNIT_OF(&mine, u);
                            to[0] = pack_mine(g, u, t * STEP, TL_MIN(t1 * STEP, k), to + HEADER) | (t ? to[0] : 0);
                        }
                        for (int64_t q0 = p0; q0 < p1; q0 += NEAR) {
                            const int64_t q1 = TL_MIN(q0 + NEAR, p1);
                            if (columns) multiply(g, &met, q0, q1, &mine, x0, x1, t1 - t, !t, t1 == steps, sums, p0, x0, ld);
                            else multiply(g, &mine, x0, x1, &met, q0, q1, t1 - t, !t, t1 == steps, sums, x0, p0, ld);
                        }
                    }
            }
    tl_barrier(nth);
    __asm__ volatile("tilerelease");
    return 1;
}

// a process has to ask once; threads that were there before and children of fork have the permission, too
static __attribute__((constructor)) void start(void) {
    if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0) tl_gemm_on_tiles = run;
}

#endif
