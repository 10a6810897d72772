//! The backend of handwritten CUDA kernels (`kernels/*.cu`), over any [`Device`]: a GPU through the driver, or the emulator.
//! What is here packs arguments, chooses grids and holds scratch memory; arithmetic is in the kernels.
//!
//! Every result is the same bits for any grid, number of multiprocessors and order of threads, and a row of a result does
//! not depend on the other rows of the call.

mod attention;
pub mod device;
pub mod driver;
pub mod emulator;
pub mod geometry;
mod head;
pub mod hopper;
pub mod launchers;
mod linear;
mod loss;
mod optim;
pub mod rehearsal;
mod rowwise;
mod scratch;
mod tensor_map;
mod transfer;

// Text processing of build.rs, compiled here for its tests.
#[cfg(test)]
#[allow(dead_code)]
mod exports;
#[cfg(test)]
#[allow(dead_code)]
mod generate;
#[cfg(test)]
mod grammar;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::contract::*;
use super::probe::{OpTime, Probe};
use super::{Backend, Buffer, View, ViewMut, composite};
use crate::{Error, Result};
use device::{Device, Element, Read, Write};
use geometry::{Choice, Chosen, Sizes};
use hopper::Hopper;
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

/// An op between two moments.
struct Observed<D: Device> {
    op: usize,
    cost: Cost,
    from: D::Stamp,
    to: D::Stamp,
}

/// Kernels on device `D` with activations and weights stored as `A`, sums in f32.
pub struct Kernels<D: Device, A> {
    device: D,
    scratch: Mutex<Option<(D::Memory, usize)>>,
    /// Arrays and pieces of scratch memory that have been freed: recorded work is good while this stands still.
    freed: Arc<AtomicU64>,
    probe: Option<Probe>,
    /// Timed ops whose times are not known yet, where the device works by itself.
    observed: Mutex<Vec<Observed<D>>>,
    /// Ops are being recorded, and take no time now.
    recording: AtomicBool,
    /// How linear layers are done on a Hopper card.
    hopper: Hopper,
    /// Most rows of a chunk of the head with its loss, if not as many as its memory allows.
    head_rows: Option<usize>,
    /// Products whose tiles were chosen, where op calls are timed or foretold.
    chosen: Option<Mutex<Vec<Chosen>>>,
    /// Turns of parts of sums: zeros between launches.
    turns: Mutex<Option<D::Memory>>,
    activations: PhantomData<fn() -> A>,
}

impl<D: Device, A: Element> Kernels<D, A> {
    /// A backend on `device`.
    pub fn new(device: D) -> Self {
        Self {
            device,
            scratch: Mutex::new(None),
            freed: Arc::default(),
            probe: None,
            observed: Mutex::default(),
            recording: AtomicBool::new(false),
            hopper: Hopper::of_environment(),
            head_rows: None,
            chosen: None,
            turns: Mutex::new(None),
            activations: PhantomData,
        }
    }

    /// As [`Kernels::new`], with every op call timed, but for those of recorded steps.
    pub fn probed(device: D) -> Self {
        Self { probe: Some(Probe::default()), ..Self::new(device) }
    }

    /// This backend with linear layers done in another way.
    pub fn with_hopper(self, hopper: Hopper) -> Self {
        Self { hopper, ..self }
    }

    /// This backend with chunks of so many rows in [`Backend::head_preference`], where it works in chunks.
    pub fn with_head_rows(self, rows: usize) -> Self {
        Self { head_rows: Some(rows), ..self }
    }

    /// This backend, which keeps what tiles its products were cut into.
    pub fn keeping_choices(self) -> Self {
        Self { chosen: Some(Mutex::default()), ..self }
    }

    /// Products whose tiles were chosen since the last call of this, in the order of their launches.
    pub fn take_chosen(&self) -> Vec<Chosen> {
        let Some(chosen) = &self.chosen else { return Vec::new() };
        std::mem::take(&mut *chosen.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Notes the tiles of a product.
    fn chose(&self, op: &'static str, sizes: Sizes, choice: Choice) {
        if let Some(chosen) = &self.chosen {
            chosen.lock().unwrap_or_else(|e| e.into_inner()).push(Chosen { op, sizes, choice });
        }
    }

    /// Address of words for the turns of a launch, all zero; 0 for no words. Every call must ask for as many or none.
    fn turns(&self, words: usize) -> Result<u64> {
        if words == 0 {
            return Ok(0);
        }
        let mut turns = self.turns.lock().unwrap_or_else(|e| e.into_inner());
        if turns.is_none() {
            *turns = Some(self.device.allocate(words * size_of::<i32>())?);
        }
        Ok(turns.as_ref().map_or(0, D::address))
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, when nothing of it is in use any more.
    pub fn into_device(self) -> D {
        self.device
    }

    fn zeros<T>(&self, len: usize) -> Result<Array<D, T>> {
        let bytes = len.checked_mul(size_of::<T>()).unwrap_or(usize::MAX / 2).max(1);
        Ok(Array { memory: self.device.allocate(bytes)?, len, freed: self.freed.clone(), element: PhantomData })
    }

    fn upload<T: Element>(&self, to: ViewMut<'_, Array<D, T>>, source: &[f64]) -> Result<()> {
        expect_len("write", "source", source.len(), to.len)?;
        let values: Vec<T> = source.par_iter().with_min_len(1 << 14).map(|&x| T::of(x)).collect();
        self.device.upload(&mut to.buffer.memory, to.start * size_of::<T>(), bytemuck::cast_slice(&values))
    }

    fn download<T: Element>(&self, from: View<'_, Array<D, T>>, to: &mut [f64]) -> Result<()> {
        expect_len("read", "to", to.len(), from.len)?;
        let mut values = vec![T::of(0.0); from.len];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.device.download(&from.buffer.memory, from.start * size_of::<T>(), bytes)?;
        to.iter_mut().zip(&values).for_each(|(to, x)| *to = x.value());
        Ok(())
    }

    /// Zeroes a view.
    fn clear<T>(&self, view: ViewMut<'_, Array<D, T>>) -> Result<()> {
        let size = size_of::<T>();
        self.device.clear(&mut view.buffer.memory, view.start * size, view.len * size)
    }

    /// Blocks for rows that are taken by stride: enough to fill the device several times over.
    fn row_blocks(&self, rows: usize, rows_of_a_block: usize) -> usize {
        rows.div_ceil(rows_of_a_block).min(self.device.properties().processors * 8)
    }
}

/// Address of a view for reading.
fn read<D: Device, T>(view: View<'_, Array<D, T>>) -> Read<T> {
    Read::new(D::address(&view.buffer.memory), view.start)
}

/// Device address of a view, for libraries that are compared with the kernels.
pub fn address<D: Device, T>(view: View<'_, Array<D, T>>) -> u64 {
    read(view).address()
}

/// Address of a view for reading; none when it is absent.
fn read_option<D: Device, T>(view: Option<View<'_, Array<D, T>>>) -> Read<T> {
    view.map_or(Read::NONE, read)
}

/// Address of a view for writing.
fn write<D: Device, T>(view: &mut ViewMut<'_, Array<D, T>>) -> Write<T> {
    Write::new(D::address(&view.buffer.memory), view.start)
}

/// Address of a view for writing; none when it is absent.
fn write_option<D: Device, T>(view: &mut Option<ViewMut<'_, Array<D, T>>>) -> Write<T> {
    view.as_mut().map_or(Write::NONE, write)
}

/// 1 when an output is added to, 0 when it is overwritten, as kernels take it.
fn adds(write: super::Write) -> i32 {
    i32::from(write == super::Write::Add)
}

/// A size as kernels take it. [`Error::Runtime`] for one that kernels cannot count.
fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| {
        Error::Runtime(format!("a size of {size} is beyond what kernels count (2^31); choose a smaller batch or model"))
    })
}

impl<D: Device, A: Element> Backend for Kernels<D, A> {
    type Act = Array<D, A>;
    type Acc = Array<D, f32>;
    type Idx = Array<D, i32>;
    type Inlet = transfer::Inlet<D>;
    type Outlet = transfer::Outlet<D>;
    type Graph = transfer::Graph<D>;
    type Stamp = D::Stamp;

    const ASYNCHRONOUS: bool = D::ASYNCHRONOUS;
    const NAME: &'static str = D::NAME;
    const PRECISION: Precision = A::PRECISION;
    const NUMERICS: u32 = 4;

    fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    fn moment(&self) -> Result<Option<D::Stamp>> {
        if self.probe.is_none() || self.recording.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.device.stamp().map(Some)
    }
    fn observe(&self, op: usize, cost: Cost, from: D::Stamp) -> Result<()> {
        let to = self.device.stamp()?;
        self.observed.lock().unwrap_or_else(|e| e.into_inner()).push(Observed { op, cost, from, to });
        Ok(())
    }
    fn op_times(&self) -> Result<Vec<OpTime>> {
        let Some(probe) = &self.probe else { return Ok(Vec::new()) };
        let observed = std::mem::take(&mut *self.observed.lock().unwrap_or_else(|e| e.into_inner()));
        for o in observed {
            let seconds = self.device.seconds_between(&o.from, &o.to)?;
            probe.add(o.op, Duration::from_secs_f64(seconds.max(0.0)), o.cost);
        }
        Ok(probe.take())
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
    /// One number, such as a step's learning rate, takes its place in the work and waits for nothing.
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

    fn inlet(&self, indices: usize, numbers: usize) -> Result<Self::Inlet> {
        self.new_inlet(indices, numbers)
    }
    fn send(&self, inlet: &mut Self::Inlet, indices: &[i32], numbers: &[f64]) -> Result<()> {
        self.send_batch(inlet, indices, numbers)
    }
    fn receive(&self, inlet: &mut Self::Inlet, indices: &mut Self::Idx, numbers: &mut Self::Acc) -> Result<()> {
        self.receive_batch(inlet, indices, numbers)
    }
    fn outlet(&self, len: usize) -> Result<Self::Outlet> {
        self.new_outlet(len)
    }
    fn fetch(&self, from: View<'_, Self::Acc>, outlet: &mut Self::Outlet, at: usize) -> Result<()> {
        self.fetch_view(from, outlet, at)
    }
    fn open(&self, outlet: &mut Self::Outlet, to: &mut [f64]) -> Result<()> {
        self.open_outlet(outlet, to)
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
        rowwise::embedding_fwd(self, a)
    }
    fn embedding_bwd_impl(&self, a: EmbeddingBwd<'_, Self>) -> Result<()> {
        rowwise::embedding_bwd(self, a)
    }
    fn norm_fwd_impl(&self, a: NormFwd<'_, Self>) -> Result<()> {
        rowwise::norm_fwd(self, a)
    }
    fn norm_bwd_impl(&self, a: NormBwd<'_, Self>) -> Result<()> {
        rowwise::norm_bwd(self, a)
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
        rowwise::bias_bwd(self, a)
    }
    fn rope_fwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rowwise::rope(self, a, 1.0)
    }
    fn rope_bwd_impl(&self, a: Rope<'_, Self>) -> Result<()> {
        rowwise::rope(self, a, -1.0)
    }
    fn glu_fwd_impl(&self, a: GluFwd<'_, Self>) -> Result<()> {
        rowwise::glu_fwd(self, a)
    }
    fn glu_bwd_impl(&self, a: GluBwd<'_, Self>) -> Result<()> {
        rowwise::glu_bwd(self, a)
    }
    fn linear_glu_fwd_impl(&self, a: LinearGluFwd<'_, Self>) -> Result<()> {
        linear::linear_glu_fwd(self, a)
    }
    fn linear_glu_bwd_impl(&self, a: LinearGluBwd<'_, Self>) -> Result<()> {
        linear::linear_glu_bwd(self, a)
    }
    fn attention_fwd_impl(&self, a: AttentionFwd<'_, Self>) -> Result<()> {
        attention::attention_fwd(self, a)
    }
    fn attention_bwd_impl(&self, a: AttentionBwd<'_, Self>) -> Result<()> {
        attention::attention_bwd(self, a)
    }
    fn head_logprob_fwd_impl(&self, a: HeadLogprobFwd<'_, Self>) -> Result<()> {
        head::head_logprob_fwd(self, a)
    }
    fn head_logprob_bwd_impl(&self, a: HeadLogprobBwd<'_, Self>) -> Result<()> {
        head::head_logprob_bwd(self, a)
    }
    fn logprob_fwd_impl(&self, a: LogprobFwd<'_, Self>) -> Result<()> {
        rowwise::logprob_fwd(self, a)
    }
    fn logprob_bwd_impl(&self, a: LogprobBwd<'_, Self>) -> Result<()> {
        rowwise::logprob_bwd(self, a)
    }
    fn reward_head_fwd_impl(&self, a: RewardHeadFwd<'_, Self>) -> Result<()> {
        loss::reward_head_fwd(self, a)
    }
    fn reward_head_bwd_impl(&self, a: RewardHeadBwd<'_, Self>) -> Result<()> {
        loss::reward_head_bwd(self, a)
    }
    fn segment_sum_fwd_impl(&self, a: SegmentSumFwd<'_, Self>) -> Result<()> {
        loss::segment_sum_fwd(self, a)
    }
    fn segment_sum_bwd_impl(&self, a: SegmentSumBwd<'_, Self>) -> Result<()> {
        loss::segment_sum_bwd(self, a)
    }
    fn preference_fwd_impl(&self, a: PreferenceFwd<'_, Self>) -> Result<()> {
        loss::preference_fwd(self, a)
    }
    fn head_preference_impl(&self, a: HeadPreference<'_, Self>) -> Result<()> {
        if hopper::head::does_preference(self, &a) {
            hopper::head::preference(self, a)
        } else {
            composite::head_preference(self, a)
        }
    }
    fn fuses_head_preference(&self, a: &HeadPreference<'_, Self>) -> bool {
        hopper::head::does_preference(self, a)
    }
    fn head_rows_at_once(&self, d: HeadDims) -> usize {
        hopper::head::rows_at_once(self, d)
    }
    fn grad_norm_impl(&self, a: GradNorm<'_, Self>) -> Result<()> {
        optim::grad_norm(self, a)
    }
    fn adamw_impl(&self, a: AdamW<'_, Self>) -> Result<()> {
        optim::adamw(self, a)
    }
}
