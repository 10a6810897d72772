//! Figures of NVIDIA's data sheets and architecture white papers, for plans of a step on a GPU that need not
//! be present. Bandwidths and dense bf16 rates are the published ones, for GeForce GPUs those with f32
//! accumulation. GPUs with an uncertain figure are not listed.

use super::peak::HOPPER_SXM_BF16_FLOPS;

/// Share of the bandwidth that a copy reaches: 4.3 of 4.8 TB/s on the H200 (benches/README.md).
const COPY_SHARE: f64 = 0.9;
/// Share of the peak that a large bf16 GEMM reaches: 790 of 989 TFLOP/s on the H200.
const GEMM_SHARE: f64 = 0.8;

/// Figures of a GPU.
pub(crate) struct DataSheet {
    pub name: &'static str,
    /// Number of multiprocessors.
    pub processors: usize,
    /// Bytes per second of the memory.
    bandwidth: f64,
    /// Dense bf16 FLOP/s of the tensor cores.
    pub bf16_flops: f64,
    pub compute_capability: (u32, u32),
    /// Rates of a copy and of a GEMM that were measured on this GPU, if it was available.
    measured: Option<(f64, f64)>,
}

impl DataSheet {
    /// Bytes per second of a copy, counting reads and writes.
    pub fn copy(&self) -> f64 {
        self.measured.map_or(COPY_SHARE * self.bandwidth, |(copy, _)| copy)
    }

    /// FLOP/s of a large bf16 GEMM.
    pub fn product(&self) -> f64 {
        self.measured.map_or(GEMM_SHARE * self.bf16_flops, |(_, product)| product)
    }
}

const fn gpu(
    name: &'static str,
    processors: usize,
    bandwidth: f64,
    bf16_flops: f64,
    compute_capability: (u32, u32),
) -> DataSheet {
    DataSheet { name, processors, bandwidth, bf16_flops, compute_capability, measured: None }
}

/// Known GPUs. If a name does not say which variant of a GPU is meant, the first one listed is used.
pub(crate) const DATA_SHEETS: [DataSheet; 15] = [
    DataSheet { measured: Some((4.3e12, 790e12)), ..gpu("h200", 132, 4.8e12, HOPPER_SXM_BF16_FLOPS, (9, 0)) },
    gpu("h200-nvl", 132, 4.8e12, 835.5e12, (9, 0)),
    gpu("h100", 132, 3.35e12, HOPPER_SXM_BF16_FLOPS, (9, 0)),
    gpu("h100-pcie", 114, 2e12, 756e12, (9, 0)),
    gpu("h100-nvl", 132, 3.9e12, 835.5e12, (9, 0)),
    gpu("b200", 148, 8e12, 2250e12, (10, 0)),
    gpu("a100-80gb", 108, 2.039e12, 312e12, (8, 0)),
    gpu("a100-80gb-pcie", 108, 1.935e12, 312e12, (8, 0)),
    gpu("a100-40gb", 108, 1.555e12, 312e12, (8, 0)),
    gpu("l40s", 142, 864e9, 362.05e12, (8, 9)),
    gpu("l4", 58, 300e9, 121e12, (8, 9)),
    gpu("rtx-4090", 128, 1008e9, 165.2e12, (8, 9)),
    gpu("rtx-3090", 82, 936e9, 71e12, (8, 6)),
    gpu("rtx-6000-ada", 142, 960e9, 364.2e12, (8, 9)),
    gpu("rtx-a6000", 84, 768e9, 154.8e12, (8, 6)),
];

/// Words in GPU names that do not distinguish any two GPUs of the list.
const NO_NAMES: [&str; 11] =
    ["nvidia", "geforce", "rtx", "gpu", "sxm", "sxm4", "sxm5", "hbm3", "hbm3e", "tensor", "core"];

/// Finds a GPU by name, in any case, with or without words about the vendor, the variant or the memory.
pub(crate) fn data_sheet(name: &str) -> Option<&'static DataSheet> {
    let lower = name.to_lowercase();
    let mut given: Vec<&str> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    given.retain(|word| !NO_NAMES.contains(word));
    // The given name contains the word of the model, and no word that belongs to a different GPU. A memory size
    // distinguishes only GPUs that are listed with one.
    let fits = |gpu: &&DataSheet| {
        let known: Vec<&str> = gpu.name.split('-').collect();
        let is_size = |word: &str| word.ends_with("gb");
        let has_sizes = known.iter().any(|word| is_size(word));
        let model = known.iter().find(|word| word.chars().any(|c| c.is_ascii_digit()));
        model.is_some_and(|model| given.contains(model))
            && given.iter().all(|word| known.contains(word) || (is_size(word) && !has_sizes))
            && (!known.contains(&"ada") || given.contains(&"ada"))
    };
    DATA_SHEETS.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_found_by_the_names_in_use() {
        for (name, expected) in [
            ("h200", "h200"),
            ("NVIDIA H200", "h200"),
            ("H100", "h100"),
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("h100-sxm5", "h100"),
            ("NVIDIA H100 PCIe", "h100-pcie"),
            ("H100 NVL", "h100-nvl"),
            ("a100", "a100-80gb"),
            ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
            ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
            ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
            ("B200", "b200"),
            ("4090", "rtx-4090"),
            ("RTX 4090", "rtx-4090"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("rtx_3090", "rtx-3090"),
            ("RTX 6000 Ada", "rtx-6000-ada"),
            ("RTX A6000", "rtx-a6000"),
            ("L4", "l4"),
            ("L40S", "l40s"),
        ] {
            assert_eq!(data_sheet(name).map(|gpu| gpu.name), Some(expected), "{name}");
        }
        // A Quadro RTX 6000 is not the Ada one; an RTX 4090 D has fewer multiprocessors.
        for unknown in ["", "nvidia", "rtx", "h1000", "v100", "RTX 6000", "RTX 4090 D", "L40", "b2000", "a100-20gb-x"] {
            assert!(data_sheet(unknown).is_none(), "{unknown}");
        }
        assert!(DATA_SHEETS.iter().all(|gpu| data_sheet(gpu.name).is_some_and(|found| found.name == gpu.name)));
    }

    #[test]
    fn rates_are_below_the_data_sheet() {
        for gpu in &DATA_SHEETS {
            assert!(gpu.copy() < gpu.bandwidth && gpu.product() < gpu.bf16_flops, "{}", gpu.name);
        }
    }
}
