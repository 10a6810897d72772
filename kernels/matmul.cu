// Linear layers: y = x weightᵀ + bias, dx = dy weight, dweight = dyᵀ x, on tensor cores (tile.cuh).
//
// A block takes tiles of the result by stride, tiles of one band of columns after another, so that the blocks at work share
// columns. Cost: 2 m n k FLOPs; operands are read once for every tile they touch. Nothing is refused: sizes off the tile are
// cut, rows off 16 bytes go element by element.
#include "common.cuh"
#include "tile.cuh"

/// C (m, n) = or += A B (+ bias). A and B as described in tile.cuh.
template <class T, class Out, bool A_K_MAJOR, bool B_K_MAJOR>
DEVICE void matmul(const Source<T>& a, const Source<T>& b, const T* bias, Out* c, int m, int n, int k, int add) {
    using P = Product<T, A_K_MAJOR, B_K_MAJOR>;
    DYNAMIC_SHARED(shared);
    bool by_lane = wide(c, n);
    int down = ceil_div(m, P::ROWS), across = ceil_div(n, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // The stages are free: every thread is done with the tile before.
        sync_block();
        P product;
        product.compute(shared, a, b, row, column, k);
        each_eight(product, [&](int r, int j, float(&values)[8]) {
            if (row + r >= m) {
                return;
            }
            if (bias != nullptr) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    values[i] += column + j + i < n ? to_float(bias[column + j + i]) : 0.0f;
                }
            }
            store_eight(c + 1LL * (row + r) * n, column + j, n, by_lane, add != 0, values);
        });
    }
}

template <class T>
DEVICE void linear_fwd(const T* x, const T* weight, const T* bias, T* y, int tokens, int inputs, int outputs) {
    matmul<T, T, true, true>(Source<T>::of(x, tokens, inputs), Source<T>::of(weight, outputs, inputs), bias, y, tokens,
                             outputs, inputs, 0);
}

template <class T>
DEVICE void linear_bwd_input(const T* dy, const T* weight, T* dx, int tokens, int inputs, int outputs, int add) {
    matmul<T, T, true, false>(Source<T>::of(dy, tokens, outputs), Source<T>::of(weight, outputs, inputs), nullptr, dx,
                              tokens, inputs, outputs, add);
}

template <class T>
DEVICE void linear_bwd_weight(const T* dy, const T* x, float* dweight, int tokens, int inputs, int outputs, int add) {
    matmul<T, float, false, false>(Source<T>::of(dy, tokens, outputs), Source<T>::of(x, tokens, inputs), nullptr, dweight,
                                   outputs, inputs, tokens, add);
}

// shared: Product::SHARED_BYTES, 48 KiB.
KERNEL(256, linear_fwd_f32)(const float* x,       // (tokens, inputs)
                            const float* weight,  // (outputs, inputs)
                            const float* bias,    // (outputs), may be absent
                            float* y,             // (tokens, outputs)
                            int tokens, int inputs, int outputs) {
    linear_fwd(x, weight, bias, y, tokens, inputs, outputs);
}

KERNEL(256, linear_fwd_bf16)(const bf16* x, const bf16* weight, const bf16* bias, bf16* y, int tokens, int inputs,
                             int outputs) {
    linear_fwd(x, weight, bias, y, tokens, inputs, outputs);
}

KERNEL(256, linear_bwd_input_f32)(const float* dy,      // (tokens, outputs)
                                  const float* weight,  // (outputs, inputs)
                                  float* dx,            // (tokens, inputs)
                                  int tokens, int inputs, int outputs, int add) {
    linear_bwd_input(dy, weight, dx, tokens, inputs, outputs, add);
}

KERNEL(256, linear_bwd_input_bf16)(const bf16* dy, const bf16* weight, bf16* dx, int tokens, int inputs, int outputs,
                                   int add) {
    linear_bwd_input(dy, weight, dx, tokens, inputs, outputs, add);
}

KERNEL(256, linear_bwd_weight_f32)(const float* dy,  // (tokens, outputs)
                                   const float* x,   // (tokens, inputs)
                                   float* dweight,   // (outputs, inputs)
                                   int tokens, int inputs, int outputs, int add) {
    linear_bwd_weight(dy, x, dweight, tokens, inputs, outputs, add);
}

KERNEL(256, linear_bwd_weight_bf16)(const bf16* dy, const bf16* x, float* dweight, int tokens, int inputs, int outputs,
                                    int add) {
    linear_bwd_weight(dy, x, dweight, tokens, inputs, outputs, add);
}
