//! Gradients of SwiGLU and GeGLU, as separate ops and fused with the GEMMs around them.

use mapl::backend::Write::Overwrite;
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

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
    for (tokens, intermediate, gelu) in
        [(1, 1, None), (3, 4, None), (3, 4, Some(Gelu::Erf)), (1, 3, Some(Gelu::Tanh)), (3, 4, Some(Gelu::Tanh))]
    {
        let d = GluDims { tokens, intermediate, gelu };
        // A deviation of 3 reaches both tails of the sigmoid.
        check(
            &format!("glu {tokens} x {intermediate}, {gelu:?}"),
            &[normal("gate_up", 2 * tokens * intermediate, 3.0)],
            &[Overwrite],
            |i| runs::glu_fwd(&ORACLE, d, &i[0])[0].1.clone(),
            |i, dact, _| vec![runs::glu_bwd(&ORACLE, d, dact, &i[0])[0].1.clone()],
        );
    }
}
