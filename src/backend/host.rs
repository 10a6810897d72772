//! Host memory of the backends whose buffers are vectors: allocation that fails with an error instead of ending the
//! process, and copies in and out.

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;

use super::contract::expect_len;
use super::{View, ViewMut};
use crate::{Error, Result};

/// A zeroed vector. Its memory comes zeroed from the system, so that what is set aside for the largest batch and never
/// used costs nothing. [`Error::Memory`] when the system does not give the memory; sizes come from configurations and
/// batches, so this is reachable from input.
pub fn zeros<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    try_zeroed_vec(len).map_err(|()| {
        let mib = len as f64 * size_of::<T>() as f64 / f64::from(1 << 20);
        Error::Memory(format!(
            "cannot allocate {mib:.0} MiB; choose a smaller model, or lower --per-device-train-batch-size or --max-length"
        ))
    })
}

/// Bytes of memory that the system can give without swapping, where it says so (Linux).
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Fills a view from a slice of equal length.
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

/// A batch between host and buffers that are host memory too.
pub struct Inlet<T> {
    indices: Vec<i32>,
    numbers: Vec<T>,
}

impl<T: Zeroable + Copy> Inlet<T> {
    /// Room for so many indices and numbers.
    pub fn new(indices: usize, numbers: usize) -> Result<Self> {
        let mut inlet = Self { indices: zeros(indices)?, numbers: zeros(numbers)? };
        inlet.indices.clear();
        inlet.numbers.clear();
        Ok(inlet)
    }

    /// Keeps a batch.
    pub fn send(&mut self, indices: &[i32], numbers: &[f64], round: impl Fn(f64) -> T) -> Result<()> {
        self.indices.clear();
        self.indices.extend_from_slice(indices);
        self.numbers.clear();
        self.numbers.extend(numbers.iter().map(|&x| round(x)));
        Ok(())
    }

    /// Copies the batch into the begin of buffers.
    pub fn receive(&self, indices: &mut [i32], numbers: &mut [T]) -> Result<()> {
        let room = (indices.len() >= self.indices.len(), numbers.len() >= self.numbers.len());
        if room != (true, true) {
            return Err(Error::Runtime("a batch was received into buffers that are too short for it".into()));
        }
        indices[..self.indices.len()].copy_from_slice(&self.indices);
        numbers[..self.numbers.len()].copy_from_slice(&self.numbers);
        Ok(())
    }
}

/// Copies a view into elements of an outlet from `at` on.
pub fn fetch<T: Copy>(from: View<'_, Vec<T>>, outlet: &mut [T], at: usize) -> Result<()> {
    let Some(to) = outlet.get_mut(at..at + from.len) else {
        return Err(Error::Runtime(format!("{} results at {at} of an outlet of {}", from.len, outlet.len())));
    };
    to.copy_from_slice(from.slice());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_an_error_with_its_exit_code() {
        // More bytes than an address space has, so no system grants it.
        let error = zeros::<f32>(usize::MAX / 8).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("--per-device-train-batch-size"), "{error}");
        assert_eq!(zeros::<i32>(3).unwrap(), [0, 0, 0]);
    }
}
