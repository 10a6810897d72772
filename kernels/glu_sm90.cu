// GEMMs fused with the gated activation (SwiGLU, arXiv 2002.05202) on Hopper, as jobs of tile_sm90.cuh. The
// epilogue computes the activation or its gradient while the other consumer runs its main loop.
//
//   forward, tile of 96 gate columns and the same 96 up columns:
//     gate, up = bf16(x weightᵀ);  [TMA store gate, up];  TMA store act = silu(gate) * up
//   backward, tile of dact:
//     prefetch: TMA load gate and up of the first two batches
//     dact = bf16(dy weight)
//     for each batch of 64 rows x 64 columns:
//       wait for gate, up; overwrite them in shared memory with dgate, dup
//       TMA store dgate, dup; TMA load gate, up of the batch after the next
//
// Departures from two separate kernels: none in the result. dact never reaches global memory, but
// it is rounded to bf16 as if it did, so results have the same bits as linear_fwd or
// linear_bwd_input followed by glu_fwd or glu_bwd.
//
// The host must ensure that rows of all operands are multiples of 16 bytes. Shared memory: Hopper::SHARED_BYTES.
#include "glu.cuh"
#include "tile_sm90.cuh"

/// gate_up = x weightᵀ, act = silu(gate) * up, computed from the rounded values. A tile holds the same
/// columns of the gate and the up projection; their rows of the weight are two shares of B, one TMA
/// box each.
template <class H>
struct GluForward : Raster<H, H::COLUMNS / 2> {
    /// (tokens, intermediate) each; gate and up are the halves of gate_up's rows.
    const TensorDescriptor *gate, *up, *act;
    /// Whether gate and up are stored.
    bool stored;
    static constexpr int WIDTH = H::COLUMNS / 2, OVERLAP = 2 * H::SUBTILE_COLUMNS - WIDTH;
    static_assert(H::SHARES == 2 && H::BATCH == 2 && OVERLAP >= 0, "a tile of gate and up");

    /// In the weight, the rows of the up projection follow the gate's. Gate columns beyond `intermediate` read
    /// rows of the up projection; they are not stored.
    DEVICE int b_row(const Tile& tile, int share) const {
        return share * this->columns + tile.column;
    }

    DEVICE void epilogue(const Ring<H>& ring, float (&acc)[H::HALVES][H::ACCUMULATORS], int, const Tile& tile,
                         int group, int thread) {
        const int tokens = this->rows, intermediate = this->columns;
#pragma unroll
        for (int half = 0; half < H::HALVES; ++half) {
            int row = tile.row + 64 * half;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                // The second subtile overlaps the first and stores the same values twice.
                const int first = i * (WIDTH - H::SUBTILE_COLUMNS), column = tile.column + first;
                bool inside = row < tokens && column < intermediate;
                if (stored) {
                    unsigned char* staging = acquire_staging(ring, group, thread);
#pragma unroll
                    for (int j = 0; j < H::SUBTILE_COLUMNS / 8; ++j) {
#pragma unroll
                        for (int k = 0; k < 2; ++k) {
                            const float* gates = acc[half] + 4 * (first / 8 + j) + 2 * k;
                            const float* ups = gates + 4 * (WIDTH / 8);
                            int line = row_of_thread(thread) + 8 * k;
                            *subtile_pair(staging, line, j, thread) = pack_bf16(gates[0], gates[1]);
                            *subtile_pair(staging + H::SUBTILE_BYTES, line, j, thread) = pack_bf16(ups[0], ups[1]);
                        }
                    }
                    publish_staging(group);
                    if (thread == 0 && inside) {
                        tma_store(*gate, column, row, staging);
                        tma_store(*up, column, row, staging + H::SUBTILE_BYTES);
                        tma_commit();
                    }
                }
            }
            unsigned char* staging = acquire_staging(ring, group, thread);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int first = i * (WIDTH - H::SUBTILE_COLUMNS);
#pragma unroll
                for (int j = 0; j < H::SUBTILE_COLUMNS / 8; ++j) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        const float* gates = acc[half] + 4 * (first / 8 + j) + 2 * k;
                        const float* ups = gates + 4 * (WIDTH / 8);
                        uint32_t g = pack_bf16(gates[0], gates[1]), u = pack_bf16(ups[0], ups[1]);
                        *subtile_pair(staging + i * H::SUBTILE_BYTES, row_of_thread(thread) + 8 * k, j, thread) =
                            pack_bf16(glu_value(low_bf16(g), low_bf16(u)), glu_value(high_bf16(g), high_bf16(u)));
                    }
                }
            }
            publish_staging(group);
            if (thread == 0) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    int column = tile.column + i * (WIDTH - H::SUBTILE_COLUMNS);
                    if (row < tokens && column < intermediate) {
                        tma_store(*act, column, row, staging + i * H::SUBTILE_BYTES);
                    }
                }
                tma_commit();
            }
        }
    }
};

/// Computes dact = dy weight, rounded, and from it the gradients of gate and up. A batch is a subtile of gate
/// and the same subtile of up, of 64 rows each, in one staging buffer each. TMA loads both, the gradients
/// overwrite them, and TMA stores them. A consumer double-buffers batches; the first two load during its main loop.
template <class H>
struct GluBackward : Raster<H> {
    /// (tokens, intermediate) each, halves of the rows of gate_up and dgate_up.
    const TensorDescriptor *gate, *up, *dgate, *dup;
    /// Phase of the consumer's two source_full barriers, starts at 0.
    int phase;
    static constexpr int BATCHES = H::HALVES * H::SUBTILES;
    /// Pairs of columns of gate, and of up, that the epilogue loads before it stores.
    static constexpr int LOADED_PAIRS = 8;
    static_assert(H::BATCH == 4 && H::COLUMNS % H::SUBTILE_COLUMNS == 0 && BATCHES % 2 == 0, "batches of a tile");

    DEVICE static int row_of(const Tile& tile, int batch) {
        return tile.row + 64 * (batch / H::SUBTILES);
    }

    DEVICE static int column_of(const Tile& tile, int batch) {
        return tile.column + batch % H::SUBTILES * H::SUBTILE_COLUMNS;
    }

    /// Issues the TMA loads of a batch. Its staging buffers must be free.
    DEVICE void load_batch(const Ring<H>& ring, const Tile& tile, int batch, int group) const {
        Mbarrier* source_full = ring.source_full + 2 * group + batch % 2;
        arrive_expect_tx(source_full, 2 * H::SUBTILE_BYTES);
        auto column = [&](int) { return column_of(tile, batch); };
        load_subtiles<H>(ring, *gate, row_of(tile, batch), batch % 2 * 2, 1, column, source_full, group);
        load_subtiles<H>(ring, *up, row_of(tile, batch), batch % 2 * 2 + 1, 1, column, source_full, group);
    }

    DEVICE void prefetch(const Ring<H>& ring, const Tile& tile, int group, int thread) const {
        if (thread == 0) {
            // Stores of the previous tile must have read the buffers before they are reloaded.
            tma_wait_read<0>();
            load_batch(ring, tile, 0, group);
            load_batch(ring, tile, 1, group);
        }
    }

    DEVICE void epilogue(const Ring<H>& ring, float (&acc)[H::HALVES][H::ACCUMULATORS], int, const Tile& tile,
                         int group, int thread) {
#pragma unroll
        for (int batch = 0; batch < BATCHES; ++batch) {
            unsigned char* staging = ring.staging + (group * H::BATCH + batch % 2 * 2) * H::SUBTILE_BYTES;
            wait_mbarrier(ring.source_full + 2 * group + batch % 2, phase);
            phase ^= batch % 2;
            const float* dact = acc[batch / H::SUBTILES] + batch % H::SUBTILES * (H::SUBTILE_COLUMNS / 2);
            auto pair = [&](int j, int side) {
                return subtile_pair(staging + side * H::SUBTILE_BYTES, row_of_thread(thread) + 8 * (j % 2), j / 2, thread);
            };
            // Loads are not moved before earlier stores, so the loads of each group of pairs come first.
#pragma unroll
            for (int begin = 0; begin < H::SUBTILE_COLUMNS / 4; begin += LOADED_PAIRS) {
                uint32_t g[LOADED_PAIRS], u[LOADED_PAIRS];
#pragma unroll
                for (int j = 0; j < LOADED_PAIRS; ++j) {
                    g[j] = *pair(begin + j, 0);
                    u[j] = *pair(begin + j, 1);
                }
#pragma unroll
                for (int j = 0; j < LOADED_PAIRS; ++j) {
                    const float* two = dact + 2 * (begin + j);
                    uint32_t d = pack_bf16(two[0], two[1]);
                    float gates[2] = {low_bf16(g[j]), high_bf16(g[j])}, ups[2] = {low_bf16(u[j]), high_bf16(u[j])};
                    glu_gradient(low_bf16(d), gates[0], ups[0]);
                    glu_gradient(high_bf16(d), gates[1], ups[1]);
                    g[j] = pack_bf16(gates[0], gates[1]);
                    u[j] = pack_bf16(ups[0], ups[1]);
                }
#pragma unroll
                for (int j = 0; j < LOADED_PAIRS; ++j) {
                    *pair(begin + j, 0) = g[j];
                    *pair(begin + j, 1) = u[j];
                }
            }
            publish_staging(group);
            if (thread == 0) {
                int row = row_of(tile, batch), column = column_of(tile, batch);
                if (row < this->rows && column < this->columns) {
                    tma_store(*dgate, column, row, staging);
                    tma_store(*dup, column, row, staging + H::SUBTILE_BYTES);
                    tma_commit();
                }
                if (batch + 2 < BATCHES) {
                    // The next load overwrites this batch's buffers, so its stores must have read
                    // them.
                    tma_wait_read<0>();
                    load_batch(ring, tile, batch + 2, group);
                }
            }
        }
    }
};

/// Columns of the gate, and of the up projection, in a tile of the forward; staged subtiles per
/// consumer of the backward.
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
