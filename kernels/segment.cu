// Row values to sequence values: sum or mean over a sequence's rows, and the scalar reward head on
// its last row.
//
//   segment_sum_fwd:     sums[s] = sum or mean of values[offsets[s] .. offsets[s + 1]]
//   segment_sum_bwd:     dvalues[r] = dsums[s], or dsums[s] / number of rows
//   reward_head_fwd:     score[s] = hidden[rows[s]] · weight
//   reward_head_bwd:     dhidden[rows[s]] = dscore[s] weight
//   reward_head_weight:  dweight = or += sum over s of dscore[s] hidden[rows[s]]
//
// A warp takes sequences (or column chunks of the weight gradient) by stride. Departure from a
// tree-shaped warp reduction: segment_sum_fwd adds rows in ascending order, so a sum does not
// depend on how its rows fall on lanes. Sums over sequences are ascending too, with one owner per
// column and no atomics. The batch packer guarantees that offsets and rows are in range and that
// rows are distinct. Cost: every operand is moved once.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

/// Sum of each sequence's values, divided by their number if `mean` is 1; 0 without rows.
KERNEL(128, segment_sum_fwd)(const float* values,  // (rows)
                             const int* offsets,   // (seqs + 1)
                             float* sums,          // (seqs)
                             int seqs, int mean) {
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        int begin = offsets[s], end = offsets[s + 1];
        float sum = 0.0f;
        for (int first = begin; first < end; first += WARP) {
            int row = first + lane_index();
            float value = row < end ? values[row] : 0.0f;
            // Every lane adds all values in row order; the zeros at the end do not change the sum.
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

/// Gradient of segment_sum_fwd: dvalues[r] = dsums[s], divided by the number of rows if `mean` is
/// 1.
KERNEL(128, segment_sum_bwd)(const float* dsums,  // (seqs)
                             const int* offsets,  // (seqs + 1)
                             float* dvalues,      // (rows)
                             int seqs, int mean) {
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        int begin = offsets[s], end = offsets[s + 1];
        float share = mean != 0 ? dsums[s] / float(max_of(end - begin, 1)) : dsums[s];
        for (int row = begin + lane_index(); row < end; row += WARP) {
            dvalues[row] = share;
        }
    }
}

/// score[s] = hidden[rows[s]] · weight.
template <class T>
KERNELS(128, reward_head_fwd, FOR(T: f32 bf16))(const T* hidden,  // (tokens, width)
                                                const T* weight,  // (width)
                                                const int* rows,  // (seqs)
                                                float* score,     // (seqs)
                                                int seqs, int width) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(hidden, width) && vec_aligned(weight, 0);
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        const T* row = hidden + (long long)rows[s] * width;
        float sum = 0.0f;
        for (int h = lane_index() * N; h < width; h += WARP * N) {
            int valid = min_of(N, width - h);
            float x[N], w[N];
            load_elements(x, row + h, valid, vectorised);
            load_elements(w, weight + h, valid, vectorised);
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

/// dhidden[rows[s]] = dscore[s] weight. Other rows are not written: the caller zeroes them before.
template <class T>
KERNELS(128, reward_head_bwd, FOR(T: f32 bf16))(const T* weight,      // (width)
                                                const int* rows,      // (seqs)
                                                const float* dscore,  // (seqs)
                                                T* dhidden,           // (tokens, width)
                                                int seqs, int width) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(dhidden, width) && vec_aligned(weight, 0);
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        T* row = dhidden + (long long)rows[s] * width;
        for (int h = lane_index() * N; h < width; h += WARP * N) {
            int valid = min_of(N, width - h);
            float w[N];
            load_elements(w, weight + h, valid, vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                w[i] *= dscore[s];
            }
            store_elements(row + h, w, valid, vectorised);
        }
    }
}

/// dweight = or += sum of dscore[s] hidden[rows[s]]. A sequence with dscore 0 is skipped, even if
/// its row is not finite.
template <class T>
KERNELS(128, reward_head_weight, FOR(T: f32 bf16))(const T* hidden,      // (tokens, width)
                                                   const int* rows,      // (seqs)
                                                   const float* dscore,  // (seqs)
                                                   float* dweight,       // (width)
                                                   int seqs, int width, int add) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(hidden, width) && vec_aligned(dweight, width);
    for (long long chunk = global_warp(); chunk < ceil_div(width, WARP * N); chunk += global_warps()) {
        int h = (int(chunk) * WARP + lane_index()) * N;
        if (h >= width) {
            continue;
        }
        int valid = min_of(N, width - h);
        float sum[N] = {};
        if (add != 0) {
            load_elements(sum, dweight + h, valid, vectorised);
        }
        for (int s = 0; s < seqs; ++s) {
            float factor = dscore[s], x[N];
            if (factor == 0.0f) {
                continue;
            }
            load_elements(x, hidden + (long long)rows[s] * width + h, valid, vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum[i] += factor * x[i];
            }
        }
        store_elements(dweight + h, sum, valid, vectorised);
    }
}
