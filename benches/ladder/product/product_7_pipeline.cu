// Rung 7: copies by cp.async, which run while the tensor cores work.
//
//   a ring of three stages in shared memory
//   start the copies of the first two steps
//   for each step of 32 of p:
//     wait for its copies; block barrier; start the copies of the step after the next
//     products as in rung 6
//
// cp.async copies to shared memory without registers, and the thread continues without waiting. The latency
// of global memory is hidden behind the products of two steps, with one barrier per step instead of two.
#include "common.cuh"
#include "tile.cuh"

using Gemm = BlockGemm<bf16, true, true>;
constexpr int TILE = Gemm::ROWS, DEPTH = Gemm::DEPTH, CHUNKS = DEPTH / 8, THREADS = Gemm::THREADS;
constexpr int STAGES = 3;

/// tokens and outputs are multiples of 128, inputs of 32.
KERNEL(256, product_pipeline)(const bf16* x,       // (tokens, inputs)
                              const bf16* weight,  // (outputs, inputs)
                              bf16* y,             // (tokens, outputs)
                              int tokens, int inputs, int outputs) {
    if (tokens % TILE != 0 || outputs % TILE != 0 || inputs % DEPTH != 0) {
        trap("product_pipeline: sizes are not multiples of the tile sizes");
    }
    DYNAMIC_SHARED_OF(shared, STAGES * Gemm::STAGE_BYTES);
    int row = int(blockIdx.y) * TILE, column = int(blockIdx.x) * TILE, steps = inputs / DEPTH;
    Gemm gemm = {};
    auto copy = [&](int step) {
        unsigned char* left = shared + step % STAGES * Gemm::STAGE_BYTES;
        unsigned char* right = left + Gemm::TileA::BYTES;
#pragma unroll
        for (int i = int(threadIdx.x); i < TILE * CHUNKS; i += THREADS) {
            int r = i / CHUNKS, p = i % CHUNKS * 8;
            cp_async_16(Gemm::TileA::at(left, r, p), x + (long long)(row + r) * inputs + step * DEPTH + p);
            cp_async_16(Gemm::TileB::at(right, r, p), weight + (long long)(column + r) * inputs + step * DEPTH + p);
        }
    };
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) {
            copy(step);
        }
        cp_async_commit();
    }
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // Waits until the copies of all threads for this step have arrived and no warp reads the stage that is
        // filled next.
        sync_block();
        if (step + STAGES - 1 < steps) {
            copy(step + STAGES - 1);
        }
        cp_async_commit();
        unsigned char* left = shared + step % STAGES * Gemm::STAGE_BYTES;
        unsigned char* right = left + Gemm::TileA::BYTES;
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
    cp_async_wait<0>();
    for_each_eight(gemm, [&](int r, int c, float(&values)[8]) {
        store_eight(y + (long long)(row + r) * outputs, column + c, outputs, true, false, values);
    });
}
