//! The tile operations of the processor. No other file has tile instructions.
//!
//! The assembler of the stable compiler knows them, while the compiler's own functions for them are
//! unstable. Compiled code outside this file never touches tile registers, so no operand names them.

use std::arch::asm;

use super::super::tile::Tile;
use super::grant::Granted;
use super::unit::{Config, Unit};

/// The tiles of this processor, on the calling thread. A [`Granted`] makes one, and there is none before
/// the processor has been asked and Linux has granted the tile state.
pub(super) struct Hardware {
    _granted: Granted,
}

impl Hardware {
    pub fn new(granted: Granted) -> Self {
        Self { _granted: granted }
    }
}

// SAFETY, in all operations: `Granted` proves that the processor has the instruction and Linux the state for
// it; the callers' contract is that of the trait. An operation without `pure` keeps its place among the
// others. A load reads, and a store writes, only the configured rows.
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
