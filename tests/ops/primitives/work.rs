//! The work list of attention.

use mapl::backend::kernels::device::{ConstPtr, Device, MutPtr};
use mapl::backend::kernels::launchers::AttentionPlan;

use super::harness::{download, unwritten, upload};

/// Tiles are ordered by the depth of their segment, and by row within a depth. Blocks that take them
/// in order begin with the keys that most queries see; in reverse, with the longest paths.
pub fn tiles_of_roots_come_first_and_deep_ones_last<D: Device>(device: &D) {
    const ROWS: usize = 64;
    // Two trees, and single rows for more segments than the block has threads.
    let lengths_and_depths = [(130, 0), (70, 1), (64, 2), (1, 3), (0, 1), (200, 0), (10, 1)];
    let segments: Vec<(usize, i32)> =
        lengths_and_depths.into_iter().chain((0..300).map(|i| (1, i32::from(i % 2 == 0)))).collect();
    let sums = |values: &mut dyn Iterator<Item = i32>| -> Vec<i32> {
        let sums = values.scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        });
        std::iter::once(0).chain(sums).collect()
    };
    let starts = sums(&mut segments.iter().map(|&(length, _)| length as i32));
    let offsets = sums(&mut segments.iter().map(|&(_, depth)| depth));
    let mut expected: Vec<(i32, i32)> = Vec::new();
    for depth in 0..3 {
        for (i, &(length, own)) in segments.iter().enumerate().filter(|(_, (_, own))| depth == *own.min(&2)) {
            assert!(own >= 0);
            expected.extend((0..length).step_by(ROWS).map(|row| (i as i32, starts[i] + row as i32)));
        }
    }
    let (starts, offsets) = (upload(device, &starts), upload(device, &offsets));
    let work = unwritten(device, 2 + 2 * (expected.len() + 1));
    AttentionPlan {
        starts: ConstPtr::of::<D>(&starts, 0),
        ancestor_offsets: ConstPtr::of::<D>(&offsets, 0),
        work: MutPtr::of::<D>(&work, 0),
        segments: segments.len() as i32,
        rows: ROWS as i32,
    }
    .launch(device, 1, 0)
    .unwrap();
    let got = download::<D, i32>(device, &work, 2 + 2 * expected.len());
    assert_eq!(got[0] as usize, expected.len());
    let tiles: Vec<(i32, i32)> = got[2..].chunks_exact(2).map(|tile| (tile[0], tile[1])).collect();
    assert_eq!(tiles, expected);
}
