//! The backend of handwritten CUDA kernels (`kernels/*.cu`), over any [`Device`]: a GPU through the
//! driver, or the emulator. This module packs arguments, chooses grids and holds scratch memory.
//! The kernels do the arithmetic.
//!
//! The bits of results do not depend on the grid, the number of multiprocessors, the order of threads, or
//! other rows of a call.

mod attention;
mod attention_cached;
pub mod device;
pub mod driver;
mod embedding;
pub mod emulator;
mod gelu;
pub mod geometry;
mod glu;
mod head;
pub mod hopper;
pub mod launchers;
mod layer_norm;
mod linear;
pub(crate) mod nccl;
mod norm;
mod observed;
mod optim;
pub(crate) mod own;
mod own_curve;
mod pointers;
mod preference;
pub(crate) mod rehearsal;
mod reward;
mod rope;
mod scale;
mod scratch;
mod segment;
mod tensor_map;
pub(crate) mod tile_file;
mod transfer;

// These modules are shared with build.rs.
mod compile;
#[allow(dead_code)]
mod exports;
#[allow(dead_code)]
mod generate;
mod grammar;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::collective::DeviceCollective;
use super::contract::*;
use super::probe::{OpTime, Probe};
use super::{Backend, Buffer, View, ViewMut, composite};
use crate::{Error, Result};
use device::{Device, Element};
use geometry::{Choice, Chosen, Sizes, TileTimes};
use hopper::Hopper;
use launchers::WARP;
use observed::Observed;
pub use pointers::address;
use pointers::{read, read_option, write, write_option};
use rayon::prelude::*;
use scratch::{Piece, Scratch};

/// A one-dimensional array on a device.
pub struct Array<D: Device, T> {
    memory: D::Memory,
    len: usize,
    freed: Arc<AtomicU64>,
    element: PhantomData<fn() -> T>,
}

impl<D: Device, T> Drop for Array<D, T> {
    fn drop(&mut self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }
}

impl<D: Device, T> Buffer for Array<D, T> {
    fn len(&self) -> usize {
        self.len
    }
}

/// Kernels on device `D` with activations and weights stored as `A`, sums in f32.
pub struct Kernels<D: Device, A> {
    device: D,
    scratch: Mutex<Option<(D::Memory, usize)>>,
    /// Count of freed arrays and scratch allocations. Captured work stays valid while this count does not
    /// change.
    freed: Arc<AtomicU64>,
    probe: Option<Probe>,
    /// Timed ops of an asynchronous device whose times are not read yet.
    observed: Mutex<Vec<Observed<D>>>,
    /// Whether ops are being captured and therefore not timed.
    recording: AtomicBool,
    /// Use of the Hopper kernels.
    hopper: Hopper,
    /// Whether RoPE runs as a separate op instead of in epilogues.
    apart_rotations: bool,
    /// Constants of the tile choice that were fitted on this GPU.
    tile_times: Option<&'static TileTimes>,
    /// Maximum number of rows per chunk of the vocabulary head; 0 for the default.
    head_rows: AtomicUsize,
    /// GEMMs and their tiles, if they are recorded.
    chosen: Option<Mutex<Vec<Chosen>>>,
    /// Split-K semaphores, zero between launches.
    semaphores: Mutex<Option<D::Memory>>,
    /// Collectives with other ranks.
    ranks: Option<Arc<dyn nccl::Calls>>,
    activations: PhantomData<fn() -> A>,
}

impl<D: Device, A: Element> Kernels<D, A> {
    /// A backend on `device`.
    pub fn new(device: D) -> Self {
        Self {
            scratch: Mutex::new(None),
            freed: Arc::default(),
            probe: None,
            observed: Mutex::default(),
            recording: AtomicBool::new(false),
            hopper: Hopper::of_environment(),
            apart_rotations: false,
            tile_times: tile_file::of_device::<D>(&device.properties().name),
            device,
            head_rows: AtomicUsize::new(0),
            chosen: None,
            semaphores: Mutex::new(None),
            ranks: None,
            activations: PhantomData,
        }
    }

    /// Like [`Kernels::new`], but every op call outside of captured steps is timed.
    pub fn probed(device: D) -> Self {
        Self { probe: Some(Probe::default()), ..Self::new(device) }
    }

    /// Sets the use of the Hopper kernels.
    pub fn with_hopper(self, hopper: Hopper) -> Self {
        Self { hopper, ..self }
    }

    /// If `apart_rotations` is true, RoPE runs as a separate op instead of in epilogues.
    pub(crate) fn with_apart_rotations(self, apart_rotations: bool) -> Self {
        Self { apart_rotations, ..self }
    }

    /// Sets the maximum number of rows of a chunk of [`Backend::head_preference`], if it works in chunks.
    pub fn with_head_rows(self, rows: usize) -> Self {
        self.head_rows.store(rows, Ordering::Relaxed);
        self
    }

    /// Records the GEMMs of ops and their tiles.
    pub fn keeping_choices(self) -> Self {
        Self { chosen: Some(Mutex::default()), ..self }
    }

    /// Returns and clears the GEMMs recorded since the last call, in the order of their launches.
    pub fn take_chosen(&self) -> Vec<Chosen> {
        let Some(chosen) = &self.chosen else { return Vec::new() };
        std::mem::take(&mut *chosen.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Records the tile of a GEMM.
    fn note_choice(&self, op: &'static str, sizes: Sizes, choice: Choice) {
        if let Some(chosen) = &self.chosen {
            chosen.lock().unwrap_or_else(|e| e.into_inner()).push(Chosen { op, sizes, choice });
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Returns the device. The arrays of the backend must have been dropped before.
    pub fn into_device(self) -> D {
        self.device
    }

    fn zeros<T>(&self, len: usize) -> Result<Array<D, T>> {
        let bytes = len.checked_mul(size_of::<T>()).unwrap_or(usize::MAX / 2).max(1);
        Ok(Array { memory: self.device.allocate(bytes)?, len, freed: self.freed.clone(), element: PhantomData })
    }

    fn upload<T: Element>(&self, to: ViewMut<'_, Array<D, T>>, source: &[f64]) -> Result<()> {
        expect_len("write", "source", source.len(), to.len)?;
        let source = if D::STORES { source } else { &[] };
        let values: Vec<T> = source.par_iter().with_min_len(1 << 14).map(|&x| T::of(x)).collect();
        self.device.upload(&mut to.buffer.memory, to.start * size_of::<T>(), bytemuck::cast_slice(&values))
    }

    fn download<T: Element>(&self, from: View<'_, Array<D, T>>, to: &mut [f64]) -> Result<()> {
        expect_len("read", "to", to.len(), from.len)?;
        let mut values = vec![T::of(0.0); if D::STORES { from.len } else { 0 }];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.device.download(&from.buffer.memory, from.start * size_of::<T>(), bytes)?;
        to.iter_mut().zip(&values).for_each(|(to, x)| *to = x.value());
        to[values.len()..].fill(0.0);
        Ok(())
    }

    /// Enqueues zeroing a view.
    fn clear<T>(&self, view: ViewMut<'_, Array<D, T>>) -> Result<()> {
        let size = size_of::<T>();
        self.device.clear(&mut view.buffer.memory, view.start * size, view.len * size)
    }

    /// Number of blocks of a grid-stride loop over rows: one for `rows_per_block` rows, and at most eight per
    /// multiprocessor.
    fn row_blocks(&self, rows: usize, rows_per_block: usize) -> usize {
        rows.div_ceil(rows_per_block).min(self.device.properties().processors * 8)
    }
}

/// Number of parts of a row of `width` elements. A warp processes one part at a time, 16 bytes per lane.
fn warp_vectors<A>(width: usize) -> usize {
    width.div_ceil(WARP * 16 / size_of::<A>())
}

/// The `add` parameter of kernels: 1 if the output is added to, 0 if it is overwritten.
fn adds(write: super::Write) -> i32 {
    i32::from(write == super::Write::Add)
}

/// Converts a size to a kernel parameter. Returns [`Error::Runtime`] if the size does not fit 32 bits.
fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| {
        Error::Runtime(format!(
            "a size of {size} is not below 2^31, the limit of the kernels; choose a smaller batch or model"
        ))
    })
}

impl<D: Device, A: Element> Backend for Kernels<D, A> {
    type Act = Array<D, A>;
    type Acc = Array<D, f32>;
    type Idx = Array<D, i32>;
    type UploadBuffer = transfer::UploadBuffer<D>;
    type ReadbackBuffer = transfer::ReadbackBuffer<D>;
    type Graph = transfer::Graph<D>;
    type Stamp = D::Stamp;

    const ASYNCHRONOUS: bool = D::ASYNCHRONOUS;
    const NAME: &'static str = D::NAME;
    const PRECISION: Precision = A::PRECISION;
    const NUMERICS: u32 = 9;

    fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    fn op_start(&self) -> Result<Option<D::Stamp>> {
        self.stamp_start()
    }
    fn op_end(&self, op: usize, cost: Cost, from: D::Stamp) -> Result<()> {
        self.observe(op, cost, from)
    }
    fn op_times(&self) -> Result<Vec<OpTime>> {
        self.take_observed()
    }

    fn memory_free(&self) -> Option<u64> {
        self.device.memory_free()
    }
    fn hardware_id(&self) -> Option<String> {
        self.device.hardware_id()
    }
    fn kernel_properties(&self) -> Option<&device::Properties> {
        Some(self.device.properties())
    }
    fn device_collective(&self) -> Option<&dyn DeviceCollective<Self>> {
        self.ranks.is_some().then_some(self as _)
    }
    fn reserve_workspace(&self, bytes: usize) -> Result<()> {
        self.reserve_scratch(bytes)
    }

    fn zeros_act(&self, len: usize) -> Result<Self::Act> {
        self.zeros(len)
    }
    fn zeros_acc(&self, len: usize) -> Result<Self::Acc> {
        self.zeros(len)
    }
    fn zeros_idx(&self, len: usize) -> Result<Self::Idx> {
        self.zeros(len)
    }
    fn write_act(&self, to: ViewMut<'_, Self::Act>, source: &[f64]) -> Result<()> {
        self.upload(to, source)
    }
    /// The write of a single number, such as a step's learning rate, is enqueued, so the call does not wait.
    fn write_acc(&self, to: ViewMut<'_, Self::Acc>, source: &[f64]) -> Result<()> {
        if let ([number], 1) = (source, to.len) {
            return self.device.put(&mut to.buffer.memory, to.start * size_of::<f32>(), (*number as f32).to_bits());
        }
        self.upload(to, source)
    }
    fn write_idx(&self, to: ViewMut<'_, Self::Idx>, source: &[i32]) -> Result<()> {
        expect_len("write_idx", "source", source.len(), to.len)?;
        self.device.upload(&mut to.buffer.memory, to.start * size_of::<i32>(), bytemuck::cast_slice(source))
    }
    fn read_act(&self, from: View<'_, Self::Act>, to: &mut [f64]) -> Result<()> {
        self.download(from, to)
    }
    fn read_acc(&self, from: View<'_, Self::Acc>, to: &mut [f64]) -> Result<()> {
        self.download(from, to)
    }
    fn copy_act(&self, from: View<'_, Self::Act>, to: ViewMut<'_, Self::Act>) -> Result<()> {
        self.copy(from, to)
    }
    fn copy_acc(&self, from: View<'_, Self::Acc>, to: ViewMut<'_, Self::Acc>) -> Result<()> {
        self.copy(from, to)
    }
    fn clear_acc(&self, to: ViewMut<'_, Self::Acc>) -> Result<()> {
        self.clear(to)
    }
    fn upload_buffer(&self, indices: usize, numbers: usize) -> Result<Self::UploadBuffer> {
        self.new_upload_buffer(indices, numbers)
    }
    fn send(&self, upload_buffer: &mut Self::UploadBuffer, indices: &[i32], numbers: &[f64]) -> Result<()> {
        self.send_batch(upload_buffer, indices, numbers)
    }
    fn receive(
        &self,
        upload_buffer: &mut Self::UploadBuffer,
        indices: &mut Self::Idx,
        numbers: &mut Self::Acc,
    ) -> Result<()> {
        self.receive_batch(upload_buffer, indices, numbers)
    }
    fn readback_buffer(&self, len: usize) -> Result<Self::ReadbackBuffer> {
        self.new_readback_buffer(len)
    }
    fn fetch(&self, from: View<'_, Self::Acc>, readback_buffer: &mut Self::ReadbackBuffer, at: usize) -> Result<()> {
        self.fetch_view(from, readback_buffer, at)
    }
    fn open(&self, readback_buffer: &mut Self::ReadbackBuffer, to: &mut [f64]) -> Result<()> {
        self.open_readback_buffer(readback_buffer, to)
    }
    fn stamp(&self) -> Result<D::Stamp> {
        self.device.stamp()
    }
    fn seconds_between(&self, from: &D::Stamp, to: &D::Stamp) -> Result<f64> {
        self.device.seconds_between(from, to)
    }
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
        self.recording.store(true, Ordering::Relaxed);
        let recorded = self.record_ops(work);
        self.recording.store(false, Ordering::Relaxed);
        recorded
    }
    fn replay(&self, graph: &Self::Graph) -> Result<bool> {
        self.replay_ops(graph)
    }

    fn embedding_fwd_impl(&self, a: EmbeddingFwd<'_, Self>) -> Result<()> {
        embedding::embedding_fwd(self, a)
    }
    fn embedding_bwd_impl(&self, a: EmbeddingBwd<'_, Self>) -> Result<()> {
        embedding::embedding_bwd(self, a)
    }
    fn scale_impl(&self, a: Scale<'_, Self>) -> Result<()> {
        scale::scale(self, a)
    }
    fn norm_fwd_impl(&self, a: NormFwd<'_, Self>) -> Result<()> {
        norm::norm_fwd(self, a)
    }
    fn norm_bwd_impl(&self, a: NormBwd<'_, Self>) -> Result<()> {
        norm::norm_bwd(self, a)
    }
    fn layer_norm_fwd_impl(&self, a: LayerNormFwd<'_, Self>) -> Result<()> {
        layer_norm::layer_norm_fwd(self, a)
    }
    fn layer_norm_bwd_impl(&self, a: LayerNormBwd<'_, Self>) -> Result<()> {
        layer_norm::layer_norm_bwd(self, a)
    }
    fn qk_norm_fwd_impl(&self, a: QkNormFwd<'_, Self>) -> Result<()> {
        norm::qk_norm_fwd(self, a)
    }
    fn qk_norm_bwd_impl(&self, a: QkNormBwd<'_, Self>) -> Result<()> {
        norm::qk_norm_bwd(self, a)
    }
    fn linear_fwd_impl(&self, a: LinearFwd<'_, Self>) -> Result<()> {
        linear::linear_fwd(self, a)
    }
    fn linear_bwd_input_impl(&self, a: LinearBwdInput<'_, Self>) -> Result<()> {
        linear::linear_bwd_input(self, a)
    }
    fn linear_bwd_weight_impl(&self, a: LinearBwdWeight<'_, Self>) -> Result<()> {
        linear::linear_bwd_weight(self, a)
    }
    fn bias_bwd_impl(&self, a: BiasBwd<'_, Self>) -> Result<()> {
        linear::bias_bwd(self, a)
    }
    fn rope_fwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rope::rope(self, a, 1.0)
    }
    fn rope_bwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rope::rope(self, a, -1.0)
    }
    fn glu_fwd_impl(&self, a: GluFwd<'_, Self>) -> Result<()> {
        glu::glu_fwd(self, a)
    }
    fn glu_bwd_impl(&self, a: GluBwd<'_, Self>) -> Result<()> {
        glu::glu_bwd(self, a)
    }
    fn gelu_fwd_impl(&self, a: GeluFwd<'_, Self>) -> Result<()> {
        gelu::gelu_fwd(self, a)
    }
    fn gelu_bwd_impl(&self, a: GeluBwd<'_, Self>) -> Result<()> {
        gelu::gelu_bwd(self, a)
    }
    fn linear_glu_fwd_impl(&self, a: LinearGluFwd<'_, Self>) -> Result<()> {
        glu::linear_glu_fwd(self, a)
    }
    fn linear_glu_bwd_impl(&self, a: LinearGluBwd<'_, Self>) -> Result<()> {
        glu::linear_glu_bwd(self, a)
    }
    fn attention_fwd_impl(&self, a: AttentionFwd<'_, Self>) -> Result<()> {
        attention::attention_fwd(self, a)
    }
    fn attention_bwd_impl(&self, a: AttentionBwd<'_, Self>) -> Result<()> {
        attention::attention_bwd(self, a)
    }
    fn attention_cached_fwd_impl(&self, a: AttentionCachedFwd<'_, Self>) -> Result<()> {
        attention_cached::attention_cached_fwd(self, a)
    }
    fn head_logprob_fwd_impl(&self, a: HeadLogprobFwd<'_, Self>) -> Result<()> {
        head::head_logprob_fwd(self, a)
    }
    fn head_logprob_bwd_impl(&self, a: HeadLogprobBwd<'_, Self>) -> Result<()> {
        head::head_logprob_bwd(self, a)
    }
    fn logprob_fwd_impl(&self, a: LogprobFwd<'_, Self>) -> Result<()> {
        head::logprob_fwd(self, a)
    }
    fn logprob_bwd_impl(&self, a: LogprobBwd<'_, Self>) -> Result<()> {
        head::logprob_bwd(self, a)
    }
    fn reward_head_fwd_impl(&self, a: RewardHeadFwd<'_, Self>) -> Result<()> {
        reward::reward_head_fwd(self, a)
    }
    fn reward_head_bwd_impl(&self, a: RewardHeadBwd<'_, Self>) -> Result<()> {
        reward::reward_head_bwd(self, a)
    }
    fn segment_sum_fwd_impl(&self, a: SegmentSumFwd<'_, Self>) -> Result<()> {
        segment::segment_sum_fwd(self, a)
    }
    fn segment_sum_bwd_impl(&self, a: SegmentSumBwd<'_, Self>) -> Result<()> {
        segment::segment_sum_bwd(self, a)
    }
    fn preference_fwd_impl(&self, a: PreferenceFwd<'_, Self>) -> Result<()> {
        preference::preference_fwd(self, a)
    }
    fn head_preference_impl(&self, a: HeadPreference<'_, Self>) -> Result<()> {
        match hopper::head::fuses_preference(self, &a) {
            true => hopper::head::preference(self, a),
            false => composite::head_preference(self, a),
        }
    }
    fn fuses_head_preference(&self, a: &HeadPreference<'_, Self>) -> bool {
        hopper::head::fuses_preference(self, a)
    }
    fn linear_rope_fwd_impl(&self, a: LinearRopeFwd<'_, Self>) -> Result<()> {
        hopper::rope::linear_rope_fwd(self, a)
    }
    fn fuses_linear_rope_fwd(&self, a: &LinearRopeFwd<'_, Self>) -> bool {
        hopper::rope::tile(self, a).is_some()
    }
    fn attention_rope_bwd_impl(&self, a: AttentionRopeBwd<'_, Self>) -> Result<()> {
        hopper::rope::attention_rope_bwd(self, a)
    }
    fn fuses_attention_rope_bwd(&self, a: &AttentionRopeBwd<'_, Self>) -> bool {
        hopper::rope::fuses_attention(self, a)
    }
    fn max_head_rows(&self, d: HeadDims) -> usize {
        hopper::head::rows_at_once(self, d)
    }
    fn head_row_choices(&self, d: HeadDims) -> Vec<usize> {
        hopper::head::row_choices_of(self, d)
    }
    fn set_max_head_rows(&self, rows: usize) {
        self.head_rows.store(rows, Ordering::Relaxed);
    }
    fn grad_norm_impl(&self, a: GradNorm<'_, Self>) -> Result<()> {
        optim::grad_norm(self, a)
    }
    fn adamw_impl(&self, a: AdamW<'_, Self>) -> Result<()> {
        optim::adamw(self, a)
    }
}
