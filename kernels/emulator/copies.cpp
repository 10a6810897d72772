// cp.async.
#include "memory.h"
#include "scheduler.h"

namespace emulator {

namespace {

void deliver(std::vector<Copy>& group) {
    for (const Copy& copy : group) {
        std::memcpy(copy.to, copy.from, size_t(copy.valid));
        std::memset(copy.to + copy.valid, 0, size_t(copy.bytes - copy.valid));
    }
    group.clear();
}

}  // namespace

void cp_async(void* shared, const void* global, int bytes, int valid) {
    if (bytes != 4 && bytes != 8 && bytes != 16) {
        fail("cp.async of %d bytes; the size must be 4, 8 or 16", bytes);
    }
    if (valid < 0 || valid > bytes) {
        fail("cp.async with %d valid bytes of %d", valid, bytes);
    }
    if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
        fail("cp.async of %d bytes with a misaligned address", bytes);
    }
    check_shared("cp.async", shared, size_t(bytes));
    if (valid > 0) {
        check_global("cp.async", global, size_t(valid));
    }
    std::vector<Copy> one{
        {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid}};
    fiber().open_copies += 1;
    if (deliver_now()) {
        deliver(one);
    } else {
        fiber().copies.back().push_back(one[0]);
    }
}

void cp_async_commit() {
    fiber().open_copies = 0;
    fiber().copies.emplace_back();
}

void cp_async_wait(int pending) {
    // The last group is open: it does not count until it is committed.
    auto& copies = fiber().copies;
    size_t closed = copies.size() - 1;
    for (size_t group = 0; group + size_t(pending) < closed; ++group) {
        deliver(copies.front());
        copies.pop_front();
    }
}

}  // namespace emulator
