//! FLOP/s of data sheets, which utilisation (MFU) is counted in. A card that is not listed, or whose name leaves it open which
//! of several it is, has none: no number is better than a wrong one.

/// Dense bf16 FLOP/s on tensor cores, without sparsity, of the card of this name (NVIDIA's data sheets of the H200, H100, GH200,
/// A100, L40S and L4).
pub fn bf16(name: &str) -> Option<f64> {
    let name = name.trim_start_matches("NVIDIA ");
    // The longest name that begins the card's decides: an H100 PCIe is no H100 SXM.
    let cards = [
        ("H200 NVL", 835.5),
        ("H200", 989.5),
        ("H100 NVL", 835.5),
        ("H100 PCIe", 756.0),
        ("H100 80GB HBM3", 989.5),
        ("H100 SXM", 989.5),
        ("GH200", 989.5),
        ("A100", 312.0),
        ("L40S", 362.0),
        ("L4", 121.0),
    ];
    let fits = |card: &str| name.strip_prefix(card).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '-']));
    cards.iter().find(|(card, _)| fits(card)).map(|(_, tera)| tera * 1e12)
}

#[cfg(test)]
mod tests {
    use super::bf16;

    #[test]
    fn only_what_is_certain_is_known() {
        assert_eq!(bf16("NVIDIA H200"), Some(989.5e12));
        assert_eq!(bf16("NVIDIA H100 80GB HBM3"), Some(989.5e12));
        assert_eq!(bf16("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(bf16("NVIDIA A100-SXM4-80GB"), Some(312e12));
        assert_eq!(bf16("NVIDIA L40S"), Some(362e12));
        for unknown in ["NVIDIA H100", "NVIDIA L40", "NVIDIA GeForce RTX 4090", "NVIDIA H2000", "some processor", ""] {
            assert_eq!(bf16(unknown), None, "{unknown}");
        }
    }
}
