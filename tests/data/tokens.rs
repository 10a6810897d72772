//! Tokenisation: boundaries of responses, the length limit, and the token table of a group.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use mapl::data::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response, Term};
use mapl::data::show::{ShowOptions, TokenTable, render, render_examples};
use mapl::data::source::SourceRow;
use mapl::data::tokenize::{OnTooLong, TokenizeOptions, TokenizeReport, tokenize_rows};
use mapl::data::tokenized::{Sequence, SequenceComparison, SequenceTerm, TokenizedGroup};
use mapl::data::tokenizer::{Tokenizer, train_bpe};
use mapl::rng::Rng;
use serde_json::json;

const END: u32 = 2;

fn texts() -> impl Iterator<Item = String> + Send {
    (0..300)
        .map(|i| format!("Name the {} birds of row {i}. The wren sings, and {} owls listen at night.", i % 7, i % 5))
}

/// Folder of a tokenizer that is trained once; tests copy it to make changes.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    train_bpe(texts(), 400).unwrap().save_new(folder.path()).unwrap();
    folder
});

pub static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::load(FOLDER.path()).unwrap());

/// The tokenizer with edited files: (name, key, value) sets a value in a JSON file.
pub fn changed(edits: &[(&str, &str, serde_json::Value)]) -> (tempfile::TempDir, mapl::Result<Tokenizer>) {
    let folder = tempfile::tempdir().unwrap();
    TOKENIZER.copy_to(folder.path()).unwrap();
    for (name, key, value) in edits {
        let path = folder.path().join(name);
        let mut json: serde_json::Value =
            std::fs::read(&path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        json[*key] = value.clone();
        std::fs::write(&path, json.to_string()).unwrap();
    }
    let tokenizer = Tokenizer::load(folder.path());
    (folder, tokenizer)
}

/// A post-processor that prepends `front` and appends `back` to a text.
fn post_processor(front: Option<(&str, u32)>, back: Option<(&str, u32)>) -> serde_json::Value {
    let piece = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let mut single: Vec<_> = front.iter().map(|(token, _)| piece(token)).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(back.iter().map(|(token, _)| piece(token)));
    let tokens: serde_json::Map<_, _> = front
        .iter()
        .chain(&back)
        .map(|(token, id)| ((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": [{"Sequence": {"id": "A", "type_id": 0}},
           {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": tokens})
}

fn with_bos() -> (tempfile::TempDir, Tokenizer) {
    let (folder, tokenizer) = changed(&[
        ("tokenizer.json", "post_processor", post_processor(Some(("<|endoftext|>", 0)), None)),
        ("tokenizer_config.json", "bos_token", json!("<|endoftext|>")),
    ]);
    (folder, tokenizer.unwrap())
}

pub fn row(group: PreferenceGroup) -> SourceRow {
    group.validate().unwrap();
    SourceRow { group, file: Arc::from(Path::new("rows.jsonl")), line: 5, scores: None }
}

pub fn pair(prompt: &str, chosen: &str, rejected: &str) -> SourceRow {
    let text = |s: &str| Response::Text(s.into());
    row(PreferenceGroup::pair("r".into(), Prompt::Text(prompt.into()), text(chosen), text(rejected), 0.0))
}

pub fn message(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

pub fn chat(question: &str, chosen: &str, rejected: &str) -> SourceRow {
    let answer = |s: &str| Response::Message(message("assistant", s));
    let prompt = Prompt::Messages(vec![message("user", question)]);
    row(PreferenceGroup::pair("c".into(), prompt, answer(chosen), answer(rejected), 0.0))
}

pub fn options() -> TokenizeOptions {
    TokenizeOptions::default()
}

pub fn one(row: SourceRow, tokenizer: &Tokenizer) -> mapl::Result<TokenizedGroup> {
    tokenize_rows(vec![row], tokenizer, &options()).map(|(mut groups, _)| groups.remove(0))
}

fn ids(text: &str) -> Vec<u32> {
    TOKENIZER.encode(text, false).unwrap()
}

#[test]
fn plain_text_gets_one_end_token() {
    let group = one(pair("Name the birds.", " The wren sings", " The owls<|im_end|>"), &TOKENIZER).unwrap();
    assert_eq!(group.prompt_ids, [ids("Name the birds.")]);
    assert_eq!(group.sequences[0].response_ids, [ids(" The wren sings"), vec![END]].concat());
    assert_eq!(group.sequences[1].response_ids, [ids(" The owls"), vec![END]].concat());
    // A post-processor that appends the EOS token changes nothing, and the prompt gets no EOS token.
    let (_folder, ending) =
        changed(&[("tokenizer.json", "post_processor", post_processor(None, Some(("<|im_end|>", END))))]);
    assert_eq!(
        one(pair("Name the birds.", " The wren sings", " The owls<|im_end|>"), &ending.unwrap()).unwrap(),
        group
    );
}

#[test]
fn any_end_id_of_the_folder_counts_as_an_end() {
    let (_folder, tokenizer) = changed(&[("generation_config.json", "eos_token_id", json!([0, 2]))]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.end_ids(), [2, 0]);
    let group = one(pair("Name", " wren<|endoftext|>", " owls"), &tokenizer).unwrap();
    assert_eq!(group.sequences[0].response_ids.last(), Some(&0));
    assert_eq!(group.sequences[1].response_ids.last(), Some(&END));
}

#[test]
fn conversations_are_tokenised_as_rendered() {
    let (groups, report) =
        tokenize_rows(vec![chat("Name the birds.", "wren", "owls")], &TOKENIZER, &options()).unwrap();
    assert_eq!(groups[0].prompt_ids[0], ids("<|im_start|>user\nName the birds.<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(groups[0].sequences[0].response_ids, ids("wren<|im_end|>"));
    assert_eq!((report.ended, report.kept_sequences, report.plain_sequences), (2, 2, 0));
    // A line break after the EOS token still counts as the end of the turn.
    let folder = tempfile::tempdir().unwrap();
    let source = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    TOKENIZER.copy_to(folder.path()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let (groups, report) = tokenize_rows(vec![chat("q", "wren", "owls")], &tokenizer, &options()).unwrap();
    assert_eq!(groups[0].sequences[0].response_ids, ids("wren<|im_end|>\n"));
    assert_eq!(report.ended, 2);
}

#[test]
fn a_template_that_rewrites_turns_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    TOKENIZER.copy_to(folder.path()).unwrap();
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: think{% endif %}";
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let mut settings = options();
    settings.max_boundary_mismatch = 1.0;
    let error = tokenize_rows(vec![chat("q", "wren", "owls")], &tokenizer, &settings).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), 3);
    assert!(
        text.starts_with("rows.jsonl:5 (id c): prompt 0 with response 0: the rendered prompt is not a prefix"),
        "{text}"
    );
    assert!(text.contains("think") && text.contains("wren") && text.contains("--chat-template-path"), "{text}");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let error = one(chat("q", "wren", "owls"), &Tokenizer::load(folder.path()).unwrap()).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains("no chat template"));
}

#[test]
fn merges_across_the_boundary_are_counted_and_encoded_separately() {
    let rows = vec![pair("Name the bir", "ds sing", " wren"), pair("Name", " the", " owls")];
    let (groups, report) = tokenize_rows(rows.clone(), &TOKENIZER, &options()).unwrap();
    assert_eq!((report.boundary_mismatches, report.plain_sequences), (1, 4));
    assert_eq!(groups[0].prompt_ids[0], ids("Name the bir"));
    assert_eq!(groups[0].sequences[0].response_ids, [ids("ds sing"), vec![END]].concat());
    let strict = TokenizeOptions { max_boundary_mismatch: 0.2, ..options() };
    let why = tokenize_rows(rows, &TOKENIZER, &strict).unwrap_err().to_string();
    assert!(why.starts_with("rows.jsonl:5 (id r): tokens merge across the end of the prompt in 1 of 4"), "{why}");
}

#[test]
fn two_bos_tokens_are_refused_unless_allowed() {
    let (_folder, tokenizer) = with_bos();
    let group = one(pair("Name", " the", " owls"), &tokenizer).unwrap();
    assert_eq!(group.prompt_ids[0], [vec![0], ids("Name")].concat());
    let twice = || vec![pair("<|endoftext|>Name", " the", " owls")];
    let error = tokenize_rows(twice(), &tokenizer, &options()).unwrap_err().to_string();
    assert!(error.contains("two BOS") && error.contains("--allow-double-bos"), "{error}");
    let allowed = TokenizeOptions { allow_double_bos: true, ..options() };
    assert_eq!(tokenize_rows(twice(), &tokenizer, &allowed).unwrap().0[0].prompt_ids[0][..2], [0, 0]);
}

#[test]
fn a_prompt_without_tokens_is_refused_except_in_fine_tuning() {
    let why = one(pair("", "the", "owls"), &TOKENIZER).unwrap_err().to_string();
    assert!(why.contains("the prompt has no token"), "{why}");
    let mut tuning = pair("", "the wren sings", "x");
    tuning.group.comparisons.clear();
    tuning.group.responses.truncate(1);
    let group = one(tuning.clone(), &TOKENIZER).unwrap();
    let whole = [ids("the wren sings"), vec![END]].concat();
    assert_eq!((&group.prompt_ids[0][..], &group.sequences[0].response_ids[..]), whole.split_at(1));
    assert!(group.comparisons.is_empty());
    // With a BOS token, BOS is the context and all other tokens contribute to the loss.
    let (_folder, tokenizer) = with_bos();
    let group = one(tuning, &tokenizer).unwrap();
    assert_eq!((&group.prompt_ids[0], &group.sequences[0].response_ids), (&vec![0], &whole));
}

#[test]
fn a_message_cannot_answer_plain_text() {
    let mut mixed = pair("Name", " the", " owls");
    mixed.group.responses[1] = Response::Message(message("assistant", "owls"));
    assert!(
        one(mixed, &TOKENIZER)
            .unwrap_err()
            .to_string()
            .contains("the response is a message, but the prompt is plain text")
    );
}

/// Groups of random lengths with several prompts, two responses and all kinds of comparisons.
fn random_rows(seed: u64, rows: usize) -> Vec<SourceRow> {
    let words = ["Name", " the", " birds", " of", " row", ".", " wren", " sings", ",", " owls", " night", " zq"];
    let mut rng = Rng::keyed(seed, &["rows"]);
    let mut text = |low: usize, high: usize| -> String {
        let length = rng.range(low, high);
        (0..length).map(|_| *rng.choose(&words).unwrap()).collect()
    };
    (0..rows)
        .map(|i| {
            let x = text(1, 12);
            let prompts: Vec<String> = vec![x.clone(), x.clone() + &text(1, 8), x + &text(1, 8)];
            let responses = [text(1, 20), text(1, 20)];
            let term = |prompt, response, sign| Term { prompt, response, sign };
            let comparison =
                |kind, terms| Comparison { kind, terms, margin: 0.25, weight: 0.5, rule: None, direction: None };
            row(PreferenceGroup::new(
                format!("g{i}"),
                prompts.into_iter().map(Prompt::Text).collect(),
                responses.into_iter().map(Response::Text).collect(),
                vec![
                    comparison(Kind::Base, vec![term(0, 0, 1), term(0, 1, -1)]),
                    comparison(Kind::Intra, vec![term(1, 0, 1), term(2, 0, -1)]),
                    comparison(Kind::Inter, vec![term(1, 0, 1), term(0, 1, 1), term(1, 1, -1), term(0, 0, -1)]),
                ],
            ))
        })
        .collect()
}

fn limited(rows: &[SourceRow], max_length: usize, on_too_long: OnTooLong) -> (Vec<TokenizedGroup>, TokenizeReport) {
    let options = TokenizeOptions {
        max_length: Some(max_length),
        on_too_long,
        max_drop_fraction: 1.0,
        max_boundary_mismatch: 1.0,
        ..options()
    };
    tokenize_rows(rows.to_vec(), &TOKENIZER, &options).unwrap()
}

#[test]
fn the_length_limit_holds_and_no_response_is_empty() {
    let rows = random_rows(1, 120);
    let (whole, _) = limited(&rows, 1000, OnTooLong::Error);
    let whole: HashMap<String, TokenizedGroup> = whole.into_iter().map(|g| (g.group.id.clone(), g)).collect();
    assert_eq!(whole.len(), 120);
    let find = |group: &TokenizedGroup, s: &Sequence| {
        let all = &group.sequences;
        all.iter().find(|t| (t.prompt, t.response) == (s.prompt, s.response)).unwrap().response_ids.clone()
    };
    for rule in [OnTooLong::Drop, OnTooLong::TruncatePromptLeft, OnTooLong::TruncateCompletionRight] {
        let (mut cut, mut dropped) = (0, 0);
        for max in [18, 24, 32, 40, 56] {
            let (groups, report) = limited(&rows, max, rule);
            assert_eq!(report.kept, groups.iter().map(|g| g.comparisons.len()).sum::<usize>());
            assert_eq!((report.read, report.rows_read, report.rows_kept), (360, 120, groups.len()));
            let reasons = report.dropped_too_long + report.dropped_no_room + report.dropped_sides_equal;
            assert_eq!(report.dropped(), reasons);
            dropped += report.dropped();
            cut += report.truncated_prompts + report.truncated_responses;
            for group in &groups {
                let full = &whole[&group.group.id];
                assert!(group.longest() <= max);
                assert_eq!(group.comparisons.len(), group.group.comparisons.len());
                for (ids, source) in group.comparisons.iter().zip(&group.group.comparisons) {
                    assert_eq!((ids.kind, ids.terms.len(), ids.margin), (source.kind, source.terms.len(), 0.25));
                    for (term, from) in ids.terms.iter().zip(&source.terms) {
                        let sequence = &group.sequences[term.sequence];
                        assert_eq!(
                            (sequence.prompt, sequence.response, term.sign),
                            (from.prompt, from.response, from.sign)
                        );
                    }
                }
                for sequence in &group.sequences {
                    let (prompt, response) = (&group.prompt_ids[sequence.prompt], &sequence.response_ids);
                    let (all_prompt, all_response) = (&full.prompt_ids[sequence.prompt], find(full, sequence));
                    assert!(!prompt.is_empty() && !response.is_empty());
                    match rule {
                        OnTooLong::TruncatePromptLeft => {
                            assert!(all_prompt.ends_with(prompt));
                            assert_eq!(response, &all_response);
                        }
                        OnTooLong::TruncateCompletionRight => {
                            assert_eq!(prompt, all_prompt);
                            assert!(all_response.starts_with(response));
                            assert_eq!(response.len() == all_response.len(), response.last() == Some(&END));
                        }
                        _ => {
                            assert_eq!(prompt, all_prompt);
                            assert_eq!(response, &all_response);
                        }
                    }
                }
            }
        }
        assert!(dropped > 0, "{rule:?}: no limit dropped anything, so the test is vacuous");
        assert_eq!(cut > 0, rule != OnTooLong::Drop, "{rule:?}");
    }
}

#[test]
fn dropping_too_many_comparisons_is_an_error_with_advice() {
    let rows = random_rows(2, 20);
    let strict = TokenizeOptions { max_length: Some(24), ..options() };
    let error = tokenize_rows(rows.clone(), &TOKENIZER, &strict).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), 3);
    assert!(text.contains("--max-drop-fraction 0.2") && text.contains("too long"), "{text}");
    assert!(text.contains(&format!("the longest sequence has {}", limited(&rows, 999, OnTooLong::Drop).1.lengths.max)));
    let stop = TokenizeOptions { max_length: Some(24), on_too_long: OnTooLong::Error, ..options() };
    let text = tokenize_rows(rows.clone(), &TOKENIZER, &stop).unwrap_err().to_string();
    assert!(text.contains("above --max-length 24"), "{text}");
    let none = TokenizeOptions { max_length: Some(2), max_drop_fraction: 1.0, ..options() };
    assert_eq!(tokenize_rows(rows, &TOKENIZER, &none).unwrap_err().exit_code(), 3, "nothing was kept");
    let bad = TokenizeOptions { max_drop_fraction: f64::NAN, ..options() };
    assert_eq!(tokenize_rows(Vec::new(), &TOKENIZER, &bad).unwrap_err().exit_code(), 2);
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let rows = random_rows(3, 200);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| limited(&rows, 32, OnTooLong::TruncatePromptLeft))
    };
    let alone = run(1);
    assert_eq!(run(7), alone);
    assert_eq!(run(2), alone);
    // The error names the first of several bad rows.
    let mut bad = rows.clone();
    for i in [150, 40, 90] {
        bad[i].group.prompts[0] = Prompt::Text(String::new());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(7).build().unwrap();
    for _ in 0..5 {
        let error = pool.install(|| tokenize_rows(bad.clone(), &TOKENIZER, &options())).unwrap_err().to_string();
        assert!(error.contains("(id g40)"), "{error}");
    }
}

/// One id for every distinct word or punctuation mark, and an EOS token after each response.
fn by_words(group: PreferenceGroup) -> TokenizedGroup {
    let word = regex::Regex::new(r"\w+|[^\w\s]").unwrap();
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut ids = |text: &str| -> Vec<u32> {
        let mut id = |word: &str| {
            let next = known.len() as u32 + 1;
            *known.entry(word.to_owned()).or_insert(next)
        };
        word.find_iter(text).map(|found| id(found.as_str())).collect()
    };
    let prompt_ids = group.prompts.iter().map(|p| match p {
        Prompt::Text(text) => ids(text),
        Prompt::Messages(_) => panic!("the example is plain text"),
    });
    let prompt_ids: Vec<Vec<u32>> = prompt_ids.collect();
    let pairs = group.sequences();
    let sequences = pairs
        .iter()
        .map(|&(prompt, response)| {
            let response_ids = [ids(group.responses[response].text()), vec![0]].concat();
            Sequence { prompt, response, response_ids }
        })
        .collect();
    let term = |t: &Term| SequenceTerm {
        sequence: pairs.iter().position(|&pair| pair == (t.prompt, t.response)).unwrap(),
        sign: t.sign,
        detached: false,
    };
    let comparisons = group
        .comparisons
        .iter()
        .map(|c| SequenceComparison {
            kind: c.kind,
            terms: c.terms.iter().map(term).collect(),
            margin: c.margin,
            weight: c.weight,
            detached_clip: None,
        })
        .collect();
    TokenizedGroup { group: Arc::new(group), prompt_ids, sequences, comparisons }
}

#[test]
fn the_token_table_matches_the_worked_example() {
    let group: PreferenceGroup = serde_json::from_str(include_str!("../fixtures/bakery_group.json")).unwrap();
    let table = TokenTable::new(&by_words(group));
    assert_eq!(table, TokenTable { terms: (14, 812), sequences: (8, 498), prompts: (5, 409), tree: (93, 337) });
    let text = table.to_string();
    for part in ["(14 terms)", "812", "498", "409", "prompts 93, responses 244", "337", "42 %"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn printing_marks_trained_tokens_and_shows_special_tokens() {
    let group = one(chat("Name\u{1b}[2J", "wren", "owls"), &TOKENIZER).unwrap();
    let text = render(&group, &TOKENIZER, ShowOptions::default()).unwrap();
    assert!(text.contains("<|im_start|>assistant\n[[wren<|im_end|>]]"), "{text}");
    assert!(text.contains("base +sequence 0 -sequence 1"));
    assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[2J"), "control characters must be escaped");
    assert!(!text.contains("ids ["));
    let text = render(&group, &TOKENIZER, ShowOptions { color: true, ids: true }).unwrap();
    assert!(text.contains("\u{1b}[1;32mwren<|im_end|>\u{1b}[0m"), "{text}");
    assert!(text.contains(&format!("{:?}", group.sequences[0].response_ids)));
    let (groups, _) = limited(&random_rows(4, 3), 1000, OnTooLong::Error);
    let text = render_examples(&groups, &TOKENIZER, ShowOptions::default()).unwrap();
    assert_eq!(text.matches("[[").count(), 8, "a base, an intra and an inter comparison have 8 terms\n{text}");
    assert_eq!(text.matches(" of group g0\n").count(), 3);
    assert!(text.lines().all(|line| line.chars().count() < 80), "{text}");
    let signs = |sign: &str| text.lines().filter(|line| line.starts_with(sign)).count();
    assert_eq!((signs("  + "), signs("  - ")), (4, 4));
    let text = render(&groups[0], &TOKENIZER, ShowOptions::default()).unwrap();
    for (kind, terms) in [("base", "+sequence 0 -sequence 1"), ("intra", "+sequence 2 -sequence 4")] {
        assert!(text.contains(&format!("{kind} {terms}, margin 0.25, weight 0.5\n")), "{text}");
    }
}

#[test]
fn special_tokens_are_read_from_every_file_and_form() {
    let (_folder, tokenizer) = changed(&[
        ("tokenizer_config.json", "eos_token", json!(null)),
        ("tokenizer_config.json", "pad_token", json!({"content": "<|endoftext|>", "lstrip": false})),
        ("special_tokens_map.json", "eos_token", json!("<|im_end|>")),
    ]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (Some(2), Some(0)));
    let why = |edit: (&str, &str, serde_json::Value)| changed(&[edit]).1.unwrap_err();
    let error = why(("tokenizer_config.json", "eos_token", json!("</none>")));
    assert!(error.exit_code() == 6 && error.to_string().contains("\"</none>\" is not in the vocabulary"));
    assert!(why(("tokenizer_config.json", "eos_token", json!(7))).to_string().contains("must be a string"));
    assert!(why(("config.json", "eos_token_id", json!("x"))).to_string().contains("not a token id"));
    assert!(why(("tokenizer.json", "model", json!(1))).to_string().contains("cannot be read"));
    let added = json!([{"id": 9, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true}]);
    assert!(why(("tokenizer.json", "added_tokens", added)).to_string().contains("listed with id 9"));
    let (folder, tokenizer) = changed(&[]);
    let file = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    for (from, to, expected) in [
        ("\"dropout\":null", "\"dropout\":0.1", "has dropout"),
        ("\"decoder\":{", "\"decoder\":{\"a\" 1,", "is not valid JSON"),
    ] {
        assert!(text.contains(from) && tokenizer.is_ok());
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(error.exit_code() == 6 && error.to_string().contains(expected), "{error}");
    }
    let (_folder, tokenizer) = changed(&[("tokenizer_config.json", "add_bos_token", json!(true))]);
    assert!(tokenizer.unwrap().notes()[0].contains("add_bos_token = true"));
    let empty = tempfile::tempdir().unwrap();
    assert!(Tokenizer::load(empty.path()).unwrap_err().to_string().contains("tokenizer.json: is missing"));
}

#[test]
fn stored_truncation_and_padding_are_ignored() {
    let truncation = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 3,
                         "pad_type_id": 0, "pad_token": "<|pad|>"});
    let (_folder, tokenizer) =
        changed(&[("tokenizer.json", "truncation", truncation), ("tokenizer.json", "padding", padding)]);
    let text = "Name the birds of row 7.";
    assert_eq!(tokenizer.unwrap().encode(text, true).unwrap(), ids(text));
}
