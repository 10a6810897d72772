// Bit casts, bf16 rounding, 16-byte stores. PTX ISA: cvt, st, "Data Movement and Conversion
// Instructions".
#pragma once

#ifdef __CUDACC__

DEVICE float float_of_bits(uint32_t bits) {
    return __uint_as_float(bits);
}

DEVICE uint32_t bits_of_float(float x) {
    return __float_as_uint(x);
}

/// Rounds two f32 to bf16, ties to even, and packs them, the first in the lower half. Every NaN
/// becomes 0x7fff.
DEVICE uint32_t round_to_bf16_pair(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

/// Stores four words to global or shared memory with one instruction; `to` is a multiple of 16.
/// Needed because the compiler may split a struct copy when it strength-reduces the address in a
/// loop.
DEVICE void store_16(void* to, const uint32_t (&word)[4]) {
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
}

/// Hides the value of a word from the compiler, at no cost. The compiler then cannot reuse earlier results
/// that it computed from the word.
DEVICE void hide(uint32_t& word) {
    asm volatile("" : "+r"(word));
}

#else

#include <cstdint>
#include <cstring>

#include "../emulator/device.h"

inline void hide(uint32_t&) {}

inline float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline uint32_t round_to_bf16_pair(float first, float second) {
    auto round = [](float x) -> uint32_t {
        uint32_t bits = bits_of_float(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) {
            return 0x7fffu;
        }
        return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    };
    return round(first) | round(second) << 16;
}

inline void store_16(void* to, const uint32_t (&word)[4], CALLER_LINE) {
    emulator::note_access(to, 16, true, file, line);
    std::memcpy(to, word, sizeof word);
}

#endif
