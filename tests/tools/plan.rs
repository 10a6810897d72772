//! The plan of a step agrees with hand calculations, op by op.

use mapl::model::presets;
use mapl::study::plan::decode::DecodePlan;
use mapl::study::plan::memory::RankMemory;
use mapl::study::plan::{GpuRates, PlanOptions, StepPlan, Workload};

/// Plan of a DPO step of Qwen2.5-0.5B: 16 pairs, prompts of 512 tokens, responses of 256, with a
/// reference.
fn qwen_step() -> StepPlan {
    let workload = Workload { pairs: 16, prompt: 512, response: 256, dpo: true, lora_rank: None };
    StepPlan::new(&presets::config("qwen2.5-0.5b").unwrap(), &workload, &GpuRates::named("h200").unwrap()).unwrap()
}

fn near(what: &str, got: f64, expected: f64) {
    assert!((got / expected - 1.0).abs() < 0.03, "{what}: {got} against {expected}");
}

/// Factor of tera.
const T: f64 = 1e12;

#[test]
fn flops_of_a_step_match_the_hand_calculation() {
    let plan = qwen_step();
    // The last token of a response predicts nothing, so the batch leaves it out; the hand
    // calculation counts it.
    assert_eq!((plan.tokens, plan.head_rows), (16_384 - 32, 8_192));
    // Layer weights times 2 FLOPs: policy forward, backward (twice the forward), and reference
    // forward.
    let (hidden, inner, layers, query, kv) = (896.0, 4864.0, 24.0, 896.0, 128.0);
    let weights = layers * (hidden * (query + 2.0 * kv) + query * hidden + 3.0 * hidden * inner);
    let body = plan.flops_of("linear_") as f64;
    near("body", body, 8.0 * weights * 16_384.0);
    near("body by hand", body, 46.9 * T);
    // Visible pairs of a tree: within the prompt, and of each response with itself and the prompt.
    let visible = 512.0 * 513.0 / 2.0 + 2.0 * (256.0 * 512.0 + 256.0 * 257.0 / 2.0);
    let attention = plan.flops_of("attention_") as f64;
    near("attention", attention, (4.0 + 10.0 + 4.0) * 64.0 * 14.0 * layers * 16.0 * visible);
    near("attention by hand", attention, 2.8 * T);
    // The head's GEMMs without the recomputation of logits.
    let head = (plan.flops_of("head_") - plan.recomputed_flops) as f64;
    near("head", head, 4.0 * 2.0 * 8_192.0 * 896.0 * 151_936.0);
    near("head by hand", head, 8.9 * T);
    near("total", (plan.flops - plan.recomputed_flops) as f64, 58.7 * T);
    // The gradient norm reads only gradients without norms from a layer's GEMMs: those of the
    // embedding, norms and biases.
    let read = plan.ops.iter().find(|op| op.op == "grad_norm").unwrap().bytes as f64;
    near("gradient norm", read, 4.0 * (151_936.0 * hidden + weights / 512.0));
    near("AdamW", plan.ops.iter().find(|op| op.op == "adamw").unwrap().floor_seconds, 3.4e-3);
}

#[test]
fn floors_match_the_rates_and_tiles_match_the_sizes() {
    let plan = qwen_step();
    let op = |name: &str| plan.ops.iter().find(|op| op.op == name).unwrap();
    let forward = op("linear_fwd");
    assert_eq!((forward.calls, forward.bound), (2 * 24 * 2, "product"));
    assert_eq!(forward.floor_seconds, forward.flops as f64 / 790e12);
    let norm = op("norm_fwd");
    assert_eq!((norm.calls, norm.bound), (2 * 49, "copy"));
    assert_eq!(norm.floor_seconds, norm.bytes as f64 / 4.3e12);
    assert_eq!(plan.floor_seconds, plan.ops.iter().map(|op| op.floor_seconds).sum::<f64>());
    assert_eq!(plan.predicted_seconds, plan.ops.iter().map(|op| op.predicted_seconds).sum::<f64>());
    // The output, down and fused QKV projections, run by policy and reference.
    for (op, n, k) in [("linear_fwd", 896, 896), ("linear_fwd", 896, 4864), ("linear_rope_fwd", 1152, 896)] {
        let found = plan.products.iter().find(|p| (p.op, p.m, p.n, p.k) == (op, 16_352, n, k)).unwrap();
        assert_eq!(found.calls, 2 * 24, "{found:?}");
        let floor = 2.0 * (16_352 * n * k) as f64 / 790e12;
        assert!(found.predicted_seconds > floor && found.predicted_seconds < 1.6 * floor + 10e-6, "{found:?}");
    }
    // Rotations are in the epilogues of the QKV GEMM and of attention's gradients.
    assert!(plan.ops.iter().all(|op| !op.op.starts_with("rope_")) && op("attention_rope_bwd").calls == 24);
    assert!(plan.launches.iter().all(|launch| !launch.kernel.starts_with("rope_")));
    // The head: one GEMM for the reference, three for the policy and its gradients.
    let head: Vec<(&str, u64)> =
        plan.products.iter().filter(|p| p.op.starts_with("head_")).map(|p| (p.op, p.calls)).collect();
    assert_eq!(head.iter().map(|(_, calls)| calls).sum::<u64>(), 4, "{head:?}");
    assert_eq!(plan.recomputed_flops, 0);
    for launch in &plan.launches {
        if let (Some(held), Some(waves)) = (launch.blocks_held, launch.waves) {
            assert_eq!(waves, launch.tiles as f64 / (f64::from(held) * 132.0), "{}", launch.kernel);
            assert!(held >= 1 && launch.efficiency.unwrap() <= 1.0, "{}", launch.kernel);
        }
    }
    let text = plan.text();
    for part in
        ["16352 tokens", "linear_bwd_weight", "attention_bwd", "workspace of ops", "predicted us", "predicted ms"]
    {
        assert!(text.contains(part), "{text}");
    }
}

/// Time by op of the recorded step, in milliseconds.
fn recorded() -> Vec<(String, f64)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/record/nvidia-h200/2026-11-27-8ddee10-step.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let op = |op: &serde_json::Value| (op["op"].as_str().unwrap().to_owned(), op["milliseconds"].as_f64().unwrap());
    record["ops"].as_array().unwrap().iter().map(op).collect()
}

/// The plan uses the attention, norm and bias-gradient kernels of the record, and the current versions of all
/// other kernels. The prediction holds for the sum and for the ops with the longest times.
#[test]
fn the_recorded_step_is_predicted_within_a_tenth() {
    let options = PlanOptions { recorded_kernels: true, ..PlanOptions::default() };
    let workload = qwen_step().workload;
    let card = GpuRates::named("h200").unwrap();
    let plan = StepPlan::with(&presets::config("qwen2.5-0.5b").unwrap(), &workload, &card, options).unwrap();
    let ratio = 1e3 * plan.predicted_seconds / 133.9;
    assert!((0.9..=1.1).contains(&ratio), "{ratio}");
    for (op, ms) in recorded().iter().filter(|(op, ms)| *ms > 2.5 && op != "linear_glu_bwd") {
        let predicted = 1e3 * plan.ops.iter().find(|o| o.op == *op).unwrap().predicted_seconds;
        assert!((0.85..=1.15).contains(&(predicted / ms)), "{op}: {predicted} against {ms}");
    }
}

/// Fewer head rows at once need less memory, and the step takes hardly longer.
#[test]
fn head_rows_of_a_planned_step() {
    let whole = qwen_step();
    let options = PlanOptions { head_rows: Some(2048), ..PlanOptions::default() };
    let config = presets::config("qwen2.5-0.5b").unwrap();
    let plan = StepPlan::with(&config, &whole.workload, &whole.card, options).unwrap();
    assert!(plan.workspace_bytes as f64 <= 0.6 * f64::from(1 << 30), "{}", plan.workspace_bytes);
    assert!(whole.workspace_bytes > 2 << 30);
    assert!(plan.predicted_seconds < 1.005 * whole.predicted_seconds);
}

#[test]
fn reward_steps_have_no_lm_head_and_no_reference() {
    let workload = Workload { pairs: 4, prompt: 32, response: 16, dpo: false, lora_rank: None };
    let card = GpuRates::named("h200").unwrap();
    let plan = StepPlan::new(&presets::config("qwen2-tiny").unwrap(), &workload, &card).unwrap();
    assert_eq!((plan.tokens, plan.head_rows), (4 * 64, 0));
    assert_eq!(plan.flops_of("head_"), 0);
    assert_eq!(plan.ops.iter().find(|op| op.op == "linear_fwd").unwrap().calls, 2 * 3);
    for bad in [
        Workload { pairs: 0, ..workload.clone() },
        Workload { pairs: 100_000_000, ..workload.clone() },
        Workload { response: 0, ..workload.clone() },
        Workload { prompt: 1 << 20, ..workload },
    ] {
        let error = StepPlan::new(&presets::config("qwen2-tiny").unwrap(), &bad, &card).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
    assert_eq!(GpuRates::named("h900").unwrap_err().exit_code(), 2);
}

#[test]
fn steps_of_adapters_have_no_gradients_of_frozen_weights() {
    let full = qwen_step();
    let workload = Workload { lora_rank: Some(16), ..full.workload.clone() };
    let card = GpuRates::named("h200").unwrap();
    let plan = StepPlan::new(&presets::config("qwen2.5-0.5b").unwrap(), &workload, &card).unwrap();
    let op = |plan: &StepPlan, name: &str| plan.ops.iter().find(|op| op.op == name).cloned();
    assert_eq!(plan.parameters, full.parameters);
    // 24 layers of A and B: rank times inputs and outputs of seven linear layers.
    let layer = 3 * 896 + (896 + 2 * 128) + 2 * 896 + 2 * 896 + 2 * 4864 + 4864 + 896;
    near("trained", plan.trained_parameters as f64, (24 * 16 * layer) as f64);
    assert!(op(&plan, "embedding_bwd").is_none() && op(&plan, "bias_bwd").is_none());
    // The head has four GEMMs, including one of the reference. The gradient of its weight is left out.
    near("head", plan.flops_of("head_") as f64, 0.75 * full.flops_of("head_") as f64);
    let weight_gradients = |plan: &StepPlan| plan.flops_of("linear_bwd_weight");
    assert!(weight_gradients(&plan) * 10 < weight_gradients(&full), "{}", weight_gradients(&plan));
    let moments = |plan: &StepPlan| op(plan, "adamw").unwrap().bytes;
    assert!(moments(&plan) * 50 < moments(&full), "{}", moments(&plan));
}

/// A decoding step reads the weights once and the KV cache of its sequences.
#[test]
fn the_floor_of_decoding_is_that_of_weights_and_cache() {
    let config = presets::config("qwen2.5-0.5b").unwrap();
    let gpu = GpuRates::named("h200").unwrap();
    let plan = |rows, context| DecodePlan::new(&config, rows, context, &gpu).unwrap();
    let small = plan(8, 640);
    // Keys and values of 24 layers with 2 heads of 64 in bf16.
    assert_eq!(small.cache_bytes, 8 * 640 * 24 * 2 * 128 * 2);
    near("weights", small.weight_bytes as f64, 2.0 * 494e6);
    assert_eq!(small.byte_floor_seconds, (small.weight_bytes + small.cache_bytes) as f64 / gpu.copy);
    // The ops read little more than the bytes that the lower bound counts.
    near("sum of the ops", small.floor_seconds, small.byte_floor_seconds);
    assert!(small.predicted_seconds >= small.floor_seconds);
    let bytes = |plan: &DecodePlan, op: &str| plan.ops.iter().find(|one| one.op == op).unwrap().bytes;
    let long = plan(8, 1280);
    assert_eq!(bytes(&long, "linear_fwd"), bytes(&small, "linear_fwd"));
    near("cache", bytes(&long, "attention_cached_fwd") as f64, long.cache_bytes as f64);
    assert!(small.text().contains("8 sequences with 640 tokens each"));
    for (rows, context) in [(0, 5), (2, 0), (1, 1 << 20)] {
        assert!(DecodePlan::new(&config, rows, context, &gpu).is_err());
    }
}

/// Llama-3.1-8B in bf16 on 4 GPUs of 80 GB, DPO of 4 pairs per GPU. Weights, gradients and optimiser state
/// have 18 bytes per parameter, and the reference 2. They fit only with sharded weights, where a GPU holds a
/// quarter of all of them.
#[test]
fn an_8b_model_fits_4_gpus_with_sharded_weights() {
    let config = presets::config("llama-3.1-8b").unwrap();
    let workload = Workload { pairs: 4, prompt: 512, response: 256, dpo: true, lora_rank: None };
    let plan = RankMemory::new(&config, &workload, &GpuRates::named("h100").unwrap(), 4, Some(80_000_000_000)).unwrap();
    let fits = plan.fits.as_deref().unwrap();
    assert!(fits.starts_with("--shard-weights"), "{fits}");
    let choice = |flags: &str| plan.choices.iter().find(|choice| choice.flags == flags).unwrap();
    let part = |flags: &str, name: &str| choice(flags).parts.iter().find(|(part, _)| part == name).unwrap().1 as f64;
    let (parameters, layer, head) = (8.030e9, 218.1e6, 525.3e6);
    for (name, bytes) in [
        ("weights", 2.0),
        ("weights in full precision", 4.0),
        ("gradients", 4.0),
        ("AdamW moments", 8.0),
        ("reference weights", 2.0),
    ] {
        near(name, part("--shard-weights", name), bytes * parameters / 4.0);
        near(name, part("--shard-optimizer off", name), bytes * parameters);
    }
    near("windows", part("--shard-weights", "gathered weights"), 2.0 * (2.0 * layer + head));
    near("gradients in windows", part("--shard-weights", "gradients of units"), 4.0 * (2.0 * layer + head));
    let text = plan.text();
    assert!(text.contains(&format!("80.0 GB per GPU: the first choice that fits is {fits}")), "{text}");
    assert!(choice("--shard-optimizer --gradient-checkpointing").total > 80_000_000_000);
    // Adapters of rank 16 have 16 x 81,920 parameters per layer. The base is the reference, and only its
    // weights are large.
    let workload = Workload { lora_rank: Some(16), ..workload };
    let adapted =
        RankMemory::new(&config, &workload, &GpuRates::named("h100").unwrap(), 4, Some(80_000_000_000)).unwrap();
    let bytes = |choice: usize, name: &str| {
        let part = adapted.choices[choice].parts.iter().find(|(part, _)| part == name);
        part.map_or(0.0, |(_, bytes)| *bytes as f64)
    };
    for (choice, share) in [(0, 1.0), (1, 0.25), (2, 0.25)] {
        near("moments of adapters", bytes(choice, "AdamW moments"), 8.0 * share * 32.0 * 16.0 * 81_920.0);
    }
    near("weights of the base", bytes(0, "weights"), 2.0 * parameters);
    near("slices of the base", bytes(2, "weights"), 2.0 * parameters / 4.0);
    assert!(bytes(0, "reference weights") == 0.0 && adapted.fits.as_deref() == Some("--shard-optimizer off"));
}
