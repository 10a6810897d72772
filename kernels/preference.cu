// Comparison losses over sequence scores: loss and logit of every comparison, the gradient of every score, and sums per
// kind.
//
// One block does the work, whatever the grid: a batch has at most a few thousand comparisons and the sums are in
// comparison order, in f64. Sequences are in range and `uses` lists every term once: what packs a batch has checked
// them. The rules on weight 0 and on values that are not finite are those of the contract. Cost: the tables are read
// two or three times from cache; time is that of a few passes over comparisons / 256.
#include "common.cuh"

constexpr int PREFERENCE_THREADS = 256;
/// Term slots of a comparison, and kinds of comparisons.
EXPORT constexpr int TERMS = 4, KINDS = 3;
/// Fields of a row of `sums`.
EXPORT enum SumField : int { SUM_LOSS, SUM_COUNT, SUM_CORRECT, SUM_TIES, SUM_LOGIT };
EXPORT constexpr int SUM_FIELDS = 5;
EXPORT enum Curve : int { SIGMOID, ROBUST, HINGE, IPO };

struct Point {
    float value, slope;
};

/// f(z) and f'(z) of SIGMOID and ROBUST with smoothing e; rest = 1 - e and norm = 1 - 2e. At e = 0 the smoothed terms are left
/// out, because 0 softplus(inf) would be NaN.
DEVICE Point logistic_at(bool robust, float e, float rest, float norm, float z) {
    // softplus(-z), softplus(z), sigmoid(-z), sigmoid(z) through one exponential that cannot overflow.
    float power = expf(-fabsf(z));
    float tail = log1pf(power), large = 1.0f / (1.0f + power), small = power / (1.0f + power);
    bool right = z >= 0.0f;
    float lower = right ? tail : tail - z, upper = right ? z + tail : tail;
    float sigmoid_lower = right ? small : large, sigmoid_upper = right ? large : small;
    if (e == 0.0f) {
        return {lower, -sigmoid_lower};
    }
    if (!robust) {
        return {rest * lower + e * upper, e * sigmoid_upper - rest * sigmoid_lower};
    }
    return {(rest * lower - e * upper) / norm, (-rest * sigmoid_lower - e * sigmoid_upper) / norm};
}

/// f(z) and f'(z) of a curve with smoothing e; the other arguments as in logistic_at.
DEVICE Point curve_at(Curve curve, float e, float rest, float norm, float z, float beta) {
    switch (curve) {
        case SIGMOID:
        case ROBUST:
            return logistic_at(curve == ROBUST, e, rest, norm, z);
        case HINGE:
            // NaN is neither above nor below.
            return z < 1.0f ? Point{1.0f - z, -1.0f} : z >= 1.0f ? Point{0.0f, 0.0f} : Point{z, z};
        case IPO: {
            float distance = (z - 0.5f) / beta;
            return {distance * distance, 2.0f * distance / beta};
        }
    }
    trap("preference_fwd: an unknown curve");
    return {};
}

DEVICE bool finite(float x) {
    return x - x == 0.0f;
}

KERNEL(256, preference_fwd)(const float* score,          // (seqs)
                            const float* reference,      // (seqs), may be absent
                            const int* term_sequence,    // (comparisons, TERMS), -1 in unused slots
                            const int* term_sign,        // (comparisons, TERMS), +-1, or +-2 for a detached term
                            const int* kind,             // (comparisons)
                            const float* scale,          // (comparisons)
                            const float* margin,         // (comparisons)
                            const float* weight,         // (comparisons)
                            const float* detached_clip,  // (comparisons, 2)
                            const float* kind_scale,     // (KINDS)
                            const int* use_offsets,      // (seqs + 1)
                            const int* uses,             // (terms used)
                            const float* direct,         // (seqs), may be absent
                            float* loss,                 // (comparisons)
                            float* logit,                // (comparisons)
                            float* dscore,               // (seqs)
                            float* sums,                 // (KINDS, SUM_FIELDS)
                            float* slopes,               // (comparisons) scratch
                            float* center_slopes,                // (comparisons) scratch
                            int seqs, int comparisons, Curve curve, float smoothing, float rest, float norm,
                            float center) {
    if (blockIdx.x != 0) {
        return;
    }
    for (int c = int(threadIdx.x); c < comparisons; c += PREFERENCE_THREADS) {
        // Trained and detached terms, each signed and scaled.
        float trained = 0.0f, detached = 0.0f, both = 0.0f;
        int terms = 0;
#pragma unroll
        for (int slot = c * TERMS; slot < (c + 1) * TERMS; ++slot) {
            int s = term_sequence[slot];
            if (s < 0) {
                continue;
            }
            int sign = term_sign[slot];
            float rho = scale[c] * (score[s] - (reference == nullptr ? 0.0f : reference[s]));
            rho = sign < 0 ? -rho : rho;
            bool is_detached = sign == 2 || sign == -2;
            trained += is_detached ? 0.0f : rho;
            detached += is_detached ? rho : 0.0f;
            both += score[s];
            ++terms;
        }
        // NaN passes both bounds.
        float low = detached_clip[2 * c], high = detached_clip[2 * c + 1];
        detached = detached < low ? low : detached;
        detached = detached > high ? high : detached;
        float total = trained + detached;
        bool centred = center != 0.0f && kind[c] == 0 && terms == 2;
        both = centred ? both : 0.0f;
        float value = 0.0f, slope = 0.0f;
        if (weight[c] != 0.0f) {
            Point point = curve_at(curve, smoothing, rest, norm, total - margin[c], scale[c]);
            value = weight[c] * (point.value + center * both * both);
            // A slope may be finite where logit and loss are not (-1 at -inf); the step must not look sound.
            slope = finite(total) && finite(value) ? point.slope : NAN;
        }
        logit[c] = total;
        loss[c] = value;
        slopes[c] = slope;
        center_slopes[c] = 2.0f * center * both;
    }
    // The numbers of every comparison are there before the sequences gather them.
    sync_block();
    for (int s = int(threadIdx.x); s < seqs; s += PREFERENCE_THREADS) {
        float sum = direct == nullptr ? 0.0f : direct[s];
        int end = use_offsets[s + 1];
        for (int use = use_offsets[s]; use < end; ++use) {
            int slot = uses[use], c = slot / TERMS;
            if (weight[c] == 0.0f) {
                continue;
            }
            int sign = term_sign[slot];
            float trained = sign == 2 || sign == -2 ? 0.0f : float(sign) * scale[c] * slopes[c];
            sum += kind_scale[kind[c]] * weight[c] * (trained + center_slopes[c]);
        }
        dscore[s] = sum;
    }
    int entry = int(threadIdx.x);
    if (entry >= KINDS * SUM_FIELDS) {
        return;
    }
    int field = entry % SUM_FIELDS;
    double sum = 0.0;
    for (int c = 0; c < comparisons; ++c) {
        if (kind[c] != entry / SUM_FIELDS) {
            continue;
        }
        float x = logit[c];
        float counts = field == SUM_COUNT ? 1.0f : field == SUM_CORRECT ? float(x > 0.0f) : float(x == 0.0f);
        sum += double(field == SUM_LOSS ? loss[c] : field == SUM_LOGIT ? x : counts);
    }
    sums[entry] = float(sum);
}
