//! Calls of ops as data: the op, its sizes and operands, and the call on any backend. Every call
//! lists smaller calls that compute a subset of its results. The smaller calls are checked against
//! the reference.
//!
//! - [`linear`], `glu`: GEMMs of linear layers, plain and fused with SwiGLU; unfused SwiGLU; the bias
//!   gradient
//! - `embedding`, [`norm`], `rope`, `elementwise` (LayerNorm, GELU, factors): memory-bound ops
//! - [`attention`]: attention over sequences and over prefix trees; `attention_cached`: over a cache
//! - `head`: log-probs of the vocabulary head; `reward`: the reward head; `head_preference`: head,
//!   losses and gradients as one op
//! - `segment`: sums over sequences; `preference`: comparison losses; `optim`: gradient norm, AdamW

pub mod attention;
pub(super) mod attention_cached;
pub(super) mod elementwise;
pub(super) mod embedding;
pub(super) mod glu;
pub(super) mod head;
pub(super) mod head_preference;
pub mod linear;
pub mod norm;
pub(super) mod optim;
pub(super) mod preference;
pub(super) mod reward;
pub(super) mod rope;
pub(super) mod rotated;
pub(super) mod segment;

use super::operand::{Cursor, Operand, Selection};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::{Precision, RopeDims, Tolerance};

/// A call of an op.
pub trait Call: Sized {
    /// Name of the op, one of [`crate::backend::OPS`].
    fn op(&self) -> &'static str;

    /// Sizes by name. Rows of records are matched by them.
    fn sizes(&self) -> Vec<(&'static str, usize)>;

    /// Operands in the order in which [`Call::call`] reads them from the cursor.
    fn operands(&self) -> Vec<Operand>;

    /// Computes the operands that are results of another op (`Fill::Computed`), after all others
    /// are written.
    fn compute_inputs<B: Backend>(&self, _on: &B, _operands: Cursor<'_, B>) -> Result<()> {
        Ok(())
    }

    /// Runs the op.
    fn call<B: Backend>(&self, on: &B, operands: Cursor<'_, B>) -> Result<()>;

    /// Tolerance of a written operand.
    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance;

    /// Smaller calls with the indices of this call's operands that they cover. At these indices,
    /// the results of both calls must agree. A call that the reference can compute quickly lists
    /// itself.
    fn parts(&self) -> Vec<Part<Self>>;
}

/// A part of a call.
pub struct Part<C> {
    /// The smaller call.
    pub call: C,
    /// Indices of the larger call's operands that the smaller call covers.
    pub selection: Selection,
    /// Written operands that are compared; empty compares all.
    pub compared: &'static [&'static str],
}

impl<C: Call + Clone> Part<C> {
    /// The complete call as its only part.
    fn whole(call: &C) -> Vec<Self> {
        vec![Self { call: call.clone(), selection: Selection::default(), compared: &[] }]
    }
}

/// Precision of values stored as accumulators.
fn stored_as_acc(precision: Precision) -> Precision {
    if precision == Precision::Bf16 { Precision::F32 } else { precision }
}

macro_rules! works {
    ($($Name:ident($Type:ty)),* $(,)?) => {
        /// A call of any op.
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "the variants have the names of their calls")]
        pub enum Work {
            $($Name($Type)),*
        }

        impl Call for Work {
            fn op(&self) -> &'static str {
                match self { $(Work::$Name(call) => call.op()),* }
            }
            fn sizes(&self) -> Vec<(&'static str, usize)> {
                match self { $(Work::$Name(call) => call.sizes()),* }
            }
            fn operands(&self) -> Vec<Operand> {
                match self { $(Work::$Name(call) => call.operands()),* }
            }
            fn compute_inputs<B: Backend>(&self, on: &B, operands: Cursor<'_, B>) -> Result<()> {
                match self { $(Work::$Name(call) => call.compute_inputs(on, operands)),* }
            }
            fn call<B: Backend>(&self, on: &B, operands: Cursor<'_, B>) -> Result<()> {
                match self { $(Work::$Name(call) => call.call(on, operands)),* }
            }
            fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
                match self { $(Work::$Name(call) => call.tolerance(precision, name)),* }
            }
            fn parts(&self) -> Vec<Part<Work>> {
                match self {
                    $(Work::$Name(call) => {
                        let parts = call.parts().into_iter();
                        parts.map(|p| Part { call: Work::$Name(p.call), selection: p.selection, compared: p.compared }).collect()
                    }),*
                }
            }
        }

        $(impl From<$Type> for Work {
            fn from(call: $Type) -> Self {
                Work::$Name(call)
            }
        })*
    };
}

works! {
    Linear(linear::Linear),
    LinearGlu(glu::LinearGlu),
    Embedding(embedding::Embedding),
    LayerNorm(elementwise::LayerNorm),
    PlainActivation(elementwise::PlainActivation),
    ScaleAdd(elementwise::ScaleAdd),
    Norm(norm::Norm),
    QkNorm(norm::QkNorm),
    BiasGrad(linear::BiasGrad),
    RotaryEmbedding(rope::RotaryEmbedding),
    RotatedLinear(rotated::RotatedLinear),
    RotatedAttention(rotated::RotatedAttention),
    Glu(glu::Glu),
    Attention(attention::Attention),
    AttentionCached(attention_cached::AttentionCached),
    Head(head::Head),
    PreferenceHead(head_preference::PreferenceHead),
    StoredLogits(head::StoredLogits),
    RewardHead(reward::RewardHead),
    SegmentSum(segment::SegmentSum),
    PreferenceLoss(preference::PreferenceLoss),
    GradientNorm(optim::GradientNorm),
    AdamWUpdate(optim::AdamWUpdate),
}

impl Work {
    /// The rotation in the call, if it has one.
    pub(super) fn rotation(&self) -> Option<RopeDims> {
        match self {
            Self::RotatedLinear(call) => Some(call.rotation.dims),
            Self::RotatedAttention(call) => Some(call.rotation.dims),
            _ => None,
        }
    }
}

/// Sizes as `tokens=8192 inputs=896`.
pub(super) fn shape_text(sizes: &[(&'static str, usize)]) -> String {
    sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ")
}
