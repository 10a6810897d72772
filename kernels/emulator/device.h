// Emulator interface of the kernel files: index of the running thread, shared memory, and the waits
// that primitives are built from. The implementation is in scheduler.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

/// Marks a constant or an enum for which build.rs generates a Rust item.
#define EXPORT

namespace emulator {

struct Dim {
    unsigned x, y, z;
};

Dim thread_index();
Dim block_index();
Dim block_size();
Dim grid_size();

/// Lane of the running thread.
int lane();

/// Aborts the launch with an error that names the kernel, block and thread. Does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- waits --------------------------------------------------------------------------------------------------------

/// A source location.
struct Site {
    const char* file;
    int line;
};

/// Barrier of all threads of the block that have not returned. A launch can omit the barriers of
/// one source location, to show that results then differ between thread orders.
void sync_block(const Site* site);

/// Proxy fences of shared and of global memory. They are checked only in launches that request the check. Such a
/// launch can omit the fences of one source location, to show that the check detects the omission.
void fence_async_proxy(const Site* site);
void fence_async_proxy_global(const Site* site);

/// Waits at named barrier `id` (1 to 15) until `threads` threads, whole warps, have arrived.
void sync_named(int id, int threads);
/// Arrives at named barrier `id` without waiting.
void arrive_named(int id, int threads);

/// Exchange of values between the 32 lanes of a warp. It returns 32 slots of at most EXCHANGE_BYTES, by lane,
/// which are valid until the lane's next exchange. `what` names the primitive; lanes at different primitives
/// are an error.
constexpr int EXCHANGE_BYTES = 80;
/// exchange_slot() returns the lane's slot of the next exchange; exchange_slots() returns all slots once every
/// lane has filled its slot.
unsigned char* exchange_slot(const char* what, int bytes);
const unsigned char* exchange_slots(const char* what);

template <class T>
const T* exchange(const char* what, const T& mine) {
    static_assert(sizeof(T) <= EXCHANGE_BYTES, "slot of a warp exchange");
    std::memcpy(exchange_slot(what, sizeof(T)), &mine, sizeof(T));
    return reinterpret_cast<const T*>(exchange_slots(what));
}

/// Buffer for a result that one lane computes for its warp after an exchange. `first` is true in
/// the lane that must compute it.
constexpr int RESULT_BYTES = 512;
unsigned char* exchange_result(bool* first);

/// Exchange, after which the first lane that continues calls compute(slots, result) for all lanes.
template <class Result, class T, class Compute>
const Result* exchange_for(const char* what, const T& mine, Compute compute) {
    static_assert(sizeof(Result) <= RESULT_BYTES, "result of a warp exchange");
    const T* slots = exchange(what, mine);
    bool first;
    auto* result = reinterpret_cast<Result*>(exchange_result(&first));
    if (first) {
        compute(slots, *result);
    }
    return result;
}

/// Blocks until `*counter` differs from `seen`.
void wait_change(const char* what, const uint64_t* counter, uint64_t seen);

/// Yields to other threads once.
void yield(const char* what);

/// One round of a spin loop on memory that other threads write (wait_until). If all runnable
/// threads spin and a round changes nothing, a pending asynchronous operation is delivered; if
/// none is pending, the launch has deadlocked.
void spin(const char* what, bool first);

template <class Ready>
void wait_until(const char* what, Ready ready) {
    for (bool first = true; !ready(); first = false) {
        spin(what, first);
    }
}

/// Whether an asynchronous operation takes effect now: always in the rising schedule, never in the falling
/// and late ones, for half of all calls in the random one.
bool deliver_now();

// --- shared and global memory -------------------------------------------------------------------------------------

/// Returns the block's shared array for source location `site`, created by the first thread that reaches it. In
/// new memory all bits are set, so floats are NaN.
void* shared_storage(const void* site, size_t bytes);

template <class T, size_t COUNT>
T* shared_array(const void* site) {
    return static_cast<T*>(shared_storage(site, sizeof(T) * COUNT));
}

/// Dynamic shared memory.
unsigned char* dynamic_shared();
/// Dynamic shared memory of `bytes` bytes; aborts the launch if it has a different size.
unsigned char* dynamic_shared_of(size_t bytes);

/// Aborts the launch unless the bytes are in one device allocation.
void check_global(const char* what, const void* address, size_t bytes);

/// Aborts the launch unless the bytes are in the block's shared memory.
void check_shared(const char* what, const void* address, size_t bytes);

/// 32-bit shared address as in PTX: cluster rank of the block in bits 24 and up, below them the
/// offset in the block's window.
uint32_t shared_address(const void* pointer);

// --- counts of accesses -------------------------------------------------------------------------------------------

/// Number of launches of the process that count accesses (accesses.cpp). While it is 0, a counted access only
/// costs a test of this number.
extern const int* counting;

/// Counts an access of the running thread to global or shared memory, if its launch counts them.
/// Lanes of a warp are grouped by source line: the n-th access of each lane at a line forms one
/// access of the warp.
void count_access(const void* address, int bytes, bool store, const char* file, int line);

inline void note_access(const void* address, int bytes, bool store, const char* file, int line) {
    if (__atomic_load_n(counting, __ATOMIC_RELAXED) != 0) {
        count_access(address, bytes, store, file, line);
    }
}

/// Last parameters of a function whose accesses belong to the source line of its caller.
#define CALLER_LINE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// --- cp.async -----------------------------------------------------------------------------------------------------

/// cp.async of `bytes` (4, 8 or 16) to shared memory: the first `valid` from global memory, the
/// rest 0.
void cp_async(void* shared, const void* global, int bytes, int valid);
/// Commits the open group of copies.
void cp_async_commit();
/// Waits until at most `pending` of the thread's newest groups are in flight.
void cp_async_wait(int pending);

// --- mbarriers ----------------------------------------------------------------------------------------------------

/// mbarrier objects, 8 bytes of shared memory each. `rank` is the block in the cluster, or -1 for the
/// thread's block; `bytes` is the expect_tx count of the arrival.
void init_mbarrier(void* barrier, int arrivals);
/// Makes the thread's init_mbarrier visible to other blocks and to TMA loads.
void fence_mbarrier_init();
void invalidate_mbarrier(void* barrier);
void arrive_mbarrier(void* barrier, int rank, int bytes);
/// Waits until the phase of this parity (0 for the first) is complete.
void wait_mbarrier(void* barrier, int parity);

// --- TMA ----------------------------------------------------------------------------------------------------------

/// Words of a tensor map as src/backend/kernels/emulator.rs encodes it.
using MapWords = uint64_t[16];
/// First word of a tensor map for the emulator.
EXPORT constexpr uint64_t MAP_MAGIC = 0x70616d2d6c70616d;

/// Aborts the launch unless the map was made for the emulator, with `rank` dimensions.
void check_tensor_map(const MapWords& map, int rank);
/// Loads the box at `at` to the same address in every block with its bit set in `blocks` (0: the thread's
/// block only), and completes the box's bytes on the mbarrier of each of these blocks.
void tma_load(void* to, const MapWords& map, const int* at, int rank, void* barrier, unsigned blocks);
/// Stores a box, or adds it to the tensor.
void tma_store(const void* from, const MapWords& map, const int* at, int rank, bool add);
void tma_commit();
/// Waits until at most `pending` of the thread's newest groups still have to read shared memory or,
/// with `written`, to write global memory.
void tma_wait(int pending, bool written);

// --- wgmma --------------------------------------------------------------------------------------------------------

/// One thread's share of wgmma.m64nNk16: 64 rows, `columns` columns. Operands are K-major (0) or
/// MN-major (1). `fragment` is A in registers; it replaces descriptor `a`.
void wgmma(float* sums, int columns, uint64_t a, const uint32_t* fragment, uint64_t b, int a_major,
           int b_major, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

// --- clusters and registers ---------------------------------------------------------------------------------------

unsigned cluster_rank();
unsigned cluster_blocks();
void arrive_cluster();
void wait_cluster();
/// Shared address of the same location in another block of the cluster.
uint32_t map_shared(const void* pointer, unsigned rank);
/// Pointer of a 32-bit shared address. Aborts the launch unless the bytes are shared memory of a
/// running block.
void* remote_pointer(const char* what, uint32_t address, size_t bytes);
/// setmaxnreg: requests (`increase`) or releases registers per thread of the warpgroup.
void set_registers(int registers, bool increase);
void wait_for_earlier_launch();

}  // namespace emulator
