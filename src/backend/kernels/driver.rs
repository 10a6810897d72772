//! A GPU through the CUDA driver. Every cudarc call of the project is in this module. The presence
//! of the driver library is checked first, because cudarc panics without it.
//!
//! There are two streams in the primary context of one device: the work stream, and the copy stream for
//! concurrent copies to the device (`driver/transfer.rs`). [`Driver::new`] returns an error in these cases:
//! no driver, a driver with an older major CUDA version than that of the build, an unknown device index, no
//! kernels in the build, a device older than sm_80.

pub(crate) mod cublaslt;
mod launch;
pub(crate) mod nccl;
mod transfer;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::compile::guarded;
use super::device::{Device, Grid, Kernel, Properties};
use super::launchers::CUDA_VERSION;
use super::own::{self, Target};
use super::tensor_map::{MapElement, MapSwizzle, TensorMap, TensorMapSpec};
use crate::{Error, Result};
use transfer::{Graph, ReadbackBuffer, Stamp, UploadBuffer};

/// Lowest compute capability that the kernels are compiled for.
const OLDEST: (u32, u32) = (8, 0);

/// A GPU.
pub struct Driver {
    properties: Properties,
    context: sys::CUcontext,
    ordinal: sys::CUdevice,
    /// Work stream.
    stream: sys::CUstream,
    /// Copy stream.
    copies: sys::CUstream,
    /// Loaded modules by file, and functions by kernel.
    loaded: Mutex<Loaded>,
    /// Whether the host waits for every launch, so that an error names its kernel (`MAPL_SYNC_LAUNCHES=1`, or
    /// guarded waits).
    synchronous: bool,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<usize, sys::CUmodule>,
    functions: HashMap<(usize, &'static str), sys::CUfunction>,
    /// Maximum number of resident clusters, by kernel and bytes of dynamic shared memory.
    clusters: HashMap<(&'static str, u32), u32>,
}

// SAFETY: driver handles may be used from any thread that has made the context current, and every
// method does so.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver synchronises its calls, and a mutex guards the maps.
unsafe impl Sync for Driver {}

/// Returns a function that converts a driver error of `call`.
fn failed(call: impl Display) -> impl Fn(DriverError) -> Error {
    move |e| {
        let text = |s: Result<&std::ffi::CStr, DriverError>| {
            s.map_or_else(|_| "unknown".to_owned(), |s| s.to_string_lossy().into_owned())
        };
        let message = format!("{call}: {} ({}): {}", text(e.error_name()), e.0 as u32, text(e.error_string()));
        use sys::CUresult::*;
        match e.0 {
            CUDA_ERROR_OUT_OF_MEMORY => Error::Memory(format!(
                "{message}; lower --per-device-train-batch-size or --max-length, or choose a smaller model"
            )),
            CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_INVALID_PTX => {
                Error::Device(format!(
                    "{message}; the driver cannot run the kernels of this build: update the driver, or build with an \
                     older nvcc"
                ))
            }
            CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_HARDWARE_STACK_ERROR => Error::Device(format!(
                "{message}; a kernel failed, perhaps one enqueued earlier; MAPL_SYNC_LAUNCHES=1 names it"
            )),
            CUDA_ERROR_DEVICE_UNAVAILABLE | CUDA_ERROR_ECC_UNCORRECTABLE | CUDA_ERROR_CONTEXT_IS_DESTROYED => {
                Error::Device(format!("{message}; the device is lost: check nvidia-smi and the system log"))
            }
            _ => Error::Device(message),
        }
    }
}

/// Splits a CUDA version number into major and minor version: 13000 is (13, 0).
fn version(number: i32) -> (i32, i32) {
    (number / 1000, number % 1000 / 10)
}

/// Returns [`Error::Device`] if the driver's major CUDA version is older than that of the compiled kernels.
/// Minor versions do not matter (NVIDIA's minor version compatibility).
fn check_driver(driver: i32, build: i32) -> Result<()> {
    let ((has, _), (needs, minor)) = (version(driver), version(build));
    if has >= needs {
        return Ok(());
    }
    let (major, of_driver) = version(driver);
    Err(Error::Device(format!(
        "no CUDA device: the driver supports CUDA {major}.{of_driver}, but the kernels of this build need CUDA \
         {needs}.{minor}; update NVIDIA's driver, build with an older nvcc, or use --device cpu"
    )))
}

/// Whether the driver library can be loaded.
pub fn is_present() -> bool {
    // SAFETY: loading a library runs its initialisers; the initialisers of the CUDA driver are safe
    // to run.
    unsafe { sys::is_culib_present() }
}

impl Driver {
    /// Returns the number of GPUs that the driver reports, or [`Error::Device`] without a driver.
    pub(crate) fn count() -> Result<usize> {
        if !is_present() {
            return Err(Error::Device(
                "no CUDA device: the driver library (libcuda) cannot be loaded; install NVIDIA's driver, or use \
                 --device cpu"
                    .into(),
            ));
        }
        result::init().map_err(failed("cuInit"))?;
        result::device::get_count().map(|count| count.max(0) as usize).map_err(failed("cuDeviceGetCount"))
    }

    /// Opens a device by its index among the devices of CUDA_VISIBLE_DEVICES. Returns [`Error::Device`] with
    /// the reason if it does not exist or cannot run the kernels.
    pub fn new(ordinal: usize) -> Result<Self> {
        let refuse = |why: &str| Err(Error::Device(format!("no CUDA device: {why}")));
        let Some(build) = CUDA_VERSION else {
            return refuse("this build has no kernels, because nvcc was not found at build time (kernels/README.md)");
        };
        if !is_present() {
            return refuse(
                "the driver library (libcuda) cannot be loaded; install NVIDIA's driver, or use --device cpu",
            );
        }
        own::prepare_environment(Target::Gpu)?;
        result::init().map_err(failed("cuInit"))?;
        let mut driver = 0;
        // SAFETY: the call writes one number.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(failed("cuDriverGetVersion"))?;
        check_driver(driver, build)?;
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
        if count == 0 {
            return refuse("the driver sees no GPU; check CUDA_VISIBLE_DEVICES, or use --device cpu");
        }
        let Some(ordinal) = i32::try_from(ordinal).ok().filter(|&i| i < count) else {
            return refuse(&format!(
                "device {ordinal} does not exist; the driver sees {count} devices, counted from 0"
            ));
        };
        let device = result::device::get(ordinal).map_err(failed("cuDeviceGet"))?;
        let attribute = |which: sys::CUdevice_attribute| -> Result<usize> {
            // SAFETY: the device came from cuDeviceGet.
            let value = unsafe { result::device::get_attribute(device, which) };
            value.map(|v| v.max(0) as usize).map_err(failed("cuDeviceGetAttribute"))
        };
        use sys::CUdevice_attribute::*;
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
        let properties = Properties {
            name: result::device::get_name(device).map_err(failed("cuDeviceGetName"))?,
            processors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            compute_capability: (major, minor),
        };
        if properties.compute_capability < OLDEST {
            return refuse(&format!(
                "{} is sm_{major}{minor}, but the kernels need sm_80 or newer; use --device cpu",
                properties.name
            ));
        }
        // SAFETY: the device came from cuDeviceGet; the context is released when the driver is
        // dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was retained above.
        unsafe { result::ctx::set_current(context) }.map_err(failed("cuCtxSetCurrent"))?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let (stream, copies) =
            (stream().map_err(failed("cuStreamCreate"))?, stream().map_err(failed("cuStreamCreate"))?);
        let asked = std::env::var_os("MAPL_SYNC_LAUNCHES").is_some_and(|v| v == "1");
        // The host waits for every launch, so that the error of a guarded wait names its kernel.
        let synchronous = asked || cfg!(mapl_guard) || guarded();
        Ok(Self { properties, context, ordinal: device, stream, copies, loaded: Mutex::default(), synchronous })
    }

    /// Makes the context current on this thread.
    fn make_current(&self) -> Result<()> {
        // SAFETY: the context lives as long as this value.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Errors are ignored: the process is about to end, or the device has failed before.
        let _ = self.make_current();
        // SAFETY: streams, modules and context belong to this value and are not used afterwards.
        unsafe {
            for stream in [self.copies, self.stream] {
                let _ = result::stream::synchronize(stream);
                let _ = result::stream::destroy(stream);
            }
            for module in self.loaded().modules.values() {
                let _ = result::module::unload(*module);
            }
            let _ = result::primary_ctx::release(self.ordinal);
        }
    }
}

/// Device memory.
pub struct Memory {
    address: sys::CUdeviceptr,
    bytes: usize,
    context: sys::CUcontext,
}

// SAFETY: device addresses and context handles may be used from any thread.
unsafe impl Send for Memory {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    fn at(&self, start: usize, bytes: usize) -> sys::CUdeviceptr {
        assert!(start + bytes <= self.bytes, "bytes {start}+{bytes} outside memory of {}", self.bytes);
        self.address + start as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address came from cuMemAlloc and is freed once; the call waits for work that
        // uses it. Without a context (the device is lost) the calls fail, and there is nothing to
        // free.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::free_sync(self.address);
        }
    }
}

impl Device for Driver {
    type Memory = Memory;
    type UploadBuffer = UploadBuffer;
    type ReadbackBuffer = ReadbackBuffer;
    type Graph = Graph;
    type Stamp = Stamp;

    const NAME: &'static str = "cuda";
    const ASYNCHRONOUS: bool = true;

    fn stream(&self) -> u64 {
        self.stream as u64
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn hardware_id(&self) -> Option<String> {
        let uuid = result::device::get_uuid(self.ordinal).ok()?.bytes.map(|byte| byte as u8);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let parts = [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]].map(hex);
        Some(format!("GPU-{}", parts.join("-")))
    }

    fn memory_free(&self) -> Option<u64> {
        self.make_current().ok()?;
        result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.make_current()?;
        let failed = failed(format!("cuMemAlloc of {} MiB", bytes.div_ceil(1 << 20)));
        // SAFETY: the size is not 0, and the memory is zeroed before anything reads it.
        unsafe {
            let address = result::malloc_sync(bytes.max(1)).map_err(&failed)?;
            let memory = Memory { address, bytes, context: self.context };
            result::memset_d8_async(address, 0, bytes, self.stream).map_err(&failed)?;
            Ok(memory)
        }
    }

    fn address(memory: &Memory) -> u64 {
        memory.address
    }

    fn upload(&self, memory: &mut Memory, start: usize, source: &[u8]) -> Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        self.make_current()?;
        let failed = failed("cuMemcpyHtoDAsync");
        let address = memory.at(start, source.len());
        // SAFETY: the range is inside the memory; a copy from pageable memory has read its source
        // when the call returns.
        unsafe { result::memcpy_htod_async(address, source, self.stream) }.map_err(failed)
    }

    fn download(&self, memory: &Memory, start: usize, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.make_current()?;
        let address = memory.at(start, to.len());
        // SAFETY: the range is inside the memory, and the stream is synchronised before `to` is
        // used.
        unsafe { result::memcpy_dtoh_async(to, address, self.stream) }.map_err(failed("cuMemcpyDtoHAsync"))?;
        self.synchronize()
    }

    fn clear(&self, memory: &mut Memory, start: usize, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.make_current()?;
        let address = memory.at(start, bytes);
        // SAFETY: the range is inside the memory.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream) }.map_err(failed("cuMemsetD8Async"))
    }

    fn copy(&self, from: &Memory, start: usize, to: &mut Memory, at: usize, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.make_current()?;
        let (from, to) = (from.at(start, bytes), to.at(at, bytes));
        // SAFETY: both ranges are inside their memories, which differ because `to` is borrowed exclusively.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(failed("cuMemcpyDtoDAsync"))
    }

    fn put(&self, memory: &mut Memory, start: usize, word: u32) -> Result<()> {
        self.make_current()?;
        let address = memory.at(start, size_of::<u32>());
        assert!(start.is_multiple_of(size_of::<u32>()), "byte {start} is not the start of a word");
        // SAFETY: the word is inside the memory and aligned.
        unsafe { sys::cuMemsetD32Async(address, word, 1, self.stream) }.result().map_err(failed("cuMemsetD32Async"))
    }

    fn synchronize(&self) -> Result<()> {
        self.make_current()?;
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }

    fn upload_buffer(&self, bytes: usize) -> Result<UploadBuffer> {
        self.new_upload_buffer(bytes)
    }

    fn fill<'i>(&self, upload_buffer: &'i mut UploadBuffer) -> Result<&'i mut [u8]> {
        self.fill_upload_buffer(upload_buffer)
    }

    fn send(&self, upload_buffer: &mut UploadBuffer, bytes: usize) -> Result<()> {
        self.send_upload_buffer(upload_buffer, bytes)
    }

    fn receive(&self, upload_buffer: &mut UploadBuffer, start: usize, bytes: usize, to: &mut Memory) -> Result<()> {
        self.receive_upload_buffer(upload_buffer, start, bytes, to)
    }

    fn readback_buffer(&self, bytes: usize) -> Result<ReadbackBuffer> {
        self.new_readback_buffer(bytes)
    }

    fn fetch(
        &self,
        from: &Memory,
        start: usize,
        bytes: usize,
        readback_buffer: &mut ReadbackBuffer,
        at: usize,
    ) -> Result<()> {
        self.fetch_readback_buffer(from, start, bytes, readback_buffer, at)
    }

    fn open<'o>(&self, readback_buffer: &'o mut ReadbackBuffer) -> Result<&'o [u8]> {
        self.open_readback_buffer(readback_buffer)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        self.record_graph(work)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: the caller guarantees the contract of `Device::replay`.
        unsafe { self.replay_graph(graph) }
    }

    fn stamp(&self) -> Result<Stamp> {
        self.new_stamp()
    }

    fn seconds_between(&self, from: &Stamp, to: &Stamp) -> Result<f64> {
        self.seconds_of(from, to)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        spec.check()?;
        if self.properties.compute_capability < (9, 0) {
            return Err(Error::Device(format!("{} has no TMA; tensor maps need sm_90", self.properties.name)));
        }
        let element = match spec.element {
            MapElement::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            MapElement::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = match spec.swizzle {
            MapSwizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            MapSwizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let steps = [1; 3];
        // SAFETY: `check` has compared the lengths of the lists with the rank, and they live across
        // the call; the driver stores the address without an access.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                element,
                spec.dims.len() as u32,
                spec.address as *mut c_void,
                spec.dims.as_ptr(),
                spec.strides.as_ptr(),
                spec.boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed("cuTensorMapEncodeTiled"))?;
        Ok(TensorMap(map.opaque))
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the caller guarantees the contract of `Device::launch`.
        unsafe { self.launch_kernel(kernel, grid, shared_bytes, parameters) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_an_older_major_version_is_refused_with_both_versions() {
        let error = check_driver(12090, 13000).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let text = error.to_string();
        assert!(text.contains("CUDA 12.9") && text.contains("CUDA 13.0") && text.contains("--device cpu"), "{text}");
        for driver in [13000, 13020, 14000] {
            check_driver(driver, 13010).unwrap();
        }
    }

    #[test]
    fn errors_of_the_driver_have_an_exit_code_and_advice() {
        use sys::CUresult::*;
        // The driver library provides the names and texts.
        if !is_present() {
            println!("SKIPPED: no driver library");
            return;
        }
        for (code, exit, advice) in [
            (CUDA_ERROR_OUT_OF_MEMORY, 7, "--per-device-train-batch-size"),
            (CUDA_ERROR_ILLEGAL_ADDRESS, 5, "MAPL_SYNC_LAUNCHES"),
            (CUDA_ERROR_DEVICE_UNAVAILABLE, 5, "nvidia-smi"),
            (CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 5, "update the driver"),
        ] {
            let error = failed("cuLaunchKernel")(DriverError(code));
            assert_eq!(error.exit_code(), exit);
            assert!(error.to_string().contains(advice), "{error}");
        }
    }
}
