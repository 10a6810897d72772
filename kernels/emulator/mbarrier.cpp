// mbarriers: arrival and transaction counts of a phase. PTX ISA: "Parallel Synchronization and
// Communication Instructions: mbarrier".
#include <cstdio>

#include "scheduler.h"

namespace emulator {

namespace {

/// Largest arrival count and transaction count, from the PTX ISA.
constexpr int LIMIT = (1 << 20) - 1;

size_t barrier_offset(const char* what, const void* barrier) {
    size_t offset = shared_offset(what, barrier, 8);
    if (offset % 8 != 0) {
        fail("%s on an address that is not a multiple of 8", what);
    }
    return offset;
}

void write_word(Block& b, size_t offset, uint64_t word) {
    std::memcpy(b.window + offset, &word, sizeof word);
}

/// The mbarrier at an offset, or null with the reason in `why`.
Mbarrier* find(Block& b, size_t offset, const char*& why) {
    auto found = b.mbarriers.find(offset);
    if (found == b.mbarriers.end() || !found->second.live) {
        why = found == b.mbarriers.end() ? "it was never initialised" : "it was invalidated";
        return nullptr;
    }
    uint64_t word;
    std::memcpy(&word, b.window + offset, sizeof word);
    if (word != found->second.word()) {
        why = "its bytes were overwritten";
        return nullptr;
    }
    return &found->second;
}

Mbarrier& get(const char* what, Block& b, size_t offset) {
    const char* why = "";
    Mbarrier* m = find(b, offset, why);
    if (m == nullptr) {
        fail("%s on the mbarrier at %zu of the shared window: %s", what, offset, why);
    }
    return *m;
}

/// Aborts the launch if the mbarrier may still be invisible to other blocks and the async proxy.
void require_fenced(const char* what, const Mbarrier& m, size_t offset) {
    if (m.unfenced) {
        fail("%s on the mbarrier at %zu of the shared window, which thread %u initialised without a "
             "fence_mbarrier_init() since",
             what, offset, m.initialiser);
    }
}

/// Completes the phase if no arrivals and no bytes are missing, and updates the word in shared memory.
void complete_phase(Block& b, size_t offset, Mbarrier& m) {
    if (m.pending == 0 && m.bytes == 0) {
        m.generation += 1;
        m.pending = m.arrivals;
    }
    write_word(b, offset, m.word());
}

}  // namespace

void init_mbarrier(void* barrier, int arrivals) {
    size_t offset = barrier_offset("mbarrier.init", barrier);
    if (arrivals < 1 || arrivals > LIMIT) {
        fail("mbarrier.init with %d arrivals; the count must be 1 to %d", arrivals, LIMIT);
    }
    Mbarrier& m = block().mbarriers[offset];
    if (m.live) {
        fail("mbarrier.init of the mbarrier at %zu of the shared window, which is in use; invalidate it first", offset);
    }
    // The new generation is even, and different from any that a thread may still wait on from an earlier use.
    m.generation = (m.generation + 3) & ~1ull;
    m.live = true;
    m.unfenced = true;
    m.initialiser = fiber().index;
    m.arrivals = m.pending = arrivals;
    m.bytes = 0;
    write_word(block(), offset, m.word());
}

void fence_mbarrier_init() {
    for (auto& entry : block().mbarriers) {
        Mbarrier& m = entry.second;
        m.unfenced = m.unfenced && m.initialiser != fiber().index;
    }
}

void invalidate_mbarrier(void* barrier) {
    size_t offset = barrier_offset("mbarrier.inval", barrier);
    Mbarrier& m = get("mbarrier.inval", block(), offset);
    m.live = false;
    // Wakes waiting threads, which then fail.
    m.generation += 1;
}

void arrive_mbarrier(void* barrier, int rank, int bytes) {
    const char* what = bytes > 0 ? "mbarrier.arrive.expect_tx" : "mbarrier.arrive";
    size_t offset = barrier_offset(what, barrier);
    Block& b = rank < 0 ? block() : peer(what, unsigned(rank));
    Mbarrier& m = get(what, b, offset);
    if (rank >= 0) {
        require_fenced(what, m, offset);
    }
    if (bytes < 0 || m.bytes + bytes > LIMIT) {
        fail("%s of %d bytes; at most %d can be pending", what, bytes, LIMIT);
    }
    if (m.pending == 0) {
        fail("%s: too many arrivals on the mbarrier at %zu: all %d arrivals of the phase are complete, "
             "%lld bytes are missing",
             what, offset, m.arrivals, static_cast<long long>(m.bytes));
    }
    m.bytes += bytes;
    m.pending -= 1;
    complete_phase(b, offset, m);
}

void wait_mbarrier(void* barrier, int parity) {
    size_t offset = barrier_offset("mbarrier.try_wait", barrier);
    if (parity != 0 && parity != 1) {
        fail("mbarrier.try_wait with parity %d; it must be 0 or 1", parity);
    }
    for (;;) {
        Mbarrier& m = get("mbarrier.try_wait", block(), offset);
        if ((m.generation & 1) != unsigned(parity)) {
            return;
        }
        wait_change(parity == 0 ? "mbarrier, parity 0" : "mbarrier, parity 1", &m.generation, m.generation);
    }
}

void check_mbarrier(const char* what, Block& target, size_t offset) {
    require_fenced(what, get(what, target, offset), offset);
}

void complete_bytes(const Fiber& issuer, Block& target, size_t offset, int bytes) {
    const char* why = "";
    Mbarrier* m = find(target, offset, why);
    if (m == nullptr) {
        set_error(issuer, "a TMA load completes on the mbarrier at %zu of block (%u, %u, %u): %s", offset,
                  target.index.x, target.index.y, target.index.z, why);
        return;
    }
    m->bytes -= bytes;
    if (m->bytes < -LIMIT) {
        set_error(issuer, "more than %d unexpected bytes on the mbarrier at %zu", LIMIT, offset);
    }
    complete_phase(target, offset, *m);
}

std::string describe_mbarriers() {
    std::string text;
    for (const Block& b : launch().blocks) {
        for (const auto& [offset, m] : b.mbarriers) {
            bool waited = false;
            for (unsigned t = 0; t < b.threads; ++t) {
                const Fiber& f = launch().fibers[b.first_fiber + t];
                waited = waited || (!f.done && f.counter == &m.generation);
            }
            if (waited) {
                char line[200];
                std::snprintf(line, sizeof line,
                              " mbarrier at %zu of block %u: parity %u, %d of %d arrivals and %lld bytes are "
                              "missing;", offset,
                              b.index.x, unsigned(m.generation & 1), m.pending, m.arrivals,
                              static_cast<long long>(m.bytes));
                text += line;
            }
        }
    }
    return text;
}

}  // namespace emulator
