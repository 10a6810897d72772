//! Adds prompts and comparisons to a group from drawn instructions. Before each addition, it checks again that
//! the responses meet or fail the instructions as required.

use super::DropReason;
use super::assemble::with_instructions;
use super::draw::{Drawer, Purpose, Side, Slot};
use super::report::Report;
use crate::data::group::{Comparison, Direction, Instruction, Kind, PreferenceGroup, Rule, Term};
use crate::data::instructions::Analysis;
use crate::data::options::{BuildOptions, InterDir, InterLoss, InterPrompts, IntraAnchor, IntraResponses, IntraRule};

/// Returns the response that meets the instructions of an inter prompt; the other response fails them.
fn winner(direction: Direction) -> Side {
    match direction {
        Direction::Up => Side::Chosen,
        Direction::Down => Side::Rejected,
    }
}

/// Instructions of the inter prompts of one draw. If intra comparisons share these prompts, both directions may
/// be drawn although `--inter-dir` names one.
#[derive(Default)]
struct InterSlates {
    up: Option<Vec<Slot>>,
    down: Option<Vec<Slot>>,
}

impl InterSlates {
    fn get(&self, direction: Direction) -> Option<&[Slot]> {
        match direction {
            Direction::Up => self.up.as_deref(),
            Direction::Down => self.down.as_deref(),
        }
    }
}

/// A group under construction.
pub(super) struct Builder<'a> {
    group: PreferenceGroup,
    analyses: &'a [Analysis<'a>],
    options: &'a BuildOptions,
}

impl<'a> Builder<'a> {
    /// Starts from an unchanged copy of the row. `analyses` has one entry per response, in order.
    pub(super) fn new(group: &PreferenceGroup, analyses: &'a [Analysis<'a>], options: &'a BuildOptions) -> Self {
        Self { group: group.clone(), analyses, options }
    }

    /// Returns the group with the added prompts and comparisons.
    pub(super) fn finish(self) -> PreferenceGroup {
        self.group
    }

    /// Adds the comparisons of one pair: prompt `x`, responses chosen and rejected.
    pub(super) fn add_pair(&mut self, x: usize, pair: [usize; 2], drawer: &mut Drawer, report: &mut Report) {
        let o = self.options;
        let intra_draws = if o.build_intra { o.n_intra } else { 0 };
        let inter_draws = if o.build_inter { o.n_inter } else { 0 };
        for draw in 0..intra_draws.max(inter_draws) {
            let slates = if draw < inter_draws { self.inter_slates(drawer, report) } else { InterSlates::default() };
            if draw < intra_draws {
                for side in [Side::Chosen, Side::Rejected] {
                    let wanted = match o.intra_responses {
                        IntraResponses::Both => true,
                        IntraResponses::Chosen => side == Side::Chosen,
                        IntraResponses::Rejected => side == Side::Rejected,
                    };
                    if wanted && let Err(reason) = self.add_intra(x, pair, side, &slates, drawer, report) {
                        report.drop(Kind::Intra, reason);
                    }
                }
            }
            if draw < inter_draws {
                for &direction in self.directions() {
                    let added = match slates.get(direction) {
                        Some(slots) => self.add_inter(x, pair, direction, slots),
                        None => Err(DropReason::TooFewFunctions),
                    };
                    if let Err(reason) = added {
                        report.drop(Kind::Inter, reason);
                    }
                }
            }
        }
    }

    fn directions(&self) -> &'static [Direction] {
        match self.options.inter_dir {
            InterDir::Both => &[Direction::Up, Direction::Down],
            InterDir::Up => &[Direction::Up],
            InterDir::Down => &[Direction::Down],
        }
    }

    /// Draws the instructions of the inter prompts, as far as they are feasible. With shared
    /// prompts both directions use the same functions, even if inter comparisons go in one
    /// direction only. The intra comparisons of the two responses then mirror each other, so no prompt reveals
    /// whether it is the better one.
    fn inter_slates(&self, drawer: &mut Drawer, report: &mut Report) -> InterSlates {
        let purpose = |direction| Purpose::Opposed(winner(direction), true);
        let both_directions = match self.options.inter_prompts {
            InterPrompts::Shared => self.shares_prompts() || self.options.inter_dir == InterDir::Both,
            InterPrompts::Separate => false,
        };
        if both_directions {
            if let Ok([up, down]) = drawer.slates([Direction::Up, Direction::Down].map(purpose), report) {
                return InterSlates { up: Some(up), down: Some(down) };
            }
            // A single direction may still be feasible, for functions that support only "at least".
            if self.options.inter_dir == InterDir::Both {
                return InterSlates::default();
            }
        }
        let mut slates = InterSlates::default();
        for &direction in self.directions() {
            let drawn = drawer.slates([purpose(direction)], report).ok().map(|[slots]| slots);
            match direction {
                Direction::Up => slates.up = drawn,
                Direction::Down => slates.down = drawn,
            }
        }
        slates
    }

    /// True if intra comparisons reuse the inter prompts.
    fn shares_prompts(&self) -> bool {
        self.options.build_intra
            && self.options.intra_anchor == IntraAnchor::None
            && self.options.inter_prompts == InterPrompts::Shared
    }

    fn add_intra(
        &mut self,
        x: usize,
        pair: [usize; 2],
        side: Side,
        inter: &InterSlates,
        drawer: &mut Drawer,
        report: &mut Report,
    ) -> Result<(), DropReason> {
        let response = pair[side.index()];
        let (better, worse, rule) = match self.options.intra_anchor {
            IntraAnchor::Bare => {
                // For the chosen response, the original prompt x is better than a prompt that the response
                // fails. For the rejected response, a prompt that the response meets is better than x.
                let flag = side == Side::Rejected;
                let [slots] = drawer.slates([Purpose::Leaning(side, flag)], report)?;
                let prompt = self.add_prompt(x, &slots, |_| Some(flag), response)?;
                let (better, worse) = if flag { (prompt, x) } else { (x, prompt) };
                (better, worse, Rule::Bare)
            }
            IntraAnchor::None => {
                let rule = match (self.options.intra_rule, side) {
                    (IntraRule::Mixed, _) => [Rule::A, Rule::B][usize::from(drawer.rng.flip())],
                    (IntraRule::A, _) | (IntraRule::AChosenBRejected, Side::Chosen) => Rule::A,
                    (IntraRule::B, _) | (IntraRule::AChosenBRejected, Side::Rejected) => Rule::B,
                };
                let (given, other) = self.intra_slots(side, rule == Rule::A, inter, drawer, report)?;
                let (better, worse) = if rule == Rule::A { (given, other) } else { (other, given) };
                let flags = |slots: &[Slot]| -> Vec<Option<bool>> {
                    slots.iter().map(|s| s.function.check(&s.kwargs, &self.analyses[response])).collect()
                };
                let (met, failed) = (flags(&better), flags(&worse));
                let count = |flags: &[Option<bool>], flag| flags.iter().filter(|f| **f == Some(flag)).count();
                let k = better.len();
                let holds = match rule {
                    Rule::A => count(&met, true) == k && count(&failed, false) >= 1,
                    Rule::B | Rule::Bare => count(&failed, false) == k && count(&met, true) >= 1,
                };
                if !holds {
                    return Err(DropReason::WrongFlag);
                }
                let ids = [
                    self.add_prompt(x, &better, |i| met[i], response)?,
                    self.add_prompt(x, &worse, |i| failed[i], response)?,
                ];
                (ids[0], ids[1], rule)
            }
        };
        self.add_comparison(Comparison {
            weight: if side == Side::Rejected { self.options.lambda_resp } else { 1.0 },
            rule: Some(rule),
            ..Comparison::pair(Kind::Intra, (better, response), (worse, response), 0.0)
        })
    }

    /// Returns the instructions of two prompts to compare. The response meets all instructions of the first
    /// prompt if `flag` is true, and fails all of them otherwise. The first prompt is an inter prompt if
    /// prompts are shared and its flags can be flipped. Otherwise its instructions are drawn for this response.
    fn intra_slots(
        &self,
        side: Side,
        flag: bool,
        inter: &InterSlates,
        drawer: &mut Drawer,
        report: &mut Report,
    ) -> Result<(Vec<Slot>, Vec<Slot>), DropReason> {
        let shared = match self.options.inter_prompts {
            InterPrompts::Shared if (side == Side::Chosen) == flag => inter.get(Direction::Up),
            InterPrompts::Shared => inter.get(Direction::Down),
            InterPrompts::Separate => None,
        };
        if let Some(given) = shared
            && let Ok(other) = drawer.contrast(given, side, flag)
        {
            return Ok((given.to_vec(), other));
        }
        // Arguments are drawn for both flags, to make sure that the flags can be flipped. Functions that can
        // oppose the responses in both directions are tried first: with only "at least", the size of a count
        // reveals the laxer prompt.
        let both = |purpose: fn(Side, bool) -> Purpose| [purpose(side, flag), purpose(side, !flag)];
        let opposed = drawer.slates(both(Purpose::Opposed), report);
        let [given, _] = opposed.or_else(|_| drawer.slates(both(Purpose::Leaning), report))?;
        let other = drawer.contrast(&given, side, flag)?;
        Ok((given, other))
    }

    fn add_inter(
        &mut self,
        x: usize,
        [chosen, rejected]: [usize; 2],
        direction: Direction,
        slots: &[Slot],
    ) -> Result<(), DropReason> {
        let (winner, loser) = match winner(direction) {
            Side::Chosen => (chosen, rejected),
            Side::Rejected => (rejected, chosen),
        };
        if !self.flags_hold(slots, |_| Some(false), loser) {
            return Err(DropReason::WrongFlag);
        }
        let prompt = self.add_prompt(x, slots, |_| Some(true), winner)?;
        let term = |prompt, response, sign| Term { prompt, response, sign };
        let mut comparison = Comparison::pair(Kind::Inter, (prompt, winner), (prompt, loser), 0.0);
        comparison.direction = Some(direction);
        match self.options.inter_loss {
            InterLoss::Margin | InterLoss::Group | InterLoss::PopDetached => {
                comparison.terms =
                    vec![term(prompt, winner, 1), term(x, loser, 1), term(prompt, loser, -1), term(x, winner, -1)];
            }
            InterLoss::Pair => {}
            // The two responses differ on every instruction of an inter prompt.
            InterLoss::PairMargin => comparison.margin = self.options.gamma * slots.len() as f64,
        }
        self.add_comparison(comparison)
    }

    /// True if the check of every instruction `i` decides for `response`, and its result is `flag(i)`.
    fn flags_hold(&self, slots: &[Slot], flag: impl Fn(usize) -> Option<bool>, response: usize) -> bool {
        let check = |(i, slot): (usize, &Slot)| {
            let found = slot.function.check(&slot.kwargs, &self.analyses[response]);
            found.is_some() && found == flag(i)
        };
        slots.iter().enumerate().all(check)
    }

    /// Returns the index of the prompt `x` with these instructions, and adds the prompt if the
    /// group does not have it. `flag(i)` is the flag that instruction `i` must have for `response`.
    fn add_prompt(
        &mut self,
        x: usize,
        slots: &[Slot],
        flag: impl Fn(usize) -> Option<bool>,
        response: usize,
    ) -> Result<usize, DropReason> {
        if !self.flags_hold(slots, flag, response) {
            return Err(DropReason::WrongFlag);
        }
        let texts = slots.iter().map(|s| s.function.phrase(&s.kwargs, s.variant));
        let texts = texts.collect::<Option<Vec<String>>>().ok_or(DropReason::WrongFlag)?;
        let prompt = with_instructions(&self.group.prompts[x], &texts, self.options)?;
        if let Some(index) = self.group.prompts.iter().position(|p| *p == prompt) {
            return Ok(index);
        }
        let index = self.group.prompts.len();
        self.group.prompts.push(prompt);
        for slot in slots {
            self.group.instructions.push(Instruction {
                prompt: index,
                id: slot.function.id.to_owned(),
                kwargs: slot.kwargs.clone(),
                satisfied: self.analyses.iter().map(|a| slot.function.check(&slot.kwargs, a)).collect(),
            });
        }
        Ok(index)
    }

    fn add_comparison(&mut self, comparison: Comparison) -> Result<(), DropReason> {
        if self.group.comparisons.contains(&comparison) {
            return Err(DropReason::Repeated);
        }
        self.group.comparisons.push(comparison);
        Ok(())
    }
}
