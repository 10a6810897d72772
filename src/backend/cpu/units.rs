//! The units of the processor that bf16 products run on.

use std::fmt;
use std::sync::LazyLock;

use crate::{Error, Result};

/// Environment variable that masks units: `f32` leaves bf16 products to f32 arithmetic.
pub const VARIABLE: &str = "MAPL_CPU_UNITS";

/// Arithmetic of products of bf16 matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Conversion to f32 and the GEMMs of f32.
    F32,
    /// `vdpbf16ps` of AVX-512 BF16.
    Dot16,
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Units::F32 => "f32 arithmetic",
            Units::Dot16 => "avx512_bf16",
        })
    }
}

/// A unit of the processor for GEMMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Name as in `/proc/cpuinfo`.
    pub name: &'static str,
    /// Its use, or why it is not used.
    pub state: String,
}

impl Units {
    /// The fastest units of this processor.
    pub fn best() -> Self {
        if Units::Dot16.missing().is_empty() { Units::Dot16 } else { Units::F32 }
    }

    /// The fastest units, except those that [`VARIABLE`] masks. [`Error::Usage`] for an unknown value.
    pub fn chosen() -> Result<Self> {
        Self::named(&std::env::var_os(VARIABLE).unwrap_or_default().to_string_lossy())
    }

    fn named(value: &str) -> Result<Self> {
        match value {
            "" => Ok(Self::best()),
            "f32" => Ok(Units::F32),
            _ => Err(Error::Usage(format!(
                "{VARIABLE}={value}: unknown units; f32 computes bf16 products in f32, and without the variable the \
                 fastest units are used"
            ))),
        }
    }

    /// Names of the features that these units need and the processor lacks.
    pub(crate) fn missing(self) -> Vec<&'static str> {
        match self {
            Units::F32 => Vec::new(),
            Units::Dot16 => features().iter().filter(|(_, present)| !present).map(|(name, _)| *name).collect(),
        }
    }

    /// Why bf16 is not faster than f32 on these units; `None` if it is.
    pub fn slow(self) -> Option<String> {
        (self == Units::F32).then(|| match Units::Dot16.missing()[..] {
            [] => format!("{VARIABLE} masks avx512_bf16"),
            _ => "the processor lacks avx512_bf16, the unit that this program uses for bf16".into(),
        })
    }

    /// A number for the bits of products: 0 in f32, else a hash of sample results, because processors
    /// sum the pairs of a dot product in different ways.
    pub(super) fn numerics(self) -> u32 {
        static DOT16: LazyLock<u32> = LazyLock::new(dot16);
        if self == Units::F32 { 0 } else { *DOT16 }
    }

    /// The units of this processor for GEMMs, and what `self` uses them for.
    pub fn report(self) -> Vec<Unit> {
        let state = |present: bool, used: bool, use_: &str, unused: String| match (present, used) {
            (false, _) => "not present".to_owned(),
            (true, true) => use_.to_owned(),
            (true, false) => unused,
        };
        let wide = has_avx512();
        let dot = Units::Dot16.missing().is_empty();
        vec![
            Unit { name: "avx512", state: state(wide, true, "f32 products", String::new()) },
            Unit {
                name: "avx512_bf16",
                state: state(dot, self == Units::Dot16, "bf16 products", format!("not used: masked by {VARIABLE}")),
            },
            Unit {
                name: "amx_bf16",
                state: state(has_amx(), false, "", "not used: this program has no code for it yet".into()),
            },
        ]
    }
}

/// The features that dot products of bf16 need.
fn features() -> [(&'static str, bool); 4] {
    #[cfg(target_arch = "x86_64")]
    return [
        ("avx512", has_avx512()),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
        ("avx512_bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    ["avx512", "avx512bw", "avx512vl", "avx512_bf16"].map(|name| (name, false))
}

fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::simd::level() == super::simd::Level::Avx512;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the processor has AMX tiles with bf16 (leaf 7: bits 22 and 24 of EDX).
fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let bits = 1 << 22 | 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & bits == bits
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Hash (FNV-1a) of the sample results; never 0.
fn dot16() -> u32 {
    #[cfg(target_arch = "x86_64")]
    if Units::Dot16.missing().is_empty() {
        // SAFETY: the features have been detected.
        let samples = unsafe { super::avx512_bf16::samples() };
        let bytes = samples.iter().flat_map(|x| x.to_bits().to_le_bytes());
        let hash = bytes.fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        return hash | 1;
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_units_give_other_numerics_and_unknown_ones_are_refused() {
        assert_eq!(Units::named("f32").unwrap(), Units::F32);
        assert_eq!(Units::named("").unwrap(), Units::best());
        let message = Units::named("amx").unwrap_err().to_string();
        assert!(message.contains("MAPL_CPU_UNITS=amx") && message.contains("f32"), "{message}");
        assert_ne!(Units::F32.numerics(), Units::Dot16.numerics());
        assert!(Units::F32.slow().is_some() && Units::Dot16.slow().is_none());
    }
}
