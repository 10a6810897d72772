//! Runs the fuzz targets' functions on their seeds and on deterministic mutations of the seeds.

#[path = "../../fuzz/entries.rs"]
mod entries;

use std::path::{Path, PathBuf};

use mapl::rng::Rng;

/// Number of mutated inputs per target.
const MUTATIONS: usize = 4000;

/// Tokens that are significant in JSON, safetensors or Jinja.
const PIECES: [&[u8]; 26] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"-1",
    b"1e400",
    b"18446744073709551616",
    b"\\ud800",
    b"\0",
    b"\xff",
    b"\n",
    b"{{ ",
    b" }}",
    b"{% ",
    b" %}",
    b"range(9)",
    b"|length",
    b" * 3",
    b"NaN",
    b"0.0",
    b"\x1f\x8b",
    b"[[[[[[[[[[",
];

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "{target} has {} seeds", paths.len());
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Applies one to four mutations: flipped bits, changed bytes, removed or repeated byte ranges,
/// inserted pieces, or splices from another seed.
fn mutate(bytes: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(out.len() + 1);
        let end = (at + 1 + rng.below(16)).min(out.len());
        match rng.below(7) {
            0 if at < out.len() => out[at] ^= 1 << rng.below(8),
            1 if at < out.len() => out[at] = rng.below(256) as u8,
            2 => out.truncate(at),
            3 => drop(out.drain(at..end)),
            4 => {
                let run = out[at..end].to_vec();
                drop(out.splice(at..at, run.repeat(1 + rng.below(9))));
            }
            5 if !other.is_empty() => {
                let from = rng.below(other.len());
                let to = (from + 1 + rng.below(64)).min(other.len());
                drop(out.splice(at..end, other[from..to].iter().copied()));
            }
            _ => drop(out.splice(at..at, PIECES[rng.below(PIECES.len())].iter().copied())),
        }
    }
    out
}

/// Runs an input. On a panic, saves the input to a file and names it.
fn run(target: &str, name: &str, bytes: &[u8], entry: fn(&[u8])) {
    let outcome = std::panic::catch_unwind(|| entry(bytes));
    if outcome.is_err() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
        std::fs::write(&kept, bytes).unwrap();
        panic!("{target}: {name} violated an invariant; the input is in {}", kept.display());
    }
}

fn all(target: &str, entry: fn(&[u8])) {
    let seeds = seeds(target);
    for (path, bytes) in &seeds {
        run(target, &path.display().to_string(), bytes, entry);
    }
    let mut rng = Rng::keyed(7, &["mutations", target]);
    for i in 0..MUTATIONS {
        let (path, bytes) = &seeds[rng.below(seeds.len())];
        let other = &seeds[rng.below(seeds.len())].1;
        run(target, &format!("mutation {i} of {}", path.display()), &mutate(bytes, other, &mut rng), entry);
    }
}

#[test]
fn rows_of_any_bytes_are_read_or_refused() {
    all("groups", entries::groups);
}

#[test]
fn weights_of_any_bytes_are_read_or_refused() {
    all("weights", entries::weights);
}

#[test]
fn configurations_of_any_bytes_are_read_or_refused() {
    all("config", entries::config);
}

#[test]
fn templates_of_any_bytes_are_rendered_or_refused() {
    all("template", entries::template);
}

#[test]
fn valid_seeds_are_accepted() {
    use mapl::data::source::{ReadOptions, read_files};
    use mapl::data::template::ChatTemplate;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for name in ["group", "group-chat", "text-pairs", "chat-implicit", "ultrafeedback", "human-assistant", "gzip"] {
        let rows = read_files(&[folder.join("groups").join(name)], &ReadOptions::default());
        assert!(rows.is_ok_and(|rows| !rows.is_empty()), "{name}");
    }
    for name in ["chatml", "tools", "methods"] {
        let text = std::fs::read_to_string(folder.join("template").join(name)).unwrap();
        assert!(ChatTemplate::compile(text.split('\0').next().unwrap(), Vec::new()).is_ok(), "{name}");
    }
}
