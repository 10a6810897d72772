//! Spellings of flags. Help shows kebab case; snake case and TRL's names are accepted too.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::Cli;
use crate::{Error, Result};

/// Normalises arguments. Underscores in long flags become dashes, so `--learning_rate=1e-5` means
/// `--learning-rate=1e-5`. A flag is joined with a negative number after it, so in `--margin -1`
/// the `-1` is a value and not a flag. A flag without a value may be followed by `true` or `false`,
/// as TRL's are: `--quiet true` is `--quiet`, and `--quiet false` is left out. Values are not
/// changed, and neither is anything after `--`.
pub fn normalised(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let all = spelled(arguments);
    let command = named_command(&all);
    without_truth_values(all, &command)
}

/// Flags in kebab case, joined with negative numbers.
fn spelled(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut verbatim = false;
    let mut all: Vec<OsString> = Vec::new();
    for argument in arguments {
        verbatim |= argument == "--";
        let text = argument.to_str().filter(|_| !verbatim);
        let before = all.last().and_then(|a| a.to_str()).filter(|a| a.starts_with("--") && !a.contains('='));
        match (text, before) {
            (Some(value), Some(flag)) if value.starts_with('-') && value.parse::<f64>().is_ok() => {
                let joined = format!("{flag}={value}");
                all.pop();
                all.push(joined.into());
            }
            (Some(text), _) if text.starts_with("--") => all.push(match text.split_once('=') {
                Some((flag, value)) => format!("{}={value}", flag.replace('_', "-")).into(),
                None => text.replace('_', "-").into(),
            }),
            _ => all.push(argument),
        }
    }
    all
}

/// Refuses arguments that are not UTF-8 in commands that record paths in JSON.
pub fn check_text(arguments: &[OsString], command: &super::Command) -> Result<()> {
    use super::Command::{Bench, Data, Env, Init, Report, Tokenizer, Watch};
    use super::data::DataCommand;
    let records = match command {
        Data(data) => matches!(data, DataCommand::Check(_)),
        Tokenizer(_) | Init(_) | Report(_) | Watch(_) | Bench(_) | Env(_) => false,
        _ => true,
    };
    match arguments.iter().find(|argument| argument.to_str().is_none()) {
        Some(argument) if records => Err(Error::Usage(format!(
            "{}: this command records its arguments as UTF-8 text, and this one is not; rename the file or folder",
            argument.display()
        ))),
        _ => Ok(()),
    }
}

/// Replaces `--flag true` by `--flag`, and removes `--flag false`, if the flag takes no value.
fn without_truth_values(arguments: Vec<OsString>, command: &Command) -> Vec<OsString> {
    let is_switch = |flag: &str| {
        let found = find_flag(command, flag);
        found.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
    };
    let mut left = arguments.into_iter().peekable();
    let mut all = Vec::new();
    while let Some(argument) = left.next() {
        if argument == "--" {
            all.push(argument);
            all.extend(left);
            break;
        }
        let text = argument.to_str().unwrap_or_default();
        let (flag, inline) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        if !is_switch(flag) {
            all.push(argument);
            continue;
        }
        let told = match inline {
            Some(value) => truth(value),
            None => left.next_if(|next| next.to_str().and_then(truth).is_some()).and_then(|next| truth(next.to_str()?)),
        };
        match told {
            Some(true) => all.push(flag.into()),
            Some(false) => {}
            None => all.push(argument),
        }
    }
    all
}

/// `true` or `false` in any case, as Python spells them too.
pub fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The command that the arguments name, as deep as they name one.
pub(super) fn named_command(arguments: &[OsString]) -> Command {
    let mut command = Cli::command();
    for name in arguments.iter().skip(1).map_while(|a| a.to_str()).filter(|a| !a.starts_with('-')) {
        match command.find_subcommand(name) {
            Some(found) => command = found.clone(),
            None => break,
        }
    }
    command
}

/// The argument of a long flag, by its name or an alias.
pub(super) fn find_flag<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let name = flag.strip_prefix("--")?;
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

/// Command line as a user would type it, for manifests and reports.
pub fn shown(arguments: &[OsString]) -> String {
    let mut parts: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    if let Some(first) = parts.first_mut() {
        *first = "mapl".into();
    }
    parts.join(" ")
}

/// A word as a shell reads it back.
pub(super) fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./=,:+@%".contains(c));
    if plain { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Flags of TRL's trainers without an equivalent, and the reason.
const TRL_ONLY: &[(&[&str], &str)] = &[
    (
        &["--use-peft", "--lora-r", "--lora-alpha", "--lora-dropout", "--lora-target-modules", "--model-adapter-name"],
        "adapters are not implemented; all weights are trained",
    ),
    (&["--load-in-4bit", "--load-in-8bit", "--use-bnb-nested-quant"], "quantised training is not implemented"),
    (&["--fp16"], "half precision without a wide exponent is not supported; the CPU trains in f32"),
    (&["--bf16", "--tf32"], "precision follows the device; see --dtype"),
    (&["--packing", "--padding-free", "--group-by-length"], "sequences are always packed without padding"),
    (&["--use-liger-kernel"], "logits are never stored in any mode"),
    (&["--deepspeed", "--fsdp", "--fsdp-config"], "weights are not sharded"),
    (&["--disable-dropout"], "dropout is not supported"),
    (
        &["--gradient-checkpointing-kwargs"],
        "--gradient-checkpointing keeps the input of every layer and has nothing to set",
    ),
    (&["--optim"], "AdamW is the only optimiser"),
    (&["--attn-implementation"], "attention has one implementation per device"),
    (&["--ld-alpha"], "log-probs of a response count alike; weights by position are not implemented"),
    (
        &["--use-weighting"],
        "WPO weighs pairs by the sum of squared probabilities of every token, which the vocabulary head does not compute",
    ),
    (
        &["--desirable-weight", "--undesirable-weight"],
        "KTO trains on rows with one response and a label, and rows are pairs here",
    ),
    (&["--sync-ref-model"], "the reference stays frozen"),
    (
        &["--max-prompt-length", "--max-completion-length", "--truncation-mode"],
        "the limit is on the whole sequence; use --max-length and --on-too-long",
    ),
    (
        &["--dataset-name", "--dataset-config", "--dataset-train-split", "--dataset-test-split", "--dataset-num-proc"],
        "data are read from files; use --train-file and --eval-file",
    ),
    (&["--warmup-ratio"], "warm-up is counted in updates; use --warmup-steps"),
    (&["--logging-first-step", "--logging-strategy"], "the first step is always logged; use --logging-steps"),
    (&["--run-name", "--logging-dir"], "--output-dir names the run, and metrics and event files are written there"),
    (
        &["--per-device-eval-batch-size", "--eval-accumulation-steps"],
        "evaluation is packed to a token budget of its own",
    ),
    (&["--reference-free"], "use --ref-model none"),
    (&["--push-to-hub", "--hub-model-id"], "nothing is uploaded; the output folder loads in transformers"),
    (&["--trust-remote-code"], "no code of a model folder is run"),
    (&["--do-train", "--do-eval"], "the command decides; `mapl eval` evaluates"),
    (&["--remove-unused-columns"], "unused keys are ignored and listed; use --drop-columns"),
    (&["--dataloader-num-workers", "--dataloader-drop-last"], "batches are built in the run itself"),
];

/// Message for a flag that TRL has and the command of these arguments does not know. The advice
/// names only flags of that command; otherwise there is no message.
pub fn known_in_trl(arguments: &[OsString], unknown: &str) -> Option<String> {
    let unknown = unknown.split('=').next().unwrap_or(unknown);
    let (_, why) = TRL_ONLY.iter().find(|(flags, _)| flags.contains(&unknown))?;
    let command = named_command(arguments);
    let applies = named_flags(why).all(|flag| find_flag(&command, flag).is_some());
    applies.then(|| format!("{unknown} is known in TRL and not supported here: {why}"))
}

/// Long flags in a text.
fn named_flags(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(items: &[&str]) -> Vec<OsString> {
        items.iter().map(OsString::from).collect()
    }

    #[test]
    fn flags_are_normalised_and_values_are_not() {
        let given = os(&["mapl", "--train_file", "a_b.jsonl", "--max_length=1_0", "--", "--x_y"]);
        assert_eq!(normalised(given), os(&["mapl", "--train-file", "a_b.jsonl", "--max-length=1_0", "--", "--x_y"]));
    }

    #[test]
    fn negative_numbers_belong_to_the_flag_before_them() {
        let given = os(&["mapl", "--margin", "-1e-3", "--a=b", "-1", "--quiet", "-q", "--", "--margin", "-1"]);
        let expected = os(&["mapl", "--margin=-1e-3", "--a=b", "-1", "--quiet", "-q", "--", "--margin", "-1"]);
        assert_eq!(normalised(given), expected);
    }

    #[test]
    fn commands_are_shown_so_that_a_shell_reads_them_back() {
        assert_eq!(shown(&os(&["/usr/bin/mapl", "data", "it's", "a b"])), "mapl data 'it'\\''s' 'a b'");
    }

    #[test]
    fn flags_of_trl_are_explained() {
        let dpo = os(&["mapl", "dpo"]);
        assert!(known_in_trl(&dpo, "--use-peft").is_some_and(|m| m.contains("adapters")));
        assert_eq!(known_in_trl(&dpo, "--beta"), None);
        // `env` has no --train-file.
        assert_eq!(known_in_trl(&os(&["mapl", "env"]), "--dataset-name"), None);
    }

    /// Training commands reject every flag of the table and accept every flag that the advice names.
    #[test]
    fn the_table_of_foreign_flags_is_true() {
        for words in [&["sft"][..], &["reward"], &["dpo"], &["study", "sft"], &["study", "reward"], &["study", "dpo"]] {
            let arguments = os(&[&["mapl"], words].concat());
            let command = named_command(&arguments);
            assert_eq!(command.get_name(), *words.last().unwrap());
            for (flags, why) in TRL_ONLY {
                for flag in *flags {
                    assert!(find_flag(&command, flag).is_none(), "{flag} is a flag of {words:?}");
                    let message = known_in_trl(&arguments, flag);
                    assert!(message.is_some_and(|m| m.contains(why)), "{words:?} lacks a flag of {why:?}");
                }
            }
        }
    }

    /// Every flag without a value, of every command, takes `true` and `false`.
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
            let normal = |arguments| without_truth_values(spelled(arguments), command);
            let switches = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
            for long in switches.filter_map(Arg::get_long) {
                let (flag, snake) = (format!("--{long}"), format!("--{}", long.replace('-', "_")));
                for given in [&flag, &snake] {
                    assert_eq!(normal(with(&[given, "true", "x"])), with(&[&flag, "x"]));
                    assert_eq!(normal(with(&[given, "False", "x"])), with(&["x"]));
                    assert_eq!(normal(with(&[&format!("{given}=True"), "x"])), with(&[&flag, "x"]));
                    assert_eq!(normal(with(&[&format!("{given}=false"), "x"])), with(&["x"]));
                }
                assert_eq!(normal(with(&[&flag, "x", "true"])), with(&[&flag, "x", "true"]));
                count += 1;
            }
        }
        assert!(count > 40, "{count}");
    }
}
