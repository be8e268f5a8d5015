/*
 * Activations and their slopes, for the backward pass: both from the sum that the tape has, by the same quotients as
 * forward.
 *
 *   sigmoid' = n (d - n) / d^2          of sigmoid = n / d
 *   tanh'    = 4 (d - 1) / d^2          of tanh = (d - 2) / d
 *
 * Numerics: no 1 - y, which loses digits where y is near 1. At a kink the slope is that of PyTorch: 0 of relu at 0;
 * hard sigmoid and clips let a gradient through only strictly inside.
 */
#ifndef FR_SLOPES_H
#define FR_SLOPES_H

typedef struct {
    vf value, slope;
} fr_slope;

/* `v` where |sum| is below the limit; 0 elsewhere. */
FR_INLINE vf fr_inside(vf sum, double limit, vf v)
{
    return vf_less(vf_set1((float)-limit), sum, vf_less(sum, vf_set1((float)limit), v));
}

FR_INLINE fr_slope fr_sigmoid_slope(fr_quotient q)
{
    const vf part = vf_div(vf_set1(1.0f), q.d), value = vf_mul(q.n, part);
    return (fr_slope){value, vf_mul(value, vf_mul(vf_sub(q.d, q.n), part))};
}

FR_INLINE fr_slope fr_tanh_slope(vf sum)
{
    const vf one = vf_set1(1.0f);
    const fr_quotient q = fr_tanh(sum);
    const vf part = vf_div(one, q.d);
    return (fr_slope){vf_mul(q.n, part), vf_mul(vf_mul(vf_set1(4.0f), vf_mul(vf_sub(q.d, one), part)), part)};
}

FR_INLINE fr_slope fr_state_slope(int64_t activation, vf sum)
{
    const vf one = vf_set1(1.0f), zero = vf_set1(0.0f);
    if (activation == FR_RELU)
        return (fr_slope){vf_max(zero, sum), vf_less(zero, sum, one)};
    return activation == FR_IDENTITY ? (fr_slope){sum, one} : fr_tanh_slope(sum);
}

/* A gate and its slope. */
FR_INLINE fr_slope fr_gate_slope(const fr_panels *w, bool defaults, vf sum)
{
    if (defaults)
        return fr_sigmoid_slope(fr_sigmoid(sum));
    const vf limited = fr_limited(sum, w->clip);
    fr_slope gate;
    if (w->gate_activation == FR_SIGMOID) {
        gate = fr_sigmoid_slope(fr_unbounded(w) ? fr_full_sigmoid(limited) : fr_sigmoid(limited));
    } else {
        const vf alpha = vf_set1((float)w->alpha), zero = vf_set1(0.0f), one = vf_set1(1.0f);
        const vf line = vf_fma(alpha, limited, vf_set1((float)w->beta));
        gate = (fr_slope){vf_max(zero, vf_min(one, line)), vf_less(zero, line, vf_less(line, one, alpha))};
    }
    gate.slope = fr_inside(sum, w->clip, gate.slope);
    return gate;
}

/* The candidate and its slope. */
FR_INLINE fr_slope fr_candidate_slope(const fr_panels *w, bool defaults, vf sum)
{
    if (defaults)
        return fr_tanh_slope(sum);
    fr_slope candidate = fr_state_slope(w->state_activation, fr_limited(sum, w->clip));
    candidate.slope = fr_inside(sum, w->clip, candidate.slope);
    return candidate;
}

#endif
