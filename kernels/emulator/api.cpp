// C interface, called from src/backend/kernels/emulator.rs.

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "accesses.h"
#include "memory.h"
#include "scheduler.h"

using namespace emulator;

extern "C" {

/// Mirrored by `Request` in src/backend/kernels/emulator.rs.
struct EmulatorRequest {
    const char* kernel;
    void (*entry)(void**);
    void** parameters;
    unsigned grid[3];
    unsigned threads;
    /// Blocks per cluster.
    unsigned cluster;
    /// Blocks that run concurrently: the cluster size, or 0 for all blocks of the grid.
    unsigned resident;
    /// Whether the kernel is marked EARLY: its threads must then call wait_for_earlier_launch().
    unsigned early;
    size_t shared_bytes;
    int schedule;
    uint64_t seed;
    /// Source location whose barriers or proxy fences are omitted; null for none.
    const char* omitted_file;
    int omitted_line;
    /// Checks proxy fences (proxy.cpp).
    unsigned proxies;
    /// Counts accesses (accesses.cpp).
    unsigned accesses;
};

/// Calls `use` for each source location of a barrier or, with `fences`, of a checked proxy fence that
/// launches of this OS thread have executed since the last call.
void emulator_sites(int fences, void (*use)(void* context, const char* file, int line), void* context) {
    Launch& l = launch();
    std::set<const Site*>& sites = fences != 0 ? l.fences : l.barriers;
    for (const Site* site : sites) {
        use(context, site->file, site->line);
    }
    sites.clear();
}

void* emulator_allocate(size_t bytes) {
    return allocate(bytes);
}

void emulator_release(void* memory) {
    release(memory);
}

/// Runs a kernel to completion. Returns 0, or 1 with a message of at most `room` bytes including
/// the terminator.
int emulator_launch(const EmulatorRequest* request, char* message, size_t room) {
    Launch& l = launch();
    l.kernel = request->kernel;
    l.entry = request->entry;
    l.parameters = request->parameters;
    l.grid = {request->grid[0], request->grid[1], request->grid[2]};
    l.threads = request->threads;
    l.cluster = request->cluster;
    l.early = request->early != 0;
    l.shared_bytes = request->shared_bytes;
    l.schedule = Schedule(request->schedule);
    l.random = {request->seed};
    l.omitted_file = request->omitted_file;
    l.omitted_line = request->omitted_line;
    l.proxies = request->proxies != 0 ? std::make_unique<ProxyState>() : nullptr;
    Counting counting(request->accesses != 0);
    l.last_barrier = nullptr;
    l.found = nullptr;
    l.error.clear();
    uint64_t blocks = uint64_t(l.grid.x) * l.grid.y * l.grid.z;
    uint64_t resident = request->resident == 0 ? blocks : request->resident;
    uint64_t group_count = resident == 0 ? 0 : blocks / resident;
    std::vector<uint64_t> order(group_count);
    std::iota(order.begin(), order.end(), 0);
    if (l.schedule == Schedule::FALLING) {
        std::reverse(order.begin(), order.end());
    } else if (l.schedule == Schedule::RANDOM) {
        for (uint64_t i = group_count; i > 1; --i) {
            std::swap(order[i - 1], order[l.random.below(i)]);
        }
    }
    std::vector<uint64_t> group(resident);
    for (uint64_t first : order) {
        std::iota(group.begin(), group.end(), first * resident);
        if (!l.run(group)) {
            break;
        }
    }
    if (l.error.empty()) {
        l.error = overrun();
    }
    if (l.error.empty()) {
        return 0;
    }
    std::snprintf(message, room, "%s", l.error.c_str());
    return 1;
}
}
