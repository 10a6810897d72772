//! `mapl export --merge`: a whole model folder from an adapter and its base.

use std::path::{Path, PathBuf};

use clap::Args;

use super::inputs::{Inputs, config_files};
use super::model_folder::{BaseArgs, adopt_pad, read_tokenizer, warn_of_bases};
use super::output::{MODEL_FILES, check_new_folder, written_by_run};
use super::save_dtype::SaveDtype;
use super::template::recorded;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokenizer::pad::choose;
use crate::files::input;
use crate::model::adapter::base::{AdapterFolder, is_adapter};
use crate::model::config::{Head, ModelConfig, StoredDtype};
use crate::model::weights::{DEFAULT_SHARD_BYTES, LoadAs, TensorReader, WeightFiles, write_model};
use crate::terminal::{complain, say};
use crate::{Error, Result};

/// Arguments of `export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Merge the adapter with its base: the result is a whole model that needs neither
    #[arg(long, required = true)]
    merge: bool,
    /// Folder of the adapter
    #[arg(long, alias = "model-name-or-path")]
    model: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Folder to write the model to
    #[arg(long, alias = "output-dir")]
    output: PathBuf,
    /// Data type of the written weights [default: that of the base]
    #[arg(long, value_enum)]
    save_dtype: Option<SaveDtype>,
}

/// Merges an adapter and writes the model. The weight files are renamed to their final names last.
///
/// # Errors
/// [`Error::Usage`] for a folder without adapter and for an output that holds a model or is an input.
pub fn export(args: &ExportArgs) -> Result<()> {
    check_new_folder("--output", &args.output, &MODEL_FILES)?;
    if !is_adapter(&args.model) {
        // For a folder that holds no model at all, this call returns a different error.
        ModelConfig::read(&args.model)?;
        return Err(Error::Usage(format!(
            "--model {} holds no adapter (adapter_config.json), so there is nothing to merge",
            args.model.display()
        )));
    }
    Inputs::default()
        .with("--model", [&args.model])
        .with("the base of the adapter", args.base.of(&args.model))
        .spare(("--output", &args.output), &written_by_run(&args.output)?)?;
    let mut config = ModelConfig::read_on(&args.model, args.base.base())?;
    warn_of_bases(args.base.base(), [args.model.as_path()]);
    let Some(adapter) = config.adapter.clone() else {
        return Err(Error::model(&args.model, "no longer holds an adapter"));
    };
    let mut tokenizer = read_tokenizer(&args.model, args.base.base(), None)?;
    tokenizer.check_copied()?;
    input::check_copied(&adapter.base, config_files(&adapter.base))?;
    adopt_pad(&mut config, &tokenizer);
    if config.head == Head::Reward {
        config = with_pad(config, &mut tokenizer, &args.model)?;
    }
    let files = WeightFiles::open(&args.model, &config, LoadAs::Exact)?;
    refuse_bias(&files, &adapter)?;
    match recorded(&args.model) {
        Ok(kwargs) if kwargs.is_empty() => {}
        Ok(kwargs) => complain(&format!(
            "warning: the run of {} gave the chat template {}, which the written folder cannot hold; pass it as \
             --chat-template-kwargs wherever {} is used",
            args.model.display(),
            serde_json::Value::Object(kwargs),
            args.output.display()
        )),
        Err(why) => complain(&format!("warning: {why}")),
    }
    let notes = config.notes.iter().chain(tokenizer.notes()).chain(files.notes());
    notes.for_each(|note| complain(&format!("note: {note}")));
    let dtype = args.save_dtype.map_or_else(|| stored(&files), SaveDtype::stored);
    let created = !args.output.exists();
    write(&args.output, &config, dtype, &files, &tokenizer).inspect_err(|_| {
        // A failed removal must not hide the first error.
        if created {
            let _ = std::fs::remove_dir_all(&args.output);
        }
    })?;
    say(&format!(
        "{} of {} parameters as {} in {}",
        config.architecture(),
        config.parameters().unwrap_or(0),
        dtype.name(),
        args.output.display()
    ));
    Ok(())
}

/// Data type of a base's weights; f32 if they have several.
fn stored(files: &WeightFiles) -> StoredDtype {
    match files.dtypes()[..] {
        [one] => one,
        _ => StoredDtype::F32,
    }
}

/// Adds the pad token that transformers needs to run a reward model on batches.
fn with_pad(config: ModelConfig, tokenizer: &mut Tokenizer, folder: &Path) -> Result<ModelConfig> {
    let pad = match config.pad {
        Some(pad) => pad,
        None => {
            let ends = tokenizer.end_ids().iter().copied().collect();
            let choice = choose(None, config.vocab, tokenizer, &ends, &[]).filter(|choice| !choice.ends_texts);
            choice.map(|choice| choice.id).ok_or_else(|| {
                let why = "holds a reward model without a pad token, which transformers needs; add a pad_token that is \
                           not an EOS token to the tokenizer";
                Error::model(folder, why)
            })?
        }
    };
    tokenizer.set_pad(pad);
    config.with_pad(pad)
}

/// Returns an error for a head with a bias, which the written model cannot have.
fn refuse_bias(files: &WeightFiles, adapter: &AdapterFolder) -> Result<()> {
    if files.head_bias()? == 0.0 {
        return Ok(());
    }
    let why = "has a reward head with a bias (a value head of LLaMA-Factory or TRL), which transformers' classifiers do not \
               have; score the adapter's folder as it is";
    Err(Error::model(&adapter.path, why))
}

fn write(
    folder: &Path,
    config: &ModelConfig,
    dtype: StoredDtype,
    files: &WeightFiles,
    tokenizer: &Tokenizer,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    tokenizer.copy_to(folder)?;
    let mut current: Option<(String, TensorReader<'_>)> = None;
    let mut values = Vec::new();
    write_model(folder, config, dtype, DEFAULT_SHARD_BYTES, &mut |tensor, offset, out| {
        let reader = match &mut current {
            Some((name, reader)) if *name == tensor.name => reader,
            slot => &mut slot.insert((tensor.name.clone(), files.reader(&tensor.name)?)).1,
        };
        reader.read(offset, out.len(), &mut values)?;
        out.copy_from_slice(&values);
        Ok(())
    })
}
