//! What the kernels' host code needs of a device: memory, launches, properties. [`super::driver`] gives it a GPU through
//! the CUDA driver, [`super::emulator`] runs the same kernels on the CPU.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;

use half::bf16;

pub use super::tensor_map::{MapElement, MapSwizzle, TensorMap, TensorMapSpec};
use crate::Result;
use crate::backend::contract::Precision;

/// Storage of activations and weights: f32 or bf16.
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// Storage of `Act` on a backend of this element.
    const PRECISION: Precision;
    /// One of a pair of things for f32 and bf16.
    fn choose<T>(for_f32: T, for_bf16: T) -> T;
    /// Rounds to nearest, ties to even.
    fn of(x: f64) -> Self;
    /// Exact.
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
        bf16::from_f64(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// An entry point; made by `build.rs` from its KERNEL line.
#[derive(Debug)]
pub struct Kernel {
    pub name: &'static str,
    pub c_name: &'static CStr,
    /// Place of its file among the compiled ones.
    pub file: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Blocks wait on one another: all must be on the device at once.
    pub coresident: bool,
    /// Blocks may begin while the launch before ends, which they wait for themselves.
    pub early: bool,
    /// Bytes of each parameter.
    pub parameters: &'static [usize],
    /// The kernel as the emulator calls it.
    pub emulated: Option<unsafe extern "C" fn(*mut *mut c_void)>,
}

/// What ptxas reports of a kernel for one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    pub kernel: &'static str,
    /// `sm_80` or `sm_90a`.
    pub target: &'static str,
    pub registers: u32,
    /// Bytes.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    pub shared: u32,
}

/// Blocks of a launch.
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

/// Device address of elements that a kernel reads; 0 for an operand that is absent.
#[repr(transparent)]
#[derive(Debug)]
pub struct Read<T> {
    address: u64,
    element: PhantomData<T>,
}

/// Device address of elements that a kernel writes; 0 for an operand that is absent.
#[repr(transparent)]
#[derive(Debug)]
pub struct Write<T> {
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
            /// No operand.
            pub const NONE: Self = Self { address: 0, element: PhantomData };

            /// Element `start` of memory at `address`.
            pub(super) fn new(address: u64, start: usize) -> Self {
                Self { address: address + (start * size_of::<T>()) as u64, element: PhantomData }
            }

            /// Element `start` of a device's memory.
            pub fn of<D: Device>(memory: &D::Memory, start: usize) -> Self {
                Self::new(D::address(memory), start)
            }

            /// The address, for a choice by alignment.
            pub fn address(self) -> u64 {
                self.address
            }
        }
    };
}
pointer!(Read);
pointer!(Write);

/// What grids and tiles are chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    /// Multiprocessors.
    pub processors: usize,
    /// Most shared memory of a block, in bytes.
    pub shared_bytes: usize,
    /// Major and minor.
    pub compute_capability: (u32, u32),
}

/// A device that runs kernels, one after another, in the order they are enqueued in: the device's work. Every other method
/// with an effect on memory takes its place in that order too, but for [`Device::send`], which runs beside it.
pub trait Device: Sync {
    /// Memory that frees itself.
    type Memory: Send + Sync;
    /// Bytes on their way to the device: host memory that copies need not wait for, and memory that they arrive in.
    type Inlet: Send;
    /// Bytes on their way to the host.
    type Outlet: Send;
    /// Recorded work.
    type Graph: Send;
    /// A moment in the order of the enqueued work.
    type Stamp: Send;

    /// Name in logs and reports.
    const NAME: &'static str;
    /// Whether the host goes on while work runs.
    const ASYNCHRONOUS: bool;

    /// What the device is.
    fn properties(&self) -> &Properties;

    /// What the management library knows the card by (`GPU-...`); none where there is no card.
    fn hardware_id(&self) -> Option<String> {
        None
    }

    /// Bytes of memory that can still be had, where that is known.
    fn memory_free(&self) -> Option<u64> {
        None
    }

    /// Zeroed memory. [`crate::Error::Memory`] when there is not enough.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// Device address of memory, aligned to 256 bytes.
    fn address(memory: &Self::Memory) -> u64;

    /// Copies to the device, from byte `start` on; the source may be reused on return. May wait for the enqueued work, as drivers
    /// do to take over memory that is not page-locked.
    fn upload(&self, memory: &mut Self::Memory, start: usize, source: &[u8]) -> Result<()>;

    /// Copies from the device, from byte `start` on, after all work enqueued before.
    fn download(&self, memory: &Self::Memory, start: usize, to: &mut [u8]) -> Result<()>;

    /// Zeroes bytes in the order of the enqueued work.
    fn clear(&self, memory: &mut Self::Memory, start: usize, bytes: usize) -> Result<()>;

    /// Puts a word at byte `start` in the order of the enqueued work; waits for nothing.
    fn put(&self, memory: &mut Self::Memory, start: usize, word: u32) -> Result<()>;

    /// Waits for all work enqueued before; reports what went wrong in it.
    fn synchronize(&self) -> Result<()>;

    /// Room for so many bytes on their way to the device.
    fn inlet(&self, bytes: usize) -> Result<Self::Inlet>;

    /// The inlet's host memory, to be written. Waits until the last [`Device::send`] has read it, and for nothing else.
    fn fill<'i>(&self, inlet: &'i mut Self::Inlet) -> Result<&'i mut [u8]>;

    /// Starts copying the first bytes of the host memory to the device, beside the work that is under way.
    fn send(&self, inlet: &mut Self::Inlet, bytes: usize) -> Result<()>;

    /// Copies what was sent, from byte `start` on, to the begin of memory, when it has arrived and the work enqueued before
    /// is done.
    fn receive(&self, inlet: &mut Self::Inlet, start: usize, bytes: usize, to: &mut Self::Memory) -> Result<()>;

    /// Room for so many bytes on their way to the host.
    fn outlet(&self, bytes: usize) -> Result<Self::Outlet>;

    /// Enqueues a copy of `bytes` bytes of memory, from `start` on, to byte `at` of the outlet.
    fn fetch(
        &self,
        from: &Self::Memory,
        start: usize,
        bytes: usize,
        outlet: &mut Self::Outlet,
        at: usize,
    ) -> Result<()>;

    /// The outlet's bytes. Waits for the copies that were fetched into it, and so for the work before them, not for what was
    /// enqueued after.
    fn open<'o>(&self, outlet: &'o mut Self::Outlet) -> Result<&'o [u8]>;

    /// Records the launches and clears that `work` enqueues instead of running them. `None`, and `work` is not called, where
    /// nothing can be recorded. Fails when `work` does, or when it waits, allocates or copies.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>>;

    /// Enqueues recorded work.
    ///
    /// # Safety
    /// All memory that the recorded work touches is still allocated.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Enqueues taking the time, which passes when the work enqueued before is done.
    fn stamp(&self) -> Result<Self::Stamp>;

    /// Seconds from one moment to a later one. Waits for the later.
    fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> Result<f64>;

    /// Descriptor of a tensor in this device's bits. [`crate::Error::Runtime`] when it cannot be copied in such boxes.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap>;

    /// Enqueues a kernel. An empty grid does nothing.
    ///
    /// # Safety
    /// `parameters` point to values whose number, order and types are those of the kernel's line, and every address among
    /// them is 0 where the kernel allows that, or memory of this device with as many elements as the kernel touches.
    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()>;
}
