// Warpgroup GEMM: 128 threads multiply 64 x 16 by 16 x N asynchronously, bf16 into f32. PTX ISA:
// wgmma.mma_async m64nNk16, wgmma.fence, wgmma.commit_group, wgmma.wait_group. Needs sm_90a.
//
// In warp w of the group, lane 4 g + t: acc[4 j + i] is element
// (16 w + g + 8 (i / 2), 8 j + 2 t + i % 2). A in registers has the fragments of mma.cuh, rows 16 w
// on. Operands in shared memory are given by matrix descriptors:
//   K-major (rows of A, columns of B are contiguous in k), swizzled: rows of 128 bytes, 8 rows per 1024
//     bytes. `stride` is the distance between groups of 8 rows, `leading` is unused. 16 elements of k
//     advance the start by 32 bytes.
//   MN-major (Major::ACROSS: A's columns, B's rows are contiguous), swizzled: rows of 64 elements, 8
//     values of k per 1024 bytes. `stride` is the distance between groups of 8 values of k, `leading`
//     that between groups of 64 elements.
//   Not swizzled: core matrices of 8 x 16 bytes, row after row. K-major: `leading` is the distance
//     between core matrices along k, `stride` across it. MN-major: `leading` is the distance between
//     groups of 8 values of k, `stride` between groups of 8 elements.
// Order of a batch: wgmma_fence(), wgmma() ..., wgmma_commit(), wgmma_wait(). Hazards: until the
// wait, neither the accumulators nor A's registers may be accessed. fence_async_proxy() must
// separate plain stores to an operand from a wgmma that reads it.
#pragma once

#include "barrier.cuh"

/// Contiguous dimension of an operand in shared memory: k, or m or n (MN-major).
enum class Major : int { K = 0, ACROSS = 1 };

/// Swizzle mode, with the codes of matrix descriptors.
enum class Swizzle : int { NONE = 0, BYTES_128 = 1, BYTES_64 = 2, BYTES_32 = 3 };

/// Matrix descriptor of an operand. `start` is a shared-window address; with a swizzle it is in the
/// first row of a pattern that is aligned to its own size. `start`, `leading` and `stride` are
/// multiples of 16 bytes.
DEVICE uint64_t matrix_descriptor(uint32_t start, int leading, int stride, Swizzle swizzle) {
    auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3ffff) >> 4); };
    return field(start) | field(uint32_t(leading)) << 16 | field(uint32_t(stride)) << 32 | uint64_t(swizzle) << 62;
}

/// Whether wgmma with this N is instantiated here.
DEVICE constexpr bool has_wgmma(int columns) {
    return columns == 64 || columns == 80 || columns == 96 || columns == 128 || columns == 192 ||
           columns == 224 || columns == 256;
}

#ifdef __CUDACC__

/// Compiler fence: keeps accesses to the accumulators from moving across this point.
template <int COUNT>
DEVICE void pin_accumulators(float (&acc)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        asm volatile("" : "+f"(acc[i])::"memory");
    }
}

/// Starts a batch: orders earlier writes to the accumulators and A's registers before later wgmmas.
template <class... Accumulators>
DEVICE void wgmma_fence(Accumulators&... acc) {
    (pin_accumulators(acc), ...);
    HOPPER("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Commits the wgmmas since the last commit as a group.
DEVICE void wgmma_commit() {
    HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Asm operands %0 ... of the accumulators, as text and as a constraint list.
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
#define MAPL_ACC_8(i) \
    "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]), \
        "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define MAPL_ACC_32 MAPL_ACC_8(0), MAPL_ACC_8(8), MAPL_ACC_8(16), MAPL_ACC_8(24)
#define MAPL_ACC_40 MAPL_ACC_32, MAPL_ACC_8(32)
#define MAPL_ACC_48 MAPL_ACC_40, MAPL_ACC_8(40)
#define MAPL_ACC_64 MAPL_ACC_48, MAPL_ACC_8(48), MAPL_ACC_8(56)
#define MAPL_ACC_96 MAPL_ACC_64, MAPL_ACC_8(64), MAPL_ACC_8(72), MAPL_ACC_8(80), MAPL_ACC_8(88)
#define MAPL_ACC_112 MAPL_ACC_96, MAPL_ACC_8(96), MAPL_ACC_8(104)
#define MAPL_ACC_128 MAPL_ACC_96, MAPL_ACC_8(96), MAPL_ACC_8(104), MAPL_ACC_8(112), MAPL_ACC_8(120)
// One wgmma with N = n and `count` accumulators; the other names are numbers of the asm operands.
#define MAPL_WGMMA(n, count, a_, b_, scale_, a_major_, b_major_) \
    HOPPER("{\n.reg .pred add;\nsetp.ne.b32 add, %" #scale_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
           "k16.f32.bf16.bf16 {" MAPL_TEXT_##count "}, %" #a_ ", %" #b_ ", add, 1, 1, %" #a_major_ \
           ", %" #b_major_ ";\n}" \
           : MAPL_ACC_##count \
           : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(A)), "n"(int(B)) \
           : "memory")
#define MAPL_WGMMA_RS(n, count, a0, a1, a2, a3, b_, scale_, b_major_) \
    HOPPER("{\n.reg .pred add;\nsetp.ne.b32 add, %" #scale_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
           "k16.f32.bf16.bf16 {" MAPL_TEXT_##count "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ \
           ", add, 1, 1, %" #b_major_ ";\n}" \
           : MAPL_ACC_##count \
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(B)) \
           : "memory")

/// acc = a b, or acc += a b with `accumulate`; operands by descriptors.
template <int N, Major A, Major B>
DEVICE void wgmma(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "N of a wgmma");
    if constexpr (N == 64) {
        MAPL_WGMMA(64, 32, 32, 33, 34, 35, 36);
    } else if constexpr (N == 80) {
        MAPL_WGMMA(80, 40, 40, 41, 42, 43, 44);
    } else if constexpr (N == 96) {
        MAPL_WGMMA(96, 48, 48, 49, 50, 51, 52);
    } else if constexpr (N == 128) {
        MAPL_WGMMA(128, 64, 64, 65, 66, 67, 68);
    } else if constexpr (N == 192) {
        MAPL_WGMMA(192, 96, 96, 97, 98, 99, 100);
    } else if constexpr (N == 224) {
        MAPL_WGMMA(224, 112, 112, 113, 114, 115, 116);
    } else {
        MAPL_WGMMA(256, 128, 128, 129, 130, 131, 132);
    }
}

/// As above with A in registers.
template <int N, Major B>
DEVICE void wgmma(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "N of a wgmma");
    if constexpr (N == 64) {
        MAPL_WGMMA_RS(64, 32, 32, 33, 34, 35, 36, 37, 38);
    } else if constexpr (N == 80) {
        MAPL_WGMMA_RS(80, 40, 40, 41, 42, 43, 44, 45, 46);
    } else if constexpr (N == 96) {
        MAPL_WGMMA_RS(96, 48, 48, 49, 50, 51, 52, 53, 54);
    } else if constexpr (N == 128) {
        MAPL_WGMMA_RS(128, 64, 64, 65, 66, 67, 68, 69, 70);
    } else if constexpr (N == 192) {
        MAPL_WGMMA_RS(192, 96, 96, 97, 98, 99, 100, 101, 102);
    } else if constexpr (N == 224) {
        MAPL_WGMMA_RS(224, 112, 112, 113, 114, 115, 116, 117, 118);
    } else {
        MAPL_WGMMA_RS(256, 128, 128, 129, 130, 131, 132, 133, 134);
    }
}

/// Waits until at most PENDING of the newest groups are in flight. The accumulators of completed
/// groups can then be read.
template <int PENDING, class... Accumulators>
DEVICE void wgmma_wait(Accumulators&... acc) {
    HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (pin_accumulators(acc), ...);
}

#else

template <int COUNT>
void pin_accumulators(float (&)[COUNT]) {}

template <class... Accumulators>
void wgmma_fence(Accumulators&...) {
    emulator::wgmma_fence();
}

inline void wgmma_commit() {
    emulator::wgmma_commit();
}

template <int N, Major A, Major B>
void wgmma(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "N of a wgmma");
    emulator::wgmma(acc, N, a, nullptr, b, int(A), int(B), accumulate);
}

template <int N, Major B>
void wgmma(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(has_wgmma(N), "N of a wgmma");
    emulator::wgmma(acc, N, 0, a, b, 0, int(B), accumulate);
}

template <int PENDING, class... Accumulators>
void wgmma_wait(Accumulators&...) {
    emulator::wgmma_wait(PENDING);
}

#endif
