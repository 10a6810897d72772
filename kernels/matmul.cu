// Linear layers: y = x weightᵀ + bias + residual, dx = dy weight, dweight = dyᵀ x, on tensor cores (tile.cuh); and the two
// products next to the gated activation (SwiGLU, arXiv 2002.05202) with the activation or its gradient as epilogue.
//
// Nothing is refused: sizes off the tile are cut, rows off 16 bytes go element by element. Cost: matmul.cuh.
#include "common.cuh"
#include "glu.cuh"
#include "matmul.cuh"
#include "patches.cuh"

template <class T>
KERNELS(256, linear_fwd, FOR(T: f32 bf16))(const T* x,         // (tokens, inputs)
                                           const T* weight,    // (outputs, inputs)
                                           const T* bias,      // (outputs), may be absent
                                           const T* residual,  // (tokens, outputs), may be absent; not y
                                           T* y,               // (tokens, outputs)
                                           int tokens, int inputs, int outputs) {
    matmul<T, T, true, true>(Source<T>::of(x, tokens, inputs), Source<T>::of(weight, outputs, inputs), bias, residual, y,
                             tokens, outputs, inputs, 0);
}

template <class T>
KERNELS(256, linear_bwd_input, FOR(T: f32 bf16))(const T* dy,      // (tokens, outputs)
                                                 const T* weight,  // (outputs, inputs)
                                                 T* dx,            // (tokens, inputs)
                                                 int tokens, int inputs, int outputs, int add) {
    matmul<T, T, true, false>(Source<T>::of(dy, tokens, outputs), Source<T>::of(weight, outputs, inputs), nullptr, nullptr,
                              dx, tokens, inputs, outputs, add);
}

/// dweight = or += dyᵀ x, and the norm of each warp's part of what is then stored.
template <class T>
KERNELS(256, linear_bwd_weight, FOR(T: f32 bf16))(const T* dy,     // (tokens, outputs)
                                                  const T* x,      // (tokens, inputs)
                                                  float* dweight,  // (outputs, inputs)
                                                  float* norms,    // of patches (patches.cuh), may be absent
                                                  int tokens, int inputs, int outputs, int add) {
    using P = Product<T, false, false>;
    bool by_lane = wide(dweight, inputs);
    double squares = 0.0;
    each_tile<T, false, false>(Source<T>::of(dy, tokens, outputs), Source<T>::of(x, tokens, inputs), outputs, inputs, tokens,
                               [&](int row, int column, float(&values)[8]) {
        if (row >= outputs) {
            return;
        }
        float* to = dweight + 1LL * row * inputs;
        if (add != 0) {
            float before[8];
            load_eight(before, to, column, inputs, by_lane);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] += before[i];
            }
        }
        store_eight(to, column, inputs, by_lane, false, values);
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

/// The element as it is stored.
template <class T>
DEVICE float rounded(float x) {
    return to_float(from_float<T>(x));
}

/// gate_up = x weightᵀ, where it is asked for, and act = silu(gate) up of what is stored of both.
template <class T>
KERNELS(256, linear_glu_fwd, FOR(T: f32 bf16))(const T* x,       // (tokens, inputs)
                                               const T* weight,  // (2 intermediate, inputs): gate, then up
                                               T* gate_up,       // (tokens, 2 intermediate), may be absent
                                               T* act,           // (tokens, intermediate)
                                               int tokens, int inputs, int intermediate) {
    bool by_lane = wide(gate_up, intermediate), act_by_lane = wide(act, intermediate);
    auto rows = GateUpRows<T>::of(weight, intermediate, inputs);
    each_tile<T, true, true>(Source<T>::of(x, tokens, inputs), rows, tokens, rows.rows, inputs,
                             [&](int row, int column, float(&values)[8]) {
        // Even lanes hold eight of the gate, the lanes behind them the same eight of the up projection.
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
            store_eight(half, first, intermediate, by_lane, false, values);
        }
        if (!up) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] = glu_value(values[i], other[i]);
            }
            store_eight(act + 1LL * row * intermediate, first, intermediate, act_by_lane, false, values);
        }
    });
}

/// dact = dy weight as it would be stored, and from it the gradient of gate and up.
template <class T>
KERNELS(256, linear_glu_bwd, FOR(T: f32 bf16))(const T* dy,       // (tokens, outputs)
                                               const T* weight,   // (outputs, intermediate)
                                               const T* gate_up,  // (tokens, 2 intermediate)
                                               T* dgate_up,       // (tokens, 2 intermediate)
                                               int tokens, int intermediate, int outputs) {
    bool by_lane = wide(gate_up, intermediate), out_by_lane = wide(dgate_up, intermediate);
    each_tile<T, true, false>(Source<T>::of(dy, tokens, outputs), Source<T>::of(weight, outputs, intermediate), tokens,
                              intermediate, outputs, [&](int row, int column, float(&values)[8]) {
        if (row >= tokens || column >= intermediate) {
            return;
        }
        const T* gates = gate_up + 2LL * row * intermediate;
        T* to = dgate_up + 2LL * row * intermediate;
        float gate[8], up[8];
        load_eight(gate, gates, column, intermediate, by_lane);
        load_eight(up, gates + intermediate, column, intermediate, by_lane);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            glu_gradient(rounded<T>(values[i]), gate[i], up[i]);
        }
        store_eight(to, column, intermediate, out_by_lane, false, gate);
        store_eight(to + intermediate, column, intermediate, out_by_lane, false, up);
    });
}

// shared: Product::SHARED_BYTES, 48 KiB.
