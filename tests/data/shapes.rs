//! Rows in the formats of published data sets and other tools. The question is in the prompt, the system text
//! is the system turn, and the better answer is preferred. Otherwise the error names the row.

use mapl::data::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use mapl::data::source::{FileReport, Pairs, ReadOptions, check_used, read_files_with_reports, read_sft_files};
use serde_json::{Value, json};

use crate::sources::Folder;

const Q: &str = "Which city is on the Spree?";
const GOOD: &str = "Berlin is.";
const BAD: &str = "Cities are old.";
const MIDDLE: &str = "Berlin, or Cottbus.";

fn read(row: Value, options: &ReadOptions) -> Result<(PreferenceGroup, FileReport), String> {
    let folder = Folder::new();
    let path = folder.write("rows.jsonl", row.to_string());
    let (mut rows, mut reports) = read_files_with_reports(&[path], options).map_err(|e| e.to_string())?;
    check_used(options, &reports).map_err(|e| e.to_string())?;
    let group = rows.remove(0).group;
    group.validate()?;
    Ok((group, reports.remove(0)))
}

fn plain(row: Value) -> PreferenceGroup {
    read(row, &ReadOptions::default()).unwrap().0
}

fn refused(row: &Value) -> String {
    read(row.clone(), &ReadOptions::default()).map(|(group, _)| group).expect_err(&row.to_string())
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// The group of a question with two answers, after a system text and earlier turns.
fn expected(id: &str, before: &[(&str, &str)]) -> PreferenceGroup {
    let answer = |text: &str| Response::Message(Message::new("assistant", text));
    let turns = before.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    PreferenceGroup::pair(id.into(), Prompt::Messages(turns), answer(GOOD), answer(BAD), 0.0)
}

#[test]
fn questions_by_other_names_are_the_prompt() {
    let sides = |row: Value| {
        let mut row = row;
        row["chosen"] = json!(GOOD);
        row["rejected"] = json!(BAD);
        row
    };
    let with_system = [("system", "Be brief."), ("user", Q)];
    for (row, before) in [
        (sides(json!({"instruction": Q, "input": ""})), &with_system[1..]),
        (sides(json!({"instruction": Q})), &with_system[1..]),
        (sides(json!({"question": Q})), &with_system[1..]),
        (sides(json!({"query": Q})), &with_system[1..]),
        (sides(json!({"input": Q, "system": null})), &with_system[1..]),
        (sides(json!({"system": "Be brief.", "question": Q})), &with_system),
        (sides(json!({"system": "Be brief.", "prompt": Q})), &with_system),
        (sides(json!({"system": "", "prompt": Q})), &with_system[1..]),
        (sides(json!({"system_prompt": "Be brief.", "conversations": [{"from": "human", "value": Q}]})), &with_system),
        (sides(json!({"messages": [{"role": "system", "content": "Be brief."}, user(Q)]})), &with_system),
        (
            sides(json!({"instruction": Q, "input": "Answer in a word.", "history": [["Hi.", "Hello."]]})),
            &[("user", "Hi."), ("assistant", "Hello."), ("user", "Which city is on the Spree?\nAnswer in a word.")],
        ),
    ] {
        assert_eq!(plain(row.clone()), expected("rows-1", before), "{row}");
    }
    // A row with only `prompt` stays plain text, which the response continues.
    let group = plain(sides(json!({"prompt": Q})));
    assert_eq!((&group.prompts[0], group.responses[0].text()), (&Prompt::Text(Q.into()), GOOD));
}

#[test]
fn system_texts_and_prompts_join_conversations_once() {
    let whole = |answer: &str| json!([user(Q), assistant(answer)]);
    let with_system = [("system", "Be brief."), ("user", Q)];
    for (row, before) in [
        (json!({"system": "Be brief.", "prompt": Q, "chosen": whole(GOOD), "rejected": whole(BAD)}), &with_system[..]),
        (json!({"system": "Be brief.", "chosen": whole(GOOD), "rejected": whole(BAD)}), &with_system),
        (
            json!({"system": "Be brief.", "prompt": [user(Q)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}),
            &with_system,
        ),
        // Texts that differ only by white space at their ends count as equal, and the prompt is not repeated.
        (json!({"prompt": format!("{Q} \n"), "chosen": whole(GOOD), "rejected": whole(BAD)}), &with_system[1..]),
        (json!({"prompt": [user(&format!(" {Q}"))], "chosen": whole(GOOD), "rejected": whole(BAD)}), &with_system[1..]),
        (
            json!({"prompt": [user(Q)], "chosen": [{"role": "system", "content": "Be brief."}, user(Q), assistant(GOOD)],
                   "rejected": [{"role": "system", "content": "Be brief."}, user(Q), assistant(BAD)]}),
            &with_system,
        ),
    ] {
        assert_eq!(plain(row.clone()), expected("rows-1", before), "{row}");
    }
    let other = json!({"system": "Be long.", "chosen": [{"role": "system", "content": "Be brief."}, user(Q), assistant(GOOD)],
                       "rejected": [{"role": "system", "content": "Be brief."}, user(Q), assistant(BAD)]});
    assert!(refused(&other).contains("the system text \"Be long.\" is not the system turn"));
}

#[test]
fn the_spellings_of_messages_are_read_alike() {
    let human = json!([{"from": "human", "value": Q}]);
    let gpt = |text: &str| json!({"from": "gpt", "value": text});
    let parts = |text: &str| json!([{"type": "text", "text": text, "image": null}]);
    let before = [("user", Q)];
    for row in [
        json!({"conversations": human, "chosen": gpt(GOOD), "rejected": gpt(BAD)}),
        json!({"messages": [user(Q)], "chosen": assistant(GOOD), "rejected": assistant(BAD)}),
        json!({"prompt": [{"role": "user", "content": parts(Q)}], "chosen": [{"role": "assistant", "content": parts(GOOD)}],
               "rejected": [{"role": "assistant", "content": parts(BAD)}]}),
        json!({"input": {"messages": [user(Q)], "tools": [], "parallel_tool_calls": true},
               "preferred_output": [assistant(GOOD)], "non_preferred_output": [assistant(BAD)]}),
    ] {
        assert_eq!(plain(row.clone()), expected("rows-1", &before), "{row}");
    }
    let image = json!({"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Q}]}],
                       "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]});
    assert!(refused(&image).contains("type \"image\"; only text"), "{}", refused(&image));
    let role = json!({"conversations": [{"from": "owl", "value": Q}], "chosen": gpt(GOOD), "rejected": gpt(BAD)});
    assert!(refused(&role).contains("\"from\" is the string \"owl\""));
}

#[test]
fn tool_calls_and_reasoning_reach_the_group() {
    let call = json!([{"type": "function", "function": {"name": "rivers", "arguments": {"city": "Berlin"}}}]);
    let row = json!({
        "conversations": [{"from": "human", "value": Q},
                          {"from": "function_call", "value": "{\"name\": \"rivers\", \"arguments\": {\"city\": \"Berlin\"}}"},
                          {"from": "observation", "value": "Spree"}],
        "tools": "[{\"name\": \"rivers\"}]",
        "chosen": {"role": "assistant", "content": GOOD, "reasoning_content": "The Spree."},
        "rejected": {"role": "assistant", "content": null, "tool_calls": call}});
    let group = plain(row);
    let Prompt::Messages(turns) = &group.prompts[0] else { panic!() };
    assert_eq!((turns[1].extra["tool_calls"].clone(), &*turns[2].role, &*turns[2].content), (call, "tool", "Spree"));
    assert_eq!(group.tools, Some(json!([{"name": "rivers"}])));
    let Response::Message(chosen) = &group.responses[0] else { panic!() };
    assert_eq!(chosen.extra["reasoning_content"], "The Spree.");
    // A group row holds tools and reasoning too.
    let again = plain(serde_json::to_value(&group).unwrap());
    assert_eq!(again, group);
}

/// Pairs as (better text, worse text, margin).
fn pairs(group: &PreferenceGroup) -> Vec<(String, String, f64)> {
    let text = |c: &Comparison, sign: i8| {
        let term = c.terms.iter().find(|term| term.sign == sign).unwrap();
        group.responses[term.response].text().to_owned()
    };
    assert!(group.comparisons.iter().all(|c| c.kind == Kind::Base && c.terms.len() == 2));
    group.comparisons.iter().map(|c| (text(c, 1), text(c, -1), c.margin)).collect()
}

fn pair(better: &str, worse: &str, margin: f64) -> (String, String, f64) {
    (better.into(), worse.into(), margin)
}

#[test]
fn responses_with_scores_ranks_or_labels_become_pairs() {
    let scored = |text: &str, score: f64| {
        json!({"model": "m", "response": text, "overall_score": score,
        "annotations": {"helpfulness": {"Rating": "5"}}, "custom_system_prompt": "x"})
    };
    let rated = |text: &str, ratings: [&str; 2]| {
        json!({"response": text,
        "annotations": {"helpfulness": {"Rating": ratings[0]}, "honesty": {"Rating": ratings[1]}}})
    };
    let rank = |text: &str, rank: f64| json!({"answer": text, "model": "m", "rank": rank});
    let two = [pair(GOOD, BAD, 0.0)];
    let three = [pair(GOOD, MIDDLE, 0.0), pair(GOOD, BAD, 0.0)];
    for (row, expected) in [
        (
            json!({"instruction": Q, "models": ["m"], "completions": [scored(BAD, 2.0), scored(GOOD, 9.0), scored(MIDDLE, 5.0)]}),
            &[pair(GOOD, BAD, 0.0), pair(GOOD, MIDDLE, 0.0)][..],
        ),
        (json!({"instruction": Q, "completions": [rated(BAD, ["1", "5"]), rated(GOOD, ["4", "N/A"])]}), &two),
        (
            json!({"prompt": format!("\n\nHuman: {Q}\n\nAssistant: "), "turns": 1,
                   "answers": [rank(BAD, 7.0), rank(GOOD, 1.0)]}),
            &two,
        ),
        (
            json!({"question": Q, "qid": 4, "answers": [{"text": BAD, "pm_score": 0}, {"text": GOOD, "pm_score": 3}]}),
            &two,
        ),
        (json!({"prompt": Q, "responses": [GOOD, MIDDLE, BAD], "ranks": [1, 2, 3]}), &three),
        (json!({"prompt": Q, "responses": [GOOD, MIDDLE, BAD], "scores": [0.9, 0.1, 0.1]}), &three),
        (json!({"instruction": Q, "input": "", "output": [GOOD, BAD]}), &two),
        (json!({"prompt": Q, "chosen": [GOOD], "rejected": [MIDDLE, BAD], "subset": "Facts"}), &three),
        (
            json!({"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": -2,
                   "preference_statement": "@Response 1 is better"}),
            &two,
        ),
        (json!({"context": [user(Q)], "response1": BAD, "response2": GOOD, "overall_preference": 3}), &two),
        (
            json!({"history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 3, "score_B": 12}),
            &two,
        ),
        (
            json!({"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0}),
            &two,
        ),
        (
            json!({"model_a": "x", "model_b": "y", "winner": "model_b", "conversation_a": [user(Q), assistant(BAD)],
                   "conversation_b": [user(Q), assistant(GOOD)]}),
            &two,
        ),
        (json!({"question": Q, "response_j": GOOD, "response_k": BAD}), &two),
        (json!({"question": Q, "answer_0": BAD, "answer_1": GOOD, "score_0": -0.3, "score_1": 0.3}), &two),
    ] {
        let group = plain(row.clone());
        assert_eq!(pairs(&group), expected, "{row}");
        assert_eq!(group.prompts, [Prompt::Messages(vec![Message::new("user", Q)])], "{row}");
    }
}

#[test]
fn pairs_margins_and_ties_follow_the_options() {
    let list = json!({"prompt": Q, "answers": [{"text": GOOD, "score": 9, "votes": 1}, {"text": MIDDLE, "score": 4, "votes": 7},
                      {"text": BAD, "score": 4, "votes": 2}, {"text": "unrated"}]});
    let with = |edit: &dyn Fn(&mut ReadOptions), row: &Value| {
        let mut options = ReadOptions::default();
        edit(&mut options);
        read(row.clone(), &options)
    };
    let (group, report) = with(&|o| o.pairs = Some(Pairs::All), &list).unwrap();
    assert_eq!(pairs(&group), [pair(GOOD, MIDDLE, 0.0), pair(GOOD, BAD, 0.0)]);
    assert_eq!((report.tied_pairs, report.tied_rows, report.unrated), (1, 0, 1));
    assert!(report.to_string().contains("1 tie is not compared, and 0 rows"), "{report}");
    let (group, _) = with(&|o| o.pairs = Some(Pairs::BestWorst), &list).unwrap();
    assert_eq!((pairs(&group), group.responses.len()), (vec![pair(GOOD, MIDDLE, 0.0)], 2));
    let (group, _) = with(&|o| o.score_margin = true, &list).unwrap();
    assert_eq!(pairs(&group), [pair(GOOD, MIDDLE, 5.0), pair(GOOD, BAD, 5.0)]);
    let (group, _) = with(&|o| o.score_key = Some("votes".into()), &list).unwrap();
    assert_eq!(pairs(&group)[0], pair(MIDDLE, GOOD, 0.0));
    // With scores, `score_margin` sets the margin of a pair to their difference.
    let scored = json!({"prompt": Q, "chosen": GOOD, "rejected": BAD, "score_chosen": 8.5, "score_rejected": 6});
    let (group, _) = with(&|o| o.score_margin = true, &scored).unwrap();
    assert_eq!(pairs(&group), [pair(GOOD, BAD, 2.5)]);
    let shp = json!({"history": Q, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 12, "score_B": 3});
    assert_eq!(pairs(&with(&|o| o.score_margin = true, &shp).unwrap().0), [pair(GOOD, BAD, 9.0)]);
    // Options that have no effect are errors.
    let plain = json!({"prompt": Q, "chosen": GOOD, "rejected": BAD});
    for (edit, flag) in [
        (ReadOptions { pairs: Some(Pairs::All), ..ReadOptions::default() }, "--pairs has no effect"),
        (ReadOptions { score_margin: true, ..ReadOptions::default() }, "--score-margin needs the scores"),
        (ReadOptions { score_key: Some("x".into()), ..ReadOptions::default() }, "--score-key has no effect"),
    ] {
        let why = read(plain.clone(), &edit).unwrap_err();
        assert!(why.contains(flag), "{why}");
    }
}

#[test]
fn ties_leave_rows_out_with_a_count() {
    let folder = Folder::new();
    let row = |winner: &str| {
        json!({"winner": winner, "conversation_a": [user(Q), assistant(GOOD)],
                                    "conversation_b": [user(Q), assistant(BAD)]})
    };
    let lines = ["model_a", "tie", "tie (bothbad)", "both_bad"].map(|winner| row(winner).to_string()).join("\n");
    let path = folder.write("arena.jsonl", lines);
    let (rows, reports) = read_files_with_reports(&[path], &ReadOptions::default()).unwrap();
    assert_eq!((rows.len(), reports[0].tied_rows, reports[0].tied_pairs), (1, 3, 3));
    assert!(reports[0].to_string().contains("3 ties are not compared, and 3 rows"), "{}", reports[0]);
}

#[test]
fn rows_without_a_comparison_are_refused_by_name() {
    for (row, parts) in [
        (
            json!({"prompt": Q, "completion": GOOD, "label": true}),
            &["unpaired", "KTO", "\"label\"", "mapl kto", "mapl sft"][..],
        ),
        (json!({"messages": [user(Q), assistant(GOOD)], "label": false}), &["unpaired", "KTO"]),
        (json!({"instruction": Q, "output": GOOD, "kto_tag": true}), &["unpaired", "\"kto_tag\""]),
        (json!({"prompt": Q, "completion": GOOD, "label": 0}), &["unpaired", "KTO"]),
        (
            json!({"prompt": Q, "responses": [GOOD, BAD]}),
            &["\"responses\" lists 2 responses", "\"scores\"", "--score-key"],
        ),
        (
            json!({"prompt": Q, "response_1": GOOD, "response_2": BAD}),
            &["no label", "\"preference_strength\" is missing"],
        ),
        (json!({"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": "x"}), &["model_a, model_b or tie"]),
        (json!({"answers": [{"text": GOOD, "score": 2}, {"text": BAD, "score": 1}]}), &["have no question"]),
        (json!({"prompt": Q, "responses": [GOOD, BAD], "scores": [1]}), &["1 numbers for 2 responses"]),
        (json!({"instruction": Q, "output": GOOD}), &["mapl sft"]),
        (json!({"system": "Be brief.", "chosen": GOOD, "rejected": BAD}), &["no question", "--drop-columns"]),
        (
            json!({"prompt": [user(Q)], "chosen": [assistant(""), {"role": "tool", "content": "x"}, assistant(GOOD)],
                   "rejected": [assistant(BAD)]}),
            &["they have 3 and 1 messages", "only a reward model"],
        ),
    ] {
        let why = refused(&row);
        assert!(parts.iter().all(|part| why.contains(part)), "{parts:?} in {why}");
    }
    // SFT does not accept an undesirable response.
    let folder = Folder::new();
    let path = folder.write("kto.jsonl", json!({"prompt": Q, "completion": BAD, "label": false}).to_string());
    let why = read_sft_files(&[path], &ReadOptions::default()).unwrap_err().to_string();
    assert!(why.contains("unpaired"), "{why}");
}

#[test]
fn fine_tuning_rows_of_other_tools_have_their_system_turn() {
    let folder = Folder::new();
    let turns = [Message::new("system", "Be brief."), Message::new("user", Q)];
    for row in [
        json!({"system": "Be brief.", "instruction": Q, "input": "", "output": GOOD}),
        json!({"system": "Be brief.", "prompt": Q, "completion": GOOD}),
        json!({"system": "Be brief.", "prompt": Q, "responses": [BAD, GOOD], "scores": [1, 2]}),
        json!({"system": "Be brief.", "messages": [user(Q), assistant(GOOD)]}),
        json!({"system": "Be brief.", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}]}),
    ] {
        let path = folder.write("sft.jsonl", row.to_string());
        let (rows, _) = read_sft_files(&[path], &ReadOptions::default()).unwrap();
        assert_eq!(rows[0].group.prompts, [Prompt::Messages(turns.to_vec())], "{row}");
        assert_eq!(rows[0].group.responses[0].text(), GOOD);
    }
}

#[test]
fn bad_rows_are_skipped_up_to_a_limit_and_counted_by_reason() {
    let folder = Folder::new();
    let good = json!({"prompt": Q, "chosen": GOOD, "rejected": BAD});
    let lines = [
        good.to_string(),
        json!({"prompt": Q, "chosen": GOOD, "rejected": ""}).to_string(),
        "{\"prompt\": ".into(),
        json!({"prompt": Q, "chosen": "", "rejected": BAD}).to_string(),
        json!({"prompt": Q, "chosen": GOOD, "rejected": ""}).to_string(),
        good.to_string(),
    ];
    let path = folder.write("rows.jsonl", lines.join("\n"));
    let read = |limit: usize| {
        let options = ReadOptions { skip_bad_rows: Some(limit), ..ReadOptions::default() };
        read_files_with_reports(std::slice::from_ref(&path), &options)
    };
    let why = read(3).unwrap_err().to_string();
    assert!(
        why.contains("rows.jsonl:5 (id rows-5): \"rejected\" is empty") && why.contains("--skip-bad-rows 3"),
        "{why}"
    );
    let (rows, reports) = read(4).unwrap();
    assert_eq!(rows.len(), 2);
    let counts: Vec<(usize, usize)> = reports[0].skipped.iter().map(|s| (s.rows, s.first_line)).collect();
    assert_eq!(counts, [(2, 2), (1, 3), (1, 4)]);
    let warnings = reports[0].warnings();
    assert!(warnings[0].contains("rows.jsonl:2: 2 bad rows are left out: \"rejected\" is empty"), "{warnings:?}");
}

fn texts(group: &PreferenceGroup) -> Vec<&str> {
    group.responses.iter().map(Response::text).collect()
}

#[test]
fn entries_of_a_list_are_compared_by_one_key() {
    let list = |key: &str, list: Value| plain(json!({"question": Q, key: list}));
    // An entry's text is not its score.
    let answers = json!([{"from": "gpt", "value": "4"}, {"from": "gpt", "value": "5"}]);
    assert_eq!(texts(&list("ranked_responses", answers.clone())), ["4", "5"]);
    assert!(refused(&json!({"question": Q, "completions": answers})).contains("0 of them have a number"));
    // Entries without the key are unrated, even if they have another number.
    let mixed = json!([{"text": GOOD, "rank": 1}, {"text": BAD, "rank": 2}, {"text": "junk", "score": 0.1}]);
    let (group, report) = read(json!({"question": Q, "completions": mixed}), &ReadOptions::default()).unwrap();
    assert_eq!((texts(&group), report.unrated), (vec![GOOD, BAD], 1));
    // A lower rank is better, whichever option selects it.
    let ranks = json!({"question": Q, "completions": [{"text": BAD, "rank": 2}, {"text": GOOD, "rank": 1}]});
    let by_key = ReadOptions { score_key: Some("rank".into()), ..ReadOptions::default() };
    let (group, _) = read(ranks, &by_key).unwrap();
    let chosen = group.comparisons[0].terms.iter().find(|term| term.sign > 0).unwrap();
    assert_eq!(group.responses[chosen.response].text(), GOOD);
}

#[test]
fn a_score_margin_needs_finite_scores_in_every_row() {
    let margins = ReadOptions { score_margin: true, ..ReadOptions::default() };
    let row = |extra: Value| {
        let mut row = json!({"prompt": Q, "chosen": GOOD, "rejected": BAD});
        row.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        row
    };
    let (group, _) = read(row(json!({"score_chosen": 5, "score_rejected": "1"})), &margins).unwrap();
    assert_eq!(group.comparisons[0].margin, 4.0);
    for (extra, part) in [
        (json!({}), "the row has none"),
        (json!({"score_chosen": "high", "score_rejected": 1}), "\"score_chosen\" as the string \"high\""),
        (json!({"score_chosen": 1e39, "score_rejected": -1e39}), "not finite in single precision"),
    ] {
        assert!(read(row(extra), &margins).unwrap_err().contains(part), "{part}");
    }
    let list = json!({"question": Q, "responses": [GOOD, BAD], "scores": [1e308, -1e308]});
    assert!(read(list, &margins).unwrap_err().contains("not finite"));
}

#[test]
fn a_prompt_is_kept_before_turns_that_continue_it() {
    let side = |last: &str| json!([assistant("q2"), user("q "), assistant(last)]);
    let row = json!({"prompt": [user("q")], "chosen": side(GOOD), "rejected": side(BAD)});
    let turns = |group: &PreferenceGroup| match &group.prompts[0] {
        Prompt::Messages(turns) => turns.iter().map(|turn| turn.content.clone()).collect::<Vec<_>>(),
        Prompt::Text(_) => panic!("a conversation"),
    };
    assert_eq!(turns(&plain(row)), ["q", "q2", "q "]);
    let whole = |last: &str| json!([user("a"), assistant("b"), user("q"), assistant(last)]);
    let row = json!({"prompt": [user("q")], "chosen": whole(GOOD), "rejected": whole(BAD)});
    assert_eq!(turns(&plain(row)), ["a", "b", "q"]);
}

#[test]
fn no_part_of_a_question_vanishes() {
    let sides = json!({"preferred_output": [assistant(GOOD)], "non_preferred_output": [assistant(BAD)]});
    let openai = |extra: Value| {
        let mut row = sides.clone();
        row.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        row
    };
    for (row, part) in [
        (openai(json!({"prompt": "Translate:", "input": "Hello world"})), "\"input\""),
        (openai(json!({"input": {"messages": [user(Q)], "instructions": "Speak German"}})), "\"input\""),
        (openai(json!({"input": {"messages": [user(Q)]}, "chosen": [assistant("x")]})), "\"chosen\" are both given"),
        (json!({"instruction": "Square this", "input": 12, "chosen": "144", "rejected": "1"}), "\"input\""),
    ] {
        assert!(refused(&row).contains(part), "{row}: {}", refused(&row));
    }
    let whole = json!({"input": {"messages": [user(Q)], "parallel_tool_calls": true}});
    assert_eq!(plain(openai(whole)), expected("rows-1", &[("user", Q)]));
}

#[test]
fn labels_of_tables_are_unpaired_and_ties_are_no_fault_of_sft() {
    let folder = Folder::new();
    for label in ["1", "0", "True"] {
        let path = folder.write("kto.jsonl", json!({"prompt": Q, "completion": GOOD, "label": label}).to_string());
        let error = read_sft_files(&[path], &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("unpaired"), "{label}: {error}");
    }
    let row = |winner: &str| json!({"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": winner}).to_string();
    let path = folder.write("arena.jsonl", [row("tie"), row("model_b")].join("\n"));
    let (rows, reports) = read_sft_files(&[path], &ReadOptions::default()).unwrap();
    assert_eq!((rows.len(), reports[0].tied_rows), (1, 1));
    assert_eq!(texts(&rows[0].group), [BAD]);
}
