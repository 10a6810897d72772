//! Draws instruction functions and their arguments for one pair of responses.
//!
//! An instruction that constrains one response gives the other response the opposite flag if that
//! is feasible. Over both responses of a pair, every prompt is then the better one as often as the
//! worse one. To a reader of the prompt only, neither its length, words, relations nor numbers reveal whether
//! it is the better one.

use super::DropReason;
use super::report::Report;
use crate::data::instructions::{Analysis, Function, Kwargs, Request, Target, VARIANTS, clash, conflicts};
use crate::data::options::{BuildOptions, InterInfeasible, Violations};
use crate::rng::Rng;

/// Number of redraws of the functions under `--inter-infeasible resample`.
const RESAMPLES: usize = 8;

/// One of the two responses of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Chosen,
    Rejected,
}

/// Required flag of each response of a pair, the chosen response first; `None` leaves a response unconstrained.
type Flags = [Option<bool>; 2];

impl Side {
    /// Position in [`Flags`].
    pub(super) fn index(self) -> usize {
        match self {
            Side::Chosen => 0,
            Side::Rejected => 1,
        }
    }

    /// Returns flags in which this response has `flag` and the other response is unconstrained.
    fn only(self, flag: bool) -> Flags {
        match self {
            Side::Chosen => [Some(flag), None],
            Side::Rejected => [None, Some(flag)],
        }
    }

    /// Returns flags in which this response has `flag` and the other response has the opposite flag.
    fn opposed(self, flag: bool) -> Flags {
        match self {
            Side::Chosen => [Some(flag), Some(!flag)],
            Side::Rejected => [Some(!flag), Some(flag)],
        }
    }
}

/// A function with its arguments in a prompt. Both prompts of a comparison use the same variant of
/// its phrase, so that only the arguments differ.
#[derive(Clone)]
pub(super) struct Slot {
    pub function: &'static Function,
    pub variant: usize,
    pub kwargs: Kwargs,
}

/// Draws instructions for one pair of responses.
pub(super) struct Drawer<'a> {
    /// Chosen and rejected response.
    pub responses: [&'a Analysis<'a>; 2],
    /// User turn that receives the instructions.
    pub prompt: &'a Analysis<'a>,
    /// Functions that may be drawn for this prompt.
    pub functions: Vec<&'static Function>,
    pub options: &'a BuildOptions,
    pub rng: Rng,
}

/// Flags that the drawn instructions of a prompt should give to the two responses.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// This response has this flag, and the other response the opposite flag.
    Opposed(Side, bool),
    /// This response has this flag; the other response has the opposite flag if feasible.
    Leaning(Side, bool),
}

impl Drawer<'_> {
    fn draw(&mut self, function: &Function, purpose: Purpose, partner: Option<&Kwargs>) -> Option<Kwargs> {
        let mut with = |flags: Flags| {
            let targets = [0, 1].map(|i| Target { response: self.responses[i], flag: flags[i] });
            function.draw(&Request { targets: &targets, prompt: self.prompt, partner }, &mut self.rng)
        };
        match purpose {
            Purpose::Opposed(side, flag) => with(side.opposed(flag)),
            Purpose::Leaning(side, flag) => with(side.opposed(flag)).or_else(|| with(side.only(flag))),
        }
    }

    /// Draws a set of functions and, for each purpose, one prompt's instructions with these functions in the
    /// same order. Functions are tried in random order. A function is accepted if it is feasible for every
    /// purpose and free of conflicts.
    pub(super) fn slates<const N: usize>(
        &mut self,
        purposes: [Purpose; N],
        report: &mut Report,
    ) -> Result<[Vec<Slot>; N], DropReason> {
        let (draws, fewer) = match self.options.inter_infeasible {
            InterInfeasible::Resample => (1 + RESAMPLES, false),
            InterInfeasible::Fewer => (1, true),
            InterInfeasible::Skip => (1, false),
        };
        for _ in 0..draws {
            let k = self.rng.range(self.options.k_min, self.options.k_max);
            let slates = self.try_slates(k, purposes, report);
            let taken = slates.first().map_or(0, Vec::len);
            if taken == k || (fewer && taken > 0) {
                return Ok(slates);
            }
        }
        Err(DropReason::TooFewFunctions)
    }

    fn try_slates<const N: usize>(&mut self, k: usize, purposes: [Purpose; N], report: &mut Report) -> [Vec<Slot>; N] {
        let mut slates = [const { Vec::<Slot>::new() }; N];
        let mut order = self.functions.clone();
        self.rng.shuffle(&mut order);
        for function in order {
            if slates[0].len() == k {
                break;
            }
            if slates[0].iter().any(|slot| conflicts(slot.function.id, function.id)) {
                continue;
            }
            let variant = self.rng.below(VARIANTS);
            let mut drawn: Vec<Kwargs> = Vec::with_capacity(N);
            for (purpose, slate) in purposes.into_iter().zip(&slates) {
                match self.draw(function, purpose, drawn.first()) {
                    Some(kwargs) if !clashes(function, &kwargs, slate) => drawn.push(kwargs),
                    Some(_) | None => break,
                }
            }
            if drawn.len() < N {
                report.count_infeasible(function.id);
                continue;
            }
            for (slate, kwargs) in slates.iter_mut().zip(drawn) {
                slate.push(Slot { function, variant, kwargs });
            }
        }
        // The slots are shuffled, because functions that are often feasible were accepted early.
        let mut order: Vec<usize> = (0..slates[0].len()).collect();
        self.rng.shuffle(&mut order);
        slates.map(|slate| order.iter().map(|&i| slate[i].clone()).collect())
    }

    /// Returns the instructions of a prompt that is compared with the prompt of `given`. The response has
    /// `flag` on every instruction of `given`. Some instructions get new arguments that flip the flag; the
    /// others stay unchanged.
    pub(super) fn contrast(&mut self, given: &[Slot], side: Side, flag: bool) -> Result<Vec<Slot>, DropReason> {
        let changes = match self.options.violations {
            Violations::Uniform => self.rng.range(1, given.len()),
            Violations::One => 1,
            Violations::All => given.len(),
        };
        for _ in 0..self.options.build_attempts {
            if let Some(slots) = self.try_contrast(given, side, flag, changes) {
                return Ok(slots);
            }
        }
        Err(DropReason::NoContrast)
    }

    fn try_contrast(&mut self, given: &[Slot], side: Side, flag: bool, changes: usize) -> Option<Vec<Slot>> {
        let mut positions: Vec<usize> = (0..given.len()).collect();
        self.rng.shuffle(&mut positions);
        let (changed, kept) = positions.split_at(changes);
        let mut slots: Vec<Option<Slot>> = vec![None; given.len()];
        for &i in kept {
            slots[i] = Some(given[i].clone());
        }
        for &i in changed {
            let Slot { function, variant, kwargs } = &given[i];
            let drawn = self.draw(function, Purpose::Leaning(side, !flag), Some(kwargs))?;
            if clashes(function, &drawn, slots.iter().flatten()) {
                return None;
            }
            slots[i] = Some(Slot { function, variant: *variant, kwargs: drawn });
        }
        slots.into_iter().collect()
    }
}

fn clashes<'a>(function: &Function, kwargs: &Kwargs, others: impl IntoIterator<Item = &'a Slot>) -> bool {
    others.into_iter().any(|slot| clash((function.id, kwargs), (slot.function.id, &slot.kwargs)))
}
