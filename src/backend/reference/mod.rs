//! The oracle: every op as its textbook formula in f64, in serial loops. It is never optimised.
//! Tests compare all other backends with it, and check it against finite differences
//! (`tests/ops/gradients.rs`, `tests/training/grads.rs`).

// The loops use the indices of the formulas.
#![allow(clippy::needless_range_loop)]

mod attention;
mod embedding;
mod gelu;
mod glu;
mod head;
mod layer_norm;
mod linear;
mod norm;
mod optim;
mod preference;
mod reward;
mod rope;
mod scale;
mod segment;

use super::contract::*;
use super::host::host_memory;
use super::{Backend, View, ViewMut, host};
use crate::Result;

/// The f64 backend of textbook loops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    host_memory!(f64, f64);

    const NAME: &'static str = "reference";
    const PRECISION: Precision = Precision::F64;
    const NUMERICS: u32 = 1;

    fn write_act(&self, to: ViewMut<'_, Vec<f64>>, source: &[f64]) -> Result<()> {
        host::write(to, source)
    }
    fn read_act(&self, from: View<'_, Vec<f64>>, to: &mut [f64]) -> Result<()> {
        host::read(from, to)
    }
    fn write_acc(&self, to: ViewMut<'_, Vec<f64>>, source: &[f64]) -> Result<()> {
        host::write(to, source)
    }
    fn read_acc(&self, from: View<'_, Vec<f64>>, to: &mut [f64]) -> Result<()> {
        host::read(from, to)
    }

    fn embedding_fwd_impl(&self, a: EmbeddingFwd<'_, Self>) -> Result<()> {
        embedding::embedding_fwd(a);
        Ok(())
    }
    fn embedding_bwd_impl(&self, a: EmbeddingBwd<'_, Self>) -> Result<()> {
        embedding::embedding_bwd(a);
        Ok(())
    }
    fn scale_impl(&self, a: Scale<'_, Self>) -> Result<()> {
        scale::scale(a);
        Ok(())
    }
    fn norm_fwd_impl(&self, a: NormFwd<'_, Self>) -> Result<()> {
        norm::norm_fwd(a);
        Ok(())
    }
    fn norm_bwd_impl(&self, a: NormBwd<'_, Self>) -> Result<()> {
        norm::norm_bwd(a);
        Ok(())
    }
    fn layer_norm_fwd_impl(&self, a: LayerNormFwd<'_, Self>) -> Result<()> {
        layer_norm::layer_norm_fwd(a);
        Ok(())
    }
    fn layer_norm_bwd_impl(&self, a: LayerNormBwd<'_, Self>) -> Result<()> {
        layer_norm::layer_norm_bwd(a);
        Ok(())
    }
    fn qk_norm_fwd_impl(&self, a: QkNormFwd<'_, Self>) -> Result<()> {
        norm::qk_norm_fwd(a);
        Ok(())
    }
    fn qk_norm_bwd_impl(&self, a: QkNormBwd<'_, Self>) -> Result<()> {
        norm::qk_norm_bwd(a);
        Ok(())
    }
    fn linear_fwd_impl(&self, a: LinearFwd<'_, Self>) -> Result<()> {
        linear::linear_fwd(a);
        Ok(())
    }
    fn linear_bwd_input_impl(&self, a: LinearBwdInput<'_, Self>) -> Result<()> {
        linear::linear_bwd_input(a);
        Ok(())
    }
    fn linear_bwd_weight_impl(&self, a: LinearBwdWeight<'_, Self>) -> Result<()> {
        linear::linear_bwd_weight(a);
        Ok(())
    }
    fn bias_bwd_impl(&self, a: BiasBwd<'_, Self>) -> Result<()> {
        linear::bias_bwd(a);
        Ok(())
    }
    fn rope_fwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rope::rope(a, 1.0);
        Ok(())
    }
    fn rope_bwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rope::rope(a, -1.0);
        Ok(())
    }
    fn glu_fwd_impl(&self, a: GluFwd<'_, Self>) -> Result<()> {
        glu::glu_fwd(a);
        Ok(())
    }
    fn glu_bwd_impl(&self, a: GluBwd<'_, Self>) -> Result<()> {
        glu::glu_bwd(a);
        Ok(())
    }
    fn gelu_fwd_impl(&self, a: GeluFwd<'_, Self>) -> Result<()> {
        gelu::gelu_fwd(a);
        Ok(())
    }
    fn gelu_bwd_impl(&self, a: GeluBwd<'_, Self>) -> Result<()> {
        gelu::gelu_bwd(a);
        Ok(())
    }
    fn linear_glu_fwd_impl(&self, a: LinearGluFwd<'_, Self>) -> Result<()> {
        glu::linear_glu_fwd(a);
        Ok(())
    }
    fn linear_glu_bwd_impl(&self, a: LinearGluBwd<'_, Self>) -> Result<()> {
        glu::linear_glu_bwd(a);
        Ok(())
    }
    fn attention_fwd_impl(&self, a: AttentionFwd<'_, Self>) -> Result<()> {
        attention::attention_fwd(a);
        Ok(())
    }
    fn attention_bwd_impl(&self, a: AttentionBwd<'_, Self>) -> Result<()> {
        attention::attention_bwd(a);
        Ok(())
    }
    fn attention_cached_fwd_impl(&self, a: AttentionCachedFwd<'_, Self>) -> Result<()> {
        attention::attention_cached_fwd(a);
        Ok(())
    }
    fn head_logprob_fwd_impl(&self, a: HeadLogprobFwd<'_, Self>) -> Result<()> {
        head::head_logprob_fwd(a);
        Ok(())
    }
    fn head_logprob_bwd_impl(&self, a: HeadLogprobBwd<'_, Self>) -> Result<()> {
        head::head_logprob_bwd(a);
        Ok(())
    }
    fn logprob_fwd_impl(&self, a: LogprobFwd<'_, Self>) -> Result<()> {
        head::logprob_fwd(a);
        Ok(())
    }
    fn logprob_bwd_impl(&self, a: LogprobBwd<'_, Self>) -> Result<()> {
        head::logprob_bwd(a);
        Ok(())
    }
    fn reward_head_fwd_impl(&self, a: RewardHeadFwd<'_, Self>) -> Result<()> {
        reward::reward_head_fwd(a);
        Ok(())
    }
    fn reward_head_bwd_impl(&self, a: RewardHeadBwd<'_, Self>) -> Result<()> {
        reward::reward_head_bwd(a);
        Ok(())
    }
    fn segment_sum_fwd_impl(&self, a: SegmentSumFwd<'_, Self>) -> Result<()> {
        segment::segment_sum_fwd(a);
        Ok(())
    }
    fn segment_sum_bwd_impl(&self, a: SegmentSumBwd<'_, Self>) -> Result<()> {
        segment::segment_sum_bwd(a);
        Ok(())
    }
    fn preference_fwd_impl(&self, a: PreferenceFwd<'_, Self>) -> Result<()> {
        preference::preference_fwd(a);
        Ok(())
    }
    fn grad_norm_impl(&self, a: GradNorm<'_, Self>) -> Result<()> {
        optim::grad_norm(a);
        Ok(())
    }
    fn adamw_impl(&self, a: AdamW<'_, Self>) -> Result<()> {
        optim::adamw(a);
        Ok(())
    }
}

/// Dot product, summed in ascending order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Element `i` of an index buffer.
fn at(index: &[i32], i: usize) -> usize {
    index[i] as usize
}
