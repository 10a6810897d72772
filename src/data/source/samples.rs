//! Responses of a policy for `mapl data pairs`: rows of a prompt with one response, gathered by prompt,
//! with the instructions of IFEval rows.
//!
//! Empty responses are left out and counted, because they have no token to score.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::fields::Row;
use super::prompts::{PromptOptions, response_row};
use super::turns::make_turns;
use super::{ReadOptions, SourceRow, refuse_pipe_named_twice, rows};
use crate::data::group::Response;
use crate::{Error, Result};

/// Responses to one prompt.
#[derive(Clone, Debug)]
pub struct Samples {
    /// The prompt with all responses and without comparisons, at the file and line of the first response.
    pub row: SourceRow,
    /// `instruction_id_list` and `kwargs` of the rows, null if they have none.
    pub instructions: Value,
}

/// Result of [`read_samples`].
#[derive(Debug, Default)]
pub struct SampleFiles {
    /// Prompts in the order of their first responses.
    pub prompts: Vec<Samples>,
    /// Rows read.
    pub rows: usize,
    /// Number of empty responses, which are left out.
    pub empty: usize,
}

/// Reads responses. With `as_turns`, plain text becomes turns of a conversation.
pub fn read_samples(paths: &[PathBuf], options: &PromptOptions, as_turns: bool) -> Result<SampleFiles> {
    refuse_pipe_named_twice(paths)?;
    let reading = ReadOptions {
        column_map: options.column_map.clone(),
        drop_columns: options.drop_columns.clone(),
        ..ReadOptions::default()
    };
    let (mut found, mut known) = (SampleFiles::default(), HashMap::new());
    let (mut dropped, mut mapped, mut made_turns) = (BTreeSet::new(), false, false);
    for path in paths {
        let file: Arc<Path> = Arc::from(path.as_path());
        let before = found.rows;
        let columns = rows::Columns { ids: &["id"], mapped: reading.column_map.pairs(), keep_text: false };
        rows::for_each_row(path, columns, |line, object| {
            let rows::RowObject { object, odd, .. } = object?;
            found.rows += 1;
            let mut row = Row::new(object, path, line);
            row.odd = odd;
            row.set_id().map_err(|why| Error::data(path, line, None, why))?;
            let id = row.id().to_owned();
            let fail = |why: String| Error::data(path, line, Some(&id), why);
            row.apply(&reading).map_err(fail)?;
            mapped |= row.mapped;
            dropped.extend(row.dropped.iter().cloned());
            if row.peek_text("response") == Some("") {
                found.empty += 1;
                return Ok(());
            }
            let instructions = json!([row.get("instruction_id_list"), row.get("kwargs")]);
            let mut parsed = response_row(&mut row).map_err(|why| fail(row.explain(why)))?;
            if as_turns {
                made_turns |= make_turns(parsed.format, &mut parsed.group).map_err(fail)?;
            }
            row.check_odd(&parsed.group).map_err(fail)?;
            let mut group = parsed.group;
            let key = json!([group.prompts, group.tools, group.chat_template_kwargs]).to_string();
            let instructions = if instructions[0].is_null() { Value::Null } else { instructions };
            let Some(&at) = known.get(&key) else {
                known.insert(key, found.prompts.len());
                let row = SourceRow { group, file: file.clone(), line, scores: None };
                found.prompts.push(Samples { row, instructions });
                return Ok(());
            };
            let samples: &mut Samples = &mut found.prompts[at];
            if samples.instructions != instructions {
                let (file, first) = (samples.row.file.display(), samples.row.line);
                return Err(fail(format!("the prompt is the same as at {file}:{first}, but its instructions differ")));
            }
            let responses: &mut Vec<Response> = &mut samples.row.group.responses;
            responses.append(&mut group.responses);
            Ok(())
        })?;
        if found.rows == before {
            return Err(Error::data(path, 0, None, "the file has no rows; expected one JSON object per line"));
        }
    }
    let without = [
        ("--column-map", !options.column_map.pairs().is_empty() && !mapped, "every row is a group row"),
        ("--apply-chat-template", as_turns && !made_turns, "every prompt is a conversation already"),
    ];
    if let Some((flag, _, why)) = without.iter().find(|(_, without, _)| *without) {
        return Err(Error::Usage(format!("{flag} has no effect: {why}; leave it out")));
    }
    match options.drop_columns.iter().find(|column| !dropped.contains(*column)) {
        Some(column) => Err(Error::Usage(format!("--drop-columns {column}: no row has this column; correct its name"))),
        None => Ok(found),
    }
}
