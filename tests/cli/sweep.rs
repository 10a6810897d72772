//! `mapl study sweep`: points of a grid, preparation, evaluation, and means over seeds.

use serde_json::json;

use crate::study::text_of;
use crate::workbench::Bench;

#[test]
fn a_sweep_compares_its_points_and_continues_after_a_failure() {
    let bench = Bench::new();
    bench.write(
        "sweep.toml",
        "method = \"reward\"\n[flags]\nmodel = \"model\"\ntrain-file = \"groups.jsonl\"\nmax-steps = 4\ndevice = \"cpu\"\n\
         [vary]\nper-device-train-batch-size = [1, 2]\nprefix-sharing = [\"on\", \"off\", \"maybe\"]\n",
    );
    let out = bench.run("study sweep sweep.toml --output-dir grid").ok().out;
    assert!(out.contains("3/6 per-device-train-batch-size=1 prefix-sharing=maybe: failed: invalid value"), "{out}");
    let rows = bench.json("grid/sweep.json");
    let points = rows["points"].as_array().unwrap();
    assert_eq!(points.len(), 6);
    let number = |at: usize, name: &str| points[at][name].as_f64().unwrap_or_else(|| panic!("{at} {name}: {rows}"));
    for at in [0, 1, 3, 4] {
        assert_eq!(points[at]["error"], "", "{rows}");
        assert_eq!(number(at, "steps"), 2.0);
        assert!(number(at, "tokens_per_s") > 0.0 && number(at, "share_of_product") > 0.0);
    }
    assert!(points[2]["error"].as_str().unwrap().contains("maybe") && points[2]["step_ms"].is_null());
    // Without prefix sharing every sequence repeats its prompt.
    let tokens = |point: &str| {
        let study = bench.json(&format!("grid/{point}/study.json"));
        study["steps"].as_array().unwrap().iter().map(|step| step["tokens"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(tokens("p002") > tokens("p001"), "{} {}", tokens("p002"), tokens("p001"));
    assert!(!bench.at("grid/p001/run").exists());
    let csv = String::from_utf8(bench.bytes("grid/sweep.csv")).unwrap();
    assert_eq!(csv.lines().count(), 7);
    assert!(csv.starts_with("point,per-device-train-batch-size,prefix-sharing,error,steps,step_ms"), "{csv}");
    let text = text_of(&String::from_utf8(bench.bytes("grid/report.html")).unwrap());
    for part in
        ["Over per-device-train-batch-size", "prefix-sharing=off", "Tokens per second (1/s)", "p003: invalid value"]
    {
        assert!(text.contains(part), "{part} is missing");
    }
    // Finished points are not repeated, failed points are.
    let again = bench.run("study sweep sweep.toml --output-dir grid").ok().out;
    assert_eq!(again.matches("finished earlier").count(), 4, "{again}");
    bench.run("study sweep nowhere.toml --output-dir grid").fails(1, &["nowhere.toml"]);
    bench.write("bad.toml", "method = 3");
    bench.run("study sweep bad.toml --output-dir grid").fails(3, &["bad.toml:1", "[vary]"]);
}

/// A sweep with commands before the runs, variants, seeds and evaluations: the summary has means over
/// seeds with intervals, and differences to the first variant.
#[test]
fn a_sweep_prepares_evaluates_and_averages_over_seeds() {
    let bench = Bench::new();
    let text = r#"
method = "reward"
prepare = [
    ["data", "language", "--split", "train", "--rows", "24", "--seed", "{seed}", "--output", "{out}/train-{seed}.jsonl"],
    ["data", "language", "--split", "test", "--rows", "10", "--output", "{out}/test.jsonl"],
    ["data", "build", "--input", "{out}/test.jsonl", "--output", "{out}/test-mapl.jsonl", "--k-max", "2"],
]
[flags]
model = "model"
train-file = "{out}/train-{seed}.jsonl"
max-steps = 3
per-device-train-batch-size = 2
device = "cpu"
[vary]
seed = [3, 4]
[[variants]]
name = "base"
flags = { objective = "base" }
[[variants]]
name = "MAPL, two instructions"
flags = { objective = "mapl", k-max = 2, max-steps = 4 }
[measure]
input = "{out}/test-mapl.jsonl"
bootstrap = 0
device = "cpu"
"#;
    bench.write("sweep.toml", text);
    let out = bench.run("study sweep sweep.toml --output-dir grid --keep-runs").ok().out;
    // The sweep prepares one language per seed, and one test set by two commands.
    assert_eq!(out.matches("$ mapl data").count(), 4, "{out}");
    assert!(
        out.contains("Held-out accuracy: mean over seeds") && out.contains("Difference from base, seed by seed"),
        "{out}"
    );
    let rows = bench.json("grid/sweep.json");
    assert_eq!(rows["axes"], json!(["variant", "seed"]));
    let points = rows["points"].as_array().unwrap();
    let semantic: Vec<f64> = points.iter().map(|point| point["accuracy"]["semantic"].as_f64().unwrap()).collect();
    for (point, value) in ["p001", "p002", "p003", "p004"].iter().zip(&semantic) {
        let eval = bench.json(&format!("grid/{point}/eval.json"));
        assert_eq!(eval["semantic"]["accuracy"].as_f64(), Some(*value));
        let run = bench.json(&format!("grid/{point}/run/run.json"));
        assert_eq!(run["status"], "finished", "{run}");
    }
    let settings = rows["summary"]["settings"].as_array().unwrap();
    let mean = settings[1]["accuracy"]["semantic"]["value"].as_f64().unwrap();
    assert!((mean - (semantic[2] + semantic[3]) / 2.0).abs() < 1e-12);
    let difference = settings[1]["difference"]["semantic"]["value"].as_f64().unwrap();
    assert!((difference - (semantic[2] + semantic[3] - semantic[0] - semantic[1]) / 2.0).abs() < 1e-12);
    assert_eq!(settings[1]["difference"]["semantic"]["seeds"], 2);
    assert!(settings[0]["difference"].as_object().unwrap().is_empty());
    let flops = |at: usize| settings[at]["tflop"].as_f64().unwrap();
    assert!(flops(1) > flops(0), "{settings:?}");
    let csv = String::from_utf8(bench.bytes("grid/sweep.csv")).unwrap();
    assert!(
        csv.lines().next().unwrap().contains(
            ",tflop,semantic,\"semantic, chosen longer\",\"semantic, rejected longer\",length_only,intra,inter,"
        ),
        "{csv}"
    );
    let page = text_of(&String::from_utf8(bench.bytes("grid/report.html")).unwrap());
    // A chart over seeds would be meaningless, so the page has none.
    assert!(page.contains("Difference from base") && !page.contains("Over seed"), "{page}");
    // Finished points and commands are not repeated. A changed evaluation is repeated at every point, but
    // kept runs are not trained again.
    let again = bench.run("study sweep sweep.toml --output-dir grid").ok().out;
    assert_eq!((again.matches("finished earlier").count(), again.matches("$ mapl").count()), (4, 0), "{again}");
    bench.write("sweep.toml", text.replace("bootstrap = 0", "bootstrap = 100"));
    let study = bench.bytes("grid/p001/study.json");
    std::fs::remove_file(bench.at("grid/p003/run/run.json")).unwrap();
    // The file has the same rows, but a different hash.
    bench.write("grid/train-4.jsonl", [&bench.bytes("grid/train-4.jsonl")[..], b"\n"].concat());
    let again = bench.run("study sweep sweep.toml --output-dir grid").ok().out;
    assert_eq!((again.matches("finished earlier").count(), again.matches("$ mapl").count()), (0, 0), "{again}");
    assert_eq!(again.matches("trained earlier").count(), 1, "{again}");
    assert_eq!(bench.bytes("grid/p001/study.json"), study);
    let rows = bench.json("grid/sweep.json");
    let found = rows["points"].as_array().unwrap().iter().map(|point| point["accuracy"]["semantic"].as_f64().unwrap());
    assert_eq!(found.collect::<Vec<_>>(), semantic);
    assert!(!bench.at("grid/p001/run").exists());
    // A command that the argument parser rejects is reported before any command runs. A command that fails
    // ends the sweep.
    bench.write("sweep.toml", text.replace("\"--rows\", \"24\"", "\"--lines\", \"24\""));
    bench.run("study sweep sweep.toml --output-dir new").fails(2, &["prepare, mapl data language", "'--lines'"]);
    bench.write("sweep.toml", text.replace("bootstrap = 0", "bootstraps = 0"));
    bench.run("study sweep sweep.toml --output-dir new").fails(2, &["[measure]: unexpected argument '--bootstraps'"]);
    assert!(!bench.at("new").exists());
    bench.write("sweep.toml", text.replace("\"--input\", \"{out}/test.jsonl\"", "\"--input\", \"{out}/none.jsonl\""));
    bench.run("study sweep sweep.toml --output-dir new").fails(1, &["prepare, mapl data build", "none.jsonl"]);
    // Two commands that write to one file are an error. A benchmark is an error too, because its results have
    // a different format.
    bench.write("sweep.toml", text.replace("{out}/train-{seed}.jsonl", "{out}/train.jsonl"));
    bench
        .run("study sweep sweep.toml --output-dir twice")
        .fails(2, &["two commands write twice/train.jsonl", "{seed}"]);
    bench.write("sweep.toml", text.replace("bootstrap = 0", "benchmark = \"rmb\""));
    bench.run("study sweep sweep.toml --output-dir twice").fails(3, &["[measure] benchmark"]);
    // A prepared file that is missing is written again.
    bench.write("sweep.toml", text.replace("bootstrap = 0", "bootstrap = 200"));
    std::fs::remove_file(bench.at("grid/train-4.jsonl")).unwrap();
    let again = bench.run("study sweep sweep.toml --output-dir grid").ok().out;
    assert_eq!(again.matches("$ mapl data language").count(), 1, "{again}");
}

/// A prepared file belongs to the last command that wrote it, even if an earlier command is asked for again.
#[test]
fn a_prepared_file_is_made_again_after_a_different_command_wrote_it() {
    let bench = Bench::new();
    for rows in [12, 14, 12] {
        let text = format!(
            "method = \"reward\"\nprepare = [[\"data\", \"language\", \"--split\", \"train\", \"--rows\", \"{rows}\", \
             \"--output\", \"{{out}}/train.jsonl\"]]\n[flags]\nmodel = \"model\"\ntrain-file = \"{{out}}/train.jsonl\"\n\
             max-steps = 3\ndevice = \"cpu\"\n[vary]\nseed = [3]\n"
        );
        bench.write("sweep.toml", text);
        let out = bench.run("study sweep sweep.toml --output-dir grid").ok().out;
        assert_eq!(out.matches("$ mapl data language").count(), 1, "{out}");
        assert_eq!(bench.rows("grid/train.jsonl").len(), rows);
    }
}

/// Runs the smallest committed experiment with few rows and steps; every variant trains and is evaluated.
#[test]
fn the_smallest_experiment_runs() {
    let bench = Bench::new();
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/experiments/language-dpo.toml");
    let mut text = std::fs::read_to_string(committed).unwrap();
    for (whole, short) in [
        ("\"12000\"", "\"60\""),
        ("\"400\"", "\"10\""),
        ("\"1024\"", "\"320\""),
        ("\"--max-steps\", \"300\"", "\"--max-steps\", \"3\""),
        ("\"--warmup-steps\", \"20\"", "\"--warmup-steps\", \"1\""),
        ("\"--per-device-train-batch-size\", \"32\"", "\"--per-device-train-batch-size\", \"4\""),
        ("warmup-steps = 30", "warmup-steps = 1"),
        ("per-device-train-batch-size = 8", "per-device-train-batch-size = 1"),
        ("max-steps = 600", "max-steps = 3"),
        ("max-steps = 2800", "max-steps = 5"),
        ("[42, 43, 44, 45, 46]", "[42]"),
    ] {
        assert!(text.contains(whole), "{whole}");
        text = text.replace(whole, short);
    }
    bench.write("small.toml", &text);
    bench.run("study sweep small.toml --output-dir small").ok();
    let rows = bench.json("small/sweep.json");
    let settings = rows["summary"]["settings"].as_array().unwrap();
    assert_eq!(settings.len(), text.matches("[[variants]]").count());
    for setting in settings {
        assert!(setting["accuracy"]["semantic"]["value"].is_number(), "{setting}");
        assert!(setting["accuracy"]["intra, functions held out"]["value"].is_number(), "{setting}");
    }
}

/// Runs a sweep with inputs from the command line, whose policies generate responses to prompts after
/// training.
#[test]
fn a_sweep_takes_inputs_and_lets_policies_answer_prompts() {
    let bench = Bench::new();
    let text = r#"
method = "dpo"
inputs = ["start", "asked"]
[flags]
model = "{start}"
train-file = "pairs.jsonl"
max-steps = 3
device = "cpu"
[vary]
seed = [3, 4]
[ifeval]
input = "{asked}"
max-new-tokens = 3
"#;
    bench.write("sweep.toml", text);
    let row = |key: usize, prompt: &str| {
        json!({"key": key, "prompt": prompt, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
            .to_string()
    };
    bench.write("asked.jsonl", format!("{}\n{}\n", row(1, "a b"), row(2, "c")));
    let words = "study sweep sweep.toml --output-dir grid";
    bench.run(words).fails(2, &["needs --set start=... --set asked=..."]);
    assert!(!bench.at("grid").exists());
    let given = format!("{words} --set start=model --set asked=asked.jsonl");
    let told = bench.run(&given).ok().err;
    let note = "mapl ifeval: note: 2 of 2 prompts are plain text";
    assert_eq!(told.matches(note).count(), 1, "notes of commands are told once for all points: {told}");
    let accuracy = bench.json("grid/sweep.json")["points"][0]["accuracy"].clone();
    let responses = bench.rows("grid/p001/responses.jsonl");
    let tokens = responses.iter().map(|row| row["tokens"].as_array().unwrap().len()).sum::<usize>();
    assert_eq!(responses.len(), 2);
    assert_eq!(accuracy["response tokens"], json!(tokens as f64 / 2.0));
    let ended = responses.iter().filter(|row| row["finish"] == "stop").count();
    assert_eq!(accuracy["responses ended"], json!(ended as f64 / 2.0));
    let verdicts = bench.json("grid/p001/ifeval.json");
    assert_eq!(accuracy["prompts strict"], verdicts["prompt"]["strict"]["accuracy"]);
    assert!(accuracy["instructions loose"].is_number());
    assert!(bench.run(&given).ok().out.contains("finished earlier"));
    bench.write("other.jsonl", row(1, "a b"));
    let other = bench.run(&given.replace("asked.jsonl", "other.jsonl")).ok().out;
    assert!(!other.contains("finished earlier"), "{other}");
}
