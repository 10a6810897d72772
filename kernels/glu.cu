// The gated activations SwiGLU and GeGLU (arXiv 2002.05202) as separate kernels, and SwiGLU in the epilogue
// of the GEMMs around it:
//
//   glu_fwd         act = silu(gate) * up, or gelu(gate) * up
//   glu_bwd         dgate, dup from dact, gate, up (glu.cuh)
//   linear_glu_fwd  gate_up = x weightᵀ; epilogue: act = silu(gate) * up
//   linear_glu_bwd  dact = dy weight; epilogue: dgate, dup from dact, gate, up
//
// In glu_fwd and glu_bwd, a block processes tokens in a grid-stride loop, and every operand is moved once. The
// GEMMs (linear.cuh) accept all sizes: partial tiles are masked, and rows that are not multiples of 16 bytes are
// accessed element by element. The results have the same bits as the GEMM and the activation in separate kernels.
#include "common.cuh"
#include "gelu.cuh"
#include "glu.cuh"
#include "linear.cuh"
#include "rows.cuh"

constexpr int GLU_THREADS = 128;

/// Activation of the gate.
EXPORT enum Gate : int { SILU, GELU_ERF, GELU_TANH };

DEVICE bool is_known(Gate gate) {
    return gate == SILU || gate == GELU_ERF || gate == GELU_TANH;
}

/// act = silu(gate) * up, or gelu(gate) * up.
template <bool VECTORISED, bool GELU, class T>
DEVICE void glu_fwd_rows(const T* gate_up, T* act, int tokens, int intermediate, bool tanh_form) {
    constexpr int N = VEC_ELEMENTS<T>;
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* gates = gate_up + token * 2 * intermediate;
        T* to = act + token * intermediate;
        for (int i = int(threadIdx.x) * N; i < intermediate; i += GLU_THREADS * N) {
            int valid = min_of(N, intermediate - i);
            float gate[N], up[N];
            load_elements(gate, gates + i, valid, VECTORISED);
            load_elements(up, gates + intermediate + i, valid, VECTORISED);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                gate[j] = GELU ? gate[j] * gelu_cumulative(gate[j], tanh_form) * up[j] : glu_value(gate[j], up[j]);
            }
            store_elements(to + i, gate, valid, VECTORISED);
        }
    }
}

template <class T>
KERNELS(128, glu_fwd, FOR(T: f32 bf16))(const T* gate_up,  // (tokens, 2 intermediate): gate, then up
                                        T* act,            // (tokens, intermediate)
                                        int tokens, int intermediate, Gate gate) {
    if (!is_known(gate)) {
        trap("glu_fwd: an unknown activation");
    }
    bool vectorised = vec_aligned(gate_up, intermediate) && vec_aligned(act, intermediate);
    if (gate != SILU && vectorised) {
        glu_fwd_rows<true, true>(gate_up, act, tokens, intermediate, gate == GELU_TANH);
    } else if (gate != SILU) {
        glu_fwd_rows<false, true>(gate_up, act, tokens, intermediate, gate == GELU_TANH);
    } else if (vectorised) {
        glu_fwd_rows<true, false>(gate_up, act, tokens, intermediate, false);
    } else {
        glu_fwd_rows<false, false>(gate_up, act, tokens, intermediate, false);
    }
}

/// dgate and dup from dact, gate and up.
template <bool VECTORISED, bool GELU, class T>
DEVICE void glu_bwd_rows(const T* dact, const T* gate_up, T* dgate_up, int tokens, int intermediate, bool tanh_form) {
    constexpr int N = VEC_ELEMENTS<T>;
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* gates = gate_up + token * 2 * intermediate;
        const T* from = dact + token * intermediate;
        T* to = dgate_up + token * 2 * intermediate;
        for (int i = int(threadIdx.x) * N; i < intermediate; i += GLU_THREADS * N) {
            int valid = min_of(N, intermediate - i);
            float gate[N], up[N], d[N];
            load_elements(gate, gates + i, valid, VECTORISED);
            load_elements(up, gates + intermediate + i, valid, VECTORISED);
            load_elements(d, from + i, valid, VECTORISED);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (GELU) {
                    float dgate = d[j] * up[j] * gelu_slope(gate[j], tanh_form);
                    up[j] = d[j] * (gate[j] * gelu_cumulative(gate[j], tanh_form));
                    gate[j] = dgate;
                } else {
                    glu_gradient(d[j], gate[j], up[j]);
                }
            }
            store_elements(to + i, gate, valid, VECTORISED);
            store_elements(to + intermediate + i, up, valid, VECTORISED);
        }
    }
}

template <class T>
KERNELS(128, glu_bwd, FOR(T: f32 bf16))(const T* dact,     // (tokens, intermediate)
                                        const T* gate_up,  // (tokens, 2 intermediate)
                                        T* dgate_up,       // (tokens, 2 intermediate)
                                        int tokens, int intermediate, Gate gate) {
    if (!is_known(gate)) {
        trap("glu_bwd: an unknown activation");
    }
    bool vectorised =
        vec_aligned(gate_up, intermediate) && vec_aligned(dact, intermediate) && vec_aligned(dgate_up, intermediate);
    if (gate != SILU && vectorised) {
        glu_bwd_rows<true, true>(dact, gate_up, dgate_up, tokens, intermediate, gate == GELU_TANH);
    } else if (gate != SILU) {
        glu_bwd_rows<false, true>(dact, gate_up, dgate_up, tokens, intermediate, gate == GELU_TANH);
    } else if (vectorised) {
        glu_bwd_rows<true, false>(dact, gate_up, dgate_up, tokens, intermediate, false);
    } else {
        glu_bwd_rows<false, false>(dact, gate_up, dgate_up, tokens, intermediate, false);
    }
}

/// x rounded to the storage type.
template <class T>
DEVICE float rounded(float x) {
    return to_float(from_float<T>(x));
}

/// gate_up = x weightᵀ (stored if not null), act = silu(gate) * up, computed from the rounded values.
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
