// Threads of a block as fibers under one scheduler: who runs, who waits for what, what a deadlock looks like.
#pragma once

#include <csetjmp>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include <ucontext.h>

#include "device.h"

namespace emulator {

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

/// Stack of a fiber and the context it starts from; reused by later launches of the OS thread.
struct Stack {
    ucontext_t context;
    unsigned char* memory;
};

/// One thread of a block.
struct Fiber {
    Block* block = nullptr;
    unsigned index = 0;
    bool started = false, done = false;
    Launch* launch = nullptr;
    Stack* stack = nullptr;
    std::jmp_buf point;
    /// While waiting: what for, and the counter that must change.
    const char* waits_for = nullptr;
    const uint64_t* counter = nullptr;
    uint64_t seen = 0;
    /// Exchanges of the warp that the lane has been through.
    uint64_t exchanges = 0;
    /// Copies by group; the last group is open.
    std::deque<std::vector<Copy>> copies{1};

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
    alignas(16) unsigned char slots[2][32 * EXCHANGE_BYTES];
    alignas(16) unsigned char results[2][RESULT_BYTES];
    /// Exchanges whose result has been asked for.
    uint64_t computed = 0;
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
    unsigned first_fiber = 0, threads = 0, live = 0;
    std::vector<Warp> warps;
    Barrier whole;
    Barrier named[16];
    /// The shared window: dynamic memory first, then a piece for each place, with gaps that nothing may touch.
    unsigned char* window = nullptr;
    size_t window_used = 0, dynamic_bytes = 0;
    std::unordered_map<const void*, Place> places;
};

/// A launch that is running. One for each OS thread.
struct Launch {
    const char* kernel = "";
    void (*entry)(void**) = nullptr;
    void** parameters = nullptr;
    Dim grid{1, 1, 1};
    unsigned threads = 0;
    size_t shared_bytes = 0;
    Schedule schedule = Schedule::RISING;
    Random random{0};
    std::vector<Block> blocks;
    std::vector<Fiber> fibers;
    std::string error;
    std::jmp_buf scheduler;
    ucontext_t scheduler_context;

    /// Runs the blocks with these numbers together until all their threads have returned. False after an error.
    bool run(const std::vector<uint64_t>& numbers);
};

/// The launch of this OS thread.
Launch& launch();

/// The running fiber and its block.
Fiber& fiber();
Block& block();

}  // namespace emulator
