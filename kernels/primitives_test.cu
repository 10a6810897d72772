// Kernels that only tests/ops/primitives.rs launches. Each runs one primitive and stores the values that the
// threads hold. The test states the expected values, from the PTX ISA.
#include "common.cuh"
#include "primitives/barrier.cuh"
#include "primitives/cluster.cuh"
#include "primitives/mma.cuh"
#include "primitives/tma.cuh"
#include "primitives/warp.cuh"
#include "primitives/wgmma.cuh"

KERNEL(32, test_rounding)(const float* x,  // (pairs, 2)
                          int* rounded,    // (pairs)
                          int pairs) {
    for (int i = int(threadIdx.x); i < pairs; i += WARP) {
        rounded[i] = int(round_to_bf16_pair(x[2 * i], x[2 * i + 1]));
    }
}

KERNEL(32, test_warp)(const int* x,  // (32)
                      int* out) {    // (32, 8)
    int lane = lane_index(), value = x[lane];
    int* mine = out + 8 * lane;
    mine[0] = shuffle(value, (7 * lane + 3) % WARP);
    mine[1] = shuffle_xor(value, 5);
    mine[2] = shuffle_up(value, 3);
    mine[3] = shuffle_down(value, 4);
    mine[4] = int(lane_ballot(value % 3 == 0));
    mine[5] = any_lane(value == 1007) + 2 * any_lane(value == -1);
    mine[6] = all_lanes(value >= 1000) + 2 * all_lanes(value > 1000);
    sync_warp();
    mine[7] = lane;
}

KERNEL(32, test_copies)(const float* x,   // (3, 128)
                        float* out,       // (3, 128), then (32)
                        int committed) {  // groups that are closed, of 3
    SHARED(float, stage, 3 * 128);
    SHARED(float, narrow, 32);
    int lane = lane_index();
    for (int group = 0; group < 3; ++group) {
        // The second group copies only the first two numbers of each four.
        cp_async_16(stage + 128 * group + 4 * lane, x + 128 * group + 4 * lane, group == 1 ? 8 : 16);
        if (group == 0) {
            cp_async_4(narrow + lane, x + lane, lane % 2 == 0 ? 4 : 0);
        }
        if (group < committed) {
            cp_async_commit();
        }
    }
    cp_async_wait<1>();
    sync_warp();  // the copies of other lanes have arrived
    for (int i = lane; i < 256; i += WARP) {
        out[i] = stage[i];
    }
    cp_async_wait<0>();
    sync_warp();  // the copies of other lanes have arrived
    for (int i = lane; i < 128; i += WARP) {
        out[256 + i] = stage[256 + i];
    }
    out[384 + lane] = narrow[WARP - 1 - lane];
}

KERNEL(32, test_ldmatrix)(const int* rows,  // (32, 4): eight 16-bit elements for each lane
                          int* out) {       // (2, 32, 4): plain, transposed
    // Rows are 48 bytes apart in reverse order, so the result is right only if each lane's address
    // is used.
    SHARED(int, place, 32 * 12);
    int lane = lane_index(), next = (lane + 1) % WARP;
    int* row = place + 12 * (WARP - 1 - lane);
    for (int i = 0; i < 4; ++i) {
        place[12 * (WARP - 1 - next) + i] = rows[4 * next + i];
    }
    sync_warp();  // all rows are written before any lane loads
    uint32_t word[4];
    ldmatrix_x4(word, row);
    for (int i = 0; i < 4; ++i) {
        out[4 * lane + i] = int(word[i]);
    }
    ldmatrix_x4_trans(word, row);
    for (int i = 0; i < 4; ++i) {
        out[128 + 4 * lane + i] = int(word[i]);
    }
}

KERNEL(32, test_mma)(const int* a,      // (32, 4): fragments by lane
                     const int* b,      // (32, 2)
                     const float* c,    // (32, 4)
                     float* d) {        // (32, 4)
    int lane = lane_index();
    FragmentA left;
    FragmentB right;
    FragmentC sum;
    for (int i = 0; i < 4; ++i) {
        left.word[i] = uint32_t(a[4 * lane + i]);
        sum.value[i] = c[4 * lane + i];
    }
    for (int i = 0; i < 2; ++i) {
        right.word[i] = uint32_t(b[2 * lane + i]);
    }
    mma(sum, left, right);
    for (int i = 0; i < 4; ++i) {
        d[4 * lane + i] = sum.value[i];
    }
}

/// A ring of two stages between a producer warp and a consumer warp.
KERNEL(64, test_mbarrier)(int* out,     // (items, 32)
                          int items) {
    SHARED(int, ring, 2 * 32);
    SHARED(Mbarrier, full, 2);
    SHARED(Mbarrier, empty, 2);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            init_mbarrier(full + i, 32);
            init_mbarrier(empty + i, 32);
        }
        fence_mbarrier_init();
    }
    sync_block();  // mbarriers are initialised before use
    int lane = lane_index();
    for (int item = 0; item < items; ++item) {
        int place = item % 2, round = item / 2 % 2;
        if (threadIdx.x < 32) {
            // On a new mbarrier parity 1 counts as complete: the first round does not wait.
            wait_mbarrier(empty + place, round ^ 1);
            ring[32 * place + lane] = 1000 * item + lane;
            arrive_mbarrier(full + place);
        } else {
            wait_mbarrier(full + place, round);
            out[32 * item + lane] = ring[32 * place + 31 - lane];
            arrive_mbarrier(empty + place);
        }
    }
    sync_block();  // all threads have finished using the mbarriers
    if (threadIdx.x == 0) {
        invalidate_mbarrier(full);
        init_mbarrier(full, 1);
        arrive_mbarrier(full);
        wait_mbarrier(full, 0);
    }
}

KERNEL(128, test_named)(int* out) {  // (2, 128)
    SHARED(int, first, 128);
    SHARED(int, second, 64);
    int thread = int(threadIdx.x), pair = thread / 64;
    first[thread] = 10 * thread;
    sync_named(1 + pair, 64);  // the other warp of the pair has written
    out[thread] = first[64 * pair + (thread + 32) % 64];
    if (pair == 0) {
        second[thread] = 7 * thread;
        arrive_named(3, 128);
        out[128 + thread] = -1;
    } else {
        sync_named(3, 128);  // the first pair has written
        out[128 + thread] = second[127 - thread];
    }
}

/// Blocks take turns through a semaphore: in every round they write their indices in descending order.
KERNEL(32, test_turns, CORESIDENT)(int* log,    // (grid)
                                   int* turn,   // (2), initially zero: current turn, number of entries in the log
                                   int rounds) {
    int blocks = int(gridDim.x);
    for (int round = 0; round < rounds; ++round) {
        if (threadIdx.x == 0) {
            wait_semaphore(turn, round * blocks + blocks - 1 - int(blockIdx.x));
            int place = fetch_add(turn + 1, 1);
            log[place] = int(blockIdx.x);
            fence_device();
            store_release(turn, load_acquire(turn) + 1);
        }
        sync_block();  // no thread starts the next round early
    }
}

DEVICE void dump(const unsigned char* shared, int* out, int bytes) {
    for (int i = int(threadIdx.x); i < bytes / 4; i += int(blockDim.x)) {
        out[i] = reinterpret_cast<const int*>(shared)[i];
    }
}

DEVICE void fill(unsigned char* shared, const int* image, int bytes) {
    for (int i = int(threadIdx.x); i < bytes / 4; i += int(blockDim.x)) {
        reinterpret_cast<int*>(shared)[i] = image[i];
    }
}

/// Initialises one mbarrier for use by the whole cluster.
DEVICE void begin(Mbarrier* barrier, int arrivals) {
    if (threadIdx.x == 0) {
        init_mbarrier(barrier, arrivals);
        fence_mbarrier_init();
    }
    sync_block();  // the mbarrier is initialised
}

KERNEL(64, test_load_box)(TensorMap map, int rank, int x, int y, int z,
                          int* out,  // (bytes / 4)
                          int bytes) {
    DYNAMIC_SHARED(box);
    SHARED(Mbarrier, full, 1);
    begin(full, 1);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(map);
        arrive_expect_tx(full, bytes);
        if (rank == 2) {
            tma_load(box, map, x, y, full);
        } else {
            tma_load(box, map, x, y, z, full);
        }
    }
    wait_mbarrier(full, 0);
    dump(box, out, bytes);
}

KERNEL(64, test_store_box)(TensorMap map, int rank, int x, int y, int z,
                           const int* image,  // (bytes / 4)
                           int bytes, int add) {
    DYNAMIC_SHARED(box);
    fill(box, image, bytes);
    fence_async_proxy();
    sync_block();  // the box is written
    if (threadIdx.x == 0) {
        if (rank == 2) {
            add != 0 ? tma_reduce_add(map, x, y, box) : tma_store(map, x, y, box);
        } else {
            add != 0 ? tma_reduce_add(map, x, y, z, box) : tma_store(map, x, y, z, box);
        }
        tma_commit();
        tma_wait_read<0>();
    }
    sync_block();  // the TMA store has read the box before it is overwritten
    for (int i = int(threadIdx.x); i < bytes; i += int(blockDim.x)) {
        box[i] = 0x5a;
    }
}

/// Each block of a pair multicasts one box to both; box r starts at row r * rows.
KERNEL(64, test_multicast, CLUSTER(2))(TensorMap map,
                                       int* out,  // (2, 2, bytes / 4): by block, then by box
                                       int rows, int bytes) {
    DYNAMIC_SHARED(boxes);
    SHARED(Mbarrier, full, 1);
    int rank = int(cluster_rank());
    begin(full, 1);
    sync_cluster();  // the mbarriers of both blocks are initialised
    if (threadIdx.x == 0) {
        arrive_expect_tx(full, 2 * bytes);
        tma_load_multicast(boxes + rank * bytes, map, 0, rank * rows, full, 3);
    }
    wait_mbarrier(full, 0);
    dump(boxes, out + rank * (bytes / 2), 2 * bytes);
    sync_cluster();  // no block exits while the other's multicast may write to it
}

/// GEMM of 64 x (16 steps) by (16 steps) x N with operands given as images of shared memory.
template <int N, Major A, Major B>
DEVICE void product(const int* a, const int* b, int a_bytes, int b_bytes, int a_leading, int a_stride, int b_leading,
                    int b_stride, int swizzle, int steps, int a_step, int b_step, int accumulate, float* out) {
    DYNAMIC_SHARED(place);
    unsigned char* second = place + ceil_div(a_bytes, 1024) * 1024;
    fill(place, a, a_bytes);
    fill(second, b, b_bytes);
    fence_async_proxy();
    sync_block();  // the operands are written before wgmma reads them
    float sums[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        sums[i] = 1.0f;
    }
    wgmma_fence(sums);
    for (int step = 0; step < steps; ++step) {
        uint64_t left = matrix_descriptor(shared_address_of(place) + uint32_t(step * a_step), a_leading, a_stride,
                                          Swizzle(swizzle));
        uint64_t right = matrix_descriptor(shared_address_of(second) + uint32_t(step * b_step), b_leading, b_stride,
                                           Swizzle(swizzle));
        wgmma<N, A, B>(sums, left, right, accumulate != 0 || step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(sums);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        out[int(threadIdx.x) * (N / 2) + i] = sums[i];
    }
}

KERNEL(128, test_product_64_kk)(const int* a, const int* b, int a_bytes, int b_bytes, int a_leading, int a_stride,
                                int b_leading, int b_stride, int swizzle, int steps, int a_step, int b_step,
                                int accumulate,
                                float* out) {  // (128, 32)
    product<64, Major::K, Major::K>(a, b, a_bytes, b_bytes, a_leading, a_stride, b_leading, b_stride, swizzle, steps,
                                    a_step, b_step, accumulate, out);
}

KERNEL(128, test_product_128_ka)(const int* a, const int* b, int a_bytes, int b_bytes, int a_leading, int a_stride,
                                 int b_leading, int b_stride, int swizzle, int steps, int a_step, int b_step,
                                 int accumulate,
                                 float* out) {  // (128, 64)
    product<128, Major::K, Major::ACROSS>(a, b, a_bytes, b_bytes, a_leading, a_stride, b_leading, b_stride, swizzle,
                                          steps, a_step, b_step, accumulate, out);
}

KERNEL(128, test_product_256_ak)(const int* a, const int* b, int a_bytes, int b_bytes, int a_leading, int a_stride,
                                 int b_leading, int b_stride, int swizzle, int steps, int a_step, int b_step,
                                 int accumulate,
                                 float* out) {  // (128, 128)
    product<256, Major::ACROSS, Major::K>(a, b, a_bytes, b_bytes, a_leading, a_stride, b_leading, b_stride, swizzle,
                                          steps, a_step, b_step, accumulate, out);
}

KERNEL(128, test_product_192_aa)(const int* a, const int* b, int a_bytes, int b_bytes, int a_leading, int a_stride,
                                 int b_leading, int b_stride, int swizzle, int steps, int a_step, int b_step,
                                 int accumulate,
                                 float* out) {  // (128, 96)
    product<192, Major::ACROSS, Major::ACROSS>(a, b, a_bytes, b_bytes, a_leading, a_stride, b_leading, b_stride,
                                               swizzle, steps, a_step, b_step, accumulate, out);
}

/// GEMM with A in registers: two k steps, fragments by thread.
template <int N, Major B>
DEVICE void product_of_registers(const int* fragments, const int* b, int b_bytes, int b_leading, int b_stride,
                                 int b_step, float* out) {
    DYNAMIC_SHARED(place);
    fill(place, b, b_bytes);
    fence_async_proxy();
    sync_block();  // the operand is written before wgmma reads it
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        a[i / 4][i % 4] = uint32_t(fragments[8 * int(threadIdx.x) + i]);
    }
    float sums[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        sums[i] = 0.0f;
    }
    wgmma_fence(sums);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
        uint64_t right = matrix_descriptor(shared_address_of(place) + uint32_t(step * b_step), b_leading, b_stride,
                                           Swizzle::BYTES_128);
        wgmma<N, B>(sums, a[step], right, step > 0);
        wgmma_commit();
    }
    wgmma_wait<1>();
    wgmma_wait<0>(sums);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        out[int(threadIdx.x) * (N / 2) + i] = sums[i];
    }
}

KERNEL(128, test_product_registers_80_k)(const int* fragments,  // (128, 2, 4)
                                         const int* b, int b_bytes, int b_leading, int b_stride, int b_step,
                                         float* out) {  // (128, 40)
    product_of_registers<80, Major::K>(fragments, b, b_bytes, b_leading, b_stride, b_step, out);
}

KERNEL(128, test_product_registers_96_k)(const int* fragments,  // (128, 2, 4)
                                         const int* b, int b_bytes, int b_leading, int b_stride, int b_step,
                                         float* out) {  // (128, 48)
    product_of_registers<96, Major::K>(fragments, b, b_bytes, b_leading, b_stride, b_step, out);
}

KERNEL(128, test_product_registers_64_a)(const int* fragments,  // (128, 2, 4)
                                         const int* b, int b_bytes, int b_leading, int b_stride, int b_step,
                                         float* out) {  // (128, 32)
    product_of_registers<64, Major::ACROSS>(fragments, b, b_bytes, b_leading, b_stride, b_step, out);
}

/// Reads and writes the shared memory of other blocks of a cluster of four, and arrives at their
/// mbarriers.
KERNEL(32, test_cluster, CLUSTER(4))(int* out,         // (grid, 3, 32)
                                     float* values) {  // (grid, 32)
    SHARED(int, first, 32);
    SHARED(int, second, 32);
    SHARED(float, number, 32);
    SHARED(Mbarrier, written, 1);
    unsigned rank = cluster_rank();
    int lane = lane_index(), block = int(blockIdx.x);
    begin(written, 32);
    first[lane] = 100 * block + lane;
    number[lane] = 0.5f * float(lane);
    sync_cluster();  // `first`, `number` and the mbarriers are written
    out[96 * block + lane] = int(load_remote_word(address_in_block(first + lane, (rank + 1) % 4)));
    values[32 * block + lane] = load_remote(address_in_block(number + 31 - lane, (rank + 3) % 4));
    store_remote_word(address_in_block(second + lane, (rank + 2) % 4), 1000u * unsigned(block) + unsigned(lane));
    arrive_remote(written, (rank + 2) % 4);
    wait_mbarrier_cluster(written, 0);
    out[96 * block + 32 + lane] = second[lane];
    sync_cluster();  // `number` has been read before it is overwritten
    store_remote(address_in_block(number + lane, rank ^ 1), float(block));
    sync_cluster();  // `number` is written; no block exits while others access it
    out[96 * block + 64 + lane] = int(number[lane]) + 1000 * int(cluster_blocks());
}

KERNEL(384, test_registers, ALONE(384))(int* out) {  // (384)
    int thread = int(threadIdx.x);
    wait_for_earlier_launch();
    if (thread < 128) {
        decrease_registers<40>();
        out[thread] = 1;
    } else {
        increase_registers<232>();
        out[thread] = 2;
    }
    launch_dependents();
}
