//! Commands that compile kernels. `build.rs` uses them for the shipped kernels, and the program for custom
//! kernels.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Targets: a cubin for sm_80, its PTX for later GPUs, and a cubin for the instructions that only
/// Hopper has.
const TARGETS: [&str; 2] = ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90a,code=sm_90a"];
/// Places searched for nvcc, for messages.
pub const NVCC_PLACES: &str = "NVCC, CUDA_HOME, CUDA_PATH, PATH and site-packages/nvidia/cu13 of the active Python";
/// Flags of the C++ compiler for the emulator. Fibers leave their stacks by longjmp, which the fortified
/// longjmp rejects. Contraction to fused multiply-adds would change sums.
#[allow(dead_code, reason = "only build.rs, which includes this file, passes them")]
pub const EMULATOR_FLAGS: [&str; 4] =
    ["-U_FORTIFY_SOURCE", "-ffp-contract=off", "-Wno-unknown-pragmas", "-fno-strict-aliasing"];

/// Returns the nvcc command that compiles a file to a fatbin and writes the report of ptxas to stderr.
/// `includes` are searched in order.
pub fn nvcc_command(nvcc: &Path, includes: &[&Path], file: &Path, fatbin: &Path) -> Command {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v"]);
    for include in includes {
        command.arg("-I").arg(include);
    }
    if guarded() {
        command.arg("-DMAPL_GUARD");
    }
    // Line tables would be more than half of a compressed fatbin, so they are optional.
    if is_set("MAPL_LINEINFO") {
        command.arg("-lineinfo");
    }
    // The fatbin is compressed, because the program contains the code of every target.
    command.args(["-Xfatbin", "-compress-all", "--compress-mode=size"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg(file).arg("-o").arg(fatbin);
    command
}

/// Whether `MAPL_GUARD` is 1. A wait of a kernel on a GPU then fails after about two seconds and reports its
/// position.
pub fn guarded() -> bool {
    is_set("MAPL_GUARD")
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| value == "1")
}

/// Finds nvcc through `NVCC`, `CUDA_HOME` or `CUDA_PATH`, in PATH, or in the packages of the active Python.
pub fn find_nvcc() -> Option<PathBuf> {
    let named = env::var_os("NVCC").map(PathBuf::from).into_iter();
    let homes =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).map(|dir| dir.join("nvcc")).collect();
    named.chain(homes).chain(on_path).chain(wheel_nvcc()).find(|path| path.is_file())
}

fn wheel_nvcc() -> Option<PathBuf> {
    let script = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
    let venv = env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin/python3"));
    let python = venv.filter(|python| python.is_file()).unwrap_or_else(|| "python3".into());
    let output = Command::new(python).args(["-c", script]).output().ok().filter(|o| o.status.success())?;
    let packages = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(packages.trim()).join("nvidia/cu13/bin/nvcc"))
}

/// Files of a folder with this extension.
pub fn files_of(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("cannot list {}: {e}", dir.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect())
}
