// The end of a sum over tokens: adds the partial sums of slices, whose number depends on the tokens alone.
//
// A block takes 32 columns by stride. Its warps each add a run of neighbouring slices in ascending order, then the runs
// are added in ascending order: one shape for a given number of slices, whatever the grid. Cost: the slices are read
// once.
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
#pragma unroll 8
            for (int slice = begin; slice < end; ++slice) {
                sum += slices[(long long)slice * width + column];
            }
        }
        runs[threadIdx.x] = sum;
        // Every run is there before the first warp adds them.
        sync_block();
        if (warp == 0 && column < width) {
            float total = add != 0 ? out[column] : 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) {
                total += runs[i * WARP + lane];
            }
            out[column] = total;
        }
        // The first warp has read the runs before those of the next columns replace them.
        sync_block();
    }
}
