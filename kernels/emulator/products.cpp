// wgmma: matrix descriptors of operands in shared memory, and each thread's share of the result.
// PTX ISA: "Asynchronous Warpgroup Level Matrix Instructions": shared memory layouts, matrix
// descriptor, register fragments.
//
// In units of 16 bytes (8 elements along the major dimension) an operand is a matrix of chunks.
// With r the row of A or column of B, k the other index, L and S the leading and stride offsets,
// and W the row bytes of the swizzle (16 without one), the offset of a chunk from the start is:
//   K-major, swizzled:        (r % 8) W + (r / 8) S + 16 (k / 8)
//   K-major, not swizzled:    (r % 8) 16 + (r / 8) S + (k / 8) L
//   MN-major, swizzled:       (k % 8) W + (k / 8) S + 16 (r / 8 % (W / 16)) + (r / 8 / (W / 16)) L
//   MN-major, not swizzled:   (k % 8) 16 + (k / 8) L + (r / 8) S
// Then the address bits from 4 up are xor-ed with the bits from 7 up: 3 bits for the 128-byte
// swizzle, 2 for 64 bytes, 1 for 32 bytes.
#include "../primitives/bits.cuh"
#include "scheduler.h"

namespace emulator {

namespace {

/// Four sums in one vector. Each sum adds its terms in order.
typedef float Four __attribute__((vector_size(16)));

struct Operand {
    const unsigned char* window;
    size_t start, leading, stride;
    /// Row bytes of the swizzle, 0 without one.
    size_t width;
    int major;
    /// Offsets of k before the swizzle, from row or column 0.
    size_t along[16];

    Operand(const Block& b, uint64_t descriptor, int major) : window(b.window), major(major) {
        constexpr size_t WIDTHS[4] = {0, 128, 64, 32};
        auto field = [&](int shift) { return size_t(descriptor >> shift & 0x3fff) << 4; };
        start = field(0), leading = field(16), stride = field(32);
        width = WIDTHS[descriptor >> 62];
        for (size_t k = 0; k < 16; ++k) {
            if (major == 0) {
                along[k] = k / 8 * (width == 0 ? leading : 16);
            } else {
                along[k] = k % 8 * (width == 0 ? 16 : width) + k / 8 * (width == 0 ? leading : stride);
            }
        }
    }

    /// Offset of row or column r before the swizzle, from k = 0.
    size_t across(size_t r) const {
        if (major == 0) {
            return r % 8 * (width == 0 ? 16 : width) + r / 8 * stride;
        }
        return width == 0 ? r / 8 * stride : r / 8 % (width / 16) * 16 + r / 8 / (width / 16) * leading;
    }

    /// Offset in the window of the chunk that holds (r, k).
    size_t chunk(size_t across_r, int k) const {
        size_t offset = start + across_r + along[k];
        size_t bits = width == 0 ? 0 : width / 16 - 1;
        return offset ^ ((offset >> 7 & bits) << 4);
    }

    /// Copies row or column r, for k from 0 to 15, to value[k][to].
    template <int WIDTH>
    void read(int r, float (&value)[16][WIDTH], int to) const {
        size_t at = across(size_t(r));
        uint16_t bits[16];
        if (major == 0) {
            std::memcpy(bits, window + chunk(at, 0), 16);
            std::memcpy(bits + 8, window + chunk(at, 8), 16);
        } else {
            for (int k = 0; k < 16; ++k) {
                std::memcpy(bits + k, window + chunk(at, k) + 2 * size_t(r % 8), 2);
            }
        }
        for (int k = 0; k < 16; ++k) {
            value[k][to] = float_of_bits(uint32_t(bits[k]) << 16);
        }
    }

    /// Copies columns r and r + 1, r even, to value[k][to] and value[k][to + 1].
    template <int WIDTH>
    void read_pair(int r, float (&value)[16][WIDTH], int to) const {
        if (major == 0) {
            read(r, value, to);
            read(r + 1, value, to + 1);
            return;
        }
        size_t at = across(size_t(r));
        for (int k = 0; k < 16; ++k) {
            uint16_t bits[2];
            std::memcpy(bits, window + chunk(at, k) + 2 * size_t(r % 8), 4);
            value[k][to] = float_of_bits(uint32_t(bits[0]) << 16);
            value[k][to + 1] = float_of_bits(uint32_t(bits[1]) << 16);
        }
    }
};

/// Aborts the launch if an operand of `rows` x 16 is not in shared memory, or its descriptor is not
/// supported by the emulator.
void check(const char* what, uint64_t descriptor, int major, int rows) {
    if ((descriptor >> 49 & 7) != 0) {
        fail("%s: base offset %d is not supported; an operand must start in a pattern aligned to its own size", what,
             int(descriptor >> 49 & 7));
    }
    constexpr uint64_t FIELDS = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
    if ((descriptor & ~FIELDS) != 0) {
        fail("%s: matrix descriptor %016llx has bits outside its fields", what,
             static_cast<unsigned long long>(descriptor));
    }
    Operand operand(block(), descriptor, major);
    bool proxies = launch().proxies != nullptr;
    if (proxies) {
        look_at_shared(fiber());
    }
    for (int r = 0; r < rows; r += major == 0 ? 1 : 8) {
        for (int k = 0; k < 16; k += major == 0 ? 8 : 1) {
            size_t offset = operand.chunk(operand.across(size_t(r)), k);
            if (!is_shared(offset, 16)) {
                fail("%s: element (%d, %d) at %zu of the shared window is outside shared memory", what, r, k, offset);
            }
            if (proxies) {
                require_published(what, block(), offset, 16);
            }
        }
    }
}

void multiply(const Fiber& f, const Wgmma& p) {
    int warp = int(f.index / 32) % 4, g = int(f.index % 32) / 4, t = int(f.index % 4);
    float rows[16][2];
    for (int half = 0; half < 2; ++half) {
        if (p.in_registers) {
            for (int k = 0; k < 16; ++k) {
                rows[k][half] = float_of_bits(uint32_t(p.rows[half][k]) << 16);
            }
        } else {
            Operand(*f.block, p.a, p.a_major).read(16 * warp + g + 8 * half, rows, half);
        }
    }
    Operand b(*f.block, p.b, p.b_major);
    // The thread has two of every eight columns. Each iteration computes up to four such groups of eight; the
    // columns of absent groups stay 0.
    for (int n = 0; n < p.columns; n += 32) {
        int eights = p.columns - n < 32 ? (p.columns - n) / 8 : 4;
        alignas(16) float columns[16][8] = {};
        alignas(16) float sums[2][8] = {};
        for (int eight = 0; eight < eights; ++eight) {
            b.read_pair(n + 8 * eight + 2 * t, columns, 2 * eight);
            for (int i = 0; i < 4 && p.accumulate; ++i) {
                sums[i / 2][2 * eight + i % 2] = p.sums[n / 2 + 4 * eight + i];
            }
        }
        Four total[2][2];
        std::memcpy(total, sums, sizeof total);
        for (int k = 0; k < 16; ++k) {
            Four column[2];
            std::memcpy(column, columns[k], sizeof column);
            for (int half = 0; half < 2; ++half) {
                total[half][0] += rows[k][half] * column[0];
                total[half][1] += rows[k][half] * column[1];
            }
        }
        std::memcpy(sums, total, sizeof total);
        for (int eight = 0; eight < eights; ++eight) {
            for (int i = 0; i < 4; ++i) {
                p.sums[n / 2 + 4 * eight + i] = sums[i / 2][2 * eight + i % 2];
            }
        }
    }
}

void flush(const Fiber& f, WgmmaGroup& group) {
    for (const Wgmma& p : group.waiting) {
        multiply(f, p);
    }
    group.waiting.clear();
}

/// Asynchronous state of the running thread, which must be in a whole warpgroup.
AsyncState& warpgroup_state() {
    Fiber& f = fiber();
    if (f.block->threads / 128 * 128 <= f.index) {
        fail("a warpgroup instruction in the last %u threads of the block, which do not form a warpgroup of 128",
             f.block->threads % 128);
    }
    return async_state();
}

}  // namespace

void wgmma(float* sums, int columns, uint64_t a, const uint32_t* fragment, uint64_t b, int a_major,
           int b_major, bool accumulate) {
    AsyncState& mine = warpgroup_state();
    Fiber& f = fiber();
    struct Operands {
        uint64_t a, b;
        uint32_t word[4];
        int columns, accumulate;
    };
    Operands given{a, b, {}, columns, accumulate};
    if (fragment != nullptr) {
        std::memcpy(given.word, fragment, sizeof given.word);
    }
    const Operands* lanes = exchange(fragment == nullptr ? "wgmma" : "wgmma with A in registers", given);
    const Operands& first = lanes[0];
    if (first.a != a || first.b != b || first.columns != columns || first.accumulate != given.accumulate) {
        fail("wgmma with descriptors that differ between lanes of a warp");
    }
    if (!mine.fenced) {
        fail("wgmma without a fence since the last wait: its registers may still be in use");
    }
    mine.issued += 1;
    Warp& warp = *f.warp;
    if (warp.wgmmas < mine.issued) {
        // The first lane to resume checks for all lanes, before any of them reads.
        warp.wgmmas = mine.issued;
        if (fragment == nullptr) {
            check("wgmma, A", a, a_major, 64);
        }
        check("wgmma, B", b, b_major, columns);
    }
    Wgmma p{sums, columns, accumulate, fragment != nullptr, a_major, b_major, a, b, {}};
    for (int i = 0; i < 4 && fragment != nullptr; ++i) {
        // Lane 4 g + i holds elements 2 i, 2 i + 1 and 2 i + 8, 2 i + 9 of rows g and g + 8.
        const Operands& other = lanes[lane() / 4 * 4 + i];
        for (int word = 0; word < 4; ++word) {
            int k = 2 * i + word / 2 * 8;
            p.rows[word % 2][k] = uint16_t(other.word[word]);
            p.rows[word % 2][k + 1] = uint16_t(other.word[word] >> 16);
        }
    }
    mine.wgmmas.back().any = true;
    if (deliver_now()) {
        // Wgmmas of a thread complete in order.
        for (WgmmaGroup& group : mine.wgmmas) {
            flush(f, group);
        }
        multiply(f, p);
    } else {
        mine.wgmmas.back().waiting.push_back(p);
    }
}

void wgmma_fence() {
    warpgroup_state().fenced = true;
}

void wgmma_commit() {
    warpgroup_state().wgmmas.emplace_back();
}

void wgmma_wait(int pending) {
    AsyncState& mine = warpgroup_state();
    while (mine.wgmmas.size() - 1 > size_t(pending)) {
        flush(fiber(), mine.wgmmas.front());
        mine.wgmmas.pop_front();
    }
    mine.fenced = false;
    // The instruction waits for all lanes of the warp and their wgmmas, not for other warps of the
    // group.
    exchange("wgmma.wait_group", pending);
}

}  // namespace emulator
