//! NVTX ranges for ops and steps, off unless `MAPL_NVTX` is 1. A profiler such as Nsight Systems names its
//! library in `NVTX_INJECTION64_PATH`. As in NVTX 3, the library fills a table of functions, and ranges call
//! two of them. Nothing is linked at build time.
//!
//! ```text
//! load NVTX_INJECTION64_PATH                          InitializeInjectionNvtx2(export table)
//! export table 1: callbacks, 3: version               module 1: slots 9, RangePushA, and 11, RangePop
//! range("norm_fwd")                                   push; pop when the range is dropped
//! ```
//!
//! Ranges belong to the host thread. They cover the enqueueing of an op, and profilers project them onto the
//! GPU's work. A replayed step has the range of the step only, because a CUDA graph calls no ops.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

use crate::terminal::complain;

/// Environment variable that requests ranges.
pub const VARIABLE: &str = "MAPL_NVTX";
/// Environment variable with the profiler's library, which the profiler sets.
const LIBRARY: &str = "NVTX_INJECTION64_PATH";

/// Ids of the export tables: callbacks, and the version of NVTX (`NVTX_ETID_...`).
const CALLBACKS: u32 = 1;
const VERSION_INFO: u32 = 3;
const VERSION: u32 = 3;
/// Number of slots of the modules 1 to 6 (`NVTX_CB_MODULE_...`): functions without a domain, of CUDA, of
/// OpenCL, of the CUDA runtime, with a domain, of synchronisation. Profilers expect them all; slot 0 is
/// unused.
const SLOTS: [usize; 6] = [16, 9, 15, 7, 16, 7];
const MOST_SLOTS: usize = 16;
/// Slots of the two functions in module 1 (`NVTX_CBID_CORE_...`).
const PUSH: usize = 9;
const POP: usize = 11;

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;
type GetExportTable = unsafe extern "C" fn(u32) -> *const c_void;
type Initialize = unsafe extern "C" fn(GetExportTable) -> c_int;

/// `NvtxExportTableCallbacks`.
#[repr(C)]
struct ExportTable {
    bytes: usize,
    module: unsafe extern "C" fn(c_int, *mut *mut *mut c_void, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct VersionInfo {
    bytes: usize,
    version: u32,
    reserved: u32,
    set_version_of_profiler: unsafe extern "C" fn(u32),
}

unsafe extern "C" fn ignore_version(_: u32) {}

/// Function pointers by module and slot, which the profiler fills in; null until then.
static FUNCTIONS: [[AtomicPtr<c_void>; MOST_SLOTS]; 6] =
    [const { [const { AtomicPtr::new(null_mut()) }; MOST_SLOTS] }; 6];

/// Addresses of the slots by module. Each list ends with a null.
struct Slots([[*mut c_void; MOST_SLOTS + 1]; 6]);
// SAFETY: the addresses are of atomics that live as long as the process.
unsafe impl Send for Slots {}
// SAFETY: as above; the table itself is never written.
unsafe impl Sync for Slots {}

fn slots() -> &'static Slots {
    static TABLE: OnceLock<Slots> = OnceLock::new();
    TABLE.get_or_init(|| {
        let address = |module: usize, slot: usize| match (1..SLOTS[module]).contains(&slot) {
            true => FUNCTIONS[module][slot].as_ptr().cast(),
            false => null_mut(),
        };
        Slots(std::array::from_fn(|module| std::array::from_fn(|slot| address(module, slot))))
    })
}

unsafe extern "C" fn get_module(module: c_int, table: *mut *mut *mut c_void, size: *mut c_uint) -> c_int {
    let module = usize::try_from(module).unwrap_or(0).wrapping_sub(1);
    let Some(slots) = slots().0.get(module) else { return 0 };
    if !table.is_null() {
        // SAFETY: the caller passes a valid pointer for the table's address. It writes through the table's
        // entries only, and each entry is the address of an atomic.
        unsafe { *table = slots.as_ptr().cast_mut() };
    }
    if !size.is_null() {
        // SAFETY: the caller passes a valid pointer for the size.
        unsafe { *size = SLOTS[module] as c_uint };
    }
    1
}

unsafe extern "C" fn get_export_table(table: u32) -> *const c_void {
    static CALLBACK_TABLE: ExportTable = ExportTable { bytes: size_of::<ExportTable>(), module: get_module };
    static VERSION_TABLE: VersionInfo = VersionInfo {
        bytes: size_of::<VersionInfo>(),
        version: VERSION,
        reserved: 0,
        set_version_of_profiler: ignore_version,
    };
    match table {
        CALLBACKS => (&raw const CALLBACK_TABLE).cast(),
        VERSION_INFO => (&raw const VERSION_TABLE).cast(),
        _ => null_mut(),
    }
}

/// The functions that begin and end a range.
struct Ranges {
    push: Push,
    pop: Pop,
}

/// Connects to the profiler's library. An error says why there are no ranges.
fn connect(path: Option<OsString>) -> Result<Ranges, String> {
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Err(format!("no profiler is attached ({LIBRARY} is unset); start the command under nsys profile"));
    };
    let shown = path.display().to_string();
    // SAFETY: the path comes from the profiler, and names a library that is made to be loaded into this
    // process.
    let library = unsafe { Library::new(&path) }.map_err(|e| format!("cannot load {shown}: {e}"))?;
    // SAFETY: NVTX defines the name and the type.
    let initialize = unsafe { library.get::<Initialize>(b"InitializeInjectionNvtx2\0") };
    let initialize = initialize.map_err(|e| format!("{shown} is not a library of a profiler: {e}"))?;
    // SAFETY: the function receives `get_export_table`, whose tables live as long as the process.
    let accepted = unsafe { initialize(get_export_table) };
    if accepted == 0 {
        return Err(format!("{shown} refused to record"));
    }
    std::mem::forget(library);
    let [push, pop] = [PUSH, POP].map(|slot| FUNCTIONS[0][slot].load(Ordering::Acquire));
    if push.is_null() || pop.is_null() {
        return Err(format!("{shown} records no ranges"));
    }
    // SAFETY: the library filled the slots with functions of these types, and stays loaded.
    unsafe {
        Ok(Ranges {
            push: std::mem::transmute::<*mut c_void, Push>(push),
            pop: std::mem::transmute::<*mut c_void, Pop>(pop),
        })
    }
}

/// The profiler's functions, if ranges are requested and recorded. The first call reads the environment
/// variables.
fn ranges() -> Option<&'static Ranges> {
    static RANGES: OnceLock<Option<Ranges>> = OnceLock::new();
    let first = || {
        if std::env::var_os(VARIABLE).is_none_or(|value| value != "1") {
            return None;
        }
        connect(std::env::var_os(LIBRARY)).map_err(|why| complain(&format!("warning: {VARIABLE}=1: {why}"))).ok()
    };
    RANGES.get_or_init(first).as_ref()
}

/// A range of this thread. It ends when it is dropped.
#[must_use = "a range ends when it is dropped"]
pub struct Range {
    ranges: Option<&'static Ranges>,
    /// A range ends on the thread on which it began.
    _thread: PhantomData<*const ()>,
}

impl Range {
    fn begin(name: impl FnOnce() -> Option<CString>) -> Self {
        let ranges = ranges().and_then(|ranges| {
            let name = name()?;
            // SAFETY: the name ends with a null byte, and the function copies it.
            unsafe { (ranges.push)(name.as_ptr()) };
            Some(ranges)
        });
        Self { ranges, _thread: PhantomData }
    }

    /// Begins a range with a fixed name, such as that of an op.
    pub fn named(name: &'static CStr) -> Self {
        Self::begin(|| Some(name.to_owned()))
    }

    /// Begins a range whose name ends with a number, such as `step 12`.
    pub fn numbered(name: &str, number: u64) -> Self {
        Self::begin(|| CString::new(format!("{name} {number}")).ok())
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(ranges) = self.ranges {
            // SAFETY: the range was pushed on this thread.
            unsafe { (ranges.pop)() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_profiler_the_reason_is_named() {
        let why = |path: Option<&str>| connect(path.map(OsString::from)).err().unwrap_or_default();
        assert!(why(None).contains("NVTX_INJECTION64_PATH is unset"));
        assert!(why(Some("")).contains("NVTX_INJECTION64_PATH is unset"));
        assert!(why(Some("/nowhere/x.so")).contains("cannot load /nowhere/x.so"));
    }

    #[test]
    fn the_table_has_the_slots_of_nvtx() {
        for (module, slots) in (1..).zip(SLOTS) {
            let (mut table, mut size) = (null_mut(), 0);
            // SAFETY: both pointers are valid for writes.
            assert_eq!(unsafe { get_module(module, &mut table, &mut size) }, 1);
            // SAFETY: a table has `MOST_SLOTS + 1` entries, at least `slots + 1`.
            let entries = unsafe { std::slice::from_raw_parts(table, slots + 1) };
            assert!(size as usize == slots && entries[1..slots].iter().all(|entry| !entry.is_null()));
            assert!(entries[0].is_null() && entries[slots].is_null());
        }
        for module in [-1, 0, 7, c_int::MAX] {
            // SAFETY: for an unknown module, nothing is written.
            assert_eq!(unsafe { get_module(module, null_mut(), null_mut()) }, 0);
        }
        // SAFETY: the function receives no pointer.
        assert!(unsafe { get_export_table(2) }.is_null());
    }
}
