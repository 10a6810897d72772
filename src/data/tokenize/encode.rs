//! Token ids of prompts and responses, and the boundary between them.
//!
//! - Conversations: the chat template renders the prompt (with the generation prompt) and the whole
//!   conversation; both are tokenised without added special tokens. For a policy the prompt's ids must be a
//!   prefix of the conversation's ids, without exception. A reward is read at the last token, so a reward
//!   model needs no such boundary. Its shared prompt is the longest prefix of the prompt's ids with which all
//!   conversations start; everything after it belongs to the response.
//! - Plain text: prompt and whole text are tokenised with the tokenizer's special tokens, and an EOS token is
//!   appended unless the text already ends with one. If tokens merge across the end of the prompt, prompt and
//!   response are tokenised separately, as in generation, and no leading space is added to the response. Such
//!   sequences are counted.
//!
//! In a row for supervised fine-tuning with an empty prompt, the first response token becomes the prompt, and
//! only the other tokens contribute to the loss.

use serde::{Deserialize, Serialize};

use super::super::group::{Message, PreferenceGroup, Prompt, Response};
use super::super::source::SourceRow;
use super::super::tokenized::Sequence;
use super::super::tokenizer::Tokenizer;
use super::lost::Lost;
use crate::Result;

/// A group as token ids, before the length limit is applied.
#[derive(Default)]
pub(in super::super) struct Encoded {
    /// One entry per prompt of the group; empty for prompts that no pair uses.
    pub prompt_ids: Vec<Vec<u32>>,
    /// One sequence per (prompt, response) pair, in the order of the pairs.
    pub sequences: Vec<Sequence>,
    /// Number of plain-text sequences.
    pub plain: usize,
    /// Number of plain-text sequences with tokens that merge across the end of the prompt.
    pub mismatches: usize,
    /// Messages that the rendered conversations lack.
    pub lost: Lost,
}

impl Encoded {
    /// Length of a sequence in tokens, prompt included.
    pub(super) fn length(&self, sequence: &Sequence) -> usize {
        self.prompt_ids[sequence.prompt].len() + sequence.response_ids.len()
    }
}

/// Settings of [`encode`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in super::super) struct Rules {
    pub allow_double_bos: bool,
    /// The ids are for a reward model, which needs no boundary between prompt and response.
    pub reward: bool,
}

/// Encodes the (prompt, response) pairs of a row. Pairs of one prompt are adjacent.
pub(super) fn encode(
    row: &SourceRow,
    pairs: &[(usize, usize)],
    tokenizer: &Tokenizer,
    rules: Rules,
) -> Result<Encoded> {
    let group = &row.group;
    let mut out = Encoded { prompt_ids: vec![Vec::new(); group.prompts.len()], ..Encoded::default() };
    for pairs in pairs.chunk_by(|a, b| a.0 == b.0) {
        let prompt = pairs[0].0;
        let (opening, responses) = match &group.prompts[prompt] {
            Prompt::Text(text) => text_responses(text, row, pairs, tokenizer, &mut out)?,
            Prompt::Messages(turns) => chat_responses(turns, row, pairs, tokenizer, rules, &mut out.lost)?,
        };
        out.prompt_ids[prompt] = opening;
        for (&(_, response), mut response_ids) in pairs.iter().zip(responses) {
            let at = |why: &str| at(row, (prompt, response), why);
            let opening = &mut out.prompt_ids[prompt];
            if opening.is_empty() && group.comparisons.is_empty() && response_ids.len() > 1 {
                opening.push(response_ids.remove(0));
            }
            if opening.is_empty() && !rules.reward {
                return Err(at(
                    "the prompt has no token, so the first token of the response has no context; give the prompt some \
                     text",
                ));
            }
            if response_ids.is_empty() {
                return Err(at("the response has no token to score; give it text or drop the row"));
            }
            let mut start = opening.iter().chain(&response_ids).copied();
            if let Some(bos) = tokenizer.bos_id()
                && !rules.allow_double_bos
                && [start.next(), start.next()] == [Some(bos), Some(bos)]
            {
                return Err(at(
                    "the text starts with two BOS tokens, its own and the tokenizer's; remove the one in the text or \
                     template, or pass --allow-double-bos",
                ));
            }
            out.sequences.push(Sequence { prompt, response, response_ids });
        }
    }
    Ok(out)
}

/// Returns a data error that names a sequence of a row.
fn at(row: &SourceRow, (prompt, response): (usize, usize), why: &str) -> crate::Error {
    row.error(format!("prompt {prompt} with response {response}: {why}"))
}

/// Ids of a prompt, and of each of its responses.
type Continued = (Vec<u32>, Vec<Vec<u32>>);

/// Encodes the responses to a plain-text prompt.
fn text_responses(
    prompt: &str,
    row: &SourceRow,
    pairs: &[(usize, usize)],
    tokenizer: &Tokenizer,
    out: &mut Encoded,
) -> Result<Continued> {
    let opening = tokenizer.encode_prefix(prompt)?;
    let mut responses = Vec::with_capacity(pairs.len());
    for &pair in pairs {
        let Response::Text(answer) = &row.group.responses[pair.1] else {
            let why = "the response is a message, but the prompt is plain text; give both as text or both as messages";
            return Err(at(row, pair, why));
        };
        out.plain += 1;
        let (ids, merged) = text_response(prompt, answer, &opening, tokenizer)?;
        out.mismatches += usize::from(merged);
        responses.push(ids);
    }
    Ok((opening, responses))
}

/// Returns the ids of a plain-text response after its prompt, with an EOS token at the end, and true if
/// tokens merge across the boundary.
fn text_response(prompt: &str, answer: &str, opening: &[u32], tokenizer: &Tokenizer) -> Result<(Vec<u32>, bool)> {
    let mut whole = tokenizer.encode(&format!("{prompt}{answer}"), true)?;
    // If the text already ends with an EOS token, the special tokens that the post-processor appends are
    // removed.
    let open = tokenizer.without_suffix(&whole).len();
    if whole[..open].last().is_some_and(|last| tokenizer.end_ids().contains(last)) {
        whole.truncate(open);
    }
    let (mut ids, merged) = match whole.strip_prefix(opening) {
        Some(rest) => (rest.to_vec(), false),
        None => (tokenizer.encode_continuation(answer)?, true),
    };
    // A response without tokens gets no EOS token, so that the caller rejects it.
    if ids.last().is_some_and(|last| !tokenizer.end_ids().contains(last)) {
        ids.push(tokenizer.require_eos()?);
    }
    Ok((ids, merged))
}

/// Encodes the responses to a conversation.
fn chat_responses(
    turns: &[Message],
    row: &SourceRow,
    pairs: &[(usize, usize)],
    tokenizer: &Tokenizer,
    rules: Rules,
    lost: &mut Lost,
) -> Result<Continued> {
    let group = &row.group;
    let opening = match render(turns, true, group, tokenizer)? {
        Ok(text) => tokenizer.encode(&text, false)?,
        // A template may reject the turns with a generation prompt, although it renders the whole
        // conversation.
        Err(_) if rules.reward => Vec::new(),
        Err(why) => return Err(at(row, pairs[0], &why)),
    };
    let mut wholes = Vec::with_capacity(pairs.len());
    for (i, &pair) in pairs.iter().enumerate() {
        let whole = conversation(turns, &group.responses[pair.1]);
        let rendered = render(&whole, false, group, tokenizer)?.map_err(|why| at(row, pair, &why))?;
        // All conversations of a prompt contain its turns, so these are counted once.
        whole[if i == 0 { 0 } else { turns.len() }..].iter().for_each(|turn| lost.message(turn, &rendered));
        if i == 0 {
            lost.tools(group, &rendered);
        }
        wholes.push(tokenizer.encode(&rendered, false)?);
    }
    if !rules.reward
        && let Some((whole, &pair)) = wholes.iter().zip(pairs).find(|(whole, _)| !whole.starts_with(&opening))
    {
        return Err(at(row, pair, &no_boundary(&opening, whole, group, tokenizer)?));
    }
    let shared = wholes.iter().fold(opening.len(), |shared, whole| common_prefix(&opening[..shared], whole));
    let responses = wholes.iter().map(|whole| whole[shared..].to_vec()).collect();
    Ok((opening[..shared].to_vec(), responses))
}

/// Appends a response to the turns of a conversation.
fn conversation(turns: &[Message], answer: &Response) -> Vec<Message> {
    let answer = match answer {
        Response::Message(message) => message.clone(),
        Response::Text(text) => Message::new("assistant", text.as_str()),
    };
    turns.iter().cloned().chain([answer]).collect()
}

/// Renders turns; the inner error is the template's error for these turns.
pub(super) fn render(
    turns: &[Message],
    open: bool,
    group: &PreferenceGroup,
    tokenizer: &Tokenizer,
) -> Result<Result<String, String>> {
    let kwargs = tokenizer.kwargs_of(group.chat_template_kwargs.as_ref());
    let (template, tools) = (tokenizer.require_template()?, group.tools.as_ref());
    let rendered = template.render(turns, open, tools, kwargs.as_ref());
    Ok(rendered.map_err(|why| why + &template.settings_advice(kwargs.as_ref())))
}

/// Text of a sequence before it is tokenised: the rendered conversation, or prompt and response.
pub(crate) fn text_of(
    group: &PreferenceGroup,
    prompt: usize,
    response: usize,
    tokenizer: &Tokenizer,
) -> Result<String> {
    let answer = &group.responses[response];
    match &group.prompts[prompt] {
        Prompt::Text(text) => Ok(format!("{text}{}", answer.text())),
        Prompt::Messages(turns) => {
            let rendered = render(&conversation(turns, answer), false, group, tokenizer)?;
            rendered.map_err(crate::Error::Runtime)
        }
    }
}

/// Number of leading ids that two texts share.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Error message for a conversation whose ids do not start with the prompt's ids.
fn no_boundary(opening: &[u32], whole: &[u32], group: &PreferenceGroup, tokenizer: &Tokenizer) -> Result<String> {
    let kwargs = tokenizer.kwargs_of(group.chat_template_kwargs.as_ref());
    let same = common_prefix(opening, whole);
    let near = |ids: &[u32]| {
        let ids = &ids[same.saturating_sub(2)..(same + 6).min(ids.len())];
        tokenizer.decode(ids)
    };
    Ok(format!(
        "the rendered prompt is not a prefix of the rendered conversation: from token {same} on, the prompt reads {:?} \
         and the conversation {:?}; templates that rewrite earlier turns or insert an empty thinking block (like \
         Qwen3's) are not supported; pass another template with --chat-template-path{}",
        near(opening)?,
        near(whole)?,
        tokenizer.require_template()?.settings_advice(kwargs.as_ref())
    ))
}

/// True if a response ends with an EOS token. White space after the EOS token is ignored, because some
/// templates close a turn with a line break.
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
