//! Names by which scripts select tests must match existing tests: a filter without a match would pass and
//! prove nothing.

use std::path::Path;

use regex::Regex;

pub fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Whether a filter such as `backends::norm::equal_` matches a test of `tests/{program}`. Its
/// module path must name a file there, and that file must contain a name that starts with the last
/// part.
fn matches(program: &str, filter: &str) -> bool {
    let (modules, name) = filter.rsplit_once("::").unwrap_or(("", filter));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join(program);
    let text = |modules: &str| {
        let path = tests.join(modules.replace("::", "/")).with_extension("rs");
        std::fs::read_to_string(path).ok()
    };
    // If no test name follows, the last part is itself a module.
    if text(filter.trim_end_matches("::")).is_some() {
        return true;
    }
    let names = Regex::new(&format!(r"\b{}\w*", regex::escape(name))).unwrap();
    text(modules).is_some_and(|text| names.is_match(&text))
}

#[test]
fn filters_of_scripts_match_tests() {
    let ci = read(".ci/run").replace("\\\n", " ");
    let call = Regex::new(r"--test (\w+) -- ([^\n]+)").unwrap();
    let mut filters: Vec<(String, String)> = call
        .captures_iter(&ci)
        .flat_map(|call| call[2].split_whitespace().map(|f| (call[1].to_owned(), f.to_owned())).collect::<Vec<_>>())
        .collect();
    assert!(filters.len() > 10, "{filters:?}");
    let suite = read("tests/gpu/run.py");
    let quoted = Regex::new(r#""([^"]+)""#).unwrap();
    for start in ["SMALL = [", "NEW = ["] {
        let list = suite.split_once(start).unwrap().1.split_once(']').unwrap().0;
        filters.extend(quoted.captures_iter(list).map(|name| ("ops".to_owned(), name[1].to_owned())));
    }
    let faults: serde_json::Value = serde_json::from_str(&read("tests/mutations/faults.json")).unwrap();
    let lists = faults["faults"].as_array().unwrap().iter().map(|fault| &fault["tests"]).chain([&faults["tests"]]);
    let names = lists.filter_map(|list| list.as_array()).flatten().map(|name| name.as_str().unwrap().to_owned());
    filters.extend(names.map(|name| ("ops".to_owned(), name)));
    let wrong: Vec<_> = filters.iter().filter(|(program, filter)| !matches(program, filter)).collect();
    assert!(wrong.is_empty(), "no test matches {wrong:?}");
}

#[test]
fn a_filter_without_a_test_is_found() {
    assert!(
        matches("ops", "backends::norm::equal_") && matches("ops", "primitives::") && matches("ops", "backends::norm")
    );
    for wrong in ["backends::norm::no_such", "backends::nothing::equal_", "attention::huge_and_infinite"] {
        assert!(!matches("ops", wrong), "{wrong}");
    }
}

/// Every fault of the mutation script changes exactly one place of its file.
#[test]
fn faults_apply_to_the_kernels() {
    let faults: serde_json::Value = serde_json::from_str(&read("tests/mutations/faults.json")).unwrap();
    for fault in faults["faults"].as_array().unwrap() {
        let [name, file, old, new] = ["name", "file", "old", "new"].map(|key| fault[key].as_str().unwrap());
        assert_ne!(old, new, "{name}");
        assert_eq!(read(file).matches(old).count(), 1, "{name}: its text must occur once in {file}");
    }
}
