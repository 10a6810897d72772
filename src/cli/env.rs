//! `mapl env`: what this machine and this build can do.

use clap::Args;
use serde_json::json;

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::reference::Reference;
use crate::backend::{Backend, OPS};
use crate::model::presets;
use crate::train::console::say;

/// Arguments of `env`.
#[derive(Args, Clone, Debug)]
pub struct EnvArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints version, processor, devices and presets.
pub fn run(args: &EnvArgs) -> Result<()> {
    let threads = rayon::current_num_threads();
    let features = cpu_features();
    let devices = [Cpu::NAME, Reference::NAME];
    if args.json {
        let presets: Vec<_> = presets::list().iter().map(|p| p.name).collect();
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"), "os": std::env::consts::OS, "arch": std::env::consts::ARCH,
            "threads": threads, "cpu_features": features, "devices": devices, "ops": OPS, "presets": presets,
        });
        say(&format!("{value:#}"));
        return Ok(());
    }
    say(&format!("mapl {} on {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH));
    say(&format!("threads       {threads} (RAYON_NUM_THREADS changes it)"));
    say(&format!("vector units  {}", if features.is_empty() { "none known".into() } else { features.join(" ") }));
    say(&format!("devices       {} (f32), {} (f64)", devices[0], devices[1]));
    say(&format!("ops           {}", OPS.len()));
    say("presets");
    for preset in presets::list() {
        say(&format!("  {:<16} {}", preset.name, preset.summary));
    }
    Ok(())
}

/// Vector extensions that matrix products use.
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
