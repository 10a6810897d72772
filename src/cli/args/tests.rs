use std::collections::BTreeSet;

use super::*;

fn os(items: &[&str]) -> Vec<OsString> {
    items.iter().map(OsString::from).collect()
}

fn words(text: &str) -> Vec<OsString> {
    os(&text.split_whitespace().collect::<Vec<_>>())
}

/// Arguments of a command line for the parser.
fn normal(text: &str) -> Vec<String> {
    let given = given(words(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
    given.words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

fn refused(text: &str) -> String {
    given(words(text)).expect_err(text).to_string()
}

#[test]
fn flags_are_normalised_and_values_are_not() {
    let given = os(&["mapl", "--train_file", "a_b.jsonl", "--max_length=1_0", "--", "--x_y"]);
    assert_eq!(spelled(given), os(&["mapl", "--train-file", "a_b.jsonl", "--max-length=1_0", "--", "--x_y"]));
}

#[test]
fn negative_numbers_belong_to_the_flag_before_them() {
    let given = os(&["mapl", "--margin", "-1e-3", "--a=b", "-1", "--quiet", "-q", "--", "--margin", "-1"]);
    let expected = os(&["mapl", "--margin=-1e-3", "--a=b", "-1", "--quiet", "-q", "--", "--margin", "-1"]);
    assert_eq!(spelled(given), expected);
}

#[test]
fn commands_are_shown_so_that_a_shell_reads_them_back() {
    assert_eq!(shown(&os(&["/usr/bin/mapl", "data", "it's", "a b"])), "mapl data 'it'\\''s' 'a b'");
}

/// Every flag without a value, of every command, accepts `true`, `false` and `--no-FLAG`.
#[test]
fn every_switch_takes_true_and_false() {
    fn leaves(command: &Command, path: &[&str], found: &mut Vec<(Vec<String>, Command)>) {
        let words: Vec<&str> = [path, &[command.get_name()]].concat();
        if command.get_subcommands().next().is_none() {
            found.push((words.iter().map(ToString::to_string).collect(), command.clone()));
        }
        command.get_subcommands().for_each(|sub| leaves(sub, &words, found));
    }
    let mut commands = Vec::new();
    leaves(&Cli::command(), &[], &mut commands);
    let mut count = 0;
    for (words, command) in &commands {
        let with = |rest: &[&str]| os(&[words.iter().map(String::as_str).collect(), rest.to_vec()].concat());
        let normal = |arguments| switched(spelled(arguments), command);
        for long in command.get_arguments().filter(|arg| is_switch(arg)).filter_map(Arg::get_long) {
            let (flag, snake) = (format!("--{long}"), format!("--{}", long.replace('-', "_")));
            for given in [&flag, &snake] {
                assert_eq!(normal(with(&[given, "true", "x"])), with(&[&flag, "x"]));
                assert_eq!(normal(with(&[given, "False", "x"])), with(&["x"]));
                assert_eq!(normal(with(&[&format!("{given}=True"), "x"])), with(&[&flag, "x"]));
                assert_eq!(normal(with(&[&format!("{given}=false"), "x"])), with(&["x"]));
                assert_eq!(normal(with(&[&format!("{given}=0"), "x"])), with(&["x"]));
            }
            assert_eq!(normal(with(&[&format!("--no-{long}"), "x"])), with(&["x"]));
            assert_eq!(normal(with(&[&format!("--no_{}", &snake[2..]), "x"])), with(&["x"]));
            assert_eq!(normal(with(&[&flag, "x", "true"])), with(&[&flag, "x", "true"]));
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn flags_of_trl_become_ours() {
    for (given, expected) in [
        ("--bf16", "--dtype=bf16"),
        ("--bf16 true --dtype float32", "--dtype=bf16"),
        ("--dtype=bfloat16 --bf16 True", "--dtype=bf16"),
        ("--no_bf16", "--dtype=f32"),
        ("--bf16 false --dtype bfloat16", "--dtype bfloat16"),
        ("--dtype auto", ""),
        ("--use_cpu", "--device=cpu"),
        ("--use_cpu false", ""),
        ("--train_sampling_strategy sequential", "--no-shuffle"),
        ("--truncation_mode=keep_start", "--on-too-long=truncate-completion-right"),
        ("--max_steps -1", ""),
        ("--max_steps=7", "--max-steps=7"),
        ("--no_remove_unused_columns --quiet", "--quiet"),
        ("--remove_unused_columns False --beta 1", "--beta 1"),
        ("--gradient_checkpointing_kwargs {\"use_reentrant\":false} --beta 1", "--beta 1"),
        ("--optim adamw_torch --fp16 no --push_to_hub=0 --label_smoothing_factor 0.0", ""),
        ("--lora_task_type SEQ_CLS --num_processes 1 --deepspeed none", ""),
        ("--lora_modules_to_save score --beta 1", "--beta 1"),
        ("--torch_compile --torch_compile_mode max-autotune --tf32 true --use_cache --activation_offloading", ""),
        ("--liger_kernel_config {\"rope\":false} --run_name a --project b --prediction_loss_only", ""),
        ("--model_init_kwargs {\"attn_implementation\":\"sdpa\"}", ""),
        ("--report_to none --warmup_steps 0.1", "--report-to none --warmup-steps 0.1"),
        ("--activation_checkpointing true", "--activation-checkpointing"),
        ("--no_gradient_checkpointing", ""),
    ] {
        let expected: Vec<&str> = ["mapl", "dpo"].into_iter().chain(expected.split_whitespace()).collect();
        assert_eq!(normal(&format!("mapl dpo {given}")), expected, "{given}");
    }
    // Commands that do not train accept no flags of TRL.
    assert_eq!(normal("mapl score --bf16"), ["mapl", "score", "--bf16"]);
}

#[test]
fn flags_without_an_equivalent_are_refused_together() {
    for (given, parts) in [
        ("--fp16", &["--fp16 true is known in TRL", "use --dtype bf16"][..]),
        ("--optim adafactor", &["--optim adafactor", "AdamW is the only optimiser"]),
        ("--report_to wandb", &["--report-to wandb", "mapl uploads to no service", "tensorboard"]),
        ("--lr_scheduler_type greedy", &["--lr-scheduler-type greedy", "does not depend on metrics"]),
        ("--dtype float16", &["use bf16"]),
        ("--gradient_checkpointing_kwargs {\"offload\":true}", &["--gradient-checkpointing-kwargs"]),
        ("--no-fp16=false", &["--no-fp16", "use --dtype bf16"]),
        ("--no_disable_dropout", &["--no-disable-dropout", "dropout is not supported"]),
        ("--push_to_hub --logging_dir a", &["2 flags", "--push-to-hub true (nothing", "--logging-dir a (--output-dir"]),
        ("--model_init_kwargs {\"dtype\":\"bfloat16\"}", &["use --dtype and --model"]),
        (
            "--lora_modules_to_save embed_tokens",
            &["--lora-modules-to-save embed_tokens", "reward head is always saved"],
        ),
        ("--label_names a b c --beta 1", &["--label-names a b c is known"]),
    ] {
        let why = refused(&format!("mapl reward {given}"));
        assert!(parts.iter().all(|part| why.contains(part)), "{given}: {why}");
    }
}

/// A field of an arguments class of TRL: its name, kind (`switch`, `one`, `list`) and default.
struct Field {
    classes: Vec<&'static str>,
    name: &'static str,
    kind: &'static str,
    default: &'static str,
}

fn fields() -> Vec<Field> {
    let table = include_str!("../../../tests/golden/trl_arguments.tsv");
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| match row.split('\t').collect::<Vec<_>>()[..] {
        [classes, name, kind, default] => Field { classes: classes.split(',').collect(), name, kind, default },
        _ => panic!("{row}"),
    })
    .collect()
}

/// Commands with the arguments of TRL that they correspond to.
const COMMANDS: [(&str, &str); 4] =
    [("sft", "SFTConfig"), ("reward", "RewardConfig"), ("dpo", "DPOConfig"), ("kto", "KTOConfig")];

/// Every argument of TRL's DPO, KTO, reward and SFT commands is a flag of mapl, or a row of `trl_flags`. The
/// command line accepts it in both spellings, or rejects it with a reason.
#[test]
fn every_argument_of_trl_is_taken_or_refused_with_its_reason() {
    let (mut taken, mut others) = (0, 0);
    for (name, class) in COMMANDS {
        let (command, _) = named_command(&os(&["mapl", name]));
        let common = ["ModelConfig", "ScriptArguments", "DatasetMixtureConfig"];
        let own = |field: &&Field| field.classes.iter().any(|of| *of == class || common.contains(of));
        let fields = fields();
        let fields: Vec<&Field> = fields.iter().filter(own).collect();
        assert!(fields.len() > 140, "{class}: {}", fields.len());
        for field in fields {
            let flag = format!("--{}", field.name.replace('_', "-"));
            assert!(is_known(&command, &flag), "mapl {name} {flag}");
            if find_flag(&command, &flag).is_some() {
                taken += 1;
                continue;
            }
            others += 1;
            let foreign = trl_flags::find(&flag[2..]).unwrap();
            let takes = match field.kind {
                "switch" => Takes::Switch,
                "list" => Takes::List,
                _ => Takes::One,
            };
            assert_eq!(foreign.takes, takes, "{flag}");
            for spelling in [flag.clone(), format!("--{}", field.name)] {
                for value in ["true", "x"] {
                    match given(words(&format!("mapl {name} {spelling}={value}"))) {
                        Ok(given) => assert!(!given.words.iter().any(|word| word.to_string_lossy().contains(&flag))),
                        Err(e) => assert!(e.exit_code() == 2 && e.to_string().contains(foreign.why), "{e}"),
                    }
                }
            }
        }
    }
    assert!(taken > 100 && others > 250, "{taken} {others}");
    let named = ["DPOConfig", "RewardConfig", "ModelConfig", "ScriptArguments"];
    let fields = fields();
    let fields = fields.iter().filter(|field| field.classes.iter().any(|of| named.contains(of)));
    assert_eq!(fields.map(|field| field.name).collect::<BTreeSet<_>>().len(), 167);
}

/// TRL's defaults are accepted if they are given explicitly, except names of data sets.
#[test]
fn defaults_of_trl_are_accepted() {
    let refused_defaults = ["dataset_train_split", "dataset_test_split"];
    // The meaning of these defaults depends on the adapter or the loss, so they are not tested.
    let unused = ["lora_r", "lora_alpha", "lora_dropout", "f_alpha_divergence_coef"];
    for field in fields() {
        if field.default == "-" || unused.contains(&field.name) {
            continue;
        }
        let text = format!("mapl dpo --{}={}", field.name, field.default);
        let outcome = given(words(&text));
        assert_eq!(outcome.is_err(), refused_defaults.contains(&field.name), "{text}: {outcome:?}");
    }
}

/// No name is listed twice in `trl_flags`. Advice and replacements name only flags that every training
/// command has.
#[test]
fn the_advice_of_the_table_is_true() {
    let mut names = BTreeSet::new();
    for foreign in trl_flags::all() {
        assert!(names.insert(foreign.name), "{} is listed twice", foreign.name);
        assert!(!foreign.why.is_empty() && !foreign.name.contains('_'), "{}", foreign.name);
        for (name, _) in COMMANDS {
            let (command, _) = named_command(&os(&["mapl", name]));
            let own = named_flags(foreign.why).filter(|flag| *flag != "--revision");
            own.for_each(|flag| assert!(find_flag(&command, flag).is_some(), "{}: {flag}", foreign.name));
            if let trl_flags::Meaning::As(values) = foreign.meaning {
                for word in values.iter().flat_map(|(_, words)| *words) {
                    let flag = word.split('=').next().unwrap();
                    assert!(find_flag(&command, flag).is_some(), "{}: {word}", foreign.name);
                }
            }
        }
    }
}

#[test]
fn a_configuration_file_gives_flags_that_the_command_line_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dpo.yaml");
    std::fs::write(
        &path,
        "model_name_or_path: m\nlearning_rate: 1e-6\nbf16: true\nwarmup_ratio: 0.1\ngradient_checkpointing: true\n\
         report_to: [tensorboard, jsonl]\nlr_scheduler_kwargs:\n  min_lr: 1e-7\nenv:\n  A: 1\n",
    )
    .unwrap();
    let text = format!("mapl dpo --warmup-steps 3 --config {} --gradient_checkpointing false", path.display());
    let given = given(words(&text)).unwrap();
    let found: Vec<String> = given.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let expected = [
        "mapl".to_owned(),
        "dpo".into(),
        "--model-name-or-path=m".into(),
        "--learning-rate=1e-6".into(),
        "--report-to=tensorboard".into(),
        "--report-to=jsonl".into(),
        "--lr-scheduler-kwargs={\"min_lr\":1e-7}".into(),
        "--warmup-steps".into(),
        "3".into(),
        "--config".into(),
        path.display().to_string(),
        "--dtype=bf16".into(),
    ];
    assert_eq!(found, expected);
    assert_eq!(given.variables, [("A".to_owned(), "1".to_owned())]);
    let explained = given.explain(Error::Usage("--learning-rate 1: too high".into())).to_string();
    assert!(explained.ends_with(&format!("(--learning-rate is set in {}:2)", path.display())), "{explained}");
    std::fs::write(&path, "fp16: true\nbeta: 0.1\n").unwrap();
    let why = refused(&format!("mapl dpo --config={}", path.display()));
    assert!(why.contains("--fp16 true is known in TRL") && why.contains("dpo.yaml:1"), "{why}");
    let missing = refused("mapl dpo --config nowhere.yaml");
    assert!(missing.contains("--config nowhere.yaml"), "{missing}");
}
