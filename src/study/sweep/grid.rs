//! File format of a sweep. `[flags]` holds the training flags of every run, `[vary]` lists of
//! values:
//!
//! ```toml
//! method = "dpo"
//! [flags]
//! model = "model"
//! train-file = "groups.jsonl"
//! max-steps = 12
//! [vary]
//! per-device-train-batch-size = [1, 2, 4]
//! prefix-sharing = ["on", "off"]
//! ```

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use crate::files::input;
use crate::{Error, Result};

/// Contents of a sweep's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SweepFile {
    method: String,
    flags: Table,
    vary: Table,
}

/// The runs of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// `sft`, `reward` or `dpo`.
    pub method: String,
    /// Varied flags, in alphabetical order.
    pub axes: Vec<String>,
    pub points: Vec<Point>,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Name by position in the grid, as `p001`.
    pub name: String,
    /// Values of the varied flags.
    pub values: Vec<String>,
    /// Command line arguments after the method.
    pub words: Vec<String>,
}

/// Flags that the sweep sets itself.
const RESERVED_FLAGS: [&str; 6] =
    ["output-dir", "overwrite-output-dir", "resume-from-checkpoint", "quiet", "study-dir", "profile"];

/// Maximum number of runs of a sweep.
const MAX_POINTS: usize = 1000;

impl Grid {
    /// Reads a file. [`Error::Data`] names the line of an error.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = input::read_once(path, input::MAX_CONFIG).map_err(input::data_error(path))?;
        let wrong = |line: usize, why: String| Error::Data { file: path.to_owned(), line, id: None, why };
        let text = String::from_utf8(bytes).map_err(|_| wrong(0, "is not UTF-8 text".into()))?;
        let file: SweepFile = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            wrong(line, format!("{}; a sweep needs method, [flags] and [vary]", e.message().trim()))
        })?;
        Self::of(&file).map_err(|why| wrong(0, why))
    }

    fn of(file: &SweepFile) -> Result<Self, String> {
        if !["sft", "reward", "dpo"].contains(&file.method.as_str()) {
            return Err(format!("method {:?} is not one of sft, reward, dpo", file.method));
        }
        for name in file.flags.keys().chain(file.vary.keys()) {
            let name = name.replace('_', "-");
            if RESERVED_FLAGS.contains(&name.as_str()) {
                return Err(format!("{name}: the sweep sets this flag itself; leave it out"));
            }
        }
        if let Some(name) = file.vary.keys().find(|name| file.flags.contains_key(*name)) {
            return Err(format!("{name} is both in [flags] and in [vary]; remove it from one of them"));
        }
        let mut shared = Vec::new();
        for (name, value) in &file.flags {
            shared.extend(words(name, value)?);
        }
        let mut axes = Vec::new();
        for (name, values) in &file.vary {
            let Some(values) = values.as_array().filter(|values| !values.is_empty()) else {
                return Err(format!("{name}: a list with at least one value is needed in [vary]"));
            };
            axes.push((name.clone(), values));
        }
        if axes.is_empty() {
            return Err("[vary] is empty; list at least one flag with its values".into());
        }
        let count = axes.iter().try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()));
        let Some(count) = count.filter(|&count| count <= MAX_POINTS) else {
            return Err(format!("the lists of [vary] make more than {MAX_POINTS} runs; shorten them"));
        };
        let point = |index: usize| -> Result<Point, String> {
            // The last axis changes fastest.
            let (mut rest, mut values, mut varied) = (index, Vec::new(), Vec::new());
            for (name, list) in axes.iter().rev() {
                let value = &list[rest % list.len()];
                rest /= list.len();
                values.push(value_text(value)?);
                varied.push(words(name, value)?);
            }
            values.reverse();
            let varied = varied.into_iter().rev().flatten();
            let name = format!("p{:03}", index + 1);
            Ok(Point { name, values, words: shared.iter().cloned().chain(varied).collect() })
        };
        let points = (0..count).map(point).collect::<Result<_, _>>()?;
        Ok(Self { method: file.method.clone(), axes: axes.into_iter().map(|axis| axis.0).collect(), points })
    }
}

/// A value as a command line argument.
fn value_text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(yes) => Ok(yes.to_string()),
        Value::Array(list) => Ok(list.iter().map(value_text).collect::<Result<Vec<_>, _>>()?.join(" ")),
        Value::Datetime(_) | Value::Table(_) => Err("the value of a flag must not be a date or a table".into()),
    }
}

/// Command line arguments of a flag: `true` gives the bare flag, `false` gives nothing.
fn words(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let flag = format!("--{}", name.replace('_', "-"));
    Ok(match value {
        Value::Boolean(true) => vec![flag],
        Value::Boolean(false) => Vec::new(),
        Value::Array(list) => {
            [flag].into_iter().chain(list.iter().map(value_text).collect::<Result<Vec<_>, _>>()?).collect()
        }
        // A single argument, so that a value with a leading dash is not taken for a flag.
        value => vec![format!("{flag}={}", value_text(value)?)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(text: &str) -> Result<Grid, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        Grid::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn points_are_the_product_of_the_lists() {
        let text = "method = \"dpo\"\n[flags]\nmax_steps = 3\ntrain-file = [\"a\", \"b\"]\n[vary]\nbeta = [0.1, -1]\nquick = \
                    [true, false, true]\n";
        let grid = grid(text).unwrap();
        assert_eq!(grid.axes, ["beta", "quick"]);
        assert_eq!(grid.points.len(), 6);
        let last = &grid.points[4];
        assert_eq!((last.name.as_str(), &last.values[..]), ("p005", &["-1".to_owned(), "false".into()][..]));
        assert_eq!(last.words, ["--max-steps=3", "--train-file", "a", "b", "--beta=-1"]);
        assert_eq!(grid.points[3].words.last().unwrap(), "--quick");
    }

    #[test]
    fn errors_name_their_line() {
        for (text, part) in [
            ("method = \"ppo\"\n[flags]\n[vary]\na = [1]", "one of sft, reward, dpo"),
            ("method = \"dpo\"\n[flags]\n[vary]\n", "[vary] is empty"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = 1", "a: a list"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = []", "a: a list"),
            ("method = \"dpo\"\n[flags]\na = 1\n[vary]\na = [1]", "both in"),
            ("method = \"dpo\"\n[flags]\noutput_dir = \"x\"\n[vary]\na = [1]", "output-dir: the sweep sets"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = [1979-05-27]", "must not be a date"),
            ("method = \"dpo\"\n[flags\n[vary]\na = [1]", "sweep.toml:2"),
            ("method = \"dpo\"\n[flags]\n[varies]\na = [1]", "a sweep needs method, [flags] and [vary]"),
            (&format!("method = \"dpo\"\n[flags]\n[vary]\na = [{0}]\nb = [{0}]", "1, ".repeat(40)), "more than 1000"),
        ] {
            let error = grid(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
