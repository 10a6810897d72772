// Rows that a team of threads shares. A team is a warp or a whole block. Thread `lane` of a team has the 16-byte
// vectors lane, lane + TEAM, ... of the row. It keeps its first HELD vectors in registers from one pass over the row
// to the next. The other vectors of a longer row are read again in every pass, and so is the whole of an unaligned
// row. All loads of held vectors start before the first of them is used, so a warp has HELD x 512 bytes of every
// operand in flight.
#pragma once

#include "rows.cuh"

/// Vectors of a row that a thread keeps in registers.
EXPORT constexpr int HELD = 4;

/// First element of vector `v` of a thread.
template <class T, int TEAM>
DEVICE int vector_start(int v, int lane) {
    return (v * TEAM + lane) * VEC_ELEMENTS<T>;
}

/// Loads the held vectors of an aligned row; vectors after the row are 0.
template <int TEAM, class T>
DEVICE void load_held(Vec16 (&held)[HELD], const T* row, int lane, int width) {
#pragma unroll
    for (int v = 0; v < HELD; ++v) {
        int h = vector_start<T, TEAM>(v, lane);
        held[v] = {};
        if (h < width) {
            held[v] = load_vec(row + h);
        }
    }
}

/// Hides the values of the vectors from the compiler. The compiler then converts them again after this point,
/// which needs fewer registers than keeping the converted elements.
DEVICE void forget_elements(Vec16 (&held)[HELD]) {
#pragma unroll
    for (int v = 0; v < HELD; ++v) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            hide(held[v].word[i]);
        }
    }
}
