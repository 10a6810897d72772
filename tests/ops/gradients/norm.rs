//! Gradients of embedding, RMSNorm, linear layers, RoPE and gated activations.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

pub fn embedding() {
    // Id 3 occurs three times, so its gradient is a sum. Ids 0 and 5 never occur: only `Overwrite`
    // clears their rows.
    let (d, ids) = (EmbeddingDims { tokens: 6, vocab: 6, hidden: 3 }, [3, 1, 3, 4, 3, 2]);
    for write in [Overwrite, Add] {
        check(
            "embedding",
            &[normal("table", 18, 1.0)],
            &[write],
            |i| runs::embedding_fwd(&ORACLE, d, &ids, &i[0])[0].1.clone(),
            |_, dx, start| vec![runs::embedding_bwd(&ORACLE, d, &ids, dx, &start[0], write)[0].1.clone()],
        );
    }
}

/// `x` and `residual` both have the gradient of their sum; finite differences check each of them.
pub fn norm() {
    for (tokens, hidden, eps) in [(1, 1, 0.1), (3, 5, 1e-6), (4, 8, 0.5)] {
        let (d, size) = (NormDims { tokens, hidden, eps }, tokens * hidden);
        let (x, residual, weight) = (normal("x", size, 1.0), normal("residual", size, 1.0), normal("w", hidden, 1.0));
        for write in [Overwrite, Add] {
            let backward = |sum: &[f64], rstd: &[f64], weight: &[f64], dy: &[f64], dsum: &[f64], dweight: &[f64]| {
                let inputs = runs::NormBwdInputs { dy, sum, rstd, weight, dsum, dweight, write };
                let outputs = runs::norm_bwd(&ORACLE, d, &inputs);
                (outputs[0].1.clone(), outputs[1].1.clone())
            };
            check(
                &format!("norm {tokens} x {hidden}"),
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

/// Two rotated heads and an unrotated one; positions are out of order and repeated.
const ROPE: RopeDims = RopeDims { tokens: 4, heads: 2, unrotated_heads: 1, head_dim: 6, positions: 9 };
const POSITIONS: [i32; 4] = [0, 8, 3, 3];

fn rotate(qkv: &[f64], back: bool) -> Vec<f64> {
    let angle = |i: usize| (i / 3) as f64 * 100f64.powf(-((i % 3) as f64) / 3.0);
    let cos: Vec<f64> = (0..27).map(|i| angle(i).cos()).collect();
    let sin: Vec<f64> = (0..27).map(|i| angle(i).sin()).collect();
    runs::rope(&ORACLE, ROPE, &POSITIONS, (&cos, &sin), qkv, back)[0].1.clone()
}

pub fn rope() {
    check("rope", &[normal("qkv", 72, 1.0)], &[Overwrite], |i| rotate(&i[0], false), |_, dy, _| vec![rotate(dy, true)]);
}

pub fn rope_transpose() {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let (x, y) = (normal("rope x", 72, 1.0), normal("rope y", 72, 1.0));
    let (forward, back) = (dot(&rotate(&x, false), &y), dot(&x, &rotate(&y, true)));
    // 72 products of magnitude one, each rounded a few times.
    assert!((forward - back).abs() < 1e-13 * 72.0, "forward {forward}, transpose {back}");
    assert!((forward - dot(&x, &y)).abs() > 0.1, "the rotation changes nothing");
}

pub fn linear_glu() {
    let (tokens, hidden, intermediate) = (3, 4, 2);
    let (d, up) = (LinearGluDims { tokens, hidden, intermediate }, LinearDims { tokens, inputs: hidden, outputs: 4 });
    let down = LinearDims { tokens, inputs: intermediate, outputs: hidden };
    let (x, gates) = (normal("x", 12, 1.0), normal("gates", 16, 1.0));
    let last = normal("last", 8, 1.0);
    // A whole gated layer uses both ops: down(act(x)).
    check(
        "linear_glu",
        &[x, gates],
        &[Overwrite; 2],
        |i| {
            let act = &runs::linear_glu_fwd(&ORACLE, d, &i[0], &i[1], false)[0].1;
            runs::linear_fwd(&ORACLE, down, act, &last, None)[0].1.clone()
        },
        |i, dy, start| {
            let gate_up = &runs::linear_glu_fwd(&ORACLE, d, &i[0], &i[1], true)[0].1;
            let dgate_up = &runs::linear_glu_bwd(&ORACLE, d, dy, &last, gate_up)[0].1;
            vec![
                runs::linear_bwd_input(&ORACLE, up, dgate_up, &i[1], &start[0], Overwrite)[0].1.clone(),
                runs::linear_bwd_weight(&ORACLE, up, dgate_up, &i[0], &start[1], Overwrite)[0].1.clone(),
            ]
        },
    );
}

pub fn glu() {
    for (tokens, intermediate) in [(1, 1), (3, 4)] {
        let d = GluDims { tokens, intermediate };
        // A deviation of 3 reaches both tails of the sigmoid.
        check(
            &format!("glu {tokens} x {intermediate}"),
            &[normal("gate_up", 2 * tokens * intermediate, 3.0)],
            &[Overwrite],
            |i| runs::glu_fwd(&ORACLE, d, &i[0])[0].1.clone(),
            |i, dact, _| vec![runs::glu_bwd(&ORACLE, d, dact, &i[0])[0].1.clone()],
        );
    }
}
