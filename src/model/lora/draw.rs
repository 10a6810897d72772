//! Initialises the adapters of a run as PEFT does.

use super::super::decoder::Model;
use super::{Lora, LoraSpec};
use crate::Result;
use crate::backend::{Backend, ViewMut};
use crate::rng::Rng;

/// Elements drawn or copied at a time.
const CHUNK: usize = 1 << 18;

/// Adds adapters to a model. This freezes the model's own weights. A is uniform in +-1/sqrt(inputs), which is the Kaiming
/// initialisation with a = sqrt(5) that PEFT uses. B is zero, so the model computes the same as before. A reward
/// head is copied from the model. The values of A depend only on the seed and the tensor's name.
pub fn draw<B: Backend>(backend: &B, model: &mut Model<B>, spec: LoraSpec, seed: u64) -> Result<()> {
    let mut lora = Lora::zeros(backend, &model.config, spec)?;
    let layout = lora.layout.clone();
    let stacked = layout.layers.iter().flatten().flatten().map(|adapter| &adapter.a);
    let is_a = |start: usize| stacked.clone().any(|a| a.contains(&start));
    for slot in layout.slots.iter().filter(|slot| is_a(slot.start)) {
        let mut rng = Rng::keyed(seed, &["init", &slot.spec.name]);
        let bound = 1.0 / (slot.spec.shape[1] as f64).sqrt();
        let len = slot.spec.elements();
        for offset in (0..len).step_by(CHUNK) {
            let chunk: Vec<f64> =
                (0..CHUNK.min(len - offset)).map(|_| f64::from((bound * (2.0 * rng.unit() - 1.0)) as f32)).collect();
            backend.write_act(ViewMut::new(&mut lora.weights, slot.start + offset, chunk.len()), &chunk)?;
        }
    }
    if let (Some(to), Some(from)) = (&layout.score, &model.layout.score) {
        let mut head = vec![0.0; to.len()];
        model.read_weights(backend, from, &mut head)?;
        backend.write_act(ViewMut::new(&mut lora.weights, to.start, to.len()), &head)?;
    }
    model.lora = Some(lora);
    Ok(())
}
