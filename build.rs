//! Compiles `kernels/*.cu`: with nvcc into one fatbin per file (sm_80 cubin and PTX, sm_90a cubin),
//! which the binary embeds, and with the C++ compiler into the library of the emulator. Generates
//! the typed launchers from the KERNEL and KERNELS lines, and the shared constants and enums from
//! the EXPORT lines.
//!
//! Without nvcc or a C++ compiler the build succeeds with a warning line for each.
//! `MAPL_REQUIRE_NVCC=1` and `MAPL_REQUIRE_EMULATOR=1` make their absence an error.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

#[path = "src/backend/kernels/compile.rs"]
mod compile;
#[path = "src/backend/kernels/exports.rs"]
mod exports;
#[path = "src/backend/kernels/generate.rs"]
mod generate;
#[path = "src/backend/kernels/grammar.rs"]
mod grammar;

use compile::{EMULATOR_FLAGS, NVCC_PLACES, files_of, find_nvcc, nvcc_command};
use exports::Export;
use generate::{Resources, Source};

/// Library of the emulator.
const EMULATOR: &str = "libmapl_emulator.a";

fn main() {
    println!("cargo:rustc-check-cfg=cfg(mapl_nvcc)");
    println!("cargo:rustc-check-cfg=cfg(mapl_emulator)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for file in ["compile", "exports", "generate", "grammar"] {
        println!("cargo:rerun-if-changed=src/backend/kernels/{file}.rs");
    }
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "MAPL_REQUIRE_NVCC", "MAPL_REQUIRE_EMULATOR", "CXX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rustc-check-cfg=cfg(mapl_guard)");
    for name in ["MAPL_BUILD_CACHE", "MAPL_EMULATOR_SANITIZE", "MAPL_GUARD", "MAPL_LINEINFO"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if compile::guarded() {
        println!("cargo:rustc-cfg=mapl_guard");
    }
    export_commit();
    if let Err(why) = build() {
        // A panic's backtrace would bury the message.
        eprintln!("error: {why}");
        std::process::exit(1);
    }
}

/// Exports `BUILD_COMMIT`: the commit of the checkout, with `-dirty` if a source differs from it, or
/// `unknown` if these files are not a checkout. The script runs again after a commit or a change of a source.
/// Either change recompiles the crate anyway; a build without such a change recompiles nothing.
fn export_commit() {
    let sources = ["src", "kernels", "build.rs", "Cargo.toml", "Cargo.lock"];
    sources.iter().for_each(|path| println!("cargo:rerun-if-changed={path}"));
    // A source archive that was unpacked inside another repository must not export that repository's commit.
    let real = |path: &str| fs::canonicalize(path).ok();
    let is_checkout = git(&["rev-parse", "--show-toplevel"]).is_some_and(|top| real(&top) == real("."));
    let commit = is_checkout.then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten();
    let Some(commit) = commit else {
        println!("cargo:rustc-env=BUILD_COMMIT=unknown");
        return;
    };
    // Only existing files are watched: a watched file that is missing would make every build run this script
    // again. A packed branch has no separate file, but the log of HEAD changes with it.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).is_file()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let status = [&["status", "--porcelain", "--untracked-files=no", "--"][..], &sources].concat();
    let dirty = if git(&status).is_none_or(|changes| !changes.is_empty()) { "-dirty" } else { "" };
    println!("cargo:rustc-env=BUILD_COMMIT={commit}{dirty}");
}

/// Output of a git command in this folder; `None` if it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; run cargo")?);
    let objects = objects_folder(&out)?;
    let (sources, exports) = read_sources(Path::new("kernels"))?;
    for source in &sources {
        write_changed(&objects.join(format!("{}_entries.cu", source.stem)), &generate::entries(source))?;
    }
    let compiled = match find_nvcc() {
        Some(nvcc) => {
            println!("cargo:rustc-cfg=mapl_nvcc");
            let resources = compile_all(&nvcc, &sources, &objects)?;
            for source in &sources {
                copy(&format!("{}.fatbin", source.stem), &objects, &out)?;
            }
            Some((cuda_version(&nvcc)?, resources))
        }
        None if required("MAPL_REQUIRE_NVCC") => {
            return Err(format!(
                "MAPL_REQUIRE_NVCC is set, but nvcc was not found in {NVCC_PLACES}; pip install -r kernels/nvcc-requirements.txt"
            ));
        }
        None => {
            println!(
                "cargo:warning=nvcc was not found: this build has no CUDA kernels and runs on the CPU; for kernels, pip install \
                 -r kernels/nvcc-requirements.txt"
            );
            None
        }
    };
    let emulated = emulator(&sources, &objects)?;
    if emulated.is_some() {
        copy(EMULATOR, &objects, &out)?;
        println!("cargo:rustc-link-search=native={}", out.display());
    }
    let compiled = compiled.as_ref().map(|(version, r)| (*version, &r[..]));
    let text = generate::launchers(&sources, &exports, compiled, emulated.is_some());
    fs::write(out.join("launchers.rs"), text).map_err(|e| format!("cannot write launchers.rs: {e}"))?;
    let text = generate::shipped(&shipped_files()?, &emulated.unwrap_or_default());
    write_changed(&out.join("shipped.rs"), &text)
}

/// Folder for compiled kernels: `MAPL_BUILD_CACHE`, which successive builds can share, or else the output folder of
/// this build. Stamp files in it record the inputs of each output, so that unchanged outputs are not rebuilt.
fn objects_folder(out: &Path) -> Result<PathBuf, String> {
    let Some(folder) = env::var_os("MAPL_BUILD_CACHE") else { return Ok(out.to_owned()) };
    fs::create_dir_all(&folder)
        .and_then(|()| fs::canonicalize(&folder))
        .map_err(|e| format!("cannot make the folder of MAPL_BUILD_CACHE, {}: {e}", Path::new(&folder).display()))
}

/// Copies a file to another folder, unless both folders are the same.
fn copy(name: &str, from: &Path, to: &Path) -> Result<(), String> {
    if from != to {
        fs::copy(from.join(name), to.join(name)).map_err(|e| format!("cannot copy {name} to {}: {e}", to.display()))?;
    }
    Ok(())
}

/// Returns every file that a compilation of a kernel reads, relative to `kernels`. The program embeds these
/// files, so that it can compile user-defined kernels without this folder.
fn shipped_files() -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    for (folder, extension) in [("", "cu"), ("", "cuh"), ("primitives", "cuh"), ("emulator", "h")] {
        files.extend(files_of(&Path::new("kernels").join(folder), extension)?);
    }
    let mut files: Vec<String> = files
        .iter()
        .filter_map(|path| Some(path.strip_prefix("kernels").ok()?.to_string_lossy().into_owned()))
        .collect();
    files.sort();
    Ok(files)
}

/// Writes a file unless it has this text already, so that its modification time changes only if its
/// text changes.
fn write_changed(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn required(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value == "1")
}

/// Kernel files in the order of their names, and the exports of all files.
fn read_sources(dir: &Path) -> Result<(Vec<Source>, Vec<Export>), String> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let mut paths = files_of(dir, "cu")?;
    let mut headers = files_of(dir, "cuh")?;
    headers.extend(files_of(&dir.join("emulator"), "h")?);
    paths.sort();
    headers.sort();
    let mut exports: Vec<Export> = Vec::new();
    for path in headers.iter().chain(&paths) {
        for export in exports::parse(&read(path)?).map_err(|why| format!("{}: {why}", path.display()))? {
            if exports.iter().any(|known| known.name == export.name) {
                return Err(format!("{}: {} is exported a second time", path.display(), export.name));
            }
            exports.push(export);
        }
    }
    let mut sources = Vec::new();
    for path in paths {
        let declarations =
            grammar::parse(&read(&path)?, &exports).map_err(|why| format!("{}: {why}", path.display()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        sources.push(Source { stem, path, declarations });
    }
    Ok((sources, exports))
}

/// CUDA version of nvcc in the driver's encoding: 13000 is 13.0.
fn cuda_version(nvcc: &Path) -> Result<i32, String> {
    let output =
        Command::new(nvcc).arg("--version").output().map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    generate::cuda_version(&text)
        .ok_or_else(|| format!("the output of {} --version has no release:\n{text}", nvcc.display()))
}

/// Hash of the inputs of a compilation: the files, every header of the kernels, and the command.
fn fingerprint(files: &[PathBuf], command: &str) -> Result<String, String> {
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    let mut headers = files_of(Path::new("kernels"), "cuh")?;
    headers.extend(files_of(Path::new("kernels/primitives"), "cuh")?);
    headers.sort();
    for path in files.iter().chain(&headers) {
        fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Compiles every file that changed, several at a time. Returns the resource usage of all kernels, sorted by
/// kernel name and target.
fn compile_all(nvcc: &Path, sources: &[Source], out: &Path) -> Result<Vec<Resources>, String> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = compile(nvcc, source, out);
                    results.lock().unwrap_or_else(|e| e.into_inner()).push((&source.stem, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    // Sorts by name, so that the first error does not depend on timing.
    results.sort_by_key(|(stem, _)| *stem);
    let mut resources = Vec::new();
    for (_, report) in results {
        resources.extend(generate::resources(&report?));
    }
    resources.sort_by(|a, b| (&a.kernel, &a.target).cmp(&(&b.kernel, &b.target)));
    Ok(resources)
}

/// Compiles a file unless its fatbin is up to date. Returns the report of ptxas.
fn compile(nvcc: &Path, source: &Source, out: &Path) -> Result<String, String> {
    let (fatbin, report) = (out.join(format!("{}.fatbin", source.stem)), out.join(format!("{}.ptxas", source.stem)));
    let stamp = out.join(format!("{}.stamp", source.stem));
    let entries = out.join(format!("{}_entries.cu", source.stem));
    let mut command = nvcc_command(nvcc, &[Path::new("kernels")], &entries, &fatbin);
    let print = fingerprint(&[source.path.clone(), entries], &format!("{command:?}"))?;
    if fs::read_to_string(&stamp).is_ok_and(|old| old == print)
        && fatbin.is_file()
        && let Ok(report) = fs::read_to_string(&report)
    {
        return Ok(report);
    }
    let output = command.output().map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("nvcc failed on {}:\n{text}", source.path.display()));
    }
    for (path, contents) in [(&report, &text), (&stamp, &print)] {
        fs::write(path, contents).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(text)
}

/// Builds the emulator with every kernel, unless its library is up to date. Returns the command of
/// the C++ compiler, or `None` if no C++ compiler was found.
fn emulator(sources: &[Source], out: &Path) -> Result<Option<Vec<String>>, String> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false).cargo_warnings(false);
    build.flags(EMULATOR_FLAGS);
    if required("MAPL_EMULATOR_SANITIZE") {
        // Level 1 compiles in two thirds of the time of level 2, and the sanitised tests are small.
        build
            .opt_level(1)
            .flag("-fsanitize=address,undefined")
            .flag("-fno-sanitize-recover=undefined")
            .flag("-fno-omit-frame-pointer");
        // rustc links without the default libraries, so -fsanitize does not link the sanitisers'
        // runtimes.
        println!("cargo:rustc-link-lib=dylib=asan");
        println!("cargo:rustc-link-lib=dylib=ubsan");
    }
    // The command and the compiler's version.
    let compiler = build.try_get_compiler().ok().and_then(|compiler| {
        let version = compiler.to_command().arg("--version").output().ok()?;
        let command = std::iter::once(compiler.path().as_os_str()).chain(compiler.args().iter().map(|arg| &**arg));
        let command: Vec<String> = command.map(|word| word.to_string_lossy().into_owned()).collect();
        Some((command, format!("{:?} {}", compiler.to_command(), String::from_utf8_lossy(&version.stdout))))
    });
    let Some((command, compiler)) = compiler else {
        if required("MAPL_REQUIRE_EMULATOR") {
            return Err("MAPL_REQUIRE_EMULATOR is set, but no C++ compiler was found (CXX, or c++ on PATH)".into());
        }
        println!("cargo:warning=no C++ compiler found: this build has no kernel emulator");
        return Ok(None);
    };
    let mut files = Vec::new();
    for source in sources {
        let path = out.join(format!("emulated_{}.cpp", source.stem));
        write_changed(&path, &generate::emulated(source))?;
        files.push(path);
    }
    files.extend(files_of(Path::new("kernels/emulator"), "cpp")?);
    let mut inputs = files.clone();
    inputs.extend(files_of(Path::new("kernels/emulator"), "h")?);
    inputs.extend(sources.iter().map(|source| source.path.clone()));
    inputs.sort();
    let print = fingerprint(&inputs, &compiler)?;
    let (library, stamp) = (out.join(EMULATOR), out.join("emulator.stamp"));
    if !library.is_file() || fs::read_to_string(&stamp).ok().as_ref() != Some(&print) {
        build.include("kernels").cargo_metadata(false).out_dir(out);
        let built = build.files(files).try_compile("mapl_emulator");
        built.map_err(|e| format!("the emulator does not compile: {e}"))?;
        fs::write(&stamp, &print).map_err(|e| format!("cannot write {}: {e}", stamp.display()))?;
    }
    println!("cargo:rustc-link-lib=static=mapl_emulator");
    println!("cargo:rustc-link-lib={}", if cfg!(target_vendor = "apple") { "c++" } else { "stdc++" });
    println!("cargo:rustc-cfg=mapl_emulator");
    Ok(Some(command))
}
