//! The rows of one side (training or test) with every text as a number, so that checks compare numbers and not texts.
//! A text has two numbers: one for its exact bytes, one for its normal form (lower case, runs of white space as one
//! space, none at the ends). Both sides draw their numbers from one [`Interner`] and can be held against each other.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::data::group::{Kind, PreferenceGroup, Prompt};
use crate::data::source::SourceRow;

/// Numbers of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextId {
    pub exact: u32,
    pub normal: u32,
}

/// Which number of a text counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Exact,
    Normal,
}

impl TextId {
    pub fn of(self, form: Form) -> u32 {
        match form {
            Form::Exact => self.exact,
            Form::Normal => self.normal,
        }
    }
}

/// 128 bits of BLAKE3: texts of one key are taken for equal.
type Key = [u8; 16];

/// Gives equal texts equal numbers, in order of first appearance.
#[derive(Default)]
pub struct Interner {
    numbers: [HashMap<Key, u32>; 2],
}

impl Interner {
    fn number(&mut self, keys: [Key; 2]) -> TextId {
        let [exact, normal] = [0, 1].map(|form| {
            let next = self.numbers[form].len() as u32;
            *self.numbers[form].entry(keys[form]).or_insert(next)
        });
        TextId { exact, normal }
    }
}

/// A base comparison of two responses under one prompt.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Index into [`Corpus::rows`].
    pub row: usize,
    /// Indices into the group: prompt, chosen response, rejected response.
    pub prompt: usize,
    pub responses: [usize; 2],
    pub prompt_id: TextId,
    /// Chosen, rejected.
    pub response_ids: [TextId; 2],
}

impl Pair {
    /// Pairs of one cluster are not independent of one another: they share their prompt.
    pub fn cluster(&self) -> u32 {
        self.prompt_id.normal
    }
}

/// Texts of one row.
#[derive(Clone, Debug)]
pub struct RowTexts {
    pub prompts: Vec<TextId>,
    pub responses: Vec<TextId>,
}

/// (prompt, response) numbers of the terms of one sign, in ascending order.
pub type Side = Vec<(u32, u32)>;

/// Rows with numbered texts.
pub struct Corpus {
    pub rows: Vec<SourceRow>,
    /// One entry a row.
    pub texts: Vec<RowTexts>,
    pub pairs: Vec<Pair>,
}

impl Corpus {
    pub fn new(rows: Vec<SourceRow>, interner: &mut Interner) -> Self {
        let keys: Vec<[Vec<[Key; 2]>; 2]> = rows
            .par_iter()
            .map(|row| {
                let prompts = row.group.prompts.iter().map(|prompt| keys(&prompt_text(prompt))).collect();
                [prompts, row.group.responses.iter().map(|response| keys(response.text())).collect()]
            })
            .collect();
        let mut number = |keys: Vec<[Key; 2]>| keys.into_iter().map(|keys| interner.number(keys)).collect();
        let texts: Vec<RowTexts> = keys
            .into_iter()
            .map(|[prompts, responses]| RowTexts { prompts: number(prompts), responses: number(responses) })
            .collect();
        let mut pairs = Vec::new();
        for (row, (source, texts)) in rows.iter().zip(&texts).enumerate() {
            for [prompt, chosen, rejected] in base_pairs(&source.group) {
                pairs.push(Pair {
                    row,
                    prompt,
                    responses: [chosen, rejected],
                    prompt_id: texts.prompts[prompt],
                    response_ids: [texts.responses[chosen], texts.responses[rejected]],
                });
            }
        }
        Self { rows, texts, pairs }
    }

    /// Text of the chosen (0) or rejected (1) response of a pair.
    pub fn response(&self, pair: &Pair, side: usize) -> &str {
        self.rows[pair.row].group.responses[pair.responses[side]].text()
    }

    /// All comparisons as (row, comparison).
    pub fn comparisons(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let of = |(row, source): (usize, &SourceRow)| (0..source.group.comparisons.len()).map(move |c| (row, c));
        self.rows.iter().enumerate().flat_map(of)
    }

    /// Comparisons of each kind, in the order of [`Kind::ALL`].
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for (row, comparison) in self.comparisons() {
            counts[self.kind(row, comparison).index()] += 1;
        }
        counts
    }

    pub fn kind(&self, row: usize, comparison: usize) -> Kind {
        self.rows[row].group.comparisons[comparison].kind
    }

    /// The terms of a comparison with sign +1 and those with sign -1.
    pub fn sides(&self, row: usize, comparison: usize, form: Form) -> [Side; 2] {
        let texts = &self.texts[row];
        let side = |positive: bool| {
            let terms = self.rows[row].group.comparisons[comparison].terms.iter();
            let of_sign = terms.filter(|term| (term.sign > 0) == positive);
            let mut side: Side =
                of_sign.map(|t| (texts.prompts[t.prompt].of(form), texts.responses[t.response].of(form))).collect();
            side.sort_unstable();
            side
        };
        [side(true), side(false)]
    }

    /// The cluster of a row: its first prompt, which in rows with added instructions is the one without.
    pub fn row_cluster(&self, row: usize) -> u32 {
        self.texts[row].prompts.first().map_or(u32::MAX, |id| id.normal)
    }
}

/// Prompt, chosen and rejected response of the base comparisons that hold two responses under one prompt.
fn base_pairs(group: &PreferenceGroup) -> impl Iterator<Item = [usize; 3]> + '_ {
    group.comparisons.iter().filter(|c| c.kind == Kind::Base).filter_map(|comparison| {
        let [a, b] = comparison.terms[..] else { return None };
        let (chosen, rejected) = if a.sign > 0 { (a, b) } else { (b, a) };
        (a.prompt == b.prompt && a.sign != b.sign).then_some([a.prompt, chosen.response, rejected.response])
    })
}

/// A prompt as one text. A conversation of a single user turn reads like the plain text of that turn, so the two forms
/// of one prompt are recognised as one.
pub fn prompt_text(prompt: &Prompt) -> std::borrow::Cow<'_, str> {
    match prompt {
        Prompt::Text(text) => text.into(),
        Prompt::Messages(turns) => match &turns[..] {
            [turn] if turn.role == "user" => (&*turn.content).into(),
            turns => turns.iter().map(|turn| format!("{}: {}\n\n", turn.role, turn.content)).collect::<String>().into(),
        },
    }
}

fn keys(text: &str) -> [Key; 2] {
    let key = |text: &str| {
        let mut key = Key::default();
        blake3::Hasher::new().update(text.as_bytes()).finalize_xof().fill(&mut key);
        key
    };
    [key(text), key(&normal_form(text))]
}

/// Lower case, runs of white space as one space, none at the ends.
pub fn normal_form(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().flat_map(char::to_lowercase));
    }
    out
}
