//! The golden fixtures of `tests/golden` as typed values; `tests/golden/README.md` describes each
//! key. A missing or unknown key panics, so a fixture with a changed format cannot pass unnoticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mapl::loss::objective::LossOptions;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Cases of language models.
pub const LANGUAGE_CASES: [&str; 38] = [
    "llama",
    "qwen2",
    "llama-bf16-sharded",
    "mistral",
    "ministral",
    "seed_oss",
    "smollm3",
    "phi3",
    "qwen3",
    "llama_bias",
    "granite",
    "stablelm",
    "gpt_neox",
    "gpt2",
    "mistral-window",
    "qwen2-window",
    "phi3-window",
    "qwen3-window",
    "olmo2",
    "olmo3",
    "gemma",
    "gemma2",
    "gemma2-untied",
    "gemma3",
    "gemma3-untied",
    "qwen2-untied",
    "mistral-tied",
    "ministral-untied",
    "seed_oss-tied",
    "smollm3-untied",
    "phi3-tied",
    "granite-untied",
    "stablelm-tied",
    "gpt_neox-tied",
    "gpt2-untied",
    "olmo2-untied",
    "olmo3-tied",
    "gemma-untied",
];
/// Language models with a reference, a DPO loss, gradients and AdamW steps.
pub const TRAINED_CASES: [&str; 4] = ["llama", "qwen2", "gemma2", "gemma3"];
/// Cases of reward models.
pub const REWARD_CASES: [&str; 19] = [
    "llama-reward",
    "qwen2-reward",
    "mistral-reward",
    "seed_oss-reward",
    "smollm3-reward",
    "phi3-reward",
    "qwen3-reward",
    "granite-reward",
    "stablelm-reward",
    "gpt_neox-reward",
    "gpt2-reward",
    "mistral-window-reward",
    "qwen2-window-reward",
    "olmo2-reward",
    "olmo3-reward",
    "gemma-reward",
    "gemma2-reward",
    "gemma3-reward",
    "ministral-reward",
];

/// Adapters of PEFT with three AdamW steps.
pub const LORA_CASES: [&str; 4] = ["lora-qwen2", "lora-llama", "lora-phi3", "lora-qwen3-reward"];
/// Id of the BOS token; every sequence of the golden models starts with it.
pub const BOS: u32 = 1;

/// Every model folder.
pub fn models() -> Vec<&'static str> {
    [
        &LANGUAGE_CASES[..],
        &REWARD_CASES,
        &["llama-reference", "qwen2-reference", "gemma2-reference", "gemma3-reference"],
    ]
    .concat()
}

/// A preference pair of token ids.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    pub prompt_ids: Vec<u32>,
    pub chosen_ids: Vec<u32>,
    pub rejected_ids: Vec<u32>,
}

/// One sequence and its log-probabilities by a language model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageSequence {
    pub prompt: Vec<u32>,
    pub response: Vec<u32>,
    /// Log-probability of each response token.
    pub logps: Vec<f64>,
    /// Sum of `logps`.
    pub logp: f64,
    /// Log-probabilities by the reference model, if the case has one.
    pub reference_logps: Option<Vec<f64>>,
    pub reference_logp: Option<f64>,
}

/// One sequence and its reward.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSequence {
    pub prompt: Vec<u32>,
    pub response: Vec<u32>,
    pub reward: f64,
}

/// Logits of one position of a sequence (prompt and response), over the vocabulary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logits {
    pub sequence: usize,
    pub position: usize,
    pub values: Vec<f64>,
}

/// A comparison of signed sequences with its logistic loss.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenComparison {
    /// `base`, `intra` or `inter`.
    pub kind: String,
    /// (sequence, sign)
    pub terms: Vec<(usize, i8)>,
    pub loss: f64,
}

/// Sigmoid DPO over the pairs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dpo {
    pub beta: f64,
    pub losses: Vec<f64>,
    pub loss: f64,
    pub trl_loss: f64,
    /// File for [`tensors`]: gradient of `loss`.
    pub gradients: String,
}

/// AdamW steps on the DPO loss of all pairs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steps {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// Loss before each step.
    pub losses: Vec<f64>,
    /// Loss after the last step.
    pub loss_after: f64,
    /// Gradient norm of each step before clipping.
    pub grad_norms: Vec<f64>,
    /// Parameters with weight decay, sorted.
    pub decayed: Vec<String>,
    /// File for [`tensors`]: parameters after the last step.
    pub weights: String,
}

/// Three AdamW steps on the DPO loss of the same pairs, for every language model that is not one of
/// [`TRAINED_CASES`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FamilySteps {
    pub beta: f64,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// Every `stride`-th element of a tensor is in the files.
    pub stride: usize,
    pub pairs: Vec<Pair>,
    pub cases: Vec<FamilyCase>,
    /// File for [`tensors`]: gradient of the first loss. A key is the model's name, a slash and the
    /// parameter's name.
    pub gradients: String,
    /// File for [`tensors`]: change of each parameter over all steps, under the same keys.
    pub updates: String,
}

/// A model of [`FamilySteps`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FamilyCase {
    pub model: String,
    pub reference: String,
    pub trl_loss: f64,
    /// Loss before each step.
    pub losses: Vec<f64>,
    /// Loss after the last step.
    pub loss_after: f64,
    /// Gradient norm of each step before clipping.
    pub grad_norms: Vec<f64>,
    /// Parameters with weight decay, sorted.
    pub decayed: Vec<String>,
}

/// Case of a language model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageCase {
    pub model: String,
    pub reference: Option<String>,
    pub inv_freq: Vec<f64>,
    pub pairs: Vec<Pair>,
    pub sequences: Vec<LanguageSequence>,
    pub logits: Vec<Logits>,
    #[serde(default)]
    pub comparisons: Vec<GoldenComparison>,
    pub dpo: Option<Dpo>,
    pub steps: Option<Steps>,
}

/// Bradley-Terry loss over the pairs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BradleyTerry {
    pub losses: Vec<f64>,
    pub loss: f64,
    pub trl_loss: f64,
    /// File for [`tensors`]: gradient of `loss`.
    pub gradients: String,
}

/// Case of a reward model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardCase {
    pub model: String,
    pub inv_freq: Vec<f64>,
    pub pairs: Vec<Pair>,
    pub sequences: Vec<RewardSequence>,
    pub comparisons: Vec<GoldenComparison>,
    pub bradley_terry: BradleyTerry,
}

/// One sequence and its summed log-probability or reward.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoredSequence {
    pub prompt: Vec<u32>,
    pub response: Vec<u32>,
    pub score: f64,
}

/// A PEFT adapter, and AdamW steps that start from it. The reference of DPO is the base.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraCase {
    pub adapter: String,
    pub model: String,
    pub pairs: Vec<Pair>,
    pub sequences: Vec<ScoredSequence>,
    pub beta: f64,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// Loss before each step, and after the last one.
    pub losses: Vec<f64>,
    pub loss_after: f64,
    /// Gradient norm of each step before clipping.
    pub grad_norms: Vec<f64>,
    /// File for [`tensors`]: the adapter after the last step.
    pub weights: String,
}

/// An adapter on the model of a different case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterCase<Sequence> {
    /// Folder of the base.
    pub base: String,
    /// Folder of the adapter.
    pub adapter: String,
    pub sequences: Vec<Sequence>,
}

/// Adapters of language models.
pub const ADAPTER_CASES: [&str; 6] = ["plain", "rslora", "patterns", "layers", "tables", "fused"];

/// An adapter by its name.
pub fn adapter_case<Sequence: DeserializeOwned>(name: &str) -> AdapterCase<Sequence> {
    json(&format!("adapters/{name}.json"))
}

/// Losses of one pair, from summed log-probabilities.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRow {
    pub chosen: f64,
    pub rejected: f64,
    pub reference_chosen: f64,
    pub reference_rejected: f64,
    pub chosen_tokens: u32,
    pub rejected_tokens: u32,
    pub losses: Vec<RowLoss>,
}

/// A loss of a [`LossRow`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowLoss {
    pub options: LossOptions,
    pub loss: f64,
    /// Derivatives of the loss with respect to the summed log-probabilities of the chosen and of the rejected
    /// response.
    pub slopes: [f64; 2],
}

/// Four optimiser steps of every loss on one batch.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSteps {
    pub model: String,
    pub learning_rate: f64,
    pub pairs: Vec<Pair>,
    pub losses: Vec<StepLosses>,
}

/// A loss of [`LossSteps`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLosses {
    pub options: LossOptions,
    /// `whole`, or `one token` if every prompt is only [`BOS`].
    pub prompts: String,
    pub reference: Option<String>,
    pub losses: Vec<f64>,
    pub grad_norms: Vec<f64>,
}

/// Token statistics that TRL logs for a batch, by name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCase {
    pub model: String,
    pub reference: String,
    pub pairs: Vec<Pair>,
    pub dpo: BTreeMap<String, f64>,
    /// Statistics of the chosen responses.
    pub sft: BTreeMap<String, f64>,
}

/// Four optimiser steps of the losses of labelled rows (KTO).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtoSteps {
    pub model: String,
    pub reference: String,
    pub learning_rate: f64,
    /// Number of rows of a micro-batch. The last micro-batch has fewer.
    pub block: usize,
    pub rows: Vec<KtoRow>,
    pub cases: Vec<KtoCase>,
}

/// A row of [`KtoSteps`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtoRow {
    pub prompt_ids: Vec<u32>,
    pub completion_ids: Vec<u32>,
    pub label: bool,
}

/// A loss of [`KtoSteps`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtoCase {
    pub options: LossOptions,
    pub losses: Vec<f64>,
    pub grad_norms: Vec<f64>,
    /// KL divergence of each step, averaged over its micro-batches.
    pub divergences: Vec<f64>,
}

/// A tensor of a fixture file.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Path of a file or folder below `tests/golden`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// Folder of one of [`models`].
pub fn model_folder(name: &str) -> PathBuf {
    path("models").join(name)
}

fn json<T: DeserializeOwned>(name: &str) -> T {
    let path = path(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One of [`LANGUAGE_CASES`].
pub fn language_case(name: &str) -> LanguageCase {
    json(&format!("{name}.json"))
}

/// One of [`REWARD_CASES`].
pub fn reward_case(name: &str) -> RewardCase {
    json(&format!("{name}.json"))
}

/// Returns the DPO steps of the language models that are not in [`TRAINED_CASES`].
pub fn family_steps() -> FamilySteps {
    json("steps.json")
}

/// One of [`LORA_CASES`].
pub fn lora_case(name: &str) -> LoraCase {
    json(&format!("lora/{name}.json"))
}

/// Returns TRL's losses over four steps.
pub fn loss_steps() -> LossSteps {
    json("loss-steps.json")
}

/// Returns TRL's KTO losses over four steps.
pub fn kto_steps() -> KtoSteps {
    json("kto-steps.json")
}

/// Returns TRL's token statistics.
pub fn token_stats() -> Vec<TokenCase> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        cases: Vec<TokenCase>,
    }
    json::<Table>("token-stats.json").cases
}

/// Returns TRL's losses for given log-probabilities.
pub fn loss_rows() -> Vec<LossRow> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        rows: Vec<LossRow>,
    }
    json::<Table>("losses.json").rows
}

/// Returns all f32 tensors of a fixture file by name. Only the safetensors crate reads the file, so
/// the program's own reader can be checked against it.
pub fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let path = path(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), Dtype::F32, "{}: {name}", path.display());
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tensors.insert(name, Tensor { shape: view.shape().to_vec(), values });
    }
    tensors
}
