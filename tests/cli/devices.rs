//! Tests that devices agree: emulated kernels match the CPU, checkpoints move between devices, and runs
//! repeat bit for bit.

use mapl::backend::kernels::emulator::Emulator;
use serde_json::Value;

use crate::workbench::{Bench, full};

/// Whether this build has the emulator; prints `SKIPPED` if it does not.
fn emulated() -> bool {
    match Emulator::new() {
        Ok(_) => true,
        Err(why) => {
            assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
            println!("SKIPPED: {why}");
            false
        }
    }
}

/// A bench with `tiny/`, a model with 2 layers and hidden size 64, and `few.jsonl`, the first three groups of
/// `groups.jsonl`.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.run("init --preset qwen2-tiny --tokenizer tok --output-dir tiny --seed 7").ok();
    let groups = String::from_utf8(bench.bytes("groups.jsonl")).unwrap();
    bench.write("few.jsonl", groups.split_inclusive('\n').take(3).collect::<String>());
    bench
}

/// Groups per step: 1, or 2 with `MAPL_TEST_FULL=1`.
fn batch() -> usize {
    if full() { 2 } else { 1 }
}

fn train(method: &str, rest: &str) -> String {
    format!(
        "{method} --model tiny --train-file groups.jsonl --learning-rate 1e-3 --per-device-train-batch-size {} {rest}",
        batch()
    )
}

fn losses(bench: &Bench, run: &str) -> Vec<f64> {
    bench.metrics(run, "train").iter().map(|event| event["loss"].as_f64().unwrap()).collect()
}

/// Largest difference between the losses of a step, relative to the loss if it exceeds 1.
fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max)
}

/// Tolerance of bf16 losses. bf16 has 8 significant bits: weights and activations have a relative
/// rounding error of 2^-9. After about 12 roundings in each of 2 layers, a score of order 1 is off
/// by about 1 %. The mean over a batch's comparisons is off by less.
const BF16: f64 = 2e-2;

/// Three steps are enough to show a wrong gradient or optimiser; five run with `MAPL_TEST_FULL=1`.
#[test]
fn losses_of_some_steps_on_the_emulator_match_the_cpu() {
    if !emulated() {
        return;
    }
    let bench = bench();
    let steps = if full() { 5 } else { 3 };
    for method in ["dpo", "reward"] {
        for (name, device) in [("cpu", "cpu"), ("f32", "emulator --dtype f32"), ("bf16", "emulator")] {
            let words = train(method, &format!("--max-steps {steps} --output-dir {method}-{name} --device {device}"));
            let done = bench.run(&words).ok();
            assert_eq!(done.out.contains("identity check passed"), method == "dpo", "{}", done.out);
        }
        let cpu = losses(&bench, &format!("{method}-cpu"));
        let (f32, bf16) = (losses(&bench, &format!("{method}-f32")), losses(&bench, &format!("{method}-bf16")));
        println!("{method}: f32 {:.1e}, bf16 {:.1e}", max_difference(&f32, &cpu), max_difference(&bf16, &cpu));
        assert!(cpu.len() == steps && cpu[steps - 1] != cpu[0]);
        assert!(max_difference(&f32, &cpu) < 1e-4, "{method}: {f32:?} {cpu:?}");
        assert!(max_difference(&bf16, &cpu) < BF16, "{method}: {bf16:?} {cpu:?}");
        if method == "dpo" {
            // The losses of base, intra and inter comparisons are each ln 2 rounded to f32. In any
            // precision the difference of equal scores is 0.
            let exact = 3.0 * f64::from(std::f32::consts::LN_2);
            assert!(
                [cpu[0], f32[0], bf16[0]].iter().all(|loss| (loss - exact).abs() < 1e-12),
                "{cpu:?} {f32:?} {bf16:?}"
            );
        }
    }
}

/// With Hopper kernels, policy and reference agree before the first step although only the policy stores
/// exponentials of its logits. Cached reference log-probs give the same bits as the online reference, and
/// losses match the CPU.
#[test]
fn steps_with_hopper_kernels_match_the_cpu() {
    if !emulated() {
        return;
    }
    let bench = bench();
    let words = |run: &str, rest: &str| train("dpo", &format!("--max-steps 2 --output-dir {run} {rest}"));
    bench.run(&words("cpu", "--device cpu")).ok();
    for (run, rest) in [("online", ""), ("stored", "--precompute-ref-log-probs")] {
        let done = bench.run_with(&words(run, &format!("--device emulator {rest}")), ("MAPL_SM90", "1")).ok();
        assert!(done.out.contains("identity check passed"), "{}", done.out);
    }
    let (cpu, hopper) = (losses(&bench, "cpu"), losses(&bench, "online"));
    assert!((hopper[0] - 3.0 * f64::from(std::f32::consts::LN_2)).abs() < 1e-12, "{hopper:?}");
    assert!(hopper[1] != hopper[0] && max_difference(&hopper, &cpu) < BF16, "{hopper:?} {cpu:?}");
    assert_eq!(bench.metrics("online", "train"), bench.metrics("stored", "train"));
    assert!(bench.bytes("online/model.safetensors") == bench.bytes("stored/model.safetensors"));
}

#[test]
fn a_cached_reference_equals_the_online_one_on_the_emulator_and_runs_repeat() {
    if !emulated() {
        return;
    }
    let bench = bench();
    let cache = bench.at("cache");
    let run = |name: &str, rest: &str| {
        let words = train("dpo", &format!("--max-steps 2 --save-steps 2 --output-dir {name} --device emulator {rest}"));
        bench.run_with(&words, ("MAPL_CACHE_DIR", cache.to_str().unwrap())).ok()
    };
    run("a", "");
    run("b", "");
    let cached = run("c", "--precompute-ref-log-probs");
    assert!(cached.out.contains("identity check passed"), "{}", cached.out);
    for other in ["b", "c"] {
        assert_eq!(bench.metrics("a", "train"), bench.metrics(other, "train"), "{other}");
        for file in ["model.safetensors", "checkpoint-2/state/optimizer-rank00000.safetensors"] {
            assert!(bench.bytes(&format!("a/{file}")) == bench.bytes(&format!("{other}/{file}")), "{file} of {other}");
        }
    }
}

#[test]
fn checkpoints_move_between_devices() {
    if !emulated() {
        return;
    }
    let bench = bench();
    let common = "--warmup-steps 1 --save-steps 1";
    bench.run(&train("reward", &format!("--max-steps 3 --output-dir whole --device cpu {common}"))).ok();
    let whole = losses(&bench, "whole");
    for (dtype, tolerance) in [("f32", 1e-4), ("bf16", BF16)] {
        let out = format!("moved-{dtype}");
        let go = |device: &str, stop: u64, resume: &str| {
            let words =
                train("reward", &format!("--max-steps 3 --output-dir {out} --device {device} {common} {resume}"));
            bench.run(&words).ok();
            // Removes the later checkpoints, as if the run had stopped at step `stop`.
            for step in (stop + 1)..=3 {
                let folder = bench.at(&format!("{out}/checkpoint-{step}"));
                if folder.exists() {
                    std::fs::remove_dir_all(folder).unwrap();
                }
            }
        };
        let kernels = format!("emulator --dtype {dtype}");
        go("cpu", 1, "");
        go(&kernels, 2, "--resume-from-checkpoint true");
        go("cpu", 3, "--resume-from-checkpoint true");
        let moved = losses(&bench, &out);
        println!("{dtype}: {:.1e}", max_difference(&moved, &whole));
        assert_eq!(bench.metrics(&out, "event").len(), 2);
        assert_eq!(moved[0], whole[0]);
        assert!(moved[1..] != whole[1..], "equal to the CPU's bits, so the emulator was not used");
        assert!(max_difference(&moved, &whole) < tolerance, "{dtype}: {moved:?} {whole:?}");
    }
}

/// Runs three steps, which include updates after the warm-up; with `MAPL_TEST_FULL=1`, runs 20 steps.
#[test]
fn quickstart_reward_losses_on_the_emulator_match_the_cpu() {
    if !emulated() {
        return;
    }
    let bench = Bench::new();
    let (steps, warmup) = if full() { (20, 5) } else { (3, 1) };
    bench.run("quickstart --scale 0.001 --equal-compute none --output-dir q --device cpu").ok();
    for (run, device) in [("on-cpu", "cpu"), ("on-kernels", "emulator --dtype f32")] {
        // These are the settings of the quick start's run `reward-mapl`, with fewer steps and one group per
        // step.
        let words = format!(
            "--max-steps {steps} --lr-scheduler-type linear --learning-rate 6e-4 --warmup-steps {warmup} --objective rows \
             --per-device-train-batch-size 1"
        );
        let files = format!("--model q/sft --train-file q/train-mapl.jsonl --output-dir {run}");
        bench.run(&format!("reward {files} {words} --device {device}")).ok();
    }
    let (cpu, kernels) = (losses(&bench, "on-cpu"), losses(&bench, "on-kernels"));
    println!("{:.1e}: {cpu:?} {kernels:?}", max_difference(&kernels, &cpu));
    assert!(cpu.len() == steps && max_difference(&kernels, &cpu) < 1e-4, "{cpu:?} {kernels:?}");
}

#[test]
fn sft_losses_and_scores_on_the_emulator_match_the_cpu() {
    if !emulated() {
        return;
    }
    let bench = bench();
    for (name, device) in [("cpu", "cpu"), ("kernels", "emulator --dtype f32")] {
        bench.run(&train("sft", &format!("--max-steps 2 --output-dir sft-{name} --device {device}"))).ok();
        bench.run(&format!("score --model tiny --input few.jsonl --output {name}.jsonl --device {device}")).ok();
        bench.run(&format!("eval --model tiny --input few.jsonl --output {name}.json --device {device}")).ok();
    }
    let (cpu, kernels) = (losses(&bench, "sft-cpu"), losses(&bench, "sft-kernels"));
    assert!(max_difference(&kernels, &cpu) < 1e-4, "{kernels:?} {cpu:?}");
    let close = |a: &Value, b: &Value| check_close(a, b, 1e-4).unwrap_or_else(|why| panic!("{why}"));
    let (cpu, kernels) = (bench.rows("cpu.jsonl"), bench.rows("kernels.jsonl"));
    assert!(cpu.len() == kernels.len() && !cpu.is_empty());
    cpu.iter().zip(&kernels).for_each(|(a, b)| close(a, b));
    close(&bench.json("cpu.json"), &bench.json("kernels.json"));
}

/// Checks that two JSON values have the same shape and close numbers.
fn check_close(a: &Value, b: &Value, tolerance: f64) -> Result<(), String> {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            if (x - y).abs() <= tolerance * x.abs().max(1.0) { Ok(()) } else { Err(format!("{x} and {y}")) }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).try_for_each(|(x, y)| check_close(x, y, tolerance))
        }
        (Value::Object(x), Value::Object(y)) if x.len() == y.len() => {
            x.iter().try_for_each(|(key, x)| check_close(x, &y[key], tolerance).map_err(|why| format!("{key}: {why}")))
        }
        _ if a == b => Ok(()),
        _ => Err(format!("{a} and {b}")),
    }
}

#[test]
fn unavailable_devices_are_refused() {
    let bench = Bench::new();
    let words = "dpo --model model --train-file pairs.jsonl --output-dir out --device";
    bench.run(&format!("{words} cuda:x")).fails(2, &["cuda:N"]);
    bench.run(&format!("{words} gpu")).fails(2, &["auto, cpu, cuda"]);
    if !mapl::backend::kernels::driver::is_present() {
        bench.run(&format!("{words} cuda:1")).fails(5, &["no CUDA device"]);
        assert!(!bench.at("out").exists());
        // Without a GPU, auto selects the CPU and prints no warning.
        let done = bench.run("reward --model qwen --train-file pairs.jsonl --max-steps 1 --output-dir auto").ok();
        assert!(done.out.contains("on cpu (f32") && done.err.is_empty(), "{}{}", done.out, done.err);
    }
}

/// Arguments of a run of two steps on the CPU in bf16.
fn in_bf16(method: &str, run: &str, rest: &str) -> String {
    train(method, &format!("--max-steps 2 --save-steps 1 --output-dir {run} --device cpu --dtype bf16 {rest}"))
}

#[test]
fn the_cpu_trains_in_bf16_with_equal_bits_on_any_number_of_threads_and_after_a_resume() {
    let bench = bench();
    for method in ["dpo", "reward"] {
        let [one, two, wide] = ["one", "two", "wide"].map(|name| format!("{method}-{name}"));
        bench.run(&train(method, &format!("--max-steps 2 --output-dir {wide} --device cpu"))).ok();
        let done = bench.run_with(&in_bf16(method, &one, ""), ("RAYON_NUM_THREADS", "1")).ok();
        assert_eq!(done.out.contains("identity check passed"), method == "dpo", "{}", done.out);
        bench.run_with(&in_bf16(method, &two, ""), ("RAYON_NUM_THREADS", "2")).ok();
        assert_eq!(bench.metrics(&one, "train"), bench.metrics(&two, "train"), "{method}");
        // Removes the second checkpoint, as if the run had stopped at the first step.
        std::fs::remove_dir_all(bench.at(&format!("{two}/checkpoint-2"))).unwrap();
        bench.run(&in_bf16(method, &two, "--resume-from-checkpoint true")).ok();
        for file in ["model.safetensors", "checkpoint-2/state/optimizer-rank00000.safetensors"] {
            assert!(bench.bytes(&format!("{one}/{file}")) == bench.bytes(&format!("{two}/{file}")), "{method} {file}");
        }
        let (bf16, f32) = (losses(&bench, &one), losses(&bench, &wide));
        assert!(bf16 != f32 && max_difference(&bf16, &f32) < BF16, "{method}: {bf16:?} {f32:?}");
        if method == "dpo" {
            assert!((bf16[0] - 3.0 * f64::from(std::f32::consts::LN_2)).abs() < 1e-12, "{bf16:?}");
        }
    }
}

#[test]
fn masked_units_of_bf16_are_said_and_give_losses_within_tolerance() {
    let bench = bench();
    bench.run(&in_bf16("reward", "best", "")).ok();
    let best = losses(&bench, "best");
    for units in ["f32", "amx_model"] {
        let masked = bench.run_with(&in_bf16("reward", units, ""), ("MAPL_CPU_UNITS", units)).ok();
        assert!(masked.err.contains("--dtype bf16 is not faster than f32 here"), "{}", masked.err);
        let masked = losses(&bench, units);
        assert!(max_difference(&masked, &best) < BF16, "{units}: {masked:?} {best:?}");
        let run = bench.json(&format!("{units}/run.json"));
        assert_eq!(run["environment"]["variables"]["MAPL_CPU_UNITS"], units);
    }
    let refused = bench.run_with(&in_bf16("reward", "none", ""), ("MAPL_CPU_UNITS", "amx"));
    assert!(refused.code == Some(2) && refused.err.contains("MAPL_CPU_UNITS=amx"), "{}", refused.err);
    let env = bench.run_with("env", ("MAPL_CPU_UNITS", "f32")).ok();
    assert!(env.out.contains("avx512_bf16") && !env.out.contains("bf16 products"), "{}", env.out);
    let env = bench.run_with("env", ("MAPL_CPU_UNITS", "amx_model")).ok();
    assert!(env.out.contains("amx_bf16         bf16 products, on a software model"), "{}", env.out);
    let bf16 = bench.run_with("env --json", ("MAPL_CPU_UNITS", "avx512_bf16"));
    match bf16.code {
        // AMX tiles are masked, or the processor has none.
        Some(0) => {
            let units = serde_json::from_str::<Value>(&bf16.out).unwrap()["units"].clone();
            let tiles = units["amx_bf16"].as_str().unwrap();
            assert!(units["avx512_bf16"] == "bf16 products" && tiles.starts_with("not "), "{units}");
        }
        _ => assert!(bf16.code == Some(2) && bf16.err.contains("does not support avx512_bf16"), "{}", bf16.err),
    }
}

#[test]
fn checkpoints_move_between_bf16_on_the_cpu_f32_and_the_emulator() {
    let bench = bench();
    let other = if emulated() { "emulator --dtype bf16" } else { "cpu" };
    let devices = ["cpu --dtype bf16", other, "cpu --dtype bf16"];
    bench.run(&train("reward", "--max-steps 3 --output-dir whole --device cpu")).ok();
    for (step, device) in devices.iter().enumerate() {
        let resume = if step > 0 { "--resume-from-checkpoint true" } else { "" };
        let words = format!("--max-steps 3 --save-steps 1 --output-dir moved --device {device} {resume}");
        bench.run(&train("reward", &words)).ok();
        (step + 2..=3).for_each(|later| {
            std::fs::remove_dir_all(bench.at(&format!("moved/checkpoint-{later}"))).unwrap();
        });
    }
    let (moved, whole) = (losses(&bench, "moved"), losses(&bench, "whole"));
    assert_eq!(bench.metrics("moved", "event").len(), 2);
    assert!(max_difference(&moved, &whole) < BF16, "{moved:?} {whole:?}");
}
