// Copies from global to shared memory that complete later. PTX ISA: cp.async, cp.async.commit_group, cp.async.wait_group.
#pragma once

#ifdef __CUDACC__

/// Address in the shared window, as instructions take it.
DEVICE uint32_t shared_address_of(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

/// Begins a copy of 16 bytes past the first-level cache; bytes from `valid` (0 to 16) on are set to 0, and nothing is read
/// when `valid` is 0. Both addresses are multiples of 16.
DEVICE void cp_async_16(void* shared, const void* global, int valid = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address_of(shared)), "l"(global), "r"(valid)
                 : "memory");
}

/// As cp_async_16, of 4 bytes, through the first-level cache.
DEVICE void cp_async_4(void* shared, const void* global, int valid = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address_of(shared)), "l"(global), "r"(valid)
                 : "memory");
}

/// Makes a group of the thread's copies since the last one.
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most PENDING of the thread's newest groups are under way. Other threads see the copies after a barrier.
template <int PENDING>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#else

inline uint32_t shared_address_of(const void* pointer) {
    return emulator::shared_address(pointer);
}

inline void cp_async_16(void* shared, const void* global, int valid = 16) {
    emulator::cp_async(shared, global, 16, valid);
}

inline void cp_async_4(void* shared, const void* global, int valid = 4) {
    emulator::cp_async(shared, global, 4, valid);
}

inline void cp_async_commit() {
    emulator::cp_async_commit();
}

template <int PENDING>
void cp_async_wait() {
    emulator::cp_async_wait(PENDING);
}

#endif
