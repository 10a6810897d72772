// Accesses to memory as the hardware would make them, counted on request.
//
//   a lane's n-th access at a line joins group n of its warp at that line
//   a group with all 32 lanes, or one that is left when the block has returned, is one access of the warp:
//     shared memory: 32 banks of 4 bytes. A pass reads one word of each bank, for any number of lanes.
//       Accesses of 8 bytes are split into half warps, those of 16 bytes into quarter warps. Each part needs as
//       many passes as there are distinct words in its busiest bank; the minimum is one pass per part.
//     global memory: sectors of 32 bytes that the lanes touch. The minimum is the distinct bytes over 32,
//       rounded up.
//
// Addresses that are neither in the block's shared memory nor in an allocation, such as those of local
// variables, are not counted.
#include "accesses.h"

#include <algorithm>

#include "memory.h"
#include "scheduler.h"

namespace emulator {

namespace {

constexpr int BANKS = 32, BANK_BYTES = 4, SECTOR = 32;
constexpr uint32_t ALL = ~0u;

int counting_launches = 0;

/// Number of passes that the lanes from `begin` to `end` need; 0 if none of them is active.
int passes(const LanesOfSite::Group& group, int begin, int end, int bytes) {
    uintptr_t words[64];
    int count = 0;
    for (int lane = begin; lane < end; ++lane) {
        if ((group.lanes >> lane & 1) != 0) {
            uintptr_t last = (group.address[lane] + uintptr_t(bytes) - 1) / BANK_BYTES;
            for (uintptr_t word = group.address[lane] / BANK_BYTES; word <= last && count < 64; ++word) {
                words[count++] = word;
            }
        }
    }
    std::sort(words, words + count);
    count = int(std::unique(words, words + count) - words);
    int in_bank[BANKS] = {}, most = 0;
    for (int i = 0; i < count; ++i) {
        most = std::max(most, ++in_bank[words[i] % BANKS]);
    }
    return most;
}

/// Number of sectors that a group touches, and the smallest possible number for its distinct bytes.
void sectors(const LanesOfSite::Group& group, int bytes, uint64_t& touched, uint64_t& fewest) {
    uintptr_t start[32];
    int count = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if ((group.lanes >> lane & 1) != 0) {
            start[count++] = group.address[lane];
        }
    }
    std::sort(start, start + count);
    uintptr_t end = 0, next_sector = 0;
    uint64_t distinct = 0;
    touched = 0;
    for (int i = 0; i < count; ++i) {
        uintptr_t from = std::max(start[i], end), to = start[i] + uintptr_t(bytes);
        if (to > from) {
            distinct += to - from;
            end = to;
        }
        uintptr_t first = std::max(start[i] / SECTOR, next_sector), last = (to - 1) / SECTOR;
        if (last + 1 > first) {
            touched += last + 1 - first;
            next_sector = last + 1;
        }
    }
    fewest = (distinct + SECTOR - 1) / SECTOR;
}

void fold(AccessState& state, const AccessSite& site, const LanesOfSite::Group& group) {
    uint64_t units = 0, fewest = 0;
    if (site.shared) {
        int part = site.bytes <= 4 ? 32 : site.bytes <= 8 ? 16 : 8;
        for (int begin = 0; begin < 32; begin += part) {
            uint64_t of_part = uint64_t(passes(group, begin, begin + part, site.bytes));
            units += of_part;
            fewest += of_part > 0;
        }
    } else {
        sectors(group, site.bytes, units, fewest);
    }
    AccessCounts& counts = state.counts[site];
    counts.accesses += 1;
    counts.units += units;
    counts.fewest += fewest;
    counts.wide += units > fewest;
}

}  // namespace

const int* counting = &counting_launches;

Counting::Counting(bool on) : on(on) {
    launch().accesses = on ? std::make_shared<AccessState>() : nullptr;
    if (on) {
        __atomic_add_fetch(&counting_launches, 1, __ATOMIC_RELAXED);
    }
}

Counting::~Counting() {
    if (on) {
        __atomic_sub_fetch(&counting_launches, 1, __ATOMIC_RELAXED);
    }
}

void start_accesses(size_t warps) {
    launch().accesses->warps.assign(warps, {});
}

void count_access(const void* address, int bytes, bool store, const char* file, int line) {
    Fiber& f = fiber();
    AccessState* state = f.launch->accesses.get();
    if (state == nullptr || bytes <= 0) {
        return;
    }
    auto place = reinterpret_cast<uintptr_t>(address);
    auto window = reinterpret_cast<uintptr_t>(f.block->window);
    bool shared = place >= window && place - window < WINDOW_BYTES;
    if (!shared) {
        Launch& l = *f.launch;
        auto* start = static_cast<const unsigned char*>(address);
        if (l.found == nullptr || start < l.found || start + bytes > l.found + l.found_bytes) {
            size_t room = 0;
            const unsigned char* found = allocation_of(address, size_t(bytes), room);
            if (found == nullptr) {
                return;
            }
            l.found = found;
            l.found_bytes = room;
        }
    }
    AccessSite site{file, line, shared, store, bytes};
    // A warp has few access sites, and the one used last is likely the next one.
    auto& places = state->warps[(f.block->first_fiber + f.index) / 32];
    auto found = std::find_if(places.rbegin(), places.rend(), [&](const auto& one) { return one.first == site; });
    if (found == places.rend()) {
        places.emplace_back(site, LanesOfSite{});
        found = places.rbegin();
    }
    LanesOfSite& lanes = found->second;
    int lane = int(f.index % 32);
    size_t number = size_t(lanes.taken[lane]++ - lanes.first);
    if (number >= lanes.open.size()) {
        lanes.open.resize(number + 1);
    }
    LanesOfSite::Group& group = lanes.open[number];
    group.lanes |= 1u << lane;
    group.address[lane] = place;
    if (group.lanes == ALL) {
        fold(*state, site, group);
        group.lanes = 0;
        if (number + 1 == lanes.open.size()) {
            // Earlier groups may still lack lanes. All are complete once each lane has made this many accesses.
            uint64_t least = *std::min_element(lanes.taken, lanes.taken + 32);
            if (least == lanes.first + number + 1) {
                lanes.first = least;
                lanes.open.clear();
            }
        }
    }
}

void finish_accesses() {
    AccessState& state = *launch().accesses;
    for (auto& places : state.warps) {
        for (auto& [site, lanes] : places) {
            for (const LanesOfSite::Group& group : lanes.open) {
                if (group.lanes != 0) {
                    fold(state, site, group);
                }
            }
        }
    }
    state.warps.clear();
}

void count_row(const unsigned char* start, size_t bytes, bool store) {
    auto from = reinterpret_cast<uintptr_t>(start);
    uint64_t units = (from + bytes + SECTOR - 1) / SECTOR - from / SECTOR, fewest = (bytes + SECTOR - 1) / SECTOR;
    AccessCounts& counts = launch().accesses->counts[AccessSite{"TMA", 0, false, store, 0}];
    counts.accesses += 1;
    counts.units += units;
    counts.fewest += fewest;
    counts.wide += units > fewest;
}

}  // namespace emulator

extern "C" {

/// Calls `use` for each access site of the last launch of this OS thread, if that launch counted accesses.
void emulator_accesses(void (*use)(void* context, const char* file, int line, int shared, int store, int bytes,
                                   const emulator::AccessCounts* counts),
                       void* context) {
    const auto& state = emulator::launch().accesses;
    if (state != nullptr) {
        for (const auto& [site, counts] : state->counts) {
            use(context, site.file, site.line, site.shared, site.store, site.bytes, &counts);
        }
    }
}
}
