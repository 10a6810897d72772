// Memory of the emulated device: allocations between guard words, and what the sanitizer is told of them.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

/// Zeroed memory, aligned to 256 bytes, guard words before and behind; null when there is none.
void* allocate(size_t bytes);

/// Gives memory back.
void release(void* memory);

/// True when the bytes lie in one allocation.
bool is_allocated(const void* address, size_t bytes);

/// What the guard words of all allocations say: empty, or which allocation was overrun on which side.
std::string overrun();

/// Tells the sanitizer that the bytes may, or may not, be touched. Nothing happens without it.
void allow(void* memory, size_t bytes);
void forbid(void* memory, size_t bytes);

}  // namespace emulator
