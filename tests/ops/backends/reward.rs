//! Reward head against the reference.

use common::{check, normal, runs, stored_as_acc};
use mapl::backend::Write;
use mapl::backend::contract::*;

#[test]
fn forward_and_backward() {
    for (tokens, hidden, rows) in [(0, 16, vec![]), (7, 33, vec![6]), (129, 80, vec![3, 0, 128, 77]), (9, 257, vec![])]
    {
        let d = RewardDims { tokens, hidden, seqs: rows.len() };
        let inputs = [normal("h", tokens * hidden, 1.0), normal("w", hidden, 1.0)];
        let (dscore, start) = (normal("ds", rows.len(), 1.0), normal("dw", hidden, 1.0));
        for write in [Write::Overwrite, Write::Add] {
            let tolerance = |p, name: &str| d.tolerance(if name == "dhidden" { p } else { stored_as_acc(p) });
            check!(
                format!("{tokens} x {hidden}, {write:?}"),
                |on: &_| runs::reward_head(on, d, [&inputs[0], &inputs[1], &dscore, &start], &rows, write),
                tolerance
            );
        }
    }
}
