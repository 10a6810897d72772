//! The argument `--base-model` of every command that reads models, which names the base model of an adapter.
//! Also reads the tokenizer of an adapter's folder.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::inputs::{Inputs, config_files};
use super::output::warn;
use super::scored_reference::run_file;
use super::template::load_tokenizer;
use super::train_args::TrainArgs;
use crate::data::tokenizer::{StoredFile, Tokenizer, template_of};
use crate::files::input::{self, is_named};
use crate::model::adapter::base::{AdapterFolder, is_adapter};
use crate::model::adapter::config::TaskType;
use crate::model::config::{Head, ModelConfig};
use crate::terminal::shown;
use crate::train::manifest::{hashes, model_files};
use crate::{Error, Result};

/// The base model of adapters.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub struct BaseArgs {
    /// Base of the adapters that the command reads [default: the one that adapter_config.json names]
    #[arg(long, value_name = "FOLDER")]
    pub base_model: Option<PathBuf>,
}

impl BaseArgs {
    /// Returns the folder of `--base-model`.
    pub fn base(&self) -> Option<&Path> {
        self.base_model.as_deref()
    }

    /// Rejects `--base-model` if none of the folders holds an adapter.
    pub fn check<'a>(&self, folders: impl IntoIterator<Item = &'a Path>) -> Result<()> {
        if self.base_model.is_none() || folders.into_iter().any(is_adapter) {
            return Ok(());
        }
        Err(Error::Usage("--base-model has no effect: no model of this command is an adapter; leave it out".into()))
    }

    /// Adds the base models of those `folders` that are adapters to the inputs of a command.
    pub fn inputs<'a>(&self, inputs: Inputs, folders: impl IntoIterator<Item = &'a Path>) -> Inputs {
        let bases: Vec<PathBuf> = folders.into_iter().filter_map(|folder| self.of(folder)).collect();
        inputs.with("--base-model", &self.base_model).with("the base of an adapter", bases)
    }

    /// Returns the base folder of the model in `folder`, if that model is an adapter and its base is found. A
    /// missing base is an error later, when the model is read.
    pub fn of(&self, folder: &Path) -> Option<PathBuf> {
        AdapterFolder::find(folder, self.base()).ok().flatten().map(|adapter| adapter.base)
    }
}

/// Warns about every adapter among `folders` whose base has different weights from the base that it was trained
/// on. `base` is the value of `--base-model`.
pub(super) fn warn_of_bases<'a>(base: Option<&Path>, folders: impl IntoIterator<Item = &'a Path>) {
    let mut known: Vec<&Path> = Vec::new();
    for folder in folders {
        if !known.contains(&folder) {
            warn(other_base(folder, base));
            known.push(folder);
        }
    }
}

/// Returns a warning if the weights of the adapter's base differ from those recorded in the `run.json` of the
/// adapter's run.
fn other_base(folder: &Path, base: Option<&Path>) -> Option<String> {
    let adapter = AdapterFolder::find(folder, base).ok().flatten()?;
    let text = input::read(&run_file(folder)?, input::MAX_CONFIG).ok()?;
    let run: Value = serde_json::from_slice(&text).ok()?;
    let trained_on = run["adapter"]["base"].as_str()?;
    // File names are ignored. The same weights may be split into different shards, so a mismatch is a warning
    // instead of an error.
    let hashes_of = |files: &Value| -> Vec<String> {
        let weights = |file: &&Value| file["path"].as_str().is_some_and(|path| path.ends_with(".safetensors"));
        let all = files.as_array().into_iter().flatten().filter(weights);
        let mut found: Vec<String> = all.filter_map(|file| Some(file["blake3"].as_str()?.to_owned())).collect();
        found.sort_unstable();
        found
    };
    let recorded = hashes_of(&run["files"]["model"]);
    if recorded.is_empty() || recorded == hashes_of(&hashes(&model_files(&adapter.base))) {
        return None;
    }
    Some(format!(
        "the adapter {} was trained on {}, but its base {} has different weights; the result matches neither model \
         (--base-model names another folder)",
        folder.display(),
        shown(trained_on),
        adapter.base.display()
    ))
}

/// Reads the tokenizer of a model folder. For an adapter, a missing tokenizer or chat template is read from the base.
pub(super) fn read_tokenizer(folder: &Path, base: Option<&Path>, template: Option<&Path>) -> Result<Tokenizer> {
    let Some(adapter) = AdapterFolder::find(folder, base)? else { return Tokenizer::load_with(folder, template) };
    if !is_named(&folder.join("tokenizer.json")) {
        let own = folder.join("chat_template.jinja");
        let own = Some(own.as_path()).filter(|path| is_named(path));
        let mut tokenizer = Tokenizer::load_with(&adapter.base, template.or(own))?;
        tokenizer.add_note(format!("the tokenizer is that of the base {}", adapter.base.display()));
        return Ok(tokenizer);
    }
    let mut tokenizer = Tokenizer::load_apart(folder, &adapter.base, template)?;
    if tokenizer.template().is_none()
        && let Some(StoredFile { path, bytes }) = template_of(&adapter.base)?
    {
        tokenizer.add_note(format!("the chat template is that of the base, {}", path.display()));
        tokenizer.set_template(StoredFile { path, bytes })?;
    }
    Ok(tokenizer)
}

/// Reads the configuration and tokenizer of the model that a run starts from. Both are copied to the output folder.
pub(super) fn start_model(args: &TrainArgs) -> Result<(ModelConfig, Tokenizer)> {
    let base = args.base.base();
    args.base.check([args.model.as_path()].into_iter().chain(args.ref_model.as_deref()))?;
    warn_of_bases(base, [args.model.as_path()].into_iter().chain(args.ref_model.as_deref()));
    let mut config = ModelConfig::read_on(&args.model, base)?;
    let (template, kwargs) = (args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref());
    let tokenizer = load_tokenizer(&args.model, base, template, kwargs)?;
    warn_of_tokenizer(&tokenizer);
    adopt_pad(&mut config, &tokenizer);
    tokenizer.check_copied()?;
    let configs = config.adapter.as_ref().map_or(&args.model, |adapter| &adapter.base);
    input::check_copied(configs, config_files(configs))?;
    Ok((config, tokenizer))
}

/// Sets the pad token of a reward adapter to the pad token of its tokenizer, as the trainer of the adapter
/// does. The config.json that was read belongs to the base, whose pad token may differ.
pub(super) fn adopt_pad(config: &mut ModelConfig, tokenizer: &Tokenizer) {
    let classifier = config.adapter.as_ref().is_some_and(|a| a.config.task_type == Some(TaskType::SeqCls));
    if config.head == Head::Reward && classifier {
        config.pad = tokenizer.pad_id().filter(|&pad| (pad as usize) < config.vocab).or(config.pad);
    }
}

/// Warns if the tokenizer that transformers builds from the folder differs from tokenizer.json.
pub(super) fn warn_of_tokenizer(tokenizer: &Tokenizer) {
    warn(tokenizer.rebuilt_by_transformers());
}
