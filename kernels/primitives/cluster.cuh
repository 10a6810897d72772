// Clusters of blocks, their shared memory and their barrier; registers of warpgroups; launches that overlap. PTX ISA:
// barrier.cluster, mapa, ld and st of .shared::cluster, setmaxnreg, griddepcontrol. Needs sm_90a.
//
// A block must not return while others of its cluster may still touch its shared memory: sync_cluster() comes last.
#pragma once

#include "barrier.cuh"

#ifdef __CUDACC__

/// Number of the block in its cluster.
DEVICE unsigned cluster_rank() {
    unsigned rank = 0;
    HOPPER("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/// Blocks of the cluster.
DEVICE unsigned cluster_blocks() {
    unsigned blocks = 1;
    HOPPER("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}

/// Counts the thread as one that has come to the cluster's barrier. What it wrote before is seen after wait_cluster().
DEVICE void arrive_cluster() {
    HOPPER("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/// Waits until all threads of the cluster have come.
DEVICE void wait_cluster() {
    HOPPER("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Address of the same place in the shared memory of another block of the cluster.
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

DEVICE float load_remote(uint32_t address) {
    float x = 0.0f;
    HOPPER("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}

DEVICE void store_remote(uint32_t address, float x) {
    HOPPER("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}

/// Raises the registers of each thread of the warpgroup, once others have given theirs back. All its warps call it, in
/// a kernel marked ALONE.
template <int REGISTERS>
DEVICE void increase_registers() {
    HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/// Lowers the registers of each thread of the warpgroup. All its warps call it.
template <int REGISTERS>
DEVICE void decrease_registers() {
    HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/// Waits until the launches that this one depends on are complete and what they wrote is seen.
DEVICE void wait_for_earlier_launch() {
    HOPPER("griddepcontrol.wait;" ::: "memory");
}

/// Lets the launch that comes next begin, once all blocks have come here or returned.
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

inline float load_remote(uint32_t address) {
    float x;
    std::memcpy(&x, emulator::remote_pointer("ld.shared::cluster", address, 4), 4);
    return x;
}

inline void store_remote(uint32_t address, float x) {
    std::memcpy(emulator::remote_pointer("st.shared::cluster", address, 4), &x, 4);
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

// Launches of the emulator run one after another to their ends.

inline void launch_dependents() {}

#endif

/// Barrier of the cluster.
DEVICE void sync_cluster() {
    arrive_cluster();
    wait_cluster();
}
