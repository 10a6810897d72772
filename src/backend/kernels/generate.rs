//! Text that `build.rs` writes: typed launchers, the table of kernels with what ptxas says of them, and the emulator's
//! entry points.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::grammar::{Element, Kernel, Kind, Parameter};

/// A kernel file.
pub struct Source {
    /// File name without `.cu`.
    pub stem: String,
    pub path: PathBuf,
    pub kernels: Vec<Kernel>,
}

/// What ptxas reports of a kernel for one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub kernel: String,
    /// `sm_80` or `sm_90a`.
    pub target: String,
    pub registers: u32,
    /// Bytes.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    pub shared: u32,
}

/// Reads the output of `ptxas -v`.
pub fn resources(report: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in report.lines() {
        let number = |before: &str| -> u32 {
            let words: Vec<&str> = line.split(before).next().unwrap_or("").split_whitespace().collect();
            words.last().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut parts = rest.split('\'');
            let (kernel, target) = (parts.next().unwrap_or("").into(), parts.nth(1).unwrap_or("").into());
            found.push(Resources { kernel, target, ..Resources::default() });
        } else if let Some(last) = found.last_mut() {
            if line.contains("bytes stack frame") {
                last.stack = number(" bytes stack frame");
                last.spill_stores = number(" bytes spill stores");
                last.spill_loads = number(" bytes spill loads");
            } else if line.contains("Used ") {
                last.registers = number(" registers");
                last.shared = if line.contains(" bytes smem") { number(" bytes smem") } else { 0 };
            }
        }
    }
    found.sort_by(|a, b| (&a.kernel, &a.target).cmp(&(&b.kernel, &b.target)));
    found
}

/// Entry points of a file under names of the emulator.
pub fn emulated(source: &Source) -> String {
    let mut text = format!("#include \"{}.cu\"\n#include \"emulator/call.h\"\n\n", source.stem);
    for kernel in &source.kernels {
        let name = &kernel.name;
        let _ = writeln!(
            text,
            "extern \"C\" void emulated_{name}(void** parameters) {{\n    emulator::call({name}, parameters);\n}}\n"
        );
    }
    text
}

/// A kernel, or a pair of kernels `_f32` and `_bf16` that differ in the storage of activations alone.
struct Launcher<'a> {
    name: &'a str,
    /// Places in the table of kernels: of the only one, or of those for f32 and bf16.
    places: Vec<usize>,
    kernel: &'a Kernel,
}

fn launchers_of(sources: &[Source]) -> Vec<Launcher<'_>> {
    let all: Vec<&Kernel> = sources.iter().flat_map(|source| &source.kernels).collect();
    let place: BTreeMap<&str, usize> = all.iter().enumerate().map(|(i, k)| (k.name.as_str(), i)).collect();
    let mut launchers = Vec::new();
    for (i, kernel) in all.iter().enumerate() {
        let twin = |of: &str, other: &str| {
            kernel.name.strip_suffix(of).and_then(|base| place.get(format!("{base}{other}").as_str()).copied())
        };
        if let Some(f32_place) = twin("_bf16", "_f32") {
            let name = &kernel.name[..kernel.name.len() - "_bf16".len()];
            launchers.push(Launcher { name, places: vec![f32_place, i], kernel });
        } else if twin("_f32", "_bf16").is_none() {
            launchers.push(Launcher { name: &kernel.name, places: vec![i], kernel });
        }
    }
    launchers
}

fn pascal(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}

/// Rust type of a parameter; `A` stands for the storage of activations in a pair.
fn rust_type(parameter: &Parameter, pair: bool) -> String {
    let element = |element| match element {
        Element::Bf16 if pair => "A",
        Element::Bf16 => "bf16",
        Element::F32 => "f32",
        Element::F64 => "f64",
        Element::I32 => "i32",
    };
    match parameter.kind {
        Kind::Read(of) => format!("Read<{}>", element(of)),
        Kind::Write(of) => format!("Write<{}>", element(of)),
        Kind::Int => "i32".into(),
        Kind::Long => "i64".into(),
        Kind::Float => "f32".into(),
        Kind::Double => "f64".into(),
        Kind::TensorMap => "TensorMap".into(),
    }
}

/// The release in what `nvcc --version` prints, as the driver counts: 13000 is 13.0.
pub fn cuda_version(text: &str) -> Option<i32> {
    let release = text.split("release ").nth(1)?;
    let (major, minor) = release.split([',', '\n']).next()?.trim().split_once('.')?;
    Some(major.parse::<i32>().ok()? * 1000 + minor.parse::<i32>().ok()? * 10)
}

/// `launchers.rs`: `compiled` holds the version of CUDA and what ptxas says, or `None` without nvcc.
pub fn launchers(sources: &[Source], compiled: Option<(i32, &[Resources])>, emulated: bool) -> String {
    let mut text = String::from("// Made by build.rs from the KERNEL lines of kernels/*.cu.\n\n");
    table(&mut text, sources, emulated);
    let version = compiled.map(|(version, _)| version);
    let _ = writeln!(text, "/// Version of CUDA of the compiled code: 13000 is 13.0.");
    let _ = writeln!(text, "pub const CUDA_VERSION: Option<i32> = {version:?};\n");
    let _ = writeln!(text, "/// Compiled code by file; empty without nvcc.");
    let _ = writeln!(text, "pub static FATBINS: &[&[u8]] = &[");
    for source in sources.iter().filter(|_| compiled.is_some()) {
        let _ = writeln!(text, "    include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}.fatbin\")),", source.stem);
    }
    let _ = writeln!(text, "];\n\n/// What ptxas says of every kernel and target; empty without nvcc.");
    let _ = writeln!(text, "pub static RESOURCES: &[Resources] = &[");
    for r in compiled.map_or(&[][..], |(_, resources)| resources) {
        let _ = writeln!(
            text,
            "    Resources {{ kernel: {:?}, target: {:?}, registers: {}, stack: {}, spill_stores: {}, spill_loads: {}, \
             shared: {} }},",
            r.kernel, r.target, r.registers, r.stack, r.spill_stores, r.spill_loads, r.shared
        );
    }
    let _ = writeln!(text, "];\n");
    for launcher in launchers_of(sources) {
        emit(&mut text, &launcher);
    }
    text
}

fn table(text: &mut String, sources: &[Source], emulated: bool) {
    if emulated {
        let _ = writeln!(text, "unsafe extern \"C\" {{");
        for kernel in sources.iter().flat_map(|source| &source.kernels) {
            let _ = writeln!(text, "    fn emulated_{}(parameters: *mut *mut std::ffi::c_void);", kernel.name);
        }
        let _ = writeln!(text, "}}\n");
    }
    let _ = writeln!(text, "/// Every entry point.\npub static KERNELS: &[Kernel] = &[");
    for (file, source) in sources.iter().enumerate() {
        for k in &source.kernels {
            let entry = if emulated { format!("Some(emulated_{})", k.name) } else { "None".into() };
            let sizes: Vec<_> = k.parameters.iter().map(|p| p.kind.bytes()).collect();
            let _ = writeln!(
                text,
                "    Kernel {{ name: {:?}, c_name: c{:?}, file: {file}, threads: {}, cluster: {}, coresident: {}, early: {}, \
                 parameters: &{sizes:?}, emulated: {entry} }},",
                k.name, k.name, k.threads, k.cluster, k.coresident, k.early
            );
        }
    }
    let _ = writeln!(text, "];\n");
}

fn emit(text: &mut String, launcher: &Launcher<'_>) {
    let pair = launcher.places.len() == 2;
    let name = pascal(launcher.name);
    let generics = if pair { "<A: Element>" } else { "" };
    let used = if pair { "<A>" } else { "" };
    let _ = writeln!(text, "/// Parameters of `{}`.", launcher.name);
    let _ = writeln!(text, "pub struct {name}{generics} {{");
    for p in &launcher.kernel.parameters {
        let _ = writeln!(text, "    pub {}: {},", field(&p.name), rust_type(p, pair));
    }
    let _ = writeln!(text, "}}\n\nimpl{generics} {name}{used} {{");
    let choice = match launcher.places.as_slice() {
        [f32_place, bf16_place] => format!("A::choose({f32_place}, {bf16_place})"),
        places => places[0].to_string(),
    };
    let _ = writeln!(
        text,
        "    /// The entry point.\n    pub fn kernel() -> &'static Kernel {{\n        &KERNELS[{choice}]\n    }}\n"
    );
    let _ = writeln!(
        text,
        "    /// Enqueues the kernel on `device`.\n    pub fn launch<D: Device>(mut self, device: &D, grid: impl Into<Grid>, \
         shared_bytes: usize) -> Result<()> {{"
    );
    let _ = writeln!(text, "        let mut parameters = [");
    for p in &launcher.kernel.parameters {
        let _ = writeln!(text, "            (&raw mut self.{}).cast::<std::ffi::c_void>(),", field(&p.name));
    }
    let _ = writeln!(text, "        ];");
    let _ = writeln!(
        text,
        "        // SAFETY: the pointers are to this struct's fields, whose number, order and types are those of the kernel's \
         own\n        // line, from which this function was made.\n        unsafe {{ device.launch(Self::kernel(), grid.into(), \
         shared_bytes, &mut parameters) }}\n    }}\n}}\n"
    );
}

/// A parameter's name as a Rust field.
fn field(name: &str) -> String {
    match name {
        "in" | "do" | "ref" | "type" | "loop" | "where" | "use" | "move" => format!("{name}_"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_of_nvcc_is_read() {
        let text =
            "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0\n";
        assert_eq!(super::cuda_version(text), Some(13000));
        assert_eq!(super::cuda_version("tools, release 12.9\n"), Some(12090));
        assert_eq!(super::cuda_version("clang version 20"), None);
    }

    use super::super::grammar::parse;
    use super::*;

    #[test]
    fn a_pair_of_kernels_is_one_launcher_generic_over_the_storage() {
        let text = "KERNEL(64, a_f32)(const float* x, float* y, int n) {}\nKERNEL(64, a_bf16)(const bf16* x, float* y, int n) {}\n";
        let source = Source { stem: "a".into(), path: "a.cu".into(), kernels: parse(text).unwrap() };
        let made = launchers(&[source], None, false);
        assert!(made.contains("pub struct A<A: Element>") || made.contains("pub struct A"), "{made}");
        assert!(made.contains("pub x: Read<A>") && made.contains("pub y: Write<f32>"), "{made}");
        assert!(made.contains("A::choose(0, 1)"), "{made}");
    }

    #[test]
    fn the_report_of_ptxas_is_read() {
        let report = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'norm_fwd_bf16' for 'sm_80'
ptxas info    : Function properties for norm_fwd_bf16
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem, 408 bytes cmem[0]
";
        let expected = Resources {
            kernel: "norm_fwd_bf16".into(),
            target: "sm_80".into(),
            registers: 32,
            stack: 8,
            spill_stores: 4,
            spill_loads: 12,
            shared: 128,
        };
        assert_eq!(resources(report), [expected]);
    }
}
