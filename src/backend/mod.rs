//! The list of operations, written once, and the backends that run it.
//!
//! An op is a struct of named arguments in [`contract`] (shapes beside every field, checks, bytes, FLOPs, tolerance)
//! and one line in the list below. The line becomes two trait methods: `op`, provided, checks the contract and calls
//! `op_impl`, which each backend implements and which may rely on the checks. A missing op is a compile error, and so
//! is a buffer of another backend.
//!
//! Composites are ops that others add up to ([`composite`]). Every backend has them; one that can do better than call after
//! call overrides `composite_impl`.
//!
//! | backend | Act / Acc | what it is |
//! |---|---|---|
//! | [`reference::Reference`] | f64 / f64 | serial textbook loops: the oracle, never optimised |
//! | [`cpu::Cpu`] | f32 / f32 | rayon and the gemm crate: what a machine without a GPU runs |
//! | [`kernels::Kernels`] | f32 or bf16 / f32 | the CUDA kernels of `kernels/`, on a GPU or on the emulator |
//!
//! Execution may be asynchronous: an op enqueues, a `read_*` waits. No op returns a value to the host, allocates a
//! caller-visible buffer or needs a number that only the device knows, so a step can be captured and replayed.

pub mod composite;
pub mod contract;
pub mod cpu;
mod host;
pub mod kernels;
pub mod probe;
pub mod reference;
pub mod view;

use std::time::Duration;

use crate::Result;
use contract::*;
use probe::{OpTime, Probe};
pub use view::{Buffer, View, ViewMut, Write};

macro_rules! backend {
    (
        $($(#[$doc:meta])* $op:ident, $op_impl:ident: $Args:ident;)*
        => composites:
        $($(#[$whole_doc:meta])* $whole:ident, $whole_impl:ident, $is_one_op:ident: $Whole:ident;)*
    ) => {
        /// Memory and operations of one kind of device. Precision belongs to the backend: `Act` holds weights and
        /// activations, `Acc` log-probs, losses, statistics, weight gradients and optimiser state, `Idx` token ids
        /// and offsets (i32).
        pub trait Backend: Sized + Sync {
            type Act: Buffer + Send + Sync;
            type Acc: Buffer + Send + Sync;
            type Idx: Buffer + Send + Sync;
            /// A batch on its way to the device.
            type Inlet: Send;
            /// Results on their way to the host.
            type Outlet: Send;
            /// Recorded ops.
            type Graph: Send;
            /// A moment in the order of the ops.
            type Stamp: Send;

            /// Whether the host goes on while ops run.
            const ASYNCHRONOUS: bool;
            /// Name in logs and reports.
            const NAME: &'static str;
            /// Storage of `Act` and `Acc`, for tolerances and byte counts.
            const PRECISION: Precision;
            /// Version of the bits of forward results: raised with every change that alters one, so that values
            /// stored by an earlier version are not mixed with new ones.
            const NUMERICS: u32;

            /// Where op calls are timed, if anywhere.
            fn probe(&self) -> Option<&Probe> {
                None
            }

            /// The begin of an op that is timed; none where no op is.
            fn moment(&self) -> Result<Option<Self::Stamp>> {
                self.probe().map(|_| self.stamp()).transpose()
            }

            /// Notes an op that began at a moment and whose work has been enqueued by now.
            fn observe(&self, op: usize, cost: Cost, from: Self::Stamp) -> Result<()> {
                let Some(probe) = self.probe() else { return Ok(()) };
                let to = self.stamp()?;
                probe.add(op, Duration::from_secs_f64(self.seconds_between(&from, &to)?.max(0.0)), cost);
                Ok(())
            }

            /// Sums by op since the last call of this; waits for the ops they are of.
            fn op_times(&self) -> Result<Vec<OpTime>> {
                Ok(self.probe().map(|probe| probe.take()).unwrap_or_default())
            }

            /// Bytes of memory that can still be had, where that is known.
            fn memory_free(&self) -> Option<u64> {
                None
            }
            /// What the management library knows the card by (`GPU-...`); none where there is no card.
            fn hardware_id(&self) -> Option<String> {
                None
            }
            /// The device of a backend that runs kernels.
            fn kernel_properties(&self) -> Option<&kernels::device::Properties> {
                None
            }
            /// Sets aside so many bytes of memory for what ops hold within a call. Nothing where ops see to it themselves.
            fn reserve_workspace(&self, _bytes: usize) -> Result<()> {
                Ok(())
            }
            /// Most head rows that [`Backend::head_preference`] works on at once, for a head of this `hidden` and `vocab`. A
            /// batch with more is cut by [`chunks_of`], and then what is enqueued depends on where its groups end, so it
            /// must not be recorded for another batch. With no more rows, groups change nothing.
            fn head_rows_at_once(&self, _dims: HeadDims) -> usize {
                usize::MAX
            }

            /// A zeroed buffer of activations or weights.
            fn zeros_act(&self, len: usize) -> Result<Self::Act>;
            /// A zeroed buffer of statistics, gradients or optimiser state.
            fn zeros_acc(&self, len: usize) -> Result<Self::Acc>;
            /// A zeroed buffer of indices.
            fn zeros_idx(&self, len: usize) -> Result<Self::Idx>;

            /// Host to device, rounded to the precision of `Act`. `source.len()` equals the view's length.
            fn write_act(&self, to: ViewMut<'_, Self::Act>, source: &[f64]) -> Result<()>;
            /// Host to device, rounded to the precision of `Acc`.
            fn write_acc(&self, to: ViewMut<'_, Self::Acc>, source: &[f64]) -> Result<()>;
            /// Host to device.
            fn write_idx(&self, to: ViewMut<'_, Self::Idx>, source: &[i32]) -> Result<()>;
            /// Device to host, exact; waits for the work that produces it.
            fn read_act(&self, from: View<'_, Self::Act>, to: &mut [f64]) -> Result<()>;
            /// Device to host, exact; waits for the work that produces it.
            fn read_acc(&self, from: View<'_, Self::Acc>, to: &mut [f64]) -> Result<()>;

            /// Room for a batch of so many indices and numbers.
            fn inlet(&self, indices: usize, numbers: usize) -> Result<Self::Inlet>;
            /// Starts bringing a batch to the device beside the work that is under way. Waits for the last batch of this
            /// inlet to be there, and for nothing else.
            fn send(&self, inlet: &mut Self::Inlet, indices: &[i32], numbers: &[f64]) -> Result<()>;
            /// Enqueues putting the batch that was sent into the begin of buffers.
            fn receive(&self, inlet: &mut Self::Inlet, indices: &mut Self::Idx, numbers: &mut Self::Acc) -> Result<()>;
            /// Room for so many results.
            fn outlet(&self, len: usize) -> Result<Self::Outlet>;
            /// Enqueues bringing a view to the host, into elements of the outlet from `at` on.
            fn fetch(&self, from: View<'_, Self::Acc>, outlet: &mut Self::Outlet, at: usize) -> Result<()>;
            /// The first results of an outlet, exact. Waits for those that were fetched, and not for work enqueued since.
            fn open(&self, outlet: &mut Self::Outlet, to: &mut [f64]) -> Result<()>;

            /// Enqueues taking the time, which passes when the ops enqueued before are done.
            fn stamp(&self) -> Result<Self::Stamp>;
            /// Seconds from one moment to a later one. Waits for the later.
            fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> Result<f64>;

            /// Records the ops that `work` calls instead of running them. `None`, and `work` is not called, where that
            /// cannot be. Fails when `work` does, or when it waits, allocates or copies to or from the host.
            fn record(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
                Ok(None)
            }
            /// Enqueues recorded ops. False, and nothing is done, when any buffer has been freed since they were recorded:
            /// they are then to be recorded anew.
            fn replay(&self, _graph: &Self::Graph) -> Result<bool> {
                Ok(false)
            }

            $(
                $(#[$doc])*
                fn $op(&self, args: $Args<'_, Self>) -> Result<()> {
                    args.check()?;
                    let Some(from) = self.moment()? else { return self.$op_impl(args) };
                    let cost = args.cost();
                    self.$op_impl(args)?;
                    self.observe(Op::$op as usize, cost, from)
                }
                #[doc = concat!("Body of [`Backend::", stringify!($op), "`]; its contract has been checked.")]
                fn $op_impl(&self, args: $Args<'_, Self>) -> Result<()>;
            )*

            $(
                $(#[$whole_doc])*
                fn $whole(&self, args: $Whole<'_, Self>) -> Result<()> {
                    args.check()?;
                    let from = if self.$is_one_op(&args) { self.moment()? } else { None };
                    let Some(from) = from else { return self.$whole_impl(args) };
                    let cost = args.cost();
                    self.$whole_impl(args)?;
                    self.observe(Op::$whole as usize, cost, from)
                }
                #[doc = concat!("Body of [`Backend::", stringify!($whole), "`]; its contract has been checked. One ")]
                #[doc = "that does not run a call as one op falls back to the ops the call is made of."]
                fn $whole_impl(&self, args: $Whole<'_, Self>) -> Result<()> {
                    composite::$whole(self, args)
                }
                #[doc = concat!("Whether [`Backend::", stringify!($whole_impl), "`] runs this call as one op, which is ")]
                #[doc = "then timed under its own name; else the ops it is made of are timed under theirs."]
                fn $is_one_op(&self, _args: &$Whole<'_, Self>) -> bool {
                    false
                }
            )*
        }

        /// Places of the ops in the list.
        #[allow(non_camel_case_types)]
        enum Op {
            $($op,)*
            $($whole),*
        }

        /// Names of all ops, in the order of the list; composites come last.
        pub const OPS: &[&str] = &[$(stringify!($op),)* $(stringify!($whole)),*];
    };
}

backend! {
    /// `x[t] = table[ids[t]]`.
    embedding_fwd, embedding_fwd_impl: EmbeddingFwd;
    /// `dtable[v] = sum of dx[t] over tokens t with id v`, in ascending t.
    embedding_bwd, embedding_bwd_impl: EmbeddingBwd;
    /// `sum = x + residual; y = sum / rms(sum) * weight` (RMSNorm, arXiv 1910.07467).
    norm_fwd, norm_fwd_impl: NormFwd;
    /// Gradient of [`Backend::norm_fwd`] for its sum and its weight.
    norm_bwd, norm_bwd_impl: NormBwd;
    /// `y = x weightᵀ + bias + residual` (NT).
    linear_fwd, linear_fwd_impl: LinearFwd;
    /// `dx = dy weight` (NN).
    linear_bwd_input, linear_bwd_input_impl: LinearBwdInput;
    /// `dweight = dyᵀ x` (TN).
    linear_bwd_weight, linear_bwd_weight_impl: LinearBwdWeight;
    /// `dbias = column sums of dy`.
    bias_bwd, bias_bwd_impl: BiasBwd;
    /// Rotates queries and keys by their positions, half-split layout (RoPE, arXiv 2104.09864).
    rope_fwd, rope_fwd_impl: Rope;
    /// Rotates gradients back.
    rope_bwd, rope_bwd_impl: Rope;
    /// `act = silu(gate) * up` (SwiGLU, arXiv 2002.05202).
    glu_fwd, glu_fwd_impl: GluFwd;
    /// Gradient of [`Backend::glu_fwd`].
    glu_bwd, glu_bwd_impl: GluBwd;
    /// `act = silu(gate) * up` with gate and up from one product (NT), which are stored where asked for.
    linear_glu_fwd, linear_glu_fwd_impl: LinearGluFwd;
    /// Gradient of gate and up from that of the down projection's result (NN).
    linear_glu_bwd, linear_glu_bwd_impl: LinearGluBwd;
    /// Grouped-query softmax attention over prefix trees.
    attention_fwd, attention_fwd_impl: AttentionFwd;
    /// Gradient of [`Backend::attention_fwd`].
    attention_bwd, attention_bwd_impl: AttentionBwd;
    /// `logp[r] = log_softmax(hidden[source[r]] · headᵀ)[target[r]]`, and the row's logsumexp; logits are never stored.
    head_logprob_fwd, head_logprob_fwd_impl: HeadLogprobFwd;
    /// Gradient of [`Backend::head_logprob_fwd`]; recomputes logits in chunks.
    head_logprob_bwd, head_logprob_bwd_impl: HeadLogprobBwd;
    /// Log-softmax and gather over stored logits: the oracle of the head.
    logprob_fwd, logprob_fwd_impl: LogprobFwd;
    /// Gradient of [`Backend::logprob_fwd`], written over the logits.
    logprob_bwd, logprob_bwd_impl: LogprobBwd;
    /// `score[s] = hidden[rows[s]] · weight`.
    reward_head_fwd, reward_head_fwd_impl: RewardHeadFwd;
    /// Gradient of [`Backend::reward_head_fwd`].
    reward_head_bwd, reward_head_bwd_impl: RewardHeadBwd;
    /// Sum or mean of each sequence's rows, in ascending row order.
    segment_sum_fwd, segment_sum_fwd_impl: SegmentSumFwd;
    /// Gradient of [`Backend::segment_sum_fwd`].
    segment_sum_bwd, segment_sum_bwd_impl: SegmentSumBwd;
    /// Comparison losses over sequence scores, the gradient of every score, and sums per kind.
    preference_fwd, preference_fwd_impl: PreferenceFwd;
    /// Global gradient norm in a fixed order, the clip factor, and whether the step is finite.
    grad_norm, grad_norm_impl: GradNorm;
    /// AdamW with decoupled decay (arXiv 1711.05101), skipped on the device when the gradient is not finite.
    adamw, adamw_impl: AdamW;

    => composites:
    /// Vocabulary head, comparison losses and the head's gradient: from hidden rows to their gradient.
    head_preference, head_preference_impl, fuses_head_preference: HeadPreference;
}
