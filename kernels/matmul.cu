// Linear layers: y = x weightᵀ + bias, dx = dy weight, dweight = dyᵀ x, on tensor cores (tile.cuh).
//
// Nothing is refused: sizes off the tile are cut, rows off 16 bytes go element by element. Cost: matmul.cuh.
#include "common.cuh"
#include "matmul.cuh"

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
