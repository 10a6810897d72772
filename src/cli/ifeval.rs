//! `mapl ifeval`: checks whether responses follow their instructions, and compares two sets of responses. If
//! a model folder is given, the command generates its responses, with the flags of `mapl generate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};

use super::answers::Answer;
use super::generate::{ADDED, GenerateJob, GenerationArgs, RowsArgs, answer, language_model, response_lines};
use super::inputs::Inputs;
use super::output::{check_output, emit_beside, refuse_two_on_stdout, remark, same_file, warn};
use crate::data::group::{PreferenceGroup, Prompt as PromptText};
use crate::data::source::{PromptRow, SourceRow, refuse_pipe_named_twice};
use crate::error::refuse_given;
use crate::eval::statistics::Resampling;
use crate::files::{is_stdout, path_json, write_json, write_text};
use crate::ifeval::compare::{self, compare};
use crate::ifeval::rows::{Judged, Prompt, Responses, judge, read_prompts, read_responses, verdict_lines};
use crate::ifeval::summary::{Summary, undecided, undecided_lines};
use crate::terminal::{complain, counted, emit_exactly};
use crate::{Error, Result};

/// Arguments of `ifeval`.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("answers").args(["responses", "compare", "model"]).required(true)))]
pub struct IfevalArgs {
    /// Files of IFEval rows: key, prompt, instruction_id_list, kwargs
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Files of responses: prompt, response; one for every prompt of --input
    #[arg(long, num_args = 1..)]
    responses: Vec<PathBuf>,
    /// Model folder of a language model, or of an adapter, that answers the prompts
    #[arg(long, alias = "model-name-or-path")]
    model: Option<PathBuf>,
    /// Compare two sets of responses: files, or model folders that answer the prompts; paired
    /// differences, McNemar's test
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    compare: Option<Vec<PathBuf>>,
    /// JSON lines file for the responses of a model, one line per prompt as `mapl generate` writes
    /// them; with --compare, one file for each model folder
    #[arg(long, num_args = 1..=2, value_name = "FILE")]
    save_responses: Vec<PathBuf>,
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
    /// Seed of sampling [default: 0], and of the resamples of a comparison [default: 42]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    answering: RowsArgs,
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
    let folders = sides.iter().filter(|side| side.is_dir());
    let models: Vec<&Path> = args.model.iter().chain(folders).map(PathBuf::as_path).collect();
    args.check(sides, &models)?;
    let inputs = Inputs::default().with("--input", &args.input).with("--responses", &args.responses);
    let inputs = args.generation.inputs(inputs.with("--compare", sides).with("--model", &args.model), models.clone());
    if let Some(output) = &args.output {
        check_output("--output", output, &inputs)?;
        refuse_two_on_stdout(args.json, "--output", output)?;
    }
    for file in &args.save_responses {
        check_output("--save-responses", file, &inputs)?;
        refuse_two_on_stdout(args.json, "--save-responses", file)?;
    }
    // Both folders are checked before a model answers, so that the second cannot fail after the first has
    // answered.
    models.iter().try_for_each(|model| language_model(model, args.generation.base.base()).map(drop))?;
    let prompts = read_prompts(&args.input)?;
    match sides {
        [a, b] => compare_responses(args, &prompts, [a, b]),
        _ => one_set(args, &prompts),
    }
}

impl IfevalArgs {
    /// Returns the output file that is standard output, if any.
    fn rows_on_stdout(&self) -> Option<&PathBuf> {
        self.output.iter().chain(&self.save_responses).find(|path| is_stdout(path))
    }

    /// Returns an error for flags that have no effect. `models` are the folders that answer the prompts.
    fn check(&self, sides: &[PathBuf], models: &[&Path]) -> Result<()> {
        if sides.is_empty() {
            let given = [("--bootstrap", self.bootstrap.is_some())];
            refuse_given(&given, "without --compare: the intervals of one set of responses are in closed form")?;
        }
        if models.is_empty() {
            let why = "without a model: give --model, or a model folder to --compare";
            refuse_given(&self.generation.given(), why)?;
            refuse_given(&self.answering.given(), why)?;
            refuse_given(&[("--save-responses", !self.save_responses.is_empty())], why)?;
            let unused = sides.is_empty() && self.seed.is_some();
            return refuse_given(&[("--seed", unused)], "without --compare and without a model");
        }
        // The seed of a comparison is used for its resamples even if no token is drawn.
        self.generation.sampler(self.seed.filter(|_| sides.is_empty()), 1)?;
        self.generation.base.check(models.iter().copied())?;
        match &self.save_responses[..] {
            [] => Ok(()),
            files if files.len() != models.len() => Err(Error::Usage(format!(
                "--save-responses has {} for {}; give one file for each",
                counted(files.len(), "file"),
                counted(models.len(), "model folder")
            ))),
            [a, b] if a == b || same_file(a, b) => Err(Error::Usage(format!(
                "--save-responses: {} is given twice; give each model a separate file",
                a.display()
            ))),
            files => match self
                .output
                .iter()
                .find(|output| files.iter().any(|file| file == *output || same_file(file, output)))
            {
                Some(output) => Err(Error::Usage(format!(
                    "--save-responses and --output are both {}; give each a separate file",
                    output.display()
                ))),
                None => Ok(()),
            },
        }
    }
}

fn one_set(args: &IfevalArgs, prompts: &[Prompt]) -> Result<()> {
    let (judged, figures) = match &args.model {
        Some(model) => {
            let (texts, figures) = generated(args, prompts, model, args.save_responses.first())?;
            (judge(prompts, &texts), Some(figures))
        }
        None => (judged(prompts, &args.responses)?, None),
    };
    let summary = Summary::of(prompts, &judged);
    if let Some(output) = &args.output {
        write_text(output, &verdict_lines(prompts, &judged))?;
        if !args.json {
            remark(output, &format!("{} written to {}", counted(prompts.len(), "row"), output.display()));
        }
    }
    if !args.json {
        return emit_beside(args.rows_on_stdout(), &summary.table());
    }
    let mut value = head(args);
    match &args.model {
        Some(model) => value.insert("model".into(), path_json(model)),
        None => value.insert("responses".into(), args.responses.iter().map(|path| path_json(path)).collect()),
    };
    if let Some([tokens, ended]) = figures {
        value.insert("response_tokens".into(), json!(tokens));
        value.insert("responses_ended".into(), json!(ended));
    }
    if let Value::Object(figures) = summary.json() {
        value.extend(figures);
    }
    emit_exactly(&format!("{:#}", Value::Object(value)))
}

fn compare_responses(args: &IfevalArgs, prompts: &[Prompt], sides: [&PathBuf; 2]) -> Result<()> {
    let resampling = Resampling { resamples: args.bootstrap.unwrap_or(1000), seed: args.seed.unwrap_or(42) };
    let mut saved = args.save_responses.iter();
    // Response files are read first, so that an error in one ends the command before a model answers.
    let file = |path: &PathBuf| (!path.is_dir()).then(|| judged(prompts, std::slice::from_ref(path))).transpose();
    let files = [file(sides[0])?, file(sides[1])?];
    let mut side = |path: &PathBuf, file: Option<Judged>| match file {
        Some(judged) => Ok(judged),
        None => generated(args, prompts, path, saved.next()).map(|(responses, _)| judge(prompts, &responses)),
    };
    let [file_a, file_b] = files;
    let [a, b] = [side(sides[0], file_a)?, side(sides[1], file_b)?];
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
    emit_beside(args.rows_on_stdout(), &text.join("\n"))
}

fn head(args: &IfevalArgs) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("schema".into(), json!(1));
    value.insert("input".into(), args.input.iter().map(|path| path_json(path)).collect());
    value
}

/// Reads and checks responses, and warns of those that are left out.
fn judged(prompts: &[Prompt], files: &[PathBuf]) -> Result<Judged> {
    let Responses { texts, unused } = read_responses(prompts, files)?;
    if let (count, Some(first)) = &unused {
        warn([format!("responses to no prompt of --input, left out: {count}, first {first}")]);
    }
    Ok(judge(prompts, &texts))
}

/// Responses of a model to the prompts, with [`Answers::figures`](super::answers::Answers::figures);
/// `save` is the file for them.
fn generated(
    args: &IfevalArgs,
    prompts: &[Prompt],
    model: &Path,
    save: Option<&PathBuf>,
) -> Result<(Vec<String>, [f64; 2])> {
    let rows = prompts.iter().map(|prompt| asked(prompt, save.is_some())).collect::<Result<Vec<_>>>()?;
    let job = GenerateJob {
        args: &args.generation,
        answering: &args.answering,
        model,
        sampler: args.generation.sampler(None, 1)?,
        samples: 1,
        seed: args.seed.unwrap_or(0),
        rows: &rows,
    };
    let answers = answer(job)?;
    if let Some(file) = save {
        write_text(file, &response_lines(&rows, &answers.of_rows))?;
    }
    let place = save.unwrap_or(&model.to_path_buf()).display().to_string();
    complain(&answers.summary(&place));
    let figures = answers.figures();
    Ok((answers.of_rows.into_iter().flatten().map(|Answer { response, .. }| response).collect(), figures))
}

/// Converts a prompt to a row that requests a response. If the row will be `saved`, returns an error if it
/// would lose a part of the input row.
pub(super) fn asked(prompt: &Prompt, saved: bool) -> Result<PromptRow> {
    let (file, line) = &prompt.place;
    let error = |why: String| Error::data(file, *line, None, why);
    let text = match (&prompt.row, saved) {
        (Ok(text), true) => text.clone(),
        (Err(why), true) => return Err(error(why.clone())),
        (_, false) => "{".to_owned(),
    };
    if let Some(key) = ADDED.iter().find(|key| saved && prompt.columns.iter().any(|column| column == *key)) {
        return Err(error(format!("the row has \"{key}\", which --save-responses would replace; rename the column")));
    }
    if prompt.prompt.is_empty() {
        return Err(error("the prompt is empty; give it some text".into()));
    }
    let id = serde_json::from_str(&prompt.key).unwrap_or_else(|_| prompt.key.clone());
    let group = PreferenceGroup::new(id, vec![PromptText::Text(prompt.prompt.clone())], Vec::new(), Vec::new());
    let row = SourceRow { group, file: Arc::from(file.as_path()), line: *line, scores: None };
    Ok(PromptRow { text, row })
}
