//! Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of a frozen model.
//!
//! ```text
//! y = x Wᵀ + s h Bᵀ,  h = x Aᵀ          A (rank, inputs), B (outputs, rank), s = alpha / rank
//! dB = s dyᵀ h,  dh = s dy B,  dA = dhᵀ x,  dx = dy W + dh A
//! ```
//!
//! The product B A is never added to W: in bf16 a small update would be rounded away. W, the embedding,
//! the head and the norms are frozen. The score head of a reward model is trained in full, as a copy of
//! the head of the base.
//!
//! - [`layout`]: places of A, B and the score head in a separate arena
//! - `workspace`: buffers of the passes
//! - `pass`: forward and backward as op calls
//! - `draw`: random initial adapters, as PEFT draws them

mod draw;
pub mod layout;
mod pass;
mod workspace;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::adapter::{AdapterConfig, Targets, TaskType};
use super::config::{Head, ModelConfig};
use super::tensors::{Order, Role};
use crate::backend::{Backend, View};
use crate::{Error, Result};
pub use draw::draw;
pub(super) use layout::Group;
use layout::LoraLayout;
pub(super) use pass::Place;
pub(super) use workspace::LoraWorkspace;

/// Largest rank, far above every rank in use and far below an overflow of sizes.
pub const MAX_RANK: usize = 1 << 12;

/// Adapted layers, and the rank and scale of their adapters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraSpec {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: u32,
    /// Rank-stabilised scale, alpha / sqrt(rank) (arXiv 2312.03732).
    pub rslora: bool,
    /// Names of the adapted layers, such as `q_proj`, in the order of a layer's forward.
    pub targets: Vec<String>,
}

/// Name for all linear layers of the decoder, as in PEFT.
pub const ALL_LINEAR: &str = "all-linear";

impl LoraSpec {
    /// Checks names against the linear layers of the model. An empty list means all of them, as does
    /// `all-linear`.
    pub fn new(config: &ModelConfig, rank: usize, alpha: u32, rslora: bool, names: &[String]) -> Result<Self> {
        let known: Vec<String> = linear_layers(config).into_iter().map(|(name, _)| name).collect();
        let all = names.is_empty() || names.iter().any(|name| name == ALL_LINEAR);
        if let Some(unknown) = names.iter().find(|name| *name != ALL_LINEAR && !known.contains(name)) {
            return Err(Error::Usage(format!(
                "--lora-target-modules {unknown:?}: this model of type {} has no such linear layer; it has {}, or \
                 {ALL_LINEAR} for all of them",
                config.family.model_type,
                known.join(", ")
            )));
        }
        let targets = known.into_iter().filter(|name| all || names.contains(name)).collect();
        Ok(Self { rank, alpha, rslora, targets })
    }

    /// Factor of the low-rank product.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        f64::from(self.alpha) / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether every linear layer of the model has an adapter.
    pub fn is_all_linear(&self, config: &ModelConfig) -> bool {
        self.targets.len() == linear_layers(config).len()
    }
}

/// Names and roles of a layer's matrices, in arena order.
pub(super) fn linear_layers(config: &ModelConfig) -> Vec<(String, Role)> {
    let of_first = config.tensors().into_iter().filter(|spec| spec.layer == Some(0) && spec.shape.len() == 2);
    let module = |name: &str| name.strip_suffix(".weight")?.rsplit('.').next().map(str::to_owned);
    of_first.filter_map(|spec| Some((module(&spec.name)?, spec.role))).collect()
}

/// Adapters of a model.
pub struct Lora<B: Backend> {
    /// Ranges of the adapters in `weights`.
    pub layout: Arc<LoraLayout>,
    /// (layout.len)
    pub weights: B::Act,
    /// Folder of the frozen model, for the adapter's configuration.
    pub base: Option<PathBuf>,
}

impl<B: Backend> Lora<B> {
    /// Adapters with zero weights.
    pub fn zeros(backend: &B, config: &ModelConfig, spec: LoraSpec) -> Result<Self> {
        let layout = Arc::new(LoraLayout::new(config, spec));
        let weights = backend.zeros_act(layout.len)?;
        Ok(Self { layout, weights, base: None })
    }

    /// Configuration of the adapter in PEFT's form.
    pub(super) fn adapter_config(&self, model: &ModelConfig) -> AdapterConfig {
        let head = model.head;
        let spec = &self.layout.spec;
        let task = if head == Head::Reward { TaskType::SeqCls } else { TaskType::CausalLm };
        let base = self.base.as_ref().map(|folder| folder.display().to_string());
        let targets = Targets::Names(spec.targets.clone());
        let config = AdapterConfig::new(base, task, (spec.rank, f64::from(spec.alpha)), targets);
        let modules_to_save = if head == Head::Reward { vec!["score".to_owned()] } else { Vec::new() };
        let fan_in_fan_out = model.family.order == Order::Columns;
        AdapterConfig { use_rslora: spec.rslora, modules_to_save, fan_in_fan_out, ..config }
    }

    /// View of a range of the weights.
    pub(super) fn weight(&self, range: &std::ops::Range<usize>) -> View<'_, B::Act> {
        View::new(&self.weights, range.start, range.len())
    }
}
