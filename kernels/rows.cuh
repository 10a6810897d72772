// Rows taken in pieces of N numbers, as f32: whole pieces by 16-byte accesses where the operands allow that, else
// element by element. Either way a thread holds the same numbers, so that what follows is the same arithmetic in the
// same order.
#pragma once

#include "vec.cuh"

/// x <- N elements of T from `from` on, of which `valid` exist; the others become `absent` and are not read. With
/// `vectorised` all exist and `from` is aligned to 16 bytes.
template <int N, class T>
DEVICE void load_elements(float (&x)[N], const T* from, int valid, bool vectorised, float absent = 0.0f) {
    constexpr int L = VEC_ELEMENTS<T>;
    static_assert(N % L == 0, "whole lanes");
    if (vectorised) {
#pragma unroll
        for (int first = 0; first < N; first += L) {
            Floats<T> lane = load_floats(from + first);
#pragma unroll
            for (int i = 0; i < L; ++i) {
                x[first + i] = lane.x[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            x[i] = i < valid ? to_float(from[i]) : absent;
        }
    }
}

/// The reverse of load_elements: rounds to T and writes the elements that exist.
template <int N, class T>
DEVICE void store_elements(T* to, const float (&x)[N], int valid, bool vectorised) {
    constexpr int L = VEC_ELEMENTS<T>;
    static_assert(N % L == 0, "whole lanes");
    if (vectorised) {
#pragma unroll
        for (int first = 0; first < N; first += L) {
            Floats<T> lane;
#pragma unroll
            for (int i = 0; i < L; ++i) {
                lane.x[i] = x[first + i];
            }
            store_16(to + first, pack(lane).word);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i < valid) {
                to[i] = from_float<T>(x[i]);
            }
        }
    }
}

/// A warp's number among all warps of the grid, and how many there are; for units of work that a warp takes by stride.
DEVICE long long global_warp() {
    return (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
}

DEVICE long long global_warps() {
    return (long long)gridDim.x * (blockDim.x / WARP);
}
