//! Tokenizers and chat templates that make a library panic, crash, exhaust memory or run endlessly. Each
//! gives one error that names the file, in bounded time, and never ends the main process.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mapl::data::source::{ReadOptions, read_files};
use mapl::data::tokenize::{TokenizeOptions, tokenize_rows};
use mapl::data::tokenizer::Tokenizer;
use mapl::data::worker::{COMMAND, Limits, Program};
use serde_json::{Value, json};

use crate::workbench::Bench;

fn program(limits: Limits) -> Program {
    Program { path: PathBuf::from(env!("CARGO_BIN_EXE_mapl")), limits }
}

fn talk(bench: &Bench) {
    let row = json!({"prompt": [{"role": "user", "content": "Name a bird."}],
        "chosen": [{"role": "assistant", "content": "A wren."}], "rejected": [{"role": "assistant", "content": "No."}]});
    bench.write("talk.jsonl", row.to_string());
}

#[test]
fn hostile_templates_are_refused() {
    let bench = Bench::new();
    talk(&bench);
    let cycle = "{% set ns = namespace() %}{% set ns.a = [ns] %}";
    let grow = |start: &str, sum: &str| {
        let body = format!("{{% set ns.a = {sum} %}}");
        format!("{{% set ns = namespace(a={start}) %}}{{% for i in range(60) %}}{body}{{% endfor %}}")
    };
    let show = "data show --input talk.jsonl --tokenizer tok --chat-template-path bad.jinja";
    let cases: Vec<(i32, &[&str], String)> = vec![
        (3, &["talk.jsonl:1", "bad.jinja", "stack"], format!("{cycle}{{{{ ns }}}}")),
        (3, &["talk.jsonl:1", "bad.jinja", "stack"], format!("{cycle}{{{{ ns|tojson }}}}")),
        (3, &["talk.jsonl:1", "bad.jinja", "memory"], grow("[1]", "ns.a + ns.a")),
        (3, &["talk.jsonl:1", "items"], "{{ [1] * 10**12 }}".into()),
        (3, &["talk.jsonl:1", "items"], "{{ ([1] * 10**12)|join }}".into()),
        (3, &["talk.jsonl:1", "too large"], "{{ 'a' * 10**12 }}".into()),
        (3, &["talk.jsonl:1"], "{{ range(10**12) }}".into()),
        (3, &["talk.jsonl:1"], "{% include 'default' %}".into()),
        (3, &["talk.jsonl:1", "recursion"], "{% block a %}{{ self.a() }}{% endblock %}".into()),
        (6, &["bad.jinja", "chain"], format!("{{{{ 1{} }}}}", "+1".repeat(200_000))),
        (6, &["bad.jinja", "chain"], format!("{{{{ x{} }}}}", "|f".repeat(200_000))),
        (6, &["bad.jinja", "chain"], format!("{{{{ '%s'{} }}}}", "% ''".repeat(200_000))),
        (6, &["bad.jinja", "chain"], format!("{{{{ {}x }}}}", "not ".repeat(200_000))),
        (6, &["bad.jinja", "chain"], format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(80_000))),
        (6, &["bad.jinja", "limit of 1048576"], format!("{{{{ x{} }}}}", " ~ 'x'".repeat(200_000))),
        (6, &["bad.jinja", "recursion"], format!("{{{{ {}{} }}}}", "[".repeat(200_000), "]".repeat(200_000))),
        (6, &["bad.jinja", "recursion"], "{% if 1 %}".repeat(90_000)),
    ];
    for (code, parts, source) in cases {
        bench.write("bad.jinja", source);
        bench.run(show).fails(code, parts);
    }
}

#[test]
fn hostile_tokenizers_are_refused() {
    let bench = Bench::new();
    let row = json!({"prompt": "x".repeat(40), "chosen": "aaaaaaaaa", "rejected": "No."});
    bench.write("plain.jsonl", row.to_string());
    let good = bench.json("tok/tokenizer.json");
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let charsmap = |text: &str| json!({"type": "Precompiled", "precompiled_charsmap": text});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let single =
        |pieces: Value| json!({"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let added = json!([{"id": 320, "content": "", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}]);
    let grow = json!({"type": "Sequence", "normalizers": [replace("a", &"a".repeat(100_000)), replace("a", &"a".repeat(100_000))]});
    let cases: Vec<(i32, &str, Value)> = vec![
        (3, "pre_tokenizer", split("(x+x+)+y")),
        (6, "pre_tokenizer", split(&format!("{}a{}", "(".repeat(9000), ")".repeat(9000)))),
        (6, "pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        (6, "normalizer", charsmap("AAAA")),
        (6, "normalizer", charsmap("CAAAAP//////////YWJj")),
        (6, "normalizer", charsmap("!")),
        (6, "normalizer", replace("", "ab")),
        (6, "normalizer", grow),
        (6, "post_processor", single(json!([{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, sequence("A")]))),
        (6, "post_processor", single(json!([sequence("B")]))),
        (6, "added_tokens", added),
        (
            6,
            "decoder",
            json!({"type": "Strip", "content": "a", "start": 1_000_000_000_000_000_000u64, "stop": 1_000_000_000_000_000_000u64}),
        ),
    ];
    bench.copy("tok", "bad");
    for (code, key, value) in cases {
        let mut changed = good.clone();
        changed[key] = value;
        bench.write("bad/tokenizer.json", changed.to_string());
        bench.run("data show --input plain.jsonl --tokenizer bad").fails(code, &["bad/tokenizer.json"]);
    }
    // A pattern with empty matches between all letters is unusual but works.
    let mut changed = good;
    changed["pre_tokenizer"]["pretokenizers"][0] = split("x*|");
    bench.write("bad/tokenizer.json", changed.to_string());
    bench.run("data show --input plain.jsonl --tokenizer bad --max-boundary-mismatch 1").ok();
}

#[test]
fn millions_of_blanks_are_refused_with_their_line_and_train_a_tokenizer() {
    let bench = Bench::new();
    let row = |chosen: String| json!({"prompt": "Say:", "chosen": chosen, "rejected": " no"}).to_string();
    let rows = [row(" yes".into()), row(" ".repeat(12_000_000) + "yes")];
    bench.write("blanks.jsonl", rows.join("\n"));
    bench.run("data show --input blanks.jsonl --tokenizer tok").fails(3, &["blanks.jsonl:2", "tok/tokenizer.json"]);
    bench.run("tokenizer --input blanks.jsonl --output-dir new --vocab-size 300").ok();
}

#[test]
fn limits_of_time_and_memory_end_a_worker_and_a_bad_folder_is_given_up() {
    let bench = Bench::new();
    talk(&bench);
    let row = String::from_utf8(bench.bytes("talk.jsonl")).unwrap();
    bench.write("talk.jsonl", [row.as_str(); 400].join("\n"));
    let rows = read_files(&[bench.at("talk.jsonl")], &ReadOptions::default()).unwrap();
    let started = Instant::now();
    // A slow machine takes more than a second of processor time for 1 GiB of new pages.
    for (source, seconds, limit) in [
        (
            "{{ (([1] * 10**12)|first) in range(9) and messages[0].content|length in [0] * 10**12 }}",
            1,
            "processor time",
        ),
        (
            "{% set ns = namespace(a='x' * 1000000) %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
            20,
            "1024 MiB",
        ),
    ] {
        let limits = Limits { memory: 1 << 30, seconds };
        bench.write("bad.jinja", source);
        let load =
            || Tokenizer::load_in(Some(&program(limits)), &bench.at("tok"), Some(&bench.at("bad.jinja"))).unwrap();
        // With many threads, rows in the middle are processed before the first one.
        let many = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
        let tokenized = many.install(|| tokenize_rows(rows.clone(), &load(), &TokenizeOptions::default()));
        let error = tokenized.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        let text = error.to_string();
        assert!(text.contains("talk.jsonl:1 ") && text.contains("bad.jinja") && text.contains(limit), "{text}");
        // If rows are tokenized one at a time, the third and later deaths of a worker are reported as errors
        // of the tokenizer folder.
        let tokenizer = load();
        let outcome = |at: usize| tokenize_rows(vec![rows[at].clone()], &tokenizer, &TokenizeOptions::default());
        let codes: Vec<i32> = (0..400).map(|at| outcome(at).unwrap_err().exit_code()).collect();
        assert!(codes[..2] == [3, 3] && codes[2..].iter().all(|&code| code == 6), "{codes:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(300));
}

/// Two adjacent rows, 500 and 501, are bad. With several threads, row 500 is the last one of a thread's half
/// and row 501 the first one of the other half, so row 501 kills its worker first. With an earlier death, row
/// 501 uses up the worker deaths that a folder may have. The error must still name row 500.
#[test]
fn the_first_bad_row_gets_its_error_whatever_the_others_used_up() {
    let bench = Bench::new();
    talk(&bench);
    let good = String::from_utf8(bench.bytes("talk.jsonl")).unwrap();
    let bad = good.replace("Name a bird.", "Name a bad bird.");
    let text: Vec<&str> = (0..1000).map(|at| if [499, 500].contains(&at) { &*bad } else { &*good }).collect();
    bench.write("talk.jsonl", text.join("\n"));
    let rows = read_files(&[bench.at("talk.jsonl")], &ReadOptions::default()).unwrap();
    let death =
        "{% set ns = namespace(a='x' * 1000000) %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}";
    let turns = "{% for m in messages %}{{ m.content }}{% endfor %}";
    bench.write("bad.jinja", format!("{{% if 'bad' in messages[0].content %}}{death}{{% endif %}}{turns}"));
    let limits = Limits { memory: 1 << 30, ..Limits::default() };
    let load = || Tokenizer::load_in(Some(&program(limits)), &bench.at("tok"), Some(&bench.at("bad.jinja"))).unwrap();
    for threads in [1, 8] {
        let tokenizer = load();
        let tokenized = |rows| tokenize_rows(rows, &tokenizer, &TokenizeOptions::default());
        tokenized(vec![rows[499].clone()]).unwrap_err();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let error = pool.install(|| tokenized(rows.clone())).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("talk.jsonl:500 "), "{threads} threads: {error}");
    }
}

#[test]
fn workers_give_the_ids_and_texts_of_this_process() {
    let bench = Bench::new();
    talk(&bench);
    let load = |program: Option<&Program>| Tokenizer::load_in(program, &bench.at("tok"), None).unwrap();
    let (here, there) = (load(None), load(Some(&program(Limits::default()))));
    let files = ["pairs.jsonl", "talk.jsonl", "groups.jsonl"].map(|name| bench.at(name));
    for file in files {
        let rows = read_files(&[file], &ReadOptions::default()).unwrap();
        let tokenized = |tokenizer| tokenize_rows(rows.clone(), tokenizer, &TokenizeOptions::default()).unwrap();
        assert_eq!(tokenized(&here), tokenized(&there));
    }
    for text in ["", "two words\n", "größer 漢字 🙂\u{0}"] {
        let ids = here.encode(text, true).unwrap();
        assert_eq!(there.encode(text, true).unwrap(), ids);
        assert_eq!(there.encode_prefix(text).unwrap(), here.encode_prefix(text).unwrap());
        assert_eq!(there.decode(&ids).unwrap(), here.decode(&ids).unwrap());
    }
    for id in [0, 5, 319, 320, u32::MAX] {
        assert_eq!(there.token(id), here.token(id));
        assert_eq!(there.decode(&[id]).unwrap(), here.decode(&[id]).unwrap());
    }
    let facts = |t: &Tokenizer| (t.vocab_size(), t.bos_id(), t.eos_id(), t.pad_id(), t.end_ids().to_vec());
    assert_eq!(facts(&there), facts(&here));
    assert_eq!(there.template().unwrap().sources(), here.template().unwrap().sources());
}

/// Worker processes that this process started.
fn workers() -> Vec<String> {
    let own = std::process::id().to_string();
    let started = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)).map(str::to_owned);
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parent.as_ref() == Some(&own) && command.contains(COMMAND)
    };
    let pids = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    pids.filter(|pid| pid.parse::<u32>().is_ok()).filter(started).collect()
}

#[test]
fn a_killed_worker_is_replaced() {
    let bench = Bench::new();
    let rows = read_files(&[bench.at("pairs.jsonl")], &ReadOptions::default()).unwrap();
    let tokenizer = Tokenizer::load_in(Some(&program(Limits::default())), &bench.at("tok"), None).unwrap();
    let tokenized = || tokenize_rows(rows.clone(), &tokenizer, &TokenizeOptions::default()).unwrap().0;
    let expected = tokenized();
    let done = AtomicBool::new(false);
    let mut killed = 0;
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(tokenized(), expected);
            }
        });
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(300));
            // Workers of other tests in this process are killed too, and they are replaced as well.
            for pid in workers() {
                killed += usize::from(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
            }
        }
        done.store(true, Ordering::Relaxed);
        work.join().unwrap();
    });
    assert!(killed >= 4, "{killed}");
    assert_eq!(tokenized(), expected);
}

#[test]
fn a_worker_that_cannot_start_is_one_error_with_advice() {
    let bench = Bench::new();
    let absent = Program { path: bench.at("absent"), limits: Limits::default() };
    let error = Tokenizer::load_in(Some(&absent), &bench.at("tok"), None).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("ulimit"), "{error}");
}
