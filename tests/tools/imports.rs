//! A module imports only from modules above it in the list of `src/lib.rs`. An import against that
//! order needs a comment on the line before it that starts with `// Upward:` and gives the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Root of the repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Rank of every module, from the module list in `src/lib.rs`.
fn ranks() -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let link = regex::Regex::new(r"`(?:mod@)?([a-z_]+)`").unwrap();
    let mut ranks = BTreeMap::new();
    let rows = text.lines().filter(|line| ["//! - [`", "//! - `"].iter().any(|start| line.starts_with(start)));
    for (rank, row) in rows.enumerate() {
        // A row may list several modules of the same rank before its colon.
        let names = row.split_once(": ").map_or(row, |(names, _)| names);
        ranks.extend(link.captures_iter(names).map(|name| (name[1].to_owned(), rank)));
    }
    ranks
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// `text` without its line comments; line numbers stay.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// Names right after `crate::`: one name, or each first name of a list in braces, over any number of
/// lines.
fn imported(path: &str) -> Vec<String> {
    let Some(list) = path.strip_prefix('{') else {
        return vec![path.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()];
    };
    let (mut depth, mut names) = (1, vec![String::new()]);
    for c in list.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            _ if depth == 0 => break,
            ',' if depth == 1 => names.push(String::new()),
            _ => names.last_mut().unwrap().push(c),
        }
    }
    names.iter().map(|name| name.split("::").next().unwrap_or_default().trim().to_owned()).collect()
}

/// Imports in `text`, a file of module `own`, against the module order, as `line: module`.
fn upward(text: &str, own: &str, ranks: &BTreeMap<String, usize>) -> Vec<String> {
    let (code, lines) = (code(text), text.lines().collect::<Vec<_>>());
    let mut found = Vec::new();
    for (place, path) in code.match_indices("crate::") {
        let line = code[..place].matches('\n').count();
        let explained = line > 0 && lines[line - 1].trim_start().starts_with("// Upward:");
        for module in imported(&code[place + path.len()..]) {
            if ranks.get(&module) > ranks.get(own) && !explained {
                found.push(format!("{}: {module}", line + 1));
            }
        }
    }
    found
}

#[test]
fn no_upward_import_lacks_an_explanation() {
    let ranks = ranks();
    let declared = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for module in
        declared.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
    {
        assert!(ranks.contains_key(module), "the list of src/lib.rs lacks {module}");
    }
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let below = file.strip_prefix(root().join("src")).unwrap();
        let own = below.components().next().unwrap().as_os_str().to_string_lossy();
        let own = own.trim_end_matches(".rs");
        // The crate root and the binary import everything.
        if own == "lib" || own == "main" {
            continue;
        }
        assert!(ranks.contains_key(own), "the list of src/lib.rs lacks {own}");
        let text = std::fs::read_to_string(&file).unwrap();
        wrong.extend(upward(&text, own, &ranks).into_iter().map(|import| format!("src/{}:{import}", below.display())));
    }
    assert!(wrong.is_empty(), "imports against the order of src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn an_upward_import_is_found_unless_a_comment_explains_it() {
    let ranks = BTreeMap::from([("low".to_owned(), 0), ("high".to_owned(), 1)]);
    let found = |text| upward(text, "low", &ranks);
    assert_eq!(found("use crate::high::Thing;"), ["1: high"]);
    assert_eq!(found("\nuse crate::{low, high::Thing};"), ["2: high"]);
    assert_eq!(found("let x = crate::high::thing();"), ["1: high"]);
    assert_eq!(found("use crate::{\n    low::{A, B},\n    high::Thing,\n};"), ["1: high"]);
    assert!(found("// Upward: because.\nuse crate::high::Thing;").is_empty());
    assert!(found("/// [`crate::high`]\nuse crate::low::Thing;").is_empty());
    assert!(upward("use crate::low::Thing;", "high", &ranks).is_empty());
}
