// RMSNorm with residual add (arXiv 1910.07467): forward, input gradient, weight gradient.
//
//   norm_fwd, one token per block, by stride:
//     sum = x + residual; rstd = 1 / sqrt(mean(sum²) + eps); y = base + sum rstd (offset + weight)
//   norm_bwd, one slice of NORM_SLICE tokens per block, by stride:
//     for each token: n = sum rstd; g = dy weight; dsum = or += rstd (g - n mean(g n))
//                     dweight[slice] += dy n
//   sum_slices.cu: dweight = or += sum over slices
//   qk_norm_fwd, one head of a token per warp, by stride: the same for a query or key head, in place
//   qk_norm_bwd, one slice of QK_NORM_SLICE tokens per block, by stride; its warps take heads in turn:
//     rstd again from x; dqkv in place; dweight[warp] += dy n; dweight[slice] = sum over warps
//
// Departures from the usual kernel: the weight gradient needs no atomics. Each slice has a partial
// sum, and sum_slices adds the slices. A row is reduced by the whole block in one fixed order, so
// neither the grid nor other rows affect a result.
//
// The offset is 0, or 1 for weights that are stored as their distance from 1. Below, weight is the sum.
//
// Cost: every operand is read once from memory; a row is read twice, the second time from cache.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

constexpr int NORM_THREADS = 128;
/// Tokens of a slice of the weight gradient.
EXPORT constexpr int NORM_SLICE = 16;

/// sum = x + residual (x if residual is null), rstd = 1 / sqrt(mean(sum²) + eps), y = base + sum rstd
/// weight (without a base if it is null).
template <class T>
KERNELS(128, norm_fwd, FOR(T: f32 bf16))(const T* x,         // (tokens, hidden)
                                         const T* residual,  // (tokens, hidden), may be null together with sum
                                         const T* weight,    // (hidden)
                                         const T* base,      // (tokens, hidden), may be null
                                         T* sum,             // (tokens, hidden)
                                         T* y,               // (tokens, hidden)
                                         float* rstd,        // (tokens)
                                         int tokens, int hidden, float eps,
                                         float offset) {  // added to the weight: 0 or 1
    SHARED(float, partial, NORM_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(x, hidden) && vec_aligned(y, hidden) && vec_aligned(weight, 0) &&
                      vec_aligned(residual, hidden) && vec_aligned(sum, hidden) && vec_aligned(base, hidden);
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* in = x + token * hidden;
        const T* add = residual == nullptr ? nullptr : residual + token * hidden;
        T* total = sum == nullptr ? nullptr : sum + token * hidden;
        const T* under = base == nullptr ? nullptr : base + token * hidden;
        T* out = y + token * hidden;
        float squares = 0.0f;
        if (vectorised) {
            for (int h = int(threadIdx.x) * N; h < hidden; h += NORM_THREADS * N) {
                Floats<T> value = load_floats(in + h);
                if (add != nullptr) {
                    Floats<T> other = load_floats(add + h);
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        value.x[i] = to_float(from_float<T>(value.x[i] + other.x[i]));
                    }
                    store_floats(total + h, value);
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    squares += value.x[i] * value.x[i];
                }
            }
        } else {
            // Same elements per thread and same order as the vectorised path, so the same bits.
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
        // No barrier: each thread reads back only elements that it wrote.
        const T* row = total == nullptr ? in : total;
        for (int h = int(threadIdx.x) * N; h < hidden; h += NORM_THREADS * N) {
            if (vectorised) {
                Floats<T> value = load_floats(row + h), factor = load_floats(weight + h);
                if (under != nullptr) {
                    Floats<T> other = load_floats(under + h);
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        value.x[i] = fmaf(value.x[i] * scale, offset + factor.x[i], other.x[i]);
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        value.x[i] = value.x[i] * scale * (offset + factor.x[i]);
                    }
                }
                store_floats(out + h, value);
            } else {
                for (int i = h; i < min_of(h + N, hidden); ++i) {
                    float value = to_float(row[i]) * scale, factor = offset + to_float(weight[i]);
                    out[i] = from_float<T>(under != nullptr ? fmaf(value, factor, to_float(under[i])) : value * factor);
                }
            }
        }
    }
}

/// With n = sum rstd and g = dy weight: dsum = or += rstd (g - n mean(g n)); slices[k] = sum over
/// the tokens of slice k of dy n, in ascending order. The partial sum is accumulated in shared
/// memory, or in `slices` if rows are too long. No barrier: each thread owns its columns.
template <class T>
KERNELS(128, norm_bwd, FOR(T: f32 bf16))(const T* dy,        // (tokens, hidden)
                                         const T* sum,       // (tokens, hidden)
                                         const float* rstd,  // (tokens)
                                         const T* weight,    // (hidden)
                                         T* dsum,            // (tokens, hidden)
                                         float* slices,      // (ceil(tokens / NORM_SLICE), hidden)
                                         int tokens, int hidden, float offset, int add,
                                         int in_shared) {  // 1 if the launch has 4 hidden bytes of shared memory
    SHARED(float, partial, NORM_THREADS / WARP);
    DYNAMIC_SHARED(dynamic);
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(dy, hidden) && vec_aligned(sum, hidden) && vec_aligned(weight, 0) &&
                      vec_aligned(dsum, hidden) && vec_aligned(slices, hidden);
    int first = int(threadIdx.x) * N;
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, NORM_SLICE); slice += int(gridDim.x)) {
        float* out = slices + (long long)slice * hidden;
        float* dweight = in_shared != 0 ? reinterpret_cast<float*>(dynamic) : out;
        for (int h = first; h < hidden; h += NORM_THREADS * N) {
            float zero[N] = {};
            store_elements(dweight + h, zero, min_of(N, hidden - h), vectorised);
        }
        int end = min_of(tokens, (slice + 1) * NORM_SLICE);
        for (int token = slice * NORM_SLICE; token < end; ++token) {
            long long row = (long long)token * hidden;
            float product = 0.0f;
            for (int h = first; h < hidden; h += NORM_THREADS * N) {
                int valid = min_of(N, hidden - h);
                float d[N], w[N], x[N];
                load_elements(d, dy + row + h, valid, vectorised);
                load_factors(w, weight + h, valid, vectorised, offset);
                load_elements(x, sum + row + h, valid, vectorised);
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
                load_elements(d, dy + row + h, valid, vectorised);
                load_factors(w, weight + h, valid, vectorised, offset);
                load_elements(x, sum + row + h, valid, vectorised);
                load_elements(total, dweight + h, valid, vectorised);
                if (add != 0) {
                    load_elements(gradient, dsum + row + h, valid, vectorised);
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    float n = x[i] * scale;
                    gradient[i] += scale * (d[i] * w[i] - n * mean);
                    total[i] += d[i] * n;
                }
                store_elements(dsum + row + h, gradient, valid, vectorised);
                store_elements(dweight + h, total, valid, vectorised);
            }
        }
        for (int h = first; h < hidden && in_shared != 0; h += NORM_THREADS * N) {
            int valid = min_of(N, hidden - h);
            float total[N];
            load_elements(total, dweight + h, valid, vectorised);
            store_elements(out + h, total, valid, vectorised);
        }
    }
}

/// Tokens of a slice of the weight gradient of qk_norm_bwd: few, because a token has many heads.
EXPORT constexpr int QK_NORM_SLICE = 4;
constexpr int QK_NORM_THREADS = 128;

/// head = head rstd weight with rstd = 1 / sqrt(mean(head²) + eps), for the first heads + kv_heads
/// heads of a row of heads + 2 kv_heads; x receives their input.
template <class T>
KERNELS(128, qk_norm_fwd, FOR(T: f32 bf16))(const T* weight,  // (2, head_dim): of queries, of keys
                                            T* x,             // (tokens, heads + kv_heads, head_dim), may be null
                                            T* qkv,           // (tokens, heads + 2 kv_heads, head_dim), in place
                                            int tokens, int heads, int kv_heads, int head_dim, float eps,
                                            float offset) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(weight, head_dim) && vec_aligned(x, head_dim) && vec_aligned(qkv, head_dim);
    int normalised = heads + kv_heads;
    for (long long unit = global_warp(); unit < (long long)tokens * normalised; unit += global_warps()) {
        long long token = unit / normalised;
        int head = int(unit - token * normalised);
        T* row = qkv + (token * (normalised + kv_heads) + head) * head_dim;
        T* copy = x == nullptr ? nullptr : x + unit * head_dim;
        const T* factors = head < heads ? weight : weight + head_dim;
        float squares = dot_of_rows(row, row, head_dim, vectorised, copy);
        float scale = 1.0f / sqrtf(squares / float(head_dim) + eps);
        for (int h = lane_index() * N; h < head_dim; h += WARP * N) {
            int valid = min_of(N, head_dim - h);
            float value[N], factor[N];
            load_elements(value, row + h, valid, vectorised);
            load_factors(factor, factors + h, valid, vectorised, offset);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                value[i] = value[i] * scale * factor[i];
            }
            store_elements(row + h, value, valid, vectorised);
        }
    }
}

/// With n = x rstd and g = dy weight, for each query and key head: dqkv = rstd (g - n mean(g n));
/// slices[k] = sum over the heads of slice k of dy n: warp w adds heads w, w + 4, ... in ascending
/// order, then the warps' sums are added in ascending order.
template <class T>
KERNELS(128, qk_norm_bwd, FOR(T: f32 bf16))(const T* x,       // (tokens, heads + kv_heads, head_dim)
                                            const T* weight,  // (2, head_dim): of queries, of keys
                                            T* dqkv,          // (tokens, heads + 2 kv_heads, head_dim), in place
                                            float* slices,    // (ceil(tokens / QK_NORM_SLICE), 2, head_dim)
                                            int tokens, int heads, int kv_heads, int head_dim, float eps,
                                            float offset) {
    DYNAMIC_SHARED(dynamic);
    constexpr int N = VEC_ELEMENTS<T>;
    constexpr int WARPS = QK_NORM_THREADS / WARP;
    bool vectorised = vec_aligned(weight, head_dim) && vec_aligned(x, head_dim) && vec_aligned(dqkv, head_dim);
    int normalised = heads + kv_heads, warp = int(threadIdx.x) / WARP, lane = lane_index();
    float* sums = reinterpret_cast<float*>(dynamic);  // (WARPS, 2, head_dim)
    float* own = sums + warp * 2 * head_dim;
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, QK_NORM_SLICE); slice += int(gridDim.x)) {
        for (int h = lane * N; h < head_dim; h += WARP * N) {
            for (int i = h; i < min_of(h + N, head_dim); ++i) {
                own[i] = 0.0f;
                own[head_dim + i] = 0.0f;
            }
        }
        long long first = (long long)slice * QK_NORM_SLICE;
        int count = min_of(QK_NORM_SLICE, tokens - slice * QK_NORM_SLICE) * normalised;
        for (int unit = warp; unit < count; unit += WARPS) {
            int token = unit / normalised, head = unit - token * normalised;
            const T* in = x + (first * normalised + unit) * head_dim;
            T* row = dqkv + ((first + token) * (normalised + kv_heads) + head) * head_dim;
            const T* factors = head < heads ? weight : weight + head_dim;
            float* dweight = head < heads ? own : own + head_dim;
            float squares = 0.0f, product = 0.0f;
            for (int h = lane * N; h < head_dim; h += WARP * N) {
                int valid = min_of(N, head_dim - h);
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
            float scale = 1.0f / sqrtf(reduce_warp(squares, Add{}) / float(head_dim) + eps);
            float mean = reduce_warp(product, Add{}) * scale / float(head_dim);
            // No barrier: each lane owns its columns of the row and of its warp's sums.
            for (int h = lane * N; h < head_dim; h += WARP * N) {
                int valid = min_of(N, head_dim - h);
                float d[N], w[N], value[N];
                load_elements(d, row + h, valid, vectorised);
                load_factors(w, factors + h, valid, vectorised, offset);
                load_elements(value, in + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    float n = value[i] * scale;
                    if (i < valid) {
                        dweight[h + i] += d[i] * n;
                    }
                    d[i] = scale * (d[i] * w[i] - n * mean);
                }
                store_elements(row + h, d, valid, vectorised);
            }
        }
        // The sums of all warps are complete before they are added.
        sync_block();
        float* out = slices + (long long)slice * 2 * head_dim;
        for (int c = int(threadIdx.x); c < 2 * head_dim; c += QK_NORM_THREADS) {
            float total = sums[c];
#pragma unroll
            for (int w = 1; w < WARPS; ++w) {
                total += sums[w * 2 * head_dim + c];
            }
            out[c] = total;
        }
        // All sums are read before the next slice clears them.
        sync_block();
    }
}
