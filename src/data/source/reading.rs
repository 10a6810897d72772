//! The loop over files and rows: applies the options, calls a reader for every row, and counts rows, formats
//! and unused keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::candidates::finite_gap;
use super::fields::Row;
use super::report::{FileReport, Skipped};
use super::turns::make_turns;
use super::{Format, Occurrences, Parsed, ReadOptions, RowReader, SourceRow};
use super::{overlooked, refuse_pipe_named_twice, rows};
use crate::{Error, Result};

/// Options that the rows of a file use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    dropped: BTreeSet<String>,
    pairs: bool,
    score_key: bool,
    score_margin: bool,
    mapped: bool,
    made_turns: bool,
}

impl Used {
    /// Adds the options that a row used, even if the row cannot be read in the end.
    fn add(&mut self, row: &Row<'_>) {
        self.mapped |= row.mapped;
        self.made_turns |= row.made_turns;
        self.dropped.extend(row.dropped.iter().cloned());
        self.pairs |= row.used_pairs;
        self.score_key |= row.used_score_key;
        self.score_margin |= row.used_score_margin;
    }
}

/// Rejects options that no row of a command's files uses. Rows that were left out count too, as far as they
/// could be read.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_used<'a>(options: &ReadOptions, reports: impl IntoIterator<Item = &'a FileReport>) -> Result<()> {
    let reports: Vec<&FileReport> = reports.into_iter().collect();
    let used = |of: &dyn Fn(&Used) -> bool| reports.iter().any(|report| of(&report.used));
    if let Some(column) = options.drop_columns.iter().find(|column| !used(&|u| u.dropped.contains(*column))) {
        return Err(Error::Usage(format!("--drop-columns {column}: no row has this column; correct its name")));
    }
    let unused = [
        (
            "--column-map",
            !options.column_map.pairs().is_empty() && !used(&|u| u.mapped),
            "every row is a group row, whose keys are fixed, or cannot be read",
        ),
        (
            "--apply-chat-template",
            options.apply_chat_template && !used(&|u| u.made_turns),
            "every row is a conversation already",
        ),
        (
            "--mixed-formats",
            options.mixed_formats && reports.iter().all(|report| report.formats.len() < 2),
            "no file has rows of several formats",
        ),
        ("--pairs", options.pairs.is_some() && !used(&|u| u.pairs), "no row has more than two responses"),
        ("--score-key", options.score_key.is_some() && !used(&|u| u.score_key), "no row lists responses with numbers"),
        ("--score-margin", options.score_margin && !used(&|u| u.score_margin), "no row has scores"),
    ];
    match unused.into_iter().find(|(_, unused, _)| *unused) {
        None => Ok(()),
        Some((flag, _, why)) => Err(Error::Usage(format!("{flag} has no effect: {why}; leave it out"))),
    }
}

/// Reads files. Every defect of a row or file is passed to `on_error`; reading stops if `on_error` returns an
/// error. Rows that [`ReadOptions::skip_bad_rows`] leaves out are not passed to it. Damage that hides the
/// next row is never skipped.
pub(super) fn read_with(
    paths: &[PathBuf],
    options: &ReadOptions,
    reader: RowReader,
    on_error: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<(Vec<SourceRow>, Vec<FileReport>)> {
    if paths.is_empty() {
        return Err(Error::Usage("no input file was given".into()));
    }
    refuse_pipe_named_twice(paths)?;
    let mut all = Vec::new();
    let mut reports = Vec::with_capacity(paths.len());
    let mut bad = 0;
    // Id of each group row, with its file and line.
    let mut seen: HashMap<String, (Arc<Path>, usize)> = HashMap::new();
    for path in paths {
        let file: Arc<Path> = Arc::from(path.as_path());
        let (mut counts, mut used) = (FileCounts::default(), Used::default());
        let (mut rows, mut skipped) = (0, Vec::new());
        let mut read = |line, rows::RowObject { object, odd, .. }| {
            let mut row = Row::new(object, path, line);
            row.odd = odd;
            let fail = |id: &str, why: String| Error::data(path, line, Some(id), why);
            row.set_id().map_err(|why| Error::data(path, line, None, why))?;
            let id = row.id().to_owned();
            let read = read_row(&mut row, options, reader);
            used.add(&row);
            let ReadRow { parsed, scores, stored } = read.map_err(|why| fail(&id, why))?;
            overlooked::count_stored(stored, line, &mut counts);
            counts.add(&parsed, line, options).map_err(|why| fail(&id, why))?;
            if parsed.format == Format::Group
                && let Some((other, first)) = seen.insert(id.clone(), (file.clone(), line))
            {
                let why = format!(
                    "the id was already used in {}:{first}; ids of group rows must be distinct",
                    other.display()
                );
                return Err(fail(&id, why));
            }
            counts.ignored_keys.extend(row.unused());
            if !parsed.tied {
                all.push(SourceRow { group: parsed.group, file: file.clone(), line, scores });
            }
            Ok(())
        };
        let mapped = options.column_map.pairs().iter().find(|(key, _)| key == "id").map(|(_, column)| column.as_str());
        let ids: Vec<&str> = mapped.into_iter().chain(["id"]).collect();
        let columns = rows::Columns { ids: &ids, mapped: options.column_map.pairs(), keep_text: false };
        let outcome = rows::for_each_row(path, columns, |line, object| {
            rows += 1;
            let outcome = object.and_then(|object| read(line, object));
            let outcome = outcome.or_else(|error| skip(error, options, &mut bad, &mut skipped));
            outcome.or_else(&mut *on_error)
        });
        match outcome {
            Ok(()) if rows == 0 => {
                on_error(Error::data(path, 0, None, "the file has no rows; expected one JSON object per line"))?;
            }
            outcome => outcome.or_else(&mut *on_error)?,
        }
        let mut formats: Vec<_> = counts.formats.iter().map(|f| (f.format, f.rows)).collect();
        formats.sort_unstable();
        reports.push(FileReport {
            file: path.clone(),
            formats,
            ignored_keys: counts.ignored_keys,
            prompt_repeated: counts.prompt_repeated,
            tied_rows: counts.tied_rows,
            tied_pairs: counts.tied_pairs,
            unrated: counts.unrated,
            skipped,
            used,
            messages_as_text: counts.messages_as_text,
        });
    }
    if bad > 0 && all.is_empty() {
        on_error(Error::data(&paths[0], 0, None, "no row can be read; see the skipped rows without --skip-bad-rows"))?;
    }
    Ok((all, reports))
}

/// A row that was read.
struct ReadRow {
    parsed: Parsed,
    scores: Option<[f64; 2]>,
    /// Names of the columns in which lists of messages are stored as text.
    stored: Vec<String>,
}

/// Reads a row with the options.
fn read_row(row: &mut Row<'_>, options: &ReadOptions, reader: RowReader) -> Result<ReadRow, String> {
    row.apply(options)?;
    let scores = row.scores();
    let stored = overlooked::stored_messages(row);
    let columns = overlooked::conversation_columns(row);
    let mut parsed = reader(row).map_err(|why| row.explain(why))?;
    if options.apply_chat_template {
        row.made_turns = make_turns(parsed.format, &mut parsed.group)?;
    }
    row.check_odd(&parsed.group)?;
    if !options.any_columns && parsed.format != Format::Group {
        overlooked::check_columns(row, columns, &parsed.group)?;
    }
    if options.score_margin {
        set_margin(row, &mut parsed, scores)?;
    }
    Ok(ReadRow { parsed, scores, stored })
}

/// Counts a row that cannot be read, by reason, if `--skip-bad-rows` allows one more such row.
fn skip(error: Error, options: &ReadOptions, bad: &mut usize, skipped: &mut Vec<Skipped>) -> Result<()> {
    let Some(limit) = options.skip_bad_rows else { return Err(error) };
    let (Error::Data { line, why, .. }, true) = (&error, *bad < limit) else {
        return Err(match error {
            Error::Data { file, line, id, why } => {
                let why = format!("{why} (more than --skip-bad-rows {limit} rows cannot be read)");
                Error::Data { file, line, id, why }
            }
            other => other,
        });
    };
    *bad += 1;
    let reason = reason(why);
    match skipped.iter_mut().find(|known| known.why == reason) {
        Some(known) => known.rows += 1,
        None => skipped.push(Skipped { why: reason, rows: 1, first_line: *line }),
    }
    Ok(())
}

/// Returns a message without its advice and its numbers, so that rows with the same fault share a reason.
fn reason(why: &str) -> String {
    let fault = why.split(';').next().unwrap_or(why);
    let mut reason = String::with_capacity(fault.len());
    for c in fault.chars() {
        match c {
            '0'..='9' if reason.ends_with('#') => {}
            '0'..='9' => reason.push('#'),
            c => reason.push(c),
        }
    }
    reason
}

/// Sets the margin of a pair to the difference of its scores. Readers of several responses have done so
/// already, and group rows contain their margins.
fn set_margin(row: &mut Row<'_>, parsed: &mut Parsed, scores: Option<[f64; 2]>) -> Result<(), String> {
    if matches!(parsed.format, Format::Labelled | Format::Scored | Format::Lists | Format::Group) {
        return Ok(());
    }
    if parsed.group.comparisons.len() != 1 {
        return Ok(());
    }
    row.use_scores();
    row.check_odd(&parsed.group)?;
    let [comparison] = &mut parsed.group.comparisons[..] else { return Ok(()) };
    let Some([chosen, rejected]) = scores else {
        return Err(format!(
            "--score-margin needs the scores of the chosen and the rejected response, and the row has {}; leave out \
             the row or the flag",
            row.scores_for_message()
        ));
    };
    if row.has_margin() {
        return Err(
            "\"margin\" and --score-margin are both given; leave out the column with --drop-columns margin".into()
        );
    }
    if chosen < rejected {
        return Err(format!("the rejected response has a higher score ({rejected}) than the chosen one ({chosen})"));
    }
    comparison.margin = finite_gap(chosen, rejected)?;
    row.used_score_margin = true;
    Ok(())
}

/// Count of one format in a file, with the line of its first row.
struct FormatCount {
    format: Format,
    first_line: usize,
    rows: usize,
}

/// Running counts of one file.
#[derive(Default)]
pub(super) struct FileCounts {
    formats: Vec<FormatCount>,
    ignored_keys: BTreeSet<String>,
    prompt_repeated: usize,
    tied_rows: usize,
    tied_pairs: usize,
    unrated: usize,
    pub(super) messages_as_text: BTreeMap<String, Occurrences>,
}

impl FileCounts {
    fn add(&mut self, parsed: &Parsed, line: usize, options: &ReadOptions) -> Result<(), String> {
        self.prompt_repeated += usize::from(parsed.prompt_repeated);
        self.tied_rows += usize::from(parsed.tied);
        self.tied_pairs += parsed.ties;
        self.unrated += parsed.unrated;
        if let Some(known) = self.formats.iter_mut().find(|f| f.format == parsed.format) {
            known.rows += 1;
            return Ok(());
        }
        if let Some(other) = self.formats.first().filter(|_| !options.mixed_formats) {
            return Err(format!(
                "line {line} has format \"{}\" but line {} has format \"{}\"; split the file or pass \
                 --mixed-formats",
                parsed.format, other.first_line, other.format
            ));
        }
        self.formats.push(FormatCount { format: parsed.format, first_line: line, rows: 1 });
        Ok(())
    }
}
