//! Instruction functions, tested over many seeds and on difficult responses. Drawn instructions pass their
//! own check, for one and for two responses, and are feasible if required. The same functions check the
//! worked example of a group row.

use mapl::data::group::{Kind, PreferenceGroup, Prompt};
use mapl::data::instructions::{self, Analysis, Function, FunctionKind, Request, Target, VARIANTS};
use mapl::rng::Rng;

const RICH: &str = "Dear [name],\n\n*First* thing: **BREAD** and NASA.\n\n* one [date]\n* two\n\nSection 1 text.\n\
                    Section 2 more bread. Goodbye for now!";

/// Difficult responses: empty, one word, regex metacharacters, Windows line ends, other scripts, an
/// artificial language, and texts that comply with single functions.
const HARD: [&str; 16] = [
    "",
    " \r\n ",
    "word",
    "a.b*c(d[e]f)+?^$|{}\\ \\d+ .* [[:alpha:]] ((",
    "One line.\r\n\r\nTwo lines here.\r\n- item\r\n* item",
    "今天天气很好。我们去公园吧！",
    "Это длинный ответ. Он написан по-русски и не содержит латиницы.",
    "ba lo ti mu. re so ka lo ti. ba ba",
    RICH,
    "\"Quoted from start to end\"",
    "{\"json\": [1, 2, 3]}",
    "My answer is yes.\n<<A title>>\nP.S. more\nP.P.S. even more",
    "first answer ****** second answer",
    "part one of it\n***\npart two of it, with a comma",
    "THIS IS ALL IN CAPITALS AND THE END.",
    "Say hello. this is the end of it",
];

const PROMPT: &str = "Say hello.";

fn request<'a>(targets: &'a [Target<'a>], prompt: &'a Analysis<'a>) -> Request<'a> {
    Request { targets, prompt, partner: None }
}

/// Draws an instruction, re-checks it on a fresh analysis and tests all its phrasings. Returns
/// whether a draw was feasible.
fn drawn(function: &Function, texts: &[(&str, Option<bool>)], seed: u64) -> bool {
    let analyses: Vec<Analysis> = texts.iter().map(|t| Analysis::new(t.0)).collect();
    let targets: Vec<Target> = analyses.iter().zip(texts).map(|(response, t)| Target { response, flag: t.1 }).collect();
    let prompt = Analysis::new(PROMPT);
    let mut rng = Rng::keyed(seed, &[function.id]);
    let Some((text, kwargs)) = function.build(&request(&targets, &prompt), &mut rng) else { return false };
    for (response, flag) in texts {
        if flag.is_some() {
            assert_eq!(
                function.check(&kwargs, &Analysis::new(response)),
                *flag,
                "{} {kwargs:?} {response:?}",
                function.id
            );
        }
    }
    let phrasings: Vec<String> = (0..VARIANTS).map(|v| function.phrase(&kwargs, v).unwrap()).collect();
    assert!(phrasings.contains(&text));
    assert!(phrasings.iter().all(|p| !p.trim().is_empty()));
    let distinct: std::collections::BTreeSet<_> = phrasings.iter().collect();
    assert!(distinct.len() >= 2, "{}: fewer than two phrasings", function.id);
    for value in kwargs.values().filter(|_| function.id != "combination:repeat_prompt") {
        let said = match value {
            serde_json::Value::String(s) if s == "at least" || s == "less than" => continue,
            // Phrasings give a language by its name, and omit the number of a single paragraph.
            serde_json::Value::String(_) if function.id == "language:response_language" => continue,
            serde_json::Value::Number(_) if kwargs.get("num_paragraphs").and_then(|n| n.as_u64()) == Some(1) => {
                continue;
            }
            serde_json::Value::String(s) => text.contains(s.as_str()),
            serde_json::Value::Number(n) => text.contains(&n.to_string()),
            serde_json::Value::Array(words) => words.iter().all(|w| text.contains(w.as_str().unwrap())),
            other => panic!("{other}"),
        };
        assert!(said, "{text:?} does not state {value}");
    }
    true
}

#[test]
fn there_are_25_functions_with_distinct_ids() {
    let mut ids: Vec<_> = instructions::all().iter().map(|f| f.id).collect();
    assert_eq!(ids.len(), 25);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 25);
    assert!(ids.iter().all(|id| instructions::by_id(id).unwrap().id == *id));
    assert!(instructions::by_id("keywords").is_none());
}

#[test]
fn single_and_joint_draws_have_the_requested_flags() {
    for function in instructions::all() {
        for seed in 0..6 {
            for a in HARD {
                for flag in [true, false] {
                    drawn(function, &[(a, Some(flag))], seed);
                    for b in HARD {
                        drawn(function, &[(a, Some(flag)), (b, None)], seed);
                        drawn(function, &[(a, Some(flag)), (b, Some(!flag))], seed);
                        drawn(function, &[(a, Some(flag)), (b, Some(flag))], seed);
                    }
                }
            }
        }
    }
}

#[test]
fn fifteen_functions_allow_both_flags_for_one_response() {
    let other = "Plain words of another answer, and nothing else";
    let both: Vec<_> = instructions::all()
        .iter()
        .filter(|f| (0..4).all(|s| [true, false].iter().all(|&flag| drawn(f, &[(RICH, Some(flag)), (other, None)], s))))
        .map(|f| (f.id, f.kind))
        .collect();
    assert!(both.len() >= 15, "{both:?}");
    assert!(both.iter().all(|(_, kind)| *kind != FunctionKind::Fixed));
    let defaults = mapl::data::options::BuildOptions::default().functions;
    assert!(defaults.iter().all(|id| both.iter().any(|(b, _)| b == id)), "{both:?}");
}

#[test]
fn two_sided_functions_are_feasible_whenever_the_counts_differ() {
    type Count = fn(&Analysis) -> usize;
    let counts: [(&str, Count); 3] = [
        ("length_constraints:number_words", |a| a.word_count()),
        ("length_constraints:number_sentences", |a| a.sentence_count()),
        ("change_case:capital_word_frequency", |a| a.capital_word_count()),
    ];
    for (id, count) in counts {
        let function = instructions::by_id(id).unwrap();
        for (a, b) in HARD.iter().flat_map(|a| HARD.iter().map(move |b| (*a, *b))) {
            let differ = count(&Analysis::new(a)) != count(&Analysis::new(b));
            assert_eq!(drawn(function, &[(a, Some(true)), (b, Some(false))], 1), differ, "{id} {a:?} {b:?}");
        }
        for a in HARD {
            assert!(drawn(function, &[(a, Some(true))], 2) && drawn(function, &[(a, Some(false))], 2), "{id} {a:?}");
        }
    }
}

#[test]
fn lexical_functions_work_in_languages_other_than_english() {
    let (a, b) = ("ba lo ti mu. re so ka lo ti. ba ba", "du fe gi mu. ha ji re lo");
    for id in [
        "keywords:existence",
        "keywords:forbidden_words",
        "keywords:frequency",
        "keywords:letter_frequency",
        "startend:end_checker",
        "length_constraints:number_words",
        "length_constraints:number_sentences",
    ] {
        let function = instructions::by_id(id).unwrap();
        for flag in [true, false] {
            assert!(drawn(function, &[(a, Some(flag)), (b, Some(!flag))], 3), "{id} {flag}");
        }
    }
    let (a, b) = (HARD[6], "Другой короткий ответ.");
    for id in ["keywords:existence", "keywords:forbidden_words", "startend:end_checker"] {
        assert!(drawn(instructions::by_id(id).unwrap(), &[(a, Some(true)), (b, Some(false))], 3), "{id}");
    }
}

#[test]
fn fixed_functions_are_feasible_only_for_the_flag_of_the_response() {
    let complies = [
        ("detectable_format:constrained_response", 11),
        ("detectable_format:title", 11),
        ("detectable_content:postscript", 11),
        ("detectable_format:json_format", 10),
        ("startend:quotation", 9),
        ("combination:two_responses", 12),
        ("combination:repeat_prompt", 15),
        ("change_case:english_capital", 14),
        ("change_case:english_lowercase", 7),
        ("punctuation:no_comma", 12),
    ];
    for (id, index) in complies {
        let function = instructions::by_id(id).unwrap();
        assert_eq!(function.kind, FunctionKind::Fixed);
        assert!(drawn(function, &[(HARD[index], Some(true))], 1), "{id}");
        assert!(!drawn(function, &[(HARD[index], Some(false))], 1) || id == "detectable_content:postscript", "{id}");
        let fails = if id == "punctuation:no_comma" { HARD[13] } else { "An ordinary answer." };
        assert!(drawn(function, &[(fails, Some(false))], 1) && !drawn(function, &[(fails, Some(true))], 1), "{id}");
    }
}

const EXAMPLE: &str = r#"{"id": "bakery-1",
 "prompts": [
  "Suggest a name for a small neighbourhood bakery and say why it fits.",
  "Suggest a name for a small neighbourhood bakery and say why it fits. Include the keywords dough and mornings. Use at least 25 words. Finish with the exact phrase \"on a sign.\"",
  "Suggest a name for a small neighbourhood bakery and say why it fits. Include the keywords dough and mornings. Use less than 29 words. Finish with the exact phrase \"on a sign.\"",
  "Suggest a name for a small neighbourhood bakery and say why it fits. Include the keywords bread and friends. Use less than 25 words. Finish with the exact phrase \"friends first!\"",
  "Suggest a name for a small neighbourhood bakery and say why it fits. Include the keywords bread and dough. Use less than 25 words. Finish with the exact phrase \"on a sign.\""],
 "responses": [
  "Call it Rise and Shine. The words point to rising dough and to early mornings, so customers remember what you sell and when you open. It is short, cheerful and easy to paint on a sign.",
  "Golden Crust is a good name, because bread has a crust. Ask your friends first!"],
 "comparisons": [
  {"kind": "base", "terms": [{"prompt": 0, "response": 0, "sign": 1}, {"prompt": 0, "response": 1, "sign": -1}]},
  {"kind": "intra", "rule": "A", "terms": [{"prompt": 1, "response": 0, "sign": 1}, {"prompt": 2, "response": 0, "sign": -1}]},
  {"kind": "intra", "rule": "A", "terms": [{"prompt": 3, "response": 1, "sign": 1}, {"prompt": 4, "response": 1, "sign": -1}]},
  {"kind": "inter", "direction": "up", "terms": [{"prompt": 1, "response": 0, "sign": 1}, {"prompt": 0, "response": 1, "sign": 1},
                                                 {"prompt": 1, "response": 1, "sign": -1}, {"prompt": 0, "response": 0, "sign": -1}]},
  {"kind": "inter", "direction": "down", "terms": [{"prompt": 3, "response": 1, "sign": 1}, {"prompt": 0, "response": 0, "sign": 1},
                                                   {"prompt": 3, "response": 0, "sign": -1}, {"prompt": 0, "response": 1, "sign": -1}]}],
 "instructions": [
  {"prompt": 1, "id": "keywords:existence", "kwargs": {"keywords": ["dough", "mornings"]}, "satisfied": [true, false]},
  {"prompt": 1, "id": "length_constraints:number_words", "kwargs": {"num_words": 25, "relation": "at least"}, "satisfied": [true, false]},
  {"prompt": 1, "id": "startend:end_checker", "kwargs": {"end_phrase": "on a sign."}, "satisfied": [true, false]},
  {"prompt": 2, "id": "keywords:existence", "kwargs": {"keywords": ["dough", "mornings"]}, "satisfied": [true, false]},
  {"prompt": 2, "id": "length_constraints:number_words", "kwargs": {"num_words": 29, "relation": "less than"}, "satisfied": [false, true]},
  {"prompt": 2, "id": "startend:end_checker", "kwargs": {"end_phrase": "on a sign."}, "satisfied": [true, false]},
  {"prompt": 3, "id": "keywords:existence", "kwargs": {"keywords": ["bread", "friends"]}, "satisfied": [false, true]},
  {"prompt": 3, "id": "length_constraints:number_words", "kwargs": {"num_words": 25, "relation": "less than"}, "satisfied": [false, true]},
  {"prompt": 3, "id": "startend:end_checker", "kwargs": {"end_phrase": "friends first!"}, "satisfied": [false, true]},
  {"prompt": 4, "id": "keywords:existence", "kwargs": {"keywords": ["bread", "dough"]}, "satisfied": [false, false]},
  {"prompt": 4, "id": "length_constraints:number_words", "kwargs": {"num_words": 25, "relation": "less than"}, "satisfied": [false, true]},
  {"prompt": 4, "id": "startend:end_checker", "kwargs": {"end_phrase": "on a sign."}, "satisfied": [true, false]}]}"#;

#[test]
fn the_worked_example_is_consistent() {
    let group: PreferenceGroup = serde_json::from_str(EXAMPLE).unwrap();
    group.validate().unwrap();
    assert_eq!(group.sequences(), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 1)]);
    let kinds: Vec<Kind> = group.comparisons.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [Kind::Base, Kind::Intra, Kind::Intra, Kind::Inter, Kind::Inter]);
    assert_eq!(group.comparisons.iter().map(|c| c.terms.len()).sum::<usize>(), 14);
    let responses: Vec<Analysis> = group.responses.iter().map(|r| Analysis::new(r.text())).collect();
    assert_eq!(responses.iter().map(Analysis::word_count).collect::<Vec<_>>(), [36, 15]);
    let Prompt::Text(x) = &group.prompts[0] else { panic!() };
    let mut texts = vec![x.clone(); group.prompts.len()];
    for instruction in &group.instructions {
        let function = instructions::by_id(&instruction.id).unwrap();
        let flags: Vec<_> = responses.iter().map(|r| function.check(&instruction.kwargs, r)).collect();
        assert_eq!(flags, instruction.satisfied, "{instruction:?}");
        texts[instruction.prompt] += " ";
        texts[instruction.prompt] += &function.phrase(&instruction.kwargs, 0).unwrap();
    }
    // The first phrasing of each function, joined by spaces, gives the prompts of the example.
    assert_eq!(texts.into_iter().map(Prompt::Text).collect::<Vec<_>>(), group.prompts);
}

#[test]
fn arguments_of_wrong_types_give_no_flag() {
    for function in instructions::all() {
        for broken in ["{}", r#"{"num_words": "x", "keywords": [1], "relation": 3, "letter": "", "language": null}"#] {
            let kwargs = serde_json::from_str(broken).unwrap();
            for text in HARD {
                let checked = function.check(&kwargs, &Analysis::new(text));
                assert_eq!(
                    checked.is_some(),
                    function.kind == FunctionKind::Fixed && no_arguments(function),
                    "{}",
                    function.id
                );
            }
        }
    }
    // Counts may be stored as floats, as in some IFEval rows.
    let kwargs = serde_json::from_str(r#"{"num_words": 1.0, "relation": "at least"}"#).unwrap();
    let words = instructions::by_id("length_constraints:number_words").unwrap();
    assert_eq!(words.check(&kwargs, &Analysis::new("word")), Some(true));
}

fn no_arguments(function: &Function) -> bool {
    !["detectable_content:postscript", "combination:repeat_prompt"].contains(&function.id)
}
