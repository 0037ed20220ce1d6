/* A stand-in for libcuda.so.1: device memory is host memory that the host may not touch, kernels are run by a callback.
 *
 * The device's heap has no access rights except while a copy or a kernel runs, so that code which reads device memory from the
 * host fails as it would on a GPU. Fresh memory is filled with 0xFF (NaN); frees and handles are checked. Streams and events are
 * counted but everything is done at once. Failures are injected through stub_fail (name of a function, status, calls to let pass).
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define X __attribute__((visibility("default")))
typedef int status;
typedef unsigned long long ptr;
enum { BAD = 1, NO_ROOM = 2, NOT_FOUND = 500, HANDLE = 400, NO_DEVICE = 100, BAD_IMAGE = 200 };

static size_t HEAP = 256ul << 20; /* STUB_HEAP_MB in the environment: another size */
#define BLOCKS 65536
static char *heap;
static struct block { size_t at, size; } blocks[BLOCKS]; /* live, by address */
static int live;
static int rights;
static size_t limit;

X int stub_devices = 1, stub_major = 9, stub_minor = 0, stub_version = 13000;
X long stub_launches, stub_graph_launches, stub_graph_updates, stub_allocations, stub_frees, stub_streams, stub_modules;
X int stub_attributes[8], stub_attribute_count; /* of the last launch */
static char failing[64];
static int fail_status, fail_after;

X void stub_fail(const char *name, int code, int after) { snprintf(failing, sizeof failing, "%s", name); fail_status = code; fail_after = after; }
X void stub_limit(size_t bytes) { limit = bytes ? bytes : HEAP; }
X int stub_live(void) { return live; }
#define CHECK if (fail_status && !strcmp(failing, __func__) && fail_after-- <= 0) { int s = fail_status; fail_status = 0; return s; }

X int stub_quick; /* no checks, no fills: to measure what callers cost */
static void open_heap(void) { if (!stub_quick && !rights++) mprotect(heap, HEAP, PROT_READ | PROT_WRITE); }
static void close_heap(void) { if (!stub_quick && !--rights) mprotect(heap, HEAP, PROT_NONE); }
static int inside(ptr p, size_t n) { /* within one live block */
    for (int i = 0; i < live; i++) { size_t a = (size_t)heap + blocks[i].at; if (p >= a && p + n <= a + blocks[i].size) return 1; }
    return n == 0;
}

X int stub_inside(ptr p, size_t n) { return inside(p, n); }

X status cuInit(unsigned flags) { CHECK
    if (!stub_devices) return NO_DEVICE;
    if (getenv("STUB_HEAP_MB") && !heap) HEAP = strtoul(getenv("STUB_HEAP_MB"), 0, 10) << 20;
    if (!limit) limit = HEAP;
    if (!heap) heap = mmap(NULL, HEAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return heap == MAP_FAILED ? NO_ROOM : 0;
}
X status cuDriverGetVersion(int *v) { *v = stub_version; return 0; }
X status cuDeviceGetCount(int *n) { *n = stub_devices; return 0; }
X status cuDeviceGet(int *d, int i) { *d = i; return i < stub_devices ? 0 : 101; }
X status cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "Stand-in GPU"); return 0; }
X status cuDeviceTotalMem_v2(size_t *n, int d) { *n = HEAP; return 0; }
X status cuDeviceGetAttribute(int *v, int a, int d) {
    *v = a == 75 ? stub_major : a == 76 ? stub_minor : a == 16 ? 132 : a == 10 ? 32 : a == 97 ? 232448 : a == 81 ? 233472 : 1;
    return 0;
}
X status cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)(0x1000ul + d); return 0; }
static __thread void *current;
X status cuCtxSetCurrent(void *c) { current = c; return 0; }
X status cuCtxSynchronize(void) { CHECK return current ? 0 : 201; }

struct module { int magic; const void *image; };
struct function { int magic; struct module *of; char name[200]; };
X status cuModuleLoadData(void **m, const void *image) { CHECK
    if (!current) return 201;
    if (memcmp(image, "\177ELF", 4)) return BAD_IMAGE;
    struct module *x = malloc(sizeof *x); x->magic = 77; x->image = image; *m = x; stub_modules++; return 0;
}
X status cuModuleGetFunction(void **f, void *m, const char *name) { CHECK
    struct function *x = malloc(sizeof *x); x->magic = 88; x->of = m; snprintf(x->name, sizeof x->name, "%s", name); *f = x; return 0;
}
X status cuModuleUnload(void *m) { free(m); stub_modules--; return 0; }
X status cuFuncSetAttribute(void *f, int a, int v) { CHECK return 0; }
X status cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 4 ? 40 : 0; return 0; }

X status cuMemAllocAsync(ptr *p, size_t n, void *s) { CHECK
    if (!current) return 201;
    if (live == BLOCKS || !n) return live == BLOCKS ? NO_ROOM : BAD;
    size_t at = 0, used = 0; int i;
    for (int k = 0; k < live; k++) used += blocks[k].size;
    if (used + n > limit) return NO_ROOM;
    for (i = 0; i < live; i++) { if (blocks[i].at - at >= n) break; at = (blocks[i].at + blocks[i].size + 255) & ~255ul; }
    if (at + n > HEAP) return NO_ROOM;
    memmove(blocks + i + 1, blocks + i, (live++ - i) * sizeof *blocks);
    blocks[i].at = at; blocks[i].size = n;
    *p = (ptr)heap + at; stub_allocations++;
    if (!stub_quick) { open_heap(); memset(heap + at, 0xFF, n); close_heap(); }
    return 0;
}
X status cuMemFreeAsync(ptr p, void *s) { CHECK
    for (int i = 0; i < live; i++) if ((ptr)heap + blocks[i].at == p) { memmove(blocks + i, blocks + i + 1, (--live - i) * sizeof *blocks); stub_frees++; return 0; }
    fprintf(stderr, "stub: free of an address that is not live\n"); return BAD;
}
X status cuMemGetInfo_v2(size_t *f, size_t *t) { size_t u = 0; for (int i = 0; i < live; i++) u += blocks[i].size; *t = limit; *f = limit - u; return 0; }
X status cuDeviceGetDefaultMemPool(void **p, int d) { *p = (void *)0x6000; return 0; }
X status cuMemPoolSetAttribute(void *p, int a, void *v) { return a == 4 ? 0 : BAD; }
X status cuMemPoolGetAttribute(void *p, int a, void *v) { size_t u = 0; for (int i = 0; i < live; i++) u += blocks[i].size; *(uint64_t *)v = u; return 0; }
X status cuMemPoolTrimTo(void *p, size_t n) { return 0; }
X status cuMemHostAlloc(void **p, size_t n, unsigned f) { CHECK *p = aligned_alloc(64, (n + 63) & ~63ul); return 0; }
X status cuMemFreeHost(void *p) { free(p); return 0; }
X status cuMemcpyHtoDAsync_v2(ptr d, const void *s, size_t n, void *t) { CHECK if (!inside(d, n)) return BAD; if (stub_quick) return 0; open_heap(); memcpy((void *)d, s, n); close_heap(); return 0; }
X status cuMemcpyDtoHAsync_v2(void *d, ptr s, size_t n, void *t) { CHECK if (!inside(s, n)) return BAD; if (stub_quick) return 0; open_heap(); memcpy(d, (void *)s, n); close_heap(); return 0; }
X status cuMemcpyDtoDAsync_v2(ptr d, ptr s, size_t n, void *t) { CHECK if (!inside(d, n) || !inside(s, n)) return BAD; if (stub_quick) return 0; open_heap(); memmove((void *)d, (void *)s, n); close_heap(); return 0; }
X status cuMemsetD8Async(ptr d, unsigned char v, size_t n, void *t) { CHECK if (!inside(d, n)) return BAD; if (stub_quick) return 0; open_heap(); memset((void *)d, v, n); close_heap(); return 0; }

struct stream { int magic; };
#define STREAM(s) if (!(s) || ((struct stream *)(s))->magic != 99) { fprintf(stderr, "stub: %s on a stream that is closed\n", __func__); return HANDLE; }
X status cuStreamCreateWithPriority(void **s, unsigned f, int p) { struct stream *x = malloc(sizeof *x); x->magic = 99; *s = x; stub_streams++; return 0; }
X status cuStreamDestroy_v2(void *s) { STREAM(s) ((struct stream *)s)->magic = 0; stub_streams--; return 0; } /* kept, so that a later use is seen */
X status cuStreamSynchronize(void *s) { CHECK STREAM(s) return 0; }
X status cuStreamQuery(void *s) { STREAM(s) return 0; }
X status cuStreamWaitEvent(void *s, void *e, unsigned f) { STREAM(s) return e ? 0 : HANDLE; }
X status cuEventCreate(void **e, unsigned f) { int *x = calloc(2, sizeof *x); x[1] = f; *e = x; return 0; }
int stub_now; /* ticks, which count as milliseconds */
X status cuEventRecord(void *e, void *s) { STREAM(s) *(int *)e = ++stub_now; return 0; }
X status cuEventQuery(void *e) { return 0; }
X status cuEventSynchronize(void *e) { CHECK return 0; }
X status cuEventElapsedTime(float *t, void *a, void *b) { if (((int *)a)[1] & 2) return HANDLE; *t = (float)(*(int *)b - *(int *)a); return 0; }
X status cuEventDestroy_v2(void *e) { free(e); return 0; }

/* tensor maps: refused as cuda.h says; else the arguments are written where the driver writes its encoding */
struct map { unsigned magic; unsigned short type; unsigned char rank, swizzle; uint64_t small, address, shape[5], strides[4]; unsigned short box[8]; };
X int stub_maps;
X status cuTensorMapEncodeTiled(struct map *m, int type, unsigned rank, ptr address, const uint64_t *shape, const uint64_t *strides,
                                const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) { CHECK
    static const int sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    static const unsigned widest[] = {~0u, 32, 64, 128};
    if ((size_t)m % 64 || type < 0 || type > 12 || !rank || rank > 5 || !address || address % 16) return BAD;
    if (interleave || swizzle < 0 || swizzle > 3 || promotion < 0 || promotion > 3 || fill < 0 || fill > 1) return BAD;
    if (box[0] * sizes[type] % 16 || box[0] * sizes[type] > widest[swizzle]) return BAD;
    for (unsigned i = 0; i < rank; i++) {
        if (!shape[i] || shape[i] > 1ul << 32 || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8) return BAD;
        if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ul << 40)) return BAD;
    }
    *m = (struct map){0x7A9, type, rank, swizzle, 1ul << 21, address};
    for (unsigned i = 0; i < rank; i++) { m->shape[i] = shape[i]; m->box[i] = box[i]; if (i + 1 < rank) m->strides[i] = strides[i]; }
    stub_maps++; return 0;
}

/* launches */
struct attribute { int id; char pad[4]; int value[16]; };
struct config { unsigned grid[3], block[3], shared; void *stream; struct attribute *attributes; unsigned count; };
struct params { struct function *f; unsigned grid[3], block[3], shared; void **parameters, **extra; void *kernel, *context; };
typedef int (*runner)(void *f, const unsigned *grid, const unsigned *block, unsigned shared, void **parameters);
typedef int (*describer)(void *f, int *sizes); /* how many parameters, and their bytes: what a real driver reads from the cubin */
static runner run;
static describer describe;
X void stub_on_launch(runner r, describer d) { run = r; describe = d; }

static status go(struct function *f, const unsigned *grid, const unsigned *block, unsigned shared, void **parameters) {
    if (f->magic != 88) return HANDLE;
    if (shared > 232448 || !grid[0] || !grid[1] || !grid[2] || block[0] * block[1] * block[2] > 1024) return BAD;
    stub_launches++;
    if (stub_quick) return 0;
    open_heap(); int s = run ? run(f, grid, block, shared, parameters) : 0; close_heap();
    return s;
}
X status cuLaunchKernelEx(const struct config *c, struct function *f, void **parameters, void **extra) { CHECK
    STREAM(c->stream)
    stub_attribute_count = c->count;
    for (unsigned i = 0; i < c->count && i < 8; i++) stub_attributes[i] = c->attributes[i].id;
    return go(f, c->grid, c->block, c->shared, parameters);
}

struct node { struct params p; char bytes[4096]; void *parameters[256]; struct node *next; int after; };
struct graph { struct node *first, *last; int refs, magic; };
static status fill(struct node *n, const struct params *p) { /* the values are copied when a node is made or changed, as the driver does */
    int sizes[256], count = describe ? describe(p->f, sizes) : 0;
    n->p = *p; char *at = n->bytes;
    for (int i = 0; i < count; i++) { memcpy(at, p->parameters[i], sizes[i]); n->parameters[i] = at; at += (sizes[i] + 15) & ~15; }
    n->p.parameters = n->parameters;
    return 0;
}
X status cuGraphCreate(void **g, unsigned f) { struct graph *x = calloc(1, sizeof *x); x->refs = 1; x->magic = 55; *g = x; return 0; }
X status cuGraphAddKernelNode_v2(void **n, struct graph *g, struct node **before, size_t count, const struct params *p) { CHECK
    if (g->last && (count != 1 || before[0] != g->last)) { fprintf(stderr, "stub: a graph whose nodes are no chain\n"); return BAD; }
    struct node *x = calloc(1, sizeof *x); fill(x, p);
    if (g->last) g->last->next = x; else g->first = x;
    g->last = x; *n = x; return 0;
}
X status cuGraphKernelNodeSetAttribute(struct node *n, int a, const void *v) { CHECK return a == 2 || a == 4 || a == 5 ? 0 : BAD; }
static void drop(struct graph *g) { if (!--g->refs) { g->magic = 0; for (struct node *n = g->first, *m; n; n = m) { m = n->next; free(n); } } }
X status cuGraphInstantiateWithFlags(void **e, struct graph *g, unsigned long long f) { CHECK g->refs++; *e = g; return 0; }
X status cuGraphExecKernelNodeSetParams_v2(struct graph *e, struct node *n, const struct params *p) { CHECK
    if (e->magic != 55 || n->p.f != p->f) return BAD;
    stub_graph_updates++; return fill(n, p);
}
X status cuGraphLaunch(struct graph *e, void *s) { CHECK
    STREAM(s) if (e->magic != 55) return HANDLE;
    stub_graph_launches++;
    for (struct node *n = e->first; n; n = n->next) { status r = go(n->p.f, n->p.grid, n->p.block, n->p.shared, n->p.parameters); if (r) return r; }
    return 0;
}
X status cuGraphExecDestroy(struct graph *e) { drop(e); return 0; }
X status cuGraphDestroy(struct graph *g) { drop(g); return 0; }
X status cuGetErrorName(int e, const char **s) { *s = e == NO_ROOM ? "CUDA_ERROR_OUT_OF_MEMORY" : e == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : e == BAD_IMAGE ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR"; return 0; }
X status cuGetErrorString(int e, const char **s) { *s = "of the stand-in"; return 0; }
