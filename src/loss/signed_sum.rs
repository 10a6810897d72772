//! Computes the argument z of a comparison's curve from the scores of its sequences.

/// Sums signed scores, given with the index of their prompt. The sum is computed prompt by prompt, so that
/// two equal gaps of opposite sign give exactly 0, without a rounding error.
pub fn signed_sum(terms: impl Iterator<Item = (usize, f64)>) -> f64 {
    let mut gaps: Vec<(usize, f64)> = Vec::with_capacity(2);
    for (prompt, score) in terms {
        match gaps.iter_mut().find(|(known, _)| *known == prompt) {
            Some((_, gap)) => *gap += score,
            None => gaps.push((prompt, score)),
        }
    }
    gaps.into_iter().map(|(_, gap)| gap).sum()
}
