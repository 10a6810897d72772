//! The work lists of attention.

use common::trees::HostTree;
use mapl::backend::kernels::device::{ConstPtr, Device, MutPtr};
use mapl::backend::kernels::launchers::{
    ATTENTION_CLASSES, ATTENTION_HEADER, ATTENTION_WORDS, AttentionPlan, AttentionPlanSm90, AttentionTiles,
};

use super::harness::{download, unwritten, upload};

/// Tiles are ordered by the depth of their segment, and by row within a depth. Blocks that process them in
/// order begin with the keys that most queries see; blocks that go in reverse begin with the longest paths.
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

/// Query tiles are ordered by the length of their path, key tiles by the number of queries that see them,
/// each in descending classes. Within a class, tiles are in the order of the batch, but the key tiles of a
/// segment start at its end.
pub fn tiles_of_hopper_are_ordered_by_class_of_length<D: Device>(device: &D) {
    let nodes = [(150, None), (70, Some(0)), (33, Some(0)), (90, Some(1)), (20, Some(1)), (0, Some(2)), (1, Some(2))];
    let tree = (0..40).fold(HostTree::new().tree(&nodes).tree(&nodes[..3]), |tree, n| tree.tree(&[(1 + n, None)]));
    let segments = tree.starts.len() - 1;
    let rows_of = |s: usize| (tree.starts[s + 1] - tree.starts[s]) as usize;
    let path = |s: usize| &tree.ancestors[tree.ancestor_offsets[s] as usize..tree.ancestor_offsets[s + 1] as usize];
    let (starts, offsets) = (upload(device, &tree.starts), upload(device, &tree.ancestor_offsets));
    let (ancestors, trees) = (upload(device, &tree.ancestors), upload(device, &tree.trees));
    for (kind, rows, span) in [(AttentionTiles::Queries, 18, 16), (AttentionTiles::Keys, 32, 6)] {
        // (class, words of the work item)
        let mut expected: Vec<(usize, [i32; ATTENTION_WORDS])> = Vec::new();
        for s in 0..segments {
            let tiles = rows_of(s).div_ceil(rows);
            let above: usize = path(s).iter().map(|&a| rows_of(a as usize)).sum();
            let end = tree.trees.iter().copied().find(|&first| first > s as i32).unwrap();
            let below: usize = (0..segments).filter(|&d| path(d).contains(&(s as i32))).map(rows_of).sum();
            for i in 0..tiles {
                let (first, cost, word) = match kind {
                    AttentionTiles::Queries => (i * rows, above + (i + 1) * rows, (above + i * rows) as i32),
                    AttentionTiles::Keys => {
                        let first = (tiles - 1 - i) * rows;
                        (first, below + rows_of(s) - first, end)
                    }
                };
                let words = [s as i32, tree.starts[s] + first as i32, rows.min(rows_of(s) - first) as i32, word];
                expected.push((((cost - 1) / span).min(ATTENTION_CLASSES - 1), words));
            }
        }
        expected.sort_by_key(|(class, _)| std::cmp::Reverse(*class));
        let expected: Vec<i32> = expected.iter().flat_map(|(_, words)| *words).collect();
        let work = unwritten(device, ATTENTION_HEADER + expected.len());
        AttentionPlanSm90 {
            starts: ConstPtr::of::<D>(&starts, 0),
            ancestor_offsets: ConstPtr::of::<D>(&offsets, 0),
            ancestors: ConstPtr::of::<D>(&ancestors, 0),
            trees: ConstPtr::of::<D>(&trees, 0),
            work: MutPtr::of::<D>(&work, 0),
            kind,
            segments: segments as i32,
            tree_count: tree.trees.len() as i32 - 1,
            rows: rows as i32,
            span: span as i32,
        }
        .launch(device, 1, 0)
        .unwrap();
        let got = download::<D, i32>(device, &work, ATTENTION_HEADER + expected.len());
        assert_eq!(got[0] as usize * ATTENTION_WORDS, expected.len(), "{kind:?}");
        assert_eq!(got[ATTENTION_HEADER..], expected, "{kind:?}");
    }
}
