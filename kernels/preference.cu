// Comparison losses on sequence scores: loss and logit of each comparison, the gradient of each
// score, and sums per kind of comparison.
//
//   for each comparison c (one thread):
//     rho[s] = +-scale (score[s] - reference[s]) for its terms s
//     logit = sum of trained rho + clamp(sum of detached rho)
//     loss = weight (f(logit - margin) + center (sum of scores)²); keep f'
//     the center term is only for kind 0 with two terms
//   block barrier
//   for each sequence s (one thread):
//     dscore[s] = direct[s] + sum over its terms of kind_scale weight (f' sign scale + 2 center sum)
//   for each (kind, field) (one thread): sums over the comparisons in order
//
// Departures from a tensor-library loss: the gradient is a gather over the terms of a sequence
// (`uses`) instead of a scatter, so it needs no atomics. A term can be detached: it moves the
// logit, within bounds, but receives no gradient.
//
// One block does the work, whatever the grid: a batch has at most a few thousand comparisons, and
// the sums are in comparison order, in f64. The batch packer guarantees that sequence indices are
// in range and that `uses` lists every term once. Weight 0 and values that are not finite follow
// the contract. Cost: the tables are read two or three times from cache, in comparisons / 256
// rounds per pass.
#include "common.cuh"

constexpr int PREFERENCE_THREADS = 256;
/// Term slots per comparison, and kinds of comparisons.
EXPORT constexpr int TERMS = 4, KINDS = 3;
/// Fields of a row of `sums`.
EXPORT enum SumField : int { SUM_LOSS, SUM_COUNT, SUM_CORRECT, SUM_TIES, SUM_LOGIT };
EXPORT constexpr int SUM_FIELDS = 5;

EXPORT enum Curve : int { SIGMOID, ROBUST, HINGE, IPO };

/// f(z) and f'(z).
struct Point {
    float value, slope;
};

/// Value and slope of SIGMOID and ROBUST at z; e is the label smoothing, rest = 1 - e, norm = 1 - 2e.
/// With e = 0 the smoothing terms are skipped, because 0 softplus(inf) would be NaN.
DEVICE Point logistic_at(bool robust, float e, float rest, float norm, float z) {
    // softplus(-z), softplus(z), sigmoid(-z), sigmoid(z) from one exponential that cannot overflow.
    float decay = expf(-fabsf(z));
    float tail = log1pf(decay), large = 1.0f / (1.0f + decay), small = decay / (1.0f + decay);
    bool positive = z >= 0.0f;
    float lower = positive ? tail : tail - z, upper = positive ? z + tail : tail;
    float sigmoid_lower = positive ? small : large, sigmoid_upper = positive ? large : small;
    if (e == 0.0f) {
        return {lower, -sigmoid_lower};
    }
    if (!robust) {
        return {rest * lower + e * upper, e * sigmoid_upper - rest * sigmoid_lower};
    }
    return {(rest * lower - e * upper) / norm, (-rest * sigmoid_lower - e * sigmoid_upper) / norm};
}

/// Value and slope of a curve at z; the other arguments as in logistic_at.
DEVICE Point curve_at(Curve curve, float e, float rest, float norm, float z, float beta) {
    switch (curve) {
        case SIGMOID:
        case ROBUST:
            return logistic_at(curve == ROBUST, e, rest, norm, z);
        case HINGE:
            // The last branch is for NaN, which both comparisons reject.
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
                            const float* reference,      // (seqs), may be null
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
                            const float* direct,         // (seqs), may be null
                            float* loss,                 // (comparisons)
                            float* logit,                // (comparisons)
                            float* dscore,               // (seqs)
                            float* sums,                 // (KINDS, SUM_FIELDS)
                            float* slopes,               // (comparisons) scratch
                            float* center_slopes,        // (comparisons) scratch
                            int seqs, int comparisons, Curve curve, float smoothing, float rest, float norm,
                            float center) {
    if (blockIdx.x != 0) {
        return;
    }
    for (int c = int(threadIdx.x); c < comparisons; c += PREFERENCE_THREADS) {
        // Signed and scaled sums of trained and of detached terms.
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
        // NaN passes through both bounds.
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
            // The slope can be finite when logit or loss is not (-1 at -inf). NaN makes the
            // gradient norm reject the step.
            slope = finite(total) && finite(value) ? point.slope : NAN;
        }
        logit[c] = total;
        loss[c] = value;
        slopes[c] = slope;
        center_slopes[c] = 2.0f * center * both;
    }
    // All comparisons are written before sequences gather from them.
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
