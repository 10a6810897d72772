//! Compiles kernel files at run time with the flags of the build. The mapl binary embeds the shipped kernels and
//! headers, so that a compilation needs no source tree. They are unpacked into the cache folder, under a hash of
//! their texts. Compiled results are kept there too, under a hash of everything that the compilation reads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use tempfile::TempDir;

use super::super::compile::{NVCC_PLACES, find_nvcc, nvcc_command};
use super::super::generate;
use super::code::{self, Entry};
use super::{OwnFile, shipped};
use crate::files::{cache, write_atomic};
use crate::{Error, Result};

/// Maximum number of lines of a compiler's output in an error.
const OUTPUT: usize = 20;

/// Runs `work` on every file, several at a time. Returns the results in order, or the first error.
pub fn each<T: Send>(files: &[OwnFile], work: impl Fn(&OwnFile) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results = Vec::new();
    for some in files.chunks(threads) {
        results.extend(std::thread::scope(|scope| {
            let started: Vec<_> = some.iter().map(|file| scope.spawn(|| work(file))).collect();
            let stopped = |_| Err(Error::Runtime("a thread that compiled a kernel file panicked".into()));
            started.into_iter().map(|thread| thread.join().unwrap_or_else(stopped)).collect::<Result<Vec<_>>>()
        })?);
    }
    Ok(results)
}

/// Folder of compiled kernels: below the cache folder, or temporary if there is none.
fn folder() -> Result<PathBuf> {
    static TEMPORARY: OnceLock<TempDir> = OnceLock::new();
    let create = |path: PathBuf| -> Result<PathBuf> {
        fs::create_dir_all(&path).map_err(|source| Error::Io { action: "create", path: path.clone(), source })?;
        Ok(path)
    };
    if let Some(cache) = cache::folder(|name| env::var_os(name)) {
        return create(cache.join("kernels"));
    }
    if let Some(temporary) = TEMPORARY.get() {
        return Ok(temporary.path().to_owned());
    }
    let new = tempfile::Builder::new().prefix("mapl-kernels").tempdir();
    let new = new.map_err(|source| Error::Io { action: "create a folder in", path: env::temp_dir(), source })?;
    Ok(TEMPORARY.get_or_init(|| new).path().to_owned())
}

/// Unpacks the embedded kernels and headers. Returns their folder and the hash of the files.
fn sources() -> Result<(PathBuf, String)> {
    unpacked("shipped", shipped::FILES)
}

/// Returns the first 16 hex digits of a hash over the names and texts of `files`.
pub fn hash_of(files: &[(&str, &str)]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, text) in files {
        for part in [name, text] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Writes files that the binary embeds, given by name and text, into a cache folder whose name contains their
/// hash. Returns the folder and the hash.
pub fn unpacked(name: &str, files: &[(&str, &str)]) -> Result<(PathBuf, String)> {
    let folder = &folder()?;
    let hash = hash_of(files);
    let done = folder.join(format!("{name}-{hash}"));
    if !done.is_dir() {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action: "write", path, source }
        };
        let temporary = tempfile::Builder::new().prefix(name).tempdir_in(folder).map_err(failed(folder))?;
        for (name, text) in files {
            let path = temporary.path().join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(failed(&path))?;
            fs::write(&path, text).map_err(failed(&path))?;
        }
        // Another process may have created the folder first.
        if let Err(source) = fs::rename(temporary.path(), &done)
            && !done.is_dir()
        {
            return Err(Error::Io { action: "create", path: done, source });
        }
    }
    Ok((done, hash))
}

/// A compilation in a temporary working folder. Complete results move to the cache folder.
struct Job<'a> {
    file: &'a OwnFile,
    work: TempDir,
    folder: PathBuf,
    sources: PathBuf,
    hash_of_sources: String,
    own_folder: PathBuf,
}

impl<'a> Job<'a> {
    fn new(file: &'a OwnFile) -> Result<Self> {
        let folder = folder()?;
        let (sources, hash_of_sources) = sources()?;
        let failed = |source| Error::Io { action: "create a folder in", path: folder.clone(), source };
        let work = tempfile::Builder::new().prefix("work").tempdir_in(&folder).map_err(failed)?;
        let own = file.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let own_folder =
            fs::canonicalize(own).map_err(|source| Error::Io { action: "find", path: own.to_owned(), source })?;
        Ok(Self { file, work, folder, sources, hash_of_sources, own_folder })
    }

    /// Writes a generated file into the working folder.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.work.path().join(name);
        fs::write(&path, text).map_err(|source| Error::Io { action: "write", path: path.clone(), source })?;
        Ok(path)
    }

    /// Path in the cache folder for the result of this command with this compiler.
    fn place(&self, command: &[&str], compiler: &Path, extension: &str) -> PathBuf {
        let version = Command::new(compiler).arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let command = format!("{command:?} {}", compiler.display());
        let name = self.file.path.display().to_string();
        let hash = self.file.digest(&[&self.hash_of_sources, &command, &version, &name]).to_hex();
        self.folder.join(format!("{}-{}.{extension}", self.file.source.stem, &hash[..16]))
    }

    /// Runs a compiler. Returns its stderr, or [`Error::Data`] with its stderr if the file does not compile.
    fn run(&self, command: &mut Command) -> Result<String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = command.output().map_err(|e| Error::Device(format!("cannot run {program}: {e}")))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let mut shown: Vec<&str> = text.lines().take(OUTPUT).collect();
        if text.lines().count() > OUTPUT {
            shown.push("...");
        }
        Err(Error::data(&self.file.path, 0, None, format!("does not compile with {program}:\n{}", shown.join("\n"))))
    }
}

/// Returns the entry points of a file for the emulator, by kernel name. `compiler` is the compiler command of
/// the build: program, then flags.
pub fn emulated(file: &OwnFile, compiler: &[&str]) -> Result<HashMap<String, Entry>> {
    let Some((built_with, flags)) = compiler.split_first() else {
        return Err(Error::Device(
            "this build has no kernel emulator, because no C++ compiler was found; install g++ or clang++ and build again"
                .into(),
        ));
    };
    let program = env::var_os("CXX").filter(|cxx| !cxx.is_empty()).map_or(PathBuf::from(built_with), PathBuf::from);
    let job = Job::new(file)?;
    let library = job.place(flags, &program, "so");
    if !library.is_file() {
        job.write(&format!("{}_entries.cu", file.source.stem), &generate::entries(&file.source))?;
        let source = job.write("library.cpp", &generate::own_library(&file.source))?;
        let built = job.work.path().join("library.so");
        let mut command = Command::new(&program);
        command.args(flags).args(["-shared", "-fPIC", "-fvisibility=hidden", "-I"]).arg(&job.own_folder);
        command.arg("-I").arg(&job.sources).arg(&source).arg("-o").arg(&built);
        job.run(&mut command)?;
        fs::rename(&built, &library).map_err(|source| Error::Io { action: "create", path: library.clone(), source })?;
    }
    let entries = code::load(&library, file.kernels()).map_err(|e| {
        Error::Device(format!("cannot load {}, compiled from {}: {e}", library.display(), file.path.display()))
    })?;
    if entries.is_empty() {
        return Err(Error::data(
            &file.path,
            0,
            None,
            "was compiled with the headers of a different emulator; remove emulator/ from its folder",
        ));
    }
    Ok(entries)
}

/// Returns the fatbin of a file, and the report of ptxas.
pub fn fatbin(file: &OwnFile) -> Result<(Vec<u8>, String)> {
    let Some(nvcc) = find_nvcc() else {
        return Err(Error::Device(format!(
            "{} needs nvcc, which was not found in {NVCC_PLACES}; pip install nvidia-cuda-nvcc, or use --device emulator",
            file.path.display()
        )));
    };
    let job = Job::new(file)?;
    let source = job.write(&format!("{}_entries.cu", file.source.stem), &generate::entries(&file.source))?;
    let built = job.work.path().join("built.fatbin");
    let mut command = nvcc_command(&nvcc, &[&job.own_folder, &job.sources], &source, &built);
    let flags = nvcc_command(Path::new("nvcc"), &[], Path::new("in"), Path::new("out"));
    let fatbin = job.place(&[&format!("{flags:?}")], &nvcc, "fatbin");
    let report = fatbin.with_extension("ptxas");
    let read = |path: &Path| fs::read(path).map_err(|source| Error::Io { action: "read", path: path.into(), source });
    if !(fatbin.is_file() && report.is_file()) {
        let text = job.run(&mut command)?;
        let code = read(&built)?;
        write_atomic(&report, text.as_bytes())?;
        write_atomic(&fatbin, &code)?;
    }
    Ok((read(&fatbin)?, String::from_utf8_lossy(&read(&report)?).into_owned()))
}
