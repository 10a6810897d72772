// Shared by the attention kernels: work list, paths through the prefix tree, key tiles, warp GEMMs.
//
// A path is the rows of a segment's ancestors, root first, then the segment's own rows. Keys are
// numbered by their position on the path. Traversal of a path (for_each_key_tile):
//
//   for each tile of positions 0, KEYS, 2 KEYS, ..., from the first one in the window on:
//     rows[next tile] = row of each position             PathCursor, one thread per key
//     cp.async the keys and values of the next tile      gathered by rows
//     use(keys, values)
//
// Departure from a plain key loop: keys are gathered through the path, since ancestors are not contiguous
// with the segment. Key tiles start at multiples of their length on the path, so a query's sum does not
// depend on the rest of the batch or on how the path is cut into segments.
// A warp computes 16 rows of the block's tile of queries (or keys) and all columns.
#pragma once

#include "primitives/math.cuh"
#include "tile.cuh"

/// Warps and tile rows of a block, by storage and padded head_dim. f32 with head_dim 256 halves the
/// rows to fit shared memory.
template <class T, int HEAD>
struct BlockShape {
    static constexpr int WARPS = sizeof(T) == 4 && HEAD == 256 ? 2 : 4;
    static constexpr int THREADS = WARPS * WARP, ROWS = WARPS * 16;
};

/// Segments of a batch (src/backend/contract/attention.rs).
struct Segments {
    const int* starts;     // (segments + 1)
    const int* offsets;    // (segments + 1)
    const int* ancestors;  // ancestor lists of all segments, one after the other

    DEVICE int rows(int segment) const {
        return starts[segment + 1] - starts[segment];
    }

    /// Number of ancestors.
    DEVICE int depth(int segment) const {
        return offsets[segment + 1] - offsets[segment];
    }

    /// Total rows of the ancestors: the path position of the segment's first row.
    DEVICE int rows_above(int segment) const {
        int sum = 0;
        for (int i = offsets[segment]; i < offsets[segment + 1]; ++i) {
            sum += rows(ancestors[i]);
        }
        return sum;
    }

    /// Whether `segment` is an ancestor of `other`. Ancestor lists are complete paths, so `segment` can only
    /// be the entry at its depth.
    DEVICE bool descends(int other, int segment) const {
        int at = depth(segment);
        return depth(other) > at && ancestors[offsets[other] + at] == segment;
    }
};

/// Maps positions on a path to rows, for ascending positions.
struct PathCursor {
    Segments segments;
    int own, next;
    /// Current run of contiguous rows: position of its first row, that row, length.
    int position, row, length;

    DEVICE PathCursor(const Segments& of, int segment)
        : segments(of), own(segment), next(of.offsets[segment]), position(0), row(0), length(0) {}

    /// Row at position `wanted`, which must lie on the path. It must not be smaller than in the previous call.
    DEVICE int row_at(int wanted) {
        while (wanted - position >= length) {
            int segment = next < segments.offsets[own + 1] ? segments.ancestors[next] : own;
            ++next;
            position += length;
            row = segments.starts[segment];
            length = segments.rows(segment);
        }
        return row + (wanted - position);
    }
};

/// Work list: entry 0 is the number of tiles; entries 2 + 2 i and 3 + 2 i are the segment and the first row
/// of tile i. Tiles are ordered by depth class.
struct WorkList {
    const int* list;

    DEVICE int tiles() const {
        return list[0];
    }
    DEVICE int segment(int tile) const {
        return list[2 + 2 * tile];
    }
    DEVICE int first_row(int tile) const {
        return list[3 + 2 * tile];
    }
};

/// Copies the top left part of a matrix to a shared-memory tile, with zeros outside the matrix. For tiles of
/// many chunks, this is less code than load_tile. The cp.async copies join the thread's open group.
template <class Layout, int THREADS, class T>
DEVICE void load_rows(unsigned char* tile, const MatrixView<T>& from) {
    constexpr int CHUNK = Layout::CHUNK, CHUNKS = Layout::CHUNKS;
    if (from.vectorised) {
#pragma unroll(sizeof(T) == 2 ? 4 : 1)
        for (int i = int(threadIdx.x); i < Layout::ROWS * CHUNKS; i += THREADS) {
            int r = i / CHUNKS, c = i % CHUNKS * CHUNK;
            bool inside = r < from.rows && c < from.columns;
            const T* source = inside ? from.row(r) + c : from.start;
            cp_async_16(Layout::at(tile, r, c), source, inside ? min_of(CHUNK, from.columns - c) * int(sizeof(T)) : 0);
        }
    } else {
#pragma unroll 1
        for (int i = int(threadIdx.x); i < Layout::ROWS * Layout::COLUMNS; i += THREADS) {
            int r = i / Layout::COLUMNS, c = i % Layout::COLUMNS;
            bool inside = r < from.rows && c < from.columns;
            *Layout::at(tile, r, c) = inside ? from.row(r)[c] : from_float<T>(0.0f);
        }
    }
}

/// Packs two adjacent accumulator fragments into operand A (16 x 16), rounded to bf16.
DEVICE void operand_from(OperandA<bf16>& a, const FragmentC& left, const FragmentC& right) {
    a.term[0].word[0] = pack_bf16(left.value[0], left.value[1]);
    a.term[0].word[1] = pack_bf16(left.value[2], left.value[3]);
    a.term[0].word[2] = pack_bf16(right.value[0], right.value[1]);
    a.term[0].word[3] = pack_bf16(right.value[2], right.value[3]);
}

/// As above, but each element is split into three bf16 terms, which together keep 24 bits.
DEVICE void operand_from(OperandA<float>& a, const FragmentC& left, const FragmentC& right) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const FragmentC& from = i < 2 ? left : right;
        uint32_t term[3];
        split_pair(from.value[i % 2 * 2], from.value[i % 2 * 2 + 1], term);
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            a.term[p].word[i] = term[p];
        }
    }
}

/// Accumulators of a warp: rows 16 warp to 16 warp + 15 of the block's tile, with the members that for_each_eight
/// reads.
template <int COLUMNS>
struct WarpTile {
    static constexpr int FRAGMENTS_M = 1, FRAGMENTS_N = COLUMNS / 8;
    FragmentC acc[1][FRAGMENTS_N];

    DEVICE void clear() {
#pragma unroll
        for (int j = 0; j < FRAGMENTS_N; ++j) {
            acc[0][j] = {};
        }
    }

    DEVICE static int warp_row() {
        return int(threadIdx.x) / WARP * 16;
    }
    DEVICE static int warp_column() {
        return 0;
    }
    /// Row, within the warp's 16 rows, of elements 0 and 1 of a fragment (half 0) or 2 and 3 (half 1).
    DEVICE static int row_in_warp(int half) {
        return lane_index() / 4 + half * 8;
    }
    /// The same row in the block tile.
    DEVICE static int row_of(int, int half) {
        return warp_row() + row_in_warp(half);
    }
    /// Column of element 0 or 1 of fragment j.
    DEVICE static int column_of(int j, int element) {
        return j * 8 + lane_index() % 4 * 2 + element;
    }

    /// acc = A Bᵀ: A is the warp's rows of a tile, B the COLUMNS rows of another; both K-major.
    template <class T, class TileA, class TileB>
    DEVICE void multiply_transposed(unsigned char* a, unsigned char* b) {
        static_assert(TileB::ROWS == COLUMNS && int(TileA::COLUMNS) == int(TileB::COLUMNS), "shapes of a GEMM");
        // The loop is not unrolled for f32, because splitting a fragment costs a dozen instructions.
        clear();
#pragma unroll(sizeof(T) == 2 ? 4 : 1)
        for (int k = 0; k < TileA::COLUMNS; k += 16) {
            OperandA<T> x;
            load_a<TileA, true>(x, a, warp_row(), k);
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N; j += 2) {
                OperandB<T> y;
                load_b<TileB, true>(y, b, j * 8, k);
                mma_terms(acc[0][j], acc[0][j], x, y.term[0]);
                mma_terms(acc[0][j + 1], acc[0][j + 1], x, y.term[1]);
            }
        }
    }

    /// acc += A B: A is another GEMM's accumulators, B the columns of a tile from `column` on
    /// (MN-major).
    template <class T, class TileB, int DEPTH>
    DEVICE void accumulate_product(const WarpTile<DEPTH>& a, unsigned char* b, int column) {
        static_assert(TileB::ROWS == DEPTH, "shapes of a GEMM");
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            OperandA<T> x;
            operand_from(x, a.acc[0][k / 8], a.acc[0][k / 8 + 1]);
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N; j += 2) {
                OperandB<T> y;
                load_b<TileB, false>(y, b, column + j * 8, k);
                mma_terms(acc[0][j], acc[0][j], x, y.term[0]);
                mma_terms(acc[0][j + 1], acc[0][j + 1], x, y.term[1]);
            }
        }
    }

    /// Stores `rows` rows of the block's tile, scaled by `factor(half)`, to the first `columns`
    /// columns.
    template <class T, class Factor>
    DEVICE void store(T* to, long long stride, int rows, int columns, Factor factor) {
#pragma unroll
        for (int j = 0; j < FRAGMENTS_N; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                acc[0][j].value[i] *= factor(i / 2);
            }
        }
        bool vectorised = vec_aligned(to, stride);
        for_each_eight(*this, [&](int row, int column, float(&values)[8]) {
            if (row < rows) {
                store_eight(to + row * stride, column, columns, vectorised, false, values);
            }
        });
    }
};

/// Fused QKV rows of a batch: query heads, then key heads, then value heads.
template <class T>
struct FusedQkv {
    const T* qkv;
    int heads, kv_heads, head_dim;

    DEVICE long long stride() const {
        return 1LL * (heads + 2 * kv_heads) * head_dim;
    }
    /// `rows` rows of one head of the fused rows, from `row` on or gathered by `index`.
    DEVICE MatrixView<T> of_head(int head, int row, int rows, const int* index = nullptr) const {
        const T* start = qkv + row * stride() + 1LL * head * head_dim;
        return {start, index, stride(), rows, head_dim, vec_aligned(start, stride())};
    }
    DEVICE MatrixView<T> queries(int head, int row, int rows) const {
        return of_head(head, row, rows);
    }
    DEVICE MatrixView<T> keys(int kv_head, int row, int rows, const int* index = nullptr) const {
        return of_head(heads + kv_head, row, rows, index);
    }
    DEVICE MatrixView<T> values(int kv_head, int row, int rows, const int* index = nullptr) const {
        return of_head(heads + kv_heads + kv_head, row, rows, index);
    }
    DEVICE int kv_head_of(int head) const {
        return head / (heads / kv_heads);
    }
};

/// Keys that a query sees: those of its path at distances from 0 to window - 1. Without a window, `window` is
/// INT_MAX, larger than every distance.
struct Window {
    int window;

    /// Whether a query sees a key at this distance, counted from the key to the query.
    DEVICE bool sees(int distance) const {
        return uint32_t(distance) < uint32_t(window);
    }
    /// Whether a distance lies beyond the window.
    DEVICE bool passed(int distance) const {
        return distance >= window;
    }
    /// First position that a query at `position` sees.
    DEVICE int first_key(int position) const {
        return max_of(position - window + 1, 0);
    }
};

/// Attention scores without a soft cap: products times a scale.
struct PlainScores {
    static constexpr bool CAPPED = false;
    float scale;

    /// Scaled score in base 2, for fast_exp2.
    DEVICE float base2(float product) const {
        return product * (scale * LOG2_E);
    }
    DEVICE float base2(float product, float& slope) const {
        slope = 1.0f;
        return base2(product);
    }
};

/// As PlainScores, with a soft cap c, which maps a score s to c tanh(s / c). The host passes the cap in base
/// 2, log2(e) c, and its inverse: kernel parameters need no registers, unlike products of them.
template <class T>
struct CappedScores {
    static constexpr bool CAPPED = true;
    float scale, softcap, inverse;

    /// Computes tanh. For bf16 tensors, a formula of few instructions is accurate to 3e-7.
    static DEVICE float tanh(float x) {
        if constexpr (sizeof(T) == sizeof(float)) {
            return tanhf(x);
        } else {
            return 1.0f - 2.0f * fast_reciprocal(1.0f + fast_exp2(2.0f * LOG2_E * x));
        }
    }
    /// Scaled and capped score in base 2, for fast_exp2; `slope` receives the slope of the cap.
    DEVICE float base2(float product, float& slope) const {
        float t = tanh(product * (scale * LOG2_E) * inverse);
        slope = 1.0f - t * t;
        return softcap * t;
    }
    DEVICE float base2(float product) const {
        float slope;
        return base2(product, slope);
    }
};

/// Traverses the positions of a path below `length` in tiles of Layout::ROWS keys, from the tile with position
/// `first` on. Calls use(first position, keys, values) with the tiles in shared memory. `stages` holds STAGES pairs
/// of tiles, `index` the rows of two tiles. Hazard: the caller must have passed a barrier since `stages` or `index`
/// was last read. cp.async copies that the caller has issued are complete at the first call of `use`.
template <class Layout, int STAGES, int THREADS, class T, class Use>
DEVICE void for_each_key_tile(unsigned char* stages, int* index, const FusedQkv<T>& fused, int kv_head,
                              const Segments& segments, int segment, int first, int length, Use use) {
    constexpr int KEYS = Layout::ROWS;
    static_assert(KEYS <= THREADS, "one thread per key");
    int start = first / KEYS, steps = ceil_div(length, KEYS), thread = int(threadIdx.x);
    PathCursor cursor(segments, segment);
    auto find_rows = [&](int step) {
        int position = step * KEYS + thread;
        if (thread < KEYS && position < length) {
            index[step % 2 * KEYS + thread] = cursor.row_at(position);
        }
    };
    auto load = [&](int step) {
        unsigned char* stage = stages + step % STAGES * 2 * Layout::BYTES;
        const int* rows = index + step % 2 * KEYS;
        int count = length - step * KEYS;
        load_rows<Layout, THREADS>(stage, fused.keys(kv_head, 0, count, rows));
        load_rows<Layout, THREADS>(stage + Layout::BYTES, fused.values(kv_head, 0, count, rows));
        cp_async_commit();
    };
    find_rows(start);
    find_rows(start + 1);
    // Waits until the row indices of the first two tiles are written.
    sync_block();
    load(start);
#pragma unroll 1
    for (int step = start; step < steps; ++step) {
        cp_async_wait<0>();
        // Waits until all copies of this tile have arrived, the row indices of the next tile are written, and
        // no thread reads the previous tile, whose stage and row indices are overwritten next.
        sync_block();
        if (STAGES == 2 && step + 1 < steps) {
            load(step + 1);
        }
        find_rows(step + 2);
        unsigned char* stage = stages + step % STAGES * 2 * Layout::BYTES;
        use(step * KEYS, stage, stage + Layout::BYTES);
        if (STAGES == 1 && step + 1 < steps) {
            // Waits until no thread reads the single stage.
            sync_block();
            load(step + 1);
        }
    }
}
