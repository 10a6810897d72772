//! `docs/public-api.txt` lists the public items of the library. The list is made from the sources by a parser
//! of items, so no other toolchain is needed. It follows modules from `lib.rs` down and contains re-exports,
//! fields, variants, methods and implemented traits. Functions of macros are listed as the macro contains
//! them; derived traits and the launchers that `build.rs` generates are not listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const HEADER: &str = "# Public items of mapl, made from the sources; MAPL_UPDATE_API=1 cargo test --release --test tools public_api writes it again\n";

/// The text with comments, strings and character literals blanked.
fn masked(text: &str) -> String {
    let c: Vec<char> = text.chars().collect();
    let (mut out, mut i) = (String::new(), 0);
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(c[from..to.min(c.len())].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
    };
    while i < c.len() {
        let start = i;
        let word_before = i > 0 && (c[i - 1].is_alphanumeric() || c[i - 1] == '_');
        let hashes = c[i + 1..].iter().take_while(|&&c| c == '#').count();
        if c[i..].starts_with(&['/', '/']) {
            while i < c.len() && c[i] != '\n' {
                i += 1;
            }
        } else if c[i] == 'r' && !word_before && c.get(i + 1 + hashes) == Some(&'"') {
            i += 2 + hashes;
            while i < c.len()
                && !(c[i] == '"' && c[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes)
            {
                i += 1;
            }
            i += 1 + hashes;
        } else if c[i] == '"' {
            i += 1;
            while i < c.len() && c[i] != '"' {
                i += if c[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c[i] == '\'' && (c.get(i + 1) == Some(&'\\') || c.get(i + 2) == Some(&'\'')) {
            i += if c[i + 1] == '\\' { 3 } else { 2 };
            while i < c.len() && c[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(c[i]);
            i += 1;
            continue;
        }
        blank(&mut out, start, i);
    }
    out
}

/// An item: its text up to the body, and the body.
#[derive(Debug)]
struct Item {
    head: String,
    body: String,
    of_tests: bool,
}

/// Returns the index after the bracket that closes the one at `from`.
fn closed(c: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < c.len() {
        match c[i] {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
        i += 1;
        if depth == 0 {
            break;
        }
    }
    i
}

fn single_blanks(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace("( ", "(").replace(", )", ")").replace(",)", ")").replace("< ", "<").replace(" >", ">")
}

/// Items of a masked text.
fn items(text: &str) -> Vec<Item> {
    let c: Vec<char> = text.chars().collect();
    let (mut found, mut i) = (Vec::new(), 0);
    let mut of_tests = false;
    while i < c.len() {
        if c[i].is_whitespace() || c[i] == ';' {
            i += 1;
            continue;
        }
        if c[i] == '#' {
            let start = i;
            i = closed(&c, i + 1 + usize::from(c.get(i + 1) == Some(&'!')));
            of_tests |= c[start..i].iter().collect::<String>().replace(' ', "").contains("cfg(test)");
            continue;
        }
        let start = i;
        let starts = |word: &str| word.chars().eq(c[start..].iter().take(word.len()).copied());
        let has_value =
            ["use ", "const ", "static ", "type "].iter().any(|word| {
                ["", "pub ", "pub(crate) ", "pub(super) "]
                    .iter()
                    .any(|visibility| starts(&format!("{visibility}{word}")))
            }) && !["const fn", "pub const fn", "pub(crate) const fn", "pub(super) const fn", "const unsafe"]
                .iter()
                .any(|word| starts(word));
        let mut end = None;
        let mut body = String::new();
        while i < c.len() {
            match c[i] {
                '(' | '[' => i = closed(&c, i),
                '{' if has_value => i = closed(&c, i),
                '{' => {
                    end = Some(i);
                    let after = closed(&c, i);
                    body = c[i + 1..after - 1].iter().collect();
                    i = after;
                    break;
                }
                '=' if has_value && !starts("use ") && !starts("pub use ") && end.is_none() => {
                    end = Some(i);
                    i += 1;
                }
                ';' => {
                    i += 1;
                    break;
                }
                _ => i += 1,
            }
        }
        let head: String = c[start..end.unwrap_or_else(|| i.saturating_sub(1)).max(start)].iter().collect();
        found.push(Item { head: single_blanks(&head), body, of_tests });
        of_tests = false;
    }
    found
}

/// Parts of a list of fields or variants.
fn parts(text: &str) -> Vec<String> {
    let (mut depth, mut part, mut found, mut before) = (0, String::new(), Vec::new(), ' ');
    for c in text.chars() {
        match c {
            '{' | '(' | '[' | '<' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        before = c;
        if c == ',' && depth == 0 {
            found.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    found.push(part);
    let without_attributes = |part: String| {
        let mut rest = part.trim().to_owned();
        while rest.starts_with('#') {
            let c: Vec<char> = rest.chars().collect();
            rest = c[closed(&c, 1)..].iter().collect::<String>().trim().to_owned();
        }
        single_blanks(&rest)
    };
    found.into_iter().map(without_attributes).filter(|part| !part.is_empty()).collect()
}

struct Module {
    path: String,
    items: Vec<Item>,
    is_public: bool,
}

/// Modules of a crate, whose files `read` gives by their path below `src`.
fn modules(read: &dyn Fn(&str) -> Option<String>) -> Vec<Module> {
    fn add(
        found: &mut Vec<Module>,
        read: &dyn Fn(&str) -> Option<String>,
        place: (&str, &str),
        text: &str,
        is_public: bool,
    ) {
        let (path, folder) = place;
        let items = items(text);
        for item in &items {
            let Some((visibility, name)) = item.head.split_once("mod ").filter(|_| !item.of_tests) else { continue };
            if !["", "pub ", "pub(crate) ", "pub(super) "].contains(&visibility) {
                continue;
            }
            let (path, folder) = (format!("{path}::{name}"), format!("{folder}{name}/"));
            let file =
                || read(&format!("{}.rs", folder.trim_end_matches('/'))).or_else(|| read(&format!("{folder}mod.rs")));
            let text = if item.body.is_empty() { file().map(|text| masked(&text)) } else { Some(item.body.clone()) };
            if let Some(text) = text {
                add(found, read, (&path, &folder), &text, is_public && visibility == "pub ");
            }
        }
        found.push(Module { path: path.to_owned(), items, is_public });
    }
    let mut found = Vec::new();
    add(&mut found, read, ("mapl", ""), &masked(&read("lib.rs").unwrap_or_default()), true);
    found.reverse();
    found
}

/// Name that an item defines.
fn name_of(head: &str) -> Option<&str> {
    let words = ["struct ", "enum ", "trait ", "fn ", "const ", "static ", "type ", "union "];
    let at = words.iter().filter_map(|word| Some(head.find(word)? + word.len())).min()?;
    head[at..].split(|c: char| !(c.is_alphanumeric() || c == '_')).find(|name| !name.is_empty())
}

/// Name of the type of an inherent or trait implementation.
fn implemented(head: &str) -> Option<&str> {
    let of = match head.split_once(" for ") {
        Some((_, of)) => of,
        None => {
            let rest = head.strip_prefix("impl")?;
            let generic: Vec<char> = rest.chars().collect();
            let mut depth = 0;
            let mut after = 0;
            for (i, c) in generic.iter().enumerate() {
                depth += i32::from(*c == '<') - i32::from(*c == '>');
                if depth == 0 {
                    after = if *c == '>' { i + 1 } else { i };
                    break;
                }
            }
            &rest[rest.char_indices().nth(after).map_or(0, |(at, _)| at)..]
        }
    };
    let path = of.trim().trim_start_matches('&').split(['<', ' ']).next()?;
    path.rsplit("::").next()
}

/// The head of an item, with `_` for the private fields of a tuple struct.
fn without_private_fields(head: &str) -> String {
    let fields = head.strip_suffix(')').and_then(|rest| rest.split_once('(')).filter(|_| head.contains("struct "));
    let Some((start, fields)) = fields else { return head.to_owned() };
    let shown = parts(fields).into_iter().map(|field| if field.starts_with("pub ") { field } else { "_".into() });
    format!("{start}({})", shown.collect::<Vec<_>>().join(", "))
}

/// Public items of a crate, sorted.
fn listing(read: &dyn Fn(&str) -> Option<String>) -> BTreeSet<String> {
    let modules = modules(read);
    // Names that a public module re-exports from private modules.
    let mut handed_out: BTreeSet<(String, String)> = BTreeSet::new();
    for module in modules.iter().filter(|module| module.is_public) {
        for item in module.items.iter().filter(|item| item.head.starts_with("pub use ")) {
            let body = item.head.trim_start_matches("pub use ");
            let (from, names) = body.rsplit_once("::").unwrap_or(("", body));
            let (from, names) = match body.split_once("::{") {
                Some((from, names)) => (from, names.trim_end_matches('}')),
                None => (from, names),
            };
            let from = from.trim_start_matches("self::");
            let from = match (from.strip_prefix("crate::"), from.strip_prefix("super::")) {
                (Some(rest), _) => format!("mapl::{rest}"),
                (None, Some(rest)) => {
                    format!("{}::{rest}", module.path.rsplit_once("::").map_or("mapl", |(parent, _)| parent))
                }
                (None, None) => format!("{}::{from}", module.path),
            };
            handed_out.extend(names.split(',').map(|name| (from.clone(), name.trim().to_owned())));
        }
    }
    let is_handed_out = |module: &Module, name: &str| {
        [name, "*"].iter().any(|name| handed_out.contains(&(module.path.clone(), (*name).to_owned())))
    };
    let mut found = BTreeSet::new();
    // Types by name, and whether they are public.
    let mut types: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
    for module in &modules {
        for item in module.items.iter().filter(|item| !item.of_tests) {
            let Item { head, body, .. } = item;
            let path = &module.path;
            if head.starts_with("pub use ") && module.is_public {
                found.insert(format!("{path}: {head}"));
            }
            if head.starts_with("macro_rules! ") && module.is_public {
                let starts = ["pub ", "fn ", "type ", "const "];
                let lines = body.lines().map(single_blanks);
                found.extend(
                    lines
                        .filter(|line| starts.iter().any(|start| line.starts_with(start)))
                        .map(|line| format!("{path}: {head}: {line}")),
                );
            }
            if head.ends_with('!') && !head.contains(' ') && module.is_public {
                found.extend(
                    body.split(';')
                        .map(single_blanks)
                        .filter(|line| !line.is_empty())
                        .map(|line| format!("{path}: {head} {line}")),
                );
            }
            if head.starts_with("pub mod ") && module.is_public {
                found.insert(format!("{path}: {head}"));
            }
            let Some(name) = name_of(head).filter(|_| !head.starts_with("pub use ") && !head.starts_with("impl"))
            else {
                continue;
            };
            let of = format!("{path}::{name}");
            let is_public = head.starts_with("pub ") && (module.is_public || is_handed_out(module, name));
            if ["struct ", "enum ", "union "].iter().any(|word| head.contains(word)) {
                types.entry(name.to_owned()).or_default().push((of.clone(), is_public));
            }
            if !is_public {
                continue;
            }
            found.insert(format!("{path}: {}", without_private_fields(head)));
            if head.contains("struct ") {
                found.extend(
                    parts(body).into_iter().filter(|part| part.starts_with("pub ")).map(|part| format!("{of}: {part}")),
                );
            } else if head.contains("enum ") {
                found.extend(parts(body).into_iter().map(|part| format!("{of}: {part}")));
            } else if head.contains("trait ") {
                found.extend(items(body).into_iter().map(|item| format!("{of}: {}", item.head)));
            }
        }
    }
    // Methods, wherever the implementation is.
    for module in &modules {
        for item in module.items.iter().filter(|item| !item.of_tests && item.head.starts_with("impl")) {
            let named = implemented(&item.head).and_then(|name| types.get(name));
            // Picks the type in the nearest module if several types have the same name.
            let near =
                |(of, _): &&(String, bool)| of.chars().zip(module.path.chars()).take_while(|(a, b)| a == b).count();
            let Some((of, true)) = named.and_then(|of| of.iter().max_by_key(near)) else { continue };
            if item.head.contains(" for ") {
                found.insert(format!("{of}: {}", item.head));
                continue;
            }
            let public = items(&item.body).into_iter().filter(|item| item.head.starts_with("pub ") && !item.of_tests);
            found.extend(public.map(|item| format!("{of}: {}", item.head)));
        }
    }
    found
}

#[test]
fn the_committed_list_is_that_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = listing(&|path| std::fs::read_to_string(root.join("src").join(path)).ok());
    let text = HEADER.to_owned() + &found.into_iter().map(|line| line + "\n").collect::<String>();
    let path = root.join("docs/public-api.txt");
    if std::env::var_os("MAPL_UPDATE_API").is_some_and(|value| value == "1") {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (committed.lines().collect(), text.lines().collect());
    let (gone, added): (Vec<_>, Vec<_>) = (old.difference(&new).collect(), new.difference(&old).collect());
    assert!(
        gone.is_empty() && added.is_empty(),
        "the public API changed; add it to CHANGELOG.md, and write docs/public-api.txt again with MAPL_UPDATE_API=1\ngone: \
         {gone:#?}\nnew: {added:#?}"
    );
    // Items that users of the library need are listed.
    for line in [
        "mapl: pub mod backend",
        "mapl::backend: backend! ",
        "mapl::bench::op: pub trait Op: Sync",
        "mapl::bench::op::file::KernelFile: pub fn read(path: &Path) -> Result<Self>",
        "mapl::train::step::Trainer: pub fn step(",
        "mapl::error::Error: Usage(String)",
        "mapl::backend::contract::own_curve::OwnCurve: pub name: &'static str",
    ] {
        assert!(new.iter().any(|found| found.starts_with(line)), "{line} is not in the list");
    }
}

/// In a crate of three files, every change of a public item changes the listing, and no other change does.
#[test]
fn a_change_of_the_public_api_is_seen() {
    let of = |lib: &str, inner: &str| {
        let (lib, inner) = (lib.to_owned(), inner.to_owned());
        listing(&move |path| match path {
            "lib.rs" => Some(lib.clone()),
            "a/mod.rs" => Some("mod hidden;\nmod inner;\npub use hidden::{Kept, Other, Pair};\n".into()),
            "a/hidden.rs" => Some(inner.clone()),
            // A private type with the name of a public one.
            "a/inner.rs" => Some("struct Kept;\nimpl Kept { pub fn not_listed() {} }\n".into()),
            _ => None,
        })
    };
    let lib = "pub mod a;\n";
    let inner = "/// pub fn comment() {}\n#[derive(Debug)]\npub struct Kept<'a, T> {\n    /// Text.\n    pub one: Vec<(u8, T)>,\n    two: &'a str,\n}\n\nimpl<'a, T> Kept<'a, T> {\n    pub const N: usize = { 3 };\n    pub fn call(\n        &self,\n        x: char,\n    ) -> bool {\n        x == '\"' || x == '\\''\n    }\n    fn private() {}\n}\npub enum Other { A, B { x: u8 } }\npub struct Lost;\nimpl Lost { pub fn lost() {} }\npub struct Pair(pub u8, u16);\nimpl Clone for Other { fn clone(&self) -> Self { Other::A } }\n";
    let found: Vec<String> = of(lib, inner).into_iter().collect();
    assert_eq!(
        found,
        [
            "mapl: pub mod a",
            "mapl::a: pub use hidden::{Kept, Other, Pair}",
            "mapl::a::hidden: pub enum Other",
            "mapl::a::hidden: pub struct Kept<'a, T>",
            "mapl::a::hidden: pub struct Pair(pub u8, _)",
            "mapl::a::hidden::Kept: pub const N: usize",
            "mapl::a::hidden::Kept: pub fn call(&self, x: char) -> bool",
            "mapl::a::hidden::Kept: pub one: Vec<(u8, T)>",
            "mapl::a::hidden::Other: A",
            "mapl::a::hidden::Other: B { x: u8 }",
            "mapl::a::hidden::Other: impl Clone for Other",
        ]
    );
    for (from, to, is_seen) in [
        ("x: char", "x: u32", true),
        ("pub one", "one", true),
        ("A, B", "A, C, B", true),
        ("pub fn call", "fn call", true),
        ("fn private", "pub fn private", true),
        ("two: &'a str", "three: &'a str", false),
        ("x == '\"'", "x == 'y'", false),
        ("pub fn lost", "pub fn missing", false),
        ("u16", "u32", false),
        ("(pub u8", "(pub u32", true),
    ] {
        assert!(inner.contains(from));
        let changed: Vec<String> = of(lib, &inner.replacen(from, to, 1)).into_iter().collect();
        assert_eq!(changed != found, is_seen, "{from} to {to}");
    }
    assert!(of("pub(crate) mod a;\n", inner).is_empty());
}
