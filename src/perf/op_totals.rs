//! Totals by op over training steps, for `--profile` and for studies.

use crate::backend::probe::OpTime;

/// Number of first steps left out of totals; they load kernels and grow buffers.
pub(crate) const WARM_UP: usize = 2;

/// Totals by op, in the order in which ops first occur.
#[derive(Clone, Debug, Default)]
pub struct OpTotals(Vec<OpTime>);

impl OpTotals {
    /// Adds the ops of one step.
    pub(crate) fn add(&mut self, ops: &[OpTime]) {
        for new in ops {
            match self.0.iter_mut().find(|old| old.op == new.op) {
                None => self.0.push(*new),
                Some(old) => {
                    old.calls += new.calls;
                    old.seconds += new.seconds;
                    old.cost.bytes += new.cost.bytes;
                    old.cost.flops += new.cost.flops;
                }
            }
        }
    }

    /// Total of each op.
    pub(crate) fn ops(&self) -> &[OpTime] {
        &self.0
    }
}
