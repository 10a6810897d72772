//! Models, losses and training steps: values against PyTorch, gradients against finite differences,
//! and the device calls of a step.

mod adapters;
mod device_faults;
mod fitting;
mod generation;
mod golden;
mod golden_families;
mod golden_fixtures;
mod golden_kto;
mod golden_lora;
mod golden_tokens;
mod grads;
mod kernels_model;
mod lora;
mod memory;
mod recompute;
mod reference_cache;
mod step_calls;
mod tree_model;
