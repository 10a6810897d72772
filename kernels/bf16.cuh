// bf16: the upper half of an f32, rounded to nearest, ties to even.
#pragma once

#include "primitives/bits.cuh"

struct bf16 {
    uint16_t bits;
};

/// Exact conversion.
DEVICE float to_float(bf16 x) {
    return float_of_bits(uint32_t(x.bits) << 16);
}

DEVICE float to_float(float x) {
    return x;
}

/// Packs two bf16 into a 32-bit word, the first in the lower half.
DEVICE uint32_t pack_bf16(float first, float second) {
    return round_to_bf16_pair(first, second);
}

DEVICE float low_bf16(uint32_t pair) {
    return float_of_bits(pair << 16);
}

DEVICE float high_bf16(uint32_t pair) {
    return float_of_bits(pair & 0xffff0000u);
}

/// `from_float<T>(x)`: x rounded to the storage type of activations.
template <class T>
DEVICE T from_float(float x);

template <>
DEVICE float from_float<float>(float x) {
    return x;
}

template <>
DEVICE bf16 from_float<bf16>(float x) {
    return bf16{uint16_t(round_to_bf16_pair(x, 0.0f))};
}
