//! Transfer of models between folders and a backend: loading, random initialisation, saving.
//! Weights are copied in chunks, so a tensor is never held twice in host memory.

use std::path::Path;

use super::adapter::write_adapter;
use super::config::{Head, ModelConfig, StoredDtype};
use super::decoder::Model;
use super::layout::Slot;
use super::part::Overlap;
use super::shards::Sharding;
use super::tensors::{Order, Role, TensorSpec};
use super::trained::TrainedFiles;
use super::weights::{DEFAULT_SHARD_BYTES, LoadAs, WeightFiles, overflows, write_model};
use crate::backend::{Backend, View};
use crate::rng::Rng;
use crate::{Error, Result};

/// Initial number of positions of the RoPE tables; they grow with the batches.
const INITIAL_POSITIONS: usize = 512;

/// Elements drawn or copied at a time.
const CHUNK: usize = 1 << 18;

/// Model loaded from a folder.
pub struct Loaded<B: Backend> {
    /// The model with the weights of the folder.
    pub model: Model<B>,
    /// True if the reward head was drawn at random, because the folder has none.
    pub drawn_score: bool,
    /// Bias that the reward head adds to every reward; 0 for a head of this program.
    pub reward_bias: f64,
    /// Tensors of the folder that the model does not use.
    pub ignored: Vec<String>,
    /// Notes for the log on tensors that were read under a different name.
    pub notes: Vec<String>,
}

/// Loads a folder. With [`LoadAs::RewardStart`] a language model becomes a reward model: `config`
/// must describe a reward model, and `score.weight` is drawn from normal(0, 1/sqrt(hidden + 1))
/// with `seed`.
pub fn load<B: Backend>(
    backend: &B,
    folder: &Path,
    config: ModelConfig,
    load_as: LoadAs,
    seed: u64,
) -> Result<Loaded<B>> {
    load_on(backend, folder, config, (load_as, None), seed)
}

/// Like [`load`]; with a sharding, keeps only this rank's slices of the weights. Every rank reads the files.
pub(crate) fn load_on<B: Backend>(
    backend: &B,
    folder: &Path,
    config: ModelConfig,
    (load_as, sharding): (LoadAs, Option<Sharding>),
    seed: u64,
) -> Result<Loaded<B>> {
    let files = WeightFiles::open(folder, &config, load_as)?;
    let positions = INITIAL_POSITIONS.min(config.max_positions);
    let mut model = Model::zeros_on(backend, config, positions, sharding)?;
    for slot in model.layout.slots.clone() {
        if slot.spec.role == Role::Score && files.score_missing() {
            let deviation = 1.0 / ((model.config.hidden + 1) as f64).sqrt();
            draw(backend, &mut model, &slot, deviation, seed)?;
            continue;
        }
        in_arena_order(&mut |sink| files.read(&slot.spec.name, sink), &slot.spec, &mut |offset, values| {
            model.write_weights(backend, slot.start + offset, values)
        })?;
    }
    let (ignored, notes) = (files.ignored().to_vec(), files.notes().to_vec());
    Ok(Loaded { model, drawn_score: files.score_missing(), reward_bias: files.head_bias()?, ignored, notes })
}

/// Sink of a tensor's elements: offset and values.
type Sink<'a> = dyn FnMut(usize, &[f32]) -> Result<()> + 'a;

/// Passes the elements of a tensor, which `read` reads in the order of the file, to `write` in the order of
/// the arena. A tensor with a different order in the file is held whole.
fn in_arena_order(
    read: &mut dyn FnMut(&mut Sink<'_>) -> Result<()>,
    spec: &TensorSpec,
    write: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
) -> Result<()> {
    let mut wide: Vec<f64> = Vec::new();
    if spec.order == Order::Rows {
        return read(&mut |offset, values| {
            wide.clear();
            wide.extend(values.iter().map(|&x| f64::from(x)));
            write(offset, &wide)
        });
    }
    let mut all = vec![0.0f32; spec.elements()];
    read(&mut |offset, values| {
        values.iter().enumerate().for_each(|(i, x)| all[spec.place(offset + i)] = *x);
        Ok(())
    })?;
    all.chunks(CHUNK).enumerate().try_for_each(|(i, values)| {
        wide.clear();
        wide.extend(values.iter().map(|&x| f64::from(x)));
        write(i * CHUNK, &wide)
    })
}

/// Replaces a model's trained weights by those in a folder. The folder must hold the same model, or an
/// adapter of the same layers, at a different step.
pub fn reload<B: Backend>(backend: &B, model: &mut Model<B>, folder: &Path) -> Result<()> {
    let files = TrainedFiles::open(model, folder)?;
    let slots = model.trained().slots.to_vec();
    slots.iter().try_for_each(|slot| {
        in_arena_order(&mut |sink| files.read(&slot.spec.name, sink), &slot.spec, &mut |offset, values| {
            model.write_trained(backend, slot.start + offset, values)
        })
    })
}

/// Passes the trained weights of a folder to `to` in full precision, with their indices in the arena of `model`.
/// The folder must hold the same model; the weights of `model` stay unchanged.
pub(crate) fn read_in_full<B: Backend>(
    model: &Model<B>,
    folder: &Path,
    to: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
) -> Result<()> {
    let files = TrainedFiles::open(model, folder)?;
    model.trained().slots.iter().try_for_each(|slot| {
        in_arena_order(&mut |sink| files.read(&slot.spec.name, sink), &slot.spec, &mut |offset, values| {
            to(slot.start + offset, values)
        })
    })
}

/// Creates a model with random weights: matrices from normal(0, initializer_range), factors of norms one,
/// biases zero, a reward head from normal(0, 1/sqrt(hidden + 1)). transformers and TRL initialise
/// models in the same way.
pub fn random<B: Backend>(backend: &B, config: ModelConfig, seed: u64) -> Result<Model<B>> {
    random_on(backend, config, seed, None)
}

/// Like [`random`]; with a sharding, keeps only this rank's slices of the weights.
pub(crate) fn random_on<B: Backend>(
    backend: &B,
    config: ModelConfig,
    seed: u64,
    sharding: Option<Sharding>,
) -> Result<Model<B>> {
    let positions = INITIAL_POSITIONS.min(config.max_positions);
    let mut model = Model::zeros_on(backend, config, positions, sharding)?;
    for slot in model.layout.slots.clone() {
        let deviation = match slot.spec.role {
            Role::QueryBias
            | Role::KeyBias
            | Role::ValueBias
            | Role::OutputBias
            | Role::GateBias
            | Role::UpBias
            | Role::DownBias
            | Role::InputNormBias
            | Role::PostAttentionNormBias
            | Role::FinalNormBias => continue,
            Role::InputNorm
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::PostAttentionNorm
            | Role::AttentionOutputNorm
            | Role::MlpOutputNorm
            | Role::FinalNorm => {
                let ones = vec![1.0 - model.config.norm_offset(); slot.spec.elements()];
                model.write_weights(backend, slot.start, &ones)?;
                continue;
            }
            Role::Score => 1.0 / ((model.config.hidden + 1) as f64).sqrt(),
            Role::Output | Role::Down if model.config.family.small_outputs => {
                model.config.initializer_range / (2.0 * model.config.layers as f64).sqrt()
            }
            _ => model.config.initializer_range,
        };
        draw(backend, &mut model, &slot, deviation, seed)?;
    }
    Ok(model)
}

/// Draws one tensor. Its values depend only on the seed and the tensor's name. They are rounded to f32, so every
/// backend starts from the same values, rounded to its precision.
fn draw<B: Backend>(backend: &B, model: &mut Model<B>, slot: &Slot, deviation: f64, seed: u64) -> Result<()> {
    let mut rng = Rng::keyed(seed, &["init", &slot.spec.name]);
    let len = slot.spec.elements();
    for offset in (0..len).step_by(CHUNK) {
        let chunk: Vec<f64> =
            (0..CHUNK.min(len - offset)).map(|_| f64::from((deviation * rng.normal()) as f32)).collect();
        model.write_weights(backend, slot.start + offset, &chunk)?;
    }
    Ok(())
}

/// Writes config.json, generation_config.json and the weights as f32 into an existing `folder`. A model with
/// adapters is written as an adapter in PEFT's layout.
pub fn save<B: Backend>(backend: &B, model: &Model<B>, folder: &Path) -> Result<()> {
    save_as(backend, model, folder, StoredDtype::F32)
}

/// Like [`save`], with the weights as `dtype`. If the weights are sharded, rank 0 saves and the other ranks
/// call `Model::serve_trained`.
pub fn save_as<B: Backend>(backend: &B, model: &Model<B>, folder: &Path, dtype: StoredDtype) -> Result<()> {
    let (trained, mut wide) = (model.trained(), Vec::new());
    // Name and values of a tensor that has a different order in the file from the arena's.
    let mut whole: (String, Vec<f64>) = Default::default();
    let mut fill = |spec: &TensorSpec, offset: usize, out: &mut [f32]| {
        let Some(slot) = trained.slots.iter().find(|s| s.spec.name == spec.name) else {
            return Err(Error::model(folder, format!("tensor {} has no place in the arena", spec.name)));
        };
        if slot.spec.order != Order::Rows {
            if whole.0 != spec.name {
                whole = (spec.name.clone(), vec![0.0; slot.spec.elements()]);
                model.read_trained(backend, slot.start, &mut whole.1)?;
            }
            for (i, to) in out.iter_mut().enumerate() {
                *to = whole.1[slot.spec.place(offset + i)] as f32;
            }
            return Ok(());
        }
        wide.resize(out.len(), 0.0);
        model.read_trained(backend, slot.start + offset, &mut wide)?;
        for (to, from) in out.iter_mut().zip(&wide) {
            *to = *from as f32;
        }
        Ok(())
    };
    match &model.lora {
        None => write_model(folder, &model.config, dtype, DEFAULT_SHARD_BYTES, &mut fill),
        Some(lora) => {
            let tensors: Vec<TensorSpec> = trained.slots.iter().map(|slot| slot.spec.clone()).collect();
            write_adapter(folder, &lora.adapter_config(&model.config), &tensors, dtype, &mut fill)
        }
    }?;
    model.end_serving()
}

/// Name of the first trained tensor with weights that are not finite in f32, the precision of [`save`], and
/// their number. If the weights are sharded, every rank calls it.
pub fn not_finite<B: Backend>(backend: &B, model: &Model<B>) -> Result<Option<(String, usize)>> {
    let mut counts = vec![0.0; model.trained().slots.len()];
    each_own_weight(backend, model, &mut |slot, _, x| counts[slot] += f64::from(u8::from(!(x as f32).is_finite())))?;
    let counts = model.sum_over_shards(counts)?;
    let slots = model.trained().slots.iter().zip(counts);
    Ok(slots.filter(|(_, count)| *count > 0.0).map(|(slot, count)| (slot.spec.name.clone(), count as usize)).next())
}

/// Calls `seen` with every trained weight of this rank: index of its tensor, index in the tensor, value.
fn each_own_weight<B: Backend>(backend: &B, model: &Model<B>, seen: &mut dyn FnMut(usize, usize, f64)) -> Result<()> {
    let (part, mut chunk) = (model.trained_part(), Vec::new());
    for (i, slot) in model.trained().slots.iter().enumerate() {
        for Overlap { at, offsets } in part.within(&slot.range()) {
            for start in (0..offsets.len()).step_by(CHUNK) {
                chunk.resize(CHUNK.min(offsets.len() - start), 0.0);
                backend.read_act(View::new(model.trained_weights(), at + start, chunk.len()), &mut chunk)?;
                chunk.iter().enumerate().for_each(|(j, &x)| seen(i, offsets.start + start + j, x));
            }
        }
    }
    Ok(())
}

/// Hash of the trained weights, which must be whole on this rank.
pub(crate) fn trained_hash<B: Backend>(backend: &B, model: &Model<B>) -> Result<blake3::Hash> {
    let (mut hash, mut chunk) = (blake3::Hasher::new(), Vec::new());
    for start in (0..model.trained().len).step_by(CHUNK) {
        chunk.resize(CHUNK.min(model.trained().len - start), 0.0);
        backend.read_act(View::new(model.trained_weights(), start, chunk.len()), &mut chunk)?;
        hash.update(bytemuck::cast_slice(&chunk));
    }
    Ok(hash.finalize())
}

/// Name of the first trained tensor with a weight that [`save_as`] cannot write as `dtype`, and the weight.
/// If the weights are sharded, every rank calls it.
pub fn beyond<B: Backend>(backend: &B, model: &Model<B>, dtype: StoredDtype) -> Result<Option<(String, f32)>> {
    if dtype == StoredDtype::F32 {
        return Ok(None);
    }
    // Index of the tensor, index in the tensor, and weight.
    let mut first: Option<[f64; 3]> = None;
    each_own_weight(backend, model, &mut |slot, at, x| {
        if first.is_none() && overflows(x as f32, dtype) {
            first = Some([slot as f64, at as f64, x]);
        }
    })?;
    let all = model.gather_over_shards(first.as_ref().map_or(&[], |first| &first[..]))?;
    let found = all.as_chunks::<3>().0.iter().min_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    Ok(found.map(|[slot, _, weight]| (model.trained().slots[*slot as usize].spec.name.clone(), *weight as f32)))
}

/// Turns the configuration of a language model into that of a reward model with this pad token. The
/// configuration of a reward model keeps its pad token, and gets this one if it has none.
pub fn reward_config(config: ModelConfig, pad: Option<u32>) -> Result<ModelConfig> {
    match (config.head, pad) {
        // Without a pad token, a reward is read at the last token. A pad token that is never the last token of a
        // sequence does not change this.
        (Head::Reward, Some(pad)) if config.pad.is_none() => config.into_reward(pad),
        (Head::Reward, _) => Ok(config.without_norm()),
        (Head::LanguageModel, Some(pad)) => config.into_reward(pad),
        (Head::LanguageModel, None) => Err(Error::Usage(
            "a reward model needs a pad token id for transformers to load it in batches; name a token of the tokenizer \
             with --pad-token"
                .into(),
        )),
    }
}
