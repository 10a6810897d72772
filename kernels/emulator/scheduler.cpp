#include "scheduler.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

namespace {

/// Bytes of a fiber's stack. Kernels keep fragments in arrays of a few KiB.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 512 << 10;
#else
constexpr size_t STACK_BYTES = 128 << 10;
#endif
/// Alignment of the window and of dynamic memory: that of the widest swizzle.
constexpr size_t WINDOW_ALIGN = 1024;

/// Stacks and windows of this OS thread, kept for later launches.
struct Pool {
    std::vector<unsigned char*> stacks, windows;

    ~Pool() {
        for (unsigned char* stack : stacks) {
            std::free(stack);
        }
        for (unsigned char* window : windows) {
            allow(window, WINDOW_BYTES);
            std::free(window);
        }
    }
};

thread_local Pool pool;
thread_local Launch current;

unsigned char* take(std::vector<unsigned char*>& from, size_t bytes, size_t align) {
    if (from.empty()) {
        void* memory = std::aligned_alloc(align, bytes);
        if (memory == nullptr) {
            std::fprintf(stderr, "emulator: out of memory\n");
            std::abort();
        }
        return static_cast<unsigned char*>(memory);
    }
    unsigned char* memory = from.back();
    from.pop_back();
    return memory;
}

/// Switches from the running fiber to the scheduler.
void to_scheduler() {
    Fiber& f = fiber();
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(f.done ? nullptr : &fake, nullptr, 0);
    swapcontext(&f.context, &current.scheduler_context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    if (_setjmp(f.point) == 0) {
        _longjmp(current.scheduler, 1);
    }
#endif
}

/// A fiber's life.
void begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    Fiber& f = fiber();
    current.entry(current.parameters);
    wait_async(0);
    finish_fiber(f);
    f.done = true;
    Block& b = *f.block;
    b.live -= 1;
    if (b.live > 0 && b.whole.arrived == b.live) {
        b.whole.arrived = 0;
        b.whole.generation += 1;
    }
    to_scheduler();
}

/// Runs a fiber until it waits or returns.
void resume(Fiber& f) {
    current.running = &f;
    f.counter = nullptr;
    f.idle = false;
    bool start = !f.started;
    f.started = true;
    if (start) {
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.memory;
        f.context.uc_stack.ss_size = f.stack.bytes;
        f.context.uc_link = nullptr;
        makecontext(&f.context, begin, 0);
    }
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, f.stack.memory, f.stack.bytes);
    swapcontext(&current.scheduler_context, &f.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    if (_setjmp(current.scheduler) == 0) {
        if (start) {
            setcontext(&f.context);
        }
        _longjmp(f.point, 1);
    }
#endif
    current.running = nullptr;
}

/// Who waits where, by block and reason, threads as ranges.
std::string deadlock() {
    std::string text = "deadlock: no thread can run;";
    for (const Block& b : current.blocks) {
        for (unsigned i = 0; i < b.threads;) {
            const Fiber& f = current.fibers[b.first_fiber + i];
            unsigned end = i;
            const char* what = f.done ? "has returned" : f.waits_for;
            while (end < b.threads) {
                const Fiber& g = current.fibers[b.first_fiber + end];
                const char* other = g.done ? "has returned" : g.waits_for;
                if (std::strcmp(what, other) != 0) {
                    break;
                }
                end += 1;
            }
            char line[160];
            std::snprintf(line, sizeof line, " block %u threads %u to %u: %s;", b.index.x, i, end - 1, what);
            text += line;
            i = end;
        }
    }
    return text + waited_mbarriers();
}

Dim unravel(uint64_t number, Dim grid) {
    return {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
}

}  // namespace

uint64_t Random::next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t Random::below(uint64_t n) {
    return next() % n;
}

Launch& launch() {
    return current;
}

Fiber& fiber() {
    return *current.running;
}

Block& block() {
    return *fiber().block;
}

void Launch::make(const std::vector<uint64_t>& numbers) {
    blocks = std::vector<Block>(numbers.size());
    fibers = std::vector<Fiber>(numbers.size() * threads);
    clusters.assign(numbers.size() / cluster, {cluster * threads, 0, 0});
    places.clear();
    window_used = shared_bytes + GAP;
    for (size_t i = 0; i < numbers.size(); ++i) {
        Block& b = blocks[i];
        b.index = unravel(numbers[i], grid);
        b.cluster = unsigned(i) / cluster;
        b.rank = unsigned(i) % cluster;
        b.first_fiber = unsigned(i) * threads;
        b.threads = b.live = threads;
        b.warps = std::vector<Warp>((threads + 31) / 32);
        b.window = take(pool.windows, WINDOW_BYTES, WINDOW_ALIGN);
        forbid(b.window, WINDOW_BYTES);
        allow(b.window, shared_bytes);
        std::memset(b.window, 0xff, shared_bytes);
        for (unsigned t = 0; t < threads; ++t) {
            Fiber& f = fibers[b.first_fiber + t];
            f.block = &b;
            f.index = t;
            f.stack = {take(pool.stacks, STACK_BYTES, 4096), STACK_BYTES};
        }
    }
}

bool Launch::run(const std::vector<uint64_t>& numbers) {
    make(numbers);
    unsigned total = unsigned(fibers.size());
    std::vector<unsigned> order(total);
    for (unsigned i = 0; i < total; ++i) {
        order[i] = schedule == Schedule::FALLING ? total - 1 - i : i;
    }
    unsigned live = total;
    while (live > 0 && error.empty()) {
        if (schedule == Schedule::RANDOM) {
            for (unsigned i = total; i > 1; --i) {
                std::swap(order[i - 1], order[random.below(i)]);
            }
        }
        while (schedule == Schedule::RANDOM && (random.next() & 1) != 0 && deliver_load()) {
        }
        bool moved = false;
        for (unsigned i = 0; i < total && error.empty(); ++i) {
            Fiber& f = fibers[order[i]];
            if (f.ready()) {
                resume(f);
                moved = moved || !f.idle;
                live -= f.done;
            }
        }
        if (!moved && error.empty() && !deliver_load()) {
            error = deadlock();
        }
    }
    if (error.empty()) {
        finish_blocks();
    }
    loads.clear();
    stores.clear();
    for (Fiber& f : fibers) {
        pool.stacks.push_back(f.stack.memory);
    }
    for (Block& b : blocks) {
        pool.windows.push_back(b.window);
    }
    fibers.clear();
    blocks.clear();
    return error.empty();
}

namespace {

void report(const Fiber& at, const char* format, va_list arguments) {
    char message[512], text[700];
    std::vsnprintf(message, sizeof message, format, arguments);
    Dim block = at.block->index;
    std::snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: %s", block.x, block.y, block.z, at.index, message);
    if (current.error.empty()) {
        current.error = text;
    }
}

}  // namespace

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(fiber(), format, arguments);
    va_end(arguments);
    abandon();
}

void complain(const Fiber& at, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(at, format, arguments);
    va_end(arguments);
}

void abandon() {
    // The fiber is never resumed. What its stack owns would leak, so nothing that fails holds heap memory on its stack.
    to_scheduler();
    std::abort();
}

Dim thread_index() {
    return {fiber().index, 0, 0};
}

Dim block_index() {
    return block().index;
}

Dim block_size() {
    return {current.threads, 1, 1};
}

Dim grid_size() {
    return current.grid;
}

int lane() {
    return int(fiber().index % 32);
}

bool deliver_now() {
    switch (current.schedule) {
        case Schedule::RISING:
            return true;
        case Schedule::FALLING:
            return false;
        case Schedule::RANDOM:
            break;
    }
    return current.random.next() & 1;
}

void wait_change(const char* what, const uint64_t* counter, uint64_t seen) {
    Fiber& f = fiber();
    f.waits_for = what;
    f.counter = counter;
    f.seen = seen;
    if (!f.ready()) {
        to_scheduler();
    }
    f.counter = nullptr;
}

void yield(const char* what) {
    fiber().waits_for = what;
    to_scheduler();
}

void spin(const char* what, bool first) {
    fiber().idle = !first;
    yield(what);
}

namespace {

void arrive(const char* what, Barrier& barrier, unsigned expected) {
    uint64_t seen = barrier.generation;
    barrier.arrived += 1;
    if (barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation += 1;
        // Whoever completes a barrier does not run on ahead of those it wakes more than the order of threads says.
        yield(what);
        return;
    }
    wait_change(what, &barrier.generation, seen);
}

}  // namespace

void sync_block() {
    arrive("block barrier", block().whole, block().live);
}

namespace {

Barrier& named(int id, int threads) {
    if (id < 1 || id > 15 || threads <= 0 || threads % 32 != 0 || unsigned(threads) > block().threads) {
        fail("named barrier %d of %d threads: ids are 1 to 15, threads whole warps of the block", id, threads);
    }
    Barrier& barrier = block().named[id];
    if (barrier.arrived > 0 && barrier.expected != unsigned(threads)) {
        fail("named barrier %d is of %u threads for some and of %d for others", id, barrier.expected, threads);
    }
    barrier.expected = unsigned(threads);
    return barrier;
}

}  // namespace

void sync_named(int id, int threads) {
    arrive("named barrier", named(id, threads), unsigned(threads));
}

void arrive_named(int id, int threads) {
    Barrier& barrier = named(id, threads);
    barrier.arrived += 1;
    if (barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation += 1;
    }
}

const unsigned char* exchange(const char* what, const void* mine, int bytes) {
    Fiber& f = fiber();
    Warp& warp = f.block->warps[f.index / 32];
    unsigned lanes = f.block->threads - f.index / 32 * 32;
    if (lanes < 32) {
        fail("%s in a warp of %u lanes; blocks are whole warps", what, lanes);
    }
    if (warp.arrived == 0) {
        warp.what = what;
        warp.bytes = bytes;
    } else if (std::strcmp(warp.what, what) != 0 || warp.bytes != bytes) {
        fail("%s while other lanes of the warp are at %s", what, warp.what);
    }
    uint64_t seen = warp.generation;
    unsigned char* slots = warp.slots[seen & 1];
    unsigned lane = f.index % 32;
    std::memcpy(slots + size_t(lane) * bytes, mine, size_t(bytes));
    warp.arrived |= 1u << lane;
    if (warp.arrived == 0xffffffffu) {
        warp.arrived = 0;
        warp.generation += 1;
    } else {
        wait_change(what, &warp.generation, seen);
    }
    return slots;
}

}  // namespace emulator
