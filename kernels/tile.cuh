// Block-level GEMM tile on tensor cores (mma.sync), for any GPU from sm_80 on.
//
//   prologue: cp.async the first STAGES - 1 k steps of A and B to shared memory
//   for each k step of 32:
//     wait for its copies; block barrier
//     start the copies of step + STAGES - 1
//     for each 16 of k: ldmatrix fragments of A and B; acc += A B by mma.sync m16n8k16
//   epilogue: for_each_eight hands every lane eight adjacent elements of a row
//
// Operands. K-major: rows are rows or columns of C (m or n), columns are k. MN-major: rows are k.
// Rows may be gathered through an index.
//
// Departures from the textbook form (CUTLASS's multistage sm_80 main loop):
//   - f32 operands also run on the bf16 tensor cores. Each is split into three bf16 terms with a sum
//     exact to 24 bits. The product of the leading terms is one accumulator; five of the other eight
//     products form a second one, added at the end unless the first is infinite or NaN. The result is
//     as accurate as f32 arithmetic.
//   - Operands with rows that are not multiples of 16 bytes are copied element by element. The result
//     has the same bits.
//   - No split-K: an element is summed over k in ascending steps of 16 whatever tile it falls in, so
//     results do not depend on the grid, other rows or other columns.
#pragma once

#include "bf16.cuh"
#include "primitives/mma.cuh"
#include "primitives/warp.cuh"
#include "vec.cuh"

/// A swizzled tile in shared memory: ROWS rows of COLUMNS elements. The 16-byte chunks of a row are
/// permuted so that a chunk column of eight adjacent rows falls into eight different bank groups.
template <class T, int ROWS_, int COLUMNS_>
struct SharedTile {
    using Element = T;
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr int CHUNK = VEC_ELEMENTS<T>;
    static constexpr int CHUNKS = COLUMNS / CHUNK;
    static constexpr int BYTES = ROWS * COLUMNS * int(sizeof(T));
    static_assert(COLUMNS % CHUNK == 0, "rows of whole 16-byte chunks");

    /// Bits of the chunk index that are xor-ed with the row, at most log2(CHUNKS).
    static constexpr int BITS = CHUNKS % 8 == 0 ? 3 : CHUNKS % 4 == 0 ? 2 : CHUNKS % 2 == 0 ? 1 : 0;

    DEVICE static int swizzled(int row, int chunk) {
        return chunk ^ ((row >> (3 - BITS)) & ((1 << BITS) - 1));
    }

    /// Element `column` of a row.
    DEVICE static T* at(unsigned char* tile, int row, int column) {
        int chunk = swizzled(row, column / CHUNK);
        return reinterpret_cast<T*>(tile) + row * COLUMNS + chunk * CHUNK + column % CHUNK;
    }
};

/// bf16 terms of an operand element: 1 for bf16, 3 for f32.
template <class T>
constexpr int TERMS = 1;
template <>
constexpr int TERMS<float> = 3;

template <class T>
struct OperandA {
    FragmentA term[TERMS<T>];
};

/// Two adjacent fragments of B: 16 columns.
template <class T>
struct OperandB {
    FragmentB term[2][TERMS<T>];
};

/// Splits two f32 into three packed pairs of bf16, leading term first.
DEVICE void split_pair(float first, float second, uint32_t (&term)[3]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        term[i] = pack_bf16(first, second);
        first -= low_bf16(term[i]);
        second -= high_bf16(term[i]);
    }
}

/// Loads the 16 x 16 fragment of A at (row, k) of a tile.
template <class Layout, bool K_MAJOR>
DEVICE void load_a(OperandA<bf16>& a, unsigned char* tile, int row, int k) {
    int lane = lane_index();
    if constexpr (K_MAJOR) {
        ldmatrix_x4(a.term[0].word, Layout::at(tile, row + lane % 16, k + lane / 16 * 8));
    } else {
        ldmatrix_x4_trans(a.term[0].word, Layout::at(tile, k + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
    }
}

/// Loads the two 16 x 8 fragments of B at (k, column) of a tile.
template <class Layout, bool K_MAJOR>
DEVICE void load_b(OperandB<bf16>& b, unsigned char* tile, int column, int k) {
    int lane = lane_index();
    uint32_t word[4];
    if constexpr (K_MAJOR) {
        ldmatrix_x4(word, Layout::at(tile, column + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
    } else {
        ldmatrix_x4_trans(word, Layout::at(tile, k + lane % 16, column + lane / 16 * 8));
    }
    b.term[0][0] = {{word[0], word[1]}};
    b.term[1][0] = {{word[2], word[3]}};
}

template <class Layout, bool K_MAJOR>
DEVICE void load_a(OperandA<float>& a, unsigned char* tile, int row, int k) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int r = row + g + i % 2 * 8, c = k + 2 * t + i / 2 * 8;
        uint32_t term[3];
        split_pair(K_MAJOR ? *Layout::at(tile, r, c) : *Layout::at(tile, c, r),
                   K_MAJOR ? *Layout::at(tile, r, c + 1) : *Layout::at(tile, c + 1, r), term);
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            a.term[p].word[i] = term[p];
        }
    }
}

template <class Layout, bool K_MAJOR>
DEVICE void load_b(OperandB<float>& b, unsigned char* tile, int column, int k) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int c = column + g + i / 2 * 8, r = k + 2 * t + i % 2 * 8;
        uint32_t term[3];
        split_pair(K_MAJOR ? *Layout::at(tile, c, r) : *Layout::at(tile, r, c),
                   K_MAJOR ? *Layout::at(tile, c, r + 1) : *Layout::at(tile, r + 1, c), term);
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            b.term[i / 2][p].word[i % 2] = term[p];
        }
    }
}

/// main += the product of the leading terms; low += the other products, smallest first. For finite
/// operands both may be one accumulator.
DEVICE void mma_terms(FragmentC&, FragmentC& main, const OperandA<bf16>& a, const FragmentB (&b)[1]) {
    mma(main, a.term[0], b[0]);
}

DEVICE void mma_terms(FragmentC& low, FragmentC& main, const OperandA<float>& a, const FragmentB (&b)[3]) {
    mma(low, a.term[2], b[0]);
    mma(low, a.term[1], b[1]);
    mma(low, a.term[0], b[2]);
    mma(low, a.term[1], b[0]);
    mma(low, a.term[0], b[1]);
    mma(main, a.term[0], b[0]);
}

/// Accumulator of one fragment of C, for operands that may be infinite.
template <class T>
struct Accumulator;

template <>
struct Accumulator<bf16> {
    FragmentC main;

    DEVICE void add(const OperandA<bf16>& a, const FragmentB (&b)[1]) {
        mma(main, a.term[0], b[0]);
    }

    DEVICE FragmentC value() const {
        return main;
    }
};

template <>
struct Accumulator<float> {
    FragmentC main, low;

    DEVICE void add(const OperandA<float>& a, const FragmentB (&b)[3]) {
        mma_terms(low, main, a, b);
    }

    /// The lower terms of an infinity are NaN, so the low accumulator is added only to finite
    /// values.
    DEVICE FragmentC value() const {
        FragmentC c;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = main.value[i];
            c.value[i] = fabsf(x) < INFINITY ? x + low.value[i] : x;
        }
        return c;
    }
};

/// A matrix in global memory: `rows` rows of `columns` elements, `stride` apart. Row r is row
/// `index[r]` if `index` is not null.
template <class T>
struct MatrixView {
    const T* start;
    const int* index;
    long long stride;
    int rows, columns;
    /// Whether all rows start at multiples of 16 bytes.
    bool vectorised;

    DEVICE static MatrixView of(const T* start, int rows, int columns, const int* index = nullptr) {
        return {start, index, columns, rows, columns, vec_aligned(start, columns)};
    }

    DEVICE const T* row(int r) const {
        return start + (index == nullptr ? r : index[r]) * stride;
    }
};

/// The weight (2 intermediate, inputs) of a gated layer with gate and up rows interleaved by eight: eight rows of
/// the gate, the eight matching rows of the up projection, the next eight of the gate. Adjacent lanes therefore
/// hold the gate and the up projection of the same columns. Padding rows of the last eight repeat the last row.
template <class T>
struct GateUpView {
    const T* start;
    long long stride;
    int rows, columns, intermediate;
    bool vectorised;

    DEVICE static GateUpView of(const T* start, int intermediate, int columns) {
        return {start, columns, 2 * (ceil_div(intermediate, 8) * 8), columns, intermediate,
                vec_aligned(start, columns)};
    }

    DEVICE const T* row(int r) const {
        int i = min_of(r / 16 * 8 + r % 8, intermediate - 1);
        return start + ((r / 8 % 2 == 0 ? 0LL : intermediate) + i) * stride;
    }
};

/// Copies the tile at (row, column) of a matrix to shared memory, zeros outside the matrix. The
/// cp.async copies join the thread's open group.
template <class Layout, int THREADS, class From>
DEVICE void load_tile(unsigned char* tile, const From& from, int row, int column) {
    using T = typename Layout::Element;
    constexpr int CHUNK = Layout::CHUNK, CHUNKS = Layout::CHUNKS;
#pragma unroll
    for (int i = int(threadIdx.x); i < Layout::ROWS * CHUNKS; i += THREADS) {
        int r = i / CHUNKS, c = column + i % CHUNKS * CHUNK;
        T* to = Layout::at(tile, r, i % CHUNKS * CHUNK);
        bool inside = row + r < from.rows && c < from.columns;
        if (from.vectorised) {
            const T* source = inside ? from.row(row + r) + c : from.start;
            cp_async_16(to, source, inside ? min_of(CHUNK, from.columns - c) * int(sizeof(T)) : 0);
        } else {
            for (int e = 0; e < CHUNK; ++e) {
                to[e] = inside && c + e < from.columns ? from.row(row + r)[c + e] : from_float<T>(0.0f);
            }
        }
    }
}

/// Rows and columns of a block tile by storage, values of k per stage, and stages.
EXPORT constexpr int TILE_BF16 = 128, TILE_F32 = 64, TILE_DEPTH = 32, TILE_STAGES = 3;

/// Tile shape of a block by storage: smaller for f32, whose fragments need three times the registers.
template <class T>
struct Shape {
    static constexpr int ROWS = TILE_BF16, COLUMNS = TILE_BF16, DEPTH = TILE_DEPTH;
    static constexpr int WARPS_M = 2, WARPS_N = 4;
};
template <>
struct Shape<float> {
    static constexpr int ROWS = TILE_F32, COLUMNS = TILE_F32, DEPTH = TILE_DEPTH;
    static constexpr int WARPS_M = 4, WARPS_N = 2;
};

/// GEMM of one block tile: C (ROWS x COLUMNS) = A B over all of k.
template <class T, bool A_K_MAJOR, bool B_K_MAJOR>
struct BlockGemm {
    using S = Shape<T>;
    static constexpr int ROWS = S::ROWS, COLUMNS = S::COLUMNS, DEPTH = S::DEPTH;
    static constexpr int THREADS = S::WARPS_M * S::WARPS_N * WARP;
    /// Warp tile, and its mma fragments along m and n.
    static constexpr int WARP_ROWS = ROWS / S::WARPS_M, WARP_COLUMNS = COLUMNS / S::WARPS_N;
    static constexpr int FRAGMENTS_M = WARP_ROWS / 16, FRAGMENTS_N = WARP_COLUMNS / 8;
    using TileA = SharedTile<T, A_K_MAJOR ? ROWS : DEPTH, A_K_MAJOR ? DEPTH : ROWS>;
    using TileB = SharedTile<T, B_K_MAJOR ? COLUMNS : DEPTH, B_K_MAJOR ? DEPTH : COLUMNS>;
    static constexpr int STAGES = TILE_STAGES;
    static constexpr int STAGE_BYTES = TileA::BYTES + TileB::BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;

    FragmentC acc[FRAGMENTS_M][FRAGMENTS_N];

    DEVICE static int warp_row() {
        return int(threadIdx.x) / WARP / S::WARPS_N * WARP_ROWS;
    }

    DEVICE static int warp_column() {
        return int(threadIdx.x) / WARP % S::WARPS_N * WARP_COLUMNS;
    }

    /// Row in the block tile of elements 0 and 1 (half 0) or 2 and 3 (half 1) of fragment row i.
    DEVICE static int row_of(int i, int half) {
        return warp_row() + i * 16 + lane_index() / 4 + half * 8;
    }

    /// Column in the block tile of the first element of fragment column j.
    DEVICE static int column_of(int j) {
        return warp_column() + j * 8 + lane_index() % 4 * 2;
    }

    /// Computes the tile at (row, column). `shared` has SHARED_BYTES. Hazard: slow warps may still
    /// read the stages after this returns, so the block must pass a barrier before it reuses
    /// `shared`.
    template <class FromA, class FromB>
    DEVICE void compute(unsigned char* shared, const FromA& a, const FromB& b, int row, int column, int depth) {
        Accumulator<T> sums[FRAGMENTS_M][FRAGMENTS_N] = {};
        int steps = ceil_div(depth, DEPTH);
        auto load = [&](int step) {
            unsigned char* stage = shared + step % STAGES * STAGE_BYTES;
            int k = step * DEPTH;
            load_tile<TileA, THREADS>(stage, a, A_K_MAJOR ? row : k, A_K_MAJOR ? k : row);
            load_tile<TileB, THREADS>(stage + TileA::BYTES, b, B_K_MAJOR ? column : k, B_K_MAJOR ? k : column);
        };
#pragma unroll
        for (int step = 0; step < STAGES - 1; ++step) {
            if (step < steps) {
                load(step);
            }
            cp_async_commit();
        }
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<STAGES - 2>();
            // Waits until every thread's copies of this step have arrived and no warp still reads the stage
            // that is refilled next.
            sync_block();
            if (step + STAGES - 1 < steps) {
                load(step + STAGES - 1);
            }
            cp_async_commit();
            multiply(sums, shared + step % STAGES * STAGE_BYTES);
        }
        cp_async_wait<0>();
#pragma unroll
        for (int i = 0; i < FRAGMENTS_M; ++i) {
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N; ++j) {
                acc[i][j] = sums[i][j].value();
            }
        }
    }

  private:
    DEVICE static void multiply(Accumulator<T> (&sums)[FRAGMENTS_M][FRAGMENTS_N], unsigned char* stage) {
// The loop is not unrolled for f32, whose terms need three times the registers.
#pragma unroll(TERMS<T> == 1 ? 2 : 1)
        for (int k = 0; k < DEPTH; k += 16) {
            OperandA<T> a[FRAGMENTS_M];
#pragma unroll
            for (int i = 0; i < FRAGMENTS_M; ++i) {
                load_a<TileA, A_K_MAJOR>(a[i], stage, warp_row() + i * 16, k);
            }
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N; j += 2) {
                OperandB<T> b;
                load_b<TileB, B_K_MAJOR>(b, stage + TileA::BYTES, warp_column() + j * 8, k);
#pragma unroll
                for (int i = 0; i < FRAGMENTS_M; ++i) {
                    sums[i][j].add(a[i], b.term[0]);
                    sums[i][j + 1].add(a[i], b.term[1]);
                }
            }
        }
    }
};

/// Transposes a 4 x 4 matrix held by four adjacent lanes, one row per lane.
DEVICE void transpose_quad(float (&x)[4]) {
    int t = lane_index() % 4;
    bool odd = t & 1, upper = t & 2;
    float a = shuffle_xor(odd ? x[0] : x[1], 1);
    float b = shuffle_xor(odd ? x[2] : x[3], 1);
    (odd ? x[0] : x[1]) = a;
    (odd ? x[2] : x[3]) = b;
    float c = shuffle_xor(upper ? x[0] : x[2], 2);
    float d = shuffle_xor(upper ? x[1] : x[3], 2);
    (upper ? x[0] : x[2]) = c;
    (upper ? x[1] : x[3]) = d;
}

/// Epilogue traversal: calls use(row, column, values) with eight adjacent elements of a row per
/// lane, until the warp tile is covered. Row and column are relative to the block tile. All lanes
/// of a warp call `use` at the same time.
template <class P, class Use>
DEVICE void for_each_eight(const P& product, Use use) {
    static_assert(P::FRAGMENTS_N % 4 == 0, "groups of four fragments");
#pragma unroll
    for (int i = 0; i < P::FRAGMENTS_M; ++i) {
#pragma unroll
        for (int j = 0; j < P::FRAGMENTS_N; j += 4) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float even[4], odd[4];
#pragma unroll
                for (int f = 0; f < 4; ++f) {
                    even[f] = product.acc[i][j + f].value[2 * half];
                    odd[f] = product.acc[i][j + f].value[2 * half + 1];
                }
                transpose_quad(even);
                transpose_quad(odd);
                float values[8];
#pragma unroll
                for (int f = 0; f < 4; ++f) {
                    values[2 * f] = even[f];
                    values[2 * f + 1] = odd[f];
                }
                use(P::row_of(i, half), P::warp_column() + (j + lane_index() % 4) * 8, values);
            }
        }
    }
}

/// Loads eight adjacent elements of a row, zeros from `columns` on.
template <class T>
DEVICE void load_eight(float (&values)[8], const T* row, int column, int columns, bool vectorised) {
    constexpr int N = VEC_ELEMENTS<T>;
    if (vectorised && column + 8 <= columns) {
#pragma unroll
        for (int first = 0; first < 8; first += N) {
            Floats<T> n = load_floats(row + column + first);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                values[first + i] = n.x[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            values[i] = column + i < columns ? to_float(row[column + i]) : 0.0f;
        }
    }
}

/// Stores or accumulates eight adjacent elements of a row of C, except those from `columns` on.
template <class Out>
DEVICE void store_eight(Out* row, int column, int columns, bool vectorised, bool add, const float (&values)[8]) {
    constexpr int N = VEC_ELEMENTS<Out>;
    if (vectorised && column + 8 <= columns) {
#pragma unroll
        for (int first = 0; first < 8; first += N) {
            Floats<Out> n{};
            if (add) {
                n = load_floats(row + column + first);
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                n.x[i] += values[first + i];
            }
            store_floats(row + column + first, n);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (column + i < columns) {
                float old = add ? to_float(row[column + i]) : 0.0f;
                row[column + i] = from_float<Out>(old + values[i]);
            }
        }
    }
}
