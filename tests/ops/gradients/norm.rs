//! Gradients of RMSNorm, of rows and of query and key heads.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

/// `x` and `residual` both have the gradient of their sum; finite differences check each of them.
pub fn norm() {
    for (tokens, hidden, eps, offset) in [(1, 1, 0.1, 0.0), (3, 5, 1e-6, 0.0), (4, 8, 0.5, 0.0), (4, 8, 0.5, 1.0)] {
        let (d, size) = (NormDims { tokens, hidden, eps, offset }, tokens * hidden);
        let (x, residual, weight) = (normal("x", size, 1.0), normal("residual", size, 1.0), normal("w", hidden, 1.0));
        for write in [Overwrite, Add] {
            let backward = |sum: &[f64], rstd: &[f64], weight: &[f64], dy: &[f64], dsum: &[f64], dweight: &[f64]| {
                let inputs = runs::NormBwdInputs { dy, sum, rstd, weight, dsum, dweight, write };
                let outputs = runs::norm_bwd(&ORACLE, d, &inputs);
                (outputs[0].1.clone(), outputs[1].1.clone())
            };
            check(
                &format!("norm {tokens} x {hidden}, offset {offset}"),
                &[x.clone(), weight.clone()],
                &[write; 2],
                |i| runs::norm_fwd(&ORACLE, d, &i[0], None, &i[1])[0].1.clone(),
                |i, dy, start| {
                    let rstd = &runs::norm_fwd(&ORACLE, d, &i[0], None, &i[1])[1].1;
                    let (dsum, dweight) = backward(&i[0], rstd, &i[1], dy, &start[0], &start[1]);
                    vec![dsum, dweight]
                },
            );
            // With a residual the sum is an output too: dsum already holds its gradient, and the op
            // adds to it.
            if write == Add {
                let outputs = |i: &[Vec<f64>]| runs::norm_fwd(&ORACLE, d, &i[0], Some(&i[1]), &i[2]);
                check(
                    &format!("norm of a sum {tokens} x {hidden}"),
                    &[x.clone(), residual.clone(), weight.clone()],
                    &[Overwrite, Overwrite, Add],
                    |i| [outputs(i)[0].1.clone(), outputs(i)[2].1.clone()].concat(),
                    |i, dy, start| {
                        let forward = outputs(i);
                        let (dy, dsum) = dy.split_at(size);
                        let (dsum, dweight) = backward(&forward[2].1, &forward[1].1, &i[2], dy, dsum, &start[2]);
                        vec![dsum.clone(), dsum, dweight]
                    },
                );
            }
        }
    }
}

/// Checks the norm of query and key heads. Queries, keys and values of a token differ; values pass unchanged.
pub fn heads() {
    for (tokens, heads, kv_heads, head_dim, eps, offset) in
        [(3, 2, 1, 4, 1e-6, 0.0), (2, 3, 3, 6, 0.5, 0.0), (2, 3, 3, 6, 0.5, 1.0)]
    {
        for (whole, write) in [(false, Overwrite), (false, Add), (true, Overwrite), (true, Add)] {
            let d = QkNormDims { tokens, heads, kv_heads, head_dim, whole, eps, offset };
            let (qkv, weight) = (normal("qkv", tokens * d.width(), 1.0), normal("w", d.weights(), 1.0));
            check(
                &format!("norm of {heads} and {kv_heads} heads x {head_dim}, whole: {whole}"),
                &[qkv, weight],
                &[Overwrite, write],
                |i| runs::qk_norm_fwd(&ORACLE, d, &i[0], &i[1], false)[0].1.clone(),
                |i, dy, start| {
                    let x = &runs::qk_norm_fwd(&ORACLE, d, &i[0], &i[1], true)[1].1;
                    let outputs = runs::qk_norm_bwd(&ORACLE, d, [x, &i[1], dy, &start[1]], write);
                    outputs.into_iter().map(|(_, values)| values).collect()
                },
            );
        }
    }
}

/// Checks a norm after a block (post-norm): the gradient of the base equals the gradient of the result.
pub fn on_base() {
    let d = NormDims { tokens: 3, hidden: 5, eps: 1e-6, offset: 1.0 };
    let forward = |i: &[Vec<f64>]| runs::norm_on_base(&ORACLE, d, [&i[0], &i[1]], None, Some(&i[2]));
    check(
        "norm on a base",
        &[normal("x", 15, 1.0), normal("w", 5, 1.0), normal("base", 15, 1.0)],
        &[Overwrite, Overwrite, Overwrite],
        |i| forward(i)[0].1.clone(),
        |i, dy, start| {
            let rstd = &forward(i)[1].1;
            let (sum, weight, dsum, dweight) = (&i[0], &i[1], &start[0], &start[1]);
            let inputs = runs::NormBwdInputs { dy, sum, rstd, weight, dsum, dweight, write: Overwrite };
            let outputs = runs::norm_bwd(&ORACLE, d, &inputs);
            vec![outputs[0].1.clone(), outputs[1].1.clone(), dy.to_vec()]
        },
    );
}
