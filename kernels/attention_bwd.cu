// Attention over prefix trees, backward. With P the probabilities, recomputed from the logsumexp, and dP = do · v:
// dS = P (dP - delta), delta = do · o; dq = scale dS k, dk = scale dS q, dv = P do. After FlashAttention-2 (arXiv
// 2307.08691), without atomics: one kernel owns the queries' gradients, another those of keys and values.
//
// attention_bwd_delta: a row of delta for each head. attention_bwd_q: a block takes tiles of queries of one segment and
// one head and goes over the keys of their path. attention_bwd_kv: a block takes tiles of keys of one segment and one
// key-value head and goes over the queries that see them: later rows of the segment, then the segments below it,
// ascending, and for each tile of queries the heads of the group, ascending. Gradients too wide for the registers are
// done in parts, of one block each, which compute P and dS again.
//
// bf16: P and dS are rounded to bf16 for the second products. Cost for every visible pair and head, in head_dim FLOPs:
// 2 + 4 parts for the queries, 4 + 4 parts for keys and values, and padding as in the forward; one part but for keys
// and values of 256 columns (2; f32 4) and 96 and 128 columns in f32 (3 and 2), and queries of 256 columns in f32 (2). Refused by
// the host: head_dim above 256. Values are finite, as in the forward.
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#include "common.cuh"
#include "attention.cuh"

constexpr int DELTA_THREADS = 256;

/// delta = do · o for each token and head. Eight lanes take a row.
template <class T>
KERNELS(256, attention_bwd_delta, FOR(T: f32 bf16))(const T* dout,  // (tokens, heads, head_dim)
                                                    const T* o,     // (tokens, heads, head_dim)
                                                    float* delta,   // (heads, tokens)
                                                    int tokens, int heads, int head_dim) {
    constexpr int N = LANE_ELEMENTS<T>, LANES = 8, ROWS = DELTA_THREADS / LANES;
    bool by_lane = wide(dout, head_dim) && wide(o, head_dim);
    long long all = 1LL * tokens * heads;
    int lane = int(threadIdx.x) % LANES;
    for (long long first = 1LL * blockIdx.x * ROWS; first < all; first += 1LL * gridDim.x * ROWS) {
        long long row = first + int(threadIdx.x) / LANES;
        float sum = 0.0f;
        if (row < all) {
            const T *left = dout + row * head_dim, *right = o + row * head_dim;
            for (int c = lane * N; c < head_dim; c += LANES * N) {
                if (by_lane) {
                    Numbers<T> a = load_numbers(left + c), b = load_numbers(right + c);
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        sum += a.x[i] * b.x[i];
                    }
                } else {
                    for (int i = c; i < min_of(c + N, head_dim); ++i) {
                        sum += to_float(left[i]) * to_float(right[i]);
                    }
                }
            }
        }
#pragma unroll
        for (int mask = LANES / 2; mask > 0; mask /= 2) {
            sum += shuffle_xor(sum, mask);
        }
        if (row < all && lane == 0) {
            delta[row % heads * tokens + row / heads] = sum;
        }
    }
}

/// Tiles of both kernels and bytes of shared memory, as attention.rs has them.
template <class T, int HEAD>
struct Backward : BlockShape<T, HEAD> {
    using Block = BlockShape<T, HEAD>;
    static constexpr bool WIDE = HEAD == 256;
    static constexpr int STAGES = WIDE && sizeof(T) == 4 ? 1 : 2;
    /// Rows of a block, and of a stage: keys for the queries' gradients, queries for those of keys and values.
    static constexpr int KEYS = WIDE || sizeof(T) == 4 ? 16 : 64, QUERIES = WIDE || sizeof(T) == 4 ? 16 : 32;
    /// Columns of a gradient that a block sums: registers hold one gradient of a query, two of a key.
    static constexpr int PART_Q = WIDE && sizeof(T) == 4 ? 128 : HEAD;
    static constexpr int PART_KV = HEAD < 96 ? HEAD : sizeof(T) == 4 ? (HEAD == 96 ? 32 : 64) : min_of(HEAD, 128);
    using Own = Tile<T, Block::ROWS, HEAD>;
    using Keys = Tile<T, KEYS, HEAD>;
    using Queries = Tile<T, QUERIES, HEAD>;
    /// Bytes of a stage of queries: q, do, and a logsumexp and delta of each.
    static constexpr int QUERY_STAGE = 2 * Queries::BYTES + 2 * QUERIES * int(sizeof(float));
    static constexpr int SHARED_BYTES_Q = 2 * Own::BYTES + STAGES * 2 * Keys::BYTES;
    static constexpr int SHARED_BYTES_KV = 2 * Own::BYTES + STAGES * QUERY_STAGE;
    static_assert(SHARED_BYTES_Q <= 97 << 10 && SHARED_BYTES_KV <= 97 << 10, "shared memory of every target");
};

/// Operands of both kernels.
template <class T>
struct BackwardInputs {
    const T* dout;  // (tokens, heads, head_dim)
    Fused<T> fused;
    const float* lse;    // (heads, tokens)
    const float* delta;  // (heads, tokens)
    Segments segments;
    WorkList work;
    int tokens;
    float scale;

    /// `rows` rows of do of one head.
    DEVICE Source<T> outputs(int head, int row, int rows) const {
        long long stride = 1LL * fused.heads * fused.head_dim;
        const T* start = dout + row * stride + 1LL * head * fused.head_dim;
        return {start, nullptr, stride, rows, fused.head_dim, wide(start, stride)};
    }
};

/// P and dS in place of scores and dP, elementwise.
DEVICE void probability_and_gradient(float& score, float& dp, bool seen, float factor, float lse, float delta) {
    float p = seen ? exp2f(score * factor - lse) : 0.0f;
    score = p;
    dp = p * (dp - delta);
}

template <class T, int HEAD>
DEVICE void attention_bwd_q(const BackwardInputs<T>& in, T* dqkv) {
    using B = Backward<T, HEAD>;
    constexpr int ROWS = B::ROWS, KEYS = B::KEYS, THREADS = B::THREADS, PART = B::PART_Q, PARTS = HEAD / PART;
    using Scores = WarpRows<KEYS>;
    DYNAMIC_SHARED_OF(shared, B::SHARED_BYTES_Q);
    SHARED(int, index, 2 * KEYS);
    unsigned char *queries = shared, *outputs = shared + B::Own::BYTES;
    const Segments& segments = in.segments;
    int tiles = in.work.tiles(), part_heads = in.fused.heads * PARTS;
    for (long long item = blockIdx.x; item < 1LL * tiles * part_heads; item += gridDim.x) {
        // The longest paths, which come last, first; heads that share keys side by side.
        int tile = tiles - 1 - int(item / part_heads), head = int(item % part_heads) / PARTS, part = int(item % PARTS);
        int segment = in.work.segment(tile), first = in.work.first_row(tile);
        int rows = min_of(ROWS, segments.starts[segment + 1] - first);
        int place = segments.rows_above(segment) + first - segments.starts[segment];
        // Every thread is done with the tiles and rows of the item before.
        sync_block();
        load_rows<typename B::Own, THREADS>(queries, in.fused.queries(head, first, rows));
        load_rows<typename B::Own, THREADS>(outputs, in.outputs(head, first, rows));
        float lse[2], delta[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = Scores::row_of(0, half);
            long long at = 1LL * head * in.tokens + first + row;
            // Rows from `rows` on have q and do of 0, hence finite sums, which are not stored.
            lse[half] = row < rows ? in.lse[at] * LOG2_E : 0.0f;
            delta[half] = row < rows ? in.delta[at] : 0.0f;
        }
        WarpRows<PART> dq;
        dq.clear();
        int warp_first = place + Scores::warp_row();
        bool idle = Scores::warp_row() >= rows;
        each_key_tile<typename B::Keys, B::STAGES, THREADS>(
            shared + 2 * B::Own::BYTES, index, in.fused, in.fused.kv_head_of(head), segments, segment, place + rows,
            [&](int begin, unsigned char* keys, unsigned char* values) {
                // The warp's rows see none of these keys.
                if (idle || begin > warp_first + 15) {
                    return;
                }
                Scores p, ds;
                p.template product_of_rows<T, typename B::Own, typename B::Keys>(queries, keys);
                ds.template product_of_rows<T, typename B::Own, typename B::Keys>(outputs, values);
                bool whole = begin + KEYS - 1 <= warp_first;
#pragma unroll
                for (int j = 0; j < Scores::ACROSS; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        bool seen = whole || begin + Scores::column_of(j, e % 2) <= place + Scores::row_of(0, e / 2);
                        probability_and_gradient(p.sum[0][j].value[e], ds.sum[0][j].value[e], seen, in.scale * LOG2_E,
                                                 lse[e / 2], delta[e / 2]);
                    }
                }
                dq.template add_product<T, typename B::Keys, KEYS>(ds, keys, part * PART);
            });
        if (!idle) {
            long long stride = in.fused.stride();
            int head_dim = in.fused.head_dim;
            dq.store(dqkv + first * stride + 1LL * head * head_dim + part * PART, stride, rows, head_dim - part * PART,
                     [&](int) { return in.scale; });
        }
    }
}

/// Goes over the tiles of queries that see a tile of keys, in the order of the sums.
struct QueryCursor {
    const Segments& segments;
    /// Segment of the keys, end of its tree, and heads of the group.
    int own, end, first_head, end_head;
    /// Where the cursor is: a segment, a row, a head. `segment == end` when there are no more.
    int segment, row, head;

    DEVICE QueryCursor(const Segments& of, const int* trees, int count, int segment_of_keys, int row_of_keys, int first,
                       int group)
        : segments(of), own(segment_of_keys), first_head(first), end_head(first + group), segment(own),
          row(row_of_keys), head(first) {
        // The first entry of the table above the segment ends its tree.
        int below = 0, above = count;
        while (below < above) {
            int middle = (below + above) / 2;
            if (trees[middle] <= own) {
                below = middle + 1;
            } else {
                above = middle;
            }
        }
        end = trees[below];
    }

    DEVICE bool more() const {
        return segment < end;
    }
    /// Rows of the tile.
    DEVICE int rows(int most) const {
        return min_of(most, segments.starts[segment + 1] - row);
    }

    DEVICE void advance(int by) {
        if (++head < end_head) {
            return;
        }
        head = first_head;
        row += by;
        if (row < segments.starts[segment + 1]) {
            return;
        }
        do {
            ++segment;
        } while (segment < end && (!segments.descends(segment, own) || segments.rows(segment) == 0));
        row = segments.starts[segment];
    }
};

template <class T, int HEAD>
DEVICE void attention_bwd_kv(const BackwardInputs<T>& in, const int* trees, int tree_count, T* dqkv) {
    using B = Backward<T, HEAD>;
    constexpr int ROWS = B::ROWS, QUERIES = B::QUERIES, THREADS = B::THREADS, PART = B::PART_KV, PARTS = HEAD / PART;
    using Scores = WarpRows<QUERIES>;
    DYNAMIC_SHARED_OF(shared, B::SHARED_BYTES_KV);
    unsigned char *keys = shared, *values = shared + B::Own::BYTES, *stages = shared + 2 * B::Own::BYTES;
    const Segments& segments = in.segments;
    int kv_heads = in.fused.kv_heads, group = in.fused.heads / kv_heads;
    int part_heads = kv_heads * PARTS, me = int(threadIdx.x);
    auto load = [&](const QueryCursor& at, int step) {
        unsigned char* stage = stages + step % B::STAGES * B::QUERY_STAGE;
        int rows = at.rows(QUERIES);
        load_rows<typename B::Queries, THREADS>(stage, in.fused.queries(at.head, at.row, rows));
        load_rows<typename B::Queries, THREADS>(stage + B::Queries::BYTES, in.outputs(at.head, at.row, rows));
        float* numbers = reinterpret_cast<float*>(stage + 2 * B::Queries::BYTES);
        if (me < QUERIES) {
            // Queries that are not there have q, do, lse and delta of 0: they add 0.
            long long from = 1LL * at.head * in.tokens + at.row + (me < rows ? me : 0);
            copy_async_4(numbers + me, in.lse + from, me < rows ? 4 : 0);
            copy_async_4(numbers + QUERIES + me, in.delta + from, me < rows ? 4 : 0);
        }
        commit_copies();
    };
    for (long long item = blockIdx.x; item < 1LL * in.work.tiles() * part_heads; item += gridDim.x) {
        int tile = int(item / part_heads), kv_head = int(item % part_heads) / PARTS, part = int(item % PARTS);
        int segment = in.work.segment(tile), first = in.work.first_row(tile);
        int rows = min_of(ROWS, segments.starts[segment + 1] - first);
        // Every thread is done with the tiles of the item before.
        sync_block();
        load_rows<typename B::Own, THREADS>(keys, in.fused.keys(kv_head, first, rows));
        load_rows<typename B::Own, THREADS>(values, in.fused.values(kv_head, first, rows));
        WarpRows<PART> dk, dv;
        dk.clear();
        dv.clear();
        bool idle = Scores::warp_row() >= rows;
        QueryCursor at(segments, trees, tree_count, segment, first, kv_head * group, group);
        load(at, 0);
#pragma unroll 1
        for (int step = 0; at.more(); ++step) {
            // First row of the queries where the mask is causal, counted from that of the keys; beyond all keys
            // elsewhere.
            int ahead = at.segment == segment ? at.row - first : ROWS;
            at.advance(QUERIES);
            wait_copies<0>();
            // Every thread's copies of this stage are there, and every thread is done with the stage before.
            sync_block();
            if (B::STAGES == 2 && at.more()) {
                load(at, step + 1);
            }
            unsigned char* stage = stages + step % B::STAGES * B::QUERY_STAGE;
            // Where the warp has keys and some of these queries see them.
            if (!idle && ahead + QUERIES > Scores::warp_row()) {
                const float* numbers = reinterpret_cast<const float*>(stage + 2 * B::Queries::BYTES);
                unsigned char* outputs = stage + B::Queries::BYTES;
                Scores p, ds;
                p.template product_of_rows<T, typename B::Own, typename B::Queries>(keys, stage);
                ds.template product_of_rows<T, typename B::Own, typename B::Queries>(values, outputs);
#pragma unroll
                for (int j = 0; j < Scores::ACROSS; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        int query = Scores::column_of(j, e % 2);
                        bool seen = Scores::row_of(0, e / 2) <= ahead + query;
                        probability_and_gradient(p.sum[0][j].value[e], ds.sum[0][j].value[e], seen, in.scale * LOG2_E,
                                                 numbers[query] * LOG2_E, numbers[QUERIES + query]);
                    }
                }
                dv.template add_product<T, typename B::Queries, QUERIES>(p, outputs, part * PART);
                dk.template add_product<T, typename B::Queries, QUERIES>(ds, stage, part * PART);
            }
            if (B::STAGES == 1 && at.more()) {
                // Every thread is done with the only stage.
                sync_block();
                load(at, step + 1);
            }
        }
        if (!idle) {
            long long stride = in.fused.stride();
            int head_dim = in.fused.head_dim, columns = head_dim - part * PART;
            T* row = dqkv + first * stride + part * PART;
            dk.store(row + 1LL * (in.fused.heads + kv_head) * head_dim, stride, rows, columns,
                     [&](int) { return in.scale; });
            dv.store(row + 1LL * (in.fused.heads + kv_heads + kv_head) * head_dim, stride, rows, columns,
                     [&](int) { return 1.0f; });
        }
    }
}

// shared: Backward::SHARED_BYTES_Q.
template <class T, int HEAD>
KERNELS(128, attention_bwd_q, FOR(HEAD: 32 64 96 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* dout,                // (tokens, heads, head_dim)
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const float* lse,             // (heads, tokens)
    const float* delta,           // (heads, tokens)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* work,              // of attention_plan, for tiles of BlockShape::ROWS
    T* dqkv,                      // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int heads, int kv_heads, int head_dim, float scale) {
    attention_bwd_q<T, HEAD>({dout, {qkv, heads, kv_heads, head_dim}, lse, delta, {starts, ancestor_offsets, ancestors}, {work},
                              tokens, scale}, dqkv);
}

// shared: Backward::SHARED_BYTES_KV.
template <class T, int HEAD>
KERNELS(128, attention_bwd_kv, FOR(HEAD: 32 64 96 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* dout,                // (tokens, heads, head_dim)
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const float* lse,             // (heads, tokens)
    const float* delta,           // (heads, tokens)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* trees,             // (tree_count + 1)
    const int* work,              // of attention_plan, for tiles of BlockShape::ROWS
    T* dqkv,                      // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int tree_count, int heads, int kv_heads, int head_dim, float scale) {
    attention_bwd_kv<T, HEAD>({dout, {qkv, heads, kv_heads, head_dim}, lse, delta, {starts, ancestor_offsets, ancestors}, {work},
                               tokens, scale}, trees, tree_count, dqkv);
}
