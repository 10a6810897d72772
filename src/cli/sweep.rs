//! `mapl study sweep`: observed runs over a grid of flags. Every point of the grid is one run in a separate process.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use clap::{Args, Parser as _};
use serde_json::{Value, json};

use super::Cli;
use super::args::quoted;
use super::inputs::Inputs;
use crate::files::{check_folder_writable, input, json_text, write_atomic};
use crate::study::sweep::grid::{Grid, Point};
use crate::study::sweep::outcome::{Outcome, commands, csv, finished_study, is_trained};
use crate::study::sweep::page;
use crate::study::sweep::summary::summary;
use crate::terminal::{complain, say};
use crate::{Error, Result};

/// Arguments of `study sweep`.
#[derive(Args, Clone, Debug)]
pub struct SweepArgs {
    /// TOML file with the method, [flags] of every run, and lists of values in [vary] or sets of
    /// flags in [[variants]]; docs/commands.md has every key
    file: PathBuf,
    /// Folder for sweep.csv, sweep.json, report.html and a folder per point; finished points are
    /// not repeated
    #[arg(long)]
    output_dir: PathBuf,
    /// Keep the folders of the runs with their models, not only the studies; a kept run is not
    /// trained again when only [measure] or [ifeval] change
    #[arg(long)]
    keep_runs: bool,
    /// Value of an input that the file names, such as model=FOLDER; once per input
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = named_value)]
    given: Vec<(String, String)>,
}

/// Parses NAME=VALUE.
fn named_value(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE, such as model=FOLDER".into()),
    }
}

/// Files of a sweep.
const TOP_FILES: [&str; 3] = ["sweep.csv", "sweep.json", "report.html"];
/// Files of a point, and the folder of its run.
const POINT_FILES: [&str; 8] =
    ["study.json", "command.json", "hw.jsonl", "report.html", "run", "eval.json", "ifeval.json", "responses.jsonl"];
/// File with the commands of `prepare` that have finished.
const PREPARED: &str = "prepared.json";

/// Runs the unfinished points. A failed point becomes a row with its error.
pub fn run(args: &SweepArgs) -> Result<()> {
    let grid = Grid::read(&args.file, &args.output_dir, &args.given)?;
    check_commands(&grid)?;
    args.spare_inputs(&grid)?;
    check_folder_writable(&args.output_dir)?;
    std::fs::create_dir_all(&args.output_dir).map_err(Error::io("create", &args.output_dir))?;
    let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
    for (at, index) in grid.order().into_iter().enumerate() {
        let point = &grid.points[index];
        let folder = args.output_dir.join(&point.name);
        let words = args.words(&grid, point, &folder);
        let named: Vec<String> =
            grid.axes.iter().zip(&point.values).map(|(axis, value)| format!("{axis}={value}")).collect();
        let label = format!("{}/{} {}", at + 1, grid.points.len(), named.join(" "));
        let outcome = match finished_study(&folder, &commands(point, &words), point) {
            Some(found) => {
                say(&format!("{label}: finished earlier"));
                Outcome::of(point, &found)
            }
            None => {
                args.prepare(&point.prepare)?;
                let trained = is_trained(&folder, &commands(point, &words));
                if trained {
                    say(&format!("{label}: trained earlier"));
                }
                let outcome = args.point(point, &folder, &words, trained)?;
                say(&match (&outcome.error[..], outcome.step_ms, outcome.tokens_per_s) {
                    ("", Some(step), Some(tokens)) => format!("{label}: {step:.1} ms per step, {tokens:.0} tokens/s"),
                    (why, ..) => format!("{label}: failed: {why}"),
                });
                outcome
            }
        };
        outcomes.push((index, outcome));
        outcomes.sort_by_key(|(index, _)| *index);
        // The tables are written after every point, so an interrupted sweep keeps the rows of the finished points.
        let rows: Vec<Outcome> = outcomes.iter().map(|(_, outcome)| outcome.clone()).collect();
        args.write(&grid, &rows)?;
    }
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    if let Some(summary) = summary(&grid, &outcomes) {
        for table in summary.tables().iter().filter(|table| !table.rows.is_empty()) {
            say(&format!("\n{}", table.to_text()));
        }
    }
    say(&format!("sweep in {}", args.output_dir.join("report.html").display()));
    match outcomes.iter().all(|outcome| !outcome.error.is_empty()) {
        true => Err(Error::Runtime(format!("no point finished; error of the first: {}", outcomes[0].error))),
        false => Ok(()),
    }
}

impl SweepArgs {
    /// Rejects an output folder in which a point would destroy an input of any point. Every argument of a
    /// point that names an existing file counts as an input.
    fn spare_inputs(&self, grid: &Grid) -> Result<()> {
        let mut inputs = Inputs::default().with("the sweep's file", [&self.file]);
        let mut written: Vec<PathBuf> = TOP_FILES.iter().map(|name| self.output_dir.join(name)).collect();
        for point in &grid.points {
            let mut flag = "";
            let measured = point.measure.iter().chain(&point.ifeval).flatten();
            for word in point.words.iter().chain(point.prepare.iter().flatten()).chain(measured) {
                let word = word.as_str();
                let (name, value) = word.split_once('=').unwrap_or((word, ""));
                let named = word.starts_with("--");
                flag = if named { name } else { flag };
                inputs = inputs.with(flag, [if named { value } else { word }].iter().filter(|value| !value.is_empty()));
            }
            let folder = self.output_dir.join(&point.name);
            written.extend(POINT_FILES.iter().map(|name| folder.join(name)));
        }
        inputs.spare(("--output-dir", &self.output_dir), &written)
    }

    /// Command line arguments of a point.
    fn words(&self, grid: &Grid, point: &Point, folder: &Path) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let own = ["study".into(), grid.method.clone()];
        let places = ["--output-dir".into(), text(&folder.join("run")), "--study-dir".into(), text(folder)];
        let rest = ["--overwrite-output-dir".into(), "--quiet".into()];
        own.into_iter().chain(point.words.iter().cloned()).chain(places).chain(rest).collect()
    }

    /// Runs those `prepare` commands that have not run before or whose outputs are missing. A failed command
    /// ends the sweep.
    fn prepare(&self, commands: &[Vec<String>]) -> Result<()> {
        let record = self.output_dir.join(PREPARED);
        let mut done: Vec<Vec<String>> = match record.exists() {
            true => read_json(&record)?,
            false => Vec::new(),
        };
        for command in commands {
            if done.contains(command) && outputs(command).all(Path::exists) {
                continue;
            }
            // The outputs of an earlier command with the same names are about to be replaced.
            done.retain(|earlier| !outputs(earlier).any(|output| outputs(command).any(|own| own == output)));
            write_atomic(&record, json_text(&json!(done)).as_bytes())?;
            say(&format!("$ mapl {}", command.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")));
            if let Err(why) = call(command)? {
                return Err(Error::Runtime(format!("prepare, mapl {}: {why}", command.join(" "))));
            }
            done.retain(|earlier| earlier != command);
            done.push(command.clone());
            write_atomic(&record, json_text(&json!(done)).as_bytes())?;
        }
        Ok(())
    }

    /// Trains a point unless it is already `trained`, and evaluates its run.
    fn point(&self, point: &Point, folder: &Path, words: &[String], trained: bool) -> Result<Outcome> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let [study, evaluation, ifeval, responses] =
            ["study.json", "eval.json", "ifeval.json", "responses.jsonl"].map(|name| folder.join(name));
        // An earlier result of different commands must not be mistaken for the result of this point.
        let stale = [&evaluation, &ifeval, &responses].into_iter().chain((!trained).then_some(&study));
        for earlier in stale.filter(|path| path.exists()) {
            std::fs::remove_file(earlier).map_err(Error::io("remove", earlier))?;
        }
        write_atomic(&folder.join("command.json"), json_text(&commands(point, words)).as_bytes())?;
        let run = folder.join("run");
        let failure = if trained { None } else { call(words)?.err() };
        let failure =
            failure.map_or_else(|| measure(point, &run, [&evaluation, &ifeval, &responses]), |why| Ok(Some(why)))?;
        // A kept run stays if its evaluation failed, so that it can be evaluated again.
        let is_spared = self.keep_runs || (trained && failure.is_some());
        if !is_spared && run.exists() {
            std::fs::remove_dir_all(&run).map_err(Error::io("remove", &run))?;
        }
        if let Some(why) = failure {
            return Ok(Outcome::failed(point, why));
        }
        let found = |path: &PathBuf, wanted: bool| if wanted { read_json(path) } else { Ok(Value::Null) };
        let read = || -> Result<[Value; 3]> {
            Ok([
                read_json(&study)?,
                found(&evaluation, point.measure.is_some())?,
                found(&ifeval, point.ifeval.is_some())?,
            ])
        };
        Ok(read().map_or_else(|why| Outcome::failed(point, why.to_string()), |found| Outcome::of(point, &found)))
    }

    fn write(&self, grid: &Grid, outcomes: &[Outcome]) -> Result<()> {
        write_atomic(&self.output_dir.join("sweep.csv"), &csv(grid, outcomes)?)?;
        let mut value = json!({ "schema": 1, "method": grid.method, "axes": grid.axes, "points": outcomes });
        if let Some(summary) = summary(grid, outcomes) {
            value["summary"] = json!(summary);
        }
        write_atomic(&self.output_dir.join("sweep.json"), json_text(&value).as_bytes())?;
        write_atomic(&self.output_dir.join("report.html"), page::html(grid, outcomes).as_bytes())
    }
}

/// Rejects commands of `prepare`, `[measure]` and `[ifeval]` that cannot be parsed, and different `prepare`
/// commands with the same output, before any command runs.
fn check_commands(grid: &Grid) -> Result<()> {
    let check = |what: &str, words: &mut dyn Iterator<Item = &str>| match Cli::try_parse_from(
        ["mapl"].into_iter().chain(words),
    ) {
        Ok(_) => Ok(()),
        Err(why) => {
            let text = why.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(Error::Usage(format!("{what}: {line}")))
        }
    };
    let mut written: HashMap<&Path, &Vec<String>> = HashMap::new();
    for point in &grid.points {
        for command in &point.prepare {
            for output in outputs(command) {
                let first = written.entry(output).or_insert(command);
                if *first != command {
                    return Err(Error::Usage(format!(
                        "prepare: two commands write {}; put what differs into the name, such as {{seed}}: mapl {}, mapl {}",
                        output.display(),
                        first.join(" "),
                        command.join(" ")
                    )));
                }
            }
            check(&format!("prepare, mapl {}", command.join(" ")), &mut command.iter().map(String::as_str))?;
        }
        let after = [
            ("[measure]", point.measure.as_ref().map(|flags| measure_words("run", "eval.json", flags))),
            ("[ifeval]", point.ifeval.as_ref().map(|flags| ifeval_words("run", "responses.jsonl", flags))),
        ];
        for (table, words) in after {
            if let Some(words) = words {
                check(table, &mut words.iter().map(String::as_str))?;
            }
        }
    }
    Ok(())
}

/// Files and folders that a command writes.
fn outputs(command: &[String]) -> impl Iterator<Item = &Path> {
    const FLAGS: [&str; 2] = ["--output", "--output-dir"];
    command.iter().enumerate().filter_map(|(at, word)| {
        let (flag, value) = word.split_once('=').map_or((word.as_str(), None), |(flag, value)| (flag, Some(value)));
        let value = value.or_else(|| command.get(at + 1).map(String::as_str));
        value.filter(|_| FLAGS.contains(&flag)).map(Path::new)
    })
}

/// Evaluates a run and its responses as the point specifies. Returns the reason if an evaluation failed.
fn measure(point: &Point, run: &Path, [evaluation, ifeval, responses]: [&Path; 3]) -> Result<Option<String>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    if let Some(flags) = &point.measure
        && let Err(why) = call(&measure_words(&text(run), &text(evaluation), flags))?
    {
        return Ok(Some(format!("evaluation: {why}")));
    }
    if let Some(flags) = &point.ifeval {
        match call(&ifeval_words(&text(run), &text(responses), flags))? {
            Ok(json) => write_atomic(ifeval, &json)?,
            Err(why) => return Ok(Some(format!("ifeval: {why}"))),
        }
    }
    Ok(None)
}

/// Arguments of the evaluation of a run.
fn measure_words(run: &str, output: &str, flags: &[String]) -> Vec<String> {
    let own = ["eval", "--model", run, "--output", output, "--benchmark", "none"].map(str::to_owned);
    own.into_iter().chain(flags.iter().cloned()).collect()
}

/// Arguments of `ifeval` for a run.
fn ifeval_words(run: &str, responses: &str, flags: &[String]) -> Vec<String> {
    let own = ["ifeval", "--model", run, "--save-responses", responses, "--json"].map(str::to_owned);
    own.into_iter().chain(flags.iter().cloned()).collect()
}

/// Prints the notes and warnings of a command. Each is printed once per sweep, because points with the same
/// settings repeat them.
fn pass_on(command: &str, stderr: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    for line in stderr.lines().filter(|line| line.starts_with("note: ") || line.starts_with("warning: ")) {
        if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned()) {
            complain(&format!("mapl {command}: {line}"));
        }
    }
}

/// Runs this program in a separate process. Returns its stdout, or the reason why it failed.
fn call(words: &[String]) -> Result<std::result::Result<Vec<u8>, String>> {
    let program = std::env::current_exe().map_err(|e| Error::Runtime(format!("cannot find this program: {e}")))?;
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Error::Runtime(format!("cannot start a run: {e}")))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        pass_on(words.first().map_or("", String::as_str), &text);
        return Ok(Ok(output.stdout));
    }
    let line = text.lines().find(|line| line.starts_with("error:")).or(text.lines().last());
    Ok(Err(line.map_or_else(|| output.status.to_string(), |line| line.trim_start_matches("error: ").into())))
}

/// Reads a file that a sweep has written.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = input::read(path, input::MAX_RECORD).map_err(input::data_error(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Runtime(format!("{} is damaged: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_committed_experiments_are_accepted() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/experiments");
        let mut files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|end| end != "toml") {
                continue;
            }
            let inputs = ["model", "train", "test", "prompts"].map(|name| (name.to_owned(), name.to_owned()));
            let text = std::fs::read_to_string(&path).unwrap();
            let given = if text.contains("\ninputs = ") { &inputs[..] } else { &[] };
            let given: Vec<_> =
                given.iter().filter(|(name, _)| text.contains(&format!("\"{name}\""))).cloned().collect();
            let grid = Grid::read(&path, Path::new("out"), &given).unwrap();
            check_commands(&grid).unwrap();
            for point in &grid.points {
                let words = ["mapl", "study", &grid.method].into_iter().chain(point.words.iter().map(String::as_str));
                Cli::try_parse_from(words.chain(["--output-dir", "run"])).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            }
            files += 1;
        }
        assert!(files >= 2, "{files}");
    }
}
