//! `mapl quickstart` with very few steps: its page, summary and tables agree, its links lead to files,
//! and the commands at its end run as pasted.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mapl::backend::cpu::Units;
use serde_json::{Value, json};

use crate::html::{has_no_broken_number, well_formed};
use crate::workbench::Bench;

/// Output folder; its name has spaces, as a user's may.
const FOLDER: &str = "my quick start";

#[test]
fn its_page_has_the_numbers_of_the_table_and_its_closing_commands_run_as_pasted() {
    let bench = Bench::new();
    let mut quick = bench.command("quickstart --scale 0.0005 --device cpu");
    let output = quick.env_remove("CARGO").args(["--output-dir", FOLDER]).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{out}");
    assert!(out.contains("wrote 300 training and 40 held-out pairs"), "a short run has few pairs: {out}");
    page_links_to_its_runs_and_has_the_numbers_of_the_table(&bench, &out);
    closing_commands_run_as_pasted(&bench, &out);
}

/// Whether the stages compute in bf16 by default.
fn is_bf16_fast() -> bool {
    Units::chosen().unwrap().slow().is_none()
}

#[test]
fn stages_compute_in_f32_if_asked_and_on_a_cpu_without_units_for_bf16() {
    for (flags, units) in [("--dtype f32", None), ("", Some("f32"))] {
        let bench = Bench::new();
        let mut quick = bench.command(&format!("quickstart --scale 0.0001 --device cpu --output-dir q {flags}"));
        let output = quick.envs(units.map(|units| ("MAPL_CPU_UNITS", units))).output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{out}");
        assert_eq!(bench.json("q/dpo-mapl/run.json")["config"]["dtype"], "f32");
    }
}

fn closing_commands_run_as_pasted(bench: &Bench, out: &str) {
    let (_, closing) = out.rsplit_once("\nThe same by hand").unwrap();
    let commands: Vec<&str> = closing.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(commands.len(), 3, "{closing}");
    let device = format!("--device cpu{}", if is_bf16_fast() { " --dtype bf16" } else { "" });
    assert!(commands[1..].iter().all(|command| command.ends_with(&device)), "{closing}");
    for command in commands {
        let done = Command::new("sh").args(["-c", command]).current_dir(bench.path()).output().unwrap();
        let why = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{command}\n{why}");
    }
}

fn page_links_to_its_runs_and_has_the_numbers_of_the_table(bench: &Bench, out: &str) {
    let html = String::from_utf8(bench.bytes(&format!("{FOLDER}/report.html"))).unwrap();
    well_formed(&html);
    has_no_broken_number(&html);
    let links: Vec<&str> = html.split("<a href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let names = ["reward-base", "reward-mapl", "dpo-base", "dpo-base-equal", "dpo-mapl"];
    assert_eq!(links, names.map(|name| format!("{name}/report.html")));
    assert!(links.iter().all(|link| bench.at(FOLDER).join(link).is_file()), "{links:?}");
    let summary = bench.json(&format!("{FOLDER}/summary.json"));
    let runs = summary["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| run["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    for run in runs {
        let name = run["name"].as_str().unwrap();
        // The terminal, the page and the summary have the same digits.
        let row = out.lines().rfind(|line| line.starts_with(&format!("| {name} "))).unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for (cell, key) in cells[2..5].iter().zip(["semantic", "intra", "inter"]) {
            assert_eq!(**cell, format!("{:.3}", run[key].as_f64().unwrap()), "{name}, {key}");
            assert!(html.contains(&format!(">{cell}<")), "{name}, {key}");
        }
        assert_eq!(cells[5], run["steps"].to_string());
        let last = bench.metrics(&format!("{FOLDER}/{name}"), "train").pop().unwrap();
        assert_eq!((&last["num_tokens"], &last["step"]), (&run["tokens"], &run["steps"]));
        assert_eq!((run["seed"].as_u64(), run["folder"].as_str()), (Some(42), Some(name)));
    }
    // `dpo-base-equal` has as many steps as `dpo-base` would need to process the tokens of `dpo-mapl`.
    let [base, equal, mapl] = [2, 3, 4].map(|at: usize| &runs[at]);
    let number = |run: &Value, key: &str| run[key].as_f64().unwrap();
    let steps = number(mapl, "steps") * number(mapl, "tokens") / number(base, "tokens");
    assert_eq!(number(equal, "steps"), steps.round());
    assert!(number(equal, "steps") > 2.0 * number(base, "steps"));
    // At step 0 the policy of DPO equals the reference, and every comparison ties.
    assert_eq!(mapl["accuracy"][0]["ties"], serde_json::json!([1.0, 1.0, 1.0]));
    assert_eq!(summary["scores"].as_array().unwrap().len(), names.len());
    assert_eq!(summary["gains"].as_array().unwrap().len(), 3);
    assert!(out.lines().filter(|line| line.starts_with('|')).all(|line| line.chars().count() <= 80));
    let facts = summary["environment"].as_array().unwrap();
    let device = if is_bf16_fast() { "cpu, bf16" } else { "cpu, f32" };
    for (name, value) in [("device", device), ("commit", mapl::COMMIT)] {
        assert!(facts.contains(&json!({ "name": name, "value": value })), "{facts:?}");
    }
    assert_eq!(bench.json(&format!("{FOLDER}/sft/run.json"))["commit"], mapl::COMMIT);
}

/// Runs a quick start on `threads` threads. Returns its summary without times and environment, and its
/// stdout.
fn summary_with(bench: &Bench, threads: &str) -> (Value, String) {
    let mut quick = bench.command("quickstart --scale 0.0005 --device cpu --output-dir q");
    let done = quick.env("RAYON_NUM_THREADS", threads).output().unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{out}\n{}", String::from_utf8_lossy(&done.stderr));
    let mut summary = bench.json("q/summary.json");
    summary["seconds"].take();
    summary["environment"].take();
    for part in ["runs", "scores"] {
        summary[part].as_array_mut().unwrap().iter_mut().for_each(|run| drop(run["seconds"].take()));
    }
    (summary, out)
}

#[test]
fn runs_side_by_side_have_the_results_of_runs_one_after_the_other() {
    let bench = Bench::new();
    let (alone, out) = summary_with(&bench, "1");
    assert!(out.lines().any(|line| line.starts_with("step 2/2 |")), "a single run writes to stdout directly: {out}");
    let (both, out) = summary_with(&bench, "2");
    for name in ["reward-mapl", "dpo-base-equal"] {
        let named = format!("{name:<17} | step ");
        assert!(out.lines().any(|line| line.starts_with(&named)), "{named:?} is not in\n{out}");
    }
    assert_eq!(both["runs"].as_array().unwrap().len(), 5);
    assert_eq!(both, alone);
}

/// Starts a quick start with two runs side by side, and returns once both have taken a step.
fn start_of_two_runs(bench: &Bench) -> Child {
    let mut quick = bench.command("quickstart --scale 0.2 --device cpu --output-dir q");
    quick.env("RAYON_NUM_THREADS", "2").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = quick.spawn().unwrap();
    let has_begun = |run: &str| std::fs::metadata(bench.at(run).join("metrics.jsonl")).is_ok_and(|file| file.len() > 0);
    let began = Instant::now();
    while !["q/reward-mapl", "q/dpo-mapl"].into_iter().all(has_begun) {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(120), "no two runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

/// Waits until both runs have recorded that they were stopped.
fn both_stop(bench: &Bench) {
    let began = Instant::now();
    let status = |run: &str| bench.json(&format!("{run}/run.json"))["status"].clone();
    while ["q/reward-mapl", "q/dpo-mapl"].map(status) != ["stopped", "stopped"] {
        assert!(began.elapsed() < Duration::from_secs(60), "a run did not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_signal_to_the_quick_start_stops_both_runs_which_save() {
    let bench = Bench::new();
    let mut child = start_of_two_runs(&bench);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{err}");
    both_stop(&bench);
    assert!(err.contains("stopped by signal 15") && !err.contains("panicked"), "{err}");
    assert!(!bench.at("q/summary.json").exists() && !bench.at("q/reward-base").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn the_runs_of_a_killed_quick_start_stop_and_save() {
    let bench = Bench::new();
    let mut child = start_of_two_runs(&bench);
    child.kill().unwrap();
    child.wait().unwrap();
    both_stop(&bench);
}

#[test]
fn the_error_of_a_run_is_the_error_of_the_quick_start() {
    let bench = Bench::new();
    let words = "quickstart --scale 0.0005 --device cpu --dtype bf16 --output-dir q";
    bench.run_with(words, ("MAPL_CPU_UNITS", "none")).fails(2, &["MAPL_CPU_UNITS"]);
    assert!(bench.at("q/init").exists() && !bench.at("q/reward-mapl").exists());
}

#[test]
fn options_of_the_quick_start_are_checked() {
    let bench = Bench::new();
    bench.run("quickstart --seeds 0 --output-dir q").fails(2, &["--seeds"]);
    bench.run("quickstart --seeds 21 --output-dir q").fails(2, &["--seeds"]);
    bench.run("quickstart --seed 18446744073709551615 --output-dir q").fails(2, &["--seed", "too large"]);
    bench.run("quickstart --equal-compute sft --output-dir q").fails(2, &["--equal-compute"]);
    assert!(!bench.at("q").exists());
}
