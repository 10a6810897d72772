//! The documents tell the truth: paths exist, commands exist, examples parse, tables agree with the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mapl::Error;
use mapl::data::group::PreferenceGroup;
use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Fenced code blocks: language and content.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let content: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            found.push((language.to_owned(), content.join("\n")));
        }
    }
    found
}

/// Lines under a heading up to the next one of the same level.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}")) + 4;
    let rest = &text[start..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// Files with an extension under a folder, in order of path.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else if entry.extension().is_some_and(|e| e == extension) {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_path_of_the_tree_exists_and_every_part_is_in_it() {
    let readme = read("README.md");
    let tree = blocks(section(&readme, "The tree")).remove(0).1;
    let listed: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(listed.len() > 20, "the tree is too short to be one: {listed:?}");
    let missing: Vec<_> = listed.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "README's tree lists what does not exist: {missing:?}");
    for module in std::fs::read_dir(root().join("src")).unwrap() {
        let name = format!("src/{}", module.unwrap().file_name().to_string_lossy());
        assert!(listed.iter().any(|path| path.starts_with(&name)), "README's tree lacks {name}");
    }
}

#[test]
fn every_path_and_link_in_the_documents_exists() {
    let path = Regex::new(r"`((?:src|tests|benches|\.ci)/[\w./-]*)`").unwrap();
    let link = Regex::new(r"\]\(([^)#:]+)\)").unwrap();
    let mut seen = 0;
    for document in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = read(document);
        for found in path.captures_iter(&text).chain(link.captures_iter(&text)) {
            let name = &found[1];
            // A module may be named without its extension.
            let exists = root().join(name).exists() || root().join(format!("{name}.rs")).exists();
            assert!(exists, "{document} names {name}, which does not exist");
            seen += 1;
        }
    }
    assert!(seen >= 15, "the patterns find too little: {seen}");
}

/// Commands of the README's table, as `data build`.
fn documented_commands() -> BTreeSet<String> {
    let readme = read("README.md");
    let row = Regex::new(r"(?m)^\| `mapl ([a-z -]+)` \|").unwrap();
    row.captures_iter(section(&readme, "Commands")).map(|c| c[1].to_owned()).collect()
}

#[test]
fn every_command_of_the_examples_is_documented() {
    let commands = documented_commands();
    assert!(commands.len() >= 11, "{commands:?}");
    let mut seen = 0;
    for document in ["README.md", "CONTRIBUTING.md"] {
        for (_, code) in blocks(&read(document)).into_iter().filter(|(language, _)| language == "sh") {
            for line in code.replace("\\\n", " ").lines().map(str::trim).filter(|line| !line.is_empty()) {
                seen += 1;
                if line == ".ci/run" {
                    continue;
                }
                let call = line.strip_prefix("mapl ").or_else(|| line.strip_prefix("cargo run --release -- "));
                let Some(call) = call else {
                    let known = ["cargo build --release", "cargo test --release", "cargo install --path ."];
                    assert!(known.contains(&line), "{document}: {line}");
                    continue;
                };
                let words: Vec<&str> = call.split_whitespace().take_while(|word| !word.starts_with('-')).collect();
                assert!(commands.contains(&words.join(" ")), "{document} uses an undocumented command: {line}");
            }
        }
    }
    assert!(seen >= 8, "the examples are gone: {seen}");
}

#[test]
fn every_documented_command_is_in_the_program() {
    let sources: String = files("src/cli", "rs").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for command in documented_commands() {
        for word in command.split(' ') {
            let variant = word[..1].to_uppercase() + &word[1..];
            let found = Regex::new(&format!(r"\b{variant}\b")).unwrap().is_match(&sources);
            assert!(found, "`mapl {command}` is documented, but src/cli has no {variant}");
        }
    }
}

#[test]
fn the_quick_start_is_the_two_commands_and_ci_runs_both() {
    let readme = read("README.md");
    let commands = blocks(section(&readme, "Quick start")).remove(0).1;
    let lines: Vec<&str> = commands.lines().collect();
    assert_eq!(lines, ["cargo run --release -- quickstart", "cargo test --release"]);
    let ci = read(".ci/run");
    for line in lines {
        assert!(ci.contains(line), ".ci/run does not run `{line}`");
    }
    for check in ["cargo fmt --all --check", "-D warnings", "RUSTDOCFLAGS=-Dwarnings", "set -euo pipefail"] {
        assert!(ci.contains(check), ".ci/run lacks {check}");
    }
}

#[test]
fn group_rows_in_the_readme_are_valid() {
    let readme = read("README.md");
    let rows: Vec<_> = blocks(&readme).into_iter().filter(|(language, _)| language == "json").collect();
    assert!(!rows.is_empty());
    for (_, row) in rows {
        let group: PreferenceGroup = serde_json::from_str(&row).unwrap();
        group.validate().unwrap();
    }
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    let readme = read("README.md");
    let row = Regex::new(r"(?m)^\| ([0-9, ]+) \| (.+) \|$").unwrap();
    let documented: BTreeSet<i32> = row
        .captures_iter(section(&readme, "Commands"))
        .flat_map(|c| c[1].split(", ").map(|n| n.trim().parse().unwrap()).collect::<Vec<_>>())
        .collect();
    let path = Path::new("x");
    let io = || std::io::Error::other("x");
    let stopped = |signal| Error::Stopped { signal, step: 1, path: path.into() };
    let mut actual: BTreeSet<i32> = [
        Error::Usage(String::new()),
        Error::data(path, 1, None, ""),
        Error::Diverged(String::new()),
        Error::Device(String::new()),
        Error::model(path, ""),
        Error::Memory(String::new()),
        Error::io("read", path)(io()),
        stopped(2),
        stopped(15),
    ]
    .iter()
    .map(Error::exit_code)
    .collect();
    actual.insert(0);
    assert_eq!(documented, actual);
}

#[test]
fn every_switch_of_the_environment_is_documented_and_used() {
    let switch = Regex::new(r"\bMAPL_[A-Z][A-Z_]*").unwrap();
    let mut used = BTreeSet::new();
    for folder in ["src", "tests", "benches"] {
        for file in files(folder, "rs") {
            let text = std::fs::read_to_string(&file).unwrap();
            used.extend(switch.find_iter(&text).map(|m| m.as_str().to_owned()));
        }
    }
    let readme = read("README.md");
    let documented: BTreeSet<String> =
        switch.find_iter(section(&readme, "Environment")).map(|m| m.as_str().to_owned()).collect();
    assert_eq!(documented, used, "left: README's table, right: the sources");
}

#[test]
fn source_files_keep_the_documented_length_and_names() {
    let sources: Vec<_> = ["src", "tests", "benches"].iter().flat_map(|folder| files(folder, "rs")).collect();
    assert!(sources.len() > 20);
    for file in sources {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines < 500, "{}: {lines} lines; CONTRIBUTING.md allows fewer than 500", file.display());
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!["utils", "util", "misc", "helpers"].contains(&stem.as_str()), "{}", file.display());
    }
}

#[test]
fn both_licences_are_the_standard_texts() {
    let apache = read("LICENSE-APACHE");
    // BLAKE3 of the text that the Apache Software Foundation publishes.
    assert_eq!(blake3::hash(apache.as_bytes()).to_hex().as_str(), APACHE_HASH);
    let mit = read("LICENSE-MIT");
    assert!(mit.starts_with("MIT License\n\nCopyright (c)") && mit.contains("the mapl authors"));
    assert!(read("Cargo.toml").contains("license = \"MIT OR Apache-2.0\""));
}

const APACHE_HASH: &str = "83cb3a2fcf829b6138e095b083016c34ddcdfa07b68d38782722c14fcf85ace6";
