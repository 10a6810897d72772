// 16-byte vector accesses. A kernel calls `vec_aligned` once. If it returns true, the kernel uses vector
// accesses; otherwise the kernel accesses the rows element by element.
#pragma once

#include "bf16.cuh"

/// Elements of T in 16 bytes.
template <class T>
constexpr int VEC_ELEMENTS = 16 / int(sizeof(T));

/// Returns whether every row is 16-byte aligned. The first row is at `start`, and each row has `stride`
/// elements.
template <class T>
DEVICE bool vec_aligned(const T* start, long long stride) {
    return reinterpret_cast<uintptr_t>(start) % 16 == 0 && stride % VEC_ELEMENTS<T> == 0;
}

/// 16 bytes, moved by one instruction.
struct alignas(16) Vec16 {
    uint32_t word[4];
};

// On the emulator, ACCESS_LINE appends parameters that hold the caller's source line. Under nvcc it expands
// to nothing.

template <class T>
DEVICE Vec16 load_vec(const T* from ACCESS_LINE) {
    NOTE_ACCESS(from, 16, false);
    return *reinterpret_cast<const Vec16*>(from);
}

template <class T>
DEVICE void store_vec(T* to, Vec16 vec ACCESS_LINE) {
    NOTE_ACCESS(to, 16, true);
    *reinterpret_cast<Vec16*>(to) = vec;
}

/// The elements of a Vec16 as f32.
template <class T>
struct Floats {
    float x[VEC_ELEMENTS<T>];
};

DEVICE Floats<float> unpack(Vec16 vec, float) {
    return {{float_of_bits(vec.word[0]), float_of_bits(vec.word[1]), float_of_bits(vec.word[2]),
             float_of_bits(vec.word[3])}};
}

DEVICE Floats<bf16> unpack(Vec16 vec, bf16) {
    Floats<bf16> n;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        n.x[2 * i] = low_bf16(vec.word[i]);
        n.x[2 * i + 1] = high_bf16(vec.word[i]);
    }
    return n;
}

DEVICE Vec16 pack(const Floats<float>& n) {
    return {{bits_of_float(n.x[0]), bits_of_float(n.x[1]), bits_of_float(n.x[2]), bits_of_float(n.x[3])}};
}

DEVICE Vec16 pack(const Floats<bf16>& n) {
    return {{pack_bf16(n.x[0], n.x[1]), pack_bf16(n.x[2], n.x[3]), pack_bf16(n.x[4], n.x[5]),
             pack_bf16(n.x[6], n.x[7])}};
}

template <class T>
DEVICE Floats<T> load_floats(const T* from ACCESS_LINE) {
    return unpack(load_vec(from PASS_LINE), T{});
}

template <class T>
DEVICE void store_floats(T* to, const Floats<T>& n ACCESS_LINE) {
    store_vec(to, pack(n) PASS_LINE);
}

/// Four bf16 or two f32 elements (8 bytes), moved by one instruction.
struct alignas(8) Vec8 {
    uint32_t word[2];
};

/// Loads two f32 with one instruction.
DEVICE void load_two(float* x, const float* from ACCESS_LINE) {
    NOTE_ACCESS(from, 8, false);
    Vec8 vec = *reinterpret_cast<const Vec8*>(from);
    x[0] = float_of_bits(vec.word[0]);
    x[1] = float_of_bits(vec.word[1]);
}

DEVICE void load_four(float (&x)[4], const float* from ACCESS_LINE) {
    Floats<float> n = load_floats(from PASS_LINE);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[i] = n.x[i];
    }
}

DEVICE void load_four(float (&x)[4], const bf16* from ACCESS_LINE) {
    NOTE_ACCESS(from, 8, false);
    Vec8 vec = *reinterpret_cast<const Vec8*>(from);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        x[2 * i] = low_bf16(vec.word[i]);
        x[2 * i + 1] = high_bf16(vec.word[i]);
    }
}

DEVICE void store_four(float* to, const float (&x)[4] ACCESS_LINE) {
    store_floats(to, Floats<float>{{x[0], x[1], x[2], x[3]}} PASS_LINE);
}

DEVICE void store_four(bf16* to, const float (&x)[4] ACCESS_LINE) {
    NOTE_ACCESS(to, 8, true);
    *reinterpret_cast<Vec8*>(to) = {{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])}};
}
