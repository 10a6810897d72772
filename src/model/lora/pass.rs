//! Forward and backward of adapters as op calls.
//!
//! The factor s multiplies B in the forward and h in the gradient of B. s B and s h are GEMMs with the matrix s
//! I, so every sum has one nonzero term. The result is rounded once, or not at all if s is a power of two. The
//! optimiser sees A and B as PEFT defines them. The gradient of h is computed with s B, so dA needs no further
//! factor.

use super::super::decoder_grad::slot;
use super::Lora;
use super::layout::{Group, GroupAdapter};
use super::workspace::{LoraWorkspace, Pieces};
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::{Error, Result};

/// Identifies a GEMM of the model, the buffers of its layer, and its number of tokens.
#[derive(Clone, Copy)]
pub struct Place {
    pub layer: usize,
    /// Index of the layer's set of buffers.
    pub set: usize,
    pub group: Group,
    pub tokens: usize,
}

impl<B: Backend> Lora<B> {
    /// Computes s B of all layers from the current weights. Every forward calls it first.
    pub fn scale_b(&self, backend: &B, work: &mut LoraWorkspace<B>) -> Result<()> {
        let rank = self.layout.spec.rank;
        for adapter in self.layout.layers.iter().flatten().flatten() {
            for (index, target) in adapter.targets.iter().enumerate() {
                let dims = LinearDims { tokens: target.columns.len(), inputs: rank, outputs: adapter.width };
                let (start, size) = (work.factor.start(index), adapter.width * rank);
                let (x, len) = (self.weight(&target.b), dims.tokens * dims.outputs);
                let product = |matrix: &B::Act, residual: Option<View<'_, B::Act>>, y: ViewMut<'_, B::Act>| {
                    let weight = View::new(matrix, start, size);
                    backend.linear_fwd(LinearFwd { dims, x, weight, bias: None, residual, y })
                };
                let residual = match &mut work.factor.low {
                    None => None,
                    Some(rest) => {
                        product(&rest.matrix, None, ViewMut::first(&mut rest.products, len))?;
                        Some(View::first(&rest.products, len))
                    }
                };
                let first = adapter.scaled.start + target.columns.start * adapter.width;
                product(&work.factor.high, residual, ViewMut::new(&mut work.scaled, first, len))?;
            }
        }
        Ok(())
    }

    /// Computes h from the input of a GEMM. The backward needs h too.
    pub fn reduce(&self, backend: &B, work: &mut LoraWorkspace<B>, place: Place, x: View<'_, B::Act>) -> Result<()> {
        let Place { layer, set, group, tokens } = place;
        let Some(adapter) = self.layout.group(layer, group) else { return Ok(()) };
        let Some(low) = &mut work.low[set][group as usize] else { return Err(no_buffers()) };
        let GroupAdapter { inputs, width, .. } = *adapter;
        backend.linear_fwd(LinearFwd {
            dims: LinearDims { tokens, inputs, outputs: width },
            x,
            weight: self.weight(&adapter.a),
            bias: None,
            residual: None,
            y: ViewMut::first(low, tokens * width),
        })
    }

    /// Computes the low-rank part of a GEMM's output, (tokens, outputs), from its h, and adds `residual`.
    /// Returns `None` if the GEMM has no adapter.
    pub fn expand<'w>(
        &self,
        backend: &B,
        work: &'w mut LoraWorkspace<B>,
        place: Place,
        residual: Option<View<'_, B::Act>>,
    ) -> Result<Option<View<'w, B::Act>>> {
        let Place { layer, set, group, tokens } = place;
        let Some(adapter) = self.layout.group(layer, group) else { return Ok(None) };
        let LoraWorkspace { scaled, low, wide, .. } = work;
        let Some(low) = &low[set][group as usize] else { return Err(no_buffers()) };
        let GroupAdapter { outputs, width, .. } = *adapter;
        backend.linear_fwd(LinearFwd {
            dims: LinearDims { tokens, inputs: width, outputs },
            x: View::first(low, tokens * width),
            weight: View::new(scaled, adapter.scaled.start, adapter.scaled.len()),
            bias: None,
            residual,
            y: ViewMut::first(wide, tokens * outputs),
        })?;
        Ok(Some(View::first(wide, tokens * outputs)))
    }

    /// Computes the gradients of a GEMM's adapters. Writes or adds their part of the input's gradient to `dx`,
    /// and returns the write mode for the base's part. The adapters' part is smaller and comes first, so that it
    /// is not rounded at the magnitude of the base's part.
    pub fn backward(
        &self,
        backend: &B,
        work: &mut LoraWorkspace<B>,
        place: Place,
        (dy, x): (View<'_, B::Act>, View<'_, B::Act>),
        (dx, dx_write): (Option<ViewMut<'_, B::Act>>, Write),
        (grads, write): (&mut B::Acc, Write),
    ) -> Result<Write> {
        let Place { layer, set, group, tokens } = place;
        let Some(adapter) = self.layout.group(layer, group) else { return Ok(dx_write) };
        let LoraWorkspace { scaled, factor, low, wide, backward, .. } = work;
        let (Some(low), Some(buffers)) = (&low[set][group as usize], backward) else { return Err(no_buffers()) };
        let GroupAdapter { inputs, outputs, width, .. } = *adapter;
        let rank = self.layout.spec.rank;
        let to_low = LinearDims { tokens, inputs, outputs: width };
        backend.linear_bwd_input(LinearBwdInput {
            dims: LinearDims { tokens, inputs: width, outputs },
            dy,
            weight: View::new(scaled, adapter.scaled.start, adapter.scaled.len()),
            dx: ViewMut::first(&mut buffers.dlow, tokens * width),
            write: Write::Overwrite,
        })?;
        backend.linear_bwd_weight(LinearBwdWeight {
            dims: to_low,
            dy: View::first(&buffers.dlow, tokens * width),
            x,
            dweight: slot(grads, &adapter.a),
            write,
            norms: None,
        })?;
        for (index, target) in adapter.targets.iter().enumerate() {
            let mut product = |matrix: &B::Act, write: Write| {
                backend.linear_bwd_input(LinearBwdInput {
                    dims: LinearDims { tokens, inputs: rank, outputs: width },
                    dy: View::first(low, tokens * width),
                    weight: View::new(matrix, factor.start(index), width * rank),
                    dx: ViewMut::first(&mut buffers.scaled_low, tokens * rank),
                    write,
                })
            };
            match &factor.low {
                None => product(&factor.high, Write::Overwrite)?,
                Some(rest) => {
                    product(&rest.matrix, Write::Overwrite)?;
                    product(&factor.high, Write::Add)?;
                }
            }
            let of_target = target.columns.len();
            let dy = match &buffers.pieces[group as usize][index] {
                None => dy,
                Some(pieces) => {
                    gather(backend, dy, pieces, tokens, ViewMut::first(wide, tokens * of_target))?;
                    View::first(wide, tokens * of_target)
                }
            };
            backend.linear_bwd_weight(LinearBwdWeight {
                dims: LinearDims { tokens, inputs: rank, outputs: of_target },
                dy,
                x: View::first(&buffers.scaled_low, tokens * rank),
                dweight: slot(grads, &target.b),
                write,
                norms: None,
            })?;
        }
        let Some(dx) = dx else { return Ok(dx_write) };
        backend.linear_bwd_input(LinearBwdInput {
            dims: to_low,
            dy: View::first(&buffers.dlow, tokens * width),
            weight: self.weight(&adapter.a),
            dx,
            write: dx_write,
        })?;
        Ok(Write::Add)
    }
}

/// Copies a target's columns of a fused matrix to a contiguous matrix.
fn gather<B: Backend>(
    backend: &B,
    from: View<'_, B::Act>,
    pieces: &Pieces<B>,
    tokens: usize,
    to: ViewMut<'_, B::Act>,
) -> Result<()> {
    let rows = tokens * pieces.count;
    backend.embedding_fwd(EmbeddingFwd {
        dims: EmbeddingDims { tokens: rows, vocab: tokens * pieces.row, hidden: pieces.len },
        ids: View::first(&pieces.ids, rows),
        table: from,
        x: to,
    })
}

fn no_buffers() -> Error {
    Error::Runtime("the workspace has no buffers for this adapter".into())
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::super::activations::Mode;
    use super::super::super::presets;
    use super::super::LoraSpec;
    use super::*;
    use crate::backend::kernels::Kernels;
    use crate::backend::kernels::emulator::{Emulator, Schedule};
    use crate::rng::Rng;

    /// The scale is between two numbers of bf16. Rounded, it would change every update by 0.2 %.
    #[test]
    fn a_scale_that_bf16_lacks_is_kept_on_average() {
        let device = match Emulator::with(Schedule::Rising, 2) {
            Ok(device) => device,
            Err(why) => {
                assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
                return println!("SKIPPED: {why}");
            }
        };
        let backend = Kernels::<_, bf16>::new(device);
        let config = presets::config("llama-tiny").unwrap();
        let spec = LoraSpec { rank: 8, alpha: 31, rslora: true, targets: vec!["o_proj".into()] };
        let scale = spec.scale();
        assert!((bf16::from_f64(scale).to_f64() / scale - 1.0).abs() > 1.5e-3);
        let mut lora = Lora::zeros(&backend, &config, spec).unwrap();
        let layout = lora.layout.clone();
        let adapter = layout.group(0, Group::Output).unwrap();
        let mut rng = Rng::keyed(1, &["scale"]);
        let b: Vec<f64> = (0..adapter.scaled.len()).map(|_| bf16::from_f64(1.0 + rng.unit()).to_f64()).collect();
        backend.write_act(slot(&mut lora.weights, &adapter.targets[0].b), &b).unwrap();
        let mut work = LoraWorkspace::new(&backend, &config, layout.clone(), (Mode::Infer, 1, 1)).unwrap();
        lora.scale_b(&backend, &mut work).unwrap();
        let mut scaled = vec![0.0; b.len()];
        backend.read_act(View::new(&work.scaled, adapter.scaled.start, b.len()), &mut scaled).unwrap();
        let ratio = scaled.iter().zip(&b).map(|(s, b)| s / b).sum::<f64>() / b.len() as f64;
        assert!((ratio / scale - 1.0).abs() < 3e-4, "{ratio} instead of {scale}");
    }
}
