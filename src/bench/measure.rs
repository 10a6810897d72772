//! Timing: warm-up, samples of many calls, interleaved contenders, medians and quantiles.

use std::time::{Duration, Instant};

use super::operand::OperandSet;
use crate::Result;
use crate::backend::Backend;

/// A call that is timed on the operand set it is given.
pub type TimedCall<'a, B> = dyn Fn(&B, &mut OperandSet<B>) -> Result<()> + 'a;

/// A call prepared for its sizes, or `None` if the library does not support it.
pub type PreparedCall<'a, B> = Option<Box<TimedCall<'a, B>>>;

/// Number and length of the samples.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Maximum number of samples of a contender.
    pub repeats: usize,
    /// Calls before the first sample.
    pub warm_up: usize,
    /// Target duration of a sample; a sample repeats its call until it reaches this.
    pub sample: Duration,
    /// Minimum number of samples, even if they exceed the budget.
    pub min_samples: usize,
    /// Time after which no more samples are taken, once there are `min_samples`.
    pub budget: Duration,
}

impl Effort {
    /// Effort of one pass if this effort is divided over `passes` passes.
    pub fn of_pass(&self, passes: usize) -> Self {
        let part = passes.max(1);
        Self {
            repeats: self.repeats.div_ceil(part),
            min_samples: self.min_samples.div_ceil(part),
            warm_up: self.warm_up.div_ceil(part),
            budget: self.budget / u32::try_from(part).unwrap_or(u32::MAX),
            ..*self
        }
    }
}

/// Samples of a contender: mean seconds per call in each sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    pub seconds: Vec<f64>,
    /// Calls per sample.
    pub calls: usize,
}

/// Statistics of the seconds per call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    pub median: f64,
    /// 20 % and 80 % quantiles.
    pub p20: f64,
    pub p80: f64,
    pub min: f64,
    pub samples: usize,
    pub calls: usize,
}

impl Timing {
    /// Statistics of at least one sample.
    pub fn of(taken: &Samples) -> Self {
        let mut samples = taken.seconds.clone();
        samples.sort_by(f64::total_cmp);
        Self {
            median: quantile(&samples, 0.5),
            p20: quantile(&samples, 0.2),
            p80: quantile(&samples, 0.8),
            min: samples[0],
            samples: samples.len(),
            calls: taken.calls,
        }
    }
}

/// Quantile by linear interpolation in a sorted list.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + part * (sorted[high] - sorted[low])
}

/// A contender being sampled. On backends with graph capture, the calls are captured.
struct SampledCall<B: Backend> {
    calls: usize,
    /// Captured graph of one call on every operand set.
    graph: Option<B::Graph>,
    next: usize,
    samples: Vec<f64>,
}

/// Times contenders on the same rotating operand sets, one sample of each per round. If the total size of the
/// sets is several times the cache, no call finds its operands in the cache.
pub fn interleaved<B: Backend>(
    on: &B,
    contenders: &[&TimedCall<'_, B>],
    sets: &mut [OperandSet<B>],
    effort: &Effort,
) -> Result<Vec<Samples>> {
    let mut lanes = contenders.iter().map(|call| warm_up(on, *call, sets, effort)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    for round in 0..effort.repeats {
        if round >= effort.min_samples && began.elapsed() > effort.budget {
            break;
        }
        // Rotate the order, so that each contender goes first equally often.
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            let seconds = sample(on, contenders[which], sets, &mut lanes[which])?;
            lanes[which].samples.push(seconds);
        }
    }
    Ok(lanes.into_iter().map(|lane| Samples { seconds: lane.samples, calls: lane.calls }).collect())
}

/// Warms a contender up and determines its number of calls per sample.
fn warm_up<B: Backend>(
    on: &B,
    call: &TimedCall<'_, B>,
    sets: &mut [OperandSet<B>],
    effort: &Effort,
) -> Result<SampledCall<B>> {
    for i in 0..effort.warm_up.max(1) {
        call(on, &mut sets[i % sets.len()])?;
    }
    let graph = on.record(&mut || sets.iter_mut().try_for_each(|set| call(on, set)))?;
    let mut lane =
        SampledCall { calls: if graph.is_some() { sets.len() } else { 1 }, graph, next: 0, samples: Vec::new() };
    let one = sample(on, call, sets, &mut lane)?;
    let wanted = (effort.sample.as_secs_f64() / one.max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
    let unit = lane.calls;
    lane.calls = wanted.div_ceil(unit) * unit;
    Ok(lane)
}

/// Takes one sample: mean seconds per call.
fn sample<B: Backend>(
    on: &B,
    call: &TimedCall<'_, B>,
    sets: &mut [OperandSet<B>],
    lane: &mut SampledCall<B>,
) -> Result<f64> {
    let from = on.stamp()?;
    match &lane.graph {
        Some(graph) => {
            for _ in 0..lane.calls / sets.len() {
                if !on.replay(graph)? {
                    return Err(crate::Error::Runtime(
                        "operands of captured calls were freed while the calls were timed".into(),
                    ));
                }
            }
        }
        None => {
            for _ in 0..lane.calls {
                call(on, &mut sets[lane.next % sets.len()])?;
                lane.next += 1;
            }
        }
    }
    let to = on.stamp()?;
    Ok(on.seconds_between(&from, &to)? / lane.calls as f64)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn quantiles_interpolate_between_samples() {
        let timing = Timing::of(&Samples { seconds: vec![5.0, 1.0, 2.0, 4.0, 3.0, 6.0], calls: 7 });
        assert_eq!((timing.p20, timing.median, timing.p80, timing.min), (2.0, 3.5, 5.0, 1.0));
        assert_eq!((timing.samples, timing.calls), (6, 7));
        let one = Timing::of(&Samples { seconds: vec![2.0], calls: 1 });
        assert_eq!((one.p20, one.median, one.p80), (2.0, 2.0, 2.0));
    }

    #[test]
    fn contenders_are_interleaved_and_sets_rotate() {
        let on = Cpu::new();
        let mut sets: Vec<OperandSet<Cpu>> = (0..3).map(|_| OperandSet::new(&on, &[]).unwrap()).collect();
        let first: *const OperandSet<Cpu> = &raw const sets[0];
        let seen = RefCell::new(Vec::new());
        let place =
            |set: &OperandSet<Cpu>| (std::ptr::from_ref(set) as usize - first as usize) / size_of::<OperandSet<Cpu>>();
        let a = |_: &Cpu, set: &mut OperandSet<Cpu>| {
            seen.borrow_mut().push(('a', place(set)));
            Ok(())
        };
        let b = |_: &Cpu, set: &mut OperandSet<Cpu>| {
            seen.borrow_mut().push(('b', place(set)));
            Ok(())
        };
        let effort = Effort { repeats: 4, warm_up: 2, sample: Duration::ZERO, min_samples: 1, budget: Duration::MAX };
        let timings = interleaved(&on, &[&a, &b], &mut sets, &effort).unwrap();
        assert_eq!(timings.iter().map(|t| t.seconds.len()).collect::<Vec<_>>(), [4, 4]);
        let seen = seen.into_inner();
        // The first six calls are two warm-up calls and one to estimate the duration, for each of the two
        // contenders. The samples follow: a b, b a, a b, b a.
        let order: String = seen[6..].iter().map(|s| s.0).collect();
        assert_eq!(order, "abbaabba");
        let of_a: Vec<usize> = seen[6..].iter().filter(|s| s.0 == 'a').map(|s| s.1).collect();
        assert_eq!(of_a, [1, 2, 0, 1]);
    }

    #[test]
    fn a_spent_budget_ends_after_the_minimum_of_samples() {
        let on = Cpu::new();
        let mut sets = vec![OperandSet::new(&on, &[]).unwrap()];
        let call = |_: &Cpu, _: &mut OperandSet<Cpu>| Ok(());
        let effort =
            Effort { repeats: 100, warm_up: 1, sample: Duration::ZERO, min_samples: 5, budget: Duration::ZERO };
        let taken = |effort: &Effort, sets: &mut [OperandSet<Cpu>]| interleaved(&on, &[&call], sets, effort).unwrap();
        assert_eq!(taken(&effort, &mut sets)[0].seconds.len(), 5);
        assert_eq!(taken(&effort.of_pass(3), &mut sets)[0].seconds.len(), 2);
    }

    #[test]
    fn passes_share_samples_and_time() {
        let whole =
            Effort { repeats: 30, warm_up: 3, sample: Duration::ZERO, min_samples: 5, budget: Duration::from_secs(3) };
        let part = whole.of_pass(3);
        assert_eq!((part.repeats, part.min_samples, part.warm_up), (10, 2, 1));
        assert_eq!(part.budget, Duration::from_secs(1));
    }
}
