//! Attention over a cache against the reference: every kind of path of `common::paths`, several head
//! sizes and ratios. The reference equals attention over whole sequences (`tests/ops/gradients`).

use common::check_backend;
use common::paths::{HostPaths, calls};
use common::{normal, runs};
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;

fn case(name: &str, paths: &HostPaths, (heads, kv_heads, head_dim): (usize, usize, usize)) {
    let d = paths.dims(heads, kv_heads, head_dim);
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    let cache = normal("cache", d.slots * d.cache_width(), 1.0);
    let tolerance =
        |p, output: &str| if output == "cache" { Tolerance { atol: 0.0, rtol: 0.0 } } else { d.tolerance(p) };
    let label = format!("{name}, {heads}/{kv_heads} x {head_dim}");
    check_backend!(Cpu, label, |on: &_| runs::attention_cached_fwd(on, d, paths, &qkv, &cache), tolerance);
}

#[test]
fn every_kind_of_path() {
    for (name, paths) in calls() {
        for heads in [(2, 2, 16), (3, 1, 64), (14, 2, 16), (2, 1, 80), (1, 1, 128), (80, 1, 4)] {
            case(name, &paths, heads);
        }
    }
}

#[test]
fn the_cost_counts_every_path_once() {
    let d = HostPaths::new(50).sequence(&[0..20, 30..31], 1).sequence(&[0..20, 40..42], 2).dims(4, 2, 8);
    assert_eq!((d.pairs, d.keys, d.longest_path), (21 + 21 + 22, 43, 22));
}
