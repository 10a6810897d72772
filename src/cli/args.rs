//! The command line before it is parsed: spellings of flags, the configuration file of `--config`,
//! and flags of TRL.
//!
//! ```text
//! arguments as typed
//! -> kebab case, negative numbers joined with their flag        (spelled)
//! -> entries of the configuration file before them              (config_file)
//! -> flags of TRL replaced by those of mapl, or an error        (trl_flags, training commands)
//! -> true and false of switches, --no-FLAG                      (switched)
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::config_file::{self, Entry};
use super::trl_flags::{self, Becomes, Takes};
use super::{Cli, method_options};
use crate::{Error, Result};

/// A command line for the parser.
#[derive(Debug, Default)]
pub struct Given {
    /// Arguments for the parser.
    pub words: Vec<OsString>,
    /// The command line as typed, quoted so that a shell can read it.
    pub shown: String,
    /// Notes for the user, such as on arguments that are accepted but have no effect.
    pub notes: Vec<String>,
    /// Environment variables that the configuration file sets.
    pub variables: Vec<(String, String)>,
    /// Place of every flag that the configuration file sets, as `FILE:LINE`.
    places: BTreeMap<String, String>,
}

/// Normalises a command line. Underscores in long flags become dashes, so `--learning_rate=1e-5` means
/// `--learning-rate=1e-5`. A negative number after a flag is joined to it, so in `--margin -1` the `-1` is a
/// value and not a flag. A switch, which is a flag without a value, may be followed by `true` or `false`, as
/// in TRL: `--quiet true` becomes `--quiet`, while `--quiet false` and `--no-quiet` are removed. Values are
/// not changed, and neither is anything after `--`. Training commands also accept the flags of a
/// configuration file, and those of TRL.
///
/// # Errors
/// [`Error::Usage`] for a configuration file that cannot be used, and for flags of TRL without an
/// equivalent.
pub fn given(arguments: impl IntoIterator<Item = OsString>) -> Result<Given> {
    let typed = spelled(arguments);
    let (command, depth) = named_command(&typed);
    let mut given = Given { shown: shown(&typed), ..Given::default() };
    if !method_options::trains(&command) {
        given.words = switched(typed, &command);
        return Ok(given);
    }
    let (head, rest) = typed.split_at(depth);
    let mut words = Vec::new();
    if let Some(path) = config_file::named(rest) {
        let file = config_file::read(&path, &command)?;
        let own: Vec<String> = flags_of(rest).map(|flag| key_of(&command, flag)).collect();
        for Entry { flag, line, values } in file.entries {
            if !own.contains(&key_of(&command, &flag)) {
                let place = format!("{}:{line}", path.display());
                let long = find_flag(&command, &flag).and_then(Arg::get_long).map(|long| format!("--{long}"));
                // A flag of TRL is also stored under the flag that replaces it, because messages may name
                // either.
                given.places.insert(format!("--{}", key_of(&command, &flag)), place.clone());
                given.places.insert(long.unwrap_or_else(|| flag.clone()), place);
                words.extend(values.into_iter().map(|value| OsString::from(format!("{flag}={value}"))));
            }
        }
        // Only names are noted, because values may be secrets.
        let set = |(name, _): &(String, String)| format!("{} sets {name}", path.display());
        given.notes.extend(file.variables.iter().map(set));
        given.variables = file.variables;
    }
    words.extend(rest.iter().cloned());
    let mut notes = Vec::new();
    let translated = translated(words, &command, &mut notes).map_err(|why| given.explain(Error::Usage(why)))?;
    given.notes.extend(notes);
    given.words = switched(head.iter().cloned().chain(translated).collect(), &command);
    Ok(given)
}

impl Given {
    /// Places in the configuration file of the flags that a message names, if any.
    pub fn places_in(&self, message: &str) -> Option<String> {
        let named: Vec<&str> = named_flags(message).collect();
        let places = self.places.iter().filter(|(flag, _)| named.contains(&flag.as_str()));
        let places: Vec<String> = places.map(|(flag, place)| format!("{flag} is set in {place}")).collect();
        (!places.is_empty()).then(|| places.join("; "))
    }

    /// Adds the places of the flags that a usage error names to the error.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Usage(why) => match self.places_in(&why) {
                Some(places) => Error::Usage(format!("{why} ({places})")),
                None => Error::Usage(why),
            },
            other => other,
        }
    }
}

/// Converts flags to kebab case, and joins them with negative numbers.
fn spelled(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut verbatim = false;
    let mut all: Vec<OsString> = Vec::new();
    for argument in arguments {
        verbatim |= argument == "--";
        let text = argument.to_str().filter(|_| !verbatim);
        let before = all.last().and_then(|a| a.to_str()).filter(|a| a.starts_with("--") && !a.contains('='));
        match (text, before) {
            (Some(value), Some(flag)) if value.starts_with('-') && value.parse::<f64>().is_ok() => {
                let joined = format!("{flag}={value}");
                all.pop();
                all.push(joined.into());
            }
            (Some(text), _) if text.starts_with("--") => all.push(match text.split_once('=') {
                Some((flag, value)) => format!("{}={value}", flag.replace('_', "-")).into(),
                None => text.replace('_', "-").into(),
            }),
            _ => all.push(argument),
        }
    }
    all
}

/// Returns an error for arguments that are not UTF-8, in commands that record paths in JSON.
pub fn check_text(arguments: &[OsString], command: &super::Command) -> Result<()> {
    use super::Command::{Bench, Completions, Data, Env, Init, Man, Report, Tokenizer, Watch};
    use super::data::DataCommand;
    let records = match command {
        Data(data) => matches!(data, DataCommand::Check(_)),
        Tokenizer(_) | Init(_) | Report(_) | Watch(_) | Bench(_) | Env(_) | Completions(_) | Man(_) => false,
        _ => true,
    };
    match arguments.iter().find(|argument| argument.to_str().is_none()) {
        Some(argument) if records => Err(Error::Usage(format!(
            "{}: this command records its arguments as UTF-8 text, and this one is not; rename the file or folder",
            argument.display()
        ))),
        _ => Ok(()),
    }
}

/// Name and inline value of a long flag.
fn parts(word: &OsStr) -> Option<(&str, Option<&str>)> {
    let text = word.to_str().filter(|text| text.starts_with("--") && text.len() > 2)?;
    Some(text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value))))
}

/// Long flags among arguments, up to `--`.
fn flags_of(words: &[OsString]) -> impl Iterator<Item = &str> {
    words.iter().take_while(|word| *word != "--").filter_map(|word| Some(parts(word)?.0))
}

/// Key of the setting that a flag changes. Flags with the same key replace each other.
fn key_of(command: &Command, flag: &str) -> String {
    let positive = format!("--{}", flag.strip_prefix("--no-").unwrap_or_default());
    let known = find_flag(command, flag).or_else(|| find_flag(command, &positive));
    let key = match known {
        Some(arg) => arg.get_id().as_str().replace('_', "-"),
        None if trl_flags::find(&positive[2..]).is_some() => positive[2..].to_owned(),
        None => flag[2..].to_owned(),
    };
    match key.as_str() {
        "warmup-ratio" => "warmup-steps".into(),
        "total-batch-size" => "gradient-accumulation-steps".into(),
        "bf16" => "dtype".into(),
        "use-cpu" | "no-cuda" => "device".into(),
        "train-sampling-strategy" => "no-shuffle".into(),
        "truncation-mode" => "on-too-long".into(),
        _ => key,
    }
}

/// Whether a flag belongs to the command, or is a flag of TRL that is replaced or rejected with a reason.
pub(super) fn is_known(command: &Command, flag: &str) -> bool {
    let positive = format!("--{}", flag.strip_prefix("--no-").unwrap_or_default());
    let switch = find_flag(command, &positive).is_some_and(is_switch);
    let foreign = |flag: &str| trl_flags::find(&flag[2..]);
    let foreign_switch = foreign(&positive).is_some_and(|flag| flag.takes == Takes::Switch);
    find_flag(command, flag).is_some() || switch || foreign(flag).is_some() || foreign_switch
}

/// Names that a configuration file may use, without dashes.
pub(super) fn known_names(command: &Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(Arg::get_long).map(str::to_owned);
    own.chain(trl_flags::all().map(|flag| flag.name.to_owned())).collect()
}

/// Returns the values that a flag supports, and the rejected values of TRL with their reasons. A value may be
/// a comma-separated list.
fn own_values(id: &str, values: Vec<OsString>) -> (Vec<OsString>, Vec<(String, &'static str)>) {
    let mut refused = Vec::new();
    let own = values.into_iter().filter(|value| {
        let Some(text) = value.to_str() else { return true };
        let foreign = text.split(',').find_map(|part| Some((part, trl_flags::foreign_value(id, part)?)));
        if let Some((part, trl_flags::ForeignValue { refused: Some(why), .. })) = foreign {
            refused.push((part.to_owned(), *why));
        }
        foreign.is_none()
    });
    (own.collect(), refused)
}

/// Replaces flags and values of TRL by those of mapl. One message names everything that cannot be replaced.
fn translated(words: Vec<OsString>, command: &Command, notes: &mut Vec<String>) -> Result<Vec<OsString>, String> {
    let (mut all, mut idle, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let mut dtype = None;
    let mut left = words.into_iter().peekable();
    while let Some(word) = left.next() {
        if word == "--" {
            all.push(word);
            all.extend(left);
            break;
        }
        let Some((flag, inline)) = parts(&word) else {
            all.push(word);
            continue;
        };
        if let Some(arg) = find_flag(command, flag) {
            let id = arg.get_id().as_str().replace('_', "-");
            if !trl_flags::has_foreign_values(&id) {
                all.push(word);
                continue;
            }
            let most = arg.get_num_args().map_or(1, |range| range.max_values());
            let mut values: Vec<OsString> = inline.map(OsString::from).into_iter().collect();
            while inline.is_none()
                && values.len() < most
                && let Some(next) = left.next_if(|next| !next.to_string_lossy().starts_with("--"))
            {
                values.push(next);
            }
            let (own, why) = own_values(&id, values.clone());
            refused.extend(why.into_iter().map(|(value, why)| (format!("{flag} {value}"), why)));
            if own.len() == values.len() {
                all.push(word.clone());
                all.extend(if inline.is_none() { values } else { Vec::new() });
            } else {
                all.extend(own.into_iter().map(|value| {
                    let mut joined = OsString::from(format!("{flag}="));
                    joined.push(value);
                    joined
                }));
            }
            continue;
        }
        let negated = flag.strip_prefix("--no-").and_then(trl_flags::find).filter(|f| f.takes == Takes::Switch);
        let Some(foreign) = trl_flags::find(&flag[2..]).or(negated) else {
            all.push(word);
            continue;
        };
        let mut values: Vec<String> = inline.map(str::to_owned).into_iter().collect();
        if flag[2..] != *foreign.name {
            let told = values.first().and_then(|told| truth(told));
            values = vec![told.is_some_and(|told| !told).to_string()];
        } else if inline.is_none() {
            match foreign.takes {
                Takes::Switch => {
                    let told = left.next_if(|next| next.to_str().and_then(truth).is_some());
                    values.push(told.map_or("true".into(), |told| told.to_string_lossy().into_owned()));
                }
                Takes::One | Takes::List => {
                    let most = if foreign.takes == Takes::One { 1 } else { usize::MAX };
                    while values.len() < most
                        && let Some(next) = left.next_if(|next| !next.to_string_lossy().starts_with("--"))
                    {
                        values.push(next.to_string_lossy().into_owned());
                    }
                }
            }
        }
        if foreign.takes == Takes::Switch
            && let [value] = &mut values[..]
            && let Some(told) = truth(value)
        {
            *value = told.to_string();
        }
        let value = values.join(" ");
        match foreign.of(&value) {
            Becomes::Words(words) if foreign.name == "bf16" => dtype = words.first().copied(),
            Becomes::Words(words) => all.extend(words.iter().map(OsString::from)),
            Becomes::Idle => idle.push(format!("--{} ({})", foreign.name, foreign.why)),
            Becomes::Refused => refused.push((format!("{flag} {value}").trim_end().to_owned(), foreign.why)),
        }
    }
    if !idle.is_empty() {
        notes.push(format!("no effect here: {}", idle.join(", ")));
    }
    if let Some(dtype) = dtype {
        with_dtype(&mut all, dtype, command, notes);
    }
    match &refused[..] {
        [] => Ok(all),
        [(flag, why)] => Err(format!("{flag} is known in TRL and not supported here: {why}")),
        several => {
            let list: Vec<String> = several.iter().map(|(flag, why)| format!("{flag} ({why})")).collect();
            Err(format!("{} flags are known in TRL and not supported here: {}", several.len(), list.join(", ")))
        }
    }
}

/// Adds the `--dtype` that TRL's `--bf16` stands for. In TRL, a `--dtype` next to `--bf16` is the type of the
/// stored weights. They are always f32 here, so this `--dtype` is removed.
fn with_dtype(words: &mut Vec<OsString>, dtype: &str, command: &Command, notes: &mut Vec<String>) {
    let is_dtype = |word: &OsString| {
        let arg = parts(word).and_then(|(flag, _)| find_flag(command, flag));
        arg.is_some_and(|arg| arg.get_id() == "dtype")
    };
    let Some(at) = words.iter().position(is_dtype) else {
        words.push(dtype.into());
        return;
    };
    if dtype == "--dtype=f32" {
        return;
    }
    let inline = parts(&words[at]).is_some_and(|(_, value)| value.is_some());
    let end = (at + if inline { 1 } else { 2 }).min(words.len());
    let removed: Vec<String> = words.drain(at..end).map(|word| word.to_string_lossy().into_owned()).collect();
    words.push(dtype.into());
    if !removed.last().is_some_and(|word| word.ends_with("bf16") || word.ends_with("bfloat16")) {
        notes.push(format!("--bf16 computes in bf16; {} is left out: weights are kept in f32", removed.join(" ")));
    }
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// Replaces `--flag true` and `--no-flag false` by `--flag`, and removes `--flag false` and
/// `--no-flag`, if the flag takes no value.
fn switched(arguments: Vec<OsString>, command: &Command) -> Vec<OsString> {
    let switch = |flag: &str| find_flag(command, flag).is_some_and(is_switch);
    // In a command with positional arguments, only the words true and false count as truth values.
    let told_by: fn(&str) -> Option<bool> =
        if command.get_positionals().next().is_some() { word_of_truth } else { truth };
    let mut left = arguments.into_iter().peekable();
    let mut all = Vec::new();
    while let Some(argument) = left.next() {
        if argument == "--" {
            all.push(argument);
            all.extend(left);
            break;
        }
        let Some((flag, inline)) = parts(&argument) else {
            all.push(argument);
            continue;
        };
        if !switch(flag) {
            let positive = flag.strip_prefix("--no-").map(|name| format!("--{name}")).filter(|flag| switch(flag));
            let Some(positive) = positive.filter(|_| find_flag(command, flag).is_none()) else {
                all.push(argument);
                continue;
            };
            let told = match inline {
                Some(value) => truth(value),
                None => {
                    let next = left.next_if(|next| next.to_str().and_then(told_by).is_some());
                    Some(next.and_then(|next| truth(next.to_str()?)).unwrap_or(true))
                }
            };
            match told {
                Some(true) => {}
                Some(false) => all.push(positive.into()),
                None => all.push(argument),
            }
            continue;
        }
        let told = match inline {
            Some(value) => truth(value),
            None => left.next_if(|next| next.to_str().and_then(told_by).is_some()).and_then(|n| truth(n.to_str()?)),
        };
        match told {
            Some(true) => all.push(flag.into()),
            Some(false) => {}
            None => all.push(argument),
        }
    }
    all
}

/// Truth value of a text, in the spellings of Python and YAML programs, in any case.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "t" | "y" | "1" => Some(true),
        "false" | "no" | "off" | "f" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// Truth value of `true` or `false`, in any case. Other spellings could be separate arguments, such as files.
pub fn word_of_truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The innermost command that the arguments name, and the number of arguments up to its name.
pub(super) fn named_command(arguments: &[OsString]) -> (Command, usize) {
    let (mut command, mut depth) = (Cli::command(), arguments.len().min(1));
    for name in arguments.iter().skip(1).map_while(|a| a.to_str()).filter(|a| !a.starts_with('-')) {
        match command.find_subcommand(name) {
            Some(found) => command = found.clone(),
            None => break,
        }
        depth += 1;
    }
    (command, depth)
}

/// The argument of a long flag, by its name or an alias.
pub(super) fn find_flag<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let name = flag.strip_prefix("--")?;
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

/// Command line as a user would type it, for manifests and reports.
pub fn shown(arguments: &[OsString]) -> String {
    let mut parts: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    if let Some(first) = parts.first_mut() {
        *first = "mapl".into();
    }
    parts.join(" ")
}

/// Quotes an argument for a shell.
pub(super) fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./=,:+@%".contains(c));
    if plain { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Long flags in a text.
pub(super) fn named_flags(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--"))
}

#[cfg(test)]
mod tests;
