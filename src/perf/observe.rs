//! Observations of a training run for a study: every step with its time by op, and planned memory.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::op_totals::{OpTotals, WARM_UP};
use crate::backend::probe::OpTime;

/// Time and work of one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Number of the step.
    pub step: u64,
    /// Completion time.
    #[serde(skip)]
    pub finished: Instant,
    /// Seconds from the end of the previous step, or from the start of this step, to the results of this step.
    pub seconds: f64,
    /// Seconds within ops; on a GPU between their events.
    pub op_seconds: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// Groups of the step.
    pub groups: usize,
    /// Bytes that the step's ops moved.
    pub bytes: u64,
    /// FLOPs of the step's ops.
    pub flops: u64,
}

/// Observations of a run so far.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// Steps.
    pub steps: Vec<StepTime>,
    /// Totals over the steps after the first `WARM_UP` steps.
    pub ops: OpTotals,
    /// Planned memory by part, in bytes.
    pub planned: Vec<(String, u64)>,
    /// Bytes in use on a device with separate memory.
    pub taken: Option<u64>,
}

/// Observer shared between the run and the study. The study outlives the run, whether it succeeds
/// or fails.
#[derive(Clone, Debug, Default)]
pub struct RunObserver(Arc<Mutex<Observations>>);

impl PartialEq for RunObserver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl RunObserver {
    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Records a step.
    pub fn add(
        &self,
        step: u64,
        finished: Instant,
        elapsed: Duration,
        (tokens, groups): (usize, usize),
        ops: &[OpTime],
    ) {
        let mut seen = self.lock();
        seen.steps.push(StepTime {
            step,
            finished,
            seconds: elapsed.as_secs_f64(),
            op_seconds: ops.iter().map(|op| op.seconds).sum(),
            tokens,
            groups,
            bytes: ops.iter().map(|op| op.cost.bytes).sum(),
            flops: ops.iter().map(|op| op.cost.flops).sum(),
        });
        if seen.steps.len() > WARM_UP {
            seen.ops.add(ops);
        }
    }

    /// Records the planned memory.
    pub fn plan(&self, parts: Vec<(String, u64)>) {
        self.lock().planned = parts;
    }

    /// Records the bytes in use on a device with separate memory.
    pub fn taken(&self, bytes: u64) {
        self.lock().taken = Some(bytes);
    }

    /// Returns the observations recorded so far and clears them.
    pub fn take(&self) -> Observations {
        std::mem::take(&mut *self.lock())
    }
}
