// What kernel files see of the emulator: the place of the running thread, shared memory, and the waits that
// primitives are made of. scheduler.h has the machinery.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace emulator {

struct Dim {
    unsigned x, y, z;
};

Dim thread_index();
Dim block_index();
Dim block_size();
Dim grid_size();

/// Lane of the running thread in its warp.
int lane();

/// Ends the launch with an error that names the kernel, the block and the thread. Never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- waits --------------------------------------------------------------------------------------------------------

/// A place in the program.
struct Site {
    const char* file;
    int line;
};

/// Barrier of all threads of the block that have not returned. A launch may leave out the barriers of one place, to show
/// that results then differ between orders of threads.
void sync_block(const Site* site);

/// Barrier `id` (1 to 15) of `threads` threads of the block, whole warps.
void sync_named(int id, int threads);
/// Counts the thread as one that has come to barrier `id`, without waiting.
void arrive_named(int id, int threads);

/// Gives the 32 lanes of the warp one another's values: returns 32 slots of `bytes`, by lane, valid until the lane's
/// next exchange. `what` is the primitive; lanes that are at different ones are an error.
constexpr int EXCHANGE_BYTES = 80;
/// The lane's slot of the next exchange, and all slots once every lane has filled its own.
unsigned char* exchange_slot(const char* what, int bytes);
const unsigned char* exchange_slots(const char* what);

template <class T>
const T* exchange(const char* what, const T& mine) {
    static_assert(sizeof(T) <= EXCHANGE_BYTES, "slot of a warp exchange");
    std::memcpy(exchange_slot(what, sizeof(T)), &mine, sizeof(T));
    return reinterpret_cast<const T*>(exchange_slots(what));
}

/// Room for what one lane computes for all of its warp after an exchange; `first` tells the lane that is to do it.
constexpr int RESULT_BYTES = 512;
unsigned char* exchange_result(bool* first);

/// As exchange, followed by a computation on all slots that the first lane does for all: compute(slots, result).
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

/// Lets other threads run until `*counter` differs from `seen`.
void wait_change(const char* what, const uint64_t* counter, uint64_t seen);

/// Lets other threads run once.
void yield(const char* what);

/// Lets other threads run until `ready()`, which looks at memory that they write. When every thread that could run is
/// in such a loop and one round has changed nothing, asynchronous operations are delivered; without any it is a
/// deadlock.
void spin(const char* what, bool first);

template <class Ready>
void wait_until(const char* what, Ready ready) {
    for (bool first = true; !ready(); first = false) {
        spin(what, first);
    }
}

/// True in half of all calls under the random schedule, always `rising` under the rising one, never under the falling
/// one: when an asynchronous operation takes effect.
bool deliver_now();

// --- shared and global memory -------------------------------------------------------------------------------------

/// The block's array of a place in the program; the first thread to come makes it. New memory is all ones: NaN.
void* shared_place(const void* site, size_t bytes);

template <class T, size_t COUNT>
T* shared_array(const void* site) {
    return static_cast<T*>(shared_place(site, sizeof(T) * COUNT));
}

/// The block's shared memory whose size the launch gave.
unsigned char* dynamic_shared();

/// Ends the launch unless the bytes lie in one allocation of the device.
void check_global(const char* what, const void* address, size_t bytes);

/// Ends the launch unless the bytes lie in shared memory of the block.
void check_shared(const char* what, const void* address, size_t bytes);

/// Address in the shared window, as 32-bit addresses of PTX: the block's rank in its cluster in bits 24 and up, below
/// them the offset from the start of the block's window.
uint32_t shared_address(const void* pointer);

// --- copies of a thread that complete later -----------------------------------------------------------------------

/// cp.async: `bytes` (4, 8 or 16) to shared memory, of which the first `valid` come from global memory, the rest are 0.
void copy_async(void* shared, const void* global, int bytes, int valid);
/// Closes the group of the copies so far.
void commit_async();
/// Returns when at most `pending` of the thread's newest groups are under way.
void wait_async(int pending);

// --- memory barriers ----------------------------------------------------------------------------------------------

/// mbarrier objects: 8 bytes of shared memory each. `rank` is the block of the cluster, or -1 for the own one; `bytes`
/// are expected on top of the arrival.
void init_mbarrier(void* barrier, int arrivals);
void invalidate_mbarrier(void* barrier);
void arrive_mbarrier(void* barrier, int rank, int bytes);
/// Returns when the phase of this parity (0 for the first) is complete.
void wait_mbarrier(void* barrier, int parity);

// --- bulk copies of boxes of tensors --------------------------------------------------------------------------------

/// Words of a tensor map as src/backend/kernels/emulator.rs writes them.
using MapWords = uint64_t[16];

/// Ends the launch unless the map is one of this device with so many dimensions.
void check_map(const MapWords& map, int rank);
/// Loads the box at `at` to the same place in every block whose bit is set in `blocks` (0: the own block alone), and
/// counts its bytes on their barriers.
void load_box(void* to, const MapWords& map, const int* at, int rank, void* barrier, unsigned blocks);
/// Stores a box, or adds it to what is there.
void store_box(const void* from, const MapWords& map, const int* at, int rank, bool add);
void commit_boxes();
/// Returns when at most `pending` of the thread's newest groups are under way: still to read shared memory, or
/// (`written`) to write global memory.
void wait_boxes(int pending, bool written);

// --- products of warpgroups -----------------------------------------------------------------------------------------

/// One thread's share of wgmma.m64nNk16: 64 rows, `columns` columns. Operands lie along k (major 0) or along rows and
/// columns (major 1). `fragment` is A in registers, in place of descriptor `a`.
void multiply_group(float* sums, int columns, uint64_t a, const uint32_t* fragment, uint64_t b, int a_major,
                    int b_major, bool accumulate);
void fence_group();
void commit_group();
void wait_group(int pending);

// --- clusters and registers -----------------------------------------------------------------------------------------

unsigned cluster_rank();
unsigned cluster_blocks();
void arrive_cluster();
void wait_cluster();
/// The address of the same place in another block of the cluster.
uint32_t map_shared(const void* pointer, unsigned rank);
/// What a 32-bit shared address points to; ends the launch unless the bytes are shared memory of a running block.
void* remote_pointer(const char* what, uint32_t address, size_t bytes);
/// Registers of a thread that the warpgroup asks for (`increase`) or gives back.
void set_registers(int registers, bool increase);
void wait_for_earlier_launch();

}  // namespace emulator
