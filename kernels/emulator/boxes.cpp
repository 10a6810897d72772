// TMA: tensor maps, addressing, time of delivery. PTX ISA: "Tensors", cp.async.bulk.tensor,
// cp.reduce.async.bulk.tensor, "Swizzling modes".
#include "../primitives/bits.cuh"
#include "memory.h"
#include "scheduler.h"

namespace emulator {

namespace {

/// Alignment of a box's rows in global memory, and unit of a plain store.
constexpr size_t ALIGN = 16;
/// Bytes of a 128-byte swizzle pattern and of its rows.
constexpr size_t PATTERN = 1024;
constexpr int ROW = 128;

/// Offset in the window of byte `i` of a box: the chunk (address bits 4 to 6) xor the row (bits 7
/// to 9).
size_t swizzled(const Box& box, size_t i) {
    size_t offset = box.shared + i;
    return box.swizzled ? offset ^ ((offset >> 7 & 7) << 4) : offset;
}

/// Calls `f(row, global, first, count)` for each row of a box with elements inside the tensor: row
/// in the box, address of the first such element, its index in the row, number of elements.
template <class F>
void for_each_row_inside(const Box& box, F f) {
    int rows = 1;
    for (int d = 1; d < box.rank; ++d) {
        rows *= box.size[d];
    }
    int64_t first = box.at[0] < 0 ? -int64_t(box.at[0]) : 0;
    int64_t end = int64_t(box.dims[0]) - box.at[0];
    end = end < box.size[0] ? end : box.size[0];
    if (first >= end) {
        return;
    }
    for (int row = 0; row < rows; ++row) {
        int64_t offset = (box.at[0] + first) * box.element_bytes;
        bool inside = true;
        int rest = row;
        for (int d = 1; d < box.rank; ++d) {
            int64_t x = int64_t(box.at[d]) + rest % box.size[d];
            rest /= box.size[d];
            inside = inside && x >= 0 && uint64_t(x) < box.dims[d];
            offset += x * int64_t(box.strides[d]);
        }
        if (inside) {
            f(row, box.base + offset, int(first), int(end - first));
        }
    }
}

/// Bytes that a plain store of `count` elements of a row writes: whole units of 16 bytes, past the end of the
/// tensor's row if that end is inside a unit (triton-lang/triton#11583).
size_t stored_bytes(const Box& box, int count) {
    return (size_t(count * box.element_bytes) + ALIGN - 1) / ALIGN * ALIGN;
}

/// Decodes and checks the box of a map at coordinates `at`. A GPU reports an illegal instruction
/// unless the row of a box starts at a multiple of 16 bytes (triton-lang/triton#7385), and the CUDA
/// Programming Guide forbids stores with negative coordinates.
Box make_box(const char* what, const void* shared, const MapWords& map, const int* at, int rank, bool is_store) {
    check_tensor_map(map, rank);
    Box box;
    box.base = reinterpret_cast<unsigned char*>(map[1]);
    box.bf16 = (map[2] & 0xff) == 1;
    box.element_bytes = box.bf16 ? 2 : 4;
    box.rank = rank;
    box.swizzled = (map[2] >> 16 & 0xff) != 0;
    for (int d = 0; d < rank; ++d) {
        box.dims[d] = map[3 + d];
        box.strides[d] = d == 0 ? uint64_t(box.element_bytes) : map[8 + d - 1];
        box.size[d] = int(map[12 + d / 2] >> (32 * (d % 2)) & 0xffffffff);
        box.at[d] = at[d];
        if (is_store && at[d] < 0) {
            fail("%s at the negative coordinate %d of dimension %d; only loads may start before the tensor", what,
                 at[d], d);
        }
    }
    if (int64_t(at[0]) * box.element_bytes % int64_t(ALIGN) != 0) {
        fail("%s at the innermost coordinate %d; %d bytes are not a multiple of %zu, an illegal instruction on a GPU",
             what, at[0], at[0] * box.element_bytes, ALIGN);
    }
    box.shared = shared_offset(what, shared, size_t(box.bytes()));
    size_t align = box.swizzled ? PATTERN : ROW;
    if (box.shared % align != 0) {
        fail("%s at %zu of the shared window; a box must be aligned to %zu bytes", what, box.shared, align);
    }
    for_each_row_inside(box, [&](int, unsigned char* global, int, int count) {
        check_global(what, global, is_store ? stored_bytes(box, count) : size_t(count * box.element_bytes));
    });
    return box;
}

void deliver(const TmaLoad& load) {
    const Box& box = load.box;
    unsigned char* window = load.target->window;
    int row_bytes = box.size[0] * box.element_bytes;
    if (launch().proxies != nullptr && running != nullptr && !running->done) {
        look_at_shared(*running);
    }
    for (int i = 0; i < box.bytes(); i += 16) {
        std::memset(window + swizzled(box, size_t(i)), 0, 16);
    }
    for_each_row_inside(box, [&](int row, unsigned char* global, int first, int count) {
        for (int i = 0; i < count; ++i) {
            size_t byte = size_t(row) * row_bytes + size_t(first + i) * box.element_bytes;
            std::memcpy(window + swizzled(box, byte), global + i * box.element_bytes, size_t(box.element_bytes));
        }
    });
    for (int i = 0; i < box.bytes() && launch().proxies != nullptr; i += 16) {
        publish_async_write(*load.target, swizzled(box, size_t(i)), 16);
    }
    complete_bytes(*load.issuer, *load.target, load.barrier, box.bytes());
}

void read(TmaStore& store) {
    if (store.was_read) {
        return;
    }
    store.was_read = true;
    store.contents.resize(size_t(store.box.bytes()));
    for (size_t i = 0; i < store.contents.size(); i += 16) {
        std::memcpy(store.contents.data() + i, store.issuer->block->window + swizzled(store.box, i), 16);
    }
}

void add(unsigned char* to, const unsigned char* from, bool bf16) {
    if (bf16) {
        uint16_t a, b;
        std::memcpy(&a, to, 2);
        std::memcpy(&b, from, 2);
        float sum = float_of_bits(uint32_t(a) << 16) + float_of_bits(uint32_t(b) << 16);
        a = uint16_t(round_to_bf16_pair(sum, 0.0f));
        std::memcpy(to, &a, 2);
    } else {
        float a, b;
        std::memcpy(&a, to, 4);
        std::memcpy(&b, from, 4);
        a += b;
        std::memcpy(to, &a, 4);
    }
}

void write(TmaStore& store) {
    read(store);
    if (store.written) {
        return;
    }
    store.written = true;
    const Box& box = store.box;
    size_t row_bytes = size_t(box.size[0] * box.element_bytes), element = size_t(box.element_bytes);
    for_each_row_inside(box, [&](int row, unsigned char* global, int first, int count) {
        const unsigned char* from = store.contents.data() + size_t(row) * row_bytes + size_t(first) * element;
        if (!store.add) {
            std::memcpy(global, from, stored_bytes(box, count));
            return;
        }
        for (int i = 0; i < count; ++i) {
            add(global + size_t(i) * element, from + size_t(i) * element, box.bf16);
        }
    });
}

/// Checks that the running thread's asynchronous operation may read the global rows of a box.
void require_rows_published(const char* what, const Box& box) {
    for_each_row_inside(box, [&](int, unsigned char* global, int, int count) {
        require_published_global(what, global, size_t(count * box.element_bytes));
    });
}

/// Rejects a TMA copy before wait_for_earlier_launch(): its box may be memory that the previous launch writes
/// or reads.
void require_earlier_launch_wait() {
    if (launch().early && !fiber().waited) {
        fail("a TMA copy before wait_for_earlier_launch, in a kernel marked EARLY");
    }
}

}  // namespace

int Box::bytes() const {
    int elements = 1;
    for (int d = 0; d < rank; ++d) {
        elements *= size[d];
    }
    return elements * element_bytes;
}

void check_tensor_map(const MapWords& map, int rank) {
    if (map[0] != MAP_MAGIC) {
        fail("a tensor map that was not made for the emulator");
    }
    if (int(map[2] >> 8 & 0xff) != rank) {
        fail("a tensor map of %d dimensions; the copy needs %d", int(map[2] >> 8 & 0xff), rank);
    }
}

void tma_load(void* to, const MapWords& map, const int* at, int rank, void* barrier, unsigned blocks) {
    require_earlier_launch_wait();
    const char* what = "cp.async.bulk.tensor load";
    TmaLoad load{make_box(what, to, map, at, rank, false), nullptr,
                 shared_offset("mbarrier of a TMA load", barrier, 8), &fiber()};
    if (launch().proxies != nullptr) {
        require_rows_published(what, load.box);
    }
    if (launch().accesses != nullptr) {
        for_each_row_inside(load.box, [&](int, unsigned char* global, int, int count) {
            count_row(global, size_t(count * load.box.element_bytes), false);
        });
    }
    unsigned named = blocks == 0 ? 1u << block().rank : blocks;
    for (unsigned rank_of = 0; named >> rank_of != 0; ++rank_of) {
        if ((named >> rank_of & 1) == 0) {
            continue;
        }
        load.target = &peer(what, rank_of);
        check_mbarrier(what, *load.target, load.barrier);
        if (deliver_now()) {
            deliver(load);
        } else {
            launch().loads.push_back(load);
        }
    }
    if (!launch().error.empty()) {
        abandon();
    }
}

bool deliver_load() {
    Launch& l = launch();
    if (l.loads.empty()) {
        return false;
    }
    size_t last = l.loads.size() - 1;
    size_t i = l.schedule == Schedule::RANDOM ? l.random.below(l.loads.size()) : l.schedule == Schedule::LATE ? 0 : last;
    TmaLoad load = l.loads[i];
    l.loads.erase(l.loads.begin() + ptrdiff_t(i));
    deliver(load);
    return true;
}

void tma_store(const void* from, const MapWords& map, const int* at, int rank, bool add) {
    require_earlier_launch_wait();
    const char* what = add ? "cp.reduce.async.bulk.tensor" : "cp.async.bulk.tensor store";
    Box box = make_box(what, from, map, at, rank, true);
    if (add && box.dims[0] * uint64_t(box.element_bytes) % 16 != 0) {
        fail("%s: rows of %d bytes, not a multiple of 16; the hardware would add to all of the last 16 bytes", what,
             int(box.dims[0] * box.element_bytes));
    }
    if (launch().proxies != nullptr) {
        look_at_shared(fiber());
        for (int i = 0; i < box.bytes(); i += 16) {
            require_published(what, block(), swizzled(box, size_t(i)), 16);
        }
        if (add) {
            require_rows_published(what, box);
        }
        for_each_row_inside(box, [&](int, unsigned char* global, int, int count) {
            note_async_store(global, size_t(count * box.element_bytes));
        });
    }
    if (launch().accesses != nullptr) {
        for_each_row_inside(box, [&](int, unsigned char* global, int, int count) {
            count_row(global, size_t(count * box.element_bytes), true);
        });
    }
    auto& group = async_state().stores.back().stores;
    group.push_back({box, add, &fiber(), {}, false, false});
    if (deliver_now()) {
        read(group.back());
        if (deliver_now()) {
            write(group.back());
        }
    }
}

void tma_commit() {
    async_state().stores.emplace_back();
}

void tma_wait(int pending, bool written) {
    auto& groups = async_state().stores;
    size_t closed = groups.size() - 1;
    for (size_t i = 0; i + size_t(pending) < closed; ++i) {
        groups[i].released = true;
        for (TmaStore& store : groups[i].stores) {
            written ? write(store) : read(store);
        }
    }
    while (written && groups.size() - 1 > size_t(pending)) {
        groups.pop_front();
    }
}

void deliver_stores() {
    for (TmaStore& store : launch().stores) {
        write(store);
    }
}

}  // namespace emulator
