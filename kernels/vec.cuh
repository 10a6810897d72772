// Accesses of 16 bytes. Rows whose start or length is off that width are read and written element by element: a kernel asks
// `wide` once and goes one of two ways.
#pragma once

#include "bf16.cuh"

/// Elements of T in 16 bytes.
template <class T>
constexpr int LANE_ELEMENTS = 16 / int(sizeof(T));

/// True when rows of `stride` elements from `start` on all begin at multiples of 16 bytes.
template <class T>
DEVICE bool wide(const T* start, long long stride) {
    return reinterpret_cast<uintptr_t>(start) % 16 == 0 && stride % LANE_ELEMENTS<T> == 0;
}

/// 16 bytes, moved as one.
struct alignas(16) Lane {
    uint32_t word[4];
};

template <class T>
DEVICE Lane load_lane(const T* from) {
    return *reinterpret_cast<const Lane*>(from);
}

template <class T>
DEVICE void store_lane(T* to, Lane lane) {
    *reinterpret_cast<Lane*>(to) = lane;
}

/// The numbers of a lane as f32.
template <class T>
struct Numbers {
    float x[LANE_ELEMENTS<T>];
};

DEVICE Numbers<float> unpack(Lane lane, float) {
    return {{float_of_bits(lane.word[0]), float_of_bits(lane.word[1]), float_of_bits(lane.word[2]),
             float_of_bits(lane.word[3])}};
}

DEVICE Numbers<bf16> unpack(Lane lane, bf16) {
    Numbers<bf16> n;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        n.x[2 * i] = low_bf16(lane.word[i]);
        n.x[2 * i + 1] = high_bf16(lane.word[i]);
    }
    return n;
}

DEVICE Lane pack(const Numbers<float>& n) {
    return {{bits_of_float(n.x[0]), bits_of_float(n.x[1]), bits_of_float(n.x[2]), bits_of_float(n.x[3])}};
}

DEVICE Lane pack(const Numbers<bf16>& n) {
    return {{pack_bf16(n.x[0], n.x[1]), pack_bf16(n.x[2], n.x[3]), pack_bf16(n.x[4], n.x[5]), pack_bf16(n.x[6], n.x[7])}};
}

template <class T>
DEVICE Numbers<T> load_numbers(const T* from) {
    return unpack(load_lane(from), T{});
}

template <class T>
DEVICE void store_numbers(T* to, const Numbers<T>& n) {
    store_lane(to, pack(n));
}
