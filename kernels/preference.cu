// Comparison losses on sequence scores: loss and logit of each comparison, the gradient of each
// score, and sums per kind of comparison.
//
//   for each comparison c (one thread):
//     rho[s] = scale link(score[s] - reference[s]) for its terms s, times inverse_rows[s] if given
//     logit = signed sum of trained rho + clamp(signed sum of detached rho)
//     a, b = sums of trained rho with a positive and with a negative sign
//     loss = weight w (f(logit - margin, a, b) + center (sum of scores)²); keep df/da and df/db
//     the center term is only for kind 0 with two terms
//   block barrier
//   for each sequence s (one thread):
//     dscore[s] = direct[s]
//                 + sum over its terms of kind_scale weight w (df scale link' + 2 center sum)
//   for each (kind, field) (one thread): sums over the comparisons in order
//
// AOT sorts x, the signed sum of scaled scores, and y, the signed sum of scaled references, over the
// comparisons of a kind with non-zero weight. AOT_UNPAIRED sorts a and b. The curve's argument is x - y at
// equal rank. A rank is a count over all comparisons, so a sort costs comparisons² / 256 steps.
//
// KTO's argument is z - sign scale KL, where KL is the mean of score - reference over the detached terms of
// the batch, at least 0. Every thread sums it in the same order.
//
// With `doubled`, the weight of c is multiplied by exp(sum over its terms of (doubled - plain)).
//
// A call computes one curve f of weight w. A loss of several curves needs one call per curve. The first call
// writes loss, logit and dscore. Each later call adds its loss and receives dscore as its direct gradient.
//
// Departures from a tensor-library loss: the gradient is a gather over the terms of a sequence
// (`uses`) instead of a scatter, so it needs no atomics. A term can be detached: it moves the
// logit, within bounds, but receives no gradient.
//
// One block does the work, whatever the grid: a batch has at most a few thousand comparisons, and
// the sums are in comparison order, in f64. The batch packer guarantees that sequence indices are
// in range and that `uses` lists every term once. Weight 0 and values that are not finite are handled
// as in src/backend/contract/preference.rs. Cost: the tables are read two or three times from cache,
// in comparisons / 256 rounds per pass.
#include "common.cuh"

constexpr int PREFERENCE_THREADS = 256;
/// Term slots per comparison, and kinds of comparisons.
EXPORT constexpr int TERMS = 4, KINDS = 3;
/// Fields of a row of `sums`.
EXPORT enum SumField : int { SUM_LOSS, SUM_COUNT, SUM_CORRECT, SUM_TIES, SUM_LOGIT };
EXPORT constexpr int SUM_FIELDS = 5;

EXPORT enum Curve : int {
    SIGMOID,
    ROBUST,
    HINGE,
    IPO,
    EXO,
    DISCO_POP,
    APO_ZERO,
    APO_DOWN,
    NCA_PAIR,
    BCO_PAIR,
    SPPO_HARD,
    AOT,
    AOT_UNPAIRED,
    KTO,
    APO_ZERO_UNPAIRED
};
EXPORT enum Link : int { IDENTITY, FORWARD_KL, JENSEN_SHANNON, ALPHA, ODDS };

/// Bound on the exponent of the link ALPHA.
EXPORT constexpr int ALPHA_LIMIT = 80;
constexpr float LN_TWO = 0.693147180559945309f;

/// softplus and sigmoid of -z (lower) and of z (upper), from one exponential that cannot overflow.
struct Logistic {
    float softplus_lower, softplus_upper, lower, upper;
};

DEVICE Logistic logistic(float z) {
    float decay = expf(-fabsf(z));
    float tail = log1pf(decay), large = 1.0f / (1.0f + decay), small = decay / (1.0f + decay);
    bool positive = z >= 0.0f;
    return {positive ? tail : tail - z, positive ? z + tail : tail, positive ? small : large,
            positive ? large : small};
}

/// Value of a curve, and its derivatives with respect to the rho of positive and of negative terms.
struct Point {
    float value, positive, negative;
};

/// Point of a curve that depends on z only.
DEVICE Point of_z(float value, float slope) {
    return {value, slope, -slope};
}

/// Parameters of a curve: the label smoothing e with 1 - e and 1 - 2e, the temperature of DISCO_POP,
/// and beta, the scale of the comparison.
struct Shape {
    float e, rest, norm, temperature, beta;
};

/// SIGMOID, ROBUST and EXO at z. With e = 0 the smoothing terms are skipped, because
/// 0 softplus(inf) would be NaN.
DEVICE Point smoothed_at(Curve curve, Shape p, float z) {
    Logistic at = logistic(z);
    if (curve == EXO) {
        float log_kept = log1pf(-p.e), log_flipped = logf(p.e);
        float value = at.upper * (-at.softplus_lower - log_kept) + at.lower * (-at.softplus_upper - log_flipped);
        return of_z(value, at.upper * at.lower * (z - (log_kept - log_flipped)));
    }
    if (p.e == 0.0f) {
        return of_z(at.softplus_lower, -at.lower);
    }
    if (curve == SIGMOID) {
        return of_z(p.rest * at.softplus_lower + p.e * at.softplus_upper, p.e * at.upper - p.rest * at.lower);
    }
    return of_z((p.rest * at.softplus_lower - p.e * at.softplus_upper) / p.norm,
                (-p.rest * at.lower - p.e * at.upper) / p.norm);
}

/// DISCO_POP at z. exp(-z) is not computed separately, because it would overflow where its factor is 0.
DEVICE Point disco_pop_at(float temperature, float z) {
    Logistic at = logistic(z), mix = logistic(z / temperature);
    float exponential = expf(-z - mix.softplus_lower);
    float logistic_slope = -mix.lower * at.lower - at.softplus_lower * mix.upper * mix.lower / temperature;
    return of_z(mix.lower * at.softplus_lower + exponential,
                logistic_slope + exponential * (mix.lower / temperature - 1.0f));
}

/// Value and slopes of a curve at the argument z, or at the sums a and b of positive and negative
/// terms.
DEVICE Point curve_at(Curve curve, Shape p, float z, float a, float b) {
    switch (curve) {
        case SIGMOID:
        case ROBUST:
        case EXO:
            return smoothed_at(curve, p, z);
        case AOT:
        case AOT_UNPAIRED:
            return smoothed_at(SIGMOID, p, z);
        case HINGE:
            // The last branch is for NaN, for which both comparisons are false.
            return z < 1.0f ? of_z(1.0f - z, -1.0f) : z >= 1.0f ? of_z(0.0f, 0.0f) : of_z(z, z);
        case IPO: {
            float distance = (z - 0.5f) / p.beta;
            return of_z(distance * distance, 2.0f * distance / p.beta);
        }
        case DISCO_POP:
            return disco_pop_at(p.temperature, z);
        case APO_ZERO: {
            Logistic win = logistic(a), lose = logistic(b);
            return {win.lower + lose.upper, -win.upper * win.lower, lose.upper * lose.lower};
        }
        case APO_DOWN: {
            Logistic win = logistic(a), gap = logistic(a - b);
            float own = win.upper * win.lower, of_gap = gap.upper * gap.lower;
            return {win.upper + gap.lower, own - of_gap, of_gap};
        }
        case NCA_PAIR: {
            Logistic win = logistic(a), lose = logistic(b);
            return {win.softplus_lower + 0.5f * win.softplus_upper + 0.5f * lose.softplus_upper,
                    0.5f * win.upper - win.lower, 0.5f * lose.upper};
        }
        case BCO_PAIR: {
            Logistic win = logistic(a), lose = logistic(b);
            return {win.softplus_lower + lose.softplus_upper, -win.lower, lose.upper};
        }
        case SPPO_HARD: {
            float win = (a - 0.5f) / p.beta, lose = (b + 0.5f) / p.beta;
            return {win * win + lose * lose, 2.0f * win / p.beta, 2.0f * lose / p.beta};
        }
        case KTO:
        case APO_ZERO_UNPAIRED: {
            Logistic at = logistic(z);
            return of_z(at.lower, -at.upper * at.lower);
        }
    }
    trap("preference_fwd: an unknown curve");
    return {};
}

/// Value and slope of a link.
struct Linked {
    float value, slope;
};

/// Link at u; `power` is alpha - 1.
DEVICE Linked link_at(Link link, float power, float u) {
    switch (link) {
        case IDENTITY:
            return {u, 1.0f};
        case FORWARD_KL:
            return {-expm1f(-u), expf(-u)};
        case JENSEN_SHANNON: {
            Logistic at = logistic(u);
            return {LN_TWO - at.softplus_lower, at.lower};
        }
        case ALPHA: {
            // NaN is not above the limit, so it stays NaN.
            bool above = power * u > ALPHA_LIMIT;
            float exponent = above ? ALPHA_LIMIT : power * u;
            return {expm1f(exponent) / power, above ? 0.0f : expf(exponent)};
        }
        case ODDS: {
            float log_rest = u > -LN_TWO ? logf(-expm1f(u)) : log1pf(-expf(u));
            return {u - log_rest, -1.0f / expm1f(u)};
        }
    }
    trap("preference_fwd: an unknown link");
    return {};
}

DEVICE float ratio_of(const float* score, const float* reference, int s) {
    return score[s] - (reference == nullptr ? 0.0f : reference[s]);
}

DEVICE bool finite(float x) {
    return x - x == 0.0f;
}

/// Whether `value` sorts before `other`; `earlier` is true if the comparison of `value` has the lower index. Values
/// ascend and NaN comes last; equal values are ordered by index, so no two comparisons have the same rank.
DEVICE bool precedes(float value, float other, bool earlier) {
    bool is_nan = value != value, other_is_nan = other != other;
    if (is_nan || other_is_nan) {
        return is_nan == other_is_nan ? earlier : other_is_nan;
    }
    return value < other || (value == other && earlier);
}

/// Rank of comparison c by kind, then by value, among the comparisons with non-zero weight. Equal values are in
/// the order of the comparisons.
DEVICE int rank_of(const float* values, const int* kind, const float* weight, int comparisons, int c) {
    int rank = 0;
    for (int other = 0; other < comparisons; ++other) {
        bool smaller = precedes(values[other], values[c], other < c);
        bool before = kind[other] < kind[c] || (kind[other] == kind[c] && smaller);
        rank += weight[other] != 0.0f && before ? 1 : 0;
    }
    return rank;
}

KERNEL(256, preference_fwd)(const float* score,          // (seqs)
                            const float* reference,      // (seqs), may be null
                            const float* inverse_rows,   // (seqs), may be null
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
                            const float* doubled,        // (seqs), may be null
                            const float* plain,          // (seqs), null if `doubled` is
                            const float* direct,         // (seqs), may be null
                            float* loss,                 // (comparisons)
                            float* logit,                // (comparisons)
                            float* dscore,               // (seqs)
                            float* sums,                 // (KINDS, SUM_FIELDS)
                            float* positive_slopes,      // (comparisons) scratch
                            float* negative_slopes,      // (comparisons) scratch
                            float* center_slopes,        // (comparisons) scratch
                            float* x_of,                 // (comparisons) scratch of AOT, else empty
                            float* y_of,                 // (comparisons) scratch of AOT, else empty
                            float* sorted_x,             // (comparisons) scratch of AOT, else empty
                            float* sorted_y,             // (comparisons) scratch of AOT, else empty
                            int seqs, int comparisons, Curve curve, float smoothing, float rest, float norm,
                            float temperature, Link link, float power, float curve_weight, int is_first,
                            float center) {
    if (blockIdx.x != 0) {
        return;
    }
    bool sorts = curve == AOT || curve == AOT_UNPAIRED;
    if (sorts) {
        for (int c = int(threadIdx.x); c < comparisons; c += PREFERENCE_THREADS) {
            float x = 0.0f, y = 0.0f;
            for (int slot = c * TERMS; slot < (c + 1) * TERMS; ++slot) {
                int s = term_sequence[slot], sign = term_sign[slot];
                if (s < 0 || (sign != 1 && sign != -1)) {
                    continue;
                }
                float scaled = scale[c] * score[s];
                float constant = scale[c] * (reference == nullptr ? 0.0f : reference[s]);
                float rho = scale[c] * ratio_of(score, reference, s);
                bool is_paired = curve == AOT;
                x += is_paired ? float(sign) * scaled : sign == 1 ? rho : 0.0f;
                y += is_paired ? float(sign) * constant : sign == -1 ? rho : 0.0f;
            }
            x_of[c] = x;
            y_of[c] = y;
        }
        // Waits until all values are written, because a rank compares all of them.
        sync_block();
        for (int c = int(threadIdx.x); c < comparisons; c += PREFERENCE_THREADS) {
            if (weight[c] != 0.0f) {
                sorted_x[rank_of(x_of, kind, weight, comparisons, c)] = x_of[c];
                sorted_y[rank_of(y_of, kind, weight, comparisons, c)] = y_of[c];
            }
        }
        // Waits until all sorted values are written.
        sync_block();
    }
    float divergence = 0.0f;
    if (curve == KTO) {
        double total = 0.0;
        int count = 0;
        for (int slot = 0; slot < comparisons * TERMS; ++slot) {
            int s = term_sequence[slot], sign = term_sign[slot];
            if (s >= 0 && (sign == 2 || sign == -2)) {
                total += double(ratio_of(score, reference, s));
                ++count;
            }
        }
        divergence = float(total / double(max_of(count, 1)));
        // NaN stays NaN.
        divergence = divergence < 0.0f ? 0.0f : divergence;
    }
    for (int c = int(threadIdx.x); c < comparisons; c += PREFERENCE_THREADS) {
        // Signed and scaled sums of trained and of detached terms, plain sum of all scores, and scaled sums of
        // the trained terms with a positive and with a negative sign.
        float trained = 0.0f, detached = 0.0f, both = 0.0f, positive = 0.0f, negative = 0.0f;
        // Sum of the signs of trained terms, and log of the factor on the weight.
        float signs = 0.0f, log_factor = 0.0f;
        int terms = 0;
#pragma unroll
        for (int slot = c * TERMS; slot < (c + 1) * TERMS; ++slot) {
            int s = term_sequence[slot];
            if (s < 0) {
                continue;
            }
            int sign = term_sign[slot];
            float factor = inverse_rows == nullptr ? scale[c] : scale[c] * inverse_rows[s];
            float rho = factor * link_at(link, power, ratio_of(score, reference, s)).value;
            positive += sign == 1 ? rho : 0.0f;
            negative += sign == -1 ? rho : 0.0f;
            rho = sign < 0 ? -rho : rho;
            bool is_detached = sign == 2 || sign == -2;
            trained += is_detached ? 0.0f : rho;
            detached += is_detached ? rho : 0.0f;
            signs += is_detached ? 0.0f : float(sign);
            log_factor += doubled == nullptr ? 0.0f : doubled[s] - plain[s];
            both += score[s];
            ++terms;
        }
        float factor_of_terms = doubled == nullptr ? 1.0f : expf(log_factor);
        // NaN passes through both bounds.
        float low = detached_clip[2 * c], high = detached_clip[2 * c + 1];
        detached = detached < low ? low : detached;
        detached = detached > high ? high : detached;
        float total = trained + detached;
        bool centred = center != 0.0f && kind[c] == 0 && terms == 2;
        both = centred ? both : 0.0f;
        Point point = {0.0f, 0.0f, 0.0f};
        float value = 0.0f;
        if (weight[c] != 0.0f) {
            Shape shape = {smoothing, rest, norm, temperature, scale[c]};
            float z = total - margin[c];
            if (curve == KTO) {
                z -= signs * scale[c] * divergence;
            }
            if (sorts) {
                z = x_of[c] - sorted_y[rank_of(x_of, kind, weight, comparisons, c)];
            }
            point = curve_at(curve, shape, z, positive, negative);
            if (curve == AOT_UNPAIRED) {
                float of_negative = sorted_x[rank_of(y_of, kind, weight, comparisons, c)] - y_of[c];
                point.negative = curve_at(curve, shape, of_negative, positive, negative).negative;
            }
            value = weight[c] * curve_weight * factor_of_terms * (point.value + center * both * both);
            // The slopes can be finite when logit or loss is not (-1 at -inf). NaN slopes make the
            // gradient norm reject the step.
            if (!(finite(total) && finite(value))) {
                point = {value, NAN, NAN};
            }
        }
        if (is_first != 0) {
            logit[c] = total;
        }
        loss[c] = is_first != 0 ? value : loss[c] + value;
        positive_slopes[c] = factor_of_terms * point.positive;
        negative_slopes[c] = factor_of_terms * point.negative;
        center_slopes[c] = factor_of_terms * (2.0f * center * both);
    }
    // Waits until the slopes of all comparisons are written, because sequences gather from them.
    sync_block();
    for (int s = int(threadIdx.x); s < seqs; s += PREFERENCE_THREADS) {
        float sum = direct == nullptr ? 0.0f : direct[s];
        float slope = link_at(link, power, ratio_of(score, reference, s)).slope;
        int end = use_offsets[s + 1];
        for (int use = use_offsets[s]; use < end; ++use) {
            int slot = uses[use], c = slot / TERMS;
            if (weight[c] == 0.0f) {
                continue;
            }
            int sign = term_sign[slot];
            float factor = inverse_rows == nullptr ? scale[c] : scale[c] * inverse_rows[s];
            float trained = factor * slope * (sign < 0 ? negative_slopes[c] : positive_slopes[c]);
            trained = sign == 2 || sign == -2 ? 0.0f : trained;
            sum += kind_scale[kind[c]] * (weight[c] * curve_weight) * (trained + center_slopes[c]);
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
