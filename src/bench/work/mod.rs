//! Calls of ops as data: which op with which sizes, what its operands hold, how to call it on any backend, and the smaller
//! calls whose results are a part of its own, against which it is checked.
//!
//! - [`linear`]: products of linear layers, alone and with the gated activation
//! - [`rowwise`]: embedding, normalisation, rotation, activation, bias
//! - [`attention`]: attention over sequences and over prefix trees
//! - [`head`]: log-probs of the vocabulary head, the scalar head; [`head_preference`]: head, losses and gradients as one op
//! - [`objective`]: sums by sequence, comparison losses, gradient norm, AdamW

pub mod attention;
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
pub(super) mod segment;

use super::operand::{Cursor, Operand, Selection};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::{Precision, Tolerance};

/// A call of an op.
pub trait Call: Sized {
    /// The op, a name of [`crate::backend::OPS`].
    fn op(&self) -> &'static str;

    /// ModelSizes as `name=value`, by which rows of records are matched.
    fn sizes(&self) -> Vec<(&'static str, usize)>;

    /// The operands in the order in which [`Call::call`] takes them.
    fn operands(&self) -> Vec<Operand>;

    /// Makes the operands that are results of another op ([`Fill::Computed`]), when all others are there.
    ///
    /// [`Fill::Computed`]: super::operand::Fill::Computed
    fn compute_inputs<B: Backend>(&self, _on: &B, _operands: Cursor<'_, B>) -> Result<()> {
        Ok(())
    }

    /// The call.
    fn call<B: Backend>(&self, on: &B, operands: Cursor<'_, B>) -> Result<()>;

    /// Error allowed of a written operand.
    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance;

    /// Smaller calls, and the places of the operands that they hold: what the written operands of the small call hold,
    /// those places of this call's must. The call itself where the reference can do it.
    fn parts(&self) -> Vec<Part<Self>>;
}

/// A part of a call.
pub struct Part<C> {
    pub call: C,
    pub selection: Selection,
    /// Written operands that are compared; all where it is empty.
    pub compared: &'static [&'static str],
}

impl<C: Call + Clone> Part<C> {
    /// All of it.
    fn whole(call: &C) -> Vec<Self> {
        vec![Self { call: call.clone(), selection: Selection::default(), compared: &[] }]
    }
}

/// Precision of numbers that are stored as sums.
fn stored_as_acc(precision: Precision) -> Precision {
    if precision == Precision::Bf16 { Precision::F32 } else { precision }
}

macro_rules! works {
    ($($Name:ident($Type:ty)),* $(,)?) => {
        /// A call of any op.
        #[derive(Clone, Debug)]
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
    Norm(norm::Norm),
    BiasGrad(linear::BiasGrad),
    RotaryEmbedding(rope::RotaryEmbedding),
    Glu(glu::Glu),
    Attention(attention::Attention),
    Head(head::Head),
    PreferenceHead(head_preference::PreferenceHead),
    StoredLogits(head::StoredLogits),
    RewardHead(reward::RewardHead),
    SegmentSum(segment::SegmentSum),
    PreferenceLoss(preference::PreferenceLoss),
    GradientNorm(optim::GradientNorm),
    AdamWUpdate(optim::AdamWUpdate),
}

/// `tokens=8192 inputs=896`.
pub(super) fn shape_text(sizes: &[(&'static str, usize)]) -> String {
    sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ")
}
