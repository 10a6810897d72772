//! The path of a batch: groups are packed on a thread (`prefetch`, [`packing`]), padded to the
//! shapes of captured CUDA graphs (`padding`), laid out for one transfer (`host`, by the table of
//! `layout`) and received on the device ([`upload`]).

mod host;
mod layout;
pub mod packing;
pub(in crate::train) mod padding;
pub(in crate::train) mod prefetch;
pub mod upload;
