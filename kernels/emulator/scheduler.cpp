// Fibers and their scheduler loop.
#include "scheduler.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

namespace {

/// Bytes of a fiber's stack. Kernels keep fragments in arrays of a few KiB.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 512 << 10;
#else
constexpr size_t STACK_BYTES = 128 << 10;
#endif
/// Alignment of the window and of dynamic shared memory, for the widest swizzle.
constexpr size_t WINDOW_ALIGN = 1024;

/// Stacks and windows of this OS thread, reused by later launches.
struct Pool {
    std::vector<Stack*> stacks;
    std::vector<unsigned char*> windows;
    /// Stacks made so far.
    size_t made = 0;

    ~Pool() {
        for (Stack* stack : stacks) {
            std::free(stack->memory);
            delete stack;
        }
        for (unsigned char* window : windows) {
            unpoison(window, WINDOW_BYTES);
            std::free(window);
        }
    }
};

thread_local Pool pool;

/// The launch of this OS thread.
Launch& thread_launch() {
    static thread_local Launch one;
    return one;
}

unsigned char* aligned(size_t bytes, size_t align) {
    void* memory = std::aligned_alloc(align, bytes);
    if (memory == nullptr) {
        std::fprintf(stderr, "emulator: out of memory\n");
        std::abort();
    }
    return static_cast<unsigned char*>(memory);
}

Stack* take_stack() {
    if (pool.stacks.empty()) {
        // Stacks start at different cache lines of a page, so that those of a warp do not evict one another
        // from the cache.
        size_t number = pool.made++;
        auto* stack = new Stack;
        stack->memory = aligned(STACK_BYTES, 4096);
        stack->bytes = STACK_BYTES - number * 5 % 64 * 64;
        return stack;
    }
    Stack* stack = pool.stacks.back();
    pool.stacks.pop_back();
    return stack;
}

unsigned char* take_window() {
    if (pool.windows.empty()) {
        return aligned(WINDOW_BYTES, WINDOW_ALIGN);
    }
    unsigned char* window = pool.windows.back();
    pool.windows.pop_back();
    return window;
}

#if defined(__SANITIZE_ADDRESS__)

/// Bounds of this OS thread's own stack.
Stack thread_stack() {
    static thread_local Stack stack = [] {
        pthread_attr_t attributes;
        void* memory = nullptr;
        size_t bytes = 0;
        if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
            pthread_attr_getstack(&attributes, &memory, &bytes);
            pthread_attr_destroy(&attributes);
        }
        return Stack{static_cast<unsigned char*>(memory), bytes};
    }();
    return stack;
}

#endif

#if SWITCHES_STACKS

/// Pushes the registers that the ABI preserves, stores the stack pointer in `*from`, and continues at the stack
/// pointer `to`.
extern "C" void emulator_switch(void** from, void* to);

asm(R"(
    .pushsection .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, @function
    .p2align 4
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
    .popsection
)");

void fiber_main();

/// Switches to the stack pointer `to` of the fiber `target`, or of the scheduler if `target` is null. Tells
/// the address sanitizer the bounds of that stack.
void switch_stacks(void** from, void* to, const Fiber* target, bool done = false) {
#if defined(__SANITIZE_ADDRESS__)
    Stack stack = target != nullptr ? *target->stack : thread_stack();
    void* fake = nullptr;
    if (done) {
        // Removes the sanitizer's marks of stack frames that never return.
        __asan_handle_no_return();
    }
    __sanitizer_start_switch_fiber(done ? nullptr : &fake, stack.memory, stack.bytes);
    emulator_switch(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)target, (void)done;
    emulator_switch(from, to);
#endif
}

/// Makes a fiber the running one. Returns the stack pointer at which it continues.
void* enter(Fiber& f) {
    running = &f;
    f.counter = nullptr;
    f.idle = false;
    if (!f.started) {
        f.started = true;
        // The new stack has the contents that emulator_switch leaves: six registers and the return address. The
        // 8 bytes above them give the stack pointer in `fiber_main` the alignment that it has after a call.
        auto** top = reinterpret_cast<void**>(f.stack->memory + f.stack->bytes);
        std::memset(top - 8, 0, 8 * sizeof *top);
        top[-2] = reinterpret_cast<void*>(fiber_main);
        return top - 8;
    }
    return f.point;
}

/// Switches from the running fiber to the next one of the round, or to the scheduler at the end of the round.
void to_scheduler() {
    Fiber& f = fiber();
    Launch& l = *f.launch;
    if (l.proxies != nullptr) {
        look_at_shared(f);
    }
    l.settle(f);
    Fiber* next = l.next();
    switch_stacks(&f.point, next == nullptr ? l.scheduler : enter(*next), next, f.done);
}

#else

/// Switches from the running fiber to the scheduler.
void to_scheduler() {
    Fiber& f = fiber();
    if (f.launch->proxies != nullptr) {
        look_at_shared(f);
    }
    if (_setjmp(f.stack->point) == 0) {
        _longjmp(f.launch->scheduler, 1);
    }
}

#endif

/// Entry point of a fiber.
void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    Fiber& f = fiber();
    f.launch->entry(f.launch->parameters);
    cp_async_wait(0);
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

#if SWITCHES_STACKS

/// Runs this fiber and those after it in the round, each until it waits or returns.
void resume(Fiber& f) {
    switch_stacks(&f.launch->scheduler, enter(f), &f);
}

#else

/// Runs a fiber until it waits or returns.
void resume(Fiber& f) {
    running = &f;
    f.counter = nullptr;
    f.idle = false;
    bool start = !f.started;
    f.started = true;
    if (start) {
        ucontext_t& context = f.stack->context;
        getcontext(&context);
        context.uc_stack.ss_sp = f.stack->memory;
        context.uc_stack.ss_size = f.stack->bytes;
        context.uc_link = nullptr;
        makecontext(&context, fiber_main, 0);
    }
    if (_setjmp(f.launch->scheduler) == 0) {
        if (start) {
            setcontext(&f.stack->context);
        }
        _longjmp(f.stack->point, 1);
    }
    f.launch->settle(f);
}

#endif

/// Deadlock report: ranges of threads by block and reason for waiting.
std::string deadlock(const Launch& current) {
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
    return text + describe_mbarriers();
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
    return thread_launch();
}

thread_local Fiber* running = nullptr;

void Launch::create(const std::vector<uint64_t>& numbers) {
    blocks = std::vector<Block>(numbers.size());
    if (proxies != nullptr) {
        proxies->reset(numbers.size());
    }
    fibers = std::vector<Fiber>(numbers.size() * threads);
    if (accesses != nullptr) {
        start_accesses(fibers.size() / 32);
    }
    clusters.assign(numbers.size() / cluster, {cluster * threads, 0, 0});
    shared_arrays.clear();
    window_used = shared_bytes + GAP;
    for (size_t i = 0; i < numbers.size(); ++i) {
        Block& b = blocks[i];
        b.index = unravel(numbers[i], grid);
        b.cluster = unsigned(i) / cluster;
        b.rank = unsigned(i) % cluster;
        b.first_fiber = unsigned(i) * threads;
        b.threads = b.live = threads;
        b.warps = std::vector<Warp>((threads + 31) / 32);
        b.window = take_window();
        poison(b.window, WINDOW_BYTES);
        unpoison(b.window, shared_bytes);
        std::memset(b.window, 0xff, shared_bytes);
        for (unsigned t = 0; t < threads; ++t) {
            Fiber& f = fibers[b.first_fiber + t];
            f.block = &b;
            f.warp = &b.warps[t / 32];
            f.index = t;
            f.launch = this;
            f.stack = take_stack();
        }
    }
}

bool Launch::run(const std::vector<uint64_t>& numbers) {
    create(numbers);
    unsigned total = unsigned(fibers.size());
    order.resize(total);
    for (unsigned i = 0; i < total; ++i) {
        order[i] = schedule == Schedule::FALLING ? total - 1 - i : i;
    }
    // The random schedule stalls one warp at a time until no other can continue. A missing barrier
    // between a read and a later write shows only if the reader is as late as barriers allow.
    constexpr unsigned NONE = ~0u;
    stalled = NONE;
    first_stalled = false;
    live = total;
    bool late = false;
    while (live > 0 && error.empty()) {
        if (schedule == Schedule::RANDOM) {
            for (unsigned i = total; i > 1; --i) {
                std::swap(order[i - 1], order[random.below(i)]);
            }
            if (stalled == NONE && total > 32 && random.below(4) == 0) {
                stalled = unsigned(random.below((total + 31) / 32));
            }
        }
        while (schedule == Schedule::RANDOM && (random.next() & 1) != 0 && deliver_load()) {
        }
        // After a round without progress, the first warps run for one round.
        first_stalled = schedule == Schedule::LATE && !late;
        late = false;
        moved = false;
        at = 0;
        while (Fiber* f = next()) {
            resume(*f);
        }
        if (!moved && first_stalled) {
            late = true;
        } else if (!moved && stalled != NONE) {
            stalled = NONE;
        } else if (!moved && error.empty() && !deliver_load()) {
            error = deadlock(*this);
        }
    }
    if (error.empty()) {
        finish_blocks();
    }
    if (accesses != nullptr) {
        finish_accesses();
    }
    loads.clear();
    stores.clear();
    for (Fiber& f : fibers) {
        if (!f.done) {
            unpoison(f.stack->memory, f.stack->bytes);
        }
        pool.stacks.push_back(f.stack);
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
    if (at.launch->error.empty()) {
        at.launch->error = text;
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

void set_error(const Fiber& at, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(at, format, arguments);
    va_end(arguments);
}

void abandon() {
    // The fiber is never resumed and its stack is not unwound, so callers of fail() must not own
    // heap memory.
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
    return {fiber().launch->threads, 1, 1};
}

Dim grid_size() {
    return fiber().launch->grid;
}

int lane() {
    return int(fiber().index % 32);
}

bool deliver_now() {
    switch (fiber().launch->schedule) {
        case Schedule::RISING:
            return true;
        case Schedule::FALLING:
        case Schedule::LATE:
            return false;
        case Schedule::RANDOM:
            break;
    }
    return fiber().launch->random.next() & 1;
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

}  // namespace emulator
