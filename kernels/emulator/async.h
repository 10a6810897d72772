// What is under way after its instruction: memory barriers, bulk copies, products of warpgroups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace emulator {

struct Block;
struct Fiber;

/// An mbarrier object. Its 8 bytes of shared memory hold a word made from this, to show when something overwrites them.
struct Mbarrier {
    bool live = false;
    /// Phases completed since the object was made; its lowest bit is the parity of the current phase.
    uint64_t generation = 0;
    int arrivals = 0, pending = 0;
    /// Bytes expected less bytes that have come.
    int64_t bytes = 0;

    uint64_t word() const {
        return 0x6d62ull << 48 ^ (generation & 0xff) << 40 ^ uint64_t(pending) << 20 ^ (uint64_t(bytes) & 0xfffff);
    }
};

/// A box of a tensor: where it lies in both memories.
struct Box {
    unsigned char* base = nullptr;
    bool bf16 = false;
    int element_bytes = 0, rank = 0;
    bool swizzled = false;
    /// Innermost first; the stride of the innermost is the element's size.
    uint64_t dims[5] = {}, strides[5] = {};
    int size[5] = {}, at[5] = {};
    /// Offset in the window.
    size_t shared = 0;

    int bytes() const;
};

struct BoxLoad {
    Box box;
    Block* target;
    size_t barrier;
    const Fiber* issuer;
};

struct BoxStore {
    Box box;
    bool add;
    const Fiber* issuer;
    /// What was read of shared memory, and whether it was written.
    std::vector<unsigned char> contents;
    bool was_read = false, written = false;
};

/// Bulk stores committed together.
struct StoreGroup {
    std::vector<BoxStore> stores;
    /// The thread has waited until shared memory was read.
    bool released = false;
};

/// One thread's share of a product.
struct Product {
    float* sums;
    int columns;
    bool accumulate, in_registers;
    int a_major, b_major;
    uint64_t a, b;
    /// Rows g and g + 8 of A when it came in registers.
    uint16_t rows[2][16];
};

/// Products committed together; those done are taken out.
struct ProductGroup {
    std::vector<Product> waiting;
    bool any = false;
};

/// Stores and products of a thread. The last group of each is open.
struct Asynchronous {
    std::deque<StoreGroup> stores{1};
    std::deque<ProductGroup> products{1};
    /// Products so far.
    unsigned issued = 0;
    /// A fence of registers has come since the last wait.
    bool fenced = false;
};

}  // namespace emulator
