//! Draws instruction functions and their arguments for one pair of responses.
//!
//! Wherever an instruction binds one response, the other response is given the opposite flag if that is feasible. Seen
//! over both responses of a pair, every prompt is then the better one as often as the worse one: neither its length,
//! its words, its relation nor its number tells which it is without a response.

use super::Dropped;
use super::report::Report;
use crate::data::instructions::{Analysis, Function, Kwargs, Request, Target, VARIANTS, clash, conflicts};
use crate::data::options::{BuildOptions, InterInfeasible, Violations};
use crate::rng::Rng;

/// Times the functions are drawn again under `--inter-infeasible resample`.
const RESAMPLES: usize = 8;

/// One of the two responses of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Chosen,
    Rejected,
}

/// A flag for each response of a pair, chosen first.
type Flags = [Option<bool>; 2];

impl Side {
    /// Position in [`Flags`].
    pub fn index(self) -> usize {
        match self {
            Side::Chosen => 0,
            Side::Rejected => 1,
        }
    }

    /// This response has `flag`, the other has none.
    fn alone(self, flag: bool) -> Flags {
        match self {
            Side::Chosen => [Some(flag), None],
            Side::Rejected => [None, Some(flag)],
        }
    }

    /// This response has `flag`, the other the opposite one.
    fn opposed(self, flag: bool) -> Flags {
        match self {
            Side::Chosen => [Some(flag), Some(!flag)],
            Side::Rejected => [Some(!flag), Some(flag)],
        }
    }
}

/// A function in a prompt. Both prompts of a comparison phrase it alike, so that only the arguments differ.
#[derive(Clone)]
pub struct Slot {
    pub function: &'static Function,
    pub variant: usize,
    pub kwargs: Kwargs,
}

/// Draws for one pair.
pub struct Drawer<'a> {
    /// Chosen and rejected response.
    pub responses: [&'a Analysis<'a>; 2],
    /// The turn that receives the instructions.
    pub prompt: &'a Analysis<'a>,
    /// Functions that may be drawn for this prompt.
    pub functions: Vec<&'static Function>,
    pub options: &'a BuildOptions,
    pub rng: Rng,
}

/// What a prompt is drawn for.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// This response has this flag, and the other the opposite one.
    Opposed(Side, bool),
    /// This response has this flag; the other the opposite one where feasible.
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
            Purpose::Leaning(side, flag) => with(side.opposed(flag)).or_else(|| with(side.alone(flag))),
        }
    }

    /// A set of functions and, for each purpose, one prompt's instructions with these functions in the same order.
    /// Functions are tried in random order; one is taken if it is feasible for every purpose and free of conflicts.
    pub fn slates<const N: usize>(
        &mut self,
        purposes: [Purpose; N],
        report: &mut Report,
    ) -> Result<[Vec<Slot>; N], Dropped> {
        let (draws, fewer) = match self.options.inter_infeasible {
            InterInfeasible::Resample => (1 + RESAMPLES, false),
            InterInfeasible::Fewer => (1, true),
            InterInfeasible::Skip => (1, false),
        };
        for _ in 0..draws {
            let k = self.rng.range(self.options.k_min, self.options.k_max);
            let slates = self.slates_of(k, purposes, report);
            let taken = slates.first().map_or(0, Vec::len);
            if taken == k || (fewer && taken > 0) {
                return Ok(slates);
            }
        }
        Err(Dropped::TooFewFunctions)
    }

    fn slates_of<const N: usize>(&mut self, k: usize, purposes: [Purpose; N], report: &mut Report) -> [Vec<Slot>; N] {
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
                report.infeasible(function.id);
                continue;
            }
            for (slate, kwargs) in slates.iter_mut().zip(drawn) {
                slate.push(Slot { function, variant, kwargs });
            }
        }
        // The order of acceptance favours no side, but functions that are often feasible come early in it.
        let mut order: Vec<usize> = (0..slates[0].len()).collect();
        self.rng.shuffle(&mut order);
        slates.map(|slate| order.iter().map(|&i| slate[i].clone()).collect())
    }

    /// The prompt that `given`, under which the response has `flag` throughout, is compared with: some instructions
    /// get arguments under which the flag is the opposite one, the others stay as they are.
    pub fn contrast(&mut self, given: &[Slot], side: Side, flag: bool) -> Result<Vec<Slot>, Dropped> {
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
        Err(Dropped::NoContrast)
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
