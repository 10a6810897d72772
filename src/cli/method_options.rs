//! Options of training commands that only some methods support. The help of a method lists the options that
//! it supports. An option of a different method is an error, which names the methods that support it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::OnceLock;

use clap::{Arg, Args as _, Command};

use super::args::{find_flag, named_command};
use crate::data::options::BuildArgs;
use crate::loss::objective::Method;
use crate::{Error, Result};

const METHODS: [Method; 4] = [Method::Sft, Method::Reward, Method::Dpo, Method::Kto];

/// Ids of the options that only methods with a policy and a reference support.
const OF_POLICIES: [&str; 5] =
    ["ref_model", "beta", "precompute_ref_log_probs", "precompute_ref_batch_size", "ref_cache_dir"];
/// Ids of the options that only KTO supports.
const OF_KTO: [&str; 2] = ["desirable_weight", "undesirable_weight"];
/// Ids of the options that only DPO supports.
const OF_DPO: [&str; 12] = [
    "beta_intra",
    "beta_inter",
    "nll_weight",
    "loss_weights",
    "discopop_tau",
    "simpo_gamma",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "logp_scope",
    "logp_reduce",
    "ld_alpha",
    "use_weighting",
];
/// Ids of the options of methods that train on comparisons, except those of [`construction`].
const OF_COMPARISONS: [&str; 8] =
    ["base_weight", "intra_weight", "inter_weight", "mix", "margin", "pop_clip", "loss_type", "label_smoothing"];

/// Ids of the options that `-h` lists; `--help` lists all options.
const COMMON: [&str; 27] = [
    "config",
    "dry_run",
    "model",
    "ref_model",
    "train_file",
    "eval_file",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "quiet",
    "examples",
    "device",
    "dtype",
    "max_length",
    "on_too_long",
    "gradient_checkpointing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "seed",
    "eval_steps",
    "save_steps",
    "beta",
    "use_peft",
    "objective",
];

/// Whether a command trains.
pub(super) fn trains(command: &Command) -> bool {
    METHODS.iter().any(|method| method.name() == command.get_name())
}

/// Ids of the options for the construction of groups.
fn construction() -> &'static BTreeSet<String> {
    static IDS: OnceLock<BTreeSet<String>> = OnceLock::new();
    IDS.get_or_init(|| {
        let command = BuildArgs::augment_args(Command::new("construction"));
        command.get_arguments().map(|arg| arg.get_id().as_str().to_owned()).collect()
    })
}

/// Whether a method supports an option of the training commands.
pub(super) fn takes(method: Method, id: &str) -> bool {
    match method {
        _ if OF_POLICIES.contains(&id) => method.has_policy(),
        _ if OF_DPO.contains(&id) => method == Method::Dpo,
        _ if OF_KTO.contains(&id) => method == Method::Kto,
        // These options need token logits, and a reward model outputs scores instead.
        _ if id.starts_with("ifeval_") || id == "token_stats" => method != Method::Reward,
        _ if ["center_rewards_coefficient", "pad_token"].contains(&id) => method == Method::Reward,
        // A margin needs two responses, and rows of SFT and KTO have one.
        _ if id == "score_margin" => matches!(method, Method::Reward | Method::Dpo),
        _ if id == "loss_type" => method != Method::Sft,
        _ if method == Method::Kto && (OF_COMPARISONS.contains(&id) || construction().contains(id)) => false,
        _ if OF_COMPARISONS.contains(&id) || construction().contains(id) => method != Method::Sft,
        _ => true,
    }
}

/// Returns an option with its visibility in the help of `method`.
pub(super) fn listed(method: Method, arg: Arg) -> Arg {
    let id = arg.get_id().as_str().to_owned();
    let hidden = !takes(method, &id);
    arg.hide(hidden).hide_short_help(hidden || !COMMON.contains(&id.as_str()))
}

/// Rejects options that the training command in `arguments` does not support.
///
/// # Errors
/// [`Error::Usage`] with the methods that support the option.
pub fn check(arguments: &[OsString]) -> Result<()> {
    let (command, _) = named_command(arguments);
    let Some(method) = METHODS.into_iter().find(|method| method.name() == command.get_name()) else { return Ok(()) };
    let words = arguments.iter().take_while(|word| *word != "--").filter_map(|word| word.to_str());
    for flag in words.filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap_or(word)) {
        let Some(id) = find_flag(&command, flag).map(|arg| arg.get_id().as_str()) else { continue };
        if !takes(method, id) {
            let others: Vec<&str> = METHODS.into_iter().filter(|m| takes(*m, id)).map(Method::name).collect();
            let verb = if others.len() == 1 { "supports" } else { "support" };
            return Err(Error::Usage(format!(
                "{flag} has no effect in this {} run; only {} {verb} it",
                method.name(),
                listing(&others)
            )));
        }
    }
    Ok(())
}

/// Joins names to a list such as "a, b and c".
fn listing(names: &[&str]) -> String {
    match names {
        [before @ .., a, b] => before.iter().map(|name| format!("{name}, ")).collect::<String>() + a + " and " + b,
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::*;

    /// The help of a method lists exactly the options that the method supports. Every other option of a
    /// training command is an error that names the methods that support it.
    #[test]
    fn every_method_lists_the_options_that_it_takes() {
        let all = Cli::command();
        let mut refused = 0;
        for method in METHODS {
            let command = all.find_subcommand(method.name()).unwrap();
            for arg in command.get_arguments() {
                let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
                assert_eq!(arg.is_hide_set(), !takes(method, id), "{} {long}", method.name());
                let words = ["mapl", method.name(), &format!("--{long}=1")].map(OsString::from);
                let outcome = check(&words);
                assert_eq!(outcome.is_err(), !takes(method, id), "{} {long}", method.name());
                if let Err(why) = outcome {
                    refused += 1;
                    assert!(why.exit_code() == 2 && why.to_string().contains(" it"), "{why}");
                }
            }
        }
        assert!(refused > 50, "{refused}");
        for id in OF_DPO.iter().chain(&OF_POLICIES).chain(&OF_KTO).chain(&OF_COMPARISONS).chain(&COMMON) {
            let dpo = all.find_subcommand("dpo").unwrap();
            assert!(dpo.get_arguments().any(|arg| arg.get_id() == *id), "{id}");
        }
    }

    #[test]
    fn an_option_of_another_method_names_the_methods_that_take_it() {
        let refused = |words: &str| {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            check(&words).unwrap_err().to_string()
        };
        assert_eq!(
            refused("mapl reward --beta 0.1"),
            "--beta has no effect in this reward run; only dpo and kto support it"
        );
        assert_eq!(
            refused("mapl study sft --k-max=2"),
            "--k-max has no effect in this sft run; only reward and dpo support it"
        );
    }
}
