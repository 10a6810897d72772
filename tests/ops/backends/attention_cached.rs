//! Attention over a cache against the reference: every kind of path of `common::paths`, several head
//! sizes and ratios. The reference equals attention over whole sequences (`tests/ops/gradients`).

use common::paths::{HostPaths, calls};
use common::{check_backend, check_bf16_cpu, check_kernels};
use common::{normal, runs};
use half::bf16;
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;

fn case(name: &str, paths: &HostPaths, (heads, kv_heads, head_dim): (usize, usize, usize), kernels: bool) {
    case_of(name, paths, paths.dims(heads, kv_heads, head_dim), kernels);
}

fn case_of(name: &str, paths: &HostPaths, d: AttentionCachedDims, kernels: bool) {
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    let cache = normal("cache", d.slots * d.cache_width(), 1.0);
    let exact = Tolerance { atol: 0.0, rtol: 0.0 };
    let tolerance = |p, output: &str| if output == "cache" { exact } else { d.tolerance(p) };
    let label = format!("{name}, {}/{} x {}, window {:?}", d.heads, d.kv_heads, d.head_dim, d.window);
    if !kernels {
        check_backend!(Cpu, label, |on: &_| runs::attention_cached_fwd(on, d, paths, &qkv, &cache), tolerance);
        check_bf16_cpu!(label, |on: &_| runs::attention_cached_fwd(on, d, paths, &qkv, &cache), tolerance);
        return;
    }
    check_kernels!(f32, label, |on: &_| runs::attention_cached_fwd(on, d, paths, &qkv, &cache), tolerance);
    check_kernels!(bf16, label, |on: &_| runs::attention_cached_fwd(on, d, paths, &qkv, &cache), tolerance);
}

#[test]
fn every_kind_of_path() {
    for (name, paths) in calls() {
        for heads in [(2, 2, 16), (3, 1, 64), (14, 2, 16), (2, 1, 80), (1, 1, 128), (80, 1, 4)] {
            case(name, &paths, heads, false);
        }
        case(name, &paths, (6, 1, 20), true);
    }
}

#[test]
fn kernels_support_every_head_size_and_ratio() {
    // Path lengths are near multiples of the steps (32 keys) and of the splits (256 keys).
    let paths = HostPaths::new(700)
        .sequence(&[0..31], 1)
        .sequence(&[40..73], 2)
        .sequence(&[100..355, 355..357], 2)
        .sequence(&[100..355, 400..658], 1);
    for heads in [(1, 1, 64), (3, 1, 80), (10, 2, 32), (2, 1, 128), (1, 1, 256), (14, 2, 4)] {
        case("splits", &paths, heads, true);
    }
}

/// Tests windows on every kind of path, and windows with lengths near the steps of 32 keys and the splits of
/// 256 keys.
#[test]
fn windows_of_every_kind_of_path() {
    for (name, paths) in calls() {
        for window in [1, 2, 19, 600] {
            case_of(name, &paths, paths.windowed((4, 2, 16), window), false);
        }
        case_of(name, &paths, paths.windowed((6, 1, 20), 5), true);
    }
    let paths = HostPaths::new(700).sequence(&[0..31], 1).sequence(&[100..355, 400..700], 3);
    for window in [1, 31, 32, 33, 255, 256, 257, 300, 555] {
        case_of("splits", &paths, paths.windowed((3, 1, 8), window), true);
    }
    // Some blocks of 512 keys lie outside the window, and the CPU skips them.
    let paths = HostPaths::new(1400).sequence(&[0..1300], 300).sequence(&[1300..1301], 1);
    case_of("blocks", &paths, paths.windowed((2, 1, 8), 60), false);
}

#[test]
fn soft_caps() {
    for (name, paths) in calls() {
        let d = AttentionCachedDims { softcap: Some(0.9), ..paths.dims(4, 2, 16) };
        case_of(name, &paths, d, false);
    }
    let paths = HostPaths::new(700).sequence(&[0..31], 1).sequence(&[100..355, 400..700], 3);
    for (heads, softcap) in [((3, 1, 8), 0.9), ((1, 1, 256), 3.0)] {
        case_of("splits", &paths, AttentionCachedDims { softcap: Some(softcap), ..paths.windowed(heads, 300) }, true);
    }
}

/// A sequence gets the same bits in a different batch, with different spans and in different cache rows.
#[test]
fn kernel_results_depend_only_on_the_path() {
    results_depend_only_on_the_path(1000);
    results_depend_only_on_the_path(270);
}

fn results_depend_only_on_the_path(window: usize) {
    use common::{On, emulator};
    use mapl::backend::Backend as _;
    use mapl::backend::kernels::Kernels;
    use mapl::backend::kernels::emulator::{Emulator, Schedule};
    let Some(device) = emulator(Schedule::Rising, 3) else { return };
    let backend = Kernels::<Emulator, bf16>::new(device);
    let on = On::new(&backend, <Kernels<Emulator, bf16>>::PRECISION);
    let (heads, kv_heads, head_dim, len) = (4, 2, 24, 300);
    let (fused, stored) = ((heads + 2 * kv_heads) * head_dim, 2 * kv_heads * head_dim);
    let (own, rows) = (normal("own", fused, 1.0), normal("rows", len * stored, 1.0));
    let placed = |spans: &[std::ops::Range<usize>], size: usize| {
        let mut cache = normal("others", size * stored, 1.0);
        for (row, at) in rows.chunks_exact(stored).zip(spans.iter().cloned().flatten()) {
            cache[at * stored..][..stored].copy_from_slice(row);
        }
        cache
    };
    let alone = HostPaths::new(len).sequence(&[0..len], 1);
    let first = runs::attention_cached_fwd(
        &on,
        alone.windowed((heads, kv_heads, head_dim), window),
        &alone,
        &own,
        &placed(&[0..len], len),
    );
    let spans = [400..513, 20..207];
    let among = HostPaths::new(600).sequence(&[300..370], 2).sequence(&spans, 1).sequence(&[590..591], 1);
    let qkv = [normal("before", 2 * fused, 1.0), own.clone(), normal("after", fused, 1.0)].concat();
    let d = among.windowed((heads, kv_heads, head_dim), window);
    let second = runs::attention_cached_fwd(&on, d, &among, &qkv, &placed(&spans, 600));
    let out = heads * head_dim;
    common::compare::bits("o", &second[0].1[2 * out..3 * out], &first[0].1);
}

#[test]
fn the_cost_counts_every_path_once() {
    let d = HostPaths::new(50).sequence(&[0..20, 30..31], 1).sequence(&[0..20, 40..42], 2).dims(4, 2, 8);
    assert_eq!((d.pairs, d.keys, d.longest_path), (21 + 21 + 22, 43, 22));
}
