// State of asynchronous operations: mbarriers, TMA copies, wgmmas.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace emulator {

struct Block;
struct Fiber;

/// An mbarrier object. Its 8 bytes of shared memory hold a word derived from this state, so that
/// a write to these bytes is detected.
struct Mbarrier {
    bool live = false;
    /// Whether fence_mbarrier_init() is still missing after the initialisation.
    bool unfenced = false;
    /// Index of the initialising thread in its block.
    unsigned initialiser = 0;
    /// Completed phases; the lowest bit is the parity of the current phase.
    uint64_t generation = 0;
    int arrivals = 0, pending = 0;
    /// Expected bytes minus completed bytes.
    int64_t bytes = 0;

    uint64_t word() const {
        return 0x6d62ull << 48 ^ (generation & 0xff) << 40 ^ uint64_t(pending) << 20 ^ (uint64_t(bytes) & 0xfffff);
    }
};

/// A TMA box: its location in global and shared memory.
struct Box {
    unsigned char* base = nullptr;
    bool bf16 = false;
    int element_bytes = 0, rank = 0;
    bool swizzled = false;
    /// Innermost dimension first, with the element size as its stride.
    uint64_t dims[5] = {}, strides[5] = {};
    int size[5] = {}, at[5] = {};
    /// Offset in the shared window.
    size_t shared = 0;

    int bytes() const;
};

struct TmaLoad {
    Box box;
    Block* target;
    size_t barrier;
    const Fiber* issuer;
};

struct TmaStore {
    Box box;
    bool add;
    const Fiber* issuer;
    /// Bytes of the box, and whether they have been read from shared memory and written to global memory.
    std::vector<unsigned char> contents;
    bool was_read = false, written = false;
};

/// A committed group of TMA stores.
struct StoreGroup {
    std::vector<TmaStore> stores;
    /// Whether the thread has waited for the reads of shared memory.
    bool released = false;
};

/// One thread's share of a wgmma.
struct Wgmma {
    float* sums;
    int columns;
    bool accumulate, in_registers;
    int a_major, b_major;
    uint64_t a, b;
    /// The thread's two rows of A, if A is in registers: rows g and g + 8 of its warp, with g = lane / 4.
    uint16_t rows[2][16];
};

/// A committed group of wgmmas; completed ones are removed from `waiting`.
struct WgmmaGroup {
    std::vector<Wgmma> waiting;
    bool any = false;
};

/// TMA stores and wgmmas of a thread. The last group of each is open.
struct AsyncState {
    std::deque<StoreGroup> stores{1};
    std::deque<WgmmaGroup> wgmmas{1};
    /// Number of wgmmas issued.
    unsigned issued = 0;
    /// Whether wgmma.fence was executed since the last wait.
    bool fenced = false;
};

}  // namespace emulator
