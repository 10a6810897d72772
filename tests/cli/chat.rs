//! Tests of `mapl chat` over pipes: answers, which equal those of `mapl generate`, commands, the end of the
//! input, and signals.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::workbench::Bench;

/// Runs a conversation; `lines` is the standard input, one turn or command per line.
fn chat(bench: &Bench, flags: &str, lines: &str) -> (String, String) {
    bench.write("lines.txt", lines);
    let done = bench.bash(&format!("\"$MAPL\" chat --model model {flags} < lines.txt")).ok();
    (done.out, done.err)
}

/// The answer of `mapl generate` to a conversation.
fn answer(bench: &Bench, flags: &str, turns: &[(&str, &str)]) -> String {
    let turns: Vec<Value> = turns.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
    bench.write("turns.jsonl", json!({ "prompt": turns }).to_string());
    bench.run(&format!("generate --model model --input turns.jsonl --output answer.jsonl {flags}")).ok();
    bench.rows("answer.jsonl")[0]["response"].as_str().unwrap().to_owned()
}

#[test]
fn answers_are_those_of_generate_and_turns_reuse_the_cache() {
    let bench = Bench::new();
    for flags in ["--max-new-tokens 7", "--max-new-tokens 7 --temperature 1.1 --top-k 50 --seed 3"] {
        let first = answer(&bench, flags, &[("user", "the cat")]);
        let second = answer(&bench, flags, &[("user", "the cat"), ("assistant", &first), ("user", "why")]);
        let (out, err) = chat(&bench, flags, "the cat\n\nwhy\n/reset\nthe cat\n/quit\nnot read\n");
        let shown = |text: &str| mapl::terminal::plain(text).into_owned();
        assert_eq!(out, format!("{0}\n{1}\n{0}\n", shown(&first), shown(&second)), "{flags}");
        assert!(err.contains("a new conversation"), "{err}");
        let counts = err.lines().find(|line| line.contains("prompt tokens were computed")).unwrap();
        let numbers: Vec<usize> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(numbers[0] > 0 && numbers[1] > 0, "{counts}");
    }
    // A system prompt is used, and the input may end without a line break.
    let turns = [("system", "be short"), ("user", "the cat")];
    let (out, _) = chat(&bench, "--max-new-tokens 5 --system be\\ short", "the cat");
    assert_eq!(out, format!("{}\n", mapl::terminal::plain(&answer(&bench, "--max-new-tokens 5", &turns))));
}

#[test]
fn stop_texts_commands_and_refusals() {
    let bench = Bench::new();
    let free = answer(&bench, "--max-new-tokens 20", &[("user", "the cat")]);
    let stop = free.chars().filter(char::is_ascii_alphanumeric).nth(3).unwrap();
    let (out, _) = chat(&bench, &format!("--max-new-tokens 20 --stop {stop} zzzz"), "the cat\n");
    assert_eq!(out, format!("{}\n", mapl::terminal::plain(free.split(stop).next().unwrap())));
    let (out, err) = chat(&bench, "", "/rest\n");
    assert_eq!(out, "");
    assert!(err.contains("/rest: not a command") && err.contains("/reset"), "{err}");
    let slash = answer(&bench, "--max-new-tokens 4", &[("user", "/rest")]);
    assert_eq!(chat(&bench, "--max-new-tokens 4", " /rest\n").0, format!("{}\n", mapl::terminal::plain(&slash)));
    bench.bash("printf '\\377\\n' | \"$MAPL\" chat --model model").fails(3, &["-:1", "not UTF-8"]);
    bench.write("long.txt", format!("{}\n", "word and ".repeat(300)));
    bench.bash("\"$MAPL\" chat --model model < long.txt").fails(2, &["no room for an answer", "256"]);
    bench.run("chat --model model --seed 1").fails(2, &["--seed has no effect"]);
    bench.run("chat --model model --batch-size 2").fails(2, &["--batch-size"]);
    bench.run("chat --model none").fails(6, &["none"]);
    bench.golden("qwen3-reward", "judge");
    bench.run("chat --model judge").fails(6, &["reward model"]);
}

/// The first signal ends the answer; a later signal, between answers, ends the program.
#[test]
fn an_interrupt_ends_the_answer_and_then_the_program() {
    let bench = Bench::new();
    // Without the signal, the answer would have all 200 tokens: this model chooses no EOS token before.
    let mut child = Command::new(env!("CARGO_BIN_EXE_mapl"))
        .args(["chat", "--model", "model", "--max-new-tokens", "200", "--device", "reference"])
        .current_dir(bench.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let interrupt = |child: &std::process::Child| {
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
    };
    writeln!(input, "the cat").unwrap();
    let mut output = BufReader::new(output);
    // The first bytes of the answer have arrived, so generation is running.
    assert!(!output.fill_buf().unwrap().is_empty());
    interrupt(&child);
    let mut seen = String::new();
    while !seen.contains("(interrupted)") {
        assert!(errors.read_line(&mut seen).unwrap() > 0, "{seen}");
    }
    // A repeat within two seconds of the first one would be ignored.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
