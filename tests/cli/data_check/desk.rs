//! Working folder for `mapl data check`, and assertions on its findings.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Temporary working folder for the binary.
pub struct Desk(tempfile::TempDir);

/// Result of `data check --json`.
pub struct Checked {
    pub code: i32,
    pub report: Value,
    pub err: String,
}

impl Desk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, rows: &[Value]) {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(self.path().join(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path().join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs the binary on `threads` threads; returns exit code, stdout and stderr.
    pub fn run_with(&self, words: &str, threads: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mapl"));
        command.args(words.split_whitespace()).current_dir(self.path()).stdin(Stdio::null());
        let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let err = text(output.stderr);
        assert!(!err.contains("panicked"), "mapl {words}\n{err}");
        (output.status.code().unwrap(), text(output.stdout), err)
    }

    pub fn run(&self, words: &str) -> (i32, String, String) {
        self.run_with(words, "2")
    }

    pub fn check(&self, words: &str) -> Checked {
        let (code, out, err) = self.run(&format!("data check {words} --json"));
        let report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}\n{err}"));
        Checked { code, report, err }
    }

    /// Runs `data check` on these training rows.
    pub fn rows(&self, rows: &[Value]) -> Checked {
        self.write("train.jsonl", rows);
        self.check("train.jsonl")
    }
}

impl Checked {
    /// Levels and check names of the findings, in order.
    pub fn names(&self) -> Vec<(String, String)> {
        let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
        self.findings().iter().map(|f| (word(f, "level"), word(f, "check"))).collect()
    }

    pub fn findings(&self) -> &Vec<Value> {
        self.report["findings"].as_array().unwrap()
    }

    pub fn finding(&self, check: &str) -> &Value {
        let found = self.findings().iter().find(|f| f["check"] == check);
        found.unwrap_or_else(|| panic!("no {check} among {:?}", self.names()))
    }

    /// Asserts a finding of this level and count, and an exit code consistent with the levels of
    /// all findings.
    pub fn has(&self, level: &str, check: &str, count: usize) -> &Value {
        let finding = self.finding(check);
        assert_eq!((&finding["level"], &finding["count"]), (&json!(level), &json!(count)), "{finding:#}");
        for key in ["what", "why", "try"] {
            assert!(finding[key].as_str().is_some_and(|text| text.len() > 10), "{finding:#}");
        }
        self.is_consistent();
        finding
    }

    /// Asserts this finding and no other.
    pub fn only(&self, level: &str, check: &str, count: usize) -> &Value {
        assert_eq!(self.names(), [(level.to_owned(), check.to_owned())], "{:#}", self.report["findings"]);
        self.has(level, check, count)
    }

    fn is_consistent(&self) {
        let of = |level: &str| self.names().iter().filter(|(l, _)| l == level).count();
        assert_eq!((&self.report["errors"], &self.report["warnings"]), (&json!(of("error")), &json!(of("warning"))));
        assert_eq!(self.code, if of("error") > 0 { 3 } else { 0 }, "{}", self.err);
        assert_eq!(self.err.lines().filter(|l| l.starts_with("error:")).count(), usize::from(self.code == 3));
    }

    /// Line of the first row listed in a finding.
    pub fn first_line(&self, check: &str) -> usize {
        self.finding(check)["where"][0]["line"].as_u64().unwrap() as usize
    }
}
