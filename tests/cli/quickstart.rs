//! `mapl quickstart` with very few steps: its page, summary and tables agree, its links lead to files,
//! and the commands at its end run as pasted.

use std::process::Command;

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
    // Steps of the base run at equal compute, from the counted tokens.
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

#[test]
fn options_of_the_quick_start_are_checked() {
    let bench = Bench::new();
    bench.run("quickstart --seeds 0 --output-dir q").fails(2, &["--seeds"]);
    bench.run("quickstart --seeds 21 --output-dir q").fails(2, &["--seeds"]);
    bench.run("quickstart --seed 18446744073709551615 --output-dir q").fails(2, &["--seed", "too large"]);
    bench.run("quickstart --equal-compute sft --output-dir q").fails(2, &["--equal-compute"]);
    assert!(!bench.at("q").exists());
}
