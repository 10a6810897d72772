//! Verdicts of the official checkers of IFEval and IFBench on made-up responses
//! (`tests/golden/ifeval`).

use std::path::{Path, PathBuf};

use mapl::ifeval::rows::{judge, read_prompts, read_responses};
use serde_json::Value;

/// Compares every verdict on every case, strict and loose.
fn agree(file: &str, types_expected: usize) {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/ifeval").join(file);
    let prompts = read_prompts(std::slice::from_ref(&file)).unwrap();
    let judged = judge(&prompts, &read_responses(&prompts, std::slice::from_ref(&file)).unwrap().texts);
    let text = std::fs::read_to_string(&file).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), prompts.len());
    let mut types = std::collections::BTreeMap::new();
    for ((prompt, verdicts), row) in prompts.iter().zip(&judged.verdicts).zip(&rows) {
        let of = |list: &[Option<bool>]| -> Vec<Value> { list.iter().map(|one| (*one).into()).collect() };
        assert_eq!(Value::from(of(&verdicts.strict)), row["strict"], "strict: {row}");
        assert_eq!(Value::from(of(&verdicts.loose)), row["loose"], "loose: {row}");
        for (instruction, strict) in prompt.instructions.iter().zip(&verdicts.strict) {
            let [no, yes] = types.entry(instruction.id.clone()).or_insert([0, 0]);
            *if *strict == Some(true) { yes } else { no } += 1;
        }
    }
    // Each type has both verdicts, so a checker that always agrees with one of them fails.
    assert_eq!(types.len(), types_expected);
    assert!(types.values().all(|[no, yes]| *no > 0 && *yes > 0), "{types:?}");
}

#[test]
fn verdicts_are_those_of_the_official_checkers_of_ifeval() {
    agree("cases.jsonl", 25);
}

#[test]
fn verdicts_are_those_of_the_official_checkers_of_ifbench() {
    agree("ifbench.jsonl", 49);
}
