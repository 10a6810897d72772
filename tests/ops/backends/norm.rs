//! RMSNorm against the reference: one token, rows that are not a multiple of the vector width, more
//! tokens than a slice of the weight gradient, all-equal rows, rows of zeros, tiny rows dominated
//! by eps.

use common::{check, normal, runs, stored_as_acc};
use mapl::backend::Write;
use mapl::backend::contract::*;

fn forward_and_backward(label: &str, d: NormDims, x: &[f64]) {
    let size = d.tokens * d.hidden;
    let (residual, weight) = (normal("residual", size, 1.0), normal("weight", d.hidden, 1.0));
    let tolerance = |p, _: &str| d.tolerance(p);
    check!(label, |on: &_| runs::norm_fwd(on, d, x, None, &weight), |p, name: &str| {
        // rstd of a tiny row is large; its relative error comes from one chain of roundings.
        if name == "rstd" { Tolerance { atol: 0.0, rtol: d.tolerance(stored_as_acc(p)).rtol } } else { d.tolerance(p) }
    });
    check!(label, |on: &_| runs::norm_fwd(on, d, x, Some(&residual), &weight), tolerance);
    let oracle = common::On::new(&mapl::backend::reference::Reference, Precision::F32);
    let rstd = runs::norm_fwd(&oracle, d, x, None, &weight)[1].1.clone();
    let largest = rstd.iter().copied().fold(1.0, f64::max);
    let (dy, start) = (normal("dy", size, 1.0), normal("start", size, 1.0));
    for write in [Write::Overwrite, Write::Add] {
        let inputs = runs::NormBwdInputs {
            dy: &dy,
            sum: x,
            rstd: &rstd,
            weight: &weight,
            dsum: &start,
            dweight: &weight,
            write,
        };
        // dsum is proportional to rstd; dweight sums over tokens.
        let tolerance = |p, name: &str| match name {
            "dsum" => d.tolerance(p).scaled(largest),
            _ => Tolerance::dot(stored_as_acc(p), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0)),
        };
        check!(format!("{label}, {write:?}"), |on: &_| runs::norm_bwd(on, d, &inputs), tolerance);
    }
}

#[test]
fn sizes_with_and_without_full_vectors() {
    // Rows of 1096 do not fit the registers of a warp, and rows of 8200 not those of a block.
    for (tokens, hidden) in [(0, 16), (1, 1), (1, 64), (7, 33), (129, 80), (300, 257), (35, 904), (34, 1096), (3, 8200)]
    {
        let d = NormDims { tokens, hidden, eps: 1e-6, offset: 0.0 };
        forward_and_backward(&format!("{tokens} x {hidden}"), d, &normal("x", tokens * hidden, 1.0));
    }
}

/// Weights are stored as their distance from 1 and lie near 0. The sum with 1 must not be rounded to the
/// precision of the weight.
#[test]
fn weights_near_one() {
    for (tokens, hidden) in [(3, 7), (20, 64)] {
        let d = NormDims { tokens, hidden, eps: 1e-6, offset: 1.0 };
        let [x, base, weight] = [("x", 1.0), ("base", 1.0), ("weight", 0.01)]
            .map(|(name, size)| normal(name, if name == "weight" { hidden } else { tokens * hidden }, size));
        forward_and_backward(&format!("{tokens} x {hidden}, offset 1"), d, &x);
        let tolerance = |p: Precision, _: &str| {
            let sums = d.tolerance(p).scaled(2.0);
            Tolerance { atol: sums.atol + 8.0 * p.act_roundoff(), ..sums }
        };
        check!("offset 1", |on: &_| runs::norm_on_base(on, d, [&x, &weight], None, Some(&base)), tolerance);
    }
    for whole in [false, true] {
        let d = QkNormDims { tokens: 7, heads: 4, kv_heads: 2, head_dim: 10, whole, eps: 1e-5, offset: 1.0 };
        queries_and_keys(d, 1.0);
    }
    // The sum with 1 is computed in f32, so a bf16 weight that would vanish in a bf16 sum changes the result.
    let d = NormDims { tokens: 1, hidden: 8, eps: 1e-12, offset: 1.0 };
    let f32_result = |weight: f64| {
        let backend = mapl::backend::cpu::Cpu::new();
        let on = common::On::new(&backend, Precision::F32);
        runs::norm_fwd(&on, d, &[1.0; 8], None, &[weight; 8])[0].1[0]
    };
    assert!(f32_result(2f64.powi(-20)) > f32_result(0.0));
}

#[test]
fn equal_zero_and_tiny_rows() {
    let d = NormDims { tokens: 3, hidden: 48, eps: 1e-5, offset: 0.0 };
    let mut x = vec![0.25; 144];
    x[48..96].fill(0.0);
    x[96..].copy_from_slice(&normal("tiny", 48, 1e-4));
    forward_and_backward("equal, zero and tiny rows", d, &x);
}

#[test]
fn queries_and_keys_by_head() {
    // Cases: heads with and without full vectors, more tokens than a slice, equally many query and key heads,
    // tiny values.
    for (tokens, heads, kv_heads, head_dim, size) in
        [(0, 2, 1, 16, 1.0), (1, 1, 1, 2, 1.0), (7, 4, 2, 10, 1.0), (70, 3, 1, 64, 1.0), (9, 2, 2, 300, 1e-4)]
    {
        queries_and_keys(QkNormDims { tokens, heads, kv_heads, head_dim, whole: false, eps: 1e-5, offset: 0.0 }, size);
    }
}

/// Tests rows with and without full vectors, rows with more elements than a block has threads, and more
/// tokens than a slice.
#[test]
fn all_queries_and_all_keys() {
    for (tokens, heads, kv_heads, head_dim, size) in
        [(0, 2, 1, 16, 1.0), (1, 1, 1, 2, 1.0), (7, 4, 2, 10, 1.0), (37, 4, 1, 16, 1.0), (5, 6, 2, 200, 1e-4)]
    {
        queries_and_keys(QkNormDims { tokens, heads, kv_heads, head_dim, whole: true, eps: 1e-5, offset: 0.0 }, size);
    }
}

#[test]
fn norm_behind_a_block() {
    for (tokens, hidden) in [(1, 1), (3, 7), (5, 64), (40, 700), (2, 1096), (2, 8200)] {
        let d = NormDims { tokens, hidden, eps: 1e-6, offset: 0.0 };
        let [x, base] = ["x", "base"].map(|name| normal(name, tokens * hidden, 1.0));
        let weight = normal("weight", hidden, 1.0);
        let run = |residual: Option<&[f64]>| {
            let label = format!("{tokens} x {hidden}, residual: {}", residual.is_some());
            // The base can nearly cancel the normalised value, but the rounding error keeps the size of that
            // value.
            let tolerance = |p: Precision, _: &str| {
                let sums = d.tolerance(p).scaled(2.0);
                Tolerance { atol: sums.atol + 8.0 * p.act_roundoff(), ..sums }
            };
            check!(label, |on: &_| runs::norm_on_base(on, d, [&x, &weight], residual, Some(&base)), tolerance);
        };
        run(None);
        run(Some(&base));
    }
}

fn queries_and_keys(d: QkNormDims, size: f64) {
    let QkNormDims { tokens, heads, kv_heads, head_dim, .. } = d;
    {
        let label = format!(
            "{tokens} tokens, {heads} and {kv_heads} heads x {head_dim}, whole: {}, offset {}",
            d.whole, d.offset
        );
        let (qkv, weight) = (normal("qkv", tokens * d.width(), size), normal("weight", d.weights(), 1.0));
        for copies in [false, true] {
            let tolerance = |p, _: &str| d.tolerance(p);
            check!(&label, |on: &_| runs::qk_norm_fwd(on, d, &qkv, &weight, copies), tolerance);
        }
        let x = normal("x", tokens * d.normalised() * head_dim, size);
        let (dqkv, start) = (normal("dqkv", tokens * d.width(), 1.0), normal("start", d.weights(), 1.0));
        // rstd, and with it the gradient, is at most 1 / sqrt(eps).
        let largest = if size < 1.0 { 1e-5f64.sqrt().recip() } else { 3.0 };
        let terms = tokens * heads.max(kv_heads);
        for write in [Write::Overwrite, Write::Add] {
            let tolerance = |p, name: &str| match name {
                "dqkv" => d.tolerance(p).scaled(largest),
                _ => Tolerance::dot(stored_as_acc(p), terms).scaled((terms as f64).sqrt().max(1.0)),
            };
            let inputs = [&x[..], &weight, &dqkv, &start];
            check!(format!("{label}, {write:?}"), |on: &_| runs::qk_norm_bwd(on, d, inputs, write), tolerance);
        }
    }
}

/// QK-norm neither reads nor writes the values of a row, and its copy equals the input.
#[test]
fn values_stay_unchanged_and_the_copy_is_the_input() {
    let d = QkNormDims { tokens: 5, heads: 3, kv_heads: 2, head_dim: 8, whole: false, eps: 1e-6, offset: 0.0 };
    let (qkv, weight) = (vec![0.5; d.tokens * d.width()], vec![2.0; 16]);
    let cpu = mapl::backend::cpu::Cpu::new();
    let on = common::On::new(&cpu, Precision::F32);
    let outputs = runs::qk_norm_fwd(&on, d, &qkv, &weight, true);
    assert_eq!(outputs[1].1, vec![0.5; 5 * 5 * 8]);
    for row in outputs[0].1.chunks_exact(d.width()) {
        assert!(row[..40].iter().all(|x| (x - 2.0).abs() < 1e-4), "{row:?}");
        assert_eq!(row[40..], [0.5; 16]);
    }
}
