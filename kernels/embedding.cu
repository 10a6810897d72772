// Token embedding: a gather of rows, and its gradient as a segmented sum over equal ids.
//
//   embedding_fwd, one token per warp, grid-stride loop:  x[t] = table[ids[t]]
//   embedding_bwd, one (distinct id, column chunk) per warp, grid-stride loop:
//     dtable[id] (+)= sum of dx[t] over the tokens t with that id, ascending
//
// Departure from the usual scatter with atomics: the host sorts the tokens by id, so each table row
// has one owner and a fixed order of additions. Cutting a row into column chunks lets many warps
// share a frequent id. The batch packer guarantees that ids are in range. Cost: every operand is
// moved once.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// x[t] = table[ids[t]], an exact copy.
template <class T>
KERNELS(128, embedding_fwd, FOR(T: f32 bf16))(const int* ids,  // (tokens)
                                              const T* table,  // (vocab, hidden)
                                              T* x,            // (tokens, hidden)
                                              int tokens, int hidden) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(table, hidden) && vec_aligned(x, hidden);
    for (long long token = global_warp(); token < tokens; token += global_warps()) {
        const T* from = table + (long long)ids[token] * hidden;
        T* to = x + token * hidden;
        if (vectorised) {
            for (int h = lane_index() * N; h < hidden; h += WARP * N) {
                store_vec(to + h, load_vec(from + h));
            }
        } else {
            for (int h = lane_index(); h < hidden; h += WARP) {
                to[h] = from[h];
            }
        }
    }
}

/// dtable[keys[k]] (+)= sum of dx[order[i]] for i from offsets[k] to offsets[k + 1]; `add` selects +=.
/// Table rows without a key are not written, and k with a negative key is skipped.
template <class T>
KERNELS(128, embedding_bwd, FOR(T: f32 bf16))(const T* dx,         // (tokens, hidden)
                                              const int* order,    // (tokens)
                                              const int* offsets,  // (distinct + 1)
                                              const int* keys,     // (distinct)
                                              float* dtable,       // (vocab, hidden)
                                              int distinct, int hidden, int add) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(dx, hidden) && vec_aligned(dtable, hidden) && hidden % N == 0;
    int chunks = ceil_div(hidden, WARP * N);
    for (long long unit = global_warp(); unit < (long long)distinct * chunks; unit += global_warps()) {
        int run = int(unit / chunks);
        int h = (int(unit % chunks) * WARP + lane_index()) * N;
        if (h >= hidden || keys[run] < 0) {
            continue;
        }
        int valid = min_of(N, hidden - h);
        float* to = dtable + (long long)keys[run] * hidden + h;
        float sum[N] = {};
        if (add != 0) {
            load_elements(sum, to, valid, vectorised);
        }
        int end = offsets[run + 1];
#pragma unroll 4
        for (int i = offsets[run]; i < end; ++i) {
            float row[N];
            load_elements(row, dx + (long long)order[i] * hidden + h, valid, vectorised);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                sum[j] += row[j];
            }
        }
        store_elements(to, sum, valid, vectorised);
    }
}
