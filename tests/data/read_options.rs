//! Options of the readers: options that have no effect are an error. Further tests cover mapped columns,
//! rankings and names of files.

use std::path::PathBuf;

use mapl::data::source::{Pairs, ReadOptions, check_used, expand, read_files_with_reports};
use serde_json::{Value, json};

use crate::sources::Folder;

const Q: &str = "Which city is on the Spree?";
const GOOD: &str = "Berlin is.";
const BAD: &str = "Cities are old.";

/// A skipped row does not hide that an option has no effect. An option that only a skipped row uses counts as
/// used.
#[test]
fn options_without_effect_are_refused_next_to_skipped_rows() {
    let folder = Folder::new();
    let good = json!({"prompt": Q, "chosen": GOOD, "rejected": BAD});
    let bad = json!({"prompt": Q, "chosen": GOOD, "rejected": "", "context": "Be short."});
    let path = folder.write("rows.jsonl", format!("{good}\n{bad}\n"));
    let group = json!({"id": "g", "prompts": [Q], "responses": [GOOD, BAD], "comparisons": [
        {"kind": "base", "terms": [{"prompt": 0, "response": 0, "sign": 1}, {"prompt": 0, "response": 1, "sign": -1}]}
    ]});
    let groups = folder.write("groups.jsonl", group.to_string());
    let skipping = ReadOptions { skip_bad_rows: Some(1), ..ReadOptions::default() };
    let check = |path: &PathBuf, options: &ReadOptions| {
        let (_, reports) = read_files_with_reports(std::slice::from_ref(path), options).map_err(|e| e.to_string())?;
        check_used(options, &reports).map_err(|e| e.to_string())
    };
    check(&path, &skipping).unwrap();
    let drop = |name: &str| ReadOptions { drop_columns: vec![name.into()], ..skipping.clone() };
    check(&path, &drop("context")).unwrap();
    for (path, options, part) in [
        (&path, drop("kontext"), "--drop-columns kontext"),
        (&path, ReadOptions { pairs: Some(Pairs::All), ..skipping.clone() }, "--pairs has no effect"),
        (&path, ReadOptions { score_key: Some("s".into()), ..skipping.clone() }, "--score-key has no effect"),
        (&path, ReadOptions { mixed_formats: true, ..skipping.clone() }, "--mixed-formats has no effect"),
        (&groups, ReadOptions { column_map: "chosen=a".parse().unwrap(), ..Default::default() }, "--column-map has no"),
    ] {
        let why = check(path, &options).unwrap_err();
        assert!(why.contains(part), "{part}: {why}");
    }
    // A bad row that lacks the mapped column does not count as a use of the map.
    let with_bad = folder.write("with-bad.jsonl", format!("{group}\n{good}\n"));
    let mapping = ReadOptions { column_map: "chosen=a".parse().unwrap(), ..skipping };
    let why = check(&with_bad, &mapping).unwrap_err();
    assert!(why.contains("--column-map has no effect"), "{why}");
    let renamed = folder.write("renamed.jsonl", json!({"prompt": Q, "a": GOOD, "rejected": BAD}).to_string());
    check(&renamed, &ReadOptions { column_map: "chosen=a".parse().unwrap(), ..Default::default() }).unwrap();
}

/// Ranks say which response is better, not by how much.
#[test]
fn places_in_an_order_give_no_margins() {
    let folder = Folder::new();
    let margins = |name: &str, row: Value, key: Option<&str>| {
        let path = folder.write(name, row.to_string());
        let score_key = key.map(str::to_owned);
        let options = ReadOptions { score_margin: true, score_key, ..ReadOptions::default() };
        let (rows, _) = read_files_with_reports(&[path], &options).map_err(|e| e.to_string())?;
        Ok::<Vec<f64>, String>(rows[0].group.comparisons.iter().map(|c| c.margin).collect())
    };
    let entry = |text: &str, rank: f64, score: f64| json!({"response": text, "rank": rank, "score": score});
    let both = json!({"question": Q, "responses": [entry(GOOD, 1.0, 9.0), entry(BAD, 2.0, 4.0)]});
    for (name, row, key) in [
        ("a.jsonl", json!({"question": Q, "responses": [BAD, GOOD], "ranks": [2, 1]}), None),
        ("b.jsonl", both.clone(), None),
        ("c.jsonl", both.clone(), Some("rank")),
        ("d.jsonl", json!({"question": Q, "ranked_responses": [GOOD, BAD]}), None),
    ] {
        let why = margins(name, row, key).unwrap_err();
        assert!(why.contains("--score-margin needs scores") && why.contains("--score-key"), "{name}: {why}");
    }
    assert_eq!(margins("e.jsonl", both, Some("score")).unwrap(), [5.0]);
    let scores = json!({"question": Q, "responses": [BAD, GOOD], "scores": [1, 3]});
    assert_eq!(margins("f.jsonl", scores, None).unwrap(), [2.0]);
}

/// A mapped column of a table is read as the key that it is mapped to.
#[test]
fn mapped_columns_of_tables_hold_lists_too() {
    let folder = Folder::new();
    let list = format!("\"[\"\"{BAD}\"\", \"\"{GOOD}\"\"]\"");
    let plain = folder.write("plain.csv", format!("question,responses,scores\n{Q},{list},\"[1, 2]\"\n"));
    let named = folder.write("named.csv", format!("q,cands,vals\n{Q},{list},\"[1, 2]\"\n"));
    let sides = folder.write("sides.csv", format!("q,good,bad,gap\n{Q},\"[\"\"{GOOD}\"\"]\",\"[\"\"{BAD}\"\"]\",\n"));
    let gap = folder.write("gap.csv", format!("prompt,chosen,rejected,gap\n{Q},{GOOD},{BAD},0.5\n"));
    let read = |path: PathBuf, map: &str| {
        let options = ReadOptions { column_map: map.parse().unwrap(), ..ReadOptions::default() };
        let (rows, _) = read_files_with_reports(&[path], &options).unwrap();
        let group = rows[0].group.clone();
        (group.prompts, group.responses, group.comparisons)
    };
    assert_eq!(read(named, "question=q,responses=cands,scores=vals"), read(plain, ""));
    assert_eq!(read(sides, "question=q,chosen=good,rejected=bad").1.len(), 2);
    assert_eq!(read(gap, "margin=gap").2[0].margin, 0.5);
}

/// A folder or a pattern that holds one file in two formats is an error, because its rows would be read
/// twice.
#[test]
fn one_file_in_two_forms_is_named() {
    for (names, parts) in
        [(["a.jsonl", "a.jsonl.gz"], ["a.jsonl", "a.jsonl.gz"]), (["a.csv", "a.jsonl"], ["a.csv", "a.jsonl"])]
    {
        let folder = Folder::new();
        names.iter().for_each(|name| drop(folder.write(name, "{}")));
        folder.write("b.jsonl", "{}");
        let place = folder.write("c.jsonl", "{}").parent().unwrap().to_path_buf();
        for path in [place.clone(), place.join("*")] {
            let why = expand(&[path]).unwrap_err().to_string();
            assert!(parts.iter().all(|part| why.contains(part)) && why.contains("read twice"), "{why}");
        }
        let named: Vec<PathBuf> = names.iter().map(|name| place.join(name)).collect();
        assert_eq!(expand(&named).unwrap(), named);
    }
    let folder = Folder::new();
    let file = folder.write("A.JSONL", "{}");
    folder.write("A.jsonl.GZ", "{}");
    let why = expand(&[file.parent().unwrap().to_path_buf()]).unwrap_err().to_string();
    assert!(why.contains("A.JSONL and A.jsonl.GZ"), "{why}");
}

/// It is an error if the input names both a file and its folder, or if a folder holds a second link to a
/// file.
#[test]
fn a_file_that_a_folder_holds_too_is_not_read_twice() {
    let folder = Folder::new();
    let file = folder.write("a.jsonl", "{}");
    let place = file.parent().unwrap().to_path_buf();
    for named in [vec![place.clone(), file.clone()], vec![place.join("*.jsonl"), place.clone()]] {
        let why = expand(&named).unwrap_err().to_string();
        assert!(why.contains("a.jsonl: this file would be read twice"), "{why}");
    }
    // A file that is given twice is read twice, with a warning.
    assert_eq!(expand(&[file.clone(), file.clone()]).unwrap().len(), 2);
    std::fs::hard_link(&file, place.join("b.jsonl")).unwrap();
    let why = expand(&[place]).unwrap_err().to_string();
    assert!(why.contains("b.jsonl") && why.contains("a.jsonl"), "{why}");
}
