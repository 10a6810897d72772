//! `mapl data check`: checks data before training.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::data::positions;
use super::inputs::Inputs;
use super::model_folder::{BaseArgs, warn_of_tokenizer};
use super::output::{check_output, emit_beside, refuse_two_on_stdout};
use super::template::{TemplateKwargs, check_template_used, load_tokenizer};
use crate::data::group::Prompt;
use crate::data::source::{ReadOptions, SourceRow, check_used, read_files_leniently};
use crate::data::tokenize::LengthLimit;
use crate::doctor::{self, CheckReport, Input, Level, WithTokenizer};
use crate::files::write_json;
use crate::terminal::{columns, complain, emit_exactly, wrapped};
use crate::{Error, Result};

/// Terminal column at which the values of the report start.
const VALUES: usize = 19;

/// Arguments of `data check`.
#[derive(Args, Clone, Debug)]
pub struct CheckCommand {
    /// Training files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Test files: rows shared with the training files are reported, and held-out accuracies are
    /// computed on them
    #[arg(long, num_args = 1.., alias = "eval-file", value_name = "FILE")]
    test_file: Vec<PathBuf>,
    /// Folder with a tokenizer and chat template; adds checks of token lengths, EOS tokens and rows that
    /// cannot be tokenised
    #[arg(long, alias = "model-name-or-path", alias = "tokenizer", value_name = "FOLDER")]
    model: Option<PathBuf>,
    #[command(flatten)]
    base: BaseArgs,
    /// Chat template to use instead of the folder's
    #[arg(long, requires = "model", value_name = "FILE")]
    chat_template_path: Option<PathBuf>,
    /// Variables of the chat template for all rows, as a JSON object; those of a row take precedence
    /// [default: those in the run.json of the model folder, else none]
    #[arg(long, alias = "chat_template_kwargs", value_name = "JSON", requires = "model")]
    chat_template_kwargs: Option<TemplateKwargs>,
    /// Maximum sequence length of the planned training, in tokens [default: as in training]
    #[arg(long, requires = "model", value_name = "TOKENS")]
    max_length: Option<NonZeroUsize>,
    /// Check the rows for a reward model: pairs may differ in earlier turns, and no boundary between
    /// prompt and response is needed
    #[arg(long)]
    reward: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Also write the JSON object to this file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    read: ReadOptions,
}

impl CheckCommand {
    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.files, &mut self.test_file]
    }
}

/// Checks files and prints the findings.
///
/// # Errors
/// [`Error::Data`] if a finding is an error, after the complete report was printed.
pub fn check(args: &CheckCommand) -> Result<()> {
    if let Some(output) = &args.output {
        let inputs = args
            .base
            .inputs(Inputs::default(), args.model.as_deref())
            .with("FILE", &args.files)
            .with("--test-file", &args.test_file)
            .with("--model", &args.model)
            .with("--chat-template-path", &args.chat_template_path);
        check_output("--output", output, &inputs)?;
        refuse_two_on_stdout(args.json, "--output", output)?;
    }
    let base = args.base.base();
    args.base.check(args.model.as_deref())?;
    let load = |folder: &PathBuf| {
        load_tokenizer(folder, base, args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref())
    };
    let tokenizer = args.model.as_ref().map(load).transpose()?;
    tokenizer.iter().for_each(warn_of_tokenizer);
    let positions = args.model.as_deref().map(|folder| positions(folder, base)).transpose()?.flatten();
    let limit = LengthLimit { given: args.max_length.map(NonZeroUsize::get), positions };
    let with = tokenizer.as_ref().map(|tokenizer| WithTokenizer { tokenizer, limit, reward: args.reward });
    let options = ReadOptions { whole_conversations: args.reward, ..args.read.clone() };
    let read = |files: &[PathBuf]| -> Result<Input> {
        let (rows, files, refused) = read_files_leniently(files, &options)?;
        Ok(Input { rows, files, refused })
    };
    let train = read(&args.files)?;
    let test = if args.test_file.is_empty() { None } else { Some(read(&args.test_file)?) };
    // If no row was read, the report says why.
    if !train.rows.is_empty() {
        check_used(&options, train.files.iter().chain(test.iter().flat_map(|test| &test.files)))?;
        let rows = train.rows.iter().chain(test.iter().flat_map(|test| &test.rows));
        check_template_used(args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref(), rows)?;
    }
    let plain = |row: &&SourceRow| row.group.prompts.iter().any(|prompt| matches!(prompt, Prompt::Text(_)));
    let bare = train.rows.iter().filter(plain).count();
    if bare > 0 && tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.template().is_some()) {
        complain(&format!(
            "note: {bare} of {} rows are plain text, which is tokenised without the chat template of the model folder; \
             to format it as conversations, pass --apply-chat-template",
            train.rows.len()
        ));
    }
    let report = doctor::check(train, test, with.as_ref())?;
    let value = serde_json::to_value(&report).map_err(|e| Error::Runtime(format!("cannot write the report: {e}")))?;
    if let Some(output) = &args.output {
        write_json(output, &value)?;
    }
    match if args.json {
        emit_exactly(&format!("{value:#}"))
    } else {
        let text = report.to_string();
        let text = columns().map_or(text.clone(), |columns| wrapped(&text, columns.max(VALUES + 40), VALUES));
        emit_beside(args.output.as_ref(), text.trim_end())
    } {
        // If the reader of stdout is gone, the verdict on the data still decides the exit code.
        Err(Error::ReaderLeft) => {}
        printed => printed?,
    }
    verdict(args, &report)
}

fn verdict(args: &CheckCommand, report: &CheckReport) -> Result<()> {
    let errors: Vec<_> = report.findings.iter().filter(|finding| finding.level == Level::Error).collect();
    let Some(first) = errors.first() else { return Ok(()) };
    let names: Vec<&str> = errors.iter().map(|finding| finding.check).collect();
    let why = format!(
        "the data are not fit for training ({}); see the report for the places and what to try",
        names.join(", ")
    );
    let file = first.places.first().map_or_else(|| args.files[0].clone(), |place| place.file.clone().into());
    let line = first.places.first().map_or(0, |place| place.line);
    Err(Error::data(&file, line, first.places.first().and_then(|place| place.id.as_deref()), why))
}
