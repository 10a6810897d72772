//! Memory plan of a run: limits bound every batch and parts follow their formulas. A plan that does not fit
//! is an error with its table and the largest batch that fits.

use common::fixtures::{group, groups, tiny_config};
use mapl::backend::contract::Precision;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::device::Properties;
use mapl::data::group::Kind;
use mapl::data::pack::{Batch, BatchLimits, ComparisonOptions, GroupSizes, pack_into};
use mapl::loss::objective::{Loss, LossOptions, Method};
use mapl::model::layout::Layout;
use mapl::model::lora::LoraSpec;
use mapl::model::lora::layout::LoraLayout;
use mapl::model::presets;
use mapl::train::batch::upload::DeviceBatch;
use mapl::train::memory::{MemoryInputs, MemoryPlan, PlannedGeneration, PlannedReference, Sharded};
use mapl::train::pack_options;

fn loss(method: Method) -> Loss {
    let options = LossOptions { beta: (method == Method::Dpo).then_some(0.1), ..LossOptions::default() };
    options.resolve(method, [1.0; 3], false).unwrap()
}

fn sizes(loss: &Loss, vocab: usize) -> GroupSizes {
    let comparison = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
    GroupSizes::measure(&groups(), &pack_options(loss, vocab, None), &comparison).unwrap()
}

/// Bytes of one part of a plan.
fn part(plan: &MemoryPlan, name: &str) -> u64 {
    plan.parts.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no part {name}")).1
}

/// Largest number of head rows of a group.
fn most_rows(batch: &Batch) -> usize {
    let starts = std::iter::once(0).chain(batch.group_ends.iter().map(|end| end.row));
    batch.group_ends.iter().zip(starts).map(|(end, start)| end.row - start).max().unwrap_or(0)
}

#[test]
fn limits_bound_every_batch_and_are_reached() {
    let all = groups();
    for method in [Method::Reward, Method::Dpo] {
        let config = tiny_config("qwen2", method == Method::Reward);
        let loss = loss(method);
        let (pack, comparison) = (
            pack_options(&loss, config.vocab, config.pad),
            ComparisonOptions { scale: loss.scale, margin_add: loss.margin },
        );
        let sizes = sizes(&loss, config.vocab);
        let mut batch = Batch::default();
        for count in 1..=all.len() {
            let limits = sizes.limits(count);
            let mut most = BatchLimits::default();
            // All cyclic runs of `count` neighbouring groups.
            for first in 0..all.len() {
                let members: Vec<_> = (0..count).map(|i| &all[(first + i) % all.len()]).collect();
                pack_into(&mut batch, &members, &pack, &comparison).unwrap();
                for (what, got, limit, top) in [
                    ("tokens", batch.tokens(), limits.tokens, &mut most.tokens),
                    ("rows", batch.head_rows(), limits.rows, &mut most.rows),
                    ("rows of a group", most_rows(&batch), limits.group_rows, &mut most.group_rows),
                    ("seqs", batch.seqs(), limits.seqs, &mut most.seqs),
                    ("comparisons", batch.comparison_count(), limits.comparisons, &mut most.comparisons),
                    ("segments", batch.segments(), limits.segments, &mut most.segments),
                    ("ancestors", batch.tree.ancestors.len(), limits.ancestors, &mut most.ancestors),
                    ("trees", batch.trees(), limits.trees, &mut most.trees),
                    ("path", batch.longest_path, limits.longest_path, &mut most.longest_path),
                ] {
                    assert!(got <= limit, "{count} groups from {first}: {got} {what}, limit {limit}");
                    *top = got.max(*top);
                }
                // Buffers reserved for the limits hold every batch without growing.
                let cpu = Cpu::new();
                let mut device = DeviceBatch::new(&cpu).unwrap();
                device.reserve(&cpu, &limits).unwrap();
                let room = device.capacity();
                device.upload(&cpu, &batch, [0.0; 3]).unwrap();
                assert_eq!(device.capacity(), room, "{count} groups from {first}");
            }
            if count == 1 || count == all.len() {
                let groups = limits.groups;
                assert_eq!(BatchLimits { groups, ..most }, limits, "{count} groups");
            }
        }
    }
}

#[test]
fn parts_of_the_plan_match_their_formulas() {
    let config = tiny_config("llama", false);
    let loss = loss(Method::Dpo);
    let sizes = sizes(&loss, config.vocab);
    let card = Properties { name: "card".into(), processors: 132, shared_bytes: 232_448, compute_capability: (9, 0) };
    let plan = |precision, kernels, available| {
        let subject = MemoryInputs {
            ranks: 1,
            sharded: Sharded::Nothing,
            head_rows: 0,
            generation: None,
            config: &config,
            lora: None,
            reference: PlannedReference::Model(&config),
            loss: &loss,
            precision,
            accumulation: 1,
            recompute: false,
            replays: false,
            kernels,
        };
        MemoryPlan::new(&subject, &sizes, 2, available).unwrap()
    };
    assert!(plan(Precision::F64, None, None).is_none());
    let layout = Layout::new(&config);
    let (len, norms) = (layout.len as u64, layout.norms as u64);
    let round = |bytes: u64| bytes.next_multiple_of(256);
    for (precision, act) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
        let plan = plan(precision, Some(&card), None).unwrap();
        let limits = sizes.limits(2);
        let rotary = 2 * round((limits.longest_path * config.head_dim / 2 * 4) as u64);
        assert_eq!(part(&plan, "weights"), round(len * act) + rotary);
        assert_eq!(part(&plan, "weights in full precision"), if act == 2 { round(len * 4) } else { 0 });
        // Includes a norm per 16 x 32 patch of a weight gradient.
        assert_eq!(part(&plan, "gradients"), round(len * 4) + round(norms * 4));
        assert_eq!(part(&plan, "AdamW moments"), 2 * round(len * 4));
        assert_eq!(part(&plan, "reference weights"), part(&plan, "weights"));
        assert!(part(&plan, "activations") > part(&plan, "reference activations"));
        assert!(part(&plan, "workspace of ops") > 0);
        assert_eq!(plan.workspace() as u64, part(&plan, "workspace of ops"));
        assert_eq!(plan.max_groups, None);
        assert!(plan.check().is_ok());
    }
    // On the CPU, the largest op of this model is the gates of the reference.
    let limits = sizes.limits(2);
    let gates = (limits.tokens * 2 * config.intermediate * 4) as u64;
    assert_eq!(plan(Precision::F32, None, None).unwrap().workspace() as u64, gates);
}

#[test]
fn the_plan_shows_the_effect_of_recomputation() {
    let mut config = tiny_config("llama", false);
    config.layers = 6;
    let loss = loss(Method::Dpo);
    let sizes = sizes(&loss, config.vocab);
    let plan = |recompute, available| {
        let subject = MemoryInputs {
            ranks: 1,
            sharded: Sharded::Nothing,
            head_rows: 0,
            generation: None,
            config: &config,
            lora: None,
            reference: PlannedReference::None,
            loss: &loss,
            precision: Precision::Bf16,
            recompute,
            replays: false,
            accumulation: 1,
            kernels: None,
        };
        MemoryPlan::new(&subject, &sizes, 1, available).unwrap().unwrap()
    };
    let (kept, recomputed) = (plan(false, None), plan(true, None));
    assert!(part(&recomputed, "activations") * 2 < part(&kept, "activations"));
    assert_eq!((kept.other_mode, recomputed.other_mode), ((recomputed.total(), None), (kept.total(), None)));
    assert!(kept.to_string().contains("  with --gradient-checkpointing"));
    assert!(recomputed.to_string().contains("  without --gradient-checkpointing"));
    let refused = plan(false, Some(recomputed.total())).check().unwrap_err().to_string();
    assert!(refused.contains("not even one group fits; with --gradient-checkpointing, 1 would"), "{refused}");
    assert!(plan(true, Some(recomputed.total())).check().is_ok());
}

#[test]
fn a_batch_that_does_not_fit_is_refused_with_the_largest_that_does() {
    let config = tiny_config("llama", false);
    let loss = loss(Method::Dpo);
    let sizes = sizes(&loss, config.vocab);
    let subject = MemoryInputs {
        ranks: 1,
        sharded: Sharded::Nothing,
        head_rows: 0,
        generation: None,
        config: &config,
        lora: None,
        reference: PlannedReference::None,
        loss: &loss,
        precision: Precision::F32,
        accumulation: 1,
        recompute: false,
        replays: false,
        kernels: None,
    };
    let plan = |batch, available| MemoryPlan::new(&subject, &sizes, batch, available).unwrap().unwrap();
    let (one, all) = (plan(1, None).total(), plan(sizes.groups(), None).total());
    assert!(one < all);
    for (available, most) in [(one - 1, 0), (one, 1), (all - 1, sizes.groups() - 1), (all, sizes.groups())] {
        let plan = plan(sizes.groups(), Some(available));
        assert_eq!(plan.max_groups, Some(most), "{available} bytes");
        let Err(error) = plan.check() else {
            assert_eq!(most, sizes.groups());
            continue;
        };
        assert_eq!(error.exit_code(), 7);
        let text = error.to_string();
        let advice =
            if most == 0 { "not even one group".to_owned() } else { format!("--per-device-train-batch-size {most}") };
        for needle in ["activations", "gradients", "total", "MiB free", &advice] {
            assert!(text.contains(needle), "no {needle:?} in {text}");
        }
    }
}

/// DPO of SmolLM2 135M on pairs with prompts of 256 tokens and responses of 128.
#[test]
fn adapters_have_no_gradients_or_moments_of_frozen_weights() {
    let config = presets::config("smollm2-135m").unwrap();
    let loss = loss(Method::Dpo);
    let ids = |from: usize, count: usize| -> Vec<u32> { (from..from + count).map(|id| id as u32).collect() };
    let (prompt, chosen, rejected) = (ids(10, 256), ids(300, 128), ids(500, 128));
    let pair = group("pair", &[&prompt], &[&chosen, &rejected], &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)])]);
    let comparison = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
    let pack = pack_options(&loss, config.vocab, None);
    let sizes = GroupSizes::measure(&vec![pair; 4], &pack, &comparison).unwrap();
    let spec = LoraSpec::new(&config, 16, 32, false, &[]).unwrap();
    let card = Properties { name: "card".into(), processors: 132, shared_bytes: 232_448, compute_capability: (9, 0) };
    for (precision, kernels) in [(Precision::F32, None), (Precision::Bf16, Some(&card))] {
        for (batch, recompute) in [(1, false), (4, true)] {
            let plan = |lora: Option<&LoraSpec>| {
                let reference = match lora {
                    Some(_) => PlannedReference::Base,
                    None => PlannedReference::Model(&config),
                };
                let (config, loss) = (&config, &loss);
                let subject = MemoryInputs {
                    ranks: 1,
                    sharded: Sharded::Nothing,
                    head_rows: 0,
                    generation: None,
                    config,
                    lora,
                    reference,
                    loss,
                    precision,
                    accumulation: 1,
                    recompute,
                    replays: false,
                    kernels,
                };
                MemoryPlan::new(&subject, &sizes, batch, None).unwrap().unwrap()
            };
            let (full, adapters) = (plan(None), plan(Some(&spec)));
            let share = adapters.total() as f64 / full.total() as f64;
            println!("{precision:?}, {batch} pairs, recompute {recompute}: {share:.2} of\n{full}\nfor\n{adapters}");
            assert!(share < 0.6, "{share}");
            assert_eq!(part(&adapters, "weights"), part(&full, "weights"));
            assert_eq!(part(&adapters, "reference weights"), 0);
            let len = LoraLayout::new(&config, spec.clone()).len as u64;
            assert!(len * 20 < Layout::new(&config).len as u64, "{len}");
            for (name, bytes) in [("gradients", 4), ("AdamW moments", 8)] {
                let of_adapters = part(&adapters, name);
                assert!((len * bytes..len * bytes + 1024).contains(&of_adapters), "{name}: {of_adapters}");
            }
            let stored = if precision == Precision::Bf16 { 2 } else { 4 };
            assert!((len * stored..len * stored + 256).contains(&part(&adapters, "adapter weights")));
        }
    }
}

/// Text generation at evaluations adds its KV cache to the plan, and nothing else.
#[test]
fn the_plan_counts_the_cache_of_generation() {
    let config = tiny_config("llama", false);
    let loss = loss(Method::Dpo);
    let sizes = sizes(&loss, config.vocab);
    let plan = |slots: Option<usize>| {
        let subject = MemoryInputs {
            ranks: 1,
            sharded: Sharded::Nothing,
            head_rows: 0,
            generation: slots.map(|slots| PlannedGeneration { slots, tokens: 64, rows: 4, longest: 8 }),
            config: &config,
            lora: None,
            reference: PlannedReference::None,
            loss: &loss,
            precision: Precision::F32,
            accumulation: 1,
            recompute: false,
            replays: false,
            kernels: None,
        };
        MemoryPlan::new(&subject, &sizes, 2, None).unwrap().unwrap()
    };
    let [none, small, large] = [None, Some(1000), Some(2000)].map(plan);
    assert_eq!(part(&none, "generation"), 0);
    let rows = |slots: usize| {
        (config.layers * (slots * 2 * config.kv_heads * config.head_dim * 4).next_multiple_of(256)) as u64
    };
    assert!(part(&small, "generation") > rows(1000));
    assert_eq!(part(&large, "generation") - part(&small, "generation"), rows(2000) - rows(1000));
    assert_eq!(large.total() - none.total(), part(&large, "generation"));
}

/// Bytes of each of 4 ranks. With a sharded optimizer a rank holds a quarter of the moments and of the
/// full-precision weights. With sharded weights it holds a quarter of all state, and buffers (windows) for
/// the gathered weights of two layers and of the embedding or the head.
#[test]
fn the_plan_shows_the_bytes_of_each_rank_and_names_what_fits() {
    // Matrices are large, so that the padding of the norms' slices hardly counts.
    let mut config = tiny_config("llama", false);
    (config.layers, config.intermediate) = (8, 2048);
    let loss = loss(Method::Dpo);
    let sizes = sizes(&loss, config.vocab);
    let plan = |sharded, available| {
        let subject = MemoryInputs {
            ranks: 4,
            sharded,
            head_rows: 0,
            generation: None,
            config: &config,
            lora: None,
            reference: PlannedReference::Model(&config),
            loss: &loss,
            precision: Precision::Bf16,
            accumulation: 1,
            recompute: true,
            replays: false,
            kernels: None,
        };
        MemoryPlan::new(&subject, &sizes, 1, available).unwrap().unwrap()
    };
    let [whole, optimizer, weights] =
        [Sharded::Nothing, Sharded::Optimizer, Sharded::Weights].map(|sharded| plan(sharded, None));
    let quarter = |name: &str| part(&whole, name) as f64 / 4.0;
    let near = |what: &str, got: u64, expected: f64| {
        let share = got as f64 / expected;
        assert!((0.97..1.1).contains(&share), "{what}: {got} of {expected}");
    };
    for name in ["AdamW moments", "weights in full precision"] {
        near(name, part(&optimizer, name), quarter(name));
        near(name, part(&weights, name), quarter(name));
    }
    for name in ["weights", "gradients", "reference weights"] {
        assert_eq!(part(&optimizer, name), part(&whole, name), "{name}");
        near(name, part(&weights, name), quarter(name));
    }
    let layout = Layout::new(&config);
    let layer = (layout.layers[1].qkv.start - layout.layers[0].qkv.start) as u64;
    let windows = 2 * layer + (config.vocab * config.hidden) as u64;
    near("gathered weights", part(&weights, "gathered weights"), 2.0 * windows as f64);
    near("gradients of units", part(&weights, "gradients of units"), 4.0 * windows as f64);
    let totals = [&whole, &optimizer, &weights].map(MemoryPlan::total);
    assert!(totals[0] > totals[1] && totals[1] > totals[2], "{totals:?}");
    let line = optimizer.summary();
    for total in totals {
        assert!(line.contains(&format!("{} MiB with --shard", total.div_ceil(1 << 20))), "{line}");
    }
    for (available, flag) in [(totals[1], "--shard-optimizer"), (totals[2], "--shard-weights")] {
        let refused = plan(Sharded::Nothing, Some(available)).check().unwrap_err().to_string();
        assert!(refused.contains(&format!("with {flag} each rank needs")), "{refused}");
    }
}
