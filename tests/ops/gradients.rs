//! The gradient of every op of the f64 reference, each op alone, against finite differences; the optimiser against its
//! formulas; empty and extreme inputs. `tests/training/grads.rs` does the same for the whole model, and `tests/ops/backends`
//! compare the remaining backends with the reference.
//!
//! A case gives an op's inputs, its forward and its gradient; [`difference::check`] does the rest. The list below makes
//! the tests, so a case cannot be listed without being run, and an op without a case fails `every_op_has_a_case`.

mod attention;
mod difference;
mod edges;
mod head;
mod nn;
mod optim;
mod preference;
mod segment;

use std::collections::BTreeSet;

use mapl::backend::OPS;

/// `test: case => ops whose gradient (or update) it proves`.
macro_rules! cases {
    ($($test:ident: $case:path => [$($op:literal),+];)*) => {
        $(
            #[test]
            fn $test() {
                $case();
            }
        )*
        const COVERED: &[&str] = &[$($($op),+),*];
    };
}

cases! {
    embedding: nn::embedding => ["embedding_bwd"];
    norm: nn::norm => ["norm_bwd"];
    linear: nn::linear => ["linear_bwd_input", "linear_bwd_weight", "bias_bwd"];
    rope: nn::rope => ["rope_bwd"];
    rope_bwd_is_the_transpose: nn::rope_transpose => ["rope_bwd"];
    glu: nn::glu => ["glu_bwd"];
    linear_glu: nn::linear_glu => ["linear_glu_bwd"];
    attention_over_trees: attention::trees => ["attention_bwd"];
    attention_hides_the_rest: attention::hidden_rows => ["attention_bwd"];
    head_logprob: head::head_logprob => ["head_logprob_bwd"];
    logprob: head::logprob => ["logprob_bwd"];
    head_logprob_is_linear_then_logprob: head::fused_equals_stored => ["head_logprob_bwd", "logprob_bwd"];
    head_preference: head::head_preference => ["head_preference"];
    head_preference_of_likelihood: head::likelihood => ["head_preference"];
    reward_head: head::reward_head => ["reward_head_bwd"];
    segment_sum: segment::sum_and_mean => ["segment_sum_bwd"];
    preference_curves: preference::curves => ["preference_fwd"];
    preference_detached: preference::detached_terms_are_constants => ["preference_fwd"];
    preference_sums: preference::sums => ["preference_fwd"];
    gradient_norm: optim::norm_and_clip => ["grad_norm"];
    gradient_norm_by_patches: optim::norms_of_patches => ["grad_norm", "linear_bwd_weight"];
    adamw_formula: optim::textbook_step => ["adamw"];
    adamw_bias_correction: optim::bias_correction => ["adamw"];
    adamw_skips: optim::skipped_step => ["adamw", "grad_norm"];
}

#[test]
fn every_op_has_a_case() {
    let covered: BTreeSet<&str> = COVERED.iter().copied().collect();
    for op in &covered {
        assert!(OPS.contains(op), "{op} is no op of the backend");
    }
    for op in OPS {
        // A forward is the subject of its backward's case.
        let stem = op.strip_suffix("_fwd");
        let by_backward = stem.is_some_and(|s| covered.iter().any(|c| c.starts_with(&format!("{s}_bwd"))));
        assert!(covered.contains(op) || by_backward, "{op} has no case in tests/ops/gradients.rs");
    }
}
