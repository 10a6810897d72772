// Attention over prefix trees, backward, after FlashAttention-2 (arXiv 2307.08691):
//
//   attention_bwd_delta: delta = do · o per row and head
//   attention_bwd_q, for each work item (tile of queries, head):
//     for each tile of keys on the path, from the first query's window to the last query:
//       S = scale q kᵀ, soft-capped on request; P = exp(S - lse)
//       dS = P (do vᵀ - delta), times the slope of the cap; dq += dS k
//     dq *= scale
//   attention_bwd_kv, for each work item (tile of keys, key-value head):
//     for each tile of queries that see the keys, each head of the group:
//       Pᵀ and dSᵀ as above, from k qᵀ and v doᵀ; dv += Pᵀ do; dk += dSᵀ q
//     dk *= scale
//
// Departures from FlashAttention-2:
//   - No atomics, so that results are deterministic: one kernel computes the query gradients, another the
//     key and value gradients. Both recompute P and dS.
//   - The queries that see a key tile are later rows of its segment, then the descendant segments in
//     ascending order, each up to the end of the window. Each query tile runs for the heads of the
//     group in ascending order.
//   - Gradients too wide for the registers are split into column parts, one block each, which
//     recompute P and dS.
//
// bf16: P and dS are rounded to bf16 for the second GEMMs. Cost per visible pair and head with p column parts, in
// head_dim FLOPs: 2 + 4 p for queries, 4 + 4 p for keys and values, plus padding as in the forward.
// p = 1 with these exceptions: keys and values in bf16 with head_dim 256 (p = 2); keys and values in f32 with
// head_dim 96, 128 and 256 (p = 3, 2 and 4); queries in f32 with head_dim 256 (p = 2).
// The host rejects head_dim above 256. Values must be finite, as in the forward.
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#include "common.cuh"
#include "attention.cuh"

constexpr int DELTA_THREADS = 256;

/// delta = do · o for each token and head, eight lanes per row.
template <class T>
KERNELS(256, attention_bwd_delta, FOR(T: f32 bf16))(const T* dout,  // (tokens, heads, head_dim)
                                                    const T* o,     // (tokens, heads, head_dim)
                                                    float* delta,   // (heads, tokens)
                                                    int tokens, int heads, int head_dim) {
    constexpr int N = VEC_ELEMENTS<T>, LANES = 8, ROWS = DELTA_THREADS / LANES;
    bool vectorised = vec_aligned(dout, head_dim) && vec_aligned(o, head_dim);
    long long all = 1LL * tokens * heads;
    int lane = int(threadIdx.x) % LANES;
    for (long long first = 1LL * blockIdx.x * ROWS; first < all; first += 1LL * gridDim.x * ROWS) {
        long long row = first + int(threadIdx.x) / LANES;
        float sum = 0.0f;
        if (row < all) {
            const T *left = dout + row * head_dim, *right = o + row * head_dim;
            for (int c = lane * N; c < head_dim; c += LANES * N) {
                if (vectorised) {
                    Floats<T> a = load_floats(left + c), b = load_floats(right + c);
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

/// Tile shapes and shared memory of both kernels; mirrored by `Shape` in
/// src/backend/kernels/attention.rs.
template <class T, int HEAD>
struct Backward : BlockShape<T, HEAD> {
    using Block = BlockShape<T, HEAD>;
    static constexpr bool WIDE = HEAD == 256;
    static constexpr int STAGES = WIDE && sizeof(T) == 4 ? 1 : 2;
    /// Rows of a stage: KEYS in attention_bwd_q, QUERIES in attention_bwd_kv.
    static constexpr int KEYS = WIDE || sizeof(T) == 4 ? 16 : 64, QUERIES = WIDE || sizeof(T) == 4 ? 16 : 32;
    /// Gradient columns per block. Registers hold one gradient (dq) per query, but two (dk and dv) per key.
    static constexpr int PART_Q = WIDE && sizeof(T) == 4 ? 128 : HEAD;
    static constexpr int PART_KV = HEAD < 96 ? HEAD : sizeof(T) == 4 ? (HEAD == 96 ? 32 : 64) : min_of(HEAD, 128);
    using BlockTile = SharedTile<T, Block::ROWS, HEAD>;
    using Keys = SharedTile<T, KEYS, HEAD>;
    using Queries = SharedTile<T, QUERIES, HEAD>;
    /// Bytes of a stage of queries: q, do, logsumexp, delta.
    static constexpr int QUERY_STAGE = 2 * Queries::BYTES + 2 * QUERIES * int(sizeof(float));
    static constexpr int SHARED_BYTES_Q = 2 * BlockTile::BYTES + STAGES * 2 * Keys::BYTES;
    static constexpr int SHARED_BYTES_KV = 2 * BlockTile::BYTES + STAGES * QUERY_STAGE;
    static_assert(SHARED_BYTES_Q <= 97 << 10 && SHARED_BYTES_KV <= 97 << 10, "shared memory of every target");
};

/// Inputs of both kernels.
template <class T, class Scoring>
struct BackwardInputs {
    const T* dout;  // (tokens, heads, head_dim)
    FusedQkv<T> fused;
    const float* lse;    // (heads, tokens)
    const float* delta;  // (heads, tokens)
    Segments segments;
    WorkList work;
    int tokens;
    Scoring form;
    Window window;

    /// View of `rows` rows of do of one head, from `row` on.
    DEVICE MatrixView<T> output_gradients(int head, int row, int rows) const {
        long long stride = 1LL * fused.heads * fused.head_dim;
        const T* start = dout + row * stride + 1LL * head * fused.head_dim;
        return {start, nullptr, stride, rows, fused.head_dim, vec_aligned(start, stride)};
    }
};

/// Replaces `score` with P, and `dp` with dS.
template <class Scoring>
DEVICE void softmax_backward(float& score, float& dp, bool seen, const Scoring& form, float lse, float delta) {
    float slope = 1.0f, p = seen ? fast_exp2(form.base2(score, slope) - lse) : 0.0f;
    score = p;
    dp = p * (dp - delta);
    if constexpr (Scoring::CAPPED) {
        dp *= slope;
    }
}

template <class T, int HEAD, class Scoring>
DEVICE void attention_bwd_q(const BackwardInputs<T, Scoring>& in, T* dqkv) {
    using B = Backward<T, HEAD>;
    constexpr int ROWS = B::ROWS, KEYS = B::KEYS, THREADS = B::THREADS, PART = B::PART_Q, PARTS = HEAD / PART;
    using Scores = WarpTile<KEYS>;
    DYNAMIC_SHARED_OF(shared, B::SHARED_BYTES_Q);
    SHARED(int, index, 2 * KEYS);
    unsigned char *queries = shared, *douts = shared + B::BlockTile::BYTES;
    const Segments& segments = in.segments;
    int tiles = in.work.tiles(), part_heads = in.fused.heads * PARTS;
    for (long long item = blockIdx.x; item < 1LL * tiles * part_heads; item += gridDim.x) {
        // Longest paths first (they are last in the list); heads that share keys run adjacently.
        int tile = tiles - 1 - int(item / part_heads), head = int(item % part_heads) / PARTS, part = int(item % PARTS);
        int segment = in.work.segment(tile), first = in.work.first_row(tile);
        int rows = min_of(ROWS, segments.starts[segment + 1] - first);
        int position = segments.rows_above(segment) + first - segments.starts[segment];
        // Waits until no thread reads the tiles or rows of the previous item.
        sync_block();
        load_rows<typename B::BlockTile, THREADS>(queries, in.fused.queries(head, first, rows));
        load_rows<typename B::BlockTile, THREADS>(douts, in.output_gradients(head, first, rows));
        float lse[2], delta[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = Scores::row_of(0, half);
            long long at = 1LL * head * in.tokens + first + row;
            // Rows beyond `rows` have q = do = 0: their sums are finite and not stored.
            lse[half] = row < rows ? in.lse[at] * LOG2_E : 0.0f;
            delta[half] = row < rows ? in.delta[at] : 0.0f;
        }
        WarpTile<PART> dq;
        dq.clear();
        int warp_first = position + Scores::warp_row();
        bool idle = Scores::warp_row() >= rows;
        for_each_key_tile<typename B::Keys, B::STAGES, THREADS>(
            shared + 2 * B::BlockTile::BYTES, index, in.fused, in.fused.kv_head_of(head), segments, segment,
            in.window.first_key(position), position + rows,
            [&](int begin, unsigned char* keys, unsigned char* values) {
                // Skips the tile if no row of the warp sees any of its keys.
                if (idle || begin > warp_first + 15 || in.window.passed(warp_first - (begin + KEYS - 1))) {
                    return;
                }
                Scores p, ds;
                p.template multiply_transposed<T, typename B::BlockTile, typename B::Keys>(queries, keys);
                ds.template multiply_transposed<T, typename B::BlockTile, typename B::Keys>(douts, values);
                bool unmasked = begin + KEYS - 1 <= warp_first && !in.window.passed(warp_first + 15 - begin);
#pragma unroll
                for (int j = 0; j < Scores::FRAGMENTS_N; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        bool seen = unmasked || in.window.sees(position + Scores::row_of(0, e / 2) -
                                                               (begin + Scores::column_of(j, e % 2)));
                        softmax_backward(p.acc[0][j].value[e], ds.acc[0][j].value[e], seen, in.form,
                                         lse[e / 2], delta[e / 2]);
                    }
                }
                dq.template accumulate_product<T, typename B::Keys, KEYS>(ds, keys, part * PART);
            });
        if (!idle) {
            long long stride = in.fused.stride();
            int head_dim = in.fused.head_dim;
            dq.store(dqkv + first * stride + 1LL * head * head_dim + part * PART, stride, rows, head_dim - part * PART,
                     [&](int) { return in.form.scale; });
        }
    }
}

/// Iterates over the query tiles that see a key tile, in summation order.
struct QueryCursor {
    const Segments& segments;
    Window window;
    /// Segment of the keys, path position of their first row, and number of keys.
    int key_segment, position, keys;
    /// Index after the last segment of the keys' tree, and range of the group's heads.
    int end, first_head, end_head;
    /// Current segment, row and head, and the distance from the first key to the row. After the last tile,
    /// `segment == end`.
    int segment, row, head, ahead;

    DEVICE QueryCursor(const Segments& of, const Window& visible, const int* trees, int count, int segment_of_keys,
                       int row_of_keys, int rows_of_keys, int first, int group)
        : segments(of), window(visible), key_segment(segment_of_keys),
          position(of.rows_above(segment_of_keys) + row_of_keys - of.starts[segment_of_keys]), keys(rows_of_keys),
          first_head(first), end_head(first + group), segment(segment_of_keys), row(row_of_keys), head(first),
          ahead(0) {
        // Binary search for the first tree start above the segment, where the segment's tree ends.
        int below = 0, above = count;
        while (below < above) {
            int middle = (below + above) / 2;
            if (trees[middle] <= key_segment) {
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
    /// Rows of the current tile, at most `limit`.
    DEVICE int rows(int limit) const {
        return min_of(limit, segments.starts[segment + 1] - row);
    }

    DEVICE void advance(int by) {
        if (++head < end_head) {
            return;
        }
        head = first_head;
        row += by;
        ahead += by;
        if (row < segments.starts[segment + 1] && reaches()) {
            return;
        }
        do {
            ++segment;
        } while (segment < end && !enter());
        row = segments.starts[segment];
    }

    /// Whether the query at `ahead` sees the last key.
    DEVICE bool reaches() const {
        return !window.passed(ahead - (keys - 1));
    }

    /// Moves to the first row of the segment; false if none of its rows sees the keys.
    DEVICE bool enter() {
        if (!segments.descends(segment, key_segment) || segments.rows(segment) == 0) {
            return false;
        }
        ahead = segments.rows_above(segment) - position;
        return reaches();
    }
};

template <class T, int HEAD, class Scoring>
DEVICE void attention_bwd_kv(const BackwardInputs<T, Scoring>& in, const int* trees, int tree_count, T* dqkv) {
    using B = Backward<T, HEAD>;
    constexpr int ROWS = B::ROWS, QUERIES = B::QUERIES, THREADS = B::THREADS, PART = B::PART_KV, PARTS = HEAD / PART;
    using Scores = WarpTile<QUERIES>;
    DYNAMIC_SHARED_OF(shared, B::SHARED_BYTES_KV);
    unsigned char *keys = shared, *values = shared + B::BlockTile::BYTES, *stages = shared + 2 * B::BlockTile::BYTES;
    const Segments& segments = in.segments;
    int kv_heads = in.fused.kv_heads, group = in.fused.heads / kv_heads;
    int part_heads = kv_heads * PARTS, thread = int(threadIdx.x);
    auto load = [&](const QueryCursor& cursor, int step) {
        unsigned char* stage = stages + step % B::STAGES * B::QUERY_STAGE;
        int rows = cursor.rows(QUERIES);
        load_rows<typename B::Queries, THREADS>(stage, in.fused.queries(cursor.head, cursor.row, rows));
        load_rows<typename B::Queries, THREADS>(stage + B::Queries::BYTES,
                                                in.output_gradients(cursor.head, cursor.row, rows));
        float* row_stats = reinterpret_cast<float*>(stage + 2 * B::Queries::BYTES);
        if (thread < QUERIES) {
            // Padding queries have q = do = lse = delta = 0, so they add 0.
            long long from = 1LL * cursor.head * in.tokens + cursor.row + (thread < rows ? thread : 0);
            cp_async_4(row_stats + thread, in.lse + from, thread < rows ? 4 : 0);
            cp_async_4(row_stats + QUERIES + thread, in.delta + from, thread < rows ? 4 : 0);
        }
        cp_async_commit();
    };
    for (long long item = blockIdx.x; item < 1LL * in.work.tiles() * part_heads; item += gridDim.x) {
        int tile = int(item / part_heads), kv_head = int(item % part_heads) / PARTS, part = int(item % PARTS);
        int segment = in.work.segment(tile), first = in.work.first_row(tile);
        int rows = min_of(ROWS, segments.starts[segment + 1] - first);
        // Waits until no thread reads the tiles of the previous item.
        sync_block();
        load_rows<typename B::BlockTile, THREADS>(keys, in.fused.keys(kv_head, first, rows));
        load_rows<typename B::BlockTile, THREADS>(values, in.fused.values(kv_head, first, rows));
        WarpTile<PART> dk, dv;
        dk.clear();
        dv.clear();
        bool idle = Scores::warp_row() >= rows;
        QueryCursor cursor(segments, in.window, trees, tree_count, segment, first, rows, kv_head * group, group);
        load(cursor, 0);
#pragma unroll 1
        for (int step = 0; cursor.more(); ++step) {
            // The mask needs `ahead`. For queries of a descendant it is at least the number of keys, so the
            // causal mask hides no key from them.
            int ahead = cursor.ahead;
            cursor.advance(QUERIES);
            cp_async_wait<0>();
            // Waits until all copies of this stage have arrived and no thread reads the previous stage.
            sync_block();
            if (B::STAGES == 2 && cursor.more()) {
                load(cursor, step + 1);
            }
            unsigned char* stage = stages + step % B::STAGES * B::QUERY_STAGE;
            // Skip warps without keys, and warps with keys that none of these queries sees.
            if (!idle && ahead + QUERIES > Scores::warp_row() && !in.window.passed(ahead - (Scores::warp_row() + 15))) {
                const float* row_stats = reinterpret_cast<const float*>(stage + 2 * B::Queries::BYTES);
                unsigned char* douts = stage + B::Queries::BYTES;
                Scores p, ds;
                p.template multiply_transposed<T, typename B::BlockTile, typename B::Queries>(keys, stage);
                ds.template multiply_transposed<T, typename B::BlockTile, typename B::Queries>(values, douts);
#pragma unroll
                for (int j = 0; j < Scores::FRAGMENTS_N; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        int query = Scores::column_of(j, e % 2);
                        bool seen = in.window.sees(ahead + query - Scores::row_of(0, e / 2));
                        softmax_backward(p.acc[0][j].value[e], ds.acc[0][j].value[e], seen, in.form,
                                         row_stats[query] * LOG2_E, row_stats[QUERIES + query]);
                    }
                }
                dv.template accumulate_product<T, typename B::Queries, QUERIES>(p, douts, part * PART);
                dk.template accumulate_product<T, typename B::Queries, QUERIES>(ds, stage, part * PART);
            }
            if (B::STAGES == 1 && cursor.more()) {
                // Waits until no thread reads the single stage.
                sync_block();
                load(cursor, step + 1);
            }
        }
        if (!idle) {
            long long stride = in.fused.stride();
            int head_dim = in.fused.head_dim, columns = head_dim - part * PART;
            T* row = dqkv + first * stride + part * PART;
            dk.store(row + 1LL * (in.fused.heads + kv_head) * head_dim, stride, rows, columns,
                     [&](int) { return in.form.scale; });
            dv.store(row + 1LL * (in.fused.heads + kv_heads + kv_head) * head_dim, stride, rows, columns,
                     [&](int) { return 1.0f; });
        }
    }
}

template <class T, int HEAD>
KERNELS(128, attention_bwd_q, FOR(HEAD: 32 64 96 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* dout,                // (tokens, heads, head_dim)
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const float* lse,             // (heads, tokens)
    const float* delta,           // (heads, tokens)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* work,              // from attention_plan, for tiles of BlockShape::ROWS
    T* dqkv,                      // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int heads, int kv_heads, int head_dim, float scale, int window) {
    attention_bwd_q<T, HEAD, PlainScores>({dout, {qkv, heads, kv_heads, head_dim}, lse, delta,
                              {starts, ancestor_offsets, ancestors}, {work}, tokens, {scale}, {window}}, dqkv);
}

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
    const int* work,              // from attention_plan, for tiles of BlockShape::ROWS
    T* dqkv,                      // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int tree_count, int heads, int kv_heads, int head_dim, float scale, int window) {
    attention_bwd_kv<T, HEAD, PlainScores>({dout, {qkv, heads, kv_heads, head_dim}, lse, delta,
                               {starts, ancestor_offsets, ancestors}, {work}, tokens, {scale}, {window}}, trees, tree_count, dqkv);
}

// Variants with a soft cap. Few models have a soft cap, so the variants are compiled for fewer head sizes.
template <class T, int HEAD>
KERNELS(128, attention_capped_bwd_q, FOR(HEAD: 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* dout,                // (tokens, heads, head_dim)
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const float* lse,             // (heads, tokens)
    const float* delta,           // (heads, tokens)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* work,              // from attention_plan, for tiles of BlockShape::ROWS
    T* dqkv,                      // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int heads, int kv_heads, int head_dim, float scale, float softcap,
    float inverse_softcap, int window) {
    attention_bwd_q<T, HEAD, CappedScores<T>>({dout, {qkv, heads, kv_heads, head_dim}, lse, delta,
                              {starts, ancestor_offsets, ancestors}, {work}, tokens, {scale, softcap, inverse_softcap}, {window}}, dqkv);
}

template <class T, int HEAD>
KERNELS(128, attention_capped_bwd_kv, FOR(HEAD: 128 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)))(
    const T* dout,                // (tokens, heads, head_dim)
    const T* qkv,                 // (tokens, heads + 2 kv_heads, head_dim)
    const float* lse,             // (heads, tokens)
    const float* delta,           // (heads, tokens)
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* trees,             // (tree_count + 1)
    const int* work,              // from attention_plan, for tiles of BlockShape::ROWS
    T* dqkv,                      // (tokens, heads + 2 kv_heads, head_dim)
    int tokens, int tree_count, int heads, int kv_heads, int head_dim, float scale, float softcap,
    float inverse_softcap, int window) {
    attention_bwd_kv<T, HEAD, CappedScores<T>>({dout, {qkv, heads, kv_heads, head_dim}, lse, delta,
                               {starts, ancestor_offsets, ancestors}, {work}, tokens, {scale, softcap, inverse_softcap}, {window}}, trees, tree_count, dqkv);
}
