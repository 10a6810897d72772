// RMSNorm over all query heads and over all key heads of a token, in place: forward, input gradient,
// weight gradient. norm.cu has the norm of each head.
//
//   qk_norm_whole_fwd, one row (the queries or the keys of a token) per block, grid-stride loop:
//     rstd = 1 / sqrt(mean(row²) + eps); row = row rstd weight; x receives the input
//   qk_norm_whole_bwd, one slice of QK_NORM_WHOLE_SLICE tokens per block, grid-stride loop:
//     for each row: recompute rstd from x; n = x rstd; g = dy weight
//                   dqkv = rstd (g - n mean(g n)); dweight[slice] += dy n
//   sum_slices.cu: dweight (+)= sum over slices
//
// Departure from norm.cu: rows lie in a wider fused row. Cost: every operand is read twice, the second
// time from cache, and the partial weight gradient of a slice once per token.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

constexpr int QK_NORM_WHOLE_THREADS = 128;
/// Tokens of a slice of the weight gradient.
EXPORT constexpr int QK_NORM_WHOLE_SLICE = 16;

/// A token's queries or keys: offsets in the fused rows, in the rows of the copy `x` and in the weights, and
/// number of elements.
struct WholeRow {
    long long fused, copy;
    int weight, width;

    DEVICE WholeRow(long long token, bool keys, int query_width, int key_width)
        : fused(token * (query_width + 2LL * key_width) + (keys ? query_width : 0)),
          copy(token * (1LL * query_width + key_width) + (keys ? query_width : 0)), weight(keys ? query_width : 0),
          width(keys ? key_width : query_width) {}
};

template <class T>
KERNELS(128, qk_norm_whole_fwd, FOR(T: f32 bf16))(
    const T* weight,  // (query_width + key_width)
    T* x,             // (tokens, query_width + key_width), may be null
    T* qkv,           // (tokens, query_width + 2 key_width), in place
    int tokens, int query_width, int key_width, float eps, float offset) {
    SHARED(float, partial, QK_NORM_WHOLE_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(weight, query_width) && vec_aligned(x, query_width) && vec_aligned(qkv, query_width) &&
                      vec_aligned(weight, key_width);
    for (long long unit = blockIdx.x; unit < 2LL * tokens; unit += gridDim.x) {
        WholeRow at(unit / 2, unit % 2 != 0, query_width, key_width);
        T* row = qkv + at.fused;
        float squares = 0.0f;
        for (int h = int(threadIdx.x) * N; h < at.width; h += QK_NORM_WHOLE_THREADS * N) {
            int valid = min_of(N, at.width - h);
            float value[N];
            load_elements(value, row + h, valid, vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                squares += value[i] * value[i];
            }
            if (x != nullptr) {
                store_elements(x + at.copy + h, value, valid, vectorised);
            }
        }
        squares = reduce_block<QK_NORM_WHOLE_THREADS>(squares, partial, Add{});
        float scale = 1.0f / sqrtf(squares / float(at.width) + eps);
        // No barrier is needed: each thread owns its columns.
        for (int h = int(threadIdx.x) * N; h < at.width; h += QK_NORM_WHOLE_THREADS * N) {
            int valid = min_of(N, at.width - h);
            float value[N], factor[N];
            load_elements(value, row + h, valid, vectorised);
            load_factors(factor, weight + at.weight + h, valid, vectorised, offset);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                value[i] = value[i] * scale * factor[i];
            }
            store_elements(row + h, value, valid, vectorised);
        }
    }
}

/// The partial weight gradient is accumulated in `slices`, in ascending order of the tokens. This needs no
/// barrier, because each thread owns its columns.
template <class T>
KERNELS(128, qk_norm_whole_bwd, FOR(T: f32 bf16))(
    const T* x,       // (tokens, query_width + key_width)
    const T* weight,  // (query_width + key_width)
    T* dqkv,          // (tokens, query_width + 2 key_width), in place
    float* slices,    // (ceil(tokens / QK_NORM_WHOLE_SLICE), query_width + key_width)
    int tokens, int query_width, int key_width, float eps, float offset) {
    SHARED(float, partial, QK_NORM_WHOLE_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(weight, query_width) && vec_aligned(x, query_width) &&
                      vec_aligned(dqkv, query_width) && vec_aligned(slices, query_width) &&
                      vec_aligned(weight, key_width);
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, QK_NORM_WHOLE_SLICE); slice += int(gridDim.x)) {
        int first = slice * QK_NORM_WHOLE_SLICE, end = min_of(tokens, first + QK_NORM_WHOLE_SLICE);
        for (int unit = 2 * first; unit < 2 * end; ++unit) {
            WholeRow at(unit / 2, unit % 2 != 0, query_width, key_width);
            const T *in = x + at.copy, *factors = weight + at.weight;
            T* row = dqkv + at.fused;
            float* dweight = slices + (long long)slice * (query_width + key_width) + at.weight;
            float squares = 0.0f, product = 0.0f;
            for (int h = int(threadIdx.x) * N; h < at.width; h += QK_NORM_WHOLE_THREADS * N) {
                int valid = min_of(N, at.width - h);
                float d[N], w[N], value[N];
                load_elements(d, row + h, valid, vectorised);
                load_factors(w, factors + h, valid, vectorised, offset);
                load_elements(value, in + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    squares += value[i] * value[i];
                    product += d[i] * w[i] * value[i];
                }
            }
            squares = reduce_block<QK_NORM_WHOLE_THREADS>(squares, partial, Add{});
            product = reduce_block<QK_NORM_WHOLE_THREADS>(product, partial, Add{});
            float scale = 1.0f / sqrtf(squares / float(at.width) + eps), mean = product * scale / float(at.width);
            for (int h = int(threadIdx.x) * N; h < at.width; h += QK_NORM_WHOLE_THREADS * N) {
                int valid = min_of(N, at.width - h);
                float d[N], w[N], value[N], total[N] = {};
                load_elements(d, row + h, valid, vectorised);
                load_factors(w, factors + h, valid, vectorised, offset);
                load_elements(value, in + h, valid, vectorised);
                if (unit / 2 > first) {
                    load_elements(total, dweight + h, valid, vectorised);
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    float n = value[i] * scale;
                    total[i] += d[i] * n;
                    d[i] = scale * (d[i] * w[i] - n * mean);
                }
                store_elements(row + h, d, valid, vectorised);
                store_elements(dweight + h, total, valid, vectorised);
            }
        }
    }
}
