// Rung 5: the vocabulary in slices, so that there are enough blocks.
//
//   head_split, a block for each 128 rows and slice of the vocabulary: compute the states of its rows
//   head_merge: combine the states of a row, slice by slice in ascending order
//
// The number of slices depends only on the sizes, not on the GPU, and the order is fixed, so a result has the
// same bits on every GPU. Blocks do not wait for each other, and sums are not atomic.
#include "common.cuh"
#include "head_tiles.cuh"

/// rows and vocab are multiples of 128, hidden_size of 32. The last slice may be shorter.
KERNEL(256, head_split)(const bf16* hidden,  // (tokens, hidden_size)
                        const bf16* head,    // (vocab, hidden_size)
                        const int* source,   // (rows)
                        const int* target,   // (rows)
                        float* max,          // (slices, rows)
                        float* sum,          // (slices, rows)
                        float* hit,          // (rows): the target's logit
                        int rows, int vocab, int hidden_size, int slices) {
    if (rows % TILE != 0 || vocab % TILE != 0 || hidden_size % Gemm::DEPTH != 0) {
        trap("head_split: sizes are not multiples of the tile sizes");
    }
    SHARED(Vec16, tiles, Gemm::STAGE_BYTES / 16);
    SHARED(LogSumExp, partials, TILE * Gemm::S::WARPS_N);
    unsigned char* shared = reinterpret_cast<unsigned char*>(tiles);
    int row = int(blockIdx.x) * TILE, slice = int(blockIdx.y);
    int width = ceil_div(vocab / TILE, slices) * TILE, end = min_of(vocab, (slice + 1) * width);
    Counted<float> to_max = max, to_sum = sum;
    RowStates states;
    states.start(target, row);
    for (int column = slice * width; column < end; column += TILE) {
        Gemm z = {};
        multiply_and_wait(z, shared, hidden, head, source, row, column, hidden_size);
        states.add(z, column, hit + row);
    }
    states.finish(partials, [&](int r, LogSumExp state) {
        to_max[(long long)slice * rows + row + r] = state.max;
        to_sum[(long long)slice * rows + row + r] = state.sum;
    });
}

KERNEL(256, head_merge)(const float* max,  // (slices, rows)
                        const float* sum,  // (slices, rows)
                        const float* hit,  // (rows)
                        float* logp,       // (rows)
                        float* lse,        // (rows)
                        int rows, int slices) {
    int r = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (r >= rows) {
        return;
    }
    Counted<const float> of_max = max, of_sum = sum, of_hit = hit;
    Counted<float> to_logp = logp, to_lse = lse;
    LogSumExp all = LogSumExp::empty();
    for (int s = 0; s < slices; ++s) {
        all = LogSumExp::combine(all, LogSumExp{of_max[(long long)s * rows + r], of_sum[(long long)s * rows + r]});
    }
    float value = all.value();
    to_lse[r] = value;
    to_logp[r] = of_hit[r] - value;
}
