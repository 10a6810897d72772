//! Pairs of conversations: lists of `{"role", "content"}`, with or without a separate prompt. Both
//! forms are read as whole conversations: `prompt` is put in front of each side unless the side
//! already starts with it.
//!
//! The two conversations must be equal up to the last message, the assistant's response.
//! Conversations that end in the same response after different turns are read as an intra
//! comparison: one response under two prompts. Conversations that differ in both are compared as a
//! whole by a reward model, each response under its own prompt. Otherwise they are refused, because
//! a policy compares two responses to one prompt.

use super::super::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use super::fields::{Row, split_response};
use super::{Format, Parsed};

pub(super) fn read_explicit(row: &mut Row<'_>) -> Result<Parsed, String> {
    let prompt = row.messages("prompt")?;
    let mut side = |key: &'static str| match row.peek_text(key).map(str::to_owned) {
        // A plain string is the assistant's answer.
        Some(content) => {
            row.take(key);
            Ok(vec![Message { role: "assistant".into(), content }])
        }
        None => row.messages(key),
    };
    let (chosen, rejected) = (side("chosen")?, side("rejected")?);
    let whole = |side: Vec<Message>| match side.starts_with(&prompt) {
        true => side,
        false => prompt.iter().cloned().chain(side).collect(),
    };
    Ok(Parsed::new(Format::ChatExplicit, pair(row, whole(chosen), whole(rejected))?))
}

pub(super) fn read_implicit(row: &mut Row<'_>) -> Result<Parsed, String> {
    let (chosen, rejected) = (row.messages("chosen")?, row.messages("rejected")?);
    Ok(Parsed::new(Format::ChatImplicit, pair(row, chosen, rejected)?))
}

/// Builds a group from two whole conversations, with the row's margin and template settings.
pub(super) fn pair(row: &mut Row<'_>, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<PreferenceGroup, String> {
    let (prompt, chosen) = split_response(chosen, "\"chosen\"")?;
    let (other, rejected) = split_response(rejected, "\"rejected\"")?;
    let margin = row.margin()?;
    let id = row.id().to_owned();
    if prompt.is_empty() || other.is_empty() {
        return Err("a side has only the response; put the turns before it in \"prompt\"".into());
    }
    let mut group = if prompt == other {
        PreferenceGroup::pair(id, Prompt::Messages(prompt), chosen, rejected, margin)
    } else if chosen == rejected {
        one_response(id, prompt, other, chosen, margin)
    } else if row.whole_conversations {
        let prompts = [prompt, other].map(Prompt::Messages);
        whole_conversations(id, prompts, [chosen, rejected], margin)
    } else {
        return Err(
            "\"chosen\" and \"rejected\" differ before their last message and also in it; only a reward model compares \
             whole conversations; a policy needs one prompt with two responses, or two prompts with one response (for \
             other cases use a group row)"
                .into(),
        );
    };
    row.template_settings(&mut group)?;
    Ok(group)
}

/// Builds a group with one response under two prompts, the first of them preferred.
fn one_response(
    id: String,
    better: Vec<Message>,
    worse: Vec<Message>,
    response: Response,
    margin: f64,
) -> PreferenceGroup {
    let prompts = vec![Prompt::Messages(better), Prompt::Messages(worse)];
    PreferenceGroup::new(id, prompts, vec![response], vec![Comparison::pair(Kind::Intra, (0, 0), (1, 0), margin)])
}

/// Builds a group with two responses, each under its own prompt, the first of them preferred.
pub(super) fn whole_conversations(
    id: String,
    prompts: [Prompt; 2],
    responses: [Response; 2],
    margin: f64,
) -> PreferenceGroup {
    let comparison = Comparison::pair(Kind::Base, (0, 0), (1, 1), margin);
    PreferenceGroup::new(id, prompts.into(), responses.into(), vec![comparison])
}
