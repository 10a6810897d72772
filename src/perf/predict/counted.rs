//! Computes a lower bound on the time of a kernel from counts: bytes through memory, FLOPs, and passes of its
//! accesses through shared memory and the L1 cache.
//!
//! ```text
//! time = launches + max(bytes / copy rate, FLOPs / rate of the unit, cycles / clock)
//! cycles = (passes through the banks + sectors / 4) / multiprocessors with a block
//! ```
//!
//! Shared memory and L1 are one memory: a multiprocessor moves 128 bytes of it in a cycle, which is a pass of 32
//! banks or four sectors (CUDA C++ Programming Guide, compute capability 9.0). The bound does not include
//! latency, instruction issue and L2, so a kernel may need several times this time.

use super::LAUNCH_SECONDS;
use super::attention::CLOCK;

/// Multiply-adds that the CUDA cores of a multiprocessor finish in a cycle.
const LANES: f64 = 128.0;
/// Sectors of 32 bytes in 128 bytes.
const SECTORS: f64 = 4.0;

/// Counts of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CountedCall {
    pub launches: f64,
    /// Blocks of the launch that computes the products.
    pub blocks: f64,
    /// Bytes of operands and results, each once, and of stored intermediates, written and read.
    pub bytes: f64,
    pub flops: f64,
    /// Whether tensor cores compute the products.
    pub tensor_cores: bool,
    /// Passes through the banks of shared memory.
    pub passes: f64,
    /// Sectors of global memory that warps request.
    pub sectors: f64,
}

/// Rates of a GPU: bytes and tensor core FLOPs per second, multiprocessors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpuFloor {
    pub copy: f64,
    pub product: f64,
    pub processors: usize,
}

impl CountedCall {
    /// Lower bound in seconds, and the name of the resource that sets it.
    pub fn floor(&self, gpu: &GpuFloor) -> (f64, &'static str) {
        let used = self.blocks.clamp(1.0, gpu.processors as f64);
        let share = used / gpu.processors as f64;
        let products = if self.tensor_cores { gpu.product * share } else { 2.0 * LANES * CLOCK * used };
        let parts = [
            (self.bytes / gpu.copy, "memory"),
            (self.flops / products, if self.tensor_cores { "tensor cores" } else { "CUDA cores" }),
            ((self.passes + self.sectors / SECTORS) / used / CLOCK, "shared memory and L1"),
        ];
        let most = parts.into_iter().fold((0.0, "launches"), |most, part| if part.0 > most.0 { part } else { most });
        (self.launches * LAUNCH_SECONDS + most.0, most.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: GpuFloor = GpuFloor { copy: 4e12, product: 800e12, processors: 100 };

    #[test]
    fn the_slowest_part_sets_the_floor() {
        let call = CountedCall {
            launches: 1.0,
            blocks: 200.0,
            bytes: 4e9,
            flops: 8e10,
            tensor_cores: true,
            ..CountedCall::default()
        };
        assert_eq!(call.floor(&GPU), (LAUNCH_SECONDS + 1e-3, "memory"));
        // 8e10 FLOPs on 100 x 128 lanes of two FLOPs: 1.78 ms at 1.755 GHz.
        let (seconds, limit) = CountedCall { tensor_cores: false, ..call }.floor(&GPU);
        assert!((seconds - LAUNCH_SECONDS - 8e10 / (25_600.0 * 1.755e9)).abs() < 1e-12 && limit == "CUDA cores");
        // 1.755e9 passes and 4 x 1.755e9 sectors are 2 x 1.755e9 cycles, shared by 100 multiprocessors.
        let passes = CountedCall { passes: 1.755e9, sectors: 4.0 * 1.755e9, ..call };
        let (seconds, limit) = passes.floor(&GPU);
        assert!((seconds - LAUNCH_SECONDS - 0.02).abs() < 1e-12 && limit == "shared memory and L1");
        // Half the multiprocessors have a block.
        let (seconds, _) = CountedCall { blocks: 50.0, ..passes }.floor(&GPU);
        assert!((seconds - LAUNCH_SECONDS - 0.04).abs() < 1e-12);
    }
}
