// RoPE (rope.cu) of a row of accumulators: a part of the epilogues of the QKV GEMM (linear_rope_sm90.cu) and
// of attention's gradients (attention_bwd_sm90.cu, attention_bwd_kv_sm90.cu). A thread of a wgmma owns the
// elements i and i + HEAD / 2 of a head, so it rotates them without other threads.
#pragma once

#include "vec.cuh"

/// Operands of a rotation of whole heads.
struct RopeTables {
    const int* positions;  // (tokens), or null for no rotation
    const float* cos;      // (positions, HEAD / 2)
    const float* sin;      // (positions, HEAD / 2)
};

/// Cosines and sines of the thread's columns in a row of accumulators: 8 j + 2 (thread % 4), and the next one.
template <int HEAD>
struct RopeAngles {
    static_assert(HEAD % 16 == 0, "the halves of a head are whole chunks of eight columns");
    static constexpr int CHUNKS = HEAD / 16;
    float cos[2 * CHUNKS], sin[2 * CHUNKS];

    /// Loads the angles of a position.
    DEVICE void load(const RopeTables& tables, int position, int thread) {
        long long first = (long long)position * (HEAD / 2) + thread % 4 * 2;
#pragma unroll
        for (int j = 0; j < CHUNKS; ++j) {
            load_two(cos + 2 * j, tables.cos + first + 8 * j);
            load_two(sin + 2 * j, tables.sin + first + 8 * j);
        }
    }

    /// Rotates the thread's part of a row of a head. `head` is the thread's accumulator of column 0 in the
    /// first of its two rows, and `half` selects the row. `direction` is 1, or -1 for the gradient.
    DEVICE void rotate(float* head, int half, float direction) const {
#pragma unroll
        for (int j = 0; j < CHUNKS; ++j) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float &a = head[4 * j + 2 * half + side], &b = head[4 * (j + CHUNKS) + 2 * half + side];
                float x = a, y = b, c = cos[2 * j + side], s = direction * sin[2 * j + side];
                // Written as FMAs, so that every kernel rounds alike.
                a = fmaf(x, c, -(y * s));
                b = fmaf(y, c, x * s);
            }
        }
    }
};
