//! Tests of too little memory (exit code 7) and of threads that cannot start (exit code 1): the message has
//! advice, and no file is left behind.

use crate::workbench::Bench;

/// Writes `many.jsonl`, short rows of 64 MiB in total.
fn many_rows(bench: &Bench) {
    let row = format!(r#"{{"prompt": "{}", "chosen": "b", "rejected": "c"}}"#, "name a bird ".repeat(4)) + "\n";
    bench.write("many.jsonl", row.repeat((64 << 20) / row.len()));
}

#[test]
fn data_beyond_the_memory_limit_end_with_code_7() {
    let bench = Bench::new();
    many_rows(&bench);
    let limited = "export RAYON_NUM_THREADS=2; ulimit -v 400000;";
    for words in [
        "data build --input many.jsonl --output out.jsonl",
        "data check many.jsonl",
        "tokenizer --input many.jsonl --vocab-size 300 --output-dir t",
        "dpo --model model --train-file many.jsonl --output-dir out",
        "score --model model --input many.jsonl --output s.jsonl",
    ] {
        let before = bench.listing();
        bench
            .bash(&format!("{limited} $MAPL {words}"))
            .fails(7, &["out of memory", "MiB are left", "many.jsonl:", "split the file"]);
        assert_eq!(bench.listing(), before);
    }
    // A JSON array of rows above the memory limit gives the same exit code.
    bench.bash("(echo '['; head -n -1 many.jsonl | sed 's/$/,/'; tail -n 1 many.jsonl; echo ']') > many.json").ok();
    bench.bash(&format!("{limited} $MAPL data build --input many.json --output out.jsonl")).fails(7, &["many.json:"]);
}

#[test]
fn an_allocation_that_fails_ends_with_code_7_and_no_abort() {
    let bench = Bench::new();
    bench.write(
        "long.jsonl",
        format!(r#"{{"prompt": "{}", "chosen": "b", "rejected": "c"}}"#, "name a bird ".repeat(5 << 20)),
    );
    let before = bench.listing();
    bench
        .bash("export RAYON_NUM_THREADS=2; ulimit -v 200000; $MAPL data build --input long.jsonl --output out.jsonl")
        .fails(7, &["out of memory: cannot allocate", "ulimit -v"]);
    assert_eq!(bench.listing(), before);
}

#[test]
fn threads_that_cannot_start_are_an_error_with_advice() {
    let bench = Bench::new();
    // Each thread needs address space for its stack. The test limits that space, because a process limit does
    // not apply to root.
    bench
        .bash("export RAYON_NUM_THREADS=60000; ulimit -v 1000000; $MAPL data build --input pairs.jsonl --output out.jsonl")
        .fails(1, &["cannot start the worker threads", "ulimit -u", "RAYON_NUM_THREADS"]);
    assert!(!bench.at("out.jsonl").exists());
    let many = bench.bash("RAYON_NUM_THREADS=100000 $MAPL data build --input pairs.jsonl --output out.jsonl").ok();
    assert!(many.err.contains("RAYON_NUM_THREADS is 100000; 1024 threads are started"), "{}", many.err);
}
