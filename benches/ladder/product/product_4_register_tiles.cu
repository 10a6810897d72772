// Rung 4: a block computes 64 x 64 elements, each thread 4 x 4 of them in registers.
//
//   for each 16 of p:
//     copy a tile of x and a tile of weight, 64 x 16, to shared memory
//     for each p: load 4 numbers of each tile, add 16 products
//
// A number that is read from shared memory is used four times. The lanes still read down a column of the
// tiles, with bank conflicts.
#include "common.cuh"
#include "counted.cuh"

constexpr int TILE = 64, DEPTH = 16, EACH = 4, THREADS = 256;

/// tokens and outputs are multiples of 64, inputs of 16.
KERNEL(256, product_register_tiles)(const bf16* x,       // (tokens, inputs)
                                    const bf16* weight,  // (outputs, inputs)
                                    bf16* y,             // (tokens, outputs)
                                    int tokens, int inputs, int outputs) {
    if (tokens % TILE != 0 || outputs % TILE != 0 || inputs % DEPTH != 0) {
        trap("product_register_tiles: sizes are not multiples of the tile sizes");
    }
    SHARED(float, x_tile, TILE * DEPTH);
    SHARED(float, weight_tile, TILE * DEPTH);
    Counted<const bf16> a = x, b = weight;
    Counted<float> left = x_tile, right = weight_tile;
    Counted<bf16> c = y;
    int down = int(threadIdx.x) / 16 * EACH, across = int(threadIdx.x) % 16 * EACH;
    int row = int(blockIdx.y) * TILE, column = int(blockIdx.x) * TILE;
    float sum[EACH][EACH] = {};
    for (int first = 0; first < inputs; first += DEPTH) {
        // Waits until no thread reads the tiles.
        sync_block();
#pragma unroll
        for (int i = int(threadIdx.x); i < TILE * DEPTH; i += THREADS) {
            int r = i / DEPTH, p = first + i % DEPTH;
            left[i] = to_float(a[(long long)(row + r) * inputs + p]);
            right[i] = to_float(b[(long long)(column + r) * inputs + p]);
        }
        // Waits until both tiles are complete.
        sync_block();
#pragma unroll
        for (int p = 0; p < DEPTH; ++p) {
            float of_row[EACH], of_column[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                of_row[i] = left[(down + i) * DEPTH + p];
                of_column[i] = right[(across + i) * DEPTH + p];
            }
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) {
                    sum[i][j] += of_row[i] * of_column[j];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            c[(long long)(row + down + i) * outputs + column + across + j] = from_float<bf16>(sum[i][j]);
        }
    }
}
