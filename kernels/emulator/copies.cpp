// cp.async.
#include "memory.h"
#include "scheduler.h"

namespace emulator {

namespace {

void deliver(const Copy& copy) {
    std::memcpy(copy.to, copy.from, size_t(copy.valid));
    std::memset(copy.to + copy.valid, 0, size_t(copy.bytes - copy.valid));
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
    Copy copy{static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid};
    Fiber& f = fiber();
    f.open_copies += 1;
    if (deliver_now()) {
        deliver(copy);
    } else {
        f.open_waiting += 1;
        f.copies.push_back(copy);
    }
}

void cp_async_commit() {
    Fiber& f = fiber();
    f.groups.push_back(f.open_waiting);
    f.open_copies = f.open_waiting = 0;
}

void cp_async_wait(int pending) {
    // The open group does not count until it is committed.
    Fiber& f = fiber();
    if (f.groups.size() <= size_t(pending)) {
        return;
    }
    auto last = f.groups.end() - pending;
    auto end = f.copies.begin();
    for (auto group = f.groups.begin(); group != last; ++group) {
        for (auto group_end = end + *group; end != group_end; ++end) {
            deliver(*end);
        }
    }
    f.copies.erase(f.copies.begin(), end);
    f.groups.erase(f.groups.begin(), last);
}

}  // namespace emulator
