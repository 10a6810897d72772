// Patch norms of a weight gradient. A patch is 16 rows by 32 columns (src/backend/contract/nn.rs). The kernel
// that writes the gradient stores the norms, so that the global norm need not read the gradient again. Used
// by linear.cu and linear_sm90.cuh.
#pragma once

#include "common.cuh"
#include "primitives/warp.cuh"

EXPORT constexpr int PATCH_ROWS = 16, PATCH_COLUMNS = 32;

/// Stores the norm of a warp tile to the entry of its first patch, and 0 to the entries of its other patches.
/// The tile must start at a patch boundary; patches beyond the matrix are skipped. `squares` is the lane's
/// sum of squares, in f64, so that the square of an f32 cannot overflow. All lanes call it.
template <int HEIGHT, int WIDTH>
DEVICE void store_norm(float* norms,  // (ceil(rows / 16), ceil(columns / 32))
                       int rows, int columns, int row, int column, double squares) {
    constexpr int DOWN = HEIGHT / PATCH_ROWS, ACROSS = WIDTH / PATCH_COLUMNS;
    static_assert(HEIGHT % PATCH_ROWS == 0 && WIDTH % PATCH_COLUMNS == 0 && DOWN * ACROSS <= WARP,
                  "whole patches, one lane per patch");
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        squares += shuffle_xor(squares, mask);
    }
    int lane = lane_index(), all_across = ceil_div(columns, PATCH_COLUMNS);
    int down = row / PATCH_ROWS + lane / ACROSS, across = column / PATCH_COLUMNS + lane % ACROSS;
    if (lane < DOWN * ACROSS && down < ceil_div(rows, PATCH_ROWS) && across < all_across) {
        norms[1LL * down * all_across + across] = lane == 0 ? float(sqrt(squares)) : 0.0f;
    }
}
