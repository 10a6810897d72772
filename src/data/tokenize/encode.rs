//! Boundary between a prompt and its response, on ids.
//!
//! - Conversations: the chat template renders the prompt (with the generation prompt) and the whole
//!   conversation; both are tokenised without added special tokens. The prompt's ids must be a
//!   prefix of the conversation's ids, without exception.
//! - Plain text: prompt and whole text are tokenised with the tokenizer's special tokens, and the
//!   end token is appended unless the text already ends with one. If tokens merge across the end of
//!   the prompt, prompt and response are tokenised separately, as in generation. Such sequences are
//!   counted.
//!
//! In a row for supervised fine-tuning with an empty prompt, the first token is context and the
//! rest is trained.

use super::super::group::{Message, PreferenceGroup, Prompt, Response};
use super::super::source::SourceRow;
use super::super::tokenized::Sequence;
use super::super::tokenizer::Tokenizer;
use crate::Result;

/// A group as ids, before the length limit.
pub(in super::super) struct Encoded {
    /// One entry per prompt of the group; empty for prompts that no pair uses.
    pub prompt_ids: Vec<Vec<u32>>,
    /// In the order of the pairs.
    pub sequences: Vec<Sequence>,
    /// Number of plain-text sequences.
    pub plain: usize,
    /// Number of plain-text sequences with tokens that merge across the end of the prompt.
    pub mismatches: usize,
}

impl Encoded {
    /// Length of a sequence in tokens, prompt included.
    pub(super) fn length(&self, sequence: &Sequence) -> usize {
        self.prompt_ids[sequence.prompt].len() + sequence.response_ids.len()
    }
}

/// Encodes the (prompt, response) pairs of a row.
pub(super) fn encode(
    row: &SourceRow,
    pairs: &[(usize, usize)],
    tokenizer: &Tokenizer,
    allow_double_bos: bool,
) -> Result<Encoded> {
    let group = &row.group;
    let mut out =
        Encoded { prompt_ids: vec![Vec::new(); group.prompts.len()], sequences: Vec::new(), plain: 0, mismatches: 0 };
    let mut known = vec![false; group.prompts.len()];
    for &(prompt, response) in pairs {
        let at = |why: String| row.error(format!("prompt {prompt} with response {response}: {why}"));
        if !known[prompt] {
            known[prompt] = true;
            out.prompt_ids[prompt] = prompt_ids(&group.prompts[prompt], group, tokenizer).map_err(|e| e.at(&at))?;
        }
        let opening = &out.prompt_ids[prompt];
        let mut response_ids = match (&group.prompts[prompt], &group.responses[response]) {
            (Prompt::Text(text), Response::Text(answer)) => {
                out.plain += 1;
                let (ids, merged) = text_response(text, answer, opening, tokenizer)?;
                out.mismatches += usize::from(merged);
                ids
            }
            (Prompt::Text(_), Response::Message(_)) => {
                return Err(at("a message cannot answer a plain-text prompt; give both in the same form".into()));
            }
            (Prompt::Messages(turns), answer) => {
                chat_response(turns, answer, opening, group, tokenizer).map_err(|e| e.at(&at))?
            }
        };
        if opening.is_empty() && group.comparisons.is_empty() && response_ids.len() > 1 {
            let context = response_ids.remove(0);
            out.prompt_ids[prompt].push(context);
        }
        let opening = &out.prompt_ids[prompt];
        if opening.is_empty() {
            return Err(at(
                "the prompt has no token, so the first token of the response has no context; give the prompt some text"
                    .into(),
            ));
        }
        if response_ids.is_empty() {
            return Err(at("the response has no token to score; give it text or drop the row".into()));
        }
        let mut start = opening.iter().chain(&response_ids).copied();
        if let Some(bos) = tokenizer.bos_id()
            && !allow_double_bos
            && [start.next(), start.next()] == [Some(bos), Some(bos)]
        {
            return Err(at(
                "the text starts with two BOS tokens, its own and the tokenizer's; remove the one in the text or \
                 template, or pass --allow-double-bos"
                    .into(),
            ));
        }
        out.sequences.push(Sequence { prompt, response, response_ids });
    }
    Ok(out)
}

/// A defect of the row, or another error.
enum Failure {
    Row(String),
    Other(crate::Error),
}

impl Failure {
    fn at(self, row: &impl Fn(String) -> crate::Error) -> crate::Error {
        match self {
            Failure::Row(why) => row(why),
            Failure::Other(error) => error,
        }
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Failure::Other(error)
    }
}

fn prompt_ids(prompt: &Prompt, group: &PreferenceGroup, tokenizer: &Tokenizer) -> Result<Vec<u32>, Failure> {
    match prompt {
        Prompt::Text(text) => Ok(tokenizer.encode_prefix(text)?),
        Prompt::Messages(turns) => Ok(tokenizer.encode(&render(turns, true, group, tokenizer)?, false)?),
    }
}

fn render(turns: &[Message], open: bool, group: &PreferenceGroup, tokenizer: &Tokenizer) -> Result<String, Failure> {
    let (tools, kwargs) = (group.tools.as_ref(), group.chat_template_kwargs.as_ref());
    tokenizer.require_template()?.render(turns, open, tools, kwargs).map_err(Failure::Row)
}

/// Ids of a plain-text response after its prompt, with the end token last; true if tokens merge
/// across the boundary.
fn text_response(prompt: &str, answer: &str, opening: &[u32], tokenizer: &Tokenizer) -> Result<(Vec<u32>, bool)> {
    let mut whole = tokenizer.encode(&format!("{prompt}{answer}"), true)?;
    // Text that already ends with an end token gets no second one from the post-processor.
    let open = tokenizer.without_suffix(&whole).len();
    if whole[..open].last().is_some_and(|last| tokenizer.end_ids().contains(last)) {
        whole.truncate(open);
    }
    let (mut ids, merged) = match whole.strip_prefix(opening) {
        Some(rest) => (rest.to_vec(), false),
        None => (tokenizer.encode(answer, false)?, true),
    };
    // An answer without tokens gets no end token, so that the caller refuses it.
    if ids.last().is_some_and(|last| !tokenizer.end_ids().contains(last)) {
        ids.push(tokenizer.require_eos()?);
    }
    Ok((ids, merged))
}

fn chat_response(
    turns: &[Message],
    answer: &Response,
    opening: &[u32],
    group: &PreferenceGroup,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, Failure> {
    let answer = match answer {
        Response::Message(message) => message.clone(),
        Response::Text(text) => Message { role: "assistant".into(), content: text.clone() },
    };
    let whole: Vec<Message> = turns.iter().cloned().chain([answer]).collect();
    let whole = tokenizer.encode(&render(&whole, false, group, tokenizer)?, false)?;
    match whole.strip_prefix(opening) {
        Some(rest) => Ok(rest.to_vec()),
        None => {
            let same = opening.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            let near = |ids: &[u32]| {
                let ids = &ids[same.saturating_sub(2)..(same + 6).min(ids.len())];
                tokenizer.decode(ids)
            };
            Err(Failure::Row(format!(
                "the rendered prompt is not a prefix of the rendered conversation: from token {same} on, the prompt \
                 reads {:?} and the conversation {:?}; templates that rewrite earlier turns or insert an empty \
                 thinking block (like Qwen3's) are not supported; pass another template with --chat-template-path",
                near(opening)?,
                near(&whole)?
            )))
        }
    }
}

/// True if a response ends with an end token. White space after the end token is ignored, because
/// some templates close a turn with a line break.
pub(super) fn ends(response_ids: &[u32], tokenizer: &Tokenizer) -> Result<bool> {
    for &id in response_ids.iter().rev() {
        if tokenizer.end_ids().contains(&id) {
            return Ok(true);
        }
        if !tokenizer.decode(&[id])?.chars().all(char::is_whitespace) {
            return Ok(false);
        }
    }
    Ok(false)
}
