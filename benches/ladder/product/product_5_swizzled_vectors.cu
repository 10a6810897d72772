// Rung 5: loads and stores of 16 bytes, and a swizzle against bank conflicts.
//
//   for each 32 of p:
//     copy a tile of x and a tile of weight, 64 x 32 bf16, in chunks of 16 bytes
//     chunk q of row r is stored as chunk q ^ (r / 2 % 4) of the row
//     for each chunk: load a chunk of 4 rows and of 4 columns, add 8 x 16 products
//
// Two rows of 64 bytes cover the 32 banks once. Without the swizzle, the reads of one chunk of 8 rows by a
// quarter warp would fall into 8 banks; with the swizzle, they use all 32. A thread's rows and columns are 16
// apart, so that adjacent lanes read adjacent rows.
#include "common.cuh"
#include "counted.cuh"

constexpr int TILE = 64, DEPTH = 32, EACH = 4;
/// Chunks of 16 bytes in a row of a tile, and elements of a chunk.
constexpr int CHUNKS = 4, CHUNK = 8;

/// Index of a 16-byte chunk in a swizzled tile.
DEVICE int swizzled(int row, int chunk) {
    return row * CHUNKS + (chunk ^ (row / 2 % CHUNKS));
}

/// tokens and outputs are multiples of 64, inputs of 32.
KERNEL(256, product_swizzled_vectors)(const bf16* x,       // (tokens, inputs)
                                      const bf16* weight,  // (outputs, inputs)
                                      bf16* y,             // (tokens, outputs)
                                      int tokens, int inputs, int outputs) {
    if (tokens % TILE != 0 || outputs % TILE != 0 || inputs % DEPTH != 0) {
        trap("product_swizzled_vectors: sizes are not multiples of the tile sizes");
    }
    SHARED(Vec16, x_tile, TILE * CHUNKS);
    SHARED(Vec16, weight_tile, TILE * CHUNKS);
    Counted<const Vec16> a = reinterpret_cast<const Vec16*>(x), b = reinterpret_cast<const Vec16*>(weight);
    Counted<Vec16> left = x_tile, right = weight_tile;
    Counted<bf16> c = y;
    int down = int(threadIdx.x) / 16, across = int(threadIdx.x) % 16;
    int row = int(blockIdx.y) * TILE, column = int(blockIdx.x) * TILE;
    // This thread copies chunk q of row r of each tile.
    int r = int(threadIdx.x) / CHUNKS, q = int(threadIdx.x) % CHUNKS;
    float sum[EACH][EACH] = {};
    for (int first = 0; first < inputs; first += DEPTH) {
        // Waits until no thread reads the tiles.
        sync_block();
        left[swizzled(r, q)] = a[((long long)(row + r) * inputs + first) / CHUNK + q];
        right[swizzled(r, q)] = b[((long long)(column + r) * inputs + first) / CHUNK + q];
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
                        sum[i][j] += of_row[i].x[p] * of_column[j].x[p];
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            c[(long long)(row + down + 16 * i) * outputs + column + across + 16 * j] = from_float<bf16>(sum[i][j]);
        }
    }
}
