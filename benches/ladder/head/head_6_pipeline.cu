// Rung 6: copies by cp.async, which run while the tensor cores work.
//
//   as rung 5, with three stages in shared memory (rung 7 of the product ladder) instead of one
//
// The pipeline starts again for each tile of the vocabulary, because a block keeps one tile of logits in
// registers. The loop is that of the portable kernels (kernels/tile.cuh). This rung is therefore
// head_logprob_slices of kernels/head.cu without partial tiles and without a soft cap.
#include "common.cuh"
#include "head_tiles.cuh"

/// rows and vocab are multiples of 128. The last slice may be shorter.
KERNEL(256, head_pipeline)(const bf16* hidden,  // (tokens, hidden_size)
                           const bf16* head,    // (vocab, hidden_size)
                           const int* source,   // (rows)
                           const int* target,   // (rows)
                           float* max,          // (slices, rows)
                           float* sum,          // (slices, rows)
                           float* hit,          // (rows): the target's logit
                           int rows, int vocab, int hidden_size, int slices) {
    if (rows % TILE != 0 || vocab % TILE != 0) {
        trap("head_pipeline: sizes are not multiples of the tile sizes");
    }
    DYNAMIC_SHARED_OF(shared, Gemm::SHARED_BYTES);
    auto a = MatrixView<bf16>::of(hidden, rows, hidden_size, source);
    auto b = MatrixView<bf16>::of(head, vocab, hidden_size);
    int row = int(blockIdx.x) * TILE, slice = int(blockIdx.y);
    int width = ceil_div(vocab / TILE, slices) * TILE, end = min_of(vocab, (slice + 1) * width);
    Counted<float> to_max = max, to_sum = sum;
    RowStates states;
    states.start(target, row);
    for (int column = slice * width; column < end; column += TILE) {
        // Waits until no warp reads the stages.
        sync_block();
        Gemm z;
        z.compute(shared, a, b, row, column, hidden_size);
        states.add(z, column, hit + row);
    }
    // Waits until no warp reads the stages, because the states reuse their memory.
    sync_block();
    states.finish(reinterpret_cast<LogSumExp*>(shared), [&](int r, LogSumExp state) {
        to_max[(long long)slice * rows + row + r] = state.max;
        to_sum[(long long)slice * rows + row + r] = state.sum;
    });
}

KERNEL(256, head_pipeline_merge)(const float* max,  // (slices, rows)
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
