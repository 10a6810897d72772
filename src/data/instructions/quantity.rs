//! Instructions about a count: relations, and thresholds with which each response meets or fails the
//! instruction as its flag requires.
//!
//! If two responses have opposite flags, the threshold is uniform between their counts. This keeps a prompt
//! from revealing that it is the better one: over both responses of a pair, a prompt with any number and
//! relation is the better one exactly as often as the worse one. If only one response has a flag, the threshold
//! is at a random distance from the count of that response.

use serde_json::Value;

use super::{Analysis, Kwargs, Request, count_argument, kwargs, text_argument};
use crate::rng::Rng;

/// Relation of a count to a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Count >= threshold.
    AtLeast,
    /// Count < threshold.
    LessThan,
}

impl Relation {
    /// Both relations.
    pub const ALL: [Relation; 2] = [Relation::AtLeast, Relation::LessThan];

    /// Name in IFEval's arguments.
    pub fn name(self) -> &'static str {
        match self {
            Relation::AtLeast => "at least",
            Relation::LessThan => "less than",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    /// True if `count` satisfies the relation to `threshold`.
    pub fn holds(self, count: usize, threshold: usize) -> bool {
        match self {
            Relation::AtLeast => count >= threshold,
            Relation::LessThan => count < threshold,
        }
    }

    fn opposite(self) -> Self {
        match self {
            Relation::AtLeast => Relation::LessThan,
            Relation::LessThan => Relation::AtLeast,
        }
    }

    /// Finds the relation among arguments, under any key that the functions use.
    pub fn of(kwargs: &Kwargs) -> Option<Self> {
        let keys = ["relation", "let_relation", "capital_relation"];
        keys.iter().find_map(|key| text_argument(kwargs, key)).and_then(Self::parse)
    }
}

/// Range of the thresholds, from `low` to `high`, with which each count meets or fails the relation as its flag
/// requires.
#[derive(Clone, Copy)]
struct Interval {
    low: usize,
    high: usize,
}

impl Interval {
    fn new(counts: &[(usize, bool)], relation: Relation) -> Option<Self> {
        let (mut low, mut high) = (None, None);
        for &(count, flag) in counts {
            // "at least t" holds and "less than t" fails for thresholds up to the count.
            if flag == (relation == Relation::AtLeast) {
                high = Some(high.map_or(count, |h: usize| h.min(count)));
            } else {
                low = Some(low.map_or(count + 1, |l: usize| l.max(count + 1)));
            }
        }
        // If the counts set only one bound, the interval extends from it by two fifths of the count, and by at
        // least 2.
        let (low, high) = match (low, high) {
            (Some(low), Some(high)) => (low, high),
            (None, Some(high)) => (high.saturating_sub((high * 2 / 5).max(2)), high),
            (Some(low), None) => (low, low + (low * 2 / 5).max(2)),
            (None, None) => return None,
        };
        let low = low.max(1);
        (low <= high).then_some(Self { low, high })
    }

    /// Draws a threshold of the interval. "Less than 1" reads unnaturally, so 1 is drawn only if no other
    /// threshold is left, for both relations alike. Half of the thresholds of 20 and more are rounded to
    /// multiples of 5 or 10, as people write them.
    fn draw(self, rng: &mut Rng) -> usize {
        let low = if self.high >= 2 { self.low.max(2) } else { self.low };
        let threshold = rng.range(low, self.high);
        let step = if threshold >= 100 { 10 } else { 5 };
        let rounded = (threshold + step / 2) / step * step;
        if rng.flip() && threshold >= 20 && (low..=self.high).contains(&rounded) { rounded } else { threshold }
    }
}

/// Draws a relation and a threshold that give each count its flag; `None` if infeasible. If both relations
/// are feasible, the relation opposite to `partner`'s is drawn, or a random relation without a partner.
pub(super) fn draw_threshold(
    counts: &[(usize, bool)],
    partner: Option<&Kwargs>,
    rng: &mut Rng,
) -> Option<(Relation, usize)> {
    let coin = Relation::ALL[usize::from(rng.flip())];
    let first = partner.and_then(Relation::of).map_or(coin, Relation::opposite);
    let feasible = |relation| Interval::new(counts, relation).map(|interval| (relation, interval));
    let (relation, interval) = feasible(first).or_else(|| feasible(first.opposite()))?;
    Some((relation, interval.draw(rng)))
}

/// Returns the count and the flag of each response that has a flag.
pub(super) fn flagged_counts(request: &Request, count: impl Fn(&Analysis) -> usize) -> Vec<(usize, bool)> {
    request.targets.iter().filter_map(|t| Some((count(t.response), t.flag?))).collect()
}

/// Draws arguments of a two-sided function that counts with `count`.
pub(super) fn draw_two_sided(
    request: &Request,
    rng: &mut Rng,
    [number_key, relation_key]: [&str; 2],
    count: impl Fn(&Analysis) -> usize,
) -> Option<Kwargs> {
    let (relation, threshold) = draw_threshold(&flagged_counts(request, count), request.partner, rng)?;
    Some(kwargs([(number_key, threshold.into()), (relation_key, relation.name().into())]))
}

/// Reads threshold and relation from the arguments of a two-sided function.
pub(super) fn bound(kwargs: &Kwargs, [number_key, relation_key]: [&str; 2]) -> Option<(usize, Relation)> {
    Some((count_argument(kwargs, number_key)?, Relation::parse(text_argument(kwargs, relation_key)?)?))
}

/// True if a count satisfies the relation of a two-sided function. `None` if the arguments are
/// malformed.
pub(super) fn meets(kwargs: &Kwargs, keys: [&str; 2], count: usize) -> Option<bool> {
    let (threshold, relation) = bound(kwargs, keys)?;
    Some(relation.holds(count, threshold))
}

/// Draws a number of at least 1 that the satisfying responses reach and the violating responses do not.
pub(super) fn draw_minimum(request: &Request, rng: &mut Rng, count: impl Fn(&Analysis) -> usize) -> Option<Value> {
    let counts = flagged_counts(request, count);
    let interval = Interval::new(&counts, Relation::AtLeast)?;
    Some(rng.range(interval.low, interval.high).into())
}

/// Draws a number of at least 1 that equals the count of every satisfying response and of no violating
/// response. Without a satisfying response, returns the count of a response without a flag, or else a number
/// near the count of a violating response.
pub(super) fn draw_exact(request: &Request, rng: &mut Rng, count: impl Fn(&Analysis) -> usize) -> Option<usize> {
    let violated: Vec<usize> = request.violated().map(&count).collect();
    let fits = |m: &usize| *m >= 1 && !violated.contains(m);
    let mut satisfied = request.satisfied().map(&count);
    if let Some(m) = satisfied.next() {
        return (fits(&m) && satisfied.all(|other| other == m)).then_some(m);
    }
    if let Some(m) = request.free().map(&count).find(fits) {
        return Some(m);
    }
    let near = *violated.first()?;
    let candidates: Vec<usize> = (near.saturating_sub(3)..=near + 3).filter(fits).collect();
    rng.choose(&candidates).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_threshold_separates_the_counts_and_covers_the_gap() {
        let mut rng = Rng::keyed(1, &["separate"]);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            let (relation, t) = draw_threshold(&[(18, true), (12, false)], None, &mut rng).unwrap();
            assert_eq!(relation, Relation::AtLeast);
            seen.insert(t);
            let (relation, t) = draw_threshold(&[(18, false), (12, true)], None, &mut rng).unwrap();
            assert_eq!(relation, Relation::LessThan);
            seen.insert(t);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (13..=18).collect::<Vec<_>>());
        assert!(draw_threshold(&[(4, true), (4, false)], None, &mut rng).is_none());
    }

    #[test]
    fn a_free_relation_is_fair_and_opposes_its_partner() {
        let mut rng = Rng::keyed(2, &["free"]);
        let draws = 4000;
        let at_least = (0..draws)
            .filter(|_| draw_threshold(&[(50, true)], None, &mut rng).unwrap().0 == Relation::AtLeast)
            .count();
        // The bound is four standard deviations of about 31.6.
        assert!(at_least.abs_diff(draws / 2) < 127, "{at_least}");
        let partner = kwargs([("relation", "less than".into())]);
        let (relation, t) = draw_threshold(&[(50, false)], Some(&partner), &mut rng).unwrap();
        assert!(relation == Relation::AtLeast && t > 50);
        // A count of zero can violate only "at least".
        assert_eq!(draw_threshold(&[(0, false)], None, &mut rng).unwrap().0, Relation::AtLeast);
    }

    #[test]
    fn distances_vary_on_both_sides() {
        let mut rng = Rng::keyed(3, &["distance"]);
        let draws: Vec<usize> = (0..500).map(|_| draw_threshold(&[(100, true)], None, &mut rng).unwrap().1).collect();
        let distance = |t: &usize| t.abs_diff(100);
        assert!(draws.iter().any(|t| distance(t) > 30) && draws.iter().any(|t| distance(t) < 5));
        assert!(draws.iter().all(|t| (60..=141).contains(t)));
    }
}
