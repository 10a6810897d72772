// Tiles of 128 x 128 logits on tensor cores, for rungs 4 to 6 of the head.
#pragma once

#include "counted.cuh"
#include "reduce.cuh"
#include "tile.cuh"

using Gemm = BlockGemm<bf16, true, true>;
constexpr int TILE = Gemm::ROWS;
static_assert(Gemm::ROWS == Gemm::COLUMNS, "one shape of tile for both operands");

/// Adds the logits of the tile at (row, column) to z, with synchronous copies to shared memory. `shared`
/// holds one stage.
DEVICE void multiply_and_wait(Gemm& z, unsigned char* shared, const bf16* hidden, const bf16* head, const int* source,
                              int row, int column, int hidden_size) {
    constexpr int CHUNKS = Gemm::DEPTH / 8;
    unsigned char* left = shared;
    unsigned char* right = shared + Gemm::TileA::BYTES;
    for (int first = 0; first < hidden_size; first += Gemm::DEPTH) {
        // Waits until no warp reads the tiles.
        sync_block();
#pragma unroll
        for (int i = int(threadIdx.x); i < TILE * CHUNKS; i += Gemm::THREADS) {
            int r = i / CHUNKS, p = i % CHUNKS * 8;
            Vec16 of_row = load_vec(hidden + (long long)source[row + r] * hidden_size + first + p);
            Vec16 of_column = load_vec(head + (long long)(column + r) * hidden_size + first + p);
            store_vec(Gemm::TileA::at(left, r, p), of_row);
            store_vec(Gemm::TileB::at(right, r, p), of_column);
        }
        // Waits until both tiles are complete.
        sync_block();
#pragma unroll
        for (int p = 0; p < Gemm::DEPTH; p += 16) {
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
                    mma(z.acc[i][j], a[i].term[0], b.term[0][0]);
                    mma(z.acc[i][j + 1], a[i].term[0], b.term[1][0]);
                }
            }
        }
    }
}

/// States of the rows whose logits a thread holds.
struct RowStates {
    LogSumExp state[Gemm::FRAGMENTS_M][2];
    int target[Gemm::FRAGMENTS_M][2];

    /// Empties the states and loads the targets of the rows from `row` on.
    DEVICE void start(Counted<const int> targets, int row) {
#pragma unroll
        for (int i = 0; i < Gemm::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                state[i][half] = LogSumExp::empty();
                target[i][half] = targets[row + Gemm::row_of(i, half)];
            }
        }
    }

    /// Adds the logits of a tile at `column`. Each row's maximum is computed first, so that a logit costs one
    /// exponential. `hit` receives the target's logit of each row of the block.
    DEVICE void add(const Gemm& z, int column, Counted<float> hit) {
#pragma unroll
        for (int i = 0; i < Gemm::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                LogSumExp tile{-INFINITY, 0.0f};
#pragma unroll
                for (int j = 0; j < Gemm::FRAGMENTS_N; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float logit = z.acc[i][j].value[2 * half + e];
                        tile.max = Max{}(tile.max, logit);
                        if (column + Gemm::column_of(j) + e == target[i][half]) {
                            hit[Gemm::row_of(i, half)] = logit;
                        }
                    }
                }
#pragma unroll
                for (int j = 0; j < Gemm::FRAGMENTS_N; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        tile.sum += expf(z.acc[i][j].value[2 * half + e] - tile.max);
                    }
                }
                state[i][half] = LogSumExp::combine(state[i][half], tile);
            }
        }
    }

    /// Combines the states of the threads that share a row, and calls use(row of the block, state).
    /// `partials` has room for TILE x WARPS_N states; all earlier accesses to that memory must be complete.
    template <class Use>
    DEVICE void finish(Counted<LogSumExp> partials, Use use) {
        constexpr int ACROSS = Gemm::S::WARPS_N;
        int across = int(threadIdx.x) / WARP % ACROSS;
#pragma unroll
        for (int i = 0; i < Gemm::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                LogSumExp combined = state[i][half];
#pragma unroll
                for (int mask = 1; mask < 4; mask *= 2) {
                    LogSumExp other{shuffle_xor(combined.max, mask), shuffle_xor(combined.sum, mask)};
                    combined = LogSumExp::combine(combined, other);
                }
                if (lane_index() % 4 == 0) {
                    partials[Gemm::row_of(i, half) * ACROSS + across] = combined;
                }
            }
        }
        // Waits until the states of all warps are written.
        sync_block();
        for (int r = int(threadIdx.x); r < TILE; r += Gemm::THREADS) {
            LogSumExp combined = partials[r * ACROSS];
#pragma unroll
            for (int w = 1; w < ACROSS; ++w) {
                combined = LogSumExp::combine(combined, partials[r * ACROSS + w]);
            }
            use(r, combined);
        }
    }
};
