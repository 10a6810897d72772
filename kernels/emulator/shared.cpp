// Shared memory: windows of blocks, 32-bit addresses, layout; and the range check of global memory.
// All blocks of a cluster have the same layout, so an offset means the same location in each.
#include "memory.h"
#include "scheduler.h"

namespace emulator {

namespace {

/// Bit at which the block rank starts in a 32-bit shared address.
constexpr unsigned RANK_SHIFT = 24;

}  // namespace

void* shared_storage(const void* site, size_t bytes) {
    Launch& l = launch();
    auto found = l.shared_arrays.find(site);
    if (found != l.shared_arrays.end()) {
        return block().window + found->second.offset;
    }
    size_t offset = (l.window_used + 127) / 128 * 128;
    if (offset + bytes + GAP > WINDOW_BYTES) {
        fail("shared arrays exceed the %zu bytes of the shared window", WINDOW_BYTES);
    }
    l.shared_arrays[site] = {offset, bytes};
    l.window_used = offset + bytes + GAP;
    // The array is created in all blocks at once, because another block of the cluster may write to it before
    // this block gets here.
    for (Block& b : l.blocks) {
        unpoison(b.window + offset, bytes);
        std::memset(b.window + offset, 0xff, bytes);
    }
    return block().window + offset;
}

unsigned char* dynamic_shared() {
    return block().window;
}

unsigned char* dynamic_shared_of(size_t bytes) {
    size_t given = launch().shared_bytes;
    if (given != bytes) {
        fail("the launch has %zu bytes of dynamic shared memory, but the kernel needs %zu", given, bytes);
    }
    return dynamic_shared();
}

bool is_shared(size_t offset, size_t bytes) {
    const Launch& l = launch();
    if (offset + bytes <= l.shared_bytes) {
        return true;
    }
    for (const auto& array : l.shared_arrays) {
        size_t start = array.second.offset;
        if (offset >= start && offset + bytes <= start + array.second.bytes) {
            return true;
        }
    }
    return false;
}

size_t shared_offset(const char* what, const void* pointer, size_t bytes) {
    auto offset = static_cast<const unsigned char*>(pointer) - block().window;
    if (offset < 0 || !is_shared(size_t(offset), bytes)) {
        fail("%s of %zu bytes at %td of the shared window is outside shared memory", what, bytes, offset);
    }
    return size_t(offset);
}

void check_shared(const char* what, const void* address, size_t bytes) {
    shared_offset(what, address, bytes);
}

void check_global(const char* what, const void* address, size_t bytes) {
    // The last allocation is cached: a kernel reads the same few buffers again and again, and none of them is
    // freed while it runs.
    Launch& l = launch();
    auto* start = static_cast<const unsigned char*>(address);
    if (l.found != nullptr && start >= l.found && start + bytes <= l.found + l.found_bytes) {
        return;
    }
    l.found = allocation_of(address, bytes, l.found_bytes);
    if (l.found == nullptr) {
        fail("%s of %zu bytes at %p is outside every allocation", what, bytes, address);
    }
}

uint32_t shared_address(const void* pointer) {
    auto offset = static_cast<const unsigned char*>(pointer) - block().window;
    if (offset < 0 || size_t(offset) > WINDOW_BYTES) {
        fail("%p is not an address in the block's shared memory", pointer);
    }
    return uint32_t(offset) | block().rank << RANK_SHIFT;
}

Block& peer(const char* what, unsigned rank) {
    Launch& l = launch();
    if (rank >= l.cluster) {
        fail("%s: block %u is outside the cluster of %u blocks", what, rank, l.cluster);
    }
    Block& b = l.blocks[block().cluster * l.cluster + rank];
    if (b.live == 0) {
        fail("%s: block %u of the cluster has returned; a block must not return before the others are done", what,
             rank);
    }
    return b;
}

uint32_t map_shared(const void* pointer, unsigned rank) {
    peer("mapa", rank);
    return uint32_t(shared_offset("mapa", pointer, 1)) | rank << RANK_SHIFT;
}

void* remote_pointer(const char* what, uint32_t address, size_t bytes) {
    Block& b = peer(what, address >> RANK_SHIFT);
    size_t offset = address & ((1u << RANK_SHIFT) - 1);
    if (!is_shared(offset, bytes)) {
        fail("%s of %zu bytes at %zu of the shared window is outside shared memory", what, bytes, offset);
    }
    if (offset % bytes != 0) {
        fail("%s of %zu bytes at a misaligned address", what, bytes);
    }
    return b.window + offset;
}

}  // namespace emulator
