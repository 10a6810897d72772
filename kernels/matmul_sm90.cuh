// C = or += A B on Hopper by the tile loop of tile_sm90.cuh, with bias, residual and a factor for each row. Used by
// matmul_sm90.cu and head_logprob_sm90.cu.
//
// Parts of a sum (splits) are added to memory in the order of their numbers, each when its turn has come, so results do not
// depend on the number of multiprocessors. Where norms of the result are wanted, the last part (and an only one that is added)
// reads what is there, adds to it and stores: the same sum, whose squares are then known. Arithmetic of bf16 results: the f32 sum + bias + residual, rounded once.
#pragma once

#include "patches.cuh"
#include "tile_sm90.cuh"

/// Output tiles of the GEMMs: 128 rows a block by 256, 224, 192 or 128 columns; cooperative, or ping-pong.
EXPORT enum GemmTile : int { N256, N224, N192, N192_PING_PONG, N128, N128_PING_PONG };
/// Columns of a tile, blocks of a cluster, and whether the schedule is ping-pong, by GemmTile.
EXPORT constexpr int GEMM_COLUMNS[] = {256, 224, 192, 192, 128, 128}, GEMM_CLUSTER[] = {2, 2, 1, 1, 1, 1},
                     GEMM_PING_PONG[] = {0, 0, 0, 1, 0, 1};

template <GemmTile TILE, Major A, Major B, class Out>
using HopperGemm = Hopper<GEMM_COLUMNS[TILE], A, B, Out, GEMM_CLUSTER[TILE], GEMM_PING_PONG[TILE] != 0>;

/// One product.
struct Problem {
    int m, n, k;
    /// Parts of k that are summed by themselves; 1 but for f32 results.
    int splits;
    /// Whether results are added to what is there.
    int add;
    const bf16* bias;        // (n), may be absent
    const float* row_scale;  // (m) factors of f32 results, may be absent
    int* turns;              // (tiles, 2) zeros, with splits; left as zeros
    float* norms;            // of patches of f32 results (patches.cuh), may be absent
};

/// Stores or adds the tiles of a product. Parts of a sum come last, so that the one before has been begun by a tile of a lower
/// number.
template <class H>
struct MatmulJob : Raster<H> {
    Problem p;
    const TensorDescriptor* c;
    const TensorDescriptor* residual;  // (m, n) of bf16, may be absent, and may be C's memory
    int phase;                         // of the boxes that sums meet: 0
    /// The thread's two columns of the tile's bias, on their way.
    uint32_t bias_pair;
    /// Parts of sums can be added in memory without a rounding between.
    static constexpr bool SPLITS = sizeof(typename H::Out) == 4;
    // The last piece of bf16 may lie over the one before, which stores the same values again; sums may not.
    static_assert(sizeof(typename H::Out) == 2 || H::COLUMNS % H::PIECE_COLUMNS == 0, "pieces of a tile that is added");

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

    /// Asks for what the sums of a batch of columns meet, which begins with piece `begin`: the residual, or C's own values.
    DEVICE void request_met(const Ring<H>& ring, int row, int column, int begin, int group) const {
        const int count = min_of(H::BATCH, H::PIECES - begin);
        Mbarrier* arrived = ring.arrived + 2 * group;
        wait_boxes_read<0>();
        arrive_expecting(arrived, count * H::PIECE_BYTES);
        request_pieces<H>(ring, SPLITS ? *c : *residual, row, 0, count, [&](int i) { return column + first_of(begin + i); }, arrived, group);
    }

    /// The bias and the first batch's residual come while the consumer multiplies.
    DEVICE void begin(const Ring<H>& ring, const Tile& tile, int group, int thread) {
        if (!SPLITS && p.bias != nullptr) {
            // Rows are multiples of 8 elements, so a pair is inside or outside.
            int at = tile.column + 2 * thread;
            bias_pair = at < p.n ? *reinterpret_cast<const uint32_t*>(p.bias + at) : 0u;
        }
        if (!SPLITS && residual != nullptr && thread == 0) {
            request_met(ring, tile.row + (H::PING_PONG ? 0 : 64 * group), tile.column, 0, group);
        }
    }

    /// All threads of a consumer.
    DEVICE void take(const Ring<H>& ring, float (&sums)[H::HALVES][H::SUMS], int number, const Tile& tile, int group, int thread) {
        int split = split_of(number);
        int* word = nullptr;
        if (SPLITS && p.splits > 1) {
            int place = tile.row / H::ROWS * this->tiles_across() + tile.column / H::COLUMNS;
            word = p.turns + 2 * place + (H::PING_PONG ? 0 : group);
            if (thread == 0) {
                wait_turn(word, split);
                fence_async_proxy_global();
            }
            sync_named(1 + group, 128);  // parts before this one are in memory
        }
        if (!SPLITS && p.bias != nullptr) {
            // The batch before has ended with the consumer's barrier, so all of its threads have read the last tile's.
            if (thread < H::COLUMNS / 2) {
                ring.row(group)[thread] = bias_pair;
            }
            sync_named(1 + group, 128);  // the bias is there
        }
        // Norms are of what is there in the end, so the last part adds in registers what the others add in memory.
        bool add = SPLITS && (p.add != 0 || split > 0), last = SPLITS && p.norms != nullptr && split + 1 == p.splits;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int row = tile.row + 64 * (H::PING_PONG ? half : group);
            double squares = store_rows(ring, sums[half], row, tile.column, add, last, half == 0, group, thread);
            if (last) {
                store_norm<16, H::COLUMNS>(p.norms, p.m, p.n, row + thread / WARP * 16, tile.column, squares);
            }
        }
        if (SPLITS && p.splits > 1 && thread == 0) {
            wait_boxes<0>();
            fence_async_proxy_global();
            store_release(word, split + 1 == p.splits ? 0 : split + 1);
        }
    }

    /// Stores the sums of 64 rows batch by batch, or adds them. `asked` where the first batch's residual has been asked for. Sum of
    /// the squares of what the thread has stored, where it is asked for (`squared`; f32 results).
    DEVICE double store_rows(const Ring<H>& ring, const float (&sums)[H::SUMS], int row, int column, bool add, bool squared,
                             bool asked, int group, int thread) {
        bool meets = SPLITS ? add && squared : residual != nullptr;
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
        for (int begin = 0; begin < H::PIECES; begin += H::BATCH) {
            const int count = min_of(H::BATCH, H::PIECES - begin);
            unsigned char* pieces;
            if (meets) {
                if (thread == 0 && (SPLITS || !(asked && begin == 0))) {
                    request_met(ring, row, column, begin, group);
                }
                wait_mbarrier(ring.arrived + 2 * group, phase);
                phase ^= 1;
                pieces = ring.pieces + group * H::BATCH * H::PIECE_BYTES;
            } else {
                pieces = begin_batch(ring, group, thread);
            }
#pragma unroll
            for (int i = 0; i < count; ++i) {
                if constexpr (SPLITS) {
                    unsigned char* piece = pieces + i * H::PIECE_BYTES;
                    if (squared) {
                        fill_squared(piece, sums, first_of(begin + i), meets, squares, thread);
                    } else {
                        fill_floats(piece, sums, first_of(begin + i), scale, thread);
                    }
                } else {
                    fill_pairs(pieces + i * H::PIECE_BYTES, sums, first_of(begin + i), ring.row(group), thread);
                }
            }
            end_batch(group);
            if (thread == 0) {
#pragma unroll
                for (int i = 0; i < count; ++i) {
                    int at = column + first_of(begin + i);
                    if (row < p.m && at < p.n) {
                        if (add && !meets) {
                            add_box(*c, at, row, pieces + i * H::PIECE_BYTES);
                        } else {
                            store_box(*c, at, row, pieces + i * H::PIECE_BYTES);
                        }
                    }
                }
                commit_boxes();
            }
        }
        return squares[0] + squares[1];
    }

    /// First column of a piece; the last may lie over the one before.
    DEVICE static constexpr int first_of(int piece) {
        return min_of(piece * H::PIECE_COLUMNS, H::COLUMNS - H::PIECE_COLUMNS);
    }

    /// Columns from `first` of the tile on, bias and residual added; the residual is in the piece.
    DEVICE void fill_pairs(unsigned char* piece, const float (&sums)[H::SUMS], int first, const uint32_t* bias, int thread) const {
#pragma unroll
        for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
            float low = 0.0f, high = 0.0f;
            if (p.bias != nullptr) {
                uint32_t pair = bias[(first + 8 * j) / 2 + thread % 4];
                low = low_bf16(pair);
                high = high_bf16(pair);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float* two = sums + 4 * (first / 8 + j) + 2 * i;
                uint32_t* pair = pair_of_piece(piece, row_of_thread(thread) + 8 * i, j, thread);
                float left = two[0] + low, right = two[1] + high;
                if (residual != nullptr) {
                    left += low_bf16(*pair);
                    right += high_bf16(*pair);
                }
                *pair = pack_bf16(left, right);
            }
        }
    }

    /// Where two neighbouring f32 of a piece lie: columns 8 `eight` on and the thread's own of these.
    DEVICE static float* floats_of_piece(unsigned char* piece, int row, int eight, int thread) {
        int chunk = 2 * eight + thread % 4 / 2;
        return reinterpret_cast<float*>(piece + row * 128 + ((chunk ^ (row % 8)) * 16 + thread % 2 * 8));
    }

    DEVICE static void fill_floats(unsigned char* piece, const float (&sums)[H::SUMS], int first, const float (&scale)[2],
                                   int thread) {
#pragma unroll
        for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float* two = sums + 4 * (first / 8 + j) + 2 * i;
                float* to = floats_of_piece(piece, row_of_thread(thread) + 8 * i, j, thread);
                to[0] = two[0] * scale[i];
                to[1] = two[1] * scale[i];
            }
        }
    }

    /// Sums, added to what is in the piece where they meet it, and their squares. Products with norms have no row scale.
    DEVICE static void fill_squared(unsigned char* piece, const float (&sums)[H::SUMS], int first, bool meets,
                                    double (&squares)[2], int thread) {
#pragma unroll
        for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float* two = sums + 4 * (first / 8 + j) + 2 * i;
                float* to = floats_of_piece(piece, row_of_thread(thread) + 8 * i, j, thread);
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    float value = meets ? two[side] + to[side] : two[side];
                    squares[side] += double(value) * double(value);
                    to[side] = value;
                }
            }
        }
    }
};

/// The kernel of a product; boxes of C and of the residual are 64 rows of 128 bytes with the 128-byte swizzle.
template <class H>
DEVICE void hopper_matmul(const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c, const Problem& p,
                          const TensorDescriptor* residual = nullptr) {
    run_job<H>(a, b, MatmulJob<H>{{p.m, p.n, p.k}, p, &c, residual, 0, 0u});
}
