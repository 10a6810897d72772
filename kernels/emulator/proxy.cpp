// Check for missing proxy fences. PTX ISA: "Proxies", "membar.proxy / fence.proxy".
//
// TMA and wgmma access memory through the async proxy, plain code through the generic proxy. The
// async proxy sees a plain write only after a proxy fence by the thread that wrote. In the emulator
// both proxies see the same bytes, so this file keeps track of what the async proxy may see:
//
//   thread T waits, fences or issues an asynchronous operation:
//       bytes of shared memory that differ from the last look were written by T: unpublished
//   T executes fence_async_proxy():             T's bytes are published
//   a TMA load writes a box:                    the bytes of the box are published
//   a TMA store or wgmma reads shared memory:   an unpublished byte is an error
//
//   a TMA store of T writes global memory:      the rows are unpublished writes of T
//   T executes fence_async_proxy_global():      T's rows are published, at this point of time
//   a TMA operation of another thread U reads such rows: an error unless they are published, and U
//       has executed fence_async_proxy_global() since
//
// A plain write of the value that the memory already holds is not detected. Tests therefore use random values.
#include <algorithm>
#include <cstring>

#include "scheduler.h"

namespace emulator {

namespace {

/// Bytes compared at once.
constexpr size_t CHUNK = 64;

SharedView& view_of(const Block& b) {
    Launch& l = launch();
    return l.proxies->shared[size_t(&b - l.blocks.data())];
}

/// Attributes the bytes of a range that have changed since the last look to fiber `writer`.
void look(const Block& b, SharedView& view, size_t start, size_t bytes, uint32_t writer) {
    const unsigned char* window = b.window;
    if (std::memcmp(window + start, view.known.data() + start, bytes) == 0) {
        return;
    }
    for (size_t at = start; at < start + bytes; at += CHUNK) {
        size_t end = std::min(at + CHUNK, start + bytes);
        if (std::memcmp(window + at, view.known.data() + at, end - at) == 0) {
            continue;
        }
        for (size_t i = at; i < end; ++i) {
            if (window[i] != view.known[i]) {
                view.known[i] = window[i];
                view.writer[i] = writer;
                view.unpublished = true;
            }
        }
    }
}

/// Calls `f(start, bytes)` for dynamic shared memory and for each shared array.
template <class F>
void for_each_range(F f) {
    const Launch& l = launch();
    f(0, l.shared_bytes);
    for (const auto& array : l.shared_arrays) {
        f(array.second.offset, array.second.bytes);
    }
}

/// Index of a fiber in the launch, counted from 1.
uint32_t number_of(const Fiber& f) {
    return uint32_t(&f - launch().fibers.data()) + 1;
}

/// Calls `f(rows)` with the iterator of each entry of `stored` that overlaps a range.
template <class F>
void for_each_overlap(std::map<const unsigned char*, StoredRows>& stored, const unsigned char* start, size_t bytes,
                      F f) {
    auto next = stored.upper_bound(start);
    if (next != stored.begin() && std::prev(next)->second.end > start) {
        --next;
    }
    while (next != stored.end() && next->first < start + bytes) {
        auto found = next++;
        f(found);
    }
}

}  // namespace

void ProxyState::reset(size_t blocks) {
    shared.assign(blocks, SharedView{});
    stored.clear();
    fences = 0;
}

void look_at_shared(const Fiber& f) {
    Launch& l = launch();
    // A thread can also write to the shared memory of the other blocks of its cluster.
    for (unsigned rank = 0; rank < l.cluster; ++rank) {
        const Block& b = l.blocks[f.block->cluster * l.cluster + rank];
        SharedView& view = view_of(b);
        for_each_range([&](size_t start, size_t bytes) { look(b, view, start, bytes, number_of(f)); });
    }
}

void publish_async_write(Block& target, size_t offset, size_t bytes) {
    SharedView& view = view_of(target);
    std::memcpy(view.known.data() + offset, target.window + offset, bytes);
    std::fill_n(view.writer.begin() + ptrdiff_t(offset), bytes, 0u);
}

void require_published(const char* what, const Block& b, size_t offset, size_t bytes) {
    const SharedView& view = view_of(b);
    for (size_t i = offset; i < offset + bytes; ++i) {
        if (view.writer[i] != 0) {
            const Fiber& writer = launch().fibers[view.writer[i] - 1];
            fail("%s reads byte %zu of the shared window, which thread %u wrote without a fence_async_proxy() since",
                 what, i, writer.index);
        }
    }
}

void require_published_global(const char* what, const unsigned char* start, size_t bytes) {
    ProxyState& proxies = *launch().proxies;
    const Fiber& reader = fiber();
    for_each_overlap(proxies.stored, start, bytes, [&](auto rows) {
        const StoredRows& stored = rows->second;
        if (stored.writer == number_of(reader)) {
            return;
        }
        const Fiber& writer = launch().fibers[stored.writer - 1];
        if (stored.published == 0) {
            fail("%s reads global memory that a TMA store of block %u, thread %u wrote without a "
                 "fence_async_proxy_global() since",
                 what, writer.block->index.x, writer.index);
        }
        if (reader.global_fence <= stored.published) {
            fail("%s reads global memory that a TMA store of block %u, thread %u wrote, without a "
                 "fence_async_proxy_global() of the reading thread",
                 what, writer.block->index.x, writer.index);
        }
    });
}

void note_async_store(const unsigned char* start, size_t bytes) {
    auto& stored = launch().proxies->stored;
    for_each_overlap(stored, start, bytes, [&](auto rows) { stored.erase(rows); });
    stored[start] = {start + bytes, number_of(fiber()), 0};
}

namespace {

/// Records the source location of a fence. True if the launch omits it.
bool omitted(const Site* site) {
    Launch& l = launch();
    l.fences.insert(site);
    return l.omitted_line == site->line && l.omitted_file != nullptr && std::strcmp(l.omitted_file, site->file) == 0;
}

}  // namespace

void fence_async_proxy(const Site* site) {
    Launch& l = launch();
    if (l.proxies == nullptr || omitted(site)) {
        return;
    }
    look_at_shared(fiber());
    uint32_t mine = number_of(fiber());
    for (unsigned rank = 0; rank < l.cluster; ++rank) {
        SharedView& view = view_of(l.blocks[fiber().block->cluster * l.cluster + rank]);
        if (!view.unpublished) {
            continue;
        }
        bool others = false;
        for (uint32_t& writer : view.writer) {
            writer = writer == mine ? 0 : writer;
            others = others || writer != 0;
        }
        view.unpublished = others;
    }
}

void fence_async_proxy_global(const Site* site) {
    Launch& l = launch();
    if (l.proxies == nullptr || omitted(site)) {
        return;
    }
    Fiber& f = fiber();
    f.global_fence = ++l.proxies->fences;
    for (auto& rows : l.proxies->stored) {
        if (rows.second.writer == number_of(f) && rows.second.published == 0) {
            rows.second.published = f.global_fence;
        }
    }
}

}  // namespace emulator
