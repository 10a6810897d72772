//! Host memory for the backends that store buffers as vectors: copies in and out, and allocation
//! that returns an error instead of ending the process.

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;
use half::bf16;

use super::contract::expect_len;
use super::{View, ViewMut};
use crate::memory::handling_failure;
use crate::{Error, Result};

/// Allocates a zeroed vector. The operating system provides zeroed pages at the first access, so the unused
/// part of a buffer for the largest batch occupies no memory. Returns [`Error::Memory`] if the allocation
/// fails. Sizes come from configurations and batches, so a user's input can cause this error.
pub fn zeros<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    handling_failure(|| try_zeroed_vec(len)).map_err(|()| {
        let mib = len as f64 * size_of::<T>() as f64 / f64::from(1 << 20);
        Error::Memory(format!(
            "cannot allocate {mib:.0} MiB; choose a smaller model, or lower --per-device-train-batch-size or --max-length"
        ))
    })
}

/// Rounds to the nearest bf16, ties to even. `half::bf16::from_f64` drops the last 32 bits first, so it
/// treats a number just above a tie as the tie.
pub(crate) fn nearest_bf16(x: f64) -> bf16 {
    let near = x as f32;
    let (bits, exact) = (near.to_bits(), f64::from(near));
    // The conversion to f32 must not move a number onto a tie of bf16.
    if bits & 0xffff == 0x8000 && exact != x {
        return bf16::from_f32(f32::from_bits(if exact.abs() < x.abs() { bits + 1 } else { bits - 1 }));
    }
    bf16::from_f32(near)
}

/// Copies a slice to a view of equal length.
pub fn write<T: Copy>(to: ViewMut<'_, Vec<T>>, source: &[T]) -> Result<()> {
    expect_len("write", "source", source.len(), to.len)?;
    to.into_slice().copy_from_slice(source);
    Ok(())
}

/// Copies a view into a slice of equal length.
pub fn read<T: Copy>(from: View<'_, Vec<T>>, to: &mut [T]) -> Result<()> {
    expect_len("read", "to", to.len(), from.len)?;
    to.copy_from_slice(from.slice());
    Ok(())
}

/// Copies a view to a view of equal length.
pub fn copy<T: Copy>(from: View<'_, Vec<T>>, to: ViewMut<'_, Vec<T>>) -> Result<()> {
    expect_len("copy", "to", to.len, from.len)?;
    to.into_slice().copy_from_slice(from.slice());
    Ok(())
}

/// Staging buffer of a backend with buffers in host memory.
pub struct UploadBuffer<T> {
    indices: Vec<i32>,
    numbers: Vec<T>,
}

impl<T: Zeroable + Copy> UploadBuffer<T> {
    /// Allocates space for `indices` indices and `numbers` numbers.
    pub fn new(indices: usize, numbers: usize) -> Result<Self> {
        let mut upload_buffer = Self { indices: zeros(indices)?, numbers: zeros(numbers)? };
        upload_buffer.indices.clear();
        upload_buffer.numbers.clear();
        Ok(upload_buffer)
    }

    /// Stores a batch; `round` converts its numbers to the precision of the backend.
    pub fn send(&mut self, indices: &[i32], numbers: &[f64], round: impl Fn(f64) -> T) -> Result<()> {
        self.indices.clear();
        self.indices.extend_from_slice(indices);
        self.numbers.clear();
        self.numbers.extend(numbers.iter().map(|&x| round(x)));
        Ok(())
    }

    /// Copies the stored batch to the start of the buffers.
    pub fn receive(&self, indices: &mut [i32], numbers: &mut [T]) -> Result<()> {
        if indices.len() < self.indices.len() || numbers.len() < self.numbers.len() {
            return Err(Error::Runtime(format!(
                "a batch of {} indices and {} numbers does not fit into buffers of {} and {}",
                self.indices.len(),
                self.numbers.len(),
                indices.len(),
                numbers.len()
            )));
        }
        indices[..self.indices.len()].copy_from_slice(&self.indices);
        numbers[..self.numbers.len()].copy_from_slice(&self.numbers);
        Ok(())
    }
}

/// Copies a view to a readback buffer, starting at element `at`.
pub fn fetch<T: Copy>(from: View<'_, Vec<T>>, readback_buffer: &mut [T], at: usize) -> Result<()> {
    let Some(to) = readback_buffer.get_mut(at..at + from.len) else {
        let message = format!(
            "{} results at element {at} do not fit into a readback buffer of {}",
            from.len,
            readback_buffer.len()
        );
        return Err(Error::Runtime(message));
    };
    to.copy_from_slice(from.slice());
    Ok(())
}

/// The part of an `impl Backend` that does not depend on the ops, for a backend with buffers in host memory.
/// `Act` is a vector of `$Act`, and `Acc` a vector of `$Number`. The backend itself defines the host copies
/// of single `Act` and `Acc` buffers.
macro_rules! host_memory {
    ($Act:ty, $Number:ty) => {
        type Act = Vec<$Act>;
        type Acc = Vec<$Number>;
        type Idx = Vec<i32>;
        type UploadBuffer = $crate::backend::host::UploadBuffer<$Number>;
        type ReadbackBuffer = Vec<$Number>;
        type Graph = ();
        type Stamp = std::time::Instant;

        const ASYNCHRONOUS: bool = false;

        fn zeros_act(&self, len: usize) -> $crate::Result<Self::Act> {
            $crate::backend::host::zeros(len)
        }
        fn zeros_acc(&self, len: usize) -> $crate::Result<Self::Acc> {
            $crate::backend::host::zeros(len)
        }
        fn zeros_idx(&self, len: usize) -> $crate::Result<Self::Idx> {
            $crate::backend::host::zeros(len)
        }
        fn write_idx(&self, to: $crate::backend::ViewMut<'_, Self::Idx>, source: &[i32]) -> $crate::Result<()> {
            $crate::backend::host::write(to, source)
        }
        fn copy_act(
            &self,
            from: $crate::backend::View<'_, Self::Act>,
            to: $crate::backend::ViewMut<'_, Self::Act>,
        ) -> $crate::Result<()> {
            $crate::backend::host::copy(from, to)
        }
        fn copy_acc(
            &self,
            from: $crate::backend::View<'_, Self::Acc>,
            to: $crate::backend::ViewMut<'_, Self::Acc>,
        ) -> $crate::Result<()> {
            $crate::backend::host::copy(from, to)
        }
        fn clear_acc(&self, to: $crate::backend::ViewMut<'_, Self::Acc>) -> $crate::Result<()> {
            to.into_slice().fill(0.0);
            Ok(())
        }

        fn upload_buffer(&self, indices: usize, numbers: usize) -> $crate::Result<Self::UploadBuffer> {
            $crate::backend::host::UploadBuffer::new(indices, numbers)
        }
        fn send(&self, upload_buffer: &mut Self::UploadBuffer, indices: &[i32], numbers: &[f64]) -> $crate::Result<()> {
            upload_buffer.send(indices, numbers, |x| x as $Number)
        }
        fn receive(
            &self,
            upload_buffer: &mut Self::UploadBuffer,
            indices: &mut Self::Idx,
            numbers: &mut Self::Acc,
        ) -> $crate::Result<()> {
            upload_buffer.receive(indices, numbers)
        }
        fn readback_buffer(&self, len: usize) -> $crate::Result<Self::ReadbackBuffer> {
            $crate::backend::host::zeros(len)
        }
        fn fetch(
            &self,
            from: $crate::backend::View<'_, Self::Acc>,
            readback_buffer: &mut Self::ReadbackBuffer,
            at: usize,
        ) -> $crate::Result<()> {
            $crate::backend::host::fetch(from, readback_buffer, at)
        }
        fn open(&self, readback_buffer: &mut Self::ReadbackBuffer, to: &mut [f64]) -> $crate::Result<()> {
            let len = to.len();
            self.read_acc($crate::backend::View::first(readback_buffer, len), to)
        }

        fn stamp(&self) -> $crate::Result<Self::Stamp> {
            Ok(std::time::Instant::now())
        }

        fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> $crate::Result<f64> {
            Ok(to.duration_since(*from).as_secs_f64())
        }
    };
}
pub(super) use host_memory;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beside_a_tie_are_rounded_to_their_side() {
        let (below, above) = (1.0, 1.0 + 1.0 / 128.0);
        for (distance, sign) in [(2f64.powi(-9), 1.0), (2f64.powi(-23), 1.0), (2f64.powi(-50), -1.0)] {
            let tie = 1.0 + 1.0 / 256.0;
            assert_eq!(nearest_bf16(sign * tie).to_f64(), sign * below);
            assert_eq!(nearest_bf16(sign * (tie + distance)).to_f64(), sign * above, "{distance}");
            assert_eq!(nearest_bf16(sign * (tie - distance)).to_f64(), sign * below, "{distance}");
            assert_eq!(nearest_bf16(sign * (tie + 1.0 / 128.0 - distance)).to_f64(), sign * above, "{distance}");
        }
        for x in [0.0, -0.0, 1e39, -1e300, f64::INFINITY, 1e-40, 3.0e-41] {
            assert_eq!(nearest_bf16(x).to_bits(), bf16::from_f32(x as f32).to_bits(), "{x}");
        }
        assert!(nearest_bf16(f64::NAN).is_nan());
    }

    #[test]
    fn failed_allocation_is_an_error_with_its_exit_code() {
        // More bytes than an address space holds, so the allocation fails on every system.
        let error = zeros::<f32>(usize::MAX / 8).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("--per-device-train-batch-size"), "{error}");
        assert_eq!(zeros::<i32>(3).unwrap(), [0, 0, 0]);
    }
}
