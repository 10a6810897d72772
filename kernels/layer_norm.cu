// LayerNorm (arXiv 1607.06450) with weight and bias: forward, input gradient, weight gradient.
//
//   layer_norm_fwd, one token per team of threads, grid-stride loop:
//     mean; rstd = 1 / sqrt(mean((x - mean)²) + eps); y = (x - mean) rstd weight + bias
//   layer_norm_bwd, one slice of LAYER_NORM_SLICE tokens per block, grid-stride loop; its teams share the tokens:
//     for each token: n = (x - mean) rstd; g = dy weight
//                     dx (+)= rstd (g - mean(g) - n mean(g n))
//                     dweight[team] += dy n; dbias[team] += dy
//     dweight[slice], dbias[slice] = sums over teams
//   sum_slices.cu: dweight, dbias (+)= sums over slices
//
// The variance is computed about the mean, in a second sum over the row, so nothing cancels. The second sum
// needs no loads, since the row is in registers (team.cuh). The rest is as in norm.cu: no atomics, and a row
// is reduced by its team in one fixed order.
//
// Cost: every operand is read once; elements beyond HELD vectors per thread are read again, from cache.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"
#include "team.cuh"

constexpr int LAYER_NORM_THREADS = 128;
/// Tokens of a slice of the gradients of weight and bias.
EXPORT constexpr int LAYER_NORM_SLICE = 32;

template <int TEAM, class T>
KERNELS(128, layer_norm_fwd, FOR(TEAM: 32 128; T: f32 bf16))(const T* x,       // (tokens, hidden)
                                                             const T* weight,  // (2, hidden): weight, bias
                                                             T* y,             // (tokens, hidden)
                                                             float* stats,     // (tokens, 2): mean, rstd
                                                             int tokens, int hidden, float eps) {
    SHARED(float, partial, LAYER_NORM_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>, TEAMS = LAYER_NORM_THREADS / TEAM;
    bool vectorised = vec_aligned(x, hidden) && vec_aligned(y, hidden) && vec_aligned(weight, hidden);
    int lane = int(threadIdx.x) % TEAM, rest = vector_start<T, TEAM>(vectorised ? HELD : 0, lane);
    int held = vectorised ? hidden : 0;
    long long first = (long long)blockIdx.x * TEAMS + int(threadIdx.x) / TEAM, step = (long long)gridDim.x * TEAMS;
    for (long long token = first; token < tokens; token += step) {
        const T* in = x + token * hidden;
        T* out = y + token * hidden;
        Vec16 row[HELD];
        load_held<TEAM>(row, in, lane, held);
        float sum = 0.0f;
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            Floats<T> value = unpack(row[v], T{});
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum += value.x[i];
            }
        }
        for (int h = rest; h < hidden; h += TEAM * N) {
            float value[N];
            load_elements(value, in + h, min_of(N, hidden - h), vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum += value[i];
            }
        }
        float mean = reduce_block<TEAM>(sum, partial, Add{}) / float(hidden), squares = 0.0f;
        forget_elements(row);
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            Floats<T> value = unpack(row[v], T{});
            // Vectors past the end of the row hold zeros; their distance from the mean must not count.
            bool inside = vector_start<T, TEAM>(v, lane) < held;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float distance = inside ? value.x[i] - mean : 0.0f;
                squares += distance * distance;
            }
        }
        for (int h = rest; h < hidden; h += TEAM * N) {
            float value[N];
            // Elements past the end of the row are loaded as the mean, so they add nothing.
            load_elements(value, in + h, min_of(N, hidden - h), vectorised, mean);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                squares += (value[i] - mean) * (value[i] - mean);
            }
        }
        float scale = 1.0f / sqrtf(reduce_block<TEAM>(squares, partial, Add{}) / float(hidden) + eps);
        if (lane == 0) {
            stats[2 * token] = mean;
            stats[2 * token + 1] = scale;
        }
        forget_elements(row);
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            int h = vector_start<T, TEAM>(v, lane);
            if (h < held) {
                Floats<T> value = unpack(row[v], T{});
                float w[N], b[N];
                load_elements(w, weight + h, N, true);
                load_elements(b, weight + hidden + h, N, true);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    value.x[i] = (value.x[i] - mean) * scale * w[i] + b[i];
                }
                store_elements(out + h, value.x, N, true);
            }
        }
        for (int h = rest; h < hidden; h += TEAM * N) {
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

/// gradient += rstd (g - mean(g) - n mean(g n)), dweight += dy n and dbias += dy for the elements of a
/// vector; `sum` and `product` are the means.
template <class T>
DEVICE void layer_norm_gradient(float (&gradient)[VEC_ELEMENTS<T>], float (&dweight)[VEC_ELEMENTS<T>],
                                float (&dbias)[VEC_ELEMENTS<T>], const Floats<T>& d, const Floats<T>& x,
                                const Floats<T>& weight, float mean, float scale, float sum, float product) {
#pragma unroll
    for (int i = 0; i < VEC_ELEMENTS<T>; ++i) {
        float n = (x.x[i] - mean) * scale;
        gradient[i] += scale * (d.x[i] * weight.x[i] - sum - n * product);
        dweight[i] += d.x[i] * n;
        dbias[i] += d.x[i];
    }
}

/// Team i of a block processes the tokens i, i + TEAMS, ... of a slice in ascending order; then the teams'
/// sums are added in ascending order.
template <int TEAM, class T>
KERNELS(128, layer_norm_bwd, FOR(TEAM: 32 128; T: f32 bf16))(const T* dy,         // (tokens, hidden)
                                                             const T* x,          // (tokens, hidden)
                                                             const float* stats,  // (tokens, 2): mean, rstd
                                                             const T* weight,     // (2, hidden): weight, bias
                                                             T* dx,               // (tokens, hidden)
                                                             float* slices,  // (ceil(tokens / LAYER_NORM_SLICE), 2, hidden)
                                                             int tokens, int hidden, int add) {
    SHARED(float, partial, LAYER_NORM_THREADS / WARP);
    constexpr int N = VEC_ELEMENTS<T>, TEAMS = LAYER_NORM_THREADS / TEAM;
    DYNAMIC_SHARED(dynamic);
    // (TEAMS, 2, hidden), if there is more than one team.
    float* sums = reinterpret_cast<float*>(dynamic);
    bool vectorised = vec_aligned(dy, hidden) && vec_aligned(x, hidden) && vec_aligned(weight, hidden) &&
                      vec_aligned(dx, hidden) && vec_aligned(slices, hidden);
    int team = int(threadIdx.x) / TEAM, lane = int(threadIdx.x) % TEAM;
    int rest = vector_start<T, TEAM>(vectorised ? HELD : 0, lane), held = vectorised ? hidden : 0;
    Vec16 factors[HELD];
    load_held<TEAM>(factors, weight, lane, held);
    for (int slice = int(blockIdx.x); slice < ceil_div(tokens, LAYER_NORM_SLICE); slice += int(gridDim.x)) {
        float* out = slices + (long long)slice * 2 * hidden;
        // The team's sums of held vectors are in registers, those of other elements in `own`.
        float* own = TEAMS > 1 ? sums + team * 2 * hidden : out;
        float dweight[HELD][N] = {}, dbias[HELD][N] = {};
        for (int h = rest; h < hidden; h += TEAM * N) {
            float zero[N] = {};
            int valid = min_of(N, hidden - h);
            store_elements(own + h, zero, valid, vectorised);
            store_elements(own + hidden + h, zero, valid, vectorised);
        }
        int end = min_of(tokens, (slice + 1) * LAYER_NORM_SLICE);
        for (int token = slice * LAYER_NORM_SLICE + team; token < end; token += TEAMS) {
            long long row = (long long)token * hidden;
            Vec16 d[HELD], in[HELD], old[HELD];
            load_held<TEAM>(d, dy + row, lane, held);
            load_held<TEAM>(in, x + row, lane, held);
            if (add != 0) {
                load_held<TEAM>(old, dx + row, lane, held);
            }
            float mean = stats[2LL * token], scale = stats[2LL * token + 1];
            float sum = 0.0f, product = 0.0f;
#pragma unroll
            for (int v = 0; v < HELD; ++v) {
                // Vectors after the row have dy = weight = 0.
                Floats<T> dv = unpack(d[v], T{}), xv = unpack(in[v], T{}), w = unpack(factors[v], T{});
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    sum += dv.x[i] * w.x[i];
                    product += dv.x[i] * w.x[i] * ((xv.x[i] - mean) * scale);
                }
            }
            for (int h = rest; h < hidden; h += TEAM * N) {
                int valid = min_of(N, hidden - h);
                Floats<T> dv, xv, w;
                load_elements(dv.x, dy + row + h, valid, vectorised);
                load_elements(w.x, weight + h, valid, vectorised);
                load_elements(xv.x, x + row + h, valid, vectorised);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    sum += dv.x[i] * w.x[i];
                    product += dv.x[i] * w.x[i] * ((xv.x[i] - mean) * scale);
                }
            }
            sum = reduce_block<TEAM>(sum, partial, Add{}) / float(hidden);
            product = reduce_block<TEAM>(product, partial, Add{}) / float(hidden);
            forget_elements(d);
            forget_elements(in);
            forget_elements(factors);
#pragma unroll
            for (int v = 0; v < HELD; ++v) {
                int h = vector_start<T, TEAM>(v, lane);
                if (h < held) {
                    Floats<T> gradient = {};
                    if (add != 0) {
                        gradient = unpack(old[v], T{});
                    }
                    layer_norm_gradient<T>(gradient.x, dweight[v], dbias[v], unpack(d[v], T{}), unpack(in[v], T{}),
                                           unpack(factors[v], T{}), mean, scale, sum, product);
                    store_elements(dx + row + h, gradient.x, N, true);
                }
            }
            // No barrier is needed: each thread owns its columns of its team's sums.
            for (int h = rest; h < hidden; h += TEAM * N) {
                int valid = min_of(N, hidden - h);
                Floats<T> dv, xv, w;
                float gradient[N] = {}, of_weight[N], of_bias[N];
                load_elements(dv.x, dy + row + h, valid, vectorised);
                load_elements(w.x, weight + h, valid, vectorised);
                load_elements(xv.x, x + row + h, valid, vectorised);
                load_elements(of_weight, own + h, valid, vectorised);
                load_elements(of_bias, own + hidden + h, valid, vectorised);
                if (add != 0) {
                    load_elements(gradient, dx + row + h, valid, vectorised);
                }
                layer_norm_gradient<T>(gradient, of_weight, of_bias, dv, xv, w, mean, scale, sum, product);
                store_elements(dx + row + h, gradient, valid, vectorised);
                store_elements(own + h, of_weight, valid, vectorised);
                store_elements(own + hidden + h, of_bias, valid, vectorised);
            }
        }
#pragma unroll
        for (int v = 0; v < HELD; ++v) {
            int h = vector_start<T, TEAM>(v, lane);
            if (h < held) {
                store_elements(own + h, dweight[v], N, true);
                store_elements(own + hidden + h, dbias[v], N, true);
            }
        }
        if constexpr (TEAMS > 1) {
            // Waits until the sums of all teams are complete.
            sync_block();
            for (int h = int(threadIdx.x); h < 2 * hidden; h += LAYER_NORM_THREADS) {
                float total = sums[h];
#pragma unroll
                for (int i = 1; i < TEAMS; ++i) {
                    total += sums[i * 2 * hidden + h];
                }
                out[h] = total;
            }
            // Waits until all sums are read, because those of the next slice overwrite them.
            sync_block();
        }
    }
}
