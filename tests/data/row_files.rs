//! Small files in the formats of known data sets and tools, `tests/fixtures/rows`. Each gives groups with the
//! question in the prompt, the system text as a turn and the better answer preferred. Otherwise the error
//! names the file and a remedy.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mapl::data::construct::make_ids_distinct;
use mapl::data::group::{Kind, Message, PreferenceGroup, Prompt, Response, Term};
use mapl::data::source::{ReadOptions, read_files_with_reports, read_unpaired_files};

/// Question, better answer and worse answer of each row.
const ROWS: [[&str; 3]; 2] = [
    ["Which city is on the Spree?", "Berlin is.", "Cities are old."],
    ["Thank the baker.", "Thank you, baker!", "Why?"],
];

/// Form of the prompt.
enum Before {
    Text,
    Question,
    SystemAndQuestion,
}

/// How the responses of a file differ from the two answers.
enum Responses {
    Two,
    /// Responses as (index of the answer, appended text). The first response is preferred to all others.
    Ranked(&'static [(usize, &'static str)]),
}

use Before::{Question, SystemAndQuestion, Text};
use Responses::{Ranked, Two};

const GROUPS: [(&str, Before, Responses); 12] = [
    ("ax-chatml.ultra", SystemAndQuestion, Two),
    ("helpsteer2-preference", Question, Two),
    ("lf-alpaca", Question, Two),
    ("lf-sharegpt", Question, Two),
    ("nectar", Question, Ranked(&[(0, ""), (0, " Yes."), (1, "")])),
    ("orca-dpo", SystemAndQuestion, Two),
    ("r-dup-id", Text, Two),
    ("r-prompt-space", Question, Two),
    ("rewardbench2", Question, Ranked(&[(0, ""), (1, ""), (1, " x"), (1, " y")])),
    ("shp", Question, Two),
    ("trl-conv-content-parts", Question, Two),
    ("uf-raw", Question, Ranked(&[(0, ""), (1, ""), (0, " Yes."), (1, " Yes.")])),
];

/// Files that give no groups, and parts of the error message.
const REFUSED: [(&str, &[&str]); 5] = [
    ("lf-kto", &["lf-kto.jsonl:1", "unpaired row", "as for KTO", "mapl kto"]),
    ("r-empty-rejected", &["r-empty-rejected.jsonl:3", "\"rejected\" is empty", "at least one token"]),
    ("trl-conv-images", &["trl-conv-images.jsonl:1", "\"images\" holds media", "--drop-columns images"]),
    ("trl-conv-tool_calls", &["trl-conv-tool_calls.jsonl:1", "they have 3 and 1 messages", "only a reward model"]),
    ("trl-unpaired-kto", &["trl-unpaired-kto.jsonl:1", "unpaired row", "as for KTO", "mapl kto"]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/rows")
}

fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.jsonl"))
}

fn read(name: &str, options: &ReadOptions) -> Result<Vec<PreferenceGroup>, String> {
    let (mut rows, _) = read_files_with_reports(&[path(name)], options).map_err(|e| e.to_string())?;
    make_ids_distinct(&mut rows);
    rows.iter().try_for_each(|row| row.group.validate())?;
    Ok(rows.into_iter().map(|row| row.group).collect())
}

/// The prompt of a row.
fn prompt(before: &Before, question: &str) -> Prompt {
    let turns = [Message::new("system", "Use few words."), Message::new("user", question)];
    match before {
        Text => Prompt::Text(question.into()),
        Question => Prompt::Messages(turns[1..].to_vec()),
        SystemAndQuestion => Prompt::Messages(turns.to_vec()),
    }
}

/// Terms of the base comparisons as (better response, worse response).
fn preferred(group: &PreferenceGroup) -> Vec<(usize, usize)> {
    let side = |terms: &[Term], sign: i8| terms.iter().find(|t| t.sign == sign).unwrap().response;
    assert!(group.comparisons.iter().all(|c| c.kind == Kind::Base && c.terms.len() == 2 && c.margin == 0.0));
    group.comparisons.iter().map(|c| (side(&c.terms, 1), side(&c.terms, -1))).collect()
}

#[test]
fn every_file_is_in_a_table() {
    let listed = GROUPS.iter().map(|(name, ..)| *name).chain(REFUSED.iter().map(|(name, _)| *name));
    let found = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let found: BTreeSet<String> = found.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(found, listed.map(str::to_owned).collect());
}

#[test]
fn files_of_known_shapes_give_their_groups() {
    for (name, before, responses) in &GROUPS {
        let groups = read(name, &ReadOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(groups.len(), 2, "{name}");
        for (group, [question, better, worse]) in groups.iter().zip(ROWS) {
            assert_eq!(group.prompts, [prompt(before, question)], "{name}");
            let answers = [better, worse];
            let texts: Vec<String> = match responses {
                // The responses of the text pairs continue the prompt.
                Two if matches!(before, Text) => answers.map(|answer| format!(" {answer}")).to_vec(),
                Two => answers.map(str::to_owned).to_vec(),
                Ranked(ends) => ends.iter().map(|(answer, end)| format!("{}{end}", answers[*answer])).collect(),
            };
            let expected = texts.iter().map(|text| match before {
                Text => Response::Text(text.clone()),
                _ => Response::Message(Message::new("assistant", text.as_str())),
            });
            assert_eq!(group.responses, expected.collect::<Vec<_>>(), "{name}");
            assert_eq!(preferred(group), (1..texts.len()).map(|i| (0, i)).collect::<Vec<_>>(), "{name}");
        }
        let ids: Vec<&str> = groups.iter().map(|group| &*group.id).collect();
        match *name {
            "r-dup-id" => assert_eq!(ids, ["a", "a-2"]),
            _ => assert_ne!(ids[0], ids[1], "{name}"),
        }
    }
}

#[test]
fn files_without_a_comparison_are_refused_by_name() {
    for (name, parts) in REFUSED {
        let why = read(name, &ReadOptions::default()).expect_err(name);
        assert!(parts.iter().all(|part| why.contains(part)), "{name}: {parts:?} in {why}");
    }
}

#[test]
fn refused_files_are_read_in_the_way_that_the_error_names() {
    // A reward model compares conversations with different turns.
    let whole = ReadOptions { whole_conversations: true, ..ReadOptions::default() };
    for (group, [question, better, worse]) in read("trl-conv-tool_calls", &whole).unwrap().iter().zip(ROWS) {
        let Prompt::Messages(turns) = &group.prompts[0] else { panic!("{group:?}") };
        assert_eq!((turns.len(), &*turns[0].content, &*turns[1].role), (3, question, "assistant"));
        assert_eq!(turns[1].extra["tool_calls"][0]["function"]["arguments"]["place"], "Berlin");
        assert_eq!((&*turns[2].role, &*turns[2].content), ("tool", "yes"));
        assert_eq!(group.prompts[1], prompt(&Question, question));
        assert_eq!(group.responses.iter().map(Response::text).collect::<Vec<_>>(), [better, worse]);
        assert_eq!(group.tools.as_ref().unwrap()[0]["function"]["name"], "rain");
        assert_eq!(preferred(group), [(0, 1)]);
    }
    let without = ReadOptions { drop_columns: vec!["images".into()], ..ReadOptions::default() };
    assert_eq!(read("trl-conv-images", &without).unwrap()[1].prompts, [prompt(&Question, ROWS[1][0])]);
    // Rows with a label, as (question, answer, sign).
    for (name, expected) in
        [("lf-kto", &[(0, 0, 1), (1, 0, 1)][..]), ("trl-unpaired-kto", &[(0, 0, 1), (1, 0, 1), (0, 1, -1), (1, 1, -1)])]
    {
        let (rows, _) = read_unpaired_files(&[path(name)], &ReadOptions::default()).unwrap();
        assert_eq!(rows.len(), expected.len(), "{name}");
        for (row, (question, answer, sign)) in rows.iter().zip(expected) {
            let group = &row.group;
            assert_eq!(group.prompts, [prompt(&Question, ROWS[*question][0])], "{name}");
            assert_eq!(group.responses[0].text(), ROWS[*question][1 + answer], "{name}");
            assert_eq!(group.comparisons[0].terms.iter().map(|t| t.sign).collect::<Vec<_>>(), [*sign], "{name}");
        }
    }
}
