// RMSNorm with residual add (arXiv 1910.07467): forward, input gradient, weight gradient.
//
//   norm_fwd, one token per team of threads, grid-stride loop:
//     sum = x + residual; rstd = 1 / sqrt(mean(sum²) + eps); y = base + sum rstd (offset + weight)
//   norm_bwd, one slice of NORM_SLICE tokens per block, grid-stride loop; its teams share the tokens:
//     for each token: n = sum rstd; g = dy weight; dsum (+)= rstd (g - n mean(g n))
//                     dweight[team] += dy n
//     dweight[slice] = sum over teams
//   sum_slices.cu: dweight (+)= sum over slices
//   qk_norm_fwd, one head of a token per warp, grid-stride loop: the same for a query or key head, in place
//   qk_norm_bwd, one slice of QK_NORM_SLICE tokens per block, grid-stride loop; its warps share the heads:
//     recompute rstd from x; dqkv in place; dweight[warp] += dy n; dweight[slice] = sum over warps
//
// A team is a warp, or the block for rows that do not fit the registers of a warp (team.cuh).
//
// Departures from the usual kernel: the weight gradient needs no atomics. Each slice has a partial sum, and
// sum_slices adds the slices. A row is reduced by its team in one fixed order, so neither the grid nor other
// rows affect a result. Short rows need no barrier, and all loads of a row are in flight at once. With one
// row per block and two passes over memory, too few bytes were in flight to reach the copy rate.
//
// The offset is 0, or 1 for weights that are stored as their distance from 1. Below, weight means offset + weight.
//
// Cost: every operand is read once; elements beyond HELD vectors per thread are read twice, the second time
// from cache.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"
#include "team.cuh"

constexpr int NORM_THREADS = 128;
/// Tokens of a slice of the weight gradient.
EXPORT constexpr int NORM_SLICE = 32;

/// x + other, rounded to T.
template <class T>
DEVICE Floats<T> rounded_sum(Floats<T> x, const Floats<T>& other) {
#pragma unroll
    for (int i = 0; i < VEC_ELEMENTS<T>; ++i) {
        x.x[i] = to_float(from_float<T>(x.x[i] + other.x[i]));
    }
    return x;
}

/// sum = x + residual (x if residual is null), rstd = 1 / sqrt(mean(sum²) + eps), y = base + sum rstd
/// weight (y = sum rstd weight if base is null).
template <int TEAM, class T>
KERNELS(128, norm_fwd, FOR(TEAM: 32 128; T: f32 bf16))(const T* x,         // (tokens, hidden)
                                                       const T* residual,  // (tokens, hidden), may be null together with sum
                                                       const T* weight,    // (hidden)
                                                       const T* base,      // (tokens, hidden), may be null
                                                       T* sum,             // (tokens, hidden)
                                                       T* y,               // (tokens, hidden)
                                                       float* rstd,        // (tokens)
                                                       int tokens, int hidden, float eps,
                                                       float offset) {  // added to the weight: 0 or 1
    SHARED(float, partial, NORM_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>, TEAMS = NORM_THREADS / TEAM;
    bool vectorised = vec_aligned(x, hidden) && vec_aligned(y, hidden) && vec_aligned(weight, 0) &&
                      vec_aligned(residual, hidden) && vec_aligned(sum, hidden) && vec_aligned(base, hidden);
    int lane = int(threadIdx.x) % TEAM, rest = vector_start<T, TEAM>(vectorised ? HELD : 0, lane);
    int held = vectorised ? hidden : 0;
    long long first = (long long)blockIdx.x * TEAMS + int(threadIdx.x) / TEAM, step = (long long)gridDim.x * TEAMS;
    for (long long token = first; token < tokens; token += step) {
        const T* in = x + token * hidden;
        const T* add = residual == nullptr ? nullptr : residual + token * hidden;
        T* total = sum == nullptr ? nullptr : sum + token * hidden;
        const T* under = base == nullptr ? nullptr : base + token * hidden;
        T* out = y + token * hidden;
        Vec16 row[HELD], other[HELD];
        load_held<TEAM>(row, in, lane, held);
        if (add != nullptr) {
            load_held<TEAM>(other, add, lane, held);
        }
        float squares = 0.0f;
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            int h = vector_start<T, TEAM>(v, lane);
            Floats<T> value = unpack(row[v], T{});
            if (add != nullptr && h < held) {
                value = rounded_sum<T>(value, unpack(other[v], T{}));
                row[v] = pack(value);
                store_elements(total + h, value.x, N, true);
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                squares += value.x[i] * value.x[i];
            }
        }
        for (int h = rest; h < hidden; h += TEAM * N) {
            int valid = min_of(N, hidden - h);
            Floats<T> value, more;
            load_elements(value.x, in + h, valid, vectorised);
            if (add != nullptr) {
                load_elements(more.x, add + h, valid, vectorised);
                value = rounded_sum<T>(value, more);
                store_elements(total + h, value.x, valid, vectorised);
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                squares += value.x[i] * value.x[i];
            }
        }
        float scale = 1.0f / sqrtf(reduce_block<TEAM>(squares, partial, Add{}) / float(hidden) + eps);
        if (lane == 0) {
            rstd[token] = scale;
        }
        if (under != nullptr) {
            load_held<TEAM>(other, under, lane, held);
        }
        forget_elements(row);
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            int h = vector_start<T, TEAM>(v, lane);
            if (h < held) {
                Floats<T> value = unpack(row[v], T{}), below = unpack(other[v], T{});
                float factor[N];
                load_factors(factor, weight + h, N, true, offset);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    float n = value.x[i] * scale;
                    value.x[i] = under != nullptr ? fmaf(n, factor[i], below.x[i]) : n * factor[i];
                }
                store_elements(out + h, value.x, N, true);
            }
        }
        // No barrier is needed: each thread reads back only elements that it wrote.
        for (int h = rest; h < hidden; h += TEAM * N) {
            int valid = min_of(N, hidden - h);
            float value[N], factor[N], below[N];
            load_elements(value, (total == nullptr ? in : total) + h, valid, vectorised);
            load_factors(factor, weight + h, valid, vectorised, offset);
            if (under != nullptr) {
                load_elements(below, under + h, valid, vectorised);
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float n = value[i] * scale;
                value[i] = under != nullptr ? fmaf(n, factor[i], below[i]) : n * factor[i];
            }
            store_elements(out + h, value, valid, vectorised);
        }
    }
}

/// gradient += rstd (g - n mean) and dweight += dy n for the elements of a vector.
template <class T>
DEVICE void norm_gradient(float (&gradient)[VEC_ELEMENTS<T>], float (&dweight)[VEC_ELEMENTS<T>], const Floats<T>& d,
                          const Floats<T>& x, const float (&weight)[VEC_ELEMENTS<T>], float scale, float mean) {
#pragma unroll
    for (int i = 0; i < VEC_ELEMENTS<T>; ++i) {
        float n = x.x[i] * scale;
        gradient[i] += scale * (d.x[i] * weight[i] - n * mean);
        dweight[i] += d.x[i] * n;
    }
}

/// With n = sum rstd and g = dy weight: dsum (+)= rstd (g - n mean(g n)); slices[k] = sum over the tokens
/// of slice k of dy n. Team i of a block processes the tokens i, i + TEAMS, ... of a slice in ascending
/// order; then the teams' sums are added in ascending order.
template <int TEAM, class T>
KERNELS(128, norm_bwd, FOR(TEAM: 32 128; T: f32 bf16))(const T* dy,        // (tokens, hidden)
                                                       const T* sum,       // (tokens, hidden)
                                                       const float* rstd,  // (tokens)
                                                       const T* weight,    // (hidden)
                                                       T* dsum,            // (tokens, hidden)
                                                       float* slices,      // (ceil(tokens / NORM_SLICE), hidden)
                                                       int tokens, int hidden, float offset, int add) {
    SHARED(float, partial, NORM_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>, TEAMS = NORM_THREADS / TEAM;
    DYNAMIC_SHARED(dynamic);
    // (TEAMS, hidden), if there is more than one team.
    float* sums = reinterpret_cast<float*>(dynamic);
    bool vectorised = vec_aligned(dy, hidden) && vec_aligned(sum, hidden) && vec_aligned(weight, 0) &&
                      vec_aligned(dsum, hidden) && vec_aligned(slices, hidden);
    int team = int(threadIdx.x) / TEAM, lane = int(threadIdx.x) % TEAM;
    int rest = vector_start<T, TEAM>(vectorised ? HELD : 0, lane), held = vectorised ? hidden : 0;
    Vec16 factors[HELD];
    load_held<TEAM>(factors, weight, lane, held);
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, NORM_SLICE); slice += int(gridDim.x)) {
        float* out = slices + (long long)slice * hidden;
        // The team's sums of held vectors are in registers, those of other elements in `own`.
        float* own = TEAMS > 1 ? sums + team * hidden : out;
        float dweight[HELD][N] = {};
        for (int h = rest; h < hidden; h += TEAM * N) {
            float zero[N] = {};
            store_elements(own + h, zero, min_of(N, hidden - h), vectorised);
        }
        int end = min_of(tokens, (slice + 1) * NORM_SLICE);
        for (int token = slice * NORM_SLICE + team; token < end; token += TEAMS) {
            long long row = (long long)token * hidden;
            Vec16 d[HELD], x[HELD], old[HELD];
            load_held<TEAM>(d, dy + row, lane, held);
            load_held<TEAM>(x, sum + row, lane, held);
            if (add != 0) {
                load_held<TEAM>(old, dsum + row, lane, held);
            }
            float scale = rstd[token], product = 0.0f;
#pragma unroll
            for (int v = 0; v < HELD; ++v) {
                Floats<T> dv = unpack(d[v], T{}), xv = unpack(x[v], T{}), w = unpack(factors[v], T{});
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    product += dv.x[i] * (w.x[i] + offset) * xv.x[i];
                }
            }
            for (int h = rest; h < hidden; h += TEAM * N) {
                int valid = min_of(N, hidden - h);
                Floats<T> dv, xv;
                float w[N];
                load_elements(dv.x, dy + row + h, valid, vectorised);
                load_factors(w, weight + h, valid, vectorised, offset);
                load_elements(xv.x, sum + row + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    product += dv.x[i] * w[i] * xv.x[i];
                }
            }
            float mean = reduce_block<TEAM>(product, partial, Add{}) * scale / float(hidden);
            forget_elements(d);
            forget_elements(x);
            forget_elements(factors);
#pragma unroll
            for (int v = 0; v < HELD; ++v) {
                int h = vector_start<T, TEAM>(v, lane);
                if (h < held) {
                    Floats<T> w = unpack(factors[v], T{}), gradient = {};
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        w.x[i] += offset;
                    }
                    if (add != 0) {
                        gradient = unpack(old[v], T{});
                    }
                    norm_gradient<T>(gradient.x, dweight[v], unpack(d[v], T{}), unpack(x[v], T{}), w.x, scale, mean);
                    store_elements(dsum + row + h, gradient.x, N, true);
                }
            }
            // No barrier is needed: each thread owns its columns of its team's sums.
            for (int h = rest; h < hidden; h += TEAM * N) {
                int valid = min_of(N, hidden - h);
                Floats<T> dv, xv;
                float w[N], gradient[N] = {}, total[N];
                load_elements(dv.x, dy + row + h, valid, vectorised);
                load_factors(w, weight + h, valid, vectorised, offset);
                load_elements(xv.x, sum + row + h, valid, vectorised);
                load_elements(total, own + h, valid, vectorised);
                if (add != 0) {
                    load_elements(gradient, dsum + row + h, valid, vectorised);
                }
                norm_gradient<T>(gradient, total, dv, xv, w, scale, mean);
                store_elements(dsum + row + h, gradient, valid, vectorised);
                store_elements(own + h, total, valid, vectorised);
            }
        }
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            int h = vector_start<T, TEAM>(v, lane);
            if (h < held) {
                store_elements(own + h, dweight[v], N, true);
            }
        }
        if constexpr (TEAMS > 1) {
            // Waits until the sums of all teams are complete.
            sync_block();
            for (int h = int(threadIdx.x); h < hidden; h += NORM_THREADS) {
                float total = sums[h];
#pragma unroll
                for (int i = 1; i < TEAMS; ++i) {
                    total += sums[i * hidden + h];
                }
                out[h] = total;
            }
            // Waits until all sums are read, because those of the next slice overwrite them.
            sync_block();
        }
    }
}

/// Tokens of a slice of the weight gradient of qk_norm_bwd: few, because a token has many heads.
EXPORT constexpr int QK_NORM_SLICE = 4;
constexpr int QK_NORM_THREADS = 128;

/// head = head rstd weight with rstd = 1 / sqrt(mean(head²) + eps), for the first heads + kv_heads heads of a
/// row of heads + 2 kv_heads; x receives the inputs of these heads.
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
/// slices[k] = sum over the heads of slice k of dy n. Warp w adds heads w, w + 4, ... in ascending
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
            // No barrier is needed: each lane owns its columns of the row and of its warp's sums.
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
        // Waits until the sums of all warps are complete.
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
        // Waits until all sums are read, because the next slice clears them.
        sync_block();
    }
}
