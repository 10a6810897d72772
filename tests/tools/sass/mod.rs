//! Main loop of every kernel in machine code against the committed table `kernels/sass.csv`:
//! instructions, branches, memory accesses and barriers of the loop, and of the epilogue after it. A
//! slow form of a loop, such as loads that wait for stores, shows here without a GPU. Counts may
//! differ by a tenth. After a change, update the table with `MAPL_UPDATE_RESOURCES=1` and commit it.

mod code;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use code::{COUNTS, Listing, counts, main_loop, parse};
use mapl::backend::kernels::launchers::{FATBINS, KERNELS};
use rayon::prelude::*;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/sass.csv");

/// Returns the folder with cuobjdump and nvdisasm: next to nvcc, in CUDA's folder, on PATH, or in the active
/// Python's packages.
pub fn tools() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let of_nvcc = variable("NVCC").and_then(|nvcc| nvcc.parent().map(Path::to_path_buf));
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("bin"));
    let on_path: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let python = variable("VIRTUAL_ENV").into_iter().flat_map(|env| std::fs::read_dir(env.join("lib")).ok());
    let packages = python.flatten().flatten().map(|lib| lib.path().join("site-packages/nvidia/cu13/bin"));
    let folders = of_nvcc.into_iter().chain(homes).chain(on_path).chain(packages);
    folders.into_iter().find(|folder| ["cuobjdump", "nvdisasm"].iter().all(|tool| folder.join(tool).is_file()))
}

/// Returns the machine code of all kernels except those of tests. If kernels were not compiled by nvcc or the
/// tools are missing, prints `SKIPPED` and returns `None`, or panics if `MAPL_REQUIRE_NVCC` is 1.
fn listing() -> Option<&'static Listing> {
    static LISTING: OnceLock<Option<Listing>> = OnceLock::new();
    LISTING.get_or_init(disassembled).as_ref()
}

fn disassembled() -> Option<Listing> {
    let tools = tools().filter(|_| !FATBINS.is_empty());
    let Some(tools) = tools else {
        let why = "nvcc, cuobjdump or nvdisasm was not found; pip install -r kernels/nvcc-requirements.txt";
        assert!(std::env::var_os("MAPL_REQUIRE_NVCC").is_none_or(|v| v != "1"), "{why}");
        println!("SKIPPED: {why}");
        return None;
    };
    let mut files: Vec<usize> =
        KERNELS.iter().filter(|kernel| !kernel.name.starts_with("test_")).map(|kernel| kernel.file).collect();
    files.sort_unstable();
    files.dedup();
    let folder = tempfile::tempdir().unwrap();
    let print = |&file: &usize| {
        let path = folder.path().join(format!("{file}.fatbin"));
        std::fs::write(&path, FATBINS[file]).unwrap();
        // cuobjdump looks for nvdisasm on PATH.
        let output =
            Command::new(tools.join("cuobjdump")).arg("-sass").arg(&path).env("PATH", &tools).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let texts: Vec<String> = files.par_iter().map(print).collect();
    let mut all = Listing::new();
    texts.iter().for_each(|text| parse(text, &mut all));
    Some(all)
}

/// Key and counts of a row of the table.
fn row(line: &str) -> (&str, Vec<usize>) {
    let at = line.match_indices(',').nth(2).unwrap().0;
    (&line[..at], line[at + 1..].split(',').map(|n| n.parse().unwrap()).collect())
}

/// Whether two counts differ by more than a tenth.
fn differ(a: usize, b: usize) -> bool {
    10 * a.abs_diff(b) > a.max(b)
}

#[test]
fn main_loops_match_the_table() {
    let Some(listing) = listing() else { return };
    let mut table = format!("kernel,target,part,{}\n", COUNTS.join(","));
    for ((kernel, target), code) in listing {
        let parts = main_loop(code).into_iter().flat_map(|[body, epilogue]| [("loop", body), ("epilogue", epilogue)]);
        for (part, counts) in parts {
            let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
            table += &format!("{kernel},{target},{part},{}\n", counts.join(","));
        }
    }
    if std::env::var_os("MAPL_UPDATE_RESOURCES").is_some_and(|v| v == "1") {
        std::fs::write(TABLE, &table).unwrap();
    }
    let committed = std::fs::read_to_string(TABLE).unwrap();
    let (old, new): (Vec<&str>, Vec<&str>) = (committed.lines().collect(), table.lines().collect());
    assert_eq!(old[0], new[0]);
    let mut wrong = Vec::new();
    for line in &new[1..] {
        let (key, counts) = row(line);
        match old[1..].iter().map(|line| row(line)).find(|(other, _)| *other == key) {
            Some((_, before)) if counts.iter().zip(&before).all(|(&a, &b)| !differ(a, b)) => {}
            Some((_, before)) => wrong.push(format!("{key}: {counts:?}, in the table {before:?}")),
            None => wrong.push(format!("{key}: {counts:?}, not in the table")),
        }
    }
    let gone = old[1..].iter().map(|line| row(line).0).filter(|key| !new[1..].iter().any(|line| row(line).0 == *key));
    wrong.extend(gone.map(|key| format!("{key}: not in this build")));
    assert!(wrong.is_empty(), "counts {COUNTS:?} differ from kernels/sass.csv:\n{}", wrong.join("\n"));
}

/// Loops of Hopper's GEMMs use wgmma, which bulk copies feed, and contain no load or store.
#[test]
fn loops_of_hopper_have_products_and_no_loads() {
    let Some(listing) = listing() else { return };
    let mut count = 0;
    for ((kernel, target), code) in listing {
        let names = [
            "linear_",
            "head_sums",
            "head_powers",
            "head_stats_sums",
            "head_stats_powers",
            "head_drows",
            "head_dhead",
            "attention_fwd",
            "attention_bwd_q",
        ];
        let is_product = names.iter().any(|name| kernel.starts_with(name));
        if target != "sm_90a" || !kernel.contains("_sm90") || !is_product {
            continue;
        }
        count += 1;
        let [body, _] = main_loop(code).unwrap_or_else(|| panic!("{kernel} has no loop"));
        assert!(body[2] >= 4, "{kernel}: {body:?}");
        assert_eq!((body[3], body[4], body[6], body[7]), (0, 0, 0, 0), "{kernel}: {body:?}");
        // The producer's copies are outside of the consumers' loop.
        assert!(counts(code)[5] > 0, "{kernel} has no bulk copy");
    }
    assert!(count >= 20, "{count}");
}

const CODE: &str = "
	code for sm_90a
		Function : scale
        /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x0 */
                                                                /* 0x1 */
        /*0010*/              @!P1 BRA 0xb0 ;                    /* 0x2 */
        /*0020*/                   LDG.E.128 R4, [R2.64] ;       /* 0x3 */
        /*0030*/                   LDG.E R8, [R2.64+0x20] ;      /* 0x4 */
        /*0040*/                   HMMA.16816.F32 R4, R4, R8, R4 ; /* 0x5 */
        /*0050*/              @!P0 BRA 0x20 ;                    /* 0x6 */
        /*0060*/                   LDS R5, [R4] ;                /* 0x7 */
        /*0070*/                   STG.E [R2.64], R5 ;           /* 0x8 */
        /*0080*/                   LDS R5, [R4+0x4] ;            /* 0x9 */
        /*0090*/                   STG.E [R2.64+0x4], R5 ;       /* 0xa */
        /*00a0*/               @P2 BRA 0x10 ;                    /* 0xb */
        /*00b0*/                   EXIT ;                        /* 0xc */
		Function : copy
        /*0000*/                   LDG.E R4, [R2.64] ;           /* 0x3 */
        /*0010*/                   EXIT ;                        /* 0xc */
";

#[test]
fn a_loop_and_its_epilogue_are_counted() {
    let mut listing = Listing::new();
    parse(CODE, &mut listing);
    let code = |name: &str| &listing[&(name.to_owned(), "sm_90a".to_owned())];
    let [body, epilogue] = main_loop(code("scale")).unwrap();
    assert_eq!(body, [4, 1, 1, 2, 0, 0, 0, 0, 0, 2]);
    // The epilogue reaches to the end of the loop around the main loop, and has a load after each store.
    assert_eq!(epilogue, [5, 1, 0, 0, 2, 0, 2, 0, 0, 1]);
    assert_eq!(counts(code("scale"))[0], 12);
    assert!(main_loop(code("copy")).is_none());
    assert!(differ(10, 12) && differ(0, 1) && !differ(10, 11) && !differ(0, 0));
}
