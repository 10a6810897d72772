//! Peak FLOP/s by data sheet, the basis of model FLOPs utilisation (MFU). Unlisted and ambiguous
//! GPU names have no peak: no number is better than a wrong one.

/// Dense bf16 FLOP/s of a Hopper GPU with SXM module, by NVIDIA's data sheet.
/// `backend/kernels/geometry.rs` has the same rate per multiprocessor.
pub(crate) const HOPPER_SXM_BF16_FLOPS: f64 = 989.4e12;

/// Dense bf16 tensor core FLOP/s, without sparsity, of the GPU with this name. Source: NVIDIA's
/// data sheets of the H200, H100, GH200, A100, L40S and L4.
pub(crate) fn bf16_flops(name: &str) -> Option<f64> {
    let name = name.trim_start_matches("NVIDIA ");
    // The longest listed prefix of the name decides: an H100 PCIe is not an H100 SXM.
    let peaks = [
        ("H200 NVL", 835.5e12),
        ("H200", HOPPER_SXM_BF16_FLOPS),
        ("H100 NVL", 835.5e12),
        ("H100 PCIe", 756e12),
        ("H100 80GB HBM3", HOPPER_SXM_BF16_FLOPS),
        ("H100 SXM", HOPPER_SXM_BF16_FLOPS),
        ("GH200", HOPPER_SXM_BF16_FLOPS),
        ("A100", 312e12),
        ("L40S", 362e12),
        ("L4", 121e12),
    ];
    let fits =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '-']));
    peaks.iter().find(|(prefix, _)| fits(prefix)).map(|&(_, flops)| flops)
}

#[cfg(test)]
mod tests {
    use super::{HOPPER_SXM_BF16_FLOPS, bf16_flops};

    #[test]
    fn only_certain_peaks_are_listed() {
        assert_eq!(bf16_flops("NVIDIA H200"), Some(HOPPER_SXM_BF16_FLOPS));
        assert_eq!(bf16_flops("NVIDIA H100 80GB HBM3"), Some(HOPPER_SXM_BF16_FLOPS));
        assert_eq!(bf16_flops("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(bf16_flops("NVIDIA A100-SXM4-80GB"), Some(312e12));
        assert_eq!(bf16_flops("NVIDIA L40S"), Some(362e12));
        for unknown in ["NVIDIA H100", "NVIDIA L40", "NVIDIA GeForce RTX 4090", "NVIDIA H2000", "some processor", ""] {
            assert_eq!(bf16_flops(unknown), None, "{unknown}");
        }
    }
}
