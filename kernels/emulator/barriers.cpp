// Block and named barriers, warp exchanges.
#include <cstring>

#include "scheduler.h"

namespace emulator {

namespace {

void arrive(const char* what, Barrier& barrier, unsigned expected) {
    uint64_t seen = barrier.generation;
    barrier.arrived += 1;
    if (barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation += 1;
        // The thread that completes the barrier yields, so that it does not run ahead of the
        // threads it wakes by more than the schedule says.
        yield(what);
        return;
    }
    wait_change(what, &barrier.generation, seen);
}

}  // namespace

void sync_block(const Site* site) {
    Launch& l = *fiber().launch;
    // Adjacent threads are usually at the same barrier, so the last location is a good cache.
    if (l.last_barrier != site) {
        l.last_barrier = site;
        l.barriers.insert(site);
    }
    if (l.omitted_line == site->line && l.omitted_file != nullptr && std::strcmp(l.omitted_file, site->file) == 0) {
        return;
    }
    arrive("block barrier", block().whole, block().live);
}

namespace {

Barrier& named(int id, int threads) {
    if (id < 1 || id > 15 || threads <= 0 || threads % 32 != 0 || unsigned(threads) > block().threads) {
        fail("named barrier %d of %d threads; the id must be 1 to 15, the threads whole warps of the block", id,
             threads);
    }
    Barrier& barrier = block().named[id];
    if (barrier.arrived > 0 && barrier.expected != unsigned(threads)) {
        fail("named barrier %d is used with %u threads and with %d threads", id, barrier.expected, threads);
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

unsigned char* exchange_slot(const char* what, int bytes) {
    Fiber& f = fiber();
    Warp& warp = *f.warp;
    if (warp.arrived == 0) {
        unsigned lanes = f.block->threads - f.index / 32 * 32;
        if (lanes < 32) {
            fail("%s in a warp of %u lanes; a block must be whole warps", what, lanes);
        }
        warp.what = what;
        warp.bytes = bytes;
    } else if ((warp.what != what && std::strcmp(warp.what, what) != 0) || warp.bytes != bytes) {
        fail("%s while other lanes of the warp are at %s", what, warp.what);
    }
    return warp.slots[warp.generation & 1] + size_t(f.index % 32) * size_t(bytes);
}

const unsigned char* exchange_slots(const char* what) {
    Fiber& f = fiber();
    Warp& warp = *f.warp;
    uint64_t seen = warp.generation;
    warp.arrived |= 1u << f.index % 32;
    if (warp.arrived == 0xffffffffu) {
        warp.arrived = 0;
        warp.generation += 1;
    } else {
        wait_change(what, &warp.generation, seen);
    }
    f.exchanges = seen + 1;
    return warp.slots[seen & 1];
}

unsigned char* exchange_result(bool* first) {
    Fiber& f = fiber();
    Warp& warp = *f.warp;
    uint64_t last = f.exchanges;
    *first = warp.computed < last;
    warp.computed = last;
    return warp.results[last & 1];
}

}  // namespace emulator
