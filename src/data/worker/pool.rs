//! The child processes of one tokenizer, at most one for each thread and at most [`MAX_CHILDREN`].
//!
//! Every child loads the tokenizer again, which needs seconds for a large vocabulary. A further child is
//! therefore started only after the existing ones have worked for as long as it would need to load. The total
//! time is then at most twice that of the best number of children. A child that ended is replaced.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::frame::Frame;
use super::process::{Death, Process};
use super::{Failure, Program, SECONDS_PER_BYTE};

/// Maximum number of children. The bound is needed because each child holds the tokenizer in memory.
const MAX_CHILDREN: usize = 16;

/// Number of deaths by a limit or a crash after which children receive no more requests. Every death is an
/// error of the row that caused it. Without this bound, a bad tokenizer or template could use up the time limit
/// for every row.
const MAX_DEATHS: usize = 3;

/// Lower bound of the loading speed, in bytes of a model folder per second.
const LOADED_PER_SECOND: u64 = 500_000;

/// Number of times that a request is sent again after its child was killed from outside.
const MAX_REPEATS: usize = 2;

/// Child processes with a loaded tokenizer.
pub(crate) struct Pool {
    program: Program,
    /// Parts of the request that loads the tokenizer, which every child receives first.
    load: Vec<Vec<u8>>,
    state: Mutex<State>,
    /// Signalled if a child becomes free or ends.
    freed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Process>,
    /// Number of children, including those that are being started.
    alive: usize,
    /// Maximum of `alive`.
    most: usize,
    /// Total duration of requests since the last child was started.
    worked: Duration,
    /// Duration of starting the first child and loading its tokenizer.
    start: Duration,
    deaths: usize,
    /// The failure after which no child receives another request.
    given_up: Option<Failure>,
}

impl Pool {
    /// Starts the first child; also returns its response to `load`.
    pub(crate) fn new(program: &Program, load: Vec<Vec<u8>>) -> Result<(Self, Frame), Failure> {
        let most = rayon::current_num_threads().clamp(1, MAX_CHILDREN);
        let state = Mutex::new(State { most, ..State::default() });
        let pool = Self { program: program.clone(), load, state, freed: Condvar::new() };
        let clock = Instant::now();
        let (process, answer) = match pool.begin() {
            Err(death) if death.foreign => pool.begin(),
            outcome => outcome,
        }
        .map_err(|death| death.failure)?;
        let mut state = pool.lock();
        (state.alive, state.start) = (1, clock.elapsed());
        state.idle.push(process);
        drop(state);
        Ok((pool, answer))
    }

    /// Sends a request about `bytes` of text to a child and returns its response. A request whose child was
    /// killed from outside is sent again.
    pub(crate) fn ask(&self, parts: &[&[u8]], bytes: usize) -> Result<Frame, Failure> {
        let seconds = self.program.limits.seconds + (bytes as f64 * SECONDS_PER_BYTE) as u64;
        let mut repeats = 0;
        loop {
            let death = match self.ask_once(parts, seconds) {
                Ok(frame) => return Ok(frame),
                Err(death) => death,
            };
            if !death.foreign || repeats == MAX_REPEATS {
                return Err(death.failure);
            }
            repeats += 1;
        }
    }

    fn ask_once(&self, parts: &[&[u8]], seconds: u64) -> Result<Frame, Death> {
        let mut process = self.take()?;
        let clock = Instant::now();
        let answer = process.ask(parts, seconds);
        let mut state = self.lock();
        let outcome = match answer {
            Ok(frame) => {
                state.worked += clock.elapsed();
                state.idle.push(process);
                Ok(frame)
            }
            Err(mut death) => {
                state.alive -= 1;
                state.deaths += usize::from(!death.foreign);
                if let Failure::Died { stage, cause } = &death.failure
                    && state.deaths >= MAX_DEATHS
                {
                    let failure = Failure::GivenUp { stage: *stage, cause: cause.clone() };
                    death.failure = state.given_up.get_or_insert(failure).clone();
                }
                Err(death)
            }
        };
        drop(state);
        self.freed.notify_all();
        outcome
    }

    /// Number of children that died by a limit or a crash during a request, and whether children therefore
    /// receive no more requests.
    pub(crate) fn deaths(&self) -> (usize, bool) {
        let state = self.lock();
        (state.deaths, state.given_up.is_some())
    }

    /// Forgets all deaths except the first `deaths`, so that children receive requests again.
    pub(crate) fn forget_deaths(&self, deaths: usize) {
        let mut state = self.lock();
        state.deaths = state.deaths.min(deaths);
        state.given_up = None;
    }

    /// Returns a free child; waits for one or starts one if none is free.
    fn take(&self) -> Result<Process, Death> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = &state.given_up {
                return Err(Death { failure: failure.clone(), foreign: false });
            }
            if let Some(process) = state.idle.pop() {
                return Ok(process);
            }
            let pays = state.worked >= state.start;
            if state.alive == 0 || (state.alive < state.most && pays) {
                break;
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.alive += 1;
        state.worked = Duration::ZERO;
        drop(state);
        match self.begin() {
            Ok((process, _)) => Ok(process),
            Err(death) => {
                let mut state = self.lock();
                state.alive -= 1;
                let alone = state.alive == 0;
                if !alone {
                    // The pool continues with the other children. It still replaces those that end, but adds no
                    // further ones.
                    state.most = state.alive;
                }
                drop(state);
                self.freed.notify_all();
                if alone { Err(death) } else { self.take() }
            }
        }
    }

    /// Starts a child and loads the tokenizer into it.
    fn begin(&self) -> Result<(Process, Frame), Death> {
        let start = |e: std::io::Error| Death { failure: Failure::Start(e.to_string()), foreign: false };
        let mut process = Process::start(&self.program).map_err(start)?;
        let parts: Vec<&[u8]> = self.load.iter().map(Vec::as_slice).collect();
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let answer = process.ask(&parts, self.program.limits.seconds + bytes as u64 / LOADED_PER_SECOND)?;
        Ok((process, answer))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("program", &self.program).finish_non_exhaustive()
    }
}
