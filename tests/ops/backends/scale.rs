//! The scale op against the reference.

use common::{check, normal, runs};
use mapl::backend::contract::*;

#[test]
fn with_and_without_an_addend() {
    for (tokens, hidden, factor) in [(0, 3, 2.0), (1, 1, 0.25), (7, 33, -1.5), (3, 264, 12.0)] {
        let d = ScaleDims { tokens, hidden, factor };
        let (x, addend) = (normal("x", tokens * hidden, 1.0), normal("addend", tokens * hidden, 1.0));
        for addend in [None, Some(&addend[..])] {
            let tolerance = |p, _: &str| d.tolerance(p).scaled(4.0 * factor.abs().max(1.0));
            check!(format!("{tokens} x {hidden}"), |on: &_| runs::scale(on, d, &x, addend), tolerance);
        }
    }
}
