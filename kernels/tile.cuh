// Products of tiles on tensor cores: operands come to shared memory through a pipeline of asynchronous copies, fragments to
// registers, sums stay in f32 fragments.
//
// An operand lies in memory in one of two ways. "K-major": rows are rows of the result (m or n), columns are k. The other:
// rows are k, columns are m or n. Rows may be taken through an index. bf16 is multiplied as it is. f32 is split into three
// bf16 whose sum is exact to 24 bits: the product of the leading parts is one sum, five of the other eight products a second
// one, added at the end unless the first is infinite or NaN, so that the result is as good as f32 arithmetic.
//
// Every element is the sum over k in ascending steps of 16 whatever the tile it falls in, so results do not depend on the
// grid nor on other rows or columns.
#pragma once

#include "bf16.cuh"
#include "primitives/mma.cuh"
#include "primitives/warp.cuh"
#include "vec.cuh"

/// Rows of COLUMNS elements in shared memory. The 16-byte pieces of a row are permuted so that the same piece of eight
/// neighbouring rows lies in eight different groups of banks.
template <class T, int ROWS_, int COLUMNS_>
struct Tile {
    using Element = T;
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr int PIECE = LANE_ELEMENTS<T>;
    static constexpr int PIECES = COLUMNS / PIECE;
    static constexpr int BYTES = ROWS * COLUMNS * int(sizeof(T));
    static_assert(COLUMNS % PIECE == 0, "whole pieces of 16 bytes");

    /// Bits of the piece that the row changes: as many as rows of PIECES pieces leave equal.
    static constexpr int BITS = PIECES % 8 == 0 ? 3 : PIECES % 4 == 0 ? 2 : PIECES % 2 == 0 ? 1 : 0;

    DEVICE static int swizzled(int row, int piece) {
        return piece ^ ((row >> (3 - BITS)) & ((1 << BITS) - 1));
    }

    /// Element `column` of a row.
    DEVICE static T* at(unsigned char* tile, int row, int column) {
        int piece = swizzled(row, column / PIECE);
        return reinterpret_cast<T*>(tile) + row * COLUMNS + piece * PIECE + column % PIECE;
    }
};

/// Fragments of one operand: as many parts as its storage is split into.
template <class T>
constexpr int PARTS = 1;
template <>
constexpr int PARTS<float> = 3;

template <class T>
struct PartsA {
    FragmentA part[PARTS<T>];
};

/// Two fragments of B side by side: 16 columns.
template <class T>
struct PartsB {
    FragmentB part[2][PARTS<T>];
};

/// Splits two f32 into three pairs of bf16.
DEVICE void split_pair(float first, float second, uint32_t (&part)[3]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        part[i] = pack_bf16(first, second);
        first -= low_bf16(part[i]);
        second -= high_bf16(part[i]);
    }
}

/// The 16 x 16 fragment at (row, k) of A in a tile.
template <class Where, bool K_MAJOR>
DEVICE void load_a(PartsA<bf16>& a, unsigned char* tile, int row, int k) {
    int lane = lane_index();
    if constexpr (K_MAJOR) {
        load_matrices(a.part[0].word, Where::at(tile, row + lane % 16, k + lane / 16 * 8));
    } else {
        load_matrices_transposed(a.part[0].word, Where::at(tile, k + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
    }
}

/// The two 16 x 8 fragments at (k, column) of B in a tile.
template <class Where, bool K_MAJOR>
DEVICE void load_b(PartsB<bf16>& b, unsigned char* tile, int column, int k) {
    int lane = lane_index();
    uint32_t word[4];
    if constexpr (K_MAJOR) {
        load_matrices(word, Where::at(tile, column + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
    } else {
        load_matrices_transposed(word, Where::at(tile, k + lane % 16, column + lane / 16 * 8));
    }
    b.part[0][0] = {{word[0], word[1]}};
    b.part[1][0] = {{word[2], word[3]}};
}

template <class Where, bool K_MAJOR>
DEVICE void load_a(PartsA<float>& a, unsigned char* tile, int row, int k) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int r = row + g + i % 2 * 8, c = k + 2 * t + i / 2 * 8;
        uint32_t part[3];
        split_pair(K_MAJOR ? *Where::at(tile, r, c) : *Where::at(tile, c, r),
                   K_MAJOR ? *Where::at(tile, r, c + 1) : *Where::at(tile, c + 1, r), part);
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            a.part[p].word[i] = part[p];
        }
    }
}

template <class Where, bool K_MAJOR>
DEVICE void load_b(PartsB<float>& b, unsigned char* tile, int column, int k) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int c = column + g + i / 2 * 8, r = k + 2 * t + i % 2 * 8;
        uint32_t part[3];
        split_pair(K_MAJOR ? *Where::at(tile, c, r) : *Where::at(tile, r, c),
                   K_MAJOR ? *Where::at(tile, c, r + 1) : *Where::at(tile, r + 1, c), part);
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            b.part[i / 2][p].word[i % 2] = part[p];
        }
    }
}

/// c += a b for finite operands: all products of parts in one sum, smallest first.
DEVICE void multiply_parts(FragmentC& c, const PartsA<bf16>& a, const FragmentB (&b)[1]) {
    multiply_add(c, a.part[0], b[0]);
}

DEVICE void multiply_parts(FragmentC& c, const PartsA<float>& a, const FragmentB (&b)[3]) {
    multiply_add(c, a.part[2], b[0]);
    multiply_add(c, a.part[1], b[1]);
    multiply_add(c, a.part[0], b[2]);
    multiply_add(c, a.part[1], b[0]);
    multiply_add(c, a.part[0], b[1]);
    multiply_add(c, a.part[0], b[0]);
}

/// A fragment of the result as it is summed, for operands that may be infinite.
template <class T>
struct Sum;

template <>
struct Sum<bf16> {
    FragmentC main;

    DEVICE void add(const PartsA<bf16>& a, const FragmentB (&b)[1]) {
        multiply_add(main, a.part[0], b[0]);
    }

    DEVICE FragmentC value() const {
        return main;
    }
};

template <>
struct Sum<float> {
    FragmentC main, low;

    DEVICE void add(const PartsA<float>& a, const FragmentB (&b)[3]) {
        multiply_add(low, a.part[2], b[0]);
        multiply_add(low, a.part[1], b[1]);
        multiply_add(low, a.part[0], b[2]);
        multiply_add(low, a.part[1], b[0]);
        multiply_add(low, a.part[0], b[1]);
        multiply_add(main, a.part[0], b[0]);
    }

    /// The lower parts of an infinity are no numbers, so they count where the leading sum is finite alone.
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

/// A matrix in memory: `rows` rows of `columns` elements, `stride` apart, each row looked up in `index` where there is one.
template <class T>
struct Source {
    const T* start;
    const int* index;
    long long stride;
    int rows, columns;
    /// Rows begin at multiples of 16 bytes.
    bool by_lane;

    DEVICE static Source of(const T* start, int rows, int columns, const int* index = nullptr) {
        return {start, index, columns, rows, columns, wide(start, columns)};
    }

    DEVICE const T* row(int r) const {
        return start + (index == nullptr ? r : index[r]) * stride;
    }
};

/// The weight (2 intermediate, inputs) of a gated layer with its rows taken by eights in turn: eight of the gate, the eight
/// of the up projection that belong to them, the next eight of the gate. Lanes of a warp that hold neighbouring eights of
/// the result so hold a gate and its up. Rows that fill the last eight repeat the last row.
template <class T>
struct GateUpRows {
    const T* start;
    long long stride;
    int rows, columns, intermediate;
    bool by_lane;

    DEVICE static GateUpRows of(const T* start, int intermediate, int columns) {
        return {start, columns, 2 * (ceil_div(intermediate, 8) * 8), columns, intermediate, wide(start, columns)};
    }

    DEVICE const T* row(int r) const {
        int i = min_of(r / 16 * 8 + r % 8, intermediate - 1);
        return start + ((r / 8 % 2 == 0 ? 0LL : intermediate) + i) * stride;
    }
};

/// Brings the tile at (row, column) of a matrix to shared memory; what lies outside the matrix becomes 0. The copies belong
/// to the thread's open group.
template <class Where, int THREADS, class From>
DEVICE void load_tile(unsigned char* tile, const From& from, int row, int column) {
    using T = typename Where::Element;
    constexpr int PIECE = Where::PIECE, PIECES = Where::PIECES;
#pragma unroll
    for (int i = int(threadIdx.x); i < Where::ROWS * PIECES; i += THREADS) {
        int r = i / PIECES, c = column + i % PIECES * PIECE;
        T* to = Where::at(tile, r, i % PIECES * PIECE);
        bool inside = row + r < from.rows && c < from.columns;
        if (from.by_lane) {
            const T* source = inside ? from.row(row + r) + c : from.start;
            copy_async_16(to, source, inside ? min_of(PIECE, from.columns - c) * int(sizeof(T)) : 0);
        } else {
            for (int e = 0; e < PIECE; ++e) {
                to[e] = inside && c + e < from.columns ? from.row(row + r)[c + e] : from_float<T>(0.0f);
            }
        }
    }
}

/// Rows and columns of a block's tile by storage, values of k of a stage, and stages.
EXPORT constexpr int TILE_BF16 = 128, TILE_F32 = 64, TILE_DEPTH = 32, TILE_STAGES = 3;

/// Shapes of a block's tile by storage: fewer rows for f32, whose fragments take three times the registers.
template <class T>
struct Shape {
    static constexpr int ROWS = TILE_BF16, COLUMNS = TILE_BF16, DEPTH = TILE_DEPTH;
    static constexpr int WARPS_DOWN = 2, WARPS_ACROSS = 4;
};
template <>
struct Shape<float> {
    static constexpr int ROWS = TILE_F32, COLUMNS = TILE_F32, DEPTH = TILE_DEPTH;
    static constexpr int WARPS_DOWN = 4, WARPS_ACROSS = 2;
};

/// A block's product of a tile: C (ROWS x COLUMNS) = A B over all of k.
template <class T, bool A_K_MAJOR, bool B_K_MAJOR>
struct Product {
    using S = Shape<T>;
    static constexpr int ROWS = S::ROWS, COLUMNS = S::COLUMNS, DEPTH = S::DEPTH;
    static constexpr int THREADS = S::WARPS_DOWN * S::WARPS_ACROSS * WARP;
    /// Rows and columns of a warp, and its fragments.
    static constexpr int WARP_ROWS = ROWS / S::WARPS_DOWN, WARP_COLUMNS = COLUMNS / S::WARPS_ACROSS;
    static constexpr int DOWN = WARP_ROWS / 16, ACROSS = WARP_COLUMNS / 8;
    using TileA = Tile<T, A_K_MAJOR ? ROWS : DEPTH, A_K_MAJOR ? DEPTH : ROWS>;
    using TileB = Tile<T, B_K_MAJOR ? COLUMNS : DEPTH, B_K_MAJOR ? DEPTH : COLUMNS>;
    static constexpr int STAGES = TILE_STAGES;
    static constexpr int STAGE_BYTES = TileA::BYTES + TileB::BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;

    FragmentC sum[DOWN][ACROSS];

    DEVICE static int warp_row() {
        return int(threadIdx.x) / WARP / S::WARPS_ACROSS * WARP_ROWS;
    }

    DEVICE static int warp_column() {
        return int(threadIdx.x) / WARP % S::WARPS_ACROSS * WARP_COLUMNS;
    }

    /// Row of element 0 and 1 (half 0) or 2 and 3 (half 1) of a fragment, within the block's tile.
    DEVICE static int row_of(int down, int half) {
        return warp_row() + down * 16 + lane_index() / 4 + half * 8;
    }

    /// Column of the first element of a fragment, within the block's tile.
    DEVICE static int column_of(int across) {
        return warp_column() + across * 8 + lane_index() % 4 * 2;
    }

    /// Computes the tile at (row, column). `shared` holds SHARED_BYTES; the block must not use it for anything else until all
    /// threads have returned and met at a barrier.
    template <class FromA, class FromB>
    DEVICE void compute(unsigned char* shared, const FromA& a, const FromB& b, int row, int column, int depth) {
        Sum<T> sums[DOWN][ACROSS] = {};
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
            commit_copies();
        }
        for (int step = 0; step < steps; ++step) {
            wait_copies<STAGES - 2>();
            // Every thread's copies of this step are there, and every thread is done with the stage that is filled next.
            sync_block();
            if (step + STAGES - 1 < steps) {
                load(step + STAGES - 1);
            }
            commit_copies();
            multiply(sums, shared + step % STAGES * STAGE_BYTES);
        }
        wait_copies<0>();
#pragma unroll
        for (int i = 0; i < DOWN; ++i) {
#pragma unroll
            for (int j = 0; j < ACROSS; ++j) {
                sum[i][j] = sums[i][j].value();
            }
        }
    }

  private:
    DEVICE static void multiply(Sum<T> (&sums)[DOWN][ACROSS], unsigned char* stage) {
// One step at a time for f32, whose parts take three times the registers.
#pragma unroll(PARTS<T> == 1 ? 2 : 1)
        for (int k = 0; k < DEPTH; k += 16) {
            PartsA<T> a[DOWN];
#pragma unroll
            for (int i = 0; i < DOWN; ++i) {
                load_a<TileA, A_K_MAJOR>(a[i], stage, warp_row() + i * 16, k);
            }
#pragma unroll
            for (int j = 0; j < ACROSS; j += 2) {
                PartsB<T> b;
                load_b<TileB, B_K_MAJOR>(b, stage + TileA::BYTES, warp_column() + j * 8, k);
#pragma unroll
                for (int i = 0; i < DOWN; ++i) {
                    sums[i][j].add(a[i], b.part[0]);
                    sums[i][j + 1].add(a[i], b.part[1]);
                }
            }
        }
    }
};

/// Transposes a 4 x 4 matrix held by four neighbouring lanes, a row each.
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

/// Hands every lane eight neighbouring elements of a row at a time: calls use(row, column, values) for its part of the
/// block's tile, row and column within the tile. All lanes of a warp call at the same time.
template <class P, class Use>
DEVICE void each_eight(const P& product, Use use) {
    static_assert(P::ACROSS % 4 == 0, "four fragments make a row of lanes");
#pragma unroll
    for (int i = 0; i < P::DOWN; ++i) {
#pragma unroll
        for (int j = 0; j < P::ACROSS; j += 4) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float even[4], odd[4];
#pragma unroll
                for (int f = 0; f < 4; ++f) {
                    even[f] = product.sum[i][j + f].value[2 * half];
                    odd[f] = product.sum[i][j + f].value[2 * half + 1];
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

/// Reads eight neighbouring elements of a row; those from `columns` on become 0.
template <class T>
DEVICE void load_eight(float (&values)[8], const T* row, int column, int columns, bool by_lane) {
    constexpr int N = LANE_ELEMENTS<T>;
    if (by_lane && column + 8 <= columns) {
#pragma unroll
        for (int part = 0; part < 8; part += N) {
            Numbers<T> n = load_numbers(row + column + part);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                values[part + i] = n.x[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            values[i] = column + i < columns ? to_float(row[column + i]) : 0.0f;
        }
    }
}

/// Writes, or adds, eight neighbouring elements of a row of C; those from `columns` on are left out.
template <class Out>
DEVICE void store_eight(Out* row, int column, int columns, bool by_lane, bool add, const float (&values)[8]) {
    constexpr int N = LANE_ELEMENTS<Out>;
    if (by_lane && column + 8 <= columns) {
#pragma unroll
        for (int part = 0; part < 8; part += N) {
            Numbers<Out> n{};
            if (add) {
                n = load_numbers(row + column + part);
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                n.x[i] += values[part + i];
            }
            store_numbers(row + column + part, n);
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
