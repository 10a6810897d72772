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
EXPORT constexpr int HEAD_SLICE_TILES = 8;

/// Terms of the four lanes that share a row of fragments.
DEVICE LogSum join_quad(LogSum terms) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
        LogSum other{shuffle_xor(terms.max, mask), shuffle_xor(terms.sum, mask)};
        terms = LogSum::join(terms, other);
    }
    return terms;
}

// shared: Product::SHARED_BYTES, 48 KiB.
template <class T>
KERNELS(256, head_logprob_slices, FOR(T: f32 bf16))(const T* hidden,    // (tokens, hidden_size)
                                                    const T* head,      // (vocab, hidden_size)
                                                    const int* source,  // (rows)
                                                    const int* target,  // (rows)
                                                    float* max,         // (slices, rows)
                                                    float* sum,         // (slices, rows)
                                                    float* hit,         // (rows): the target's logit
                                                    int hidden_size, int vocab, int rows) {
    using P = Product<T, true, true>;
    DYNAMIC_SHARED_OF(shared, P::SHARED_BYTES);
    constexpr int SLICE = HEAD_SLICE_TILES * P::COLUMNS, ACROSS = P::S::WARPS_ACROSS;
    Source<T> a = Source<T>::of(hidden, rows, hidden_size, source), b = Source<T>::of(head, vocab, hidden_size);
    int bands = ceil_div(rows, P::ROWS), slices = ceil_div(vocab, SLICE);
    for (long long item = blockIdx.x; item < 1LL * bands * slices; item += gridDim.x) {
        int row = int(item % bands) * P::ROWS, slice = int(item / bands);
        LogSum terms[P::DOWN][2];
        int wanted[P::DOWN][2];
#pragma unroll
        for (int i = 0; i < P::DOWN; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int r = row + P::row_of(i, half);
                terms[i][half] = LogSum::none();
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
            for (int i = 0; i < P::DOWN; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // The largest of the tile first, so that every other logit costs one exponential.
                    float largest = -INFINITY;
#pragma unroll
                    for (int j = 0; j < P::ACROSS; ++j) {
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            int c = column + P::column_of(j) + e;
                            float logit = product.sum[i][j].value[2 * half + e];
                            largest = c < vocab ? Max{}(largest, logit) : largest;
                            if (c == wanted[i][half]) {
                                hit[row + P::row_of(i, half)] = logit;
                            }
                        }
                    }
                    LogSum tile{largest, 0.0f};
                    if (largest != -INFINITY) {
#pragma unroll
                        for (int j = 0; j < P::ACROSS; ++j) {
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                int c = column + P::column_of(j) + e;
                                tile.sum += c < vocab ? expf(product.sum[i][j].value[2 * half + e] - largest) : 0.0f;
                            }
                        }
                    }
                    terms[i][half] = LogSum::join(terms[i][half], tile);
                }
            }
        }
        // The terms of the warps that share rows meet in shared memory, which the products no longer need.
        sync_block();
        LogSum* meeting = reinterpret_cast<LogSum*>(shared);
        int across = int(threadIdx.x) / WARP % ACROSS;
#pragma unroll
        for (int i = 0; i < P::DOWN; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                LogSum joined = join_quad(terms[i][half]);
                if (lane_index() % 4 == 0) {
                    meeting[P::row_of(i, half) * ACROSS + across] = joined;
                }
            }
        }
        // Every warp's terms are there.
        sync_block();
        for (int r = int(threadIdx.x); r < P::ROWS && row + r < rows; r += P::THREADS) {
            LogSum joined = meeting[r * ACROSS];
#pragma unroll
            for (int w = 1; w < ACROSS; ++w) {
                joined = LogSum::join(joined, meeting[r * ACROSS + w]);
            }
            max[1LL * slice * rows + row + r] = joined.max;
            sum[1LL * slice * rows + row + r] = joined.sum;
        }
    }
}

// shared: Product::SHARED_BYTES, 48 KiB.

KERNEL(256, head_logprob_join)(const float* max,  // (slices, rows)
                               const float* sum,  // (slices, rows)
                               const float* hit,  // (rows)
                               float* logp,       // (rows)
                               float* lse,        // (rows)
                               int slices, int rows) {
    for (int r = int(blockIdx.x * blockDim.x + threadIdx.x); r < rows; r += int(gridDim.x * blockDim.x)) {
        LogSum all = LogSum::none();
        for (int s = 0; s < slices; ++s) {
            all = LogSum::join(all, LogSum{max[1LL * s * rows + r], sum[1LL * s * rows + r]});
        }
        float value = all.value();
        lse[r] = value;
        logp[r] = hit[r] - value;
    }
}

/// dlogits of the columns `first` to `first + width`: dlogp (onehot(target) - softmax), as (rows, stride).
template <class T>
KERNELS(256, head_dlogits, FOR(T: f32 bf16))(const T* hidden,     // (tokens, hidden_size)
                                             const T* head,       // (vocab, hidden_size)
                                             const int* source,   // (rows)
                                             const int* target,   // (rows)
                                             const float* lse,    // (rows)
                                             const float* dlogp,  // (rows)
                                             T* dlogits,          // (rows, stride)
                                             int hidden_size, int rows, int first, int width, int stride) {
    using P = Product<T, true, true>;
    DYNAMIC_SHARED_OF(shared, P::SHARED_BYTES);
    Source<T> a = Source<T>::of(hidden, rows, hidden_size, source);
    Source<T> b = Source<T>::of(head + 1LL * first * hidden_size, width, hidden_size);
    int down = ceil_div(rows, P::ROWS), across = ceil_div(width, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // The stages are free: every thread is done with the tile before.
        sync_block();
        P product;
        product.compute(shared, a, b, row, column, hidden_size);
        each_eight(product, [&](int i, int j, float(&values)[8]) {
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

/// drows = or += dlogits head[first..first + width].
template <class T>
KERNELS(256, head_drows, FOR(T: f32 bf16))(const T* dlogits,  // (rows, stride)
                                           const T* head,     // (vocab, hidden_size)
                                           float* drows,      // (rows, hidden_size)
                                           int hidden_size, int rows, int first, int width, int stride, int add) {
    Source<T> a = Source<T>::of(dlogits, rows, width), b = Source<T>::of(head + 1LL * first * hidden_size, width, hidden_size);
    a.stride = stride;
    a.by_lane = true;
    matmul<T, float, true, false>(a, b, nullptr, nullptr, drows, rows, hidden_size, width, add);
}

/// dhead[first..first + width] = or += dlogitsᵀ hidden[source].
template <class T>
KERNELS(256, head_dhead, FOR(T: f32 bf16))(const T* dlogits,   // (rows, stride)
                                           const T* hidden,    // (tokens, hidden_size)
                                           const int* source,  // (rows)
                                           float* dhead,       // (vocab, hidden_size)
                                           int hidden_size, int rows, int first, int width, int stride, int add) {
    Source<T> a = Source<T>::of(dlogits, rows, width), b = Source<T>::of(hidden, rows, hidden_size, source);
    a.stride = stride;
    a.by_lane = true;
    matmul<T, float, false, false>(a, b, nullptr, nullptr, dhead + 1LL * first * hidden_size, width, hidden_size, rows,
                                   add);
}

/// dhidden[keys[k]] = sum of the rows order[offsets[k]..offsets[k + 1]] of drows, in that order. Other rows stay;
/// a run whose key is below 0 is left out.
template <class T>
KERNELS(128, head_gather, FOR(T: f32 bf16))(const float* drows,  // (rows, hidden_size)
                                            const int* order,    // (rows)
                                            const int* offsets,  // (distinct + 1)
                                            const int* keys,     // (distinct)
                                            T* dhidden,          // (tokens, hidden_size)
                                            int distinct, int hidden_size) {
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
