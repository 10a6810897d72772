// The tile loop of products on Hopper: bulk copies fill stages of shared memory, warpgroups multiply from them, and what
// becomes of the sums is the job's affair. Persistent: a cluster takes tiles by stride. Jobs: matmul_sm90.cuh (results stored
// or added), glu_sm90.cu (gated activation), head_logprob_sm90.cu (vocabulary head).
//
// A block has three warpgroups. The first is the producer: one thread of it copies tiles of A and B into a ring of stages.
// The other two are consumers. Together they own a tile of 128 rows, 64 each (cooperative); or each has a tile of 128 rows
// to itself, and one does its job with the sums while the other multiplies (ping-pong). The blocks of a cluster work on tiles
// below one another, so they need the same part of B: each copies a share of it to all of them.
//
// A job is a struct that producer and consumers each have a copy of:
//   int tiles() const                         tiles of the launch
//   Tile tile(int number, unsigned rank) const
//   int b_row(const Tile&, int share) const   row of B where a share of the tile's columns begins, if B is contiguous along k
//   void begin(ring, tile, group, thread)     what a consumer does before it multiplies: copies that its sums will meet
//   void take(ring, sums, number, tile, group, thread)           what consumers do with the sums of a tile
//
// Sums do not depend on the number of multiprocessors or the order of threads: an element's sum runs over k in steps of 16 in
// one order, products of bf16 summed in f32 as the tensor cores do it.
//
// Cost: 2 m n k FLOPs. Shared memory: SHARED_BYTES, one block on a multiprocessor.
#pragma once

#include "common.cuh"
#include "primitives/bits.cuh"
#include "primitives/cluster.cuh"
#include "primitives/tma.cuh"
#include "primitives/warp.cuh"
#include "primitives/wgmma.cuh"

/// Rows of a block's tile, values of k of a stage, most stages, and shared memory of a block in bytes (227 KiB).
EXPORT constexpr int GEMM_ROWS = 128, GEMM_DEPTH = 64, GEMM_MAX_STAGES = 4, MAX_SHARED_BYTES = 232448;

/// Which tiles, how they lie, and who works on them.
template <int COLUMNS_, Major A_, Major B_, class Out_, int BLOCKS_, bool PING_PONG_, int SHARES_ = BLOCKS_, int BATCH_ = 0>
struct Hopper {
    using Out = Out_;
    static constexpr Major A = A_, B = B_;
    static constexpr int BLOCKS = BLOCKS_;
    static constexpr bool PING_PONG = PING_PONG_;
    /// Boxes that B's part of a stage comes in where it is contiguous along k; the blocks of a cluster copy them in turn.
    static constexpr int SHARES = SHARES_, OWN_SHARES = SHARES / BLOCKS;
    static constexpr int ROWS = GEMM_ROWS, COLUMNS = COLUMNS_, DEPTH = GEMM_DEPTH;
    /// Products of 64 rows of a consumer.
    static constexpr int HALVES = PING_PONG ? 2 : 1;
    /// Warps that use a stage: a product is waited for by warps, not by warpgroups.
    static constexpr int USERS = PING_PONG ? 4 : 8;
    /// Boxes of 64 x 64 elements, 8 KiB, for operands that are contiguous across k.
    static constexpr int A_BOXES = ROWS / 64, B_BOXES = ceil_div(COLUMNS, 64);
    static constexpr int A_BYTES = ROWS * DEPTH * 2;
    static constexpr int B_BYTES = (B == Major::K ? COLUMNS : B_BOXES * 64) * DEPTH * 2;
    static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
    /// A piece of the result on its way out: 64 rows of 128 bytes.
    static constexpr int PIECE_BYTES = 64 * 128, PIECE_COLUMNS = 128 / int(sizeof(Out));
    /// Pieces of 64 rows of a tile.
    static constexpr int PIECES = ceil_div(COLUMNS, PIECE_COLUMNS);
    /// Pieces that a consumer writes before any of them leaves. Where the other consumer multiplies meanwhile there is time.
    static constexpr int BATCH = BATCH_ > 0 ? BATCH_ : PING_PONG ? 2 : sizeof(Out) == 2 ? PIECES : COLUMNS == 192 ? 3 : 4;
    static constexpr int OUT_BYTES = 2 * BATCH * PIECE_BYTES;
    /// A row of bf16 of each consumer's, as many as the tile has columns, and room for barriers.
    static constexpr int ROW_BYTES = 2 * COLUMNS;
    static constexpr int STAGES = min_of(GEMM_MAX_STAGES, (MAX_SHARED_BYTES - OUT_BYTES - 2 * ROW_BYTES - 128) / STAGE_BYTES);
    static constexpr int BARRIER_BYTES = (2 * STAGES + 4) * int(sizeof(Mbarrier));
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + OUT_BYTES + 2 * ROW_BYTES + BARRIER_BYTES;
    static constexpr int SUMS = COLUMNS / 2;
    /// Registers of a thread of the producer and of a consumer; 64,512 in all (of the 65,536 some are the hardware's).
    static constexpr int FEW = PING_PONG ? 24 : 40, MANY = PING_PONG ? 240 : 232;
    static_assert(BLOCKS == 1 || SHARES == BLOCKS, "a share for each block");
    static_assert(STAGES >= 3 && SHARED_BYTES <= MAX_SHARED_BYTES, "shared memory of a block");
};

/// A tile of a product, and the steps of k that are summed.
struct Tile {
    int row, column, first, steps;
};

/// Places in shared memory.
template <class H>
struct Ring {
    unsigned char* stages;
    unsigned char* pieces;
    Mbarrier* full;
    Mbarrier* empty;
    /// Two for each consumer, for what its job copies to its pieces.
    Mbarrier* arrived;
    /// A row for each consumer's job.
    unsigned char* rows;

    DEVICE explicit Ring(unsigned char* shared) {
        stages = shared;
        pieces = shared + H::STAGES * H::STAGE_BYTES;
        full = reinterpret_cast<Mbarrier*>(pieces + H::OUT_BYTES);
        empty = full + H::STAGES;
        arrived = empty + H::STAGES;
        rows = reinterpret_cast<unsigned char*>(arrived + 4);
    }

    DEVICE uint32_t* row(int group) const {
        return reinterpret_cast<uint32_t*>(rows + group * H::ROW_BYTES);
    }

    DEVICE void init() const {
        for (int i = 0; i < H::STAGES; ++i) {
            init_mbarrier(full + i, 1);
            init_mbarrier(empty + i, H::USERS * H::BLOCKS);
        }
        for (int i = 0; i < 4; ++i) {
            init_mbarrier(arrived + i, 1);
        }
        fence_mbarrier_init();
    }

    DEVICE unsigned char* a(int stage) const {
        return stages + stage * H::STAGE_BYTES;
    }

    DEVICE unsigned char* b(int stage) const {
        return a(stage) + H::A_BYTES;
    }
};

/// Tiles over `rows` by `columns`, each of them a cluster's 128 rows a block by WIDTH columns, in bands of eight clusters down, so
/// that those at work together share columns and rows. Jobs begin with it.
template <class H, int WIDTH = H::COLUMNS>
struct Raster {
    int rows, columns, depth;

    DEVICE int tiles_down() const {
        return ceil_div(rows, H::ROWS * H::BLOCKS);
    }

    DEVICE int tiles_across() const {
        return ceil_div(columns, WIDTH);
    }

    DEVICE int tiles() const {
        return tiles_down() * tiles_across();
    }

    /// A whole sum.
    DEVICE Tile tile(int number, unsigned rank) const {
        constexpr int BAND = 8;
        int across = tiles_across(), band = number / (BAND * across), within = number % (BAND * across);
        int height = min_of(BAND, tiles_down() - band * BAND), down = band * BAND + within % height;
        return {(down * H::BLOCKS + int(rank)) * H::ROWS, within / height * WIDTH, 0, ceil_div(depth, H::DEPTH)};
    }

    DEVICE int b_row(const Tile& tile, int share) const {
        return tile.column + share * (H::COLUMNS / H::SHARES);
    }

    DEVICE void begin(const Ring<H>&, const Tile&, int, int) {}
};

/// Copies one step of k of A's rows and of B's columns to a stage: all of A, and this block's share of B to every block. Shares
/// begin at `b_rows` where B's rows are columns of the product.
template <class H>
DEVICE void load_stage(const Ring<H>& ring, int stage, const TensorDescriptor& a, const TensorDescriptor& b, int row,
                       int column, const int (&b_rows)[H::OWN_SHARES], int k, unsigned rank) {
    Mbarrier* full = ring.full + stage;
    arrive_expecting(full, H::STAGE_BYTES);
    // The loops are not unrolled: the producer has few registers.
    if constexpr (H::A == Major::K) {
        load_box(ring.a(stage), a, k, row, full);
    } else {
#pragma unroll 1
        for (int i = 0; i < H::A_BOXES; ++i) {
            load_box(ring.a(stage) + i * 8192, a, row + 64 * i, k, full);
        }
    }
    constexpr int SHARE = H::COLUMNS / H::SHARES;
    if constexpr (H::BLOCKS == 1) {
        if constexpr (H::B == Major::K) {
#pragma unroll
            for (int i = 0; i < H::SHARES; ++i) {
                load_box(ring.b(stage) + i * SHARE * 128, b, k, b_rows[i], full);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < H::B_BOXES; ++i) {
                load_box(ring.b(stage) + i * 8192, b, column + 64 * i, k, full);
            }
        }
    } else {
        constexpr unsigned ALL = (1u << H::BLOCKS) - 1;
        if constexpr (H::B == Major::K) {
            load_box_multicast(ring.b(stage) + int(rank) * SHARE * 128, b, k, b_rows[0], full, ALL);
        } else {
#pragma unroll 1
            for (int i = int(rank); i < H::B_BOXES; i += H::BLOCKS) {
                load_box_multicast(ring.b(stage) + i * 8192, b, column + 64 * i, k, full, ALL);
            }
        }
    }
}

/// Fills stages for all tiles of the cluster. One thread.
template <class H, class Job>
DEVICE void produce(const Ring<H>& ring, const TensorDescriptor& a, const TensorDescriptor& b, const Job& job, unsigned rank) {
    int stage = 0, phase = 0, clusters = int(gridDim.x) / H::BLOCKS, tiles = job.tiles();
    for (int number = int(blockIdx.x) / H::BLOCKS; number < tiles; number += clusters) {
        Tile tile = job.tile(number, rank);
        int b_rows[H::OWN_SHARES];
#pragma unroll
        for (int i = 0; i < H::OWN_SHARES; ++i) {
            b_rows[i] = job.b_row(tile, H::BLOCKS == 1 ? i : int(rank));
        }
        for (int step = 0; step < tile.steps; ++step) {
            wait_mbarrier(ring.empty + stage, phase ^ 1);
            load_stage<H>(ring, stage, a, b, tile.row, tile.column, b_rows, (tile.first + step) * H::DEPTH, rank);
            stage = stage + 1 == H::STAGES ? 0 : stage + 1;
            phase ^= stage == 0 ? 1 : 0;
        }
    }
}

/// Gives a warp's hold on a stage back to the producers of all blocks of the cluster. All lanes call it.
template <class H>
DEVICE void release_stage(const Ring<H>& ring, int stage, int lane) {
    if constexpr (H::BLOCKS == 1) {
        if (lane == 0) {
            arrive_mbarrier(ring.empty + stage);
        }
    } else if (lane < H::BLOCKS) {
        arrive_remote_after_reads(ring.empty + stage, unsigned(lane));
    }
}

/// The products of one stage.
template <class H>
DEVICE void multiply_stage(const Ring<H>& ring, int stage, int group, float (&sums)[H::HALVES][H::SUMS], bool first) {
    // 16 values of k: 32 bytes along rows of k; 16 rows of 128 bytes across k. Descriptors count in units of 16 bytes, and the
    // shared memory of a block is less than the addresses they hold, so a sum does not reach the next field.
    constexpr int A_STEP = (H::A == Major::K ? 32 : 2048) / 16, B_STEP = (H::B == Major::K ? 32 : 2048) / 16;
    uint32_t a = shared_address_of(ring.a(stage)) + uint32_t((H::PING_PONG ? 0 : group) * 8192);
    uint64_t left = matrix_descriptor(a, 8192, 1024, Swizzle::BYTES_128);
    uint64_t right = matrix_descriptor(shared_address_of(ring.b(stage)), 8192, 1024, Swizzle::BYTES_128);
#pragma unroll
    for (int step = 0; step < H::DEPTH / 16; ++step) {
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            multiply_group<H::COLUMNS, H::A, H::B>(sums[half], left + uint64_t(step * A_STEP + half * 512),
                                                   right + uint64_t(step * B_STEP), !first || step > 0);
        }
    }
}

/// Pieces of shared memory of a consumer, once what they held has left. All threads of the consumer.
template <class H>
DEVICE unsigned char* begin_batch(const Ring<H>& ring, int group, int thread) {
    if (thread == 0) {
        wait_boxes_read<0>();
    }
    sync_named(1 + group, 128);  // the batch before has left
    return ring.pieces + group * H::BATCH * H::PIECE_BYTES;
}

/// Copies `count` boxes of 64 rows and a piece's columns to the pieces of a consumer from its `first` on, once what they held has
/// left: boxes of a tensor like C, at `row` and at the columns that `column` gives. One thread, whose consumer has passed a barrier
/// since it last read or wrote these pieces.
template <class H, class Column>
DEVICE void request_pieces(const Ring<H>& ring, const TensorDescriptor& map, int row, int first, int count, Column column,
                           Mbarrier* arrived, int group) {
    for (int i = 0; i < count; ++i) {
        load_box(ring.pieces + (group * H::BATCH + first + i) * H::PIECE_BYTES, map, column(i), row, arrived);
    }
}

/// Before a batch is sent: all threads of the consumer have written their part of it.
DEVICE void end_batch(int group) {
    fence_async_proxy();
    sync_named(1 + group, 128);  // the batch is written
}

/// The thread's first row of 64 in the layout of sums (wgmma.cuh); it has another 8 further down.
DEVICE int row_of_thread(int thread) {
    return thread / 32 * 16 + thread % 32 / 4;
}

/// The thread's first column of 8; it has the next too.
DEVICE int column_of_thread(int thread) {
    return thread % 4 * 2;
}

/// Where two neighbouring bf16 of a piece lie, swizzled: 16-byte chunk c of row r lies at chunk c xor (r mod 8). Columns 8 `chunk`
/// on and the thread's own of these.
DEVICE uint32_t* pair_of_piece(unsigned char* piece, int row, int chunk, int thread) {
    return reinterpret_cast<uint32_t*>(piece + row * 128 + ((chunk ^ (row % 8)) * 16 + thread % 4 * 4));
}

/// Multiplies the tiles of a consumer and hands their sums to the job.
template <class H, class Job>
DEVICE void consume(const Ring<H>& ring, Job& job, unsigned rank, int group, int thread) {
    int stage = 0, phase = 0, taken = 0, clusters = int(gridDim.x) / H::BLOCKS, tiles = job.tiles();
    auto advance = [&](unsigned steps) {
        unsigned next = unsigned(stage) + steps;
        phase ^= int(next / H::STAGES & 1);
        stage = int(next % H::STAGES);
    };
    for (int number = int(blockIdx.x) / H::BLOCKS; number < tiles; number += clusters, ++taken) {
        Tile tile = job.tile(number, rank);
        if (H::PING_PONG && taken % 2 != group) {
            advance(unsigned(tile.steps));
            continue;
        }
        job.begin(ring, tile, group, thread);
        if (H::PING_PONG && taken > 0) {
            sync_named(3 + group, 256);  // the other consumer has issued its products
        }
        float sums[H::HALVES][H::SUMS];
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
#pragma unroll
            for (int i = 0; i < H::SUMS; ++i) {
                sums[half][i] = 0.0f;
            }
        }
        int before = -1;
        for (int step = 0; step < tile.steps; ++step) {
            wait_mbarrier(ring.full + stage, phase);
            if constexpr (H::PING_PONG) {
                fence_products(sums[0], sums[1]);
            } else {
                fence_products(sums[0]);
            }
            multiply_stage<H>(ring, stage, group, sums, step == 0);
            commit_products();
            if (before >= 0) {
                wait_products<1>();
                release_stage<H>(ring, before, thread % 32);
            }
            before = stage;
            advance(1);
        }
        if (H::PING_PONG && number + clusters < tiles) {
            arrive_named(4 - group, 256);
        }
        if constexpr (H::PING_PONG) {
            wait_products<0>(sums[0], sums[1]);
        } else {
            wait_products<0>(sums[0]);
        }
        if (before >= 0) {
            release_stage<H>(ring, before, thread % 32);
        }
        job.take(ring, sums, number, tile, group, thread);
    }
    if (thread == 0) {
        wait_boxes_read<0>();
    }
}

/// A kernel: a job over the products of A and B. A's boxes: 64 values of k of 128 rows, or 64 rows of 64 values of k; B's
/// likewise with its columns, of which a block copies a share. All with the 128-byte swizzle.
template <class H, class Job>
DEVICE void run_job(const TensorDescriptor& a, const TensorDescriptor& b, Job job) {
    DYNAMIC_SHARED_OF(shared, H::SHARED_BYTES);
    Ring<H> ring(shared);
    unsigned rank = 0;
    if constexpr (H::BLOCKS > 1) {
        rank = cluster_rank();
    }
    if (threadIdx.x == 0) {
        prefetch_map(a);
        prefetch_map(b);
        ring.init();
    }
    if constexpr (H::BLOCKS > 1) {
        sync_cluster();
    } else {
        sync_block();  // barriers are made
    }
    // All of the above may run while the launch before this one ends; nothing below may.
    wait_for_earlier_launch();
    begin_next_launch();
    // The same for all lanes, which the compiler does not see by itself.
    int group = shuffle(int(threadIdx.x) / 128, 0) - 1;
    if (group < 0) {
        lower_registers<H::FEW>();
        if (threadIdx.x == 0) {
            produce<H>(ring, a, b, job, rank);
        }
    } else {
        raise_registers<H::MANY>();
        consume<H>(ring, job, rank, group, int(threadIdx.x) % 128);
    }
    if constexpr (H::BLOCKS > 1) {
        sync_cluster();  // no block returns while another may copy to it or arrive at its barriers
    }
}
