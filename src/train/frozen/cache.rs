//! Log-probs of a run's sequences under the frozen reference. They are read from the cache file or,
//! if missing, computed in a forward-only pass. The model is loaded only if a log-prob is missing.
//!
//! A cache file that cannot be used is reported, ignored as a whole, and replaced at the next write. If the
//! file cannot be written, the values still serve this run, and the next run computes them again. Several
//! ranks compute the missing log-probs round-robin, and rank 0 writes the file.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::{CacheFile, Entries, Found};
use super::key::{Fingerprint, fingerprint, sequence_key, weights_hash};
use super::pass::ForwardPass;
use crate::backend::Backend;
use crate::backend::contract::Reduce;
use crate::data::pack::PackOptions;
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::Loss;
use crate::model::config::ModelConfig;
use crate::model::decoder::Model;
use crate::model::shards::Sharding;
use crate::model::store;
use crate::model::weights::LoadAs;
use crate::ranks::world;
use crate::terminal::{counted, follows, shown};
use crate::train::console::Console;
use crate::train::share::gathered_numbers;
use crate::{Error, Result};

/// Interval between writes in a long pass, so that a killed pass can continue from the last write.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// Location of the cache, and batch size of the pass that computes missing log-probs.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheOptions {
    /// Folder of the cache files; created if missing.
    pub dir: PathBuf,
    /// Groups per forward; affects memory and speed only, not values.
    pub batch_groups: usize,
    /// Hides the progress bar.
    pub quiet: bool,
}

/// Log-probs of the frozen reference, by sequence.
pub struct FrozenCache {
    model: PathBuf,
    config: ModelConfig,
    weights: Fingerprint,
    pack: PackOptions,
    reduce: Reduce,
    options: CacheOptions,
    file: CacheFile,
    refused: Option<String>,
    /// Error of a failed attempt to create the folder.
    uncreated: Option<std::io::Error>,
    entries: Entries,
    /// Whether the model is the base of the policy.
    is_base: bool,
    /// Whether each rank keeps only slices of the model's weights.
    sharded: bool,
}

/// Result of [`FrozenCache::complete`].
#[derive(Debug, Default)]
pub struct CacheReport {
    /// Distinct sequences with a cached log-prob.
    pub known: usize,
    /// Distinct sequences with a newly computed log-prob.
    pub computed: usize,
    /// Duration in seconds.
    pub seconds: f64,
    /// Reason why the values could not be written for later runs.
    write_error: Option<Error>,
}

impl CacheReport {
    /// Warning that the values could not be written.
    pub fn warning(&self) -> Option<String> {
        let why = self.write_error.as_ref()?;
        Some(format!("the frozen log-probs were not saved, so later runs must compute them again: {why}"))
    }
}

impl fmt::Display for CacheReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = counted(self.known, "sequence");
        write!(f, "{known} from the cache, {} computed in {:.1} s", self.computed, self.seconds)
    }
}

impl FrozenCache {
    /// Opens the cache of the model in folder `model` for the scores of `loss`. It reads and hashes the
    /// weights, so weights that [`store::load`] rejects are errors here too.
    pub fn open<B: Backend>(
        backend: &B,
        model: &Path,
        config: ModelConfig,
        loss: &Loss,
        options: CacheOptions,
    ) -> Result<Self> {
        let uncreated = std::fs::create_dir_all(&options.dir).err();
        let weights = weights_hash(model, &config)?;
        let fingerprint = fingerprint(backend, &weights, (loss.scope, loss.reduce))?;
        let file = CacheFile::new(&options.dir, fingerprint, B::PRECISION.acc_bytes() as usize);
        let (entries, refused) = match file.read() {
            _ if uncreated.is_some() => (Entries::new(), None),
            Found::Nothing => (Entries::new(), None),
            Found::Entries(entries) => (entries, None),
            Found::Refused(why) => (Entries::new(), Some(why)),
        };
        let pack = crate::train::pack_for(loss, &config);
        let (model, reduce) = (model.to_path_buf(), loss.reduce);
        let (is_base, sharded) = (false, false);
        Ok(Self { model, config, weights, pack, reduce, options, file, refused, uncreated, entries, is_base, sharded })
    }

    /// Path of the cache file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Warning that the cache file could not be used, or that its folder could not be created.
    pub fn refusal(&self) -> Option<String> {
        if let Some(why) = &self.uncreated {
            let dir = self.options.dir.display();
            return Some(format!(
                "cannot create {dir} ({why}), so later runs must compute the reference's log-probs again"
            ));
        }
        self.refused.as_ref().map(|why| {
            format!("reference cache {} {why}; its log-probs are computed again", self.file.path().display())
        })
    }

    /// Marks the model as the base of the policy. [`FrozenCache::complete_by`] then scores with the policy,
    /// if it receives one, and does not load a second model.
    pub fn of_base(mut self) -> Self {
        self.is_base = true;
        self
    }

    /// Sets whether each rank keeps only slices of the model's weights, if the model has to be loaded.
    pub(crate) fn with_shards(mut self, sharded: bool) -> Self {
        self.sharded = sharded;
        self
    }

    /// Computes the missing log-probs and writes them to the cache file. Loads the model if any is
    /// missing.
    pub fn complete<B: Backend>(&mut self, backend: &B, groups: &[&[TokenizedGroup]]) -> Result<CacheReport> {
        self.complete_by(backend, None, groups)
    }

    /// Like [`FrozenCache::complete`], with the policy of the run, if it is in memory.
    pub fn complete_by<B: Backend>(
        &mut self,
        backend: &B,
        policy: Option<&mut Model<B>>,
        groups: &[&[TokenizedGroup]],
    ) -> Result<CacheReport> {
        let began = Instant::now();
        self.share_known()?;
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
        let mut report = CacheReport { known: known.len(), computed: missing.len(), ..CacheReport::default() };
        if !missing.is_empty() {
            self.compute(backend, policy.filter(|_| self.is_base), groups, missing)?;
            if self.uncreated.is_none() && !follows() {
                report.write_error = self.file.merge(&self.entries).err();
            }
        }
        report.seconds = began.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Gives every rank the log-probs that rank 0 has read, so that all ranks find the same log-probs
    /// missing.
    fn share_known(&mut self) -> Result<()> {
        let ranks = world::collective();
        if ranks.is_alone() {
            return Ok(());
        }
        let entries = self.entries.iter().flat_map(|(key, value)| [key.to_le_bytes(), pair(*value)].concat());
        let bytes = ranks.broadcast(entries.collect())?;
        let read = |entry: &[u8; 32]| {
            let half = |at: usize| -> [u8; 16] { std::array::from_fn(|i| entry[at + i]) };
            let value: [u8; 8] = std::array::from_fn(|i| entry[16 + i]);
            (u128::from_le_bytes(half(0)), f64::from_le_bytes(value))
        };
        self.entries = bytes.as_chunks::<32>().0.iter().map(read).collect();
        Ok(())
    }

    /// Scores the first occurrence of every missing sequence.
    fn compute<B: Backend>(
        &mut self,
        backend: &B,
        base: Option<&mut Model<B>>,
        groups: &[&[TokenizedGroup]],
        mut missing: BTreeSet<u128>,
    ) -> Result<()> {
        let mut loaded = None;
        let ranks = world::collective();
        let model = match base {
            Some(base) => base,
            None => {
                let load_as = (LoadAs::Exact, self.sharded.then(|| Sharding::over(ranks)));
                loaded.insert(store::load_on(backend, &self.model, self.config.clone(), load_as, 0)?.model)
            }
        };
        if weights_hash(&self.model, &self.config)? != self.weights {
            let why = "changed while this run used it as the frozen reference; restart with unchanged weights";
            return Err(Error::model(&self.model, why));
        }
        let console = Console::new(missing.len() as u64, 0, self.options.quiet);
        let (mut pass, total) = (ForwardPass::new(backend, model)?, missing.len());
        let (mut batch, mut keys) = (Vec::new(), Vec::new());
        let mut written = Instant::now();
        let mut rest = groups.iter().copied().flatten();
        while !missing.is_empty() {
            // Each round scores one batch on each rank.
            let mut round = Vec::new();
            let mut own = Vec::new();
            for rank in 0..ranks.size() {
                batch.clear();
                keys.clear();
                for group in rest.by_ref() {
                    batch.extend(take_missing(group, &mut missing, &mut keys));
                    if batch.len() == self.options.batch_groups {
                        break;
                    }
                }
                round.extend_from_slice(&keys);
                if rank != ranks.rank() {
                    continue;
                }
                if batch.is_empty() {
                    pass.idle(backend)?;
                } else {
                    let members: Vec<&TokenizedGroup> = batch.iter().collect();
                    own = pass.scores(backend, &members, &self.pack, self.reduce)?;
                }
            }
            let scores = match ranks.is_alone() {
                true => own,
                false => gathered_numbers(ranks, &own)?.concat(),
            };
            self.entries.extend(round.into_iter().zip(scores));
            console.advance((total - missing.len()) as u64);
            if written.elapsed() > WRITE_INTERVAL && !follows() {
                // An error is ignored here, because the write at the end of the pass reports it.
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
                let id = shown(&group.group.id);
                return Err(Error::Runtime(format!(
                    "row {id}: sequence {s} has no cached log-prob of the frozen reference"
                )));
            };
            scores.push(score);
        }
        Ok(())
    }
}

/// Returns the bits of a value, padded to the size of a key.
fn pair(value: f64) -> [u8; 16] {
    u128::from(value.to_bits()).to_le_bytes()
}

/// Returns a group of the missing sequences of `group`, without comparisons. Moves their keys from
/// `missing` to `keys`.
fn take_missing(group: &TokenizedGroup, missing: &mut BTreeSet<u128>, keys: &mut Vec<u128>) -> Option<TokenizedGroup> {
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
