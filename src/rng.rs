//! Seeded random numbers. A generator is keyed by a seed and a list of labels. Any part of a run
//! can draw its own numbers and gets the same ones on every machine, thread count and rank.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// ChaCha8 stream keyed by (seed, labels).
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// Generator for `seed` and a path of labels, for example `Rng::keyed(7, &["build", row_id])`.
    /// Labels are length-prefixed before hashing, so two paths never collide by concatenation.
    pub fn keyed(seed: u64, labels: &[&str]) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        for label in labels {
            hash.update(&(label.len() as u64).to_le_bytes());
            hash.update(label.as_bytes());
        }
        Self(ChaCha8Rng::from_seed(*hash.finalize().as_bytes()))
    }

    /// Next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..n` without bias (Lemire's multiply-and-reject method); `n` must be positive.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below(0) has no value to return");
        let n = n as u64;
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// Uniform in [0, 1) with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability one half.
    pub fn flip(&mut self) -> bool {
        self.0.next_u32() & 1 == 1
    }

    /// Standard normal by the polar method (Marsaglia and Bray 1964). The second value of each pair
    /// is discarded, so the stream has no hidden state.
    pub fn normal(&mut self) -> f64 {
        loop {
            let (u, v) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                return u * (-2.0 * s.ln() / s).sqrt();
            }
        }
    }

    /// A uniformly chosen element, or `None` if the slice is empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { Some(&items[self.below(items.len())]) }
    }

    /// Fisher-Yates shuffle in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_streams_and_labels_do_not_collide() {
        let draw = |labels: &[&str]| Rng::keyed(1, labels).next_u64();
        assert_eq!(draw(&["a", "b"]), draw(&["a", "b"]));
        assert_ne!(draw(&["a", "b"]), draw(&["ab"]));
        assert_ne!(draw(&["a"]), Rng::keyed(2, &["a"]).next_u64());
    }

    #[test]
    fn below_is_uniform_and_normal_has_unit_variance() {
        let mut rng = Rng::keyed(3, &["test"]);
        let mut counts = [0usize; 7];
        for _ in 0..70_000 {
            counts[rng.below(7)] += 1;
        }
        // The standard deviation of a count is about 93, so the bound of 560 is six standard deviations.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 560), "{counts:?}");
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..50_000 {
            let x = rng.normal();
            sum += x;
            squares += x * x;
        }
        assert!((sum / 5e4).abs() < 0.03 && (squares / 5e4 - 1.0).abs() < 0.05);
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::keyed(5, &[]).shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(items, sorted);
    }
}
