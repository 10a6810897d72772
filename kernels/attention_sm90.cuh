// Shared by the attention kernels for Hopper: the work list, runs of a path, tiles of keys and values
// in shared memory, the turns of the two consumers.
//
// A tile packs the query heads of a key-value head: row r is head r % group of token r / group. A tile of 128
// rows therefore holds 128 / group tokens, and its products reuse every key for the whole group. The work
// list has the tiles of all segments, those with the longest paths first. An item is a tile and a key-value
// head. Blocks process items in a grid-stride loop of alternating direction (Items).
//
// Key tiles start at positions 0, 128, 256, ... of a path. A tile of consecutive rows is one TMA box per 64
// columns. The producer's threads copy other tiles row by row into the same swizzled layout. These are the tiles
// that span several runs of rows, and an incomplete last tile of values (forward) or of keys (backward), which
// gets zeros after the end of the path.
#pragma once

#include "attention.cuh"
#include "primitives/cluster.cuh"
#include "primitives/math.cuh"
#include "primitives/tma.cuh"
#include "primitives/wgmma.cuh"

/// Rows of a packed tile of queries, keys of a key tile, and cost classes of the work list.
EXPORT constexpr int ATTENTION_ROWS = 128, ATTENTION_KEYS = 128, ATTENTION_CLASSES = 32;
/// Words of the work list before its tiles, and words of a tile: segment, first row, tokens, and `position`. For
/// queries, `position` is that of the first row on the path; for keys, it is the index after the tree's last segment.
EXPORT constexpr int ATTENTION_HEADER = 4, ATTENTION_WORDS = 4;

/// A TMA box of 128 rows of 64 columns.
constexpr int BOX_BYTES = 128 * 128;
/// Threads of a producer or a consumer.
constexpr int GROUP_THREADS = 128;
/// Ids of named barriers: TURN_BARRIER + i for the turns of consumer i, PRODUCER_BARRIER for the producer's threads.
constexpr int TURN_BARRIER = 1, PRODUCER_BARRIER = 3;

/// A tile of queries (or keys) of a segment.
struct PathTile {
    int segment, first, tokens, position;
};

/// The items of a block, in a grid-stride loop over the list. Odd rounds run backwards: the block with the
/// longest item of a round then gets the shortest item of the next round.
struct Items {
    const int* list;
    int heads, count, round, number;

    DEVICE Items(const int* work, int kv_heads)
        : list(work), heads(kv_heads), count(work[0] * kv_heads), round(0), number(int(blockIdx.x)) {}

    DEVICE bool more() const {
        return number < count;
    }
    DEVICE void advance() {
        int blocks = int(gridDim.x), block = int(blockIdx.x);
        ++round;
        number = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
    }
    DEVICE int head() const {
        return number % heads;
    }
    DEVICE PathTile tile() const {
        const int* at = list + ATTENTION_HEADER + number / heads * ATTENTION_WORDS;
        return {at[0], at[1], at[2], at[3]};
    }
};

/// Index of a stage of a ring, and the parity of its phase.
template <int STAGES>
struct StageCursor {
    int stage = 0, phase = 0;

    DEVICE void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        phase ^= stage == 0 ? 1 : 0;
    }
};

/// Runs of consecutive rows of a path, for ascending positions. Adjacent segments are one run.
struct PathRuns {
    Segments segments;
    /// Segment of the path, index of its next ancestor, and end of its ancestors. The segment itself follows
    /// its ancestors.
    int own, next, end;
    /// In the current run: row minus position, and the first position after the run.
    int offset, stop;

    DEVICE PathRuns(const Segments& of, int segment)
        : segments(of), own(segment), next(of.offsets[segment]), end(of.offsets[segment + 1]), offset(0), stop(0) {}

    DEVICE int segment_at(int index) const {
        return index < end ? segments.ancestors[index] : own;
    }
    /// Moves to the run that holds position `wanted`, which must not be smaller than in the previous call.
    DEVICE void advance(int wanted) {
        while (wanted >= stop) {
            int segment = segment_at(next++);
            offset = segments.starts[segment] - stop;
            stop += segments.rows(segment);
            while (next <= end && segments.starts[segment_at(next)] == offset + stop) {
                stop += segments.rows(segment_at(next++));
            }
        }
    }
    /// Row of a position in the current run.
    DEVICE int row_at(int wanted) const {
        return offset + wanted;
    }
    /// Rows of the current run from a position on.
    DEVICE int left(int wanted) const {
        return stop - wanted;
    }
    /// Whether the current run ends the path.
    DEVICE bool is_last() const {
        return next > end;
    }
};

/// Copies the `count` rows given by `index` into a tile of 128 rows, in boxes of 64 columns with the 128-byte
/// swizzle; the other rows are zeros. The cp.async copies join the thread's open group.
template <int HEAD>
DEVICE void gather_rows(unsigned char* tile, const MatrixView<bf16>& from, const int* index, int count, int thread) {
    // Eight threads copy a row of a box. A thread copies the same chunk of every 16th row, so its swizzle is fixed.
    int chunk = thread % 8, first = thread / 8;
#pragma unroll
    for (int column = 0; column < HEAD; column += 64) {
        int at = column + chunk * 8;
        if (at >= HEAD) {
            break;
        }
        unsigned char* to = tile + column / 64 * BOX_BYTES + first * 128 + (chunk ^ first % 8) * 16;
#pragma unroll 1
        for (int r = first; r < 128; r += GROUP_THREADS / 8, to += GROUP_THREADS / 8 * 128) {
            bool inside = r < count && at < from.columns;
            const bf16* source = inside ? from.start + index[r] * from.stride + at : from.start;
            cp_async_16(to, source, inside ? 16 : 0);
        }
    }
}

/// Waits until the other consumer has issued its products. The tensor cores then run the products of
/// one consumer during the softmax of the other.
DEVICE void take_turn(int group) {
    sync_named(TURN_BARRIER + group, 2 * GROUP_THREADS);
}

/// Lets the other consumer issue its products.
DEVICE void pass_turn(int group) {
    arrive_named(TURN_BARRIER + 1 - group, 2 * GROUP_THREADS);
}

/// Arrives on an mbarrier once for the whole warp. All lanes must have finished with the memory that the mbarrier
/// guards.
DEVICE void release(Mbarrier* barrier) {
    if (lane_index() == 0) {
        arrive_mbarrier(barrier);
    }
}

/// acc = A Bᵀ of 64 rows of A and the N rows of B, over HEAD columns. `a` and `b` are descriptors of tiles in
/// boxes of 64 columns; the boxes of A are BOX_BYTES apart.
template <int HEAD, int N>
DEVICE void multiply_columns(float (&acc)[N / 2], uint64_t a, uint64_t b, int b_box_bytes = BOX_BYTES) {
#pragma unroll
    for (int step = 0; step < HEAD / 16; ++step) {
        // 16 columns are 32 bytes; descriptors count in units of 16 bytes.
        int box = step / 4, within = step % 4 * 2;
        wgmma<N, Major::K, Major::K>(acc, a + uint64_t(box * (BOX_BYTES / 16) + within),
                                     b + uint64_t(box * (b_box_bytes / 16) + within), step > 0);
    }
}

/// acc += A B of 64 rows. A is in registers, B is the rows of a tile in boxes of 64 columns, read as MN-major.
template <int HEAD, int STEPS>
DEVICE void multiply_rows(float (&acc)[HEAD / 2], const uint32_t (&a)[STEPS][4], uint64_t b) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        // A step advances B by 16 rows of 128 bytes.
        wgmma<HEAD, Major::ACROSS>(acc, a[step], b + uint64_t(step * 2048 / 16), true);
    }
}

/// Descriptor of a tile that is read along its columns (K-major) or across them (MN-major).
DEVICE uint64_t tile_descriptor(const unsigned char* tile, int box_bytes = BOX_BYTES) {
    return matrix_descriptor(shared_address_of(tile), box_bytes, 1024, Swizzle::BYTES_128);
}

/// Packs 16 columns of accumulators, rounded to bf16, into operand A.
DEVICE void pack_operand(uint32_t (&a)[4], const float* acc) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        a[i] = pack_bf16(acc[2 * i], acc[2 * i + 1]);
    }
}

/// Returns the thread's first row of the 64 in the accumulator layout (wgmma.cuh); its second row is 8 below.
DEVICE int accumulator_row(int thread) {
    return thread / WARP * 16 + thread % WARP / 4;
}

/// Stores the thread's part of a row of accumulators, times `factor`: columns up to `columns`, a
/// multiple of 8. `half` is 0 or 1, for the first or second row of the thread. All lanes call it;
/// `inside` tells whether the row is stored.
template <int HEAD>
DEVICE void store_row(bf16* row, const float (&acc)[HEAD / 2], int half, float factor, int columns, bool inside) {
    int part = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < HEAD / 8; j += 4) {
        float words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* two = acc + 4 * min_of(j + i, HEAD / 8 - 1) + 2 * half;
            words[i] = float_of_bits(pack_bf16(two[0] * factor, two[1] * factor));
        }
        // Each lane gets the 16 bytes of one block of eight columns.
        transpose_quad(words);
        uint32_t bits[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            bits[i] = bits_of_float(words[i]);
        }
        int column = (j + part) * 8;
        if (inside && column < columns) {
            store_16(row + column, bits);
        }
    }
}

/// Shared memory of the kernels that follow a path; mirrored by
/// `src/backend/kernels/hopper/attention.rs`. A buffer holds a tile of queries and, with SIDES 2, of
/// the gradients of their outputs. A stage holds a tile of keys and of values.
template <int HEAD, int SIDES, int BUFFERS_>
struct PathBuffers {
    static constexpr int BOXES = ceil_div(HEAD, 64), TILE_BYTES = BOXES * BOX_BYTES;
    static constexpr int ROW_SIDES = SIDES, BUFFERS = BUFFERS_, STAGES = BOXES == 1 ? 4 : 2;
    static constexpr int BARRIERS = 4 * STAGES + 2 * BUFFERS;
    static constexpr int SHARED_BYTES = (BUFFERS * SIDES + 2 * STAGES) * TILE_BYTES +
                                        ATTENTION_KEYS * int(sizeof(int)) + BARRIERS * int(sizeof(Mbarrier));
    static constexpr int CONSUMER_WARPS = 2 * GROUP_THREADS / WARP;

    unsigned char *queries, *keys, *values;
    /// (ATTENTION_KEYS) row index of each key of a tile that the threads copy
    int* index;
    /// The tiles of keys and of values of a stage are STAGES tiles apart, their mbarriers 2 STAGES mbarriers.
    Mbarrier *full_q, *empty_q, *full_k, *empty_k, *full_v, *empty_v;

    DEVICE explicit PathBuffers(unsigned char* shared) {
        queries = shared;
        keys = queries + BUFFERS * SIDES * TILE_BYTES;
        values = keys + STAGES * TILE_BYTES;
        index = reinterpret_cast<int*>(values + STAGES * TILE_BYTES);
        full_q = reinterpret_cast<Mbarrier*>(index + ATTENTION_KEYS);
        empty_q = full_q + BUFFERS;
        full_k = empty_q + BUFFERS;
        empty_k = full_k + STAGES;
        full_v = empty_k + STAGES;
        empty_v = full_v + STAGES;
    }

    DEVICE void init() const {
        auto pair = [](Mbarrier* full, Mbarrier* empty, int count) {
            for (int i = 0; i < count; ++i) {
                init_mbarrier(full + i, 1);
                init_mbarrier(empty + i, CONSUMER_WARPS);
            }
        };
        pair(full_q, empty_q, BUFFERS);
        pair(full_k, empty_k, STAGES);
        pair(full_v, empty_v, STAGES);
        fence_mbarrier_init();
    }
};

/// Operands of the kernels that follow a path.
struct PathInputs {
    /// `queries` and `douts` load boxes of 64 columns of the heads of a group, for the tokens of a tile.
    /// `keys` loads boxes of 64 columns for 128 tokens of one head.
    const TensorDescriptor *queries, *douts, *keys;
    FusedQkv<bf16> fused;
    Segments segments;
    const int* work;
    int tokens;
    float scale;

    DEVICE int group() const {
        return fused.heads / fused.kv_heads;
    }
};

/// Issues the TMA loads of a tile: its boxes of 64 columns, `box_bytes` apart.
template <int BOXES>
DEVICE void load_boxes(unsigned char* tile, const TensorDescriptor& map, int head, int row, Mbarrier* full,
                       int box_bytes = BOX_BYTES) {
#pragma unroll 1
    for (int box = 0; box < BOXES; ++box) {
        tma_load(tile + box * box_bytes, map, 64 * box, head, row, full);
    }
}

/// Producer of the kernels that follow a path: loads the tiles of all items. All threads of the
/// warpgroup run it; the first one issues TMA loads.
template <int HEAD, class B>
DEVICE void produce_paths(const B& at, const PathInputs& in, int thread) {
    constexpr int KEYS = ATTENTION_KEYS;
    StageCursor<B::BUFFERS> q;
    StageCursor<B::STAGES> kv;
    int group = in.group(), box_rows = ATTENTION_ROWS / group * group;
    for (Items items(in.work, in.fused.kv_heads); items.more(); items.advance()) {
        PathTile tile = items.tile();
        int kv_head = items.head(), length = tile.position + tile.tokens;
        if (thread == 0) {
            Mbarrier* full = at.full_q + q.stage;
            unsigned char* to = at.queries + q.stage * B::ROW_SIDES * B::TILE_BYTES;
            wait_mbarrier(at.empty_q + q.stage, q.phase ^ 1);
            arrive_expect_tx(full, B::ROW_SIDES * B::BOXES * box_rows * 128);
            load_boxes<B::BOXES>(to, *in.queries, kv_head * group, tile.first, full);
            if (B::ROW_SIDES == 2) {
                load_boxes<B::BOXES>(to + B::TILE_BYTES, *in.douts, kv_head * group, tile.first, full);
            }
        }
        q.advance();
        PathRuns path(in.segments, tile.segment);
#pragma unroll 1
        for (int begin = 0; begin < length; begin += KEYS) {
            path.advance(begin);
            bool whole = path.left(begin) >= KEYS;
            if (!whole) {
                PathRuns own = path;
                if (begin + thread < length) {
                    own.advance(begin + thread);
                    at.index[thread] = own.row_at(begin + thread);
                }
            }
#pragma unroll 1
            for (int side = 0; side < 2; ++side) {
                unsigned char* to = at.keys + (side * B::STAGES + kv.stage) * B::TILE_BYTES;
                Mbarrier* full = at.full_k + side * 2 * B::STAGES + kv.stage;
                int head = in.fused.heads + side * in.fused.kv_heads + kv_head;
                // Rows after the end of the path must be zeros in an operand that is multiplied by masked
                // probabilities or score gradients: 0 times a value that is not finite is NaN. These operands
                // are the values in the forward and the keys in the backward. In the other operand, rows after
                // the end only give scores that are masked.
                bool boxed = whole || (side == B::ROW_SIDES - 1 && path.is_last());
                if (thread == 0) {
                    wait_mbarrier(full + B::STAGES, kv.phase ^ 1);
                    if (boxed) {
                        arrive_expect_tx(full, B::TILE_BYTES);
                        load_boxes<B::BOXES>(to, *in.keys, head, path.row_at(begin), full);
                    }
                }
                if (boxed) {
                    continue;
                }
                // Waits until `index` is written and the first thread has waited for the stage.
                sync_named(PRODUCER_BARRIER, GROUP_THREADS);
                gather_rows<HEAD>(to, in.fused.of_head(head, 0, in.tokens), at.index, min_of(KEYS, length - begin),
                                  thread);
                cp_async_commit();
                cp_async_wait<0>();
                fence_async_proxy();  // wgmma reads what the thread has copied
                // Waits until all threads have copied their parts and no longer read `index`.
                sync_named(PRODUCER_BARRIER, GROUP_THREADS);
                if (thread == 0) {
                    arrive_mbarrier(full);
                }
            }
            kv.advance();
        }
    }
}
