// C (+)= A B on Hopper, a job of tile_sm90.cuh with an epilogue that adds bias and residual,
// scales rows or reduces splits. Used by linear_sm90.cu and head_sm90.cu.
//
//   bf16 C (no split-K):                         f32 C (split-K):
//     prefetch: bias to a register,                for splits > 1: wait until the tile's
//       TMA load of the residual's first batch       semaphore equals this split
//     for each batch of subtiles:                  for each batch of subtiles:
//       wait for the residual                        acc *= row_scale
//       staging = bf16(acc + bias + residual)        split 0 without `add`: TMA store
//       TMA store                                    else: TMA reduce-add
//                                                  for splits > 1: wait for the stores,
//                                                    release the semaphore to the next split
//
// Departures from the usual split-K and stream-K:
//   - Splits are reduced in C itself, in ascending order, by a semaphore per tile and consumer. There
//     is no workspace, and results do not depend on the number of multiprocessors.
//   - Tiles of split 0 come first in the tile order, then those of split 1, and so on. So a tile waits
//     only for tiles of lower numbers, and waiting cannot deadlock while all blocks are resident.
//   - If patch norms of C are requested, the last split (or the only one, with `add`) does not reduce
//     in memory. It loads C, accumulates in registers and stores, so the norm sees final values. The
//     sum is the same to the bit.
//   - A bf16 result is rounded once, after f32 acc + bias + residual.
#pragma once

#include "linear_patches.cuh"
#include "tile_sm90.cuh"

/// Block tiles: 128 rows by 256, 224, 192 or 128 columns; cooperative or ping-pong.
EXPORT enum GemmTile : int { N256, N224, N192, N192_PING_PONG, N128, N128_PING_PONG };
/// Columns of a tile, blocks of a cluster, and whether the schedule is ping-pong, indexed by GemmTile.
EXPORT constexpr int GEMM_COLUMNS[] = {256, 224, 192, 192, 128, 128},
                     GEMM_CLUSTER[] = {2, 2, 1, 1, 1, 1}, GEMM_PING_PONG[] = {0, 0, 0, 1, 0, 1};

template <GemmTile TILE, Major A, Major B, class Out>
using HopperGemm = Hopper<GEMM_COLUMNS[TILE], A, B, Out, GEMM_CLUSTER[TILE], GEMM_PING_PONG[TILE] != 0>;

/// One GEMM.
struct Problem {
    int m, n, k;
    /// Splits of k (split-K); 1 unless C is f32.
    int splits;
    /// Whether to accumulate into C (f32 results).
    int add;
    const bf16* bias;        // (n), may be null
    const float* row_scale;  // (m) factors of f32 results, may be null
    int* semaphores;         // (tiles, 2) zeros if splits > 1; zero again at the end
    float* norms;            // patch norms of f32 results (linear_patches.cuh), may be null
};

/// The job: all tiles of split 0, then of split 1, and so on. A tile waits only for tiles with
/// lower numbers.
template <class H>
struct MatmulJob : Raster<H> {
    Problem p;
    const TensorDescriptor* c;
    const TensorDescriptor* residual;  // (m, n) bf16, may be null, may alias C
    int phase;                         // of source_full, starts at 0
    /// The thread's two elements of the tile's bias.
    uint32_t bias_pair;
    /// Split-K needs an f32 C: splits are added to C in memory, and a bf16 C would be rounded after
    /// each split.
    static constexpr bool SPLITS = sizeof(typename H::Out) == 4;
    /// 16-byte chunks of a row that the epilogue loads before it stores: all chunks of a subtile, or half of
    /// them where loading all would spill registers.
    static constexpr int LOADED_CHUNKS = H::PING_PONG && H::COLUMNS > 128 ? 4 : 8;
    // The last bf16 subtile may overlap the previous one: the overlap stores the same values twice.
    // An accumulating store must not overlap, since it would add twice.
    static_assert(sizeof(typename H::Out) == 2 || H::COLUMNS % H::SUBTILE_COLUMNS == 0,
                  "disjoint subtiles of an accumulated tile");

    DEVICE int tiles() const {
        return Raster<H>::tiles() * (SPLITS ? p.splits : 1);
    }

    DEVICE int split_of(int number) const {
        return SPLITS ? number / Raster<H>::tiles() : 0;
    }

    DEVICE Tile tile(int number, unsigned rank) const {
        if constexpr (!SPLITS) {
            return Raster<H>::tile(number, rank);
        }
        int split = split_of(number);
        Tile tile = Raster<H>::tile(number - split * Raster<H>::tiles(), rank);
        int each = ceil_div(tile.steps, p.splits), first = min_of(split * each, tile.steps);
        return {tile.row, tile.column, first, min_of(each, tile.steps - first)};
    }

    /// Issues the TMA loads of the source of a batch of subtiles that starts at `begin`: the residual, or C itself.
    DEVICE void load_source(const Ring<H>& ring, int row, int column, int begin, int group) const {
        const int count = min_of(H::BATCH, H::SUBTILES - begin);
        Mbarrier* source_full = ring.source_full + 2 * group;
        tma_wait_read<0>();
        arrive_expect_tx(source_full, count * H::SUBTILE_BYTES);
        auto at = [&](int i) { return column + first_of(begin + i); };
        load_subtiles<H>(ring, SPLITS ? *c : *residual, row, 0, count, at, source_full, group);
    }

    /// Loads the thread's elements of a tile's bias.
    DEVICE void load_bias(const bf16* bias, const Tile& tile, int thread) {
        // n is a multiple of 8, so both elements of a pair are inside or both are outside.
        int at = tile.column + 2 * thread;
        bias_pair = at < p.n ? *reinterpret_cast<const uint32_t*>(bias + at) : 0u;
    }

    /// Copies the bias of the tile to the consumer's row of shared memory. All threads of the consumer call it.
    DEVICE void share_bias(const Ring<H>& ring, int group, int thread) const {
        // Overwriting the row is safe: the previous tile's last batch ended with a barrier of the consumer,
        // after all its threads had read the row.
        if (thread < H::COLUMNS / 2) {
            ring.row(group)[thread] = bias_pair;
        }
        sync_named(1 + group, 128);  // the bias row is written before any thread reads it
    }

    /// Starts the loads of the bias and of the first batch's residual, which run during the main loop.
    DEVICE void prefetch(const Ring<H>& ring, const Tile& tile, int group, int thread) {
        if (!SPLITS && p.bias != nullptr) {
            load_bias(p.bias, tile, thread);
        }
        if (!SPLITS && residual != nullptr && thread == 0) {
            load_source(ring, tile.row + (H::PING_PONG ? 0 : 64 * group), tile.column, 0, group);
        }
    }

    /// All threads of a consumer call it.
    DEVICE void epilogue(const Ring<H>& ring, float (&acc)[H::HALVES][H::ACCUMULATORS], int number, const Tile& tile,
                         int group, int thread) {
        int split = split_of(number);
        int* semaphore = nullptr;
        if (SPLITS && p.splits > 1) {
            int place = tile.row / H::ROWS * this->tiles_across() + tile.column / H::COLUMNS;
            semaphore = p.semaphores + 2 * place + (H::PING_PONG ? 0 : group);
            if (thread == 0) {
                wait_semaphore(semaphore, split);
                fence_async_proxy_global();
            }
            // Earlier splits of this tile are in global memory. Only thread 0 accesses C, by TMA, so no result
            // depends on this barrier. Without the barrier, ptxas duplicates a part of the epilogue's code.
            sync_named(1 + group, 128);
        }
        if (!SPLITS && p.bias != nullptr) {
            share_bias(ring, group, thread);
        }
        // Norms are computed from the final values, so the last split accumulates in registers.
        bool add = SPLITS && (p.add != 0 || split > 0);
        bool with_norm = SPLITS && p.norms != nullptr && split + 1 == p.splits;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int row = tile.row + 64 * (H::PING_PONG ? half : group);
            double squares = store_rows(ring, acc[half], row, tile.column, add, with_norm, half == 0, group, thread);
            if (with_norm) {
                store_norm<16, H::COLUMNS>(p.norms, p.m, p.n, row + thread / WARP * 16, tile.column, squares);
            }
        }
        if (SPLITS && p.splits > 1 && thread == 0) {
            // Before the next split starts, waits until the stores are complete and makes them visible to
            // plain accesses and to other blocks' TMA.
            tma_wait<0>();
            fence_async_proxy_global();
            store_release(semaphore, split + 1 == p.splits ? 0 : split + 1);
        }
    }

    /// Stores 64 rows of accumulators batch by batch, or adds them to C. `prefetched` tells whether
    /// the load of the first batch's residual has been issued. Returns the sum of squares of the thread's
    /// stored values if `with_norm` (f32 results).
    DEVICE double store_rows(const Ring<H>& ring, const float (&acc)[H::ACCUMULATORS], int row, int column, bool add,
                             bool with_norm, bool prefetched, int group, int thread) {
        bool has_source = SPLITS ? add && with_norm : residual != nullptr;
        double squares[2] = {0.0, 0.0};
        float scale[2] = {1.0f, 1.0f};
        if (SPLITS && p.row_scale != nullptr) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int r = row + row_of_thread(thread) + 8 * i;
                scale[i] = r < p.m ? p.row_scale[r] : 0.0f;
            }
        }
#pragma unroll
        for (int begin = 0; begin < H::SUBTILES; begin += H::BATCH) {
            const int count = min_of(H::BATCH, H::SUBTILES - begin);
            unsigned char* staging;
            if (has_source) {
                if (thread == 0 && (SPLITS || !(prefetched && begin == 0))) {
                    load_source(ring, row, column, begin, group);
                }
                wait_mbarrier(ring.source_full + 2 * group, phase);
                phase ^= 1;
                staging = ring.staging + group * H::BATCH * H::SUBTILE_BYTES;
            } else {
                staging = acquire_staging(ring, group, thread);
            }
#pragma unroll
            for (int i = 0; i < count; ++i) {
                if constexpr (SPLITS) {
                    unsigned char* subtile = staging + i * H::SUBTILE_BYTES;
                    if (with_norm) {
                        stage_f32_squared(subtile, acc, first_of(begin + i), has_source, squares, thread);
                    } else {
                        stage_f32(subtile, acc, first_of(begin + i), scale, thread);
                    }
                } else {
                    stage_bf16(staging + i * H::SUBTILE_BYTES, acc, first_of(begin + i), ring.row(group), thread);
                }
            }
            publish_staging(group);
            if (thread == 0) {
#pragma unroll
                for (int i = 0; i < count; ++i) {
                    int at = column + first_of(begin + i);
                    if (row < p.m && at < p.n) {
                        if (add && !has_source) {
                            tma_reduce_add(*c, at, row, staging + i * H::SUBTILE_BYTES);
                        } else {
                            tma_store(*c, at, row, staging + i * H::SUBTILE_BYTES);
                        }
                    }
                }
                tma_commit();
            }
        }
        return squares[0] + squares[1];
    }

    /// First column of a subtile; the last one may overlap the one before it.
    DEVICE static constexpr int first_of(int subtile) {
        return min_of(subtile * H::SUBTILE_COLUMNS, H::COLUMNS - H::SUBTILE_COLUMNS);
    }

    /// Replaces the residual in the subtile with acc + bias + residual, for the columns from `first` on.
    DEVICE void stage_bf16(unsigned char* subtile, const float (&acc)[H::ACCUMULATORS], int first, const uint32_t* bias,
                           int thread) const {
        // Loads are not moved before earlier stores, so the loads of each group of chunks come first.
#pragma unroll
        for (int begin = 0; begin < H::SUBTILE_COLUMNS / 8; begin += LOADED_CHUNKS) {
            uint32_t biases[LOADED_CHUNKS] = {}, sources[2 * LOADED_CHUNKS] = {};
            if (p.bias != nullptr) {
#pragma unroll
                for (int j = 0; j < LOADED_CHUNKS; ++j) {
                    biases[j] = bias[(first + 8 * (begin + j)) / 2 + thread % 4];
                }
            }
            if (residual != nullptr) {
#pragma unroll
                for (int j = 0; j < 2 * LOADED_CHUNKS; ++j) {
                    sources[j] = *subtile_pair(subtile, row_of_thread(thread) + 8 * (j % 2), begin + j / 2, thread);
                }
            }
#pragma unroll
            for (int j = 0; j < 2 * LOADED_CHUNKS; ++j) {
                const float* two = acc + 4 * (first / 8 + begin + j / 2) + 2 * (j % 2);
                float left = two[0] + low_bf16(biases[j / 2]), right = two[1] + high_bf16(biases[j / 2]);
                if (residual != nullptr) {
                    left += low_bf16(sources[j]);
                    right += high_bf16(sources[j]);
                }
                *subtile_pair(subtile, row_of_thread(thread) + 8 * (j % 2), begin + j / 2, thread) =
                    pack_bf16(left, right);
            }
        }
    }

    /// Address of the thread's two f32 of columns 8 `eight` to 8 `eight` + 7 in a swizzled subtile.
    DEVICE static float* subtile_floats(unsigned char* subtile, int row, int eight, int thread) {
        int chunk = 2 * eight + thread % 4 / 2;
        return reinterpret_cast<float*>(subtile + row * 128 + ((chunk ^ (row % 8)) * 16 + thread % 2 * 8));
    }

    /// Stages the columns from `first` on, with each row scaled.
    DEVICE static void stage_f32(unsigned char* subtile, const float (&acc)[H::ACCUMULATORS], int first,
                                 const float (&scale)[2], int thread) {
#pragma unroll
        for (int j = 0; j < H::SUBTILE_COLUMNS / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float* two = acc + 4 * (first / 8 + j) + 2 * i;
                float* to = subtile_floats(subtile, row_of_thread(thread) + 8 * i, j, thread);
                to[0] = two[0] * scale[i];
                to[1] = two[1] * scale[i];
            }
        }
    }

    /// As stage_f32, but adds the staged C if `has_source`, and sums the squares of the values. GEMMs
    /// with norms have no row scale.
    DEVICE static void stage_f32_squared(unsigned char* subtile, const float (&acc)[H::ACCUMULATORS], int first,
                                         bool has_source, double (&squares)[2], int thread) {
#pragma unroll
        for (int j = 0; j < H::SUBTILE_COLUMNS / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float* two = acc + 4 * (first / 8 + j) + 2 * i;
                float* to = subtile_floats(subtile, row_of_thread(thread) + 8 * i, j, thread);
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    float value = has_source ? two[side] + to[side] : two[side];
                    squares[side] += double(value) * double(value);
                    to[side] = value;
                }
            }
        }
    }
};

/// Kernel body of a GEMM. TMA boxes of C and the residual: 64 rows of 128 bytes, 128-byte swizzle.
template <class H>
DEVICE void hopper_matmul(const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
                          const Problem& p, const TensorDescriptor* residual = nullptr) {
    run_job<H>(a, b, MatmulJob<H>{{p.m, p.n, p.k}, p, &c, residual, 0, 0u});
}
