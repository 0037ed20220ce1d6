// Scalar math that any C compiler turns into vector code: branch-free polynomials, integer rules, 16-bit floats, Philox.
// Float functions are within 2 ulp (tests/test_codegen_cpu.py measures them); double goes to libm.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define TL_INLINE static inline __attribute__((always_inline))
#define TL_UNLIKELY(x) __builtin_expect(!!(x), 0)

TL_INLINE int32_t tl_bits(float x) { int32_t i; memcpy(&i, &x, 4); return i; }
TL_INLINE float tl_float(int32_t i) { float x; memcpy(&x, &i, 4); return x; }
TL_INLINE int64_t tl_bits64(double x) { int64_t i; memcpy(&i, &x, 8); return i; }
TL_INLINE double tl_double(int64_t i) { double x; memcpy(&x, &i, 8); return x; }

// ---- 16-bit floats: held as float, converted at loads, stores and casts (round to nearest even)
typedef uint16_t tl_bf16;
TL_INLINE float tl_from_bf16(tl_bf16 h) { return tl_float((int32_t)((uint32_t)h << 16)); }
TL_INLINE tl_bf16 tl_to_bf16(float x) {
    uint32_t i = (uint32_t)tl_bits(x);
    uint32_t rounded = (i + 0x7fffu + ((i >> 16) & 1u)) >> 16;
    return (tl_bf16)(x != x ? (i >> 16) | 0x40u : rounded);
}
TL_INLINE float tl_round_bf16(float x) { return tl_from_bf16(tl_to_bf16(x)); }

#ifdef __FLT16_MAX__
typedef _Float16 tl_f16;
TL_INLINE float tl_from_f16(tl_f16 h) { return (float)h; }
TL_INLINE tl_f16 tl_to_f16(float x) { return (tl_f16)x; }
#else
typedef uint16_t tl_f16;
TL_INLINE float tl_from_f16(tl_f16 h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    float wide = tl_float((int32_t)(rest << 13)) * 0x1p112f;  // also makes denormals right
    uint32_t i = (uint32_t)tl_bits(wide) | (rest >= 0x7c00u ? 0x7f800000u : 0u);
    return tl_float((int32_t)(i | sign));
}
TL_INLINE tl_f16 tl_to_f16(float x) {
    uint32_t i = (uint32_t)tl_bits(x), sign = (i >> 16) & 0x8000u;
    i &= 0x7fffffffu;
    uint32_t tiny = (uint32_t)tl_bits(tl_float((int32_t)i) + 0.5f) - 0x3f000000u;  // the adder rounds denormals
    uint32_t normal = (i - 0x38000000u + 0xfffu + ((i >> 13) & 1u)) >> 13;
    uint32_t h = i > 0x7f800000u ? 0x7e00u : i >= 0x477ff000u ? 0x7c00u : i < 0x38800000u ? tiny : normal;
    return (tl_f16)(h | sign);
}
#endif
TL_INLINE float tl_round_f16(float x) { return tl_from_f16(tl_to_f16(x)); }

// ---- order-preserving integers: max and min of floats as integer reductions, which vectorize without finite-math; NaN wins both
TL_INLINE int32_t tl_order(float x) { int32_t k = tl_bits(x); return k ^ ((k >> 31) & 0x7fffffff); }
TL_INLINE float tl_unorder(int32_t k) { return tl_float(k ^ ((k >> 31) & 0x7fffffff)); }
TL_INLINE int32_t tl_max_key(float x) { return x != x ? INT32_MAX : tl_order(x); }
TL_INLINE int32_t tl_min_key(float x) { return x != x ? INT32_MIN : tl_order(x); }
TL_INLINE int64_t tl_order64(double x) { int64_t k = tl_bits64(x); return k ^ ((k >> 63) & INT64_MAX); }
TL_INLINE double tl_unorder64(int64_t k) { return tl_double(k ^ ((k >> 63) & INT64_MAX)); }
TL_INLINE int64_t tl_max_key64(double x) { return x != x ? INT64_MAX : tl_order64(x); }
TL_INLINE int64_t tl_min_key64(double x) { return x != x ? INT64_MIN : tl_order64(x); }

// ---- exponentials: e^c = 2^n e^r with |r| <= ln(2)/2. Each clamp, shift and multiply costs: a chain of these is bound by the vector ports
TL_INLINE int32_t tl_exp_split(float c, int bias, float *r) {  // n + bias in the lowest bits; c not beyond 10^6
    float round = 12582912.0f + bias;  // adding 1.5 * 2^23 rounds to an integer
    float t = __builtin_fmaf(c, 1.44269504f, round), n = t - round;
    *r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, c));
    return tl_bits(t);
}
TL_INLINE float tl_power(int32_t e) { return tl_float((int32_t)((uint32_t)e << 23)); }  // 2^(e - 127); only the lowest 8 bits count
TL_INLINE float tl_exp_tail(float r) {  // (e^r - 1 - r) / r^2 by minimax, 1.4e-8 in e^r - 1
    float p = 1.387065626e-3f;
    p = __builtin_fmaf(p, r, 8.366261609e-3f);
    p = __builtin_fmaf(p, r, 4.166743532e-2f);
    p = __builtin_fmaf(p, r, 1.666654646e-1f);
    return __builtin_fmaf(p, r, 4.999999702e-1f);
}
TL_INLINE float tl_exp_rest(float r) { return __builtin_fmaf(__builtin_fmaf(tl_exp_tail(r), r, 1.0f), r, 1.0f); }
TL_INLINE float tl_expm1_rest(float r) { return __builtin_fmaf(tl_exp_tail(r) * r, r, r); }
TL_INLINE float tl_exp(float x) {
    float c = x > 89.0f ? 89.0f : x, r;
    c = c < -104.0f ? -104.0f : c;
    uint32_t e = (uint32_t)tl_exp_split(c, 254, &r), half = e >> 1;  // two factors reach denormals and infinity
    return tl_exp_rest(r) * tl_power((int32_t)half) * tl_power((int32_t)(e - half));
}
TL_INLINE float tl_expm1(float x) {
    float c = x > 89.0f ? 89.0f : x, r;
    c = c < -30.0f ? -30.0f : c;
    float s = tl_power(tl_exp_split(c, 126, &r));  // half the power, so that 2^128 stays finite
    return __builtin_copysignf(2.0f * __builtin_fmaf(tl_expm1_rest(r), s, s - 0.5f), x);
}
TL_INLINE float tl_sigmoid(float x) {
    float c = x > 30.0f ? 30.0f : x, r;
    c = c < -104.0f ? -104.0f : c;
    float s = tl_power(tl_exp_split(-c, 95, &r));  // 2^-32 above and below the line keeps the power in range
    return 0x1p-32f / __builtin_fmaf(tl_exp_rest(r), s, 0x1p-32f);
}
TL_INLINE float tl_tanh(float x) {  // (1 - e^-2|x|) / (1 + e^-2|x|), both halved, and one step of Newton for what they lost
    float a = __builtin_fabsf(x), r;
    a = a > 10.0f ? 10.0f : a;
    float s = tl_power(tl_exp_split(-2.0f * a, 126, &r)), p = tl_expm1_rest(r);  // e^-2|x| / 2 = s + s p
    float low = 0.5f - s, high = 0.5f + s;
    float y = __builtin_fmaf(-p, s, low) / __builtin_fmaf(p, s, high);
    float q = p * s, lost = __builtin_fmaf(-q, y, __builtin_fmaf(-y, high, low) - q);
    return __builtin_copysignf(__builtin_fmaf(lost, 1.0f + y, y), x);  // 1 + y is the inverse of the halved divisor
}
TL_INLINE float tl_erf(float x) {  // two minimax polynomials, the far one in the exponent
    float a = __builtin_fabsf(x), s = x * x;
    float t = a > 4.0f ? 4.0f : a;
    float q = t * t;
    float r = __builtin_fmaf(-1.72853470e-5f, t, 3.83197126e-4f);
    float u = __builtin_fmaf(-3.88396438e-3f, t, 2.42546219e-2f);
    r = __builtin_fmaf(r, q, u);
    r = __builtin_fmaf(r, t, -1.06777877e-1f);
    r = __builtin_fmaf(r, t, -6.34846687e-1f);
    r = __builtin_fmaf(r, t, -1.28717512e-1f);
    r = __builtin_fmaf(r, t, -t);
    float rest, power = tl_power(tl_exp_split(r, 127, &rest));
    float far = __builtin_copysignf(__builtin_fmaf(-tl_exp_rest(rest), power, 1.0f), x);
    float p = -5.96761703e-4f;
    p = __builtin_fmaf(p, s, 4.99119423e-3f);
    p = __builtin_fmaf(p, s, -2.67681349e-2f);
    p = __builtin_fmaf(p, s, 1.12819925e-1f);
    p = __builtin_fmaf(p, s, -3.76125336e-1f);
    p = __builtin_fmaf(p, s, 1.28379166e-1f);
    float near = __builtin_copysignf(__builtin_fmaf(p, x, x), x);
    return a > 0.927734375f ? far : near;  // a NaN takes the near side, which keeps it
}

// ---- logarithms
TL_INLINE float tl_log(float x) {
    float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;  // denormals
    int32_t i = tl_bits(scaled);
    int32_t e = (i - 0x3f3504f3) >> 23;
    float m = tl_float(i - (int32_t)((uint32_t)e << 23)) - 1.0f, z = m * m;
    float p = 7.0376836292e-2f;
    p = __builtin_fmaf(p, m, -1.1514610310e-1f);
    p = __builtin_fmaf(p, m, 1.1676998740e-1f);
    p = __builtin_fmaf(p, m, -1.2420140846e-1f);
    p = __builtin_fmaf(p, m, 1.4249322787e-1f);
    p = __builtin_fmaf(p, m, -1.6668057665e-1f);
    p = __builtin_fmaf(p, m, 2.0000714765e-1f);
    p = __builtin_fmaf(p, m, -2.4999993993e-1f);
    p = __builtin_fmaf(p, m, 3.3333331174e-1f);
    float n = (float)e - (x < 1.17549435e-38f ? 23.0f : 0.0f);
    float y = m * z * p;
    y = __builtin_fmaf(n, -2.12194440e-4f, y);
    y = __builtin_fmaf(z, -0.5f, y);
    y = __builtin_fmaf(n, 0.693359375f, m + y);
    y = x == 0.0f ? -INFINITY : y;
    y = x == INFINITY ? x : y;
    return x < 0.0f || x != x ? NAN : y;
}
TL_INLINE float tl_log1p(float x) {
    float u = 1.0f + x;
    float y = tl_log(u), lost = (x - (u - 1.0f)) / u;  // what rounding 1 + x lost
    y = u == 0.0f || u == INFINITY ? y : y + lost;
    return x == 0.0f ? x : y;
}
TL_INLINE float tl_log2(float x) {
    float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
    int32_t i = tl_bits(scaled);
    int32_t e = (i - 0x3f3504f3) >> 23;
    float m = tl_float(i - (int32_t)((uint32_t)e << 23));
    float n = (float)e - (x < 1.17549435e-38f ? 23.0f : 0.0f);
    float y = __builtin_fmaf(tl_log(m), 1.44269504f, tl_log(m) * 1.92596299e-8f) + n;
    y = x == 0.0f ? -INFINITY : y;
    y = x == INFINITY ? x : y;
    return x < 0.0f || x != x ? NAN : y;
}

// ---- trigonometry: reduction by pi/2 in double (two parts), good for |x| < 2^50
TL_INLINE float tl_sincos(float x, int shift) {
    double t = __builtin_fma((double)x, 0.63661977236758134, 6755399441055744.0);  // 1.5 * 2^52 rounds to an integer
    double n = t - 6755399441055744.0;
    double d = __builtin_fma(-n, 1.5707963267948966, (double)x);
    float r = (float)__builtin_fma(-n, 6.123233995736766e-17, d), z = r * r;
    int32_t quadrant = (int32_t)tl_bits64(t) + shift;
    float s = -1.9515295891e-4f;
    s = __builtin_fmaf(s, z, 8.3321608736e-3f);
    s = __builtin_fmaf(s, z, -1.6666654611e-1f);
    s = __builtin_fmaf(s * z, r, r);
    float c = 2.443315711809948e-5f;
    c = __builtin_fmaf(c, z, -1.388731625493765e-3f);
    c = __builtin_fmaf(c, z, 4.166664568298827e-2f);
    c = __builtin_fmaf(c * z, z, __builtin_fmaf(-0.5f, z, 1.0f));
    float y = quadrant & 1 ? c : s;
    return quadrant & 2 ? -y : y;
}
TL_INLINE float tl_sin(float x) { float y = tl_sincos(x, 0); return x == 0.0f ? x : y; }
TL_INLINE float tl_cos(float x) { return tl_sincos(x, 1); }

// ---- powers, through double
TL_INLINE float tl_pow(float x, float y) {
    double a = (double)__builtin_fabsf(x);
    int64_t i = tl_bits64(a);
    int64_t e = (i - 0x3fe6a09e667f3bcdLL) >> 52;
    double m = tl_double(i - (int64_t)((uint64_t)e << 52));
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 13.0;
    p = __builtin_fma(p, z, 1.0 / 11.0);
    p = __builtin_fma(p, z, 1.0 / 9.0);
    p = __builtin_fma(p, z, 1.0 / 7.0);
    p = __builtin_fma(p, z, 1.0 / 5.0);
    p = __builtin_fma(p, z, 1.0 / 3.0);
    p = __builtin_fma(p, z, 1.0);
    double t = (double)y * __builtin_fma(s * 2.885390081777927, p, (double)(int32_t)e);
    t = t > 300.0 ? 300.0 : t;
    t = t < -300.0 ? -300.0 : t;
    double magic = t + 6755399441055744.0;
    double f = (t - (magic - 6755399441055744.0)) * 0.6931471805599453;
    double q = 1.0 / 362880.0;
    q = __builtin_fma(q, f, 1.0 / 40320.0);
    q = __builtin_fma(q, f, 1.0 / 5040.0);
    q = __builtin_fma(q, f, 1.0 / 720.0);
    q = __builtin_fma(q, f, 1.0 / 120.0);
    q = __builtin_fma(q, f, 1.0 / 24.0);
    q = __builtin_fma(q, f, 1.0 / 6.0);
    q = __builtin_fma(q, f, 0.5);
    q = __builtin_fma(q, f, 1.0);
    q = __builtin_fma(q, f, 1.0);
    float r = (float)(q * tl_double((int64_t)((uint64_t)(tl_bits64(magic) - 0x4338000000000000LL + 1023) << 52)));
    r = a == 0.0 ? (y < 0.0f ? INFINITY : 0.0f) : r;
    r = a == INFINITY ? (y < 0.0f ? 0.0f : INFINITY) : r;
    float whole = __builtin_floorf(y), halves = __builtin_floorf(0.5f * y);
    int is_whole = whole == y, is_odd = is_whole & (halves != 0.5f * y);
    r = (tl_bits(x) < 0) & is_odd ? -r : r;
    r = (x < 0.0f) & !is_whole & (a != INFINITY) ? NAN : r;
    r = (x != x) | (y != y) ? x + y : r;
    return (y == 0.0f) | (x == 1.0f) | ((x == -1.0f) & (__builtin_fabsf(y) == INFINITY)) ? 1.0f : r;
}

// ---- comparisons and signs
// two selects: gcc does not vectorize a chain of `a > b || a != a ? a : b`
TL_INLINE float tl_maximum(float a, float b) { float m = a > b ? a : b; return a == a ? m : a; }
TL_INLINE float tl_minimum(float a, float b) { float m = a < b ? a : b; return a == a ? m : a; }
TL_INLINE double tl_maximum_d(double a, double b) { double m = a > b ? a : b; return a == a ? m : a; }
TL_INLINE double tl_minimum_d(double a, double b) { double m = a < b ? a : b; return a == a ? m : a; }
TL_INLINE float tl_sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x != x ? x : 0.0f; }
TL_INLINE double tl_sign_d(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x != x ? x : 0.0; }
TL_INLINE double tl_sigmoid_d(double x) { double e = exp(-fabs(x)); return (x >= 0.0 ? 1.0 : e) / (1.0 + e) + (x != x ? x : 0.0); }

// ---- quotients and remainders by Python's rules (the sign of the divisor), fmod by C's; integer division by zero gives 0
TL_INLINE double tl_mod_d(double a, double b) {
    double r = fmod(a, b);
    return r == 0.0 ? copysign(0.0, b) : (r < 0.0) != (b < 0.0) ? r + b : r;
}
TL_INLINE float tl_mod(float a, float b) {
    float r = fmodf(a, b);
    return r == 0.0f ? copysignf(0.0f, b) : (r < 0.0f) != (b < 0.0f) ? r + b : r;
}
TL_INLINE double tl_floordiv_d(double a, double b) {
    double r = fmod(a, b), q = (a - r) / b;
    if (b == 0.0) return a / b;
    q -= r != 0.0 && (r < 0.0) != (b < 0.0) ? 1.0 : 0.0;
    double f = floor(q);
    return q == 0.0 ? copysign(0.0, a / b) : q - f > 0.5 ? f + 1.0 : f;
}
TL_INLINE float tl_floordiv(float a, float b) {
    float r = fmodf(a, b), q = (a - r) / b;
    if (b == 0.0f) return a / b;
    q -= r != 0.0f && (r < 0.0f) != (b < 0.0f) ? 1.0f : 0.0f;
    float f = floorf(q);
    return q == 0.0f ? copysignf(0.0f, a / b) : q - f > 0.5f ? f + 1.0f : f;
}
TL_INLINE int64_t tl_div_i(int64_t a, int64_t b) { return b == 0 ? 0 : b == -1 ? -a : a / b; }
TL_INLINE int64_t tl_fmod_i(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
TL_INLINE int64_t tl_floordiv_i(int64_t a, int64_t b) {
    int64_t q = tl_div_i(a, b);
    return b != 0 && tl_fmod_i(a, b) != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
TL_INLINE int64_t tl_mod_i(int64_t a, int64_t b) {
    int64_t r = tl_fmod_i(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
TL_INLINE int64_t tl_pow_i(int64_t a, int64_t n) {
    if (n < 0) return a == 1 ? 1 : a == -1 ? (n & 1 ? -1 : 1) : 0;
    int64_t r = 1;
    for (; n; n >>= 1, a *= a) r = n & 1 ? r * a : r;
    return r;
}
TL_INLINE int64_t tl_lshift(int64_t a, int64_t n, int bits) { return (uint64_t)n >= (uint64_t)bits ? 0 : (int64_t)((uint64_t)a << n); }
TL_INLINE int64_t tl_rshift(int64_t a, int64_t n, int bits) { return (uint64_t)n >= (uint64_t)bits ? (a < 0 ? -1 : 0) : a >> n; }

// ---- Philox 4x32-10: key = seed, counter = (index, offset); one of the four 32-bit results
TL_INLINE int64_t tl_philox(int64_t seed, int64_t offset, int64_t index, int lane) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)((uint64_t)index >> 32), c2 = (uint32_t)offset, c3 = (uint32_t)((uint64_t)offset >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return lane == 0 ? c0 : lane == 1 ? c1 : lane == 2 ? c2 : c3;
}

// ---- small helpers that name their argument once
TL_INLINE int64_t tl_max_i(int64_t a, int64_t b) { return a > b ? a : b; }
TL_INLINE int64_t tl_min_i(int64_t a, int64_t b) { return a < b ? a : b; }
TL_INLINE int64_t tl_abs_i(int64_t a) { return a < 0 ? -a : a; }
TL_INLINE int64_t tl_sign_i(int64_t a) { return (a > 0) - (a < 0); }
TL_INLINE int tl_isnan(double x) { return x != x; }
TL_INLINE int tl_isnanf(float x) { return x != x; }
