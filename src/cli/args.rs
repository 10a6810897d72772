//! Spellings of flags. Help shows kebab case; snake case and TRL's names are accepted too.

use std::ffi::OsString;

/// Normalises arguments. Underscores in long flags become dashes, so `--learning_rate=1e-5` means
/// `--learning-rate=1e-5`. A flag is joined with a negative number after it, so in `--margin -1`
/// the `-1` is a value and not a flag. Values are not changed, and neither is anything after `--`.
pub fn normalised(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
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

/// Command line as a user would type it, for manifests and reports.
pub fn shown(arguments: &[OsString]) -> String {
    let quote = |a: &OsString| {
        let text = a.to_string_lossy();
        let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./=,:+@%".contains(c));
        if plain { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    let mut parts: Vec<String> = arguments.iter().map(quote).collect();
    if let Some(first) = parts.first_mut() {
        *first = "mapl".into();
    }
    parts.join(" ")
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
    (&["--f-divergence-type", "--f-alpha-divergence-coef"], "the reverse KL divergence is the only one"),
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
    (&["--precompute-ref-log-probs", "--precompute-ref-batch-size"], "the reference runs on the fly over each batch"),
    (&["--reference-free"], "use --ref-model none"),
    (&["--rpo-alpha"], "use --nll-weight"),
    (&["--push-to-hub", "--hub-model-id"], "nothing is uploaded; the output folder loads in transformers"),
    (&["--trust-remote-code"], "no code of a model folder is run"),
    (&["--do-train", "--do-eval"], "the command decides; `mapl eval` evaluates"),
    (&["--remove-unused-columns"], "unused keys are ignored and listed"),
    (&["--dataloader-num-workers", "--dataloader-drop-last"], "batches are built in the run itself"),
];

/// Message for a flag that TRL has and mapl does not.
pub fn known_in_trl(arguments: &[OsString]) -> Option<String> {
    let given = |flag: &str| arguments.iter().any(|a| a.to_str().is_some_and(|a| a.split('=').next() == Some(flag)));
    let (flag, why) =
        TRL_ONLY.iter().flat_map(|(flags, why)| flags.iter().map(move |f| (f, why))).find(|(f, _)| given(f))?;
    Some(format!("{flag} is known in TRL and not supported here: {why}"))
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
        assert!(known_in_trl(&os(&["mapl", "dpo", "--use-peft"])).is_some_and(|m| m.contains("adapters")));
        assert_eq!(known_in_trl(&os(&["mapl", "dpo", "--beta"])), None);
    }
}
