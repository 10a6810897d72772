//! Pairs of conversations. `chosen` and `rejected` are lists of messages, or texts that answer a
//! question; the turns before the response are in other columns (`context`) or at the start of both lists. In
//! both cases, `chosen` and `rejected` are completed to whole conversations.
//!
//! The two conversations must be equal up to the last message, the assistant's response. Conversations that
//! end in the same response after different turns are read as an intra comparison: one response under two
//! prompts. A reward model also compares conversations that differ in earlier turns and in the response, each
//! response under its own prompt. For other methods such conversations are an error, because a policy compares
//! two responses to one prompt.

use super::super::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use super::context::Context;
use super::fields::Row;
use super::message::split_response;
use super::{Format, Parsed};

/// Why conversations that differ in earlier turns are rejected.
pub(super) const TWO_PROMPTS: &str = "only a reward model compares whole conversations; a policy needs one prompt with two responses, or two prompts \
     with one response (for other cases use a group row)";

pub(super) fn read(row: &mut Row<'_>, format: Format) -> Result<Parsed, String> {
    let context = Context::take(row)?;
    let repeats = |key: &str| {
        let (question, side) = (context.question_text().unwrap_or_default().trim(), row.peek_text(key));
        !question.is_empty() && side.is_some_and(|side| side.starts_with(question))
    };
    let prompt_repeated = repeats("chosen") && repeats("rejected");
    if context.has_no_question() && row.peek_text("chosen").is_some() {
        return Err(
            "chosen and rejected are text and the row has no question, so its system text or history cannot be used; \
             name the question with --column-map (such as prompt=COLUMN), or leave the other columns out with \
             --drop-columns"
                .into(),
        );
    }
    let mut side = |key: &'static str| match row.peek_text(key).map(str::to_owned) {
        // A plain string is the assistant's answer.
        Some(content) => {
            row.take(key);
            Ok(vec![Message::new("assistant", content)])
        }
        None => row.messages(key),
    };
    let (chosen, rejected) = (side("chosen")?, side("rejected")?);
    let (chosen, rejected) = (context.before(chosen, "chosen")?, context.before(rejected, "rejected")?);
    let group = pair(row, chosen, rejected)?;
    Ok(Parsed { prompt_repeated, ..Parsed::new(format, group) })
}

/// Builds a group from two whole conversations, with the row's margin and template settings.
fn pair(row: &mut Row<'_>, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<PreferenceGroup, String> {
    let (prompt, chosen) = split_response(chosen, "\"chosen\"")?;
    let (other, rejected) = split_response(rejected, "\"rejected\"")?;
    let margin = row.margin()?;
    let id = row.id().to_owned();
    if prompt.is_empty() || other.is_empty() {
        return Err("\"chosen\" or \"rejected\" has only the response; put the turns before it in \"prompt\"".into());
    }
    let mut group = if prompt == other {
        PreferenceGroup::pair(id, Prompt::Messages(prompt), chosen, rejected, margin)
    } else if chosen == rejected {
        one_response(id, prompt, other, chosen, margin)
    } else if row.whole_conversations {
        let prompts = [prompt, other].map(Prompt::Messages);
        whole_conversations(id, prompts, [chosen, rejected], margin)
    } else {
        let shared = prompt.iter().zip(&other).take_while(|(a, b)| a == b).count();
        let own = [&prompt, &other].map(|turns| turns.len() - shared + 1);
        return Err(format!(
            "\"chosen\" and \"rejected\" differ before their last message and also in it (after the turns that they \
             share, they have {} and {} messages); {TWO_PROMPTS}",
            own[0], own[1]
        ));
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
