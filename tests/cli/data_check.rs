//! Tests of `mapl data check`: every check reports a finding for a file made for it and none for a clean
//! file. Levels, exit codes, JSON and text are tested too.

use mapl::data::synth::{Split, SynthOptions, generate};
use serde_json::{Value, json};

mod desk;

use desk::Desk;

const PAIRS: usize = 240;

/// Pairs without a shortcut: only the prompt tells the chosen side from the rejected side.
fn clean(split: Split, rows: usize) -> Vec<Value> {
    let text = |response: &mapl::data::group::Response| response.text().to_owned();
    let row = |group: mapl::data::group::PreferenceGroup| {
        let mapl::data::group::Prompt::Text(prompt) = &group.prompts[0] else { unreachable!() };
        json!({"prompt": prompt, "chosen": text(&group.responses[0]), "rejected": text(&group.responses[1])})
    };
    generate(&SynthOptions { rows, seed: 8, split }).into_iter().map(row).collect()
}

/// MAPL groups built from clean pairs.
fn groups(desk: &Desk) -> Vec<Value> {
    desk.write("clean.jsonl", &clean(Split::Train, PAIRS));
    let (code, _, err) = desk.run(
        "data build --input clean.jsonl --output groups.jsonl --k-min 1 --k-max 2 --functions \
         number_words,number_sentences,existence,keywords:frequency,end_checker",
    );
    assert_eq!(code, 0, "{err}");
    desk.read("groups.jsonl")
}

/// Clean pairs with `change` applied to every row.
fn changed(change: impl Fn(usize, &mut Value)) -> Vec<Value> {
    let mut rows = clean(Split::Train, PAIRS);
    rows.iter_mut().enumerate().for_each(|(i, row)| change(i, row));
    rows
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

fn swapped(row: &Value) -> Value {
    json!({"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]})
}

#[test]
fn clean_pairs_and_groups_give_no_finding() {
    let desk = Desk::new();
    desk.write("test.jsonl", &clean(Split::Test, 60));
    let pairs = desk.rows(&clean(Split::Train, PAIRS));
    assert_eq!((pairs.code, pairs.names()), (0, vec![]), "{:#}", pairs.report["findings"]);
    assert_eq!(pairs.report["comparisons"], json!([PAIRS, 0, 0]));
    groups(&desk);
    let (code, _, err) = desk.run("tokenizer --input groups.jsonl --vocab-size 700 --output-dir tok");
    assert_eq!(code, 0, "{err}");
    let groups = desk.check("groups.jsonl --test-file test.jsonl --model tok");
    assert_eq!((groups.code, groups.names()), (0, vec![]), "{:#}", groups.report["findings"]);
    let instructions = &groups.report["instructions"];
    assert!(instructions["flags"]["checked"].as_u64().unwrap() > 1000);
    assert_eq!(instructions["labels"]["checked"], json!(groups.report["comparisons"][1].as_u64().unwrap() * 2));
    assert_eq!(groups.report["tokens"]["ended"], groups.report["tokens"]["sequences"]);
    assert_eq!(groups.report["held_out"], "test files");
    assert_eq!(groups.report["bag_of_words"]["accuracy"]["of"], 60);
}

#[test]
fn duplicates_are_found_exactly_and_up_to_case_and_white_space() {
    let desk = Desk::new();
    let mut rows = clean(Split::Train, PAIRS);
    rows.push(rows[2].clone());
    let exact = desk.rows(&rows);
    let finding = exact.only("warning", "duplicates", 1);
    assert_eq!(finding["where"][0]["line"], PAIRS + 1);
    assert!(finding["where"][0]["note"].as_str().unwrap().contains("train.jsonl:3"), "{finding:#}");
    let last = rows.last_mut().unwrap();
    last["chosen"] = json!(format!(" {} ", text(last, "chosen").to_uppercase().replace(' ', "  ")));
    desk.rows(&rows).only("warning", "near-duplicates", 1);
    let ids = changed(|i, row| row["id"] = json!(if i == 9 { "id-4".into() } else { format!("id-{i}") }));
    let ids = desk.rows(&ids);
    ids.only("warning", "equal-ids", 1);
    assert_eq!(ids.first_line("equal-ids"), 10);
    let long = "This is one and the same answer to whatever was asked, garden or sea.";
    let constant = changed(|i, row| {
        if i < 12 {
            row[if i % 2 == 0 { "chosen" } else { "rejected" }] = json!(long);
        }
    });
    desk.rows(&constant).only("warning", "repeated-responses", 12);
}

#[test]
fn equal_or_empty_sides_are_warnings_and_many_are_an_error() {
    let desk = Desk::new();
    let equal = |below: usize| {
        desk.rows(&changed(|i, row| {
            if i < below {
                row["chosen"] = row["rejected"].clone();
            }
        }))
    };
    equal(1).only("warning", "identical-sides", 1);
    equal(PAIRS * 2 / 3).has("error", "identical-sides", PAIRS * 2 / 3);
    let near = desk.rows(&changed(|i, row| {
        if i == 5 {
            row["chosen"] = json!(text(row, "rejected").to_uppercase());
        }
    }));
    near.only("warning", "nearly-identical-sides", 1);
    assert_eq!(near.first_line("nearly-identical-sides"), 6);
    let empty = |key: &str, below: usize| {
        desk.rows(&changed(|i, row| {
            if i < below {
                row[key] = json!(" \n");
            }
        }))
    };
    empty("rejected", 1).only("warning", "empty-responses", 1);
    empty("chosen", PAIRS).has("error", "empty-responses", PAIRS);
    empty("prompt", 2).only("warning", "empty-prompts", 2);
}

#[test]
fn scores_that_contradict_the_label_are_found() {
    let desk = Desk::new();
    let scored = |names: [&str; 2], chosen: &dyn Fn(usize) -> Value| {
        desk.rows(&changed(|i, row| {
            if i % 2 == 0 {
                row[names[0]] = chosen(i);
                row[names[1]] = json!(5.5);
            }
        }))
    };
    let names = ["score_chosen", "score_rejected"];
    assert!(scored(names, &|_| json!(6)).names().is_empty());
    let some = scored(names, &|i| json!(if i == 4 { 5.0 } else { 5.5 + f64::from(u8::from(i != 8)) }));
    let finding = some.only("warning", "contrary-scores", 2);
    assert_eq!((&finding["of"], &finding["where"][0]["line"]), (&json!(PAIRS / 2), &json!(5)));
    assert_eq!(finding["where"][0]["note"], "chosen 5, rejected 5.5");
    let what = finding["what"].as_str().unwrap();
    assert!(what.contains("1 have a lower score for the chosen response, 1 have equal scores"), "{what}");
    scored(["chosen-rating", "rejected-rating"], &|_| json!("1.5")).only("error", "contrary-scores", PAIRS / 2);
}

#[test]
fn contradicting_labels_name_both_rows() {
    let desk = Desk::new();
    let mut rows = clean(Split::Train, PAIRS);
    rows.push(swapped(&rows[6]));
    let one = desk.rows(&rows);
    let finding = one.only("warning", "label-conflicts", 2);
    assert_eq!(finding["where"][0]["line"], PAIRS + 1);
    assert!(finding["where"][0]["note"].as_str().unwrap().contains("train.jsonl:7"), "{finding:#}");
    rows.truncate(PAIRS);
    let all: Vec<Value> = rows.iter().cloned().chain(rows.iter().map(swapped)).collect();
    desk.rows(&all).only("error", "label-conflicts", 2 * PAIRS);
    // If four labels agree and one contradicts them, the rows still carry a preference.
    let most = |row: &Value| [vec![row.clone(); 4], vec![swapped(row)]].concat();
    let most: Vec<Value> = rows.iter().flat_map(most).collect();
    desk.rows(&most).has("warning", "label-conflicts", 2 * PAIRS);
}

#[test]
fn length_and_words_that_predict_the_side_are_measured() {
    let desk = Desk::new();
    // Every second chosen response is doubled: its length predicts the side, and no single word
    // does.
    let long = desk.rows(&changed(|i, row| {
        if i % 2 == 0 {
            row["chosen"] = json!(format!("{0} {0}", text(row, "chosen")));
        }
    }));
    let finding = long.finding("length-bias");
    let of = &long.report["length"][0];
    assert_eq!(of["unit"], "characters");
    assert_eq!(finding["count"], of["chosen_longer"]);
    let (longer, shorter, ties) = (&of["chosen_longer"], &of["rejected_longer"], &of["ties"]);
    assert_eq!([longer, shorter, ties].iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), PAIRS as u64);
    let share = of["longer_share"]["share"].as_f64().unwrap();
    assert!((share - longer.as_f64().unwrap() / (PAIRS as f64 - ties.as_f64().unwrap())).abs() < 1e-12);
    assert!(of["accuracy"]["low"].as_f64().unwrap() < share && share < of["accuracy"]["high"].as_f64().unwrap());
    // With chosen and rejected swapped, the shorter response is chosen.
    let rows: Vec<Value> = desk.read("train.jsonl").iter().map(swapped).collect();
    let short = desk.rows(&rows);
    assert_eq!(short.finding("length-bias")["count"], of["chosen_longer"]);
    assert!(short.finding("length-bias")["what"].as_str().unwrap().contains("rejected response is longer"));

    let word = |row: &Value, key: &str, word: &str| {
        let text = text(row, key);
        let at = text.find(' ').unwrap();
        json!(format!("{} {word}{}", &text[..at], &text[at..]))
    };
    let words = desk.rows(&changed(|_, row| {
        row["chosen"] = word(row, "chosen", "gladly");
        row["rejected"] = word(row, "rejected", "hardly");
    }));
    let accuracy = &words.report["bag_of_words"]["accuracy"];
    words.only("warning", "bag-of-words", PAIRS);
    assert_eq!(accuracy["share"], 1.0);
    assert_eq!(words.report["bag_of_words"]["chosen_words"][0], "gladly");
    assert_eq!(words.report["bag_of_words"]["rejected_words"][0], "hardly");
}

#[test]
fn a_prefix_or_suffix_that_predicts_the_side_is_listed_with_counts() {
    let desk = Desk::new();
    let first = desk.rows(&changed(|_, row| {
        for (key, word) in [("chosen", "Sure:"), ("rejected", "Well:")] {
            row[key] = json!(format!("{word} {}", text(row, key)));
        }
    }));
    first.has("warning", "giveaway", PAIRS);
    let offender = &first.report["giveaways"]["offenders"][0];
    assert_eq!([&offender["position"], &offender["text"]], ["first word", "Sure:"]);
    assert_eq!([&offender["chosen"], &offender["rejected"]], [PAIRS, 0]);
    // A rare but certain predictor: one rejected response in eight ends with a line break.
    let last = desk.rows(&changed(|i, row| {
        if i % 8 == 0 {
            row["rejected"] = json!(format!("{}\n", text(row, "rejected")));
        }
    }));
    let finding = last.only("warning", "giveaway", PAIRS / 8);
    assert_eq!(finding["where"][0]["line"], 1);
    assert!(finding["what"].as_str().unwrap().contains(r#"last character "\n" is on the rejected side in 30 of 30"#));
    // A suffix that is as frequent in chosen as in rejected responses predicts nothing.
    let both = desk.rows(&changed(|i, row| {
        if i % 8 == 0 {
            let key = if i % 16 == 0 { "rejected" } else { "chosen" };
            row[key] = json!(format!("{}\n", text(row, key)));
        }
    }));
    assert_eq!(both.names(), []);
}

#[test]
fn overlap_of_test_and_training_files_is_counted() {
    let desk = Desk::new();
    let train = clean(Split::Train, PAIRS);
    desk.write("train.jsonl", &train);
    let run = |test: Vec<Value>| {
        desk.write("test.jsonl", &test);
        desk.check("train.jsonl --test-file test.jsonl")
    };
    let mut test = clean(Split::Test, 60);
    test.push(swapped(&train[4]));
    let seen = run(test.clone());
    assert_eq!(seen.finding("test-comparisons-in-training")["where"][0]["line"], 61);
    seen.has("warning", "test-comparisons-in-training", 1);
    seen.has("warning", "test-prompts-in-training", 1);
    test[60]["chosen"] = json!("Our sea is new.");
    test[60]["prompt"] = json!(text(&train[4], "prompt").to_uppercase());
    let finding = run(test.clone());
    let finding = finding.only("warning", "test-prompts-in-training", 1);
    assert!(finding["what"].as_str().unwrap().contains("0 of them exactly"));
    let long = train.iter().find(|row| text(row, "chosen").len() >= 60).unwrap();
    test[60] = json!({"prompt": "Another prompt.", "chosen": long["chosen"], "rejected": "Our sea is new."});
    run(test).only("warning", "test-responses-in-training", 1);
    let all = run(train.clone());
    all.has("error", "test-comparisons-in-training", PAIRS);
    assert!(all.err.contains("test.jsonl:1"), "{}", all.err);
}

#[test]
fn all_unreadable_rows_are_named_and_the_others_are_checked() {
    let desk = Desk::new();
    let mut lines: Vec<String> = clean(Split::Train, PAIRS).iter().map(Value::to_string).collect();
    lines[3] = "{\"prompt\": \"cut".into();
    lines[7] = json!({"prompt": "p", "chosen": "c"}).to_string();
    lines[9] = json!({"prompt": "p", "chosen": "c", "rejected": ""}).to_string();
    lines[11] = "[1]".into();
    lines.push(lines[0].clone());
    std::fs::write(desk.path().join("train.jsonl"), lines.join("\n")).unwrap();
    std::fs::write(desk.path().join("empty.jsonl"), "").unwrap();
    let checked = desk.check("train.jsonl empty.jsonl");
    let finding = checked.has("error", "refused-rows", 5);
    let places: Vec<(&str, u64)> = finding["where"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| (place["file"].as_str().unwrap(), place["line"].as_u64().unwrap()))
        .collect();
    let train = |line| ("train.jsonl", line);
    assert_eq!(places, [train(4), train(8), train(10), train(12), ("empty.jsonl", 0)]);
    assert_eq!(checked.report["rows"], PAIRS - 3);
    checked.has("warning", "duplicates", 1);
    assert!(checked.err.contains("train.jsonl:4"), "{}", checked.err);
    let none = desk.check("empty.jsonl");
    none.has("error", "no-rows", 0);
    let repeated = desk.rows(&changed(|_, row| {
        for key in ["chosen", "rejected"] {
            row[key] = json!(format!("{} {}", text(row, "prompt"), text(row, key)));
        }
    }));
    repeated.only("warning", "repeated-prompts", PAIRS);
}

#[test]
fn instruction_flags_labels_and_cues_are_checked() {
    let desk = Desk::new();
    let built = groups(&desk);
    let with = |change: &dyn Fn(usize, &mut Value)| {
        let mut groups = built.clone();
        groups.iter_mut().enumerate().for_each(|(i, group)| change(i, group));
        desk.rows(&groups)
    };
    let flip = |flag: &mut Value| *flag = json!(!flag.as_bool().unwrap());
    let one = with(&|i, group| {
        if i == 2 {
            flip(&mut group["instructions"][0]["satisfied"][1]);
        }
    });
    let finding = one.only("warning", "instruction-flags", 1);
    assert_eq!(finding["where"][0]["line"], 3);
    let all = with(&|_, group| flip(&mut group["instructions"][0]["satisfied"][0]));
    all.only("error", "instruction-flags", PAIRS);
    let intra_signs = |group: &mut Value| {
        let comparisons = group["comparisons"].as_array_mut().unwrap();
        let intra: Vec<&mut Value> = comparisons.iter_mut().filter(|c| c["kind"] == "intra").collect();
        let count = intra.len();
        for term in intra.into_iter().flat_map(|c| c["terms"].as_array_mut().unwrap()) {
            term["sign"] = json!(-term["sign"].as_i64().unwrap());
        }
        count
    };
    let count: usize = built.clone().iter_mut().map(intra_signs).sum();
    with(&|_, group| {
        intra_signs(group);
    })
    .only("error", "instruction-labels", count);
    with(&|i, group| {
        if i == 0 {
            group["instructions"][0]["id"] = json!("family:nothing");
        }
    })
    .only("warning", "unknown-instructions", 1);
    // Keeps only intra comparisons of the chosen response and adds a cue to each preferred prompt.
    let cue = with(&|_, group| {
        let comparisons = group["comparisons"].as_array_mut().unwrap();
        comparisons.retain(|c| c["kind"] == "base" || (c["kind"] == "intra" && c["terms"][0]["response"] == 0));
        let terms = comparisons.iter().flat_map(|c| if c["kind"] == "intra" { c["terms"].as_array() } else { None });
        let better = terms.flatten().find(|t| t["sign"] == 1).map(|t| t["prompt"].as_u64().unwrap() as usize);
        if let Some(better) = better {
            group["prompts"][better] = json!(format!("{} Mind it.", group["prompts"][better].as_str().unwrap()));
        }
    });
    cue.finding("instruction-cue");
}

#[test]
fn a_tokenizer_adds_checks_of_turn_ends_lengths_and_refused_rows() {
    let desk = Desk::new();
    let turn = |role: &str, content: &Value| json!([{"role": role, "content": content}]);
    let chat = |row: &mut Value| {
        *row = json!({"prompt": turn("user", &row["prompt"]), "chosen": turn("assistant", &row["chosen"]),
            "rejected": turn("assistant", &row["rejected"])});
    };
    let pairs = clean(Split::Train, PAIRS);
    desk.write("plain.jsonl", &pairs);
    desk.write("chat.jsonl", &changed(|_, row| chat(row)));
    let (code, _, err) = desk.run("tokenizer --input plain.jsonl --vocab-size 500 --output-dir tok");
    assert_eq!(code, 0, "{err}");
    assert_eq!(desk.check("plain.jsonl chat.jsonl --model tok").report["tokens"]["refused"], 0);
    let template = |text: &str| std::fs::write(desk.path().join("t.jinja"), text).unwrap();
    let run = || desk.check("chat.jsonl --model tok --chat-template-path t.jinja");
    template(
        "{% for m in messages %}{{ m.role + '\n' + m.content + '\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}",
    );
    run().only("warning", "no-end-of-turn", 2 * PAIRS);
    template("{{ raise_exception('not today') }}");
    let refused = run();
    let finding = refused.only("error", "refused-by-tokenizer", PAIRS);
    assert!(finding["where"][0]["note"].as_str().unwrap().contains("not today"), "{finding:#}");
    let tokens = |report: &Value, key: &str| report["tokens"][key].as_u64().unwrap() as usize;
    let cut = desk.check("plain.jsonl --model tok --max-length 24");
    let count = tokens(&cut.report, "comparisons_too_long");
    assert!(count > 0 && count < PAIRS, "{:#}", cut.report["tokens"]);
    cut.only("warning", "too-long", count);
    assert_eq!(cut.report["length"][2]["unit"], "tokens");
    desk.check("plain.jsonl --model tok --max-length 2").only("error", "too-long", PAIRS);
    // The prompts end inside a word ("th") that the responses complete ("e").
    let merged = changed(|_, row| {
        row["prompt"] = json!(format!("{} th", text(row, "prompt")));
        for key in ["chosen", "rejected"] {
            row[key] = json!(format!("e {}", text(row, key)));
        }
    });
    desk.write("merged.jsonl", &merged);
    let merged = desk.check("merged.jsonl --model tok");
    merged.has("warning", "merged-boundary", 2 * PAIRS);
}

#[test]
fn text_and_json_hold_the_same_findings_on_any_number_of_threads() {
    let desk = Desk::new();
    let mut rows = groups(&desk);
    rows[1]["instructions"][0]["satisfied"][0] = json!(null);
    rows[5]["responses"][0] = rows[5]["responses"][1].clone();
    desk.write("train.jsonl", &rows);
    desk.write("test.jsonl", &clean(Split::Train, 40));
    let words = "data check train.jsonl --test-file test.jsonl";
    let (code, json_out, _) = desk.run_with(&format!("{words} --json --output out.json"), "1");
    let report: Value = serde_json::from_str(&json_out).unwrap();
    let (text_code, text_out, err) = desk.run_with(words, "3");
    assert_eq!((code, text_code), (3, 3), "{err}");
    let mut named = Vec::new();
    for finding in report["findings"].as_array().unwrap() {
        let line = |key: &str| finding[key].as_str().unwrap().to_owned();
        let head = format!("{} {}: {}", line("level"), line("check"), line("what"));
        assert!(text_out.lines().any(|l| l == head), "{head}\n{text_out}");
        assert!(text_out.contains(&line("why")) && text_out.contains(&line("try")));
        named.push(line("check"));
    }
    let heads = text_out.lines().filter(|l| l.starts_with("error ") || l.starts_with("warning ")).count();
    assert_eq!(heads, named.len(), "{text_out}");
    assert!(
        named.contains(&"identical-sides".into()) && named.contains(&"test-prompts-in-training".into()),
        "{named:?}"
    );
    assert_eq!(desk.run_with(&format!("{words} --json"), "3").1, json_out);
    assert_eq!(desk.run_with(words, "1").1, text_out);
    assert_eq!(std::fs::read_to_string(desk.path().join("out.json")).unwrap(), json_out);
}

#[test]
fn invalid_arguments_are_refused() {
    let desk = Desk::new();
    desk.write("train.jsonl", &clean(Split::Train, 4));
    let fails = |words: &str, code: i32, part: &str| {
        let (found, _, err) = desk.run(&format!("data check {words}"));
        assert!(found == code && err.contains(part), "{words}: {found} {err}");
    };
    fails("", 2, "<FILE>...");
    fails("train.jsonl --max-length 7", 2, "--model");
    fails("train.jsonl --output train.jsonl", 2, "input");
    fails("none.jsonl", 1, "none.jsonl");
    fails("train.jsonl --model nowhere", 6, "nowhere");
    assert_eq!(desk.check("train.jsonl").code, 0);
}
