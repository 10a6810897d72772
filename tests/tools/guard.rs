//! `MAPL_GUARD=1`: the guarded code contains the message of the guard, the plain code does not.

use std::path::Path;
use std::process::Command;

use crate::sass::tools;

/// PTX of the primitives' test kernels.
fn ptx(nvcc: &Path, flags: &[&str]) -> String {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.ptx");
    let mut command = Command::new(nvcc);
    command.args(["-ptx", "-std=c++17", "-O3", "-arch=compute_90a", "-I"]).arg(&kernels).args(flags);
    command.arg(kernels.join("primitives_test.cu")).arg("-o").arg(&out);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(out).unwrap()
}

#[test]
fn guarded_waits_say_where_and_plain_waits_are_unchanged() {
    let nvcc = tools().map(|folder| folder.join("nvcc")).filter(|nvcc| nvcc.is_file());
    let Some(nvcc) = nvcc else {
        assert!(std::env::var_os("MAPL_REQUIRE_NVCC").is_none_or(|v| v != "1"), "nvcc was not found");
        println!("SKIPPED: nvcc was not found");
        return;
    };
    // PTX stores strings as numbers: "mapl guard".
    let message = "109, 97, 112, 108, 32, 103, 117, 97, 114, 100";
    let (guarded, plain) = (ptx(&nvcc, &["-DMAPL_GUARD"]), ptx(&nvcc, &[]));
    assert!(guarded.contains(message) && guarded.contains("vprintf") && guarded.contains("clock64"));
    for part in [message, "vprintf", "clock64"] {
        assert!(!plain.contains(part), "{part}");
    }
}
