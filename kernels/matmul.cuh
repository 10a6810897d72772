// A product of whole matrices by a grid of blocks. Used by linear layers and by the gradients of the vocabulary head.
//
// A block takes tiles of the result by stride, tiles of one band of columns after another, so that the blocks at work share
// columns. Cost: 2 m n k FLOPs; operands are read once for every tile they touch.
#pragma once

#include "tile.cuh"

/// C (m, n) = or += A B (+ bias). A and B as described in tile.cuh.
template <class T, class Out, bool A_K_MAJOR, bool B_K_MAJOR>
DEVICE void matmul(const Source<T>& a, const Source<T>& b, const T* bias, Out* c, int m, int n, int k, int add) {
    using P = Product<T, A_K_MAJOR, B_K_MAJOR>;
    DYNAMIC_SHARED(shared);
    bool by_lane = wide(c, n);
    int down = ceil_div(m, P::ROWS), across = ceil_div(n, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // The stages are free: every thread is done with the tile before.
        sync_block();
        P product;
        product.compute(shared, a, b, row, column, k);
        each_eight(product, [&](int r, int j, float(&values)[8]) {
            if (row + r >= m) {
                return;
            }
            if (bias != nullptr) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    values[i] += column + j + i < n ? to_float(bias[column + j + i]) : 0.0f;
                }
            }
            store_eight(c + 1LL * (row + r) * n, column + j, n, by_lane, add != 0, values);
        });
    }
}
