// What stands between rows and sequences: sums or means of a sequence's rows, and the scalar reward head at its last
// row.
//
// A warp takes sequences (or pieces of the weight gradient) by stride. Sums over rows and over sequences are in
// ascending order. Offsets and rows are in range and no row is named twice: what packs a batch has checked them. Cost:
// every operand is moved once.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

/// sums[s] = sum of values[offsets[s] .. offsets[s + 1]], divided by their number when `mean` is 1; 0 without rows.
KERNEL(128, segment_sum_fwd)(const float* values,  // (rows)
                             const int* offsets,   // (seqs + 1)
                             float* sums,          // (seqs)
                             int seqs, int mean) {
    for (long long s = warp_of_grid(); s < seqs; s += warps_of_grid()) {
        int begin = offsets[s], end = offsets[s + 1];
        float sum = 0.0f;
        for (int first = begin; first < end; first += WARP) {
            int row = first + lane_index();
            float value = row < end ? values[row] : 0.0f;
            // Every lane adds all of them, so that the order is that of the rows; the zeros at the end change nothing.
#pragma unroll
            for (int i = 0; i < WARP; ++i) {
                sum += shuffle(value, i);
            }
        }
        if (lane_index() == 0) {
            sums[s] = mean != 0 && end > begin ? sum / float(end - begin) : sum;
        }
    }
}

/// dvalues[r] = dsums[s], divided by the number of rows when `mean` is 1.
KERNEL(128, segment_sum_bwd)(const float* dsums,  // (seqs)
                             const int* offsets,  // (seqs + 1)
                             float* dvalues,      // (rows)
                             int seqs, int mean) {
    for (long long s = warp_of_grid(); s < seqs; s += warps_of_grid()) {
        int begin = offsets[s], end = offsets[s + 1];
        float share = mean != 0 ? dsums[s] / float(max_of(end - begin, 1)) : dsums[s];
        for (int row = begin + lane_index(); row < end; row += WARP) {
            dvalues[row] = share;
        }
    }
}

/// score[s] = hidden[rows[s]] weight.
template <class T>
KERNELS(128, reward_head_fwd, FOR(T: f32 bf16))(const T* hidden,  // (tokens, width)
                                                const T* weight,  // (width)
                                                const int* rows,  // (seqs)
                                                float* score,     // (seqs)
                                                int seqs, int width) {
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(hidden, width) && wide(weight, 0);
    for (long long s = warp_of_grid(); s < seqs; s += warps_of_grid()) {
        const T* row = hidden + (long long)rows[s] * width;
        float sum = 0.0f;
        for (int h = lane_index() * N; h < width; h += WARP * N) {
            int valid = min_of(N, width - h);
            float x[N], w[N];
            load_piece(x, row + h, valid, by_lane);
            load_piece(w, weight + h, valid, by_lane);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum += x[i] * w[i];
            }
        }
        sum = reduce_warp(sum, Add{});
        if (lane_index() == 0) {
            score[s] = sum;
        }
    }
}

/// dhidden[rows[s]] = dscore[s] weight; the other rows are zero before.
template <class T>
KERNELS(128, reward_head_bwd, FOR(T: f32 bf16))(const T* weight,      // (width)
                                                const int* rows,      // (seqs)
                                                const float* dscore,  // (seqs)
                                                T* dhidden,           // (tokens, width)
                                                int seqs, int width) {
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(dhidden, width) && wide(weight, 0);
    for (long long s = warp_of_grid(); s < seqs; s += warps_of_grid()) {
        T* row = dhidden + (long long)rows[s] * width;
        for (int h = lane_index() * N; h < width; h += WARP * N) {
            int valid = min_of(N, width - h);
            float w[N];
            load_piece(w, weight + h, valid, by_lane);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                w[i] *= dscore[s];
            }
            store_piece(row + h, w, valid, by_lane);
        }
    }
}

/// dweight (+)= sum of dscore[s] hidden[rows[s]]; a sequence whose gradient is 0 adds nothing, whatever its row holds.
template <class T>
KERNELS(128, reward_head_weight, FOR(T: f32 bf16))(const T* hidden,      // (tokens, width)
                                                   const int* rows,      // (seqs)
                                                   const float* dscore,  // (seqs)
                                                   float* dweight,       // (width)
                                                   int seqs, int width, int add) {
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(hidden, width) && wide(dweight, width);
    for (long long piece = warp_of_grid(); piece < ceil_div(width, WARP * N); piece += warps_of_grid()) {
        int h = (int(piece) * WARP + lane_index()) * N;
        if (h >= width) {
            continue;
        }
        int valid = min_of(N, width - h);
        float sum[N] = {};
        if (add != 0) {
            load_piece(sum, dweight + h, valid, by_lane);
        }
        for (int s = 0; s < seqs; ++s) {
            float factor = dscore[s], x[N];
            if (factor == 0.0f) {
                continue;
            }
            load_piece(x, hidden + (long long)rows[s] * width + h, valid, by_lane);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum[i] += factor * x[i];
            }
        }
        store_piece(dweight + h, sum, valid, by_lane);
    }
}
