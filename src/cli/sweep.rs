//! `mapl study sweep`: observed runs over a grid of flags, each in its own process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::{Value, json};

use super::inputs::Inputs;
use crate::files::{check_folder_writable, input, json_text, write_atomic};
use crate::study::sweep::grid::{Grid, Point};
use crate::study::sweep::outcome::{Outcome, csv, finished_study};
use crate::study::sweep::page;
use crate::terminal::say;
use crate::{Error, Result};

/// Arguments of `study sweep`.
#[derive(Args, Clone, Debug)]
pub struct SweepArgs {
    /// TOML file with the method, [flags] of every run, and lists of values in [vary]
    file: PathBuf,
    /// Folder for sweep.csv, sweep.json, report.html and a folder per point; finished points are
    /// not repeated
    #[arg(long)]
    output_dir: PathBuf,
    /// Keep the folders of the runs with their models, not only the studies
    #[arg(long)]
    keep_runs: bool,
}

/// Files of a sweep.
const TOP_FILES: [&str; 3] = ["sweep.csv", "sweep.json", "report.html"];
/// Files of a point, and the folder of its run.
const POINT_FILES: [&str; 5] = ["study.json", "command.json", "hw.jsonl", "report.html", "run"];

/// Runs the unfinished points. A point that fails is a row with its error.
pub fn run(args: &SweepArgs) -> Result<()> {
    let grid = Grid::read(&args.file)?;
    args.spare_inputs(&grid)?;
    check_folder_writable(&args.output_dir)?;
    std::fs::create_dir_all(&args.output_dir).map_err(Error::io("create", &args.output_dir))?;
    let mut outcomes = Vec::new();
    for (at, point) in grid.points.iter().enumerate() {
        let folder = args.output_dir.join(&point.name);
        let words = args.words(&grid, point, &folder);
        let named: Vec<String> =
            grid.axes.iter().zip(&point.values).map(|(axis, value)| format!("{axis}={value}")).collect();
        let label = format!("{}/{} {}", at + 1, grid.points.len(), named.join(" "));
        let outcome = match finished_study(&folder, &words) {
            Some(study) => {
                say(&format!("{label}: finished earlier"));
                Outcome::of(point, &study)
            }
            None => {
                let outcome = args.point(point, &folder, &words)?;
                say(&match (&outcome.error[..], outcome.step_ms, outcome.tokens_per_s) {
                    ("", Some(step), Some(tokens)) => format!("{label}: {step:.1} ms per step, {tokens:.0} tokens/s"),
                    (why, ..) => format!("{label}: failed: {why}"),
                });
                outcome
            }
        };
        outcomes.push(outcome);
        // An interrupted sweep keeps its rows so far.
        args.write(&grid, &outcomes)?;
    }
    say(&format!("sweep in {}", args.output_dir.join("report.html").display()));
    match outcomes.iter().all(|outcome| !outcome.error.is_empty()) {
        true => Err(Error::Runtime(format!("no point finished; error of the first: {}", outcomes[0].error))),
        false => Ok(()),
    }
}

impl SweepArgs {
    /// Refuses an output folder in which a point would destroy an input of any point. Every word of
    /// a point that names an existing file counts as an input.
    fn spare_inputs(&self, grid: &Grid) -> Result<()> {
        let mut inputs = Inputs::default().with("the sweep's file", [&self.file]);
        let mut written: Vec<PathBuf> = TOP_FILES.iter().map(|name| self.output_dir.join(name)).collect();
        for point in &grid.points {
            let mut flag = "";
            for word in &point.words {
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

    fn point(&self, point: &Point, folder: &Path, words: &[String]) -> Result<Outcome> {
        let program = std::env::current_exe().map_err(|e| Error::Runtime(format!("cannot find this program: {e}")))?;
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let study = folder.join("study.json");
        // An earlier study with other flags must not pass for this one.
        if study.exists() {
            std::fs::remove_file(&study).map_err(Error::io("remove", &study))?;
        }
        write_atomic(&folder.join("command.json"), json_text(&json!(words)).as_bytes())?;
        let output = Command::new(program).args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|e| Error::Runtime(format!("cannot start a run: {e}")))?;
        if !self.keep_runs {
            let run = folder.join("run");
            if run.exists() {
                std::fs::remove_dir_all(&run).map_err(Error::io("remove", &run))?;
            }
        }
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().find(|line| line.starts_with("error:")).or(text.lines().last());
            let why = line.map_or_else(|| output.status.to_string(), |line| line.trim_start_matches("error: ").into());
            return Ok(Outcome::failed(point, why));
        }
        let bytes = input::read(&study, input::MAX_RECORD).map_err(input::data_error(&study))?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Runtime(format!("{} is damaged: {e}", study.display())))?;
        Ok(Outcome::of(point, &value))
    }

    fn write(&self, grid: &Grid, outcomes: &[Outcome]) -> Result<()> {
        write_atomic(&self.output_dir.join("sweep.csv"), &csv(grid, outcomes)?)?;
        let value = json!({ "schema": 1, "method": grid.method, "axes": grid.axes, "points": outcomes });
        write_atomic(&self.output_dir.join("sweep.json"), json_text(&value).as_bytes())?;
        write_atomic(&self.output_dir.join("report.html"), page::html(grid, outcomes).as_bytes())
    }
}
