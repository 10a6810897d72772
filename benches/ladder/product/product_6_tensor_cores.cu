// Rung 6: GEMM on tensor cores, by mma.sync.
//
//   a block computes 128 x 128 elements, each of its 8 warps 64 x 32 of them
//   for each 32 of p:
//     copy a tile of x and a tile of weight, 128 x 32, to shared memory, swizzled
//     for each 16 of p: ldmatrix 4 fragments of x and of weight; 16 products of 16 x 8 x 16
//
// One instruction of a warp multiplies 2,048 pairs. ldmatrix reads 16-byte rows of fragments.
#include "common.cuh"
#include "counted.cuh"
#include "tile.cuh"

using Gemm = BlockGemm<bf16, true, true>;
constexpr int TILE = Gemm::ROWS, DEPTH = Gemm::DEPTH, CHUNKS = DEPTH / 8, THREADS = Gemm::THREADS;
static_assert(Gemm::ROWS == Gemm::COLUMNS, "one shape of tile for both operands");

/// tokens and outputs are multiples of 128, inputs of 32.
KERNEL(256, product_tensor_cores)(const bf16* x,       // (tokens, inputs)
                                  const bf16* weight,  // (outputs, inputs)
                                  bf16* y,             // (tokens, outputs)
                                  int tokens, int inputs, int outputs) {
    if (tokens % TILE != 0 || outputs % TILE != 0 || inputs % DEPTH != 0) {
        trap("product_tensor_cores: sizes are not multiples of the tile sizes");
    }
    SHARED(Vec16, tiles, 2 * TILE * CHUNKS);
    unsigned char* left = reinterpret_cast<unsigned char*>(tiles);
    unsigned char* right = left + Gemm::TileA::BYTES;
    int row = int(blockIdx.y) * TILE, column = int(blockIdx.x) * TILE;
    Gemm gemm = {};
    for (int first = 0; first < inputs; first += DEPTH) {
        // Waits until no warp reads the tiles.
        sync_block();
#pragma unroll
        for (int i = int(threadIdx.x); i < TILE * CHUNKS; i += THREADS) {
            int r = i / CHUNKS, p = i % CHUNKS * 8;
            Vec16 of_row = load_vec(x + (long long)(row + r) * inputs + first + p);
            Vec16 of_column = load_vec(weight + (long long)(column + r) * inputs + first + p);
            store_vec(Gemm::TileA::at(left, r, p), of_row);
            store_vec(Gemm::TileB::at(right, r, p), of_column);
        }
        // Waits until both tiles are complete.
        sync_block();
#pragma unroll
        for (int p = 0; p < DEPTH; p += 16) {
            OperandA<bf16> a[Gemm::FRAGMENTS_M];
#pragma unroll
            for (int i = 0; i < Gemm::FRAGMENTS_M; ++i) {
                load_a<Gemm::TileA, true>(a[i], left, Gemm::warp_row() + 16 * i, p);
            }
#pragma unroll
            for (int j = 0; j < Gemm::FRAGMENTS_N; j += 2) {
                OperandB<bf16> b;
                load_b<Gemm::TileB, true>(b, right, Gemm::warp_column() + 8 * j, p);
#pragma unroll
                for (int i = 0; i < Gemm::FRAGMENTS_M; ++i) {
                    mma(gemm.acc[i][j], a[i].term[0], b.term[0][0]);
                    mma(gemm.acc[i][j + 1], a[i].term[0], b.term[1][0]);
                }
            }
        }
    }
    for_each_eight(gemm, [&](int r, int c, float(&values)[8]) {
        store_eight(y + (long long)(row + r) * outputs, column + c, outputs, true, false, values);
    });
}
