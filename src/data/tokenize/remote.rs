//! Encodes rows in worker processes, with one request per row.

use super::super::requests::{EncodedRow, Request, json};
use super::super::source::SourceRow;
use super::super::tokenized::Sequence;
use super::super::tokenizer::{Remote, Tokenizer};
use super::super::worker::Failure;
use super::super::worker::frame::ids;
use super::encode::{Encoded, Rules};
use crate::{Error, Result};

/// Encodes the (prompt, response) pairs of a row.
///
/// # Errors
/// The errors of encoding in this process; [`Error::Data`] for the row if its worker exceeded a limit or
/// crashed; [`Error::Model`] if workers did so too often.
pub(super) fn encode_row(
    row: &SourceRow,
    pairs: &[(usize, usize)],
    tokenizer: &Tokenizer,
    remote: &Remote,
    rules: Rules,
) -> Result<Encoded> {
    let request = Request::Row {
        file: row.file.as_os_str().to_owned(),
        line: row.line,
        pairs: pairs.to_vec(),
        kwargs: tokenizer.kwargs_of(row.group.chat_template_kwargs.as_ref()),
        rules,
    };
    let group = json(&row.group);
    // Upper bound on the text to encode, which sets the time limit: every sequence is encoded with its prompt.
    let bytes = group.len().saturating_mul(1 + pairs.len());
    let outcome = remote.ask_about_row::<EncodedRow>(&request, &group, bytes).map_err(|failure| match &failure {
        Failure::Died { .. } => row.error(remote.blame(&failure).to_string()),
        Failure::Start(_) | Failure::GivenUp { .. } => remote.blame(&failure),
    })?;
    let (facts, frame) = outcome?;
    let part = |at: usize| ids(frame.part(1 + at));
    if frame.parts.len() != 1 + facts.prompts + facts.sequences.len() || facts.prompts != row.group.prompts.len() {
        return Err(Error::Runtime("the worker process sent an incomplete response for a row".into()));
    }
    let sequence = |(i, &(prompt, response)): (usize, &(usize, usize))| Sequence {
        prompt,
        response,
        response_ids: part(facts.prompts + i),
    };
    Ok(Encoded {
        prompt_ids: (0..facts.prompts).map(part).collect(),
        sequences: facts.sequences.iter().enumerate().map(sequence).collect(),
        plain: facts.plain,
        mismatches: facts.mismatches,
        lost: facts.lost,
    })
}
