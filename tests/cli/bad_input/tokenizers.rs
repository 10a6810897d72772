//! Damaged tokenizers, and chat templates that fail or do not terminate.

use mapl::data::tokenizer::Tokenizer;
use mapl::rng::Rng;
use serde_json::{Value, json};

use crate::workbench::Bench;

#[test]
fn damaged_tokenizers_are_named() {
    let bench = Bench::new();
    let good = bench.json("model/tokenizer.json");
    let text = good.to_string();
    let edit = |change: &dyn Fn(&mut Value)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed.to_string().into_bytes()
    };
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        text.as_bytes()[..text.len() / 2].to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        "[".repeat(100_000).into_bytes(),
        edit(&|t| t["model"]["vocab"] = json!({})),
        edit(&|t| t["model"]["vocab"] = json!({"a": -1})),
        edit(&|t| t["model"]["merges"] = json!([["no such", "tokens"]])),
        edit(&|t| t["model"]["merges"] = json!(7)),
        edit(&|t| t["model"]["type"] = json!("Unheard")),
        edit(&|t| t["model"]["dropout"] = json!(0.5)),
        edit(&|t| t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated"})),
        edit(&|t| t["added_tokens"][0]["id"] = json!(4_000_000)),
    ];
    bench.copy("model", "bad");
    let before = bench.listing();
    for (i, content) in cases.into_iter().enumerate() {
        bench.write("bad/tokenizer.json", content);
        let done = bench.run("dpo --model bad --train-file pairs.jsonl --output-dir out");
        assert_eq!(done.code, Some(6), "case {i}: {}", done.err);
        done.fails(6, &["bad/tokenizer"]);
        assert_eq!(bench.listing(), before);
    }
    bench.copy("model", "bad");
    bench.write("bad/tokenizer_config.json", "{\"eos_token\": 7}");
    bench
        .run("dpo --model bad --train-file pairs.jsonl --output-dir out")
        .fails(6, &["bad/tokenizer_config.json", "eos_token"]);
    bench.write("bad/tokenizer_config.json", "{\"eos_token\": \"<|unheard|>\"}");
    bench
        .run("dpo --model bad --train-file pairs.jsonl --output-dir out")
        .fails(6, &["bad/tokenizer_config.json", "<|unheard|>", "vocabulary"]);
}

#[test]
fn flipped_bits_in_a_tokenizer_never_panic() {
    let bench = Bench::new();
    let good = bench.bytes("model/tokenizer.json");
    let mut rng = Rng::keyed(5, &["bits"]);
    let mut refused = 0;
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        bench.write("model/tokenizer.json", &bytes);
        let kept = bytes.clone();
        let outcome = std::panic::catch_unwind(|| match Tokenizer::load(&bench.at("model")) {
            Ok(tokenizer) => tokenizer.encode("Say a word. é", true).map(|_| ()),
            Err(e) => Err(e),
        });
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                assert_eq!(e.exit_code(), 6, "{e}");
                refused += 1;
            }
            Err(_) => {
                let place = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer-panic.json");
                std::fs::write(&place, kept).unwrap();
                panic!("loading the tokenizer in {} panicked", place.display());
            }
        }
    }
    assert!(refused > 50, "{refused} of 300 damaged tokenizers were refused");
}

#[test]
fn templates_that_fail_or_do_not_terminate_are_refused() {
    let bench = Bench::new();
    let talk = json!({"prompt": [{"role": "user", "content": "Name a bird."}],
        "chosen": [{"role": "assistant", "content": "A wren."}], "rejected": [{"role": "assistant", "content": "No."}]});
    bench.write("talk.jsonl", talk.to_string());
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let syntax: [(&str, &[&str]); 4] = [
        ("{% if %}", &["bad.jinja", "does not parse", "line 1"]),
        ("a\n{{ 'x' ", &["bad.jinja", "does not parse", "line 2"]),
        ("{% for %}", &["bad.jinja", "does not parse"]),
        ("{{ ((((((((((((((((((((((((", &["bad.jinja", "does not parse"]),
    ];
    let rendering: [(&str, &[&str]); 6] = [
        (endless, &["talk.jsonl:1", "instructions", "loop"]),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", &["talk.jsonl:1", "recursion"]),
        ("{{ raise_exception('no birds here') }}", &["talk.jsonl:1", "no birds here"]),
        ("{{ messages[0].content.unheard() }}", &["talk.jsonl:1", "the chat template failed"]),
        ("{{ 'x'|indent(99999999999, true) }}", &["talk.jsonl:1", "width"]),
        ("{{ strftime_now('%Q') }}", &["talk.jsonl:1", "%Q"]),
    ];
    bench.write("bad.jinja", "");
    let before = bench.listing();
    let run = || bench.run("dpo --model model --train-file talk.jsonl --output-dir out --chat-template-path bad.jinja");
    for (source, parts) in syntax {
        bench.write("bad.jinja", source);
        run().fails(6, parts);
    }
    for (source, parts) in rendering {
        bench.write("bad.jinja", source);
        run().fails(3, parts);
    }
    bench.write("bad.jinja", b"{{ \xff }}");
    run().fails(6, &["bad.jinja", "UTF-8"]);
    assert_eq!(bench.listing(), before);
}
