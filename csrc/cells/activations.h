/*
 * sigmoid and tanh of a vector, from one reduction of the exponential.
 *
 *   e^x = 2^n * e^r,  n = round(x / ln 2),  |r| <= ln(2) / 2
 *   e^r - 1 = r + r^2 (c2 + c3 r + c4 r^2 + c5 r^3 + c6 r^4)      relative error 1.4e-8: a weighted minimax fit
 *
 *   sigmoid(x) = 1 / (1 + e^-x)
 *   tanh(x)    = m / (m + 2),  m = e^2x - 1 = 2^n (e^r - 1) + (2^n - 1)
 *
 * tanh is built on e^2x - 1 because (1 - e)/(1 + e) loses all its digits near 0, where small states live. The division
 * is exact: on the CPUs measured an approximate reciprocal and a Newton step save nothing.
 *
 * Numerics, over all floats: the error bounds are declared in kernels/activations.py, where tests read them: 1e-7 for
 * sigmoid; 1.5e-7 and 3 units in the last place for tanh, so that tanh(x) ~ x for tiny x. The clamps keep 2^n a normal
 * number and keep a NaN; past them sigmoid is its limit to less than the smallest normal float and tanh is 1 to the
 * last bit. kernels/activations.py is the same, line for line.
 */
#ifndef FR_ACTIVATIONS_H
#define FR_ACTIVATIONS_H

#define FR_INLINE static inline __attribute__((always_inline))

/* e^x = scale * (1 + small) */
typedef struct {
    vf scale, small;
} fr_exp_parts;

FR_INLINE fr_exp_parts fr_exp(vf x)
{
    /* Adding 1.5 * 2^23 rounds to an integer, left in the low bits of the sum; 127 more makes it a biased exponent.
     * Unlike a conversion to int this is the same few instructions everywhere, and defined for NaN. */
    const vf magic = vf_set1(12582912.0f + 127.0f);
    const vf t = vf_fma(x, vf_set1(0x1.715476p+0f), magic);
    const vf n = vf_sub(t, magic);
    /* ln 2 in two parts: n times the first is exact. */
    vf r = vf_fma(n, vf_set1(-0x1.62e400p-1f), x);
    r = vf_fma(n, vf_set1(-0x1.7f7d1cp-20f), r);
    vf q = vf_set1(0x1.6bec14p-10f);
    q = vf_fma(q, r, vf_set1(0x1.12277ep-7f));
    q = vf_fma(q, r, vf_set1(0x1.555674p-5f));
    q = vf_fma(q, r, vf_set1(0x1.5554b0p-3f));
    q = vf_fma(q, r, vf_set1(0x1.fffffep-2f));
    return (fr_exp_parts){vf_shl23(t), vf_fma(vf_mul(r, r), q, r)};
}

FR_INLINE vf fr_sigmoid(vf x)
{
    const vf one = vf_set1(1.0f);
    const vf clamped = vf_max(vf_set1(-87.0f), vf_min(vf_set1(87.0f), x));
    const fr_exp_parts e = fr_exp(vf_sub(vf_set1(0.0f), clamped));
    return vf_div(one, vf_add(one, vf_fma(e.scale, e.small, e.scale)));
}

FR_INLINE vf fr_tanh(vf x)
{
    const vf clamped = vf_max(vf_set1(-10.0f), vf_min(vf_set1(10.0f), x));
    const fr_exp_parts e = fr_exp(vf_add(clamped, clamped));
    const vf m = vf_fma(e.scale, e.small, vf_sub(e.scale, vf_set1(1.0f)));
    return vf_div(m, vf_add(m, vf_set1(2.0f)));
}

/* For tests of the functions alone. */
#define FR_DEFINE(name)                                                                                                \
    static void fr_##name##_array(const float *x, float *y, int64_t n)                                                 \
    {                                                                                                                  \
        for (int64_t k = 0; k < n; k += VF_LANES)                                                                      \
            vf_store_n(y + k, fr_##name(vf_load_n(x + k, n - k)), n - k);                                              \
    }
FR_ACTIVATIONS(FR_DEFINE)
#undef FR_DEFINE

#endif
