// Rung 1: the textbook method. One kernel stores all logits; a second kernel makes two passes over each row.
//
//   head_stored_logits: z[r, v] = sum over p of hidden[source[r], p] head[v, p], a warp for each element
//   head_two_passes, a block for each row:
//     max = max over v of z[r, v];  sum = sum over v of exp(z[r, v] - max)
//     lse[r] = max + log(sum);  logp[r] = z[r, target[r]] - lse[r]
//
// The logits occupy rows x vocab x 4 bytes: 5 GB for 8,192 rows and a vocabulary of 151,936. They are written
// once and read twice.
#include "common.cuh"
#include "counted.cuh"
#include "reduce.cuh"

KERNEL(256, head_stored_logits)(const bf16* hidden,  // (tokens, hidden_size)
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

KERNEL(256, head_two_passes)(const float* logits,  // (rows, vocab)
                             const int* target,    // (rows)
                             float* logp,          // (rows)
                             float* lse,           // (rows)
                             int vocab) {
    SHARED(float, partial, 256 / WARP);
    Counted<float> to_logp = logp, to_lse = lse;
    int r = int(blockIdx.x);
    Counted<const float> z = logits + (long long)r * vocab;
    float most = -INFINITY;
    for (int v = int(threadIdx.x); v < vocab; v += 256) {
        most = Max{}(most, z[v]);
    }
    most = reduce_block<256>(most, partial, Max{});
    float sum = 0.0f;
    for (int v = int(threadIdx.x); v < vocab; v += 256) {
        sum += expf(z[v] - most);
    }
    sum = reduce_block<256>(sum, partial, Add{});
    if (threadIdx.x == 0) {
        float value = most + logf(sum);
        to_lse[r] = value;
        to_logp[r] = z[target[r]] - value;
    }
}
