// Gradient of a bias: column sums of dy over slices of tokens, which sum_slices adds up.
//
// A warp takes units by stride; a unit is BIAS_SLICE tokens of one piece of the columns, added in ascending order by
// the lane that owns the column. Cost: dy is read once, 4 / BIAS_SLICE bytes are written for each of its elements.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// Tokens of a slice.
EXPORT constexpr int BIAS_SLICE = 64;

/// slices[k][o] = sum over the tokens of slice k of dy[t][o].
template <class T>
KERNELS(128, bias_bwd, FOR(T: f32 bf16))(const T* dy,    // (tokens, outputs)
                                         float* slices,  // (ceil(tokens / BIAS_SLICE), outputs)
                                         int tokens, int outputs) {
    constexpr int N = LANE_ELEMENTS<T>;
    bool by_lane = wide(dy, outputs) && wide(slices, outputs);
    int pieces = ceil_div(outputs, WARP * N);
    long long units = (long long)ceil_div(tokens, BIAS_SLICE) * pieces;
    for (long long unit = warp_of_grid(); unit < units; unit += warps_of_grid()) {
        int slice = int(unit / pieces);
        int o = (int(unit % pieces) * WARP + lane_index()) * N;
        if (o >= outputs) {
            continue;
        }
        int valid = min_of(N, outputs - o);
        float sum[N] = {};
        int begin = slice * BIAS_SLICE, end = min_of(tokens, begin + BIAS_SLICE);
#pragma unroll 4
        for (int token = begin; token < end; ++token) {
            float row[N];
            load_piece(row, dy + (long long)token * outputs + o, valid, by_lane);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum[i] += row[i];
            }
        }
        store_piece(slices + (long long)slice * outputs + o, sum, valid, by_lane);
    }
}
