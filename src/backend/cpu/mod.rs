//! The backend for machines without a GPU, in f32 or bf16, with rayon threads. It has custom GEMMs for
//! AVX2, AVX-512 and AMX, and uses the gemm crate on other processors.
//!
//! Results have the same bits for any number of threads, and a row of a result does not depend on the other
//! rows of the call. GEMMs are split into tiles, but every element is summed in the same order in any tile
//! (`matmul`, `product16`). Sums over tokens are split into slices of fixed size, which are added in
//! ascending order. Workspace grows during the first steps and is then reused. Apart from the checks of the
//! contracts, only [`adamw`](Backend::adamw) returns an error: it rejects a master copy of f32 parameters,
//! which do not need one.
//!
//! In bf16, ops compute on f32 values and round where an activation is stored (`element`). GEMMs
//! multiply bf16 and sum in f32.

mod amx;
mod attention;
mod attention_bwd;
mod attention_cached;
mod attention_softmax;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_cached;
#[cfg(target_arch = "x86_64")]
mod avx512_glu;
#[cfg(target_arch = "x86_64")]
mod avx512_math;
#[cfg(target_arch = "x86_64")]
mod avx512_round;
#[cfg(target_arch = "x86_64")]
mod avx512_softmax;
mod element;
mod embedding;
mod gelu;
mod glu;
mod head;
mod head_stats;
mod layer_norm;
mod linear;
mod math;
mod matmul;
mod norm;
mod optim;
mod panels;
mod path;
mod portable;
mod preference;
mod product16;
mod reward;
mod rope;
mod rows;
mod scale;
mod scratch;
mod segment;
mod simd;
mod tile;
pub mod units;
mod workspace;

use std::marker::PhantomData;

use super::contract::*;
use super::host::host_memory;
use super::probe::Probe;
use super::{Backend, View, ViewMut};
use crate::Result;
pub use element::Element;
pub use units::Units;
pub(crate) use workspace::{StepSizes, workspace_bytes};

/// The CPU backend, in f32 or with bf16 weights and activations. Ops run on the rayon thread pool of
/// their caller.
#[derive(Debug)]
pub struct Cpu<A: Element = f32> {
    scratch: scratch::Pool,
    probe: Option<Probe>,
    units: Units,
    element: PhantomData<A>,
}

impl Cpu {
    /// Creates an f32 backend with an empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an f32 backend that times every op call.
    pub fn probed() -> Self {
        Self::default().observed()
    }
}

impl<A: Element> Default for Cpu<A> {
    fn default() -> Self {
        // Only bf16 GEMMs use units other than `Units::F32`.
        Self::on(if A::PRECISION == Precision::Bf16 { Units::chosen_or_f32() } else { Units::F32 })
    }
}

impl<A: Element> Cpu<A> {
    /// Creates a backend with an empty workspace whose bf16 products run on these units.
    pub fn on(units: Units) -> Self {
        Self { scratch: scratch::Pool::default(), probe: None, units, element: PhantomData }
    }

    /// Returns the units that bf16 GEMMs run on.
    pub fn units(&self) -> Units {
        self.units
    }

    /// Returns the backend with every op call timed.
    pub fn observed(self) -> Self {
        Self { probe: Some(Probe::default()), ..self }
    }
}

/// `c = a b` for square row-major matrices with `side` rows, on all threads. The rate of this GEMM
/// is the compute ceiling of the backend.
pub(crate) fn square_gemm<A: Element>(cpu: &Cpu<A>, c: &mut [A], a: &[A], b: &[A], side: usize) {
    let mat = |data| tile::Mat::new(data, side, side, side);
    matmul::par_matmul(cpu, c, mat(a), mat(b), super::Write::Overwrite);
}

impl<A: Element> Backend for Cpu<A> {
    host_memory!(A, f32);

    const NAME: &'static str = "cpu";
    const PRECISION: Precision = A::PRECISION;
    const NUMERICS: u32 = A::NUMERICS;

    fn numerics(&self) -> u32 {
        match A::PRECISION {
            Precision::Bf16 => A::NUMERICS.wrapping_add(self.units.numerics()),
            Precision::F32 | Precision::F64 => A::NUMERICS,
        }
    }

    fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    fn memory_free(&self) -> Option<u64> {
        crate::memory::available()
    }

    fn write_act(&self, to: ViewMut<'_, Vec<A>>, source: &[f64]) -> Result<()> {
        expect_len("write_act", "source", source.len(), to.len)?;
        to.into_slice().iter_mut().zip(source).for_each(|(to, x)| *to = A::of(*x));
        Ok(())
    }
    fn write_acc(&self, to: ViewMut<'_, Vec<f32>>, source: &[f64]) -> Result<()> {
        expect_len("write_acc", "source", source.len(), to.len)?;
        to.into_slice().iter_mut().zip(source).for_each(|(to, x)| *to = *x as f32);
        Ok(())
    }
    fn read_act(&self, from: View<'_, Vec<A>>, to: &mut [f64]) -> Result<()> {
        expect_len("read_act", "to", to.len(), from.len)?;
        to.iter_mut().zip(from.slice()).for_each(|(to, x)| *to = x.value());
        Ok(())
    }
    fn read_acc(&self, from: View<'_, Vec<f32>>, to: &mut [f64]) -> Result<()> {
        expect_len("read_acc", "to", to.len(), from.len)?;
        to.iter_mut().zip(from.slice()).for_each(|(to, x)| *to = f64::from(*x));
        Ok(())
    }

    fn embedding_fwd_impl(&self, a: EmbeddingFwd<'_, Self>) -> Result<()> {
        embedding::embedding_fwd(a);
        Ok(())
    }
    fn embedding_bwd_impl(&self, a: EmbeddingBwd<'_, Self>) -> Result<()> {
        embedding::embedding_bwd(self, a);
        Ok(())
    }
    fn scale_impl(&self, a: Scale<'_, Self>) -> Result<()> {
        scale::scale(self, a);
        Ok(())
    }
    fn norm_fwd_impl(&self, a: NormFwd<'_, Self>) -> Result<()> {
        norm::norm_fwd(self, a);
        Ok(())
    }
    fn norm_bwd_impl(&self, a: NormBwd<'_, Self>) -> Result<()> {
        norm::norm_bwd(self, a);
        Ok(())
    }
    fn layer_norm_fwd_impl(&self, a: LayerNormFwd<'_, Self>) -> Result<()> {
        layer_norm::layer_norm_fwd(self, a);
        Ok(())
    }
    fn layer_norm_bwd_impl(&self, a: LayerNormBwd<'_, Self>) -> Result<()> {
        layer_norm::layer_norm_bwd(self, a);
        Ok(())
    }
    fn qk_norm_fwd_impl(&self, a: QkNormFwd<'_, Self>) -> Result<()> {
        norm::qk_norm_fwd(self, a);
        Ok(())
    }
    fn qk_norm_bwd_impl(&self, a: QkNormBwd<'_, Self>) -> Result<()> {
        norm::qk_norm_bwd(self, a);
        Ok(())
    }
    fn linear_fwd_impl(&self, a: LinearFwd<'_, Self>) -> Result<()> {
        linear::linear_fwd(self, a);
        Ok(())
    }
    fn linear_bwd_input_impl(&self, a: LinearBwdInput<'_, Self>) -> Result<()> {
        linear::linear_bwd_input(self, a);
        Ok(())
    }
    fn linear_bwd_weight_impl(&self, a: LinearBwdWeight<'_, Self>) -> Result<()> {
        linear::linear_bwd_weight(self, a);
        Ok(())
    }
    fn bias_bwd_impl(&self, a: BiasBwd<'_, Self>) -> Result<()> {
        linear::bias_bwd(self, a);
        Ok(())
    }
    fn rope_fwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rope::rope(self, a, 1.0);
        Ok(())
    }
    fn rope_bwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rope::rope(self, a, -1.0);
        Ok(())
    }
    fn glu_fwd_impl(&self, a: GluFwd<'_, Self>) -> Result<()> {
        glu::glu_fwd(self, a);
        Ok(())
    }
    fn glu_bwd_impl(&self, a: GluBwd<'_, Self>) -> Result<()> {
        glu::glu_bwd(self, a);
        Ok(())
    }
    fn gelu_fwd_impl(&self, a: GeluFwd<'_, Self>) -> Result<()> {
        gelu::gelu_fwd(self, a);
        Ok(())
    }
    fn gelu_bwd_impl(&self, a: GeluBwd<'_, Self>) -> Result<()> {
        gelu::gelu_bwd(self, a);
        Ok(())
    }
    fn linear_glu_fwd_impl(&self, a: LinearGluFwd<'_, Self>) -> Result<()> {
        glu::linear_glu_fwd(self, a);
        Ok(())
    }
    fn linear_glu_bwd_impl(&self, a: LinearGluBwd<'_, Self>) -> Result<()> {
        glu::linear_glu_bwd(self, a);
        Ok(())
    }
    fn attention_fwd_impl(&self, a: AttentionFwd<'_, Self>) -> Result<()> {
        attention::attention_fwd(self, a);
        Ok(())
    }
    fn attention_bwd_impl(&self, a: AttentionBwd<'_, Self>) -> Result<()> {
        attention_bwd::attention_bwd(self, a);
        Ok(())
    }
    fn attention_cached_fwd_impl(&self, a: AttentionCachedFwd<'_, Self>) -> Result<()> {
        attention_cached::attention_cached_fwd(self, a);
        Ok(())
    }
    fn head_logprob_fwd_impl(&self, a: HeadLogprobFwd<'_, Self>) -> Result<()> {
        head::head_logprob_fwd(self, a);
        Ok(())
    }
    fn head_logprob_bwd_impl(&self, a: HeadLogprobBwd<'_, Self>) -> Result<()> {
        head::head_logprob_bwd(self, a);
        Ok(())
    }
    fn logprob_fwd_impl(&self, a: LogprobFwd<'_, Self>) -> Result<()> {
        head::logprob_fwd(self, a);
        Ok(())
    }
    fn logprob_bwd_impl(&self, a: LogprobBwd<'_, Self>) -> Result<()> {
        head::logprob_bwd(self, a);
        Ok(())
    }
    fn reward_head_fwd_impl(&self, a: RewardHeadFwd<'_, Self>) -> Result<()> {
        reward::reward_head_fwd(self, a);
        Ok(())
    }
    fn reward_head_bwd_impl(&self, a: RewardHeadBwd<'_, Self>) -> Result<()> {
        reward::reward_head_bwd(self, a);
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
        optim::adamw(self, a)
    }
}
