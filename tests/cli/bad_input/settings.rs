//! Numeric flags of all commands with values that are malformed, not finite, negative, or too
//! large. The flags are listed by the parser, so a new flag is tested automatically.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use clap::CommandFactory as _;
use mapl::cli::Cli;

use crate::workbench::Bench;

/// Flags that accept a negative number.
const NEGATIVE: [&str; 1] = ["--margin"];
/// Arguments that make a valid call of `command`; `None` if none are listed here.
fn call(command: &str) -> Option<&'static str> {
    match command {
        "sft" | "reward" | "dpo" => Some("--model model --train-file pairs.jsonl --output-dir out"),
        "score" => Some("--model model --input pairs.jsonl --output s.jsonl"),
        "eval" => Some("--model model --input pairs.jsonl"),
        "data build" => Some("--input pairs.jsonl --output b.jsonl"),
        "data show" => Some("--input pairs.jsonl --tokenizer tok"),
        "init" => Some("--preset quickstart --tokenizer tok --output-dir m"),
        "tokenizer" => Some("--input pairs.jsonl --output-dir t"),
        "quickstart" => Some("--output-dir q"),
        _ => None,
    }
}

/// All commands, with subcommands joined to their command (`data build`).
fn commands() -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name().to_owned();
        if command.has_subcommands() {
            found
                .extend(command.get_subcommands().map(|inner| (format!("{name} {}", inner.get_name()), inner.clone())));
        } else {
            found.push((name, command.clone()));
        }
    }
    found
}

#[derive(PartialEq)]
enum Number {
    Real,
    Whole,
}

fn number(arg: &clap::Arg) -> Option<Number> {
    let id = arg.get_value_parser().type_id();
    let whole = [
        TypeId::of::<usize>(),
        TypeId::of::<u64>(),
        TypeId::of::<u32>(),
        TypeId::of::<u8>(),
        TypeId::of::<NonZeroUsize>(),
    ];
    if id == TypeId::of::<f64>() {
        Some(Number::Real)
    } else if whole.iter().any(|whole| id == *whole) {
        Some(Number::Whole)
    } else {
        None
    }
}

#[test]
fn invalid_numbers_are_refused_by_every_flag() {
    let bench = Bench::new();
    let before = bench.listing();
    let mut tested = BTreeSet::new();
    let (mut reals, mut wholes) = (0, 0);
    for (name, command) in commands() {
        for arg in command.get_arguments() {
            let (Some(long), Some(kind)) = (arg.get_long(), number(arg)) else { continue };
            let flag = format!("--{long}");
            let Some(call) = call(&name) else { continue };
            // Commands share the code of a common flag, so each flag is tested once.
            if !tested.insert(flag.clone()) {
                continue;
            }
            let mut values = vec!["x", "", "1e999", "99999999999999999999999999"];
            match kind {
                Number::Real => {
                    values.extend(["nan", "inf", "-inf"]);
                    reals += 1;
                    // Any finite number may be valid.
                    values.retain(|value| *value != "99999999999999999999999999");
                    if !NEGATIVE.contains(&flag.as_str()) {
                        values.push("-1");
                    }
                }
                Number::Whole => {
                    values.extend(["1.5", "nan"]);
                    // `--max-steps -1` is valid, as in TRL: the number of epochs then sets the length of the
                    // run.
                    if flag != "--max-steps" {
                        values.push("-1");
                    }
                    wholes += 1;
                }
            }
            for value in values {
                let words = format!("{name} {call}");
                let mut command = bench.command(&words);
                let output = command.arg(format!("{flag}={value}")).output().unwrap();
                let err = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(2), "mapl {words} {flag}={value}\n{err}");
                assert!(err.contains(&flag) && !err.contains("panicked"), "mapl {words} {flag}={value}\n{err}");
            }
        }
    }
    assert!(reals >= 15 && wholes >= 15, "{reals} real and {wholes} whole flags: the types are not recognised");
    assert_eq!(bench.listing(), before);
}

#[test]
fn the_largest_numbers_of_a_type_are_valid_or_refused() {
    let bench = Bench::new();
    let dpo = |flag: &str| {
        bench
            .run(&format!("dpo --model model --train-file groups.jsonl --output-dir out --overwrite-output-dir {flag}"))
    };
    let most = u64::MAX;
    dpo(&format!("--per-device-train-batch-size {most}")).fails(2, &["at most"]);
    dpo(&format!("--gradient-accumulation-steps {most}")).fails(2, &["at most"]);
    dpo(&format!("--total-batch-size {most}")).fails(2, &["--total-batch-size"]);
    for flag in [
        format!("--max-steps 1 --warmup-steps {most}"),
        format!("--max-steps 1 --save-steps {most} --logging-steps {most} --save-total-limit {most}"),
        format!("--max-steps 1 --max-skipped-steps {most} --seed {most}"),
        format!("--max-steps 1 --eval-file pairs.jsonl --eval-steps {most}"),
        format!("--max-steps 1 --max-length {most}"),
        "--max-steps 1 --num-train-epochs 1e300".to_owned(),
        "--max-steps 1 --learning-rate 1e-30 --adam-epsilon 1e-30".to_owned(),
        "--max-steps 1 --max-grad-norm 1e300".to_owned(),
    ] {
        dpo(&flag).ok();
    }
}

#[test]
fn numbers_that_f32_cannot_hold_are_refused() {
    let bench = Bench::new();
    let before = bench.listing();
    for (flag, value, becomes) in [
        ("--learning-rate", "1e39", "infinite"),
        ("--learning-rate", "1e-60", "0"),
        ("--weight-decay", "1e39", "infinite"),
        ("--weight-decay", "1e-60", "0"),
        ("--adam-beta1", "1e-60", "0"),
        ("--adam-beta1", "0.99999999", "1"),
        ("--adam-beta2", "1e-60", "0"),
        ("--adam-beta2", "0.99999999", "1"),
        ("--adam-epsilon", "1e-300", "0"),
        ("--adam-epsilon", "1e39", "infinite"),
        ("--max-grad-norm", "1e-60", "0"),
        ("--beta", "1e-60", "0"),
        ("--beta", "1e39", "infinite"),
        ("--base-weight", "1e39", "infinite"),
    ] {
        bench
            .run(&format!("dpo --model model --train-file groups.jsonl --output-dir out {flag} {value}"))
            .fails(2, &[flag, &format!("{becomes} in f32")]);
    }
    bench
        .run("score --model model --input pairs.jsonl --output s.jsonl --beta 1e-60")
        .fails(2, &["--beta", "0 in f32"]);
    assert_eq!(bench.listing(), before);
    for flag in ["--adam-beta1 0 --adam-beta2 0", "--adam-beta2 0.9999999", "--max-grad-norm 0 --weight-decay 0"] {
        bench
            .run(&format!(
                "dpo --model model --train-file groups.jsonl --output-dir out --overwrite-output-dir --max-steps 1 {flag}"
            ))
            .ok();
    }
}
