//! Soft cap of scores and logits: c tanh(x / c), which is about x near 0 and stays between -c and c.

use super::{Result, expect};

/// Value and slope of the soft cap at x; without a cap, x and 1.
pub fn capped(softcap: Option<f64>, x: f64) -> (f64, f64) {
    softcap.map_or((x, 1.0), |cap| {
        let t = (x / cap).tanh();
        (cap * t, 1.0 - t * t)
    })
}

pub(super) fn check_softcap(op: &'static str, softcap: Option<f64>) -> Result<()> {
    let positive = softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite());
    expect(op, "softcap", positive, "a positive number", format!("{softcap:?}"))
}
