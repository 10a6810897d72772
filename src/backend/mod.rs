//! The list of operations and the backends that execute it.
//!
//! An op is a struct of named arguments in [`contract`] and one line in the list below. The
//! contract documents the shape of every buffer and holds the checks, the bytes and FLOPs of a call
//! and the tolerance. Two trait methods are generated from each line:
//!
//! - `op`, provided: checks the contract, opens an NVTX range, calls `op_impl`, and times the call if the
//!   backend has a probe.
//! - `op_impl`, required: the implementation of a backend. It may rely on the checks.
//!
//! A backend without an implementation of an op does not compile. Neither does an op call with a buffer of a
//! different backend.
//!
//! A composite is an op that equals a sequence of other ops (`composite.rs`). Every backend runs
//! that sequence by default. A backend with something faster, such as one fused kernel, overrides
//! `composite_impl`.
//!
//! | backend | Act / Acc | purpose |
//! |---|---|---|
//! | [`reference::Reference`] | f64 / f64 | the oracle: serial textbook loops, never optimised |
//! | [`cpu::Cpu`] | f32 or bf16 / f32 | machines without a GPU: rayon, handwritten GEMMs or the gemm crate |
//! | [`kernels::Kernels`] | f32 or bf16 / f32 | CUDA kernels, on a GPU or on the emulator |
//!
//! Execution may be asynchronous: an op enqueues its work, a `read_*` waits for it. No op returns a
//! value to the host, allocates a caller-visible buffer or needs a number that only the device
//! knows. A training step can therefore be captured and replayed.

pub mod collective;
mod composite;
pub mod contract;
pub mod cpu;
mod host;
pub mod kernels;
pub(crate) mod nvtx;
pub mod probe;
pub mod reference;
pub mod view;

use std::ffi::CStr;
use std::time::Duration;

use crate::Result;
use collective::DeviceCollective;
use contract::*;
use probe::{OpTime, Probe};
pub use view::{Buffer, View, ViewMut, Write};

/// Converts a null-terminated text to a C string.
const fn c_name(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"op",
    }
}

macro_rules! backend {
    (
        $($(#[$doc:meta])* $op:ident, $op_impl:ident: $Args:ident;)*
        => composites:
        $($(#[$composite_doc:meta])* $composite:ident, $composite_impl:ident, $is_fused:ident: $Composite:ident;)*
    ) => {
        /// Memory and operations of one kind of device. The backend decides the precision: `Act`
        /// holds weights and activations; `Acc` holds log-probs, losses, statistics, weight
        /// gradients and optimiser state; `Idx` holds token ids and offsets (i32).
        pub trait Backend: Sized + Sync {
            /// Buffer of activations and weights.
            type Act: Buffer + Send + Sync;
            /// Buffer of statistics, gradients and optimiser state.
            type Acc: Buffer + Send + Sync;
            /// Buffer of indices.
            type Idx: Buffer + Send + Sync;
            /// Staging buffer for the copy of a batch to the device.
            type UploadBuffer: Send;
            /// Staging buffer for the copy of results to the host.
            type ReadbackBuffer: Send;
            /// Recorded ops: a CUDA graph on a GPU.
            type Graph: Send;
            /// Timestamp in the sequence of ops: a CUDA event on a GPU.
            type Stamp: Send;

            /// Whether ops return to the host before their work is done.
            const ASYNCHRONOUS: bool;
            /// Name of the backend in logs and reports.
            const NAME: &'static str;
            /// Element types of `Act` and `Acc`, for tolerances and byte counts.
            const PRECISION: Precision;
            /// Version of the bits of forward results. A change that alters any bit raises it, so
            /// that values cached by an earlier version are not mixed with new ones.
            const NUMERICS: u32;

            /// Version of the bits of forward results on this machine: [`Backend::NUMERICS`], or a separate
            /// number for each arithmetic unit that gives different bits.
            fn numerics(&self) -> u32 {
                Self::NUMERICS
            }

            /// Times and costs by op, if op calls are timed.
            fn probe(&self) -> Option<&Probe> {
                None
            }

            /// Timestamp of the start of an op call; `None` if the call is not timed.
            fn op_start(&self) -> Result<Option<Self::Stamp>> {
                self.probe().map(|_| self.stamp()).transpose()
            }

            /// Adds a call of the op with index `op` to the probe. The call started at `from` and
            /// has been enqueued completely.
            fn op_end(&self, op: usize, cost: Cost, from: Self::Stamp) -> Result<()> {
                let Some(probe) = self.probe() else { return Ok(()) };
                let to = self.stamp()?;
                probe.add(op, Duration::from_secs_f64(self.seconds_between(&from, &to)?.max(0.0)), cost);
                Ok(())
            }

            /// Times and costs by op since the previous call of this function. Waits for the ops.
            fn op_times(&self) -> Result<Vec<OpTime>> {
                Ok(self.probe().map(|probe| probe.take()).unwrap_or_default())
            }

            /// Free memory in bytes, if known.
            fn memory_free(&self) -> Option<u64> {
                None
            }
            /// NVML UUID of the GPU (`GPU-...`), if any.
            fn hardware_id(&self) -> Option<String> {
                None
            }
            /// Device properties, if the backend runs kernels.
            fn kernel_properties(&self) -> Option<&kernels::device::Properties> {
                None
            }
            /// Collectives that the device runs on these buffers, if it has any.
            fn device_collective(&self) -> Option<&dyn DeviceCollective<Self>> {
                None
            }
            /// Preallocates `bytes` of op workspace; no-op by default.
            fn reserve_workspace(&self, _bytes: usize) -> Result<()> {
                Ok(())
            }
            /// Maximum number of head rows that [`Backend::head_preference`] processes at once, for a head of
            /// this `hidden` and `vocab`. A batch with more rows is split by [`chunks_of`]. Its ops then
            /// depend on where the groups end and must not be replayed for a different batch. A smaller batch
            /// is not split, so its ops do not depend on the groups.
            fn max_head_rows(&self, _dims: HeadDims) -> usize {
                usize::MAX
            }
            /// Values for [`Backend::set_max_head_rows`] that a memory plan chooses from, the
            /// default first, then ever smaller ones. Empty if the backend does not split batches.
            fn head_row_choices(&self, _dims: HeadDims) -> Vec<usize> {
                Vec::new()
            }
            /// Sets [`Backend::max_head_rows`]; 0 sets the default. The value does not change any bit of a
            /// result.
            fn set_max_head_rows(&self, _rows: usize) {}

            /// Allocates a zeroed buffer of activations or weights.
            fn zeros_act(&self, len: usize) -> Result<Self::Act>;
            /// Allocates a zeroed buffer of statistics, gradients or optimiser state.
            fn zeros_acc(&self, len: usize) -> Result<Self::Acc>;
            /// Allocates a zeroed buffer of indices.
            fn zeros_idx(&self, len: usize) -> Result<Self::Idx>;

            /// Copies to the device, rounded to the precision of `Act`. `source.len()` must equal
            /// the view's length, here and in the other copies.
            fn write_act(&self, to: ViewMut<'_, Self::Act>, source: &[f64]) -> Result<()>;
            /// Copies to the device, rounded to the precision of `Acc`.
            fn write_acc(&self, to: ViewMut<'_, Self::Acc>, source: &[f64]) -> Result<()>;
            /// Copies indices to the device.
            fn write_idx(&self, to: ViewMut<'_, Self::Idx>, source: &[i32]) -> Result<()>;
            /// Copies to the host, exactly. Waits for the ops that produce the values.
            fn read_act(&self, from: View<'_, Self::Act>, to: &mut [f64]) -> Result<()>;
            /// Copies to the host, exactly. Waits for the ops that produce the values.
            fn read_acc(&self, from: View<'_, Self::Acc>, to: &mut [f64]) -> Result<()>;
            /// Enqueues the copy of a view to another buffer. Both views have the same length.
            fn copy_act(&self, from: View<'_, Self::Act>, to: ViewMut<'_, Self::Act>) -> Result<()>;
            /// Enqueues the copy of a view to another buffer. Both views have the same length.
            fn copy_acc(&self, from: View<'_, Self::Acc>, to: ViewMut<'_, Self::Acc>) -> Result<()>;
            /// Enqueues zeroing a view.
            fn clear_acc(&self, to: ViewMut<'_, Self::Acc>) -> Result<()>;

            /// Allocates a staging buffer for a batch of `indices` indices and `numbers` numbers.
            fn upload_buffer(&self, indices: usize, numbers: usize) -> Result<Self::UploadBuffer>;
            /// Starts the copy of a batch to the device, concurrent with the ops in flight. Waits
            /// only until the previous batch of this upload buffer has arrived.
            fn send(&self, upload_buffer: &mut Self::UploadBuffer, indices: &[i32], numbers: &[f64]) -> Result<()>;
            /// Enqueues the copy of the sent batch to the start of the buffers.
            fn receive(&self, upload_buffer: &mut Self::UploadBuffer, indices: &mut Self::Idx, numbers: &mut Self::Acc) -> Result<()>;
            /// Allocates a staging buffer for `len` results.
            fn readback_buffer(&self, len: usize) -> Result<Self::ReadbackBuffer>;
            /// Enqueues the copy of a view to the readback buffer, starting at element `at`.
            fn fetch(&self, from: View<'_, Self::Acc>, readback_buffer: &mut Self::ReadbackBuffer, at: usize) -> Result<()>;
            /// Copies the first `to.len()` results of a readback buffer, exactly. Waits for the
            /// fetches, but not for ops enqueued after them.
            fn open(&self, readback_buffer: &mut Self::ReadbackBuffer, to: &mut [f64]) -> Result<()>;

            /// Enqueues a timestamp. Its time is when the ops enqueued before it are done.
            fn stamp(&self) -> Result<Self::Stamp>;
            /// Seconds from timestamp `from` to the later timestamp `to`. Waits for `to`.
            fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> Result<f64>;

            /// Records the ops that `work` calls instead of running them (CUDA graph capture).
            /// Returns `None` without calling `work` if the backend cannot record. Fails if `work`
            /// fails, waits, allocates, or copies between host and device.
            fn record(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
                Ok(None)
            }
            /// Enqueues recorded ops. Returns false and does nothing if any buffer has been freed
            /// since they were recorded; the caller must then record them again.
            fn replay(&self, _graph: &Self::Graph) -> Result<bool> {
                Ok(false)
            }

            $(
                $(#[$doc])*
                fn $op(&self, args: $Args<'_, Self>) -> Result<()> {
                    args.check()?;
                    let _range = nvtx::Range::named(c_name(concat!(stringify!($op), "\0")));
                    let Some(from) = self.op_start()? else { return self.$op_impl(args) };
                    let cost = args.cost();
                    self.$op_impl(args)?;
                    self.op_end(Op::$op as usize, cost, from)
                }
                #[doc = concat!("Implementation of [`Backend::", stringify!($op), "`]; the contract has been checked.")]
                fn $op_impl(&self, args: $Args<'_, Self>) -> Result<()>;
            )*

            $(
                $(#[$composite_doc])*
                fn $composite(&self, args: $Composite<'_, Self>) -> Result<()> {
                    args.check()?;
                    let _range = nvtx::Range::named(c_name(concat!(stringify!($composite), "\0")));
                    let from = if self.$is_fused(&args) { self.op_start()? } else { None };
                    let Some(from) = from else { return self.$composite_impl(args) };
                    let cost = args.cost();
                    self.$composite_impl(args)?;
                    self.op_end(Op::$composite as usize, cost, from)
                }
                #[doc = concat!("Implementation of [`Backend::", stringify!($composite), "`]; the contract has been ")]
                #[doc = "checked. By default, runs the sequence of ops that the composite equals."]
                fn $composite_impl(&self, args: $Composite<'_, Self>) -> Result<()> {
                    composite::$composite(self, args)
                }
                #[doc = concat!("Whether [`Backend::", stringify!($composite_impl), "`] runs this call as one fused op, ")]
                #[doc = "which is timed under its own name. Otherwise the ops of the sequence are timed under theirs."]
                fn $is_fused(&self, _args: &$Composite<'_, Self>) -> bool {
                    false
                }
            )*
        }

        /// Indices of the ops in [`OPS`].
        #[allow(non_camel_case_types)]
        enum Op {
            $($op,)*
            $($composite),*
        }

        /// Names of all ops in the order of the list, composites last.
        pub const OPS: &[&str] = &[$(stringify!($op),)* $(stringify!($composite)),*];
    };
}

// The ops. A line holds the trait method, its `_impl` method and the argument struct, which
// documents the shape and meaning of every buffer.
//
// Formulas: t is a token, r a head row, s a sequence and v a vocabulary entry; `(+)=` overwrites or
// adds, as the argument `write` says; gradients are `d` and the name of the variable. NT, NN and TN
// tell which operand of a GEMM is transposed, as in BLAS.
backend! {
    /// Gathers rows of the embedding table: `x[t] = table[ids[t]]`.
    embedding_fwd, embedding_fwd_impl: EmbeddingFwd;
    /// Gradient of the table: `dtable[v] (+)= sum of dx[t] over t with id v`, in ascending t.
    embedding_bwd, embedding_bwd_impl: EmbeddingBwd;
    /// `x = factor * x + addend`, in place. Without the addend, the op is its own gradient.
    scale, scale_impl: Scale;
    /// RMSNorm (arXiv 1910.07467) of a sum: `sum = x + residual; y = sum / rms(sum) * weight`.
    norm_fwd, norm_fwd_impl: NormFwd;
    /// Gradient of [`Backend::norm_fwd`] with respect to the sum and the weight.
    norm_bwd, norm_bwd_impl: NormBwd;
    /// LayerNorm (arXiv 1607.06450): `y = (x - mean) / deviation * weight + bias`.
    layer_norm_fwd, layer_norm_fwd_impl: LayerNormFwd;
    /// Gradient of [`Backend::layer_norm_fwd`] with respect to x, the weight and the bias.
    layer_norm_bwd, layer_norm_bwd_impl: LayerNormBwd;
    /// RMSNorm of every query and key head, in place; value heads stay unchanged.
    qk_norm_fwd, qk_norm_fwd_impl: QkNormFwd;
    /// Gradient of [`Backend::qk_norm_fwd`] with respect to its input, in place, and the weights.
    qk_norm_bwd, qk_norm_bwd_impl: QkNormBwd;
    /// Linear layer: `y = x weightᵀ + bias + residual` (NT).
    linear_fwd, linear_fwd_impl: LinearFwd;
    /// Input gradient of a linear layer: `dx (+)= dy weight` (NN).
    linear_bwd_input, linear_bwd_input_impl: LinearBwdInput;
    /// Weight gradient of a linear layer: `dweight (+)= dyᵀ x` (TN); optionally its patch norms.
    linear_bwd_weight, linear_bwd_weight_impl: LinearBwdWeight;
    /// Bias gradient of a linear layer: `dbias (+)= column sums of dy`.
    bias_bwd, bias_bwd_impl: BiasBwd;
    /// RoPE (arXiv 2104.09864): rotates queries and keys by their positions, in place.
    rope_fwd, rope_fwd_impl: Rope;
    /// Gradient of [`Backend::rope_fwd`]: the inverse rotation of the gradients, in place.
    rope_bwd, rope_bwd_impl: Rope;
    /// SwiGLU or GeGLU (arXiv 2002.05202): `act = silu(gate) * up`, or `gelu(gate) * up`.
    glu_fwd, glu_fwd_impl: GluFwd;
    /// Gradient of [`Backend::glu_fwd`] with respect to gate and up.
    glu_bwd, glu_bwd_impl: GluBwd;
    /// GELU (arXiv 1606.08415): `act = gelu(x)`.
    gelu_fwd, gelu_fwd_impl: GeluFwd;
    /// Gradient of [`Backend::gelu_fwd`], in place.
    gelu_bwd, gelu_bwd_impl: GeluBwd;
    /// Linear layer to gate and up (NT) with SwiGLU as epilogue; stores gate and up on request.
    linear_glu_fwd, linear_glu_fwd_impl: LinearGluFwd;
    /// Input gradient of the down projection (NN) with the gradient of SwiGLU as epilogue: from
    /// `dy` to the gradients of gate and up.
    linear_glu_bwd, linear_glu_bwd_impl: LinearGluBwd;
    /// Causal grouped-query softmax attention over prefix trees.
    attention_fwd, attention_fwd_impl: AttentionFwd;
    /// Gradient of [`Backend::attention_fwd`] with respect to queries, keys and values.
    attention_bwd, attention_bwd_impl: AttentionBwd;
    /// Stores new keys and values in a cache, then causal grouped-query softmax attention of the new tokens
    /// over paths in the cache. Only generation uses this op, so it has no gradient.
    attention_cached_fwd, attention_cached_fwd_impl: AttentionCachedFwd;
    /// Vocabulary head: `logp[r] = log_softmax(hidden[source[r]] · headᵀ)[target[r]]` and the row's
    /// logsumexp; never stores the logits.
    head_logprob_fwd, head_logprob_fwd_impl: HeadLogprobFwd;
    /// Gradient of [`Backend::head_logprob_fwd`] with respect to the hidden rows and, unless it is
    /// frozen, the head; recomputes the logits in chunks.
    head_logprob_bwd, head_logprob_bwd_impl: HeadLogprobBwd;
    /// Log-softmax and gather over stored logits: the oracle of [`Backend::head_logprob_fwd`].
    logprob_fwd, logprob_fwd_impl: LogprobFwd;
    /// Gradient of [`Backend::logprob_fwd`]; overwrites the logits.
    logprob_bwd, logprob_bwd_impl: LogprobBwd;
    /// Scalar reward head: `score[s] = hidden[rows[s]] · weight`.
    reward_head_fwd, reward_head_fwd_impl: RewardHeadFwd;
    /// Gradient of [`Backend::reward_head_fwd`] with respect to the hidden rows and the weight.
    reward_head_bwd, reward_head_bwd_impl: RewardHeadBwd;
    /// Sum or mean of the values of each sequence's rows, in ascending row order.
    segment_sum_fwd, segment_sum_fwd_impl: SegmentSumFwd;
    /// Gradient of [`Backend::segment_sum_fwd`].
    segment_sum_bwd, segment_sum_bwd_impl: SegmentSumBwd;
    /// Comparison losses over sequence scores: the losses, the gradient of every score, and sums
    /// per comparison kind.
    preference_fwd, preference_fwd_impl: PreferenceFwd;
    /// Global gradient norm in a fixed order of summation, the clip factor, and whether the
    /// gradient is finite.
    grad_norm, grad_norm_impl: GradNorm;
    /// AdamW with decoupled weight decay (arXiv 1711.05101); the device skips the update if the
    /// gradient is not finite.
    adamw, adamw_impl: AdamW;

    => composites:
    /// Vocabulary head, comparison losses and the gradients of both: from hidden rows to `dhidden`.
    head_preference, head_preference_impl, fuses_head_preference: HeadPreference;
    /// Linear layer to queries, keys and values (NT), then RoPE of queries and keys.
    linear_rope_fwd, linear_rope_fwd_impl, fuses_linear_rope_fwd: LinearRopeFwd;
    /// Gradient of attention, then of RoPE: from the gradient of the output to that of the unrotated
    /// queries, keys and values.
    attention_rope_bwd, attention_rope_bwd_impl, fuses_attention_rope_bwd: AttentionRopeBwd;
}
