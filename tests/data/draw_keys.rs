//! Random draws of the construction are keyed by the content of a row, not by its id, file or position.

use std::path::PathBuf;

use mapl::data::construct::build_rows;
use mapl::data::group::{PreferenceGroup, Response};
use mapl::data::options::{BuildOptions, Redraw};
use mapl::data::source::{ReadOptions, read_files};
use mapl::data::synth::{Split, SynthOptions, generate};
use serde_json::{Value, json};

#[test]
fn the_name_of_a_file_changes_nothing_but_made_up_ids() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = generate(&SynthOptions { rows: 20, seed: 3, split: Split::Train });
    let text = |response: &Response| response.text().to_owned();
    let mut rows: Vec<Value> = pairs
        .iter()
        .map(|pair| {
            json!({"prompt": pair.prompts[0], "chosen": text(&pair.responses[0]), "rejected": text(&pair.responses[1])})
        })
        .collect();
    // The last row repeats row 4, but must draw different instructions.
    rows.push(rows[4].clone());
    let build = |files: &[(&str, &[Value])], options: &BuildOptions, epoch| {
        let write = |(name, rows): &(&str, &[Value])| {
            let path = folder.path().join(name);
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            std::fs::write(&path, text).unwrap();
            path
        };
        let paths: Vec<PathBuf> = files.iter().map(write).collect();
        let (built, _) = build_rows(read_files(&paths, &ReadOptions::default()).unwrap(), options, epoch);
        let ids: Vec<String> = built.iter().map(|row| row.group.id.clone()).collect();
        let groups: Vec<_> = built.into_iter().map(|row| PreferenceGroup { id: String::new(), ..row.group }).collect();
        (ids, groups)
    };
    for redraw in [Redraw::Never, Redraw::Epoch] {
        let options = BuildOptions { redraw, ..BuildOptions::default() };
        let (ids, alpaca) = build(&[("alpaca.jsonl", &rows[..])], &options, 2);
        assert_eq!((&*ids[0], &*ids[20]), ("alpaca-1", "alpaca-21"));
        let (ids, pairs) = build(&[("pairs.jsonl", &rows[..])], &options, 2);
        assert_eq!(ids[0], "pairs-1");
        assert!(alpaca == pairs, "the groups depend on the file's name");
        assert!(alpaca[4] != alpaca[20], "equal rows must draw on their own");
        // Neither the split into files nor given ids change the groups. The order of rows only changes the
        // order of groups.
        let mut named = rows.clone();
        named.iter_mut().enumerate().for_each(|(i, row)| row["id"] = json!(i));
        assert!(build(&[("x.jsonl", &named[..7]), ("y.jsonl", &named[7..])], &options, 2).1 == alpaca);
        let reversed: Vec<Value> = rows.iter().rev().cloned().collect();
        let mut back = build(&[("alpaca.jsonl", &reversed[..])], &options, 2).1;
        back.reverse();
        back.swap(4, 20);
        assert!(back == alpaca);
    }
}
