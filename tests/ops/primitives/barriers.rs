//! Synchronisation of threads, warps, blocks of a cluster and blocks of a grid; registers of
//! warpgroups.

use mapl::backend::kernels::device::{Device, MutPtr};
use mapl::backend::kernels::launchers::{TestCluster, TestMbarrier, TestNamed, TestRegisters, TestTurns};

use super::harness::{download, unwritten, upload};

/// Tests mbarrier phases by parity: every item of a ring of two arrives once and is not overwritten before it
/// is read. An invalidated mbarrier can be initialised again.
pub fn mbarrier_phases_protect_a_ring<D: Device>(device: &D) {
    // One item, a full ring, both parities of both slots, and many rounds.
    for items in [1, 2, 5, 16] {
        let out = unwritten(device, items * 32);
        TestMbarrier { out: MutPtr::of::<D>(&out, 0), items: items as i32 }.launch(device, 1, 0).unwrap();
        let expected: Vec<i32> = (0..items as i32 * 32).map(|i| 1000 * (i / 32) + 31 - i % 32).collect();
        assert_eq!(download::<D, i32>(device, &out, items * 32), expected);
    }
}

/// bar.sync of 64 threads synchronises two pairs of warps independently; bar.arrive of one pair
/// releases bar.sync of the other.
pub fn named_barriers_synchronise_some_warps<D: Device>(device: &D) {
    let out = unwritten(device, 256);
    TestNamed { out: MutPtr::of::<D>(&out, 0) }.launch(device, 1, 0).unwrap();
    let got = download::<D, i32>(device, &out, 256);
    for thread in 0..128 {
        let partner = thread / 64 * 64 + (thread + 32) % 64;
        assert_eq!(got[thread], 10 * partner as i32, "thread {thread}");
        let second = if thread < 64 { -1 } else { 7 * (127 - thread as i32) };
        assert_eq!(got[128 + thread], second, "thread {thread}");
    }
}

/// A semaphore in global memory (release and acquire) orders the blocks of a launch, whichever
/// block runs first.
pub fn semaphore_orders_blocks<D: Device>(device: &D) {
    for blocks in [1, 2, 5] {
        let rounds = 3;
        let (log, turn) = (unwritten(device, blocks * rounds), upload(device, &[0i32; 2]));
        let kernel =
            TestTurns { log: MutPtr::of::<D>(&log, 0), turn: MutPtr::of::<D>(&turn, 0), rounds: rounds as i32 };
        kernel.launch(device, blocks, 0).unwrap();
        let expected: Vec<i32> = (0..blocks * rounds).map(|i| (blocks - 1 - i % blocks) as i32).collect();
        assert_eq!(download::<D, i32>(device, &log, blocks * rounds), expected);
    }
}

/// Tests mapa, ld and st of .shared::cluster, remote mbarrier arrivals and the cluster barrier, in two
/// clusters of four blocks.
pub fn clusters_access_distributed_shared_memory<D: Device>(device: &D) {
    let (out, values) = (unwritten(device, 8 * 96), unwritten(device, 8 * 32));
    let kernel = TestCluster { out: MutPtr::of::<D>(&out, 0), values: MutPtr::of::<D>(&values, 0) };
    kernel.launch(device, 8, 0).unwrap();
    let (got, values) = (download::<D, i32>(device, &out, 8 * 96), download::<D, f32>(device, &values, 8 * 32));
    for block in 0..8i32 {
        let peer = |distance: i32| block / 4 * 4 + (block + distance) % 4;
        for lane in 0..32i32 {
            let at = |row: i32| got[(96 * block + 32 * row + lane) as usize];
            assert_eq!(at(0), 100 * peer(1) + lane, "value read by block {block}, lane {lane}");
            // Block b writes to block b + 2 modulo 4, so block b + 2 also wrote to block b.
            assert_eq!(at(1), 1000 * peer(2) + lane, "value written to block {block}, lane {lane}");
            assert_eq!(at(2), (block ^ 1) + 4000, "number of block {block}, lane {lane}");
            assert_eq!(values[(32 * block + lane) as usize], 0.5 * (31 - lane) as f32, "block {block}, lane {lane}");
        }
    }
}

/// Tests setmaxnreg: 40 registers for one warpgroup and 232 for two use all 64,512. griddepcontrol has no
/// effect here.
pub fn registers_move_between_warpgroups<D: Device>(device: &D) {
    let out = unwritten(device, 384);
    TestRegisters { out: MutPtr::of::<D>(&out, 0) }.launch(device, 1, 0).unwrap();
    let expected: Vec<i32> = (0..384).map(|thread| if thread < 128 { 1 } else { 2 }).collect();
    assert_eq!(download::<D, i32>(device, &out, 384), expected);
}
