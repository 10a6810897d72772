//! A device for dry runs: it counts allocated bytes and launches, and has neither memory nor kernels. The
//! host code of the kernels runs on this device with the sizes of the largest batch. This gives the memory
//! that a run needs before anything is allocated.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::device::{Device, Grid, Kernel, Properties};
use super::tensor_map::{TensorMap, TensorMapSpec};
use crate::Result;

/// Device for dry runs. Operations other than allocations and launches succeed and do nothing.
pub struct Rehearsal {
    properties: Properties,
    bytes: Arc<AtomicU64>,
    next: AtomicU64,
    launches: Mutex<BTreeMap<(&'static str, u64, usize), u64>>,
}

/// Number of launches of one kernel on one grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    pub kernel: &'static str,
    pub blocks: u64,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: usize,
    pub count: u64,
}

impl Rehearsal {
    /// A device with the properties of the run's device.
    pub fn of(properties: &Properties) -> Self {
        Self {
            properties: properties.clone(),
            bytes: Arc::default(),
            next: AtomicU64::new(ALIGNMENT),
            launches: Mutex::default(),
        }
    }

    /// Returns and clears the launches since the last call, by kernel and grid.
    pub fn take_launches(&self) -> Vec<Launched> {
        let launches = std::mem::take(&mut *self.launches.lock().unwrap_or_else(|e| e.into_inner()));
        let launched = |((kernel, blocks, shared_bytes), count)| Launched { kernel, blocks, shared_bytes, count };
        launches.into_iter().map(launched).collect()
    }

    /// Bytes in use. Each allocation is rounded up to the allocation unit of devices.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Alignment of device allocations in bytes.
const ALIGNMENT: u64 = 256;

/// A counted allocation without memory.
pub struct Memory {
    address: u64,
    bytes: u64,
    in_use: Arc<AtomicU64>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.in_use.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Device for Rehearsal {
    type Memory = Memory;
    type UploadBuffer = Memory;
    type ReadbackBuffer = ();
    type Graph = ();
    type Stamp = ();

    const NAME: &'static str = "rehearsal";
    const ASYNCHRONOUS: bool = true;
    const STORES: bool = false;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let bytes = (bytes as u64).next_multiple_of(ALIGNMENT);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Memory { address: self.next.fetch_add(bytes, Ordering::Relaxed), bytes, in_use: self.bytes.clone() })
    }

    fn address(memory: &Memory) -> u64 {
        memory.address
    }

    fn upload(&self, _: &mut Memory, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Fills `to` with zeros.
    fn download(&self, _: &Memory, _: usize, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn clear(&self, _: &mut Memory, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn copy(&self, _: &Memory, _: usize, _: &mut Memory, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn put(&self, _: &mut Memory, _: usize, _: u32) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn upload_buffer(&self, bytes: usize) -> Result<Memory> {
        self.allocate(bytes)
    }

    fn fill<'i>(&self, _: &'i mut Memory) -> Result<&'i mut [u8]> {
        Ok(&mut [])
    }

    fn send(&self, _: &mut Memory, _: usize) -> Result<()> {
        Ok(())
    }

    fn receive(&self, _: &mut Memory, _: usize, _: usize, _: &mut Memory) -> Result<()> {
        Ok(())
    }

    /// Host memory is not counted.
    fn readback_buffer(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn fetch(&self, _: &Memory, _: usize, _: usize, (): &mut (), _: usize) -> Result<()> {
        Ok(())
    }

    fn open<'o>(&self, (): &'o mut ()) -> Result<&'o [u8]> {
        Ok(&[])
    }

    fn record(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<()>> {
        Ok(None)
    }

    unsafe fn replay(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn stamp(&self) -> Result<()> {
        Ok(())
    }

    /// Returns 0, since nothing runs.
    fn seconds_between(&self, (): &(), (): &()) -> Result<f64> {
        Ok(0.0)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        spec.check()?;
        Ok(TensorMap([0; 16]))
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        _: &mut [*mut c_void],
    ) -> Result<()> {
        let blocks = grid.0.iter().map(|&n| u64::from(n)).product();
        let mut launches = self.launches.lock().unwrap_or_else(|e| e.into_inner());
        *launches.entry((kernel.name, blocks, shared_bytes)).or_default() += 1;
        Ok(())
    }
}
