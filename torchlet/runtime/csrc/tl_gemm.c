// Matrix products for the pool: packed panels and a register-tiled kernel in vector extensions, direct paths for skinny shapes.
// Each finished tile goes to the caller's function while it is in cache, so the product itself needs no memory.
// TL_F32, TL_F64: the element types that are compiled. TL_KERNELS_ONLY: for a file that uses the kernels of another library.
#include "tl_runtime.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define MR 14  // 14 x 2 accumulators, 2 columns of b, 1 broadcast: 31 of 32 registers
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define MR 6
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define MR 12
#else
#define VECTOR_BYTES 16
#define MR 6
#endif

#define SHARED_BYTES (32 << 20)  // packed columns that all threads read
#define PRIVATE_BYTES (512 << 10)  // packed columns that every thread has for itself
#define PANELS 8                 // column panels that one packed block of rows meets before the next block
#define NEAR_BYTES (16 << 10)    // column panels that stay in the first-level cache while all rows pass
#define KEPT 64                  // row blocks that are packed once for that
#define STRIP 8                  // row blocks of a chunk, whose sums wait in cache between two slices of k; packed together where their
                                 // rows are contiguous, so that whole lines are read,
#define ROW_BLOCKS 64            // or so many, where that is all
#define COLUMNS_AHEAD 8          // columns of those that are fetched meanwhile, which lie where no processor foresees it
#define LINE 64
#define BARRIER_CYCLES 2000      // of two barriers between threads that are awake
#define LONG_ROW 48              // elements
#define AXPY_ROWS 4              // up to so many rows skip packing where the columns of b are contiguous,
#define DOT_ROWS 12              // or where k is

extern void *tl_scratch(int slot, int64_t bytes);
extern void *tl_shared(void);

// memory to be fetched during a product: of each stream so many rows, the lines of their first and last bytes
typedef struct {
    int64_t streams;
    const char *at[TL_STREAMS + 1];
    int64_t rows[TL_STREAMS + 1], row[TL_STREAMS + 1], last[TL_STREAMS + 1];
    int near;  // the columns of b lie in the first-level cache and are not fetched
} fetch;
static const fetch nothing;

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define HAVE_SHUFFLE
#endif
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
// masks that interleave the first and the last halves of two vectors
#define LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW_4 0, 4, 1, 5
#define HIGH_4 2, 6, 3, 7
#define LOW_2 0, 2
#define HIGH_2 1, 3

// set by tl_amx.c where that is loaded: does a whole product, or returns 0
#if defined(TL_F32) && !defined(TL_KERNELS_ONLY)
int (*tl_gemm_on_tiles)(const tl_gemm_f32 *g, int tid, int nth);
#endif

#ifdef TL_F32
#define T float
#define S f32
#define ON_TILES tl_gemm_on_tiles
#define FMA_INSTRUCTION "vfmadd231ps %1%{1to16%}, %2, %0"
#define SLICE 512  // of k: a block of MR rows of it stays in the first-level cache
#if VECTOR_BYTES == 64
#define LANES 16
#elif VECTOR_BYTES == 32
#define LANES 8
#else
#define LANES 4
#endif
#include "tl_gemm_template.h"
#undef T
#undef S
#undef SLICE
#undef FMA_INSTRUCTION
#undef LANES
#undef ON_TILES
#endif

#if defined(TL_F32) && VECTOR_BYTES == 64 && !defined(TL_KERNELS_ONLY)
// what tl_amx.c leaves to this file: a transpose of 16 x 16, and to[i - i0][j - j0] of up to 32 columns by multiply-adds
void tl_transpose_f32(const float *src, int64_t lds, float *dst, int64_t ldd) { transpose_f32(src, lds, dst, ldd); }

void tl_gemm_block_f32(const tl_gemm_f32 *g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float *to, int64_t ld) {
    enum { SLICE = 512, STRIDE = SLICE + 16 };
    float *panel = tl_scratch(4, sizeof(float) * SLICE * 32), *rows = tl_scratch(5, sizeof(float) * SLICE * 16 + MR * STRIDE);
    for (int64_t k0 = 0; k0 < TL_MAX(g->k, 1); k0 += SLICE) {
        const int64_t k1 = TL_MIN(k0 + SLICE, g->k);
        pack_columns_f32(g, &g->b, j0, j1 - j0, k0, k1, panel);
        for (int64_t i = i0; i < i1; i += MR) {
            const int64_t height = TL_MIN(MR, i1 - i);
            const block_f32 r = row_block_f32(g, &g->a, g->m, i, height, k0, k1, rows);
            tl_kernels_f32[r.by_rows][height](r.stride, k1 - k0, r.at, panel, 32, to + (i - i0) * ld, ld, k0 > 0, &nothing);
        }
    }
}
#endif

#ifdef TL_F64
#define T double
#define S f64
#define FMA_INSTRUCTION "vfmadd231pd %1%{1to8%}, %2, %0"
#define SLICE 256
#if VECTOR_BYTES == 64
#define LANES 8
#elif VECTOR_BYTES == 32
#define LANES 4
#else
#define LANES 2
#endif
#include "tl_gemm_template.h"
#undef T
#undef S
#undef SLICE
#undef FMA_INSTRUCTION
#undef LANES
#endif
