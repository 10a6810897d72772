//! `mapl ifeval`: which instructions responses follow, and the comparison of two sets of responses.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};

use super::inputs::Inputs;
use super::output::{check_output, remark, warn};
use crate::Result;
use crate::data::source::refuse_pipe_named_twice;
use crate::error::refuse_given;
use crate::eval::statistics::Resampling;
use crate::files::{path_json, write_json, write_text};
use crate::ifeval::compare::{self, compare};
use crate::ifeval::rows::{Judged, Prompt, judge, read_prompts, verdict_lines};
use crate::ifeval::summary::{Summary, undecided, undecided_lines};
use crate::terminal::{counted, emit, emit_exactly};

/// Arguments of `ifeval`.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("answers").args(["responses", "compare"]).required(true)))]
pub struct IfevalArgs {
    /// Files of IFEval rows: key, prompt, instruction_id_list, kwargs
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Files of responses: prompt, response; one for every prompt of --input
    #[arg(long, num_args = 1..)]
    responses: Vec<PathBuf>,
    /// Compare two files of responses: paired differences, McNemar's test
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    compare: Option<Vec<PathBuf>>,
    /// File for the verdicts, one row for every prompt in the order of --input; with --compare, for
    /// the comparison as JSON
    #[arg(long)]
    output: Option<PathBuf>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Bootstrap resamples for the intervals of a comparison, drawn by prompt [default: 1000]
    #[arg(long, value_parser = super::evaluate::resamples)]
    bootstrap: Option<usize>,
    /// Seed of the resamples [default: 42]
    #[arg(long)]
    seed: Option<u64>,
}

impl IfevalArgs {
    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.input, &mut self.responses]
    }
}

/// Runs `mapl ifeval`.
pub fn run(args: &IfevalArgs) -> Result<()> {
    let read = args.input.iter().chain(&args.responses).chain(args.compare.iter().flatten());
    refuse_pipe_named_twice(&read.cloned().collect::<Vec<_>>())?;
    let sides = args.compare.as_deref().unwrap_or_default();
    if sides.is_empty() {
        let given = [("--bootstrap", args.bootstrap.is_some()), ("--seed", args.seed.is_some())];
        refuse_given(&given, "without --compare: the intervals of one set of responses are in closed form")?;
    }
    if let Some(output) = &args.output {
        let inputs = Inputs::default().with("--input", &args.input).with("--responses", &args.responses);
        check_output("--output", output, &inputs.with("--compare", sides))?;
    }
    let prompts = read_prompts(&args.input)?;
    match sides {
        [a, b] => compare_responses(args, &prompts, [a, b]),
        _ => one_set(args, &prompts),
    }
}

fn one_set(args: &IfevalArgs, prompts: &[Prompt]) -> Result<()> {
    let judged = judged(prompts, &args.responses)?;
    let summary = Summary::of(prompts, &judged);
    if let Some(output) = &args.output {
        write_text(output, &verdict_lines(prompts, &judged))?;
        if !args.json {
            remark(output, &format!("{} written to {}", counted(prompts.len(), "row"), output.display()));
        }
    }
    if !args.json {
        return emit(&summary.table());
    }
    let mut value = head(args);
    value.insert("responses".into(), args.responses.iter().map(|path| path_json(path)).collect());
    if let Value::Object(figures) = summary.json() {
        value.extend(figures);
    }
    emit_exactly(&format!("{:#}", Value::Object(value)))
}

fn compare_responses(args: &IfevalArgs, prompts: &[Prompt], sides: [&PathBuf; 2]) -> Result<()> {
    let resampling = Resampling { resamples: args.bootstrap.unwrap_or(1000), seed: args.seed.unwrap_or(42) };
    let [a, b] = sides.map(|side| judged(prompts, std::slice::from_ref(side)));
    let (a, b) = (a?, b?);
    let lines = compare(prompts, &a.verdicts, &b.verdicts, resampling);
    let undecided = undecided(prompts);
    let mut value = head(args);
    value.insert("a".into(), path_json(sides[0]));
    value.insert("b".into(), path_json(sides[1]));
    value.insert("prompts".into(), json!(prompts.len()));
    value.insert("blank_responses_a".into(), json!(a.blank));
    value.insert("blank_responses_b".into(), json!(b.blank));
    value.insert("not_decided".into(), json!(undecided));
    value.insert("bootstrap".into(), json!({"resamples": resampling.resamples, "seed": resampling.seed}));
    if let Value::Object(figures) = compare::json(&lines) {
        value.extend(figures);
    }
    let value = Value::Object(value);
    if let Some(output) = &args.output {
        write_json(output, &value)?;
    }
    if args.json {
        return emit_exactly(&format!("{value:#}"));
    }
    let names = sides.map(|side| side.display().to_string());
    let table = compare::table(&lines, [&names[0], &names[1]]);
    let text: Vec<String> = std::iter::once(table).chain(undecided_lines(&undecided)).collect();
    emit(&text.join("\n"))
}

fn head(args: &IfevalArgs) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("schema".into(), json!(1));
    value.insert("input".into(), args.input.iter().map(|path| path_json(path)).collect());
    value
}

/// Reads and checks responses, and warns of those that are left out.
fn judged(prompts: &[Prompt], files: &[PathBuf]) -> Result<Judged> {
    let judged = judge(prompts, files)?;
    if let (count, Some(first)) = &judged.unused {
        warn([format!("responses to no prompt of --input, left out: {count}, first {first}")]);
    }
    Ok(judged)
}
