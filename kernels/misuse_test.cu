// Misuses of primitives, one per value of `which`; tests/ops/primitives.rs requires that the emulator
// reports them. They are launched only on the emulator: on a GPU they would hang or give undefined results.
#include "common.cuh"
#include "primitives/barrier.cuh"
#include "primitives/cluster.cuh"
#include "primitives/tma.cuh"
#include "primitives/warp.cuh"
#include "primitives/wgmma.cuh"

KERNEL(96, test_barrier_misuse)(int which) {
    SHARED(Mbarrier, barrier, 1);
    if (which != 0 && threadIdx.x == 0) {
        init_mbarrier(barrier, 2);
    }
    sync_block();  // the mbarrier is initialised
    if (which == 6) {
        if (threadIdx.x < 32) {
            sync_warp();
        } else if (threadIdx.x % 2 == 0) {
            sync_warp();
        } else {
            all_lanes(true);
        }
    }
    if (which == 7 && threadIdx.x < 32) {
        sync_named(1, 64);
    }
    if (which == 9 && threadIdx.x < 32) {
        arrive_named(1, 64);
    }
    if (which == 8) {
        sync_named(1, threadIdx.x < 32 ? 64 : 96);
    }
    if (threadIdx.x != 0) {
        return;
    }
    switch (which) {
        case 0:
            arrive_mbarrier(barrier);
            break;
        case 1:
            init_mbarrier(barrier, 1);
            break;
        case 2:
            arrive_expect_tx(barrier, 16);
            arrive_mbarrier(barrier);
            arrive_mbarrier(barrier);
            break;
        case 3:
            arrive_mbarrier(barrier);
            wait_mbarrier(barrier, 0);
            break;
        case 4:
            barrier->word = 0;
            arrive_mbarrier(barrier);
            break;
        case 5:
            invalidate_mbarrier(barrier);
            wait_mbarrier(barrier, 0);
            break;
    }
}

KERNEL(32, test_turn_misuse, CORESIDENT)(const int* turn) {
    wait_semaphore(turn, 1);
}

KERNEL(32, test_early_misuse, EARLY)(TensorMap map, int which) {
    DYNAMIC_SHARED(box);
    if (which == 1 && threadIdx.x == 0) {
        tma_store(map, 0, 0, box);
        tma_commit();
        tma_wait<0>();
    }
    if (which == 0 && threadIdx.x == 5) {
        return;
    }
    wait_for_earlier_launch();
}

KERNEL(32, test_box_misuse)(TensorMap map, int which) {
    DYNAMIC_SHARED(box);
    SHARED(Mbarrier, full, 1);
    if (threadIdx.x != 0) {
        return;
    }
    if (which != 3) {
        init_mbarrier(full, 1);
    }
    if (which != 13) {
        fence_mbarrier_init();
    }
    switch (which) {
        case 0:
            tma_load(box + 128, map, 0, 0, full);
            break;
        case 1:
            tma_load(box, map, 0, 0, 0, full);
            break;
        case 2:
            arrive_expect_tx(full, 1024 + 16);
            tma_load(box, map, 0, 0, full);
            wait_mbarrier(full, 0);
            break;
        case 3:
            tma_load(box, map, 0, 0, full);
            break;
        case 4:
            tma_store(map, 0, 0, box);
            break;
        case 5:
            tma_store(map, 0, 0, box);
            tma_commit();
            break;
        case 6:
            tma_load_multicast(box, map, 0, 0, full, 2);
            break;
        case 7:
            tma_load(box + 1024, map, 0, 0, full);
            break;
        case 8:
            tma_reduce_add(map, 0, 0, box);
            tma_commit();
            tma_wait<0>();
            break;
        case 9:
            tma_load(box, map, 2, 0, full);
            break;
        case 10:
            tma_store(map, 0, -1, box);
            break;
        case 11:
            tma_store(map, -4, 0, box);
            break;
        case 12:
            tma_store(map, 30, 0, box);
            break;
        case 13:
            tma_load(box, map, 0, 0, full);
            break;
    }
}

/// Reuses a stage while an asynchronous operation may still access it: results must differ between
/// schedules.
KERNEL(128, test_early_reuse)(TensorMap map, int which,
                              int* out) {  // (256)
    DYNAMIC_SHARED(stage);
    SHARED(Mbarrier, full, 1);
    int thread = int(threadIdx.x);
    auto* word = reinterpret_cast<uint32_t*>(stage);
    for (int i = thread; i < 1024; i += 128) {
        word[i] = 0x3f803f80u;  // ones
    }
    if (thread == 0) {
        init_mbarrier(full, 1);
        fence_mbarrier_init();
    }
    fence_async_proxy();
    sync_block();  // the stage is written and the mbarrier initialised
    if (which == 0) {
        // The operands of a wgmma change before the wait.
        float sums[32];
        uint64_t operand = matrix_descriptor(shared_address_of(stage), 16, 0, Swizzle::BYTES_128);
        wgmma_fence();
        wgmma<64, Major::K, Major::K>(sums, operand, operand, false);
        wgmma_commit();
        sync_block();  // all wgmmas are issued
        for (int i = thread; i < 1024; i += 128) {
            word[i] = 0;
        }
        sync_block();  // the stage is overwritten
        wgmma_wait<0>(sums);
        out[thread] = int(sums[0]);
        return;
    }
    if (thread == 0) {
        if (which == 1) {
            // A TMA load is read before the wait.
            arrive_expect_tx(full, 1024);
            tma_load(stage, map, 0, 0, full);
            out[0] = int(word[0]);
            wait_mbarrier(full, 0);
        } else {
            // The source of a TMA store changes before it has been read.
            tma_store(map, 0, 0, stage);
            tma_commit();
            word[0] = 7;
            tma_wait<0>();
        }
    }
}

/// An asynchronous operation reads shared memory that threads wrote without a proxy fence, with the
/// fence before the write, or with a fence of another thread. Case 6 is correct.
KERNEL(128, test_missing_fence)(TensorMap map, int which) {
    DYNAMIC_SHARED(stage);
    int thread = int(threadIdx.x);
    auto* word = reinterpret_cast<uint32_t*>(stage);
    if (which == 1 || which == 4) {
        fence_async_proxy();
    }
    for (int i = thread; i < 1024; i += 128) {
        word[i] = 0x3f803f80u + unsigned(which);
    }
    if (which == 6) {
        fence_async_proxy();
    }
    sync_block();  // the stage is written
    if (thread == 0 && (which == 2 || which == 5)) {
        fence_async_proxy();
    }
    sync_block();  // the fence of thread 0 is executed
    if (which < 3 || which == 6) {
        float sums[32];
        uint64_t operand = matrix_descriptor(shared_address_of(stage), 16, 1024, Swizzle::BYTES_128);
        wgmma_fence();
        wgmma<64, Major::K, Major::K>(sums, operand, operand, false);
        wgmma_commit();
        wgmma_wait<0>(sums);
    }
    if (thread == 0 && which >= 3) {
        tma_store(map, 0, 0, stage);
        tma_commit();
        tma_wait<0>();
    }
}

KERNEL(128, test_product_misuse)(int which) {
    DYNAMIC_SHARED(stage);
    float sums[32];
    uint64_t operand = matrix_descriptor(shared_address_of(stage), 16, 1024, Swizzle::BYTES_128);
    if (which == 3) {
        operand |= 1ull << 49;
    } else if (which == 4) {
        operand = matrix_descriptor(shared_address_of(stage), 16, 4096, Swizzle::BYTES_128);
    } else if (which == 5) {
        operand += threadIdx.x % 2;
    }
    if (which != 0) {
        wgmma_fence();
    }
    if (which != 2 || threadIdx.x >= 32) {
        wgmma<64, Major::K, Major::K>(sums, operand, operand, false);
    }
    wgmma_commit();
    if (which != 1) {
        wgmma_wait<0>(sums);
    }
}

KERNEL(32, test_cluster_misuse, CLUSTER(2))(int which, int* out) {
    SHARED(int, value, 32);
    value[threadIdx.x] = 1;
    if (which == 0) {
        sync_cluster();
        if (cluster_rank() == 0) {
            // During these barriers block 1 returns, also in the random schedule, which stalls warps.
            for (int i = 0; i < 500; ++i) {
                sync_block();
            }
            out[threadIdx.x] = int(load_remote_word(address_in_block(value + threadIdx.x, 1)));
        }
    } else if (which == 1) {
        arrive_cluster();
        arrive_cluster();
    } else if (which == 2) {
        wait_cluster();
    } else if (which == 3) {
        arrive_cluster();
    } else {
        out[threadIdx.x] = int(load_remote_word(address_in_block(value + threadIdx.x, 2)));
    }
}

KERNEL(256, test_register_misuse, ALONE(256))(int which) {
    if (which == 0) {
        increase_registers<256>();
    } else if (which == 1) {
        if (threadIdx.x >= 64) {
            decrease_registers<40>();
        }
    } else {
        decrease_registers<40>();
        decrease_registers<48>();
    }
}
