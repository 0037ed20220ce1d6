// Running sums and products along one dimension, in order, as NumPy computes them.
#include "tl_runtime.h"

enum { TL_LINES = 8, TL_RUN = 256 };  // lines that go side by side, so that none waits for its last sum; neighbours that do

// numbers: lines before the dimension, its length, elements between neighbours along it
#define TL_SCAN(NAME, T, OP) \
    void NAME(char *const *restrict b, const int64_t *restrict s, int tid, int nth) { \
        const int64_t outer = s[0], n = s[1], inner = s[2]; \
        const T *restrict x = (const T *)b[0]; \
        T *restrict y = (T *)b[1]; \
        if (inner == 1) { \
            TL_SHARE(lo, hi, outer, TL_LINES); \
            for (int64_t r = lo; r < hi; r += TL_LINES) { \
                const int64_t lines = TL_MIN(hi - r, TL_LINES); \
                T sum[TL_LINES]; \
                for (int64_t l = 0; l < lines; l++) sum[l] = y[(r + l) * n] = x[(r + l) * n]; \
                if (lines == TL_LINES) \
                    for (int64_t i = 1; i < n; i++) \
                        for (int64_t l = 0; l < TL_LINES; l++) y[(r + l) * n + i] = sum[l] = sum[l] OP x[(r + l) * n + i]; \
                else \
                    for (int64_t l = 0; l < lines; l++) \
                        for (int64_t i = 1; i < n; i++) y[(r + l) * n + i] = sum[l] = sum[l] OP x[(r + l) * n + i]; \
            } \
            return; \
        } \
        const int64_t runs = (inner + TL_RUN - 1) / TL_RUN; \
        TL_SHARE(lo, hi, outer * runs, 1); \
        for (int64_t u = lo; u < hi; u++) { \
            const int64_t first = u / runs * n * inner + u % runs * TL_RUN, width = TL_MIN(inner - u % runs * TL_RUN, TL_RUN); \
            for (int64_t j = first; j < first + width; j++) y[j] = x[j]; \
            for (int64_t i = 1; i < n; i++) \
                for (int64_t j = first + i * inner; j < first + i * inner + width; j++) y[j] = y[j - inner] OP x[j]; \
        } \
    }
TL_SCAN(tl_scan_sum_f32, float, +)
TL_SCAN(tl_scan_sum_f64, double, +)
TL_SCAN(tl_scan_sum_i64, uint64_t, +)
TL_SCAN(tl_scan_prod_f32, float, *)
TL_SCAN(tl_scan_prod_f64, double, *)
TL_SCAN(tl_scan_prod_i64, uint64_t, *)
