// Attention over prefix trees on Hopper, forward: the op of attention.cu in bf16, by wgmma and TMA.
// After FlashAttention-3 (arXiv 2407.08608):
//
//   producer, one warpgroup, for each item of the block:
//     wait empty Q; TMA load the queries of the tile, all heads of the group
//     for each key tile of the path up to the last query:
//       wait empty K, V; TMA load both, or copy their rows
//   two consumers of 64 rows each, for each item of the block:
//     m = -inf, l = 0, O = 0
//     in turns (ping-pong of the two consumers): S = Q K(0)ᵀ; softmax: m, l, P
//     for each further key tile j:
//       in turns: S = Q K(j)ᵀ, O += P V(j-1)
//       wait S; release K(j); softmax of S: m, l, r, P' while O += P V runs
//       wait O; release V(j-1); O = r O; P = P'
//     O += P V(last); o = O / l; lse = ln 2 (c m + log2 l), c = scale log2(e)
//
// Departures from FlashAttention-3:
//   - A tile packs the heads of a group, keys are on the path of a segment, and the work list has the
//     longest paths first (attention_sm90.cuh).
//   - O goes from registers to global memory, since rows of a tile are not one box of the output: a
//     segment may end within the tile. Q is therefore free after the last S, and has two buffers.
//
// A row's result depends on its query and its path only, bit for bit: key tiles start at multiples of
// 128 on the path, and a masked key adds 0. The bits differ from those of attention.cu. P is rounded
// to bf16 for P V, sums are f32. Values must be finite, as in attention.cu.
//
// The host must ensure: head_dim a multiple of 8, at most HEAD; groups of at most 128 heads; scale above 0.
// Cost: 4 head_dim FLOPs per visible pair and head, plus padding: head_dim to HEAD, rows of a tile to 128,
// paths to 128 keys.
#include "common.cuh"
#include "attention_sm90.cuh"

template <int HEAD>
using Forward = PathBuffers<HEAD, 1, 2>;

/// Online softmax of the thread's two rows.
struct PackedSoftmax {
    /// Running maximum of the scores before scaling, and the thread's part of the sum of exponentials.
    float top[2], sum[2];

    /// Replaces the scores of a key tile with exponentials; `rescale` is the factor for earlier sums.
    /// `factor` is scale log2(e), above 0.
    DEVICE void update(float (&scores)[64], float factor, float (&rescale)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float most = top[half];
#pragma unroll
            for (int i = 2 * half; i < 64; i += 4) {
                most = fmaxf(most, fmaxf(scores[i], scores[i + 1]));
            }
            most = fmaxf(most, shuffle_xor(most, 1));
            most = fmaxf(most, shuffle_xor(most, 2));
            // While all scores are -inf, use 0: -inf - -inf would be NaN.
            float base = most == -INFINITY ? 0.0f : most * factor;
            rescale[half] = fast_exp2(top[half] * factor - base);
            top[half] = most;
            float total = sum[half] * rescale[half];
#pragma unroll
            for (int i = 2 * half; i < 64; i += 4) {
                scores[i] = fast_exp2(scores[i] * factor - base);
                scores[i + 1] = fast_exp2(scores[i + 1] * factor - base);
                total += scores[i] + scores[i + 1];
            }
            sum[half] = total;
        }
    }
};

/// Consumer: computes 64 rows of each item's tile.
template <int HEAD>
DEVICE void consume(const Forward<HEAD>& at, const PathInputs& in, bf16* o, float* lse, int consumer, int thread) {
    using F = Forward<HEAD>;
    constexpr int KEYS = ATTENTION_KEYS;
    int group = in.group(), heads = in.fused.heads, head_dim = in.fused.head_dim;
    int row = 64 * consumer + accumulator_row(thread), warp_token = (64 * consumer + thread / WARP * 16) / group;
    int token[2] = {row / group, (row + 8) / group};
    float factor = in.scale * LOG2_E;
    StageCursor<F::BUFFERS> q;
    StageCursor<F::STAGES> k, v;
    if (consumer == 1) {
        pass_turn(consumer);  // the first consumer begins
    }
    for (Items items(in.work, in.fused.kv_heads); items.more(); items.advance()) {
        PathTile tile = items.tile();
        int length = tile.position + tile.tokens;
        float scores[64], out[HEAD / 2], rescale[2];
        uint32_t p[KEYS / 16][4];
        PackedSoftmax softmax{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
#pragma unroll
        for (int i = 0; i < HEAD / 2; ++i) {
            out[i] = 0.0f;
        }
        uint64_t queries = tile_descriptor(at.queries + q.stage * F::TILE_BYTES + consumer * 64 * 128);
        auto multiply_keys = [&] {
            multiply_columns<HEAD, KEYS>(scores, queries, tile_descriptor(at.keys + k.stage * F::TILE_BYTES));
            wgmma_commit();
        };
        auto multiply_values = [&] {
            multiply_rows<HEAD>(out, p, tile_descriptor(at.values + v.stage * F::TILE_BYTES));
            wgmma_commit();
        };
        // Releases the keys from `begin` on, masks the scores of these keys and computes their exponentials.
        auto exponentials = [&](int begin) {
            release(at.empty_k + k.stage);
            k.advance();
            if (begin + KEYS >= length) {
                release(at.empty_q + q.stage);
            }
            if (begin + KEYS - 1 > tile.position + warp_token) {
                int column = begin + thread % 4 * 2;
                int last[2] = {tile.position + token[0] - column, tile.position + token[1] - column};
#pragma unroll
                for (int i = 0; i < 64; ++i) {
                    scores[i] = i / 4 * 8 + i % 2 <= last[i / 2 % 2] ? scores[i] : -INFINITY;
                }
            }
            softmax.update(scores, factor, rescale);
        };
        auto pack = [&] {
#pragma unroll
            for (int step = 0; step < KEYS / 16; ++step) {
                pack_operand(p[step], scores + 8 * step);
            }
        };
        wait_mbarrier(at.full_q + q.stage, q.phase);
        wait_mbarrier(at.full_k + k.stage, k.phase);
        take_turn(consumer);
        wgmma_fence(scores);
        multiply_keys();
        pass_turn(consumer);
        wgmma_wait<0>(scores);
        exponentials(0);
        pack();
        wait_mbarrier(at.full_v + v.stage, v.phase);
#pragma unroll 1
        for (int begin = KEYS; begin < length; begin += KEYS) {
            wait_mbarrier(at.full_k + k.stage, k.phase);
            take_turn(consumer);
            wgmma_fence(scores, out);
            multiply_keys();
            multiply_values();
            pass_turn(consumer);
            wgmma_wait<1>(scores);
            exponentials(begin);
            Mbarrier* empty = at.empty_v + v.stage;
            v.advance();
            // Waits for the values of the next product. The compiler does not move code across this wait's
            // loop, so that the exponentials stay before the wait for O and overlap with the product.
            pin_accumulators(scores);
            wait_mbarrier(at.full_v + v.stage, v.phase);
            wgmma_wait<0>(out);
            release(empty);
#pragma unroll
            for (int i = 0; i < HEAD / 2; ++i) {
                out[i] *= rescale[i / 2 % 2];
            }
            pack();
        }
        wgmma_fence(out);
        multiply_values();
        wgmma_wait<0>(out);
        release(at.empty_v + v.stage);
        v.advance();
        q.advance();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = softmax.sum[half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            int head = items.head() * group + row + 8 * half - token[half] * group, to = tile.first + token[half];
            bool inside = token[half] < tile.tokens;
            if (inside && thread % 4 == 0) {
                // A sum of 0 means that all scores are -inf. The result is then NaN, like the probabilities.
                float value = (softmax.top[half] * factor + log2f(sum)) * LN_2;
                lse[1LL * head * in.tokens + to] = sum == 0.0f ? NAN : value;
            }
            store_row<HEAD>(o + (1LL * to * heads + head) * head_dim, out, half, 1.0f / sum, head_dim, inside);
        }
    }
    if (consumer == 0) {
        take_turn(consumer);  // matches the last pass_turn() of the other consumer, so that no arrival is left over
    }
}

template <int HEAD>
KERNELS(384, attention_fwd_sm90, FOR(HEAD: 64 80 96 128), EARLY, ALONE(384))(
    const TensorDescriptor& queries,  // (tokens, heads + 2 kv_heads, head_dim), boxes of a tile
    const TensorDescriptor& keys,     // the same tensor, boxes of 128 tokens of a head
    const bf16* qkv,                  // the same tensor
    const int* starts,                // (segments + 1)
    const int* ancestor_offsets,      // (segments + 1)
    const int* ancestors,             // (ancestors)
    const int* work,                  // from attention_plan_sm90, for tiles of 128 / group tokens
    bf16* o,                          // (tokens, heads, head_dim)
    float* lse,                       // (heads, tokens)
    int tokens, int heads, int kv_heads, int head_dim, float scale) {
    using F = Forward<HEAD>;
    DYNAMIC_SHARED_OF(shared, F::SHARED_BYTES);
    F at(shared);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(queries);
        prefetch_tensor_map(keys);
        at.init();
    }
    sync_block();  // mbarriers are initialised before any thread waits on them
    wait_for_earlier_launch();
    launch_dependents();
    PathInputs in{&queries, nullptr, &keys,  {qkv, heads, kv_heads, head_dim}, {starts, ancestor_offsets, ancestors},
                     work,     tokens, scale};
    // The shuffle tells the compiler that the value is uniform across the warp.
    int group = shuffle(int(threadIdx.x) / GROUP_THREADS, 0) - 1, thread = int(threadIdx.x) % GROUP_THREADS;
    if (group < 0) {
        decrease_registers<56>();
        produce_paths<HEAD>(at, in, thread);
    } else {
        increase_registers<224>();
        consume<HEAD>(at, in, o, lse, group, thread);
    }
}
