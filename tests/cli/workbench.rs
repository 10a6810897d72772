//! Working folder for tests of the binary, with pairs, groups, a tokenizer and small models of two
//! families. Each test program builds it once by running `mapl`; every test gets a copy.

// Each test binary that includes this file uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// Exit code and output of a command.
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    command: String,
}

impl Done {
    /// Asserts exit code 0 and no error message.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}\n{}", self.command, self.out, self.err);
        assert!(!self.err.contains("error"), "{}\n{}", self.command, self.err);
        self
    }

    /// Asserts the exit code, a single error line, no panic, and each of `parts` in the message.
    pub fn fails(self, code: i32, parts: &[&str]) -> Self {
        let all = format!("{}\n{}\n{}", self.command, self.out, self.err);
        assert_eq!(self.code, Some(code), "{all}");
        assert!(!self.err.contains("panicked"), "{all}");
        assert_eq!(self.err.lines().filter(|line| line.starts_with("error:")).count(), 1, "{all}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in\n{all}");
        }
        self
    }
}

/// A temporary folder with `pairs.jsonl`, `groups.jsonl`, `tok/`, `model/` (Llama) and `qwen/`
/// (Qwen2).
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        copy(start(), bench.path());
        bench
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Builds a command that runs in this folder; `words` are separated by white space.
    pub fn command(&self, words: &str) -> Command {
        command(self.path(), words)
    }

    pub fn run(&self, words: &str) -> Done {
        finish(self.command(words), words)
    }

    /// Runs a bash script in this folder; `$MAPL` is the binary. After 100 s it is ended with exit code
    /// 124, for commands that could wait for ever.
    pub fn bash(&self, script: &str) -> Done {
        let mut command = Command::new("timeout");
        command.args(["100", "bash", "-c", script]).current_dir(self.path()).stdin(Stdio::null());
        command.env("MAPL", env!("CARGO_BIN_EXE_mapl")).env("NO_COLOR", "1");
        finish(command, script)
    }

    pub fn run_with(&self, words: &str, variable: (&str, &str)) -> Done {
        let mut command = self.command(words);
        command.env(variable.0, variable.1);
        finish(command, words)
    }

    /// Runs a command that [`Bench::command`] built.
    pub fn finish(&self, command: Command, words: &str) -> Done {
        finish(command, words)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.at(name), content).unwrap();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap()
    }

    /// Rows of a JSON Lines file.
    pub fn rows(&self, name: &str) -> Vec<Value> {
        let text = String::from_utf8(self.bytes(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Rows of a run's metrics with this `kind`, without fields that depend on time.
    pub fn metrics(&self, run: &str, kind: &str) -> Vec<Value> {
        let mut rows = self.rows(&format!("{run}/metrics.jsonl"));
        rows.retain(|row| row["kind"] == kind);
        for row in &mut rows {
            let row = row.as_object_mut().unwrap();
            assert!(row.remove("time").unwrap().as_f64().unwrap() > 1.6e9);
            row.remove("step_seconds");
        }
        rows
    }

    /// Copies a folder within the bench.
    pub fn copy(&self, from: &str, to: &str) {
        copy(&self.at(from), &self.at(to));
    }

    /// Copies a committed model folder and adds the bench's tokenizer.
    pub fn golden(&self, name: &str, to: &str) {
        copy(&golden(name), &self.at(to));
        copy(&self.at("tok"), &self.at(to));
    }

    /// Sorted paths of all files and folders in the bench.
    pub fn listing(&self) -> Vec<PathBuf> {
        let (mut found, mut open) = (Vec::new(), vec![self.path().to_path_buf()]);
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

/// Whether tests over many cases run all of them (`MAPL_TEST_FULL=1`). Otherwise they run a fixed, evenly
/// spread sample.
pub fn full() -> bool {
    std::env::var_os("MAPL_TEST_FULL").is_some_and(|v| v == "1")
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn command(dir: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mapl"));
    command.args(words.split_whitespace()).current_dir(dir).env("NO_COLOR", "1").stdin(Stdio::null());
    // With `rough`, `--profile` and benchmarks on the CPU measure the ceilings of the machine within
    // milliseconds; `arguments::a_profile_lists_every_op_of_a_step` measures them in full.
    command.env("MAPL_CEILINGS", "rough");
    // A run's record of its environment (train/manifest.rs) must not depend on who runs the tests.
    for inherited in ["CI", "SOURCE_DATE_EPOCH", "CUDA_VISIBLE_DEVICES"] {
        command.env_remove(inherited);
    }
    command
}

fn finish(mut command: Command, words: &str) -> Done {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    Done { code: output.status.code(), out, err, command: format!("mapl {words}") }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Template folder; every bench starts as a copy.
fn start() -> &'static Path {
    static START: OnceLock<PathBuf> = OnceLock::new();
    START.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!("start-", env!("CARGO_CRATE_NAME")));
        if dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        std::fs::create_dir_all(&dir).unwrap();
        let run = |words: &str| finish(command(&dir, words), words).ok();
        run("data language --split train --rows 24 --seed 5 --output pairs.jsonl");
        run("tokenizer --input pairs.jsonl --vocab-size 320 --output-dir tok");
        for (family, folder) in [("llama", "model"), ("qwen2", "qwen")] {
            let text = std::fs::read(golden(family).join("config.json")).unwrap();
            let mut config: Value = serde_json::from_slice(&text).unwrap();
            config["vocab_size"] = json!(320);
            config["max_position_embeddings"] = json!(256);
            std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
            run(&format!("init --config config.json --tokenizer tok --output-dir {folder} --seed 3"));
        }
        std::fs::remove_file(dir.join("config.json")).unwrap();
        run("data build --input pairs.jsonl --output groups.jsonl --k-min 1 --k-max 2");
        dir
    })
}
