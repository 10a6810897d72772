// Rotary position embedding on fused qkv rows (RoPE, arXiv 2104.09864, half-split layout), in place:
//
//   (a, b) = (a cos - b sin, b cos + a sin); the backward negates sin
//
// A warp processes tokens in a grid-stride loop; every element depends only on its own inputs. The first
// `rotated` elements of a head, an even number, are rotated; the others are unchanged. Cost: every operand is
// moved once; the cos and sin tables come from cache.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

/// Rotates the first `heads` heads of each row of `width` elements: (a, b) = (a cos - b s, b cos +
/// a s) with s = direction sin.
template <bool VECTORISED, class T>
DEVICE void rope_rows(const int* positions, const float* cos, const float* sin, T* qkv, int tokens, int heads,
                      int head_dim, int rotated, int width, float direction) {
    constexpr int N = VEC_ELEMENTS<T>;
    int half = rotated / 2;
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
                                     const float* cos,      // (positions, rotated / 2)
                                     const float* sin,      // (positions, rotated / 2)
                                     T* qkv,                // (tokens, width), in place
                                     int tokens, int heads, int head_dim, int rotated, int width,
                                     float direction) {
    int half = rotated / 2;
    if (vec_aligned(qkv, half) && vec_aligned(qkv, head_dim) && vec_aligned(cos, half) && vec_aligned(sin, half)) {
        rope_rows<true>(positions, cos, sin, qkv, tokens, heads, head_dim, rotated, width, direction);
    } else {
        rope_rows<false>(positions, cos, sin, qkv, tokens, heads, head_dim, rotated, width, direction);
    }
}
