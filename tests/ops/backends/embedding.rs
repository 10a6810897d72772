//! Embedding against the reference: repeated and absent ids, one token, rows that are not a
//! multiple of the vector width, no tokens.

use common::{check, indices, normal, runs, stored_as_acc};
use mapl::backend::Write;
use mapl::backend::contract::*;

#[test]
fn gather_and_scatter_add() {
    for (tokens, vocab, hidden) in [(0, 5, 4), (1, 257, 16), (7, 3, 33), (129, 257, 80), (900, 1999, 24)] {
        let d = EmbeddingDims { tokens, vocab, hidden };
        let label = format!("{tokens} x {vocab} x {hidden}");
        let (ids, table) = (indices("ids", tokens, vocab), normal("table", vocab * hidden, 1.0));
        let dx = normal("dx", tokens * hidden, 1.0);
        let exact = |_, _: &str| Tolerance { atol: 0.0, rtol: 0.0 };
        // Inputs are rounded to the backend's precision before the op, so the copy is exact.
        check!(label, |on: &_| runs::embedding_fwd(on, d, &ids, &table), exact);
        for write in [Write::Overwrite, Write::Add] {
            let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), tokens).scaled(2.0);
            check!(label, |on: &_| runs::embedding_bwd(on, d, &ids, &dx, &table, write), tolerance);
        }
    }
}

#[test]
fn gradient_of_one_repeated_token() {
    let d = EmbeddingDims { tokens: 500, vocab: 9, hidden: 20 };
    let (ids, dx, table) = (vec![8; 500], normal("dx", 10_000, 1.0), normal("table", 180, 1.0));
    let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 500).scaled(10.0);
    check!("one repeated token", |on: &_| runs::embedding_bwd(on, d, &ids, &dx, &table, Write::Overwrite), tolerance);
}

#[test]
fn padding_has_no_effect_on_the_gradient() {
    let d = EmbeddingDims { tokens: 40, vocab: 9, hidden: 20 };
    let (mut ids, dx, table) = (indices("ids", 40, 9), normal("dx", 800, 1.0), normal("table", 180, 1.0));
    for at in [0, 7, 8, 39] {
        ids[at] = -1;
    }
    let kept: Vec<usize> = (0..40).filter(|&t| ids[t] >= 0).collect();
    let without = EmbeddingDims { tokens: kept.len(), ..d };
    let ids_without: Vec<i32> = kept.iter().map(|&t| ids[t]).collect();
    let dx_without: Vec<f64> = kept.iter().flat_map(|&t| dx[t * 20..(t + 1) * 20].to_vec()).collect();
    for write in [Write::Overwrite, Write::Add] {
        let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 40).scaled(2.0);
        check!("padding", |on: &_| runs::embedding_bwd(on, d, &ids, &dx, &table, write), tolerance);
        let exact = |_, _: &str| Tolerance { atol: 0.0, rtol: 0.0 };
        check!(
            "with and without padding",
            |on: &_| {
                let padded = runs::embedding_bwd(on, d, &ids, &dx, &table, write);
                let plain = runs::embedding_bwd(on, without, &ids_without, &dx_without, &table, write);
                vec![("difference", padded[0].1.iter().zip(&plain[0].1).map(|(a, b)| a - b).collect::<Vec<f64>>())]
            },
            exact
        );
    }
}
