//! The path of a batch: groups are packed on a thread ([`prefetch`], [`packing`]), padded to the shapes of
//! captured CUDA graphs ([`padding`]), laid out for one transfer ([`host`]) and received on the device ([`upload`]).

mod host;
pub mod packing;
pub(in crate::train) mod padding;
pub(in crate::train) mod prefetch;
pub mod upload;
