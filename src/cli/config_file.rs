//! `--config`: options of a training command from a YAML or TOML file, under the names of the command line.
//! TRL's files work as they are: `env` sets environment variables. Flags on the command line replace those of
//! the file. Keys that are not flags, and flags given twice, are errors that name the line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;

use super::args::{is_known, known_names};
use super::config_tree::{Fault, Node, Pair, toml, yaml};
use crate::files::input;
use crate::{Error, Result};

/// Key of environment variables.
const ENVIRONMENT: &str = "env";
/// Minimum similarity of a known name that is suggested for an unknown one.
const SIMILAR: f64 = 0.75;

/// A flag of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    /// Flag with its dashes, in kebab case.
    pub flag: String,
    pub line: usize,
    /// One value, or those of a list.
    pub values: Vec<String>,
}

/// Flags and variables that a file sets.
#[derive(Debug, PartialEq)]
pub(super) struct ConfigFile {
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Names and values of environment variables.
    pub variables: Vec<(String, String)>,
}

/// File that the arguments name with `--config`.
pub(super) fn named(words: &[OsString]) -> Option<PathBuf> {
    let mut words = words.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--config") => return words.next().map(PathBuf::from),
            Some(text) if text.starts_with("--config=") => return Some(text["--config=".len()..].into()),
            _ => {}
        }
    }
    None
}

/// Reads a file for a training command.
///
/// # Errors
/// [`Error::Usage`] names file and line; [`Error::Io`] if the file cannot be read.
pub(super) fn read(path: &Path, command: &Command) -> Result<ConfigFile> {
    let refused = |(line, why): Fault| {
        let place = if line == 0 { String::new() } else { format!(":{line}") };
        Error::Usage(format!("{}{place}: {why}", path.display()))
    };
    let bytes = input::read_once(path, input::MAX_CONFIG)
        .map_err(|e| Error::Usage(format!("--config {}: {e}", path.display())))?;
    let text = String::from_utf8(bytes).map_err(|_| refused((0, "is not UTF-8 text".into())))?;
    let is_toml = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("toml"));
    let pairs = if is_toml { toml(&text) } else { yaml(text.trim_start_matches('\u{feff}')) };
    pairs.and_then(|pairs| entries(pairs, command)).map_err(refused)
}

fn entries(pairs: Vec<Pair>, command: &Command) -> Result<ConfigFile, Fault> {
    let mut file = ConfigFile { entries: Vec::new(), variables: Vec::new() };
    for Pair { key, line, value } in pairs {
        if key == ENVIRONMENT {
            file.variables = variables(value, line)?;
            continue;
        }
        let flag = format!("--{}", key.replace('_', "-"));
        if flag == "--config" || !is_known(command, &flag) {
            return Err((line, unknown(&key, command)));
        }
        if let Some(first) = file.entries.iter().find(|entry| entry.flag == flag) {
            return Err((line, format!("\"{key}\" is already set in line {}; remove one of the two", first.line)));
        }
        let opposite = match flag.strip_prefix("--no-") {
            Some(name) => format!("--{name}"),
            None => format!("--no-{}", &flag[2..]),
        };
        if let Some(other) = file.entries.iter().find(|entry| entry.flag == opposite) {
            let other = (other.flag[2..].replace('-', "_"), other.line);
            return Err((line, format!("\"{key}\" contradicts \"{}\" in line {}; leave one out", other.0, other.1)));
        }
        let values: Vec<String> = match &value {
            // An empty list sets nothing, as in TRL.
            Node::List(list) if !list.iter().any(|value| matches!(value, Node::Map(_))) => {
                list.iter().filter_map(Node::text).collect()
            }
            value => value.text().into_iter().collect(),
        };
        if !values.is_empty() {
            file.entries.push(Entry { flag, line, values });
        }
    }
    Ok(file)
}

fn variables(value: Node, line: usize) -> Result<Vec<(String, String)>, Fault> {
    let wrong = |line: usize| (line, format!("\"{ENVIRONMENT}\" must hold names of environment variables with texts"));
    match value {
        Node::Null => Ok(Vec::new()),
        Node::Map(pairs) => pairs
            .into_iter()
            .map(|Pair { key, line, value }| {
                let text = matches!(value, Node::Text { .. }).then(|| value.text()).flatten();
                let text = text.filter(|text| !key.is_empty() && !key.contains(['=', '\0']) && !text.contains('\0'));
                text.map(|text| (key, text)).ok_or_else(|| wrong(line))
            })
            .collect(),
        _ => Err(wrong(line)),
    }
}

fn unknown(key: &str, command: &Command) -> String {
    let name = key.replace('_', "-");
    let names = known_names(command).into_iter().map(|known| (strsim::jaro_winkler(&known, &name), known));
    let nearest = names.filter(|(likeness, _)| *likeness >= SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((_, known)) => format!("; the nearest is \"{}\"", known.replace('-', "_")),
        None => format!("; `mapl {} --help` lists them", command.get_name()),
    };
    format!("\"{key}\" is not an option of `mapl {}`{hint}", command.get_name())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::*;

    fn of(text: &str) -> Result<ConfigFile, Fault> {
        let command = Cli::command().find_subcommand("dpo").unwrap().clone();
        yaml(text).and_then(|pairs| entries(pairs, &command))
    }

    #[test]
    fn keys_are_flags_in_either_spelling() {
        let file =
            of("model_name_or_path: m\nlearning-rate: 5.0e-7\nreport_to: [tensorboard, jsonl]\neval_file: []\nbeta:\n\
             bf16: true\nno_remove_unused_columns: true\nlr_scheduler_kwargs:\n  min_lr_rate: 0.1\n\
             env:\n  CUDA_VISIBLE_DEVICES: 0\n")
            .unwrap();
        let words: Vec<String> =
            file.entries.iter().map(|entry| format!("{}={}", entry.flag, entry.values.join("+"))).collect();
        assert_eq!(
            words,
            [
                "--model-name-or-path=m",
                "--learning-rate=5.0e-7",
                "--report-to=tensorboard+jsonl",
                "--bf16=true",
                "--no-remove-unused-columns=true",
                "--lr-scheduler-kwargs={\"min_lr_rate\":0.1}"
            ]
        );
        assert_eq!(file.variables, [("CUDA_VISIBLE_DEVICES".to_owned(), "0".to_owned())]);
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest_name() {
        for (text, line, parts) in [
            ("beta: 1\nlearning_rte: 1\n", 2, &["\"learning_rte\"", "nearest is \"learning_rate\""][..]),
            ("zzz: 1\n", 1, &["\"zzz\"", "mapl dpo --help"]),
            ("config: a.yaml\n", 1, &["\"config\""]),
            ("max_steps: 1\nmax-steps: 2\n", 2, &["already set in line 1"]),
            ("quiet: true\nno_quiet: true\n", 2, &["contradicts \"quiet\" in line 1"]),
            ("env: [a]\n", 1, &["environment variables"]),
            ("env:\n  A=B: 1\n", 2, &["environment variables"]),
        ] {
            let (at, why) = of(text).unwrap_err();
            assert!(at == line && parts.iter().all(|part| why.contains(part)), "{text:?}: {at} {why}");
        }
    }
}
