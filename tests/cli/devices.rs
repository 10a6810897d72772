//! Every device does the same job: the kernels on the emulator beside the CPU, checkpoints that move between them, and runs
//! that repeat bit by bit.

use mapl::backend::kernels::emulator::Emulator;
use serde_json::Value;

use crate::workbench::Bench;

/// False, and said, in a build without the emulator.
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

/// A bench with `tiny/`, a model of 2 layers and width 64.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.run("init --preset qwen2-tiny --tokenizer tok --output-dir tiny --seed 7").ok();
    bench
}

fn train(method: &str, rest: &str) -> String {
    format!(
        "{method} --model tiny --train-file groups.jsonl --learning-rate 1e-3 --per-device-train-batch-size 2 {rest}"
    )
}

fn losses(bench: &Bench, run: &str) -> Vec<f64> {
    bench.metrics(run, "train").iter().map(|event| event["loss"].as_f64().unwrap()).collect()
}

/// Largest difference of two losses of a step, over the loss where that is above one.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max)
}

/// bf16 keeps 8 bits: weights and activations are rounded to 2^-9 of themselves. In 2 layers of about 12 roundings a score of
/// order one is off by about 1 %, and the mean over a batch's comparisons by less.
const BF16: f64 = 2e-2;

#[test]
fn five_steps_on_the_emulator_are_those_of_the_cpu() {
    if !emulated() {
        return;
    }
    let bench = bench();
    for method in ["dpo", "reward"] {
        for (name, device) in [("cpu", "cpu"), ("f32", "emulator --dtype f32"), ("bf16", "emulator")] {
            let words = train(method, &format!("--max-steps 5 --output-dir {method}-{name} --device {device}"));
            let done = bench.run(&words).ok();
            assert_eq!(done.out.contains("identity check passed"), method == "dpo", "{}", done.out);
        }
        let cpu = losses(&bench, &format!("{method}-cpu"));
        let (f32, bf16) = (losses(&bench, &format!("{method}-f32")), losses(&bench, &format!("{method}-bf16")));
        println!("{method}: f32 {:.1e}, bf16 {:.1e}", apart(&f32, &cpu), apart(&bf16, &cpu));
        assert!(cpu.len() == 5 && cpu[4] != cpu[0]);
        assert!(apart(&f32, &cpu) < 1e-4, "{method}: {f32:?} {cpu:?}");
        assert!(apart(&bf16, &cpu) < BF16, "{method}: {bf16:?} {cpu:?}");
        if method == "dpo" {
            // Base, intra and inter comparisons, each at ln 2 as f32 holds it: in any precision the difference of equal
            // scores is 0.
            let exact = 3.0 * f64::from(std::f32::consts::LN_2);
            assert!(
                [cpu[0], f32[0], bf16[0]].iter().all(|loss| (loss - exact).abs() < 1e-12),
                "{cpu:?} {f32:?} {bf16:?}"
            );
        }
    }
}

/// The kernels for Hopper: policy and reference are equal before the first step though only one of them keeps its powers, a
/// stored reference is the online one bit by bit, and losses are those of the CPU.
#[test]
fn steps_by_the_kernels_for_hopper() {
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
    assert!(hopper[1] != hopper[0] && apart(&hopper, &cpu) < BF16, "{hopper:?} {cpu:?}");
    assert_eq!(bench.metrics("online", "train"), bench.metrics("stored", "train"));
    assert!(bench.bytes("online/model.safetensors") == bench.bytes("stored/model.safetensors"));
}

#[test]
fn a_cached_reference_is_the_online_one_on_the_emulator_and_runs_repeat() {
    if !emulated() {
        return;
    }
    let bench = bench();
    let cache = bench.at("cache");
    let run = |name: &str, rest: &str| {
        let words = train("dpo", &format!("--max-steps 3 --save-steps 3 --output-dir {name} --device emulator {rest}"));
        bench.run_with(&words, ("MAPL_CACHE_DIR", cache.to_str().unwrap())).ok()
    };
    run("a", "");
    run("b", "");
    let cached = run("c", "--precompute-ref-log-probs");
    assert!(cached.out.contains("identity check passed"), "{}", cached.out);
    for other in ["b", "c"] {
        assert_eq!(bench.metrics("a", "train"), bench.metrics(other, "train"), "{other}");
        for file in ["model.safetensors", "checkpoint-3/state/optimizer-rank00000.safetensors"] {
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
    let common = "--warmup-steps 2 --save-steps 2";
    bench.run(&train("reward", &format!("--max-steps 6 --output-dir whole --device cpu {common}"))).ok();
    let whole = losses(&bench, "whole");
    for (dtype, tolerance) in [("f32", 1e-4), ("bf16", BF16)] {
        let out = format!("moved-{dtype}");
        let go = |device: &str, stop: u64, resume: &str| {
            let words =
                train("reward", &format!("--max-steps 6 --output-dir {out} --device {device} {common} {resume}"));
            bench.run(&words).ok();
            // The run is taken up at an earlier checkpoint, as after a stop there.
            for step in (stop + 1)..=6 {
                let folder = bench.at(&format!("{out}/checkpoint-{step}"));
                if folder.exists() {
                    std::fs::remove_dir_all(folder).unwrap();
                }
            }
        };
        let kernels = format!("emulator --dtype {dtype}");
        go("cpu", 2, "");
        go(&kernels, 4, "--resume-from-checkpoint true");
        go("cpu", 6, "--resume-from-checkpoint true");
        let moved = losses(&bench, &out);
        println!("{dtype}: {:.1e}", apart(&moved, &whole));
        assert_eq!(bench.metrics(&out, "event").len(), 2);
        assert_eq!(moved[..2], whole[..2]);
        assert!(moved[2..] != whole[2..], "the emulator computed what the CPU computes");
        assert!(apart(&moved, &whole) < tolerance, "{dtype}: {moved:?} {whole:?}");
    }
}

#[test]
fn the_quick_starts_rewards_on_the_emulator_track_those_on_the_cpu() {
    if !emulated() {
        return;
    }
    let bench = Bench::new();
    bench.run("quickstart --scale 0.001 --output-dir q --device cpu").ok();
    for (run, device) in [("on-cpu", "cpu"), ("on-kernels", "emulator --dtype f32")] {
        // The run reward-mapl, shorter and with one group a step.
        let words = "--max-steps 20 --lr-scheduler-type linear --learning-rate 6e-4 --warmup-steps 5 --objective rows \
                     --per-device-train-batch-size 1";
        let files = format!("--model q/sft --train-file q/train-mapl.jsonl --output-dir {run}");
        bench.run(&format!("reward {files} {words} --device {device}")).ok();
    }
    let (cpu, kernels) = (losses(&bench, "on-cpu"), losses(&bench, "on-kernels"));
    println!("{:.1e}: {cpu:?} {kernels:?}", apart(&kernels, &cpu));
    assert!(cpu.len() == 20 && apart(&kernels, &cpu) < 1e-4, "{cpu:?} {kernels:?}");
}

#[test]
fn likelihood_scores_and_evaluations_agree() {
    if !emulated() {
        return;
    }
    let bench = bench();
    for (name, device) in [("cpu", "cpu"), ("kernels", "emulator --dtype f32")] {
        bench.run(&train("sft", &format!("--max-steps 3 --output-dir sft-{name} --device {device}"))).ok();
        bench.run(&format!("score --model tiny --input groups.jsonl --output {name}.jsonl --device {device}")).ok();
        bench
            .run(&format!(
                "eval --model tiny --ref-model tiny --input groups.jsonl --output {name}.json --device {device}"
            ))
            .ok();
    }
    let (cpu, kernels) = (losses(&bench, "sft-cpu"), losses(&bench, "sft-kernels"));
    assert!(apart(&kernels, &cpu) < 1e-4, "{kernels:?} {cpu:?}");
    let close = |a: &Value, b: &Value| alike(a, b, 1e-4).unwrap_or_else(|why| panic!("{why}"));
    let (cpu, kernels) = (bench.rows("cpu.jsonl"), bench.rows("kernels.jsonl"));
    assert!(cpu.len() == kernels.len() && !cpu.is_empty());
    cpu.iter().zip(&kernels).for_each(|(a, b)| close(a, b));
}

/// Two values of one shape whose numbers are close.
fn alike(a: &Value, b: &Value, tolerance: f64) -> Result<(), String> {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            if (x - y).abs() <= tolerance * x.abs().max(1.0) { Ok(()) } else { Err(format!("{x} and {y}")) }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).try_for_each(|(x, y)| alike(x, y, tolerance))
        }
        (Value::Object(x), Value::Object(y)) if x.len() == y.len() => {
            x.iter().try_for_each(|(key, x)| alike(x, &y[key], tolerance).map_err(|why| format!("{key}: {why}")))
        }
        _ if a == b => Ok(()),
        _ => Err(format!("{a} and {b}")),
    }
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let bench = Bench::new();
    let words = "dpo --model model --train-file pairs.jsonl --output-dir out --device";
    bench.run(&format!("{words} cuda:x")).fails(2, &["cuda:N"]);
    bench.run(&format!("{words} gpu")).fails(2, &["auto, cpu, cuda"]);
    if !mapl::backend::kernels::driver::is_present() {
        bench.run(&format!("{words} cuda:1")).fails(5, &["no CUDA device"]);
        assert!(!bench.at("out").exists());
        // Without a GPU, auto is the CPU, without a word about it.
        let done = bench.run("reward --model qwen --train-file pairs.jsonl --max-steps 1 --output-dir auto").ok();
        assert!(done.out.contains("on cpu (f32") && done.err.is_empty(), "{}{}", done.out, done.err);
    }
}
