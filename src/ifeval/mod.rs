//! Instruction following of responses: IFEval (Zhou et al. 2023, arXiv 2311.07911). A prompt has
//! one or more instructions that a program checks.
//!
//! - [`rows`]: reading of prompts and responses
//! - [`check`]: one instruction, and the verdicts on a response, strict and loose
//! - `sentences`, `capitals`, `languages`, `json`: computations of NLTK, langdetect and Python that the
//!   official checkers use; `tables`: the statistics that NLTK and langdetect use; `mersenne`: the random
//!   numbers of langdetect
//! - `ifbench`: the instruction types of IFBench
//! - `summary`: shares with intervals, by instruction type; `compare`: two sets of responses
//!
//! An instruction of any other type gets no verdict. Such instructions are counted by type, and their prompts
//! are left out of the shares of followed prompts.

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
