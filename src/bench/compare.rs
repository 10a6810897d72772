//! Comparison of a record with an earlier one, row by row. The verdict takes the spread of the
//! samples into account.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::row::{Row, Status};

/// Verdict on a row's times compared with the earlier times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Slower beyond the noise.
    Slower,
    /// Faster beyond the noise.
    Faster,
    /// The difference is within the noise.
    Same,
    /// The call is only in the new record.
    New,
    /// The call is only in the earlier record.
    Gone,
    /// Other programs used more than a tenth of a CPU core while one of the two rows was measured
    /// on a CPU.
    Disturbed,
    /// One of the two rows was not measured.
    Unknown,
}

/// Load of other programs, in CPU cores, above which times are not compared.
const MAX_OTHER_LOAD: f64 = 0.1;

/// Two rows of the same call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowComparison {
    /// Name of the op.
    pub op: String,
    /// Column `variant` of the rows.
    pub variant: String,
    /// Column `model` of the rows.
    pub model: String,
    /// Column `layer` of the rows.
    pub layer: String,
    /// Sizes as `name=value`.
    pub shape: String,
    /// Verdict on the times.
    pub verdict: Verdict,
    /// New median divided by the earlier median, in units of the yardstick if both rows have it. A ratio
    /// above 1 is slower.
    pub ratio: Option<f64>,
    /// Smallest ratio that would have counted as a difference. If the new median is the smaller
    /// one, this is the inverse of that ratio.
    pub noise: Option<f64>,
}

/// Compares the times of two records. `threshold` is the relative difference that is ignored
/// (0.05).
///
/// Times with a yardstick are compared in its units: the time of a control workload next to the call. A row
/// is slower when its 20 % quantile exceeds the earlier 80 % quantile by more than the threshold, so that
/// their spreads do not overlap. Times without a yardstick use the minimum instead of the 20 % quantile,
/// because other work lengthens most samples but seldom all. Faster is the same test with the two rows
/// exchanged.
pub fn compare(new: &[Row], earlier: &[Row], threshold: f64) -> Vec<RowComparison> {
    let mut left: BTreeMap<_, &Row> = earlier.iter().map(|row| (row.key(), row)).collect();
    let mut pairs: Vec<RowComparison> =
        new.iter().map(|row| compare_row(row, left.remove(&row.key()), threshold)).collect();
    pairs.extend(left.into_values().map(|row| comparison(row, Verdict::Gone, None, None)));
    pairs
}

fn comparison(row: &Row, verdict: Verdict, ratio: Option<f64>, noise: Option<f64>) -> RowComparison {
    let text = |s: &String| s.clone();
    RowComparison {
        op: text(&row.op),
        variant: text(&row.variant),
        model: text(&row.model),
        layer: text(&row.layer),
        shape: text(&row.shape),
        verdict,
        ratio,
        noise,
    }
}

/// Times of a row that enter the comparison.
#[derive(Clone, Copy)]
struct Times {
    median: f64,
    low: f64,
    high: f64,
}

/// Times of both rows in one unit: yardsticks if both rows have them, else microseconds. `None` if
/// one of the rows was not measured.
fn comparable_times(new: &Row, earlier: &Row) -> Option<(Times, Times)> {
    if [new, earlier].iter().any(|row| row.status != Status::Measured) {
        return None;
    }
    let paced = |row: &Row| row.paced().map(|(median, low, high)| Times { median, low, high });
    let plain = |row: &Row| row.timed().map(|(median, _, high, low)| Times { median, low, high });
    paced(new).zip(paced(earlier)).or_else(|| plain(new).zip(plain(earlier)))
}

fn compare_row(new: &Row, earlier: Option<&Row>, threshold: f64) -> RowComparison {
    let Some(earlier) = earlier else { return comparison(new, Verdict::New, None, None) };
    let Some((a, b)) = comparable_times(new, earlier) else { return comparison(new, Verdict::Unknown, None, None) };
    let ratio = a.median / b.median;
    // Smallest ratio of medians that counts as a difference, given these spreads.
    let least_difference =
        |slow: Times, fast: Times| (1.0 + threshold) * (fast.high / fast.median) / (slow.low / slow.median);
    let noise = if ratio >= 1.0 { least_difference(a, b) } else { least_difference(b, a) };
    let beyond = |slow: Times, fast: Times| slow.low > fast.high * (1.0 + threshold);
    // The load of the CPU does not slow a GPU down.
    let disturbed = |row: &Row| row.backend != "cuda" && row.others.is_some_and(|others| others > MAX_OTHER_LOAD);
    let verdict = match () {
        () if disturbed(new) || disturbed(earlier) => Verdict::Disturbed,
        () if beyond(a, b) => Verdict::Slower,
        () if beyond(b, a) => Verdict::Faster,
        () => Verdict::Same,
    };
    comparison(new, verdict, Some(ratio), Some(noise))
}

/// Text for a terminal: differences first, then counts.
pub fn text(pairs: &[RowComparison]) -> String {
    let mut out = String::new();
    for verdict in [Verdict::Slower, Verdict::Faster] {
        for p in pairs.iter().filter(|p| p.verdict == verdict) {
            let (ratio, noise) = (p.ratio.unwrap_or(f64::NAN), p.noise.unwrap_or(f64::NAN));
            let name = if verdict == Verdict::Slower { "slower" } else { "faster" };
            let _ = writeln!(
                out,
                "{name}  {ratio:>6.3}x the earlier median (noise {noise:.3}x)  {} {} {} {} {}",
                p.op, p.variant, p.model, p.layer, p.shape
            );
        }
    }
    let count = |verdict| pairs.iter().filter(|p| p.verdict == verdict).count();
    let _ = write!(
        out,
        "{} slower, {} faster, {} within the noise, {} disturbed by other programs, {} new, {} only in the earlier record, \
         {} not measured in one of the records",
        count(Verdict::Slower),
        count(Verdict::Faster),
        count(Verdict::Same),
        count(Verdict::Disturbed),
        count(Verdict::New),
        count(Verdict::Gone),
        count(Verdict::Unknown)
    );
    out
}
