//! The maximum length of a sequence, as given or derived from the data. Without `--max-length` it is 1,024
//! tokens, raised to the 99th percentile of the data if that is longer, in steps of 64 up to 4,096. The
//! position limit of the model bounds both.
//!
//! The 99th percentile drops at most a few comparisons in a hundred. The upper bound limits the memory of a
//! step, because a batch is a number of groups, regardless of their lengths.

use super::Lengths;

/// Smallest default of the maximum length, in tokens.
const DEFAULT: usize = 1024;
/// Largest default of the maximum length, in tokens.
const LARGEST_DEFAULT: usize = 4096;
/// A default above the smallest one is a multiple of this.
const STEP: usize = 64;

/// Maximum length of a sequence in tokens, before the lengths of the data are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LengthLimit {
    /// Value of `--max-length`; `None` for the default.
    pub given: Option<usize>,
    /// Position limit of the model; `None` for no bound.
    pub positions: Option<usize>,
}

impl LengthLimit {
    /// Maximum length for data of these lengths.
    pub fn of(self, lengths: &Lengths) -> usize {
        let wanted = self.given.unwrap_or_else(|| default_of(lengths));
        wanted.min(self.positions.unwrap_or(usize::MAX))
    }

    /// The maximum length and its reason, for the start-up log.
    pub fn described(self, lengths: &Lengths) -> String {
        let limit = self.of(lengths);
        match self.given {
            Some(given) if given > limit => format!("{limit} tokens, the model's limit, instead of {given}"),
            Some(_) => format!("{limit} tokens, as given"),
            None if limit < default_of(lengths) => format!("{limit} tokens, the model's limit"),
            None if limit == LARGEST_DEFAULT && lengths.p99 > limit => {
                format!("{limit} tokens, the largest default; --max-length sets another")
            }
            None if limit > DEFAULT => {
                format!("{limit} tokens, which 99 % of the sequences fit; --max-length sets another")
            }
            None => format!("{limit} tokens by default; --max-length sets another"),
        }
    }
}

fn default_of(lengths: &Lengths) -> usize {
    lengths.p99.next_multiple_of(STEP).clamp(DEFAULT, LARGEST_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_covers_99_percent_within_its_bounds() {
        let limit = |given, positions, p99| {
            let lengths = Lengths { p99, ..Lengths::default() };
            let limit = LengthLimit { given, positions };
            (limit.of(&lengths), limit.described(&lengths))
        };
        for (given, positions, p99, tokens, reason) in [
            (None, None, 20, 1024, "by default"),
            (None, None, 1025, 1088, "99 % of the sequences fit"),
            (None, None, 2048, 2048, "99 % of the sequences fit"),
            (None, None, 9000, 4096, "largest default"),
            (None, Some(512), 20, 512, "the model's limit"),
            (None, Some(2048), 9000, 2048, "the model's limit"),
            (Some(64), Some(512), 9000, 64, "as given"),
            (Some(8192), None, 20, 8192, "as given"),
            (Some(8192), Some(512), 20, 512, "the model's limit, instead of 8192"),
        ] {
            let (found, why) = limit(given, positions, p99);
            assert_eq!(found, tokens, "{given:?} {positions:?} {p99}");
            assert!(why.contains(reason) && why.starts_with(&tokens.to_string()), "{why}");
        }
    }
}
