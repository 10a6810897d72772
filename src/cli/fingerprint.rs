//! Fingerprint of a run: everything that a resumed run must share with the run it continues. It
//! consists of named settings and of hashes of the inputs. Settings that change no update, such as
//! cadence and output, are not part of it.

use std::path::Path;

use super::train::TrainSetup;
use crate::data::template::frozen_date;
use crate::data::tokenize::TokenizeOptions;
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::files::input;
use crate::model::adapter::base::AdapterFolder;
use crate::model::adapter::config::CONFIG_FILE;
use crate::model::config::ModelConfig;
use crate::optim::schedule::Shape;
use crate::train::checkpoint::LENGTH_KEY;
use crate::{Error, Result};

/// Number of digits of a stored hash.
const DIGITS: usize = 16;

/// Parts of a run that its fingerprint covers.
pub(super) struct Fingerprint<'a> {
    pub setup: &'a TrainSetup<'a>,
    /// Training and evaluation groups.
    pub groups: [&'a [TokenizedGroup]; 2],
    pub tokenizer: &'a Tokenizer,
    /// Configuration of the start model.
    pub config: &'a ModelConfig,
    /// Hash of the reference's weights.
    pub reference: String,
    /// Hash of the base weights of an adapter.
    pub base: Option<String>,
}

impl Fingerprint<'_> {
    /// Name and value of every part, in a fixed order.
    pub fn entries(self) -> Vec<(String, String)> {
        let (setup, s) = (self.setup, &self.setup.settings);
        // Without a decay of the learning rate, the length of a run changes none of its updates, so a resumed
        // run may be longer.
        let length = match s.max_steps {
            _ if !s.schedule.depends_on_length() => "any".to_owned(),
            Some(steps) => format!("{steps} steps"),
            None => format!("{} epochs", s.epochs),
        };
        // Schedules with default parameters keep the text that earlier versions wrote, so that their runs can
        // be resumed.
        let parameters = match s.schedule {
            Shape::Linear | Shape::Constant | Shape::ConstantWithWarmup => String::new(),
            Shape::Cosine { cycles: 0.5, floor: 0.0 } => String::new(),
            shape => format!(", {shape:?}"),
        };
        let [train, eval] = self.groups.map(groups_hash);
        let mut entries = vec![
            ("method", setup.method.name().to_owned()),
            ("loss", setup.loss.fingerprint()),
            ("batch size", s.micro_batch.to_string()),
            ("gradient accumulation", s.accumulation.to_string()),
            (LENGTH_KEY, length),
            ("learning rate", s.learning_rate.to_string()),
            ("schedule", format!("{:?} with {} warm-up steps{parameters}", s.scheduler, s.warmup_steps)),
            ("shuffling", format!("{:?}", s.shuffle)),
            ("AdamW", format!("{:?}", setup.adamw)),
            ("model config", config_line(self.config)),
            ("training data", train),
            ("evaluation data", eval),
            ("tokenizer", self.tokenizer_hash()),
            ("chat template", self.template_hash()),
            ("reference", self.reference),
        ];
        if let (Some(lora), Some(base)) = (&setup.lora, self.base) {
            entries.push(("adapter", format!("{lora:?}")));
            entries.push(("base model", base));
        }
        if setup.build.objective.builds() {
            // Groups redrawn in later epochs follow from these settings and the rows.
            entries.push(("construction", format!("{:?}", setup.build)));
            let TokenizeOptions {
                max_length,
                on_too_long,
                max_drop_fraction,
                max_boundary_mismatch,
                allow_double_bos,
                positions: _,
            } = &setup.tokenize;
            let text = format!(
                "TokenizeOptions {{ max_length: {}, on_too_long: {on_too_long:?}, max_drop_fraction: \
                 {max_drop_fraction:?}, max_boundary_mismatch: {max_boundary_mismatch:?}, allow_double_bos: \
                 {allow_double_bos:?} }}",
                max_length.unwrap_or_default()
            );
            entries.push(("tokenization", text));
        }
        if self.tokenizer.template().is_some_and(|template| template.uses_date()) {
            entries.push(("date in the chat template (SOURCE_DATE_EPOCH sets it)", frozen_date()));
        }
        if let Some(best) = &s.best {
            entries
                .push(("metric for the best model", format!("{}, greater: {}", best.metric, best.greater_is_better)));
        }
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Hash of the tokenizer's files, except chat template files.
    fn tokenizer_hash(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for file in self.tokenizer.files().iter().filter(|file| file.path.extension().is_none_or(|e| e != "jinja")) {
            hash.update(&file.bytes);
        }
        short(&hash)
    }

    fn template_hash(&self) -> String {
        let Some(template) = self.tokenizer.template() else { return "none".to_owned() };
        let mut hash = blake3::Hasher::new();
        for text in template.sources().iter().flat_map(|(name, source)| [name, source]) {
            hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        short(&hash)
    }
}

fn short(hash: &blake3::Hasher) -> String {
    hash.finalize().to_hex()[..DIGITS].to_owned()
}

/// Sizes and constants that the forward pass depends on, as text.
fn config_line(c: &ModelConfig) -> String {
    let mut traits = format!("{} {}", c.traits.text(), c.softcaps.text()).trim().to_owned();
    if c.rotated != c.head_dim {
        traits = format!("{traits} {} elements rotate", c.rotated);
    }
    format!(
        "{}, {} layers of width {} and {}, {} heads of {} ({} for keys), vocabulary {}{}, norm eps {}, {:?}{}{}{}, at \
         most {} positions{}{}",
        c.architecture(),
        c.layers,
        c.hidden,
        c.intermediate,
        c.heads,
        c.head_dim,
        c.kv_heads,
        c.vocab,
        if c.tied { ", tied" } else { "" },
        c.rms_norm_eps,
        c.rope,
        match c.layers_without_rope.as_slice() {
            [] => String::new(),
            layers => format!(" except in layers {layers:?}"),
        },
        c.local_rope
            .as_ref()
            .map_or(String::new(), |local| format!(" and {:?} in layers {:?}", local.rope, local.layers)),
        c.window.as_ref().map_or(String::new(), |w| format!(", window {} in layers {:?}", w.length, w.layers)),
        c.max_positions,
        if traits.is_empty() { "" } else { ", " },
        traits.trim()
    )
}

/// Hash of the ids and comparisons of groups.
pub(super) fn groups_hash(groups: &[TokenizedGroup]) -> String {
    if groups.is_empty() {
        return "none".to_owned();
    }
    let mut hash = blake3::Hasher::new();
    for group in groups {
        let prompts = group.prompt_ids.iter().map(|ids| (u64::MAX, ids));
        let responses = group.sequences.iter().map(|s| (s.prompt as u64, &s.response_ids));
        for (prompt, ids) in prompts.chain(responses) {
            hash.update(&prompt.to_le_bytes()).update(&(ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| {
                hash.update(&id.to_le_bytes());
            });
        }
        hash.update(format!("{:?}", group.comparisons).as_bytes());
    }
    short(&hash)
}

/// Hash of the weight files of a model folder and, for an adapter, of its base and its configuration.
pub(super) fn weights_hash(folder: &Path, base: Option<&Path>) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    if let Some(adapter) = AdapterFolder::find(folder, base)? {
        let config = folder.join(CONFIG_FILE);
        hash_file(&mut hash, &config)?;
        hash_weights(&mut hash, &adapter.base)?;
    }
    hash_weights(&mut hash, folder)?;
    Ok(short(&hash))
}

fn hash_file(hash: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let file = input::open(path).map_err(input::model_error(path))?;
    hash.update_reader(file).map(|_| ()).map_err(Error::io("read", path))
}

fn hash_weights(hash: &mut blake3::Hasher, folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::model(folder, format!("cannot be read: {e}")))?;
    let mut files = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>();
    if let Ok(files) = &mut files {
        // Only regular files can hold weights. Opening a model rejects other files that it names.
        files.retain(|path| path.extension().is_some_and(|e| e == "safetensors") && path.is_file());
        files.sort_unstable();
    }
    files.map_err(Error::io("list", folder))?.iter().try_for_each(|path| hash_file(hash, path))
}
