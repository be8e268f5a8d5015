/*
 * sigmoid and tanh of a vector, as quotients whose division is not yet made, from one reduction of the exponential.
 *
 *   2^u = 2^n * 2^r,  n = round(u),  |r| <= 1/2
 *   2^r - 1 = r P(r),  P = p0 + p1 r + ... + p5 r^5                relative error 1.3e-8: a weighted minimax fit; p0 to
 *                                                                  p5 are FR_EXP2_0 to FR_EXP2_5 of api.h
 *
 *   sigmoid(x) = 1 / (1 + e)           e = e^-x  = 2^(-x log2 e)
 *   tanh(x)    = (e - 1) / (e + 1)     e = e^2x  = 2^(2 x log2 e)
 *
 * Shared divisions: on the CPUs measured, a division of a full vector takes as long as 5 to 32 multiply-adds (Zen 5 and
 * Sapphire Rapids). A cell combines the quotients of its gates and divides once for c' and once for h' of an LSTM,
 * instead of five times. The division itself is exact: an approximate reciprocal and a Newton step save little.
 *
 * log2 e is folded into the reduction, where it costs nothing: n and r are one multiply-add each, x log2 e - n rounded
 * once. Folded into weights and biases it would save no operation, and round every weight once more.
 *
 * e + 1 and e - 1 are (2^n +- 1) + 2^n r P(r), one multiply-add after P: nothing is lost near 0, where small states
 * live and n = 0. P is evaluated in pairs (Estrin), which is one operation more than Horner's scheme and 8 cycles less
 * of latency, twice in the chain from h to h'.
 *
 * Numerics, over all floats: the error bounds are declared in kernels/activations.py, where tests read them. The clamps
 * keep a NaN. They keep 2^n, and the product of three denominators (2^124), normal numbers; past them a sigmoid is its
 * limit to 5e-15 and a tanh is 1 to the last bit. That is enough in front of a tanh. In front of a value without bound
 * a gate is a full sigmoid and takes its own division: what is below the smallest normal number, 1.2e-38, is then a
 * denormal, which fr_run has the CPU flush to 0. kernels/activations.py is the same, line for line.
 */
#ifndef FR_ACTIVATIONS_H
#define FR_ACTIVATIONS_H

#define FR_INLINE static inline __attribute__((always_inline))

/* n / d */
typedef struct {
    vf n, d;
} fr_quotient;

FR_INLINE vf fr_divided(fr_quotient q) { return vf_div(q.n, q.d); }

/* v / 1 */
FR_INLINE fr_quotient fr_whole(vf v) { return (fr_quotient){v, vf_set1(1.0f)}; }

/* 2^u = scale + scaled * p */
typedef struct {
    vf scale, scaled, p;
} fr_power;

/* 2^(factor x), for x within +-limit */
FR_INLINE fr_power fr_exp2(vf x, float limit, float factor)
{
    /* Adding 1.5 * 2^23 rounds to an integer, left in the low bits of the sum; 127 more makes it a biased exponent.
     * Unlike a conversion to int this is the same few instructions everywhere, and defined for NaN. */
    const vf magic = vf_set1(FR_ROUNDING);
    x = vf_max(vf_set1(-limit), vf_min(vf_set1(limit), x));
    const vf t = vf_fma(x, vf_set1(factor), magic);
    const vf r = vf_fma(x, vf_set1(factor), vf_sub(magic, t));
    const vf scale = vf_shl23(t);
    const vf r2 = vf_mul(r, r);
    const vf p01 = vf_fma(vf_set1(FR_EXP2_1), r, vf_set1(FR_EXP2_0));
    const vf p23 = vf_fma(vf_set1(FR_EXP2_3), r, vf_set1(FR_EXP2_2));
    const vf p45 = vf_fma(vf_set1(FR_EXP2_5), r, vf_set1(FR_EXP2_4));
    return (fr_power){scale, vf_mul(scale, r), vf_fma(vf_fma(p45, r2, p23), r2, p01)};
}

FR_INLINE vf fr_power_plus(fr_power e, float one) { return vf_fma(e.scaled, e.p, vf_add(e.scale, vf_set1(one))); }

FR_INLINE fr_quotient fr_sigmoid_within(vf x, float limit)
{
    const fr_power e = fr_exp2(x, limit, -FR_LOG2_E);
    return (fr_quotient){vf_set1(1.0f), fr_power_plus(e, 1.0f)};
}

FR_INLINE fr_quotient fr_sigmoid(vf x) { return fr_sigmoid_within(x, FR_SIGMOID_LIMIT); }

/* To be divided alone: its denominator may be 2^127, and times another one infinite. */
FR_INLINE fr_quotient fr_full_sigmoid(vf x) { return fr_sigmoid_within(x, FR_FULL_SIGMOID_LIMIT); }

FR_INLINE fr_quotient fr_tanh(vf x)
{
    const fr_power e = fr_exp2(x, FR_TANH_LIMIT, 2.0f * FR_LOG2_E);
    return (fr_quotient){fr_power_plus(e, -1.0f), fr_power_plus(e, 1.0f)};
}

/* For tests of the functions alone. */
#define FR_DEFINE(name)                                                                                                \
    static void fr_##name##_array(const float *x, float *y, int64_t n)                                                 \
    {                                                                                                                  \
        for (int64_t k = 0; k < n; k += VF_LANES)                                                                      \
            vf_store_n(y + k, fr_divided(fr_##name(vf_load_n(x + k, n - k))), n - k);                                  \
    }
FR_DEFINE(sigmoid)
FR_DEFINE(full_sigmoid)
FR_DEFINE(tanh)
#undef FR_DEFINE

#endif
