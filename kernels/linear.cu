// Linear layers on tensor cores (tile.cuh):
//
//   linear_fwd         y = x weightᵀ + bias + residual
//   linear_bwd_input   dx (+)= dy weight
//   linear_bwd_weight  dweight (+)= dyᵀ x, and patch norms of the stored values (linear_patches.cuh)
//
// The kernels accept all sizes: partial tiles are masked, and rows that are not multiples of 16 bytes are
// accessed element by element. Cost: linear.cuh.
#include "common.cuh"
#include "linear.cuh"
#include "linear_patches.cuh"

template <class T>
KERNELS(256, linear_fwd, FOR(T: f32 bf16))(const T* x,         // (tokens, inputs)
                                           const T* weight,    // (outputs, inputs)
                                           const T* bias,      // (outputs), may be null
                                           const T* residual,  // (tokens, outputs), may be null; not y
                                           T* y,               // (tokens, outputs)
                                           int tokens, int inputs, int outputs) {
    matmul<T, T, true, true>(MatrixView<T>::of(x, tokens, inputs), MatrixView<T>::of(weight, outputs, inputs), bias,
                             residual, y, tokens, outputs, inputs, 0);
}

template <class T>
KERNELS(256, linear_bwd_input, FOR(T: f32 bf16))(const T* dy,      // (tokens, outputs)
                                                 const T* weight,  // (outputs, inputs)
                                                 T* dx,            // (tokens, inputs)
                                                 int tokens, int inputs, int outputs, int add) {
    matmul<T, T, true, false>(MatrixView<T>::of(dy, tokens, outputs), MatrixView<T>::of(weight, outputs, inputs),
                              nullptr, nullptr, dx, tokens, inputs, outputs, add);
}

/// dweight (+)= dyᵀ x, and the norm of the stored values of each warp tile.
template <class T>
KERNELS(256, linear_bwd_weight, FOR(T: f32 bf16))(const T* dy,     // (tokens, outputs)
                                                  const T* x,      // (tokens, inputs)
                                                  float* dweight,  // (outputs, inputs)
                                                  float* norms,    // of patches (linear_patches.cuh), may be null
                                                  int tokens, int inputs, int outputs, int add) {
    using P = BlockGemm<T, false, false>;
    bool vectorised = vec_aligned(dweight, inputs);
    double squares = 0.0;
    for_each_tile<T, false, false>(
        MatrixView<T>::of(dy, tokens, outputs), MatrixView<T>::of(x, tokens, inputs), outputs, inputs, tokens,
        [&](int row, int column, float(&values)[8]) {
        if (row >= outputs) {
            return;
        }
        float* to = dweight + 1LL * row * inputs;
        if (add != 0) {
            float before[8];
            load_eight(before, to, column, inputs, vectorised);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] += before[i];
            }
        }
        store_eight(to, column, inputs, vectorised, false, values);
        if (norms != nullptr) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                squares += column + i < inputs ? double(values[i]) * double(values[i]) : 0.0;
            }
        }
    }, [&](int row, int column) {
        if (norms != nullptr) {
            store_norm<P::WARP_ROWS, P::WARP_COLUMNS>(norms, outputs, inputs, row, column, squares);
        }
        squares = 0.0;
    });
}
