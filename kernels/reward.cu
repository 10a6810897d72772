// The scalar reward head, on the last row of each sequence:
//
//   reward_head_fwd:     score[s] = hidden[rows[s]] · weight
//   reward_head_bwd:     dhidden[rows[s]] = dscore[s] weight
//   reward_head_weight:  dweight (+)= sum over s of dscore[s] hidden[rows[s]]
//
// A warp processes sequences (or column chunks of the weight gradient) in a grid-stride loop. Sums over sequences
// are in ascending order, with one owner per column and no atomics. The batch packer guarantees that rows are in
// range and distinct. Cost: every operand is moved once.
#include "common.cuh"
#include "reduce.cuh"
#include "rows.cuh"

/// score[s] = hidden[rows[s]] · weight.
template <class T>
KERNELS(128, reward_head_fwd, FOR(T: f32 bf16))(const T* hidden,  // (tokens, width)
                                                const T* weight,  // (width)
                                                const int* rows,  // (seqs)
                                                float* score,     // (seqs)
                                                int seqs, int width) {
    bool vectorised = vec_aligned(hidden, width) && vec_aligned(weight, 0);
    for (long long s = global_warp(); s < seqs; s += global_warps()) {
        float sum = dot_of_rows(hidden + (long long)rows[s] * width, weight, width, vectorised);
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

/// dweight (+)= sum of dscore[s] hidden[rows[s]]. A sequence with dscore 0 is skipped, even if
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
