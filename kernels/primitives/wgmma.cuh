// Products of a warpgroup: 128 threads multiply 64 x 16 by 16 x N, bf16 into f32, while they go on. PTX ISA:
// wgmma.mma_async m64nNk16, wgmma.fence, wgmma.commit_group, wgmma.wait_group. Needs sm_90a.
//
// With warp w of the group and lane 4 g + t, sums[4 j + i] is element (16 w + g + 8 (i / 2), 8 j + 2 t + i % 2). A in
// registers has the fragments of mma.cuh, rows 16 w on. Operands in shared memory are given by descriptors:
//   along k (A as its rows, B as its columns), swizzled: rows of 128 bytes, 8 of them to 1024 bytes; `stride` is from 8
//     rows to the next 8, `leading` is not used; k advances by 32 bytes of the start for each 16 elements
//   across k (A as its columns, B as its rows), swizzled: rows of 64 elements, 8 values of k to 1024 bytes; `stride` is
//     from 8 values of k to the next 8, `leading` from 64 elements to the next 64
//   plain: pieces of 8 x 16 bytes, row after row. Along k, `leading` is between pieces along k, `stride` across; across
//     k, `leading` is from 8 values of k to the next 8, `stride` from 8 elements to the next 8
// The order of a batch: wgmma_fence(), wgmma() ..., wgmma_commit(), wgmma_wait(). Until then neither
// the sums nor A's registers are touched. Between plain stores to an operand and a product stands fence_async_proxy().
#pragma once

#include "barrier.cuh"

/// Which way an operand in shared memory is contiguous.
enum class Major : int { K = 0, ACROSS = 1 };

/// Permutations of the 16-byte chunks of a row, as descriptors number them.
enum class Swizzle : int { NONE = 0, BYTES_128 = 1, BYTES_64 = 2, BYTES_32 = 3 };

/// Descriptor of an operand. The start is an address in the shared window; with a swizzle it lies in the first row of a
/// pattern that is aligned to its own size. All three are multiples of 16.
DEVICE uint64_t matrix_descriptor(uint32_t start, int leading, int stride, Swizzle swizzle) {
    auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3ffff) >> 4); };
    return field(start) | field(uint32_t(leading)) << 16 | field(uint32_t(stride)) << 32 | uint64_t(swizzle) << 62;
}

/// The columns of a product that have an instruction here.
DEVICE constexpr bool has_wgmma(int columns) {
    return columns == 64 || columns == 80 || columns == 96 || columns == 128 || columns == 192 ||
           columns == 224 || columns == 256;
}

#ifdef __CUDACC__

/// Keeps the compiler from moving a use of the sums over this place.
template <int COUNT>
DEVICE void pin_accumulators(float (&sums)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        asm volatile("" : "+f"(sums[i])::"memory");
    }
}

/// Begins a batch: what was written to these sums, and to registers of A, is seen by the products that come after.
template <class... Sums>
DEVICE void wgmma_fence(Sums&... sums) {
    (pin_accumulators(sums), ...);
    HOPPER("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Makes a group of the products since the last one.
DEVICE void wgmma_commit() {
    HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Operands %0 ... of the sums, in text and as a list.
#define MAPL_TEN(tens) \
    "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens "5, %" #tens "6, %" #tens "7, %" #tens \
    "8, %" #tens "9"
#define MAPL_TEXT_30 MAPL_TEN() ", " MAPL_TEN(1) ", " MAPL_TEN(2)
#define MAPL_TEXT_32 MAPL_TEXT_30 ", %30, %31"
#define MAPL_TEXT_40 MAPL_TEXT_30 ", " MAPL_TEN(3)
#define MAPL_TEXT_48 MAPL_TEXT_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MAPL_TEXT_60 MAPL_TEXT_40 ", " MAPL_TEN(4) ", " MAPL_TEN(5)
#define MAPL_TEXT_64 MAPL_TEXT_60 ", %60, %61, %62, %63"
#define MAPL_TEXT_90 MAPL_TEXT_60 ", " MAPL_TEN(6) ", " MAPL_TEN(7) ", " MAPL_TEN(8)
#define MAPL_TEXT_96 MAPL_TEXT_90 ", %90, %91, %92, %93, %94, %95"
#define MAPL_TEXT_112 MAPL_TEXT_90 ", " MAPL_TEN(9) ", " MAPL_TEN(10) ", %110, %111"
#define MAPL_TEXT_128 \
    MAPL_TEXT_90 ", " MAPL_TEN(9) ", " MAPL_TEN(10) ", " MAPL_TEN(11) ", %120, %121, %122, %123, %124, %125, %126, %127"
#define MAPL_SUMS_8(i) \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
        "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define MAPL_SUMS_32 MAPL_SUMS_8(0), MAPL_SUMS_8(8), MAPL_SUMS_8(16), MAPL_SUMS_8(24)
#define MAPL_SUMS_40 MAPL_SUMS_32, MAPL_SUMS_8(32)
#define MAPL_SUMS_48 MAPL_SUMS_40, MAPL_SUMS_8(40)
#define MAPL_SUMS_64 MAPL_SUMS_48, MAPL_SUMS_8(48), MAPL_SUMS_8(56)
#define MAPL_SUMS_96 MAPL_SUMS_64, MAPL_SUMS_8(64), MAPL_SUMS_8(72), MAPL_SUMS_8(80), MAPL_SUMS_8(88)
#define MAPL_SUMS_112 MAPL_SUMS_96, MAPL_SUMS_8(96), MAPL_SUMS_8(104)
#define MAPL_SUMS_128 MAPL_SUMS_96, MAPL_SUMS_8(96), MAPL_SUMS_8(104), MAPL_SUMS_8(112), MAPL_SUMS_8(120)
// One instruction of n columns with `count` sums; the other names are the numbers of the operands that follow them.
#define MAPL_PRODUCT(n, count, a_, b_, scale_, a_major_, b_major_) \
    HOPPER("{\n.reg .pred add;\nsetp.ne.b32 add, %" #scale_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
           "k16.f32.bf16.bf16 {" MAPL_TEXT_##count "}, %" #a_ ", %" #b_ ", add, 1, 1, %" #a_major_ \
           ", %" #b_major_ ";\n}" \
           : MAPL_SUMS_##count \
           : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(A)), "n"(int(B)) \
           : "memory")
#define MAPL_PRODUCT_RS(n, count, a0, a1, a2, a3, b_, scale_, b_major_) \
    HOPPER("{\n.reg .pred add;\nsetp.ne.b32 add, %" #scale_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
           "k16.f32.bf16.bf16 {" MAPL_TEXT_##count "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ \
           ", add, 1, 1, %" #b_major_ ";\n}" \
           : MAPL_SUMS_##count \
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(B)) \
           : "memory")

/// sums = a b, plus sums with `accumulate`; operands by descriptors.
template <int N, Major A, Major B>
DEVICE void wgmma(float (&sums)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "columns of a product");
    if constexpr (N == 64) {
        MAPL_PRODUCT(64, 32, 32, 33, 34, 35, 36);
    } else if constexpr (N == 80) {
        MAPL_PRODUCT(80, 40, 40, 41, 42, 43, 44);
    } else if constexpr (N == 96) {
        MAPL_PRODUCT(96, 48, 48, 49, 50, 51, 52);
    } else if constexpr (N == 128) {
        MAPL_PRODUCT(128, 64, 64, 65, 66, 67, 68);
    } else if constexpr (N == 192) {
        MAPL_PRODUCT(192, 96, 96, 97, 98, 99, 100);
    } else if constexpr (N == 224) {
        MAPL_PRODUCT(224, 112, 112, 113, 114, 115, 116);
    } else {
        MAPL_PRODUCT(256, 128, 128, 129, 130, 131, 132);
    }
}

/// As above with A in registers.
template <int N, Major B>
DEVICE void wgmma(float (&sums)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "columns of a product");
    if constexpr (N == 64) {
        MAPL_PRODUCT_RS(64, 32, 32, 33, 34, 35, 36, 37, 38);
    } else if constexpr (N == 80) {
        MAPL_PRODUCT_RS(80, 40, 40, 41, 42, 43, 44, 45, 46);
    } else if constexpr (N == 96) {
        MAPL_PRODUCT_RS(96, 48, 48, 49, 50, 51, 52, 53, 54);
    } else if constexpr (N == 128) {
        MAPL_PRODUCT_RS(128, 64, 64, 65, 66, 67, 68, 69, 70);
    } else if constexpr (N == 192) {
        MAPL_PRODUCT_RS(192, 96, 96, 97, 98, 99, 100, 101, 102);
    } else if constexpr (N == 224) {
        MAPL_PRODUCT_RS(224, 112, 112, 113, 114, 115, 116, 117, 118);
    } else {
        MAPL_PRODUCT_RS(256, 128, 128, 129, 130, 131, 132, 133, 134);
    }
}

/// Waits until at most PENDING of the newest groups are under way; these sums are then as their products left them.
template <int PENDING, class... Sums>
DEVICE void wgmma_wait(Sums&... sums) {
    HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (pin_accumulators(sums), ...);
}

#else

template <class... Sums>
void wgmma_fence(Sums&...) {
    emulator::wgmma_fence();
}

inline void wgmma_commit() {
    emulator::wgmma_commit();
}

template <int N, Major A, Major B>
void wgmma(float (&sums)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "columns of a product");
    emulator::wgmma(sums, N, a, nullptr, b, int(A), int(B), accumulate);
}

template <int N, Major B>
void wgmma(float (&sums)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "columns of a product");
    emulator::wgmma(sums, N, 0, a, b, 0, int(B), accumulate);
}

template <int PENDING, class... Sums>
void wgmma_wait(Sums&...) {
    emulator::wgmma_wait(PENDING);
}

#endif
