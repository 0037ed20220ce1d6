// The CPU runtime: one thread pool that spins briefly and then sleeps, and the walker that runs a table of launches in one parallel region.
#define _GNU_SOURCE
#include "tl_runtime.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define SPIN_NS 50000        // so long a thread waits for work before it sleeps,
#define LONG_SPIN_NS 200000  // and so long where the work it slept for came within this time: waking it costs 10 us of each call
#define TL_SHARED_BYTES (32 << 20)
#define MAX_ARGUMENTS 1024  // of one kernel; runtime/cpu.py checks it

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("isb")
#else
#define PAUSE() ((void)0)
#endif

typedef struct {
    tl_kernel fn;
    int32_t n_buffers, n_scalars;
    const int32_t *buffers, *scalars;  // slots of the program's pointers and scalars
    int32_t parallel;                  // 0: thread 0 runs it alone
    int32_t barrier;                   // wait for all threads before it
} tl_launch;

typedef struct {
    const tl_launch *launches;
    int n;
    char **pointers;
    int64_t *scalars;
} tl_program;

static int n_threads = 1, n_started = 1;
static pthread_mutex_t region = PTHREAD_MUTEX_INITIALIZER;  // one parallel region at a time
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Alignas(64) atomic_uint epoch;
static _Alignas(64) atomic_int pending;
static _Alignas(64) atomic_int sleepers;
static _Alignas(64) atomic_int arrived;
static _Alignas(64) atomic_uint barrier_epoch;
static const tl_program *current;
static int current_threads;
static _Thread_local int launch_index;
static atomic_int error_launch;
static _Atomic int64_t error_index, error_size;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// spins, and yields where the machine is busier than its cores allow
static inline void relax(int *spins) {
    if (++*spins & 127) PAUSE();
    else sched_yield();
}

void tl_barrier(int nth) {
    if (nth <= 1) return;
    unsigned seen = atomic_load_explicit(&barrier_epoch, memory_order_relaxed);
    if (atomic_fetch_add(&arrived, 1) == nth - 1) {
        atomic_store_explicit(&arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier_epoch, seen + 1, memory_order_release);
    } else {
        int spins = 0;
        while (atomic_load_explicit(&barrier_epoch, memory_order_acquire) == seen) relax(&spins);
    }
}

int64_t tl_bad_index(int64_t index, int64_t size) {
    int none = 0;
    if (atomic_compare_exchange_strong(&error_launch, &none, launch_index + 1)) {
        error_index = index;
        error_size = size;
    }
    return 0;
}

// the first bad index since the last call: 1 + its launch (0: none)
int tl_take_error(int64_t *index, int64_t *size) {
    *index = error_index;
    *size = error_size;
    return atomic_exchange(&error_launch, 0);
}

static void walk(const tl_program *p, int tid, int nth) {
    char *b[MAX_ARGUMENTS];
    int64_t s[MAX_ARGUMENTS];
    for (int i = 0; i < p->n; i++) {
        const tl_launch *l = &p->launches[i];
        if (l->barrier) tl_barrier(nth);
        if (tid && !l->parallel) continue;
        for (int j = 0; j < l->n_buffers; j++) b[j] = p->pointers[l->buffers[j]];
        for (int j = 0; j < l->n_scalars; j++) s[j] = p->scalars[l->scalars[j]];
        launch_index = i;
        l->fn(b, s, l->parallel ? tid : 0, l->parallel ? nth : 1);
    }
}

static void *worker(void *arg) {
    uintptr_t packed = (uintptr_t)arg;
    int tid = (int)(packed % TL_MAX_THREADS);
    unsigned seen = (unsigned)(packed / TL_MAX_THREADS);
    int64_t spin = SPIN_NS;
    for (;;) {
        int64_t start = now_ns();
        for (int k = 1; atomic_load_explicit(&epoch, memory_order_acquire) == seen; k++) {
            PAUSE();
            if (k % 64 == 0 && now_ns() - start > spin) {
                pthread_mutex_lock(&sleep_lock);
                atomic_fetch_add(&sleepers, 1);
                while (atomic_load(&epoch) == seen) pthread_cond_wait(&wake, &sleep_lock);
                atomic_fetch_sub(&sleepers, 1);
                pthread_mutex_unlock(&sleep_lock);
                spin = now_ns() - start < LONG_SPIN_NS ? LONG_SPIN_NS : SPIN_NS;
            }
        }
        seen++;
        if (tid < current_threads) walk(current, tid, current_threads);
        atomic_fetch_sub_explicit(&pending, 1, memory_order_release);
    }
    return 0;
}

static void start_threads(void) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 8 << 20);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (n_started < n_threads) {
        pthread_t thread;
        uintptr_t packed = (uintptr_t)atomic_load(&epoch) * TL_MAX_THREADS + (uintptr_t)n_started;
        if (pthread_create(&thread, &attributes, worker, (void *)packed)) n_threads = n_started;
        else n_started++;
    }
    pthread_attr_destroy(&attributes);
}

// a child of fork has none of the threads: it starts its own when it needs them
static void after_fork(void) {
    n_started = 1;
    atomic_store(&pending, 0);
    atomic_store(&sleepers, 0);
    atomic_store(&arrived, 0);
    pthread_mutex_init(&region, 0);
    pthread_mutex_init(&sleep_lock, 0);
    pthread_cond_init(&wake, 0);
}

void tl_set_threads(int n) {
    static int registered = 0;
    pthread_mutex_lock(&region);
    if (!registered) {
        registered = 1;
        pthread_atfork(0, 0, after_fork);
    }
    n_threads = TL_MAX(1, TL_MIN(n, TL_MAX_THREADS));
    pthread_mutex_unlock(&region);
}

int tl_get_threads(void) { return n_threads; }

// scratch memory that all threads of a parallel region share; untouched pages cost nothing
extern void *tl_alloc(int64_t bytes);
static void *shared;
void *tl_shared(void) { return shared; }

// Runs the launches in order; not 0 when a data-dependent position was out of range (tl_take_error says which).
int tl_run(const tl_program *p) {
    int wide = 0;
    for (int i = 0; i < p->n; i++) wide |= p->launches[i].parallel;
    if (!wide || n_threads == 1) {
        walk(p, 0, 1);
        return atomic_load_explicit(&error_launch, memory_order_relaxed);
    }
    pthread_mutex_lock(&region);
    if (n_started < n_threads) start_threads();
    if (!shared) shared = tl_alloc(TL_SHARED_BYTES);
    current = p;
    current_threads = n_threads;
    atomic_store_explicit(&pending, n_started - 1, memory_order_relaxed);
    atomic_fetch_add(&epoch, 1);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    walk(p, 0, n_threads);
    int spins = 0;
    while (atomic_load_explicit(&pending, memory_order_acquire)) relax(&spins);
    pthread_mutex_unlock(&region);
    return atomic_load_explicit(&error_launch, memory_order_relaxed);
}

// 64-byte aligned memory; large pieces are huge-page aligned and advised so, because fresh small pages cost five times a reused buffer
void *tl_alloc(int64_t bytes) {
    size_t align = bytes >= 2 << 20 ? 2 << 20 : 64;
    void *p = 0;
    if (posix_memalign(&p, align, ((size_t)bytes + align - 1) / align * align)) return 0;
#ifdef MADV_HUGEPAGE
    if (align > 64) madvise(p, ((size_t)bytes + align - 1) / align * align, MADV_HUGEPAGE);
#endif
    return p;
}

void tl_free(void *p) { free(p); }

// scratch memory of the calling thread, kept and grown; slot tells apart what is in use at the same time
void *tl_scratch(int slot, int64_t bytes) {
    static _Thread_local struct { void *p; int64_t bytes; } kept[6];
    if (kept[slot].bytes < bytes) {
        tl_free(kept[slot].p);
        kept[slot].p = tl_alloc(bytes);
        kept[slot].bytes = kept[slot].p ? bytes : 0;
    }
    return kept[slot].p;
}

