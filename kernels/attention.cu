// Attention over prefix trees, forward: o = softmax(scale q kᵀ) v over the keys a query sees, and the logsumexp of its
// scaled scores; queries of several heads share keys and values. After FlashAttention-2 (arXiv 2307.08691): scores
// exist a tile at a time, with a running maximum and sum for each query.
//
// A block takes tiles of 64 queries (32 in f32 of 256 columns) of one segment and one head from a work list, which the
// first kernel makes on the device because only the device knows where segments begin. bf16: products of bf16 added in
// f32, probabilities rounded to bf16 for the second product. f32: as good as f32 arithmetic (tile.cuh). Cost: 4
// head_dim FLOPs for every visible pair and head, up to padding of head_dim to 32, 64, 96, 128 or 256, of segments to
// 16 queries, of paths to the tile of keys. Refused by the host: head_dim above 256. Values are finite: 0 times an
// infinite value of a later token of the same path is NaN.
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#include "common.cuh"
#include "attention.cuh"

constexpr int PLAN_THREADS = 256;

/// Cuts every segment into tiles of `rows` rows. One block; a thread takes a segment at a time.
KERNEL(256, attention_plan)(const int* starts,  // (segments + 1)
                            int* work,          // (2 + 2 (segments + tokens / rows))
                            int segments, int rows) {
    constexpr int WARPS = PLAN_THREADS / WARP;
    SHARED(int, totals, WARPS);
    int lane = lane_index(), warp = int(threadIdx.x) / WARP, before = 0;
    if (blockIdx.x != 0) {
        return;
    }
    for (int first = 0; first < segments; first += PLAN_THREADS) {
        int segment = first + int(threadIdx.x);
        int length = segment < segments ? starts[segment + 1] - starts[segment] : 0;
        int tiles = ceil_div(length, rows), sum = tiles;
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            int below = shuffle_up(sum, distance);
            sum += lane >= distance ? below : 0;
        }
        if (lane == WARP - 1) {
            totals[warp] = sum;
        }
        // Every warp's total is there before any thread reads them.
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
        // Every thread has read the totals before they are written again.
        sync_block();
    }
    if (threadIdx.x == 0) {
        work[0] = before;
    }
}

/// Tiles of the forward and bytes of shared memory, as attention.rs has them.
template <class T, int HEAD>
struct Forward : BlockShape<T, HEAD> {
    using Block = BlockShape<T, HEAD>;
    static constexpr int KEYS = (HEAD == 256 ? 64 : 128) / int(sizeof(T));
    static constexpr int STAGES = 2;
    using Queries = Tile<T, Block::ROWS, HEAD>;
    using Keys = Tile<T, KEYS, HEAD>;
    static constexpr int SHARED_BYTES = Queries::BYTES + STAGES * 2 * Keys::BYTES;
    static_assert(SHARED_BYTES <= 96 << 10, "shared memory of every target");
};

/// A warp's softmax as far as the keys have come: of rows `lane / 4` and that + 8.
struct RunningSoftmax {
    /// Largest score times log2(e); this lane's part of the sum of exponentials below it.
    float max[2], sum[2];

    /// Scaled scores of a tile to exponentials; `shrink` is what earlier exponentials are to be multiplied by.
    template <int KEYS>
    DEVICE void take(WarpRows<KEYS>& scores, float (&shrink)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = max[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
                top = fmaxf(top, fmaxf(scores.sum[0][j].value[2 * half], scores.sum[0][j].value[2 * half + 1]));
            }
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            // While every score is -inf any reference does, but the difference of two infinities.
            float base = top == -INFINITY ? 0.0f : top;
            shrink[half] = exp2f(max[half] - base);
            max[half] = top;
            sum[half] *= shrink[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    float p = exp2f(scores.sum[0][j].value[e] - base);
                    scores.sum[0][j].value[e] = p;
                    sum[half] += p;
                }
            }
        }
    }
};

template <class T, int HEAD>
DEVICE void attention_fwd(const Fused<T>& fused, const Segments& segments, const WorkList& work, T* o, float* lse,
                          int tokens, float scale) {
    using F = Forward<T, HEAD>;
    constexpr int ROWS = F::ROWS, KEYS = F::KEYS, THREADS = F::THREADS;
    using Scores = WarpRows<KEYS>;
    DYNAMIC_SHARED_OF(shared, F::SHARED_BYTES);
    SHARED(int, index, 2 * KEYS);
    int tiles = work.tiles(), heads = fused.heads, head_dim = fused.head_dim;
    for (long long item = blockIdx.x; item < 1LL * tiles * heads; item += gridDim.x) {
        // The longest paths, which come last, first; heads that share keys side by side.
        int tile = tiles - 1 - int(item / heads), head = int(item % heads);
        int segment = work.segment(tile), first = work.first_row(tile);
        int rows = min_of(ROWS, segments.starts[segment + 1] - first);
        int place = segments.rows_above(segment) + first - segments.starts[segment];
        // Every thread is done with the tiles and rows of the item before.
        sync_block();
        load_rows<typename F::Queries, THREADS>(shared, fused.queries(head, first, rows));
        WarpRows<HEAD> out;
        out.clear();
        RunningSoftmax softmax{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
        int warp_first = place + Scores::warp_row();
        bool idle = Scores::warp_row() >= rows;
        each_key_tile<typename F::Keys, F::STAGES, THREADS>(
            shared + F::Queries::BYTES, index, fused, fused.kv_head_of(head), segments, segment, place + rows,
            [&](int begin, unsigned char* keys, unsigned char* values) {
                // The warp's rows see none of these keys.
                if (idle || begin > warp_first + 15) {
                    return;
                }
                Scores scores;
                scores.template product_of_rows<T, typename F::Queries, typename F::Keys>(shared, keys);
                bool whole = begin + KEYS - 1 <= warp_first;
#pragma unroll
                for (int j = 0; j < Scores::ACROSS; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        bool seen = whole || begin + Scores::column_of(j, e % 2) <= place + Scores::row_of(0, e / 2);
                        float& x = scores.sum[0][j].value[e];
                        x = seen ? x * (scale * LOG2_E) : -INFINITY;
                    }
                }
                float shrink[2];
                softmax.take(scores, shrink);
#pragma unroll
                for (int j = 0; j < WarpRows<HEAD>::ACROSS; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        out.sum[0][j].value[e] *= shrink[e / 2];
                    }
                }
                out.template add_product<T, typename F::Keys, KEYS>(scores, values, 0);
            });
        if (idle) {
            continue;
        }
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = softmax.sum[half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            inverse[half] = 1.0f / sum;
            int row = Scores::row_of(0, half);
            if (row < rows && lane_index() % 4 == 0) {
                // A sum of 0 has no score above -inf: NaN, as the weights are.
                float value = (softmax.max[half] + log2f(sum)) * LN_2;
                lse[1LL * head * tokens + first + row] = sum == 0.0f ? NAN : value;
            }
        }
        long long stride = 1LL * heads * head_dim;
        out.store(o + first * stride + 1LL * head * head_dim, stride, rows, head_dim,
                  [&](int half) { return inverse[half]; });
    }
}

// shared: Forward::SHARED_BYTES.
template <class T, int HEAD>
KERNELS(128, attention_fwd, FOR(HEAD: 32 64 96 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* work,              // of attention_plan, for tiles of BlockShape::ROWS
    T* o,                         // (tokens, heads, head_dim)
    float* lse,                   // (heads, tokens)
    int tokens, int heads, int kv_heads, int head_dim, float scale) {
    attention_fwd<T, HEAD>({qkv, heads, kv_heads, head_dim}, {starts, ancestor_offsets, ancestors}, {work}, o, lse, tokens,
                           scale);
}
