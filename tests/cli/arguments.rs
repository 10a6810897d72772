//! Command-line flags: spellings, rejected values, options without effect, and TRL flags that mapl does not
//! support.

use crate::workbench::Bench;

#[test]
fn trl_names_and_snake_case_are_accepted() {
    let bench = Bench::new();
    bench
        .run(
            "dpo --model_name_or_path model --ref_model_name_or_path qwen --train_file groups.jsonl --output_dir a \
             --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_steps=2 --learning_rate=1e-4 \
             --lr_scheduler_type constant_with_warmup --warmup_steps 1 --weight_decay 0.01 --adam_beta1 0.8 \
             --adam_beta2 0.99 --adam_epsilon 1e-7 --max_grad_norm 0.5 --beta 0.2 --loss_type hinge --max_length 200 \
             --no_shuffle --logging_steps 1 --save_steps 1 --save_total_limit 1 --torch_dtype float32 --seed 7",
        )
        .ok();
    let manifest = bench.json("a/run.json");
    assert_eq!(manifest["adamw"]["weight_decay"], 0.01);
    assert_eq!(manifest["settings"]["accumulation"], 2);
    assert_eq!(manifest["tokenize"]["max_length"], 200);
    assert!(manifest["command"].as_str().unwrap().contains("--model-name-or-path model"));
    assert!(bench.at("a/checkpoint-2").exists() && !bench.at("a/checkpoint-1").exists());
    bench.run("score --model_name_or_path model --input pairs.jsonl --output s.jsonl").ok();
    bench.run("data show --input pairs.jsonl --model_name_or_path model --rows 1").ok();
    bench.run("data build --input pairs.jsonl --output b.jsonl --k_min 1 --k_max=1 --data_seed 4").ok();
}

#[test]
fn unsupported_trl_flags_are_explained() {
    let bench = Bench::new();
    let before = bench.listing();
    for (flag, why) in [
        ("--use_dora", "adapters are LoRA on linear layers"),
        ("--lora_modules_to_save embed_tokens", "a reward head is always saved"),
        ("--load_in_4bit", "quantised"),
        ("--fp16 True", "use --dtype bf16"),
        ("--auto_find_batch_size yes", "the largest batch that fits"),
        ("--max_prompt_length 128", "use --max-length"),
        ("--reference_free", "--ref-model none"),
        ("--logging_dir a", "metrics and event files"),
        ("--dataset_name x", "--train-file"),
        ("--report_to wandb", "use tensorboard"),
        ("--precompute_ref_log_probs true --load_in_4bit true", "--load-in-4bit true is known in TRL"),
    ] {
        let words = format!("dpo --model model --train-file pairs.jsonl --output-dir out {flag}");
        bench.run(&words).fails(2, &["is known in TRL and not supported here", why]);
    }
    let several = "dpo --model model --train-file pairs.jsonl --output-dir out --fp16 --push_to_hub --optim lion_8bit";
    bench
        .run(several)
        .fails(2, &["3 flags are known in TRL", "--fp16 true (", "--push-to-hub true (", "--optim lion_8bit ("]);
    let words = "dpo --model model --train-file pairs.jsonl --output-dir out --learning-rat 1";
    bench.run(words).fails(2, &["--learning-rat", "similar argument exists"]);
    assert_eq!(bench.listing(), before);
}

#[test]
fn options_without_effect_are_refused() {
    let bench = Bench::new();
    let before = bench.listing();
    for (command, flag) in [
        ("reward", "--beta 0.1"),
        ("reward", "--ref-model qwen"),
        ("reward", "--nll-weight 1"),
        ("reward", "--logp-reduce mean"),
        ("reward", "--loss-type ipo"),
        ("dpo", "--center-rewards-coefficient 0.1"),
        ("dpo", "--pop-clip 1"),
        ("dpo", "--eval-steps 2"),
        ("dpo", "--lr-scheduler-type constant --warmup-steps 3"),
        ("dpo", "--loss-type hinge --label-smoothing 0.1"),
        ("dpo", "--loss-type simpo --ref-model qwen"),
        ("dpo", "--loss-type orpo --precompute-ref-log-probs"),
        ("dpo", "--discopop-tau 0.1"),
        ("dpo", "--loss-type sft --beta 0.2"),
        ("dpo", "--loss-type sft --margin 1"),
        ("dpo", "--loss-type sft --logp-reduce mean"),
        ("dpo", "--loss-type sft --f-divergence-type js_divergence"),
        ("dpo", "--loss-type sft --base-weight 0.5"),
        ("reward", "--loss-type bco_pair"),
        ("reward", "--loss-weights 1"),
        ("dpo", "--k-max 2"),
        ("dpo", "--objective base --functions number_words"),
        ("sft", "--beta 0.1"),
        ("sft", "--intra-weight 2"),
        ("sft", "--objective mapl"),
    ] {
        let words = format!("{command} --model model --train-file pairs.jsonl --output-dir out {flag}");
        bench.run(&words).fails(2, &["has no effect"]);
    }
    bench.run("data build --input pairs.jsonl --output b.jsonl --epoch 1").fails(2, &["--epoch has no effect"]);
    bench.run("data build --input pairs.jsonl --output b.jsonl --gamma 1").fails(2, &["--gamma has no effect"]);
    for words in ["eval --model model", "compare model qwen"] {
        let words = format!("{words} --input pairs.jsonl --bootstrap 0 --seed 3");
        bench.run(&words).fails(2, &["--seed has no effect"]);
    }
    bench.bash("seq 300 > lines.txt").ok();
    let tokenizer = "tokenizer --vocab-size 300 --column-map chosen=a --output-dir t --input";
    bench.run(&format!("{tokenizer} lines.txt")).fails(2, &["--column-map has no effect on plain text"]);
    bench.run(&format!("{tokenizer} groups.jsonl")).fails(2, &["--column-map has no effect: every row is a group row"]);
    // The flag has an effect if some inputs hold rows.
    bench.write("renamed.jsonl", r#"{"prompt": "p", "a": "yes yes yes", "rejected": "no"}"#);
    bench.run(&format!("{tokenizer} lines.txt renamed.jsonl")).ok();
    bench.bash("rm -r t lines.txt renamed.jsonl").ok();
    let reward = "reward --model model --train-file pairs.jsonl --output-dir r --max-steps 1";
    assert_eq!(bench.listing(), before);
    bench.run(reward).ok();
    for flag in ["--beta 0.2", "--ref-model model", "--logp-scope response", "--loss-type hinge"] {
        let words = format!("score --model r --input pairs.jsonl --output s.jsonl {flag}");
        bench.run(&words).fails(2, &["has no effect"]);
    }
}

#[test]
fn invalid_values_are_refused_before_anything_is_written() {
    let bench = Bench::new();
    let before = bench.listing();
    let refused = |words: String, flag: &str| drop(bench.run(&words).fails(2, &[flag]));
    let mut cases: Vec<(&str, &str)> = Vec::new();
    for flag in ["--learning-rate", "--num-train-epochs", "--beta", "--beta-intra"] {
        cases.extend(["nan", "inf", "-1", "0", "x"].map(|value| (flag, value)));
    }
    for flag in ["--weight-decay", "--max-grad-norm", "--base-weight", "--nll-weight", "--label-smoothing"] {
        cases.extend(["nan", "inf", "-0.5", "x"].map(|value| (flag, value)));
    }
    for flag in ["--adam-beta1", "--adam-beta2"] {
        cases.extend(["nan", "-0.1", "1"].map(|value| (flag, value)));
    }
    for flag in [
        "--per-device-train-batch-size",
        "--gradient-accumulation-steps",
        "--total-batch-size",
        "--logging-steps",
        "--save-steps",
        "--save-total-limit",
        "--max-skipped-steps",
        "--max-length",
    ] {
        cases.extend(["0", "-1", "1.5"].map(|value| (flag, value)));
    }
    cases.extend([
        ("--margin", "nan"),
        ("--adam-epsilon", "-1"),
        ("--warmup-steps", "-1"),
        ("--warmup-steps", "1.5"),
        ("--max-steps", "0"),
        ("--max-steps", "-2"),
        ("--max-steps", "1.5"),
        ("--max-drop-fraction", "2"),
        ("--label-smoothing", "0.7"),
        ("--lr-scheduler-type", "exponential"),
        ("--loss-type", "kto"),
        ("--loss-type", "apo_zero_unpaired"),
        ("--loss-type", "aot_pair --gradient-accumulation-steps 2"),
        ("--loss-type", "sigmoid sigmoid"),
        ("--loss-weights", "1 2"),
        ("--device", "opencl"),
        ("--dtype", "f16"),
    ]);
    for (flag, value) in cases {
        refused(format!("dpo --model model --train-file pairs.jsonl --output-dir out {flag} {value}"), flag);
    }
    refused("dpo --model model --train-file pairs.jsonl --output-dir out --device cpu --dtype f64".into(), "f32");
    refused("dpo --model model --train-file pairs.jsonl --output-dir out --device reference --dtype f32".into(), "f64");
    refused("dpo --model model --train-file pairs.jsonl --output-dir out --device emulator --dtype f64".into(), "f32");
    let vast = "--per-device-train-batch-size 9999999999999999 --gradient-accumulation-steps 99999999";
    refused(format!("dpo --model model --train-file pairs.jsonl --output-dir out {vast}"), "at most");
    for (flag, value) in [
        ("--k-min", "0"),
        ("--k-max", "0"),
        ("--n-intra", "0"),
        ("--lambda-resp", "nan"),
        ("--functions", "number_of_vowels"),
        ("--objective", "simpo"),
    ] {
        refused(format!("data build --input pairs.jsonl --output b.jsonl {flag} {value}"), flag);
    }
    refused("data show --input pairs.jsonl --tokenizer tok --rows 0".into(), "--rows");
    refused("score --model model --input pairs.jsonl --output s.jsonl --max-length 9999".into(), "--max-length");
    refused("init --preset nano-gigantic --tokenizer tok --output-dir m".into(), "preset");
    refused("init --tokenizer tok --output-dir m".into(), "--preset");
    refused("tokenizer --input pairs.jsonl --vocab-size 3 --output-dir t".into(), "3");
    assert_eq!(bench.listing(), before);
}

#[test]
fn a_profile_lists_every_op_of_a_step() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file groups.jsonl --eval-file pairs.jsonl --eval-steps 1 --output-dir a --profile \
               --per-device-train-batch-size 2";
    let mut command = bench.command(&format!("{run} --max-steps 4"));
    command.env_remove("MAPL_CEILINGS");
    let done = bench.finish(command, run).ok();
    assert!(done.out.contains("time by op, mean of 2 steps"), "{}", done.out);
    assert!(!done.err.contains("ceilings are rough"), "{}", done.err);
    let rough = bench.run(&format!("{run} --max-steps 4 --overwrite-output-dir")).ok();
    assert!(rough.err.contains("note: ceilings are rough (MAPL_CEILINGS)"), "{}", rough.err);
    let profile = bench.json("a/profile.json");
    let rows = profile["rows"].as_array().unwrap();
    let row = |op: &str| rows.iter().find(|r| r["op"] == op).unwrap_or_else(|| panic!("no {op} in {profile}"));
    // Policy and reference each run 2 layers of 3 GEMMs and a gated GEMM. Calls of evaluations
    // would raise these counts; the profile leaves them out.
    assert_eq!(row("linear_fwd")["calls"], 12.0);
    assert_eq!(row("linear_glu_fwd")["calls"], 4.0);
    assert_eq!(row("linear_glu_bwd")["calls"], 2.0);
    assert_eq!(row("head_logprob_fwd")["calls"], 2.0);
    assert_eq!(row("attention_bwd")["calls"], 2.0);
    assert!(rows.iter().map(|r| r["share"].as_f64().unwrap()).sum::<f64>() <= 1.0 + 1e-9);
    assert!(profile["ceilings"]["sgemm"].as_f64().unwrap() > 1e8 && row("adamw")["gigabytes"].as_f64().unwrap() > 0.0);
    bench.run(&format!("{run} --overwrite-output-dir --device reference --max-steps 1")).fails(2, &["--profile"]);
}

/// Users of TRL pass `true` or `false` to switches.
#[test]
fn switches_take_true_and_false() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file pairs.jsonl --output-dir out --ref-cache-dir cache";
    let words = "--precompute_ref_log_probs true --gradient_checkpointing False --no_shuffle=True --profile=false";
    bench.run(&format!("{run} {words} --max-steps 1 --save-steps 1 --lr-scheduler-type constant")).ok();
    let config = bench.json("out/run.json")["config"].clone();
    assert_eq!((&config["precompute_ref_log_probs"], &config["gradient_checkpointing"]), (&true.into(), &false.into()));
    assert_eq!((&config["no_shuffle"], &config["profile"]), (&true.into(), &false.into()));
    // Without a value, `--resume_from_checkpoint` selects the newest checkpoint.
    let longer = format!("{run} --precompute-ref-log-probs --no-shuffle --max-steps 2 --lr-scheduler-type constant");
    let resumed = bench.run(&format!("{longer} --resume_from_checkpoint")).ok().out;
    assert!(resumed.contains("resumed after step 1"), "{resumed}");
    bench.run(&format!("{longer} --resume_from_checkpoint False")).fails(2, &["already holds a run"]);
    bench.run(&format!("{longer} --quiet maybe")).fails(2, &["maybe"]);
    // The spellings of transformers' parser are accepted.
    bench
        .run("sft --model model --train-file pairs.jsonl --output-dir n --max_steps 1 --no_gradient_checkpointing --no_shuffle y --quiet=1")
        .ok();
    let config = bench.json("n/run.json")["config"].clone();
    assert_eq!((&config["no_shuffle"], &config["quiet"]), (&true.into(), &true.into()));
}
