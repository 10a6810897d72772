// Rung 3: the GEMM and the logsumexp in one kernel, so that no logit is stored.
//
//   a block for each 64 rows; for each 64 entries of the vocabulary:
//     z = 64 x 64 logits in registers, 4 x 4 for each thread (rung 5 of the product ladder)
//     each thread adds its logits to the states of its four rows; the target's logit is kept
//   combine the 16 threads of each row
//
// The logits cause no memory traffic. There are few blocks: with 64 rows each, 8,192 rows give 128 blocks,
// less than one per multiprocessor of an H200, and every block reads the whole head.
#include "common.cuh"
#include "counted.cuh"
#include "reduce.cuh"

constexpr int TILE = 64, DEPTH = 32, EACH = 4;
constexpr int CHUNKS = 4, CHUNK = 8;

/// Index of a 16-byte chunk in a swizzled tile.
DEVICE int swizzled(int row, int chunk) {
    return row * CHUNKS + (chunk ^ (row / 2 % CHUNKS));
}

/// rows and vocab are multiples of 64, hidden_size of 32.
KERNEL(256, head_fused)(const bf16* hidden,  // (tokens, hidden_size)
                        const bf16* head,    // (vocab, hidden_size)
                        const int* source,   // (rows)
                        const int* target,   // (rows)
                        float* logp,         // (rows)
                        float* lse,          // (rows)
                        int rows, int vocab, int hidden_size) {
    if (rows % TILE != 0 || vocab % TILE != 0 || hidden_size % DEPTH != 0) {
        trap("head_fused: sizes are not multiples of the tile sizes");
    }
    SHARED(Vec16, hidden_tile, TILE * CHUNKS);
    SHARED(Vec16, head_tile, TILE * CHUNKS);
    SHARED(float, hits, TILE);
    Counted<float> hit = hits, to_logp = logp, to_lse = lse;
    Counted<const Vec16> a = reinterpret_cast<const Vec16*>(hidden), b = reinterpret_cast<const Vec16*>(head);
    Counted<Vec16> left = hidden_tile, right = head_tile;
    int down = int(threadIdx.x) / 16, across = int(threadIdx.x) % 16, row = int(blockIdx.x) * TILE;
    // This thread copies chunk q of row r of each tile.
    int r = int(threadIdx.x) / CHUNKS, q = int(threadIdx.x) % CHUNKS;
    long long from = (long long)source[row + r] * hidden_size;
    LogSumExp state[EACH];
    int wanted[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        state[i] = LogSumExp::empty();
        wanted[i] = target[row + down + 16 * i];
    }
    for (int column = 0; column < vocab; column += TILE) {
        float z[EACH][EACH] = {};
        for (int first = 0; first < hidden_size; first += DEPTH) {
            // Waits until no thread reads the tiles.
            sync_block();
            left[swizzled(r, q)] = a[(from + first) / CHUNK + q];
            right[swizzled(r, q)] = b[((long long)(column + r) * hidden_size + first) / CHUNK + q];
            // Waits until both tiles are complete.
            sync_block();
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                Floats<bf16> of_row[EACH], of_column[EACH];
#pragma unroll
                for (int i = 0; i < EACH; ++i) {
                    of_row[i] = unpack(left[swizzled(down + 16 * i, chunk)], bf16{});
                    of_column[i] = unpack(right[swizzled(across + 16 * i, chunk)], bf16{});
                }
#pragma unroll
                for (int p = 0; p < CHUNK; ++p) {
#pragma unroll
                    for (int i = 0; i < EACH; ++i) {
#pragma unroll
                        for (int j = 0; j < EACH; ++j) {
                            z[i][j] += of_row[i].x[p] * of_column[j].x[p];
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                state[i].add(z[i][j]);
                if (column + across + 16 * j == wanted[i]) {
                    hit[down + 16 * i] = z[i][j];
                }
            }
        }
    }
    // Waits until the targets' logits are written.
    sync_block();
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        // Combines the states of the 16 lanes that share a row.
#pragma unroll
        for (int mask = 1; mask < 16; mask *= 2) {
            LogSumExp other{shuffle_xor(state[i].max, mask), shuffle_xor(state[i].sum, mask)};
            state[i] = LogSumExp::combine(state[i], other);
        }
        if (across == 0) {
            float value = state[i].value();
            to_lse[row + down + 16 * i] = value;
            to_logp[row + down + 16 * i] = hit[down + 16 * i] - value;
        }
    }
}
