// The emulator's functions as a table, for kernels that are compiled into a separate library
// (src/backend/kernels/own). The program fills the table, and own.h forwards calls to it.
#pragma once

#include "device.h"

/// F(type, name, parameters, arguments) for every function of device.h except fail(), which is variadic.
#define EMULATOR_INTERFACE(F)                                                                              \
    F(Dim, thread_index, (), ())                                                                           \
    F(Dim, block_index, (), ())                                                                            \
    F(Dim, block_size, (), ())                                                                             \
    F(Dim, grid_size, (), ())                                                                              \
    F(int, lane, (), ())                                                                                   \
    F(void, sync_block, (const Site* site), (site))                                                        \
    F(void, fence_async_proxy, (const Site* site), (site))                                                 \
    F(void, fence_async_proxy_global, (const Site* site), (site))                                          \
    F(void, sync_named, (int id, int threads), (id, threads))                                              \
    F(void, arrive_named, (int id, int threads), (id, threads))                                            \
    F(unsigned char*, exchange_slot, (const char* what, int bytes), (what, bytes))                         \
    F(const unsigned char*, exchange_slots, (const char* what), (what))                                    \
    F(unsigned char*, exchange_result, (bool* first), (first))                                             \
    F(void, wait_change, (const char* what, const uint64_t* counter, uint64_t seen), (what, counter, seen)) \
    F(void, yield, (const char* what), (what))                                                             \
    F(void, spin, (const char* what, bool first), (what, first))                                           \
    F(bool, deliver_now, (), ())                                                                           \
    F(void*, shared_storage, (const void* site, size_t bytes), (site, bytes))                              \
    F(unsigned char*, dynamic_shared, (), ())                                                              \
    F(unsigned char*, dynamic_shared_of, (size_t bytes), (bytes))                                          \
    F(void, check_global, (const char* what, const void* address, size_t bytes), (what, address, bytes))   \
    F(void, check_shared, (const char* what, const void* address, size_t bytes), (what, address, bytes))   \
    F(uint32_t, shared_address, (const void* pointer), (pointer))                                          \
    F(void, count_access, (const void* address, int bytes, bool store, const char* file, int line),        \
      (address, bytes, store, file, line))                                                                 \
    F(void, cp_async, (void* shared, const void* global, int bytes, int valid), (shared, global, bytes, valid)) \
    F(void, cp_async_commit, (), ())                                                                       \
    F(void, cp_async_wait, (int pending), (pending))                                                       \
    F(void, init_mbarrier, (void* barrier, int arrivals), (barrier, arrivals))                             \
    F(void, fence_mbarrier_init, (), ())                                                                   \
    F(void, invalidate_mbarrier, (void* barrier), (barrier))                                               \
    F(void, arrive_mbarrier, (void* barrier, int rank, int bytes), (barrier, rank, bytes))                 \
    F(void, wait_mbarrier, (void* barrier, int parity), (barrier, parity))                                 \
    F(void, check_tensor_map, (const MapWords& map, int rank), (map, rank))                                \
    F(void, tma_load, (void* to, const MapWords& map, const int* at, int rank, void* barrier, unsigned blocks), \
      (to, map, at, rank, barrier, blocks))                                                                \
    F(void, tma_store, (const void* from, const MapWords& map, const int* at, int rank, bool add),         \
      (from, map, at, rank, add))                                                                          \
    F(void, tma_commit, (), ())                                                                            \
    F(void, tma_wait, (int pending, bool written), (pending, written))                                     \
    F(void, wgmma, (float* sums, int columns, uint64_t a, const uint32_t* fragment, uint64_t b, int a_major, \
      int b_major, bool accumulate), (sums, columns, a, fragment, b, a_major, b_major, accumulate))        \
    F(void, wgmma_fence, (), ())                                                                           \
    F(void, wgmma_commit, (), ())                                                                          \
    F(void, wgmma_wait, (int pending), (pending))                                                          \
    F(unsigned, cluster_rank, (), ())                                                                      \
    F(unsigned, cluster_blocks, (), ())                                                                    \
    F(void, arrive_cluster, (), ())                                                                        \
    F(void, wait_cluster, (), ())                                                                          \
    F(uint32_t, map_shared, (const void* pointer, unsigned rank), (pointer, rank))                         \
    F(void*, remote_pointer, (const char* what, uint32_t address, size_t bytes), (what, address, bytes))   \
    F(void, set_registers, (int registers, bool increase), (registers, increase))                          \
    F(void, wait_for_earlier_launch, (), ())

namespace emulator {

/// One pointer for each function.
struct Interface {
#define MEMBER(type, name, parameters, arguments) type(*name) parameters;
    EMULATOR_INTERFACE(MEMBER)
#undef MEMBER
    void (*fail)(const char* format, ...);
    const int* counting;
};

}  // namespace emulator
