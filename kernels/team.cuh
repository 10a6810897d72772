// Rows that a team of threads shares: a warp, or a whole block. Thread `lane` of a team has the
// 16-byte vectors lane, lane + TEAM, ... of the row. The first HELD of them stay in registers from
// one pass over the row to the next; a longer row is read again from there on. All loads of a row
// start before the first of them is used, so a warp has HELD x 512 bytes of every operand in flight.
#pragma once

#include "rows.cuh"

/// Vectors of a row that a thread keeps in registers.
EXPORT constexpr int HELD = 4;

/// First element of vector `v` of a thread.
template <class T, int TEAM>
DEVICE int vector_start(int v, int lane) {
    return (v * TEAM + lane) * VEC_ELEMENTS<T>;
}

/// Loads the held vectors; elements after the row are 0.
template <int TEAM, class T>
DEVICE void load_held(Vec16 (&held)[HELD], const T* row, int lane, int width, bool vectorised) {
    constexpr int N = VEC_ELEMENTS<T>;
#pragma unroll
    for (int v = 0; v < HELD; ++v) {
        int h = vector_start<T, TEAM>(v, lane);
        held[v] = {};
        if (vectorised) {
            if (h < width) {
                held[v] = load_vec(row + h);
            }
        } else {
            Floats<T> elements;
            load_elements(elements.x, row + h, min_of(N, width - h), false);
            held[v] = pack(elements);
        }
    }
}
