//! `mapl eval` and `mapl compare`: metrics of a model on held-out groups, and the comparison of two
//! models. In a comparison, a result file written with `--output` can replace its model.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::device::Device;
use super::device::DeviceArgs;
use super::meeting::MeetingArgs;
use super::output::{check_output, emit_beside, refuse_two_on_stdout};
use super::score::{ModelArgs, ScoreJob, ScoredData};
use super::scored_loss::ScoredLossArgs;
use super::scored_reference::ScoredReference;
use crate::data::options::function_id;
use crate::data::source::{ReadOptions, SourceRow};
use crate::data::tokenized::TokenizedGroup;
use crate::error::refuse_given;
use crate::eval::benchmark::rows::{read as read_benchmark, recognise_file};
use crate::eval::benchmark::{Benchmark, Judged, summary as benchmark};
use crate::eval::compare::compare;
use crate::eval::statistics::Resampling;
use crate::eval::table::Detail;
use crate::eval::{Evaluation, Scored, Settings, data_hash, non_finite_warning, record, table};
use crate::files::{write_json, write_text};
use crate::model::config::{Head, ModelConfig};
use crate::terminal::{complain, emit_exactly};
use crate::train::evaluate::GroupScores;
use crate::{Error, Result};

/// Arguments of `eval`.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Model folder: a language model or a reward model
    #[arg(long, alias = "model-name-or-path")]
    model: Option<PathBuf>,
    /// Compare two models, exactly as `mapl compare A B` does: folders, or results written with
    /// --output
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    compare: Option<Vec<PathBuf>>,
    /// Benchmark of the rows of --input: rm-bench, rmb, reward-bench-2 or if-reward-bench; none evaluates
    /// them as ordinary rows [default: by the keys of the first row of a regular file]
    #[arg(long, value_name = "NAME", value_parser = BenchmarkChoice::parse)]
    benchmark: Option<BenchmarkChoice>,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// Value of `--benchmark`; `None` for ordinary rows.
#[derive(Clone, Copy, Debug)]
struct BenchmarkChoice(Option<Benchmark>);

impl BenchmarkChoice {
    fn parse(text: &str) -> Result<Self, String> {
        let found = Benchmark::ALL.into_iter().find(|benchmark| benchmark.name() == text);
        match found {
            None if text != "none" => {
                let names = Benchmark::ALL.map(Benchmark::name).join(", ");
                Err(format!("one of {names}, none is needed"))
            }
            found => Ok(Self(found)),
        }
    }
}

/// Arguments of `compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// First model: a folder, a checkpoint, or a result written with --output
    a: PathBuf,
    /// Second model; its gain over the first is shown
    b: PathBuf,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl EvalArgs {
    /// Device, and the arguments for how ranks connect.
    pub(super) fn meeting(&self) -> (DeviceArgs, &MeetingArgs) {
        self.measure.meeting()
    }

    /// The benchmark to evaluate on, if the rows belong to one.
    fn benchmark(&self) -> Result<Option<Benchmark>> {
        match (self.benchmark, self.measure.input.first()) {
            (Some(BenchmarkChoice(benchmark)), _) => Ok(benchmark),
            (None, Some(first)) => recognise_file(first),
            (None, None) => Ok(None),
        }
    }

    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.measure.input]
    }
}

impl CompareArgs {
    /// Device, and the arguments for how ranks connect.
    pub(super) fn meeting(&self) -> (DeviceArgs, &MeetingArgs) {
        self.measure.meeting()
    }

    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.measure.input]
    }
}

/// Data and settings of an evaluation.
#[derive(Args, Clone, Debug)]
pub(super) struct MeasureArgs {
    /// Files of groups or pairs; eval also accepts rows with one response and a label
    #[arg(long, num_args = 1..)]
    pub(super) input: Vec<PathBuf>,
    /// JSON file to write all results to
    #[arg(long)]
    pub(super) output: Option<PathBuf>,
    /// Print JSON instead of the table
    #[arg(long, conflicts_with = "by_function")]
    pub(super) json: bool,
    /// Print every line of the table: also by number of instructions, rule, direction and
    /// instruction function
    #[arg(long)]
    pub(super) by_function: bool,
    /// Bootstrap resamples for 95 % intervals, drawn by group; 0 for none
    #[arg(long, default_value_t = 1000, value_parser = resamples)]
    pub(super) bootstrap: usize,
    /// Seed of the resamples and of shuffled prompts [default: 42]
    #[arg(long)]
    seed: Option<u64>,
    /// Also score pairs with empty and with exchanged prompts; up to three times the work on
    /// ordinary pairs
    #[arg(long)]
    pub(super) prompt_blindness: bool,
    /// Instruction functions that training did not see (the list given to `data build`); adds
    /// results split by them
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    pub(super) holdout_functions: Vec<String>,
    #[command(flatten)]
    pub(super) scoring: ModelArgs,
    #[command(flatten)]
    meeting: MeetingArgs,
}

/// Minimum number of resamples. With this many, some lie beyond each bound of a 95 % interval.
const MIN_RESAMPLES: usize = 100;
/// Maximum number of resamples. More need memory without adding precision.
const MAX_RESAMPLES: usize = 1_000_000;

pub(super) fn resamples(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n == 0 || (MIN_RESAMPLES..=MAX_RESAMPLES).contains(&n) => Ok(n),
        Ok(_) => Err(format!("0, or a number from {MIN_RESAMPLES} to {MAX_RESAMPLES}, is needed")),
        Err(_) => Err(format!("\"{text}\" is not a whole number")),
    }
}

/// Runs `mapl eval`.
pub fn eval(args: &EvalArgs) -> Result<()> {
    match &args.compare {
        None if let Some(benchmark) = args.benchmark()? => args.measure.run_benchmark(args.model.as_deref(), benchmark),
        None => {
            let (model, rows) = prepare(args)?;
            let text = match rows.iter().any(|row| row.group.label().is_some()) {
                true => args.measure.measure_labelled(model, rows)?,
                false => args.measure.measure(model, rows)?.0,
            };
            match args.measure.json {
                true => emit_exactly(&text),
                false => emit_beside(args.measure.output.as_ref(), &text),
            }
        }
        Some(_) if args.benchmark.is_some_and(|choice| choice.0.is_some()) => Err(Error::Usage(
            "--benchmark has no effect with --compare, which reads ordinary rows; evaluate each model on its own"
                .into(),
        )),
        Some(_) if args.model.is_some() => {
            Err(Error::Usage("--model has no effect with --compare, which names both models".into()))
        }
        Some(sides) => run_comparison(&args.measure, sides),
    }
}

/// Runs `mapl compare`.
pub fn compare_models(args: &CompareArgs) -> Result<()> {
    run_comparison(&args.measure, &[args.a.clone(), args.b.clone()])
}

/// Evaluates one model on rows of comparisons, writes the file, and returns the table or JSON to print,
/// and the evaluation.
pub fn measure(args: &EvalArgs) -> Result<(String, Evaluation)> {
    let (model, rows) = prepare(args)?;
    args.measure.measure(model, rows)
}

/// Checks the arguments and reads the rows.
fn prepare(args: &EvalArgs) -> Result<(&PathBuf, Vec<SourceRow>)> {
    let Some(model) = &args.model else {
        return Err(Error::Usage("give --model, or two models with --compare".into()));
    };
    let args = &args.measure;
    if args.input.is_empty() {
        return Err(Error::Usage("give the held-out groups or pairs with --input".into()));
    }
    args.check_seed()?;
    args.check_output("--model", std::slice::from_ref(model))?;
    args.scoring.check_base(&[model])?;
    let rows = args.scoring.read_rows(&args.input, &[model], false)?;
    Ok((model, rows))
}

fn warn_of_scores(model: &Path, evaluation: &Evaluation) {
    if let Some(text) = evaluation.rewards.warning(&model.display().to_string()) {
        complain(&format!("warning: {text}"));
    }
}

/// Evaluates two models or reads their results, and compares them.
fn run_comparison(args: &MeasureArgs, sides: &[PathBuf]) -> Result<()> {
    let [a, b] = sides else { return Err(Error::Usage("--compare needs two models".into())) };
    let folders: Vec<&PathBuf> = sides.iter().filter(|side| side.is_dir()).collect();
    if let Some(missing) = sides.iter().find(|side| !side.exists()) {
        return Err(Error::Usage(format!("{} is neither a model folder nor a result file", missing.display())));
    }
    if folders.is_empty() {
        args.refuse_scoring_flags()?;
    } else if args.input.is_empty() {
        return Err(Error::Usage("a model folder needs the data to compare it on; give --input".into()));
    }
    args.check_seed()?;
    args.check_output("a compared model or result", sides)?;
    let models: Vec<&Path> = folders.iter().map(|folder| folder.as_path()).collect();
    args.scoring.check_base(&models)?;
    let rows = if args.input.is_empty() { Vec::new() } else { args.scoring.read_rows(&args.input, &models, false)? };
    if let Some(row) = rows.iter().find(|row| row.group.label().is_some()) {
        return Err(row.error("the row has a label and no comparison; evaluate each model with `mapl eval`"));
    }
    let settings = args.settings()?;
    let base = args.scoring.base.base();
    let heads = folders.iter().map(|f| ModelConfig::read_on(f, base).map(|c| c.head)).collect::<Result<Vec<_>>>()?;
    let mut remarks = Vec::new();
    let mut one = |side: &Path| -> Result<(Option<(ScoredReference, String)>, Evaluation)> {
        if !side.is_dir() {
            let evaluation = record::read(side)?;
            if !rows.is_empty() && evaluation.data != data_hash(rows.iter().map(|row| &row.group)) {
                return Err(Error::Usage(format!(
                    "{} was evaluated on different data from --input; evaluate its model on the same files",
                    side.display()
                )));
            }
            return Ok((ScoredReference::read(side)?, evaluation));
        }
        let mut scoring = args.scoring.clone();
        // If a language model is compared with a reward model, flags for language models do not apply to the
        // reward model.
        if heads.contains(&Head::LanguageModel) && ModelConfig::read_on(side, base)?.head == Head::Reward {
            scoring = ModelArgs { ref_model: None, score: ScoredLossArgs::default(), ..scoring };
        }
        let (data, evaluation) = args.evaluate(&scoring, side, rows.clone(), &settings)?;
        remarks.extend(data.remarks.iter().map(|remark| format!("{}: {remark}", side.display())));
        let line = data.reference.as_ref().map(|reference| data.score.line(reference));
        Ok((data.reference.zip(line), evaluation))
    };
    let [(reference_a, a_measured), (reference_b, b_measured)] = [one(a)?, one(b)?];
    let evaluations = [a_measured, b_measured];
    [a, b].into_iter().zip(&evaluations).for_each(|(side, evaluation)| warn_of_scores(side, evaluation));
    let names = [a, b].map(|side| side.display().to_string());
    let comparison = compare((&names[0], &evaluations[0]), (&names[1], &evaluations[1]), args.resampling())?;
    let mut value = Map::new();
    value.insert("schema".into(), json!(1));
    value.insert("a".into(), json!(names[0]));
    value.insert("b".into(), json!(names[1]));
    ScoredReference::record(reference_a.as_ref().map(|(found, _)| found), "_a", &mut value);
    ScoredReference::record(reference_b.as_ref().map(|(found, _)| found), "_b", &mut value);
    value.insert("groups".into(), json!(evaluations[0].groups));
    value.insert("data".into(), json!(evaluations[0].data));
    value.insert("bootstrap".into(), record::resampling_json(args.resampling()));
    value.insert("unmatched".into(), json!(comparison.unmatched.iter().map(|q| q.name()).collect::<Vec<_>>()));
    value.extend(record::comparison_json(&comparison));
    let value = Value::Object(value);
    if let Some(output) = &args.output {
        write_json(output, &value)?;
    }
    let references = [("A", &reference_a), ("B", &reference_b)];
    let mut lines: Vec<String> = Vec::new();
    for (side, (reference, line)) in references.iter().filter_map(|(side, found)| Some((side, found.as_ref()?))) {
        match (args.json, reference.is_warning()) {
            (true, true) => complain(&format!("{side}: {line}")),
            (true, false) => {}
            (false, _) => lines.push(format!("{side}: {line}")),
        }
    }
    if args.json {
        return emit_exactly(&format!("{value:#}"));
    }
    lines.extend(remarks);
    lines.push(table::comparison_table(&comparison, [&names[0], &names[1]], args.detail()));
    emit_beside(args.output.as_ref(), &lines.join("\n"))
}

impl MeasureArgs {
    fn meeting(&self) -> (DeviceArgs, &MeetingArgs) {
        (self.scoring.device, &self.meeting)
    }

    /// See [`measure`].
    fn measure(&self, model: &Path, rows: Vec<SourceRow>) -> Result<(String, Evaluation)> {
        let settings = self.settings()?;
        let (data, evaluation) = self.evaluate(&self.scoring, model, rows, &settings)?;
        let lines = evaluation.summaries(self.resampling());
        let reward = data.head == Head::Reward;
        let mut head = Map::new();
        head.insert("model".into(), json!(model));
        ScoredReference::record(data.reference.as_ref(), "", &mut head);
        head.insert("head".into(), json!(if reward { "reward" } else { "logp" }));
        data.score.record(data.reference.as_ref(), &mut head);
        head.insert("bootstrap".into(), record::resampling_json(self.resampling()));
        head.insert("holdout_functions".into(), json!(settings.holdout_functions));
        let result = record::result_json(head, &lines, &evaluation);
        if let Some(output) = &self.output {
            write_text(output, &record::file_text(&result, &evaluation))?;
        }
        warn_of_scores(model, &evaluation);
        if self.json {
            data.reference.iter().filter(|r| r.is_warning()).for_each(|r| complain(&data.score.line(r)));
            return Ok((format!("{result:#}"), evaluation));
        }
        let mut text: Vec<String> = data.reference.iter().map(|r| data.score.line(r)).collect();
        text.push(table::summary_table(&lines, &evaluation.rewards, self.detail()));
        text.extend(data.remarks);
        Ok((text.join("\n"), evaluation))
    }

    /// Scores the rows of a benchmark and prints its figures.
    fn run_benchmark(&self, model: Option<&Path>, benchmark: Benchmark) -> Result<()> {
        let Some(model) = model else {
            return Err(Error::Usage("a benchmark scores with one model; give --model".into()));
        };
        if self.input.is_empty() {
            return Err(Error::Usage("give the rows of the benchmark with --input".into()));
        }
        let read = &self.scoring.read;
        let given = [
            ("--by-function", self.by_function),
            ("--prompt-blindness", self.prompt_blindness),
            ("--holdout-functions", !self.holdout_functions.is_empty()),
            ("--column-map", read.column_map != ReadOptions::default().column_map),
            ("--mixed-formats", read.mixed_formats),
            ("--drop-columns", !read.drop_columns.is_empty()),
            ("--pairs", read.pairs.is_some()),
            ("--score-key", read.score_key.is_some()),
            ("--score-margin", read.score_margin),
            ("--skip-bad-rows", read.skip_bad_rows.is_some()),
            ("--apply-chat-template", read.apply_chat_template),
        ];
        let why = format!(
            "on rows of {}, which have their own format; --benchmark none reads them as ordinary rows",
            benchmark.name()
        );
        refuse_given(&given, &why)?;
        self.check_seed()?;
        self.check_output("--model", &[model.to_path_buf()])?;
        self.scoring.check_base(&[model])?;
        let items = read_benchmark(benchmark, &self.input)?;
        let rows: Vec<SourceRow> = items.iter().map(|item| item.row.clone()).collect();
        let job = ScoreJob { args: &self.scoring, model, rows, blindness: None };
        let data = self.scoring.device.run(job)?;
        let rho = |(group, scores): (&TokenizedGroup, &GroupScores)| scores.rho(&data.score.loss, group);
        let scored: Vec<Vec<f64>> = data.groups.iter().zip(&data.scores).map(rho).collect();
        let judged: Vec<Judged<'_>> = items
            .iter()
            .zip(data.groups.iter().zip(&scored))
            .map(|(item, (group, scores))| {
                let scored = Scored::new(&group.group, scores);
                let of = |response| scored.score(0, response).unwrap_or(f64::NAN);
                Judged { item, scores: (0..group.group.responses.len()).map(of).collect() }
            })
            .collect();
        let not_finite = scored.iter().flatten().filter(|score| !score.is_finite()).count();
        if not_finite > 0 {
            complain(&format!("warning: {}", non_finite_warning(&model.display().to_string(), not_finite, None)));
        }
        let lines = benchmark::summarise(benchmark, &judged, self.resampling());
        if let Some(output) = &self.output {
            let text: String = judged.iter().map(|row| format!("{}\n", benchmark::row_json(row))).collect();
            write_text(output, &text)?;
        }
        let warning = data.reference.as_ref().filter(|reference| reference.is_warning());
        if self.json {
            warning.iter().for_each(|reference| complain(&data.score.line(reference)));
            let mut value = Map::new();
            value.insert("schema".into(), json!(1));
            value.insert("benchmark".into(), json!(benchmark.name()));
            value.insert("model".into(), json!(model));
            ScoredReference::record(data.reference.as_ref(), "", &mut value);
            data.score.record(data.reference.as_ref(), &mut value);
            value.insert("rows".into(), json!(items.len()));
            value.insert("bootstrap".into(), record::resampling_json(self.resampling()));
            value.insert("figures".into(), benchmark::json(&lines));
            return emit_exactly(&format!("{:#}", Value::Object(value)));
        }
        let mut text: Vec<String> = data.reference.iter().map(|reference| data.score.line(reference)).collect();
        text.push(benchmark::table(benchmark, &lines));
        emit_beside(self.output.as_ref(), &text.join("\n"))
    }

    pub(super) fn resampling(&self) -> Resampling {
        Resampling { resamples: self.bootstrap, seed: self.seed() }
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or(42)
    }

    /// Returns an error for a seed if nothing is drawn.
    fn check_seed(&self) -> Result<()> {
        let unused = self.seed.is_some() && self.bootstrap == 0 && !self.prompt_blindness;
        refuse_given(&[("--seed", unused)], "without resamples (--bootstrap 0) and without --prompt-blindness")
    }

    fn detail(&self) -> Detail {
        if self.by_function { Detail::ByFunction } else { Detail::Summary }
    }

    /// Checks the output file; `models` are the folders or result files of the flag.
    fn check_output(&self, flag: &str, models: &[PathBuf]) -> Result<()> {
        let folders: Vec<&Path> = models.iter().map(PathBuf::as_path).collect();
        let inputs = self.scoring.inputs(&folders).with(flag, models).with("--input", &self.input);
        self.output.iter().try_for_each(|output| {
            check_output("--output", output, &inputs)?;
            refuse_two_on_stdout(self.json, "--output", output)
        })
    }

    fn settings(&self) -> Result<Settings> {
        let id = |name: &String| function_id(name, "--holdout-functions").map(str::to_owned);
        Ok(Settings { holdout_functions: self.holdout_functions.iter().map(id).collect::<Result<_>>()? })
    }

    fn evaluate(
        &self,
        scoring: &ModelArgs,
        model: &Path,
        rows: Vec<SourceRow>,
        settings: &Settings,
    ) -> Result<(ScoredData, Evaluation)> {
        let blindness = self.prompt_blindness.then_some(self.seed());
        let mut data = scoring.device.run(ScoreJob { args: scoring, model, rows, blindness })?;
        let scored: Vec<Scored<'_>> = data
            .groups
            .iter()
            .zip(&data.scores)
            .map(|(group, scores)| Scored::new(&group.group, &scores.rho(&data.score.loss, group)))
            .collect();
        let evaluation = Evaluation::of(&scored, settings, std::mem::take(&mut data.probes));
        Ok((data, evaluation))
    }

    /// Returns an error for flags about scoring if only results are read and nothing is scored.
    fn refuse_scoring_flags(&self) -> Result<()> {
        let (s, read) = (&self.scoring, self.input.is_empty());
        let given = [
            ("--ref-model", s.ref_model.is_some()),
            ("--base-model", s.base.base_model.is_some()),
            ("--max-length", s.max_length.is_some()),
            ("--chat-template-path", s.chat_template_path.is_some()),
            ("--chat-template-kwargs", s.chat_template_kwargs.is_some()),
            ("--batch-tokens", s.batch_tokens.is_some()),
            ("--device", s.device.device != Device::Auto),
            ("--dtype", s.device.dtype.is_some()),
            ("--column-map", read && s.read.column_map != ReadOptions::default().column_map),
            ("--mixed-formats", read && s.read.mixed_formats),
            ("--apply-chat-template", read && s.read.apply_chat_template),
            ("--drop-columns", read && !s.read.drop_columns.is_empty()),
            ("--pairs", read && s.read.pairs.is_some()),
            ("--score-key", read && s.read.score_key.is_some()),
            ("--score-margin", read && s.read.score_margin),
            ("--skip-bad-rows", read && s.read.skip_bad_rows.is_some()),
            ("--prompt-blindness", self.prompt_blindness),
            ("--holdout-functions", !self.holdout_functions.is_empty()),
        ];
        let given: Vec<(&str, bool)> = given.into_iter().chain(s.score.given()).collect();
        refuse_given(&given, "on saved results; give it when they are written")
    }
}
