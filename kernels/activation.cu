// Rotary positions on fused rows (RoPE, arXiv 2104.09864, half-split layout) and the gated activation (SwiGLU, arXiv
// 2002.05202), forward and backward.
//
// A warp (rotation) or a block (activation) takes tokens by stride; every element depends on its own inputs alone.
// head_dim is even. Cost: every operand is moved once; the tables of angles come from cache.
#include "common.cuh"
#include "glu.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// (a, b) <- (a cos - b s, b cos + a s) with s = direction sin, for the first `heads` heads of a row of `width`
/// elements.
template <bool BY_LANE, class T>
DEVICE void rope_rows(const int* positions, const float* cos, const float* sin, T* qkv, int tokens, int heads,
                      int head_dim, int width, float direction) {
    constexpr int N = LANE_ELEMENTS<T>;
    int half = head_dim / 2;
    int pieces = ceil_div(half, N);
    for (long long token = warp_of_grid(); token < tokens; token += warps_of_grid()) {
        long long angles = (long long)positions[token] * half;
        T* row = qkv + token * width;
        for (int piece = lane_index(); piece < heads * pieces; piece += WARP) {
            int head = piece / pieces, i = (piece - head * pieces) * N;
            int valid = min_of(N, half - i);
            T* first = row + head * head_dim + i;
            float a[N], b[N], c[N], s[N];
            load_piece(a, first, valid, BY_LANE);
            load_piece(b, first + half, valid, BY_LANE);
            load_piece(c, cos + angles + i, valid, BY_LANE);
            load_piece(s, sin + angles + i, valid, BY_LANE);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                float x = a[j], y = b[j], sine = direction * s[j];
                a[j] = x * c[j] - y * sine;
                b[j] = y * c[j] + x * sine;
            }
            store_piece(first, a, valid, BY_LANE);
            store_piece(first + half, b, valid, BY_LANE);
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
    if (wide(qkv, half) && wide(cos, half) && wide(sin, half)) {
        rope_rows<true>(positions, cos, sin, qkv, tokens, heads, head_dim, width, direction);
    } else {
        rope_rows<false>(positions, cos, sin, qkv, tokens, heads, head_dim, width, direction);
    }
}

constexpr int GLU_THREADS = 128;

/// act = gate sigmoid(gate) up.
template <bool BY_LANE, class T>
DEVICE void glu_fwd_rows(const T* gate_up, T* act, int tokens, int intermediate) {
    constexpr int N = LANE_ELEMENTS<T>;
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* gates = gate_up + token * 2 * intermediate;
        T* to = act + token * intermediate;
        for (int i = int(threadIdx.x) * N; i < intermediate; i += GLU_THREADS * N) {
            int valid = min_of(N, intermediate - i);
            float gate[N], up[N];
            load_piece(gate, gates + i, valid, BY_LANE);
            load_piece(up, gates + intermediate + i, valid, BY_LANE);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                gate[j] = glu_value(gate[j], up[j]);
            }
            store_piece(to + i, gate, valid, BY_LANE);
        }
    }
}

template <class T>
KERNELS(128, glu_fwd, FOR(T: f32 bf16))(const T* gate_up,  // (tokens, 2 intermediate): gate, then up
                                        T* act,            // (tokens, intermediate)
                                        int tokens, int intermediate) {
    if (wide(gate_up, intermediate) && wide(act, intermediate)) {
        glu_fwd_rows<true>(gate_up, act, tokens, intermediate);
    } else {
        glu_fwd_rows<false>(gate_up, act, tokens, intermediate);
    }
}

/// dgate and dup from dact, gate and up.
template <bool BY_LANE, class T>
DEVICE void glu_bwd_rows(const T* dact, const T* gate_up, T* dgate_up, int tokens, int intermediate) {
    constexpr int N = LANE_ELEMENTS<T>;
    for (long long token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* gates = gate_up + token * 2 * intermediate;
        const T* from = dact + token * intermediate;
        T* to = dgate_up + token * 2 * intermediate;
        for (int i = int(threadIdx.x) * N; i < intermediate; i += GLU_THREADS * N) {
            int valid = min_of(N, intermediate - i);
            float gate[N], up[N], d[N];
            load_piece(gate, gates + i, valid, BY_LANE);
            load_piece(up, gates + intermediate + i, valid, BY_LANE);
            load_piece(d, from + i, valid, BY_LANE);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                glu_gradient(d[j], gate[j], up[j]);
            }
            store_piece(to + i, gate, valid, BY_LANE);
            store_piece(to + intermediate + i, up, valid, BY_LANE);
        }
    }
}

template <class T>
KERNELS(128, glu_bwd, FOR(T: f32 bf16))(const T* dact,     // (tokens, intermediate)
                                        const T* gate_up,  // (tokens, 2 intermediate)
                                        T* dgate_up,       // (tokens, 2 intermediate)
                                        int tokens, int intermediate) {
    if (wide(gate_up, intermediate) && wide(dact, intermediate) && wide(dgate_up, intermediate)) {
        glu_bwd_rows<true>(dact, gate_up, dgate_up, tokens, intermediate);
    } else {
        glu_bwd_rows<false>(dact, gate_up, dgate_up, tokens, intermediate);
    }
}
