// LayerNorm (arXiv 1607.06450) with weight and bias: forward, input gradient, weight gradient.
//
//   layer_norm_fwd, one token per block, by stride:
//     mean; rstd = 1 / sqrt(mean((x - mean)²) + eps); y = (x - mean) rstd weight + bias
//   layer_norm_bwd, one slice of LAYER_NORM_SLICE tokens per block, by stride:
//     for each token: n = (x - mean) rstd; g = dy weight
//                     dx = or += rstd (g - mean(g) - n mean(g n))
//                     dweight[slice] += dy n; dbias[slice] += dy
//   sum_slices.cu: dweight and dbias = or += sums over slices
//
// The variance is taken about the mean, in a pass of its own, so nothing cancels. The rest is as in
// norm.cu: no atomics, and a row is reduced by the whole block in one fixed order.
//
// Cost: every operand is read once from memory; further passes over a row come from cache.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

constexpr int LAYER_NORM_THREADS = 128;
/// Tokens of a slice of the gradients of weight and bias.
EXPORT constexpr int LAYER_NORM_SLICE = 16;

template <class T>
KERNELS(128, layer_norm_fwd, FOR(T: f32 bf16))(const T* x,       // (tokens, hidden)
                                               const T* weight,  // (2, hidden): weight, bias
                                               T* y,             // (tokens, hidden)
                                               float* stats,     // (tokens, 2): mean, rstd
                                               int tokens, int hidden, float eps) {
    SHARED(float, partial, LAYER_NORM_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(x, hidden) && vec_aligned(y, hidden) && vec_aligned(weight, hidden);
    int first = int(threadIdx.x) * N;
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* in = x + token * hidden;
        T* out = y + token * hidden;
        float sum = 0.0f;
        for (int h = first; h < hidden; h += LAYER_NORM_THREADS * N) {
            float value[N];
            load_elements(value, in + h, min_of(N, hidden - h), vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum += value[i];
            }
        }
        float mean = reduce_block<LAYER_NORM_THREADS>(sum, partial, Add{}) / float(hidden);
        float squares = 0.0f;
        for (int h = first; h < hidden; h += LAYER_NORM_THREADS * N) {
            float value[N];
            // Elements beyond the row differ from the mean by zero.
            load_elements(value, in + h, min_of(N, hidden - h), vectorised, mean);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                squares += (value[i] - mean) * (value[i] - mean);
            }
        }
        float scale = 1.0f / sqrtf(reduce_block<LAYER_NORM_THREADS>(squares, partial, Add{}) / float(hidden) + eps);
        if (threadIdx.x == 0) {
            stats[2 * token] = mean;
            stats[2 * token + 1] = scale;
        }
        for (int h = first; h < hidden; h += LAYER_NORM_THREADS * N) {
            int valid = min_of(N, hidden - h);
            float value[N], w[N], b[N];
            load_elements(value, in + h, valid, vectorised);
            load_elements(w, weight + h, valid, vectorised);
            load_elements(b, weight + hidden + h, valid, vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                value[i] = (value[i] - mean) * scale * w[i] + b[i];
            }
            store_elements(out + h, value, valid, vectorised);
        }
    }
}

/// The partial sums are accumulated in shared memory, or in `slices` if rows are too long. No barrier
/// for them: each thread owns its columns.
template <class T>
KERNELS(128, layer_norm_bwd, FOR(T: f32 bf16))(const T* dy,         // (tokens, hidden)
                                               const T* x,          // (tokens, hidden)
                                               const float* stats,  // (tokens, 2): mean, rstd
                                               const T* weight,     // (2, hidden): weight, bias
                                               T* dx,               // (tokens, hidden)
                                               float* slices,  // (ceil(tokens / LAYER_NORM_SLICE), 2, hidden)
                                               int tokens, int hidden, int add,
                                               int in_shared) {  // 1 if the launch has 8 hidden bytes of shared memory
    SHARED(float, partial, LAYER_NORM_THREADS / WARP);
    DYNAMIC_SHARED(dynamic);
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(dy, hidden) && vec_aligned(x, hidden) && vec_aligned(weight, hidden) &&
                      vec_aligned(dx, hidden) && vec_aligned(slices, hidden);
    int first = int(threadIdx.x) * N;
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, LAYER_NORM_SLICE); slice += int(gridDim.x)) {
        float* out = slices + (long long)slice * 2 * hidden;
        float* dweight = in_shared != 0 ? reinterpret_cast<float*>(dynamic) : out;
        for (int h = first; h < hidden; h += LAYER_NORM_THREADS * N) {
            float zero[N] = {};
            int valid = min_of(N, hidden - h);
            store_elements(dweight + h, zero, valid, vectorised);
            store_elements(dweight + hidden + h, zero, valid, vectorised);
        }
        int end = min_of(tokens, (slice + 1) * LAYER_NORM_SLICE);
        for (int token = slice * LAYER_NORM_SLICE; token < end; ++token) {
            long long row = (long long)token * hidden;
            float mean = stats[2LL * token], scale = stats[2LL * token + 1];
            float sum = 0.0f, product = 0.0f;
            for (int h = first; h < hidden; h += LAYER_NORM_THREADS * N) {
                int valid = min_of(N, hidden - h);
                float d[N], w[N], value[N];
                load_elements(d, dy + row + h, valid, vectorised);
                load_elements(w, weight + h, valid, vectorised);
                load_elements(value, x + row + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    sum += d[i] * w[i];
                    product += d[i] * w[i] * ((value[i] - mean) * scale);
                }
            }
            sum = reduce_block<LAYER_NORM_THREADS>(sum, partial, Add{}) / float(hidden);
            product = reduce_block<LAYER_NORM_THREADS>(product, partial, Add{}) / float(hidden);
            for (int h = first; h < hidden; h += LAYER_NORM_THREADS * N) {
                int valid = min_of(N, hidden - h);
                float d[N], w[N], value[N], gradient[N] = {}, total[N];
                load_elements(d, dy + row + h, valid, vectorised);
                load_elements(w, weight + h, valid, vectorised);
                load_elements(value, x + row + h, valid, vectorised);
                if (add != 0) {
                    load_elements(gradient, dx + row + h, valid, vectorised);
                }
                load_elements(total, dweight + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    value[i] = (value[i] - mean) * scale;
                    gradient[i] += scale * (d[i] * w[i] - sum - value[i] * product);
                    total[i] += d[i] * value[i];
                }
                store_elements(dx + row + h, gradient, valid, vectorised);
                store_elements(dweight + h, total, valid, vectorised);
                load_elements(total, dweight + hidden + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    total[i] += d[i];
                }
                store_elements(dweight + hidden + h, total, valid, vectorised);
            }
        }
        for (int h = first; h < hidden && in_shared != 0; h += LAYER_NORM_THREADS * N) {
            int valid = min_of(N, hidden - h);
            float total[N];
            load_elements(total, dweight + h, valid, vectorised);
            store_elements(out + h, total, valid, vectorised);
            load_elements(total, dweight + hidden + h, valid, vectorised);
            store_elements(out + hidden + h, total, valid, vectorised);
        }
    }
}
