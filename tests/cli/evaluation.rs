//! `mapl eval`: its result file, its options, and comparisons of two models, given as folders or as
//! saved results.

use crate::workbench::Bench;
use serde_json::Value;

const WHOLE: [&str; 7] = ["semantic", "length_only", "intra", "inter", "sensitivity", "sensitivity_flip", "conflict"];
const PROBES: [&str; 3] = ["semantic_empty_prompt", "semantic_shuffled_prompt", "intra_empty_prompt"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn every_measure_has_counts_and_an_interval() {
    let bench = Bench::new();
    let eval = |rest: &str| bench.run(&format!("eval --model model --input groups.jsonl {rest}")).ok().out;
    let holdout = "--holdout-functions number_words,keywords:existence";
    let table = eval(&format!("--output e.json --prompt-blindness {holdout}"));
    let result = bench.json("e.json");
    for name in WHOLE.iter().chain(&PROBES) {
        let measure = &result[*name];
        let (count, correct, ties) = (number(&measure["count"]), number(&measure["correct"]), number(&measure["ties"]));
        assert!(count >= 20.0, "{name}: {measure}");
        assert_eq!(number(&measure["accuracy"]), correct / count, "{name}");
        assert_eq!(number(&measure["accuracy_half"]), (correct + 0.5 * ties) / count, "{name}");
        let interval = &measure["accuracy_interval"];
        if !interval.is_null() {
            let accuracy = number(&measure["accuracy"]);
            assert!(number(&interval[0]) <= accuracy && accuracy <= number(&interval[1]), "{name}: {measure}");
        }
        assert!(table.contains(&format!("\n{name} ")), "{name} in\n{table}");
    }
    assert_eq!(result["intra_empty_prompt"]["ties"], result["intra_empty_prompt"]["count"]);
    // Breakdowns cover all comparisons: with one label per comparison, the counts add up to the
    // total.
    let sum = |by: &str, measure: &str| {
        result[by][measure].as_object().unwrap().values().map(|entry| number(&entry["count"])).sum::<f64>()
    };
    for (by, measure) in [
        ("by_length", "semantic"),
        ("by_rule", "intra"),
        ("by_violations", "intra"),
        ("by_instructions", "intra"),
        ("by_holdout", "intra"),
        ("by_direction", "inter"),
        ("by_instructions", "inter"),
    ] {
        assert_eq!(sum(by, measure), number(&result[measure]["count"]), "{by} of {measure}");
    }
    assert_eq!(result["holdout_functions"][0], "length_constraints:number_words");
    assert_eq!(number(&result["scores"]["chosen"]["count"]), number(&result["semantic"]["count"]));

    // Without probes and intervals, the remaining results are the same.
    let plain: Value = serde_json::from_str(&eval("--json --bootstrap 0")).unwrap();
    assert_eq!((&plain["bootstrap"], &plain["semantic"]["accuracy_interval"]), (&Value::Null, &Value::Null));
    assert_eq!(plain["inter"]["correct"], result["inter"]["correct"]);
    assert!(PROBES.iter().all(|name| plain.get(name).is_none()) && plain.get("observations").is_none());
    assert_eq!(plain["by_holdout"], serde_json::json!({}));
    assert!(!eval("--bootstrap 0").contains("95 % interval"));
}

/// Results have the mean and standard deviation of rewards. Equal runs, different batches and different
/// thread counts give equal files.
#[test]
fn results_do_not_depend_on_batches_or_threads() {
    let bench = Bench::new();
    bench.run("reward --model qwen --train-file groups.jsonl --output-dir rm --max-steps 2").ok();
    let words = "eval --model rm --input groups.jsonl --prompt-blindness --bootstrap 200 --output";
    bench.run(&format!("{words} a.json")).ok();
    bench.run(&format!("{words} b.json --batch-tokens 1")).ok();
    bench.run_with(&format!("{words} c.json --batch-tokens 300"), ("RAYON_NUM_THREADS", "1")).ok();
    assert!(bench.bytes("a.json") == bench.bytes("b.json") && bench.bytes("a.json") == bench.bytes("c.json"));
    bench.run(&format!("{words} d.json --seed 1")).ok();
    let (a, d) = (bench.json("a.json"), bench.json("d.json"));
    assert_ne!(a["intra"]["mean_logit_interval"], d["intra"]["mean_logit_interval"]);
    assert_eq!(a["intra"]["correct"], d["intra"]["correct"]);
    assert_eq!((a["head"].as_str(), &a["beta"]), (Some("reward"), &Value::Null));

    bench.run("score --model rm --input groups.jsonl --output s.jsonl").ok();
    let rewards: Vec<f64> = bench
        .rows("s.jsonl")
        .iter()
        .flat_map(|row| row["sequences"].as_array().unwrap().iter().map(|s| number(&s["reward"])).collect::<Vec<_>>())
        .collect();
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    let std = (rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / rewards.len() as f64).sqrt();
    let all = &a["scores"]["all"];
    assert_eq!(number(&all["count"]), rewards.len() as f64);
    assert!((number(&all["mean"]) - mean).abs() < 1e-9 && (number(&all["std"]) - std).abs() < 1e-9 && std > 0.0);
}

#[test]
fn folders_and_saved_results_give_the_same_comparison() {
    let bench = Bench::new();
    for model in ["model", "qwen"] {
        bench.run(&format!("eval --model {model} --input groups.jsonl --output {model}.json")).ok();
    }
    bench.run("eval --compare model.json qwen.json --output files.json").ok();
    let table = bench.run("eval --compare model qwen --input groups.jsonl --output folders.json").ok().out;
    bench.run("compare model qwen --input groups.jsonl --output compared.json").ok();
    assert_eq!(
        bench.bytes("compared.json"),
        bench.bytes("folders.json"),
        "`eval --compare` and `compare` write the same result"
    );
    assert!(table.contains("A = model") && table.contains("McNemar p"), "{table}");
    bench.run("eval --compare model qwen.json --input groups.jsonl --output mixed.json").ok();
    let without_names = |name: &str| {
        let mut value = bench.json(name);
        value.as_object_mut().unwrap().retain(|key, _| key != "a" && key != "b");
        value
    };
    let compared = without_names("files.json");
    assert_eq!(compared, without_names("folders.json"));
    assert_eq!(compared, without_names("mixed.json"));

    let (a, b) = (bench.json("model.json"), bench.json("qwen.json"));
    for name in WHOLE.iter().filter(|name| **name != "length_only") {
        let line = &compared[*name];
        assert_eq!(
            (&line["accuracy_a"], &line["accuracy_b"]),
            (&a[*name]["accuracy"], &b[*name]["accuracy"]),
            "{name}"
        );
        let discordant = number(&line["only_b"]) - number(&line["only_a"]);
        assert_eq!(discordant, number(&b[*name]["correct"]) - number(&a[*name]["correct"]), "{name}");
        assert!((number(&line["difference"]) - discordant / number(&line["count"])).abs() < 1e-12, "{name}");
        assert!((0.0..=1.0).contains(&number(&line["mcnemar_p"])), "{name}");
    }
    assert!(compared["by_direction"]["inter"]["up"].is_object());
    // A model does not differ from itself.
    let same: Value = serde_json::from_str(&bench.run("eval --compare qwen.json qwen.json --json").ok().out).unwrap();
    assert_eq!((number(&same["intra"]["mcnemar_p"]), number(&same["intra"]["difference"])), (1.0, 0.0));
}

#[test]
fn invalid_comparisons_are_refused() {
    let bench = Bench::new();
    let rows = bench.rows("groups.jsonl");
    let some: String = rows[1..].iter().map(|row| format!("{row}\n")).collect();
    bench.write("some.jsonl", some);
    bench.run("eval --model model --input groups.jsonl --output all.json --bootstrap 0").ok();
    bench.run("eval --model model --input some.jsonl --output some.json --bootstrap 0").ok();
    bench.write("broken.json", "{\"schema\": 1, \"groups\": ");
    let before = bench.listing();
    for (words, code, parts) in [
        ("--compare all.json some.json", 2, &["different data", "all.json", "some.json", "24 groups", "23 groups"][..]),
        ("--compare model all.json --input some.jsonl", 2, &["all.json", "different data from --input"]),
        ("--compare all.json broken.json", 3, &["broken.json", "is not a result of `mapl eval --output`"]),
        ("--compare all.json absent.json", 2, &["absent.json", "neither a model folder nor a result file"]),
        ("--compare all.json tok", 2, &["--input"]),
        ("--compare all.json tok --input groups.jsonl", 6, &["tok"]),
        ("--compare all.json all.json --beta 0.3", 2, &["--beta has no effect on saved results"]),
        ("--compare all.json all.json --prompt-blindness", 2, &["--prompt-blindness has no effect"]),
        ("--compare all.json all.json --batch-tokens 9", 2, &["--batch-tokens has no effect"]),
        ("--compare all.json all.json --device cpu", 2, &["--device has no effect"]),
        ("--compare all.json all.json --dtype f32", 2, &["--dtype has no effect"]),
        ("--compare all.json all.json --mixed-formats", 2, &["--mixed-formats has no effect"]),
        ("--compare all.json all.json --model model", 2, &["--model has no effect with --compare"]),
        ("--compare all.json all.json --output all.json", 2, &["which is an input"]),
        ("--compare all.json", 2, &["--compare"]),
        ("--input groups.jsonl", 2, &["--model"]),
        ("--model model", 2, &["--input"]),
        ("--model model --input groups.jsonl --bootstrap 7", 2, &["from 100 to 1000000"]),
        ("--model model --input groups.jsonl --holdout-functions poem", 2, &["--holdout-functions", "\"poem\""]),
    ] {
        bench.run(&format!("eval {words}")).fails(code, parts);
    }
    assert_eq!(bench.listing(), before);
}

/// A DPO policy is measured with the reference of its run, and every result says what its scores are.
#[test]
fn a_dpo_folder_is_measured_with_its_reference() {
    let bench = Bench::new();
    let dpo = "dpo --model model --train-file pairs.jsonl --learning-rate 1e-3 --max-steps 2";
    bench.run(&format!("{dpo} --save-steps 1 --output-dir p")).ok();
    bench.run(&format!("{dpo} --ref-model none --output-dir free")).ok();
    let eval = |rest: &str| bench.run(&format!("eval --input pairs.jsonl --bootstrap 0 {rest}")).ok();
    let result = |rest: &str| -> Value { serde_json::from_str(&eval(&format!("--json {rest}")).out).unwrap() };
    let origin = |value: &Value| (value["reference"].clone(), value["reference_from"].as_str().map(str::to_owned));
    let named = |from: &str| (Value::from("model"), Some(from.to_owned()));
    let without = |from: &str| (Value::Null, Some(from.to_owned()));

    let recorded = result("--model p");
    let given = result("--model p --ref-model model");
    let plain = result("--model p --ref-model none");
    assert_eq!(origin(&recorded), named("run.json"));
    assert_eq!(origin(&given), named("--ref-model"));
    assert_eq!(origin(&plain), without("--ref-model none"));
    assert_eq!(recorded["semantic"], given["semantic"]);
    assert_ne!(recorded["semantic"]["mean_logit"], plain["semantic"]["mean_logit"]);
    assert_eq!(origin(&result("--model p/checkpoint-1")), named("run.json"));
    assert_eq!(origin(&result("--model free")), without("trained without"));
    assert_eq!(origin(&result("--model model")), without("not recorded"));
    for (flags, line) in [
        (
            "--model p",
            "reference: model (run.json of the policy); scores are the implicit reward, 0.1 (log pi - log ref), as trained with --loss-type sigmoid",
        ),
        ("--model p --ref-model model", "reference: model (--ref-model)"),
        ("--model p --ref-model none", "no reference (--ref-model none); scores are 0.1 log pi"),
        ("--model free", "no reference, as in this policy's training; scores are 0.1 log pi"),
        ("--model model", "no reference; scores are 0.1 log pi"),
    ] {
        let out = eval(flags).out;
        assert!(out.starts_with(line), "{flags}: {out}");
    }
    // In a different working folder, the reference's path is relative to the folder in which the run was
    // started.
    let mut elsewhere = bench.command("eval --model . --input ../pairs.jsonl --json");
    let elsewhere: Value =
        serde_json::from_slice(&elsewhere.current_dir(bench.at("p")).output().unwrap().stdout).unwrap();
    assert_eq!(elsewhere["semantic"]["mean_logit"], recorded["semantic"]["mean_logit"]);

    let score = |rest: &str| bench.run(&format!("score --input pairs.jsonl --output s.jsonl {rest}")).ok();
    assert!(score("--model p").out.contains("reference: model (run.json of the policy)"));
    let scored = bench.rows("s.jsonl");
    score("--model p --ref-model model");
    assert_eq!(scored, bench.rows("s.jsonl"));
    assert!(scored[0]["reference"] == "model" && scored[0]["sequences"][0]["ref_logp"].is_number());
    score("--model p --ref-model none");
    assert!(bench.rows("s.jsonl")[0]["reference"].is_null());

    eval("--model p --output p.json");
    for sides in ["p model", "p.json model"] {
        let out = bench.run(&format!("compare {sides} --input pairs.jsonl --output c.json")).ok().out;
        assert!(out.contains("A: reference: model (run.json") && out.contains("B: no reference; "), "{out}");
        let value = bench.json("c.json");
        assert_eq!((&value["reference_a"], &value["reference_from_b"]), (&"model".into(), &"not recorded".into()));
    }

    // First, the folder of the reference holds a different model; then, the folder is gone.
    std::fs::copy(bench.at("p/model.safetensors"), bench.at("model/model.safetensors")).unwrap();
    for (from, what) in [("changed", "has changed since the run"), ("gone", "is gone")] {
        let done = eval("--model p");
        let warning = done.out.lines().next().unwrap();
        assert!(warning.starts_with("warning: the reference model of this DPO policy"), "{warning}");
        for part in [what, "plain log-probability", "not the implicit reward", "--ref-model"] {
            assert!(warning.contains(part), "no {part:?} in {warning}");
        }
        let json = eval("--model p --json");
        assert!(json.err.contains(what), "{}", json.err);
        let value: Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(origin(&value), without(from));
        assert_eq!(value["semantic"], plain["semantic"]);
        assert!(score("--model p").err.contains(what));
        assert!(bench.run("compare p p --input pairs.jsonl --json").ok().err.contains("A: warning: the reference"));
        let _ = std::fs::remove_dir_all(bench.at("model"));
    }
    for damaged in ["{", "{}", "[]", "null"] {
        bench.write("p/run.json", damaged);
        bench.run("eval --model p --input pairs.jsonl").fails(6, &["run.json", "damaged", "--ref-model"]);
    }
    eval("--model p --ref-model none");
}

/// `score` uses the loss in run.json, so its logits equal those of the evaluation at the end of training.
#[test]
fn policies_are_measured_with_the_score_that_was_trained() {
    let bench = Bench::new();
    bench.bash("head -n 3 pairs.jsonl > few.jsonl").ok();
    for (name, flags, said) in [
        (
            "simpo",
            "--loss-type simpo --beta 0.3",
            "no reference, as in this policy's training; scores are 0.3 mean log pi",
        ),
        ("orpo", "--loss-type orpo --beta 0.3", "scores are log odds, log odds = u - log(1 - exp(u)), u = mean log pi"),
        ("ipo", "--loss-type ipo", "scores are the implicit reward, 0.1 mean (log pi - log ref)"),
        ("norm", "--loss-type sigmoid_norm,hinge", "scores are the implicit reward, 0.1 (log pi - log ref) / tokens"),
        (
            "kl",
            "--f-divergence-type forward_kl --beta 0.5",
            "scores are 0.5 s, s = 1 - exp(-u), u = (log pi - log ref)",
        ),
    ] {
        let run = "dpo --model model --train-file few.jsonl --eval-file few.jsonl --max-steps 1 --learning-rate 1e-3";
        bench.run(&format!("{run} --output-dir {name} {flags}")).ok();
        let out = bench.run(&format!("score --model {name} --input few.jsonl --output s.jsonl")).ok().out;
        assert!(out.contains(said) && out.contains("as trained with --loss-type"), "{name}: {out}");
        let logits = |rows: Vec<Value>| -> Vec<f64> {
            rows.iter().flat_map(|row| row["comparisons"].as_array().unwrap()).map(|c| number(&c["logit"])).collect()
        };
        let (scored, trained) =
            (logits(bench.rows("s.jsonl")), logits(bench.rows(&format!("{name}/eval_scores.jsonl"))));
        assert_eq!(scored.len(), 3);
        for (a, b) in scored.iter().zip(&trained) {
            assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{name}: {scored:?} {trained:?}");
        }
    }
    let rows = |flags: &str| {
        let done = bench.run(&format!("score --model {flags} --input few.jsonl --output s.jsonl")).ok();
        let row = bench.rows("s.jsonl")[0].clone();
        let side = |name: &str| number(&row["sequences"][usize::from(name == "rejected")]["logp"]);
        (number(&row["comparisons"][0]["logit"]), side("chosen") - side("rejected"), done.out)
    };
    let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * (1.0 + b.abs());
    let (logit, gap, _) = rows("simpo");
    assert!(close(logit, 0.3 * gap), "{logit} {gap}");
    let (logit, gap, said) = rows("simpo --beta 2 --loss-type sigmoid");
    assert!(close(logit, 2.0 * gap) && said.contains("with --beta, --loss-type instead"), "{logit} {gap} {said}");
    let (logit, gap, said) = rows("kl --ref-model none");
    assert!(close(logit, 0.5 * gap) && said.contains("without the divergence"), "{logit} {gap} {said}");
    // `--loss-type` replaces the recorded loss, so that two policies can be measured by the same score.
    let eval = |flags: &str| bench.run(&format!("eval --input few.jsonl --bootstrap 0 {flags}"));
    let out = eval("--model simpo --loss-type sigmoid --ref-model model --json").ok().out;
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["score"], "the implicit reward, 0.3 (log pi - log ref)");
    eval("--model simpo --loss-type sft").fails(2, &["--loss-type sft is the likelihood"]);
    eval("--model simpo --ref-model model").fails(2, &["--ref-model has no effect", "--loss-type sigmoid"]);
    eval("--model kl --output kl.json").ok();
    let out = bench.run("compare kl.json simpo --input few.jsonl --bootstrap 0").ok().out;
    assert!(
        out.contains("A: reference: model") && out.contains("scores are 0.5 s") && out.contains("B: no ref"),
        "{out}"
    );
    bench.run("compare kl.json kl.json --beta 2").fails(2, &["--beta has no effect on saved results"]);
}
