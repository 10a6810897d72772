// RMSNorm with residual add (arXiv 1910.07467): forward, input gradient, weight gradient.
//
// A block takes rows by stride; a row is summed by the whole block in one fixed order, so that neither the grid nor the
// other rows of the call matter. The backward takes NORM_SLICE tokens at a time and leaves one partial weight gradient
// for each such slice, which sum_slices adds up. Cost: every operand is read once from memory; the row itself twice,
// the second time from cache.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

constexpr int NORM_THREADS = 128;
/// Tokens of a slice of the weight gradient.
EXPORT constexpr int NORM_SLICE = 16;

/// sum = x + residual (x without one), rstd = 1 / sqrt(mean(sum²) + eps), y = sum rstd weight.
template <class T>
KERNELS(128, norm_fwd, FOR(T: f32 bf16))(const T* x,         // (tokens, hidden)
                                         const T* residual,  // (tokens, hidden), may be absent together with sum
                                         const T* weight,    // (hidden)
                                         T* sum,             // (tokens, hidden)
                                         T* y,               // (tokens, hidden)
                                         float* rstd,        // (tokens)
                                         int tokens, int hidden, float eps) {
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

/// With n = sum rstd and g = dy weight: dsum (+)= rstd (g - n mean(g n)); slices[k] = sum over the tokens of slice k of
/// dy n, in ascending order. The slice's sum grows in shared memory, or in `slices` itself when rows are too long for
/// that; each thread owns columns, so that it needs no barrier.
template <class T>
KERNELS(128, norm_bwd, FOR(T: f32 bf16))(const T* dy,        // (tokens, hidden)
                                         const T* sum,       // (tokens, hidden)
                                         const float* rstd,  // (tokens)
                                         const T* weight,    // (hidden)
                                         T* dsum,            // (tokens, hidden)
                                         float* slices,      // (ceil(tokens / NORM_SLICE), hidden)
                                         int tokens, int hidden, int add,
                                         int in_shared) {  // 1 when the launch gives 4 hidden bytes of shared memory
    SHARED(float, partial, NORM_THREADS / WARP);
    DYNAMIC_SHARED(dynamic);
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane =
        wide(dy, hidden) && wide(sum, hidden) && wide(weight, 0) && wide(dsum, hidden) && wide(slices, hidden);
    int first = int(threadIdx.x) * N;
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, NORM_SLICE); slice += int(gridDim.x)) {
        float* out = slices + (long long)slice * hidden;
        float* dweight = in_shared != 0 ? reinterpret_cast<float*>(dynamic) : out;
        for (int h = first; h < hidden; h += NORM_THREADS * N) {
            float zero[N] = {};
            store_piece(dweight + h, zero, min_of(N, hidden - h), by_lane);
        }
        int end = min_of(tokens, (slice + 1) * NORM_SLICE);
        for (int token = slice * NORM_SLICE; token < end; ++token) {
            long long row = (long long)token * hidden;
            float product = 0.0f;
            for (int h = first; h < hidden; h += NORM_THREADS * N) {
                int valid = min_of(N, hidden - h);
                float d[N], w[N], x[N];
                load_piece(d, dy + row + h, valid, by_lane);
                load_piece(w, weight + h, valid, by_lane);
                load_piece(x, sum + row + h, valid, by_lane);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    product += d[i] * w[i] * x[i];
                }
            }
            float scale = rstd[token];
            float mean = reduce_block<NORM_THREADS>(product, partial, Add{}) * scale / float(hidden);
            for (int h = first; h < hidden; h += NORM_THREADS * N) {
                int valid = min_of(N, hidden - h);
                float d[N], w[N], x[N], gradient[N] = {}, total[N];
                load_piece(d, dy + row + h, valid, by_lane);
                load_piece(w, weight + h, valid, by_lane);
                load_piece(x, sum + row + h, valid, by_lane);
                load_piece(total, dweight + h, valid, by_lane);
                if (add != 0) {
                    load_piece(gradient, dsum + row + h, valid, by_lane);
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    float n = x[i] * scale;
                    gradient[i] += scale * (d[i] * w[i] - n * mean);
                    total[i] += d[i] * n;
                }
                store_piece(dsum + row + h, gradient, valid, by_lane);
                store_piece(dweight + h, total, valid, by_lane);
            }
        }
        for (int h = first; h < hidden && in_shared != 0; h += NORM_THREADS * N) {
            int valid = min_of(N, hidden - h);
            float total[N];
            load_piece(total, dweight + h, valid, by_lane);
            store_piece(out + h, total, valid, by_lane);
        }
    }
}
