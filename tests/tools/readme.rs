//! Checks the documents: paths exist, commands exist, examples parse, tables agree with the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args as _, Command, CommandFactory as _};
use mapl::Error;
use mapl::cli::Cli;
use mapl::data::group::PreferenceGroup;
use mapl::data::options::BuildArgs;
use mapl::loss::objective::LossOptions;
use regex::Regex;
use serde_json::Value;

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

/// Every document for readers, relative to the root.
fn documents() -> Vec<String> {
    let mut all: Vec<String> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned).to_vec();
    all.extend(["benches", "kernels", "tests", "fuzz"].map(|folder| format!("{folder}/README.md")));
    let pages = files("docs", "md");
    all.extend(pages.iter().map(|page| page.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()));
    all
}

/// Anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = Regex::new(r"(?m)^#+ (.+)$").unwrap();
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    heading
        .captures_iter(text)
        .map(|c| c[1].to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
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
    let page = read("docs/library.md");
    let tree = blocks(section(&page, "Source tree")).remove(0).1;
    let listed: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(listed.len() > 20, "the tree is too short to be one: {listed:?}");
    let missing: Vec<_> = listed.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "the tree of docs/library.md lists what does not exist: {missing:?}");
    let modules = section(&page, "Modules");
    for module in std::fs::read_dir(root().join("src")).unwrap() {
        let name = module.unwrap().file_name().into_string().unwrap();
        assert!(listed.iter().any(|path| path.starts_with(&format!("src/{name}"))), "the tree lacks src/{name}");
        let stem = name.trim_end_matches(".rs");
        let documented = modules.contains(&format!("| `{stem}` |"));
        assert!(documented || ["lib", "main"].contains(&stem), "docs/library.md does not list the module {stem}");
    }
}

#[test]
fn every_path_and_link_in_the_documents_exists() {
    let path = Regex::new(r"`((?:src|tests|benches|docs|\.ci)/[\w./-]*)`").unwrap();
    let link = Regex::new(r#"\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)""#).unwrap();
    let mut seen = 0;
    for document in documents() {
        let text = read(&document);
        for found in path.captures_iter(&text) {
            let name = &found[1];
            // A module may be named without its extension.
            let exists = root().join(name).exists() || root().join(format!("{name}.rs")).exists();
            assert!(exists, "{document} names {name}, which does not exist");
            seen += 1;
        }
        for found in link.captures_iter(&text) {
            let target = found.get(1).or(found.get(2)).unwrap().as_str();
            if target.starts_with("https://") {
                continue;
            }
            let (name, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match name {
                "" => root().join(&document),
                name => root().join(&document).parent().unwrap().join(name),
            };
            assert!(file.exists(), "{document} links to {target}, which does not exist");
            if !anchor.is_empty() {
                let known = anchors(&std::fs::read_to_string(&file).unwrap());
                assert!(known.contains(anchor), "{document} links to {target}; the headings are {known:?}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 60, "the patterns find too little: {seen}");
}

#[test]
fn the_readme_is_short() {
    assert!(read("README.md").lines().count() <= 150);
}

#[test]
fn every_test_target_in_the_documents_exists() {
    let name = Regex::new(r#"(?s)\[\[test\]\]\s*name = "(\w+)""#).unwrap();
    let manifests = read("Cargo.toml") + &read("tests/Cargo.toml");
    let targets: BTreeSet<&str> = name.captures_iter(&manifests).map(|c| c.extract::<1>().1[0]).collect();
    let used = Regex::new(r"--test (\w+)").unwrap();
    for document in documents() {
        for found in used.captures_iter(&read(&document)) {
            assert!(
                targets.contains(&found[1]),
                "{document} names the test target {}; there are {targets:?}",
                &found[1]
            );
        }
    }
}

#[test]
fn the_results_are_those_of_the_record() {
    let page = read("docs/evaluation.md");
    let record: Value = serde_json::from_str(&read("benches/record/quickstart/2026-12-01-d4d17f9.json")).unwrap();
    let start = page.find("<!-- results: begin").unwrap();
    let table = &page[start..page.find("<!-- results: end").unwrap()];
    let cells = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
    let rows: Vec<Vec<String>> = table.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    let header = &rows[0];
    let runs = record["runs"].as_array().unwrap();
    assert_eq!(rows.len(), 2 + runs.len());
    for (row, run) in rows[2..].iter().zip(runs) {
        assert_eq!(row[1], run["name"].as_str().unwrap());
        for (name, cell) in header.iter().zip(row).skip(2).filter(|(name, _)| !name.is_empty()) {
            assert_eq!(cell.parse::<f64>().unwrap(), run[name].as_f64().unwrap(), "{} of {}", name, row[1]);
        }
    }
    for fact in ["commit", "device"] {
        assert!(table.contains(record[fact].as_str().unwrap()), "{fact}");
    }
}

/// Commands of the table in docs/commands.md, as `data build`.
fn documented_commands() -> BTreeSet<String> {
    let row = Regex::new(r"(?m)^\| `mapl ([a-z -]+)`").unwrap();
    row.captures_iter(&read("docs/commands.md")).map(|c| c[1].to_owned()).collect()
}

#[test]
fn every_command_of_the_examples_is_documented() {
    let commands = documented_commands();
    assert!(commands.len() >= 11, "{commands:?}");
    let mut seen = 0;
    let pages = documents().into_iter().filter(|name| !name.contains('/') || name.starts_with("docs/"));
    for document in pages {
        for (_, code) in blocks(&read(&document)).into_iter().filter(|(language, _)| language == "sh") {
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
                let known = commands.iter().any(|known| format!("{call} ").starts_with(&format!("{known} ")));
                assert!(known, "{document} uses an undocumented command: {line}");
            }
        }
    }
    assert!(seen >= 8, "the examples are gone: {seen}");
}

#[test]
fn the_documented_commands_are_those_of_the_program() {
    let program = Cli::command();
    for documented in documented_commands() {
        let mut command = &program;
        for word in documented.split(' ') {
            let found = command.find_subcommand(word);
            command = found.unwrap_or_else(|| panic!("`mapl {documented}` is documented, but there is no {word}"));
        }
    }
    let documented = documented_commands();
    for command in program.get_subcommands().map(Command::get_name) {
        let found = documented.iter().any(|known| known.split(' ').next() == Some(command));
        assert!(found, "docs/commands.md lacks `mapl {command}`");
    }
}

/// Long flags of a command and of its subcommands.
fn flags(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_long()).map(|long| format!("--{long}"));
    own.chain(command.get_subcommands().flat_map(flags)).collect()
}

#[test]
fn every_option_of_mapl_is_documented() {
    let page = read("docs/mapl.md");
    let options = LossOptions::augment_args(BuildArgs::augment_args(Command::new("options")));
    let missing: Vec<_> = flags(&options).into_iter().filter(|flag| !page.contains(&format!("`{flag}"))).collect();
    assert!(missing.is_empty(), "docs/mapl.md lacks {missing:?}");
}

#[test]
fn every_flag_in_the_documents_exists() {
    let known = flags(&Cli::command());
    let flag = Regex::new(r"`?(--[a-z][a-z-]+)").unwrap();
    // Flags of clap, cargo, mpirun, torchrun and the Hub's program.
    let others = [
        "--help",
        "--release",
        "--features",
        "--example",
        "--path",
        "--test",
        "--open",
        "--oversubscribe",
        "--map-by",
        "--no-python",
        "--nproc-per-node",
        "--local-dir",
        "--repo-type",
    ];
    let pages = documents().into_iter().filter(|name| name == "README.md" || name.starts_with("docs/"));
    for document in pages {
        // Dashes of comments and of tables are not flags.
        let text = read(&document).replace("<!--", "").replace("-->", "").replace("|--", "|");
        for found in flag.captures_iter(&text).map(|c| c[1].to_owned()) {
            assert!(known.contains(&found) || others.contains(&found.as_str()), "{document}: no command has {found}");
        }
    }
}

#[test]
fn the_quick_start_is_the_two_commands_and_ci_runs_both() {
    let readme = read("README.md");
    let commands = blocks(section(&readme, "Quick start")).remove(0).1;
    let lines: Vec<&str> = commands.lines().collect();
    assert_eq!(lines, ["cargo run --release -- quickstart", "cargo test --release"]);
    // CI also builds with the `mpi` feature.
    let ci = read(".ci/run").replace(" --features mpi", "");
    for line in lines {
        assert!(ci.contains(line), ".ci/run does not run `{line}`");
    }
    for check in ["cargo fmt --all --check", "-D warnings", "RUSTDOCFLAGS=-Dwarnings", "set -euo pipefail"] {
        assert!(ci.contains(check), ".ci/run lacks {check}");
    }
}

#[test]
fn group_rows_in_the_documents_are_valid() {
    let page = read("docs/data.md");
    let rows: Vec<_> = blocks(&page).into_iter().filter(|(language, _)| language == "json").collect();
    assert!(!rows.is_empty());
    for (_, row) in rows {
        let group: PreferenceGroup = serde_json::from_str(&row).unwrap();
        group.validate().unwrap();
    }
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    let page = read("docs/commands.md");
    let row = Regex::new(r"(?m)^\| ([0-9, ]+) \| (.+) \|$").unwrap();
    let documented: BTreeSet<i32> = row
        .captures_iter(section(&page, "Exit codes"))
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
    let mut sources = vec![read("build.rs")];
    for folder in ["src", "tests", "benches"] {
        sources.extend(files(folder, "rs").iter().map(|file| std::fs::read_to_string(file).unwrap()));
    }
    for text in &sources {
        used.extend(switch.find_iter(text).map(|m| m.as_str().to_owned()));
    }
    let page = read("docs/commands.md");
    let documented: BTreeSet<String> =
        switch.find_iter(section(&page, "Environment")).map(|m| m.as_str().to_owned()).collect();
    assert_eq!(documented, used, "left: docs/commands.md, right: the sources");
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
