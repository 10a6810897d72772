//! `mapl tokenizer` and `mapl init`: what a run starts from when there is no published model.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::backend::cpu::Cpu;
use crate::data::tokenizer::{Tokenizer, train_bpe};
use crate::model::config::ModelConfig;
use crate::model::{presets, store};
use crate::{Error, Result};

/// Arguments of `tokenizer`.
#[derive(Args, Clone, Debug)]
pub struct TokenizerArgs {
    /// Text files, or JSON lines whose strings are used
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Entries of the vocabulary, the 256 bytes and special tokens included
    #[arg(long)]
    vocab_size: usize,
    /// Folder to write the tokenizer to
    #[arg(long)]
    output_dir: PathBuf,
}

/// Arguments of `init`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("sizes").required(true))]
pub struct InitArgs {
    /// Named sizes; `mapl env` lists them
    #[arg(long, group = "sizes")]
    preset: Option<String>,
    /// A config.json with the sizes
    #[arg(long, group = "sizes")]
    config: Option<PathBuf>,
    /// Tokenizer folder; its files are copied and its vocabulary sets the model's
    #[arg(long)]
    tokenizer: PathBuf,
    /// Folder to write the model to
    #[arg(long)]
    output_dir: PathBuf,
    /// Seed of the weights
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Trains and writes a tokenizer.
pub fn tokenizer(args: &TokenizerArgs) -> Result<()> {
    let mut texts = Vec::new();
    for path in &args.input {
        read_texts(path, &mut texts)?;
    }
    let count = texts.len();
    let mut tokenizer = train_bpe(texts.into_iter(), args.vocab_size)?;
    tokenizer.save_new(&args.output_dir)?;
    println!("tokenizer of {} entries from {count} texts in {}", tokenizer.vocab_size(), args.output_dir.display());
    Ok(())
}

/// Collects the strings of JSON lines, or the lines of any other file.
fn read_texts(path: &Path, texts: &mut Vec<String>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let plain: Box<dyn std::io::Read> = if path.extension().is_some_and(|e| e == "gz") {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut found = 0;
    for (i, line) in BufReader::new(plain).lines().enumerate() {
        let line = line.map_err(|e| Error::data(path, i + 1, None, format!("cannot be read: {e}")))?;
        match serde_json::from_str::<Value>(&line) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => strings(value, None, texts),
            _ => texts.push(line),
        }
        found += 1;
    }
    if found == 0 {
        return Err(Error::data(path, 0, None, "is empty; a tokenizer needs text to learn from"));
    }
    Ok(())
}

/// Strings of a row, but for ids and roles.
fn strings(value: Value, key: Option<&str>, texts: &mut Vec<String>) {
    match value {
        Value::String(text) if !matches!(key, Some("id" | "role" | "from" | "kind" | "rule" | "direction")) => {
            texts.push(text);
        }
        Value::Array(items) => items.into_iter().for_each(|item| strings(item, key, texts)),
        Value::Object(map) => map.into_iter().for_each(|(k, v)| strings(v, Some(&k), texts)),
        _ => {}
    }
}

/// Draws and writes a model.
pub fn init(args: &InitArgs) -> Result<()> {
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    let config = match (&args.preset, &args.config) {
        (Some(name), _) => fit_vocabulary(presets::config(name)?, &tokenizer)?,
        (None, Some(path)) => {
            let config = read_config(path)?;
            let vocab = config.vocab;
            if vocab < tokenizer.vocab_size() {
                let why = format!("vocab_size {vocab} is below the tokenizer's {}", tokenizer.vocab_size());
                return Err(Error::model(path, why));
            }
            config.with_vocabulary(vocab, tokenizer.end_ids().to_vec(), tokenizer.bos_id(), tokenizer.pad_id())?
        }
        (None, None) => return Err(Error::Usage("one of --preset and --config is needed".into())),
    };
    std::fs::create_dir_all(&args.output_dir).map_err(Error::io("create", &args.output_dir))?;
    let model = store::random(&Cpu::new(), config, args.seed)?;
    store::save(&Cpu::new(), &model, &args.output_dir)?;
    tokenizer.copy_to(&args.output_dir)?;
    println!(
        "{} of {} parameters in {}",
        model.config.architecture(),
        model.config.parameters().unwrap_or(0),
        args.output_dir.display()
    );
    Ok(())
}

fn read_config(path: &Path) -> Result<ModelConfig> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => ModelConfig::from_json(map, path),
        Ok(_) => Err(Error::model(path, "is not a JSON object")),
        Err(e) => Err(Error::model(path, format!("is not JSON: {e}"))),
    }
}

/// Sets vocabulary and special ids of a preset to those of the tokenizer. The vocabulary is rounded up to a multiple of 64, so
/// that rows of the head stay aligned; the rows beyond the tokenizer are never hit.
pub fn fit_vocabulary(config: ModelConfig, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let vocab = tokenizer.vocab_size().next_multiple_of(64);
    config.with_vocabulary(vocab, tokenizer.end_ids().to_vec(), tokenizer.bos_id(), tokenizer.pad_id())
}
