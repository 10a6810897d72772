//! Checks of the selections of `mapl bench`. A name that selects nothing is an error. Otherwise a comparison
//! of no rows would look like a comparison without differences.

use std::collections::BTreeSet;

use super::super::device::Device;
use super::BenchArgs;
use crate::backend::OPS;
use crate::backend::contract::Precision;
use crate::backend::kernels::driver::Driver;
use crate::bench::run::BenchOptions;
use crate::{Error, Result};

impl BenchArgs {
    /// Returns an error for names that select nothing, and for selections without a call.
    pub(super) fn check_selection(&self) -> Result<()> {
        let ops = |text: &str| OPS.iter().any(|op| op.starts_with(text));
        refuse_unknown("--op", &self.op, ops, || format!("no op starts with it; ops: {}", OPS.join(", ")))?;
        let variants = |text: &str| VARIANTS.iter().any(|name| starts_alike(name, text));
        refuse_unknown("--variant", &self.variant, variants, || format!("variants: {}", VARIANTS.join(", ")))?;
        let mut all = Vec::new();
        for &device in &self.device {
            let (cuda, emulated) = match device {
                Device::Reference => continue,
                Device::Auto => (Driver::new(0).is_ok(), false),
                Device::Cuda(_) => (true, false),
                Device::Cpu | Device::Emulator => (false, device == Device::Emulator),
            };
            let options = self.options(cuda, emulated);
            let both = |options: &BenchOptions| [Precision::Bf16, Precision::F32].map(|p| options.cases(p)).concat();
            let unfiltered = BenchOptions { ops: Vec::new(), shapes: Vec::new(), ..options.clone() };
            all.push((device, both(&options).is_empty(), both(&unfiltered)));
        }
        let cases = || all.iter().flat_map(|(.., cases)| cases);
        let shapes = |text: &str| cases().any(|case| case.answers(text));
        refuse_unknown("--shape", &self.shape, shapes, || {
            let layers: BTreeSet<&str> = cases().map(|case| case.layer).collect();
            let layers = layers.into_iter().collect::<Vec<_>>().join(", ");
            format!("no call has this layer or size; layers: {layers}; `mapl bench --list` prints the sizes")
        })?;
        match all.iter().find(|(_, empty, _)| *empty) {
            Some((device, ..)) => Err(no_call(&device.to_string())),
            None => Ok(()),
        }
    }
}

/// Names of the implementations that a device may have.
const VARIANTS: [&str; 2] = ["mapl", "cuBLASLt"];

/// Whether one text starts with the other, in any case, because a record's variant may have a version after
/// its name.
fn starts_alike(name: &str, text: &str) -> bool {
    let (name, text) = (name.to_lowercase(), text.to_lowercase());
    !text.is_empty() && (name.starts_with(&text) || text.starts_with(&name))
}

/// Returns an error for the first text that selects nothing.
fn refuse_unknown(flag: &str, texts: &[String], known: impl Fn(&str) -> bool, what: impl Fn() -> String) -> Result<()> {
    match texts.iter().find(|text| text.is_empty() || !known(text)) {
        Some(text) => Err(Error::Usage(format!("{flag} {text:?} is unknown: {}", what()))),
        None => Ok(()),
    }
}

pub(super) fn no_call(device: &str) -> Error {
    Error::Usage(format!(
        "--op, --model, --tokens and --shape together select no call on device {device}; `mapl bench --list` with fewer \
         of them shows the calls"
    ))
}
