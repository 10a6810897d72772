// Thread block clusters (distributed shared memory, cluster barrier), setmaxnreg, programmatic
// dependent launch. PTX ISA: barrier.cluster, mapa, ld and st of .shared::cluster, setmaxnreg,
// griddepcontrol. Needs sm_90a.
//
// Hazard: a block must not exit while others of its cluster may still access its shared memory. A block ends
// with sync_cluster(), or waits for the last arrivals of the others.
#pragma once

#include "barrier.cuh"
#include "bits.cuh"

#ifdef __CUDACC__

/// Rank of the block in its cluster.
DEVICE unsigned cluster_rank() {
    unsigned rank = 0;
    HOPPER("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/// Number of blocks in the cluster.
DEVICE unsigned cluster_blocks() {
    unsigned blocks = 1;
    HOPPER("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}

/// Arrives at the cluster barrier without waiting. Earlier writes are visible after wait_cluster().
/// Cost: orders all earlier accesses of the thread to device memory as well (MEMBAR in SASS).
DEVICE void arrive_cluster() {
    HOPPER("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/// Arrives at the cluster barrier without waiting and without ordering writes. Initialised mbarriers
/// are visible after wait_cluster() if fence_mbarrier_init() came before.
DEVICE void arrive_cluster_relaxed() {
    HOPPER("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

/// Waits until all threads of the cluster have arrived.
DEVICE void wait_cluster() {
    HOPPER("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Distributed shared memory address of the same location in another block of the cluster.
DEVICE uint32_t address_in_block(const void* shared, unsigned rank) {
    uint32_t address = 0;
    HOPPER("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address_of(shared)), "r"(rank));
    return address;
}

DEVICE uint32_t load_remote_word(uint32_t address) {
    uint32_t word = 0;
    HOPPER("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

DEVICE void store_remote_word(uint32_t address, uint32_t word) {
    HOPPER("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

/// Increases the registers per thread of the warpgroup, blocking until other warpgroups have
/// released enough. All its warps call it, in a kernel marked ALONE.
template <int REGISTERS>
DEVICE void increase_registers() {
    HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/// Decreases the registers per thread of the warpgroup. All its warps call it.
template <int REGISTERS>
DEVICE void decrease_registers() {
    HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/// Waits until the launches that this one depends on are complete and their writes visible.
DEVICE void wait_for_earlier_launch() {
    HOPPER("griddepcontrol.wait;" ::: "memory");
}

/// Lets the next launch start once all blocks have called this or exited.
DEVICE void launch_dependents() {
    HOPPER("griddepcontrol.launch_dependents;" ::: "memory");
}

#else

inline unsigned cluster_rank() {
    return emulator::cluster_rank();
}

inline unsigned cluster_blocks() {
    return emulator::cluster_blocks();
}

inline void arrive_cluster() {
    emulator::arrive_cluster();
}

// The emulator does not tell the two kinds of arrival apart.
inline void arrive_cluster_relaxed() {
    emulator::arrive_cluster();
}

inline void wait_cluster() {
    emulator::wait_cluster();
}

inline uint32_t address_in_block(const void* shared, unsigned rank) {
    return emulator::map_shared(shared, rank);
}

inline uint32_t load_remote_word(uint32_t address) {
    uint32_t word;
    std::memcpy(&word, emulator::remote_pointer("ld.shared::cluster", address, 4), 4);
    return word;
}

inline void store_remote_word(uint32_t address, uint32_t word) {
    std::memcpy(emulator::remote_pointer("st.shared::cluster", address, 4), &word, 4);
}

template <int REGISTERS>
void increase_registers() {
    emulator::set_registers(REGISTERS, true);
}

template <int REGISTERS>
void decrease_registers() {
    emulator::set_registers(REGISTERS, false);
}

inline void wait_for_earlier_launch() {
    emulator::wait_for_earlier_launch();
}

// The emulator runs launches sequentially.
inline void launch_dependents() {}

#endif

DEVICE float load_remote(uint32_t address) {
    return float_of_bits(load_remote_word(address));
}

DEVICE void store_remote(uint32_t address, float x) {
    store_remote_word(address, bits_of_float(x));
}

/// Cluster barrier.
DEVICE void sync_cluster() {
    arrive_cluster();
    wait_cluster();
}
