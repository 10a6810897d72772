//! `run.json`: command, data, environment and outcome of a run. It is written at the start with
//! status `running` and replaced at the end, also if a signal or another rank ends the process. A killed
//! process leaves the status `running` with its host and process id.
//!
//! The manifest of a resumed run keeps the start time and the list of earlier resumes; all other entries
//! describe only the process that resumed the run last.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::checkpoint;
use crate::backend::cpu::units;
use crate::files::{input, json_text, path_json, write_atomic};
use crate::model::adapter::base::AdapterFolder;
use crate::model::adapter::config::CONFIG_FILE;
use crate::ranks::host::host_name;
use crate::terminal::complain;
use crate::{Error, Result};

/// Name of the manifest in a run folder.
pub const FILE: &str = "run.json";

/// Environment variables that affect a run or its output.
const VARIABLES: [&str; 6] =
    ["RAYON_NUM_THREADS", "CI", "NO_COLOR", "SOURCE_DATE_EPOCH", "CUDA_VISIBLE_DEVICES", units::VARIABLE];

/// Crates with a version that can change a number or a byte of the output.
const NUMERIC_CRATES: [&str; 10] = [
    "blake3",
    "gemm",
    "half",
    "minijinja",
    "minijinja-contrib",
    "rand_chacha",
    "rayon",
    "regex",
    "safetensors",
    "tokenizers",
];

/// Maximum time that an ending process waits for another thread that writes the manifest.
const RECORD_WAIT: Duration = Duration::from_secs(1);

/// Manifest of the current run.
pub struct Manifest {
    path: PathBuf,
    value: Arc<Mutex<Map<String, Value>>>,
}

impl Manifest {
    /// Writes the manifest of a new or resumed run: `facts`, then crate versions, times, host, process id and
    /// status. `resumed` holds the checkpoint and its step.
    pub fn begin(output_dir: &Path, facts: Map<String, Value>, resumed: Option<(PathBuf, u64)>) -> Result<Self> {
        let path = output_dir.join(FILE);
        let now = now();
        let mut value = facts;
        let mut started = json!(now);
        let mut resumes = Vec::new();
        if let Some((checkpoint, step)) = resumed {
            // The previous manifest is next to the checkpoint, because a run may be resumed in a different
            // folder. It may be missing or damaged; only the checkpoint decides what is resumed.
            let of_run = checkpoint.parent().unwrap_or(output_dir).join(FILE);
            let before = previous(&of_run).unwrap_or_else(|why| {
                complain(&format!(
                    "warning: {} of the resumed run {why}; the new manifest lacks its start time and earlier resumes",
                    of_run.display()
                ));
                Value::Null
            });
            if !before.is_null() {
                started = before["started"].clone();
                note_other_numbers(&before, &value);
            }
            resumes = before["resumes"].as_array().cloned().unwrap_or_default();
            resumes.push(json!({
                "time": now,
                "step": step,
                "checkpoint": path_json(&checkpoint),
                "command": value.get("command"),
                "version": env!("CARGO_PKG_VERSION"),
                "commit": crate::COMMIT,
                "status_before": before.get("status"),
                "variables_before": before["environment"]["variables"],
            }));
        }
        value.insert("crates".into(), locked_crates());
        value.insert("started".into(), started);
        value.insert("resumes".into(), json!(resumes));
        value.insert("host".into(), json!(host_name()));
        value.insert("pid".into(), json!(std::process::id()));
        value.insert("status".into(), json!("running"));
        write(&path, &value)?;
        Ok(Self { path, value: Arc::new(Mutex::new(value)) })
    }

    /// Writes the outcome: status `finished`, `stopped` (by a signal), `diverged` or `failed`, the
    /// exit code, and a message unless the run finished.
    pub fn end<T>(&self, outcome: &Result<T>) -> Result<()> {
        let (status, code, message) = match outcome {
            Ok(_) => ("finished", 0, None),
            Err(e) => {
                let status = match e {
                    Error::Stopped { .. } => "stopped",
                    Error::Diverged(_) => "diverged",
                    _ => "failed",
                };
                (status, e.exit_code(), Some(e.to_string()))
            }
        };
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        set_outcome(&mut value, status, Some(code), message);
        write(&self.path, &value)
    }

    /// Returns a function for [`Signals::record_end`](super::signals::Signals::record_end) that records the
    /// end of the process by a signal: status `stopped` with the last checkpoint. It does nothing if the
    /// outcome is already written. The process must end right after it.
    pub fn recorder(&self) -> impl FnOnce(i32) + Send + 'static {
        let (path, record) = (self.path.clone(), self.end_recorder());
        move |signal| {
            let last = checkpoint::list(path.parent().unwrap_or(Path::new("."))).pop();
            let saved = match last {
                Some((_, folder)) => format!("last checkpoint: {}", folder.display()),
                None => "no checkpoint has been written".to_owned(),
            };
            record("stopped", Some(128 + signal), format!("ended at once by signal {signal}; {saved}"));
        }
    }

    /// Returns a function for [`set_recorder`](crate::ranks::end::set_recorder) that records the end of the
    /// process by another rank: status `failed`, the reason, and the exit code if it is known. Otherwise like
    /// [`Manifest::recorder`].
    pub(crate) fn failure_recorder(&self) -> impl FnOnce(&str, Option<i32>) + Send + 'static {
        let record = self.end_recorder();
        move |why, code| record("failed", code, why.to_owned())
    }

    /// Returns a function that records an outcome right before the process ends, unless an outcome is already
    /// recorded.
    fn end_recorder(&self) -> impl FnOnce(&str, Option<i32>, String) + Send + 'static {
        let (path, value) = (self.path.clone(), self.value.clone());
        move |status, code, message| {
            let Some(mut value) = lock_within(&value, RECORD_WAIT).filter(|value| !value.contains_key("ended")) else {
                return;
            };
            set_outcome(&mut value, status, code, Some(message));
            // The process is about to end, so an error is not reported.
            let _ = write(&path, &value);
            // The lock is never released, so that the run cannot write a different outcome before the process
            // ends.
            std::mem::forget(value);
        }
    }
}

/// Returns the manifest that the run had before it was resumed, or the reason why it cannot be used.
fn previous(path: &Path) -> Result<Value, String> {
    if !input::is_named(path) {
        return Err("is missing".into());
    }
    let text = input::read(path, input::MAX_CONFIG).map_err(|e| format!("cannot be read ({e})"))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| format!("is damaged ({e})"))?;
    if value["started"].is_number() { Ok(value) } else { Err("is damaged (it has no \"started\")".into()) }
}

fn set_outcome(value: &mut Map<String, Value>, status: &str, code: Option<i32>, message: Option<String>) {
    value.insert("status".into(), json!(status));
    value.insert("exit_code".into(), json!(code));
    if let Some(message) = message {
        value.insert("message".into(), json!(message));
    }
    value.insert("ended".into(), json!(now()));
}

fn write(path: &Path, value: &Map<String, Value>) -> Result<()> {
    write_atomic(path, json_text(&Value::Object(value.clone())).as_bytes())
}

/// Locks a mutex unless another thread holds it for longer than `limit`.
fn lock_within<T>(mutex: &Mutex<T>, limit: Duration) -> Option<MutexGuard<'_, T>> {
    let began = Instant::now();
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(e)) => return Some(e.into_inner()),
            Err(TryLockError::WouldBlock) if began.elapsed() > limit => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Path, size and BLAKE3 of each file, in order. A file that cannot be read, or is not a regular
/// file (a pipe can be read only once), has the reason instead of a hash.
pub fn hashes(files: &[PathBuf]) -> Value {
    let hash = |path: &PathBuf| -> std::io::Result<(u64, blake3::Hash)> {
        let mut file = input::open(path)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((hasher.count(), hasher.finalize())),
                n => hasher.update(&buffer[..n]),
            };
        }
    };
    let entry = |path: &PathBuf| match hash(path) {
        Ok((bytes, hash)) => hash_entry(path, bytes, &hash),
        Err(e) => json!({ "path": path_json(path), "why_no_hash": e.to_string() }),
    };
    Value::Array(files.iter().map(entry).collect())
}

/// Entry of one hashed file.
pub fn hash_entry(path: &Path, bytes: u64, hash: &blake3::Hash) -> Value {
    json!({ "path": path_json(path), "bytes": bytes, "blake3": hash.to_hex().as_str() })
}

/// Files of a model folder that define the model: `config.json`, the adapter's configuration and every
/// `.safetensors` file, sorted. Empty if the folder cannot be listed, because a resumed run does not need its
/// original model.
pub fn model_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| {
            path.extension().is_some_and(|e| e == "safetensors")
                || path.file_name().is_some_and(|n| n == "config.json" || n == CONFIG_FILE)
        })
        .collect();
    files.sort_unstable();
    files
}

/// Files of a model folder and, if it holds an adapter, of its base: `base`, or the one that the
/// adapter names.
pub fn model_and_base_files(folder: &Path, base: Option<&Path>) -> Vec<PathBuf> {
    let mut files = model_files(folder);
    if let Ok(Some(adapter)) = AdapterFolder::find(folder, base) {
        files.extend(model_files(&adapter.base));
    }
    files
}

/// Known environment variables that are set, with their values.
pub fn variables() -> Value {
    let set = VARIABLES.iter().filter_map(|&name| Some((name.to_owned(), json!(std::env::var_os(name)?.to_str()))));
    Value::Object(set.collect())
}

/// Versions of the numeric crates in the `Cargo.lock` of this build; several versions of one crate
/// are joined.
fn locked_crates() -> Value {
    let lock = include_str!("../../Cargo.lock");
    let mut versions: Map<String, Value> = Map::new();
    let mut name = "";
    for line in lock.lines() {
        let quoted = |key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
        if let Some(found) = quoted("name") {
            name = found;
        } else if let Some(version) = quoted("version").filter(|_| NUMERIC_CRATES.contains(&name)) {
            let known = versions.get(name).and_then(Value::as_str).map_or(String::new(), |v| format!("{v}, "));
            versions.insert(name.to_owned(), json!(known + version));
        }
    }
    Value::Object(versions)
}

/// Wall-clock time in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Prints a note if a resumed run continues with a different precision, kind of device or, in bf16, units of
/// the CPU. All of these are allowed, and all change the numbers of the run's updates.
fn note_other_numbers(before: &Value, now: &Map<String, Value>) {
    let kind = |device: &Value| device.as_str().map(|text| text.split(':').next().unwrap_or(text).to_owned());
    let changes = [
        (
            "--dtype",
            before["config"]["dtype"].as_str().map(str::to_owned),
            now["config"]["dtype"].as_str().map(str::to_owned),
        ),
        ("--device", kind(&before["config"]["device"]), kind(&now["config"]["device"])),
    ];
    let units_of = |environment: Option<&Value>| {
        let named = environment.map_or(&Value::Null, |environment| &environment["variables"][units::VARIABLE]);
        named.as_str().filter(|name| !name.is_empty()).unwrap_or("unset").to_owned()
    };
    let [before_units, now_units] = [before.get("environment"), now.get("environment")].map(units_of);
    if before_units != now_units && now["config"]["dtype"] == "bf16" {
        complain(&format!(
            "note: {0} was {before_units} so far in this run and is {now_units} now; its bf16 updates differ in \
             rounding from those of a run with only one of them",
            units::VARIABLE
        ));
    }
    for (flag, before, now) in changes {
        if let (Some(before), Some(now)) = (before, now)
            && before != now
        {
            complain(&format!(
                "note: this run used {flag} {before} so far and continues with {flag} {now}; its updates differ in \
                 rounding from those of a run with only one of them"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_every_numeric_crate() {
        let versions = locked_crates();
        for name in NUMERIC_CRATES {
            let version = versions[name].as_str().unwrap_or_default();
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{name}: {versions}");
        }
    }

    #[test]
    fn a_file_is_hashed_and_a_folder_or_nothing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "fern").unwrap();
        let all = hashes(&[file, dir.path().into(), dir.path().join("none")]);
        assert_eq!(all[0]["blake3"], blake3::hash(b"fern").to_hex().as_str());
        assert_eq!(all[0]["bytes"], 4);
        assert!(all[1]["why_no_hash"].is_string() && all[2]["why_no_hash"].is_string() && all[2]["blake3"].is_null());
    }

    #[test]
    fn the_manifest_records_the_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = || Error::Stopped { signal: 15, step: 3, path: "c".into() };
        let outcomes: [(Result<()>, &str, i32); 4] = [
            (Ok(()), "finished", 0),
            (Err(stopped()), "stopped", 143),
            (Err(Error::Diverged("d".into())), "diverged", 4),
            (Err(Error::Memory("m".into())), "failed", 7),
        ];
        for (outcome, status, code) in outcomes {
            let read = || -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap() };
            let manifest = Manifest::begin(dir.path(), Map::new(), None).unwrap();
            let (before, pid) = (read(), json!(std::process::id()));
            assert_eq!((&before["status"], &before["pid"], &before["ended"]), (&json!("running"), &pid, &Value::Null));
            manifest.end(&outcome).unwrap();
            let after = read();
            assert_eq!((&after["status"], &after["exit_code"]), (&json!(status), &json!(code)));
            assert_eq!(after["message"].as_str().map(str::to_owned), outcome.err().map(|e| e.to_string()));
            // A signal after the end of the run does not change its outcome.
            manifest.recorder()(15);
            assert_eq!(read(), after);
        }
    }

    #[test]
    fn the_manifest_records_that_another_rank_ends_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let read = || -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap() };
        for code in [Some(1), None] {
            let manifest = Manifest::begin(dir.path(), Map::new(), None).unwrap();
            manifest.failure_recorder()("rank 2 of 3 on h has died", code);
            let value = read();
            assert_eq!((&value["status"], &value["exit_code"]), (&json!("failed"), &json!(code)));
            assert!(value["message"] == "rank 2 of 3 on h has died" && value["ended"].is_number(), "{value}");
        }
        // A run that has ended keeps its outcome.
        let manifest = Manifest::begin(dir.path(), Map::new(), None).unwrap();
        manifest.end(&Ok(())).unwrap();
        manifest.failure_recorder()("rank 2 of 3 on h has died", Some(1));
        assert_eq!(read()["status"], "finished");
    }

    #[test]
    fn the_manifest_records_a_signal_that_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest::begin(dir.path(), Map::new(), None).unwrap();
        manifest.recorder()(2);
        let value: Value = serde_json::from_slice(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        assert_eq!((&value["status"], &value["exit_code"]), (&json!("stopped"), &json!(130)));
        assert_eq!(value["message"], "ended at once by signal 2; no checkpoint has been written");
        assert!(value["ended"].is_number());
    }
}
