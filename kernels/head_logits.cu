// Log-probabilities over stored logits and their gradient in place; the reference for the
// vocabulary head, which stores no logits.
//
//   logprob_fwd, one row per block, grid-stride loop:
//     each thread: online logsumexp of its logits; combine lanes, then warps; logp = row[target] - lse
//   logprob_bwd: row = dlogp (onehot(target) - exp(row - lse))
//
// Threads, lanes and warps are combined in one fixed order. The batch packer guarantees that
// targets are in range. A row of only -inf has logsumexp -inf; NaN or +inf in a row makes it NaN.
// Cost: the logits are read once; the backward also writes them.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

constexpr int LOGPROB_THREADS = 128;

/// lse = logsumexp(row), logp = row[target] - lse.
template <class T>
KERNELS(128, logprob_fwd, FOR(T: f32 bf16))(const T* logits,    // (rows, vocab)
                                            const int* target,  // (rows), below vocab
                                            float* logp,        // (rows)
                                            float* lse,         // (rows)
                                            int rows, int vocab) {
    constexpr int N = VEC_ELEMENTS<T>, WARPS = LOGPROB_THREADS / WARP;
    SHARED(LogSumExp, warp_partial, WARPS);
    bool vectorised = vec_aligned(logits, vocab);
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* row = logits + r * vocab;
        LogSumExp partial = LogSumExp::empty();
        for (int v = int(threadIdx.x) * N; v < vocab; v += LOGPROB_THREADS * N) {
            float x[N];
            // Padding with -inf adds nothing.
            load_elements(x, row + v, min_of(N, vocab - v), vectorised, -INFINITY);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                partial.add(x[i]);
            }
        }
        partial = combine_warp(partial);
        if (lane_index() == 0) {
            warp_partial[threadIdx.x / WARP] = partial;
        }
        // Waits until all warps' partials are written.
        sync_block();
        if (threadIdx.x == 0) {
            LogSumExp all = warp_partial[0];
#pragma unroll
            for (int i = 1; i < WARPS; ++i) {
                all = LogSumExp::combine(all, warp_partial[i]);
            }
            lse[r] = all.value();
            logp[r] = to_float(row[target[r]]) - all.value();
        }
        // Waits until thread 0 has read the partials, which the next row overwrites.
        sync_block();
    }
}

/// row = dlogp (onehot(target) - e^(row - lse)). A row with dlogp 0 becomes 0 whatever its logits
/// are.
template <bool VECTORISED, class T>
DEVICE void logprob_bwd_rows(const int* target, const float* lse, const float* dlogp, T* logits, int rows, int vocab) {
    constexpr int N = VEC_ELEMENTS<T>;
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        T* row = logits + r * vocab;
        float shift = lse[r], factor = dlogp[r];
        int hit = target[r];
        for (int v = int(threadIdx.x) * N; v < vocab; v += LOGPROB_THREADS * N) {
            int valid = min_of(N, vocab - v);
            float x[N];
            load_elements(x, row + v, valid, VECTORISED);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float one = v + i == hit ? 1.0f : 0.0f;
                x[i] = factor == 0.0f ? 0.0f : factor * (one - expf(x[i] - shift));
            }
            store_elements(row + v, x, valid, VECTORISED);
        }
    }
}

template <class T>
KERNELS(128, logprob_bwd, FOR(T: f32 bf16))(const int* target,   // (rows)
                                            const float* lse,    // (rows)
                                            const float* dlogp,  // (rows)
                                            T* logits,           // (rows, vocab), in place
                                            int rows, int vocab) {
    if (vec_aligned(logits, vocab)) {
        logprob_bwd_rows<true>(target, lse, dlogp, logits, rows, vocab);
    } else {
        logprob_bwd_rows<false>(target, lse, dlogp, logits, rows, vocab);
    }
}
