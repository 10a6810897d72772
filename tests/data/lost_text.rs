//! Text of a row that is missing from its token ids: comparisons whose sides become equal, messages that a
//! template leaves out, and columns that no reader uses.

use mapl::data::group::{Comparison, Kind, PreferenceGroup, Prompt, Response};
use mapl::data::source::{FileReport, Occurrences, ReadOptions, SourceRow, check_used, read_files_with_reports};
use mapl::data::tokenize::{Purpose, TokenizeOptions, TokenizeReport, tokenize_rows, tokenize_rows_for};
use mapl::data::tokenized::TokenizedGroup;
use mapl::data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::tokens::{TOKENIZER, chat, message, options, pair, row};

/// A tokenizer whose chat template renders turns unchanged, except that `edit` (Jinja statements) may change
/// the content `c`.
fn template(edit: &str) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    TOKENIZER.copy_to(folder.path()).unwrap();
    let source = format!(
        "{{%- for m in messages -%}}{{%- set c = m['content'] -%}}{edit}\
         {{{{ '<|im_start|>' + m['role'] + '\\n' + c + '<|im_end|>' }}}}{{%- endfor -%}}\
         {{%- if add_generation_prompt -%}}{{{{ '<|im_start|>assistant\\n' }}}}{{%- endif -%}}"
    );
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    (folder, tokenizer)
}

/// Deletes reasoning, as templates of reasoning models do.
const NO_REASONING: &str = "{%- set c = c.split('</think>')[-1] -%}";
const NO_SYSTEM: &str = "{%- if m['role'] == 'system' -%}{%- continue -%}{%- endif -%}";

/// Options under which any share of dropped comparisons is accepted.
fn lenient() -> TokenizeOptions {
    TokenizeOptions { max_drop_fraction: 1.0, ..options() }
}

fn kept(groups: &[TokenizedGroup]) -> usize {
    groups.iter().map(|group| group.comparisons.len()).sum()
}

/// Base, intra and inter comparisons under two prompts that differ in their system turns.
fn under_two_systems() -> SourceRow {
    let prompt = |system: &str| Prompt::Messages(vec![message("system", system), message("user", "Name a bird.")]);
    let answer = |text: &str| Response::Message(message("assistant", text));
    let term = |prompt, response, sign| mapl::data::group::Term { prompt, response, sign };
    let inter = Comparison {
        terms: vec![term(1, 0, 1), term(0, 1, 1), term(1, 1, -1), term(0, 0, -1)],
        ..Comparison::pair(Kind::Inter, (0, 0), (0, 1), 0.0)
    };
    row(PreferenceGroup::new(
        "s".into(),
        vec![prompt("Use one word."), prompt("Use two words.")],
        vec![answer("A wren"), answer("owls")],
        vec![
            Comparison::pair(Kind::Base, (0, 0), (0, 1), 0.0),
            Comparison::pair(Kind::Intra, (1, 0), (0, 0), 0.0),
            inter,
        ],
    ))
}

#[test]
fn comparisons_with_sides_of_equal_ids_are_dropped_with_their_place() {
    let (_folder, tokenizer) = template(NO_REASONING);
    let cancels = || chat("Name a bird.", "<think>wren or owl</think>A wren", "<think>no idea</think>A wren");
    let fine = || chat("Name a bird.", "<think>so</think>A wren", "<think>so</think>An owl");
    let (groups, report) = tokenize_rows(vec![fine(), cancels(), fine()], &tokenizer, &lenient()).unwrap();
    assert_eq!((kept(&groups), report.kept, report.dropped(), report.dropped_equal_ids), (2, 2, 1, 1));
    let warning = report.warnings().remove(1);
    assert!(warning.contains("1 of 3 comparisons (33.3 %)") && warning.contains("they are dropped"), "{warning}");
    assert!(warning.contains("rows.jsonl:5 (id c): comparison 0 (base)"), "{warning}");
    // It is an error if more comparisons are dropped than tolerated, or if none is left.
    let refused = |rows: Vec<SourceRow>, options: &TokenizeOptions| {
        let error = tokenize_rows(rows, &tokenizer, options).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    let why = refused(vec![fine(), cancels()], &options());
    assert!(why.starts_with("rows.jsonl:5 (id c): 1 of 2 comparisons (50.0 %) were dropped (1 sides with"), "{why}");
    assert!(why.contains("--chat-template-path") && !why.contains("--max-length"), "{why}");
    let why = refused(vec![cancels(), cancels()], &lenient());
    assert!(why.contains("all 2 comparisons were dropped (2 sides with equal ids)"), "{why}");
    // Scores and pages show every row, so comparisons whose sides have equal token ids are kept.
    let purpose = Purpose { keep_equal_ids: true, ..Purpose::default() };
    let (groups, report) = tokenize_rows_for(purpose, vec![cancels()], &tokenizer, &options()).unwrap();
    assert_eq!((kept(&groups), report.equal_ids, report.dropped()), (1, 1, 0));
    assert!(report.warnings()[1].contains("their scores are equal"));
}

#[test]
fn intra_and_inter_comparisons_cancel_when_their_prompts_render_alike() {
    let (_folder, tokenizer) = template(NO_SYSTEM);
    let (groups, report) = tokenize_rows(vec![under_two_systems()], &tokenizer, &lenient()).unwrap();
    assert_eq!((kept(&groups), report.kept_by_kind, report.dropped_equal_ids), (1, [1, 0, 0], 2));
    assert_eq!(groups[0].sequences.len(), 2);
    // The template of the folder renders the system turns.
    let (groups, report) = tokenize_rows(vec![under_two_systems()], &TOKENIZER, &options()).unwrap();
    assert_eq!((kept(&groups), report.equal_ids, report.warnings().len()), (3, 0, 0));
}

#[test]
fn sides_of_equal_text_are_no_loss_of_text() {
    // `data check` reports pairs with equal responses. Training keeps them, since other terms of the loss may
    // use them.
    let same = chat("Name a bird.", "A wren", "A wren");
    let (groups, report) = tokenize_rows(vec![same], &TOKENIZER, &options()).unwrap();
    assert_eq!((kept(&groups), report.equal_ids, report.dropped()), (1, 0, 0));
    let same = pair("Name a bird.", " A wren", " A wren");
    assert_eq!(tokenize_rows(vec![same], &TOKENIZER, &options()).unwrap().1.equal_ids, 0);
}

#[test]
fn plain_text_sides_that_the_tokenizer_makes_equal_are_dropped_too() {
    let (_folder, tokenizer) =
        crate::tokens::changed(&[("tokenizer.json", "normalizer", json!({"type": "Lowercase"}))]);
    let rows = vec![pair("name", " THE wren", " the WREN"), pair("name", " the wren", " the owls")];
    let (groups, report) = tokenize_rows(rows, &tokenizer.unwrap(), &lenient()).unwrap();
    assert_eq!((kept(&groups), report.dropped_equal_ids), (1, 1));
}

fn messages(row: SourceRow, tokenizer: &Tokenizer) -> TokenizeReport {
    let purpose = Purpose { keep_equal_ids: true, ..Purpose::default() };
    tokenize_rows_for(purpose, vec![row], tokenizer, &lenient()).unwrap().1
}

#[test]
fn messages_that_a_template_leaves_out_are_counted_with_an_example() {
    let (_folder, tokenizer) = template(NO_SYSTEM);
    let report = messages(under_two_systems(), &tokenizer);
    // The row has two prompts of two turns, and two answers under each prompt.
    assert_eq!((report.messages, report.lost_messages), (8, 2));
    let warning = &report.warnings()[0];
    assert!(warning.contains("2 of 8 messages (25.0 %)"), "{warning}");
    assert!(warning.contains("rows.jsonl:5 (id s): the system turn \"Use one word.\""), "{warning}");
    let (_folder, tokenizer) = template(NO_REASONING);
    let report = messages(chat("Name a bird.", "<think>so</think>A wren", "An owl"), &tokenizer);
    assert_eq!((report.messages, report.lost_messages), (3, 1));
    assert!(report.warnings()[0].contains("the assistant turn \"<think>so</think>A wren\""));
    // This template renders no plain text, like one that reads only lists of content parts.
    let (_folder, tokenizer) = template("{%- set c = '' -%}");
    let report = messages(chat("Name a bird.", "A wren", "An owl"), &tokenizer);
    assert_eq!((report.messages, report.lost_messages, report.equal_ids), (3, 3, 1));
}

/// Tool calls and reasoning reach the template, and are counted if it leaves them out.
#[test]
fn tool_calls_and_reasoning_that_a_template_leaves_out_are_counted() {
    let mut row = chat("Rain?", "Yes.", "No.");
    let with = |row: &mut SourceRow, response: usize, key: &str, value: Value| {
        let Response::Message(message) = &mut row.group.responses[response] else { panic!() };
        message.extra.insert(key.into(), value);
    };
    with(&mut row, 0, "reasoning_content", json!("It pours."));
    with(&mut row, 1, "tool_calls", json!([{"type": "function", "function": {"name": "sky", "arguments": {}}}]));
    let (_folder, tokenizer) = template("");
    let report = messages(row.clone(), &tokenizer);
    assert_eq!((report.messages, report.lost_messages), (5, 2));
    assert!(report.warnings()[0].contains("\"reasoning_content\" of the assistant turn \"It pours.\""));
    let print = "{%- if m['reasoning_content'] -%}{%- set c = m['reasoning_content'] + c -%}{%- endif -%}\
                 {%- if m['tool_calls'] -%}{%- set c = c + m['tool_calls'][0]['function']['name'] -%}{%- endif -%}";
    let (_folder, tokenizer) = template(print);
    let report = messages(row.clone(), &tokenizer);
    assert_eq!((report.messages, report.lost_messages), (5, 0), "{:?}", report.warnings());
    // Sides that differ in a tool call only are different texts.
    let mut row = chat("Rain?", "Yes.", "Yes.");
    with(&mut row, 1, "tool_calls", json!([{"type": "function", "function": {"name": "sky", "arguments": {}}}]));
    let (_folder, tokenizer) = template("");
    assert_eq!(messages(row, &tokenizer).equal_ids, 1);
}

#[test]
fn trimmed_messages_are_complete_and_ignored_tools_are_not() {
    let (_folder, tokenizer) = template("{%- set c = c | trim -%}");
    let report = messages(chat(" Name a bird.\n", " A wren", "An owl\n\n"), &tokenizer);
    assert_eq!((report.messages, report.lost_messages, report.warnings().len()), (3, 0, 0));
    let mut row = chat("Rain?", "Yes.", "No.");
    row.group.tools = Some(json!([{"type": "function", "function": {"name": "rain"}}, {"name": "snow"}]));
    let report = messages(row, &tokenizer);
    assert_eq!((report.messages, report.lost_messages), (5, 2));
    assert!(report.warnings()[0].contains("the tool \"rain\""));
}

fn report(rows: &[Value], column_map: &str) -> FileReport {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let options = ReadOptions { column_map: column_map.parse().unwrap(), ..ReadOptions::default() };
    read_files_with_reports(&[path], &options).unwrap().1.remove(0)
}

#[test]
fn unused_columns_that_may_belong_to_the_conversation_are_refused_by_name() {
    let read = |extra: Value, drop: &[&str]| {
        let mut row = json!({"prompt": "q", "chosen": " a", "rejected": " b"});
        row.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, row.to_string()).unwrap();
        let drop_columns = drop.iter().map(|name| (*name).to_owned()).collect();
        let options = ReadOptions { drop_columns, ..ReadOptions::default() };
        let (_, reports) = read_files_with_reports(&[path], &options).map_err(|e| e.to_string())?;
        check_used(&options, &reports).map_err(|e| e.to_string())
    };
    // `question` repeats the prompt; `source` and `turns` hold no text of a conversation.
    for harmless in [
        json!({"History": [], "source": "web", "turns": 2, "context": null, "question": "q"}),
        json!({"query": " q ", "instruction": "", "images": [], "audio": null}),
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
    ] {
        read(harmless, &[]).unwrap();
    }
    for (extra, named) in [
        (json!({"context": "Be short."}), &["context"][..]),
        (json!({"History": [["a", "c"]], "question": "why?"}), &["History", "question"]),
        (json!({"instruction": "Name a bird."}), &["instruction"]),
        (json!({"documents": [{"title": "x", "body": "y"}]}), &["documents"]),
        (json!({"tools": [{"name": "rain"}]}), &["tools"]),
        (json!({"images": ["a.png"]}), &["images"]),
        (json!({"audio": {"path": "a.wav"}}), &["audio"]),
    ] {
        let why = read(extra.clone(), &[]).unwrap_err();
        assert!(named.iter().all(|name| why.contains(&format!("\"{name}\""))), "{why}");
        assert!(why.contains("rows.jsonl:1 (id rows-1)") && why.contains("--drop-columns"), "{why}");
        read(extra, named).unwrap();
    }
    let why = read(json!({}), &["sytem"]).unwrap_err();
    assert!(why.contains("--drop-columns sytem: no row has this column"), "{why}");
}

#[test]
fn lists_of_messages_stored_as_text_are_named_with_a_count() {
    let json_text = json!([{"role": "user", "content": "q"}]).to_string();
    let python_text = "[{'role': 'assistant', 'content': \"it's a wren\"}]";
    let rows = [
        json!({"prompt": "q", "chosen": "[1, 2]", "rejected": " b"}),
        json!({"prompt": json_text, "chosen": python_text, "rejected": "[{'role': 'assistant', 'content': 'b'}]"}),
    ];
    let found = report(&rows, "");
    let at_2 = Occurrences { rows: 1, first_line: 2 };
    assert_eq!(found.messages_as_text.values().copied().collect::<Vec<_>>(), [at_2; 3]);
    let warnings = found.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in
        ["rows.jsonl:2: in 1 of 2 rows", "\"chosen\", \"prompt\", \"rejected\"", "json.loads", "ast.literal_eval"]
    {
        assert!(warnings[0].contains(part), "no {part:?} in {warnings:?}");
    }
}

#[test]
fn tools_stored_as_json_text_are_parsed() {
    let turn = |role: &str| json!([{"role": role, "content": "x"}]);
    let mut chat = json!({"prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant"),
                          "tools": "[{\"name\": \"rain\"}]"});
    let read = |row: &Value| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, row.to_string()).unwrap();
        read_files_with_reports(&[path], &ReadOptions::default()).map(|(mut rows, _)| rows.remove(0).group.tools)
    };
    assert_eq!(read(&chat).unwrap(), Some(json!([{"name": "rain"}])));
    chat["tools"] = json!("rain");
    assert!(read(&chat).unwrap_err().to_string().contains("a list as JSON text; found the string \"rain\""));
}
