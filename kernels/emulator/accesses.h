// Counts of a launch's accesses to memory, by source line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace emulator {

/// An access site: a source line with the memory space, direction and size of its accesses. TMA copies have
/// line 0 and size 0.
struct AccessSite {
    const char* file;
    int line;
    bool shared, store;
    int bytes;

    auto key() const {
        return std::tie(file, line, shared, store, bytes);
    }
    bool operator<(const AccessSite& other) const {
        return key() < other.key();
    }
    bool operator==(const AccessSite& other) const {
        return key() == other.key();
    }
};

/// Mirrored by `Counts` in src/backend/kernels/emulator/accesses.rs.
struct AccessCounts {
    /// Accesses of a warp, or rows of TMA boxes.
    uint64_t accesses = 0;
    /// Shared memory: passes through the banks. Global memory: sectors of 32 bytes.
    uint64_t units = 0;
    /// The fewest units possible for the same bytes.
    uint64_t fewest = 0;
    /// Accesses with more units than the fewest.
    uint64_t wide = 0;
};

/// Accesses of a warp at one access site.
struct LanesOfSite {
    /// Accesses of each lane so far.
    uint64_t taken[32] = {};
    /// An access of the warp: the lanes that have made it, and their addresses.
    struct Group {
        uint32_t lanes = 0;
        uintptr_t address[32];
    };
    /// Groups from index `first` on. A complete group has been counted, and its `lanes` is 0.
    uint64_t first = 0;
    std::vector<Group> open;
};

struct AccessState {
    std::map<AccessSite, AccessCounts> counts;
    /// Accesses of each warp of the running blocks.
    std::vector<std::vector<std::pair<AccessSite, LanesOfSite>>> warps;
};

/// Counts the accesses of one launch during its lifetime.
class Counting {
    bool on;

public:
    explicit Counting(bool on);
    ~Counting();
    Counting(const Counting&) = delete;
    Counting& operator=(const Counting&) = delete;
};

}  // namespace emulator
