// Warp-level matrix multiply and its operand loads. PTX ISA: "Matrix fragments for mma.m16n8k16
// with floating point type", ldmatrix.
//
// With lane = 4 g + t (g = 0..7, t = 0..3): elements (row, column), two bf16 per word, the lower
// column first:
//   A (16 x 16): word 0 (g, 2t), word 1 (g + 8, 2t), word 2 (g, 2t + 8), word 3 (g + 8, 2t + 8)
//   B (16 x 8), column-wise: word 0 (2t, g), (2t + 1, g); word 1 (2t + 8, g), (2t + 9, g)
//   C (16 x 8), f32: 0, 1 (g, 2t), (g, 2t + 1); 2, 3 (g + 8, 2t), (g + 8, 2t + 1)
#pragma once

#include "async.cuh"
#include "bits.cuh"

struct FragmentA {
    uint32_t word[4];
};

struct FragmentB {
    uint32_t word[2];
};

struct FragmentC {
    float value[4];
};

#ifdef __CUDACC__

/// c += a b; bf16 products added in f32.
DEVICE void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}

/// Loads four 8 x 8 matrices of 16-bit elements. Lanes 8 i to 8 i + 7 give the addresses of the
/// rows of matrix i, 16 bytes each, aligned. Word i of lane 4 g + t is elements (g, 2t), (g, 2t +
/// 1) of matrix i.
DEVICE void ldmatrix_x4(uint32_t (&word)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(shared_address_of(row))
                 : "memory");
}

/// As ldmatrix_x4, transposed: word i is elements (2t, g), (2t + 1, g) of matrix i.
DEVICE void ldmatrix_x4_trans(uint32_t (&word)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(shared_address_of(row))
                 : "memory");
}

#else

inline float low_half(uint32_t pair) {
    return float_of_bits(pair << 16);
}

inline float high_half(uint32_t pair) {
    return float_of_bits(pair & 0xffff0000u);
}

inline void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
    struct Operands {
        FragmentA a;
        FragmentB b;
        FragmentC c;
    };
    // The first lane to resume computes the whole product; every lane copies its elements.
    auto product = [](const Operands* lanes, float(*result)[8]) {
        float x[16][16], y[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            int g = lane / 4, t = lane % 4;
            for (int word = 0; word < 4; ++word) {
                int row = g + word % 2 * 8, k = 2 * t + word / 2 * 8;
                x[row][k] = low_half(lanes[lane].a.word[word]);
                x[row][k + 1] = high_half(lanes[lane].a.word[word]);
                result[row][2 * t + word / 2] = lanes[lane].c.value[word % 2 * 2 + word / 2];
            }
            for (int word = 0; word < 2; ++word) {
                int k = 2 * t + word * 8;
                y[k][g] = low_half(lanes[lane].b.word[word]);
                y[k + 1][g] = high_half(lanes[lane].b.word[word]);
            }
        }
        for (int row = 0; row < 16; ++row) {
            for (int k = 0; k < 16; ++k) {
                for (int column = 0; column < 8; ++column) {
                    // A product of two bf16 is exact in f32, so this is a fused multiply-add.
                    result[row][column] += x[row][k] * y[k][column];
                }
            }
        }
    };
    const auto* result = emulator::exchange_for<float[16][8]>("mma.sync.m16n8k16", Operands{a, b, c}, product);
    int g = emulator::lane() / 4, t = emulator::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        c.value[i] = (*result)[g + i / 2 * 8][2 * t + i % 2];
    }
}

namespace emulator {

inline void load_8x8(uint32_t (&word)[4], const void* row, bool transposed) {
    check_shared("ldmatrix", row, 16);
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        fail("ldmatrix from an address that is not a multiple of 16 bytes");
    }
    // Each lane reads its row when it arrives, so a store between the loads of two lanes affects the result.
    struct Row {
        uint16_t element[8];
    };
    Row mine;
    std::memcpy(&mine, row, sizeof mine);
    const Row* rows = exchange(transposed ? "ldmatrix.trans" : "ldmatrix", mine);
    int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; ++i) {
        uint32_t low = transposed ? rows[8 * i + 2 * t].element[g] : rows[8 * i + g].element[2 * t];
        uint32_t high = transposed ? rows[8 * i + 2 * t + 1].element[g] : rows[8 * i + g].element[2 * t + 1];
        word[i] = low | high << 16;
    }
}

}  // namespace emulator

inline void ldmatrix_x4(uint32_t (&word)[4], const void* row, CALLER_LINE) {
    emulator::note_access(row, 16, false, file, line);
    emulator::load_8x8(word, row, false);
}

inline void ldmatrix_x4_trans(uint32_t (&word)[4], const void* row, CALLER_LINE) {
    emulator::note_access(row, 16, false, file, line);
    emulator::load_8x8(word, row, true);
}

#endif
