// What generated kernels and the runtime know of each other.
#pragma once
#include <stdint.h>
#include "tl_math.h"

#define TL_MAX_THREADS 64
#define TL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TL_MAX(a, b) ((a) > (b) ? (a) : (b))
// the share [lo, hi) of thread tid in range(n), in multiples of grain
#define TL_SHARE(lo, hi, n, grain) \
    const int64_t lo = TL_MIN((int64_t)(n), ((n) + (grain) - 1) / (grain) * tid / nth * (grain)); \
    const int64_t hi = TL_MIN((int64_t)(n), ((n) + (grain) - 1) / (grain) * (tid + 1) / nth * (grain))
// the same where the condition holds, else all of range(n)
#define TL_SHARE_IF(condition, lo, hi, n, grain) \
    const int64_t lo = !(condition) ? 0 : TL_MIN((int64_t)(n), ((n) + (grain) - 1) / (grain) * tid / nth * (grain)); \
    const int64_t hi = !(condition) ? (n) : TL_MIN((int64_t)(n), ((n) + (grain) - 1) / (grain) * (tid + 1) / nth * (grain))
// which of `n` axes is split: the outermost of 64 parts or more, which keeps each thread's memory together, else the one with most
TL_INLINE int tl_choose_axis(const int64_t *ways, int n) {
    int best = 0;
    for (int i = 0; i < n; i++) {
        if (ways[i] >= 64) return i;
        if (ways[i] > ways[best]) best = i;
    }
    return best;
}
// `n` in multiples of 16, but not more than `most`
#define TL_WIDTH(n, most) TL_MIN(most, ((n) + 15) / 16 * 16)
// the length of an array of so many elements; a kernel that serves many sizes has `most` for n
#define TL_ROOM(n, most) TL_WIDTH(n, most)

typedef void (*tl_kernel)(char *const *restrict b, const int64_t *restrict s, int tid, int nth);

extern void tl_barrier(int nth);
// records that a data-dependent position was outside its buffer; returns 0, a position that is safe to read
extern int64_t tl_bad_index(int64_t index, int64_t size);
TL_INLINE int64_t tl_check(int64_t index, int64_t size) {
    return TL_UNLIKELY((uint64_t)index >= (uint64_t)size) ? tl_bad_index(index, size) : index;
}

// Matrix products. What a generated packing or tile function needs to know: its kernel's arguments and the batch position.
typedef struct { char *const *b; const int64_t *s; int64_t at[8]; } tl_env;

// One operand: element (r, k) is p[r * row + k * col], or what `eval` writes to dst[(r - r0) * rs + (k - k0) * ks], one step of row or of
// col at a time, whichever is 1.
// One result: `tile` gets the products of rows [i0, i1) and columns [j0, j1) as t[(i - i0) * ld + (j - j0)]. `streams`: memory that it
// reads and writes element by element, which is fetched while the product is computed; element (i, j) lies at + i * row + j * column.
// `parts`: so many bfloat16 numbers may stand for a factor, 3 being as exact as float32 (tl_amx.c); 0: none may.
#define TL_STREAMS 8  // at most
typedef struct { const char *at; int64_t row, column; } tl_stream;  // in bytes
#define TL_GEMM_TYPES(T, S) \
    typedef struct { \
        const T *p; \
        int64_t row, col; \
        void (*eval)(const tl_env *env, int64_t r0, int64_t r1, int64_t k0, int64_t k1, T *restrict dst, int64_t rs, int64_t ks); \
    } tl_operand_##S; \
    typedef struct { \
        int64_t m, n, k; \
        tl_operand_##S a, b; \
        void (*tile)(const tl_env *env, const T *restrict t, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1); \
        const tl_stream *streams; \
        int64_t n_streams; \
        const tl_env *env; \
        int64_t parts; \
    } tl_gemm_##S; \
    extern void tl_gemm_run_##S(const tl_gemm_##S *g, int tid, int nth);
TL_GEMM_TYPES(float, f32)
TL_GEMM_TYPES(double, f64)

// Attention of float32. A stack of matrices: the first one, the strides of the stack's dimensions, of rows, of columns; p is null where
// a result is not wanted.
#define TL_STACK 6
typedef struct { void *p; int64_t stack[TL_STACK], row, column; } tl_matrices;
typedef struct {
    int64_t n_stack, stack[TL_STACK];  // batch dimensions and heads, of which `group` share a key and a value
    int64_t rows, columns, d, dv, group;  // queries, keys, the width of both, the width of values
    int64_t causal, mask_kind;  // a mask: 0 none, 1 true where allowed, 2 added
    float scale;
    tl_matrices q, k, v, mask, out, lse, g, delta, dq, dk, dv_;
} tl_attention;
extern void tl_attention_forward(const tl_attention *a, int tid, int nth);
extern void tl_attention_backward(const tl_attention *a, int tid, int nth);
