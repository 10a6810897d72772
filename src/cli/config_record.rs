//! `run.yaml` of an output folder: the options of the run in a form that `--config` accepts. Options that the
//! method, the objective or the data decide have the values in use. The same command with this file, in the
//! same folder, gives the same run. Options that replace or continue a run are left out.

use std::fmt::Write as _;

use clap::ValueEnum as _;
use serde_json::{Map, Value, json};

use super::device::Device;
use super::method_options::takes;
use super::train::TrainSetup;
use super::train_args::TrainArgs;
use crate::data::options::Objective;
use crate::loss::objective::Method;
use crate::{Error, Result};

/// Name of the file.
pub(super) const CONFIG_FILE: &str = "run.yaml";

/// Options that are not recorded, because they do not define the run. The file of `nccl_init` is valid for
/// one run only.
const LEFT_OUT: [&str; 5] = ["config", "dry_run", "nccl_init", "overwrite_output_dir", "resume_from_checkpoint"];

/// Text of the file.
pub(super) fn text(setup: &TrainSetup<'_>, device: &str, dtype: &str) -> Result<String> {
    let mut options = given(setup.args)?;
    let (s, args) = (&setup.settings, setup.args);
    let mut put = |name: &str, value: Value| {
        options.insert(name.to_owned(), value);
    };
    if args.device.device == Device::Auto {
        put("device", json!(device));
    }
    put("dtype", json!(dtype));
    if !takes(setup.method, "token_stats") {
        put("token_stats", Value::Null);
    }
    put("learning_rate", json!(s.learning_rate));
    let scheduler = s.scheduler.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    put("lr_scheduler_type", json!(scheduler));
    put("warmup_steps", json!(s.warmup_steps));
    put("warmup_ratio", Value::Null);
    put("max_length", json!(setup.tokenize.max_length));
    if args.optimiser.total_batch_size.is_none() {
        put("gradient_accumulation_steps", json!(s.accumulation));
    }
    match s.max_steps {
        Some(_) => put("num_train_epochs", Value::Null),
        None => put("num_train_epochs", json!(s.epochs)),
    }
    if let (Some(steps), None) = (s.logging_steps, args.optimiser.logging_steps) {
        put("logging_steps", json!(steps));
    }
    if setup.method != Method::Sft {
        let decided = serde_json::to_value(args.loss.spelled_out(&setup.loss));
        let decided = decided.map_err(|e| Error::Runtime(format!("cannot write {CONFIG_FILE}: {e}")))?;
        // Under --objective base, any value of the two weights is an error, so neither is recorded.
        let unsaid =
            |name: &str| setup.objective() == Objective::Base && ["intra_weight", "inter_weight"].contains(&name);
        let decided = decided.as_object().into_iter().flatten().filter(|(name, _)| !unsaid(name));
        decided.for_each(|(name, value)| put(name, value.clone()));
    }
    let mut out = format!(
        "# Options of this run; `mapl {} --config {CONFIG_FILE} --output-dir OTHER` repeats it.\n",
        setup.method.name()
    );
    for (name, value) in options {
        if is_set(&name, &value) && !LEFT_OUT.contains(&name.as_str()) {
            // JSON values are valid YAML.
            let _ = writeln!(out, "{name}: {value}");
        }
    }
    out += &environment(&args.env);
    Ok(out)
}

/// Parts of the names of environment variables with values that should not be written to a file.
const SECRET: [&str; 6] = ["TOKEN", "KEY", "SECRET", "PASS", "CREDENTIAL", "AUTH"];

/// The `env` of the configuration file; variables that may be secret are named in a comment.
fn environment(variables: &[(String, String)]) -> String {
    let is_secret = |name: &str| SECRET.iter().any(|part| name.to_ascii_uppercase().contains(part));
    let (secret, open): (Vec<_>, Vec<_>) = variables.iter().partition(|(name, _)| is_secret(name));
    let mut out = String::new();
    if !open.is_empty() {
        let open: Map<String, Value> = open.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let _ = writeln!(out, "env: {}", Value::Object(open));
    }
    if !secret.is_empty() {
        let names: Vec<&str> = secret.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(out, "# Not written, because they may be secret: {}", names.join(", "));
    }
    out
}

/// Options by name, as given and by default.
fn given(args: &TrainArgs) -> Result<Map<String, Value>> {
    match serde_json::to_value(args) {
        Ok(Value::Object(options)) => Ok(options),
        Ok(_) => Ok(Map::new()),
        Err(e) => Err(Error::Runtime(format!("cannot write {CONFIG_FILE}: {e}"))),
    }
}

/// Options that may be given as false, which differs from leaving them out.
const TRUE_OR_FALSE: [&str; 1] = ["greater_is_better"];

fn is_set(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(false) => TRUE_OR_FALSE.contains(&name),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::super::{Cli, Command};
    use super::*;

    fn parsed(words: &[String]) -> Result<Map<String, Value>, String> {
        let base = ["mapl", "dpo", "--model=m", "--train-file=f"].map(str::to_owned);
        let cli = Cli::try_parse_from(base.iter().chain(words)).map_err(|e| e.to_string())?;
        let Command::Dpo(args) = cli.command else { panic!("another command") };
        given(&args).map_err(|e| e.to_string())
    }

    /// Every choice is recorded in the spelling of the command line.
    #[test]
    fn every_choice_is_recorded_as_the_command_line_spells_it() {
        let all = Cli::command();
        let mut count = 0;
        for arg in all.find_subcommand("dpo").unwrap().get_arguments() {
            let (Some(long), id) = (arg.get_long(), arg.get_id().as_str()) else { continue };
            for value in arg.get_possible_values() {
                let words = [format!("--{long}={}", value.get_name())];
                let Ok(options) = parsed(&words) else { continue };
                let recorded = match &options[id] {
                    Value::Array(list) => list[0].clone(),
                    recorded => recorded.clone(),
                };
                let Some(text) = recorded.as_str() else { continue };
                let again = parsed(&[format!("--{long}={text}")]).unwrap_or_else(|e| panic!("--{long}={text}: {e}"));
                assert_eq!(again[id], options[id], "--{long}={text}");
                count += 1;
            }
        }
        assert!(count > 30, "{count}");
    }
}
