//! Gradients of LayerNorm, GELU and the scale op.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

pub fn layer_norm() {
    for (tokens, hidden, eps) in [(3, 2, 0.1), (3, 5, 1e-3), (4, 8, 0.5)] {
        let d = LayerNormDims { tokens, hidden, eps };
        let (x, weight) = (normal("x", tokens * hidden, 1.0), normal("w", 2 * hidden, 1.0));
        for write in [Overwrite, Add] {
            check(
                &format!("layer norm {tokens} x {hidden}"),
                &[x.clone(), weight.clone()],
                &[write; 2],
                |i| runs::layer_norm_fwd(&ORACLE, d, &i[0], &i[1])[0].1.clone(),
                |i, dy, start| {
                    let stats = &runs::layer_norm_fwd(&ORACLE, d, &i[0], &i[1])[1].1;
                    let inputs = [dy, &i[0][..], stats, &i[1], &start[0], &start[1]];
                    let outputs = runs::layer_norm_bwd(&ORACLE, d, inputs, write);
                    outputs.into_iter().map(|(_, values)| values).collect()
                },
            );
        }
    }
}

pub fn gelu() {
    for form in [Gelu::Erf, Gelu::Tanh] {
        let d = GeluDims { tokens: 3, intermediate: 7, form };
        check(
            &format!("{form:?}"),
            // A deviation of 2 reaches both tails.
            &[normal("gelu", 21, 2.0)],
            &[Overwrite],
            |i| runs::gelu_fwd(&ORACLE, d, &i[0])[0].1.clone(),
            |i, dy, _| vec![runs::gelu_bwd(&ORACLE, d, &i[0], dy)[0].1.clone()],
        );
    }
}

pub fn scale() {
    let d = ScaleDims { tokens: 2, hidden: 3, factor: -1.5 };
    let (x, addend) = (normal("x", 6, 1.0), normal("addend", 6, 1.0));
    check(
        "scale",
        &[x],
        &[Overwrite],
        |i| runs::scale(&ORACLE, d, &i[0], Some(&addend))[0].1.clone(),
        |_, dy, _| vec![runs::scale(&ORACLE, d, dy, None)[0].1.clone()],
    );
}
