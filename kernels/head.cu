// Vocabulary head: logp[r] = log_softmax(hidden[source[r]] · headᵀ)[target[r]], without storing the
// logits of the forward.
//
//   head_logprob_slices, for each (tile of rows, slice of the vocabulary), in a grid-stride loop of blocks:
//     for each tile of columns in the slice:
//       z = logits of the tile (tile.cuh), soft-capped on request; hit[r] = z[target]
//       (max, sum) = combine((max, sum), (tile max, sum exp(z - tile max)))
//     store (max, sum) per slice and row
//   head_logprob_join: lse = combine all slices in ascending order; logp = hit - lse
//   head_stats_slices, head_stats_join: the same, and the statistics of each row (logit_stats.cuh)
//   backward, for each chunk of the vocabulary (a loop of the host):
//     head_dlogits: recompute z; dlogits = dlogp (onehot(target) - exp(z - lse)), times the slope of the cap
//     head_drows:   drows (+)= dlogits head[chunk]
//     head_dhead:   dhead[chunk] (+)= dlogitsᵀ hidden[source]
//   head_gather: dhidden[h] = sum of drows over the rows that share hidden row h, ascending
//
// Departures from the textbook online softmax: slices have a fixed width and are combined by a
// second kernel, so neither the grid nor other rows affect a result. dlogits are stored for one
// chunk at a time only, in the storage type of activations.
//
// Cost: forward 2 rows vocab hidden FLOPs, backward three times that.
#include "common.cuh"
#include "linear.cuh"
#include "logit_stats.cuh"
#include "reduce.cuh"

/// Column tiles per vocabulary slice.
EXPORT constexpr int HEAD_SLICE_TILES = 8;

/// Partial statistics of a row's logits; empty without STATS.
template <bool STATS>
struct StatsPart {};
template <>
struct StatsPart<true> {
    LogitStats stats;
};

/// Partial sums over a row's logits, with or without statistics.
template <bool STATS>
struct RowPartial : StatsPart<STATS> {
    LogSumExp sums;

    DEVICE static RowPartial empty() {
        RowPartial none;
        none.sums = LogSumExp::empty();
        if constexpr (STATS) {
            none.stats = LogitStats::empty();
        }
        return none;
    }

    DEVICE static RowPartial combine(const RowPartial& a, const RowPartial& b) {
        RowPartial both;
        both.sums = LogSumExp::combine(a.sums, b.sums);
        if constexpr (STATS) {
            both.stats = LogitStats::combine(a.stats, a.sums, b.stats, b.sums, both.sums);
        }
        return both;
    }

    /// Combines the four lanes that share a fragment row.
    DEVICE static RowPartial combine_quad(RowPartial partial) {
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
            RowPartial other;
            other.sums = {shuffle_xor(partial.sums.max, mask), shuffle_xor(partial.sums.sum, mask)};
            if constexpr (STATS) {
                other.stats = {shuffle_xor(partial.stats.weighted, mask), shuffle_xor(partial.stats.total, mask),
                               shuffle_xor(partial.stats.rival, mask)};
            }
            partial = combine(partial, other);
        }
        return partial;
    }
};

/// Soft cap of a tile of logits: c tanh(z / c).
template <class P>
DEVICE void cap_logits(P& gemm, float cap) {
#pragma unroll
    for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
        for (int j = 0; j < P::FRAGMENTS_N; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                gemm.acc[i][j].value[e] = cap * tanhf(gemm.acc[i][j].value[e] / cap);
            }
        }
    }
}

/// Arrays of the forward: (slices, rows) each, except `hit`.
struct HeadSlices {
    float* max;
    float* sum;
    /// (rows): the target's logit
    float* hit;
    /// These three arrays are null without statistics.
    float* weighted;
    float* total;
    float* rival;
};

/// Body of head_logprob_slices and head_stats_slices.
template <class T, bool STATS>
DEVICE void head_slices(const T* hidden, const T* head, const int* source, const int* target, HeadSlices out,
                        int hidden_size, int vocab, int rows, float softcap) {
    using P = BlockGemm<T, true, true>;
    using Partial = RowPartial<STATS>;
    DYNAMIC_SHARED_OF(shared, P::SHARED_BYTES);
    constexpr int SLICE = HEAD_SLICE_TILES * P::COLUMNS, FRAGMENTS_N = P::S::WARPS_N;
    static_assert(P::ROWS * FRAGMENTS_N * sizeof(Partial) <= P::SHARED_BYTES, "the partials fit into the stages");
    auto a = MatrixView<T>::of(hidden, rows, hidden_size, source);
    auto b = MatrixView<T>::of(head, vocab, hidden_size);
    int bands = ceil_div(rows, P::ROWS), slices = ceil_div(vocab, SLICE);
    for (long long item = blockIdx.x; item < 1LL * bands * slices; item += gridDim.x) {
        int row = int(item % bands) * P::ROWS, slice = int(item / bands);
        Partial partial[P::FRAGMENTS_M][2];
        int target_column[P::FRAGMENTS_M][2];
#pragma unroll
        for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int r = row + P::row_of(i, half);
                partial[i][half] = Partial::empty();
                target_column[i][half] = r < rows ? target[r] : -1;
            }
        }
        int end = min_of(vocab, (slice + 1) * SLICE);
        for (int column = slice * SLICE; column < end; column += P::COLUMNS) {
            // Waits until no thread reads the stages of the previous tile, or the partials in the same memory.
            sync_block();
            P gemm;
            gemm.compute(shared, a, b, row, column, hidden_size);
            if (softcap != 0.0f) {
                cap_logits(gemm, softcap);
            }
#pragma unroll
            for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // The tile's maximum is computed first, so that each logit costs one exponential.
                    float largest = -INFINITY;
#pragma unroll
                    for (int j = 0; j < P::FRAGMENTS_N; ++j) {
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            int c = column + P::column_of(j) + e;
                            float logit = gemm.acc[i][j].value[2 * half + e];
                            largest = c < vocab ? Max{}(largest, logit) : largest;
                            if (c == target_column[i][half]) {
                                out.hit[row + P::row_of(i, half)] = logit;
                            }
                        }
                    }
                    Partial tile = Partial::empty();
                    tile.sums.max = largest;
                    float before = -INFINITY;
                    if (largest != -INFINITY) {
#pragma unroll
                        for (int j = 0; j < P::FRAGMENTS_N; ++j) {
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                int c = column + P::column_of(j) + e;
                                float logit = gemm.acc[i][j].value[2 * half + e];
                                float power = c < vocab ? expf(logit - largest) : 0.0f;
                                tile.sums.sum += power;
                                if constexpr (STATS) {
                                    tile.stats.weighted += power == 0.0f ? 0.0f : (logit - largest) * power;
                                    tile.stats.total += c < vocab ? logit : 0.0f;
                                    int behind = c - target_column[i][half];
                                    before = behind < 0 ? Max{}(before, logit) : before;
                                    float& after = tile.stats.rival;
                                    after = behind > 0 && c < vocab ? Max{}(after, logit) : after;
                                }
                            }
                        }
                    }
                    if constexpr (STATS) {
                        tile.stats.rival = Max{}(tile.stats.rival, next_up(before));
                    }
                    partial[i][half] = Partial::combine(partial[i][half], tile);
                }
            }
        }
        // Partials of warps that share rows are exchanged through the memory of the stages. The barrier waits
        // until no warp reads the stages.
        sync_block();
        Partial* partials = reinterpret_cast<Partial*>(shared);
        int across = int(threadIdx.x) / WARP % FRAGMENTS_N;
#pragma unroll
        for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                Partial combined = Partial::combine_quad(partial[i][half]);
                if (lane_index() % 4 == 0) {
                    partials[P::row_of(i, half) * FRAGMENTS_N + across] = combined;
                }
            }
        }
        // Waits until all warps' partials are written.
        sync_block();
        for (int r = int(threadIdx.x); r < P::ROWS && row + r < rows; r += P::THREADS) {
            Partial combined = partials[r * FRAGMENTS_N];
#pragma unroll
            for (int w = 1; w < FRAGMENTS_N; ++w) {
                combined = Partial::combine(combined, partials[r * FRAGMENTS_N + w]);
            }
            long long at = 1LL * slice * rows + row + r;
            out.max[at] = combined.sums.max;
            out.sum[at] = combined.sums.sum;
            if constexpr (STATS) {
                out.weighted[at] = combined.stats.weighted;
                out.total[at] = combined.stats.total;
                out.rival[at] = combined.stats.rival;
            }
        }
    }
}

template <class T>
KERNELS(256, head_logprob_slices, FOR(T: f32 bf16))(const T* hidden,    // (tokens, hidden_size)
                                                    const T* head,      // (vocab, hidden_size)
                                                    const int* source,  // (rows)
                                                    const int* target,  // (rows)
                                                    float* max,         // (slices, rows)
                                                    float* sum,         // (slices, rows)
                                                    float* hit,         // (rows): the target's logit
                                                    int hidden_size, int vocab, int rows,
                                                    float softcap) {  // 0 for none
    HeadSlices out{max, sum, hit, nullptr, nullptr, nullptr};
    head_slices<T, false>(hidden, head, source, target, out, hidden_size, vocab, rows, softcap);
}

template <class T>
KERNELS(256, head_stats_slices, FOR(T: f32 bf16))(const T* hidden,    // (tokens, hidden_size)
                                                  const T* head,      // (vocab, hidden_size)
                                                  const int* source,  // (rows)
                                                  const int* target,  // (rows)
                                                  float* max,         // (slices, rows)
                                                  float* sum,         // (slices, rows)
                                                  float* hit,         // (rows): the target's logit
                                                  float* weighted,    // (slices, rows)
                                                  float* total,       // (slices, rows)
                                                  float* rival,       // (slices, rows)
                                                  int hidden_size, int vocab, int rows,
                                                  float softcap) {  // 0 for none
    HeadSlices out{max, sum, hit, weighted, total, rival};
    head_slices<T, true>(hidden, head, source, target, out, hidden_size, vocab, rows, softcap);
}

KERNEL(256, head_logprob_join)(const float* max,  // (slices, rows)
                               const float* sum,  // (slices, rows)
                               const float* hit,  // (rows)
                               float* logp,       // (rows)
                               float* lse,        // (rows)
                               int slices, int rows) {
    for (int r = int(blockIdx.x * blockDim.x + threadIdx.x); r < rows; r += int(gridDim.x * blockDim.x)) {
        LogSumExp all = LogSumExp::empty();
        for (int s = 0; s < slices; ++s) {
            all = LogSumExp::combine(all, LogSumExp{max[1LL * s * rows + r], sum[1LL * s * rows + r]});
        }
        float value = all.value();
        lse[r] = value;
        logp[r] = hit[r] - value;
    }
}

KERNEL(256, head_stats_join)(const float* max,       // (slices, rows)
                             const float* sum,       // (slices, rows)
                             const float* hit,       // (rows)
                             const float* weighted,  // (slices, rows)
                             const float* total,     // (slices, rows)
                             const float* rival,     // (slices, rows)
                             float* logp,            // (rows)
                             float* lse,             // (rows)
                             float* stats,           // (3, rows): entropy, mean logit, is_top1
                             int slices, int rows, int vocab) {
    for (int r = int(blockIdx.x * blockDim.x + threadIdx.x); r < rows; r += int(gridDim.x * blockDim.x)) {
        RowPartial<true> all = RowPartial<true>::empty();
        for (int s = 0; s < slices; ++s) {
            long long at = 1LL * s * rows + r;
            RowPartial<true> part;
            part.sums = {max[at], sum[at]};
            part.stats = {weighted[at], total[at], rival[at]};
            all = RowPartial<true>::combine(all, part);
        }
        float value = all.sums.value();
        lse[r] = value;
        logp[r] = hit[r] - value;
        all.stats.store(stats + r, rows, logf(all.sums.sum), all.sums.sum, hit[r], vocab);
    }
}

/// dlogits (rows, stride) of the vocabulary entries `first` to `first + width`: dlogp (onehot(target) - softmax),
/// times the slope of the soft cap.
template <class T>
KERNELS(256, head_dlogits, FOR(T: f32 bf16))(const T* hidden,     // (tokens, hidden_size)
                                             const T* head,       // (vocab, hidden_size)
                                             const int* source,   // (rows)
                                             const int* target,   // (rows)
                                             const float* lse,    // (rows)
                                             const float* dlogp,  // (rows)
                                             T* dlogits,          // (rows, stride)
                                             int hidden_size, int rows, int first, int width, int stride,
                                             float softcap) {  // 0 for none
    using P = BlockGemm<T, true, true>;
    DYNAMIC_SHARED_OF(shared, P::SHARED_BYTES);
    auto a = MatrixView<T>::of(hidden, rows, hidden_size, source);
    auto b = MatrixView<T>::of(head + 1LL * first * hidden_size, width, hidden_size);
    int down = ceil_div(rows, P::ROWS), across = ceil_div(width, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // Waits until no thread reads the stages of the previous tile.
        sync_block();
        P gemm;
        gemm.compute(shared, a, b, row, column, hidden_size);
        for_each_eight(gemm, [&](int i, int j, float(&values)[8]) {
            int r = row + i;
            if (r >= rows) {
                return;
            }
            float factor = dlogp[r], base = lse[r];
            int target_column = target[r] - first - column - j;
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                float slope = 1.0f;
                if (softcap != 0.0f) {
                    float t = tanhf(values[e] / softcap);
                    slope = 1.0f - t * t;
                    values[e] = softcap * t;
                }
                values[e] = slope * factor * ((e == target_column ? 1.0f : 0.0f) - expf(values[e] - base));
            }
            // Rows start at multiples of 16 bytes; the columns between width and stride are never
            // read.
            store_eight(dlogits + 1LL * r * stride, column + j, width, true, false, values);
        });
    }
}

/// drows (+)= dlogits head[first..first + width].
template <class T>
KERNELS(256, head_drows, FOR(T: f32 bf16))(const T* dlogits,  // (rows, stride)
                                           const T* head,     // (vocab, hidden_size)
                                           float* drows,      // (rows, hidden_size)
                                           int hidden_size, int rows, int first, int width, int stride, int add) {
    auto a = MatrixView<T>::of(dlogits, rows, width);
    auto b = MatrixView<T>::of(head + 1LL * first * hidden_size, width, hidden_size);
    a.stride = stride;
    a.vectorised = true;
    matmul<T, float, true, false>(a, b, nullptr, nullptr, drows, rows, hidden_size, width, add);
}

/// dhead[first..first + width] (+)= dlogitsᵀ hidden[source].
template <class T>
KERNELS(256, head_dhead, FOR(T: f32 bf16))(const T* dlogits,   // (rows, stride)
                                           const T* hidden,    // (tokens, hidden_size)
                                           const int* source,  // (rows)
                                           float* dhead,       // (vocab, hidden_size)
                                           int hidden_size, int rows, int first, int width, int stride, int add) {
    auto a = MatrixView<T>::of(dlogits, rows, width), b = MatrixView<T>::of(hidden, rows, hidden_size, source);
    a.stride = stride;
    a.vectorised = true;
    matmul<T, float, false, false>(a, b, nullptr, nullptr, dhead + 1LL * first * hidden_size, width, hidden_size, rows,
                                   add);
}

/// dhidden[keys[k]] = sum of the rows order[offsets[k]..offsets[k + 1]] of drows, in that order. Rows of dhidden
/// without a key are not written, and k with a negative key is skipped. drows holds the `count` rows from `first`
/// on. A call handles only those k whose first row is in drows; their other rows must be in drows too.
template <class T>
KERNELS(128, head_gather, FOR(T: f32 bf16))(const float* drows,  // (count, hidden_size)
                                            const int* order,    // (rows)
                                            const int* offsets,  // (distinct + 1)
                                            const int* keys,     // (distinct)
                                            T* dhidden,          // (tokens, hidden_size)
                                            int distinct, int hidden_size, int first, int count) {
    for (long long k = blockIdx.x; k < distinct; k += gridDim.x) {
        if (keys[k] < 0 || unsigned(order[offsets[k]] - first) >= unsigned(count)) {
            continue;
        }
        T* to = dhidden + 1LL * keys[k] * hidden_size;
        for (int h = int(threadIdx.x); h < hidden_size; h += int(blockDim.x)) {
            float sum = 0.0f;
            for (int i = offsets[k]; i < offsets[k + 1]; ++i) {
                sum += drows[1LL * (order[i] - first) * hidden_size + h];
            }
            to[h] = from_float<T>(sum);
        }
    }
}
