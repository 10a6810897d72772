//! Compiled code of custom kernels: libraries for the emulator, and images for GPUs. Both stay loaded until
//! the process ends, because launches, captured graphs and the emulator's records of barriers point into
//! them.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::Mutex;

use libloading::Library;

use super::super::emulator::interface;
use super::super::launchers::FATBINS;

/// Entry point of a kernel for the emulator.
pub type Entry = unsafe extern "C" fn(*mut *mut c_void);

/// Loads a library whose source [`super::super::generate::own_library`] generated, and connects it to the
/// emulator. Returns its entry points by kernel name, or an empty map if it was compiled for a different
/// emulator.
pub fn load<'a>(
    path: &Path,
    kernels: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, Entry>, libloading::Error> {
    // SAFETY: loading runs the initialisers of the library. It was compiled from a kernel file, whose
    // initialisers affect only its data. The library is never unloaded.
    let library = unsafe { Library::new(path) }?;
    let (table, bytes) = interface();
    // SAFETY: `own.h` defines the function with this type.
    let connect = unsafe { library.get::<unsafe extern "C" fn(*const c_void, usize) -> c_int>(b"emulator_connect\0") }?;
    // SAFETY: the table has `bytes` bytes and lives as long as the process.
    let refused = unsafe { connect(table, bytes) } != 0;
    let mut entries = HashMap::new();
    if !refused {
        for name in kernels {
            // SAFETY: the library defines an entry point of this type for every kernel.
            let entry = unsafe { library.get::<Entry>(format!("emulated_{name}\0").as_bytes()) }?;
            entries.insert(name.to_owned(), *entry);
        }
    }
    std::mem::forget(library);
    Ok(entries)
}

/// File number of the first custom image; smaller numbers are files of shipped kernels.
pub const FIRST_IMAGE: usize = FATBINS.len();

static IMAGES: Mutex<Vec<&'static [u8]>> = Mutex::new(Vec::new());

/// Keeps an image until the process ends. Returns its index among the custom images.
pub fn add_image(image: Vec<u8>) -> usize {
    let mut images = IMAGES.lock().unwrap_or_else(|e| e.into_inner());
    images.push(image.leak());
    images.len() - 1
}

/// Returns the image of a kernel file, shipped or custom.
pub fn image(file: usize) -> &'static [u8] {
    match file.checked_sub(FIRST_IMAGE) {
        None => FATBINS[file],
        Some(own) => IMAGES.lock().unwrap_or_else(|e| e.into_inner())[own],
    }
}
