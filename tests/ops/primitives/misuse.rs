//! Errors that the emulator reports for wrong use of primitives, and hazards that its schedules
//! expose.

use mapl::backend::kernels::device::{ConstPtr, Device, MapElement, MapSwizzle, MutPtr, TensorMap, TensorMapSpec};
use mapl::backend::kernels::emulator::{Emulator, Schedule};
use mapl::backend::kernels::launchers::{
    TestBarrierMisuse, TestBoxMisuse, TestClusterMisuse, TestCopies, TestEarlyMisuse, TestEarlyReuse, TestMissingFence,
    TestProductMisuse, TestRegisterMisuse, TestStoreBox, TestTurnMisuse,
};

use super::harness::{SCHEDULES, download, emulators, unwritten, upload};

/// Asserts that every schedule reports an error that contains `what`.
fn reported(what: &str, run: impl Fn(&Emulator) -> mapl::Result<()>) {
    emulators(|device| {
        let error = run(device).expect_err(what).to_string();
        assert!(error.contains(what), "{error:?} does not say {what:?}");
    });
}

#[test]
fn misuse_of_barriers_is_reported() {
    for (which, what) in [
        (0, "mbarrier at 128 of the shared window: it was never initialised"),
        (1, "which is in use; invalidate it first"),
        (2, "too many arrivals on the mbarrier at 128: all 2 arrivals of the phase are complete, 16 bytes are missing"),
        (4, "its bytes were overwritten"),
        (5, "it was invalidated"),
        (8, "named barrier 1 is used with"),
        (9, "32 of 64 arrivals left over at named barrier 1"),
    ] {
        reported(what, |device| TestBarrierMisuse { which }.launch(device, 1, 0));
    }
}

#[test]
fn deadlock_error_names_the_waiting_threads() {
    reported("threads 0 to 0: mbarrier, parity 0; block 0 threads 1 to 95: has returned", |device| {
        TestBarrierMisuse { which: 3 }.launch(device, 1, 0)
    });
    reported("mbarrier at 128 of block 0: parity 0, 1 of 2 arrivals and 0 bytes are missing", |device| {
        TestBarrierMisuse { which: 3 }.launch(device, 1, 0)
    });
    reported("threads 0 to 31: named barrier; block 0 threads 32 to 95: has returned", |device| {
        TestBarrierMisuse { which: 7 }.launch(device, 1, 0)
    });
    reported("threads 0 to 31: semaphore in global memory", |device| {
        let turn = upload(device, &[0i32]);
        TestTurnMisuse { turn: ConstPtr::of::<Emulator>(&turn, 0) }.launch(device, 2, 0)
    });
}

#[test]
fn warp_divergence_at_a_primitive_is_reported() {
    reported("while other lanes of the warp are at", |device| TestBarrierMisuse { which: 6 }.launch(device, 1, 0));
}

#[test]
fn uncommitted_async_copies_are_reported() {
    let values = vec![1.0f32; 384];
    for committed in 0..3 {
        reported("uncommitted cp.async copies", |device| {
            let (x, out) = (upload(device, &values), unwritten(device, 416));
            TestCopies { x: ConstPtr::of::<Emulator>(&x, 0), out: MutPtr::of::<Emulator>(&out, 0), committed }
                .launch(device, 1, 0)
        });
    }
}

/// Tensor map of eight rows of `width` numbers with a pitch of 128 bytes.
fn map(device: &Emulator, memory: &<Emulator as Device>::Memory, width: u64) -> TensorMap {
    let spec = TensorMapSpec {
        address: Emulator::address(memory),
        element: MapElement::F32,
        dims: vec![width, 8],
        strides: vec![128],
        boxes: vec![32, 8],
        swizzle: MapSwizzle::Bytes128,
    };
    device.tensor_map(&spec).unwrap()
}

#[test]
fn misuse_of_tma_is_reported() {
    for (which, what) in [
        (0, "a box must be aligned to 1024 bytes"),
        (1, "a tensor map of 2 dimensions; the copy needs 3"),
        (2, "0 of 1 arrivals and 16 bytes are missing"),
        (3, "load on the mbarrier at 2176 of the shared window: it was never initialised"),
        (4, "uncommitted TMA stores"),
        (5, "before its TMA stores had read shared memory"),
        (6, "block 1 is outside the cluster of 1 blocks"),
        (7, "is outside shared memory"),
        (13, "which thread 0 initialised without a fence_mbarrier_init() since"),
    ] {
        reported(what, |device| {
            let memory = upload(device, &[1.0f32; 256]);
            let shared = if which == 7 { 2000 } else { 2048 };
            TestBoxMisuse { map: map(device, &memory, 32), which }.launch(device, 1, shared)
        });
    }
    reported("outside every allocation", |device| {
        let memory = upload(device, &[1.0f32; 255]);
        TestBoxMisuse { map: map(device, &memory, 32), which: 2 }.launch(device, 1, 2048)
    });
    for (which, what) in [
        (9, "cp.async.bulk.tensor load at the innermost coordinate 2; 8 bytes are not a multiple of 16"),
        (10, "cp.async.bulk.tensor store at the negative coordinate -1 of dimension 1"),
        (11, "cp.async.bulk.tensor store at the negative coordinate -4 of dimension 0"),
        (12, "cp.async.bulk.tensor store at the innermost coordinate 30"),
    ] {
        reported(what, |device| {
            let memory = upload(device, &[1.0f32; 256]);
            TestBoxMisuse { map: map(device, &memory, 32), which }.launch(device, 1, 2048)
        });
    }
    reported("rows of 120 bytes", |device| {
        let memory = upload(device, &[1.0f32; 256]);
        TestBoxMisuse { map: map(device, &memory, 30), which: 8 }.launch(device, 1, 2048)
    });
    reported("a tensor map that was not made for the emulator", |device| {
        TestBoxMisuse { map: TensorMap([0; 16]), which: 2 }.launch(device, 1, 2048)
    });
}

#[test]
fn misuse_of_wgmma_is_reported() {
    for (which, what) in [
        (0, "wgmma without a fence"),
        (1, "wgmmas that were never waited for"),
        (2, "wgmmas issued: 1 in this warp, 0 in the first warp of its warpgroup"),
        (3, "base offset 1"),
        (4, "is outside shared memory"),
        (5, "descriptors that differ between lanes"),
    ] {
        reported(what, |device| TestProductMisuse { which }.launch(device, 1, 8192));
    }
}

#[test]
fn misuse_of_clusters_and_registers_is_reported() {
    for (which, what) in [
        (0, "block 1 of the cluster has returned"),
        (1, "barrier.cluster.arrive twice"),
        (2, "barrier.cluster.wait without an arrive"),
        (3, "between arrival and wait of the cluster barrier"),
        (4, "mapa: block 2 is outside the cluster of 2 blocks"),
    ] {
        reported(what, |device| {
            let out = unwritten(device, 32);
            TestClusterMisuse { which, out: MutPtr::of::<Emulator>(&out, 0) }.launch(device, 2, 0)
        });
    }
    for (which, what) in
        [(0, "returned without wait_for_earlier_launch"), (1, "a TMA copy before wait_for_earlier_launch")]
    {
        reported(what, |device| {
            let memory = unwritten(device, 64);
            TestEarlyMisuse { map: map(device, &memory, 32), which }.launch(device, 1, 4096)
        });
    }
    for (which, what) in [
        (0, "the block's warps ask for 65536 registers; there are 64512"),
        (1, "setmaxnreg is not the same in all warps of the warpgroup"),
        (2, "setmaxnreg.dec from 40 to 48 registers"),
    ] {
        reported(what, |device| TestRegisterMisuse { which }.launch(device, 1, 0));
    }
}

/// A row of 30 elements ends inside a unit of 16 bytes: a plain store writes the two elements of
/// padding after it, as a GPU does.
#[test]
fn plain_stores_write_whole_units_of_16_bytes() {
    emulators(|device| {
        let memory = upload(device, &[1.0f32; 256]);
        let image = upload(device, &[7.0f32; 256]);
        let store = TestStoreBox {
            map: map(device, &memory, 30),
            rank: 2,
            x: 0,
            y: 0,
            z: 0,
            image: ConstPtr::of::<Emulator>(&image, 0),
            bytes: 1024,
            add: 0,
        };
        store.launch(device, 1, 1024).unwrap();
        assert_eq!(download::<Emulator, f32>(device, &memory, 256), [7.0; 256]);
    });
}

/// Each kernel variant is wrong in one way: the fence is missing, comes before the write, or is executed by
/// only one of the writing threads.
#[test]
fn missing_proxy_fences_are_reported() {
    for schedule in SCHEDULES {
        let Some(device) = common::emulator(schedule, 1) else { return };
        let device = device.with_proxies();
        let memory = upload(&device, &[2.0f32; 256]);
        let run = |which| TestMissingFence { map: map(&device, &memory, 32), which }.launch(&device, 1, 8192);
        for (which, what) in [
            (0, "wgmma, A reads byte 0 of the shared window, which thread 0 wrote without a fence_async_proxy() since"),
            (1, "wgmma, A reads byte 0 of the shared window, which thread 0 wrote"),
            (2, "wgmma, A reads byte 4 of the shared window, which thread 1 wrote"),
            (3, "cp.async.bulk.tensor store reads byte 0 of the shared window, which thread 0 wrote"),
            (4, "cp.async.bulk.tensor store reads byte 0 of the shared window, which thread 0 wrote"),
            (5, "cp.async.bulk.tensor store reads byte 4 of the shared window, which thread 1 wrote"),
        ] {
            let error = run(which).expect_err(what).to_string();
            assert!(error.contains(what), "{error:?} does not say {what:?}");
        }
        run(6).unwrap();
    }
}

/// Data that is used before it is complete, or changed while it is in use, gives different results
/// in different schedules.
#[test]
fn early_reuse_of_a_stage_changes_results() {
    for which in 0..3 {
        let mut results = Vec::new();
        for schedule in [Schedule::Rising, Schedule::Falling] {
            let Some(device) = common::emulator(schedule, 1) else { return };
            let memory = upload(&device, &[2.0f32; 256]);
            let out = unwritten(&device, 256);
            TestEarlyReuse { map: map(&device, &memory, 32), which, out: MutPtr::of::<Emulator>(&out, 0) }
                .launch(&device, 1, 4096)
                .unwrap();
            let stored = download::<Emulator, i32>(&device, &memory, 256);
            results.push((download::<Emulator, i32>(&device, &out, 256), stored));
        }
        assert_ne!(results[0], results[1], "hazard {which}");
    }
}
