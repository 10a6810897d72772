// Attention of new tokens over a cache of keys and values: o = softmax(scale q kᵀ) v over the rows of a
// path in the cache. A path is a list of spans of rows; keys are numbered by their position on the path.
// After flash-decoding, split by keys:
//
//   attention_cached_store   copy the new keys and values to their rows of the cache
//   attention_cached_part    for each (new token, key-value head, 4 of its query heads, split of the keys):
//     m = -inf, l = 0, O = 0
//     for each 32 keys of the split, if the token sees any of them:
//       s = scale log2(e) q · k, soft-capped on request (attention.cuh); one key per lane
//       m' = max(m, max s); p = 2^(s - m'); r = 2^(m - m')
//       l = r l + p; O = r O + sum of p v    one column in 32 per lane
//     part = (m, sum of l, O)
//   attention_cached_join    for each (new token, query head): the sum of its parts, in order of the keys
//
// Splits and steps of 32 keys start at fixed positions of the path, so a token's bits do not depend on other
// tokens, on the spans or on the grid. Cost: every path is read once for each new token and each 4 query
// heads of a key-value head; 4 head_dim FLOPs per visible pair and head, on the CUDA cores. Only values that
// a token sees must be finite.
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 4)
#include "common.cuh"
#include "rows.cuh"

/// Keys of a split.
EXPORT constexpr int CACHED_SPLIT = 256;
/// Query heads that read a key together.
EXPORT constexpr int CACHED_QUERIES = 4;

/// Sequences of a call and their paths (src/backend/contract/attention.rs).
struct CachedPaths {
    const int* starts;   // (sequences + 1)
    const int* offsets;  // (sequences + 1)
    const int* spans;    // (spans, 2)
    int sequences;

    /// Sequence of a new token: the last one that starts at or before it.
    DEVICE int sequence_of(int token) const {
        int low = 0, high = sequences - 1;
        while (low < high) {
            int middle = (low + high + 1) / 2;
            if (starts[middle] <= token) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return low;
    }

    /// Number of keys that a token of the sequence sees.
    DEVICE int visible(int sequence, int token) const {
        int rows = 0;
        for (int i = offsets[sequence]; i < offsets[sequence + 1]; ++i) {
            rows += spans[2 * i + 1] - spans[2 * i];
        }
        return rows - (starts[sequence + 1] - token) + 1;
    }

    /// Row of the cache at a position of the path.
    DEVICE int row_at(int sequence, int position) const {
        int i = offsets[sequence];
        while (position >= spans[2 * i + 1] - spans[2 * i]) {
            position -= spans[2 * i + 1] - spans[2 * i];
            ++i;
        }
        return spans[2 * i] + position;
    }
};

/// Copies the keys and values of new tokens to their rows of the cache, one warp per token.
template <class T>
KERNELS(128, attention_cached_store, FOR(T: f32 bf16))(const T* qkv,      // (tokens, heads + 2 kv_heads, head_dim)
                                                       const int* slots,  // (tokens)
                                                       T* cache,          // (rows, 2 kv_heads, head_dim)
                                                       int tokens, int query, int width) {
    constexpr int N = VEC_ELEMENTS<T>;
    long long fused = 1LL * query + width;
    bool vectorised = vec_aligned(qkv + query, fused) && vec_aligned(cache, width);
    for (long long token = global_warp(); token < tokens; token += global_warps()) {
        const T* from = qkv + token * fused + query;
        T* to = cache + 1LL * slots[token] * width;
        for (int c = lane_index() * N; c < width; c += WARP * N) {
            int valid = min_of(N, width - c);
            float x[N];
            load_elements(x, from + c, valid, vectorised);
            store_elements(to + c, x, valid, vectorised);
        }
    }
}

template <class T, int HEAD>
DEVICE void attention_cached_part(const T* qkv, const T* cache, const CachedPaths& paths, float* parts, int first,
                                  int tokens, int heads, int kv_heads, int head_dim, int splits, float scale,
                                  float softcap, float inverse_softcap, int window) {
    constexpr int N = VEC_ELEMENTS<T>, G = CACHED_QUERIES, COLUMNS = HEAD / WARP;
    int group = heads / kv_heads, chunks = ceil_div(group, G), lane = lane_index();
    long long fused = (long long)(heads + 2 * kv_heads) * head_dim, width = 2LL * kv_heads * head_dim;
    bool vectorised = vec_aligned(qkv, head_dim) && vec_aligned(cache, head_dim);
    long long items = 1LL * tokens * kv_heads * chunks * splits;
    for (long long item = global_warp(); item < items; item += global_warps()) {
        int split = int(item % splits), chunk = int(item / splits % chunks);
        int kv_head = int(item / splits / chunks % kv_heads), token = int(item / splits / chunks / kv_heads);
        int sequence = paths.sequence_of(first + token), begin = split * CACHED_SPLIT;
        int last = paths.visible(sequence, first + token), end = min_of(begin + CACHED_SPLIT, last);
        int start = max_of(begin, last - window);
        if (start >= end) {
            continue;
        }
        int head = kv_head * group + chunk * G, count = min_of(G, group - chunk * G);
        const T* query = qkv + (first + token) * fused + 1LL * head * head_dim;
        const T* keys = cache + 1LL * kv_head * head_dim;
        const T* values = keys + 1LL * kv_heads * head_dim;
        float top[G], sum[G], out[G][COLUMNS];
#pragma unroll
        for (int g = 0; g < G; ++g) {
            top[g] = -INFINITY;
            sum[g] = 0.0f;
#pragma unroll
            for (int i = 0; i < COLUMNS; ++i) {
                out[g][i] = 0.0f;
            }
        }
        for (int at = start / WARP * WARP; at < end; at += WARP) {
            bool seen = at + lane < end && at + lane >= start;
            int row = paths.row_at(sequence, seen ? at + lane : end - 1);
            const T* key = keys + row * width;
            float score[G] = {};
            for (int c = 0; c < head_dim; c += N) {
                int valid = min_of(N, head_dim - c);
                float k[N];
                load_elements(k, key + c, valid, vectorised);
#pragma unroll
                for (int g = 0; g < G; ++g) {
                    if (g < count) {
                        float q[N];
                        load_elements(q, query + g * head_dim + c, valid, vectorised);
#pragma unroll
                        for (int i = 0; i < N; ++i) {
                            score[g] += q[i] * k[i];
                        }
                    }
                }
            }
#pragma unroll
            for (int g = 0; g < G; ++g) {
                float scaled = score[g] * (scale * LOG2_E);
                scaled = softcap == 0.0f ? scaled : softcap * tanhf(scaled * inverse_softcap);
                float s = seen ? scaled : -INFINITY;
                float next = fmaxf(top[g], reduce_warp(s, Max{}));
                // While all scores are -inf, use 0: -inf - -inf would be NaN.
                float base = next == -INFINITY ? 0.0f : next, rescale = exp2f(top[g] - base);
                score[g] = exp2f(s - base);
                sum[g] = sum[g] * rescale + score[g];
                top[g] = next;
#pragma unroll
                for (int i = 0; i < COLUMNS; ++i) {
                    out[g][i] *= rescale;
                }
            }
            for (int j = max_of(start - at, 0); j < min_of(WARP, end - at); ++j) {
                const T* value = values + shuffle(row, j) * width;
                float v[COLUMNS];
#pragma unroll
                for (int i = 0; i < COLUMNS; ++i) {
                    int c = lane + i * WARP;
                    v[i] = c < head_dim ? to_float(value[c]) : 0.0f;
                }
#pragma unroll
                for (int g = 0; g < G; ++g) {
                    float p = shuffle(score[g], j);
#pragma unroll
                    for (int i = 0; i < COLUMNS; ++i) {
                        out[g][i] += p * v[i];
                    }
                }
            }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float total = reduce_warp(sum[g], Add{});
            if (g < count) {
                float* part = parts + ((1LL * token * heads + head + g) * splits + split) * (head_dim + 2);
                if (lane == 0) {
                    part[0] = top[g];
                    part[1] = total;
                }
#pragma unroll
                for (int i = 0; i < COLUMNS; ++i) {
                    int c = lane + i * WARP;
                    if (c < head_dim) {
                        part[2 + c] = out[g][i];
                    }
                }
            }
        }
    }
}

/// Computes the parts of the tokens `first` to `first + tokens - 1`, one item per warp at a time.
template <class T, int HEAD>
KERNELS(128, attention_cached_part, FOR(HEAD: 64 128 256; T: f32 bf16))(
    const T* qkv,             // (all tokens, heads + 2 kv_heads, head_dim)
    const T* cache,           // (rows, 2 kv_heads, head_dim)
    const int* starts,        // (sequences + 1)
    const int* span_offsets,  // (sequences + 1)
    const int* spans,         // (spans, 2)
    float* parts,             // (tokens, heads, splits, 2 + head_dim): maximum, sum, columns
    int sequences, int first, int tokens, int heads, int kv_heads, int head_dim, int splits, float scale,
    float softcap, float inverse_softcap, int window) {
    attention_cached_part<T, HEAD>(qkv, cache, {starts, span_offsets, spans, sequences}, parts, first, tokens, heads,
                                   kv_heads, head_dim, splits, scale, softcap, inverse_softcap, window);
}

/// Joins the parts of each (token, head), one warp for each (token, head).
template <class T>
KERNELS(128, attention_cached_join, FOR(T: f32 bf16))(
    const float* parts,       // (tokens, heads, splits, 2 + head_dim)
    const int* starts,        // (sequences + 1)
    const int* span_offsets,  // (sequences + 1)
    const int* spans,         // (spans, 2)
    T* o,                     // (all tokens, heads, head_dim)
    int sequences, int first, int tokens, int heads, int head_dim, int splits, int window) {
    CachedPaths paths{starts, span_offsets, spans, sequences};
    for (long long item = global_warp(); item < 1LL * tokens * heads; item += global_warps()) {
        int token = first + int(item / heads), sequence = paths.sequence_of(token);
        int visible = paths.visible(sequence, token), count = ceil_div(visible, CACHED_SPLIT);
        // Splits before the window have no part.
        int start = max_of(visible - window, 0) / CACHED_SPLIT;
        const float* part = parts + item * splits * (head_dim + 2);
        float top = -INFINITY, sum = 0.0f;
        for (int i = start; i < count; ++i) {
            top = fmaxf(top, part[1LL * i * (head_dim + 2)]);
        }
        float base = top == -INFINITY ? 0.0f : top;
        for (int i = start; i < count; ++i) {
            const float* from = part + 1LL * i * (head_dim + 2);
            sum += exp2f(from[0] - base) * from[1];
        }
        T* to = o + (1LL * first * heads + item) * head_dim;
        for (int c = lane_index(); c < head_dim; c += WARP) {
            float x = 0.0f;
            for (int i = start; i < count; ++i) {
                const float* from = part + 1LL * i * (head_dim + 2);
                x += exp2f(from[0] - base) * from[2 + c];
            }
            to[c] = from_float<T>(x / sum);
        }
    }
}
