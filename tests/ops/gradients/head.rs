//! Gradients of the vocabulary head (log-probs only, and fused with the loss), of its stored-logits
//! oracle and of the reward head.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, agree, check};
use common::head_preference::{Case, output};
use common::{normal, runs};

/// Hidden row 1 is the source of three head rows; rows 0 and 3 are the source of none. One target
/// repeats.
const HEAD: HeadDims = HeadDims { tokens: 5, hidden: 3, vocab: 7, rows: 6, softcap: None };
const SOURCE: [i32; 6] = [1, 4, 1, 2, 1, 2];
const TARGET: [i32; 6] = [0, 6, 3, 3, 5, 0];

fn head_inputs() -> [Vec<f64>; 2] {
    [normal("hidden", 15, 1.0), normal("head", 21, 1.0)]
}

pub fn head_logprob() {
    for (write, softcap) in [(Overwrite, None), (Add, None), (Overwrite, Some(0.9)), (Add, Some(4.0))] {
        let d = HeadDims { softcap, ..HEAD };
        let forward = |i: &[Vec<f64>]| runs::head_logprob_fwd(&ORACLE, d, &i[0], &i[1], &SOURCE, &TARGET);
        check(
            "head_logprob",
            &head_inputs(),
            &[Overwrite, write],
            |i| forward(i)[0].1.clone(),
            |i, dlogp, start| {
                let inputs = runs::HeadBwdInputs {
                    hidden: &i[0],
                    head: &i[1],
                    source: &SOURCE,
                    target: &TARGET,
                    lse: &forward(i)[1].1,
                    dlogp,
                    dhead: &start[1],
                    write,
                };
                runs::head_logprob_bwd(&ORACLE, d, &inputs).into_iter().map(|(_, values)| values).collect()
            },
        );
    }
}

pub fn logprob() {
    for (rows, vocab) in [(1, 1), (1, 4), (3, 5)] {
        let target: Vec<i32> = (0..rows).map(|r| ((2 * r + 1) % vocab) as i32).collect();
        let logits = normal("logits", rows * vocab, 2.0);
        let run = |logits: &[f64], dlogp: &[f64]| runs::logprob(&ORACLE, vocab, logits, &target, dlogp);
        if vocab == 1 {
            // The only token of a vocabulary of one has probability 1, whatever its logit.
            let outputs = run(&logits, &[1.5]);
            assert_eq!((outputs[0].1[0], outputs[2].1[0]), (0.0, 0.0));
            continue;
        }
        check(
            &format!("logprob {rows} x {vocab}"),
            &[logits],
            &[Overwrite],
            |i| run(&i[0], &vec![0.0; rows])[0].1.clone(),
            |i, dlogp, _| vec![run(&i[0], dlogp)[2].1.clone()],
        );
    }
}

/// Tests that the head without stored logits equals three separate ops (gather, linear layer and
/// stored-logits log-prob), forward and backward.
pub fn fused_equals_stored() {
    let [hidden, head] = head_inputs();
    let dlogp = normal("dlogp", HEAD.rows, 1.0);
    let fused = runs::head_logprob_fwd(&ORACLE, HEAD, &hidden, &head, &SOURCE, &TARGET);
    let inputs = runs::HeadBwdInputs {
        hidden: &hidden,
        head: &head,
        source: &SOURCE,
        target: &TARGET,
        lse: &fused[1].1,
        dlogp: &dlogp,
        dhead: &vec![0.0; head.len()],
        write: Overwrite,
    };
    let fused_gradients = runs::head_logprob_bwd(&ORACLE, HEAD, &inputs);

    let d = LinearDims { tokens: HEAD.rows, inputs: HEAD.hidden, outputs: HEAD.vocab };
    let gather = EmbeddingDims { tokens: HEAD.rows, vocab: HEAD.tokens, hidden: HEAD.hidden };
    let rows = &runs::embedding_fwd(&ORACLE, gather, &SOURCE, &hidden)[0].1;
    let logits = &runs::linear_fwd(&ORACLE, d, rows, &head, None)[0].1;
    let stored = runs::logprob(&ORACLE, HEAD.vocab, logits, &TARGET, &dlogp);
    let dlogits = &stored[2].1;
    let drows = &runs::linear_bwd_input(&ORACLE, d, dlogits, &head, &vec![0.0; rows.len()], Overwrite)[0].1;
    let zeros = vec![0.0; hidden.len()];
    let dhidden = &runs::embedding_bwd(&ORACLE, gather, &SOURCE, drows, &zeros, Overwrite)[0].1;
    let dhead = &runs::linear_bwd_weight(&ORACLE, d, dlogits, rows, &vec![0.0; head.len()], Overwrite)[0].1;
    agree("logp", &fused[0].1, &stored[0].1);
    agree("lse", &fused[1].1, &stored[1].1);
    agree("dhidden", &fused_gradients[0].1, dhidden);
    agree("dhead", &fused_gradients[1].1, dhead);
}

/// Returns the gradients of the hidden rows and of the head.
fn head_gradients(case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let outputs = with_inputs(case, inputs).run(&ORACLE).0;
    ["dhidden", "dhead"].map(|name| output(&outputs, name).to_vec()).into()
}

fn with_inputs(case: &Case, inputs: &[Vec<f64>]) -> Case {
    Case { hidden: inputs[0].clone(), head: inputs[1].clone(), ..case.clone() }
}

/// Checks the gradient of `sum of dy * loss` with respect to hidden rows and head, with `dy` in the weights.
pub fn head_preference() {
    for (reduce, write) in [(Reduce::Sum, Overwrite), (Reduce::Mean, Add)] {
        let mut case = Case::new("head_preference", &[&[2, 3], &[1, 2, 0, 1]], (3, 7));
        (case.reduce, case.write) = (reduce, write);
        case.dims.softcap = (reduce == Reduce::Mean).then_some(1.5);
        if let Some(p) = &mut case.loss {
            p.kind_scale = vec![1.0; KINDS];
            p.weight = vec![1.0; p.terms.len()];
            // Detached terms are constants for the gradient, but finite differences vary them.
            p.terms.iter_mut().for_each(|terms| terms.retain(|(_, sign)| sign.abs() == 1));
        }
        check(
            "head_preference",
            &[case.hidden.clone(), case.head.clone()],
            &[Overwrite, write],
            |i| output(&with_inputs(&case, i).run(&ORACLE).0, "loss").to_vec(),
            |i, dy, start| {
                let mut case = Case { dhead: start[1].clone(), ..case.clone() };
                case.loss.iter_mut().for_each(|p| p.weight = dy.to_vec());
                head_gradients(&case, i)
            },
        );
    }
}

/// Checks the gradient of `<direct, score>` without comparisons.
pub fn likelihood() {
    let mut case = Case::new("likelihood", &[&[2, 3], &[0, 4]], (3, 7));
    (case.loss, case.write, case.reduce) = (None, Add, Reduce::Mean);
    case.direct = Some(vec![0.0; 4]);
    check(
        "likelihood",
        &[case.hidden.clone(), case.head.clone()],
        &[Overwrite, Add],
        |i| output(&with_inputs(&case, i).run(&ORACLE).0, "score").to_vec(),
        |i, dy, start| {
            let case = Case { direct: Some(dy.to_vec()), dhead: start[1].clone(), ..case.clone() };
            head_gradients(&case, i)
        },
    );
}
