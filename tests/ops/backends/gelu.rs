//! GELU against the reference, in both tails.

use common::{check, normal, runs};
use mapl::backend::contract::*;

#[test]
fn both_forms_and_both_tails() {
    for form in [Gelu::Erf, Gelu::Tanh] {
        for (tokens, intermediate) in [(0, 3), (1, 1), (7, 33), (3, 264)] {
            let d = GeluDims { tokens, intermediate, form };
            let size = tokens * intermediate;
            let (x, dact) = (normal("x", size, 3.0), normal("dact", size, 1.0));
            let label = format!("{form:?} {tokens} x {intermediate}");
            check!(&label, |on: &_| runs::gelu_fwd(on, d, &x), |p, _: &str| d.tolerance(p).scaled(4.0));
            check!(&label, |on: &_| runs::gelu_bwd(on, d, &x, &dact), |p, _: &str| d.tolerance(p).scaled(8.0));
        }
        let d = GeluDims { tokens: 1, intermediate: 8, form };
        let x = [-1e4, -40.0, -6.0, -1e-3, 0.0, 1e-3, 40.0, 1e4];
        check!(format!("{form:?}"), |on: &_| runs::gelu_fwd(on, d, &x), |p, _: &str| d.tolerance(p));
        check!(format!("{form:?}"), |on: &_| runs::gelu_bwd(on, d, &x, &[1.0; 8]), |p, _: &str| d.tolerance(p));
    }
}
