//! Checks the machine code of the binary. Only the GEMM for AMX contains tile instructions, and it first
//! requests the use of AMX tiles from Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Returns the tile instructions of each function that has any, as objdump prints them. Returns `None` if
/// objdump cannot be run.
fn tile_instructions(binary: &str) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let mut command = Command::new("objdump");
    command.args(["--disassemble", "--no-show-raw-insn", "--disassembler-options=intel", binary]);
    let mut objdump = command.stdout(Stdio::piped()).spawn().ok()?;
    let mut functions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut function = String::new();
    for line in BufReader::new(objdump.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            function = name.1.to_owned();
            continue;
        }
        let mnemonic = line.split_once(":\t").and_then(|(_, text)| text.split_whitespace().next()).unwrap_or("");
        if ["tile", "ldtile", "sttile", "tdp"].iter().any(|start| mnemonic.starts_with(start)) {
            functions.entry(function.clone()).or_default().insert(mnemonic.to_owned());
        }
    }
    assert!(objdump.wait().unwrap().success());
    Some(functions)
}

#[test]
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    ignore = "AMX exists only on x86-64, and Linux must grant its use"
)]
fn only_the_gemm_of_amx_has_tile_instructions() {
    let Some(functions) = tile_instructions(env!("CARGO_BIN_EXE_mapl")) else {
        // objdump comes with the linker of every C++ compiler, so a machine with the emulator has it.
        assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "objdump was not found");
        println!("SKIPPED: objdump was not found");
        return;
    };
    for (function, instructions) in &functions {
        assert!(["cpu3amx", "cpu..amx"].iter().any(|module| function.contains(module)), "{function}: {instructions:?}");
    }
    let all: BTreeSet<&str> = functions.values().flatten().map(String::as_str).collect();
    let expected = ["ldtilecfg", "tdpbf16ps", "tileloadd", "tilerelease", "tilestored", "tilezero"];
    assert_eq!(all.into_iter().collect::<Vec<_>>(), expected);
}
