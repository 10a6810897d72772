// Vocabulary head on Hopper: logp[r] = log_softmax(hidden[source[r]] · headᵀ)[target[r]] and its
// gradient with three GEMMs in total (tile_sm90.cuh). Logits are never stored.
//
//   head_rows:     packed[r] = hidden[source[r]]; k[r] = round(log2(e) packed[r] · head[target[r]])
//   head_sums or   for each tile of columns: E = 2^(log2(e) z - k), with z the logits;
//   head_powers:     sums[tile][r] = sum E; hit[r] = z[target]; head_powers also stores bf16 E
//   head_join:     S = sum over tiles; lse = k ln 2 + ln S; logp = hit - lse
//                  S out of range: recompute the row with k from its maximum
//   head_factors:  v = -dlogp / S; scaled = v packed; E[target] -= S, which makes E'
//   head_drows:    dhidden rows = v (E' head)                  split-K over the vocabulary
//   dhead:         dhead = E'ᵀ scaled                          linear_bwd_weight, linear_sm90.cu
//     later chunks of rows: head_dhead starts its accumulators from dhead, so the sum over rows
//     has the same order, and the same bits, at every chunk size
//   head_carry:    rows beyond a multiple of 16 move to the next chunk, since a wgmma sums 16 rows
//
// Departures from logsumexp with a running maximum (head.cu):
//   - The reference point of row r is an integer k near its target's logit in base 2, known before the
//     GEMM. So E = e^z 2^-k stays within the exponents of f32 and bf16 whatever the size of the
//     logits, tiles need no maximum, and partial sums are only added.
//   - softmax = E / S, so the gradient of the logits is v (E - S onehot(target)): one factor per row.
//     E is stored once, in bf16; with the same relative error as logit gradients in bf16. The backward
//     therefore does not recompute logits.
//   - A row with S outside 2^-100 .. 2^90 (a target less likely than about e^-60) is recomputed by
//     one block with plain sums around its largest logit.
// Storing exponentials instead of logits follows quack's linear cross-entropy
// (github.com/Dao-AILab/quack); one factor per row instead of one per row and tile is this
// project's.
//
// A row's result depends on that row only.
// Cost: forward 2 rows vocab hidden FLOPs, backward twice that. Shared memory of the GEMMs:
// Hopper::SHARED_BYTES.
#include "linear_sm90.cuh"
#include "primitives/math.cuh"
#include "reduce.cuh"
#include "rows.cuh"

/// Elements per 16-byte load.
constexpr int EIGHT = 8;

/// Gathers the hidden rows of the head rows, and derives each row's k from its target's logit.
KERNEL(128, head_rows_sm90)(const bf16* hidden,  // (tokens, hidden_size)
                            const bf16* head,    // (vocab, hidden_size)
                            const int* source,   // (rows)
                            const int* target,   // (rows)
                            bf16* packed,        // (rows, hidden_size)
                            float* base,         // (rows): k
                            int hidden_size, int rows) {
    for (long long r = global_warp(); r < rows; r += global_warps()) {
        float exponent = LOG2_E * dot_of_rows(hidden + 1LL * source[r] * hidden_size,
                                              head + 1LL * target[r] * hidden_size, hidden_size, true,
                                              packed + r * hidden_size);
        if (lane_index() == 0) {
            // A target logit that is not finite has no useful reference point.
            base[r] = exponent - exponent == 0.0f ? rintf(exponent) : 0.0f;
        }
    }
}

/// The job: a tile's sum of exponentials per row, the target's logit, and if STORE the
/// exponentials.
template <class H, bool STORE>
struct HeadJob : Raster<H> {
    const int* target;  // (rows)
    const float* base;  // (rows)
    float* sums_out;    // (tiles across, rows)
    float* hit;         // (rows): the target's logit
    /// (rows, vocab)
    const TensorDescriptor* exps;
    static_assert(H::COLUMNS % H::SUBTILE_COLUMNS == 0, "whole subtiles");

    DEVICE void epilogue(const Ring<H>& ring, float (&acc)[H::HALVES][H::ACCUMULATORS], int, const Tile& tile,
                         int group, int thread) {
        const int rows = this->rows, vocab = this->columns;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int first_row = tile.row + 64 * half, row = first_row + row_of_thread(thread);
            if (tile.column + H::COLUMNS > vocab) {
                mask_columns(acc[half], vocab - tile.column - column_of_thread(thread));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int r = row + 8 * i;
                float k = 0.0f;
                if (r < rows) {
                    k = base[r];
                    store_target_logit(acc[half], i, r, target[r] - tile.column - column_of_thread(thread));
                }
                float total = exponentiate(acc[half], i, k);
                total += shuffle_xor(total, 1);
                total += shuffle_xor(total, 2);
                if (r < rows && thread % 4 == 0) {
                    sums_out[1LL * (tile.column / H::COLUMNS) * rows + r] = total;
                }
            }
            if constexpr (STORE) {
                store_exponentials(ring, acc[half], first_row, tile.column, group, thread);
            }
        }
    }

    DEVICE void store_exponentials(const Ring<H>& ring, const float (&acc)[H::ACCUMULATORS], int row, int column,
                                   int group, int thread) const {
        const int rows = this->rows, vocab = this->columns;
#pragma unroll
        for (int begin = 0; begin < H::SUBTILES; begin += H::BATCH) {
            const int count = min_of(H::BATCH, H::SUBTILES - begin);
            unsigned char* staging = acquire_staging(ring, group, thread);
#pragma unroll
            for (int p = 0; p < count; ++p) {
#pragma unroll
                for (int j = 0; j < H::SUBTILE_COLUMNS / 8; ++j) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const float* two = acc + 4 * ((begin + p) * H::SUBTILE_COLUMNS / 8 + j) + 2 * i;
                        *subtile_pair(staging + p * H::SUBTILE_BYTES, row_of_thread(thread) + 8 * i, j, thread) =
                            pack_bf16(two[0], two[1]);
                    }
                }
            }
            publish_staging(group);
            if (thread == 0) {
#pragma unroll
                for (int p = 0; p < count; ++p) {
                    int at = column + (begin + p) * H::SUBTILE_COLUMNS;
                    if (row < rows && at < vocab) {
                        tma_store(*exps, at, row, staging + p * H::SUBTILE_BYTES);
                    }
                }
                tma_commit();
            }
        }
    }

    /// Sets logits beyond the vocabulary to -inf: columns from `left` on, counted from the thread's
    /// first.
    DEVICE static void mask_columns(float (&acc)[H::ACCUMULATORS], int left) {
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                bool out = 8 * j + e >= left;
                acc[4 * j + e] = out ? -INFINITY : acc[4 * j + e];
                acc[4 * j + 2 + e] = out ? -INFINITY : acc[4 * j + 2 + e];
            }
        }
    }

    /// Stores the target's logit if the thread holds it: `wanted` is its column minus the thread's
    /// first.
    DEVICE void store_target_logit(const float (&acc)[H::ACCUMULATORS], int i, int r, int wanted) const {
        if (unsigned(wanted) >= unsigned(H::COLUMNS) || wanted % 8 > 1) {
            return;
        }
        float logit = 0.0f;
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
            logit = wanted == 8 * j ? acc[4 * j + 2 * i] : logit;
            logit = wanted == 8 * j + 1 ? acc[4 * j + 2 * i + 1] : logit;
        }
        hit[r] = logit;
    }

    /// Replaces a row's logits by 2^(log2(e) z - k) and returns their sum, even and odd columns
    /// summed separately first.
    DEVICE static float exponentiate(float (&acc)[H::ACCUMULATORS], int i, float k) {
        float total[2] = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& x = acc[4 * j + 2 * i + e];
                x = fast_exp2(fmaf(x, LOG2_E, -k));
                total[e] += x;
            }
        }
        return total[0] + total[1];
    }
};

/// Columns of a tile of the vocabulary.
EXPORT constexpr int HEAD_COLUMNS = 192;
using Head = Hopper<HEAD_COLUMNS, Major::K, Major::K, bf16, 1, true>;

// A: packed rows (rows, hidden), B: head (vocab, hidden).
KERNEL(384, head_sums_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, false>{{rows, vocab, hidden}, target, base, sums, hit, nullptr});
}

// As above; also stores the exponentials.
KERNEL(384, head_powers_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    TensorMap exps,     // (rows, vocab)
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, true>{{rows, vocab, hidden}, target, base, sums, hit, &exps});
}

/// Threads of head_join_sm90.
constexpr int JOIN_THREADS = 128;
/// Logits that a warp of recompute_row computes at once, so that their latencies overlap.
constexpr int AT_ONCE = 4;

/// Logits of AT_ONCE tokens from v on; every lane gets them. -inf beyond the vocabulary.
DEVICE void logits_of(const bf16* x, const bf16* head, int v, int hidden_size, int vocab, float (&z)[AT_ONCE]) {
    float sums[AT_ONCE] = {};
    for (int c = lane_index() * EIGHT; c < hidden_size; c += WARP * EIGHT) {
        float a[EIGHT];
        load_elements(a, x + c, EIGHT, true);
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            float b[EIGHT];
            load_elements(b, head + 1LL * min_of(v + j, vocab - 1) * hidden_size + c, EIGHT, true);
#pragma unroll
            for (int i = 0; i < EIGHT; ++i) {
                sums[j] += a[i] * b[i];
            }
        }
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
        float z_j = reduce_warp(sums[j], Add{});
        z[j] = v + j < vocab ? z_j : -INFINITY;
    }
}

/// Recomputes a row whose sum is out of range: k from its largest logit, and its exponentials if
/// not null. Returns the sum. All threads of the block call it; warps take AT_ONCE tokens in turn.
DEVICE float recompute_row(const bf16* x, const bf16* head, float& k, bf16* exps, int hidden_size, int vocab) {
    constexpr int STEP = JOIN_THREADS / WARP * AT_ONCE;
    SHARED(float, partial, JOIN_THREADS / WARP);
    int first = int(threadIdx.x) / WARP * AT_ONCE;
    float z[AT_ONCE], largest = -INFINITY, sum = 0.0f;
    for (int v = first; v < vocab; v += STEP) {
        logits_of(x, head, v, hidden_size, vocab, z);
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            largest = Max{}(largest, z[j]);
        }
    }
    largest = reduce_block<JOIN_THREADS>(largest, partial, Max{});
    k = largest - largest == 0.0f ? rintf(largest * LOG2_E) : 0.0f;
    for (int v = first; v < vocab; v += STEP) {
        logits_of(x, head, v, hidden_size, vocab, z);
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            float e = fast_exp2(fmaf(z[j], LOG2_E, -k));
            sum += e;
            if (exps != nullptr && lane_index() == 0 && v + j < vocab) {
                exps[v + j] = from_float<bf16>(e);
            }
        }
    }
    // Every lane of a warp has the warp's sum.
    sum = reduce_block<JOIN_THREADS>(lane_index() == 0 ? sum : 0.0f, partial, Add{});
    // Softmax is undefined with an infinite logit.
    return largest == INFINITY ? NAN : sum;
}

/// Whether a sum is used as it is. Below 2^90, v times a hidden value stays a normal number of bf16.
/// A sum is NaN only if a logit is, and stays NaN.
DEVICE bool is_usable(float sum) {
    constexpr float MIN_SUM = 0x1p-100f, MAX_SUM = 0x1p90f;
    return (sum > MIN_SUM && sum < MAX_SUM) || sum != sum;
}

/// Rows per warp of head_join_sm90.
EXPORT constexpr int HEAD_JOIN_ROWS = 8;

/// Adds the tiles' sums of each row: lse = k ln 2 + ln sum, logp = hit - lse. A warp takes eight
/// adjacent rows; each lane adds every fourth tile of one row. Then the block recomputes its rows
/// with sums out of range one by one.
KERNEL(128, head_join_sm90)(const bf16* packed,  // (rows, hidden_size)
                            const bf16* head,    // (vocab, hidden_size)
                            const float* sums,   // (slices, rows)
                            const float* hit,    // (rows)
                            float* base,         // (rows)
                            float* total,        // (rows)
                            float* logp,         // (rows)
                            float* lse,          // (rows)
                            bf16* exps,          // (rows, stride), may be null
                            int hidden_size, int vocab, int rows, int slices, int stride) {
    constexpr int ROWS = JOIN_THREADS / WARP * HEAD_JOIN_ROWS;
    SHARED(float, sum_of, ROWS);
    auto finish = [&](long long r, float k, float sum) {
        float value = fmaf(k, LN_2, logf(sum));
        base[r] = k;
        total[r] = sum;
        lse[r] = value;
        logp[r] = hit[r] - value;
    };
    for (long long begin = 1LL * ROWS * blockIdx.x; begin < rows; begin += 1LL * ROWS * gridDim.x) {
        int row = int(threadIdx.x) / WARP * HEAD_JOIN_ROWS + lane_index() % HEAD_JOIN_ROWS;
        long long own = begin + row;
        float part = 0.0f;
        for (int s = lane_index() / HEAD_JOIN_ROWS; s < slices && own < rows; s += WARP / HEAD_JOIN_ROWS) {
            part += sums[1LL * s * rows + own];
        }
        part += shuffle_xor(part, HEAD_JOIN_ROWS);
        part += shuffle_xor(part, 2 * HEAD_JOIN_ROWS);
        if (lane_index() < HEAD_JOIN_ROWS) {
            sum_of[row] = part;
            if (own < rows && is_usable(part)) {
                finish(own, base[own], part);
            }
        }
        sync_block();  // the rows' sums are written
        for (int i = 0; i < ROWS && begin + i < rows; ++i) {
            if (is_usable(sum_of[i])) {
                continue;
            }
            long long r = begin + i;
            float k;
            float sum = recompute_row(packed + r * hidden_size, head, k,
                                      exps == nullptr ? nullptr : exps + r * stride, hidden_size, vocab);
            if (threadIdx.x == 0) {
                finish(r, k, sum);
            }
        }
        sync_block();  // the rows' sums are read before those of the next rows are written
    }
}

/// Inputs of the backward GEMMs: v, v hidden, and the target's exponential minus the sum. A row
/// with dlogp = 0 gets v = 0.
KERNEL(128, head_factors_sm90)(const bf16* packed,  // (rows, hidden_size)
                               const int* target,   // (rows)
                               const float* hit,    // (rows)
                               const float* base,   // (rows)
                               const float* total,  // (rows)
                               const float* dlogp,  // (rows)
                               float* factor,       // (rows): v
                               bf16* scaled,        // (rows, hidden_size): v hidden
                               bf16* exps,          // (rows, stride)
                               int hidden_size, int rows, int stride) {
    for (long long r = global_warp(); r < rows; r += global_warps()) {
        float slope = dlogp[r], sum = total[r], v = slope == 0.0f ? 0.0f : -slope / sum;
        const bf16* from = packed + r * hidden_size;
        bf16* to = scaled + r * hidden_size;
        for (int h = lane_index() * EIGHT; h < hidden_size; h += WARP * EIGHT) {
            float x[EIGHT];
            load_elements(x, from + h, EIGHT, true);
#pragma unroll
            for (int i = 0; i < EIGHT; ++i) {
                x[i] *= v;
            }
            store_elements(to + h, x, EIGHT, true);
        }
        if (lane_index() == 0) {
            factor[r] = v;
            exps[r * stride + target[r]] = from_float<bf16>(fast_exp2(fmaf(hit[r], LOG2_E, -base[r])) - sum);
        }
    }
}

/// Moves the last rows of a chunk to the start of the buffers. Source and destination do not overlap.
KERNEL(128, head_carry_sm90)(bf16* exps,    // (from + rows, stride): rows `from` on become rows 0 on
                             bf16* scaled,  // (from + rows, hidden_size)
                             int from, int rows, int hidden_size, int stride) {
    const long long threads = 1LL * gridDim.x * blockDim.x, first = 1LL * blockIdx.x * blockDim.x + threadIdx.x;
    auto move = [&](bf16* array, long long width) {
        for (long long i = first * EIGHT; i < rows * width; i += threads * EIGHT) {
            float x[EIGHT];
            load_elements(x, array + from * width + i, EIGHT, true);
            store_elements(array + i, x, EIGHT, true);
        }
    };
    move(exps, stride);
    move(scaled, hidden_size);
}

/// The job: dhead += expsᵀ scaled, where the accumulators start from dhead. The bits are those of one
/// GEMM over the rows of all launches, provided that each but the last has a multiple of 16 rows.
template <class H>
struct DheadJob : MatmulJob<H> {
    const float* dhead;  // (vocab, hidden)
    static constexpr bool STARTS_FROM_C = true;
    static_assert(H::PING_PONG, "a consumer has all rows of a tile");

    DEVICE void start(float (&acc)[H::HALVES][H::ACCUMULATORS], const Tile& tile, int, int thread) const {
        const int vocab = this->rows, hidden = this->columns;
        int column = tile.column + column_of_thread(thread);
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int row = tile.row + 64 * half + row_of_thread(thread) + 8 * i;
                const float* from = dhead + 1LL * row * hidden + column;
#pragma unroll
                for (int j = 0; j < H::COLUMNS / 8; ++j) {
                    // hidden is even, so both elements of a pair are inside or both are outside.
                    bool inside = row < vocab && column + 8 * j < hidden;
                    uint64_t pair = inside ? *reinterpret_cast<const uint64_t*>(from + 8 * j) : 0;
                    acc[half][4 * j + 2 * i] = float_of_bits(uint32_t(pair));
                    acc[half][4 * j + 2 * i + 1] = float_of_bits(uint32_t(pair >> 32));
                }
            }
        }
    }
};

// dhead += expsᵀ scaled. A: exps (rows, vocab), B: scaled (rows, hidden), C: dhead (vocab, hidden).
KERNEL(384, head_dhead_sm90, EARLY, ALONE(384))(TensorMap exps, TensorMap scaled, TensorMap map,
    const float* dhead,  // (vocab, hidden), the array of `map`
    int vocab, int hidden, int rows) {
    using H = HopperGemm<N192_PING_PONG, Major::ACROSS, Major::ACROSS, float>;
    Problem problem{vocab, hidden, rows, 1, 0, nullptr, nullptr, nullptr, nullptr};
    run_job<H>(exps, scaled, DheadJob<H>{{{vocab, hidden, rows}, problem, &map, nullptr, 0, 0u}, dhead});
}

// drows = v (exps head), split-K over the vocabulary. A: exps (rows, vocab), B: head (vocab, hidden).
template <GemmTile TILE>
KERNELS(384, head_drows_sm90, FOR(TILE: 256=N256 224=N224), CLUSTER(2), CORESIDENT, EARLY, ALONE(384))(
    const TensorDescriptor& exps, const TensorDescriptor& head, const TensorDescriptor& drows,
    const float* factor,  // (rows)
    int* semaphores,      // (tiles, 2) zeros if splits > 1; zero again at the end
    int rows, int hidden, int vocab, int splits) {
    hopper_matmul<HopperGemm<TILE, Major::K, Major::ACROSS, float>>(
        exps, head, drows, {rows, hidden, vocab, splits, 0, nullptr, factor, semaphores, nullptr});
}
