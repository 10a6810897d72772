//! `mapl data export`: writes preference rows in another tool's format.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::inputs::Inputs;
use super::output::{check_output, remark, warn};
use crate::data::group::{Comparison, Kind, Prompt, Response};
use crate::data::source::{ReadOptions, SourceRow, check_used, read_files_with_reports};
use crate::files::write_text;
use crate::terminal::{agreeing, counted};
use crate::{Error, Result};

/// Format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// `prompt`, `chosen`, `rejected` of TRL: text, or lists of messages
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
    to: Target,
    /// JSON lines file to write, one row per pair of responses to one prompt
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    read: ReadOptions,
}

/// Reads rows and writes the pairs of their base comparisons. Other comparisons have no place in
/// the format; they are left out and counted.
///
/// # Errors
/// [`Error::Data`] if no pair is left, and for text next to conversations, which TRL cannot read
/// from one file.
pub fn export(args: &ExportCommand) -> Result<()> {
    let Target::Trl = args.to;
    check_output("--output", &args.output, &Inputs::default().with("--input", &args.input))?;
    let (rows, reports) = read_files_with_reports(&args.input, &args.read)?;
    check_used(&args.read, &reports)?;
    for report in &reports {
        remark(&args.output, &report.to_string());
        warn(report.warnings());
    }
    let (mut text, mut pairs, mut left_out) = (String::new(), 0, 0);
    // The first row of text and the first of a conversation.
    let mut kinds: [Option<(usize, &SourceRow)>; 2] = [None; 2];
    for (place, row) in rows.iter().enumerate() {
        for comparison in &row.group.comparisons {
            match pair(row, comparison) {
                Some(pair) => {
                    kinds[usize::from(pair["prompt"].is_array())].get_or_insert((place, row));
                    text += &format!("{}\n", Value::Object(pair));
                    pairs += 1;
                }
                None => left_out += 1,
            }
        }
    }
    if pairs == 0 {
        return Err(Error::data(&args.input[0], 0, None, "no comparison has two responses to one prompt"));
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
    write_text(&args.output, &text)?;
    if left_out > 0 {
        let (count, are) = (counted(left_out, "comparison"), agreeing(left_out, "is", "are"));
        warn([format!("{count} {are} left out: the format has only pairs of responses to one prompt")]);
    }
    remark(&args.output, &format!("{} in {}", counted(pairs, "pair"), args.output.display()));
    Ok(())
}

/// The pair of a base comparison; `None` for other comparisons. Weights other than 1 have no place.
fn pair(row: &SourceRow, comparison: &Comparison) -> Option<Map<String, Value>> {
    let group = &row.group;
    let [a, b] = comparison.terms[..] else { return None };
    let (better, worse) = if a.sign > 0 { (a, b) } else { (b, a) };
    if comparison.kind != Kind::Base || better.prompt != worse.prompt || comparison.weight != 1.0 {
        return None;
    }
    let prompt = match &group.prompts[better.prompt] {
        Prompt::Text(text) => json!(text),
        Prompt::Messages(turns) => json!(turns),
    };
    let side = |response: usize| match &group.responses[response] {
        Response::Text(text) => json!(text),
        Response::Message(message) => json!([message]),
    };
    let mut pair = Map::new();
    pair.insert("id".into(), json!(group.id));
    pair.insert("prompt".into(), prompt);
    pair.insert("chosen".into(), side(better.response));
    pair.insert("rejected".into(), side(worse.response));
    if comparison.margin != 0.0 {
        pair.insert("margin".into(), json!(comparison.margin));
    }
    pair.extend(group.tools.clone().map(|tools| ("tools".into(), tools)));
    pair.extend(group.chat_template_kwargs.clone().map(|kwargs| ("chat_template_kwargs".into(), kwargs.into())));
    Some(pair)
}
