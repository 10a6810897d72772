// The two products next to the gated activation (SwiGLU, arXiv 2002.05202) on Hopper, by the tile loop of tile_sm90.cuh. The
// activation, or its gradient, is done on the sums while the other consumer multiplies.
//
// The bits are those of linear_fwd or linear_bwd_input and of activation.cu one after the other. The host sees to it that rows
// of all operands are multiples of 16 bytes. shared: Hopper::SHARED_BYTES.
#include "glu.cuh"
#include "tile_sm90.cuh"

/// gate_up = x weightᵀ and act = silu(gate) up of what is stored of both. A tile has as many columns of the gate as of the up
/// projection, whose rows of the weight come in a box each.
template <class H>
struct GluForward : Raster<H, H::COLUMNS / 2> {
    /// (tokens, intermediate) each; the first two are halves of rows of gate_up.
    const TensorDescriptor *gate, *up, *act;
    /// Whether gate and up are stored.
    bool stored;
    static constexpr int WIDTH = H::COLUMNS / 2, OVERLAP = 2 * H::PIECE_COLUMNS - WIDTH;
    static_assert(H::SHARES == 2 && H::BATCH == 2 && OVERLAP >= 0, "a tile of gate and up");

    /// Behind the gate's last row come those of the up projection, which columns beyond the last may hold: they are not stored.
    DEVICE int b_row(const Tile& tile, int share) const {
        return share * this->columns + tile.column;
    }

    DEVICE void take(const Ring<H>& ring, float (&sums)[H::HALVES][H::SUMS], int, const Tile& tile, int group, int thread) {
        const int tokens = this->rows, intermediate = this->columns;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int row = tile.row + 64 * half;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                // The second piece lies over the first and stores the same values again.
                const int first = i * (WIDTH - H::PIECE_COLUMNS), column = tile.column + first;
                bool inside = row < tokens && column < intermediate;
                if (stored) {
                    unsigned char* pieces = begin_batch(ring, group, thread);
#pragma unroll
                    for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
                        for (int k = 0; k < 2; ++k) {
                            const float* gates = sums[half] + 4 * (first / 8 + j) + 2 * k;
                            const float* ups = gates + 4 * (WIDTH / 8);
                            int line = row_of_thread(thread) + 8 * k;
                            *pair_of_piece(pieces, line, j, thread) = pack_bf16(gates[0], gates[1]);
                            *pair_of_piece(pieces + H::PIECE_BYTES, line, j, thread) = pack_bf16(ups[0], ups[1]);
                        }
                    }
                    end_batch(group);
                    if (thread == 0 && inside) {
                        store_box(*gate, column, row, pieces);
                        store_box(*up, column, row, pieces + H::PIECE_BYTES);
                        commit_boxes();
                    }
                }
            }
            unsigned char* pieces = begin_batch(ring, group, thread);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int first = i * (WIDTH - H::PIECE_COLUMNS);
#pragma unroll
                for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        const float* gates = sums[half] + 4 * (first / 8 + j) + 2 * k;
                        const float* ups = gates + 4 * (WIDTH / 8);
                        uint32_t g = pack_bf16(gates[0], gates[1]), u = pack_bf16(ups[0], ups[1]);
                        *pair_of_piece(pieces + i * H::PIECE_BYTES, row_of_thread(thread) + 8 * k, j, thread) =
                            pack_bf16(glu_value(low_bf16(g), low_bf16(u)), glu_value(high_bf16(g), high_bf16(u)));
                    }
                }
            }
            end_batch(group);
            if (thread == 0) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    int column = tile.column + i * (WIDTH - H::PIECE_COLUMNS);
                    if (row < tokens && column < intermediate) {
                        store_box(*act, column, row, pieces + i * H::PIECE_BYTES);
                    }
                }
                commit_boxes();
            }
        }
    }
};

/// dact = dy weight as it would be stored, and from it and from gate and up the gradients of both.
template <class H>
struct GluBackward : Raster<H> {
    const bf16* gate_up;  // (tokens, 2 intermediate)
    /// (tokens, intermediate) each, halves of rows of dgate_up.
    const TensorDescriptor *dgate, *dup;
    static_assert(H::BATCH == 2 && H::COLUMNS % H::PIECE_COLUMNS == 0, "pieces of a tile");

    DEVICE void take(const Ring<H>& ring, float (&sums)[H::HALVES][H::SUMS], int, const Tile& tile, int group, int thread) {
        const int tokens = this->rows, intermediate = this->columns;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int row = tile.row + 64 * half;
            // Gate and up of the thread's first element, and the rows and columns there are from it on.
            const bf16* from = gate_up + 2LL * (row + row_of_thread(thread)) * intermediate + tile.column + column_of_thread(thread);
            int rows = tokens - row - row_of_thread(thread), columns = intermediate - tile.column - column_of_thread(thread);
#pragma unroll
            for (int first = 0; first < H::COLUMNS; first += H::PIECE_COLUMNS) {
                int column = tile.column + first;
                bool inside = row < tokens && column < intermediate;
                unsigned char* pieces = begin_batch(ring, group, thread);
#pragma unroll
                for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        const float* two = sums[half] + 4 * (first / 8 + j) + 2 * k;
                        uint32_t g = 0, u = 0, d = pack_bf16(two[0], two[1]);
                        // Rows are multiples of 8 elements, so a pair is inside or outside.
                        if (8 * k < rows && first + 8 * j < columns) {
                            const bf16* at = from + 16 * k * intermediate + first + 8 * j;
                            g = *reinterpret_cast<const uint32_t*>(at);
                            u = *reinterpret_cast<const uint32_t*>(at + intermediate);
                        }
                        float gates[2] = {low_bf16(g), high_bf16(g)}, ups[2] = {low_bf16(u), high_bf16(u)};
                        glu_gradient(low_bf16(d), gates[0], ups[0]);
                        glu_gradient(high_bf16(d), gates[1], ups[1]);
                        int line = row_of_thread(thread) + 8 * k;
                        *pair_of_piece(pieces, line, j, thread) = pack_bf16(gates[0], gates[1]);
                        *pair_of_piece(pieces + H::PIECE_BYTES, line, j, thread) = pack_bf16(ups[0], ups[1]);
                    }
                }
                end_batch(group);
                if (thread == 0 && inside) {
                    store_box(*dgate, column, row, pieces);
                    store_box(*dup, column, row, pieces + H::PIECE_BYTES);
                    commit_boxes();
                }
            }
        }
    }
};

using GateUp = Hopper<192, Major::K, Major::K, bf16, 1, true, 2>;
using Down = Hopper<192, Major::K, Major::ACROSS, bf16, 1, true>;

// A: x (tokens, hidden), B: weight (2 intermediate, hidden), gate then up.
KERNEL(384, linear_glu_fwd_sm90, ALONE(384))(TensorMap x, TensorMap weight,
    TensorMap gate,  // (tokens, intermediate), rows 2 intermediate apart
    TensorMap up,    // likewise
    TensorMap act,   // (tokens, intermediate)
    int tokens, int intermediate, int hidden, int stored) {
    run_job<GateUp>(x, weight, GluForward<GateUp>{{tokens, intermediate, hidden}, &gate, &up, &act, stored != 0});
}

// A: dy (tokens, hidden), B: weight (hidden, intermediate).
KERNEL(384, linear_glu_bwd_sm90, ALONE(384))(TensorMap dy, TensorMap weight,
    TensorMap dgate,      // (tokens, intermediate), rows 2 intermediate apart
    TensorMap dup,        // likewise
    const bf16* gate_up,  // (tokens, 2 intermediate)
    int tokens, int intermediate, int hidden) {
    run_job<Down>(dy, weight, GluBackward<Down>{{tokens, intermediate, hidden}, gate_up, &dgate, &dup});
}
