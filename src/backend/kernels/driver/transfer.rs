//! Asynchronous transfers and CUDA graphs: pinned host memory, events between the two streams, and
//! stream capture.
//!
//! Events order the transfers. A transfer to the device runs on the copy stream. It waits for the event
//! `consumed`, after which the work stream no longer reads the device side of the upload buffer. The work
//! stream waits for the event `arrived` before it reads the upload buffer. The host waits for `arrived`
//! before it overwrites the pinned memory. A transfer to the host runs on the work stream and records the
//! event `done`; the host waits for `done` before it reads.

use std::ffi::c_void;
use std::ptr::NonNull;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::{Driver, Memory, failed};
use crate::backend::kernels::device::Device as _;
use crate::{Error, Result};

/// Pinned host memory.
struct Pinned {
    start: NonNull<c_void>,
    bytes: usize,
    context: sys::CUcontext,
}

// SAFETY: the fields are host memory and a context handle, which may be used from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(driver: &Driver, bytes: usize) -> Result<Self> {
        driver.make_current()?;
        let failed = failed(format!("cuMemHostAlloc of {} MiB", bytes.div_ceil(1 << 20)));
        // SAFETY: the size is not 0.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(failed)?;
        let Some(start) = NonNull::new(start) else {
            return Err(Error::Memory("cuMemHostAlloc returned no memory; choose a smaller batch".into()));
        };
        // SAFETY: the memory has `bytes` bytes and nothing else uses it.
        unsafe { std::ptr::write_bytes(start.as_ptr().cast::<u8>(), 0, bytes) };
        Ok(Self { start, bytes, context: driver.context })
    }

    /// Returns the memory. The caller must have waited for the copies that use it.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory has `self.bytes` initialised bytes and is borrowed exclusively; no
        // copy is in progress (as above).
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.bytes) }
    }

    fn check(&self, start: usize, bytes: usize) {
        assert!(start + bytes <= self.bytes, "bytes {start}+{bytes} outside pinned memory of {}", self.bytes);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the memory came from cuMemHostAlloc and is freed once; its owner has waited for
        // the copies that use it.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::free_host(self.start.as_ptr());
        }
    }
}

/// A CUDA event.
pub(super) struct Event {
    event: sys::CUevent,
    context: sys::CUcontext,
}

// SAFETY: driver handles may be used from any thread that has made the context current.
unsafe impl Send for Event {}
// SAFETY: as above; the driver synchronises its calls.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(driver: &Driver) -> Result<Self> {
        Self::with(driver, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with(driver: &Driver, flags: sys::CUevent_flags) -> Result<Self> {
        driver.make_current()?;
        let event = result::event::create(flags).map_err(failed("cuEventCreate"))?;
        Ok(Self { event, context: driver.context })
    }

    /// Records the event after the work enqueued on the stream.
    pub(super) fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream are alive; the caller has made their context current.
        unsafe { result::event::record(self.event, stream) }.map_err(failed("cuEventRecord"))
    }

    /// Makes the stream wait for the event. An event that was never recorded does not block.
    pub(super) fn stream_wait(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        unsafe { result::stream::wait_event(stream, self.event, flags) }.map_err(failed("cuStreamWaitEvent"))
    }

    /// Blocks the host until the event has happened.
    fn host_wait(&self) -> Result<()> {
        // SAFETY: as above.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("cuEventSynchronize"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is destroyed once; the driver keeps events that streams still wait for.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::event::destroy(self.event);
        }
    }
}

/// A timestamp on the work stream.
pub struct Stamp(Event);

/// Pinned memory, and the event after its last copy.
struct Staging {
    event: Event,
    host: Pinned,
}

impl Staging {
    fn new(driver: &Driver, bytes: usize) -> Result<Self> {
        Ok(Self { event: Event::new(driver)?, host: Pinned::new(driver, bytes)? })
    }

    /// Waits for the last copy, then returns the memory.
    fn wait(&mut self) -> Result<&mut [u8]> {
        self.event.host_wait()?;
        Ok(self.host.bytes())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Memory must not be freed while a copy uses it. An error means that the device is lost.
        // SAFETY: the context lives as long as the driver.
        if unsafe { result::ctx::set_current(self.event.context) }.is_ok() {
            let _ = self.event.host_wait();
        }
    }
}

/// Pinned memory to send, and the device memory that receives it.
pub struct UploadBuffer {
    /// The event of `staging` is the event `arrived` of the module comment. This field is dropped before
    /// `device`, so the copy ends before the device memory is freed.
    staging: Staging,
    consumed: Event,
    device: Memory,
}

/// Pinned memory that receives results. Its event is the event `done` of the module comment.
pub struct ReadbackBuffer(Staging);

/// An instantiated CUDA graph.
pub struct Graph {
    graph: sys::CUgraphExec,
    context: sys::CUcontext,
}

// SAFETY: driver handles may be used from any thread that has made the context current.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is destroyed once; the driver finishes a launch in progress first.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::graph::exec_destroy(self.graph);
        }
    }
}

impl Driver {
    pub(super) fn new_upload_buffer(&self, bytes: usize) -> Result<UploadBuffer> {
        Ok(UploadBuffer {
            consumed: Event::new(self)?,
            device: self.allocate(bytes)?,
            staging: Staging::new(self, bytes)?,
        })
    }

    pub(super) fn fill_upload_buffer<'i>(&self, upload_buffer: &'i mut UploadBuffer) -> Result<&'i mut [u8]> {
        self.make_current()?;
        upload_buffer.staging.wait()
    }

    pub(super) fn send_upload_buffer(&self, upload_buffer: &mut UploadBuffer, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.make_current()?;
        let Staging { event: arrived, host } = &upload_buffer.staging;
        host.check(0, bytes);
        let address = upload_buffer.device.at(0, bytes);
        upload_buffer.consumed.stream_wait(self.copies)?;
        // SAFETY: both ranges are inside their memory, which lives until `arrived` (see Drop); the
        // host writes it only after that.
        unsafe {
            let source = std::slice::from_raw_parts(host.start.as_ptr().cast::<u8>(), bytes);
            result::memcpy_htod_async(address, source, self.copies).map_err(failed("cuMemcpyHtoDAsync"))?;
        }
        arrived.record(self.copies)
    }

    pub(super) fn receive_upload_buffer(
        &self,
        upload_buffer: &mut UploadBuffer,
        start: usize,
        bytes: usize,
        to: &mut Memory,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.make_current()?;
        let (from, to) = (upload_buffer.device.at(start, bytes), to.at(0, bytes));
        upload_buffer.staging.event.stream_wait(self.stream)?;
        // SAFETY: both ranges are in memory of this device.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(failed("cuMemcpyDtoDAsync"))?;
        upload_buffer.consumed.record(self.stream)
    }

    pub(super) fn new_readback_buffer(&self, bytes: usize) -> Result<ReadbackBuffer> {
        Ok(ReadbackBuffer(Staging::new(self, bytes)?))
    }

    pub(super) fn fetch_readback_buffer(
        &self,
        from: &Memory,
        start: usize,
        bytes: usize,
        readback_buffer: &mut ReadbackBuffer,
        at: usize,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.make_current()?;
        let address = from.at(start, bytes);
        let Staging { event: done, host } = &readback_buffer.0;
        host.check(at, bytes);
        // SAFETY: both ranges are inside their memory; the host reads it after `done`, and frees it
        // after that (see Drop).
        unsafe {
            let to = host.start.as_ptr().cast::<u8>().add(at).cast();
            sys::cuMemcpyDtoHAsync_v2(to, address, bytes, self.stream).result().map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        done.record(self.stream)
    }

    pub(super) fn open_readback_buffer<'o>(&self, readback_buffer: &'o mut ReadbackBuffer) -> Result<&'o [u8]> {
        self.make_current()?;
        readback_buffer.0.wait().map(|bytes| &*bytes)
    }

    /// Enqueues a copy of the first `bytes` bytes on the device. Benchmarks compare memory-bound
    /// kernels with its rate.
    pub fn copy(&self, from: &Memory, to: &mut Memory, bytes: usize) -> Result<()> {
        self.make_current()?;
        let (from, to) = (from.at(0, bytes), to.at(0, bytes));
        // SAFETY: both ranges are in memory of this device.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(failed("cuMemcpyDtoDAsync"))
    }

    pub(super) fn new_stamp(&self) -> Result<Stamp> {
        let event = Event::with(self, sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        event.record(self.stream)?;
        Ok(Stamp(event))
    }

    /// Seconds between two timestamps, with a resolution of about half a microsecond (CUDA driver
    /// API, cuEventElapsedTime).
    pub(super) fn seconds_of(&self, from: &Stamp, to: &Stamp) -> Result<f64> {
        self.make_current()?;
        to.0.host_wait()?;
        // SAFETY: both events are alive, have timing enabled and have been recorded; the later one
        // has happened.
        let milliseconds =
            unsafe { result::event::elapsed(from.0.event, to.0.event) }.map_err(failed("cuEventElapsedTime"))?;
        Ok(1e-3 * f64::from(milliseconds))
    }

    pub(super) fn record_graph(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        if self.synchronous {
            // A synchronisation after each launch is not allowed in a capture.
            return Ok(None);
        }
        self.make_current()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and no other capture is in progress, because captures do not
        // nest.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("cuStreamBeginCapture"))?;
        let done = work();
        // SAFETY: the capture began above, on this thread.
        let captured = unsafe { result::stream::end_capture(self.stream) };
        if let (Err(_), Ok(captured)) = (&done, &captured) {
            // SAFETY: the graph came from the capture and is not used again.
            let _ = unsafe { result::graph::destroy(*captured) };
        }
        done?;
        let captured = captured.map_err(failed("cuStreamEndCapture"))?;
        // SAFETY: the graph came from the capture and is not used after it is destroyed.
        let graph = unsafe {
            let graph = result::graph::instantiate(captured, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(captured);
            graph.map_err(failed("cuGraphInstantiate"))?
        };
        Ok(Some(Graph { graph, context: self.context }))
    }

    /// # Safety
    /// Like [`crate::backend::kernels::device::Device::replay`].
    pub(super) unsafe fn replay_graph(&self, graph: &Graph) -> Result<()> {
        self.make_current()?;
        // SAFETY: the graph is alive, and so is the memory it accesses (contract of this function).
        unsafe { result::graph::launch(graph.graph, self.stream) }.map_err(failed("cuGraphLaunch"))
    }
}
