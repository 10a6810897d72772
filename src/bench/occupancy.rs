//! Blocks of a kernel that fit on a multiprocessor at once, from the limits of the CUDA programming
//! guide ("Technical Specifications per Compute Capability").

/// Resources of a block.
#[derive(Clone, Copy, Debug)]
pub struct BlockNeeds {
    pub threads: u32,
    /// Registers per thread, if known.
    pub registers: Option<u32>,
    /// Static and dynamic shared memory in bytes.
    pub shared: usize,
}

/// Resources of a multiprocessor.
#[derive(Clone, Copy, Debug)]
pub struct Multiprocessor {
    pub threads: u32,
    pub blocks: u32,
    pub registers: u32,
    /// Shared memory in bytes, including the bytes that the system reserves for every block.
    pub shared: usize,
}

/// Bytes of shared memory that the system reserves for every block.
const RESERVED: usize = 1 << 10;
/// Registers are allocated to warps in units of this number.
const REGISTER_UNIT: u32 = 256;
/// Threads per warp.
const WARP: u32 = 32;

impl Multiprocessor {
    /// Limits by compute capability; the limits of sm_80 for versions that are not listed.
    pub fn of(compute_capability: (u32, u32)) -> Self {
        let (threads, blocks, shared) = match compute_capability {
            (8, 6 | 7) => (1536, 16, 100 << 10),
            (8, 9) => (1536, 24, 100 << 10),
            (9 | 10, _) => (2048, 32, 228 << 10),
            (12, _) => (1536, 24, 100 << 10),
            _ => (2048, 32, 164 << 10),
        };
        Self { threads, blocks, registers: 64 << 10, shared }
    }

    /// Number of blocks that fit, and the resource that limits it.
    pub fn blocks(&self, needs: BlockNeeds) -> (u32, &'static str) {
        let warps = needs.threads.div_ceil(WARP);
        let mut limits = vec![
            (self.blocks, "blocks"),
            (self.threads / WARP / warps, "threads"),
            ((self.shared / (needs.shared + RESERVED)) as u32, "shared memory"),
        ];
        if let Some(registers) = needs.registers.filter(|&registers| registers > 0) {
            let per_warp = (registers * WARP).next_multiple_of(REGISTER_UNIT);
            limits.push((self.registers / per_warp / warps, "registers"));
        }
        limits.into_iter().min_by_key(|(blocks, _)| *blocks).unwrap_or((0, "blocks"))
    }

    /// Share of the multiprocessor's warps that these blocks of `threads` threads fill.
    pub fn occupancy(&self, blocks: u32, threads: u32) -> f64 {
        f64::from(blocks * threads.div_ceil(WARP)) / f64::from(self.threads / WARP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_limits_the_blocks() {
        let hopper = Multiprocessor::of((9, 0));
        let needs = |threads, registers, shared| BlockNeeds { threads, registers, shared };
        // 128 threads are 4 of 64 warps.
        assert_eq!(hopper.blocks(needs(128, Some(32), 0)), (16, "threads"));
        // 33 registers per thread are 1280 registers per warp after rounding: 65536 / 1280 / 4 warps.
        assert_eq!(hopper.blocks(needs(128, Some(33), 0)), (12, "registers"));
        assert_eq!(hopper.blocks(needs(384, Some(168), 200 << 10)), (1, "shared memory"));
        assert_eq!(hopper.blocks(needs(32, None, 0)), (32, "blocks"));
        assert_eq!(hopper.occupancy(12, 128), 0.75);
        // 164 KiB hold two blocks of 80 KiB, each with its reserved KiB.
        assert_eq!(Multiprocessor::of((8, 0)).blocks(needs(128, Some(64), 80 << 10)), (2, "shared memory"));
    }
}
