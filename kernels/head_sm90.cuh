// The vocabulary head on Hopper: the tiles of the forward GEMM and the join of their sums, with or
// without the statistics of logit_stats.cuh. head_sm90.cu has the algorithm and the kernels without
// statistics, head_stats_sm90.cu those with them.
//
// Here the statistic `weighted` is the sum of t 2^t, with the exponents t = log2(e) z - k:
//   entropy = ln S - ln 2 weighted / S, with S = sum 2^t
// The statistics cost four instructions per logit in the epilogue, which overlaps the GEMM of the other consumer.
#pragma once

#include "linear_sm90.cuh"
#include "logit_stats.cuh"
#include "primitives/math.cuh"
#include "reduce.cuh"
#include "rows.cuh"

/// Elements per 16-byte load.
constexpr int EIGHT = 8;

/// Lower clamp of the exponent t in t 2^t. At this t and below, 2^t is 0, and t may be -inf.
constexpr float LEAST_EXPONENT = -256.0f;

/// Statistics of the tiles' rows, (tiles across, rows) each.
struct TileStats {
    float* weighted;
    float* total;
    float* rival;
};

/// Job that computes, for each row of a tile, the sum of exponentials and the target's logit, with STORE the
/// exponentials, and with STATS the statistics. STATS changes no bit of the other results.
template <class H, bool STORE, bool STATS>
struct HeadJob : Raster<H> {
    const int* target;  // (rows)
    const float* base;  // (rows)
    float* sums_out;    // (tiles across, rows)
    float* hit;         // (rows): the target's logit
    /// (rows, vocab)
    const TensorDescriptor* exps;
    TileStats stats;  // nulls without STATS
    static_assert(H::COLUMNS % H::SUBTILE_COLUMNS == 0, "whole subtiles");

    DEVICE void epilogue(const Ring<H>& ring, float (&acc)[H::HALVES][H::ACCUMULATORS], int, const Tile& tile,
                         int group, int thread) {
        const int rows = this->rows, vocab = this->columns;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int first_row = tile.row + 64 * half, row = first_row + row_of_thread(thread);
            const int left = vocab - tile.column - column_of_thread(thread);
            if (tile.column + H::COLUMNS > vocab) {
                mask_columns(acc[half], left);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int r = row + 8 * i;
                float k = 0.0f;
                int wanted = -1;
                if (r < rows) {
                    k = base[r];
                    wanted = target[r] - tile.column - column_of_thread(thread);
                    store_target_logit(acc[half], i, r, wanted);
                }
                LogitStats of_thread = LogitStats::empty();
                if constexpr (STATS) {
                    of_thread.total = total_of(acc[half], i, left);
                    of_thread.rival = rival_of(acc[half], i, wanted);
                }
                float total = exponentiate(acc[half], i, k, of_thread.weighted);
                total += shuffle_xor(total, 1);
                total += shuffle_xor(total, 2);
                long long at = 1LL * (tile.column / H::COLUMNS) * rows + r;
                if (r < rows && thread % 4 == 0) {
                    sums_out[at] = total;
                }
                if constexpr (STATS) {
                    store_stats(of_thread, at, r < rows && thread % 4 == 0);
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

    /// Sum of a row's logits in the vocabulary. Even and odd columns are summed separately first. `left` is that of
    /// mask_columns().
    DEVICE static float total_of(const float (&acc)[H::ACCUMULATORS], int i, int left) {
        float total[2] = {0.0f, 0.0f};
        if (left >= H::COLUMNS) {
#pragma unroll
            for (int j = 0; j < H::COLUMNS / 8; ++j) {
                total[0] += acc[4 * j + 2 * i];
                total[1] += acc[4 * j + 2 * i + 1];
            }
        } else {
#pragma unroll
            for (int j = 0; j < H::COLUMNS / 8; ++j) {
                total[0] += 8 * j < left ? acc[4 * j + 2 * i] : 0.0f;
                total[1] += 8 * j + 1 < left ? acc[4 * j + 2 * i + 1] : 0.0f;
            }
        }
        return total[0] + total[1];
    }

    /// The thread's rival of the target (logit_stats.cuh) in a row. `wanted` is that of store_target_logit().
    DEVICE static float rival_of(const float (&acc)[H::ACCUMULATORS], int i, int wanted) {
        float before = -INFINITY, after = -INFINITY;
        if (wanted < 0 || wanted >= H::COLUMNS) {
            float largest = -INFINITY;
#pragma unroll
            for (int j = 0; j < H::COLUMNS / 8; ++j) {
                largest = fmaxf(largest, fmaxf(acc[4 * j + 2 * i], acc[4 * j + 2 * i + 1]));
            }
            return wanted < 0 ? largest : next_up(largest);
        }
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float z = acc[4 * j + 2 * i + e];
                before = 8 * j + e < wanted ? fmaxf(before, z) : before;
                after = 8 * j + e > wanted ? fmaxf(after, z) : after;
            }
        }
        return fmaxf(next_up(before), after);
    }

    /// Combines the statistics of the four threads of a row and stores them to element `at`.
    DEVICE void store_stats(LogitStats of, long long at, bool stores) const {
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
            of.weighted += shuffle_xor(of.weighted, mask);
            of.total += shuffle_xor(of.total, mask);
            of.rival = fmaxf(of.rival, shuffle_xor(of.rival, mask));
        }
        if (stores) {
            stats.weighted[at] = of.weighted;
            stats.total[at] = of.total;
            stats.rival[at] = of.rival;
        }
    }

    /// Replaces a row's logits with 2^t, where t = log2(e) z - k, and returns their sum. Even and odd columns
    /// are summed separately first. With STATS, `weighted` becomes the sum of t 2^t.
    DEVICE static float exponentiate(float (&acc)[H::ACCUMULATORS], int i, float k, float& weighted) {
        float total[2] = {0.0f, 0.0f}, products[2] = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < H::COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& x = acc[4 * j + 2 * i + e];
                float t = fmaf(x, LOG2_E, -k);
                x = fast_exp2(t);
                total[e] += x;
                if constexpr (STATS) {
                    products[e] = fmaf(fmaxf(t, LEAST_EXPONENT), x, products[e]);
                }
            }
        }
        weighted = products[0] + products[1];
        return total[0] + total[1];
    }
};

/// Columns of a tile of the vocabulary.
EXPORT constexpr int HEAD_COLUMNS = 192;
using Head = Hopper<HEAD_COLUMNS, Major::K, Major::K, bf16, 1, true>;

/// Threads of head_join_sm90.
constexpr int JOIN_THREADS = 128;
/// Logits that a warp of recompute_row computes at once, so that their latencies overlap.
constexpr int AT_ONCE = 4;

/// Logits of AT_ONCE vocabulary tokens from v on, -inf beyond the vocabulary; every lane gets them.
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

/// Recomputes a row whose sum is out of range: k from the largest logit, the exponentials if `exps` is not
/// null, and with STATS the statistics of the row. Returns the sum. All threads of the block call it; each
/// warp handles AT_ONCE tokens per iteration.
template <bool STATS>
DEVICE float recompute_row(const bf16* x, const bf16* head, float& k, bf16* exps, int hidden_size, int vocab,
                           int target, LogitStats& stats) {
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
            float t = fmaf(z[j], LOG2_E, -k), e = fast_exp2(t);
            sum += e;
            if constexpr (STATS) {
                stats.weighted = fmaf(fmaxf(t, LEAST_EXPONENT), e, stats.weighted);
                stats.total += v + j < vocab ? z[j] : 0.0f;
                float other = v + j < target ? next_up(z[j]) : z[j];
                stats.rival = v + j != target ? fmaxf(stats.rival, other) : stats.rival;
            }
            if (exps != nullptr && lane_index() == 0 && v + j < vocab) {
                exps[v + j] = from_float<bf16>(e);
            }
        }
    }
    // Every lane of a warp has the warp's sum, so only lane 0 contributes it.
    sum = reduce_block<JOIN_THREADS>(lane_index() == 0 ? sum : 0.0f, partial, Add{});
    if constexpr (STATS) {
        stats.weighted = reduce_block<JOIN_THREADS>(lane_index() == 0 ? stats.weighted : 0.0f, partial, Add{});
        stats.total = reduce_block<JOIN_THREADS>(lane_index() == 0 ? stats.total : 0.0f, partial, Add{});
        stats.rival = reduce_block<JOIN_THREADS>(stats.rival, partial, Max{});
    }
    // Softmax is undefined with an infinite logit.
    return largest == INFINITY ? NAN : sum;
}

/// Whether a sum is used without recomputing the row. Below 2^90, v times a hidden value stays a normal
/// number of bf16. A sum is NaN only if a logit is, and stays NaN.
DEVICE bool is_usable(float sum) {
    constexpr float MIN_SUM = 0x1p-100f, MAX_SUM = 0x1p90f;
    return (sum > MIN_SUM && sum < MAX_SUM) || sum != sum;
}

/// Rows per warp of head_join_sm90.
EXPORT constexpr int HEAD_JOIN_ROWS = 8;

/// Arrays of head_join_sm90.
struct HeadJoin {
    const bf16* packed;  // (rows, hidden_size)
    const bf16* head;    // (vocab, hidden_size)
    const float* sums;   // (slices, rows)
    const float* hit;    // (rows)
    float* base;         // (rows)
    float* total;        // (rows)
    float* logp;         // (rows)
    float* lse;          // (rows)
    bf16* exps;          // (rows, stride), may be null
    // The following members are used for statistics only.
    TileStats of_tiles;
    const int* target;   // (rows)
    float* stats;        // (3, stats_stride): entropy, mean logit, is_top1
    int stats_stride;
};

/// Adds the tiles' sums of each row: lse = k ln 2 + ln sum, logp = hit - lse. A warp handles eight adjacent
/// rows; each lane adds every fourth tile of one row. Then the block recomputes its rows with sums out of
/// range one by one.
template <bool STATS>
DEVICE void join_tiles(const HeadJoin& a, int hidden_size, int vocab, int rows, int slices, int stride) {
    constexpr int ROWS = JOIN_THREADS / WARP * HEAD_JOIN_ROWS;
    SHARED(float, sum_of, ROWS);
    auto finish = [&](long long r, float k, float sum, LogitStats stats) {
        float log_sum = logf(sum), value = fmaf(k, LN_2, log_sum);
        a.base[r] = k;
        a.total[r] = sum;
        a.lse[r] = value;
        a.logp[r] = a.hit[r] - value;
        if constexpr (STATS) {
            // The exponents in `weighted` are in base 2.
            stats.weighted *= LN_2;
            stats.store(a.stats + r, a.stats_stride, log_sum, sum, a.hit[r], vocab);
        }
    };
    for (long long begin = 1LL * ROWS * blockIdx.x; begin < rows; begin += 1LL * ROWS * gridDim.x) {
        int row = int(threadIdx.x) / WARP * HEAD_JOIN_ROWS + lane_index() % HEAD_JOIN_ROWS;
        long long own = begin + row;
        float part = 0.0f;
        LogitStats stats = LogitStats::empty();
#pragma unroll(STATS ? 2 : 4)  // larger factors spill registers on sm_80
        for (int s = lane_index() / HEAD_JOIN_ROWS; s < slices && own < rows; s += WARP / HEAD_JOIN_ROWS) {
            part += a.sums[1LL * s * rows + own];
            if constexpr (STATS) {
                stats.weighted += a.of_tiles.weighted[1LL * s * rows + own];
                stats.total += a.of_tiles.total[1LL * s * rows + own];
                stats.rival = fmaxf(stats.rival, a.of_tiles.rival[1LL * s * rows + own]);
            }
        }
        part += shuffle_xor(part, HEAD_JOIN_ROWS);
        part += shuffle_xor(part, 2 * HEAD_JOIN_ROWS);
        if constexpr (STATS) {
#pragma unroll
            for (int mask = HEAD_JOIN_ROWS; mask < WARP; mask *= 2) {
                stats.weighted += shuffle_xor(stats.weighted, mask);
                stats.total += shuffle_xor(stats.total, mask);
                stats.rival = fmaxf(stats.rival, shuffle_xor(stats.rival, mask));
            }
        }
        if (lane_index() < HEAD_JOIN_ROWS) {
            sum_of[row] = part;
            if (own < rows && is_usable(part)) {
                finish(own, a.base[own], part, stats);
            }
        }
        sync_block();  // the rows' sums are written
        for (int i = 0; i < ROWS && begin + i < rows; ++i) {
            if (is_usable(sum_of[i])) {
                continue;
            }
            long long r = begin + i;
            float k;
            LogitStats of_row = LogitStats::empty();
            float sum = recompute_row<STATS>(a.packed + r * hidden_size, a.head, k,
                                             a.exps == nullptr ? nullptr : a.exps + r * stride, hidden_size, vocab,
                                             STATS ? a.target[r] : 0, of_row);
            if (threadIdx.x == 0) {
                finish(r, k, sum, of_row);
            }
        }
        sync_block();  // the rows' sums are read before those of the next rows are written
    }
}
