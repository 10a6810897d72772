//! What must be the same on all ranks of a command, for [`agreement`](crate::ranks::agreement).

use std::path::Path;

use super::fingerprint::weights_hash;
use crate::backend::Backend;
use crate::ranks::world;
use crate::{COMMIT, Result};

/// Version of the program, and device with the version of its bits.
pub(super) fn facts<B: Backend>(backend: &B) -> Vec<(String, String)> {
    vec![
        ("version".into(), format!("{} (commit {COMMIT})", env!("CARGO_PKG_VERSION"))),
        ("device".into(), format!("{} in {}, numerics {}", B::NAME, B::PRECISION.name(), backend.numerics())),
    ]
}

/// Hash of a model folder's weights; one rank compares with none, so it reads nothing.
pub(super) fn weights_on_ranks(folder: &Path, base: Option<&Path>) -> Result<String> {
    if world::is_shared() { weights_hash(folder, base) } else { Ok(String::new()) }
}
