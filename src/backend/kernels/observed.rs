//! Times of ops on an asynchronous device. Each call is enclosed by two timestamps, which are read when the
//! times are requested. Ops that are being captured have no timestamps.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Kernels;
use super::device::{Device, Element};
use crate::Result;
use crate::backend::contract::Cost;
use crate::backend::probe::OpTime;

/// An op call between two timestamps.
pub(super) struct Observed<D: Device> {
    op: usize,
    cost: Cost,
    from: D::Stamp,
    to: D::Stamp,
}

impl<D: Device, A: Element> Kernels<D, A> {
    /// Returns a timestamp for the start of an op; `None` if the op is not timed.
    pub(super) fn stamp_start(&self) -> Result<Option<D::Stamp>> {
        if self.probe.is_none() || self.recording.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.device.stamp().map(Some)
    }

    /// Records an op call that started at `from` and has been enqueued.
    pub(super) fn observe(&self, op: usize, cost: Cost, from: D::Stamp) -> Result<()> {
        let to = self.device.stamp()?;
        self.observed.lock().unwrap_or_else(|e| e.into_inner()).push(Observed { op, cost, from, to });
        Ok(())
    }

    /// Times and costs by op since the last call; waits for the ops.
    pub(super) fn take_observed(&self) -> Result<Vec<OpTime>> {
        let Some(probe) = &self.probe else { return Ok(Vec::new()) };
        let observed = std::mem::take(&mut *self.observed.lock().unwrap_or_else(|e| e.into_inner()));
        for o in observed {
            let seconds = self.device.seconds_between(&o.from, &o.to)?;
            probe.add(o.op, Duration::from_secs_f64(seconds.max(0.0)), o.cost);
        }
        Ok(probe.take())
    }
}
