//! The commands `mapl tokenizer` and `mapl init`. They make a tokenizer, and a model with random weights, for a
//! run that does not start from a published model.

use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::inputs::Inputs;
use super::output::{MODEL_FILES, check_new_folder, written_by_run};
use crate::backend::cpu::Cpu;
use crate::data::source::{self, ColumnMap, ReadOptions};
use crate::data::tokenizer::pad::choose;
use crate::data::tokenizer::{FILES, Tokenizer, train_bpe};
use crate::error::refuse_given;
use crate::files::input;
use crate::model::config::{Head, ModelConfig};
use crate::model::{presets, store};
use crate::terminal::{counted, say};
use crate::{Error, Result};

/// Arguments of `tokenizer`.
#[derive(Args, Clone, Debug)]
pub struct TokenizerArgs {
    /// Text files, or data files in any format that other commands read, whose prompts and responses are used
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Input columns for the keys, such as chosen=chosen_response,rejected=rejected_response
    #[arg(long, value_name = "KEY=COLUMN,...", default_value = "", hide_default_value = true)]
    column_map: ColumnMap,
    /// Vocabulary size, including the 256 bytes and special tokens
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
    /// Preset with the model's sizes; `mapl env` lists the presets
    #[arg(long, group = "sizes")]
    preset: Option<String>,
    /// A config.json with the model's sizes
    #[arg(long, group = "sizes")]
    config: Option<PathBuf>,
    /// Tokenizer folder, whose files are copied; with --preset, the model's vocabulary size follows from the
    /// tokenizer's
    #[arg(long)]
    tokenizer: PathBuf,
    /// Folder to write the model to
    #[arg(long)]
    output_dir: PathBuf,
    /// Seed of the weights
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

impl TokenizerArgs {
    /// Returns the arguments that list data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.input]
    }
}

/// Trains and writes a tokenizer.
pub fn tokenizer(args: &TokenizerArgs) -> Result<()> {
    check_new_folder("--output-dir", &args.output_dir, &["tokenizer.json"])?;
    let written = FILES.map(|name| args.output_dir.join(name));
    Inputs::default().with("--input", &args.input).spare(("--output-dir", &args.output_dir), &written)?;
    let with_rows = args.input.iter().map(|path| holds_rows(path)).collect::<Result<Vec<_>>>()?;
    if !with_rows.contains(&true) {
        refuse_given(&[("--column-map", args.column_map != ColumnMap::default())], "on plain text")?;
    }
    let options = ReadOptions { column_map: args.column_map.clone(), ..ReadOptions::default() };
    let (mut texts, mut reports) = (Vec::new(), Vec::new());
    for (path, rows) in args.input.iter().zip(&with_rows) {
        if *rows {
            let (found, read) = source::read_texts(std::slice::from_ref(path), &options)?;
            texts.extend(found);
            reports.extend(read);
        } else {
            texts.extend(read_lines(path)?);
        }
    }
    if with_rows.contains(&true) {
        source::check_used(&options, &reports)?;
    }
    let count = texts.len();
    let mut tokenizer = train_bpe(texts.into_iter(), args.vocab_size)?;
    tokenizer.save_new(&args.output_dir)?;
    let (entries, place) = (tokenizer.vocab_size(), args.output_dir.display());
    let short = if entries < args.vocab_size { " (the texts have no further pairs to merge)" } else { "" };
    let (entries, texts) = (counted(entries, "entry"), counted(count, "text"));
    say(&format!("tokenizer of {entries}{short} from {texts} in {place}"));
    Ok(())
}

/// Lines of a plain text file that are not blank.
fn read_lines(path: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for (i, line) in source::open_text(path)?.lines().enumerate() {
        let line = line.map_err(|e| Error::data(path, i + 1, None, format!("cannot be read as UTF-8 text: {e}")))?;
        if !line.trim().is_empty() {
            texts.push(line);
        }
    }
    if texts.is_empty() {
        return Err(Error::data(path, 0, None, "holds no text; a tokenizer needs text to learn from"));
    }
    Ok(texts)
}

/// Returns whether a file holds rows instead of plain text, by its extension or, for other extensions, by its
/// first bytes. A pipe needs an extension, because reading its first bytes would consume them.
fn holds_rows(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Err(Error::data(path, 0, None, "is a folder; name the files in it"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = [".gz", ".zst", ".bz2", ".xz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("txt" | "md" | "text") => Ok(false),
        Some("json" | "jsonl" | "ndjson" | "csv" | "tsv" | "parquet") => Ok(true),
        _ if path.exists() && !path.is_file() => {
            let why = "is not a regular file, so rows cannot be told from plain text; name a file that ends in .jsonl \
                       or .txt";
            Err(Error::data(path, 0, None, why))
        }
        _ => {
            let mut start = [0; 4];
            let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut start));
            if read.map_err(Error::io("open", path))? == 4 && start == *b"PAR1" {
                return Ok(true);
            }
            let mut reader = source::open_text(path)?;
            let start = reader.fill_buf().map_err(Error::io("read", path))?;
            let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
            Ok(matches!(first, Some(b'{' | b'[')))
        }
    }
}

/// Initialises and writes a model.
pub fn init(args: &InitArgs) -> Result<()> {
    check_new_folder("--output-dir", &args.output_dir, &MODEL_FILES)?;
    Inputs::default()
        .with("--config", &args.config)
        .with("--tokenizer", [&args.tokenizer])
        .spare(("--output-dir", &args.output_dir), &written_by_run(&args.output_dir)?)?;
    let mut tokenizer = Tokenizer::load(&args.tokenizer)?;
    tokenizer.check_copied()?;
    let config = match (&args.preset, &args.config) {
        (Some(name), _) => fit_vocabulary(presets::config(name)?, &tokenizer)?,
        (None, Some(path)) => {
            let config = read_config(path)?;
            let vocab = config.vocab;
            if vocab < tokenizer.vocab_size() {
                let why = format!("vocab_size {vocab} is below the tokenizer's {}", tokenizer.vocab_size());
                return Err(Error::model(path, why));
            }
            let pad = init_pad(&config, &mut tokenizer)?;
            config.with_vocabulary(vocab, tokenizer.end_ids().to_vec(), tokenizer.bos_id(), pad)?
        }
        (None, None) => return Err(Error::Usage("one of --preset and --config is needed".into())),
    };
    for note in config.notes.iter().chain(tokenizer.notes()) {
        say(&format!("note: {note}"));
    }
    let model = store::random(&Cpu::new(), config, args.seed)?;
    std::fs::create_dir_all(&args.output_dir).map_err(Error::io("create", &args.output_dir))?;
    store::save(&Cpu::new(), &model, &args.output_dir)?;
    tokenizer.copy_to(&args.output_dir)?;
    say(&format!(
        "{} of {} parameters in {}",
        model.config.architecture(),
        model.config.parameters().unwrap_or(0),
        args.output_dir.display()
    ));
    Ok(())
}

/// Returns the pad token of a new model: the tokenizer's pad token or, for a reward model, a token that is
/// not an EOS token.
fn init_pad(config: &ModelConfig, tokenizer: &mut Tokenizer) -> Result<Option<u32>> {
    if config.head != Head::Reward {
        return Ok(tokenizer.pad_id());
    }
    let ends = tokenizer.end_ids().iter().copied().collect();
    match choose(None, config.vocab, tokenizer, &ends, &[]).filter(|choice| !choice.ends_texts) {
        Some(choice) => {
            tokenizer.set_pad(choice.id);
            Ok(Some(choice.id))
        }
        None => Err(Error::Usage(
            "a reward model needs a pad token that is not an EOS token; add one to the tokenizer as pad_token".into(),
        )),
    }
}

fn read_config(path: &Path) -> Result<ModelConfig> {
    let bytes = input::read_once(path, input::MAX_CONFIG).map_err(input::model_error(path))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => ModelConfig::from_json(map, path),
        Ok(_) => Err(Error::model(path, "is not a JSON object")),
        Err(e) => Err(Error::model(path, format!("is not JSON: {e}"))),
    }
}

/// Sets the vocabulary and special ids of a preset to the tokenizer's. The vocabulary is rounded up to a
/// multiple of 64, which keeps rows of logits aligned; the added entries are never used.
fn fit_vocabulary(config: ModelConfig, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let vocab = tokenizer.vocab_size().next_multiple_of(64);
    config.with_vocabulary(vocab, tokenizer.end_ids().to_vec(), tokenizer.bos_id(), tokenizer.pad_id())
}
