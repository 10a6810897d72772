//! Flags of precomputed reference log-probs and their cache folder. Flags that have no effect, runs without a
//! reference, an empty batch, and an environment without a cache folder are errors.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::error::refuse_given;
use crate::files::cache;
use crate::loss::objective::Method;
use crate::train::frozen::CacheOptions;
use crate::{Error, Result};

/// Computation of the reference's log-probs.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[command(next_help_heading = "Reference")]
pub struct ReferenceArgs {
    /// Compute the reference's log-probs before training, cache them on disk, and train without the
    /// reference model (DPO)
    #[arg(long)]
    pub precompute_ref_log_probs: bool,
    /// Groups per forward pass of this precomputation [default: --per-device-train-batch-size]
    #[arg(long)]
    pub precompute_ref_batch_size: Option<usize>,
    /// Cache folder of the log-probs, shared by runs [default: $MAPL_CACHE_DIR/reference, or
    /// mapl/reference below $XDG_CACHE_HOME or ~/.cache]
    #[arg(long)]
    pub ref_cache_dir: Option<PathBuf>,
}

impl ReferenceArgs {
    /// Returns the settings of the precomputation, or `None` without `--precompute-ref-log-probs`.
    /// `has_reference` is false for `--ref-model none`.
    pub fn resolve(
        &self,
        method: Method,
        has_reference: bool,
        batch_groups: usize,
        quiet: bool,
    ) -> Result<Option<CacheOptions>> {
        let refuse = |text: String| Err(Error::Usage(text));
        if !self.precompute_ref_log_probs {
            let given = [
                ("--precompute-ref-batch-size", self.precompute_ref_batch_size.is_some()),
                ("--ref-cache-dir", self.ref_cache_dir.is_some()),
            ];
            return refuse_given(&given, "without --precompute-ref-log-probs").map(|()| None);
        }
        if !method.has_policy() {
            return refuse(format!("--precompute-ref-log-probs has no effect in this {} run", method.name()));
        }
        if !has_reference {
            return refuse(
                "--precompute-ref-log-probs has no effect with --ref-model none, or with a loss that has no reference"
                    .into(),
            );
        }
        if self.precompute_ref_batch_size == Some(0) {
            return refuse("--precompute-ref-batch-size 0: at least 1 is needed".into());
        }
        let dir = match &self.ref_cache_dir {
            Some(dir) if dir.exists() && !dir.is_dir() => {
                return refuse(format!("--ref-cache-dir {} is a file; name a folder", dir.display()));
            }
            Some(dir) => dir.clone(),
            None => default_dir(|name| std::env::var_os(name))?,
        };
        Ok(Some(CacheOptions { dir, batch_groups: self.precompute_ref_batch_size.unwrap_or(batch_groups), quiet }))
    }
}

/// Returns the default cache folder, which depends on environment variables.
fn default_dir(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let folder = cache::folder(variable).ok_or_else(|| {
        Error::Usage(
            "--precompute-ref-log-probs finds no cache folder, because HOME is not set; name one with \
             --ref-cache-dir or MAPL_CACHE_DIR"
                .into(),
        )
    })?;
    Ok(folder.join("reference"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let dir = |set: &[(&str, &str)]| {
            default_dir(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
        };
        let own = ("MAPL_CACHE_DIR", "/own");
        let (xdg, home) = (("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/a"));
        assert_eq!(dir(&[own, xdg, home]).unwrap(), PathBuf::from("/own/reference"));
        assert_eq!(dir(&[xdg, home]).unwrap(), PathBuf::from("/xdg/mapl/reference"));
        let below_home = PathBuf::from("/home/a/.cache/mapl/reference");
        for unset in [&[home][..], &[("MAPL_CACHE_DIR", ""), ("XDG_CACHE_HOME", "relative"), home]] {
            assert_eq!(dir(unset).unwrap(), below_home);
        }
        assert!(dir(&[("HOME", "")]).unwrap_err().to_string().contains("--ref-cache-dir"));
    }
}
