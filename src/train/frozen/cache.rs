//! The log-probs of a run's sequences under its reference: taken from the cache file where it has them, computed in a
//! forward-only pass where not. The reference is loaded for that pass alone, and not at all when nothing is missing.
//!
//! A cache file that cannot be used is reported, never used in part, and replaced when new values are written. A file
//! that cannot be written costs the next run its pass, not this one its values.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::{CacheFile, Entries, Found};
use super::key::{Fingerprint, fingerprint, sequence_key, weights_hash};
use super::pass::Pass;
use crate::backend::Backend;
use crate::backend::contract::Reduce;
use crate::data::pack::PackOptions;
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::Loss;
use crate::model::config::ModelConfig;
use crate::model::store;
use crate::model::weights::LoadAs;
use crate::train::console::Console;
use crate::{Error, Result};

/// A pass that takes longer writes what it has at this interval, so that a killed one need not begin anew.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// Where and how log-probs are precomputed.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheOptions {
    /// Folder of the cache files; it is made when it does not exist.
    pub dir: PathBuf,
    /// Groups of one forward; it decides memory and speed, never a value.
    pub batch_groups: usize,
    /// Without a progress bar.
    pub quiet: bool,
}

/// Log-probs of a frozen reference by sequence.
pub struct ReferenceCache {
    model: PathBuf,
    config: ModelConfig,
    weights: Fingerprint,
    pack: PackOptions,
    reduce: Reduce,
    options: CacheOptions,
    file: CacheFile,
    refused: Option<String>,
    entries: Entries,
}

/// What [`ReferenceCache::complete`] found and did.
#[derive(Debug, Default)]
pub struct Completed {
    /// Distinct sequences whose log-prob was known.
    pub known: usize,
    /// Distinct sequences whose log-prob was computed.
    pub computed: usize,
    pub seconds: f64,
    /// Why the values could not be kept for later runs.
    not_written: Option<Error>,
}

impl Completed {
    /// A message about values that could not be kept.
    pub fn warning(&self) -> Option<String> {
        let why = self.not_written.as_ref()?;
        Some(format!("the reference's log-probs are used in this run, but not kept for others: {why}"))
    }
}

impl fmt::Display for Completed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sequences from the cache, {} computed in {:.1} s", self.known, self.computed, self.seconds)
    }
}

impl ReferenceCache {
    /// Opens the cache of the reference in folder `model` for the scores of `loss`. Hashes the weights, so it refuses
    /// what [`store::load`] refuses.
    pub fn open<B: Backend>(
        backend: &B,
        model: &Path,
        config: ModelConfig,
        loss: &Loss,
        options: CacheOptions,
    ) -> Result<Self> {
        std::fs::create_dir_all(&options.dir).map_err(Error::io("create", &options.dir))?;
        let weights = weights_hash(model, &config)?;
        let fingerprint = fingerprint(backend, &weights, (loss.scope, loss.reduce))?;
        let file = CacheFile::new(&options.dir, fingerprint, B::PRECISION.acc_bytes() as usize);
        let (entries, refused) = match file.read() {
            Found::Nothing => (Entries::new(), None),
            Found::Entries(entries) => (entries, None),
            Found::Refused(why) => (Entries::new(), Some(why)),
        };
        let pack = crate::train::pack_options(loss, config.vocab);
        let (model, reduce) = (model.to_path_buf(), loss.reduce);
        Ok(Self { model, config, weights, pack, reduce, options, file, refused, entries })
    }

    /// The cache file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A message about a cache file that could not be used.
    pub fn refusal(&self) -> Option<String> {
        self.refused.as_ref().map(|why| {
            format!("reference cache {} {why}; the log-probs are computed again", self.file.path().display())
        })
    }

    /// Computes the log-probs of the sequences that are not known yet, and writes them to the cache file.
    pub fn complete<B: Backend>(&mut self, backend: &B, groups: &[&[TokenizedGroup]]) -> Result<Completed> {
        let began = Instant::now();
        let (mut known, mut missing) = (BTreeSet::new(), BTreeSet::new());
        for group in groups.iter().copied().flatten() {
            for key in (0..group.sequences.len()).map(|s| sequence_key(group, s)) {
                if self.entries.contains_key(&key) {
                    known.insert(key)
                } else {
                    missing.insert(key)
                };
            }
        }
        let mut done = Completed { known: known.len(), computed: missing.len(), ..Completed::default() };
        if !missing.is_empty() {
            self.compute(backend, groups, missing)?;
            done.not_written = self.file.merge(&self.entries).err();
        }
        done.seconds = began.elapsed().as_secs_f64();
        Ok(done)
    }

    /// Scores the first occurrence of every missing sequence.
    fn compute<B: Backend>(
        &mut self,
        backend: &B,
        groups: &[&[TokenizedGroup]],
        mut missing: BTreeSet<u128>,
    ) -> Result<()> {
        let model = store::load(backend, &self.model, self.config.clone(), LoadAs::Exact, 0)?.model;
        if weights_hash(&self.model, &self.config)? != self.weights {
            let why = "changed while this run was using it as its reference; start again with unchanged weights";
            return Err(Error::model(&self.model, why));
        }
        let console = Console::new(missing.len() as u64, 0, self.options.quiet);
        let (mut pass, total) = (Pass::new(backend, model)?, missing.len());
        let (mut batch, mut keys) = (Vec::new(), Vec::new());
        let mut written = Instant::now();
        let mut rest = groups.iter().copied().flatten();
        while !missing.is_empty() {
            batch.clear();
            keys.clear();
            for group in rest.by_ref() {
                batch.extend(take(group, &mut missing, &mut keys));
                if batch.len() == self.options.batch_groups {
                    break;
                }
            }
            let members: Vec<&TokenizedGroup> = batch.iter().collect();
            let scores = pass.scores(backend, &members, &self.pack, self.reduce)?;
            self.entries.extend(keys.iter().copied().zip(scores));
            console.advance((total - missing.len()) as u64);
            if written.elapsed() > WRITE_INTERVAL {
                // The last write reports what goes wrong.
                let _ = self.file.merge(&self.entries);
                written = Instant::now();
            }
        }
        console.finish();
        Ok(())
    }

    /// Appends the log-prob of every sequence of `group`, in order.
    pub fn append_scores(&self, group: &TokenizedGroup, scores: &mut Vec<f64>) -> Result<()> {
        for s in 0..group.sequences.len() {
            let Some(&score) = self.entries.get(&sequence_key(group, s)) else {
                let id = &group.group.id;
                return Err(Error::Runtime(format!("row {id}: sequence {s} has no precomputed reference log-prob")));
            };
            scores.push(score);
        }
        Ok(())
    }
}

/// The sequences of `group` that are missing, as a group without comparisons; their keys move from `missing` to `keys`.
fn take(group: &TokenizedGroup, missing: &mut BTreeSet<u128>, keys: &mut Vec<u128>) -> Option<TokenizedGroup> {
    let mut part = TokenizedGroup {
        group: group.group.clone(),
        prompt_ids: vec![Vec::new(); group.prompt_ids.len()],
        sequences: Vec::new(),
        comparisons: Vec::new(),
    };
    for (s, sequence) in group.sequences.iter().enumerate() {
        let key = sequence_key(group, s);
        if missing.remove(&key) {
            keys.push(key);
            part.prompt_ids[sequence.prompt].clone_from(&group.prompt_ids[sequence.prompt]);
            part.sequences.push(sequence.clone());
        }
    }
    (!part.sequences.is_empty()).then_some(part)
}
