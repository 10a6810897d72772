//! The pipeline from pairs to scores: the output of every command.

use mapl::data::group::{PreferenceGroup, Response};
use mapl::data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::workbench::Bench;

/// ln 2 rounded to f32, as the CPU backend computes it.
const LN_2: f64 = std::f32::consts::LN_2 as f64;

const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn groups(bench: &Bench) -> Vec<PreferenceGroup> {
    bench.rows("groups.jsonl").into_iter().map(|row| serde_json::from_value(row).unwrap()).collect()
}

/// Checks the output `file` of `mapl score` against the groups: order, keys and token counts. Each logit must
/// be the signed sum of `rho`, the score of a sequence.
fn check_scores(bench: &Bench, file: &str, sequence_keys: &[&str], rho: impl Fn(&Value) -> f64) {
    let (rows, groups) = (bench.rows(file), groups(bench));
    let tokenizer = Tokenizer::load(&bench.at("tok")).unwrap();
    assert_eq!(rows.len(), 24);
    for (row, group) in rows.iter().zip(&groups) {
        let reference: &[&str] = if sequence_keys.contains(&"logp") { &["reference"] } else { &[] };
        assert_eq!(keys(row), [&["id"], reference, &["non_finite", "sequences", "comparisons"]].concat());
        assert_eq!((&row["id"], &row["non_finite"]), (&json!(group.id), &json!(0)));
        let sequences = row["sequences"].as_array().unwrap();
        let pairs: Vec<(usize, usize)> = sequences
            .iter()
            .map(|s| (s["prompt"].as_u64().unwrap() as usize, s["response"].as_u64().unwrap() as usize))
            .collect();
        assert_eq!(pairs, group.sequences());
        for (sequence, (_, response)) in sequences.iter().zip(&pairs) {
            assert_eq!(keys(sequence), sequence_keys);
            let Response::Text(text) = &group.responses[*response] else { panic!("expected a text response") };
            let tokens = tokenizer.encode(text, false).unwrap().len() + 1;
            assert_eq!(sequence["tokens"], tokens, "{text:?} and its end token");
        }
        let comparisons = row["comparisons"].as_array().unwrap();
        assert_eq!(comparisons.len(), group.comparisons.len());
        for (comparison, source) in comparisons.iter().zip(&group.comparisons) {
            assert_eq!(keys(comparison), ["kind", "logit", "correct"]);
            assert_eq!(comparison["kind"], source.kind.name());
            let place = |t: &mapl::data::group::Term| pairs.iter().position(|&p| p == (t.prompt, t.response)).unwrap();
            let sum: f64 = source.terms.iter().map(|t| f64::from(t.sign) * rho(&sequences[place(t)])).sum();
            let logit = comparison["logit"].as_f64().unwrap();
            assert!((logit - sum).abs() <= 1e-6, "{} is {logit}, not {sum}", row["id"]);
            assert_eq!(comparison["correct"], logit > 0.0);
        }
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// Checks the files of a finished run.
fn check_run(bench: &Bench, run: &str, steps: u64) {
    for file in TOKENIZER_FILES {
        assert_eq!(bench.bytes(&format!("{run}/{file}")), bench.bytes(&format!("tok/{file}")), "{run}/{file}");
    }
    assert!(bench.at(run).join("model.safetensors").is_file());
    assert!(bench.json(&format!("{run}/config.json"))["architectures"].is_array());
    let state = bench.json(&format!("{run}/trainer_state.json"));
    assert_eq!(state["global_step"], steps);
    assert_eq!(state["log_history"].as_array().unwrap().last().unwrap()["step"], steps);
    let manifest = bench.json(&format!("{run}/run.json"));
    assert_eq!(manifest["schema"], 1);
    assert!(manifest["command"].as_str().unwrap().starts_with("mapl "));
    assert!(manifest["settings"].is_object() && manifest["fingerprint"].is_object());
    let train = bench.metrics(run, "train");
    assert_eq!(
        train.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        (1..=steps).collect::<Vec<_>>()
    );
    let mut tokens = 0.0;
    for row in &train {
        assert_eq!(row["schema"], 1);
        for key in ["loss", "learning_rate", "grad_norm", "epoch"] {
            assert!(number(row, key) >= 0.0);
        }
        assert!(number(row, "num_tokens") > tokens);
        tokens = number(row, "num_tokens");
    }
    assert!(!bench.listing().iter().any(|path| path.to_string_lossy().ends_with(".tmp")));
}

#[test]
fn every_command_accepts_the_output_of_the_one_before() {
    let bench = Bench::new();
    let shown = bench.run("data show --input groups.jsonl --tokenizer tok --rows 1").ok().out;
    for part in ["base +sequence 0 -sequence 1", "[[", "<|im_end|>]]", "prefix tree"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let common = "--train-file groups.jsonl --per-device-train-batch-size 8 --max-steps 3 --eval-file groups.jsonl";
    for (model, class) in [("model", "Llama"), ("qwen", "Qwen2")] {
        let run = |name: &str| format!("{model}-{name}");
        let (sft, reward, dpo) = (run("sft"), run("reward"), run("dpo"));
        bench.run(&format!("sft --model {model} --output-dir {sft} {common} --learning-rate 1e-2")).ok();
        check_run(&bench, &sft, 3);
        let losses: Vec<f64> = bench.metrics(&sft, "eval").iter().map(|row| number(row, "eval_loss")).collect();
        assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");
        assert_eq!(bench.json(&format!("{sft}/config.json"))["architectures"][0], format!("{class}ForCausalLM"));

        let out = bench.run(&format!("reward --model {sft} --output-dir {reward} {common}")).ok().out;
        assert!(out.contains("reward head: drawn"), "{out}");
        check_run(&bench, &reward, 3);
        let architecture = format!("{class}ForSequenceClassification");
        assert_eq!(bench.json(&format!("{reward}/config.json"))["architectures"][0], architecture);
        for key in ["min_reward", "mean_reward", "max_reward", "accuracy", "margin", "rewards/margins/base"] {
            assert!(bench.metrics(&reward, "train")[0][key].is_number(), "{key}");
        }

        let out = bench.run(&format!("dpo --model {sft} --output-dir {dpo} {common} --learning-rate 1e-3")).ok().out;
        assert!(out.contains("identity check passed"), "{out}");
        check_run(&bench, &dpo, 3);
        let first = &bench.metrics(&dpo, "train")[0];
        for kind in ["base", "intra", "inter"] {
            assert_eq!(number(first, &format!("loss/{kind}")), LN_2, "{kind}");
            assert_eq!(number(first, &format!("rewards/margins/{kind}")), 0.0);
        }
        assert_eq!(number(first, "loss"), 3.0 * LN_2);
        for key in ["logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/accuracies"] {
            assert!(first[key].is_number(), "{key}");
        }
        for key in ["entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"] {
            assert!(first[key].is_number(), "{key}");
        }

        let score = |rest: &str| bench.run(&format!("score --input groups.jsonl --output scores.jsonl {rest}")).ok();
        score(&format!("--model {dpo} --ref-model {sft} --beta 0.3"));
        let gap = |s: &Value| 0.3 * (number(s, "logp") - number(s, "ref_logp"));
        check_scores(&bench, "scores.jsonl", &["prompt", "response", "tokens", "logp", "ref_logp"], gap);
        assert!(bench.rows("scores.jsonl").iter().any(|row| number(&row["comparisons"][0], "logit") != 0.0));
        score(&format!("--model {dpo} --ref-model none"));
        let logp = |s: &Value| 0.1 * number(s, "logp");
        check_scores(&bench, "scores.jsonl", &["prompt", "response", "tokens", "logp"], logp);
        score(&format!("--model {reward}"));
        check_scores(&bench, "scores.jsonl", &["prompt", "response", "tokens", "reward"], |s| number(s, "reward"));

        let table = bench.run(&format!("eval --model {reward} --input groups.jsonl --output eval.json")).ok().out;
        let (eval, rows) = (bench.json("eval.json"), bench.rows("scores.jsonl"));
        for (kind, name) in [("base", "semantic"), ("intra", "intra"), ("inter", "inter")] {
            let of_kind: Vec<&Value> = rows
                .iter()
                .flat_map(|row| row["comparisons"].as_array().unwrap())
                .filter(|c| c["kind"] == kind)
                .collect();
            let correct = of_kind.iter().filter(|c| c["correct"] == true).count();
            assert_eq!(eval[name]["count"], of_kind.len());
            assert_eq!(eval[name]["correct"], correct);
            assert_eq!(number(&eval[name], "accuracy"), correct as f64 / of_kind.len() as f64);
            assert!(table.contains(name));
        }
    }
}

#[test]
fn the_reference_device_agrees_with_the_cpu() {
    let bench = Bench::new();
    bench.run("score --model model --input pairs.jsonl --output cpu.jsonl --device cpu --dtype f32").ok();
    bench.run("score --model model --input pairs.jsonl --output ref.jsonl --device reference").ok();
    for (a, b) in bench.rows("cpu.jsonl").iter().zip(&bench.rows("ref.jsonl")) {
        for (a, b) in a["sequences"].as_array().unwrap().iter().zip(b["sequences"].as_array().unwrap()) {
            let (a, b) = (number(a, "logp"), number(b, "logp"));
            assert!((a / b - 1.0).abs() < 2e-5, "{a} and {b}");
        }
    }
}

#[test]
fn a_run_prints_its_plan() {
    let bench = Bench::new();
    let words = "dpo --model qwen --train-file groups.jsonl --output-dir out --max-steps 1";
    let out = bench.run(words).ok().out;
    let parts = [
        "groups.jsonl: 24 group rows",
        "run           dpo on cpu (f32",
        "output        out",
        "model         Qwen2ForCausalLM with ",
        "reference     qwen, frozen",
        "batch         8 groups x 1 = 8 per update, 3 updates per epoch, 1 update in total",
        "learning rate 1e-6, linear, 0 warm-up steps",
        "max length    256 tokens, the model's limit",
        "rows          24 read, 24 kept",
        "tokens        per sequence, before the limit: p50 ",
        "% saved",
        "loss          [1 mean_base + 1 mean_intra + 1 mean_inter] of softplus(-z)",
        "\nbase of group ",
        "<|im_end|>]]",
        "\nintra of group ",
        "\ninter of group ",
        "identity check passed",
        "step 1/1 | loss 2.0794 | acc - | intra - | inter - | margin +0.000 | gnorm ",
        "done: 1 step in",
    ];
    let mut from = 0;
    for part in parts {
        let found = out[from..].find(part).unwrap_or_else(|| panic!("no {part:?} after byte {from} of\n{out}"));
        from += found;
    }
    let words = "reward --model model --train-file pairs.jsonl --eval-file groups.jsonl --eval-steps 2 --objective mapl \
                 --output-dir r --max-steps 2";
    let out = bench.run(words).ok().out;
    let parts = [
        "objective mapl, on cpu",
        "cosine, 10 warm-up steps",
        "lower --warmup-steps",
        "evaluation    24 of 24 rows, every 2 updates",
    ];
    for part in parts {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
    let quiet = bench.run("dpo --model qwen --train-file groups.jsonl --output-dir q --max-steps 1 --quiet").ok();
    assert!(quiet.out.starts_with("done: 1 step in") && quiet.out.lines().count() == 1, "{}", quiet.out);
    assert_eq!(quiet.err, "");
}

#[test]
fn a_tokenizer_trains_on_rows_of_any_kind_and_on_plain_text() {
    let bench = Bench::new();
    bench.write("notes.txt", "{a brace begins this line of plain text\n[and a bracket this one\n\n");
    bench.write("talk.jsonl", r#"{"messages": [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "zzqq zzqq zzqq zzqq"}]}"#);
    bench.run("tokenizer --input notes.txt talk.jsonl groups.jsonl --vocab-size 300 --output-dir t2").ok();
    let tokenizer = Tokenizer::load(&bench.at("t2")).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("zzqq [x]", false).unwrap()).unwrap(), "zzqq [x]");
    // Merges are learned from the text of rows, not from keys and roles.
    bench.run("tokenizer --input talk.jsonl --vocab-size 270 --output-dir t3").ok();
    let tokenizer = Tokenizer::load(&bench.at("t3")).unwrap();
    assert!(tokenizer.encode("zzqq", false).unwrap().len() < 4);
    assert_eq!(tokenizer.encode("messages", false).unwrap().len(), "messages".len());
}

#[test]
fn a_closed_pipe_does_not_end_a_run() {
    use std::process::Stdio;
    let bench = Bench::new();
    let words = "reward --model model --train-file groups.jsonl --output-dir out --max-steps 2";
    let mut child = bench.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    check_run(&bench, "out", 2);
}

#[test]
fn json_arrays_of_conversations_and_gzip_are_trained_and_scored() {
    use std::io::Write as _;
    let bench = Bench::new();
    let turn = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let row = |i: usize| {
        let [prompt, yes, no] = [turn("user", "Name a bird."), turn("assistant", "A wren."), turn("assistant", "No.")];
        format!(r#"{{"id": "talk-{i}", "prompt": [{prompt}], "chosen": [{yes}], "rejected": [{no}]}}"#)
    };
    bench.write("talk.json", format!("[{},\n{}]", row(0), row(1)));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bench.bytes("talk.json")).unwrap();
    bench.write("talk.json.gz", gzip.finish().unwrap());
    for (name, file) in [("plain", "talk.json"), ("packed", "talk.json.gz")] {
        let words = format!(
            "dpo --model model --train-file {file} --output-dir {name} --max-steps 1 --ref-model none --examples 1"
        );
        let out = bench.run(&words).ok().out;
        assert!(
            out.contains("<|im_start|>user\nName a bird.<|im_end|>") && out.contains("[[A wren.<|im_end|>"),
            "{out}"
        );
        assert!(!out.contains("identity check"), "without a reference there is nothing to check");
        bench.run(&format!("score --model {name} --input {file} --output {name}.jsonl")).ok();
    }
    assert_eq!(bench.bytes("plain.jsonl"), bench.bytes("packed.jsonl"));
    let ids: Vec<Value> = bench.rows("plain.jsonl").into_iter().map(|mut row| row["id"].take()).collect();
    assert_eq!(ids, ["talk-0", "talk-1"]);
}

#[cfg(unix)]
#[test]
fn an_output_that_is_a_symlink_stays_one() {
    let bench = Bench::new();
    bench.write("target.jsonl", "old");
    std::os::unix::fs::symlink("target.jsonl", bench.at("link.jsonl")).unwrap();
    bench.run("score --model model --input pairs.jsonl --output link.jsonl").ok();
    assert!(bench.at("link.jsonl").is_symlink());
    assert_eq!(bench.rows("target.jsonl").len(), 24);
}

#[test]
fn a_diverging_run_stops_with_code_4() {
    let bench = Bench::new();
    let words = "dpo --model model --train-file groups.jsonl --output-dir out --learning-rate 1e30 --max-steps 9 \
                 --max-skipped-steps 2 --save-steps 1";
    let done = bench
        .run(words)
        .fails(4, &["warning: step 2", "2 updates in a row", "step 3", "no good checkpoint", "--learning-rate"]);
    assert!(done.out.contains("(skipped)") || done.out.contains("step 1/9"), "{}", done.out);
    let train = bench.metrics("out", "train");
    assert_eq!(train.len(), 3);
    assert_eq!((&train[2]["loss"], &train[2]["skipped_steps"]), (&"NaN".into(), &2.into()));
    assert!(!bench.at("out/model.safetensors").exists());
}
