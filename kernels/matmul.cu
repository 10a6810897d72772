// Linear layers on tensor cores (tile.cuh), and the GEMMs fused with the gated activation (SwiGLU,
// arXiv 2002.05202):
//
//   linear_fwd         y = x weightᵀ + bias + residual
//   linear_bwd_input   dx = or += dy weight
//   linear_bwd_weight  dweight = or += dyᵀ x, and patch norms of the stored values
//   linear_glu_fwd     gate_up = x weightᵀ; epilogue: act = silu(gate) up
//   linear_glu_bwd     dact = dy weight; epilogue: dgate_up from dact, gate, up
//
// Accepts all sizes: partial tiles are masked, and rows that are not multiples of 16 bytes are
// accessed element by element. Cost: matmul.cuh.
#include "common.cuh"
#include "glu.cuh"
#include "matmul.cuh"
#include "patches.cuh"

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

/// dweight = or += dyᵀ x, and the norm of the stored values of each warp tile.
template <class T>
KERNELS(256, linear_bwd_weight, FOR(T: f32 bf16))(const T* dy,     // (tokens, outputs)
                                                  const T* x,      // (tokens, inputs)
                                                  float* dweight,  // (outputs, inputs)
                                                  float* norms,    // of patches (patches.cuh), may be null
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

/// x rounded to the storage type.
template <class T>
DEVICE float rounded(float x) {
    return to_float(from_float<T>(x));
}

/// gate_up = x weightᵀ (stored if not null), act = silu(gate) up from the rounded gate and up.
template <class T>
KERNELS(256, linear_glu_fwd, FOR(T: f32 bf16))(const T* x,       // (tokens, inputs)
                                               const T* weight,  // (2 intermediate, inputs): gate, then up
                                               T* gate_up,       // (tokens, 2 intermediate), may be null
                                               T* act,           // (tokens, intermediate)
                                               int tokens, int inputs, int intermediate) {
    bool vectorised = vec_aligned(gate_up, intermediate), act_vectorised = vec_aligned(act, intermediate);
    auto rows = GateUpView<T>::of(weight, intermediate, inputs);
    for_each_tile<T, true, true>(MatrixView<T>::of(x, tokens, inputs), rows, tokens, rows.rows, inputs,
                                 [&](int row, int column, float(&values)[8]) {
        // Even lanes hold eight elements of the gate, the next odd lanes the same eight of the up
        // projection (GateUpView).
        bool up = column / 8 % 2 != 0;
        int first = column / 16 * 8;
        float other[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            values[i] = rounded<T>(values[i]);
            other[i] = shuffle_xor(values[i], 1);
        }
        if (row >= tokens || first >= intermediate) {
            return;
        }
        if (gate_up != nullptr) {
            T* half = gate_up + (2LL * row + (up ? 1 : 0)) * intermediate;
            store_eight(half, first, intermediate, vectorised, false, values);
        }
        if (!up) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] = glu_value(values[i], other[i]);
            }
            store_eight(act + 1LL * row * intermediate, first, intermediate, act_vectorised, false, values);
        }
    });
}

/// dact = dy weight, rounded to the storage type; dgate_up from dact, gate and up.
template <class T>
KERNELS(256, linear_glu_bwd, FOR(T: f32 bf16))(const T* dy,       // (tokens, outputs)
                                               const T* weight,   // (outputs, intermediate)
                                               const T* gate_up,  // (tokens, 2 intermediate)
                                               T* dgate_up,       // (tokens, 2 intermediate)
                                               int tokens, int intermediate, int outputs) {
    bool vectorised = vec_aligned(gate_up, intermediate), out_vectorised = vec_aligned(dgate_up, intermediate);
    for_each_tile<T, true, false>(
        MatrixView<T>::of(dy, tokens, outputs), MatrixView<T>::of(weight, outputs, intermediate), tokens,
        intermediate, outputs, [&](int row, int column, float(&values)[8]) {
        if (row >= tokens || column >= intermediate) {
            return;
        }
        const T* gates = gate_up + 2LL * row * intermediate;
        T* to = dgate_up + 2LL * row * intermediate;
        float gate[8], up[8];
        load_eight(gate, gates, column, intermediate, vectorised);
        load_eight(up, gates + intermediate, column, intermediate, vectorised);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            glu_gradient(rounded<T>(values[i]), gate[i], up[i]);
        }
        store_eight(to, column, intermediate, out_vectorised, false, gate);
        store_eight(to + intermediate, column, intermediate, out_vectorised, false, up);
    });
}
