// Rung 2: a warp for each element; its lanes walk along the rows.
//
//   lane i: sum over p = i, i + 32, ... of x[row, p] weight[column, p]
//   y[row, column] = sum over the lanes
//
// Adjacent lanes read adjacent elements, so a load of 64 bytes touches two sectors.
#include "common.cuh"
#include "counted.cuh"
#include "reduce.cuh"

KERNEL(256, product_coalesced)(const bf16* x,       // (tokens, inputs)
                               const bf16* weight,  // (outputs, inputs)
                               bf16* y,             // (tokens, outputs)
                               int tokens, int inputs, int outputs) {
    Counted<const bf16> a = x, b = weight;
    Counted<bf16> c = y;
    long long element = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (element >= (long long)tokens * outputs) {
        return;
    }
    int row = int(element / outputs), column = int(element % outputs);
    float sum = 0.0f;
    for (int p = lane_index(); p < inputs; p += WARP) {
        float left = to_float(a[(long long)row * inputs + p]);
        float right = to_float(b[(long long)column * inputs + p]);
        sum += left * right;
    }
    sum = reduce_warp(sum, Add{});
    if (lane_index() == 0) {
        c[(long long)row * outputs + column] = from_float<bf16>(sum);
    }
}
