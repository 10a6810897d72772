//! Tokenised rows for display. Nothing is left out: a row that training would drop is shown whole, with the
//! comparisons to be dropped marked. The limits on dropped comparisons and boundary mismatches do not apply
//! here.

use rayon::prelude::*;

use super::super::source::SourceRow;
use super::super::tokenized::TokenizedGroup;
use super::super::tokenizer::Tokenizer;
use super::{
    EncodedRow, Lengths, OnTooLong, Outcome, Purpose, Result, TokenizeOptions, TokenizeReport, attach_ids, encode_row,
    fit_row,
};

/// A row for display.
pub struct Preview {
    /// The group as training uses it, or the whole group if one of its comparisons would be dropped.
    pub group: TokenizedGroup,
    /// Whether training keeps each comparison, or each response of a row without comparisons.
    pub kept: Vec<bool>,
    /// Number of tokens of the longest sequence, before the limit is applied.
    pub longest: usize,
}

/// Returns the first `shown` rows as training would see them, and counts of these rows. The default maximum
/// length is computed from all rows that can be tokenised.
///
/// # Errors
/// Returns an error if one of the shown rows cannot be tokenised.
pub fn preview_rows(
    purpose: Purpose,
    mut rows: Vec<SourceRow>,
    shown: usize,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<(Vec<Preview>, TokenizeReport)> {
    options.validate()?;
    let mut options = options.clone();
    if options.max_length.is_none() {
        let lengths =
            |row: &SourceRow| encode_row(row, tokenizer, &options, purpose).map(|encoded| encoded.lengths().collect());
        let lengths: Vec<Vec<usize>> = rows.par_iter().filter_map(|row| lengths(row).ok()).collect();
        options.max_length = Some(options.limit().of(&Lengths::new(lengths.concat())));
    }
    rows.truncate(shown);
    let encoded: Vec<Result<EncodedRow>> =
        rows.par_iter().map(|row| encode_row(row, tokenizer, &options, purpose)).collect();
    let encoded = encoded.into_iter().collect::<Result<Vec<_>>>()?;
    let lengths = Lengths::new(encoded.iter().flat_map(EncodedRow::lengths).collect());
    let max = options.limit().of(&lengths);
    let has_template = tokenizer.template().is_some();
    let mut report = TokenizeReport { lengths, max_length: max, has_template, ..TokenizeReport::default() };
    // A row that is too long is shown, even if training would stop with an error.
    if options.on_too_long == OnTooLong::Error {
        options.on_too_long = OnTooLong::Drop;
    }
    let mut previews = Vec::with_capacity(rows.len());
    for (row, encoded) in rows.into_iter().zip(encoded) {
        let longest = encoded.lengths().max().unwrap_or(0);
        let Outcome { fitted, report: counts } = fit_row(&row, encoded, tokenizer, &options, purpose, max)?;
        report.add(&counts);
        let (fitted, kept) = match fitted {
            Some(fitted) if counts.dropped() == 0 => {
                let kept = fitted.kept.clone();
                (fitted, kept)
            }
            partly => {
                let kept = partly.map_or_else(|| vec![false; counts.read], |fitted| fitted.kept);
                let whole = encode_row(&row, tokenizer, &options, purpose)?;
                let whole = fit_row(&row, whole, tokenizer, &options, purpose, usize::MAX)?.fitted;
                (whole.ok_or_else(|| row.error("the row has nothing to show"))?, kept)
            }
        };
        previews.push(Preview { group: attach_ids(row.group, fitted), kept, longest });
    }
    Ok((previews, report))
}
