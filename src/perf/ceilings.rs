//! Measured ceilings of this machine: the rate of a large GEMM on all threads, in f32 and bf16, and of a copy
//! that exceeds the caches. They are never read from a table, and are valid only for the run in which they
//! were measured.
//!
//! `MAPL_CEILINGS=rough` measures on small operands, within the caches, for runs whose fractions of the
//! ceilings are not used; a note says so.

use std::sync::LazyLock;
use std::time::Instant;

use half::bf16;
use rayon::prelude::*;
use serde::Serialize;

use crate::backend::cpu::{Cpu, Element, Units};
use crate::terminal::complain;

/// Measured ceilings of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// FLOP/s of an f32 GEMM of two (2048, 2048) matrices.
    pub sgemm: f64,
    /// FLOP/s of the same GEMM in bf16, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16_gemm: Option<f64>,
    /// Execution units of the bf16 GEMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16_units: Option<&'static str>,
    /// Bytes read and written per second by a copy of 256 MiB.
    pub copy: f64,
}

/// Variable that selects small operands.
const VARIABLE: &str = "MAPL_CEILINGS";

/// Default sizes: side of the GEMM's matrices, and number of copied f32 elements (256 MiB).
const FULL: Sizes = Sizes { side: 2048, copied: COPIED };
/// Sizes with `MAPL_CEILINGS=rough`.
const ROUGH: Sizes = Sizes { side: 512, copied: COPIED / 64 };
const COPIED: usize = 64 << 20;

#[derive(Clone, Copy)]
struct Sizes {
    side: usize,
    copied: usize,
}

/// Sizes that `MAPL_CEILINGS` selects for this process.
static SIZES: LazyLock<Sizes> = LazyLock::new(|| match std::env::var_os(VARIABLE) {
    Some(value) if value == "rough" => {
        complain(&format!("note: ceilings are rough ({VARIABLE}); fractions of them are not meaningful"));
        ROUGH
    }
    Some(value) if !value.is_empty() => {
        let value = value.to_string_lossy();
        complain(&format!("warning: {VARIABLE}={value} is unknown and has no effect; the value is rough"));
        FULL
    }
    _ => FULL,
});
/// Bytes that the copy and the sum read, at the default sizes.
pub const COPIED_BYTES: u64 = 4 * COPIED as u64;
/// Number of repeats. The fastest repeat is used, because interruptions can only slow a repeat down.
const REPEATS: usize = 3;

impl Ceilings {
    /// Measures the ceilings, which needs about a second on two cores. `on` selects the units of the bf16 GEMM;
    /// `None` omits that GEMM.
    pub fn measure(on: Option<Units>) -> Self {
        let bf16_gemm = on.map(|units| gemm(&Cpu::<bf16>::on(units)));
        Self { sgemm: gemm(&Cpu::new()), bf16_gemm, bf16_units: on.map(Units::name), copy: copy() }
    }

    /// FLOP/s of the bf16 GEMM if it was measured, and otherwise of the f32 GEMM.
    pub fn gemm(&self) -> f64 {
        self.bf16_gemm.unwrap_or(self.sgemm)
    }
}

/// FLOP/s of a GEMM of two (2048, 2048) matrices in f32, and in bf16 on these units.
pub fn gemms(units: Units) -> [f64; 2] {
    [gemm(&Cpu::new()), gemm(&Cpu::<bf16>::on(units))]
}

/// Seconds of the fastest repeat of `work`, after one warm-up.
fn best(mut work: impl FnMut()) -> f64 {
    work();
    (0..REPEATS).map(|_| time(&mut work)).fold(f64::INFINITY, f64::min)
}

fn time(work: &mut impl FnMut()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn gemm<A: Element>(cpu: &Cpu<A>) -> f64 {
    let side = SIZES.side;
    let a: Vec<A> = (0..side * side).map(|i| A::of((i % 7) as f64 - 3.0)).collect();
    let mut c = vec![A::of(0.0); side * side];
    let seconds = best(|| crate::backend::cpu::square_gemm(cpu, &mut c, &a, &a, side));
    2.0 * (side as f64).powi(3) / seconds
}

/// Bytes per second of the fastest memory stream: a copy, a sum (read only), and an in-place update of four
/// arrays from a fifth, as in an optimiser. A store to a cache line that has not been read must first fetch the
/// line. The update avoids this fetch, so on most CPUs it moves more bytes per second than the copy.
pub fn memory(copy: f64) -> f64 {
    copy.max(sum()).max(update())
}

/// Elements per thread.
fn piece() -> usize {
    SIZES.copied.div_ceil(rayon::current_num_threads())
}

fn sum() -> f64 {
    let from = vec![1.0f32; SIZES.copied];
    // Several independent sums, so that additions do not wait for each other.
    let of = |x: &[f32]| {
        let mut sums = [0.0f32; 64];
        for x in x.chunks_exact(64) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        sums.iter().sum::<f32>()
    };
    let seconds = best(|| {
        std::hint::black_box(from.par_chunks(piece()).map(of).sum::<f32>());
    });
    4.0 * SIZES.copied as f64 / seconds
}

fn update() -> f64 {
    let len = SIZES.copied / 4;
    let array = || vec![1.0f32; len];
    let (mut a, mut b, mut c, mut d, x) = (array(), array(), array(), array(), array());
    let piece = len.div_ceil(rayon::current_num_threads());
    let seconds = best(|| {
        let targets = a.par_chunks_mut(piece).zip(b.par_chunks_mut(piece));
        let targets = targets.zip(c.par_chunks_mut(piece).zip(d.par_chunks_mut(piece)));
        targets.zip(x.par_chunks(piece)).for_each(|(((a, b), (c, d)), x)| {
            let rest = b.iter_mut().zip(c).zip(d.iter_mut().zip(x));
            for (a, ((b, c), (d, x))) in a.iter_mut().zip(rest) {
                *a = 0.5 * *a + x;
                *b = 0.5 * *b + x;
                *c = 0.5 * *c + x;
                *d = 0.5 * *d + x;
            }
        });
    });
    9.0 * 4.0 * len as f64 / seconds
}

fn copy() -> f64 {
    let from = vec![1.0f32; SIZES.copied];
    let mut to = vec![0.0f32; SIZES.copied];
    let seconds =
        best(|| to.par_chunks_mut(piece()).zip(from.par_chunks(piece())).for_each(|(to, x)| to.copy_from_slice(x)));
    2.0 * 4.0 * SIZES.copied as f64 / seconds
}
