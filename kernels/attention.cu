// Attention over prefix trees, forward: o = softmax(scale q kᵀ) v over the keys that a query sees,
// and the logsumexp of its scaled scores. Query heads share key-value heads (grouped-query
// attention). After FlashAttention-2 (arXiv 2307.08691):
//
//   for each work item (tile of 64 queries of a segment, head), in a grid-stride loop of blocks:
//     load Q; m = -inf, l = 0, O = 0
//     for each tile of keys and values on the path, from the first query's window to the last query:
//       S = scale log2(e) Q Kᵀ, soft-capped on request, masked causally and by the window
//       m' = max(m, rowmax S); P = 2^(S - m'); r = 2^(m - m')
//       l = r l + rowsum P; O = r O + P V; m = m'
//     o = O / l; lse = ln 2 (m + log2 l)
//
// Departures from FlashAttention-2:
//   - A query sees the keys of its path (attention.cuh). Only the causal boundary and the edge of the
//     window need a mask, because the position on the path orders the keys of ancestors and of the
//     query's segment alike.
//   - The work list is built on the device by attention_plan, since only the device knows where
//     segments start. Blocks process the longest paths first.
// In f32 with head_dim 256 a tile has 32 queries.
//
// bf16: bf16 products summed in f32; P is rounded to bf16 for P V. f32: as accurate as f32 arithmetic
// (tile.cuh). Cost: 4 head_dim FLOPs per visible pair and head, plus padding: head_dim to 32, 64, 96, 128 or
// 256, segments to 16 queries, paths to whole key tiles. The host rejects head_dim above 256. Values must be
// finite: 0 times an infinite value of a later token of the path is NaN.
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#include "common.cuh"
#include "attention.cuh"

constexpr int PLAN_THREADS = 256;
/// Number of depth classes of segments: roots, their children, and all deeper segments.
constexpr int PLAN_DEPTHS = 3;

/// Builds the work list: cuts every segment into tiles of `rows` rows. One block runs, with one segment per
/// thread and round; a block-wide prefix sum gives the tile offsets. Roots come first: many queries see their
/// keys, so the gradients of their keys take longest. Deep segments come last: their queries see the most
/// keys, and the passes over queries start at the end of the list.
KERNEL(256, attention_plan)(const int* starts,            // (segments + 1)
                            const int* ancestor_offsets,  // (segments + 1)
                            int* work,                    // (2 + 2 (segments + tokens / rows))
                            int segments, int rows) {
    constexpr int WARPS = PLAN_THREADS / WARP;
    SHARED(int, totals, WARPS);
    int lane = lane_index(), warp = int(threadIdx.x) / WARP, before = 0;
    if (blockIdx.x != 0) {
        return;
    }
    int rounds = ceil_div(segments, PLAN_THREADS);
    for (int round = 0; round < PLAN_DEPTHS * rounds; ++round) {
        int segment = round % rounds * PLAN_THREADS + int(threadIdx.x), length = 0;
        if (segment < segments) {
            int depth = min_of(ancestor_offsets[segment + 1] - ancestor_offsets[segment], PLAN_DEPTHS - 1);
            length = depth == round / rounds ? starts[segment + 1] - starts[segment] : 0;
        }
        int tiles = ceil_div(length, rows), sum = tiles;
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            int below = shuffle_up(sum, distance);
            sum += lane >= distance ? below : 0;
        }
        if (lane == WARP - 1) {
            totals[warp] = sum;
        }
        // Waits until all warp totals are written.
        sync_block();
        int at = before + sum - tiles;
        for (int w = 0; w < WARPS; ++w) {
            at += w < warp ? totals[w] : 0;
            before += totals[w];
        }
        for (int tile = 0; tile < tiles; ++tile) {
            work[2 + 2 * (at + tile)] = segment;
            work[3 + 2 * (at + tile)] = starts[segment] + tile * rows;
        }
        // Waits until all threads have read the totals, which the next round overwrites.
        sync_block();
    }
    if (threadIdx.x == 0) {
        work[0] = before;
    }
}

/// Tile shapes and shared memory of the forward pass; mirrored by `Shape` in src/backend/kernels/attention.rs.
template <class T, int HEAD>
struct Forward : BlockShape<T, HEAD> {
    using Block = BlockShape<T, HEAD>;
    static constexpr int KEYS = (HEAD == 256 ? 64 : 128) / int(sizeof(T));
    static constexpr int STAGES = 2;
    using Queries = SharedTile<T, Block::ROWS, HEAD>;
    using Keys = SharedTile<T, KEYS, HEAD>;
    static constexpr int SHARED_BYTES = Queries::BYTES + STAGES * 2 * Keys::BYTES;
    static_assert(SHARED_BYTES <= 96 << 10, "shared memory of every target");
};

/// Online softmax state of a lane: rows `lane / 4` and `lane / 4 + 8` of the warp tile.
struct OnlineSoftmax {
    /// Running maximum in base 2, and this lane's share of the sum of exponentials relative to it.
    float max[2], sum[2];

    /// Replaces a tile's scaled scores with exponentials; `rescale` is the factor for earlier sums.
    template <int KEYS>
    DEVICE void update(WarpTile<KEYS>& scores, float (&rescale)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = max[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
                top = fmaxf(top, fmaxf(scores.acc[0][j].value[2 * half], scores.acc[0][j].value[2 * half + 1]));
            }
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            // While all scores are -inf, use 0: -inf - -inf would be NaN.
            float base = top == -INFINITY ? 0.0f : top;
            rescale[half] = fast_exp2(max[half] - base);
            max[half] = top;
            sum[half] *= rescale[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    float p = fast_exp2(scores.acc[0][j].value[e] - base);
                    scores.acc[0][j].value[e] = p;
                    sum[half] += p;
                }
            }
        }
    }
};

template <class T, int HEAD, class Scoring>
DEVICE void attention_fwd(const FusedQkv<T>& fused, const Segments& segments, const WorkList& work, T* o, float* lse,
                          int tokens, const Scoring& form, const Window& window) {
    using F = Forward<T, HEAD>;
    constexpr int ROWS = F::ROWS, KEYS = F::KEYS, THREADS = F::THREADS;
    using Scores = WarpTile<KEYS>;
    DYNAMIC_SHARED_OF(shared, F::SHARED_BYTES);
    SHARED(int, index, 2 * KEYS);
    int tiles = work.tiles(), heads = fused.heads, head_dim = fused.head_dim;
    for (long long item = blockIdx.x; item < 1LL * tiles * heads; item += gridDim.x) {
        // Longest paths first (they are last in the list); heads that share keys run adjacently.
        int tile = tiles - 1 - int(item / heads), head = int(item % heads);
        int segment = work.segment(tile), first = work.first_row(tile);
        int rows = min_of(ROWS, segments.starts[segment + 1] - first);
        int position = segments.rows_above(segment) + first - segments.starts[segment];
        // Waits until no thread reads the tiles or rows of the previous item.
        sync_block();
        load_rows<typename F::Queries, THREADS>(shared, fused.queries(head, first, rows));
        WarpTile<HEAD> out;
        out.clear();
        OnlineSoftmax softmax{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
        // A warp without rows gets a position far before all keys, so that it sees none of them.
        int warp_first = Scores::warp_row() < rows ? position + Scores::warp_row() : -(1 << 30);
        for_each_key_tile<typename F::Keys, F::STAGES, THREADS>(
            shared + F::Queries::BYTES, index, fused, fused.kv_head_of(head), segments, segment,
            window.first_key(position), position + rows,
            [&](int begin, unsigned char* keys, unsigned char* values) {
                // Distance from the tile's first key to the warp's first row.
                int ahead = warp_first - begin;
                // Skips the tile if no row of the warp sees any of its keys.
                if (ahead < -15 || window.passed(ahead - (KEYS - 1))) {
                    return;
                }
                Scores scores;
                scores.template multiply_transposed<T, typename F::Queries, typename F::Keys>(shared, keys);
#pragma unroll
                for (int j = 0; j < Scores::FRAGMENTS_N; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        scores.acc[0][j].value[e] = form.base2(scores.acc[0][j].value[e]);
                    }
                }
                // Masks the scores if some row does not see some key.
                if (ahead < KEYS - 1 || window.passed(ahead + 15)) {
#pragma unroll
                    for (int j = 0; j < Scores::FRAGMENTS_N; ++j) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            int distance = ahead + Scores::row_in_warp(e / 2) - Scores::column_of(j, e % 2);
                            float& x = scores.acc[0][j].value[e];
                            x = window.sees(distance) ? x : -INFINITY;
                        }
                    }
                }
                float rescale[2];
                softmax.update(scores, rescale);
#pragma unroll
                for (int j = 0; j < WarpTile<HEAD>::FRAGMENTS_N; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        out.acc[0][j].value[e] *= rescale[e / 2];
                    }
                }
                out.template accumulate_product<T, typename F::Keys, KEYS>(scores, values, 0);
            });
        if (warp_first < 0) {
            continue;
        }
        // These two values are computed again, because the loop has no registers left to keep them.
        first = work.first_row(tile);
        rows = min_of(ROWS, segments.starts[segment + 1] - first);
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = softmax.sum[half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            inverse[half] = 1.0f / sum;
            int row = Scores::row_of(0, half);
            if (row < rows && lane_index() % 4 == 0) {
                // A sum of 0 means that all scores are -inf. The result is then NaN, like the probabilities.
                float value = (softmax.max[half] + log2f(sum)) * LN_2;
                lse[1LL * head * tokens + first + row] = sum == 0.0f ? NAN : value;
            }
        }
        long long stride = 1LL * heads * head_dim;
        out.store(o + first * stride + 1LL * head * head_dim, stride, rows, head_dim,
                  [&](int half) { return inverse[half]; });
    }
}

template <class T, int HEAD>
KERNELS(128, attention_fwd, FOR(HEAD: 32 64 96 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* work,              // from attention_plan, for tiles of BlockShape::ROWS
    T* o,                         // (tokens, heads, head_dim)
    float* lse,                   // (heads, tokens)
    int tokens, int heads, int kv_heads, int head_dim, float scale, int window) {
    attention_fwd<T, HEAD, PlainScores>({qkv, heads, kv_heads, head_dim}, {starts, ancestor_offsets, ancestors}, {work}, o, lse,
                           tokens, {scale}, {window});
}

// Variant with a soft cap. Few models have a soft cap, so the variant is compiled for fewer head sizes.
template <class T, int HEAD>
KERNELS(128, attention_capped_fwd, FOR(HEAD: 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* work,              // from attention_plan, for tiles of BlockShape::ROWS
    T* o,                         // (tokens, heads, head_dim)
    float* lse,                   // (heads, tokens)
    int tokens, int heads, int kv_heads, int head_dim, float scale, float softcap,
    float inverse_softcap, int window) {
    attention_fwd<T, HEAD, CappedScores<T>>({qkv, heads, kv_heads, head_dim}, {starts, ancestor_offsets, ancestors}, {work}, o, lse,
                           tokens, {scale, softcap, inverse_softcap}, {window});
}
