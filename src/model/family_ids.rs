//! Special ids by family.

/// Special ids for a config.json that lacks their keys: the defaults of the class in transformers.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClassIds {
    pub pad: Option<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

impl ClassIds {
    pub const NONE: Self = Self { pad: None, bos: None, eos: None };
    /// Ids of Llama and of most other families.
    pub const COMMON: Self = Self { pad: None, bos: Some(1), eos: Some(2) };
}
