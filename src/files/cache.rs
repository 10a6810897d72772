//! Cache folder for data that the program can compute again: MAPL_CACHE_DIR, or `mapl` below XDG_CACHE_HOME
//! or ~/.cache.

use std::ffi::OsString;
use std::path::PathBuf;

/// Returns the folder that the environment variables name, or `None` if HOME is not set either. Empty
/// variables count as unset.
pub fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = path("MAPL_CACHE_DIR") {
        return Some(dir);
    }
    // The XDG specification requires relative paths to be ignored.
    let shared = path("XDG_CACHE_HOME").filter(|dir| dir.is_absolute());
    Some(shared.or_else(|| path("HOME").map(|home| home.join(".cache")))?.join("mapl"))
}
