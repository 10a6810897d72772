// Device memory of the emulator: allocations between guard bytes, which are poisoned for the sanitizer.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

/// Zeroed memory, aligned to 256 bytes, with guard bytes on both sides; null if out of memory.
void* allocate(size_t bytes);

/// Frees memory.
void release(void* memory);

/// Start of the allocation that contains the bytes, and its size in `room`; null if no allocation contains them.
const unsigned char* allocation_of(const void* address, size_t bytes, size_t& room);

/// Checks the guard bytes of all allocations. Returns an empty string, or a message with the size and side of
/// an overrun allocation.
std::string overrun();

/// Marks bytes as accessible or inaccessible for the sanitizer; no-ops without it.
void unpoison(void* memory, size_t bytes);
void poison(void* memory, size_t bytes);

}  // namespace emulator
