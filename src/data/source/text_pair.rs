//! Pairs of plain text, with a prompt (`prompt`, `chosen`, `rejected`) or without (`chosen` and
//! `rejected` with a common prefix). Text is never edited: prompt and response together are always
//! the given text.
//!
//! Without `prompt`, the prompt is the common prefix of both texts, cut back to a position at which both
//! continue with white space. White space starts the next word in byte-level and SentencePiece vocabularies
//! alike. Texts without such a position are cut after the last shared punctuation mark, or not at all. Cutting
//! back never changes a comparison: the shared words move into both responses, where they score alike.

use super::super::group::{PreferenceGroup, Prompt, Response};
use super::fields::Row;
use super::message::not_empty;
use super::{Format, Parsed};

pub(super) fn read_explicit(row: &mut Row<'_>) -> Result<Parsed, String> {
    let (prompt, chosen, rejected) = (row.text("prompt")?, row.text("chosen")?, row.text("rejected")?);
    let repeated = !prompt.trim().is_empty() && chosen.starts_with(&prompt) && rejected.starts_with(&prompt);
    let group = pair(row, prompt, chosen, rejected)?;
    Ok(Parsed { prompt_repeated: repeated, ..Parsed::new(Format::TextExplicit, group) })
}

pub(super) fn read_implicit(row: &mut Row<'_>) -> Result<Parsed, String> {
    let (chosen, rejected) = (row.text("chosen")?, row.text("rejected")?);
    let cut = shared_prompt(&chosen, &rejected);
    let group = pair(row, chosen[..cut].to_owned(), chosen[cut..].to_owned(), rejected[cut..].to_owned())?;
    Ok(Parsed::new(Format::TextImplicit, group))
}

/// Builds a group from one text pair, with the row's margin and template settings.
pub(super) fn pair(
    row: &mut Row<'_>,
    prompt: String,
    chosen: String,
    rejected: String,
) -> Result<PreferenceGroup, String> {
    let chosen = not_empty(Response::Text(chosen), "\"chosen\"")?;
    let rejected = not_empty(Response::Text(rejected), "\"rejected\"")?;
    let margin = row.margin()?;
    let mut group = PreferenceGroup::pair(row.id().to_owned(), Prompt::Text(prompt), chosen, rejected, margin);
    row.template_settings(&mut group)?;
    Ok(group)
}

/// Returns the length in bytes of the prompt that both texts share (see the module comment). Neither response
/// becomes empty.
fn shared_prompt(a: &str, b: &str) -> usize {
    let shared: usize = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    // The prompt may end at `shared` itself only if both texts continue after it.
    let starts =
        |cut: usize, test: fn(char) -> bool| [a, b].iter().all(|side| side[cut..].chars().next().is_some_and(test));
    let ends = |cut: usize, test: fn(char) -> bool| a[..cut].chars().next_back().is_some_and(test);
    let cuts = || (1..=shared).rev().filter(|&cut| a.is_char_boundary(cut));
    cuts()
        .find(|&cut| starts(cut, char::is_whitespace) && ends(cut, |c| !c.is_whitespace()))
        .or_else(|| cuts().find(|&cut| starts(cut, |_| true) && ends(cut, is_punctuation)))
        .unwrap_or(0)
}

/// True if the character is neither a letter, a digit nor white space.
fn is_punctuation(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::shared_prompt;

    fn split<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str, &'a str) {
        let cut = shared_prompt(a, b);
        (&a[..cut], &a[cut..], &b[cut..])
    }

    #[test]
    fn the_prompt_ends_before_white_space() {
        assert_eq!(split("The sky is blue.", "The sky is green."), ("The sky is", " blue.", " green."));
        assert_eq!(split("Q: 2+2? A: yes", "Q: 2+2? A: yellow"), ("Q: 2+2? A:", " yes", " yellow"));
        assert_eq!(split("Q\nA:\nfoo", "Q\nA:\nbar"), ("Q\nA:", "\nfoo", "\nbar"));
    }

    #[test]
    fn neither_response_becomes_empty() {
        assert_eq!(split("one two three", "one two"), ("one", " two three", " two"));
        assert_eq!(split("same words", "same words"), ("same", " words", " words"));
        assert_eq!(split("abc", "abd"), ("", "abc", "abd"));
        assert_eq!(split("", "x"), ("", "", "x"));
    }

    #[test]
    fn text_without_white_space_is_cut_after_punctuation() {
        assert_eq!(split("問題：答案甲", "問題：答案乙"), ("問題：", "答案甲", "答案乙"));
        // Multi-byte characters that share leading bytes must not be cut apart.
        assert_eq!(split("é", "è"), ("", "é", "è"));
    }
}
