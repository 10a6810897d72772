//! The machine code of the binary: no function has instructions on AMX tiles but those of the GEMM that
//! asks for tiles first.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Mnemonics of instructions on tiles and how often each function of the binary has them, by objdump.
fn tile_instructions(binary: &str) -> Option<BTreeMap<String, BTreeMap<String, usize>>> {
    let mut command = Command::new("objdump");
    command.args(["--disassemble", "--no-show-raw-insn", "--disassembler-options=intel", binary]);
    let mut objdump = command.stdout(Stdio::piped()).spawn().ok()?;
    let mut functions: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut function = String::new();
    for line in BufReader::new(objdump.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            function = name.1.to_owned();
            continue;
        }
        let mnemonic = line.split_once(":\t").and_then(|(_, text)| text.split_whitespace().next()).unwrap_or("");
        if ["tile", "ldtile", "sttile", "tdp"].iter().any(|start| mnemonic.starts_with(start)) {
            *functions.entry(function.clone()).or_default().entry(mnemonic.to_owned()).or_default() += 1;
        }
    }
    assert!(objdump.wait().unwrap().success());
    Some(functions)
}

#[test]
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), ignore = "AMX is a unit of x86-64, asked of Linux")]
fn only_the_gemm_of_amx_has_tile_instructions() {
    let Some(functions) = tile_instructions(env!("CARGO_BIN_EXE_mapl")) else {
        println!("SKIPPED: objdump was not found");
        return;
    };
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    for (function, mnemonics) in &functions {
        assert!(["cpu3amx", "cpu..amx"].iter().any(|module| function.contains(module)), "{function}: {mnemonics:?}");
        mnemonics.iter().for_each(|(mnemonic, count)| *all.entry(mnemonic).or_default() += count);
    }
    let names: Vec<&str> = all.keys().copied().collect();
    assert_eq!(names, ["ldtilecfg", "tdpbf16ps", "tileloadd", "tilerelease", "tilestored", "tilezero"]);
    // Blocks of 2 x 2, 2 x 1, 1 x 2 and 1 x 1 tiles, from the operand and from packed tiles.
    assert!(all["tdpbf16ps"].is_multiple_of(9) && all["tilezero"] == 9 && all["tilestored"] == 9, "{all:?}");
}
