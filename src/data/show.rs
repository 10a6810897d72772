//! Prints tokenised groups: decoded sequences with the tokens of the loss marked and special tokens visible,
//! ids on request, the position from which the ids decode to a different text from the row's, and token
//! counts of the group under four layouts.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::group::{Instruction, Kind, PreferenceGroup};
use super::tokenize::{Preview, text_of};
use super::tokenized::TokenizedGroup;
use super::tokenizer::Tokenizer;
use crate::Result;
use crate::terminal::{counted, plain, shown};

/// Print options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShowOptions {
    /// Mark tokens of the loss with colour instead of `[[ ]]`.
    pub color: bool,
    /// Print the token ids of every sequence.
    pub ids: bool,
}

/// Token counts of a group under four layouts, from the simplest to the one used in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenTable {
    /// Number of terms over all comparisons, and their tokens if each term is computed separately.
    pub terms: (usize, usize),
    /// Number of distinct sequences, and their tokens.
    pub sequences: (usize, usize),
    /// Number of distinct prompts, and the tokens of these prompts and of all responses.
    pub prompts: (usize, usize),
    /// Prompt tokens in the prefix tree, and these plus all response tokens.
    pub tree: (usize, usize),
}

impl TokenTable {
    /// Counts the tokens of a group. No layout shares response tokens between sequences.
    pub fn new(group: &TokenizedGroup) -> Self {
        let length = |sequence: usize| {
            let sequence = &group.sequences[sequence];
            group.prompt_ids[sequence.prompt].len() + sequence.response_ids.len()
        };
        let terms: Vec<usize> =
            group.comparisons.iter().flat_map(|c| c.terms.iter().map(|t| length(t.sequence))).collect();
        let used: BTreeSet<usize> = group.sequences.iter().map(|s| s.prompt).collect();
        // Prompts with equal ids are one prompt. In sorted order the longest common prefixes are
        // adjacent, so each trie node is counted at its first occurrence.
        let mut prompts: Vec<&[u32]> = used.iter().map(|&p| &group.prompt_ids[p][..]).collect();
        prompts.sort_unstable();
        prompts.dedup();
        let mut nodes = 0;
        let mut before: &[u32] = &[];
        for ids in &prompts {
            nodes += ids.len() - ids.iter().zip(before).take_while(|(a, b)| a == b).count();
            before = ids;
        }
        let responses = group.response_tokens();
        let sequences = group.sequences.len();
        Self {
            terms: (terms.len(), terms.iter().sum()),
            sequences: (sequences, (0..sequences).map(length).sum()),
            prompts: (prompts.len(), prompts.iter().map(|ids| ids.len()).sum::<usize>() + responses),
            tree: (nodes, nodes + responses),
        }
    }
}

impl fmt::Display for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = if self.terms.1 > 0 { self.terms.1 } else { self.sequences.1 };
        let share = |tokens: usize| if first == 0 { 0.0 } else { 100.0 * tokens as f64 / first as f64 };
        let rows = [
            (format!("every term separately ({})", counted(self.terms.0, "term")), self.terms.1),
            (format!("each distinct sequence once ({})", self.sequences.0), self.sequences.1),
            (format!("each distinct prompt once ({}), plus responses", self.prompts.0), self.prompts.1),
            (format!("prefix tree: prompts {}, responses {}", self.tree.0, self.tree.1 - self.tree.0), self.tree.1),
        ];
        writeln!(f, "{:<56} {:>8} {:>8}", "layout", "tokens", "share")?;
        for (layout, tokens) in rows {
            writeln!(f, "{layout:<56} {tokens:>8} {:>6.0} %", share(tokens))?;
        }
        Ok(())
    }
}

/// Formats a group: its comparisons, every distinct sequence with the tokens of the loss marked, and its
/// token table. Comparisons that the limit of `max_length` tokens drops are marked.
pub(crate) fn render_preview(
    preview: &Preview,
    max_length: usize,
    tokenizer: &Tokenizer,
    options: ShowOptions,
) -> Result<String> {
    let (group, mut notes) = (&preview.group, String::new());
    let dropped = preview.kept.iter().filter(|&&kept| !kept).count();
    if dropped > 0 {
        line(
            &mut notes,
            format!(
                "  {dropped} of {} would be dropped: the longest sequence has {} tokens, and --max-length is {max_length}",
                preview.kept.len(),
                preview.longest
            ),
        );
    }
    let mark = |i: usize| if preview.kept.get(i) == Some(&false) { ", would be dropped" } else { "" };
    for i in 0..group.comparisons.len() {
        line(&mut notes, comparison_line(i, group) + mark(i));
    }
    with_notes(group, &notes, tokenizer, options)
}

/// Formats a group: its comparisons, its distinct sequences with the tokens of the loss marked, and its token table.
pub fn render(group: &TokenizedGroup, tokenizer: &Tokenizer, options: ShowOptions) -> Result<String> {
    let notes = (0..group.comparisons.len()).map(|i| comparison_line(i, group) + "\n");
    with_notes(group, &notes.collect::<String>(), tokenizer, options)
}

/// Formats the name and `notes` of a group, its sequences and its token table.
fn with_notes(group: &TokenizedGroup, notes: &str, tokenizer: &Tokenizer, options: ShowOptions) -> Result<String> {
    let mut out = format!("group {}\n{notes}", shown(&group.group.id));
    for i in 0..group.sequences.len() {
        line(&mut out, format!("\n{}", sequence_text(i, group, tokenizer, options)?));
        if let Some(difference) = difference(i, group, tokenizer)? {
            line(&mut out, format!("  {}", plain(&difference)));
        }
    }
    line(&mut out, format!("\n{}", TokenTable::new(group)));
    Ok(out)
}

/// Formats the first comparison of every kind that occurs, with one line per sequence, for the start-up log.
/// Also formats the first sequence of the first group without comparisons.
pub fn render_examples(groups: &[TokenizedGroup], tokenizer: &Tokenizer, options: ShowOptions) -> Result<String> {
    let mut out = String::new();
    for kind in Kind::ALL {
        let place = |group: &TokenizedGroup| group.comparisons.iter().position(|c| c.kind == kind);
        let Some((group, i)) = groups.iter().find_map(|group| Some((group, place(group)?))) else { continue };
        line(&mut out, format!("{} of group {}", kind.name(), shown(&group.group.id)));
        for term in &group.comparisons[i].terms {
            let sign = if term.sign > 0 { '+' } else { '-' };
            line(&mut out, format!("  {sign} {}", sequence_line(term.sequence, group, tokenizer, options)?));
        }
    }
    if let Some(group) = groups.iter().find(|group| group.comparisons.is_empty() && !group.sequences.is_empty()) {
        line(&mut out, format!("group {}", shown(&group.group.id)));
        line(&mut out, format!("    {}", sequence_line(0, group, tokenizer, options)?));
    }
    Ok(out)
}

/// Formats a sequence in at most 79 columns, including the sign that the caller adds: token counts of prompt
/// and response, and the start and end of both texts. Added instructions are at the end of a prompt, so more
/// of its end is kept.
fn sequence_line(i: usize, group: &TokenizedGroup, tokenizer: &Tokenizer, options: ShowOptions) -> Result<String> {
    let sequence = &group.sequences[i];
    let (prompt, response) = (&group.prompt_ids[sequence.prompt], &sequence.response_ids);
    let (open, close) = marks(options);
    let lengths = format!("{}+{}", prompt.len(), response.len());
    let (before, trained) = (tokenizer.decode(prompt)?, tokenizer.decode(response)?);
    Ok(format!("{lengths:<8} {}{open}{}{close}", abridged(&before, 8, 21), abridged(&trained, 10, 13)))
}

/// Returns a text on one line: the whole text, or its first and last characters.
fn abridged(text: &str, first: usize, last: usize) -> String {
    const GAP: &str = " ... ";
    let words: Vec<&str> = text.split_whitespace().collect();
    let chars: Vec<char> = plain(&words.join(" ")).chars().collect();
    if chars.len() <= first + GAP.len() + last {
        return chars.into_iter().collect();
    }
    let (start, end) = (&chars[..first], &chars[chars.len() - last..]);
    start.iter().chain(&GAP.chars().collect::<Vec<char>>()).chain(end).collect()
}

/// Returns the marks before and after the tokens of the loss.
fn marks(options: ShowOptions) -> (&'static str, &'static str) {
    if options.color { ("\u{1b}[1;32m", "\u{1b}[0m") } else { ("[[", "]]") }
}

/// Formats a sequence: its indices and lengths, its instructions, its text with the tokens of the loss
/// marked, and its ids.
fn sequence_text(i: usize, group: &TokenizedGroup, tokenizer: &Tokenizer, options: ShowOptions) -> Result<String> {
    let sequence = &group.sequences[i];
    let (prompt, response) = (&group.prompt_ids[sequence.prompt], &sequence.response_ids);
    let mut out = format!(
        "sequence {i}: prompt {} with response {}, {} + {} tokens\n",
        sequence.prompt,
        sequence.response,
        prompt.len(),
        response.len()
    );
    for note in instruction_notes(&group.group, sequence.prompt, sequence.response) {
        line(&mut out, format!("  {note}"));
    }
    let (open, close) = marks(options);
    let (before, whole) = (tokenizer.decode(prompt)?, tokenizer.decode(&[&prompt[..], response].concat())?);
    // A decoder may drop the space at the start of a text, so the response is decoded together with the
    // prompt, unless the boundary lies within a character.
    let trained = match whole.strip_prefix(&before) {
        Some(trained) => trained.to_owned(),
        None => tokenizer.decode(response)?,
    };
    let _ = write!(out, "{}{open}{}{close}", plain(&before), plain(&trained));
    if options.ids {
        let _ = write!(out, "\n  ids {prompt:?} {open}{response:?}{close}");
    }
    Ok(out)
}

/// Number of characters that a message shows of a text on each side of a difference.
const SHOWN: usize = 24;

/// Describes where the text decoded from the ids of a sequence differs from the row's text. A tokenizer may
/// change spaces, case or rare characters.
fn difference(i: usize, group: &TokenizedGroup, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let sequence = &group.sequences[i];
    let expected = text_of(&group.group, sequence.prompt, sequence.response, tokenizer)?;
    let mut ids = [&group.prompt_ids[sequence.prompt][..], &sequence.response_ids].concat();
    // Special tokens that tokenisation added and that the text does not contain are removed.
    let spelled = |id: u32, found: &dyn Fn(&str) -> bool| tokenizer.token(id).is_some_and(|token| found(&token));
    if let Some(&first) = ids.first()
        && tokenizer.bos_id() == Some(first)
        && !spelled(first, &|token| expected.starts_with(token))
    {
        ids.remove(0);
    }
    if let Some(&last) = ids.last()
        && tokenizer.end_ids().contains(&last)
        && !spelled(last, &|token| expected.ends_with(token))
    {
        ids.pop();
    }
    let decoded = tokenizer.decode(&ids)?;
    if decoded == expected {
        return Ok(None);
    }
    let same = decoded.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| -> String { text.chars().skip(same.saturating_sub(SHOWN)).take(2 * SHOWN).collect() };
    Ok(Some(format!(
        "the ids decode to a different text from the row's, starting at character {}: {:?} instead of {:?}",
        same + 1,
        near(&decoded),
        near(&expected)
    )))
}

fn line(out: &mut String, text: String) {
    out.push_str(&text);
    out.push('\n');
}

/// Formats a comparison: kind, rule or direction, signed sequences, margin, weight.
fn comparison_line(i: usize, group: &TokenizedGroup) -> String {
    let comparison = &group.comparisons[i];
    let mut out = format!("  {} ", comparison.kind.name());
    if let Some(source) = group.group.comparisons.get(i) {
        if let Some(rule) = source.rule {
            let _ = write!(out, "rule {rule:?} ");
        }
        if let Some(direction) = source.direction {
            let _ = write!(out, "{direction:?} ");
        }
    }
    let signed = |sign: i8| if sign > 0 { '+' } else { '-' };
    let terms = comparison.terms.iter().map(|t| format!("{}sequence {}", signed(t.sign), t.sequence));
    out.push_str(&terms.collect::<Vec<_>>().join(" "));
    if comparison.margin != 0.0 {
        let _ = write!(out, ", margin {}", comparison.margin);
    }
    if comparison.weight != 1.0 {
        let _ = write!(out, ", weight {}", comparison.weight);
    }
    out
}

/// Lists the instructions of a prompt and whether a response meets them.
fn instruction_notes(group: &PreferenceGroup, prompt: usize, response: usize) -> Vec<String> {
    let note = |instruction: &Instruction| {
        let met = match instruction.satisfied.get(response).copied().flatten() {
            Some(true) => "met",
            Some(false) => "not met",
            None => "not checked",
        };
        format!("{}: {met}", shown(&instruction.id))
    };
    group.instructions.iter().filter(|i| i.prompt == prompt).map(note).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::group::{Prompt, Response};
    use super::super::tokenized::Sequence;
    use super::*;

    #[test]
    fn long_texts_are_abridged_to_a_line() {
        assert_eq!(abridged("a b\n\nc", 3, 3), "a b c");
        let long = abridged(&"word \u{1b}[2J\n".repeat(99), 8, 22);
        assert!(long.chars().count() == 35 && !long.contains(char::is_control), "{long:?}");
    }

    #[test]
    fn tree_nodes_do_not_depend_on_the_order_of_prompts() {
        // Prompts 0 and 2 share their first token, prompts 1 and 3 are equal, prompt 4 is not used.
        let prompt_ids = vec![vec![1, 2], vec![3], vec![1, 4], vec![3], Vec::new()];
        let pair = |s: &str| Response::Text(s.into());
        let group = PreferenceGroup::pair("t".into(), Prompt::Text("p".into()), pair("a"), pair("b"), 0.0);
        let sequences = (0..4).map(|prompt| Sequence { prompt, response: 0, response_ids: vec![9] }).collect();
        let group = TokenizedGroup { group: Arc::new(group), prompt_ids, sequences, comparisons: Vec::new() };
        let table = TokenTable::new(&group);
        assert_eq!(table, TokenTable { terms: (0, 0), sequences: (4, 10), prompts: (3, 9), tree: (4, 8) });
    }
}
