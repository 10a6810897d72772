//! `--apply-chat-template`: plain text as turns of a conversation.

use mapl::data::group::{Message, PreferenceGroup, Prompt, Response};
use mapl::data::source::{ReadOptions, check_used, read_files_with_reports, read_sft_files};
use serde_json::{Value, json};

use crate::sources::Folder;

fn options() -> ReadOptions {
    ReadOptions { apply_chat_template: true, ..ReadOptions::default() }
}

fn turns(row: &Value) -> Result<PreferenceGroup, String> {
    let path = Folder::new();
    let file = path.write("a.jsonl", row.to_string());
    let (rows, reports) = read_files_with_reports(&[file], &options()).map_err(|e| e.to_string())?;
    check_used(&options(), &reports).map_err(|e| e.to_string())?;
    Ok(rows[0].group.clone())
}

fn conversation(parts: &[(&str, &str)]) -> Prompt {
    Prompt::Messages(parts.iter().map(|(role, text)| Message::new(*role, *text)).collect())
}

fn answers(texts: [&str; 2]) -> Vec<Response> {
    texts.map(|text| Response::Message(Message::new("assistant", text))).into()
}

#[test]
fn strings_and_dialogues_become_turns() {
    let plain = json!({"prompt": "Name a bird.", "chosen": "A wren.", "rejected": " A bus.", "margin": 0.5});
    let group = turns(&plain).unwrap();
    assert_eq!(group.prompts, [conversation(&[("user", "Name a bird.")])]);
    assert_eq!(group.responses, answers(["A wren.", " A bus."]), "texts stay as they are");
    assert_eq!(group.comparisons[0].margin, 0.5);
    let side = |answer: &str| format!("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A bird?\n\nAssistant: {answer}");
    let hh = json!({"chosen": side("A wren."), "rejected": side("A bus.")});
    let group = turns(&hh).unwrap();
    assert_eq!(group.prompts, [conversation(&[("user", "Hi"), ("assistant", "Hello."), ("user", "A bird?")])]);
    assert_eq!(group.responses, answers(["A wren.", "A bus."]), "the space belongs to the mark");
    let prompt = json!({"prompt": "\n\nHuman: A bird?\n\nAssistant:", "chosen": " A wren.", "rejected": " A bus."});
    let group = turns(&prompt).unwrap();
    assert_eq!(
        (&group.prompts[..], group.responses),
        (&[conversation(&[("user", "A bird?")])][..], answers(["A wren.", "A bus."]))
    );
    // A group of plain text keeps its comparisons. Its tools are accepted, because a template now renders
    // them.
    let comparison = json!({"kind": "intra", "terms": [
        {"prompt": 0, "response": 0, "sign": 1}, {"prompt": 1, "response": 0, "sign": -1}]});
    let group =
        turns(&json!({"id": "g", "prompts": ["a", "b"], "responses": ["c"], "comparisons": [comparison]})).unwrap();
    assert_eq!(group.prompts, [conversation(&[("user", "a")]), conversation(&[("user", "b")])]);
    let mut tools = plain;
    tools["tools"] = json!([{"name": "f"}]);
    assert!(turns(&tools).unwrap().tools.is_some());
}

#[test]
fn rows_without_a_prompt_and_rows_of_turns_are_refused() {
    for (row, part) in [
        (json!({"chosen": "The sky is blue.", "rejected": "The sky is green."}), "needs a prompt"),
        (
            json!({"prompt": "\n\nHuman: a\n\nAssistant: b", "chosen": "c", "rejected": "d"}),
            "does not end with a Human",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "a"}], "chosen": "c", "rejected": "d"}),
            "--apply-chat-template has no effect",
        ),
        (json!({"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " ", "rejected": "d"}), "is empty"),
    ] {
        let why = turns(&row).unwrap_err();
        assert!(why.contains(part), "{part} in {why}");
    }
    let folder = Folder::new();
    let sft = |row: Value| read_sft_files(&[folder.write("s.jsonl", row.to_string())], &options());
    let (rows, _) = sft(json!({"prompt": "a", "completion": "b"})).unwrap();
    assert_eq!(rows[0].group.prompts, [conversation(&[("user", "a")])]);
    assert!(sft(json!({"text": "a"})).unwrap_err().to_string().contains("needs a prompt"));
    // Messages with a text as completion are one conversation.
    let mixed = json!({"prompt": [{"role": "user", "content": "a"}], "completion": "b"});
    let (rows, _) = read_sft_files(&[folder.write("m.jsonl", mixed.to_string())], &ReadOptions::default()).unwrap();
    assert_eq!(rows[0].group.responses[0], Response::Message(Message::new("assistant", "b")));
}
