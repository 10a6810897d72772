//! User-defined loss curves. A curve is a function of the argument z and can be defined in any crate.

use crate::{Error, Result};

/// A curve over z, the argument of a comparison. [`Curve::Own`](super::Curve::Own) passes it to every
/// backend. The kernel backend evaluates it on the host, so the host waits for the scores once per step.
///
/// ```
/// use mapl::backend::contract::OwnCurve;
///
/// /// `softplus(-z)²`
/// static SQUARED: OwnCurve = OwnCurve {
///     name: "squared",
///     at: |z| {
///         let loss = (-z.abs()).exp().ln_1p() + (-z).max(0.0);
///         (loss * loss, -2.0 * loss / (1.0 + z.exp()))
///     },
/// };
/// SQUARED.check().unwrap();
/// ```
pub struct OwnCurve {
    /// Name in formulas and fingerprints.
    pub name: &'static str,
    /// Value and slope at z.
    pub at: fn(f64) -> (f64, f64),
}

/// The slope is checked at `PLACES` points from -`REACH` to `REACH`. `OFF` shifts the points, because kinks
/// are usually at round values.
const REACH: f64 = 20.0;
const PLACES: u32 = 161;
const OFF: f64 = 0.017;
const STEP: f64 = 1e-4;
/// Largest error of the slope, relative to 1 plus the magnitude of the finite difference.
const TOLERANCE: f64 = 1e-5;

impl OwnCurve {
    /// Compares the slope with finite differences of the value, for z from -20 to 20.
    /// Returns [`Error::Usage`] with the first point at which they differ or either is not finite.
    pub fn check(&self) -> Result<()> {
        for place in 0..PLACES {
            let z = REACH * (2.0 * f64::from(place) / f64::from(PLACES - 1) - 1.0) + OFF;
            let (_, slope) = (self.at)(z);
            let value = |z: f64| (self.at)(z).0;
            let near = value(z + STEP) - value(z - STEP);
            let difference = (8.0 * near - (value(z + 2.0 * STEP) - value(z - 2.0 * STEP))) / (12.0 * STEP);
            let share = (slope - difference).abs() / (TOLERANCE * (1.0 + difference.abs()));
            if share.is_nan() || share > 1.0 {
                return Err(Error::Usage(format!(
                    "curve {}: the slope at z = {z:.3} is {slope}, but finite differences of the value are {difference}",
                    self.name
                )));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for OwnCurve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Compares names, because a name identifies one function.
impl PartialEq for OwnCurve {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
