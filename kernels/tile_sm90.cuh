// Persistent, warp-specialised GEMM main loop for Hopper (TMA, mbarriers, wgmma). The epilogue is a
// "job": linear_sm90.cuh (store or accumulate C), glu_sm90.cu (gated activation),
// head_sm90.cu (vocabulary head).
//
//   producer, one thread of warpgroup 0:
//     for each tile of the cluster, for each k step of 64:
//       wait empty[stage]; expect bytes on full[stage]; TMA load A and B; next stage
//   consumers, warpgroups 1 and 2:
//     for each tile of the cluster (cooperative), or every second one (ping-pong):
//       job.prefetch(tile)                       TMA loads of what the epilogue reads
//       ping-pong: wait until the other consumer has issued its wgmmas
//       for each k step: wait full[stage]; acc += A B by wgmma;
//                        wait for the wgmmas of the previous stage; arrive on its empty barrier
//       ping-pong: let the other consumer start
//       wait for the last wgmmas; arrive on the empty barrier of their stage
//       job.epilogue(acc, tile)
//
// Cooperative: the two consumers split a 128-row tile, 64 rows each. Ping-pong: each consumer owns
// whole 128-row tiles, and one runs its epilogue while the other runs its main loop. The blocks of
// a cluster work on vertically adjacent tiles, which need the same columns of B: each block
// multicasts its share of B to all of them.
//
// Departures from CUTLASS's sm90 kernels:
//   - An empty barrier counts warps, not warpgroups: a warp releases a stage once its own wgmmas
//     are done.
//   - No warp is dedicated to epilogue loads. A consumer thread issues them before the main loop,
//     so that they overlap it.
// Tiles are assigned statically: each cluster runs a grid-stride loop over the tiles.
//
// A job is a struct; the producer and each consumer have their own copy:
//   int tiles() const                        number of tiles of the launch
//   Tile tile(int number, unsigned rank) const
//   int b_row(const Tile&, int share) const  first row of a share of B, if B is K-major
//   void prefetch(ring, tile, group, thread)
//   void epilogue(ring, acc, number, tile, group, thread)
//   STARTS_FROM_C, and if true: void start(acc, tile, group, thread)   accumulators before the main loop
// `group` is the consumer, 0 or 1; `thread` is 0 to 127 within it.
//
// Results do not depend on the number of multiprocessors or the order of threads: an element is
// summed over k in ascending steps of 16, bf16 products added in f32 by the tensor cores.
//
// Cost: 2 m n k FLOPs. Shared memory: SHARED_BYTES, so one block per multiprocessor.
#pragma once

#include "common.cuh"
#include "primitives/bits.cuh"
#include "primitives/cluster.cuh"
#include "primitives/tma.cuh"
#include "primitives/warp.cuh"
#include "primitives/wgmma.cuh"

/// Rows of a block tile, values of k per stage, maximum number of stages, and the shared memory of
/// a block in bytes (227 KiB).
EXPORT constexpr int GEMM_ROWS = 128, GEMM_DEPTH = 64, GEMM_MAX_STAGES = 4, MAX_SHARED_BYTES = 232448;

/// Configuration: tile shape, operand layouts, cluster size and schedule.
template <int COLUMNS_, Major A_, Major B_, class Out_, int BLOCKS_, bool PING_PONG_, int SHARES_ = BLOCKS_,
          int BATCH_ = 0>
struct Hopper {
    using Out = Out_;
    static constexpr Major A = A_, B = B_;
    static constexpr int BLOCKS = BLOCKS_;
    static constexpr bool PING_PONG = PING_PONG_;
    /// TMA boxes of a stage of K-major B; block r of a cluster multicasts share r.
    static constexpr int SHARES = SHARES_, OWN_SHARES = SHARES / BLOCKS;
    static constexpr int ROWS = GEMM_ROWS, COLUMNS = COLUMNS_, DEPTH = GEMM_DEPTH;
    /// 64-row wgmma tiles per consumer.
    static constexpr int HALVES = PING_PONG ? 2 : 1;
    /// Consumer warps that release a stage. Each warp waits for its own wgmmas, so warps are
    /// counted, not warpgroups.
    static constexpr int CONSUMER_WARPS = PING_PONG ? 4 : 8;
    /// TMA boxes of 64 x 64 elements (8 KiB) per stage, for MN-major operands.
    static constexpr int A_BOXES = ROWS / 64, B_BOXES = ceil_div(COLUMNS, 64);
    static constexpr int A_BYTES = ROWS * DEPTH * 2;
    static constexpr int B_BYTES = (B == Major::K ? COLUMNS : B_BOXES * 64) * DEPTH * 2;
    static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
    /// A subtile of the epilogue: 64 rows of 128 bytes, one TMA box of C.
    static constexpr int SUBTILE_BYTES = 64 * 128, SUBTILE_COLUMNS = 128 / int(sizeof(Out));
    /// Subtiles per 64 rows of a tile.
    static constexpr int SUBTILES = ceil_div(COLUMNS, SUBTILE_COLUMNS);
    /// Subtiles that a consumer stages before it stores them. Ping-pong needs few: its epilogue
    /// overlaps the other consumer's main loop.
    static constexpr int BATCH =
        BATCH_ > 0 ? BATCH_ : PING_PONG ? 2 : sizeof(Out) == 2 ? SUBTILES : COLUMNS == 192 ? 3 : 4;
    static constexpr int OUT_BYTES = 2 * BATCH * SUBTILE_BYTES;
    /// One bf16 row of the tile's width per consumer (the bias).
    static constexpr int ROW_BYTES = 2 * COLUMNS;
    /// 128 bytes are left for the barriers.
    static constexpr int STAGES =
        min_of(GEMM_MAX_STAGES, (MAX_SHARED_BYTES - OUT_BYTES - 2 * ROW_BYTES - 128) / STAGE_BYTES);
    static constexpr int BARRIER_BYTES = (2 * STAGES + 4) * int(sizeof(Mbarrier));
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + OUT_BYTES + 2 * ROW_BYTES + BARRIER_BYTES;
    static constexpr int ACCUMULATORS = COLUMNS / 2;
    /// setmaxnreg values; 64,512 registers in total (the hardware keeps some of the 65,536).
    static constexpr int PRODUCER_REGISTERS = PING_PONG ? 24 : 40, CONSUMER_REGISTERS = PING_PONG ? 240 : 232;
    static_assert(BLOCKS == 1 || SHARES == BLOCKS, "one share of B per block");
    static_assert(STAGES >= 3 && SHARED_BYTES <= MAX_SHARED_BYTES, "shared memory of a block");
};

/// An output tile: its first row and column, and the k steps to sum (`first` on, `steps` of them).
struct Tile {
    int row, column, first, steps;
};

/// Layout of shared memory: the ring of stages, the epilogue's staging buffers, mbarriers.
template <class H>
struct Ring {
    unsigned char* stages;
    unsigned char* staging;
    Mbarrier* full;
    Mbarrier* empty;
    /// Two per consumer, for TMA loads into its staging buffers.
    Mbarrier* source_full;
    /// One bf16 row of the tile's width per consumer, for its job.
    unsigned char* rows;

    DEVICE explicit Ring(unsigned char* shared) {
        stages = shared;
        staging = shared + H::STAGES * H::STAGE_BYTES;
        full = reinterpret_cast<Mbarrier*>(staging + H::OUT_BYTES);
        empty = full + H::STAGES;
        source_full = empty + H::STAGES;
        rows = reinterpret_cast<unsigned char*>(source_full + 4);
    }

    DEVICE uint32_t* row(int group) const {
        return reinterpret_cast<uint32_t*>(rows + group * H::ROW_BYTES);
    }

    DEVICE void init() const {
        for (int i = 0; i < H::STAGES; ++i) {
            init_mbarrier(full + i, 1);
            init_mbarrier(empty + i, H::CONSUMER_WARPS * H::BLOCKS);
        }
        for (int i = 0; i < 4; ++i) {
            init_mbarrier(source_full + i, 1);
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

/// Tile order, the base of all jobs: cluster tiles of (128 BLOCKS) x WIDTH, in bands of eight tile
/// rows, so that concurrent clusters share rows of A and columns of B in the L2 cache.
template <class H, int WIDTH = H::COLUMNS>
struct Raster {
    int rows, columns, depth;
    /// Whether the job sets the accumulators before the main loop; otherwise sums start at 0.
    static constexpr bool STARTS_FROM_C = false;

    DEVICE int tiles_down() const {
        return ceil_div(rows, H::ROWS * H::BLOCKS);
    }

    DEVICE int tiles_across() const {
        return ceil_div(columns, WIDTH);
    }

    DEVICE int tiles() const {
        return tiles_down() * tiles_across();
    }

    /// Tile `number` of block `rank`, over all of k.
    DEVICE Tile tile(int number, unsigned rank) const {
        constexpr int BAND = 8;
        int across = tiles_across(), band = number / (BAND * across), within = number % (BAND * across);
        int height = min_of(BAND, tiles_down() - band * BAND), down = band * BAND + within % height;
        return {(down * H::BLOCKS + int(rank)) * H::ROWS, within / height * WIDTH, 0, ceil_div(depth, H::DEPTH)};
    }

    DEVICE int b_row(const Tile& tile, int share) const {
        return tile.column + share * (H::COLUMNS / H::SHARES);
    }

    DEVICE void prefetch(const Ring<H>&, const Tile&, int, int) {}
};

/// Issues the TMA loads of one k step into a stage: all of A, and this block's share of B to every
/// block of the cluster. `b_rows` are the first rows of the shares, for K-major B.
template <class H>
DEVICE void load_stage(const Ring<H>& ring, int stage, const TensorDescriptor& a, const TensorDescriptor& b, int row,
                       int column, const int (&b_rows)[H::OWN_SHARES], int k, unsigned rank) {
    Mbarrier* full = ring.full + stage;
    arrive_expect_tx(full, H::STAGE_BYTES);
    // The loops over boxes are not unrolled, because the producer has few registers.
    if constexpr (H::A == Major::K) {
        tma_load(ring.a(stage), a, k, row, full);
    } else {
#pragma unroll 1
        for (int i = 0; i < H::A_BOXES; ++i) {
            tma_load(ring.a(stage) + i * 8192, a, row + 64 * i, k, full);
        }
    }
    constexpr int SHARE = H::COLUMNS / H::SHARES;
    if constexpr (H::BLOCKS == 1) {
        if constexpr (H::B == Major::K) {
#pragma unroll
            for (int i = 0; i < H::SHARES; ++i) {
                tma_load(ring.b(stage) + i * SHARE * 128, b, k, b_rows[i], full);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < H::B_BOXES; ++i) {
                tma_load(ring.b(stage) + i * 8192, b, column + 64 * i, k, full);
            }
        }
    } else {
        constexpr unsigned ALL = (1u << H::BLOCKS) - 1;
        if constexpr (H::B == Major::K) {
            tma_load_multicast(ring.b(stage) + int(rank) * SHARE * 128, b, k, b_rows[0], full, ALL);
        } else {
#pragma unroll 1
            for (int i = int(rank); i < H::B_BOXES; i += H::BLOCKS) {
                tma_load_multicast(ring.b(stage) + i * 8192, b, column + 64 * i, k, full, ALL);
            }
        }
    }
}

/// Producer: fills stages for all tiles of the cluster. One thread runs it.
template <class H, class Job>
DEVICE void produce(const Ring<H>& ring, const TensorDescriptor& a, const TensorDescriptor& b, const Job& job,
                    unsigned rank) {
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
    // No block exits while another may multicast to it or arrive on its mbarriers. These waits end when
    // all blocks have released the last loads of every stage.
    if constexpr (H::BLOCKS > 1) {
        for (int i = 0; i < H::STAGES; ++i) {
            wait_mbarrier(ring.empty + stage, phase ^ 1);
            stage = stage + 1 == H::STAGES ? 0 : stage + 1;
            phase ^= stage == 0 ? 1 : 0;
        }
    }
}

/// Releases a stage: the warp arrives on the empty barrier of every block of the cluster, since
/// each of them multicasts into it. All lanes call it.
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

/// Issues the wgmmas of one stage.
template <class H>
DEVICE void multiply_stage(const Ring<H>& ring, int stage, int group, float (&acc)[H::HALVES][H::ACCUMULATORS],
                           bool first) {
    // 16 values of k are 32 bytes of a K-major row, or 16 rows of 128 bytes of an MN-major operand.
    // Descriptors count in units of 16 bytes. A block's shared memory is smaller than their address
    // field, so adding to a descriptor does not carry into the next field.
    constexpr int A_STEP = (H::A == Major::K ? 32 : 2048) / 16, B_STEP = (H::B == Major::K ? 32 : 2048) / 16;
    uint32_t a = shared_address_of(ring.a(stage)) + uint32_t((H::PING_PONG ? 0 : group) * 8192);
    uint64_t left = matrix_descriptor(a, 8192, 1024, Swizzle::BYTES_128);
    uint64_t right = matrix_descriptor(shared_address_of(ring.b(stage)), 8192, 1024, Swizzle::BYTES_128);
#pragma unroll
    for (int step = 0; step < H::DEPTH / 16; ++step) {
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            wgmma<H::COLUMNS, H::A, H::B>(acc[half], left + uint64_t(step * A_STEP + half * 512),
                                          right + uint64_t(step * B_STEP), !first || step > 0);
        }
    }
}

/// Returns the staging buffers of a consumer, once earlier TMA stores have read them. All threads of the
/// consumer call it.
template <class H>
DEVICE unsigned char* acquire_staging(const Ring<H>& ring, int group, int thread) {
    if (thread == 0) {
        tma_wait_read<0>();
    }
    sync_named(1 + group, 128);  // stores of the previous batch have read the buffers
    return ring.staging + group * H::BATCH * H::SUBTILE_BYTES;
}

/// Issues TMA loads of `count` subtiles of a tensor shaped like C, at `row` and `column(i)`, into the
/// consumer's staging buffers from `first` on. One thread calls it. Hazard: earlier stores must have read the
/// buffers, and the consumer must have passed a barrier since it last accessed them.
template <class H, class Column>
DEVICE void load_subtiles(const Ring<H>& ring, const TensorDescriptor& map, int row, int first, int count,
                          Column column, Mbarrier* source_full, int group) {
    for (int i = 0; i < count; ++i) {
        tma_load(ring.staging + (group * H::BATCH + first + i) * H::SUBTILE_BYTES, map, column(i), row, source_full);
    }
}

/// Makes a staged batch ready for TMA stores. All threads of the consumer call it after they have
/// written their elements.
DEVICE void publish_staging(int group) {
    fence_async_proxy();
    sync_named(1 + group, 128);  // all threads have staged their elements
}

/// Returns the thread's first row of the 64 in the accumulator layout (wgmma.cuh); its second row is 8 below.
DEVICE int row_of_thread(int thread) {
    return thread / 32 * 16 + thread % 32 / 4;
}

/// Returns the thread's first column of each eight; the thread also owns the next one.
DEVICE int column_of_thread(int thread) {
    return thread % 4 * 2;
}

/// Address of the two adjacent bf16 that `thread` owns in columns 8 `chunk` to 8 `chunk` + 7 of `row`, in a
/// swizzled subtile: 16-byte chunk c of row r is stored at position c xor (r mod 8).
DEVICE uint32_t* subtile_pair(unsigned char* subtile, int row, int chunk, int thread) {
    return reinterpret_cast<uint32_t*>(subtile + row * 128 + ((chunk ^ (row % 8)) * 16 + thread % 4 * 4));
}

/// Consumer: main loop and epilogue of its tiles.
template <class H, class Job>
DEVICE void consume(const Ring<H>& ring, Job& job, unsigned rank, int group, int thread) {
    int stage = 0, phase = 0, tile_index = 0, clusters = int(gridDim.x) / H::BLOCKS, tiles = job.tiles();
    auto advance = [&](unsigned steps) {
        unsigned next = unsigned(stage) + steps;
        phase ^= int(next / H::STAGES & 1);
        stage = int(next % H::STAGES);
    };
    for (int number = int(blockIdx.x) / H::BLOCKS; number < tiles; number += clusters, ++tile_index) {
        Tile tile = job.tile(number, rank);
        if (H::PING_PONG && tile_index % 2 != group) {
            advance(unsigned(tile.steps));
            continue;
        }
        job.prefetch(ring, tile, group, thread);
        float acc[H::HALVES][H::ACCUMULATORS];
        if constexpr (Job::STARTS_FROM_C) {
            // These loads overlap the other consumer's main loop. Unless the values are pinned, ptxas moves
            // the loads between the wgmmas and serialises the wgmmas.
            job.start(acc, tile, group, thread);
            pin_accumulators(acc[0]);
            pin_accumulators(acc[1]);
        }
        if (H::PING_PONG && tile_index > 0) {
            sync_named(3 + group, 256);  // the other consumer has issued its wgmmas
        }
        if constexpr (!Job::STARTS_FROM_C) {
#pragma unroll
            for (int half = 0; half < H::HALVES; ++half) {
#pragma unroll
                for (int i = 0; i < H::ACCUMULATORS; ++i) {
                    acc[half][i] = 0.0f;
                }
            }
        }
        int previous = -1;
        for (int step = 0; step < tile.steps; ++step) {
            wait_mbarrier(ring.full + stage, phase);
            if constexpr (H::PING_PONG) {
                wgmma_fence(acc[0], acc[1]);
            } else {
                wgmma_fence(acc[0]);
            }
            multiply_stage<H>(ring, stage, group, acc, !Job::STARTS_FROM_C && step == 0);
            wgmma_commit();
            if (previous >= 0) {
                wgmma_wait<1>();
                release_stage<H>(ring, previous, thread % 32);
            }
            previous = stage;
            advance(1);
        }
        if (H::PING_PONG && number + clusters < tiles) {
            arrive_named(4 - group, 256);
        }
        if constexpr (H::PING_PONG) {
            wgmma_wait<0>(acc[0], acc[1]);
        } else {
            wgmma_wait<0>(acc[0]);
        }
        if (previous >= 0) {
            release_stage<H>(ring, previous, thread % 32);
        }
        job.epilogue(ring, acc, number, tile, group, thread);
    }
    if (thread == 0) {
        tma_wait_read<0>();
    }
}

/// Kernel body. TMA boxes, all with the 128-byte swizzle: 128 rows of 64 k for K-major A, 64 rows by 64 k for
/// MN-major A; likewise for B with its columns. A block loads its share of B.
template <class H, class Job>
DEVICE void run_job(const TensorDescriptor& a, const TensorDescriptor& b, Job job) {
    DYNAMIC_SHARED_OF(shared, H::SHARED_BYTES);
    Ring<H> ring(shared);
    unsigned rank = 0;
    if constexpr (H::BLOCKS > 1) {
        rank = cluster_rank();
    }
    if (threadIdx.x == 0) {
        prefetch_tensor_map(a);
        prefetch_tensor_map(b);
        ring.init();
    }
    if constexpr (H::BLOCKS > 1) {
        // Waits until the mbarriers of all blocks of the cluster are initialised, because other blocks signal them.
        arrive_cluster_relaxed();
        wait_cluster();
    } else {
        sync_block();  // mbarriers are initialised before any thread waits on them
    }
    // The code above may overlap the tail of the previous launch; the code below reads its results.
    wait_for_earlier_launch();
    launch_dependents();
    // The shuffle tells the compiler that the value is uniform across the warp.
    int group = shuffle(int(threadIdx.x) / 128, 0) - 1;
    if (group < 0) {
        decrease_registers<H::PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            produce<H>(ring, a, b, job, rank);
        }
    } else {
        increase_registers<H::CONSUMER_REGISTERS>();
        consume<H>(ring, job, rank, group, int(threadIdx.x) % 128);
    }
}
