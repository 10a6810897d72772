// Reductions of fixed shape: the same additions in the same order whatever the grid, so that results are the same bits.
#pragma once

#include "primitives/warp.cuh"

struct Add {
    DEVICE float operator()(float a, float b) const {
        return a + b;
    }
};

/// The larger; NaN when either is NaN, so that a bad row shows.
struct Max {
    DEVICE float operator()(float a, float b) const {
        return a != a || a > b ? a : b;
    }
};

/// Combines the values of a warp; every lane receives the result. A butterfly over a commutative operation gives all lanes
/// the same bits.
template <class Operation>
DEVICE float reduce_warp(float value, Operation combine) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        value = combine(value, shuffle_xor(value, mask));
    }
    return value;
}

/// Combines the values of a block of THREADS; every thread receives the result. `partial` holds a number for each warp and
/// may be used again by the next reduction.
template <int THREADS, class Operation>
DEVICE float reduce_block(float value, float* partial, Operation combine) {
    constexpr int WARPS = THREADS / WARP;
    value = reduce_warp(value, combine);
    if constexpr (WARPS == 1) {
        return value;
    }
    int warp = int(threadIdx.x) / WARP;
    if (lane_index() == 0) {
        partial[warp] = value;
    }
    // Every warp's number is there before any thread reads them.
    sync_block();
    float result = partial[0];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) {
        result = combine(result, partial[i]);
    }
    // Every thread has read them before the next reduction writes.
    sync_block();
    return result;
}

/// Logsumexp so far, as a maximum and a sum of exponentials below it: log sum exp = max + log(sum).
struct LogSumExp {
    float max, sum;

    /// No term yet.
    DEVICE static LogSumExp empty() {
        return {-INFINITY, 0.0f};
    }

    DEVICE void add(float x) {
        if (x > max) {
            // 1, and NaN for +inf, as in the difference of two infinities.
            sum = sum * expf(max - x) + (x - x + 1.0f);
            max = x;
        } else if (x > -INFINITY) {
            sum += expf(x - max);
        } else if (x != x) {
            max = x;
        }
    }

    /// Terms of both.
    DEVICE static LogSumExp combine(LogSumExp a, LogSumExp b) {
        float max = Max{}(a.max, b.max);
        // Without a term above -inf the differences would be NaN.
        if (max == -INFINITY) {
            return empty();
        }
        float left = a.max == max ? a.sum : a.sum * expf(a.max - max);
        float right = b.max == max ? b.sum : b.sum * expf(b.max - max);
        return {max, left + right};
    }

    DEVICE float value() const {
        return max == -INFINITY ? max : max + logf(sum);
    }
};

/// Joins the terms of a warp; every lane receives the result.
DEVICE LogSumExp combine_warp(LogSumExp terms) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        LogSumExp other{shuffle_xor(terms.max, mask), shuffle_xor(terms.sum, mask)};
        terms = LogSumExp::combine(terms, other);
    }
    return terms;
}
