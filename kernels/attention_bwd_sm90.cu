// Attention over prefix trees on Hopper, backward: the gradient of the queries, and the stats of each row
// that the gradients of the keys and values need (attention_bwd_kv_sm90.cu). By wgmma and TMA, in bf16:
//
//   producer: as in the forward (attention_sm90.cuh); do is loaded with each tile of queries
//   two consumers of 64 rows each, for each item of the block:
//     delta = do · o; stats = (log2(e) lse, delta)
//     for each key tile of the path up to the last query:
//       S = Q Kᵀ; dP = dO Vᵀ
//       P = 2^(scale log2(e) S - log2(e) lse), while dP runs
//       dS = P (dP - delta), 0 for masked keys; dQ += dS K
//     dq = scale dQ; with RoPE, rotated back (rope.cuh)
//
// Departures from FlashAttention-3's backward (arXiv 2407.08608): no atomics. One kernel computes the
// gradients of queries, the next one those of keys and values, and both compute P and dS.
//
// Results depend on the path only, as in the forward. dS is rounded to bf16 for dS K, sums are f32.
// Cost: 6 head_dim FLOPs per visible pair and head, plus padding as in the forward. Requirements as
// in the forward.
#include "common.cuh"
#include "attention_sm90.cuh"
#include "rope.cuh"

template <int HEAD>
using Backward = PathBuffers<HEAD, 2, HEAD == 64 ? 2 : 1>;

/// Consumer: computes 64 rows of each item's tile.
template <int HEAD>
DEVICE void consume(const Backward<HEAD>& at, const PathInputs& in, const bf16* dout, const bf16* o, const float* lse,
                    const RopeTables& tables, float* stats, bf16* dqkv, int consumer, int thread) {
    using B = Backward<HEAD>;
    constexpr int KEYS = ATTENTION_KEYS;
    int group = in.group(), heads = in.fused.heads, head_dim = in.fused.head_dim;
    int row = 64 * consumer + accumulator_row(thread), warp_token = (64 * consumer + thread / WARP * 16) / group;
    int token[2] = {row / group, (row + 8) / group};
    float factor = in.scale * LOG2_E;
    StageCursor<B::BUFFERS> q;
    StageCursor<B::STAGES> kv;
    for (Items items(in.work, in.fused.kv_heads); items.more(); items.advance()) {
        PathTile tile = items.tile();
        int length = tile.position + tile.tokens;
        float base[2], delta[2];
        int position[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int head = items.head() * group + row + 8 * half - token[half] * group;
            long long to = tile.first + token[half];
            bool inside = token[half] < tile.tokens;
            position[half] = inside && tables.positions != nullptr ? tables.positions[to] : 0;
            float sum = 0.0f;
            // Rows past the tile's last token belong to other segments; their results are not stored.
            for (int c = thread % 4 * 8; inside && c < head_dim; c += 32) {
                long long element = (to * heads + head) * head_dim + c;
                Floats<bf16> a = load_floats(dout + element), b = load_floats(o + element);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    sum += a.x[i] * b.x[i];
                }
            }
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            delta[half] = sum;
            base[half] = inside ? lse[1LL * head * in.tokens + to] * LOG2_E : 0.0f;
            if (inside && thread % 4 == 0) {
                // (kv_heads, tokens, heads of the group, 2)
                float* pair = stats + ((1LL * items.head() * in.tokens + tile.first) * group + row + 8 * half) * 2;
                pair[0] = base[half];
                pair[1] = sum;
            }
        }
        float scores[64], dp[64], dq[HEAD / 2];
        uint32_t ds[KEYS / 16][4];
#pragma unroll
        for (int i = 0; i < HEAD / 2; ++i) {
            dq[i] = 0.0f;
        }
        unsigned char* rows = at.queries + q.stage * 2 * B::TILE_BYTES + consumer * 64 * 128;
        uint64_t queries = tile_descriptor(rows), douts = tile_descriptor(rows + B::TILE_BYTES);
        wait_mbarrier(at.full_q + q.stage, q.phase);
#pragma unroll 1
        for (int begin = 0; begin < length; begin += KEYS) {
            uint64_t keys = tile_descriptor(at.keys + kv.stage * B::TILE_BYTES);
            Mbarrier* full_k = at.full_k + kv.stage;
            wait_mbarrier(full_k, kv.phase);
            wait_mbarrier(at.full_v + kv.stage, kv.phase);
            wgmma_fence(scores, dp);
            multiply_columns<HEAD, KEYS>(scores, queries, keys);
            wgmma_commit();
            multiply_columns<HEAD, KEYS>(dp, douts, tile_descriptor(at.values + kv.stage * B::TILE_BYTES));
            wgmma_commit();
            wgmma_wait<1>(scores);
#pragma unroll
            for (int i = 0; i < 64; ++i) {
                scores[i] = fast_exp2(scores[i] * factor - base[i / 2 % 2]);
            }
            Mbarrier *empty_k = at.empty_k + kv.stage, *empty_v = at.empty_v + kv.stage;
            // This wait returns at once. The compiler does not move code across its loop, so the exponentials
            // stay before the wait for dP, as in the forward.
            pin_accumulators(scores);
            wait_mbarrier(full_k, kv.phase);
            kv.advance();
            wgmma_wait<0>(dp);
            release(empty_v);
            if (begin + KEYS >= length) {
                release(at.empty_q + q.stage);
            }
#pragma unroll
            for (int i = 0; i < 64; ++i) {
                dp[i] = scores[i] * (dp[i] - delta[i / 2 % 2]);
            }
            if (begin + KEYS - 1 > tile.position + warp_token) {
                int column = begin + thread % 4 * 2;
                int last[2] = {tile.position + token[0] - column, tile.position + token[1] - column};
#pragma unroll
                for (int i = 0; i < 64; ++i) {
                    dp[i] = i / 4 * 8 + i % 2 <= last[i / 2 % 2] ? dp[i] : 0.0f;
                }
            }
#pragma unroll
            for (int step = 0; step < KEYS / 16; ++step) {
                pack_operand(ds[step], dp + 8 * step);
            }
            wgmma_fence(dq);
            multiply_rows<HEAD>(dq, ds, keys);
            wgmma_commit();
            wgmma_wait<0>(dq);
            release(empty_k);
        }
        q.advance();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int head = items.head() * group + row + 8 * half - token[half] * group;
            long long to = tile.first + token[half];
            if (tables.positions != nullptr) {
                RopeAngles<HEAD> angles;
                angles.load(tables, position[half], thread);
                angles.rotate(dq, half, -1.0f);
            }
            store_row<HEAD>(dqkv + to * in.fused.stride() + head * head_dim, dq, half, in.scale, head_dim,
                            token[half] < tile.tokens);
        }
    }
}

template <int HEAD>
KERNELS(384, attention_bwd_q_sm90, FOR(HEAD: 64 80 96 128), EARLY, ALONE(384))(
    const TensorDescriptor& queries,  // (tokens, heads + 2 kv_heads, head_dim), boxes of a tile
    const TensorDescriptor& douts,    // (tokens, heads, head_dim), boxes of a tile
    const TensorDescriptor& keys,     // same tensor as `queries`, boxes of 128 tokens of a head
    const bf16* qkv,                  // the same tensor
    const bf16* dout,                 // (tokens, heads, head_dim)
    const bf16* o,                    // (tokens, heads, head_dim)
    const float* lse,                 // (heads, tokens)
    const int* starts,                // (segments + 1)
    const int* ancestor_offsets,      // (segments + 1)
    const int* ancestors,             // (ancestors)
    const int* work,                  // from attention_plan_sm90, for tiles of 128 / group tokens
    const int* positions,             // (tokens), or null for no RoPE; with RoPE, head_dim is HEAD
    const float* cos,                 // (positions, HEAD / 2)
    const float* sin,                 // (positions, HEAD / 2)
    float* stats,                     // (kv_heads, tokens, heads of the group, 2)
    bf16* dqkv,                       // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int heads, int kv_heads, int head_dim, float scale) {
    using B = Backward<HEAD>;
    DYNAMIC_SHARED_OF(shared, B::SHARED_BYTES);
    B at(shared);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(queries);
        prefetch_tensor_map(douts);
        prefetch_tensor_map(keys);
        at.init();
    }
    sync_block();  // mbarriers are initialised before any thread waits on them
    wait_for_earlier_launch();
    launch_dependents();
    PathInputs in{&queries, &douts, &keys,  {qkv, heads, kv_heads, head_dim}, {starts, ancestor_offsets, ancestors},
                  work,     tokens, scale};
    // The shuffle tells the compiler that the value is uniform across the warp.
    int group = shuffle(int(threadIdx.x) / GROUP_THREADS, 0) - 1, thread = int(threadIdx.x) % GROUP_THREADS;
    if (group < 0) {
        decrease_registers<56>();
        produce_paths<HEAD>(at, in, thread);
    } else {
        increase_registers<224>();
        consume<HEAD>(at, in, dout, o, lse, {positions, cos, sin}, stats, dqkv, group, thread);
    }
}
