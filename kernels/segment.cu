// Sum or mean of row values over the rows of each sequence:
//
//   segment_sum_fwd:  sums[s] = sum or mean of values[offsets[s] .. offsets[s + 1]]
//   segment_sum_bwd:  dvalues[r] = dsums[s], or dsums[s] / number of rows
//
// With tail_starts, the rows of s from tail_starts[s] on have weight alpha, also in the gradient.
//
// A warp processes sequences in a grid-stride loop. Departure from a tree-shaped warp reduction: segment_sum_fwd
// adds rows in ascending order, so a sum does not depend on the assignment of rows to lanes. The batch packer
// guarantees that offsets are in range. Cost: every operand is moved once.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// Number of rows of a sequence before its tail. Without tails it exceeds the length of every sequence.
DEVICE float rows_before_tail(const float* tail_starts, long long s) {
    return tail_starts == nullptr ? 3.0e38f : tail_starts[s];
}

/// Sum of each sequence's values, divided by their number if `mean` is 1; 0 without rows.
KERNEL(128, segment_sum_fwd)(const float* values,       // (rows)
                             const int* offsets,        // (seqs + 1)
                             const float* tail_starts,  // (seqs), may be null
                             float* sums,               // (seqs)
                             int seqs, int mean, float alpha) {
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        int begin = offsets[s], end = offsets[s + 1];
        float sum = 0.0f, whole = rows_before_tail(tail_starts, s);
        for (int first = begin; first < end; first += WARP) {
            int row = first + lane_index();
            float value = row < end ? values[row] * (float(row - begin) < whole ? 1.0f : alpha) : 0.0f;
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
KERNEL(128, segment_sum_bwd)(const float* dsums,        // (seqs)
                             const int* offsets,        // (seqs + 1)
                             const float* tail_starts,  // (seqs), may be null
                             float* dvalues,            // (rows)
                             int seqs, int mean, float alpha) {
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        int begin = offsets[s], end = offsets[s + 1];
        float share = mean != 0 ? dsums[s] / float(max_of(end - begin, 1)) : dsums[s];
        float whole = rows_before_tail(tail_starts, s);
        for (int row = begin + lane_index(); row < end; row += WARP) {
            dvalues[row] = float(row - begin) < whole ? share : share * alpha;
        }
    }
}
