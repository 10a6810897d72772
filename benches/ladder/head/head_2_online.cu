// Rung 2: one pass over a row, with a running maximum (Milakov and Gimelshein, arXiv 1805.02867).
//
//   state (max, sum) of no terms: (-inf, 0)
//   add z:   a larger z rescales the sum by exp(max - z) and becomes the maximum; else sum += exp(z - max)
//   combine: the sum of both sums, each rescaled to the larger maximum
//
// The logits are read once instead of twice. They are still stored.
#include "common.cuh"
#include "counted.cuh"
#include "reduce.cuh"

KERNEL(256, head_logits_to_combine)(const bf16* hidden,  // (tokens, hidden_size)
                                    const bf16* head,    // (vocab, hidden_size)
                                    const int* source,   // (rows)
                                    float* logits,       // (rows, vocab)
                                    int rows, int vocab, int hidden_size) {
    Counted<const bf16> a = hidden, b = head;
    Counted<float> z = logits;
    long long element = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (element >= (long long)rows * vocab) {
        return;
    }
    int r = int(element / vocab), v = int(element % vocab);
    long long row = source[r];
    float sum = 0.0f;
    for (int p = lane_index(); p < hidden_size; p += WARP) {
        float left = to_float(a[row * hidden_size + p]);
        float right = to_float(b[(long long)v * hidden_size + p]);
        sum += left * right;
    }
    sum = reduce_warp(sum, Add{});
    if (lane_index() == 0) {
        z[element] = sum;
    }
}

KERNEL(256, head_online)(const float* logits,  // (rows, vocab)
                         const int* target,    // (rows)
                         float* logp,          // (rows)
                         float* lse,           // (rows)
                         int vocab) {
    SHARED(LogSumExp, partial, 256 / WARP);
    Counted<float> to_logp = logp, to_lse = lse;
    int r = int(blockIdx.x), warp = int(threadIdx.x) / WARP;
    Counted<const float> z = logits + (long long)r * vocab;
    LogSumExp state = LogSumExp::empty();
    for (int v = int(threadIdx.x); v < vocab; v += 256) {
        state.add(z[v]);
    }
    state = combine_warp(state);
    if (lane_index() == 0) {
        partial[warp] = state;
    }
    // Waits until the states of all warps are written.
    sync_block();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 256 / WARP; ++i) {
            state = LogSumExp::combine(state, partial[i]);
        }
        float value = state.value();
        to_lse[r] = value;
        to_logp[r] = z[target[r]] - value;
    }
}
