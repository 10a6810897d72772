// The vocabulary head: logp[r] = log_softmax(hidden[source[r]] · headᵀ)[target[r]] without storing the logits of the forward.
//
// Forward: a block takes (rows, slice of the vocabulary) by stride, multiplies tile after tile and keeps for each row the
// maximum and the sum of exponentials; a second kernel joins the slices in ascending order. Slices have a fixed width, so
// that neither the grid nor the other rows matter. Cost: 2 rows vocab hidden FLOPs.
//
// Backward, for one chunk of the vocabulary after another: the logits are computed again and turned into dlogits (stored for
// the chunk alone, in the storage of activations), then two products give the gradients; rows that share a hidden row are
// added in ascending order at the end. Cost: 6 rows vocab hidden FLOPs.
#include "common.cuh"
#include "matmul.cuh"
#include "reduce.cuh"

/// Tiles of a slice of the vocabulary.
constexpr int SLICE_TILES = 8;

/// Terms of the four lanes that share a row of fragments.
DEVICE LogSumExp combine_quad(LogSumExp terms) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
        LogSumExp other{shuffle_xor(terms.max, mask), shuffle_xor(terms.sum, mask)};
        terms = LogSumExp::combine(terms, other);
    }
    return terms;
}

template <class T>
DEVICE void head_logprob_slices(const T* hidden, const T* head, const int* source, const int* target, float* max, float* sum,
                                float* hit, int hidden_size, int vocab, int rows) {
    using P = BlockGemm<T, true, true>;
    DYNAMIC_SHARED(shared);
    constexpr int SLICE = SLICE_TILES * P::COLUMNS, FRAGMENTS_N = P::S::WARPS_N;
    MatrixView<T> a = MatrixView<T>::of(hidden, rows, hidden_size, source), b = MatrixView<T>::of(head, vocab, hidden_size);
    int bands = ceil_div(rows, P::ROWS), slices = ceil_div(vocab, SLICE);
    for (long long item = blockIdx.x; item < 1LL * bands * slices; item += gridDim.x) {
        int row = int(item % bands) * P::ROWS, slice = int(item / bands);
        LogSumExp terms[P::FRAGMENTS_M][2];
        int wanted[P::FRAGMENTS_M][2];
#pragma unroll
        for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int r = row + P::row_of(i, half);
                terms[i][half] = LogSumExp::empty();
                wanted[i][half] = r < rows ? target[r] : -1;
            }
        }
        int end = min_of(vocab, (slice + 1) * SLICE);
        for (int column = slice * SLICE; column < end; column += P::COLUMNS) {
            // The stages are free: every thread is done with the tile, or the joined terms, before.
            sync_block();
            P product;
            product.compute(shared, a, b, row, column, hidden_size);
#pragma unroll
            for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // The largest of the tile first, so that every other logit costs one exponential.
                    float largest = -INFINITY;
#pragma unroll
                    for (int j = 0; j < P::FRAGMENTS_N; ++j) {
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            int c = column + P::column_of(j) + e;
                            float logit = product.acc[i][j].value[2 * half + e];
                            largest = c < vocab ? Max{}(largest, logit) : largest;
                            if (c == wanted[i][half]) {
                                hit[row + P::row_of(i, half)] = logit;
                            }
                        }
                    }
                    LogSumExp tile{largest, 0.0f};
                    if (largest != -INFINITY) {
#pragma unroll
                        for (int j = 0; j < P::FRAGMENTS_N; ++j) {
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                int c = column + P::column_of(j) + e;
                                tile.sum += c < vocab ? expf(product.acc[i][j].value[2 * half + e] - largest) : 0.0f;
                            }
                        }
                    }
                    terms[i][half] = LogSumExp::combine(terms[i][half], tile);
                }
            }
        }
        // The terms of the warps that share rows meet in shared memory, which the products no longer need.
        sync_block();
        LogSumExp* meeting = reinterpret_cast<LogSumExp*>(shared);
        int across = int(threadIdx.x) / WARP % FRAGMENTS_N;
#pragma unroll
        for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                LogSumExp joined = combine_quad(terms[i][half]);
                if (lane_index() % 4 == 0) {
                    meeting[P::row_of(i, half) * FRAGMENTS_N + across] = joined;
                }
            }
        }
        // Every warp's terms are there.
        sync_block();
        for (int r = int(threadIdx.x); r < P::ROWS && row + r < rows; r += P::THREADS) {
            LogSumExp joined = meeting[r * FRAGMENTS_N];
#pragma unroll
            for (int w = 1; w < FRAGMENTS_N; ++w) {
                joined = LogSumExp::combine(joined, meeting[r * FRAGMENTS_N + w]);
            }
            max[1LL * slice * rows + row + r] = joined.max;
            sum[1LL * slice * rows + row + r] = joined.sum;
        }
    }
}

// shared: Product::SHARED_BYTES, 48 KiB.
KERNEL(256, head_logprob_slices_f32)(const float* hidden,  // (tokens, hidden_size)
                                     const float* head,    // (vocab, hidden_size)
                                     const int* source,    // (rows)
                                     const int* target,    // (rows)
                                     float* max,           // (slices, rows)
                                     float* sum,           // (slices, rows)
                                     float* hit,           // (rows): the target's logit
                                     int hidden_size, int vocab, int rows) {
    head_logprob_slices(hidden, head, source, target, max, sum, hit, hidden_size, vocab, rows);
}

KERNEL(256, head_logprob_slices_bf16)(const bf16* hidden, const bf16* head, const int* source, const int* target, float* max,
                                      float* sum, float* hit, int hidden_size, int vocab, int rows) {
    head_logprob_slices(hidden, head, source, target, max, sum, hit, hidden_size, vocab, rows);
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

/// dlogits of the columns `first` to `first + width`: dlogp (onehot(target) - softmax), as (rows, stride).
template <class T>
DEVICE void head_dlogits(const T* hidden, const T* head, const int* source, const int* target, const float* lse,
                         const float* dlogp, T* dlogits, int hidden_size, int rows, int first, int width, int stride) {
    using P = BlockGemm<T, true, true>;
    DYNAMIC_SHARED(shared);
    MatrixView<T> a = MatrixView<T>::of(hidden, rows, hidden_size, source);
    MatrixView<T> b = MatrixView<T>::of(head + 1LL * first * hidden_size, width, hidden_size);
    int down = ceil_div(rows, P::ROWS), across = ceil_div(width, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // The stages are free: every thread is done with the tile before.
        sync_block();
        P product;
        product.compute(shared, a, b, row, column, hidden_size);
        for_each_eight(product, [&](int i, int j, float(&values)[8]) {
            int r = row + i;
            if (r >= rows) {
                return;
            }
            float factor = dlogp[r], base = lse[r];
            int wanted = target[r] - first - column - j;
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                values[e] = factor * ((e == wanted ? 1.0f : 0.0f) - expf(values[e] - base));
            }
            // Rows begin at multiples of 16 bytes; columns behind the width are never read.
            store_eight(dlogits + 1LL * r * stride, column + j, width, true, false, values);
        });
    }
}

KERNEL(256, head_dlogits_f32)(const float* hidden,  // (tokens, hidden_size)
                              const float* head,    // (vocab, hidden_size)
                              const int* source,    // (rows)
                              const int* target,    // (rows)
                              const float* lse,     // (rows)
                              const float* dlogp,   // (rows)
                              float* dlogits,       // (rows, stride)
                              int hidden_size, int rows, int first, int width, int stride) {
    head_dlogits(hidden, head, source, target, lse, dlogp, dlogits, hidden_size, rows, first, width, stride);
}

KERNEL(256, head_dlogits_bf16)(const bf16* hidden, const bf16* head, const int* source, const int* target, const float* lse,
                               const float* dlogp, bf16* dlogits, int hidden_size, int rows, int first, int width,
                               int stride) {
    head_dlogits(hidden, head, source, target, lse, dlogp, dlogits, hidden_size, rows, first, width, stride);
}

/// drows = or += dlogits head[first..first + width].
template <class T>
DEVICE void head_drows(const T* dlogits, const T* head, float* drows, int hidden_size, int rows, int first, int width,
                       int stride, int add) {
    MatrixView<T> a = MatrixView<T>::of(dlogits, rows, width), b = MatrixView<T>::of(head + 1LL * first * hidden_size, width, hidden_size);
    a.stride = stride;
    a.vectorised = true;
    matmul<T, float, true, false>(a, b, nullptr, nullptr, drows, rows, hidden_size, width, add);
}

KERNEL(256, head_drows_f32)(const float* dlogits,  // (rows, stride)
                            const float* head,     // (vocab, hidden_size)
                            float* drows,          // (rows, hidden_size)
                            int hidden_size, int rows, int first, int width, int stride, int add) {
    head_drows(dlogits, head, drows, hidden_size, rows, first, width, stride, add);
}

KERNEL(256, head_drows_bf16)(const bf16* dlogits, const bf16* head, float* drows, int hidden_size, int rows, int first,
                             int width, int stride, int add) {
    head_drows(dlogits, head, drows, hidden_size, rows, first, width, stride, add);
}

/// dhead[first..first + width] = or += dlogitsᵀ hidden[source].
template <class T>
DEVICE void head_dhead(const T* dlogits, const T* hidden, const int* source, float* dhead, int hidden_size, int rows,
                       int first, int width, int stride, int add) {
    MatrixView<T> a = MatrixView<T>::of(dlogits, rows, width), b = MatrixView<T>::of(hidden, rows, hidden_size, source);
    a.stride = stride;
    a.vectorised = true;
    matmul<T, float, false, false>(a, b, nullptr, nullptr, dhead + 1LL * first * hidden_size, width, hidden_size, rows,
                                   add);
}

KERNEL(256, head_dhead_f32)(const float* dlogits,  // (rows, stride)
                            const float* hidden,   // (tokens, hidden_size)
                            const int* source,     // (rows)
                            float* dhead,          // (vocab, hidden_size)
                            int hidden_size, int rows, int first, int width, int stride, int add) {
    head_dhead(dlogits, hidden, source, dhead, hidden_size, rows, first, width, stride, add);
}

KERNEL(256, head_dhead_bf16)(const bf16* dlogits, const bf16* hidden, const int* source, float* dhead, int hidden_size,
                             int rows, int first, int width, int stride, int add) {
    head_dhead(dlogits, hidden, source, dhead, hidden_size, rows, first, width, stride, add);
}

/// dhidden[keys[k]] = sum of the rows order[offsets[k]..offsets[k + 1]] of drows, in that order. Other rows stay;
/// a run whose key is below 0 is left out.
template <class T>
DEVICE void head_gather(const float* drows, const int* order, const int* offsets, const int* keys, T* dhidden, int distinct,
                        int hidden_size) {
    for (long long k = blockIdx.x; k < distinct; k += gridDim.x) {
        if (keys[k] < 0) {
            continue;
        }
        T* to = dhidden + 1LL * keys[k] * hidden_size;
        for (int h = int(threadIdx.x); h < hidden_size; h += int(blockDim.x)) {
            float sum = 0.0f;
            for (int i = offsets[k]; i < offsets[k + 1]; ++i) {
                sum += drows[1LL * order[i] * hidden_size + h];
            }
            to[h] = from_float<T>(sum);
        }
    }
}

KERNEL(128, head_gather_f32)(const float* drows,   // (rows, hidden_size)
                             const int* order,     // (rows)
                             const int* offsets,   // (distinct + 1)
                             const int* keys,      // (distinct)
                             float* dhidden,       // (tokens, hidden_size)
                             int distinct, int hidden_size) {
    head_gather(drows, order, offsets, keys, dhidden, distinct, hidden_size);
}

KERNEL(128, head_gather_bf16)(const float* drows, const int* order, const int* offsets, const int* keys, bf16* dhidden,
                              int distinct, int hidden_size) {
    head_gather(drows, order, offsets, keys, dhidden, distinct, hidden_size);
}
