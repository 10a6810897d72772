//! Time by op of training steps, compared with the machine's measured ceilings.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::ceilings::Ceilings;
use super::op_totals::{OpTotals, WARM_UP};
use crate::backend::contract::Cost;
use crate::backend::probe::OpTime;
use crate::terminal::counted;

/// Totals over steps.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    seen: usize,
    steps: u64,
    seconds: f64,
    ops: OpTotals,
}

/// One row of the table: an op's mean over the steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileRow {
    pub op: String,
    pub calls: f64,
    pub milliseconds: f64,
    /// Share of the step's time.
    pub share: f64,
    pub gflops: f64,
    /// FLOP/s as a fraction of the measured rate of a large GEMM.
    pub of_sgemm: f64,
    pub gigabytes: f64,
    /// Bytes per second that the contract of the op counts, as a fraction of the measured rate of a copy; caches
    /// can raise it above 1.
    pub of_copy: f64,
}

/// Time by op of a mean step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileTable {
    pub steps: u64,
    /// Milliseconds per step.
    pub step: f64,
    pub ceilings: Ceilings,
    /// Longest first; the last row is the time outside ops.
    pub rows: Vec<ProfileRow>,
}

impl Profile {
    /// Adds one step.
    pub fn add(&mut self, elapsed: Duration, ops: &[OpTime]) {
        self.seen += 1;
        if self.seen <= WARM_UP {
            return;
        }
        self.steps += 1;
        self.seconds += elapsed.as_secs_f64();
        self.ops.add(ops);
    }

    /// Table of the mean step; `None` if no step after the warm-up has been added.
    pub fn table(&self, ceilings: Ceilings) -> Option<ProfileTable> {
        if self.steps == 0 {
            return None;
        }
        let row = |op: &str, calls: u64, seconds: f64, cost: Cost| {
            let rate = |amount: u64| if seconds > 0.0 { amount as f64 / seconds } else { 0.0 };
            ProfileRow {
                op: op.to_owned(),
                calls: calls as f64 / self.steps as f64,
                milliseconds: 1e3 * seconds / self.steps as f64,
                share: seconds / self.seconds,
                gflops: rate(cost.flops) * 1e-9,
                of_sgemm: rate(cost.flops) / ceilings.gemm(),
                gigabytes: rate(cost.bytes) * 1e-9,
                of_copy: rate(cost.bytes) / ceilings.copy,
            }
        };
        let mut rows: Vec<ProfileRow> = self.ops.ops().iter().map(|t| row(t.op, t.calls, t.seconds, t.cost)).collect();
        rows.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        let rest = self.seconds - self.ops.ops().iter().map(|t| t.seconds).sum::<f64>();
        rows.push(row("outside ops", 0, rest.max(0.0), Cost::default()));
        Some(ProfileTable { steps: self.steps, step: 1e3 * self.seconds / self.steps as f64, ceilings, rows })
    }
}

impl ProfileTable {
    /// The table as text for a terminal.
    pub fn text(&self) -> String {
        let mut out = format!(
            "time by op, mean of {} of {:.1} ms; ceilings measured now: GEMM {:.0} GFLOP/s{}, copy {:.1} GB/s\n",
            counted(self.steps, "step"),
            self.step,
            self.ceilings.gemm() * 1e-9,
            self.ceilings.bf16_units.map_or(String::new(), |units| {
                format!(" in bf16 by {units} ({:.0} in f32)", self.ceilings.sgemm * 1e-9)
            }),
            self.ceilings.copy * 1e-9
        );
        let _ = writeln!(
            out,
            "{:<18} {:>6} {:>9} {:>6} {:>8} {:>8} {:>7} {:>7}",
            "op", "calls", "ms", "share", "GFLOP/s", "of GEMM", "GB/s", "of copy"
        );
        for r in &self.rows {
            let _ = writeln!(
                out,
                "{:<18} {:>6.1} {:>9.2} {:>5.1}% {:>8.1} {:>7.1}% {:>7.1} {:>6.1}%",
                r.op,
                r.calls,
                r.milliseconds,
                100.0 * r.share,
                r.gflops,
                100.0 * r.of_sgemm,
                r.gigabytes,
                100.0 * r.of_copy
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(op: &'static str, seconds: f64, flops: u64) -> OpTime {
        OpTime { op, calls: 2, seconds, cost: Cost { bytes: 10 * flops, flops } }
    }

    #[test]
    fn an_average_step_leaves_out_the_first_two() {
        let mut profile = Profile::default();
        let ceilings = Ceilings { sgemm: 1e3, bf16_gemm: None, bf16_units: None, copy: 4e3 };
        for _ in 0..WARM_UP {
            profile.add(Duration::from_secs(100), &[op("a", 99.0, 1)]);
            assert!(profile.table(ceilings).is_none());
        }
        profile.add(Duration::from_secs(4), &[op("a", 1.0, 200), op("b", 2.0, 600)]);
        profile.add(Duration::from_secs(6), &[op("a", 1.0, 200), op("b", 4.0, 600)]);
        let table = profile.table(ceilings).unwrap();
        assert_eq!((table.steps, table.step), (2, 5000.0));
        let names: Vec<&str> = table.rows.iter().map(|r| r.op.as_str()).collect();
        assert_eq!(names, ["b", "a", "outside ops"]);
        let (b, rest) = (&table.rows[0], &table.rows[2]);
        assert_eq!((b.calls, b.milliseconds, b.share), (2.0, 3000.0, 0.6));
        assert_eq!((b.of_sgemm, b.of_copy), (0.2, 0.5));
        assert_eq!((rest.milliseconds, rest.share), (1000.0, 0.2));
        assert!(table.text().contains("b                     2.0   3000.00  60.0%"), "{}", table.text());
    }
}
