//! Rows for a reward model: no boundary between prompt and response is needed, and pairs may differ in
//! earlier turns. Ordinary rows get the same token ids as for a policy.

use mapl::data::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use mapl::data::source::{ReadOptions, SourceRow, read_files, read_texts};
use mapl::data::tokenize::{OnTooLong, Purpose, TokenizeOptions, tokenize_rows, tokenize_rows_for};
use mapl::data::tokenized::TokenizedGroup;
use mapl::data::tokenizer::Tokenizer;
use mapl::data::tree::{PrefixTree, TreeOptions};
use serde_json::{Value, json};

use crate::tokens::{TOKENIZER, chat, message, options, pair, row};

const REWARD: Purpose = Purpose { reward: true, keep_equal_ids: false };

fn with_template(source: &str) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    TOKENIZER.copy_to(folder.path()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    (folder, tokenizer)
}

/// Template whose generation prompt opens the reasoning, as in reasoning models; `owls` stands for `<think>`.
const OPEN_REASONING: &str = "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}\
    {%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\nowls' }}{%- endif -%}";
/// The text begins with the number of turns, so that prompt and conversation differ from the first token on.
const COUNTED: &str = "{{ messages | length }}{%- for m in messages -%}{{ m.role + ': ' + m.content + '<|im_end|>' }}\
    {%- endfor -%}{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}";
/// Raises an error if a generation prompt is requested.
const CLOSED: &str = "{%- if add_generation_prompt -%}{{ raise_exception('no') }}{%- endif -%}\
    {%- for m in messages -%}{{ m.role + ': ' + m.content + '<|im_end|>' }}{%- endfor -%}";

/// One response under two prompts with instructions, and a pair under the first of them.
fn three_kinds() -> SourceRow {
    let prompt = |text: &str| Prompt::Messages(vec![message("user", text)]);
    let answer = |text: &str| Response::Message(message("assistant", text));
    row(PreferenceGroup::new(
        "g".into(),
        vec![prompt("Name the birds."), prompt("Name the birds. Name owls."), prompt("Name the birds. Name the wren.")],
        vec![answer("owls"), answer("The wren sings")],
        vec![
            Comparison::pair(Kind::Base, (0, 0), (0, 1), 0.0),
            Comparison::pair(Kind::Intra, (1, 0), (2, 0), 0.0),
            Comparison::pair(Kind::Intra, (2, 1), (1, 1), 0.0),
        ],
    ))
}

/// Asserts that every sequence has the ids of its rendered conversation.
fn is_whole(group: &TokenizedGroup, tokenizer: &Tokenizer) {
    for sequence in &group.sequences {
        let Prompt::Messages(turns) = &group.group.prompts[sequence.prompt] else { unreachable!() };
        let Response::Message(answer) = &group.group.responses[sequence.response] else { unreachable!() };
        let whole: Vec<Message> = turns.iter().chain([answer]).cloned().collect();
        let text = tokenizer.require_template().unwrap().render(&whole, false, None, None).unwrap();
        let ids = [&group.prompt_ids[sequence.prompt][..], &sequence.response_ids].concat();
        assert_eq!(ids, tokenizer.encode(&text, false).unwrap(), "{text}");
    }
}

#[test]
fn a_reward_model_reads_whole_conversations_whatever_the_generation_prompt() {
    for (source, shared) in [(OPEN_REASONING, true), (COUNTED, false), (CLOSED, false)] {
        let (_folder, tokenizer) = with_template(source);
        let rows = || vec![chat("Name the birds.", "The wren sings", "owls"), three_kinds()];
        let why = tokenize_rows(rows(), &tokenizer, &options()).unwrap_err();
        assert_eq!(why.exit_code(), 3, "{why}");
        let (groups, report) = tokenize_rows_for(REWARD, rows(), &tokenizer, &options()).unwrap();
        assert_eq!((groups.len(), report.kept, report.ended), (2, 4, 8));
        for group in &groups {
            is_whole(group, &tokenizer);
            // The common prefix of a prompt and its conversations is computed once.
            let mut tree = PrefixTree::default();
            tree.build(group, TreeOptions { share: true, omit_last: false });
            let alone: usize =
                group.sequences.iter().map(|s| group.prompt_ids[s.prompt].len() + s.response_ids.len()).sum();
            assert_eq!(tree.tokens() < alone, shared, "{} of {alone} tokens", tree.tokens());
        }
        // Truncation keeps the limit, even if sequences share no prefix.
        for on_too_long in [OnTooLong::TruncatePromptLeft, OnTooLong::TruncateCompletionRight] {
            let limited = TokenizeOptions { max_length: Some(12), on_too_long, max_drop_fraction: 1.0, ..options() };
            match tokenize_rows_for(REWARD, rows(), &tokenizer, &limited) {
                Ok((groups, _)) => assert!(groups.iter().all(|group| group.longest() <= 12)),
                Err(why) => assert!(why.to_string().contains("were dropped"), "{why}"),
            }
        }
    }
}

#[test]
fn ordinary_rows_have_the_same_ids_for_reward_models_and_policies() {
    let rows = || vec![chat("Name the birds.", "The wren sings", "owls"), three_kinds(), pair("Name", " the", " owls")];
    let (policy, counts) = tokenize_rows(rows(), &TOKENIZER, &options()).unwrap();
    assert_eq!(tokenize_rows_for(REWARD, rows(), &TOKENIZER, &options()).unwrap(), (policy, counts));
}

#[test]
fn an_empty_prompt_is_no_obstacle_to_a_reward() {
    let rows = || vec![pair("", "the wren", "owls")];
    assert!(tokenize_rows(rows(), &TOKENIZER, &options()).unwrap_err().to_string().contains("the prompt has no token"));
    let (groups, _) = tokenize_rows_for(REWARD, rows(), &TOKENIZER, &options()).unwrap();
    let ids = TOKENIZER.encode("the wren", false).unwrap();
    assert_eq!(
        (groups[0].prompt_ids[0].len(), groups[0].sequences[0].response_ids.split_last()),
        (0, Some((&2, &ids[..])))
    );
}

#[test]
fn an_answer_that_the_template_drops_is_refused_for_a_reward_model_too() {
    let (_folder, tokenizer) = with_template("{{ messages[0].content }}{% if add_generation_prompt %} owls{% endif %}");
    let why = tokenize_rows_for(REWARD, vec![chat("Name", "a", "b")], &tokenizer, &options()).unwrap_err().to_string();
    assert!(why.starts_with("rows.jsonl:5 (id c): prompt 0 with response 0: the response has no token"), "{why}");
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn read(rows: &[Value], whole_conversations: bool) -> mapl::Result<Vec<SourceRow>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    read_files(&[path], &ReadOptions { whole_conversations, ..ReadOptions::default() })
}

#[test]
fn pairs_that_differ_in_earlier_turns_are_whole_conversations_of_a_reward_model_only() {
    let side = |user: &str, answer: &str| json!([turn("user", user), turn("assistant", answer)]);
    let chat = json!({"id": "c", "chosen": side("Name birds.", "wren"), "rejected": side("Name owls.", "owl"),
                      "margin": 0.5, "tools": [{"name": "rain"}]});
    let prompted = json!({"id": "p", "prompt": [turn("system", "Be short.")], "chosen": side("Name birds.", "wren"),
                          "rejected": side("Name owls.", "owl")});
    let human = json!({"id": "h", "chosen": "\n\nHuman: a\n\nAssistant: wren", "rejected": "\n\nHuman: b\n\nAssistant: owl",
                       "margin": 0.5});
    for row in [&chat, &prompted, &human] {
        let why = read(std::slice::from_ref(row), false).unwrap_err();
        assert_eq!(why.exit_code(), 3);
        assert!(why.to_string().contains("only a reward model compares whole conversations"), "{why}");
        let group = read(std::slice::from_ref(row), true).unwrap().remove(0).group;
        group.validate().unwrap();
        let margin = row["margin"].as_f64().unwrap_or_default();
        assert_eq!(group.comparisons, [Comparison::pair(Kind::Base, (0, 0), (1, 1), margin)]);
        assert_eq!(group.tools.as_ref(), row.get("tools"));
    }
    let group = read(std::slice::from_ref(&prompted), true).unwrap().remove(0).group;
    let prompt = |user: &str| Prompt::Messages(vec![message("system", "Be short."), message("user", user)]);
    assert_eq!(group.prompts, [prompt("Name birds."), prompt("Name owls.")]);
    let group = read(&[human], true).unwrap().remove(0).group;
    assert_eq!(group.prompts[1], Prompt::Text("\n\nHuman: b\n\nAssistant:".into()));
    assert_eq!(group.responses[1], Response::Text(" owl".into()));
    // Rows that a policy accepts are read in the same way for a reward model, and a tokenizer is trained on
    // every text.
    let ordinary = json!({"chosen": side("q", "a"), "rejected": side("q", "b")});
    let turns = json!({"chosen": side("q", "a"), "rejected": side("r", "a")});
    assert_eq!(read(&[ordinary.clone(), turns.clone()], true).unwrap().len(), 2);
    for row in [ordinary, turns] {
        let row = std::slice::from_ref(&row);
        assert_eq!(read(row, true).unwrap()[0].group, read(row, false).unwrap()[0].group);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, chat.to_string()).unwrap();
    assert_eq!(read_texts(&[path], &ReadOptions::default()).unwrap().0, ["Name birds.", "Name owls.", "wren", "owl"]);
}
