//! Jobs that run side by side, in an order that respects what each waits for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Results and failure of the jobs.
struct State<T> {
    started: Vec<bool>,
    results: Vec<Option<T>>,
    failure: Option<Error>,
}

impl<T: Clone> State<T> {
    /// First job that has not started and whose requirements are done.
    fn ready(&self, after: &[Vec<usize>]) -> Option<usize> {
        (0..after.len())
            .find(|&job| !self.started[job] && after[job].iter().all(|&first| self.results[first].is_some()))
    }
}

/// Runs every job once, up to `lanes` at a time. Of the jobs that may start, the first in the list is next.
///
/// `after[job]` lists the jobs that must be done before `job`. `run` gets the number of a job, the results of
/// those jobs, and a function that is true once another job has failed: `run` should then return soon.
/// Returns the results in the order of the list.
///
/// # Errors
/// The first error of a job. No job starts after it.
///
/// # Panics
/// If jobs wait for each other.
pub(super) fn run_all<T: Clone + Send>(
    after: &[Vec<usize>],
    lanes: usize,
    run: impl Fn(usize, Vec<T>, &dyn Fn() -> bool) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let state =
        Mutex::new(State { started: vec![false; after.len()], results: vec![None; after.len()], failure: None });
    let changed = Condvar::new();
    let next = || {
        let mut state = lock(&state);
        loop {
            if state.failure.is_some() || state.started.iter().all(|started| *started) {
                return None;
            }
            if let Some(job) = state.ready(after) {
                state.started[job] = true;
                return Some((job, after[job].iter().filter_map(|&first| state.results[first].clone()).collect()));
            }
            let is_running = state.started.iter().zip(&state.results).any(|(started, done)| *started && done.is_none());
            assert!(is_running, "jobs wait for each other");
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    };
    let has_failed = || lock(&state).failure.is_some();
    let lane = || {
        while let Some((job, inputs)) = next() {
            // The panic has printed its message; without an outcome the other lanes would wait for ever.
            let outcome = catch_unwind(AssertUnwindSafe(|| run(job, inputs, &has_failed)))
                .unwrap_or_else(|_| Err(Error::Runtime("a job of the quick start panicked".into())));
            let mut state = lock(&state);
            match outcome {
                Ok(result) => state.results[job] = Some(result),
                Err(e) => drop(state.failure.get_or_insert(e)),
            }
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        (1..lanes).for_each(|_| drop(scope.spawn(lane)));
        lane();
    });
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.failure {
        Some(e) => Err(e),
        None => Ok(state.results.into_iter().flatten().collect()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn jobs_get_the_results_that_they_wait_for_and_start_in_order() {
        let after = [vec![], vec![3, 0], vec![], vec![]];
        for lanes in [1, 2, 3, 9] {
            let order = Mutex::new(Vec::new());
            let results = run_all(&after, lanes, |job, inputs: Vec<usize>, _| {
                lock(&order).push(job);
                Ok(job * 10 + inputs.iter().sum::<usize>())
            });
            assert_eq!(results.unwrap(), [0, 40, 20, 30], "{lanes} lanes");
            let order = order.into_inner().unwrap();
            assert_eq!(order.len(), 4);
            if lanes == 1 {
                assert_eq!(order, [0, 2, 3, 1]);
            }
            let at = |job| order.iter().position(|&done| done == job).unwrap();
            assert!(at(1) > at(0) && at(1) > at(3), "{order:?}");
        }
    }

    #[test]
    fn as_many_jobs_run_at_once_as_there_are_lanes() {
        // Every job waits until two are there: one lane alone would never end.
        let both = Barrier::new(2);
        let results = run_all(&[vec![], vec![], vec![], vec![]], 2, |job, _: Vec<usize>, _| {
            both.wait();
            Ok(job)
        });
        assert_eq!(results.unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_failure_stops_the_other_job_and_starts_no_further_one() {
        let started = Mutex::new(Vec::new());
        let both = Barrier::new(2);
        let outcome = run_all(&[vec![], vec![], vec![]], 2, |job, _: Vec<()>, has_failed| {
            lock(&started).push(job);
            both.wait();
            if job == 0 {
                return Err(Error::Ended(7));
            }
            while !has_failed() {
                std::thread::yield_now();
            }
            Err(Error::Ended(143))
        });
        assert!(matches!(outcome, Err(Error::Ended(7))), "{outcome:?}");
        let mut started = started.into_inner().unwrap();
        started.sort_unstable();
        assert_eq!(started, [0, 1]);
    }
}
