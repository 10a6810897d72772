//! `mapl env`: capabilities of this machine and this build, and the ranks of a launcher.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::json;

use crate::backend::cpu::{Cpu, Units};
use crate::backend::kernels::device::Device as _;
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::Emulator;
use crate::backend::kernels::launchers::RESOURCES;
use crate::backend::kernels::tile_file::{self, Source};
use crate::backend::reference::Reference;
use crate::backend::{Backend, OPS};
use crate::model::presets;
use crate::ranks::world;
use crate::terminal::{emit, emit_exactly};
use crate::{COMMIT, Result};

/// Arguments of `env`.
#[derive(Args, Clone, Debug)]
pub struct EnvArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List the compiled kernels and their targets
    #[arg(long)]
    kernels: bool,
}

/// Prints version, CPU features, devices and presets.
pub fn run(args: &EnvArgs) -> Result<()> {
    let threads = rayon::current_num_threads();
    let features = cpu_features();
    let units = Units::chosen()?.report();
    let devices = devices();
    let kernels = kernels();
    let ranks = world::describe();
    if args.json {
        let presets: Vec<_> = presets::list().iter().map(|p| p.name).collect();
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT, "os": std::env::consts::OS, "arch": std::env::consts::ARCH,
            "threads": threads, "cpu_features": features,
            "units": units.iter().map(|unit| (unit.name, &unit.state)).collect::<BTreeMap<_, _>>(), "devices": devices, "ops": OPS, "kernels": kernels, "presets": presets,
            "tiles": tiles(), "ranks": BTreeMap::from(ranks),
        });
        return emit_exactly(&format!("{value:#}"));
    }
    let mut lines = Vec::new();
    let mut say = |line: String| lines.push(line);
    let (version, os, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    say(format!("mapl {version} (commit {COMMIT}) on {os} {arch}"));
    say(format!("threads       {threads} (RAYON_NUM_THREADS changes it)"));
    say(format!("vector units  {}", if features.is_empty() { "none known".into() } else { features.join(" ") }));
    for unit in &units {
        say(format!("  {:<16} {}", unit.name, unit.state));
    }
    say("devices".into());
    for (name, what) in &devices {
        say(format!("  {name:<16} {what}"));
    }
    say("ranks".into());
    for (name, what) in &ranks {
        say(format!("  {name:<16} {what}"));
    }
    for line in tiles() {
        say(format!("tiles         {line}"));
    }
    say(format!("ops           {}", OPS.len()));
    match kernels.is_empty() {
        true => {
            say("kernels       none in this build, because nvcc was not found at build time (kernels/README.md)".into());
        }
        false => {
            let targets: BTreeSet<&str> = kernels.values().flatten().copied().collect();
            let targets: Vec<&str> = targets.into_iter().collect();
            let list = if args.kernels { "" } else { "; --kernels lists them" };
            say(format!("kernels       {} for {}{list}", kernels.len(), targets.join(" ")));
        }
    }
    for (name, targets) in kernels.iter().filter(|_| args.kernels) {
        say(format!("  {name:<28} {}", targets.join(" ")));
    }
    say("presets".into());
    for preset in presets::list() {
        say(format!("  {:<16} {}", preset.name, preset.summary));
    }
    emit(&lines.join("\n"))
}

/// Name and description of every device, or the reason why it cannot be used here.
fn devices() -> BTreeMap<&'static str, String> {
    let cuda = match Driver::new(0) {
        Ok(driver) => {
            let p = driver.properties();
            let (major, minor) = p.compute_capability;
            format!("{}, sm_{major}{minor}, {} multiprocessors; bf16 or f32", p.name, p.processors)
        }
        Err(why) => why.to_string(),
    };
    let emulator = match Emulator::new() {
        Ok(_) => "the kernels on the CPU; f32 or bf16".to_owned(),
        Err(why) => why.to_string(),
    };
    BTreeMap::from([
        (Cpu::<f32>::NAME, "f32 or bf16".to_owned()),
        (Driver::NAME, cuda),
        (Emulator::NAME, emulator),
        (Reference::NAME, "f64".to_owned()),
    ])
}

/// Sources of the constants of the tile choice, for the GPU and the emulator of this machine.
fn tiles() -> Vec<String> {
    let mut cards: Vec<String> = Driver::new(0).iter().map(|driver| driver.properties().name.clone()).collect();
    cards.extend(Emulator::new().iter().map(|emulator| emulator.properties().name.clone()));
    let line = |card: &String| match tile_file::source(card) {
        Source::BuiltIn => format!("{card}: built in, fitted on an H200"),
        Source::File(path, file) => {
            format!("{card}: {}, fitted to {} times (error {:.1}%)", path.display(), file.times, 100.0 * file.error)
        }
        Source::Ignored(path, why) => format!("{card}: built in, since {} {why}", path.display()),
    };
    cards.iter().map(line).collect()
}

/// Compiled kernels and their target architectures.
fn kernels() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut targets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resources in RESOURCES {
        targets.entry(resources.kernel).or_default().push(resources.target);
    }
    targets
}

/// CPU vector extensions that GEMMs use.
pub(super) fn cpu_features() -> Vec<&'static str> {
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        for (name, present) in [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ] {
            if present {
                features.push(name);
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    features.push("neon");
    features
}
