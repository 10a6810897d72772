// Asynchronous copies from global to shared memory. PTX ISA: cp.async, cp.async.commit_group,
// cp.async.wait_group.
#pragma once

#ifdef __CUDACC__

/// 32-bit shared-window address, as PTX instructions expect it.
DEVICE uint32_t shared_address_of(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

/// Starts a 16-byte copy that bypasses L1. Bytes from `valid` (0 to 16) on become 0; nothing is
/// read if `valid` is 0. Both addresses are multiples of 16.
DEVICE void cp_async_16(void* shared, const void* global, int valid = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address_of(shared)), "l"(global), "r"(valid)
                 : "memory");
}

/// As cp_async_16 for 4 bytes, through L1.
DEVICE void cp_async_4(void* shared, const void* global, int valid = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address_of(shared)), "l"(global), "r"(valid)
                 : "memory");
}

/// Commits the thread's copies since the last commit as a group.
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most PENDING of the thread's newest groups are in flight. Other threads see the
/// copies only after a barrier.
template <int PENDING>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#else

inline uint32_t shared_address_of(const void* pointer) {
    return emulator::shared_address(pointer);
}

inline void cp_async_16(void* shared, const void* global, int valid = 16, CALLER_LINE) {
    emulator::note_access(global, valid, false, file, line);
    emulator::note_access(shared, 16, true, file, line);
    emulator::cp_async(shared, global, 16, valid);
}

inline void cp_async_4(void* shared, const void* global, int valid = 4, CALLER_LINE) {
    emulator::note_access(global, valid, false, file, line);
    emulator::note_access(shared, 4, true, file, line);
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
