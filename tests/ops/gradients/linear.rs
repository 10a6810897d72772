//! Gradients of linear layers.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

pub fn linear() {
    for (tokens, inputs, outputs) in [(1, 1, 1), (1, 5, 2), (4, 3, 5)] {
        let d = LinearDims { tokens, inputs, outputs };
        let (x, weight) = (normal("x", tokens * inputs, 1.0), normal("weight", outputs * inputs, 1.0));
        let bias = normal("bias", outputs, 1.0);
        for write in [Overwrite, Add] {
            let backward = |i: &[Vec<f64>], dy: &[f64], start: &[Vec<f64>]| {
                vec![
                    runs::linear_bwd_input(&ORACLE, d, dy, &i[1], &start[0], write)[0].1.clone(),
                    runs::linear_bwd_weight(&ORACLE, d, dy, &i[0], &start[1], write)[0].1.clone(),
                ]
            };
            check(
                &format!("linear {tokens} x {inputs} x {outputs}"),
                &[x.clone(), weight.clone()],
                &[write; 2],
                |i| runs::linear_fwd(&ORACLE, d, &i[0], &i[1], None)[0].1.clone(),
                backward,
            );
            check(
                &format!("linear with bias {tokens} x {inputs} x {outputs}"),
                &[x.clone(), weight.clone(), bias.clone()],
                &[write; 3],
                |i| runs::linear_fwd(&ORACLE, d, &i[0], &i[1], Some(&i[2]))[0].1.clone(),
                |i, dy, start| {
                    let mut gradients = backward(i, dy, start);
                    gradients.push(runs::bias_bwd(&ORACLE, d, dy, &start[2], write)[0].1.clone());
                    gradients
                },
            );
        }
    }
}
