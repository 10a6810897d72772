//! What must be the same on all ranks of a command, for [`agreement`](crate::ranks::agreement).

use std::path::Path;

use super::fingerprint::weights_hash;
use crate::backend::Backend;
use crate::ranks::world;
use crate::{COMMIT, Result};

/// Version of the program, and device with the version of its bits.
pub(super) fn facts<B: Backend>(backend: &B) -> Vec<(String, String)> {
    let version = ("version".into(), format!("{} (commit {COMMIT})", env!("CARGO_PKG_VERSION")));
    let device = ("device".into(), format!("{} in {}, numerics {}", B::NAME, B::PRECISION.name(), backend.numerics()));
    // Variables that change the bits of a device come before the number that says no more than that they differ.
    let variables = ["MAPL_CPU_UNITS", "MAPL_SM90"].map(|name| {
        let value = std::env::var_os(name).map_or_else(|| "unset".to_owned(), |v| v.to_string_lossy().into_owned());
        (name.to_owned(), value)
    });
    [version].into_iter().chain(variables).chain([device]).collect()
}

/// Hash of a model folder's weights; one rank compares with none, so it reads nothing.
pub(super) fn weights_on_ranks(folder: &Path, base: Option<&Path>) -> Result<String> {
    if world::is_shared() { weights_hash(folder, base) } else { Ok(String::new()) }
}
