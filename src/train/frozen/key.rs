//! Hashes of everything that a log-prob of the frozen reference depends on.
//!
//! A fingerprint covers what all values of a cache file share and what could change a bit of them:
//!
//! - the weights as numbers, so that sharding and number format do not matter
//! - sizes and frequencies of the model configuration
//! - the scored tokens and their reduction
//! - backend, precision, numerics version and custom kernels
//! - the bits of a small forward pass on this machine, because two processors may round differently
//!
//! A key identifies a sequence by its token ids. Tokenizer and template act only through these ids.

use std::path::Path;
use std::sync::Arc;

use blake3::Hasher;
use serde_json::json;

use super::pass::ForwardPass;
use crate::backend::Backend;
use crate::backend::contract::Reduce;
use crate::backend::kernels::own;
use crate::data::group::{PreferenceGroup, Prompt, Response};
use crate::data::pack::{LogpScope, PackOptions, Scoring};
use crate::data::tokenized::{Sequence, TokenizedGroup};
use crate::model::config::ModelConfig;
use crate::model::store;
use crate::model::weights::{LoadAs, WeightFiles};
use crate::{Error, Result};

/// Hash of everything that the values of a cache file share.
pub type Fingerprint = [u8; 32];

/// Hash of a sequence: its token ids and the start of the response.
pub fn sequence_key(group: &TokenizedGroup, sequence: usize) -> u128 {
    let sequence = &group.sequences[sequence];
    let prompt = &group.prompt_ids[sequence.prompt];
    let mut hash = Hasher::new();
    hash.update(&(prompt.len() as u64).to_le_bytes());
    // Every training step hashes its sequences, so this loop does not allocate.
    const BLOCK: usize = 256;
    let mut block = [0; 4 * BLOCK];
    for ids in prompt.chunks(BLOCK).chain(sequence.response_ids.chunks(BLOCK)) {
        for (to, id) in block.chunks_exact_mut(4).zip(ids) {
            to.copy_from_slice(&id.to_le_bytes());
        }
        hash.update(&block[..4 * ids.len()]);
    }
    let hash = hash.finalize();
    u128::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
}

/// Fingerprint of a cache file: the hash of the model, score options, backend and probe scores.
pub(super) fn fingerprint<B: Backend>(
    backend: &B,
    weights: &Fingerprint,
    (scope, reduce): (LogpScope, Reduce),
) -> Result<Fingerprint> {
    let mut hash = Hasher::new_derive_key("mapl reference log-probs, file format 1");
    hash.update(weights);
    hash_text(&mut hash, &format!("{scope:?} {reduce:?}"));
    hash_text(&mut hash, &format!("{} {:?} {}", B::NAME, B::PRECISION, backend.numerics()));
    if let Some(own) = own::used_on(B::NAME) {
        hash_text(&mut hash, &own.identity());
    }
    for value in probe_scores(backend)? {
        hash.update(&value.to_le_bytes());
    }
    Ok(*hash.finalize().as_bytes())
}

/// Hash of a model: its weights as f32, and the part of its configuration that affects results.
pub(super) fn weights_hash(folder: &Path, config: &ModelConfig) -> Result<Fingerprint> {
    let mut hash = Hasher::new_derive_key("mapl model");
    let c = config;
    let sizes = [c.vocab, c.hidden, c.intermediate, c.layers, c.heads, c.kv_heads, c.head_dim];
    hash_text(&mut hash, &format!("{} {sizes:?} {} {}", c.architecture(), c.qkv_bias, c.tied));
    hash.update(&c.rms_norm_eps.to_le_bytes());
    c.inv_freq().iter().for_each(|f| {
        hash.update(&f.to_le_bytes());
    });
    // Default values are not hashed, so that hashes from versions without these settings stay valid.
    let (factor, still) = (c.rope.attention_factor(), &c.layers_without_rope);
    if factor != 1.0 || !still.is_empty() {
        hash_text(&mut hash, &format!("{factor} {still:?}"));
    }
    let traits = c.traits.text();
    if !traits.is_empty() || c.partial_rotary_factor != 1.0 {
        hash_text(&mut hash, &format!("{traits} {}", c.partial_rotary_factor));
    }
    if let Some(local) = &c.local_rope {
        hash_text(&mut hash, &format!("{local:?}"));
    }
    if let Some(window) = &c.window {
        hash_text(&mut hash, &format!("{window:?}"));
    }
    if !c.softcaps.text().is_empty() {
        hash_text(&mut hash, &c.softcaps.text());
    }
    let files = WeightFiles::open(folder, config, LoadAs::Exact)?;
    let mut bytes = Vec::new();
    for spec in config.tensors() {
        hash_text(&mut hash, &format!("{} {:?}", spec.name, spec.shape));
        files.read(&spec.name, &mut |_, values| {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            hash.update(&bytes);
            Ok(())
        })?;
    }
    Ok(*hash.finalize().as_bytes())
}

/// Hashes a text with its length, so that no two lists of texts hash the same bytes.
fn hash_text(hash: &mut Hasher, text: &str) {
    hash.update(&(text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// Log-probs of a fixed small model. Its sizes exercise every blocking of the CPU's GEMM and
/// attention.
fn probe_scores<B: Backend>(backend: &B) -> Result<Vec<f64>> {
    const VOCAB: usize = 300;
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": 64,
        "intermediate_size": 576, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "initializer_range": 0.2,
        "tie_word_embeddings": false, "rope_theta": 10000.0,
    });
    let serde_json::Value::Object(config) = config else {
        return Err(Error::Runtime("the probe of the reference cache has no configuration".into()));
    };
    let mut model = store::random(backend, ModelConfig::from_json(config, Path::new("probe"))?, 1)?;
    let ids = |from: usize, len: usize| -> Vec<u32> { (from..from + len).map(|i| (i * 37 % VOCAB) as u32).collect() };
    let text = || Response::Text(String::new());
    let group = TokenizedGroup {
        group: Arc::new(PreferenceGroup::pair("probe".into(), Prompt::Text(String::new()), text(), text(), 0.0)),
        prompt_ids: vec![ids(0, 150)],
        sequences: vec![
            Sequence { prompt: 0, response: 0, response_ids: ids(150, 70) },
            Sequence { prompt: 0, response: 1, response_ids: ids(7, 2) },
        ],
        comparisons: Vec::new(),
    };
    let scoring = Scoring::LogProb { scope: LogpScope::PromptAndResponse };
    let pack = PackOptions { share_prefixes: true, scoring, vocab: VOCAB, pad: None, position_runs: false };
    ForwardPass::new(backend, &mut model)?.scores(backend, &[&group], &pack, Reduce::Sum)
}
