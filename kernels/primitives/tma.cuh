// TMA: bulk tensor copies between global and shared memory. PTX ISA: cp.async.bulk.tensor,
// cp.reduce.async.bulk.tensor, prefetch.tensormap. Needs sm_90a.
//
// A box is stored in shared memory row by row, innermost dimension first, at a multiple of 128
// bytes. With the 128-byte swizzle its rows are 128 bytes, its address is a multiple of 1024, and
// 16-byte chunk c of row r is stored at chunk c xor (r mod 8). Elements outside the tensor load as
// 0 (their bytes count) and are not stored. Coordinates are in elements, innermost first. One
// thread issues a copy.
#pragma once

#include "barrier.cuh"

/// Tensor map (the driver's CUtensorMap), encoded on the host; opaque to the device code.
struct alignas(64) TensorDescriptor {
    uint64_t word[16];
};

// Parameter type of entry points: `KERNEL(128, name)(TensorMap map, ...)`. A tensor map must be a grid constant.
// A grid constant is an attribute of the parameter, not a type, so TensorMap is a macro. Functions use
// `const TensorDescriptor&`.
#ifdef __CUDACC__
#define TensorMap const __grid_constant__ TensorDescriptor
#else
#define TensorMap const TensorDescriptor
#endif

#ifdef __CUDACC__

/// Prefetches the tensor map to the descriptor cache.
DEVICE void prefetch_tensor_map(const TensorDescriptor& map) {
    HOPPER("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// TMA load of a box. Its bytes complete on `barrier`, on which arrive_expect_tx() announced them.
DEVICE void tma_load(void* shared, const TensorDescriptor& map, int x, int y, Mbarrier* barrier) {
    HOPPER("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
           "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address_of(shared)),
           "l"(&map), "r"(x), "r"(y), "r"(shared_address_of(barrier))
           : "memory");
}

DEVICE void tma_load(void* shared, const TensorDescriptor& map, int x, int y, int z, Mbarrier* barrier) {
    HOPPER("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
           "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address_of(shared)),
           "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address_of(barrier))
           : "memory");
}

/// TMA multicast load of a box to the same address in every block of the cluster that has its bit set in
/// `blocks`. The bytes complete on the barrier of each of these blocks.
DEVICE void tma_load_multicast(void* shared, const TensorDescriptor& map, int x, int y, Mbarrier* barrier,
                               unsigned blocks) {
    HOPPER("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
           "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address_of(shared)),
           "l"(&map), "r"(x), "r"(y), "r"(shared_address_of(barrier)), "h"(uint16_t(blocks))
           : "memory");
}

DEVICE void tma_load_multicast(void* shared, const TensorDescriptor& map, int x, int y, int z, Mbarrier* barrier,
                               unsigned blocks) {
    HOPPER("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
           "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address_of(shared)),
           "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address_of(barrier)), "h"(uint16_t(blocks))
           : "memory");
}

/// TMA store of a box. Hazard: the threads that wrote it must have called fence_async_proxy() and
/// then passed a barrier.
DEVICE void tma_store(const TensorDescriptor& map, int x, int y, const void* shared) {
    HOPPER("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
           "r"(y), "r"(shared_address_of(shared))
           : "memory");
}

DEVICE void tma_store(const TensorDescriptor& map, int x, int y, int z, const void* shared) {
    HOPPER("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(x),
           "r"(y), "r"(z), "r"(shared_address_of(shared))
           : "memory");
}

/// TMA reduce-add of a box to the tensor, in the tensor's element type. Rows of the tensor must be
/// multiples of 16 bytes: an H200 adds to all of the last 16 bytes of a row, even if some are
/// outside. The kernel must fix the order of several additions to one element.
DEVICE void tma_reduce_add(const TensorDescriptor& map, int x, int y, const void* shared) {
    HOPPER("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
           "r"(x), "r"(y), "r"(shared_address_of(shared))
           : "memory");
}

DEVICE void tma_reduce_add(const TensorDescriptor& map, int x, int y, int z, const void* shared) {
    HOPPER("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::
               "l"(&map),
           "r"(x), "r"(y), "r"(z), "r"(shared_address_of(shared))
           : "memory");
}

/// Commits the thread's TMA stores and reductions since the last commit as a group.
DEVICE void tma_commit() {
    HOPPER("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until at most PENDING of the thread's newest groups still read shared memory. Required
/// before the thread exits or the buffers are reused.
template <int PENDING>
DEVICE void tma_wait_read() {
    HOPPER("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

/// Waits until at most PENDING of the thread's newest groups are incomplete in global memory.
template <int PENDING>
DEVICE void tma_wait() {
    HOPPER("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

#else

inline void prefetch_tensor_map(const TensorDescriptor& map) {
    emulator::check_tensor_map(map.word, int(map.word[2] >> 8 & 0xff));
}

inline void tma_load(void* shared, const TensorDescriptor& map, int x, int y, Mbarrier* barrier) {
    const int at[] = {x, y};
    emulator::tma_load(shared, map.word, at, 2, barrier, 0);
}

inline void tma_load(void* shared, const TensorDescriptor& map, int x, int y, int z, Mbarrier* barrier) {
    const int at[] = {x, y, z};
    emulator::tma_load(shared, map.word, at, 3, barrier, 0);
}

inline void tma_load_multicast(void* shared, const TensorDescriptor& map, int x, int y, Mbarrier* barrier,
                               unsigned blocks) {
    const int at[] = {x, y};
    emulator::tma_load(shared, map.word, at, 2, barrier, blocks);
}

inline void tma_load_multicast(void* shared, const TensorDescriptor& map, int x, int y, int z, Mbarrier* barrier,
                               unsigned blocks) {
    const int at[] = {x, y, z};
    emulator::tma_load(shared, map.word, at, 3, barrier, blocks);
}

inline void tma_store(const TensorDescriptor& map, int x, int y, const void* shared) {
    const int at[] = {x, y};
    emulator::tma_store(shared, map.word, at, 2, false);
}

inline void tma_store(const TensorDescriptor& map, int x, int y, int z, const void* shared) {
    const int at[] = {x, y, z};
    emulator::tma_store(shared, map.word, at, 3, false);
}

inline void tma_reduce_add(const TensorDescriptor& map, int x, int y, const void* shared) {
    const int at[] = {x, y};
    emulator::tma_store(shared, map.word, at, 2, true);
}

inline void tma_reduce_add(const TensorDescriptor& map, int x, int y, int z, const void* shared) {
    const int at[] = {x, y, z};
    emulator::tma_store(shared, map.word, at, 3, true);
}

inline void tma_commit() {
    emulator::tma_commit();
}

template <int PENDING>
void tma_wait_read() {
    emulator::tma_wait(PENDING, false);
}

template <int PENDING>
void tma_wait() {
    emulator::tma_wait(PENDING, true);
}

#endif
