//! Gradients of the reward head.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

pub fn reward_head() {
    // Last rows of the sequences are not in row order; no sequence ends at row 0 or 3.
    let (d, rows) = (RewardDims { tokens: 5, hidden: 4, seqs: 3 }, [4, 1, 2]);
    let (zeros, ignored) = (vec![0.0; 3], vec![0.0; 4]);
    for write in [Overwrite, Add] {
        let run = |inputs: [&[f64]; 4]| runs::reward_head(&ORACLE, d, inputs, &rows, write);
        check(
            "reward_head",
            &[normal("hidden", 20, 1.0), normal("weight", 4, 1.0)],
            &[Overwrite, write],
            |i| run([&i[0], &i[1], &zeros, &ignored])[0].1.clone(),
            |i, dscore, start| {
                let outputs = run([&i[0], &i[1], dscore, &start[1]]);
                vec![outputs[1].1.clone(), outputs[2].1.clone()]
            },
        );
    }
}
