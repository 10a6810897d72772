//! Buffers of the passes through the adapters. They belong to the activations of a model; with activations
//! that lack them, only the base runs.
//!
//! The ops accept only contiguous matrices, which requires two special forms:
//!
//! - The B of a GEMM with several targets are one block-diagonal matrix. A GEMM with s I below or
//!   above blocks of zeros writes a B to its rows and columns, and scales it.
//! - The gradient of one target's columns of a fused output is gathered into a separate matrix by
//!   [`Backend::embedding_fwd`]. The rows of its table are pieces of the output's rows.

use std::sync::Arc;

use super::super::activations::Mode;
use super::super::config::ModelConfig;
use super::super::decoder_grad::not_for_training;
use super::layout::{Group, GroupAdapter, LoraLayout};
use crate::Result;
use crate::backend::contract::Precision;
use crate::backend::{Backend, ViewMut};

/// Largest number of targets of a GEMM: query, key and value.
const MAX_TARGETS: usize = 3;

/// Buffers for a number of tokens.
pub struct LoraWorkspace<B: Backend> {
    pub layout: Arc<LoraLayout>,
    /// (layout.scaled) block-diagonal matrices of s B, set by every forward
    pub(super) scaled: B::Act,
    pub(super) factor: Factor<B>,
    /// By set of layer buffers and group: (tokens, width) h
    pub(super) low: Vec<[Option<B::Act>; 4]>,
    /// (tokens, outputs) low-rank part of an output; in the backward, columns of a gradient
    pub(super) wide: B::Act,
    pub(super) backward: Option<BackwardBuffers<B>>,
}

/// Buffers of a backward.
pub(super) struct BackwardBuffers<B: Backend> {
    /// (tokens, rank) s h of one target
    pub scaled_low: B::Act,
    /// (tokens, width) gradient of h
    pub dlow: B::Act,
    /// By group and target: pieces of the target's columns; `None` if the target has all columns
    pub pieces: [Vec<Option<Pieces<B>>>; 4],
    /// (norm_width, or 2 head_dim) unused gradients of frozen norms
    pub dnorm: B::Acc,
}

/// Columns of a row-major matrix as rows of a table.
pub(super) struct Pieces<B: Backend> {
    /// Elements of a piece.
    pub len: usize,
    /// Pieces per token in the target's columns; `row` counts those in all columns.
    pub count: usize,
    pub row: usize,
    /// (tokens, count)
    pub ids: B::Idx,
}

/// The factor s as a matrix.
pub(super) struct Factor<B: Backend> {
    rank: usize,
    /// ((2 MAX_TARGETS - 1) rank, rank): s I between zeros
    pub high: B::Act,
    /// The remainder of s that rounding removed from `high`, as a matrix of the same layout. Only bf16 loses
    /// enough to need it.
    pub low: Option<Remainder<B>>,
}

/// The part of s below the precision of `Act`.
pub(super) struct Remainder<B: Backend> {
    /// ((2 MAX_TARGETS - 1) rank, rank)
    pub matrix: B::Act,
    /// (outputs of a target, width) products of B with `matrix`
    pub products: B::Act,
}

impl<B: Backend> Factor<B> {
    fn new(backend: &B, layout: &LoraLayout) -> Result<Self> {
        let (rank, scale) = (layout.spec.rank, layout.spec.scale());
        let rounded = match B::PRECISION {
            Precision::F64 | Precision::F32 => scale,
            Precision::Bf16 => half::bf16::from_f64(scale).to_f64(),
        };
        let matrix = |value: f64| -> Result<B::Act> {
            let len = (2 * MAX_TARGETS - 1) * rank * rank;
            let mut matrix = backend.zeros_act(len)?;
            let mut diagonal = vec![0.0; rank * rank];
            diagonal.iter_mut().step_by(rank + 1).for_each(|x| *x = value);
            backend.write_act(ViewMut::new(&mut matrix, (MAX_TARGETS - 1) * rank * rank, rank * rank), &diagonal)?;
            Ok(matrix)
        };
        let low = match scale - rounded {
            0.0 => None,
            rest => {
                let of_group = |group: &GroupAdapter| {
                    group.targets.iter().map(|target| target.columns.len() * group.width).max().unwrap_or(0)
                };
                let len = layout.layers.iter().flatten().flatten().map(of_group).max().unwrap_or(0);
                Some(Remainder { matrix: matrix(rest)?, products: backend.zeros_act(len)? })
            }
        };
        Ok(Self { rank, high: matrix(rounded)?, low })
    }

    /// Index in `high` of the first element of the (width, rank) matrix with s I at rows `index * rank..`.
    pub fn start(&self, index: usize) -> usize {
        (MAX_TARGETS - 1 - index) * self.rank * self.rank
    }
}

impl<B: Backend> LoraWorkspace<B> {
    /// Buffers for `tokens` tokens and `sets` sets of layer buffers.
    pub fn new(
        backend: &B,
        config: &ModelConfig,
        layout: Arc<LoraLayout>,
        (mode, sets, tokens): (Mode, usize, usize),
    ) -> Result<Self> {
        let groups = || Group::ALL.into_iter().filter_map(|group| layout.group(0, group));
        let low = |_| -> Result<[Option<B::Act>; 4]> {
            let mut low = [const { None }; 4];
            for group in Group::ALL {
                let adapter = layout.group(0, group);
                low[group as usize] = adapter.map(|adapter| backend.zeros_act(tokens * adapter.width)).transpose()?;
            }
            Ok(low)
        };
        let outputs = groups().map(|group| group.outputs).max().unwrap_or(0);
        let width = groups().map(|group| group.width).max().unwrap_or(0);
        let backward = || -> Result<BackwardBuffers<B>> {
            let mut all = [const { Vec::new() }; 4];
            for group in Group::ALL {
                if let Some(adapter) = layout.group(0, group) {
                    let of_target = |index| pieces(backend, adapter, index, tokens);
                    all[group as usize] = (0..adapter.targets.len()).map(of_target).collect::<Result<_>>()?;
                }
            }
            Ok(BackwardBuffers {
                scaled_low: backend.zeros_act(tokens * layout.spec.rank)?,
                dlow: backend.zeros_act(tokens * width)?,
                pieces: all,
                dnorm: backend.zeros_acc(config.longest_norm())?,
            })
        };
        Ok(Self {
            scaled: backend.zeros_act(layout.scaled)?,
            factor: Factor::new(backend, &layout)?,
            low: (0..sets).map(low).collect::<Result<_>>()?,
            wide: backend.zeros_act(tokens * outputs)?,
            backward: mode.trains().then(backward).transpose()?,
            layout,
        })
    }

    /// A buffer of `len` elements for the gradient of a frozen norm.
    pub(in super::super) fn frozen_norm(&mut self, len: usize) -> Result<ViewMut<'_, B::Acc>> {
        match &mut self.backward {
            Some(buffers) => Ok(ViewMut::first(&mut buffers.dnorm, len)),
            None => Err(not_for_training()),
        }
    }

    /// Returns every buffer of activations.
    pub fn buffers(&self) -> impl Iterator<Item = &B::Act> {
        self.low.iter().flatten().flatten()
    }
}

/// Pieces of a target's columns; `None` if it has all columns of the output.
fn pieces<B: Backend>(backend: &B, adapter: &GroupAdapter, index: usize, tokens: usize) -> Result<Option<Pieces<B>>> {
    let (outputs, columns) = (adapter.outputs, &adapter.targets[index].columns);
    if columns.len() == outputs {
        return Ok(None);
    }
    let len = divisor(divisor(outputs, columns.start), columns.end);
    let (row, first, count) = (outputs / len, columns.start / len, columns.len() / len);
    let ids: Vec<i32> = (0..tokens).flat_map(|t| (first..first + count).map(move |p| (t * row + p) as i32)).collect();
    let mut buffer = backend.zeros_idx(ids.len())?;
    backend.write_idx(ViewMut::first(&mut buffer, ids.len()), &ids)?;
    Ok(Some(Pieces { len, count, row, ids: buffer }))
}

/// Greatest common divisor.
fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}
