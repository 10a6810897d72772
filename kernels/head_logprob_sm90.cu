// The vocabulary head on Hopper: logp[r] = log_softmax(hidden[source[r]] · headᵀ)[target[r]] and its gradient by three products
// in all, by the tile loop of tile_sm90.cuh. Logits are not stored.
//
// For every row there is an integer k near the target's logit in base 2, so that powers 2^(z log2 e - k) = e^z 2^-k of all logits
// z lie within the exponents of bf16 and f32 whatever the size of the logits. The first product gives their sums, and for the
// backward the powers E themselves, rounded to bf16, which has the relative error that bf16 gradients of the logits would have.
// With S a row's sum, softmax is E / S, and the gradient of the logits is
//   v (E - S onehot(target)),  v = -dlogp / S,
// one factor a row: the second product is dhidden = v (E' head) with E' = E but for the target's element, the third
// dhead = E'ᵀ (v hidden). The idea of powers in place of logits is that of quack's linear cross-entropy
// (github.com/Dao-AILab/quack); one factor a row in place of one a row and tile is this project's.
//
// A row whose sum leaves 2^-100 .. 2^120, because its target is less likely than about e^-80, is done again by one warp with
// plain sums around its greatest logit. What a row gets depends on that row alone.
//
// Forward: 2 rows vocab hidden FLOPs; backward: twice that. shared: Hopper::SHARED_BYTES for the products.
#include "matmul_sm90.cuh"
#include "primitives/math.cuh"
#include "reduce.cuh"
#include "rows.cuh"

/// Elements of a row that a lane loads at once.
constexpr int EIGHT = 8;

/// Sum of a warp over k of x[k] w[k]; every lane has it. Rows are multiples of 16 bytes. x is copied where `copy` says.
DEVICE float dot_of_rows(const bf16* x, const bf16* w, int hidden_size, bf16* copy = nullptr) {
    float sum = 0.0f;
    for (int h = lane_index() * EIGHT; h < hidden_size; h += WARP * EIGHT) {
        float a[EIGHT], b[EIGHT];
        load_piece(a, x + h, EIGHT, true);
        load_piece(b, w + h, EIGHT, true);
#pragma unroll
        for (int i = 0; i < EIGHT; ++i) {
            sum += a[i] * b[i];
        }
        if (copy != nullptr) {
            store_piece(copy + h, a, EIGHT, true);
        }
    }
    return reduce_warp(sum, Add{});
}

/// Copies the hidden rows of head rows next to one another, and finds every row's k from the target's logit.
KERNEL(128, head_rows_sm90)(const bf16* hidden,  // (tokens, hidden_size)
                            const bf16* head,    // (vocab, hidden_size)
                            const int* source,   // (rows)
                            const int* target,   // (rows)
                            bf16* packed,        // (rows, hidden_size)
                            float* base,         // (rows): k
                            int hidden_size, int rows) {
    for (long long r = warp_of_grid(); r < rows; r += warps_of_grid()) {
        float power = LOG2_E * dot_of_rows(hidden + 1LL * source[r] * hidden_size, head + 1LL * target[r] * hidden_size,
                                           hidden_size, packed + r * hidden_size);
        if (lane_index() == 0) {
            base[r] = power - power == 0.0f ? rintf(power) : 0.0f;
        }
    }
}

/// Sums of powers of every tile's columns, the target's logit, and where asked for the powers.
template <class H, bool STORED>
struct HeadJob : Raster<H> {
    const int* target;  // (rows)
    const float* base;  // (rows)
    float* sums_out;    // (tiles across, rows)
    float* hit;         // (rows): the target's logit
    /// (rows, vocab)
    const TensorDescriptor* exps;
    static_assert(H::COLUMNS % H::PIECE_COLUMNS == 0, "pieces of a tile");

    DEVICE void take(const Ring<H>& ring, float (&sums)[H::HALVES][H::SUMS], int, const Tile& tile, int group, int thread) {
        const int rows = this->rows, vocab = this->columns;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int first_row = tile.row + 64 * half, row = first_row + row_of_thread(thread);
            if (tile.column + H::COLUMNS > vocab) {
                leave_out(sums[half], vocab - tile.column - column_of_thread(thread));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int r = row + 8 * i;
                float k = 0.0f;
                if (r < rows) {
                    k = base[r];
                    find_target(sums[half], i, r, target[r] - tile.column - column_of_thread(thread));
                }
                float total = to_powers(sums[half], i, k);
                total += shuffle_xor(total, 1);
                total += shuffle_xor(total, 2);
                if (r < rows && thread % 4 == 0) {
                    sums_out[1LL * (tile.column / H::COLUMNS) * rows + r] = total;
                }
            }
            if constexpr (STORED) {
                store_powers(ring, sums[half], first_row, tile.column, group, thread);
            }
        }
    }

    DEVICE void store_powers(const Ring<H>& ring, const float (&sums)[H::SUMS], int row, int column, int group,
                             int thread) const {
        const int rows = this->rows, vocab = this->columns;
#pragma unroll
        for (int begin = 0; begin < H::PIECES; begin += H::BATCH) {
            const int count = min_of(H::BATCH, H::PIECES - begin);
            unsigned char* pieces = begin_batch(ring, group, thread);
#pragma unroll
            for (int p = 0; p < count; ++p) {
#pragma unroll
                for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const float* two = sums + 4 * ((begin + p) * H::PIECE_COLUMNS / 8 + j) + 2 * i;
                        *pair_of_piece(pieces + p * H::PIECE_BYTES, row_of_thread(thread) + 8 * i, j, thread) =
                            pack_bf16(two[0], two[1]);
                    }
                }
            }
            end_batch(group);
            if (thread == 0) {
#pragma unroll
                for (int p = 0; p < count; ++p) {
                    int at = column + (begin + p) * H::PIECE_COLUMNS;
                    if (row < rows && at < vocab) {
                        store_box(*exps, at, row, pieces + p * H::PIECE_BYTES);
                    }
                }
                commit_boxes();
            }
        }
    }

    /// Logits of columns from `left` on, counted from the thread's first, are none.
    DEVICE static void leave_out(float (&sums)[H::SUMS], int left) {
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                bool out = 8 * j + e >= left;
                sums[4 * j + e] = out ? -INFINITY : sums[4 * j + e];
                sums[4 * j + 2 + e] = out ? -INFINITY : sums[4 * j + 2 + e];
            }
        }
    }

    /// Writes the target's logit where the thread has it: `wanted` columns behind its first.
    DEVICE void find_target(const float (&sums)[H::SUMS], int i, int r, int wanted) const {
        if (unsigned(wanted) >= unsigned(H::COLUMNS) || wanted % 8 > 1) {
            return;
        }
        float logit = 0.0f;
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
            logit = wanted == 8 * j ? sums[4 * j + 2 * i] : logit;
            logit = wanted == 8 * j + 1 ? sums[4 * j + 2 * i + 1] : logit;
        }
        hit[r] = logit;
    }

    /// Turns a row's logits into powers, and adds them up: even and odd columns first by themselves.
    DEVICE static float to_powers(float (&sums)[H::SUMS], int i, float k) {
        float total[2] = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& x = sums[4 * j + 2 * i + e];
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

// As above, and the powers.
KERNEL(384, head_powers_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    TensorMap exps,   // (rows, vocab)
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, true>{{rows, vocab, hidden}, target, base, sums, hit, &exps});
}

/// A row whose sum is out of range: k from its greatest logit, its sum, and where there are powers these; all lanes call it.
DEVICE float join_again(const bf16* x, const bf16* head, float& k, bf16* exps, int hidden_size, int vocab) {
    float largest = -INFINITY;
    for (int v = 0; v < vocab; ++v) {
        largest = Max{}(largest, dot_of_rows(x, head + 1LL * v * hidden_size, hidden_size));
    }
    k = largest - largest == 0.0f ? rintf(largest * LOG2_E) : 0.0f;
    float sum = 0.0f;
    for (int v = 0; v < vocab; ++v) {
        float power = fast_exp2(fmaf(dot_of_rows(x, head + 1LL * v * hidden_size, hidden_size), LOG2_E, -k));
        sum += power;
        if (exps != nullptr && lane_index() == 0) {
            exps[v] = from_float<bf16>(power);
        }
    }
    // Of an infinite logit there is no softmax.
    return largest == INFINITY ? NAN : sum;
}

/// Rows that a warp of head_join_sm90 takes.
EXPORT constexpr int HEAD_JOIN_ROWS = 8;

/// Adds up the tiles' sums of every row: lse = k ln 2 + ln sum, logp = hit - lse. A warp takes eight rows, which lie side by side
/// in memory: each lane adds every fourth tile of one row.
KERNEL(128, head_join_sm90)(const bf16* packed,  // (rows, hidden_size)
                            const bf16* head,    // (vocab, hidden_size)
                            const float* sums,   // (slices, rows)
                            const float* hit,    // (rows)
                            float* base,         // (rows)
                            float* total,        // (rows)
                            float* logp,         // (rows)
                            float* lse,          // (rows)
                            bf16* exps,        // (rows, stride), may be absent
                            int hidden_size, int vocab, int rows, int slices, int stride) {
    for (long long first = HEAD_JOIN_ROWS * warp_of_grid(); first < rows; first += HEAD_JOIN_ROWS * warps_of_grid()) {
        long long own = first + lane_index() % HEAD_JOIN_ROWS;
        float part = 0.0f;
        for (int s = lane_index() / HEAD_JOIN_ROWS; s < slices && own < rows; s += WARP / HEAD_JOIN_ROWS) {
            part += sums[1LL * s * rows + own];
        }
        part += shuffle_xor(part, HEAD_JOIN_ROWS);
        part += shuffle_xor(part, 2 * HEAD_JOIN_ROWS);
        for (int i = 0; i < HEAD_JOIN_ROWS && first + i < rows; ++i) {
            long long r = first + i;
            float sum = shuffle(part, i);
            float k = base[r];
            constexpr float LEAST = 0x1p-100f, MOST = 0x1p120f;
            if (!(sum > LEAST && sum < MOST)) {
                sum = join_again(packed + r * hidden_size, head, k, exps == nullptr ? nullptr : exps + r * stride, hidden_size,
                                 vocab);
            }
            if (lane_index() == 0) {
                float value = fmaf(k, LN_2, logf(sum));
                base[r] = k;
                total[r] = sum;
                lse[r] = value;
                logp[r] = hit[r] - value;
            }
        }
    }
}

/// What the products of the backward need: v, v hidden, and the power of the target less the sum. A row whose gradient is 0 has
/// v = 0.
KERNEL(128, head_factors_sm90)(const bf16* packed,  // (rows, hidden_size)
                               const int* target,   // (rows)
                               const float* hit,    // (rows)
                               const float* base,   // (rows)
                               const float* total,  // (rows)
                               const float* dlogp,  // (rows)
                               float* factor,       // (rows): v
                               bf16* scaled,        // (rows, hidden_size): v hidden
                               bf16* exps,        // (rows, stride)
                               int hidden_size, int rows, int stride) {
    for (long long r = warp_of_grid(); r < rows; r += warps_of_grid()) {
        float slope = dlogp[r], sum = total[r], v = slope == 0.0f ? 0.0f : -slope / sum;
        const bf16* from = packed + r * hidden_size;
        bf16* to = scaled + r * hidden_size;
        for (int h = lane_index() * EIGHT; h < hidden_size; h += WARP * EIGHT) {
            float x[EIGHT];
            load_piece(x, from + h, EIGHT, true);
#pragma unroll
            for (int i = 0; i < EIGHT; ++i) {
                x[i] *= v;
            }
            store_piece(to + h, x, EIGHT, true);
        }
        if (lane_index() == 0) {
            factor[r] = v;
            exps[r * stride + target[r]] = from_float<bf16>(fast_exp2(fmaf(hit[r], LOG2_E, -base[r])) - sum);
        }
    }
}

// drows = v (powers head), parts of the sum over the vocabulary in order. A: powers (rows, vocab), B: head (vocab, hidden).
template <GemmTile TILE>
KERNELS(384, head_drows_sm90, FOR(TILE: 256=N256 224=N224), CLUSTER(2), CORESIDENT, EARLY, ALONE(384))(
    const TensorDescriptor& exps, const TensorDescriptor& head, const TensorDescriptor& drows,
    const float* factor,  // (rows)
    int* semaphores,      // (tiles, 2) zeros, where splits > 1; left as zeros
    int rows, int hidden, int vocab, int splits) {
    hopper_matmul<HopperGemm<TILE, Major::K, Major::ACROSS, float>>(
        exps, head, drows, {rows, hidden, vocab, splits, 0, nullptr, factor, semaphores, nullptr});
}
