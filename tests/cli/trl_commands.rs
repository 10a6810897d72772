//! Command lines of TRL. Documented commands run after their model and data names are replaced, and so do
//! option files. Numbers of updates, strategies and schedules are accepted in the forms that transformers
//! accepts.

use serde_json::json;

use crate::workbench::Bench;

/// A bench with a model of the smallest published shape.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.run("init --preset qwen2-tiny --tokenizer tok --output-dir tiny --seed 1").ok();
    bench.bash("head -n 3 pairs.jsonl > few.jsonl").ok();
    bench
}

/// Commands from TRL's documentation and from the header comments of its scripts, without quantised weights.
const COMMANDS: [&str; 12] = [
    "dpo --dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path Qwen/Qwen2-0.5B-Instruct --learning_rate \
     5.0e-7 --num_train_epochs 1 --per_device_train_batch_size 2 --max_steps 1000 --gradient_accumulation_steps 8 \
     --eval_strategy steps --eval_steps 50 --output_dir Qwen2-0.5B-DPO --no_remove_unused_columns",
    "dpo --dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path Qwen/Qwen2-0.5B-Instruct --learning_rate \
     5.0e-7 --num_train_epochs 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 \
     --gradient_checkpointing --logging_steps 25 --eval_strategy steps --eval_steps 50 --output_dir Qwen2-0.5B-DPO \
     --no_remove_unused_columns",
    "dpo --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name anthropic/hh-rlhf",
    "dpo --model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized \
     --num_train_epochs 1 --output_dir Qwen2-0.5B-DPO",
    "dpo --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name argilla/Capybara-Preferences --output_dir \
     Qwen2.5-0.5B-DPO --per_device_train_batch_size 4 --learning_rate 5e-7 --beta 0.1",
    "reward --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/ultrafeedback_binarized",
    "reward --model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --output_dir \
     Qwen2-0.5B-Reward --per_device_train_batch_size 8 --num_train_epochs 1 --learning_rate 1.0e-5 --eval_strategy \
     steps --eval_steps 50 --max_length 2048",
    "reward --model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --output_dir \
     Qwen2-0.5B-Reward --per_device_train_batch_size 8 --num_train_epochs 1 --gradient_checkpointing True \
     --learning_rate 1.0e-5 --logging_steps 25 --eval_strategy steps --eval_steps 50 --max_length 2048",
    "reward --model_name_or_path=facebook/opt-350m --output_dir=reward_modeling_anthropic_hh \
     --per_device_train_batch_size=16 --num_train_epochs=1 --gradient_accumulation_steps=2 --gradient_checkpointing=True \
     --learning_rate=1.41e-5 --report_to=none --remove_unused_columns=False --optim=adamw_torch --logging_steps=10 \
     --evaluation_strategy=steps --eval_steps=500 --max_length=512 --dataset_name anthropic/hh-rlhf",
    "dpo --dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path Qwen/Qwen2-0.5B-Instruct --learning_rate \
     5.0e-6 --num_train_epochs 1 --per_device_train_batch_size 2 --max_steps 1000 --gradient_accumulation_steps 8 \
     --eval_strategy steps --eval_steps 50 --output_dir Qwen2-0.5B-DPO --no_remove_unused_columns --use_peft --lora_r 32 \
     --lora_alpha 16",
    "dpo --model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --learning_rate \
     5.0e-6 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --use_peft --lora_r 32 --lora_alpha 16 \
     --lora_dropout 0.05 --output_dir Qwen2-0.5B-DPO-LoRA",
    "reward --model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --output_dir \
     Qwen2-0.5B-Reward-LoRA --per_device_train_batch_size 8 --num_train_epochs 1 --learning_rate 1.0e-4 --logging_steps 25 \
     --eval_strategy steps --eval_steps 50 --max_length 2048 --use_peft --lora_task_type SEQ_CLS --lora_r 32 --lora_alpha 16",
];

/// Returns the command with the bench's file names and two updates.
fn here(command: &str) -> String {
    let spaced = command.replace('=', " ");
    let evaluates = spaced.contains("eval_strategy") || spaced.contains("evaluation_strategy");
    let mut words: Vec<&str> = spaced.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "--model_name_or_path").unwrap();
    words[at + 1] = "tiny";
    let at = words.iter().position(|word| *word == "--dataset_name").unwrap();
    words[at] = "--train_file";
    words[at + 1] = "few.jsonl";
    if evaluates {
        words.extend(["--eval_file", "few.jsonl"]);
    }
    match words.iter().position(|word| *word == "--max_steps") {
        Some(at) => words[at + 1] = "2",
        None => words.extend(["--max_steps", "2"]),
    }
    words.join(" ")
}

#[test]
fn documented_commands_run_with_other_names_of_files() {
    let bench = bench();
    for command in COMMANDS {
        let words = here(command);
        let done = bench.run(&words).ok();
        let folder =
            words.split(" --output_dir ").nth(1).map_or("trainer_output", |rest| rest.split(' ').next().unwrap());
        let run = bench.json(&format!("{folder}/run.json"));
        assert_eq!(run["status"], "finished", "{words}\n{}", done.out);
        assert_eq!(run["config"]["max_steps"], 2, "{words}");
        let weights = if words.contains("use_peft") { "adapter_model" } else { "model" };
        assert!(bench.at(&format!("{folder}/{weights}.safetensors")).exists(), "{words}");
        std::fs::remove_dir_all(bench.at(folder)).unwrap();
    }
}

#[test]
fn files_of_options_run_as_they_are_and_their_record_repeats_the_run() {
    let bench = bench();
    bench.write(
        "dpo_config.yaml",
        "# as TRL's\nmodel_name_or_path:\n  tiny\ntrain_file:\n  few.jsonl\neval_file: [few.jsonl]\nreport_to:\n  none\n\
         learning_rate:\n  0.0001\nlr_scheduler_type:\n  cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr_rate: 0.1\n\
         bf16: false\ngradient_checkpointing: true\nmax_steps: 9\neval_strategy: \"steps\"\neval_steps: 0.5\n\
         save_strategy: no\nwarmup_ratio: 0.25\nper_device_eval_batch_size: 4\nenv:\n  CI: 1\n",
    );
    let done = bench.run("dpo --config dpo_config.yaml --max_steps 4 --output_dir a").ok();
    assert!(done.out.contains("cosine_with_min_lr {\"min_lr_rate\":0.1}, 1 warm-up step,"), "{}", done.out);
    assert!(done.err.contains("note: dpo_config.yaml sets CI"), "{}", done.err);
    assert!(done.err.contains("no effect here: --per-device-eval-batch-size"), "{}", done.err);
    let config = bench.json("a/run.json")["config"].clone();
    assert_eq!(
        (&config["max_steps"], &config["warmup_steps"], &config["eval_steps"]),
        (&json!(4), &json!(1), &json!(2))
    );
    assert_eq!(config["lr_scheduler_kwargs"], json!({"min_lr_rate": 0.1}));
    assert_eq!((&config["save_strategy"], &config["gradient_checkpointing"]), (&json!("no"), &json!(true)));
    bench.run("dpo --config a/run.yaml --output_dir b").ok();
    assert_eq!(bench.bytes("a/model.safetensors"), bench.bytes("b/model.safetensors"));
    let again = bench.json("b/run.json")["config"].clone();
    for (name, value) in config.as_object().unwrap() {
        let own = ["output_dir", "config"].contains(&name.as_str());
        // run.yaml records the warm-up as a number of updates, so `warmup_ratio` may differ.
        assert!(own || again[name] == *value || name == "warmup_ratio", "{name}: {value} {}", again[name]);
    }
    // The run.yaml in an output folder repeats the run into the same folder.
    bench.run("dpo --config b/run.yaml --overwrite-output-dir").ok();
    assert_eq!(bench.bytes("a/model.safetensors"), bench.bytes("b/model.safetensors"));
}

#[test]
fn the_record_of_every_method_repeats_the_run() {
    let bench = Bench::new();
    let renamed: String = (0..4).map(|i| format!("{{\"question\": \"say {i}\", \"answer\": \"the {i}\"}}\n")).collect();
    bench.write("renamed.jsonl", renamed);
    for (method, rest) in [
        ("sft", "--save-steps 2 --save-total-limit 1 --logging-strategy epoch --adam-beta2 0.99"),
        ("reward", "--train-file groups.jsonl --center-rewards-coefficient 0.01 --total-batch-size 16"),
        ("sft", "--train-file renamed.jsonl --column-map prompt=question,completion=answer"),
        ("dpo", "--objective base --loss-type sft,hinge --loss-weights 0.5,1"),
        (
            "dpo",
            "--objective mapl --k-max 2 --functions number_words,no_comma --loss-type robust --label-smoothing 0.1",
        ),
        (
            "dpo",
            "--ref-model none --eval-file pairs.jsonl --eval-strategy epoch --save-strategy epoch \
          --load-best-model-at-end --metric-for-best-model eval_rewards/accuracies --greater-is-better false --num-train-epochs 1",
        ),
    ] {
        let train = if rest.contains("--train-file") { "" } else { "--train-file pairs.jsonl" };
        let length = if rest.contains("epochs") { "" } else { "--max-steps 2" };
        bench.run(&format!("{method} --model model {train} --output-dir a {length} {rest}")).ok();
        bench.run(&format!("{method} --config a/run.yaml --output-dir b")).ok();
        assert_eq!(bench.bytes("a/model.safetensors"), bench.bytes("b/model.safetensors"), "{method} {rest}");
        let recorded = String::from_utf8(bench.bytes("a/run.yaml")).unwrap();
        assert_eq!(
            recorded.contains("greater_is_better: false"),
            rest.contains("--greater-is-better false"),
            "{recorded}"
        );
        for folder in ["a", "b"] {
            std::fs::remove_dir_all(bench.at(folder)).unwrap();
        }
    }
}

#[test]
fn faults_of_a_file_of_options_are_named_with_file_and_line() {
    let bench = Bench::new();
    let before = bench.listing();
    let run = |name: &str, text: &str, parts: &[&str]| {
        bench.write(name, text);
        bench.run(&format!("dpo --config {name}")).fails(2, parts);
        std::fs::remove_file(bench.at(name)).unwrap();
    };
    run("a.yaml", "model: model\nlearning_rte: 1\n", &["a.yaml:2", "\"learning_rte\"", "learning_rate"]);
    run("a.yaml", "model: model\nmodel: qwen\n", &["a.yaml:2", "already set in line 1"]);
    run("a.yaml", "model: [a\n", &["a.yaml:", "not valid YAML"]);
    run("a.toml", "model = \"model\"\nbeta = \n", &["a.toml:2", "not valid TOML"]);
    let base = "model: model\ntrain_file: pairs.jsonl\n";
    run("a.yaml", &format!("{base}use_dora: true\n"), &["--use-dora true", "is set in a.yaml:3"]);
    run("a.yaml", &format!("{base}eval_steps: 2\n"), &["--eval-steps has no effect", "a.yaml:3"]);
    run("a.yaml", &format!("{base}datasets:\n  - path: a/b\n"), &["--datasets", "use --train-file", "a.yaml:3"]);
    run("a.yaml", &format!("{base}center_rewards_coefficient: 1\n"), &["only reward supports it", "a.yaml:3"]);
    run(
        "a.yaml",
        &format!("{base}bf16: true\ndevice: reference\n"),
        &["the reference device computes in f64", "--dtype is set in a.yaml:3"],
    );
    bench.write("a.yaml", "max_steps: x\n");
    let done = bench.run("dpo --config a.yaml");
    assert!(done.code == Some(2) && done.err.contains("--max-steps is set in a.yaml:1"), "{}", done.err);
    std::fs::remove_file(bench.at("a.yaml")).unwrap();
    bench.run("dpo --config none.yaml").fails(2, &["--config none.yaml"]);
    assert_eq!(bench.listing(), before);
}

#[test]
fn a_record_holds_the_environment_and_the_defaults() {
    let bench = bench();
    bench.write(
        "c.yaml",
        "model: tiny\ntrain_file: few.jsonl\nmax_steps: 1\nno_gradient_checkpointing: true\nno_shuffle: false\n\
         env:\n  CI: 1\n  HF_TOKEN: hidden\n",
    );
    bench.run("dpo --config c.yaml --output-dir a").ok();
    let recorded = String::from_utf8(bench.bytes("a/run.yaml")).unwrap();
    for line in [
        "env: {\"CI\":\"1\"}",
        "# Not written, because they may be secret: HF_TOKEN",
        "beta: 0.1",
        "loss_type: [\"sigmoid\"]",
        "inter_weight: 1.0",
        "logp_reduce: \"sum\"",
        "logging_steps: 10",
        "learning_rate: 1e-6",
    ] {
        assert!(recorded.lines().any(|own| own == line), "{line}\n{recorded}");
    }
    assert!(!recorded.contains("hidden"), "{recorded}");
    assert_eq!(bench.json("a/run.json")["config"]["gradient_checkpointing"], json!(false));
    let done = bench.run("dpo --config a/run.yaml --output-dir b").ok();
    assert!(done.err.contains("note: a/run.yaml sets CI"), "{}", done.err);
    assert_eq!(bench.bytes("a/model.safetensors"), bench.bytes("b/model.safetensors"));
    let again = String::from_utf8(bench.bytes("b/run.yaml")).unwrap();
    let settings =
        |text: &str| text.lines().filter(|l| !l.starts_with(['#', 'o'])).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(settings(&recorded), settings(&again));

    // The error names the unknown flag, and does not list the settings of the file.
    let done = bench.run("dpo --config a/run.yaml --output-dir c --betta 1");
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("--betta") && !done.err.contains("Usage:"), "{}", done.err);
    assert!(!done.err.contains("--per-device-train-batch-size"), "{}", done.err);
    // Errors of short command lines keep the usage line.
    assert!(bench.run("env --nope").err.contains("Usage: mapl env"));
    let base = "dpo --model tiny --train-file few.jsonl --max-steps 1 --output-dir c";
    bench
        .run(&format!("{base} --report_to none wandb"))
        .fails(2, &["--report-to wandb is known in TRL", "event files"]);
    bench.run(&format!("{base} --report_to jsonl,mlflow")).fails(2, &["mlflow is known in TRL"]);
    bench.run(&format!("{base} --no-gradient-checkpointing=true --no-shuffle --report-to none")).ok();
    let config = bench.json("c/run.json")["config"].clone();
    assert_eq!((&config["gradient_checkpointing"], &config["no_shuffle"]), (&json!(false), &json!(true)));
}

#[test]
fn a_decay_that_does_not_fit_into_the_run_is_refused() {
    let bench = bench();
    let run =
        "sft --model tiny --train-file few.jsonl --max-steps 4 --lr-scheduler-type warmup_stable_decay --output-dir a";
    let with = |json: &str| format!("{run} --warmup-steps 2 --lr-scheduler-kwargs {json}");
    let parts = ["num_decay_steps 3 and 2 of warm-up are more than the run's 4", "lower num_decay_steps"];
    bench.run(&with("{\"num_decay_steps\":3}")).fails(2, &parts);
    assert!(!bench.at("a").exists());
    bench.run(&with("{\"num_decay_steps\":2}")).ok();
    let out = bench
        .run(&format!("{} --overwrite-output-dir", with("{\"num_stable_steps\":1,\"num_decay_steps\":3}")))
        .ok()
        .out;
    assert!(out.contains("the learning rate would decay until update 6, but the run ends earlier"), "{out}");
}

#[test]
fn fractions_and_strategies_count_updates_of_the_run() {
    let bench = Bench::new();
    let run = "sft --model model --train-file pairs.jsonl --per-device-train-batch-size 4 --num-train-epochs 2";
    // Two epochs of 24 rows in batches of 4 are 12 updates.
    bench
        .run(&format!(
            "{run} --output-dir a --eval-file pairs.jsonl --eval-steps 0.3 --save-steps 0.25 --logging-steps 0.5 \
             --warmup-steps 0.1 --report-to jsonl"
        ))
        .ok();
    let config = bench.json("a/run.json")["config"].clone();
    let steps = ["eval_steps", "save_steps", "logging_steps", "warmup_steps"].map(|name| config[name].clone());
    assert_eq!(steps, [json!(4), json!(3), json!(6), json!(2)]);
    let evals: Vec<_> = bench.metrics("a", "eval").iter().map(|row| row["step"].clone()).collect();
    assert_eq!(evals, [json!(0), json!(4), json!(8), json!(12)]);
    assert!(bench.at("a/checkpoint-3").exists() && bench.at("a/checkpoint-9").exists());
    let lines = |words: &str| {
        let out = bench.run(&format!("{run} {words} --output-dir b --overwrite-output-dir")).ok().out;
        let steps = out.lines().filter_map(|line| line.strip_prefix("step ")?.split('/').next()?.parse().ok());
        steps.collect::<Vec<u64>>()
    };
    assert_eq!(lines("--logging-strategy epoch"), [1, 6, 12]);
    assert!(lines("--logging_strategy no").is_empty());
    assert_eq!(lines("--logging-steps 0.5"), [1, 6, 12]);
    let out = bench.run(&format!("{run} --max-steps 2 --output-dir b --overwrite-output-dir")).ok().out;
    assert!(out.contains("--max-steps sets the number of updates, so --num-train-epochs 2 has no effect"), "{out}");
    for (words, part) in [
        ("--logging-strategy epoch --logging-steps 3", "contradicts --logging-steps"),
        ("--warmup-ratio 1.5", "--warmup-ratio 1.5"),
        ("--warmup-ratio 0.1 --warmup-steps 3", "--warmup-steps"),
        ("--lr-scheduler-type constant --warmup-ratio 0.1", "has no effect"),
        ("--lr-scheduler-kwargs {\"num_cycles\":2}", "num_cycles has no effect"),
        ("--lr-scheduler-type polynomial --lr-scheduler-kwargs {\"lr_end\":1}", "below --learning-rate"),
    ] {
        let done = bench.run(&format!("{run} {words} --output-dir c"));
        assert!(done.code == Some(2) && done.err.contains(part), "{words}: {}", done.err);
    }
    // The choice of the best checkpoint needs an evaluation at every checkpoint. Intervals given as fractions
    // of the run may round to steps that violate this.
    let best = format!("{run} --output-dir c --eval-file pairs.jsonl --load-best-model-at-end");
    bench.run(&format!("{best} --eval-steps 0.1 --save-steps 0.25")).fails(2, &["needs an evaluation before every"]);
    bench.run(&format!("{best} --eval-steps 0.25 --save-steps 0.5")).ok();
}

#[test]
fn a_dry_run_reads_everything_and_writes_nothing() {
    let bench = Bench::new();
    let before = bench.listing();
    for method in ["sft", "reward", "dpo"] {
        let run =
            format!("{method} --model model --train-file groups.jsonl --eval-file pairs.jsonl --max-steps 3 --dry-run");
        let out = bench.run(&run).ok().out;
        for part in [
            "3 updates in total",
            "memory",
            "sharing",
            "examples, with the tokens of the loss marked",
            "dry run: no step",
        ] {
            assert!(out.contains(part), "{method} {part}: {out}");
        }
        assert!(!out.contains("step 1/"), "{out}");
    }
    bench.run("dpo --model model --train-file none.jsonl --dry-run").fails(1, &["none.jsonl"]);
    bench.run("dpo --model nowhere --train-file pairs.jsonl --dry-run").fails(6, &["nowhere"]);
    bench.run("dpo --model model --train-file pairs.jsonl --max-length 2 --dry-run").fails(3, &["--max-length"]);
    bench.run("study dpo --model model --train-file pairs.jsonl --dry-run").fails(2, &["--dry-run"]);
    assert_eq!(bench.listing(), before);
    // A dry run neither replaces nor changes a folder that holds a run.
    bench.run("sft --model model --train-file pairs.jsonl --max-steps 1 --output-dir a").ok();
    let files = bench.listing();
    let again = "sft --model model --train-file pairs.jsonl --max-steps 1 --output-dir a --dry-run";
    bench.run(again).fails(2, &["already holds a run"]);
    bench.run(&format!("{again} --overwrite-output-dir")).ok();
    assert_eq!(bench.listing(), files);
}

#[test]
fn completions_and_man_pages_are_written() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = bench.run(&format!("completions {shell}")).ok().out;
        assert!(out.contains("mapl") && out.contains("precompute-ref-log-probs"), "{shell}");
    }
    bench.run("completions tcsh").fails(2, &["tcsh"]);
    assert!(bench.run("man").ok().out.contains(".TH mapl 1"));
    bench.run("man --output pages").ok();
    for page in ["mapl.1", "mapl-dpo.1", "mapl-data-build.1", "mapl-study-sweep.1"] {
        assert!(bench.at(&format!("pages/{page}")).exists(), "{page}");
    }
    bench.run("man --output pairs.jsonl").fails(2, &["is a file"]);
}
