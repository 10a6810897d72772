// The C interface called from src/backend/kernels/emulator.rs.

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "memory.h"
#include "scheduler.h"

using namespace emulator;

extern "C" {

/// Fields as in `Request` of emulator.rs.
struct EmulatorRequest {
    const char* kernel;
    void (*entry)(void**);
    void** parameters;
    unsigned grid[3];
    unsigned threads;
    /// Blocks of a cluster.
    unsigned cluster;
    /// Blocks that run together: the size of a cluster, or 0 for all of them.
    unsigned together;
    /// Whether its threads must wait for the launch before.
    unsigned early;
    size_t shared_bytes;
    int schedule;
    uint64_t seed;
    /// The place whose barriers are left out; null for none.
    const char* omitted_file;
    int omitted_line;
};

/// Tells `use` of every place with a barrier that launches of this OS thread have met since the last call.
void emulator_barriers(void (*use)(void* context, const char* file, int line), void* context) {
    Launch& l = launch();
    for (const Site* site : l.barriers) {
        use(context, site->file, site->line);
    }
    l.barriers.clear();
}

void* emulator_allocate(size_t bytes) {
    return allocate(bytes);
}

void emulator_release(void* memory) {
    release(memory);
}

/// Runs a kernel to its end. Returns 0, or 1 with a message of at most `room` bytes, its end included.
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
    l.last_barrier = nullptr;
    l.found = nullptr;
    l.error.clear();
    uint64_t blocks = uint64_t(l.grid.x) * l.grid.y * l.grid.z;
    uint64_t together = request->together == 0 ? blocks : request->together;
    uint64_t parties = together == 0 ? 0 : blocks / together;
    std::vector<uint64_t> order(parties);
    std::iota(order.begin(), order.end(), 0);
    if (l.schedule == Schedule::FALLING) {
        std::reverse(order.begin(), order.end());
    } else if (l.schedule == Schedule::RANDOM) {
        for (uint64_t i = parties; i > 1; --i) {
            std::swap(order[i - 1], order[l.random.below(i)]);
        }
    }
    std::vector<uint64_t> party(together);
    for (uint64_t first : order) {
        std::iota(party.begin(), party.end(), first * together);
        if (!l.run(party)) {
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
