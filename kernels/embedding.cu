// Token embedding: a gather of rows, and its gradient by runs of equal ids.
//
// A warp takes rows (forward) or pieces of a table row (backward) by stride. In the backward every row of the table has
// one owner, which adds the token rows of its id in ascending order; cutting the row into pieces lets many warps share
// an id that is frequent. Ids are in range: what packs a batch has checked them. Cost: every operand is moved once.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// x[t] = table[ids[t]], bit for bit.
template <class T>
KERNELS(128, embedding_fwd, FOR(T: f32 bf16))(const int* ids,  // (tokens)
                                              const T* table,  // (vocab, hidden)
                                              T* x,            // (tokens, hidden)
                                              int tokens, int hidden) {
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(table, hidden) && wide(x, hidden);
    for (long long token = warp_of_grid(); token < tokens; token += warps_of_grid()) {
        const T* from = table + (long long)ids[token] * hidden;
        T* to = x + token * hidden;
        if (by_lane) {
            for (int h = lane_index() * N; h < hidden; h += WARP * N) {
                store_lane(to + h, load_lane(from + h));
            }
        } else {
            for (int h = lane_index(); h < hidden; h += WARP) {
                to[h] = from[h];
            }
        }
    }
}

/// dtable[keys[k]] (+)= sum of dx[order[i]] for i from offsets[k] to offsets[k + 1]; rows without a key are left alone,
/// and so is everything of a run whose key is below 0.
template <class T>
KERNELS(128, embedding_bwd, FOR(T: f32 bf16))(const T* dx,         // (tokens, hidden)
                                              const int* order,    // (tokens)
                                              const int* offsets,  // (distinct + 1)
                                              const int* keys,     // (distinct)
                                              float* dtable,       // (vocab, hidden)
                                              int distinct, int hidden, int add) {
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(dx, hidden) && wide(dtable, hidden) && hidden % N == 0;
    int pieces = ceil_div(hidden, WARP * N);
    for (long long unit = warp_of_grid(); unit < (long long)distinct * pieces; unit += warps_of_grid()) {
        int run = int(unit / pieces);
        int h = (int(unit % pieces) * WARP + lane_index()) * N;
        if (h >= hidden || keys[run] < 0) {
            continue;
        }
        int valid = min_of(N, hidden - h);
        float* to = dtable + (long long)keys[run] * hidden + h;
        float sum[N] = {};
        if (add != 0) {
            load_piece(sum, to, valid, by_lane);
        }
        int end = offsets[run + 1];
#pragma unroll 4
        for (int i = offsets[run]; i < end; ++i) {
            float row[N];
            load_piece(row, dx + (long long)order[i] * hidden + h, valid, by_lane);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                sum[j] += row[j];
            }
        }
        store_piece(to, sum, valid, by_lane);
    }
}
