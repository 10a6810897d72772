// Bias gradient: column sums of dy over slices of tokens. sum_slices.cu adds the slices.
//
//   for each (slice of BIAS_SLICE tokens, column chunk), one per warp, grid-stride loop:
//     slices[slice][column] = sum of dy over the tokens of the slice, ascending; one lane per column
//
// Departure from a single column sum: two passes, so that few columns still fill the GPU, without
// atomics. Cost: dy is read once; 4 / BIAS_SLICE bytes are written per element.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// Tokens of a slice.
EXPORT constexpr int BIAS_SLICE = 32;

/// slices[k][o] = sum over the tokens of slice k of dy[t][o].
template <class T>
KERNELS(128, bias_bwd, FOR(T: f32 bf16))(const T* dy,    // (tokens, outputs)
                                         float* slices,  // (ceil(tokens / BIAS_SLICE), outputs)
                                         int tokens, int outputs) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(dy, outputs) && vec_aligned(slices, outputs);
    int chunks = ceil_div(outputs, WARP * N);
    long long units = (long long)ceil_div(tokens, BIAS_SLICE) * chunks;
    for (long long unit = global_warp(); unit < units; unit += global_warps()) {
        int slice = int(unit / chunks);
        int o = (int(unit % chunks) * WARP + lane_index()) * N;
        if (o >= outputs) {
            continue;
        }
        int valid = min_of(N, outputs - o);
        float sum[N] = {};
        int begin = slice * BIAS_SLICE, end = min_of(tokens, begin + BIAS_SLICE);
#pragma unroll 8
        for (int token = begin; token < end; ++token) {
            float row[N];
            load_elements(row, dy + (long long)token * outputs + o, valid, vectorised);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum[i] += row[i];
            }
        }
        store_elements(slices + (long long)slice * outputs + o, sum, valid, vectorised);
    }
}
