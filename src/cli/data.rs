//! `mapl data build` and `mapl data show`; `mapl data check` is in `data_check`, `data convert` and
//! `data export` in `data_export`, `data language` in `data_language`, `data pairs` in `data_pairs`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::data_check::{CheckCommand, check};
use super::data_export::{ConvertCommand, ExportCommand, convert, export};
use super::data_language::{LanguageCommand, language};
use super::data_pairs::{PairsCommand, pairs};
use super::inputs::Inputs;
use super::model_folder::{BaseArgs, warn_of_tokenizer};
use super::output::{check_output, remark, same_file, warn};
use super::template::{TemplateKwargs, check_template_used, load_tokenizer};
use crate::data::construct::{build_rows, make_ids_distinct};
use crate::data::group::Prompt;
use crate::data::mapl::Report;
use crate::data::options::{BuildArgs, Objective};
use crate::data::show::{ShowOptions, render_preview};
use crate::data::source::{FileReport, ReadOptions, SourceRow, check_used, read_files_with_reports};
use crate::data::tokenize::{Purpose, TokenizeOptions, preview_rows};
use crate::files::input::is_named;
use crate::files::write_text;
use crate::model::adapter::base::is_adapter;
use crate::model::config::ModelConfig;
use crate::terminal::{agreeing, color, counted, emit_exactly, plain};
use crate::{Error, Result};

/// Data command.
#[derive(Subcommand, Debug)]
pub enum DataCommand {
    /// Build groups with intra and inter comparisons from preference rows of any format
    Build(BuildCommand),
    /// Print decoded groups and mark the tokens that contribute to the loss
    Show(ShowCommand),
    /// Check preference files for problems that make training meaningless or its metrics misleading
    Check(CheckCommand),
    /// Write preference rows of any format and container as groups, or as rows of TRL
    Convert(ConvertCommand),
    /// Write the pairs of preference rows of any format as rows of TRL
    Export(ExportCommand),
    /// Write pairs of the quick start's artificial language
    Language(LanguageCommand),
    /// Make preference rows of a policy's responses, judged by a reward model or by instruction checkers
    Pairs(Box<PairsCommand>),
}

/// Arguments of `data build`.
#[derive(Args, Clone, Debug)]
pub struct BuildCommand {
    /// Files of preference rows
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// JSON lines file to write the groups to
    #[arg(long)]
    output: PathBuf,
    /// Epoch to draw groups for, with --redraw epoch
    #[arg(long)]
    epoch: Option<u64>,
    /// Also write the report to this file, as JSON
    #[arg(long)]
    report: Option<PathBuf>,
    /// Also accept pairs of conversations that differ in earlier turns, which only a reward model
    /// can compare
    #[arg(long)]
    reward: bool,
    /// Variables of the chat template to write into every row of conversations, as a JSON object;
    /// those of a row take precedence
    #[arg(long, alias = "chat_template_kwargs", value_name = "JSON")]
    chat_template_kwargs: Option<TemplateKwargs>,
    #[command(flatten)]
    read: ReadOptions,
    #[command(flatten)]
    build: BuildArgs,
}

/// Arguments of `data show`.
#[derive(Args, Clone, Debug)]
pub struct ShowCommand {
    /// Files of groups or pairs
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Folder with the tokenizer and chat template
    #[arg(long, alias = "model", alias = "model-name-or-path")]
    tokenizer: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Number of groups to print
    #[arg(long, default_value = "3")]
    rows: NonZeroUsize,
    /// Also print token ids
    #[arg(long)]
    ids: bool,
    /// Chat template to use instead of the folder's
    #[arg(long)]
    chat_template_path: Option<PathBuf>,
    /// Show the rows as a reward model reads them: without a boundary between prompt and response
    #[arg(long)]
    reward: bool,
    /// Variables of the chat template for all rows, as a JSON object; those of a row take precedence
    /// [default: those in the run.json of the model folder, else none]
    #[arg(long, alias = "chat_template_kwargs", value_name = "JSON")]
    chat_template_kwargs: Option<TemplateKwargs>,
    #[command(flatten)]
    read: ReadOptions,
    #[command(flatten)]
    tokenize: TokenizeOptions,
}

impl DataCommand {
    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        match self {
            DataCommand::Build(args) => vec![&mut args.input],
            DataCommand::Show(args) => vec![&mut args.input],
            DataCommand::Check(args) => args.data_files(),
            DataCommand::Convert(args) => vec![&mut args.input],
            DataCommand::Export(args) => vec![&mut args.input],
            DataCommand::Language(_) => Vec::new(),
            DataCommand::Pairs(args) => args.data_files(),
        }
    }
}

/// Runs a data command.
pub fn run(command: DataCommand) -> Result<()> {
    match command {
        DataCommand::Build(args) => build(&args).map(|_| ()),
        DataCommand::Show(args) => emit_exactly(&shown(&args)?),
        DataCommand::Check(args) => check(&args),
        DataCommand::Convert(args) => convert(&args),
        DataCommand::Export(args) => export(&args),
        DataCommand::Language(args) => language(&args),
        DataCommand::Pairs(args) => pairs(&args),
    }
}

/// Builds groups, prints a summary, and returns the report.
pub fn build(args: &BuildCommand) -> Result<Report> {
    let options = args.build.resolve(Objective::Mapl, [None; 3])?;
    if args.epoch.is_some() && options.redraw == crate::data::options::Redraw::Never {
        return Err(Error::Usage("--epoch has no effect without --redraw epoch".into()));
    }
    let inputs = Inputs::default().with("--input", &args.input);
    check_output("--output", &args.output, &inputs)?;
    args.report.iter().try_for_each(|path| check_output("--report", path, &inputs))?;
    if args.report.as_ref().is_some_and(|report| same_file(report, &args.output)) {
        return Err(Error::Usage("--report and --output name the same file".into()));
    }
    let read = ReadOptions { whole_conversations: args.reward, ..args.read.clone() };
    let (mut rows, reports) = read_files_with_reports(&args.input, &read)?;
    check_used(&read, &reports)?;
    for report in &reports {
        remark(&args.output, &report.to_string());
        warn(report.warnings());
    }
    check_template_used(None, args.chat_template_kwargs.as_ref(), &rows)?;
    if let Some(TemplateKwargs(kwargs)) = &args.chat_template_kwargs {
        set_kwargs(&mut rows, kwargs);
    }
    let (mut rows, report) = build_rows(rows, &options, args.epoch.unwrap_or(0));
    write_groups(&args.output, &mut rows)?;
    if let Some(path) = &args.report {
        let value = serde_json::to_value(&report).map_err(|e| Error::Runtime(format!("cannot write report: {e}")))?;
        crate::files::write_json(path, &value)?;
    }
    remark(&args.output, &report.to_string());
    remark(&args.output, &format!("{} in {}", counted(rows.len(), "group"), args.output.display()));
    Ok(report)
}

/// Writes groups as JSON lines. A row with the id of an earlier row gets a number after its id.
pub(super) fn write_groups(output: &Path, rows: &mut [SourceRow]) -> Result<()> {
    if let Some((renamed, example)) = make_ids_distinct(rows) {
        let (rows, has, get) =
            (counted(renamed, "row"), agreeing(renamed, "has", "have"), agreeing(renamed, "gets", "get"));
        let what = format!("{rows} {has} the id of an earlier row and {get} a number after it, such as {example}");
        remark(output, &what);
    }
    let mut text = String::new();
    for row in rows {
        let line = serde_json::to_string(&row.group).map_err(|e| row.error(format!("cannot be written: {e}")))?;
        text += &line;
        text.push('\n');
    }
    write_text(output, &text)
}

/// Adds variables of the chat template to the rows of conversations.
fn set_kwargs(rows: &mut [SourceRow], kwargs: &Map<String, Value>) {
    for row in rows {
        if row.group.prompts.iter().any(|prompt| matches!(prompt, Prompt::Messages(_))) {
            let own = row.group.chat_template_kwargs.get_or_insert_default();
            let new = kwargs.iter().filter(|(key, _)| !own.contains_key(*key)).map(|(k, v)| (k.clone(), v.clone()));
            own.extend(new.collect::<Vec<_>>());
        }
    }
}

/// Text of `data show`, plain except for its colours: the files that were read, the groups, and the results
/// of tokenization.
pub fn shown(args: &ShowCommand) -> Result<String> {
    let (template, kwargs) = (args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref());
    args.base.check([args.tokenizer.as_path()])?;
    let tokenizer = load_tokenizer(&args.tokenizer, args.base.base(), template, kwargs)?;
    warn_of_tokenizer(&tokenizer);
    let read = ReadOptions { whole_conversations: args.reward, ..args.read.clone() };
    let (rows, reports) = read_files_with_reports(&args.input, &read)?;
    check_used(&read, &reports)?;
    check_template_used(template, kwargs, &rows)?;
    let training =
        TokenizeOptions { positions: positions(&args.tokenizer, args.base.base())?, ..args.tokenize.clone() };
    let purpose = Purpose { reward: args.reward, keep_equal_ids: true };
    let (previews, report) = preview_rows(purpose, rows, args.rows.get(), &tokenizer, &training)?;
    warn(reports.iter().flat_map(FileReport::warnings).chain(report.warnings()));
    let options = ShowOptions { color: color(), ids: args.ids };
    let mut parts: Vec<String> = reports.iter().map(|report| plain(&report.to_string()).into_owned()).collect();
    parts.extend(report.bare_text().map(|note| plain(&format!("note: {note}")).into_owned()));
    parts.extend(tokenizer.notes().iter().map(|note| plain(&format!("note: {note}")).into_owned()));
    for preview in &previews {
        parts.push(render_preview(preview, report.max_length, &tokenizer, options)?);
    }
    parts.push(plain(&report.to_string()).into_owned());
    if let Some(why) = report.too_many_dropped(&training) {
        parts.push(plain(&format!("training on only these rows would stop: {why}")).into_owned());
    }
    Ok(parts.join("\n"))
}

/// Maximum number of positions of the model in a folder; `None` for a folder with a tokenizer only.
pub(super) fn positions(folder: &Path, base: Option<&Path>) -> Result<Option<usize>> {
    match is_named(&folder.join("config.json")) || is_adapter(folder) {
        true => ModelConfig::read_on(folder, base).map(|config| Some(config.max_positions)),
        false => Ok(None),
    }
}
