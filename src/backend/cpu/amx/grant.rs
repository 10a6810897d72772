//! Checks whether this process may use AMX tiles for bf16, and returns a proof of it.
//!
//! ```text
//! processor: leaf 7 has AMX-TILE and AMX-BF16
//! system:    OSXSAVE is set, and XCR0 has the state components 17 and 18
//! palette:   leaves 1D and 1E allow the tiles that the GEMM configures
//! Linux:     arch_prctl grants the tile data to the process, once, for all its threads
//! ```
//!
//! Each step runs only if the previous one succeeded, and none of them executes a tile instruction. A missing
//! grant is not an error; `mapl env` shows the reason.

use std::fmt;

/// Proof that all steps succeeded. Only this file constructs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted(());

/// Reason why this process cannot use tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The processor has no tiles.
    Absent,
    /// The processor has tiles, but this process cannot use them.
    Refused(String),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Absent => f.write_str("not present"),
            Lack::Refused(why) => write!(f, "not used: {why}"),
        }
    }
}

/// Component of the saved processor state that holds tile data; component 17 holds the tile configuration.
const TILE_DATA: u32 = 18;

/// Queries to the processor and to the operating system.
trait Machine {
    /// EAX, EBX, ECX and EDX of a CPUID leaf; zeros if the leaf does not exist.
    fn leaf(&self, leaf: u32, sub: u32) -> [u32; 4];
    /// State components that the operating system saves (XCR0). Called only if leaf 1 allows XGETBV.
    fn saved_states(&self) -> u64;
    /// Requests permission for tile data in this process, and checks that it was granted.
    fn permit(&self) -> Result<(), String>;
}

fn grant(machine: &impl Machine) -> Result<Granted, Lack> {
    let refused = |why: String| Err(Lack::Refused(why));
    if !present(machine) {
        return Err(Lack::Absent);
    }
    const ASKED: u32 = 1 << 27;
    const STATES: u64 = 0b11 << 17;
    let [_, _, ecx, _] = machine.leaf(1, 0);
    if ecx & ASKED == 0 || machine.saved_states() & STATES != STATES {
        return refused("the operating system does not save the state of AMX tiles".into());
    }
    let [palettes, ..] = machine.leaf(0x1d, 0);
    let [bytes, row_and_names, rows, _] = machine.leaf(0x1d, 1);
    let [_, product, ..] = machine.leaf(0x1e, 0);
    let limits = [
        ("palettes", palettes, 1),
        ("bytes of a tile", bytes >> 16, 1024),
        ("bytes of a row", row_and_names & 0xffff, 64),
        ("tiles", row_and_names >> 16, 8),
        ("rows of a tile", rows & 0xffff, 16),
        ("rows of a product", product & 0xff, 16),
        ("bytes of a product's row", product >> 8 & 0xffff, 64),
    ];
    if let Some((name, has, needs)) = limits.into_iter().find(|(_, has, needs)| has < needs) {
        return refused(format!("{name}: the processor has {has}, and {needs} are needed"));
    }
    machine.permit().map_err(Lack::Refused)?;
    Ok(Granted(()))
}

/// Whether the processor has tiles and products of bf16 (leaf 7: bits 24 and 22 of EDX).
fn present(machine: &impl Machine) -> bool {
    const TILES: u32 = 1 << 24 | 1 << 22;
    machine.leaf(7, 0)[3] & TILES == TILES
}

/// Runs all steps on this machine, which includes a system call.
pub(super) fn granted() -> Result<Granted, Lack> {
    #[cfg(target_arch = "x86_64")]
    return grant(&This);
    #[cfg(not(target_arch = "x86_64"))]
    Err(Lack::Absent)
}

/// Whether the processor has tiles, even if this process may not use them. Makes no system call.
pub(super) fn is_present() -> bool {
    #[cfg(target_arch = "x86_64")]
    return present(&This);
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
struct This;

#[cfg(target_arch = "x86_64")]
impl Machine for This {
    fn leaf(&self, leaf: u32, sub: u32) -> [u32; 4] {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        if __cpuid(0).eax < leaf {
            return [0; 4];
        }
        let result = __cpuid_count(leaf, sub);
        [result.eax, result.ebx, result.ecx, result.edx]
    }

    fn saved_states(&self) -> u64 {
        #[target_feature(enable = "xsave")]
        fn states() -> u64 {
            // SAFETY: register 0 exists wherever XGETBV exists.
            unsafe { std::arch::x86_64::_xgetbv(0) }
        }
        // SAFETY: the caller has checked in leaf 1 that programs may execute XGETBV.
        unsafe { states() }
    }

    #[cfg(target_os = "linux")]
    fn permit(&self) -> Result<(), String> {
        // Constants from Linux's asm/prctl.h.
        const GET_PERMITTED: libc::c_long = 0x1022;
        const REQUEST: libc::c_long = 0x1023;
        let refused = |why: String| {
            Err(format!(
                "Linux does not grant the state of AMX tiles ({why}); it needs Linux 5.16 or newer and no system call \
                 filter that blocks the request"
            ))
        };
        // SAFETY: the call changes only the state that the kernel saves for this process, and no memory of
        // the process.
        if unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, libc::c_long::from(TILE_DATA)) } != 0 {
            return refused(std::io::Error::last_os_error().to_string());
        }
        let mut states = 0u64;
        // SAFETY: the call writes one 64-bit number to `states`.
        if unsafe { libc::syscall(libc::SYS_arch_prctl, GET_PERMITTED, &raw mut states) } != 0 {
            return refused(std::io::Error::last_os_error().to_string());
        }
        if states >> TILE_DATA & 1 == 0 {
            refused(format!("the granted state components are {states:#x}"))
        } else {
            Ok(())
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn permit(&self) -> Result<(), String> {
        Err("mapl supports AMX tiles only on Linux".into())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A fake machine that records the queries.
    struct Fake {
        leaves: Vec<(u32, u32, [u32; 4])>,
        states: u64,
        permit: Result<(), String>,
        asked: RefCell<Vec<&'static str>>,
    }

    impl Machine for Fake {
        fn leaf(&self, leaf: u32, sub: u32) -> [u32; 4] {
            let found = self.leaves.iter().find(|(l, s, _)| (*l, *s) == (leaf, sub));
            found.map_or([0; 4], |(.., result)| *result)
        }
        fn saved_states(&self) -> u64 {
            self.asked.borrow_mut().push("states");
            self.states
        }
        fn permit(&self) -> Result<(), String> {
            self.asked.borrow_mut().push("permit");
            self.permit.clone()
        }
    }

    /// A machine that passes all steps, like Sapphire Rapids under Linux.
    fn whole() -> Fake {
        let leaves = vec![
            (1, 0, [0, 0, 1 << 27, 0]),
            (7, 0, [0, 0, 0, 1 << 22 | 1 << 24 | 1 << 25]),
            (0x1d, 0, [1, 0, 0, 0]),
            (0x1d, 1, [1024 << 16 | 8192, 8 << 16 | 64, 16, 0]),
            (0x1e, 0, [0, 64 << 8 | 16, 0, 0]),
        ];
        Fake { leaves, states: 0x600e7, permit: Ok(()), asked: RefCell::default() }
    }

    #[test]
    fn tiles_are_granted_only_after_every_step_in_order() {
        let machine = whole();
        assert!(grant(&machine).is_ok());
        assert_eq!(*machine.asked.borrow(), ["states", "permit"]);
        for bit in [22, 24] {
            let mut machine = whole();
            machine.leaves[1].2[3] &= !(1 << bit);
            assert_eq!(grant(&machine).unwrap_err(), Lack::Absent);
            assert!(machine.asked.borrow().is_empty(), "bit {bit}");
        }
        let mut machine = whole();
        machine.leaves[0].2[2] = 0;
        assert!(grant(&machine).unwrap_err().to_string().contains("does not save"));
        assert!(machine.asked.borrow().is_empty(), "XGETBV is an undefined instruction here");
        for states in [0x200e7, 0x400e7, 0xe7, 0] {
            let machine = Fake { states, ..whole() };
            assert!(grant(&machine).unwrap_err().to_string().contains("does not save"), "{states:#x}");
            assert_eq!(*machine.asked.borrow(), ["states"]);
        }
    }

    #[test]
    fn smaller_palettes_are_refused_by_name_before_the_system_is_asked() {
        let smaller: [(usize, [u32; 4], &str); 8] = [
            (2, [0; 4], "palettes: the processor has 0"),
            (3, [512 << 16 | 8192, 8 << 16 | 64, 16, 0], "bytes of a tile: the processor has 512"),
            (3, [1024 << 16 | 8192, 8 << 16 | 32, 16, 0], "bytes of a row: the processor has 32"),
            (3, [1024 << 16 | 8192, 4 << 16 | 64, 16, 0], "tiles: the processor has 4"),
            (3, [1024 << 16 | 8192, 8 << 16 | 64, 8, 0], "rows of a tile: the processor has 8"),
            (4, [0, 64 << 8 | 8, 0, 0], "rows of a product: the processor has 8"),
            (4, [0, 32 << 8 | 16, 0, 0], "bytes of a product's row: the processor has 32"),
            (4, [0; 4], "rows of a product: the processor has 0"),
        ];
        for (leaf, result, why) in smaller {
            let mut machine = whole();
            machine.leaves[leaf].2 = result;
            let lack = grant(&machine).unwrap_err().to_string();
            assert!(lack.starts_with("not used: ") && lack.contains(why), "{lack}");
            assert_eq!(*machine.asked.borrow(), ["states"], "{why}");
        }
    }

    #[test]
    fn a_refusal_of_the_system_is_a_reason() {
        let machine = Fake { permit: Err("a filter".into()), ..whole() };
        assert_eq!(grant(&machine).unwrap_err().to_string(), "not used: a filter");
        assert_eq!(*machine.asked.borrow(), ["states", "permit"]);
    }

    #[test]
    fn this_machine_answers_alike_each_time() {
        let [first, second] = [granted(), granted()].map(|answer| answer.map_err(|lack| lack.to_string()));
        assert_eq!(first.as_ref().err(), second.as_ref().err());
        assert!(is_present() || first.is_err());
    }
}
