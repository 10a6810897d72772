//! ptxas report of every kernel against the committed table `kernels/resources.csv`: registers,
//! stack, spills and shared bytes per target. After a change, update the table with
//! `MAPL_UPDATE_RESOURCES=1` and commit it.

use std::path::{Path, PathBuf};

use mapl::backend::kernels::launchers::{KERNELS, RESOURCES};
use mapl::bench::op::KernelFile;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/resources.csv");
const HEADER: &str = "kernel,target,registers,stack,spill_stores,spill_loads,shared\n";
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// Whether the build has compiled kernels. Without nvcc it prints `SKIPPED`, or fails if
/// `MAPL_REQUIRE_NVCC` is 1.
fn compiled() -> bool {
    if RESOURCES.is_empty() {
        assert!(std::env::var_os("MAPL_REQUIRE_NVCC").is_none_or(|v| v != "1"), "this build has no kernels");
        println!("SKIPPED: this build has no kernels, because nvcc was not found");
    }
    !RESOURCES.is_empty()
}

#[test]
fn every_kernel_is_compiled_for_every_target() {
    if !compiled() {
        return;
    }
    for kernel in KERNELS {
        for target in TARGETS {
            let found = RESOURCES.iter().filter(|r| r.kernel == kernel.name && r.target == target).count();
            assert_eq!(found, 1, "{} for {target}", kernel.name);
        }
    }
    assert_eq!(RESOURCES.len(), KERNELS.len() * TARGETS.len());
}

#[test]
fn no_kernel_spills_or_has_a_stack() {
    for r in RESOURCES {
        assert_eq!((r.spill_stores, r.spill_loads, r.stack), (0, 0, 0), "{} for {}", r.kernel, r.target);
    }
}

#[test]
fn the_table_matches_ptxas() {
    if !compiled() {
        return;
    }
    let mut table = HEADER.to_owned();
    for r in RESOURCES {
        table += &format!(
            "{},{},{},{},{},{},{}\n",
            r.kernel, r.target, r.registers, r.stack, r.spill_stores, r.spill_loads, r.shared
        );
    }
    if std::env::var_os("MAPL_UPDATE_RESOURCES").is_some_and(|v| v == "1") {
        std::fs::write(TABLE, &table).unwrap();
    }
    let committed = std::fs::read_to_string(TABLE).unwrap();
    let changed: Vec<&str> = table.lines().filter(|line| !committed.lines().any(|old| old == *line)).collect();
    assert!(committed == table, "kernels/resources.csv differs from this build, which has:\n{}", changed.join("\n"));
}

/// Compiles the rungs (successive versions of a kernel) in `benches/ladder`: two of them, or all with
/// `MAPL_TEST_FULL=1`.
#[test]
fn no_rung_of_a_ladder_spills() {
    if !compiled() {
        return;
    }
    let full = std::env::var_os("MAPL_TEST_FULL").is_some_and(|v| v == "1");
    let ladder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/ladder");
    let mut files: Vec<PathBuf> = ["product", "head"]
        .into_iter()
        .flat_map(|name| std::fs::read_dir(ladder.join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 13);
    files.retain(|path| {
        full || ["product_5_swizzled_vectors", "head_4_tensor_cores"]
            .contains(&path.file_stem().unwrap().to_str().unwrap())
    });
    assert!(files.len() >= 2);
    for path in files {
        let file = KernelFile::read(&path).unwrap();
        file.compile_for_gpu().unwrap();
        let found = file.resources().unwrap();
        assert!(found.len() >= TARGETS.len());
        for r in found {
            assert_eq!((r.spill_stores, r.spill_loads, r.stack), (0, 0, 0), "{} for {}", r.kernel, r.target);
        }
    }
}
