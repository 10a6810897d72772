// Memory of the emulated device: allocations between guard words, and what the sanitizer is told of them.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

/// Zeroed memory, aligned to 256 bytes, guard words before and behind; null when there is none.
void* allocate(size_t bytes);

/// Gives memory back.
void release(void* memory);

/// Start of the allocation that holds the bytes, and its size in `room`; null when there is none.
const unsigned char* allocation_of(const void* address, size_t bytes, size_t& room);

/// What the guard words of all allocations say: empty, or which allocation was overrun on which side.
std::string overrun();

/// Tells the sanitizer that the bytes may, or may not, be touched. Nothing happens without it.
void allow(void* memory, size_t bytes);
void forbid(void* memory, size_t bytes);

}  // namespace emulator
