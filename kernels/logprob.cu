// Log-probabilities over stored logits, and their gradient in place: the oracle of the vocabulary head.
//
// A block takes rows by stride. Each thread keeps a logsumexp of the logits it meets; lanes, then warps, are joined in
// one fixed order. Targets are in range: what packs a batch has checked them. A row of -inf alone has logsumexp -inf;
// NaN or +inf in a row make it NaN. Cost: the logits are read once; the backward also writes them.
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
    constexpr int N = LANE_ELEMENTS<T>, WARPS = LOGPROB_THREADS / WARP;
    SHARED(LogSum, terms_of_warp, WARPS);
    bool by_lane = wide(logits, vocab);
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* row = logits + r * vocab;
        LogSum terms = LogSum::none();
        for (int v = int(threadIdx.x) * N; v < vocab; v += LOGPROB_THREADS * N) {
            float x[N];
            // -inf adds no term.
            load_piece(x, row + v, min_of(N, vocab - v), by_lane, -INFINITY);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                terms.add(x[i]);
            }
        }
        terms = join_warp(terms);
        if (lane_index() == 0) {
            terms_of_warp[threadIdx.x / WARP] = terms;
        }
        // The terms of every warp are there before they are joined.
        sync_block();
        if (threadIdx.x == 0) {
            LogSum all = terms_of_warp[0];
#pragma unroll
            for (int i = 1; i < WARPS; ++i) {
                all = LogSum::join(all, terms_of_warp[i]);
            }
            lse[r] = all.value();
            logp[r] = to_float(row[target[r]]) - all.value();
        }
        // They have been read before those of the next row replace them.
        sync_block();
    }
}

/// row <- dlogp (onehot(target) - e^(row - lse)). A row whose dlogp is 0 becomes 0 whatever its logits are.
template <bool BY_LANE, class T>
DEVICE void logprob_bwd_rows(const int* target, const float* lse, const float* dlogp, T* logits, int rows, int vocab) {
    constexpr int N = LANE_ELEMENTS<T>;
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        T* row = logits + r * vocab;
        float shift = lse[r], factor = dlogp[r];
        int hit = target[r];
        for (int v = int(threadIdx.x) * N; v < vocab; v += LOGPROB_THREADS * N) {
            int valid = min_of(N, vocab - v);
            float x[N];
            load_piece(x, row + v, valid, BY_LANE);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float one = v + i == hit ? 1.0f : 0.0f;
                x[i] = factor == 0.0f ? 0.0f : factor * (one - expf(x[i] - shift));
            }
            store_piece(row + v, x, valid, BY_LANE);
        }
    }
}

template <class T>
KERNELS(128, logprob_bwd, FOR(T: f32 bf16))(const int* target,   // (rows)
                                            const float* lse,    // (rows)
                                            const float* dlogp,  // (rows)
                                            T* logits,           // (rows, vocab), in place
                                            int rows, int vocab) {
    if (wide(logits, vocab)) {
        logprob_bwd_rows<true>(target, lse, dlogp, logits, rows, vocab);
    } else {
        logprob_bwd_rows<false>(target, lse, dlogp, logits, rows, vocab);
    }
}
