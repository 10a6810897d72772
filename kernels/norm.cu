// RMSNorm with residual add (arXiv 1910.07467): forward, input gradient, weight gradient.
//
// A block takes rows by stride; a row is summed by the whole block in one fixed order, so that neither the grid nor the
// other rows of the call matter. Cost: every operand is read once from memory; the row itself twice, the second time from
// cache.
#include "common.cuh"
#include "reduce.cuh"
#include "vec.cuh"

constexpr int NORM_THREADS = 128;

/// sum = x + residual (x without one), rstd = 1 / sqrt(mean(sum²) + eps), y = sum rstd weight.
template <class T>
DEVICE void norm_fwd(const T* x, const T* residual, const T* weight, T* sum, T* y, float* rstd, int tokens, int hidden,
                     float eps) {
    SHARED(float, partial, NORM_THREADS / WARP);
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(x, hidden) && wide(y, hidden) && wide(weight, 0) && wide(residual, hidden) && wide(sum, hidden);
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* in = x + token * hidden;
        const T* add = residual == nullptr ? nullptr : residual + token * hidden;
        T* total = sum == nullptr ? nullptr : sum + token * hidden;
        T* out = y + token * hidden;
        float squares = 0.0f;
        if (by_lane) {
            for (int h = int(threadIdx.x) * N; h < hidden; h += NORM_THREADS * N) {
                Numbers<T> value = load_numbers(in + h);
                if (add != nullptr) {
                    Numbers<T> other = load_numbers(add + h);
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        value.x[i] = to_float(from_float<T>(value.x[i] + other.x[i]));
                    }
                    store_numbers(total + h, value);
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    squares += value.x[i] * value.x[i];
                }
            }
        } else {
            // The same thread takes the same elements in the same order as above.
            for (int h = int(threadIdx.x) * N; h < hidden; h += NORM_THREADS * N) {
                for (int i = h; i < min_of(h + N, hidden); ++i) {
                    float value = to_float(in[i]);
                    if (add != nullptr) {
                        T rounded = from_float<T>(value + to_float(add[i]));
                        value = to_float(rounded);
                        total[i] = rounded;
                    }
                    squares += value * value;
                }
            }
        }
        float scale = 1.0f / sqrtf(reduce_block<NORM_THREADS>(squares, partial, Add{}) / float(hidden) + eps);
        if (threadIdx.x == 0) {
            rstd[token] = scale;
        }
        // Each thread reads back what it wrote itself.
        const T* row = total == nullptr ? in : total;
        for (int h = int(threadIdx.x) * N; h < hidden; h += NORM_THREADS * N) {
            if (by_lane) {
                Numbers<T> value = load_numbers(row + h), factor = load_numbers(weight + h);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    value.x[i] = value.x[i] * scale * factor.x[i];
                }
                store_numbers(out + h, value);
            } else {
                for (int i = h; i < min_of(h + N, hidden); ++i) {
                    out[i] = from_float<T>(to_float(row[i]) * scale * to_float(weight[i]));
                }
            }
        }
    }
}

KERNEL(128, norm_fwd_f32)(const float* x,         // (tokens, hidden)
                          const float* residual,  // (tokens, hidden), may be absent together with sum
                          const float* weight,    // (hidden)
                          float* sum,             // (tokens, hidden)
                          float* y,               // (tokens, hidden)
                          float* rstd,            // (tokens)
                          int tokens, int hidden, float eps) {
    norm_fwd(x, residual, weight, sum, y, rstd, tokens, hidden, eps);
}

KERNEL(128, norm_fwd_bf16)(const bf16* x, const bf16* residual, const bf16* weight, bf16* sum, bf16* y, float* rstd,
                           int tokens, int hidden, float eps) {
    norm_fwd(x, residual, weight, sum, y, rstd, tokens, hidden, eps);
}
