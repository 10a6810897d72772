//! Gradients of the f64 reference against finite differences, one op at a time; the optimiser against its
//! formulas; empty and extreme inputs. `tests/training/grads.rs` checks the gradient of the whole model, and
//! `tests/ops/backends` compares the other backends with the reference.
//!
//! A case gives an op's inputs, its forward and its gradient; [`difference::check`] compares them. The list
//! below generates the tests, so every listed case runs. An op without a case fails `every_op_has_a_case`. An
//! op without a gradient is compared with an op that has a gradient.

mod attention;
mod difference;
mod edges;
mod elementwise;
mod embedding;
mod glu;
mod head;
mod linear;
mod norm;
mod optim;
mod preference;
mod reward;
mod rope;
mod segment;

use std::collections::BTreeSet;

use mapl::backend::OPS;

/// `test: case => ops with a gradient (or update) that the test checks`.
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
    embedding: embedding::embedding => ["embedding_bwd"];
    norm: norm::norm => ["norm_bwd"];
    norm_of_heads: norm::heads => ["qk_norm_bwd"];
    norm_behind_a_block: norm::on_base => ["norm_bwd"];
    layer_norm: elementwise::layer_norm => ["layer_norm_bwd"];
    gelu: elementwise::gelu => ["gelu_bwd"];
    scale: elementwise::scale => ["scale"];
    linear: linear::linear => ["linear_bwd_input", "linear_bwd_weight", "bias_bwd"];
    rope: rope::rope => ["rope_bwd"];
    rope_of_a_part_of_each_head: rope::partial => ["rope_bwd"];
    rope_bwd_is_the_transpose: rope::rope_transpose => ["rope_bwd"];
    linear_rope_equals_linear_then_rope: rope::linear => ["linear_rope_fwd"];
    attention_of_rotated_heads: rope::attention => ["attention_rope_bwd"];
    glu: glu::glu => ["glu_bwd"];
    linear_glu: glu::linear_glu => ["linear_glu_bwd"];
    attention_over_trees: attention::trees => ["attention_bwd"];
    attention_with_windows: attention::windows => ["attention_bwd"];
    attention_with_soft_caps: attention::softcaps => ["attention_bwd"];
    attention_gradient_stays_on_the_path: attention::hidden_rows => ["attention_bwd"];
    attention_cached_equals_attention: attention::cached_equals_whole => ["attention_cached_fwd"];
    head_logprob: head::head_logprob => ["head_logprob_bwd"];
    logprob: head::logprob => ["logprob_bwd"];
    head_logprob_equals_linear_then_logprob: head::fused_equals_stored => ["head_logprob_bwd", "logprob_bwd"];
    head_preference: head::head_preference => ["head_preference"];
    head_preference_with_given_score_gradients: head::likelihood => ["head_preference"];
    reward_head: reward::reward_head => ["reward_head_bwd"];
    segment_sum: segment::sum_and_mean => ["segment_sum_bwd"];
    segment_sum_with_tails: segment::tails => ["segment_sum_bwd"];
    preference_gradient_for_every_curve: preference::curves => ["preference_fwd"];
    preference_detached_terms_have_no_gradient: preference::detached_terms_are_constants => ["preference_fwd"];
    preference_gradient_of_sorted_pairs: preference::sorted_pairs => ["preference_fwd"];
    preference_gradient_of_unpaired_rows: preference::unpaired_rows => ["preference_fwd"];
    preference_gradient_with_weights_of_pairs: preference::pair_weights => ["preference_fwd"];
    preference_sums_by_kind: preference::sums => ["preference_fwd"];
    gradient_norm_and_clip: optim::norm_and_clip => ["grad_norm"];
    gradient_norm_from_patch_norms: optim::norms_of_patches => ["grad_norm", "linear_bwd_weight"];
    adamw_equals_the_formula: optim::textbook_step => ["adamw"];
    adamw_bias_correction: optim::bias_correction => ["adamw"];
    adamw_skips_non_finite_gradients: optim::skipped_step => ["adamw", "grad_norm"];
}

#[test]
fn every_op_has_a_case() {
    let covered: BTreeSet<&str> = COVERED.iter().copied().collect();
    for op in &covered {
        assert!(OPS.contains(op), "{op} is not an op of the backend");
    }
    for op in OPS {
        // The case of a backward op also covers its forward op.
        let stem = op.strip_suffix("_fwd");
        let by_backward = stem.is_some_and(|s| covered.iter().any(|c| c.starts_with(&format!("{s}_bwd"))));
        assert!(covered.contains(op) || by_backward, "{op} has no case in tests/ops/gradients.rs");
    }
}
