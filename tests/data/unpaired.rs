//! Rows with one response and a label, and pairs that become such rows.

use mapl::data::group::{Message, Prompt, Response};
use mapl::data::source::{ReadOptions, SourceRow, read_unpaired_files, split_pairs};
use serde_json::{Value, json};

use crate::sources::Folder;

const Q: &str = "Which city is on the Spree?";
const GOOD: &str = "Berlin is.";
const BAD: &str = "Cities are old.";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// (prompt, response, sign) of rows with one response and a label.
fn labelled(rows: &[Value]) -> Result<Vec<(Prompt, Response, i8)>, String> {
    let folder = Folder::new();
    let path = folder.write("kto.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let options = ReadOptions { mixed_formats: true, ..ReadOptions::default() };
    let (rows, _) = read_unpaired_files(&[path], &options).map_err(|e| e.to_string())?;
    let (rows, _) = split_pairs(rows).map_err(|e| e.to_string())?;
    let one = |row: SourceRow| match &row.group.comparisons[..] {
        [comparison] if comparison.terms.len() == 1 => {
            (row.group.prompts[0].clone(), row.group.responses[0].clone(), comparison.terms[0].sign)
        }
        other => panic!("{other:?}"),
    };
    Ok(rows.into_iter().map(one).collect())
}

#[test]
fn rows_with_a_label_are_read_for_kto() {
    let text =
        |prompt: &str, response: &str, sign| (Prompt::Text(prompt.into()), Response::Text(response.into()), sign);
    let chat = |turns: &[(&str, &str)], response: &str, sign| {
        let turns = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        (Prompt::Messages(turns), Response::Message(Message::new("assistant", response)), sign)
    };
    let rows = [
        json!({"prompt": Q, "completion": GOOD, "label": true}),
        json!({"prompt": Q, "completion": BAD, "label": "0"}),
        json!({"prompt": [user(Q)], "completion": [assistant(BAD)], "label": false}),
        json!({"messages": [user("a"), assistant("b"), user(Q), assistant(GOOD)], "kto_tag": true}),
        json!({"instruction": Q, "input": "", "output": BAD, "kto_tag": false}),
    ];
    let expected = [
        text(Q, GOOD, 1),
        text(Q, BAD, -1),
        chat(&[("user", Q)], BAD, -1),
        chat(&[("user", "a"), ("assistant", "b"), ("user", Q)], GOOD, 1),
        chat(&[("user", Q)], BAD, -1),
    ];
    assert_eq!(labelled(&rows).unwrap(), expected);
    // Each pair becomes two rows. All chosen rows come before the rejected ones, as TRL's batched map writes
    // them.
    let pair = json!({"prompt": Q, "chosen": GOOD, "rejected": BAD});
    let split = [text(Q, GOOD, 1), text(Q, GOOD, 1), text(Q, GOOD, 1), text(Q, BAD, -1), text(Q, BAD, -1)];
    assert_eq!(labelled(&[pair.clone(), rows[0].clone(), pair]).unwrap(), split);
    for (row, parts) in [
        (json!({"prompt": Q, "completion": GOOD}), &["needs a label", "kto_tag"][..]),
        (
            json!({"prompt": Q, "completion": GOOD, "label": "good"}),
            &["\"label\" is the string \"good\"", "a label of true or false is needed"],
        ),
        (json!({"prompt": Q, "completion": GOOD, "label": -1}), &["\"label\" is a number (-1)"]),
        (json!({"prompt": Q, "completion": GOOD, "chosen": GOOD, "label": true}), &["\"label\"", "chosen or rejected"]),
        (json!({"messages": [user("a"), assistant("b"), user(Q)], "label": true}), &["ends with the role", "user"]),
        (json!({"text": GOOD, "label": true}), &["no prompt"]),
        (json!({"prompt": Q, "chosen": GOOD, "rejected": BAD, "margin": 2}), &["margin 2", "mapl dpo"]),
        (json!({"prompt": Q, "completion": GOOD, "label": true, "context": "More."}), &["\"context\""]),
    ] {
        let why = labelled(std::slice::from_ref(&row)).unwrap_err();
        assert!(parts.iter().all(|part| why.contains(part)), "{row}: {parts:?} in {why}");
    }
}
