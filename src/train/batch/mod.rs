//! The way of a batch: groups are packed on a thread ([`prefetch`], [`packing`]), laid out for one transfer ([`upload`]),
//! and padded to the shapes of captured CUDA graphs ([`padding`]).

mod host;
pub mod packing;
pub mod padding;
pub mod prefetch;
pub mod upload;
