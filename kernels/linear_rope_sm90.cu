// The QKV GEMM on Hopper with RoPE in its epilogue, by wgmma and TMA (linear_sm90.cuh):
//
//   y = x weightᵀ + bias; then in the first `rotated` columns, for elements i and i + HEAD / 2 of each
//   head of HEAD, (a, b) = (a cos - b sin, b cos + a sin)
//
//   prefetch: bias to a register; for a cooperative tile, also the angles of the thread's two rows
//   epilogue: acc += bias; rotate acc; then the epilogue of a plain GEMM
//
// linear_fwd_sm90 and rope compute the same in two passes, and round y to bf16 in between.
//
// A tile holds whole heads. The angles of a ping-pong tile are loaded in the epilogue, which overlaps the
// other consumer's main loop. Before the epilogue, the accumulators leave no registers for the angles.
// Cost: 2 m n k FLOPs; for each row of a tile HEAD angles, from the L1 and L2 caches.
// Requirements as in linear_sm90.cu.
#include "linear_sm90.cuh"
#include "rope.cuh"

/// Job of a plain GEMM without its bias. The epilogue adds the bias before it rotates.
template <class H, int HEAD>
struct RopeJob : MatmulJob<H> {
    static_assert(H::COLUMNS % HEAD == 0, "whole heads");
    RopeTables tables;
    const bf16* bias;  // (n), may be null
    int rotated;       // columns, a multiple of HEAD
    /// Angles of the thread's rows: both of a cooperative tile, one row at a time of a ping-pong tile.
    RopeAngles<HEAD> early[H::PING_PONG ? 1 : 2];

    DEVICE int position(int row) const {
        return row < this->p.m ? tables.positions[row] : 0;
    }

    DEVICE void prefetch(const Ring<H>&, const Tile& tile, int group, int thread) {
        if (bias != nullptr) {
            this->load_bias(bias, tile, thread);
        }
        if constexpr (!H::PING_PONG) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                early[i].load(tables, position(tile.row + 64 * group + row_of_thread(thread) + 8 * i), thread);
            }
        }
    }

    DEVICE void epilogue(const Ring<H>& ring, float (&acc)[H::HALVES][H::ACCUMULATORS], int number, const Tile& tile,
                         int group, int thread) {
        if (bias != nullptr) {
            this->share_bias(ring, group, thread);
            const uint32_t* row = ring.row(group) + thread % 4;
#pragma unroll
            for (int j = 0; j < H::COLUMNS / 8; ++j) {
                uint32_t pair = row[4 * j];
#pragma unroll
                for (int i = 0; i < 2 * H::HALVES; ++i) {
                    acc[i / 2][4 * j + 2 * (i % 2)] += low_bf16(pair);
                    acc[i / 2][4 * j + 2 * (i % 2) + 1] += high_bf16(pair);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * H::HALVES; ++i) {
            if constexpr (H::PING_PONG) {
                early[0].load(tables, position(tile.row + 64 * (i / 2) + row_of_thread(thread) + 8 * (i % 2)), thread);
            }
            const RopeAngles<HEAD>& angles = early[H::PING_PONG ? 0 : i];
#pragma unroll
            for (int column = 0; column < H::COLUMNS; column += HEAD) {
                if (tile.column + column < rotated) {
                    angles.rotate(acc[i / 2] + column / 2, i % 2, 1.0f);
                }
            }
        }
        MatmulJob<H>::epilogue(ring, acc, number, tile, group, thread);
    }
};

/// Kernel body.
template <GemmTile TILE, int HEAD>
DEVICE void hopper_rope(const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
                        const RopeTables& tables, const bf16* bias, int m, int n, int k, int rotated) {
    using H = HopperGemm<TILE, Major::K, Major::K, bf16>;
    MatmulJob<H> plain{{m, n, k}, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, &c, nullptr, 0, 0u};
    run_job<H>(a, b, RopeJob<H, HEAD>{plain, tables, bias, rotated, {}});
}

// A: (tokens, inputs), B: (outputs, inputs), C: (tokens, outputs); m tokens, n outputs, k inputs.
template <GemmTile TILE>
KERNELS(384, linear_rope_64_sm90, FOR(TILE: 256=N256 192=N192 192_turns=N192_PING_PONG 128_turns=N128_PING_PONG),
        IF(TILE: 256; CLUSTER(2)), EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    const int* positions,  // (m)
    const float* cos,      // (positions, 32)
    const float* sin,      // (positions, 32)
    const bf16* bias,      // (n), may be null
    int m, int n, int k, int rotated) {
    hopper_rope<TILE, 64>(a, b, c, {positions, cos, sin}, bias, m, n, k, rotated);
}

// As above, with heads of 96.
template <GemmTile TILE>
KERNELS(384, linear_rope_96_sm90, FOR(TILE: 192=N192), EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    const int* positions,  // (m)
    const float* cos,      // (positions, 48)
    const float* sin,      // (positions, 48)
    const bf16* bias,      // (n), may be null
    int m, int n, int k, int rotated) {
    hopper_rope<TILE, 96>(a, b, c, {positions, cos, sin}, bias, m, n, k, rotated);
}

// As above, with heads of 128.
template <GemmTile TILE>
KERNELS(384, linear_rope_128_sm90, FOR(TILE: 256=N256 128=N128 128_turns=N128_PING_PONG), IF(TILE: 256; CLUSTER(2)),
        EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    const int* positions,  // (m)
    const float* cos,      // (positions, 64)
    const float* sin,      // (positions, 64)
    const bf16* bias,      // (n), may be null
    int m, int n, int k, int rotated) {
    hopper_rope<TILE, 128>(a, b, c, {positions, cos, sin}, bias, m, n, k, rotated);
}
