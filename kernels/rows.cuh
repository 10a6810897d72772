// Loads and stores of N elements as f32, dot products of rows, and work distribution over warps.
// Both access paths (16-byte and element-wise) give a thread the same elements, so that the
// arithmetic and its order are the same.
#pragma once

#include "reduce.cuh"
#include "vec.cuh"

/// x = N elements of T from `from` on. Only `valid` of them are read; the others become `padding`.
/// With `vectorised` all N are valid and `from` is aligned to 16 bytes.
template <int N, class T>
DEVICE void load_elements(float (&x)[N], const T* from, int valid, bool vectorised, float padding = 0.0f) {
    constexpr int L = VEC_ELEMENTS<T>;
    static_assert(N % L == 0, "whole 16-byte vectors");
    if (vectorised) {
#pragma unroll
        for (int first = 0; first < N; first += L) {
            Floats<T> vec = load_floats(from + first);
#pragma unroll
            for (int i = 0; i < L; ++i) {
                x[first + i] = vec.x[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            x[i] = i < valid ? to_float(from[i]) : padding;
        }
    }
}

/// As load_elements, but adds `offset` to each element: x = weight + offset, the factors of a norm.
template <int N, class T>
DEVICE void load_factors(float (&x)[N], const T* weight, int valid, bool vectorised, float offset) {
    load_elements(x, weight, valid, vectorised);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] += offset;
    }
}

/// Inverse of load_elements: rounds to T and stores the first `valid` elements.
template <int N, class T>
DEVICE void store_elements(T* to, const float (&x)[N], int valid, bool vectorised) {
    constexpr int L = VEC_ELEMENTS<T>;
    static_assert(N % L == 0, "whole 16-byte vectors");
    if (vectorised) {
#pragma unroll
        for (int first = 0; first < N; first += L) {
            Floats<T> vec;
#pragma unroll
            for (int i = 0; i < L; ++i) {
                vec.x[i] = x[first + i];
            }
            store_16(to + first, pack(vec).word);
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

/// Dot product of two rows by a warp; every lane gets the result. With `vectorised`, rows start and end at
/// multiples of 16 bytes. Copies x to `copy` if `copy` is not null.
template <class T>
DEVICE float dot_of_rows(const T* x, const T* w, int columns, bool vectorised, T* copy = nullptr) {
    constexpr int N = VEC_ELEMENTS<T>;
    float sum = 0.0f;
    for (int c = lane_index() * N; c < columns; c += WARP * N) {
        int valid = min_of(N, columns - c);
        float a[N], b[N];
        load_elements(a, x + c, valid, vectorised);
        load_elements(b, w + c, valid, vectorised);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            sum += a[i] * b[i];
        }
        if (copy != nullptr) {
            store_elements(copy + c, a, valid, vectorised);
        }
    }
    return reduce_warp(sum, Add{});
}

/// Index of the warp in the grid. A warp's work units start at this index, with a stride of global_warps().
DEVICE long long global_warp() {
    return (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
}

/// Number of warps in the grid.
DEVICE long long global_warps() {
    return (long long)gridDim.x * (blockDim.x / WARP);
}
