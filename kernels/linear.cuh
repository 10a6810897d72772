// Grid-level GEMM on the block tiles of tile.cuh. Used by linear layers and by the gradients of the
// vocabulary head.
//
//   for each tile of C, in a grid-stride loop of blocks, column-major:
//     acc = A B over all of k                     tile.cuh
//     epilogue(row, column, 8 adjacent values)    e.g. C (+)= acc + bias + residual
//
// Tiles are ordered down the columns, so concurrent blocks share columns of B. Unlike tile_sm90.cuh, there is
// no split-K and no L2 band order. Cost: 2 m n k FLOPs; the rows of A and the columns of B are read once for
// each tile of C that they contribute to.
#pragma once

#include "tile.cuh"

/// Computes A B for every tile of C (m, n). Calls epilogue(row, column, values) with eight adjacent
/// elements of a row, all lanes of a warp at the same time, also for rows and columns beyond C.
/// After the elements of a tile it calls tile_done(row, column) with the origin of the warp tile.
template <class T, bool A_K_MAJOR, bool B_K_MAJOR, class FromA, class FromB, class Epilogue, class Done>
DEVICE void for_each_tile(const FromA& a, const FromB& b, int m, int n, int k, Epilogue epilogue, Done tile_done) {
    using P = BlockGemm<T, A_K_MAJOR, B_K_MAJOR>;
    DYNAMIC_SHARED_OF(shared, P::SHARED_BYTES);
    int down = ceil_div(m, P::ROWS), across = ceil_div(n, P::COLUMNS);
    for (long long tile = blockIdx.x; tile < 1LL * down * across; tile += gridDim.x) {
        int row = int(tile % down) * P::ROWS, column = int(tile / down) * P::COLUMNS;
        // Waits until no thread reads the stages of the previous tile.
        sync_block();
        P gemm;
        gemm.compute(shared, a, b, row, column, k);
        for_each_eight(gemm, [&](int r, int j, float(&values)[8]) { epilogue(row + r, column + j, values); });
        tile_done(row + P::warp_row(), column + P::warp_column());
    }
}

/// As above without tile_done.
template <class T, bool A_K_MAJOR, bool B_K_MAJOR, class FromA, class FromB, class Epilogue>
DEVICE void for_each_tile(const FromA& a, const FromB& b, int m, int n, int k, Epilogue epilogue) {
    for_each_tile<T, A_K_MAJOR, B_K_MAJOR>(a, b, m, n, k, epilogue, [](int, int) {});
}

/// C (m, n) (+)= A B (+ bias) (+ residual), rounded once; `add` selects +=.
template <class T, class Out, bool A_K_MAJOR, bool B_K_MAJOR>
DEVICE void matmul(const MatrixView<T>& a, const MatrixView<T>& b, const T* bias, const T* residual, Out* c, int m,
                   int n, int k, int add) {
    bool vectorised = vec_aligned(c, n), residual_vectorised = vec_aligned(residual, n);
    for_each_tile<T, A_K_MAJOR, B_K_MAJOR>(a, b, m, n, k, [&](int row, int column, float(&values)[8]) {
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
            load_eight(more, residual + 1LL * row * n, column, n, residual_vectorised);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] += more[i];
            }
        }
        store_eight(c + 1LL * row * n, column, n, vectorised, add != 0, values);
    });
}
