//! `mapl study` and `mapl bench`: complete and correct output on the CPU and on the emulator, studies with
//! synthetic GPU readings, and rejected arguments.

use std::time::{Duration, Instant};

use mapl::backend::contract::Cost;
use mapl::backend::probe::OpTime;
use mapl::bench::rates::Rates;
use mapl::perf::hardware::Sample;
use mapl::perf::hardware::sampler::Readings;
use mapl::perf::observe::RunObserver;
use mapl::study::page;
use mapl::study::record::{Facts, Study};
use serde_json::Value;

use crate::html::{has_no_broken_number, well_formed};
use crate::workbench::Bench;

/// Text of a page, after checks that it is well formed and self-contained.
pub(crate) fn text_of(html: &str) -> String {
    let text = well_formed(html);
    has_no_broken_number(html);
    for outside in ["http", "<script", "<link", "@import", "url(", "src="] {
        assert!(!html.contains(outside), "external reference: {outside}");
    }
    text
}

/// Compares two batch sizes of a CPU run. The memory that the larger batch adds to the plan equals what it
/// adds to the process. The difference cancels the memory of the program and its data, which the plan does
/// not count.
#[cfg(target_os = "linux")]
#[test]
fn a_plan_for_the_cpu_is_what_the_process_takes() {
    let bench = Bench::new();
    let words = |start: usize, count: usize| {
        let words: Vec<String> = (0..count).map(|i| format!("w{}", (start + 7 * i) % 997)).collect();
        words.join(" ")
    };
    let pair = |i: usize| {
        let [prompt, chosen, rejected] = [(17, 20), (34, 40), (51, 38)].map(|(at, count)| words(131 * i + at, count));
        format!("{}\n", serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    };
    bench.write("long.jsonl", (0..32).map(pair).collect::<String>());
    bench.run("tokenizer --input long.jsonl --vocab-size 320 --output-dir words").ok();
    bench.run("init --preset qwen2-tiny --tokenizer words --output-dir start").ok();
    let run = "reward --model start --train-file long.jsonl --max-steps 1 --device cpu --dtype f32 --report-to none";
    let [small, large] = [2, 32].map(|batch| {
        let words = format!("{run} --per-device-train-batch-size {batch} --output-dir run-{batch}");
        let mut command = bench.command(&words);
        let mut child =
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0.0f64;
        while child.try_wait().unwrap().is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
            peak = peak.max(line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0);
            std::thread::sleep(Duration::from_millis(2));
        }
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{text}");
        let line =
            text.lines().find(|line| line.contains(" MiB planned")).unwrap_or_else(|| panic!("no plan in\n{text}"));
        let planned = line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
        [planned, peak]
    });
    let [planned, taken] = [large[0] - small[0], large[1] - small[1]];
    assert!(planned > 100.0, "{planned} MiB planned");
    // A plan is printed in whole MiB.
    assert!((taken - planned).abs() < 0.05 * planned + 1.0, "{planned} MiB planned, {taken} taken");
}

#[test]
fn a_dpo_run_on_the_cpu_is_observed() {
    let bench = Bench::new();
    let run = "study dpo --model model --train-file groups.jsonl --output-dir run --max-steps 5 --device cpu --quiet";
    bench.run(&format!("{run} --sample-interval 5")).ok();
    let study = bench.json("run-study/study.json");
    assert_eq!(study["outcome"], "finished");
    assert_eq!(study["summary"]["steps"], 3);
    assert_eq!(study["summary"]["utilisation"], Value::Null);
    assert_eq!(study["steps"].as_array().unwrap().len(), 5);
    let ops: Vec<&str> = study["ops"].as_array().unwrap().iter().map(|op| op["op"].as_str().unwrap()).collect();
    for op in ["linear_fwd", "attention_bwd", "head_logprob_bwd", "preference_fwd", "adamw"] {
        assert!(ops.contains(&op), "{op} is missing from {ops:?}");
    }
    // The FLOPs of a step are the sum over its ops.
    let sum = |name: &str| study["ops"].as_array().unwrap().iter().map(|op| op[name].as_f64().unwrap()).sum::<f64>();
    let of_steps = study["summary"]["flops_per_step"].as_f64().unwrap();
    assert!((sum("flops") / of_steps - 1.0).abs() < 1e-9);
    // Op times are part of the step time.
    assert!(sum("share_of_step") > 0.0 && sum("share_of_step") <= 1.0, "{}", sum("share_of_step"));
    assert!(study["memory"]["planned_total"].as_u64().unwrap() > 0);
    assert_eq!(study["missing"]["card"], "this run uses no GPU");
    let samples = study["samples"].as_array().unwrap();
    assert!(!samples.is_empty() && samples.iter().all(|sample| sample["power_w"].is_null()));
    let lines = String::from_utf8(bench.bytes("run-study/hw.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), samples.len());
    let text = text_of(&String::from_utf8(bench.bytes("run-study/report.html")).unwrap());
    for part in [
        "Step time",
        "time since the start (s)",
        "time (ms)",
        "CPU cores used",
        "memory (MiB)",
        "intensity (FLOP/byte)",
        "rate (FLOP/s)",
        "Time by op",
        "planned in total",
        "this run uses no GPU",
        "mapl study dpo --model model",
    ] {
        assert!(text.contains(part), "{part} is missing");
    }
    // The section on steps comes first, in full page width. The five ops with the most time are labelled by
    // name.
    let html = String::from_utf8(bench.bytes("run-study/report.html")).unwrap();
    let first = html.split("<section>").nth(1).unwrap();
    assert!(first.contains("<h2>Steps</h2>") && first.contains("chart wide") && first.contains("chart narrow"));
    let roofline = html.split("<h2>Roofline</h2>").nth(1).unwrap().split("</section>").next().unwrap();
    for svg in roofline.split("<svg ").skip(1) {
        let with_flops = study["ops"].as_array().unwrap().iter().filter(|op| op["flops"].as_f64().unwrap() > 0.0);
        for op in with_flops.take(5) {
            let name = op["op"].as_str().unwrap();
            assert!(svg.contains(&format!(">{name}</text>")), "{name} is not labelled: {svg}");
        }
    }
    // Observation does not change the run: its weights equal those without it.
    bench.run("dpo --model model --train-file groups.jsonl --output-dir alone --max-steps 5 --device cpu --quiet").ok();
    assert_eq!(bench.bytes("run/model.safetensors"), bench.bytes("alone/model.safetensors"));
    let again = bench.run(&run.replace("output-dir run", "output-dir other --study-dir run-study"));
    again.fails(2, &["already holds study.json"]);
}

#[test]
fn a_benchmark_is_observed() {
    let bench = Bench::new();
    let words = "study bench --study-dir seen --device cpu --model tiny --op norm,linear_fwd --repeats 20 --seconds 1 \
                 --rotate-mib 1 --sample-interval 2";
    bench.run(words).ok();
    let study = bench.json("seen/study.json");
    assert_eq!(study["outcome"], "finished");
    let calls = study["calls"].as_array().unwrap();
    assert!(calls.iter().any(|call| call["row"]["op"] == "norm_fwd"));
    for call in calls {
        // The call has one time span for each of the three passes, and readings within the spans.
        assert_eq!(call["spans_s"].as_array().unwrap().len(), 3, "{call}");
        assert!(call["readings"].as_u64().unwrap() > 0 && call["power_w"].is_null(), "{call}");
        assert!(call["row"]["samples"].as_u64().unwrap() >= 5, "{call}");
    }
    let text = text_of(&String::from_utf8(bench.bytes("seen/report.html")).unwrap());
    for part in
        ["tiny on cpu, f32", "rate (FLOP/s)", "median (µs)", "CPU cores used", "mapl study bench --study-dir seen"]
    {
        assert!(text.contains(part), "{part} is missing");
    }
    bench.run(words).fails(2, &["already holds study.json", "--overwrite"]);
    bench.run(&format!("{words} --overwrite")).ok();
    bench.run("study bench --study-dir other --list").fails(2, &["--list"]);
    assert!(!bench.at("other").exists());
}

#[test]
fn a_run_that_fails_to_start_leaves_no_study() {
    let bench = Bench::new();
    let words = "study reward --model nowhere --train-file groups.jsonl --output-dir run --device cpu";
    bench.run(words).fails(6, &["nowhere"]);
    assert!(!bench.at("run-study").exists());
    let bad = bench.run(&format!("{} --peak-tflops 0", words.replace("nowhere", "model")));
    bad.fails(2, &["--peak-tflops"]);
    bench.run(&format!("{words} --profile")).fails(2, &["--profile"]);
}

/// Study of a synthetic run on a GPU that reports power, and an energy counter if `energy` is set.
fn gpu_study(energy: bool) -> Study {
    limited_study(energy, None)
}

/// Study of a synthetic run as in [`gpu_study`], with a power limit in watts.
fn limited_study(energy: bool, limit: Option<f64>) -> Study {
    let observed = RunObserver::default();
    let began = Instant::now();
    let second = Duration::from_secs(1);
    let cost = |bytes, flops| Cost { bytes, flops };
    for step in 1..=6u32 {
        let ops = [
            OpTime { op: "linear_fwd", calls: 2, seconds: 0.5, cost: cost(1 << 30, 200_000_000_000_000) },
            OpTime { op: "norm_fwd", calls: 1, seconds: 0.25, cost: cost(500_000_000_000, 1_000_000) },
        ];
        observed.add(u64::from(step), began + second * step, second, (4096, 8), &ops);
    }
    observed.plan(vec![("weights".into(), 1 << 30)]);
    observed.taken(3 << 30);
    let sample = |at: u32| Sample {
        time_s: f64::from(at) * 0.5,
        power_w: Some(if at.is_multiple_of(2) { 300.0 } else { 500.0 }),
        power_limit_w: limit,
        energy_j: energy.then_some(1000.0 + 200.0 * f64::from(at)),
        sm_clock_mhz: Some(1755.0),
        tensor_active: (at > 3).then_some(0.5),
        ..Sample::default()
    };
    let readings = Readings {
        samples: (0..13).map(sample).collect(),
        missing: vec![("pcie_in".into(), "not supported".into())],
        began: Some(began),
    };
    let facts = Facts { hardware: "a card".into(), peak_flops: Some(1e15), ..Facts::default() };
    let rates = Rates { memory: 4e12, product: 8e14 };
    Study::new(facts, "finished".into(), Some(rates), observed.take(), readings)
}

#[test]
fn utilisation_energy_and_ceilings_match_values_computed_by_hand() {
    let study = gpu_study(false);
    let summary = study.summary.as_ref().unwrap();
    assert_eq!((summary.steps, summary.tokens_per_s, summary.groups_per_s), (4, 4096.0, 8.0));
    // A step computes 2e14 + 1e6 FLOPs in one second, at a peak of 1e15 FLOP/s.
    assert!((summary.utilisation.unwrap() - 0.2).abs() < 1e-6);
    // The four measured steps take four seconds at 400 W on average, for 32 groups.
    let energy = summary.energy.as_ref().unwrap();
    assert_eq!(energy.source, "power");
    assert!((energy.joules - 1600.0).abs() < 1e-6 && (energy.joules_per_group - 50.0).abs() < 1e-6, "{energy:?}");
    // The lower bound of the GEMM is 2e14 / 8e14 = 0.25 s of its 0.5 s; that of the norm is 0.125 s of its
    // 0.25 s.
    let of = |name: &str| study.ops.iter().find(|op| op.op == name).unwrap();
    assert_eq!((of("linear_fwd").bound, of("norm_fwd").bound), (Some("product"), Some("memory")));
    assert!((of("linear_fwd").share_of_ceiling.unwrap() - 0.5).abs() < 1e-9);
    assert!((of("norm_fwd").share_of_ceiling.unwrap() - 0.5).abs() < 1e-9);
    assert_eq!((of("linear_fwd").calls, of("linear_fwd").milliseconds), (2.0, 500.0));
    assert!(study.steps.iter().all(|row| (row.host_seconds - 0.25).abs() < 1e-9));

    // The energy counter, which rises by 400 J per second, takes precedence over the power readings.
    let counted = gpu_study(true).summary.unwrap().energy.unwrap();
    assert_eq!(counted.source, "counter");
    assert!((counted.joules - 1600.0).abs() < 1e-6, "{counted:?}");
    // The counter is not used if its power exceeds the power limit by more than 5 %.
    let source = |limit| limited_study(true, Some(limit)).summary.unwrap().energy.unwrap().source;
    assert_eq!((source(390.0), source(370.0)), ("counter", "power"));
}

#[test]
fn the_page_shows_gpu_readings_and_names_missing_ones() {
    let text = text_of(&page::html(&gpu_study(false)));
    for part in ["power (W)", "clock (MHz)", "tensor cores", "20.0 %", "by power", "3072.0", "pcie_in: not supported"] {
        assert!(text.contains(part), "{part} is missing");
    }
    for absent in ["temperature (", "rate (MB/s)"] {
        assert!(!text.contains(absent), "{absent} is shown without readings");
    }
}

#[test]
fn ops_are_benchmarked_and_compared() {
    let bench = Bench::new();
    let words =
        "bench --device cpu --model tiny --op norm,linear_fwd,preference --repeats 5 --seconds 0 --rotate-mib 1";
    let out = bench.run(&format!("{words} --output rows.csv --output rows.json --commit abc")).ok().out;
    assert!(out.contains("7 rows measured, 0 absent, 0 skipped, 0 failed"), "{out}");
    let rows = mapl::bench::row::read(&bench.at("rows.csv")).unwrap();
    assert_eq!(rows, mapl::bench::row::read(&bench.at("rows.json")).unwrap());
    assert!(rows.iter().all(|row| row.commit == "abc" && row.error_share.is_some_and(|share| share <= 1.0)));
    // On CPUs every row also has its times in units of the yardstick, a control workload that takes far
    // longer than a microsecond.
    assert!(
        rows.iter().all(|row| row.paced().is_some_and(|(median, ..)| median < 0.1 * row.median_us.unwrap())),
        "{rows:?}"
    );
    let out = bench.run(&format!("{words} --compare rows.csv")).ok().out;
    assert!(out.contains("0 new, 0 only in the earlier record"), "{out}");
    let list = bench.run("bench --list --device cpu --op attention --model gpt2-124m,llama-3.1-8b").ok().out;
    // Llama uses RoPE, so its attention gradients are listed with and without it.
    assert_eq!(list.lines().count(), 12, "{list}");
    // A layer name matches as a whole, so `o` does not match `tokens`. A size matches as a whole
    // too: only o and down have 768 outputs.
    for (flags, count) in [
        ("--op linear_fwd --model gpt2-124m --shape o", 1),
        ("--op linear_fwd --model gpt2-124m --shape outputs=768", 2),
        ("--op linear_fwd --model gpt2-124m --shape qkv,inputs=3072", 2),
        ("--op linear --model square", 6),
    ] {
        let list = bench.run(&format!("bench --list --device cpu {flags}")).ok().out;
        assert_eq!(list.lines().count(), count, "{flags}: {list}");
    }
    for (words, code, what) in [
        ("bench --model gpt3", 2, "llama-3.1-8b"),
        ("bench --device cpu --dtype f64", 2, "f32 or bf16"),
        ("bench --device reference", 2, "verified against"),
        ("bench --tokens 5", 2, "--tokens 5"),
        ("bench --seconds nan", 2, "--seconds"),
        ("bench --compare nowhere.csv", 1, "nowhere.csv"),
        ("bench --device cpu --output model", 2, "it is a folder"),
        ("bench --threshold 1", 2, "--compare"),
        ("bench --pairs 3", 2, "--plan"),
    ] {
        bench.run(words).fails(code, &[what]);
    }
}

/// Verifies the emulated kernels at the benchmark's sizes, if the build has the emulator.
#[test]
fn emulator_ops_are_verified() {
    if mapl::backend::kernels::emulator::Emulator::new().is_err() {
        assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"));
        println!("SKIPPED: this build has no emulated kernels");
        return;
    }
    let bench = Bench::new();
    let out = bench.run("bench --device emulator --dtype bf16,f32 --repeats 1 --seconds 0 --output rows.csv").ok().out;
    assert!(out.contains(" 0 skipped, 0 failed"), "{out}");
    let rows = mapl::bench::row::read(&bench.at("rows.csv")).unwrap();
    for op in mapl::backend::OPS {
        for dtype in ["bf16", "f32"] {
            assert!(rows.iter().any(|row| row.op == *op && row.dtype == dtype), "{op} in {dtype}");
        }
    }
    assert!(rows.iter().all(|row| row.share.is_none()), "emulated time has no ceiling");
}

/// A benchmark that selects, measures or compares nothing returns an error.
#[test]
fn names_that_select_nothing_are_refused() {
    let bench = Bench::new();
    let before = bench.listing();
    for (flags, parts) in [
        ("--op nrom_fwd", &["--op \"nrom_fwd\" is unknown", "norm_fwd"][..]),
        ("--op norm_fwd --op swiglu", &["--op \"swiglu\" is unknown", "glu_fwd"]),
        ("--op norm_fwd,", &["--op \"\" is unknown"]),
        ("--variant mpal", &["--variant \"mpal\" is unknown", "cuBLASLt"]),
        ("--model tiny --shape qvk", &["--shape \"qvk\" is unknown", "qkv"]),
        ("--model gpt2-124m --shape qkv --shape inputs=307", &["--shape \"inputs=307\" is unknown"]),
        ("--model tniy", &["tniy", "llama-3.1-8b"]),
        ("--model tiny --op norm --shape qkv", &["together select no call on device cpu"]),
        ("--energy-seconds 1", &["--energy-seconds has no effect without a GPU"]),
    ] {
        bench.run(&format!("bench --device cpu {flags}")).fails(2, parts);
        bench.run(&format!("study bench --study-dir s --device cpu {flags}")).fails(2, parts);
        if !flags.contains("mpal") && !flags.contains("energy") {
            bench.run(&format!("bench --list --device cpu {flags}")).fails(2, parts);
        }
    }
    bench.run("bench --plan --model tiny").fails(2, &["--plan", "--model"]);
    // The plan has one shard per rank, so the number of ranks is limited.
    bench.run("bench --plan --preset qwen2-tiny --ranks 65537").fails(2, &["--ranks", "from 1 to 65536"]);
    bench.run("study bench --study-dir s --plan").fails(2, &["leave them out"]);
    assert_eq!(bench.listing(), before);
    // A repeated flag adds to the selection.
    let listed = |flags: &str| bench.run(&format!("bench --list --device cpu --model tiny {flags}")).ok().out;
    assert_eq!(listed("--op norm_fwd --op glu_fwd"), listed("--op norm_fwd,glu_fwd"));
    assert_eq!(listed("--op norm_fwd --op glu_fwd").lines().count(), 2);

    let quick = "bench --device cpu --model tiny --repeats 1 --passes 1 --seconds 0 --rotate-mib 1";
    bench.run(&format!("{quick} --op norm_fwd --output norm.csv")).ok();
    for (flags, code, parts) in [
        ("--op linear_fwd --variant cuBLASLt", 1, &["no row was measured"][..]),
        ("--op norm_fwd --longest 0", 1, &["no row was measured", "skipped"]),
        ("--op glu_fwd --compare norm.csv --fail-if-slower", 1, &["no row was compared"]),
    ] {
        bench.run(&format!("{quick} {flags}")).fails(code, parts);
    }
    let text = String::from_utf8(bench.bytes("norm.csv")).unwrap();
    bench.write("none.csv", text.lines().next().unwrap().to_owned() + "\n");
    bench.run(&format!("{quick} --op norm_fwd --compare none.csv")).fails(3, &["none.csv", "holds no rows"]);
}
