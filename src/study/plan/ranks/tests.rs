//! Tests of collectives, timelines and units, with expected values computed by hand.

use super::queues::ring;
use super::*;
use crate::model::presets;

const FABRIC: Fabric = Fabric { link: 100e9, network: Some(10e9) };

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} and {b}");
}

#[test]
fn a_ring_sends_all_but_one_part_over_its_slowest_link() {
    let in_host = Ranks { ranks: 4, hosts: 1 };
    // Each GPU sends 300 MB of the 400 MB in 3 steps, which needs 3 ms plus latency.
    let (sent, seconds) = ring(Kind::ReduceScatter, 400_000_000, in_host, FABRIC);
    assert_eq!(sent, 300_000_000);
    near(seconds, 3e-3 + 8.4e-6 + 3.0 * 3.4e-6);
    let (sent, seconds) = ring(Kind::AllReduce, 400_000_000, in_host, FABRIC);
    assert_eq!(sent, 600_000_000);
    near(seconds, 6e-3 + 8.4e-6 + 6.0 * 3.4e-6);
    // With 2 hosts of 2 GPUs, the network is the slowest link, and one of 3 steps is between hosts.
    let (sent, seconds) = ring(Kind::AllGather, 400_000_000, Ranks { ranks: 4, hosts: 2 }, FABRIC);
    assert_eq!(sent, 300_000_000);
    near(seconds, 30e-3 + 8.4e-6 + 2.0 * 3.4e-6 + 14e-6);
    assert_eq!(ring(Kind::AllReduce, 400_000_000, Ranks { ranks: 1, hosts: 1 }, FABRIC), (0, 0.0));
}

const UNITS: Units = Units { layers: 2, layer: 50_000_000, embedding: 25_000_000, head: 0, adapters: None };
const WORK: Work = Work {
    frozen_layer: 0.0,
    forward_layer: 2e-3,
    backward_layer: 4e-3,
    ends: 1e-3,
    embedding_backward: 0.5e-3,
    update: 2e-3,
};
const TWO: Ranks = Ranks { ranks: 2, hosts: 1 };
/// Latency of one pass around two GPUs.
const LAP: f64 = 8.4e-6 + 3.4e-6;

#[test]
fn gradients_pass_under_the_backward_and_weights_under_nothing() {
    let plan = step(Sharding::ShardOptimizer, UNITS, WORK, TWO, FABRIC);
    // Sending a layer's gradient of 200 MB to the GPU with its shard needs 2 ms, less than the 4 ms of the
    // next layer's backward. The last layer's gradient overlaps with 0.5 ms of the embedding's backward. The
    // embedding's gradient follows and needs 1 ms.
    let backward = 2.0 * 2e-3 + 1e-3 + 2.0 * 4e-3;
    let reduced = backward + (2e-3 + LAP) + (1e-3 + LAP);
    // Each GPU then receives the 4 bytes of the other GPU's norm, updates half of the parameters, and gathers
    // 250 MB of weights, of which it sends 125 MB.
    let norms = LAP + 4.0 / 100e9;
    near(plan.step_seconds, reduced + norms + 1e-3 + (1.25e-3 + LAP));
    near(plan.exposed_seconds, plan.step_seconds - (backward + 0.5e-3 + 1e-3));
    let of = |name: &str| plan.collectives.iter().find(|found| found.collective.contains(name)).unwrap();
    let gradients = of("reduce of");
    // The head is tied, so there are 3 gradients.
    assert_eq!((gradients.calls, gradients.bytes, gradients.sent_bytes), (3, 500_000_000, 500_000_000));
    // Compute waits for the last layer's gradient, except for the 0.5 ms of the embedding's backward, and for
    // the embedding's gradient.
    near(gradients.exposed_seconds, reduced - (backward + 0.5e-3));
    near(plan.exposed_seconds, plan.collectives.iter().map(|found| found.exposed_seconds).sum());
    assert_eq!((of("of weights").calls, of("of weights").sent_bytes), (1, 125_000_000));
}

#[test]
fn sharded_weights_are_gathered_one_layer_ahead() {
    let plan = step(Sharding::ShardWeights, UNITS, WORK, TWO, FABRIC);
    let weights = |millions: f64| millions * 1e6 * 2.0 / 2.0 / 100e9 + LAP;
    // Compute waits for the embedding and the first layer; the second layer arrives during the first layer's
    // 2 ms.
    let forward = weights(25.0) + weights(50.0) + 2.0 * 2e-3 + 1e-3;
    // Compute waits for the first layer of the backward; the second arrives during the first layer's
    // backward.
    let backward = weights(50.0) + 2.0 * 4e-3;
    let last = (1e-3 + LAP) + (0.5e-3 + LAP);
    near(plan.step_seconds, forward + backward + last + (LAP + 4.0 / 100e9) + 1e-3);
    let gathers = plan.collectives.iter().find(|found| found.collective == GATHER).unwrap();
    assert_eq!((gathers.calls, gathers.bytes), (5, 2 * (25_000_000 + 4 * 50_000_000)));
}

#[test]
fn one_gpu_pays_nothing_and_scaling_is_relative_to_it() {
    let plan = RanksPlan::of((UNITS, WORK), TWO, FABRIC);
    let alone = WORK.total(2);
    near(alone, 2.0 * 6e-3 + 1e-3 + 0.5e-3 + 2e-3);
    assert_eq!(plan.scaling[0].step_seconds, [alone; 3]);
    let on: Vec<(usize, usize)> = plan.scaling.iter().map(|row| (row.on.ranks, row.on.hosts)).collect();
    assert_eq!(on, [(1, 1), (2, 1), (4, 1), (8, 1), (16, 2), (32, 4), (64, 8), (128, 16)]);
    for (sharding, i) in Sharding::ALL.into_iter().zip(0..) {
        near(plan.scaling[1].efficiency[i], alone / step(sharding, UNITS, WORK, TWO, FABRIC).step_seconds);
    }
    let text = plan.text();
    assert!(text.contains("Nothing in this table was measured") && text.contains("--shard-weights"), "{text}");
}

#[test]
fn units_of_the_published_models_have_their_parameters() {
    let units = |preset: &str| Units::of(&presets::config(preset).unwrap());
    let small = units("qwen2.5-0.5b");
    // The model has 24 layers and a tied head.
    assert_eq!((small.layers, small.embedding, small.head), (24, 151_936 * 896, 896));
    assert_eq!(small.total(), 494_032_768);
    let seven = units("qwen2.5-7b");
    assert_eq!(seven.total(), 7_615_616_512);
    let eight = units("llama-3.1-8b");
    assert_eq!((eight.embedding, eight.head), (128_256 * 4096, 128_256 * 4096 + 4096));
    assert_eq!(eight.total(), 8_030_261_248);
}

/// With adapters of 1 million parameters, 4 MB of gradients are summed and 2 MB of weights are gathered.
#[test]
fn of_adapters_only_their_own_gradients_are_summed() {
    let units = Units { adapters: Some(1_000_000), ..UNITS };
    let plan = |sharding| step(sharding, units, WORK, TWO, FABRIC);
    let found = |step: &SharedStep| -> Vec<(&'static str, u64, u64)> {
        step.collectives.iter().map(|of| (of.collective, of.calls, of.bytes)).collect()
    };
    let whole = plan(Sharding::Whole);
    assert_eq!(found(&whole), [("all-reduce of gradients", 1, 4_000_000)]);
    let compute = 2.0 * 6e-3 + 1e-3 + 0.5e-3;
    // The all-reduce sends 2 MB in each of its two passes.
    let summed = 40e-6 + 8.4e-6 + 2.0 * 3.4e-6;
    near(whole.step_seconds, compute + summed + 2e-3);
    let shards =
        [("reduce-scatter of gradients", 1, 4_000_000), (NORMS, 1, 8), ("all-gather of adapters", 1, 2_000_000)];
    let optimizer = plan(Sharding::ShardOptimizer);
    assert_eq!(found(&optimizer), shards);
    near(optimizer.step_seconds, compute + (20e-6 + LAP) + (LAP + 4.0 / 100e9) + 1e-3 + (10e-6 + LAP));
    // The sharded base weights are gathered as in a step without adapters.
    let weights = plan(Sharding::ShardWeights);
    assert_eq!(found(&weights)[0], (GATHER, 5, 2 * (25_000_000 + 4 * 50_000_000)));
    assert_eq!(found(&weights)[1..], shards);
}

/// On a slow network, compute also waits for gradient sums that are queued before a gather.
#[test]
fn no_collective_is_waited_for_longer_than_it_takes() {
    let slow = Fabric { link: 1e9, network: None };
    for sharding in Sharding::ALL {
        let plan = step(sharding, UNITS, WORK, TWO, slow);
        assert!(plan.collectives.iter().all(|found| found.exposed_seconds <= found.seconds * (1.0 + 1e-9)), "{plan:?}");
        near(plan.exposed_seconds, plan.collectives.iter().map(|found| found.exposed_seconds).sum());
    }
}
