//! Rows for supervised fine-tuning: `{"prompt", "completion"}` as text or messages, `{"messages"}`,
//! `{"text"}`, and the chosen responses of preference rows.
//!
//! A row becomes a group without comparisons; each response answers the prompt with the same index.
//! This form exists only in memory and is never written to disk. A conversation gives one prompt
//! and response per assistant turn. Plain text is a response under an empty prompt. A preference
//! group gives the positive term of each base comparison.

use std::path::PathBuf;

use super::super::group::{Kind, Message, PreferenceGroup, Prompt, Response};
use super::candidates::list_column;
use super::context::{Context, is_conversation};
use super::fields::Row;
use super::message::{not_empty, split_response};
use super::overlooked::check_media;
use super::row_limits::check_turns;
use super::two_columns::{shape, unpaired};
use super::{FileReport, Format, Parsed, ReadOptions, Shape, SourceRow, preference_row, read_all};
use crate::Result;

/// Reads files for supervised fine-tuning, with a report per file.
pub fn read_sft_files(paths: &[PathBuf], options: &ReadOptions) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_all(paths, options, sft_row)
}

/// The (prompt, response) pairs that a group without comparisons trains on.
pub fn sft_pairs(group: &PreferenceGroup) -> Vec<(usize, usize)> {
    (0..group.prompts.len().min(group.responses.len())).map(|i| (i, i)).collect()
}

/// Reads a row of any format that supervised fine-tuning accepts.
pub(super) fn sft_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    let several = list_column(row).is_some() || shape(row)?.is_some();
    if several || super::group_row::matches(row) || row.has("chosen") || row.has("rejected") {
        let mut parsed = preference_row(row)?;
        // A tie has no chosen response; it is left out and counted.
        if !parsed.tied {
            chosen_sides(&mut parsed.group)?;
        }
        return Ok(parsed);
    }
    if !row.any_columns {
        check_media(row)?;
        if let Some(why) = unpaired(row) {
            return Err(why);
        }
    }
    let (format, pairs) = pairs_of(row)?;
    let (prompts, responses) = pairs.into_iter().unzip();
    let mut group = PreferenceGroup::new(row.id().to_owned(), prompts, responses, Vec::new());
    row.template_settings(&mut group)?;
    Ok(Parsed::new(format, group))
}

/// Returns the prompts and responses of a row that is not a comparison, in the order of the conversation.
pub(super) fn pairs_of(row: &mut Row<'_>) -> Result<(Format, Pairs), String> {
    let given = ["completion", "messages", "text"].into_iter().filter(|key| row.has(key)).collect::<Vec<_>>();
    Ok(match given[..] {
        ["completion"] => (Format::PromptCompletion, completion(row, "completion")?),
        ["messages"] => (Format::Messages, conversation(row, "messages")?),
        ["text"] => {
            let text = not_empty(Response::Text(row.text("text")?), "\"text\"")?;
            (Format::PlainText, vec![(Prompt::Text(String::new()), text)])
        }
        [] if row.has("conversations") => (Format::Messages, conversation(row, "conversations")?),
        [] => match ["output", "response", "answer"].into_iter().find(|key| row.peek_text(key).is_some()) {
            Some(key) => (Format::PromptCompletion, completion(row, key)?),
            None => {
                let keys = row.keys_for_message();
                return Err(format!(
                    "no text to train on (the row has {keys}); provide prompt and completion, messages, text, or chosen \
                     and rejected, or rename columns with --column-map"
                ));
            }
        },
        _ => return Err(format!("only one of {} may be given", given.join(", "))),
    })
}

/// Keeps only the chosen response of each base comparison, with its prompt, and removes all comparisons.
fn chosen_sides(group: &mut PreferenceGroup) -> Result<(), String> {
    let base = group.comparisons.iter().filter(|c| c.kind == Kind::Base && c.terms.len() == 2);
    let mut pairs: Vec<(usize, usize)> =
        base.flat_map(|c| &c.terms).filter(|t| t.sign > 0).map(|t| (t.prompt, t.response)).collect();
    pairs.sort_unstable();
    pairs.dedup();
    if pairs.is_empty() {
        return Err("the row has no base comparison, so it has no chosen response to train on".into());
    }
    let prompts = pairs.iter().map(|&(p, _)| group.prompts[p].clone()).collect();
    let responses = pairs.iter().map(|&(_, r)| group.responses[r].clone()).collect();
    group.prompts = prompts;
    group.responses = responses;
    group.comparisons.clear();
    group.instructions.clear();
    Ok(())
}

pub(super) type Pairs = Vec<(Prompt, Response)>;

fn completion(row: &mut Row<'_>, key: &'static str) -> Result<Pairs, String> {
    let conversation = is_conversation(row);
    match (row.text_or_chat("prompt")?, row.text_or_chat(key)?) {
        (None, _) if !conversation => Err(format!("\"prompt\" is missing; \"{key}\" needs a prompt")),
        (Some(Shape::Text), Some(Shape::Text)) if !conversation => {
            let response = not_empty(Response::Text(row.text(key)?), &format!("\"{key}\""))?;
            Ok(vec![(Prompt::Text(row.text("prompt")?), response)])
        }
        (Some(Shape::Text), Some(Shape::Chat)) if !conversation => {
            Err(format!("\"prompt\" and \"{key}\" must both be strings or both be lists of messages"))
        }
        (_, shape) => {
            let context = Context::take(row)?;
            let turns = match shape {
                Some(Shape::Text) => vec![Message::new("assistant", row.text(key)?)],
                _ => row.messages(key)?,
            };
            let before = context.before(Vec::new(), key)?;
            answers(before, turns, &format!("\"{key}\""))
        }
    }
}

/// Returns one (prompt, response) pair per assistant turn of a conversation, which starts with the row's system text.
fn conversation(row: &mut Row<'_>, key: &'static str) -> Result<Pairs, String> {
    let turns = row.messages(key)?;
    let turns = Context::take(row)?.before(turns, key)?;
    answers(Vec::new(), turns, &format!("\"{key}\""))
}

/// Returns one (prompt, response) pair per assistant turn of `turns`, which continue `before`.
fn answers(before: Vec<Message>, turns: Vec<Message>, what: &str) -> Result<Pairs, String> {
    check_turns(&turns, what)?;
    let mut pairs = Vec::new();
    let mut context = before;
    for turn in turns {
        let answer = turn.role == "assistant";
        context.push(turn);
        if answer {
            let (prompt, response) = split_response(context.clone(), what)?;
            if prompt.is_empty() {
                return Err(format!("{what} starts with an assistant turn; a user or system turn must come first"));
            }
            pairs.push((Prompt::Messages(prompt), response));
        }
    }
    if pairs.is_empty() {
        return Err(format!("{what} has no assistant turn to train on"));
    }
    Ok(pairs)
}
