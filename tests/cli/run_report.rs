//! `run.json` and `report.html` of real runs: complete, correct, and clear about missing or damaged
//! files.

use clap::CommandFactory as _;
use serde_json::{Value, json};

use crate::html::{has_no_broken_number, well_formed};
use crate::workbench::Bench;

const RUN: &str = "--train-file groups.jsonl --eval-file pairs.jsonl --eval-steps 2 --max-steps 4 --quiet";

/// HTML and text of a page, after checks that it is well formed and self-contained.
fn page(bench: &Bench, path: &str) -> (String, String) {
    let html = String::from_utf8(bench.bytes(path)).unwrap();
    let text = well_formed(&html);
    has_no_broken_number(&html);
    for outside in ["http", "<script", "<link", "@import", "url(", "src="] {
        assert!(!html.contains(outside), "{path} has an external reference: {outside}");
    }
    (html, text)
}

/// Body rows of the table with a caption that starts with `caption`, as lists of cells.
fn table(html: &str, caption: &str) -> Vec<Vec<String>> {
    let at = html.find(&format!("<caption>{caption}")).unwrap_or_else(|| panic!("no table {caption}"));
    let body = html[at..].split("<tbody>").nth(1).unwrap().split("</tbody>").next().unwrap();
    let cell = |part: &str| part.split('<').next().unwrap().to_owned();
    body.split("<tr>")
        .skip(1)
        .map(|row| row.split(['>']).skip(1).filter(|part| part.contains("</t")).map(cell).collect())
        .collect()
}

#[test]
fn a_run_writes_a_report_and_several_runs_are_overlaid() {
    let bench = Bench::new();
    bench.run(&format!("dpo --model model --output-dir slow {RUN}")).ok();
    bench.run(&format!("dpo --model model --output-dir fast {RUN} --learning-rate 1e-2")).ok();
    let (html, text) = page(&bench, "slow/report.html");
    for part in ["finished", "Loss, intra", "Accuracy, inter", "Throughput", "Gradient norm", "mapl dpo --model model"]
    {
        assert!(text.contains(part), "{part} is missing");
    }
    let histogram = table(&html, "Rewards: responses in each range");
    let pairs = bench.rows("pairs.jsonl").len();
    for side in [1, 2] {
        let sum: usize = histogram.iter().map(|row| row[side].parse::<usize>().unwrap()).sum();
        assert_eq!(sum, pairs, "{histogram:?}");
    }
    let manifest = bench.json("slow/run.json");
    let rows = table(&html, "Training data");
    let value = |name: &str| &rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name}"))[1];
    assert_eq!(value("rows read"), &manifest["data"]["train"]["rows_read"].to_string());
    assert_eq!(value("kept, intra"), &manifest["data"]["train"]["kept_by_kind"][1].to_string());
    assert!(html.contains(&manifest["files"]["train"][0]["blake3"].as_str().unwrap()[..16]));

    bench.run("report slow fast --output both.html").ok();
    let (html, text) = page(&bench, "both.html");
    let section = html.split("<h2>Configuration differences</h2>").nth(1).unwrap().split("</section>").next().unwrap();
    assert_eq!(section.matches("<tr>").count(), 2, "{section}");
    assert!(section.contains("<td>1e-6</td><td>0.01</td>"), "{section}");
    assert!(html.contains("Series: slow, fast."));
    for part in ["Loss, base, train", "Accuracy, base, eval", "Rewards, slow", "Length against reward, fast"] {
        assert!(text.contains(part), "{part} is missing");
    }
    bench.run("report slow fast").fails(2, &["--output is needed"]);
    bench.run("report slow --output slow/metrics.jsonl").fails(2, &["is an input"]);
    bench.run("report slow --output no/x.html").fails(2, &["folder does not exist"]);
    bench.run(&format!("report {} --output x.html", "slow ".repeat(9))).fails(2, &["at most 8"]);
}

#[test]
fn scores_of_the_last_evaluation_agree_with_the_metrics() {
    let bench = Bench::new();
    for method in ["dpo --learning-rate 1e-3", "reward"] {
        bench.run(&format!("{method} --model model --output-dir out --overwrite-output-dir {RUN}")).ok();
        let rows = bench.rows("out/eval_scores.jsonl");
        assert!(rows.iter().all(|row| row["step"] == 4));
        let mut margins = Vec::new();
        for row in &rows {
            for pair in row["comparisons"].as_array().unwrap().iter().filter(|c| c["kind"] == "base") {
                let reward =
                    |side: &str| row["sequences"][pair[side].as_u64().unwrap() as usize]["reward"].as_f64().unwrap();
                let margin = reward("chosen") - reward("rejected");
                assert!((margin - pair["logit"].as_f64().unwrap()).abs() < 1e-9, "{row}");
                margins.push(margin);
            }
        }
        let eval = bench.metrics("out", "eval").pop().unwrap();
        let mean = margins.iter().sum::<f64>() / margins.len() as f64;
        let logged = eval["eval_rewards/margins/base"].as_f64().unwrap();
        assert!((mean - logged).abs() < 1e-9 && mean != 0.0, "{mean} {logged}");
    }
    bench.run(&format!("sft --model model --output-dir sft {RUN}")).ok();
    assert!(!bench.at("sft/eval_scores.jsonl").exists());
    assert!(!page(&bench, "sft/report.html").1.contains("Rewards and lengths"));
}

#[test]
fn missing_and_damaged_files_are_one_clear_error() {
    let bench = Bench::new();
    bench.run(&format!("reward --model model --output-dir out {RUN}")).ok();
    let broken = |name: &str, change: &dyn Fn(&str)| {
        bench.copy("out", name);
        change(name);
        std::fs::remove_file(bench.at(name).join("report.html")).unwrap();
    };
    broken("bare", &|name| std::fs::remove_file(bench.at(name).join("run.json")).unwrap());
    broken("mute", &|name| std::fs::remove_file(bench.at(name).join("metrics.jsonl")).unwrap());
    broken("cut", &|name| {
        let bytes = bench.bytes("out/run.json");
        bench.write(&format!("{name}/run.json"), &bytes[..bytes.len() / 2]);
    });
    broken("other", &|name| bench.write(&format!("{name}/run.json"), "[1, 2]"));
    broken("line", &|name| {
        let text = String::from_utf8(bench.bytes("out/metrics.jsonl")).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines[2] = "{\"kind\": \"train\", ";
        bench.write(&format!("{name}/metrics.jsonl"), lines.join("\n") + "\n");
    });
    broken("scores", &|name| {
        let text = String::from_utf8(bench.bytes("out/eval_scores.jsonl")).unwrap();
        bench.write(&format!("{name}/eval_scores.jsonl"), text.replace("\"chosen\":0", "\"chosen\":99"));
    });
    let before = bench.listing();
    for (name, code, parts) in [
        ("bare", 2, ["bare is not a run folder", "run.json"]),
        ("nowhere", 2, ["nowhere is not a run folder", "--output-dir"]),
        ("mute", 2, ["mute has no metrics.jsonl", "--report-to"]),
        ("cut", 3, ["cut/run.json", "is damaged"]),
        ("other", 3, ["other/run.json", "not the manifest"]),
        ("line", 3, ["line/metrics.jsonl:3", "is damaged"]),
        ("scores", 3, ["scores/eval_scores.jsonl:1", "is damaged"]),
    ] {
        bench.run(&format!("report {name}")).fails(code, &parts);
        bench.run(&format!("report out {name} --output x.html")).fails(code, &parts);
    }
    assert_eq!(bench.listing(), before);
}

#[test]
fn a_report_marks_a_running_run_and_skips_its_incomplete_line() {
    let bench = Bench::new();
    bench.run(&format!("reward --model model --output-dir out {RUN}")).ok();
    let mut manifest = bench.json("out/run.json");
    manifest["status"] = json!("running");
    let write = |manifest: &Value| bench.write("out/run.json", manifest.to_string());
    let text = String::from_utf8(bench.bytes("out/metrics.jsonl")).unwrap();
    bench.write("out/metrics.jsonl", &text[..text.len() - 9]);
    manifest["pid"] = json!(std::process::id());
    write(&manifest);
    bench.run("report out").ok();
    let (_, text) = page(&bench, "out/report.html");
    assert!(text.contains("The run is still running") && text.contains("A reward run: running, 4 steps."), "{text}");
    if std::path::Path::new("/proc/self").exists() {
        // This id exceeds the largest process id of Linux, so no process has it.
        manifest["pid"] = json!(1 << 30);
        write(&manifest);
        bench.run("report out").ok();
        assert!(page(&bench, "out/report.html").1.contains("no longer exists and left no exit status"));
        manifest["host"] = json!("another machine");
        write(&manifest);
        bench.run("report out").ok();
        assert!(page(&bench, "out/report.html").1.contains("The run is still running"));
    }
}

#[test]
fn the_manifest_holds_every_option_and_hashes_of_all_inputs() {
    let bench = Bench::new();
    let template = String::from_utf8(bench.bytes("tok/chat_template.jinja")).unwrap();
    bench.write("template.jinja", &template);
    let words = format!("dpo --model model --output-dir out --chat-template-path template.jinja --beta 0.3 {RUN}");
    bench.run_with(&words, ("RAYON_NUM_THREADS", "2")).ok();
    let manifest = bench.json("out/run.json");
    let config = manifest["config"].as_object().unwrap();
    let cli = mapl::cli::Cli::command();
    let mut options = 0;
    for option in cli.find_subcommand("dpo").unwrap().get_arguments() {
        let name = option.get_id().as_str();
        if !["help", "version"].contains(&name) {
            assert!(config.contains_key(name), "run.json does not record --{name}");
            options += 1;
        }
    }
    assert!(options > 60 && config.len() == options, "{options} {}", config.len());
    for (name, value) in [
        ("beta", json!(0.3)),
        ("beta_inter", json!(0.3)),
        ("learning_rate", json!(1e-6)),
        ("lr_scheduler_type", json!("linear")),
        ("max_length", json!(256)),
        ("ref_model", json!("model")),
        ("gradient_accumulation_steps", json!(1)),
        ("num_train_epochs", json!(null)),
        ("eval_steps", json!(2)),
        ("device", json!("cpu")),
        ("dtype", json!("f32")),
    ] {
        assert_eq!(config[name], value, "{name}");
    }
    let hash = |path: &str| blake3::hash(&bench.bytes(path)).to_hex().to_string();
    let files = |role: &str| manifest["files"][role].as_array().unwrap().clone();
    for (role, expected) in [
        ("train", &["groups.jsonl"][..]),
        ("eval", &["pairs.jsonl"]),
        ("model", &["model/config.json", "model/model.safetensors"]),
        ("reference", &["model/config.json", "model/model.safetensors"]),
        ("chat_template", &["template.jinja"]),
    ] {
        let found: Vec<(String, String)> = files(role)
            .iter()
            .map(|f| (f["path"].as_str().unwrap().to_owned(), f["blake3"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(found, expected.iter().map(|p| ((*p).to_owned(), hash(p))).collect::<Vec<_>>(), "{role}");
    }
    assert!(files("tokenizer").iter().any(|f| f["blake3"] == hash("model/tokenizer.json").as_str()));
    assert_eq!(manifest["environment"]["threads"], 2);
    assert_eq!(manifest["environment"]["ranks"], 1);
    assert_eq!(manifest["environment"]["variables"], json!({ "RAYON_NUM_THREADS": "2", "NO_COLOR": "1" }));
    assert!(manifest["crates"]["gemm"].as_str().unwrap().starts_with("0.19"));
    assert_eq!((&manifest["status"], &manifest["exit_code"]), (&json!("finished"), &json!(0)));
    assert!(manifest["ended"].as_f64() >= manifest["started"].as_f64());
}

#[test]
fn the_manifest_says_how_a_run_ended_and_lists_its_resumes() {
    let bench = Bench::new();
    let run = "reward --model model --train-file pairs.jsonl --output-dir out --lr-scheduler-type constant \
               --save-steps 2 --eval-file pairs.jsonl --eval-steps 1 --quiet";
    bench.run(&format!("{run} --max-steps 2")).ok();
    let first = bench.json("out/run.json");
    assert_eq!(first["resumes"], json!([]));
    bench.run(&format!("{run} --max-steps 4 --resume-from-checkpoint true")).ok();
    bench.run(&format!("{run} --max-steps 5 --resume-from-checkpoint out/checkpoint-4")).ok();
    let last = bench.json("out/run.json");
    assert_eq!(last["started"], first["started"]);
    let resumes = last["resumes"].as_array().unwrap();
    let steps: Vec<&Value> = resumes.iter().map(|r| &r["step"]).collect();
    assert_eq!(steps, [&json!(2), &json!(4)]);
    assert_eq!(
        (&resumes[1]["checkpoint"], &resumes[1]["status_before"]),
        (&json!("out/checkpoint-4"), &json!("finished"))
    );
    assert!(resumes[0]["command"].as_str().unwrap().ends_with("--max-steps 4 --resume-from-checkpoint true"));
    let (_, text) = page(&bench, "out/report.html");
    assert!(text.contains("resumed after step") && text.contains("after step 4 from out/checkpoint-4"), "{text}");

    // A learning rate near the largest f32 overflows at once.
    let wild = "reward --model model --train-file pairs.jsonl --output-dir wild --learning-rate 1e38 --max-steps 20 \
                --max-skipped-steps 2 --quiet";
    bench.run(wild).fails(4, &["not finite"]);
    let manifest = bench.json("wild/run.json");
    assert_eq!((&manifest["status"], &manifest["exit_code"]), (&json!("diverged"), &json!(4)));
    assert!(manifest["message"].as_str().unwrap().contains("lower --learning-rate"));
    let (_, text) = page(&bench, "wild/report.html");
    assert!(text.contains("The run diverged") && text.contains("updates were skipped"), "{text}");
}
