//! `state/state.json`: the state of a run apart from weights and moments.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::loader::Position;
use crate::{Error, Result};

/// Version of `state/state.json`.
pub const SCHEMA: u32 = 2;

/// Fingerprint entry for the length of a run.
pub const LENGTH_KEY: &str = "length";

/// Best evaluation that has a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub step: u64,
    pub value: f64,
}

/// State of a run apart from weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    pub schema: u32,
    /// Optimiser steps taken, skipped ones included.
    pub step: u64,
    /// Position at which the data order continues.
    pub position: Position,
    /// Tokens processed by the policy so far.
    pub num_tokens: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Consecutive skipped updates up to this step.
    pub skipped_in_a_row: u64,
    /// Whether a signal interrupted the evaluation of this step; if so, the resumed run starts with
    /// it.
    pub evaluation_due: bool,
    /// Best checkpoint so far, if a metric selects one.
    pub best: Option<Best>,
    /// Settings and inputs that a resumed run must not change: option or file, and its value or
    /// hash.
    pub fingerprint: Vec<(String, String)>,
    /// BLAKE3 of every file of the checkpoint except this one and `DONE`, by path.
    pub files: BTreeMap<String, String>,
}

impl RunState {
    /// Refuses to resume with other settings or data, and names the changes.
    pub fn check(&self, folder: &Path, fingerprint: &[(String, String)]) -> Result<()> {
        let mut changed = Vec::new();
        for (name, now) in fingerprint {
            match self.fingerprint.iter().find(|(known, _)| known == name) {
                Some((_, before)) if before == now => {}
                Some((_, before)) if name == LENGTH_KEY => changed.push(format!(
                    "{name} was {before}, is {now}, and the learning-rate schedule depends on it (only \
                     --lr-scheduler-type constant, constant_with_warmup and inverse_sqrt allow a longer run)"
                )),
                Some((_, before)) => changed.push(format!("{name} was {before}, is {now}")),
                None => changed.push(format!("{name} was not set, is {now}")),
            }
        }
        for (name, before) in &self.fingerprint {
            if !fingerprint.iter().any(|(known, _)| known == name) {
                changed.push(format!("{name} was {before}, is not set now"));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::model(folder, format!("cannot resume a different run: {}", changed.join("; "))))
    }
}
