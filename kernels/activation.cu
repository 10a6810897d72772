// Rotary position embedding on fused qkv rows (RoPE, arXiv 2104.09864, half-split layout), and the
// gated activation (SwiGLU, arXiv 2002.05202), forward and backward.
//
//   rope:    (a, b) = (a cos - b sin, b cos + a sin), in place; the backward negates sin
//   glu_fwd: act = silu(gate) up
//   glu_bwd: dgate, dup from dact, gate, up (glu.cuh)
//
// A warp (rope) or a block (glu) takes tokens by stride; every element depends only on its own
// inputs. head_dim is even. Cost: every operand is moved once; the cos and sin tables come from
// cache.
#include "common.cuh"
#include "glu.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// Rotates the first `heads` heads of each row of `width` elements: (a, b) = (a cos - b s, b cos +
/// a s) with s = direction sin.
template <bool VECTORISED, class T>
DEVICE void rope_rows(const int* positions, const float* cos, const float* sin, T* qkv, int tokens, int heads,
                      int head_dim, int width, float direction) {
    constexpr int N = VEC_ELEMENTS<T>;
    int half = head_dim / 2;
    int chunks = ceil_div(half, N);
    for (long long token = global_warp(); token < tokens; token += global_warps()) {
        long long angles = (long long)positions[token] * half;
        T* row = qkv + token * width;
        for (int chunk = lane_index(); chunk < heads * chunks; chunk += WARP) {
            int head = chunk / chunks, i = (chunk - head * chunks) * N;
            int valid = min_of(N, half - i);
            T* first = row + head * head_dim + i;
            float a[N], b[N], c[N], s[N];
            load_elements(a, first, valid, VECTORISED);
            load_elements(b, first + half, valid, VECTORISED);
            load_elements(c, cos + angles + i, valid, VECTORISED);
            load_elements(s, sin + angles + i, valid, VECTORISED);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                float x = a[j], y = b[j], sine = direction * s[j];
                a[j] = x * c[j] - y * sine;
                b[j] = y * c[j] + x * sine;
            }
            store_elements(first, a, valid, VECTORISED);
            store_elements(first + half, b, valid, VECTORISED);
        }
    }
}

template <class T>
KERNELS(128, rope, FOR(T: f32 bf16))(const int* positions,  // (tokens), below the rows of the tables
                                     const float* cos,      // (positions, head_dim / 2)
                                     const float* sin,      // (positions, head_dim / 2)
                                     T* qkv,                // (tokens, width), in place
                                     int tokens, int heads, int head_dim, int width, float direction) {
    int half = head_dim / 2;
    if (vec_aligned(qkv, half) && vec_aligned(cos, half) && vec_aligned(sin, half)) {
        rope_rows<true>(positions, cos, sin, qkv, tokens, heads, head_dim, width, direction);
    } else {
        rope_rows<false>(positions, cos, sin, qkv, tokens, heads, head_dim, width, direction);
    }
}

constexpr int GLU_THREADS = 128;

/// act = silu(gate) up.
template <bool VECTORISED, class T>
DEVICE void glu_fwd_rows(const T* gate_up, T* act, int tokens, int intermediate) {
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
                gate[j] = glu_value(gate[j], up[j]);
            }
            store_elements(to + i, gate, valid, VECTORISED);
        }
    }
}

template <class T>
KERNELS(128, glu_fwd, FOR(T: f32 bf16))(const T* gate_up,  // (tokens, 2 intermediate): gate, then up
                                        T* act,            // (tokens, intermediate)
                                        int tokens, int intermediate) {
    if (vec_aligned(gate_up, intermediate) && vec_aligned(act, intermediate)) {
        glu_fwd_rows<true>(gate_up, act, tokens, intermediate);
    } else {
        glu_fwd_rows<false>(gate_up, act, tokens, intermediate);
    }
}

/// dgate and dup from dact, gate and up.
template <bool VECTORISED, class T>
DEVICE void glu_bwd_rows(const T* dact, const T* gate_up, T* dgate_up, int tokens, int intermediate) {
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
                glu_gradient(d[j], gate[j], up[j]);
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
                                        int tokens, int intermediate) {
    if (vec_aligned(gate_up, intermediate) && vec_aligned(dact, intermediate) && vec_aligned(dgate_up, intermediate)) {
        glu_bwd_rows<true>(dact, gate_up, dgate_up, tokens, intermediate);
    } else {
        glu_bwd_rows<false>(dact, gate_up, dgate_up, tokens, intermediate);
    }
}
