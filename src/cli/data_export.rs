//! `mapl data convert` and `mapl data export`: preference rows of any format and container as groups, or
//! in another tool's format. `data export --to trl` is `data convert --to trl`.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::data::write_groups;
use super::inputs::Inputs;
use super::output::{check_output, remark, warn};
use crate::data::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use crate::data::source::{ReadOptions, SourceRow, check_used, read_files_with_reports};
use crate::files::write_text;
use crate::terminal::{agreeing, counted};
use crate::{Error, Result};

/// Format of another tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Foreign {
    /// `prompt`, `chosen`, `rejected` of TRL: text, or lists of messages
    Trl,
}

/// Format to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Preference groups, with everything that was read
    #[default]
    Groups,
    /// `prompt`, `chosen`, `rejected` of TRL: text, or lists of messages; one row per pair
    Trl,
}

/// Arguments of `data export`.
#[derive(Args, Clone, Debug)]
pub struct ExportCommand {
    /// Files of preference rows of any format
    #[arg(long, num_args = 1.., required = true)]
    pub(super) input: Vec<PathBuf>,
    /// Format to write
    #[arg(long, value_enum)]
    to: Foreign,
    /// JSON lines file to write, one row per pair of responses to one prompt
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    read: ReadOptions,
}

/// Arguments of `data convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertCommand {
    /// Files of preference rows of any format
    #[arg(long, num_args = 1.., required = true)]
    pub(super) input: Vec<PathBuf>,
    /// Format to write
    #[arg(long, value_enum, default_value_t)]
    to: Target,
    /// JSON lines file to write; in gzip if its name ends in .gz
    #[arg(long)]
    output: PathBuf,
    /// Also accept pairs of conversations that differ in earlier turns, which only a reward model can
    /// compare
    #[arg(long)]
    reward: bool,
    /// Leave out rows whose longest prompt and longest response together have more characters than this;
    /// they are counted
    #[arg(long, value_name = "CHARACTERS")]
    max_characters: Option<usize>,
    #[command(flatten)]
    read: ReadOptions,
}

/// Writes pairs for another tool.
///
/// # Errors
/// Like [`convert`].
pub fn export(args: &ExportCommand) -> Result<()> {
    let Foreign::Trl = args.to;
    let rows = read(&args.input, &args.output, &args.read)?;
    write_trl(&args.input, &args.output, &rows)
}

/// Reads rows and writes them in a format.
///
/// # Errors
/// [`Error::Data`] for rows that cannot be read; for TRL also if no pair is left, and for text next to
/// conversations, which TRL cannot read from one file.
pub fn convert(args: &ConvertCommand) -> Result<()> {
    let options = ReadOptions { whole_conversations: args.reward, ..args.read.clone() };
    let mut rows = read(&args.input, &args.output, &options)?;
    if let Some(most) = args.max_characters {
        keep_short(&mut rows, most, &args.output)?;
    }
    match args.to {
        Target::Trl => write_trl(&args.input, &args.output, &rows),
        Target::Groups => {
            write_groups(&args.output, &mut rows)?;
            let comparisons: usize = rows.iter().map(|row| row.group.comparisons.len()).sum();
            let text = format!("{} groups with {comparisons} comparisons in {}", rows.len(), args.output.display());
            remark(&args.output, &text);
            Ok(())
        }
    }
}

/// Leaves out rows with more than `most` characters, and prints their number. [`Error::Data`] if no row is
/// left.
fn keep_short(rows: &mut Vec<SourceRow>, most: usize, output: &Path) -> Result<()> {
    let all = rows.len();
    let shortest = rows.iter().map(|row| (characters(&row.group), row)).min_by_key(|(count, _)| *count);
    if let Some((count, row)) = shortest.filter(|(count, _)| *count > most) {
        return Err(
            row.error(format!("is the shortest row and has {count} characters; --max-characters {most} leaves none"))
        );
    }
    rows.retain(|row| characters(&row.group) <= most);
    let left_out = all - rows.len();
    remark(output, &format!("{left_out} of {} left out, with more than {most} characters", counted(all, "row")));
    Ok(())
}

/// Characters of the longest prompt and the longest response.
fn characters(group: &PreferenceGroup) -> usize {
    let length = |text: &str| text.chars().count();
    let prompt = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => length(text),
        Prompt::Messages(turns) => turns.iter().map(|turn| length(&turn.whole_text())).sum(),
    };
    let response = |response: &Response| match response {
        Response::Text(text) => length(text),
        Response::Message(message) => length(&message.whole_text()),
    };
    let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    longest(&mut group.prompts.iter().map(prompt)) + longest(&mut group.responses.iter().map(response))
}

/// Reads the rows, and prints what was read.
fn read(input: &[PathBuf], output: &Path, options: &ReadOptions) -> Result<Vec<SourceRow>> {
    check_output("--output", output, &Inputs::default().with("--input", input))?;
    if output.extension().is_some_and(|end| end == "csv" || end == "tsv") {
        return Err(Error::Usage(format!(
            "cannot write {}: rows are plain or gzipped (.gz) JSON lines; use a matching file name",
            output.display()
        )));
    }
    let (rows, reports) = read_files_with_reports(input, options)?;
    check_used(options, &reports)?;
    for report in &reports {
        remark(output, &report.to_string());
        warn(report.warnings());
    }
    Ok(rows)
}

/// Numbers of comparisons that rows of TRL cannot represent, by reason.
#[derive(Default)]
struct LeftOut {
    /// Intra and inter comparisons.
    kinds: usize,
    /// Comparisons with two prompts.
    prompts: usize,
    /// Comparisons with a weight that is not 1.
    weights: usize,
}

impl LeftOut {
    fn count(&self) -> usize {
        self.kinds + self.prompts + self.weights
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (self.kinds, "intra or inter"),
            (self.prompts, "of responses to two prompts"),
            (self.weights, "with a weight other than 1"),
        ];
        let met = reasons.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}"));
        f.write_str(&met.collect::<Vec<_>>().join(", "))
    }
}

/// Writes the pairs of base comparisons. The format cannot represent other comparisons; they are left out and
/// counted.
fn write_trl(input: &[PathBuf], output: &Path, rows: &[SourceRow]) -> Result<()> {
    let (mut text, mut pairs, mut left_out) = (String::new(), 0, LeftOut::default());
    // The first row with a plain-text prompt, and the first row with a conversation.
    let mut kinds: [Option<(usize, &SourceRow)>; 2] = [None; 2];
    for (place, row) in rows.iter().enumerate() {
        for comparison in &row.group.comparisons {
            if let Some(pair) = pair(row, comparison, &mut left_out)? {
                kinds[usize::from(pair["prompt"].is_array())].get_or_insert((place, row));
                text += &format!("{}\n", Value::Object(pair));
                pairs += 1;
            }
        }
    }
    if pairs == 0 {
        let why = match left_out.count() {
            0 => "no row has a pair".to_owned(),
            n => format!("none of {n} comparisons is a pair of responses to one prompt with weight 1: {left_out}"),
        };
        return Err(Error::data(&input[0], 0, None, why));
    }
    if let [Some(plain), Some(turns)] = kinds {
        let (kinds, first, second) = match plain.0 < turns.0 {
            true => (["text", "a conversation"], plain.1, turns.1),
            false => (["a conversation", "text"], turns.1, plain.1),
        };
        return Err(second.error(format!(
            "is {}, and {}:{} is {}; `datasets` reads a column as text or as messages, so export them into two files",
            kinds[1],
            first.file.display(),
            first.line,
            kinds[0]
        )));
    }
    write_text(output, &text)?;
    if left_out.count() > 0 {
        let (count, are) = (counted(left_out.count(), "comparison"), agreeing(left_out.count(), "is", "are"));
        warn([format!("{count} {are} left out, because TRL's format cannot represent them: {left_out}")]);
    }
    remark(output, &format!("{} in {}", counted(pairs, "pair"), output.display()));
    Ok(())
}

/// The pair of a base comparison; `None` for a comparison that is left out, which `left_out` counts.
fn pair(row: &SourceRow, comparison: &Comparison, left_out: &mut LeftOut) -> Result<Option<Map<String, Value>>> {
    let group = &row.group;
    let [a, b] = comparison.terms[..] else {
        left_out.kinds += 1;
        return Ok(None);
    };
    let (better, worse) = if a.sign > 0 { (a, b) } else { (b, a) };
    let reason = match () {
        () if comparison.kind != Kind::Base => Some(&mut left_out.kinds),
        () if better.prompt != worse.prompt => Some(&mut left_out.prompts),
        () if comparison.weight != 1.0 => Some(&mut left_out.weights),
        () => None,
    };
    if let Some(reason) = reason {
        *reason += 1;
        return Ok(None);
    }
    let prompt = &group.prompts[better.prompt];
    let sides = [better, worse].map(|term| side(prompt, &group.responses[term.response]));
    let [Some(chosen), Some(rejected)] = sides else {
        return Err(row.error(MESSAGE_TO_TEXT));
    };
    let mut pair = Map::new();
    pair.insert("id".into(), json!(group.id));
    pair.insert("prompt".into(), json!(prompt));
    pair.insert("chosen".into(), chosen);
    pair.insert("rejected".into(), rejected);
    if comparison.margin != 0.0 {
        pair.insert("margin".into(), json!(comparison.margin));
    }
    pair.extend(group.tools.clone().map(|tools| ("tools".into(), tools)));
    pair.extend(group.chat_template_kwargs.clone().map(|kwargs| ("chat_template_kwargs".into(), kwargs.into())));
    Ok(Some(pair))
}

/// Reason why [`side`] returns `None`.
pub(super) const MESSAGE_TO_TEXT: &str =
    "the response is a message, but the prompt is plain text; give both as text or both as messages";

/// A response in the form of its prompt: text, or a list with one message.
pub(super) fn side(prompt: &Prompt, response: &Response) -> Option<Value> {
    match (prompt, response) {
        (Prompt::Text(_), Response::Text(text)) => Some(json!(text)),
        (Prompt::Text(_), Response::Message(_)) => None,
        (Prompt::Messages(_), Response::Text(text)) => Some(json!([Message::new("assistant", text.as_str())])),
        (Prompt::Messages(_), Response::Message(message)) => Some(json!([message])),
    }
}
