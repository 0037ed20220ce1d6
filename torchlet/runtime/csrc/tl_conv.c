// Convolutions without unfolded windows: inputs are copied with their padding, split by the phases of the stride, so that every tap of
// the kernel reads a run of memory that starts at another place. Results are computed along these runs, and what belongs to no window
// is left out when they are written.
#include <stdlib.h>
#include <string.h>
#include "tl_runtime.h"

// A convolution of up to three dimensions, in front of which there are dimensions of 1; the numbers as compiler/native.py lists them.
typedef struct {
    int64_t samples, groups, in, outs, has_bias;
    const int64_t *size, *counts, *kernel, *stride, *before, *dilation;
} tl_shape;
static tl_shape tl_shape_of(const int64_t *s) {
    return (tl_shape){s[0], s[1], s[2], s[3], s[4], s + 5, s + 8, s + 11, s + 14, s + 17, s + 20};
}

// Padded planes of a channel, one for each phase of the stride.
typedef struct { int64_t size[3], stride[3], before[3], extent[3]; } tl_planes;
static tl_planes tl_windows(const tl_shape *f) {
    tl_planes p;
    for (int d = 0; d < 3; d++) {
        p.size[d] = f->size[d], p.stride[d] = f->stride[d], p.before[d] = f->before[d];
        p.extent[d] = f->counts[d] + (f->kernel[d] - 1) * f->dilation[d] / f->stride[d];
    }
    return p;
}
static int64_t tl_planes_size(const tl_planes *p) {
    return p->extent[0] * p->extent[1] * p->extent[2] * p->stride[0] * p->stride[1] * p->stride[2];
}
// where the first window has its element number t
static int64_t tl_tap(const tl_shape *f, const tl_planes *p, int64_t t) {
    const int64_t at[3] = {t / (f->kernel[1] * f->kernel[2]), t / f->kernel[2] % f->kernel[1], t % f->kernel[2]};
    int64_t phase = 0, where = 0;
    for (int d = 0; d < 3; d++) {
        const int64_t reach = at[d] * f->dilation[d];
        phase = phase * p->stride[d] + reach % p->stride[d];
        where = where * p->extent[d] + reach / p->stride[d];
    }
    return phase * p->extent[0] * p->extent[1] * p->extent[2] + where;
}

// the first i with i * stride + phase - before >= 0
static int64_t tl_first(const tl_shape *f, int d, int64_t phase) {
    const int64_t missing = f->before[d] - phase;
    return missing > 0 ? (missing + f->stride[d] - 1) / f->stride[d] : -(-missing / f->stride[d]);
}

#ifdef TL_F32
#define T float
#define S f32
#define LANES (VECTOR_BYTES / 4)
#include "tl_conv_template.h"
#undef T
#undef S
#undef LANES
#endif

#ifdef TL_F64
#define T double
#define S f64
#define LANES (VECTOR_BYTES / 8)
#include "tl_conv_template.h"
#undef T
#undef S
#undef LANES
#endif
