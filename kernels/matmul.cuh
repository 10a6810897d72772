// A product of whole matrices by a grid of blocks. Used by linear layers and by the gradients of the vocabulary head.
//
// A block takes tiles of the result by stride, tiles of one band of columns after another, so that the blocks at work share
// columns. Cost: 2 m n k FLOPs; operands are read once for every tile they touch.
#pragma once

#include "tile.cuh"

/// A B for every tile of the result (m, n): calls use(row, column, values) with eight neighbouring elements of a row, all
/// lanes of a warp at the same time, also for rows and columns beyond the result; and after those of a tile done(row, column),
/// where the warp's part of it begins. A and B as described in tile.cuh.
template <class T, bool A_K_MAJOR, bool B_K_MAJOR, class FromA, class FromB, class Use, class Done>
DEVICE void each_tile(const FromA& a, const FromB& b, int m, int n, int k, Use use, Done done) {
    using P = Product<T, A_K_MAJOR, B_K_MAJOR>;
    DYNAMIC_SHARED_OF(shared, P::SHARED_BYTES);
    int down = ceil_div(m, P::ROWS), across = ceil_div(n, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // The stages are free: every thread is done with the tile before.
        sync_block();
        P product;
        product.compute(shared, a, b, row, column, k);
        each_eight(product, [&](int r, int j, float(&values)[8]) { use(row + r, column + j, values); });
        done(row + P::warp_row(), column + P::warp_column());
    }
}

/// As above with nothing to do after a tile.
template <class T, bool A_K_MAJOR, bool B_K_MAJOR, class FromA, class FromB, class Use>
DEVICE void each_tile(const FromA& a, const FromB& b, int m, int n, int k, Use use) {
    each_tile<T, A_K_MAJOR, B_K_MAJOR>(a, b, m, n, k, use, [](int, int) {});
}

/// C (m, n) = or += A B (+ bias) (+ residual), rounded once.
template <class T, class Out, bool A_K_MAJOR, bool B_K_MAJOR>
DEVICE void matmul(const Source<T>& a, const Source<T>& b, const T* bias, const T* residual, Out* c, int m, int n, int k,
                   int add) {
    bool by_lane = wide(c, n), residual_by_lane = wide(residual, n);
    each_tile<T, A_K_MAJOR, B_K_MAJOR>(a, b, m, n, k, [&](int row, int column, float(&values)[8]) {
        if (row >= m) {
            return;
        }
        if (bias != nullptr) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] += column + i < n ? to_float(bias[column + i]) : 0.0f;
            }
        }
        if (residual != nullptr) {
            float more[8];
            load_eight(more, residual + 1LL * row * n, column, n, residual_by_lane);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] += more[i];
            }
        }
        store_eight(c + 1LL * row * n, column, n, by_lane, add != 0, values);
    });
}
