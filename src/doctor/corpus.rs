//! Rows of one data set (training or test) with every text interned as an integer id, so that checks compare
//! ids instead of texts. A text has two ids: one for its exact bytes, one for its normal form (lower case, runs
//! of white space collapsed to one space, trimmed). Both data sets share one [`Interner`], so their ids are
//! comparable.

use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;

use crate::data::group::{Kind, Message, PreferenceGroup, Prompt};
use crate::data::source::SourceRow;

/// Interned ids of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TextId {
    pub exact: u32,
    pub normal: u32,
}

/// Form in which texts are compared: exact bytes or normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
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

/// The first 128 bits of a text's BLAKE3 hash. Texts with equal keys are treated as equal.
type Key = [u8; 16];

/// Assigns ids to texts in order of first appearance. Equal texts get equal ids.
#[derive(Default)]
pub(super) struct Interner {
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

/// Base comparison of two responses to one prompt, or of two whole conversations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Index into [`Corpus::rows`].
    pub row: usize,
    /// Indices into the group: prompts and responses of the chosen and of the rejected side.
    pub prompts: [usize; 2],
    pub responses: [usize; 2],
    /// Id of the prompt of the chosen side.
    pub prompt_id: TextId,
    /// Ids of the chosen and of the rejected response.
    pub response_ids: [TextId; 2],
}

impl Pair {
    /// Returns the cluster of the pair. Pairs of one cluster share their prompt and are not
    /// independent.
    pub fn cluster(&self) -> u32 {
        self.prompt_id.normal
    }
}

/// Interned texts of one row.
#[derive(Clone, Debug)]
pub(super) struct RowTexts {
    pub prompts: Vec<TextId>,
    pub responses: Vec<TextId>,
}

/// (prompt, response) text ids of the terms of one sign, in ascending order.
pub(super) type Side = Vec<(u32, u32)>;

/// Rows with interned texts.
pub(super) struct Corpus {
    pub rows: Vec<SourceRow>,
    /// One entry per row.
    pub texts: Vec<RowTexts>,
    pub pairs: Vec<Pair>,
}

impl Corpus {
    pub fn new(rows: Vec<SourceRow>, interner: &mut Interner) -> Self {
        let keys: Vec<[Vec<[Key; 2]>; 2]> = rows
            .par_iter()
            .map(|row| {
                let prompts = row.group.prompts.iter().map(|prompt| keys(&prompt_text(prompt))).collect();
                [prompts, row.group.responses.iter().map(|response| keys(&response.whole_text())).collect()]
            })
            .collect();
        let mut number = |keys: Vec<[Key; 2]>| keys.into_iter().map(|keys| interner.number(keys)).collect();
        let texts: Vec<RowTexts> = keys
            .into_iter()
            .map(|[prompts, responses]| RowTexts { prompts: number(prompts), responses: number(responses) })
            .collect();
        let mut pairs = Vec::new();
        for (row, (source, texts)) in rows.iter().zip(&texts).enumerate() {
            for sides in base_pairs(&source.group) {
                let [prompts, responses] = [sides.map(|side| side.0), sides.map(|side| side.1)];
                pairs.push(Pair {
                    row,
                    prompts,
                    responses,
                    prompt_id: texts.prompts[prompts[0]],
                    response_ids: responses.map(|response| texts.responses[response]),
                });
            }
        }
        Self { rows, texts, pairs }
    }

    /// Returns the text of the chosen (0) or rejected (1) response of a pair.
    pub fn response(&self, pair: &Pair, side: usize) -> Cow<'_, str> {
        self.rows[pair.row].group.responses[pair.responses[side]].whole_text()
    }

    /// Iterates over all comparisons as (row, comparison).
    pub fn comparisons(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let of = |(row, source): (usize, &SourceRow)| (0..source.group.comparisons.len()).map(move |c| (row, c));
        self.rows.iter().enumerate().flat_map(of)
    }

    /// Number of comparisons of each kind, in the order of [`Kind::ALL`].
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

    /// Returns the terms of a comparison with sign +1, then the terms with sign -1.
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

    /// Returns the cluster of a row, which is the id of its first prompt. In rows with added instructions the
    /// first prompt is the original one.
    pub fn row_cluster(&self, row: usize) -> u32 {
        self.texts[row].prompts.first().map_or(u32::MAX, |id| id.normal)
    }
}

/// Iterates over the base comparisons of two responses, as (prompt, response) of the chosen and of
/// the rejected side.
fn base_pairs(group: &PreferenceGroup) -> impl Iterator<Item = [(usize, usize); 2]> + '_ {
    group.comparisons.iter().filter(|c| c.kind == Kind::Base).filter_map(|comparison| {
        let [a, b] = comparison.terms[..] else { return None };
        let (chosen, rejected) = if a.sign > 0 { (a, b) } else { (b, a) };
        (a.sign != b.sign).then_some([chosen, rejected].map(|term| (term.prompt, term.response)))
    })
}

/// Returns a prompt as one text. A conversation of a single user turn yields the plain text of the
/// turn, so both forms of a prompt compare equal.
pub(super) fn prompt_text(prompt: &Prompt) -> Cow<'_, str> {
    match prompt {
        Prompt::Text(text) => text.into(),
        Prompt::Messages(turns) => match &turns[..] {
            [turn] if turn.role == "user" => turn.whole_text(),
            turns => {
                let text = |turn: &Message| format!("{}: {}\n\n", turn.role, turn.whole_text());
                turns.iter().map(text).collect::<String>().into()
            }
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

/// Returns the text in lower case, trimmed, with runs of white space collapsed to one space.
pub(super) fn normal_form(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().flat_map(char::to_lowercase));
    }
    out
}
