//! Custom kernels, without a rebuild of the program. A kernel file is compiled as in the build, and its entry
//! points replace the shipped ones of the same name.
//!
//!   read      parse KERNEL and EXPORT lines; each must equal the launcher's line (`lines`)
//!   prepare   compile for the emulator or for a GPU, with a cache on disk (`compiler`)
//!   launch    the device looks up the entry point by the kernel's name (`code`)
//!
//! `MAPL_KERNELS=DIR` selects the kernel files of a folder for the process; [`with`] selects kernels for
//! calls of one thread. Errors are: lines that differ from the launchers', a name without a launcher outside
//! of `mapl bench --kernel`, and a file that does not compile.

mod code;
mod compiler;
mod lines;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::compile::{files_of, find_nvcc};
use super::device::{Device as _, Kernel};
use super::driver::Driver;
use super::emulator::Emulator;
use super::exports::{self, Export};
use super::generate::Source;
use super::grammar;
use super::launchers::KERNELS;
use crate::files::input;
use crate::terminal::complain;
use crate::{Error, Result};

pub use super::generate::Resources;
pub(crate) use super::grammar::{AxisKind, Declaration, Element as ParameterElement, Kind};
pub(crate) use code::{Entry, image};
pub(crate) use compiler::unpacked;

/// Environment variable with a folder of kernel files.
pub const VARIABLE: &str = "MAPL_KERNELS";

/// Number of hex digits of hashes in messages and records.
const DIGITS: usize = 12;

mod shipped {
    include!(concat!(env!("OUT_DIR"), "/shipped.rs"));
}

/// Compilation target of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Emulator,
    Gpu,
}

/// A kernel file, checked against the launchers.
pub struct OwnFile {
    pub path: PathBuf,
    /// First digits of the hash of the file and of the headers in its folder.
    pub hash: String,
    source: Source,
    /// Headers of its folder by name, for the hash.
    headers: Vec<(String, Vec<u8>)>,
    text: String,
}

/// Kernel files that replace shipped kernels.
pub struct OwnKernels {
    files: Vec<OwnFile>,
    /// Declarations without a launcher, each with the index of its file in `files`.
    new: Vec<(usize, Declaration)>,
    emulated: OnceLock<HashMap<String, Entry>>,
    compiled: OnceLock<Compiled>,
}

impl std::fmt::Debug for OwnKernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.label())
    }
}

/// Code for GPUs.
struct Compiled {
    /// Index of the image by kernel name.
    modules: HashMap<String, usize>,
    resources: Vec<Resources>,
}

/// Exports and KERNEL lines of the shipped sources, parsed once.
struct Launchers {
    exports: Vec<Export>,
    lines: Vec<lines::Line>,
}

fn launchers() -> Result<&'static Launchers> {
    static PARSED: OnceLock<Launchers> = OnceLock::new();
    if let Some(parsed) = PARSED.get() {
        return Ok(parsed);
    }
    let broken = |why: String| Error::Runtime(format!("cannot parse the built-in kernels: {why}"));
    let mut exports = Vec::new();
    for (_, text) in shipped::FILES {
        exports.extend(exports::parse(text).map_err(broken)?);
    }
    let mut all = Vec::new();
    for (name, text) in shipped::FILES.iter().filter(|(name, _)| name.ends_with(".cu")) {
        all.extend(lines::read(&format!("kernels/{name}"), text, &exports).map_err(broken)?);
    }
    Ok(PARSED.get_or_init(|| Launchers { exports, lines: all }))
}

impl OwnFile {
    fn read(path: &Path) -> Result<(Self, Vec<Declaration>)> {
        let wrong = |why: String| {
            // The parsers' errors start with the line number.
            let line = why.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
            match line.and_then(|(number, why)| Some((number.parse().ok()?, why))) {
                Some((number, why)) => Error::data(path, number, None, why),
                None => Error::data(path, 0, None, why),
            }
        };
        let bytes = input::read(path, input::MAX_CONFIG).map_err(input::data_error(path))?;
        let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text".into()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_none_or(|e| e != "cu") || stem.is_empty() {
            return Err(wrong("is not a kernel file; its name must end in .cu".into()));
        }
        let known = launchers()?;
        let own = exports::parse(&text).map_err(wrong)?;
        for export in &own {
            if let Some(shipped) = known.exports.iter().find(|shipped| shipped.name == export.name)
                && shipped.item != export.item
            {
                return Err(wrong(format!(
                    "exports {} as {:?}, but this program was built with {:?}; a kernel file cannot change this value, so \
                     restore it or build mapl from these sources",
                    export.name, export.item, shipped.item
                )));
            }
        }
        let mut exports = known.exports.clone();
        exports.extend(own.into_iter().filter(|export| known.exports.iter().all(|other| other.name != export.name)));
        let found = lines::read(&path.display().to_string(), &text, &exports).map_err(wrong)?;
        if found.is_empty() {
            return Err(wrong("has no KERNEL or KERNELS line; kernels/README.md has their grammar".into()));
        }
        let mut new = Vec::new();
        for line in &found {
            match known.lines.iter().find(|shipped| shipped.declaration.name == line.declaration.name) {
                Some(shipped) => lines::compare(path, line, shipped)?,
                None => new.push(line.declaration.clone()),
            }
        }
        let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let headers = headers(folder)?;
        let declarations = found.into_iter().map(|line| line.declaration).collect();
        let source = Source { stem, path: path.to_owned(), declarations };
        let mut file = Self { path: path.to_owned(), hash: String::new(), source, headers, text };
        file.hash = file.digest(&[]).to_hex()[..DIGITS].to_owned();
        Ok((file, new))
    }

    /// Hash of the file, the headers of its folder, and the texts `others`.
    fn digest(&self, others: &[&str]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(self.text.as_bytes());
        for (name, contents) in &self.headers {
            add(name.as_bytes());
            add(contents);
        }
        others.iter().for_each(|text| add(text.as_bytes()));
        hasher.finalize()
    }

    /// Names of the entry points.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.source.declarations.iter().flat_map(|d| d.kernels.iter().map(|kernel| kernel.name.as_str()))
    }

    /// Path and hash of the file, for messages and records.
    pub fn label(&self) -> String {
        format!("{} ({})", self.path.display(), self.hash)
    }
}

/// Headers of a folder and of its subfolders `primitives` and `emulator`, in the order of their names.
fn headers(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for sub in ["", "primitives", "emulator"] {
        for extension in ["cuh", "h"] {
            for path in files_of(&folder.join(sub), extension).unwrap_or_default() {
                let bytes = input::read(&path, input::MAX_CONFIG).map_err(input::data_error(&path))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                found.push((format!("{sub}/{name}"), bytes));
            }
        }
    }
    found.sort();
    Ok(found)
}

impl OwnKernels {
    /// Reads one file, which may declare kernels without a launcher ([`Self::new_declarations`]).
    pub fn read_file(path: &Path) -> Result<Self> {
        let (file, new) = OwnFile::read(path)?;
        let new = new.into_iter().map(|declaration| (0, declaration)).collect();
        Ok(Self { files: vec![file], new, emulated: OnceLock::new(), compiled: OnceLock::new() })
    }

    /// Reads the kernel files of a folder. [`Error::Data`] if a file declares a kernel
    /// without a launcher.
    pub fn read_folder(folder: &Path) -> Result<Self> {
        let mut paths = files_of(folder, "cu").map_err(|why| Error::Usage(format!("{VARIABLE}: {why}")))?;
        paths.sort();
        if paths.is_empty() {
            return Err(Error::Usage(format!(
                "{VARIABLE}={}: the folder has no .cu file; copy kernels into it, or unset the variable",
                folder.display()
            )));
        }
        let mut files: Vec<OwnFile> = Vec::new();
        for path in &paths {
            let (file, new) = OwnFile::read(path)?;
            if let Some(declaration) = new.first() {
                return Err(Error::data(
                    path,
                    0,
                    None,
                    format!(
                        "no launcher has the kernel {}, so no command would run it; `mapl bench --kernel` runs it with a \
                         TOML file next to it",
                        declaration.name
                    ),
                ));
            }
            for name in file.kernels() {
                if let Some(other) = files.iter().find(|other| other.kernels().any(|known| known == name)) {
                    return Err(Error::data(path, 0, None, format!("{name} is in {} too", other.path.display())));
                }
            }
            files.push(file);
        }
        Ok(Self { files, new: Vec::new(), emulated: OnceLock::new(), compiled: OnceLock::new() })
    }

    /// The files.
    pub fn files(&self) -> &[OwnFile] {
        &self.files
    }

    /// Files with their hashes, in one line.
    pub fn label(&self) -> String {
        self.files.iter().map(OwnFile::label).collect::<Vec<_>>().join(", ")
    }

    /// Name and hash of every file, for `run.json`.
    pub fn hashes(&self) -> Vec<(String, String)> {
        self.files.iter().map(|file| (file.path.display().to_string(), file.hash.clone())).collect()
    }

    /// Identity of the kernels: file names without folders, and hashes.
    pub fn identity(&self) -> String {
        let one = |file: &OwnFile| format!("{}.cu {}", file.source.stem, file.hash);
        self.files.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// Names of all entry points that have a launcher.
    pub fn replaced(&self) -> Vec<&'static str> {
        let known = |name: &str| KERNELS.iter().find(|kernel| kernel.name == name).map(|kernel| kernel.name);
        self.files.iter().flat_map(OwnFile::kernels).filter_map(known).collect()
    }

    /// Declarations without a launcher.
    pub(crate) fn new_declarations(&self) -> impl Iterator<Item = &Declaration> {
        self.new.iter().map(|(_, declaration)| declaration)
    }

    /// Compiles and loads the kernels, unless that is done already.
    pub fn prepare(&self, target: Target) -> Result<()> {
        match target {
            Target::Emulator => {
                if self.emulated.get().is_none() {
                    let mut entries = HashMap::new();
                    for library in compiler::each(&self.files, |file| compiler::emulated(file, shipped::COMPILER))? {
                        entries.extend(library);
                    }
                    let _ = self.emulated.set(entries);
                }
            }
            Target::Gpu => {
                if self.compiled.get().is_none() {
                    let (mut modules, mut resources) = (HashMap::new(), Vec::new());
                    for (file, (fatbin, report)) in
                        self.files.iter().zip(compiler::each(&self.files, compiler::fatbin)?)
                    {
                        let module = code::add_image(fatbin);
                        modules.extend(file.kernels().map(|name| (name.to_owned(), module)));
                        resources.extend(super::generate::resources(&report));
                    }
                    let _ = self.compiled.set(Compiled { modules, resources });
                }
            }
        }
        Ok(())
    }

    /// Reports of ptxas, if the kernels were compiled for GPUs.
    pub fn resources(&self) -> Option<&[Resources]> {
        self.compiled.get().map(|compiled| &compiled.resources[..])
    }

    /// Returns a kernel without a launcher, for a launch that a TOML file describes. The kernel is leaked.
    pub(crate) fn kernel(&self, declaration: &Declaration, index: usize) -> Result<&'static Kernel> {
        let kernel = &declaration.kernels[index];
        let name: &'static str = kernel.name.clone().leak();
        let c_name = std::ffi::CString::new(name).map_err(|_| Error::Runtime(format!("{name} is not a C name")))?;
        let sizes: Vec<usize> = declaration.parameters.iter().map(|p| p.kind.bytes()).collect();
        Ok(Box::leak(Box::new(Kernel {
            name,
            c_name: Box::leak(c_name.into_boxed_c_str()),
            file: self.compiled.get().and_then(|c| c.modules.get(name)).map_or(0, |module| code::FIRST_IMAGE + module),
            threads: kernel.threads,
            cluster: kernel.cluster,
            coresident: kernel.coresident,
            early: kernel.early,
            parameters: sizes.leak(),
            emulated: self.emulated.get().and_then(|entries| entries.get(name).copied()),
        })))
    }
}

thread_local! {
    static SELECTED: Cell<Option<&'static OwnKernels>> = const { Cell::new(None) };
}
static ENVIRONMENT: OnceLock<&'static OwnKernels> = OnceLock::new();

/// The kernels of `MAPL_KERNELS`, read once; `None` if it is unset or empty.
pub fn of_environment() -> Result<Option<&'static OwnKernels>> {
    if let Some(kernels) = ENVIRONMENT.get() {
        return Ok(Some(*kernels));
    }
    let Some(folder) = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) else { return Ok(None) };
    let kernels = OwnKernels::read_folder(Path::new(&folder))?;
    Ok(Some(ENVIRONMENT.get_or_init(|| {
        complain(&format!("note: kernels of {VARIABLE}: {}", kernels.label()));
        Box::leak(Box::new(kernels))
    })))
}

/// The kernels of `MAPL_KERNELS`, if a device of this name runs kernels. `None` for other devices, and before
/// the variable is read.
pub fn used_on(device: &str) -> Option<&'static OwnKernels> {
    let has_kernels = device == Driver::NAME || device == Emulator::NAME;
    if has_kernels { ENVIRONMENT.get().copied() } else { None }
}

/// First digits of the hash of the shipped kernel files.
pub(crate) fn shipped_hash() -> String {
    compiler::hash_of(shipped::FILES)[..DIGITS].to_owned()
}

/// Whether nvcc is found, so that kernels can be compiled for GPUs.
pub fn has_nvcc() -> bool {
    find_nvcc().is_some()
}

/// Prepares the kernels of `MAPL_KERNELS` for a device that is being opened.
pub(super) fn prepare_environment(target: Target) -> Result<()> {
    of_environment()?.map_or(Ok(()), |kernels| kernels.prepare(target))
}

/// Runs `work` with these kernels instead of the shipped ones, on this thread.
pub fn with<R>(kernels: &'static OwnKernels, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<&'static OwnKernels>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SELECTED.set(self.0);
        }
    }
    let _restore = Restore(SELECTED.replace(Some(kernels)));
    work()
}

fn selected() -> Option<&'static OwnKernels> {
    SELECTED.get().or_else(|| ENVIRONMENT.get().copied())
}

/// The custom entry point of a kernel on the emulator, if there is one.
pub(super) fn emulated(kernel: &Kernel) -> Option<Entry> {
    selected()?.emulated.get()?.get(kernel.name).copied()
}

/// File number of a kernel on a GPU: that of the custom kernel if there is one, else that of the shipped
/// kernel.
pub(super) fn file_of(kernel: &Kernel) -> usize {
    let module = || selected()?.compiled.get()?.modules.get(kernel.name).copied();
    module().map_or(kernel.file, |module| code::FIRST_IMAGE + module)
}
