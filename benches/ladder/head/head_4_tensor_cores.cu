// Rung 4: the GEMM of rung 3 on tensor cores, in tiles of 128 x 128.
//
//   a block for each 128 rows; for each 128 entries of the vocabulary:
//     z = 128 x 128 logits by mma.sync (rung 6 of the product ladder)
//     each thread combines its 8 logits of a row: their maximum first, then one exponential per logit
//
// By their floors on a full GPU, the GEMM needs a seventh of the time of rung 3's GEMM. Tiles are larger, so
// there are even fewer blocks: 64 for 8,192 rows, less than half of an H200's multiprocessors.
#include "common.cuh"
#include "head_tiles.cuh"

/// rows and vocab are multiples of 128, hidden_size of 32.
KERNEL(256, head_tensor_cores)(const bf16* hidden,  // (tokens, hidden_size)
                               const bf16* head,    // (vocab, hidden_size)
                               const int* source,   // (rows)
                               const int* target,   // (rows)
                               float* logp,         // (rows)
                               float* lse,          // (rows)
                               int rows, int vocab, int hidden_size) {
    if (rows % TILE != 0 || vocab % TILE != 0 || hidden_size % Gemm::DEPTH != 0) {
        trap("head_tensor_cores: sizes are not multiples of the tile sizes");
    }
    SHARED(Vec16, tiles, Gemm::STAGE_BYTES / 16);
    SHARED(LogSumExp, partials, TILE * Gemm::S::WARPS_N);
    SHARED(float, hits, TILE);
    Counted<float> hit = hits, to_logp = logp, to_lse = lse;
    unsigned char* shared = reinterpret_cast<unsigned char*>(tiles);
    int row = int(blockIdx.x) * TILE;
    RowStates states;
    states.start(target, row);
    for (int column = 0; column < vocab; column += TILE) {
        Gemm z = {};
        multiply_and_wait(z, shared, hidden, head, source, row, column, hidden_size);
        states.add(z, column, hit);
    }
    states.finish(partials, [&](int r, LogSumExp state) {
        float value = state.value();
        to_lse[row + r] = value;
        to_logp[row + r] = hit[r] - value;
    });
}
