//! Machine code (SASS) as `cuobjdump -sass` prints it, and counts of the instructions in its main loop.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;

/// One instruction of a kernel.
pub struct Instruction {
    address: u64,
    /// Name without its suffixes, such as `LDG` of `LDG.E.128`.
    op: String,
    /// Address that a branch leads to.
    target: Option<u64>,
}

/// Instructions of every kernel, by kernel and target.
pub type Listing = BTreeMap<(String, String), Vec<Instruction>>;

/// Adds the kernels of a listing.
pub fn parse(text: &str, into: &mut Listing) {
    static LINE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[^;]*;").unwrap());
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b0x([0-9a-f]+)").unwrap());
    let (mut target, mut kernel) = (String::new(), None);
    for line in text.lines() {
        if let Some((_, name)) = line.split_once("code for ") {
            (target, kernel) = (name.trim().to_owned(), None);
        } else if let Some((_, name)) = line.split_once("Function : ") {
            let key = (name.trim().to_owned(), target.clone());
            into.insert(key.clone(), Vec::new());
            kernel = Some(key);
        } else if let (Some(found), Some(kernel)) = (LINE.captures(line), &kernel) {
            let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let (op, code) = (found[2].to_owned(), line.split(['/', ';']).nth(2).unwrap_or_default());
            let last = ADDRESS.captures_iter(code).last().filter(|_| op == "BRA");
            let target = last.map(|address| number(&address[1]));
            into.get_mut(kernel).unwrap().push(Instruction { address: number(&found[1]), op, target });
        }
    }
}

/// Matrix multiplications of tensor cores.
const PRODUCTS: [&str; 2] = ["HGMMA", "HMMA"];
const GLOBAL_LOADS: [&str; 2] = ["LDG", "LD"];
const GLOBAL_STORES: [&str; 3] = ["STG", "ST", "RED"];
const SHARED_LOADS: [&str; 2] = ["LDS", "LDSM"];
const SHARED_STORES: [&str; 2] = ["STS", "STSM"];
/// Copies to and from shared memory that bypass the registers.
const COPIES: [&str; 5] = ["LDGSTS", "UBLKCP", "UTMALDG", "UTMASTG", "UBLKRED"];
/// Waits for other threads or for copies.
const BARRIERS: [&str; 5] = ["BAR", "SYNCS", "UCGABAR_WAIT", "DEPBAR", "WARPSYNC"];

/// Names of the counts, in their order.
pub const COUNTS: [&str; 10] = [
    "instructions",
    "branches",
    "products",
    "global_loads",
    "global_stores",
    "copies",
    "shared_loads",
    "shared_stores",
    "barriers",
    "loads_in_a_row",
];

/// [`COUNTS`] of instructions. `loads_in_a_row` is the largest number of loads without a store
/// between them: loads after a store wait for it, because the compiler must assume that they read
/// what it wrote.
pub fn counts<'a>(code: impl IntoIterator<Item = &'a Instruction>) -> [usize; COUNTS.len()] {
    let mut counts = [0; COUNTS.len()];
    let mut loads = 0;
    for instruction in code {
        let is = |ops: &[&str]| usize::from(ops.contains(&instruction.op.as_str()));
        let (load, store) = (is(&GLOBAL_LOADS) + is(&SHARED_LOADS), is(&GLOBAL_STORES) + is(&SHARED_STORES));
        loads = if store > 0 { 0 } else { loads + load };
        let one = [
            1,
            is(&["BRA", "BRX", "CALL"]),
            is(&PRODUCTS),
            is(&GLOBAL_LOADS),
            is(&GLOBAL_STORES),
            is(&COPIES),
            is(&SHARED_LOADS),
            is(&SHARED_STORES),
            is(&BARRIERS),
        ];
        counts.iter_mut().zip(one).for_each(|(count, more)| *count += more);
        counts[9] = counts[9].max(loads);
    }
    counts
}

/// Counts of a kernel's main loop, and of its epilogue: the code from there to the end of the loop
/// around it, or of the kernel. `None` without a loop that has products or loads.
///
/// The main loop is the shortest one with at least half of the products that any loop has: outer
/// loops hold those of inner ones. In a kernel without products, loads of global memory count.
pub fn main_loop(code: &[Instruction]) -> Option<[[usize; COUNTS.len()]; 2]> {
    let loops: Vec<(u64, u64)> =
        code.iter().filter_map(|i| Some((i.target.filter(|&target| target < i.address)?, i.address))).collect();
    let within = |(first, last): (u64, u64)| code.iter().filter(move |i| (first..=last).contains(&i.address));
    let work = |columns: &[usize]| -> Vec<usize> {
        let sum = |&body: &(u64, u64)| {
            let counts = counts(within(body));
            columns.iter().map(|&column| counts[column]).sum()
        };
        loops.iter().map(sum).collect()
    };
    let work = [work(&[2]), work(&[3, 5])].into_iter().find(|work| work.iter().any(|&n| n > 0))?;
    let most = *work.iter().max()?;
    let long = |&&(first, last): &&(u64, u64)| last - first;
    let body = *loops.iter().zip(&work).filter(|(_, n)| 2 * **n >= most).map(|(body, _)| body).min_by_key(long)?;
    let around = loops.iter().filter(|outer| outer.0 <= body.0 && outer.1 > body.1).min_by_key(long);
    let end = around.map_or(code.last()?.address, |outer| outer.1);
    Some([counts(within(body)), counts(within((body.1 + 1, end)))])
}
