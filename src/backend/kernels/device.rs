//! The device interface of the kernels' host code: memory, launches, properties. [`super::driver`] implements
//! it for a GPU through the CUDA driver, [`super::emulator`] runs the same kernels on the CPU, and
//! `rehearsal` only counts allocated bytes and launches.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;

use half::bf16;

pub use super::tensor_map::{MapElement, MapSwizzle, TensorMap, TensorMapSpec};
use crate::Result;
use crate::backend::contract::Precision;
use crate::backend::host::nearest_bf16;

/// Element type of activations and weights: f32 or bf16.
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// Precision of a backend with this element type.
    const PRECISION: Precision;
    /// Returns the first value for f32, the second for bf16.
    fn choose<T>(for_f32: T, for_bf16: T) -> T;
    /// Converts from f64; rounds to nearest, ties to even.
    fn of(x: f64) -> Self;
    /// Converts to f64, exactly.
    fn value(self) -> f64;
}

impl Element for f32 {
    const PRECISION: Precision = Precision::F32;
    fn choose<T>(for_f32: T, _: T) -> T {
        for_f32
    }
    fn of(x: f64) -> Self {
        x as f32
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
}

impl Element for bf16 {
    const PRECISION: Precision = Precision::Bf16;
    fn choose<T>(_: T, for_bf16: T) -> T {
        for_bf16
    }
    fn of(x: f64) -> Self {
        nearest_bf16(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// An entry point, as `build.rs` read it from its KERNEL or KERNELS line.
#[derive(Debug)]
pub struct Kernel {
    /// Name.
    pub name: &'static str,
    /// Name as the C string that the driver needs.
    pub c_name: &'static CStr,
    /// Index of its file in [`FATBINS`](super::launchers::FATBINS).
    pub file: usize,
    /// Threads per block.
    pub threads: u32,
    /// Blocks per cluster; 1 without clusters.
    pub cluster: u32,
    /// Whether blocks wait for one another, so that all of them must be resident at once.
    pub coresident: bool,
    /// Whether blocks may start before the previous launch has ended, and wait for it in the kernel
    /// (programmatic dependent launch).
    pub early: bool,
    /// Size of each parameter in bytes.
    pub parameters: &'static [usize],
    /// Entry point of the emulator; `None` in a build without it.
    pub emulated: Option<unsafe extern "C" fn(*mut *mut c_void)>,
}

/// Report of ptxas on a kernel for one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// `sm_80` or `sm_90a`.
    pub target: &'static str,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of the stack frame.
    pub stack: u32,
    /// Bytes of spill stores.
    pub spill_stores: u32,
    /// Bytes of spill loads.
    pub spill_loads: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
}

/// Number of blocks of a launch in each dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid(pub [u32; 3]);

impl From<usize> for Grid {
    fn from(blocks: usize) -> Self {
        Self([blocks as u32, 1, 1])
    }
}

impl From<(usize, usize)> for Grid {
    fn from((x, y): (usize, usize)) -> Self {
        Self([x as u32, y as u32, 1])
    }
}

impl From<(usize, usize, usize)> for Grid {
    fn from((x, y, z): (usize, usize, usize)) -> Self {
        Self([x as u32, y as u32, z as u32])
    }
}

/// Device pointer that a kernel reads from; 0 for an absent operand.
#[repr(transparent)]
#[derive(Debug)]
pub struct ConstPtr<T> {
    address: u64,
    element: PhantomData<T>,
}

/// Device pointer that a kernel writes to; 0 for an absent operand.
#[repr(transparent)]
#[derive(Debug)]
pub struct MutPtr<T> {
    address: u64,
    element: PhantomData<T>,
}

macro_rules! pointer {
    ($Pointer:ident) => {
        impl<T> Clone for $Pointer<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $Pointer<T> {}

        impl<T> $Pointer<T> {
            /// Null pointer of an absent operand.
            pub const NONE: Self = Self { address: 0, element: PhantomData };

            /// Pointer to element `start` of memory at `address`.
            pub(super) fn new(address: u64, start: usize) -> Self {
                Self { address: address + (start * size_of::<T>()) as u64, element: PhantomData }
            }

            /// Pointer to element `start` of a device's memory.
            pub fn of<D: Device>(memory: &D::Memory, start: usize) -> Self {
                Self::new(D::address(memory), start)
            }

            /// Address. Launchers choose kernels by its alignment.
            pub fn address(self) -> u64 {
                self.address
            }
        }
    };
}
pointer!(ConstPtr);
pointer!(MutPtr);

/// Properties of a device that grids and tiles depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Name.
    pub name: String,
    /// Number of streaming multiprocessors.
    pub processors: usize,
    /// Maximum shared memory of a block in bytes.
    pub shared_bytes: usize,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
}

/// A device that runs kernels on one stream, in the order they are enqueued. Every other method
/// with an effect on memory is ordered on that stream too, except [`Device::send`], which runs
/// concurrently.
pub trait Device: Sync {
    /// Allocation that is freed on drop.
    type Memory: Send + Sync;
    /// Staging of a transfer to the device: pinned host memory, and the device memory that it is
    /// copied to.
    type UploadBuffer: Send;
    /// Staging of a transfer to the host.
    type ReadbackBuffer: Send;
    /// Captured launches.
    type Graph: Send;
    /// Timestamp on the stream.
    type Stamp: Send;

    /// Name in logs and reports.
    const NAME: &'static str;
    /// Whether calls return before the enqueued work is done.
    const ASYNCHRONOUS: bool;
    /// Whether memory keeps what is written to it; otherwise everything reads as zero.
    const STORES: bool = true;

    /// Handle of the stream; 0 if the device has only one.
    fn stream(&self) -> u64 {
        0
    }

    /// Properties of the device.
    fn properties(&self) -> &Properties;

    /// NVML UUID of the GPU (`GPU-...`), if any.
    fn hardware_id(&self) -> Option<String> {
        None
    }

    /// Free memory in bytes, if known.
    fn memory_free(&self) -> Option<u64> {
        None
    }

    /// Allocates zeroed memory. Returns [`crate::Error::Memory`] if there is not enough.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// Device address of an allocation, aligned to 256 bytes.
    fn address(memory: &Self::Memory) -> u64;

    /// Copies `source` to the allocation from byte `start` on; the source may be reused on return.
    /// May wait for the enqueued work, as drivers do for pageable memory.
    fn upload(&self, memory: &mut Self::Memory, start: usize, source: &[u8]) -> Result<()>;

    /// Copies from the allocation, from byte `start` on, to the host. Waits for all work enqueued
    /// before.
    fn download(&self, memory: &Self::Memory, start: usize, to: &mut [u8]) -> Result<()>;

    /// Enqueues zeroing `bytes` bytes from byte `start` on.
    fn clear(&self, memory: &mut Self::Memory, start: usize, bytes: usize) -> Result<()>;

    /// Enqueues the copy of `bytes` bytes of `from`, from byte `start` on, to byte `at` of `to`. Must not be
    /// called while ops are recorded.
    fn copy(&self, from: &Self::Memory, start: usize, to: &mut Self::Memory, at: usize, bytes: usize) -> Result<()>;

    /// Enqueues a store of a 32-bit word at byte `start`. Does not wait.
    fn put(&self, memory: &mut Self::Memory, start: usize, word: u32) -> Result<()>;

    /// Waits for all work enqueued before. Returns its errors.
    fn synchronize(&self) -> Result<()>;

    /// Staging of `bytes` bytes for transfers to the device.
    fn upload_buffer(&self, bytes: usize) -> Result<Self::UploadBuffer>;

    /// Host memory of an upload buffer, for writing. Waits until the last [`Device::send`] has read
    /// it, and for nothing else.
    fn fill<'i>(&self, upload_buffer: &'i mut Self::UploadBuffer) -> Result<&'i mut [u8]>;

    /// Starts the copy of the first `bytes` bytes of the host memory to the device, concurrently
    /// with the enqueued work.
    fn send(&self, upload_buffer: &mut Self::UploadBuffer, bytes: usize) -> Result<()>;

    /// Enqueues the copy of `bytes` sent bytes, from byte `start` on, to the start of `to`. The copy runs
    /// after the transfer has arrived.
    fn receive(
        &self,
        upload_buffer: &mut Self::UploadBuffer,
        start: usize,
        bytes: usize,
        to: &mut Self::Memory,
    ) -> Result<()>;

    /// Staging of `bytes` bytes for transfers to the host.
    fn readback_buffer(&self, bytes: usize) -> Result<Self::ReadbackBuffer>;

    /// Enqueues the copy of `bytes` bytes of `from`, from byte `start` on, to byte `at` of the
    /// readback buffer.
    fn fetch(
        &self,
        from: &Self::Memory,
        start: usize,
        bytes: usize,
        readback_buffer: &mut Self::ReadbackBuffer,
        at: usize,
    ) -> Result<()>;

    /// Bytes of a readback buffer. Waits for the copies that [`Device::fetch`] enqueued, and so for
    /// the work before them, but not for work enqueued later.
    fn open<'o>(&self, readback_buffer: &'o mut Self::ReadbackBuffer) -> Result<&'o [u8]>;

    /// Captures the launches and clears that `work` enqueues, without running them. Returns `None` without
    /// calling `work` if the device cannot capture. Fails if `work` fails, waits, allocates or copies.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>>;

    /// Enqueues captured work.
    ///
    /// # Safety
    /// All memory that the captured work accesses is still allocated.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Enqueues a timestamp.
    fn stamp(&self) -> Result<Self::Stamp>;

    /// Seconds from one timestamp to a later one. Waits for the later one.
    fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> Result<f64>;

    /// Encodes a tensor map for this device. Returns [`crate::Error::Runtime`] if TMA does not support the
    /// specification.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap>;

    /// Enqueues a kernel. An empty grid does nothing.
    ///
    /// # Safety
    /// `parameters` point to values with the number, order and types of the kernel's declaration.
    /// Every device pointer among them is null where the kernel allows it, or points to memory of
    /// this device that covers all accesses of the kernel.
    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()>;
}
