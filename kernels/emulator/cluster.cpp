// Clusters, setmaxnreg, and the checks when threads and blocks return.
#include <algorithm>

#include "scheduler.h"

namespace emulator {

namespace {

/// Registers that setmaxnreg can distribute to the threads of a block, and the maximum of a thread.
constexpr unsigned REGISTERS = 64512, MOST_OF_THREAD = 255;

Cluster& cluster_of(const Fiber& f) {
    return launch().clusters[f.block->cluster];
}

void complete(Cluster& cluster) {
    if (cluster.arrived > 0 && cluster.arrived == cluster.live) {
        cluster.arrived = 0;
        cluster.generation += 1;
    }
}

/// Registers that a thread of the block has at the start of a kernel.
unsigned at_start(const Block& b) {
    return std::min(REGISTERS / b.threads, MOST_OF_THREAD) / 8 * 8;
}

/// Executes setmaxnreg for a warp; the warp's first lane calls it. Registers are free as soon as a warp releases
/// them; a warp that requests more registers than are free waits.
void move_registers(const Fiber& f, int registers, bool increase) {
    Block& b = *f.block;
    Warp& warp = *f.warp;
    if (warp.registers != 0 && (increase ? registers < warp.registers : registers > warp.registers)) {
        fail("setmaxnreg.%s from %d to %d registers", increase ? "inc" : "dec", warp.registers, registers);
    }
    warp.registers = registers;
    warp.register_calls += 1;
    unsigned sum = 0;
    for (size_t w = 0; w < b.warps.size(); ++w) {
        sum += 32 * unsigned(b.warps[w].registers);
    }
    if (sum > REGISTERS) {
        fail("setmaxnreg: the block's warps ask for %u registers; there are %u", sum, REGISTERS);
    }
    auto taken = [&b] {
        unsigned all = 0;
        for (const Warp& w : b.warps) {
            all += 32 * (w.held != 0 ? w.held : at_start(b));
        }
        return all;
    };
    unsigned before = warp.held != 0 ? warp.held : at_start(b);
    while (unsigned(registers) > before && taken() + 32 * (unsigned(registers) - before) > REGISTERS) {
        wait_change("setmaxnreg.inc", &b.registers_released, b.registers_released);
    }
    warp.held = unsigned(registers);
    b.registers_released += 1;
}

}  // namespace

unsigned cluster_rank() {
    return block().rank;
}

unsigned cluster_blocks() {
    return launch().cluster;
}

void arrive_cluster() {
    Fiber& f = fiber();
    if (f.at_cluster) {
        fail("barrier.cluster.arrive twice without a wait in between");
    }
    Cluster& cluster = cluster_of(f);
    f.at_cluster = true;
    f.cluster_seen = cluster.generation;
    cluster.arrived += 1;
    complete(cluster);
}

void wait_cluster() {
    Fiber& f = fiber();
    if (!f.at_cluster) {
        fail("barrier.cluster.wait without an arrive before it");
    }
    wait_change("cluster barrier", &cluster_of(f).generation, f.cluster_seen);
    f.at_cluster = false;
}

void set_registers(int registers, bool increase) {
    if (registers < 24 || registers > 256 || registers % 8 != 0) {
        fail("setmaxnreg of %d registers; the number must be a multiple of 8 from 24 to 256", registers);
    }
    Fiber& f = fiber();
    int signed_registers = increase ? registers : -registers;
    const int* lanes = exchange("setmaxnreg", signed_registers);
    if (lanes[0] != signed_registers) {
        fail("setmaxnreg differs between lanes of a warp");
    }
    if (lane() == 0) {
        move_registers(f, registers, increase);
    }
    exchange("setmaxnreg", signed_registers);  // no lane continues before its warp has the registers
}

AsyncState& async_state() {
    auto& pointer = fiber().async_state;
    if (!pointer) {
        pointer = std::make_unique<AsyncState>();
    }
    return *pointer;
}

// Launches run sequentially, so there is nothing to wait for. The call is recorded to report kernels that return
// without it.
void wait_for_earlier_launch() {
    fiber().waited = true;
}

void finish_fiber(Fiber& f) {
    if (launch().early && !f.waited) {
        fail("returned without wait_for_earlier_launch, in a kernel marked EARLY");
    }
    if (f.open_copies > 0) {
        fail("returned with %u uncommitted cp.async copies; commit them and wait", f.open_copies);
    }
    if (f.at_cluster) {
        fail("returned between arrival and wait of the cluster barrier");
    }
    if (AsyncState* a = f.async_state.get()) {
        for (const WgmmaGroup& group : a->wgmmas) {
            if (group.any) {
                fail("returned with wgmmas that were never waited for");
            }
        }
        for (StoreGroup& group : a->stores) {
            bool open = &group == &a->stores.back();
            if (!group.stores.empty() && !group.released) {
                fail(open ? "returned with uncommitted TMA stores; commit them and wait"
                          : "returned before its TMA stores had read shared memory");
            }
            for (TmaStore& store : group.stores) {
                launch().stores.push_back(std::move(store));
            }
        }
    }
    Cluster& cluster = cluster_of(f);
    cluster.live -= 1;
    complete(cluster);
}

namespace {

void check_warps(const Block& b) {
    for (size_t first = 0; first + 4 <= b.warps.size(); first += 4) {
        for (size_t w = first + 1; w < first + 4; ++w) {
            const Warp &one = b.warps[first], &other = b.warps[w];
            const Fiber& at = launch().fibers[b.first_fiber + 32 * w];
            if (one.register_calls != other.register_calls || one.registers != other.registers) {
                set_error(at, "setmaxnreg is not the same in all warps of the warpgroup");
            }
            if (one.wgmmas != other.wgmmas) {
                set_error(at, "wgmmas issued: %u in this warp, %u in the first warp of its warpgroup", other.wgmmas,
                          one.wgmmas);
            }
        }
    }
}

}  // namespace

void finish_blocks() {
    Launch& l = launch();
    if (!l.loads.empty()) {
        set_error(*l.loads[0].issuer,
                  "all threads have returned while a TMA load is in flight: no thread waited for it");
    }
    for (const Block& b : l.blocks) {
        check_warps(b);
        for (int id = 1; id < 16; ++id) {
            if (b.named[id].arrived > 0) {
                set_error(l.fibers[b.first_fiber],
                          "all threads have returned with %u of %u arrivals left over at named barrier %d",
                          b.named[id].arrived, b.named[id].expected, id);
            }
        }
    }
    deliver_stores();
}

}  // namespace emulator
