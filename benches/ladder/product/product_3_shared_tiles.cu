// Rung 3: a block for each tile of 32 x 32 elements; tiles of both operands in shared memory.
//
//   for each 32 of p:
//     copy a tile of x and a tile of weight, 32 x 32, to shared memory
//     each thread: sum += x tile[row, :] weight tile[column, :]
//
// An element of an operand is loaded once for 32 elements of y instead of once for each. The lanes of a warp
// read a column of the weight's tile. Its rows are 32 words apart, so all lanes access the same bank.
#include "common.cuh"
#include "counted.cuh"

constexpr int TILE = 32;

/// tokens and outputs are multiples of 32.
KERNEL(1024, product_shared_tiles)(const bf16* x,       // (tokens, inputs)
                                   const bf16* weight,  // (outputs, inputs)
                                   bf16* y,             // (tokens, outputs)
                                   int tokens, int inputs, int outputs) {
    if (tokens % TILE != 0 || outputs % TILE != 0) {
        trap("product_shared_tiles: sizes are not multiples of the tile sizes");
    }
    SHARED(float, x_tile, TILE * TILE);
    SHARED(float, weight_tile, TILE * TILE);
    Counted<const bf16> a = x, b = weight;
    Counted<float> left = x_tile, right = weight_tile;
    Counted<bf16> c = y;
    int down = int(threadIdx.x) / TILE, across = int(threadIdx.x) % TILE;
    int row = int(blockIdx.y) * TILE, column = int(blockIdx.x) * TILE;
    float sum = 0.0f;
    for (int first = 0; first < inputs; first += TILE) {
        // Waits until no thread reads the tiles.
        sync_block();
        bool inside = first + across < inputs;
        left[down * TILE + across] =
            inside ? to_float(a[(long long)(row + down) * inputs + first + across]) : 0.0f;
        right[down * TILE + across] =
            inside ? to_float(b[(long long)(column + down) * inputs + first + across]) : 0.0f;
        // Waits until both tiles are complete.
        sync_block();
        for (int p = 0; p < TILE; ++p) {
            float of_row = left[down * TILE + p];
            float of_column = right[across * TILE + p];
            sum += of_row * of_column;
        }
    }
    c[(long long)(row + down) * outputs + column + across] = from_float<bf16>(sum);
}
