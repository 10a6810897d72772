//! The execution units of the processor on which bf16 products run.

use std::fmt;
use std::sync::LazyLock;

use super::amx;
use crate::{Error, Result};

/// Environment variable that limits the units of bf16 GEMMs. With `f32`, they use f32 arithmetic. With
/// `avx512_bf16`, AMX is not used. With `amx_model`, the code for AMX runs on a software model of its tiles.
pub const VARIABLE: &str = "MAPL_CPU_UNITS";

/// Units that compute GEMMs of bf16 matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Conversion to f32 and the GEMMs of f32.
    F32,
    /// `vdpbf16ps` of AVX-512 BF16.
    Dot16,
    /// `TDPBF16PS` of AMX.
    Amx,
    /// The code for AMX on a software model of its tiles: slow, for tests and development of that code.
    AmxModel,
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A unit of the processor for GEMMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Name of the unit.
    pub name: &'static str,
    /// Use of the unit, or the reason why it is not used.
    pub state: String,
}

impl Units {
    /// Name for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Units::F32 => "f32 arithmetic",
            Units::Dot16 => "avx512_bf16",
            Units::Amx => "amx_bf16",
            Units::AmxModel => "a software model of amx_bf16",
        }
    }

    /// Returns the fastest units of this processor. If the processor has AMX, the first call requests its
    /// tiles from the operating system.
    pub fn best() -> Self {
        [Units::Amx, Units::Dot16].into_iter().find(|units| units.is_usable()).unwrap_or(Units::F32)
    }

    /// Returns the fastest units, except those that [`VARIABLE`] masks. An unknown value and a unit that the
    /// processor lacks are an [`Error::Usage`].
    pub fn chosen() -> Result<Self> {
        Self::named(&std::env::var_os(VARIABLE).unwrap_or_default().to_string_lossy())
    }

    /// Same as [`Self::chosen`], but returns f32 arithmetic for a value that the command line rejects.
    pub(crate) fn chosen_or_f32() -> Self {
        Self::chosen().unwrap_or(Units::F32)
    }

    fn named(value: &str) -> Result<Self> {
        match value {
            "" => Ok(Self::best()),
            "f32" => Ok(Units::F32),
            "avx512_bf16" if Units::Dot16.is_usable() => Ok(Units::Dot16),
            "avx512_bf16" => Err(Error::Usage(format!(
                "{VARIABLE}={value}: the processor does not support avx512_bf16; unset the variable to use the \
                 fastest units"
            ))),
            "amx_model" => Ok(Units::AmxModel),
            _ => Err(Error::Usage(format!(
                "{VARIABLE}={value}: unknown value; allowed are f32 (bf16 products in f32), avx512_bf16 (no AMX) and \
                 amx_model (AMX code in software); unset the variable to use the fastest units"
            ))),
        }
    }

    /// Whether this machine can run GEMMs on these units.
    pub(crate) fn is_usable(self) -> bool {
        match self {
            Units::F32 | Units::AmxModel => true,
            Units::Dot16 => has_dot16(),
            Units::Amx => amx::lack().is_none(),
        }
    }

    /// Whether GEMMs read bf16 as stored, without a conversion to f32.
    pub(crate) fn multiply_bf16(self) -> bool {
        self != Units::F32
    }

    /// Reason why bf16 is not faster than f32 on these units; `None` if it is faster.
    pub fn slow(self) -> Option<String> {
        match self {
            Units::Amx | Units::Dot16 => None,
            Units::AmxModel => Some(format!("{VARIABLE} selects {self}")),
            Units::F32 if has_dot16() => Some(format!("{VARIABLE} masks avx512_bf16")),
            Units::F32 => Some("the processor lacks avx512_bf16 and amx_bf16, which mapl uses for bf16".into()),
        }
    }

    /// Identifies the bits of GEMM results: 0 for f32 arithmetic, else a hash of sample results, because
    /// processors sum the terms of a dot product in different ways.
    pub(super) fn numerics(self) -> u32 {
        static DOT16: LazyLock<u32> = LazyLock::new(|| hash(&dot16()));
        static AMX: LazyLock<u32> = LazyLock::new(|| hash(&amx::samples(true)));
        static AMX_MODEL: LazyLock<u32> = LazyLock::new(|| hash(&amx::samples(false)));
        match self {
            Units::F32 => 0,
            Units::Dot16 => *DOT16,
            Units::Amx => *AMX,
            Units::AmxModel => *AMX_MODEL,
        }
    }

    /// Reports the units of this processor for GEMMs, and their use if `self` is selected.
    pub fn report(self) -> Vec<Unit> {
        let masked = || format!("not used: masked by {VARIABLE}");
        let absent = || "not present".to_owned();
        let avx512 = if has_avx512() { "f32 products".into() } else { absent() };
        let dot16 = match self {
            Units::Dot16 => "bf16 products".into(),
            _ if !has_dot16() => absent(),
            Units::Amx => format!("not used: bf16 products run on {self}"),
            Units::F32 | Units::AmxModel => masked(),
        };
        let tiles = match (self, amx::known_lack()) {
            (Units::Amx, _) => "bf16 products".into(),
            (Units::AmxModel, _) => "bf16 products, on a software model of its tiles".into(),
            _ if !amx::is_present() => absent(),
            (_, Some(lack)) => lack.to_string(),
            // Tiles that were never requested are masked, because `best` would have requested them.
            (_, None) => masked(),
        };
        let units = [("avx512", avx512), ("avx512_bf16", dot16), ("amx_bf16", tiles)];
        units.map(|(name, state)| Unit { name, state }).into()
    }
}

/// Whether the processor has the features that dot products of bf16 need.
pub(super) fn has_dot16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static FOUND: LazyLock<bool> = LazyLock::new(|| {
            has_avx512()
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512vl")
                && std::arch::is_x86_feature_detected!("avx512bf16")
        });
        *FOUND
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::simd::level() == super::simd::Level::Avx512;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Sample results of AVX-512 BF16; empty if the processor lacks it.
fn dot16() -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if has_dot16() {
        // SAFETY: `has_dot16` has detected the CPU features.
        return unsafe { super::avx512_bf16::samples() }.into();
    }
    Vec::new()
}

/// Hash (FNV-1a) of sample results; never 0.
fn hash(samples: &[f32]) -> u32 {
    let bytes = samples.iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_units_give_other_numerics_and_unknown_ones_are_refused() {
        assert_eq!(Units::named("f32").unwrap(), Units::F32);
        assert_eq!(Units::named("").unwrap(), Units::best());
        assert_eq!(Units::named("amx_model").unwrap(), Units::AmxModel);
        assert_eq!(Units::named("avx512_bf16").is_ok(), Units::Dot16.is_usable());
        let message = Units::named("amx").unwrap_err().to_string();
        assert!(message.contains("MAPL_CPU_UNITS=amx") && message.contains("f32"), "{message}");
        let numerics = [Units::F32, Units::Dot16, Units::AmxModel].map(Units::numerics);
        assert!(numerics[0] != numerics[1] && numerics[1] != numerics[2] && numerics[0] != numerics[2], "{numerics:?}");
        assert!(Units::F32.slow().is_some() && Units::AmxModel.slow().is_some());
        assert!(Units::Dot16.slow().is_none() && Units::Amx.slow().is_none());
    }

    #[test]
    fn every_unit_has_a_use_or_a_reason() {
        let states = |units: Units| units.report().into_iter().map(|unit| unit.state).collect::<Vec<_>>();
        for units in [Units::F32, Units::Dot16, Units::AmxModel] {
            let states = states(units);
            let used = |state: &&String| state.contains("products") && !state.starts_with("not");
            assert_eq!(states.iter().skip(1).filter(used).count(), usize::from(units != Units::F32), "{states:?}");
        }
        let [f32, model] = [Units::F32, Units::AmxModel].map(states);
        assert_eq!(f32[1], model[1]);
        assert_eq!(f32[1].contains("masked by MAPL_CPU_UNITS"), has_dot16(), "{f32:?}");
        assert_eq!(f32[2] == "not present", !amx::is_present(), "{f32:?}");
    }
}
