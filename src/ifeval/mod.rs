//! Instruction following of responses: IFEval (Zhou et al. 2023, arXiv 2311.07911). A prompt has
//! one or more instructions that a program checks.
//!
//! - [`rows`]: prompts and responses in
//! - [`check`]: one instruction, and the verdicts on a response, strict and loose
//! - `sentences`, `capitals`, `languages`, `json`: what NLTK, langdetect and Python decide for the
//!   official checkers; `tables`, `mersenne`: their statistics, and the draws of langdetect
//! - `ifbench`: further types, of IFBench
//! - `summary`: shares with intervals, by instruction type; `compare`: two sets of responses
//!
//! Another instruction type is not decided: it is counted by name, and its prompts are
//! left out of the shares of prompts.

mod capitals;
pub mod check;
pub(crate) mod compare;
mod ifbench;
mod json;
mod languages;
mod mersenne;
pub mod rows;
mod sentences;
pub(crate) mod summary;
mod tables;
