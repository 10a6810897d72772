//! Spellings of flags. Kebab case is shown; snake case and TRL's names are accepted.

use std::ffi::OsString;

/// Turns underscores in long flags into dashes, so `--learning_rate=1e-5` means `--learning-rate=1e-5`. Values stay as
/// they are, and nothing after `--` is touched.
pub fn normalised(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut verbatim = false;
    arguments
        .into_iter()
        .map(|argument| {
            verbatim |= argument == "--";
            match argument.to_str() {
                Some(text) if !verbatim && text.starts_with("--") => {
                    let (flag, value) = match text.split_once('=') {
                        Some((flag, value)) => (flag, Some(value)),
                        None => (text, None),
                    };
                    let flag = flag.replace('_', "-");
                    value.map_or(flag.clone(), |v| format!("{flag}={v}")).into()
                }
                _ => argument,
            }
        })
        .collect()
}

/// The command as a user would type it, for manifests and reports.
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

/// Flags of TRL's trainers without a counterpart, and why.
const TRL_ONLY: &[(&str, &str)] = &[
    ("--use-peft", "adapters are not implemented; all weights are trained"),
    ("--lora-r", "adapters are not implemented; all weights are trained"),
    ("--load-in-4bit", "quantised training is not implemented"),
    ("--load-in-8bit", "quantised training is not implemented"),
    ("--fp16", "half precision without a wide exponent is not supported; the CPU trains in f32"),
    ("--packing", "sequences are always packed without padding"),
    ("--padding-free", "sequences are always packed without padding"),
    ("--use-liger-kernel", "logits are never stored in any mode"),
    ("--deepspeed", "weights are not sharded"),
    ("--disable-dropout", "there is no dropout"),
    ("--gradient-checkpointing", "activations are kept; lower --per-device-train-batch-size to save memory"),
    ("--optim", "AdamW is the only optimiser"),
    ("--attn-implementation", "attention has one implementation per device"),
    ("--f-divergence-type", "the reverse KL divergence is the only one"),
    ("--sync-ref-model", "the reference stays frozen"),
    ("--max-prompt-length", "the limit is on the whole sequence; use --max-length and --on-too-long"),
    ("--max-completion-length", "the limit is on the whole sequence; use --max-length and --on-too-long"),
    ("--dataset-name", "data are read from files; use --train-file and --eval-file"),
];

/// A message for a flag that TRL knows and mapl does not.
pub fn known_in_trl(arguments: &[OsString]) -> Option<String> {
    let given = |flag: &str| arguments.iter().any(|a| a.to_str().is_some_and(|a| a.split('=').next() == Some(flag)));
    let (flag, why) = TRL_ONLY.iter().find(|(flag, _)| given(flag))?;
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
    fn commands_are_shown_so_that_a_shell_reads_them_back() {
        assert_eq!(shown(&os(&["/usr/bin/mapl", "data", "it's", "a b"])), "mapl data 'it'\\''s' 'a b'");
    }

    #[test]
    fn flags_of_trl_are_explained() {
        assert!(known_in_trl(&os(&["mapl", "dpo", "--use-peft"])).is_some_and(|m| m.contains("adapters")));
        assert_eq!(known_in_trl(&os(&["mapl", "dpo", "--beta"])), None);
    }
}
