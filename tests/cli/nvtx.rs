//! NVTX ranges of a training run, recorded by a test library. `NVTX_INJECTION64_PATH` injects the library, as
//! it injects a profiler.

use std::process::Command;

use crate::workbench::Bench;

/// C source of an NVTX 3 injection library. It fills the callback table and appends a line for each push and
/// pop to the file named by `RECORD`.
const RECORDER: &str = r#"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef void (*Function)(void);
struct Callbacks {
    size_t bytes;
    int (*module)(int, Function***, unsigned*);
};

static void note(const char* kind, const char* name) {
    FILE* file = fopen(getenv("RECORD"), "a");
    fprintf(file, "%s%s\n", kind, name);
    fclose(file);
}
static int push(const char* name) { note("push ", name); return 0; }
static int pop(void) { note("pop", ""); return 0; }

int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
    const struct Callbacks* callbacks = export_table(1);
    Function** table = NULL;
    unsigned size = 0;
    if (!callbacks || callbacks->bytes < sizeof(struct Callbacks)) return 0;
    // Profilers also request the table of the domain functions (module 5).
    if (!callbacks->module(5, &table, &size) || size <= 15) return 0;
    if (!callbacks->module(1, &table, &size) || size <= 11) return 0;
    *table[9] = (Function)push;
    *table[11] = (Function)pop;
    return 1;
}
"#;

const TRAIN: &str = "reward --model model --train-file groups.jsonl --max-steps 2 --device cpu --quiet --output-dir";

/// Needs a C compiler, which is always there because the build of the tokenizer needs one too.
#[test]
fn ranges_of_steps_and_ops_reach_the_profiler_and_change_no_bit() {
    let bench = Bench::new();
    bench.write("recorder.c", RECORDER);
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([bench.at("recorder.so"), bench.at("recorder.c")])
        .output()
        .expect("a C compiler, cc, is needed");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let run = |folder: &str, nvtx: &str, library: &str| {
        let words = format!("{TRAIN} {folder}");
        let mut command = bench.command(&words);
        command.env("MAPL_NVTX", nvtx).env("RECORD", bench.at("ranges.txt"));
        command.env("NVTX_INJECTION64_PATH", library);
        bench.finish(command, &words).ok()
    };
    let recorder = bench.at("recorder.so").display().to_string();
    run("off", "", &recorder);
    assert!(!bench.at("ranges.txt").exists(), "ranges that nobody asked for");
    run("on", "1", &recorder);
    let text = String::from_utf8(bench.bytes("ranges.txt")).unwrap();
    let (mut open, mut inside_steps) = (Vec::new(), Vec::new());
    let mut steps = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("push ") {
            Some(name) => {
                if name.starts_with("step ") {
                    steps.push(name);
                } else if open.iter().any(|outer: &&str| outer.starts_with("step ")) {
                    inside_steps.push(name);
                }
                open.push(name);
            }
            None => assert!(line == "pop" && open.pop().is_some(), "{line} without an open range"),
        }
    }
    assert!(open.is_empty(), "ranges without an end: {open:?}");
    assert_eq!(steps, ["step 1", "step 2"]);
    for op in ["embedding_fwd", "linear_fwd", "attention_bwd", "reward_head_fwd", "preference_fwd", "adamw"] {
        assert!(inside_steps.contains(&op), "{op} is not inside a step: {inside_steps:?}");
    }
    assert_eq!(bench.bytes("on/model.safetensors"), bench.bytes("off/model.safetensors"));
    let warned = run("alone", "1", "");
    assert!(warned.err.contains("MAPL_NVTX=1: no profiler is attached"), "{}", warned.err);
}
