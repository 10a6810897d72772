//! Loss curves of a comparison with their slopes, in f64. Every backend follows these definitions.
//!
//! Most curves are functions of the argument z only. Others are functions of two arguments: a is the rho of
//! the chosen term, b that of the rejected term ([`Link`] defines rho). These curves need exactly one trained
//! (not detached) term of each sign. The AOT curves sort these terms over all comparisons of one kind in the
//! batch, and match them by rank.

use super::{OwnCurve, Result, expect};

/// Loss of a comparison as a function of its argument z, or of its terms a and b.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// `(1-e) softplus(-z) + e softplus(z)`; e = 0 is the logistic loss, e > 0 cDPO.
    Sigmoid {
        /// Probability that a label is wrong.
        smoothing: f64,
    },
    /// `((1-e) softplus(-z) - e softplus(z)) / (1-2e)`, robust DPO (arXiv 2403.00409); e < 1/2.
    Robust {
        /// Probability that a label is wrong.
        smoothing: f64,
    },
    /// `max(0, 1 - z)`.
    Hinge,
    /// `((z - 1/2) / beta)²`, IPO (arXiv 2310.12036), with z = beta * D and the comparison's scale
    /// as beta.
    Ipo,
    /// `q (log q - log(1-e)) + (1-q) (log(1-q) - log e)` with q = sigmoid(z), the reverse KL
    /// divergence from the smoothed label, EXO (arXiv 2402.00856); e > 0.
    Exo {
        /// Probability that a label is wrong.
        smoothing: f64,
    },
    /// `(1-m) softplus(-z) + m exp(-z)` with m = sigmoid(z / temperature), DiscoPOP (arXiv
    /// 2406.08414).
    DiscoPop {
        /// Temperature of the mixture.
        temperature: f64,
    },
    /// `sigmoid(-a) + sigmoid(b)`, APO-zero (arXiv 2408.06266).
    ApoZero,
    /// `sigmoid(a) + sigmoid(b - a)`, APO-down (arXiv 2408.06266).
    ApoDown,
    /// `softplus(-a) + softplus(a) / 2 + softplus(b) / 2`, NCA (arXiv 2402.05369).
    NcaPair,
    /// `softplus(-a) + softplus(b)`, BCO (arXiv 2404.04656) without its shift of the rewards.
    BcoPair,
    /// `((a - 1/2) / beta)² + ((b + 1/2) / beta)²`, SPPO (arXiv 2405.00675) with hard labels and the
    /// comparison's scale as beta.
    SppoHard,
    /// The curve of [`Curve::Sigmoid`] at `x - y`, AOT (arXiv 2406.05882): x is the signed sum of
    /// the scaled scores, and y the signed sum of the references that has the same rank as x.
    Aot {
        /// Probability that a label is wrong.
        smoothing: f64,
    },
    /// The curve of [`Curve::Sigmoid`] at `a - b`, where a and b have the same rank, unpaired AOT (arXiv
    /// 2406.05882).
    AotUnpaired {
        /// Probability that a label is wrong.
        smoothing: f64,
    },
    /// `sigmoid(-z)` with `z = sign (rho - scale KL)`, KTO (arXiv 2402.01306), for one trained term. KL is
    /// the mean of `score - reference` over the detached terms of the batch, at least 0. KL gets no gradient.
    Kto,
    /// `sigmoid(-z)`, APO-zero of one trained term (arXiv 2408.06266).
    ApoZeroUnpaired,
    /// A user-defined function of z.
    Own(&'static OwnCurve),
}

/// One curve of a loss, which is a weighted sum of curves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightedCurve {
    /// The curve.
    pub curve: Curve,
    /// Factor on the weight of every comparison. A curve with weight 0 adds 0 if its value is finite.
    pub weight: f64,
    /// Whether every rho of this curve is divided by the number of head rows of its sequence.
    pub per_token: bool,
}

impl From<Curve> for WeightedCurve {
    fn from(curve: Curve) -> Self {
        Self { curve, weight: 1.0, per_token: false }
    }
}

/// Function that maps u to `rho / scale`, where u is a sequence's score minus its reference score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// `u`: the reverse KL divergence.
    Identity,
    /// `1 - exp(-u)`: f' of the forward KL divergence (arXiv 2309.16240).
    ForwardKl,
    /// `log 2 - softplus(-u)`: f' of the Jensen-Shannon divergence (arXiv 2309.16240).
    JensenShannon,
    /// `(exp(t) - 1) / (alpha - 1)` with `t = min((alpha - 1) u, 80)`: f' of the alpha-divergence
    /// (arXiv 2309.16240); alpha is not 1.
    Alpha {
        /// Order of the divergence.
        alpha: f64,
    },
    /// `u - log(1 - exp(u))`: log odds of a mean log-prob u < 0 (arXiv 2403.07691).
    Odds,
}

/// Bound on the exponent of [`Link::Alpha`]. exp(80) is finite in f32, which overflows above exp(88).
pub const ALPHA_BOUND: f64 = 80.0;

impl Curve {
    /// Checks the range of the curve's parameter.
    pub(super) fn check(self, op: &'static str) -> Result<()> {
        match self {
            Curve::Sigmoid { smoothing } | Curve::Aot { smoothing } | Curve::AotUnpaired { smoothing } => {
                expect(op, "smoothing", (0.0..=0.5).contains(&smoothing), "0 to 0.5", smoothing)
            }
            Curve::Robust { smoothing } => {
                expect(op, "smoothing", (0.0..0.5).contains(&smoothing), "at least 0, below 0.5", smoothing)
            }
            Curve::Exo { smoothing } => {
                let inside = smoothing > 0.0 && smoothing <= 0.5;
                expect(op, "smoothing", inside, "above 0, at most 0.5", smoothing)
            }
            Curve::DiscoPop { temperature } => {
                let inside = temperature > 0.0 && temperature.is_finite();
                expect(op, "temperature", inside, "a finite number above 0", temperature)
            }
            Curve::Hinge
            | Curve::Ipo
            | Curve::ApoZero
            | Curve::ApoDown
            | Curve::NcaPair
            | Curve::BcoPair
            | Curve::SppoHard
            | Curve::Kto
            | Curve::ApoZeroUnpaired
            | Curve::Own(_) => Ok(()),
        }
    }

    /// Whether the curve depends on the whole batch, because it sorts or estimates a divergence.
    pub fn is_of_batch(self) -> bool {
        self.sorts() || self == Curve::Kto
    }

    /// Whether the curve sorts the comparisons of a batch that have the same kind and a non-zero weight.
    pub fn sorts(self) -> bool {
        matches!(self, Curve::Aot { .. } | Curve::AotUnpaired { .. })
    }

    /// Whether the curve uses its two terms separately, or sorts them. Such a curve supports neither a margin
    /// nor detached terms.
    pub fn is_of_terms(self) -> bool {
        match self {
            Curve::ApoZero
            | Curve::ApoDown
            | Curve::NcaPair
            | Curve::BcoPair
            | Curve::SppoHard
            | Curve::Aot { .. }
            | Curve::AotUnpaired { .. } => true,
            Curve::Sigmoid { .. }
            | Curve::Robust { .. }
            | Curve::Hinge
            | Curve::Ipo
            | Curve::Exo { .. }
            | Curve::DiscoPop { .. }
            | Curve::Kto
            | Curve::ApoZeroUnpaired
            | Curve::Own(_) => false,
        }
    }
}

/// Checks the curves and the link of an op. `has_rows` tells whether the op got `inverse_rows`.
pub(super) fn check(op: &'static str, curves: &[WeightedCurve], link: Link, has_rows: bool) -> Result<()> {
    expect(op, "curves", !curves.is_empty(), "at least one", curves.len())?;
    for part in curves {
        part.curve.check(op)?;
        let weighted = part.weight.is_finite() && part.weight >= 0.0;
        expect(op, "weight of a curve", weighted, "a finite number of at least 0", part.weight)?;
        let whole = link == Link::Identity && !part.per_token;
        expect(
            op,
            "link",
            whole || !part.curve.is_of_batch(),
            "log-ratios without per-token scaling, because a curve depends on the whole batch",
            "a different link or per-token scaling",
        )?;
        expect(op, "inverse_rows", has_rows || !part.per_token, "given, because a curve is per token", "none")?;
    }
    match link {
        Link::Alpha { alpha } => {
            expect(op, "alpha", alpha.is_finite() && alpha != 1.0, "a finite number other than 1", alpha)
        }
        Link::Identity | Link::ForwardKl | Link::JensenShannon | Link::Odds => Ok(()),
    }
}

/// Arguments of a curve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arguments {
    pub z: f64,
    /// Sum of the rho of trained terms with a positive sign, and of those with a negative sign.
    pub terms: [f64; 2],
    /// Scale of the comparison.
    pub beta: f64,
}

/// Value of a curve and its derivatives with respect to the rho of positive and of negative terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub value: f64,
    pub slopes: [f64; 2],
}

/// `log(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))`, computed from exp(-|x|) so that both tails keep their relative precision.
fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// Value and slopes of a curve.
pub(crate) fn value_and_slopes(curve: Curve, at: Arguments) -> Point {
    let (z, [a, b], beta) = (at.z, at.terms, at.beta);
    let of_z = |value: f64, slope: f64| Point { value, slopes: [slope, -slope] };
    match curve {
        // At e = 0 the smoothed terms are omitted, because 0 * softplus(inf) is NaN.
        Curve::Sigmoid { smoothing: 0.0 } | Curve::Aot { smoothing: 0.0 } | Curve::AotUnpaired { smoothing: 0.0 } => {
            of_z(softplus(-z), -sigmoid(-z))
        }
        Curve::Sigmoid { smoothing: e } | Curve::Aot { smoothing: e } | Curve::AotUnpaired { smoothing: e } => {
            of_z((1.0 - e) * softplus(-z) + e * softplus(z), -(1.0 - e) * sigmoid(-z) + e * sigmoid(z))
        }
        Curve::Robust { smoothing: e } => {
            let norm = 1.0 - 2.0 * e;
            of_z(
                ((1.0 - e) * softplus(-z) - e * softplus(z)) / norm,
                (-(1.0 - e) * sigmoid(-z) - e * sigmoid(z)) / norm,
            )
        }
        Curve::Hinge => of_z((1.0 - z).max(0.0), if z < 1.0 { -1.0 } else { 0.0 }),
        Curve::Ipo => {
            let distance = (z - 0.5) / beta;
            of_z(distance * distance, 2.0 * distance / beta)
        }
        Curve::Exo { smoothing: e } => {
            let (q, rest, log_odds) = (sigmoid(z), sigmoid(-z), (-e).ln_1p() - e.ln());
            let value = q * (-softplus(-z) - (-e).ln_1p()) + rest * (-softplus(z) - e.ln());
            of_z(value, q * rest * (z - log_odds))
        }
        Curve::DiscoPop { temperature: t } => {
            // m exp(-z) is computed as one exponential, because exp(-z) overflows where m is 0.
            let (m, rest) = (sigmoid(z / t), sigmoid(-z / t));
            let exponential = (-z - softplus(-z / t)).exp();
            let value = rest * softplus(-z) + exponential;
            let logistic_slope = -rest * sigmoid(-z) - softplus(-z) * m * rest / t;
            of_z(value, logistic_slope + exponential * (rest / t - 1.0))
        }
        Curve::ApoZero => {
            Point { value: sigmoid(-a) + sigmoid(b), slopes: [-sigmoid(a) * sigmoid(-a), sigmoid(b) * sigmoid(-b)] }
        }
        Curve::ApoDown => {
            let (own, gap) = (sigmoid(a) * sigmoid(-a), sigmoid(a - b) * sigmoid(b - a));
            Point { value: sigmoid(a) + sigmoid(b - a), slopes: [own - gap, gap] }
        }
        Curve::NcaPair => Point {
            value: softplus(-a) + 0.5 * softplus(a) + 0.5 * softplus(b),
            slopes: [0.5 * sigmoid(a) - sigmoid(-a), 0.5 * sigmoid(b)],
        },
        Curve::BcoPair => Point { value: softplus(-a) + softplus(b), slopes: [-sigmoid(-a), sigmoid(b)] },
        Curve::SppoHard => {
            let (win, lose) = ((a - 0.5) / beta, (b + 0.5) / beta);
            Point { value: win * win + lose * lose, slopes: [2.0 * win / beta, 2.0 * lose / beta] }
        }
        Curve::Kto | Curve::ApoZeroUnpaired => of_z(sigmoid(-z), -sigmoid(z) * sigmoid(-z)),
        Curve::Own(own) => {
            let (value, slope) = (own.at)(z);
            of_z(value, slope)
        }
    }
}

/// Returns the KL of [`Curve::Kto`] from `score - reference` of the detached terms. KL is their mean, at
/// least 0, and 0 without terms. NaN stays NaN.
pub(crate) fn divergence(ratios: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for ratio in ratios {
        sum += ratio;
        count += 1;
    }
    let mean = sum / count.max(1) as f64;
    if mean < 0.0 { 0.0 } else { mean }
}

/// The two values of a comparison that a sorting curve (AOT) sorts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SortKeys {
    /// Only comparisons of the same kind are sorted together.
    pub kind: usize,
    pub x: f64,
    pub y: f64,
}

/// Returns two arguments of the sorting curve for each comparison. The first is its x minus the y of the same
/// rank. The second is the x that has the rank of its y, minus its y. Equal values rank in the order of the
/// comparisons.
pub(crate) fn matched(keys: &[SortKeys]) -> Vec<[f64; 2]> {
    let order = |number: fn(&SortKeys) -> f64| {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        let key = |&c: &usize| (keys[c].kind, number(&keys[c]));
        // NaN comes last, whatever its sign.
        order.sort_by(|a, b| {
            let ((kind, of_a), (other, of_b)) = (key(a), key(b));
            let by_number = of_a.partial_cmp(&of_b).unwrap_or(of_a.is_nan().cmp(&of_b.is_nan()));
            kind.cmp(&other).then(by_number)
        });
        order
    };
    let (by_x, by_y) = (order(|k| k.x), order(|k| k.y));
    let mut arguments = vec![[f64::NAN; 2]; keys.len()];
    for (&c, &d) in by_x.iter().zip(&by_y) {
        let difference = keys[c].x - keys[d].y;
        (arguments[c][0], arguments[d][1]) = (difference, difference);
    }
    arguments
}

/// Value and slope of a link at u.
pub(crate) fn linked(link: Link, u: f64) -> (f64, f64) {
    match link {
        Link::Identity => (u, 1.0),
        Link::ForwardKl => (-(-u).exp_m1(), (-u).exp()),
        Link::JensenShannon => (std::f64::consts::LN_2 - softplus(-u), sigmoid(-u)),
        Link::Alpha { alpha } => {
            let power = alpha - 1.0;
            // NaN is not above the bound, so it stays NaN.
            match power * u {
                t if t > ALPHA_BOUND => (ALPHA_BOUND.exp_m1() / power, 0.0),
                t => (t.exp_m1() / power, t.exp()),
            }
        }
        Link::Odds => {
            let log_rest = if u > -std::f64::consts::LN_2 { (-u.exp_m1()).ln() } else { (-u.exp()).ln_1p() };
            (u - log_rest, -1.0 / u.exp_m1())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every curve, with and without smoothing.
    pub(crate) const CURVES: [Curve; 18] = [
        Curve::Sigmoid { smoothing: 0.0 },
        Curve::Sigmoid { smoothing: 0.1 },
        Curve::Robust { smoothing: 0.0 },
        Curve::Robust { smoothing: 0.2 },
        Curve::Hinge,
        Curve::Ipo,
        Curve::Exo { smoothing: 0.001 },
        Curve::DiscoPop { temperature: 0.05 },
        Curve::DiscoPop { temperature: 0.8 },
        Curve::ApoZero,
        Curve::ApoDown,
        Curve::NcaPair,
        Curve::BcoPair,
        Curve::SppoHard,
        Curve::Aot { smoothing: 0.0 },
        Curve::AotUnpaired { smoothing: 0.1 },
        Curve::Kto,
        Curve::ApoZeroUnpaired,
    ];
    pub(crate) const LINKS: [Link; 6] = [
        Link::Identity,
        Link::ForwardKl,
        Link::JensenShannon,
        Link::Alpha { alpha: 0.5 },
        Link::Alpha { alpha: 1.75 },
        Link::Odds,
    ];

    fn at(a: f64, b: f64) -> Arguments {
        Arguments { z: a - b, terms: [a, b], beta: 0.1 }
    }

    #[test]
    fn slopes_equal_central_differences() {
        let values = [-30.0, -3.0, -0.4, 0.0, 0.3, 0.9, 1.1, 2.0, 30.0];
        for curve in CURVES {
            for (a, b) in values.into_iter().flat_map(|a| [(a, 0.0), (a, 1.7), (0.25, -a)]) {
                let h = 1e-6;
                let value = |a: f64, b: f64| value_and_slopes(curve, at(a, b)).value;
                let slopes = value_and_slopes(curve, at(a, b)).slopes;
                let differences =
                    [value(a + h, b) - value(a - h, b), value(a, b + h) - value(a, b - h)].map(|d| d / (2.0 * h));
                for (slope, difference) in slopes.iter().zip(differences) {
                    let error = (slope - difference).abs();
                    assert!(error < 1e-6 * (1.0 + slope.abs()), "{curve:?} at {a}, {b}: {slope} {difference}");
                }
            }
        }
    }

    #[test]
    fn extreme_arguments_stay_finite() {
        for curve in CURVES {
            for (a, b) in [(-1e4, 0.0), (1e4, 0.0), (0.0, 1e4), (0.0, -1e4), (1e4, -1e4), (-1e4, 1e4)] {
                let point = value_and_slopes(curve, at(a, b));
                assert!(point.value.is_finite() && point.slopes.iter().all(|s| s.is_finite()), "{curve:?} {a} {b}");
            }
        }
        let middle = Point { value: std::f64::consts::LN_2, slopes: [-0.5, 0.5] };
        assert_eq!(value_and_slopes(CURVES[0], at(0.0, 0.0)), middle);
    }

    #[test]
    fn numbers_of_equal_rank_are_matched_within_a_kind() {
        let key = |kind, x, y| SortKeys { kind, x, y };
        let keys = [key(0, 3.0, 1.0), key(1, 0.5, 9.0), key(0, -1.0, 7.0), key(0, 2.0, -4.0), key(1, -0.0, 8.0)];
        // Kind 0: x -1 2 3 with y -4 1 7. Kind 1: x -0 0.5 with y 8 9.
        let expected = [[-4.0, 1.0], [-8.5, -8.5], [3.0, -4.0], [1.0, 3.0], [-8.0, -8.0]];
        assert_eq!(matched(&keys), expected);
        // Ties keep the order of the comparisons, and a single comparison is matched with itself.
        assert_eq!(matched(&[key(0, 1.0, 5.0), key(0, 1.0, 2.0)]), [[-1.0, -4.0], [-4.0, -1.0]]);
        assert_eq!(matched(&[key(2, 1.0, 0.25)]), [[0.75; 2]]);
        // NaN ranks last, so the ranks of the other values do not change.
        let with_nan = matched(&[key(0, -f64::NAN, 1.0), key(0, 4.0, 3.0), key(0, 2.0, 9.0)]);
        assert!(with_nan[0][0].is_nan() && with_nan[2][1].is_nan());
        assert_eq!([with_nan[0][1], with_nan[1][0], with_nan[1][1], with_nan[2][0]], [1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn the_divergence_is_a_mean_of_at_least_0() {
        assert_eq!(divergence([3.0, -1.0, 4.0].into_iter()), 2.0);
        assert_eq!(divergence([-3.0, 1.0].into_iter()), 0.0);
        assert_eq!(divergence([].into_iter()), 0.0);
        assert!(divergence([f64::NAN, -9.0].into_iter()).is_nan());
    }

    #[test]
    fn links_have_the_slope_of_their_differences() {
        for link in LINKS {
            for u in [-40.0f64, -3.0, -0.7, -0.69, -0.2, -1e-3, 0.0, 0.4, 2.0, 30.0] {
                if link == Link::Odds && u >= 0.0 {
                    continue;
                }
                let h = 1e-6 * u.abs().max(1e-3);
                let difference = (linked(link, u + h).0 - linked(link, u - h).0) / (2.0 * h);
                let slope = linked(link, u).1;
                assert!((slope - difference).abs() < 1e-5 * (1e-2 + slope.abs()), "{link:?} {u}: {slope} {difference}");
            }
            // A policy equal to its reference has rho 0.
            assert!(link == Link::Odds || linked(link, 0.0).0 == 0.0, "{link:?}");
        }
        let far = linked(Link::Alpha { alpha: 2.0 }, 1e4);
        assert!(far.0.is_finite() && far.1 == 0.0, "{far:?}");
        assert!(linked(Link::Alpha { alpha: 0.5 }, f64::NAN).0.is_nan());
    }
}
