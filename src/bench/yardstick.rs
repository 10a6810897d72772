//! Yardstick of CPU benchmarks: a control workload that never changes, timed between the samples of
//! a call. Cores of a virtual machine may share a physical core for seconds at a time, and clocks
//! change. Both lengthen a call and the yardstick next to it alike. Times in units of the yardstick
//! are therefore comparable between runs, unlike plain times. The yardstick shares no code with any
//! op.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::backend::contract::Bound;

/// Side of each thread's GEMM; its operands fit in the core's private cache.
const SIDE: usize = 320;
/// f32 elements that all threads copy: 16 MiB read and 16 MiB written.
const COPIED: usize = 4 << 20;

/// Operands of the workload.
pub struct Yardstick {
    gemm: Mutex<Vec<[Vec<f32>; 3]>>,
    copy: Mutex<(Vec<f32>, Vec<f32>)>,
}

impl Yardstick {
    /// Allocates the operands for all threads.
    pub fn new() -> Self {
        let matrix = || (0..SIDE * SIDE).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<f32>>();
        let gemm = (0..rayon::current_num_threads()).map(|_| [matrix(), matrix(), matrix()]).collect();
        Self { gemm: Mutex::new(gemm), copy: Mutex::new((vec![1.0; COPIED], vec![0.0; COPIED])) }
    }

    /// Runs the workload once: an f32 GEMM per thread, or a copy that exceeds the cores' private
    /// caches.
    pub fn run(&self, bound: Bound) {
        match bound {
            Bound::Gemm => {
                let mut all = self.gemm.lock().unwrap_or_else(|e| e.into_inner());
                all.par_iter_mut().with_max_len(1).for_each(|[c, a, b]| gemm(c, a, b));
                std::hint::black_box(&*all);
            }
            Bound::Memory => {
                let mut arrays = self.copy.lock().unwrap_or_else(|e| e.into_inner());
                let (from, to) = &mut *arrays;
                let piece = COPIED.div_ceil(rayon::current_num_threads());
                to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, x)| to.copy_from_slice(x));
                std::hint::black_box(to);
            }
        }
    }
}

impl Default for Yardstick {
    fn default() -> Self {
        Self::new()
    }
}

/// c = a b, all of shape (SIDE, SIDE).
fn gemm(c: &mut [f32], a: &[f32], b: &[f32]) {
    assert!([c.len(), a.len(), b.len()] == [SIDE * SIDE; 3]);
    let row = SIDE as isize;
    // SAFETY: by the assertion, all three are contiguous (SIDE, SIDE) arrays. c is borrowed mutably.
    unsafe {
        ::gemm::gemm(
            SIDE,
            SIDE,
            SIDE,
            c.as_mut_ptr(),
            1,
            row,
            false,
            a.as_ptr(),
            1,
            row,
            b.as_ptr(),
            1,
            row,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            ::gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_runs() {
        let yardstick = Yardstick::new();
        yardstick.run(Bound::Gemm);
        for [c, a, b] in &*yardstick.gemm.lock().unwrap() {
            for (row, column) in [(0, 0), (SIDE - 1, 1), (17, SIDE - 1)] {
                let dot: f32 = (0..SIDE).map(|k| a[row * SIDE + k] * b[k * SIDE + column]).sum();
                assert_eq!(c[row * SIDE + column], dot, "{row} {column}");
            }
        }
        yardstick.run(Bound::Memory);
        assert!(yardstick.copy.lock().unwrap().1.iter().all(|x| *x == 1.0));
    }
}
