//! Values that must be the same on all ranks of a command, for [`agreement`](crate::ranks::agreement).

use std::path::Path;

use super::fingerprint::weights_hash;
use crate::backend::Backend;
use crate::ranks::world;
use crate::{COMMIT, Result};

/// Returns the version of the program, the device with its numerics, and the variables that change the numerics.
pub(super) fn facts<B: Backend>(backend: &B) -> Vec<(String, String)> {
    let version = ("version".into(), format!("{} (commit {COMMIT})", env!("CARGO_PKG_VERSION")));
    let device = ("device".into(), format!("{} in {}, numerics {}", B::NAME, B::PRECISION.name(), backend.numerics()));
    // Variables that change the numerics come before the device, whose numerics value only shows that
    // something differs.
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
