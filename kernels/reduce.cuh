// Reductions of fixed shape. They apply the same operations in the same order whatever the grid, so results have
// the same bits.
#pragma once

#include "primitives/warp.cuh"

struct Add {
    DEVICE float operator()(float a, float b) const {
        return a + b;
    }
};

/// Maximum that propagates NaN, so that NaN in a row is not hidden.
struct Max {
    DEVICE float operator()(float a, float b) const {
        return a != a || a > b ? a : b;
    }
};

/// Warp reduction; every lane gets the result. A butterfly over a commutative operation gives all
/// lanes the same bits.
template <class Operation>
DEVICE float reduce_warp(float value, Operation combine) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        value = combine(value, shuffle_xor(value, mask));
    }
    return value;
}

/// Block reduction over THREADS threads; every thread gets the result. `partial` holds one number
/// per warp and can be reused by the next reduction.
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
    // Waits until all warps' numbers are written.
    sync_block();
    float result = partial[0];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) {
        result = combine(result, partial[i]);
    }
    // Waits until all threads have read the numbers, which the next reduction overwrites.
    sync_block();
    return result;
}

/// Online logsumexp state: maximum, and sum of exponentials relative to it. logsumexp = max +
/// log(sum).
struct LogSumExp {
    float max, sum;

    /// State of no terms.
    DEVICE static LogSumExp empty() {
        return {-INFINITY, 0.0f};
    }

    DEVICE void add(float x) {
        if (x > max) {
            // x - x + 1 is 1, and NaN for +inf, as exp(inf - inf) would be.
            sum = sum * expf(max - x) + (x - x + 1.0f);
            max = x;
        } else if (x > -INFINITY) {
            sum += expf(x - max);
        } else if (x != x) {
            max = x;
        }
    }

    /// State of the terms of a and of b.
    DEVICE static LogSumExp combine(LogSumExp a, LogSumExp b) {
        float max = Max{}(a.max, b.max);
        // If all terms are -inf, the differences below would be NaN.
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

/// Combines the states of a warp; every lane gets the result.
DEVICE LogSumExp combine_warp(LogSumExp state) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        LogSumExp other{shuffle_xor(state.max, mask), shuffle_xor(state.sum, mask)};
        state = LogSumExp::combine(state, other);
    }
    return state;
}
