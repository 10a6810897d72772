//! `--save-dtype`: data type of the weights that a command writes.

use clap::ValueEnum;
use serde::Serialize;

use crate::model::config::StoredDtype;

/// Data type of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    #[value(alias = "float32")]
    F32,
    #[value(alias = "bfloat16")]
    Bf16,
    /// Numbers up to 65504 only; larger weights are an error
    #[value(alias = "float16", alias = "fp16")]
    F16,
}

impl SaveDtype {
    /// The type of the files.
    pub fn stored(self) -> StoredDtype {
        match self {
            SaveDtype::F32 => StoredDtype::F32,
            SaveDtype::Bf16 => StoredDtype::Bf16,
            SaveDtype::F16 => StoredDtype::F16,
        }
    }
}
