//! Values that must be the same on all ranks of a command, for [`agreement`](crate::ranks::agreement).

use std::path::Path;

use super::fingerprint::weights_hash;
use crate::backend::Backend;
use crate::ranks::world;
use crate::{COMMIT, Result};

/// Returns the version of the program, the environment variables that change the numerics, and the device with
/// its numerics.
pub(super) fn facts<B: Backend>(backend: &B) -> Vec<(String, String)> {
    let version = ("version".into(), format!("{} (commit {COMMIT})", env!("CARGO_PKG_VERSION")));
    let device = ("device".into(), format!("{} in {}, numerics {}", B::NAME, B::PRECISION.name(), backend.numerics()));
    // The variables come before the device, so that an error names them first. The numerics value of the device
    // does not tell the cause of a difference.
    let variables = ["MAPL_CPU_UNITS", "MAPL_SM90"].map(|name| {
        let value = std::env::var_os(name).map_or_else(|| "unset".to_owned(), |v| v.to_string_lossy().into_owned());
        (name.to_owned(), value)
    });
    [version].into_iter().chain(variables).chain([device]).collect()
}

/// Returns the hash of a model folder's weights, or an empty text in a single-process run, which compares nothing.
pub(super) fn weights_on_ranks(folder: &Path, base: Option<&Path>) -> Result<String> {
    if world::is_shared() { weights_hash(folder, base) } else { Ok(String::new()) }
}
