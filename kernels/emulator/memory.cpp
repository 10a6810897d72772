// Device memory of the emulator: a registry of allocations, each between two guards.
#include "memory.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

namespace {

/// Guard bytes on each side.
constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xa5;

struct Registry {
    std::mutex lock;
    /// Size by start address.
    std::map<const unsigned char*, size_t> allocations;
};

Registry& registry() {
    static Registry* const one = new Registry;
    return *one;
}

}  // namespace

void unpoison(void* memory, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory, bytes);
#else
    (void)memory, (void)bytes;
#endif
}

void poison(void* memory, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(memory, bytes);
#else
    (void)memory, (void)bytes;
#endif
}

void* allocate(size_t bytes) {
    size_t room = (bytes + GUARD - 1) / GUARD * GUARD + 2 * GUARD;
    if (room < bytes) {
        return nullptr;
    }
    auto* whole = static_cast<unsigned char*>(std::aligned_alloc(GUARD, room));
    if (whole == nullptr) {
        return nullptr;
    }
    unsigned char* memory = whole + GUARD;
    std::memset(whole, GUARD_BYTE, GUARD);
    std::memset(memory, 0, bytes);
    std::memset(memory + bytes, GUARD_BYTE, room - GUARD - bytes);
    poison(whole, GUARD);
    poison(memory + bytes, room - GUARD - bytes);
    std::lock_guard<std::mutex> held(registry().lock);
    registry().allocations[memory] = bytes;
    return memory;
}

void release(void* memory) {
    auto* start = static_cast<unsigned char*>(memory);
    size_t bytes;
    {
        std::lock_guard<std::mutex> held(registry().lock);
        auto found = registry().allocations.find(start);
        bytes = found->second;
        registry().allocations.erase(found);
    }
    unpoison(start - GUARD, GUARD);
    unpoison(start + bytes, GUARD);
    std::free(start - GUARD);
}

const unsigned char* allocation_of(const void* address, size_t bytes, size_t& room) {
    auto* start = static_cast<const unsigned char*>(address);
    std::lock_guard<std::mutex> held(registry().lock);
    auto next = registry().allocations.upper_bound(start);
    if (next == registry().allocations.begin()) {
        return nullptr;
    }
    --next;
    room = next->second;
    return start + bytes <= next->first + room ? next->first : nullptr;
}

std::string overrun() {
    std::lock_guard<std::mutex> held(registry().lock);
    for (const auto& [memory, bytes] : registry().allocations) {
        auto* start = const_cast<unsigned char*>(memory);
        unpoison(start - GUARD, GUARD);
        unpoison(start + bytes, GUARD);
        bool before = false, past = false;
        for (size_t i = 0; i < GUARD; ++i) {
            before = before || start[-1 - ptrdiff_t(i)] != GUARD_BYTE;
            past = past || start[bytes + i] != GUARD_BYTE;
        }
        poison(start - GUARD, GUARD);
        poison(start + bytes, GUARD);
        if (before || past) {
            char text[160];
            std::snprintf(text, sizeof text, "wrote %s an allocation of %zu bytes", before ? "before" : "past", bytes);
            return text;
        }
    }
    return {};
}

}  // namespace emulator
