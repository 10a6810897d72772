// Second pass of sums over tokens: adds the partial sums of slices. The number of slices depends
// only on the number of tokens.
//
//   for each 32 columns, one block, grid-stride loop:
//     warp w: runs[w] = sum of its contiguous run of slices, ascending
//     block barrier; warp 0: out (+)= sum of runs, ascending
//
// The shape of the sum depends only on the number of slices, not on the grid. Cost: the slices are
// read once.
#include "common.cuh"
#include "primitives/warp.cuh"

constexpr int SLICES_THREADS = 256;

KERNEL(256, sum_slices)(const float* slices,  // (count, width)
                        float* out,           // (width), overwritten or added to
                        int count, int width, int add) {
    constexpr int WARPS = SLICES_THREADS / WARP;
    SHARED(float, runs, SLICES_THREADS);
    int warp = int(threadIdx.x) / WARP, lane = lane_index();
    int run = ceil_div(count, WARPS);
    int begin = min_of(warp * run, count), end = min_of(begin + run, count);
    for (int first = int(blockIdx.x) * WARP; first < width; first += int(gridDim.x) * WARP) {
        int column = first + lane;
        float sum = 0.0f;
        if (column < width) {
#pragma unroll 16
            for (int slice = begin; slice < end; ++slice) {
                sum += slices[(long long)slice * width + column];
            }
        }
        runs[threadIdx.x] = sum;
        // Waits until all runs are written.
        sync_block();
        if (warp == 0 && column < width) {
            float total = add != 0 ? out[column] : 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) {
                total += runs[i * WARP + lane];
            }
            out[column] = total;
        }
        // Waits until warp 0 has read the runs, which those of the next columns overwrite.
        sync_block();
    }
}
