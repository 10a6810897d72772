// Named barriers, mbarriers, fences, and semaphores in global memory. PTX ISA: bar, mbarrier,
// fence, ld.acquire, st.release.
//
// Named barriers, global fences and semaphores are for all targets; mbarriers and proxy fences need
// sm_90a.
#pragma once

#include "async.cuh"
#include "hopper.cuh"

/// An mbarrier in shared memory. Phases are numbered from 0; phases p, p + 2, ... have parity p. A phase
/// completes, and the next one starts, when all its arrivals and all expected bytes have arrived.
struct Mbarrier {
    uint64_t word;
};

#ifdef __CUDACC__

// A build with MAPL_GUARD=1 aborts the launch if a wait exceeds about two seconds, and prints where. In other
// builds these macros are empty and do not change the code.
#ifdef MAPL_GUARD
#include <cstdio>

/// Two seconds of a clock of 2 GHz.
constexpr long long GUARD_CLOCKS = 4000000000;

/// Aborts the launch if a wait that began at `start` has lasted too long. The launch error names the kernel,
/// because a guarded program waits after each launch.
DEVICE void guard_wait(long long start, const char* what, unsigned long long address, int phase, const char* function,
                       const char* file, int line) {
    if (clock64() - start > GUARD_CLOCKS) {
        printf("mapl guard: %s (%s:%d): block %u,%u,%u thread %u waits for %s at 0x%llx, phase or value %d\n", function,
               file, line, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, what, address, phase);
        __trap();
    }
}

#define GUARD_CALLER \
    , const char *function = __builtin_FUNCTION(), const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define GUARD_START long long start = clock64();
#define GUARD_WAIT(what, address, phase) guard_wait(start, what, address, phase, function, file, line);
#else
#define GUARD_CALLER
#define GUARD_START
#define GUARD_WAIT(what, address, phase)
#endif

/// Waits at named barrier `id` (1 to 15; sync_block uses 0) until `threads` threads, whole warps, have arrived.
DEVICE void sync_named(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives at named barrier `id` without waiting.
DEVICE void arrive_named(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Initialises an mbarrier with `arrivals` per phase. One thread calls it. Hazard: others may use
/// the mbarrier only after fence_mbarrier_init() by that thread and a barrier.
DEVICE void init_mbarrier(Mbarrier* barrier, int arrivals) {
    HOPPER("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address_of(barrier)), "r"(arrivals) : "memory");
}

/// Invalidates an mbarrier; its memory may then be reused.
DEVICE void invalidate_mbarrier(Mbarrier* barrier) {
    HOPPER("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address_of(barrier)) : "memory");
}

DEVICE void arrive_mbarrier(Mbarrier* barrier) {
    HOPPER("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address_of(barrier)) : "memory");
}

/// Arrives, and makes the phase wait for `bytes` of TMA loads.
DEVICE void arrive_expect_tx(Mbarrier* barrier, int bytes) {
    HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address_of(barrier)), "r"(bytes)
           : "memory");
}

/// Arrives on the same mbarrier in another block of the cluster, with release at cluster scope.
DEVICE void arrive_remote(Mbarrier* barrier, unsigned rank) {
    HOPPER("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
           "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address_of(barrier)),
           "r"(rank)
           : "memory");
}

/// As arrive_remote, but without release at cluster scope, which costs a device-wide memory barrier.
/// Other blocks then need not see the thread's writes. Used to release a stage that only completed
/// wgmmas have read.
DEVICE void arrive_remote_after_reads(Mbarrier* barrier, unsigned rank) {
    HOPPER("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
           "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address_of(barrier)),
           "r"(rank)
           : "memory");
}

/// Waits until the phase of this parity is complete. On a new mbarrier, parity 1 counts as
/// complete.
DEVICE void wait_mbarrier(Mbarrier* barrier, int parity GUARD_CALLER) {
    uint32_t done = 0;
    GUARD_START
    do {
        HOPPER("{\n.reg .pred complete;\nmbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
               "selp.u32 %0, 1, 0, complete;\n}"
               : "=r"(done)
               : "r"(shared_address_of(barrier)), "r"(parity)
               : "memory");
        GUARD_WAIT("the mbarrier", shared_address_of(barrier), parity)
    } while (done == 0);
}

/// As wait_mbarrier with acquire at cluster scope: writes of other blocks before their arrival are
/// visible.
DEVICE void wait_mbarrier_cluster(Mbarrier* barrier, int parity GUARD_CALLER) {
    uint32_t done = 0;
    GUARD_START
    do {
        HOPPER("{\n.reg .pred complete;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
               "selp.u32 %0, 1, 0, complete;\n}"
               : "=r"(done)
               : "r"(shared_address_of(barrier)), "r"(parity)
               : "memory");
        GUARD_WAIT("the mbarrier", shared_address_of(barrier), parity)
    } while (done == 0);
}

/// Makes this thread's init_mbarrier visible to the cluster and to the async proxy (TMA).
DEVICE void fence_mbarrier_init() {
    HOPPER("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Orders the thread's plain accesses to shared memory before later TMA copies and wgmmas.
DEVICE void fence_async_proxy() {
    HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Orders the thread's plain accesses to global memory, and the writes of others that it has
/// observed, before its later TMA copies.
DEVICE void fence_async_proxy_global() {
    HOPPER("fence.proxy.async.global;" ::: "memory");
}

/// Device-scope fence: other blocks see the thread's earlier global accesses before its later ones.
DEVICE void fence_device() {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

/// Load-acquire: if the value was written by store_release, earlier writes of the storing thread are
/// visible after the load.
DEVICE int load_acquire(const int* address) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

DEVICE void store_release(int* address, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// Atomic add with acquire and release; returns the previous value.
DEVICE int fetch_add(int* address, int value) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(address), "r"(value) : "memory");
    return before;
}

/// Semaphore: spins until the word equals `value`, written with store_release. Only in kernels
/// marked CORESIDENT.
DEVICE void wait_semaphore(const int* address, int value GUARD_CALLER) {
    GUARD_START
    while (load_acquire(address) != value) {
        GUARD_WAIT("the semaphore", (unsigned long long)address, value)
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

// Fibers of one OS thread see memory in one order: fences are no-ops, and a missing fence goes
// unnoticed. Exceptions are the fence of initialised mbarriers, and proxy fences, which are checked on
// request (emulator/proxy.cpp).
inline void fence_mbarrier_init() {
    emulator::fence_mbarrier_init();
}

#define fence_async_proxy() \
    emulator::fence_async_proxy([] { static const emulator::Site site{__FILE__, __LINE__}; return &site; }())

#define fence_async_proxy_global() \
    emulator::fence_async_proxy_global([] { static const emulator::Site site{__FILE__, __LINE__}; return &site; }())

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

inline void wait_semaphore(const int* address, int value) {
    emulator::wait_until("semaphore in global memory", [=] { return load_acquire(address) == value; });
}

#endif
