//! What a resumed run continues from, beside weights and moments: `state/state.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::loader::Position;
use crate::{Error, Result};

/// Version of `state/state.json`.
pub const SCHEMA: u32 = 2;

/// Entry of the fingerprint that holds the length of a run.
pub const LENGTH: &str = "length";

/// The best evaluation that has a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub step: u64,
    pub value: f64,
}

/// What a resumed run continues from, beside weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    pub schema: u32,
    /// Optimiser steps taken, skipped ones included.
    pub step: u64,
    /// Where the data order continues.
    pub position: Position,
    /// Tokens the policy ran over so far.
    pub num_tokens: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Skipped updates since the last one that was applied.
    pub skipped_in_a_row: u64,
    /// The evaluation of this step was cut short; the resumed run begins with it.
    pub evaluation_due: bool,
    /// The best checkpoint so far, where a metric chooses one.
    pub best: Option<Best>,
    /// What must be the same for a resumed run to continue this one: option or file, and its value or hash.
    pub fingerprint: Vec<(String, String)>,
    /// BLAKE3 of every file of the checkpoint but this one and `DONE`, by path.
    pub files: BTreeMap<String, String>,
}

impl RunState {
    /// Refuses to continue under other settings or data, naming what changed.
    pub fn check(&self, folder: &Path, fingerprint: &[(String, String)]) -> Result<()> {
        let mut changed = Vec::new();
        for (name, now) in fingerprint {
            match self.fingerprint.iter().find(|(known, _)| known == name) {
                Some((_, before)) if before == now => {}
                Some((_, before)) if name == LENGTH => changed.push(format!(
                    "{name} was {before}, is {now}, and the learning rate falls over that length (only \
                     --lr-scheduler-type constant and constant_with_warmup can go on for longer)"
                )),
                Some((_, before)) => changed.push(format!("{name} was {before}, is {now}")),
                None => changed.push(format!("{name} was not set, is {now}")),
            }
        }
        for (name, before) in &self.fingerprint {
            if !fingerprint.iter().any(|(known, _)| known == name) {
                changed.push(format!("{name} was {before}, is not set"));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::model(folder, format!("cannot resume a different run: {}", changed.join("; "))))
    }
}
