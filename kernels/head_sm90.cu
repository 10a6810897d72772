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
//   With the statistics of a row (logit_stats.cuh), the kernels of head_stats_sm90.cu replace head_sums,
//     head_powers and head_join.
//   head_carry:    rows beyond a multiple of 16 move to the next chunk, since a wgmma sums 16 rows
//
// Departures from logsumexp with a running maximum (head.cu):
//   - The reference point of row r is an integer k near its target's logit in base 2, known before the
//     GEMM. So E = e^z 2^-k stays within the exponent range of f32 and bf16 whatever the size of the
//     logits, tiles need no maximum, and partial sums are only added.
//   - softmax = E / S, so the gradient of the logits is v (E - S onehot(target)): one factor per row.
//     E is stored once, in bf16, with the same relative error as logit gradients in bf16. The backward
//     therefore does not recompute logits.
//   - A row with S outside 2^-100 .. 2^90 (a target less likely than about e^-60) is recomputed by
//     one block, with plain sums relative to its largest logit.
// Storing exponentials instead of logits follows quack's linear cross-entropy (github.com/Dao-AILab/quack).
// One factor per row, instead of one per row and tile, is specific to this project.
//
// A row's result depends on that row only.
// Cost: forward 2 rows vocab hidden FLOPs, backward twice that. Shared memory of the GEMMs:
// Hopper::SHARED_BYTES.
#include "head_sm90.cuh"

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
            // A target logit that is not finite gives no useful reference point, so k is 0.
            base[r] = exponent - exponent == 0.0f ? rintf(exponent) : 0.0f;
        }
    }
}

// A: packed rows (rows, hidden), B: head (vocab, hidden).
KERNEL(384, head_sums_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, false, false>{{rows, vocab, hidden}, target, base, sums, hit, nullptr, {}});
}

// As head_sums_sm90, but also stores the exponentials.
KERNEL(384, head_powers_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    TensorMap exps,     // (rows, vocab)
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, true, false>{{rows, vocab, hidden}, target, base, sums, hit, &exps, {}});
}

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
    HeadJoin arrays{packed, head, sums, hit, base, total, logp, lse, exps, {}, nullptr, nullptr, 0};
    join_tiles<false>(arrays, hidden_size, vocab, rows, slices, stride);
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

/// Job that computes dhead += expsᵀ scaled, where the accumulators start from dhead. The bits are those of one
/// GEMM over the rows of all launches, if every launch except the last has a multiple of 16 rows.
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
