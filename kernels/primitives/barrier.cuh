// Barriers of part of a block, memory barriers that count arrivals and bytes, fences, and turns that blocks take. PTX
// ISA: bar, mbarrier, fence, ld.acquire, st.release.
//
// Named barriers, fences of global memory and turns are for all targets; memory barriers and proxy fences need sm_90a.
#pragma once

#include "async.cuh"
#include "hopper.cuh"

/// A memory barrier, in shared memory. Its phases are numbered from 0; parity p is that of phases p, p + 2, ... A phase
/// is complete when all its arrivals and all the bytes expected in it have come; then the next one begins.
struct Mbarrier {
    uint64_t word;
};

#ifdef __CUDACC__

/// Barrier `id` (1 to 15; 0 is sync_block's) of `threads` threads of the block, whole warps.
DEVICE void sync_named(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Counts the thread as one that has come to barrier `id`; it does not wait.
DEVICE void arrive_named(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Makes an object for phases of so many arrivals. One thread does; the others may use it after fence_mbarrier_init()
/// by that thread and a barrier.
DEVICE void init_mbarrier(Mbarrier* barrier, int arrivals) {
    HOPPER("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address_of(barrier)), "r"(arrivals) : "memory");
}

/// Ends the object's life; its memory may then be used otherwise.
DEVICE void invalidate_mbarrier(Mbarrier* barrier) {
    HOPPER("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address_of(barrier)) : "memory");
}

DEVICE void arrive_mbarrier(Mbarrier* barrier) {
    HOPPER("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address_of(barrier)) : "memory");
}

/// An arrival that also makes the phase wait for `bytes` of bulk loads.
DEVICE void arrive_expect_tx(Mbarrier* barrier, int bytes) {
    HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address_of(barrier)), "r"(bytes)
           : "memory");
}

/// An arrival on the same barrier of another block of the cluster.
DEVICE void arrive_remote(Mbarrier* barrier, unsigned rank) {
    HOPPER("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
           "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address_of(barrier)),
           "r"(rank)
           : "memory");
}

/// As arrive_remote, but tells other blocks nothing of what the thread wrote: for giving back memory that it has read through
/// finished products. The ordering of arrive_remote costs a barrier of the whole device's memory.
DEVICE void arrive_remote_after_reads(Mbarrier* barrier, unsigned rank) {
    HOPPER("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
           "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address_of(barrier)),
           "r"(rank)
           : "memory");
}

/// Waits until the phase of this parity is complete. Of a new barrier, phase 1 counts as complete.
DEVICE void wait_mbarrier(Mbarrier* barrier, int parity) {
    uint32_t done = 0;
    do {
        HOPPER("{\n.reg .pred complete;\nmbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
               "selp.u32 %0, 1, 0, complete;\n}"
               : "=r"(done)
               : "r"(shared_address_of(barrier)), "r"(parity)
               : "memory");
    } while (done == 0);
}

/// As wait_mbarrier; what threads of other blocks wrote before they arrived is seen after.
DEVICE void wait_mbarrier_cluster(Mbarrier* barrier, int parity) {
    uint32_t done = 0;
    do {
        HOPPER("{\n.reg .pred complete;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
               "selp.u32 %0, 1, 0, complete;\n}"
               : "=r"(done)
               : "r"(shared_address_of(barrier)), "r"(parity)
               : "memory");
    } while (done == 0);
}

/// Makes init_mbarrier of this thread visible to the cluster and to bulk copies.
DEVICE void fence_mbarrier_init() {
    HOPPER("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Orders the thread's plain accesses to shared memory before bulk copies and warpgroup products that come after.
DEVICE void fence_async_proxy() {
    HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Orders the thread's plain accesses to global memory, and what it has seen of other threads', before its bulk copies that
/// come after.
DEVICE void fence_async_proxy_global() {
    HOPPER("fence.proxy.async.global;" ::: "memory");
}

/// Orders the thread's accesses to global memory before those that come after, as other blocks see them.
DEVICE void fence_device() {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

/// What the thread that stored the value with store_release wrote before is seen after.
DEVICE int load_acquire(const int* address) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

DEVICE void store_release(int* address, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// Adds, and gives what was there before; acquires and releases.
DEVICE int fetch_add(int* address, int value) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(address), "r"(value) : "memory");
    return before;
}

/// Waits until the word is `turn`, written with store_release. Only in kernels marked CORESIDENT.
DEVICE void wait_semaphore(const int* address, int turn) {
    while (load_acquire(address) != turn) {
    }
}

#else

inline void sync_named(int id, int threads) {
    emulator::sync_named(id, threads);
}

inline void arrive_named(int id, int threads) {
    emulator::arrive_named(id, threads);
}

inline void init_mbarrier(Mbarrier* barrier, int arrivals) {
    emulator::init_mbarrier(barrier, arrivals);
}

inline void invalidate_mbarrier(Mbarrier* barrier) {
    emulator::invalidate_mbarrier(barrier);
}

inline void arrive_mbarrier(Mbarrier* barrier) {
    emulator::arrive_mbarrier(barrier, -1, 0);
}

inline void arrive_expect_tx(Mbarrier* barrier, int bytes) {
    emulator::arrive_mbarrier(barrier, -1, bytes);
}

inline void arrive_remote(Mbarrier* barrier, unsigned rank) {
    emulator::arrive_mbarrier(barrier, int(rank), 0);
}

inline void arrive_remote_after_reads(Mbarrier* barrier, unsigned rank) {
    emulator::arrive_mbarrier(barrier, int(rank), 0);
}

inline void wait_mbarrier(Mbarrier* barrier, int parity) {
    emulator::wait_mbarrier(barrier, parity);
}

inline void wait_mbarrier_cluster(Mbarrier* barrier, int parity) {
    emulator::wait_mbarrier(barrier, parity);
}

// Fibers of one OS thread see memory in one order: fences have nothing to do, and a missing one does not show.
inline void fence_mbarrier_init() {}

inline void fence_async_proxy() {}

inline void fence_async_proxy_global() {}

inline void fence_device() {}

inline int load_acquire(const int* address) {
    emulator::check_global("ld.acquire", address, sizeof *address);
    return *address;
}

inline void store_release(int* address, int value) {
    emulator::check_global("st.release", address, sizeof *address);
    *address = value;
}

inline int fetch_add(int* address, int value) {
    emulator::check_global("atom.add", address, sizeof *address);
    int before = *address;
    *address = before + value;
    return before;
}

inline void wait_semaphore(const int* address, int turn) {
    emulator::wait_until("a word of global memory", [=] { return load_acquire(address) == turn; });
}

#endif
