//! Contents of `run.json`: every option with the value in use, the data, hashes of all inputs, and
//! the environment. `train::manifest` adds times and status.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::env::cpu_features;
use super::train::TrainSetup;
use crate::backend::contract::Reduce;
use crate::backend::kernels::own;
use crate::data::pack::LogpScope;
use crate::data::tokenize::TokenizeReport;
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::pad::PadChoice;
use crate::data::tokenizer::{StoredFile, Tokenizer};
use crate::data::tree::token_counts;
use crate::files::{input, path_json};
use crate::loss::objective::{DEFAULT_BETA, LossType, Method, ReduceName, ScopeName};
use crate::ranks::world;
use crate::train::manifest::{FILE, hash_entry, hashes, model_and_base_files, variables};
use crate::{COMMIT, Error, Result};

/// Facts about a run that are known before its first step.
pub(super) struct ManifestFacts<'a> {
    pub setup: &'a TrainSetup<'a>,
    pub device: &'static str,
    pub dtype: &'static str,
    pub tokenizer: &'a Tokenizer,
    pub train: (&'a [TokenizedGroup], &'a TokenizeReport),
    /// Evaluation groups and the report of their tokenization; empty in a run without evaluation rows.
    pub eval: (&'a [TokenizedGroup], &'a TokenizeReport),
    pub fingerprint: &'a [(String, String)],
    /// Pad token of a reward model, which decides the token position at which rewards are read.
    pub reward: Option<PadChoice>,
    /// Number of trained parameters.
    pub trained: usize,
}

impl ManifestFacts<'_> {
    /// Returns the manifest without times and status.
    pub fn to_map(&self) -> Result<Map<String, Value>> {
        let (setup, args) = (self.setup, self.setup.args);
        let base = args.base.base();
        let fingerprint: Map<_, _> = self.fingerprint.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let facts = json!({
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": COMMIT,
            "command": setup.command_line,
            "method": setup.method.name(),
            "config": self.config()?,
            "settings": setup.settings,
            "adamw": setup.adamw,
            "loss_formula": setup.loss.formula(setup.reference().is_some()),
            "construction": setup.build,
            "tokenize": setup.tokenize,
            "read": args.read,
            "data": { "train": counts(self.train)?, "eval": counts(self.eval)? },
            "files": {
                "train": hashes(&args.train_file),
                "eval": hashes(&args.eval_file),
                "model": hashes(&model_and_base_files(&args.model, base)),
                "reference": hashes(&setup.reference().map_or(Vec::new(), |folder| model_and_base_files(folder, base))),
                "tokenizer": stored_hashes(self.tokenizer.files()),
                "chat_template": stored_hashes(self.tokenizer.template_file()),
            },
            "environment": {
                "os": std::env::consts::OS,
                "arch": std::env::consts::ARCH,
                "device": self.device,
                "threads": rayon::current_num_threads(),
                "ranks": world::collective().size(),
                "cpu_features": cpu_features(),
                "variables": variables(),
                "folder": std::env::current_dir().ok().map(|folder| path_json(&folder)),
            },
            "fingerprint": fingerprint,
        });
        let mut facts = into_map(facts);
        if let Some(lora) = &setup.lora {
            let mut adapter = into_map(to_value(lora)?);
            adapter.insert("scale".into(), json!(lora.scale()));
            adapter.insert("base".into(), path_json(&args.model));
            adapter.insert("trained_parameters".into(), json!(self.trained));
            facts.insert("adapter".into(), Value::Object(adapter));
        }
        if let Some(own) = own::used_on(self.device) {
            let hashes = own.hashes().into_iter().map(|(file, hash)| (file, json!(hash)));
            facts["environment"]["kernels"] = Value::Object(hashes.collect());
        }
        if !args.ifeval.ifeval_file.is_empty() {
            facts["files"]["ifeval"] = hashes(&args.ifeval.ifeval_file);
        }
        if let Some(reward) = self.reward {
            facts.insert("reward".into(), reward.to_json(self.tokenizer));
        }
        Ok(facts)
    }

    /// Returns the value in use, or null, of every option, by the flag's name in snake case. For an option that
    /// the method or the objective determines, this is the determined value.
    fn config(&self) -> Result<Map<String, Value>> {
        let setup = self.setup;
        let (s, loss) = (&setup.settings, &setup.loss);
        let mut config = into_map(to_value(setup.args)?);
        let mut put = |name: &str, value: Value| config.insert(name.to_owned(), value);
        put("ref_model", json!(setup.reference()));
        let kwargs = Some(self.tokenizer.template_kwargs()).filter(|kwargs| !kwargs.is_empty());
        put("chat_template_kwargs", json!(kwargs));
        put("device", json!(self.device));
        put("dtype", json!(self.dtype));
        put("max_length", json!(setup.tokenize.max_length));
        put("head_rows", json!(setup.head_rows));
        put("report_to", json!(s.report_to.names()));
        put("gradient_accumulation_steps", json!(s.accumulation));
        put("total_batch_size", json!(s.micro_batch * s.accumulation));
        put("max_steps", json!(s.max_steps));
        put("num_train_epochs", if s.max_steps.is_some() { Value::Null } else { json!(s.epochs) });
        put("learning_rate", json!(s.learning_rate));
        put("lr_scheduler_type", json!(s.scheduler));
        put("warmup_steps", json!(s.warmup_steps));
        put("logging_steps", json!(s.logging_steps));
        put("warmup_ratio", Value::Null);
        put("eval_steps", if s.eval_steps == Some(u64::MAX) { json!("start and end") } else { json!(s.eval_steps) });
        let strategy = |steps: Option<u64>, epochs: bool| match (steps, epochs) {
            (_, true) => "epoch",
            (None | Some(u64::MAX), false) => "no",
            (Some(_), false) => "steps",
        };
        put("logging_strategy", json!(strategy(s.logging_steps, s.logging_epochs)));
        put("eval_strategy", json!(strategy(s.eval_steps, s.eval_epochs)));
        put("save_strategy", json!(strategy(s.save_steps, s.save_epochs)));
        put("save_steps", json!(s.save_steps));
        put("save_total_limit", json!(s.save_total_limit));
        if let Some(best) = &s.best {
            put("metric_for_best_model", json!(best.metric));
            put("greater_is_better", json!(best.greater_is_better));
        }
        if let Some(cache) = &setup.precompute {
            put("precompute_ref_batch_size", json!(cache.batch_groups));
            put("ref_cache_dir", path_json(&cache.dir));
        }
        if let Some(lora) = &setup.lora {
            put("lora_r", json!(lora.rank));
            put("lora_alpha", json!(lora.alpha));
            put("lora_target_modules", json!(lora.targets));
            put("lora_dropout", json!(0.0));
        }
        put("objective", json!(setup.objective()));
        if setup.objective().builds() {
            let built = into_map(to_value(&setup.build)?);
            for (name, value) in built.into_iter().filter(|(name, _)| !name.starts_with("build_in")) {
                put(&name, value);
            }
        }
        if setup.method == Method::Sft {
            return Ok(config);
        }
        for (i, kind) in ["base", "intra", "inter"].into_iter().enumerate() {
            put(&format!("{kind}_weight"), json!(loss.weights[i]));
        }
        put("mix", json!(loss.mix));
        put("margin", json!(loss.margin));
        put("pop_clip", json!(loss.pop_clip));
        let (names, loss_weights): (Vec<String>, Vec<f64>) = loss.types.iter().map(|(of, w)| (of.name(), *w)).unzip();
        match names.as_slice() {
            [name] => put("loss_type", json!(name)),
            names => put("loss_type", json!(names)),
        };
        put("loss_weights", json!(loss_weights));
        put("label_smoothing", json!(setup.args.loss.label_smoothing.unwrap_or(0.0)));
        match setup.method {
            Method::Sft => {}
            Method::Reward => {
                put("center_rewards_coefficient", json!(loss.center));
            }
            Method::Kto => {
                put("beta", json!(loss.scale[0]));
                put("desirable_weight", json!(loss.label_weights[0]));
                put("undesirable_weight", json!(loss.label_weights[1]));
            }
            Method::Dpo => {
                match loss.types[0].0 {
                    // ORPO does not multiply its scores by beta; its beta is the weight of a loss term.
                    LossType::Orpo => put("beta", json!(setup.args.loss.beta.unwrap_or(DEFAULT_BETA))),
                    _ => {
                        for (name, beta) in ["beta", "beta_intra", "beta_inter"].into_iter().zip(loss.scale) {
                            put(name, json!(beta));
                        }
                        None
                    }
                };
                put("nll_weight", json!(loss.nll_weight));
                put("ld_alpha", json!(loss.ld_alpha));
                put("use_weighting", json!(loss.use_weighting));
                let scope = match loss.scope {
                    LogpScope::Response => ScopeName::Response,
                    LogpScope::PromptAndResponse => ScopeName::PromptAndResponse,
                };
                put("logp_scope", json!(scope));
                let reduce = match loss.reduce {
                    Reduce::Sum => ReduceName::Sum,
                    Reduce::Mean => ReduceName::Mean,
                };
                // Some of the losses divide by the number of tokens and others do not, so no single value applies.
                put("logp_reduce", if loss.needs_rows() { Value::Null } else { json!(reduce) });
            }
        }
        Ok(config)
    }
}

/// Returns path, size and BLAKE3 hash of each file, from the bytes that were read.
fn stored_hashes<'a>(files: impl IntoIterator<Item = &'a StoredFile>) -> Value {
    let entry = |file: &StoredFile| hash_entry(&file.path, file.bytes.len() as u64, &blake3::hash(&file.bytes));
    Value::Array(files.into_iter().map(entry).collect())
}

/// Returns the tokenization counts, and the tokens per epoch with and without prefix sharing; null if there are
/// no rows.
fn counts((groups, report): (&[TokenizedGroup], &TokenizeReport)) -> Result<Value> {
    if report.rows_read == 0 {
        return Ok(Value::Null);
    }
    let mut value = to_value(report)?;
    let (mut alone, mut shared) = (0, 0);
    for counts in groups.iter().map(token_counts) {
        alone += counts.per_sequence;
        shared += counts.tree;
    }
    value["tokens_alone"] = json!(alone);
    value["tokens_shared"] = json!(shared);
    Ok(value)
}

fn to_value(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::Runtime(format!("cannot write run.json: {e}")))
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Returns the maximum sequence length in the `run.json` of the run that wrote a checkpoint. A resumed run
/// without `--max-length` uses it to see the same tokens, even if the default has changed since.
pub(super) fn recorded_length(checkpoint: &Path) -> Option<usize> {
    let folder = checkpoint.canonicalize().ok()?;
    let text = input::read(&folder.parent()?.join(FILE), input::MAX_CONFIG).ok()?;
    let run: serde_json::Value = serde_json::from_slice(&text).ok()?;
    usize::try_from(run["tokenize"]["max_length"].as_u64()?).ok().filter(|&length| length >= 2)
}
