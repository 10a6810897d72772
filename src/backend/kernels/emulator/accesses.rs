//! Counts the memory accesses of launches on the emulator, on request: bank conflicts of shared memory and
//! sectors of global memory. `kernels/emulator/accesses.cpp` contains the rules of the hardware, and
//! kernels/README.md lists the accesses that are counted.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::AddAssign;

use super::super::device::Kernel;

/// Bytes of a sector.
pub const SECTOR_BYTES: u64 = 32;

/// Has the fields of `AccessCounts` in `kernels/emulator/accesses.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of warp accesses, or of rows of TMA boxes.
    pub accesses: u64,
    /// Shared memory: passes through the banks. Global memory: sectors of 32 bytes.
    pub units: u64,
    /// Fewest possible `units` for the same bytes.
    pub fewest: u64,
    /// Accesses with more than the fewest possible units.
    pub wide: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.accesses += other.accesses;
        self.units += other.units;
        self.fewest += other.fewest;
        self.wide += other.wide;
    }
}

/// A source position in a kernel that accesses memory, and the counts of its accesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File and line; `TMA` and 0 for TMA boxes.
    pub file: String,
    pub line: c_int,
    pub shared: bool,
    pub store: bool,
    /// Bytes per lane; 0 for TMA boxes.
    pub bytes: c_int,
    pub counts: Counts,
}

/// Accesses of a launch.
#[derive(Clone, Debug)]
pub struct LaunchAccesses {
    pub kernel: &'static str,
    pub places: Vec<Place>,
}

impl LaunchAccesses {
    /// Sum over the places that access shared memory if `shared`, else over those that access global memory.
    pub fn total(&self, shared: bool) -> Counts {
        let mut sum = Counts::default();
        self.places.iter().filter(|place| place.shared == shared).for_each(|place| sum += place.counts);
        sum
    }
}

thread_local! {
    /// Launches counted so far on this thread; `None` outside [`count_accesses`].
    static COUNTED: RefCell<Option<Vec<LaunchAccesses>>> = const { RefCell::new(None) };
}

/// Counts the accesses of the launches that `work` makes on this thread. Counted launches run several times
/// slower. If `work` calls this function again, only the inner call counts the launches made in it.
pub fn count_accesses<R>(work: impl FnOnce() -> R) -> (R, Vec<LaunchAccesses>) {
    struct Restore(Option<Vec<LaunchAccesses>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            COUNTED.set(self.0.take());
        }
    }
    let _restore = Restore(COUNTED.replace(Some(Vec::new())));
    let result = work();
    (result, COUNTED.take().unwrap_or_default())
}

/// Whether the launches of this thread are counted.
pub(super) fn wanted() -> bool {
    COUNTED.with_borrow(Option::is_some)
}

pub(super) type Note = unsafe extern "C" fn(*mut c_void, *const c_char, c_int, c_int, c_int, c_int, *const Counts);

/// Collects the counts of the launch that has just ended.
pub(super) fn collect(kernel: &'static Kernel) {
    unsafe extern "C" fn note(
        context: *mut c_void,
        file: *const c_char,
        line: c_int,
        shared: c_int,
        store: c_int,
        bytes: c_int,
        counts: *const Counts,
    ) {
        // SAFETY: the context is the list below, the file a string literal of a kernel library,
        // which stays loaded, and the counts live during the call.
        let (places, file, counts) = unsafe { (&mut *context.cast::<Vec<Place>>(), CStr::from_ptr(file), *counts) };
        let file = file.to_string_lossy();
        let file = file.rsplit('/').next().unwrap_or(&file).to_owned();
        let new = Place { file, line, shared: shared != 0, store: store != 0, bytes, counts };
        // A header that is compiled into two libraries has one name at two addresses, so places are compared
        // by value.
        let same = |old: &&mut Place| {
            (&old.file, old.line, old.shared, old.store, old.bytes)
                == (&new.file, new.line, new.shared, new.store, new.bytes)
        };
        match places.iter_mut().find(same) {
            Some(old) => old.counts += new.counts,
            None => places.push(new),
        }
    }
    COUNTED.with_borrow_mut(|counted| {
        let Some(counted) = counted else { return };
        let mut places = Vec::<Place>::new();
        // SAFETY: the list outlives the call, which uses it on this thread only.
        unsafe { super::emulator_accesses(note, (&raw mut places).cast()) };
        places.sort_by(|a, b| (&a.file, a.line, a.store, a.bytes).cmp(&(&b.file, b.line, b.store, b.bytes)));
        counted.push(LaunchAccesses { kernel: kernel.name, places });
    });
}
