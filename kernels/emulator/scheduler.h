// Threads of a block as fibers of one scheduler: running, waiting, deadlock detection.
//
//   until all fibers have returned or one has failed:
//     random schedule: shuffle the fibers, maybe stall one warp, maybe deliver TMA loads
//     late schedule: stall the first warp of each block
//     resume each fiber that is ready; it runs until it waits
//     if none made progress: release the stalled warps, else deliver a TMA load, else report a deadlock
#pragma once

#include <csetjmp>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include <ucontext.h>

#include "async.h"
#include "device.h"

/// On x86-64 a few instructions switch between fibers, elsewhere the C library does.
#if defined(__x86_64__) && defined(__ELF__)
#define SWITCHES_STACKS 1
#else
#define SWITCHES_STACKS 0
#if defined(__SANITIZE_ADDRESS__)
#error "the emulator supports the address sanitizer on x86-64 only"
#endif
#endif

namespace emulator {

/// Bytes of a block's shared window: the range of the 18-bit addresses in matrix descriptors.
constexpr size_t WINDOW_BYTES = 256 << 10;
/// Bytes between two shared arrays; no access may touch them.
constexpr size_t GAP = 64;

/// Order of threads and blocks, and time at which asynchronous operations take effect. LATE is RISING, except
/// that the first warp of each block, which usually initialises what others use, runs as late as barriers
/// allow. Asynchronous operations are late in FALLING, where the newest TMA load arrives first, and in LATE,
/// where the oldest arrives first.
EXPORT enum class Schedule : int { RISING, FALLING, RANDOM, LATE };

/// SplitMix64 generator.
struct Random {
    uint64_t state;

    uint64_t next();
    /// Random number below `n`.
    uint64_t below(uint64_t n);
};

/// A cp.async that has been issued and not delivered.
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes, valid;
};

/// The shared array of a source location.
struct SharedArray {
    size_t offset, bytes;
};

struct Block;
struct Launch;
struct Warp;

/// Stack of a fiber and its point of resumption; reused by later launches of the OS thread.
struct Stack {
    unsigned char* memory;
    size_t bytes;
#if !SWITCHES_STACKS
    ucontext_t context;
    std::jmp_buf point;
#endif
};

/// One thread of a block. The fields that every switch reads come first, in one cache line.
struct alignas(64) Fiber {
    /// While waiting: the counter that must change.
    const uint64_t* counter = nullptr;
    uint64_t seen = 0;
    Launch* launch = nullptr;
    Warp* warp = nullptr;
    /// Stack pointer at which the fiber resumes, with SWITCHES_STACKS.
    void* point = nullptr;
    /// Number of warp exchanges that the lane has completed.
    uint64_t exchanges = 0;
    unsigned index = 0;
    bool started = false, done = false;
    /// Whether the last wait was a repeated round of a spin loop.
    bool idle = false;
    /// While waiting: the reason.
    const char* waits_for = nullptr;
    Block* block = nullptr;
    Stack* stack = nullptr;
    /// cp.async copies in flight, oldest first; `groups` has the number of copies in each closed group,
    /// and the open group follows.
    std::vector<Copy> copies;
    std::vector<unsigned> groups;
    /// Copies issued into the open group, and the number of them in flight.
    unsigned open_copies = 0, open_waiting = 0;
    /// TMA stores and wgmmas; created by the first of them.
    std::unique_ptr<AsyncState> async_state;
    /// Whether wait_for_earlier_launch() was called.
    bool waited = false;
    /// Whether the thread is between arrive and wait of the cluster barrier, and the barrier's generation on
    /// arrival.
    bool at_cluster = false;
    uint64_t cluster_seen = 0;
    /// Sequence number of the thread's last fence_async_proxy_global(), 0 before the first.
    uint64_t global_fence = 0;

    bool ready() const {
        return !done && (counter == nullptr || *counter != seen);
    }
};

/// A warp and its exchange buffer. The buffer is double, because a lane can be one exchange ahead of another,
/// but not two.
struct Warp {
    uint64_t generation = 0;
    uint32_t arrived = 0;
    const char* what = nullptr;
    int bytes = 0;
    /// Number of wgmmas issued and of setmaxnreg calls, and register count of the last setmaxnreg (0 before the
    /// first).
    unsigned wgmmas = 0, register_calls = 0;
    int registers = 0;
    /// Registers that each thread holds since the last setmaxnreg took effect; 0 before the first.
    unsigned held = 0;
    alignas(16) unsigned char slots[2][32 * EXCHANGE_BYTES];
    alignas(16) unsigned char results[2][RESULT_BYTES];
    /// Number of the last exchange with a computed result, counted from 1; 0 before the first.
    uint64_t computed = 0;

    // Not `= default`: value-initialisation of a Warp would then zero the slots.
    Warp() {}
};

/// State of a block barrier or named barrier.
struct Barrier {
    uint64_t generation = 0;
    unsigned arrived = 0;
    unsigned expected = 0;
};

/// A running block.
struct Block {
    Dim index{};
    /// Index among the running clusters, and rank in the cluster.
    unsigned cluster = 0, rank = 0;
    unsigned first_fiber = 0, threads = 0, live = 0;
    std::vector<Warp> warps;
    Barrier whole;
    Barrier named[16];
    /// Number of setmaxnreg calls that have taken effect.
    uint64_t registers_released = 0;
    /// Shared window: dynamic shared memory, then the shared arrays, separated by gaps.
    unsigned char* window = nullptr;
    /// mbarriers by offset in the window.
    std::unordered_map<size_t, Mbarrier> mbarriers;
};

/// The part of a block's shared memory that the async proxy may see (proxy.cpp).
struct SharedView {
    /// Contents at the last look. In new shared memory all bits are set.
    std::vector<unsigned char> known = std::vector<unsigned char>(WINDOW_BYTES, 0xff);
    /// For each byte: index, counted from 1, of the fiber whose plain write is unpublished; 0 if published.
    std::vector<uint32_t> writer = std::vector<uint32_t>(WINDOW_BYTES, 0);
    /// Whether a byte may be unpublished.
    bool unpublished = false;
};

/// Rows of global memory that a TMA store wrote. ProxyState::stored maps their start address to this struct.
struct StoredRows {
    const unsigned char* end;
    /// Index of the fiber that stored the rows, counted from 1.
    uint32_t writer;
    /// Sequence number of the fence that published the rows; 0 while they are unpublished.
    uint64_t published;
};

/// State of the check for missing proxy fences.
struct ProxyState {
    /// One entry per running block.
    std::vector<SharedView> shared;
    std::map<const unsigned char*, StoredRows> stored;
    /// Number of fence_async_proxy_global() calls so far.
    uint64_t fences = 0;

    /// Resets the state for a number of new blocks.
    void reset(size_t blocks);
};

struct AccessState;

/// A cluster and its barrier.
struct Cluster {
    unsigned live = 0;
    unsigned arrived = 0;
    uint64_t generation = 0;
};

/// The running launch; one per OS thread.
struct Launch {
    const char* kernel = "";
    void (*entry)(void**) = nullptr;
    void** parameters = nullptr;
    Dim grid{1, 1, 1};
    unsigned threads = 0;
    /// Blocks per cluster.
    unsigned cluster = 1;
    /// Whether the kernel is marked EARLY: its threads must then call wait_for_earlier_launch().
    bool early = false;
    size_t shared_bytes = 0;
    Schedule schedule = Schedule::RISING;
    Random random{0};
    std::vector<Block> blocks;
    std::vector<Cluster> clusters;
    std::vector<Fiber> fibers;
    /// Shared arrays by source location, the same in all running blocks.
    std::unordered_map<const void*, SharedArray> shared_arrays;
    size_t window_used = 0;
    /// TMA loads in flight, and TMA stores of threads that have returned.
    std::vector<TmaLoad> loads;
    std::vector<TmaStore> stores;
    std::string error;
    /// Source location with omitted barriers, if any; all barrier locations since the last query.
    const char* omitted_file = nullptr;
    int omitted_line = 0;
    const Site* last_barrier = nullptr;
    std::set<const Site*> barriers;
    /// Present in launches that check proxy fences; the locations of all fences since the last query.
    std::unique_ptr<ProxyState> proxies;
    std::set<const Site*> fences;
    /// Present in launches that count accesses (accesses.cpp); kept until the next launch.
    std::shared_ptr<AccessState> accesses;
    /// Allocation that contained the last address looked up.
    const unsigned char* found = nullptr;
    size_t found_bytes = 0;

    /// Indices of the fibers in the order of this round, the position in this order, and whether a fiber has made
    /// progress in this round.
    std::vector<unsigned> order;
    unsigned at = 0;
    bool moved = false;
    /// Number of fibers that have not returned, and the warp that is stalled.
    unsigned live = 0, stalled = 0;
    /// Whether the first warp of each block is stalled.
    bool first_stalled = false;
#if SWITCHES_STACKS
    void* scheduler = nullptr;
#else
    std::jmp_buf scheduler;
#endif

    /// Next fiber of this round that can run; null at the end of the round and after an error.
    Fiber* next() {
        while (at < order.size() && error.empty()) {
            unsigned i = order[at++];
            if (fibers[i].ready() && i / 32 != stalled && !(first_stalled && fibers[i].index < 32)) {
                return &fibers[i];
            }
        }
        return nullptr;
    }

    /// Records the progress of a fiber that has just been left.
    void settle(const Fiber& f) {
        moved = moved || !f.idle;
        live -= f.done;
    }

    /// Runs the blocks with these indices concurrently until all threads have returned. False after
    /// an error.
    bool run(const std::vector<uint64_t>& numbers);
    /// Creates the blocks with these indices, and their threads.
    void create(const std::vector<uint64_t>& numbers);
};

/// The launch of this OS thread.
Launch& launch();

/// The running fiber. A plain pointer needs no initialisation check at every access.
extern thread_local Fiber* running;

/// The running fiber and its block.
inline Fiber& fiber() {
    return *running;
}
inline Block& block() {
    return *fiber().block;
}
/// TMA stores and wgmmas of the running fiber.
AsyncState& async_state();

/// Sets the launch's error, attributed to a fiber, unless the launch already has an error. Unlike `fail`
/// it returns, so it can be called while no fiber runs.
void set_error(const Fiber& at, const char* format, ...) __attribute__((format(printf, 2, 3)));
/// Leaves the running fiber permanently after `set_error`.
[[noreturn]] void abandon();

/// Whether the bytes from a window offset on are dynamic shared memory or in one shared array.
bool is_shared(size_t offset, size_t bytes);
/// Window offset of a pointer. Aborts the launch unless `bytes` bytes there are shared memory.
size_t shared_offset(const char* what, const void* pointer, size_t bytes);
/// The block with this rank in the running thread's cluster. Aborts the launch if it has returned.
Block& peer(const char* what, unsigned rank);

/// Missing arrivals and bytes of the mbarriers that threads wait for, for the deadlock report.
std::string describe_mbarriers();
/// Aborts the launch unless there is a live mbarrier at a window offset of a block.
void check_mbarrier(const char* what, Block& target, size_t offset);
/// Completes bytes of a TMA load on an mbarrier of a block.
void complete_bytes(const Fiber& issuer, Block& target, size_t offset, int bytes);

/// Only with `Launch::proxies`: attributes the changes in shared memory since the last look to thread
/// `f`. Called when the thread waits, and before its asynchronous operations.
void look_at_shared(const Fiber& f);
/// Only with `Launch::proxies`: records that an asynchronous operation has written bytes of shared memory.
void publish_async_write(Block& target, size_t offset, size_t bytes);
/// Only with `Launch::proxies`: aborts the launch if an asynchronous operation reads bytes that the
/// async proxy may not see, in shared memory or in global memory.
void require_published(const char* what, const Block& b, size_t offset, size_t bytes);
void require_published_global(const char* what, const unsigned char* start, size_t bytes);
/// Only with `Launch::proxies`: records that a TMA store of the running thread writes global memory.
void note_async_store(const unsigned char* start, size_t bytes);

/// Only with `Launch::accesses`: start_accesses() starts the counts of the warps of new blocks. finish_accesses()
/// counts the groups that are incomplete when all threads have returned.
void start_accesses(size_t warps);
void finish_accesses();
/// Only with `Launch::accesses`: counts a row in global memory that a TMA copy reads or writes.
void count_row(const unsigned char* start, size_t bytes, bool store);

/// Delivers one TMA load in flight: any in the random schedule, the oldest in the late one, else the newest.
/// False if there is none.
bool deliver_load();
/// Delivers the TMA stores of threads that have returned.
void deliver_stores();
/// Checks for unfinished work when a thread returns, and when all threads of the blocks have.
void finish_fiber(Fiber& f);
void finish_blocks();

}  // namespace emulator
