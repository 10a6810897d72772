//! Energy of a call, from a hardware counter.
//!
//! A GPU's counter advances in steps, every 20 to 100 ms. The difference of two readings at arbitrary
//! times is off by up to a step, which once gave 883 W on a GPU with a limit of 700 W. So the window
//! starts and ends when the counter advances:
//!
//! ```text
//! run batches of calls until the counter advances: the window starts
//! run batches until `seconds` have passed and the counter advances again: the window ends
//! energy of a call = joules of the window / calls of the window
//! ```

use std::time::{Duration, Instant};

use super::measure::TimedCall;
use super::operand::OperandSet;
use crate::Result;
use crate::backend::Backend;

/// Largest plausible ratio of the measured power to the power limit.
pub const OVER_LIMIT: f64 = 1.05;
/// Duration of a batch in seconds. It is shorter than a step of the counter, so that an advance is seen in
/// time.
const BATCH_SECONDS: f64 = 2e-3;
/// The measurement fails if the counter has not advanced twice within twice the window and this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Result of an energy measurement.
#[derive(Clone, Debug, PartialEq)]
pub enum Energy {
    /// There is no counter, or no energy was requested.
    Unavailable,
    /// Joules per call.
    Joules(f64),
    /// The reason why the readings cannot be right.
    Implausible(String),
}

/// State just after an advance of the counter.
struct Edge {
    calls: usize,
    joules: f64,
    at: Instant,
}

/// Energy per call over a window of at least `seconds`. `median` is the duration of a call in seconds,
/// `joules` reads the counter, and `limit` is the power limit in watts, if known.
pub fn energy<B: Backend>(
    on: &B,
    call: &TimedCall<'_, B>,
    sets: &mut [OperandSet<B>],
    median: f64,
    seconds: f64,
    joules: impl Fn(&B) -> Option<f64>,
    limit: Option<f64>,
) -> Result<Energy> {
    let Some(mut last) = joules(on).filter(|_| seconds > 0.0) else { return Ok(Energy::Unavailable) };
    let batch = (BATCH_SECONDS / median).clamp(1.0, 1e4) as usize;
    let began = Instant::now();
    let (mut calls, mut start) = (0, None::<Edge>);
    loop {
        let from = on.stamp()?;
        for _ in 0..batch {
            call(on, &mut sets[calls % sets.len()])?;
            calls += 1;
        }
        on.seconds_between(&from, &on.stamp()?)?;
        let Some(now) = joules(on) else { return Ok(Energy::Unavailable) };
        if now != last {
            last = now;
            let edge = Edge { calls, joules: now, at: Instant::now() };
            match &start {
                None => start = Some(edge),
                Some(start) if (edge.at - start.at).as_secs_f64() >= seconds => {
                    return Ok(of_window(start, &edge, limit));
                }
                Some(_) => {}
            }
        }
        if began.elapsed() > 2 * Duration::from_secs_f64(seconds) + PATIENCE {
            let why = format!("the energy counter did not advance twice in {:.1} s", began.elapsed().as_secs_f64());
            return Ok(Energy::Implausible(why));
        }
    }
}

fn of_window(start: &Edge, end: &Edge, limit: Option<f64>) -> Energy {
    let joules = end.joules - start.joules;
    let watts = joules / (end.at - start.at).as_secs_f64();
    match limit {
        Some(limit) if watts > OVER_LIMIT * limit => {
            Energy::Implausible(format!("energy left out: {watts:.0} W, above the power limit of {limit:.0} W"))
        }
        _ => Energy::Joules(joules / (end.calls - start.calls) as f64),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::backend::cpu::Cpu;

    /// Measures calls of 3 joules each with a counter that advances every `step` calls.
    fn measured(step: u32, seconds: f64, limit: Option<f64>) -> Energy {
        let on = Cpu::new();
        let mut sets = vec![OperandSet::new(&on, &[]).unwrap()];
        let calls = Cell::new(0u32);
        let call = |_: &Cpu, _: &mut OperandSet<Cpu>| {
            calls.set(calls.get() + 1);
            Ok(())
        };
        let counter = |_: &Cpu| Some(100.0 + f64::from(3 * (calls.get() / step * step)));
        energy(&on, &call, &mut sets, 0.01, seconds, counter, limit).unwrap()
    }

    #[test]
    fn energy_is_per_call_between_advances_of_the_counter() {
        assert_eq!(measured(1, 0.002, None), Energy::Joules(3.0));
        // Readings at arbitrary calls would be off by a step of the counter.
        assert_eq!(measured(7, 0.002, Some(1e12)), Energy::Joules(3.0));
        assert_eq!(measured(1, 0.0, None), Energy::Unavailable);
    }

    #[test]
    fn energy_above_the_power_limit_is_left_out() {
        let Energy::Implausible(why) = measured(1, 0.002, Some(1.0)) else { panic!("accepted") };
        assert!(why.ends_with("above the power limit of 1 W"), "{why}");
    }

    #[test]
    fn a_counter_that_stands_still_gives_no_energy() {
        let Energy::Implausible(why) = measured(u32::MAX, 0.002, None) else { panic!("accepted") };
        assert!(why.contains("did not advance"), "{why}");
    }
}
