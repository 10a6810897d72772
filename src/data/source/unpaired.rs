//! Rows with one response and a label, for KTO: `{"prompt", "completion", "label"}`, conversations with
//! a label, and LLaMA-Factory's `kto_tag`. A row becomes a group with one comparison of one term, whose
//! sign is the label. Such groups exist only in memory and are never written to a file.
//!
//! Pairs become two such rows. As in TRL's `unpair_preference_dataset`, rows are split in blocks of
//! [`BLOCK`]: all chosen responses of a block come before all rejected ones. These are errors: comparisons of
//! one response under two prompts or of four terms, which do not label a single response; margins and
//! weights; a label next to a pair.

use std::path::PathBuf;

use serde_json::Value;

use super::super::group::{Comparison, Kind, PreferenceGroup, Prompt, Response, Term};
use super::fields::{Row, describe};
use super::message::messages;
use super::overlooked::check_media;
use super::two_columns::{LABELS, label_of};
use super::{FileReport, Format, Parsed, ReadOptions, SourceRow, preference_row, read_all, sft};
use crate::Result;

/// Number of rows of a block, which is the default batch size of `datasets`.
const BLOCK: usize = 1000;

/// Reads rows with a label, and pairs, with a report per file.
pub fn read_unpaired_files(paths: &[PathBuf], options: &ReadOptions) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    read_all(paths, options, unpaired_row)
}

/// Splits pairs into rows with a label; returns the number of pairs. Other rows stay as they are.
///
/// # Errors
/// A data error at a row whose comparison is not a pair of two responses to one prompt.
pub fn split_pairs(rows: Vec<SourceRow>) -> Result<(Vec<SourceRow>, usize)> {
    let (mut all, mut pairs) = (Vec::with_capacity(rows.len()), 0);
    for block in rows.chunks(BLOCK) {
        let mut rejected = Vec::new();
        for row in block {
            if row.group.comparisons.iter().all(|c| c.terms.len() == 1) {
                all.push(row.clone());
                continue;
            }
            let many = row.group.comparisons.len() > 1;
            for (number, comparison) in row.group.comparisons.iter().enumerate() {
                pairs += 1;
                for (term, name) in sides(row, comparison)? {
                    let mut group = one_response(
                        row.group.id.clone(),
                        row.group.prompts[term.prompt].clone(),
                        row.group.responses[term.response].clone(),
                        term.sign,
                    );
                    let place = if many { format!("/{number}") } else { String::new() };
                    group.id += &format!("{place}/{name}");
                    group.tools.clone_from(&row.group.tools);
                    group.chat_template_kwargs.clone_from(&row.group.chat_template_kwargs);
                    let split = SourceRow { group, scores: None, ..row.clone() };
                    if term.sign > 0 { all.push(split) } else { rejected.push(split) }
                }
            }
        }
        all.append(&mut rejected);
    }
    Ok((all, pairs))
}

/// Returns the two terms of a pair, the first named `chosen` and the second `rejected`.
fn sides(row: &SourceRow, comparison: &Comparison) -> Result<[(Term, &'static str); 2]> {
    let refuse = |what: String| {
        let kind = comparison.kind.name();
        Err(row.error(format!("the {kind} comparison {what}; leave it out, or train pairs with `mapl dpo`")))
    };
    let [a, b] = comparison.terms[..] else {
        return refuse("has four terms, but a row for KTO has one response that is desirable or not".into());
    };
    let [chosen, rejected] = if a.sign > 0 { [a, b] } else { [b, a] };
    if comparison.kind != Kind::Base || chosen.prompt != rejected.prompt {
        return refuse(
            "does not compare two responses to one original prompt, so it labels neither of them as desirable".into(),
        );
    }
    match (comparison.margin == 0.0, comparison.weight == 1.0) {
        (true, true) => Ok([(chosen, "chosen"), (rejected, "rejected")]),
        (false, _) => refuse(format!("has the margin {}, but KTO uses no margins", comparison.margin)),
        _ => refuse(format!("has the weight {}, but KTO weights rows by their label", comparison.weight)),
    }
}

/// A group of one response with the sign of its label.
fn one_response(id: String, prompt: Prompt, response: Response, sign: i8) -> PreferenceGroup {
    let terms = vec![Term { prompt: 0, response: 0, sign }];
    let comparison = Comparison { kind: Kind::Base, terms, margin: 0.0, weight: 1.0, rule: None, direction: None };
    PreferenceGroup::new(id, vec![prompt], vec![response], vec![comparison])
}

/// Reads a row with one response and a label, or a pair.
pub(super) fn unpaired_row(row: &mut Row<'_>) -> Result<Parsed, String> {
    if label_of(row).is_none() {
        let paired = ["chosen", "rejected", "prompts", "comparisons", "responses"].iter().any(|key| row.has(key));
        let labelled = LABELS.iter().find_map(|key| Some((*key, row.get(key)?.clone())));
        return match (preference_row(row), labelled) {
            (Err(_), Some((key, value))) if !paired => {
                Err(format!("\"{key}\" is {}; a label of true or false is needed", describe(&value)))
            }
            (Err(why), None) if !paired => Err(format!(
                "{why}. A row of one response needs a label of true or false (\"label\", \"kto_tag\" or \"is_desirable\")"
            )),
            (outcome, _) => outcome,
        };
    }
    check_media(row)?;
    let Some((key, sign)) = label_of(row) else { return Err("the row has no label".into()) };
    row.take(key);
    if row.has("chosen") || row.has("rejected") {
        return Err(format!(
            "\"{key}\" labels one response, but the row also has chosen or rejected; leave one of them out with --drop-columns"
        ));
    }
    for conversation in ["messages", "conversations"] {
        if let Some(turns @ Value::Array(_)) = row.get(conversation) {
            let turns = messages(turns.clone(), &format!("\"{conversation}\""))?;
            if let Some(last) = turns.last().filter(|last| last.role != "assistant") {
                return Err(format!(
                    "\"{conversation}\" ends with the role {}, but the label is that of the assistant's last turn",
                    describe(&Value::String(last.role.clone()))
                ));
            }
        }
    }
    let (format, mut pairs) = sft::pairs_of(row)?;
    if format == Format::PlainText {
        return Err("\"text\" has no prompt, but a row for KTO needs one; give prompt and completion".into());
    }
    // In a conversation with several answers, the label belongs to the last answer.
    let (prompt, response) = pairs.pop().ok_or("the row has no response")?;
    let mut group = one_response(row.id().to_owned(), prompt, response, sign);
    row.template_settings(&mut group)?;
    Ok(Parsed::new(Format::Unpaired, group))
}
