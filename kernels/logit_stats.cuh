// Statistics of a row of logits z for logging: entropy, mean, and whether the target is the most likely token.
//
//   weighted = sum of (z - m) e^(z - m), with m the maximum of the row's LogSumExp
//   total    = sum of z
//   rival    = maximum of z over the tokens after the target, and of the next float above z over those
//              before it: among equal logits, the first one counts as the most likely
//   entropy = ln(sum e^(z - m)) - weighted / sum e^(z - m);  mean = total / vocab;  is_top1 = z[target] >= rival
//
// The statistics of the parts of a row are combined in the same order as the LogSumExp of these parts.
#pragma once

#include "reduce.cuh"

/// Smallest float above a finite x; other x are unchanged.
DEVICE float next_up(float x) {
    if (x - x != 0.0f) {
        return x;
    }
    // -0 becomes 0, so that the bits of all x >= 0 ascend with x.
    uint32_t bits = bits_of_float(x + 0.0f);
    return float_of_bits(x >= 0.0f ? bits + 1u : bits - 1u);
}

struct LogitStats {
    float weighted, total, rival;

    /// Statistics of no logits.
    DEVICE static LogitStats empty() {
        return {0.0f, 0.0f, -INFINITY};
    }

    /// Combines the statistics of two parts. `of_a` and `of_b` are the LogSumExp of the parts, `all` is that
    /// of both.
    DEVICE static LogitStats combine(LogitStats a, LogSumExp of_a, LogitStats b, LogSumExp of_b, LogSumExp all) {
        return {about(a.weighted, of_a, all.max) + about(b.weighted, of_b, all.max), a.total + b.total,
                Max{}(a.rival, b.rival)};
    }

    /// `weighted` of a part, relative to a different maximum `max`.
    DEVICE static float about(float weighted, LogSumExp of, float max) {
        // A part in which all logits are -inf has no terms.
        if (of.max == max || of.max == -INFINITY) {
            return weighted;
        }
        return expf(of.max - max) * (weighted + (of.max - max) * of.sum);
    }

    /// Stores entropy, mean and is_top1 of a whole row to to[0], to[stride] and to[2 stride]. `sum` is
    /// the sum of exponentials and `log_sum` its logarithm; `hit` is the target's logit.
    DEVICE void store(float* to, long long stride, float log_sum, float sum, float hit, int vocab) const {
        to[0] = log_sum - weighted / sum;
        to[stride] = total / float(vocab);
        to[2 * stride] = sum == sum && hit >= rival ? 1.0f : 0.0f;
    }
};
