//! The tile operations of the processor. No other file contains tile instructions.
//!
//! The operations use inline assembly, because the compiler's intrinsics for tiles are unstable. Compiled
//! code outside this file never uses tile registers, so the assembly does not declare them as clobbered.

use std::arch::asm;

use super::super::tile::Tile;
use super::grant::Granted;
use super::unit::{Config, Unit};

/// The tiles of this processor, on the calling thread. Constructing it needs a [`Granted`], so it exists only
/// after the processor has been checked and Linux has granted the tile state.
pub(super) struct Hardware {
    _granted: Granted,
}

impl Hardware {
    pub fn new(granted: Granted) -> Self {
        Self { _granted: granted }
    }
}

// SAFETY, for all operations: `Granted` proves that the processor has the instruction and that Linux saves
// the tile state. Callers guarantee the contract of the trait. Without `pure`, the compiler keeps the order
// of the operations. A load reads, and a store writes, only the configured rows.
impl Unit for Hardware {
    #[inline(always)]
    unsafe fn configure(&mut self, config: &Config) {
        unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn zero<const T: u8>(&mut self) {
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: &[u8], at: usize, stride: usize) {
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{from} + 1*{stride}]",
                t = const T,
                from = in(reg) from.as_ptr().wrapping_add(at),
                stride = in(reg) stride,
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const T: u8>(&mut self, to: &mut Tile<'_>, row: usize, col: usize) {
        let stride = to.stride();
        unsafe {
            asm!(
                "tilestored [{to} + 1*{stride}], tmm{t}",
                t = const T,
                to = in(reg) to.as_mut_ptr().wrapping_add(row * stride + col),
                stride = in(reg) stride * size_of::<f32>(),
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        unsafe {
            asm!(
                "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                c = const C,
                a = const A,
                b = const B,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn release(&mut self) {
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}
