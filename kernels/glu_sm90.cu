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

/// dact = dy weight as it would be stored, and from it and from gate and up the gradients of both. Gate and up of 64 rows and a
/// piece's columns, a batch, come to two pieces and leave as their gradients; a consumer has room for two batches, the first two
/// of which come while it multiplies.
template <class H>
struct GluBackward : Raster<H> {
    /// (tokens, intermediate) each, halves of rows of gate_up and of dgate_up.
    const TensorDescriptor *gate, *up, *dgate, *dup;
    /// Of the consumer's two barriers: 0.
    int phase;
    static constexpr int BATCHES = H::HALVES * H::PIECES;
    static_assert(H::BATCH == 4 && H::COLUMNS % H::PIECE_COLUMNS == 0 && BATCHES % 2 == 0, "batches of a tile");

    DEVICE static int row_of(const Tile& tile, int batch) {
        return tile.row + 64 * (batch / H::PIECES);
    }

    DEVICE static int column_of(const Tile& tile, int batch) {
        return tile.column + batch % H::PIECES * H::PIECE_COLUMNS;
    }

    /// Asks for a batch whose pieces are free.
    DEVICE void request(const Ring<H>& ring, const Tile& tile, int batch, int group) const {
        Mbarrier* arrived = ring.arrived + 2 * group + batch % 2;
        arrive_expecting(arrived, 2 * H::PIECE_BYTES);
        auto column = [&](int) { return column_of(tile, batch); };
        request_pieces<H>(ring, *gate, row_of(tile, batch), batch % 2 * 2, 1, column, arrived, group);
        request_pieces<H>(ring, *up, row_of(tile, batch), batch % 2 * 2 + 1, 1, column, arrived, group);
    }

    DEVICE void begin(const Ring<H>& ring, const Tile& tile, int group, int thread) const {
        if (thread == 0) {
            wait_boxes_read<0>();
            request(ring, tile, 0, group);
            request(ring, tile, 1, group);
        }
    }

    DEVICE void take(const Ring<H>& ring, float (&sums)[H::HALVES][H::SUMS], int, const Tile& tile, int group, int thread) {
#pragma unroll
        for (int batch = 0; batch < BATCHES; ++batch) {
            unsigned char* pieces = ring.pieces + (group * H::BATCH + batch % 2 * 2) * H::PIECE_BYTES;
            wait_mbarrier(ring.arrived + 2 * group + batch % 2, phase);
            phase ^= batch % 2;
            const float* dact = sums[batch / H::PIECES] + batch % H::PIECES * (H::PIECE_COLUMNS / 2);
#pragma unroll
            for (int j = 0; j < H::PIECE_COLUMNS / 8; ++j) {
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    uint32_t* gate_pair = pair_of_piece(pieces, row_of_thread(thread) + 8 * k, j, thread);
                    uint32_t* up_pair = gate_pair + H::PIECE_BYTES / sizeof(uint32_t);
                    uint32_t g = *gate_pair, u = *up_pair, d = pack_bf16(dact[4 * j + 2 * k], dact[4 * j + 2 * k + 1]);
                    float gates[2] = {low_bf16(g), high_bf16(g)}, ups[2] = {low_bf16(u), high_bf16(u)};
                    glu_gradient(low_bf16(d), gates[0], ups[0]);
                    glu_gradient(high_bf16(d), gates[1], ups[1]);
                    *gate_pair = pack_bf16(gates[0], gates[1]);
                    *up_pair = pack_bf16(ups[0], ups[1]);
                }
            }
            end_batch(group);
            if (thread == 0) {
                int row = row_of(tile, batch), column = column_of(tile, batch);
                if (row < this->rows && column < this->columns) {
                    store_box(*dgate, column, row, pieces);
                    store_box(*dup, column, row, pieces + H::PIECE_BYTES);
                    commit_boxes();
                }
                if (batch + 2 < BATCHES) {
                    wait_boxes_read<0>();
                    request(ring, tile, batch + 2, group);
                }
            }
        }
    }
};

/// Columns of the gate, and of the up projection, of a tile of the forward; staged subtiles of a consumer of the backward.
EXPORT constexpr int GLU_FWD_COLUMNS = 96, GLU_BWD_SUBTILES = 4;
using GateUp = Hopper<2 * GLU_FWD_COLUMNS, Major::K, Major::K, bf16, 1, true, 2>;
using Down = Hopper<192, Major::K, Major::ACROSS, bf16, 1, true, 1, GLU_BWD_SUBTILES>;

// A: x (tokens, hidden), B: weight (2 intermediate, hidden), gate then up.
KERNEL(384, linear_glu_fwd_sm90, EARLY, ALONE(384))(TensorMap x, TensorMap weight,
    TensorMap gate,  // (tokens, intermediate), rows 2 intermediate apart
    TensorMap up,    // likewise
    TensorMap act,   // (tokens, intermediate)
    int tokens, int intermediate, int hidden, int stored) {
    run_job<GateUp>(x, weight, GluForward<GateUp>{{tokens, intermediate, hidden}, &gate, &up, &act, stored != 0});
}

// A: dy (tokens, hidden), B: weight (hidden, intermediate).
KERNEL(384, linear_glu_bwd_sm90, EARLY, ALONE(384))(TensorMap dy, TensorMap weight,
    TensorMap gate,   // (tokens, intermediate), rows 2 intermediate apart
    TensorMap up,     // likewise
    TensorMap dgate,  // likewise
    TensorMap dup,    // likewise
    int tokens, int intermediate, int hidden) {
    run_job<Down>(dy, weight, GluBackward<Down>{{tokens, intermediate, hidden}, &gate, &up, &dgate, &dup, 0});
}
