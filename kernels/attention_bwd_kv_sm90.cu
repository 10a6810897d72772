// Attention over prefix trees on Hopper, backward: the gradients of the keys and values. This kernel
// runs after attention_bwd_sm90.cu, which computes the stats of each row. By wgmma and TMA, in bf16:
//
//   producer, one warpgroup, for each item of the block (128 keys of a segment, key-value head):
//     wait empty K, V; TMA load both
//     for each step of queries that see the keys, in ascending order, all heads of the group:
//       wait empty stage; copy the stats; TMA load q and do; a shorter last step of a segment is copied by
//       cp.async instead, with zeros after its rows
//   two consumers of 64 keys each, for each step:
//     Sᵀ = K qᵀ; dPᵀ = V doᵀ
//     Pᵀ = 2^(scale log2(e) Sᵀ - log2(e) lse), 0 for masked keys, while dPᵀ runs
//     dSᵀ = Pᵀ (dPᵀ - delta); dV += Pᵀ do; dK += dSᵀ q
//   dk = scale dK, with RoPE rotated back (rope.cuh); dv = dV
//
// A step is 64 packed rows of one segment: floor(64 / group) tokens. The queries that see a key are later
// rows of its segment, then the descendants of the segment. The accumulators sum over the heads of a group.
//
// Departures from FlashAttention-3's backward (arXiv 2407.08608): no atomics and no buffers of f32 sums. One
// item computes each gradient, and sums run over the queries in the order of the batch.
//
// Results depend on the tree only. P and dS are rounded to bf16 for the second GEMMs, sums are f32. Cost: 8
// head_dim FLOPs per visible pair and head, plus padding: head_dim to HEAD, rows of a step to 64, segments to
// 128 keys. Requirements: those of the forward (attention_sm90.cu), except that groups have at most 64 heads.
#include "common.cuh"
#include "attention_sm90.cuh"
#include "rope.cuh"

/// Packed rows of a step.
EXPORT constexpr int ATTENTION_STEP_ROWS = 64;
/// Distance from the first key, used for every query of a descendant. It is larger than the number of keys of a
/// tile, and its product with the heads of a group fits an int.
constexpr int DESCENDANT = 1 << 20;

/// Shared memory; mirrored by `src/backend/kernels/hopper/attention.rs`.
template <int HEAD>
struct KeyBuffers {
    static constexpr int ROWS = ATTENTION_STEP_ROWS, STAGES = 4;
    static constexpr int BOXES = ceil_div(HEAD, 64), KEY_BYTES = BOXES * BOX_BYTES;
    /// Bytes of one box of a step, and of all boxes of a step.
    static constexpr int STEP_BOX_BYTES = ROWS * 128, STEP_BYTES = BOXES * STEP_BOX_BYTES;
    static constexpr int BARRIERS = 2 * STAGES + 2;
    static constexpr int SHARED_BYTES = 2 * KEY_BYTES + STAGES * (2 * STEP_BYTES + 2 * ROWS * int(sizeof(float)) + 8) +
                                        BARRIERS * int(sizeof(Mbarrier));
    static constexpr int CONSUMER_WARPS = 2 * GROUP_THREADS / WARP;

    /// `keys` holds a tile of keys, then one of values. A stage of `steps` holds queries, then output gradients.
    unsigned char *keys, *steps;
    /// (STAGES, 2, ROWS) logsumexp in base 2, delta
    float* stats;
    /// (STAGES, 2) distance in rows from the first key to the step's first query, whether another step follows
    int* info;
    Mbarrier *full_keys, *empty_keys, *full, *empty;

    DEVICE explicit KeyBuffers(unsigned char* shared) {
        keys = shared;
        steps = keys + 2 * KEY_BYTES;
        stats = reinterpret_cast<float*>(steps + STAGES * 2 * STEP_BYTES);
        info = reinterpret_cast<int*>(stats + STAGES * 2 * ROWS);
        full_keys = reinterpret_cast<Mbarrier*>(info + STAGES * 2);
        empty_keys = full_keys + 1;
        full = empty_keys + 1;
        empty = full + STAGES;
    }

    DEVICE void init() const {
        init_mbarrier(full_keys, 1);
        init_mbarrier(empty_keys, CONSUMER_WARPS);
        for (int i = 0; i < STAGES; ++i) {
            init_mbarrier(full + i, GROUP_THREADS);
            init_mbarrier(empty + i, CONSUMER_WARPS);
        }
        fence_mbarrier_init();
    }
};

struct KeyInputs {
    /// `queries` and `douts` load boxes of 64 columns of the heads of a group, for the tokens of a step.
    /// `keys` loads boxes of 64 columns for 128 tokens of one head.
    const TensorDescriptor *queries, *douts, *keys;
    FusedQkv<bf16> fused;
    const bf16* dout;
    /// (kv_heads, tokens, heads of the group, 2)
    const float* stats;
    Segments segments;
    const int* work;
    int tokens;
    float scale;

    DEVICE int group() const {
        return fused.heads / fused.kv_heads;
    }
};

/// Steps over the queries that see a key tile.
struct QuerySteps {
    Segments segments;
    int key_segment, end, limit;
    /// Current segment and row; `segment == end` after the last step.
    int segment, row;

    DEVICE QuerySteps(const Segments& of, const PathTile& tile, int tokens)
        : segments(of), key_segment(tile.segment), end(tile.position), limit(tokens), segment(tile.segment),
          row(tile.first) {}

    DEVICE bool more() const {
        return segment < end;
    }
    /// Tokens of the step.
    DEVICE int tokens() const {
        return min_of(limit, segments.starts[segment + 1] - row);
    }
    DEVICE void advance() {
        row += limit;
        if (row < segments.starts[segment + 1]) {
            return;
        }
        do {
            ++segment;
        } while (segment < end && (!segments.descends(segment, key_segment) || segments.rows(segment) == 0));
        row = segments.starts[segment];
    }
};

/// Copies `rows` packed rows into a tile of boxes of 64 columns with the 128-byte swizzle, and fills the other rows
/// with zeros. `from` points to the first head of the group in the first token; tokens are `stride` elements apart.
template <int HEAD>
DEVICE void gather_step(unsigned char* tile, const bf16* from, long long stride, int head_dim, int group, int rows,
                        int thread) {
    using K = KeyBuffers<HEAD>;
    int chunk = thread % 8, first = thread / 8;
#pragma unroll 1
    for (int column = chunk * 8; column < HEAD; column += 64) {
        unsigned char* to = tile + column / 64 * K::STEP_BOX_BYTES + first * 128 + (chunk ^ first % 8) * 16;
#pragma unroll 1
        for (int r = first; r < K::ROWS; r += GROUP_THREADS / 8, to += GROUP_THREADS / 8 * 128) {
            bool inside = r < rows && column < head_dim;
            int token = r / group;
            const bf16* source = inside ? from + token * stride + (r - token * group) * head_dim + column : from;
            cp_async_16(to, source, inside ? 16 : 0);
        }
    }
}

/// Producer. All threads of the warpgroup run it; the first one issues TMA loads.
template <int HEAD>
DEVICE void produce(const KeyBuffers<HEAD>& at, const KeyInputs& in, int thread) {
    using K = KeyBuffers<HEAD>;
    int group = in.group(), step_tokens = K::ROWS / group, box_rows = step_tokens * group, head_dim = in.fused.head_dim;
    // The boxes do not write the last rows of a stage, which must be zero to add 0 to the gradients.
    for (int i = thread; i < K::STAGES * 2 * K::BOXES * (K::ROWS - box_rows) * 8; i += GROUP_THREADS) {
        int box = i / 8 / (K::ROWS - box_rows), r = box_rows + i / 8 % (K::ROWS - box_rows);
        const uint32_t zeros[4] = {};
        store_16(at.steps + box * K::STEP_BOX_BYTES + r * 128 + i % 8 * 16, zeros);
    }
    fence_async_proxy();  // wgmma reads the zeros
    StageCursor<1> keys;
    StageCursor<K::STAGES> step;
    for (Items items(in.work, in.fused.kv_heads); items.more(); items.advance()) {
        PathTile tile = items.tile();
        int kv_head = items.head(), key_head = in.fused.heads + kv_head;
        if (thread == 0) {
            wait_mbarrier(at.empty_keys, keys.phase ^ 1);
            arrive_expect_tx(at.full_keys, 2 * K::KEY_BYTES);
            load_boxes<K::BOXES>(at.keys, *in.keys, key_head, tile.first, at.full_keys);
            load_boxes<K::BOXES>(at.keys + K::KEY_BYTES, *in.keys, key_head + in.fused.kv_heads, tile.first,
                                 at.full_keys);
        }
        keys.advance();
        QuerySteps steps(in.segments, tile, step_tokens);
#pragma unroll 1
        while (steps.more()) {
            int tokens = steps.tokens(), row = steps.row;
            int ahead = steps.segment == tile.segment ? row - tile.first : DESCENDANT;
            steps.advance();
            // The stats are loaded before the wait. Rows without a query have q = do = 0, so P and dS add 0.
            float base = 0.0f, delta = 0.0f;
            if (thread < tokens * group) {
                const float* pair = in.stats + ((1LL * kv_head * in.tokens + row) * group + thread) * 2;
                base = pair[0];
                delta = pair[1];
            }
            unsigned char* to = at.steps + step.stage * 2 * K::STEP_BYTES;
            Mbarrier* full = at.full + step.stage;
            wait_mbarrier(at.empty + step.stage, step.phase ^ 1);
            if (thread < K::ROWS) {
                float* stats = at.stats + step.stage * 2 * K::ROWS;
                stats[thread] = base;
                stats[K::ROWS + thread] = delta;
            }
            if (thread == 0) {
                at.info[2 * step.stage] = ahead;
                at.info[2 * step.stage + 1] = steps.more();
            }
            if (tokens < step_tokens) {
                long long stride = 1LL * in.fused.heads * head_dim;
                gather_step<HEAD>(to, in.fused.qkv + row * in.fused.stride() + 1LL * kv_head * group * head_dim,
                                  in.fused.stride(), head_dim, group, tokens * group, thread);
                gather_step<HEAD>(to + K::STEP_BYTES, in.dout + row * stride + 1LL * kv_head * group * head_dim, stride,
                                  head_dim, group, tokens * group, thread);
                cp_async_commit();
                cp_async_wait<0>();
                fence_async_proxy();  // wgmma reads what the thread has copied
            } else if (thread == 0) {
                arrive_expect_tx(full, 2 * K::BOXES * box_rows * 128);
                load_boxes<K::BOXES>(to, *in.queries, kv_head * group, row, full, K::STEP_BOX_BYTES);
                load_boxes<K::BOXES>(to + K::STEP_BYTES, *in.douts, kv_head * group, row, full, K::STEP_BOX_BYTES);
            }
            if (tokens < step_tokens || thread > 0) {
                arrive_mbarrier(full);
            }
            step.advance();
        }
    }
}

/// Consumer: computes the gradients of 64 keys of each item's tile.
template <int HEAD>
DEVICE void consume(const KeyBuffers<HEAD>& at, const KeyInputs& in, const RopeTables& tables, bf16* dqkv,
                    int consumer, int thread) {
    using K = KeyBuffers<HEAD>;
    constexpr int ROWS = K::ROWS;
    int group = in.group(), step_tokens = ROWS / group, head_dim = in.fused.head_dim;
    int key = 64 * consumer + accumulator_row(thread), last_key = 64 * consumer + thread / WARP * 16 + 15;
    int pair = thread % 4 * 2;
    float factor = in.scale * LOG2_E;
    uint64_t keys = tile_descriptor(at.keys + consumer * 64 * 128);
    uint64_t values = tile_descriptor(at.keys + K::KEY_BYTES + consumer * 64 * 128);
    StageCursor<1> loaded;
    StageCursor<K::STAGES> step;
    for (Items items(in.work, in.fused.kv_heads); items.more(); items.advance()) {
        PathTile tile = items.tile();
        float scores[ROWS / 2], dp[ROWS / 2], dk[HEAD / 2], dv[HEAD / 2];
        uint32_t p[ROWS / 16][4], ds[ROWS / 16][4];
#pragma unroll
        for (int i = 0; i < HEAD / 2; ++i) {
            dk[i] = 0.0f;
            dv[i] = 0.0f;
        }
        int position[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            bool rotates = tables.positions != nullptr && key + 8 * half < tile.tokens;
            position[half] = rotates ? tables.positions[tile.first + key + 8 * half] : 0;
        }
        wait_mbarrier(at.full_keys, loaded.phase);
        loaded.advance();
        bool more = true;
#pragma unroll 1
        while (more) {
            wait_mbarrier(at.full + step.stage, step.phase);
            Mbarrier* empty = at.empty + step.stage;
            // The shuffles tell the compiler that the values are uniform, and all lanes have read them
            // before the stage is released.
            int ahead = shuffle(at.info[2 * step.stage], 0);
            more = shuffle(at.info[2 * step.stage + 1], 0) != 0;
            if (ahead + step_tokens <= 64 * consumer) {
                // No query of the step sees the consumer's keys.
                release(empty);
                step.advance();
                continue;
            }
            const float* stats = at.stats + step.stage * 2 * ROWS + pair;
            unsigned char* rows = at.steps + step.stage * 2 * K::STEP_BYTES;
            uint64_t queries = tile_descriptor(rows, K::STEP_BOX_BYTES);
            uint64_t douts = tile_descriptor(rows + K::STEP_BYTES, K::STEP_BOX_BYTES);
            step.advance();
            wgmma_fence(scores, dp);
            multiply_columns<HEAD, ROWS>(scores, keys, queries, K::STEP_BOX_BYTES);
            wgmma_commit();
            multiply_columns<HEAD, ROWS>(dp, values, douts, K::STEP_BOX_BYTES);
            wgmma_commit();
            wgmma_wait<1>(scores);
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) {
                scores[i] = fast_exp2(scores[i] * factor - stats[i / 4 * 8 + i % 2]);
            }
            if (last_key > ahead) {
                // Row r of the step is token r / group, which sees the keys up to `ahead` + r / group of the tile.
                int first[2] = {(key - ahead) * group - pair, (key + 8 - ahead) * group - pair};
#pragma unroll
                for (int i = 0; i < ROWS / 2; ++i) {
                    scores[i] = i / 4 * 8 + i % 2 >= first[i / 2 % 2] ? scores[i] : 0.0f;
                }
            }
            wgmma_wait<0>(dp);
#pragma unroll
            for (int k = 0; k < ROWS / 16; ++k) {
                pack_operand(p[k], scores + 8 * k);
            }
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) {
                dp[i] = scores[i] * (dp[i] - stats[ROWS + i / 4 * 8 + i % 2]);
            }
#pragma unroll
            for (int k = 0; k < ROWS / 16; ++k) {
                pack_operand(ds[k], dp + 8 * k);
            }
            wgmma_fence(dk, dv);
            multiply_rows<HEAD>(dv, p, douts);
            multiply_rows<HEAD>(dk, ds, queries);
            wgmma_commit();
            wgmma_wait<0>(dk, dv);
            release(empty);
        }
        release(at.empty_keys);
        int head = in.fused.heads + items.head();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            bool inside = key + 8 * half < tile.tokens;
            if (tables.positions != nullptr) {
                RopeAngles<HEAD> angles;
                angles.load(tables, position[half], thread);
                angles.rotate(dk, half, -1.0f);
            }
            bf16* row = dqkv + (tile.first + key + 8 * half) * in.fused.stride() + 1LL * head * head_dim;
            store_row<HEAD>(row, dk, half, in.scale, head_dim, inside);
            store_row<HEAD>(row + 1LL * in.fused.kv_heads * head_dim, dv, half, 1.0f, head_dim, inside);
        }
    }
}

template <int HEAD>
KERNELS(384, attention_bwd_kv_sm90, FOR(HEAD: 64 80 96 128), EARLY, ALONE(384))(
    const TensorDescriptor& queries,  // (tokens, heads + 2 kv_heads, head_dim), boxes of a step
    const TensorDescriptor& douts,    // (tokens, heads, head_dim), boxes of a step
    const TensorDescriptor& keys,     // same tensor as `queries`, boxes of 128 tokens of a head
    const bf16* qkv,                  // the same tensor
    const bf16* dout,                 // (tokens, heads, head_dim)
    const float* stats,               // from attention_bwd_q_sm90
    const int* starts,                // (segments + 1)
    const int* ancestor_offsets,      // (segments + 1)
    const int* ancestors,             // (ancestors)
    const int* work,                  // from attention_plan_sm90, for tiles of 128 keys
    const int* positions,             // (tokens), or null for no RoPE; with RoPE, head_dim is HEAD
    const float* cos,                 // (positions, HEAD / 2)
    const float* sin,                 // (positions, HEAD / 2)
    bf16* dqkv,                       // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int heads, int kv_heads, int head_dim, float scale) {
    using K = KeyBuffers<HEAD>;
    DYNAMIC_SHARED_OF(shared, K::SHARED_BYTES);
    K at(shared);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(queries);
        prefetch_tensor_map(douts);
        prefetch_tensor_map(keys);
        at.init();
    }
    sync_block();  // mbarriers are initialised before any thread waits on them
    wait_for_earlier_launch();
    launch_dependents();
    KeyInputs in{&queries, &douts, &keys, {qkv, heads, kv_heads, head_dim}, dout,
                 stats,    {starts, ancestor_offsets, ancestors}, work, tokens, scale};
    // The shuffle tells the compiler that the value is uniform across the warp.
    int group = shuffle(int(threadIdx.x) / GROUP_THREADS, 0) - 1, thread = int(threadIdx.x) % GROUP_THREADS;
    if (group < 0) {
        decrease_registers<56>();
        produce<HEAD>(at, in, thread);
    } else {
        increase_registers<224>();
        consume<HEAD>(at, in, {positions, cos, sin}, dqkv, group, thread);
    }
}
