//! Time and cost by op. A backend with a [`Probe`] sums up every op call; a backend without one
//! pays a single comparison per call. A time is the difference of two timestamps: two CUDA events
//! on a GPU, call and return elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::OPS;
use super::contract::Cost;

/// Sums of time and cost by op, in the order of [`OPS`].
#[derive(Debug)]
pub struct Probe {
    counters: Vec<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    flops: AtomicU64,
}

/// Calls, time and cost of an op since the previous [`Probe::take`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpTime {
    /// Name of the op.
    pub op: &'static str,
    /// Number of calls.
    pub calls: u64,
    /// Seconds of the calls.
    pub seconds: f64,
    /// Bytes and FLOPs.
    pub cost: Cost,
}

impl Default for Probe {
    fn default() -> Self {
        Self { counters: OPS.iter().map(|_| Counters::default()).collect() }
    }
}

impl Probe {
    /// Adds one call of the op `OPS[index]`.
    pub(super) fn add(&self, index: usize, elapsed: Duration, cost: Cost) {
        let c = &self.counters[index];
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        for (counter, value) in
            [(&c.calls, 1), (&c.nanoseconds, nanoseconds), (&c.bytes, cost.bytes), (&c.flops, cost.flops)]
        {
            counter.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Returns the sums of every op that was called and resets them.
    pub fn take(&self) -> Vec<OpTime> {
        let swap = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let times = OPS.iter().zip(&self.counters).map(|(op, c)| OpTime {
            op,
            calls: swap(&c.calls),
            seconds: swap(&c.nanoseconds) as f64 * 1e-9,
            cost: Cost { bytes: swap(&c.bytes), flops: swap(&c.flops) },
        });
        times.filter(|time| time.calls > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_summed_and_returned_once() {
        let probe = Probe::default();
        assert!(probe.take().is_empty());
        let cost = Cost { bytes: 3, flops: 5 };
        probe.add(1, Duration::from_millis(2), cost);
        probe.add(1, Duration::from_millis(3), cost);
        let times = probe.take();
        assert_eq!(times.len(), 1);
        assert_eq!((times[0].op, times[0].calls), (OPS[1], 2));
        assert_eq!(times[0].cost, Cost { bytes: 6, flops: 10 });
        assert!((times[0].seconds - 5e-3).abs() < 1e-12);
        assert!(probe.take().is_empty());
    }
}
