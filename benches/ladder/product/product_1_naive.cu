// Rung 1: a thread for each element of y = x weightᵀ.
//
//   y[row, column] = sum over p of x[row, p] weight[column, p]
//
// The lanes of a warp compute adjacent rows, so each lane reads a different row of x. A load touches 32 sectors
// of 32 bytes for 64 bytes of data.
#include "common.cuh"
#include "counted.cuh"

KERNEL(256, product_naive)(const bf16* x,       // (tokens, inputs)
                           const bf16* weight,  // (outputs, inputs)
                           bf16* y,             // (tokens, outputs)
                           int tokens, int inputs, int outputs) {
    Counted<const bf16> a = x, b = weight;
    Counted<bf16> c = y;
    long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= (long long)tokens * outputs) {
        return;
    }
    int row = int(element % tokens), column = int(element / tokens);
    float sum = 0.0f;
    for (int p = 0; p < inputs; ++p) {
        float left = to_float(a[(long long)row * inputs + p]);
        float right = to_float(b[(long long)column * inputs + p]);
        sum += left * right;
    }
    c[(long long)row * outputs + column] = from_float<bf16>(sum);
}
