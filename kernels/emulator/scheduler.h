// Threads of a block as fibers under one scheduler: who runs, who waits for what, what a deadlock looks like.
#pragma once

#include <csetjmp>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include <ucontext.h>

#include "async.h"
#include "device.h"

/// Fibers are switched by a few instructions on x86-64, and by the C library elsewhere. The sanitizer knows the switches of the C
/// library.
#if defined(__x86_64__) && defined(__ELF__) && !defined(__SANITIZE_ADDRESS__)
#define SWITCHES_STACKS 1
#else
#define SWITCHES_STACKS 0
#endif

namespace emulator {

/// Bytes of a block's shared window: what 18-bit addresses of matrix descriptors reach.
constexpr size_t WINDOW_BYTES = 256 << 10;
/// Bytes between two pieces of shared memory.
constexpr size_t GAP = 64;

/// Order in which threads run, blocks run, and asynchronous operations take effect.
enum class Schedule : int { RISING = 0, FALLING = 1, RANDOM = 2 };

/// SplitMix64: small, seeded, the same everywhere.
struct Random {
    uint64_t state;

    uint64_t next();
    /// Below `n`.
    uint64_t below(uint64_t n);
};

/// A copy that has been issued and not yet delivered.
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes, valid;
};

/// Shared memory of a place in the program.
struct Place {
    size_t offset, bytes;
};

struct Block;
struct Launch;
struct Warp;

/// Stack of a fiber and where it goes on; reused by later launches of the OS thread.
struct Stack {
    unsigned char* memory;
    size_t bytes;
#if !SWITCHES_STACKS
    ucontext_t context;
    std::jmp_buf point;
#endif
};

/// One thread of a block. What every switch reads comes first, in one cache line.
struct alignas(64) Fiber {
    /// While waiting: the counter that must change.
    const uint64_t* counter = nullptr;
    uint64_t seen = 0;
    Launch* launch = nullptr;
    Warp* warp = nullptr;
    /// Where the fiber goes on: the stack pointer, if stacks are switched.
    void* point = nullptr;
    /// Exchanges of the warp that the lane has been through.
    uint64_t exchanges = 0;
    unsigned index = 0;
    bool started = false, done = false;
    /// The last wait was a further round of a loop that saw no change.
    bool idle = false;
    /// While waiting: what for.
    const char* waits_for = nullptr;
    Block* block = nullptr;
    Stack* stack = nullptr;
    /// Copies under way, oldest first: those of each closed group by their number, then those of the open one.
    std::vector<Copy> copies;
    std::vector<unsigned> groups;
    /// Copies issued into the open group, and those of them that are under way.
    unsigned open_copies = 0, open_waiting = 0;
    /// Bulk stores and products, made with the first of them.
    std::unique_ptr<Asynchronous> asynchronous;
    /// Has waited for the launch before this one.
    bool waited = false;
    /// At the cluster's barrier, not yet past it: the generation seen on arrival.
    bool at_cluster = false;
    uint64_t cluster_seen = 0;

    bool ready() const {
        return !done && (counter == nullptr || *counter != seen);
    }
};

/// Exchange buffer of a warp, doubled: a lane may be one exchange ahead of another, never two.
struct Warp {
    uint64_t generation = 0;
    uint32_t arrived = 0;
    const char* what = nullptr;
    int bytes = 0;
    /// Products of warpgroups issued; registers of setmaxnreg (0 before) and how often it was called.
    unsigned products = 0, register_calls = 0;
    int registers = 0;
    alignas(16) unsigned char slots[2][32 * EXCHANGE_BYTES];
    alignas(16) unsigned char results[2][RESULT_BYTES];
    /// Exchanges whose result has been asked for.
    uint64_t computed = 0;

    // Not a default: the slots need no zeros.
    Warp() {}
};

/// A barrier of part of a block.
struct Barrier {
    uint64_t generation = 0;
    unsigned arrived = 0;
    unsigned expected = 0;
};

/// A block that is running.
struct Block {
    Dim index{};
    /// Place among the clusters that run, and in the cluster.
    unsigned cluster = 0, rank = 0;
    unsigned first_fiber = 0, threads = 0, live = 0;
    std::vector<Warp> warps;
    Barrier whole;
    Barrier named[16];
    /// The shared window: dynamic memory first, then a piece for each place, with gaps that nothing may touch.
    unsigned char* window = nullptr;
    /// By offset in the window.
    std::unordered_map<size_t, Mbarrier> mbarriers;
};

/// Blocks that share their shared memory, and their barrier.
struct Cluster {
    unsigned live = 0;
    unsigned arrived = 0;
    uint64_t generation = 0;
};

/// A launch that is running. One for each OS thread.
struct Launch {
    const char* kernel = "";
    void (*entry)(void**) = nullptr;
    void** parameters = nullptr;
    Dim grid{1, 1, 1};
    unsigned threads = 0;
    /// Blocks of a cluster.
    unsigned cluster = 1;
    /// Its threads must wait for the launch before.
    bool early = false;
    size_t shared_bytes = 0;
    Schedule schedule = Schedule::RISING;
    Random random{0};
    std::vector<Block> blocks;
    std::vector<Cluster> clusters;
    std::vector<Fiber> fibers;
    /// Shared memory of places in the program, the same in all blocks that run.
    std::unordered_map<const void*, Place> places;
    size_t window_used = 0;
    /// Bulk loads under way, and bulk stores whose thread has returned.
    std::vector<BoxLoad> loads;
    std::vector<BoxStore> stores;
    std::string error;
    /// The place whose barriers are left out, if any, and the places of all barriers since they were last asked for.
    const char* omitted_file = nullptr;
    int omitted_line = 0;
    const Site* last_barrier = nullptr;
    std::set<const Site*> barriers;
    /// The allocation that an address was last found in.
    const unsigned char* found = nullptr;
    size_t found_bytes = 0;

    /// Fibers in the order of this round, the place in it, and what has happened in it.
    std::vector<unsigned> order;
    unsigned at = 0;
    bool moved = false;
    /// Fibers that have not returned, and the warp that is held back.
    unsigned live = 0, held = 0;
#if SWITCHES_STACKS
    void* scheduler = nullptr;
#else
    std::jmp_buf scheduler;
    ucontext_t scheduler_context;
#endif

    /// The next fiber of this round that can run; null at the end of the round and after an error.
    Fiber* next() {
        while (at < order.size() && error.empty()) {
            unsigned i = order[at++];
            if (fibers[i].ready() && i / 32 != held) {
                return &fibers[i];
            }
        }
        return nullptr;
    }

    /// Counts what a fiber did that has just been left.
    void settle(const Fiber& f) {
        moved = moved || !f.idle;
        live -= f.done;
    }

    /// Runs the blocks with these numbers together until all their threads have returned. False after an error.
    bool run(const std::vector<uint64_t>& numbers);
    /// Makes the blocks with these numbers, and their threads.
    void make(const std::vector<uint64_t>& numbers);
};

/// The launch of this OS thread.
Launch& launch();

/// The running fiber. A plain pointer costs no check at every access.
extern thread_local Fiber* running;

/// The running fiber and its block.
inline Fiber& fiber() {
    return *running;
}
inline Block& block() {
    return *fiber().block;
}
/// Bulk stores and products of the running fiber.
Asynchronous& asynchronous();

/// Sets the launch's error, unless there is one, as one of this fiber. Unlike `fail` it returns, so that it can be
/// called while no fiber runs.
void complain(const Fiber& at, const char* format, ...) __attribute__((format(printf, 2, 3)));
/// Leaves the running fiber for good after `complain`.
[[noreturn]] void abandon();

/// True when the bytes from an offset of the window on are dynamic memory or lie in one place.
bool is_shared(size_t offset, size_t bytes);
/// Offset of a pointer in the block's window; ends the launch unless so many bytes there are shared memory.
size_t shared_offset(const char* what, const void* pointer, size_t bytes);
/// The block of the running thread's cluster with this rank, which must not have returned.
Block& peer(const char* what, unsigned rank);

/// Arrivals and bytes of the memory barriers that threads wait for, for the report of a deadlock.
std::string waited_mbarriers();
/// Ends the launch unless there is a memory barrier at an offset of a block's window.
void check_mbarrier(const char* what, Block& target, size_t offset);
/// Counts bytes of a bulk load on a barrier of a block.
void complete_bytes(const Fiber& issuer, Block& target, size_t offset, int bytes);

/// Delivers one of the bulk loads under way: the newest, or any under the random schedule. False when there is none.
bool deliver_load();
/// Delivers the bulk stores whose thread has returned.
void deliver_stores();
/// What a thread must not leave undone when it returns, and the blocks when all have.
void finish_fiber(Fiber& f);
void finish_blocks();

}  // namespace emulator
